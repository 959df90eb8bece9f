"""The model by itself: sizes, switches, losses, loading, freezing."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from ezclip import EZClipConfig, EZClipModel, EZClipVisionModel
from modeling_ezclip import EZClipDropPath, contrastive_loss, motion_loss, similarity_targets
from tests.helpers import ROOT, make_clip, make_inputs, make_model, shared_path, tiny_config


VIT_B16 = {"patch_size": 16}
# (vision_config, trainable, total) of ViT-B/16: REFERENCE.md section 1, measured on the authors' code
PARAMETER_COUNTS = {
    "deep, 8 frames": ({}, 5_204_736, 154_831_617),
    "deep, 16 frames": ({"num_frames": 16}, 5_278_464, 154_911_489),
    "shallow": ({"temporal_prompt": "shallow"}, 5_137_152, 154_764_033),
    "no prompts": ({"temporal_prompt": "none"}, 5_131_008, 154_757_889),
    "temporal adapter": ({"temporal_prompt": "none", "use_temporal_adapter": True}, 8_681_472, 158_308_353),
}
VARIANTS = {
    "deep": {},
    "shallow": {"temporal_prompt": "shallow"},
    "adapters": {"temporal_prompt": "none"},
    "temporal adapter": {"temporal_prompt": "none", "use_temporal_adapter": True},
    "clip": {"temporal_prompt": "none", "use_adapter": False, "use_temporal_embedding": False},
}


@pytest.mark.parametrize("name", PARAMETER_COUNTS)
def test_parameter_counts_of_vit_b16(name):
    vision_config, trainable, total = PARAMETER_COUNTS[name]
    with torch.device("meta"):
        model = EZClipModel(EZClipConfig(vision_config={**VIT_B16, **vision_config}))
    assert model.num_parameters(only_trainable=True) == trainable
    assert model.num_parameters() == total


def test_parameter_counts_by_part():
    with torch.device("meta"):
        model = EZClipModel(EZClipConfig(vision_config=VIT_B16))
    trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    assert sum(n for name, n in trained.items() if "temporal_prompt" in name) == 73_728
    assert sum(n for name, n in trained.items() if name.startswith("vision_model") and "adapter" in name) == 3_550_464
    assert sum(n for name, n in trained.items() if name.startswith("text_model") and "adapter" in name) == 1_580_544


def test_initial_values():
    model = EZClipModel(tiny_config(vision_config={"hidden_size": 256, "num_frames": 64}))
    prompt = model.vision_model.encoder.layers[1].temporal_prompt
    limit = (6 / (3 * 16 * 16 + 256)) ** 0.5
    assert prompt.abs().max() <= limit
    assert prompt.abs().max() > 0.99 * limit
    assert prompt.std().item() == pytest.approx(limit / 3**0.5, rel=0.05)
    for layer in [*model.vision_model.encoder.layers, *model.text_model.encoder.layers]:
        assert layer.adapter.up_proj.weight.abs().max() == 0
        assert layer.adapter.down_proj.weight.abs().max() > 0
    assert model.vision_model.temporal_embedding.abs().max() == 0
    # CLIP's own initialisation, which transformers skips for custom code
    query = model.vision_model.encoder.layers[0].self_attn.q_proj.weight
    assert query.std().item() == pytest.approx(256**-0.5 * (2 * 2) ** -0.5, rel=0.05)


def test_plain_clip_weights_load(tmp_path):
    clip = make_clip(tmp_path)
    model, info = EZClipModel.from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert all("temporal_prompt" in key or "adapter" in key for key in info["missing_keys"])
    assert model.config.model_type == "ezclip"
    assert model.vision_model.temporal_embedding.abs().max() == 0
    loaded = model.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in clip.state_dict().items())


def test_without_temporal_prompts_a_fresh_model_is_clip_with_frames_averaged(tmp_path):
    clip = make_clip(tmp_path)
    model = EZClipModel.from_pretrained(tmp_path, vision_config={"temporal_prompt": "none"})
    inputs = make_inputs()
    with torch.no_grad():
        outputs = model(**inputs)
        frames = clip.get_image_features(inputs["pixel_values"].flatten(0, 1)).pooler_output
        texts = clip.get_text_features(inputs["input_ids"]).pooler_output
    torch.testing.assert_close(outputs.frame_embeds, frames.view(3, 8, -1), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(outputs.text_model_output.pooler_output, texts, atol=1e-6, rtol=1e-5)


def test_a_tower_loads_from_the_whole_model(tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path)
    tower = EZClipVisionModel.from_pretrained(tmp_path, config=model.config.vision_config)
    inputs = make_inputs()["pixel_values"]
    with torch.no_grad():
        expected = model.vision_model(inputs).pooler_output
        assert torch.equal(tower(inputs).pooler_output, expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_outputs(variant):
    model, inputs = make_model(VARIANTS[variant]), make_inputs()
    with torch.no_grad():
        outputs = model(**inputs, output_hidden_states=True)
        features = model.get_video_features(inputs["pixel_values"])
    assert outputs.logits_per_video.shape == (3, 3)
    assert torch.equal(outputs.logits_per_text, outputs.logits_per_video.t())
    assert outputs.frame_embeds.shape == (3, 8, 16)
    torch.testing.assert_close(features.pooler_output, outputs.frame_embeds.mean(dim=1))
    torch.testing.assert_close(outputs.video_embeds.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(outputs.text_embeds.norm(dim=-1), torch.ones(3))
    assert outputs.loss is None
    assert [tuple(h.shape) for h in outputs.vision_model_output.hidden_states] == [(24, 5, 32)] * 3


def test_attentions_are_those_over_the_tokens_of_a_frame():
    model, inputs = make_model(), make_inputs()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        outputs = model(**inputs, output_attentions=True)
    attentions = outputs.vision_model_output.attentions
    assert [tuple(a.shape) for a in attentions] == [(24, 2, 6, 6)] * 2  # the sixth is the temporal token
    torch.testing.assert_close(attentions[0].sum(dim=-1), torch.ones(24, 2, 6))


@pytest.mark.parametrize("variant", VARIANTS)
def test_videos_of_a_batch_do_not_mix(variant):
    model, inputs = make_model(VARIANTS[variant]), make_inputs()
    with torch.no_grad():
        together = model.get_video_features(inputs["pixel_values"]).frame_embeds
        alone = torch.cat([model.get_video_features(video[None]).frame_embeds for video in inputs["pixel_values"]])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("variant", "reads_order"), [("deep", True), ("shallow", True), ("adapters", False)])
def test_the_order_of_frames_matters_only_with_temporal_prompts(variant, reads_order):
    vision_config = {**VARIANTS[variant], "use_temporal_embedding": False, "temporal_prompt_init_range": 4.0}
    model, video = make_model(vision_config), make_inputs(1)["pixel_values"]
    with torch.no_grad():
        forwards = model.get_video_features(video).pooler_output
        backwards = model.get_video_features(video.flip(1)).pooler_output
    assert torch.allclose(forwards, backwards, atol=1e-5) != reads_order


@pytest.mark.parametrize("num_frames", [1, 3, 16])
def test_any_number_of_frames_where_no_weight_counts_them(num_frames):
    model = make_model(VARIANTS["clip"])
    features = model.get_video_features(make_inputs(num_frames=num_frames)["pixel_values"])
    assert features.frame_embeds.shape == (3, num_frames, 16)


@pytest.mark.parametrize("num_frames", [1, 16])
def test_a_model_is_made_for_any_number_of_frames(num_frames):
    model = make_model({"num_frames": num_frames})
    outputs = model(**make_inputs(num_frames=num_frames), return_loss=True)
    outputs.loss.backward()
    assert torch.isfinite(outputs.loss)


def test_wrong_number_of_frames_is_named():
    model = make_model()
    with pytest.raises(ValueError, match="`pixel_values` has 5 frames a video.*each of 8"):
        model.get_video_features(make_inputs(num_frames=5)["pixel_values"])
    with pytest.raises(ValueError, match=r"\(batch_size, num_frames, channels, height, width\), got \(8, 3, 32, 32\)"):
        model.get_video_features(torch.zeros(8, 3, 32, 32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames": 0}, "`num_frames` must be at least 1, got 0"),
        ({"temporal_prompt": "wide"}, "`temporal_prompt` must be one of .* got 'wide'"),
        ({"drop_path_rate": 1.5}, "`drop_path_rate` is a probability.* got 1.5"),
        ({"adapter_ratio": 0.001}, "`adapter_ratio`"),
    ],
)
def test_bad_configurations_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(vision_config=options)


def test_loss_needs_one_text_for_each_video():
    model, inputs = make_model(), make_inputs()
    inputs["input_ids"] = inputs["input_ids"][:2]
    with pytest.raises(ValueError, match="3 videos, 2 texts and 3 labels"):
        model(**inputs, return_loss=True)


def test_losses_equal_the_published():
    golden = load_file(shared_path("golden", "aux", "losses.safetensors"))
    cases = {name.split(".")[0] for name in golden if name[0].isdigit()}
    for case in sorted(cases):
        case = {name[2:]: value for name, value in golden.items() if name.startswith(f"{case}.")}
        targets = similarity_targets(case["labels"])
        close = {"atol": 1e-5, "rtol": 1e-5}
        torch.testing.assert_close(targets, case["target"], **close)
        torch.testing.assert_close(contrastive_loss(case["logits_per_image"], targets), case["loss_image"], **close)
        torch.testing.assert_close(contrastive_loss(case["logits_per_text"], targets), case["loss_text"], **close)
        torch.testing.assert_close(motion_loss(case["frame_embeds"]), case["loss_motion"], **close)


def test_motion_loss_rewards_motion():
    still = torch.ones(2, 8, 16)
    moving = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0))
    assert motion_loss(still) == 1.0
    assert motion_loss(3 * moving) < motion_loss(moving) < 1.0
    assert motion_loss(moving[:, :1]) == 1.0


def test_loss_is_the_sum_of_its_parts():
    model, inputs = make_model(motion_loss_weight=0.5), make_inputs()
    outputs = model(**inputs, labels=torch.tensor([0, 1, 0]))
    expected = (outputs.loss_video + outputs.loss_text) / 2 + 0.5 * outputs.loss_motion
    torch.testing.assert_close(outputs.loss, expected)
    same_class = model(**inputs, labels=torch.tensor([0, 0, 0]))
    own_class = model(**inputs, return_loss=True)
    assert not torch.isclose(same_class.loss_video, own_class.loss_video)


@pytest.mark.parametrize("variant", ["deep", "temporal adapter"])
def test_a_training_step_leaves_frozen_weights_bit_equal(variant, tmp_path):
    make_model(VARIANTS[variant]).save_pretrained(tmp_path)
    model = EZClipModel.from_pretrained(tmp_path).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name in before if "temporal_prompt" in name or "adapter" in name}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.2)
    model(**make_inputs(), labels=torch.tensor([0, 1, 2])).loss.backward()
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == trained


def test_backbone_is_trainable_if_asked(tmp_path):
    make_model(freeze_backbone=False).save_pretrained(tmp_path)
    assert all(p.requires_grad for p in EZClipModel.from_pretrained(tmp_path).parameters())


def test_gradient_checkpointing_gives_the_same_gradients():
    labels = torch.tensor([0, 1, 1])
    gradients = []
    for checkpointing in (False, True):
        model = make_model()
        if checkpointing:
            model.gradient_checkpointing_enable()
        for module in model.modules():  # train mode, without anything random
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            elif isinstance(module, EZClipDropPath):
                module.rate = 0.0
            elif hasattr(module, "scale") and hasattr(module, "dropout"):
                module.dropout = 0.0
        model.train()
        model(**make_inputs(), labels=labels).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-4)


def test_drop_path_drops_whole_videos():
    torch.manual_seed(0)
    drop_path = EZClipDropPath(0.25).train()
    kept = drop_path(torch.ones(4000 * 2, 5, 3), num_frames=2).view(4000, -1)
    scales = kept.unique(dim=1)
    assert scales.shape == (4000, 1)  # one decision for all frames, tokens and channels of a video
    torch.testing.assert_close(scales.unique(), torch.tensor([0.0, 1 / 0.75]))
    assert scales.eq(0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert torch.equal(drop_path.eval()(torch.ones(2, 5, 3)), torch.ones(2, 5, 3))


def test_regularisation_grows_with_depth_and_acts_in_training_alone():
    config = tiny_config(vision_config={"num_hidden_layers": 3, "drop_path_rate": 0.2, "attention_dropout": 0.1})
    model = EZClipModel(config)
    layers = model.vision_model.encoder.layers
    assert [layer.drop_path.rate for layer in layers] == pytest.approx([0.0, 0.1, 0.2])
    assert [layer.self_attn.dropout for layer in layers] == pytest.approx([0.0, 0.05, 0.1])
    inputs = make_inputs()
    with torch.no_grad():
        noisy = [model.train().get_video_features(inputs["pixel_values"]).pooler_output for _ in range(2)]
        calm = [model.eval().get_video_features(inputs["pixel_values"]).pooler_output for _ in range(2)]
    assert not torch.equal(*noisy)
    assert torch.equal(*calm)


def test_remote_code_loads_without_this_package(tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path / "saved")
    inputs = make_inputs()
    torch.save(inputs, tmp_path / "inputs.pt")
    program = (
        "import sys, torch; from transformers import AutoModel; "
        "m = AutoModel.from_pretrained('saved', trust_remote_code=True); assert 'ezclip' not in sys.modules; "
        "print(m(**torch.load('inputs.pt')).logits_per_video.tolist())"
    )
    # -P: the working folder is not on the path; -S would hide transformers too
    result = subprocess.run(
        [sys.executable, "-P", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    with torch.no_grad():
        expected = model(**inputs).logits_per_video
    torch.testing.assert_close(torch.tensor(json.loads(result.stdout)), expected, atol=1e-4, rtol=1e-5)


def test_with_the_package_no_remote_code_is_needed(tiny_folder):
    assert type(AutoModel.from_pretrained(tiny_folder)) is EZClipModel


def test_root_modules_import_nothing_from_the_package():
    for path in ROOT.glob("*_ezclip.py"):
        assert "import ezclip" not in path.read_text() and "from ezclip" not in path.read_text().split('"""')[-1]
