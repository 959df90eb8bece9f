"""EZ-CLIP on PE-Core's vision tower, which is timm's."""

import json

import pytest
import torch
from transformers import CLIPTextConfig, TimmWrapperConfig, TimmWrapperModel
from transformers.utils import is_timm_available

from configuration_ezclip import EZClipConfig
from modeling_ezclip import EZClipModel


needs_timm = pytest.mark.skipif(not is_timm_available(), reason="timm is not installed (`pip install ezclip[pe]`)")
SIZES = {"embed_dim": 32, "depth": 3, "num_heads": 4, "img_size": 32, "patch_size": 8, "ref_feat_shape": (4, 4)}
SIZES["attn_pool_num_heads"] = 4
NEW = {"vision_config": {"temporal_prompt": "deep", "use_adapter": True}, "text_config": {"use_adapter": True}}


@pytest.fixture
def towers():
    text = CLIPTextConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=99,
        max_position_embeddings=32, bos_token_id=97, eos_token_id=98, pad_token_id=0,
    )  # fmt: skip
    vision = TimmWrapperConfig(architecture="vit_pe_core_base_patch16_224", model_args=SIZES)
    return {"text_config": text, "vision_config": vision, "projection_dim": 24}


@pytest.fixture
def base(towers, tmp_path):
    """Save PE-Core with random weights, as a model that averages frames, and return it."""
    torch.manual_seed(0)
    model = EZClipModel(EZClipConfig.from_preset("clip", **towers)).eval()
    for weight in model.parameters():
        if weight.ndim:
            torch.nn.init.normal_(weight, std=0.2)
    model.save_pretrained(tmp_path / "base")
    model.folder = tmp_path / "base"
    return model


@pytest.fixture
def inputs():
    torch.manual_seed(1)
    input_ids = torch.randint(3, 97, (2, 10))
    input_ids[:, 6] = 98
    return {"pixel_values": torch.randn(2, 8, 3, 32, 32), "input_ids": input_ids}


def video_embeds(model, pixel_values):
    with torch.no_grad():
        return model.eval().get_video_features(pixel_values).pooler_output


@needs_timm
@torch.no_grad()
def test_features_are_those_of_timm(base, towers, inputs):
    tower = TimmWrapperModel(towers["vision_config"]).eval()
    assert not any(tower.load_state_dict(base.vision_model.state_dict()))
    frames = inputs["pixel_values"]
    expected = base.visual_projection(tower(frames.flatten(0, 1)).pooler_output).unflatten(0, (2, 8))
    features = EZClipModel.from_pretrained(base.folder).eval().get_video_features(frames)
    assert torch.allclose(features.frame_embeds, expected, atol=1e-6)
    assert torch.allclose(features.pooler_output, expected.mean(dim=1), atol=1e-6)


@needs_timm
def test_temporal_tokens_read_time(base, inputs):
    model, info = EZClipModel.from_pretrained(base.folder, output_loading_info=True, **NEW)
    assert info["missing_keys"] and all("adapter" in key or "temporal_prompt" in key for key in info["missing_keys"])
    assert {*base.state_dict()} == {*model.state_dict()} - {*info["missing_keys"]}
    frames = inputs["pixel_values"]
    assert (video_embeds(model, frames) - video_embeds(model, frames.flip(1))).abs().max() > 1e-6
    assert (video_embeds(base, frames) - video_embeds(base, frames.flip(1))).abs().max() < 1e-6


@needs_timm
@pytest.mark.parametrize("vision", [{}, {"temporal_prompt": "none", "use_temporal_adapter": True}])
def test_train_and_save(base, inputs, tmp_path, vision):
    changes = {**NEW, "vision_config": {**NEW["vision_config"], **vision}}
    model = EZClipModel.from_pretrained(base.folder, **changes).train()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1e-2)
    for step in range(3):
        model(**inputs, labels=torch.arange(2)).loss.backward()
        if step:  # at first the adapters output zero, so their input gets no gradient
            assert all(weight.grad.abs().sum() > 0 for weight in trained)
        optimizer.step()
        optimizer.zero_grad()
    expected = video_embeds(model, inputs["pixel_values"])
    assert not torch.allclose(expected, video_embeds(base, inputs["pixel_values"]), atol=1e-3)
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "trained", trained_only=True, base_model_name_or_path=base.folder)
    for name in ("whole", "trained"):
        again = EZClipModel.from_pretrained(tmp_path / name)
        assert torch.equal(video_embeds(again, inputs["pixel_values"]), expected)
    config = json.loads((tmp_path / "trained" / "config.json").read_text())["vision_config"]
    assert (config["model_type"], config["hidden_size"], config["image_size"]) == ("timm_wrapper", 32, 32)


@needs_timm
def test_shift_needs_clip_embeddings(towers):
    with pytest.raises(ValueError, match="`use_temporal_shift` must be False"):
        EZClipConfig.from_preset("actionclip_tsm", **towers)


def test_other_timm_models_are_refused(towers):
    with pytest.raises(ValueError, match="vit_pe_core.*'resnet50'"):
        EZClipConfig(vision_config=TimmWrapperConfig(architecture="resnet50"))


@pytest.mark.skipif(is_timm_available(), reason="timm is installed")
def test_missing_timm_is_named(towers):
    with pytest.raises(ImportError, match="pip install timm"):
        EZClipConfig(**towers)
