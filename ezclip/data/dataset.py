"""Datasets, batches and loaders for training and evaluation."""

import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import gather_object

from ezclip.data.identity import describe_videos
from ezclip.data.sources import VideoSplit
from ezclip.data.transforms import TrainTransform
from ezclip.errors import DataError
from ezclip.utils.digests import digest
from ezclip.utils.files import as_json_line
from ezclip.utils.memory import return_freed_memory
from processing_ezclip import EZClipProcessor
from video_ezclip import VideoReadError, random_frame_indices, read_frames


class VideoDataset(torch.utils.data.Dataset):
    """
    A dataset of the videos of a split.

    An item has:
    - `index` and `label`;
    - `frames`, uint8 `(T, H, W, 3)`, or `(V, T, H, W, 3)` for V views. [`~EZClipProcessor.normalize`] turns them into
      the model's pixels, fastest on the model's device;
    - `bad_videos`, a list of (index, [`VideoReadError`]) of videos that could not be read;
    - `partial_videos`, a list of (index, reason) of videos that were read in part.

    In evaluation the frames of an unreadable video are zeros. In training the next readable video replaces it, so that
    batches stay full.

    Args:
        split ([`VideoSplit`]):
            The videos to read.
        processor ([`EZClipProcessor`]):
            Samples and crops frames.
        prompts (`list[list[list[str]]]`, *optional*):
            The texts of each class, see [`~EZClipProcessor.get_prompts`]. With them the dataset is for training:
            frames are drawn at random as published, and each item has a `text` drawn from all texts of its class.
            Draws depend on (seed, epoch, index) alone.
        seed (`int`, *optional*, defaults to 0):
            The seed of the draws. The epoch is the last `set_epoch` before the workers of a loader start.
        transform ([`TrainTransform`], *optional*):
            Crops and augments training frames. Defaults to the crop of evaluation.
        num_clips (`int`, *optional*, defaults to 1), num_crops (`int`, *optional*, defaults to 1):
            Views of a video in evaluation, see [`EZClipProcessor`].
        read (`Callable`, *optional*):
            Reads frames like [`read_frames`], the default, or [`IsolatedReader`].

    Raises:
        `ValueError`: if `prompts` has not one entry for each class.
    """

    def __init__(
        self,
        split: VideoSplit,
        processor: EZClipProcessor,
        prompts: list[list[list[str]]] | None = None,
        seed: int = 0,
        transform: TrainTransform | None = None,
        num_clips: int = 1,
        num_crops: int = 1,
        read: Callable = read_frames,
    ):
        if prompts is not None and len(prompts) != len(split.class_names or prompts):
            raise ValueError(f"`prompts` must have an entry for {len(split.class_names)} classes, got {len(prompts)}.")
        self.split, self.processor, self.transform = split, processor, transform
        # All texts of each class, flattened over its templates
        self.texts = prompts and [[prompt for row in rows for prompt in row] for rows in prompts]
        self.num_clips, self.num_crops, self.read = num_clips, num_crops, read
        self.seed, self.epoch = seed, 0

    def __len__(self) -> int:
        return len(self.split)

    def set_epoch(self, epoch: int):
        """Set the epoch that the next draws depend on."""
        self.epoch = epoch

    def settings(self) -> dict:
        """Return what the items depend on. A checkpoint stores it."""
        return {
            "seed": self.seed,
            "videos of train": describe_videos(self.split),
            "texts": self.texts
            and {name: digest(texts) for name, texts in zip(self.split.class_names or count(), self.texts)},
            "num_frames": self.processor.num_frames,
            "transform": repr(self.transform),
        }

    def __getitem__(self, index: int) -> dict:
        bad_videos = []
        for candidate in range(index, index + len(self)) if self.texts else [index]:
            candidate %= len(self)
            row = self.split.videos[candidate]
            try:
                item = self._train_item(row, candidate) if self.texts else self._eval_item(row)
            except VideoReadError as error:
                # A copy: the traceback of the error itself would keep all objects of this call in memory.
                bad_videos.append((candidate, VideoReadError(*error.args)))
                continue
            problem = item.pop("problem")
            partial_videos = [(candidate, problem)] if problem else []
            item |= {"bad_videos": bad_videos, "partial_videos": partial_videos}
            return {"index": candidate, "label": row["label"], **item}
        if self.texts:
            raise DataError(f"None of the {len(self)} training videos can be read; the last: {bad_videos[-1][1]}")
        views = () if self.num_clips * self.num_crops == 1 else (self.num_clips * self.num_crops,)
        frames = torch.zeros(*views, self.processor.num_frames, *self.processor.crop_size, 3, dtype=torch.uint8)
        report = {"bad_videos": bad_videos, "partial_videos": []}
        return {"index": index, "label": row["label"], "frames": frames, **report}

    def _eval_item(self, row: dict) -> dict:
        sample = self.processor.get_sampler(num_clips=self.num_clips)
        frames, metadata = self.processor.read_clip(row["video"], sample, self.num_clips, self.num_crops, self.read)
        return {"frames": torch.tensor(frames), "problem": metadata.problem}

    def _train_item(self, row: dict, index: int) -> dict:
        seed = (self.seed, self.epoch, index)
        rng = np.random.default_rng(seed)
        texts = self.texts[row["label"]]
        text = texts[rng.integers(len(texts))]
        sample = partial(random_frame_indices, num_frames=self.processor.num_frames, seed=(*seed, 1))
        if self.transform is None:
            frames, metadata = self.processor.read_clip(row["video"], sample, read=self.read)
        else:
            frames, metadata = self.read(row["video"], sample, transform=self.transform.draw(rng))
        return {"text": text, "frames": torch.tensor(frames), "problem": metadata.problem}


class VideoCollator:
    """A collate function: items of a [`VideoDataset`] to one batch, texts tokenized and padded to the longest."""

    def __init__(self, processor: EZClipProcessor):
        self.processor = processor

    def __call__(self, items: list[dict]) -> dict:
        """Return `index`, `labels`, `frames`, `bad_videos`, `partial_videos`, and the tokens of any texts."""
        batch = {
            "index": torch.tensor([item["index"] for item in items]),
            "labels": torch.tensor([item["label"] for item in items]),
            "frames": torch.stack([item["frames"] for item in items]),
            "bad_videos": [bad for item in items for bad in item["bad_videos"]],
            "partial_videos": [partial for item in items for partial in item["partial_videos"]],
        }
        if "text" in items[0]:
            texts = [item["text"] for item in items]
            # No warning of cut texts here: training counts them once, before the first step.
            batch.update(self.processor(text=texts, truncation=True, return_tensors="pt"))
        return batch


def make_loader(dataset: VideoDataset, batch_size: int, num_workers: int = 0, **kwargs) -> torch.utils.data.DataLoader:
    """
    Create a loader of batches of a [`VideoDataset`] whose workers keep their memory flat.

    Args:
        dataset ([`VideoDataset`]):
            The dataset.
        batch_size (`int`):
            Videos of a batch.
        num_workers (`int`, *optional*, defaults to 0):
            Processes that decode.
        kwargs:
            Arguments of [`~torch.utils.data.DataLoader`].
    """
    return torch.utils.data.DataLoader(
        dataset,
        batch_size=batch_size,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        collate_fn=VideoCollator(dataset.processor),
        worker_init_fn=_start_worker,
        # Otherwise each new iterator takes a worker seed from the global generator, and dropout would depend on how
        # often a training is evaluated. Items do not use worker seeds.
        generator=torch.Generator().manual_seed(0),
        **kwargs,
    )


def _start_worker(worker_id: int):
    # When a job's processes all get a signal, the main one answers it, and needs its workers to the end of the step.
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    return_freed_memory()


@dataclass
class ReadReport:
    """
    The videos of a split that were not read, or only in part.

    Args:
        bad_videos (`dict[int, VideoReadError]`):
            The error of each unreadable video, by its position in the split.
        partial_videos (`dict[int, str]`):
            The reason for each video that was read in part, by its position.
    """

    bad_videos: dict[int, VideoReadError] = field(default_factory=dict)
    partial_videos: dict[int, str] = field(default_factory=dict)

    def take(self, batch: dict, strict: bool = False):
        """
        Move the reports of a batch to this report.

        Raises:
            [`VideoReadError`]: with `strict`, for the first unreadable video.
        """
        self.bad_videos.update(batch.pop("bad_videos"))
        self.partial_videos.update(batch.pop("partial_videos"))
        if strict and self.bad_videos:
            raise next(iter(self.bad_videos.values()))

    def gather(self):
        """Merge the reports of all processes."""
        self.bad_videos = dict(gather_object(list(self.bad_videos.items())))
        self.partial_videos = dict(gather_object(list(self.partial_videos.items())))

    def write(self, output_dir: str | Path, split: VideoSplit, prefix: str = ""):
        """
        Write `bad_videos.jsonl` and `partial_videos.jsonl`: a line for each video with its name and the reason.

        A file without lines is not written. Files of an earlier run are removed.
        """
        reasons = {index: f"{error.reason} {error.remedy}" for index, error in self.bad_videos.items()}
        names, rows = split.videos["name"][:], split.row_numbers
        for kind, content in (("bad", reasons), ("partial", self.partial_videos)):
            path = Path(output_dir) / f"{prefix}{kind}_videos.jsonl"
            path.unlink(missing_ok=True)
            lines = [
                as_json_line({"row": rows[index], "video": names[index], "reason": reason})
                for index, reason in sorted(content.items())
            ]
            if lines:
                path.write_text("".join(lines), encoding="utf-8", newline="\n")
