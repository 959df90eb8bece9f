#!/usr/bin/env python
"""Measure the speed of ezclip beside other software, on the same machine in the same run.

    python scripts/benchmark.py cost --output_dir benchmark
    python scripts/benchmark.py model --batch_sizes 2 8 --output_dir benchmark
    python scripts/benchmark.py text --tokenizer_name openai/clip-vit-base-patch16 --output_dir benchmark
    python scripts/benchmark.py decode VIDEO_OR_FOLDER [...] --output_dir benchmark
    python scripts/benchmark.py end-to-end VIDEO_OR_FOLDER [...] --output_dir benchmark
    python scripts/benchmark.py memory --batch_size 8 --output_dir benchmark

`cost` counts parameters and multiply-accumulates, attention included, of the published systems, CLIP and X-CLIP.

`model` times embedding and training steps, beside transformers' `CLIPVisionModel` on the same frames, which is no
video model, and its `XCLIPModel` of the same size.

`text` times building a class bank, beside prompts padded to the maximal length of the text tower.

`decode` times reading a video file to frames, and to the pixels of a model, on one core: ezclip, transformers'
`load_video` with CLIP's image processor, a plain sequential read with PyAV, and decord by index.

`end-to-end` times files to written predictions, beside a loop of PyAV, CLIP's image processor and the same model in
float32.

`memory` measures peak memory and time of training steps with all weights trained, and in micro-batches of several
sizes. Each row has its own process.

The methods of a command run in turn, round by round in one process, so that a drift of the machine's speed affects
them alike. Matrix products run in the same rounds. Their rate is the limit of the machine, and models are given as a
share of it. Compare ratios and shares; times depend on the machine.

Models have random weights without `--model_name_or_path`. OMP_NUM_THREADS sets the number of threads.
"""

import argparse
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from configuration_ezclip import PRESETS
from ezclip.errors import DataError, ModelError
from scripts.benchmarks import cost, decode, end_to_end, memory, model, text
from scripts.benchmarks.report import report
from video_ezclip import VideoReadError


COMMANDS = {
    "cost": cost,
    "model": model,
    "text": text,
    "decode": decode,
    "end-to-end": end_to_end,
    "memory": memory,
}
POSITIVE_OPTIONS = ("rounds", "num_frames", "batch_size", "batch_sizes", "patch_size", "micro_batch_sizes")
POSITIVE_OPTIONS += ("num_labels", "label_length")


def main(argv: list[str] | None = None):
    """Run the benchmark of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)

    command = add_command(commands, "cost", "count parameters and multiply-accumulates", rounds=None)
    add_model_options(command)
    command.add_argument("--presets", nargs="+", choices=PRESETS, help="systems to count (default: all)")
    command.add_argument(
        "--label_length", type=int, default=cost.LABEL_LENGTH, help="tokens of a short text (default: %(default)s)"
    )

    command = add_command(commands, "model", "time embedding and training steps", rounds=7)
    add_model_options(command)
    add_device_option(command)
    command.add_argument(
        "--batch_sizes", type=int, nargs="+", default=[2], help="clips per batch, one or several sizes (default: 2)"
    )
    command.add_argument(
        "--passes", nargs="+", choices=model.PASSES, default=model.PASSES, help="what to measure (default: both)"
    )
    command.add_argument(
        "--precisions",
        nargs="+",
        choices=model.PRECISIONS,
        default=model.PRECISIONS,
        help="precisions to measure (default: all)",
    )
    command.add_argument("--compile", action="store_true", help="also measure all models with torch.compile")

    command = add_command(commands, "text", "time building a class bank", rounds=3)
    add_model_options(command)
    add_text_options(command, num_labels=400)
    add_device_option(command)

    command = add_command(commands, "decode", "time reading a file to frames and pixels", rounds=15)
    add_videos(command)
    command.add_argument("--num_frames", type=int, help="frames per clip (default: 8)")

    command = add_command(commands, "end-to-end", "time files to predictions", rounds=3)
    add_videos(command)
    add_model_options(command)
    add_text_options(command, num_labels=100)
    add_device_option(command)
    command.add_argument("--batch_size", type=int, default=8, help="clips per batch (default: %(default)s)")
    command.add_argument("--num_workers", type=int, default=1, help="decoding processes (default: %(default)s)")
    command.add_argument(
        "--mixed_precision",
        choices=["no", "bf16"],
        help="precision of ezclip (default: bf16 if its matrix products are faster)",
    )

    command = add_command(commands, "memory", "measure the peak memory of training steps", rounds=3)
    add_model_options(command)
    add_device_option(command)
    command.add_argument("--batch_size", type=int, default=16, help="videos per step (default: %(default)s)")
    command.add_argument(
        "--micro_batch_sizes", type=int, nargs="+", help="sizes to measure (default: powers of two up to the batch)"
    )
    command.add_argument("--mixed_precision", choices=["no", "bf16", "fp16"], default="no", help="(default: no)")

    args = parser.parse_args(argv)
    check(parser, args)
    try:
        if args.output_dir is not None:
            Path(args.output_dir).mkdir(parents=True, exist_ok=True)
        command = COMMANDS[args.command]
        result = command.run(args)
        report(args.command, result, command.as_text(result), args.output_dir)
    except (DataError, ModelError, VideoReadError) as error:
        parser.exit(2, f"benchmark.py: {error}\n")
    except FileExistsError:
        parser.exit(2, f"benchmark.py: --output_dir must be a folder, got the file {args.output_dir}.\n")


def add_command(commands, name: str, help: str, rounds: int | None) -> argparse.ArgumentParser:
    """Add a command with its common options."""
    command = commands.add_parser(name, help=help, description=COMMANDS[name].__doc__)
    command.add_argument("--output_dir", help="folder for the results as JSON and Markdown")
    if rounds is not None:
        command.add_argument(
            "--rounds", type=int, default=rounds, help="timed rounds after the warm-up (default: %(default)s)"
        )
    return command


def add_model_options(command: argparse.ArgumentParser):
    """Add the options that choose a model."""
    command.add_argument("--model_name_or_path", help="folder or name on the Hub (default: random weights)")
    command.add_argument("--preset", choices=PRESETS, help="published system (default: ezclip)")
    command.add_argument("--patch_size", type=int, help="patch size of a ViT-B with random weights (default: 16)")
    command.add_argument("--num_frames", type=int, help="frames per clip (default: those of the model)")


def add_text_options(command: argparse.ArgumentParser, num_labels: int):
    """Add the options that choose labels."""
    command.add_argument("--label_list", help="CSV file of labels, `id,name` (default: made-up labels)")
    command.add_argument("--num_labels", type=int, help=f"number of labels (default: the whole list, or {num_labels})")
    command.add_argument(
        "--tokenizer_name", help="folder, name on the Hub, or CLIP's BPE file (default: that of the model, or words)"
    )


def add_device_option(command: argparse.ArgumentParser):
    """Add `--use_cpu`."""
    command.add_argument("--use_cpu", action="store_true", help="use no accelerator")


def add_videos(command: argparse.ArgumentParser):
    """Add the videos to measure on."""
    command.add_argument("videos", nargs="+", metavar="VIDEO", help="video file or folder of videos")


def check(parser: argparse.ArgumentParser, args: argparse.Namespace):
    """Exit with a message if an option is out of range."""
    for name in POSITIVE_OPTIONS:
        values = getattr(args, name, None)
        for value in values if isinstance(values, list) else [values]:
            if value is not None and value < 1:
                parser.error(f"--{name} must be at least 1, got {value}.")
    if getattr(args, "num_workers", 0) < 0:
        parser.error(f"--num_workers must be at least 0, got {args.num_workers}.")
    if getattr(args, "patch_size", None) is not None and args.model_name_or_path is not None:
        parser.error("--patch_size is for random weights. Remove it, or --model_name_or_path.")
    if getattr(args, "presets", None) is not None and args.preset is not None:
        parser.error("--preset and --presets exclude each other. Give one of them.")


if __name__ == "__main__":
    main()
