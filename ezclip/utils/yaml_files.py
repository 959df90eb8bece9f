"""YAML files that name things, of which nothing is lost without a word."""

from pathlib import Path

import yaml

from ezclip.errors import DataError
from ezclip.utils.files import read_text


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
