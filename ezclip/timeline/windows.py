"""Windows of time that slide over a video, each with the frames that the processor samples of it."""

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from ezclip.timeline.frame_streams import FrameStream, StreamedFrame
from video_ezclip import ROUNDING, FrameSampler


# Pictures wait in this much memory to be asked for; beyond, they are cropped to the model's size.
MAX_PICTURE_BYTES = 2**28

Crop = Callable[[np.ndarray], np.ndarray]


class HeldFrame:
    """A frame that windows share; it is cropped once, and not before one of them asks."""

    def __init__(self, frame: StreamedFrame, crop: Crop):
        self.number, self.seconds = frame.number, frame.seconds
        self._frame, self._crop, self._cropped = frame, crop, None

    def cropped(self) -> np.ndarray:
        """`(H, W, 3)` of the model's size, uint8."""
        if self._cropped is None:
            self._cropped = self._crop(self._frame.image()[None])[0]
            self._frame = None
        return self._cropped

    @property
    def num_bytes(self) -> int:
        """Return the memory of the frame in bytes, while it is a picture."""
        return 0 if self._frame is None else self._frame.num_bytes


@dataclass
class Window:
    """
    A window of time.

    Args:
        start (`float`), end (`float`):
            Seconds; both within the video.
        frames (`list[HeldFrame]`):
            Those that are sampled of it.
    """

    start: float
    end: float
    frames: list[HeldFrame]

    @property
    def numbers(self) -> tuple[int, ...]:
        """The indices of the frames in the video."""
        return tuple(frame.number for frame in self.frames)

    def clip(self) -> np.ndarray:
        """`(T, H, W, 3)`, uint8."""
        return np.stack([frame.cropped() for frame in self.frames])


def slide_windows(
    stream: FrameStream, window: float, stride: float, sample: FrameSampler, crop: Crop
) -> Iterator[Window]:
    """
    Yield the windows of a video from one pass over it, with the frames of one window in memory.

    Windows start at multiples of `stride`, the first at the one that has the first frame, the last at the one that
    reaches the end. A window has the frames that are on show in it, those that [`select_frames`] takes from `start` to
    `end`: where frames are shown for longer than a window, the one on show.

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
    held: deque[HeldFrame] = deque()
    number = None

    def drop_what_is_over():
        while len(held) > 1 and held[1].seconds <= number * stride + ROUNDING:
            held.popleft()

    def take() -> Window:
        start, end = max(number * stride, stream.start), min(number * stride + window, stream.end)
        return Window(start, end, [held[index] for index in sample(len(held))])

    first = None
    for frame in stream:
        if number is None:
            number = first = _first_window(frame.seconds, window, stride)
        while held and frame.seconds >= number * stride + window - ROUNDING:
            yield take()
            number += 1
            drop_what_is_over()
        held.append(HeldFrame(frame, crop))
        drop_what_is_over()
        if len(held) * frame.num_bytes > MAX_PICTURE_BYTES:
            _make_room(held)
    while held and number * stride < stream.end - ROUNDING:
        yield take()
        if number * stride + window >= stream.end - ROUNDING:
            return
        number += 1
        drop_what_is_over()
    if held and number == first:  # all of the video is between two windows
        yield Window(stream.start, stream.end, [held[index] for index in sample(len(held))])


def _first_window(seconds: float, window: float, stride: float) -> int:
    """Return the number of the window that shows a frame at `seconds`, or of the next one."""
    number = max(0, math.floor(seconds / stride))
    return number if number * stride + window > seconds + ROUNDING else number + 1


def _make_room(held: deque[HeldFrame]):
    """Crop the oldest pictures, until the others fit into memory."""
    num_bytes = sum(frame.num_bytes for frame in held)
    for frame in held:
        if num_bytes <= MAX_PICTURE_BYTES:
            return
        num_bytes -= frame.num_bytes
        frame.cropped()
