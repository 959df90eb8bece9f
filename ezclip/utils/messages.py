"""Messages for a terminal: printable, and without secrets."""

import logging
import os
import sys
import time
from typing import Any, Never

from transformers.utils import logging as transformers_logging

from video_ezclip import clean


# For a terminal that knows no others
PLAIN_CHARACTERS = {ord(block): "#" for block in "█▉▊▋▌▍▎▏"} | {ord("…"): "...", ord("→"): "->", ord("±"): "+-"}
# More than a launcher takes to see that a process has ended
SECONDS_TO_FAIL = 8.0


def say(text: object, **kwargs):
    """Print a text that may hold labels, file names or what a server sent. `kwargs` are those of `print`."""
    text, encoding = clean(str(text)), getattr(kwargs.get("file") or sys.stdout, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.translate(PLAIN_CHARACTERS).encode(encoding, "backslashreplace").decode(encoding)
    print(text, **kwargs)


def is_first_process() -> bool:
    """Return whether this process is the only one of a command on this machine, or the first one of a launcher."""
    return int(os.environ.get("LOCAL_RANK") or 0) <= 0


def wait_for_first_process():
    """
    Wait before a failed process of a launcher ends, unless it is the first one.

    If the first process fails too, it prints the message, and the launcher ends this one while it waits.
    """
    if not is_first_process():
        time.sleep(SECONDS_TO_FAIL)


def exit_with(message: str, status: int) -> Never:
    """Print a message on standard error, once for all processes of a launcher, and end with a status."""
    wait_for_first_process()
    say(message, file=sys.stderr)
    sys.exit(status)


def get_logger(name: str = "ezclip") -> Any:
    """Return a logger of transformers (`warning_once`) whose messages are printable and without secrets."""
    logger = transformers_logging.get_logger(name)
    logger.addFilter(_CLEANER)
    return logger


class _Cleaner(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        """Clean the message of a record."""
        record.msg, record.args = clean(record.getMessage()), ()
        return True


_CLEANER = _Cleaner()
