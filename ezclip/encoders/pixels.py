"""The processor of a dual encoder of transformers, as an [`EZClipProcessor`] with the same pixels and tokens."""

import json
from pathlib import Path
from typing import Any

from transformers import CLIPImageProcessorPil, PretrainedConfig
from transformers.utils import IMAGE_PROCESSOR_NAME, PROCESSOR_NAME, VIDEO_PROCESSOR_NAME
from transformers.utils.hub import cached_file

from checkpoint_ezclip import MAY_BE_ABSENT
from ezclip.encoders.families import RIVALS
from processing_ezclip import EZClipProcessor


PIXEL_OPTIONS = (
    *("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor"),
    *("do_normalize", "image_mean", "image_std"),
)


def read_processor(name_or_path: str | Path, config: PretrainedConfig, tokenizer) -> EZClipProcessor:
    """
    Read the processor of a checkpoint of one of `RIVALS`.

    Its own class is not needed: those of videos cannot be imported without torchvision.

    Args:
        name_or_path (`str` or `Path`):
            A folder, or a name on the Hub.
        config (`PretrainedConfig`):
            Its configuration.
        tokenizer:
            Its tokenizer, or another of the same vocabulary.

    Raises:
        `ValueError`: see [`make_processor`].
    """
    return make_processor(config, _read_options(name_or_path), tokenizer)


def make_processor(config: PretrainedConfig, options: dict, tokenizer) -> EZClipProcessor:
    """
    Return an [`EZClipProcessor`] with the pixels of an image or video processor.

    Args:
        config (`PretrainedConfig`):
            The configuration of the model, one of `RIVALS`.
        options (`dict`):
            The saved options of its image or video processor. What they leave open is as in the family's own class.
        tokenizer:
            Its tokenizer.

    Raises:
        `ValueError`: if an option has an unexpected value, or the size of the frames is neither in `options` nor in
        `config`.
    """
    family = RIVALS[config.model_type]
    given = {name: options[name] for name in PIXEL_OPTIONS if options.get(name) is not None}
    pixels: dict[str, Any] = {"do_center_crop": False, **family.pixels, **given, **family.fixed_pixels}
    tower = getattr(config, "vision_config", None)
    own_size = getattr(tower, "image_size", None)
    pixels["size"] = _as_size(pixels.get("size") or own_size, is_square=not pixels["do_center_crop"])
    if pixels["size"] is None:
        raise ValueError("`size` of the video processor must be given: the configuration does not say it.")
    pixels["crop_size"] = _as_size(pixels.get("crop_size") or own_size, is_square=True)
    processor = EZClipProcessor(
        CLIPImageProcessorPil(**pixels),
        tokenizer,
        num_frames=getattr(tower, "num_frames", None) or options.get("num_frames") or family.num_frames,
        use_published_crop=False,
        text_padding=family.text_padding,
    )
    limits = (tokenizer.model_max_length, config.text_config.max_position_embeddings, family.max_text_length)
    tokenizer.model_max_length = min(limit for limit in limits if limit is not None)
    return processor


def _as_size(size, is_square: bool) -> dict | None:
    """Return a size as an image processor's dictionary. A number is a square, or the shorter side before a crop."""
    if isinstance(size, int):
        return {"height": size, "width": size} if is_square else {"shortest_edge": size}
    return dict(zip(("height", "width"), size)) if isinstance(size, (list, tuple)) else size


def _read_options(name_or_path: str | Path) -> dict:
    """Return the options of a saved video or image processor, or none of them."""
    for name in (PROCESSOR_NAME, VIDEO_PROCESSOR_NAME, IMAGE_PROCESSOR_NAME):
        path = cached_file(str(name_or_path), name, **MAY_BE_ABSENT)
        saved = json.loads(Path(path).read_text(encoding="utf-8")) if path is not None else {}
        if name == PROCESSOR_NAME:  # holds those of all its parts
            saved = saved.get("video_processor") or saved.get("image_processor") or {}
        if saved:
            return saved
    return {}
