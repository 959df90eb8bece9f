"""Class embeddings, made once and kept: what a video embedding is compared with."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers.utils import cached_file

from .configuration_ezclip import CLASS_BANK_NAME
from .processing_ezclip import distinct_texts
from .text_cache_ezclip import digest_texts, find_or_embed


ENSEMBLES = ("probability", "embedding")
BATCH_SIZE = 512
MIN_CACHED_TEXTS = 1024  # a GPU embeds fewer in less time than a look at the weights takes
NAMES = ("labels", "background_labels")  # in the metadata of the file
# bfloat16 leaves 0.9999, dynamic quantisation to 8 bits 0.998; a trained model and its base are at 0.90 to 0.95.
MIN_COSINE_OF_PROBES = 0.99
WAY_OUT = "Build it with this one (`ClassBank.build`)."


@dataclass
class ClassBank:
    """
    Text embeddings of C classes, each under P prompts. P is 1 where texts are averaged, see [`~ClassBank.build`].

    Args:
        labels (`list[str]`):
            Names of the C classes.
        embeds (`torch.FloatTensor` of shape `(P, C, D)`):
            Text embeddings of length 1.
        probe (`torch.FloatTensor` of shape `(D,)`, *optional*):
            What the model that embedded the texts makes of a fixed row of tokens, by which it is known again, see
            [`~ClassBank.check_model`].
        background_labels (`list[str]`, *optional*):
            Those of the labels that stand for "none of the others". The pipeline returns them as one.

    Example:

    ```python
    >>> bank = ClassBank.build(model, processor, ["archery", "yoga"])
    >>> video_embeds = model.get_video_features(**processor(videos="clip.mp4", return_tensors="pt")).pooler_output
    >>> bank.probabilities(video_embeds)  # (1, 2)
    ```
    """

    labels: list[str]
    embeds: torch.Tensor
    probe: torch.Tensor | None = None
    background_labels: list[str] = ()

    def __post_init__(self):
        self.labels, self.background_labels = _checked_labels(self.labels), _checked_labels(self.background_labels)
        if not self.labels:
            raise ValueError("A class bank needs at least one label.")
        repeated = sorted(label for label, count in Counter(self.labels).items() if count > 1)
        if repeated:
            raise ValueError(f"Labels must differ; repeated: {repeated[:10]}.")
        shape = tuple(self.embeds.shape)
        if len(shape) != 3 or shape[1] != len(self.labels) or 0 in shape:
            raise ValueError(
                f"`embeds` must have shape (prompts, {len(self.labels)} classes, dimensions), got {shape}."
            )
        if not self.embeds.is_floating_point() or not self.embeds.isfinite().all():
            raise ValueError(f"`embeds` must be finite numbers, got {self.embeds.dtype} with others among them.")
        if missing := sorted(set(self.background_labels) - set(self.labels)):
            raise ValueError(
                f"The class bank has no {missing[0]!r}. `background_labels` are some of its labels: build it with "
                "them, or give `candidate_labels`."
            )
        if len(set(self.background_labels)) == len(self.labels):
            raise ValueError("All labels are `background_labels`; at least one must not be.")

    @classmethod
    @torch.no_grad()
    def build(
        cls,
        model,
        processor,
        candidate_labels: Sequence[str],
        templates: str | Sequence[str] | None = None,
        descriptions: dict[str, str | list[str]] | None = None,
        include_label: bool = False,
        input_conditioning: bool = False,
        batch_size: int | None = None,
        cache_dir: str | Path | None = None,
    ) -> "ClassBank":
        """
        Embed the prompts of classes, each different text once.

        Where every class has one text, each of the P templates has an embedding of its own. Where a class has several,
        each class has one embedding, TEAR's: those of its texts, each the mean over the templates, are averaged, and
        every embedding and mean has length 1. Texts longer than the tower reads are cut, and counted in a warning.

        Args:
            model ([`EZClipModel`]):
                Embeds the texts. Put it in evaluation mode first.
            processor ([`EZClipProcessor`]):
                Writes and tokenizes the prompts; see [`~EZClipProcessor.get_prompts`].
            candidate_labels (`Sequence[str]`):
                Names of the C classes.
            templates (`str` or `Sequence[str]`, *optional*):
                Sentences with `{}`. Defaults to the 16 published ones, with `descriptions` to `"{}"`.
            descriptions (`dict[str, str | list[str]]`, *optional*):
                Written texts for each class, in place of its name.
            include_label (`bool`, *optional*, defaults to `False`):
                Whether the name of a class is a text beside its descriptions.
            input_conditioning (`bool`, *optional*, defaults to `False`):
                Whether the name of a class begins each of its descriptions.
            batch_size (`int`, *optional*):
                Texts embedded at a time. Defaults to 512.
            cache_dir (`str` or `Path`, *optional*):
                A folder in which the embeddings of 1024 texts or more are kept, for the next run with the same
                weights and texts; `CACHE_DIR` of `text_cache_ezclip` is the usual one. By default they are neither
                kept nor looked for.

        Raises:
            `ValueError`: if labels are missing or repeated, the prompts cannot be written, or the tokenizer does not
            end them as the model expects.
        """
        labels = [candidate_labels] if isinstance(candidate_labels, str) else list(candidate_labels)
        prompts = processor.get_prompts(labels, templates, descriptions, include_label, input_conditioning)
        texts = distinct_texts(prompts)
        if not texts:
            raise ValueError("A class bank needs at least one label.")
        in_config = model.config.text_config.eos_token_id
        # CLIP's first configurations say 2 and mean the token with the highest number.
        if (eos := processor.tokenizer.eos_token_id) != in_config and in_config != 2:
            raise ValueError(
                f"The tokenizer ends texts with token {eos}, and the model looks for {in_config} "
                "(`text_config.eos_token_id`): all texts would be one to it. Put the right number into config.json."
            )
        tokens = processor(text=texts, padding=False)
        embed = partial(_embed_texts, model, processor.tokenizer, tokens, batch_size)
        key = None
        if cache_dir is not None and len(texts) >= MIN_CACHED_TEXTS:
            key = digest_texts(model, tokens["input_ids"])
        embeds = embed() if key is None else find_or_embed(Path(cache_dir), key, embed).to(model.device)
        index = {text: row for row, text in enumerate(texts)}
        # Of each class (S, P, D)
        of_class = [embeds[torch.tensor([[index[text] for text in row] for row in rows])] for rows in prompts]
        if all(len(rows) == 1 for rows in prompts):
            return cls(labels, torch.cat(of_class).transpose(0, 1).contiguous(), _probe(model))
        means = [_normalize(_normalize(own.mean(dim=1)).mean(dim=0)) for own in of_class]
        return cls(labels, torch.stack(means)[None], _probe(model))

    def check_model(self, model):
        """
        That the texts were embedded by this model, or by one whose text tower is the same but for rounding.

        Args:
            model ([`EZClipModel`]):
                The model whose videos are to be compared with the bank.

        Raises:
            `ValueError`: if they were not. A bank without `probe` is only compared in its number of dimensions.
        """
        dim = model.config.projection_dim
        if self.embeds.shape[-1] != dim:
            raise ValueError(
                f"The class bank holds embeddings of {self.embeds.shape[-1]} dimensions, and the model's have {dim}: "
                f"it was built with another model. {WAY_OUT}"
            )
        if self.probe is not None:
            cosine = float(self.probe.float().cpu() @ _probe(model).cpu())
            if cosine < MIN_COSINE_OF_PROBES:
                raise ValueError(
                    f"The class bank was built with another model, or before this one was trained: of the same text "
                    f"their embeddings have a cosine of {cosine:.4f}. {WAY_OUT}"
                )

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
            embeds = _normalize(embeds.mean(dim=0, keepdim=True))
        video_embeds = _normalize(video_embeds.float())
        logits = logit_scale * torch.einsum("bd,pcd->bpc", video_embeds, embeds)  # [B, P, C]
        return logits.softmax(dim=-1).mean(dim=1)

    def join_background(self, scores: np.ndarray) -> tuple[list[str | None], np.ndarray]:
        """
        The background labels as one, `None`, the last.

        Args:
            scores (`np.ndarray` of shape `(…, C)`):
                Probabilities of the classes.

        Returns:
            `tuple[list[str | None], np.ndarray]`: the labels, and a score for each.
        """
        if not self.background_labels:
            return list(self.labels), scores
        is_background = np.isin(self.labels, self.background_labels)
        labels = [*(label for label, out in zip(self.labels, is_background) if not out), None]
        joined = scores[..., is_background].sum(axis=-1, keepdims=True)
        return labels, np.concatenate([scores[..., ~is_background], joined], axis=-1)

    def is_of(self, model) -> bool:
        """Whether the probe is what the model makes of it now: its weights, and adapters upon them, are the same."""
        return self.probe is not None and torch.allclose(self.probe.to(model.device), _probe(model), atol=1e-5)

    def save_pretrained(self, save_directory: str | Path):
        """Write the bank, labels included, to `class_bank.safetensors` in `save_directory`."""
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        tensors = {"embeds": self.embeds} if self.probe is None else {"embeds": self.embeds, "probe": self.probe}
        save_file(
            {name: tensor.cpu().contiguous() for name, tensor in tensors.items()},
            Path(save_directory) / CLASS_BANK_NAME,
            metadata={name: json.dumps(list(getattr(self, name)), ensure_ascii=False) for name in NAMES},
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
            `OSError`: if there is none. `ValueError`: if it is damaged, or another file.
        """
        return cls.from_file(cached_file(str(pretrained_model_name_or_path), CLASS_BANK_NAME, **kwargs))

    @classmethod
    def from_file(cls, path: str | Path) -> "ClassBank":
        """
        Read a file that [`~ClassBank.save_pretrained`] wrote.

        Raises:
            `ValueError`: if it is damaged, or another file.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata()
                names = {name: json.loads(metadata[name]) for name in NAMES}
                tensors = {name: file.get_tensor(name) for name in ("embeds", "probe") if name in set(file.keys())}
                return cls(**names, **tensors)
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} holds no class bank, or a damaged one ({error}). Write it again (`ClassBank.build`, "
                "`ClassBank.save_pretrained`), or remove it."
            ) from error


@torch.no_grad()
def _probe(model) -> torch.Tensor:
    """The embedding of tokens that every vocabulary has: the probe of a [`ClassBank`]."""
    config = model.config.text_config
    tokens = torch.arange(min(config.max_position_embeddings, 8), device=model.device) % config.vocab_size
    tokens[-1] = min(config.eos_token_id, config.vocab_size - 1)
    return _normalize(model.get_text_features(input_ids=tokens[None]).pooler_output[0].float())


def _checked_labels(labels: Sequence[str]) -> list[str]:
    labels = [labels] if isinstance(labels, str) else list(labels)
    if wrong := [label for label in labels if not isinstance(label, str)]:
        raise ValueError(f"Labels are names of classes; {wrong[0]!r} is among them and is none.")
    return labels


def _embed_texts(model, tokenizer, tokens: dict, batch_size: int | None) -> torch.FloatTensor:
    """Embeddings of length 1, a row for each text."""
    batch_size = batch_size or BATCH_SIZE
    # Texts that begin alike together: what they share is computed once.
    order = sorted(range(len(tokens["input_ids"])), key=lambda position: tokens["input_ids"][position])
    embeds = []
    for start in range(0, len(order), batch_size):
        batch = {name: [rows[i] for i in order[start : start + batch_size]] for name, rows in tokens.items()}
        inputs = tokenizer.pad(batch, return_tensors="pt").to(model.device)
        outputs = model.get_text_features(**inputs, output_last_hidden_state=False)
        embeds.append(_normalize(outputs.pooler_output.float()))
    embeds = torch.cat(embeds)
    return embeds[torch.tensor(order, device=embeds.device).argsort()]


def _normalize(embeds: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(embeds, dim=-1)


__all__ = ["ClassBank"]
