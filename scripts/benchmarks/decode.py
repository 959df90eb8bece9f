"""`decode`: from a video file to frames, and to the pixels that a model takes, on one core."""

import argparse
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import av
import numpy as np
import transformers
from transformers.video_utils import load_video

from ezclip.data.sources import load_folder
from ezclip.utils.tables import as_markdown_table
from ezclip.utils.timing import compare, describe_machine, machine_as_text, measure, one_core, reason_of, summarize
from processing_ezclip import EZClipProcessor
from video_ezclip import FrameSampler, VideoFramesMetadata, VideoReadError, read_frames


# Mean difference in levels up to which two frames are the same but for the rounding of their colours.
SAME_FRAME = 2.0


def find_videos(paths: Iterable[str]) -> list[str]:
    """
    Video files, and those of folders.

    Raises:
        [`VideoReadError`]: if there is no such file. [`DataError`]: if a folder holds none.
    """
    found = []
    for path in paths:
        if os.path.isdir(path):
            found += load_folder(path).videos["video"][:]
        elif os.path.isfile(path):
            found.append(path)
        else:
            raise VideoReadError(path, "is not a file.", "Give the paths of video files, or of their folder.")
    return found


@dataclass
class Reader:
    """
    What reads a video file.

    Args:
        run (`Callable[[], object]`):
            Reads it; this is timed.
        result (`str`):
            What it makes of it: `"pixels"` or `"frames"`.
        frames (`Callable[[], np.ndarray]`, *optional*):
            Its frames, to be compared with ours; `None` for our own.
        baseline (`str`, *optional*):
            Name of the reader that it is compared with.
    """

    run: Callable[[], object]
    result: str
    frames: Callable[[], np.ndarray] | None = None
    baseline: str | None = None


def get_readers(path: str, indices: list[int], processor: EZClipProcessor, image_processor) -> dict[str, Reader]:
    """Return the readers by name, each after the one it is compared with."""
    sample = processor.get_sampler()
    load = partial(load_with_transformers, path, sample)
    in_sequence, by_index = partial(read_in_sequence, path, indices), partial(read_with_decord, path, sample)
    return {
        "ezclip": Reader(lambda: processor(videos=path, return_tensors="pt"), "pixels"),
        "load_video + CLIPImageProcessor": Reader(
            lambda: image_processor(list(load()), return_tensors="pt"), "pixels", load, "ezclip"
        ),
        "ezclip frames": Reader(lambda: read_frames(path, sample), "frames"),
        "PyAV in sequence": Reader(in_sequence, "frames", in_sequence, "ezclip frames"),
        "decord by index": Reader(by_index, "frames", by_index, "ezclip frames"),
    }


def load_with_transformers(path: str, sample: FrameSampler) -> np.ndarray:
    """Read frames with `transformers.video_utils.load_video`."""
    frames, _ = load_video(path, backend="pyav", sample_indices_fn=lambda metadata: sample(metadata.total_num_frames))
    return frames


def read_in_sequence(path: str, indices: list[int]) -> np.ndarray:
    """Decode all frames up to the last wanted one, in order. The indices are given, not counted."""
    images = {}
    with av.open(path, metadata_errors="ignore") as container:
        stream = container.streams.best("video")
        stream.codec_context.thread_count = 1
        for number, frame in enumerate(container.decode(stream)):
            if number in indices:
                images[number] = frame.to_ndarray(format="rgb24")
            if number == max(indices):
                break
    return np.stack([images[index] for index in indices])


def read_with_decord(path: str, sample: FrameSampler) -> np.ndarray:
    """Read frames with decord."""
    import decord

    reader = decord.VideoReader(path, num_threads=1)
    return reader.get_batch(sample(len(reader))).asnumpy()


def greatest_difference(frames: np.ndarray, ours: np.ndarray) -> float:
    """Mean difference in levels of the frame that differs most; infinite where number or size of frames differ."""
    if frames.shape != ours.shape:
        return float("inf")
    return max(float(np.abs(a.astype(np.int16) - b).mean()) for a, b in zip(frames, ours))


def measure_video(path: str, processor: EZClipProcessor, image_processor, rounds: int) -> dict:
    """
    Time all readers on one file.

    Returns:
        `dict`: facts of the file, and by name what each reader took, or in `failed` why it cannot read it.

    Raises:
        [`VideoReadError`]: if ezclip cannot read the file.
    """
    frames, metadata = read_frames(path, processor.get_sampler())
    readers, results = get_readers(path, metadata.frames_indices, processor, image_processor), {}
    for name, reader in readers.items():
        results[name] = {"result": reader.result}
        if reader.frames is not None:
            try:
                same = greatest_difference(reader.frames(), frames) < SAME_FRAME
                results[name]["same_frames"] = same
            except Exception as error:  # whatever a rival fails with is its result
                results[name]["failed"] = reason_of(error)
    running = {name: readers[name].run for name, result in results.items() if "failed" not in result}
    timings = measure(running, rounds)
    for name, timing in timings.items():
        for clock, values in (("cpu_ms", timing.cpu), ("wall_ms", timing.wall)):
            results[name][clock] = summarize([1000 * seconds for seconds in values])
        results[name]["clips_per_second_per_core"] = 1000 / results[name]["cpu_ms"]["median"]
        if (baseline := readers[name].baseline) is not None:
            results[name]["against"] = {"reader": baseline, **compare(timing.cpu, timings[baseline].cpu)}
    return {"video": path, "bytes": os.path.getsize(path), **facts(metadata), "readers": results}


def facts(metadata: VideoFramesMetadata) -> dict:
    """Return size, length and codec of a video."""
    names = ("width", "height", "codec", "total_num_frames", "duration", "access")
    return {name: getattr(metadata, name) for name in names}


def run(args: argparse.Namespace) -> dict:
    """Time all readers on all files."""
    num_frames = args.num_frames or 8
    processor, image_processor = EZClipProcessor(num_frames=num_frames), transformers.CLIPImageProcessor()
    paths = find_videos(args.videos)
    machine = {**describe_machine(), "threads": 1}
    with one_core():
        videos = [measure_video(path, processor, image_processor, args.rounds) for path in paths]
    return {
        "machine": machine,
        "num_frames": num_frames,
        "batch_size": 1,
        "dtype": "uint8 to float32",
        "rounds": args.rounds,
        "image_processor": type(image_processor).__name__,
        "videos": videos,
    }


def as_text(result: dict) -> str:
    """Return the tables of a result as text."""
    header = ["video", "reader", "CPU ms (quartiles)", "wall ms", "clips/s per core", "times ours (rounds)", "frames"]
    rows = []
    for video in result["videos"]:
        title = (
            f"{Path(video['video']).name}: {video['width']} × {video['height']}, {video['codec']}, "
            f"{video['total_num_frames']} frames, by {video['access']}"
        )
        for name, reader in video["readers"].items():
            rows.append([title, f"{name} ({reader['result']})", *_cells(reader)])
            title = ""
    return (
        f"{machine_as_text(result['machine'])}\n\nFile to {result['num_frames']} frames, and to pixels "
        f"({result['image_processor']}), on one core; median of {result['rounds']} rounds.\n\n"
        f"{as_markdown_table(header, rows)}"
    )


def _cells(reader: dict) -> list[str]:
    if "failed" in reader:
        return ["-", "-", "-", "-", f"failed: {reader['failed']}"]
    cpu, against = reader["cpu_ms"], reader.get("against")
    return [
        f"{cpu['median']:.1f} ({cpu['quartiles'][0]:.1f}-{cpu['quartiles'][1]:.1f})",
        f"{reader['wall_ms']['median']:.1f}",
        f"{reader['clips_per_second_per_core']:.1f}",
        f"{against['ratio']:.2f} ({against['range'][0]:.2f}-{against['range'][1]:.2f})" if against else "1",
        {None: "reference", True: "same", False: "wrong frames"}[reader.get("same_frames")],
    ]
