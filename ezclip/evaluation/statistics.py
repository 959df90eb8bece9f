"""Confidence intervals of accuracies and tests of their differences, by scipy."""

from dataclasses import dataclass

import numpy as np

from ezclip.evaluation.metrics import mean_per_class


try:
    from scipy.stats import binomtest, bootstrap
except ImportError as error:
    raise ImportError(
        "Confidence intervals and tests need scipy. Run `pip install scipy`, or install ezclip with its extra: "
        "`pip install 'ezclip[compare]'`."
    ) from error


CONFIDENCE_LEVEL = 0.95
NUM_RESAMPLES = 9999
RESAMPLED_AT_A_TIME = 4_000_000  # videos of about 50 bytes each


def accuracy_interval(hits: np.ndarray) -> list[float]:
    """
    Return Wilson's 95 % confidence interval of an accuracy.

    Args:
        hits (`np.ndarray` of shape `(n,)`):
            Whether each video is a hit.

    Returns:
        `list[float]`: its two ends, as fractions.
    """
    interval = binomtest(int(np.sum(hits)), len(hits)).proportion_ci(CONFIDENCE_LEVEL, method="wilson")
    return [float(interval.low), float(interval.high)]


def mean_per_class_interval(
    hits: np.ndarray, labels: np.ndarray, seed: int = 0, num_resamples: int = NUM_RESAMPLES
) -> list[float] | None:
    """
    Return the bootstrapped 95 % confidence interval of a mean of per-class accuracies: quantiles over resamples.

    Videos are drawn from all videos, not class by class: that would treat a class with one video as certain.

    Args:
        hits (`np.ndarray` of shape `(n,)`):
            Whether each video is a hit.
        labels (`np.ndarray` of shape `(n,)`):
            Class indices of the videos.
        seed (`int`, *optional*, defaults to 0):
            Seed of the draws.
        num_resamples (`int`, *optional*, defaults to 9999):
            Number of draws.

    Returns:
        `list[float]`: its two ends, as fractions. `None` if all videos are hits, or none: all resamples are then equal
        and give no interval.
    """
    if np.all(hits) or not np.any(hits):
        return None
    result = bootstrap(
        (np.arange(len(hits)),),
        lambda drawn, axis: mean_per_class(hits[drawn], labels[drawn]),
        n_resamples=num_resamples,
        batch=max(1, RESAMPLED_AT_A_TIME // len(hits)),
        vectorized=True,
        axis=-1,
        confidence_level=CONFIDENCE_LEVEL,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return [float(result.confidence_interval.low), float(result.confidence_interval.high)]


@dataclass
class McNemar:
    """
    McNemar's exact test of two systems on the same videos.

    Args:
        only_first (`int`), only_second (`int`):
            Videos that only this system has right. The other videos carry no information on the difference.
        p_value (`float`):
            Two-sided probability of counts at least as unequal, if both systems are equally good.
    """

    only_first: int
    only_second: int
    p_value: float


def mcnemar(first_hits: np.ndarray, second_hits: np.ndarray) -> McNemar:
    """
    Return McNemar's exact test.

    Args:
        first_hits (`np.ndarray` of shape `(n,)`), second_hits (`np.ndarray` of shape `(n,)`):
            Whether each system has each of the same n videos right.
    """
    first_hits, second_hits = np.asarray(first_hits, bool), np.asarray(second_hits, bool)
    only_first, only_second = int((first_hits & ~second_hits).sum()), int((second_hits & ~first_hits).sum())
    differing = only_first + only_second
    p_value = float(binomtest(only_first, differing).pvalue) if differing else 1.0
    return McNemar(only_first, only_second, p_value)


def holm(p_values: list[float]) -> list[float]:
    """
    Return p-values with Holm's correction for their number.

    Rejecting all hypotheses with corrected values below alpha makes any wrong rejection with a probability of at most
    alpha.
    """
    corrected, greatest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable").tolist()):
        greatest = max(greatest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = greatest
    return corrected
