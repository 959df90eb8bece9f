"""Videos of any length as their frames, one after the other: decoded once, and none kept."""

import contextlib
import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import av
import fsspec
import numpy as np

from video_ezclip import (
    FLAGGING_CODECS,
    ToImage,
    VideoFile,
    VideoReadError,
    describe_video,
    error_message,
    is_single_video,
    is_url,
    local_path,
    open_source,
)


# Times that go back by less are jitter; by more, another recording begins.
LARGEST_JITTER = 1.0
# A frame is on show until the next; one that would be for longer has a wrong time.
LARGEST_GAP = 3600.0
KEPT_INTERVALS = 1000
PARTIAL_REMEDY = "Fetch it again, or use what can be decoded of it (`allow_partial`)."


@dataclass
class StreamedFrame:
    """
    A frame of a [`FrameStream`].

    Args:
        number (`int`):
            Which of the frames that can be decoded it is, 0-based.
        seconds (`float`):
            From the beginning of the video to when it is shown.
        picture (`av.VideoFrame`):
            As the decoder has it: a third to a half of the size of the image.
        to_image (`Callable[[av.VideoFrame], np.ndarray]`):
            Makes the image.
    """

    number: int
    seconds: float
    picture: av.VideoFrame
    to_image: "ToImage"

    @property
    def num_bytes(self) -> int:
        """Return the memory of the picture, in bytes."""
        return sum(plane.buffer_size for plane in self.picture.planes)

    def image(self) -> np.ndarray:
        """RGB `(H, W, 3)`, uint8, upright."""
        return self.to_image(self.picture)


class FrameStream:
    """
    The frames of a video in the order in which they are shown, those that [`read_frames`] finds, from one pass over
    the file. A context manager, iterated once.

    Times that make no sense as a whole, which [`read_frames`] replaces by the average rate throughout, are put right
    where they go wrong: a frame without one follows at the average rate, one that is less than a second early is shown
    with the frame before, and where they go back by more, as in recordings that were joined, they go on from there.
    Times that are no more than a guess, as of B-frames in AVI, are those of the average rate.

    Args:
        video (`str`, `os.PathLike`, `bytes`, file object or `dict`):
            As for [`read_frames`], but for frames without times. URLs and file objects are read as they go; those that
            cannot be sought, such as pipes, must be of a container that needs no seeking (Matroska, MPEG-TS, FLV, …).
        allow_partial (`bool`, *optional*, defaults to `False`):
            Whether to go on after what cannot be decoded, and say so in `problem`.

    Attributes:
        name (`str`):
            What errors call the video.
        duration (`float`, *optional*):
            The seconds that the file promises; a live recording promises none.
        start (`float`), end (`float`):
            Seconds at which the first of the frames that were read begins, and the last ends.
        problem (`str`, *optional*):
            Why these are not all frames, as far as they were read.

    Raises:
        [`VideoReadError`]: if it cannot be opened, and while it is iterated, if it cannot be decoded.
    """

    def __init__(self, video, allow_partial: bool = False):
        self.name, self.allow_partial = describe_video(video), allow_partial
        self.start, self._clock = 0.0, None
        self.problem: str | None = None
        self._closing = contextlib.ExitStack()
        try:
            source = self._open(video)
            self._is_seekable = not isinstance(source, _Pipe)
            self._file = self._closing.enter_context(_StreamedFile(source, self.name, strict=not allow_partial))
            self._check_end(self._file.cut())
        except BaseException:
            self.close()
            raise
        length = self._file.container.duration
        self.duration = length / av.time_base if length and length > 0 else None

    def __enter__(self) -> "FrameStream":
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Close what was opened."""
        self._closing.close()

    @property
    def end(self) -> float:
        """Return the time at which the last frame ends, in seconds."""
        return 0.0 if self._clock is None or self._clock.last is None else self._clock.end()

    def __iter__(self) -> Iterator[StreamedFrame]:
        to_image, self._clock = ToImage(self.name), _Clock(self._file)
        number = -1
        for number, picture in enumerate(self._pictures()):
            last = self._clock.last
            seconds = self._clock(picture.pts)
            if last is not None and seconds - last > LARGEST_GAP:
                self._clock.last = last
                reason = f"has no frame from {last:.1f} s to {seconds:.1f} s, which are probably wrong times."
                self._refuse(reason, "Re-encode it, or use what is before (`allow_partial`).")
                return
            self.start = seconds if number == 0 else self.start
            yield StreamedFrame(number, seconds, picture, to_image)
        if number < 0:
            raise VideoReadError(self.name, "has no frame that can be decoded.", "Fetch it again.", "pyav")
        if self._file.faults:
            self._add_problem(f"{self._file.faults} parts of it cannot be decoded.")
        self._check_end(self._file.missing_end(self.end) if self._is_seekable else None)

    def _pictures(self) -> Iterator[av.VideoFrame]:
        done = 0
        try:
            for picture in self._file.decode_all():
                yield picture
                done += 1
            if self._file.is_torn:
                self._refuse("is damaged: a packet of it is not whole.", PARTIAL_REMEDY)
            return
        except av.FFmpegError as error:
            reason = f"cannot be decoded as a whole: {error_message(error)}, after {self.end:.1f} s."
            if not (self._file.codec in FLAGGING_CODECS and self._is_seekable):
                raise VideoReadError(self.name, reason, PARTIAL_REMEDY, "pyav") from error
        # A strict decoder also rejects files whose pictures are fine. This one tells whether a picture is damaged.
        self._file.strict = False
        self._file.reopen()
        for number, picture in enumerate(self._file.decode_all()):
            if self._file.faults:
                break
            if number >= done:
                yield picture
                done += 1
        if self._file.faults or done < self._file.num_packets:
            raise VideoReadError(self.name, reason, PARTIAL_REMEDY, "pyav")

    def _open(self, video):
        if isinstance(video, dict):
            video = video["bytes"] if video.get("bytes") is not None else video.get("path")
        if video is None:
            raise VideoReadError(self.name, "has neither a path nor bytes.", "Leave it out of the data set.")
        if isinstance(video, (str, os.PathLike)):
            video = local_path(os.fspath(video))
            if is_url(video):
                try:
                    video = self._closing.enter_context(fsspec.open(video, "rb"))
                except Exception as error:  # each file system has errors of its own
                    raise VideoReadError(self.name, f"cannot be fetched ({error}).", "Check the address.") from error
        if _is_frames(video):
            raise VideoReadError(self.name, "has no times of its frames.", "Give a video file.")
        if hasattr(video, "read") and not (hasattr(video, "seekable") and video.seekable()):
            return _Pipe(video)
        return open_source(video, self.name)

    def _check_end(self, reason: str | None):
        if reason is not None:
            self._refuse(reason, PARTIAL_REMEDY)

    def _refuse(self, reason: str, remedy: str):
        """Raise for a damaged file, unless a part of it is enough."""
        if not self.allow_partial:
            raise VideoReadError(self.name, reason, remedy, "pyav")
        self._add_problem(reason)

    def _add_problem(self, reason: str):
        self.problem = reason if self.problem is None else f"{self.problem} {reason}"


def _is_frames(video) -> bool:
    """Return whether a video is a folder, an array or a list of images, and not a file."""
    if isinstance(video, str):
        return os.path.isdir(video)
    is_array = hasattr(video, "shape") and not isinstance(video, memoryview)
    return is_array or (isinstance(video, (list, tuple)) and is_single_video(video))


class _Pipe:
    """A file object that can only be read forward."""

    def __init__(self, file):
        # Return the bytes that are there; do not wait for all that were asked for.
        self.read = getattr(file, "read1", file.read)


class _StreamedFile(VideoFile):
    """A file whose packets are counted and checked as they pass, and not kept."""

    def _open(self):
        super()._open()
        self.num_packets, self.is_torn, self.faults = 0, False, 0

    def cut(self) -> str | None:
        """Return whether the end of the file is missing, by the sizes that it stores."""
        return self._cut()

    def missing_end(self, end: float) -> str | None:
        """
        Return whether the end is missing, by the duration that the file stores. `end` is the end of the last
        frame.
        """
        duration = (self.container.duration or 0) / av.time_base
        short = duration - max(1.0, 0.05 * duration)
        if self.format in ("flv", "asf") and end < short and (end := self._end()) < short:
            return f"is cut off: {end:.1f} of {duration:.1f} seconds are there."
        return None

    def _packets(self) -> Iterator[av.Packet]:
        for packet in self.container.demux(self.stream):
            # Packets before the first key frame give no picture.
            self.num_packets += bool(packet.size) and (self.num_packets > 0 or packet.is_keyframe)
            # In a transport stream it may be no more than a seam.
            self.is_torn |= packet.is_corrupt and self.format != "mpegts"
            yield packet

    def _cut(self) -> str | None:
        return None if isinstance(self.source, _Pipe) else super()._cut()


class _Clock:
    """Seconds from the times that a file gives its frames; they never go back."""

    def __init__(self, file: VideoFile):
        self.file, self.last, self.shift = file, None, 0.0
        self.intervals: deque[float] = deque(maxlen=KEPT_INTERVALS)

    def __call__(self, pts: int | None) -> float:
        average = 1 / (self.file.fps or 1.0)
        if pts is None or self.file.has_guessed_times:
            seconds = 0.0 if self.last is None else self.last + average
        else:
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
        """Return the time at which the last frame ends. It lasts as long as the others."""
        return self.last + (float(np.median(self.intervals)) if self.intervals else 1 / (self.file.fps or 1.0))
