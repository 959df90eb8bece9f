"""Which frames of a video are taken: the published rules, several clips, a window of time, a rate."""

from collections.abc import Callable, Sequence

import numpy as np


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
    for name, value in (("num_frames", num_frames), ("num_clips", num_clips)):
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")
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
    rng = np.random.default_rng(seed)
    if total_frames <= num_frames:
        repeats = rng.integers(total_frames, size=num_frames - total_frames)
        return sorted([*range(total_frames), *repeats.tolist()])
    ticks = [i * total_frames // num_frames for i in range(num_frames + 1)]
    return rng.integers(ticks[:-1], ticks[1:]).tolist()


def tear_frame_indices(total_frames: int, num_frames: int) -> list[int]:
    """TEAR's sampling ("get_indices"): half a segment into each of `num_frames` equal segments, rounded down."""
    if num_frames < 1:
        raise ValueError(f"`num_frames` must be at least 1, got {num_frames}.")
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
            Seconds: only frames shown from `start` on and before `end`.
        fps (`float`, *optional*):
            Frames per second: the frame on show at each tick from `start`, or the beginning, on.

    Raises:
        `ValueError`: if a number is out of range, or `sample` gives an index that is not there.
        [`UnavailableFramesError`]: if the video has no times, or no frame at those that are asked for.
    """
    frames = np.arange(total_frames)
    if start is not None or end is not None or fps is not None:
        if timestamps is None:
            raise UnavailableFramesError("has no times of its frames, which `start`, `end` and `fps` need.")
        frames = _in_window(timestamps, start, end)
    if fps is not None:
        frames = _at_rate(timestamps, frames, start, fps)
    if sample is None:
        return frames.tolist()
    indices = [int(index) for index in sample(len(frames))]
    if not indices or min(indices) < 0 or max(indices) >= len(frames):
        raise ValueError(f"`sample` must give frames from 0 to {len(frames) - 1}, one at least; it gave {indices}.")
    return frames[indices].tolist()


def _in_window(timestamps: np.ndarray, start: float | None, end: float | None) -> np.ndarray:
    if start is not None and end is not None and not start < end:
        raise ValueError(f"`start` ({start} s) must be less than `end` ({end} s).")
    inside = np.full(len(timestamps), True)
    if start is not None:
        inside &= timestamps >= start
    if end is not None:
        inside &= timestamps < end
    if not inside.any():
        window = f"from {0 if start is None else start} s to {'its end' if end is None else f'{end} s'}"
        raise UnavailableFramesError(f"shows no new frame {window}; its last frame begins at {timestamps[-1]:.3f} s.")
    return np.flatnonzero(inside)


def _at_rate(timestamps: np.ndarray, frames: np.ndarray, start: float | None, fps: float) -> np.ndarray:
    if not fps > 0:
        raise ValueError(f"`fps` must be greater than 0, got {fps}.")
    first = timestamps[frames[0]] if start is None else start
    count = int(np.floor((timestamps[frames[-1]] - first) * fps + 1e-6)) + 1
    ticks = first + np.arange(count) / fps
    # The frame on show at a tick is the last that began before it; a microsecond forgives rounding.
    shown = np.searchsorted(timestamps, ticks + 1e-6, side="right") - 1
    return np.clip(shown, frames[0], frames[-1])
