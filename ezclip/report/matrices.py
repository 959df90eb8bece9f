"""Pictures of confusion matrices that stay readable with hundreds of classes."""

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter

from ezclip.report.drawing import DPI, SHADES, drawing
from ezclip.report.ordering import row_fractions
from ezclip.utils.fonts import Lettering


MAX_NAMED = 40  # classes that are drawn with names and numbers
DARK_FROM = 0.3
PIXELS_OF_A_SIDE = 1200
DIAGONAL = "#d4d4d4"
SCALE_ENDS = (0.1, 0.25, 0.5, 1)


@drawing
def draw_matrix(
    lettering: Lettering, counts: np.ndarray, classes: np.ndarray, groups: list[tuple[int, int]]
) -> Figure:
    """
    Draw a confusion matrix.

    Args:
        lettering ([`Lettering`]):
            Fonts and short forms of the class names.
        counts (`np.ndarray` of shape `(N, N)`):
            Number of videos of each class (rows) that are predicted as each class (columns).
        classes (`np.ndarray` of shape `(N,)`):
            Indices of the classes.
        groups (`list[tuple[int, int]]`):
            First position and position after the last of the groups to mark in a large matrix.
    """
    if len(counts) > MAX_NAMED:
        return _draw_large(row_fractions(counts), groups)
    side = 0.32 * len(counts)
    figure = Figure(figsize=(3.2 + side, 2.6 + side))
    axis = figure.subplots()
    image = _draw_cells(axis, lettering, counts, row_fractions(counts), classes)
    _draw_scale(figure.colorbar(image, ax=axis, shrink=0.7, pad=0.02))
    return figure


def _draw_large(fractions: np.ndarray, groups: list[tuple[int, int]]) -> Figure:
    """Draw only the confusions: a dark diagonal would hide the cells beside it."""
    size = len(fractions)
    # Every cell has the same number of pixels; otherwise thin lines disappear.
    side = size * max(1, round(PIXELS_OF_A_SIDE / size)) / DPI
    width, height = side + 2.2, side + 1.0
    figure = Figure(figsize=(width, height))
    figure.set_layout_engine("none")
    axis = figure.add_axes((0.7 / width, 0.6 / height, side / width, side / height))
    shown = np.ma.masked_array(fractions, np.eye(size, dtype=bool))
    largest = next(step for step in SCALE_ENDS if step >= shown.max())
    image = axis.imshow(
        shown,
        cmap=SHADES.with_extremes(bad=DIAGONAL),
        norm=PowerNorm(0.5, 0, largest),
        aspect="auto",
        interpolation="nearest",
        extent=(0.5, size + 0.5, size + 0.5, 0.5),  # positions start at 1
    )
    # The numbers of neighbouring groups are on different sides.
    for turn, ((start, end), number) in enumerate(sorted(zip(groups, range(1, len(groups) + 1)))):
        axis.add_patch(Rectangle((start + 0.5, start + 0.5), end - start, end - start, fill=False, linewidth=1.2))
        is_above = turn % 2 == 0
        axis.annotate(
            f"{number}",
            (end + 0.5, start + 0.5) if is_above else (start + 0.5, end + 0.5),
            xytext=(11, 7) if is_above else (-11, -7),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=10,
            fontweight="bold",
            bbox={"boxstyle": "circle,pad=0.15", "facecolor": "white", "edgecolor": "black", "linewidth": 0.8},
        )
    axis.set(xlabel=f"predicted class: position among {size}", ylabel="true class: position in the same order")
    axis.spines[:].set_visible(True)
    bar = figure.add_axes(((0.7 + side + 0.3) / width, 0.6 / height, 0.18 / width, min(side, 3.5) / height))
    _draw_scale(figure.colorbar(image, cax=bar))
    return figure


def _draw_scale(bar):
    bar.set_ticks([tick for tick in (0, 0.01, 0.05, 0.1, 0.25, 0.5, 1) if tick <= bar.norm.vmax])
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1))
    bar.set_label("fraction of the row's videos")


@drawing
def draw_groups(
    lettering: Lettering, counts: np.ndarray, classes: np.ndarray, groups: list[tuple[int, int]]
) -> Figure:
    """Draw the groups of a matrix enlarged, with names and numbers; see [`draw_matrix`]."""
    fractions = row_fractions(counts)
    columns = min(2, len(groups))
    rows = -(-len(groups) // columns)
    largest = max(end - start for start, end in groups)
    side = 1.9 + 0.29 * max(largest, 5)
    figure = Figure(figsize=((side + 0.7) * columns, (side + 0.2) * rows))
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for number, (axis, (start, end)) in enumerate(zip(axes, groups), 1):
        part = slice(start, end)
        _draw_cells(axis, lettering, counts[part, part], fractions[part, part], classes[part], 20)
        axis.set_title(f"{number}", fontweight="bold", loc="left")
    for axis in axes[len(groups) :]:
        axis.remove()
    return figure


def _draw_cells(axis, lettering: Lettering, counts, fractions, classes, length: int = 28):
    image = axis.imshow(fractions, cmap=SHADES, norm=PowerNorm(0.5, 0, 1))  # small fractions are visible
    for row, column in zip(*np.nonzero(counts)):
        color = "white" if fractions[row, column] > DARK_FROM else "black"
        axis.text(column, row, f"{counts[row, column]}", ha="center", va="center", color=color, fontsize=7)
    names = [lettering.short(index, length) for index in classes]
    axis.set_xticks(range(len(names)), names, rotation=90)
    axis.set_yticks(range(len(names)), names)
    axis.set(xlabel="predicted class", ylabel="true class")
    axis.set_xticks(np.arange(len(names) - 1) + 0.5, minor=True)
    axis.set_yticks(np.arange(len(names) - 1) + 0.5, minor=True)
    axis.grid(which="minor", color="0.85", linewidth=0.5)
    axis.tick_params(which="both", length=0)
    axis.spines[:].set_visible(True)
    return image
