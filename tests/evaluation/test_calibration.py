"""Fits of factor and bias recover what made the labels, and help on videos that they did not see."""

import math

import numpy as np
import pytest
import torch

from ezclip.errors import DataError
from ezclip.evaluation.calibration import (
    choose_threshold,
    cross_validate,
    fit_background,
    fit_scoring,
    measure_scores,
)
from ezclip.evaluation.metrics import calibration_error
from pipeline_ezclip import Scoring


def draw_softmax(num_videos, scale, seed=0, num_classes=6):
    """Cosines, and labels that softmax with `scale` draws."""
    generator = torch.Generator().manual_seed(seed)
    cosines = 0.25 + 0.05 * torch.randn(num_videos, 1, num_classes, generator=generator)
    labels = torch.multinomial((scale * cosines[:, 0]).softmax(dim=-1), 1, generator=generator)[:, 0]
    return cosines, labels.numpy()


def draw_normal(num_videos, distance, seed=0, num_classes=5):
    """Cosines of one label that fits and others that do not: normal, with the same variance."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(num_classes, size=num_videos)
    cosines = rng.normal(0.2, 0.02, (num_videos, 1, num_classes))
    cosines[np.arange(num_videos), 0, labels] += distance
    background = rng.normal(0.2, 0.02, (num_videos, 1, 8))
    return *(torch.from_numpy(each).float() for each in (cosines, background)), labels


def test_softmax_recovers_the_factor():
    cosines, labels = draw_softmax(4000, scale=40.0)
    assert fit_scoring(cosines, labels, Scoring()).logit_scale == pytest.approx(40.0, rel=0.06)


def test_sigmoid_recovers_the_posterior():
    # Two normal distributions with one variance: the posterior is a sigmoid with this factor and bias.
    cosines, _, labels = draw_normal(4000, distance=0.04)
    scale, bias = 0.04 / 0.02**2, -math.log(4) - 0.04 / 0.02**2 * 0.22
    fitted = fit_scoring(cosines, labels, Scoring("sigmoid"))
    assert (fitted.logit_scale, fitted.logit_bias) == pytest.approx((scale, bias), rel=0.06)


def test_background_texts_recover_the_posterior():
    cosines, background, _ = draw_normal(4000, distance=0.06)
    scale, bias = 0.06 / 0.02**2, -math.log(4) - 0.06 / 0.02**2 * 0.23
    fitted = fit_background(cosines, background)
    assert (fitted.logit_scale, fitted.logit_bias) == pytest.approx((scale, bias), rel=0.05)


def test_labels_that_fit_no_better_than_background():
    cosines, background, _ = draw_normal(200, distance=0.0)
    with pytest.raises(DataError, match="background texts"):
        fit_background(cosines - 0.05, background)


@pytest.mark.parametrize("num_videos", [6, 40, 400])
def test_held_out_scores_are_better(num_videos):
    cosines, labels = draw_softmax(num_videos, scale=20.0, seed=3)
    scores = cross_validate(cosines, labels, Scoring())
    before, after = (measure_scores(s, labels, "softmax") for s in (Scoring().apply(cosines), scores))
    assert after["nll"] < before["nll"]


def test_separable_videos_keep_a_finite_factor():
    cosines = torch.eye(4)[:, None]
    fitted = [fit_scoring(cosines, np.arange(4), Scoring(function)) for function in ("softmax", "sigmoid")]
    assert all(math.isfinite(one.logit_scale) and one.logit_scale < 1000 for one in fitted)


def test_measures_by_hand():
    scores, labels = torch.tensor([[0.9, 0.1], [0.6, 0.4]]), np.array([0, 1])
    softmax, sigmoid = (measure_scores(scores, labels, function) for function in ("softmax", "sigmoid"))
    assert softmax["nll"] == pytest.approx(-(math.log(0.9) + math.log(0.4)) / 2)
    assert softmax["ece"] == pytest.approx((0.1 + 0.6) / 2)
    assert sigmoid["nll"] == pytest.approx(-(2 * math.log(0.9) + 2 * math.log(0.4)) / 4)
    assert calibration_error(np.array([0.25, 0.25, 1.0]), np.array([True, False, True])) == pytest.approx(0.5 / 3)


def test_threshold_has_the_best_f1():
    scores = torch.tensor([[0.8, 0.1], [0.5, 0.3], [0.2, 0.4]])
    # Accepting 0.8, 0.5 and 0.4 accepts all three labels and nothing else.
    assert choose_threshold(scores, np.array([0, 0, 1])) == pytest.approx(0.35)
    assert choose_threshold(scores, np.array([0, 1, 1])) == pytest.approx(0.25)
