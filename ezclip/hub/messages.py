"""Keep the token of the Hub out of messages, also where a server echoes it."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import get_token

from video_ezclip import clean


def without_token(text: object) -> str:
    """Return a text with the token in use and other secrets masked, and control characters escaped."""
    text = str(text)
    if token := get_token():
        text = text.replace(token, "***")
    return clean(text)


@contextmanager
def masked_logs() -> Iterator[None]:
    """Apply [`without_token`] to what all libraries log and warn. huggingface_hub logs warnings of the server."""
    factory, show = logging.getLogRecordFactory(), warnings.showwarning

    def make_record(*args, **kwargs) -> logging.LogRecord:
        record = factory(*args, **kwargs)
        record.msg, record.args = without_token(record.getMessage()), ()
        return record

    def show_warning(message, category, *args, **kwargs):
        show(category(without_token(message)), category, *args, **kwargs)

    logging.setLogRecordFactory(make_record)
    warnings.showwarning = show_warning
    try:
        yield
    finally:
        logging.setLogRecordFactory(factory)
        warnings.showwarning = show
