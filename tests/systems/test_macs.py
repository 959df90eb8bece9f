"""Multiply-accumulates: published figures and counts by hand."""

import pytest
import torch

from configuration_ezclip import TEMPORAL_HEADS
from ezclip import EZClipConfig, EZClipModel
from ezclip.systems.macs import count_macs
from tests.helpers import tiny_config


PLAIN_VISION = {"temporal_prompt": "none", "use_temporal_embedding": False, "use_adapter": False}


def vit_b16(**vision_config) -> EZClipModel:
    """A ViT-B/16 without weights."""
    with torch.device("meta"):
        return EZClipModel(EZClipConfig(vision_config={"patch_size": 16, **vision_config}))


@pytest.mark.parametrize(
    ("vision_config", "gmacs", "num_trained"),
    [
        ({}, 146.6, 5_204_736),
        ({"temporal_prompt": "shallow"}, 146.1, 5_137_152),
    ],
)
def test_published_costs_of_ezclip(vision_config, gmacs, num_trained):
    model = vit_b16(**vision_config)
    assert round(count_macs(model) / 1e9, 1) == gmacs
    assert model.num_parameters(only_trainable=True) == num_trained


def test_published_costs_of_plain_clip():
    with torch.device("meta"):
        clip = EZClipModel(EZClipConfig.from_preset("clip", vision_config={"patch_size": 16}))
    assert clip.num_parameters(only_trainable=True) == 0
    assert round(count_macs(clip) / 1e9, 1) == 140.5
    assert count_macs(vit_b16()) / count_macs(clip) == pytest.approx(1.043, abs=5e-4)
    assert count_macs(clip, num_frames=16) == 2 * count_macs(clip, num_frames=8)


def test_embedding_alone():
    """Without the last block's queries, output, adapter, MLP and attention products of 196 of 197 tokens."""
    model, width, others = vit_b16(), 768, 196
    per_frame = others * (10 * width**2 + 2 * width * width // 4) + 2 * others * 198 * width
    temporal_token = 2 * width**2 + 2 * 198 * width  # counted as a query only where all tokens are
    saved = count_macs(model) - count_macs(model, output_last_hidden_state=False)
    assert saved == 8 * (per_frame + temporal_token)
    assert round(count_macs(model, output_last_hidden_state=False) / 1e9, 1) == 136.4


# The tiny model: 2 blocks of 32 channels, an MLP of 64, adapters of 8, a patch of 16 x 16 x 3, a projection to 16.
TOKENS, CHANNELS, FRAMES = 5, 32, 8
PATCHES = 4 * 16 * 16 * 3 * CHANNELS
PROJECTION = CHANNELS * 16


def attention(tokens: int) -> int:
    """Four linear layers, and two products of `tokens` times `tokens`."""
    return 4 * tokens * CHANNELS**2 + 2 * tokens**2 * CHANNELS


def count_by_hand(temporal_prompt: str, use_adapter: bool, use_temporal_adapter: bool) -> int:
    macs = FRAMES * (PATCHES + PROJECTION)
    for block in range(2):
        is_prompted = temporal_prompt == "deep" or (temporal_prompt == "shallow" and block == 0)
        macs += FRAMES * (attention(TOKENS + is_prompted) + 2 * TOKENS * CHANNELS * 64)
        macs += attention(FRAMES) * is_prompted
        macs += FRAMES * 2 * TOKENS * CHANNELS * 8 * use_adapter
        macs += (TOKENS * attention(FRAMES) + FRAMES * 2 * TOKENS * CHANNELS * 8) * use_temporal_adapter
    return macs


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@pytest.mark.parametrize(
    ("temporal_prompt", "use_adapter", "use_temporal_adapter"),
    [("deep", True, False), ("shallow", False, False), ("none", True, True), ("none", False, False)],
)
def test_tower_by_hand(temporal_prompt, use_adapter, use_temporal_adapter, attn_implementation):
    switches = {
        "temporal_prompt": temporal_prompt,
        "use_adapter": use_adapter,
        "use_temporal_adapter": use_temporal_adapter,
    }
    model = EZClipModel(tiny_config(vision_config=switches, attn_implementation=attn_implementation))
    assert count_macs(model) == count_by_hand(**switches)


def count_head_by_hand(head: str) -> int:
    width, layers = 16, 2
    block_of_four = 4 * FRAMES * width**2 + 2 * FRAMES**2 * width + 2 * FRAMES * width * 4 * width
    with_cls = FRAMES + 1
    return {
        "mean": 0,
        "transformer": layers * block_of_four,
        "lstm": FRAMES * 4 * width * 2 * width,
        "conv1d": FRAMES * 3 * width,
        "transformer_cls": layers * (4 * with_cls * width**2 + 2 * with_cls**2 * width + 2 * with_cls * width * 2048),
    }[head]


@pytest.mark.parametrize("head", TEMPORAL_HEADS)
def test_temporal_head_by_hand(head):
    towers = {"vision_config": PLAIN_VISION}
    model = EZClipModel(tiny_config(**towers, temporal_head=head, temporal_head_layers=2))
    assert count_macs(model) == count_by_hand("none", False, False) + count_head_by_hand(head)


def test_joint_attention_by_hand():
    vision_config = {**PLAIN_VISION, "use_joint_attention": True, "use_temporal_embedding": True}
    tokens = 1 + 4 * FRAMES
    blocks = 2 * (attention(tokens) + 2 * tokens * CHANNELS * 64)
    assert count_macs(EZClipModel(tiny_config(vision_config=vision_config))) == FRAMES * PATCHES + blocks + PROJECTION


def test_model_is_unchanged():
    model = EZClipModel(tiny_config(attn_implementation="sdpa")).train()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    count_macs(model)
    assert model.training and model.device.type == "cpu" and model.config._attn_implementation == "sdpa"
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_wrong_number_of_frames():
    with pytest.raises(ValueError, match="frames a video"):
        count_macs(EZClipModel(tiny_config()), num_frames=4)
