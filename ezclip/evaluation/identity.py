"""What a result depends on, by content: weights, pixels, texts, videos and options."""

import hashlib
import os
from collections.abc import Callable, Container, Iterable
from pathlib import Path

import pyarrow
import pyarrow.compute
import torch

from ezclip.data.sources import VideoSplit
from ezclip.data.streaming import StreamedVideos
from ezclip.systems.loading import flatten_config
from ezclip.utils.digests import digest, digest_tensors
from ezclip.utils.settings import as_json
from modeling_ezclip import EZClipModel
from processing_ezclip import EZClipProcessor
from video_ezclip import is_url, local_path


SAMPLED_BYTES = 4096  # of the beginning and the end of a video that is held as bytes


def describe_result(
    model_description: dict,
    processor: EZClipProcessor,
    read: Callable,
    videos: dict[str, VideoSplit | StreamedVideos | None],
    **options,
) -> dict:
    """
    Describe everything that a result depends on. Training, tests, comparison and prediction all use this.

    Two results with equal descriptions are the same, up to rounding. `check_unchanged` names what differs.

    Args:
        model_description (`dict`):
            The model, from [`describe_model`].
        processor ([`EZClipProcessor`]):
            The processor of videos and texts.
        read (`Callable`):
            The reader of videos, an [`IsolatedReader`] or a function.
        videos (`dict[str, VideoSplit | StreamedVideos | None]`):
            The videos by what they are for, such as "train". `None` is left out.
        options:
            Every option that matters, and digests of the texts, in types that JSON has.

    Returns:
        `dict`: as JSON reads it back.
    """
    reader = getattr(read, "kwargs", {})
    return as_json(
        {
            **model_description,
            "processor": describe_processor(processor),
            "video_backend": reader.get("backend", "auto"),
            "allow_partial": reader.get("allow_partial", False),
            "square_pixels": reader.get("square_pixels", False),
            **{f"videos of {name}": describe_videos(split) for name, split in videos.items() if split is not None},
            **options,
        }
    )


def describe_model(model: EZClipModel, left_out: Container[str] = ()) -> dict:
    """
    Return the configuration of a model, and a digest of its weights, the frozen ones too.

    `left_out` are names of weights that were not loaded but follow the seed, see [`load_model`].
    """
    weights = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name not in left_out and isinstance(tensor, torch.Tensor)  # quantised modules have other values too
    }
    return {"model_config": flatten_config(model.config), "weights": digest_tensors(weights)}


def describe_processor(processor: EZClipProcessor) -> dict:
    """Return the settings of frames and pixels, and a digest of the tokenizer."""
    image_processor = processor.image_processor.to_dict()
    tokenizer = getattr(processor.tokenizer, "backend_tokenizer", None)
    vocabulary = tokenizer.to_str() if tokenizer is not None else sorted(processor.tokenizer.get_vocab().items())
    return {
        "image_processor": {name: value for name, value in image_processor.items() if not name.endswith("_type")},
        "tokenizer": digest(vocabulary),
        "num_frames": processor.num_frames,
        "sampling": processor.sampling,
        "split_camel_case": processor.split_camel_case,
        "use_published_crop": processor.use_published_crop,
    }


def describe_videos(source: VideoSplit | StreamedVideos) -> dict:
    """
    Return the number of videos, and digests of their names and labels, their classes and their files.

    A stream has only the names of its files here. Its parts of predictions have the rest, see [`describe_shard`].
    """
    if isinstance(source, StreamedVideos):
        columns = [source.video_column, source.label_column]
        return {"files": digest(source.files), "columns": columns, "classes": digest(source.class_names)}
    names, files = hashlib.sha256(), hashlib.sha256()
    for batch in source.videos.with_format("arrow").iter(batch_size=10_000):
        for name, label in zip(batch["name"].to_pylist(), batch["label"].to_pylist()):
            names.update(f"{name!r} {label}\n".encode())
        for description in _describe_files(batch["video"]):
            files.update(f"{description}\n".encode())
    return {
        "number": len(source),
        "names and labels": names.hexdigest()[:16],
        "classes": digest(source.class_names),
        "files (size and time)": files.hexdigest()[:16],
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
