"""The loss of a batch and its gradient in micro-batches and on several processes, against one graph over all of it."""

import copy
import os
import socket

import pytest
import torch
from accelerate import Accelerator

from ezclip import EZClipModel
from ezclip.training.distillation import Distillation
from ezclip.training.gradient_cache import EMBEDDINGS, backward
from ezclip.training.loop import enable_gradient_checkpointing
from ezclip.training.weight_interpolation import WeightInterpolation
from modeling_ezclip import video_text_losses
from tests.helpers import tiny_config


DROPOUT = {"attention_dropout": 0.4, "drop_path_rate": 0.4, "temporal_prompt_dropout": 0.4}


def make_model(freeze_backbone: bool = True, temporal_head: str = "mean", **vision_config) -> EZClipModel:
    torch.manual_seed(0)
    config = tiny_config(vision_config=vision_config, freeze_backbone=freeze_backbone, temporal_head=temporal_head)
    model = EZClipModel(config).train()
    for name, parameter in model.named_parameters():
        if "adapter" in name or "temporal_prompt" in name:  # fresh adapters would hide each other's gradients
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def make_batch(size: int = 16, num_texts: int = 16) -> dict:
    torch.manual_seed(1)
    return {
        "pixel_values": torch.randn(size, 8, 3, 32, 32),
        "input_ids": torch.cat([torch.randint(0, 29, (size, 5)), torch.full((size, 1), 29)], dim=1)[
            torch.arange(size) % num_texts
        ],
        "attention_mask": torch.ones(size, 6, dtype=torch.long),
        "labels": torch.randint(0, 5, (size,)),
    }


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def relative_error(actual: dict, expected: dict) -> float:
    """The largest of all trained tensors. (A key's bias has none but for rounding, which is measured by the rest.)"""
    assert set(actual) == set(expected)
    floor = 1e-3 * max(gradient.norm() for gradient in expected.values())
    return max(((actual[n] - expected[n]).norm() / expected[n].norm().clamp_min(floor)).item() for n in expected)


def in_one_graph(model, batch, size) -> tuple[dict, dict]:
    """The loss over all of a batch whose graph is kept, embedded in pieces so that dropout draws the same."""
    pieces = [{n: v[i : i + size] for n, v in batch.items() if n != "labels"} for i in range(0, 16, size)]
    outputs = [model(**piece, output_last_hidden_state=False) for piece in pieces]
    video_embeds, text_embeds, frame_embeds = (torch.cat([o[name] for o in outputs]) for name in EMBEDDINGS)
    logits = model.logit_scale.exp() * video_embeds @ text_embeds.t()
    losses = video_text_losses(logits, frame_embeds, batch["labels"])
    losses["loss"].backward()
    return losses, gradients(model)


@pytest.mark.parametrize(("freeze_backbone", "head"), [(True, "mean"), (False, "mean"), (False, "transformer_cls")])
@pytest.mark.parametrize("micro_batch_size", [1, 2, 4, 5])
def test_micro_batches_give_the_gradient_of_the_whole_batch(micro_batch_size, freeze_backbone, head):
    batch, model = make_batch(), make_model(freeze_backbone, head, **DROPOUT)
    torch.manual_seed(2)
    losses, expected = in_one_graph(copy.deepcopy(model), batch, micro_batch_size)
    torch.manual_seed(2)
    actual = backward(model, batch, Accelerator(cpu=True), micro_batch_size)
    after = torch.rand(1)
    for name, value in losses.items():
        assert actual[name].item() == pytest.approx(value.item(), rel=1e-6)
    assert relative_error(gradients(model), expected) < 1e-5
    # The same draws as without micro-batches of the second pass: what comes after is not disturbed.
    torch.manual_seed(2)
    in_one_graph(copy.deepcopy(model), batch, micro_batch_size)
    assert torch.rand(1) == after


def test_the_reference_of_these_tests_sees_dropout():
    batch, model = make_batch(), make_model(**DROPOUT)
    torch.manual_seed(2)
    _, one = in_one_graph(copy.deepcopy(model), batch, 4)
    torch.manual_seed(3)
    _, other = in_one_graph(copy.deepcopy(model), batch, 4)
    assert relative_error(one, other) > 0.1


@pytest.mark.parametrize("micro_batch_size", [None, 1, 4])
def test_without_dropout_all_is_as_of_one_forward_pass(micro_batch_size):
    none = dict.fromkeys(DROPOUT, 0.0)
    batch, model = make_batch(), make_model(freeze_backbone=False, **none)
    model.text_model.eval()
    expected = copy.deepcopy(model)
    outputs = expected(**batch)
    outputs.loss.backward()
    losses = backward(model, batch, Accelerator(cpu=True), micro_batch_size)
    for name in ("loss", "loss_video", "loss_text", "loss_motion"):
        assert losses[name].item() == pytest.approx(outputs[name].item(), rel=1e-6)
    assert relative_error(gradients(model), gradients(expected)) < 1e-5


@pytest.mark.parametrize("micro_batch_size", [None, 5])
@pytest.mark.parametrize("draws_masks", [False, True])
def test_a_text_of_several_videos_is_embedded_once(micro_batch_size, draws_masks, monkeypatch):
    batch, seen = make_batch(), []
    for name in ("input_ids", "attention_mask"):  # 6 texts, of one to four videos each
        batch[name] = batch[name][[3, 3, 0, 1, 0, 3, 2, 2, 4, 4, 4, 0, 5, 3, 1, 0]]
    batch["attention_mask"][:2, 3] = 0  # a text that is another by its mask alone
    model = make_model(freeze_backbone=False, **dict.fromkeys(DROPOUT, 0.0))
    model.text_model.train(draws_masks)  # which has dropout
    embed = type(model).get_text_features

    def counting(self, input_ids, *args, **kwargs):
        seen.append(len(input_ids))
        return embed(self, input_ids, *args, **kwargs)

    monkeypatch.setattr(type(model), "get_text_features", counting)
    torch.manual_seed(2)
    losses, expected = in_one_graph(copy.deepcopy(model), batch, micro_batch_size or 16)
    del seen[:]
    torch.manual_seed(2)
    actual = backward(model, batch, Accelerator(cpu=True), micro_batch_size)
    if draws_masks:  # each has its own, as published
        assert seen == ([16] if micro_batch_size is None else 2 * [5, 5, 5, 1])
    else:
        assert seen == ([7] if micro_batch_size is None else 2 * [3, 3, 5, 1])
    assert actual["loss"].item() == pytest.approx(losses["loss"].item(), rel=1e-6)
    assert relative_error(gradients(model), expected) < 1e-5


@pytest.mark.parametrize("micro_batch_size", [None, 4])
def test_gradients_are_scaled_once_for_float16(micro_batch_size):
    batch, model = make_batch(), make_model()
    torch.manual_seed(2)
    backward(expected := copy.deepcopy(model), batch, Accelerator(cpu=True), 4)
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    torch.manual_seed(2)
    if micro_batch_size is None:
        expected.zero_grad()
        backward(expected, batch, Accelerator(cpu=True))
        torch.manual_seed(2)
    backward(model, batch, accelerator, micro_batch_size)
    scaled = {name: gradient / 1024 for name, gradient in gradients(model).items()}
    assert relative_error(scaled, gradients(expected)) < 1e-5


def test_gradient_checkpointing_gives_the_same_gradients():
    batch, model = make_batch(), make_model(**DROPOUT)
    checkpointed = copy.deepcopy(model)
    enable_gradient_checkpointing(checkpointed)
    found = []
    for variant in (model, checkpointed):
        torch.manual_seed(2)
        backward(variant, batch, Accelerator(cpu=True), 4)
        found.append(gradients(variant))
    assert relative_error(*found) < 1e-6


def compute_share(rank: int, world: int, port: int, micro_batch_size: int | None, folder: str):
    """On process `rank` of `world`: the gradient from its share of a batch, under DDP."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == world
    model = make_model(False, "transformer", use_temporal_shift=True, **dict.fromkeys(DROPOUT, 0.0))
    model.text_model.eval()
    prepared = accelerator.prepare(model)
    assert isinstance(prepared, torch.nn.parallel.DistributedDataParallel)
    share = 12 // world
    batch = {name: value[rank * share : (rank + 1) * share] for name, value in make_batch(12, num_texts=3).items()}
    losses = backward(prepared, batch, accelerator, micro_batch_size)
    found = {"losses": losses, "gradients": gradients(model)}
    prepared.zero_grad()
    distillation = make_distillation(model)
    projectors = distillation.projectors
    distillation.projectors = accelerator.prepare(projectors)
    interpolation = WeightInterpolation(model, 0.5, seed=3)
    found["with_terms"] = gradients_with_terms(
        model, prepared, batch, accelerator, distillation, interpolation, micro_batch_size
    )
    found["projectors"] = gradients(projectors)
    torch.save(found, f"{folder}/{rank}.pt")
    accelerator.end_training()


def make_distillation(model) -> Distillation:
    distillation = Distillation(model, 2.0, seed=3)
    torch.manual_seed(4)
    for projector in (distillation.projectors.frames, distillation.projectors.texts):
        torch.nn.init.normal_(projector[2].weight)
    with torch.no_grad():  # the model leaves its teacher
        for parameter in model.parameters():
            parameter.mul_(1.1)
    return distillation


def gradients_with_terms(model, prepared, batch, accelerator, distillation, interpolation, micro_batch_size=None):
    with torch.no_grad():
        model.visual_projection.weight.mul_(1.2)  # as a step would
    backward(prepared, batch, accelerator, micro_batch_size, distillation)
    with interpolation.applied(0) as factor:
        backward(prepared, batch, accelerator, micro_batch_size, factor=factor)
    return gradients(model)


@pytest.mark.parametrize("micro_batch_size", [4, pytest.param(None, marks=pytest.mark.slow)])
def test_processes_give_the_gradient_of_the_whole_batch(micro_batch_size, tmp_path, world=2):
    model = make_model(False, "transformer", use_temporal_shift=True, **dict.fromkeys(DROPOUT, 0.0))
    model.text_model.eval()
    outputs = model(**make_batch(12, num_texts=3))
    outputs.loss.backward()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    torch.multiprocessing.spawn(compute_share, (world, port, micro_batch_size, str(tmp_path)), world)
    expected = gradients(model)
    model.zero_grad()
    distillation, accelerator = make_distillation(model), Accelerator(cpu=True)
    interpolation = WeightInterpolation(model, 0.5, seed=3)
    batch = make_batch(12, num_texts=3)
    with_terms = gradients_with_terms(model, model, batch, accelerator, distillation, interpolation)
    for rank in range(world):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found["losses"]["loss"].item() == pytest.approx(outputs.loss.item(), rel=1e-6)
        assert relative_error(found["gradients"], expected) < 1e-5
        assert relative_error(found["with_terms"], with_terms) < 1e-5
        assert relative_error(found["projectors"], gradients(distillation.projectors)) < 1e-5
