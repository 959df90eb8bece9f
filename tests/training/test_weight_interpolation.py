"""Open-VCLIP's second loss, against a second model with interpolated weights; training with it, and resumed."""

import copy

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch.utils.data import DistributedSampler

from ezclip import EZClipModel, EZClipProcessor
from ezclip.data.dataset import VideoDataset, make_loader
from ezclip.data.sources import load_folder
from ezclip.errors import ModelError
from ezclip.training.gradient_cache import backward
from ezclip.training.loop import make_optimizer, make_schedule, train
from ezclip.training.recipe import TrainingRecipe
from ezclip.training.weight_interpolation import WeightInterpolation
from tests.helpers import tiny_config
from tests.training.test_gradient_cache import DROPOUT, gradients, make_batch, make_model, relative_error


SEED, STEP, WEIGHT = 3, 7, 0.5
NO_DROPOUT = {"attention_dropout": 0.0, "drop_path_rate": 0.0}


@pytest.mark.parametrize("micro_batch_size", [None, 5])
def test_gradient_through_a_second_model(micro_batch_size):
    start = make_model(False, "transformer", **dict.fromkeys(DROPOUT, 0.0)).eval()
    model = copy.deepcopy(start)
    interpolation = WeightInterpolation(model, WEIGHT, SEED)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    before, batch = copy.deepcopy(model.state_dict()), make_batch()

    # The gradient of both losses with respect to the current weights, by autograd through the interpolation
    ratio = np.random.default_rng((SEED, STEP)).uniform(0, 0.6)
    current = {n: p.detach().clone().requires_grad_(p.requires_grad) for n, p in model.named_parameters()}
    between = {n: ratio * p.detach() + (1 - ratio) * current[n] for n, p in start.named_parameters()}
    plain = torch.func.functional_call(model, current, kwargs=batch).loss
    second = torch.func.functional_call(model, between, kwargs=batch).loss
    (plain + WEIGHT * second).backward()
    expected = {name: value.grad for name, value in current.items() if value.requires_grad}

    accelerator = Accelerator(cpu=True)
    losses = backward(model, batch, accelerator, micro_batch_size)
    with interpolation.applied(STEP) as factor:
        added = backward(model, batch, accelerator, micro_batch_size, factor=factor)
    losses = interpolation.add_loss(losses, added["loss"])
    assert losses["loss_interpolated"].item() == pytest.approx(second.item(), rel=1e-5)
    assert losses["loss"].item() == pytest.approx((plain + WEIGHT * second).item(), rel=1e-5)
    assert relative_error(gradients(model), expected) < 1e-4
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_ratios_follow_from_seed_and_step():
    interpolation = WeightInterpolation(make_model(freeze_backbone=False), WEIGHT, SEED)

    def factors(steps):
        found = []
        for step in steps:
            with interpolation.applied(step) as factor:
                found.append(factor)
        return found

    drawn = factors(range(200))
    assert factors([150, 3]) == [drawn[150], drawn[3]] and len(set(drawn)) == 200
    assert WEIGHT * 0.4 < min(drawn) < WEIGHT * 0.41 and WEIGHT * 0.99 < max(drawn) <= WEIGHT


def test_a_frozen_backbone_is_refused():
    with pytest.raises(ModelError, match="--interpolated_loss_weight must be 0 .* frozen, got 0.5"):
        WeightInterpolation(make_model(), 0.5, SEED)


class Training:
    """Four steps of a tiny ActionCLIP on five clips."""

    def __init__(self, tiny_folder, clip_folder, tmp_path):
        self.processor, self.split = EZClipProcessor.from_pretrained(tiny_folder), load_folder(clip_folder)
        self.folder = tmp_path

    def start(self, **options):
        torch.manual_seed(0)
        fields = {"temporal_head": "transformer", "freeze_backbone": False, "motion_loss_weight": 0.0}
        vision_config = {"temporal_prompt": "none", **NO_DROPOUT}
        config = tiny_config(len(self.processor.tokenizer), vision_config, **fields)
        for name, value in NO_DROPOUT.items():
            setattr(config.text_config, name, value)
        model = EZClipModel(config)
        prompts = self.processor.get_prompts(self.split.class_names, "a {}")
        recipe = TrainingRecipe(max_train_steps=4, per_device_train_batch_size=2, save_steps=2, **options)
        recipe.logging_steps = 1
        return model, VideoDataset(self.split, self.processor, prompts, SEED), recipe

    def run(self, name, resume_from=None, **options):
        model, dataset, recipe = self.start(**options)
        output_dir = self.folder / name
        result = train(model, dataset, recipe, Accelerator(cpu=True), output_dir=output_dir, resume_from=resume_from)
        return model, result.log.state.log_history


@pytest.fixture
def training(tiny_folder, clip_folder, tmp_path):
    return Training(tiny_folder, clip_folder, tmp_path)


def test_resume_with_both_terms(training, tmp_path):
    options = {"distillation_weight": 2.0, "interpolated_loss_weight": 0.5, "max_grad_norm": 1.0}
    whole, log = training.run("whole", **options)
    resumed, resumed_log = training.run("resumed", tmp_path / "whole" / "checkpoint-2", **options)
    assert resumed_log == log
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters()))
    last = log[-1]
    parts = (last["loss_video"] + last["loss_text"]) / 2 + 2 * last["loss_distillation"]
    assert last["loss"] == pytest.approx(parts + 0.5 * last["loss_interpolated"], rel=1e-5)
    assert not [name for name in whole.state_dict() if "projector" in name]


def test_without_the_terms_training_is_as_before(training):
    trained, log = training.run("plain")
    model, dataset, recipe = training.start()
    sampler = DistributedSampler(dataset, 1, 0, seed=SEED)
    loader = make_loader(dataset, 2, sampler=sampler, drop_last=True)
    optimizer = make_optimizer(model, recipe)
    schedule = make_schedule(optimizer, recipe.warmup_ratio, 4)
    model.train()
    for step in range(4):
        if (number := step % len(loader)) == 0:
            sampler.set_epoch(step // len(loader))
            dataset.set_epoch(step // len(loader))
            batches = [*loader]
        batch = batches[number]
        inputs = {name: batch[name] for name in ("labels", "input_ids", "attention_mask")}
        losses = backward(
            model, {**inputs, "pixel_values": dataset.processor.normalize(batch["frames"])}, Accelerator(cpu=True)
        )
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        logged = {name: value for name, value in log[step].items() if "loss" in name}
        assert logged == {name: value.item() for name, value in losses.items()}
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), model.parameters()))
