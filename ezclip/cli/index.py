"""Index the moments of all videos of a folder, so that `ezclip search` finds them.

    ezclip index holiday --output_dir holiday_index
    torchrun --nproc_per_node 4 -m ezclip index films --output_dir films_index --window 4 --stride 2

Each video is cut into windows, and each window gets a vector. Run the same command again when files came, went, moved
or changed: only files with a new content are read. A run that was killed resumes. The second run takes model, window
and stride from the index. Exit status: 0; 1 if a video could not be read (bad_videos.jsonl names it, the others are
indexed); 2 if an option is wrong; 130 after Ctrl-C.
"""

import argparse
import contextlib
import os
import sys

import torch
from accelerate import PartialState

from ezclip.cli.classify import DEFAULT_MODEL
from ezclip.cli.limits import add_limits, read_limits
from ezclip.cli.parser import Parser, add_device, add_dtype, add_engine, add_executor
from ezclip.data.isolated_reader import IsolatedReader
from ezclip.errors import DataError, ModelError
from ezclip.search.building import LONGEST_READ, IndexCounts, build_index, read_settings
from ezclip.systems.loading import load_classifier
from ezclip.utils.memory import return_freed_memory
from ezclip.utils.messages import is_first_process, say
from ezclip.utils.ray_stages import RayStages, require_ray
from ezclip.utils.tables import count_of


WINDOW, STRIDE = 2.0, 1.0


def main(argv: list[str] | None = None) -> int:
    """Run `ezclip index`."""
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        return run(args)
    except (DataError, ModelError, ValueError) as error:
        parser.exit(2, f"ezclip index: {error}\n" if is_first_process() else None)


def make_parser() -> Parser:
    """Return the parser of `ezclip index`."""
    parser = Parser(prog="ezclip index", description=__doc__)
    parser.add_argument("folder", metavar="FOLDER", help="folder of videos, at any depth")
    parser.add_argument("--output_dir", required=True, help="folder of the index")
    parser.add_argument("--overwrite_output_dir", action="store_true", help="remove the index that is there")
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model_name_or_path", help=f"folder, or name on the Hub (default: that of the index, or {DEFAULT_MODEL})"
    )
    model.add_argument("--num_frames", type=int, help="frames per window (default: the number of the model)")
    add_device(model)
    add_dtype(model)
    add_engine(model)
    windows = parser.add_argument_group("windows")
    windows.add_argument("--window", type=float, help=f"length in seconds (default: that of the index, or {WINDOW:g})")
    windows.add_argument(
        "--stride", type=float, help=f"seconds between two windows (default: that of the index, or {STRIDE:g})"
    )
    windows.add_argument("--batch_size", type=int, default=8, help="windows of a video to embed at a time")
    reading = parser.add_argument_group("reading")
    reading.add_argument(
        "--video_timeout",
        type=float,
        default=LONGEST_READ,
        help="seconds after which a video is unreadable",
    )
    reading.add_argument("--allow_partial", action="store_true", help="index the readable part of damaged videos")
    add_limits(parser)
    add_executor(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Index the folder, and say before and after the work what it is."""
    return_freed_memory()  # long videos allocate and free pixels for hours
    if not os.path.isdir(args.folder):
        raise DataError(f"{args.folder} is not a folder.")
    if args.executor == "ray":
        require_ray()
    saved = {} if args.overwrite_output_dir else read_settings(args.output_dir) or {}
    made_with = saved.get("made_with", {})
    state = None
    if "LOCAL_RANK" in os.environ:  # a launcher's
        state = PartialState(cpu=args.device == "cpu" or not torch.accelerator.is_available())
    model = saved.get("model_name_or_path", DEFAULT_MODEL)
    is_saved = args.model_name_or_path in (None, model)
    engine = args.engine or (saved.get("engine") if is_saved else None)
    classifier = load_classifier(
        args.model_name_or_path or model,
        num_frames=args.num_frames or saved.get("num_frames"),
        device=args.device if state is None or engine else str(state.device),
        dtype=args.dtype if engine else args.dtype or saved.get("dtype"),
        engine=engine,
    )
    use_gpus = args.device != "cpu" and engine is None
    with RayStages(use_gpus=use_gpus) if args.executor == "ray" else contextlib.nullcontext() as cluster:
        counts = build_index(
            classifier,
            args.folder,
            args.output_dir,
            window=made_with.get("window", WINDOW) if args.window is None else args.window,
            stride=made_with.get("stride", STRIDE) if args.stride is None else args.stride,
            batch_size=args.batch_size,
            allow_partial=args.allow_partial,
            limits=read_limits(args),
            reader=IsolatedReader(args.video_timeout),
            overwrite=args.overwrite_output_dir,
            state=state,
            on_plan=lambda counts: say(describe_plan(counts, args.folder), flush=True),
            cluster=cluster,
        )
    if is_first_process():
        say(
            f"{count_of(counts.num_windows, 'window')} of {count_of(counts.num_videos - len(counts.bad_videos))}: "
            f"{args.output_dir}"
        )
        for path, reason in counts.bad_videos.items():
            say(f"ezclip index: {path}: {reason}", file=sys.stderr)
        for path, reason in counts.partial_videos.items():
            say(f"ezclip index: {path} was read in part: {reason}", file=sys.stderr)
    return int(bool(counts.bad_videos))


def describe_plan(counts: IndexCounts, folder: str) -> str:
    """Return what is to be done."""
    text = f"{count_of(counts.num_videos)} in {folder}, {counts.num_new} to read"
    return f"{text}, {counts.num_dropped} of the earlier index gone." if counts.num_dropped else f"{text}."
