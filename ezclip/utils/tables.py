"""Tables as text."""

import re
from collections.abc import Iterable

from video_ezclip import printable


# What has a meaning within a line. Emphasis by _ is only beside a blank or a sign: base_to_novel has none. Links need
# no brackets: http://, www. and @ are enough.
MARKUP = re.compile(r"[\\`*\[\]<>~|&#$@]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=www)\.", re.IGNORECASE)


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
