"""What a benchmark says of the machine, and how its tables are written."""

from pathlib import Path

from ezclip.utils.files import replacing, write_json


def spread_as_text(summary: dict, digits: int = 2, factor: float = 1.0) -> str:
    """Return a median and its quartiles as text; see [`summarize`]."""
    low, high = summary["quartiles"]
    return f"{factor * summary['median']:.{digits}f} ({factor * low:.{digits}f}-{factor * high:.{digits}f})"


def ratio_as_text(against: dict | None) -> str:
    """Return a ratio and the range of its rounds as text; see [`compare`]."""
    if against is None:
        return "-"
    return f"{against['ratio']:.3f} ({against['range'][0]:.3f}-{against['range'][1]:.3f})"


def share_as_text(share: float | None) -> str:
    """Return a share as text."""
    return "-" if share is None else f"{share:.0%}"


def report(name: str, result: dict, text: str, output_dir: str | Path | None):
    """Print a command's Markdown; write it and the result as JSON to the folder that was asked for."""
    print(text)
    if output_dir is not None:
        write_json(Path(output_dir, f"{name}.json"), result)
        with replacing(Path(output_dir, f"{name}.md")) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
