"""Class names and class descriptions from the files in which they are published."""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from ezclip.errors import DataError
from ezclip.utils.files import read_text
from processing_ezclip import label_key, label_to_words


def read_label_list(path: str | Path) -> list[str]:
    """
    Class names from the published files: CSV with the header `id,name` or none and ids 0 to N - 1, or `1 Name` a line
    with ids 1 to N, as in UCF-101's classInd.txt.

    Raises:
        [`DataError`]: if ids have gaps, or ids or names repeat.
    """
    return read_numbered_labels(path)[0]


def read_numbered_labels(path: str | Path) -> tuple[list[str], int]:
    """Class names, see [`read_label_list`], and the id of the first of them."""
    text = read_text(path)
    rows, first_id = _read_csv(path, text), 0
    if rows and [cell.strip().lower() for cell in rows[0]] == ["id", "name"]:
        rows = rows[1:]
    elif rows and re.match(r"\s*\d+\s+[^\s,]", rows[0][0]):
        rows, first_id = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()], 1
    form = "`id name`" if first_id else "`id,name`"
    names = {}
    for number, row in enumerate(rows, start=1):
        if len(row) != 2 or not row[0].strip().isdigit():
            raise DataError(f"{path}: entry {number} is {','.join(row)!r}; each must be {form}.")
        if int(row[0]) in names:
            raise DataError(f"{path}: id {row[0]} is there twice ({names[int(row[0])]!r} and {row[1].strip()!r}).")
        names[int(row[0])] = row[1].strip()
    expected = range(first_id, first_id + len(names))
    if sorted(names) != list(expected) or not names:
        missing = [i for i in expected if i not in names]
        raise DataError(
            f"{path}: ids must be {first_id} to N{'' if first_id else ' - 1'} without gaps; got {sorted(names)[:5]} … "
            f"for {len(names)} names" + (f", without {missing[:10]}." if missing else ".")
        )
    _check_names(names.values(), path)
    return [names[i] for i in expected], first_id


def split_labels(labels: list[str]) -> list[str]:
    """
    Class names as they are typed: one text holds several between commas, as in the pipeline; of several each is one.

    Raises:
        [`DataError`]: if there is none, or one that is no name.
    """
    if len(labels) == 1:
        labels = [label.strip() for label in labels[0].split(",") if label.strip()]
    if not labels:
        raise DataError("there is no label. Give at least one name.")
    check_have_words(labels)
    if lopsided := [label for label in labels if label.strip().startswith(",") or label.strip().endswith(",")]:
        raise DataError(
            f"{lopsided[0]!r} begins or ends with a comma. Give labels as separate arguments, those of several words "
            "in quotes; or all of them in one, between commas."
        )
    return labels


def check_have_words(names: Iterable[str]):
    """
    That something is left of each class name in a sentence.

    Raises:
        [`DataError`]: if nothing is.
    """
    for name in names:
        if not label_to_words(name):
            raise DataError(f"A class is called {name!r}, which leaves no words for a sentence. Name it.")


def read_class_descriptions(paths: list[str | Path]) -> dict[str, list[str]]:
    """
    Written texts for each class, from EZ-CLIP's CSV files (`SNo,Class Name,GPT3 discription`) or JSON objects from
    class name to text, or to a list of texts, as TEAR has them. A class that several files have, whatever the case,
    blanks and punctuation of its name, has the texts of all of them: TEAR's three kinds together are its `all`.

    Raises:
        [`DataError`]: if a file has another form, a class without text, or two different entries for one class.
    """
    by_key = {}
    for path in paths:
        text = read_text(path)
        is_json = Path(path).suffix.lower() == ".json" or text.lstrip().startswith("{")
        entries = _read_json_descriptions(path, text) if is_json else _read_csv_descriptions(path, text)
        if not entries:
            raise DataError(f"{path} describes no class.")
        found = {}
        for name, texts in entries:
            # The published texts begin with two line breaks, and some have more inside.
            texts = [" ".join(text.split()) for text in texts]
            if not all(texts) or not texts:
                raise DataError(f"{path}: {name!r} has an empty text, or none. Write one, or remove the class.")
            other, first = found.setdefault(label_key(name), (name, texts))
            if first != texts:
                raise DataError(f"{path}: {other!r} and {name!r} are one class, of different texts. Remove one.")
        for key, (name, texts) in found.items():
            by_key.setdefault(key, (name, []))[1].extend(texts)
    return dict(by_key.values())


def _read_json_descriptions(path: str | Path, text: str) -> list[tuple[str, list[str]]]:
    try:
        # Objects as tuples of pairs, in which a key that is there twice is seen
        content = json.loads(text, object_pairs_hook=tuple)
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not JSON ({error}).") from error
    if not isinstance(content, tuple):
        raise DataError(f"{path} must hold one JSON object from class name to text, or to a list of texts.")
    pairs = [(name, [texts] if isinstance(texts, str) else texts) for name, texts in content]
    for name, texts in pairs:
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise DataError(f"{path}: {name!r} must have a text or a list of texts.")
    return pairs


def _read_csv_descriptions(path: str | Path, text: str) -> list[tuple[str, list[str]]]:
    rows = _read_csv(path, text)
    if any(len(row) != 3 for row in rows):
        raise DataError(f"{path} must have three columns: number, class name, description.")
    has_header = bool(rows) and not rows[0][0].strip().isdigit()
    return [(name, [description]) for _, name, description in rows[has_header:]]


def _check_names(names, source):
    keys = Counter(label_key(name) for name in names)
    repeated = [name for name in names if keys[label_key(name)] > 1]
    if repeated:
        raise DataError(f"{source}: classes of the same name: {repeated[:10]}.")


def _read_csv(path: str | Path, text: str) -> list[list[str]]:
    """The rows that are not empty; a field may hold line breaks."""
    try:
        return [row for row in csv.reader(io.StringIO(text, newline="")) if row]
    except csv.Error as error:
        raise DataError(f"{path} is not a CSV file ({error}).") from error
