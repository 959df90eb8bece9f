"""The folder that predictions are written to part by part, so that a run that is cut off goes on where it was.

`predictions/shard-00003-part-00001.parquet` holds the second part of what the fourth file of the data gave. A part is
written under another name, flushed to the disk and renamed: what has its name is whole. The last part of a shard says
so in its metadata, so that the parts alone tell what is done.
"""

import contextlib
import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow
import pyarrow.parquet

from ezclip.errors import DataError
from ezclip.utils.files import flush, replacing


SCHEMA = pyarrow.schema(
    [
        ("video", pyarrow.string()),
        ("label", pyarrow.string()),
        ("predictions", pyarrow.list_(pyarrow.struct([("label", pyarrow.string()), ("score", pyarrow.float32())]))),
        ("error", pyarrow.string()),
    ]
)
PART_NAME = re.compile(r"shard-(\d{5,})-part-(\d{5,})\.parquet")
# Seconds for which one node may not see yet what another has written: network file systems keep lists of folders.
SHARED_FOLDER_DELAY = 90.0


@dataclass
class Progress:
    """
    What of the data is predicted.

    Args:
        parts (`dict[int, set[int]]`):
            Numbers of the parts of each shard that are written.
        ends (`dict[int, int]`):
            Number of parts of each shard whose last part is written.
        num_videos (`int`):
            Videos in these parts.
    """

    parts: dict[int, set[int]] = field(default_factory=dict)
    ends: dict[int, int] = field(default_factory=dict)
    num_videos: int = 0

    def is_complete(self, shard: int) -> bool:
        """Return whether all parts of a shard are written."""
        return len(self.parts.get(shard, ())) == self.ends.get(shard)


@dataclass
class PredictionCounts:
    """
    What became of the videos.

    Args:
        num_videos (`int`):
            All of them, each counted once.
        num_bad_videos (`int`):
            Those that could not be read.
        num_partial_videos (`int`):
            Those that were read in part.
    """

    num_videos: int = 0
    num_bad_videos: int = 0
    num_partial_videos: int = 0


class PredictionFolder:
    """
    The folder `predictions` of an output folder.

    Its Parquet files have a row per video: `video` (its name), `label` (its class, null where unknown), `predictions`
    (labels and scores, best first; null for a video that could not be read) and `error` (why it could not be read, or
    only in part; null for a sound one).

    Args:
        output_dir (`str` or `Path`):
            The output folder.
        part_size (`int`):
            Videos of a part, but for the last of a shard, which may have fewer.
    """

    def __init__(self, output_dir: str | Path, part_size: int):
        self.output_dir, self.part_size = Path(output_dir), part_size
        self.path = self.output_dir / "predictions"
        self.settings_path = self.path / "settings.json"

    def begin(self, settings: dict) -> Progress:
        """
        Make the folder ready to go on: for one process, before any other writes.

        Args:
            settings (`dict`):
                What decides the rows and their order, of types that JSON has. It is kept in `settings.json`.

        Raises:
            [`DataError`]: if what stands there was predicted with other settings.
        """
        settings = json.loads(json.dumps(settings))  # as it is read back
        with self._disk_errors():
            self.path.mkdir(parents=True, exist_ok=True)
            self._remove_leftovers()
            parts = self._find_parts()
            if self.settings_path.exists():
                self._check_settings(settings)
            elif parts:
                raise DataError(
                    f"{self.path} holds predictions without the settings.json that says of what. Give another "
                    "--output_dir, or remove that folder."
                )
            else:
                self._write_settings(settings)
            return self._measure(parts)

    def write_part(self, shard: int, part: int, rows: list[dict], is_last: bool):
        """
        Write a part, whole and on the disk.

        Args:
            shard (`int`), part (`int`):
                Its numbers.
            rows (`list[dict]`):
                Its rows.
            is_last (`bool`):
                Whether the shard ends with it.

        Raises:
            [`DataError`]: if it cannot be written.
        """
        metadata = {"is_last": json.dumps(is_last)}
        table = pyarrow.Table.from_pylist(rows, SCHEMA.with_metadata(metadata))
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

        The first has a line for each video that was read. The others have its name and the reason for each that was
        not, or only in part, and are not there where there is none.

        Args:
            num_shards (`int`):
                Number of shards of the data. All must be complete.
            strict (`bool`, *optional*, defaults to `False`):
                Whether a video that could not be read is an error.

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
                    for part in sorted(parts[shard]):
                        for row in self._read_part(shard, part):
                            self._count(row, counts, strict)
                            if row["error"] is not None:
                                line = {"video": row["video"], "reason": row["error"]}
                                _write_line(bad if row["predictions"] is None else partial, line)
                            if row["predictions"] is not None:
                                line = {"video": row["video"]}
                                line |= {"label": row["label"]} if row["label"] is not None else {}
                                _write_line(good, {**line, "predictions": row["predictions"]})
            for path in paths[1:]:
                if path.stat().st_size == 0:
                    path.unlink()
        return counts

    def _count(self, row: dict, counts: PredictionCounts, strict: bool):
        counts.num_videos += 1
        counts.num_bad_videos += row["predictions"] is None
        counts.num_partial_videos += row["predictions"] is not None and row["error"] is not None
        if strict and row["predictions"] is None:
            raise DataError(
                f"{row['video']} could not be read by an earlier run: {row['error']} Leave --strict out, or give "
                f"another --output_dir to read it again."
            )

    def _find_parts(self) -> dict[int, set[int]]:
        parts = {}
        for name in os.listdir(self.path):
            if match := PART_NAME.fullmatch(name):
                parts.setdefault(int(match[1]), set()).add(int(match[2]))
        return parts

    def _measure(self, parts: dict[int, set[int]]) -> Progress:
        """Return the progress that the parts show. Only the newest part of a shard is opened."""
        progress = Progress(parts)
        for shard, numbers in parts.items():
            with self._part_errors(shard, max(numbers)):
                metadata = pyarrow.parquet.read_metadata(self.part_path(shard, max(numbers)))
            if json.loads(metadata.metadata[b"is_last"]):
                progress.ends[shard] = max(numbers) + 1
            progress.num_videos += (len(numbers) - 1) * self.part_size + metadata.num_rows
        return progress

    def _wait_for_parts(self, num_shards: int) -> dict[int, set[int]]:
        """Parts of all shards; those that other nodes have just written may take a while to be seen."""
        deadline = time.monotonic() + SHARED_FOLDER_DELAY
        while True:
            progress = self._measure(self._find_parts())
            missing = [shard for shard in range(num_shards) if not progress.is_complete(shard)]
            if not missing:
                return progress.parts
            if time.monotonic() > deadline:
                raise DataError(
                    f"{self.path} lacks parts of {len(missing)} of {num_shards} shards, number {missing[0]} for one. "
                    "If this runs on several nodes, --output_dir must be a folder that they share. The same command "
                    "predicts what is missing."
                )
            time.sleep(1.0)

    def _read_part(self, shard: int, part: int) -> Iterator[dict]:
        with self._part_errors(shard, part):
            yield from pyarrow.parquet.ParquetFile(self.part_path(shard, part)).read().to_pylist()

    def _write_settings(self, settings: dict):
        with replacing(self.settings_path) as temporary:
            temporary.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            flush(temporary)
        flush(self.path)

    def _check_settings(self, settings: dict):
        try:
            saved = json.loads(self.settings_path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"{self.settings_path} is damaged ({error}). Give another --output_dir.") from error
        if difference := _find_difference(saved, settings):
            name, before, now = difference
            raise DataError(
                f"{self.path} holds predictions made with {name} {before}, now it is {now}. Give what it was to go "
                "on with them; or another --output_dir, or remove that folder, to begin anew."
            )

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
        except (pyarrow.ArrowException, KeyError, OSError) as error:
            if getattr(error, "errno", None) is not None:
                raise  # the disk's, not the file's
            raise DataError(
                f"{path} is damaged ({error}). Remove it: the same command predicts its videos again."
            ) from error

    @contextlib.contextmanager
    def _disk_errors(self):
        try:
            yield
        except (OSError, pyarrow.ArrowException) as error:
            raise DataError(
                f"Predictions cannot be written to {self.output_dir} ({error}). What stands in {self.path} is whole: "
                "make room, and the same command goes on from there."
            ) from error


def _find_difference(before, now, name: str = "") -> tuple[str, str, str] | None:
    """Return the name of the first difference of two values, and a short form of both."""
    if before == now:
        return None
    if isinstance(before, dict) and isinstance(now, dict):
        pairs = [(f"{name}.{key}".lstrip("."), before.get(key), now.get(key)) for key in {**before, **now}]
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = [(f"{name}[{index}]", *values) for index, values in enumerate(zip(before, now))]
    else:
        texts = (json.dumps(value, ensure_ascii=False) for value in (before, now))
        return name, *(text if len(text) <= 120 else f"{text[:120]}…" for text in texts)
    return next(filter(None, (_find_difference(*values, place) for place, *values in pairs)), None)


def _write_line(file, line: dict):
    file.write(json.dumps(line, ensure_ascii=False) + "\n")
