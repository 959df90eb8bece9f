"""Classify videos with your own labels.

    ezclip classify holiday/ --labels "surfing, making a cake, a dog running"
    ezclip classify "clips/*.mp4" https://example.com/clip.mp4 --labels_file labels.txt --output_file answers.csv
    find . -name "*.mov" | ezclip classify - --labels yoga archery --cache_dir cache

Videos are files, folders, patterns and URLs; - reads a list from standard input, one a line. A folder with videos is
a folder of videos; a folder with pictures only is one video, and its pictures are the frames. With --cache_dir, other
labels are answered without decoding the videos again. The suffix of --output_file selects its format: .csv, .jsonl or
.parquet, with the columns video, label, score and rank. Exit status: 0; 1 if a video could not be read; 2 if an option
is wrong; 130 after Ctrl-C (the answers so far are written).
"""

import argparse
import os
import sys
from collections.abc import Iterator
from typing import Any, cast

import torch

from configuration_ezclip import CLASS_BANK_NAME
from ezclip.classification import VideoAnswer, check_output_file, classify_videos, save_answers
from ezclip.cli.limits import add_limits, read_limits
from ezclip.cli.parser import Parser, add_device, add_dtype, add_engine
from ezclip.cli.scoring_options import add_scoring, add_steps
from ezclip.data.isolated_reader import IsolatedReader
from ezclip.data.labels import check_distinct, read_class_descriptions, read_labels, split_labels
from ezclip.data.machine_plan import plan_machine
from ezclip.data.sources import find_videos
from ezclip.errors import DataError, ModelError, first_line
from ezclip.systems.loading import load_classifier
from ezclip.utils.messages import say
from ezclip.utils.tables import count_of, first_names, name_of, score_bar, screen_width, shorten
from pipeline_ezclip import ClassBank
from processing_ezclip import EZClipProcessor
from video_ezclip import VIDEO_EXTENSIONS, check_times, describe_video, is_url


DEFAULT_MODEL = "openai/clip-vit-base-patch16"
# A class bank is made of these
TEXT_OPTIONS = ("labels", "labels_file", "descriptions", "templates", "step_score", "step_contrast")


def main(argv: list[str] | None = None) -> int:
    """Run `ezclip classify`."""
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        return run(args)
    except (DataError, ModelError, ValueError) as error:
        parser.exit(2, f"ezclip classify: {error}\n")


def make_parser() -> Parser:
    """Return the parser of `ezclip classify`."""
    parser = Parser(prog="ezclip classify", description=__doc__)
    parser.add_argument("videos", nargs="*", metavar="VIDEO", help="file, folder, pattern or URL; - reads a list")
    add_classes(parser)
    model = parser.add_argument_group("model")
    model.add_argument("--model", "--model_name_or_path", default=DEFAULT_MODEL, help="folder, or name on the Hub")
    add_device(model)
    add_dtype(model)
    add_engine(model)
    output = parser.add_argument_group("answers")
    output.add_argument("--top_k", type=int, default=5, help="number of labels for each video")
    add_scoring(output)
    output.add_argument("--output_file", help="file to write: .csv, .jsonl or .parquet")
    output.add_argument("--cache_dir", help="folder that keeps the embeddings of videos, for other labels later")
    reading = parser.add_argument_group("reading")
    reading.add_argument("--start", type=float, help="second of each video to start at")
    reading.add_argument("--end", type=float, help="second of each video to end at")
    reading.add_argument("--video_timeout", type=float, default=60.0, help="seconds after which a video is unreadable")
    reading.add_argument(
        "--num_workers",
        type=int,
        default=1,
        help="decoding processes; -1 measures this machine for a few seconds and divides its cores (default: 1)",
    )
    reading.add_argument("--allow_partial", action="store_true", help="use the readable part of damaged videos")
    add_limits(parser)
    return parser


def add_classes(parser: Parser):
    """Add the options of [`class_options`]."""
    classes = parser.add_argument_group("labels")
    classes.add_argument(
        "--labels", "--candidate_labels", nargs="+", help="any labels; a single argument is split at its commas"
    )
    classes.add_argument("--labels_file", help="file with a label a line, or a published label list (`id,name`)")
    classes.add_argument(
        "--background_labels", nargs="+", help='labels for what else a video may show; they answer "none of these"'
    )
    classes.add_argument("--class_bank", help="folder or repository of a saved class bank, instead of labels")
    classes.add_argument(
        "--descriptions", "--class_descriptions", nargs="+", help="CSV or JSON files with texts for each label"
    )
    add_steps(classes)
    classes.add_argument("--templates", nargs="+", help="sentences with {} (default: the 16 published ones)")


def run(args: argparse.Namespace) -> int:
    """Classify the videos, print a table while it grows, and write the answers."""
    if args.output_file is not None:
        check_output_file(args.output_file)
    if args.top_k < 1:
        raise DataError(f"--top_k must be at least 1, got {args.top_k}.")
    if args.num_workers != -1 and args.num_workers < 1:
        raise DataError(f"--num_workers must be at least 1, or -1 to measure this machine, got {args.num_workers}.")
    check_times(args.start, args.end)
    classes = class_options(args)
    videos = find_videos(_read_names(args.videos), keep_missing=True)
    if not videos:
        raise DataError("There are no videos. Give files, folders, patterns or URLs, before the options.")
    limits = read_limits(args)
    labels, background = names_of(classes)
    say(f"{count_of(len(videos))}, {describe_labels(labels, background)}")
    classifier = load_classifier(args.model, device=args.device, dtype=args.dtype, engine=args.engine)
    num_workers = args.num_workers
    if num_workers == -1:
        with IsolatedReader(args.video_timeout, limits=limits) as read:
            plan = plan_machine(classifier.model, cast(EZClipProcessor, classifier.processor), videos, read)
        say(plan)
        torch.set_num_threads(plan.num_threads)
        num_workers = plan.num_workers
    answers, status = [], 0
    try:
        found = classify_videos(
            classifier,
            videos,
            top_k=args.top_k,
            min_score=args.min_score,
            function_to_apply=args.function_to_apply,
            calibration=args.calibration,
            start=args.start,
            end=args.end,
            allow_partial=args.allow_partial,
            limits=limits,
            video_timeout=args.video_timeout,
            cache_dir=args.cache_dir,
            num_workers=num_workers,
            **classes,
        )
        may_be_none = background or args.min_score or args.calibration
        table = Table(videos, [*labels, *([None] if may_be_none else [])])
        for answer in found:
            if not answers:  # after the warnings about labels and model
                table.show_header()
            answers.append(answer)
            table.show(answer)
    except KeyboardInterrupt:
        say(f"ezclip classify: stopped after {len(answers)} of {len(videos)} videos.", file=sys.stderr)
        status = 130
    finally:  # nothing that was answered is lost
        if args.output_file is not None and answers:
            save_answers(answers, args.output_file)
    summarize(answers, args)
    return status or int(any(answer.error is not None for answer in answers))


def class_options(args: argparse.Namespace) -> dict:
    """Return the options of the pipeline that choose the classes."""
    if args.labels and args.labels_file:
        raise DataError("Give either --labels or --labels_file, got both.")
    for option in ("labels", "background_labels"):
        if taken := find_videos_in(getattr(args, option) or []):
            raise DataError(
                f"--{option} takes all words after it, also {taken[0]}. Give videos before it, and a file with labels "
                "as --labels_file."
            )
    labels = args.labels and split_labels(args.labels)
    if args.labels_file is not None:
        labels = read_labels(args.labels_file)
    descriptions = args.descriptions and read_class_descriptions(args.descriptions)
    bank = None
    if args.class_bank is not None:
        if others := [f"--{name}" for name in TEXT_OPTIONS if getattr(args, name) is not None]:
            raise DataError(f"--class_bank has its own labels and texts: leave {', '.join(others)} out.")
        try:
            bank = ClassBank.from_pretrained(args.class_bank)
        except (OSError, ValueError) as error:
            raise DataError(
                f"--class_bank must be a folder or repository with {CLASS_BANK_NAME}, got {args.class_bank}. "
                f"{first_line(error)}"
            ) from error
    elif not labels and not descriptions:
        raise DataError('There are no labels. Give --labels "yoga, making a cake", --labels_file or --descriptions.')
    background = args.background_labels and split_labels(args.background_labels)
    if bank is None:
        check_distinct([*(labels or descriptions), *(background or [])], "Labels must differ")
    return {
        "class_bank": bank,
        "candidate_labels": labels,
        "background_labels": background,
        "descriptions": descriptions,
        "step_score": args.step_score,
        "step_contrast": args.step_contrast,
        "hypothesis_template": args.templates,
    }


def names_of(classes: dict) -> tuple[list[str], list[str]]:
    """Return the labels and the background labels of [`class_options`]."""
    bank, background = classes["class_bank"], classes["background_labels"] or []
    if bank is not None:
        return bank.labels, background or bank.background_labels
    return classes["candidate_labels"] or list(classes["descriptions"]), background


def describe_labels(labels: list[str], background: list[str]) -> str:
    """Return how many labels there are, the first ones, and the background labels."""
    of_background = f" Background: {', '.join(background)}." if background else ""
    return f"{count_of(len(labels), 'label')}: {first_names(labels)}.{of_background}"


def find_videos_in(labels: list[str]) -> list[str]:
    """Return the words among labels that name a video."""
    has_comma = len(labels) > 1 and any("," in label for label in labels)
    return [
        label
        for label in labels
        if os.path.isfile(label)
        or is_url(label)
        or label.lower().endswith(VIDEO_EXTENSIONS)
        or (has_comma and os.path.isdir(label))
    ]


def summarize(answers: list[VideoAnswer], args: argparse.Namespace):
    """Say how many videos were answered, what could not be read and why, and where the answers are."""
    good = [answer for answer in answers if answer.error is None]
    text = f"{count_of(len(good))} classified"
    if args.cache_dir is not None:
        num_kept = sum(answer.is_kept for answer in good)
        text += f", {len(good) - num_kept} decoded, {num_kept} from {args.cache_dir}"
    say(f"{text}. Answers: {args.output_file}" if args.output_file is not None and answers else f"{text}.")
    for answer in answers:
        if answer.error is not None:
            say(f"ezclip classify: {answer.video}: {answer.error}", file=sys.stderr)
        elif answer.problem is not None:
            say(f"ezclip classify: {answer.video} was read in part: {answer.problem}", file=sys.stderr)


# ---- The table on the screen ----


class Table:
    """
    A table that is printed row by row: video, labels, scores as bars.

    Args:
        videos (`list[str]`):
            All videos: they decide the width of their column.
        labels (`list[str | None]`):
            All labels; `None` stands for the background labels.
    """

    def __init__(self, videos: list[str], labels: list[str | None]):
        self.names = dict(zip(map(describe_video, videos), short_names(videos)))
        columns = (["video", *self.names.values()], ["label", *map(name_of, labels)])
        self.widths = [max(map(screen_width, column)) for column in columns]

    def show_header(self):
        """Print the names of the columns."""
        self._say("video", "label", " score")

    def show(self, answer: VideoAnswer):
        """Print the rows of one video."""
        name = self.names[answer.video]
        if answer.error is not None:
            self._say(name, "could not be read", "")
        for one in answer.predictions:
            self._say(name, name_of(one["label"]), f"{100 * one['score']:5.1f} %", score_bar(one["score"]))
            name = ""

    def _say(self, video: str, label: str, *cells: str):
        padded = [text + " " * (width - screen_width(text)) for text, width in zip((video, label), self.widths)]
        say("  ".join([*padded, *cells]).rstrip(), flush=True)


def short_names(videos: list[str]) -> list[str]:
    """Return the names of videos without the folder that all of them share, shortened in the middle."""
    try:
        shared = "" if any(map(is_url, videos)) else os.path.commonpath(map(os.path.dirname, videos))
    except ValueError:  # absolute and relative paths, or two drives
        shared = ""
    return [shorten(os.path.relpath(video, shared) if shared else describe_video(video)) for video in videos]


def _read_names(names: list[str]) -> Iterator[str]:
    """Yield names, and the lines of standard input in place of "-"."""
    for name in names:
        if name == "-":
            lines: Any = sys.stdin
            lines.reconfigure(errors="surrogateescape")  # names of files need not be text
            yield from filter(None, (line.rstrip("\r\n") for line in lines))
        else:
            yield name
