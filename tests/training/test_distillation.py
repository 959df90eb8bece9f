"""FROSTER's distillation, against CLIP of transformers and a loss by hand."""

import copy

import pytest
import torch
from accelerate import Accelerator
from torch.nn.functional import cosine_similarity, normalize

from ezclip.errors import ModelError
from ezclip.systems import load_model
from ezclip.training.distillation import Distillation
from ezclip.training.gradient_cache import backward
from modeling_ezclip import video_text_losses
from tests.helpers import make_clip, make_model
from tests.training.test_gradient_cache import gradients, make_batch, relative_error


WEIGHT = 2.0
NO_DROPOUT = {"attention_dropout": 0.0, "drop_path_rate": 0.0}


@pytest.fixture
def plain(tmp_path):
    return make_clip(tmp_path)


def make_student(folder, preset):
    model = load_model(folder, True, {**NO_DROPOUT, "temporal_prompt_dropout": 0.0}, NO_DROPOUT, preset=preset).train()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:  # a student that has left its teacher
            torch.nn.init.normal_(parameter, mean=0.02 if "norm" not in name else 1.0, std=0.1)
    return model


def make_distillation(model):
    distillation = Distillation(model, WEIGHT, seed=0)
    for projector in (distillation.projectors.frames, distillation.projectors.texts):
        torch.nn.init.normal_(projector[2].weight, std=0.3)  # at the start it is zero
    return distillation


def loss_by_hand(model, distillation, plain, batch):
    """The loss in one graph: 1 - cosine of x + 0.1 * W2 gelu(W1 x) and CLIP's embeddings."""
    outputs = model(**{name: value for name, value in batch.items() if name != "labels"})
    losses = video_text_losses(
        outputs.logits_per_video, outputs.frame_embeds, batch["labels"], model.config.motion_loss_weight
    )
    with torch.no_grad():
        frames = plain.get_image_features(pixel_values=batch["pixel_values"].flatten(0, 1)).pooler_output
        texts = plain.get_text_features(batch["input_ids"], batch["attention_mask"]).pooler_output
    distance = 0.0
    for embeds, taught, projector in (
        (outputs.frame_embeds.flatten(0, 1), frames, distillation.projectors.frames),
        (outputs.text_embeds, texts, distillation.projectors.texts),
    ):
        embeds = normalize(embeds, dim=-1)
        hidden = torch.nn.functional.gelu(embeds @ projector[0].weight.t())
        projected = embeds + 0.1 * hidden @ projector[2].weight.t()
        distance = distance + (1 - cosine_similarity(projected, taught)).mean()
    return losses["loss"] + WEIGHT * distance, distance


@pytest.mark.parametrize("micro_batch_size", [None, 5])
@pytest.mark.parametrize("preset", ["ezclip", "actionclip"])
def test_loss_and_gradients_by_hand(plain, tmp_path, preset, micro_batch_size):
    base = load_model(tmp_path, True, {**NO_DROPOUT, "temporal_prompt_dropout": 0.0}, NO_DROPOUT, preset=preset)
    distillation = make_distillation(base)
    model = make_student(tmp_path, preset)
    batch = make_batch()
    expected_model, expected = copy.deepcopy(model), copy.deepcopy(distillation)
    loss, distance = loss_by_hand(expected_model, expected, plain, batch)
    loss.backward()
    losses = backward(model, batch, Accelerator(cpu=True), micro_batch_size, distillation)
    assert losses["loss"].item() == pytest.approx(loss.item(), rel=1e-5)
    assert losses["loss_distillation"].item() == pytest.approx(distance.item(), rel=1e-5) and distance > 0.1
    assert relative_error(gradients(model), gradients(expected_model)) < 1e-4
    assert relative_error(gradients(distillation.projectors), gradients(expected.projectors)) < 1e-4


def test_projectors_begin_as_the_identity(plain, tmp_path):
    model = load_model(tmp_path, True)
    distillation = Distillation(model, WEIGHT, seed=0)
    frames, texts = torch.randn(2, 8, 16), torch.randn(2, 16)
    assert all(torch.equal(a, b) for a, b in zip(distillation.projectors(frames, texts), (frames, texts)))
    again, other = (Distillation(model, WEIGHT, seed).projectors.frames[0].weight for seed in (0, 1))
    assert torch.equal(again, distillation.projectors.frames[0].weight) and not torch.equal(again, other)


@pytest.mark.parametrize(("preset", "shares"), [("ezclip", True), ("vificlip", False)])
def test_only_a_frozen_backbone_is_shared(plain, tmp_path, preset, shares):
    model = load_model(tmp_path, True, preset=preset)
    teacher = Distillation(model, WEIGHT, seed=0).teacher
    ours, theirs = (m.vision_model.post_layernorm.weight for m in (model, teacher))
    assert (ours.data_ptr() == theirs.data_ptr()) == shares


def test_joint_attention_is_refused():
    with pytest.raises(ModelError, match="--distillation_weight must be 0 with joint attention, got 2"):
        Distillation(make_model({"temporal_prompt": "none", "use_joint_attention": True}), 2, seed=0)
