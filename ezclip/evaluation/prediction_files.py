"""Write predictions part by part, so that an interrupted run can resume.

`predictions/shard-00003-part-00001.parquet` is the second part of the predictions for the fourth file of the data. A
part is written under a temporary name, flushed to the disk and renamed, so every part is whole. The metadata of a part
says which part it is, whether it is the last of its shard, and has a digest of its rows. Progress is read from the
parts alone.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow
import pyarrow.parquet

from ezclip.errors import DataError
from ezclip.utils.earlier_results import EarlierResults
from ezclip.utils.files import as_json_line, flush, read_json, replacing
from ezclip.utils.settings import as_json, check_unchanged


SCHEMA = pyarrow.schema(
    [
        ("row", pyarrow.int64()),
        ("video", pyarrow.string()),
        ("label", pyarrow.string()),
        ("predictions", pyarrow.list_(pyarrow.struct([("label", pyarrow.string()), ("score", pyarrow.float32())]))),
        ("error", pyarrow.string()),
    ]
)
UNFINISHED_NAME = ".unfinished"  # folder in `predictions` of a run that starts anew
PART_NAME = re.compile(r"shard-(\d{5,})-part-(\d{5,})\.parquet")
# Seconds until a node sees the files of another node: network file systems cache the lists of folders.
SHARED_FOLDER_DELAY = 90.0


@dataclass
class Progress:
    """
    The part of the data that is predicted.

    Args:
        parts (`dict[int, set[int]]`):
            Numbers of the written parts of each shard.
        ends (`dict[int, int]`):
            Total number of parts, for each shard whose last part is written.
        num_videos (`int`):
            Number of videos in these parts.
        path (`Path`, *optional*):
            The folder of the parts.
    """

    parts: dict[int, set[int]] = field(default_factory=dict)
    ends: dict[int, int] = field(default_factory=dict)
    num_videos: int = 0
    path: Path = Path()

    def is_complete(self, shard: int) -> bool:
        """Return whether all parts of a shard are written."""
        return len(self.parts.get(shard, ())) == self.ends.get(shard)


@dataclass
class PredictionCounts:
    """
    Numbers of videos of a prediction run.

    Args:
        num_videos (`int`):
            All videos.
        num_bad_videos (`int`):
            Videos that could not be read.
        num_partial_videos (`int`):
            Videos that were read in part.
    """

    num_videos: int = 0
    num_bad_videos: int = 0
    num_partial_videos: int = 0


class PredictionFolder:
    """
    The folder `predictions` of an output folder.

    Its Parquet files have a row per video: `row` (its number in its shard), `video` (its name, which may repeat),
    `label` (its class, null if unknown), `predictions` (labels and scores, best first; null for an unreadable video)
    and `error` (the reason for an unreadable video, or for one that was read in part; null otherwise).

    A run that starts anew in a used folder writes to a folder within it, and replaces the earlier results at the end.

    Args:
        output_dir (`str` or `Path`):
            The output folder.
        part_size (`int`):
            Number of videos of a part. The last part of a shard may have fewer.
        describe_shard (`Callable[[int], str]`, *optional*):
            Describes the data of a shard, to find out that it changed after it was predicted.
    """

    def __init__(self, output_dir: str | Path, part_size: int, describe_shard: Callable[[int], str] = lambda _: ""):
        self.output_dir, self.part_size, self.describe_shard = Path(output_dir), part_size, describe_shard
        self.final = self.path = self.output_dir / "predictions"
        self.starts_anew = False

    @property
    def settings_path(self) -> Path:
        """Return the path of the settings of the parts."""
        return self.path / "settings.json"

    def begin(self, settings: dict, overwrite: bool = False) -> Progress:
        """
        Prepare the folder on one process, before any process writes to it.

        Args:
            settings (`dict`):
                Everything that decides the rows and their order, in types that JSON has. `settings.json` keeps it.
            overwrite (`bool`, *optional*, defaults to `False`):
                Whether the predictions replace all results of earlier runs. A run that was interrupted then is resumed
                without it.

        Returns:
            [`Progress`]: the parts of earlier runs.

        Raises:
            [`DataError`]: if the folder holds predictions with other settings, or a part is damaged.
        """
        settings = as_json(settings)
        with self._disk_errors():
            unfinished = self.final / UNFINISHED_NAME
            if overwrite:
                shutil.rmtree(unfinished, ignore_errors=True)
            self.starts_anew = overwrite or _has_settings(unfinished, settings)
            self.path = unfinished if self.starts_anew else self.final
            self.path.mkdir(parents=True, exist_ok=True)
            self._remove_leftovers()
            parts = self._find_parts()
            if self.settings_path.exists():
                saved = read_json(self.settings_path, "Give --overwrite_output_dir, or another --output_dir.")
                check_unchanged(self.path, saved, settings)
            elif parts:
                raise DataError(
                    f"{self.path} holds predictions without their settings.json. Give --overwrite_output_dir to start "
                    "anew, or another --output_dir."
                )
            else:
                self._write_settings(settings)
            for shard, numbers in parts.items():
                data = self.describe_shard(shard)
                for part in sorted(numbers):
                    self._read_part(shard, part, data)
            progress = self._measure(parts)
            progress.path = self.path
            return progress

    def write_part(self, shard: int, part: int, rows: list[dict], is_last: bool):
        """
        Write a part as a whole and flush it to the disk.

        Args:
            shard (`int`), part (`int`):
                The numbers of shard and part.
            rows (`list[dict]`):
                The rows of the part.
            is_last (`bool`):
                Whether it is the last part of the shard.

        Raises:
            [`DataError`]: if it cannot be written.
        """
        table = pyarrow.Table.from_pylist(rows, SCHEMA)
        metadata = {"shard": str(shard), "part": str(part), "is_last": json.dumps(is_last)}
        metadata |= {"digest": _digest_rows(table.to_pylist()), "data": self.describe_shard(shard)}
        table = table.replace_schema_metadata(metadata)
        with self._disk_errors(), replacing(self.part_path(shard, part)) as temporary:
            with open(temporary, "wb") as file:
                pyarrow.parquet.write_table(table, file)
            flush(temporary)
        with self._disk_errors():
            flush(self.path)

    def part_path(self, shard: int, part: int) -> Path:
        """Return the path of a part of a shard."""
        return self.path / f"shard-{shard:05d}-part-{part:05d}.parquet"

    def merge(self, num_shards: int, strict: bool = False) -> PredictionCounts:
        """
        Write `predictions.jsonl`, `bad_videos.jsonl` and `partial_videos.jsonl` of all parts, in their order.

        The first has a line for each video that was read. The others have the name and the reason for each video that
        was not read, or only in part. Files without lines are not written.

        Args:
            num_shards (`int`):
                Number of shards of the data. Each must be complete.
            strict (`bool`, *optional*, defaults to `False`):
                Whether an unreadable video is an error.

        Raises:
            [`DataError`]: if parts are missing or cannot be read, or the files cannot be written.
        """
        counts = PredictionCounts()
        with self._disk_errors():
            parts = self._wait_for_parts(num_shards)
            paths = [self.output_dir / f"{kind}.jsonl" for kind in ("predictions", "bad_videos", "partial_videos")]
            with contextlib.ExitStack() as stack:
                temporaries = [stack.enter_context(replacing(path)) for path in paths]
                good, bad, partial = (stack.enter_context(open(path, "w", encoding="utf-8")) for path in temporaries)
                for shard in range(num_shards):
                    first_row = counts.num_videos
                    for part in sorted(parts[shard]):
                        for row in self._read_part(shard, part):
                            self._count(row, counts, strict)
                            # Row numbers of parts count from the beginning of their shard.
                            line = {"row": first_row + row["row"], "video": row["video"]}
                            if row["error"] is not None:
                                file = bad if row["predictions"] is None else partial
                                _write_line(file, {**line, "reason": row["error"]})
                            if row["predictions"] is not None:
                                line |= {"label": row["label"]} if row["label"] is not None else {}
                                _write_line(good, {**line, "predictions": row["predictions"]})
                if self.starts_anew:
                    self._replace_earlier()
            for path in paths[1:]:
                if path.stat().st_size == 0:
                    path.unlink()
        return counts

    def _replace_earlier(self):
        EarlierResults([self.output_dir], is_pending=True, of_training=False).remove()
        # The settings come first: with them, a run resumes from the parts that are there.
        for path in [self.settings_path, *self.path.glob("*.parquet")]:
            os.replace(path, self.final / path.name)
        shutil.rmtree(self.path)
        self.path = self.final

    def _count(self, row: dict, counts: PredictionCounts, strict: bool):
        counts.num_videos += 1
        counts.num_bad_videos += row["predictions"] is None
        counts.num_partial_videos += row["predictions"] is not None and row["error"] is not None
        if strict and row["predictions"] is None:
            raise DataError(
                f"{row['video']} could not be read by an earlier run: {row['error']} Leave --strict out, or give "
                "another --output_dir to read it again."
            )

    def _find_parts(self) -> dict[int, set[int]]:
        parts = {}
        for name in os.listdir(self.path):
            if match := PART_NAME.fullmatch(name):
                parts.setdefault(int(match[1]), set()).add(int(match[2]))
        return parts

    def _measure(self, parts: dict[int, set[int]]) -> Progress:
        """Return the progress that the parts show. Only the newest part of each shard is opened."""
        progress = Progress(parts)
        for shard, numbers in parts.items():
            with self._part_errors(shard, max(numbers)):
                metadata = pyarrow.parquet.read_metadata(self.part_path(shard, max(numbers)))
            if json.loads(metadata.metadata[b"is_last"]):
                progress.ends[shard] = max(numbers) + 1
            progress.num_videos += (len(numbers) - 1) * self.part_size + metadata.num_rows
        return progress

    def _wait_for_parts(self, num_shards: int) -> dict[int, set[int]]:
        """Return the parts of all shards. Wait for parts that other nodes have just written."""
        deadline = time.monotonic() + SHARED_FOLDER_DELAY
        while True:
            progress = self._measure(self._find_parts())
            missing = [shard for shard in range(num_shards) if not progress.is_complete(shard)]
            if not missing:
                return progress.parts
            if time.monotonic() > deadline:
                raise DataError(
                    f"{self.path} lacks parts of {len(missing)} of {num_shards} shards, for example of shard "
                    f"{missing[0]}. On several nodes, --output_dir must be shared. Run the same command again "
                    "to predict the missing parts."
                )
            time.sleep(1.0)

    def _read_part(self, shard: int, part: int, data: str | None = None) -> list[dict]:
        """Read the rows of a part; raise if they are not what `write_part` wrote, or are not of the given data."""
        with self._part_errors(shard, part):
            table = pyarrow.parquet.ParquetFile(self.part_path(shard, part)).read()
            rows, metadata = table.to_pylist(), table.schema.metadata
            if (int(metadata[b"shard"]), int(metadata[b"part"])) != (shard, part):
                raise ValueError("it is another part")
            if metadata[b"digest"].decode() != _digest_rows(rows):
                raise ValueError("its rows have another digest")
            if len(rows) != self.part_size and not json.loads(metadata[b"is_last"]):
                raise ValueError(f"it has {len(rows)} rows instead of {self.part_size}")
            written_for = metadata[b"data"].decode()
        if data not in (None, written_for):
            raise DataError(
                f"{self.part_path(shard, part)} was predicted from other videos: the file of shard {shard} has "
                "changed. Remove the parts of this shard, and run the same command to predict it again."
            )
        return rows

    def _write_settings(self, settings: dict):
        with replacing(self.settings_path) as temporary:
            temporary.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            flush(temporary)
        flush(self.path)

    def _remove_leftovers(self):
        """Remove unfinished files of a killed run."""
        names = rf"({PART_NAME.pattern}|settings\.json|(predictions|bad_videos|partial_videos)\.jsonl)"
        for folder in (self.path, self.output_dir):
            for path in folder.iterdir():
                if re.fullmatch(rf"\.{names}\.\d+", path.name):
                    path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _part_errors(self, shard: int, part: int):
        path = self.part_path(shard, part)
        try:
            yield
        except (pyarrow.ArrowException, KeyError, TypeError, ValueError, OSError) as error:
            if getattr(error, "errno", None) is not None:
                raise  # an error of the disk, not of the file
            raise DataError(
                f"{path} is damaged ({error}). Remove it, and run the same command to predict its videos again."
            ) from error

    @contextlib.contextmanager
    def _disk_errors(self):
        try:
            yield
        except (OSError, pyarrow.ArrowException) as error:
            raise DataError(
                f"Predictions cannot be written to {self.output_dir} ({error}). Free disk space, and run the same "
                "command to resume. Written parts are kept."
            ) from error


def _has_settings(folder: Path, settings: dict) -> bool:
    try:
        return json.loads((folder / "settings.json").read_bytes()) == settings
    except (OSError, ValueError):
        return False


def _digest_rows(rows: list[dict]) -> str:
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _write_line(file, line: dict):
    file.write(as_json_line(line))
