"""Multiply-accumulates of embedding a video."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ezclip.encoders import DualEncoder, RivalEncoder
from modeling_ezclip import EZClipModel
from processing_ezclip import EZClipProcessor


@torch.no_grad()
def count_macs(model: EZClipModel, num_frames: int | None = None, output_last_hidden_state: bool = True) -> int:
    """
    Count the multiply-accumulates of embedding one clip.

    The count has the patch convolution, all linear layers and the two products of each attention. As is usual, it
    leaves out softmax, normalisation, activations, biases and sums. A copy on the meta device is counted, so this
    needs no memory, and PyTorch also counts inside the fused kernels of LSTMs and transformer layers.

    Args:
        model ([`EZClipModel`]):
            The model. Only its configuration is used.
        num_frames (`int`, *optional*):
            Frames of the clip. Defaults to `num_frames` of the configuration.
        output_last_hidden_state (`bool`, *optional*, defaults to `True`):
            Whether the last block computes all tokens, or only the CLS token that the embedding needs.

    Raises:
        `ValueError`: if the model does not take `num_frames` frames.

    Example:

    ```python
    >>> count_macs(EZClipModel(EZClipConfig(vision_config={"patch_size": 16}))) / 1e9
    146.597412864
    ```
    """
    config = copy.deepcopy(model.config)
    config._attn_implementation = "eager"  # other implementations may not run on the meta device
    vision = config.vision_config
    size = (vision.num_channels, vision.image_size, vision.image_size)
    clip = (1, vision.num_frames if num_frames is None else num_frames, *size)
    return count_macs_of(
        lambda: EZClipModel(config).eval(),
        lambda copied: copied.get_video_features(torch.empty(clip), output_last_hidden_state=output_last_hidden_state),
    )


@torch.no_grad()
def count_clip_macs(model: DualEncoder, processor: EZClipProcessor) -> int:
    """Count the multiply-accumulates of embedding one clip of a processor; see [`count_macs`]."""
    if isinstance(model, EZClipModel):
        return count_macs(model, processor.num_frames)
    config = copy.deepcopy(model.config)
    config._attn_implementation = "eager"
    clip = (1, processor.num_frames, 3, *processor.crop_size)

    def make() -> RivalEncoder:
        return type(model)(config).eval().requires_grad_(False)

    def run(copied: Any) -> torch.Tensor:
        return copied.encode_videos(torch.empty(clip))

    return count_macs_of(make, run)


def count_macs_of(make: Callable[[], nn.Module], run: Callable[[nn.Module], object]) -> int:
    """
    Count the multiply-accumulates of any computation with a model, backward passes included.

    Args:
        make (`Callable`):
            Builds the model. It is called on the meta device.
        run (`Callable`):
            Runs the model on inputs that it creates itself, on the meta device too.
    """
    with torch.device("meta"):
        model = make()
        with FlopCounterMode(display=False) as counter:
            run(model)
    return counter.get_total_flops() // 2  # a multiply-accumulate is two operations
