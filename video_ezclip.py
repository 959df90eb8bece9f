"""Read, decode and sample videos: everything between a file, or an address, and an array of frames."""

import gc
import heapq
import importlib
import io
import ipaddress
import numbers
import operator
import os
import re
import socket
import time
import urllib.parse
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache, partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, BinaryIO

import av
import fsspec
import numpy as np
from av.error import ArgumentError, FFmpegError
from av.sidedata.sidedata import Type as SideDataType
from av.stream import Disposition
from av.video.reformatter import VideoReformatter
from PIL import Image, ImageOps, ImageSequence


MAX_NAMED = 10  # places in a message
IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
VIDEO_EXTENSIONS = (
    *(".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv"),
    *(".flv", ".ts", ".mts", ".m2ts", ".3gp", ".ogv", ".vob", ".divx", ".gif"),
)
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "WEBP")  # Pillow's names. Its other readers may start programs.
STILL_BRANDS = (b"heic", b"heix", b"mif1", b"avif")  # of phone photos, which FFmpeg reads as MP4 files of a frame
# FFmpeg's names. Other containers read other files, devices or the network, or take any text for a video.
CONTAINERS = (
    *("mov", "matroska", "webm", "avi", "mpegts", "mpeg", "mpegvideo", "flv", "ogg", "asf", "gif", "apng", "nut"),
    *("mxf", "rm", "dv", "ivf", "av1", "obu", "h264", "hevc", "m4v", "mjpeg", "vc1", "wtv"),
    *("mp3", "wav", "flac", "aac"),  # whose error says that they have no video
)
PLAYLISTS = ("hls", "concat")  # containers that name other files
PLAYLIST_PROTOCOLS = ("file", "http", "https", "tcp", "tls", "crypto", "data")
READ_SIZE = 2**20  # bytes
NAT64 = ipaddress.ip_network("64:ff9b::/96")  # carries addresses of IPv4
GLOBAL_IPV6 = ipaddress.ip_network("2000::/3")  # `is_global` is also true of what was never assigned

# Control characters but tab and line feed, line separators, changes of the direction of writing, lone surrogates
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# Parameters of a URL that give access: S3, Google Cloud, Azure, CloudFront and the usual names
SECRET_NAME = re.compile(
    r"signature|token|secret|passw|credential|session|auth|access.?key|accessid|key-pair|api.?key|hmac|jwt|hdnea|hdnts"
    r"|^(sig|pwd|key|policy)$",
    re.IGNORECASE,
)
PARAMETER = re.compile(r"(?<=[?&;#])([\w.%-]{1,100})=[^&;#\s\"<>]*[^&;#\s\"<>)'.,]")
SECRETS = (
    (re.compile(r"(?<=://)[^/?#\s'\"]+@"), "***@"),
    (re.compile(r"\b(hf_|sk-)[A-Za-z0-9_-]{8,}"), r"\1***"),
    (re.compile(r"\b(Bearer )\S+", re.IGNORECASE), r"\1***"),
)


# ---- Limits and errors ----


def _limit(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass
class ReadLimits:
    """
    What reading one video may take, and where it may reach. The defaults fit 8K video and files of some hours.

    decord and torchcodec know no limits: before they decode a file, its packets and key frames are checked.

    Raises:
        `ValueError`: if a limit is not a number above 0.
    """

    max_pixels: int = _limit(8192 * 4320, "largest frame or picture, in pixels")
    max_clip_bytes: int = _limit(2**32, "largest clip in memory, in bytes, after its frames are cropped")
    max_packets: int = _limit(2_000_000, "packets of a file, sound included; of a stream, packets without a frame")
    max_download_bytes: int = _limit(2**30, "largest file to fetch, or picture; of a stream, bytes without a frame")
    max_download_seconds: float = _limit(600.0, "longest time to fetch a file")
    allow_playlists: bool = _limit(False, "whether to read playlists (HLS, concat), which name other files")
    public_addresses_only: bool = _limit(False, "whether URLs must be of http or https and lead to public addresses")

    def __post_init__(self):
        for name in ("max_pixels", "max_clip_bytes", "max_packets", "max_download_bytes", "max_download_seconds"):
            if not (value := getattr(self, name)) > 0:
                raise ValueError(f"`{name}` must be a number above 0, got {value}.")


DEFAULT_LIMITS = ReadLimits()


class VideoReadError(ValueError):
    """
    Raised when a video cannot be read.

    `video` is the file or a description of the input, `reason` says what is wrong, `remedy` says what the user can
    do, and `backend` is the backend that tried to decode it, if any. All are printable and without secrets.
    """

    def __init__(self, video: str, reason: str, remedy: str, backend: str | None = None):
        video, reason, remedy = map(clean, (video, reason, remedy))
        super().__init__(video, reason, remedy, backend)
        self.video, self.reason, self.remedy, self.backend = video, reason, remedy, backend

    def __str__(self) -> str:
        return f"{self.video}: {self.reason} {self.remedy}" + (f" (backend: {self.backend})" if self.backend else "")


class ReadLimitError(VideoReadError):
    """Raised when reading a video would exceed one of its [`ReadLimits`]."""


def limit_error(video: str, what: str, option: str, limits: ReadLimits) -> ReadLimitError:
    """Return the error of a video that exceeds a limit. `what` says by how much, `option` is the name of the limit."""
    reason = f"{what}; `{option}` is {getattr(limits, option):,}."
    return ReadLimitError(video, reason, f"Leave it out, or raise `{option}` if you trust it.")


def memory_error(video: str) -> VideoReadError:
    """Return the error of a video that takes more memory than there is."""
    return VideoReadError(video, "takes more memory than there is.", "Make it smaller, or give it more memory.")


def picture_error(video: str) -> VideoReadError:
    """Return the error of a picture in the place of a video."""
    remedy = "Give a video. To use a picture on purpose, pass a list of pictures: `[PIL.Image.open(path)]`."
    return VideoReadError(video, "is a picture, not a video.", remedy)


def printable(text: str) -> str:
    r"""Escape what a terminal would obey, or a text file could not hold: "\x1b[2J" is printed, not carried out."""
    return UNPRINTABLE.sub(lambda match: match.group().encode("unicode_escape").decode("ascii"), text)


def mask_secrets(text: str) -> str:
    """Replace passwords, signatures and tokens by `***`: in URLs, in headers, and those of the Hub and of OpenAI."""
    for pattern, replacement in SECRETS:
        text = pattern.sub(replacement, text)

    def mask(match: re.Match) -> str:
        return f"{match[1]}=***" if SECRET_NAME.search(urllib.parse.unquote(match[1])) else match[0]

    return PARAMETER.sub(mask, text)


def clean(text: str) -> str:
    """Return a text that is safe to show and to write: [`printable`], and without secrets ([`mask_secrets`])."""
    return mask_secrets(printable(text))


def describe_video(video) -> str:
    """Return a name of `video` for messages and results: its path, if it has one, printable and without secrets."""
    if isinstance(video, dict):
        video = video.get("path") or video.get("bytes")
    if isinstance(video, (str, os.PathLike)):
        # File names need not be valid UTF-8, but printed and written text must be.
        name = os.fspath(video).encode("utf-8", errors="backslashreplace").decode("utf-8")
        if is_url(name):
            name = name.replace(" ", "%20")  # a part of it, and not its end
        return clean(name) or "''"
    if isinstance(video, (bytes, bytearray, memoryview)):
        return f"<{len(video)} bytes>"
    if hasattr(video, "shape"):
        return f"<array of shape {tuple(video.shape)}>"
    if hasattr(video, "read"):
        return clean(str(getattr(video, "name", "<file object>")))
    return f"<{type(video).__name__}>"


# ---- Open ----


def is_url(path: str) -> bool:
    """Return whether a path begins with a file system: "https://…", "hf://…"."""
    return re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", path) is not None


def local_path(path: str) -> str:
    """Return the path of a "file:" URL, and any other path or URL unchanged."""
    if re.match("file://(localhost)?/", path, re.IGNORECASE) is None:
        return path
    # File names are bytes: decode invalid UTF-8 as `os.fsdecode` does.
    return urllib.parse.unquote(urllib.parse.urlsplit(path).path, errors="surrogateescape")


def is_frame(path: str | Path) -> bool:
    """Return whether a file has the extension of a frame image and is not hidden."""
    name = os.path.basename(path)
    return name.lower().endswith(IMAGE_EXTENSIONS) and not name.startswith(".")


@dataclass
class FolderContents:
    """
    The videos of a folder, as [`list_folder`] finds them.

    Args:
        videos (`list[str]`):
            Paths of video files, or of folders of frame images, sorted.
        pictures_left_out (`dict[str, list[str]]`):
            Pictures that belong to no video: for each folder with such pictures, their names, sorted.
        others (`list[str]`):
            Paths of files that are neither videos nor pictures, sorted.
    """

    videos: list[str]
    pictures_left_out: dict[str, list[str]]
    others: list[str]

    def describe_left_out(self) -> str | None:
        """Return a sentence that names the pictures left out, or None if there are none."""
        if not self.pictures_left_out:
            return None
        count = sum(map(len, self.pictures_left_out.values()))
        places = [
            os.path.join(folder, names[0]) if len(names) == 1 else f"{len(names)} in {folder} ({names[0]}, …)"
            for folder, names in list(self.pictures_left_out.items())[:MAX_NAMED]
        ]
        more = ", …" if len(self.pictures_left_out) > MAX_NAMED else ""
        pictures, them = ("1 picture is", "it") if count == 1 else (f"{count} pictures are", "them")
        return f"{pictures} left out, because videos are beside {them}: {'; '.join(places)}{more}."


def list_folder(folder: str | Path) -> FolderContents:
    """
    Find the videos of a folder, at any depth, by one rule for all commands.

    - Pictures only: a folder of pictures is one video, and its pictures are the frames.
    - Any video file, at any depth: the video files are the videos. All pictures are left out, also those in folders of
      their own: they may be photos or thumbnails.

    A picture beside folders of pictures is left out too. Hidden files and folders, and `__MACOSX`, are not looked at.
    A link to a folder that is found without it adds nothing.

    Raises:
        `OSError`: if a folder cannot be listed.
    """
    videos, pictures, others = [], {}, []
    pending, links, seen = [os.fspath(folder)], [], set()
    while pending or links:
        # Links come last, in their order: a folder keeps its own videos
        place = pending.pop() if pending else heapq.heappop(links)
        if (real := os.path.realpath(place)) in seen:
            continue
        seen.add(real)
        names = []
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name == "__MACOSX":
                    continue
                if os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
                    heapq.heappush(links, entry.path) if entry.is_symlink() else pending.append(entry.path)
                elif is_frame(entry.name):
                    names.append(entry.name)
                else:
                    (videos if entry.name.lower().endswith(VIDEO_EXTENSIONS) else others).append(entry.path)
        if names:
            pictures[place] = sorted(names)
    left_out = pictures
    if not videos:
        # Folders with pictures somewhere below them
        above = {str(parent) for place in pictures for parent in Path(place).parents}
        videos = [place for place in pictures if str(Path(place)) not in above]
        left_out = {place: pictures[place] for place in pictures.keys() - set(videos)}
    return FolderContents(sorted(videos), dict(sorted(left_out.items())), sorted(others))


def open_source(video, name: str, limits: ReadLimits = DEFAULT_LIMITS) -> str | BinaryIO:
    """
    Return an absolute path, or a seekable file object, for a path, URL, the bytes of a file, or an open file.

    Raises:
        [`VideoReadError`]: if there is no such file, it is empty, or it exceeds the limits. `TypeError`: if `video`
        has another type.
    """
    if isinstance(video, (bytes, bytearray, memoryview)):
        return io.BytesIO(video)
    if hasattr(video, "read"):
        is_seekable = hasattr(video, "seekable") and video.seekable()
        if isinstance(video.read(0), str):
            raise VideoReadError(name, "is open as text.", 'Open it in binary mode ("rb").')
        return video if is_seekable else io.BytesIO(BoundedFile(video, name, limits).read_all())
    if not isinstance(video, str):
        raise TypeError(
            "A video must be a path, URL, bytes, file object, `datasets` row, array, tensor or list of images, got "
            f"{type(video).__name__}. If `datasets` gave you a decoder, cast its column to `Video(decode=False)`."
        )
    if is_url(video):
        with open_url(video, name, limits) as remote:
            return io.BytesIO(remote.read_all())
    check_regular_file(video, name)
    # FFmpeg reads the beginning of "clip:1.mp4" as a protocol, unless the path is absolute.
    return os.path.abspath(video)


def check_regular_file(path: str | Path, name: str):
    """Raise [`VideoReadError`] if there is no such file, it is empty, or reading it could hang: a pipe, a device."""
    if not os.path.exists(path):
        raise VideoReadError(name, "does not exist.", "Check the path, or the folder that it is relative to.")
    if not os.path.isfile(path):
        raise VideoReadError(name, "is not a regular file.", "Pass its bytes, or an open file.")
    if os.path.getsize(path) == 0:
        raise VideoReadError(name, "is an empty file.", "Fetch it again.")


def open_picture(path, name: str, limits: ReadLimits = DEFAULT_LIMITS) -> Image.Image:
    """
    Open a picture of one of `IMAGE_FORMATS`, whatever its name. Its pixels are not decoded yet.

    Raises:
        [`VideoReadError`]: if it is not a regular file, or too large. Pillow raises errors of many types for a file
        that it cannot read.
    """
    if isinstance(path, (str, Path)):
        check_regular_file(path, name)
        if os.path.getsize(path) > limits.max_download_bytes:  # Pillow reads some formats as a whole
            raise limit_error(name, "is a larger file than allowed", "max_download_bytes", limits)
    try:
        picture = Image.open(path, formats=IMAGE_FORMATS)
    except Image.DecompressionBombError as error:
        raise limit_error(name, "has too many pixels", "max_pixels", limits) from error
    check_pixels(*picture.size, name, limits)
    return picture


def check_pixels(width: int, height: int, name: str, limits: ReadLimits):
    """Raise [`VideoReadError`] if a frame has more pixels than `max_pixels`."""
    if width * height > limits.max_pixels:
        raise limit_error(name, f"has frames of {width} x {height} pixels", "max_pixels", limits)


class BoundedFile:
    """A file object that gives at most `max_download_bytes` in `max_download_seconds`. It can seek if `file` can."""

    def __init__(self, file, name: str, limits: ReadLimits):
        # `read1` returns the bytes that have arrived. `read` waits until it has as many as requested.
        self._read = getattr(file, "read1", file.read)
        if getattr(file, "seekable", lambda: False)():
            self.seek, self.tell = file.seek, file.tell
        self.name, self.limits = name, limits
        self.renew()

    def renew(self):
        """Count bytes and time from now on."""
        self.num_bytes, self.deadline = 0, time.monotonic() + self.limits.max_download_seconds

    def read(self, size: int = READ_SIZE) -> bytes:
        """Return at most `size` bytes, none at the end."""
        content = self._read(size)
        # PyAV copies what it gets into a buffer of the requested size, whatever the length.
        if not isinstance(content, (bytes, bytearray, memoryview)) or len(content) > size:
            reason = f"gives no bytes, or more than the {size} that are requested."
            raise VideoReadError(self.name, reason, "Pass a file object that reads bytes.")
        if time.monotonic() > self.deadline:
            raise limit_error(self.name, "takes longer to fetch than allowed", "max_download_seconds", self.limits)
        self.num_bytes += len(content)
        if self.num_bytes > self.limits.max_download_bytes:
            raise limit_error(self.name, "is longer than allowed", "max_download_bytes", self.limits)
        return bytes(content)

    def read_all(self) -> bytes:
        """Return the rest of the file."""
        parts = bytearray()
        while content := self.read():
            parts += content
        return bytes(parts)


@contextmanager
def open_url(url: str, name: str, limits: ReadLimits = DEFAULT_LIMITS) -> Iterator[BoundedFile]:
    """
    Open a URL of any file system that fsspec knows.

    Raises:
        [`VideoReadError`]: if it cannot be fetched, or exceeds the limits.
    """
    is_http, options = re.match("https?://", url, re.IGNORECASE) is not None, {}
    if limits.public_addresses_only and (not is_http or "::" in url):
        raise VideoReadError(name, "is not an address of http or https.", "Give one, or the file itself.")
    if is_http:
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=limits.max_download_seconds)
        options["client_kwargs"] = {"timeout": timeout, "response_class": _bounded_response()}
        if limits.public_addresses_only:
            options["get_client"] = _get_public_client
    try:
        with fsspec.open(url, "rb", **options) as remote:
            yield BoundedFile(remote, name, limits)
    except VideoReadError:
        raise
    except Exception as error:  # each file system has its own exception types
        raise VideoReadError(name, f"cannot be fetched ({_root_cause(error)}).", "Check the address.") from error


@cache
def _bounded_response() -> type:
    import aiohttp

    class BoundedResponse(aiohttp.ClientResponse):
        """An answer that gives at most the requested range: servers may send more, or compress more into it."""

        async def read(self) -> bytes:
            wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.request_info.headers.get("Range", ""))
            if wanted is None:
                return await super().read()
            size, parts = int(wanted[2]) - int(wanted[1]) + 1, bytearray()
            async for part in self.content.iter_any():
                parts += part
                if len(parts) > size:
                    raise OSError("the server sends more than the requested range")
            return bytes(parts)

    return BoundedResponse


async def _get_public_client(**kwargs):
    import aiohttp

    # The factory sees each address that is connected to: after name resolution, and at each redirect.
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(socket_factory=_make_public_socket), **kwargs)


def _make_public_socket(info: tuple) -> socket.socket:
    address = ipaddress.ip_address(info[4][0].partition("%")[0])
    # IPv6 can carry an address of IPv4.
    address = getattr(address, "ipv4_mapped", None) or getattr(address, "sixtofour", None) or address
    if address in NAT64:
        address = ipaddress.IPv4Address(int(address) % 2**32)
    is_assigned = address.version == 4 or address in GLOBAL_IPV6
    if not is_assigned or not address.is_global or address.is_multicast:
        raise OSError(f"{address} is not a public address")
    return socket.socket(*info[:3])


def _root_cause(error: BaseException) -> str:
    """Return the message of the first cause: the error of a file system itself is often the address alone."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, FileNotFoundError) and error.errno is None:
        return "not found"
    return re.sub(r",? url=.*", "", str(error)) or type(error).__name__


# ---- Read frames ----


BACKENDS = ("auto", "pyav", "decord", "torchcodec")
MAX_FPS = 1000
MAX_TICKS = 10_000_000  # of `fps`
ROUNDING = 1e-6  # of times, in seconds

# Maps the number of frames to the 0-based indices to take. It may be called more than once for a video, so it must
# return the same indices for the same number.
FrameSampler = Callable[[int], Sequence[int]]
# Maps the display times of all frames, or None if unknown, and their number to the 0-based indices to take.
FrameSelector = Callable[[np.ndarray | None, int], list[int]]
# Maps a frame (H, W, 3), uint8, to what is kept of it, such as a crop.
FrameTransform = Callable[[np.ndarray], np.ndarray]


class UnavailableFramesError(LookupError):
    """Raised when a video does not have the requested frames."""


@dataclass
class VideoFramesMetadata:
    """Metadata of the frames read from a video, with the field names of `transformers.video_utils.VideoMetadata`."""

    total_num_frames: int  # of the video; of a damaged one, the number that can be decoded
    frames_indices: list[int]  # 0-based indices of the frames that were taken
    height: int  # of the upright frames
    width: int
    timestamps: list[float] | None = None  # display times of the taken frames, in seconds from the beginning, if known
    fps: float | None = None  # average
    duration: float | None = None  # seconds from the first frame to the end of the last
    variable_rate: bool | None = None  # whether frames are shown for different lengths of time
    codec: str | None = None  # of a file, FFmpeg's name
    video_backend: str | None = None  # the backend that decoded it
    access: str | None = None  # "index": only frames that the taken ones depend on were decoded; "sequence": all
    problem: str | None = None  # why a damaged video gave only a part of its frames
    pixel_aspect_ratio: float | None = None  # width of a stored pixel over its height; of a file, before any rotation
    scaled_sizes: list[tuple[int, int]] | None = None  # other sizes (H, W) within the file, scaled to the first size


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
    square_pixels: bool = False,
    transform: FrameTransform | None = None,
    limits: ReadLimits = DEFAULT_LIMITS,
) -> tuple[np.ndarray, VideoFramesMetadata]:
    """
    Read frames of one video, upright.

    A file whose frames change their size gives all of them in its first size. Stored pixels stay as they are, as in
    decord and PyAV, even if they are not square: a player would show a 160 x 120 file with a pixel aspect ratio of 4:3
    as 213 x 120.

    Args:
        video (`str`, `os.PathLike`, `bytes`, file object, `dict`, `np.ndarray`, `torch.Tensor` or list of images):
            A path or URL of a video file, a folder of frame images (in numeric order), the bytes of a file, an open
            file, a `datasets` row `{"path", "bytes"}`, frames `(T, H, W, C)` or `(T, C, H, W)`, or a list of frames.
        sample (`Callable[[int], Sequence[int]]`, *optional*):
            Maps the number of frames to the 0-based indices to take, always the same for the same number. By default
            all frames are taken.
        start (`float`, *optional*), end (`float`, *optional*):
            Seconds. `sample` sees only the frames on display between `start` and `end`.
        fps (`float`, *optional*):
            Frames per second. `sample` sees only the frame on display at each tick.
        backend (`str`, *optional*, defaults to `"auto"`):
            Decoder of video files: `"pyav"`, `"decord"`, `"torchcodec"`, or `"auto"` for the fastest exact one.
        allow_partial (`bool`, *optional*, defaults to `False`):
            Whether to accept the decodable part of a damaged or incomplete file. `problem` then says what is missing.
        in_sequence (`bool`, *optional*, defaults to `False`):
            Whether to decode the whole file even if a part is enough. This finds all damage.
        square_pixels (`bool`, *optional*, defaults to `False`):
            Whether to scale the width of a file by its pixel aspect ratio, as a player does.
        transform (`Callable[[np.ndarray], np.ndarray]`, *optional*):
            Maps a frame `(H, W, 3)`, uint8, to what is returned of it, such as a crop. It is called as soon as a frame
            is decoded, so that no more than one full-size frame is held.
        limits ([`ReadLimits`], *optional*):
            What reading may take, and where it may reach.

    Returns:
        `tuple[np.ndarray, VideoFramesMetadata]`: RGB frames `(T, H, W, 3)` as uint8, or what `transform` made of them,
        and the metadata of the video.

    Raises:
        [`VideoReadError`]: if the video cannot be read, lacks the frames, or exceeds a limit. `TypeError`: if `video`
        has another type. `ValueError`: if an argument is out of range, or `sample` returns an invalid index.
        `ImportError`: if the backend is not installed.
    """
    name = describe_video(video)
    select = partial(select_frames, sample=sample, start=start, end=end, fps=fps)
    clip = Clip(name, transform, limits)
    if isinstance(video, dict):
        row, content = video, video.get("bytes")
        video = content if content is not None else row.get("path")
        if video is None and not {"path", "bytes"} & set(row):
            name = f"<row with {sorted(row)}>"
            if "video" in row:
                raise VideoReadError(name, "is a row of a data set.", "Pass its video: `row['video']`.")
    if video is None:
        raise VideoReadError(name, "has neither a path nor bytes.", "Leave it out of the data set.")
    if isinstance(video, (str, os.PathLike)):
        video = local_path(os.fspath(video))
        if os.path.isdir(video):
            return _read_frame_folder(video, clip, select)
    elif isinstance(video, Image.Image):
        raise picture_error(name)
    elif isinstance(video, (list, tuple)) or (hasattr(video, "shape") and not isinstance(video, memoryview)):
        return _read_array(video, clip, select)
    options = _DecodingOptions(backend, allow_partial, in_sequence, square_pixels, limits)
    return _read_file(open_source(video, name, limits), clip, select, options)


class Clip:
    """The wanted frames of a video by number, each transformed as soon as it is decoded, within `max_clip_bytes`."""

    def __init__(self, name: str, transform: FrameTransform | None, limits: ReadLimits):
        self.name, self.transform, self.limits = name, transform, limits
        self.error_of_caller: Exception | None = None  # raised by a function that the caller gave
        self.clear()

    def clear(self):
        """Forget the frames, to read the video again."""
        self.images: dict[int, np.ndarray] = {}
        self.height = self.width = 0  # of the frames before the transform
        self.num_bytes = 0

    def add(self, number: int, image: np.ndarray):
        """Add an RGB frame (H, W, 3), uint8, upright."""
        height, width = image.shape[:2]
        check_pixels(width, height, self.name, self.limits)
        if self.images and (height, width) != (self.height, self.width):
            sizes = f"{self.width} x {self.height} and {width} x {height}"
            raise VideoReadError(self.name, f"changes its frame size ({sizes}).", "Convert it to one size.")
        self.height, self.width = height, width
        try:
            kept = image if self.transform is None else self.call(self.transform, image)
        except VideoReadError as error:
            raise VideoReadError(self.name, error.reason, error.remedy) from error
        if kept.base is not None:
            kept = kept.copy()  # a view would keep the whole frame
        self.num_bytes += kept.nbytes
        if self.num_bytes > self.limits.max_clip_bytes:
            reason = f"has more frames of {width} x {height} pixels than fit into memory"
            raise limit_error(self.name, reason, "max_clip_bytes", self.limits)
        self.images[number] = kept

    def call(self, function: Callable, *args):
        """Call a function of the caller. Its errors are not those of the video."""
        try:
            return function(*args)
        except Exception as error:
            self.error_of_caller = error
            raise

    def frames(self, numbers: list[int]) -> np.ndarray:
        """Take the frames of these numbers, in this order and with repeats."""
        last = {number: position for position, number in enumerate(numbers)}
        frames = np.empty((len(numbers), *self.images[numbers[0]].shape), self.images[numbers[0]].dtype)
        for position, number in enumerate(numbers):
            frames[position] = self.images[number]
            if position == last[number]:
                del self.images[number]  # so that the clip is in memory only once
        return frames


def is_single_video(videos) -> bool:
    """Return whether `videos` is one video rather than several; a list of frames and a 4D array are one video."""
    if isinstance(videos, (str, os.PathLike)):
        return True
    if isinstance(videos, (list, tuple)):
        return len(videos) > 0 and all(isinstance(v, Image.Image) or getattr(v, "ndim", 0) in (2, 3) for v in videos)
    return getattr(videos, "ndim", 4) == 4


def _read_file(
    source, clip: Clip, select: FrameSelector, options: "_DecodingOptions"
) -> tuple[np.ndarray, VideoFramesMetadata]:
    video = _decode_file(source, clip, lambda timestamps: select(timestamps, len(timestamps)), options)
    if _is_picture(source, video, clip):
        raise picture_error(clip.name)
    intervals = np.diff(video.timestamps)
    last = 1 / video.fps if video.fps else float(np.median(intervals)) if len(intervals) else 0.0
    duration = float(video.timestamps[-1] - video.timestamps[0]) + last
    # Ignore differences of a millisecond, the time unit of some containers.
    is_variable = bool(len(intervals) and np.ptp(intervals) > max(0.0021, 0.1 * np.median(intervals)))
    frames = clip.frames(video.indices)
    return frames, VideoFramesMetadata(
        len(video.timestamps),
        video.indices,
        clip.height,
        clip.width,
        timestamps=video.timestamps[video.indices].tolist(),
        fps=len(video.timestamps) / duration if is_variable else video.fps,
        duration=duration,
        variable_rate=is_variable,
        codec=video.codec,
        video_backend=video.backend,
        access=video.access,
        problem=video.problem,
        pixel_aspect_ratio=video.pixel_aspect_ratio,
        scaled_sizes=video.scaled_sizes,
    )


def check_frame_folder(folder: str, name: str):
    """Raise a [`VideoReadError`] if a folder is not one video of frame images."""
    found = list_folder(folder)
    if not found.videos:
        raise VideoReadError(name, "is a folder without frame images.", f"Add {', '.join(IMAGE_EXTENSIONS)} files.")
    if found.videos != [folder]:
        named = ", ".join(os.path.relpath(video, folder) for video in found.videos[:MAX_NAMED])
        more = ", …" if len(found.videos) > MAX_NAMED else ""
        count = "1 video" if len(found.videos) == 1 else f"{len(found.videos)} videos"
        reason = f"is a folder of {count}, not one video: {named}{more}."
        raise VideoReadError(name, reason, "Pass its videos: `ezclip.list_folder(folder).videos`.")


def _read_frame_folder(folder: str, clip: Clip, select: FrameSelector) -> tuple[np.ndarray, VideoFramesMetadata]:
    def numeric_order(path: Path):
        return [int(part) if position % 2 else part for position, part in enumerate(re.split(r"(\d+)", path.stem))]

    name = clip.name
    check_frame_folder(folder, name)
    paths = sorted((path for path in Path(folder).iterdir() if is_frame(path)), key=numeric_order)
    indices = _select_untimed(select, len(paths), name)
    for index in dict.fromkeys(indices):
        try:
            with open_picture(paths[index], name, clip.limits) as picture:
                image = _as_upright_rgb(picture)
        except VideoReadError as error:
            reason = f"has an unreadable frame: {paths[index].name} {error.reason}"
            raise type(error)(name, reason, error.remedy) from error
        except Exception as error:  # damaged images raise errors of many types
            raise VideoReadError(name, f"has an unreadable frame ({error}).", "Extract its frames again.") from error
        clip.add(index, image)
    return clip.frames(indices), VideoFramesMetadata(len(paths), indices, clip.height, clip.width)


def _read_array(video, clip: Clip, select: FrameSelector) -> tuple[np.ndarray, VideoFramesMetadata]:
    if isinstance(video, (list, tuple)):
        if not is_single_video(video):
            raise VideoReadError(clip.name, "is not a list of frames.", "Pass PIL images, or arrays (H, W, C).")
        frames = video
    else:
        if hasattr(video, "detach"):  # a tensor; NumPy has no bfloat16
            video = video.detach().cpu()
            video = video.float() if video.is_floating_point() else video
        frames = np.asarray(video)
        if frames.ndim != 4 or 0 in frames.shape:
            raise VideoReadError(
                clip.name, "is not a video.", "Pass frames (T, H, W, C) or (T, C, H, W), at least one."
            )
    indices = _select_untimed(select, len(frames), clip.name)
    for index in dict.fromkeys(indices):
        frame = frames[index]
        if isinstance(frame, Image.Image):
            check_pixels(*frame.size, clip.name, clip.limits)
            frame = _as_upright_rgb(frame)
        clip.add(index, _as_rgb(np.asarray(frame)[None], clip.name)[0])
    return clip.frames(indices), VideoFramesMetadata(len(frames), indices, clip.height, clip.width)


def _select_untimed(select: FrameSelector, total_frames: int, name: str) -> list[int]:
    try:
        return select(None, total_frames)
    except UnavailableFramesError as error:
        raise VideoReadError(name, str(error), "Pass a video file.") from error


def _as_rgb(frames: np.ndarray, name: str) -> np.ndarray:
    """Convert frames (T, H, W), (T, H, W, C) or (T, C, H, W) of any common dtype to (T, H, W, 3) uint8."""
    if frames.ndim == 3:
        frames = frames[..., None]
    if frames.shape[-1] not in (1, 3, 4):
        if frames.shape[1] not in (1, 3, 4):
            raise VideoReadError(name, "has no channel dimension of 1, 3 or 4.", "Pass frames (T, H, W, 3).")
        frames = frames.transpose(0, 2, 3, 1)
    if np.issubdtype(frames.dtype, np.floating):
        low, high = frames.min(), frames.max()
        if not (low >= 0.0 and high <= 1.0):
            reason = f"has floating point values from {low:.3g} to {high:.3g}, not from 0 to 1."
            raise VideoReadError(name, reason, "Pass uint8 frames, or rescale these.")
        frames = np.rint(frames * 255.0)
    elif frames.dtype.kind not in "iu" or not (frames.min() >= 0 and frames.max() <= 255):
        raise VideoReadError(name, f"has {frames.dtype} values, not levels from 0 to 255.", "Pass uint8 frames.")
    frames = frames.astype(np.uint8)
    return frames[..., :3] if frames.shape[-1] > 1 else frames.repeat(3, axis=-1)


# ---- Sample frames ----


def uniform_frame_indices(total_frames: int, num_frames: int, num_clips: int = 1) -> list[int]:
    """
    Return the published test sampling: the middle of `num_frames` equal segments ("_get_val_indices", 0-based).

    A video of at most `num_frames` frames repeats them in order. A single frame is taken at half of the number. For
    multi-view evaluation, clip k takes the point (2k + 1) / (2 num_clips) of each segment, and the `num_clips *
    num_frames` indices are ordered clip by clip.
    """
    _check_count("num_frames", num_frames)
    _check_count("num_clips", num_clips)
    if num_frames == 1 and num_clips == 1:
        return [total_frames // 2]
    if total_frames <= num_frames:
        return [i * total_frames // num_frames for i in range(num_frames)] * num_clips
    segment = total_frames / num_frames
    points = [(2 * clip + 1) / (2 * num_clips) for clip in range(num_clips)]
    # `i * segment` would be rounded differently, and give another frame for some numbers.
    return [int(i * total_frames / num_frames + (segment - 1) * point) for point in points for i in range(num_frames)]


def random_frame_indices(total_frames: int, num_frames: int, seed) -> list[int]:
    """
    Return the published train sampling: a random frame of `num_frames` equal segments ("_sample_indices", 0-based).

    A video of at most `num_frames` frames gives all of them and random repeats, in order. `seed` is anything that
    `numpy.random.default_rng` accepts.
    """
    _check_count("num_frames", num_frames)
    rng = np.random.default_rng(seed)
    if total_frames <= num_frames:
        repeats = rng.integers(total_frames, size=num_frames - total_frames)
        return sorted([*range(total_frames), *repeats.tolist()])
    ticks = [i * total_frames // num_frames for i in range(num_frames + 1)]
    return rng.integers(ticks[:-1], ticks[1:]).tolist()


def tear_frame_indices(total_frames: int, num_frames: int) -> list[int]:
    """Return TEAR's sampling ("get_indices"): the middle of `num_frames` equal segments, rounded down."""
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
    Select with `sample` from the frames that `start`, `end` and `fps` leave. Return their indices.

    `timestamps` are the display times of the frames in seconds, ascending. A frame is in the window if it is on
    display between `start` and `end`, so also if it began before `start`. `fps`, at most `MAX_FPS`, leaves the frame
    on display at each tick from `start`, or from the beginning.

    Raises:
        `ValueError`: if a number is out of range, or `sample` returns an invalid index.
        [`UnavailableFramesError`]: if the video has no times, or no frame at the requested ones.
    """
    frames = np.arange(total_frames)
    if start is not None or end is not None or fps is not None:
        check_times(start, end, fps)
        if timestamps is None:
            raise UnavailableFramesError("has no frame times, which `start`, `end` and `fps` need.")
        frames = _frames_in_window(timestamps, start, end)
    if fps is not None:
        frames = _frames_at_rate(timestamps, frames, start, fps)
    if sample is None:
        return frames.tolist()
    indices = sample(len(frames))
    try:
        indices = [operator.index(index) for index in indices]
    except TypeError as error:
        raise ValueError(f"`sample` must return a list of integers, got {indices!r}.") from error
    if not indices or min(indices) < 0 or max(indices) >= len(frames):
        raise ValueError(f"`sample` must return indices from 0 to {len(frames) - 1}, at least one, got {indices}.")
    return frames[indices].tolist()


def _frames_in_window(timestamps: np.ndarray, start: float | None, end: float | None) -> np.ndarray:
    # The display time of the last frame is unknown: use the median.
    video_end = timestamps[-1] + (np.median(np.diff(timestamps)) if len(timestamps) > 1 else 0.0)
    if start is not None and start > 0 and start >= video_end:
        raise UnavailableFramesError(f"is over at {video_end:.3f} s, before the `start` at {start} s.")
    first = 0 if start is None else max(0, np.searchsorted(timestamps, start + ROUNDING, side="right") - 1)
    stop = len(timestamps) if end is None else max(first + 1, np.searchsorted(timestamps, end - ROUNDING))
    return np.arange(first, stop)


def _frames_at_rate(timestamps: np.ndarray, frames: np.ndarray, start: float | None, fps: float) -> np.ndarray:
    first = timestamps[frames[0]] if start is None else start
    seconds = float(timestamps[frames[-1]] - first)
    if seconds * fps > MAX_TICKS:
        raise UnavailableFramesError(f"lasts {seconds:.0f} s, too long for {fps} frames a second.")
    count = max(1, int(np.floor(seconds * fps + ROUNDING)) + 1)
    ticks = first + np.arange(count) / fps
    # The frame on display at a tick is the last one that began before it.
    displayed = np.searchsorted(timestamps, ticks + ROUNDING, side="right") - 1
    return np.clip(displayed, frames[0], frames[-1])


def _check_count(name: str, value: int):
    if not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(f"`{name}` must be an integer of at least 1, got {value!r}.")


def check_times(start: float | None, end: float | None, fps: float | None = None):
    """Raise `ValueError` if `start`, `end` (seconds) or `fps` is out of range."""
    for name, value in (("start", start), ("end", end), ("fps", fps)):
        if value is not None and not (isinstance(value, numbers.Real) and 0 <= value < float("inf")):
            raise ValueError(f"`{name}` must be a finite number of at least 0, got {value!r}.")
    if end is not None and not (start or 0) < end:
        raise ValueError(f"`start` ({start or 0} s) must be less than `end` ({end} s).")
    if fps is not None and not 0 < fps <= MAX_FPS:
        raise ValueError(f"`fps` must be greater than 0 and at most {MAX_FPS}, got {fps}.")


# ---- Decode files ----


INDEXED_CONTAINERS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi")  # store the time of each frame
INDEXED_CODECS = ("h264", "hevc", "mpeg4", "vp9", "av1", "mjpeg", "ffv1")  # decode exactly from any key frame
SKIPPING_CODECS = ("h264", "hevc")  # their decoder can skip single frames that no other frame refers to
FLAGGING_CODECS = ("h264", "mpeg4")  # their decoder flags damaged frames
# decord returns wrong frames by index in other codecs: in HEVC, WMV2 and MPEG-2 they are up to 12 frames off.
DECORD_INDEXED_CODECS = ("h264", "mpeg4", "vp9", "mjpeg", "ffv1")
MAX_KEPT_BYTES = 2**26  # of the packets of a file; those of larger files are read again
MIN_SAMPLE_BYTES = 64  # that a file has for each sample that it claims, on average
PACKET_BYTES = 1000  # that a packet takes beside its content

# Maps the display times of all frames to the 0-based indices to decode.
Chooser = Callable[[np.ndarray], list[int]]


@dataclass(frozen=True)
class _DecodingOptions:
    """Options of [`read_frames`]."""

    backend: str
    allow_partial: bool
    in_sequence: bool
    square_pixels: bool
    limits: ReadLimits


@dataclass
class DecodedVideo:
    """What was decoded of a file, beside the frames in its `Clip`."""

    indices: list[int]  # the wanted frames: positions in the file
    timestamps: np.ndarray  # display times of all frames of the file, in seconds from the beginning
    backend: str
    access: str  # "index" or "sequence", see `VideoFramesMetadata`
    codec: str  # FFmpeg's name
    fps: float | None  # average
    problem: str | None = None  # why some frames of the file are missing
    pixel_aspect_ratio: float | None = None  # of the stored pixels
    scaled_sizes: list[tuple[int, int]] | None = None  # see `VideoFramesMetadata`


def _decode_file(source, clip: Clip, choose: Chooser, options: _DecodingOptions) -> DecodedVideo:
    """
    Decode the frames that `choose` takes into `clip`.

    Raises:
        [`VideoReadError`]: if the file cannot be decoded, lacks the frames, or exceeds a limit. `ImportError`: if the
        backend is not installed.
    """
    require_backend(options.backend)
    # "auto" is PyAV: exact, and the fastest in `scripts/benchmark.py decode`.
    backend = "pyav" if options.backend == "auto" else options.backend
    decode = {"pyav": _decode_pyav, "decord": _decode_decord, "torchcodec": _decode_torchcodec}[backend]

    def choose_frames(timestamps: np.ndarray) -> list[int]:
        return clip.call(choose, timestamps)

    try:
        return decode(source, clip, choose_frames, options)
    except UnavailableFramesError as error:
        raise VideoReadError(clip.name, str(error), "Ask for other frames.", backend) from error
    except Exception as error:  # a file may make a library raise any type
        if error is clip.error_of_caller or isinstance(error, ImportError):
            raise
        if isinstance(error, _NoContainerError) and (pictures := _decode_pictures(source, clip, choose)) is not None:
            return pictures
        if isinstance(error, VideoReadError):
            raise
        if isinstance(error, MemoryError):
            raise memory_error(clip.name) from error
        reason = f"cannot be decoded ({error_message(error)})."
        raise VideoReadError(clip.name, reason, "Fetch it again, or re-encode it.", backend) from error
    finally:
        # PyAV's side data and its frame refer to each other, and keep the pictures until they are collected.
        gc.collect(1)


def require_backend(backend: str):
    """
    Import and return the library of a backend.

    Raises:
        `ValueError`: if there is no such backend. `ImportError`: if its library cannot be imported.
    """
    if backend not in BACKENDS:
        raise ValueError(f"`backend` must be one of {', '.join(BACKENDS)}, got {backend!r}.")
    modules = {"auto": "av", "pyav": "av", "torchcodec": "torchcodec.decoders"}
    try:
        return importlib.import_module(modules.get(backend, backend))
    except Exception as error:  # a torchcodec that does not fit PyTorch or FFmpeg raises other types
        message = f"The backend {backend} cannot be imported ({error}). Install it, or use the backend auto."
        raise ImportError(message) from error


def error_message(error: Exception) -> str:
    """Return FFmpeg's own message, without the path that PyAV repeats."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


class _NoContainerError(VideoReadError):
    """A file is not in a container that FFmpeg can, or may, open. It may be a picture."""


class VideoFile:
    """
    An open video file and, after `scan`, the `pts` and `is_key` of its packets in file order.

    `source` is an absolute path or a seekable file object, and errors call the file `name`. If `strict`, damage is an
    error; otherwise damaged frames are left out and counted in `faults`. A file that exceeds `limits` is always an
    error.
    """

    def __init__(self, source, name: str, strict: bool = True, limits: ReadLimits = DEFAULT_LIMITS):
        self.source, self.name, self.strict, self.faults, self.limits = source, name, strict, 0, limits
        self.turns_frames = False  # whether a frame, not the container, has said an orientation
        self._open()

    container: Any
    stream: Any  # of PyAV, which types them as those of any stream
    context: Any  # the decoder

    def _open(self):
        self._kept, self._is_scanned = None, False
        self._num_counted = self._num_leading = 0
        self._first_pts, self._is_leading = None, False
        self._num_demuxed = 0
        self._check_claims()
        if hasattr(self.source, "seek"):
            self.source.seek(0)
        try:
            # HMDB-51 has files whose metadata is not UTF-8.
            self.container = av.open(self.source, metadata_errors="ignore", options=self._whitelists())
        except (FFmpegError, UnicodeDecodeError) as error:
            reason, remedy = self._cut(), "Fetch it again, or re-encode it."
            if reason is None and isinstance(error, ArgumentError):  # the container is not an allowed one
                reason = "is not a video file, or a playlist, which may name any other file."
                remedy = "Re-encode it, or allow a playlist that you trust (`allow_playlists`)."
            reason = reason or f"is not a video file that FFmpeg can open ({error_message(error)})."
            raise _NoContainerError(self.name, reason, remedy, "pyav") from error
        self.format = self.container.format.name
        self.stream = self.container.streams.best("video")
        if self.stream is not None and self.stream.disposition & Disposition.attached_pic:
            self.stream = None  # the cover of a sound file
        self.context = None if self.stream is None else self.stream.codec_context
        if self.context is None:
            self.container.close()
            if self.stream is None:
                raise VideoReadError(self.name, "has no video stream.", "Check that it is not a sound file.", "pyav")
            raise VideoReadError(self.name, "is in a codec that FFmpeg does not know.", "Re-encode it.", "pyav")
        self.codec, self.time_base = self.context.codec.canonical_name, self.stream.time_base
        try:
            check_pixels(self.context.width, self.context.height, self.name, self.limits)
        except VideoReadError:
            self.container.close()
            raise
        self.picture_check = _PictureCheck(self.codec, self.context.extradata)
        rate = self.stream.average_rate or self.stream.guessed_rate
        self.fps = float(rate) if rate else None
        ratio = self.stream.sample_aspect_ratio
        self.pixel_aspect_ratio = float(ratio) if ratio else None
        # Times count from the beginning of the file, in units of the stream.
        start = Fraction(self.container.start_time or 0, av.time_base)
        self.start = round(start / self.time_base) if self.time_base else 0
        # The workers of a data loader run in parallel, each with its own file.
        self.context.thread_count = 1
        self.context.options = {"max_pixels": str(self.limits.max_pixels)}
        if self.strict:
            # By default FFmpeg silently conceals the damaged parts of a picture.
            self.context.options |= {"err_detect": "explode"}

    def _whitelists(self) -> dict[str, str]:
        """Return FFmpeg's options that say which containers it may read, and by which protocols those read on."""
        containers = CONTAINERS + PLAYLISTS if self.limits.allow_playlists else CONTAINERS
        protocols = PLAYLIST_PROTOCOLS if self.limits.allow_playlists else ("file",)
        return {
            "format_whitelist": ",".join(containers),
            "protocol_whitelist": ",".join(protocols),
            "max_pixels": str(self.limits.max_pixels),  # also while FFmpeg looks for the parameters of the streams
        }

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.container.close()

    def reopen(self):
        """Go back to the beginning with a fresh decoder."""
        self.container.close()
        self._open()

    @property
    def has_guessed_times(self) -> bool:
        """Return whether times are guessed: AVI has no times of B-frames, and DivX packs two into a packet."""
        return self.context.has_b_frames and (self.format == "avi" or self.codec == "mpeg4")

    def scan(self):
        """Read all packets without decoding them."""
        self.pts, self.is_key, self.damaged_at, self.has_hidden = [], [], None, False
        self._is_scanned, kept, size = True, [], 0
        self.is_plain = self.format in INDEXED_CONTAINERS and self.codec in INDEXED_CODECS
        try:
            for packet in self._demux():
                if packet.size == 0 and packet.dts is None:  # marks the end of the file
                    continue
                if packet.is_corrupt and self.damaged_at is None:
                    self.damaged_at = len(self.pts)
                content = bytes(packet)
                self.count_packet(packet, content)
                self.is_plain = self.is_plain and self.picture_check(content, packet.is_keyframe)
                self.pts.append(packet.pts)
                self.is_key.append(packet.is_keyframe)
                self.has_hidden |= packet.is_discard
                size += packet.size + PACKET_BYTES
                if size <= MAX_KEPT_BYTES:
                    kept.append(packet)
        except FFmpegError:
            self.damaged_at = len(self.pts)
        self._kept = kept if size <= MAX_KEPT_BYTES else None

    def damage(self) -> str | None:
        """Return the damage of the file that shows without decoding."""
        if cut := self._cut():
            return cut
        # In a transport stream a corrupt packet may only be a seam.
        if self.damaged_at is not None and self.format != "mpegts":
            return f"is damaged at frame {self.damaged_at}."
        if self.format in ("flv", "asf") and self.container.duration and self.pts:
            duration = self.container.duration / av.time_base
            if (end := self._end()) < duration - max(1.0, 0.05 * duration):
                return f"is cut off: {end:.1f} of {duration:.1f} seconds are there."
        return None

    def is_indexed(self) -> bool:
        """Return whether the packets give each frame its own time, and decoding can begin at key frames."""
        if not (self.is_plain and self.pts and self.is_key[0]) or self.has_hidden or None in self.pts:
            return False
        if self.turns_frames:  # an orientation holds for the frames after it
            return False
        order = sorted(self.pts)
        intervals = np.diff(order)
        if not (intervals > 0).all():
            return False
        # Times of B-frames in file order are wrong.
        has_true_times = not self.context.has_b_frames or (self.pts != order and not self.has_guessed_times)
        # A gap may be a lost frame, and frames that depend on a lost frame are not decoded either.
        is_steady = len(order) < 2 or bool((np.abs(intervals / np.median(intervals) - 1) < 0.5).all())
        return has_true_times and self.pts[0] == order[0] and is_steady

    def count_packet(self, packet: av.Packet, content: bytes):
        """Count a packet for `num_shown`, and note whether it has an orientation. Call it in file order."""
        if packet.size == 0:
            return
        if not self.turns_frames:
            self.turns_frames = self.picture_check.has_orientation(content)
        if self._num_counted == 0 and not self._is_leading:
            if not packet.is_keyframe:
                return
            self._first_pts, self._is_leading = packet.pts, packet.pts is not None
        elif self._is_leading:
            self._is_leading = packet.pts is None or packet.pts < self._first_pts
            self._num_leading += self._is_leading and not packet.is_discard
        self._num_counted += not packet.is_discard

    @property
    def num_shown(self) -> int:
        """
        Return the number of counted packets that give a frame.

        Packets before the first key frame give none. Neither do leading pictures: stored after the first key frame,
        shown before it, they depend on a frame that is not in the file. Recordings that begin mid-stream have them.
        """
        # If no packet has a later time than the key frame, the times say nothing.
        return self._num_counted - (0 if self._is_leading else self._num_leading)

    def timestamps(self, pts: list[int | None]) -> np.ndarray:
        """Convert `pts` to seconds from the beginning; use the average rate if they are missing or not ascending."""
        if None not in pts and all(a < b for a, b in pairwise(pts)):
            # AVI stores decoding times; FFmpeg delays them to give B-frames a display time.
            start = pts[0] if pts and self.format == "avi" else self.start
            return np.array([float((value - start) * self.time_base) for value in pts])
        return np.arange(len(pts)) / (self.fps or 1.0)

    def decode_all(self) -> Iterator[av.VideoFrame]:
        """Yield all frames in display order; if not `strict`, only the undamaged ones, counting `faults`."""
        packets, end = self._packets(), object()
        while True:
            try:
                packet: Any = next(packets, end)
                if packet is end:
                    return
                for frame in self._decode(packet):
                    if self.strict or not frame.is_corrupt:
                        yield frame
                    else:
                        self.faults += 1
            except FFmpegError:
                if self.strict:
                    raise
                self.faults += 1

    def decode_keys(self) -> Iterator[av.VideoFrame]:
        """Yield the key frames."""
        self.context.skip_frame = "NONKEY"
        return self.decode_all()

    def decode_for(self, wanted: set[int]) -> Iterator[av.VideoFrame]:
        """Yield the frames with the wanted `pts`, among others, in display order."""
        position, can_skip = None, self.codec in SKIPPING_CODECS
        for number, packet in self._planned_packets(self._plan(wanted)):
            if position is not None and self.is_key[number] and number != position + 1:
                yield from self._decode(None)
                self.context.flush_buffers()
            position = number
            if can_skip:
                self.context.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
            yield from self._decode(packet)
        yield from self._decode(None)

    def _decode(self, packet: av.Packet | None) -> list[av.VideoFrame]:
        had_size = self.context.width > 0
        try:
            frames = self.context.decode(packet)
        except MemoryError as error:
            raise memory_error(self.name) from error
        except FFmpegError as error:
            # FFmpeg itself refuses frames above `max_pixels`. Some of its decoders forget the size then.
            check_pixels(self.context.width, self.context.height, self.name, self.limits)
            if self.context.width == 0 and (had_size or isinstance(error, ArgumentError)):
                raise limit_error(self.name, "has frames of too many pixels", "max_pixels", self.limits) from error
            raise
        for frame in frames:
            check_pixels(frame.width, frame.height, self.name, self.limits)
        return frames

    def _demux(self) -> Iterator[av.Packet]:
        """Yield the packets of the video stream, and count those of all streams."""
        for packet in self.container.demux():
            self._num_demuxed += 1
            if self._num_demuxed > self.limits.max_packets:
                raise limit_error(self.name, "has more packets than allowed", "max_packets", self.limits)
            if packet.stream.index == self.stream.index:
                yield packet

    def _plan(self, wanted: set[int]) -> list[int]:
        """Return the numbers of the packets to decode: from the key frame before each wanted frame up to it."""
        keys = [number for number, is_key in enumerate(self.is_key) if is_key]
        numbers = {pts: number for number, pts in enumerate(self.pts)}
        last_by_key = {}
        for pts in wanted:
            position = bisect_right(keys, numbers[pts]) - 1
            # A frame that is stored after a key frame but shown before it also depends on the previous key frame.
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
        """Return all packets, and last the one that makes the decoder return its remaining frames."""
        if self._kept is not None:
            return iter([*self._kept, None])
        if self._is_scanned:
            self.reopen()
        return self._demux()

    def _open_bytes(self):
        return open(self.source, "rb") if isinstance(self.source, str) else nullcontext(self.source)

    def _check_claims(self):
        """Raise [`VideoReadError`] if an MP4 or QuickTime file claims too many samples: FFmpeg indexes them."""
        if not isinstance(self.source, str) and not hasattr(self.source, "seek"):
            return  # a pipe
        with self._open_bytes() as file:
            # A recording of many hours has more samples than packets are allowed, and is large.
            most = max(self.limits.max_packets, file.seek(0, 2) // MIN_SAMPLE_BYTES)
            if count_claimed_samples(file, most) > most:
                raise limit_error(self.name, "claims more samples than allowed", "max_packets", self.limits)

    def _cut(self) -> str | None:
        with self._open_bytes() as file:
            cut = find_cut(file)
        return None if cut is None else f"is cut off: {cut[0]} of {cut[1]} bytes are there."

    def _end(self) -> float:
        """Return the seconds at which the last packet of any stream ends: sound may be longer than the picture."""
        end = 0
        with VideoFile(self.source, self.name, limits=self.limits) as again, suppress(FFmpegError):
            for packet in again.container.demux():
                if packet.pts is not None:
                    end = max(end, (packet.pts + (packet.duration or 0)) * packet.time_base)
        return float(end - self.start * self.time_base)


# (a, b, c, d), each -1, 0 or 1: the point (x, y) is displayed at (a x + c y, b x + d y). Scales are left out.
Orientation = tuple[int, int, int, int]


class ToImage:
    """
    Converts frames of a file to upright RGB arrays (H, W, 3) of the size of the first frame.

    An orientation holds for the frames after it, so `orient` must get each decoded frame in display order. Reused for
    a file, this is 3 times faster than `to_ndarray`. With `square_pixels` it scales the width as a player does.
    """

    def __init__(self, file: "VideoFile", square_pixels: bool = False):
        self.file, self.square_pixels = file, square_pixels
        self.reformatter, self.scaler = VideoReformatter(), None
        self.orientation: Orientation | None = None  # of the last frame
        self.size: tuple[int, int] | None = None  # upright width and height of the first frame
        self.scaled_sizes: set[tuple[int, int]] = set()  # upright (H, W) of other frames

    def orient(self, frame: av.VideoFrame) -> Orientation:
        """Return the orientation of a frame: its own, or else that of the frame before."""
        if self.orientation is None or self.file.turns_frames:
            self.orientation = _orientation(frame, self.file.name) or self.orientation or (1, 0, 0, 1)
        if self.size is None:
            self.size = (frame.height, frame.width) if self.orientation[1] else (frame.width, frame.height)
        return self.orientation

    def __call__(self, frame: av.VideoFrame, orientation: Orientation) -> np.ndarray:
        """Convert a frame to an image (H, W, 3) uint8."""
        a, b, c, d = orientation
        width, height = self.size[::-1] if b else self.size
        if (frame.width, frame.height) != (width, height):
            self.scaled_sizes.add((frame.width, frame.height) if b else (frame.height, frame.width))
            image = self._scale(frame, width, height)
        elif _is_8_bit(frame.format):
            image = self.reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
        else:
            image = self._scale(frame, width, height)
        # Rotate and mirror it as a player does.
        if b:
            image = image.swapaxes(0, 1)
        image = image[:: b + d, :: a + c]
        return _with_square_pixels(image, self.file, orientation) if self.square_pixels else image

    def _scale(self, frame: av.VideoFrame, width: int, height: int) -> np.ndarray:
        """
        Convert a frame by FFmpeg's scaler with accurate rounding.

        PyAV's reformatter differs from it in frames of more than 8 bits and in 4:2:2, by up to 103 levels at edges.
        """
        key = (frame.format.name, frame.width, frame.height, width, height)
        if self.scaler is None or self.scaler[0] != key:
            graph = av.filter.Graph()
            buffer = graph.add_buffer(
                width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1000)
            )
            scale = graph.add("scale", f"{width}:{height}:flags=bicubic+accurate_rnd")
            graph.link_nodes(buffer, scale, graph.add("format", "rgb24"), graph.add("buffersink"))
            graph.configure()
            self.scaler = key, graph
        graph = self.scaler[1]
        graph.push(frame)
        return graph.pull().to_ndarray()


def _with_square_pixels(image: np.ndarray, file: VideoFile, orientation: Orientation) -> np.ndarray:
    """Scale the width of an upright image by the aspect ratio of its pixels."""
    ratio = file.pixel_aspect_ratio or 1.0
    height, width = image.shape[:2]
    width, old_width = max(1, round(width / ratio if orientation[1] else width * ratio)), width
    check_pixels(width, height, file.name, file.limits)
    if width == old_width:
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def _is_8_bit(format: av.VideoFormat) -> bool:
    """Return whether a pixel format has 8 bits a component, and its chroma is not 4:2:2."""
    has_half_width = format.chroma_width(16) < 16 and format.chroma_height(16) == 16
    return not has_half_width and all(component.bits <= 8 for component in format.components)


def _orientation(frame: av.VideoFrame, name: str) -> Orientation | None:
    """Return the orientation that the container gives to each frame, or else that of the frame itself, if any."""
    is_upright = False
    try:
        side_data = frame.side_data
    except ValueError:  # FFmpeg knows types of side data that PyAV does not, such as EXIF
        side_data, is_upright = _known_side_data(frame), True
    # The container's matrix comes first.
    matrix = next((item for item in side_data if item.type == SideDataType.DISPLAYMATRIX), None)
    if matrix is None:
        return (1, 0, 0, 1) if is_upright else None
    a, b, c, d = np.frombuffer(matrix, np.int32)[[0, 1, 3, 4]].astype(float)
    straight, sideways = min(abs(a), abs(d)), min(abs(b), abs(c))
    if straight > 100 * max(abs(b), abs(c)):
        return int(np.sign(a)), 0, 0, int(np.sign(d))
    if sideways > 100 * max(abs(a), abs(d)):
        return 0, int(np.sign(b)), int(np.sign(c)), 0
    if not (a or b or c or d):
        return None
    raise VideoReadError(name, "is rotated by other than 90, 180 or 270 degrees.", "Re-encode it.", "pyav")


def _known_side_data(frame: av.VideoFrame):
    """Return the side data of a frame without the types that PyAV does not know."""
    graph, newest = av.filter.Graph(), max(kind.value for kind in SideDataType)
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1000))
    filters = [graph.add("sidedata", f"mode=delete:type={newest + number}") for number in range(1, 17)]
    graph.link_nodes(source, *filters, graph.add("buffersink"))
    graph.configure()
    graph.push(frame)
    return graph.pull().side_data


class _MissingFrame(Exception):
    """Raised when the decoder does not return a frame that the packets announce, or not in display order."""


def _decode_pyav(source, clip: Clip, choose: Chooser, options: _DecodingOptions) -> DecodedVideo:
    name, limits = clip.name, options.limits
    with VideoFile(source, name, limits=limits) as file:
        file.scan()
        claimed, problem = file.timestamps(file.pts), file.damage()
        # A strict decoder also rejects errors that do not affect the pictures.
        can_be_whole = problem is None and file.codec in FLAGGING_CODECS and any(file.is_key)
        if problem is None and not options.in_sequence and file.is_indexed():
            try:
                return _decode_by_index(file, clip, choose, options.square_pixels)
            except (FFmpegError, _MissingFrame):
                file.reopen()  # decoding in sequence finds the damage, or works
        if problem is None:
            try:
                return _decode_in_sequence(file, clip, choose, claimed, options.square_pixels)
            except FFmpegError as error:
                problem = f"cannot be decoded as a whole ({error_message(error)})."
    if options.allow_partial or can_be_whole:
        with VideoFile(source, name, strict=False, limits=limits) as tolerant:
            tolerant.turns_frames = file.turns_frames
            video = _decode_in_sequence(tolerant, clip, choose, claimed, options.square_pixels)
        if can_be_whole and not tolerant.faults and len(video.timestamps) == file.num_shown:
            return video
        if options.allow_partial:
            video.problem = f"{problem} {len(video.timestamps)} frames can be decoded."
            return video
    raise VideoReadError(name, problem, "Fetch it again, or use what can be decoded (`allow_partial`).", "pyav")


def _decode_by_index(file: VideoFile, clip: Clip, choose: Chooser, square_pixels: bool) -> DecodedVideo:
    clip.clear()
    order = sorted(file.pts)
    timestamps = file.timestamps(order)
    indices = choose(timestamps)
    wanted = {order[index]: index for index in indices}
    to_image, last = ToImage(file, square_pixels), None
    stored_size = file.context.width, file.context.height
    for frame in file.decode_for(set(wanted)):
        if frame.pts is None or (last is not None and frame.pts <= last):
            raise _MissingFrame
        if (frame.width, frame.height) != stored_size:
            raise _MissingFrame  # the first frame, which decides the size, may not be among these
        last, orientation = frame.pts, to_image.orient(frame)
        if frame.pts in wanted:
            clip.add(wanted[frame.pts], to_image(frame, orientation))
    if len(clip.images) < len(wanted):
        raise _MissingFrame
    return _decoded(file, indices, timestamps, "pyav", "index")


def _decode_in_sequence(
    file: VideoFile, clip: Clip, choose: Chooser, claimed: np.ndarray, square_pixels: bool
) -> DecodedVideo:
    """Decode all frames; choose them by the `claimed` times, and once more if the decoded times are different."""
    wanted = set()
    for claim in [claimed, claimed[:-1]] if file.has_guessed_times else [claimed]:
        # A frame that the claimed times lack may exist.
        with suppress(UnavailableFramesError, ValueError):
            wanted.update(choose(claim) if len(claim) else [])
    to_image = ToImage(file, square_pixels)
    timestamps = _decode_numbers(file, clip, wanted, to_image)
    if len(timestamps) == 0:
        raise VideoReadError(file.name, "has no frame that can be decoded.", "Fetch it again.", "pyav")
    indices = choose(timestamps)
    if not clip.images.keys() >= set(indices):
        file.reopen()
        to_image = ToImage(file, square_pixels)
        _decode_numbers(file, clip, set(indices), to_image)
    video = _decoded(file, indices, timestamps, "pyav", "sequence")
    video.scaled_sizes = sorted(to_image.scaled_sizes) or None
    return video


def _decoded(file: VideoFile, indices: list[int], timestamps: np.ndarray, backend: str, access: str) -> DecodedVideo:
    return DecodedVideo(
        indices, timestamps, backend, access, file.codec, file.fps, pixel_aspect_ratio=file.pixel_aspect_ratio
    )


def _decode_numbers(file: VideoFile, clip: Clip, wanted: set[int], to_image: ToImage) -> np.ndarray:
    """Decode all frames once and keep those of the wanted numbers. Return the times of all frames."""
    clip.clear()
    pts = []
    for number, frame in enumerate(file.decode_all()):
        orientation = to_image.orient(frame)
        if number in wanted:
            clip.add(number, to_image(frame, orientation))
        pts.append(frame.pts)
    return file.timestamps(pts)


def _as_upright_rgb(image: Image.Image) -> np.ndarray:
    """Return an image as an array (H, W, 3), turned as its EXIF orientation says."""
    return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def _decode_pictures(source, clip: Clip, choose: Chooser) -> DecodedVideo | None:
    """Decode a picture, or an animated WebP or PNG, by Pillow. Return None if it is not one, or is damaged."""
    try:
        ends, name = [0.0], ""
        for picture in _pictures(source, clip):
            picture.load()
            ends.append(ends[-1] + picture.info.get("duration", 0) / 1000)
            name = (picture.format or "").lower()
        fps = (len(ends) - 1) / ends[-1] if ends[-1] else None
        timestamps = np.array(ends[:-1]) if fps else np.arange(len(ends) - 1, dtype=float)
        wanted = set(indices := choose(timestamps))
        for number, picture in enumerate(_pictures(source, clip)):
            if number in wanted:
                clip.add(number, _as_upright_rgb(picture))
    except VideoReadError:
        raise
    except Exception as error:  # damaged images raise errors of many types
        if error is clip.error_of_caller:
            raise
        return None
    return DecodedVideo(indices, timestamps, "pillow", "sequence", name, fps)


def _is_picture(source, video: DecodedVideo, clip: Clip) -> bool:
    """Return whether a decoded file is a still picture."""
    is_one_frame = len(video.timestamps) == 1
    if not is_one_frame and video.codec not in ("mjpeg", "mpo"):
        return False
    with open(source, "rb") if isinstance(source, str) else nullcontext(source) as file:
        file.seek(0)
        if (start := file.read(12))[4:8] == b"ftyp":
            return is_one_frame and start[8:] in STILL_BRANDS
    if file is source:
        file.seek(0)
    try:
        with open_picture(source, clip.name, clip.limits) as picture:
            # An "MPO" is a JPEG with previews of itself, which decode as frames.
            return is_one_frame or picture.format == "MPO"
    except Exception:  # Pillow raises errors of many types for a video
        return False


def _pictures(source, clip: Clip) -> Iterator[Image.Image]:
    if hasattr(source, "seek"):
        source.seek(0)
    with open_picture(source, clip.name, clip.limits) as file:
        for number, picture in enumerate(ImageSequence.Iterator(file)):
            if number == clip.limits.max_packets:
                raise limit_error(clip.name, "has more pictures than allowed", "max_packets", clip.limits)
            yield picture


def _decode_decord(source, clip: Clip, choose: Chooser, options: _DecodingOptions) -> DecodedVideo:
    decord, name = require_backend("decord"), clip.name
    file, timestamps, is_indexed, orientation = _inspect(source, clip, "decord", options)
    indices = choose(timestamps)
    is_indexed = is_indexed and not options.in_sequence and file.codec in DECORD_INDEXED_CODECS
    try:
        reader = decord.VideoReader(_with_utf8_name(source), num_threads=1)
        for number in sorted(set(indices)) if is_indexed else range(max(indices) + 1):
            image = reader[number] if is_indexed else reader.next()
            if image.shape[-1] != 3:
                raise _backend_error(name, f"is decoded by decord to frames of shape {image.shape}.", "decord")
            if number in indices:
                _add_upright(clip, number, image.asnumpy(), file, orientation, options)
    except (decord.DECORDError, StopIteration) as error:
        # Its messages begin with the time and the line of its source.
        message = re.sub(r"^.*\.(cc|h):\d+: (\[.*?\] )?", "", (str(error).strip() or "it ended").splitlines()[-1])
        raise _backend_error(name, f"cannot be read by decord ({message}).", "decord") from error
    return _decoded(file, indices, timestamps, "decord", "index" if is_indexed else "sequence")


def _decode_torchcodec(source, clip: Clip, choose: Chooser, options: _DecodingOptions) -> DecodedVideo:
    decoders, name = require_backend("torchcodec"), clip.name
    file, timestamps, is_indexed, orientation = _inspect(source, clip, "torchcodec", options)
    if not is_indexed:
        # It has no other access, and returns wrong frames of such files, mostly without an error.
        raise _backend_error(name, "has no reliable index, and torchcodec reads by index only.", "torchcodec")
    indices = choose(timestamps)
    try:
        decoder = decoders.VideoDecoder(_with_utf8_name(source), dimension_order="NHWC", num_ffmpeg_threads=1)
        if len(decoder) != len(timestamps):
            raise _backend_error(name, f"has {len(timestamps)} frames, torchcodec finds {len(decoder)}.", "torchcodec")
        for number in sorted(set(indices)):
            image = decoder.get_frame_at(number).data.numpy()
            _add_upright(clip, number, image, file, orientation, options)
    except (RuntimeError, IndexError) as error:
        message = str(error).splitlines()[0]
        raise _backend_error(name, f"cannot be read by torchcodec ({message}).", "torchcodec") from error
    if not hasattr(decoder.metadata, "rotation"):
        raise ImportError("This torchcodec does not rotate videos upright. Install torchcodec 0.11 or newer.")
    return _decoded(file, indices, timestamps, "torchcodec", "index")


def _add_upright(
    clip: Clip,
    number: int,
    image: np.ndarray,
    file: VideoFile,
    orientation: Orientation,
    options: _DecodingOptions,
):
    clip.add(number, _with_square_pixels(image, file, orientation) if options.square_pixels else image)


def _inspect(
    source, clip: Clip, backend: str, options: _DecodingOptions
) -> tuple[VideoFile, np.ndarray, bool, Orientation]:
    """Check a file by PyAV for another backend: damage, limits, times of frames, whether indexed, orientation."""
    name = clip.name
    with VideoFile(source, name, limits=options.limits) as file:
        file.scan()
        problem = file.damage()
        if file.has_hidden:
            problem = f"hides frames by an edit list, which {backend} may show."
        if file.turns_frames:
            problem = f"stores its orientation in its frames, which {backend} may ignore."
        if problem is not None:
            raise _backend_error(name, problem, backend)
        is_indexed = file.is_indexed()
        timestamps = file.timestamps(sorted(file.pts)) if is_indexed else None
        first = None
        for frame in file.decode_keys():  # to check their sizes
            first = first or frame
        a, b, c, d = orientation = (first and _orientation(first, name)) or (1, 0, 0, 1)
        if a * d - b * c < 0:
            raise _backend_error(name, f"must be mirrored, which {backend} does not do.", backend)
        if options.in_sequence or not is_indexed:
            file.reopen()
            timestamps = _decode_in_sequence(file, clip, lambda _: [], np.array([]), False).timestamps
    return file, timestamps, is_indexed, orientation


def _backend_error(name: str, reason: str, backend: str) -> VideoReadError:
    return VideoReadError(name, reason, "Use another backend (`backend='auto'`).", backend)


def _with_utf8_name(source) -> str | BinaryIO:
    """Return a source for libraries that only accept file names in UTF-8."""
    if isinstance(source, str):
        return source if source.isprintable() else io.BytesIO(Path(source).read_bytes())
    source.seek(0)
    return source


# ---- Check containers and packets ----


BOXES = {b"ftyp", b"styp", b"moov", b"mdat", b"free", b"skip", b"wide", b"moof", b"mfra", b"sidx", b"uuid", b"pnot"}
# The number of samples in a track, and in a fragment of one. It may be large even if the file is small. The first
# group is the size of all samples, if they are equally large, as in sound without compression.
CLAIMS = re.compile(rb"(?:stsz.{4}(.{4})|stz2.{8}|trun.{4})(.{4})", re.DOTALL)
EBML, SEGMENT = b"\x1aE\xdf\xa3", b"\x18S\x80g"
SIZE_TOLERANCE = 16  # bytes; some writers store slightly wrong sizes


def find_cut(file: BinaryIO) -> tuple[int, int] | None:
    """Return the actual and stored sizes of an AVI, Matroska, WebM, MP4 or QuickTime file whose end is missing."""
    size = file.seek(0, 2)
    file.seek(0)
    head = file.read(12)
    if head[:4] == b"RIFF":
        stored = int.from_bytes(head[4:8], "little") + 8
    elif head[:4] == EBML:
        stored = _end_of_segment(file)
    else:
        stored = _end_of_boxes(file, size)
    return (size, stored) if stored > size + SIZE_TOLERANCE else None


def _end_of_segment(file: BinaryIO) -> int:
    """Return where the segment of a Matroska file ends; 0 if unknown, as in a live recording."""
    file.seek(len(EBML))
    if (size := _read_ebml_size(file)) is None:
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


def _end_of_boxes(file: BinaryIO, file_size: int) -> int:
    """Return where the last box of an MP4 or QuickTime file ends; 0 for other files."""
    position = 0
    while position < file_size:
        file.seek(position)
        head = file.read(16)
        size = int.from_bytes(head[:4], "big")
        if size == 1:
            size = int.from_bytes(head[8:16], "big")
        if head[4:8] not in BOXES or size < 8:  # not a box, or a box up to the end of the file
            break
        position += size
    return position


def count_claimed_samples(file: BinaryIO, enough: int) -> int:
    """
    Return how many samples the headers of an MP4 or QuickTime file claim; if more than `enough`, not all of them.

    Equally large samples count only if the file cannot hold them.
    """
    num_bytes, count = file.seek(0, 2), 0
    file.seek(0)
    for head in iter(partial(file.read, 16), b""):
        size, start = int.from_bytes(head[:4], "big"), 8
        if size == 1:
            size, start = int.from_bytes(head[8:16], "big"), 16
        if head[4:8] not in BOXES or (0 < size < start) or count > enough:
            break
        file.seek(start - len(head), 1)
        if head[4:8] in (b"moov", b"moof"):
            content = file.read(size - start) if size else file.read()
            count += _count_claims(content, enough, num_bytes)
        elif size == 0:
            break
        else:
            file.seek(size - start, 1)
    return count


def _count_claims(header: bytes, enough: int, num_bytes: int) -> int:
    count = 0
    for match in CLAIMS.finditer(header):
        size, number = (int.from_bytes(group or b"", "big") for group in match.groups())
        count += number if size == 0 or size * number > num_bytes else 0
    for match in re.finditer(rb"cmvd(.{4})", header, re.DOTALL):  # a compressed header, as some of QuickTime are
        if int.from_bytes(match[1], "big") > MAX_KEPT_BYTES:
            return enough + 1
        with suppress(zlib.error):
            inner = zlib.decompressobj().decompress(header[match.end() :], MAX_KEPT_BYTES)
            count += _count_claims(inner, enough, num_bytes)
        if count > enough:
            break
    return count


class _PictureCheck:
    """Checks that a packet holds exactly one picture, and that a key frame depends on nothing before it."""

    def __init__(self, codec: str, extradata: bytes | None):
        self.codec, extradata = codec, extradata or b""
        # In MP4 and Matroska the units of H.264 and HEVC follow their sizes; elsewhere they follow start codes.
        position = {"h264": 4, "hevc": 21}.get(codec, 0)
        is_prefixed = extradata[:1] == b"\x01" and len(extradata) > position
        self.size_length = (extradata[position] & 3) + 1 if is_prefixed else None

    def __call__(self, packet: bytes, is_key: bool) -> bool:
        if self.codec == "mpeg4":
            pictures = re.findall(rb"\x00\x00\x01\xb6(.)", packet, re.DOTALL)
            # Packets under 16 bytes may say that nothing is coded. The picture type of a key frame is 0.
            is_whole = len(pictures) == 1 and len(packet) >= 16
            return is_whole and not (is_key and pictures[0][0] >> 6)
        if self.codec == "h264":
            return self._check_h264(packet, is_key)
        if self.codec == "hevc":
            kinds = (packet[unit] >> 1 & 63 for unit in self._units(packet))
            first = next((kind for kind in kinds if kind < 32), None)
            return first is not None and (first >= 16 or not is_key)
        if self.codec == "vp9":
            return packet[:1] != b"" and packet[0] >> 6 == 2
        return len(packet) > 2  # two bytes of AV1 are a mark between frames

    def has_orientation(self, packet: bytes) -> bool:
        """Return whether a packet has an orientation of its own: an SEI message in H.264 or HEVC, else EXIF."""
        if self.codec == "h264":
            return any(packet[unit] & 31 == 6 and _has_orientation(packet[unit + 1 :]) for unit in self._units(packet))
        if self.codec == "hevc":
            return any(
                packet[unit] >> 1 & 63 == 39 and _has_orientation(packet[unit + 2 :]) for unit in self._units(packet)
            )
        if self.codec == "mjpeg":
            return b"Exif\0\0" in packet[:65536]
        return self.codec in ("png", "apng", "webp")

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

    def _units(self, packet: bytes) -> Iterator[int]:
        """Yield the position at which each unit of a packet begins."""
        if self.size_length is None:
            yield from (match.end() for match in re.finditer(rb"\x00\x00\x01(?=.)", packet, re.DOTALL))
            return
        position = 0
        while position + self.size_length < len(packet):
            size = int.from_bytes(packet[position : position + self.size_length], "big")
            yield position + self.size_length
            position += self.size_length + size


def _has_orientation(messages: bytes) -> bool:
    """Return whether SEI messages begin with, or hold, a display orientation (payload type 47)."""
    messages = messages[:4096].replace(b"\0\0\3", b"\0\0")
    position, numbers = 0, []
    while position < len(messages) and messages[position] != 0x80:
        number = 0
        while position < len(messages) and messages[position] == 255:
            number, position = number + 255, position + 1
        if position == len(messages):
            return False
        numbers.append(number + messages[position])
        position += 1
        if len(numbers) == 2:  # type and size
            if numbers[0] == 47:
                return True
            position, numbers = position + numbers[1], []
    return False


def _h264_slice_type(header: bytes) -> int:
    """Return the second number of a slice header, in Exp-Golomb code."""
    bits, value = bin(1 << 8 * len(header) | int.from_bytes(header, "big"))[3:], 0
    for _ in range(2):
        zeros = len(bits) - len(bits.lstrip("0"))
        code, bits = bits[zeros : 2 * zeros + 1], bits[2 * zeros + 1 :]
        value = int(code or "1", 2) - 1
    return value
