"""Options of YAML files, parsed by the parser of the command line."""

import dataclasses
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Never

from ezclip.cli.parser import Parser
from ezclip.errors import DataError
from ezclip.utils.yaml_files import read_yaml


FILE_ENDINGS = (".yaml", ".yml")


class _FileParser(Parser):
    """Raises [`DataError`] where the parser of the command line exits."""

    def error(self, message: str) -> Never:
        raise DataError(message)


def find_option_file(name: str) -> Path:
    """Return the path of an option file: a path that ends in `.yaml`, or the bare name of a file of the package."""
    if name.endswith(FILE_ENDINGS):
        return Path(name)
    shipped = Path(str(files("ezclip.configs")))
    names = sorted(path.stem for path in shipped.glob("*.yaml"))
    if name not in names:
        raise DataError(f"The option file must be a .yaml file or one of {', '.join(names)}, got {name!r}.")
    return shipped / f"{name}.yaml"


def read_options(path: Path, groups: Sequence[type]) -> dict[str, object]:
    """Read a YAML file with options of the dataclasses. The path of `eval_datasets` is relative to that file."""
    content = read_yaml(path)
    datasets = content.pop("eval_datasets", None) if isinstance(content, dict) else None
    options = parse_options(content, groups, str(path))
    if datasets is not None:
        options["eval_datasets"] = str(path.parent / datasets) if isinstance(datasets, str) else datasets
    return options


def parse_options(
    content, groups: Sequence[type], source: str, names: Sequence[str] | None = None
) -> dict[str, object]:
    """
    Parse a mapping of options as if they had been typed. An option without a value is left out.

    Raise a [`DataError`] that names `source` if `content` is no mapping, has an option that is not in the dataclasses
    and `names` (default: all), or has a wrong value.
    """
    if not isinstance(content, dict):
        raise DataError(f"{source} must be a mapping, one `option: value` a line, got {type(content).__name__}.")
    types = {field.name: field.type for group in groups for field in dataclasses.fields(group)}
    allowed = [name for name in types if names is None or name in names]
    if unknown := [name for name in content if name not in allowed]:
        known = "the options of the command line" if names is None else f"one of {', '.join(sorted(allowed))}"
        raise DataError(f"{source}: an option must be {known}, got {unknown[0]!r}.")
    words = []
    for name, value in content.items():
        if value is None:
            continue
        is_switch, is_list = types[name] in (bool, bool | None), "list[" in str(types[name])
        items = value if isinstance(value, list) and is_list else [value]
        if any(isinstance(item, (dict, list)) or isinstance(item, bool) != is_switch for item in items):
            kind = "true or false" if is_switch else "a list of values" if is_list else "a value"
            raise DataError(f"{source}: {name} must be {kind}, got {value!r}.")
        # `--name=value` keeps a value that begins with a dash; only a list needs words of their own.
        words += [f"--{name}", *map(str, value)] if isinstance(value, list) else [f"--{name}={value}"]
    try:
        parsed = _FileParser(tuple(groups)).parse_args_into_dataclasses(words)
    except (DataError, ValueError) as error:
        raise DataError(f"{source}: {error}") from error
    values = {name: value for group in parsed for name, value in vars(group).items()}
    return {name: values[name] for name, value in content.items() if value is not None}
