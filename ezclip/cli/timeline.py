"""Find the segments of a long video, each with a start, an end, a label and a score.

    ezclip timeline film.mp4 --model_name_or_path ezclip-vit-base-patch16 \\
        --candidate_labels archery yoga --background_labels "a person talking" --output_file film.srt film.png

The command prints the segments and writes the output files. The suffix of a file selects its format: .json (with the
scores of all windows), .csv, .srt, .vtt, .png, .svg. Ctrl-C stops the search and writes the segments so far. Exit
status: 0 if the whole video was read, or its readable part with --allow_partial; 1 if the video cannot be read to its
end (the segments so far are written); 2 if an option is wrong; 130 after Ctrl-C.
"""

import argparse
import importlib.util
import os
import sys
from pathlib import Path

from ezclip.cli.limits import add_limits, read_limits
from ezclip.cli.parser import Parser, add_device
from ezclip.cli.scoring_options import add_scoring, add_steps
from ezclip.data.labels import read_class_descriptions, read_label_list, split_labels
from ezclip.errors import DataError, ModelError
from ezclip.systems.loading import load_classifier
from ezclip.timeline.frame_streams import FrameStream
from ezclip.timeline.results import Timeline, as_clock, check_output_file
from ezclip.timeline.search import find_segments
from ezclip.training.stop_signals import StopSignals
from ezclip.utils.memory import return_freed_memory
from ezclip.utils.messages import say
from ezclip.utils.tables import count_of
from pipeline_ezclip import ENSEMBLES
from video_ezclip import VideoReadError, is_url


SEARCH_OPTIONS = (
    *("window", "stride", "batch_size", "ensemble", "function_to_apply", "calibration"),
    *("smoothing", "min_score", "min_duration"),
)


def main(argv: list[str] | None = None) -> int:
    """Run `ezclip timeline`."""
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        check_options(args)
        return run(args)
    except VideoReadError as error:
        say(f"ezclip timeline: {error}", file=sys.stderr)
        if (found := getattr(error, "timeline", None)) is not None and len(found.starts):
            report(found, args)
        return 1
    except (DataError, ModelError, ValueError) as error:
        parser.exit(2, f"ezclip timeline: {error}\n")


def make_parser() -> Parser:
    """Return the parser of `ezclip timeline`."""
    parser = Parser(prog="ezclip timeline", description=__doc__)
    parser.add_argument("video", metavar="VIDEO", help="path or URL of a video file; - reads standard input")
    model = parser.add_argument_group("model")
    model.add_argument("--model_name_or_path", required=True, help="model and processor: a folder, or a Hub name")
    model.add_argument("--tokenizer_name", help="tokenizer in place of the model's")
    model.add_argument("--num_frames", type=int, help="frames per window (default: the number of the model)")
    add_device(model)
    classes = parser.add_argument_group("classes (default: the class bank beside the model)")
    classes.add_argument("--candidate_labels", nargs="+", help="class names; a single argument is split at commas")
    classes.add_argument("--label_list", help="file with class names, instead of --candidate_labels")
    classes.add_argument("--class_bank", help="folder or repository of a saved class bank")
    classes.add_argument(
        "--background_labels", nargs="+", help="labels for what the video may show besides the classes"
    )
    classes.add_argument("--templates", nargs="+", help="sentences with {} (default: the 16 published ones)")
    classes.add_argument("--class_descriptions", nargs="+", help="CSV or JSON files with texts for each class")
    add_steps(classes)
    classes.add_argument("--ensemble", choices=ENSEMBLES, default="probability", help="how to combine texts")
    search = parser.add_argument_group("search")
    search.add_argument("--window", type=float, default=2.0, help="length of a window in seconds")
    search.add_argument("--stride", type=float, default=1.0, help="seconds between two windows")
    search.add_argument("--batch_size", type=int, default=8, help="windows to classify at a time")
    search.add_argument("--smoothing", type=int, default=3, help="number of windows to average, odd")
    add_scoring(search)
    search.add_argument("--min_duration", type=float, default=0.0, help="smallest segment in seconds")
    search.add_argument(
        "--allow_partial", action="store_true", help="continue with the readable part of a damaged file"
    )
    output = parser.add_argument_group("output")
    output.add_argument("--output_file", nargs="+", default=[], help="files to write; the suffix selects the format")
    output.add_argument("--output_dir", help="folder for timeline.json, .csv, .srt, .vtt and .png")
    add_limits(parser)
    return parser


def check_options(args: argparse.Namespace):
    """Raise an error for contradictions, and for what would otherwise show only after the search."""
    if os.path.isdir(args.video) or not (args.video == "-" or is_url(args.video) or os.path.exists(args.video)):
        FrameStream(args.video)  # raises the error for a folder or a missing file
    for path in args.output_file:
        check_output_file(path)
    draws = args.output_dir or any(Path(path).suffix.lower() in (".png", ".svg") for path in args.output_file)
    if draws and importlib.util.find_spec("matplotlib") is None:
        raise DataError('A picture needs matplotlib: `pip install "ezclip[plots]"`.')
    if args.candidate_labels and args.label_list:
        raise DataError("Give either --candidate_labels or --label_list, got both.")


def run(args: argparse.Namespace) -> int:
    """Search the video and write the timeline."""
    return_freed_memory()  # long videos allocate and free pixels for hours
    classifier = load_classifier(args.model_name_or_path, args.tokenizer_name, args.num_frames, args.device)
    video = sys.stdin.buffer if args.video == "-" else args.video
    search = {name: getattr(args, name) for name in SEARCH_OPTIONS}
    with StopSignals() as signals:
        timeline = find_segments(
            classifier,
            video,
            **search,
            **class_options(args),
            allow_partial=args.allow_partial,
            limits=read_limits(args),
            should_stop=lambda: bool(signals.received),
        )
    report(timeline, args)
    return 128 + signals.received if signals.received and timeline.problem else 0


def class_options(args: argparse.Namespace) -> dict:
    """Return the options of the pipeline that choose the classes."""
    options = {
        "candidate_labels": args.candidate_labels and split_labels(args.candidate_labels),
        "background_labels": args.background_labels and split_labels(args.background_labels),
        "class_bank": args.class_bank,
        "hypothesis_template": args.templates,
        "descriptions": args.class_descriptions and read_class_descriptions(args.class_descriptions),
        "step_score": args.step_score,
        "step_contrast": args.step_contrast,
    }
    if args.label_list:
        options["candidate_labels"] = read_label_list(args.label_list)
    return options


def report(timeline: Timeline, args: argparse.Namespace):
    """Print the segments and write the output files."""
    for path in args.output_file:
        timeline.save(path)
    if args.output_dir:
        timeline.save_all(args.output_dir)
    for one in timeline.segments:
        say(f"{as_clock(one.start)}  {as_clock(one.end)}  {100 * one.score:5.1f} %  {' '.join(one.label.split())}")
    end = as_clock(timeline.ends[-1] if len(timeline.ends) else 0.0)
    numbers = count_of(len(timeline.segments), "segment"), count_of(len(timeline.starts), "window")
    say(f"{numbers[0]} in {numbers[1]}, up to {end}.", file=sys.stderr)
    if timeline.problem:
        say(f"ezclip timeline: not all of {timeline.video}: {timeline.problem}", file=sys.stderr)
