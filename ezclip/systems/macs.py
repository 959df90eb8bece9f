"""What embedding a video costs."""

import copy
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from modeling_ezclip import EZClipModel


@torch.no_grad()
def count_macs(model: EZClipModel, num_frames: int | None = None, output_last_hidden_state: bool = True) -> int:
    """
    Multiply-accumulates of embedding one clip: of the convolution, of all linear layers, the projection among them,
    and of the two products of each attention. Softmax, normalisation, activations, biases and sums are not counted,
    as is the custom. It takes neither memory nor time: a copy without weights is counted, of which PyTorch also knows
    the products inside the fused kernels of LSTMs and transformer layers.

    Args:
        model ([`EZClipModel`]):
            The model; its configuration is all that matters.
        num_frames (`int`, *optional*):
            Frames of the clip. By default those of the configuration.
        output_last_hidden_state (`bool`, *optional*, defaults to `True`):
            Whether the last block computes all tokens, or the CLS token alone, which is all that the embedding needs.

    Raises:
        `ValueError`: if the model does not take so many frames.

    Example:

    ```python
    >>> count_macs(EZClipModel(EZClipConfig(vision_config={"patch_size": 16}))) / 1e9
    146.597412864
    ```
    """
    config = copy.deepcopy(model.config)
    config._attn_implementation = "eager"  # what else a machine may have need not run without weights
    vision = config.vision_config
    size = (vision.num_channels, vision.image_size, vision.image_size)
    clip = (1, vision.num_frames if num_frames is None else num_frames, *size)
    return count_macs_of(
        lambda: EZClipModel(config).eval(),
        lambda copied: copied.get_video_features(torch.empty(clip), output_last_hidden_state=output_last_hidden_state),
    )


def count_macs_of(make: Callable[[], nn.Module], run: Callable[[nn.Module], object]) -> int:
    """
    Multiply-accumulates of whatever a model does, counted as [`count_macs`] does, a backward pass among it.

    Args:
        make (`Callable`):
            Makes the model, here without weights.
        run (`Callable`):
            Runs it, on inputs that are made here, without content.
    """
    with torch.device("meta"):
        model = make()
        with FlopCounterMode(display=False) as counter:
            run(model)
    return counter.get_total_flops() // 2  # a multiplication and an addition
