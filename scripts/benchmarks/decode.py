"""`decode`: time reading a video file to frames, and to the pixels of a model, on one core."""

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
from video_ezclip import FrameSampler, VideoReadError, read_frames


# Frames with a smaller mean difference, in levels, differ only in the rounding of colours.
SAME_FRAME = 2.0
# Attributes of VideoFramesMetadata in the result
PROPERTIES = ("width", "height", "codec", "total_num_frames", "duration", "access")


def find_videos(paths: Iterable[str]) -> list[str]:
    """
    Return video files, and the video files of folders.

    Raises:
        [`VideoReadError`]: if a path does not exist.
        [`DataError`]: if a folder holds no video.
    """
    found = []
    for path in paths:
        if os.path.isdir(path):
            found += load_folder(path).videos["video"][:]
        elif os.path.isfile(path):
            found.append(path)
        else:
            raise VideoReadError(path, "is not a file.", "Give paths of video files or folders.")
    return found


@dataclass
class Reader:
    """
    A way to read a video file.

    Args:
        run (`Callable[[], object]`):
            The function to time.
        result (`str`):
            What it returns: `"pixels"` or `"frames"`.
        frames (`Callable[[], np.ndarray]`, *optional*):
            Returns the frames, to compare them with those of ezclip. `None` for ezclip itself.
        baseline (`str`, *optional*):
            Name of the reader to compare with.
    """

    run: Callable[[], object]
    result: str
    frames: Callable[[], np.ndarray] | None = None
    baseline: str | None = None


def get_readers(path: str, indices: list[int], processor: EZClipProcessor, image_processor) -> dict[str, Reader]:
    """Return the readers by name. A baseline precedes the readers that are compared with it."""
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
    """Decode all frames up to the last index in order. Counting the frames is not part of it."""
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
    """Return the largest mean difference of a frame, in levels; infinite if number or size of frames differ."""
    if frames.shape != ours.shape:
        return float("inf")
    return max(float(np.abs(a.astype(np.int16) - b).mean()) for a, b in zip(frames, ours))


def measure_video(path: str, processor: EZClipProcessor, image_processor, rounds: int) -> dict:
    """
    Time all readers on one file.

    Returns:
        `dict`: properties of the file, and by name the times of each reader, or in `failed` its error.

    Raises:
        [`VideoReadError`]: if ezclip cannot read the file.
    """
    frames, metadata = read_frames(path, processor.get_sampler())
    readers, results = get_readers(path, metadata.frames_indices, processor, image_processor), {}
    for name, reader in readers.items():
        results[name] = {"result": reader.result}
        if reader.frames is not None:
            try:
                results[name]["same_frames"] = greatest_difference(reader.frames(), frames) < SAME_FRAME
            except Exception as error:  # any error of a rival is its result
                results[name]["failed"] = reason_of(error)
    running = {name: readers[name].run for name, result in results.items() if "failed" not in result}
    timings = measure(running, rounds)
    for name, timing in timings.items():
        for clock, values in (("cpu_ms", timing.cpu), ("wall_ms", timing.wall)):
            results[name][clock] = summarize([1000 * seconds for seconds in values])
        results[name]["clips_per_second_per_core"] = 1000 / results[name]["cpu_ms"]["median"]
        if (baseline := readers[name].baseline) is not None:
            results[name]["against"] = {"reader": baseline, **compare(timing.cpu, timings[baseline].cpu)}
    properties = {name: getattr(metadata, name) for name in PROPERTIES}
    return {"video": path, "bytes": os.path.getsize(path), **properties, "readers": results}


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
    header = [
        "video",
        "reader",
        "CPU ms (quartiles)",
        "wall ms",
        "clips/s per core",
        "time / ezclip (range)",
        "frames",
    ]
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
        f"{machine_as_text(result['machine'])}\n\nFrom file to {result['num_frames']} frames, and to pixels "
        f"({result['image_processor']}), on one core. Median of {result['rounds']} rounds.\n\n"
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
