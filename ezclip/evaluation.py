"""Scores of every video of a split, each counted once on any number of processes, and what is written of them."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from .class_bank_ezclip import ClassBank
from .data import VideoCollator, VideoDataset
from .metrics import TopKAccuracy
from .modeling_ezclip import EZClipModel
from .processing_ezclip import EZClipProcessor
from .sources import UNKNOWN_LABEL, VideoSplit
from .video_ezclip import VideoReadError


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
        bad_videos (`dict[int, VideoReadError]`):
            Why, by position, for each video that was not read.
    """

    split: VideoSplit
    class_names: list[str]
    indices: np.ndarray
    probabilities: np.ndarray
    bad_videos: dict[int, VideoReadError]

    def metrics(self) -> dict[str, float | int]:
        """Top-1 and top-5 accuracy (fractions) over the videos that were read, and how many were and were not."""
        results = {"eval_samples": len(self.indices), "eval_bad_videos": len(self.bad_videos)}
        if len(self.indices):
            labels = np.asarray(self.split.videos["label"])[self.indices]
            accuracy = TopKAccuracy(keep_in_memory=True).compute(predictions=self.probabilities, references=labels)
            results = {**{f"eval_{name}": value for name, value in accuracy.items()}, **results}
        return results

    def write(self, output_dir: str | Path, top_k: int = 5):
        """
        Write `predictions.jsonl`, a line per video with its `top_k` labels and scores, and `bad_videos.jsonl`.

        The latter is written where a video could not be read, and removed where one stands from an earlier run.
        """
        output_dir = Path(output_dir)
        output_dir.mkdir(parents=True, exist_ok=True)
        with open(output_dir / "predictions.jsonl", "w", encoding="utf-8") as file:
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
        write_bad_videos(output_dir / "bad_videos.jsonl", self.split, self.bad_videos)


def write_json(path: Path, content: dict):
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_bad_videos(path: Path, split: VideoSplit, bad_videos: dict[int, VideoReadError]):
    """A line for each unreadable video, its name and the reason; no file where there is none."""
    path.unlink(missing_ok=True)
    names = split.videos["name"][:]
    lines = [
        json.dumps({"video": names[index], "reason": f"{error.reason} {error.remedy}"}, ensure_ascii=False)
        for index, error in sorted(bad_videos.items())
    ]
    if lines:
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@torch.no_grad()
def predict(
    model: EZClipModel,
    processor: EZClipProcessor,
    bank: ClassBank,
    split: VideoSplit,
    accelerator: Accelerator | None = None,
    batch_size: int = 8,
    num_workers: int = 0,
    ensemble: str = "probability",
    strict: bool = False,
    desc: str = "Evaluating",
) -> Predictions:
    """
    Class probabilities of all videos of a split.

    Args:
        model ([`EZClipModel`]), processor ([`EZClipProcessor`]):
            What reads and embeds the videos. The model is put in evaluation mode.
        bank ([`ClassBank`]):
            The classes.
        split ([`VideoSplit`]):
            The videos.
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

    Raises:
        [`VideoReadError`]: with `strict`, for the first unreadable video.
    """
    accelerator = accelerator or Accelerator()
    loader = torch.utils.data.DataLoader(
        VideoDataset(split, processor),
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=VideoCollator(processor),
    )
    loader = accelerator.prepare(loader)
    model = accelerator.unwrap_model(model).to(accelerator.device).eval()
    gathered, bad_videos = [], []
    for batch in tqdm(loader, desc=desc, unit="batch", disable=not accelerator.is_local_main_process):
        if strict and batch["bad_videos"]:
            raise batch["bad_videos"][0][1]
        with accelerator.autocast():
            video_embeds = model.get_video_features(batch["pixel_values"]).pooler_output
        probabilities = bank.probabilities(video_embeds, ensemble)
        bad_videos += batch["bad_videos"]
        # Drops what the last batch repeats to fill up all processes.
        gathered.append(accelerator.gather_for_metrics((batch["index"], probabilities)))
    bad_videos = dict(gather_object(bad_videos))
    indices = torch.cat([index for index, _ in gathered]).cpu().numpy()
    probabilities = torch.cat([probability for _, probability in gathered]).cpu().numpy()
    order = np.argsort(indices)
    order = order[~np.isin(indices[order], list(bad_videos))]
    return Predictions(split, bank.labels, indices[order], probabilities[order], bad_videos)
