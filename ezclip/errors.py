"""Errors for the user of the tools: their messages say what is wrong and what to do."""


class DataError(ValueError):
    """The data given to the script cannot be used; the message says why and what to do."""


class ModelError(ValueError):
    """A model, processor or tokenizer cannot be used; the message says why and what to do."""
