"""Divide the cores of this machine between reading videos and computing, by a measurement of a few seconds."""

import math
import os
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch

from processing_ezclip import EZClipProcessor
from video_ezclip import VideoReadError, read_frames


MAX_VIDEOS = 8  # to read at most
MAX_SECONDS = 2.0  # for reading, and for computing
MAX_PASSES = 5


@dataclass(frozen=True)
class MachinePlan:
    """
    How a process uses its cores. It changes speed, and results by rounding only.

    Args:
        num_workers (`int`):
            Processes that decode.
        num_threads (`int`):
            Threads that compute.
        read_seconds (`float`), compute_seconds (`float`):
            What a clip takes: to read with one process, and to embed with all cores, or on the accelerator.
    """

    num_workers: int
    num_threads: int
    read_seconds: float
    compute_seconds: float

    def __str__(self) -> str:
        return (
            f"This machine: {self.num_workers} decoding, {self.num_threads} computing (a clip takes "
            f"{self.read_seconds:.3f} s to read and {self.compute_seconds:.3f} s to embed)"
        )

    @classmethod
    def divide(
        cls, num_cores: int, read_seconds: float, compute_seconds: float, uses_accelerator: bool = False
    ) -> "MachinePlan":
        """Give each task as many cores as it keeps busy when both are equally fast."""
        if uses_accelerator:
            busy = min(read_seconds / compute_seconds, num_cores)
        else:
            busy = num_cores * read_seconds / (read_seconds + num_cores * compute_seconds)
        return cls(max(1, math.ceil(busy)), max(1, num_cores - round(busy)), read_seconds, compute_seconds)


def count_cores() -> int:
    """Return the cores of this process: its share, if a launcher started several on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE") or 1))


@torch.no_grad()
def plan_machine(
    model: Any, processor: EZClipProcessor, videos: Iterable, read: Callable = read_frames
) -> MachinePlan:
    """
    Read some videos and embed one, each for two seconds at most, and return the best division of the cores.

    Args:
        model ([`VideoTextEncoder`]):
            The model, on its device. Autocast, if any, is the caller's.
        processor ([`EZClipProcessor`]):
            Samples and crops the frames.
        videos (`Iterable`):
            Videos as [`read_frames`] takes them. Unreadable ones are passed over.
        read (`Callable`, *optional*):
            Reads like [`read_frames`], the default, or [`IsolatedReader`].
    """
    num_cores, times, frames = count_cores(), [], None
    for video, _ in zip(videos, range(MAX_VIDEOS)):
        try:
            if frames is None:  # the first read starts a process
                frames, _ = processor.read_clip(video, processor.get_sampler(), read=read)
            start = time.perf_counter()
            frames, _ = processor.read_clip(video, processor.get_sampler(), read=read)
        except VideoReadError:
            continue
        times.append(time.perf_counter() - start)
        if sum(times) > MAX_SECONDS:
            break
    if frames is None:  # the run will say what is wrong with the videos
        return MachinePlan(1, num_cores, 0.0, 0.0)
    on_device = cast(torch.ByteTensor, torch.from_numpy(frames).to(model.device))
    pixels = processor.normalize(on_device)[None].to(model.dtype)
    passes = []
    with torch.random.fork_rng():  # a model in training draws dropout
        while len(passes) <= MAX_PASSES and sum(passes) < MAX_SECONDS:
            start = time.perf_counter()
            model.encode_videos(pixels).cpu()  # waits for an accelerator
            passes.append(time.perf_counter() - start)
    compute_seconds = statistics.median(passes[1:] or passes)  # the first pass prepares kernels
    return MachinePlan.divide(num_cores, statistics.median(times), compute_seconds, model.device.type != "cpu")
