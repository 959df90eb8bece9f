"""Predict the videos of a split on any number of processes, measure the accuracy, and write the results."""

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
from ezclip.encoders import DualEncoder
from ezclip.errors import ModelError
from ezclip.evaluation.metrics import accuracies_of, rank_labels
from ezclip.utils.digests import digest_file
from ezclip.utils.files import as_json_line, replacing, write_json
from pipeline_ezclip import ClassBank, Scoring, embed_videos, score_embeds


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
            The videos that were not read, or only in part.
        video_embeds (`np.ndarray` of shape `(n, D)`, *optional*):
            Their L2-normalised embeddings, if they were kept.
    """

    split: VideoSplit
    class_names: list[str]
    indices: np.ndarray
    probabilities: np.ndarray
    report: ReadReport
    video_embeds: np.ndarray | None = None

    def metrics(self) -> dict[str, float | int]:
        """Return the accuracies (fractions) over the videos that were read, and the numbers of read and bad videos."""
        results = {
            "eval_samples": len(self.indices),
            "eval_bad_videos": len(self.report.bad_videos),
            "eval_partial_videos": len(self.report.partial_videos),
        }
        if len(self.indices):
            labels = np.asarray(self.split.videos["label"])[self.indices]
            accuracies = accuracies_of(rank_labels(self.probabilities, labels), labels)
            results = {**{f"eval_{name}": value for name, value in accuracies.items()}, **results}
        return results

    def write(self, output_dir: str | Path, top_k: int = 5, settings: dict | None = None):
        """
        Write `predictions.jsonl`, the [`ReadReport`], `eval_settings.json` and `video_embeds.safetensors`.

        The last two are for reports. Both hold the digest of the `predictions.jsonl` that they belong to.

        Args:
            output_dir (`str` or `Path`):
                The folder. Files of an earlier evaluation are replaced or removed.
            top_k (`int`, *optional*, defaults to 5):
                Number of labels to write for each video.
            settings (`dict`, *optional*):
                How the predictions were made, in types that JSON has. Without it, no `eval_settings.json` is written.
        """
        output_dir = Path(output_dir)
        output_dir.mkdir(parents=True, exist_ok=True)
        with open(output_dir / PREDICTIONS_NAME, "w", encoding="utf-8") as file:
            names, labels = self.split.videos["name"][:], self.split.videos["label"][:]
            rows = self.split.row_numbers
            for index, scores in zip(self.indices.tolist(), self.probabilities):
                line = {"row": rows[index], "video": names[index]}
                if labels[index] != UNKNOWN_LABEL and self.split.class_names is not None:
                    line["label"] = self.split.class_names[labels[index]]
                line["predictions"] = [
                    {"label": self.class_names[i], "score": float(scores[i])}
                    for i in np.argsort(-scores, kind="stable")[:top_k]
                ]
                file.write(as_json_line(line))
        self.report.write(output_dir, self.split)
        digest = {"predictions_sha256": digest_file(output_dir / PREDICTIONS_NAME)}
        for name in (EVAL_SETTINGS_NAME, VIDEO_EMBEDS_NAME):
            (output_dir / name).unlink(missing_ok=True)
        if settings is not None:
            write_json(output_dir / EVAL_SETTINGS_NAME, {**digest, **settings, "class_names": self.class_names})
        if self.video_embeds is not None:
            with replacing(output_dir / VIDEO_EMBEDS_NAME) as temporary:
                save_file({"video_embeds": self.video_embeds}, temporary, metadata=digest)


@torch.no_grad()
def predict(
    model: DualEncoder,
    bank: ClassBank,
    dataset: VideoDataset,
    accelerator: Accelerator | None = None,
    batch_size: int = 8,
    num_workers: int = 0,
    ensemble: str = "probability",
    strict: bool = False,
    desc: str = "Evaluating",
    keep_embeds: bool = False,
    scoring: Scoring | None = None,
    pad_batches: bool = False,
) -> Predictions:
    """
    Predict the class probabilities of all videos of a dataset. The views of a video are averaged.

    Args:
        model ([`VideoTextEncoder`]):
            The model. It is put in evaluation mode.
        bank ([`ClassBank`]):
            The classes.
        dataset ([`VideoDataset`]):
            The videos, without prompts.
        accelerator (`Accelerator`, *optional*):
            The processes that share the work. All of them return the whole result.
        batch_size (`int`, *optional*, defaults to 8):
            Videos of a batch on each process.
        num_workers (`int`, *optional*, defaults to 0):
            Number of decoding processes for each process.
        ensemble (`str`, *optional*, defaults to `"probability"`):
            See [`~ClassBank.probabilities`].
        strict (`bool`, *optional*, defaults to `False`):
            Whether the first unreadable video ends the run.
        desc (`str`, *optional*):
            Label of the progress bar.
        keep_embeds (`bool`, *optional*, defaults to `False`):
            Whether to return the embeddings of the videos too, averaged over views.
        scoring ([`Scoring`], *optional*):
            How similarities become scores. Defaults to the model's own.
        pad_batches (`bool`, *optional*, defaults to `False`):
            Whether to fill smaller batches with copies, which are dropped, for a model that is compiled for one size.

    Raises:
        [`VideoReadError`]: with `strict`, for the first unreadable video.
    """
    accelerator = accelerator or Accelerator()
    loader = accelerator.prepare(make_loader(dataset, batch_size, num_workers))
    model = accelerator.unwrap_model(model).to(accelerator.device).eval()
    gathered, report = [], ReadReport()
    for batch in tqdm(loader, desc=desc, unit="batch", disable=not accelerator.is_local_main_process):
        report.take(batch, strict)
        views = dataset.processor.normalize(batch["frames"])
        padded = pad_batch(views, batch_size) if pad_batches else views
        embeds = embed_views(model, bank, padded, accelerator)[: len(views)]
        results = [batch["index"], mean_probabilities(model, bank, embeds, ensemble, scoring)]
        if keep_embeds:
            own = embeds if embeds.ndim == 3 else embeds[:, :, 0]  # the other rows are for the scores
            directions = torch.nn.functional.normalize(own, dim=-1)
            results.append(torch.nn.functional.normalize(directions.mean(dim=1), dim=-1))
        # Drops the videos that the last batch repeats to fill all processes.
        gathered.append(accelerator.gather_for_metrics(tuple(results)))
    report.gather()
    indices, *results = (torch.cat(batches).cpu().numpy() for batches in zip(*gathered))
    order = np.argsort(indices)
    order = order[~np.isin(indices[order], list(report.bad_videos))]
    return Predictions(
        dataset.split, bank.labels, indices[order], results[0][order], report, *(r[order] for r in results[1:])
    )


def pad_batch(views: torch.Tensor, size: int) -> torch.Tensor:
    """Return a batch of `size` videos: the rows of `views`, and copies of the last one."""
    missing = max(0, size - len(views))
    return torch.cat([views, views[-1:].expand(missing, *views.shape[1:])])


def view_probabilities(
    model: DualEncoder,
    bank: ClassBank,
    views: torch.Tensor,
    ensemble: str,
    accelerator: Accelerator,
    scoring: Scoring | None = None,
) -> torch.Tensor:
    """
    Compute the class probabilities of videos, averaged over their views.

    Args:
        model ([`VideoTextEncoder`]):
            The model.
        bank ([`ClassBank`]):
            The C classes.
        views (`torch.Tensor` of shape `(B, T, 3, H, W)` or `(B, V, T, 3, H, W)`):
            Pixels.
        ensemble (`str`):
            See [`~ClassBank.probabilities`].
        accelerator (`Accelerator`):
            Sets the precision of the embedding. Scores are computed in float32.
        scoring ([`Scoring`], *optional*):
            See [`predict`].

    Returns:
        `torch.Tensor` of shape `(B, C)`: float32.

    Raises:
        [`ModelError`]: if an embedding is not finite.
    """
    return mean_probabilities(model, bank, embed_views(model, bank, views, accelerator), ensemble, scoring)


def embed_views(model: DualEncoder, bank: ClassBank, views: torch.Tensor, accelerator: Accelerator) -> torch.Tensor:
    """
    Embed videos for a comparison with the classes of a bank, without normalisation; see [`embed_videos`].

    Args:
        model ([`VideoTextEncoder`]), bank ([`ClassBank`]), views (`torch.Tensor`), accelerator (`Accelerator`):
            See [`view_probabilities`].

    Returns:
        `torch.Tensor` of shape `(B, V, …)`: float32; V is 1 for a single view.
    """
    with accelerator.autocast():
        embeds = embed_videos(model, bank, views.flatten(0, -5))
    return embeds.float().unflatten(0, (len(views), -1))


def mean_probabilities(
    model: DualEncoder, bank: ClassBank, embeds: torch.Tensor, ensemble: str, scoring: Scoring | None = None
) -> torch.Tensor:
    """
    Compute the class probabilities of embedded videos, averaged over their views.

    Args:
        model ([`VideoTextEncoder`]):
            The model of the embeddings.
        bank ([`ClassBank`]):
            The C classes.
        embeds (`torch.Tensor` of shape `(B, V, …)`):
            Embeddings of the views.
        ensemble (`str`), scoring ([`Scoring`], *optional*):
            See [`predict`].

    Returns:
        `torch.Tensor` of shape `(B, C)`: float32.

    Raises:
        [`ModelError`]: if an embedding is not finite.
    """
    scores = score_embeds(model, bank, embeds.flatten(0, 1), ensemble, scoring)
    check_finite(scores)
    return scores.unflatten(0, embeds.shape[:2]).mean(dim=1)


def check_finite(values: torch.Tensor, dtype: torch.dtype | None = None):
    """
    Raise [`ModelError`] if embeddings, or scores that they made, are not finite.

    Args:
        values (`torch.Tensor`):
            Embeddings, scores or similarities.
        dtype (`torch.dtype`, *optional*):
            Precision of the weights. `None` stands for that of `--mixed_precision`.
    """
    if not values.isfinite().all():
        narrow, wide = ("--mixed_precision fp16", "--mixed_precision bf16") if dtype is None else (dtype, "float32")
        raise ModelError(
            "The embeddings must be finite numbers, got NaN or infinity. The weights are damaged, or too large for "
            f"{narrow}. Use other weights, or {wide}."
        )
