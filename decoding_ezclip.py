"""Video files as frames: those of a full sequential decode in display order, as fast as the file allows.

What a file's index promises is often wrong (all of HMDB-51 has a frame more in its headers than in its pictures), so
it is not used. The packets are read instead, which costs a hundredth of decoding them. Where they give each frame its
own time, only those that the wanted frames depend on are decoded; where they do not, all of them are, in sequence.
"""

import gc
import importlib
import io
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice, pairwise

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from .container_ezclip import PictureCheck, find_cut
from .sampling_ezclip import UnavailableFramesError


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
    where that was wrong."""
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
