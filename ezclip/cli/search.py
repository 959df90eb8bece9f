"""Find the moments of indexed videos that fit a text or a clip.

    ezclip search holiday_index "a person opening a door"
    ezclip search holiday_index --from_video clip.mp4 --top_k 20 --output_file hits.csv --page hits.html

The index is one of `ezclip index`, and its model is loaded by the name that it has recorded. A hit is a window of a
video: its time, its score (the cosine with the query) and its file. Of windows that overlap, only the best is a hit.
The suffix of --output_file selects its format, .csv or .jsonl. --page is an HTML file with frames of each hit. Exit
status: 0; 1 if the clip cannot be read; 2 if an option is wrong.
"""

import argparse
import sys
from importlib import import_module

from ezclip.cli.limits import add_limits, read_limits
from ezclip.cli.parser import Parser, add_device
from ezclip.errors import DataError, ModelError
from ezclip.search.hits import check_output_file, save_hits
from ezclip.search.index import ENGINES, VideoIndex
from ezclip.timeline.results import as_clock
from ezclip.utils.messages import say
from ezclip.utils.tables import as_text_table
from video_ezclip import VideoReadError, describe_video


def main(argv: list[str] | None = None) -> int:
    """Run `ezclip search`."""
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        return run(args)
    except VideoReadError as error:
        say(f"ezclip search: {error}", file=sys.stderr)
        return 1
    except (DataError, ModelError, ImportError, ValueError) as error:
        parser.exit(2, f"ezclip search: {error}\n")


def make_parser() -> Parser:
    """Return the parser of `ezclip search`."""
    parser = Parser(prog="ezclip search", description=__doc__)
    parser.add_argument("index", metavar="INDEX", help="folder of an index")
    parser.add_argument("query", nargs="?", metavar="TEXT", help="what to look for")
    parser.add_argument("--from_video", help="a clip to look for, instead of a text")
    parser.add_argument("--templates", nargs="+", default=["{}"], help="sentences with {} for the text")
    hits = parser.add_argument_group("hits")
    hits.add_argument("--top_k", type=int, default=10, help="number of hits")
    hits.add_argument("--per_video", type=int, help="largest number of hits of a video (default: no limit)")
    hits.add_argument("--output_file", help="file to write: .csv or .jsonl")
    hits.add_argument("--page", help="HTML file to write, with frames of each hit")
    hits.add_argument(
        "--engine", choices=ENGINES, default="exact", help="faiss is for millions of windows, and approximate"
    )
    model = parser.add_argument_group("model")
    model.add_argument("--model_name_or_path", help="the model of the index, if it is no longer at its recorded place")
    add_device(model)
    parser.add_argument("--video_timeout", type=float, default=60.0, help="seconds after which a clip is unreadable")
    add_limits(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Search, print the hits, and write the files."""
    if (args.query is None) == (args.from_video is None):
        raise DataError("Give either a text, in quotes, or --from_video.")
    if args.output_file is not None:
        check_output_file(args.output_file)
    if args.page is not None:
        import_module("ezclip.report")  # a package that is missing shows before the search
    index = VideoIndex.open(args.index, model_name_or_path=args.model_name_or_path, device=args.device)
    reading = {"limits": read_limits(args), "video_timeout": args.video_timeout}
    hits = index.search(
        args.query,
        args.top_k,
        video=args.from_video,
        templates=args.templates,
        per_video=args.per_video,
        engine=args.engine,
        **reading,
    )
    rows = [[f"{as_clock(hit.start)} - {as_clock(hit.end)}", f"{hit.score:.3f}", hit.video] for hit in hits]
    say(as_text_table(["time", "score", "video"], rows))
    if args.output_file is not None:
        save_hits(hits, args.output_file)
    if args.page is not None:
        from ezclip.search.page import write_page

        query = args.query if args.from_video is None else f"Like {describe_video(args.from_video)}"
        write_page(args.page, query, hits, index.folder, **reading)
    return 0
