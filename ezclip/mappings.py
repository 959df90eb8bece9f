"""YAML files that name things, of which nothing is lost without a word."""

from collections import Counter
from pathlib import Path

import yaml

from .errors import DataError
from .labels import read_text


LONGEST_NAME = 200  # bytes; file systems take 255


class _Loader(yaml.SafeLoader):
    """Refuses two equal keys, of which YAML keeps the last, and keys that are no strings: `yes`, `1`, `~`."""

    def construct_mapping(self, node, deep=False):
        self.flatten_mapping(node)
        names = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:str":
                raise yaml.constructor.ConstructorError(
                    None,
                    None,
                    f"the name {key.value!r} is read as another thing than text; put it in quotes",
                    key.start_mark,
                )
            if key.value in names:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is there twice", key.start_mark)
            names.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path):
    """
    What a YAML file holds.

    Raises:
        [`DataError`]: if it cannot be read, or a mapping in it has two equal keys, or one that is no text.
    """
    try:
        return yaml.load(read_text(path), _Loader)
    except yaml.YAMLError as error:
        raise DataError(f"{path} is not such a YAML file as is read here: {error}") from error


def check_folder_names(names: list[str], source: str | Path, reserved: tuple[str, ...] = ()):
    """
    That each name can be the name of a folder of its own, on any system.

    Raises:
        [`DataError`]: if one cannot.
    """
    keys = Counter(name.casefold() for name in names)
    for name in names:
        if not name.isprintable() or {"/", "\\"} & set(name) or name.strip() != name or name in (".", "..", ""):
            raise DataError(
                f"{source}: {name!r} cannot be the name of a folder, which it becomes. Use letters, digits and blanks "
                "within."
            )
        if len(name.encode()) > LONGEST_NAME:
            raise DataError(f"{source}: the name {name[:40]!r}… is longer than {LONGEST_NAME} bytes.")
        if name.casefold() in reserved:
            raise DataError(f"{source}: {name!r} is the name of a file that is written. Take another.")
        if keys[name.casefold()] > 1:
            raise DataError(f"{source}: {name!r} is there in two spellings, which are one folder on some systems.")
