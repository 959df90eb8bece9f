"""Labelled videos from folders, published lists and datasets of the Hub."""

import glob
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import datasets
import pyarrow
import pyarrow.compute

from checkpoint_ezclip import list_some
from ezclip.constants import UNKNOWN_LABEL
from ezclip.data.labels import merge_spellings, read_numbered_labels
from ezclip.data.lists import check_no_video_twice, first_id_of, name_classes, read_list
from ezclip.errors import DataError
from ezclip.utils.messages import get_logger
from processing_ezclip import label_key
from video_ezclip import VIDEO_EXTENSIONS, FolderContents, describe_video, is_url, list_folder, local_path


logger = get_logger(__name__)

# Words for the splits of a data set, the preferred ones first, and words beside them: `videos_train`, `val_256`
TRAIN_WORDS = ("train", "training", "trainset", "trainval", "base", "seen")
TEST_WORDS = ("test", "testing", "testset", "val", "valid", "validation", "dev", "eval", "evaluation")
TEST_WORDS += ("novel", "unseen")
SPLIT_COMPANIONS = ("set", "split", "part", "data", "video", "videos", "clips", "frames", "rawframes")


@dataclass
class VideoSplit:
    """
    The videos of a split and their classes.

    Args:
        videos (`datasets.Dataset`):
            Rows with `video` (a path, or `{"path", "bytes"}`), `label` (an index into the class names, -1 if unknown)
            `name` (the name in messages and results), and `row` (its number in the source; by default its position).
        class_names (`list[str]`, *optional*):
            Names of the classes; `None` if the source has no labels.
        source (`str`, *optional*):
            Words for where the videos and classes come from, such as "class folders of videos/test".
    """

    videos: datasets.Dataset
    class_names: list[str] | None
    source: str = ""

    def __len__(self) -> int:
        return len(self.videos)

    @property
    def row_numbers(self) -> list[int]:
        """Return the row number of each video in its source. Names may repeat; row numbers do not."""
        return self.videos["row"][:] if "row" in self.videos.column_names else list(range(len(self)))

    @property
    def empty_classes(self) -> list[str]:
        """Return the names of the classes without a video."""
        found = set(self.videos["label"])
        return [name for label, name in enumerate(self.class_names or []) if label not in found]

    def select(self, max_samples: int | None) -> "VideoSplit":
        """Return a split of the first `max_samples` videos, or of all."""
        if max_samples is None or max_samples >= len(self):
            return self
        source = f"the first {max_samples} of {self.source}"
        return VideoSplit(self.videos.select(range(max_samples)), self.class_names, source)


def load_folder(folder: str | Path, part: str = "test") -> VideoSplit:
    """
    Load a folder of class folders. The first level of folders names the classes.

    Their videos are found at any depth, see [`list_folder`]. Folders without a video are no classes, and videos beside
    the class folders are skipped; a message names both. Two spellings of one class are merged, with a message. A
    folder of videos without class folders has no labels. The `videofolder` of `datasets` is not used: it loses
    folders with brackets in their names, takes a file with "test" in its name for another split, and knows five kinds
    of file.

    Args:
        folder (`str` or `Path`):
            The folder.
        part (`str`, *optional*, defaults to `"test"`):
            The part of a data set that is wanted, `"train"` or `"test"`, for the error about a folder of splits.

    Raises:
        [`DataError`]: if there is no folder or no video, or the folder holds splits or another root of class folders.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder.")
    by_class, beside = {}, []
    for video in sorted(map(Path, _list_folder(folder).videos)):
        name, *rest = video.relative_to(folder).parts or ("",)
        (by_class.setdefault(name, []) if rest else beside).append(video)
    if not by_class:
        if not beside:
            raise DataError(
                f"{folder} holds no video. Expected {folder}/CLASS/VIDEO with a suffix of {VIDEO_EXTENSIONS}."
            )
        return VideoSplit(_rows([(str(video), UNKNOWN_LABEL) for video in beside]), None, f"folder {folder}")
    _check_levels(folder, by_class, part)
    if names := {video.name: None for video in beside}:
        logger.warning(
            f"{folder}: {len(names)} videos beside the class folders have no class and are skipped: "
            f"{list_some(list(names))}."
        )
    folders = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if empty := [name for name in folders if name not in by_class and name not in names]:
        logger.warning(
            f"{folder}: {len(empty)} folders hold no video of their own and are no classes: {list_some(empty)}."
        )
    spellings = merge_spellings(Counter({name: len(videos) for name, videos in by_class.items()}), folder)
    class_names = sorted(set(spellings.values()))
    ids = {name: class_names.index(spelling) for name, spelling in spellings.items()}
    found = [(str(video), ids[name]) for name in sorted(spellings, key=ids.get) for video in by_class[name]]
    return VideoSplit(_rows(found), class_names, f"class folders of {folder}")


def find_videos(paths: Iterable[str], keep_missing: bool = False) -> list[str]:
    """
    Return the videos that a user names: files, folders, patterns such as `clips/*.mp4`, and URLs.

    A folder of videos stands for its videos, and a folder of pictures is one video, see [`list_folder`]. The same rule
    holds for a pattern: where it matches a video, it matches nothing else. A file that is named itself is taken
    whatever its suffix. A video that is named twice is taken once. Warnings name what is left out.

    Args:
        paths (`Iterable[str]`):
            The names.
        keep_missing (`bool`, *optional*, defaults to `False`):
            Whether to keep the path of a file that does not exist, so that reading it gives the error.

    Raises:
        [`DataError`]: if there is no file of a name, or no video in a folder.
    """
    videos, missing, twice = {}, [], []
    for path in paths:
        place = local_path(path)
        if os.path.isdir(place):
            found = _list_folder(place).videos
            if not found:
                raise DataError(f"{path} is a folder without a video. Expected files such as {path}/clip.mp4.")
        elif is_url(place) or os.path.exists(place) or (keep_missing and not glob.has_magic(place)):
            found = [place]
        else:
            found = _match(place)
        missing += [] if found else [path]
        for video in found:
            if (spelling := _one_spelling(video)) in videos:
                twice.append(video)
            videos.setdefault(spelling, video)
    if missing:
        are = "is" if len(missing) == 1 else "are"
        raise DataError(
            f"{list_some(missing)} {are} neither file nor folder nor URL. Correct the path or leave it out."
        )
    if twice:
        logger.warning(f"Videos that are given twice are taken once: {list_some(twice)}.")
    return list(videos.values())


def load_files(paths: list[str]) -> VideoSplit:
    """Return a split of video files by path or URL, without labels."""
    return VideoSplit(_rows([(path, UNKNOWN_LABEL) for path in paths]), None, "named videos")


def load_list(
    list_file: str | Path,
    label_list: str | Path | None = None,
    video_root: str | Path | None = None,
    part: str = "test",
    first_id: int | None = None,
) -> VideoSplit:
    """
    Load a published list: a line for each video with its path, number of frames (unused) and class id.

    A warning counts the videos that do not exist.

    Args:
        list_file (`str` or `Path`):
            The list. Paths may hold spaces. The number of frames, or both numbers, may be missing: without an id, the
            folder of a video names its class. The official files of HMDB-51, one for each class, are given as a
            pattern: `FOLDER/*_test_split1.txt`.
        label_list (`str` or `Path`, *optional*):
            Class names, see [`read_label_list`]. Without it, folders name the classes if each id has its own folder.
        video_root (`str` or `Path`, *optional*):
            Folder that replaces the root of the list. The longest end of a path that exists below it is taken: a video
            file of any suffix or a folder of frames, also in a folder of its class. Without it, paths are relative to
            the working folder or to the folder of the list.
        part (`str`, *optional*, defaults to `"test"`):
            The clips to take from the official files of HMDB-51, `"train"` or `"test"`. Each file has both.
        first_id (`int`, *optional*):
            The number that class ids count from, see [`guess_first_id`]. By default this list alone decides.

    Raises:
        [`DataError`]: if a line has another form, an id is out of range, a video with a class is there twice, the
        files of a class are named after another class, or no video exists.
    """
    entries = read_list(list_file, part)
    labels, class_names = name_classes(entries, list_file, label_list, first_id)
    resolve = _Resolver(video_root if video_root is not None else Path(list_file).parent, strip=video_root is not None)
    names = [class_names[label] if class_names and label != UNKNOWN_LABEL else None for label in labels]
    videos = [resolve(entry.path, name) for entry, name in zip(entries, names)]
    exists = [is_url(video) or os.path.exists(video) for video in videos]
    if not all(exists):
        number, first = len(videos), exists.index(False)
        example = f"the first is {entries[first].path!r}, looked for as {videos[first]!r}"
        if not any(exists):
            raise DataError(f"None of the {number} videos of {list_file} exists; {example}. Give their --video_root.")
        logger.warning(f"{exists.count(False)} of the {number} videos of {list_file} do not exist; {example}.")
    if class_names is not None:
        # Missing videos are compared by their paths in the list.
        places = [_one_spelling(v) if found else entry.path for entry, v, found in zip(entries, videos, exists)]
        check_no_video_twice(entries, places, labels, class_names, list_file)
    source = str(list_file) if label_list is None else f"{list_file} with the classes of {label_list}"
    return VideoSplit(_rows(list(zip(videos, labels))), class_names, source)


def load_hub_dataset(
    name: str,
    config_name: str | None = None,
    split: str | None = None,
    video_column: str | None = None,
    label_column: str | None = "label",
    label_list: str | Path | None = None,
) -> VideoSplit:
    """
    Load a dataset of the Hub, or of a local folder of its files, with a column of videos.

    Args:
        name (`str`):
            As for `datasets.load_dataset`.
        config_name (`str`, *optional*):
            The configuration of the dataset.
        split (`str`, *optional*):
            The split. Defaults to the first of validation, test and train that exists.
        video_column (`str`, *optional*):
            Column of `Video`s, paths or `{"path", "bytes"}`. Defaults to the first of type `Video`, or `video`.
        label_column (`str`, *optional*, defaults to `"label"`):
            Column of class ids or names; `None` for videos without labels.
        label_list (`str` or `Path`, *optional*):
            Class names for ids without names.

    Raises:
        [`DataError`]: if it cannot be loaded, its split or video column is missing, or labels are of another type.
    """
    try:
        splits = datasets.load_dataset(name, config_name)
    except Exception as error:  # each format raises its own errors
        raise loading_error(name, error) from None
    split = choose_split(splits, split, name)
    rows = splits[split]
    video_column = choose_video_column(rows.features, rows.column_names, video_column, name)
    if isinstance(rows.features[video_column], datasets.Video):
        rows = rows.cast_column(video_column, datasets.Video(decode=False))
    class_names, first_id = read_numbered_labels(label_list) if label_list is not None else (None, 0)
    if label_column not in rows.column_names:
        labels, class_names = [UNKNOWN_LABEL] * len(rows), None
    else:
        if first_id and "int" in getattr(rows.features[label_column], "dtype", ""):  # all splits count alike
            values = (value for own in splits.values() for value in own[label_column])
            first_id = first_id_of([value for value in values if value not in (None, UNKNOWN_LABEL)], first_id)
        labels, class_names = _read_labels(rows, label_column, class_names, first_id, name)
    names = _read_names(rows.data.column(video_column))
    rows = rows.select_columns([video_column])
    if video_column != "video":
        rows = rows.rename_column(video_column, "video")
    rows = rows.add_column("label", labels).add_column("name", names).add_column("row", list(range(len(rows))))
    return VideoSplit(rows, class_names, f"split {split} of {name}")


def _list_folder(folder: str | Path) -> FolderContents:
    """Find the videos of a folder, and warn about what is left out."""
    try:
        found = list_folder(folder)
    except OSError as error:
        raise DataError(f"{error.filename} cannot be listed ({error.strerror}). Correct its permissions.") from error
    if left_out := found.describe_left_out():
        logger.warning(f"{folder}: {left_out}")
    if found.others:
        suffixes = Counter(os.path.splitext(path)[1].lower() or os.path.basename(path) for path in found.others)
        logger.warning(f"{folder}: skipped files whose suffix is not a video's: {dict(suffixes)}.")
    return found


def _is_frame_folder(path: str) -> bool:
    return os.path.isdir(path) and list_folder(path).videos == [path]


def _check_levels(folder: Path, by_class: dict[str, list[Path]], part: str):
    """Raise if the first level of folders names splits (`train`, `test`), or is one folder around the classes."""
    option, preferred = ("--train_dir", TRAIN_WORDS) if part == "train" else ("--validation_dir", TEST_WORDS)
    paths = {name: [video.relative_to(folder).parts for video in by_class[name]] for name in sorted(by_class)}
    splits = {name: _split_word(name) for name in paths}
    if not all(splits.values()):
        # Splits beside another folder, or with the name of the data set: `ucf_train`. They hold folders of classes.
        nested = [name for name, found in paths.items() if all(len(parts) > 2 for parts in found)]
        shared = set.intersection(*map(_words, nested)) if len(nested) > 1 else set()
        splits = {name: word for name in nested if (word := _split_word(name, shared))}
    if len(splits) == len(paths) or len(splits) > 1:
        words = (*preferred, *TRAIN_WORDS, *TEST_WORDS)
        wanted = min(splits, key=lambda name: words.index(splits[name]))
        raise DataError(
            f"{folder} holds the split{'s' if len(splits) > 1 else ''} {' and '.join(splits)}, not classes. "
            f"Give {option} {folder / wanted}."
        )
    folders = [parts[:-1] for found in paths.values() for parts in found]
    above = Path(os.path.commonpath([os.path.join(*parts) for parts in folders]))
    depth = len(above.parts)
    inner = sorted({parts[depth] for parts in folders if len(parts) > depth})
    if depth and len(inner) > 1:
        raise DataError(
            f"{folder} holds one folder, {above}, with {len(inner)} folders of videos: {list_some(inner)}. If they "
            f"are the classes, give {option} {folder / above}."
        )
    inner = sorted({parts[1] for parts in folders if len(parts) > 1})
    if inner and all(map(_split_word, inner)):
        logger.warning(f"{folder}: the class folders hold the splits {', '.join(inner)}, which are taken together.")


def _split_word(name: str, shared: Iterable[str] = ()) -> str | None:
    """
    Return the word for a split that a folder is named after: "val" of "val_256"; None for other folders.

    `shared` are words that the names of all folders have.
    """
    found = _words(name) & {*TRAIN_WORDS, *TEST_WORDS}
    return min(found) if found and _words(name) <= {*found, *SPLIT_COMPANIONS, *shared} else None


def _words(name: str) -> set[str]:
    return set(re.findall(r"[^\W\d_]+", name.lower()))


def _match(pattern: str) -> list[str]:
    """Return the videos that a pattern matches, in files and folders. Warn about other files that it matches."""
    matches = sorted(glob.glob(pattern, recursive=True))
    found = [video for path in matches for video in (_list_folder(path).videos if os.path.isdir(path) else [path])]
    found = dict.fromkeys(found)  # `**` matches a folder and its files
    videos = {path: None for path in found if path.lower().endswith(VIDEO_EXTENSIONS) and not os.path.isdir(path)}
    if videos and (left_out := [path for path in found if path not in videos]):
        logger.warning(f"{pattern}: left out, because videos are beside them: {list_some(left_out)}.")
    return list(videos or found)


def _one_spelling(path: str) -> str:
    """Return a path without links and dots, so that two spellings of one file are equal."""
    return path if is_url(path) else os.path.realpath(path)


class _Resolver:
    """Finds the video file or folder of frames for a path of a list. Each folder is listed once."""

    def __init__(self, root: str | Path, strip: bool):
        self.root, self.strip = str(root), strip
        self.depth = -1  # where the last path that exists begins: a missing one is named the same way
        self.children, self.class_folders = {}, {}

    def __call__(self, path: str, class_name: str | None) -> str:
        if is_url(path):
            return path
        if not self.strip:
            candidates = [Path(path), Path(self.root, path)]
            found = (self.find(str(candidate.parent), candidate.name) for candidate in candidates)
            return str(Path(next(filter(None, found), candidates[-1])))
        parts = PurePosixPath(path.replace("\\", "/").lstrip("/")).parts
        for depth in range(len(parts)):
            folder = os.path.join(self.root, *parts[depth:-1])
            found = self.find(folder, parts[-1]) or self.find_in_class(folder, class_name, parts[-1])
            if found is not None:
                self.depth = depth
                return found
        return os.path.join(self.root, *(parts[self.depth :] or parts[-1:]))

    def find(self, folder: str, name: str) -> str | None:
        """Return the path of `name`, or of `name` with a video suffix, or of its folder of frames without suffix."""
        names = self.list(folder)
        path = os.path.join(folder, name)
        if name in names:
            return path
        frames, ending = os.path.splitext(name)
        if ending.lower() in VIDEO_EXTENSIONS and frames in names and _is_frame_folder(os.path.join(folder, frames)):
            return os.path.join(folder, frames)
        variant = next((ending for ending in VIDEO_EXTENSIONS if name + ending in names), None)
        if variant is not None:
            return path + variant
        # The file system may ignore case.
        return path if names and os.path.exists(path) else None

    def find_in_class(self, folder: str, class_name: str | None, name: str) -> str | None:
        """Find `name` in the folder of a class, which many published lists leave out."""
        if class_name is None:
            return None
        if folder not in self.class_folders:
            self.class_folders[folder] = {label_key(child): child for child in self.list(folder)}
        child = self.class_folders[folder].get(label_key(class_name))
        return self.find(os.path.join(folder, child), name) if child is not None else None

    def list(self, folder: str) -> set[str]:
        """Return the names in a folder; none if it does not exist."""
        if folder not in self.children:
            try:
                self.children[folder] = set(os.listdir(folder))
            except OSError:
                self.children[folder] = set()
        return self.children[folder]


def loading_error(name: str, error: BaseException) -> DataError:
    """Return the error for a dataset that cannot be loaded: all causes, and a hint about torchcodec."""
    reasons = [str(error)]
    while (error := error.__cause__ or error.__context__) is not None:
        reasons.append(str(error))
    hint = ""
    if any("torchcodec" in reason for reason in reasons):
        hint = " A torchcodec that cannot be imported breaks datasets of videos. Uninstall or repair it."
    return DataError(f"--dataset_name {name}: {': '.join(dict.fromkeys(reasons))}{hint}")


def choose_split(splits, split: str | None, name: str) -> str:
    """Return `split`, by default the first of validation, test and train, or raise if it does not exist."""
    if split is None:
        split = next((candidate for candidate in ("validation", "test", "train") if candidate in splits), None)
    if split not in splits:
        raise DataError(f"{name} has no split {split!r}; it has {list(splits)}. Name one of them.")
    return split


def choose_video_column(features: dict, columns: list[str], column: str | None, name: str) -> str:
    """Return `column`, by default the first of type `Video` or `video`, or raise if it does not exist."""
    if column is None:
        column = next((key for key, feature in features.items() if isinstance(feature, datasets.Video)), "video")
    if column not in columns:
        raise DataError(f"{name} has no column {column!r}; it has {columns}. Name its column of videos.")
    return column


def _read_names(column: pyarrow.ChunkedArray) -> list[str]:
    """Return the paths of a column of paths or `{"path", "bytes"}` without reading the bytes; "row 7" without one."""
    if pyarrow.types.is_struct(column.type):
        column = pyarrow.compute.struct_field(column, "path")
    is_text = pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type)
    paths = column.to_pylist() if is_text else [None] * len(column)
    return [path or f"row {index}" for index, path in enumerate(paths)]


def names_of_classes(feature: datasets.ClassLabel, class_names: list[str] | None, name: str) -> list[str]:
    """Return the class names of a label list, which must match those of the column, or else the column's own."""
    if class_names is not None and [label_key(n) for n in feature.names] != [label_key(n) for n in class_names]:
        raise DataError(f"The classes of {name} are not those of the label list, in its order. Leave it out.")
    return class_names or feature.names


def _read_labels(
    rows, column: str, class_names: list[str] | None, first_id: int, name: str
) -> tuple[list[int], list[str] | None]:
    feature, values = rows.features[column], list(rows[column])
    kind = getattr(feature, "dtype", "")
    if isinstance(feature, datasets.ClassLabel):
        class_names = names_of_classes(feature, class_names, name)
        counts = Counter(dict.fromkeys(class_names, 0))
        counts.update(class_names[value] for value in values if value not in (None, UNKNOWN_LABEL))
        spellings = merge_spellings(counts, name)
        merged = list(dict.fromkeys(spellings[class_name] for class_name in class_names))
        if len(merged) < len(class_names):
            ids = [merged.index(spellings[class_name]) for class_name in class_names]
            values = [value if value in (None, UNKNOWN_LABEL) else ids[value] for value in values]
            class_names = merged
    elif kind in ("string", "large_string"):
        if class_names is None:
            spellings = merge_spellings(Counter(value for value in values if value is not None), name)
            class_names = sorted(set(spellings.values()))
        ids = {label_key(class_name): i for i, class_name in enumerate(class_names)}
        unknown = sorted({value for value in values if value is not None and label_key(value) not in ids})
        if unknown:
            raise DataError(f"{name} has labels that the label list lacks: {unknown[:10]}. Add them to it.")
        values = [None if value is None else ids[label_key(value)] for value in values]
    elif "int" not in kind:
        raise DataError(f"Column {column!r} of {name} is of type {feature}; labels are class names or ids.")
    else:
        values = [value if value in (None, UNKNOWN_LABEL) else value - first_id for value in values]
    values = [UNKNOWN_LABEL if value is None else value for value in values]
    outside = [value for value in values if not UNKNOWN_LABEL <= value < len(class_names)] if class_names else []
    if outside:
        raise DataError(
            f"{name} has class id {outside[0]}, and the label list has ids 0 to {len(class_names) - 1}. Give the "
            "label list of this dataset."
        )
    return values, class_names


def _rows(found: list[tuple[str, int]]) -> datasets.Dataset:
    paths, labels = [path for path, _ in found], [label for _, label in found]
    names = list(map(describe_video, paths))
    columns = {"video": list(map(_as_utf8, paths)), "label": labels, "name": names, "row": range(len(found))}
    return datasets.Dataset.from_dict(columns)


def _as_utf8(path: str) -> str:
    """Return a path, or its URL if its name is not UTF-8, which a dataset cannot hold."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return Path(path).absolute().as_uri()
    return path
