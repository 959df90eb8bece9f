"""Datasets read from the Hub or a folder while they are used, without storing them on the disk."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import datasets

from ezclip.constants import UNKNOWN_LABEL
from ezclip.data.labels import read_numbered_labels
from ezclip.data.sources import choose_split, choose_video_column, loading_error, names_of_classes
from ezclip.errors import DataError
from processing_ezclip import label_key
from video_ezclip import describe_video


class VideoRow(NamedTuple):
    """
    A video of a streamed dataset.

    Args:
        video (`str` or `dict`):
            A path, or `{"path", "bytes"}`, for [`read_frames`].
        name (`str`):
            Its name in messages and results.
        label (`str`, *optional*):
            Its class name, if known.
    """

    video: str | dict | None
    name: str
    label: str | None


class StreamedVideos:
    """
    The videos of a split, in the file shards of its dataset.

    Args:
        rows (`datasets.IterableDataset`):
            The rows of the split.
        name (`str`):
            The name of the dataset, for messages.
        video_column (`str`):
            Column of paths or `{"path", "bytes"}`.
        label_column (`str`, *optional*):
            Column of class names, or of ids of `class_names`.
        class_names (`list[str]`, *optional*):
            The class names, if the dataset or a label list has them.
        num_videos (`int`, *optional*):
            The number of videos, if the dataset tells it.
        files (`list[str]`, *optional*):
            The files of the split.
    """

    def __init__(
        self,
        rows: datasets.IterableDataset,
        name: str,
        video_column: str,
        label_column: str | None = None,
        class_names: list[str] | None = None,
        num_videos: int | None = None,
        files: list[str] | None = None,
    ):
        self.dataset, self.name, self.video_column, self.label_column = rows, name, video_column, label_column
        self.class_names, self.num_videos, self.files = class_names, num_videos, files or []
        self._ids = {label_key(class_name): i for i, class_name in enumerate(class_names or [])}

    @property
    def source(self) -> str:
        """Return words for where the videos come from."""
        return f"split {self.dataset.split} of {self.name}, streamed"

    @property
    def num_shards(self) -> int:
        """Return the number of file shards."""
        return self.dataset.num_shards

    def open_shard(self, shard: int) -> "ShardReader":
        """Return a reader of the videos of a shard by ascending position."""
        return ShardReader(self, shard)

    def read_shard(self, shard: int, start: int = 0) -> Iterator[VideoRow]:
        """
        Yield the videos of a shard, without the first `start`.

        Raises:
            [`DataError`]: if the shard cannot be read, or a label is not one of the classes.
        """
        rows = self.dataset.shard(num_shards=self.num_shards, index=shard).skip(start)
        position = start
        iterator = iter(rows)
        while True:
            try:
                row = next(iterator)
            except StopIteration:
                return
            except Exception as error:  # each format, and the network, raises its own errors
                raise DataError(
                    f"--dataset_name {self.name}: reading ends at row {position} of shard {shard} "
                    f"({type(error).__name__}: {error}). Predictions are kept. Run the same command to resume."
                ) from error
            place = f"row {position} of shard {shard}"
            yield VideoRow(row[self.video_column], _name_of(row[self.video_column], place), self._label(row, place))
            position += 1

    def _label(self, row: dict, place: str) -> str | None:
        value = None if self.label_column is None else row[self.label_column]
        if value is None or value == UNKNOWN_LABEL:
            return None
        if isinstance(value, str):
            if not self.class_names:
                return value
            if label_key(value) not in self._ids:
                raise DataError(f"{self.name}, {place}: the label list does not name {value!r}. Add it there.")
            return self.class_names[self._ids[label_key(value)]]
        if isinstance(value, bool) or not isinstance(value, int):
            raise DataError(f"{self.name}, {place}: the label must be a class name or id, got {value!r}.")
        if not self.class_names:
            return None
        if not 0 <= value < len(self.class_names):
            raise DataError(
                f"{self.name}, {place}: the class id is {value}, those of the classes are 0 to "
                f"{len(self.class_names) - 1}. Give the label list of this dataset."
            )
        return self.class_names[value]


class ShardReader:
    """Reads the videos of a shard by ascending position, and holds one of them."""

    def __init__(self, source: StreamedVideos, shard: int):
        self._source, self._shard = source, shard
        self._rows, self._row, self._position = None, None, -1

    def has(self, position: int) -> bool:
        """Advance to `position`, which must not be before the last one. Return False if the shard is shorter."""
        if self._rows is None:
            self._rows, self._position = self._source.read_shard(self._shard, start=position), position - 1
        while self._position < position:
            if (row := next(self._rows, None)) is None:
                return False
            self._row, self._position = row, self._position + 1
        return True

    def row(self, position: int) -> VideoRow:
        """Return the video at `position`, which must be the last argument of `has`."""
        return self._row


def stream_hub_dataset(
    name: str,
    config_name: str | None = None,
    split: str | None = None,
    video_column: str | None = None,
    label_column: str | None = "label",
    label_list: str | Path | None = None,
) -> StreamedVideos:
    """
    Open a dataset of the Hub, or of a local folder of its files, and read it while it is used.

    The arguments and errors are those of [`load_hub_dataset`]. Nothing is stored on the disk.
    """
    class_names, first_id = read_numbered_labels(label_list) if label_list is not None else (None, 0)
    try:
        builder = datasets.load_dataset_builder(name, config_name)
        if hasattr(builder.config, "decode_num_threads"):
            builder.config.decode_num_threads = 0  # else videos of the Hub are decoded before the cast below
        splits = builder.as_streaming_dataset()
        split = choose_split(splits, split, name)
        rows = splits[split]
        # Some formats tell no types, and the first row does not tell them for all rows.
        features = rows.features or {}
        columns = list(features) or list(next(iter(rows), {}))
    except DataError:
        raise
    except Exception as error:  # each format raises its own errors
        raise loading_error(name, error) from None
    video_column = choose_video_column(features, columns, video_column, name)
    if label_column not in columns:
        label_column, class_names = None, None
    elif label_column in features:
        class_names = _check_labels(features[label_column], label_column, class_names, name)
        if first_id and "int" in getattr(features[label_column], "dtype", ""):
            raise DataError(
                f"{label_list} counts from {first_id}, and a stream cannot tell from which number the ids of {name} "
                "count. Give a label list that counts from 0, or leave --streaming out."
            )
    rows = rows.select_columns([video_column] + ([label_column] if label_column else []))
    if isinstance(features.get(video_column), datasets.Video):
        rows = rows.cast_column(video_column, datasets.Video(decode=False))
    info = (builder.info.splits or {}).get(split)
    num_videos = info.num_examples if info is not None else None
    files = [str(path) for path in (builder.config.data_files or {}).get(split, [])]
    return StreamedVideos(rows, name, video_column, label_column, class_names, num_videos or None, files)


def _check_labels(feature, column: str, class_names: list[str] | None, name: str) -> list[str] | None:
    """Return the class names of a column of labels, if they are known without reading it."""
    kind = getattr(feature, "dtype", "")
    if isinstance(feature, datasets.ClassLabel):
        return names_of_classes(feature, class_names, name)
    if kind not in ("string", "large_string", "null") and "int" not in kind:
        raise DataError(f"Column {column!r} of {name} is of type {feature}; labels are class names or ids.")
    return class_names


def _name_of(video, place: str) -> str:
    path = video.get("path") if isinstance(video, dict) else video
    return describe_video(path) if path else place
