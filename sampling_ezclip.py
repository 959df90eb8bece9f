"""Which frames of a video are taken: the published rules, several clips, a window of time, a rate."""

import numbers
import operator
from collections.abc import Callable, Sequence

import numpy as np


MAX_FPS = 1000
ROUNDING = 1e-6  # of times, in seconds

# From the number of frames to the 0-based indices to take. It may be called more than once for a video, and gives the
# same indices for the same number.
FrameSampler = Callable[[int], Sequence[int]]


class UnavailableFramesError(LookupError):
    """A video does not have the frames that are asked for."""


def uniform_frame_indices(total_frames: int, num_frames: int, num_clips: int = 1) -> list[int]:
    """
    Published test sampling: the middle of each of `num_frames` equal segments ("_get_val_indices", 0-based).

    A video with no more frames than asked for repeats them in order; one frame is taken at half of the number.

    Args:
        total_frames (`int`):
            Frames of the video.
        num_frames (`int`):
            Frames of a clip.
        num_clips (`int`, *optional*, defaults to 1):
            Clips for multi-view evaluation. Clip k takes the point (2k + 1) / (2 num_clips) of each segment.

    Returns:
        `list[int]`: `num_clips` times `num_frames` indices, clip by clip.
    """
    _check_count("num_frames", num_frames)
    _check_count("num_clips", num_clips)
    if num_frames == 1 and num_clips == 1:
        return [total_frames // 2]
    if total_frames <= num_frames:
        return [i * total_frames // num_frames for i in range(num_frames)] * num_clips
    segment = total_frames / num_frames
    points = [(2 * clip + 1) / (2 * num_clips) for clip in range(num_clips)]
    return [int(i * segment + (segment - 1) * point) for point in points for i in range(num_frames)]


def random_frame_indices(total_frames: int, num_frames: int, seed) -> list[int]:
    """
    Published train sampling: a frame drawn from each of `num_frames` equal segments ("_sample_indices", 0-based).

    A video with no more frames than asked for gives all of them and random repeats, in order. `seed` is whatever
    `numpy.random.default_rng` takes.
    """
    _check_count("num_frames", num_frames)
    rng = np.random.default_rng(seed)
    if total_frames <= num_frames:
        repeats = rng.integers(total_frames, size=num_frames - total_frames)
        return sorted([*range(total_frames), *repeats.tolist()])
    ticks = [i * total_frames // num_frames for i in range(num_frames + 1)]
    return rng.integers(ticks[:-1], ticks[1:]).tolist()


def tear_frame_indices(total_frames: int, num_frames: int) -> list[int]:
    """TEAR's sampling ("get_indices"): half a segment into each of `num_frames` equal segments, rounded down."""
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
    Indices of the frames to take from a video.

    Args:
        timestamps (`np.ndarray` of shape `(total_frames,)`, *optional*):
            Seconds from the beginning at which each frame is shown, ascending; `None` where that is unknown.
        total_frames (`int`):
            Frames of the video.
        sample (`Callable[[int], Sequence[int]]`, *optional*):
            Takes indices from the number of frames that the other arguments leave. By default all of them are taken.
        start (`float`, *optional*), end (`float`, *optional*):
            Seconds: only frames on show between `start` and `end`, and so the one before, if `start` is in its time.
        fps (`float`, *optional*):
            Frames per second, at most `MAX_FPS`: the frame on show at each tick from `start`, or the beginning, on.

    Raises:
        `ValueError`: if a number is out of range, or `sample` gives an index that is not there.
        [`UnavailableFramesError`]: if the video has no times, or no frame at those that are asked for.
    """
    frames = np.arange(total_frames)
    if start is not None or end is not None or fps is not None:
        _check_times(start, end, fps)
        if timestamps is None:
            raise UnavailableFramesError("has no times of its frames, which `start`, `end` and `fps` need.")
        frames = _in_window(timestamps, start, end)
    if fps is not None:
        frames = _at_rate(timestamps, frames, start, fps)
    if sample is None:
        return frames.tolist()
    indices = sample(len(frames))
    try:
        indices = [operator.index(index) for index in indices]
    except TypeError as error:
        raise ValueError(f"`sample` must give a list of whole numbers; it gave {indices!r}.") from error
    if not indices or min(indices) < 0 or max(indices) >= len(frames):
        raise ValueError(f"`sample` must give frames from 0 to {len(frames) - 1}, one at least; it gave {indices}.")
    return frames[indices].tolist()


def _in_window(timestamps: np.ndarray, start: float | None, end: float | None) -> np.ndarray:
    # The last frame is shown for as long as others are.
    over = timestamps[-1] + (np.median(np.diff(timestamps)) if len(timestamps) > 1 else 0.0)
    if start is not None and start > 0 and start >= over:
        raise UnavailableFramesError(f"is over at {over:.3f} s, before the `start` at {start} s.")
    first = 0 if start is None else max(0, np.searchsorted(timestamps, start + ROUNDING, side="right") - 1)
    stop = len(timestamps) if end is None else max(first + 1, np.searchsorted(timestamps, end - ROUNDING))
    return np.arange(first, stop)


def _at_rate(timestamps: np.ndarray, frames: np.ndarray, start: float | None, fps: float) -> np.ndarray:
    first = timestamps[frames[0]] if start is None else start
    count = max(1, int(np.floor((timestamps[frames[-1]] - first) * fps + ROUNDING)) + 1)
    ticks = first + np.arange(count) / fps
    # The frame on show at a tick is the last that began before it.
    shown = np.searchsorted(timestamps, ticks + ROUNDING, side="right") - 1
    return np.clip(shown, frames[0], frames[-1])


def _check_count(name: str, value: int):
    if not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(f"`{name}` must be at least 1, a whole number, got {value!r}.")


def _check_times(start: float | None, end: float | None, fps: float | None):
    for name, value in (("start", start), ("end", end), ("fps", fps)):
        if value is not None and not (isinstance(value, numbers.Real) and 0 <= value < float("inf")):
            raise ValueError(f"`{name}` must be a number, 0 or more, got {value!r}.")
    if end is not None and not (start or 0) < end:
        raise ValueError(f"`start` ({start or 0} s) must be less than `end` ({end} s).")
    if fps is not None and not 0 < fps <= MAX_FPS:
        raise ValueError(f"`fps` must be greater than 0 and at most {MAX_FPS}, got {fps}.")
