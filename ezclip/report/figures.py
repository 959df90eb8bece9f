"""Plots of accuracies and scores."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from ezclip.report.drawing import DARK, LIGHT, MARKERS, MIDDLE, drawing
from ezclip.report.measures import Calibration, ClassAccuracy
from ezclip.utils.fonts import Lettering


MAX_NAMED = 60  # classes that all have a named row
NUM_WORST, NUM_BEST = 25, 10


@drawing
def draw_class_accuracies(lettering: Lettering, classes: list[ClassAccuracy], mean: float) -> Figure:
    """
    Draw accuracies with intervals, best class first. With many classes, draw a curve, and name only the two ends.

    Args:
        lettering ([`Lettering`]):
            Fonts and short forms of the class names.
        classes (`list[ClassAccuracy]`):
            Classes with videos.
        mean (`float`):
            Mean of their accuracies.
    """
    ranked = sorted(classes, key=lambda one: (-one.accuracy, -one.num_videos, one.index))
    if len(ranked) <= MAX_NAMED:
        figure = Figure(figsize=(7.5, 1.2 + 0.21 * len(ranked)))
        _draw_rows(figure.subplots(), lettering, ranked, range(len(ranked)), mean)
        return figure
    figure = Figure(figsize=(10, 1.3 + 0.21 * (NUM_WORST + NUM_BEST + 1)))
    left, right = figure.subplots(1, 2, width_ratios=[1, 1])
    ranks = np.arange(len(ranked))
    accuracies, intervals = np.array([one.accuracy for one in ranked]), np.array([one.interval for one in ranked])
    left.fill_between(ranks, intervals[:, 0], intervals[:, 1], color=LIGHT, linewidth=0, label="95 % interval")
    left.plot(ranks, accuracies, color=DARK, linewidth=1.6, label="accuracy")
    left.axhline(mean, color="black", linestyle="--", linewidth=1, label=f"mean {100 * mean:.1f} %")
    left.set(
        xlabel=f"{len(ranked)} classes, best first", ylabel="accuracy", xlim=(0, len(ranked) - 1), ylim=(-0.02, 1.02)
    )
    left.yaxis.set_major_formatter(PercentFormatter(1))
    left.legend(loc="lower left", frameon=True, framealpha=1, edgecolor="0.8")
    shown = ranked[:NUM_BEST] + ranked[-NUM_WORST:]
    rows = [*range(NUM_BEST), *range(NUM_BEST + 1, NUM_BEST + 1 + NUM_WORST)]
    _draw_rows(right, lettering, shown, rows, mean)
    right.axhline(NUM_BEST, color="0.6", linewidth=0.8, linestyle=":")
    text = f" {len(ranked) - len(shown)} classes between "
    right.text(0.5, NUM_BEST, text, ha="center", va="center", backgroundcolor="white")
    return figure


def _draw_rows(axis, lettering: Lettering, classes: list[ClassAccuracy], rows, mean: float):
    intervals = np.array([one.interval for one in classes])
    axis.hlines(rows, intervals[:, 0], intervals[:, 1], color=MIDDLE, linewidth=2.2)
    axis.plot([one.accuracy for one in classes], rows, "o", color=DARK, markersize=4.5)
    axis.axvline(mean, color="black", linestyle="--", linewidth=1)
    _name_rows(axis, lettering, rows, [(one.index, one.num_videos) for one in classes])
    _scale_accuracies(axis)


def _name_rows(axis, lettering: Lettering, rows, classes):
    """Label rows with the names of classes and their counts."""
    axis.set_yticks(rows, [f"{lettering.short(index)}  ({count})" for index, count in classes])
    axis.set_ylim(max(rows) + 0.7, -0.7)
    axis.tick_params(axis="y", length=0)


def _scale_accuracies(axis):
    axis.set(xlim=(-0.02, 1.02), xlabel="accuracy (class and its number of videos)")
    axis.xaxis.set_major_formatter(PercentFormatter(1))
    axis.grid(axis="x")


@drawing
def draw_calibration(lettering: Lettering, calibration: Calibration, is_of_pairs: bool = False) -> Figure:
    """Draw accuracy over score, with the number of videos, or of pairs of a video and a label, of each bin below."""
    figure = Figure(figsize=(5.2, 6.6))
    top, bottom = figure.subplots(2, 1, height_ratios=[3, 1], sharex=True)
    found = np.flatnonzero(calibration.counts)
    top.plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=1, label="score = accuracy")
    accuracies, confidences = calibration.accuracies[found], calibration.confidences[found]
    errors = np.abs(calibration.intervals[found] - accuracies[:, None]).T
    style = {"color": DARK, "ecolor": MIDDLE, "elinewidth": 2, "markersize": 5}
    top.errorbar(
        confidences, accuracies, errors, fmt="o-", label=f"{'pairs' if is_of_pairs else 'videos'} of a bin", **style
    )
    top.set(ylabel="accuracy", xlim=(0, 1), ylim=(-0.02, 1.02))
    top.yaxis.set_major_formatter(PercentFormatter(1))
    top.grid()
    figure.legend(loc="outside upper left", ncols=2)
    _draw_counts(bottom, calibration.counts, is_of_pairs)
    bottom.grid()
    return figure


@drawing
def draw_scores(lettering: Lettering, counts: np.ndarray) -> Figure:
    """Draw the count of videos with a best score in each of B bins of equal width."""
    figure = Figure(figsize=(5.2, 2.6))
    _draw_counts(figure.subplots(), counts)
    return figure


def _draw_counts(axis, counts: np.ndarray, is_of_pairs: bool = False):
    width = 1 / len(counts)
    axis.bar(np.arange(len(counts)) * width, counts, width, align="edge", color=LIGHT, edgecolor=DARK, linewidth=0.8)
    names = ("score of a label", "pairs") if is_of_pairs else ("score of the best class", "videos")
    axis.set(xlabel=names[0], ylabel=names[1], xlim=(0, 1))
    axis.yaxis.set_major_locator(MaxNLocator(4, integer=True))


@drawing
def draw_predicted(lettering: Lettering, classes: list[int], counts: list[int], num_others: int) -> Figure:
    """Draw the count of predictions of each class, in descending order."""
    figure = Figure(figsize=(7.5, 1.2 + 0.21 * len(classes)))
    axis = figure.subplots()
    axis.barh(range(len(classes)), counts, color=MIDDLE, edgecolor=DARK, linewidth=0.8)
    _name_rows(axis, lettering, range(len(classes)), zip(classes, counts))
    axis.set_xlabel("videos" + (f"; {num_others} more classes have fewer" if num_others else ""))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


@drawing
def draw_differences(
    lettering: Lettering, classes: list[int], accuracies: np.ndarray, names: list[str], num_videos: list[int]
) -> Figure:
    """
    Draw accuracies of several runs on the same classes, one row for each class.

    Args:
        lettering ([`Lettering`]):
            Fonts and short forms of the class names.
        classes (`list[int]`):
            Indices of N classes.
        accuracies (`np.ndarray` of shape `(N, R)`):
            Accuracies of R runs.
        names (`list[str]`):
            Names of the runs.
        num_videos (`list[int]`):
            Number of videos of each class.
    """
    figure = Figure(figsize=(7.5, 1.4 + 0.16 * len(names) + 0.23 * len(classes)))
    axis = figure.subplots()
    rows = range(len(classes))
    axis.hlines(rows, accuracies.min(axis=1), accuracies.max(axis=1), color="0.75", linewidth=2)
    for number, name in enumerate(names):
        face = DARK if number % 2 == 0 else "white"
        style = {"color": DARK, "markerfacecolor": face, "markersize": 6, "markeredgewidth": 1.3}
        axis.plot(accuracies[:, number], rows, MARKERS[number % len(MARKERS)], label=name, **style)
    _name_rows(axis, lettering, rows, zip(classes, num_videos))
    _scale_accuracies(axis)
    figure.legend(loc="outside upper left", ncols=1)
    return figure
