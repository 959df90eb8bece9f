"""Metrics of the papers, as `evaluate` metrics that need no download."""

import datasets
import evaluate
import numpy as np


class TopKAccuracy(evaluate.Metric):
    """
    Fraction of videos whose class is among the k with the highest scores.

    `compute(predictions=..., references=...)` takes scores `(n, C)` and class indices `(n,)` and gives `top1` and
    `top5`. Where there are fewer than k classes, all of them count.
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
        return {f"top{k}": float(hits[:, :k].any(axis=1).mean()) for k in (1, 5)}
