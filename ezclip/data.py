"""Labelled videos from where people keep them, and batches for training and evaluation.

Rows come as a `datasets.Dataset` with the columns `video` (a path, or `{"path", "bytes"}`), `label` (an index into the
class names, -1 where unknown) and `name` (what messages and results call the video).
"""

import csv
import io
import json
import logging
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import datasets
import numpy as np
import pyarrow
import pyarrow.compute
import torch

from .processing_ezclip import EZClipProcessor, label_key
from .video_ezclip import VideoReadError, is_frame, is_url, random_frame_indices


logger = logging.getLogger(__name__)

VIDEO_EXTENSIONS = (
    *(".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv"),
    *(".flv", ".ts", ".mts", ".m2ts", ".3gp", ".ogv", ".vob", ".divx", ".gif"),
)
UNKNOWN_LABEL = -1


class DataError(ValueError):
    """The data given to the script cannot be used; the message says why and what to do."""


@dataclass
class VideoSplit:
    """
    Videos of one split and the classes they are of.

    Args:
        videos (`datasets.Dataset`):
            Rows with `video`, `label` and `name`.
        class_names (`list[str]`, *optional*):
            Names of the classes; `None` where the source has no labels.
    """

    videos: datasets.Dataset
    class_names: list[str] | None

    def __len__(self) -> int:
        return len(self.videos)

    def select(self, max_samples: int | None) -> "VideoSplit":
        """The first `max_samples` videos, or all."""
        if max_samples is None or max_samples >= len(self):
            return self
        return VideoSplit(self.videos.select(range(max_samples)), self.class_names)


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
                content = json.loads(_read_text(path))
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


def load_folder(folder: str | Path) -> VideoSplit:
    """
    A folder of class folders, each with video files or folders of frame images, at any depth. A folder of videos
    without class folders has no labels.

    (Not `datasets`' `videofolder`: it loses folders with brackets in their name, takes a file with "test" in its name
    for another split and knows five kinds of file.)

    Raises:
        [`DataError`]: if there is no video.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder.")
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    classes = [path for path in classes if not _is_frame_folder(path)]
    roots = list(enumerate(classes)) if classes else [(UNKNOWN_LABEL, folder)]
    ignored = Counter()
    found = [(str(video), label) for label, root in roots for video in _walk_videos(root, ignored)]
    if classes:
        stray = sum(
            path.suffix.lower() in VIDEO_EXTENSIONS or (path.is_dir() and _is_frame_folder(path))
            for path in folder.iterdir()
        )
        if stray:
            logger.warning(f"{folder}: {stray} videos beside the class folders have no class and are left out.")
    if ignored:
        logger.warning(f"{folder}: left out files that are not videos by their ending: {dict(ignored)}.")
    if not found:
        raise DataError(f"{folder} holds no video. Expected {folder}/CLASS NAME/VIDEO, ending in {VIDEO_EXTENSIONS}.")
    names = [path.name for path in classes] or None
    return VideoSplit(_rows(found), names)


def load_files(paths: list[str]) -> VideoSplit:
    """Video files by path or URL, without labels."""
    return VideoSplit(_rows([(path, UNKNOWN_LABEL) for path in paths]), None)


def load_list(
    list_file: str | Path, label_list: str | Path | None = None, video_root: str | Path | None = None
) -> VideoSplit:
    """
    A published list: a line per video with its path, its number of frames (not needed) and its class id.

    Args:
        list_file (`str` or `Path`):
            The list. Paths may hold blanks. Lines without a number of frames, or with the path alone, are read too.
        label_list (`str` or `Path`, *optional*):
            Class names, see [`read_label_list`].
        video_root (`str` or `Path`, *optional*):
            Folder that takes the place of the list's own root. The longest end of a path that exists below it is
            taken, as a video file or a folder of frames, whatever its ending. Without it paths are relative to the
            working folder or to the list's.

    Raises:
        [`DataError`]: if a line has another form, an id is out of range, or no video is found at all.
    """
    class_names = read_label_list(label_list) if label_list is not None else None
    entries = _read_list(list_file)
    if not entries:
        raise DataError(f"{list_file} is empty.")
    for number, path, label in entries:
        if class_names is not None and label >= len(class_names):
            raise DataError(
                f"{list_file}, line {number}: class id {label} of {path!r} is not in {label_list}, which has ids 0 to "
                f"{len(class_names) - 1}. Is it the label list of this data set?"
            )
    resolve = _Resolver(video_root if video_root is not None else Path(list_file).parent, strip=video_root is not None)
    found = [(resolve(path), label) for _, path, label in entries]
    if not any(is_url(path) or os.path.exists(path) for path, _ in found):
        raise DataError(
            f"None of the {len(found)} videos of {list_file} exists; the first is {entries[0][1]!r}, looked for as "
            f"{found[0][0]!r}. Give the folder that holds them as --video_root."
        )
    return VideoSplit(_rows(found), class_names)


def load_hub_dataset(
    name: str,
    config_name: str | None = None,
    split: str | None = None,
    video_column: str | None = None,
    label_column: str = "label",
    label_list: str | Path | None = None,
) -> VideoSplit:
    """
    A data set of the Hub, or a local folder of its files, with a column of videos.

    Args:
        name (`str`):
            As for `datasets.load_dataset`.
        config_name (`str`, *optional*):
            Its configuration.
        split (`str`, *optional*):
            The split. Defaults to the first of validation, test and train that there is.
        video_column (`str`, *optional*):
            Column of `Video`s, paths or `{"path", "bytes"}`. Defaults to the first of type `Video`, or `video`.
        label_column (`str`, *optional*, defaults to `"label"`):
            Column of class labels, names or ids.
        label_list (`str` or `Path`, *optional*):
            Class names for ids without names.

    Raises:
        [`DataError`]: if it cannot be loaded, split or video column are missing, or labels are of another kind.
    """
    try:
        splits = datasets.load_dataset(name, config_name)
    except Exception as error:  # the readers of many formats have errors of their own
        reasons = [str(error)]
        while (error := error.__cause__ or error.__context__) is not None:
            reasons.append(str(error))
        hint = ""
        if any("torchcodec" in reason for reason in reasons):
            hint = " A torchcodec that cannot be imported breaks data sets of videos: uninstall it, or mend it."
        raise DataError(f"--dataset_name {name}: {': '.join(dict.fromkeys(reasons))}{hint}") from None
    if split is None:
        split = next((candidate for candidate in ("validation", "test", "train") if candidate in splits), None)
    if split not in splits:
        raise DataError(f"{name} has no split {split!r}; it has {list(splits)}.")
    rows = splits[split]
    if video_column is None:
        of_type = [column for column, feature in rows.features.items() if isinstance(feature, datasets.Video)]
        video_column = of_type[0] if of_type else "video"
    if video_column not in rows.column_names:
        raise DataError(f"{name} has no column {video_column!r}; it has {rows.column_names}. Name it.")
    if isinstance(rows.features[video_column], datasets.Video):
        rows = rows.cast_column(video_column, datasets.Video(decode=False))
    class_names = read_label_list(label_list) if label_list is not None else None
    if label_column not in rows.column_names:
        labels, class_names = [UNKNOWN_LABEL] * len(rows), None
    else:
        labels, class_names = _read_labels(rows, label_column, class_names, name)
    names = _read_names(rows.data.column(video_column))
    rows = rows.select_columns([video_column])
    if video_column != "video":
        rows = rows.rename_column(video_column, "video")
    return VideoSplit(rows.add_column("label", labels).add_column("name", names), class_names)


class VideoDataset(torch.utils.data.Dataset):
    """
    Reads the videos of a split.

    An item has `index`, `label`, `pixel_values` `(T, 3, H, W)` and `bad_videos`, the list of (index,
    [`VideoReadError`]) of videos that could not be read. For evaluation such a video has zeros for pixels; for
    training the next readable one takes its place, so that batches stay full.

    Args:
        split ([`VideoSplit`]):
            What to read.
        processor ([`EZClipProcessor`]):
            Reads it.
        prompts (`list[list[str]]`, *optional*):
            P texts for each class. With them the data set is for training: frames are drawn as published, and each
            item has a `text` of its class, drawn too. Both depend on (seed, epoch, index) alone.
        seed (`int`, *optional*, defaults to 0):
            See `prompts`.
    """

    def __init__(
        self,
        split: VideoSplit,
        processor: EZClipProcessor,
        prompts: list[list[str]] | None = None,
        seed: int = 0,
    ):
        self.split, self.processor, self.prompts = split, processor, prompts
        self.seed, self.epoch = seed, 0

    def __len__(self) -> int:
        return len(self.split)

    def set_epoch(self, epoch: int):
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict:
        bad_videos = []
        candidates = range(index, index + len(self)) if self.prompts else [index]
        for candidate in candidates:
            candidate %= len(self)
            row = self.split.videos[candidate]
            try:
                item = self._train_item(row, candidate) if self.prompts else self._eval_item(row)
                return {"index": candidate, "label": row["label"], "bad_videos": bad_videos, **item}
            except VideoReadError as error:
                bad_videos.append((candidate, error))
        if self.prompts:
            raise DataError(f"None of the {len(self)} training videos can be read; the last: {bad_videos[-1][1]}")
        size = self.processor.image_processor.crop_size
        empty = torch.zeros(self.processor.num_frames, 3, size["height"], size["width"])
        return {"index": index, "label": row["label"], "bad_videos": bad_videos, "pixel_values": empty}

    def _eval_item(self, row: dict) -> dict:
        return {"pixel_values": self.processor.read_video(row["video"])}

    def _train_item(self, row: dict, index: int) -> dict:
        rng = np.random.default_rng((self.seed, self.epoch, index))
        text = self.prompts[rng.integers(len(self.prompts))][row["label"]]

        def sample(total_frames):
            return random_frame_indices(total_frames, self.processor.num_frames, rng)

        return {"text": text, "pixel_values": self.processor.read_video(row["video"], sample)}


class VideoCollator:
    """Items of a [`VideoDataset`] as one batch, texts tokenized and padded to the longest."""

    def __init__(self, processor: EZClipProcessor):
        self.processor = processor

    def __call__(self, items: list[dict]) -> dict:
        batch = {
            "index": torch.tensor([item["index"] for item in items]),
            "labels": torch.tensor([item["label"] for item in items]),
            "pixel_values": torch.stack([item["pixel_values"] for item in items]),
            "bad_videos": [bad for item in items for bad in item["bad_videos"]],
        }
        if "text" in items[0]:
            batch.update(self.processor(text=[item["text"] for item in items], return_tensors="pt"))
        return batch


class _Resolver:
    """Finds the file or folder of frames that a path of a list means."""

    def __init__(self, root: str | Path, strip: bool):
        self.root, self.strip = Path(root), strip
        self.depth = -1  # where the last path that was found began: there a missing one is named

    def __call__(self, path: str) -> str:
        if is_url(path):
            return path
        if not self.strip:
            candidates = [Path(path), self.root / path]
            return str(next(filter(None, map(_existing, candidates)), candidates[-1]))
        parts = PurePosixPath(path.replace("\\", "/").lstrip("/")).parts
        for depth in range(len(parts)):
            if found := _existing(self.root.joinpath(*parts[depth:])):
                self.depth = depth
                return str(found)
        return str(self.root.joinpath(*(parts[self.depth :] or parts[-1:])))


def _existing(path: Path) -> Path | None:
    """`path`, or what stands there with a video's ending more (frames listed, files kept) or less (the reverse)."""
    if path.exists():
        return path
    if not path.parent.is_dir():
        return None
    frames = path.with_suffix("")
    if path.suffix.lower() in VIDEO_EXTENSIONS and frames.is_dir() and _is_frame_folder(frames):
        return frames
    variants = (path.with_name(path.name + ending) for ending in VIDEO_EXTENSIONS)
    return next((variant for variant in variants if variant.exists()), None)


def _read_list(list_file: str | Path) -> list[tuple[int, str, int]]:
    """(line number, path, label) of each line. How many numbers end most of the lines, so many must end each."""
    lines = [(n, line.strip()) for n, line in enumerate(_read_text(list_file).split("\n"), start=1) if line.strip()]
    forms = {n: re.compile(r"(.*\S)" + r"\s+(\d+)" * n) for n in (2, 1, 0)}
    votes = Counter(next(n for n, form in forms.items() if form.fullmatch(line)) for _, line in lines)
    numbers = votes.most_common(1)[0][0] if votes else 0
    entries = []
    for line_number, line in lines:
        match = forms[numbers].fullmatch(line)
        if match is None:
            form = "path num_frames id" if numbers == 2 else "path id"
            raise DataError(f"{list_file}, line {line_number}: {line!r} is not `{form}` as most other lines are.")
        entries.append((line_number, match.group(1), int(match.group(numbers + 1)) if numbers else UNKNOWN_LABEL))
    return entries


def _read_names(column: pyarrow.ChunkedArray) -> list[str]:
    """Paths of a column of paths or `{"path", "bytes"}`, without reading the bytes; "row 7" where there is none."""
    if pyarrow.types.is_struct(column.type):
        column = pyarrow.compute.struct_field(column, "path")
    is_text = pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type)
    paths = column.to_pylist() if is_text else [None] * len(column)
    return [path or f"row {index}" for index, path in enumerate(paths)]


def _read_labels(rows, column: str, class_names: list[str] | None, name: str) -> tuple[list[int], list[str] | None]:
    feature, values = rows.features[column], list(rows[column])
    kind = getattr(feature, "dtype", "")
    if isinstance(feature, datasets.ClassLabel):
        names = feature.names
        if class_names is not None and [label_key(n) for n in names] != [label_key(n) for n in class_names]:
            raise DataError(f"The classes of {name} are not those of the label list, in its order. Leave that out.")
        class_names = class_names or names
    elif kind in ("string", "large_string"):
        class_names = class_names or sorted({value for value in values if value is not None})
        ids = {label_key(class_name): i for i, class_name in enumerate(class_names)}
        unknown = sorted({value for value in values if value is not None and label_key(value) not in ids})
        if unknown:
            raise DataError(f"{name} has labels that the label list does not name: {unknown[:10]}.")
        values = [None if value is None else ids[label_key(value)] for value in values]
    elif "int" not in kind:
        raise DataError(f"Column {column!r} of {name} is of type {feature}; labels are class names or ids.")
    values = [UNKNOWN_LABEL if value is None else value for value in values]
    if class_names is not None and max(values, default=0) >= len(class_names):
        raise DataError(f"{name} has class id {max(values)}, the label list ids 0 to {len(class_names) - 1}.")
    return values, class_names


def _walk_videos(root: Path, ignored: Counter) -> list[Path]:
    """Video files and folders of frames below `root`, in order; `ignored` counts the endings of other files."""
    videos = []
    for path in sorted(root.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            videos += [path] if _is_frame_folder(path) else _walk_videos(path, ignored)
        elif path.suffix.lower() in VIDEO_EXTENSIONS:
            videos.append(path)
        else:
            ignored[path.suffix.lower() or path.name] += 1
    return videos


def _is_frame_folder(path: Path) -> bool:
    """Whether a folder is a video by its frames: it has pictures, and neither videos nor folders."""
    children = list(path.iterdir())
    return any(map(is_frame, children)) and not any(
        child.suffix.lower() in VIDEO_EXTENSIONS or child.is_dir() for child in children
    )


def _rows(found: list[tuple[str, int]]) -> datasets.Dataset:
    videos, labels = [video for video, _ in found], [label for _, label in found]
    for video in videos:
        if any(0xDC80 <= ord(character) <= 0xDCFF for character in video):  # bytes that are no UTF-8
            raise DataError(f"The name of {video!r} is not UTF-8, which a data set cannot hold. Rename it.")
    return datasets.Dataset.from_dict({"video": videos, "label": labels, "name": videos})


def _check_names(names, source):
    keys = Counter(label_key(name) for name in names)
    repeated = [name for name in names if keys[label_key(name)] > 1]
    if repeated:
        raise DataError(f"{source}: classes of the same name: {repeated[:10]}.")


def _read_csv(path: str | Path) -> list[list[str]]:
    """The rows that are not empty; a field may hold line breaks."""
    return [row for row in csv.reader(io.StringIO(_read_text(path), newline="")) if row]


def _read_text(path: str | Path) -> str:
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not a text file in UTF-8 ({error.reason} at byte {error.start}).") from error


__all__ = [
    "DataError",
    "VideoCollator",
    "VideoDataset",
    "VideoSplit",
    "load_files",
    "load_folder",
    "load_hub_dataset",
    "load_list",
    "read_class_descriptions",
    "read_label_list",
]
