"""Open what a user or a visitor names, within limits, and name it without its secrets."""

import io
import ipaddress
import os
import re
import socket
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
from PIL import Image


IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "WEBP")  # Pillow's names. Its other readers may start programs.
# FFmpeg's names. Other containers read other files, devices or the network, or take any text for a video.
CONTAINERS = (
    *("mov", "matroska", "webm", "avi", "mpegts", "mpeg", "mpegvideo", "flv", "ogg", "asf", "gif", "apng", "nut"),
    *("mxf", "rm", "dv", "ivf", "av1", "obu", "h264", "hevc", "m4v", "mjpeg", "vc1", "wtv"),
    *("mp3", "wav", "flac", "aac"),  # whose error says that they have no video
)
PLAYLISTS = ("hls", "concat")  # containers that name other files
PLAYLIST_PROTOCOLS = ("file", "http", "https", "tcp", "tls", "crypto", "data")
READ_SIZE = 2**20  # bytes

# Control characters but tab and line feed, line separators, changes of the direction of writing, lone surrogates
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# Parameters of a URL that give access: S3, Google Cloud, Azure, CloudFront and the usual names
SECRET_NAMES = (
    r"[\w.%-]*(?:signature|token|secret|passw(?:or)?d|credential|session)[\w.%-]*"
    r"|sig|pwd|auth[\w-]*|key|api[-_]?key|awsaccesskeyid|googleaccessid|key-pair-id|policy"
)
SECRETS = (
    (re.compile(r"(?<=://)[^/?#@\s'\"]+@"), "***@"),
    (re.compile(rf"([?&;](?:{SECRET_NAMES})=)[^&;#\s'\"<>)]+", re.IGNORECASE), r"\1***"),
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
    max_download_bytes: int = _limit(2**30, "largest file to fetch; of a stream, bytes without a frame")
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
        video, reason, remedy = (mask_secrets(printable(text)) for text in (video, reason, remedy))
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


def printable(text: str) -> str:
    r"""Escape what a terminal would obey, or a text file could not hold: "\x1b[2J" is printed, not carried out."""
    return UNPRINTABLE.sub(lambda match: match.group().encode("unicode_escape").decode("ascii"), text)


def mask_secrets(text: str) -> str:
    """Replace passwords, signatures and tokens by `***`: in URLs, in headers, and those of the Hub and of OpenAI."""
    for pattern, replacement in SECRETS:
        text = pattern.sub(replacement, text)
    return text


def describe_video(video) -> str:
    """Return a name of `video` for messages and results: its path, if it has one, printable and without secrets."""
    if isinstance(video, dict):
        video = video.get("path") or video.get("bytes")
    if isinstance(video, (str, os.PathLike)):
        # File names need not be valid UTF-8, but printed and written text must be.
        name = os.fspath(video).encode("utf-8", errors="backslashreplace").decode("utf-8")
        return mask_secrets(printable(name)) or "''"
    if isinstance(video, (bytes, bytearray, memoryview)):
        return f"<{len(video)} bytes>"
    if hasattr(video, "shape"):
        return f"<array of shape {tuple(video.shape)}>"
    if hasattr(video, "read"):
        return printable(str(getattr(video, "name", "<file object>")))
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


def is_frame(path: Path) -> bool:
    """Return whether a file has the extension of a frame image and is not hidden."""
    return path.suffix.lower() in IMAGE_EXTENSIONS and not path.name.startswith(".")


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
    """
    A file object that gives at most `max_download_bytes`. It can seek if the file inside can.

    `num_bytes` counts the bytes. Set it to 0 to begin again.
    """

    def __init__(self, file, name: str, limits: ReadLimits):
        # `read1` returns the bytes that have arrived. `read` waits until it has as many as requested.
        self._read = getattr(file, "read1", file.read)
        if getattr(file, "seekable", lambda: False)():
            self.seek, self.tell = file.seek, file.tell
        self.name, self.limits, self.num_bytes = name, limits, 0
        self.deadline = time.monotonic() + limits.max_download_seconds

    def read(self, size: int = READ_SIZE) -> bytes:
        """Return at most `size` bytes, none at the end."""
        content = self._read(size)
        self.num_bytes += len(content)
        if self.num_bytes > self.limits.max_download_bytes:
            raise limit_error(self.name, "is longer than allowed", "max_download_bytes", self.limits)
        return content

    def read_all(self) -> bytes:
        """Return the rest of the file."""
        parts = bytearray()
        while content := self.read():
            parts += content
            if time.monotonic() > self.deadline:
                raise limit_error(self.name, "takes longer to fetch than allowed", "max_download_seconds", self.limits)
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

        options["client_kwargs"] = {"timeout": aiohttp.ClientTimeout(total=limits.max_download_seconds)}
        if limits.public_addresses_only:
            options["get_client"] = _get_public_client
    try:
        with fsspec.open(url, "rb", **options) as remote:
            yield BoundedFile(remote, name, limits)
    except VideoReadError:
        raise
    except Exception as error:  # each file system has its own exception types
        raise VideoReadError(name, f"cannot be fetched ({_root_cause(error)}).", "Check the address.") from error


async def _get_public_client(**kwargs):
    import aiohttp

    # The factory sees each address that is connected to: after name resolution, and at each redirect.
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(socket_factory=_make_public_socket), **kwargs)


def _make_public_socket(info: tuple) -> socket.socket:
    address = ipaddress.ip_address(info[4][0].partition("%")[0])
    # IPv6 can carry an address of IPv4.
    address = getattr(address, "ipv4_mapped", None) or getattr(address, "sixtofour", None) or address
    if not address.is_global or address.is_multicast:
        raise OSError(f"{address} is not a public address")
    return socket.socket(*info[:3])


def _root_cause(error: BaseException) -> str:
    """Return the message of the first cause: the error of a file system itself is often the address alone."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, FileNotFoundError) and error.errno is None:
        return "not found"
    return re.sub(r",? url=.*", "", str(error)) or type(error).__name__
