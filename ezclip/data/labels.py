"""Class names and class descriptions from published files."""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from ezclip.errors import DataError
from ezclip.utils.files import read_text
from ezclip.utils.messages import get_logger
from ezclip.utils.tables import from_csv_cell
from processing_ezclip import Description, as_steps, is_description, label_key, label_to_words


logger = get_logger(__name__)


def read_label_list(path: str | Path) -> list[str]:
    """
    Read class names from a published file.

    Its form is CSV with ids 0 to N - 1, with or without the header `id,name`; or lines `1 Name` with ids 1 to N, as in
    UCF-101's classInd.txt.

    Raises:
        [`DataError`]: if ids have gaps, or ids or names repeat.
    """
    return read_numbered_labels(path)[0]


def read_numbered_labels(path: str | Path) -> tuple[list[str], int]:
    """Read class names as [`read_label_list`] does, and return them with the id of the first."""
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
            first = names[int(row[0])]
            raise DataError(f"{path}: id {row[0]} is there twice ({first!r} and {row[1].strip()!r}). Remove one.")
        names[int(row[0])] = from_csv_cell(row[1].strip())
    expected = range(first_id, first_id + len(names))
    if sorted(names) != list(expected) or not names:
        missing = [i for i in expected if i not in names]
        raise DataError(
            f"{path}: ids must be {first_id} to N{'' if first_id else ' - 1'} without gaps; got {sorted(names)[:5]} … "
            f"for {len(names)} names" + (f", without {missing[:10]}." if missing else ".")
        )
    check_distinct(names.values(), path)
    return [names[i] for i in expected], first_id


def read_labels(path: str | Path) -> list[str]:
    """
    Read labels from a text file with one a line, or from a published label list, see [`read_label_list`].

    A file is a label list if each line begins with a number, or the first is `id,name`.

    Raises:
        [`DataError`]: if there is no label, or the file cannot be read.
    """
    lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if not lines:
        raise DataError(f"{path} holds no label. Write one a line.")
    numbered = [re.match(r"\d+\s*[,\s]\s*\S", line) for line in lines]
    if re.fullmatch(r"id\s*,\s*name", lines[0], re.IGNORECASE) or all(numbered):
        return read_label_list(path)
    return lines


def split_labels(labels: list[str]) -> list[str]:
    """
    Split class names as typed on a command line.

    A single argument is split at commas, as in the pipeline. Several arguments are one name each.

    Raises:
        [`DataError`]: if there is no name, or an argument is not one.
    """
    if len(labels) == 1:
        labels = [label.strip() for label in labels[0].split(",") if label.strip()]
    if not labels:
        raise DataError("there is no label. Give at least one.")
    check_have_words(labels)
    if with_comma := [label for label in labels if label.strip().startswith(",") or label.strip().endswith(",")]:
        raise DataError(
            f"{with_comma[0]!r} begins or ends with a comma. Give labels as separate arguments, quoted if they have "
            "several words; or as one argument, separated by commas."
        )
    return labels


def merge_spellings(counts: Counter, source: str | Path) -> dict[str, str]:
    """
    Map each class name to the most frequent spelling of its class, and warn about names that are merged.

    Args:
        counts (`Counter`):
            Number of videos by name.
        source (`str` or `Path`):
            The source of the names, for the message.
    """
    spellings = {}
    for name, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        spellings.setdefault(label_key(name), []).append(name)
    if merged := [names for names in spellings.values() if len(names) > 1]:
        listed = "; ".join(" = ".join(map(repr, names)) for names in merged[:10])
        logger.warning(f"{source}: {len(merged)} classes are spelled in several ways and merged: {listed}.")
    return {name: names[0] for names in spellings.values() for name in names}


def check_distinct(names: Iterable[str], source: str | Path):
    """
    Raise if two names are one class: only case, blanks, underscores or punctuation differ.

    Raises:
        [`DataError`]: names the spellings.
    """
    names = list(names)
    keys = Counter(map(label_key, names))
    if repeated := [name for name in names if keys[label_key(name)] > 1]:
        raise DataError(f"{source}: classes of the same name: {repeated[:10]}. Rename or remove one of each.")


def check_have_words(names: Iterable[str]):
    """
    Raise if a class name leaves no words for a sentence.

    Raises:
        [`DataError`]: if a name has no letters or digits, or is not Unicode text, as names of folders may be.
    """
    for name in names:
        if any("\ud800" <= character <= "\udfff" for character in name):
            raise DataError(f"A class is called {name!r}, which is not UTF-8. Rename it.")
        if not label_to_words(name):
            raise DataError(f"A class is called {name!r}, which leaves no words for a sentence. Rename it.")


def read_class_descriptions(paths: list[str | Path]) -> dict[str, list[str] | dict[str, list]]:
    """
    Read written texts for each class.

    A file is EZ-CLIP's CSV (`SNo,Class Name,GPT3 discription`), or a JSON object from class name to a text or a list
    of texts, as TEAR has them, or to steps in order, `{"steps": [step, …]}`, where a step is a text or a list of
    wordings. A class gets the texts of all files, in their order; case, spaces and punctuation of its name do not
    matter. TEAR's three kinds together are its `all`.

    Raises:
        [`DataError`]: if a file has another form, a class without text, two different entries for one class, or two
        files describe a class and one of them by steps.
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
            texts = _without_blanks(texts)
            if not is_description(texts):
                raise DataError(f"{path}: {name!r} has an empty text, or none. Write one or remove the class.")
            other, first = found.setdefault(label_key(name), (name, texts))
            if first != texts:
                raise DataError(f"{path}: {other!r} and {name!r} are one class with different texts. Remove one.")
        for key, (name, texts) in found.items():
            if key in by_key and (isinstance(texts, dict) or isinstance(by_key[key][1], dict)):
                raise DataError(
                    f"{path}: {name!r} is described in another file too, and one of them has steps. Give only one of "
                    "the files."
                )
            by_key[key] = (name, texts) if key not in by_key else (by_key[key][0], by_key[key][1] + texts)
    return dict(by_key.values())


def _without_blanks(texts: Description) -> list[str] | dict[str, list]:
    """Return texts or steps with single blanks: the published texts begin with two line breaks, and some have more."""
    if isinstance(texts, dict):
        return {"steps": [[" ".join(text.split()) for text in step] for step in as_steps(texts)]}
    return [" ".join(text.split()) for text in texts]


def _read_json_descriptions(path: str | Path, text: str) -> list[tuple[str, Description]]:
    try:
        # Objects become tuples of pairs, so that repeated keys are not lost.
        content = json.loads(text, object_pairs_hook=tuple)
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not JSON ({error}).") from error
    if not isinstance(content, tuple):
        raise DataError(f"{path} must hold one JSON object from class name to text, or to a list of texts.")
    entries = []
    for name, texts in content:
        texts = [texts] if isinstance(texts, str) else texts
        if isinstance(texts, tuple):
            steps = texts[0][1] if len(texts) == 1 and texts[0][0] == "steps" else None
            if not isinstance(steps, list) or not all(_is_list_of_texts(step) for step in steps):
                raise DataError(
                    f'{path}: {name!r} must be {{"steps": [...]}} with a text, or a list of wordings, for each step.'
                )
            texts = {"steps": steps}
        elif not isinstance(texts, list) or not _is_list_of_texts(texts):
            raise DataError(f"{path}: {name!r} must have a text, a list of texts, or steps.")
        entries.append((name, texts))
    return entries


def _is_list_of_texts(value) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(text, str) for text in value))


def _read_csv_descriptions(path: str | Path, text: str) -> list[tuple[str, Description]]:
    rows = _read_csv(path, text)
    if any(len(row) != 3 for row in rows):
        raise DataError(f"{path} must have three columns: number, class name, description.")
    has_header = bool(rows) and not rows[0][0].strip().isdigit()
    return [(name, [description]) for _, name, description in rows[has_header:]]


def _read_csv(path: str | Path, text: str) -> list[list[str]]:
    """Return the rows that are not empty. A field may hold line breaks."""
    try:
        return [row for row in csv.reader(io.StringIO(text, newline="")) if row]
    except csv.Error as error:
        raise DataError(f"{path} is not a CSV file ({error}).") from error
