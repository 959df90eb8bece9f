#!/usr/bin/env python
"""Compare the frames that are read from video files with a full sequential decode, and write a table of it.

python scripts/verify_decoding.py ../shared/clips --output_file docs/decoding_table.md
"""

import argparse
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import av
import numpy as np
from tqdm.auto import tqdm


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

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
    """
    A video file beside its full sequential decode.

    Args:
        file (`str`):
            Its name.
        metadata ([`VideoFramesMetadata`], *optional*):
            What is known of it, where it was read.
        single_frames (`int`):
            How many frames were asked for alone.
        differing (`list[str]`):
            What differed, in words.
        reason (`str`, *optional*):
            Why it was not read.
        seconds (`float`):
            How long the first read took.
    """

    file: str
    metadata: VideoFramesMetadata | None
    single_frames: int
    differing: list[str]
    reason: str | None
    seconds: float


def decode_in_sequence(path: str | Path) -> list[np.ndarray]:
    """All frames of a file by PyAV alone: RGB `(H, W, 3)`, in display order, upright."""
    with av.open(str(path), metadata_errors="ignore") as container:
        stream = container.streams.best("video")
        return [np.rot90(f.to_ndarray(format="rgb24"), f.rotation // 90) for f in container.decode(stream)]


def compare(path: str | Path, name: str, stride: int = 1, backend: str = "auto", tolerance: float = 0.0) -> Comparison:
    """
    Read a file by test and train sampling and frame by frame, each time anew, and compare.

    Args:
        path (`str` or `Path`):
            The file.
        name (`str`):
            What to call it.
        stride (`int`, *optional*, defaults to 1):
            Ask alone for each frame whose number is a multiple of this.
        backend (`str`, *optional*, defaults to `"auto"`):
            What reads it.
        tolerance (`float`, *optional*, defaults to 0):
            Mean difference of a frame, in levels, that is only another rounding of colours.
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
    """Two tables: files that are read, and files that are not."""
    lines = [
        "| file | codec | size | frames | frames per second | access | asked for alone | differing frames |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for c in comparisons:
        if c.metadata is not None:
            m = c.metadata
            rate = f"{m.fps:.4g}{', variable' if m.variable_rate else ''}" if m.fps else ""
            lines.append(
                f"| `{c.file}` | {m.codec} | {m.width}x{m.height} | {m.total_num_frames} | {rate} | {m.access} | "
                f"{c.single_frames} | {'; '.join(c.differing) or 'none'} |"
            )
    lines += ["", "| file | `VideoReadError` | seconds |", "| --- | --- | --- |"]
    lines += [f"| `{c.file}` | {c.reason} | {c.seconds:.3f} |" for c in comparisons if c.metadata is None]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="Folder of video files, at any depth.")
    parser.add_argument("--output_file", type=Path, help="Markdown file to write; by default it is printed.")
    parser.add_argument("--backend", default="auto", choices=BACKENDS, help="What reads the files.")
    parser.add_argument("--stride", type=int, default=1, help="Ask alone for each so-manieth frame.")
    parser.add_argument(
        "--tolerance", type=float, default=0.0, help="Mean difference of a frame that is only rounding, in levels."
    )
    args = parser.parse_args(argv)
    if args.stride < 1:
        parser.error(f"--stride must be at least 1, got {args.stride}.")
    # Files that only pretend to be videos are compared too.
    files = sorted(path for path in args.folder.rglob("*") if path.is_file() and path.suffix not in (".json", ".jpg"))
    if not files:
        parser.error(f"{args.folder} holds no files.")
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
