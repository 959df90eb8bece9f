"""Shots, halves and selections of classes, drawn the same on every machine, and lists that store them."""

import csv
import hashlib
import os
import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pyarrow
import pyarrow.compute

from ezclip.constants import UNKNOWN_LABEL
from ezclip.data.labels import read_label_list
from ezclip.data.sources import VideoSplit
from ezclip.errors import DataError
from ezclip.utils.tables import as_csv_cell
from processing_ezclip import label_key
from video_ezclip import is_url


def draw_shots(split: VideoSplit, num_shots: int, seed: int) -> VideoSplit:
    """
    Draw `num_shots` videos of each class at random.

    The same split and seed give the same videos on every machine. Fewer shots are a subset of more.

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
            f"{num_shots} shots need {num_shots} videos of each class; {len(short)} of {len(split.class_names)} "
            f"classes have fewer: {', '.join(short[:10])}. Lower --num_shots, or add videos."
        )
    # Only `random()` gives the same numbers in all versions of Python.
    draw = random.Random(seed).random
    rows = {label: [] for label in range(len(split.class_names))}
    for row, label in enumerate(labels):
        rows[label].append((draw(), row))
    drawn = sorted(row for candidates in rows.values() for _, row in sorted(candidates)[:num_shots])
    source = f"{num_shots} per class, drawn with seed {seed} from {split.source}"
    return VideoSplit(split.videos.select(drawn), split.class_names, source)


def count_shots(split: VideoSplit) -> int:
    """
    Return the number of videos of each class in a few-shot split.

    Raises:
        [`DataError`]: if classes have different numbers of videos.
    """
    counts = Counter(_labels(split))
    counts = {name: counts[i] for i, name in enumerate(split.class_names)}
    num_shots = Counter(counts.values()).most_common(1)[0][0]
    other = [f"{name!r} ({count})" for name, count in counts.items() if count != num_shots]
    if other:
        raise DataError(
            f"A few-shot list must have as many videos of each class as of any other; most have {num_shots}, not "
            f"{', '.join(other[:10])}."
        )
    return num_shots


def halve_classes(split: VideoSplit) -> tuple[list[str], list[str]]:
    """
    Halve the classes by their number of videos.

    With an odd number of classes, the base half has one more. With equally many videos, a higher id counts as more
    frequent. On the first official training list of UCF-101 this gives the published halves, in their order.

    Returns:
        `tuple[list[str], list[str]]`: base, the more frequent half, and novel, the rest; each by rising frequency.

    Raises:
        [`DataError`]: if there are fewer than two classes, or videos without a class.
    """
    counts = Counter(_labels(split))
    if len(split.class_names) < 2:
        raise DataError(f"Classes to halve must be at least two, got {split.class_names}.")
    ascending = sorted(range(len(split.class_names)), key=lambda label: counts[label])
    names = [split.class_names[label] for label in ascending]
    return names[len(names) // 2 :], names[: len(names) // 2]


def select_classes(split: VideoSplit, class_names: list[str]) -> VideoSplit:
    """
    Select the videos of some classes and number the classes in the given order.

    Case, spaces, underscores and punctuation of `class_names` do not matter.

    Raises:
        [`DataError`]: if a name is not a class of the split, or is repeated, or there is no video of the classes.
    """
    labels = _labels(split)
    ids = {label_key(name): i for i, name in enumerate(split.class_names)}
    keys = [label_key(name) for name in class_names]
    missing = [name for name, key in zip(class_names, keys) if key not in ids]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(class_names)} classes to select are not among the {len(ids)} of the split: "
            f"{missing[:10]}."
        )
    repeated = [name for name, key in zip(class_names, keys) if keys.count(key) > 1]
    if repeated:
        raise DataError(f"Classes to select must differ, got {repeated[:10]}.")
    renumbered = {ids[key]: new for new, key in enumerate(keys)}
    rows = [row for row, label in enumerate(labels) if label in renumbered]
    if not rows:
        raise DataError(
            f"There is no video of the {len(class_names)} classes to select, {class_names[0]!r} and so on."
        )
    # Renumber before selecting: adding a column to selected rows copies videos that are held as bytes.
    videos = split.videos.remove_columns("label")
    videos = videos.add_column("label", [renumbered.get(label, UNKNOWN_LABEL) for label in labels])
    source = f"{len(class_names)} of the {len(ids)} classes of {split.source}"
    return VideoSplit(videos.select(rows), list(class_names), source)


def draw_classes(class_names: list[str], number: int, seed: int) -> list[str]:
    """
    Draw `number` classes at random, the same on every machine, and return them in their order.

    Raises:
        [`DataError`]: if there are fewer classes.
    """
    if not 1 <= number <= len(class_names):
        raise DataError(f"The number of classes to draw must be from 1 to {len(class_names)}, got {number}.")
    draw = random.Random(seed).random
    drawn = sorted((draw(), i) for i in range(len(class_names)))[:number]
    return [class_names[i] for _, i in sorted(drawn, key=lambda pair: pair[1])]


def save_split(split: VideoSplit, list_path: str | Path, label_path: str | Path):
    """
    Write a split as a list of lines `path num_frames id` and its label list.

    [`load_list`] reads both back as the same videos and classes. Paths are absolute; numbers of frames are 0, because
    nothing reads them.

    Raises:
        [`DataError`]: if videos are held as bytes or have no class, or a path or name cannot be written in a line.
    """
    labels, paths = _labels(split), []
    for row, video in enumerate(split.videos.select_columns(["video"])):
        path = video["video"]
        if isinstance(path, dict):
            if path.get("bytes") is not None or path.get("path") is None:
                raise DataError(
                    f"Video {row} ({split.videos[row]['name']}) is held as bytes, and a list names files. Save the "
                    "dataset with `split.videos.save_to_disk(folder)`."
                )
            path = path["path"]
        path = path if is_url(path) else os.path.abspath(path)
        if path != path.strip() or "\n" in path:
            raise DataError(f"{path!r} cannot be written in a list: it has a line break or a final space. Rename it.")
        paths.append(path)
    with open(label_path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(
            [("id", "name"), *enumerate(map(as_csv_cell, split.class_names or []))]
        )
    if read_label_list(label_path) != split.class_names:
        raise DataError(f"{label_path}: class names must not begin or end with a space, got {split.class_names}.")
    lines = "".join(f"{path} 0 {label}\n" for path, label in zip(paths, labels))
    Path(list_path).write_text(lines, encoding="utf-8", newline="\n")


def check_disjoint(base: Iterable[str], novel: Iterable[str]):
    """
    Raise if a class is both base and novel. Case, spaces, underscores and punctuation of names do not matter.

    Raises:
        [`DataError`]: names the shared classes.
    """
    keys = {label_key(name) for name in base}
    both = [name for name in novel if label_key(name) in keys]
    if both:
        raise DataError(
            f"{len(both)} classes are both base and novel, so training would see novel classes: {both[:10]}. Give "
            "each half its own label list."
        )


def find_overlap(train: VideoSplit, test: VideoSplit) -> list[str]:
    """
    Return the names of the videos of `test` that are also in `train`.

    Videos are compared by file, however its path is spelled, or by content if they are held as bytes.
    """
    places = [_places(split) for split in (train, test)]
    shared = set(places[0]) & set(places[1])
    # Bytes of equal length are the same video only if their content is.
    seen = {_digest(train, row) or place for row, place in enumerate(places[0]) if place in shared}
    names = test.videos["name"][:]
    return [
        names[row] for row, place in enumerate(places[1]) if place in shared and (_digest(test, row) or place) in seen
    ]


def _labels(split: VideoSplit) -> list[int]:
    """Return the labels, or raise if a video has no class."""
    labels = split.videos["label"][:]
    if split.class_names is None or min(labels, default=0) < 0:
        raise DataError("There are videos without a class, or ids without names. Give a label list.")
    return labels


def _places(split: VideoSplit) -> list[str | int | None]:
    """Return the real path of each video, or the number of bytes of a video that is held as bytes."""
    column = split.videos.with_format("arrow")["video"][:]
    if not pyarrow.types.is_struct(column.type):
        return [_real_path(path) for path in column.to_pylist()]
    lengths = pyarrow.compute.binary_length(pyarrow.compute.struct_field(column, "bytes")).to_pylist()
    paths = pyarrow.compute.struct_field(column, "path").to_pylist()
    return [_real_path(path) if length is None else length for path, length in zip(paths, lengths)]


def _real_path(path: str | None) -> str | None:
    return path if path is None or is_url(path) else os.path.realpath(path)


def _digest(split: VideoSplit, row: int) -> str | None:
    """Return the digest of a video that is held as bytes, None for a path."""
    video = split.videos[row]["video"]
    content = video.get("bytes") if isinstance(video, dict) else None
    return hashlib.sha256(content).hexdigest() if content is not None else None
