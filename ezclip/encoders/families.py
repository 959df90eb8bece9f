"""Families of dual encoders in transformers that are scored as they are: how each prepares pixels and texts."""

from dataclasses import dataclass, field

from PIL.Image import Resampling
from transformers.utils.constants import (
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)

from configuration_ezclip import BASE_MODELS
from ezclip.errors import ModelError


OPENAI_CLIP = {"image_mean": OPENAI_CLIP_MEAN, "image_std": OPENAI_CLIP_STD, "do_center_crop": True}
STANDARD = {"image_mean": IMAGENET_STANDARD_MEAN, "image_std": IMAGENET_STANDARD_STD, "resample": Resampling.BILINEAR}


@dataclass(frozen=True)
class Family:
    """
    A family of dual encoders in transformers.

    Args:
        name (`str`):
            Its name.
        pixels (`dict`):
            Options of its image or video processor for what a checkpoint leaves open. Without `size`, frames have the
            size of the model.
        fixed_pixels (`dict`, *optional*):
            Options that its processor class sets whatever a checkpoint says.
        text_padding (`str`, *optional*, defaults to `"longest"`), max_text_length (`int`, *optional*):
            Length of tokenized texts; see [`EZClipProcessor`].
        num_frames (`int`, *optional*, defaults to 8):
            Frames of a video if neither the model nor its processor says so.
    """

    name: str
    pixels: dict
    fixed_pixels: dict = field(default_factory=dict)
    text_padding: str = "longest"
    max_text_length: int | None = None
    num_frames: int = 8


RIVALS = {
    # `VideoMAEImageProcessor`
    "xclip": Family("X-CLIP", {**STANDARD, "do_center_crop": True}),
    # `LlavaOnevisionVideoProcessor`, with the options that `VideoPrismProcessor` gives
    "videoprism": Family(
        "VideoPrism",
        {"resample": Resampling.BICUBIC},
        fixed_pixels={"do_normalize": False, "size": None, "do_center_crop": False},
        text_padding="max_length",
        max_text_length=64,
    ),
    # `PeVideoVideoProcessor`
    "pe_video": Family("PE-Video", STANDARD, num_frames=16),
    "pe_audio_video": Family("PE-AV", STANDARD, num_frames=16),
    # `Tipsv2ImageProcessor` and the texts of `Tipsv2Processor`
    "tipsv2": Family(
        "TIPSv2",
        {"resample": Resampling.BILINEAR, "do_normalize": False},
        text_padding="max_length",
        max_text_length=64,
    ),
    # `ViTImageProcessor`
    "clipseg": Family("CLIPSeg", STANDARD),
    # `CLIPImageProcessor`
    "aimv2": Family("AIMv2", {**OPENAI_CLIP, "resample": Resampling.BICUBIC}),
    "groupvit": Family("GroupViT", {**OPENAI_CLIP, "resample": Resampling.BICUBIC}),
}


def check_trainable(name_or_path, model_type: str):
    """
    Raise if a model can only be scored, and is no base of an [`EZClipModel`].

    Raises:
        [`ModelError`]: names the family, and what to give instead.
    """
    if model_type in RIVALS:
        raise ModelError(
            f"{name_or_path} is {RIVALS[model_type].name}, which is scored as it is (--do_eval, --do_predict, "
            "`ezclip compare`, `classify`, `timeline`, `ezclip.load_encoder`). It takes no training, preset, temporal "
            "option, attention map, export or push. For these, give EZ-CLIP or one of "
            f"{', '.join(BASE_MODELS.values())}."
        )
