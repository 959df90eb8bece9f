"""`ezclip compare`: statistics against published values, tables, and early errors."""

import importlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import yaml

import run_video_zeroshot
from ezclip import EZClipModel
from ezclip.cli import compare, experiments
from ezclip.cli.compare_table import as_markdown
from ezclip.errors import DataError
from ezclip.evaluation.comparison import UNREAD, compare_ranks
from ezclip.evaluation.metrics import TopKAccuracy
from ezclip.evaluation.statistics import accuracy_interval, holm, mcnemar, mean_per_class_interval
from ezclip.systems.macs import count_macs
from tests.helpers import ROOT, assert_same_predictions, make_clip, read_json, read_lines


# ---- Statistics ----


@pytest.mark.parametrize(
    ("hits", "videos", "interval"),
    # Newcombe, "Two-sided confidence intervals for the single proportion" (1998), table I, method 3
    [(81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605)), (0, 20, (0.0, 0.1611)), (1, 29, (0.0061, 0.1718))],
)
def test_wilson_intervals(hits, videos, interval):
    assert accuracy_interval(np.arange(videos) < hits) == pytest.approx(interval, abs=5e-5)


@pytest.mark.parametrize(
    ("only_first", "only_second", "p_value"),
    [
        (1, 7, 0.0703),  # Fagerland, Lydersen and Laake, "The McNemar test for binary matched-pairs data" (2013)
        (9, 2, 0.06543),  # Fay, "Exact McNemar's test and matching confidence intervals" (2016)
        (0, 0, 1.0),
        (4, 4, 1.0),
    ],
)
def test_exact_mcnemar(only_first, only_second, p_value):
    both = np.ones(21, bool)
    first = np.r_[both, np.ones(only_first, bool), np.zeros(only_second, bool), ~both]
    second = np.r_[both, np.zeros(only_first, bool), np.ones(only_second, bool), ~both]
    result = mcnemar(first, second)
    assert (result.only_first, result.only_second) == (only_first, only_second)
    assert result.p_value == pytest.approx(p_value, abs=5e-5)


def test_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0] and holm([0.2]) == [0.2] and holm([]) == []


def test_mean_per_class():
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(2, 9, 40), rng.random((40, 12))
    labels[labels == 5] = 6  # a class without videos does not count
    result = TopKAccuracy(keep_in_memory=True).compute(predictions=scores, references=labels)
    hits = scores.astype(np.float32).argmax(axis=1) == labels
    expected = np.mean([hits[labels == label].mean() for label in set(labels.tolist())])
    assert result["mean_class_top1"] == pytest.approx(expected) and expected > 0
    assert result["top1"] == pytest.approx(hits.mean())


def test_bootstrap_of_the_mean_per_class():
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1, 2], [400, 200, 50])
    hits = rng.random(650) < np.asarray([0.9, 0.5, 0.2])[labels]
    low, high = mean_per_class_interval(hits, labels, seed=3)
    parts = [hits[labels == label] for label in range(3)]
    deviation = np.sqrt(sum(part.var() / len(part) for part in parts)) / 3
    middle = np.mean([part.mean() for part in parts])
    assert (low, high) == pytest.approx((middle - 1.96 * deviation, middle + 1.96 * deviation), abs=0.1 * deviation)
    assert mean_per_class_interval(hits, labels, seed=3) == [low, high]
    # A single video of a class is no certainty.
    low, high = mean_per_class_interval(np.arange(20) < 15, np.arange(20))
    assert low < 0.65 and high > 0.85
    # Where all videos are alike, so are all resamples.
    assert mean_per_class_interval(np.ones(5, bool), np.arange(5)) is None


def test_missing_scipy(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    monkeypatch.delitem(sys.modules, "ezclip.evaluation.statistics")
    with pytest.raises(ImportError, match=r"pip install 'ezclip\[compare\]'"):
        importlib.import_module("ezclip.evaluation.statistics")


def test_compare_on_common_videos():
    labels = np.asarray([0, 0, 1, 1, 2, 2])
    ranks = {
        "a": np.asarray([0, 0, 0, 0, 1, UNREAD]),
        "b": np.asarray([UNREAD, 5, 0, 3, 0, 0]),
    }
    result = compare_ranks(ranks, labels)
    assert (result["num_videos"], result["num_compared_videos"], result["num_classes"]) == (6, 4, 3)
    a, b = result["systems"]["a"], result["systems"]["b"]
    assert (a["num_read_videos"], b["num_read_videos"]) == (5, 5)
    assert [a[name]["value"] for name in ("top1", "top5", "mean_class_top1")] == pytest.approx([3 / 4, 1, 2 / 3])
    assert [b[name]["value"] for name in ("top1", "top5", "mean_class_top1")] == pytest.approx([2 / 4, 3 / 4, 1 / 2])
    (pair,) = result["pairs"]
    assert (pair["only_first"], pair["only_second"], pair["p_value"]) == (2, 1, 1.0)
    assert pair["top1_difference"] == pytest.approx(1 / 4)
    with pytest.raises(DataError, match="no video that all systems could read"):
        compare_ranks({"a": np.asarray([0, UNREAD]), "b": np.asarray([UNREAD, 0])}, labels[:2])


def test_table_of_partly_read_videos():
    labels = np.asarray([0, 1, 1, 0])
    ranks = {"a": np.asarray([0, 0, 1, 0]), "b | c": np.asarray([0, 1, UNREAD, 0])}
    result = compare_ranks(ranks, labels) | {"num_views": 12, "speed": {"rounds": 0}}
    for name, top1 in (("a", 0.75), ("b | c", 2 / 3)):
        result["systems"][name] |= {
            **{"num_trained_parameters": 5_204_736, "macs_per_clip": 146_597_412_864, "clips_per_second": None},
            "eval_results": {"eval_top1": top1},
        }
    text = as_markdown(result)
    assert text.startswith("4 videos, 2 classes, 12 views of each; compared on the 3 that all systems could read.")
    assert "a 4, 75.0 % right; b | c 3, 66.7 % right." in text
    assert r"| b \| c | 66.7 (20.8-93.9) | 100.0 (43.9-100.0) | 50.0 (" in text
    assert "| a | 100.0 (43.9-100.0) | 100.0 (43.9-100.0) | 100.0 | 5.205 | 1759 | - |" in text
    assert r"| a | b \| c | +33.3 | 1 | 0 | 1 | 1 |" in text


# ---- The script ----


def run(systems: dict, out, *argv) -> dict:
    """Compare in this process; returns what is written."""
    path = out.parent / "systems.yaml"
    path.write_text(yaml.safe_dump(systems, sort_keys=False), encoding="utf-8")
    compare.main([str(path), "--use_cpu", "--speed_rounds", "0", "--output_dir", str(out), *map(str, argv)])
    return read_json(out / "comparison.json")


def error_of(capsys, systems: dict | str, out, *argv) -> str:
    """What the script says when it refuses, before it evaluates anything."""
    path = out.parent / "systems.yaml"
    path.write_text(systems if isinstance(systems, str) else yaml.safe_dump(systems, sort_keys=False))
    with pytest.raises(SystemExit) as caught:
        compare.main([str(path), "--use_cpu", "--output_dir", str(out), *map(str, argv)])
    assert caught.value.code not in (0, None)
    assert not list(out.rglob("predictions.jsonl"))
    return f"{caught.value.code} {capsys.readouterr().err}"


@pytest.fixture(scope="module")
def descriptions(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "descriptions.json"
    path.write_text('{"green square": ["a green square", "green"], "red circle": ["a red circle", "a photo of red"]}')
    return path


@pytest.fixture(scope="module")
def systems(tiny_folder, descriptions, tmp_path_factory):
    """Three models and settings, the first of them twice."""
    clip = tmp_path_factory.mktemp("models") / "clip"
    make_clip(clip, vocab_size=len(EZClipModel.from_pretrained(tiny_folder).get_input_embeddings().weight))
    return {
        "tiny": {"model_name_or_path": str(tiny_folder)},
        "described": {
            "model_name_or_path": str(tiny_folder),
            "templates": None,
            "class_descriptions": str(descriptions),
            "include_label": True,
        },
        "CLIP": {
            **{"model_name_or_path": str(clip), "preset": "clip", "tokenizer_name": str(tiny_folder)},
            **{"num_frames": 4, "ensemble": "embedding"},
        },
        "tiny again": {"model_name_or_path": str(tiny_folder)},
    }


@pytest.fixture
def data(clip_folder):
    return ["--validation_dir", clip_folder, "--templates", "a photo of {}", "{} moving"]


@pytest.fixture(scope="module")
def compared(systems, clip_folder, tmp_path_factory):
    """The output folder of a comparison."""
    out = tmp_path_factory.mktemp("compared") / "out"
    run(
        systems, out, "--validation_dir", clip_folder, "--templates", "a photo of {}", "{} moving", "--speed_rounds", 2
    )
    return out


@pytest.mark.parametrize("name", ["tiny", "described", "CLIP"])
def test_same_predictions_as_run(compared, systems, data, tmp_path, name):
    options = [
        f"--{option}" if value is True else f"--{option}={value}" for option, value in systems[name].items() if value
    ]
    shared = data[:2] if name == "described" else data
    run_video_zeroshot.main(["--use_cpu", "--do_eval", *options, *map(str, shared), "--output_dir", str(tmp_path)])
    for file in ("predictions.jsonl", "bad_videos.jsonl"):
        assert read_lines(compared / name / file) == read_lines(tmp_path / file)
    expected = read_json(tmp_path / "eval_results.json")
    assert read_json(compared / name / "eval_results.json") == expected
    system = read_json(compared / "comparison.json")["systems"][name]
    assert system["eval_results"] == expected
    for accuracy in ("top1", "top5", "mean_class_top1"):
        assert system[accuracy]["value"] == pytest.approx(expected[f"eval_{accuracy}"])


def test_pairs_of_systems(compared):
    result = read_json(compared / "comparison.json")
    assert (result["num_videos"], result["num_compared_videos"], result["num_classes"]) == (6, 5, 2)
    pairs = {tuple(pair["systems"]): pair for pair in result["pairs"]}
    assert len(pairs) == 6
    same = pairs["tiny", "tiny again"]
    assert (same["only_first"], same["only_second"], same["p_value"], same["top1_difference"]) == (0, 0, 1.0, 0.0)
    assert read_lines(compared / "tiny" / "predictions.jsonl") == read_lines(
        compared / "tiny again" / "predictions.jsonl"
    )
    assert read_lines(compared / "tiny" / "predictions.jsonl") != read_lines(
        compared / "described" / "predictions.jsonl"
    )


def test_costs_and_speeds(compared, systems, tiny_folder):
    result = read_json(compared / "comparison.json")
    tiny, clip = (result["systems"][name] for name in ("tiny", "CLIP"))
    model = EZClipModel.from_pretrained(tiny_folder)
    assert tiny["num_trained_parameters"] == model.num_parameters(only_trainable=True) > 0
    assert (tiny["macs_per_clip"], tiny["num_frames"]) == (count_macs(model), 8)
    assert clip["num_trained_parameters"] == 0 and clip["num_frames"] == 4
    assert clip["macs_per_clip"] < tiny["macs_per_clip"] / 2
    speeds = {name: system["clips_per_second"] for name, system in result["systems"].items()}
    assert speeds["tiny"]["against"] == {"system": "tiny", "ratio": 1.0, "range": [1.0, 1.0]}
    assert speeds["tiny"] == speeds["described"] == speeds["tiny again"] != speeds["CLIP"]
    ratio = speeds["CLIP"]["median"] / speeds["tiny"]["median"]
    assert speeds["CLIP"]["against"]["ratio"] == pytest.approx(ratio) and len(speeds["CLIP"]["rounds"]) == 2
    assert (result["speed"]["rounds"], result["speed"]["batch_size"]) == (2, 8)


def test_table(compared):
    text = (compared / "comparison.md").read_text(encoding="utf-8")
    assert text.startswith("6 videos, 2 classes; compared on 5: no system could read the others.")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    systems, pairs = rows[:6], rows[6:]
    assert [row[0] for row in systems[2:]] == ["tiny", "described", "CLIP", "tiny again"]
    assert len(pairs) == 2 + 6 and all(len(row) == 7 for row in rows)
    (same,) = [row for row in pairs if row[:2] == ["tiny", "tiny again"]]
    assert same[2:] == ["+0.0", "0", "0", "1", "1"]


def test_resume_after_interruption(systems, data, tmp_path, monkeypatch, capsys):
    evaluated = []
    predict = experiments.predict

    def cut_off(*args, **kwargs):
        evaluated.append(kwargs["desc"])
        if len(evaluated) == 2:
            raise KeyboardInterrupt
        return predict(*args, **kwargs)

    two = {name: systems[name] for name in ("tiny", "described")}
    monkeypatch.setattr(experiments, "predict", cut_off)
    with pytest.raises(SystemExit, match="130"):
        run(two, tmp_path / "out", *data)
    assert (tmp_path / "out" / "tiny" / "predictions.jsonl").is_file()
    result = run(two, tmp_path / "out", *data)
    assert len(evaluated) == 3 and list(result["systems"]) == ["tiny", "described"]
    # One more system; those that are there are kept.
    result = run({**two, "tiny again": systems["tiny again"]}, tmp_path / "out", *data)
    assert len(evaluated) == 4 and len(result["pairs"]) == 3
    assert result["systems"]["tiny"]["eval_results"]["eval_samples"] == 5

    def refusal(*argv) -> str:
        with pytest.raises(SystemExit) as caught:
            run(two, tmp_path / "out", *argv)
        return str(caught.value.code)

    assert "Changed: num_clips: 1 → 2. " in refusal(*data, "--num_clips", 2)
    lines = tmp_path / "out" / "tiny" / "predictions.jsonl"
    lines.write_text(lines.read_text().split("\n", 1)[1])
    assert "4 videos instead of 5" in refusal(*data)
    lines.unlink()
    assert f"Remove {lines.parent}, and it is predicted again" in refusal(*data)
    assert len(evaluated) == 4


def test_says_what_was_understood(data, tmp_path, capsys):
    (tmp_path / "systems.yaml").write_text(yaml.safe_dump({name: {"model_name_or_path": "gone"} for name in "ab"}))
    with pytest.raises(SystemExit, match="No model at 'gone'"):
        compare.main([str(tmp_path / "systems.yaml"), "--use_cpu", "--output_dir", str(tmp_path), *map(str, data)])
    expected = f"Test: 6 videos, 2 classes (class folders of {data[1]}): GreenSquare, red_circle\n"
    assert capsys.readouterr().out == expected


def test_changed_weights(tiny_folder, data, tmp_path, capsys):
    model = EZClipModel.from_pretrained(tiny_folder)
    folder = tmp_path / "model"
    system = {"a": {"model_name_or_path": str(folder), "tokenizer_name": str(tiny_folder)}}
    model.save_pretrained(folder)
    run(system, tmp_path / "out", *data)
    model.vision_model.encoder.layers[0].temporal_prompt.data += 0.1
    model.save_pretrained(folder)
    with pytest.raises(SystemExit) as caught:
        run(system, tmp_path / "out", *data)
    assert "Changed: the weights of the model. " in str(caught.value.code)
    (tmp_path / "out" / "a" / "notes.txt").write_text("mine")
    before = (tmp_path / "out" / "a" / "predictions.jsonl").read_text()
    run(system, tmp_path / "out", *data, "--overwrite_output_dir")
    assert (tmp_path / "out" / "a" / "predictions.jsonl").read_text() != before
    assert (tmp_path / "out" / "a" / "notes.txt").is_file()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classdescriptions": "a.json"}, "got 'classdescriptions'"),
        ({"do_train": True}, "got 'do_train'"),
        ({"num_frames": "many"}, "must be a whole number, got 'many'"),
        ({"preset": "clop"}, "got 'clop'; the nearest is clip"),
        ({"model_name_or_path": None}, "described has no model_name_or_path"),
        ({"model_name_or_path": "gone"}, "described: No model at 'gone'"),
        ({"class_descriptions": "gone.json"}, "described: gone.json cannot be read"),
        ({"class_descriptions": None}, "described: include_label and input_conditioning are for class_descriptions"),
        ({"templates": ["no place"]}, "described: A template must have one {}"),
        ({"ensemble": "probability"}, "described: --ensemble probability needs one text"),
        ({"num_frames": 4}, "does not fit the configuration asked for"),
        ({"temporal_head": "lstm"}, "was not trained with temporal head (lstm)"),
    ],
)
def test_bad_system(systems, data, tmp_path, capsys, changes, message):
    content = {"tiny": systems["tiny"], "described": {**systems["described"], **changes}}
    assert message in error_of(capsys, content, tmp_path / "out", *data)


def test_class_without_text(systems, data, tmp_path, capsys):
    texts = tmp_path / "texts.json"
    texts.write_text(json.dumps({"red circle": "a red circle"}))
    content = {"tiny": systems["tiny"], "CLIP": {**systems["CLIP"], "class_descriptions": str(texts)}}
    message = error_of(capsys, content, tmp_path / "out", *data)
    assert "CLIP: 1 of 2 classes have no description: 'GreenSquare'" in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: {model_name_or_path: x", "systems.yaml is not valid YAML"),
        ("", "must name systems"),
        ("- a\n- b\n", "must name systems"),
        ("a:\n", "systems.yaml: a must be a mapping"),
        ("a: {model_name_or_path: x}\nb: {model_name_or_path: x}\na: {model_name_or_path: y}\n", 'duplicate key "a"'),
        ("a: {model_name_or_path: x, preset: clip, preset: tear}\n", 'duplicate key "preset"'),
        ("16: {model_name_or_path: x}\n", "the key 16 must be a string"),
        ("a: {model_name_or_path: x}\nA: {model_name_or_path: x}\n", "in two spellings"),
        ("comparison.md: {model_name_or_path: x}\n", "is the name of a file that is written"),
        (f"{'n' * 201}: {{model_name_or_path: x}}\n", "is longer than 200 bytes"),
        ("a/b: {model_name_or_path: x}\n", "'a/b' cannot be the name of a folder"),
    ],
)
def test_bad_systems_file(data, tmp_path, capsys, content, message):
    assert message in error_of(capsys, content, tmp_path / "out", *data)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((), "Give one of --validation_dir, --validation_list, --dataset_name"),
        (("--validation_dir", "gone"), "gone is not a folder"),
        (("--validation_dir", "a", "--validation_list", "b"), "Give one of"),
        (("--validation_dir", "a", "--label_list", "b"), "class folders name themselves"),
        (("--validation_dir", "a", "--do_train"), "--do_train"),
        (("--validation_dir", "a", "--speed_rounds", -1), "--speed_rounds must be at least 0"),
        (("--validation_dir", "a", "--num_clips", 0), "--num_clips must be at least 1"),
    ],
)
def test_bad_options(systems, tmp_path, capsys, argv, message):
    assert message in error_of(capsys, systems, tmp_path / "out", *argv)


@pytest.mark.slow
def test_two_processes(compared, systems, data, tmp_path):
    path = tmp_path / "systems.yaml"
    path.write_text(yaml.safe_dump({"tiny": systems["tiny"], "CLIP": systems["CLIP"]}, sort_keys=False))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*torchrun, ROOT / "scripts" / "compare.py", path, "--use_cpu", "--speed_rounds", "1", *data]
    command += ["--output_dir", tmp_path / "out", "--per_device_eval_batch_size", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False, env=environment
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("| system |") == 1
    for name in ("tiny", "CLIP"):
        lines = [read_lines(out / name / "predictions.jsonl") for out in (tmp_path / "out", compared)]
        assert_same_predictions(*lines)
        assert len(lines[0]) == 5
    actual, expected = (read_json(out / "comparison.json") for out in (tmp_path / "out", compared))
    for name in ("tiny", "CLIP"):
        for accuracy in ("top1", "top5", "mean_class_top1"):
            assert actual["systems"][name][accuracy] == expected["systems"][name][accuracy]
