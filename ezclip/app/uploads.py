"""Find uploaded videos, remove old ones, and describe errors to visitors."""

import contextlib
import os
import time

from ezclip.app.guard import is_inside
from ezclip.errors import DataError
from video_ezclip import ReadLimitError, VideoReadError


NOT_FOUND = "The video was not found: upload it again."


def find_upload(upload, folder: str) -> str:
    """Return the path of an upload in `folder`. `upload` should be `{"path": …}`, but a client may send anything."""
    if upload is None:
        raise DataError("There is no video: drop, choose or record one.")
    path = upload.get("path") if isinstance(upload, dict) else None
    if not is_inside(path, folder) or not os.path.isfile(path):
        raise DataError(NOT_FOUND)
    return path


def remove_old_files(folder: str, seconds: float):
    """Remove the files and empty folders below a folder that are older than `seconds`."""
    for parent, folders, names in os.walk(folder):
        for name in folders + names:
            path = os.path.join(parent, name)
            with contextlib.suppress(OSError):  # another may remove it, and a folder may hold files
                if time.time() - os.lstat(path).st_ctime > seconds:
                    (os.remove if name in names else os.rmdir)(path)


def describe_error(error: Exception, path: str) -> str:
    """Return a sentence about an error, without paths of this machine and options that a visitor does not have."""
    if isinstance(error, ReadLimitError):
        return f"The video {error.reason.partition(';')[0]}. Give a smaller or shorter one."
    if isinstance(error, FileNotFoundError):  # it was removed while it was read
        return NOT_FOUND
    if not isinstance(error, VideoReadError):
        return without_folder(str(error), path)
    has_checkbox = "`allow_partial`" in error.remedy
    remedy = error.remedy if has_checkbox else "Give a file that a player plays: MP4, WebM, MOV, Matroska or AVI."
    return without_folder(f"The video {error.reason} {remedy}", path)


def without_folder(text: str, path: str) -> str:
    """Replace the path of a file on this machine by its name."""
    return text.replace(path, os.path.basename(path)).replace(os.path.dirname(path), "")
