"""What a benchmark says of the machine, and how its tables are written."""

import importlib
import os
import platform
from pathlib import Path

import av
import torch

from ezclip.files import replacing, write_json


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


def as_markdown_table(header: list[str], rows: list[list[str]]) -> str:
    cells = [[cell.replace("|", r"\|") for cell in row] for row in (header, ["---"] * len(header), *rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def spread_as_text(summary: dict, digits: int = 2, factor: float = 1.0) -> str:
    """A median and its quartiles; see [`summarize`]."""
    low, high = summary["quartiles"]
    return f"{factor * summary['median']:.{digits}f} ({factor * low:.{digits}f}-{factor * high:.{digits}f})"


def ratio_as_text(against: dict | None) -> str:
    """A ratio and the range of its rounds; see [`compare`]."""
    if against is None:
        return "-"
    return f"{against['ratio']:.3f} ({against['range'][0]:.3f}-{against['range'][1]:.3f})"


def share_as_text(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def report(name: str, result: dict, text: str, output_dir: str | Path | None):
    """Print a command's Markdown; write it and the result as JSON to the folder that was asked for."""
    print(text)
    if output_dir is not None:
        write_json(Path(output_dir, f"{name}.json"), result)
        with replacing(Path(output_dir, f"{name}.md")) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
