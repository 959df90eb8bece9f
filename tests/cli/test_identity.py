"""Rows, runs and checkpoints are identified by content: nothing is resumed, joined or loaded by a name."""

import json
import shutil

import datasets
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ezclip import EZClipModel, EZClipProcessor
from ezclip.cli import compare
from ezclip.errors import DataError
from ezclip.evaluation.prediction_files import PredictionFolder
from ezclip.training.best_model import BestModel
from tests.helpers import read_json, read_lines, refusal, run_again


LATEST = ("--resume_from_checkpoint", "latest")


@pytest.fixture
def model_folder(tiny_folder, tmp_path):
    return shutil.copytree(tiny_folder, tmp_path / "model")


@pytest.fixture
def videos(clip_folder, tmp_path):
    folder = shutil.copytree(clip_folder, tmp_path / "videos")
    (folder / "GreenSquare" / "broken.mp4").unlink()
    return folder


@pytest.fixture
def training(model_folder, videos, tmp_path):
    """Options of a training of 4 steps with a checkpoint after each."""
    recipe = ("--max_train_steps", 4, "--per_device_train_batch_size", 2, "--save_steps", 1, "--templates", "a {}")
    where = ("--train_dir", videos, "--output_dir", tmp_path / "out")
    return ("--model_name_or_path", model_folder, "--do_train", *where, *recipe)


def flip(path, position=None):
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if position is None else position] ^= 1
    path.write_bytes(content)


def change_weights(folder):
    weights = load_file(folder / "model.safetensors")
    weights["vision_model.embeddings.class_embedding"] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def change_pixels(folder):
    processor = EZClipProcessor.from_pretrained(folder)
    processor.image_processor.image_mean = [0.0, 0.0, 0.0]
    processor.save_pretrained(folder)


CHANGES = {"the weights of the model": change_weights, "processor.image_processor": change_pixels}


# ---- Rows ----


@pytest.fixture
def same_names(clip_folder, tmp_path):
    """16 videos as bytes that are all called clip.mp4; the first cannot be read."""
    clips = sorted((clip_folder / "red_circle").iterdir())
    rows = [{"path": "clip.mp4", "bytes": clips[number % 3].read_bytes()} for number in range(16)]
    rows[0]["bytes"] = b"<html>404</html>"
    # Every class is the wrong one for about half of the videos.
    labels = ["red circle" if number % 2 else "green square" for number in range(16)]
    features = datasets.Features({"video": datasets.Video(decode=False), "label": datasets.Value("string")})
    folder = tmp_path / "bytes"
    folder.mkdir()
    datasets.Dataset.from_dict({"video": rows, "label": labels}, features).to_parquet(folder / "test.parquet")
    return folder


def test_compare_joins_rows(same_names, tiny_folder, tmp_path):
    (tmp_path / "systems.yaml").write_text(yaml.dump({"A": {"model_name_or_path": str(tiny_folder)}}))
    argv = [tmp_path / "systems.yaml", "--dataset_name", same_names, "--eval_split_name", "test", "--use_cpu"]
    compare.main([*map(str, argv), "--speed_rounds", "0", "--output_dir", str(tmp_path / "out")])
    result = read_json(tmp_path / "out" / "comparison.json")["systems"]["A"]
    own = read_json(tmp_path / "out" / "A" / "eval_results.json")
    assert own["eval_samples"] == result["num_read_videos"] == 15 and own["eval_bad_videos"] == 1
    assert result["top1"]["value"] == pytest.approx(own["eval_top1"])
    assert result["top5"]["value"] == pytest.approx(own["eval_top5"])
    lines = read_lines(tmp_path / "out" / "A" / "predictions.jsonl")
    assert [line["row"] for line in lines] == list(range(1, 16))
    assert read_lines(tmp_path / "out" / "A" / "bad_videos.jsonl")[0]["row"] == 0


def test_predictions_have_row_numbers(same_names, tiny_folder, tmp_path):
    data = ("--dataset_name", same_names, "--eval_split_name", "test", "--candidate_labels", "red circle, blue square")
    model = ("--model_name_or_path", tiny_folder, "--do_predict")
    for name, more in (("split", ()), ("stream", ("--streaming",))):
        out = run_again(*model, *data, "--output_dir", tmp_path / name, *more)
        assert [line["row"] for line in read_lines(out / "predictions.jsonl")] == list(range(1, 16))
        assert [line["row"] for line in read_lines(out / "bad_videos.jsonl")] == [0]


# ---- Runs ----


@pytest.mark.parametrize("change", CHANGES)
def test_training_does_not_resume_on_other_content(training, model_folder, tmp_path, change):
    run_again(*training)
    shutil.rmtree(tmp_path / "out" / "checkpoint-4")
    CHANGES[change](model_folder)
    assert f"Changed: {change}" in refusal(*training, *LATEST)


def test_training_does_not_resume_on_another_video(training, videos, tmp_path):
    run_again(*training)
    shutil.copyfile(videos / "red_circle" / "a.mp4", videos / "red_circle" / "b 1.mp4")
    assert "Changed: the content of 1 video of train. " in refusal(*training, *LATEST)


def test_best_choice_depends_on_the_validation(training, videos, clip_folder, tmp_path):
    evaluation = ("--do_eval", "--validation_dir", videos, "--eval_steps", 2, "--load_best_model_at_end")
    run_again(*training, *evaluation)
    for change in (("--validation_dir", clip_folder), ("--max_eval_samples", 2), ("--num_clips", 2)):
        said = refusal(*training, *evaluation, *LATEST, *change)
        assert "videos of the test" in said or "num_clips: 1 → 2" in said
    assert "ensemble" in refusal(*training, *evaluation, *LATEST, "--ensemble", "embedding")


def test_validation_without_eval_steps_may_change(training, videos, clip_folder, tmp_path):
    run_again(*training, "--do_eval", "--validation_dir", videos)
    run_again(*training, "--do_eval", "--validation_dir", clip_folder, *LATEST)


@pytest.mark.parametrize("change", CHANGES)
def test_finished_protocol_on_other_content(videos, model_folder, tmp_path, change):
    protocol = ("--protocol", "zero_shot", "--validation_dir", videos, "--output_dir", tmp_path / "out")
    run_again("--model_name_or_path", model_folder, *protocol)
    run_again("--model_name_or_path", model_folder, *protocol, *LATEST)
    CHANGES[change](model_folder)
    assert change in refusal("--model_name_or_path", model_folder, *protocol, *LATEST)


def test_predictions_of_a_replaced_video(videos, model_folder, tmp_path):
    out = tmp_path / "out"
    predict = ("--model_name_or_path", model_folder, "--do_predict", "--validation_dir", videos, "--output_dir", out)
    run_again(*predict)
    run_again(*predict)
    shutil.copyfile(videos / "red_circle" / "a.mp4", videos / "red_circle" / "b 1.mp4")
    assert "Changed: the content of 1 video of prediction. " in refusal(*predict)


# ---- Damage ----


def test_each_damaged_file_of_a_checkpoint_is_named(training, tmp_path):
    run_again(*training)
    for number in (1, 2, 3):
        shutil.rmtree(tmp_path / "out" / f"checkpoint-{number}")
    checkpoint = tmp_path / "out" / "checkpoint-4"
    for path in sorted(checkpoint.iterdir()):
        whole = path.read_bytes()
        for damage in (lambda path: flip(path), lambda path: path.write_bytes(b"")):
            damage(path)
            said = refusal(*training, *LATEST)
            assert "checkpoint-4" in said and ("damaged" in said or "was made with" in said), path
            path.write_bytes(whole)
    random_states = next(checkpoint.glob("random_states_*"))
    flip(random_states)
    assert random_states.name in refusal(*training, *LATEST)


def test_damaged_and_swapped_parts(videos, model_folder, tmp_path):
    out = tmp_path / "out"
    predict = ("--model_name_or_path", model_folder, "--do_predict", "--validation_dir", videos, "--output_dir", out)
    run_again(*predict)
    part = out / "predictions" / "shard-00000-part-00000.parquet"
    whole, sound = part.read_bytes(), PredictionFolder(out, 256)._read_part(0, 0)
    folder, named = PredictionFolder(out, 256), 0
    settings = read_json(folder.settings_path)
    for position in range(0, len(whole), 7):
        flip(part, position)
        try:
            folder.begin(settings)
            rows = folder._read_part(0, 0)
        except DataError as error:
            assert "shard-00000-part-00000.parquet is damaged" in str(error) and "Remove it" in str(error)
            named += 1
        else:  # a bit that no row depends on
            assert rows == sound
        part.write_bytes(whole)
    assert named > 20
    shutil.copyfile(part, part.with_name("shard-00000-part-00001.parquet"))
    assert "shard-00000-part-00001.parquet is damaged" in refusal(*predict)
    part.with_name("shard-00000-part-00001.parquet").unlink()
    (out / "predictions" / "settings.json").write_text("{")
    assert "settings.json is damaged" in refusal(*predict)


# ---- Best weights ----


@pytest.fixture
def with_best(training, videos):
    evaluation = ("--do_eval", "--validation_dir", videos, "--eval_steps", 1, "--load_best_model_at_end")
    return (*training, *evaluation)


def test_missing_metric_fails_at_the_first_evaluation(with_best, tmp_path):
    """No video of the evaluation can be read, so it has no accuracy."""
    (tmp_path / "broken" / "red_circle").mkdir(parents=True)
    (tmp_path / "broken" / "red_circle" / "a.mp4").write_bytes(b"<html>404</html>")
    said = refusal(*with_best, "--validation_dir", tmp_path / "broken")
    assert "step 1 has no eval_top1" in said and "--metric_for_best_model" in said
    assert not (tmp_path / "out" / "checkpoint-2").exists()


def test_best_of_another_training_is_never_loaded(with_best, tmp_path):
    run_again(*with_best)
    other = tmp_path / "other"
    run_again(*with_best, "--output_dir", other, "--learning_rate", 0.1)
    shutil.copyfile(other / "best_model" / "model.safetensors", tmp_path / "out" / "best_model" / "model.safetensors")
    assert "is of another training" in refusal(*with_best, *LATEST)


def test_damaged_best_weights_keep_the_last_ones(with_best, tmp_path, monkeypatch):
    load = BestModel.load

    def load_damaged(self, model, state):
        flip(self.path)
        load(self, model, state)

    monkeypatch.setattr(BestModel, "load", load_damaged)
    said = refusal(*with_best)
    last = tmp_path / "out" / "last_model" / "model.safetensors"
    assert "is damaged" in said and str(last) in said
    checkpoint = load_file(tmp_path / "out" / "checkpoint-4" / "model.safetensors")
    weights = load_file(last)
    assert weights.keys() == checkpoint.keys() and all(torch.equal(weights[n], checkpoint[n]) for n in weights)


def test_best_model_records_its_training(with_best, tmp_path):
    run_again(*with_best)
    state = read_json(tmp_path / "out" / "trainer_state.json")
    with safe_open(tmp_path / "out" / "best_model" / "model.safetensors", framework="pt") as file:
        record = json.loads(file.metadata()["ezclip_best_model"])
    assert record["step"] == state["best_global_step"] and record["value"] == state["best_metric"]
    assert record["metric"] == "eval_top1" and record["training"]
    assert EZClipModel.from_pretrained(tmp_path / "out").num_parameters() > 0
