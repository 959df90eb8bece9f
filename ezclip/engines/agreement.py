"""How far the embeddings of an export agree with those of its model."""

from dataclasses import dataclass

import torch
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedModel

from ezclip.evaluation.statistics import accuracy_interval
from pipeline_ezclip import ClassBank, choose_scoring, score_embeds


@dataclass
class Agreement:
    """
    The agreement of an export with its model on videos that did not calibrate it.

    Args:
        num_videos (`int`):
            Number of videos.
        num_equal (`int`):
            Videos with the same best label.
        equal_top1 (`float`), equal_top1_interval (`list[float]`):
            Their share, and its 95 % interval.
        cosine (`list[float]`), centred_cosine (`list[float]`):
            Lowest and median cosine of the two embeddings of a video, also after the mean embedding of the model is
            taken out of both. All videos share most of their embedding, so plain cosines flatter.
    """

    num_videos: int
    num_equal: int
    equal_top1: float
    equal_top1_interval: list[float]
    cosine: list[float]
    centred_cosine: list[float]

    def __str__(self) -> str:
        low, high = self.equal_top1_interval
        return (
            f"same best label for {self.num_equal} of {self.num_videos} videos ({self.equal_top1:.1%}, 95 % interval "
            f"{low:.1%} to {high:.1%}); cosine {self.cosine[0]:.4f} at least, {self.cosine[1]:.4f} median; without "
            f"the mean {self.centred_cosine[0]:.4f}, {self.centred_cosine[1]:.4f}"
        )


Embedded = tuple[PreTrainedModel, ClassBank, torch.Tensor]


def compare_embeddings(original: Embedded, export: Embedded) -> Agreement:
    """Compare an export with its model: each with its classes and its embeddings `(N, D)` of the same videos."""
    best = [
        score_embeds(model, bank, embeds, scoring=choose_scoring(model)).argmax(dim=-1)
        for model, bank, embeds in (original, export)
    ]
    is_equal = (best[0] == best[1]).cpu().numpy()
    expected, actual = original[2], export[2]
    mean = expected.mean(dim=0)

    def lowest_and_median(cosines: torch.Tensor) -> list[float]:
        return [cosines.min().item(), cosines.median().item()]

    return Agreement(
        num_videos=len(is_equal),
        num_equal=int(is_equal.sum()),
        equal_top1=float(is_equal.mean()),
        equal_top1_interval=accuracy_interval(is_equal),
        cosine=lowest_and_median(cosine_similarity(actual, expected)),
        centred_cosine=lowest_and_median(cosine_similarity(actual - mean, expected - mean)),
    )
