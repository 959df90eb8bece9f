"""`ezclip run --torch_compile`: the same answers, and one size of batch."""

import numpy as np
import pytest
import torch

import run_video_zeroshot
from ezclip import ClassBank, load_model, load_processor
from ezclip.data.dataset import VideoDataset
from ezclip.data.sources import load_folder
from ezclip.evaluation.predictions import predict
from ezclip.utils.synthetic_clips import write_video
from tests.encoders.families import make_rival
from tests.helpers import random_clip, read_json, read_lines


LABELS = ("red circle", "blue square")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Five videos in two class folders: not a multiple of a batch of two."""
    root = tmp_path_factory.mktemp("videos")
    for number in range(5):
        folder = root / LABELS[number % 2]
        folder.mkdir(exist_ok=True)
        write_video(folder / f"{number}.mp4", random_clip(number))
    return root


@pytest.fixture(autouse=True)
def nothing_compiled():
    """Forget what earlier tests compiled."""
    torch.compiler.reset()


def run(*options):
    run_video_zeroshot.main(["--use_cpu", "--per_device_eval_batch_size", "2", *map(str, options)])


@pytest.mark.slow  # compiles
def test_same_answers(tmp_path, tiny_folder, videos):
    task = ["--model_name_or_path", tiny_folder, "--do_predict", "--videos", videos, "--templates", "a {}"]
    task += ["--candidate_labels", ", ".join(LABELS)]
    run(*task, "--output_dir", tmp_path / "eager")
    with torch._dynamo.config.patch(error_on_recompile=True):  # the last batch is smaller
        run(*task, "--output_dir", tmp_path / "compiled", "--torch_compile")
    eager, compiled = (read_lines(tmp_path / name / "predictions.jsonl") for name in ("eager", "compiled"))
    assert [row["video"] for row in eager] == [row["video"] for row in compiled] and len(eager) == 5
    for one, other in zip(eager, compiled):
        for mine, theirs in zip(one["predictions"], other["predictions"]):
            assert theirs == {**mine, "score": pytest.approx(mine["score"], abs=1e-4)}


@pytest.mark.slow  # compiles
def test_training(tmp_path, tiny_folder, videos):
    task = ["--model_name_or_path", tiny_folder, "--do_train", "--train_dir", videos, "--templates", "a {}"]
    task += ["--per_device_train_batch_size", 2, "--max_train_steps", 3, "--logging_steps", 1]
    task += ["--drop_path_rate", 0, "--attention_dropout", 0, "--temporal_prompt_dropout", 0]
    run(*task, "--output_dir", tmp_path / "eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        run(*task, "--output_dir", tmp_path / "compiled", "--torch_compile")
    eager, compiled = (read_json(tmp_path / name / "trainer_state.json") for name in ("eager", "compiled"))
    losses = [[entry["loss"] for entry in one["log_history"] if "loss" in entry] for one in (eager, compiled)]
    assert len(losses[0]) == 3 and losses[1] == pytest.approx(losses[0], abs=1e-4)


def test_padded_batches(tiny_folder, videos):
    model, processor = load_model(tiny_folder), load_processor(tiny_folder)
    bank, dataset = ClassBank.build(model, processor, list(LABELS)), VideoDataset(load_folder(videos), processor)
    sizes, found = {}, {}
    for pads in (False, True):
        sizes[pads] = []
        hook = model.vision_model.register_forward_hook(
            lambda module, args, outputs, seen=sizes[pads]: seen.append(len(outputs.pooler_output))
        )
        found[pads] = predict(model, bank, dataset, batch_size=2, pad_batches=pads)
        hook.remove()
    assert len(set(sizes[True])) == 1 < len(set(sizes[False]))
    assert len(found[True].indices) == 5
    np.testing.assert_allclose(found[True].probabilities, found[False].probabilities, atol=1e-5)


def test_other_models_are_refused(tmp_path, videos):
    task = ["--do_predict", "--videos", videos, "--candidate_labels", "yoga", "--output_dir", tmp_path / "out"]
    with pytest.raises(SystemExit, match="--torch_compile"):
        run(*task, "--model_name_or_path", make_rival("xclip", tmp_path / "rival"), "--torch_compile")
