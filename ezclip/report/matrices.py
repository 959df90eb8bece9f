"""Pictures of confusion matrices that stay readable with hundreds of classes."""

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter

from ezclip.report.drawing import DPI, SHADES, drawing, new_figure
from ezclip.report.ordering import ClassOrder, row_parts
from ezclip.utils.fonts import Lettering


# The largest number of classes that are drawn with names and numbers
MOST_NAMED = 40
# Small parts are to be seen too
SCALE = {"cmap": SHADES, "norm": PowerNorm(0.5, 0, 1)}
DARK_FROM = 0.3
PIXELS_OF_A_SIDE = 1200
DIAGONAL = "#d4d4d4"
SCALE_ENDS = (0.1, 0.25, 0.5, 1)


@drawing
def draw_matrix(lettering: Lettering, counts: np.ndarray, classes: np.ndarray, order: ClassOrder) -> Figure:
    """
    Draw the matrix of all classes, in an order.

    Args:
        lettering ([`Lettering`]):
            Writes the names.
        counts (`np.ndarray` of shape `(N, N)`):
            Videos of each class (rows) that are taken for each class (columns).
        classes (`np.ndarray` of shape `(N,)`):
            Which classes these are.
        order ([`ClassOrder`]):
            Their order, and the groups to point at.
    """
    counts = counts[np.ix_(order.order, order.order)]
    parts = row_parts(counts)
    if len(counts) <= MOST_NAMED:
        side = 0.32 * len(counts)
        figure = new_figure(3.2 + side, 2.6 + side)
        axis = figure.subplots()
        image = _draw_cells(axis, lettering, counts, parts, classes[order.order])
        _draw_scale(figure.colorbar(image, ax=axis, shrink=0.7, pad=0.02))
    else:
        figure = _draw_large(parts, order.groups)
    return figure


def _draw_large(parts: np.ndarray, groups: list[tuple[int, int]]) -> Figure:
    """Confusions alone, by place: a diagonal that is dark all along would hide those beside it."""
    size = len(parts)
    # Every cell has the same number of pixels; otherwise thin lines disappear.
    side = size * max(1, round(PIXELS_OF_A_SIDE / size)) / DPI
    width, height = side + 2.2, side + 1.0
    figure = Figure(figsize=(width, height))
    axis = figure.add_axes((0.7 / width, 0.6 / height, side / width, side / height))
    shown = np.ma.masked_array(parts, np.eye(size, dtype=bool))
    largest = next(step for step in SCALE_ENDS if step >= shown.max())
    image = axis.imshow(
        shown,
        cmap=SHADES.with_extremes(bad=DIAGONAL),
        norm=PowerNorm(0.5, 0, largest),
        aspect="auto",
        interpolation="nearest",
        extent=(0.5, size + 0.5, size + 0.5, 0.5),  # places from 1
    )
    # Neighbours have their numbers on different sides.
    for turn, number in enumerate(sorted(range(len(groups)), key=lambda number: groups[number])):
        start, end = groups[number]
        axis.add_patch(Rectangle((start + 0.5, start + 0.5), end - start, end - start, fill=False, linewidth=1.2))
        place = (end + 0.5, start + 0.5) if turn % 2 == 0 else (start + 0.5, end + 0.5)
        axis.annotate(
            f"{number + 1}",
            place,
            xytext=(11, 7) if turn % 2 == 0 else (-11, -7),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=10,
            fontweight="bold",
            bbox={"boxstyle": "circle,pad=0.15", "facecolor": "white", "edgecolor": "black", "linewidth": 0.8},
        )
    axis.set(xlabel=f"taken for: place of {size} classes", ylabel="is: place in the same order")
    axis.spines[:].set_visible(True)
    bar = figure.add_axes(((0.7 + side + 0.3) / width, 0.6 / height, 0.18 / width, min(side, 3.5) / height))
    _draw_scale(figure.colorbar(image, cax=bar))
    return figure


def _draw_scale(bar):
    bar.set_ticks([tick for tick in (0, 0.01, 0.05, 0.1, 0.25, 0.5, 1) if tick <= bar.norm.vmax])
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1))
    bar.set_label("part of the row's videos")


@drawing
def draw_groups(lettering: Lettering, counts: np.ndarray, classes: np.ndarray, order: ClassOrder) -> Figure:
    """Draw the groups of an order enlarged, with names and numbers; see [`draw_matrix`]."""
    counts = counts[np.ix_(order.order, order.order)]
    parts, ordered = row_parts(counts), classes[order.order]
    columns = 2 if len(order.groups) > 1 else 1
    rows = -(-len(order.groups) // columns)
    largest = max(end - start for start, end in order.groups)
    side = 1.9 + 0.29 * max(largest, 5)
    figure = new_figure((side + 0.7) * columns, (side + 0.2) * rows)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for number, (axis, (start, end)) in enumerate(zip(axes, order.groups), 1):
        place = slice(start, end)
        _draw_cells(axis, lettering, counts[place, place], parts[place, place], ordered[place], 20)
        axis.set_title(f"{number}", fontweight="bold", loc="left")
    for axis in axes[len(order.groups) :]:
        axis.remove()
    return figure


def _draw_cells(axis, lettering: Lettering, counts, parts, classes, length: int = 28):
    image = axis.imshow(parts, **SCALE)
    for row, column in zip(*np.nonzero(counts)):
        color = "white" if parts[row, column] > DARK_FROM else "black"
        axis.text(column, row, f"{counts[row, column]}", ha="center", va="center", color=color, fontsize=7)
    names = [lettering.short(index, length) for index in classes]
    axis.set_xticks(range(len(names)), names, rotation=90)
    axis.set_yticks(range(len(names)), names)
    axis.set(xlabel="taken for", ylabel="is")
    axis.set_xticks(np.arange(len(names) - 1) + 0.5, minor=True)
    axis.set_yticks(np.arange(len(names) - 1) + 0.5, minor=True)
    axis.grid(which="minor", color="0.85", linewidth=0.5)
    axis.tick_params(which="both", length=0)
    axis.spines[:].set_visible(True)
    return image
