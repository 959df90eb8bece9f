"""The hits of a search: merge overlapping windows, and write tables."""

import csv
import io
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ezclip.errors import DataError
from ezclip.utils.files import as_json_line, replacing
from ezclip.utils.tables import as_csv_cell


FORMATS = (".csv", ".jsonl")
GROWTH = 8  # candidates for a hit; and as many times more while overlaps leave too few hits


@dataclass(frozen=True)
class Hit:
    """
    A part of a video that fits a query.

    Args:
        video (`str`):
            Path of the video in the indexed folder.
        start (`float`), end (`float`):
            The window, in seconds.
        score (`float`):
            The cosine of the embeddings of the window and the query, in [-1, 1].
    """

    video: str
    start: float
    end: float
    score: float


def merge_overlaps(candidates: Iterable[Hit], top_k: int, per_video: int | None = None) -> list[Hit]:
    """
    Return the first `top_k` candidates, at most `per_video` of a video, that overlap with no earlier one.

    Candidates come best first. So a hit is the best window of its place, and the windows that share time with it are
    left out (non-maximum suppression).
    """
    hits, kept = [], defaultdict(list)
    for one in candidates:
        others = kept[one.video]
        if len(others) != per_video and not any(one.start < o.end and o.start < one.end for o in others):
            others.append(one)
            hits.append(one)
            if len(hits) == top_k:
                break
    return hits


def check_output_file(path: str | Path):
    """Raise [`DataError`] if the suffix of a file is not a format of hits."""
    if Path(path).suffix.lower() not in FORMATS:
        raise DataError(f"The suffix of an output file must be one of {', '.join(FORMATS)}, got {path}.")


def save_hits(hits: Sequence[Hit], path: str | Path):
    """
    Write hits to a file, best first. The suffix selects the format: `.csv` or `.jsonl`, with the fields of [`Hit`].

    Raises:
        [`DataError`]: if the suffix is another one, or the file cannot be written.
    """
    check_output_file(path)
    if Path(path).suffix.lower() == ".jsonl":
        text = "".join(as_json_line(asdict(hit)) for hit in hits)
    else:
        file = io.StringIO(newline="")
        writer = csv.writer(file)
        writer.writerow(["video", "start", "end", "score"])
        writer.writerows(
            [as_csv_cell(hit.video), f"{hit.start:.3f}", f"{hit.end:.3f}", f"{hit.score:.4f}"] for hit in hits
        )
        text = file.getvalue()
    try:
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="")  # CSV already has the line ends of RFC 4180
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror}). Give another path.") from error
