"""The parts of a report, and its HTML: one file without references to other files."""

import base64
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ezclip.report.drawing import Picture


FOLDER = Path(__file__).resolve().parent
MAX_TEXT = 240  # letters of a cell; the rest is folded


@dataclass
class Cell:
    """
    A cell of a table.

    Args:
        text (`str`):
            Text of the cell.
        sort (`float`, *optional*):
            Sort key of a number.
        bar (`tuple[float, float, float]`, *optional*):
            Low end, value and high end of an accuracy, from 0 to 1, drawn as a bar.
        is_name (`bool`, *optional*, defaults to `False`):
            Whether the text is a class or video name, which can have another script and direction.
    """

    text: str
    sort: float | None = None
    bar: tuple[float, float, float] | None = None
    is_name: bool = False


@dataclass
class Table:
    """A table; JavaScript can sort it if it is `sortable`."""

    columns: list[str]
    rows: list[list[Cell]]
    caption: str = ""
    sortable: bool = False
    kind: str = "table"


@dataclass
class Cards:
    """The main numbers: name, value and detail of each."""

    cards: list[tuple[str, str, str]]
    kind: str = "cards"


@dataclass
class Samples:
    """Videos of two confused classes: the name of each, its prediction, and its frames or the error of reading."""

    first: str
    second: str
    text: str
    strips: list[tuple[str, str, Picture | str]]
    kind: str = "samples"


@dataclass
class Card:
    """A video of a gallery: its name, its best labels with scores, and its frames (`None`: not shown) or the error."""

    video: str
    ranked: list[tuple[str, float]]
    strip: Picture | str | None


@dataclass
class Gallery:
    """Predicted videos; JavaScript can sort and search them."""

    cards: list[Card]
    kind: str = "gallery"


@dataclass
class Section:
    """
    A section with a column for each run, or one column without a name.

    A column is a run's name and its items: [`Table`], [`Cards`], [`Picture`], [`Samples`], [`Gallery`], or `str` for a
    paragraph.
    """

    title: str
    intro: str
    columns: list[tuple[str | None, list]]

    @property
    def anchor(self) -> str:
        """Return the anchor of the section."""
        return self.title.lower().replace(" ", "-")


def render(title: str, subtitle: str, notes: list[str], sections: list[Section], footer: str = "") -> str:
    """Return the page as HTML. Warnings (`notes`) come first. `footer` is a sentence at the end."""
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
        max_text=MAX_TEXT,
    )


def _data_uri(picture: Picture) -> str:
    return f"data:image/{picture.format};base64,{base64.b64encode(picture.content).decode()}"


def _printable(text: str) -> str:
    """Replace control characters, which HTML does not allow."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\ufffd", text)
