#!/usr/bin/env python
"""What very many videos take, from what `scripts/benchmark.py` measured on the machine that is to do it.

    python scripts/plan_scale.py --benchmark benchmark --cores_per_node 64 --accelerators_per_node 8

`--benchmark` is a folder with `decode.json` (of videos like those that are to be predicted) and `model.json`, and if
there is one `text.json`. They may be of two machines: decoding of one with the cores, embedding of one with the
accelerator. See docs/scale.md for the arithmetic.
"""

import argparse
import json
import math
import sys
import textwrap
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ezclip.errors import DataError
from ezclip.utils.files import write_json
from ezclip.utils.tables import as_markdown_table


@dataclass
class Costs:
    """
    What one clip takes.

    Args:
        decode_seconds (`float`):
            Of one core, from the file to the frames that the model takes.
        forward_seconds (`float`):
            Of one accelerator; without accelerators of one core.
        bank_seconds (`float`, *optional*):
            Of the class bank, for each process and before the first clip.
        num_bytes (`float`):
            Of the file.
        video_seconds (`float`):
            How long the clip is.
        has_accelerator (`bool`):
            Whether the model ran on one.
        batch_size (`int`), precision (`str`):
            With which it was fastest.
    """

    decode_seconds: float
    forward_seconds: float
    bank_seconds: float | None
    num_bytes: float
    video_seconds: float
    has_accelerator: bool
    batch_size: int
    precision: str


def read_costs(folder: str | Path) -> Costs:
    """
    Read the costs of a clip from the files of a benchmark.

    Raises:
        [`DataError`]: if it is not there, or is not one.
    """
    decode, model = read(folder, "decode"), read(folder, "model")
    try:
        videos = decode["videos"]
        per_second = [video["readers"]["ezclip"]["clips_per_second_per_core"] for video in videos]
        rows = [
            (row["clips_per_second"], batch["batch_size"], row["precision"])
            for batch in model["batches"]
            for row in batch["rows"]
            if (row["model"], row["pass"]) == (model["model"], "forward") and "failed" not in row and is_run(row)
        ]
        rate, batch_size, precision = max(rows)
        has_accelerator = model["machine"]["accelerator"] is not None
        ways = read(folder, "text")["rows"] if Path(folder, "text.json").exists() else []
        banks = [row["seconds"]["median"] for row in ways if row["way"] == "class bank" and "failed" not in row]
        return Costs(
            decode_seconds=float(np.mean([1 / clips for clips in per_second])),
            forward_seconds=(1 if has_accelerator else model["machine"]["threads"]) / rate,
            bank_seconds=min(banks, default=None),
            num_bytes=float(np.mean([video["bytes"] for video in videos])),
            video_seconds=float(np.mean([video["duration"] for video in videos])),
            has_accelerator=has_accelerator,
            batch_size=batch_size,
            precision=precision,
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise DataError(
            f"{folder} does not hold what benchmark.py writes, or not the forward pass in float32 or autocast "
            f"({error!r}). Run its commands `decode` and `model` into that folder again."
        ) from error


def is_run(row: dict) -> bool:
    """Return whether `ezclip run` computes in the way of a row."""
    return row["precision"] in ("float32", "autocast") and not row["compiled"]


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


@dataclass
class Node:
    """Cores and accelerators of one machine."""

    cores: int
    accelerators: int

    def clips_per_second(self, costs: Costs) -> float:
        """Return the clips that a node predicts in a second, decoding and computing at the same time."""
        if self.accelerators == 0:
            return self.cores / (costs.decode_seconds + costs.forward_seconds)
        return min(self.accelerators / costs.forward_seconds, self.cores / costs.decode_seconds)

    def limit(self, costs: Costs) -> str:
        """Return the resource that limits the speed."""
        if self.accelerators == 0:
            return "its cores, which do both"
        is_decoding = self.cores / costs.decode_seconds < self.accelerators / costs.forward_seconds
        return "decoding" if is_decoding else "its accelerators"


def plan(num_clips: float, costs: Costs, node: Node, num_nodes: int | None, deadline_hours: float) -> dict:
    """
    Compute the time for `num_clips`, on the given nodes or on as many as the deadline needs.

    Args:
        num_clips (`float`):
            The clips.
        costs ([`Costs`]):
            What one takes.
        node ([`Node`]):
            A machine.
        num_nodes (`int`, *optional*):
            How many there are.
        deadline_hours (`float`):
            In which all is to be done, where that is left open.
    """
    rate, decode, forward = node.clips_per_second(costs), costs.decode_seconds, costs.forward_seconds
    bank = costs.bank_seconds or 0.0
    if num_nodes is None:
        seconds = 3600 * deadline_hours - bank
        if seconds <= 0:
            raise DataError(f"--deadline_hours {deadline_hours} is less than the class bank takes ({bank:.0f} s).")
        num_nodes = math.ceil(num_clips / rate / seconds)
    return {
        "num_clips": num_clips,
        "decode_core_hours": num_clips * decode / 3600,
        "forward_hours": num_clips * forward / 3600,
        "storage_bytes": num_clips * costs.num_bytes,
        "num_nodes": num_nodes,
        "clips_per_second": num_nodes * rate,
        "hours": (num_clips / (num_nodes * rate) + bank) / 3600,
        "network_bytes_per_second_per_node": rate * costs.num_bytes,
        "network_bytes_per_second": num_nodes * rate * costs.num_bytes,
    }


def launch_command(costs: Costs, node: Node, num_nodes: int) -> str:
    """Return the command to run on each node."""
    processes = max(1, node.accelerators)
    parts = ["accelerate launch"]
    if num_nodes * processes > 1:
        parts[0] += f" --multi_gpu --num_machines {num_nodes} --num_processes {num_nodes * processes}"
    if num_nodes > 1:
        parts.append("--machine_rank RANK --main_process_ip FIRST_NODE --main_process_port 29500")
    parts.append("run_video_zeroshot.py --model_name_or_path MODEL --do_predict --dataset_name VIDEOS --streaming")
    parts.append(f"--output_dir SHARED_FOLDER --per_device_eval_batch_size {costs.batch_size}")
    parts[-1] += " --mixed_precision bf16" if costs.precision != "float32" else ""
    if node.accelerators:
        workers = max(1, min(node.cores // processes, math.ceil(balance(costs))))
        parts[-1] += f" --dataloader_num_workers {workers}"
    else:
        parts[-1] += " --use_cpu"
    return " \\\n    ".join(parts)


def balance(costs: Costs) -> float:
    """Cores that decode as fast as one accelerator embeds."""
    return costs.decode_seconds / costs.forward_seconds


def as_markdown(result: dict, command: str) -> str:
    """Return the tables of a result as text."""
    costs, node = result["costs"], result["node"]
    what = "accelerator" if costs["has_accelerator"] else "core"
    lines = [
        f"A clip: {costs['num_bytes'] / 1e6:.2f} MB and {costs['video_seconds']:.1f} s of video; "
        f"{1000 * costs['decode_seconds']:.1f} ms of a core to decode, {1000 * costs['forward_seconds']:,.2f} ms of a "
        f"{what} to embed ({costs['precision']}, batch {costs['batch_size']}).",
        f"A node of {node['cores']} cores and {node['accelerators']} accelerators: {result['clips_per_second']:.4g} "
        f"clips a second, held back by {result['limit']}.",
    ]
    if node["accelerators"]:
        lines.append(
            f"Balance: {result['cores_per_accelerator']:.1f} cores that decode for each accelerator; there are "
            f"{node['cores'] / node['accelerators']:.1f}."
        )
    if costs["bank_seconds"] is not None:
        lines.append(f"Class bank: {costs['bank_seconds']:.1f} s of each process, once.")
    header = ["videos", "clips", "decoding, core-hours", f"embedding, {what}-hours", "storage, TB", "nodes", "hours"]
    header += ["network a node, MB/s", "in all, MB/s"]
    rows = [
        [
            name,
            f"{scale['num_clips']:,.0f}",
            f"{scale['decode_core_hours']:,.1f}",
            f"{scale['forward_hours']:,.1f}",
            f"{scale['storage_bytes'] / 1e12:,.3g}",
            f"{scale['num_nodes']:,}",
            f"{scale['hours']:,.1f}",
            f"{scale['network_bytes_per_second_per_node'] / 1e6:,.4g}",
            f"{scale['network_bytes_per_second'] / 1e6:,.4g}",
        ]
        for name, scale in result["plans"].items()
    ]
    text = "\n".join(f"- {line}" for line in lines)
    command = textwrap.indent(command, "    ")
    return f"{text}\n\n{as_markdown_table(header, rows)}\n\nOn each node, for the clips:\n\n{command}"


def make_plan(args: argparse.Namespace) -> tuple[dict, str]:
    """
    Costs, plans for short and for long videos, and the command for the short ones.

    Raises:
        [`DataError`]: if the benchmark is not there, or is of another kind of machine.
    """
    costs = read_costs(args.benchmark)
    cores = args.cores_per_node or read(args.benchmark, "decode")["machine"]["cores"]
    accelerators = args.accelerators_per_node
    if accelerators is None:
        accelerators = int(costs.has_accelerator)
    if (accelerators > 0) != costs.has_accelerator:
        measured = "with an accelerator" if costs.has_accelerator else "without accelerators"
        raise DataError(
            f"{args.benchmark}/model.json was measured {measured}, which says nothing of nodes with {accelerators} of "
            "them. Run `benchmark.py model` on such a node, or give another --accelerators_per_node."
        )
    node = Node(cores, accelerators)
    length = args.seconds_per_clip or costs.video_seconds
    # Reading and decoding grow with the length of a clip.
    longer = length / costs.video_seconds
    of_long = replace(costs, decode_seconds=costs.decode_seconds * longer, num_bytes=costs.num_bytes * longer)
    plans = {
        f"{args.clips:,.0f} clips": plan(args.clips, costs, node, args.nodes, args.deadline_hours),
        f"{args.hours:,.0f} hours, in clips of {length:.0f} s": plan(
            3600 * args.hours / length, of_long, node, args.nodes, args.deadline_hours
        ),
    }
    result = {
        "costs": asdict(costs),
        "node": asdict(node),
        "clips_per_second": node.clips_per_second(costs),
        "cores_per_accelerator": balance(costs) if accelerators else None,
        "limit": node.limit(costs),
        "plans": plans,
    }
    return result, launch_command(costs, node, next(iter(plans.values()))["num_nodes"])


def main(argv: list[str] | None = None):
    """Print and write the plan that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--benchmark", required=True, help="folder with what benchmark.py wrote")
    parser.add_argument("--clips", type=float, default=1e6, help="short videos to predict (default: a million)")
    parser.add_argument("--hours", type=float, default=1e6, help="hours of long videos (default: a million)")
    parser.add_argument(
        "--seconds_per_clip",
        type=float,
        help="length of the clips that long videos are cut into (default: that of the measured clips)",
    )
    parser.add_argument("--cores_per_node", type=int, help="cores of a node (default: those of the benchmark)")
    parser.add_argument("--accelerators_per_node", type=int, help="(default: 1 if the benchmark had one, or 0)")
    parser.add_argument("--nodes", type=int, help="nodes there are (default: as many as the deadline asks for)")
    parser.add_argument("--deadline_hours", type=float, default=24.0, help="(default: %(default)s)")
    parser.add_argument("--output_file", help="JSON file for the plan")
    args = parser.parse_args(argv)
    positive = ("clips", "hours", "seconds_per_clip", "cores_per_node", "nodes", "deadline_hours")
    for name in positive:
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            parser.error(f"--{name} must be a number above 0, got {value}.")
    if args.accelerators_per_node is not None and args.accelerators_per_node < 0:
        parser.error(f"--accelerators_per_node must be at least 0, got {args.accelerators_per_node}.")
    try:
        result, command = make_plan(args)
    except DataError as error:
        parser.exit(2, f"plan_scale.py: {error}\n")
    print(as_markdown(result, command))
    if args.output_file is not None:
        write_json(args.output_file, {**result, "command": command})


if __name__ == "__main__":
    main()
