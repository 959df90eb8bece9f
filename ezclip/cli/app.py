"""A page in the browser to try a model on: drop a video or use the webcam, type labels, see bars, the timeline and
where the model looks.

    ezclip app --model_name_or_path ezclip-vit-base-patch16

Without `--model_name_or_path` it is the model of the demonstration, which needs no network. Ctrl-C ends it, and
removes what visitors have uploaded.
"""

import argparse
import importlib.util
import math
import os
import tempfile
import time
from pathlib import Path

from ezclip.cli.demo import TEMPLATE
from ezclip.cli.parser import Parser, add_device
from ezclip.errors import DataError, ModelError
from ezclip.systems.loading import load_classifier
from ezclip.training.stop_signals import StopSignals
from ezclip.utils.messages import say


DEMO_MODEL = "demo/with_temporal_prompts"
LIMITS = ("max_size_mb", "max_seconds", "max_total_mb", "max_answer_seconds")
DEMO_LABELS = "red cross moving left, red cross moving right"


def main(argv: list[str] | None = None) -> int:
    """Run `ezclip app`."""
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        check_options(args)
        return run(args)
    except (DataError, ModelError) as error:
        parser.exit(2, f"ezclip app: {error}\n")


def make_parser() -> Parser:
    """Return the parser of `ezclip app`."""
    parser = Parser(prog="ezclip app", description=__doc__)
    parser.add_argument(
        "--model_name_or_path", help=f"model and processor: a folder, or a Hub name (default: {DEMO_MODEL})"
    )
    add_device(parser)
    parser.add_argument(
        "--templates",
        nargs="+",
        help="sentences with {} (default: the 16 published ones; the demonstration's has its own)",
    )
    parser.add_argument("--max_size_mb", type=float, default=100.0, help="largest file, in MB")
    parser.add_argument("--max_seconds", type=float, default=120.0, help="longest video, in seconds")
    parser.add_argument("--max_total_mb", type=float, default=1000.0, help="all files together, in MB")
    parser.add_argument("--max_answer_seconds", type=float, default=60.0, help="time to decode and search a video")
    parser.add_argument(
        "--server_name",
        help="address to listen at; 0.0.0.0 is open to every machine that can reach this one, without a password "
        "(default: this machine only)",
    )
    parser.add_argument(
        "--root_path", help="address of the page for visitors, if it is another: behind a proxy, https://example.org"
    )
    parser.add_argument("--server_port", type=int, help="port to listen at (default: the first free one from 7860)")
    return parser


def check_options(args: argparse.Namespace):
    """Raise for errors that would show only after the model is loaded."""
    for name in LIMITS:
        if not 0.0 < (value := getattr(args, name)) < math.inf:
            raise DataError(f"--{name} must be a number above 0, got {value}.")
    if args.server_port is not None and not 0 < args.server_port < 2**16:
        raise DataError(f"--server_port must be from 1 to {2**16 - 1}, got {args.server_port}.")
    for package in ("gradio", "matplotlib"):
        if importlib.util.find_spec(package) is None:
            raise DataError(f'The page needs {package}: `pip install "ezclip[app]"`.')
    if args.model_name_or_path is None and not Path(DEMO_MODEL).is_dir():
        raise DataError(
            f"There is no {DEMO_MODEL}. Make it, without a network, with `ezclip demo "
            "--output_dir demo`, or give another model with --model_name_or_path."
        )


def is_open(server_name: str | None) -> bool:
    """Return whether other machines can reach a server at this address."""
    name = server_name or os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1"
    return name != "localhost" and not name.startswith("127.") and name != "::1"


def run(args: argparse.Namespace) -> int:
    """Load the model and serve the page."""
    name, templates, labels = args.model_name_or_path, tuple(args.templates or ()), {}
    if name is None:
        name, templates, labels = DEMO_MODEL, templates or (TEMPLATE,), {"example_labels": DEMO_LABELS}
    classifier = load_classifier(name, device=args.device)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    with tempfile.TemporaryDirectory(prefix="ezclip-app-", dir=os.environ.get("GRADIO_TEMP_DIR")) as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        # Gradio reads its environment when it is imported.
        from ezclip.app.guard import KEPT_SECONDS
        from ezclip.app.page import AppSettings, make_page, serve
        from ezclip.app.uploads import remove_old_files

        options = {"templates": templates, **labels, **{name: getattr(args, name) for name in LIMITS}}
        settings = AppSettings(**options)
        page = make_page(classifier, settings, Path(name).name, folder)
        with StopSignals() as signals:
            where = {name: getattr(args, name) for name in ("server_name", "server_port", "root_path")}
            address = serve(page, settings, folder, **where)
            say(f"The page is at {address}. Ctrl-C ends it.", flush=True)
            if is_open(args.server_name):
                say(
                    f"It listens at {args.server_name}: everyone who can reach this machine can use it and upload "
                    "files, without a password. Leave --server_name out to keep it to this machine.",
                    flush=True,
                )
            while not signals.received:
                time.sleep(0.2)
                # Uploads and pictures, and what is left of uploads that broke off
                remove_old_files(folder, KEPT_SECONDS)
        page.close()
    return 0
