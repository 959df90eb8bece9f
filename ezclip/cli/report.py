"""Show what an evaluation found as one HTML file with pictures; several side by side.

    ezclip report out
    ezclip report with without --names "with prompts" "without" --output_dir comparison

A run is a folder that run_video_zeroshot.py wrote with --do_eval or --do_predict, or a predictions.jsonl alone.
"""

import argparse
import sys

from ezclip.errors import DataError


def main(argv: list[str] | None = None):
    """Run `ezclip report`."""
    parser = argparse.ArgumentParser(
        prog="ezclip report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder with predictions.jsonl, or that file")
    parser.add_argument("--output_dir", help="folder for report.html and its pictures (default: that of a single run)")
    parser.add_argument("--names", nargs="+", help="what to call the runs (default: as their folders)")
    parser.add_argument(
        "--no_sample_frames", action="store_true", help="show no frames of videos, which may not be for everyone"
    )
    parser.add_argument(
        "--video_timeout", type=float, default=60.0, help="seconds after which reading a video is given up"
    )
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
    print(path)
