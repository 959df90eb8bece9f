"""`ezclip demo`: quick tests of clips and tables, slow tests of its accuracies."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from transformers import SiglipModel

import run_video_zeroshot
from ezclip.cli import demo
from ezclip.cli.arguments import parse_args
from ezclip.hub.model_card import is_untouched
from ezclip.systems.loading import load_model
from ezclip.utils import synthetic_clips
from processing_ezclip import EZClipProcessor
from tests.helpers import ROOT, read_lines
from video_ezclip import read_frames


def test_left_is_right_backwards():
    clips = {}
    for direction in ("left", "right"):
        clips[direction] = synthetic_clips.draw_clip(np.random.default_rng(3), "red", "triangle", direction)
    assert clips["left"].shape == (8, 64, 64, 3)
    assert np.array_equal(clips["left"], clips["right"][::-1])
    assert not np.array_equal(clips["left"][0], clips["left"][-1])


@pytest.mark.parametrize("shape", synthetic_clips.SHAPES)
def test_shapes_stay_in_the_picture(shape):
    frames = synthetic_clips.draw("red", shape, np.array([[0.5, 0.5]]), 0.2, 0.0)
    area = (frames[0, ..., 0] > 115).mean()
    assert 0.05 < area < 0.17
    rng = np.random.default_rng(0)
    for direction in synthetic_clips.DIRECTIONS:
        clip = synthetic_clips.draw_clip(rng, "red", shape, direction)
        lit = (clip[..., 0].astype(int) - clip[:, :1, :1, 0]) > 100
        counts = lit.sum(axis=(1, 2))
        assert counts.min() > 0.9 * counts.max()


def test_rendered_files(tmp_path):
    frames = synthetic_clips.draw_clip(np.random.default_rng(0), "blue", "cross", "up")
    synthetic_clips.write_video(tmp_path / "clip.mp4", frames)
    decoded, metadata = read_frames(tmp_path / "clip.mp4")
    assert metadata.frames_indices == list(range(8))
    assert np.abs(decoded.astype(int) - frames).mean() < 4


def test_captions_of_stills():
    rng = np.random.default_rng(0)
    captions = set()
    for _ in range(200):
        frames, caption = synthetic_clips.draw_still(rng)
        assert frames.shape == (1, 64, 64, 3)
        captions.add(re.sub(r"^a \w+ \w+ at the ", "", caption))
    rows, columns = ("up", "", "down"), ("left", "", "right")
    assert captions == {f"{row} {column}".strip() or "middle" for row in rows for column in columns}


def test_word_tokenizer():
    tokenizer = demo.word_tokenizer(["a", "red", "circle"])
    inputs = tokenizer(["a Red circle", "a ghost"], padding=True, return_tensors="pt")
    assert inputs.input_ids.tolist() == [[5, 2, 3, 4, 6], [5, 2, 1, 6, 0]]
    assert inputs.attention_mask.sum(dim=1).tolist() == [5, 4]


def test_table_and_scores():
    results = {"chance": demo.score(0.02, 0.06), "with_temporal_prompts": demo.score(0.9, 0.6)}
    assert results["with_temporal_prompts"]["harmonic_mean"] == pytest.approx(0.72)
    assert demo.score(0.0, 0.0)["harmonic_mean"] == 0.0
    assert "with temporal prompts  90.0 %  60.0 %  72.0 %         ██████████████▍" in demo.as_table(results)


@pytest.fixture
def small_demo(monkeypatch):
    """A demo with few clips and steps, which learns nothing."""
    for name, size in {"CLIPS_PER_CLASS": {"train": 2, "base": 1, "novel": 1}, "NUM_STILLS": 128}.items():
        monkeypatch.setattr(demo, name, size)
    monkeypatch.setattr(synthetic_clips, "CLIPS_PER_CLASS", demo.CLIPS_PER_CLASS)
    monkeypatch.setattr(synthetic_clips, "COLOURS", {name: synthetic_clips.COLOURS[name] for name in ("red", "green")})
    monkeypatch.setattr(
        synthetic_clips, "DIRECTIONS", {name: synthetic_clips.DIRECTIONS[name] for name in ("left", "right")}
    )
    monkeypatch.setattr(demo, "PRETRAINING_STEPS", 1)
    monkeypatch.setattr(demo, "TRAIN_STEPS", dict.fromkeys(demo.TRAIN_STEPS, 1))
    monkeypatch.setattr(demo, "DEMO_RECIPE", replace(demo.DEMO_RECIPE, per_device_train_batch_size=8))


def test_several_seeds(small_demo, tmp_path, capsys):
    accelerator = Accelerator(cpu=True)
    (tmp_path / "seed6").mkdir()
    (tmp_path / "seed6" / "demo_results.json").write_text('{"chance": {"base": 0.08')  # cut off: to be run again
    results = demo.run_demo(tmp_path, accelerator, seed=5, num_seeds=2)
    assert {"tower": "clip", **results} == json.loads((tmp_path / "demo_results.json").read_text())
    runs = {seed: json.loads((tmp_path / seed / "demo_results.json").read_text()) for seed in ("seed5", "seed6")}
    assert set(results) == {"chance", "with_temporal_prompts", "without_temporal_prompts"}
    for name, row in results.items():
        assert row["runs"] == {seed: run[name] for seed, run in runs.items()}
        values = [run[name]["novel"] for run in runs.values()]
        assert row["novel"]["mean"] == pytest.approx(np.mean(values))
        assert row["novel"]["std"] == pytest.approx(np.std(values, ddof=1))
    shown = capsys.readouterr().out
    assert "Seeds 5 to 6, mean ± standard deviation" in shown
    assert re.search(r"\nchance  +8\.3 ± 0\.0 %  +25\.0 ± 0\.0 %  +12\.5 ± 0\.0 % +█", shown)
    # Another seed is another demonstration, down to its clips.
    clips = [(tmp_path / seed / "videos/base/red circle moving left/00.mp4").read_bytes() for seed in runs]
    assert clips[0] != clips[1]

    # What is done is not done again.
    done = {name: demo.score(0.5, 0.25) for name in results}
    (tmp_path / "seed5" / "demo_results.json").write_text(json.dumps({"tower": "clip", **done}))
    again = demo.run_demo(tmp_path, accelerator, seed=5, num_seeds=2)
    for name, row in again.items():
        assert row["runs"] == {"seed5": done[name], "seed6": runs["seed6"][name]}
    shown = capsys.readouterr().out
    assert "Seed 5 was run before" in shown and "Seed 6 was run before" in shown and "EZ-CLIP" not in shown


def test_interrupted_second_run(small_demo, tmp_path, monkeypatch):
    """`ezclip demo` twice into one folder, the second time with Ctrl-C in the last evaluation."""
    accelerator = Accelerator(cpu=True)
    demo.run_demo(tmp_path, accelerator, seed=1)
    (tmp_path / "with_temporal_prompts" / "notes.txt").write_text("mine")

    def files() -> dict:
        paths = (path for path in tmp_path.rglob("*") if demo.UNFINISHED_NAME not in path.parts)
        return {path: path.read_bytes() for path in paths if path.is_file()}

    before, predict, calls = files(), demo.predict, []

    def interrupted(*args, **kwargs):
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return predict(*args, **kwargs)

    monkeypatch.setattr(demo, "predict", interrupted)
    with pytest.raises(KeyboardInterrupt):
        demo.run_demo(tmp_path, accelerator, seed=2)
    assert files() == before
    demo.run_demo(tmp_path, accelerator, seed=2)
    after = files()
    assert after.keys() == before.keys() and not (tmp_path / demo.UNFINISHED_NAME).exists()
    assert after[tmp_path / "with_temporal_prompts" / "model.safetensors"] not in before.values()
    assert after[tmp_path / "with_temporal_prompts" / "notes.txt"] == b"mine"
    # Predictions name the videos where they are now.
    for part in demo.PARTS:
        lines = read_lines(tmp_path / "with_temporal_prompts" / part / "predictions.jsonl")
        assert lines and all(Path(line["video"]).is_file() for line in lines)


def test_models_say_that_they_are_toys(small_demo, tmp_path, capsys):
    demo.run_demo(tmp_path, Accelerator(cpu=True), seed=1)
    assert "no real actions" in capsys.readouterr().out
    for name in ("clip", *demo.VARIANTS):
        card = (tmp_path / name / "README.md").read_text()
        assert "no real actions" in card and is_untouched(card)
        assert load_model(tmp_path / name, preset="clip" if name == "clip" else None).config.scope == demo.SCOPE
    assert load_model(tmp_path / "clip", True).config.scope == demo.SCOPE


def test_siglip(small_demo, tmp_path, capsys):
    """The demo on SigLIP, from the command line: a SigLIP of its own, and EZ-CLIP on its frozen towers."""
    # Results of another tower are no results of this one.
    (tmp_path / "seed3").mkdir()
    done = {name: demo.score(0.5, 0.25) for name in ("chance", *demo.VARIANTS)}
    (tmp_path / "seed3" / "demo_results.json").write_text(json.dumps({"tower": "clip", **done}))
    options = ["--tower", "siglip", "--seed", "3", "--num_seeds", "2", "--use_cpu", "--output_dir", str(tmp_path)]
    run_video_zeroshot.main(["--demo", *options])
    output = capsys.readouterr()
    assert "was run before" not in output.out and "no real actions" in output.out
    assert "Training SigLIP" in output.err and "Training CLIP" not in output.err
    assert json.loads((tmp_path / "demo_results.json").read_text())["tower"] == "siglip"

    folder = tmp_path / "seed3"
    assert json.loads((folder / "demo_results.json").read_text())["tower"] == "siglip"
    assert not (folder / "clip").exists()
    base, info = SiglipModel.from_pretrained(folder / "siglip", output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    processor = EZClipProcessor.from_pretrained(folder / "with_temporal_prompts")
    inputs = processor(
        videos=str(next((folder / "videos/novel").rglob("*.mp4"))), text=["a red cross"], return_tensors="pt"
    )
    assert inputs.input_ids.shape == (1, 16) and "attention_mask" not in inputs  # as SigLIP reads texts
    plain = load_model(folder / "siglip").eval()
    with torch.no_grad():
        frame_embeds = plain.get_video_features(inputs.pixel_values).frame_embeds[0]
        expected = base.get_image_features(inputs.pixel_values[0]).pooler_output
        text_embeds = plain.encode_texts({"input_ids": inputs.input_ids})
        expected_text = base.get_text_features(inputs.input_ids).pooler_output
    torch.testing.assert_close(frame_embeds, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(text_embeds, expected_text, rtol=0, atol=1e-6)
    for name, has_prompts in {"with_temporal_prompts": True, "without_temporal_prompts": False}.items():
        weights = load_model(folder / name).state_dict()
        assert all(torch.equal(weights[key], value) for key, value in base.state_dict().items())
        assert any("temporal_prompt" in key for key in weights) == has_prompts
        card = (folder / name / "README.md").read_text()
        assert "no real actions" in card and is_untouched(card)


def test_siglip_loss():
    torch.manual_seed(0)
    base, processor = demo.make_siglip(["a", "red", "green", "circle"])
    texts = processor(text=["a red circle", "a green circle", "a circle"], return_tensors="pt")
    outputs = base(pixel_values=torch.randn(3, 3, 32, 32), **texts, return_loss=True)
    loss = demo.sigmoid_loss(outputs.logits_per_image, torch.arange(3))
    torch.testing.assert_close(loss, outputs.loss)
    # Pairs of one label are positives: here, five of nine
    logits, labels = torch.full((3, 3), 2.0), torch.tensor([7, 7, 5])
    expected = (5 * np.log1p(np.exp(-2.0)) + 4 * np.log1p(np.exp(2.0))) / 3
    assert demo.sigmoid_loss(logits, labels).item() == pytest.approx(expected)


def test_tower_is_for_the_demo(capsys):
    for argv, name in ((["--do_eval", "--tower", "siglip"], "--demo"), (["--demo", "--tower", "resnet"], "siglip")):
        with pytest.raises(SystemExit):
            parse_args([*argv, "--output_dir", "out"])
        assert "--tower" in (shown := capsys.readouterr().err) and name in shown


def test_table_of_several_seeds():
    runs = {"seed0": demo.score(0.8, 0.9), "seed1": demo.score(0.9, 1.0)}
    names = ("chance", "with_temporal_prompts", "without_temporal_prompts")
    summary = demo.over_seeds({seed: {name: run for name in names} for seed, run in runs.items()})
    assert summary["chance"]["base"] == {
        "mean": pytest.approx(0.85),
        "std": pytest.approx(0.05 * 2**0.5),
        "num_runs": 2,
    }
    assert demo.as_table(summary).splitlines()[:2] == [
        "top-1 accuracy            base          novel         harmonic mean",
        "chance                    85.0 ± 7.1 %  95.0 ± 7.1 %  89.7 ± 7.1 %   ██████████████████",
    ]


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    command = [sys.executable, "-m", "accelerate.commands.launch", str(ROOT / "run_video_zeroshot.py"), "--demo"]
    result = subprocess.run(
        [*command, "--output_dir", "demo"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "harmonic mean" in result.stdout
    return folder / "demo"


@pytest.mark.slow
def test_demo_accuracies(demo_folder):
    results = json.loads((demo_folder / "demo_results.json").read_text())
    assert results["chance"]["base"] == pytest.approx(1 / 48) and results["chance"]["novel"] == pytest.approx(1 / 16)
    with_prompts, without = results["with_temporal_prompts"], results["without_temporal_prompts"]
    assert with_prompts["novel"] >= 0.7
    assert with_prompts["novel"] - without["novel"] >= 0.4
    for part, number in {"base": 240, "novel": 240}.items():
        lines = (demo_folder / "with_temporal_prompts" / part / "predictions.jsonl").read_text().splitlines()
        predictions = [json.loads(line) for line in lines]
        hits = sum(line["predictions"][0]["label"] == line["label"] for line in predictions)
        assert len(predictions) == number and hits / number == pytest.approx(with_prompts[part])


@pytest.mark.slow
def test_docs_on_the_demo(demo_folder):
    page = (ROOT / "docs" / "demo.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    result = subprocess.run(
        [sys.executable, "-c", block],
        cwd=demo_folder.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT)},  # also where the package is not installed
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    scores = json.loads(result.stdout.replace("'", '"'))
    assert set(scores) == {"red cross moving left", "red cross moving right"}
    assert torch.tensor(list(scores.values())).sum().item() == pytest.approx(1.0, abs=1e-4)
