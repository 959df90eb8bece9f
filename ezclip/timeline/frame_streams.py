"""Decode the frames of a video of any length, one after the other, without keeping them."""

import contextlib
import math
import os
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import av
import numpy as np

from video_ezclip import (
    DEFAULT_LIMITS,
    FLAGGING_CODECS,
    BoundedFile,
    ReadLimits,
    ToImage,
    VideoFile,
    VideoReadError,
    check_frame_folder,
    describe_video,
    error_message,
    is_url,
    local_path,
    open_source,
    open_url,
)


# Seconds. Times that go back by less are jitter. Times that go back by more start another recording.
LARGEST_JITTER = 1.0
# Seconds. A frame that is displayed for longer has a wrong time.
LARGEST_GAP = 3600.0
KEPT_INTERVALS = 1000
PARTIAL_REMEDY = "Fetch it again, or use what can be decoded of it (`allow_partial`)."


class StreamedFrame:
    """
    A frame of a [`FrameStream`]. Windows share it, and it is cropped at most once.

    `number` is its 0-based index among the frames that can be decoded, and `seconds` its display time. Until it is
    cropped, it keeps the decoder's picture, which takes a third to a half of the memory of the RGB image.
    """

    def __init__(self, number: int, seconds: float, picture: av.VideoFrame, to_image: ToImage):
        self.number, self.seconds = number, seconds
        self._picture, self._to_image, self._cropped = picture, to_image, None
        self._orientation = to_image.orient(picture)

    @property
    def num_bytes(self) -> int:
        """Return the memory of the uncropped picture in bytes; 0 after cropping."""
        return 0 if self._picture is None else sum(plane.buffer_size for plane in self._picture.planes)

    def cropped(self, crop: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Return the frame `(H, W, 3)`, uint8, after `crop`, which maps frames `(1, H, W, 3)` to the model's size."""
        if self._cropped is None:
            self._cropped, self._picture = crop(self._image()[None])[0], None
        return self._cropped

    def _image(self) -> np.ndarray:
        return self._to_image(self._picture, self._orientation)


class FrameStream:
    """
    Iterate once over the frames of a video, in display order. Use it as a context manager.

    The frames are those of [`read_frames`]. If the times of a file are inconsistent, [`read_frames`] uses the average
    rate for the whole file. A stream corrects the times where they are wrong:

    - A frame without a time follows the previous one at the average rate.
    - A frame that is less than a second early gets the time of the previous one.
    - If the times go back by more, as in joined recordings, the frame follows the previous one at the average rate,
      and the next times continue from there.
    - Guessed times, such as those of B-frames in AVI, are replaced by the average rate.

    Args:
        video (`str`, `os.PathLike`, `bytes`, file object or `dict`):
            A video file, as for [`read_frames`]; not an array or a folder of frames. URLs and file objects are read
            step by step. A file object that cannot seek, such as a pipe, must have a container that needs no seeking
            (Matroska, MPEG-TS, FLV, …).
        allow_partial (`bool`, *optional*, defaults to `False`):
            Whether to skip what cannot be decoded. `problem` then says what is missing.
        limits ([`ReadLimits`], *optional*):
            What reading may take, and where it may reach. Packets and fetched bytes are counted from frame to frame.

    Attributes:
        name (`str`):
            Name of the video in errors.
        duration (`float`, *optional*):
            Duration that the file states, in seconds; `None` for a live recording.
        start (`float`), end (`float`):
            Display time of the first frame and end of the last frame that were read, in seconds.
        problem (`str`, *optional*):
            Description of the missing frames, known after they were passed.

    Raises:
        [`VideoReadError`]: if the file cannot be opened, or, during iteration, if it cannot be decoded.
    """

    def __init__(self, video, allow_partial: bool = False, limits: ReadLimits = DEFAULT_LIMITS):
        self.name, self.allow_partial, self.limits = describe_video(video), allow_partial, limits
        self.start, self.problem = 0.0, None
        with contextlib.ExitStack() as stack:
            self._file = stack.enter_context(self.open_file(video, stack))
            self._report(self._file.damage())
            self._closing = stack.pop_all()
        self.clock: Any = self.make_clock()
        length = self._file.container.duration
        self.duration = length / av.time_base if length and length > 0 else None

    def open_file(self, video, stack: contextlib.ExitStack) -> "StreamedFile":
        """Open the video. `stack` closes a connection."""
        return StreamedFile(
            _open(video, self.name, stack, self.limits), self.name, not self.allow_partial, self.limits
        )

    def make_clock(self) -> Any:
        """Return what converts the `pts` of frames to seconds."""
        return _Clock(self._file)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._closing.close()

    @property
    def end(self) -> float:
        """Return the time at which the last frame ends, in seconds."""
        return self.clock.end()

    def __iter__(self) -> Iterator[StreamedFrame]:
        to_image, number = ToImage(self._file), -1
        for number, picture in enumerate(self._pictures()):
            last = self.clock.last
            seconds = self.clock(picture.pts)
            if last is not None and seconds - last > LARGEST_GAP:
                self.clock.last = last
                reason = f"has no frame from {last:.1f} s to {seconds:.1f} s. These times are probably wrong."
                self._report(reason, "Re-encode it, or use the part before (`allow_partial`).")
                return
            self.start = seconds if number == 0 else self.start
            yield StreamedFrame(number, seconds, picture, to_image)
        if number < 0:
            raise VideoReadError(self.name, "has no frame that can be decoded.", "Fetch it again.", "pyav")
        self._report(self._file.damage())
        if self._file.faults:
            self._report(f"{self._file.faults} parts of it cannot be decoded.")

    def _pictures(self) -> Iterator[av.VideoFrame]:
        done = 0
        try:
            for picture in self._file.decode_all():
                yield picture
                done += 1
            return
        except VideoReadError:
            raise
        except Exception as error:  # a file may make FFmpeg or PyAV raise any type
            reason = f"cannot be decoded as a whole: {error_message(error)}, after {self.end:.1f} s."
            can_retry = isinstance(error, av.FFmpegError) and self._file.codec in FLAGGING_CODECS
            if not (can_retry and self._file.is_seekable):
                raise VideoReadError(self.name, reason, PARTIAL_REMEDY, "pyav") from error
        # A strict decoder also rejects errors that do not affect the pictures. A tolerant one marks damaged pictures.
        self._file.strict = False
        self._file.reopen()
        for number, picture in enumerate(self._file.decode_all()):
            if self._file.faults:
                break
            if number >= done:
                yield picture
                done += 1
        if self._file.faults or done < self._file.num_shown:
            raise VideoReadError(self.name, reason, PARTIAL_REMEDY, "pyav")

    def _report(self, reason: str | None, remedy: str = PARTIAL_REMEDY):
        """Raise for damage, or add it to `problem` with `allow_partial`."""
        if reason is not None and not self.allow_partial:
            raise VideoReadError(self.name, reason, remedy, "pyav")
        if reason is not None and reason not in (self.problem or ""):
            self.problem = reason if self.problem is None else f"{self.problem} {reason}"


def _open(video, name: str, stack: contextlib.ExitStack, limits: ReadLimits):
    """Return a path or an open file. `stack` closes a connection."""
    if isinstance(video, dict):
        video = video["bytes"] if video.get("bytes") is not None else video.get("path")
    if video is None:
        raise VideoReadError(name, "has neither a path nor bytes.", "Leave it out of the data set.")
    if isinstance(video, (str, os.PathLike)):
        video = local_path(os.fspath(video))
        if is_url(video):
            return stack.enter_context(open_url(video, name, limits))
    is_array = hasattr(video, "shape") and not isinstance(video, memoryview)
    if isinstance(video, str) and os.path.isdir(video):
        check_frame_folder(video, name)  # a folder of videos is another error
    if is_array or isinstance(video, (list, tuple)) or (isinstance(video, str) and os.path.isdir(video)):
        raise VideoReadError(name, "has no times of its frames.", "Give a video file.")
    if hasattr(video, "read") and not getattr(video, "seekable", lambda: False)():
        return BoundedFile(video, name, limits)
    return open_source(video, name, limits)


class StreamedFile(VideoFile):
    """A file whose packets are counted and checked as they pass, and not kept. It may be a pipe."""

    @property
    def is_seekable(self) -> bool:
        """Return whether the source can be read again from its beginning."""
        return isinstance(self.source, str) or hasattr(self.source, "seek")

    def _open(self):
        super()._open()
        self.num_packets, self.pts, self.damaged_at, self.faults = 0, [], None, 0

    def _packets(self) -> Iterator[av.Packet]:
        for packet in self._demux():
            if packet.is_corrupt and self.damaged_at is None:
                self.damaged_at = self.num_packets
            self.num_packets += bool(packet.size)
            self.count_packet(packet, bytes(packet))
            if packet.pts is not None:
                self.pts: list[int | None] = [packet.pts]  # `damage` needs no more than one
            yield packet

    def _decode(self, packet: av.Packet | None) -> list[av.VideoFrame]:
        frames = super()._decode(packet)
        if frames:  # A stream of any length is read as long as it gives frames.
            self._num_demuxed = 0
            if isinstance(self.source, BoundedFile):
                self.source.renew()
        return frames

    def _cut(self) -> str | None:
        return super()._cut() if self.is_seekable else None

    def _end(self) -> float:
        if not self.is_seekable:
            return math.inf
        seconds = float(self.timestamps(self.pts)[0])
        is_near_end = seconds > (self.container.duration or 0) / av.time_base - 1.0
        return seconds if is_near_end else super()._end()  # this reads the file again


class _Clock:
    """Convert `pts` to seconds that never decrease."""

    def __init__(self, file: VideoFile):
        self.file, self.last, self.shift = file, None, 0.0
        self.intervals: deque[float] = deque(maxlen=KEPT_INTERVALS)

    def __call__(self, pts: int | None) -> float:
        average = 1 / (self.file.fps or 1.0)
        if pts is None or self.file.has_guessed_times:
            seconds = 0.0 if self.last is None else self.last + average
        else:
            if self.last is None and self.file.format == "avi":  # as in `VideoFile.timestamps`
                self.file.start = pts
            seconds = float((pts - self.file.start) * self.file.time_base) + self.shift
            if self.last is not None and seconds < self.last - LARGEST_JITTER:
                self.shift += self.last + average - seconds
                seconds = self.last + average
        if self.last is not None:
            seconds = max(seconds, self.last)
            self.intervals.append(seconds - self.last)
        self.last = seconds
        return seconds

    def end(self) -> float:
        """Return the time at which the last frame ends, 0 before the first. It lasts as long as the others."""
        if self.last is None:
            return 0.0
        return self.last + (float(np.median(self.intervals)) if self.intervals else 1 / (self.file.fps or 1.0))
