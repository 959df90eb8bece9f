"""Slide windows of time over a video and sample the frames of each window."""

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from ezclip.timeline.frame_streams import FrameStream, StreamedFrame
from video_ezclip import DEFAULT_LIMITS, ROUNDING, FrameSampler, ReadLimits


# Memory for pictures that are not cropped yet. Above it, the oldest are cropped to the model's size.
MAX_PICTURE_BYTES = 2**28

Crop = Callable[[np.ndarray], np.ndarray]


@dataclass
class Window:
    """
    A window of time.

    Args:
        start (`float`), end (`float`):
            Seconds; both within the video.
        frames (`list[StreamedFrame]`):
            The sampled frames. Windows share them.
        span (`tuple[int, int]`):
            Indices of the first and the last frame on display within the window.
        crop (`Callable[[np.ndarray], np.ndarray]`):
            See [`slide_windows`].
    """

    start: float
    end: float
    frames: list[StreamedFrame]
    span: tuple[int, int]
    crop: Crop

    @property
    def numbers(self) -> tuple[int, ...]:
        """Return the indices of the frames in the video."""
        return tuple(frame.number for frame in self.frames)

    def clip(self) -> np.ndarray:
        """Return the frames at the model's size: `(T, H, W, 3)`, uint8."""
        return np.stack([frame.cropped(self.crop) for frame in self.frames])


@dataclass
class WindowClip:
    """What the model sees of a window, or the end of the video."""

    start: float  # seconds
    end: float
    clip: np.ndarray | None  # frames (T, H, W, 3), uint8; None if they are those of the window before
    duration: float | None  # of the video, as the file states it
    is_last: bool = False  # after the last window, from the beginning of the video to its end
    problem: str | None = None  # at the end: what is missing


def read_windows(
    video,
    window: float,
    stride: float,
    sample: FrameSampler,
    crop: Crop,
    allow_partial: bool = False,
    limits: ReadLimits = DEFAULT_LIMITS,
) -> Iterator[WindowClip]:
    """
    Yield the clips of all windows of a video, and then its end.

    The arguments are those of [`FrameStream`] and [`slide_windows`]. An `IsolatedReader` runs this in its child.
    """
    numbers = None
    with FrameStream(video, allow_partial, limits) as stream:
        for one in slide_windows(stream, window, stride, sample, crop):
            clip = None if one.numbers == numbers else one.clip()
            numbers = one.numbers
            yield WindowClip(one.start, one.end, clip, stream.duration)
        yield WindowClip(stream.start, stream.end, None, stream.duration, True, stream.problem)


def slide_windows(
    stream: FrameStream, window: float, stride: float, sample: FrameSampler, crop: Crop
) -> Iterator[Window]:
    """
    Yield the windows of a video from one pass over it, with the frames of one window in memory.

    Windows start at multiples of `stride`. The first contains the first frame, the last reaches the end. A window
    contains the frames on display between its start and end, as [`select_frames`] selects them. If a frame is
    displayed for longer than a window, the window contains this frame.

    Args:
        stream ([`FrameStream`]):
            The video.
        window (`float`), stride (`float`):
            Seconds.
        sample (`Callable[[int], Sequence[int]]`):
            From the number of frames of a window to the 0-based indices to take.
        crop (`Callable[[np.ndarray], np.ndarray]`):
            From frames `(1, H, W, 3)` to frames of the model's size.
    """
    held: deque[StreamedFrame] = deque()
    number = first = 0

    def drop_frames_before_window():
        while len(held) > 1 and held[1].seconds <= number * stride + ROUNDING:
            held.popleft()

    def make_window(start: float, end: float) -> Window:
        frames = [held[index] for index in sample(len(held))]
        span = held[0].number, held[-1].number
        return Window(max(start, stream.start), min(end, stream.end), frames, span, crop)

    for frame in stream:
        if not held:
            number = first = _first_window(frame.seconds, window, stride)
        while held and frame.seconds >= number * stride + window - ROUNDING:
            yield make_window(number * stride, number * stride + window)
            number += 1
            drop_frames_before_window()
        held.append(frame)
        drop_frames_before_window()
        if len(held) * frame.num_bytes > MAX_PICTURE_BYTES:
            _crop_oldest(held, crop)
    while held and number * stride < stream.end - ROUNDING:
        yield make_window(number * stride, number * stride + window)
        if number * stride + window >= stream.end - ROUNDING:
            return
        number += 1
        drop_frames_before_window()
    if held and number == first:  # the whole video lies between two windows
        yield make_window(stream.start, stream.end)


def _first_window(seconds: float, window: float, stride: float) -> int:
    """Return the number of the window that contains a frame at `seconds`, or of the next one."""
    number = max(0, math.floor(seconds / stride))
    return number if number * stride + window > seconds + ROUNDING else number + 1


def _crop_oldest(held: deque[StreamedFrame], crop: Crop):
    """Crop the oldest pictures until the rest fits into memory."""
    num_bytes = sum(frame.num_bytes for frame in held)
    for frame in held:
        if num_bytes <= MAX_PICTURE_BYTES:
            return
        num_bytes -= frame.num_bytes
        frame.cropped(crop)
