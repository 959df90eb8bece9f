"""Lists of videos as they are published: the forms they have, the classes they mean, and what can be wrong in them."""

import re
from collections import Counter, defaultdict
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ezclip.constants import UNKNOWN_LABEL
from ezclip.data.labels import read_numbered_labels
from ezclip.errors import DataError
from ezclip.utils.files import read_text
from processing_ezclip import label_key, label_to_words


HMDB51_PARTS = {"train": 1, "test": 2}  # 0 are the clips of neither


class ListEntry(NamedTuple):
    """A line of a list: where it stands ("line 7"), the path as written, and its id, -1 where there is none."""

    place: str
    path: str
    label: int


def read_list(list_file: str | Path, part: str = "test") -> list[ListEntry]:
    """
    The entries of a list, in its order.

    Args:
        list_file (`str` or `Path`):
            A file with a line per video, `path num_frames id`, `path id` or `path`: how many numbers end most of the
            lines, so many must end each. Or the official files of HMDB-51, one for each class, as a pattern:
            `FOLDER/*_test_split1.txt`.
        part (`str`, *optional*, defaults to `"test"`):
            Which clips of the files of HMDB-51, `"train"` or `"test"`: each file has both.

    Raises:
        [`DataError`]: if there is no such file, it is empty, or a line has another form.
    """
    if "*" in Path(list_file).name:
        return _read_hmdb51_files(Path(list_file), HMDB51_PARTS[part])
    lines = _lines(list_file)
    if not lines:
        raise DataError(f"{list_file} is empty.")
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


def name_classes(
    entries: list[ListEntry], list_file: str | Path, label_list: str | Path | None
) -> tuple[list[int], list[str] | None]:
    """
    What the entries of a list are of.

    With a label list its ids are looked up; entries without ids are of the class whose name their folder has. Without
    a label list the folders name the classes if each id has a folder of its own.

    Args:
        entries (`list[ListEntry]`):
            The entries, from [`read_list`].
        list_file (`str` or `Path`):
            Their list, for messages.
        label_list (`str` or `Path`, *optional*):
            Class names, see [`read_label_list`].

    Returns:
        `tuple[list[int], list[str] | None]`: the class of each entry, counted from 0, -1 where it is not known; and
        the names of the classes, or `None`.

    Raises:
        [`DataError`]: if an id is out of range, a folder is no class while others are, or the files of a class are
        named after another.
    """
    has_ids = entries[0].label != UNKNOWN_LABEL
    if label_list is None:
        return _classes_of_folders(entries) if has_ids else ([UNKNOWN_LABEL] * len(entries), None)
    names, first_id = read_numbered_labels(label_list)
    if not has_ids:
        return _labels_of_folders(entries, names, list_file, label_list), names
    first_id = first_id_of([entry.label for entry in entries], first_id)
    labels = [entry.label - first_id for entry in entries]
    for entry, label in zip(entries, labels):
        if label >= len(names):
            raise DataError(
                f"{list_file}, {entry.place}: class id {entry.label} of {entry.path!r} is not in {label_list}, which "
                f"has ids {first_id} to {first_id + len(names) - 1}. " + _reason_out_of_range(entries, len(names))
            )
    check_file_names(entries, labels, names, list_file, label_list)
    return labels, names


def first_id_of(ids: list[int], first_id: int) -> int:
    """What ids count from: as their label list does (`first_id`), but one that uses 0 counts from 0."""
    return 0 if min(ids, default=0) < first_id else first_id


def check_file_names(
    entries: list[ListEntry], labels: list[int], names: list[str], list_file: str | Path, label_list: str | Path
):
    """
    That classes are those that the files are named after, in lists where most files are named after a class.

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
        f"The list and {label_list} number classes differently, as the two numberings of HMDB-51 do. Use the label "
        "list that belongs to the list; without one, folders that are classes name them."
    )
    if len(wrong) > 1 and shifts in ({-1}, {1}):
        reason = f"Do the ids of the list count from {0 if shifts == {1} else 1}, unlike those of {label_list}?"
    others = [repr(names[other]) for other in sorted(wrong)[1:6]]
    raise DataError(
        f"{list_file}: {len(videos)} of the {total[label]} videos of class {names[label]!r} (id {entry.label}) are "
        f"named after another class, the first ({entry.place}, {entry.path!r}) after {names[other]!r}"
        + (f"; so it is with {', '.join(others)}{' …' if len(wrong) > 6 else ''}" if others else "")
        + f". {reason}"
    )


def check_no_video_twice(
    entries: list[ListEntry], videos: list[str], labels: list[int], names: list[str], list_file: str | Path
):
    """
    That no video is there twice.

    Raises:
        [`DataError`]: if two entries mean one of `videos`; it names both, and their classes where those differ.
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
            f"{message}. Remove one; if they are two videos of the same name, --video_root must hold them in the "
            "folders that the list names."
        )


def _lines(path: str | Path) -> list[tuple[int, str]]:
    """The lines that are not blank, with their numbers."""
    return [(n, line.strip()) for n, line in enumerate(read_text(path).split("\n"), start=1) if line.strip()]


def _read_hmdb51_files(pattern: Path, wanted: int) -> list[ListEntry]:
    """Clips of the official files, `clip 0|1|2` a line, as `CLASS/clip`; what `*` stands for is the class."""
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
        raise DataError(f"{pattern}: {len(files)} files fit, and none has a clip marked {wanted}.")
    return entries


def _parts(path: str) -> tuple[str, ...]:
    return PurePosixPath(path.replace("\\", "/")).parts


def _folder(path: str) -> str:
    return (_parts(path)[-2:-1] or ("",))[0]


def _classes_of_folders(entries: list[ListEntry]) -> tuple[list[int], list[str] | None]:
    """Folders as class names, in the order of their ids, if there are several and each id has its own."""
    pairs = sorted({(entry.label, _folder(entry.path)) for entry in entries})
    ids, folders = [label for label, _ in pairs], [folder for _, folder in pairs]
    if len(pairs) < 2 or not len(set(ids)) == len(set(folders)) == len(pairs):
        return [entry.label for entry in entries], None
    index = {label: i for i, label in enumerate(ids)}
    return [index[entry.label] for entry in entries], folders


def _labels_of_folders(
    entries: list[ListEntry], names: list[str], list_file: str | Path, label_list: str | Path
) -> list[int]:
    """The class that the folder of each entry has the name of; unknown for all if no folder is a class."""
    ids = {label_key(name): i for i, name in enumerate(names)}
    labels = [ids.get(label_key(_folder(entry.path)), UNKNOWN_LABEL) for entry in entries]
    if min(labels) == UNKNOWN_LABEL < max(labels):
        entry = entries[labels.index(UNKNOWN_LABEL)]
        raise DataError(
            f"{list_file}, {entry.place}: folder {_folder(entry.path)!r} of {entry.path!r} is not a class of "
            f"{label_list}, as other folders are."
        )
    return labels


def _reason_out_of_range(entries: list[ListEntry], number: int) -> str:
    ids = {entry.label for entry in entries}
    if min(ids) > 0 and max(ids) == number:
        return "Do the ids of the list count from 1? Those of the label list count from 0."
    return "Is it the label list of this data set?"


def _named_classes(paths: list[str], names: list[str]) -> list[set[int]]:
    """
    The classes that each path names, below the folder that all share: runs of whole words that are a class name when
    case, blanks and punctuation are not looked at ("v_HandStandPushups_g01_c01" names "HandstandPushups"). Of names
    within each other the longest counts ("…_kick_ball_f_cm" names "kick ball", not "kick").
    """
    ids = {label_key(name): i for i, name in enumerate(names)}
    longest = max(map(len, ids))
    parts = [_parts(path) for path in paths]
    # Of the list's own root only what differs says something.
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
