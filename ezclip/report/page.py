"""What a report consists of, and the HTML of it: one file that refers to nothing outside."""

import base64
import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ezclip.report.drawing import Picture


FOLDER = Path(__file__).resolve().parent
LONGEST_TEXT = 240  # of a cell, before it is folded


@dataclass
class Cell:
    """
    A cell of a table.

    Args:
        text (`str`):
            What it says.
        sort (`float`, *optional*):
            What its column is sorted by, where it is a number.
        bar (`tuple[float, float, float]`, *optional*):
            An accuracy and the ends of its interval, from 0 to 1, to be drawn: low, value, high.
        is_name (`bool`, *optional*, defaults to `False`):
            Whether the text is the name of a class or video, in a script and direction of its own.
    """

    text: str
    sort: float | None = None
    bar: tuple[float, float, float] | None = None
    is_name: bool = False


@dataclass
class Table:
    """Rows of cells under names of columns; `sortable` where readers may want another order."""

    columns: list[str]
    rows: list[list[Cell]]
    caption: str = ""
    sortable: bool = False
    kind: str = "table"


@dataclass
class Cards:
    """Figures to be seen first: name, value, and what there is to say of it."""

    cards: list[tuple[str, str, str]]
    kind: str = "cards"


@dataclass
class Text:
    """A paragraph."""

    text: str
    kind: str = "text"


@dataclass
class Shown:
    """A picture."""

    picture: Picture
    kind: str = "picture"


@dataclass
class Samples:
    """
    Videos of a pair of classes.

    Args:
        first (`str`), second (`str`):
            Names of the classes.
        text (`str`):
            How many are confused.
        strips (`list[tuple[str, str, Picture | str]]`):
            The name of each video, its prediction, and its frames or the reason why they are missing.
    """

    first: str
    second: str
    text: str
    strips: list[tuple[str, str, Picture | str]]
    kind: str = "samples"


@dataclass
class Section:
    """A section: a column of items for each run, or a single one without a name."""

    title: str
    intro: str
    columns: list[tuple[str | None, list]] = field(default_factory=list)

    @property
    def anchor(self) -> str:
        """Return the anchor of the section."""
        return self.title.lower().replace(" ", "-")


def render(title: str, subtitle: str, notes: list[str], sections: list[Section], footer: str) -> str:
    """
    Return the page as HTML.

    Args:
        title (`str`), subtitle (`str`), footer (`str`):
            What stands above and below.
        notes (`list[str]`):
            What readers must know first.
        sections (`list[Section]`):
            What stands between.
    """
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_uri"] = _data_uri
    environment.filters["printable"] = _printable
    script = (FOLDER / "page.js").read_text(encoding="utf-8")
    return environment.get_template("page.html").render(
        title=title,
        subtitle=subtitle,
        notes=notes,
        sections=sections,
        footer=footer,
        style=(FOLDER / "page.css").read_text(encoding="utf-8"),
        script=script,
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        longest_text=LONGEST_TEXT,
    )


def _data_uri(picture: Picture) -> str:
    return f"data:image/{picture.kind};base64,{base64.b64encode(picture.content).decode()}"


def _printable(text: str) -> str:
    """HTML has no control characters."""
    return "".join(
        letter if letter.isprintable() or letter in " \n\t" or ord(letter) > 159 else "\ufffd" for letter in text
    )
