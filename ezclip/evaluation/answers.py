"""Show predictions on the screen."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from ezclip.constants import PREDICTIONS_NAME
from ezclip.evaluation.prediction_files import PredictionCounts
from ezclip.utils.tables import as_text_table, name_of, score_bar, shorten


MAX_VIDEOS = 20
MAX_PROBLEMS = 10
NUM_NEXT = 2  # labels named after the best one


def show_predictions(output_dir: str | Path, counts: PredictionCounts) -> str:
    """
    Return the first predictions of a folder as a table for the screen, and its first bad videos with their reasons.

    Args:
        output_dir (`str` or `Path`):
            The folder with `predictions.jsonl`.
        counts ([`PredictionCounts`]):
            The numbers of its videos.
    """
    output_dir, lines = Path(output_dir), []
    if num_read := counts.num_videos - counts.num_bad_videos:
        path = output_dir / PREDICTIONS_NAME
        rows = [_as_row(line) for line in islice(_read_lines(path), MAX_VIDEOS)]
        lines.append(as_text_table(["video", "best label", "score", "", "next"], rows))
        lines += _name_rest(num_read - len(rows), path)
    return "\n".join([*lines, *show_problems(output_dir, counts)])


def show_problems(output_dir: str | Path, counts: PredictionCounts) -> list[str]:
    """Return lines for the screen: the first bad and partial videos of a folder, with their reasons."""
    lines = []
    for kind, count, state in (
        ("bad", counts.num_bad_videos, "could not be read"),
        ("partial", counts.num_partial_videos, "were read in part"),
    ):
        if count:
            path = Path(output_dir) / f"{kind}_videos.jsonl"
            named = list(islice(_read_lines(path), MAX_PROBLEMS))
            lines += ["", f"{count} of {counts.num_videos} videos {state}:"]
            lines += [f"  {line['video']}: {line['reason']}" for line in named]
            lines += _name_rest(count - len(named), path)
    return lines


def _as_row(line: dict) -> list[str]:
    best, *others = line["predictions"]
    following = ", ".join(f"{name_of(other['label'])} {other['score']:.2f}" for other in others[:NUM_NEXT])
    return [
        shorten(line["video"]),
        name_of(best["label"]),
        f"{best['score']:.2f}",
        score_bar(best["score"]),
        following,
    ]


def _name_rest(number: int, path: Path) -> list[str]:
    return [f"… and {number} more in {path}"] if number > 0 else []


def _read_lines(path: Path) -> Iterator[dict]:
    with open(path, encoding="utf-8") as file:
        yield from map(json.loads, file)
