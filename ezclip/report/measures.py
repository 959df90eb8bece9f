"""Numbers of a report: accuracies with their intervals, confusions, calibration."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import sparse

from ezclip.evaluation.metrics import NUM_BINS, bins_of, calibration_error, mean_per_class
from ezclip.evaluation.statistics import accuracy_interval, mean_per_class_interval
from ezclip.report.reading import NO_CLASS, NONE_OF_THESE, EvaluationRun


NUM_PAIRS = 10


@dataclass
class ClassAccuracy:
    """
    The `accuracy` of one class and its Wilson's 95 % `interval`; NaN without videos.

    Args:
        index (`int`):
            Index of the class.
        num_videos (`int`), num_hits (`int`), num_predicted (`int`):
            Number of its videos, of its correctly predicted videos, and of all videos that are predicted as the class.
        confused_with (`int`), num_confused (`int`):
            The most frequent wrong prediction for its videos, and the count; the count is 0 if there is none.
    """

    index: int
    num_videos: int
    num_hits: int
    num_predicted: int
    confused_with: int
    num_confused: int

    def __post_init__(self):
        total = self.num_videos  # 0 for a class that is only predicted
        self.accuracy = self.num_hits / total if total else np.nan
        self.interval = accuracy_interval(np.arange(total) < self.num_hits) if total else [np.nan, np.nan]


class ConfusedPair(NamedTuple):
    """Two classes, the videos of `first` predicted as `second`, and the videos of `second` predicted as `first`."""

    first: int
    second: int
    forward: int
    backward: int


@dataclass
class Calibration:
    """
    The accuracy at different scores: of the best label of each video, or of all pairs of a video and a label.

    Args:
        counts (`np.ndarray` of shape `(B,)`):
            Number of videos, or of pairs, with a score in each of B bins of equal width.
        confidences (`np.ndarray` of shape `(B,)`), accuracies (`np.ndarray` of shape `(B,)`):
            Mean score and accuracy of each bin; NaN in an empty bin.
        intervals (`np.ndarray` of shape `(B, 2)`):
            Wilson's 95 % intervals of the accuracies.
        error (`float`):
            Expected calibration error: the mean over videos or pairs of the difference of the two.
        confidence (`float`), accuracy (`float`):
            Means over all of them.
    """

    counts: np.ndarray
    confidences: np.ndarray
    accuracies: np.ndarray
    intervals: np.ndarray
    error: float
    confidence: float
    accuracy: float


def headline_accuracies(run: EvaluationRun, seed: int = 0) -> list[tuple[str, float, list[float] | None]]:
    """Return name, value and 95 % interval of top-1, of top-k if 1 < k < classes, and of mean per-class top-1."""
    if not len(run.known):
        return []
    found = []
    for k in (1, run.top_k) if 1 < run.top_k < run.num_classes else (1,):
        hits = run.places < k
        found.append((f"top-{k} accuracy", float(hits.mean()), accuracy_interval(hits)))
    hits, labels = run.places == 0, run.labels[run.known]
    mean = float(mean_per_class(hits, labels))
    return [*found, ("mean per-class top-1", mean, mean_per_class_interval(hits, labels, seed))]


def confusion_counts(run: EvaluationRun) -> sparse.csr_array:
    """Count the videos of each class (rows) that are predicted as each class (columns): `(C, C)`."""
    size = len(run.class_names)
    cells = (run.labels[run.known], run.ranked[run.known, 0])
    return sparse.csr_array((np.ones(len(run.known), dtype=np.int64), cells), shape=(size, size))


def class_accuracies(counts: sparse.csr_array) -> list[ClassAccuracy]:
    """Return the accuracies of all classes that have videos or are predicted, ordered by index."""
    num_videos, num_predicted, num_hits = counts.sum(axis=1), counts.sum(axis=0), counts.diagonal()
    wrong = counts - sparse.diags_array(num_hits, dtype=counts.dtype)
    confused_with = wrong.argmax(axis=1)
    columns = num_videos, num_hits, num_predicted, confused_with, wrong.max(axis=1).toarray()
    indices = np.flatnonzero(num_videos + num_predicted)
    return [ClassAccuracy(*row) for row in zip(indices.tolist(), *(column[indices].tolist() for column in columns))]


def most_confused(counts: sparse.csr_array) -> list[ConfusedPair]:
    """Return the most confused pairs of classes, in descending order."""
    both = sparse.triu(counts + counts.T, k=1).tocoo()
    best = np.lexsort((both.col, both.row, -both.data))[:NUM_PAIRS]
    found = []
    for low, high in zip(both.row[best].tolist(), both.col[best].tolist()):
        first, second = (low, high) if counts[low, high] >= counts[high, low] else (high, low)
        found.append(ConfusedPair(first, second, int(counts[first, second]), int(counts[second, first])))
    return found


def mistakes(run: EvaluationRun, label: int, predicted: int) -> list[int]:
    """Return the positions of the videos of one class that are predicted as another, highest score first."""
    found = np.flatnonzero((run.labels == label) & (run.ranked[:, 0] == predicted))
    return found[np.argsort(-run.scores[found, 0], kind="stable")].tolist()


def calibrate(run: EvaluationRun) -> Calibration:
    """
    Compare the scores of the labelled videos with their accuracy.

    With softmax, the best score of each video. With sigmoid, where each score is a statement of its own, the scores of
    all labels that were written for a video.
    """
    ranked, scores = run.ranked[run.known], np.clip(run.scores[run.known], 0, 1)
    hits = ranked == run.labels[run.known, None]
    if run.function_to_apply == "sigmoid":
        is_label = ranked != NO_CLASS
        if NONE_OF_THESE in run.class_names:
            is_label &= ranked != run.class_names.index(NONE_OF_THESE)
        scores, hits = scores[is_label], hits[is_label]
    else:
        scores, hits = scores[:, 0], hits[:, 0]
    bins = bins_of(scores)
    counts, score_sums, num_hits = (np.bincount(bins, weights, NUM_BINS) for weights in (None, scores, hits))
    intervals = np.full((NUM_BINS, 2), np.nan)
    for number in np.flatnonzero(counts):
        intervals[number] = accuracy_interval(hits[bins == number])
    with np.errstate(invalid="ignore"):
        confidences, accuracies = score_sums / counts, num_hits / counts
    error = calibration_error(scores, hits)
    return Calibration(counts, confidences, accuracies, intervals, error, float(scores.mean()), float(hits.mean()))
