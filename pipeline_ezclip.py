"""`pipeline("zero-shot-video-classification")`: videos and any list of labels in, the labels with their scores out."""

import os
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, Subset
from transformers import Pipeline

from .adapters_ezclip import PUSH_OPTIONS
from .class_bank_ezclip import ENSEMBLES, ClassBank
from .class_choice_ezclip import CLASS_OPTIONS, ClassChoice, take_class_options
from .configuration_ezclip import PIPELINE_TASK, EZClipConfig
from .video_ezclip import VideoReadError, is_single_video


if TYPE_CHECKING:
    # transformers up to 5.6 loads from a folder what this module imports, and not what that imports.
    from .container_ezclip import PictureCheck  # noqa: F401
    from .decoding_ezclip import decode_video  # noqa: F401
    from .limits_ezclip import check_sizes  # noqa: F401
    from .processing_ezclip import EZClipProcessor  # noqa: F401
    from .sampling_ezclip import FrameSampler  # noqa: F401
    from .text_cache_ezclip import find_or_embed  # noqa: F401


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


__all__ = ["ZeroShotVideoClassificationPipeline"]
