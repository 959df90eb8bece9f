"""Scores of every video of a split, each counted once on any number of processes, and what is written of them."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.numpy import save_file
from tqdm.auto import tqdm

from ezclip.constants import EVAL_SETTINGS_NAME, PREDICTIONS_NAME, UNKNOWN_LABEL, VIDEO_EMBEDS_NAME
from ezclip.data.dataset import ReadReport, VideoDataset, make_loader
from ezclip.data.sources import VideoSplit
from ezclip.errors import ModelError
from ezclip.evaluation.metrics import TopKAccuracy
from ezclip.utils.files import replacing, write_json
from modeling_ezclip import EZClipModel
from pipeline_ezclip import ClassBank


# Beside predictions.jsonl, with the digest of it that they belong to


@dataclass
class Predictions:
    """
    Class probabilities of the videos of a split.

    Args:
        split ([`VideoSplit`]):
            The videos.
        class_names (`list[str]`):
            The C classes.
        indices (`np.ndarray` of shape `(n,)`):
            Positions in the split of the videos that were read, ascending.
        probabilities (`np.ndarray` of shape `(n, C)`):
            Their class probabilities.
        report ([`ReadReport`]):
            Which videos were not read, or only in part.
        video_embeds (`np.ndarray` of shape `(n, D)`, *optional*):
            Their embeddings, of length 1, where they were kept.
    """

    split: VideoSplit
    class_names: list[str]
    indices: np.ndarray
    probabilities: np.ndarray
    report: ReadReport
    video_embeds: np.ndarray | None = None

    def metrics(self) -> dict[str, float | int]:
        """Top-1 and top-5 accuracy (fractions) over the videos that were read, and how many were and were not."""
        results = {
            "eval_samples": len(self.indices),
            "eval_bad_videos": len(self.report.bad_videos),
            "eval_partial_videos": len(self.report.partial_videos),
        }
        if len(self.indices):
            labels = np.asarray(self.split.videos["label"])[self.indices]
            accuracy = TopKAccuracy(keep_in_memory=True).compute(predictions=self.probabilities, references=labels)
            results = {**{f"eval_{name}": value for name, value in accuracy.items()}, **results}
        return results

    def write(self, output_dir: str | Path, top_k: int = 5, settings: dict | None = None):
        """
        Write `predictions.jsonl`, a line per video with its `top_k` labels and scores; the [`ReadReport`]; and what a
        report needs besides: `eval_settings.json`, and `video_embeds.safetensors` where embeddings were kept.

        Args:
            output_dir (`str` or `Path`):
                The folder, in which the files of an earlier evaluation are replaced or removed.
            top_k (`int`, *optional*, defaults to 5):
                Labels that are written of each video.
            settings (`dict`, *optional*):
                How the predictions were made, of types that JSON has.
        """
        output_dir = Path(output_dir)
        output_dir.mkdir(parents=True, exist_ok=True)
        with open(output_dir / PREDICTIONS_NAME, "w", encoding="utf-8") as file:
            names, labels = self.split.videos["name"][:], self.split.videos["label"][:]
            for index, scores in zip(self.indices.tolist(), self.probabilities):
                line = {"video": names[index]}
                if labels[index] != UNKNOWN_LABEL and self.split.class_names is not None:
                    line["label"] = self.split.class_names[labels[index]]
                line["predictions"] = [
                    {"label": self.class_names[i], "score": float(scores[i])}
                    for i in np.argsort(-scores, kind="stable")[:top_k]
                ]
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self.report.write(output_dir, self.split)
        with open(output_dir / PREDICTIONS_NAME, "rb") as file:
            digest = {"predictions_sha256": hashlib.file_digest(file, "sha256").hexdigest()}
        for name in (EVAL_SETTINGS_NAME, VIDEO_EMBEDS_NAME):
            (output_dir / name).unlink(missing_ok=True)
        if settings is not None:
            write_json(output_dir / EVAL_SETTINGS_NAME, {**digest, **settings, "class_names": self.class_names})
        if self.video_embeds is not None:
            with replacing(output_dir / VIDEO_EMBEDS_NAME) as temporary:
                save_file({"video_embeds": self.video_embeds}, temporary, metadata=digest)


@torch.no_grad()
def predict(
    model: EZClipModel,
    bank: ClassBank,
    dataset: VideoDataset,
    accelerator: Accelerator | None = None,
    batch_size: int = 8,
    num_workers: int = 0,
    ensemble: str = "probability",
    strict: bool = False,
    desc: str = "Evaluating",
    keep_embeds: bool = False,
) -> Predictions:
    """
    Class probabilities of all videos of a data set; of several views of a video, their mean.

    Args:
        model ([`EZClipModel`]):
            What embeds the videos. It is put in evaluation mode.
        bank ([`ClassBank`]):
            The classes.
        dataset ([`VideoDataset`]):
            The videos, without prompts.
        accelerator (`Accelerator`, *optional*):
            Spreads the work over its processes. All of them return the whole result.
        batch_size (`int`, *optional*, defaults to 8):
            Videos per process at a time.
        num_workers (`int`, *optional*, defaults to 0):
            Processes that decode.
        ensemble (`str`, *optional*, defaults to `"probability"`):
            See [`~ClassBank.probabilities`].
        strict (`bool`, *optional*, defaults to `False`):
            Whether the first unreadable video ends the run.
        desc (`str`, *optional*):
            What the progress bar says.
        keep_embeds (`bool`, *optional*, defaults to `False`):
            Whether to return the embeddings of the videos too; of several views of a video, their mean.

    Raises:
        [`VideoReadError`]: with `strict`, for the first unreadable video.
    """
    accelerator = accelerator or Accelerator()
    loader = accelerator.prepare(make_loader(dataset, batch_size, num_workers))
    model = accelerator.unwrap_model(model).to(accelerator.device).eval()
    gathered, report = [], ReadReport()
    for batch in tqdm(loader, desc=desc, unit="batch", disable=not accelerator.is_local_main_process):
        report.take(batch, strict)
        embeds = embed_views(model, dataset.processor.normalize(batch["frames"]), accelerator)
        results = [batch["index"], mean_probabilities(bank, embeds, ensemble)]
        if keep_embeds:
            directions = torch.nn.functional.normalize(embeds, dim=-1)
            results.append(torch.nn.functional.normalize(directions.mean(dim=1), dim=-1))
        # Drops what the last batch repeats to fill up all processes.
        gathered.append(accelerator.gather_for_metrics(tuple(results)))
    report.gather()
    indices, *results = (torch.cat(batches).cpu().numpy() for batches in zip(*gathered))
    order = np.argsort(indices)
    order = order[~np.isin(indices[order], list(report.bad_videos))]
    return Predictions(
        dataset.split, bank.labels, indices[order], results[0][order], report, *(r[order] for r in results[1:])
    )


def view_probabilities(
    model: EZClipModel, bank: ClassBank, views: torch.Tensor, ensemble: str, accelerator: Accelerator
) -> torch.Tensor:
    """
    Class probabilities of videos, of several views of one their mean.

    Args:
        model ([`EZClipModel`]):
            What embeds them.
        bank ([`ClassBank`]):
            The C classes.
        views (`torch.Tensor` of shape `(B, T, 3, H, W)` or `(B, V, T, 3, H, W)`):
            Pixels.
        ensemble (`str`):
            See [`~ClassBank.probabilities`].
        accelerator (`Accelerator`):
            In whose precision they are embedded; they are compared in float32.

    Returns:
        `torch.Tensor` of shape `(B, C)`: float32.

    Raises:
        [`ModelError`]: if an embedding is not finite.
    """
    return mean_probabilities(bank, embed_views(model, views, accelerator), ensemble)


def embed_views(model: EZClipModel, views: torch.Tensor, accelerator: Accelerator) -> torch.Tensor:
    """
    Embeddings of videos, not normalised.

    Args:
        model ([`EZClipModel`]), views (`torch.Tensor`), accelerator (`Accelerator`):
            See [`view_probabilities`].

    Returns:
        `torch.Tensor` of shape `(B, V, D)`: float32; V is 1 where there is a single view.
    """
    with accelerator.autocast():
        embeds = model.get_video_features(views.flatten(0, -5), output_last_hidden_state=False).pooler_output
    return embeds.float().unflatten(0, (len(views), -1))


def mean_probabilities(bank: ClassBank, embeds: torch.Tensor, ensemble: str) -> torch.Tensor:
    """
    Class probabilities of videos, the mean over their views.

    Args:
        bank ([`ClassBank`]):
            The C classes.
        embeds (`torch.Tensor` of shape `(B, V, D)`):
            Embeddings of the views.
        ensemble (`str`):
            See [`~ClassBank.probabilities`].

    Returns:
        `torch.Tensor` of shape `(B, C)`: float32.

    Raises:
        [`ModelError`]: if an embedding is not finite.
    """
    scores = bank.probabilities(embeds.flatten(0, 1), ensemble)
    if not scores.isfinite().all():  # which no finite embedding, of a video or a class, gives
        raise ModelError(
            "The model gives embeddings that are no finite numbers: its weights are damaged, or, with "
            "--mixed_precision fp16, too large for float16. Take other weights, or --mixed_precision bf16."
        )
    return scores.unflatten(0, embeds.shape[:2]).mean(dim=1)
