"""Tables as text."""


def as_markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table. Vertical bars in cells are escaped."""
    cells = [[cell.replace("|", r"\|") for cell in row] for row in (header, ["---"] * len(header), *rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)
