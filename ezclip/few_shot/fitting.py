"""Add labelled clips to the texts of a class bank: few-shot classification without training.

A class becomes the direction of its text embedding plus the sum of the embeddings of its clips, each with the same
weight: the prototype of Snell et al., "Prototypical Networks for Few-shot Learning", to which the text counts as one
more example. Tip-Adapter (Zhang et al., "Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification")
instead keeps each clip in a cache, and adds `alpha * exp(-beta * (1 - cosine))` of each clip to the logit of its
class. That is not linear in the video, so it does not fit in a class bank.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from checkpoint_ezclip import list_some
from configuration_ezclip import truncated_repr
from ezclip.utils.messages import get_logger
from pipeline_ezclip import ClassBank


logger = get_logger(__name__)

CLIP_WEIGHTS = (0.0, 0.0625, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0)


def fit_class_bank(
    bank: ClassBank,
    video_embeds: torch.Tensor,
    labels: Sequence[int] | np.ndarray,
    clip_weight: float | None = None,
) -> ClassBank:
    """
    Return a class bank whose classes are mixtures of their texts and labelled clips.

    The row of a class is the direction of `text + clip_weight * (sum of its clips)`, where text and clips have length
    1. A class without clips keeps its text. The result is used and saved like any other class bank.

    Args:
        bank ([`ClassBank`]):
            The texts of C classes. Several prompts of a class count as one text, their mean.
        video_embeds (`torch.Tensor` of shape `(N, D)`):
            Embeddings of the clips, normalised or not.
        labels (`Sequence[int]` of length N):
            The class of each clip, as a position in the bank.
        clip_weight (`float`, *optional*):
            Weight of a clip beside the text, which has 1. With 0 the texts stay alone. Defaults to the best one on the
            clips themselves, see [`choose_clip_weight`].

    Raises:
        `ValueError`: if the bank compares frames with steps, shapes or labels do not fit, or a number is not finite.

    Example:

    ```python
    >>> texts = ClassBank.build(model, processor, ["archery", "yoga"])
    >>> bank = fit_class_bank(texts, video_embeds, labels=[0, 0, 1, 1])
    >>> bank.save_pretrained("my_bank")  # pipeline(…, class_bank="my_bank")
    ```
    """
    check_fits(bank)
    texts, clips, classes = _as_rows(bank, video_embeds, labels)
    if clip_weight is None:
        clip_weight = choose_clip_weight(bank, video_embeds, labels)
    if not 0 <= clip_weight < float("inf"):
        raise ValueError(f"`clip_weight` must be a number of at least 0, got {clip_weight}.")
    with_clips = set(classes.tolist())
    missing = [label for i, label in enumerate(bank.labels) if i not in with_clips]
    if missing and clip_weight:
        logger.warning(
            f"{len(missing)} of {len(bank.labels)} classes have no clip and keep their texts: {list_some(missing)}. "
            "Videos are more similar to clips than to texts, so that these classes will be found too rarely. Give "
            "clips of them, or make a bank without them."
        )
    rows = _normalize(texts + clip_weight * _sums(clips, classes, len(texts)))
    return replace(bank, embeds=rows[None].to(bank.embeds))


def choose_clip_weight(bank: ClassBank, video_embeds: torch.Tensor, labels: Sequence[int] | np.ndarray) -> float:
    """
    Return the best of `CLIP_WEIGHTS` by leave-one-out on the clips, or the smallest of several that are best.

    Each clip is classified by the texts and the other clips. A clip that is alone in its class is not held out,
    because its class would have nothing but a text. If all are alone, the answer is the error rate of the texts on the
    clips: the worse the texts are, the more the clips count.

    Args:
        bank ([`ClassBank`]), video_embeds (`torch.Tensor` of shape `(N, D)`), labels (`Sequence[int]` of length N):
            See [`fit_class_bank`], which also names the errors.
    """
    check_fits(bank)
    texts, clips, classes = _as_rows(bank, video_embeds, labels)
    sums, counts = _sums(clips, classes, len(texts)), classes.bincount(minlength=len(texts))
    held_out = counts[classes] > 1
    if not held_out.any():
        return float(((clips @ texts.T).argmax(dim=-1) != classes).float().mean())
    clips, classes = clips[held_out], classes[held_out]
    own = torch.nn.functional.one_hot(classes, len(texts)).bool()
    best, most = 0.0, -1
    for weight in CLIP_WEIGHTS:
        cosines = clips @ _normalize(texts + weight * sums).T  # (n, C)
        cosines[own] = (clips * _normalize(texts[classes] + weight * (sums[classes] - clips))).sum(dim=-1)
        hits = int((cosines.argmax(dim=-1) == classes).sum())
        if hits > most:
            best, most = weight, hits
    return best


def check_fits(bank: ClassBank):
    """
    Raise if clips cannot be added to a class bank.

    Raises:
        `ValueError`: if the bank compares frames with steps in order.
    """
    if bank.compares_frames:
        raise ValueError(
            f"`bank` must be a ClassBank of one embedding per class, got a {type(bank).__name__}, which aligns steps "
            "with frames. Give descriptions without steps, or average them with step_score 'mean' and step_contrast 0."
        )


def _as_rows(bank: ClassBank, video_embeds: torch.Tensor, labels) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return normalised texts `(C, D)` and clips `(N, D)`, and the classes `(N,)`, all on the bank's device."""
    texts = _normalize(bank.prompt_embeds("embedding")[0])
    positions = np.asarray(labels)
    if video_embeds.shape != (len(positions), texts.shape[1]) or not len(positions):
        raise ValueError(
            f"`video_embeds` must have shape ({len(positions)} labels, {texts.shape[1]}) with at least one clip, got "
            f"{tuple(video_embeds.shape)}."
        )
    if not video_embeds.isfinite().all():
        raise ValueError("`video_embeds` must be finite numbers, got NaN or infinity. Embed the clips again.")
    if positions.dtype.kind not in "iu" or not 0 <= positions.min() <= positions.max() < len(texts):
        raise ValueError(
            f"`labels` must be integers from 0 to {len(texts) - 1}, got {truncated_repr(labels)}. Give positions "
            "in the bank: `bank.labels.index(name)`."
        )
    return texts, _normalize(video_embeds.to(texts)), torch.from_numpy(positions.astype(np.int64)).to(texts.device)


def _sums(clips: torch.Tensor, classes: torch.Tensor, num_classes: int) -> torch.Tensor:
    return clips.new_zeros(num_classes, clips.shape[1]).index_add_(0, classes, clips)


def _normalize(embeds: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(embeds, dim=-1)
