"""Numbers of a report: accuracies with their intervals, confusions, calibration."""

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from ezclip.evaluation.metrics import mean_per_class
from ezclip.evaluation.statistics import accuracy_interval, mean_per_class_interval
from ezclip.report.reading import EvaluationRun


NUM_BINS = 10
NUM_PAIRS = 10


@dataclass
class Figure:
    """A headline: its name, its value, and the ends of its 95 % confidence interval where it has one (fractions)."""

    name: str
    value: float
    interval: list[float] | None


@dataclass
class ClassAccuracy:
    """
    One class of a report.

    Args:
        index (`int`):
            Its number.
        num_videos (`int`), num_hits (`int`), num_predicted (`int`):
            Videos of the class, those of them that are right, and videos that were taken for it, rightly or wrongly.
        accuracy (`float`, *optional*), interval (`list[float]`, *optional*):
            Part of the videos that are right, with Wilson's 95 % interval; `None` for a class without a video.
        mistaken_for (`int`, *optional*), num_mistaken (`int`):
            The class that most of its wrong videos are taken for, and how many.
    """

    index: int
    num_videos: int
    num_hits: int
    num_predicted: int
    accuracy: float | None
    interval: list[float] | None
    mistaken_for: int | None
    num_mistaken: int


@dataclass
class ConfusedPair:
    """Two classes, and how many videos of the first are taken for the second, and of the second for the first."""

    first: int
    second: int
    forward: int
    backward: int


@dataclass
class Calibration:
    """
    How far scores can be taken for probabilities of being right.

    Args:
        counts (`np.ndarray` of shape `(B,)`):
            Videos whose best score is in each of B bins of equal width.
        confidences (`np.ndarray` of shape `(B,)`), accuracies (`np.ndarray` of shape `(B,)`):
            Mean of these scores, and part of the videos that are right; not a number in an empty bin.
        intervals (`np.ndarray` of shape `(B, 2)`):
            Wilson's 95 % intervals of the accuracies.
        error (`float`):
            Expected calibration error: the mean over videos of the distance between the two.
        confidence (`float`), accuracy (`float`):
            Means over all videos.
    """

    counts: np.ndarray
    confidences: np.ndarray
    accuracies: np.ndarray
    intervals: np.ndarray
    error: float
    confidence: float
    accuracy: float


def headline_figures(run: EvaluationRun, seed: int = 0) -> list[Figure]:
    """Top-1, top-k where it says something, and the mean over classes of top-1."""
    if not len(run.known):
        return []
    hits, labels, k = run.places == 0, run.labels[run.known], run.top_k
    figures = [Figure("top-1 accuracy", float(hits.mean()), accuracy_interval(hits))]
    if 1 < k < run.num_classes:
        among = run.places < k
        figures.append(Figure(f"top-{k} accuracy", float(among.mean()), accuracy_interval(among)))
    mean = float(mean_per_class(hits, labels))
    figures.append(Figure("mean of the classes' top-1", mean, mean_per_class_interval(hits, labels, seed)))
    return figures


def confusion_counts(run: EvaluationRun) -> csr_array:
    """Count the videos of each class (rows) that are predicted as each class (columns): `(C, C)`."""
    size = len(run.class_names)
    cells = (run.labels[run.known], run.ranked[run.known, 0])
    return csr_array((np.ones(len(run.known), dtype=np.int64), cells), shape=(size, size))


def class_accuracies(run: EvaluationRun, counts: csr_array) -> list[ClassAccuracy]:
    """Return the accuracy of every class that has videos, or was predicted for one that has, by number."""
    num_videos, num_predicted = counts.sum(axis=1), counts.sum(axis=0)
    found = []
    for index in np.flatnonzero(num_videos + num_predicted).tolist():
        start, end = counts.indptr[index : index + 2]
        row = dict(zip(counts.indices[start:end].tolist(), counts.data[start:end].tolist()))
        num_hits, total = row.pop(index, 0), int(num_videos[index])
        accuracy = interval = mistaken_for = None
        if total:
            accuracy, interval = num_hits / total, accuracy_interval(np.arange(total) < num_hits)
        if row:
            mistaken_for = min(row, key=lambda other: (-row[other], other))
        found.append(
            ClassAccuracy(
                index,
                total,
                num_hits,
                int(num_predicted[index]),
                accuracy,
                interval,
                mistaken_for,
                row.get(mistaken_for, 0),
            )
        )
    return found


def most_confused(counts: csr_array, num_pairs: int = NUM_PAIRS) -> list[ConfusedPair]:
    """Return the most confused pairs of classes, in descending order."""
    coordinates, pairs = counts.tocoo(), {}
    for row, column, count in zip(coordinates.row.tolist(), coordinates.col.tolist(), coordinates.data.tolist()):
        if row != column:
            pair = pairs.setdefault((min(row, column), max(row, column)), {})
            pair[row, column] = count
    best = sorted(pairs, key=lambda pair: (-sum(pairs[pair].values()), pair))[:num_pairs]
    found = []
    for low, high in best:
        forward, backward = (pairs[low, high].get(direction, 0) for direction in ((low, high), (high, low)))
        if forward >= backward:
            found.append(ConfusedPair(low, high, forward, backward))
        else:
            found.append(ConfusedPair(high, low, backward, forward))
    return found


def mistakes(run: EvaluationRun, label: int, predicted: int) -> list[int]:
    """Videos of one class that are taken for another, by position, those of the highest score first."""
    found = np.flatnonzero((run.labels == label) & (run.ranked[:, 0] == predicted))
    return found[np.argsort(-run.scores[found, 0], kind="stable")].tolist()


def calibrate(run: EvaluationRun, num_bins: int = NUM_BINS) -> Calibration:
    """Calibrate the best scores of the videos whose class is known."""
    scores, hits = np.clip(run.scores[run.known, 0], 0, 1), run.places == 0
    bins = np.minimum((scores * num_bins).astype(int), num_bins - 1)
    counts = np.bincount(bins, minlength=num_bins)
    with np.errstate(invalid="ignore"):
        confidences = np.bincount(bins, scores, num_bins) / counts
        accuracies = np.bincount(bins, hits, num_bins) / counts
    intervals = np.full((num_bins, 2), np.nan)
    for number in np.flatnonzero(counts):
        intervals[number] = accuracy_interval(hits[bins == number])
    error = float(np.nansum(counts * np.abs(accuracies - confidences)) / len(scores))
    return Calibration(counts, confidences, accuracies, intervals, error, float(scores.mean()), float(hits.mean()))
