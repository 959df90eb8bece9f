"""Timing of alternatives in turn, and a description of the machine."""

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

from ezclip.errors import first_line


@dataclass
class Timing:
    """Times of one contender, a value for each round."""

    cpu: list[float] = field(default_factory=list)  # CPU seconds of all threads of the process
    wall: list[float] = field(default_factory=list)  # elapsed seconds
    failed: str | None = None  # the error of a contender without times


def measure(
    contenders: dict[str, Callable[[], object]],
    rounds: int,
    device: torch.device | None = None,
    may_fail: bool = False,
    warm_up: dict[str, Callable[[], object]] | None = None,
) -> dict[str, Timing]:
    """
    Time contenders in turn, A B C A B C …, after one warm-up round.

    Args:
        contenders (`dict[str, Callable]`):
            The functions to time, by name.
        rounds (`int`):
            Number of timed rounds.
        device (`torch.device`, *optional*):
            The device that the functions compute on. A call is timed until the device has finished.
        may_fail (`bool`, *optional*, defaults to `False`):
            Whether to skip a contender that raises during the warm-up. Its [`Timing`] holds the error.
        warm_up (`dict[str, Callable]`, *optional*):
            Functions to run in the warm-up round instead of slow contenders, by name.
    """
    timings = {name: Timing() for name in contenders}
    for name, run in {**contenders, **(warm_up or {})}.items():
        try:
            run()
            _synchronize(device)
        except Exception as error:  # any error of a contender is its result
            if not may_fail:
                raise
            timings[name].failed = first_line(error).strip()[:100]  # short enough for a table cell
    for _ in range(rounds):
        for name, run in contenders.items():
            if timings[name].failed is None:
                wall, cpu = time.perf_counter(), time.process_time()
                run()
                _synchronize(device)
                timings[name].cpu.append(time.process_time() - cpu)
                timings[name].wall.append(time.perf_counter() - wall)
    return timings


def _synchronize(device: torch.device | None):
    if device is not None:  # calls of an accelerator return before the result is computed
        torch.get_device_module(device).synchronize()


def summarize(values: list[float]) -> dict:
    """Return the median, the quartiles and all values."""
    lower, median, upper = np.percentile(values, (25, 50, 75)).tolist()
    return {"median": median, "quartiles": [lower, upper], "rounds": list(values)}


def compare(values: list[float], baseline: list[float]) -> dict:
    """Return the ratio of the medians, and the lowest and highest ratio of a round."""
    rounds = np.divide(values, baseline)
    ratio = float(np.median(values) / np.median(baseline))
    return {"ratio": ratio, "range": [float(rounds.min()), float(rounds.max())]}


@contextlib.contextmanager
def one_core():
    """Pin this process and its new threads to one core, if the system can do that."""
    threads = torch.get_num_threads()
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
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
    """Return processor, cores, threads, system, versions of libraries, and the accelerator if `device` is one."""
    cpu_info = Path("/proc/cpuinfo")
    lines = cpu_info.read_text(encoding="utf-8").splitlines() if cpu_info.exists() else []
    processors = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    versions = {"python": platform.python_version()}
    for name in ("torch", "transformers", "PIL", "av", "decord"):
        try:
            versions[name] = importlib.import_module(name).__version__
        except Exception:  # a broken decord fails in many ways
            versions[name] = "none"
    for name in ("libavformat", "libavcodec", "libswscale"):
        versions[name] = ".".join(map(str, av.library_versions[name]))
    return {
        "processor": processors[0] if processors else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": None if device is None or device.type == "cpu" else _device_name(device),
        "system": platform.system(),
        "versions": versions,
    }


def _device_name(device: torch.device) -> str:
    module = torch.get_device_module(device)
    return module.get_device_name(device) if hasattr(module, "get_device_name") else device.type


def machine_as_text(machine: dict) -> str:
    """Return the dictionary of [`describe_machine`] as one line."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    parts = [machine["processor"], f"{machine['cores']} cores", f"{machine['threads']} threads", machine["system"]]
    return f"{', '.join(filter(None, [machine['accelerator'], *parts]))}; {versions}."
