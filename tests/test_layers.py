"""The blocks' own arithmetic against the formulas it stands for, and what training keeps in memory."""

import numpy as np
import pytest
import torch
from transformers.activations import ACT2FN

import modeling_ezclip as layers
from ezclip import EZClipModel
from modeling_ezclip import EZClipQuickGELU, draw_kept, dropout_attention_forward
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


@pytest.mark.parametrize("dropout", [1e-6, 0.03, 0.5, 0.999999])
def test_dropout_keeps_each_element_with_its_probability(dropout):
    kept = draw_kept(torch.empty(101, 397), dropout, np.random.default_rng(0))
    assert kept.shape == (101, 397) and set(kept.unique().tolist()) <= {0.0, 1.0}
    for part in (kept.flatten(), *(kept.flatten()[start::4] for start in range(4))):  # four share a random number
        assert part.float().mean().item() == pytest.approx(1 - dropout, abs=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("max_weights", [layers.MAX_WEIGHTS, 2 * 3 * 5 * 6, 1])  # at once, two videos, and one by one
def test_dropout_attention_is_attention_by_the_weights_that_are_kept(max_weights, dtype, monkeypatch):
    monkeypatch.setattr(layers, "MAX_WEIGHTS", max_weights)
    torch.manual_seed(0)
    query, key, value = (torch.randn(3, 3, rows, 4, dtype=dtype, requires_grad=True) for rows in (5, 6, 6))
    weighing = torch.randn(3, 5, 3, 4, dtype=dtype)
    torch.manual_seed(1)
    attended, weights = dropout_attention_forward(None, query, key, value, None, scaling=0.5, dropout=0.25)
    assert weights is None and attended.dtype == dtype
    gradients = torch.autograd.grad((attended * weighing).sum(), (query, key, value))

    torch.manual_seed(1)
    generator = np.random.default_rng(int(torch.randint(2**63 - 1, ())))
    sizes = {1: [1, 1, 1], 2 * 3 * 5 * 6: [2, 1]}.get(max_weights, [3])
    kept = torch.cat([draw_kept(torch.empty(size, 3, 5, 6), 0.25, generator) for size in sizes])
    assert 0 < kept.sum() < kept.numel()
    dropped_out = (0.5 * query @ key.transpose(-1, -2)).softmax(dim=-1) * kept.to(dtype) / 0.75
    expected = (dropped_out @ value).transpose(1, 2)
    tolerance = {"atol": 3e-2, "rtol": 3e-2} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(attended, expected, **tolerance)
    expected = torch.autograd.grad((expected * weighing).sum(), (query, key, value))
    torch.testing.assert_close(gradients, expected, **tolerance)


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
