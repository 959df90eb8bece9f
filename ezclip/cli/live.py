"""Say what a camera shows, window by window, while it runs.

    ezclip live rtsp://camera.local/stream --labels "a person walks, a car arrives" --background_labels "an empty yard"
    ezclip live /dev/video0 --labels "waving, clapping" --model ezclip-vit-base-patch16 --output_file answers.jsonl
    ezclip live http://127.0.0.1:8080/cam.ts --labels_file labels.txt --output_file - | jq .predictions[0].label

The source is an address of rtsp, rtsps, http or https, a device of Video4Linux, or a video file, which is played at
its own rate. On a terminal one line shows the newest answer; elsewhere each answer is a line. --output_file appends
each answer to a file as a line of JSON; - writes these lines to standard output instead of the others. A model that is
too slow drops windows, and its answers are not late. After a cut it connects again. Exit status: 0 at the end of a
file; 1 if the source cannot be read, or not again; 2 if an option is wrong; 130 after Ctrl-C.
"""

import argparse
import contextlib
import shutil
import sys
from dataclasses import asdict
from datetime import datetime
from typing import TextIO

from ezclip.cli.classify import DEFAULT_MODEL, add_classes, class_options, describe_labels, names_of
from ezclip.cli.limits import add_limits, read_limits
from ezclip.cli.parser import Parser, add_device, add_dtype, add_engine
from ezclip.cli.scoring_options import add_scoring
from ezclip.errors import DataError, ModelError
from ezclip.live import LiveAnswer, watch
from ezclip.live.watching import LIVE_LIMITS
from ezclip.systems.loading import load_classifier
from ezclip.training.stop_signals import StopSignals
from ezclip.utils.files import as_json_line
from ezclip.utils.messages import say
from ezclip.utils.tables import count_of, name_of, score_bar
from video_ezclip import VideoReadError, describe_video


OPTIONS = ("window", "stride", "top_k", "function_to_apply", "calibration", "min_score")


def main(argv: list[str] | None = None) -> int:
    """Run `ezclip live`."""
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        return run(args)
    except VideoReadError as error:
        say(f"ezclip live: {error}", file=sys.stderr)
        return 1
    except (DataError, ModelError, ValueError) as error:
        parser.exit(2, f"ezclip live: {error}\n")


def make_parser() -> Parser:
    """Return the parser of `ezclip live`."""
    parser = Parser(prog="ezclip live", description=__doc__)
    parser.add_argument("source", metavar="SOURCE", help="rtsp://…, http://…, /dev/video0 or a video file")
    add_classes(parser)
    model = parser.add_argument_group("model")
    model.add_argument("--model", "--model_name_or_path", default=DEFAULT_MODEL, help="folder, or name on the Hub")
    add_device(model)
    add_dtype(model)
    add_engine(model)
    answers = parser.add_argument_group("answers")
    answers.add_argument("--window", type=float, default=2.0, help="length of a window in seconds")
    answers.add_argument("--stride", type=float, default=1.0, help="seconds between two windows")
    answers.add_argument("--top_k", type=int, default=5, help="number of labels in a line of JSON")
    add_scoring(answers)
    answers.add_argument("--output_file", metavar="FILE", help="file for lines of JSON; - is standard output")
    answers.add_argument("--reconnect", type=int, default=20, help="attempts in a row to connect again after a cut")
    add_limits(parser)
    parser.set_defaults(max_download_seconds=LIVE_LIMITS.max_download_seconds)
    return parser


def run(args: argparse.Namespace) -> int:
    """Watch the source, show each answer, and write it."""
    for name in ("top_k", "reconnect"):
        if getattr(args, name) < (least := int(name == "top_k")):
            raise DataError(f"--{name} must be at least {least}, got {getattr(args, name)}.")
    classes, limits = class_options(args), read_limits(args)
    with contextlib.ExitStack() as stack:
        file = _open_output(args.output_file, stack)
        screen = Screen(sys.stderr if file is sys.stdout else sys.stdout, is_silent=file is sys.stdout)
        say(f"{describe_video(args.source)}, {describe_labels(*names_of(classes))}", file=screen.file, flush=True)
        classifier = load_classifier(args.model, device=args.device, dtype=args.dtype, engine=args.engine)
        signals = stack.enter_context(StopSignals())
        stack.callback(screen.summarize)  # also after an error
        answers = watch(
            classifier,
            args.source,
            **{name: getattr(args, name) for name in OPTIONS},
            limits=limits,
            max_reconnects=args.reconnect,
            on_notice=screen.notify,
            should_stop=lambda: bool(signals.received),
            **classes,
        )
        for answer in answers:
            screen.show(answer)
            if file is not None:
                file.write(
                    as_json_line({**asdict(answer), "time": _local_time(answer).isoformat("T", "milliseconds")})
                )
                file.flush()
    return 128 + signals.received if signals.received else 0


def _open_output(path: str | None, stack: contextlib.ExitStack) -> TextIO | None:
    if path in (None, "-"):
        return sys.stdout if path else None
    try:
        return stack.enter_context(open(path, "a", encoding="utf-8", newline="\n"))
    except OSError as error:
        raise DataError(f"--output_file {path} cannot be written ({error.strerror}). Give another path.") from error


def _local_time(answer: LiveAnswer) -> datetime:
    return datetime.fromtimestamp(answer.time).astimezone()


class Screen:
    """
    Answers for a person: one line that changes on a terminal, and a line each elsewhere.

    Args:
        file (`TextIO`):
            Where they are printed.
        is_silent (`bool`):
            Whether to print notices and the summary only.
    """

    def __init__(self, file: TextIO, is_silent: bool):
        self.file, self.is_silent, self.is_terminal = file, is_silent, file.isatty()
        self.num_answers = self.num_windows = self.num_frames = 0
        self.latencies: tuple[float, float] = (0.0, 0.0)  # sum and maximum
        self.num_connections, self.has_open_line = 0, False

    def show(self, answer: LiveAnswer):
        """Show the best label of a window."""
        self.num_answers += 1
        self.num_windows += answer.dropped_windows
        self.num_frames += answer.dropped_frames
        self.num_connections = answer.connection
        self.latencies = (self.latencies[0] + answer.latency, max(self.latencies[1], answer.latency))
        if self.is_silent:
            return
        best = answer.predictions[0]
        line = f"{_local_time(answer):%H:%M:%S}  {answer.start:.1f}-{answer.end:.1f} s  {100 * best['score']:5.1f} %  "
        line += f"{score_bar(best['score'], 10)}  {name_of(best['label'])}  (latency {answer.latency:.2f} s"
        line += f", {count_of(self.num_frames, 'frame')} dropped)" if self.num_frames else ")"
        if self.is_terminal:
            width = shutil.get_terminal_size().columns - 1
            say(f"\r{line[:width]:<{width}}", file=self.file, end="", flush=True)
            self.has_open_line = True
        else:
            say(line, file=self.file, flush=True)

    def notify(self, text: str):
        """Print a sentence about the source."""
        self._end_line()
        say(f"ezclip live: {text}", file=sys.stderr, flush=True)

    def summarize(self):
        """Print how many windows were classified and dropped, and how late the answers were."""
        self._end_line()
        if not self.num_answers:
            say("0 windows classified.", file=sys.stderr)
            return
        total, largest = self.latencies
        say(
            f"{count_of(self.num_answers, 'window')} classified, {self.num_windows} dropped with "
            f"{count_of(self.num_frames, 'frame')}; {count_of(self.num_connections, 'connection')}; latency "
            f"{total / self.num_answers:.2f} s on average, {largest:.2f} s at most.",
            file=sys.stderr,
        )

    def _end_line(self):
        if self.has_open_line:
            print(file=self.file, flush=True)
            self.has_open_line = False
