"""ActionCLIP's temporal heads, shift and joint attention, and the presets."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModel, CLIPModel

from configuration_ezclip import PRESETS, TEMPORAL_HEADS
from ezclip import EZClipConfig, EZClipModel, EZClipVisionConfig
from ezclip.errors import ModelError
from ezclip.evaluation.identity import describe_model
from ezclip.systems.loading import flatten_config, load_model, load_processor
from tests.helpers import make_clip, make_inputs, tiny_config


PLAIN = {"temporal_prompt": "none", "use_adapter": False, "use_temporal_embedding": False}
SHIFT = {**PLAIN, "use_temporal_shift": True}
JOINT = {**PLAIN, "use_joint_attention": True, "use_temporal_embedding": True}
HEADS = [head for head in TEMPORAL_HEADS if head != "mean"]


def make_model(vision_config=PLAIN, **kwargs):
    torch.manual_seed(0)
    model = EZClipModel(tiny_config(vision_config=vision_config, temporal_head_layers=2, **kwargs))
    with torch.no_grad():  # large enough to change the outputs
        for name, parameter in model.named_parameters():
            if "temporal_head" in name or "temporal_embedding" in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model.eval()


def embed(model, pixel_values):
    with torch.no_grad():
        return model.get_video_features(pixel_values)


def reach(model, num_frames=8, frame=3):
    """Return which frame and video embeddings of three videos change with one frame of the second."""
    before = make_inputs(num_frames=num_frames)["pixel_values"]
    after = before.clone()
    after[1, frame] += 1.0
    before, after = embed(model, before), embed(model, after)
    frames, videos = (
        (after[name] - before[name]).abs().amax(dim=-1) > 1e-6 for name in ("frame_embeds", "pooler_output")
    )
    return [row.nonzero().flatten().tolist() for row in frames], videos.tolist()


# ---- Heads ----


@pytest.mark.parametrize("head", HEADS)
def test_head_reads_frame_order(head):
    model, pixel_values = make_model(temporal_head=head), make_inputs()["pixel_values"]
    features = embed(model, pixel_values)
    assert features.pooler_output.shape == (3, 16)
    assert features.frame_embeds.shape == (3, 8, 16)
    alone = torch.cat([embed(model, video[None]).pooler_output for video in pixel_values])
    torch.testing.assert_close(features.pooler_output, alone, atol=1e-5, rtol=1e-5)
    backwards = embed(model, pixel_values.flip(1))
    torch.testing.assert_close(backwards.frame_embeds.flip(1), features.frame_embeds)
    assert not torch.allclose(backwards.pooler_output, features.pooler_output, atol=1e-3)
    assert reach(model) == ([[], [3], []], [False, True, False])


@pytest.mark.parametrize("head", [*HEADS, "mean"])
def test_head_remote_code(head, tmp_path):
    model, inputs = make_model(temporal_head=head), make_inputs()
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, trust_remote_code=True)
    assert torch.equal(
        embed(loaded, inputs["pixel_values"]).pooler_output, embed(model, inputs["pixel_values"]).pooler_output
    )


def test_conv1d():
    inputs = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(0))
    for scrambles in (False, True):
        model = make_model(temporal_head="conv1d", conv1d_scrambles_frames=scrambles)
        weight = model.temporal_head.conv.weight[:, 0].detach()  # [D, 3]
        channels = inputs.reshape(2, 16, 6) if scrambles else inputs.transpose(1, 2)
        padded = torch.nn.functional.pad(channels, (1, 1))
        mixed = sum(weight[:, tap, None] * padded[..., tap : tap + 6] for tap in range(3))
        expected = mixed.mean(dim=-1) + inputs.mean(dim=1)
        torch.testing.assert_close(model.temporal_head(inputs), expected, atol=1e-5, rtol=1e-5)


def test_fresh_conv1d_shifts(tmp_path):
    make_clip(tmp_path)
    model = load_model(tmp_path, for_training=True, preset="actionclip", temporal_head="conv1d")
    frames = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(0))
    shifted = torch.zeros_like(frames)
    shifted[:, 1:, :4] = frames[:, :-1, :4]
    shifted[:, :, 4:12] = frames[:, :, 4:12]
    shifted[:, :-1, 12:] = frames[:, 1:, 12:]
    torch.testing.assert_close(model.temporal_head(frames), (shifted + frames).mean(dim=1))


@pytest.mark.parametrize("head", ["transformer", "transformer_cls", "lstm"])
def test_initial_values_of_head(head, tmp_path):
    make_clip(tmp_path)
    torch.manual_seed(0)
    model = load_model(tmp_path, for_training=True, preset="actionclip", temporal_head=head)
    weights = dict(model.temporal_head.named_parameters())
    assert all(torch.isfinite(weight).all() for weight in weights.values())
    if head == "lstm":
        limit = 16**-0.5
        assert all(0.9 * limit < weight.abs().max() <= limit for weight in weights.values())
        return
    for name in ("encoder.layers.0.linear1.weight", "encoder.layers.5.linear2.weight"):
        assert weights[name].std().item() == pytest.approx(0.02, rel=0.15)
    assert weights["encoder.layers.0.norm1.weight"].eq(1).all()
    assert weights["encoder.layers.0.linear1.bias"].eq(0).all()
    # Attention is initialised as PyTorch does
    assert weights["encoder.layers.0.self_attn.in_proj_weight"].abs().max() <= (6 / (4 * 16)) ** 0.5


def test_num_frames_of_head():
    model = make_model(temporal_head="transformer")
    assert not model.config.fixed_num_frames
    assert embed(model, make_inputs(num_frames=16)["pixel_values"]).pooler_output.shape == (3, 16)
    with pytest.raises(ValueError, match="positions for 16 frames, got 17"):
        embed(model, make_inputs(num_frames=17)["pixel_values"])
    model = make_model(temporal_head="transformer_cls")
    assert model.config.fixed_num_frames
    with pytest.raises(ValueError, match="needs 8 frames, got 7"):
        embed(model, make_inputs(num_frames=7)["pixel_values"])


def test_head_is_trainable():
    model = make_model({}, temporal_head="lstm")
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert any(name.startswith("temporal_head.") for name in trained)
    assert all("temporal_head" in n or "temporal_prompt" in n or "adapter" in n for n in trained)


# ---- Temporal shift ----


def test_shift():
    layer = make_model(SHIFT).vision_model.encoder.layers[0]
    tokens = torch.randn(2 * 5, 4, 32, generator=torch.Generator().manual_seed(0))
    shifted, tokens = (x.view(2, 5, 4, 32) for x in (layer.shift_over_time(tokens, 5), tokens))
    for video in range(2):
        for frame in range(5):
            expected = tokens[video, frame].clone()
            expected[1:, :4] = tokens[video, frame + 1, 1:, :4] if frame < 4 else 0.0
            expected[1:, 4:8] = tokens[video, frame - 1, 1:, 4:8] if frame > 0 else 0.0
            assert torch.equal(shifted[video, frame], expected)


def test_reach_of_shift():
    model = make_model({**SHIFT, "num_hidden_layers": 2})
    assert reach(model) == ([[], [1, 2, 3, 4, 5], []], [False, True, False])


# ---- Joint space-time attention ----


def test_joint_attention_of_one_frame(tmp_path):
    clip = make_clip(tmp_path)
    model = load_model(tmp_path, for_training=True, preset="actionclip_joint", vision_config={"num_frames": 1}).eval()
    pixel_values = make_inputs(num_frames=1)["pixel_values"]
    features = embed(model, pixel_values)
    with torch.no_grad():
        expected = clip.get_image_features(pixel_values[:, 0]).pooler_output
    torch.testing.assert_close(features.pooler_output, expected, atol=1e-5, rtol=1e-5)
    assert features.frame_embeds.shape == (3, 1, 16)


def test_joint_attention_batch():
    model, pixel_values = make_model(JOINT), make_inputs()["pixel_values"]
    together = embed(model, pixel_values).pooler_output
    alone = torch.cat([embed(model, video[None]).pooler_output for video in pixel_values])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    in_other_company = embed(model, torch.cat([pixel_values[:1], torch.randn_like(pixel_values)])).pooler_output
    torch.testing.assert_close(in_other_company[:1], together[:1], atol=1e-5, rtol=1e-5)


def test_joint_attention_weights():
    model, pixel_values = make_model(JOINT), make_inputs(1)["pixel_values"]
    model.set_attn_implementation("eager")
    with torch.no_grad():
        outputs = model.get_video_features(pixel_values, output_attentions=True, output_hidden_states=True)
    attention = outputs.attentions[0]
    assert attention.shape == (1, 2, 33, 33)  # one CLS token and 8 frames of 4 patches
    torch.testing.assert_close(attention.sum(dim=-1), torch.ones(1, 2, 33))
    between_frames = attention[0, :, 1:5, 29:33]  # from the patches of the first frame to those of the last
    assert between_frames.min() > 1e-4
    assert [tuple(states.shape) for states in outputs.hidden_states] == [(1, 33, 32)] * 3
    for frame in range(8):
        assert reach(make_model(JOINT), frame=frame) == ([[], [0], []], [False, True, False])


def test_joint_attention_frame_order():
    model, video = make_model(JOINT), make_inputs(1)["pixel_values"]
    assert not torch.allclose(embed(model, video).pooler_output, embed(model, video.flip(1)).pooler_output, atol=1e-3)
    with torch.no_grad():
        model.vision_model.temporal_embedding.zero_()
    torch.testing.assert_close(
        embed(model, video).pooler_output, embed(model, video.flip(1)).pooler_output, atol=1e-5, rtol=1e-5
    )


# ---- Presets ----


@pytest.mark.parametrize("preset", [preset for preset in PRESETS if preset not in ("clip", "tear")])
def test_gradients_of_preset(preset, tmp_path):
    make_clip(tmp_path)
    model = load_model(tmp_path, for_training=True, preset=preset).train()
    model(**make_inputs(num_frames=model.config.vision_config.num_frames), return_loss=True).loss.backward()
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    without = [name for name in trained if model.get_parameter(name).grad is None]
    assert not without  # distributed training needs a gradient for every trainable parameter
    assert (len(trained) == len(list(model.parameters()))) == (preset != "ezclip")


@pytest.mark.parametrize("preset", ["clip", "tear", "vificlip"])
def test_presets_of_mean_frames(preset, tmp_path):
    clip = make_clip(tmp_path)
    model, inputs = load_model(tmp_path, preset=preset).eval(), make_inputs(num_frames=5)
    with torch.no_grad():
        frames = clip.get_image_features(inputs["pixel_values"].flatten(0, 1)).pooler_output.view(3, 5, -1)
        texts = clip.get_text_features(inputs["input_ids"]).pooler_output
        outputs = model(**inputs)
    torch.testing.assert_close(outputs.vision_model_output.pooler_output, frames.mean(dim=1), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(outputs.text_model_output.pooler_output, texts, atol=1e-6, rtol=1e-5)
    assert model.num_parameters() == CLIPModel.from_pretrained(tmp_path).num_parameters()
    assert model.config.vision_config.num_frames == {"clip": 8, "tear": 16, "vificlip": 32}[preset]


# CLIP ViT-B/16 has 149,620,737 parameters; the transformer head 6 blocks of 3,152,384 and 77 positions of 512
@pytest.mark.parametrize(
    ("preset", "trained", "total"),
    [
        ("clip", 0, 149_620_737),
        ("vificlip", 149_620_737, 149_620_737),
        ("actionclip", 168_574_465, 168_574_465),
        ("actionclip_tsm", 149_620_737, 149_620_737),
        ("actionclip_joint", 149_626_881, 149_626_881),
    ],
)
def test_parameter_counts_of_vit_b16(preset, trained, total):
    with torch.device("meta"):
        model = EZClipModel(EZClipConfig.from_preset(preset, vision_config={"patch_size": 16}))
    assert (model.num_parameters(only_trainable=True), model.num_parameters()) == (trained, total)


def test_fields_override_preset():
    config = EZClipConfig.from_preset(
        "actionclip", vision_config={"num_frames": 4}, temporal_head="lstm", motion_loss_weight=0.5
    )
    assert (config.temporal_head, config.motion_loss_weight, config.freeze_backbone) == ("lstm", 0.5, False)
    assert (config.vision_config.num_frames, config.vision_config.temporal_prompt) == (4, "none")
    assert EZClipConfig.from_preset("ezclip").to_dict() == EZClipConfig().to_dict()


@pytest.mark.parametrize("preset", ["actionclip", "actionclip_tsm", "actionclip_joint", "ezclip"])
def test_untrained_preset_is_refused(preset, tmp_path):
    make_clip(tmp_path)
    with pytest.raises(ModelError, match="was not trained with .* which spoils .*plain CLIP needs no training"):
        load_model(tmp_path, preset=preset)


def test_plain_clip_without_a_preset(tmp_path, logged):
    make_clip(tmp_path)
    model, expected = load_model(tmp_path, vision_config={"num_frames": 4}), load_model(tmp_path, preset="clip")
    assert sum("is plain CLIP" in line for line in logged()) == 1
    assert set(model.state_dict()) == set(expected.state_dict())
    assert (model.config.vision_config.num_frames, model.newly_initialized) == (4, frozenset())
    assert load_model(tmp_path, for_training=True).config.vision_config.temporal_prompt == "deep"


@pytest.mark.parametrize("head", ["mean", "lstm"])
def test_fresh_parts_warn_when_they_predict(head, tmp_path, logged):
    make_clip(tmp_path)

    def warnings(**options):
        model = EZClipModel.from_pretrained(tmp_path, **options)
        model.name_or_path = f"{tmp_path} {head} {options}"
        for _ in range(2):
            model.get_video_features(make_inputs()["pixel_values"])
        trained = EZClipModel.from_pretrained(tmp_path, **options)
        trained.train().eval().get_video_features(make_inputs()["pixel_values"])
        return [line for line in logged() if line.startswith(f"{model.name_or_path}: ")]

    assert len(said := warnings(temporal_head=head)) == 1
    assert ("temporal prompts" in said[0], "temporal head" in said[0]) == (True, head == "lstm")
    only_adapters = {"vision_config": {"temporal_prompt": "none"}}
    assert warnings(**only_adapters) == []


def test_trained_model_does_not_warn(tmp_path, logged):
    EZClipModel(tiny_config()).save_pretrained(tmp_path)
    EZClipModel.from_pretrained(tmp_path).get_video_features(make_inputs()["pixel_values"])
    assert not [line for line in logged() if "untrained" in line]


def test_fresh_parts_compile(tmp_path):
    make_clip(tmp_path)
    model, inputs = EZClipModel.from_pretrained(tmp_path), make_inputs()["pixel_values"]
    torch.export.export(model.vision_model, (inputs,))
    compiled = torch.compile(model.get_video_features, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(inputs).pooler_output, model.get_video_features(inputs).pooler_output)


def test_preset_must_fit_trained_model(tmp_path):
    make_clip(tmp_path / "clip")
    load_model(tmp_path / "clip", for_training=True, preset="actionclip", temporal_head="lstm").save_pretrained(
        tmp_path / "actionclip"
    )
    assert load_model(tmp_path / "actionclip", preset="actionclip").config.temporal_head == "lstm"
    with pytest.raises(ModelError, match="not what --preset tear says: its configuration differs in temporal_head"):
        load_model(tmp_path / "actionclip", preset="tear")
    load_model(tmp_path / "clip", for_training=True, preset="ezclip").save_pretrained(tmp_path / "ezclip")
    with pytest.raises(ModelError, match="in vision_config.temporal_prompt, .*vision_config.use_adapter, text_config"):
        load_model(tmp_path / "ezclip", preset="clip")


def test_preset_with_fields(tmp_path):
    make_clip(tmp_path / "clip")
    options = {"preset": "ezclip", "temporal_head": "lstm"}
    load_model(tmp_path / "clip", for_training=True, **options).save_pretrained(tmp_path / "both")
    assert load_model(tmp_path / "both", **options).config.temporal_head == "lstm"
    with pytest.raises(ModelError, match="differs in temporal_head"):
        load_model(tmp_path / "both", preset="ezclip")


@pytest.mark.parametrize("preset", ["actionclip", "vificlip", "ezclip", "actionclip_joint"])
def test_saved_clip_becomes_any_system(preset, tmp_path):
    make_clip(tmp_path / "clip")
    load_model(tmp_path / "clip", preset="clip", vision_config={"num_frames": 5}).save_pretrained(tmp_path / "ours")
    model = load_model(tmp_path / "ours", for_training=True, preset=preset)
    expected = load_model(tmp_path / "clip", for_training=True, preset=preset, vision_config={"num_frames": 5})
    fields, expected_fields = flatten_config(model.config), flatten_config(expected.config)
    assert fields == expected_fields
    trained, expected_trained = (
        {name for name, parameter in m.named_parameters() if parameter.requires_grad} for m in (model, expected)
    )
    assert trained == expected_trained
    assert torch.equal(model.text_projection.weight, expected.text_projection.weight)
    if preset != "vificlip":
        with pytest.raises(ModelError, match="was not trained with"):
            load_model(tmp_path / "ours", preset=preset)


def test_trained_weights_are_not_dropped(tmp_path):
    make_clip(tmp_path / "clip")
    model = load_model(tmp_path / "clip", for_training=True, preset="actionclip", temporal_head="lstm")
    model.save_pretrained(tmp_path / "lstm")
    with pytest.raises(ModelError, match="was trained with temporal_head.lstm.bias_hh_l0 and 3 other weights"):
        load_model(tmp_path / "lstm", temporal_head="mean")


def test_digest(tmp_path):
    make_clip(tmp_path / "clip")
    model = load_model(tmp_path / "clip", for_training=True, preset="actionclip", temporal_head="conv1d")
    model.save_pretrained(tmp_path / "conv1d")
    again = load_model(tmp_path / "conv1d")
    scrambled = load_model(tmp_path / "conv1d", conv1d_scrambles_frames=True)
    assert describe_model(model) == describe_model(again) != describe_model(scrambled)


@pytest.mark.parametrize("whole", [lambda config: config, lambda config: config.to_dict()])
def test_preset_of_complete_config(whole):
    with pytest.raises(ValueError, match="`vision_config` .*'ezclip_vision_model'"):
        EZClipConfig.from_preset("actionclip", vision_config=whole(EZClipVisionConfig(patch_size=16)))


def test_num_frames_of_preset(tmp_path, tiny_folder):
    make_clip(tmp_path / "clip", vocab_size=15)
    load_model(tmp_path / "clip", preset="tear").save_pretrained(tmp_path / "ours")
    tear = load_processor(tmp_path / "clip", tiny_folder, preset="tear")
    assert (tear.sampling, tear.num_frames) == ("tear", 16)
    tear.split_camel_case = False
    tear.save_pretrained(tmp_path / "ours")
    for preset, expected in ((None, ("tear", 16)), ("tear", ("tear", 16)), ("clip", ("uniform", 8))):
        for tokenizer in (None, tiny_folder):  # another tokenizer changes nothing else
            processor = load_processor(tmp_path / "ours", tokenizer, preset=preset)
            assert (processor.sampling, processor.num_frames) == expected
            assert not processor.split_camel_case
    assert load_processor(tmp_path / "ours", preset="vificlip").num_frames == 32
    assert load_processor(tmp_path / "ours", preset="vificlip", num_frames=4).num_frames == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temporal_head": "transformer", "vision_config": {"num_frames": 17}}, "Take at most 16 frames"),
        ({"temporal_head": "rnn"}, "'temporal_head' expected one of .* got rnn"),
        ({"temporal_head_layers": 0}, "`temporal_head_layers` must be at least 1, got 0"),
        ({"temporal_head_dropout": 1.0}, "`temporal_head_dropout` must be a probability"),
        ({"temporal_head": "transformer", "projection_dim": 15}, "`projection_dim` must be a multiple of 2.* got 15"),
        (
            {"temporal_head": "transformer_cls", "projection_dim": 12},
            "`projection_dim` must be a multiple of 8.* got 12",
        ),
        ({"temporal_head": "lstm", "vision_config": JOINT}, "`use_joint_attention`"),
        ({"vision_config": {**JOINT, "temporal_prompt": "deep"}}, "`use_joint_attention`"),
        ({"vision_config": {**JOINT, "use_temporal_shift": True}}, "`use_joint_attention`"),
    ],
)
def test_bad_config(options, message):
    content = tiny_config().to_dict()
    content = {**content, **options, "vision_config": {**content["vision_config"], **options.get("vision_config", {})}}
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        EZClipConfig(**content)


def test_unknown_preset():
    with pytest.raises(ValueError, match="`preset` must be one of .* got 'xclip'"):
        EZClipConfig.from_preset("xclip")
