"""Labelled clips beside texts: rows, weights, embedded clips, and the bank of `ezclip run --do_fit` in use."""

import numpy as np
import pytest
import torch

from ezclip import ClassBank, classify_videos, find_segments
from ezclip.cli.classify import main as classify
from ezclip.data import load_folder
from ezclip.data.dataset import VideoDataset
from ezclip.errors import DataError, ModelError
from ezclip.few_shot import Shots, choose_clip_weight, embed_shots, fit_class_bank
from ezclip.few_shot.fitting import CLIP_WEIGHTS
from ezclip.systems import load_encoder, load_processor
from ezclip.systems.loading import load_classifier
from tests.encoders.families import make_rival
from tests.helpers import read_json, read_lines, refusal, run, run_again


LABELS = ["red circle", "green square", "blue circle"]


def draw(seed, num_classes=3, num_clips=4, dim=6, noise=0.4):
    """Random texts of classes, and clips around other centres: a bank, embeddings, labels."""
    rng = np.random.default_rng(seed)
    texts, centres = rng.normal(size=(2, num_classes, dim))
    labels = np.repeat(np.arange(num_classes), num_clips)
    clips = centres[labels] + noise * rng.normal(size=(len(labels), dim))
    texts = torch.nn.functional.normalize(torch.tensor(texts), dim=-1).float()
    bank = ClassBank([f"class {i}" for i in range(num_classes)], texts[None], probe=texts[0])
    return bank, torch.tensor(clips).float(), labels


def direction(values):
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


@pytest.mark.parametrize("clip_weight", [0.0, 0.3, 4.0])
def test_rows(clip_weight, logged):
    bank, clips, labels = draw(0)
    kept = labels != 2
    fitted = fit_class_bank(bank, clips[kept], labels[kept], clip_weight)
    texts, units = bank.embeds[0].numpy(), direction(clips.numpy())
    for i, row in enumerate(fitted.embeds[0].numpy()):
        own = units[labels == i].sum(axis=0) if i < 2 else 0.0
        np.testing.assert_allclose(row, direction(texts[i] + clip_weight * own), atol=1e-6)
    assert fitted.labels == bank.labels and torch.equal(fitted.probe, bank.probe)
    assert any("1 of 3 classes have no clip" in line and "class 2" in line for line in logged()) == (clip_weight > 0)


def test_several_prompts_count_as_their_mean():
    bank, clips, labels = draw(1)
    prompts = torch.nn.functional.normalize(torch.randn(5, 3, 6, generator=torch.Generator().manual_seed(0)), dim=-1)
    fitted = fit_class_bank(ClassBank(bank.labels, prompts), clips, labels, 0.0)
    videos = torch.randn(7, 6, generator=torch.Generator().manual_seed(1))
    expected = ClassBank(bank.labels, prompts).probabilities(videos, ensemble="embedding")
    for ensemble in ("probability", "embedding"):
        torch.testing.assert_close(fitted.probabilities(videos, ensemble), expected)


@pytest.mark.parametrize("seed", range(6))
def test_weight_is_the_best_by_leaving_one_out(seed):
    bank, clips, labels = draw(seed, num_classes=5, noise=1.0)
    alone = np.flatnonzero(labels == 4)[1:]  # class 4 keeps one clip, which is not held out
    clips, labels = np.delete(clips.numpy(), alone, axis=0), np.delete(labels, alone)
    hits = []
    for weight in CLIP_WEIGHTS:
        hits.append(0)
        for i in np.flatnonzero(labels != 4):
            others = torch.from_numpy(np.delete(clips, i, axis=0)), np.delete(labels, i)
            scores = fit_class_bank(bank, *others, weight).probabilities(torch.from_numpy(clips[i : i + 1]))
            hits[-1] += int(scores.argmax()) == labels[i]
    assert max(hits) > min(hits)
    chosen = choose_clip_weight(bank, torch.from_numpy(clips), labels)
    assert chosen == CLIP_WEIGHTS[int(np.argmax(hits))]
    fitted = fit_class_bank(bank, torch.from_numpy(clips), labels)
    assert torch.equal(fitted.embeds, fit_class_bank(bank, torch.from_numpy(clips), labels, chosen).embeds)


def test_weight_where_texts_are_right_or_wrong():
    bank, _, labels = draw(0)
    texts = bank.embeds[0][torch.from_numpy(labels)]
    assert choose_clip_weight(bank, texts, labels) == 0.0
    assert choose_clip_weight(bank, texts, (labels + 1) % 3) > 0.0
    # One clip a class: the error rate of the texts.
    assert choose_clip_weight(bank, bank.embeds[0], [0, 1, 2]) == 0.0
    assert choose_clip_weight(bank, bank.embeds[0], [0, 2, 1]) == pytest.approx(2 / 3)


def test_refusals(tiny_folder):
    bank, clips, labels = draw(0)
    for wrong, message in (
        ((clips[:, :5], labels), "`video_embeds` must have shape"),
        ((clips[:2], labels), "`video_embeds` must have shape"),
        ((clips[:0], labels[:0]), "at least one clip"),
        ((clips * float("nan"), labels), "must be finite"),
        ((clips, labels + 1), "integers from 0 to 2"),
        ((clips, labels - 1), "integers from 0 to 2"),
        ((clips, labels + 0.5), "integers from 0 to 2"),
        ((clips, [bank.labels[i] for i in labels]), "integers from 0 to 2"),
        ((clips, labels, -1.0), "`clip_weight` must be"),
        ((clips, labels, float("nan")), "`clip_weight` must be"),
    ):
        with pytest.raises(ValueError, match=message):
            fit_class_bank(bank, *wrong)
    model, processor = load_encoder(tiny_folder), load_processor(tiny_folder)
    steps = ClassBank.build(
        model, processor, LABELS, descriptions={name: {"steps": ["a photo", name]} for name in LABELS}
    )
    with pytest.raises(ValueError, match="got a StepBank"):
        fit_class_bank(steps, clips, labels)


def test_shots_find_their_classes_by_name():
    bank, clips, labels = draw(0)
    shots = Shots(clips, labels, ["Class_2", "class 0", "elsewhere"], 1.0, None)
    fitted = shots.fit(bank)
    expected = fit_class_bank(bank, clips[labels != 2], np.array([2, 0])[labels[labels != 2]], 1.0)
    assert torch.equal(fitted.embeds, expected.embeds)
    others = ClassBank(["x", "y", "z"], bank.embeds)
    assert shots.fit(others) is others


def test_embedded_clips(tiny_folder, clip_folder):
    model, processor = load_encoder(tiny_folder), load_processor(tiny_folder)
    split = load_folder(clip_folder)
    bank = ClassBank.build(model, processor, split.class_names, "a {}")
    shots = embed_shots(model, bank, VideoDataset(split, processor, num_clips=2), batch_size=2)
    assert len(shots.labels) == 5 and len(shots.report.bad_videos) == 1
    assert shots.clip_weight == choose_clip_weight(bank, shots.video_embeds, shots.labels)
    videos = [video for video in split.videos["video"] if "broken" not in video]
    for video, label, embeds in zip(videos, shots.labels, shots.video_embeds, strict=True):
        views = processor(videos=video, num_clips=2, return_tensors="pt").pixel_values.flatten(0, -5)
        expected = torch.nn.functional.normalize(model.encode_videos(views), dim=-1).mean(dim=0)
        torch.testing.assert_close(embeds, torch.nn.functional.normalize(expected, dim=-1))
        assert split.class_names[label].lower().replace("_", "") in video.lower().replace("_", "")


def test_other_families(clip_folder, tmp_path):
    arguments = ["--do_fit", "--do_eval", "--train_dir", clip_folder, "--validation_dir", clip_folder]
    arguments += ["--templates", "a {}", "--clip_weight", 4, "--output_dir", tmp_path / "out", "--model_name_or_path"]
    refused = refusal(*arguments, make_rival("xclip", tmp_path / "xclip"))
    assert "(xclip) compares videos and texts by a score of its own" in refused
    out = run_again(*arguments, make_rival("clipseg", tmp_path / "clipseg"))
    assert read_json(out / "eval_results.json")["eval_top1"] == 1.0  # the videos themselves
    assert read_json(out / "fit_results.json") == {"clip_weight": 4.0, "train_samples": 5, "train_bad_videos": 1}


def test_bank_of_a_run(clip, tiny_folder, clip_folder, tmp_path, logged, capsys):
    load_processor(tiny_folder).tokenizer.save_pretrained(clip)
    arguments = ["--model_name_or_path", clip, "--do_fit", "--do_eval", "--train_dir", clip_folder]
    arguments += ["--validation_dir", clip_folder, "--templates", "a {}", "--learning_rate", 1]
    out = run(*arguments, "--output_dir", tmp_path / "out", "--horizontal_flip", 0, "--clip_weight", 2)
    unused = "--do_fit does not train. These options have no effect: --learning_rate, --horizontal_flip."
    assert unused in logged()
    answers = {line["video"]: line["predictions"] for line in read_lines(out / "predictions.jsonl")}
    model, processor, split = load_encoder(clip), load_processor(clip), load_folder(clip_folder)
    texts = ClassBank.build(model, processor, split.class_names, "a {}")
    bank = embed_shots(model, texts, VideoDataset(split, processor), clip_weight=2).fit(texts)
    torch.testing.assert_close(ClassBank.from_pretrained(out).embeds, bank.embeds)
    assert not (out / "model.safetensors").exists() and len(read_lines(out / "train_bad_videos.jsonl")) == 1
    settings = read_json(out / "eval_settings.json")
    assert settings["do_fit"] and settings["clip_weight"] == 2 and "learning_rate" not in settings

    # The bank answers the same in the library and in every command.
    classifier = load_classifier(clip)
    for answer in classify_videos(classifier, answers, class_bank=out):
        for one, expected in zip(answer.predictions, answers[answer.video], strict=True):
            assert one["label"] == expected["label"] and one["score"] == pytest.approx(expected["score"], abs=1e-5)
    video = next(iter(answers))
    found = find_segments(classifier, video, window=0.4, stride=0.4, class_bank=out)
    assert found.labels == ["GreenSquare", "red_circle"]
    assert classify([video, "--model", str(clip), "--class_bank", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "2 labels: GreenSquare, red_circle" in shown and f"{100 * answers[video][0]['score']:.1f} %" in shown
    for more, message in (
        (["--labels", "x"], "leave --labels out"),
        (["--step_score", "mean", "--templates", "{}"], "leave --templates, --step_score out"),
        ([], f"got {tmp_path}"),
    ):
        path = out if more else tmp_path
        with pytest.raises(SystemExit):
            classify([video, "--model", str(clip), "--class_bank", str(path), *more])
        assert message in capsys.readouterr().err

    # Training into the same folder leaves no bank of another model beside the new one.
    start = arguments.index("--do_fit")
    training = [*arguments[:start], "--do_train", *arguments[start + 1 :], "--max_train_steps", 1]
    training += ["--per_device_train_batch_size", 2, "--overwrite_output_dir"]
    run_again(*training, "--output_dir", out)
    assert (out / "model.safetensors").exists() and not (out / "class_bank.safetensors").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--do_train"], "--do_fit does not train"),
        (["--do_predict", "--videos", "x"], "leave --do_predict out"),
        (["--protocol", "zero_shot"], "without labelled videos"),
        (["--calibration", "x"], "fitted to texts"),
        (["--clip_weight", "-1"], "--clip_weight must be at least 0"),
    ],
)
def test_options(options, message, capsys):
    with pytest.raises(SystemExit):
        run("--do_fit", "--model_name_or_path", "m", "--train_dir", "x", "--output_dir", "x", *options)
    assert message in capsys.readouterr().err


def test_unreadable_clips(tiny_folder, clip_folder, tmp_path):
    model, processor = load_encoder(tiny_folder), load_processor(tiny_folder)
    for name in LABELS[:2]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.mp4").write_bytes(b"<html>404</html>")
    split = load_folder(tmp_path)
    bank = ClassBank.build(model, processor, split.class_names)
    with pytest.raises(DataError, match="None of the 2 labelled videos"):
        embed_shots(model, bank, VideoDataset(split, processor))
    model.score = None  # what only models with a score of their own have
    with pytest.raises(ModelError, match="a score of its own"):
        embed_shots(model, bank, VideoDataset(split, processor))
