"""Files that are written as a whole or not at all, and read with a check."""

import json
import os
import re
import secrets
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ezclip.errors import DataError


MAX_NAME_BYTES = 200  # file systems take 255


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """
    Yield a temporary path that replaces `path` at the end of the block, and is removed if the block raises.

    The folder of `path` is created. An interrupted run leaves the earlier file in place. Threads, and computers that
    share the folder, may write the same file at once.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, content: dict):
    """Write `content` as indented JSON and replace the file at `path`."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def as_json_line(content: object) -> str:
    """Return `content` as a line of JSON with its line feed, without other characters that may end a line."""
    text = json.dumps(content, ensure_ascii=False)
    return re.sub("[\x7f-\x9f\u2028\u2029\ud800-\udfff]", lambda match: f"\\u{ord(match.group()):04x}", text) + "\n"


def read_json(path: str | Path, remedy: str) -> dict:
    """
    Read a JSON object.

    Args:
        path (`str` or `Path`):
            The file.
        remedy (`str`):
            What the user can do about a damaged file, for the message.

    Raises:
        [`DataError`]: if the file cannot be read, or does not hold an object.
    """
    try:
        content = json.loads(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged ({error}). {remedy}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} is damaged: it must hold an object, got {type(content).__name__}. {remedy}")
    return content


def flush(path: Path):
    """Flush a file, or the entries of a folder, from the system's memory to the disk."""
    with suppress(PermissionError):  # Windows opens no folders
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_folder_names(names: list[str], source: str | Path, reserved: tuple[str, ...] = ()):
    """
    Raise if a name cannot be the name of a folder of its own on every system.

    Args:
        names (`list[str]`):
            The names to check.
        source (`str` or `Path`):
            The file they come from, for messages.
        reserved (`tuple[str, ...]`, *optional*):
            Lower-case names that are already taken.

    Raises:
        [`DataError`]: if a name is invalid, too long, reserved, or differs from another in case alone.
    """
    keys = Counter(name.casefold() for name in names)
    for name in names:
        if not name.isprintable() or {"/", "\\"} & set(name) or name.strip() != name or name in (".", "..", ""):
            raise DataError(
                f"{source}: {name!r} cannot be the name of a folder. Use letters, digits and inner spaces only."
            )
        if len(name.encode()) > MAX_NAME_BYTES:
            raise DataError(f"{source}: the name {name[:40]!r}… is longer than {MAX_NAME_BYTES} bytes. Shorten it.")
        if name.casefold() in reserved:
            raise DataError(f"{source}: {name!r} is the name of a file that is written here. Rename it.")
        if keys[name.casefold()] > 1:
            raise DataError(
                f"{source}: {name!r} is there in two spellings, which are one folder on some systems. Rename one."
            )


def read_text(path: str | Path) -> str:
    """
    Read a UTF-8 text file, with or without a byte order mark.

    Raises:
        [`DataError`]: if it cannot be read, or is not UTF-8.
    """
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not a text file in UTF-8 ({error.reason} at byte {error.start}).") from error
