"""How sure accuracies and their differences are, by scipy's intervals and tests."""

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
RESAMPLED_AT_A_TIME = 4_000_000  # videos; each takes some 50 bytes


def accuracy_interval(hits: np.ndarray) -> list[float]:
    """
    Wilson's 95 % confidence interval of an accuracy.

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
    Bootstrapped 95 % confidence interval of a mean of per-class accuracies: quantiles over resamples of the videos.

    Videos are drawn from all alike and not class by class, which would take a class with a single video for certain.

    Args:
        hits (`np.ndarray` of shape `(n,)`):
            Whether each video is a hit.
        labels (`np.ndarray` of shape `(n,)`):
            Their class indices.
        seed (`int`, *optional*, defaults to 0):
            Seed of the draws.
        num_resamples (`int`, *optional*, defaults to 9999):
            Number of draws.

    Returns:
        `list[float]`: its two ends, as fractions. `None` where all videos are hits or none is: resamples are then all
        the same, which says nothing.
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
            Videos that one alone has right; the others say nothing of a difference.
        p_value (`float`):
            Probability, if the two are equally good, that these numbers are at least as unequal; two-sided.
    """

    only_first: int
    only_second: int
    p_value: float


def mcnemar(first_hits: np.ndarray, second_hits: np.ndarray) -> McNemar:
    """
    McNemar's exact test.

    Args:
        first_hits (`np.ndarray` of shape `(n,)`), second_hits (`np.ndarray` of shape `(n,)`):
            Which of the same n videos each system has right.
    """
    first_hits, second_hits = np.asarray(first_hits, bool), np.asarray(second_hits, bool)
    only_first, only_second = int((first_hits & ~second_hits).sum()), int((second_hits & ~first_hits).sum())
    differing = only_first + only_second
    p_value = float(binomtest(only_first, differing).pvalue) if differing else 1.0
    return McNemar(only_first, only_second, p_value)


def holm(p_values: list[float]) -> list[float]:
    """
    Holm's correction of p-values for their number: below alpha are those whose hypotheses can be rejected together,
    with a chance of at most alpha that any of them is wrongly rejected.
    """
    corrected, greatest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable").tolist()):
        greatest = max(greatest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = greatest
    return corrected
