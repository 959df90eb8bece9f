"""Parts of a split: shots, halves and selections of classes, drawn alike on every machine; and lists to keep them."""

import csv
import hashlib
import os
import random
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import datasets

from ezclip.constants import UNKNOWN_LABEL
from ezclip.data.labels import read_label_list
from ezclip.data.sources import VideoSplit
from ezclip.errors import DataError
from processing_ezclip import label_key
from video_ezclip import is_url


def draw_shots(split: VideoSplit, num_shots: int, seed: int) -> VideoSplit:
    """
    A few videos of each class, drawn at random.

    The same split, in the same order, and the same seed give the same videos on every machine, and fewer shots are
    some of those of more.

    Args:
        split ([`VideoSplit`]):
            What to draw from.
        num_shots (`int`):
            Videos of each class, K.
        seed (`int`):
            Seed of the draw.

    Raises:
        [`DataError`]: if a class has fewer videos, or there are videos without a class.
    """
    if num_shots < 1:
        raise DataError(f"The number of shots must be at least 1, got {num_shots}.")
    labels = _labels(split)
    counts = Counter(labels)
    short = [f"{name!r} ({counts[i]})" for i, name in enumerate(split.class_names) if counts[i] < num_shots]
    if short:
        raise DataError(
            f"{num_shots} shots need as many videos of each class; {len(short)} of {len(split.class_names)} classes "
            f"have fewer: {', '.join(short[:10])}."
        )
    # Of Python's generators only `random()` gives the same numbers in all its versions.
    draw = random.Random(seed).random
    rows = {label: [] for label in range(len(split.class_names))}
    for row, label in enumerate(labels):
        rows[label].append((draw(), row))
    drawn = sorted(row for candidates in rows.values() for _, row in sorted(candidates)[:num_shots])
    return VideoSplit(split.videos.select(drawn), split.class_names)


def count_shots(split: VideoSplit) -> int:
    """
    How many videos each class has, in a split where that is the same number, as in published few-shot lists.

    Raises:
        [`DataError`]: if classes have different numbers of videos.
    """
    counts = Counter(_labels(split))
    counts = {name: counts[i] for i, name in enumerate(split.class_names)}
    num_shots = Counter(counts.values()).most_common(1)[0][0]
    other = [f"{name!r} ({count})" for name, count in counts.items() if count != num_shots]
    if other:
        raise DataError(
            f"A list of shots has as many videos of each class; most classes have {num_shots}, others not: "
            f"{', '.join(other[:10])}."
        )
    return num_shots


def halve_classes(split: VideoSplit) -> tuple[list[str], list[str]]:
    """
    Halve the classes by how many videos they have. Of an odd number the base half has one more; of classes with
    equally many videos those with higher ids count as the more frequent. On the first official training list of
    UCF-101 this gives the published halves, in their order.

    Args:
        split ([`VideoSplit`]):
            What is counted.

    Returns:
        `tuple[list[str], list[str]]`: the more frequent half, base, and the rest, novel; each by rising frequency.

    Raises:
        [`DataError`]: if there are fewer than two classes, or videos without a class.
    """
    counts = Counter(_labels(split))
    if len(split.class_names) < 2:
        raise DataError(f"Classes to halve must be at least two; got {split.class_names}.")
    ascending = sorted(range(len(split.class_names)), key=lambda label: counts[label])
    names = [split.class_names[label] for label in ascending]
    return names[len(names) // 2 :], names[: len(names) // 2]


def select_classes(split: VideoSplit, class_names: list[str]) -> VideoSplit:
    """
    The videos of some of the classes, which are numbered in the order given.

    Args:
        split ([`VideoSplit`]):
            What to select from.
        class_names (`list[str]`):
            Names of the classes; case, blanks, underscores and punctuation are not looked at.

    Raises:
        [`DataError`]: if names are not classes of the split, or repeat, or none of their videos is there.
    """
    labels = _labels(split)
    ids = {label_key(name): i for i, name in enumerate(split.class_names)}
    keys = [label_key(name) for name in class_names]
    missing = [name for name, key in zip(class_names, keys) if key not in ids]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(class_names)} classes to select are not among the {len(ids)} of the videos: "
            f"{missing[:10]}."
        )
    repeated = [name for name, key in zip(class_names, keys) if keys.count(key) > 1]
    if repeated:
        raise DataError(f"Classes to select must differ; got {repeated[:10]}.")
    renumbered = {ids[key]: new for new, key in enumerate(keys)}
    rows = [row for row, label in enumerate(labels) if label in renumbered]
    if not rows:
        raise DataError(
            f"There is no video of the {len(class_names)} classes to select, {class_names[0]!r} and so on."
        )
    # Numbered before they are selected: a column added to selected rows copies videos that are held as bytes.
    videos = split.videos.remove_columns("label")
    videos = videos.add_column("label", [renumbered.get(label, UNKNOWN_LABEL) for label in labels])
    return VideoSplit(videos.select(rows), list(class_names))


def draw_classes(class_names: list[str], number: int, seed: int) -> list[str]:
    """
    Some of the classes, drawn at random, in their order; the same on every machine.

    Raises:
        [`DataError`]: if there are fewer.
    """
    if not 1 <= number <= len(class_names):
        raise DataError(f"From {len(class_names)} classes 1 to {len(class_names)} can be drawn, got {number}.")
    draw = random.Random(seed).random
    drawn = sorted((draw(), i) for i in range(len(class_names)))[:number]
    return [class_names[i] for _, i in sorted(drawn, key=lambda pair: pair[1])]


def save_split(split: VideoSplit, list_path: str | Path, label_path: str | Path):
    """
    Write a split as a list, `path num_frames id` a line, and its label list, which [`load_list`] reads back as the
    same videos and classes. Paths are absolute; numbers of frames, which nothing here reads, are 0.

    Args:
        split ([`VideoSplit`]):
            Videos by path, each with a class.
        list_path (`str` or `Path`), label_path (`str` or `Path`):
            The files to write.

    Raises:
        [`DataError`]: if videos are held as bytes or have no class, or a path or name cannot stand in a line.
    """
    labels, paths = _labels(split), []
    for row, video in enumerate(split.videos.select_columns(["video"])):
        path = video["video"]
        if isinstance(path, dict):
            if path.get("bytes") is not None or path.get("path") is None:
                raise DataError(
                    f"Video {row} ({split.videos[row]['name']}) is held as bytes, and a list names files. Keep the "
                    "data set with `split.videos.save_to_disk(folder)`."
                )
            path = path["path"]
        path = path if is_url(path) else os.path.abspath(path)
        if path != path.strip() or "\n" in path:
            raise DataError(f"{path!r} cannot stand in a list: it ends in a blank or has a line break. Rename it.")
        paths.append(path)
    with open(label_path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("id", "name"), *enumerate(split.class_names)])
    if read_label_list(label_path) != split.class_names:
        raise DataError(f"{label_path}: names of classes must not begin or end in a blank; got {split.class_names}.")
    lines = "".join(f"{path} 0 {label}\n" for path, label in zip(paths, labels))
    Path(list_path).write_text(lines, encoding="utf-8", newline="\n")


def check_disjoint(base: Iterable[str], novel: Iterable[str]):
    """
    That no class is both base and novel, by names in which case, blanks, underscores and punctuation do not count.

    Raises:
        [`DataError`]: if there is one; it names them.
    """
    keys = {label_key(name) for name in base}
    both = [name for name in novel if label_key(name) in keys]
    if both:
        raise DataError(
            f"{len(both)} classes are both base and novel, so that novel ones are seen in training: {both[:10]}. Give "
            "each half its own label list."
        )


def find_overlap(train: VideoSplit, test: VideoSplit) -> list[str]:
    """
    Names of the videos of `test` that are in `train` too: by path, and where they are held as bytes by name and
    content. Those held as bytes without a name are not compared.
    """
    places = [_places(split) for split in (train, test)]
    shared = set(places[0]) & set(places[1]) - {None}
    seen = {(place, _digest(train, row)) for row, place in enumerate(places[0]) if place in shared}
    names = test.videos["name"][:]
    return [
        names[row] for row, place in enumerate(places[1]) if place in shared and (place, _digest(test, row)) in seen
    ]


def _labels(split: VideoSplit) -> list[int]:
    """The labels, each of which is a class."""
    labels = split.videos["label"][:]
    if split.class_names is None or min(labels, default=0) < 0:
        raise DataError("There are videos without a class, or ids without names. Give their label list.")
    return labels


def _has_paths(split: VideoSplit) -> bool:
    """Whether its videos are paths, and not `{"path", "bytes"}`."""
    return isinstance(split.videos.features["video"], datasets.Value)


def _places(split: VideoSplit) -> list[str | None]:
    """Absolute paths, or the names of videos held as bytes; `None` for those that are only numbered."""
    if _has_paths(split):
        return [path if is_url(path) else os.path.abspath(path) for path in split.videos["video"][:]]
    return [None if re.fullmatch(r"row \d+", name) else name for name in split.videos["name"][:]]


def _digest(split: VideoSplit, row: int) -> str | None:
    """What tells the content of a video that is held as bytes."""
    content = None if _has_paths(split) else split.videos[row]["video"].get("bytes")
    return hashlib.sha256(content).hexdigest() if content is not None else None
