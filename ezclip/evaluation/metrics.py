"""Metrics of the papers. They need no download."""

import datasets
import evaluate
import numpy as np


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
        scores, references = np.asarray(predictions), np.asarray(references)
        ranking = np.argsort(-scores, axis=1, kind="stable")
        hits = ranking == references[:, None]  # [n, C]
        accuracies = {f"top{k}": float(hits[:, :k].any(axis=1).mean()) for k in (1, 5)}
        return {**accuracies, "mean_class_top1": float(mean_per_class(hits[:, 0], references))}


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
