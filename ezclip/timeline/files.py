"""Timelines as files: tables, subtitles, a picture."""

import csv
import html
import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ezclip.errors import DataError
from ezclip.timeline.segments import Segment, smooth
from ezclip.utils.files import replacing


if TYPE_CHECKING:
    from ezclip.timeline.search import Timeline

FORMATS = (".json", ".csv", ".srt", ".vtt", ".png", ".svg")
MAX_ROWS = 12
# SubRip has tags and no escapes.
SRT_LOOKALIKES = str.maketrans({"<": "‹", ">": "›", "{": "(", "}": ")"})


def as_csv(segments: list[Segment]) -> str:
    """`start,end,label,score`, a row for each segment."""
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(["start", "end", "label", "score"])
    writer.writerows([f"{one.start:.3f}", f"{one.end:.3f}", one.label, f"{one.score:.4f}"] for one in segments)
    return file.getvalue()


def as_srt(segments: list[Segment]) -> str:
    """SubRip subtitles. It has tags and no escapes: brackets are written as others that look like them."""
    return "".join(
        f"{number}\n{clock(one.start, ',')} --> {clock(one.end, ',')}\n{_caption(one).translate(SRT_LOOKALIKES)}\n\n"
        for number, one in enumerate(segments, start=1)
    )


def as_vtt(segments: list[Segment]) -> str:
    """WebVTT subtitles."""
    cues = [
        f"{clock(one.start, '.')} --> {clock(one.end, '.')}\n{html.escape(_caption(one), quote=False)}\n"
        for one in segments
    ]
    return "\n".join(["WEBVTT\n", *cues])


def clock(seconds: float, mark: str) -> str:
    """`hh:mm:ss` and milliseconds after `mark`."""
    milliseconds = round(seconds * 1000)
    hours, rest = divmod(milliseconds, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{hours:02d}:{minutes:02d}:{rest // 1000:02d}{mark}{rest % 1000:03d}"


def _caption(segment: Segment) -> str:
    # A line break would end the text, an empty line the subtitle.
    return f"{' '.join(segment.label.split())} ({100 * segment.score:.0f} %)"


def draw(timeline: "Timeline", path: str | Path):
    """
    Draw a row for each class, the smoothed scores as an area and the segments as bars under it.

    Of more than 12 classes those with the longest segments have rows, then those with the highest scores.

    Args:
        timeline ([`Timeline`]):
            What to draw.
        path (`str` or `Path`):
            The file to write, `.png` or `.svg`.

    Raises:
        [`DataError`]: if matplotlib is not installed, or there is no window.
    """
    try:
        # Without pyplot, no display is looked for.
        from matplotlib import rc_context
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter, MaxNLocator

        from ezclip.utils.fonts import Lettering
    except ImportError as error:
        raise DataError(f'{path} needs matplotlib: `pip install "ezclip[plots]"`.') from error
    if len(timeline.scores) == 0:
        raise DataError(f"{path} cannot be drawn: there is no window.")
    smoothed, columns = smooth(timeline.scores, timeline.smoothing), rows_to_draw(timeline)
    title = Path(timeline.video).name or str(timeline.video)
    lettering = Lettering([*(label or "" for label in timeline.labels), title])
    with rc_context({"font.family": lettering.families, "svg.fonttype": "path"}):
        figure = Figure(figsize=(9.0, 1.1 + 0.62 * len(columns)), dpi=150, layout="constrained")
        axes = figure.subplots(len(columns), sharex=True, squeeze=False)[:, 0]
        for axis, column in zip(axes, columns):
            label = timeline.labels[column]
            name = "none of these" if label is None else lettering.short(column, 34)
            _draw_row(axis, timeline, smoothed[:, column], label, name)
        axes[-1].xaxis.set_major_locator(MaxNLocator(nbins=9, steps=[1, 2, 3, 6, 10]))
        axes[-1].xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short_clock(value)))
        threshold = "; dashed: least score" if timeline.min_score else ""
        axes[-1].set_xlabel(f"time (grey: score; black: segments{threshold})")
        number = len(timeline.labels)  # of the title among the names
        title = lettering.short(number, 90) if lettering.is_drawable(number) else "timeline"
        left_out = len(timeline.labels) - len(columns)
        if left_out:
            title += f"   (and {left_out} classes that are not drawn)"
        figure.suptitle(title, fontsize="medium", parse_math=False)
        with replacing(path) as temporary:
            figure.savefig(temporary, format=Path(path).suffix[1:].lower())


def rows_to_draw(timeline: "Timeline") -> list[int]:
    """Return the columns that have a row in the picture, in the order of the labels."""
    seconds = dict.fromkeys(timeline.labels, 0.0)
    for one in timeline.segments:
        seconds[one.label] += one.end - one.start
    means = timeline.scores.mean(axis=0)
    order = sorted(range(len(means)), key=lambda column: (-seconds[timeline.labels[column]], -means[column]))
    return sorted(order[:MAX_ROWS])


def _draw_row(axis, timeline: "Timeline", scores: np.ndarray, label: str | None, name: str):
    times = np.concatenate([timeline.starts[:1], timeline.times, timeline.ends[-1:]])
    heights = np.concatenate([scores[:1], scores, scores[-1:]])
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


def _short_clock(seconds: float) -> str:
    minutes, rest = divmod(max(seconds, 0.0), 60)
    hours, minutes = divmod(int(minutes), 60)
    text = f"{rest:04.1f}" if abs(rest - round(rest)) > 1e-3 else f"{round(rest):02d}"
    return f"{hours}:{minutes:02d}:{text}" if hours else f"{minutes}:{text}"
