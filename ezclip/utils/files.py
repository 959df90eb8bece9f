"""Files that are whole or not there: an interrupted run leaves the earlier one in place."""

import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ezclip.errors import DataError


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """
    A temporary path beside `path`. What is written there takes the place of `path` at the end, and is removed if the
    block raises.

    Args:
        path (`str` or `Path`):
            The file to write; its folder is made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, content: dict):
    """Write `content` as readable JSON, in place of what stands at `path`."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def flush(path: Path):
    """What the system still holds in memory of a file, or of the entries of a folder, goes to the disk."""
    with suppress(PermissionError):  # Windows opens no folders
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


LONGEST_NAME = 200  # bytes; file systems take 255


def check_folder_names(names: list[str], source: str | Path, reserved: tuple[str, ...] = ()):
    """
    That each name can be the name of a folder of its own, on any system.

    Raises:
        [`DataError`]: if one cannot.
    """
    keys = Counter(name.casefold() for name in names)
    for name in names:
        if not name.isprintable() or {"/", "\\"} & set(name) or name.strip() != name or name in (".", "..", ""):
            raise DataError(
                f"{source}: {name!r} cannot be the name of a folder, which it becomes. Use letters, digits and blanks "
                "within."
            )
        if len(name.encode()) > LONGEST_NAME:
            raise DataError(f"{source}: the name {name[:40]!r}… is longer than {LONGEST_NAME} bytes.")
        if name.casefold() in reserved:
            raise DataError(f"{source}: {name!r} is the name of a file that is written. Take another.")
        if keys[name.casefold()] > 1:
            raise DataError(f"{source}: {name!r} is there in two spellings, which are one folder on some systems.")


def read_text(path: str | Path) -> str:
    """
    A text file.

    Raises:
        [`DataError`]: if it cannot be read, or is not UTF-8.
    """
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not a text file in UTF-8 ({error.reason} at byte {error.start}).") from error
