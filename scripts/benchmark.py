#!/usr/bin/env python
"""How fast ezclip is, next to what else does the same on the same machine in the same run.

    python scripts/benchmark.py cost --output_dir benchmark
    python scripts/benchmark.py model --batch_sizes 2 8 --output_dir benchmark
    python scripts/benchmark.py text --tokenizer_name openai/clip-vit-base-patch16 --output_dir benchmark
    python scripts/benchmark.py decode VIDEO_OR_FOLDER [...] --output_dir benchmark
    python scripts/benchmark.py end-to-end VIDEO_OR_FOLDER [...] --output_dir benchmark
    python scripts/benchmark.py memory --batch_size 8 --output_dir benchmark

`cost` counts parameters, and multiply-accumulates with those of attention, of the published systems, CLIP and X-CLIP.

`model` embeds clips and takes training steps, next to transformers' `CLIPVisionModel` on the same frames, which has no
time, and `XCLIPModel` of the same size.

`text` makes a class bank, next to prompts that are all padded to what the text tower reads.

`decode` goes from a video file to frames, and to the pixels that a model takes, on one core: ezclip, transformers'
`load_video` with CLIP's image processor, a plain sequential read with PyAV, and decord by index.

`end-to-end` goes from files to predictions on the disk, next to a loop of PyAV, CLIP's image processor and the same
model in float32.

`memory` takes training steps of one batch with all weights trained, and in micro-batches of several sizes, each in a
process of its own, and gives the most memory that each had, and its time.

All contenders of a command take turns, round by round in one process, so that a machine whose speed drifts treats them
alike. Beside models the product of matrices takes its turn, too: its rate is what the machine can do, and times of
models are given as a share of it. Ratios and shares are worth more than times, which belong to the machine.

Models have random weights, or those of `--model_name_or_path`. The number of threads is that of OMP_NUM_THREADS.
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
AT_LEAST_ONE = (
    *("rounds", "num_frames", "batch_size", "batch_sizes", "patch_size", "micro_batch_sizes", "num_labels"),
    "label_length",
)


def main(argv: list[str] | None = None):
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)

    command = add_command(commands, "cost", "parameters and multiply-accumulates", rounds=None)
    add_model_options(command)
    command.add_argument("--presets", nargs="+", choices=PRESETS, help="systems to count (default: all)")
    command.add_argument(
        "--label_length", type=int, default=cost.LABEL_LENGTH, help="tokens of a label's text (default: %(default)s)"
    )

    command = add_command(commands, "model", "embedding clips, and training steps", rounds=7)
    add_model_options(command)
    add_device_option(command)
    command.add_argument(
        "--batch_sizes", type=int, nargs="+", default=[2], help="clips of a batch, one or several (default: 2)"
    )
    command.add_argument(
        "--passes", nargs="+", choices=model.PASSES, default=model.PASSES, help="what to measure (default: both)"
    )
    command.add_argument(
        "--precisions", nargs="+", choices=model.PRECISIONS, default=model.PRECISIONS, help="(default: all)"
    )
    command.add_argument("--compile", action="store_true", help="measure all models with torch.compile, too")

    command = add_command(commands, "text", "the class bank", rounds=3)
    add_model_options(command)
    add_text_options(command, num_labels=400)
    add_device_option(command)

    command = add_command(commands, "decode", "from file to frames and pixels", rounds=15)
    add_videos(command)
    command.add_argument("--num_frames", type=int, help="frames of a clip (default: 8)")

    command = add_command(commands, "end-to-end", "from files to predictions", rounds=3)
    add_videos(command)
    add_model_options(command)
    add_text_options(command, num_labels=100)
    add_device_option(command)
    command.add_argument("--batch_size", type=int, default=8, help="clips of a batch (default: %(default)s)")
    command.add_argument("--num_workers", type=int, default=1, help="processes that decode (default: %(default)s)")
    command.add_argument(
        "--mixed_precision", choices=["no", "bf16"], help="ours (default: bf16 where its matrix product is faster)"
    )

    command = add_command(commands, "memory", "peak memory of training steps", rounds=3)
    add_model_options(command)
    add_device_option(command)
    command.add_argument("--batch_size", type=int, default=16, help="videos of a step (default: %(default)s)")
    command.add_argument(
        "--micro_batch_sizes", type=int, nargs="+", help="sizes to measure (default: powers of two up to the batch)"
    )
    command.add_argument("--mixed_precision", choices=["no", "bf16", "fp16"], default="no", help="of the computation")

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
        parser.exit(2, f"benchmark.py: --output_dir {args.output_dir} is a file. Give a folder.\n")


def add_command(commands, name: str, help: str, rounds: int | None) -> argparse.ArgumentParser:
    """Add a command with its common options."""
    command = commands.add_parser(name, help=help, description=COMMANDS[name].__doc__)
    command.add_argument("--output_dir", help="folder for the results as JSON and Markdown")
    if rounds is not None:
        command.add_argument(
            "--rounds", type=int, default=rounds, help="rounds that are counted (default: %(default)s)"
        )
    return command


def add_model_options(command: argparse.ArgumentParser):
    """Add the options that choose a model."""
    command.add_argument("--model_name_or_path", help="a folder or a name on the Hub (default: random weights)")
    command.add_argument("--preset", choices=PRESETS, help="published system (default: ezclip)")
    command.add_argument("--patch_size", type=int, help="of a ViT-B with random weights (default: 16)")
    command.add_argument("--num_frames", type=int, help="frames of a clip (default: those of the model)")


def add_text_options(command: argparse.ArgumentParser, num_labels: int):
    """Add the options that choose labels."""
    command.add_argument("--label_list", help="file with labels, `id,name` (default: made-up ones)")
    command.add_argument("--num_labels", type=int, help=f"how many (default: all of the list, or {num_labels})")
    command.add_argument(
        "--tokenizer_name", help="folder, Hub name, or CLIP's file of merges (default: the model's, or of words)"
    )


def add_device_option(command: argparse.ArgumentParser):
    """Add `--use_cpu`."""
    command.add_argument("--use_cpu", action="store_true", help="do not use an accelerator")


def add_videos(command: argparse.ArgumentParser):
    """Add the videos to measure on."""
    command.add_argument("videos", nargs="+", metavar="VIDEO", help="video file, or folder of videos")


def check(parser: argparse.ArgumentParser, args: argparse.Namespace):
    """Exit with a message if an option is out of range."""
    for name in AT_LEAST_ONE:
        values = getattr(args, name, None)
        for value in values if isinstance(values, list) else [values]:
            if value is not None and value < 1:
                parser.error(f"--{name} must be at least 1, got {value}.")
    if getattr(args, "num_workers", 0) < 0:
        parser.error(f"--num_workers must be at least 0, got {args.num_workers}.")
    if getattr(args, "patch_size", None) is not None and args.model_name_or_path is not None:
        parser.error("--patch_size is for random weights; --model_name_or_path has one of its own.")
    if getattr(args, "presets", None) is not None and args.preset is not None:
        parser.error("--preset and --presets say the same; give one of them.")


if __name__ == "__main__":
    main()
