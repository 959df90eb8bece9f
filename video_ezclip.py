"""Frames of whatever a user calls a video."""

import gc
import importlib
import io
import numbers
import operator
import os
import re
import urllib.parse
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import BinaryIO

import av
import fsspec
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image, UnidentifiedImageError


# ---- Container checks ----


BOXES = {b"ftyp", b"styp", b"moov", b"mdat", b"free", b"skip", b"wide", b"moof", b"mfra", b"sidx", b"uuid", b"pnot"}
EBML, SEGMENT = b"\x1aE\xdf\xa3", b"\x18S\x80g"
# Some writers are a few bytes off.
SLACK = 16
MIN_MPEG4_BYTES = 16


def find_cut(file: BinaryIO) -> tuple[int, int] | None:
    """
    Whether the end of a file is missing, by the sizes that AVI, Matroska, WebM, MP4 and QuickTime files store.

    Args:
        file (`BinaryIO`):
            The file, seekable.

    Returns:
        `tuple[int, int]`, *optional*: how many bytes there are and should be, if those are more.
    """
    there = file.seek(0, 2)
    file.seek(0)
    head = file.read(12)
    if head[:4] == b"RIFF":
        promised = int.from_bytes(head[4:8], "little") + 8
    elif head[:4] == EBML:
        promised = _end_of_segment(file)
    else:
        promised = _end_of_boxes(file, there)
    return (there, promised) if promised > there + SLACK else None


def _end_of_segment(file: BinaryIO) -> int:
    """Where the segment of a Matroska file ends; 0 where that is unknown, as of a live recording."""
    file.seek(len(EBML))
    size = _read_ebml_size(file)
    if size is None:
        return 0
    file.seek(size, 1)
    if file.read(len(SEGMENT)) != SEGMENT or (size := _read_ebml_size(file)) is None:
        return 0
    return file.tell() + size


def _read_ebml_size(file: BinaryIO) -> int | None:
    first = file.read(1)
    if not first or first[0] == 0:
        return None
    length = 9 - first[0].bit_length()
    value = int.from_bytes(first + file.read(length - 1), "big") & (1 << 7 * length) - 1
    return None if value == (1 << 7 * length) - 1 else value


def _end_of_boxes(file: BinaryIO, there: int) -> int:
    """Where the last box of an MP4 or QuickTime file ends; 0 where a file is none."""
    position = 0
    while position < there:
        file.seek(position)
        head = file.read(16)
        size = int.from_bytes(head[:4], "big")
        if size == 1:
            size = int.from_bytes(head[8:16], "big")
        if head[4:8] not in BOXES or size < 8:  # something else, or a box to the end of the file
            break
        position += size
    return position


class PictureCheck:
    """
    Tells packets that hold one picture, and key frames that depend on nothing before them, from those that pretend to.

    Args:
        codec (`str`):
            FFmpeg's name of the codec.
        extradata (`bytes`, *optional*):
            What the container stores for its decoder.
    """

    def __init__(self, codec: str, extradata: bytes | None):
        self.codec, extradata = codec, extradata or b""
        # In MP4 and Matroska the units of H.264 and HEVC follow their sizes; elsewhere they follow start codes.
        position = {"h264": 4, "hevc": 21}.get(codec, 0)
        is_prefixed = extradata[:1] == b"\x01" and len(extradata) > position
        self.size_length = (extradata[position] & 3) + 1 if is_prefixed else None

    def __call__(self, packet: bytes, is_key: bool) -> bool:
        if self.codec == "mpeg4":
            pictures = re.findall(rb"\x00\x00\x01\xb6(.)", packet, re.DOTALL)
            # Shorter ones may say that nothing is coded; a key frame's type is 0.
            is_whole = len(pictures) == 1 and len(packet) >= MIN_MPEG4_BYTES
            return is_whole and not (is_key and pictures[0][0] >> 6)
        if self.codec == "h264":
            return self._check_h264(packet, is_key)
        if self.codec == "hevc":
            kinds = (packet[unit] >> 1 & 63 for unit in self._units(packet))
            first = next((kind for kind in kinds if kind < 32), None)
            return first is not None and (first >= 16 or not is_key)
        if self.codec == "vp9":
            return packet[:1] != b"" and packet[0] >> 6 == 2
        return len(packet) > 2  # of AV1, two bytes are a mark between frames

    def _check_h264(self, packet: bytes, is_key: bool) -> bool:
        has_picture = False
        for unit in self._units(packet):
            kind = packet[unit] & 31
            if kind == 5 or (kind in (1, 2) and not is_key):
                return True
            if kind in (1, 2):
                has_picture = True
                if _h264_slice_type(packet[unit + 1 : unit + 9]) % 5 != 2:  # not intra
                    return False
        return has_picture

    def _units(self, packet: bytes):
        """Where each unit of a packet begins."""
        if self.size_length is None:
            yield from (match.end() for match in re.finditer(rb"\x00\x00\x01(?=.)", packet, re.DOTALL))
            return
        position = 0
        while position + self.size_length < len(packet):
            size = int.from_bytes(packet[position : position + self.size_length], "big")
            yield position + self.size_length
            position += self.size_length + size


def _h264_slice_type(header: bytes) -> int:
    """The second of the numbers that a slice begins with, in Exp-Golomb code."""
    bits, value = bin(1 << 8 * len(header) | int.from_bytes(header, "big"))[3:], 0
    for _ in range(2):
        zeros = len(bits) - len(bits.lstrip("0"))
        code, bits = bits[zeros : 2 * zeros + 1], bits[2 * zeros + 1 :]
        value = int(code or "1", 2) - 1
    return value


# ---- Frame sampling ----


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


# ---- Decoding ----


BACKENDS = ("auto", "pyav", "decord", "torchcodec")

# Containers that store the time of each frame, and codecs that decode exactly from any of their key frames on.
INDEXED_CONTAINERS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi")
INDEXED_CODECS = ("h264", "hevc", "mpeg4", "vp9", "av1", "mjpeg", "ffv1")
# Codecs whose decoder can leave out, packet by packet, frames that no other frame refers to.
SKIPPING_CODECS = ("h264", "hevc")
# Codecs whose decoder says of each frame whether it is damaged.
FLAGGING_CODECS = ("h264", "mpeg4")
# Packets of a file are kept in memory up to this size; beyond, they are read again.
MAX_KEPT_BYTES = 2**26

Chooser = Callable[[np.ndarray], list[int]]


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
        backend (`str`, *optional*):
            What tried to decode it; `None` where it did not come to that.
    """

    def __init__(self, video: str, reason: str, remedy: str, backend: str | None = None):
        super().__init__(video, reason, remedy, backend)
        self.video, self.reason, self.remedy, self.backend = video, reason, remedy, backend

    def __str__(self) -> str:
        return f"{self.video}: {self.reason} {self.remedy}" + (f" (backend: {self.backend})" if self.backend else "")


@dataclass
class DecodedVideo:
    """
    Frames of a file.

    Args:
        images (`list[np.ndarray]`):
            RGB frames `(H, W, 3)`, uint8, upright.
        indices (`list[int]`):
            Which frames of the file they are.
        timestamps (`np.ndarray` of shape `(n,)`):
            Seconds from the beginning at which each frame of the file is shown.
        backend (`str`):
            What decoded it.
        access (`str`):
            `"index"` where only what the frames depend on was decoded, `"sequence"` where everything before them was.
        codec (`str`):
            FFmpeg's name of the codec.
        fps (`float`, *optional*):
            Average number of frames per second.
        problem (`str`, *optional*):
            Why these are not all of its frames.
    """

    images: list[np.ndarray]
    indices: list[int]
    timestamps: np.ndarray
    backend: str
    access: str
    codec: str
    fps: float | None
    problem: str | None = None


def decode_video(
    source,
    name: str,
    choose: Chooser,
    backend: str = "auto",
    allow_partial: bool = False,
    in_sequence: bool = False,
) -> DecodedVideo:
    """
    Decode the frames of a video file that are asked for.

    Args:
        source (`str` or seekable file object):
            The file: an absolute path, or what holds its bytes.
        name (`str`):
            What errors call it.
        choose (`Callable[[np.ndarray], list[int]]`):
            From the seconds at which the frames are shown to the 0-based indices to decode.
        backend (`str`, *optional*, defaults to `"auto"`):
            One of `BACKENDS`. `"auto"` is PyAV, which is exact and the fastest (`scripts/benchmark.py decode`).
        allow_partial (`bool`, *optional*, defaults to `False`):
            Whether to go on with what can be decoded of a damaged or incomplete file.
        in_sequence (`bool`, *optional*, defaults to `False`):
            Whether to decode all of the file even where a part is enough, which finds all damage.

    Raises:
        [`VideoReadError`]: if it cannot be decoded, or not wholly unless that is allowed. `ValueError`: for an unknown
        backend. `ImportError`: for one that is not installed.
    """
    require_backend(backend)
    if backend == "auto":
        backend = "pyav"
    try:
        return _DECODERS[backend](source, name, choose, allow_partial, in_sequence)
    except UnavailableFramesError as error:
        raise VideoReadError(name, str(error), "Ask for other frames.", backend) from error
    except av.FFmpegError as error:
        reason = f"cannot be decoded ({error_message(error)})."
        raise VideoReadError(name, reason, "Fetch it again, or re-encode it.", backend) from error
    finally:
        # PyAV's side data and its frame hold each other; until they are collected, so do the pictures.
        gc.collect(1)


def require_backend(backend: str):
    """
    The library of a backend.

    Raises:
        `ValueError`: if there is no such backend. `ImportError`: if its library cannot be imported.
    """
    if backend not in BACKENDS:
        raise ValueError(f"`backend` must be one of {', '.join(BACKENDS)}; got {backend!r}.")
    modules = {"auto": "av", "pyav": "av", "torchcodec": "torchcodec.decoders"}
    try:
        return importlib.import_module(modules.get(backend, backend))
    except Exception as error:  # a torchcodec that does not fit its surroundings fails in ways of its own
        raise ImportError(
            f"The backend {backend} cannot be imported ({error}). Install it, or use the backend auto."
        ) from error


class VideoFile:
    """
    A video file, opened, and after `scan` what its packets say of its frames, in file order: their times `pts`, and
    which are key frames (`is_key`).
    """

    def __init__(self, source, name: str, strict: bool = True):
        self.source, self.name, self.strict, self.faults = source, name, strict, 0
        self._kept, self._is_scanned = None, False
        self._open()

    def _open(self):
        if hasattr(self.source, "seek"):
            self.source.seek(0)
        try:
            # HMDB-51 has files whose metadata is not UTF-8.
            self.container = av.open(self.source, metadata_errors="ignore")
        except (av.FFmpegError, UnicodeDecodeError) as error:
            reason = self._cut() or f"is not a video file that FFmpeg can open ({error_message(error)})."
            raise VideoReadError(self.name, reason, "Fetch it again, or re-encode it.", "pyav") from error
        self.format = self.container.format.name
        self.stream = self.container.streams.best("video")
        if self.stream is None:
            self.container.close()
            raise VideoReadError(self.name, "has no video stream.", "Is it a sound file?", "pyav")
        self.context = self.stream.codec_context
        if self.context is None:
            self.container.close()
            raise VideoReadError(self.name, "is in a codec that FFmpeg does not know.", "Re-encode it.", "pyav")
        self.codec, self.time_base = self.context.codec.canonical_name, self.stream.time_base
        rate = self.stream.average_rate or self.stream.guessed_rate
        self.fps = float(rate) if rate else None
        # Times count from the beginning of the file, in units of the stream.
        start = Fraction(self.container.start_time or 0, av.time_base)
        self.start = round(start / self.time_base) if self.time_base else 0
        # Parallel are the workers of a data loader, each with a file of its own.
        self.context.thread_count = 1
        if self.strict:
            # Without it, what is damaged of a picture is painted over in silence.
            self.context.options = {"err_detect": "explode"}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.container.close()

    def reopen(self):
        """Go back to the beginning, with a fresh decoder."""
        self.container.close()
        self._kept, self._is_scanned = None, False
        self._open()

    @property
    def has_guessed_times(self) -> bool:
        """Whether times are a guess: AVI has none of B-frames, and DivX may put two B-frames into a packet."""
        return self.context.has_b_frames and (self.format == "avi" or self.codec == "mpeg4")

    def scan(self):
        """Read all packets, without decoding any."""
        self.pts, self.is_key, self.damaged_at, self.has_hidden = [], [], None, False
        self._is_scanned, kept, size = True, [], 0
        check = PictureCheck(self.codec, self.context.extradata)
        self.is_plain = self.format in INDEXED_CONTAINERS and self.codec in INDEXED_CODECS
        try:
            for packet in self.container.demux(self.stream):
                if packet.size == 0 and packet.dts is None:  # says that the file is over
                    continue
                if packet.is_corrupt and self.damaged_at is None:
                    self.damaged_at = len(self.pts)
                self.is_plain = self.is_plain and check(bytes(packet), packet.is_keyframe)
                self.pts.append(packet.pts)
                self.is_key.append(packet.is_keyframe)
                self.has_hidden |= packet.is_discard
                size += packet.size
                if size <= MAX_KEPT_BYTES:
                    kept.append(packet)
        except av.FFmpegError:
            self.damaged_at = len(self.pts)
        if size <= MAX_KEPT_BYTES:
            self._kept = kept

    def damage(self) -> str | None:
        """What is wrong with the file, as far as it shows without decoding."""
        if (cut := self._cut()) is not None:
            return cut
        # In a transport stream it may be no more than a seam.
        if self.damaged_at is not None and self.format != "mpegts":
            return f"is damaged at frame {self.damaged_at}."
        if self.format in ("flv", "asf") and self.container.duration and self.pts:
            duration = self.container.duration / av.time_base
            if (end := self._end()) < duration - max(1.0, 0.05 * duration):
                return f"is cut off: {end:.1f} of {duration:.1f} seconds are there."
        return None

    def is_indexed(self) -> bool:
        """Whether the packets give each frame its own time, and one can begin at key frames."""
        if not (self.is_plain and self.pts and self.is_key[0]) or self.has_hidden or None in self.pts:
            return False
        order = sorted(self.pts)
        intervals = np.diff(order)
        if not (intervals > 0).all():
            return False
        # Times in file order are no times of B-frames.
        has_true_times = not self.context.has_b_frames or (self.pts != order and not self.has_guessed_times)
        # A gap may be a frame that is lost, without which those that depend on it do not come out either.
        is_steady = len(order) < 2 or bool((np.abs(intervals / np.median(intervals) - 1) < 0.5).all())
        return has_true_times and self.pts[0] == order[0] and is_steady

    def timestamps(self, pts: list[int | None]) -> np.ndarray:
        """Seconds from the beginning of these times; by the average rate where they make no sense."""
        if None not in pts and all(a < b for a, b in pairwise(pts)):
            return np.array([float((value - self.start) * self.time_base) for value in pts])
        return np.arange(len(pts)) / (self.fps or 1.0)

    def decode_all(self) -> Iterator[av.VideoFrame]:
        """All frames in display order; if not `strict`, those that can be decoded, counting `faults`."""
        packets, end = self._packets(), object()
        while True:
            try:
                packet = next(packets, end)
                if packet is end:
                    return
                for frame in self.context.decode(packet):
                    if self.strict or not frame.is_corrupt:
                        yield frame
                    else:
                        self.faults += 1
            except av.FFmpegError:
                if self.strict:
                    raise
                self.faults += 1

    def decode_for(self, wanted: set[int]) -> Iterator[av.VideoFrame]:
        """The frames with the wanted times, among others, in display order."""
        plan, position = self._plan(wanted), None
        can_skip = self.codec in SKIPPING_CODECS
        for number, packet in self._planned_packets(plan):
            if position is not None and self.is_key[number] and number != position + 1:
                yield from self.context.decode(None)
                self.context.flush_buffers()
            position = number
            if can_skip:
                self.context.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
            yield from self.context.decode(packet)
        yield from self.context.decode(None)

    def _plan(self, wanted: set[int]) -> list[int]:
        """Numbers of the packets to decode: from the key frame before each wanted frame up to it."""
        keys = [number for number, is_key in enumerate(self.is_key) if is_key]
        numbers = {pts: number for number, pts in enumerate(self.pts)}
        last_by_key = {}
        for pts in wanted:
            position = bisect_right(keys, numbers[pts]) - 1
            # A frame that is stored after a key frame and shown before it depends on the key frame before.
            while self.pts[keys[position]] > pts:
                position -= 1
            last_by_key[keys[position]] = max(last_by_key.get(keys[position], 0), numbers[pts])
        plan = set()
        for key, last in sorted(last_by_key.items()):
            is_joined = key - 1 in plan
            plan.update(n for n in range(key, last + 1) if is_joined or self.pts[n] >= self.pts[key])
        return sorted(plan)

    def _planned_packets(self, plan: list[int]) -> Iterator[tuple[int, av.Packet]]:
        if self._kept is not None:
            return ((number, self._kept[number]) for number in plan)
        planned = set(plan)
        packets = islice(enumerate(self._packets()), plan[-1] + 1)
        return ((number, packet) for number, packet in packets if number in planned)

    def _packets(self) -> Iterator[av.Packet | None]:
        """All packets, and at last what tells a decoder that the file is over."""
        if self._kept is not None:
            return iter([*self._kept, None])
        if self._is_scanned:
            self.reopen()
        return self.container.demux(self.stream)

    def _cut(self) -> str | None:
        with open(self.source, "rb") if isinstance(self.source, str) else nullcontext(self.source) as file:
            cut = find_cut(file)
        return None if cut is None else f"is cut off: {cut[0]} of {cut[1]} bytes are there."

    def _end(self) -> float:
        """Seconds at which the last packet of any stream ends: sound may go on after the picture."""
        end = 0
        with VideoFile(self.source, self.name) as again, suppress(av.FFmpegError):
            for packet in again.container.demux():
                if packet.pts is not None:
                    end = max(end, (packet.pts + (packet.duration or 0)) * packet.time_base)
        return float(end - self.start * self.time_base)


def _decode_pyav(source, name: str, choose: Chooser, allow_partial: bool, in_sequence: bool) -> DecodedVideo:
    with VideoFile(source, name) as file:
        file.scan()
        claimed, problem = file.timestamps(file.pts), file.damage()
        # What a strict decoder objects to need not be in the pictures.
        can_be_whole = problem is None and file.codec in FLAGGING_CODECS and any(file.is_key)
        if problem is None and not in_sequence and file.is_indexed():
            try:
                return _by_index(file, choose)
            except (av.FFmpegError, _MissingFrame):
                file.reopen()  # the sequence will tell, or do better
        if problem is None:
            try:
                return _in_sequence(file, choose, claimed)
            except av.FFmpegError as error:
                problem = f"cannot be decoded as a whole ({error_message(error)})."
    if allow_partial or can_be_whole:
        with VideoFile(source, name, strict=False) as tolerant:
            video = _in_sequence(tolerant, choose, claimed)
        if can_be_whole and not tolerant.faults and len(video.timestamps) == len(file.pts) - file.is_key.index(True):
            return video
        if allow_partial:
            video.problem = f"{problem} {len(video.timestamps)} frames can be decoded."
            return video
    remedy = "Fetch it again, or use what can be decoded of it (`allow_partial`)."
    raise VideoReadError(name, problem, remedy, "pyav")


class _MissingFrame(Exception):
    """A frame that the packets announce does not come out of the decoder, or not in its order."""


def _by_index(file: VideoFile, choose: Chooser) -> DecodedVideo:
    order = sorted(file.pts)
    timestamps = file.timestamps(order)
    indices = choose(timestamps)
    wanted = {order[index] for index in indices}
    images, to_image, last = {}, ToImage(file.name), None
    for frame in file.decode_for(wanted):
        if frame.pts is None or (last is not None and frame.pts <= last):
            raise _MissingFrame
        last = frame.pts
        if frame.pts in wanted:
            images[frame.pts] = to_image(frame)
    if len(images) < len(wanted):
        raise _MissingFrame
    images = [images[order[index]] for index in indices]
    return DecodedVideo(images, indices, timestamps, "pyav", "index", file.codec, file.fps)


def _in_sequence(file: VideoFile, choose: Chooser, claimed: np.ndarray) -> DecodedVideo:
    """Decode all frames. Only then it is known which there are: they are chosen by what is `claimed`, and once more
    where that was wrong.
    """
    claims = [claimed, claimed[:-1]] if file.has_guessed_times else [claimed]
    wanted = set()
    for claim in claims:
        # A frame that is not there by a claim may be there in truth.
        with suppress(UnavailableFramesError, ValueError):
            wanted.update(choose(claim) if len(claim) else [])
    images, timestamps = _decode_numbers(file, wanted)
    if len(timestamps) == 0:
        raise VideoReadError(file.name, "has no frame that can be decoded.", "Fetch it again.", "pyav")
    indices = choose(timestamps)
    if not images.keys() >= set(indices):
        file.reopen()
        images, _ = _decode_numbers(file, set(indices))
    images = [images[index] for index in indices]
    return DecodedVideo(images, indices, timestamps, "pyav", "sequence", file.codec, file.fps)


def _decode_numbers(file: VideoFile, wanted: set[int]) -> tuple[dict[int, np.ndarray], np.ndarray]:
    """The images of frames by number, and the times of all frames, from one pass over a file."""
    images, pts, to_image = {}, [], ToImage(file.name)
    for number, frame in enumerate(file.decode_all()):
        if number in wanted:
            images[number] = to_image(frame)
        pts.append(frame.pts)
    return images, file.timestamps(pts)


class ToImage:
    """Frames as upright RGB arrays (H, W, 3). Kept over a file, it is three times as fast as PyAV's `to_ndarray`."""

    def __init__(self, name: str):
        self.name, self.reformatter, self.matrix = name, VideoReformatter(), None

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        if self.matrix is None:
            self.matrix = _display_matrix(frame)
        image = self.reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
        return self._turn(image) if self.matrix.any() else image

    def _turn(self, image: np.ndarray) -> np.ndarray:
        """As a player does."""
        matrix = self.matrix
        a, b, c, d = np.rint(matrix / np.abs(matrix).max())
        if abs(a) + abs(b) != 1 or abs(a) != abs(d) or abs(b) != abs(c):
            reason = "is to be shown at an angle that is not a multiple of 90 degrees."
            raise VideoReadError(self.name, reason, "Re-encode it.", "pyav")
        if b:
            image = image.swapaxes(0, 1)
        return image[:: int(b + d), :: int(a + c)]


def _display_matrix(frame: av.VideoFrame) -> np.ndarray:
    """`(a, b, c, d)`, which shows the point (x, y) at (a x + c y, b x + d y); zeros where nothing is to be turned."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    return np.zeros(4) if matrix is None else np.frombuffer(matrix, np.int32)[[0, 1, 3, 4]].astype(float)


# decord goes wrong by index in other codecs: in HEVC, WMV2 and MPEG-2, by up to 12 frames.
DECORD_INDEXED_CODECS = ("h264", "mpeg4", "vp9", "mjpeg", "ffv1")


def _decode_decord(source, name: str, choose: Chooser, allow_partial: bool, in_sequence: bool) -> DecodedVideo:
    decord = require_backend("decord")
    file, timestamps, is_indexed = _inspect(source, name, "decord", in_sequence)
    indices = choose(timestamps)
    try:
        reader = decord.VideoReader(_in_utf8(source), num_threads=1)
        if is_indexed and not in_sequence and file.codec in DECORD_INDEXED_CODECS:
            access, images = "index", list(reader.get_batch(indices).asnumpy())
        else:
            wanted, by_number = set(indices), {}
            for number in range(max(indices) + 1):
                image = reader.next()
                if number in wanted:
                    by_number[number] = image.asnumpy()
            access, images = "sequence", [by_number[index] for index in indices]
    except (decord.DECORDError, StopIteration) as error:
        # Its messages begin with the time and the place in its source.
        message = re.sub(r"^.*\.(cc|h):\d+: (\[.*?\] )?", "", (str(error).strip() or "it ended").splitlines()[-1])
        raise _refusal(name, f"cannot be read by decord ({message}).", "decord") from error
    if images[0].shape[-1] != 3:
        raise _refusal(name, f"is given frames of shape {images[0].shape} by decord.", "decord")
    return DecodedVideo(images, indices, timestamps, "decord", access, file.codec, file.fps)


def _decode_torchcodec(source, name: str, choose: Chooser, allow_partial: bool, in_sequence: bool) -> DecodedVideo:
    decoders = require_backend("torchcodec")
    file, timestamps, is_indexed = _inspect(source, name, "torchcodec", in_sequence)
    if not is_indexed:
        # It has no other access, and by index it is wrong in such files, mostly in silence.
        raise _refusal(name, "has no index that can be trusted, and torchcodec reads by index only.", "torchcodec")
    indices = choose(timestamps)
    try:
        decoder = decoders.VideoDecoder(_in_utf8(source), dimension_order="NHWC", num_ffmpeg_threads=1)
        if len(decoder) != len(timestamps):
            raise _refusal(name, f"has {len(timestamps)} frames, and {len(decoder)} for torchcodec.", "torchcodec")
        images = list(decoder.get_frames_at(indices).data.numpy())
    except (RuntimeError, IndexError) as error:
        raise _refusal(name, f"cannot be read by torchcodec ({str(error).splitlines()[0]}).", "torchcodec") from error
    if not hasattr(decoder.metadata, "rotation"):
        raise ImportError("This torchcodec does not turn videos upright. Install 0.11 or newer.")
    return DecodedVideo(images, indices, timestamps, "torchcodec", "index", file.codec, file.fps)


def _inspect(source, name: str, backend: str, in_sequence: bool) -> tuple[VideoFile, np.ndarray, bool]:
    """What another library is not to be trusted with: damage, the number of frames and their times, by PyAV."""
    with VideoFile(source, name) as file:
        file.scan()
        problem = file.damage()
        if file.has_hidden:
            problem = f"hides frames by an edit list, which {backend} may show."
        if problem is not None:
            raise _refusal(name, problem, backend)
        is_indexed = file.is_indexed()
        timestamps = file.timestamps(sorted(file.pts)) if is_indexed else None
        a, b, c, d = next(map(_display_matrix, file.decode_all()), np.zeros(4))
        if a * d - b * c < 0:
            raise _refusal(name, f"is to be shown mirrored, which {backend} does not.", backend)
        if in_sequence or not is_indexed:
            file.reopen()
            timestamps = _in_sequence(file, lambda _: [], np.array([])).timestamps
    return file, timestamps, is_indexed


def _refusal(name: str, reason: str, backend: str) -> VideoReadError:
    return VideoReadError(name, reason, "Let another backend read it (`backend='auto'`).", backend)


def _in_utf8(source):
    """A file as libraries take it that know names in UTF-8 only, from its beginning."""
    if not isinstance(source, str):
        source.seek(0)
    elif not source.isprintable():
        with open(source, "rb") as file:
            return io.BytesIO(file.read())
    return source


_DECODERS = {"pyav": _decode_pyav, "decord": _decode_decord, "torchcodec": _decode_torchcodec}


def error_message(error: Exception) -> str:
    """FFmpeg's own words, without the path that PyAV repeats."""
    return getattr(error, "strerror", None) or str(error)


# ---- Reading frames ----


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
