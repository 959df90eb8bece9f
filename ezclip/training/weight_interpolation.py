"""
A second loss at interpolated weights (Weng et al., "Open-VCLIP: Transforming CLIP to an Open-vocabulary Video Model
via Interpolated Weight Optimization", ICML 2023).

In each step the loss is also taken at `ratio * start + (1 - ratio) * current`, where `ratio` is drawn from U(0, 0.6).
So the weights on the way back to the base classify the videos, too. The gradient is that of the whole loss; the
released code leaves out its factor `1 - ratio`.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from ezclip.errors import ModelError
from modeling_ezclip import EZClipModel


MAX_RATIO = 0.6  # published


class WeightInterpolation:
    """
    The weights of a model at the start of its training, and the weight of the second loss.

    Args:
        model ([`EZClipModel`]):
            The model at the start of the training, on its device.
        weight (`float`):
            Weight of the loss.
        seed (`int`):
            The ratio of a step follows from seed and step alone.

    Raises:
        [`ModelError`]: if the backbone is frozen.
    """

    def __init__(self, model: EZClipModel, weight: float, seed: int):
        if model.config.freeze_backbone:
            raise ModelError(
                f"--interpolated_loss_weight must be 0 for a model whose backbone is frozen, got {weight}: only new "
                "prompts and adapters are trained, and their weights at the start are no base. Take a system that is "
                "fully trained (--preset actionclip or vificlip), or --distillation_weight."
            )
        self.weight, self.seed = weight, seed
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.start = [parameter.detach().clone() for parameter in self.trained]

    @contextmanager
    def applied(self, step: int) -> Iterator[float]:
        """Interpolate the weights inside the block. Yield the factor of the gradient of the loss at these weights."""
        ratio = np.random.default_rng((self.seed, step)).uniform(0, MAX_RATIO)
        current = [parameter.detach().clone() for parameter in self.trained]
        with torch.no_grad():
            for parameter, start in zip(self.trained, self.start):
                parameter.lerp_(start, ratio)
        try:
            yield self.weight * (1 - ratio)
        finally:
            with torch.no_grad():
                for parameter, value in zip(self.trained, current):
                    parameter.copy_(value)

    def add_loss(self, losses: dict[str, torch.Tensor], interpolated: torch.Tensor) -> dict[str, torch.Tensor]:
        """Add the loss at interpolated weights to the losses of a batch."""
        total = losses["loss"] + self.weight * interpolated
        return {**losses, "loss": total, "loss_interpolated": interpolated}
