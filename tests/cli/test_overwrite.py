"""A used output folder: what changed is said in words, and `--overwrite_output_dir` starts anew."""

import json

import pytest

from ezclip.utils.earlier_results import EarlierResults
from tests.helpers import read_json, read_lines, refusal, run_again


OVERWRITE = "--overwrite_output_dir"


def files_of(folder) -> dict:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def labels_of(folder) -> set:
    return {
        prediction["label"] for line in read_lines(folder / "predictions.jsonl") for prediction in line["predictions"]
    }


def test_other_labels_in_a_used_folder(tiny_folder, clip_folder, tmp_path):
    out = tmp_path / "out"
    videos = ("--videos", clip_folder / "red_circle" / "a.mp4", "--output_dir", out)
    model = ("--model_name_or_path", tiny_folder, "--do_predict", *videos)
    run_again(*model, "--candidate_labels", "red circle, green square", "--report")
    (out / "notes.txt").write_text("mine")
    (out / "predictions" / "mine.parquet").write_text("mine")
    before = files_of(out)
    said = refusal(*model, "--candidate_labels", "red circle, blue square")
    assert "Changed: labels: red circle, green square → red circle, blue square. " in said and OVERWRITE in said
    said = refusal(*model, "--candidate_labels", "red circle, green square", "--templates", "the {}")
    assert "Changed: templates: 1 new (the {}) and 16 gone (" in said
    # A run that fails before it begins leaves everything.
    refusal(*model, "--candidate_labels", "red circle, blue square", OVERWRITE, "--templates", "no place")
    refusal(*model[2:], "--model_name_or_path", tmp_path / "none", "--candidate_labels", "x, y", OVERWRITE)
    assert files_of(out) == before

    run_again(*model, "--candidate_labels", "red circle, blue square", OVERWRITE)
    assert labels_of(out) == {"red circle", "blue square"}
    assert {path.name for path in out.iterdir()} == {"notes.txt", "predictions", "predictions.jsonl"}
    assert (out / "predictions" / "mine.parquet").read_text() == "mine"


def test_failing_prediction_keeps_the_earlier_one(tiny_folder, clip_folder, tmp_path):
    """The second run fails at a video. Without the option, it is resumed."""
    out = tmp_path / "out"
    videos = ("--videos", clip_folder / "GreenSquare", "--output_dir", out)
    model = ("--model_name_or_path", tiny_folder, "--do_predict", *videos)
    run_again(*model, "--candidate_labels", "red circle, green square")
    before = files_of(out)
    other = ("--candidate_labels", "red circle, blue square")
    assert "broken.mp4" in refusal(*model, *other, "--strict", OVERWRITE)
    kept = files_of(out)
    assert all(kept[path] == content for path, content in before.items())
    assert "Changed: labels" in refusal(*model, "--candidate_labels", "blue square")
    run_again(*model, *other)
    assert labels_of(out) == {"red circle", "blue square"} and files_of(out).keys() == before.keys()


def test_links_in_a_used_folder(tiny_folder, clip_folder, tmp_path):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    for name in ("predictions", "checkpoint-1"):
        (elsewhere / name).mkdir(parents=True)
        out.mkdir(exist_ok=True)
        (out / name).symlink_to(elsewhere / name)
    for name in ("settings.json", "digests.json"):
        (elsewhere / "checkpoint-1" / name).write_text("{}")
    videos = ("--videos", clip_folder / "red_circle", "--output_dir", out)
    model = ("--model_name_or_path", tiny_folder, "--do_predict", *videos)
    run_again(*model, "--candidate_labels", "red circle, green square")
    run_again(*model, "--candidate_labels", "red circle, blue square", OVERWRITE)
    assert labels_of(out) == {"red circle", "blue square"} and len(files_of(elsewhere / "predictions")) == 2
    EarlierResults([out], is_pending=True, of_training=True).remove()
    assert {path.name for path in out.iterdir()} == {"predictions"} and len(files_of(elsewhere)) == 2


@pytest.fixture
def training(tiny_folder, clip_folder, tmp_path):
    recipe = ("--per_device_train_batch_size", 2, "--save_steps", 1, "--templates", "a {}")
    where = ("--train_dir", clip_folder, "--output_dir", tmp_path / "out")
    return ("--model_name_or_path", tiny_folder, "--do_train", *where, *recipe)


def checkpoints_of(out) -> set:
    return {path.name for path in out.glob("checkpoint-*")}


def test_train_anew(training, clip_folder, tmp_path):
    out = tmp_path / "out"
    run_again(*training, "--max_train_steps", 3, "--do_eval", "--validation_dir", clip_folder)
    (out / "checkpoint-500").mkdir()
    (out / "checkpoint-500" / "trainer_state.json").write_text("{}")  # of transformers' own Trainer
    before = files_of(out)
    assert OVERWRITE in refusal(*training, "--max_train_steps", 2)
    assert "is not a folder" in refusal(*training, OVERWRITE, "--train_dir", tmp_path / "none")
    assert files_of(out) == before
    run_again(*training, "--max_train_steps", 2, OVERWRITE)
    assert checkpoints_of(out) == {"checkpoint-1", "checkpoint-2", "checkpoint-500"}
    assert read_json(out / "trainer_state.json")["global_step"] == 2
    assert not (out / "predictions.jsonl").exists() and not (out / "eval_results.json").exists()


def test_failing_training_keeps_the_earlier_one(training, tmp_path):
    """The second run fails in a step before it has a result."""
    out = tmp_path / "out"
    run_again(*training, "--max_train_steps", 2)
    before = files_of(out)
    failing = ("--max_train_steps", 5, "--save_steps", 5, "--learning_rate", 1e30, "--warmup_ratio", 0)
    assert "Lower --learning_rate" in refusal(*training, *failing, "--logging_steps", 1, OVERWRITE)
    kept = files_of(out)
    assert all(kept[path] == content for path, content in before.items())


def test_best_weights_of_a_new_training_stay(training, clip_folder, tmp_path):
    best = ("--do_eval", "--validation_dir", clip_folder, "--eval_steps", 1, "--load_best_model_at_end")
    run_again(*training, *best, "--max_train_steps", 2)
    run_again(*training, *best, "--max_train_steps", 1, OVERWRITE)
    assert (tmp_path / "out" / "best_model" / "model.safetensors").is_file()
    assert checkpoints_of(tmp_path / "out") == {"checkpoint-1"}


def test_evaluation_keeps_checkpoints(training, clip_folder, tmp_path):
    """The model that is evaluated may be the one in the folder."""
    out = run_again(*training, "--max_train_steps", 1)
    run_again(
        "--model_name_or_path", out, "--do_eval", "--validation_dir", clip_folder, "--output_dir", out, OVERWRITE
    )
    assert checkpoints_of(out) == {"checkpoint-1"} and (out / "loss.png").is_file()
    assert (out / "eval_results.json").is_file()


def test_protocol_anew(tiny_folder, clip_folder, tmp_path):
    out = tmp_path / "out"
    protocol = ("--protocol", "zero_shot", "--validation_dir", clip_folder, "--output_dir", out)
    model = ("--model_name_or_path", tiny_folder)
    run_again(*model, *protocol)
    assert OVERWRITE in refusal(*model, *protocol)
    run_again(*model, *protocol, OVERWRITE, "--max_eval_samples", 2)
    (results,) = (read_json(path) for path in out.rglob("eval_results.json"))
    assert results["eval_samples"] + results["eval_bad_videos"] == 2


def test_anew_and_resumed_contradict(training, capsys):
    with pytest.raises(SystemExit):
        run_again(*training, OVERWRITE, "--resume_from_checkpoint", "latest")
    assert "--resume_from_checkpoint" in capsys.readouterr().err


def test_results_of_other_programs_stay(tmp_path):
    (tmp_path / "results.json").write_text('{"results": {"..": 1}}')
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions" / "mine.csv").write_text("")
    (tmp_path / "report.html").write_text("mine")
    EarlierResults([tmp_path, tmp_path / "none"], is_pending=True, of_training=True).remove()
    kept = {"results.json", "report.html", "predictions", "mine.csv"}
    assert {path.name for path in tmp_path.rglob("*")} == kept


def test_results_of_other_folders_stay(tmp_path):
    (tmp_path / "predictions.jsonl").touch()
    (tmp_path / "out").mkdir()
    names = ["..", str(tmp_path), "a/../.."]
    content = {"settings": {}, "digest": "", "results": {name: {} for name in names}}
    (tmp_path / "out" / "results.json").write_text(json.dumps(content))
    EarlierResults([tmp_path / "out"], is_pending=True, of_training=True).remove()
    assert (tmp_path / "predictions.jsonl").exists()
