"""Draws, halves and selections of a split, and lists that store them."""

import random
from collections import Counter

import datasets
import pytest

from ezclip.data.labels import read_label_list
from ezclip.data.sources import VideoSplit, load_files, load_folder, load_hub_dataset, load_list
from ezclip.data.splits import (
    count_shots,
    draw_classes,
    draw_shots,
    find_overlap,
    halve_classes,
    save_split,
    select_classes,
)
from ezclip.errors import DataError
from tests.data.test_lists import load_beside_one_video
from tests.helpers import shared_path


def make_split(counts: dict[str, int], prefix: str = "/videos", seed: int = 0) -> VideoSplit:
    """Videos of each class, in a random order."""
    rows = [(f"{prefix}/{name} {n}.mp4", label) for label, name in enumerate(counts) for n in range(counts[name])]
    random.Random(seed).shuffle(rows)
    paths, labels = zip(*rows)
    return VideoSplit(datasets.Dataset.from_dict({"video": paths, "label": list(labels), "name": paths}), list(counts))


def contents(split: VideoSplit) -> list[tuple[str, str]]:
    return [(row["video"], split.class_names[row["label"]]) for row in split.videos]


POOL = {"clap": 6, "wave": 4, "run fast": 9, "sit": 5}


def test_shots_of_each_class():
    pool = make_split(POOL)
    shots = draw_shots(pool, 3, seed=1)
    assert shots.class_names == pool.class_names and Counter(shots.videos["label"]) == dict.fromkeys(range(4), 3)
    assert count_shots(shots) == 3
    # In the order of the pool, each with its own class
    everything = contents(pool)
    positions = [everything.index(row) for row in contents(shots)]
    assert positions == sorted(set(positions))


def test_shots_are_reproducible_and_nested():
    pool = make_split(POOL)
    drawn = {(k, seed): contents(draw_shots(pool, k, seed)) for k in (1, 2, 4) for seed in range(5)}
    assert drawn[2, 3] == contents(draw_shots(make_split(POOL), 2, 3))
    assert len({tuple(drawn[2, seed]) for seed in range(5)}) > 2
    for seed in range(5):
        assert set(drawn[1, seed]) < set(drawn[2, seed]) < set(drawn[4, seed])
    # Pinned: the same on every machine and with every version of Python
    ordered = [f"/videos/{name} {n}.mp4" for name in ("clap", "wave") for n in range(3)]
    rows = {"video": ordered, "label": [0, 0, 0, 1, 1, 1], "name": ordered}
    shots = draw_shots(VideoSplit(datasets.Dataset.from_dict(rows), ["clap", "wave"]), 1, 0)
    assert shots.videos["video"][:] == ["/videos/clap 2.mp4", "/videos/wave 0.mp4"]


def test_shots_are_uniform():
    pool = make_split({"clap": 4, "wave": 4})
    drawn = Counter(video for seed in range(400) for video, _ in contents(draw_shots(pool, 1, seed)))
    assert len(drawn) == 8 and min(drawn.values()) > 70 and max(drawn.values()) < 130


def test_bad_shots():
    pool = make_split(POOL)
    with pytest.raises(DataError, match=r"2 of 4 classes .* 'wave' \(4\), 'sit' \(5\)"):
        draw_shots(pool, 6, 0)
    with pytest.raises(DataError, match="at least 1, got 0"):
        draw_shots(pool, 0, 0)
    with pytest.raises(DataError, match="videos without a class"):
        draw_shots(load_files(["a.mp4"]), 1, 0)
    with pytest.raises(DataError, match=r"most have 2, not 'sit' \(3\)"):
        count_shots(make_split({"clap": 2, "wave": 2, "sit": 3}))


def test_halves_by_frequency():
    assert halve_classes(make_split(POOL)) == (["clap", "run fast"], ["wave", "sit"])
    # Of three the base half has two; of equally many videos the later classes are the more frequent.
    assert halve_classes(make_split({"a": 2, "b": 2, "c": 2})) == (["b", "c"], ["a"])
    with pytest.raises(DataError, match="at least two"):
        halve_classes(make_split({"a": 2}))


def test_published_halves(tmp_path):
    folder, labels = ("data", "EZ-CLIP", "dataset_splits"), ("data", "EZ-CLIP", "lists")
    train = load_beside_one_video(
        tmp_path, shared_path(*folder, "UCF", "Zero_shot", "train.txt"), shared_path(*labels, "ucf_labels.csv")
    )
    base, novel = halve_classes(train)
    published = ("ucf_base_train_class_list.csv", "ucf_novel_val_class_list.csv")
    assert [base, novel] == [read_label_list(shared_path(*folder, "UCF", "base_to_novel", name)) for name in published]
    # Each class of HMDB-51 has as many videos in its official splits: the published halves are those of the ties.
    test = load_beside_one_video(
        tmp_path, shared_path(*folder, "HMDB", "Zero_shot", "test.txt"), shared_path(*labels, "hmdb51_labels.csv")
    )
    base, novel = halve_classes(test)
    published = ("hmdb_base_train_class_list.csv", "hmdb_novel_val_class_list.csv")
    paths = [shared_path(*folder, "HMDB", "base_to_novel", name) for name in published]
    assert [set(base), set(novel)] == [set(read_label_list(path)) for path in paths]


def test_selected_classes():
    pool = make_split(POOL)
    chosen = select_classes(pool, ["Run_Fast", "clap"])
    assert chosen.class_names == ["Run_Fast", "clap"] and len(chosen) == 15
    expected = [(path, label) for path, label in contents(pool) if label in ("run fast", "clap")]
    assert [(path, label.lower().replace("_", " ")) for path, label in contents(chosen)] == expected
    # Selections of selections, and of draws
    assert contents(select_classes(chosen, ["clap"])) == contents(select_classes(pool, ["clap"]))
    assert Counter(select_classes(draw_shots(pool, 2, 0), ["sit", "wave"]).videos["label"]) == {0: 2, 1: 2}


def test_bad_selections():
    pool = make_split(POOL)
    with pytest.raises(DataError, match=r"2 of 3 classes .*: \['jump', 'swim'\]"):
        select_classes(pool, ["jump", "clap", "swim"])
    with pytest.raises(DataError, match=r"must differ, got \['Clap', 'clap'\]"):
        select_classes(pool, ["Clap", "clap"])
    with pytest.raises(DataError, match="no video of the 1 classes to select, 'none'"):
        select_classes(make_split({"clap": 2, "none": 0}), ["none"])


def test_drawn_classes():
    names = [f"class {i}" for i in range(20)]
    drawn = draw_classes(names, 8, 0)
    assert drawn == draw_classes(names, 8, 0) != draw_classes(names, 8, 1)
    assert len(drawn) == 8 and drawn == [name for name in names if name in drawn]
    assert set(draw_classes(names, 3, 0)) < set(drawn)
    with pytest.raises(DataError, match="from 1 to 20, got 21"):
        draw_classes(names, 21, 0)


def test_saved_split(clip_folder, tmp_path):
    # With a path that ends in numbers, as an id and a number of frames do
    odd = clip_folder / "red_circle" / "clip 12 0"
    split = load_folder(clip_folder)
    rows = {
        name: [*split.videos[name], value] for name, value in (("video", str(odd)), ("label", 1), ("name", str(odd)))
    }
    split = VideoSplit(datasets.Dataset.from_dict(rows), ['Green, "square"', "red_circle"])
    save_split(split, tmp_path / "list.txt", tmp_path / "labels.csv")
    again = load_list(tmp_path / "list.txt", tmp_path / "labels.csv")
    assert again.class_names == split.class_names
    for column in ("video", "label", "name"):
        assert again.videos[column][:] == split.videos[column][:]
    shots = draw_shots(again, 2, 0)
    save_split(shots, tmp_path / "list.txt", tmp_path / "labels.csv")
    assert contents(load_list(tmp_path / "list.txt", tmp_path / "labels.csv")) == contents(shots)


def test_saved_class_names_are_no_formulas(clip_folder, tmp_path):
    split = VideoSplit(load_folder(clip_folder).videos, ["=cmd()", "-red"])
    save_split(split, tmp_path / "list.txt", tmp_path / "labels.csv")
    assert read_label_list(tmp_path / "labels.csv") == ["=cmd()", "-red"]
    assert "'=cmd()" in (tmp_path / "labels.csv").read_text()


def test_saved_split_with_relative_paths(tmp_path, monkeypatch):
    (tmp_path / "videos").mkdir()
    for name in ("clap", "wave"):
        (tmp_path / "videos" / f"{name} 0.mp4").touch()
    monkeypatch.chdir(tmp_path)
    save_split(make_split({"clap": 1, "wave": 1}, "videos"), "list.txt", "labels.csv")
    monkeypatch.chdir("/")
    split = load_list(tmp_path / "list.txt", tmp_path / "labels.csv")
    assert sorted(split.videos["video"]) == [str(tmp_path / "videos" / f"{name} 0.mp4") for name in ("clap", "wave")]


@pytest.fixture
def parquet(clip_folder, tmp_path):
    """Writes clips, by their names, as a data set with embedded bytes."""

    def write(name, clips, names=None):
        rows = [
            {"path": shown, "bytes": (clip_folder / "red_circle" / f"{clip}.mp4").read_bytes()}
            for clip, shown in zip(clips, names or clips)
        ]
        features = datasets.Features({"video": datasets.Video(decode=False), "label": datasets.Value("string")})
        table = datasets.Dataset.from_dict({"video": rows, "label": ["clap", "wave"][: len(rows)]}, features)
        (tmp_path / name).mkdir()
        table.to_parquet(tmp_path / name / "train.parquet")
        return load_hub_dataset(str(tmp_path / name))

    return write


def test_videos_as_bytes(parquet, tmp_path):
    split = parquet("data", ["a", "b 1"])
    assert [row["video"]["bytes"][4:8] for row in select_classes(split, ["wave"]).videos] == [b"ftyp"]
    assert select_classes(split, ["wave"]).videos["label"][:] == [0]
    with pytest.raises(DataError, match=r"Video 0 \(a\) is held as bytes"):
        save_split(split, tmp_path / "list.txt", tmp_path / "labels.csv")
    assert not (tmp_path / "list.txt").exists()


def test_unsavable_splits(tmp_path):
    files = tmp_path / "list.txt", tmp_path / "labels.csv"
    with pytest.raises(DataError, match="a line break"):
        save_split(make_split({"a\nb": 1}), *files)
    with pytest.raises(DataError, match=r"classes of the same name: \['Run', 'run'\]"):
        save_split(make_split({"Run": 1, "run": 1}), *files)
    with pytest.raises(DataError, match="must not begin or end with a space, got"):
        save_split(make_split({"run ": 1}), *files)
    with pytest.raises(DataError, match="without a class"):
        save_split(load_files(["a.mp4"]), *files)
    assert not files[0].exists()


def test_overlap(parquet, monkeypatch, tmp_path):
    train, test = make_split(POOL), make_split({"clap": 8, "jump": 2})
    assert sorted(find_overlap(train, test)) == [f"/videos/clap {n}.mp4" for n in range(6)]
    assert find_overlap(train, make_split(POOL, "/others")) == []
    monkeypatch.chdir(tmp_path)
    assert find_overlap(make_split({"clap": 1}, "videos"), make_split({"clap": 1}, f"{tmp_path}/videos")) == [
        f"{tmp_path}/videos/clap 0.mp4"
    ]
    # Bytes are compared by content, whatever their names are.
    train, test = parquet("x", ["a", "b 1"]), parquet("y", ["a", "a"], ["a", "b 1"])
    assert find_overlap(train, test) == ["a", "b 1"]
    assert find_overlap(parquet("z", ["a"], [None]), parquet("w", ["a", "b 1"], [None, None])) == ["row 0"]
    (tmp_path / "link").symlink_to(tmp_path / "videos")
    (tmp_path / "videos").mkdir()
    assert find_overlap(make_split({"clap": 1}, f"{tmp_path}/link"), make_split({"clap": 1}, "./videos/../videos"))
