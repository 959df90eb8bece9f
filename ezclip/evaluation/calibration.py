"""Fit the factor, the bias and the threshold of scores, so that they are probabilities.

With labelled videos, softmax gets a temperature (Guo et al., "On Calibration of Modern Neural Networks"), and sigmoid
a factor and a bias by Platt's method with his smoothed targets (Platt, "Probabilistic Outputs for Support Vector
Machines"). Without labels, texts that fit no video say how high a similarity is by chance (Efron, "Microarrays,
Empirical Bayes and the Two-Groups Model").
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from ezclip.data.dataset import ReadReport, VideoDataset, make_loader
from ezclip.errors import DataError
from ezclip.evaluation.metrics import calibration_error
from ezclip.evaluation.predictions import check_finite, embed_views
from pipeline_ezclip import ClassBank, Scoring, compute_similarities


MIN_VIDEOS = 4
NUM_FOLDS = 5
NUM_STEPS = 200
MIN_DISTANCE = 0.1  # standard deviations between fitting and background texts


@torch.no_grad()
def embed_videos(
    model,
    bank: ClassBank,
    dataset: VideoDataset,
    accelerator: Accelerator,
    batch_size: int = 8,
    num_workers: int = 0,
) -> tuple[torch.Tensor, np.ndarray, ReadReport]:
    """
    Embed the videos of a dataset that can be read, on one process, for a comparison with the classes of a bank.

    Returns:
        `tuple`: embeddings `(n, V, …)` of V views, the labels `(n,)`, and which videos were not read.
    """
    model = model.to(accelerator.device).eval()
    embeds, indices, report = [], [], ReadReport()
    loader = make_loader(dataset, batch_size, num_workers)
    for batch in tqdm(loader, desc="Calibrating", unit="batch"):
        report.take(batch, strict=False)
        views = dataset.processor.normalize(batch["frames"].to(accelerator.device, non_blocking=True))
        embeds.append(embed_views(model, bank, views, accelerator).cpu())
        indices.append(batch["index"])
    found = torch.cat(indices).numpy()
    is_read = ~np.isin(found, list(report.bad_videos))
    labels = np.asarray(dataset.split.videos["label"])[found[is_read]]
    return torch.cat(embeds)[torch.from_numpy(is_read)], labels, report


@torch.no_grad()
def similarities_of(model, bank: ClassBank, embeds: torch.Tensor, ensemble: str) -> torch.Tensor:
    """
    Return the similarities `(n, V * P, C)` of embeddings `(n, V, …)` to the prompts of a bank.

    Raises:
        [`ModelError`]: if one is not finite.
    """
    found = compute_similarities(model, bank, embeds.flatten(0, 1).to(bank.embeds.device), ensemble)
    check_finite(found)
    return found.cpu().unflatten(0, embeds.shape[:2]).flatten(1, 2)


def fit_scoring(similarities: torch.Tensor, labels: np.ndarray, start: Scoring) -> Scoring:
    """
    Fit the factor, and with sigmoid the bias, to labelled videos.

    Softmax minimises the negative log likelihood of the labels. A weak prior keeps the factor of few or separable
    videos finite: its logarithm is normal around that of `start`, with a standard deviation of 1. Sigmoid minimises
    the cross-entropy of all pairs of a video and a label. The targets are Platt's: `(N + 1) / (N + 2)` for the N pairs
    that fit and `1 / (M + 2)` for the M others. So a score is the probability of a label among as many candidates.

    Args:
        similarities (`torch.Tensor` of shape `(n, P, C)`):
            From [`similarities_of`].
        labels (`np.ndarray` of shape `(n,)`):
            Classes of the videos.
        start ([`Scoring`]):
            The function, and with softmax the usual factor.
    """
    values, hits = similarities.double(), _as_hits(labels, similarities.shape[-1])
    if start.function_to_apply == "softmax":

        def loss(log_change: torch.Tensor) -> torch.Tensor:
            scores = (start.logit_scale * log_change.exp() * values).softmax(dim=-1).mean(dim=1)
            return -scores[hits].log().sum() + log_change.square().sum() / 2

        (log_change,) = _minimize(loss, [0.0])
        return Scoring("softmax", start.logit_scale * math.exp(log_change))
    mean, std = float(values.mean()), max(float(values.std()), 1e-6)
    values, (num_hits, num_pairs) = (values - mean) / std, (int(hits.sum()), hits.numel())
    targets = torch.where(hits, (num_hits + 1) / (num_hits + 2), 1 / (num_pairs - num_hits + 2)).double()

    def pair_loss(parameters: torch.Tensor) -> torch.Tensor:
        scores = (parameters[0].exp() * values + parameters[1]).sigmoid().mean(dim=1)
        return torch.nn.functional.binary_cross_entropy(scores, targets, reduction="sum")

    log_scale, bias = _minimize(pair_loss, [0.0, math.log(num_hits / (num_pairs - num_hits))])
    scale = math.exp(log_scale) / std
    return Scoring("sigmoid", scale, bias - scale * mean)


def fit_background(similarities: torch.Tensor, background: torch.Tensor) -> Scoring:
    """
    Fit sigmoid to videos without labels, and to background texts that fit none of them.

    The similarities of the background texts give the mean and variance of texts that do not fit. Those of the labels
    are a mixture of that normal distribution and another with the same variance, for the one in C labels that fits;
    expectation maximisation finds its mean. The posterior probability of fitting is then a sigmoid with a factor and
    a bias. It is as good as the background texts are like labels that do not fit: write them in the same style.

    Args:
        similarities (`torch.Tensor` of shape `(n, P, C)`), background (`torch.Tensor` of shape `(n, P, B)`):
            From [`similarities_of`], for the labels and the background texts.

    Raises:
        [`DataError`]: if the labels are no more similar to the videos than the background texts.
    """
    values, null = similarities.double(), background.double()
    if values.shape[-1] < 2:
        raise DataError("Background texts need at least 2 labels, got 1. Give more --candidate_labels.")
    mean, variance = float(null.mean()), max(float(null.var()), 1e-12)
    log_odds, center = -math.log(values.shape[-1] - 1), float(values.amax(dim=-1).mean())
    for _ in range(NUM_STEPS):
        scale = (center - mean) / variance
        weights = (scale * (values - (center + mean) / 2) + log_odds).sigmoid()
        center = float((weights * values).sum() / weights.sum())
    distance = (center - mean) / math.sqrt(variance)
    if not distance > MIN_DISTANCE:
        raise DataError(
            "The videos are no more similar to the labels than to the background texts. Give other labels or texts, "
            "or labelled videos (--validation_dir)."
        )
    scale = (center - mean) / variance
    return Scoring("sigmoid", scale, log_odds - scale * (center + mean) / 2)


def cross_validate(similarities: torch.Tensor, labels: np.ndarray, start: Scoring, seed: int = 0) -> torch.Tensor:
    """Return the scores `(n, C)` of each video by a scoring that was fitted to the other folds."""
    order = np.random.default_rng(seed).permutation(len(labels))
    scores = torch.zeros(similarities.shape[0], similarities.shape[-1])
    for held_out in np.array_split(order, min(NUM_FOLDS, len(order))):
        kept = np.setdiff1d(order, held_out)
        scores[held_out] = fit_scoring(similarities[kept], labels[kept], start).apply(similarities[held_out])
    return scores


def measure_scores(scores: torch.Tensor, labels: np.ndarray, function_to_apply: str) -> dict[str, float]:
    """
    Return the negative log likelihood and the expected calibration error of scores `(n, C)`.

    With softmax, of the label of each video and of its best score; with sigmoid, of all pairs of a video and a label.
    """
    hits, scores = _as_hits(labels, scores.shape[-1]), scores.double().clamp(1e-12, 1 - 1e-12)
    if function_to_apply == "softmax":
        best, is_hit = scores.max(dim=-1)
        error = calibration_error(best.numpy(), (is_hit.numpy() == labels))
        return {"nll": float(-scores[hits].log().mean()), "ece": error}
    nll = torch.nn.functional.binary_cross_entropy(scores, hits.double())
    return {"nll": float(nll), "ece": calibration_error(scores.flatten().numpy(), hits.flatten().numpy())}


def choose_threshold(scores: torch.Tensor, labels: np.ndarray) -> float:
    """
    Return the score from which on a label counts as shown: the one with the best F1 over pairs of video and label.

    Give scores of videos that were held out ([`cross_validate`]).
    """
    hits = _as_hits(labels, scores.shape[-1]).flatten().numpy()
    order = np.argsort(-scores.flatten().numpy(), kind="stable")
    values, found = scores.flatten().numpy()[order], hits[order].cumsum()
    f1 = 2 * found / (np.arange(1, len(order) + 1) + hits.sum())
    f1[:-1][values[:-1] == values[1:]] = 0.0  # equal scores are on the same side
    best = int(f1.argmax())
    below = values[best + 1] if best + 1 < len(values) else 0.0
    return float((values[best] + below) / 2)


def _as_hits(labels: np.ndarray, num_classes: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.as_tensor(labels), num_classes).bool()


def _minimize(loss: Callable[[torch.Tensor], torch.Tensor], start: list[float]) -> list[float]:
    parameters = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([parameters], max_iter=NUM_STEPS, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss(parameters)
        value.backward()
        return value

    optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    return parameters.tolist()
