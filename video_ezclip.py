"""Frames of whatever a user calls a video: which ones to take, and how to get exactly those.

A file is decoded from its start to its end in display order, because going to a frame by its index gives a wrong one,
silently, for several common kinds of file (all of HMDB-51 among them).
"""

import io
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import av
import fsspec
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from PIL import Image, UnidentifiedImageError


IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")

FrameSampler = Callable[[int], Sequence[int]]


class VideoReadError(ValueError):
    """
    A video cannot be read.

    Args:
        video (`str`):
            The file, or a description of what was given.
        reason (`str`):
            What is wrong with it.
        remedy (`str`):
            What the user can do.
    """

    def __init__(self, video: str, reason: str, remedy: str):
        super().__init__(video, reason, remedy)
        self.video, self.reason, self.remedy = video, reason, remedy

    def __str__(self) -> str:
        return f"{self.video}: {self.reason} {self.remedy}"


def uniform_frame_indices(total_frames: int, num_frames: int) -> list[int]:
    """
    Published test sampling: the middle of each of `num_frames` equal segments ("_get_val_indices", 0-based).

    A video with no more frames than asked for repeats them in order; one frame is taken at half of the number.
    """
    if num_frames < 1:
        raise ValueError(f"`num_frames` must be at least 1, got {num_frames}.")
    if num_frames == 1:
        return [total_frames // 2]
    if total_frames <= num_frames:
        return [i * total_frames // num_frames for i in range(num_frames)]
    segment = total_frames / num_frames
    return [int(i * segment + (segment - 1) / 2) for i in range(num_frames)]


def random_frame_indices(total_frames: int, num_frames: int, rng: np.random.Generator) -> list[int]:
    """
    Published train sampling: a frame drawn from each of `num_frames` equal segments ("_sample_indices", 0-based).

    A video with no more frames than asked for gives all of them and random repeats, in order.
    """
    if total_frames <= num_frames:
        repeats = rng.integers(total_frames, size=num_frames - total_frames)
        return sorted([*range(total_frames), *repeats.tolist()])
    ticks = [i * total_frames // num_frames for i in range(num_frames + 1)]
    return rng.integers(ticks[:-1], ticks[1:]).tolist()


def is_single_video(videos) -> bool:
    """Whether `videos` is one video rather than a list of them: a list of frames is one, and so is a 4D array."""
    if isinstance(videos, (str, os.PathLike)):
        return True
    if isinstance(videos, (list, tuple)):
        return len(videos) > 0 and all(
            isinstance(frame, Image.Image) or getattr(frame, "ndim", None) in (2, 3) for frame in videos
        )
    return getattr(videos, "ndim", 4) == 4


def describe_video(video) -> str:
    """A name for `video` in messages and results: its path where it has one."""
    if isinstance(video, dict):
        video = video.get("path") or video.get("bytes")
    if isinstance(video, (str, os.PathLike)):
        return os.fspath(video)
    if isinstance(video, (bytes, bytearray)):
        return f"<{len(video)} bytes>"
    if hasattr(video, "shape"):
        return f"<array of shape {tuple(video.shape)}>"
    if hasattr(video, "read"):
        return str(getattr(video, "name", "<file object>"))
    return f"<{type(video).__name__}>"


def read_frames(video, sample: FrameSampler) -> tuple[np.ndarray, list[int]]:
    """
    Read frames of one video.

    Args:
        video (`str`, `os.PathLike`, `bytes`, file object, `dict`, `np.ndarray`, `torch.Tensor` or list of images):
            A path or URL of a video file, a folder of frame images (in numeric order), the bytes of a file, an open
            file, a `datasets` row `{"path", "bytes"}`, frames `(T, H, W, C)` or `(T, C, H, W)`, or a list of frames.
        sample (`Callable[[int], Sequence[int]]`):
            Gives the 0-based indices to take, for the number of frames of the video.

    Returns:
        `tuple[np.ndarray, list[int]]`: RGB frames `(T, H, W, 3)` as uint8, and their indices.

    Raises:
        [`VideoReadError`]: if it cannot be read. `TypeError`: if it is none of the above. `ValueError`: if `sample`
        asks for frames that the video does not have.
    """
    name = describe_video(video)
    if isinstance(video, dict):
        content = video.get("bytes")
        video = content if content is not None else video.get("path")
    if video is None:
        raise VideoReadError(name, "has neither a path nor bytes.", "Leave it out of the data set.")
    if isinstance(video, (str, os.PathLike)):
        return _read_path(os.fspath(video), sample)
    if isinstance(video, (bytes, bytearray)):
        return _decode(io.BytesIO(video), name, sample)
    if hasattr(video, "read"):
        if not (hasattr(video, "seekable") and video.seekable()):
            video = io.BytesIO(video.read())
        return _decode(video, name, sample)
    if isinstance(video, (np.ndarray, torch.Tensor, list, tuple)):
        return _take_array(video, name, sample)
    raise TypeError(
        f"A video is a path, URL, bytes, file object, `datasets` row, array, tensor or list of images; got "
        f"{type(video).__name__}."
    )


def is_url(path: str) -> bool:
    """Whether a path names a file system: "https://…", "hf://…"."""
    return re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", path) is not None


def is_frame(path: Path) -> bool:
    """Whether a file of a folder is a frame of a video: by its ending, and not hidden."""
    return path.suffix.lower() in IMAGE_EXTENSIONS and not path.name.startswith(".")


def _read_path(path: str, sample: FrameSampler) -> tuple[np.ndarray, list[int]]:
    if is_url(path):
        try:
            with fsspec.open(path, "rb") as remote:
                content = remote.read()
        except Exception as error:  # each file system has errors of its own
            raise VideoReadError(path, f"cannot be fetched ({error}).", "Check the address.") from error
        return _decode(io.BytesIO(content), path, sample)
    if os.path.isdir(path):
        return _read_frame_folder(path, sample)
    if not os.path.exists(path):
        raise VideoReadError(path, "does not exist.", "Check the path, or the root that it is relative to.")
    if os.path.getsize(path) == 0:
        raise VideoReadError(path, "is an empty file.", "Fetch it again.")
    # FFmpeg takes the beginning of "clip:1.mp4" for a protocol, but not of an absolute path.
    return _decode(os.path.abspath(path), path, sample)


def _read_frame_folder(folder: str, sample: FrameSampler) -> tuple[np.ndarray, list[int]]:
    def numeric_order(path: Path):
        return [int(part) if position % 2 else part for position, part in enumerate(re.split(r"(\d+)", path.stem))]

    images = [path for path in Path(folder).iterdir() if is_frame(path)]
    if not images:
        raise VideoReadError(
            folder, "is a folder without frame images.", f"Frames end in one of {', '.join(IMAGE_EXTENSIONS)}."
        )
    images.sort(key=numeric_order)
    indices = _take(sample, len(images))
    try:
        frames = [np.asarray(Image.open(images[index]).convert("RGB")) for index in indices]
    except (OSError, UnidentifiedImageError) as error:
        raise VideoReadError(folder, f"holds an unreadable frame ({error}).", "Extract its frames again.") from error
    return _stack(frames, folder), indices


def _take_array(video, name: str, sample: FrameSampler) -> tuple[np.ndarray, list[int]]:
    if isinstance(video, (list, tuple)):
        if not is_single_video(video):
            raise VideoReadError(name, "is not a list of frames.", "Give PIL images, or arrays (H, W, C).")
        indices = _take(sample, len(video))
        frames = [np.asarray(f.convert("RGB")) if isinstance(f, Image.Image) else np.asarray(f) for f in video]
        return _as_rgb(_stack([frames[index] for index in indices], name), name), indices
    if isinstance(video, torch.Tensor):
        video = video.detach().cpu()
        video = video.float() if video.is_floating_point() else video  # NumPy has no bfloat16
    array = np.asarray(video)
    if array.ndim != 4 or len(array) == 0:
        raise VideoReadError(name, "is not a video.", "Give frames (T, H, W, C) or (T, C, H, W), one at least.")
    indices = _take(sample, len(array))
    return _as_rgb(array[indices], name), indices


def _as_rgb(frames: np.ndarray, name: str) -> np.ndarray:
    """Frames (T, H, W), (T, H, W, C) or (T, C, H, W) of any usual type as (T, H, W, 3) uint8."""
    if frames.ndim == 3:
        frames = frames[..., None]
    if frames.shape[-1] not in (1, 3, 4):
        if frames.shape[1] not in (1, 3, 4):
            raise VideoReadError(name, "has no channel dimension of 1, 3 or 4.", "Give (T, H, W, C) or (T, C, H, W).")
        frames = frames.transpose(0, 2, 3, 1)
    if np.issubdtype(frames.dtype, np.floating):
        if not (frames.min() >= 0.0 and frames.max() <= 1.0):
            raise VideoReadError(
                name,
                f"holds floating point values from {frames.min():.3g} to {frames.max():.3g}.",
                "Give uint8 from 0 to 255, or floating point from 0 to 1.",
            )
        frames = np.rint(frames * 255.0)
    elif frames.dtype == bool or not (frames.min() >= 0 and frames.max() <= 255):
        raise VideoReadError(name, f"holds {frames.dtype} values, not levels from 0 to 255.", "Give uint8 frames.")
    frames = frames.astype(np.uint8)
    return frames[..., :3] if frames.shape[-1] > 1 else frames.repeat(3, axis=-1)


def _take(sample: FrameSampler, total_frames: int) -> list[int]:
    indices = [int(index) for index in sample(total_frames)]
    if not indices or min(indices) < 0 or max(indices) >= total_frames:
        raise ValueError(f"`sample` must give frames from 0 to {total_frames - 1}, one at least; it gave {indices}.")
    return indices


def _stack(frames: list[np.ndarray], name: str) -> np.ndarray:
    sizes = {frame.shape for frame in frames}
    if len(sizes) > 1:
        raise VideoReadError(name, f"changes its frame size ({sorted(sizes)}).", "Convert it to one size.")
    return np.stack(frames)


def _decode(source, name: str, sample: FrameSampler) -> tuple[np.ndarray, list[int]]:
    """Decode all of a video file, converting only the frames that are asked for.

    Which those are depends on the number of frames, which only decoding tells. What the header claims is taken for a
    start; where it turns out wrong, the file is decoded once more.
    """
    frames, indices, claimed, total = _decode_once(source, name, None, sample)
    if total == 0:
        raise VideoReadError(name, "has no frame that can be decoded.", "Fetch it again.")
    if total != claimed:
        frames, indices, _, total = _decode_once(source, name, total, sample)
    return _stack([frames[index] for index in indices], name), indices


def _decode_once(source, name: str, claimed: int | None, sample: FrameSampler):
    """One pass over a file that is `claimed` (by its header, if `None`) to have so many frames.

    Returns the frames by index, the indices that `sample` asked for, `claimed`, and the number of frames decoded.
    """
    frames, count = {}, 0
    try:
        if hasattr(source, "seek"):
            source.seek(0)
        # HMDB-51 has files whose metadata is not UTF-8.
        with av.open(source, metadata_errors="ignore") as container:
            stream = container.streams.best("video")
            if stream is None:
                raise VideoReadError(name, "has no video stream.", "Is it a sound file?")
            if claimed is None:
                claimed = stream.frames or _frames_by_duration(container, stream)
            # Parallel are the workers of a data loader, each with a file of its own.
            stream.thread_count = 1
            indices = _take(sample, claimed) if claimed else []
            wanted, reformatter = set(indices), VideoReformatter()
            for frame in container.decode(stream):
                if count in wanted:
                    # As a player does, and decord; PyAV leaves a phone's rotation to the caller.
                    image = reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
                    frames[count] = np.rot90(image, frame.rotation // 90)
                count += 1
    except (av.FFmpegError, UnicodeDecodeError) as error:
        reason = f"cannot be decoded beyond frame {count}" if count else "is not a video file that FFmpeg can open"
        raise VideoReadError(name, f"{reason} ({_message(error)}).", "Fetch it again, or re-encode it.") from error
    return frames, indices, claimed, count


def _frames_by_duration(container, stream) -> int:
    if not container.duration or not stream.average_rate:
        return 0
    return round(container.duration / av.time_base * stream.average_rate)


def _message(error: Exception) -> str:
    """FFmpeg's own words, without the path that PyAV repeats."""
    return getattr(error, "strerror", None) or str(error)
