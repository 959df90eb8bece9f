"""Map of the video embeddings."""

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from ezclip.report.drawing import DARK, LIGHT, MARKERS, MIDDLE, drawing
from ezclip.utils.fonts import Lettering


MIN_VIDEOS = 5
MAX_VIDEOS = 3000  # t-SNE of 3000 takes 20 seconds on one core
MAX_MARKED = 8  # classes with a marker each
MAX_NAMED = 60


def project(embeds: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """
    Project embeddings to two dimensions with t-SNE.

    Args:
        embeds (`np.ndarray` of shape `(n, D)`):
            L2-normalised embeddings of at least 5 videos.
        seed (`int`, *optional*, defaults to 0):
            Seed of the choice of videos and of t-SNE.

    Returns:
        `tuple`: indices of the videos on the map, `(m,)`: all, or 3,000 drawn at random; and their points, `(m, 2)`.
    """
    from sklearn.manifold import TSNE

    shown = np.arange(len(embeds))
    if len(shown) > MAX_VIDEOS:
        shown = np.sort(np.random.default_rng(seed).choice(shown, MAX_VIDEOS, replace=False))
    perplexity = min(30.0, (len(shown) - 1) / 3)
    # PCA needs two directions; equal embeddings have none.
    init = "pca" if np.linalg.matrix_rank(embeds[shown] - embeds[shown].mean(axis=0)) > 1 else "random"
    points = TSNE(perplexity=perplexity, init=init, random_state=seed).fit_transform(embeds[shown].astype(np.float32))
    return shown, points


@drawing
def draw_map(
    lettering: Lettering, points: np.ndarray, classes: np.ndarray, is_hit: np.ndarray | None, title: str
) -> Figure:
    """
    Draw a map of videos. Few classes have markers; many classes have names at their median video.

    Args:
        lettering ([`Lettering`]):
            Fonts and short forms of the class names.
        points (`np.ndarray` of shape `(m, 2)`):
            Points of the videos.
        classes (`np.ndarray` of shape `(m,)`):
            Classes of the videos.
        is_hit (`np.ndarray` of shape `(m,)`, *optional*):
            Whether each prediction is correct; `None` without labels.
        title (`str`):
            Title of the legend of classes.
    """
    present, sizes = np.unique(classes, return_counts=True)
    is_marked = len(present) <= MAX_MARKED
    figure = Figure(figsize=(8.5, 7))
    axis = figure.subplots()
    wrong = np.zeros(len(points), bool) if is_hit is None else ~is_hit
    size = float(np.clip(3500 / len(points), 6, 42))
    if is_marked:
        # Light enough for black crosses on them
        shades = colormaps["cividis"](np.linspace(0.3, 1.0, len(present)))
        for index, marker, shade in zip(present, MARKERS, shades):
            style = {"s": size, "marker": marker, "color": shade, "edgecolor": "black", "linewidth": 0.4}
            axis.scatter(*points[classes == index].T, label=lettering.short(index), **style)
    else:
        label = "video" if is_hit is None else "correct"
        axis.scatter(*points[~wrong].T, s=size, color=LIGHT, edgecolor=MIDDLE, linewidth=0.5, label=label)
    if wrong.any():
        axis.scatter(*points[wrong].T, s=max(size, 14) * 1.3, marker="x", color="black", linewidth=1.0, label="wrong")
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set(visible=True, color="0.7")
    figure.legend(loc="outside lower left", ncols=3, title=title if is_marked else None, alignment="left")
    if not is_marked:
        figure.draw_without_rendering()  # computes the positions of the names
        _write_names(axis, lettering, points, classes, present[np.argsort(-sizes, kind="stable")])
    return figure


def _write_names(axis, lettering: Lettering, points, classes, by_size):
    """Write the names of the largest classes at their median videos if they do not overlap."""
    taken = []
    for index in by_size:
        if len(taken) == MAX_NAMED:
            break
        own = points[classes == index]
        text = axis.annotate(
            lettering.short(index),
            own[np.argmin(np.square(own - np.median(own, axis=0)).sum(axis=1))],
            xytext=(0, 5),
            textcoords="offset points",
            fontsize=7.5,
            ha="center",
            va="bottom",
            color=DARK,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )
        box = text.get_window_extent().padded(2)
        is_inside = axis.bbox.fully_containsx(box.x0) and axis.bbox.fully_containsx(box.x1)
        if is_inside and not box.count_overlaps(taken):
            taken.append(box)
        else:
            text.remove()
