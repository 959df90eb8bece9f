"""`pipeline("zero-shot-video-classification")`: videos and any list of labels in, the labels with their scores out."""

import json
import os
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.utils.data import Dataset, IterableDataset, Subset
from transformers import Pipeline
from transformers.utils import cached_file


try:
    from .checkpoint_ezclip import PUSH_OPTIONS
    from .configuration_ezclip import CLASS_BANK_NAME, PIPELINE_TASK, EZClipConfig
    from .processing_ezclip import distinct_texts, label_key, label_to_words
    from .video_ezclip import VideoReadError, is_single_video
except ImportError:
    if __package__:  # in a remote-code folder, a missing dependency must keep its own message
        raise
    from checkpoint_ezclip import PUSH_OPTIONS
    from configuration_ezclip import CLASS_BANK_NAME, PIPELINE_TASK, EZClipConfig
    from processing_ezclip import distinct_texts, label_key, label_to_words
    from video_ezclip import VideoReadError, is_single_video


# ---- Class bank ----


ENSEMBLES = ("probability", "embedding")
BATCH_SIZE = 512
NAMES = ("labels", "background_labels")  # in the metadata of the file
# bfloat16 leaves 0.9999, dynamic quantisation to 8 bits 0.998; a trained model and its base are at 0.90 to 0.95.
MIN_COSINE_OF_PROBES = 0.99
FIX_HINT = "Build it with this one (`ClassBank.build`)."


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
        embeds = _embed_texts(model, processor.tokenizer, tokens, batch_size)
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
                f"it was built with another model. {FIX_HINT}"
            )
        if self.probe is not None:
            cosine = float(self.probe.float().cpu() @ _probe(model).cpu())
            if cosine < MIN_COSINE_OF_PROBES:
                raise ValueError(
                    f"The class bank was built with another model, or before this one was trained: of the same text "
                    f"their embeddings have a cosine of {cosine:.4f}. {FIX_HINT}"
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

    def matches(self, model) -> bool:
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


# ---- Classes of a call ----


TEXT_OPTIONS = ("hypothesis_template", "descriptions", "include_label", "input_conditioning")
CLASS_OPTIONS = ("candidate_labels", *TEXT_OPTIONS, "background_labels", "class_bank")
MAX_KEPT = 4  # banks of earlier calls


class ClassChoice:
    """
    Finds or builds the class banks of a pipeline.

    Args:
        pipeline ([`ZeroShotVideoClassificationPipeline`]):
            Its model embeds the texts of classes, its processor writes and tokenizes them.
        defaults (`dict`):
            Those of `CLASS_OPTIONS` that hold where a call does not say otherwise.
        local_files_only (`bool`, *optional*, defaults to `False`):
            Whether banks on the Hub are taken from the cache alone.

    Raises:
        `OSError`: if a class bank is among the defaults and is not there.
        `ValueError`: if it is damaged or does not fit the model.
    """

    def __init__(self, pipeline, defaults: dict, local_files_only: bool = False):
        self.pipeline, self.local_files_only = pipeline, local_files_only
        self._kept: OrderedDict[tuple, ClassBank] = OrderedDict()
        self._beside_model: ClassBank | None = None
        # What can be gone through only once is needed at every call.
        defaults = {n: list(value) if isinstance(value, Iterator) else value for n, value in defaults.items()}
        if "class_bank" in defaults:
            defaults["class_bank"] = self._load(defaults["class_bank"])
        self.defaults = defaults

    def choose(self, given: dict) -> ClassBank:
        """
        The classes that a call asks for.

        Args:
            given (`dict`):
                Those of `CLASS_OPTIONS` that are given.

        Returns:
            [`ClassBank`]: the classes, on the model's device.

        Raises:
            `OSError`: if a class bank is given and is not there.
            `ValueError`: if there are no classes, or the options contradict each other.
        """
        defaults = dict(self.defaults)
        if "class_bank" in given:
            defaults = {name: value for name, value in defaults.items() if name == "background_labels"}
        elif {"candidate_labels", "descriptions"} & set(given):
            defaults.pop("class_bank", None)
            defaults.pop("candidate_labels", None)  # which may be others than those described
        options = {**defaults, **given}
        background = _as_labels(options.pop("background_labels", []), "background_labels")
        descriptions = options.get("descriptions")
        if descriptions is not None and not (isinstance(descriptions, Mapping) and descriptions):
            raise ValueError(
                f"`descriptions` has for each label its text or texts: give a dictionary, not {descriptions!r}."
            )
        labels = options.pop("candidate_labels", None)
        if labels is None and descriptions is not None:
            labels = list(descriptions)
        if labels is None:
            if "class_bank" not in options:  # a default says how labels are written, and here are none
                options = {name: value for name, value in options.items() if name in given}
            bank = self._find(**options)
            return replace(bank, background_labels=background) if background else bank
        if "class_bank" in options:
            raise ValueError("A `class_bank` has its classes already: leave it out, or the labels and descriptions.")
        labels = _as_labels(labels, "candidate_labels")
        if not labels:
            raise ValueError("`candidate_labels` is empty. Give at least one label.")
        if both := sorted(set(labels) & set(background)):
            raise ValueError(f"{both[0]!r} is among the `candidate_labels` and the `background_labels`.")
        return replace(self._build(labels, background, **options), background_labels=background)

    def default_bank(self) -> ClassBank | None:
        """What a call that says nothing of classes uses, if there are any."""
        if {"candidate_labels", "descriptions", "class_bank"} & set(self.defaults):
            return self.choose({})
        return self._find_beside_model()

    def _build(
        self,
        labels: list[str],
        background: list[str],
        hypothesis_template: str | Iterable[str] | None = None,
        descriptions: Mapping[str, str | list[str]] | None = None,
        include_label: bool = False,
        input_conditioning: bool = False,
    ) -> ClassBank:
        """The classes embedded; or as they were for an earlier call, if neither texts nor weights have changed."""
        if hypothesis_template is not None and not isinstance(hypothesis_template, str):
            hypothesis_template = list(hypothesis_template)
        if descriptions is not None:
            described = {label_key(name) for name in descriptions}
            own = {label: label_to_words(label) for label in background if label_key(label) not in described}
            descriptions = {**own, **descriptions}
        texts = (hypothesis_template, descriptions, include_label, input_conditioning)
        model, processor = self.pipeline.model, self.pipeline.processor
        key = (*labels, *background), repr(texts), processor.split_camel_case, id(processor.tokenizer)
        if key not in self._kept or not self._kept[key].matches(model):
            self._kept[key] = ClassBank.build(model, processor, [*labels, *background], *texts)
            if len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def _find(self, class_bank: ClassBank | str | os.PathLike | None = None, **texts) -> ClassBank:
        if texts:
            raise ValueError(
                f"`{min(texts)}` goes with `candidate_labels`: the texts of a class bank are embedded already."
            )
        bank = self._find_beside_model() if class_bank is None else self._load(class_bank)
        if bank is None:
            raise ValueError(
                "There are no classes: give `candidate_labels`, `descriptions` or a `class_bank`. (No class bank was "
                f"saved beside the model, {self.pipeline.model.name_or_path!r}, when it was loaded.)"
            )
        return bank

    def _find_beside_model(self) -> ClassBank | None:
        model = self.pipeline.model
        if model.class_bank_file is None:
            return None
        self._beside_model = self._load(self._beside_model or ClassBank.from_file(model.class_bank_file))
        return self._beside_model

    def _load(self, class_bank: ClassBank | str | os.PathLike) -> ClassBank:
        model, place = self.pipeline.model, ""
        if not hasattr(class_bank, "embeds"):
            place = f"{str(class_bank)!r}: "
            class_bank = ClassBank.from_pretrained(class_bank, local_files_only=self.local_files_only)
        try:
            class_bank.check_model(model)
        except ValueError as error:
            raise ValueError(f"{place}{error}") from error
        if class_bank.embeds.device == model.device:
            return class_bank
        return replace(class_bank, embeds=class_bank.embeds.to(model.device))


def take_class_options(kwargs: dict) -> dict:
    """Take what is given of `CLASS_OPTIONS` out of `kwargs`."""
    several = kwargs.pop("hypothesis_templates", None)
    options = {name: kwargs.pop(name) for name in CLASS_OPTIONS if name in kwargs}
    if several is not None:
        if options.get("hypothesis_template") is not None:
            raise ValueError("`hypothesis_template` and `hypothesis_templates` are one argument: leave out one.")
        options["hypothesis_template"] = several
    return {name: value for name, value in options.items() if value is not None}


def _as_labels(labels: str | Iterable[str], name: str) -> list[str]:
    if isinstance(labels, str):
        labels = [label.strip() for label in labels.split(",") if label.strip()]
    if not isinstance(labels, Iterable) or isinstance(labels, Mapping):
        raise ValueError(f"`{name}` are names of classes, in a list or between commas; got {labels!r}.")
    labels = list(labels)
    for label in labels:
        if not isinstance(label, str) or not label_to_words(label):
            raise ValueError(f"`{name}` are names of classes; {label!r} is among them and is none.")
    return labels


# ---- Pipeline ----


SCORE_OPTIONS = ("ensemble", "top_k", "min_score")
RUN_OPTIONS = ("batch_size", "num_workers")
CALL_OPTIONS = (*SCORE_OPTIONS, *RUN_OPTIONS)
READ_OPTIONS = ("num_frames", "num_clips", "num_crops", "start", "end", "backend", "allow_partial")


class ZeroShotVideoClassificationPipeline(Pipeline):
    r"""
    Classifies videos with an [`EZClipModel`] into any classes, given by their names.

    Whatever a call takes can be given to `pipeline` too, as its default.

    Args:
        model ([`EZClipModel`]):
            Embeds videos and texts. It is put in evaluation mode.
        processor ([`EZClipProcessor`]):
            Reads videos and writes prompts.
        kwargs:
            Those of [`Pipeline`]: `device`, `batch_size`, `num_workers`, …

    Example:

    ```python
    >>> from transformers import pipeline

    >>> classifier = pipeline("zero-shot-video-classification", model=folder, trust_remote_code=True)
    >>> classifier("clip.mp4", candidate_labels=["archery", "yoga"])  # [{"score": …, "label": "yoga"}, …]
    >>> best = classifier("clip.mp4", candidate_labels="archery, yoga", background_labels="a person, a room")[0]
    >>> best["label"]  # None where the background has most of the probability
    ```
    """

    _load_processor = True
    _load_tokenizer = False
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False

    def __init__(self, *args, **kwargs):
        local_files_only = kwargs.pop("local_files_only", False)
        defaults = take_class_options(kwargs)
        super().__init__(*args, **kwargs)
        self._check_model()
        self.model.eval()
        self.class_choice = ClassChoice(self, defaults, local_files_only)

    def __call__(
        self, video: Any, candidate_labels: str | Sequence[str] | None = None, **kwargs
    ) -> list[dict[str, Any]] | list[list[dict[str, Any]]]:
        r"""
        How likely each class is for each video.

        Args:
            video:
                One video: a path, URL, `bytes`, file object, array or tensor of frames, list of images, folder of
                frame images, or row `{"path", "bytes"}` of a `datasets` Video column. Or many: a list of them, a
                generator, a [`KeyDataset`], a column of a data set.
            candidate_labels (`str` or `Sequence[str]`, *optional*):
                Names of the classes; one string holds several between commas. By default those of `descriptions`, or
                of the class bank that is given or saved beside the model.
            hypothesis_template (`str` or `list[str]`, *optional*), also `hypothesis_templates`:
                Sentences with `{}` where the name goes. Defaults to the 16 published ones, with `descriptions` to
                `"{}"`.
            descriptions (`dict[str, str | list[str]]`, *optional*):
                One or several texts for each class, in place of its name.
            include_label (`bool`, *optional*), input_conditioning (`bool`, *optional*):
                See [`EZClipProcessor.get_prompts`].
            background_labels (`str` or `Sequence[str]`, *optional*):
                What a video may show that is none of the classes. These labels compete with the others and are
                returned as one, `None`, with the sum of their scores. With a class bank, some of its labels; by
                default those it was saved with.
            class_bank ([`ClassBank`], `str` or `os.PathLike`, *optional*):
                Classes that were embedded before, or the folder or repository they were saved in.
            ensemble (`str`, *optional*, defaults to `"probability"`):
                See [`ClassBank.probabilities`].
            top_k (`int`, *optional*):
                Labels to return of each video. Defaults to all.
            min_score (`float`, *optional*, defaults to 0):
                The least score to return, from 0 to 1. A video in which no label has it gives an empty list.
            num_frames, num_clips, num_crops, start, end, backend, allow_partial (*optional*):
                How videos are read, see [`EZClipProcessor`]. The scores of several views are averaged.
            batch_size (`int`, *optional*, defaults to 1), num_workers (`int`, *optional*, defaults to 0):
                Videos that are embedded at a time, and processes that read them.

        Returns:
            `list[dict]` for one video, a dictionary for each label, the most likely first: `score` (`float`), and
            `label` (`str`, or `None` for the background). A list of such lists for a list of videos; for other
            collections, which are read one video after the other, an iterator over them.

        Raises:
            [`VideoReadError`]: if a video cannot be read. `ValueError`: if an argument is out of range, there are no
            classes, or their texts cannot be written.
        """
        if video is None:
            raise ValueError("`video` is None. Give a path, frames, or whatever else `EZClipProcessor` reads.")
        if candidate_labels is not None:
            kwargs["candidate_labels"] = candidate_labels
        options = take_class_options(kwargs)
        _check_names({name: value for name, value in kwargs.items() if name not in CALL_OPTIONS})
        bank = self.class_choice.choose(options)
        inputs = _as_inputs(video)
        if isinstance(inputs, list) and not inputs:
            return []
        return super().__call__(inputs, bank=bank, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs):
        r"""
        Save model and processor, with the code of all, and the class bank that a call without labels uses, if any.

        Args:
            save_directory (`str` or `os.PathLike`):
                The folder to write.
            push_to_hub (`bool`, *optional*, defaults to `False`):
                Whether to upload all of it too, to `repo_id` or a repository of the folder's name.
            kwargs:
                The arguments of [`EZClipModel.save_pretrained`].
        """
        if push_to_hub and kwargs.get("trained_only"):
            raise ValueError(
                "A pipeline uploads the whole model. To upload what was trained alone, call `push_to_hub(repo_id, "
                "trained_only=True)` of its model, and `push_to_hub(repo_id)` of its processor."
            )
        hub = {name: kwargs.pop(name) for name in ("repo_id", *PUSH_OPTIONS) if push_to_hub and name in kwargs}
        bank = self.class_choice.default_bank()
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)
        if bank is not None:
            bank.save_pretrained(save_directory)
        if push_to_hub:
            self.push_to_hub(hub.pop("repo_id", Path(save_directory).name), **hub)

    def _sanitize_parameters(
        self,
        bank: ClassBank | None = None,
        ensemble: str | None = None,
        top_k: int | None = None,
        min_score: float | None = None,
        **kwargs,
    ) -> tuple[dict, dict, dict]:
        _check_names(kwargs)
        if ensemble is not None and ensemble not in ENSEMBLES:
            raise ValueError(f"`ensemble` must be one of {ENSEMBLES}, got {ensemble!r}.")
        if top_k is not None and (not isinstance(top_k, Integral) or isinstance(top_k, bool) or top_k < 1):
            raise ValueError(
                f"`top_k` must be a whole number of at least 1, got {top_k!r}. Without it, all are returned."
            )
        if min_score is not None and not (isinstance(min_score, Real) and 0.0 <= min_score <= 1.0):
            raise ValueError(f"`min_score` must be a probability from 0 to 1, got {min_score!r}.")
        forward = {"bank": bank, "ensemble": ensemble}
        post = {"bank": bank, "top_k": top_k, "min_score": min_score}
        return tuple(
            {name: value for name, value in stage.items() if value is not None} for stage in (kwargs, forward, post)
        )

    def preprocess(self, video, **read_options) -> dict:
        if is_single_video([video]):
            raise ValueError("An image is not a video. Give a list of images, or a path.")
        try:
            # Bytes, which are moved to the device and normalised there
            inputs = self.processor(videos=[video], do_normalize=False, return_tensors="pt", **read_options)
        except VideoReadError as error:
            # Raised in `_forward`: out of a worker process it would come as another error.
            return {"pixel_values": torch.empty(0), "error": error}
        return {"pixel_values": inputs["pixel_values"], "error": None}

    def _forward(self, model_inputs: dict, bank: ClassBank, ensemble: str = "probability") -> dict:
        errors = model_inputs["error"]
        for error in errors if isinstance(errors, list) else [errors]:
            if error is not None:
                raise error
        # [B, T, 3, H, W], or [B, V, T, 3, H, W]
        views = self.processor.normalize(model_inputs["pixel_values"]).to(self.dtype)
        video_embeds = self.model.get_video_features(
            views.flatten(0, -5), output_last_hidden_state=False
        ).pooler_output
        scores = bank.probabilities(video_embeds, ensemble).unflatten(0, (len(views), -1)).mean(dim=1)
        if not scores.isfinite().all():
            raise ValueError(
                "The scores are not finite. Is the model or its processor damaged, or does its precision overflow "
                f"({self.model.dtype})? Load it again, or in float32."
            )
        return {"scores": scores}  # [B, C]

    def postprocess(
        self,
        model_outputs: dict,
        bank: ClassBank,
        top_k: int | None = None,
        min_score: float = 0.0,
    ) -> list[dict[str, Any]]:
        labels, scores = bank.join_background(model_outputs["scores"][0].numpy())
        order = np.argsort(-scores, kind="stable")[:top_k]
        return [{"score": float(scores[i]), "label": labels[i]} for i in order if scores[i] >= min_score]

    def _check_model(self):
        config, name = self.model.config, self.model.name_or_path
        if config.model_type != EZClipConfig.model_type:
            remedy = "Give the folder or repository of one."
            if config.model_type == "clip":
                remedy = (
                    "Plain CLIP is one by another name: save it with `ezclip.loading.load_model("
                    f"{name!r}, preset='clip').save_pretrained(folder)` and `ezclip.loading.load_processor({name!r}, "
                    "preset='clip').save_pretrained(folder)`, and give that folder."
                )
            raise ValueError(
                f"{name!r} is a model of type {config.model_type!r}, and this pipeline takes an EZ-CLIP. {remedy}"
            )
        if not hasattr(self.processor, "get_prompts"):
            raise ValueError(
                f"{PIPELINE_TASK!r} needs an EZClipProcessor as its `processor`, got "
                f"{type(self.processor).__name__}. Save one beside the model (`processor.save_pretrained`)."
            )


class VideoStream(IterableDataset):
    """Videos one after the other, none kept."""

    def __init__(self, videos: Iterable):
        self.videos = videos

    def __iter__(self):
        return iter(self.videos)


def _check_names(kwargs: dict):
    if unknown := sorted(set(kwargs) - set(READ_OPTIONS)):
        known = (*CLASS_OPTIONS, *SCORE_OPTIONS, *READ_OPTIONS, *RUN_OPTIONS)
        raise TypeError(f"{unknown} are no arguments of this pipeline. Those it has: {', '.join(known)}.")


def _as_inputs(video):
    """Many videos as what [`Pipeline`] goes through; one as it is, or as what [`Pipeline`] takes for one."""
    if isinstance(video, (list, tuple)):
        return tuple(video) if is_single_video(video) else list(video)
    if isinstance(video, (str, os.PathLike, bytes, bytearray, memoryview, Mapping, Dataset)) or hasattr(video, "read"):
        return video
    if hasattr(video, "ndim"):
        return video if video.ndim in (2, 3, 4) else list(video)
    if hasattr(video, "column_names"):
        raise ValueError(
            f"A data set has columns ({video.column_names}); give the one with the videos: `dataset['video']`, or "
            "`KeyDataset(dataset, 'video')`."
        )
    if isinstance(video, Sequence):
        return Subset(video, range(len(video)))
    return VideoStream(video) if isinstance(video, Iterable) else video


__all__ = ["ClassBank", "ZeroShotVideoClassificationPipeline"]
