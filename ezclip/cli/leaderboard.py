"""Evaluate a model on video tasks of mteb, as the leaderboard MVEB does: zero-shot classification, retrieval and more.

    ezclip leaderboard --model_name_or_path ezclip-vit-base-patch16 --output_dir leaderboard \\
        --tasks HMDB51ZeroShot UCF101VideoZeroShotClassification
    ezclip leaderboard --model_name_or_path openai/clip-vit-base-patch16 --output_dir leaderboard

Needs `pip install "ezclip[mteb]"`. Data sets come from the Hub. Without --tasks it is the benchmark for models of
video and text, MVEB(text, video). Results are mteb's own files, OUTPUT_DIR/results/MODEL/REVISION/TASK.json. A task
that is there already, of the same weights, is not run again. Exit status: 0; 1 if a task failed, and the others were
run; 2 if an option is wrong.
"""

import argparse
import importlib.util
import sys
from importlib.metadata import version
from pathlib import Path

from ezclip.cli.parser import Parser, add_device, add_dtype, describe_nearest
from ezclip.errors import DataError, ModelError, first_line
from ezclip.systems.loading import load_classifier
from ezclip.utils.messages import say
from ezclip.utils.tables import as_text_table, count_of, first_names


BENCHMARK = "MVEB(text, video)"


def main(argv: list[str] | None = None) -> int:
    """Run `ezclip leaderboard`."""
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        return run(args)
    except (DataError, ModelError, ValueError) as error:
        parser.exit(2, f"ezclip leaderboard: {error}\n")


def make_parser() -> Parser:
    """Return the parser of `ezclip leaderboard`."""
    parser = Parser(prog="ezclip leaderboard", description=__doc__)
    parser.add_argument("--model_name_or_path", required=True, help="model and processor: a folder, or a Hub name")
    parser.add_argument("--tasks", nargs="+", help=f"tasks or benchmarks of mteb (default: {BENCHMARK!r})")
    parser.add_argument("--output_dir", required=True, help="folder of the results")
    parser.add_argument("--num_frames", type=int, help="frames of a video (default: the number of the model)")
    parser.add_argument("--batch_size", type=int, default=8, help="videos or texts of a batch")
    parser.add_argument("--dataloader_num_workers", type=int, default=0, help="number of decoding processes")
    add_device(parser)
    add_dtype(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Find the tasks, load the model, evaluate, and print a table of the main scores."""
    for name, least in (("batch_size", 1), ("dataloader_num_workers", 0)):
        if (value := getattr(args, name)) < least:
            raise DataError(f"--{name} must be at least {least}, got {value}.")
    if importlib.util.find_spec("mteb") is None:
        raise DataError('The leaderboard needs mteb: `pip install "ezclip[mteb]"`.')
    tasks = find_tasks(args.tasks or [BENCHMARK])
    try:
        Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"--output_dir {args.output_dir} cannot be written ({error}). Give another.") from error
    names = [task.metadata.name for task in tasks]
    say(f"{count_of(len(tasks), 'task')} of mteb {version('mteb')}: {first_names(names)}.")
    classifier = load_classifier(
        args.model_name_or_path, num_frames=args.num_frames, device=args.device, dtype=args.dtype
    )
    from ezclip.leaderboard import LeaderboardEncoder, evaluate_tasks

    encoder = LeaderboardEncoder(classifier.model, classifier.processor)
    meta = encoder.mteb_model_meta
    say(
        f"{meta.name}, revision {meta.revision}: {meta.n_parameters:,} parameters, {meta.embed_dim} dimensions, "
        f"{encoder.processor.num_frames} frames of a video, on {classifier.model.device}."
    )
    found = evaluate_tasks(encoder, tasks, args.output_dir, args.batch_size, args.dataloader_num_workers)
    rows = [[one.task_name, one.task.metadata.main_score, f"{one.get_score():.4f}"] for one in found.task_results]
    if rows:
        say(as_text_table(["task", "main score", "value"], rows))
        say(f"Results: {Path(args.output_dir, 'results', meta.model_name_as_path(), meta.revision)}")
    for failed in found.exceptions or ():
        say(f"ezclip leaderboard: {failed.task_name} failed: {first_line(failed.exception)}", file=sys.stderr)
    return int(bool(found.exceptions))


def find_tasks(names: list[str]) -> list:
    """
    Return the tasks of `mteb` with some names, each once. The name of a benchmark stands for its tasks.

    Raises:
        [`DataError`]: if there is no such task or benchmark, or a task needs more than video and text.
    """
    import mteb

    benchmarks = {name: one for one in mteb.get_benchmarks() for name in (one.name, *(one.aliases or ()))}
    found = {}
    for name in names:
        try:
            tasks = benchmarks[name].tasks if name in benchmarks else [mteb.get_task(name)]
        except KeyError as error:
            known = [task.metadata.name for task in mteb.get_tasks(modalities=["video"]) if fits(task)]
            near = describe_nearest(name, [*benchmarks, *known])
            raise DataError(f"--tasks must name tasks or benchmarks of mteb, got {name!r}{near}.") from error
        found |= {task.metadata.name: task for task in tasks}
    if unfit := [name for name, task in found.items() if not fits(task)]:
        raise DataError(
            f"--tasks must be of video alone, or of video and text. Not of these ({count_of(len(unfit), 'task')}): "
            f"{first_names(unfit)}. Leave them out, or use {BENCHMARK!r}."
        )
    return list(found.values())


def fits(task) -> bool:
    """Return whether a task of `mteb` is of video alone, or of video and text."""
    return "video" in task.metadata.modalities and {*task.metadata.modalities} <= {"video", "text"}
