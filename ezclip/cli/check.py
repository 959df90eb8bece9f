"""Check every video of a folder, a list or a dataset, and write a table (CSV) with a row for each.

    ezclip check --video_dir videos
    ezclip check --video_list test.txt --video_root UCF-101 --output_file ucf.csv
    ezclip check --dataset_name someone/videos --split_name test

A video is readable if all of it can be decoded, not only the sampled frames. It is "partly" readable if its undamaged
part can be decoded (`ezclip run --allow_partial`). The same command continues a stopped check, and checks new and
changed videos again. To check all again, give another --output_file. The exit status is 0 if all videos are readable,
1 if any is not, 2 if there is nothing to check, and 130 if the command was stopped.
"""

import argparse
import contextlib
import csv
import io
import os
import queue
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from operator import getitem
from threading import TIMEOUT_MAX
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.compute
from tqdm.auto import tqdm

from ezclip.cli.limits import add_limits, read_limits
from ezclip.cli.parser import Parser
from ezclip.data.isolated_reader import IsolatedReader
from ezclip.data.sources import VideoSplit, load_folder, load_hub_dataset, load_list
from ezclip.errors import DataError
from ezclip.utils.messages import say
from ezclip.utils.tables import as_csv_cell, from_csv_cell
from video_ezclip import (
    BACKENDS,
    VideoFramesMetadata,
    VideoReadError,
    describe_video,
    is_url,
    local_path,
    require_backend,
    uniform_frame_indices,
)


COLUMNS = (
    "file",  # path, URL, or the name of a row that holds bytes
    "codec",
    "width",
    "height",
    "fps",
    "frames",
    "duration",  # seconds
    "variable",  # whether frames have different durations
    "backend",  # the decoder
    "access",  # "index" or "sequence"
    "seconds",  # time to read the frames of test sampling
    "slow",
    "readable",  # "yes", "partly" or "no"
    "reason",  # why it is not readable
    # These two show whether a file has changed. They hold no line break, so a line that ends with one is whole.
    "bytes",
    "modified",  # nanoseconds since 1970
)
SAMPLE = partial(uniform_frame_indices, num_frames=8)
IMAGES_PER_READ = 64
MAX_SHOWN = 5

Row = dict[str, str]
open_table = partial(open, encoding="utf-8", errors="surrogateescape", newline="")  # file names need not be UTF-8


@dataclass
class Source:
    """A video to check."""

    number: int  # its row of the dataset
    num_bytes: int | None  # its size, if the row holds the video itself and not a path

    def state(self, file: str) -> dict[str, str]:
        """Return `bytes` and `modified`, which change with the video, as far as they are known without fetching it."""
        if self.num_bytes is not None:
            return {"bytes": str(self.num_bytes), "modified": ""}
        path = local_path(file)
        try:
            stats = [os.stat(path)]
            times = [stats[0].st_mtime_ns]
            if os.path.isdir(path):  # frames
                stats = [entry.stat() for entry in os.scandir(path)]
                times += [stat.st_mtime_ns for stat in stats]
        except (OSError, ValueError):  # a URL, a missing file, or an invalid name
            return {"bytes": "", "modified": ""}
        return {"bytes": str(sum(stat.st_size for stat in stats)), "modified": str(max(times))}


def list_sources(videos: datasets.Dataset) -> dict[str, Source]:
    """Return the videos by their names in the table, each file once, without reading any."""
    column = videos.data.column("video")
    is_text = pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type)
    files = list(videos["video" if is_text else "name"])
    if is_text:  # an address may hold a password
        files = [describe_video(file) if is_url(file) else file for file in files]
    if pyarrow.types.is_struct(column.type):
        column = pyarrow.compute.struct_field(column, "bytes")
    is_content = pyarrow.types.is_binary(column.type) or pyarrow.types.is_large_binary(column.type)
    sizes = pyarrow.compute.binary_length(column).to_pylist() if is_content else [None] * len(files)
    counts = Counter(file for file, size in zip(files, sizes) if size is not None)
    sources = {}
    for number, (file, size) in enumerate(zip(files, sizes)):
        is_one_of_several = counts[file] > 1 if size is not None else "***" in file and file in sources
        if is_one_of_several:  # files of several archives, or addresses that differ in what is masked
            file = f"{file} (row {number})"
        sources.setdefault(file, Source(number, size))
    return sources


# ---- One video ----


def check_video(read: IsolatedReader, video) -> dict[str, object]:
    """Return the known columns from `codec` to `reason` of a video, except `slow`."""
    with contextlib.suppress(VideoReadError):
        read(b"")  # do not time the start of its process
    metadata = seconds = problem = None
    started = time.perf_counter()
    try:
        frames, metadata = read(video, SAMPLE)
        seconds = time.perf_counter() - started
        started = time.perf_counter()
        problem = check_whole(read, video, frames, metadata)
        readable = "no" if problem else "yes"
    except VideoReadError as error:
        problem, readable = f"{error.reason} {error.remedy}", "no"
        # Do not retry a missing video or one that takes too long.
        if error.backend is not None and time.perf_counter() - started < read.timeout:
            with contextlib.suppress(Exception):  # the reason is already known
                _, metadata = read(video, SAMPLE, in_sequence=True, allow_partial=True)
                problem, readable = metadata.problem or problem, "partly"
    except Exception as error:  # a bug must not cost the other videos
        problem, readable = f"fails with {type(error).__name__}: {error}. Please report it.", "no"
    row = {"readable": readable, "reason": problem, "seconds": seconds and round(seconds, 3)}
    return row if metadata is None else {**row, **describe(metadata)}


def check_whole(read: IsolatedReader, video, frames: np.ndarray, metadata: VideoFramesMetadata) -> str | None:
    """Decode all of a video, or raise a [`VideoReadError`]. Return the problem if the sampled `frames` differ."""
    total = metadata.total_num_frames
    if metadata.codec is None:  # a folder of frames; frame 0 is in each read because all must have its size
        for first in range(0, total, IMAGES_PER_READ):
            indices = [0, *range(first, min(first + IMAGES_PER_READ, total))]
            read(video, partial(getitem, {total: indices}))
    elif (metadata.video_backend, metadata.access) != ("pyav", "sequence"):
        expected, whole = read(video, SAMPLE, in_sequence=True)
        if whole.total_num_frames != total or not np.array_equal(frames, expected):
            return "frames by index differ from those in sequence. Please report it."
    return None


def describe(metadata: VideoFramesMetadata) -> dict[str, object]:
    """Return the columns from `codec` to `access`."""
    return {
        "codec": metadata.codec,
        "width": metadata.width,
        "height": metadata.height,
        "fps": metadata.fps and round(metadata.fps, 3),
        "frames": metadata.total_num_frames,
        "duration": metadata.duration and round(metadata.duration, 3),
        "variable": metadata.variable_rate if metadata.variable_rate is None else _yes_or_no(metadata.variable_rate),
        "backend": metadata.video_backend,
        "access": metadata.access,
    }


def _yes_or_no(value: bool) -> str:
    return "yes" if value else "no"


# ---- All of them ----


def check_videos(
    split: VideoSplit, sources: dict[str, Source], args: argparse.Namespace, progress: Callable[[str, Row], None]
):
    """Check videos, `args.num_workers` at a time, and call `progress` with the file and row of each."""
    options = {"backend": args.video_backend, "limits": read_limits(args)}
    readers = [IsolatedReader(args.video_timeout, **options) for _ in range(args.num_workers)]
    idle, results, is_stopped = queue.SimpleQueue(), queue.SimpleQueue(), threading.Event()
    for reader in readers:
        idle.put(reader)

    def check(file: str, source: Source, video):
        read = idle.get()
        try:
            if not is_stopped.is_set():
                row = {"file": file, **source.state(file), **check_video(read, video)}
                results.put((file, as_row(row, args.slow_seconds)))
        except Exception as error:  # a bug must end the run, which otherwise waits for this row for ever
            results.put(error)
        finally:
            idle.put(read)

    def take_one():
        if isinstance(result := results.get(), Exception):
            raise result
        progress(*result)

    pool, pending = ThreadPoolExecutor(args.num_workers), 0
    try:
        for file, source in sources.items():
            # Keep only a few videos of a dataset in memory.
            if pending == 2 * args.num_workers:
                take_one()
                pending -= 1
            pool.submit(check, file, source, split.videos[source.number]["video"])
            pending += 1
        for _ in range(pending):
            take_one()
    finally:
        # Abort the running reads; a thread may meanwhile begin another read of its video. (Do not wait for futures:
        # Ctrl-C can leave their locks taken.)
        is_stopped.set()
        pool.shutdown(wait=False, cancel_futures=True)
        while idle.qsize() < len(readers):
            for reader in readers:
                reader.close()
            time.sleep(0.05)
        for reader in readers:
            reader.close()


# ---- The table ----


def as_row(values: dict[str, object], slow_seconds: float) -> Row:
    """Return a row as text, with `slow` filled in."""
    row = {column: "" if values.get(column) is None else str(values[column]) for column in COLUMNS}
    return {**row, "slow": _yes_or_no(float(row["seconds"]) > slow_seconds) if row["seconds"] else ""}


def read_table(path: str) -> dict[str, Row]:
    """Read the complete rows of an earlier run by file; none if there is no table."""
    if not os.path.exists(path):
        return {}
    with naming_output_file(path, "read"), open_table(path, "r") as table:
        text = table.read()
    try:
        lines = list(csv.reader(io.StringIO(text, newline="")))
    except csv.Error:
        lines = [[]]
    if lines and lines[0] != list(COLUMNS):
        raise DataError(f"--output_file {path} is not a table of `ezclip check`. Give another file.")
    if not text.endswith("\n"):
        lines = lines[:-1]
    rows = [list(map(from_csv_cell, line)) for line in lines[1:] if len(line) == len(COLUMNS)]
    return {row[0]: dict(zip(COLUMNS, row)) for row in rows}


def _as_cells(row: Row) -> Row:
    return {column: as_csv_cell(value) for column, value in row.items()}


def write_table(path: str, rows: Iterable[Row]):
    """Write a table and replace an earlier one at once."""
    unfinished = f"{path}.unfinished"
    with naming_output_file(path):
        with open_table(unfinished, "w") as table:
            writer: Any = csv.DictWriter(table, COLUMNS)
            writer.writeheader()
            writer.writerows(map(_as_cells, rows))
        os.replace(unfinished, path)


@contextlib.contextmanager
def naming_output_file(path: str, action: str = "written"):
    """Turn an `OSError` into a [`DataError`] that names `--output_file`."""
    try:
        yield
    except OSError as error:
        raise DataError(f"--output_file {path} cannot be {action} ({error.strerror}). Give another file.") from error


def is_unchanged(row: Row, state: dict[str, str]) -> bool:
    """Return whether a row is still valid. Failures that show no change (URLs) are tried again."""
    is_same = all(row[column] == value for column, value in state.items())
    return is_same and (row["bytes"] != "" or row["readable"] == "yes")


def summarise(rows: list[Row], args: argparse.Namespace) -> str:
    """Return the counts and the first unreadable videos as text."""
    readable, access = (Counter(row[column] for row in rows) for column in ("readable", "access"))
    counts = (
        f"{readable['yes']} of {len(rows)} videos are readable, {readable['partly']} partly, {readable['no']} not."
    )
    bad = [row for row in rows if row["readable"] != "yes"]
    lines = [counts, *(f"  {row['file']!r}: {row['reason']}" for row in bad[:MAX_SHOWN])]
    if len(bad) > MAX_SHOWN:
        lines.append(f"  and {len(bad) - MAX_SHOWN} more")
    slow, variable = (sum(row[column] == "yes" for row in rows) for column in ("slow", "variable"))
    lines.append(
        f"{access['index']} are read by index, {access['sequence']} in sequence; {slow} are slow (more than "
        f"{args.slow_seconds:g} s for {SAMPLE.keywords['num_frames']} frames), {variable} have a variable rate."
    )
    return "\n".join([*lines, f"Table: {args.output_file}"])


# ---- The command ----


def main(argv: list[str] | None = None) -> int:
    """Run `ezclip check` and return its exit status."""
    parser = make_parser()
    args = parser.parse_args(argv)
    check_options(parser, args)
    try:
        return run(args)
    except (DataError, ImportError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    except KeyboardInterrupt:
        say(f"\n{parser.prog}: stopped. Run the same command to continue {args.output_file}.", file=sys.stderr)
        return 130


def make_parser() -> Parser:
    """Return the parser of the options."""
    parser = Parser(prog="ezclip check", description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--video_dir", help="folder of class folders, or of videos")
    source.add_argument("--video_list", help="published list with lines `path num_frames id`, or the path alone")
    source.add_argument("--dataset_name", help="dataset with a column of videos: a Hub name or a folder of its files")
    parser.add_argument("--video_root", help="folder that replaces the root of the list")
    parser.add_argument("--dataset_config_name", help="configuration of the dataset")
    parser.add_argument("--split_name", help="split of the dataset (default: the first of validation, test and train)")
    parser.add_argument("--video_column_name", help="column of videos of the dataset")
    parser.add_argument("--output_file", default="videos.csv", help="table to write or continue (%(default)s)")
    parser.add_argument(
        "--num_workers", type=int, default=os.cpu_count() or 1, help="videos checked at a time (default: one per core)"
    )
    parser.add_argument(
        "--video_timeout", type=float, default=60.0, help="time limit for one read, in seconds (%(default)g)"
    )
    parser.add_argument("--video_backend", default="auto", choices=BACKENDS, help="decoder (%(default)s)")
    parser.add_argument(
        "--slow_seconds", type=float, default=1.0, help="a video is slow if 8 frames take longer (%(default)g)"
    )
    add_limits(parser)
    return parser


def check_options(parser: Parser, args: argparse.Namespace):
    """Exit with a message if a number is out of range, or an option does not fit the source."""
    if args.num_workers < 1:
        parser.error(f"--num_workers must be at least 1, got {args.num_workers}.")
    for name in ("video_timeout", "slow_seconds"):
        if not 0 < getattr(args, name) <= TIMEOUT_MAX:
            parser.error(f"--{name} must be a number of seconds above 0, got {getattr(args, name)}.")
    needed = {"video_root": "video_list"}
    needed |= dict.fromkeys(("dataset_config_name", "split_name", "video_column_name"), "dataset_name")
    for name, source in needed.items():
        if getattr(args, name) and not getattr(args, source):
            parser.error(f"--{name} needs --{source}.")


def run(args: argparse.Namespace) -> int:
    """Check the videos, write the table, and return 0 if all are readable, else 1."""
    require_backend(args.video_backend)
    split = load_source(args)
    sources = list_sources(split.videos)

    earlier = read_table(args.output_file)
    if earlier and not earlier.keys() & sources.keys():
        first = next(iter(earlier))
        raise DataError(f"--output_file {args.output_file} is of other videos, such as {first!r}. Give another file.")
    rows = {
        file: as_row(row, args.slow_seconds)
        for file, row in earlier.items()
        if file in sources and is_unchanged(row, sources[file].state(file))
    }
    write_table(args.output_file, rows.values())

    with (
        open_table(args.output_file, "a") as table,
        tqdm(desc="Checking", unit="video", initial=len(rows), total=len(sources)) as bar,
    ):
        writer: Any = csv.DictWriter(table, COLUMNS)
        readable = Counter(row["readable"] for row in rows.values())

        def add(file: str, row: Row):
            rows[file] = row
            with naming_output_file(args.output_file):
                writer.writerow(_as_cells(row))
                table.flush()
            readable[row["readable"]] += 1
            bar.set_postfix({"partly readable": readable["partly"], "not": readable["no"]})
            bar.update()

        check_videos(split, {file: source for file, source in sources.items() if file not in rows}, args, add)

    rows = [rows[file] for file in sources]
    write_table(args.output_file, rows)
    say(summarise(rows, args))
    return int(any(row["readable"] != "yes" for row in rows))


def load_source(args: argparse.Namespace) -> VideoSplit:
    """Load the videos of the source option."""
    if args.video_dir:
        split = load_folder(args.video_dir)
    elif args.video_list:
        split = load_list(args.video_list, video_root=args.video_root)
    else:
        split = load_hub_dataset(
            args.dataset_name, args.dataset_config_name, args.split_name, args.video_column_name, label_column=None
        )
    if len(split) == 0:
        raise DataError(f"{args.dataset_name} has no videos.")
    return split
