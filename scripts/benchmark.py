#!/usr/bin/env python
"""How fast ezclip is, next to what else does the same on the same machine in the same run.

    python scripts/benchmark.py decode VIDEO [VIDEO ...] --output_dir benchmark
    python scripts/benchmark.py memory --batch_size 16 --output_dir benchmark

`decode` goes from a video file to frames, and to the pixels that a model takes, on one core: ezclip, transformers'
`load_video` with CLIP's image processor, a plain sequential read with PyAV, and decord by index.

`memory` takes training steps of one batch in micro-batches of several sizes, each in a process of its own, and gives
the most memory that each had, and its time.

In `decode` all contenders take turns, round by round, so that a machine whose speed drifts treats them alike. Ratios
are worth more than times, which belong to the machine.
"""

import argparse
import contextlib
import importlib
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import av
import numpy as np
import torch
import transformers
from accelerate import Accelerator
from transformers.video_utils import load_video


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ezclip import EZClipConfig, EZClipModel, EZClipProcessor, VideoReadError
from ezclip.contrastive import backward
from ezclip.files import write_json
from ezclip.sampling_ezclip import FrameSampler
from ezclip.tracking import peak_memory_mb
from ezclip.training import TrainingRecipe, enable_gradient_checkpointing, make_optimizer
from ezclip.video_ezclip import VideoFramesMetadata, read_frames


# Mean difference in levels up to which two frames are the same but for the rounding of their colours.
SAME_FRAME = 2.0


# ---- What all sub-commands share ----


@dataclass
class Timing:
    """
    Seconds that each round took.

    Args:
        cpu (`list[float]`):
            On the processor, all threads of the process together.
        wall (`list[float]`):
            By the clock.
    """

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)


def measure(contenders: dict[str, Callable[[], object]], rounds: int) -> dict[str, Timing]:
    """Time the contenders in turn, A B C A B C …, after one round that is not counted."""
    timings = {name: Timing() for name in contenders}
    for run in contenders.values():
        run()
    for _ in range(rounds):
        for name, run in contenders.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            timings[name].cpu.append(time.process_time() - cpu)
            timings[name].wall.append(time.perf_counter() - wall)
    return timings


def summarize(values: list[float]) -> dict:
    """Median and quartiles of what the rounds gave, and all of it."""
    quartiles = np.percentile(values, (25, 50, 75)).tolist()
    return {"median": quartiles[1], "quartiles": [quartiles[0], quartiles[2]], "rounds": values}


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


def describe_machine() -> dict:
    """Processor, number of cores, and versions of what is measured."""
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
    return {"processor": processor, "cores": os.cpu_count(), "system": platform.system(), "versions": versions}


def machine_as_text(machine: dict) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return f"{machine['processor']}, {machine['cores']} cores, {machine['system']}; {versions}."


def as_markdown_table(header: list[str], rows: list[list[str]]) -> str:
    cells = [[cell.replace("|", r"\|") for cell in row] for row in (header, ["---"] * len(header), *rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def report(name: str, result: dict, text: str, output_dir: str | None):
    """Print a sub-command's Markdown; write it and the result as JSON to the folder that was asked for."""
    print(text)
    if output_dir is not None:
        write_json(Path(output_dir, f"{name}.json"), result)
        Path(output_dir, f"{name}.md").write_text(text + "\n", encoding="utf-8")


# ---- decode ----


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
    """The contenders of `decode` by name, each after the one it is compared with."""
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
    frames, _ = load_video(path, backend="pyav", sample_indices_fn=lambda metadata: sample(metadata.total_num_frames))
    return frames


def read_in_sequence(path: str, indices: list[int]) -> np.ndarray:
    """All frames up to the last wanted one, decoded in order. Which are wanted it is told, and need not count."""
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
                message = str(error).strip().split("\n")[0] or type(error).__name__
                results[name]["failed"] = message[:100]
    running = {name: readers[name].run for name, result in results.items() if "failed" not in result}
    timings = measure(running, rounds)
    for name, timing in timings.items():
        milliseconds = {clock: [1000 * seconds for seconds in values] for clock, values in asdict(timing).items()}
        results[name].update({f"{clock}_ms": summarize(values) for clock, values in milliseconds.items()})
        results[name]["clips_per_second_per_core"] = 1000 / results[name]["cpu_ms"]["median"]
        if (baseline := readers[name].baseline) is not None:
            results[name]["against"] = {"reader": baseline, **compare(timing.cpu, timings[baseline].cpu)}
    return {"video": path, **facts(metadata), "readers": results}


def facts(metadata: VideoFramesMetadata) -> dict:
    return {name: getattr(metadata, name) for name in ("width", "height", "codec", "total_num_frames", "access")}


def decode(args: argparse.Namespace):
    """`decode`: from file to frames and pixels."""
    processor, image_processor = EZClipProcessor(num_frames=args.num_frames), transformers.CLIPImageProcessor()
    videos = []
    with one_core():
        for path in args.videos:
            if not os.path.isfile(path):
                raise VideoReadError(path, "is not a file.", "Give the paths of video files.")
            videos.append(measure_video(path, processor, image_processor, args.rounds))
    result = {
        "machine": describe_machine(),
        "num_frames": args.num_frames,
        "rounds": args.rounds,
        "image_processor": type(image_processor).__name__,
        "videos": videos,
    }
    report("decode", result, decode_as_text(result), args.output_dir)


def decode_as_text(result: dict) -> str:
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


# ---- memory ----


def measure_step(options: dict, micro_batch_size: int, gradient_checkpointing: bool) -> dict:
    """Peak memory (MB of 2^20 bytes) and seconds of training steps, in a process that does nothing else."""
    torch.manual_seed(0)
    accelerator = Accelerator(mixed_precision=options["mixed_precision"], cpu=options["use_cpu"])
    config = EZClipConfig(
        vision_config={"patch_size": options["patch_size"], "num_frames": options["num_frames"]},
    )
    model = EZClipModel(config).train()
    if gradient_checkpointing:
        enable_gradient_checkpointing(model)
    model, optimizer = accelerator.prepare(model, make_optimizer(model, TrainingRecipe()))
    size, side = options["batch_size"], config.vision_config.image_size
    batch = {
        "pixel_values": torch.randn(size, options["num_frames"], 3, side, side),
        "input_ids": torch.randint(1, 1000, (size, 16)),
        "attention_mask": torch.ones(size, 16, dtype=torch.long),
        "labels": torch.arange(size),
    }
    batch["input_ids"][:, -1] = config.text_config.eos_token_id
    batch = {name: value.to(accelerator.device) for name, value in batch.items()}
    before, seconds = peak_memory_mb(accelerator.device), []
    for _ in range(options["rounds"]):
        start = time.perf_counter()
        loss = backward(model, batch, accelerator, micro_batch_size)["loss"].item()  # waits for a GPU
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    peak = peak_memory_mb(accelerator.device)
    return {
        "micro_batch_size": micro_batch_size,
        "gradient_checkpointing": gradient_checkpointing,
        "peak_memory_mb": peak,
        "memory_before_mb": before,
        "step_seconds": summarize(seconds),
        "loss": loss,
        "device": str(accelerator.device),
    }


def memory(args: argparse.Namespace):
    """`memory`: training steps of one batch in micro-batches."""
    names = ("batch_size", "patch_size", "num_frames", "rounds", "mixed_precision", "use_cpu")
    options = {name: getattr(args, name) for name in names}
    sizes = args.micro_batch_sizes or [2**i for i in range(args.batch_size.bit_length()) if 2**i <= args.batch_size]
    rows = []
    for checkpointing in (False, True):
        for size in sorted(set(sizes), reverse=True):
            # The peak is that of a process; so each has one.
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                rows.append(pool.submit(measure_step, options, size, checkpointing).result())
    result = {"machine": describe_machine(), **options, "rows": rows}
    report("memory", result, memory_as_text(result), args.output_dir)


def memory_as_text(result: dict) -> str:
    header = [
        "micro-batch",
        "gradient checkpointing",
        "peak MB",
        "of which before the step",
        "s a step",
        "times the first",
    ]
    first = result["rows"][0]["step_seconds"]["median"]
    rows = [
        [
            str(row["micro_batch_size"]),
            "yes" if row["gradient_checkpointing"] else "no",
            f"{row['peak_memory_mb']:.0f}",
            f"{row['memory_before_mb']:.0f}",
            f"{row['step_seconds']['median']:.2f}",
            f"{row['step_seconds']['median'] / first:.2f}",
        ]
        for row in result["rows"]
    ]
    return (
        f"{machine_as_text(result['machine'])}\n\nA training step of EZ-CLIP ViT-B/{result['patch_size']} with "
        f"{result['num_frames']} frames and batch {result['batch_size']} on {result['rows'][0]['device']}, precision "
        f"{result['mixed_precision']}; median of {result['rounds']} steps.\n\n{as_markdown_table(header, rows)}"
    )


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--rounds", type=int, default=15, help="rounds that are counted (default: %(default)s)")
    shared.add_argument("--output_dir", help="folder for the results as JSON and Markdown")
    command = commands.add_parser("decode", parents=[shared], help="from file to frames and pixels")
    command.add_argument("videos", nargs="+", metavar="VIDEO", help="video file")
    command.add_argument("--num_frames", type=int, default=8, help="frames of a clip (default: %(default)s)")
    command.set_defaults(run=decode)
    command = commands.add_parser("memory", parents=[shared], help="training steps in micro-batches")
    command.add_argument("--batch_size", type=int, default=16, help="videos of a step (default: %(default)s)")
    command.add_argument(
        "--micro_batch_sizes", type=int, nargs="+", help="sizes to measure (default: powers of two up to the batch)"
    )
    command.add_argument("--patch_size", type=int, default=16, help="16 or 32, of ViT-B (default: %(default)s)")
    command.add_argument("--num_frames", type=int, default=8, help="frames of a clip (default: %(default)s)")
    command.add_argument("--mixed_precision", choices=["no", "bf16", "fp16"], default="no", help="of the computation")
    command.add_argument("--use_cpu", action="store_true", help="do not use an accelerator")
    command.set_defaults(run=memory)
    args = parser.parse_args(argv)
    for name in ("rounds", "num_frames", "batch_size", "patch_size", "micro_batch_sizes"):
        values = getattr(args, name, None)
        for value in values if isinstance(values, list) else [values]:
            if value is not None and value < 1:
                parser.error(f"--{name} must be at least 1, got {value}.")
    try:
        if args.output_dir is not None:
            Path(args.output_dir).mkdir(parents=True, exist_ok=True)
        args.run(args)
    except VideoReadError as error:
        parser.exit(2, f"benchmark.py: {error}\n")
    except FileExistsError:
        parser.exit(2, f"benchmark.py: --output_dir {args.output_dir} is a file. Give a folder.\n")


if __name__ == "__main__":
    main()
