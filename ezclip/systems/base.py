"""The base inside a model."""

import copy

import torch

from configuration_ezclip import EZClipConfig
from ezclip.systems.presets import TEXT_FIELDS, VISION_FIELDS
from modeling_ezclip import EZClipModel


def plain_clip(model: EZClipModel) -> EZClipModel:
    """
    Return the CLIP inside a model: the same weights without prompts, adapters, shift and temporal head.

    This is the original CLIP if it was frozen in training, but not if everything was trained (ActionCLIP).

    The result shares the weights and is in evaluation mode.
    """
    config, plain = copy.deepcopy(model.config), EZClipConfig.from_preset("clip")
    for tower, names in (("vision_config", VISION_FIELDS), ("text_config", TEXT_FIELDS)):
        for name in names:
            setattr(getattr(config, tower), name, getattr(getattr(plain, tower), name))
    config.temporal_head = plain.temporal_head
    with torch.device("meta"):
        clip = EZClipModel(config)
    weights = model.state_dict()
    clip.load_state_dict({name: weights[name] for name in clip.state_dict()}, assign=True)
    for name, module in clip.named_modules():
        for buffer in module._buffers:  # position ids are not in the state dict
            setattr(module, buffer, getattr(model.get_submodule(name), buffer))
    return clip.eval()
