"""Contenders that take turns, and what their times say."""

import contextlib
import importlib
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np
import torch


@dataclass
class Timing:
    """
    Seconds that each round took.

    Args:
        cpu (`list[float]`):
            On the processor, all threads of the process together.
        wall (`list[float]`):
            By the clock.
        failed (`str`, *optional*):
            Why there are none.
    """

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    failed: str | None = None


def measure(
    contenders: dict[str, Callable[[], object]],
    rounds: int,
    device: torch.device | None = None,
    may_fail: bool = False,
    warm_up: dict[str, Callable[[], object]] | None = None,
) -> dict[str, Timing]:
    """
    Time contenders in turn, A B C A B C …, after one round that is not counted.

    Args:
        contenders (`dict[str, Callable]`):
            What is timed, by name.
        rounds (`int`):
            Rounds that are counted.
        device (`torch.device`, *optional*):
            Where they compute, if not on the processor alone: each is over when this has done its work.
        may_fail (`bool`, *optional*, defaults to `False`):
            Whether one that raises an error in the first round is left out, with the reason in its [`Timing`].
        warm_up (`dict[str, Callable]`, *optional*):
            What runs in the first round in the place of contenders that take long.
    """
    timings = {name: Timing() for name in contenders}
    for name, run in {**contenders, **(warm_up or {})}.items():
        try:
            run()
            wait_for(device)
        except Exception as error:  # whatever a contender fails with is its result
            if not may_fail:
                raise
            timings[name].failed = reason_of(error)
    for _ in range(rounds):
        for name, run in contenders.items():
            if timings[name].failed is None:
                wall, cpu = time.perf_counter(), time.process_time()
                run()
                wait_for(device)
                timings[name].cpu.append(time.process_time() - cpu)
                timings[name].wall.append(time.perf_counter() - wall)
    return timings


def wait_for(device: torch.device | None):
    """Until what was asked of a device is done: an accelerator answers before it has computed."""
    if device is not None:
        torch.get_device_module(device).synchronize()


def reason_of(error: Exception) -> str:
    """The first line of what an error says, for a cell of a table."""
    return (str(error).strip().split("\n")[0] or type(error).__name__)[:100]


def summarize(values: list[float]) -> dict:
    """Median and quartiles of what the rounds gave, and all of it."""
    quartiles = np.percentile(values, (25, 50, 75)).tolist()
    return {"median": quartiles[1], "quartiles": [quartiles[0], quartiles[2]], "rounds": list(values)}


def compare(values: list[float], baseline: list[float]) -> dict:
    """How many times the baseline: the ratio of the medians, and the least and the greatest of a round."""
    rounds = np.divide(values, baseline)
    return {
        "ratio": float(np.median(values) / np.median(baseline)),
        "range": [float(rounds.min()), float(rounds.max())],
    }


@contextlib.contextmanager
def one_core():
    """Keeps this process, and the threads that it starts, on one of its cores, where the system can do that."""
    threads = torch.get_num_threads()
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_setaffinity") else None
    torch.set_num_threads(1)
    if cores:
        os.sched_setaffinity(0, {max(cores)})
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        if cores:
            os.sched_setaffinity(0, cores)


def describe_machine(device: torch.device | None = None) -> dict:
    """
    Processor, cores, threads, accelerator, and versions of what is measured.

    Args:
        device (`torch.device`, *optional*):
            Where models compute, if any do.
    """
    cpu_info = Path("/proc/cpuinfo")
    lines = cpu_info.read_text(encoding="utf-8").splitlines() if cpu_info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    versions = {"python": platform.python_version()}
    for name in ("torch", "transformers", "PIL", "av", "decord"):
        try:
            versions[name] = importlib.import_module(name).__version__
        except Exception:  # a decord that does not fit its surroundings fails in ways of its own
            versions[name] = "none"
    libraries = ("libavformat", "libavcodec", "libswscale")
    versions.update({name: ".".join(map(str, av.library_versions[name])) for name in libraries})
    processor = models[0] if models else platform.processor() or platform.machine()
    return {
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": None if device is None or device.type == "cpu" else name_of(device),
        "system": platform.system(),
        "versions": versions,
    }


def name_of(device: torch.device) -> str:
    """What an accelerator is sold as, where PyTorch knows it."""
    module = torch.get_device_module(device)
    return module.get_device_name(device) if hasattr(module, "get_device_name") else device.type


def machine_as_text(machine: dict) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    parts = [machine["processor"], f"{machine['cores']} cores", f"{machine['threads']} threads", machine["system"]]
    return f"{', '.join(filter(None, [machine['accelerator'], *parts]))}; {versions}."
