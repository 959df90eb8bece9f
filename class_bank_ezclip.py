"""Class embeddings, made once and kept: what a video embedding is compared with."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers.utils import cached_file


CLASS_BANK_NAME = "class_bank.safetensors"
ENSEMBLES = ("probability", "embedding")


@dataclass
class ClassBank:
    """
    Text embeddings of C classes, each under P prompts.

    Args:
        labels (`list[str]`):
            Names of the C classes.
        embeds (`torch.FloatTensor` of shape `(P, C, D)`):
            Text embeddings of length 1.

    Example:

    ```python
    >>> bank = ClassBank.build(model, processor, ["archery", "yoga"])
    >>> video_embeds = model.get_video_features(**processor(videos="clip.mp4", return_tensors="pt")).pooler_output
    >>> bank.probabilities(video_embeds)  # (1, 2)
    ```
    """

    labels: list[str]
    embeds: torch.Tensor

    def __post_init__(self):
        if not self.labels:
            raise ValueError("A class bank needs at least one label.")
        repeated = sorted({label for label in self.labels if self.labels.count(label) > 1})
        if repeated:
            raise ValueError(f"Labels must differ; repeated: {repeated[:10]}.")
        if self.embeds.ndim != 3 or self.embeds.shape[1] != len(self.labels):
            raise ValueError(
                f"`embeds` must have shape (prompts, {len(self.labels)} classes, dimensions), got "
                f"{tuple(self.embeds.shape)}."
            )

    @classmethod
    @torch.no_grad()
    def build(
        cls,
        model,
        processor,
        candidate_labels: Sequence[str],
        templates: str | Sequence[str] | None = None,
        descriptions: dict[str, str] | None = None,
        batch_size: int = 256,
    ) -> "ClassBank":
        """
        Embed the prompts of classes, each different text once.

        Args:
            model ([`EZClipModel`]):
                Embeds the texts. Put it in evaluation mode first.
            processor ([`EZClipProcessor`]):
                Writes and tokenizes the prompts; see [`~EZClipProcessor.get_prompts`].
            candidate_labels (`Sequence[str]`):
                Names of the C classes.
            templates (`str` or `Sequence[str]`, *optional*):
                Sentences with `{}`. Defaults to the 16 published ones.
            descriptions (`dict[str, str]`, *optional*):
                A written description per class, used alone.
            batch_size (`int`, *optional*, defaults to 256):
                Texts embedded at a time.

        Raises:
            `ValueError`: if labels are missing or repeated, or the prompts cannot be written.
        """
        labels = [candidate_labels] if isinstance(candidate_labels, str) else list(candidate_labels)
        prompts = processor.get_prompts(labels, templates, descriptions)
        # Texts of like length together, so that little is padded.
        texts = sorted(dict.fromkeys(text for row in prompts for text in row), key=len)
        embeds = []
        for start in range(0, len(texts), batch_size):
            inputs = processor(text=texts[start : start + batch_size], return_tensors="pt").to(model.device)
            features = model.get_text_features(**inputs).pooler_output.float()
            embeds.append(torch.nn.functional.normalize(features, dim=-1))
        index = {text: position for position, text in enumerate(texts)}
        rows = torch.tensor([[index[text] for text in row] for row in prompts], device=model.device).long()
        return cls(labels, torch.cat(embeds)[rows] if embeds else torch.empty(0, 0, 0))

    def probabilities(
        self, video_embeds: torch.Tensor, ensemble: str = "probability", logit_scale: float = 100.0
    ) -> torch.Tensor:
        """
        How likely each class is for each video.

        Args:
            video_embeds (`torch.Tensor` of shape `(B, D)`):
                Video embeddings, normalised or not.
            ensemble (`str`, *optional*, defaults to `"probability"`):
                `"probability"`: softmax over the classes for each prompt, mean of the P probabilities (EZ-CLIP,
                ActionCLIP). `"embedding"`: one embedding a class, the normalised mean of its P (TEAR).
            logit_scale (`float`, *optional*, defaults to 100):
                Factor on the cosines. All published evaluations use 100; TEAR's temperature divides it.

        Returns:
            `torch.Tensor` of shape `(B, C)`: float32, rows sum to 1.
        """
        if ensemble not in ENSEMBLES:
            raise ValueError(f"`ensemble` must be one of {ENSEMBLES}, got {ensemble!r}.")
        embeds = self.embeds.to(video_embeds.device).float()
        if ensemble == "embedding":
            embeds = torch.nn.functional.normalize(embeds.mean(dim=0, keepdim=True), dim=-1)
        video_embeds = torch.nn.functional.normalize(video_embeds.float(), dim=-1)
        logits = logit_scale * torch.einsum("bd,pcd->bpc", video_embeds, embeds)  # [B, P, C]
        return logits.softmax(dim=-1).mean(dim=1)

    def save_pretrained(self, save_directory: str | Path):
        """Write the bank, labels included, to `class_bank.safetensors` in `save_directory`."""
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        save_file(
            {"embeds": self.embeds.cpu().contiguous()},
            Path(save_directory) / CLASS_BANK_NAME,
            metadata={"labels": json.dumps(self.labels, ensure_ascii=False)},
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs) -> "ClassBank":
        """
        Read the bank saved beside a model.

        Args:
            pretrained_model_name_or_path (`str` or `Path`):
                A folder, or a repository on the Hub.
            kwargs:
                For the Hub: `revision`, `token`, `cache_dir`, …

        Raises:
            `OSError`: if there is none.
        """
        path = cached_file(str(pretrained_model_name_or_path), CLASS_BANK_NAME, **kwargs)
        with safe_open(path, framework="pt") as file:
            return cls(json.loads(file.metadata()["labels"]), file.get_tensor("embeds"))


__all__ = ["ClassBank"]
