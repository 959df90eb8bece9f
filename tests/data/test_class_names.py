"""Spellings of one class are one class, wherever class names come from."""

import shutil

import datasets
import pytest
import torch

from ezclip import ClassBank
from ezclip.data.lists import guess_first_id
from ezclip.data.sources import load_folder, load_hub_dataset, load_list
from ezclip.data.streaming import stream_hub_dataset
from ezclip.errors import DataError
from ezclip.report.reading import read_run
from processing_ezclip import label_key
from tests.helpers import error_of, run


def save_labels(folder, values, feature):
    folder.mkdir()
    columns = {"video": [f"{number}.mp4" for number in range(len(values))], "label": values}
    features = datasets.Features({"video": datasets.Value("string"), "label": feature})
    datasets.Dataset.from_dict(columns, features).to_parquet(folder / "test.parquet")
    return str(folder)


def test_keys():
    same = ["ApplyEyeMakeup", "apply eye makeup", "Apply_Eye-Makeup!", "APPLY  EYE MAKEUP"]
    assert len(set(map(label_key, same))) == 1
    assert label_key("Cafe\u0301") == label_key("caf\u00e9") and label_key("STRASSE") == label_key("straße")
    assert label_key("+") != label_key("-")


def test_hub_labels_with_an_odd_spelling(tmp_path, caplog):
    values = ["red circle", "blue square", "red circle", "Red_Circle", "blue square", None]
    split = load_hub_dataset(save_labels(tmp_path / "data", values, datasets.Value("string")))
    assert split.class_names == ["blue square", "red circle"]
    assert split.videos["label"][:] == [1, 0, 1, 1, 0, -1]
    assert "'red circle' = 'Red_Circle'" in caplog.text


def test_class_labels_with_an_odd_spelling(tmp_path, caplog):
    feature = datasets.ClassLabel(names=["clap", "red circle", "Red_circle"])
    split = load_hub_dataset(save_labels(tmp_path / "data", [0, 1, 2, 2], feature))
    assert split.class_names == ["clap", "Red_circle"] and split.videos["label"][:] == [0, 1, 1, 1]
    assert "merged" in caplog.text


def test_folders(clip_folder, tmp_path, caplog):
    shutil.copytree(clip_folder, tmp_path / "videos")
    for name in ("__MACOSX", "tmp", "notes"):
        (tmp_path / "videos" / name).mkdir()
    (tmp_path / "videos" / "notes" / "read me.txt").write_text("x")
    (tmp_path / "videos" / "Red Circle").mkdir()
    shutil.copyfile(clip_folder / "red_circle" / "a.mp4", tmp_path / "videos" / "Red Circle" / "z.mp4")
    split = load_folder(tmp_path / "videos")
    assert split.class_names == ["GreenSquare", "red_circle"]
    assert sorted(split.videos["label"][:]) == [0, 0, 0, 1, 1, 1, 1]
    assert "__MACOSX, notes, tmp" in caplog.text and "'red_circle' = 'Red Circle'" in caplog.text


def test_candidates_of_one_class_are_refused():
    with pytest.raises(ValueError, match="'red circle' and 'Red_Circle' are two spellings of one class"):
        ClassBank(["red circle", "clap", "Red_Circle"], torch.randn(1, 3, 4))


def test_candidates_of_one_class_are_refused_by_the_command(clip_folder, tiny_folder, tmp_path, capsys):
    data = ("--validation_dir", clip_folder, "--candidate_labels", "red circle, Red_Circle")
    said = error_of(capsys, "--model_name_or_path", tiny_folder, "--do_predict", *data, "--output_dir", tmp_path)
    assert "['red circle', 'Red_Circle']" in said


def test_report_matches_spellings_and_counts_others_apart(clip_folder, tiny_folder, tmp_path):
    data = ("--validation_dir", clip_folder, "--candidate_labels", "Red Circle, blue triangle")
    model = ("--model_name_or_path", tiny_folder, "--do_predict")
    out = run(*model, *data, "--output_dir", tmp_path / "out")
    read = read_run(out)
    assert read.class_names == ["Red Circle", "blue triangle"]
    assert (read.labels == 0).sum() == 3 and (read.labels == -1).sum() == 2  # GreenSquare is no candidate
    assert len(read.known) == 3
    assert any("2 videos have labels that are no candidates: 'GreenSquare' (2)" in note for note in read.notes)


def test_ids_of_all_lists_are_guessed_once(clip_folder, tmp_path, caplog):
    (tmp_path / "classInd.txt").write_text("1 GreenSquare\n2 red_circle\n")
    (tmp_path / "train.txt").write_text("GreenSquare/d.mp4 0\nred_circle/a.mp4 1\n")
    (tmp_path / "test.txt").write_text("red_circle/b 1.mp4 1\n")  # alone it would count from 1
    lists = [(tmp_path / "train.txt", "train"), (tmp_path / "test.txt", "test")]
    assert guess_first_id(lists, tmp_path / "classInd.txt") == 0
    assert "count from 0" in caplog.text
    split = load_list(tmp_path / "test.txt", tmp_path / "classInd.txt", clip_folder, first_id=0)
    assert split.class_names[split.videos["label"][0]] == "red_circle"


def test_one_guess_in_a_run(clip_folder, tiny_folder, tmp_path):
    (tmp_path / "classInd.txt").write_text("1 GreenSquare\n2 red_circle\n")
    (tmp_path / "one.txt").write_text("GreenSquare/d.mp4 0\nred_circle/a.mp4 1\n")
    (tmp_path / "two.txt").write_text("red_circle/b 1.mp4 1\n")
    lists = (
        "--validation_list",
        tmp_path / "one.txt",
        tmp_path / "two.txt",
        "--label_list",
        tmp_path / "classInd.txt",
    )
    protocol = ("--protocol", "zero_shot", "--video_root", clip_folder, "--output_dir", tmp_path / "out")
    out = run("--model_name_or_path", tiny_folder, *protocol, *lists)
    labels = [path.read_text() for path in sorted(out.rglob("predictions.jsonl"))]
    assert '"label": "red_circle"' in labels[1] and '"label": "GreenSquare"' not in labels[1].split("predictions")[0]


def test_streamed_ids_cannot_be_guessed(tmp_path):
    (tmp_path / "classInd.txt").write_text("1 clap\n2 jump\n")
    data = save_labels(tmp_path / "data", [1, 2, 1], datasets.Value("int64"))
    with pytest.raises(DataError, match="counts from 1"):
        stream_hub_dataset(data, label_list=tmp_path / "classInd.txt")
    assert load_hub_dataset(data, label_list=tmp_path / "classInd.txt").videos["label"][:] == [0, 1, 0]


def test_one_video_in_two_spellings(clip_folder, tmp_path):
    (tmp_path / "link").symlink_to(clip_folder)
    (tmp_path / "labels.csv").write_text("0,GreenSquare\n1,red_circle\n")
    lines = [f"{tmp_path}/link/red_circle/a.mp4 1", f"{clip_folder}/GreenSquare/../red_circle/a.mp4 1"]
    (tmp_path / "list.txt").write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match="the same video"):
        load_list(tmp_path / "list.txt", tmp_path / "labels.csv")
