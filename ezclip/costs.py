"""What embedding a video costs."""

import copy

import torch
from torch.utils.flop_counter import FlopCounterMode

from .modeling_ezclip import EZClipModel


@torch.no_grad()
def count_macs(model: EZClipModel, num_frames: int | None = None) -> int:
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
    with torch.device("meta"):
        copied = EZClipModel(config).eval()
        vision = config.vision_config
        size = (vision.num_channels, vision.image_size, vision.image_size)
        pixel_values = torch.empty(1, vision.num_frames if num_frames is None else num_frames, *size)
    with FlopCounterMode(display=False) as counter:
        copied.get_video_features(pixel_values)
    return counter.get_total_flops() // 2  # a multiplication and an addition
