"""Decode live streams, and files at their own rate."""

import contextlib
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from av.error import FFmpegError

from ezclip.timeline.frame_streams import LARGEST_JITTER, FrameStream, StreamedFile, StreamedFrame
from ezclip.timeline.windows import Crop, slide_windows
from video_ezclip import BoundedFile, FrameSampler, ReadLimits, VideoReadError, local_path, open_url


# Seconds. Streams begin with what the server has kept. Times that are further ahead of the wall clock are wrong.
LARGEST_LEAD = 30.0
# Seconds. A stream that stays so late for so long is connected to again.
LARGEST_LAG = 10.0
# Seconds between two frames. The frames of a faster stream are left out, so that a window has a bounded number.
SHORTEST_INTERVAL = 1 / 125
ENDLESS = 10**9  # seconds of a connection, whose limits count from the last frame
STARTED = "started"
DEVICE = re.compile("/dev/video[0-9]+")


@dataclass
class LiveWindow:
    """What the model sees of a window of a stream."""

    start: float  # seconds since the first frame of this connection
    end: float
    clip: np.ndarray  # frames (T, H, W, 3), uint8
    span: tuple[int, int]  # numbers of its first and last frame, counted from 0 in this connection
    passed: float  # `time.monotonic()` when the source passed its end


def read_live_windows(
    source: str, window: float, stride: float, sample: FrameSampler, crop: Crop, limits: ReadLimits
) -> Iterator[LiveWindow | str]:
    """
    Yield `STARTED`, and then each window of a stream as soon as its end is passed.

    An `IsolatedReader` runs this in its child, which has then imported its modules.

    The arguments are those of [`LiveStream`] and [`slide_windows`]. Memory holds the frames of one window.

    Raises:
        [`VideoReadError`]: if the source cannot be opened, or falls behind.
    """
    yield STARTED
    opened = PacedFile(source, True, limits) if is_file(source) else LiveStream(source, True, limits)
    with opened as stream:
        for one in slide_windows(stream, window, stride, sample, crop):
            passed = time.monotonic() - stream.lag
            yield LiveWindow(one.start, one.end, one.clip(), one.span, passed)


def is_file(source: str) -> bool:
    """Return whether a source is a video file, which is played at its own rate."""
    return os.path.isfile(local_path(source))


class PacedFile(FrameStream):
    """A video file whose frames come at its own rate, as from a camera."""

    lag = 0.0  # seconds by which decoding is late

    def __iter__(self) -> Iterator[StreamedFrame]:
        origin = None
        for frame in super().__iter__():
            now = time.monotonic()
            origin = now - frame.seconds if origin is None else origin
            self.lag = max(0.0, now - origin - frame.seconds)
            time.sleep(max(0.0, origin + frame.seconds - now))
            yield frame


class LiveStream(FrameStream):
    """
    Iterate over the frames of a live source, see [`FrameStream`].

    - Times count from the first frame. They never go back, and they follow the wall clock: a frame without a time, or
      with a time that jumps, follows the frame before after the time that passed between them.
    - Frames that cannot be decoded, and those of more than 125 a second, are left out.
    - Frames of another size are scaled to that of the first.

    Args:
        video (`str`):
            An address of rtsp, rtsps, http or https, or a device of Video4Linux (/dev/video0). RTSP is received over
            TCP, which loses nothing.
        allow_partial (`bool`, *optional*, defaults to `True`), limits ([`ReadLimits`], *optional*):
            See [`FrameStream`].

    Raises:
        [`VideoReadError`]: if the source cannot be opened, or the limits forbid it; during iteration, if a limit is
        exceeded, or frames come late by `LARGEST_LAG` for as long: decoding is too slow, or the times are wrong.
    """

    def open_file(self, video: str, stack: contextlib.ExitStack) -> StreamedFile:
        """Open the source. `stack` closes the connection."""
        source: Any = video
        is_address = re.match("(rtsps?|https?)://", video, re.IGNORECASE)
        if is_address is None and not DEVICE.fullmatch(video):
            raise VideoReadError(
                self.name,
                "is neither a file nor a live source.",
                "Give an address of rtsp, rtsps, http or https, a device such as /dev/video0, or a video file.",
            )
        if is_address and is_address[1].lower().startswith("http"):
            endless = replace(self.limits, max_download_seconds=ENDLESS, max_download_bytes=ENDLESS**2)
            remote = _Arriving(stack.enter_context(open_url(video, self.name, endless)))
            source = BoundedFile(remote, self.name, self.limits)
        elif is_address and self.limits.public_addresses_only:
            raise VideoReadError(self.name, "is not an address of http or https.", "Give one, or the file itself.")
        try:
            return _LiveFile(source, self.name, not self.allow_partial, self.limits)
        except VideoReadError as error:
            if isinstance(error.__cause__, FFmpegError):  # what helps against a damaged file does not help here
                remedy = "Check the source, and that it sends video."
                raise VideoReadError(self.name, error.reason, remedy, error.backend) from error
            raise

    def make_clock(self) -> Any:
        """Return what converts the `pts` of frames to seconds."""
        return _LiveClock(self._file)

    @property
    def lag(self) -> float:
        """Return by how much the last frame came later than the least late one, in seconds."""
        return self.clock.lag

    def __iter__(self) -> Iterator[StreamedFrame]:
        taken = late_since = None
        for frame in super().__iter__():
            late_since = None if self.lag < LARGEST_LAG else late_since or time.monotonic()
            if late_since is not None and time.monotonic() - late_since > LARGEST_LAG:
                reason = f"is {self.lag:.0f} s late: decoding is too slow, or its times are wrong."
                raise VideoReadError(self.name, reason, "Let the camera send smaller or fewer frames.", "pyav")
            if taken is None or frame.seconds >= taken + SHORTEST_INTERVAL:
                taken = frame.seconds
                yield frame


class _Arriving:
    """Bytes in the order in which they arrive: the file objects of HTTP claim that they can seek."""

    def __init__(self, file):
        self.read = file.read


class _LiveFile(StreamedFile):
    """A connection or a device. It can be read once."""

    @property
    def is_seekable(self) -> bool:
        """Return whether the source can be read again."""
        return False

    def _check_claims(self):
        pass  # an address is no file, and what arrives has no index

    def _whitelists(self) -> dict[str, str]:
        options = super()._whitelists()
        if isinstance(self.source, str):  # FFmpeg opens it by itself
            options["format_whitelist"] = "video4linux2,v4l2" if DEVICE.fullmatch(self.source) else "rtsp"
            options["protocol_whitelist"] = "tcp,tls,rtp"
            options |= {"rtsp_transport": "tcp", "allowed_media_types": "video"}
            options["timeout"] = str(round(1e6 * self.limits.max_download_seconds))
        else:
            options["format_whitelist"] += ",mpjpeg"  # of webcams
        return options


class _LiveClock:
    """
    Convert `pts` to seconds since the first frame that never decrease.

    `lag` is by how many seconds the last frame came later than the least late one.
    """

    def __init__(self, file: StreamedFile):
        self.file, self.last, self.lag = file, None, 0.0
        self._origin = self._arrived = self._shift = 0.0
        self._least_delay = 0.0

    def __call__(self, pts: int | None) -> float:
        now = time.monotonic()
        own = None if pts is None else float(pts * self.file.time_base)
        if self.last is None:
            self.last, self._origin = 0.0, now
            self._shift = -(own or 0.0)
        else:
            seconds = None if own is None else own + self._shift
            latest = now - self._origin + LARGEST_LEAD
            if seconds is None or not self.last - LARGEST_JITTER <= seconds <= latest:
                seconds = self.last + now - self._arrived
                self._shift = self._shift if own is None else seconds - own
            self.last = max(self.last, seconds)
        self._arrived = now
        delay = now - self._origin - self.last
        self._least_delay = min(self._least_delay, delay)
        self.lag = delay - self._least_delay
        return self.last

    def end(self) -> float:
        """Return the time of the last frame."""
        return self.last or 0.0
