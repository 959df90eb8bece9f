"""Sources of videos, label files, and the datasets built on them."""

import os
import shutil
import sys

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers.utils import logging

from ezclip import EZClipProcessor, VideoReadError
from ezclip.data.dataset import VideoCollator, VideoDataset
from ezclip.data.isolated_reader import IsolatedReader
from ezclip.data.labels import read_class_descriptions, read_label_list
from ezclip.data.sources import find_videos, load_files, load_folder, load_hub_dataset, load_list
from ezclip.data.transforms import TrainTransform
from ezclip.errors import DataError
from ezclip.utils.synthetic_clips import write_video
from tests.helpers import random_clip, shared_path
from video_ezclip import read_frames


@pytest.fixture
def label_list(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("id,name\r\n0,red circle\r\n1,GreenSquare\r\n", newline="")
    return path


def write_lines(path, *lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_folder_of_class_folders(clip_folder, caplog):
    (clip_folder / ".cache").mkdir(exist_ok=True)
    split = load_folder(clip_folder)
    assert split.class_names == ["GreenSquare", "red_circle"]
    names = [split.videos["name"][i].removeprefix(f"{clip_folder}/") for i in range(len(split))]
    assert names == [
        *("GreenSquare/broken.mp4", "GreenSquare/d.mp4", "GreenSquare/e.mp4"),
        *("red_circle/a.mp4", "red_circle/b 1.mp4", "red_circle/test#c.mp4"),
    ]
    assert split.videos["label"][:] == [0, 0, 0, 1, 1, 1]
    assert "{'.txt': 1}" in caplog.text


def test_images_beside_videos(clip_folder, tmp_path):
    shutil.copytree(clip_folder / "red_circle", tmp_path / "red circle")
    (tmp_path / "red circle" / "cover.jpg").touch()
    split = load_folder(tmp_path)
    assert split.class_names == ["red circle"] and len(split) == 3


def test_folder_without_classes(clip_folder):
    split = load_folder(clip_folder / "red_circle")
    assert split.class_names is None and len(split) == 3


def test_folders_of_frames_are_videos(tmp_path):
    source = shared_path("clips", "frames", "v_ApplyEyeMakeup_g01_c01")
    shutil.copytree(source, tmp_path / "ApplyEyeMakeup" / "clip 1")
    split = load_folder(tmp_path)
    assert len(split) == 1 and split.class_names == ["ApplyEyeMakeup"]
    assert split.videos["name"][0].endswith("clip 1")


def test_folder_errors(tmp_path):
    with pytest.raises(DataError, match="nowhere is not a folder"):
        load_folder(tmp_path / "nowhere")
    with pytest.raises(DataError, match="holds no video"):
        load_folder(tmp_path)


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


@pytest.mark.parametrize(
    ("names", "part", "message"),
    [
        (["train/yoga/a.mp4", "test/yoga/b.mp4"], "test", "holds the splits test and train, .*_dir .*videos/test\\."),
        (["train/yoga/a.mp4", "test/yoga/b.mp4"], "train", "not classes. Give --train_dir .*videos/train\\."),
        (["base/a/a.mp4", "novel/b/b.mp4"], "train", "splits base and novel, .*--train_dir .*videos/base\\."),
        (["base/a/a.mp4", "novel/b/b.mp4", "notes/n.txt"], "test", "--validation_dir .*videos/novel\\."),
        (["Training/a/a.mp4", "VAL/b/b.mp4", "test_set/c.mp4"], "test", "splits Training and VAL and test_set, not"),
        (["test/yoga/a.mp4", "test/cake/a.mp4"], "test", "holds the split test, not classes"),
        (["val_256/yoga/a.mp4", "videos_train/yoga/a.mp4"], "train", "splits val_256 and videos_train.*/videos_train"),
        (["train/a.mp4"], "test", "holds the split train, not .*--validation_dir .*videos/train\\."),
        (["UCF-101/yoga/a.mp4", "UCF-101/cake/g1/b.mp4"], "train", "one folder, UCF-101, .*cake, yoga.*UCF-101\\."),
        (["frames/yoga/v1/1.jpg", "frames/cake/v1/1.jpg"], "test", "one folder, frames, with 2 folders of videos"),
        (["data/UCF/yoga/a.mp4", "data/UCF/cake/b.mp4"], "test", "one folder, data/UCF, .*_dir .*/data/UCF"),
        (["train/yoga/a.mp4", "val/yoga/b.mp4", "replacement/c.mp4"], "test", "splits train and val, .*/val\\."),
        (["ucf_train/yoga/a.mp4", "ucf_test/yoga/b.mp4"], "train", "splits ucf_test and ucf_train, .*/ucf_train\\."),
    ],
)
def test_folder_of_another_level(tmp_path, names, part, message):
    with pytest.raises(DataError, match=message):
        load_folder(touch(tmp_path / "videos", *names), part)


def test_classes_named_like_splits(tmp_path):
    touch(tmp_path, "train/a.mp4", "bus/a.mp4", "test/1/a.mp4")
    assert load_folder(tmp_path).class_names == ["bus", "test", "train"]


def test_splits_below_classes(tmp_path, caplog):
    touch(tmp_path, "yoga/train/a.mp4", "yoga/test/b.mp4", "cake/train/a.mp4")
    assert load_folder(tmp_path).class_names == ["cake", "yoga"]
    assert "the class folders hold the splits test, train, which are taken together" in caplog.text


def test_left_out_of_class_folders(tmp_path, caplog):
    touch(tmp_path, "yoga/a.mp4", "yoga/thumb.jpg", "cake/v1/1.jpg", "cake/v1/2.jpg", "stray.mp4", "empty/a.txt")
    split = load_folder(tmp_path)
    assert split.class_names == ["yoga"] and split.source == f"class folders of {tmp_path}"
    assert "3 pictures are left out" in caplog.text and "thumb.jpg" in caplog.text
    assert "2 folders hold no video of their own and are no classes: cake, empty" in caplog.text
    assert "1 videos beside the class folders have no class and are skipped: stray.mp4" in caplog.text


@pytest.fixture
def phone_folder(tmp_path):
    """A folder as phones and downloads leave it: videos, a photo, thumbnails, a note and a folder inside."""
    names = ("a.mp4", "b.MOV", "photo.jpg", "notes.txt", "thumbs/a.png", "trip/c.mp4", ".trash/d.mp4")
    return touch(tmp_path / "phone", *names)


def test_find_videos_of_a_folder(phone_folder, caplog):
    expected = [str(phone_folder / name) for name in ("a.mp4", "b.MOV", "trip/c.mp4")]
    assert find_videos([str(phone_folder)]) == expected
    assert "2 pictures are left out" in caplog.text and "photo.jpg" in caplog.text and "{'.txt': 1}" in caplog.text
    assert find_videos([phone_folder.as_uri()]) == expected
    assert find_videos([str(phone_folder / "thumbs")]) == [str(phone_folder / "thumbs")]  # a video of frames


@pytest.mark.parametrize(
    ("pattern", "names", "left_out"),
    [
        ("*.mp4", ["a.mp4"], []),
        ("*", ["a.mp4", "b.MOV", "trip/c.mp4"], ["photo.jpg", "notes.txt", "thumbs"]),
        ("**", ["a.mp4", "b.MOV", "trip/c.mp4"], ["photo.jpg"]),
        ("t*", ["trip/c.mp4"], ["thumbs"]),
        ("*.[mM]*", ["a.mp4", "b.MOV"], []),
        ("*.txt", ["notes.txt"], []),  # the user asks for them; reading gives the error
    ],
)
def test_find_videos_of_a_pattern(phone_folder, caplog, pattern, names, left_out):
    assert find_videos([str(phone_folder / pattern)]) == [str(phone_folder / name) for name in names]
    assert all(str(phone_folder / name) in caplog.text for name in left_out)
    assert ("left out" in caplog.text) == bool(left_out)


def test_find_videos_as_named(phone_folder, tmp_path, caplog):
    shutil.copy(phone_folder / "a.mp4", tmp_path / "clip[1].mp4")
    named = [str(phone_folder / "photo.jpg"), str(tmp_path / "clip[1].mp4"), "https://somewhere/a.mp4?b=1"]
    assert find_videos(named) == named and not caplog.text
    assert find_videos([str(phone_folder / "a.mp4"), f"{phone_folder}/./*.mp4"]) == [str(phone_folder / "a.mp4")]
    assert "given twice" in caplog.text
    with pytest.raises(DataError, match=r"\*\.avi, nope.mp4 are neither"):
        find_videos([str(phone_folder / "*.avi"), named[0], "nope.mp4"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty is a folder without a video"):
        find_videos([str(tmp_path / "empty")])


@pytest.mark.parametrize("number_of_frames", [" 12", ""])
def test_list_with_another_root(clip_folder, label_list, tmp_path, number_of_frames):
    path = write_lines(
        tmp_path / "list.txt",
        f"/cluster/some where/red_circle/b 1.mp4{number_of_frames} 0",
        "",
        f"/cluster/some where/GreenSquare/d{number_of_frames} 1",  # listed as a folder of frames, stored as a file
        f"/cluster/some where/GreenSquare/gone.mp4{number_of_frames} 1",
    )
    split = load_list(path, label_list, clip_folder)
    assert split.videos["video"][:] == [
        str(clip_folder / "red_circle" / "b 1.mp4"),
        str(clip_folder / "GreenSquare" / "d.mp4"),
        str(clip_folder / "GreenSquare" / "gone.mp4"),
    ]
    assert split.videos["label"][:] == [0, 1, 1]
    assert split.class_names == ["red circle", "GreenSquare"]


def test_list_of_files_stored_as_frames(tmp_path, label_list):
    frames = tmp_path / "data" / "v_ApplyEyeMakeup_g01_c01"
    frames.mkdir(parents=True)
    (frames / "img_00001.jpg").touch()
    path = write_lines(tmp_path / "list.txt", "/disk/UCF/v_ApplyEyeMakeup_g01_c01.avi 164 0")
    assert load_list(path, label_list, tmp_path / "data").videos["video"][:] == [str(frames)]


def test_list_without_root(clip_folder, tmp_path, label_list, monkeypatch):
    absolute = clip_folder / "red_circle" / "a.mp4"
    shutil.copy(absolute, tmp_path / "beside.mp4")
    path = write_lines(tmp_path / "list.txt", f"{absolute} 12 0", "beside.mp4 12 1")
    assert load_list(path, label_list).videos["video"][:] == [str(absolute), str(tmp_path / "beside.mp4")]
    monkeypatch.chdir(tmp_path)
    assert load_list(path.name, label_list).videos["video"][1] == "beside.mp4"


def test_list_of_addresses(tmp_path, label_list):
    path = write_lines(tmp_path / "list.txt", "https://somewhere/a b.mp4 12 0")
    assert load_list(path, label_list, tmp_path).videos["video"][:] == ["https://somewhere/a b.mp4"]


def test_secrets_of_addresses_stay_out_of_names(tmp_path, loopback_server):
    write_video(tmp_path / "a.mp4", random_clip(0))
    with loopback_server(tmp_path) as url:
        address = f"{url}/a.mp4?token=s3cret"
        split = load_files([address, str(tmp_path / "a\x1b[2J.mp4")])
        assert split.videos["name"][:] == [f"{url}/a.mp4?token=***", f"{tmp_path}/a\\x1b[2J.mp4"]
        assert len(read_frames(split.videos[0]["video"])[0]) == 12
    assert split.videos[1]["video"] == str(tmp_path / "a\x1b[2J.mp4")


def test_list_of_paths_alone(clip_folder, tmp_path):
    path = write_lines(tmp_path / "list.txt", str(clip_folder / "red_circle" / "b 1.mp4"))
    split = load_list(path)
    assert split.class_names is None and split.videos["label"][:] == [-1]


def test_longest_end_of_a_path(tmp_path, label_list):
    for name in ("x.mp4", "y.mp4", "A/y.mp4"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).touch()
    path = write_lines(tmp_path / "list.txt", "/disk/B/x.mp4 1 0", "/disk/A/y.mp4 1 0")
    videos = load_list(path, label_list, tmp_path / "data").videos["video"][:]
    assert videos == [str(tmp_path / "data" / "x.mp4"), str(tmp_path / "data" / "A" / "y.mp4")]


@pytest.mark.parametrize("line", ["a/x.mp4 12 -1", "a/x.mp4", "a/x.mp4 twelve 0", "a/x.mp4 0"])
def test_line_of_another_form(tmp_path, label_list, line):
    path = write_lines(tmp_path / "list.txt", "a/y.mp4 12 0", line, "a/z.mp4\t12  1")
    with pytest.raises(DataError, match="list.txt, line 2: .* is not `path num_frames id`"):
        load_list(path, label_list, tmp_path)


def test_list_in_latin1(tmp_path, label_list):
    (tmp_path / "list.txt").write_bytes("clip_é.mp4 12 0".encode("latin-1"))
    with pytest.raises(DataError, match="list.txt is not a text file in UTF-8"):
        load_list(tmp_path / "list.txt", label_list)


def test_file_names_in_latin1(clip_folder, tmp_path, tiny_folder):
    folder = os.path.join(os.fsencode(tmp_path), b"red \xe9")
    os.mkdir(folder)
    shutil.copy(clip_folder / "red_circle" / "a.mp4", os.path.join(folder, b"clip_\xff.mp4"))
    split = load_folder(os.fsdecode(folder))
    assert split.videos["name"][0].endswith(r"red \udce9/clip_\udcff.mp4")
    dataset = VideoDataset(split, EZClipProcessor.from_pretrained(tiny_folder))
    assert dataset[0]["bad_videos"] == [] and dataset[0]["frames"].float().std() > 0


def test_list_errors(clip_folder, tmp_path, label_list):
    path = write_lines(tmp_path / "list.txt", "a/red_circle/a.mp4 12 0", "a/red_circle/b 1.mp4 12 2")
    with pytest.raises(DataError, match=r"list.txt, line 2: class id 2 .* has ids 0 to 1"):
        load_list(path, label_list, clip_folder)
    path = write_lines(tmp_path / "list.txt", "/x/none.mp4 12 0")
    with pytest.raises(DataError, match="None of the 1 videos .* '/x/none.mp4'.*--video_root"):
        load_list(path, label_list, clip_folder)
    with pytest.raises(DataError, match="is empty"):
        load_list(write_lines(tmp_path / "empty.txt", ""), label_list)
    with pytest.raises(DataError, match="none.txt cannot be read"):
        load_list(tmp_path / "none.txt", label_list)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,name\n0,a\n0,b\n", "id 0 is there twice"),
        ("id,name\n0,a\n2,b\n", "without gaps"),
        ("id,name\n", "without gaps"),
        ("id,name\nx,a\n", "entry 1 is 'x,a'"),
        ("0,brush hair\n1,brush_hair\n", "classes of the same name"),
        ("x" * 200_000, "is not a CSV file"),
    ],
)
def test_label_list_errors(tmp_path, content, message):
    path = tmp_path / "labels.csv"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        read_label_list(path)


@pytest.mark.parametrize(
    ("labels", "descriptions", "number"),
    [
        ("hmdb51_labels", "HMDB_gpt_Class_discription_new", 51),
        ("ucf_labels", "UCF_101_gpt_Class_discription_new", 101),
        ("kinetics_400_labels", "Kinetic_400_gpt_Class_discription_new", 400),
        ("kinetics_600_labels", "K_600_gpt_Class_discription_new", 600),
        ("kinetics_600_labels_exclusive", "kinetics_600_labels_exclusive_discription_new", 232),
        ("something_something", "Something_gpt_Class_discription_new", 174),
    ],
)
def test_published_labels_and_descriptions(labels, descriptions, number):
    names = read_label_list(shared_path("data", "EZ-CLIP", "lists", f"{labels}.csv"))
    assert len(names) == number
    texts = read_class_descriptions([shared_path("data", "EZ-CLIP", "GPT_discription", f"{descriptions}.csv")])
    prompts = [text for ((text,),) in EZClipProcessor().get_prompts(names, descriptions=texts)]
    assert len(prompts) == number
    assert all(text and "\n" not in text for text in prompts)


def test_published_list_of_ucf():
    lists = shared_path("data", "EZ-CLIP", "dataset_splits", "UCF", "Zero_shot", "test.txt")
    labels = shared_path("data", "EZ-CLIP", "lists", "ucf_labels.csv")
    clips = shared_path("clips")
    split = load_list(lists, labels, clips / "frames")
    assert len(split) == 3783 and len(split.class_names) == 101
    row = split.videos["video"][:].index(str(clips / "frames" / "v_ApplyEyeMakeup_g01_c01"))
    assert split.class_names[split.videos[row]["label"]] == "ApplyEyeMakeup"


def test_descriptions(tmp_path):
    (tmp_path / "a.json").write_text('{"wave": "a hand goes\\n\\nup", "run": "fast"}')
    (tmp_path / "b.csv").write_text('SNo,Class Name,GPT3 discription\n1,run,"\n\nquick, steps"\n')
    texts = read_class_descriptions([tmp_path / "a.json", tmp_path / "b.csv"])
    assert texts == {"wave": ["a hand goes up"], "run": ["fast", "quick, steps"]}
    (tmp_path / "c.json").write_text('{"RUN": ["quick\\n steps", "legs"], "r-un": ["quick steps", "legs"]}')
    texts = read_class_descriptions([tmp_path / "a.json", tmp_path / "b.csv", tmp_path / "c.json"])
    assert texts == {"wave": ["a hand goes up"], "run": ["fast", "quick, steps", "quick steps", "legs"]}
    (tmp_path / "no_header.csv").write_text("1,run,quick\n2,wave,up\n")
    assert read_class_descriptions([tmp_path / "no_header.csv"]) == {"run": ["quick"], "wave": ["up"]}
    (tmp_path / "json.txt").write_text('{"run": "quick"}')
    assert read_class_descriptions([tmp_path / "json.txt"]) == {"run": ["quick"]}


def test_descriptions_of_tear():
    folder = shared_path("data", "tear", "data", "prompts")
    kinds = [folder / f"ucf101_{kind}.json" for kind in ("decomposition", "description", "context")]
    assert read_class_descriptions(kinds) == read_class_descriptions([folder / "ucf101_all.json"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{", "a.json is not JSON"),
        ("a.json", "{}", "a.json describes no class"),
        ("a.csv", "SNo,Class Name,x\n", "a.csv describes no class"),
        ("a.json", "[]", "must hold one JSON object"),
        ("a.json", '{"run": "x", "wave": 3}', "a.json: 'wave' must have a text, a list of texts, or steps"),
        ("a.json", '{"wave": ["x", 3]}', "'wave' must have a text, a list of texts, or steps"),
        ("a.json", '{"wave": {"x": "y"}}', r"'wave' must be \{\"steps\": \[...\]\}"),
        ("a.json", '{"wave": {"steps": "x"}}', r"'wave' must be \{\"steps\": \[...\]\}"),
        ("a.json", '{"wave": {"steps": ["x"], "more": ["y"]}}', r"'wave' must be \{\"steps\": \[...\]\}"),
        ("a.json", '{"wave": {"steps": [["x", 3]]}}', r"'wave' must be \{\"steps\": \[...\]\}"),
        ("a.json", '{"wave": {"steps": ["x", [" "]]}}', "'wave' has an empty text"),
        ("a.json", '{"wave": {"steps": []}}', "'wave' has an empty text"),
        ("a.json", '{"wave": []}', "'wave' has an empty text, or none"),
        ("a.json", '{"wave": ["x", " \\n"]}', "'wave' has an empty text, or none"),
        ("a.json", '{"wave": "x", "wave": "y"}', "'wave' and 'wave' are one class"),
        ("a.json", '{"brush hair": "x", "BrushHair": ["x", "y"]}', "'brush hair' and 'BrushHair' are one class"),
        ("a.csv", "wave,a hand\n", "three columns"),
        ("a.csv", "SNo,Class Name,x\n1,wave,\n", "'wave' has an empty text, or none"),
        ("a.csv", "SNo,Class Name,x\n1,wave,up\n2,Wave,down\n", "'wave' and 'Wave' are one class"),
    ],
)
def test_bad_descriptions(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        read_class_descriptions([tmp_path / name])


@pytest.fixture
def save_parquet(clip_folder, tmp_path):
    """Writes the readable clips as a parquet data set with embedded bytes, with the given labels."""

    def save(labels, label_feature, split="validation"):
        files = [clip_folder / "red_circle" / "a.mp4", clip_folder / "GreenSquare" / "d.mp4"]
        rows = {"clip": [{"path": f.name, "bytes": f.read_bytes()} for f in files], "label": labels}
        features = datasets.Features({"clip": datasets.Video(decode=False), "label": label_feature})
        folder = tmp_path / "parquet"
        folder.mkdir()
        datasets.Dataset.from_dict(rows, features).to_parquet(folder / f"{split}.parquet")
        return str(folder)

    return save


def test_hub_dataset_with_class_labels(save_parquet):
    split = load_hub_dataset(save_parquet([1, 0], datasets.ClassLabel(names=["green square", "red circle"])))
    assert split.class_names == ["green square", "red circle"]
    assert split.videos["label"][:] == [1, 0]
    assert split.videos[0]["video"]["bytes"][4:8] == b"ftyp"
    assert split.videos["name"][1] == "d.mp4"


def test_hub_dataset_with_names(save_parquet, label_list):
    name = save_parquet(["red_circle", "GreenSquare"], datasets.Value("string"), split="test")
    split = load_hub_dataset(name)
    assert (split.class_names, split.videos["label"][:]) == (["GreenSquare", "red_circle"], [1, 0])
    split = load_hub_dataset(name, label_list=label_list)
    assert (split.class_names, split.videos["label"][:]) == (["red circle", "GreenSquare"], [0, 1])


def test_hub_dataset_with_ids(save_parquet, label_list):
    name = save_parquet([0, 1], datasets.Value("int64"))
    assert load_hub_dataset(name, label_list=label_list).class_names == ["red circle", "GreenSquare"]
    assert load_hub_dataset(name).class_names is None
    with pytest.raises(DataError, match="has no split 'train'; it has"):
        load_hub_dataset(name, split="train")
    with pytest.raises(DataError, match="has no column 'film'; it has"):
        load_hub_dataset(name, video_column="film")
    assert load_hub_dataset(name, label_column="none").class_names is None


@pytest.mark.parametrize(("ids", "labels"), [([1, 2], [0, 1]), ([0, 1], [0, 1]), ([2, -1], [1, -1])])
def test_hub_dataset_with_a_label_list_from_1(save_parquet, tmp_path, ids, labels):
    label_list = write_lines(tmp_path / "classInd.txt", "1 red circle", "2 GreenSquare")
    split = load_hub_dataset(save_parquet(ids, datasets.Value("int64")), label_list=label_list)
    assert (split.class_names, split.videos["label"][:]) == (["red circle", "GreenSquare"], labels)


@pytest.mark.parametrize(
    ("labels", "feature"),
    [
        (["red circle", None], datasets.Value("string")),
        ([0, None], datasets.Value("int64")),
        ([0, None], datasets.ClassLabel(names=["red circle", "GreenSquare"])),
    ],
)
def test_hub_dataset_with_unknown_labels(save_parquet, label_list, labels, feature):
    split = load_hub_dataset(save_parquet(labels, feature), label_list=label_list)
    assert split.videos["label"][:] == [0, -1]


def test_hub_dataset_with_other_labels(save_parquet, label_list):
    with pytest.raises(DataError, match="of type Value.*float.*; labels are class names or ids"):
        load_hub_dataset(save_parquet([0.5, 1.0], datasets.Value("float32")), label_list=label_list)


def test_broken_torchcodec(clip_folder, monkeypatch, tmp_path):
    class Broken:
        def find_spec(self, name, path=None, target=None):
            if name.startswith("torchcodec"):
                raise RuntimeError("Could not load libtorchcodec")

    shutil.copytree(clip_folder, tmp_path / "videos")  # `datasets` finds nothing in a folder with brackets
    monkeypatch.setattr(datasets.config, "TORCHCODEC_AVAILABLE", True)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    with pytest.raises(DataError, match="Could not load libtorchcodec.*Uninstall"):
        load_hub_dataset(str(tmp_path / "videos"))


def test_missing_hub_dataset(tmp_path):
    with pytest.raises(DataError, match="--dataset_name .*nowhere"):
        load_hub_dataset(str(tmp_path / "nowhere"))


def test_unreadable_video(clip_folder, tiny_folder):
    processor = EZClipProcessor.from_pretrained(tiny_folder)
    split = load_folder(clip_folder)
    item = VideoDataset(split, processor)[0]
    ((index, error),) = item["bad_videos"]
    assert index == 0 and isinstance(error, VideoReadError) and error.video.endswith("broken.mp4")
    assert item["index"] == 0 and item["frames"].max() == 0

    prompts = [[["green square", "a green square"]], [["red circle", "a red circle"]]]
    training = VideoDataset(split, processor, prompts)
    items = [training[i] for i in range(len(split))]
    assert [item["index"] for item in items] == [1, 1, 2, 3, 4, 5]
    assert [item["label"] for item in items] == [0, 0, 0, 1, 1, 1]
    assert all(["green square", "red circle"][item["label"]] in item["text"] for item in items)
    batch = VideoCollator(processor)(items)
    assert batch["frames"].shape == (6, 8, 32, 32, 3) and batch["frames"].dtype == torch.uint8
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    assert [index for index, _ in batch["bad_videos"]] == [0]


def test_training_items_are_reproducible(clip_folder, tiny_folder):
    processor = EZClipProcessor.from_pretrained(tiny_folder)
    split = load_folder(clip_folder)
    adjectives = ("red", "green", "blue")
    prompts = [[[f"{adjective} {shape}" for adjective in adjectives]] for shape in ("square", "circle")]

    def draw(seed, epoch):
        dataset = VideoDataset(split, processor, prompts, seed)
        dataset.set_epoch(epoch)
        return [(item["text"], item["frames"].sum().item()) for item in map(dataset.__getitem__, (3, 1, 5))]

    assert draw(0, 0) == draw(0, 0)
    assert draw(0, 0) != draw(0, 1)
    assert draw(0, 0) != draw(1, 0)
    # Pinned, so that earlier runs can be resumed
    drawn = [adjectives[np.random.default_rng((7, 2, index)).integers(3)] for index in (3, 1, 5)]
    assert [text.split()[0] for text, _ in draw(7, 2)] == drawn


def test_training_texts(clip_folder, tiny_folder):
    processor = EZClipProcessor.from_pretrained(tiny_folder)
    split = load_folder(clip_folder)
    descriptions = {"green square": "green", "red circle": ["red", "a circle", "left"]}
    prompts = processor.get_prompts(split.class_names, ["{}", "a photo of {}"], descriptions)
    dataset, drawn = VideoDataset(split, processor, prompts), [[], []]
    for epoch in range(25):
        dataset.set_epoch(epoch)
        for index in (2, 4):
            drawn[index // 4].append(dataset[index]["text"])
    assert set(drawn[0]) == {"green", "a photo of green"}
    assert set(drawn[1]) == {text for row in prompts[1] for text in row} and len(set(drawn[1])) == 6
    with pytest.raises(ValueError, match="`prompts` must .* 2 classes, got 3"):
        VideoDataset(split, processor, [*prompts, prompts[0]])


def test_no_warning_of_cut_texts_in_batches(tiny_folder, caplog, monkeypatch):
    monkeypatch.setattr(logging.get_logger("ezclip"), "propagate", True)
    processor = EZClipProcessor.from_pretrained(tiny_folder)
    item = {"index": 0, "label": 0, "frames": torch.zeros(1), "bad_videos": [], "partial_videos": []}
    batch = VideoCollator(processor)([{**item, "text": "a photo of " * 9}, {**item, "text": "red"}])
    assert batch["input_ids"].shape == (2, processor.tokenizer.model_max_length) and caplog.text == ""


def test_training_pixels_do_not_depend_on_workers(clip_folder, tiny_folder):
    processor = EZClipProcessor.from_pretrained(tiny_folder)
    split = load_folder(clip_folder)
    dataset = VideoDataset(
        split,
        processor,
        [[["square"]], [["circle"]]],
        seed=3,
        transform=TrainTransform((32, 32)),
        read=IsolatedReader(),
    )
    dataset.set_epoch(2)
    batches = []
    for num_workers in (0, 1, 2):
        loader = torch.utils.data.DataLoader(
            dataset, batch_size=2, num_workers=num_workers, collate_fn=VideoCollator(processor)
        )
        batches.append(torch.cat([batch["frames"] for batch in loader]))
    assert torch.equal(batches[0], batches[1]) and torch.equal(batches[0], batches[2])
    assert batches[0].shape == (6, 8, 32, 32, 3)
    dataset.set_epoch(3)
    assert not torch.equal(dataset[1]["frames"], batches[0][1])


def test_training_frames_are_transformed(clip_folder, tiny_folder):
    processor = EZClipProcessor.from_pretrained(tiny_folder)
    whole = TrainTransform((32, 32), horizontal_flip_prob=0, color_jitter_prob=0, grayscale_prob=0, scales=(1,))
    path = str(clip_folder / "red_circle" / "a.mp4")
    item = VideoDataset(load_files([path]), processor, [[["x"]]], transform=whole)[0]
    frames, _ = read_frames(path)
    # Each is one of 12 frames, in order: a square of 48 x 48 out of 48 x 64.
    taken = []
    for taken_frame in item["frames"]:
        candidates = [
            (index, left)
            for index, frame in enumerate(frames)
            for left in (0, 4, 8, 12, 16)
            if np.array_equal(
                Image.fromarray(frame[:, left : left + 48]).resize((32, 32), Image.BILINEAR), taken_frame
            )
        ]
        taken += candidates
    assert len(taken) == 8 and len({left for _, left in taken}) == 1
    indices = [index for index, _ in taken]
    assert indices == sorted(set(indices))


def test_no_readable_training_video(tiny_folder):
    processor = EZClipProcessor.from_pretrained(tiny_folder)
    split = load_files(["gone.mp4", "away.mp4"])
    with pytest.raises(DataError, match="None of the 2 training videos .* away.mp4"):
        VideoDataset(split, processor, [[["x"]]])[0]
