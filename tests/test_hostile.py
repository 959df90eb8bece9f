"""Hostile or broken files: configurations that ask for absurd models, checkpoints with other tensors."""

import json

import psutil
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from ezclip import EZClipConfig, EZClipModel, EZClipVisionConfig
from ezclip.errors import ModelError
from ezclip.systems.loading import load_model
from tests.helpers import make_clip, tiny_config


HUGE = 10**9
# (tower or None, fields, message)
ABSURD = [
    ("vision_config", {"num_frames": HUGE}, "`num_frames` must be at most 4,096, got 1000000000"),
    ("vision_config", {"num_frames": "8"}, "'num_frames' expected int, got str"),
    ("vision_config", {"num_frames": 2.5}, "'num_frames' expected int, got float"),
    ("vision_config", {"num_frames": True}, "'num_frames' expected int, got bool"),
    ("vision_config", {"hidden_size": -1}, "`hidden_size` must be at least 1, got -1"),
    ("text_config", {"hidden_size": [512]}, "'hidden_size' expected int, got list"),
    ("text_config", {"num_hidden_layers": 10**6}, "`num_hidden_layers` must be at most 1,000, got 1000000"),
    ("vision_config", {"num_hidden_layers": 0}, "`num_hidden_layers` must be at least 1, got 0"),
    ("vision_config", {"patch_size": 0}, "`patch_size` must be at least 1, got 0"),
    ("vision_config", {"patch_size": 64}, r"`patch_size` \(64\) must be at most `image_size` \(32\)"),
    ("vision_config", {"image_size": HUGE}, "`image_size` must be at most 16,384"),
    ("vision_config", {"num_channels": HUGE}, "`num_channels` must be at most 1,024"),
    ("vision_config", {"num_attention_heads": 5}, r"`num_attention_heads` \(5\) must divide `hidden_size` \(32\)"),
    ("text_config", {"num_attention_heads": 0}, "`num_attention_heads` must be at least 1, got 0"),
    ("text_config", {"vocab_size": HUGE}, "`vocab_size` must be at most 1,048,576"),
    ("text_config", {"max_position_embeddings": HUGE}, "`max_position_embeddings` must be at most 1,048,576"),
    ("text_config", {"intermediate_size": HUGE}, "`intermediate_size` must be at most 262,144"),
    ("text_config", {"adapter_ratio": float("nan")}, "`adapter_ratio` must be a number, got nan"),
    ("text_config", {"adapter_ratio": 1e300}, r"`adapter_ratio` must be at most 64, got 1e\+300"),
    ("text_config", {"attention_dropout": "much"}, "'attention_dropout' with value 'much'"),
    ("vision_config", {"temporal_prompt_init_range": float("inf")}, "`temporal_prompt_init_range` must be a number"),
    # Each within its bounds, and together more than any machine holds
    ("text_config", {"hidden_size": 2**16, "num_hidden_layers": 1000}, "asks for about [0-9,]+ parameters"),
    ("vision_config", {"hidden_size": 2**16, "num_frames": 2**12, "num_hidden_layers": 100}, "asks for about"),
    ("vision_config", {"image_size": 2**14, "patch_size": 1, "hidden_size": 1024}, "asks for about 274,"),
    (None, {"num_labels": HUGE}, "`num_labels` must be at most 1,048,576"),
    (None, {"freeze_backbone": "no"}, "'freeze_backbone' expected bool, got str"),
    ("vision_config", {"use_adapter": "no"}, "'use_adapter' expected bool, got str"),
    ("text_config", {"layer_norm_eps": float("nan")}, "`layer_norm_eps` must be a number, got nan"),
    (None, {"projection_dim": HUGE}, "`projection_dim` must be at most 65,536"),
    (None, {"projection_dim": 0}, "`projection_dim` must be at least 1, got 0"),
    (None, {"projection_dim": 2**16, "temporal_head": "transformer"}, "asks for about"),
    (None, {"temporal_head": "transformer", "temporal_head_layers": HUGE}, "`temporal_head_layers` must be at most"),
    (None, {"logit_scale_init_value": "x"}, "'logit_scale_init_value' with value 'x'"),
    (None, {"motion_loss_weight": None}, "'motion_loss_weight' with value None"),
    (None, {"vision_config": [1, 2]}, r"'vision_config'.* got \[1, 2\]"),
    (None, {"text_config": "x" * 10**6}, "'text_config'.* got 'x{59}…"),
    (None, {"projection_dim": 10**4000}, "`projection_dim` must be at most 65,536, got a number of over 30 digits"),
]


@pytest.mark.parametrize(("tower", "fields", "message"), ABSURD)
def test_absurd_config(tower, fields, message, tmp_path):
    make_clip(tmp_path)
    EZClipModel.from_pretrained(tmp_path).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    content = {**content, **(fields if tower is None else {tower: {**content[tower], **fields}})}
    content.pop("auto_map")  # load with this package, not with the saved code
    before = psutil.Process().memory_info().rss
    with pytest.raises((ValueError, StrictDataclassError), match=f"(?s:{message})") as caught:
        EZClipConfig(**content)
    assert len(str(caught.value)) < 400
    path.write_text(json.dumps(content))
    for load in (AutoConfig.from_pretrained, EZClipModel.from_pretrained):
        with pytest.raises((ValueError, StrictDataclassError), match=f"(?s:{message})"):
            load(tmp_path)
    with pytest.raises(ModelError, match=f"config.json of .* is not one of a model: .*{message}"):
        load_model(tmp_path)
    assert psutil.Process().memory_info().rss < before + 200e6


def test_clip_config_with_wrong_type(tmp_path):
    make_clip(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    content["text_config"]["layer_norm_eps"] = "small"
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match="config.json of .* is not one of a model: .*'layer_norm_eps'.* got str"):
        load_model(tmp_path)


def test_unknown_activation(tmp_path):
    make_clip(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    content["text_config"]["hidden_act"] = "nothing known"
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match="cannot be loaded: .*nothing known"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    "fields",
    [
        # EVA-CLIP-18B, ViT-bigG/14, ViT-L/14@336, ViT-B/16 on long videos
        {"hidden_size": 5120, "intermediate_size": 25600, "num_hidden_layers": 48, "num_attention_heads": 40},
        {"hidden_size": 1664, "intermediate_size": 8192, "num_hidden_layers": 48, "num_attention_heads": 16},
        {"hidden_size": 1024, "num_attention_heads": 16, "image_size": 336, "patch_size": 14, "num_frames": 64},
        {"patch_size": 16, "num_frames": 4096},
        {"image_size": 230, "patch_size": 32},  # the last pixels are cut off
        {"num_hidden_layers": 1, "num_frames": 1, "num_attention_heads": 1},
    ],
)
def test_published_sizes(fields):
    config = EZClipConfig(vision_config=fields)
    assert EZClipVisionConfig(**fields).to_diff_dict().items() >= fields.items() - {("patch_size", 32)}
    with torch.device("meta"):
        assert EZClipModel(config).num_parameters() > 0


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    EZClipModel(tiny_config()).save_pretrained(tmp_path)
    return tmp_path


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


BLOCK = "text_model.encoder.layers.1"


def test_wrong_tensors_are_named(folder):
    def change(weights):
        for name in ("mlp.fc1.weight", "adapter.up_proj.bias"):
            del weights[f"{BLOCK}.{name}"]
        weights["visual_projection.weight"] = torch.ones(8, 32)
        weights["vision_model.encoder.layers.0.temporal_prompt"] = torch.ones(3, 32)
        weights["vision_model.encoder.layers.7.layer_norm1.weight"] = torch.ones(32)
        weights["payload"] = torch.ones(1)

    change_weights(folder, change)
    with pytest.raises(ModelError) as caught:
        load_model(folder, for_training=True)
    misshapen, missing, extra = str(caught.value).splitlines()
    assert (
        "does not fit the configuration asked for: vision_model.encoder.layers.0.temporal_prompt is (3, 32) there and "
        "would be (8, 32), visual_projection.weight is (8, 32) there and would be (16, 32)."
    ) in misshapen
    assert f"lacks weights of CLIP: {BLOCK}.adapter.up_proj.bias, {BLOCK}.mlp.fc1.weight." in missing
    assert "no place for: payload, vision_model.encoder.layers.7.layer_norm1.weight." in extra
    assert all(line.startswith(str(folder)) for line in (misshapen, missing, extra))


def test_missing_adapter_is_an_error(folder):
    change_weights(folder, lambda weights: weights.pop(f"{BLOCK}.adapter.up_proj.weight"))
    for for_training in (False, True):
        with pytest.raises(ModelError, match=rf"lacks weights: {BLOCK}.adapter.up_proj.weight\."):
            load_model(folder, for_training)


def test_many_wrong_tensors(folder):
    change_weights(folder, lambda weights: weights.update({f"odd.{n:03}": torch.ones(1) for n in range(123)}))
    with pytest.raises(ModelError, match=r"no place for: odd.000, .*, odd.019, and 103 more\."):
        load_model(folder)


def test_trained_weights_are_dropped_only_for_training(folder):
    without = {"vision_config": {"temporal_prompt": "none", "use_adapter": False}}
    model = load_model(folder, for_training=True, **without)
    assert not any("temporal_prompt" in name for name in model.state_dict())
    with pytest.raises(ModelError, match="was trained with vision_model.encoder.layers.0.adapter.* no place for"):
        load_model(folder, **without)
    with pytest.raises(ModelError, match="no place for: text_model.encoder.layers.0.adapter.down_proj.bias, "):
        content = json.loads((folder / "config.json").read_text())
        content["text_config"]["use_adapter"] = False
        (folder / "config.json").write_text(json.dumps(content))
        load_model(folder)


def test_position_ids_of_old_clip_weights(tmp_path):
    make_clip(tmp_path)
    positions = {"text_model": torch.arange(16)[None], "vision_model": torch.arange(5)[None]}
    change_weights(
        tmp_path, lambda weights: weights.update({f"{k}.embeddings.position_ids": v for k, v in positions.items()})
    )
    assert load_model(tmp_path, preset="clip").config.temporal_head == "mean"
