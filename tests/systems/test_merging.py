"""Weights between a base and a tuned model: both ends bit for bit, the middle by hand, pairs that do not fit."""

import copy

import pytest
import torch

from ezclip.errors import ModelError
from ezclip.systems import merge_models
from tests.helpers import make_inputs, make_model, train


PLAIN = {"temporal_prompt": "none", "use_temporal_embedding": False, "use_adapter": False}


def make_plain(seed=0, freeze_backbone=True, **vision_config):
    return make_model({**PLAIN, **vision_config}, seed, freeze_backbone=freeze_backbone)


def make_tuned(base, share=1.0, **kwargs):
    """A model with parts of its own over the towers of `base`, moved by as much as `share` says."""
    tuned = make_model(seed=9, **kwargs)
    generator = torch.Generator().manual_seed(1)
    weights = {
        name: weight + share * 0.1 * torch.randn(weight.shape, generator=generator)
        for name, weight in base.state_dict().items()
    }
    tuned.load_state_dict(weights, strict=False)
    return tuned


def outputs(model):
    with torch.no_grad():
        return model(**make_inputs()).logits_per_video


@pytest.mark.parametrize("head", ["mean", "transformer", "lstm", "conv1d", "transformer_cls"])
def test_ends_are_bit_for_bit(head):
    base = make_plain()
    tuned = make_tuned(base, temporal_head=head)
    for alpha, end in ((0, base), (1, tuned)):
        merged = merge_models(base, tuned, alpha)
        assert merged is not end
        assert merged.config.to_dict() == end.config.to_dict()
        weights = end.state_dict()
        assert merged.state_dict().keys() == weights.keys()
        assert all(torch.equal(weight, weights[name]) for name, weight in merged.state_dict().items())
        assert torch.equal(outputs(merged), outputs(end))


def test_middle_by_hand():
    base = make_plain()
    tuned = make_tuned(base, temporal_head="transformer")
    before = [copy.deepcopy(model.state_dict()) for model in (base, tuned)]
    merged = merge_models(base, tuned, 0.3).state_dict()
    for name, weight in before[1].items():
        start = before[0].get(name, torch.zeros_like(weight))
        expected = (1 - 0.3) * start.double() + 0.3 * weight.double()
        torch.testing.assert_close(merged[name].double(), expected, rtol=1e-7, atol=1e-9)
    for model, weights in zip((base, tuned), before):
        assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())


def test_equal_weights_stay_exact():
    base = make_plain()
    tuned = make_tuned(base, share=0.0)
    merged = merge_models(base, tuned, 0.3).state_dict()
    assert all(torch.equal(merged[name], weight) for name, weight in base.state_dict().items())
    adapter = next(name for name in merged if "adapter" in name and name not in base.state_dict())
    torch.testing.assert_close(merged[adapter], 0.3 * tuned.state_dict()[adapter])


def test_halves_are_merged_in_higher_precision():
    base = make_plain()
    tuned = make_tuned(base).to(torch.bfloat16)
    merged = merge_models(base, tuned, 0.5)
    assert merged.dtype == torch.bfloat16
    name = "vision_model.encoder.layers.0.mlp.fc1.weight"
    start, end = base.state_dict()[name], tuned.state_dict()[name]
    assert torch.equal(merged.state_dict()[name], ((start.double() + end.double()) / 2).to(torch.bfloat16))


def test_small_shares_of_adapters_change_little():
    """Parts with a residual do nothing at 0."""
    base = make_plain()
    tuned = make_tuned(base, share=0.0, vision_config={**PLAIN, "use_adapter": True}, temporal_head="conv1d")
    near = merge_models(base, tuned, 1e-6)
    torch.testing.assert_close(outputs(near), outputs(base), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(outputs(tuned), outputs(base), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("make_pair", "message"),
    [
        (lambda base: (base, make_tuned(base, vision_config={"hidden_act": "gelu"})), "hidden_act"),
        (lambda base: (base, make_plain(intermediate_size=32)), "is .* in the base"),
        (lambda base: (base, make_plain(num_hidden_layers=3)), r"The base lacks.*layers\.2"),
        (lambda base: (make_tuned(base), base), "lacks weights of the base.*adapter"),
        (lambda base: (base, train(make_plain(freeze_backbone=False), seed=5)), "not trained from this base"),
    ],
)
def test_other_models_are_refused(make_pair, message):
    base = make_plain()
    with pytest.raises(ModelError, match=message):
        merge_models(*make_pair(base), 0.5)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_alpha_is_a_share(alpha):
    base = make_plain()
    with pytest.raises(ModelError, match="alpha must be in"):
        merge_models(base, make_tuned(base), alpha)
