"""The model itself: sizes, switches, losses, loading, freezing, activations, and embeddings without tokens."""

import json
import subprocess
import sys

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError, StrictDataclassFieldValidationError
from safetensors.torch import load_file
from transformers import AutoModel
from transformers.activations import ACT2FN

from configuration_ezclip import PRESETS
from ezclip import EZClipConfig, EZClipModel, EZClipVisionModel
from modeling_ezclip import (
    NODES_PER_ROW,
    EZClipDropPath,
    EZClipQuickGELU,
    PackedTexts,
    contrastive_loss,
    motion_loss,
    similarity_targets,
)
from tests.helpers import enable_checkpointing, make_clip, make_inputs, make_model, shared_path, tiny_config


VIT_B16 = {"patch_size": 16}
# (vision_config, trainable, total) of ViT-B/16, counted on the authors' code
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


def test_fresh_model_is_clip(tmp_path):
    clip = make_clip(tmp_path)
    model = EZClipModel.from_pretrained(tmp_path, vision_config={"temporal_prompt": "none"})
    inputs = make_inputs()
    with torch.no_grad():
        outputs = model(**inputs)
        frames = clip.get_image_features(inputs["pixel_values"].flatten(0, 1)).pooler_output
        texts = clip.get_text_features(inputs["input_ids"]).pooler_output
    torch.testing.assert_close(outputs.frame_embeds, frames.view(3, 8, -1), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(outputs.text_model_output.pooler_output, texts, atol=1e-6, rtol=1e-5)


def test_tower_loads_from_whole_model(tmp_path):
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


def test_attentions():
    model, inputs = make_model(), make_inputs()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        outputs = model(**inputs, output_attentions=True)
    attentions = outputs.vision_model_output.attentions
    assert [tuple(a.shape) for a in attentions] == [(24, 2, 6, 6)] * 2  # the sixth is the temporal token
    torch.testing.assert_close(attentions[0].sum(dim=-1), torch.ones(24, 2, 6))


@pytest.mark.parametrize("variant", VARIANTS)
def test_batch_does_not_mix(variant):
    model, inputs = make_model(VARIANTS[variant]), make_inputs()
    with torch.no_grad():
        together = model.get_video_features(inputs["pixel_values"]).frame_embeds
        alone = torch.cat([model.get_video_features(video[None]).frame_embeds for video in inputs["pixel_values"]])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("variant", "reads_order"), [("deep", True), ("shallow", True), ("adapters", False)])
def test_frame_order(variant, reads_order):
    vision_config = {**VARIANTS[variant], "use_temporal_embedding": False, "temporal_prompt_init_range": 4.0}
    model, video = make_model(vision_config), make_inputs(1)["pixel_values"]
    with torch.no_grad():
        forwards = model.get_video_features(video).pooler_output
        backwards = model.get_video_features(video.flip(1)).pooler_output
    assert torch.allclose(forwards, backwards, atol=1e-5) != reads_order


@pytest.mark.parametrize("num_frames", [1, 3, 16])
def test_any_num_frames(num_frames):
    model = make_model(VARIANTS["clip"])
    features = model.get_video_features(make_inputs(num_frames=num_frames)["pixel_values"])
    assert features.frame_embeds.shape == (3, num_frames, 16)


@pytest.mark.parametrize("num_frames", [1, 16])
def test_num_frames(num_frames):
    model = make_model({"num_frames": num_frames})
    outputs = model(**make_inputs(num_frames=num_frames), return_loss=True)
    outputs.loss.backward()
    assert torch.isfinite(outputs.loss)


def test_wrong_num_frames():
    model = make_model()
    with pytest.raises(ValueError, match="`pixel_values` has 5 frames a video.* 8"):
        model.get_video_features(make_inputs(num_frames=5)["pixel_values"])
    with pytest.raises(ValueError, match=r"\(batch_size, num_frames, channels, height, width\), got \(8, 3, 32, 32\)"):
        model.get_video_features(torch.zeros(8, 3, 32, 32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames": 0}, "`num_frames` must be at least 1, got 0"),
        ({"num_frames": 2.5}, "'num_frames' expected int, got float"),
        ({"temporal_prompt": "wide"}, "'temporal_prompt' expected one of .* got wide"),
        ({"temporal_prompt_init_range": -1.0}, "`temporal_prompt_init_range` must be at least 0, got -1.0"),
        ({"drop_path_rate": 1.5}, "`drop_path_rate` must be a probability.* got 1.5"),
        ({"adapter_ratio": 0.001}, "`adapter_ratio`"),
    ],
)
def test_bad_config(options, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        tiny_config(vision_config=options)


@pytest.mark.parametrize(
    ("tower", "name"),
    [
        *[("vision_config", name) for name in ("hidden_size", "num_frames", "temporal_prompt", "use_temporal_shift")],
        *[("text_config", name) for name in ("adapter_ratio", "drop_path_rate", "use_adapter")],
        *[(None, name) for name in ("temporal_head", "freeze_backbone", "motion_loss_weight", "vision_config")],
    ],
)
def test_fields_are_typed(tower, name):
    config = tiny_config() if tower is None else getattr(tiny_config(), tower)
    before = getattr(config, name)
    with pytest.raises(StrictDataclassFieldValidationError, match=f"'{name}'"):
        setattr(config, name, "x")
    assert getattr(config, name) == before


@pytest.mark.parametrize(("name", "value"), [("num_frames", 10**9), ("drop_path_rate", 2.0), ("hidden_size", 31)])
def test_changed_config_is_checked_when_saved(name, value, tmp_path):
    config = tiny_config().vision_config
    setattr(config, name, value)
    with pytest.raises(StrictDataclassError, match="num_attention_heads" if name == "hidden_size" else name):
        config.save_pretrained(tmp_path)


def test_loss_needs_one_text_a_video():
    model, inputs = make_model(), make_inputs()
    inputs["input_ids"] = inputs["input_ids"][:2]
    with pytest.raises(ValueError, match="3 videos, 2 texts and 3 labels"):
        model(**inputs, return_loss=True)


def test_published_losses():
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


def test_motion_loss():
    still = torch.ones(2, 8, 16)
    moving = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0))
    assert motion_loss(still) == 1.0
    assert motion_loss(3 * moving) < motion_loss(moving) < 1.0
    assert motion_loss(moving[:, :1]) == 1.0


def test_loss_parts():
    model, inputs = make_model(motion_loss_weight=0.5), make_inputs()
    outputs = model(**inputs, labels=torch.tensor([0, 1, 0]))
    expected = (outputs.loss_video + outputs.loss_text) / 2 + 0.5 * outputs.loss_motion
    torch.testing.assert_close(outputs.loss, expected)
    same_class = model(**inputs, labels=torch.tensor([0, 0, 0]))
    own_class = model(**inputs, return_loss=True)
    assert not torch.isclose(same_class.loss_video, own_class.loss_video)


@pytest.mark.parametrize("variant", ["deep", "temporal adapter"])
def test_frozen_weights_do_not_change(variant, tmp_path):
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


def test_trainable_backbone(tmp_path):
    make_model(freeze_backbone=False).save_pretrained(tmp_path)
    assert all(p.requires_grad for p in EZClipModel.from_pretrained(tmp_path).parameters())


def test_gradient_checkpointing():
    labels = torch.tensor([0, 1, 1])
    gradients = []
    for checkpointing in (False, True):
        model = make_model()
        if checkpointing:
            enable_checkpointing(model)
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


def test_drop_path():
    torch.manual_seed(0)
    drop_path = EZClipDropPath(0.25).train()
    kept = drop_path(torch.ones(4000 * 2, 5, 3), num_frames=2).view(4000, -1)
    scales = kept.unique(dim=1)
    assert scales.shape == (4000, 1)  # one decision for all frames, tokens and channels of a video
    torch.testing.assert_close(scales.unique(), torch.tensor([0.0, 1 / 0.75]))
    assert scales.eq(0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert torch.equal(drop_path.eval()(torch.ones(2, 5, 3)), torch.ones(2, 5, 3))


def test_regularisation():
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


def test_remote_code(tmp_path):
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


def test_no_remote_code_with_package(tiny_folder):
    assert type(AutoModel.from_pretrained(tiny_folder)) is EZClipModel


# ---- Activation and memory ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quick_gelu(dtype):
    inputs = torch.linspace(-12.0, 12.0, 101, dtype=dtype)
    untouched, expected = inputs.clone(), ACT2FN["quick_gelu"](inputs)
    tolerance = {"atol": 1e-6, "rtol": 1e-6} if dtype == torch.float32 else {"atol": 1e-2, "rtol": 2e-2}
    torch.testing.assert_close(EZClipQuickGELU()(inputs), expected, **tolerance)
    assert torch.equal(inputs, untouched)  # the input must not change
    gradients = []
    for activation in (EZClipQuickGELU(), ACT2FN["quick_gelu"]):
        leaf = inputs.clone().requires_grad_()
        activation(leaf).sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients, **tolerance)


def kept_for_backward(freeze_backbone: bool) -> list[torch.Tensor]:
    """Return the tensors that a training forward keeps for backward, except weights."""
    torch.manual_seed(0)
    # (On a CPU, attention with dropout is not fused and keeps its weights.)
    vision_config = {"image_size": 64, "num_hidden_layers": 3, "attention_dropout": 0.0, "drop_path_rate": 0.2}
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


def test_memory_of_training():
    config = tiny_config().vision_config
    kept = kept_for_backward(freeze_backbone=True)
    tokens = 1 + (64 // config.patch_size) ** 2
    square = 16 * config.num_attention_heads * tokens * (tokens + 1)
    assert not [tensor for tensor in kept if tensor.numel() == square]
    inner = [tensor for tensor in kept if tensor.numel() == 16 * tokens * config.intermediate_size]
    assert len(inner) == 3  # one a block
    # Each block keeps the input of its LayerNorm (not the first block, which is frozen), its queries, its attended
    # tokens and the input of its adapter. Keys and values of the other blocks are a token longer.
    wide = [tensor for tensor in kept if tensor.numel() == 16 * tokens * config.hidden_size]
    assert len(wide) <= 4 * 3 - 1
    kept_if_all_are_trained = kept_for_backward(freeze_backbone=False)
    size, of_all = (sum(tensor.nbytes for tensor in tensors) for tensors in (kept, kept_if_all_are_trained))
    assert size < 0.6 * of_all


# ---- Embeddings without the tokens of the last block ----


EMBEDDING_VARIANTS = {
    **VARIANTS,
    "shift": {"use_temporal_shift": True},
    "joint": {"temporal_prompt": "none", "use_joint_attention": True},
}
END, PAD = 29, 0


def assert_same_gradients(model: EZClipModel, *embeddings: torch.Tensor):
    """Assert that two embeddings give trainable parameters equal gradients."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    weighing = torch.randn(embeddings[0].shape)
    of_one, of_other = (
        torch.autograd.grad((embeds * weighing).sum(), trained, allow_unused=True) for embeds in embeddings
    )
    for actual, expected in zip(of_one, of_other, strict=True):
        assert (actual is None) == (expected is None)
        if actual is not None:
            torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("freeze_backbone", [True, False])
@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("variant", EMBEDDING_VARIANTS)
def test_video_embeddings_alone(variant, attn_implementation, freeze_backbone):
    model = make_model(
        EMBEDDING_VARIANTS[variant], attn_implementation=attn_implementation, freeze_backbone=freeze_backbone
    )
    pixel_values = torch.randn(3, 8, 3, 32, 32)
    whole = model.get_video_features(pixel_values)
    alone = model.get_video_features(pixel_values, output_last_hidden_state=False)
    assert alone.last_hidden_state is None and whole.last_hidden_state is not None
    for name in ("pooler_output", "frame_embeds"):
        torch.testing.assert_close(alone[name], whole[name], atol=1e-6, rtol=1e-5)
    if variant == "clip" and freeze_backbone:
        return  # nothing is trained
    assert_same_gradients(model, alone.pooler_output, whole.pooler_output)


def test_last_block_computes_cls_token():
    model, sizes = make_model(), []
    for layer in model.vision_model.encoder.layers:
        layer.mlp.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape)))
    model.get_video_features(torch.randn(2, 8, 3, 32, 32), output_last_hidden_state=False)
    assert sizes == [(16, 5, 32), (16, 1, 32)]


def test_recorded_outputs_of_embeddings_alone():
    model = make_model(attn_implementation="eager")
    recorded = {"output_hidden_states": True, "output_attentions": True, "output_temporal_attentions": True}
    whole, alone = (
        model.get_video_features(torch.ones(1, 8, 3, 32, 32), output_last_hidden_state=wanted, **recorded)
        for wanted in (True, False)
    )
    torch.testing.assert_close(alone.temporal_attentions, whole.temporal_attentions)
    torch.testing.assert_close(alone.hidden_states[:-1], whole.hidden_states[:-1])
    torch.testing.assert_close(alone.hidden_states[-1], whole.hidden_states[-1][:, :1])
    torch.testing.assert_close(alone.attentions[-1], whole.attentions[-1][:, :, :1])


def pad(texts: list[list[int]]) -> dict[str, torch.Tensor]:
    longest = max(map(len, texts))
    return {
        "input_ids": torch.tensor([text + [PAD] * (longest - len(text)) for text in texts]),
        "attention_mask": torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts]),
    }


TEXTS = [[1, 5, 6, END], [1, 5, 6, 7, 8, END], [1, END], [1, 5, 6, END], [2, 5, 6, END], [1, 5, 7, 6, END]]


@pytest.mark.parametrize("eos_token_id", [END, 2])
@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
def test_text_embeddings_alone(attn_implementation, eos_token_id):
    model = make_model(attn_implementation=attn_implementation)
    model.text_model.eos_token_id = eos_token_id  # 2 means the highest token id, here END
    inputs = pad(TEXTS)
    whole = model.get_text_features(**inputs)
    alone = model.get_text_features(**inputs, output_last_hidden_state=False)
    assert alone.last_hidden_state is None
    torch.testing.assert_close(alone.pooler_output, whole.pooler_output, atol=1e-6, rtol=1e-5)
    assert_same_gradients(model, alone.pooler_output, whole.pooler_output)


def test_shared_prefixes_are_computed_once():
    model, sizes = make_model(), []
    for layer in model.text_model.encoder.layers:
        layer.mlp.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape)))
    model.get_text_features(**pad(TEXTS), output_last_hidden_state=False)
    prefixes = {tuple(text[: end + 1]) for text in TEXTS for end in range(len(text))}
    assert sizes == [(1, len(prefixes), 32), (1, len(TEXTS), 32)]  # all in one row


def test_packed_row_holds_each_prefix_once():
    packed = PackedTexts.pack(TEXTS, torch.device("cpu"))
    assert len(packed.input_ids) == 1
    (tokens,), (positions,), reads, (ends,) = (
        packed.input_ids,
        packed.position_ids,
        packed.attention_mask[0, 0],
        packed.ends,
    )
    found = set()
    for text, place in zip(TEXTS, packed.text_index[1]):
        path = reads[ends[place]].nonzero()[:, 0]  # the end of a text attends to the text
        path = path[positions[path].argsort()]
        assert tokens[path].tolist() == text and positions[path].tolist() == [*range(len(text))]
        found |= {(tuple(text[: place + 1]), int(node)) for place, node in enumerate(path)}
    assert len(found) == len(tokens) == len({prefix for prefix, _ in found})


def test_packed_rows_are_filled():
    """80 texts of 11 tokens without a common prefix: 23 a row, and the rest in the last."""
    texts = [[number, *range(100, 109), 2] for number in range(80)]
    packed = PackedTexts.pack(texts, torch.device("cpu"))
    per_row = NODES_PER_ROW // 11
    assert packed.text_index[0].bincount().tolist() == [per_row] * (80 // per_row) + [80 % per_row]
    assert packed.input_ids.shape == (len(packed.ends), per_row * 11) and packed.ends.shape[1] == per_row
    long = [*range(200, 200 + NODES_PER_ROW + 5)]
    assert PackedTexts.pack([long, [1, 2]], torch.device("cpu")).input_ids.shape == (2, len(long))


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
def test_several_packed_rows(attn_implementation, monkeypatch):
    monkeypatch.setattr("modeling_ezclip.NODES_PER_ROW", 9)
    model = make_model(attn_implementation=attn_implementation)
    assert len(PackedTexts.pack(TEXTS, torch.device("cpu")).ends) > 1
    whole, alone = (model.get_text_features(**pad(TEXTS), output_last_hidden_state=wanted) for wanted in (True, False))
    torch.testing.assert_close(alone.pooler_output, whole.pooler_output, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "changed",
    [
        {"attention_mask": torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])},  # a masked first token
        {"position_ids": torch.tensor([[3, 2, 1, 0], [0, 1, 2, 3]])},
    ],
)
def test_masks_and_positions_are_not_packed(changed):
    model, inputs = make_model(), pad([[1, 5, 6, END], [1, 5, 7, END]])
    usual = model.get_text_features(**inputs, output_last_hidden_state=False).pooler_output
    other = model.get_text_features(**{**inputs, **changed}, output_last_hidden_state=False).pooler_output
    expected = model.get_text_features(**{**inputs, **changed}).pooler_output
    torch.testing.assert_close(other, expected)
    assert not torch.allclose(other[0], usual[0], atol=1e-3) and torch.allclose(other[1], usual[1], atol=1e-5)


def test_hidden_states_are_not_packed():
    model, inputs = make_model(), pad(TEXTS)
    outputs = model.get_text_features(**inputs, output_last_hidden_state=False, output_hidden_states=True)
    assert [tuple(states.shape) for states in outputs.hidden_states] == 3 * [(6, 6, 32)]


def test_too_long_texts():
    too_long = {"input_ids": torch.ones(2, 17, dtype=torch.long)}
    with pytest.raises(ValueError, match="max_position_embeddings"):
        make_model().get_text_features(**too_long, output_last_hidden_state=False)


@pytest.mark.parametrize("preset", PRESETS)
def test_embeddings_alone_of_preset(preset):
    tower = tiny_config().text_config.to_dict()
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    sizes = {name: tower[name] for name in sizes}
    text = {name: tower[name] for name in ("vocab_size", "max_position_embeddings", "eos_token_id")}
    vision = {**sizes, "image_size": 32, "patch_size": 16}
    torch.manual_seed(0)
    model = EZClipModel(EZClipConfig.from_preset(preset, {**sizes, **text}, vision, projection_dim=16)).eval()
    clips = torch.randn(len(TEXTS), model.config.vision_config.num_frames, 3, 32, 32)
    whole, alone = (
        model(pixel_values=clips, **pad(TEXTS), output_last_hidden_state=wanted) for wanted in (True, False)
    )
    torch.testing.assert_close(alone.logits_per_video, whole.logits_per_video, atol=1e-5, rtol=1e-5)
    assert alone.vision_model_output.last_hidden_state is alone.text_model_output.last_hidden_state is None


def test_compiled_models_take_it_too():
    model, clips = make_model(), torch.randn(1, 8, 3, 32, 32)
    inputs = {"pixel_values": clips, **pad(TEXTS[:1]), "output_last_hidden_state": False}
    with torch.no_grad():
        expected = model(**inputs).logits_per_video
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(**inputs).logits_per_video, expected)
