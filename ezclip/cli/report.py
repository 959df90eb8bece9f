"""Write an HTML report of one or several evaluations.

    ezclip report out
    ezclip report with without --names "with prompts" "without" --output_dir comparison

A run is the output folder of `ezclip run` with --do_eval or --do_predict, or a predictions.jsonl file.
"""

import sys

from ezclip.cli.parser import Parser
from ezclip.errors import DataError
from ezclip.utils.messages import say


def main(argv: list[str] | None = None):
    """Run `ezclip report`."""
    parser = Parser(prog="ezclip report", description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder with predictions.jsonl, or that file")
    parser.add_argument("--output_dir", help="folder of the report (default: the run; required for several runs)")
    parser.add_argument("--names", nargs="+", help="names of the runs (default: their folders)")
    parser.add_argument("--no_sample_frames", action="store_true", help="show no frames of confused videos")
    parser.add_argument("--video_timeout", type=float, default=60.0, help="time limit for one video, in seconds")
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap and of the map")
    args = parser.parse_args(argv)
    try:
        from ezclip.report import write_report

        path = write_report(
            args.runs,
            args.output_dir,
            names=args.names,
            sample_frames=not args.no_sample_frames,
            video_timeout=args.video_timeout,
            seed=args.seed,
        )
    except (DataError, ImportError, ValueError) as error:
        sys.exit(f"ezclip report: {error}")
    say(path)
