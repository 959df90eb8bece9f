"""Errors for users: each message says what is wrong and how to fix it."""


class DataError(ValueError):
    """Data, labels or options cannot be used."""


class ModelError(ValueError):
    """A model, processor or tokenizer cannot be used."""


def first_line(error: object) -> str:
    """Return the first non-empty line of an error message, or the exception's class name."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
