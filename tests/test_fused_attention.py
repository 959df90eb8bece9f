"""Attention with dropout in training runs in PyTorch's fused attention, which a GPU has kernels for."""

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ezclip import EZClipModel
from tests.helpers import make_inputs, tiny_config


class Calls(TorchFunctionMode):
    """Record the dropout of each fused attention, and count softmaxes, which attention by products has."""

    def __init__(self):
        super().__init__()
        self.dropouts, self.num_softmaxes = [], 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is nn.functional.scaled_dot_product_attention:
            self.dropouts.append(args[4] if len(args) > 4 else kwargs.get("dropout_p", 0.0))
        self.num_softmaxes += func in (nn.functional.softmax, torch.softmax, torch.Tensor.softmax)
        return func(*args, **kwargs)


@pytest.mark.parametrize("trains", [True, False])
def test_dropout_is_fused(trains):
    layers = {"num_hidden_layers": 3, "attention_dropout": 0.2, "drop_path_rate": 0.0}
    model = EZClipModel(tiny_config(vision_config=layers)).train(trains)
    with Calls() as calls:
        model(**make_inputs())
    expected = {0.0, 0.1, 0.2} if trains else {0.0}
    assert {round(dropout, 6) for dropout in calls.dropouts} == expected
    assert calls.num_softmaxes == 0
