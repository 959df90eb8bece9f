"""Answers of a classification, as rows of a file."""

import csv
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow
import pyarrow.parquet

from ezclip.errors import DataError
from ezclip.utils.files import as_json_line, replacing
from ezclip.utils.tables import as_csv_cell


SCHEMA = pyarrow.schema(
    [("video", pyarrow.string()), ("label", pyarrow.string()), ("score", pyarrow.float64()), ("rank", pyarrow.int64())]
)


@dataclass
class VideoAnswer:
    """
    The answer for one video.

    Args:
        video (`str`):
            Path or URL of the video, as given.
        predictions (`list[dict]`):
            `label` and `score` of the best labels, best first, as the pipeline returns them. The label `None` stands
            for all background labels, or for no label that reaches `min_score`. Empty if the video could not be read.
        error (`str`, *optional*):
            The reason why the video could not be read.
        problem (`str`, *optional*):
            The reason why only a part of the video was read.
        is_kept (`bool`, *optional*, defaults to `False`):
            Whether the embedding came from the cache: the video was not decoded.
    """

    video: str
    predictions: list[dict] = field(default_factory=list)
    error: str | None = None
    problem: str | None = None
    is_kept: bool = False

    def rows(self) -> list[dict]:
        """Return a row for each label: `video`, `label`, `score` and `rank`, which counts from 1."""
        return [
            {"video": self.video, "label": one["label"], "score": one["score"], "rank": rank}
            for rank, one in enumerate(self.predictions, 1)
        ]


def save_answers(answers: Iterable[VideoAnswer], path: str | Path):
    """
    Write the rows of answers, see [`VideoAnswer.rows`]. The suffix selects the format: .csv, .jsonl or .parquet.

    Videos that could not be read have no rows.

    Raises:
        [`DataError`]: if the suffix is another one, or the file cannot be written.
    """
    check_output_file(path)
    rows = [row for answer in answers for row in answer.rows()]
    try:
        with replacing(path) as temporary:
            WRITERS[Path(path).suffix.lower()](rows, temporary)
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror}). Give another path.") from error


def check_output_file(path: str | Path):
    """
    Raise if answers cannot be written to a file.

    Raises:
        [`DataError`]: if its suffix is not a format, or its folder cannot be made or written.
    """
    if Path(path).suffix.lower() not in WRITERS:
        raise DataError(f"--output_file must end in one of {', '.join(WRITERS)}, got {path}.")
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"--output_file {path}: its folder cannot be made ({error.strerror}). Give another."
        ) from error
    if Path(path).is_dir() or not os.access(Path(path).parent, os.W_OK):
        raise DataError(f"--output_file {path} cannot be written. Give another path.")


def _write_csv(rows: list[dict], path: Path):
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, SCHEMA.names)
        writer.writeheader()
        for row in rows:
            writer.writerow({**row, "video": as_csv_cell(row["video"]), "label": as_csv_cell(row["label"] or "")})


def _write_json_lines(rows: list[dict], path: Path):
    path.write_text("".join(map(as_json_line, rows)), encoding="utf-8", newline="\n")


def _write_parquet(rows: list[dict], path: Path):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, SCHEMA), path)


WRITERS = {".csv": _write_csv, ".jsonl": _write_json_lines, ".parquet": _write_parquet}
