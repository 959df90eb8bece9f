"""The result of a search, and its files: tables, subtitles and pictures."""

import csv
import html
import io
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from ezclip.errors import DataError
from ezclip.timeline.segments import Segment, merge_windows, smooth
from ezclip.utils.files import as_json_line, replacing
from ezclip.utils.tables import as_csv_cell
from video_ezclip import printable


FORMATS = (".json", ".csv", ".srt", ".vtt", ".png", ".svg")
MAX_ROWS = 12
MAX_NAME_LENGTH = 34
MAX_TITLE_LENGTH = 90
# SubRip has tags and no escapes, so brackets become similar characters.
SRT_LOOKALIKES = str.maketrans({"<": "‹", ">": "›", "{": "(", "}": ")"})


@dataclass
class Timeline:
    """
    The segments of a video and the scores of its windows.

    Args:
        video (`str`):
            Name of the video in errors and results.
        labels (`list[str | None]`):
            The C classes. The last is `None` ("none of these") if there are background labels.
        starts (`np.ndarray` of shape `(W,)`), ends (`np.ndarray` of shape `(W,)`):
            Start and end of the windows, in seconds from the beginning of the video.
        scores (`np.ndarray` of shape `(W, C)`):
            Probability of each class in each window, as the pipeline returns it, before smoothing.
        window (`float`), stride (`float`):
            Length of a window and distance between the starts of two windows, in seconds.
        smoothing (`int`), min_score (`float`), min_duration (`float`):
            Options of the segments; see [`find_segments`].
        problem (`str`, *optional*):
            Why the timeline does not cover the whole video; `None` if it does.
        segments (`list[Segment]`):
            Computed from the scores. Each has `start` and `end` in seconds, `label` and `score` (a probability).
    """

    video: str
    labels: list[str | None]
    starts: np.ndarray
    ends: np.ndarray
    scores: np.ndarray
    window: float
    stride: float
    smoothing: int = 3
    min_score: float = 0.0
    min_duration: float = 0.0
    problem: str | None = None
    segments: list[Segment] = field(init=False)

    def __post_init__(self):
        options = (self.smoothing, self.min_score, self.min_duration)
        check_segment_options(*options)
        self.segments = merge_windows(self.starts, self.ends, self.scores, self.labels, *options)

    @property
    def times(self) -> np.ndarray:
        """Return the middles of the windows, in seconds: `(W,)`."""
        return (self.starts + self.ends) / 2

    def resegment(self, **options) -> "Timeline":
        """Return a timeline of the same scores with other `smoothing`, `min_score` or `min_duration`."""
        return replace(self, **options)

    def to_dict(self) -> dict:
        """Return all fields in types of JSON. `scores` has a row for each window, in the order of `labels`."""
        names = ("video", "labels", "window", "stride", "smoothing", "min_score", "min_duration", "problem")
        rounded = ("starts", "ends", "scores")
        return {
            **{name: getattr(self, name) for name in names},
            "segments": [asdict(segment) for segment in self.segments],
            **{name: np.round(getattr(self, name).astype(np.float64), 6).tolist() for name in rounded},
        }

    def to_json(self) -> str:
        """Return [`~Timeline.to_dict`] as a line of JSON."""
        return as_json_line(self.to_dict())

    def to_csv(self) -> str:
        """Return the segments as CSV: `start,end,label,score`."""
        file = io.StringIO(newline="")
        writer = csv.writer(file)
        writer.writerow(["start", "end", "label", "score"])
        writer.writerows(
            [f"{s.start:.3f}", f"{s.end:.3f}", as_csv_cell(s.label), f"{s.score:.4f}"] for s in self.segments
        )
        return file.getvalue()

    def to_srt(self) -> str:
        """Return the segments as SubRip subtitles, each with its label and score. `<` and `{` become `‹` and `(`."""
        cues = _cues(self.segments, ",", lambda text: text.translate(SRT_LOOKALIKES))
        return "".join(f"{number}\n{cue}\n" for number, cue in enumerate(cues, start=1))

    def to_vtt(self) -> str:
        """Return the segments as WebVTT subtitles, each with its label and score."""
        return "\n".join(["WEBVTT\n", *_cues(self.segments, ".", lambda text: html.escape(text, quote=False))])

    def save(self, path: str | Path):
        """
        Write the timeline to a file. The suffix selects the format: `.json`, `.csv`, `.srt`, `.vtt`, `.png` or `.svg`.

        A picture has a row for each class: the smoothed scores as an area, the segments as bars below it. It shows at
        most 12 classes: first those with the longest segments, then those with the highest scores. The number of a
        label replaces it if no installed font can draw it.

        Raises:
            [`DataError`]: if the suffix is another one, the file cannot be written, or a picture has no window or no
                matplotlib.
        """
        path = Path(path)
        check_output_file(path)
        writers = {".json": self.to_json, ".csv": self.to_csv, ".srt": self.to_srt, ".vtt": self.to_vtt}
        try:
            with replacing(path) as temporary:
                if (suffix := path.suffix.lower()) not in writers:
                    _draw(self, path, temporary)
                else:
                    # newline="": CSV already has the line ends of RFC 4180.
                    temporary.write_text(writers[suffix](), encoding="utf-8", newline="")
        except OSError as error:
            raise DataError(f"{path} cannot be written ({error.strerror}). Give another path.") from error

    def save_all(self, folder: str | Path):
        """Write `timeline.json`, `.csv`, `.srt`, `.vtt` and `.png` into a folder; see [`~Timeline.save`]."""
        for suffix in (".json", ".csv", ".srt", ".vtt", ".png"):
            self.save(Path(folder) / f"timeline{suffix}")


def check_segment_options(smoothing: int, min_score: float, min_duration: float):
    """Raise [`DataError`] if an option of the segments is out of range."""
    if isinstance(smoothing, bool) or int(smoothing) != smoothing or smoothing < 1 or smoothing % 2 == 0:
        raise DataError(f"`smoothing` must be an odd number of windows (1, 3, 5, …), got {smoothing}.")
    if not 0.0 <= min_score <= 1.0:
        raise DataError(f"`min_score` must be a probability in [0, 1], got {min_score}.")
    if not 0.0 <= min_duration < math.inf:
        raise DataError(f"`min_duration` must be a number of seconds, 0 or more, got {min_duration}.")


def check_output_file(path: str | Path):
    """Raise [`DataError`] if the suffix of a file is not a format of timelines."""
    if Path(path).suffix.lower() not in FORMATS:
        raise DataError(f"The suffix of an output file must be one of {', '.join(FORMATS)}, got {path}.")


def as_clock(seconds: float, digits: int = 1, mark: str = ".") -> str:
    """Return a time as `h:mm:ss`, with `digits` decimals after `mark`."""
    whole, fraction = divmod(round(float(seconds) * 10**digits), 10**digits)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}{mark}{fraction:0{digits}d}"


def _cues(segments: list[Segment], mark: str, escape: Callable[[str], str]) -> Iterator[str]:
    """Yield the times and the text of each subtitle."""
    for segment in segments:
        start, end = (as_clock(time, 3, mark).zfill(len("00:00:00.000")) for time in (segment.start, segment.end))
        # A line break would end the text, an empty line the subtitle.
        label = escape(printable(" ".join(segment.label.split())))
        yield f"{start} --> {end}\n{label} ({100 * segment.score:.0f} %)\n"


def _draw(timeline: Timeline, path: Path, temporary: Path):
    try:
        # pyplot would look for a display.
        from matplotlib import rc_context
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter, MaxNLocator

        from ezclip.utils.fonts import Lettering
    except ImportError as error:
        raise DataError(f'{path} needs matplotlib: `pip install "ezclip[plots]"`.') from error
    if len(timeline.scores) == 0:
        raise DataError(f"{path} cannot be drawn: there is no window.")
    smoothed, columns = smooth(timeline.scores, timeline.smoothing), _columns_to_draw(timeline)
    title = Path(timeline.video).name or str(timeline.video)
    lettering = Lettering([*(label or "" for label in timeline.labels), title])
    with rc_context({"font.family": lettering.families, "svg.fonttype": "path"}):
        figure = Figure(figsize=(9.0, 1.1 + 0.62 * len(columns)), dpi=150, layout="constrained")
        axes = figure.subplots(len(columns), sharex=True, squeeze=False)[:, 0]
        for axis, column in zip(axes, columns):
            label = timeline.labels[column]
            name = "none of these" if label is None else lettering.short(column, MAX_NAME_LENGTH)
            _draw_row(axis, timeline, smoothed[:, column], label, name)
        axes[-1].xaxis.set_major_locator(MaxNLocator(nbins=9, steps=[1, 2, 3, 6, 10]))
        formatter = FuncFormatter(lambda value, _: as_clock(max(value, 0.0)).removesuffix(".0").removeprefix("0:"))
        axes[-1].xaxis.set_major_formatter(formatter)
        threshold = "; dashed: min_score" if timeline.min_score else ""
        axes[-1].set_xlabel(f"time (grey: score; black: segments{threshold})")
        title_index = len(timeline.labels)
        title = lettering.short(title_index, MAX_TITLE_LENGTH) if lettering.is_drawable(title_index) else "timeline"
        if left_out := len(timeline.labels) - len(columns):
            title += f"   (and {left_out} classes that are not drawn)"
        figure.suptitle(title, fontsize="medium", parse_math=False)
        figure.savefig(temporary, format=path.suffix[1:].lower())


def _columns_to_draw(timeline: Timeline) -> list[int]:
    seconds = dict.fromkeys(timeline.labels, 0.0)
    for segment in timeline.segments:
        seconds[segment.label] += segment.end - segment.start
    means = timeline.scores.mean(axis=0)
    order = sorted(range(len(means)), key=lambda column: (-seconds[timeline.labels[column]], -means[column]))
    return sorted(order[:MAX_ROWS])


def _draw_row(axis, timeline: Timeline, scores: np.ndarray, label: str | None, name: str):
    times = np.concatenate([timeline.starts[:1], timeline.times, timeline.ends[-1:]])
    heights = np.pad(scores, 1, mode="edge")
    axis.fill_between(times, heights, color="0.8", linewidth=0)
    axis.plot(times, heights, color="0.25", linewidth=0.7)
    own = [(one.start, one.end - one.start) for one in timeline.segments if one.label == label]
    axis.broken_barh(own, (-0.34, 0.24), facecolors="black", edgecolors="black", linewidth=0.6)
    if timeline.min_score and label is not None:
        axis.axhline(timeline.min_score, color="0.25", linewidth=0.6, linestyle=(0, (4, 3)))
    axis.set_ylim(-0.4, 1.05)
    axis.set_xlim(timeline.starts[0], timeline.ends[-1])
    axis.set_yticks([0, 1], ["0", "1"], fontsize="x-small")
    axis.spines[["top", "right"]].set_visible(False)
    style = "italic" if label is None else "normal"
    axis.set_ylabel(name, rotation=0, ha="right", va="center", labelpad=6, style=style, parse_math=False)
