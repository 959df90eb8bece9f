"""`--average_last`: the mean by hand, resumed trainings, refusals."""

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers import refusal, run_again


NUM_STEPS = 6


@pytest.fixture(scope="module")
def training(tiny_folder, clip_folder):
    arguments = [
        "--model_name_or_path",
        tiny_folder,
        "--do_train",
        "--train_dir",
        clip_folder,
        "--learning_rate",
        0.05,
    ]
    arguments += ["--max_train_steps", NUM_STEPS, "--per_device_train_batch_size", 2, "--drop_path_rate", 0.3]
    return [*arguments, "--save_steps", 1, "--prompt_learning_rate", 0.1]


@pytest.fixture(scope="module")
def averaged(training, tmp_path_factory):
    return run_again(*training, "--average_last", 3, "--output_dir", tmp_path_factory.mktemp("averaged"))


def weights_of(folder):
    return load_file(folder / "model.safetensors")


def assert_equal(actual, expected):
    assert actual.keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in actual.items())


def test_mean_by_hand(averaged, tiny_folder):
    last = [weights_of(averaged / f"checkpoint-{step}") for step in (4, 5, 6)]
    saved, start = weights_of(averaged), weights_of(tiny_folder)
    for name, weight in saved.items():
        if name in last[0]:
            expected = sum(weights[name].double() for weights in last) / 3
            torch.testing.assert_close(weight.double(), expected, rtol=1e-5, atol=1e-7)
            assert not torch.equal(weight, last[-1][name])
        else:
            assert torch.equal(weight, start[name])


def test_course_is_unchanged(averaged, training, tmp_path):
    plain = run_again(*training, "--output_dir", tmp_path)
    assert_equal(weights_of(averaged / "checkpoint-6"), weights_of(plain / "checkpoint-6"))
    one = run_again(*training, "--average_last", 1, "--output_dir", tmp_path / "one")
    assert_equal(weights_of(one), weights_of(plain))


@pytest.mark.parametrize("step", [3, 4, 6])
def test_resumed_training_has_the_same_mean(averaged, training, tmp_path, step):
    resume = ("--average_last", 3, "--resume_from_checkpoint", averaged / f"checkpoint-{step}")
    assert_equal(weights_of(run_again(*training, *resume, "--output_dir", tmp_path)), weights_of(averaged))


def test_refusals(averaged, training, clip_folder, tmp_path):
    resume = ("--resume_from_checkpoint", averaged / "checkpoint-5")
    assert "average_last: 3 → 2" in refusal(*training, "--average_last", 2, *resume, "--output_dir", tmp_path)
    message = refusal(*training, "--average_last", 7, "--output_dir", tmp_path)
    assert "--average_last must be at most the 6 steps" in message
    evaluation = ("--do_eval", "--validation_dir", clip_folder, "--eval_steps", 2, "--average_last", 2)
    for option in (["--load_best_model_at_end"], ["--early_stopping_patience", 2]):
        assert option[0] in refusal(*training, *evaluation, *option, "--output_dir", tmp_path)
