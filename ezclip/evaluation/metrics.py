"""Metrics of the papers. They need no download."""

import datasets
import evaluate
import numpy as np


NUM_BINS = 10  # of scores, for calibration


class TopKAccuracy(evaluate.Metric):
    """
    Fraction of videos whose class has one of the k highest scores.

    `compute(predictions=..., references=...)` takes scores `(n, C)` and class indices `(n,)`. It returns `top1`,
    `top5` and `mean_class_top1`, see [`mean_per_class`]. With fewer than k classes, all of them count.
    """

    def _info(self):
        return evaluate.MetricInfo(
            description=self.__doc__,
            citation="",
            inputs_description="predictions: scores (n, C); references: class indices (n,)",
            features=datasets.Features(
                {"predictions": datasets.Sequence(datasets.Value("float32")), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions, references):
        references = np.asarray(references)
        return accuracies_of(rank_labels(np.asarray(predictions), references), references)


def rank_labels(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """
    Return the rank of the right class of each video: 0 is the best. Equal scores rank by class index.

    Args:
        scores (`np.ndarray` of shape `(n, C)`):
            Scores of the classes.
        labels (`np.ndarray` of shape `(n,)`):
            Class indices of the videos.
    """
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    is_before = (scores > own) | ((scores == own) & (np.arange(scores.shape[1]) < labels[:, None]))
    return is_before.sum(axis=1)


def accuracies_of(ranks: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return `top1`, `top5` and `mean_class_top1` (fractions) from the ranks of the right classes, `(n,)`."""
    accuracies = {f"top{k}": float((ranks < k).mean()) for k in (1, 5)}
    return {**accuracies, "mean_class_top1": float(mean_per_class(ranks == 0, labels))}


def mean_per_class(hits: np.ndarray, references: np.ndarray) -> np.ndarray:
    """
    Return the mean of the accuracies of the classes. Classes without a video do not count.

    Args:
        hits (`np.ndarray` of shape `(..., n)`):
            Whether each video is a hit.
        references (`np.ndarray` of shape `(..., n)`):
            Class indices of the videos, at least 0.

    Returns:
        `np.ndarray` of shape `(...)`.
    """
    rows = references.reshape(-1, references.shape[-1])
    num_classes = int(rows.max()) + 1
    cells = (rows + num_classes * np.arange(len(rows))[:, None]).ravel()  # one row of classes per row of videos
    counts = np.bincount(cells, minlength=len(rows) * num_classes).reshape(len(rows), num_classes)
    sums = np.bincount(cells, hits.ravel(), minlength=counts.size).reshape(counts.shape)
    means = np.divide(sums, counts, out=np.zeros(counts.shape), where=counts > 0)
    return (means.sum(axis=1) / (counts > 0).sum(axis=1)).reshape(references.shape[:-1])


def calibration_error(scores: np.ndarray, hits: np.ndarray, num_bins: int = NUM_BINS) -> float:
    """
    Return the expected calibration error (Guo et al.): the mean difference of scores and hits in bins of equal width.

    Args:
        scores (`np.ndarray` of shape `(n,)`), hits (`np.ndarray` of shape `(n,)`):
            Probabilities, and whether each came true.
        num_bins (`int`, *optional*, defaults to 10):
            Number of bins.
    """
    bins = bins_of(scores, num_bins)
    score_sums, num_hits = (np.bincount(bins, weights, num_bins) for weights in (scores, hits))
    return float(np.abs(num_hits - score_sums).sum() / len(scores))


def bins_of(scores: np.ndarray, num_bins: int = NUM_BINS) -> np.ndarray:
    """Return the bin of each score in [0, 1], from 0."""
    return np.minimum((scores * num_bins).astype(int), num_bins - 1)
