"""Video files as frames: those of a full sequential decode in display order, as fast as the file allows.

What a file's index promises is often wrong (all of HMDB-51 has a frame more in its headers than in its pictures), so
it is not used. The packets are read instead, which costs a hundredth of decoding them. Where they give each frame its
own time, only those that the wanted frames depend on are decoded; where they do not, all of them are, in sequence.
"""

import contextlib
import importlib
import io
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice, pairwise

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from .sampling_ezclip import UnavailableFramesError


BACKENDS = ("auto", "pyav", "decord", "torchcodec")

# Containers that store the time of each frame, and codecs that decode exactly from any of their key frames on.
INDEXED_CONTAINERS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi")
INDEXED_CODECS = ("h264", "hevc", "mpeg4", "vp8", "vp9", "libdav1d", "mjpeg", "ffv1")
# Codecs whose decoder can leave out, packet by packet, frames that no other frame refers to.
SKIPPING_CODECS = ("h264", "hevc")
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
            Name of the codec.
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
        reason = f"cannot be decoded ({_message(error)})."
        raise VideoReadError(name, reason, "Fetch it again, or re-encode it.", backend) from error


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


class _File:
    """
    A video file, opened, and after [`scan`] what its packets say of its frames, in file order: `pts`, `is_key`, and
    whether any `is_damaged` or `is_hidden` (by an edit list).
    """

    def __init__(self, source, name: str, strict: bool = True):
        self.source, self.name, self.strict = source, name, strict
        self._open()

    def _open(self):
        if hasattr(self.source, "seek"):
            self.source.seek(0)
        try:
            # HMDB-51 has files whose metadata is not UTF-8.
            self.container = av.open(self.source, metadata_errors="ignore")
        except (av.FFmpegError, UnicodeDecodeError) as error:
            reason = f"is not a video file that FFmpeg can open ({_message(error)})."
            raise VideoReadError(self.name, reason, "Fetch it again, or re-encode it.", "pyav") from error
        self.stream = self.container.streams.best("video")
        if self.stream is None:
            self.container.close()
            raise VideoReadError(self.name, "has no video stream.", "Is it a sound file?", "pyav")
        self.context = self.stream.codec_context
        if self.context is None:
            self.container.close()
            raise VideoReadError(self.name, "is in a codec that FFmpeg does not know.", "Re-encode it.", "pyav")
        self.codec, self.time_base = self.context.name, self.stream.time_base
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

    def scan(self):
        """Read all packets, without decoding any."""
        self.pts, self.is_key, self.is_damaged, self.is_hidden, self.last_dts = [], [], False, False, -1
        self._kept, size = [], 0
        try:
            for packet in self.container.demux(self.stream):
                if packet.size == 0 and packet.dts is None:  # says that the file is over
                    continue
                self.pts.append(packet.pts)
                self.is_key.append(packet.is_keyframe)
                self.last_dts = max(self.last_dts, -1 if packet.dts is None else packet.dts)
                self.is_damaged |= packet.is_corrupt
                self.is_hidden |= packet.is_discard
                size += packet.size
                if size <= MAX_KEPT_BYTES:
                    self._kept.append(packet)
        except av.FFmpegError:
            self.is_damaged = True
        if size > MAX_KEPT_BYTES:
            self._kept = None

    def damage(self) -> str | None:
        """What is missing of what the header promises."""
        count, promised = len(self.pts), self.stream.frames
        if self.is_damaged:
            return f"is cut off within frame {count}."
        # AVI counts a frame several times that is shown for longer. Some headers count a few too many.
        reached = self.last_dts + 1 if self.container.format.name == "avi" else count
        if reached < promised - max(1, 0.02 * promised):
            return f"is cut off: {reached} of {promised} frames are there."
        if not promised and self.container.duration and self.pts and None not in self.pts:
            duration = self.container.duration / av.time_base
            least = duration - max(1.0, 0.05 * duration)
            if self._seconds(max(self.pts)) < least and (end := self._end_of_any_stream()) < least:
                return f"is cut off: {end:.1f} of {duration:.1f} seconds are there."
        return None

    def is_indexed(self) -> bool:
        """Whether the packets give each frame its own time, and one can begin at key frames."""
        # AVI stores no times, and DivX may put two frames into a packet: with B-frames the times are a guess.
        has_guessed_times = self.container.format.name == "avi" or self.codec == "mpeg4"
        return (
            self.container.format.name in INDEXED_CONTAINERS
            and self.codec in INDEXED_CODECS
            and not (self.context.has_b_frames and has_guessed_times)
            and not self.is_hidden
            and None not in self.pts
            and self.is_key[0]
            and self.pts[0] == min(self.pts)
            and len(set(self.pts)) == len(self.pts)
        )

    def timestamps(self, pts: list[int | None]) -> np.ndarray:
        """Seconds from the beginning of these times; by the average rate where they make no sense."""
        if None not in pts and all(a < b for a, b in pairwise(pts)):
            return np.array([self._seconds(value) for value in pts])
        return np.arange(len(pts)) / (self.fps or 1.0)

    def decode_all(self, tolerant: bool = False) -> Iterator[av.VideoFrame]:
        """All frames in display order; if `tolerant`, those that can be decoded."""
        packets = self.container.demux(self.stream)
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    return
                for frame in self.context.decode(packet):
                    if not (tolerant and frame.is_corrupt):
                        yield frame
            except av.FFmpegError:
                if not tolerant:
                    raise

    def decode_for(self, wanted: set[int]) -> Iterator[av.VideoFrame]:
        """The frames with the wanted times, among others."""
        plan, position = self._plan(wanted), None
        can_skip = self.codec in SKIPPING_CODECS
        for number, packet in self._packets(plan):
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

    def _packets(self, plan: list[int]) -> Iterator[tuple[int, av.Packet]]:
        if self._kept is not None:
            return ((number, self._kept[number]) for number in plan)
        self.container.close()
        self._open()
        packets = enumerate(self.container.demux(self.stream))
        planned = set(plan)
        return ((number, packet) for number, packet in islice(packets, plan[-1] + 1) if number in planned)

    def _seconds(self, pts: int) -> float:
        return float((pts - self.start) * self.time_base)

    def _end_of_any_stream(self) -> float:
        """Seconds at which the last packet ends: sound may go on after the picture."""
        end = self.start * self.time_base
        with _File(self.source, self.name) as again, contextlib.suppress(av.FFmpegError):
            for packet in again.container.demux():
                if packet.pts is not None:
                    end = max(end, (packet.pts + (packet.duration or 0)) * packet.time_base)
        return float(end - self.start * self.time_base)


def _decode_pyav(source, name: str, choose: Chooser, allow_partial: bool, in_sequence: bool) -> DecodedVideo:
    with _File(source, name) as file:
        file.scan()
        claimed, problem = file.timestamps(file.pts), file.damage()
        if problem is None and not in_sequence and file.pts and file.is_indexed():
            try:
                return _by_index(file, choose)
            except (av.FFmpegError, _MissingFrame):
                pass  # the sequence will tell, or do better
    if problem is None:
        try:
            return _in_sequence(source, name, choose, claimed)
        except av.FFmpegError as error:
            problem = f"cannot be decoded as a whole ({_message(error)})."
    if not allow_partial:
        remedy = "Fetch it again, or use what can be decoded of it (`allow_partial`)."
        raise VideoReadError(name, problem, remedy, "pyav")
    video = _in_sequence(source, name, choose, claimed, tolerant=True)
    video.problem = f"{problem} {len(video.timestamps)} frames can be decoded."
    return video


class _MissingFrame(Exception):
    """A frame that the packets announce does not come out of the decoder."""


def _by_index(file: _File, choose: Chooser) -> DecodedVideo:
    order = sorted(file.pts)
    timestamps = file.timestamps(order)
    indices = choose(timestamps)
    wanted = {order[index] for index in indices}
    images, to_image = {}, _ToImage()
    for frame in file.decode_for(wanted):
        if frame.pts in wanted:
            images[frame.pts] = to_image(frame)
    if len(images) < len(wanted):
        raise _MissingFrame
    images = [images[order[index]] for index in indices]
    return DecodedVideo(images, indices, timestamps, "pyav", "index", file.codec, file.fps)


def _in_sequence(source, name: str, choose: Chooser, claimed: np.ndarray, tolerant: bool = False) -> DecodedVideo:
    """Decode all frames. Only then it is known which there are: they are chosen by what is `claimed`, and once more
    where that was wrong."""
    try:
        wanted = set(choose(claimed)) if len(claimed) else set()
    except UnavailableFramesError:
        wanted = set()
    images, timestamps, file = _decode_numbers(source, name, wanted, tolerant)
    if len(timestamps) == 0:
        raise VideoReadError(name, "has no frame that can be decoded.", "Fetch it again.", "pyav")
    indices = choose(timestamps)
    if not images.keys() >= set(indices):
        images, _, _ = _decode_numbers(source, name, set(indices), tolerant)
    images = [images[index] for index in indices]
    return DecodedVideo(images, indices, timestamps, "pyav", "sequence", file.codec, file.fps)


def _decode_numbers(source, name: str, wanted: set[int], tolerant: bool = False):
    """The images of frames by number, and the times of all frames, from one pass over a file."""
    images, pts, to_image = {}, [], _ToImage()
    with _File(source, name, strict=not tolerant) as file:
        for number, frame in enumerate(file.decode_all(tolerant)):
            if number in wanted:
                images[number] = to_image(frame)
            pts.append(frame.pts)
    return images, file.timestamps(pts), file


class _ToImage:
    """Frames as upright RGB arrays (H, W, 3). Kept over a file, it is three times as fast as PyAV's `to_ndarray`."""

    def __init__(self):
        self.reformatter = VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        image = self.reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
        # As a player does; PyAV leaves a phone's rotation to the caller.
        return np.rot90(image, frame.rotation // 90)


# decord goes wrong by index in other codecs: in HEVC, WMV2 and MPEG-2, by up to 12 frames.
DECORD_INDEXED_CODECS = ("h264", "mpeg4", "vp8", "vp9", "mjpeg", "ffv1")


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


def _inspect(source, name: str, backend: str, in_sequence: bool) -> tuple[_File, np.ndarray, bool]:
    """What another library is not to be trusted with: damage, the number of frames and their times, by PyAV."""
    with _File(source, name) as file:
        file.scan()
        problem = file.damage()
        if file.is_hidden:
            problem = f"hides frames by an edit list, which {backend} may show."
        if problem is not None:
            raise _refusal(name, problem, backend)
        is_indexed = bool(file.pts) and file.is_indexed()
        timestamps = file.timestamps(sorted(file.pts)) if is_indexed else None
    if in_sequence or not is_indexed:
        timestamps = _in_sequence(source, name, lambda _: [], np.array([])).timestamps
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


def _message(error: Exception) -> str:
    """FFmpeg's own words, without the path that PyAV repeats."""
    return getattr(error, "strerror", None) or str(error)
