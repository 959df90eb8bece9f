#!/usr/bin/env python
"""Compare the frames read from video files with a full sequential decode, and write a Markdown table.

python scripts/verify_decoding.py ../shared/clips --output_file docs/decoding_table.md
"""

import argparse
import re
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import av
import numpy as np
from tqdm.auto import tqdm


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ezclip.utils.tables import as_markdown_table
from video_ezclip import (
    BACKENDS,
    VideoFramesMetadata,
    VideoReadError,
    random_frame_indices,
    read_frames,
    uniform_frame_indices,
)


SAMPLERS = {
    "test sampling of 8": partial(uniform_frame_indices, num_frames=8),
    "test sampling of 16": partial(uniform_frame_indices, num_frames=16),
    "train sampling of 8": partial(random_frame_indices, num_frames=8, seed=0),
}


@dataclass
class Comparison:
    """A video file compared with its full sequential decode."""

    file: str
    metadata: VideoFramesMetadata | None  # of a readable file
    single_frames: int  # number of frames that were read alone
    differing: list[str]  # the samplings whose frames differ
    reason: str | None  # why the file was not read
    seconds: float  # time of the first read


def decode_in_sequence(path: str | Path) -> list[np.ndarray]:
    """Decode all frames of a file by plain PyAV: RGB `(H, W, 3)`, in display order, upright."""
    with av.open(str(path), metadata_errors="ignore") as container:
        stream = container.streams.best("video")
        return [np.rot90(_to_rgb(f), f.rotation // 90) for f in container.decode(stream)]


def _to_rgb(frame: av.VideoFrame) -> np.ndarray:
    """Convert a frame by PyAV, or by FFmpeg's scaler in 4:2:2 or more than 8 bits, where PyAV's colours are wrong."""
    if re.search(r"422|1[0246](le|be)$", frame.format.name) is None:
        return frame.to_ndarray(format="rgb24")
    graph = av.filter.Graph()
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base)
    graph.link_nodes(
        source, graph.add("scale", "flags=accurate_rnd"), graph.add("format", "rgb24"), graph.add("buffersink")
    )
    graph.configure()
    graph.push(frame)
    return graph.pull().to_ndarray()


def compare(path: str | Path, name: str, stride: int = 1, backend: str = "auto", tolerance: float = 0.0) -> Comparison:
    """
    Read a file by test and train sampling and frame by frame, and compare each read with a sequential decode.

    Only frames whose number is a multiple of `stride` are read alone. `tolerance` is the mean difference, in levels
    of 255, up to which frames count as equal.
    """
    read = partial(read_frames, path, backend=backend)
    begin = time.perf_counter()
    try:
        _, metadata = read(SAMPLERS["test sampling of 8"])
    except VideoReadError as error:
        return Comparison(name, None, 0, [], error.reason, time.perf_counter() - begin)
    seconds = time.perf_counter() - begin
    truth = decode_in_sequence(path)
    differing = []
    if metadata.total_num_frames != len(truth):
        differing.append(f"{metadata.total_num_frames} frames, not {len(truth)}")
    singles = range(0, len(truth), stride)
    samplers = {**SAMPLERS, **{f"frame {i}": partial(_single, index=i) for i in singles}}
    for what, sample in samplers.items():
        frames, _ = read(sample)
        expected = [truth[index] for index in sample(len(truth))]
        if not all(_are_equal(frame, other, tolerance) for frame, other in zip(frames, expected)):
            differing.append(what)
    return Comparison(name, metadata, len(singles), differing, None, seconds)


def as_markdown(comparisons: list[Comparison]) -> str:
    """Return a table of the files that are read, and one of those that are not."""
    header = ["file", "codec", "size", "frames", "frames per second", "access", "single frames", "differences"]
    read, unread = [], []
    for c in comparisons:
        if c.metadata is None:
            unread.append([c.file, str(c.reason), f"{c.seconds:.3f}"])
            continue
        m = c.metadata
        rate = f"{m.fps:.4g}{', variable' if m.variable_rate else ''}" if m.fps else ""
        counts = [f"{m.width}x{m.height}", str(m.total_num_frames), rate, str(m.access), str(c.single_frames)]
        read.append([c.file, str(m.codec), *counts, "; ".join(c.differing) or "none"])
    tables = as_markdown_table(header, read), as_markdown_table(["file", "`VideoReadError`", "seconds"], unread)
    return "\n\n".join(tables) + "\n"


def main(argv: list[str] | None = None):
    """Compare all files of a folder, and exit with status 1 if frames differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of video files, with its subfolders")
    parser.add_argument("--output_file", type=Path, help="Markdown file to write (default: print it)")
    parser.add_argument("--backend", default="auto", choices=BACKENDS, help="decoder of the files (%(default)s)")
    parser.add_argument("--stride", type=int, default=1, help="read every Nth frame alone (%(default)s)")
    parser.add_argument("--tolerance", type=float, default=0.0, help="largest mean difference in levels (%(default)s)")
    args = parser.parse_args(argv)
    if args.stride < 1:
        parser.error(f"--stride must be at least 1, got {args.stride}.")
    # Include files that are not videos: they must give a VideoReadError.
    files = sorted(path for path in args.folder.rglob("*") if path.is_file() and path.suffix not in (".json", ".jpg"))
    if not files:
        parser.error(f"{args.folder} has no files.")
    comparisons = [
        compare(path, str(path.relative_to(args.folder)), args.stride, args.backend, args.tolerance)
        for path in tqdm(files, desc="Comparing", unit="file")
    ]
    table = as_markdown(comparisons)
    if args.output_file is None:
        print(table)
    else:
        args.output_file.write_text(table, encoding="utf-8")
    if wrong := [c.file for c in comparisons if c.differing]:
        sys.exit(f"verify_decoding.py: frames differ in {len(wrong)} files: {wrong}")


def _single(total_frames: int, index: int) -> list[int]:
    return [index]


def _are_equal(frame: np.ndarray, other: np.ndarray, tolerance: float) -> bool:
    return frame.shape == other.shape and np.abs(frame.astype(np.int16) - other).mean() <= tolerance


if __name__ == "__main__":
    main()
