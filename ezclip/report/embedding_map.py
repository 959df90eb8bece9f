"""Embeddings of videos as a map."""

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from ezclip.report.drawing import DARK, LIGHT, MARKERS, MIDDLE, drawing, new_figure
from ezclip.utils.fonts import Lettering


LEAST_VIDEOS = 5
MOST_VIDEOS = 3000  # t-SNE of these takes 20 seconds on one core
MOST_MARKED = 8  # classes that markers can tell apart
MOST_NAMED = 60


def project(embeds: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """
    Places of videos on a map by t-SNE, which keeps neighbours together.

    Args:
        embeds (`np.ndarray` of shape `(n, D)`):
            Embeddings of length 1, of at least 5 videos.
        seed (`int`, *optional*, defaults to 0):
            Seed of everything random.

    Returns:
        `tuple`: which videos are on the map, `(m,)`: all of them, or as many drawn as it can take; and their places,
        `(m, 2)`.
    """
    from sklearn.manifold import TSNE

    shown = np.arange(len(embeds))
    if len(shown) > MOST_VIDEOS:
        shown = np.sort(np.random.default_rng(seed).choice(shown, MOST_VIDEOS, replace=False))
    perplexity = min(30.0, (len(shown) - 1) / 3)
    # PCA needs two directions; equal embeddings have none.
    init = "pca" if np.linalg.matrix_rank(embeds[shown] - embeds[shown].mean(axis=0)) > 1 else "random"
    mapped = TSNE(perplexity=perplexity, init=init, random_state=seed).fit_transform(embeds[shown].astype(np.float32))
    return shown, mapped


@drawing
def draw_map(
    lettering: Lettering, places: np.ndarray, classes: np.ndarray, right: np.ndarray | None, word: str
) -> Figure:
    """
    Draw a map of videos: few classes by marker, many classes by names where most of their videos are.

    Args:
        lettering ([`Lettering`]):
            Writes the names.
        places (`np.ndarray` of shape `(m, 2)`):
            Where the videos are.
        classes (`np.ndarray` of shape `(m,)`):
            Their classes.
        right (`np.ndarray` of shape `(m,)`, *optional*):
            Whether each is right; `None` where that is not known.
        word (`str`):
            What the classes are of the videos, for the legend.
    """
    present, sizes = np.unique(classes, return_counts=True)
    figure = new_figure(8.5, 7)
    axis = figure.subplots()
    wrong = np.zeros(len(places), bool) if right is None else ~right
    size = float(np.clip(3500 / len(places), 6, 42))
    if len(present) <= MOST_MARKED:
        # Light enough for black crosses on them
        shades = colormaps["cividis"](np.linspace(0.3, 1.0, len(present)))
        for number, index in enumerate(present):
            mine = classes == index
            axis.scatter(
                *places[mine].T,
                s=size,
                marker=MARKERS[number],
                color=shades[number],
                edgecolor="black",
                linewidth=0.4,
                label=lettering.short(index),
            )
        title = word
    else:
        axis.scatter(
            *places[~wrong].T,
            s=size,
            color=LIGHT,
            edgecolor=MIDDLE,
            linewidth=0.5,
            label="right" if right is not None else "a video",
        )
        title = None
    if wrong.any():
        axis.scatter(*places[wrong].T, s=max(size, 14) * 1.3, marker="x", color="black", linewidth=1.0, label="wrong")
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set(visible=True, color="0.7")
    figure.legend(loc="outside lower left", ncols=3, frameon=False, title=title, alignment="left")
    if len(present) > MOST_MARKED:
        figure.draw_without_rendering()  # so that the places of the names are known
        _write_names(figure, axis, lettering, places, classes, present[np.argsort(-sizes, kind="stable")])
    return figure


def _write_names(figure: Figure, axis, lettering: Lettering, places, classes, by_size):
    """Write the names of the largest classes at the middle video of each, as many as do not overlap."""
    taken, renderer = [], figure.canvas.get_renderer()
    for index in by_size:
        if len(taken) == MOST_NAMED:
            break
        mine = places[classes == index]
        middle = mine[np.argmin(np.square(mine - np.median(mine, axis=0)).sum(axis=1))]
        text = axis.annotate(
            lettering.short(index),
            middle,
            xytext=(0, 5),
            textcoords="offset points",
            fontsize=7.5,
            ha="center",
            va="bottom",
            color=DARK,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )
        box = text.get_window_extent(renderer).padded(2)
        if (
            any(box.overlaps(other) for other in taken)
            or not axis.bbox.fully_containsx(box.x0)
            or not axis.bbox.fully_containsx(box.x1)
        ):
            text.remove()
        else:
            taken.append(box)
