"""Weights between those of a base and of a model that was tuned from it.

Wortsman et al., "Robust fine-tuning of zero-shot models" (WiSE-FT).
"""

import copy

import torch

from checkpoint_ezclip import is_added_to_clip, list_some
from ezclip.errors import ModelError
from modeling_ezclip import EZClipModel


# Fields of both towers that weights of equal shapes may hide
TOWER_FIELDS = ("model_type", "hidden_act", "num_attention_heads", "patch_size", "image_size")
# Matrices of models that were trained apart are nearly orthogonal; tuning leaves the cosine near 1.
MIN_COSINE = 0.1
FIX_HINT = "Give the model that training started from, and then the trained one."


def merge_models(base: EZClipModel, tuned: EZClipModel, alpha: float) -> EZClipModel:
    """
    Interpolate between the weights of a base and of a model that was tuned from it.

    A weight that only the tuned model has (prompts, adapters, temporal head) counts as 0 in the base. Weights are
    interpolated in float64.

    Args:
        base ([`EZClipModel`]):
            The model that training started from.
        tuned ([`EZClipModel`]):
            The trained model.
        alpha (`float`):
            Share of the tuned model, in [0, 1]. 1 gives it bit for bit. 0 gives the base, with its own configuration:
            prompts of zeros would still change its answers.

    Returns:
        [`EZClipModel`]: a new model with the configuration and the dtypes of the tuned one, or of the base if `alpha`
        is 0.

    Raises:
        [`ModelError`]: if `alpha` is out of range, or one model was not tuned from the other, see
        [`find_changed_weights`].
    """
    if not 0 <= alpha <= 1:
        raise ModelError(f"alpha must be in [0, 1], got {alpha}.")
    find_changed_weights(base, tuned)
    if alpha == 0:
        return copy.deepcopy(base)
    merged, start = copy.deepcopy(tuned), base.state_dict()
    with torch.no_grad():
        for name, weight in merged.state_dict().items():
            if weight.is_floating_point():
                own = start[name].to(weight.device) if name in start else torch.zeros_like(weight)
                weight.copy_(torch.lerp(own.double(), weight.double(), alpha))  # exact at 1, and where both are equal
    return merged


def find_changed_weights(base: EZClipModel, tuned: EZClipModel) -> tuple[list[str], list[str]]:
    """
    Find what tuning changed.

    Returns:
        `tuple`: the names of the weights of both models that differ, and of the weights that only the tuned one has.

    Raises:
        [`ModelError`]: if the models have other towers or shapes, the base has weights that the tuned one lacks, or
        their weights have nothing in common.
    """
    for tower in ("vision_config", "text_config"):
        for field in TOWER_FIELDS:
            own, other = (getattr(getattr(model.config, tower), field, None) for model in (base, tuned))
            if own != other:
                raise ModelError(
                    f"Both models must have the same towers: {tower}.{field} is {own!r} in the base and {other!r} in "
                    f"the tuned model. {FIX_HINT}"
                )
    start, end = base.state_dict(), tuned.state_dict()
    if misshapen := [
        f"{name} is {tuple(start[name].shape)} in the base and {tuple(end[name].shape)} in the tuned model"
        for name in sorted(start.keys() & end.keys())
        if start[name].shape != end[name].shape
    ]:
        raise ModelError(f"Weights must have the same shapes: {list_some(misshapen)}. {FIX_HINT}")
    if lacking := sorted(start.keys() - end.keys()):
        raise ModelError(f"The tuned model lacks weights of the base: {list_some(lacking)}. {FIX_HINT}")
    added = sorted(end.keys() - start.keys())
    if own := [name for name in added if not (is_added_to_clip(name) or name.endswith("temporal_embedding"))]:
        raise ModelError(f"The base lacks weights of the tuned model's towers: {list_some(own)}. {FIX_HINT}")
    changed = [name for name in sorted(start) if not torch.equal(start[name], end[name].to(start[name].device))]
    products = torch.zeros(3, dtype=torch.float64)  # of both, of the base, of the tuned model
    for name in changed:
        a, b = (weights[name].detach().cpu().double().flatten() for weights in (start, end))
        if start[name].ndim > 1:
            products += torch.stack([a @ b, a @ a, b @ b])
    both, own, other = products.tolist()
    if own * other > 0 and both < MIN_COSINE * (own * other) ** 0.5:
        raise ModelError(
            f"The tuned model was not trained from this base: the cosine of their weights is "
            f"{both / (own * other) ** 0.5:.2f}. {FIX_HINT}"
        )
    return changed, added
