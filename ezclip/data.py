"""Items and batches for training and evaluation."""

import numpy as np
import torch

from .errors import DataError
from .processing_ezclip import EZClipProcessor
from .sources import VideoSplit
from .video_ezclip import VideoReadError, random_frame_indices


class VideoDataset(torch.utils.data.Dataset):
    """
    Reads the videos of a split.

    An item has `index`, `label`, `pixel_values` `(T, 3, H, W)` and `bad_videos`, the list of (index,
    [`VideoReadError`]) of videos that could not be read. For evaluation such a video has zeros for pixels; for
    training the next readable one takes its place, so that batches stay full.

    Args:
        split ([`VideoSplit`]):
            What to read.
        processor ([`EZClipProcessor`]):
            Reads it.
        prompts (`list[list[str]]`, *optional*):
            P texts for each class. With them the data set is for training: frames are drawn as published, and each
            item has a `text` of its class, drawn too. Both depend on (seed, epoch, index) alone.
        seed (`int`, *optional*, defaults to 0):
            See `prompts`.
    """

    def __init__(
        self,
        split: VideoSplit,
        processor: EZClipProcessor,
        prompts: list[list[str]] | None = None,
        seed: int = 0,
    ):
        self.split, self.processor, self.prompts = split, processor, prompts
        self.seed, self.epoch = seed, 0

    def __len__(self) -> int:
        return len(self.split)

    def set_epoch(self, epoch: int):
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict:
        bad_videos = []
        candidates = range(index, index + len(self)) if self.prompts else [index]
        for candidate in candidates:
            candidate %= len(self)
            row = self.split.videos[candidate]
            try:
                item = self._train_item(row, candidate) if self.prompts else self._eval_item(row)
                return {"index": candidate, "label": row["label"], "bad_videos": bad_videos, **item}
            except VideoReadError as error:
                bad_videos.append((candidate, error))
        if self.prompts:
            raise DataError(f"None of the {len(self)} training videos can be read; the last: {bad_videos[-1][1]}")
        size = self.processor.image_processor.crop_size
        empty = torch.zeros(self.processor.num_frames, 3, size["height"], size["width"])
        return {"index": index, "label": row["label"], "bad_videos": bad_videos, "pixel_values": empty}

    def _eval_item(self, row: dict) -> dict:
        return {"pixel_values": self.processor.read_video(row["video"])}

    def _train_item(self, row: dict, index: int) -> dict:
        rng = np.random.default_rng((self.seed, self.epoch, index))
        text = self.prompts[rng.integers(len(self.prompts))][row["label"]]

        def sample(total_frames):
            return random_frame_indices(total_frames, self.processor.num_frames, rng)

        return {"text": text, "pixel_values": self.processor.read_video(row["video"], sample)}


class VideoCollator:
    """Items of a [`VideoDataset`] as one batch, texts tokenized and padded to the longest."""

    def __init__(self, processor: EZClipProcessor):
        self.processor = processor

    def __call__(self, items: list[dict]) -> dict:
        batch = {
            "index": torch.tensor([item["index"] for item in items]),
            "labels": torch.tensor([item["label"] for item in items]),
            "pixel_values": torch.stack([item["pixel_values"] for item in items]),
            "bad_videos": [bad for item in items for bad in item["bad_videos"]],
        }
        if "text" in items[0]:
            batch.update(self.processor(text=[item["text"] for item in items], return_tensors="pt"))
        return batch
