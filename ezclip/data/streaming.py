"""Videos of a data set that need not fit on the disk: read from the Hub, or a folder, as they are needed."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import datasets

from ezclip.constants import UNKNOWN_LABEL
from ezclip.data.labels import read_label_list
from ezclip.data.sources import choose_split, choose_video_column, loading_error, names_of_classes
from ezclip.errors import DataError
from processing_ezclip import label_key
from video_ezclip import describe_video


class VideoRow(NamedTuple):
    """
    A video of a data set.

    Args:
        video (`str` or `dict`):
            What [`read_frames`] reads: a path, or `{"path", "bytes"}`.
        name (`str`):
            What messages and results call it.
        label (`str`, *optional*):
            Its class, where that is known.
    """

    video: str | dict | None
    name: str
    label: str | None


class StreamedVideos:
    """
    Videos of a split, in the file shards of its data set.

    Args:
        rows (`datasets.IterableDataset`):
            What to read.
        name (`str`):
            The data set, for messages.
        video_column (`str`):
            Column of paths or `{"path", "bytes"}`.
        label_column (`str`, *optional*):
            Column of class names, or of ids of `class_names`.
        class_names (`list[str]`, *optional*):
            The classes, where the data set or a label list names them.
        num_videos (`int`, *optional*):
            How many there are, where the data set says so.
        files (`list[str]`, *optional*):
            The files that hold them.
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
    def num_shards(self) -> int:
        return self.dataset.num_shards

    def open_shard(self, shard: int) -> "ShardReader":
        """The videos of a shard, by position; to be asked for in ascending order."""
        return ShardReader(self, shard)

    def read_shard(self, shard: int, start: int = 0) -> Iterator[VideoRow]:
        """
        The videos of a shard.

        Args:
            shard (`int`):
                Its number, below `num_shards`.
            start (`int`, *optional*, defaults to 0):
                How many of its videos to pass over.

        Raises:
            [`DataError`]: if it cannot be read, or a label is not one of the classes.
        """
        rows = self.dataset.shard(num_shards=self.num_shards, index=shard).skip(start)
        position = start
        iterator = iter(rows)
        while True:
            try:
                row = next(iterator)
            except StopIteration:
                return
            except Exception as error:  # the readers of many formats, and the network, have errors of their own
                raise DataError(
                    f"--dataset_name {self.name}: reading ends at row {position} of shard {shard} "
                    f"({type(error).__name__}: {error}). Predictions that are written stay; the same command goes on."
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
            raise DataError(f"{self.name}, {place}: the label is {value!r}; labels are class names or ids.")
        if not self.class_names:
            return None
        if not 0 <= value < len(self.class_names):
            raise DataError(
                f"{self.name}, {place}: the class id is {value}, those of the classes are 0 to "
                f"{len(self.class_names) - 1}. Is it the label list of this data set?"
            )
        return self.class_names[value]


class ShardReader:
    """Gives the videos of a shard by ascending position, and holds one of them."""

    def __init__(self, source: StreamedVideos, shard: int):
        self._source, self._shard = source, shard
        self._rows, self._row, self._position = None, None, -1

    def has(self, position: int) -> bool:
        """Whether the shard goes as far as `position`, which must not lie before the last one asked for."""
        if self._rows is None:
            self._rows, self._position = self._source.read_shard(self._shard, start=position), position - 1
        while self._position < position:
            if (row := next(self._rows, None)) is None:
                return False
            self._row, self._position = row, self._position + 1
        return True

    def row(self, position: int) -> VideoRow:
        """The video at `position`, which `has` was asked for last."""
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
    A data set of the Hub, or a local folder of its files, read while it is used. Nothing of it is kept on the disk.

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
            Column of class labels, names or ids; `None` for videos without labels.
        label_list (`str` or `Path`, *optional*):
            Class names for ids without names.

    Raises:
        [`DataError`]: if it cannot be opened, split or video column are missing, or labels are of another kind.
    """
    class_names = read_label_list(label_list) if label_list is not None else None
    try:
        builder = datasets.load_dataset_builder(name, config_name)
        if hasattr(builder.config, "decode_num_threads"):
            builder.config.decode_num_threads = 0  # else videos of the Hub are decoded before one can say not to
        splits = builder.as_streaming_dataset()
        split = choose_split(splits, split, name)
        rows = splits[split]
        # Some formats do not tell types, and the first row would not for all.
        features = rows.features or {}
        columns = list(features) or list(next(iter(rows), {}))
    except DataError:
        raise
    except Exception as error:  # the readers of many formats have errors of their own
        raise loading_error(name, error) from None
    video_column = choose_video_column(features, columns, video_column, name)
    if label_column not in columns:
        label_column, class_names = None, None
    elif label_column in features:
        class_names = _check_labels(features[label_column], label_column, class_names, name)
    rows = rows.select_columns([video_column] + ([label_column] if label_column else []))
    if isinstance(features.get(video_column), datasets.Video):
        rows = rows.cast_column(video_column, datasets.Video(decode=False))
    info = (builder.info.splits or {}).get(split)
    num_videos = info.num_examples if info is not None else None
    files = [str(path) for path in (builder.config.data_files or {}).get(split, [])]
    return StreamedVideos(rows, name, video_column, label_column, class_names, num_videos or None, files)


def _check_labels(feature, column: str, class_names: list[str] | None, name: str) -> list[str] | None:
    """The classes of a column of labels, where they are known without reading it."""
    kind = getattr(feature, "dtype", "")
    if isinstance(feature, datasets.ClassLabel):
        return names_of_classes(feature, class_names, name)
    if kind not in ("string", "large_string", "null") and "int" not in kind:
        raise DataError(f"Column {column!r} of {name} is of type {feature}; labels are class names or ids.")
    return class_names


def _name_of(video, place: str) -> str:
    path = video.get("path") if isinstance(video, dict) else video
    return describe_video(path) if path else place
