"""Compute attention maps of a video for a model, its baseline and each label."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from ezclip.attention.maps import (
    ATTENTION_METHODS,
    attention_maps,
    evaluation_mode,
    relevance_maps,
    temporal_attention,
)
from ezclip.errors import DataError, ModelError
from ezclip.systems.base import plain_clip
from ezclip.systems.citations import TOWER_NAMES, tower_family
from ezclip.systems.presets import is_plain
from modeling_ezclip import EZClipModel
from pipeline_ezclip import ClassBank, embed_videos, say_scope, score_embeds
from processing_ezclip import Description, EZClipProcessor
from video_ezclip import VideoFramesMetadata, describe_video, read_frames


METHODS = (*ATTENTION_METHODS, "relevance")
MAX_LABELS = 6  # a label takes two rows of the figure
# The percentiles drawn darkest and lightest. A few patches may have far more attention than all others.
PERCENTILES = (1, 99)
PLACES = (
    ("at the upper left", "at the top", "at the upper right"),
    ("at the left", "in the middle", "at the right"),
    ("at the lower left", "at the bottom", "at the lower right"),
)


@dataclass
class AttentionRow:
    """The maps of one model, for one label."""

    name: str  # of the model
    maps: np.ndarray  # (T, rows, columns), a map for each frame; see `attention_maps` and `relevance_maps`
    covered: tuple[float, float, float, float]  # left, top, right, bottom of the area of a map, in pixels of the frame
    label: str | None = None  # with "relevance"
    probability: float | None = None  # of the label, if there are several

    @property
    def heading(self) -> str:
        """Return the name of the model and the probability of the label."""
        return self.name if self.probability is None else f"{self.name} ({self.probability:.0%})"

    @property
    def scale(self) -> tuple[float, float]:
        """Return the values that are drawn darkest and lightest."""
        return tuple(np.percentile(self.maps, PERCENTILES).tolist())

    def scaled(self, number: int) -> np.ndarray:
        """Return map `number` scaled to [0, 1], darkest to lightest; 0.5 if all values are equal."""
        darkest, lightest = self.scale
        if lightest <= darkest:
            return np.full(self.maps.shape[1:], 0.5, dtype=np.float32)
        return np.clip((self.maps[number] - darkest) / (lightest - darkest), 0, 1).astype(np.float32)


@dataclass
class VideoAttention:
    """
    Attention maps of a video.

    Args:
        name (`str`):
            Name of the video.
        frames (`np.ndarray` of shape `(T, height, width, 3)`):
            The sampled frames at the size of the video, uint8.
        metadata ([`VideoFramesMetadata`]):
            Indices and times of the sampled frames.
        crop (`tuple[float, float, float, float]`):
            Left, top, right and bottom of the area that the model sees, in pixels of the frame.
        method (`str`):
            One of `METHODS`.
        rows (`list[AttentionRow]`):
            Rows of maps, from top to bottom of the figure.
        temporal (`np.ndarray` of shape `(N, T, T)`, *optional*):
            Temporal attention, see [`temporal_attention`]; `None` for models without temporal tokens.
        read_options (`dict`):
            Options such as `start` and `end` that the video was read with.
    """

    name: str
    frames: np.ndarray
    metadata: VideoFramesMetadata
    crop: tuple[float, float, float, float]
    method: str
    rows: list[AttentionRow]
    temporal: np.ndarray | None = None
    read_options: dict = field(default_factory=dict)

    def when(self, number: int) -> str:
        """Return the time of a sampled frame, or its number where times are unknown."""
        if self.metadata.timestamps is None:
            return f"frame {self.metadata.frames_indices[number]}"
        return f"{self.metadata.timestamps[number]:.2f} s"


def look_at_video(
    video,
    model: EZClipModel,
    processor: EZClipProcessor,
    labels: Sequence[str] | None = None,
    method: str | None = None,
    baseline: tuple[EZClipModel, EZClipProcessor] | None = None,
    templates: str | Sequence[str] | None = None,
    descriptions: Mapping[str, Description] | None = None,
    read: Callable = read_frames,
    **read_options,
) -> VideoAttention:
    """
    Compute the attention maps of a model and of a baseline for a video.

    Args:
        video:
            A video in any form that [`EZClipProcessor`] reads: a path, URL, `bytes`, array of frames, …
        model ([`EZClipModel`]):
            The model. Its state is restored afterwards.
        processor ([`EZClipProcessor`]):
            The model's processor.
        labels (`Sequence[str]`, *optional*):
            At most 6 class names. Each gets its own maps.
        method (`str`, *optional*):
            With labels `"relevance"` (default), see [`relevance_maps`]. Without labels `"last"` (default) or
            `"rollout"`, see [`attention_maps`].
        baseline (`tuple[EZClipModel, EZClipProcessor]`, *optional*):
            A model and processor to compare with, on the same frames. Defaults to the model's own CLIP, see
            [`plain_clip`]; plain CLIP models have no default baseline.
        templates (`str` or `Sequence[str]`, *optional*):
            Sentences with `{}` for the labels, see [`EZClipProcessor.get_prompts`].
        descriptions (`Mapping[str, Description]`, *optional*):
            Texts or steps of the labels, used instead of their names. A map is that of their mean.
        read (`Callable`, *optional*):
            [`read_frames`], or an `IsolatedReader`.
        read_options:
            `start`, `end`, `backend`, `allow_partial`, `limits`: see [`EZClipProcessor`].

    Raises:
        [`VideoReadError`]: if the video cannot be read.
        [`DataError`]: if the method is unknown, needs labels or uses none, or there are too many.
        [`ModelError`]: if the baseline takes another number of frames.
        `ValueError`: if the model does not take such frames, or an option of reading is out of range.
    """
    labels = [labels] if isinstance(labels, str) else list(labels or ())
    method = method or ("relevance" if labels else "last")
    _check_request(labels, method)
    frames, metadata = read(video, processor.get_sampler(), **read_options)
    named = [("model", model, processor)]
    if baseline is not None:
        config = baseline[0].config
        if config.fixed_num_frames and (expected := config.vision_config.num_frames) != len(frames):
            reason = f"The baseline takes {expected} frames of a video and the model {len(frames)}."
            raise ModelError(f"{reason} Give a baseline with the same number, or a plain CLIP.")
        named.insert(0, ("baseline", *baseline))
    elif not is_plain(model.config):
        base = TOWER_NAMES[tower_family(model.config)]
        name = f"plain {base}" if model.config.freeze_backbone else f"its {base}, trained"
        named.insert(0, (name, plain_clip(model), processor))
    rows = [
        _rows_of(name, own_model, own_processor, frames, labels, method, templates, descriptions)
        for name, own_model, own_processor in named
    ]
    temporal = None
    if model.config.vision_config.temporal_prompt != "none":
        temporal = temporal_attention(model, processor.frames_to_pixels(frames)[None])[0]
    return VideoAttention(
        name=describe_video(video),
        frames=frames,
        metadata=metadata,
        crop=_crop_box(processor, *frames.shape[1:3]),
        method=method,
        rows=[row for same_label in zip(*rows) for row in same_label],
        temporal=temporal,
        read_options=read_options,
    )


def describe_attention(attention: VideoAttention) -> str:
    """Describe [`draw_attention`] in words: for each row the strongest frame, and its strongest patch."""
    lines = [f"{len(attention.frames)} frames of {attention.name}, attention by the method {attention.method}."]
    for row in attention.rows:
        sums = row.maps.sum(axis=(1, 2))
        strongest = int(sums.argmax())
        y, x = np.unravel_index(row.maps[strongest].argmax(), row.maps.shape[1:])
        height, width = row.maps.shape[1:]
        place = PLACES[int(3 * (y + 0.5) / height)][int(3 * (x + 0.5) / width)]
        share = sums[strongest] / max(sums.sum(), np.finfo(np.float32).tiny)
        title = row.heading if row.label is None else f"{row.heading}, {row.label}"
        lines.append(f"{title}: most at {attention.when(strongest)} ({share:.0%} of all), strongest {place}.")
    return "\n".join(lines)


def _check_request(labels: list[str], method: str):
    if method not in METHODS:
        raise DataError(f"`method` must be one of {', '.join(METHODS)}, got {method!r}.")
    if method == "relevance" and not labels:
        raise DataError("The method relevance needs labels: give labels, or use the method last or rollout.")
    if method != "relevance" and labels:
        fix = "Remove the labels, or use the method relevance."
        raise DataError(f"The maps of the method {method} are the same for all labels. {fix}")
    if len(labels) > MAX_LABELS:
        raise DataError(f"`labels` must have at most {MAX_LABELS} entries, got {len(labels)}.")


def _rows_of(
    name: str,
    model: EZClipModel,
    processor: EZClipProcessor,
    frames: np.ndarray,
    labels: list[str],
    method: str,
    templates: str | Sequence[str] | None,
    descriptions: Mapping[str, Description] | None,
) -> list[AttentionRow]:
    pixel_values = processor.frames_to_pixels(frames)[None]
    crop = _crop_box(processor, *frames.shape[1:3])
    covered = _covered_box(crop, processor.crop_size, model.config.vision_config.patch_size)
    if method != "relevance":
        return [AttentionRow(name, attention_maps(model, pixel_values, method)[0], covered)]
    say_scope(model)
    with evaluation_mode(model), torch.no_grad():
        bank = ClassBank.build(model, processor, labels, templates, descriptions)
        pixel_values = pixel_values.to(model.device, model.dtype)
        video_embeds = embed_videos(model, bank, pixel_values)
    probabilities = score_embeds(model, bank, video_embeds)[0].tolist() if len(labels) > 1 else [None]
    maps = relevance_maps(model, pixel_values, bank.embeds.mean(dim=0))[0]
    return [AttentionRow(name, *row) for row in zip(maps, [covered] * len(maps), labels, probabilities)]


def _crop_box(processor: EZClipProcessor, height: int, width: int) -> tuple[float, float, float, float]:
    """Return the part of a frame that the processor keeps, in pixels of the frame."""
    if not (processor.use_published_crop or processor.image_processor.do_center_crop):
        return 0.0, 0.0, float(width), float(height)  # frames are squashed
    short_side, (crop_height, crop_width) = processor.image_processor.size["shortest_edge"], processor.crop_size
    resized_height, resized_width = (side * short_side // min(height, width) for side in (height, width))
    top, left = round((resized_height - crop_height) / 2), round((resized_width - crop_width) / 2)
    down, across = height / resized_height, width / resized_width
    return left * across, top * down, (left + crop_width) * across, (top + crop_height) * down


def _covered_box(
    crop: tuple[float, float, float, float], crop_size: tuple[int, int], patch_size: int
) -> tuple[float, float, float, float]:
    """Return the part of a crop that patches cover, from its upper left corner. They need not divide the crop."""
    left, top, right, bottom = crop
    down, across = (side // patch_size * patch_size / side for side in crop_size)
    return left, top, left + (right - left) * across, top + (bottom - top) * down
