"""`memory`: measure the peak memory of training steps with all weights trained, and in micro-batches."""

import argparse
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import torch
from accelerate import Accelerator

from ezclip.errors import ModelError
from ezclip.training.gradient_cache import backward
from ezclip.training.log import peak_memory_mb
from ezclip.training.loop import enable_gradient_checkpointing, make_optimizer
from ezclip.training.recipe import TrainingRecipe
from ezclip.utils.tables import as_table
from ezclip.utils.timing import summarize
from scripts.benchmarks.models import describe_model, make_batch, make_model, name_of_model


def measure_step(args: argparse.Namespace, micro_batch_size: int, checkpointing: bool, all_weights: bool) -> dict:
    """Measure peak memory (in MB of 2^20 bytes) and seconds of training steps. Needs a process of its own."""
    accelerator = Accelerator(mixed_precision=args.mixed_precision, cpu=args.use_cpu)
    model = make_model(args).train()
    config = model.config
    if all_weights:
        model.requires_grad_(True)
    if checkpointing:
        enable_gradient_checkpointing(model)
    model, optimizer = accelerator.prepare(model, make_optimizer(model, TrainingRecipe()))
    batch = {name: value.to(accelerator.device) for name, value in make_batch(config, args.batch_size).items()}
    before, seconds = peak_memory_mb(accelerator.device), []
    for _ in range(args.rounds):
        start = time.perf_counter()
        backward(model, batch, accelerator, micro_batch_size)["loss"].item()  # waits for a GPU
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    return {
        "peak_memory_mb": peak_memory_mb(accelerator.device),
        "memory_before_mb": before,
        "step_seconds": summarize(seconds),
        "size": describe_model(config),
    }


def run(args: argparse.Namespace, device: torch.device) -> dict:
    """Measure steps of one batch: at once with all weights trained, then in micro-batches."""
    sizes = args.micro_batch_sizes or [2**i for i in range(args.batch_size.bit_length())]
    steps = [(args.batch_size, False, True)]
    steps += [(size, checkpointing, False) for checkpointing in (False, True) for size in sorted(set(sizes))[::-1]]
    rows, size = [], None
    for step in steps:
        row = dict(zip(("micro_batch_size", "gradient_checkpointing", "all_weights_trained"), step))
        rows.append(row)
        # The system reports the peak of a whole process, so each step gets its own process.
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            try:
                row |= pool.submit(measure_step, args, *step).result()
            except ValueError as error:  # of accelerate
                raise ModelError(f"--mixed_precision {args.mixed_precision} cannot be used here: {error}") from error
            except (torch.OutOfMemoryError, BrokenProcessPool):
                row["failed"] = "out of memory, or killed"
                continue
        size = row.pop("size")
        if "peak_memory_mb" in rows[0]:
            row["part_of_all_weights"] = row["peak_memory_mb"] / rows[0]["peak_memory_mb"]
    if size is None:
        raise ModelError("No step fits into memory. Give a smaller --batch_size.")
    return {
        "model": name_of_model(args),
        "size": size,
        "batch_size": args.batch_size,
        "mixed_precision": args.mixed_precision,
        "rows": rows,
    }


def as_text(result: dict) -> list[str]:
    """Return the paragraphs and tables of a result."""
    columns = {
        "trained": ("trained",),
        "micro-batch": ("micro_batch_size",),
        "gradient checkpointing": ("checkpointing",),
        "peak MB": ("peak_memory_mb", ".0f"),
        "MB before the step": ("memory_before_mb", ".0f"),
        "share of peak with all weights": ("part_of_all_weights", ".0%"),
        "s per step (quartiles)": ("step_seconds", ".2f"),
    }
    rows = [
        {
            **row,
            "trained": "all weights" if row["all_weights_trained"] else "as configured",
            "checkpointing": "yes" if row["gradient_checkpointing"] else "no",
        }
        for row in result["rows"]
    ]
    return [
        f"A training step of {result['model']} ({result['size']}) with batch {result['batch_size']}, precision "
        f"{result['mixed_precision']}. Each row has its own process. Median of {result['rounds']} steps.",
        as_table(rows, columns),
    ]
