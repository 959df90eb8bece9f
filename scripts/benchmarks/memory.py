"""`memory`: the most memory that training steps of one batch take, in micro-batches and with all weights trained."""

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
from ezclip.utils.tables import as_markdown_table
from ezclip.utils.timing import describe_machine, machine_as_text, summarize
from scripts.benchmarks.models import describe_model, make_batch, make_model, name_of_model


def measure_step(args: argparse.Namespace, micro_batch_size: int, checkpointing: bool, all_weights: bool) -> dict:
    """Peak memory (MB of 2^20 bytes) and seconds of training steps, in a process that does nothing else."""
    accelerator = Accelerator(mixed_precision=args.mixed_precision, cpu=args.use_cpu)
    if args.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ModelError("--mixed_precision fp16 needs a GPU. Give bf16, which CPUs have too, or no.")
    model = make_model(args).train()
    config = model.config
    if all_weights:
        model.requires_grad_(True)
    if checkpointing:
        enable_gradient_checkpointing(model)
    size = describe_model(model)
    model, optimizer = accelerator.prepare(model, make_optimizer(model, TrainingRecipe()))
    batch = {name: value.to(accelerator.device) for name, value in make_batch(config, args.batch_size).items()}
    before, seconds = peak_memory_mb(accelerator.device), []
    for _ in range(args.rounds):
        start = time.perf_counter()
        loss = backward(model, batch, accelerator, micro_batch_size)["loss"].item()  # waits for a GPU
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    return {
        "micro_batch_size": micro_batch_size,
        "gradient_checkpointing": checkpointing,
        "all_weights_trained": all_weights,
        "peak_memory_mb": peak_memory_mb(accelerator.device),
        "memory_before_mb": before,
        "step_seconds": summarize(seconds),
        "loss": loss,
        "size": size,
        "machine": describe_machine(accelerator.device),
    }


def run(args: argparse.Namespace) -> dict:
    """Training steps of one batch, first all at once with all weights trained, then in micro-batches."""
    sizes = args.micro_batch_sizes or [2**i for i in range(args.batch_size.bit_length()) if 2**i <= args.batch_size]
    steps = [(args.batch_size, False, True)]
    steps += [(size, checkpointing, False) for checkpointing in (False, True) for size in sorted(set(sizes))[::-1]]
    rows = []
    for step in steps:
        # The peak is that of a process; so each has one.
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            try:
                rows.append(pool.submit(measure_step, args, *step).result())
            except ValueError as error:  # of accelerate
                raise ModelError(f"--mixed_precision {args.mixed_precision} cannot be used here: {error}") from error
            except (torch.OutOfMemoryError, BrokenProcessPool):
                names = ("micro_batch_size", "gradient_checkpointing", "all_weights_trained")
                rows.append({**dict(zip(names, step)), "failed": "out of memory, or killed"})
    baseline = rows[0].get("peak_memory_mb")
    done = next((row for row in rows if "failed" not in row), None)
    if done is None:
        raise ModelError("No step fits into memory. Give a smaller --batch_size.")
    machine, size = done["machine"], done["size"]
    for row in rows:
        row.pop("machine", None), row.pop("size", None)
        if baseline is not None and "failed" not in row:
            row["part_of_all_weights"] = row["peak_memory_mb"] / baseline
    return {
        "machine": machine,
        "model": name_of_model(args),
        "size": size,
        "batch_size": args.batch_size,
        "mixed_precision": args.mixed_precision,
        "rounds": args.rounds,
        "rows": rows,
    }


def as_text(result: dict) -> str:
    """Return the tables of a result as text."""
    header = ["trained", "micro-batch", "gradient checkpointing", "peak MB", "before the step"]
    header += ["of the peak with all weights", "s a step"]
    rows = []
    for row in result["rows"]:
        trained = "all weights" if row["all_weights_trained"] else "as configured"
        checkpointing = "yes" if row["gradient_checkpointing"] else "no"
        rows.append([trained, str(row["micro_batch_size"]), checkpointing, *_cells(row)])
    return (
        f"{machine_as_text(result['machine'])}\n\nA training step of {result['model']} ({result['size']}) with batch "
        f"{result['batch_size']}, precision {result['mixed_precision']}; each row in a process of its own, median of "
        f"{result['rounds']} steps.\n\n{as_markdown_table(header, rows)}"
    )


def _cells(row: dict) -> list[str]:
    if "failed" in row:
        return [f"failed: {row['failed']}", "-", "-", "-"]
    part = row.get("part_of_all_weights")
    return [
        f"{row['peak_memory_mb']:.0f}",
        f"{row['memory_before_mb']:.0f}",
        "-" if part is None else f"{part:.0%}",
        f"{row['step_seconds']['median']:.2f}",
    ]
