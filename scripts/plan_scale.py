#!/usr/bin/env python
"""Plan predictions for very many videos from the results of `scripts/benchmark.py`.

    python scripts/plan_scale.py --benchmark benchmark --cores_per_node 64 --accelerators_per_node 8

`--benchmark` is a folder with `decode.json` (measured on similar videos), `model.json` and optionally `text.json`.
They may come from two machines: decode.json from one with the cores, model.json from one with the accelerator.
docs/scale.md explains the arithmetic.
"""

import argparse
import json
import math
import sys
import textwrap
from pathlib import Path

import numpy as np


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ezclip.errors import DataError
from ezclip.utils.files import write_json
from ezclip.utils.tables import as_table


# Precisions of the benchmark that `ezclip run` has
RUN_PRECISIONS = ("float32", "autocast")


def read_costs(folder: str | Path) -> dict:
    """
    Read the costs of a clip from the files of a benchmark.

    Raises:
        [`DataError`]: if a file is missing or is not of a benchmark.
    """
    decode, model = read(folder, "decode"), read(folder, "model")
    try:
        videos = decode["videos"]
        per_second = [video["readers"]["ezclip"]["clips_per_second_per_core"] for video in videos]
        rows = [
            (row["clips_per_second"], batch["batch_size"], row["precision"])
            for batch in model["batches"]
            for row in batch["rows"]
            if (row["model"], row["pass"]) == (model["model"], "forward")
            and row["precision"] in RUN_PRECISIONS
            and "failed" not in row
        ]
        rate, batch_size, precision = max(rows)
        has_accelerator = model["machine"]["accelerator"] is not None
        ways = read(folder, "text")["rows"] if Path(folder, "text.json").exists() else []
        banks = [row["seconds"]["median"] for row in ways if row["way"] == "class bank" and "failed" not in row]
        measured = [row for batch in model["batches"] for row in batch["rows"]]
        measured += [reader for video in videos for reader in video["readers"].values()]
        return {
            "machine_moved": max((row["machine_moved"] for row in measured if "machine_moved" in row), default=None),
            "decode_seconds": float(np.mean([1 / clips for clips in per_second])),  # of one core, to pixels
            # of one accelerator, or of one core without accelerators
            "forward_seconds": (1 if has_accelerator else model["machine"]["threads"]) / rate,
            "bank_seconds": min(banks, default=None),  # once per process
            "num_bytes": float(np.mean([video["bytes"] for video in videos])),
            "video_seconds": float(np.mean([video["duration"] for video in videos])),
            "has_accelerator": has_accelerator,
            "batch_size": batch_size,  # of the fastest forward pass, like its precision
            "precision": precision,
        }
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise DataError(
            f"{folder} must hold results of benchmark.py, with a forward pass in float32 or autocast; reading them "
            f"failed with {error!r}. Run its commands `decode` and `model` with --output_dir {folder} again."
        ) from error


def read(folder: str | Path, name: str) -> dict:
    """Read a file of a benchmark."""
    path = Path(folder, f"{name}.json")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(
            f"{path} is missing. Write it with `python scripts/benchmark.py {name} … --output_dir {folder}`."
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def speed_of_node(costs: dict, cores: int, accelerators: int) -> tuple[float, str]:
    """Return the clips per second of a node, and what limits them. Decoding and embedding overlap."""
    if accelerators == 0:
        return cores / (costs["decode_seconds"] + costs["forward_seconds"]), "cores"
    return min(
        (cores / costs["decode_seconds"], "decoding"), (accelerators / costs["forward_seconds"], "accelerators")
    )


def plan(num_clips: float, costs: dict, rate: float, num_nodes: int | None, deadline_hours: float) -> dict:
    """
    Plan `num_clips` on nodes of `rate` clips per second, by default on as many nodes as the deadline needs.

    Raises:
        [`DataError`]: if the class bank alone takes longer than the deadline.
    """
    bank = costs["bank_seconds"] or 0.0
    if num_nodes is None:
        seconds = 3600 * deadline_hours - bank
        if seconds <= 0:
            raise DataError(
                f"--deadline_hours must be more than the class bank takes ({bank:.0f} s), got {deadline_hours}."
            )
        num_nodes = math.ceil(num_clips / rate / seconds)
    return {
        "num_clips": num_clips,
        "decode_core_hours": num_clips * costs["decode_seconds"] / 3600,
        "forward_hours": num_clips * costs["forward_seconds"] / 3600,
        "storage_bytes": num_clips * costs["num_bytes"],
        "num_nodes": num_nodes,
        "hours": (num_clips / (num_nodes * rate) + bank) / 3600,
        "network_bytes_per_second_per_node": rate * costs["num_bytes"],
        "network_bytes_per_second": num_nodes * rate * costs["num_bytes"],
    }


def launch_command(costs: dict, cores: int, accelerators: int, num_nodes: int) -> str:
    """Return the command to run on each node."""
    processes = max(1, accelerators)
    parts = ["accelerate launch"]
    if num_nodes * processes > 1:
        parts[0] += f" --multi_gpu --num_machines {num_nodes} --num_processes {num_nodes * processes}"
    if num_nodes > 1:
        parts.append("--machine_rank RANK --main_process_ip FIRST_NODE --main_process_port 29500")
    parts.append("run_video_zeroshot.py --model_name_or_path MODEL --do_predict --dataset_name VIDEOS --streaming")
    parts.append(f"--output_dir SHARED_FOLDER --per_device_eval_batch_size {costs['batch_size']}")
    parts[-1] += " --mixed_precision bf16" if costs["precision"] != "float32" else ""
    if accelerators:
        workers = max(1, min(cores // accelerators, math.ceil(costs["decode_seconds"] / costs["forward_seconds"])))
        parts[-1] += f" --dataloader_num_workers {workers}"
    else:
        parts[-1] += " --use_cpu"
    return " \\\n    ".join(parts)


def make_plan(args: argparse.Namespace) -> dict:
    """
    Return costs, plans for short and for long videos, and the command for the short ones.

    Raises:
        [`DataError`]: if the benchmark is missing, or was measured on another kind of machine.
    """
    costs = read_costs(args.benchmark)
    cores = args.cores_per_node or read(args.benchmark, "decode")["machine"]["cores"]
    accelerators = args.accelerators_per_node
    if accelerators is None:
        accelerators = int(costs["has_accelerator"])
    if (accelerators > 0) != costs["has_accelerator"]:
        measured = "with an accelerator" if costs["has_accelerator"] else "without accelerators"
        raise DataError(
            f"{args.benchmark}/model.json was measured {measured}, so it cannot plan --accelerators_per_node "
            f"{accelerators}. Run `benchmark.py model` on such a node, or change the option."
        )
    seconds = args.seconds_per_clip or costs["video_seconds"]
    # Reading and decoding grow with the duration of a clip.
    longer = seconds / costs["video_seconds"]
    long_costs = {**costs, **{name: costs[name] * longer for name in ("decode_seconds", "num_bytes")}}
    plans = {
        name: plan(num_clips, own, speed_of_node(own, cores, accelerators)[0], args.nodes, args.deadline_hours)
        for name, num_clips, own in (
            (f"{args.clips:,.0f} clips", args.clips, costs),
            (f"{args.hours:,.0f} hours, in clips of {seconds:.0f} s", 3600 * args.hours / seconds, long_costs),
        )
    }
    rate, limit = speed_of_node(costs, cores, accelerators)
    return {
        "costs": costs,
        "node": {"cores": cores, "accelerators": accelerators},
        "clips_per_second": rate,
        "limit": limit,
        "cores_per_accelerator": costs["decode_seconds"] / costs["forward_seconds"] if accelerators else None,
        "plans": plans,
        "command": launch_command(costs, cores, accelerators, next(iter(plans.values()))["num_nodes"]),
    }


def as_markdown(result: dict) -> str:
    """Return the plan as Markdown."""
    costs, node = result["costs"], result["node"]
    device = "accelerator" if costs["has_accelerator"] else "core"
    lines = [
        f"A clip has {costs['num_bytes'] / 1e6:.2f} MB and {costs['video_seconds']:.1f} s of video. Decoding takes "
        f"{1000 * costs['decode_seconds']:.1f} ms of a core, embedding {1000 * costs['forward_seconds']:,.2f} ms of "
        f"one {device} ({costs['precision']}, batch {costs['batch_size']}).",
        f"A node of {node['cores']} cores and {node['accelerators']} accelerators predicts "
        f"{result['clips_per_second']:.4g} clips per second. Limit: {result['limit']}.",
    ]
    if node["accelerators"]:
        lines.append(
            f"One accelerator needs {result['cores_per_accelerator']:.1f} cores that decode. The node has "
            f"{node['cores'] / node['accelerators']:.1f}."
        )
    if costs["bank_seconds"] is not None:
        lines.append(f"Each process builds the class bank once, in {costs['bank_seconds']:.1f} s.")
    columns = {
        "videos": ("name",),
        "clips": ("num_clips", ",.0f"),
        "decoding (core-hours)": ("decode_core_hours", ",.1f"),
        f"embedding ({device}-hours)": ("forward_hours", ",.1f"),
        "storage (TB)": ("storage_bytes", ",.3g", 1e-12),
        "nodes": ("num_nodes", ","),
        "hours": ("hours", ",.1f"),
        "network per node (MB/s)": ("network_bytes_per_second_per_node", ",.4g", 1e-6),
        "network of all nodes (MB/s)": ("network_bytes_per_second", ",.4g", 1e-6),
    }
    if costs["machine_moved"] is not None:
        lines.append(
            f"The measured machine moved by {costs['machine_moved']:.0%} within a run, and so may the plan. Measure "
            "again on a quiet machine."
        )
    text = "\n".join(f"- {line}" for line in lines)
    table = as_table(({"name": name, **scale} for name, scale in result["plans"].items()), columns)
    command = textwrap.indent(result["command"], "    ")
    return f"{text}\n\n{table}\n\nCommand for each node, for the clips:\n\n{command}"


def main(argv: list[str] | None = None):
    """Print and write the plan."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--benchmark", required=True, help="output folder of benchmark.py")
    parser.add_argument("--clips", type=float, default=1e6, help="number of short videos (default: a million)")
    parser.add_argument("--hours", type=float, default=1e6, help="hours of long videos (default: a million)")
    parser.add_argument(
        "--seconds_per_clip",
        type=float,
        help="duration of the clips of long videos (default: that of the measured clips)",
    )
    parser.add_argument("--cores_per_node", type=int, help="(default: those of the benchmark)")
    parser.add_argument("--accelerators_per_node", type=int, help="(default: 1 if the benchmark had one, or 0)")
    parser.add_argument("--nodes", type=int, help="number of nodes (default: as many as the deadline needs)")
    parser.add_argument("--deadline_hours", type=float, default=24.0, help="(default: %(default)s)")
    parser.add_argument("--output_file", help="JSON file for the plan")
    args = parser.parse_args(argv)
    for name in ("clips", "hours", "seconds_per_clip", "cores_per_node", "nodes", "deadline_hours"):
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            parser.error(f"--{name} must be a number above 0, got {value}.")
    if args.accelerators_per_node is not None and args.accelerators_per_node < 0:
        parser.error(f"--accelerators_per_node must be at least 0, got {args.accelerators_per_node}.")
    try:
        result = make_plan(args)
    except DataError as error:
        parser.exit(2, f"plan_scale.py: {error}\n")
    print(as_markdown(result))
    if args.output_file is not None:
        write_json(args.output_file, result)


if __name__ == "__main__":
    main()
