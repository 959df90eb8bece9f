"""Labelled clips, embedded once."""

from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator

from ezclip.data.dataset import ReadReport, VideoDataset
from ezclip.encoders import DualEncoder
from ezclip.errors import DataError, ModelError
from ezclip.evaluation.predictions import predict
from ezclip.few_shot.fitting import check_fits, choose_clip_weight, fit_class_bank
from pipeline_ezclip import ClassBank
from processing_ezclip import label_key


@dataclass
class Shots:
    """
    Labelled clips, embedded by a model.

    Args:
        video_embeds (`torch.FloatTensor` of shape `(N, D)`):
            Their L2-normalised embeddings, averaged over views.
        labels (`np.ndarray` of shape `(N,)`):
            Their classes, as positions in `class_names`.
        class_names (`list[str]`):
            The classes.
        clip_weight (`float`):
            Weight of a clip beside the text of its class, see [`fit_class_bank`].
        report ([`ReadReport`]):
            The videos that were not read, or only in part.
    """

    video_embeds: torch.Tensor
    labels: np.ndarray
    class_names: list[str]
    clip_weight: float
    report: ReadReport

    def fit(self, bank: ClassBank) -> ClassBank:
        """
        Add the clips to the classes of a bank with the same names, see [`fit_class_bank`].

        Case, spaces, underscores and punctuation of names do not matter. Clips of other classes are left out. A bank
        of other classes only is returned as it is.
        """
        positions = {label_key(name): i for i, name in enumerate(bank.labels)}
        labels = np.array([positions.get(label_key(name), -1) for name in self.class_names])[self.labels]
        is_known = labels >= 0
        if not is_known.any():
            return bank
        video_embeds = self.video_embeds[torch.from_numpy(is_known)]
        return fit_class_bank(bank, video_embeds, labels[is_known], self.clip_weight)


def embed_shots(
    model: DualEncoder,
    bank: ClassBank,
    dataset: VideoDataset,
    accelerator: Accelerator | None = None,
    batch_size: int = 8,
    num_workers: int = 0,
    strict: bool = False,
    clip_weight: float | None = None,
) -> Shots:
    """
    Embed labelled clips. Nothing is augmented: clips are read as in evaluation.

    Args:
        model ([`VideoTextEncoder`]):
            The model. It must compare a video and a text by the cosine of two vectors.
        bank ([`ClassBank`]):
            The texts of all classes of the dataset, in their order.
        dataset ([`VideoDataset`]):
            The clips, without prompts. Several views of a clip are averaged.
        accelerator, batch_size, num_workers, strict (*optional*):
            See [`predict`]. All processes return all clips.
        clip_weight (`float`, *optional*):
            Weight of a clip. Defaults to the best one for these clips and texts, see [`choose_clip_weight`].

    Raises:
        [`ModelError`]: if the model has its own `score`. `ValueError`: if the bank aligns steps with frames.
        [`DataError`]: if no clip can be read. [`VideoReadError`]: with `strict`, for the first unreadable clip.

    Example:

    ```python
    >>> model, processor = load_encoder(name), load_processor(name)
    >>> split = load_folder("my_clips")  # a folder for each class
    >>> texts = ClassBank.build(model, processor, split.class_names)
    >>> bank = embed_shots(model, texts, VideoDataset(split, processor)).fit(texts)
    ```
    """
    check_fits(bank)
    if hasattr(model, "score"):
        raise ModelError(
            f"{model.name_or_path} ({model.config.model_type}) compares videos and texts by a score of its own, and "
            "clips can be added to texts only where the cosine of two vectors compares them. Give another model."
        )
    predictions = predict(
        model, bank, dataset, accelerator, batch_size, num_workers, strict=strict, desc="Embedding", keep_embeds=True
    )
    if not len(predictions.indices):
        raise DataError(
            f"None of the {len(dataset)} labelled videos could be read; the first: "
            f"{next(iter(predictions.report.bad_videos.values()))}"
        )
    assert predictions.video_embeds is not None  # kept
    video_embeds = torch.from_numpy(predictions.video_embeds)
    labels = np.asarray(dataset.split.videos["label"])[predictions.indices]
    if clip_weight is None:
        clip_weight = choose_clip_weight(bank, video_embeds, labels)
    return Shots(video_embeds, labels, bank.labels, clip_weight, predictions.report)
