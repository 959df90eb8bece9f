"""Pictures of accuracies and scores."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from ezclip.report.drawing import DARK, LIGHT, MARKERS, MIDDLE, drawing, new_figure
from ezclip.report.measures import Calibration, ClassAccuracy
from ezclip.utils.fonts import Lettering


MOST_NAMED = 60  # the largest number of classes with a named line each
NUM_WORST, NUM_BEST = 25, 10


@drawing
def draw_class_accuracies(lettering: Lettering, classes: list[ClassAccuracy], mean: float) -> Figure:
    """
    Accuracies of classes with their intervals, the best on top: of many classes the ends by name, and a curve of all.

    Args:
        lettering ([`Lettering`]):
            Writes the names.
        classes (`list[ClassAccuracy]`):
            Those with videos.
        mean (`float`):
            Mean of their accuracies.
    """
    ranked = sorted(classes, key=lambda one: (-one.accuracy, -one.num_videos, one.index))
    if len(ranked) <= MOST_NAMED:
        figure = new_figure(7.5, 1.2 + 0.21 * len(ranked))
        _draw_rows(figure.subplots(), lettering, ranked, list(range(len(ranked))), mean)
        return figure
    figure = new_figure(10, 1.3 + 0.21 * (NUM_WORST + NUM_BEST + 1))
    left, right = figure.subplots(1, 2, width_ratios=[1, 1])
    places = np.arange(len(ranked))
    accuracies, intervals = np.array([one.accuracy for one in ranked]), np.array([one.interval for one in ranked])
    left.fill_between(places, intervals[:, 0], intervals[:, 1], color=LIGHT, linewidth=0, label="95 % interval")
    left.plot(places, accuracies, color=DARK, linewidth=1.6, label="accuracy")
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
    right.text(
        0.5,
        NUM_BEST,
        f" {len(ranked) - len(shown)} classes between ",
        ha="center",
        va="center",
        backgroundcolor="white",
    )
    return figure


def _draw_rows(axis, lettering: Lettering, classes: list[ClassAccuracy], rows: list[int], mean: float):
    accuracies, intervals = np.array([one.accuracy for one in classes]), np.array([one.interval for one in classes])
    axis.hlines(rows, intervals[:, 0], intervals[:, 1], color=MIDDLE, linewidth=2.2)
    axis.plot(accuracies, rows, "o", color=DARK, markersize=4.5)
    axis.axvline(mean, color="black", linestyle="--", linewidth=1)
    names = [f"{lettering.short(one.index)}  ({one.num_videos})" for one in classes]
    axis.set_yticks(rows, names)
    axis.set(xlim=(-0.02, 1.02), ylim=(max(rows) + 0.7, -0.7), xlabel="accuracy (class and its number of videos)")
    axis.xaxis.set_major_formatter(PercentFormatter(1))
    axis.grid(axis="x", color="0.9", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.tick_params(axis="y", length=0)


@drawing
def draw_calibration(lettering: Lettering, calibration: Calibration) -> Figure:
    """Accuracy over score, with the number of videos of each bin below."""
    figure = new_figure(5.2, 6.6)
    top, bottom = figure.subplots(2, 1, height_ratios=[3, 1], sharex=True)
    found = np.flatnonzero(calibration.counts)
    top.plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=1, label="score = accuracy")
    accuracies, confidences = calibration.accuracies[found], calibration.confidences[found]
    errors = np.abs(calibration.intervals[found] - accuracies[:, None]).T
    top.errorbar(
        confidences,
        accuracies,
        errors,
        fmt="o-",
        color=DARK,
        ecolor=MIDDLE,
        elinewidth=2,
        markersize=5,
        label="videos of a bin",
    )
    top.set(ylabel="accuracy", xlim=(0, 1), ylim=(-0.02, 1.02))
    figure.legend(loc="outside upper left", frameon=False, ncols=2)
    _draw_counts(bottom, calibration.counts)
    for axis in (top, bottom):
        axis.grid(color="0.9", linewidth=0.6)
        axis.set_axisbelow(True)
    top.yaxis.set_major_formatter(PercentFormatter(1))
    return figure


@drawing
def draw_scores(lettering: Lettering, counts: np.ndarray) -> Figure:
    """Draw the count of videos with a best score in each of B bins of equal width."""
    figure = new_figure(5.2, 2.6)
    _draw_counts(figure.subplots(), counts)
    return figure


def _draw_counts(axis, counts: np.ndarray):
    width = 1 / len(counts)
    axis.bar(np.arange(len(counts)) * width, counts, width, align="edge", color=LIGHT, edgecolor=DARK, linewidth=0.8)
    axis.set(xlabel="score of the best class", ylabel="videos", xlim=(0, 1))
    axis.yaxis.set_major_locator(MaxNLocator(4, integer=True))


@drawing
def draw_predicted(lettering: Lettering, classes: list[int], counts: list[int], num_others: int) -> Figure:
    """Draw the count of predictions of each class, in descending order."""
    figure = new_figure(7.5, 1.2 + 0.21 * len(classes))
    axis = figure.subplots()
    axis.barh(range(len(classes)), counts, color=MIDDLE, edgecolor=DARK, linewidth=0.8)
    axis.set_yticks(
        range(len(classes)), [f"{lettering.short(index)}  ({count})" for index, count in zip(classes, counts)]
    )
    axis.set(
        ylim=(len(classes) - 0.3, -0.7),
        xlabel="videos" + (f"; {num_others} more classes have fewer" if num_others else ""),
    )
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.tick_params(axis="y", length=0)
    return figure


@drawing
def draw_differences(
    lettering: Lettering, classes: list[int], accuracies: np.ndarray, names: list[str], num_videos: list[int]
) -> Figure:
    """
    Accuracies of several runs on the same classes, a line for each class.

    Args:
        lettering ([`Lettering`]):
            Writes the names.
        classes (`list[int]`):
            N classes.
        accuracies (`np.ndarray` of shape `(N, R)`):
            Those of R runs.
        names (`list[str]`):
            What the runs are called.
        num_videos (`list[int]`):
            Videos of the classes.
    """
    figure = new_figure(7.5, 1.4 + 0.16 * len(names) + 0.23 * len(classes))
    axis = figure.subplots()
    rows = np.arange(len(classes))
    axis.hlines(rows, accuracies.min(axis=1), accuracies.max(axis=1), color="0.75", linewidth=2)
    for number, name in enumerate(names):
        shade = {"color": DARK} if number % 2 == 0 else {"color": DARK, "markerfacecolor": "white"}
        marker = MARKERS[number % len(MARKERS)]
        axis.plot(accuracies[:, number], rows, marker, label=name, markersize=6, markeredgewidth=1.3, **shade)
    axis.set_yticks(rows, [f"{lettering.short(index)}  ({count})" for index, count in zip(classes, num_videos)])
    axis.set(xlim=(-0.03, 1.03), ylim=(len(classes) - 0.3, -0.7), xlabel="accuracy (class and its number of videos)")
    axis.xaxis.set_major_formatter(PercentFormatter(1))
    axis.grid(axis="x", color="0.9", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.tick_params(axis="y", length=0)
    figure.legend(loc="outside upper left", frameon=False, ncols=1)
    return figure
