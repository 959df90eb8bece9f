"""YAML 1.2 files of named options."""

from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from ezclip.errors import DataError
from ezclip.utils.files import read_text


def read_yaml(path: str | Path):
    """
    Load a YAML 1.2 file. `yes`, `no`, `on` and `off` are strings; only `true` and `false` are booleans.

    Raises:
        [`DataError`]: if it cannot be read, or a mapping has a key twice, or a key that is not a string.
    """
    text = read_text(path)
    try:
        content = YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError) as error:  # ValueError: an impossible date
        mark = getattr(error, "problem_mark", None)
        reason = error if mark is None else f"{error.problem}, line {mark.line + 1}"
        raise DataError(f"{path} is not valid YAML: {reason}") from error
    _check_keys(content, path)
    return content


def _check_keys(content, path: str | Path):
    waiting, seen = [content], set()
    while waiting:
        node = waiting.pop()
        if not isinstance(node, (dict, list)) or id(node) in seen:  # an alias may even point to its own parent
            continue
        seen.add(id(node))
        if isinstance(node, dict):
            for key in node:
                if not isinstance(key, str):
                    raise DataError(f"{path}: the key {key!r} must be a string, got {type(key).__name__}. Quote it.")
            node = list(node.values())
        waiting += node
