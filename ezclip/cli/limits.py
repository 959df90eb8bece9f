"""The options that limit what reading a video may take, for commands without a dataclass of options."""

import dataclasses

from ezclip.cli.parser import Parser
from ezclip.errors import DataError
from video_ezclip import ReadLimits


def add_limits(parser: Parser):
    """Add an option for each field of [`ReadLimits`]."""
    group = parser.add_argument_group("limits of reading a video")
    for field in dataclasses.fields(ReadLimits):
        option, help = f"--{field.name}", field.metadata["help"]
        if isinstance(field.default, bool):
            group.add_argument(option, action="store_true", help=help)
        else:
            group.add_argument(option, type=type(field.default), default=field.default, help=f"{help} (%(default)s)")


def read_limits(args) -> ReadLimits:
    """
    Return the limits that options ask for.

    Raises:
        [`DataError`]: if a limit is not above 0.
    """
    try:
        return ReadLimits(**{field.name: getattr(args, field.name) for field in dataclasses.fields(ReadLimits)})
    except ValueError as error:
        raise DataError(str(error)) from error
