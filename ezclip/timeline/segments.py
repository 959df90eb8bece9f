"""Merge windows into segments with one label each."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Segment:
    """
    A part of a video that shows one class.

    Args:
        start (`float`), end (`float`):
            Seconds.
        label (`str`):
            The class.
        score (`float`):
            Mean of the class's scores in the windows of the segment.
    """

    start: float
    end: float
    label: str
    score: float


def smooth(scores: np.ndarray, smoothing: int) -> np.ndarray:
    """Return the mean score of each window and its neighbours, `smoothing` (odd) windows in all, fewer at the ends."""
    reach, count = smoothing // 2, len(scores)
    if reach == 0 or count == 0:
        return scores.astype(np.float64)
    sums = np.concatenate([np.zeros((1, scores.shape[1])), scores.cumsum(axis=0, dtype=np.float64)])
    positions = np.arange(count)
    first, stop = np.maximum(positions - reach, 0), np.minimum(positions + reach + 1, count)
    return (sums[stop] - sums[first]) / (stop - first)[:, None]


def window_edges(starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """
    Return the boundaries `(W + 1,)` of the W windows' parts of the video, halfway between the middles of neighbours.

    So a window across a change of class belongs to the class that fills more of it.
    """
    middles = (starts + ends) / 2
    return np.concatenate([starts[:1], (middles[1:] + middles[:-1]) / 2, ends[-1:]])


def merge_windows(
    starts: np.ndarray,
    ends: np.ndarray,
    scores: np.ndarray,
    labels: list[str | None],
    smoothing: int = 3,
    min_score: float = 0.0,
    min_duration: float = 0.0,
) -> list[Segment]:
    """
    Return the segments of a video.

    A window gets the class with the highest smoothed score. It gets no class if the background wins or the score is
    below `min_score`. Neighbouring windows of one class form a segment. Runs shorter than `min_duration` are removed,
    the shortest first: a segment or gap within one class joins that class; a segment between two classes is split
    where the sum of their scores is highest; a segment beside a gap becomes part of the gap.

    Args:
        starts, ends (`np.ndarray` of shape `(W,)`):
            Seconds, ascending.
        scores (`np.ndarray` of shape `(W, C)`):
            Probabilities.
        labels (`list[str | None]`):
            Labels of the C columns; `None` is the background.
        smoothing, min_score, min_duration:
            See [`find_segments`].
    """
    if len(scores) == 0:
        return []
    smoothed, edges = smooth(scores, smoothing), window_edges(starts, ends)
    columns = [column for column, label in enumerate(labels) if label is not None]
    background = smoothed[:, [column for column, label in enumerate(labels) if label is None]].sum(axis=1)
    # "None of these" is the last class and scores at least `min_score`. On a tie argmax prefers a label.
    contest = np.column_stack([smoothed[:, columns], np.maximum(background, min_score)])
    none = len(columns)
    best = contest.argmax(axis=1)
    firsts, classes = _join(np.arange(len(best)), best)
    while (position := _shortest(edges, firsts, classes, none, min_duration)) is not None:
        firsts, classes = _give_away(position, firsts, classes, contest, none)
    stops = np.append(firsts[1:], len(best))
    segments = []
    for first, stop, run in zip(firsts, stops, classes):
        if run != none:
            score = float(scores[first:stop, columns[run]].mean())
            segments.append(Segment(float(edges[first]), float(edges[stop]), labels[columns[run]], score))
    return segments


# Runs of windows of one class are kept as two arrays: the first window of each run, and the class of each run.


def _join(firsts: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Merge neighbouring runs of one class."""
    is_new = np.append(True, classes[1:] != classes[:-1])
    return firsts[is_new], classes[is_new]


def _shortest(
    edges: np.ndarray, firsts: np.ndarray, classes: np.ndarray, none: int, min_duration: float
) -> int | None:
    """Return the shortest run below `min_duration`. A run of no class counts only between two runs of one class."""
    durations = np.diff(edges[np.append(firsts, len(edges) - 1)])
    is_within = np.zeros(len(classes), dtype=bool)
    is_within[1:-1] = classes[2:] == classes[:-2]
    durations[(classes == none) & ~is_within] = np.inf
    position = int(durations.argmin())
    return position if durations[position] < min_duration else None


def _give_away(
    position: int, firsts: np.ndarray, classes: np.ndarray, contest: np.ndarray, none: int
) -> tuple[np.ndarray, np.ndarray]:
    """Remove a run and give its windows to its neighbours."""
    first, stop = firsts[position], firsts[position + 1] if position + 1 < len(firsts) else len(contest)
    neighbours = [int(classes[near]) for near in (position - 1, position + 1) if 0 <= near < len(classes)]
    left, right = (neighbours or [none])[0], (neighbours or [none])[-1]
    if left != right and none in (left, right):
        left = right = none
    cut = stop
    if left != right:
        # Cut where the scores of the left class before, and of the right class after, have the highest sum.
        own = contest[first:stop]
        before = np.append(0.0, own[:, left].cumsum())
        after = np.append(own[::-1, right].cumsum()[::-1], 0.0)
        cut = first + int((before + after).argmax())
    starts, columns = zip(*((at, to) for at, end, to in ((first, cut, left), (cut, stop, right)) if at < end))
    return _join(
        np.concatenate([firsts[:position], starts, firsts[position + 1 :]]),
        np.concatenate([classes[:position], columns, classes[position + 1 :]]),
    )
