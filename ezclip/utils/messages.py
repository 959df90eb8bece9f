"""Messages for a terminal: printable, and without secrets."""

import logging
import sys
from typing import Any

from transformers.utils import logging as transformers_logging

from video_ezclip import clean


# For a terminal that knows no others
PLAIN_CHARACTERS = {ord(block): "#" for block in "█▉▊▋▌▍▎▏"} | {ord("…"): "...", ord("→"): "->", ord("±"): "+-"}


def say(text: object, **kwargs):
    """Print a text that may hold labels, file names or what a server sent. `kwargs` are those of `print`."""
    text, encoding = clean(str(text)), getattr(kwargs.get("file") or sys.stdout, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.translate(PLAIN_CHARACTERS).encode(encoding, "backslashreplace").decode(encoding)
    print(text, **kwargs)


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
