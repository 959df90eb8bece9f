"""Read videos of any form as arrays of frames, and sample their frames."""

import numbers
import operator
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image


try:
    from .decoding_ezclip import (
        Clip,
        DecodingOptions,
        FrameTransform,
        UnavailableFramesError,
        as_upright_rgb,
        decode_file,
    )
    from .files_ezclip import (
        DEFAULT_LIMITS,
        IMAGE_EXTENSIONS,
        ReadLimits,
        VideoReadError,
        check_pixels,
        describe_video,
        is_frame,
        local_path,
        open_picture,
        open_source,
    )
except ImportError:
    if __package__:  # in a remote-code folder, a missing dependency must keep its own message
        raise
    from decoding_ezclip import (
        Clip,
        DecodingOptions,
        FrameTransform,
        UnavailableFramesError,
        as_upright_rgb,
        decode_file,
    )
    from files_ezclip import (
        DEFAULT_LIMITS,
        IMAGE_EXTENSIONS,
        ReadLimits,
        VideoReadError,
        check_pixels,
        describe_video,
        is_frame,
        local_path,
        open_picture,
        open_source,
    )


MAX_FPS = 1000
MAX_TICKS = 10_000_000  # of `fps`
ROUNDING = 1e-6  # of times, in seconds

# Maps the number of frames to the 0-based indices to take. It may be called more than once for a video, so it must
# return the same indices for the same number.
FrameSampler = Callable[[int], Sequence[int]]
# Maps the display times of all frames, or None if unknown, and their number to the 0-based indices to take.
FrameSelector = Callable[[np.ndarray | None, int], list[int]]


@dataclass
class VideoFramesMetadata:
    """Metadata of the frames read from a video, with the field names of `transformers.video_utils.VideoMetadata`."""

    total_num_frames: int  # of the video; of a damaged one, the number that can be decoded
    frames_indices: list[int]  # 0-based indices of the frames that were taken
    height: int  # of the upright frames
    width: int
    timestamps: list[float] | None = None  # display times of the taken frames, in seconds from the beginning, if known
    fps: float | None = None  # average
    duration: float | None = None  # seconds from the first frame to the end of the last
    variable_rate: bool | None = None  # whether frames are shown for different lengths of time
    codec: str | None = None  # of a file, FFmpeg's name
    video_backend: str | None = None  # the backend that decoded it
    access: str | None = None  # "index": only frames that the taken ones depend on were decoded; "sequence": all
    problem: str | None = None  # why a damaged video gave only a part of its frames
    pixel_aspect_ratio: float | None = None  # width of a stored pixel over its height; of a file, before any rotation
    scaled_sizes: list[tuple[int, int]] | None = None  # other sizes (H, W) within the file, scaled to the first size


# ---- Read frames ----


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
    square_pixels: bool = False,
    transform: FrameTransform | None = None,
    limits: ReadLimits = DEFAULT_LIMITS,
) -> tuple[np.ndarray, VideoFramesMetadata]:
    """
    Read frames of one video, upright.

    A file whose frames change their size gives all of them in its first size. Stored pixels stay as they are, as in
    decord and PyAV, even if they are not square: a player would show a 160 x 120 file with a pixel aspect ratio of 4:3
    as 213 x 120.

    Args:
        video (`str`, `os.PathLike`, `bytes`, file object, `dict`, `np.ndarray`, `torch.Tensor` or list of images):
            A path or URL of a video file, a folder of frame images (in numeric order), the bytes of a file, an open
            file, a `datasets` row `{"path", "bytes"}`, frames `(T, H, W, C)` or `(T, C, H, W)`, or a list of frames.
        sample (`Callable[[int], Sequence[int]]`, *optional*):
            Maps the number of frames to the 0-based indices to take, always the same for the same number. By default
            all frames are taken.
        start (`float`, *optional*), end (`float`, *optional*):
            Seconds. `sample` sees only the frames on display between `start` and `end`.
        fps (`float`, *optional*):
            Frames per second. `sample` sees only the frame on display at each tick.
        backend (`str`, *optional*, defaults to `"auto"`):
            Decoder of video files: `"pyav"`, `"decord"`, `"torchcodec"`, or `"auto"` for the fastest exact one.
        allow_partial (`bool`, *optional*, defaults to `False`):
            Whether to accept the decodable part of a damaged or incomplete file. `problem` then says what is missing.
        in_sequence (`bool`, *optional*, defaults to `False`):
            Whether to decode the whole file even if a part is enough. This finds all damage.
        square_pixels (`bool`, *optional*, defaults to `False`):
            Whether to scale the width of a file by its pixel aspect ratio, as a player does.
        transform (`Callable[[np.ndarray], np.ndarray]`, *optional*):
            Maps a frame `(H, W, 3)`, uint8, to what is returned of it, such as a crop. It is called as soon as a frame
            is decoded, so that no more than one full-size frame is held.
        limits ([`ReadLimits`], *optional*):
            What reading may take, and where it may reach.

    Returns:
        `tuple[np.ndarray, VideoFramesMetadata]`: RGB frames `(T, H, W, 3)` as uint8, or what `transform` made of them,
        and the metadata of the video.

    Raises:
        [`VideoReadError`]: if the video cannot be read, lacks the frames, or exceeds a limit. `TypeError`: if `video`
        has another type. `ValueError`: if an argument is out of range, or `sample` returns an invalid index.
        `ImportError`: if the backend is not installed.
    """
    name = describe_video(video)
    select = partial(select_frames, sample=sample, start=start, end=end, fps=fps)
    clip = Clip(name, transform, limits)
    if isinstance(video, dict):
        row, content = video, video.get("bytes")
        video = content if content is not None else row.get("path")
        if video is None and not {"path", "bytes"} & set(row):
            name = f"<row with {sorted(row)}>"
            if "video" in row:
                raise VideoReadError(name, "is a row of a data set.", "Pass its video: `row['video']`.")
    if video is None:
        raise VideoReadError(name, "has neither a path nor bytes.", "Leave it out of the data set.")
    if isinstance(video, (str, os.PathLike)):
        video = local_path(os.fspath(video))
        if os.path.isdir(video):
            return _read_frame_folder(video, clip, select)
    elif isinstance(video, (list, tuple)) or (hasattr(video, "shape") and not isinstance(video, memoryview)):
        return _read_array(video, clip, select)
    options = DecodingOptions(backend, allow_partial, in_sequence, square_pixels, limits)
    return _read_file(open_source(video, name, limits), clip, select, options)


def is_single_video(videos) -> bool:
    """Return whether `videos` is one video rather than several; a list of frames and a 4D array are one video."""
    if isinstance(videos, (str, os.PathLike)):
        return True
    if isinstance(videos, (list, tuple)):
        return len(videos) > 0 and all(isinstance(v, Image.Image) or getattr(v, "ndim", 0) in (2, 3) for v in videos)
    return getattr(videos, "ndim", 4) == 4


def _read_file(
    source, clip: Clip, select: FrameSelector, options: "DecodingOptions"
) -> tuple[np.ndarray, VideoFramesMetadata]:
    video = decode_file(source, clip, lambda timestamps: select(timestamps, len(timestamps)), options)
    intervals = np.diff(video.timestamps)
    last = 1 / video.fps if video.fps else float(np.median(intervals)) if len(intervals) else 0.0
    duration = float(video.timestamps[-1] - video.timestamps[0]) + last
    # Ignore differences of a millisecond, the time unit of some containers.
    is_variable = bool(len(intervals) and np.ptp(intervals) > max(0.0021, 0.1 * np.median(intervals)))
    frames = clip.frames(video.indices)
    return frames, VideoFramesMetadata(
        len(video.timestamps),
        video.indices,
        *clip.size,
        timestamps=video.timestamps[video.indices].tolist(),
        fps=len(video.timestamps) / duration if is_variable else video.fps,
        duration=duration,
        variable_rate=is_variable,
        codec=video.codec,
        video_backend=video.backend,
        access=video.access,
        problem=video.problem,
        pixel_aspect_ratio=video.pixel_aspect_ratio,
        scaled_sizes=video.scaled_sizes,
    )


def _read_frame_folder(folder: str, clip: Clip, select: FrameSelector) -> tuple[np.ndarray, VideoFramesMetadata]:
    def numeric_order(path: Path):
        return [int(part) if position % 2 else part for position, part in enumerate(re.split(r"(\d+)", path.stem))]

    name, paths = clip.name, sorted((path for path in Path(folder).iterdir() if is_frame(path)), key=numeric_order)
    if not paths:
        raise VideoReadError(name, "is a folder without frame images.", f"Add {', '.join(IMAGE_EXTENSIONS)} files.")
    indices = _select_untimed(select, len(paths), name)
    for index in dict.fromkeys(indices):
        try:
            with open_picture(paths[index], f"{name}/{paths[index].name}", clip.limits) as picture:
                image = as_upright_rgb(picture)
        except VideoReadError:
            raise
        except Exception as error:  # damaged images raise errors of many types
            raise VideoReadError(name, f"has an unreadable frame ({error}).", "Extract its frames again.") from error
        clip.add(index, image)
    return clip.frames(indices), VideoFramesMetadata(len(paths), indices, *clip.size)


def _read_array(video, clip: Clip, select: FrameSelector) -> tuple[np.ndarray, VideoFramesMetadata]:
    if isinstance(video, (list, tuple)):
        if not is_single_video(video):
            raise VideoReadError(clip.name, "is not a list of frames.", "Pass PIL images, or arrays (H, W, C).")
        frames = video
    else:
        if hasattr(video, "detach"):  # a tensor; NumPy has no bfloat16
            video = video.detach().cpu()
            video = video.float() if video.is_floating_point() else video
        frames = np.asarray(video)
        if frames.ndim != 4 or 0 in frames.shape:
            raise VideoReadError(
                clip.name, "is not a video.", "Pass frames (T, H, W, C) or (T, C, H, W), at least one."
            )
    indices = _select_untimed(select, len(frames), clip.name)
    for index in dict.fromkeys(indices):
        frame = frames[index]
        if isinstance(frame, Image.Image):
            check_pixels(*frame.size, clip.name, clip.limits)
            frame = as_upright_rgb(frame)
        clip.add(index, _as_rgb(np.asarray(frame)[None], clip.name)[0])
    return clip.frames(indices), VideoFramesMetadata(len(frames), indices, *clip.size)


def _select_untimed(select: FrameSelector, total_frames: int, name: str) -> list[int]:
    try:
        return select(None, total_frames)
    except UnavailableFramesError as error:
        raise VideoReadError(name, str(error), "Pass a video file.") from error


def _as_rgb(frames: np.ndarray, name: str) -> np.ndarray:
    """Convert frames (T, H, W), (T, H, W, C) or (T, C, H, W) of any common dtype to (T, H, W, 3) uint8."""
    if frames.ndim == 3:
        frames = frames[..., None]
    if frames.shape[-1] not in (1, 3, 4):
        if frames.shape[1] not in (1, 3, 4):
            raise VideoReadError(name, "has no channel dimension of 1, 3 or 4.", "Pass frames (T, H, W, 3).")
        frames = frames.transpose(0, 2, 3, 1)
    if np.issubdtype(frames.dtype, np.floating):
        low, high = frames.min(), frames.max()
        if not (low >= 0.0 and high <= 1.0):
            reason = f"has floating point values from {low:.3g} to {high:.3g}, not from 0 to 1."
            raise VideoReadError(name, reason, "Pass uint8 frames, or rescale these.")
        frames = np.rint(frames * 255.0)
    elif frames.dtype.kind not in "iu" or not (frames.min() >= 0 and frames.max() <= 255):
        raise VideoReadError(name, f"has {frames.dtype} values, not levels from 0 to 255.", "Pass uint8 frames.")
    frames = frames.astype(np.uint8)
    return frames[..., :3] if frames.shape[-1] > 1 else frames.repeat(3, axis=-1)


# ---- Sample frames ----


def uniform_frame_indices(total_frames: int, num_frames: int, num_clips: int = 1) -> list[int]:
    """
    Return the published test sampling: the middle of `num_frames` equal segments ("_get_val_indices", 0-based).

    A video of at most `num_frames` frames repeats them in order. A single frame is taken at half of the number. For
    multi-view evaluation, clip k takes the point (2k + 1) / (2 num_clips) of each segment, and the `num_clips *
    num_frames` indices are ordered clip by clip.
    """
    _check_count("num_frames", num_frames)
    _check_count("num_clips", num_clips)
    if num_frames == 1 and num_clips == 1:
        return [total_frames // 2]
    if total_frames <= num_frames:
        return [i * total_frames // num_frames for i in range(num_frames)] * num_clips
    segment = total_frames / num_frames
    points = [(2 * clip + 1) / (2 * num_clips) for clip in range(num_clips)]
    # `i * segment` would be rounded differently, and give another frame for some numbers.
    return [int(i * total_frames / num_frames + (segment - 1) * point) for point in points for i in range(num_frames)]


def random_frame_indices(total_frames: int, num_frames: int, seed) -> list[int]:
    """
    Return the published train sampling: a random frame of `num_frames` equal segments ("_sample_indices", 0-based).

    A video of at most `num_frames` frames gives all of them and random repeats, in order. `seed` is anything that
    `numpy.random.default_rng` accepts.
    """
    _check_count("num_frames", num_frames)
    rng = np.random.default_rng(seed)
    if total_frames <= num_frames:
        repeats = rng.integers(total_frames, size=num_frames - total_frames)
        return sorted([*range(total_frames), *repeats.tolist()])
    ticks = [i * total_frames // num_frames for i in range(num_frames + 1)]
    return rng.integers(ticks[:-1], ticks[1:]).tolist()


def tear_frame_indices(total_frames: int, num_frames: int) -> list[int]:
    """Return TEAR's sampling ("get_indices"): the middle of `num_frames` equal segments, rounded down."""
    _check_count("num_frames", num_frames)
    segment = total_frames / num_frames
    return [int(segment / 2 + segment * i) for i in range(num_frames)]


def select_frames(
    timestamps: np.ndarray | None,
    total_frames: int,
    sample: FrameSampler | None = None,
    start: float | None = None,
    end: float | None = None,
    fps: float | None = None,
) -> list[int]:
    """
    Select with `sample` from the frames that `start`, `end` and `fps` leave. Return their indices.

    `timestamps` are the display times of the frames in seconds, ascending. A frame is in the window if it is on
    display between `start` and `end`, so also if it began before `start`. `fps`, at most `MAX_FPS`, leaves the frame
    on display at each tick from `start`, or from the beginning.

    Raises:
        `ValueError`: if a number is out of range, or `sample` returns an invalid index.
        [`UnavailableFramesError`]: if the video has no times, or no frame at the requested ones.
    """
    frames = np.arange(total_frames)
    if start is not None or end is not None or fps is not None:
        _check_times(start, end, fps)
        if timestamps is None:
            raise UnavailableFramesError("has no frame times, which `start`, `end` and `fps` need.")
        frames = _frames_in_window(timestamps, start, end)
    if fps is not None:
        frames = _frames_at_rate(timestamps, frames, start, fps)
    if sample is None:
        return frames.tolist()
    indices = sample(len(frames))
    try:
        indices = [operator.index(index) for index in indices]
    except TypeError as error:
        raise ValueError(f"`sample` must return a list of integers, got {indices!r}.") from error
    if not indices or min(indices) < 0 or max(indices) >= len(frames):
        raise ValueError(f"`sample` must return indices from 0 to {len(frames) - 1}, at least one, got {indices}.")
    return frames[indices].tolist()


def _frames_in_window(timestamps: np.ndarray, start: float | None, end: float | None) -> np.ndarray:
    # The display time of the last frame is unknown: use the median.
    video_end = timestamps[-1] + (np.median(np.diff(timestamps)) if len(timestamps) > 1 else 0.0)
    if start is not None and start > 0 and start >= video_end:
        raise UnavailableFramesError(f"is over at {video_end:.3f} s, before the `start` at {start} s.")
    first = 0 if start is None else max(0, np.searchsorted(timestamps, start + ROUNDING, side="right") - 1)
    stop = len(timestamps) if end is None else max(first + 1, np.searchsorted(timestamps, end - ROUNDING))
    return np.arange(first, stop)


def _frames_at_rate(timestamps: np.ndarray, frames: np.ndarray, start: float | None, fps: float) -> np.ndarray:
    first = timestamps[frames[0]] if start is None else start
    seconds = float(timestamps[frames[-1]] - first)
    if seconds * fps > MAX_TICKS:
        raise UnavailableFramesError(f"lasts {seconds:.0f} s, too long for {fps} frames a second.")
    count = max(1, int(np.floor(seconds * fps + ROUNDING)) + 1)
    ticks = first + np.arange(count) / fps
    # The frame on display at a tick is the last one that began before it.
    displayed = np.searchsorted(timestamps, ticks + ROUNDING, side="right") - 1
    return np.clip(displayed, frames[0], frames[-1])


def _check_count(name: str, value: int):
    if not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(f"`{name}` must be an integer of at least 1, got {value!r}.")


def _check_times(start: float | None, end: float | None, fps: float | None):
    for name, value in (("start", start), ("end", end), ("fps", fps)):
        if value is not None and not (isinstance(value, numbers.Real) and 0 <= value < float("inf")):
            raise ValueError(f"`{name}` must be a finite number of at least 0, got {value!r}.")
    if end is not None and not (start or 0) < end:
        raise ValueError(f"`start` ({start or 0} s) must be less than `end` ({end} s).")
    if fps is not None and not 0 < fps <= MAX_FPS:
        raise ValueError(f"`fps` must be greater than 0 and at most {MAX_FPS}, got {fps}.")
