"""Embeddings without the tokens of the last block are the same, for less."""

import pytest
import torch

from configuration_ezclip import PRESETS
from ezclip import EZClipConfig, EZClipModel
from modeling_ezclip import NODES_OF_A_ROW, PackedTexts
from tests.helpers import tiny_config


VARIANTS = {
    "deep": {},
    "shallow": {"temporal_prompt": "shallow"},
    "temporal adapter": {"use_temporal_adapter": True},
    "shift": {"use_temporal_shift": True},
    "joint": {"temporal_prompt": "none", "use_joint_attention": True},
    "none": {"temporal_prompt": "none", "use_adapter": False},
}
END, PAD = 29, 0


def make_model(variant: str = "deep", **kwargs) -> EZClipModel:
    torch.manual_seed(0)
    model = EZClipModel(tiny_config(vision_config=VARIANTS[variant], **kwargs)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():  # adapters and embeddings that start as nothing
                parameter.normal_(std=0.2)
    return model


def check_gradients(model: EZClipModel, *embeddings: torch.Tensor):
    """That the gradients of what is trained by two embeddings are equal."""
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
@pytest.mark.parametrize("variant", VARIANTS)
def test_videos_have_the_same_embeddings_and_gradients(variant, attn_implementation, freeze_backbone):
    model = make_model(variant, attn_implementation=attn_implementation, freeze_backbone=freeze_backbone)
    pixel_values = torch.randn(3, 8, 3, 32, 32)
    whole = model.get_video_features(pixel_values)
    alone = model.get_video_features(pixel_values, output_last_hidden_state=False)
    assert alone.last_hidden_state is None and whole.last_hidden_state is not None
    for name in ("pooler_output", "frame_embeds"):
        torch.testing.assert_close(alone[name], whole[name], atol=1e-6, rtol=1e-5)
    if variant == "none" and freeze_backbone:
        return  # nothing is trained
    check_gradients(model, alone.pooler_output, whole.pooler_output)


def test_the_last_block_computes_the_cls_token_alone():
    model, sizes = make_model(), []
    for layer in model.vision_model.encoder.layers:
        layer.mlp.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape)))
    model.get_video_features(torch.randn(2, 8, 3, 32, 32), output_last_hidden_state=False)
    assert sizes == [(16, 5, 32), (16, 1, 32)]


def test_what_is_recorded_of_the_last_block_is_of_the_cls_token():
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
def test_texts_have_the_same_embeddings_and_gradients(attn_implementation, eos_token_id):
    model = make_model(attn_implementation=attn_implementation)
    model.text_model.eos_token_id = eos_token_id  # 2: the highest number, which is END here, ends a text
    inputs = pad(TEXTS)
    whole = model.get_text_features(**inputs)
    alone = model.get_text_features(**inputs, output_last_hidden_state=False)
    assert alone.last_hidden_state is None
    torch.testing.assert_close(alone.pooler_output, whole.pooler_output, atol=1e-6, rtol=1e-5)
    check_gradients(model, alone.pooler_output, whole.pooler_output)


def test_what_texts_share_is_computed_once_and_their_end_alone_in_the_last_block():
    model, sizes = make_model(), []
    for layer in model.text_model.encoder.layers:
        layer.mlp.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape)))
    model.get_text_features(**pad(TEXTS), output_last_hidden_state=False)
    beginnings = {tuple(text[: end + 1]) for text in TEXTS for end in range(len(text))}
    assert sizes == [(1, len(beginnings), 32), (1, len(TEXTS), 32)]  # all in one row


def test_a_row_holds_each_beginning_once():
    packed = PackedTexts.pack(TEXTS, torch.device("cpu"))
    assert len(packed.input_ids) == 1
    (tokens,), (positions,), reads, (ends,) = (
        packed.input_ids,
        packed.position_ids,
        packed.attention_mask[0, 0],
        packed.ends,
    )
    found = set()
    for text, place in zip(TEXTS, packed.places[1]):
        path = reads[ends[place]].nonzero()[:, 0]  # what the end of a text reads is the text
        path = path[positions[path].argsort()]
        assert tokens[path].tolist() == text and positions[path].tolist() == [*range(len(text))]
        found |= {(tuple(text[: place + 1]), int(node)) for place, node in enumerate(path)}
    assert len(found) == len(tokens) == len({beginning for beginning, _ in found})


def test_rows_are_filled_and_no_text_is_torn():
    """80 texts of 11 tokens without a common beginning: 23 to a row, the last one less than full."""
    texts = [[number, *range(100, 109), 2] for number in range(80)]
    packed = PackedTexts.pack(texts, torch.device("cpu"))
    per_row = NODES_OF_A_ROW // 11
    assert packed.places[0].bincount().tolist() == [per_row] * (80 // per_row) + [80 % per_row]
    assert packed.input_ids.shape == (len(packed.ends), per_row * 11) and packed.ends.shape[1] == per_row
    long = [*range(200, 200 + NODES_OF_A_ROW + 5)]
    assert PackedTexts.pack([long, [1, 2]], torch.device("cpu")).input_ids.shape == (2, len(long))


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
def test_texts_in_several_rows(attn_implementation, monkeypatch):
    monkeypatch.setattr("modeling_ezclip.NODES_OF_A_ROW", 9)
    model = make_model(attn_implementation=attn_implementation)
    assert len(PackedTexts.pack(TEXTS, torch.device("cpu")).ends) > 1
    whole, alone = (model.get_text_features(**pad(TEXTS), output_last_hidden_state=wanted) for wanted in (True, False))
    torch.testing.assert_close(alone.pooler_output, whole.pooler_output, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "changed",
    [
        {"attention_mask": torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])},  # a token that nothing reads
        {"position_ids": torch.tensor([[3, 2, 1, 0], [0, 1, 2, 3]])},
    ],
)
def test_other_masks_and_positions_count(changed):
    model, inputs = make_model(), pad([[1, 5, 6, END], [1, 5, 7, END]])
    usual = model.get_text_features(**inputs, output_last_hidden_state=False).pooler_output
    other = model.get_text_features(**{**inputs, **changed}, output_last_hidden_state=False).pooler_output
    expected = model.get_text_features(**{**inputs, **changed}).pooler_output
    torch.testing.assert_close(other, expected)
    assert not torch.allclose(other[0], usual[0], atol=1e-3) and torch.allclose(other[1], usual[1], atol=1e-5)


def test_hidden_states_of_texts_are_those_of_all_tokens():
    model, inputs = make_model(), pad(TEXTS)
    outputs = model.get_text_features(**inputs, output_last_hidden_state=False, output_hidden_states=True)
    assert [tuple(states.shape) for states in outputs.hidden_states] == 3 * [(6, 6, 32)]


def test_texts_that_are_too_long_are_refused():
    too_long = {"input_ids": torch.ones(2, 17, dtype=torch.long)}
    with pytest.raises(ValueError, match="max_position_embeddings"):
        make_model().get_text_features(**too_long, output_last_hidden_state=False)


@pytest.mark.parametrize("preset", PRESETS)
def test_both_towers_of_every_preset(preset):
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
