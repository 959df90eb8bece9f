"""
Residual feature distillation (Huang et al., "FROSTER: Frozen CLIP is a Strong Teacher for Open-Vocabulary Action
Recognition", ICLR 2024).

The embeddings of frames and texts stay near those of the base. Between them stands a residual projector, which takes
up what videos need beyond the base. Projectors, factor and distance are those of the released code.
"""

import copy

import torch
from torch import nn

from checkpoint_ezclip import is_added_to_clip
from ezclip.errors import ModelError
from ezclip.systems.base import plain_clip
from modeling_ezclip import EZClipModel


RESIDUAL_FACTOR = 0.1


class ResidualProjectors(nn.Module):
    """
    Projectors of frames and of texts: the identity, plus `RESIDUAL_FACTOR` times a network whose last layer begins at
    zero.

    Args:
        dim (`int`):
            Dimension D of the embeddings.
        seed (`int`):
            Seed of the initial weights, equal on all processes.
    """

    def __init__(self, dim: int, seed: int):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.frames, self.texts = (_make_projector(dim, generator) for _ in range(2))

    def forward(self, frames: torch.Tensor, texts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Project the normalised embeddings of frames `(B, T, D)` and texts `(B, D)`."""
        return frames + RESIDUAL_FACTOR * self.frames(frames), texts + RESIDUAL_FACTOR * self.texts(texts)


def _make_projector(dim: int, generator: torch.Generator) -> nn.Sequential:
    first, last = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)
    nn.init.kaiming_normal_(first.weight, generator=generator)
    nn.init.zeros_(last.weight)
    return nn.Sequential(first, nn.GELU(), last)


class Distillation:
    """
    A teacher, the projectors towards it, and the weight of their loss.

    The teacher is the base of the model: its towers at the start of the training, without prompts, adapters and
    temporal head. It shares the weights of a frozen backbone, and is a copy of one that is trained.

    Args:
        model ([`EZClipModel`]):
            The model at the start of the training, on its device.
        weight (`float`):
            Weight of the loss.
        seed (`int`):
            Seed of the projectors.

    Raises:
        [`ModelError`]: if the model has no embeddings of single frames.
    """

    def __init__(self, model: EZClipModel, weight: float, seed: int):
        if model.config.vision_config.use_joint_attention:
            raise ModelError(
                f"--distillation_weight must be 0 with joint attention, got {weight}: the teacher embeds single "
                "frames, and this model embeds all frames of a video together. Take another system (--preset "
                "actionclip)."
            )
        self.weight, teacher = weight, plain_clip(model)
        is_trained = any(p.requires_grad and not is_added_to_clip(name) for name, p in model.named_parameters())
        self.teacher = copy.deepcopy(teacher) if is_trained else teacher
        self.projectors = ResidualProjectors(model.config.projection_dim, seed).to(model.device)

    def add_losses(self, losses: dict[str, torch.Tensor], embeddings: dict) -> dict[str, torch.Tensor]:
        """
        Add the distillation to the losses of a batch.

        Args:
            losses (`dict`):
                The losses; `loss` is the sum.
            embeddings (`dict`):
                `frame_embeds` `(B, T, D)` and `text_embeds` `(B, D)` of the model, and of the teacher (`teacher_…`).

        Returns:
            `dict`: also `loss_distillation`, the mean of 1 - cosine over frames, plus that over texts.
        """
        names = ("frame_embeds", "text_embeds")
        projected = self.projectors(*(nn.functional.normalize(embeddings[name].float(), dim=-1) for name in names))
        targets = (embeddings[f"teacher_{name}"] for name in names)
        cosines = [
            nn.functional.cosine_similarity(ours.float(), target.float(), dim=-1).mean()
            for ours, target in zip(projected, targets)
        ]
        distance = len(cosines) - torch.stack(cosines).sum()
        return {**losses, "loss": losses["loss"] + self.weight * distance, "loss_distillation": distance}
