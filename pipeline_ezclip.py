"""Classify videos with `pipeline("zero-shot-video-classification")`, and keep class embeddings in a [`ClassBank`]."""

import json
import os
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from numbers import Integral, Real
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.utils.data import Dataset, IterableDataset, Subset
from transformers import Pipeline
from transformers.utils import cached_file, logging


try:
    from .checkpoint_ezclip import MAY_BE_ABSENT, PUSH_OPTIONS, fingerprint, has_fingerprint
    from .configuration_ezclip import (
        BASE_MODELS,
        CLASS_BANK_NAME,
        PIPELINE_TASK,
        SCORE_FUNCTIONS,
        EZClipConfig,
        check_numbers,
        describe_plain,
    )
    from .modeling_ezclip import EZClipModel
    from .processing_ezclip import (
        EZClipProcessor,
        distinct_texts,
        fits_vocabulary,
        label_key,
        label_to_words,
        max_text_length,
        text_padding_of,
    )
    from .video_ezclip import clean, describe_video, is_single_video, picture_error
except ImportError:
    if __package__:  # in a remote-code folder, a missing dependency must keep its own message
        raise
    from checkpoint_ezclip import MAY_BE_ABSENT, PUSH_OPTIONS, fingerprint, has_fingerprint
    from configuration_ezclip import (
        BASE_MODELS,
        CLASS_BANK_NAME,
        PIPELINE_TASK,
        SCORE_FUNCTIONS,
        EZClipConfig,
        check_numbers,
        describe_plain,
    )
    from modeling_ezclip import EZClipModel
    from processing_ezclip import (
        EZClipProcessor,
        distinct_texts,
        fits_vocabulary,
        label_key,
        label_to_words,
        max_text_length,
        text_padding_of,
    )
    from video_ezclip import clean, describe_video, is_single_video, picture_error


logger = logging.get_logger(__name__)

ENSEMBLES = ("probability", "embedding")
CALIBRATION_NAME = "calibration.json"
STEP_SCORES = ("aligned", "mean", "both")
CLASS_OPTIONS = (
    *("candidate_labels", "hypothesis_template", "descriptions", "include_label", "input_conditioning"),
    *("step_score", "step_contrast", "background_labels", "class_bank"),
)
SCORE_OPTIONS = ("ensemble", "top_k", "min_score", "function_to_apply", "calibration")
READ_OPTIONS = ("num_frames", "num_clips", "num_crops", "start", "end")
READ_OPTIONS += ("backend", "allow_partial", "square_pixels", "limits")
RUN_OPTIONS = ("on_error", "batch_size", "num_workers")
ON_ERROR = ("raise", "skip")

BATCH_SIZE = 512  # texts
MAX_KEPT_BANKS = 4  # of earlier calls
# The cosine is 0.9999 after rounding to bfloat16 and 0.998 after dynamic 8-bit quantisation, but only 0.90 to 0.95
# between a trained model and its base.
MIN_PROBE_COSINE = 0.99
FIX_HINT = "Build it with this model (`ClassBank.build`)."
# Functions of other dual encoders, by model type: `wrap(model, processor)` returns both as this pipeline needs them.
# `import ezclip` fills it.
WRAPPERS: dict[str, Callable] = {}


# ---- Scores ----


@dataclass(frozen=True)
class Scoring:
    """
    How the similarities of videos and texts become scores.

    A similarity is a cosine, or what the method `score` of a model returns.

    Args:
        function_to_apply (`str`, *optional*, defaults to `"softmax"`):
            `"softmax"` makes the labels compete: the scores of a video sum to 1. `"sigmoid"` scores each label on its
            own, as SigLIP does: several labels, or none, can fit a video.
        logit_scale (`float`, *optional*, defaults to 100):
            Factor on the similarities. All published evaluations of CLIP on videos use 100.
        logit_bias (`float`, *optional*, defaults to 0):
            Added to the scaled similarities. Softmax does not depend on it.
    """

    function_to_apply: str = "softmax"
    logit_scale: float = 100.0
    logit_bias: float = 0.0

    def __post_init__(self):
        if self.function_to_apply not in SCORE_FUNCTIONS:
            raise ValueError(f"`function_to_apply` must be one of {SCORE_FUNCTIONS}, got {self.function_to_apply!r}.")
        check_numbers({"logit_scale": self.logit_scale, "logit_bias": self.logit_bias})
        if not self.logit_scale > 0:
            raise ValueError(f"`logit_scale` must be above 0, got {self.logit_scale}.")

    @classmethod
    def of(cls, model, function_to_apply: str | None = None) -> "Scoring":
        """
        Return how a model scores by itself, or with another function.

        Its attribute `scoring` says it. Without one, it is softmax with the published factor of 100, or, if its
        configuration asks for sigmoid, sigmoid with its own trained factor and bias.

        Raises:
            `ValueError`: for sigmoid of a model without a bias.
        """
        own = getattr(model, "scoring", None)
        default = getattr(model.config, "function_to_apply", "softmax") if own is None else own.function_to_apply
        function = default if function_to_apply is None else function_to_apply
        if own is not None and (function in (own.function_to_apply, "softmax") or own.logit_bias):
            return replace(own, function_to_apply=function)
        if function != "sigmoid":
            return cls(function)
        bias = getattr(model, "logit_bias", None)
        if bias is None:
            raise ValueError(
                "`function_to_apply='sigmoid'` needs a model with a bias, such as SigLIP, and this one has none. Fit "
                "one on a few labelled videos or background texts (`ezclip calibrate`), and pass its `calibration`."
            )
        return cls("sigmoid", float(model.logit_scale.exp()), float(bias))

    def apply(self, similarities: torch.Tensor) -> torch.Tensor:
        """Return the scores `(B, C)` of similarities `(B, P, C)` to C classes: the mean over their P prompts."""
        logits = self.logit_scale * similarities
        if self.function_to_apply == "softmax":
            if similarities.shape[-1] == 1:
                logger.warning_once("There is only one label, so softmax always gives it 1. Add labels to compare.")
            return logits.softmax(dim=-1).mean(dim=1)
        return (logits + self.logit_bias).sigmoid().mean(dim=1)


@dataclass(frozen=True)
class Calibration:
    """
    A [`Scoring`] and a threshold that `ezclip calibrate` fitted to one model.

    Args:
        scoring ([`Scoring`]):
            Function, factor and bias.
        threshold (`float`):
            The default of `min_score`: a video whose best score is lower shows none of the labels.
        fitted_on (`dict`):
            What it was fitted on: the method, the numbers of videos, classes and background texts.
        weights (`dict[str, float]`):
            A fingerprint of each weight of the model.
    """

    scoring: Scoring
    threshold: float
    fitted_on: dict = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict, repr=False)

    def __post_init__(self):
        _check_min_score(self.threshold, "threshold")

    @staticmethod
    def fingerprint_weights(model) -> dict[str, float]:
        """Return a fingerprint of each weight of a model, which rounding to 16 bits hardly changes."""
        return {name: fingerprint(weight) for name, weight in _float_weights(model).items()}

    def check_model(self, model):
        """Raise `ValueError` if the weights of a model are not those that the calibration was fitted to."""
        weights = _float_weights(model)
        others = sorted(set(weights) ^ set(self.weights)) or [
            name for name, weight in weights.items() if not has_fingerprint(weight, self.weights[name])
        ]
        if others:
            raise ValueError(
                f"The calibration was fitted to other weights: {others[0]} and {len(others) - 1} others differ. Fit "
                "one to this model (`ezclip calibrate`)."
            )

    def as_dict(self) -> dict:
        """Return everything but the weights, as calibration.json has it."""
        return {**asdict(self.scoring), "threshold": self.threshold, "fitted_on": self.fitted_on}

    def save(self, path: str | os.PathLike):
        """Write the calibration as JSON."""
        text = json.dumps({**self.as_dict(), "weights": self.weights}, indent=2, ensure_ascii=False)
        Path(path).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def from_file(cls, path: str | os.PathLike) -> "Calibration":
        """
        Read a calibration from its file, or from the folder with a `calibration.json`.

        Raises:
            `ValueError`: if there is none, or the file is damaged.
        """
        path = Path(path)
        path = path / CALIBRATION_NAME if path.is_dir() else path
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            names = ("function_to_apply", "logit_scale", "logit_bias")
            scoring = Scoring(**{name: content[name] for name in names})
            check_numbers(content["weights"])
            return cls(scoring, content["threshold"], dict(content["fitted_on"]), dict(content["weights"]))
        except (OSError, KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
            raise ValueError(
                f"`calibration` {path} cannot be read ({type(error).__name__}: {error!s:.200}). Write it with "
                "`ezclip calibrate`."
            ) from error


def choose_scoring(model, function_to_apply: str | None = None, calibration: Calibration | None = None) -> Scoring:
    """
    Return the scoring of a calibration, or else the model's own, see [`Scoring.of`].

    Raises:
        `ValueError`: if the function is not the one of the calibration, or needs a calibration.
    """
    if calibration is None:
        return Scoring.of(model, function_to_apply)
    fitted = calibration.scoring.function_to_apply
    if function_to_apply not in (None, fitted):
        raise ValueError(
            f"`function_to_apply` must be {fitted!r}, as in the calibration, got {function_to_apply!r}. Leave it out, "
            "or fit another calibration (`ezclip calibrate`)."
        )
    return calibration.scoring


def _float_weights(model) -> dict[str, torch.Tensor]:
    return {
        name: weight
        for name, weight in model.state_dict().items()
        if isinstance(weight, torch.Tensor) and weight.is_floating_point()
    }


def _check_min_score(value, name: str):
    if not isinstance(value, Real) or isinstance(value, bool) or not 0.0 <= float(value) <= 1.0:
        raise ValueError(f"`{name}` must be a probability in [0, 1], got {value!r}.")


def compute_similarities(
    model, bank: "ClassBank", video_embeds: torch.Tensor, ensemble: str = "probability"
) -> torch.Tensor:
    """
    Compare videos with the prompts of classes: by the model's `score`, or else by cosines.

    Args:
        model:
            The model of the embeddings. Its method `score(videos, texts)`, if any, returns logits `(B, N)`.
        bank ([`ClassBank`]):
            The C classes.
        video_embeds (`torch.Tensor` of shape `(B, …)`):
            What [`embed_videos`] returned.
        ensemble (`str`, *optional*, defaults to `"probability"`):
            See [`ClassBank.probabilities`].

    Returns:
        `torch.Tensor` of shape `(B, P, C)`: float32. P is 1 with the ensemble `"embedding"`.
    """
    if hasattr(model, "score"):
        embeds = bank.prompt_embeds(ensemble).to(video_embeds.device)  # (P, C, D)
        return model.score(video_embeds.float(), embeds.flatten(0, 1)).float().unflatten(-1, embeds.shape[:2])
    return bank.compare(video_embeds.float(), ensemble)


def embed_videos(model, bank: "ClassBank", pixel_values: torch.Tensor) -> torch.Tensor:
    """
    Embed videos for a comparison with the classes of a bank, without normalisation.

    Args:
        model:
            The model, with the methods of `ezclip.encoders.VideoTextEncoder`.
        bank ([`ClassBank`]):
            The classes.
        pixel_values (`torch.Tensor` of shape `(B, T, C, H, W)`):
            Frames of B videos.

    Returns:
        `torch.Tensor` of shape `(B, D)`. For a [`StepBank`] `(B, 1 + T, D)`: the video, then its frames.
    """
    return model.encode_frames(pixel_values) if bank.compares_frames else model.encode_videos(pixel_values)


def best_labels(
    labels: Sequence[str | None], scores: np.ndarray, top_k: int | None = None, min_score: float = 0.0
) -> list[dict[str, Any]]:
    """
    Return the `label` and the `score` of the best labels of a video, best first, and drop those below `min_score`.

    If none reaches it, the answer is "none of these": one entry with the label `None`. Its score is 1 minus the best
    score, or that of the background labels if it is the best.
    """
    order = np.argsort(-scores, kind="stable")[:top_k]
    if (best := float(scores[order[0]])) < min_score:
        return [{"score": best if labels[order[0]] is None else 1.0 - best, "label": None}]
    return [{"score": float(scores[i]), "label": labels[i]} for i in order if scores[i] >= min_score]


def score_embeds(
    model, bank: "ClassBank", video_embeds: torch.Tensor, ensemble: str = "probability", scoring: Scoring | None = None
) -> torch.Tensor:
    """
    Return the score of each class for each embedded video, float32 of shape `(B, C)`.

    Args:
        model, bank, video_embeds, ensemble:
            See [`compute_similarities`].
        scoring ([`Scoring`], *optional*):
            How similarities become scores. Defaults to the model's own, see [`Scoring.of`].
    """
    scoring = Scoring.of(model) if scoring is None else scoring
    return scoring.apply(compute_similarities(model, bank, video_embeds, ensemble))


# ---- Class bank ----


@dataclass
class ClassBank:
    """
    Text embeddings of C classes, each under P prompts. P is 1 if texts are averaged, see [`~ClassBank.build`].

    Args:
        labels (`list[str]`):
            Names of the C classes.
        embeds (`torch.FloatTensor` of shape `(P, C, D)`):
            L2-normalised text embeddings; those of a model with a method `score` are not normalised.
        probe (`torch.FloatTensor` of shape `(D,)`, *optional*):
            The embedding of a fixed row of tokens, which identifies the model, see [`~ClassBank.check_model`].
        background_labels (`list[str]`, *optional*):
            Labels that stand for "none of the others". The pipeline returns them as one.

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

    # Whether videos are compared frame by frame, see `embed_videos`
    compares_frames = False

    def __post_init__(self):
        self.labels = _check_strings(self.labels, "labels")
        self.background_labels = _check_strings(self.background_labels, "background_labels")
        _check_distinct(self.labels)
        shape = tuple(self.embeds.shape)
        if len(shape) != 3 or shape[1] != len(self.labels) or 0 in shape:
            raise ValueError(f"`embeds` must have shape (prompts, {len(self.labels)} labels, dimension), got {shape}.")
        if not self.embeds.is_floating_point() or not self.embeds.isfinite().all():
            raise ValueError(f"`embeds` must be finite floating point numbers, got dtype {self.embeds.dtype}.")
        if self.probe is not None and (self.probe.shape != shape[2:] or not self.probe.is_floating_point()):
            got = f"{self.probe.dtype} of shape {tuple(self.probe.shape)}"
            raise ValueError(f"`probe` must be {shape[2]} floating point numbers, got {got}.")
        if missing := sorted(set(self.background_labels) - set(self.labels)):
            reason = f"The class bank has no {missing[0]!r}. `background_labels` must be labels of the bank."
            raise ValueError(f"{reason} Build the bank with them, or pass `candidate_labels`.")
        if len(set(self.background_labels)) == len(self.labels):
            raise ValueError("`background_labels` must leave at least one other label.")

    @classmethod
    @torch.no_grad()
    def build(
        cls,
        model,
        processor,
        candidate_labels: Sequence[str],
        templates: str | Sequence[str] | None = None,
        descriptions: Mapping[str, Any] | None = None,
        include_label: bool = False,
        input_conditioning: bool = False,
        step_score: str | None = None,
        step_contrast: float | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> "ClassBank":
        """
        Embed the prompts of classes, each distinct text once.

        If every class has one text, each of the P templates has its own embedding. If a class has several texts, each
        class has one embedding, as in TEAR: the mean over its texts of their means over the templates, where every
        embedding and mean is L2-normalised. Texts that are too long are cut, and counted in a warning. Another warning
        names labels of which the tokenizer knows no word. Descriptions by steps make a [`StepBank`].

        Args:
            model ([`EZClipModel`]):
                Embeds the texts. Put it in evaluation mode first.
            processor ([`EZClipProcessor`]):
                Writes and tokenizes the prompts.
            candidate_labels (`Sequence[str]`):
                Names of the C classes.
            templates, descriptions, include_label, input_conditioning (*optional*):
                The texts of each class; see [`~EZClipProcessor.get_prompts`].
            step_score (`str`, *optional*), step_contrast (`float`, *optional*):
                How a video is compared with steps, see [`StepBank`]. If one of them is given, a list of texts in
                `descriptions` means steps too.
            batch_size (`int`, *optional*, defaults to 512):
                Texts per batch.

        Raises:
            `ValueError`: if labels are missing, blank, repeated or the same to the tokenizer, a prompt is invalid,
            the tokenizer and the model have different end-of-text tokens, or a class has steps and the model has no
            embeddings of frames, or fewer frames.
        """
        labels = _check_labels(candidate_labels, "candidate_labels")
        _check_distinct(labels)
        if descriptions is None:
            processor.check_labels(labels)
        prompts = processor.get_prompts(labels, templates, descriptions, include_label, input_conditioning)
        in_order = step_score is not None or step_contrast is not None
        steps = processor.get_steps(labels, descriptions, include_label, in_order)
        if step_score == "mean" and step_contrast == 0:
            steps = None  # a mean has no order
        if steps is not None and not hasattr(model, "encode_frames"):
            raise ValueError(
                f"Steps are compared with single frames, and a model of type {model.config.model_type!r} does not "
                "embed them. Describe classes without steps, or give `step_score='mean'` and `step_contrast=0`."
            )
        texts = distinct_texts(prompts)
        model_eos, eos = getattr(model, "eos_token_id", None), processor.tokenizer.eos_token_id
        if model_eos not in (None, eos):
            raise ValueError(
                f"The tokenizer ends texts with token {eos}, but the model expects {model_eos} and would embed all "
                "texts alike. Correct `text_config.eos_token_id` in config.json."
            )
        embeds = _embed_texts(model, processor, processor(text=texts, padding=False), batch_size)
        rows = {text: row for row, text in enumerate(texts)}
        # A tensor (S, P, D) for each class
        class_embeds = [embeds[torch.tensor([[rows[text] for text in row] for row in own])] for own in prompts]
        if steps is None and all(len(own) == 1 for own in prompts):
            return cls(labels, torch.cat(class_embeds).transpose(0, 1).contiguous(), _probe(model))
        normalize = partial(_normalize_for, model)
        text_embeds = [normalize(own.mean(dim=1)) for own in class_embeds]  # (S, D) for each class
        means = torch.stack([normalize(own.mean(dim=0)) for own in text_embeds])[None]
        if steps is None:
            return cls(labels, means, _probe(model))
        options = {"step_score": step_score, "step_contrast": step_contrast}
        options = {name: value for name, value in options.items() if value is not None}
        rows = _rows_of_steps(steps).to(means.device)
        bank = StepBank(labels, means, _probe(model), step_embeds=torch.cat(text_embeds), steps=rows, **options)
        if getattr(model.config.vision_config, "use_joint_attention", False):
            bank.check_num_frames(1)
        return bank

    def check_model(self, model):
        """
        Raise `ValueError` if the text tower that built the bank differs from the model's by more than rounding.

        A bank without `probe` is only compared by its number of dimensions.
        """
        probe = _probe(model)
        dim, own = len(probe), self.embeds.shape[-1]
        if own != dim:
            reason = f"The class bank has embeddings of {own} dimensions, and the model's have {dim}."
            raise ValueError(f"{reason} It was built with another model. {FIX_HINT}")
        if self.probe is not None:
            cosine = float(self.probe.float().cpu() @ probe.cpu())
            if cosine < MIN_PROBE_COSINE:
                raise ValueError(
                    "The class bank was built with another model, or before this one was trained: the two embeddings "
                    f"of one text have a cosine of {cosine:.4f}. {FIX_HINT}"
                )

    def matches(self, model) -> bool:
        """Return whether the model, with its current weights and adapters, is the one that built the bank."""
        return self.probe is not None and torch.allclose(self.probe.to(model.device), _probe(model), atol=1e-5)

    def to(self, device: torch.device) -> "ClassBank":
        """Return the bank with its tensors on a device."""
        tensors = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        return replace(self, **tensors)

    def compare(self, video_embeds: torch.Tensor, ensemble: str = "probability") -> torch.Tensor:
        """Return the cosines `(B, P, C)` of videos `(B, D)`, float32, and the prompts of the classes."""
        embeds = self.prompt_embeds(ensemble).to(video_embeds.device)
        embeds = _normalize(embeds) if ensemble == "embedding" else embeds
        return torch.einsum("bd,pcd->bpc", _normalize(video_embeds), embeds)

    def prompt_embeds(self, ensemble: str = "probability") -> torch.Tensor:
        """Return the float32 embeddings `(P, C, D)` of an ensemble, or the mean of them; not normalised again."""
        if ensemble not in ENSEMBLES:
            raise ValueError(f"`ensemble` must be one of {ENSEMBLES}, got {ensemble!r}.")
        embeds = self.embeds.float()
        return embeds.mean(dim=0, keepdim=True) if ensemble == "embedding" else embeds

    def probabilities(
        self,
        video_embeds: torch.Tensor,
        ensemble: str = "probability",
        logit_scale: float = 100.0,
        logit_bias: float = 0.0,
        function_to_apply: str = "softmax",
    ) -> torch.Tensor:
        """
        Return the probability of each class for each video.

        Args:
            video_embeds (`torch.Tensor` of shape `(B, D)`):
                Video embeddings, normalised or not. For a [`StepBank`] `(B, 1 + T, D)`, see [`embed_videos`].
            ensemble (`str`, *optional*, defaults to `"probability"`):
                `"probability"` takes the softmax over the classes for each prompt, and the mean of the P probabilities
                (EZ-CLIP, ActionCLIP). `"embedding"` takes the normalised mean of the P embeddings of a class (TEAR).
            logit_scale (`float`, *optional*, defaults to 100):
                Factor on the cosines. All published evaluations use 100; TEAR's temperature divides it.
            logit_bias (`float`, *optional*, defaults to 0), function_to_apply (`str`, *optional*):
                See [`Scoring`].

        Returns:
            `torch.Tensor` of shape `(B, C)`: float32. With softmax, rows sum to 1.
        """
        scoring = Scoring(function_to_apply, logit_scale, logit_bias)
        return scoring.apply(compute_similarities(None, self, video_embeds, ensemble))

    def join_background(
        self, scores: np.ndarray, function_to_apply: str = "softmax"
    ) -> tuple[list[str | None], np.ndarray]:
        """
        Join the background labels to one, `None`, the last.

        Its score is the sum of theirs; with sigmoid, whose scores do not sum to 1, the highest of them.
        `scores` of shape `(…, C)` are the scores of the classes. Returns the labels, and a score for each.
        """
        if not self.background_labels:
            return list(self.labels), scores
        is_background = np.isin(self.labels, self.background_labels)
        labels = [*(label for label, out in zip(self.labels, is_background) if not out), None]
        join = np.sum if function_to_apply == "softmax" else np.max
        joined = join(scores[..., is_background], axis=-1, keepdims=True)
        return labels, np.concatenate([scores[..., ~is_background], joined], axis=-1)

    def rank(
        self,
        scores: np.ndarray,
        top_k: int | None = None,
        min_score: float = 0.0,
        function_to_apply: str = "softmax",
    ) -> list[dict[str, Any]]:
        """
        Return the labels of one video by descending score, the background labels as one.

        `scores` of shape `(C,)` are the scores of the classes. An entry has `score` and `label`. If none reaches
        `min_score`, the only entry is "none of these", see [`best_labels`].
        """
        return best_labels(*self.join_background(scores, function_to_apply), top_k, min_score)

    def save_pretrained(self, save_directory: str | Path):
        """Write the bank, including its labels, to `class_bank.safetensors` in `save_directory`."""
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        values = {name: value for name, value in vars(self).items() if value is not None}
        tensors = {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}
        metadata = {n: json.dumps(value, ensure_ascii=False) for n, value in values.items() if n not in tensors}
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        save_file(tensors, Path(save_directory) / CLASS_BANK_NAME, metadata)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs) -> "ClassBank":
        """
        Load the bank saved beside a model, in a folder or a repository on the Hub.

        `kwargs` are options of the Hub: `revision`, `token`, `cache_dir`, …

        Raises:
            `OSError`: if there is no bank. `ValueError`: if the file is damaged, or another one.
        """
        path = cached_file(str(pretrained_model_name_or_path), CLASS_BANK_NAME, **kwargs)
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                kind = StepBank if "steps" in tensors else ClassBank
                names = {own.name for own in fields(kind)} - {*tensors, "probe"}
                return kind(**tensors, **{name: json.loads(file.metadata()[name]) for name in names})
        except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"{path} holds no class bank, or a damaged one ({error!s:.300}). Write it again (`ClassBank.build`, "
                "`ClassBank.save_pretrained`), or remove it."
            ) from error


@dataclass(kw_only=True)
class StepBank(ClassBank):
    """
    Classes that are described by steps in order, which are aligned with the frames of a video. Nothing is trained.

    A video and a class have three similarities: the cosine of the video and the mean of the steps, as in TEAR
    (`"mean"`); the mean cosine of each frame and its step in the best alignment, see [`align_steps`] (`"aligned"`);
    and the same with the steps in reverse. A frame and a step have the cosine of the best wording of the step.
    Without the reverse, a class whose steps all fit all frames could not be told from one that runs the other way.

    Args:
        step_embeds (`torch.FloatTensor` of shape `(R, D)`):
            Embeddings of all wordings, L2-normalised.
        steps (`torch.LongTensor` of shape `(C, S, W)`):
            Rows of `step_embeds`: the wordings of each step of each class. -1 where a class has fewer steps, or a step
            fewer wordings.
        step_score (`str`, *optional*, defaults to `"aligned"`):
            The similarity of a video and a class: `"aligned"`, `"mean"`, or `"both"`, their mean.
        step_contrast (`float`, *optional*, defaults to 1):
            Factor of what is added to it: the similarity of the aligned steps minus that of the reversed ones. Both
            defaults were chosen on the base classes of the demo, see docs/descriptions.md.
    """

    step_embeds: torch.Tensor
    steps: torch.Tensor
    step_score: str = "aligned"
    step_contrast: float = 1.0

    compares_frames = True

    def __post_init__(self):
        super().__post_init__()
        if self.step_score not in STEP_SCORES:
            raise ValueError(f"`step_score` must be one of {STEP_SCORES}, got {self.step_score!r}.")
        check_numbers({"step_contrast": self.step_contrast})
        if self.step_contrast < 0:
            raise ValueError(f"`step_contrast` must be 0 or more, got {self.step_contrast}.")
        num_rows, dim = self.step_embeds.shape
        is_complete = self.steps.ndim == 3 and len(self.steps) == len(self.labels) and dim == self.embeds.shape[-1]
        if not is_complete or not -1 <= int(self.steps.min()) <= int(self.steps.max()) < num_rows:
            raise ValueError(f"`steps` must name rows of `step_embeds` for each label, got {tuple(self.steps.shape)}.")

    @property
    def num_steps(self) -> torch.Tensor:
        """Return the number of steps of each class, `(C,)`."""
        return (self.steps[..., 0] >= 0).sum(dim=-1)

    def check_num_frames(self, num_frames: int):
        """Raise `ValueError` if a class has more steps than the model embeds frames."""
        for label, number in zip(self.labels, self.num_steps.tolist()):
            if number > num_frames:
                raise ValueError(
                    f"A class must have at most as many steps as the model embeds frames ({num_frames}), got {number} "
                    f"for {label!r}. Give fewer steps, or a larger `num_frames`."
                )

    def compare(self, video_embeds: torch.Tensor, ensemble: str = "probability") -> torch.Tensor:
        """Return the similarities `(B, 1, C)` of videos and their frames `(B, 1 + T, D)`, float32, to the classes."""
        if video_embeds.ndim != 3:
            raise ValueError("Steps are compared with frames. Embed videos with `embed_videos(model, bank, pixels)`.")
        mean = super().compare(video_embeds[:, 0], ensemble)
        frames = self.frame_similarities(video_embeds[:, 1:])
        aligned = _best_alignment(frames, self.num_steps.to(frames.device))[:, None]
        similarities = {"aligned": aligned, "mean": mean, "both": (aligned + mean) / 2}[self.step_score]
        if self.step_contrast:
            # To reverse the frames is to reverse the steps.
            backward = _best_alignment(frames.flip(2), self.num_steps.to(frames.device))[:, None]
            similarities = similarities + self.step_contrast * (aligned - backward)
        return similarities

    def frame_similarities(self, frame_embeds: torch.Tensor) -> torch.Tensor:
        """
        Return the cosines `(B, C, T, S)` of frames `(B, T, D)` and the best wording of each step of each class.

        They are -inf where a class has fewer steps.

        Raises:
            `ValueError`: if a class has more steps than there are frames.
        """
        self.check_num_frames(frame_embeds.shape[1])
        cosines = _normalize(frame_embeds.float()) @ self.step_embeds.float().to(frame_embeds.device).t()
        cosines = torch.nn.functional.pad(cosines, (0, 1), value=-torch.inf)  # the row -1
        return cosines[..., self.steps.to(cosines.device)].amax(dim=-1).movedim(1, 2)


def align_steps(similarities: torch.Tensor) -> tuple[float, list[int]]:
    """
    Align the T frames of a video with S steps in order, by dynamic time warping.

    Each frame has one step, steps never go back, and each step has at least one frame. Of all such alignments, the one
    with the highest mean similarity is taken.

    Args:
        similarities (`torch.Tensor` of shape `(T, S)`):
            Similarities of frames and steps; see [`StepBank.frame_similarities`].

    Returns:
        `tuple[float, list[int]]`: the mean similarity of the frames and their steps, and the step of each frame.

    Raises:
        `ValueError`: if there are more steps than frames.
    """
    num_frames, num_steps = similarities.shape
    if not 0 < num_steps <= num_frames:
        raise ValueError(
            f"`similarities` must have shape (frames, steps) with at least as many frames as steps, got "
            f"{tuple(similarities.shape)}. Give fewer steps, or more frames."
        )
    totals = _alignment_totals(similarities)
    step = num_steps - 1
    path = [step]
    for before in reversed(totals[:-1]):
        step -= bool(step and before[step - 1] > before[step])
        path.append(step)
    return float(totals[-1][-1]) / num_frames, path[::-1]


def _alignment_totals(similarities: torch.Tensor) -> list[torch.Tensor]:
    """Return for each frame of `(…, T, S)` the best sums `(…, S)` of alignments that give it each of the steps."""
    first, *others = similarities.unbind(dim=-2)
    totals = [first.clone()]
    totals[0][..., 1:] = -torch.inf
    for frame in others:
        from_step_before = torch.nn.functional.pad(totals[-1][..., :-1], (1, 0), value=-torch.inf)
        totals.append(frame + torch.maximum(totals[-1], from_step_before))
    return totals


def _best_alignment(similarities: torch.Tensor, num_steps: torch.Tensor) -> torch.Tensor:
    """Return the score of [`align_steps`], `(B, C)`, for similarities `(B, C, T, S)` to classes of `(C,)` steps."""
    totals = _alignment_totals(similarities)[-1]
    last = (num_steps - 1).expand(len(totals), -1)
    return totals.gather(-1, last[..., None]).squeeze(-1) / similarities.shape[2]


def _rows_of_steps(num_wordings: list[list[int]]) -> torch.Tensor:
    """Return the numbers `(C, S, W)` of the wordings of all steps, counted from 0; -1 where there are fewer."""
    shape = (len(num_wordings), max(map(len, num_wordings)), max(max(own) for own in num_wordings))
    rows, first = torch.full(shape, -1), 0
    for own_rows, own in zip(rows, num_wordings):
        for step, number in zip(own_rows, own):
            step[:number] = torch.arange(first, first + number)
            first += number
    return rows


def _check_strings(labels: str | Iterable[str], name: str) -> list[str]:
    labels = [labels] if isinstance(labels, str) else list(labels)
    for label in labels:
        if not isinstance(label, str):
            raise ValueError(f"`{name}` must be strings, got {label!r} ({type(label).__name__}).")
        if re.search("[\ud800-\udfff]", label):  # bytes of a terminal that are not UTF-8
            raise ValueError(f"`{name}` must be valid Unicode, got {label!r}.")
    return labels


def _check_labels(labels: str | Iterable[str], name: str) -> list[str]:
    """Return labels without blanks around them; raise `ValueError` if one is nothing else."""
    labels = _check_strings(labels, name)
    for label in labels:
        if not label_to_words(label):
            raise ValueError(f"`{name}` must not be blank, got {label!r}.")
    return [label.strip() for label in labels]


def _check_distinct(labels: list[str]):
    if not labels:
        raise ValueError("A class bank must have at least one label.")
    spellings = {}
    for label in labels:
        if (other := spellings.setdefault(label_key(label), label)) != label:
            raise ValueError(f"{other!r} and {label!r} are two spellings of one class. Leave one of them out.")
    if repeated := sorted(label for label, count in Counter(labels).items() if count > 1):
        raise ValueError(f"Labels must be unique, got repeated: {repeated[:10]}.")


@torch.no_grad()
def _probe(model) -> torch.Tensor:
    """Embed a few tokens that every vocabulary has, to identify a text tower."""
    config = model.config.text_config
    tokens = torch.arange(min(config.max_position_embeddings, 8), device=model.device) % config.vocab_size
    last, end = config.vocab_size - 1, getattr(config, "eos_token_id", None)  # Chinese-CLIP has no end token
    tokens[-1] = last if end is None else min(end, last)
    return _normalize(model.encode_texts({"input_ids": tokens[None]})[0].float())


def _embed_texts(model, processor, tokens: dict, batch_size: int) -> torch.FloatTensor:
    """Return embeddings (number of texts, D), L2-normalised unless the model has its own `score` of them."""
    # Batch texts with the same beginning together: the model computes shared tokens once.
    order = sorted(range(len(tokens["input_ids"])), key=lambda position: tokens["input_ids"][position])
    embeds = []
    for start in range(0, len(order), batch_size):
        batch = {name: [rows[i] for i in order[start : start + batch_size]] for name, rows in tokens.items()}
        padding = processor.text_padding
        max_length = processor.tokenizer.model_max_length if padding == "max_length" else None
        inputs = processor.tokenizer.pad(batch, padding, max_length=max_length, return_tensors="pt").to(model.device)
        embeds.append(_normalize_for(model, model.encode_texts(inputs).float()))
    embeds = torch.cat(embeds)
    return embeds[torch.tensor(order, device=embeds.device).argsort()]


def _normalize(embeds: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(embeds, dim=-1)


def _normalize_for(model, embeds: torch.Tensor) -> torch.Tensor:
    """Return embeddings as the model compares them: not normalised if it has its own `score`."""
    return embeds if hasattr(model, "score") else _normalize(embeds)


# ---- Classes of a call ----


def say_scope(model):
    """Say once what a model was trained for, if its configuration knows it."""
    if scope := getattr(model.config, "scope", None):
        logger.warning_once(clean(f"{model.name_or_path or 'The model'}: {scope}"))


class ClassChoice:
    """Find or build the class bank of each call. `defaults` are `CLASS_OPTIONS` that a call can override."""

    def __init__(self, pipeline, defaults: dict, local_files_only: bool = False):
        self.pipeline, self.local_files_only = pipeline, local_files_only
        self._kept: OrderedDict[tuple, ClassBank] = OrderedDict()
        self._beside_model: ClassBank | None = None
        # Every call uses the defaults, but an iterator can be read only once.
        self.defaults = {n: list(value) if isinstance(value, Iterator) else value for n, value in defaults.items()}
        if "class_bank" in defaults:
            self.defaults["class_bank"] = self._load(defaults["class_bank"])

    def choose(self, given: dict) -> ClassBank:
        """Return the class bank, on the model's device, for the `CLASS_OPTIONS` that a call gives."""
        say_scope(self.pipeline.model)
        defaults = dict(self.defaults)
        if "class_bank" in given:
            defaults = {name: value for name, value in defaults.items() if name == "background_labels"}
        elif {"candidate_labels", "descriptions"} & set(given):
            defaults.pop("class_bank", None)
            defaults.pop("candidate_labels", None)  # the call may describe other labels
        options = {**defaults, **given}
        background = _parse_labels(options.pop("background_labels", []), "background_labels")
        descriptions = options.get("descriptions")
        if descriptions is not None and not (isinstance(descriptions, Mapping) and descriptions):
            raise ValueError(f"`descriptions` must be a dictionary from labels to texts, got {descriptions!r}.")
        labels = options.pop("candidate_labels", None)
        if labels is None and descriptions is not None:
            labels = list(descriptions)
        if labels is None:
            if "class_bank" not in options:  # default templates apply to labels only
                options = {name: value for name, value in options.items() if name in given}
            bank = self._find(**options)
            return replace(bank, background_labels=background) if background else bank
        if "class_bank" in options:
            raise ValueError("`class_bank` has its own classes. Leave it out, or the labels and descriptions.")
        labels = _parse_labels(labels, "candidate_labels")
        if not labels:
            raise ValueError("`candidate_labels` is empty. Give at least one label.")
        keys = set(map(label_key, background))
        if both := sorted(label for label in labels if label_key(label) in keys):
            raise ValueError(f"{both[0]!r} is among the `candidate_labels` and the `background_labels`.")
        return replace(self._build(labels, background, **options), background_labels=background)

    def default_bank(self) -> ClassBank | None:
        """Return the bank that a call without class options uses, if any."""
        if {"candidate_labels", "descriptions", "class_bank"} & set(self.defaults):
            return self.choose({})
        return self._find_beside_model()

    def _build(
        self, labels: list[str], background: list[str], hypothesis_template=None, descriptions=None, **options
    ) -> ClassBank:
        """Embed classes, or return the bank of an earlier call if neither texts nor weights have changed."""
        if hypothesis_template is not None and not isinstance(hypothesis_template, str):
            hypothesis_template = list(hypothesis_template)
        if descriptions is not None:
            described = {label_key(name) for name in descriptions}
            own = {label: label_to_words(label) for label in background if label_key(label) not in described}
            descriptions = {**own, **descriptions}
        options = {"templates": hypothesis_template, "descriptions": descriptions, **options}
        model, processor, classes = self.pipeline.model, self.pipeline.processor, (*labels, *background)
        key = (classes, repr(sorted(options.items())), processor.split_camel_case, id(processor.tokenizer))
        if key not in self._kept or not self._kept[key].matches(model):
            self._kept[key] = ClassBank.build(model, processor, classes, **options)
            if len(self._kept) > MAX_KEPT_BANKS:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def _find(self, class_bank: ClassBank | str | os.PathLike | None = None, **texts) -> ClassBank:
        if texts:
            raise ValueError(f"`{min(texts)}` needs `candidate_labels`: a class bank is already embedded.")
        bank = self._find_beside_model() if class_bank is None else self._load(class_bank)
        if bank is None:
            reason = "There are no classes: give `candidate_labels`, `descriptions` or a `class_bank`."
            name = self.pipeline.model.name_or_path
            raise ValueError(f"{reason} The model {name!r} had no class bank beside it when it was loaded.")
        return bank

    def _find_beside_model(self) -> ClassBank | None:
        file = getattr(self.pipeline.model, "class_bank_file", None)
        if file is not None:
            self._beside_model = self._load(self._beside_model or Path(file).parent)
        return self._beside_model

    def _load(self, class_bank: ClassBank | str | os.PathLike) -> ClassBank:
        model, bank, prefix = self.pipeline.model, cast(ClassBank, class_bank), ""
        # No isinstance: each remote-code folder has its own ClassBank.
        if not hasattr(class_bank, "embeds"):
            prefix = f"{str(class_bank)!r}: "
            bank = ClassBank.from_pretrained(str(class_bank), local_files_only=self.local_files_only)
        try:
            bank.check_model(model)
        except ValueError as error:
            raise ValueError(f"{prefix}{error}") from error
        return bank if bank.embeds.device == model.device else bank.to(model.device)


def take_class_options(kwargs: dict) -> dict:
    """Remove `CLASS_OPTIONS` from `kwargs` and return those that are not None."""
    templates = kwargs.pop("hypothesis_templates", None)
    options = {name: kwargs.pop(name) for name in CLASS_OPTIONS if name in kwargs}
    if templates is not None:
        if options.get("hypothesis_template") is not None:
            raise ValueError("`hypothesis_templates` is another name of `hypothesis_template`: pass only one.")
        options["hypothesis_template"] = templates
    return {name: value for name, value in options.items() if value is not None}


def _parse_labels(labels: str | Iterable[str], name: str) -> list[str]:
    if isinstance(labels, str):
        labels = [label.strip() for label in labels.split(",") if label.strip()]
    if not isinstance(labels, Iterable) or isinstance(labels, Mapping):
        raise ValueError(f"`{name}` must be a list of strings, or one string with commas, got {labels!r}.")
    return _check_labels(labels, name)


# ---- Pipeline ----


class ZeroShotVideoClassificationPipeline(Pipeline):
    r"""
    Classify videos with an [`EZClipModel`] into any classes, given by their names.

    Every argument of a call can be passed to `pipeline` as its default.

    Args:
        model ([`EZClipModel`]):
            Embeds videos and texts. It is put in evaluation mode.
        processor ([`EZClipProcessor`]):
            Reads videos and writes prompts.
        kwargs:
            Arguments of [`Pipeline`]: `device`, `batch_size`, `num_workers`, …

    Example:

    ```python
    >>> from transformers import pipeline

    >>> classifier = pipeline("zero-shot-video-classification", model=folder, trust_remote_code=True)
    >>> classifier("clip.mp4", candidate_labels=["archery", "yoga"])  # [{"score": …, "label": "yoga"}, …]
    >>> best = classifier("clip.mp4", candidate_labels="archery, yoga", background_labels="a person, a room")[0]
    >>> best["label"]  # None if the background has most of the probability
    ```
    """

    _load_processor = True
    _load_tokenizer = False
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False
    _checked_calibration: Calibration | None = None

    def __init__(self, model, *args, processor=None, **kwargs):
        local_files_only = kwargs.pop("local_files_only", False)
        defaults = take_class_options(kwargs)
        if model.config.model_type in BASE_MODELS and hasattr(model, "text_model") and hasattr(model, "vision_model"):
            logger.warning_once(describe_plain(model.name_or_path or "The model", model.config.model_type))
            processor = wrap_clip_processor(processor, model)
            model = wrap_clip(model, local_files_only)
        elif (wrap := WRAPPERS.get(model.config.model_type)) is not None:
            model, processor = wrap(model, processor)
        super().__init__(model, *args, processor=processor, **kwargs)
        self._check_parts()
        self.model.eval()
        self.class_choice = ClassChoice(self, defaults, local_files_only)

    def __call__(
        self, video: Any, candidate_labels: str | Sequence[str] | None = None, **kwargs
    ) -> list[dict[str, Any]] | list[list[dict[str, Any]]]:
        r"""
        Return the score of each class for each video.

        Args:
            video:
                One video: a path, URL, `bytes`, file object, array or tensor of frames, list of images, folder of
                frame images, or row `{"path", "bytes"}` of a `datasets` Video column. Or many: a list of them, a
                generator, a [`KeyDataset`], a column of a data set.
            candidate_labels (`str` or `Sequence[str]`, *optional*):
                Class names; one string is split at its commas. Defaults to those of `descriptions` or the class bank.
            hypothesis_template (`str` or `list[str]`, *optional*), also `hypothesis_templates`:
                Sentences with `{}` for the class. Defaults to the 16 published ones, with `descriptions` to `"{}"`.
            descriptions (`dict[str, Description]`, *optional*):
                One or several texts for each class, used instead of its name; or its steps in order, as
                `{"steps": [step, …]}`, which are aligned with the frames, see [`StepBank`].
            step_score (`str`, *optional*), step_contrast (`float`, *optional*):
                See [`StepBank`]. With one of them, a list of texts in `descriptions` means steps too.
            include_label (`bool`, *optional*), input_conditioning (`bool`, *optional*):
                See [`EZClipProcessor.get_prompts`].
            background_labels (`str` or `Sequence[str]`, *optional*):
                Labels for what a video may show besides the classes. They compete with the others and are
                returned as one, `None`, with the sum of their scores (with sigmoid: the highest). With a
                class bank, they must be labels of it, and default to those it was saved with.
            class_bank ([`ClassBank`], `str` or `os.PathLike`, *optional*):
                Classes that are already embedded, or the folder or repository they were saved in.
            ensemble (`str`, *optional*, defaults to `"probability"`):
                See [`ClassBank.probabilities`].
            top_k (`int`, *optional*):
                Number of labels to return for each video. Defaults to all.
            min_score (`float`, *optional*):
                Lowest score to return, in [0, 1]. A video without such a label gives one entry with the label `None`
                ("none of these") and 1 minus the best score. Defaults to the threshold of `calibration`, or to 0.
            function_to_apply (`str`, *optional*):
                `"softmax"` over the labels, or `"sigmoid"` for each label on its own, see [`Scoring`]. Defaults to
                that of the calibration, or to the model's own.
            calibration ([`Calibration`], `str` or `os.PathLike`, *optional*):
                Factor, bias and threshold that `ezclip calibrate` fitted to this model, or their file.
            num_frames, num_clips, num_crops, start, end, backend, allow_partial, square_pixels, limits (*optional*):
                How videos are read, see [`EZClipProcessor`]. The scores of several views are averaged.
            on_error (`str`, *optional*, defaults to `"raise"`):
                What an unreadable video does: `"raise"` ends the call. `"skip"` logs a warning and returns, in the
                place of the video, one entry with the reason as `error`, whose `score` and `label` are `None`.
            batch_size (`int`, *optional*, defaults to 1), num_workers (`int`, *optional*, defaults to 0):
                Videos embedded at a time, and processes that read them.

        Returns:
            `list[dict]` for one video: `score` (`float`) and `label` (`str`, or `None` for the background), by
            descending score. A list of such lists for a list of videos. An iterator over them for other collections,
            which are read one video after the other.

        Raises:
            [`VideoReadError`]: if a video cannot be read, without `on_error="skip"`. `ValueError`: if an argument is
            out of range, there are no classes, or a prompt is invalid.
        """
        if video is None:
            raise ValueError("`video` is None. Give a path, frames, or another input of `EZClipProcessor`.")
        if candidate_labels is not None:
            kwargs["candidate_labels"] = candidate_labels
        options = take_class_options(kwargs)
        _check_names({*kwargs} - {*SCORE_OPTIONS, *RUN_OPTIONS})
        bank = self.class_choice.choose(options)
        inputs = _as_inputs(video)
        if isinstance(inputs, list) and not inputs:
            return []
        return super().__call__(inputs, bank=bank, **kwargs)

    def merge_defaults(self, **options) -> list[dict]:
        """Return the options of a call, and the pipeline's own, for reading, for scores, and for the answers."""
        own = (self._preprocess_params, self._forward_params, self._postprocess_params)
        return [{**defaults, **given} for defaults, given in zip(own, self._sanitize_parameters(**options))]

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs):
        r"""
        Save the model, the processor, their code, and the class bank of calls without labels, if any.

        `push_to_hub` uploads the folder too, to `repo_id` or a repository of the folder's name. `kwargs` are the
        arguments of [`EZClipModel.save_pretrained`].
        """
        if self.model.config.model_type != EZClipConfig.model_type:
            raise ValueError(
                f"Only EZ-CLIP is saved with its pipeline, got {self.model.config.model_type!r}. Save the model and "
                "its own processor with transformers."
            )
        if push_to_hub and kwargs.get("trained_only"):
            raise ValueError(
                "`trained_only` cannot be combined with `push_to_hub`. Push the model with "
                "`push_to_hub(repo_id, trained_only=True)` and the processor with `push_to_hub(repo_id)`."
            )
        hub = {name: kwargs.pop(name) for name in ("repo_id", *PUSH_OPTIONS) if push_to_hub and name in kwargs}
        bank = self.class_choice.default_bank()
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)
        if bank is not None:
            bank.save_pretrained(save_directory)
        if push_to_hub:
            self.push_to_hub(hub.pop("repo_id", Path(save_directory).name), **hub)

    def load_calibration(self, calibration: Calibration | str | os.PathLike) -> Calibration:
        """
        Return a calibration, read from its file if need be.

        Raises:
            `ValueError`: if it was fitted to other weights, or cannot be read.
        """
        # Each remote-code folder has its own Calibration, so only paths are told by their type.
        given: Any = calibration
        found = Calibration.from_file(given) if isinstance(given, (str, os.PathLike)) else given
        if not hasattr(found, "check_model"):
            raise ValueError(f"`calibration` must be a `Calibration` or the path of its file, got {found!r:.60}.")
        if found != self._checked_calibration:
            found.check_model(self.model)
            self._checked_calibration = found
        return found

    def _sanitize_parameters(
        self,
        bank=None,
        ensemble=None,
        on_error=None,
        top_k=None,
        min_score=None,
        function_to_apply=None,
        calibration=None,
        **kwargs,
    ):
        _check_names(kwargs)
        if ensemble is not None and ensemble not in ENSEMBLES:
            raise ValueError(f"`ensemble` must be one of {ENSEMBLES}, got {ensemble!r}.")
        if on_error is not None and on_error not in ON_ERROR:
            raise ValueError(f"`on_error` must be one of {ON_ERROR}, got {on_error!r}.")
        if top_k is not None and (not isinstance(top_k, Integral) or isinstance(top_k, bool) or top_k < 1):
            raise ValueError(f"`top_k` must be an integer of at least 1, got {top_k!r}. Leave it out for all labels.")
        if min_score is not None:
            _check_min_score(min_score, "min_score")
        if function_to_apply is not None:
            Scoring(function_to_apply)  # raises the error
        if calibration is not None:
            calibration = self.load_calibration(calibration)
        scoring = {"function_to_apply": function_to_apply, "calibration": calibration}
        forward = {"bank": bank, "ensemble": ensemble, "on_error": on_error, **scoring}
        post = {"bank": bank, "top_k": top_k, "min_score": min_score, **scoring}
        return tuple({name: value for name, value in s.items() if value is not None} for s in (kwargs, forward, post))

    def preprocess(self, video, **read_options) -> dict:
        """Read a video as uint8 `pixel_values` `(1, [V,] T, H, W, 3)`, or return its error."""
        try:
            if is_single_video([video]):  # one image, which in a list would be a video of one frame
                raise picture_error(describe_video(video))
            # uint8 pixels are moved to the device and normalised there.
            inputs = self.processor(videos=[video], do_normalize=False, return_tensors="pt", **read_options)
        except ValueError as error:
            # Each remote-code file of a folder has its own VideoReadError.
            if not hasattr(error, "remedy"):
                raise
            # `_forward` raises it. A worker process would change its type.
            return {"pixel_values": torch.empty(0, dtype=torch.uint8), "error": error}
        return {"pixel_values": inputs["pixel_values"], "error": None}

    def _forward(
        self,
        model_inputs: dict,
        bank: ClassBank,
        ensemble: str = "probability",
        on_error: str = "raise",
        function_to_apply: str | None = None,
        calibration: Calibration | None = None,
    ) -> dict:
        scoring = choose_scoring(self.model, function_to_apply, calibration)
        errors = model_inputs["error"] if isinstance(model_inputs["error"], list) else [model_inputs["error"]]
        for error in filter(None, errors):
            if on_error == "raise":
                raise error
            logger.warning(str(error))
        scores = torch.full((len(errors), len(bank.labels)), torch.nan)
        is_read = torch.tensor([error is None for error in errors])
        if is_read.any():
            scores[is_read] = self._score(model_inputs["pixel_values"], bank, ensemble, scoring).cpu()
        return {"scores": scores, "error": [None if error is None else str(error) for error in errors]}  # (B, C)

    def _score(self, pixels: torch.Tensor, bank: ClassBank, ensemble: str, scoring: Scoring) -> torch.Tensor:
        # (B, T, 3, H, W), or (B, V, T, 3, H, W)
        views = self.processor.normalize(pixels).to(self.dtype)
        model: Any = self.model
        embeds = embed_videos(model, bank, views.flatten(0, -5))
        scores = score_embeds(self.model, bank, embeds, ensemble, scoring).unflatten(0, (len(views), -1)).mean(dim=1)
        if not scores.isfinite().all():
            raise ValueError(
                "The scores are not finite. Load the model and its processor again: they may be damaged. If "
                f"{self.model.dtype} overflows, load the model in float32."
            )
        return scores  # (B, C)

    def postprocess(
        self,
        model_outputs: dict,
        bank: ClassBank,
        top_k: int | None = None,
        min_score: float | None = None,
        function_to_apply: str | None = None,
        calibration: Calibration | None = None,
    ) -> list[dict[str, Any]]:
        """Return the labels of one video by descending score."""
        errors = model_outputs["error"]  # of one video; a list if it was not in a batch
        if error := errors[0] if isinstance(errors, list) else errors:
            return [{"score": None, "label": None, "error": error}]
        scoring = choose_scoring(self.model, function_to_apply, calibration)
        if min_score is None:
            min_score = 0.0 if calibration is None else calibration.threshold
        return bank.rank(model_outputs["scores"][0].numpy(), top_k, min_score, scoring.function_to_apply)

    def _check_parts(self):
        config, name = self.model.config, self.model.name_or_path
        if config.model_type != EZClipConfig.model_type and not hasattr(self.model, "encode_videos"):
            raise ValueError(
                f"The model must be an EZ-CLIP, or a dual encoder with both towers, got {name!r} of type "
                f"{config.model_type!r}. Give the folder or repository of one. With `import ezclip`, others load too: "
                "X-CLIP, VideoPrism, …"
            )
        if not hasattr(self.processor, "get_prompts"):
            raise ValueError(
                f"`processor` of {PIPELINE_TASK!r} must be an EZClipProcessor, got {type(self.processor).__name__}. "
                "Save one beside the model (`processor.save_pretrained`)."
            )


def wrap_clip(clip, local_files_only: bool = False) -> EZClipModel:
    """
    Return a dual encoder of `BASE_MODELS`, such as a `CLIPModel`, as an [`EZClipModel`] that averages frames.

    The two share their weights.

    Raises:
        `ValueError`: if weights are quantized, offloaded, or on several devices.
    """
    weights = clip.state_dict()
    devices = {weight.device.type if weight.is_meta else weight.device for weight in weights.values()}
    if len(devices) > 1 or clip.device.type == "meta" or not all(w.is_floating_point() for w in weights.values()):
        raise ValueError(
            f"The weights of a plain dual encoder must be floats on one device, got {clip.name_or_path!r} "
            "quantized, or spread over several. Load it with `device` instead of `device_map`."
        )
    names = ("projection_dim", "logit_scale_init_value", "scope", "function_to_apply")
    own = {name: getattr(clip.config, name) for name in names if hasattr(clip.config, name)}
    config = EZClipConfig.from_preset("clip", clip.config.text_config, clip.config.vision_config, **own)
    with torch.device("meta"):
        model = EZClipModel._from_config(config, attn_implementation=clip.config._attn_implementation)
    model.load_state_dict(weights, assign=True)
    for name, buffer in clip.named_buffers():  # positions, which no file holds
        module, _, own_name = name.rpartition(".")
        setattr(model.get_submodule(module), own_name, buffer)
    model.name_or_path = model.config.name_or_path = clip.name_or_path
    if hasattr(clip, "hf_device_map"):
        model.hf_device_map = clip.hf_device_map
    if clip.name_or_path:
        hub = {"local_files_only": local_files_only, "revision": getattr(clip.config, "_commit_hash", None)}
        model.class_bank_file = cached_file(clip.name_or_path, CLASS_BANK_NAME, **MAY_BE_ABSENT, **hub)
    return model


def wrap_clip_processor(processor, clip):
    """
    Return the processor of a dual encoder as an [`EZClipProcessor`] that prepares frames as it does.

    An [`EZClipProcessor`] is returned unchanged.

    Raises:
        `ValueError`: if its tokenizer is not the model's: transformers makes an empty one if its files are missing.
    """
    tokenizer, image_processor = (getattr(processor, name, None) for name in ("tokenizer", "image_processor"))
    if hasattr(processor, "get_prompts") or tokenizer is None or image_processor is None:
        return processor
    text_config = clip.config.text_config
    if not fits_vocabulary(tokenizer, text_config):
        raise ValueError(
            f"The tokenizer has {len(tokenizer)} tokens and the model {clip.name_or_path!r} {text_config.vocab_size}: "
            "it is of another model, or its files are missing. Pass `processor=` with the right one."
        )
    name = type(image_processor).__name__.removesuffix("Fast")
    if (with_pil := getattr(transformers, f"{name}Pil", None)) is not None:  # torchvision's pixels differ
        image_processor = with_pil.from_dict(image_processor.to_dict())
    tokenizer.model_max_length = min(tokenizer.model_max_length, max_text_length(text_config))
    padding = text_padding_of(clip.config.model_type)
    return EZClipProcessor(image_processor, tokenizer, use_published_crop=False, text_padding=padding)


class _VideoStream(IterableDataset):
    """Read videos one after the other, without keeping them."""

    def __init__(self, videos: Iterable):
        self.videos = videos

    def __iter__(self):
        return iter(self.videos)


def _check_names(names: Iterable[str]):
    if unknown := sorted(set(names) - set(READ_OPTIONS)):
        known = (*CLASS_OPTIONS, *SCORE_OPTIONS, *READ_OPTIONS, *RUN_OPTIONS)
        raise TypeError(f"{unknown} are no arguments of this pipeline. Use one of {', '.join(known)}.")


def _as_inputs(video):
    """Return a collection that [`Pipeline`] iterates over for many videos, and an input that it does not for one."""
    if isinstance(video, (list, tuple)):
        return tuple(video) if is_single_video(video) else list(video)
    if isinstance(video, (str, os.PathLike, bytes, bytearray, memoryview, Mapping, Dataset)) or hasattr(video, "read"):
        return video
    if hasattr(video, "ndim"):
        return video if video.ndim in (2, 3, 4) else list(video)
    if hasattr(video, "column_names"):
        raise ValueError(
            f"`video` must be videos, got a data set with the columns {video.column_names}. Give its column of "
            "videos: `dataset['video']`, or `KeyDataset(dataset, 'video')`."
        )
    if isinstance(video, Sequence):
        return Subset(video, range(len(video)))
    return _VideoStream(video) if isinstance(video, Iterable) else video


__all__ = ["Calibration", "ClassBank", "Scoring", "StepBank", "ZeroShotVideoClassificationPipeline"]
