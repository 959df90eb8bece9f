#!/usr/bin/env python
"""Measure the speed of ezclip beside other software, on the same machine in the same run.

    python scripts/benchmark.py cost --output_dir benchmark
    python scripts/benchmark.py model --batch_sizes 2 8 --output_dir benchmark
    python scripts/benchmark.py text --tokenizer_name openai/clip-vit-base-patch16 --output_dir benchmark
    python scripts/benchmark.py decode VIDEO_OR_FOLDER [...] --output_dir benchmark
    python scripts/benchmark.py end-to-end VIDEO_OR_FOLDER [...] --output_dir benchmark
    python scripts/benchmark.py memory --batch_size 8 --output_dir benchmark
    python scripts/benchmark.py all [VIDEO_OR_FOLDER ...] --output_dir benchmark

The methods of a command run in turn, round by round in one process, so a drift of the machine's speed affects all of
them. Matrix products run in the same rounds. Their rate is the limit of the machine, and the speed of a model is given
as a share of it. Compare ratios and shares, because times depend on the machine. They are left out if the rate of the
machine moved by more than 20 % within the run.

Models have random weights without `--model_name_or_path`. `cost` and `end-to-end` also take other dual
encoders, such as X-CLIP. OMP_NUM_THREADS sets the number of threads.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from accelerate import PartialState

from configuration_ezclip import PRESETS
from ezclip.errors import DataError, ModelError
from ezclip.utils.files import replacing, write_json
from ezclip.utils.timing import describe_machine, machine_as_text
from scripts.benchmarks import cost, decode, end_to_end, everything, memory, model, text
from video_ezclip import VideoReadError


def at_least(least: int) -> Callable[[str], int]:
    """Return the type of an integer option."""

    def integer(text: str) -> int:
        if (value := int(text)) < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {value}.")
        return value

    return integer


POSITIVE = at_least(1)
# Options of the commands
OPTIONS = {
    "videos": {"nargs": "+", "metavar": "VIDEO", "help": "video file or folder of videos"},
    "--output_dir": {"help": "folder for the results as JSON and Markdown"},
    "--rounds": {"type": POSITIVE, "help": "timed rounds after the warm-up (default: %(default)s)"},
    "--use_cpu": {"action": "store_true", "help": "use no accelerator"},
    "--model_name_or_path": {"help": "folder or name on the Hub (default: random weights)"},
    "--preset": {"choices": PRESETS, "help": "published system (default: ezclip)"},
    "--presets": {"nargs": "+", "choices": PRESETS, "help": "systems to count (default: all)"},
    "--patch_size": {"type": POSITIVE, "help": "patch size of a ViT-B with random weights (default: 16)"},
    "--num_frames": {"type": POSITIVE, "help": "frames per clip (default: those of the model, or 8)"},
    "--label_list": {"help": "CSV file of labels, `id,name` (default: made-up labels)"},
    "--num_labels": {
        "type": POSITIVE,
        "help": "number of labels (default: the whole list, or 400; `end-to-end`: 100)",
    },
    "--tokenizer_name": {"help": "folder, name on the Hub, or CLIP's BPE file (default: that of the model, or words)"},
    "--batch_size": {"type": POSITIVE, "help": "clips per batch (default: %(default)s)"},
    "--batch_sizes": {"type": POSITIVE, "nargs": "+", "help": "clips per batch, one or several sizes (default: 2)"},
    "--micro_batch_sizes": {
        "type": POSITIVE,
        "nargs": "+",
        "help": "sizes to measure (default: powers of two up to the batch)",
    },
    "--passes": {"nargs": "+", "choices": model.PASSES, "help": "what to measure (default: both)"},
    "--precisions": {"nargs": "+", "choices": model.PRECISIONS, "help": "precisions to measure (default: all)"},
    "--exports": {
        "nargs": "+",
        "metavar": "FOLDER",
        "help": "also measure exports of the model that `ezclip export --engine openvino` wrote (default: none)",
    },
    "--compile": {"action": "store_true", "help": "also measure models that `torch.compile` compiled"},
    "--num_workers": {"type": at_least(0), "help": "decoding processes (default: %(default)s)"},
    "--mixed_precision": {
        "choices": ["no", "bf16", "fp16"],
        "help": "precision of ezclip (default: no; of `end-to-end`: bf16 if its matrix products are faster)",
    },
}
VIDEOS = {"videos": None}
MODEL = dict.fromkeys(("--model_name_or_path", "--patch_size", "--num_frames"))
TIMED = {"--use_cpu": False, "--preset": None, **MODEL}
TEXTS = dict.fromkeys(("--label_list", "--num_labels", "--tokenizer_name"))
# By name: the module, what it does, and the defaults of its options
COMMANDS = {
    "cost": (cost, "count parameters and multiply-accumulates", {**MODEL, "--presets": None}),
    "model": (
        model,
        "time embedding and training steps",
        {
            **TIMED,
            "--exports": [],
            "--compile": False,
            "--rounds": 7,
            "--batch_sizes": [2],
            "--passes": model.PASSES,
            "--precisions": model.PRECISIONS,
        },
    ),
    "text": (text, "time building a class bank", {**TIMED, **TEXTS, "--rounds": 3}),
    "decode": (decode, "time reading a file to frames and pixels", {**VIDEOS, "--rounds": 15, "--num_frames": None}),
    "end-to-end": (
        end_to_end,
        "time files to predictions",
        {
            **{**VIDEOS, **TIMED, **TEXTS, "--exports": [], "--rounds": 3},
            **{"--batch_size": 8, "--num_workers": 1, "--mixed_precision": None},
        },
    ),
    "memory": (
        memory,
        "measure the peak memory of training steps",
        {**TIMED, "--rounds": 3, "--batch_size": 16, "--micro_batch_sizes": None, "--mixed_precision": "no"},
    ),
    "all": (
        everything,
        "run all commands, and write one file of tables",
        {
            **{"--output_dir": "benchmark", "--rounds": None, "--batch_sizes": None},
            **{"--precisions": model.PRECISIONS, **TIMED, **TEXTS},
        },
    ),
}


def main(argv: list[str] | None = None):
    """Run the benchmark of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    # Values where a command has no such option
    parser.set_defaults(use_cpu=True, preset=None, patch_size=None, rounds=None, mixed_precision=None)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (module, does, defaults) in COMMANDS.items():
        command = commands.add_parser(name, help=does, description=module.__doc__)
        for option, default in {"--output_dir": None, **defaults}.items():
            command.add_argument(option, default=default, **OPTIONS[option])
    command.add_argument("videos", **{**OPTIONS["videos"], "nargs": "*"})  # the last one, `all`, decodes any
    args = parser.parse_args(argv)
    if args.patch_size is not None and args.model_name_or_path is not None:
        parser.error("--patch_size is for random weights. Remove it, or --model_name_or_path.")
    module = COMMANDS[args.command][0]
    try:
        if args.output_dir is not None:
            Path(args.output_dir).mkdir(parents=True, exist_ok=True)
        device = PartialState(cpu=args.use_cpu).device
        if args.mixed_precision == "fp16" and device.type == "cpu":
            raise ModelError("--mixed_precision fp16 needs a GPU. Give bf16 or no.")
        result = {"machine": describe_machine(device), "rounds": args.rounds, **module.run(args, device)}
    except (DataError, ModelError, VideoReadError) as error:
        parser.exit(2, f"benchmark.py: {error}\n")
    except FileExistsError:
        parser.exit(2, f"benchmark.py: --output_dir must be a folder, got the file {args.output_dir}.\n")
    markdown = "\n\n".join([machine_as_text(result["machine"]), *module.as_text(result)])
    print(markdown)
    if args.output_dir is not None:
        write_json(Path(args.output_dir, f"{args.command}.json"), result)
        with replacing(Path(args.output_dir, f"{args.command}.md")) as temporary:
            temporary.write_text(markdown + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
