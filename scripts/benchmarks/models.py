"""The models that are measured: ours, and those of transformers of the same size."""

import argparse
import copy
from pathlib import Path

import torch
from torch import nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    XCLIPConfig,
    XCLIPModel,
    XCLIPTextConfig,
    XCLIPVisionConfig,
)

from configuration_ezclip import EZClipConfig
from ezclip.errors import ModelError
from ezclip.systems.loading import load_model
from ezclip.systems.presets import fields_of
from modeling_ezclip import EZClipModel
from scripts.benchmarks.matrix import Shape


# Tokens of the text that goes with a clip in a training step
TEXT_LENGTH = 16
# Width of a head of X-CLIP's attention over frames and of its prompts, in all published sizes
XCLIP_HEAD = 64


def make_config(args: argparse.Namespace, preset: str | None, text_config: dict | None = None) -> EZClipConfig:
    """
    Return the configuration of a ViT-B of a published system.

    Raises:
        [`ModelError`]: if it cannot be.
    """
    vision_config = {"patch_size": args.patch_size or 16}
    if args.num_frames is not None:
        vision_config["num_frames"] = args.num_frames
    try:
        return EZClipConfig.from_preset(preset or "ezclip", text_config, vision_config)
    except ValueError as error:
        raise ModelError(str(error)) from error


def make_model(args: argparse.Namespace, preset: str | None = None) -> EZClipModel:
    """
    Our model: that of a folder or the Hub, with its weights, or one of a published system with random ones.

    Raises:
        [`ModelError`]: if there is no such model.
    """
    preset = preset or args.preset
    torch.manual_seed(0)
    if args.model_name_or_path is None:
        return EZClipModel(make_config(args, preset))
    frames = {} if args.num_frames is None else {"num_frames": args.num_frames}
    # New weights in plain CLIP spoil predictions, not costs.
    return load_model(args.model_name_or_path, for_training=True, preset=preset, vision_config=frames)


def name_of_model(args: argparse.Namespace) -> str:
    """Return the name of our model in tables."""
    if args.model_name_or_path is None:
        return args.preset or "ezclip"
    return Path(args.model_name_or_path).name + (f" as {args.preset}" if args.preset else "")


def describe_model(model: EZClipModel) -> str:
    """Return the size of a model as text."""
    vision = model.config.vision_config
    return (
        f"{vision.num_hidden_layers} blocks of {vision.hidden_size} channels, patches of {vision.patch_size}, "
        f"{vision.num_frames} frames of {vision.image_size}"
    )


def clip_vision_config(config: EZClipConfig) -> CLIPVisionConfig:
    """CLIP's vision tower of the size of a model of ours."""
    return CLIPVisionConfig(**fields_of(CLIPVisionConfig, config.vision_config))


def xclip_config(config: EZClipConfig) -> XCLIPConfig:
    """X-CLIP of the size of a model of ours; of ViT-B/16 and 8 frames that is microsoft/xclip-base-patch16."""
    width = config.projection_dim
    heads = max(1, width // XCLIP_HEAD)
    over_time = {"mit_hidden_size": width, "mit_intermediate_size": 4 * width, "mit_num_attention_heads": heads}
    vision = fields_of(XCLIPVisionConfig, config.vision_config)
    text = XCLIPTextConfig(**fields_of(XCLIPTextConfig, config.text_config))
    vision = XCLIPVisionConfig(**{**vision, "drop_path_rate": 0.0, **over_time})
    return XCLIPConfig(
        text_config=text.to_dict(),
        vision_config=vision.to_dict(),
        projection_dim=width,
        prompt_num_attention_heads=heads,
    )


def make_rivals(config: EZClipConfig, eager: bool = False) -> dict[str, nn.Module]:
    """Return transformers' models of the same size, by class name. `eager` is for counting without weights."""
    options = {"attn_implementation": "eager"} if eager else {}
    return {
        "CLIPVisionModel": CLIPVisionModel._from_config(clip_vision_config(config), **options),
        "XCLIPModel": XCLIPModel._from_config(xclip_config(config), **options),
    }


def embed(model: nn.Module, pixel_values: torch.Tensor) -> torch.Tensor:
    """Embed clips `(B, T, 3, H, W)`, or their frames if the model has no time."""
    if isinstance(model, EZClipModel):
        return model.get_video_features(pixel_values, output_last_hidden_state=False).pooler_output
    if hasattr(model, "get_video_features"):
        return model.get_video_features(pixel_values=pixel_values).pooler_output
    return model(pixel_values=pixel_values.flatten(0, 1)).pooler_output


def make_batch(config: EZClipConfig, batch_size: int) -> dict[str, torch.Tensor]:
    """Return a training batch: noise, a text for each clip, different classes."""
    vision, text = config.vision_config, config.text_config
    length = min(TEXT_LENGTH, text.max_position_embeddings)
    pixels = (batch_size, vision.num_frames, vision.num_channels, vision.image_size, vision.image_size)
    batch = {
        "pixel_values": torch.randn(pixels),
        "input_ids": torch.randint(1, text.vocab_size - 1, (batch_size, length)),
        "attention_mask": torch.ones(batch_size, length, dtype=torch.long),
        "labels": torch.arange(batch_size),
    }
    batch["input_ids"][:, -1] = text.eos_token_id
    return batch


def train_all(model: EZClipModel) -> EZClipModel:
    """Return a copy whose weights are all trained."""
    return copy.deepcopy(model).requires_grad_(True)


def layer_shapes(hidden_size: int, intermediate_size: int, num_tokens: int) -> list[Shape]:
    """Return the shapes of the matrix products of a block over `num_tokens` tokens."""
    return [
        (num_tokens, hidden_size, hidden_size),
        (num_tokens, hidden_size, intermediate_size),
        (num_tokens, intermediate_size, hidden_size),
    ]


def vision_shapes(config: EZClipConfig, batch_size: int) -> list[Shape]:
    """Return the shapes of the products of a vision block over the frames of a batch."""
    vision = config.vision_config
    tokens = batch_size * vision.num_frames * (1 + (vision.image_size // vision.patch_size) ** 2)
    return layer_shapes(vision.hidden_size, vision.intermediate_size, tokens)
