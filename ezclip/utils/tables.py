"""Tables as text."""

from collections.abc import Iterable


def as_markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table. Vertical bars in cells are escaped."""
    cells = [[cell.replace("|", r"\|") for cell in row] for row in (header, ["---"] * len(header), *rows)]
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
