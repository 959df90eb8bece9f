"""`all`: run the other commands one after the other, each in a process of its own, and write one file of tables."""

import argparse
import subprocess
import sys
from pathlib import Path

import torch


SCRIPT = Path(__file__).resolve().parent.parent / "benchmark.py"
# Batch sizes of `model`, the batch of `memory`, its micro-batches and precision. The paper trains with 80 clips.
ACCELERATOR = {"batch_sizes": [1, 8, 32, 80], "batch_size": 80, "micro": [80, 16, 4], "precision": "bf16"}
CPU = {"batch_sizes": [1, 2], "batch_size": 2, "micro": [2, 1], "precision": "no"}
MODEL = ("model_name_or_path", "preset", "patch_size", "num_frames")
TEXTS = ("label_list", "num_labels", "tokenizer_name")


def plan(args: argparse.Namespace, device: torch.device) -> dict[str, list]:
    """Return the options of each command. Videos come first."""
    sizes = CPU if device.type == "cpu" else ACCELERATOR
    model, texts, rounds = _options(args, *MODEL), _options(args, *TEXTS), _options(args, "rounds")
    timed = [*model, *rounds, *(["--use_cpu"] if args.use_cpu else [])]
    memory = ["--batch_size", sizes["batch_size"], "--micro_batch_sizes", *sizes["micro"]]
    commands = {
        "cost": _options(args, *(name for name in MODEL if name != "preset")),
        # A GPU is empty at the start.
        "memory": [*timed, *memory, "--mixed_precision", sizes["precision"]],
        "model": [*timed, "--compile", "--batch_sizes", *(args.batch_sizes or sizes["batch_sizes"])]
        + ["--precisions", *args.precisions],
        "text": [*timed, *texts],
    }
    if args.videos:
        commands["decode"] = [*args.videos, *_options(args, "num_frames"), *rounds]
        commands["end-to-end"] = [*args.videos, *timed, *texts]
    return commands


def _options(args: argparse.Namespace, *names: str) -> list[str]:
    given = {name: getattr(args, name) for name in names}
    return [part for name, value in given.items() if value is not None for part in (f"--{name}", str(value))]


def run(args: argparse.Namespace, device: torch.device) -> dict:
    """Run all commands. A command that fails does not stop the others."""
    results = {}
    for name, options in plan(args, device).items():
        print(f"{name} …", file=sys.stderr)
        command = [sys.executable, str(SCRIPT), name, *map(str, options), "--output_dir", args.output_dir]
        process = subprocess.run(command, capture_output=True, text=True)
        results[name] = {"options": [*map(str, options)], "tables": process.stdout.strip()}
        if process.returncode != 0:
            results[name]["failed"] = process.stderr.strip().splitlines()[-1:]
    return {"commands": results}


def as_text(result: dict) -> list[str]:
    """Return the paragraphs and tables of all commands."""
    parts = []
    for name, one in result["commands"].items():
        parts.append(f"## {name}")
        parts.append(f"Failed: {' '.join(one['failed'])}" if "failed" in one else one["tables"])
    return parts
