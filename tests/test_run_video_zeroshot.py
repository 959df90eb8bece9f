"""`ezclip run`: results on one and several processes, and messages about bad input."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image

from ezclip import ClassBank, EZClipModel, EZClipProcessor
from ezclip.cli import convert as convert_checkpoint
from ezclip.cli.demo import word_tokenizer
from ezclip.utils.synthetic_clips import write_video
from tests.helpers import (
    ACTION_CLIPS,
    ROOT,
    WORDS,
    assert_same_predictions,
    cut_off,
    error_of,
    make_clip,
    random_clip,
    read_json,
    read_lines,
    run,
    shared_path,
)


def launch(launcher, *argv):
    """Run the script in processes of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", *launcher, str(ROOT / "run_video_zeroshot.py"), "--use_cpu", *map(str, argv)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return result


@pytest.fixture
def evaluation(tiny_folder, clip_folder, tmp_path):
    """Arguments that evaluate the tiny model on the class folders."""
    arguments = ["--model_name_or_path", tiny_folder, "--validation_dir", clip_folder, "--do_eval"]
    return [*arguments, "--templates", "a photo of {}", "{} moving", "--output_dir", tmp_path / "out"]


def test_evaluation(evaluation, clip_folder):
    out = run(*evaluation)
    results = read_json(out / "eval_results.json")
    assert results["eval_samples"] == 5 and results["eval_bad_videos"] == 1
    lines = read_lines(out / "predictions.jsonl")
    assert [Path(line["video"]).name for line in lines] == ["d.mp4", "e.mp4", "a.mp4", "b 1.mp4", "test#c.mp4"]
    for line in lines:
        assert {p["label"] for p in line["predictions"]} == {"GreenSquare", "red_circle"}
        scores = [p["score"] for p in line["predictions"]]
        assert scores == sorted(scores, reverse=True) and sum(scores) == pytest.approx(1.0, abs=1e-5)
    hits = sum(line["predictions"][0]["label"] == line["label"] for line in lines)
    assert results["eval_top1"] == pytest.approx(hits / 5)
    assert results["eval_top5"] == 1.0  # of two classes, both are among the best five
    (bad,) = read_lines(out / "bad_videos.jsonl")
    assert bad["video"] == str(clip_folder / "GreenSquare" / "broken.mp4") and "is cut off" in bad["reason"]


def test_damaged_model(evaluation, tiny_folder, tmp_path, capsys):
    model = EZClipModel.from_pretrained(tiny_folder)
    with torch.no_grad():
        model.vision_model.post_layernorm.weight[0] = torch.nan
    model.save_pretrained(tmp_path / "damaged")
    EZClipProcessor.from_pretrained(tiny_folder).save_pretrained(tmp_path / "damaged")
    start = evaluation.index(tiny_folder)
    message = error_of(capsys, *evaluation[:start], tmp_path / "damaged", *evaluation[start + 1 :])
    assert "finite numbers" in message
    assert not (tmp_path / "out" / "eval_results.json").exists()


@pytest.mark.parametrize("batch_size", [1, 4])
def test_batch_size_and_workers(evaluation, batch_size):
    expected = read_lines(run(*evaluation) / "predictions.jsonl")
    out = run(*evaluation, "--per_device_eval_batch_size", batch_size, "--dataloader_num_workers", 2)
    assert_same_predictions(read_lines(out / "predictions.jsonl"), expected)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_strict(evaluation, capsys, num_workers):
    message = error_of(capsys, *evaluation, "--strict", "--dataloader_num_workers", num_workers)
    assert "broken.mp4: is cut off: 900 of" in message
    assert "Traceback" not in message


def test_ensembles_and_descriptions(evaluation, tmp_path):
    expected = read_lines(run(*evaluation) / "predictions.jsonl")
    by_embedding = read_lines(run(*evaluation, "--ensemble", "embedding") / "predictions.jsonl")
    assert by_embedding[0]["predictions"] != expected[0]["predictions"]
    descriptions = tmp_path / "descriptions.json"
    descriptions.write_text('{"green square": "a green square", "red circle": "a red circle"}')
    start = evaluation.index("--templates")
    arguments = [*evaluation[:start], *evaluation[start + 3 :], "--class_descriptions", descriptions]
    described = read_lines(run(*arguments) / "predictions.jsonl")
    plain = read_lines(run(*evaluation[:start], "--templates", "a {}", *evaluation[start + 3 :]) / "predictions.jsonl")
    assert_same_predictions(described, plain)


def test_predict_without_labels(tiny_folder, clip_folder, tmp_path, capsys):
    out = run(
        *("--model_name_or_path", tiny_folder, "--do_predict", "--output_dir", tmp_path, "--top_k", 2),
        *("--videos", clip_folder / "red_circle" / "a.mp4", clip_folder / "GreenSquare" / "broken.mp4"),
        *("--candidate_labels", "red circle", "green square", "blue square"),
    )
    (line,) = read_lines(out / "predictions.jsonl")
    assert line["video"].endswith("a.mp4") and "label" not in line and len(line["predictions"]) == 2
    assert "is cut off" in read_lines(out / "bad_videos.jsonl")[0]["reason"]
    assert not (out / "eval_results.json").exists()
    _, header, answer, _, problem, reason, *_ = capsys.readouterr().out.splitlines()
    assert header.split() == ["video", "best", "label", "score", "next"]
    best, following = line["predictions"]
    assert f"a.mp4  {best['label']}" in answer and f"  {best['score']:.2f}   █" in answer
    assert answer.endswith(f"  {following['label']} {following['score']:.2f}")
    assert problem == "1 of 2 videos could not be read:" and "broken.mp4: is cut off" in reason


def test_predict_many_videos(tiny_folder, clip_folder, tmp_path, capsys):
    """The screen has the first answers and bad videos, and names the files with all."""
    good, bad = tmp_path / "good" / "red", tmp_path / "good" / "green"
    for number in range(25):
        copy(clip_folder / "red_circle" / "a.mp4", good / f"{number:02}.mp4")
    for number in range(12):
        copy(clip_folder / "GreenSquare" / "broken.mp4", bad / f"{number:02}.mp4")
    model = ("--model_name_or_path", tiny_folder, "--do_predict")
    out = run(*model, "--validation_dir", tmp_path / "good", "--output_dir", tmp_path / "out")
    shown = capsys.readouterr().out
    assert "19.mp4  " in shown and "20.mp4  " not in shown
    assert f"… and 5 more in {out / 'predictions.jsonl'}" in shown
    assert "12 of 37 videos could not be read:" in shown and f"… and 2 more in {out / 'bad_videos.jsonl'}" in shown


def copy(source, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def test_labels_separated_by_commas(tiny_folder, clip_folder, tmp_path):
    arguments = ["--model_name_or_path", tiny_folder, "--do_predict", "--videos", clip_folder / "red_circle" / "a.mp4"]
    lines = [
        read_lines(
            run(*arguments, "--output_dir", tmp_path / str(len(labels)), "--candidate_labels", *labels)
            / "predictions.jsonl"
        )
        for labels in (["red circle", "green square"], ["red circle, green square,"])
    ]
    assert lines[0] == lines[1] and len(lines[0][0]["predictions"]) == 2


def test_allow_partial(evaluation, tiny_folder, tmp_path, capsys):
    folder = tmp_path / "videos" / "red_circle"
    folder.mkdir(parents=True)
    write_video(folder / "long.mp4", random_clip(0, num_frames=60))
    cut_off(folder / "cut.mkv", folder / "long.mp4")
    arguments = ["--model_name_or_path", tiny_folder, "--validation_dir", folder.parent, "--do_eval"]
    out = run(*arguments, "--output_dir", tmp_path / "out")
    results = read_json(out / "eval_results.json")
    assert (results["eval_samples"], results["eval_bad_videos"], results["eval_partial_videos"]) == (1, 1, 0)
    assert "is cut off" in read_lines(out / "bad_videos.jsonl")[0]["reason"]

    run(*arguments, "--output_dir", out, "--allow_partial")
    results = read_json(out / "eval_results.json")
    assert (results["eval_samples"], results["eval_bad_videos"], results["eval_partial_videos"]) == (2, 0, 1)
    (partial,) = read_lines(out / "partial_videos.jsonl")
    assert partial["video"].endswith("cut.mkv") and "is cut off" in partial["reason"]
    assert not (out / "bad_videos.jsonl").exists()
    assert "1 of 2 videos were read in part" in capsys.readouterr().out

    out = run(
        *("--model_name_or_path", tiny_folder, "--train_dir", folder.parent, "--do_train", "--allow_partial"),
        *("--per_device_train_batch_size", 2, "--max_train_steps", 1, "--output_dir", tmp_path / "trained"),
    )
    assert read_json(out / "train_results.json")["train_partial_videos"] == 1
    assert len(read_lines(out / "train_partial_videos.jsonl")) == 1


def test_views(evaluation, tiny_folder, clip_folder):
    out = run(*evaluation, "--num_clips", 2, "--num_crops", 3)
    lines = {line["video"]: line["predictions"] for line in read_lines(out / "predictions.jsonl")}
    video = str(clip_folder / "red_circle" / "a.mp4")
    model, processor = EZClipModel.from_pretrained(tiny_folder), EZClipProcessor.from_pretrained(tiny_folder)
    views = processor(videos=video, num_clips=2, num_crops=3, return_tensors="pt").pixel_values[0]
    assert views.shape == (6, 8, 3, 32, 32)
    bank = ClassBank.build(model, processor, ["GreenSquare", "red_circle"], ["a photo of {}", "{} moving"])
    with torch.no_grad():
        each = torch.cat([bank.probabilities(model.get_video_features(view[None]).pooler_output) for view in views])
    expected = dict(zip(bank.labels, each.mean(dim=0).tolist()))
    assert {p["label"]: p["score"] for p in lines[video]} == pytest.approx(expected, abs=1e-5)
    assert read_json(out / "eval_results.json")["eval_bad_videos"] == 1


def test_video_timeout(evaluation, clip_folder, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/never.mp4"
        arguments = ["--do_predict", "--videos", url, clip_folder / "red_circle" / "a.mp4"]
        arguments += ["--candidate_labels", "red circle", "green square", "--video_timeout", 1]
        out = run("--model_name_or_path", evaluation[1], *arguments, "--output_dir", tmp_path / "out")
    assert len(read_lines(out / "predictions.jsonl")) == 1
    assert "takes longer than 1 seconds" in read_lines(out / "bad_videos.jsonl")[0]["reason"]


def test_warning_about_mirrored_classes(training, clip_folder, tmp_path, caplog):
    folder = tmp_path / "sided"
    shutil.copytree(clip_folder / "red_circle", folder / "moving_left")
    shutil.copytree(clip_folder / "red_circle", folder / "movingRight")
    position = training.index("--train_dir")
    sided = [*training[:position], "--train_dir", folder, *training[position + 2 :], "--max_train_steps", 1]
    messages = []
    for extra in ((), ("--horizontal_flip", 0)):
        caplog.clear()
        run(*sided, *extra)
        messages.append(caplog.text)
    assert "2 classes tell left from right" in messages[0] and "--horizontal_flip 0" in messages[0]
    assert "tell left from right" not in messages[1]


@pytest.fixture
def training(tiny_folder, clip_folder, tmp_path):
    arguments = ["--model_name_or_path", tiny_folder, "--train_dir", clip_folder, "--do_train", "--logging_steps", 1]
    arguments += ["--per_device_train_batch_size", 3, "--num_train_epochs", 3, "--warmup_ratio", 0.5]
    return [*arguments, "--learning_rate", "1e-2", "--templates", "a {}", "{}", "--output_dir", tmp_path / "trained"]


def test_train_and_evaluate(training, tiny_folder, clip_folder):
    out = run(*training, "--validation_dir", clip_folder, "--do_eval")
    log = read_json(out / "train_results.json")
    assert [entry["step"] for entry in log["log"]] == [1, 2, 3, 4, 5, 6]
    # warm-up over three of six steps, then a cosine
    rates = [entry["learning_rate"] for entry in log["log"]]
    assert rates == pytest.approx([0.0, 1e-2 / 3, 2e-2 / 3, 1e-2, 0.75e-2, 0.25e-2], abs=1e-6)
    for entry in log["log"]:
        parts = (entry["loss_video"] + entry["loss_text"]) / 2 + entry["loss_motion"]
        assert entry["loss"] == pytest.approx(parts, abs=1e-5)
    assert log["train_bad_videos"] == 1
    assert read_lines(out / "train_bad_videos.jsonl")[0]["video"].endswith("broken.mp4")
    assert read_json(out / "eval_results.json")["eval_samples"] == 5

    before, after = (EZClipModel.from_pretrained(folder).state_dict() for folder in (tiny_folder, out))
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {name for name in after if "temporal_prompt" in name or "adapter" in name}


def test_says_what_was_understood(training, clip_folder, tmp_path, capsys, caplog):
    names = ["red circle", "green square", "blue circle"]
    (tmp_path / "labels.csv").write_text("".join(f"{number},{name}\n" for number, name in enumerate(names)))
    (tmp_path / "test.txt").write_text("GreenSquare/d.mp4 12 1\nred_circle/a.mp4 12 0\n")
    test = ["--validation_list", tmp_path / "test.txt", "--label_list", tmp_path / "labels.csv"]
    run(*training, "--do_eval", *test, "--video_root", clip_folder, "--max_train_steps", 1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        f"Train: 6 videos, 2 classes (class folders of {clip_folder}): GreenSquare, red_circle",
        f"Test: 2 videos, 3 classes ({tmp_path}/test.txt with the classes of {tmp_path}/labels.csv): "
        "red circle, green square, blue circle",
    ]
    assert "Test: 1 of the 3 classes have no video: blue circle." in caplog.text


def test_split_of_a_dataset_is_named(tiny_folder, clip_folder, tmp_path, capsys, caplog):
    rows = {"video": [str(clip_folder / "red_circle" / "a.mp4")], "label": ["circle"]}
    (tmp_path / "data").mkdir()
    for split in ("train", "validation"):
        datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "data" / f"{split}.parquet")
    arguments = ["--model_name_or_path", tiny_folder, "--dataset_name", tmp_path / "data", "--do_eval"]
    run(*arguments, "--output_dir", tmp_path / "out")
    expected = f"Test: 1 video, 1 class (split validation of {tmp_path}/data): circle\n"
    assert capsys.readouterr().out.startswith(expected)
    assert "'circle' is the only class, so there is nothing to tell apart" in caplog.text
    arguments[-1:] = ["--do_predict", "--streaming", "--candidate_labels", "circle, square"]
    run(*arguments, "--output_dir", tmp_path / "streamed")
    expected = f"(split validation of {tmp_path}/data, streamed), 2 labels: circle, square\n"
    assert expected in capsys.readouterr().out


def test_predict_a_folder(tiny_folder, clip_folder, tmp_path, capsys, caplog):
    folder = tmp_path / "phone"
    shutil.copytree(clip_folder / "red_circle", folder / "trip")
    Image.new("RGB", (64, 48)).save(folder / "photo.jpg")
    shutil.copy(clip_folder / "GreenSquare" / "d.mp4", folder)
    arguments = ["--model_name_or_path", tiny_folder, "--do_predict", "--candidate_labels", "red circle, green square"]
    for number, videos in enumerate(
        ([folder], [f"{folder}/*"], [folder / "trip", folder / "d.mp4", f"{folder}/trip/*1.mp4"])
    ):
        out = run(*arguments, "--videos", *videos, "--output_dir", tmp_path / str(number))
        lines = read_lines(out / "predictions.jsonl")
        assert {Path(line["video"]).name for line in lines} == {"a.mp4", "b 1.mp4", "test#c.mp4", "d.mp4"}
        assert "Predict: 4 videos (named videos), 2 labels: red circle, green square\n" in capsys.readouterr().out
    assert "photo.jpg" in caplog.text and "given twice are taken once" in caplog.text


def test_batch_larger_than_the_data(training, clip_folder, tmp_path, capsys, caplog):
    out = run(*training, "--per_device_train_batch_size", 256, "--num_train_epochs", 1)
    assert (
        "--per_device_train_batch_size 256 is larger than the 6 training videos of each process: using 6"
        in caplog.text
    )
    results = read_json(out / "train_results.json")
    assert results["recipe"]["per_device_train_batch_size"] == 6 and len(results["log"]) == 1
    shutil.copytree(
        clip_folder / "red_circle", tmp_path / "one" / "circle", ignore=lambda *_: ["b 1.mp4", "test#c.mp4"]
    )
    start = training.index("--train_dir") + 1
    said = error_of(capsys, *training[:start], tmp_path / "one", *training[start + 1 :])
    assert "Training needs at least 2 videos, and one for each process; got 1 for 1 processes" in said


@pytest.mark.slow
def test_batch_larger_than_the_data_of_a_process(training):
    torchrun = ["torch.distributed.run", "--nproc_per_node", "2"]
    result = launch(torchrun, *training, "--per_device_train_batch_size", 256, "--micro_batch_size", 2)
    assert result.stderr.count("256 is larger than the 3 training videos of each process: using 3.") == 1
    assert result.stdout.count("Train: 6 videos, 2 classes") == 1
    results = read_json(Path(training[-1]) / "train_results.json")
    assert results["recipe"]["per_device_train_batch_size"] == 3 and len(results["log"]) == 3  # one step an epoch


def test_trainings_are_checked_before_a_model_is_loaded(training, tmp_path, capsys, monkeypatch):
    shutil.copytree(training[1], tmp_path / "model", ignore=lambda *_: ["model.safetensors"])
    training[1] = tmp_path / "model"
    assert "need --eval_steps" in error_of(capsys, *training, "--load_best_model_at_end")
    assert "must be at least 2, got 1" in error_of(capsys, *training, "--per_device_train_batch_size", 1)
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "2")
    assert "Gradient accumulation must be off, got 2" in error_of(capsys, *training)


def test_training_is_reproducible(training):
    weights = []
    for workers in (0, 2):
        out = run(*training, "--dataloader_num_workers", workers)
        weights.append(EZClipModel.from_pretrained(out).state_dict())
    assert all(torch.equal(weights[0][name], value) for name, value in weights[1].items())


@pytest.mark.parametrize("num_processes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_several_processes(tiny_folder, tmp_path, num_processes):
    for number in range(13):
        path = tmp_path / "videos" / WORDS[3 + number % 3] / f"{number}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, random_clip(number))
    (tmp_path / "videos" / "red" / "0.mp4").write_bytes(b"<html>404</html>")
    arguments = ["--model_name_or_path", tiny_folder, "--do_train", "--train_dir", tmp_path / "videos", "--do_eval"]
    arguments += ["--validation_dir", tmp_path / "videos", "--templates", "a {}", "--max_train_steps", 20]
    arguments += ["--drop_path_rate", 0, "--attention_dropout", 0, "--temporal_prompt_dropout", 0]
    arguments += ["--logging_steps", 1, "--warmup_ratio", 0, "--per_device_eval_batch_size", 2]
    out = run(*arguments, "--per_device_train_batch_size", 6, "--output_dir", tmp_path / "one")
    torchrun = ["torch.distributed.run", "--nproc_per_node", str(num_processes)]
    several = tmp_path / "several"
    batch_size = ["--per_device_train_batch_size", 6 // num_processes]
    result = launch(torchrun, *arguments, *batch_size, "--output_dir", several)
    assert result.stderr.count("are both trained and tested on") == 1  # the main process alone speaks
    assert result.stdout.count("Train: 13 videos, 3 classes") == 1

    logs = [read_json(folder / "train_results.json")["log"] for folder in (several, out)]
    assert len(logs[0]) == 20
    for entry, expected in zip(*logs):
        assert entry == pytest.approx(expected, abs=1e-5, rel=1e-5)
    weights, expected = (EZClipModel.from_pretrained(folder).state_dict() for folder in (several, out))
    before = EZClipModel.from_pretrained(tiny_folder).state_dict()
    changes = [(expected[name] - before[name]).abs().max() for name in expected]
    assert max(changes) > 1e-3
    assert max((weights[name] - expected[name]).abs().max() for name in expected) < 1e-5

    assert_same_predictions(read_lines(several / "predictions.jsonl"), read_lines(out / "predictions.jsonl"))
    assert len(read_lines(out / "predictions.jsonl")) == 12
    assert read_json(several / "eval_results.json") == read_json(out / "eval_results.json")
    for name in ("bad_videos.jsonl", "train_bad_videos.jsonl"):
        assert read_lines(several / name) == read_lines(out / name) and len(read_lines(out / name)) == 1


def test_train_from_plain_clip(tmp_path, clip_folder, tiny_folder):
    make_clip(tmp_path / "clip", vocab_size=15)
    arguments = ["--model_name_or_path", tmp_path / "clip", "--tokenizer_name", tiny_folder]
    arguments += ["--train_dir", clip_folder, "--do_train", "--per_device_train_batch_size", 6, "--max_train_steps", 1]
    arguments += ["--num_frames", 4, "--temporal_prompt", "shallow", "--drop_path_rate", 0.2]
    out = run(*arguments, "--output_dir", tmp_path / "trained")
    config = EZClipModel.from_pretrained(out).config
    assert (config.vision_config.num_frames, config.vision_config.temporal_prompt) == (4, "shallow")
    assert config.vision_config.drop_path_rate == config.text_config.drop_path_rate == 0.2
    assert config.vision_config.attention_dropout == 0.1


def test_accelerate_launch(evaluation):
    expected = read_lines(run(*evaluation) / "predictions.jsonl")
    result = launch(["accelerate.commands.launch"], *evaluation)
    assert "eval_top1 = " in result.stdout
    assert "Evaluating: 100%" in result.stderr
    assert_same_predictions(read_lines(Path(evaluation[-1]) / "predictions.jsonl"), expected)


def test_list_folder_and_parquet_agree(tmp_path):
    checkpoint = shared_path("golden", "e2e_clips_8f", "checkpoint.pt")
    tokenizer = shared_path("tokenizer", "bpe_simple_vocab_16e6.txt.gz")
    model = tmp_path / "model"
    convert_checkpoint.main(
        ["--checkpoint", str(checkpoint), "--output_dir", str(model), "--tokenizer", str(tokenizer)]
    )
    clips = {shared_path("clips", name): label for name, label in ACTION_CLIPS.items()}
    names = sorted(set(clips.values()))

    (tmp_path / "labels.csv").write_text("id,name\n" + "\n".join(f"{i},{name}" for i, name in enumerate(names)) + "\n")
    lines = [f"/authors/disk/{path.name} 100 {names.index(label)}" for path, label in clips.items()]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    for path, label in clips.items():
        (tmp_path / "folder" / label).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "folder" / label / path.name)
    rows = {
        "video": [{"path": path.name, "bytes": path.read_bytes()} for path in clips],
        "label": [names.index(label) for label in clips.values()],
    }
    features = datasets.Features({"video": datasets.Video(decode=False), "label": datasets.ClassLabel(names=names)})
    (tmp_path / "parquet").mkdir()
    datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / "parquet" / "test.parquet")

    sources = {
        "list": ["--validation_list", tmp_path / "list.txt", "--label_list", tmp_path / "labels.csv"]
        + ["--video_root", shared_path("clips")],
        "folder": ["--validation_dir", tmp_path / "folder"],
        "parquet": ["--dataset_name", tmp_path / "parquet"],
    }
    predictions, results = {}, {}
    for kind, source in sources.items():
        out = run("--model_name_or_path", model, "--do_eval", *source, "--output_dir", tmp_path / kind)
        predictions[kind] = read_lines(out / "predictions.jsonl")
        results[kind] = read_json(out / "eval_results.json")
    assert results["list"]["eval_samples"] == len(ACTION_CLIPS) and results["list"]["eval_bad_videos"] == 0
    for kind in ("folder", "parquet"):
        assert_same_predictions(predictions[kind], predictions["list"])
        assert results[kind] == results["list"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Nothing to do"),
        (["--do_eval"], "--model_name_or_path is needed"),
        (["--do_eval", "--model_name_or_path", "MODEL"], "Give one of --dataset_name, --validation_dir"),
        (["--do_eval", "--model_name_or_path", "MODEL", "--validation_dir", "x"], "x is not a folder"),
        (
            ["--do_predict", "--model_name_or_path", "MODEL", "--videos", "CLIP", "CLIP"],
            "no classes in CLIP, CLIP. Give --candidate_labels",
        ),
        (
            ["--do_predict", "--model_name_or_path", "no/model", "--videos", "CLIP", "nope.mp4"]
            + ["--candidate_labels", "a", "b"],
            "--videos: nope.mp4 is neither file nor folder nor URL. Correct the path",
        ),
        (
            ["--model_name_or_path", "MODEL", "--do_predict", "--videos", "CLIP", "--candidate_labels", "yoga, cake"],
            "'yoga' and 'cake' are the same tokens",
        ),
        (["--do_predict", "--candidate_labels", ""], "--candidate_labels: there is no label"),
        (["--do_predict", "--candidate_labels", "a", ""], "--candidate_labels: A class is called '', which leaves"),
        (["--do_predict", "--candidate_labels", "caf\udce9", "a"], "'caf\\udce9', which is not UTF-8. Rename it."),
        (["--do_predict", "--candidate_labels", "a, _"], "--candidate_labels: A class is called '_', which leaves"),
        (["--do_predict", "--candidate_labels", "a,", "b"], "'a,' begins or ends with a comma. Give labels as sep"),
        (
            ["--do_predict", "--model_name_or_path", "MODEL", "--validation_list", "NAMELESS"]
            + ["--label_list", "NAMELESS_LABELS"],
            "A class is called '__', which leaves no words",
        ),
        (["--do_eval", "--model_name_or_path", "no/model", "--validation_dir", "CLIPS"], "No model at 'no/model'"),
        (["--do_eval", "--model_name_or_path", "MODEL", "--validation_dir", "FLAT"], "has videos without a class"),
        (
            ["--do_eval", "--model_name_or_path", "no/model", "--validation_dir", "SPLITS"],
            "Give --validation_dir SPLITS/test",
        ),
        (
            ["--do_train", "--model_name_or_path", "no/model", "--train_dir", "SPLITS"],
            "splits test and train, not classes. Give --train_dir SPLITS/train",
        ),
        (
            ["--do_train", "--model_name_or_path", "no/model", "--train_dir", "CLIPS", "--validation_dir", "CLIPS"]
            + ["--protocol", "few_shot", "--num_shots", "2", "4"],
            "4 shots need 4 videos of each class; 2 of 2 classes have fewer: 'GreenSquare' (3), 'red_circle' (3)",
        ),
        (["--do_eval", "--do_predict", "--model_name_or_path", "MODEL"], "leave --do_predict out"),
        (["--do_eval", "--model_name_or_path", "MODEL", "--videos", "x"], "add --do_predict"),
        (["--modl", "x"], "There is no option --modl"),
        (["--do_eval", "--model_name_or_path", "MODEL", "--top_k", "0"], "--top_k must be at least 1, got 0"),
        (["--do_train", "--model_name_or_path", "MODEL", "--max_train_steps", "0"], "--max_train_steps must be at"),
        (
            ["--do_train", "--model_name_or_path", "MODEL", "--warmup_ratio", "3"],
            "--warmup_ratio must be in [0, 1], got 3",
        ),
        (["--do_eval", "--model_name_or_path", "MODEL", "--video_timeout", "inf"], "--video_timeout must be a"),
        (["--do_eval", "--model_name_or_path", "MODEL", "--num_clips", "0"], "--num_clips must be at least 1, got 0"),
        (
            ["--do_train", "--model_name_or_path", "MODEL", "--color_jitter", "2"],
            "--color_jitter must be in [0, 1], got 2",
        ),
        (
            ["--do_eval", "--model_name_or_path", "MODEL", "--validation_dir", "CLIPS", "--dataset_name", "x"],
            "give one of them",
        ),
        (
            ["--do_eval", "--model_name_or_path", "MODEL", "--validation_dir", "CLIPS", "--label_list", "x"],
            "class folders name themselves",
        ),
        (
            ["--do_eval", "--model_name_or_path", "MODEL", "--validation_dir", "CLIPS", "--num_frames", "0"],
            "--num_frames must be at least 1",
        ),
        (
            ["--do_eval", "--model_name_or_path", "MODEL", "--validation_dir", "CLIPS", "--drop_path_rate", "2"],
            "`drop_path_rate` must be a probability",
        ),
        (
            ["--do_train", "--model_name_or_path", "MODEL", "--train_dir", "CLIPS"]
            + ["--per_device_train_batch_size", "1"],
            "must be at least 2",
        ),
        (
            ["--do_eval", "--model_name_or_path", "MODEL", "--validation_dir", "CLIPS", "--temporal_prompt", "deep"]
            + ["--num_frames", "4"],
            "does not fit the configuration asked for: vision_model.encoder.layers.0.temporal_prompt is (8, 32)",
        ),
    ],
)
def test_bad_arguments(arguments, message, tiny_folder, clip_folder, tmp_path, capsys):
    places = {"MODEL": tiny_folder, "CLIPS": clip_folder, "FLAT": clip_folder / "red_circle"}
    places |= {"CLIP": clip_folder / "red_circle" / "a.mp4", "NAMELESS": tmp_path / "list.txt"}
    places |= {"NAMELESS_LABELS": tmp_path / "labels.csv"}
    places["SPLITS"] = tmp_path / "videos"
    for split in ("train", "test"):
        (places["SPLITS"] / split / "yoga").mkdir(parents=True)
        (places["SPLITS"] / split / "yoga" / "a.mp4").touch()
    places["NAMELESS"].write_text(f"{places['CLIP']} 12 0\n")
    places["NAMELESS_LABELS"].write_text("0,red_circle\n1,__\n")
    arguments = [places.get(argument, argument) for argument in arguments]
    said = error_of(capsys, *arguments, "--output_dir", tmp_path / "out")
    said = said.replace(str(places["CLIP"]), "CLIP").replace(str(places["SPLITS"]), "SPLITS")
    assert message in said and "Traceback" not in said


def test_plain_clip_is_evaluated_untrained_parts_are_not(tmp_path, clip_folder, tiny_folder, capsys, logged):
    make_clip(tmp_path / "clip", vocab_size=15)
    arguments = ["--model_name_or_path", tmp_path / "clip", "--tokenizer_name", tiny_folder, "--do_eval"]
    arguments += ["--validation_dir", clip_folder, "--output_dir", tmp_path / "out"]
    for added in (["--temporal_prompt", "deep"], ["--preset", "ezclip"]):
        said = error_of(capsys, *arguments, *added)
        assert "was not trained with temporal prompts, which spoils its predictions" in said
        AcceleratorState._reset_state(reset_partial_state=True)
    assert error_of(capsys, *arguments, "--temporal_head", "lstm").count("temporal head (lstm)") == 1
    AcceleratorState._reset_state(reset_partial_state=True)
    out = run(*arguments)
    assert read_json(out / "eval_results.json")["eval_samples"] == 5
    assert sum(line.startswith(f"{tmp_path / 'clip'} is plain CLIP") for line in logged()) == 1


def test_num_frames_of_processor_and_model(tiny_folder, evaluation, tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    config = read_json(folder / "processor_config.json")
    (folder / "processor_config.json").write_text(json.dumps({**config, "num_frames": 5}))
    arguments = [folder if argument == tiny_folder else argument for argument in evaluation]
    assert "samples 5 frames of a video, the model takes 8" in error_of(capsys, *arguments)


def test_missing_descriptions(training, tmp_path, capsys):
    descriptions = tmp_path / "descriptions.json"
    descriptions.write_text('{"green square": "a green square"}')
    start = training.index("--templates")
    arguments = [*training[:start], *training[start + 3 :], "--class_descriptions", descriptions]
    said = error_of(capsys, *arguments)
    assert "1 of 2 classes have no description: 'red_circle'." in said and "Training" not in said


def test_warning_about_cut_texts(training, clip_folder, tmp_path, caplog):
    descriptions = {"green square": "a green square", "red circle": ["red", f"a red circle moving {'left ' * 15}"]}
    (tmp_path / "descriptions.json").write_text(json.dumps(descriptions))
    arguments = [*training, "--class_descriptions", tmp_path / "descriptions.json", "--include_label", "--do_eval"]
    arguments += ["--validation_dir", clip_folder, "--eval_steps", 2, "--max_train_steps", 4]
    steps = read_json(run(*arguments) / "train_results.json")["log"]
    assert [entry["step"] for entry in steps if "eval_top1" in entry] == [2, 4]
    said = [record.getMessage() for record in caplog.records if "were cut" in record.getMessage()]
    # Two names and three descriptions, each in two templates
    assert len(said) == 1
    assert said[0].startswith("2 of 10 texts are longer than 16 tokens and were cut. The first: 'a a red circle")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_train_on_unreadable_videos(training, tmp_path, capsys, num_workers):
    for name in ("a/1.mp4", "b/2.mp4", "b/3.mp4"):
        path = tmp_path / "bad" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("<html>404</html>")
    arguments = [tmp_path / "bad" if a == training[3] else a for a in training]
    said = error_of(capsys, *arguments, "--dataloader_num_workers", num_workers)
    assert "None of the 3 training videos can be read" in said and "Traceback" not in said


def test_tokenizer_of_another_model(evaluation, tmp_path, capsys):
    word_tokenizer(["green", "red"]).save_pretrained(tmp_path / "tokenizer")
    said = error_of(capsys, *evaluation, "--tokenizer_name", tmp_path / "tokenizer")
    assert "The tokenizer has 6 tokens and the model 15" in said


def test_missing_tokenizer(tmp_path, clip_folder, capsys):
    make_clip(tmp_path / "clip")
    arguments = ["--model_name_or_path", tmp_path / "clip", "--do_train", "--train_dir", clip_folder]
    said = error_of(capsys, *arguments, "--output_dir", tmp_path / "out")
    assert "its files are missing" in said or "No tokenizer at" in said


def test_wrong_frame_size(tiny_folder, evaluation, tmp_path, capsys):
    shutil.copytree(tiny_folder, tmp_path / "model")
    config = read_json(tmp_path / "model" / "processor_config.json")
    config["image_processor"]["crop_size"] = {"height": 28, "width": 28}
    (tmp_path / "model" / "processor_config.json").write_text(json.dumps(config))
    arguments = [tmp_path / "model" if argument == tiny_folder else argument for argument in evaluation]
    assert "crops frames to 28 x 28, the model takes 32 x 32" in error_of(capsys, *arguments)


def test_output_dir_is_a_file(evaluation, tmp_path, capsys):
    (tmp_path / "out").write_text("")
    assert "cannot be made" in error_of(capsys, *evaluation)


def test_no_readable_video(evaluation, tmp_path, capsys):
    for name in ("a/1.mp4", "b/2.mp4"):
        (tmp_path / "bad" / name).parent.mkdir(parents=True)
        (tmp_path / "bad" / name).write_text("<html>404</html>")
    arguments = [tmp_path / "bad" if a == evaluation[3] else a for a in evaluation]
    assert "None of the 2 videos could be read" in error_of(capsys, *arguments)
    assert len(read_lines(tmp_path / "out" / "bad_videos.jsonl")) == 2
    videos = ["--do_predict", "--videos", tmp_path / "bad/a/1.mp4", tmp_path / "bad/b/2.mp4"]
    said = error_of(capsys, *arguments[:2], *videos, "--candidate_labels", "red, blue", "--output_dir", tmp_path / "p")
    assert (
        f"None of the 2 videos could be read, see {tmp_path}/p/bad_videos.jsonl; the first: {videos[2]}: is " in said
    )


def test_predict_list_without_names(evaluation, clip_folder, tmp_path):
    (tmp_path / "list.txt").write_text("red_circle/a.mp4 12 7\n")
    source = ["--validation_list", tmp_path / "list.txt", "--video_root", clip_folder]
    out = run(
        *evaluation[:2], *source, "--do_predict", "--candidate_labels", "red", "blue", "--output_dir", tmp_path / "o"
    )
    (line,) = read_lines(out / "predictions.jsonl")
    assert "label" not in line
