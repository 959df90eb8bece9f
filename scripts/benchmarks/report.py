"""What a benchmark says of the machine, and how its tables are written."""

from pathlib import Path

from ezclip.utils.files import replacing, write_json


def spread_as_text(summary: dict, digits: int = 2, factor: float = 1.0) -> str:
    """A median and its quartiles; see [`summarize`]."""
    low, high = summary["quartiles"]
    return f"{factor * summary['median']:.{digits}f} ({factor * low:.{digits}f}-{factor * high:.{digits}f})"


def ratio_as_text(against: dict | None) -> str:
    """A ratio and the range of its rounds; see [`compare`]."""
    if against is None:
        return "-"
    return f"{against['ratio']:.3f} ({against['range'][0]:.3f}-{against['range'][1]:.3f})"


def share_as_text(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def report(name: str, result: dict, text: str, output_dir: str | Path | None):
    """Print a command's Markdown; write it and the result as JSON to the folder that was asked for."""
    print(text)
    if output_dir is not None:
        write_json(Path(output_dir, f"{name}.json"), result)
        with replacing(Path(output_dir, f"{name}.md")) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
