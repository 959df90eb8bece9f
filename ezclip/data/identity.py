"""What tells the videos of a source from others: names, labels, classes, and the size and time of files."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import pyarrow
import pyarrow.compute

from ezclip.data.sources import VideoSplit
from ezclip.data.streaming import StreamedVideos
from ezclip.utils.digests import digest
from video_ezclip import is_url, local_path


MAX_DESCRIBED = 10_000  # videos with a digest of their own
SAMPLED_BYTES = 4096  # of the beginning and the end of a video that is held as bytes


def describe_videos(source: VideoSplit | StreamedVideos) -> dict:
    """
    Return the number of videos, their classes, and digests of their names and labels and of their content.

    The content is the size and the time of a file. Up to `MAX_DESCRIBED` videos have digests of their own, so that the
    changed ones can be counted.

    A stream has only the names of its files here. Its parts of predictions have the rest, see [`describe_shard`].
    """
    if isinstance(source, StreamedVideos):
        columns = [source.video_column, source.label_column]
        return {"files": digest(source.files), "columns": columns, "classes": source.class_names}
    names, files = hashlib.sha256(), []
    for batch in source.videos.with_format("arrow").iter(batch_size=10_000):
        for name, label in zip(batch["name"].to_pylist(), batch["label"].to_pylist()):
            names.update(f"{name!r} {label}\n".encode())
        for description in _describe_files(batch["video"]):
            files.append(hashlib.sha256(f"{description}".encode()).hexdigest()[:8])
    return {
        "number": len(source),
        "names and labels": names.hexdigest()[:16],
        "classes": source.class_names,
        "content": files if len(files) <= MAX_DESCRIBED else digest(files),
    }


def describe_shard(source: VideoSplit | StreamedVideos, shard: int) -> str:
    """Return the size and the time of the file of a shard, if shards are files; "" otherwise."""
    if isinstance(source, StreamedVideos) and source.num_shards == len(source.files):
        return repr(_describe_path(source.files[shard]))
    return ""


def _describe_files(column: pyarrow.ChunkedArray) -> Iterable:
    """Return what tells a video from another: size and time of a file, or the length and both ends of its bytes."""
    if not pyarrow.types.is_struct(column.type):
        return [_describe_path(path) for path in column.to_pylist()]
    content = pyarrow.compute.struct_field(column, "bytes")
    lengths = pyarrow.compute.binary_length(content).to_pylist()
    ends = [
        pyarrow.compute.binary_slice(content, start, stop).to_pylist()
        for start, stop in ((0, SAMPLED_BYTES), (-SAMPLED_BYTES, None))
    ]
    paths = pyarrow.compute.struct_field(column, "path").to_pylist()
    return [
        _describe_path(path)
        if length is None
        else (length, *(hashlib.sha256(own or b"").hexdigest() for own in (first, last)))
        for path, length, first, last in zip(paths, lengths, *ends)
    ]


def _describe_path(path: str | None):
    """Return the size and the modification time of a file, or of each file in a folder of frames."""
    if path is None:
        return None
    path = local_path(path)
    if is_url(path):
        return path
    try:
        if os.path.isdir(path):
            with os.scandir(path) as entries:
                return sorted((entry.name, *_size_and_time(entry.stat())) for entry in entries)
        return _size_and_time(Path(path).stat())
    except OSError:
        return None


def _size_and_time(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns
