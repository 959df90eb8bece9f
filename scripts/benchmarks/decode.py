"""`decode`: time reading a video file to frames, and to the pixels of a model, on one core."""

import argparse
import os
from functools import partial
from pathlib import Path

import av
import numpy as np
import torch
import transformers
from transformers.video_utils import load_video

from ezclip.data.sources import find_videos
from ezclip.utils.timing import compare, describe_machine, measure, one_core, summarize
from processing_ezclip import EZClipProcessor
from scripts.benchmarks.harness import MatrixProduct, find_kernels, results_as_table, unless_moved, warn_of_movement
from video_ezclip import FrameSampler, read_frames


# Frames with a smaller mean difference, in levels, differ only in the rounding of colours.
SAME_FRAME = 2.0
# Attributes of VideoFramesMetadata in the result
PROPERTIES = ("width", "height", "codec", "total_num_frames", "duration", "access")
CPU = torch.device("cpu")
# The product that shows whether the machine moved (m, k, n)
PRODUCT = (512, 512, 512)
# The reader to compare with, for each kind of result
OURS = {"pixels": "ezclip", "frames": "ezclip frames"}


def load_with_transformers(path: str, sample: FrameSampler) -> np.ndarray:
    """Read frames with `transformers.video_utils.load_video`."""
    frames, _ = load_video(path, backend="pyav", sample_indices_fn=lambda metadata: sample(metadata.total_num_frames))
    return frames


def read_in_sequence(path: str, indices: list[int]) -> np.ndarray:
    """Decode all frames up to the last index in order. The indices are given, so the frames need not be counted."""
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


def are_same(frames: np.ndarray, ours: np.ndarray) -> bool:
    """Return whether number, size and content of frames are the same, up to the rounding of colours."""
    if frames.shape != ours.shape:
        return False
    return all(np.abs(a.astype(np.int16) - b).mean() < SAME_FRAME for a, b in zip(frames, ours))


def measure_video(path: str, processor: EZClipProcessor, image_processor, rounds: int) -> dict:
    """Time all readers on one file. Return its properties, and by reader the times, or in `failed` the error."""
    sample = processor.get_sampler()
    frames, metadata = read_frames(path, sample)
    load = partial(load_with_transformers, path, sample)
    in_sequence = partial(read_in_sequence, path, metadata.frames_indices)
    by_index = partial(read_with_decord, path, sample)
    # By name: the kind of result, the function to time, and a function that returns the frames of a rival
    readers = {
        "ezclip": ("pixels", lambda: processor(videos=path, return_tensors="pt"), None),
        "load_video + CLIPImageProcessor": (
            "pixels",
            lambda: image_processor(list(load()), return_tensors="pt"),
            load,
        ),
        "ezclip frames": ("frames", lambda: read_frames(path, sample), None),
        "PyAV in sequence": ("frames", in_sequence, in_sequence),
        "decord by index": ("frames", by_index, by_index),
    }
    product = MatrixProduct(PRODUCT, "float32", CPU, next(iter(find_kernels("float32", CPU))))
    runs = {name: run for name, (_, run, _) in readers.items()}
    timings = measure({**runs, product: product}, rounds, may_fail=True)
    matrix, results = product.rate(timings[product]), {}
    for name, (kind, _, rival_frames) in readers.items():
        timing, results[name] = timings[name], {"result": kind}
        if timing.failed is not None:
            results[name]["failed"] = timing.failed
            continue
        cpu = summarize([1000 * seconds for seconds in timing.cpu])
        results[name] |= {"cpu_ms": cpu, "clips_per_second_per_core": 1000 / cpu["median"]}
        if rival_frames is not None:
            results[name]["same_frames"] = are_same(rival_frames(), frames)
            ratio = compare(timing.cpu, timings[OURS[kind]].cpu)
            results[name] |= unless_moved(matrix["moved"], {"against": {"reader": OURS[kind], **ratio}})
    properties = {name: getattr(metadata, name) for name in PROPERTIES}
    return {"video": path, "bytes": os.path.getsize(path), **properties, "readers": results, "matrix": matrix}


def run(args: argparse.Namespace, device: torch.device) -> dict:
    """Time all readers on all files."""
    num_frames = args.num_frames or 8
    processor, image_processor = EZClipProcessor(num_frames=num_frames), transformers.CLIPImageProcessor()
    paths = find_videos(args.videos)
    with one_core():
        videos = [measure_video(path, processor, image_processor, args.rounds) for path in paths]
    return {
        "machine": {**describe_machine(), "threads": 1},
        "num_frames": num_frames,
        "image_processor": type(image_processor).__name__,
        "videos": videos,
    }


def as_text(result: dict) -> list[str]:
    """Return the paragraphs and tables of a result."""
    columns = {
        "video": ("title",),
        "reader": ("reader",),
        "CPU ms (quartiles)": ("cpu_ms", ".1f"),
        "clips/s per core": ("clips_per_second_per_core", ".1f"),
        "time / ezclip (range)": ("against", ".2f"),
        "frames": ("frames",),
    }
    rows = []
    for video in result["videos"]:
        title = (
            f"{Path(video['video']).name}: {video['width']} × {video['height']}, {video['codec']}, "
            f"{video['total_num_frames']} frames, by {video['access']}"
        )
        for name, reader in video["readers"].items():
            frames = {None: None, True: "same", False: "wrong frames"}[reader.get("same_frames")]
            against = {"moved": reader["machine_moved"]} if "machine_moved" in reader else reader.get("against")
            own = {"title": title, "reader": f"{name} ({reader['result']})", "frames": frames, "against": against}
            rows.append({**reader, **own})
            title = ""
    return [
        f"From file to {result['num_frames']} frames, and to pixels ({result['image_processor']}), on one core. "
        f"Median of {result['rounds']} rounds.",
        results_as_table(rows, columns),
        *warn_of_movement({Path(video["video"]).name: video["matrix"] for video in result["videos"]}),
    ]
