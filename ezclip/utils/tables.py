"""Tables as text."""

import re
import unicodedata
from collections.abc import Iterable

from video_ezclip import printable


# What has a meaning within a line. Emphasis by _ is only beside a blank or a sign: base_to_novel has none. Links need
# no brackets: http://, www. and @ are enough.
MARKUP = re.compile(r"[\\`*\[\]<>~|&#$@]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=www)\.", re.IGNORECASE)


BAR_ENDS = " ▏▎▍▌▋▊▉"  # by eighths of a character
MAX_NAMES = 8  # in a line
MAX_LENGTH = 40  # characters of a name of a video or label
GAP = "  "  # between two columns of a table on the screen

# What a spreadsheet takes for a formula, and what `as_csv_cell` makes of it
FORMULA = re.compile(r"'*[=+\-@\t\r]")


def escape_markdown(text: str) -> str:
    """Return a text as Markdown within a line: it makes no links, images, HTML, code, formulas, cells or new lines."""
    return MARKUP.sub(r"\\\g<0>", printable(" ".join(text.split())))


def as_csv_cell(text: str) -> str:
    """Return a text as a cell of a CSV file. `'` marks as text what a spreadsheet would run as a formula."""
    return f"'{text}" if FORMULA.match(text) else text


def from_csv_cell(cell: str) -> str:
    """Return the text of a cell that [`as_csv_cell`] wrote."""
    return cell[1:] if cell.startswith("'") and FORMULA.match(cell) else cell


def as_markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table. The rows are plain text, see [`escape_markdown`]; the header is Markdown."""
    cells = [header, ["---"] * len(header), *(map(escape_markdown, row) for row in rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def as_text_table(header: list[str], rows: list[list[str]]) -> str:
    """Return a table for the screen, in aligned columns. Texts are printed as [`printable`] makes them."""
    cells = [[printable(re.sub(r"[\n\t]", " ", text)) for text in row] for row in [header, *rows]]
    widths = [max(map(screen_width, column)) for column in zip(*cells)]
    lines = (
        GAP.join(text + " " * (width - screen_width(text)) for text, width in zip(row, widths)).rstrip()
        for row in cells
    )
    return "\n".join(lines)


def count_of(number: int, noun: str = "video") -> str:
    """Return "1 video" or "3 videos"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}{'es' if noun.endswith('s') else 's'}"


def first_names(names: list[str]) -> str:
    """Return the first eight names, joined by commas."""
    return ", ".join(names[:MAX_NAMES]) + (", …" if len(names) > MAX_NAMES else "")


def shorten(text: str) -> str:
    """Return a text in one line of at most 40 characters. Its beginning and its end stay."""
    text = printable(" ".join(text.split()))
    return text if len(text) <= MAX_LENGTH else f"{text[: MAX_LENGTH // 2 - 1]}…{text[-MAX_LENGTH // 2 :]}"


def name_of(label: str | None) -> str:
    """Return a label as tables on the screen show it. `None` is the answer "none of these"."""
    return "(none of these)" if label is None else shorten(label)


def screen_width(text: str) -> int:
    """Return the columns that a text takes on a screen: two for a wide character, none for a combining one."""
    is_shown = (unicodedata.category(character) not in ("Mn", "Me", "Cf") for character in text)
    return sum(shown + (shown and unicodedata.east_asian_width(c) in "WF") for shown, c in zip(is_shown, text))


def score_bar(score: float, width: int = 20) -> str:
    """
    Return a score from 0 to 1 as a bar of text, `width` characters long with its blanks.

    Example:

    ```python
    >>> score_bar(0.55, 10)
    '█████▌    '
    ```
    """
    full, eighths = divmod(round(8 * width * min(max(score, 0.0), 1.0)), 8)
    return ("█" * full + BAR_ENDS[eighths])[:width].ljust(width)


def as_table(rows: Iterable[dict], columns: dict[str, tuple]) -> str:
    """
    Return a Markdown table of rows, with a column of errors if a row has `failed`.

    Args:
        rows (`Iterable[dict]`):
            The rows. A value is a string, a number, `None`, or a dictionary of [`summarize`] or [`compare`].
        columns (`dict[str, tuple]`):
            By header the key of the value, and optionally its format and a factor.

    Example:

    ```python
    >>> print(as_table([{"name": "a", "bytes": 2_500_000}], {"file": ("name",), "size (MB)": ("bytes", ".2f", 1e-6)}))
    | file | size (MB) |
    | --- | --- |
    | a | 2.50 |
    ```
    """
    rows = list(rows)
    if any("failed" in row for row in rows):
        columns = {**columns, "failed": ("failed",)}
    cells = [[_cell(row.get(key), *form) for key, *form in columns.values()] for row in rows]
    return as_markdown_table(list(columns), cells)


def _cell(value: object, form: str = "", factor: float = 1) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    if not isinstance(value, dict):
        return format(factor * value, form)
    middle, bounds = ("ratio", "range") if "ratio" in value else ("median", "quartiles")
    middle, low, high = (format(factor * number, form) for number in (value[middle], *value[bounds]))
    return f"{middle} ({low}-{high})"
