"""The blocks' own arithmetic against the formulas it stands for, and what training keeps in memory."""

import pytest
import torch
from transformers.activations import ACT2FN

from ezclip import EZClipModel
from modeling_ezclip import EZClipQuickGELU
from tests.helpers import tiny_config


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quick_gelu_is_that_of_clip(dtype):
    inputs = torch.linspace(-12.0, 12.0, 101, dtype=dtype)
    untouched, expected = inputs.clone(), ACT2FN["quick_gelu"](inputs)
    tolerance = {"atol": 1e-6, "rtol": 1e-6} if dtype == torch.float32 else {"atol": 1e-2, "rtol": 2e-2}
    torch.testing.assert_close(EZClipQuickGELU()(inputs), expected, **tolerance)
    assert torch.equal(inputs, untouched)  # others may hold it
    gradients = []
    for activation in (EZClipQuickGELU(), ACT2FN["quick_gelu"]):
        leaf = inputs.clone().requires_grad_()
        activation(leaf).sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients, **tolerance)


def kept_for_backward(freeze_backbone: bool) -> list[torch.Tensor]:
    """The tensors that a forward pass in training keeps for the backward pass, weights aside."""
    torch.manual_seed(0)
    vision_config = {"image_size": 64, "num_hidden_layers": 3, "attention_dropout": 0.2, "drop_path_rate": 0.2}
    model = EZClipModel(tiny_config(vision_config=vision_config, freeze_backbone=freeze_backbone)).train()
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    pixel_values = torch.randn(2, 8, 3, 64, 64)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = model.get_video_features(pixel_values)
    assert outputs.pooler_output.requires_grad
    return list(kept.values())


def test_training_keeps_no_attention_weights_and_little_of_a_frozen_block():
    config = tiny_config().vision_config
    kept = kept_for_backward(freeze_backbone=True)
    tokens = 1 + (64 // config.patch_size) ** 2
    square = 16 * config.num_attention_heads * tokens * (tokens + 1)
    assert not [tensor for tensor in kept if tensor.numel() == square]
    inner = [tensor for tensor in kept if tensor.numel() == 16 * tokens * config.intermediate_size]
    assert len(inner) == 3  # one a block
    # Of each block what goes into its LayerNorm, its queries and what goes into its adapter; of the first not the
    # former, which is frozen; and what the second and third add to keys and values makes these a token longer.
    wide = [tensor for tensor in kept if tensor.numel() == 16 * tokens * config.hidden_size]
    assert len(wide) <= 3 * 3
    kept_if_all_are_trained = kept_for_backward(freeze_backbone=False)
    size, of_all = (sum(tensor.nbytes for tensor in tensors) for tensors in (kept, kept_if_all_are_trained))
    assert size < 0.6 * of_all
