"""`ezclip run --protocol`: experiments, results, option files and resuming."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from accelerate.state import AcceleratorState

import run_video_zeroshot
from ezclip.cli.arguments import parse_args
from ezclip.utils.synthetic_clips import write_video
from tests.helpers import ROOT, random_clip


CLASSES = ["red circle", "green square", "blue circle", "red square"]


@pytest.fixture(scope="session")
def data_set(tmp_path_factory):
    """Lists of a data set as they are published: paths of another machine, ids, a label list, videos in one folder."""
    root = tmp_path_factory.mktemp("data set")
    lines = {"train": [], "test1": [], "test2": []}
    for label, name in enumerate(CLASSES):
        for number, part in enumerate(["train"] * (5 - label) + ["test1", "test2"]):
            file = f"{name.replace(' ', '_')}_{number}.mp4"
            (root / "videos").mkdir(exist_ok=True)
            write_video(root / "videos" / file, random_clip(10 * label + number))
            lines[part].append(f"/authors/disk/videos/{file} 12 {label}")
    for part, content in lines.items():
        (root / f"{part}.txt").write_text("\n".join(content) + "\n")
    rows = "".join(f"{label},{name}\n" for label, name in enumerate(CLASSES))
    (root / "labels.csv").write_text(f"id,name\n{rows}")
    (root / "subset1.csv").write_text("0,blue circle\n1,red square\n")
    (root / "subset2.csv").write_text("0,red circle\n1,red square\n2,green square\n")
    (root / "descriptions.json").write_text(json.dumps({name: f"a {name}" for name in CLASSES}))
    return root


@pytest.fixture
def options(tiny_folder, data_set):
    """Options that all protocols share."""
    arguments = [
        "--use_cpu",
        "--model_name_or_path",
        tiny_folder,
        "--list_root",
        data_set,
        "--label_list",
        "labels.csv",
    ]
    arguments += ["--video_root", data_set / "videos", "--templates", "a {}"]
    return list(map(str, arguments))


TRAINING = ["--do_train", "--train_list", "train.txt", "--per_device_train_batch_size", 2, "--max_train_steps", 2]


def run(*arguments, output_dir) -> dict:
    AcceleratorState._reset_state(reset_partial_state=True)
    run_video_zeroshot.main([*map(str, arguments), "--output_dir", str(output_dir)])
    return json.loads((output_dir / "protocol_results.json").read_text())


def refusal(*arguments, output_dir, capsys) -> str:
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(SystemExit) as caught:
        run_video_zeroshot.main([*map(str, arguments), "--output_dir", str(output_dir)])
    return f"{caught.value.code} {capsys.readouterr().err}"


def top1(folder: Path) -> float:
    return json.loads((folder / "eval_results.json").read_text())["eval_top1"]


def test_zero_shot_data_sets(options, data_set, tmp_path, capsys):
    datasets = {
        "whole": {"validation_list": ["test1.txt", "test2.txt"], "label_list": "labels.csv", "video_root": "videos"},
        "part": {
            "validation_list": "test1.txt",
            "label_list": "labels.csv",
            "video_root": "videos",
            "class_subset": ["subset1.csv", "subset2.csv"],
            "class_descriptions": "descriptions.json",
        },
    }
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(datasets))
    arguments = [*options, "--protocol", "zero_shot", "--eval_datasets", tmp_path / "data.yaml", *TRAINING]
    arguments[arguments.index("--video_root") + 1] = data_set
    results = run(*arguments, output_dir=tmp_path / "out")
    assert set(results["summary"]) == {"whole", "part"}
    for name, row in results["summary"].items():
        scores = [top1(tmp_path / "out" / name / f"split{number}") for number in (1, 2)]
        assert row["top1"]["mean"] == pytest.approx(sum(scores) / 2) and row["top1"]["num_runs"] == 2
    # Templates hold for the data sets that have no texts of their own, and a run that is finished is not run again.
    scores = {}
    for template in ("a {}", "moving {}"):
        again = [template if value == "a {}" else value for value in arguments]
        run(*again, "--max_train_steps", 1, output_dir=tmp_path / template)
        scores[template] = [
            (tmp_path / template / name / "split1" / "predictions.jsonl").read_text() for name in ("whole", "part")
        ]
    assert scores["a {}"][0] != scores["moving {}"][0]
    trained = (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns
    assert run(*arguments, "--resume_from_checkpoint", "latest", output_dir=tmp_path / "out") == results
    assert (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns == trained
    lines = (tmp_path / "out" / "part" / "split2" / "predictions.jsonl").read_text().splitlines()
    assert len(lines) == 3
    assert {p["label"] for p in json.loads(lines[0])["predictions"]} == {"red circle", "red square", "green square"}
    assert (tmp_path / "out" / "model.safetensors").is_file()  # trained once
    assert "| whole | " in capsys.readouterr().out


def test_zero_shot_on_drawn_classes(options, tmp_path):
    arguments = [*options, "--protocol", "zero_shot", "--validation_list", "test1.txt", "--num_classes", 3]
    results = run(*arguments, "--num_seeds", 2, "--seed", 4, output_dir=tmp_path / "out")
    assert results["summary"]["test"]["top1"]["num_runs"] == 2
    drawn = [(tmp_path / "out" / "splits" / "test" / f"split{n}" / "labels.csv").read_text() for n in (1, 2)]
    assert all(len(text.splitlines()) == 4 for text in drawn) and drawn[0] != drawn[1]


@pytest.mark.parametrize("protocol", ["base_to_novel", "few_shot"])
def test_drawn_protocols(options, tmp_path, capsys, protocol):
    shots = ["--num_shots", 2] if protocol == "base_to_novel" else ["--num_shots", 1, 2]
    arguments = [*options, "--protocol", protocol, *TRAINING, "--validation_list", "test1.txt", *shots]
    arguments += ["--num_seeds", 2, "--seed", 7]
    results = run(*arguments, output_dir=tmp_path / "out")
    folders = {path.parent for path in (tmp_path / "out").rglob("results.json")}
    if protocol == "base_to_novel":
        assert folders == {tmp_path / "out" / "seed7", tmp_path / "out" / "seed8"}
        for name in ("seed7", "seed8"):
            run_results = results["summary"]["runs"][name]
            assert run_results["base"] == top1(tmp_path / "out" / name / "base")
            assert run_results["novel"] == top1(tmp_path / "out" / name / "novel")
        # The base half is the more frequent one.
        labels = (tmp_path / "out" / "seed7" / "splits" / "train" / "labels.csv").read_text()
        assert "red circle" in labels and "green square" in labels and "red square" not in labels
    else:
        assert folders == {tmp_path / "out" / f"{k}_shots" / f"seed{s}" for k in (1, 2) for s in (7, 8)}
    for folder in folders:
        drawn = (folder / "splits" / "train" / "list.txt").read_text().splitlines()
        per_class = [sum(line.endswith(f" {label}") for line in drawn) for label in range(4)]
        assert len(set(per_class) - {0}) == 1

    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("Train ", "Test"))]
    if protocol == "base_to_novel":
        drawn_from = "2 of the 4 classes of"
        assert [line.partition(" videos")[0] for line in lines] == [
            *("Train seed7: 4", "Test base: 2", "Test novel: 2", "Train seed8: 4")
        ]
    else:
        drawn_from = "1 per class, drawn with seed 7 from"
        assert len(lines) == 5 and lines[0].startswith("Train 1_shots/seed7: 4 videos, 4 classes (")
    assert drawn_from in lines[0] and "train.txt with the classes of" in lines[0]
    assert lines[0].endswith(("red circle, green square", "green square, red circle")) == (protocol == "base_to_novel")
    assert lines[-1].endswith(")")  # classes are named once

    # A finished run is not touched without being asked to, and cut off in the middle it goes on.
    assert "holds the results of an earlier run" in refusal(*arguments, output_dir=tmp_path / "out", capsys=capsys)
    last = max(folders)
    before = {folder: (folder / "model.safetensors").stat().st_mtime_ns for folder in folders}
    shutil.rmtree(last)
    again = run(*arguments, "--resume_from_checkpoint", "latest", output_dir=tmp_path / "out")
    assert again == results
    changed = {folder for folder in folders if (folder / "model.safetensors").stat().st_mtime_ns != before[folder]}
    assert changed == {last}
    other = [*arguments, "--resume_from_checkpoint", "latest", "--learning_rate", 1.0]
    assert "learning_rate" in refusal(*other, output_dir=tmp_path / "out", capsys=capsys)

    # What was drawn is what its saved list says.
    saved = last / "splits" / "train"
    arguments = [*options[:3], "--do_train", "--train_list", saved / "list.txt", "--train_label_list"]
    arguments += [saved / "labels.csv", "--templates", "a {}", *TRAINING[3:], "--seed", 8]
    AcceleratorState._reset_state(reset_partial_state=True)
    run_video_zeroshot.main([*map(str, arguments), "--output_dir", str(tmp_path / "by_list")])
    logs = [json.loads((folder / "train_results.json").read_text())["log"] for folder in (tmp_path / "by_list", last)]
    assert logs[0] == logs[1]


def test_published_lists(options, tmp_path, capsys):
    for number, files in enumerate((("a_0", "b_0"), ("a_1", "b_1")), start=1):
        names = [file.replace("a", "red_circle").replace("b", "green_square") for file in files]
        (tmp_path / f"s{number}.txt").write_text("".join(f"/x/{name}.mp4 12 {i}\n" for i, name in enumerate(names)))
    (tmp_path / "base.csv").write_text("id,name\n0,red circle\n1,green square\n")
    (tmp_path / "novel.csv").write_text("id,name\n0,blue circle\n1,red square\n")
    (tmp_path / "base.txt").write_text("/x/red_circle_5.mp4 12 0\n/x/green_square_4.mp4 12 1\n")
    (tmp_path / "novel.txt").write_text("/x/blue_circle_3.mp4 12 0\n/x/red_square_2.mp4 12 1\n")
    arguments = [*options, "--protocol", "base_to_novel", *TRAINING]
    for option, value in (("--list_root", tmp_path), ("--label_list", "base.csv")):
        arguments[arguments.index(option) + 1] = value
    position = arguments.index("--train_list") + 1
    arguments[position : position + 1] = ["s1.txt", "s2.txt"]
    arguments += ["--validation_list", "base.txt", "--novel_list", "novel.txt", "--novel_label_list", "novel.csv"]
    results = run(*arguments, output_dir=tmp_path / "out")
    assert set(results["experiments"]) == {"list1", "list2"}
    assert results["summary"]["base"]["num_runs"] == 2

    # A given model, tested without training; of both halves as many videos as asked for.
    start = arguments.index("--do_train")
    given = [*arguments[:start], *arguments[arguments.index("--validation_list") :], "--max_eval_samples", 1]
    results = run(*given, output_dir=tmp_path / "given")
    assert [test["eval_samples"] for test in results["experiments"]["seed42"].values()] == [1, 1]
    given[given.index("novel.txt")], given[given.index("novel.csv")] = "base.txt", "base.csv"
    assert "base and novel" in refusal(*given, output_dir=tmp_path / "same", capsys=capsys)


def test_fully_supervised(options, tmp_path):
    arguments = [*options, "--protocol", "fully_supervised", *TRAINING, "--validation_list", "test1.txt"]
    results = run(*arguments, "--num_clips", 2, "--num_crops", 3, output_dir=tmp_path / "out")
    assert set(results["summary"]) == {"single_view", "multi_view"}
    one, several = (
        (tmp_path / "out" / "seed42" / name / "predictions.jsonl").read_text() for name in results["summary"]
    )
    assert one != several and len(one.splitlines()) == len(several.splitlines()) == 4


def test_options_without_value(tmp_path):
    (tmp_path / "run.yaml").write_text("learning_rate: null\nmixed_precision: no\ntemplates: a {}\n")
    arguments = [str(tmp_path / "run.yaml"), "--do_train", "--model_name_or_path", "m", "--output_dir", "x"]
    _, data_args, args = parse_args(arguments)
    assert (args.learning_rate, args.mixed_precision, data_args.templates) == (1e-4, "no", ["a {}"])


def test_command_line_overrides_file(options, data_set, tmp_path, capsys):
    content = {"protocol": "zero_shot", "list_root": str(data_set), "seed": 3, "templates": ["a {}"]}
    content["eval_datasets"] = {"d": {"validation_list": ["test1.txt"], "label_list": "labels.csv"}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(content))
    more = ["--model_name_or_path", options[2], "--video_root", data_set / "videos", "--use_cpu", "--seed", 5]
    results = run(tmp_path / "run.yaml", *more, output_dir=tmp_path / "out")
    assert results["summary"]["d"]["top1"]["num_runs"] == 1
    _, _, args = parse_args([str(tmp_path / "run.yaml"), *map(str, more), "--output_dir", "x"])
    assert args.seed == 5 and args.protocol == "zero_shot"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("learning_rat: 1", "got 'learning_rat'"),
        ("learning_rate: fast", "--learning_rate must be a number, got 'fast'"),
        ("learning_rate: true", "learning_rate must be a value, got True"),
        ("learning_rate: .nan", "--learning_rate must be a finite number"),
        ("seed: [3]", "seed must be a value, got [3]"),
        ("do_train: [true]", "do_train must be true or false, got [True]"),
        ("do_train: 3", "do_train must be true or false, got 3"),
        ("output_dir: {a: 1}", "output_dir must be a value, got {'a': 1}"),
        ("1: 2", "the key 1 must be a string"),
        ("seed: 1\nseed: 2", 'duplicate key "seed"'),
        ("do_train: true\ntrain_list: [train.txt]\nreport_to: nothing", "names no tracker"),
        ("do_train: true\nnum_shots: [2]", "--num_shots and --num_seeds are for a --protocol"),
        ("protocol: zero_shot\neval_datasets: {../d: {validation_list: x}}", "cannot be the name of a folder"),
        ("protocol: zero_shot\neval_datasets: {d: {num_clips: 2}}", "got 'num_clips'"),
        (
            "protocol: zero_shot\neval_datasets: {d: {max_eval_samples: x}}",
            "--max_eval_samples must be a whole number, got 'x'",
        ),
        ("protocol: one_shot", "got 'one_shot'; the nearest is few_shot"),
        ("- a list", "must be a mapping"),
        ("a: [", "is not valid YAML"),
        ("protocol: zero_shot\neval_datasets: {d: {validation_lists: x}}", "d: an option must be one of"),
        ("protocol: zero_shot\neval_datasets: {d: 3}", "must name data sets"),
        ("protocol: few_shot", "--protocol few_shot trains: add --do_train"),
        ("protocol: base_to_novel\nvalidation_list: [test1.txt]", "add --do_train"),
        ("protocol: zero_shot\neval_datasets: x.yaml\nvalidation_list: y", "--eval_datasets names all"),
        ("do_eval: true\nnovel_list: x.txt", "--novel_list is for --protocol base_to_novel"),
        ("do_train: true\neval_steps: 5", "add --do_eval, or a --protocol"),
        ("do_train: true\nearly_stopping_patience: 5", "need --eval_steps"),
        ("protocol: fully_supervised\ndo_train: true\nnum_shots: 3", "leave it out"),
        ("protocol: base_to_novel\neval_datasets: x.yaml", "--eval_datasets is for --protocol zero_shot"),
    ],
)
def test_bad_option_file(options, tmp_path, capsys, content, message):
    (tmp_path / "run.yaml").write_text(content)
    assert message in refusal(tmp_path / "run.yaml", *options, output_dir=tmp_path / "out", capsys=capsys)


@pytest.mark.parametrize("path", sorted((ROOT / "ezclip" / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_option_file(path):
    arguments = [str(path), "--output_dir", "out", "--model_name_or_path", "model"]
    model_args, data_args, args = parse_args(arguments)
    assert args.protocol is not None and model_args.model_name_or_path == "model"
    content = yaml.safe_load(path.read_text())
    datasets = content.pop("eval_datasets", None)
    assert data_args.eval_datasets == (None if datasets is None else str(path.parent / datasets))
    for name, value in content.items():
        holder = next(group for group in (model_args, data_args, args) if hasattr(group, name))
        if name != "model_name_or_path":
            assert getattr(holder, name) == value


def test_fit_in_place_of_training(options, tmp_path, capsys):
    shared = [*options, "--protocol", "base_to_novel", "--train_list", "train.txt", "--validation_list", "test1.txt"]
    shared += ["--num_shots", 2, "--num_seeds", 2, "--seed", 7]
    arguments = [*shared, "--do_fit", "--clip_weight", 2]
    out, alone = tmp_path / "out", tmp_path / "alone"
    results = run(*arguments, output_dir=out)
    banks = [out / name / "class_bank.safetensors" for name in ("seed7", "seed8")]
    assert results["summary"]["base"]["num_runs"] == 2 and all(bank.is_file() for bank in banks)
    # With the weight 0 the texts answer alone, and for novel classes they always do.
    run(*arguments, "--clip_weight", 0, "--num_seeds", 1, output_dir=alone)
    for part, is_same in (("base", False), ("novel", True)):
        texts = [(folder / "seed7" / part / "predictions.jsonl").read_text() for folder in (out, alone)]
        assert (texts[0] == texts[1]) == is_same

    # Finished experiments are kept, and only those that were made in the same way.
    resumed = [*arguments, "--resume_from_checkpoint", "latest"]
    kept = banks[1].stat().st_mtime_ns
    shutil.rmtree(banks[0].parent)
    assert run(*resumed, output_dir=out) == results
    assert banks[0].is_file() and banks[1].stat().st_mtime_ns == kept
    assert "clip_weight" in refusal(*resumed, "--clip_weight", 1, output_dir=out, capsys=capsys)
    trained = [*shared, *TRAINING, "--resume_from_checkpoint", "latest"]
    assert "do_fit" in refusal(*trained, output_dir=out, capsys=capsys)
