"""The measured models: EZ-CLIP, and models of transformers of the same size."""

import argparse
import copy
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    PretrainedConfig,
    PreTrainedModel,
    XCLIPConfig,
    XCLIPModel,
    XCLIPTextConfig,
    XCLIPVisionConfig,
)

from configuration_ezclip import EZClipConfig, EZClipTextConfig, EZClipVisionConfig
from ezclip.encoders import RIVALS, RivalEncoder
from ezclip.encoders.openvino_engine import OpenVINOEncoder
from ezclip.errors import ModelError
from ezclip.systems.loading import load_encoder, load_model
from ezclip.systems.macs import count_macs_of
from ezclip.systems.presets import fields_of
from modeling_ezclip import EZClipModel
from scripts.benchmarks.harness import Shape
from scripts.benchmarks.published import PublishedModel


# Tokens of each text in a training step
TEXT_LENGTH = 16
# Width of the heads of X-CLIP's cross-frame and prompt attention in all published sizes
XCLIP_HEAD = 64
# The precision of an export, which stands in its name. Its matrix rate is that of bfloat16.
EXPORTED = "exported"


def make_config(args: argparse.Namespace, preset: str | None, text_config: dict | None = None) -> EZClipConfig:
    """Return the configuration of a published system on ViT-B."""
    vision_config = {"patch_size": args.patch_size or 16, **_num_frames(args)}
    try:
        return EZClipConfig.from_preset(preset or "ezclip", text_config, vision_config)
    except ValueError as error:
        raise ModelError(str(error)) from error


def make_model(args: argparse.Namespace, preset: str | None = None) -> EZClipModel:
    """Load the model of the options, or make one of a published system with random weights."""
    preset = preset or args.preset
    torch.manual_seed(0)
    if args.model_name_or_path is None:
        return EZClipModel(make_config(args, preset))
    # for_training: `load_model` refuses untrained weights otherwise, and costs do not depend on them.
    return load_model(args.model_name_or_path, for_training=True, preset=preset, vision_config=_num_frames(args))


def load_rival(args: argparse.Namespace) -> RivalEncoder | None:
    """Load the model of the options as it is if it is one of `RIVALS`, such as X-CLIP. Return None for others."""
    if args.model_name_or_path is None:
        return None
    try:
        config, _ = PretrainedConfig.get_config_dict(args.model_name_or_path)
    except OSError:  # `make_model` says it
        return None
    if config.get("model_type") not in RIVALS:
        return None
    model = load_encoder(args.model_name_or_path, preset=args.preset)
    assert isinstance(model, RivalEncoder)
    return model


def _num_frames(args: argparse.Namespace) -> dict[str, int]:
    return {} if args.num_frames is None else {"num_frames": args.num_frames}


def name_of_model(args: argparse.Namespace) -> str:
    """Return the name of the model in tables."""
    if args.model_name_or_path is None:
        return args.preset or "ezclip"
    return Path(args.model_name_or_path).name + (f" as {args.preset}" if args.preset else "")


def name_of_export(export: OpenVINOEncoder) -> str:
    """Return the name of an export in tables: its folder, since the last part of a path may repeat."""
    return f"{export.folder} ({export.config.engine['name']}, {export.config.engine['dtype']})"


def describe_model(config: EZClipConfig) -> str:
    """Return the size of a model as text."""
    vision = config.vision_config
    return (
        f"{vision.num_hidden_layers} blocks of {vision.hidden_size} channels, patches of {vision.patch_size}, "
        f"{vision.num_frames} frames of {vision.image_size}"
    )


def make_rivals(config: EZClipConfig) -> dict[str, nn.Module]:
    """Return the models of transformers of the same size. For ViT-B/16, X-CLIP is microsoft/xclip-base-patch16."""
    width = config.projection_dim
    heads = max(1, width // XCLIP_HEAD)
    over_time = {"mit_hidden_size": width, "mit_intermediate_size": 4 * width, "mit_num_attention_heads": heads}
    vision = fields_of(XCLIPVisionConfig, config.vision_config)
    xclip = XCLIPConfig(
        text_config=fields_of(XCLIPTextConfig, config.text_config),
        vision_config={**vision, "drop_path_rate": 0.0, **over_time},
        projection_dim=width,
        prompt_num_attention_heads=heads,
    )
    clip = CLIPVisionConfig(**fields_of(CLIPVisionConfig, config.vision_config))
    return {"CLIPVisionModel": CLIPVisionModel(clip), "XCLIPModel": XCLIPModel(xclip)}


def count_model_macs(model: nn.Module, run: Callable[[nn.Module], object]) -> int:
    """Count the multiply-accumulates of a computation with a copy of a model; see [`count_macs_of`]."""
    copied = copy.deepcopy(model).to("meta")
    if isinstance(copied, PreTrainedModel):
        copied.set_attn_implementation("eager")  # other implementations may not run on the meta device
    return count_macs_of(lambda: copied, run)


@torch.no_grad()
def embed(model: nn.Module, pixel_values: torch.Tensor) -> torch.Tensor:
    """Embed clips `(B, T, 3, H, W)`, or their frames if it is no video model."""
    if isinstance(model, EZClipModel | OpenVINOEncoder):
        return model.encode_videos(pixel_values)
    if isinstance(model, PublishedModel):
        return model.visual(pixel_values).mean(dim=1)
    if hasattr(model, "get_video_features"):
        return model.get_video_features(pixel_values=pixel_values).pooler_output
    return model(pixel_values=pixel_values.flatten(0, 1)).pooler_output


def pixels_size(config: EZClipConfig, batch_size: int = 1) -> tuple[int, ...]:
    """Return the size of the pixels of a batch of clips."""
    vision = config.vision_config
    return (batch_size, vision.num_frames, vision.num_channels, vision.image_size, vision.image_size)


def make_batch(config: EZClipConfig, batch_size: int) -> dict[str, torch.Tensor]:
    """Return a training batch of random pixels and texts. Each clip has its own class."""
    text = config.text_config
    length = min(TEXT_LENGTH, text.max_position_embeddings)
    batch = {
        "pixel_values": torch.randn(pixels_size(config, batch_size)),
        "input_ids": torch.randint(1, text.vocab_size - 1, (batch_size, length)),
        "attention_mask": torch.ones(batch_size, length, dtype=torch.long),
        "labels": torch.arange(batch_size),
    }
    batch["input_ids"][:, -1] = text.eos_token_id
    return batch


def layer_shapes(config: EZClipTextConfig | EZClipVisionConfig, num_tokens: int) -> list[Shape]:
    """Return the shapes of the matrix products of a block over `num_tokens` tokens."""
    hidden, intermediate = config.hidden_size, config.intermediate_size
    return [(num_tokens, hidden, hidden), (num_tokens, hidden, intermediate), (num_tokens, intermediate, hidden)]


def vision_shapes(config: EZClipConfig, batch_size: int) -> list[Shape]:
    """Return the shapes of the products of a vision block over the frames of a batch."""
    vision = config.vision_config
    tokens = batch_size * vision.num_frames * (1 + (vision.image_size // vision.patch_size) ** 2)
    return layer_shapes(vision, tokens)
