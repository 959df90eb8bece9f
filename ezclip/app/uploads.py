"""Check uploaded videos before they are decoded, and describe errors to visitors."""

import contextlib
import os
import time

import av

from ezclip.app.guard import is_inside
from ezclip.errors import DataError
from files_ezclip import VideoReadError


# Allowed containers, by FFmpeg's names. Playlists are excluded because they name other files.
FORMATS = ("mov", "matroska", "webm", "avi", "mpegts", "mpeg", "mpegvideo", "flv", "ogg", "asf")
FORMATS_IN_WORDS = "MP4, MOV, WebM, Matroska, AVI, MPEG, FLV, Ogg and WMV"
MAX_PIXELS = 4096 * 2304  # per frame; several frames are in memory at a time
MAX_RATE = 240  # frames per second; limits the number of packets if the times are wrong


def find_upload(upload, folder: str) -> str:
    """Return the path of an upload in `folder`. `upload` should be `{"path": …}`, but a client may send anything."""
    if upload is None:
        raise DataError("There is no video: drop, choose or record one.")
    path = upload.get("path") if isinstance(upload, dict) else None
    if not is_inside(path, folder) or not os.path.isfile(path):
        raise DataError("The video was not found: upload it again.")
    return path


def check_upload(path: str, max_seconds: float):
    """
    Check an uploaded file without decoding it. The packets give its length, because a header can state anything.

    Raises:
        [`VideoReadError`]: if it is not a video file in one of `FORMATS`.
        [`DataError`]: if it is too long, or its frames are too large.
    """
    options = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "file"}
    name = os.path.basename(path)
    try:
        container = av.open(os.path.abspath(path), options=options, metadata_errors="ignore")
    except (av.FFmpegError, OSError, ValueError) as error:
        raise VideoReadError(
            name,
            "cannot be opened: it is damaged, incomplete, or of another format.",
            f"Give a file that a player plays, in one of these formats: {FORMATS_IN_WORDS}.",
        ) from error
    with container:
        stream = container.streams.best("video")
        if stream is None or stream.codec_context is None:
            raise VideoReadError(
                name, "has no video that FFmpeg can decode.", "Re-encode it, or give a file with video."
            )
        height, width = stream.codec_context.height, stream.codec_context.width
        if height * width > MAX_PIXELS:
            raise DataError(
                f"A frame must have at most {MAX_PIXELS:,} pixels, got {width} x {height}. Make the video smaller."
            )
        _check_length(container, stream, max_seconds)


def _check_length(container, stream, max_seconds: float):
    seconds, last = 0.0, None
    try:
        for number, packet in enumerate(container.demux(stream)):
            if packet.dts is not None:
                now = float(packet.dts * packet.time_base)
                # In joined recordings times jump back; continue from there.
                seconds += 0.0 if last is None else max(0.0, now - last)
                last = now
            if seconds > max_seconds or number > MAX_RATE * max_seconds:
                raise DataError(
                    f"The video is longer than {max_seconds:g} seconds. Cut it, or run `ezclip app` yourself with "
                    "another --max_seconds."
                )
    except av.FFmpegError:
        return  # The decoder reports damage.


def remove_old_files(folder: str, seconds: float):
    """Remove the files below a folder that are older than `seconds`."""
    for parent, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(parent, name)
            with contextlib.suppress(FileNotFoundError):  # another may remove it
                if time.time() - os.lstat(path).st_ctime > seconds:
                    os.remove(path)


def describe_error(error: Exception, path: str) -> str:
    """Return a sentence about an error, without paths of this machine."""
    text = f"The video {error.reason} {error.remedy}" if isinstance(error, VideoReadError) else str(error)
    return without_folder(text, path)


def without_folder(text: str, path: str) -> str:
    """Replace the path of a file on this machine by its name."""
    return text.replace(path, os.path.basename(path)).replace(os.path.dirname(path), "")
