"""Errors for users: each message says what is wrong and how to fix it. It is safe to print."""

from video_ezclip import mask_secrets, printable


class DataError(ValueError):
    """Data, labels or options cannot be used."""

    def __init__(self, message: str = ""):
        super().__init__(mask_secrets(printable(message)))


class ModelError(ValueError):
    """A model, processor or tokenizer cannot be used."""

    def __init__(self, message: str = ""):
        super().__init__(mask_secrets(printable(message)))


def first_line(error: object) -> str:
    """Return the first non-empty line of an error message, or the exception's class name."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
