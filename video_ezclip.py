"""Frames of whatever a user calls a video."""

import io
import os
import re
import urllib.parse
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import fsspec
import numpy as np
from PIL import Image, UnidentifiedImageError

from .decoding_ezclip import VideoReadError, decode_video
from .sampling_ezclip import FrameSampler, UnavailableFramesError, select_frames


IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


@dataclass
class VideoFramesMetadata:
    """
    What was read of a video. Fields have the names of `transformers.video_utils.VideoMetadata`, where that has them.

    Args:
        total_num_frames (`int`):
            Frames of the video; of a damaged one those that can be decoded.
        frames_indices (`list[int]`):
            Those that were taken, 0-based.
        height (`int`), width (`int`):
            Their size, upright.
        timestamps (`list[float]`, *optional*):
            Seconds from the beginning at which they are shown, where that is known.
        fps (`float`, *optional*):
            Average number of frames per second.
        duration (`float`, *optional*):
            Seconds from the first frame to the end of the last.
        variable_rate (`bool`, *optional*):
            Whether frames are shown for different times.
        codec (`str`, *optional*), video_backend (`str`, *optional*), access (`str`, *optional*):
            Of a file: FFmpeg's name of its codec, what decoded it, and whether by `"index"` (only what the frames
            depend on) or in `"sequence"`.
        problem (`str`, *optional*):
            Why these are not all frames of the video, if it is damaged.
    """

    total_num_frames: int
    frames_indices: list[int]
    height: int
    width: int
    timestamps: list[float] | None = None
    fps: float | None = None
    duration: float | None = None
    variable_rate: bool | None = None
    codec: str | None = None
    video_backend: str | None = None
    access: str | None = None
    problem: str | None = None


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
        # Names of files need not be UTF-8; what is printed and written must be.
        return os.fspath(video).encode("utf-8", errors="backslashreplace").decode("utf-8") or "''"
    if isinstance(video, (bytes, bytearray, memoryview)):
        return f"<{len(video)} bytes>"
    if hasattr(video, "shape"):
        return f"<array of shape {tuple(video.shape)}>"
    if hasattr(video, "read"):
        return str(getattr(video, "name", "<file object>"))
    return f"<{type(video).__name__}>"


def read_frames(
    video,
    sample: FrameSampler | None = None,
    *,
    start: float | None = None,
    end: float | None = None,
    fps: float | None = None,
    backend: str = "auto",
    allow_partial: bool = False,
    in_sequence: bool = False,
) -> tuple[np.ndarray, VideoFramesMetadata]:
    """
    Read frames of one video.

    Args:
        video (`str`, `os.PathLike`, `bytes`, file object, `dict`, `np.ndarray`, `torch.Tensor` or list of images):
            A path or URL of a video file, a folder of frame images (in numeric order), the bytes of a file, an open
            file, a `datasets` row `{"path", "bytes"}`, frames `(T, H, W, C)` or `(T, C, H, W)`, or a list of frames.
        sample (`Callable[[int], Sequence[int]]`, *optional*):
            From the number of frames to the 0-based indices to take; the same number gives the same indices. By
            default all are taken.
        start (`float`, *optional*), end (`float`, *optional*):
            Seconds: `sample` sees only the frames on show between `start` and `end`.
        fps (`float`, *optional*):
            Frames per second: `sample` sees only the frames on show at each tick.
        backend (`str`, *optional*, defaults to `"auto"`):
            What decodes files: `"pyav"`, `"decord"`, `"torchcodec"`, or `"auto"` for the fastest that is exact.
        allow_partial (`bool`, *optional*, defaults to `False`):
            Whether to go on with what can be decoded of a damaged or incomplete file, and say so in `problem`.
        in_sequence (`bool`, *optional*, defaults to `False`):
            Whether to decode all of a file even where a part is enough, which finds all damage.

    Returns:
        `tuple[np.ndarray, VideoFramesMetadata]`: RGB frames `(T, H, W, 3)` as uint8, and which they are.

    Raises:
        [`VideoReadError`]: if it cannot be read, or has no such frames. `TypeError`: if it is none of the above.
        `ValueError`: if an argument is out of range, or `sample` gives an index that is not there. `ImportError`: if
        the backend is not installed.
    """
    name = describe_video(video)
    select = partial(select_frames, sample=sample, start=start, end=end, fps=fps)
    if isinstance(video, dict):
        row, content = video, video.get("bytes")
        video = content if content is not None else row.get("path")
        if video is None and not {"path", "bytes"} & set(row):
            name = f"<row with {sorted(row)}>"
            if "video" in row:
                raise VideoReadError(name, "is a row of a data set.", "Give the video of it: `row['video']`.")
    if video is None:
        raise VideoReadError(name, "has neither a path nor bytes.", "Leave it out of the data set.")
    if isinstance(video, (str, os.PathLike)):
        video = local_path(os.fspath(video))
        if os.path.isdir(video):
            return _read_frame_folder(video, name, select)
    elif isinstance(video, (list, tuple)) or (hasattr(video, "shape") and not isinstance(video, memoryview)):
        return _take_array(video, name, select)
    source = open_source(video, name)
    return _read_file(source, name, select, backend=backend, allow_partial=allow_partial, in_sequence=in_sequence)


def is_url(path: str) -> bool:
    """Whether a path names a file system: "https://…", "hf://…"."""
    return re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", path) is not None


def is_frame(path: Path) -> bool:
    """Whether a file of a folder is a frame of a video: by its ending, and not hidden."""
    return path.suffix.lower() in IMAGE_EXTENSIONS and not path.name.startswith(".")


def local_path(path: str) -> str:
    """The path that a "file:" URL means; any other path or URL as it is."""
    if re.match("file://(localhost)?/", path, re.IGNORECASE) is None:
        return path
    # Names of files are bytes; those that are no UTF-8 are what `os.fsdecode` makes of them.
    return urllib.parse.unquote(urllib.parse.urlsplit(path).path, errors="surrogateescape")


def open_source(video, name: str):
    """A file as what decoders take: an absolute path, or a seekable file object."""
    if isinstance(video, (bytes, bytearray, memoryview)):
        return io.BytesIO(video)
    if hasattr(video, "read"):
        is_seekable = hasattr(video, "seekable") and video.seekable()
        content = video.read(0) if is_seekable else video.read()
        if isinstance(content, str):
            raise VideoReadError(name, "is open as text.", 'Open it in binary mode ("rb").')
        return video if is_seekable else io.BytesIO(content)
    if not isinstance(video, str):
        raise TypeError(
            "A video is a path, URL, bytes, file object, `datasets` row, array, tensor or list of images; got "
            f"{type(video).__name__}. (A decoder is what `datasets` gives; cast its column to `Video(decode=False)`.)"
        )
    if is_url(video):
        try:
            with fsspec.open(video, "rb") as remote:
                return io.BytesIO(remote.read())
        except Exception as error:  # each file system has errors of its own
            raise VideoReadError(name, f"cannot be fetched ({_cause(error)}).", "Check the address.") from error
    if not os.path.exists(video):
        raise VideoReadError(name, "does not exist.", "Check the path, or the root that it is relative to.")
    if not os.path.isfile(video):
        raise VideoReadError(name, "is not a regular file.", "Give its bytes, or an open file.")
    if os.path.getsize(video) == 0:
        raise VideoReadError(name, "is an empty file.", "Fetch it again.")
    # FFmpeg takes the beginning of "clip:1.mp4" for a protocol, but not of an absolute path.
    return os.path.abspath(video)


def _cause(error: BaseException) -> str:
    """Why a URL cannot be read: what file systems say of it themselves is often the address alone."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, FileNotFoundError) and error.errno is None:
        return "it is not there"
    return re.sub(r",? url=.*", "", str(error)) or type(error).__name__


def _read_file(source, name: str, select, **kwargs) -> tuple[np.ndarray, VideoFramesMetadata]:
    def choose(timestamps):
        return select(timestamps, len(timestamps))

    video = decode_video(source, name, choose, **kwargs)
    frames = _stack(video.images, name)
    intervals = np.diff(video.timestamps)
    last = 1 / video.fps if video.fps else float(np.median(intervals)) if len(intervals) else 0.0
    return frames, VideoFramesMetadata(
        total_num_frames=len(video.timestamps),
        frames_indices=video.indices,
        height=frames.shape[1],
        width=frames.shape[2],
        timestamps=video.timestamps[video.indices].tolist(),
        fps=video.fps,
        duration=float(video.timestamps[-1] - video.timestamps[0]) + last,
        # A millisecond, the unit of some containers, is no difference.
        variable_rate=bool(len(intervals) and np.ptp(intervals) > max(0.0021, 0.1 * np.median(intervals))),
        codec=video.codec,
        video_backend=video.backend,
        access=video.access,
        problem=video.problem,
    )


def _read_frame_folder(folder: str, name: str, select) -> tuple[np.ndarray, VideoFramesMetadata]:
    def numeric_order(path: Path):
        return [int(part) if position % 2 else part for position, part in enumerate(re.split(r"(\d+)", path.stem))]

    images = [path for path in Path(folder).iterdir() if is_frame(path)]
    if not images:
        raise VideoReadError(
            name, "is a folder without frame images.", f"Frames end in one of {', '.join(IMAGE_EXTENSIONS)}."
        )
    images.sort(key=numeric_order)
    indices = _select(select, len(images), name)
    try:
        frames = [np.asarray(Image.open(images[index]).convert("RGB")) for index in indices]
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise VideoReadError(name, f"holds an unreadable frame ({error}).", "Extract its frames again.") from error
    frames = _stack(frames, name)
    return frames, VideoFramesMetadata(len(images), indices, *frames.shape[1:3])


def _take_array(video, name: str, select) -> tuple[np.ndarray, VideoFramesMetadata]:
    total_frames = len(video)
    if isinstance(video, (list, tuple)):
        if not is_single_video(video):
            raise VideoReadError(name, "is not a list of frames.", "Give PIL images, or arrays (H, W, C).")
        indices = _select(select, total_frames, name)
        frames = [video[index] for index in indices]
        frames = [np.asarray(frame.convert("RGB") if isinstance(frame, Image.Image) else frame) for frame in frames]
        frames = _stack(frames, name)
    else:
        if hasattr(video, "detach"):  # a tensor; NumPy has no bfloat16
            video = video.detach().cpu()
            video = video.float() if video.is_floating_point() else video
        array = np.asarray(video)
        if array.ndim != 4 or 0 in array.shape:
            raise VideoReadError(name, "is not a video.", "Give frames (T, H, W, C) or (T, C, H, W), one at least.")
        indices = _select(select, total_frames, name)
        frames = array[indices]
    frames = _as_rgb(frames, name)
    return frames, VideoFramesMetadata(total_frames, indices, *frames.shape[1:3])


def _select(select, total_frames: int, name: str) -> list[int]:
    """Indices of frames that have no times."""
    try:
        return select(None, total_frames)
    except UnavailableFramesError as error:
        raise VideoReadError(name, str(error), "Give a video file.") from error


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
    elif frames.dtype.kind not in "iu" or not (frames.min() >= 0 and frames.max() <= 255):
        raise VideoReadError(name, f"holds {frames.dtype} values, not levels from 0 to 255.", "Give uint8 frames.")
    frames = frames.astype(np.uint8)
    return frames[..., :3] if frames.shape[-1] > 1 else frames.repeat(3, axis=-1)


def _stack(frames: list[np.ndarray], name: str) -> np.ndarray:
    sizes = {frame.shape for frame in frames}
    if len(sizes) > 1:
        raise VideoReadError(name, f"changes its frame size ({sorted(sizes)}).", "Convert it to one size.")
    return np.stack(frames)
