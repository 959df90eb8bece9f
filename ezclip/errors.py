"""Errors for users: each message says what is wrong and how to fix it. It is safe to print."""

from video_ezclip import clean


class _CleanError(ValueError):
    def __init__(self, message: str = ""):
        super().__init__(clean(message))


class DataError(_CleanError):
    """Data, labels or options cannot be used."""


class ModelError(_CleanError):
    """A model, processor or tokenizer cannot be used."""


def first_line(error: object) -> str:
    """Return the first non-empty line of an error message, or the exception's class name."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
