"""Published lists of videos: their forms, their classes and their errors."""

import re
from collections import Counter, defaultdict
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ezclip.constants import UNKNOWN_LABEL
from ezclip.data.labels import read_numbered_labels
from ezclip.errors import DataError
from ezclip.utils.files import read_text
from ezclip.utils.messages import get_logger
from processing_ezclip import label_key, label_to_words


logger = get_logger(__name__)

HMDB51_PARTS = {"train": 1, "test": 2}  # clips marked 0 are in neither


class ListEntry(NamedTuple):
    """A line of a list: its place ("line 7"), the path as written, and its class id, -1 without one."""

    place: str
    path: str
    label: int


def read_list(list_file: str | Path, part: str = "test") -> list[ListEntry]:
    """
    Read the entries of a list, in order.

    Args:
        list_file (`str` or `Path`):
            A file with a line for each video, `path num_frames id`, `path id` or `path`. The form of most lines is
            required of all. Or a pattern of the official files of HMDB-51, one for each class:
            `FOLDER/*_test_split1.txt`.
        part (`str`, *optional*, defaults to `"test"`):
            The clips to take from the files of HMDB-51, `"train"` or `"test"`. Each file has both.

    Raises:
        [`DataError`]: if the file cannot be read or is empty, or a line has another form.
    """
    if "*" in Path(list_file).name:
        return _read_hmdb51_files(Path(list_file), HMDB51_PARTS[part])
    lines = _lines(list_file)
    if not lines:
        raise DataError(f"{list_file} is empty. Give a list with a line for each video.")
    forms = {n: re.compile(r"(.*\S)" + r"\s+(\d+)" * n) for n in (2, 1, 0)}
    votes = Counter(next(n for n, form in forms.items() if form.fullmatch(line)) for _, line in lines)
    numbers = votes.most_common(1)[0][0]
    entries = []
    for line_number, line in lines:
        match = forms[numbers].fullmatch(line)
        if match is None:
            form = "path num_frames id" if numbers == 2 else "path id"
            raise DataError(f"{list_file}, line {line_number}: {line!r} is not `{form}` as most other lines are.")
        label = int(match.group(numbers + 1)) if numbers else UNKNOWN_LABEL
        entries.append(ListEntry(f"line {line_number}", match.group(1), label))
    return entries


def guess_first_id(lists: list[tuple[str | Path, str]], label_list: str | Path) -> int:
    """
    Return the number that the ids of all lists of a run count from, 0 or 1.

    A label list that counts from 0 decides. One that counts from 1, as UCF-101's, may belong to lists that count from
    0: they do if one of them has the id 0. A list with few classes may lack it, so all lists of a run decide together.

    Args:
        lists (`list[tuple[str | Path, str]]`):
            The lists that share the label list, each with the part for [`read_list`].
        label_list (`str` or `Path`):
            The label list.
    """
    first_id = read_numbered_labels(label_list)[1]
    if first_id == 0:
        return 0
    ids = [entry.label for path, part in lists for entry in read_list(path, part) if entry.label != UNKNOWN_LABEL]
    first_id = first_id_of(ids, first_id)
    logger.warning(f"{label_list} counts from 1. The class ids of the {len(lists)} lists count from {first_id}.")
    return first_id


def name_classes(
    entries: list[ListEntry], list_file: str | Path, label_list: str | Path | None, first_id: int | None = None
) -> tuple[list[int], list[str] | None]:
    """
    Return the class index of each entry of a list, from 0, -1 if unknown; and the class names, if there are any.

    With a label list, ids are looked up in it, and entries without ids belong to the class that their folder is named
    after. `first_id` is the number that ids count from; by default the entries decide. Without a label list, folders
    name the classes if each id has its own folder.

    Raises:
        [`DataError`]: if an id is out of range, a folder is no class while others are, or the files of a class are
        named after another.
    """
    has_ids = entries[0].label != UNKNOWN_LABEL
    if label_list is None:
        return _classes_of_folders(entries) if has_ids else ([UNKNOWN_LABEL] * len(entries), None)
    names, labels_first_id = read_numbered_labels(label_list)
    if not has_ids:
        return _labels_of_folders(entries, names, list_file, label_list), names
    if first_id is None:
        first_id = first_id_of([entry.label for entry in entries], labels_first_id)
    labels = [entry.label - first_id for entry in entries]
    for entry, label in zip(entries, labels):
        if not 0 <= label < len(names):
            raise DataError(
                f"{list_file}, {entry.place}: class id {entry.label} of {entry.path!r} is not in {label_list}, which "
                f"has ids {first_id} to {first_id + len(names) - 1}. " + _reason_out_of_range(entries, len(names))
            )
    check_file_names(entries, labels, names, list_file, label_list)
    return labels, names


def first_id_of(ids: list[int], first_id: int) -> int:
    """Return the number that `ids` count from: 0 if they use it, else `first_id` of their label list."""
    return 0 if min(ids, default=0) < first_id else first_id


def check_file_names(
    entries: list[ListEntry], labels: list[int], names: list[str], list_file: str | Path, label_list: str | Path
):
    """
    Raise if the files of a class are named after another class. Only lists that name most files so are checked.

    Raises:
        [`DataError`]: if most videos of a class are named after another class and not after their own.
    """
    named = _named_classes([entry.path for entry in entries], names)
    if 2 * sum(map(bool, named)) <= len(entries):
        return
    contradicted, total = defaultdict(list), Counter(labels)
    for entry, label, found in zip(entries, labels, named):
        if found and label not in found:
            contradicted[label].append((entry, min(found)))
    wrong = {label: videos for label, videos in contradicted.items() if 2 * len(videos) > total[label]}
    if not wrong:
        return
    label, videos = min(wrong.items())
    entry, other = videos[0]
    shifts = {other - c for c, found in wrong.items() for _, other in found}
    reason = (
        f"The list and {label_list} number classes differently, as the two numberings of HMDB-51 do. Give the label "
        "list that belongs to the list, or none, if its folders are named after the classes."
    )
    if len(wrong) > 1 and shifts in ({-1}, {1}):
        reason = f"Do the ids of the list count from {0 if shifts == {1} else 1}, unlike those of {label_list}?"
    others = [repr(names[other]) for other in sorted(wrong)[1:6]]
    raise DataError(
        f"{list_file}: {len(videos)} of the {total[label]} videos of class {names[label]!r} (id {entry.label}) are "
        f"named after another class, the first ({entry.place}, {entry.path!r}) after {names[other]!r}"
        + (f"; likewise {', '.join(others)}{' …' if len(wrong) > 6 else ''}" if others else "")
        + f". {reason}"
    )


def check_no_video_twice(
    entries: list[ListEntry], videos: list[str], labels: list[int], names: list[str], list_file: str | Path
):
    """
    Raise if two entries of a list are the same video.

    Raises:
        [`DataError`]: names both entries, and their classes if those differ.
    """
    seen = {}
    for entry, video, label in zip(entries, videos, labels):
        other, other_label = seen.setdefault(video, (entry, label))
        if other is entry:
            continue
        message = f"{list_file}: {other.place} ({other.path!r}) and {entry.place} ({entry.path!r}) are the same video"
        if other_label != label:
            first, second = (repr(names[i]) for i in (other_label, label))
            raise DataError(f"{message}, of class {first} and of class {second}. Correct one and remove the other.")
        raise DataError(
            f"{message}. Remove one. If they are two videos of the same name, keep them in the folders of "
            "the list below --video_root."
        )


def _lines(path: str | Path) -> list[tuple[int, str]]:
    """Return the lines that are not blank, with their numbers."""
    return [(n, line.strip()) for n, line in enumerate(read_text(path).split("\n"), start=1) if line.strip()]


def _read_hmdb51_files(pattern: Path, wanted: int) -> list[ListEntry]:
    """Read the official files, whose lines are `clip 0|1|2`, as paths `CLASS/clip`. `*` stands for the class."""
    before, _, after = pattern.name.partition("*")
    files = sorted(path for path in pattern.parent.glob(pattern.name) if path.is_file())
    entries = []
    for file in files:
        folder = file.name[len(before) : len(file.name) - len(after)]
        for number, line in _lines(file):
            match = re.fullmatch(r"(.*\S)\s+([012])", line)
            if match is None:
                raise DataError(f"{file}, line {number}: {line!r} is not `clip 0`, `clip 1` or `clip 2`.")
            if int(match.group(2)) == wanted:
                entries.append(ListEntry(f"{file.name}, line {number}", f"{folder}/{match.group(1)}", UNKNOWN_LABEL))
    if not entries:
        raise DataError(f"{pattern} matches {len(files)} files, and none has a clip marked {wanted}. Correct it.")
    return entries


def _parts(path: str) -> tuple[str, ...]:
    return PurePosixPath(path.replace("\\", "/")).parts


def _folder(path: str) -> str:
    return (_parts(path)[-2:-1] or ("",))[0]


def _classes_of_folders(entries: list[ListEntry]) -> tuple[list[int], list[str] | None]:
    """Return folders as class names, ordered by id, if there are several and each id has its own folder."""
    pairs = sorted({(entry.label, _folder(entry.path)) for entry in entries})
    ids, folders = [label for label, _ in pairs], [folder for _, folder in pairs]
    if len(pairs) < 2 or not len(set(ids)) == len(set(folders)) == len(pairs):
        return [entry.label for entry in entries], None
    index = {label: i for i, label in enumerate(ids)}
    return [index[entry.label] for entry in entries], folders


def _labels_of_folders(
    entries: list[ListEntry], names: list[str], list_file: str | Path, label_list: str | Path
) -> list[int]:
    """Return the class that the folder of each entry is named after; unknown for all if no folder is a class."""
    ids = {label_key(name): i for i, name in enumerate(names)}
    labels = [ids.get(label_key(_folder(entry.path)), UNKNOWN_LABEL) for entry in entries]
    if min(labels) == UNKNOWN_LABEL < max(labels):
        entry = entries[labels.index(UNKNOWN_LABEL)]
        raise DataError(
            f"{list_file}, {entry.place}: folder {_folder(entry.path)!r} of {entry.path!r} is not a class of "
            f"{label_list}, as other folders are. Add it there or rename the folder."
        )
    return labels


def _reason_out_of_range(entries: list[ListEntry], number: int) -> str:
    ids = {entry.label for entry in entries}
    if min(ids) > 0 and max(ids) == number:
        return "Do the ids of the list count from 1? The label list counts from 0."
    return "Is it the label list of this dataset?"


def _named_classes(paths: list[str], names: list[str]) -> list[set[int]]:
    """
    Return the classes that each path names, below the folder that all paths share.

    A class is named by whole words that are its name without case, spaces and punctuation:
    "v_HandStandPushups_g01_c01" names "HandstandPushups". Of nested names the longest counts: "…_kick_ball_f_cm" names
    "kick ball", not "kick".
    """
    ids = {label_key(name): i for i, name in enumerate(names)}
    longest = max(map(len, ids))
    parts = [_parts(path) for path in paths]
    # The root that all paths share names no class.
    levels = list(zip(*(part[:-1] for part in parts)))
    shared = next((depth for depth, folders in enumerate(levels) if len(set(folders)) > 1), len(levels))
    named = []
    for part in parts:
        words = re.findall(r"\d+|[^\W\d_]+", label_to_words("/".join(part[shared:])))
        words = [word.lower() for word in words]
        found, covered = set(), 0
        for start in range(len(words)):
            run, best = "", None
            for end in range(start, len(words)):
                run += words[end]
                if len(run) > longest:
                    break
                if run in ids:
                    best = (end + 1, ids[run])
            if best and best[0] > covered:
                covered = best[0]
                found.add(best[1])
        named.append(found)
    return named
