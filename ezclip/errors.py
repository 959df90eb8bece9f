"""Errors for the user of the tools: their messages say what is wrong and what to do."""


class DataError(ValueError):
    """The data given to the script cannot be used; the message says why and what to do."""


class ModelError(ValueError):
    """A model, processor or tokenizer cannot be used; the message says why and what to do."""


def first_line(error: object) -> str:
    """Of what an error says the first line that is not empty, and the name of its class if there is none."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
