"""Accuracies from ranks equal those of the metric."""

import numpy as np
import pytest

from ezclip.evaluation import TopKAccuracy
from ezclip.evaluation.metrics import accuracies_of, rank_labels


@pytest.mark.parametrize("num_classes", [3, 5, 40])
def test_ranks_equal_the_metric(num_classes):
    rng = np.random.default_rng(num_classes)
    scores = rng.random((200, num_classes), np.float32).round(1)  # many equal scores
    labels = rng.integers(0, num_classes, 200)
    order = np.argsort(-scores, axis=1, kind="stable")
    ranks = rank_labels(scores, labels)
    assert np.array_equal(ranks, [row.tolist().index(label) for row, label in zip(order, labels)])
    expected = TopKAccuracy(keep_in_memory=True).compute(predictions=scores, references=labels)
    assert accuracies_of(ranks, labels) == pytest.approx(expected)
