"""`ezclip calibrate`, and every command that takes what it writes."""

import json

import numpy as np
import pytest
import torch

from ezclip import ZeroShotVideoClassificationPipeline
from ezclip.cli import classify as classify_script
from ezclip.cli.calibrate import main
from ezclip.systems.loading import load_model, load_processor
from ezclip.timeline import find_segments
from ezclip.utils.synthetic_clips import write_video
from pipeline_ezclip import Calibration, Scoring
from tests.helpers import random_clip, read_lines, run, train


LABELS = ["red circle", "green square", "blue circle"]


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Two clips for each of three classes."""
    root = tmp_path_factory.mktemp("videos")
    for number in range(6):
        path = root / LABELS[number % 3].replace(" ", "_") / f"{number}.mp4"
        path.parent.mkdir(exist_ok=True)
        write_video(path, random_clip(number))
    return root


@pytest.fixture(scope="module")
def fitted(tiny_folder, videos, tmp_path_factory):
    """Return the folder with a calibration of the tiny model, fitted to all videos."""
    folder = tmp_path_factory.mktemp("fitted")
    arguments = ["--model_name_or_path", tiny_folder, "--validation_dir", videos, "--output_dir", folder, "--use_cpu"]
    main(list(map(str, arguments)))
    return folder


@pytest.fixture
def classifier(tiny_folder):
    return ZeroShotVideoClassificationPipeline(model=load_model(tiny_folder), processor=load_processor(tiny_folder))


def test_file_and_message(tiny_folder, videos, tmp_path, capsys):
    for function in ("softmax", "sigmoid"):
        arguments = ["--validation_dir", videos, "--output_dir", tmp_path, "--function_to_apply", function]
        main(list(map(str, ["--model_name_or_path", tiny_folder, "--use_cpu", *arguments])))
        content = json.loads((tmp_path / "calibration.json").read_text())
        assert content["function_to_apply"] == function and 0 <= content["threshold"] <= 1
        assert content["fitted_on"]["num_videos"] == 6 and content["fitted_on"]["num_classes"] == 3
        printed = capsys.readouterr()
        assert "Test: 6 videos" in printed.out and "On held-out videos" in printed.out
        assert f"factor {content['logit_scale']:.4g}" in printed.out
        assert "Without looking at the videos" in printed.out


def test_background_texts(tiny_folder, videos, tmp_path, capsys):
    texts = ["--background_texts", "a photo of left", "moving right", "--candidate_labels", *LABELS]
    arguments = ["--model_name_or_path", tiny_folder, "--videos", videos, "--output_dir", tmp_path, "--use_cpu"]
    main(list(map(str, [*arguments, *texts])))
    assert "nothing says how good" in capsys.readouterr().out
    content = json.loads((tmp_path / "calibration.json").read_text())
    assert content["threshold"] == 0.5 and content["fitted_on"]["num_background_texts"] == 2


def test_background_texts_beside_steps(tiny_folder, videos, tmp_path):
    texts = {label: {"steps": ["moving left", label]} for label in LABELS} | {"a room": "an empty room"}
    (tmp_path / "steps.json").write_text(json.dumps(texts))
    arguments = ["--model_name_or_path", tiny_folder, "--videos", videos, "--output_dir", tmp_path, "--use_cpu"]
    arguments += ["--candidate_labels", *LABELS, "--background_texts", "a room"]
    main(list(map(str, [*arguments, "--class_descriptions", tmp_path / "steps.json"])))
    assert json.loads((tmp_path / "calibration.json").read_text())["fitted_on"]["num_background_texts"] == 1


def test_same_scores_everywhere(classifier, fitted, videos, tiny_folder, tmp_path, capsys):
    calibration = Calibration.from_file(fitted)
    paths = sorted(map(str, videos.rglob("*.mp4")))
    answers = classifier(paths, LABELS, calibration=str(fitted), min_score=0.0)
    # By hand: sigmoid of the scaled cosines, averaged over the 16 templates
    bank = classifier.class_choice.choose({"candidate_labels": LABELS})
    with torch.no_grad():
        inputs = classifier.processor(videos=paths, return_tensors="pt")
        embeds = torch.nn.functional.normalize(classifier.model.encode_videos(inputs["pixel_values"]), dim=-1)
    cosines = torch.einsum("bd,pcd->bpc", embeds, bank.embeds).double().numpy()
    logits = calibration.scoring.logit_scale * cosines + calibration.scoring.logit_bias
    expected = (1 / (1 + np.exp(-logits))).mean(axis=1)
    for row, answer in zip(expected, answers, strict=True):
        assert {one["label"]: one["score"] for one in answer} == pytest.approx(dict(zip(LABELS, row)), abs=1e-4)

    out = tmp_path / "answers.jsonl"
    arguments = [*paths, "--labels", *LABELS, "--model", tiny_folder, "--calibration", fitted, "--min_score", 0]
    assert classify_script.main(list(map(str, [*arguments, "--output_file", out]))) == 0
    rows = [[{"score": r["score"], "label": r["label"]} for r in read_lines(out) if r["video"] == p] for p in paths]
    for own, answer in zip(rows, answers, strict=True):
        assert [one["label"] for one in own] == [one["label"] for one in answer]
        assert [one["score"] for one in own] == pytest.approx([one["score"] for one in answer], abs=1e-5)

    arguments = ["--model_name_or_path", tiny_folder, "--validation_dir", videos, "--calibration", fitted]
    folder = run(*arguments, "--do_eval", "--output_dir", tmp_path / "eval")
    for line in read_lines(folder / "predictions.jsonl"):
        (position,) = (number for number, path in enumerate(paths) if path.endswith(line["video"].split("/")[-1]))
        scores = [one["score"] for one in answers[position]]
        assert [one["score"] for one in line["predictions"]] == pytest.approx(scores, abs=1e-5)
    settings = json.loads((folder / "eval_settings.json").read_text())
    assert settings["scoring"]["function_to_apply"] == "sigmoid"
    assert settings["calibration"]["threshold"] == calibration.threshold


def test_none_of_these(classifier, fitted, videos, tiny_folder, tmp_path, capsys):
    calibration = Calibration.from_file(fitted)
    high = Calibration(calibration.scoring, 0.999, calibration.fitted_on, calibration.weights)
    high.save(tmp_path / "high.json")
    (clip, *_) = paths = sorted(map(str, videos.rglob("*.mp4")))
    best = classifier(clip, LABELS, calibration=calibration, min_score=0)[0]["score"]
    assert classifier(clip, LABELS, calibration=high) == [{"label": None, "score": pytest.approx(1 - best)}]
    assert classifier(clip, LABELS, calibration=high, min_score=0)[0]["label"] is not None
    options = ["--labels", *LABELS, "--model", str(tiny_folder), "--calibration", str(tmp_path / "high.json")]
    assert classify_script.main([clip, *options]) == 0
    assert "(none of these)" in capsys.readouterr().out
    timeline = find_segments(classifier, clip, LABELS, window=0.2, stride=0.1, calibration=high)
    assert timeline.segments == [] and timeline.min_score == 0.999
    parts = {"model": classifier.model, "processor": classifier.processor}
    own = ZeroShotVideoClassificationPipeline(**parts, calibration=high)
    assert find_segments(own, clip, LABELS, window=0.2, stride=0.1).min_score == 0.999

    arguments = ["--model_name_or_path", tiny_folder, "--candidate_labels", *LABELS, "--report"]
    arguments += ["--calibration", tmp_path / "high.json", "--do_predict", "--videos", *paths]
    folder = run(*arguments, "--output_dir", tmp_path / "out")
    for line in read_lines(folder / "predictions.jsonl"):
        (prediction,) = line["predictions"]
        assert prediction["label"] is None
    assert "(none of these)" in (folder / "report.html").read_text(encoding="utf-8")


def test_several_labels_at_once(classifier, fitted, videos):
    calibration = Calibration(Scoring("sigmoid", 1.0, 9.0), 0.5, {}, Calibration.from_file(fitted).weights)
    found = classifier(str(next(videos.rglob("*.mp4"))), LABELS, calibration=calibration)
    assert len(found) == 3 and all(one["score"] > 0.99 for one in found)


def test_other_weights_are_refused(classifier, fitted, tiny_folder, videos, tmp_path, capsys):
    classifier.model.to(torch.bfloat16)  # rounding is allowed
    classifier.load_calibration(fitted)
    train(classifier.model)
    other = ZeroShotVideoClassificationPipeline(model=classifier.model.float(), processor=classifier.processor)
    with pytest.raises(ValueError, match="ezclip calibrate"):
        other("clip.mp4", LABELS, calibration=fitted)
    other.save_pretrained(tmp_path / "other")
    arguments = ["--do_eval", "--validation_dir", videos, "--calibration", fitted, "--output_dir", tmp_path / "out"]
    with pytest.raises(SystemExit, match="other weights"):
        run("--model_name_or_path", tmp_path / "other", *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--function_to_apply", "softmax", "--background_texts", "a room"], "--background_texts"),
        (["--candidate_labels", "x"], "--candidate_labels"),
    ],
)
def test_wrong_options(arguments, message, tiny_folder, videos, tmp_path, capsys):
    own = ["--model_name_or_path", str(tiny_folder), "--output_dir", str(tmp_path)]
    with pytest.raises(SystemExit) as caught:
        main([*own, "--videos" if "x" not in arguments else "--validation_dir", str(videos), *arguments])
    assert caught.value.code == 2 and message in capsys.readouterr().err


def test_broken_weights(tiny_folder, videos, tmp_path):
    model = load_model(tiny_folder)
    torch.nn.init.constant_(model.visual_projection.weight, torch.nan)
    model.save_pretrained(tmp_path / "broken")
    load_processor(tiny_folder).save_pretrained(tmp_path / "broken")
    arguments = ["--model_name_or_path", tmp_path / "broken", "--validation_dir", videos, "--output_dir", tmp_path]
    with pytest.raises(SystemExit, match="finite numbers"):
        main(list(map(str, [*arguments, "--use_cpu"])))


@pytest.mark.parametrize("change", [{"logit_scale": 10**400}, {"threshold": "0.5"}, {"weights": {"x": 10**400}}])
def test_damaged_file(change, classifier, fitted, tmp_path):
    content = json.loads((fitted / "calibration.json").read_text())
    (tmp_path / "calibration.json").write_text(json.dumps({**content, **change}))
    with pytest.raises(ValueError, match="cannot be read"):
        classifier.load_calibration(tmp_path)
    with pytest.raises(ValueError, match="`calibration` must be"):
        classifier.load_calibration(content)


def test_sigmoid_without_a_calibration(tiny_folder, videos, tmp_path, capsys, classifier):
    arguments = ["--model_name_or_path", tiny_folder, "--validation_dir", videos, "--function_to_apply", "sigmoid"]
    with pytest.raises(SystemExit, match="ezclip calibrate"):
        run(*arguments, "--do_eval", "--output_dir", tmp_path / "out")
    with pytest.raises(ValueError, match="ezclip calibrate"):
        classifier(str(next(videos.rglob("*.mp4"))), LABELS, function_to_apply="sigmoid")
