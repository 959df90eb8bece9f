"""Cells of the tables of benchmarks, and the files of a result."""

from pathlib import Path

from ezclip.utils.files import replacing, write_json


def spread_as_text(summary: dict, digits: int = 2, factor: float = 1.0) -> str:
    """Return a median and its quartiles as text; see [`summarize`]."""
    low, high = summary["quartiles"]
    return f"{factor * summary['median']:.{digits}f} ({factor * low:.{digits}f}-{factor * high:.{digits}f})"


def ratio_as_text(against: dict | None) -> str:
    """Return a ratio and the range of its rounds as text; see [`compare`]."""
    return "-" if against is None else "{:.3f} ({:.3f}-{:.3f})".format(against["ratio"], *against["range"])


def share_as_text(share: float | None) -> str:
    """Return a share as text."""
    return "-" if share is None else f"{share:.0%}"


def report(name: str, result: dict, text: str, output_dir: str | Path | None):
    """Print the Markdown of a command. Write it, and the result as JSON, if there is an output folder."""
    print(text)
    if output_dir is not None:
        write_json(Path(output_dir, f"{name}.json"), result)
        with replacing(Path(output_dir, f"{name}.md")) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
