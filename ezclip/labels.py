"""Class names and class descriptions from the files in which they are published."""

import csv
import io
import json
from collections import Counter
from pathlib import Path

from .errors import DataError
from .processing_ezclip import label_key


def read_label_list(path: str | Path) -> list[str]:
    """
    Class names from the published CSV files: a header `id,name` or none, ids 0 to N - 1.

    Raises:
        [`DataError`]: if ids have gaps, or ids or names repeat.
    """
    rows = _read_csv(path)
    if rows and [cell.strip().lower() for cell in rows[0]] == ["id", "name"]:
        rows = rows[1:]
    names = {}
    for number, row in enumerate(rows, start=1):
        if len(row) != 2 or not row[0].strip().isdigit():
            raise DataError(f"{path}: entry {number} is {','.join(row)!r}; each must be `id,name`.")
        if int(row[0]) in names:
            raise DataError(f"{path}: id {row[0]} is there twice ({names[int(row[0])]!r} and {row[1].strip()!r}).")
        names[int(row[0])] = row[1].strip()
    if sorted(names) != list(range(len(names))) or not names:
        raise DataError(
            f"{path}: ids must be 0 to N - 1 without gaps; got {sorted(names)[:5]} … for {len(names)} names."
        )
    _check_names(names.values(), path)
    return [names[i] for i in range(len(names))]


def read_class_descriptions(paths: list[str | Path]) -> dict[str, str]:
    """
    A written description for each class, from EZ-CLIP's CSV files (`SNo,Class Name,GPT3 discription`) or JSON objects
    from class name to text. Later files win.

    Raises:
        [`DataError`]: if a file has another form.
    """
    descriptions = {}
    for path in paths:
        if Path(path).suffix.lower() == ".json":
            try:
                content = json.loads(read_text(path))
            except json.JSONDecodeError as error:
                raise DataError(f"{path} is not JSON ({error}).") from error
            if not isinstance(content, dict) or not all(isinstance(text, str) for text in content.values()):
                raise DataError(f"{path} must hold one JSON object from class name to text.")
        else:
            rows = _read_csv(path)
            if any(len(row) != 3 for row in rows):
                raise DataError(f"{path} must have three columns: number, class name, description.")
            content = {row[1]: row[2] for row in rows[1:]}
        # The published texts begin with two line breaks, and some have more inside.
        descriptions.update({name: " ".join(text.split()) for name, text in content.items()})
    return descriptions


def _check_names(names, source):
    keys = Counter(label_key(name) for name in names)
    repeated = [name for name in names if keys[label_key(name)] > 1]
    if repeated:
        raise DataError(f"{source}: classes of the same name: {repeated[:10]}.")


def _read_csv(path: str | Path) -> list[list[str]]:
    """The rows that are not empty; a field may hold line breaks."""
    try:
        return [row for row in csv.reader(io.StringIO(read_text(path), newline="")) if row]
    except csv.Error as error:
        raise DataError(f"{path} is not a CSV file ({error}).") from error


def read_text(path: str | Path) -> str:
    """
    A text file.

    Raises:
        [`DataError`]: if it cannot be read, or is not UTF-8.
    """
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not a text file in UTF-8 ({error.reason} at byte {error.start}).") from error
