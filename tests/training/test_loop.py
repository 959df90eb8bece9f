"""The recipe of training: rates, groups, what is refused before the first step."""

import json

import pytest
import torch
from accelerate import Accelerator

from ezclip import EZClipModel, EZClipProcessor
from ezclip.data.dataset import VideoDataset
from ezclip.data.sources import load_folder
from ezclip.errors import DataError, ModelError
from ezclip.training.loop import make_optimizer, make_schedule, train
from ezclip.training.recipe import TrainingRecipe
from tests.helpers import shared_path, tiny_config


def test_the_schedule_is_the_published_one():
    """150 epochs, 5 of them warm-up; published, epochs are given in fractions, here as steps of a tenth."""
    golden = json.loads(shared_path("golden", "aux", "lr_schedule.json").read_text())
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-4)
    schedule, rates = make_schedule(optimizer, 5 / 150, 1500), []
    for _ in range(1501):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    points = [(epoch, rate) for epoch, rate, _ in golden["points"] if epoch <= 150]
    assert len(points) > 10
    for epoch, rate in points:
        assert rates[round(10 * epoch)] == pytest.approx(rate, rel=1e-9, abs=1e-18)


def test_groups_have_their_rates():
    model = EZClipModel(tiny_config(temporal_head="lstm", freeze_backbone=False))
    recipe = TrainingRecipe(learning_rate=1.0, prompt_learning_rate=2.0, text_learning_rate=3.0, weight_decay=0.1)
    rate_of = {id(p): group["lr"] for group in make_optimizer(model, recipe).param_groups for p in group["params"]}
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert set(rate_of) == {id(p) for p in trained.values()}
    for name, parameter in trained.items():
        parts = {"temporal_prompt": 2.0, "text_": 3.0, "temporal_head": 10.0}
        expected = next((rate for part, rate in parts.items() if part in name), 1.0)
        assert rate_of[id(parameter)] == expected
    defaults = make_optimizer(model, recipe).defaults
    assert (defaults["betas"], defaults["eps"], defaults["weight_decay"]) == ((0.9, 0.98), 1e-8, 0.1)
    recipe = TrainingRecipe(learning_rate=1.0, head_learning_rate=4.0)
    assert [group["lr"] for group in make_optimizer(model, recipe).param_groups] == [1.0, 4.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"load_best_model_at_end": True}, "need --eval_steps"),
        ({"early_stopping_patience": 1}, "need --eval_steps"),
        ({"eval_steps": 1}, "--eval_steps needs videos to evaluate on"),
        ({"per_device_train_batch_size": 60}, "A step takes 60 videos"),
        ({"per_device_train_batch_size": 1}, "must be at least 2"),
    ],
)
def test_what_cannot_be_trained_is_said_first(tiny_folder, clip_folder, options, message):
    processor = EZClipProcessor.from_pretrained(tiny_folder)
    split = load_folder(clip_folder)
    dataset = VideoDataset(split, processor, processor.get_prompts(split.class_names, "a {}"))
    recipe = TrainingRecipe(**{"per_device_train_batch_size": 2, **options})
    with pytest.raises(DataError, match=message):
        train(EZClipModel.from_pretrained(tiny_folder), dataset, recipe, Accelerator(cpu=True))


def test_a_model_of_which_nothing_is_trained_is_refused(tiny_folder, clip_folder):
    processor, split = EZClipProcessor.from_pretrained(tiny_folder), load_folder(clip_folder)
    dataset = VideoDataset(split, processor, processor.get_prompts(split.class_names, "a {}"))
    model = EZClipModel.from_pretrained(tiny_folder).requires_grad_(False)
    with pytest.raises(ModelError, match="Nothing of this model is trained.*--preset vificlip"):
        train(model, dataset, TrainingRecipe(per_device_train_batch_size=2), Accelerator(cpu=True))
