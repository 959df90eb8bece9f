"""What a result depends on, by content: weights, pixels, texts, videos and options."""

import json
from collections.abc import Callable, Container
from typing import Any

import torch

from ezclip.data.identity import describe_videos
from ezclip.data.sources import VideoSplit
from ezclip.data.streaming import StreamedVideos
from ezclip.encoders import DualEncoder
from ezclip.systems.loading import flatten_config
from ezclip.utils.digests import digest, digest_tensors
from ezclip.utils.settings import as_json
from processing_ezclip import EZClipProcessor


def describe_result(
    model_description: dict,
    processor: EZClipProcessor,
    read: Callable,
    videos: dict[str, VideoSplit | StreamedVideos | None],
    **options,
) -> dict:
    """
    Describe everything that a result depends on. Training, tests, comparison and prediction all use this.

    Two results with equal descriptions are the same, up to rounding. `check_unchanged` names what differs.

    Args:
        model_description (`dict`):
            The model, from [`describe_model`].
        processor ([`EZClipProcessor`]):
            The processor of videos and texts.
        read (`Callable`):
            The reader of videos, an [`IsolatedReader`] or a function.
        videos (`dict[str, VideoSplit | StreamedVideos | None]`):
            The videos by what they are for, such as "train". `None` is left out.
        options:
            Every option that matters, and digests of the texts, in types that JSON has.

    Returns:
        `dict`: as JSON reads it back.
    """
    reader = getattr(read, "kwargs", {})
    return as_json(
        {
            **model_description,
            "processor": describe_processor(processor),
            "video_backend": reader.get("backend", "auto"),
            "allow_partial": reader.get("allow_partial", False),
            "square_pixels": reader.get("square_pixels", False),
            **{f"videos of {name}": describe_videos(split) for name, split in videos.items() if split is not None},
            **options,
        }
    )


def describe_model(model: DualEncoder, left_out: Container[str] = ()) -> dict:
    """
    Return the configuration of a model, and a digest of its weights, the frozen ones too.

    `left_out` are names of weights that were not loaded but follow the seed, see [`load_model`].
    """
    weights = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name not in left_out and isinstance(tensor, torch.Tensor)  # quantised modules have other values too
    }
    return {"model_config": flatten_config(model.config), "weights": digest_tensors(weights)}


def describe_processor(processor: EZClipProcessor) -> dict:
    """Return the settings of frames and pixels, and a digest of the tokenizer."""
    image_processor = processor.image_processor.to_dict()
    tokenizer = getattr(processor.tokenizer, "backend_tokenizer", None)
    if tokenizer is not None:
        # Padding and truncation are those of the last call.
        vocabulary: Any = {**json.loads(tokenizer.to_str()), "padding": None, "truncation": None}
    else:
        vocabulary = sorted(processor.tokenizer.get_vocab().items())
    return {
        "image_processor": {name: value for name, value in image_processor.items() if not name.endswith("_type")},
        "tokenizer": digest(vocabulary),
        "num_frames": processor.num_frames,
        "sampling": processor.sampling,
        "split_camel_case": processor.split_camel_case,
        "use_published_crop": processor.use_published_crop,
        # Results from before there was a choice have no entry.
        **({} if processor.text_padding == "longest" else {"text_padding": processor.text_padding}),
    }
