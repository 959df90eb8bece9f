"""Prediction at scale: what is written, and that nothing of it is lost or doubled however often a run is cut off."""

import dataclasses
import json
import multiprocessing
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import datasets
import pyarrow.parquet
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from ezclip import ClassBank, EZClipModel, EZClipProcessor, VideoReadError
from ezclip.data.dataset import VideoDataset
from ezclip.data.sources import VideoSplit, load_files, load_hub_dataset
from ezclip.data.streaming import StreamedVideos, stream_hub_dataset
from ezclip.errors import DataError
from ezclip.evaluation import prediction_files
from ezclip.evaluation.predictions import predict
from ezclip.evaluation.sharded_prediction import predict_shards
from ezclip.utils.synthetic_clips import write_video
from tests.helpers import ROOT, cut_off, random_clip
from video_ezclip import read_frames


LABELS = ["red circle", "green square"]
SHARDS = (7, 4, 3)  # videos of the three files
BROKEN, PARTIAL = 3, 8
SETTINGS = {"model": "tiny", "templates": ["a {}"]}


@pytest.fixture(autouse=True)
def fresh_accelerator_state():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def parquet_folder(tmp_path_factory):
    """14 labelled videos in three files, the fourth video broken and the ninth damaged."""
    folder, clips = tmp_path_factory.mktemp("parquet"), []
    work = tmp_path_factory.mktemp("clips")
    for seed in range(sum(SHARDS)):
        path = work / f"{seed:02d}.mp4"
        write_video(path, random_clip(seed, num_frames=60 if seed == PARTIAL else 9))
        if seed == PARTIAL:
            cut_off(work / "08.mkv", path)
            path = work / "08.mkv"
        content = path.read_bytes()
        clips.append({"path": path.name, "bytes": content[:900] if seed == BROKEN else content})
    features = datasets.Features({"clip": datasets.Video(decode=False), "label": datasets.ClassLabel(names=LABELS)})
    start = 0
    for shard, size in enumerate(SHARDS):
        rows = {"clip": clips[start : start + size], "label": [None if i == 1 else i % 2 for i in range(size)]}
        name = f"train-{shard:05d}-of-{len(SHARDS):05d}.parquet"
        datasets.Dataset.from_dict(rows, features).to_parquet(folder / name)
        start += size
    return folder


class Run:
    """Predicts with the tiny model; `read` counts the videos that it reads, and can be stopped."""

    def __init__(self, model_folder: Path):
        self.model = EZClipModel.from_pretrained(model_folder).eval()
        self.processor = EZClipProcessor.from_pretrained(model_folder)
        self.bank = ClassBank.build(self.model, self.processor, LABELS, "a {}")
        self.stop_after, self.num_read = None, 0

    def __call__(self, source, output_dir, settings=SETTINGS, accelerator=None, **kwargs):
        arguments = {"batch_size": 2, "part_size": 3, "read": self.read, **kwargs}
        accelerator = accelerator or Accelerator(cpu=True)
        return predict_shards(
            self.model, self.bank, source, self.processor, output_dir, settings, accelerator, **arguments
        )

    def read(self, *args, **kwargs):
        if self.num_read == self.stop_after:
            raise KeyboardInterrupt
        self.num_read += 1
        return read_frames(*args, allow_partial=True, **kwargs)


@pytest.fixture
def run(tiny_folder):
    return Run(tiny_folder)


def open_source(kind: str, folder: Path) -> VideoSplit | StreamedVideos:
    return {"split": load_hub_dataset, "stream": stream_hub_dataset}[kind](str(folder))


def part_names(output_dir: Path) -> list[str]:
    return sorted(path.name for path in (output_dir / "predictions").glob("*.parquet"))


def read_rows(output_dir: Path) -> list[dict]:
    """The rows of all parts, in their order."""
    paths = [output_dir / "predictions" / name for name in part_names(output_dir)]
    return [row for path in paths for row in pyarrow.parquet.read_table(path).to_pylist()]


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def check_same(rows: list[dict], others: list[dict], largest_difference: float):
    """That rows are equal, and their scores but for rounding."""
    for row, other in zip(rows, others, strict=True):
        scores, expected = ({p["label"]: p["score"] for p in one.pop("predictions") or []} for one in (row, other))
        assert scores == pytest.approx(expected, abs=largest_difference)
        assert row == other


@pytest.mark.parametrize("kind", ["split", "stream"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_what_is_written(run, parquet_folder, tmp_path, kind, num_workers):
    (tmp_path / "bad_videos.jsonl").write_text("of an earlier run")
    counts = run(open_source(kind, parquet_folder), tmp_path, num_workers=num_workers)
    assert dataclasses.astuple(counts) == (14, 1, 1)
    sizes = {"split": [3, 3, 3, 3, 2], "stream": [3, 3, 1, 3, 1, 3]}[kind]
    names = {"split": [(0, part) for part in range(5)], "stream": [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0)]}
    assert part_names(tmp_path) == [f"shard-{shard:05d}-part-{part:05d}.parquet" for shard, part in names[kind]]
    parts = [pyarrow.parquet.read_table(tmp_path / "predictions" / name) for name in part_names(tmp_path)]
    assert [len(part) for part in parts] == sizes

    rows = read_rows(tmp_path)
    assert [row["video"] for row in rows] == [f"{i:02d}.{'mkv' if i == PARTIAL else 'mp4'}" for i in range(14)]
    labels = [None if i == 1 else LABELS[i % 2] for size in SHARDS for i in range(size)]
    assert [row["label"] for row in rows] == labels
    assert [i for i, row in enumerate(rows) if row["predictions"] is None] == [BROKEN]
    assert {i for i, row in enumerate(rows) if row["error"] is not None} == {BROKEN, PARTIAL}

    # The same as what evaluation gives, in the same form
    split = load_hub_dataset(str(parquet_folder))
    dataset = VideoDataset(split, run.processor, read=partial(read_frames, allow_partial=True))
    predict(run.model, run.bank, dataset, Accelerator(cpu=True)).write(tmp_path / "evaluation")
    expected = read_lines(tmp_path / "evaluation" / "predictions.jsonl")
    lines = read_lines(tmp_path / "predictions.jsonl")
    assert [list(line) for line in lines] == [list(line) for line in expected]
    check_same(lines, expected, 1e-5)
    for name in ("bad_videos.jsonl", "partial_videos.jsonl"):
        assert read_lines(tmp_path / name) == read_lines(tmp_path / "evaluation" / name)


def test_views_ensemble_and_precision(run, clip_folder, tmp_path):
    split = load_files([str(clip_folder / "red_circle" / name) for name in ("a.mp4", "b 1.mp4", "test#c.mp4")])
    views = {"num_clips": 2, "num_crops": 3}
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    run(split, tmp_path, accelerator=accelerator, ensemble="embedding", **views)
    expected = predict(
        run.model, run.bank, VideoDataset(split, run.processor, **views), accelerator, 2, 0, "embedding"
    )
    for row, probabilities in zip(read_rows(tmp_path), expected.probabilities):
        scores = {p["label"]: p["score"] for p in row["predictions"]}
        assert [scores[label] for label in LABELS] == probabilities.tolist()
    with pytest.raises(DataError, match="mixed_precision: bf16 → no"):
        AcceleratorState._reset_state(reset_partial_state=True)
        run(split, tmp_path, accelerator=Accelerator(cpu=True), ensemble="embedding", **views)


def test_parts_are_a_data_set(run, parquet_folder, tmp_path, monkeypatch):
    run(open_source("stream", parquet_folder), tmp_path, top_k=1)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = datasets.load_dataset(str(tmp_path / "predictions"), split="train")
    assert sorted(rows["video"]) == sorted(row["video"] for row in read_rows(tmp_path))
    assert len(rows[0]["predictions"]) == 1 and rows[0]["predictions"][0]["label"] in LABELS


@pytest.mark.parametrize("kind", ["split", "stream"])
def test_interrupted_anywhere_and_gone_on_with(run, parquet_folder, tmp_path, kind):
    run(open_source(kind, parquet_folder), tmp_path / "whole")
    expected, num_read = read_rows(tmp_path / "whole"), run.num_read
    assert num_read == 14
    for stop_after in (0, 1, 3, 4, 6, 7, 10, 13):
        out = tmp_path / f"cut at {stop_after}"
        run.num_read, run.stop_after = 0, stop_after
        with pytest.raises(KeyboardInterrupt):
            run(open_source(kind, parquet_folder), out)
        kept = read_rows(out)
        assert kept == expected[: len(kept)] and stop_after - len(kept) < 4
        assert not (out / "predictions.jsonl").exists()
        run.num_read, run.stop_after = 0, None
        assert run(open_source(kind, parquet_folder), out).num_videos == 14
        assert read_rows(out) == expected and run.num_read == 14 - len(kept)
        lines = (out / "predictions.jsonl").read_text()
        assert lines == (tmp_path / "whole" / "predictions.jsonl").read_text()

        # Once complete, nothing is left to be read
        assert run(open_source(kind, parquet_folder), out, strict=False).num_videos == 14
        assert run.num_read == 14 - len(kept)


def test_holes_are_filled(run, parquet_folder, tmp_path):
    source = open_source("stream", parquet_folder)
    run(source, tmp_path)
    expected = read_rows(tmp_path)
    for removed in ((0, 0), (0, 1), (0, 2), (2, 0)):
        (tmp_path / "predictions" / f"shard-{removed[0]:05d}-part-{removed[1]:05d}.parquet").unlink()
        run.num_read = 0
        run(source, tmp_path)
        assert read_rows(tmp_path) == expected and run.num_read == (1 if removed == (0, 2) else 3)


def test_leftovers_of_a_killed_run_are_removed_and_never_read(run, parquet_folder, tmp_path):
    source = open_source("split", parquet_folder)
    run.stop_after = 7
    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path)
    folder = tmp_path / "predictions"
    for path in (folder / ".shard-00000-part-00002.parquet.4711", tmp_path / ".predictions.jsonl.4711"):
        path.write_bytes(b"PAR1 half")
    (folder / "notes.txt").write_text("mine")
    run.stop_after = None
    assert run(source, tmp_path).num_videos == 14
    assert sorted(path.name for path in folder.iterdir() if path.suffix != ".parquet") == [
        "notes.txt",
        "settings.json",
    ]
    assert not list(tmp_path.glob(".*"))


def test_other_settings_are_refused(run, parquet_folder, tmp_path, clip_folder):
    source = open_source("split", parquet_folder)
    run(source, tmp_path)
    before = read_rows(tmp_path)
    expectations = [
        ({"settings": {**SETTINGS, "model": "large"}}, "model: tiny → large"),
        ({"settings": {**SETTINGS, "templates": ["the {}"]}}, "templates: a {} → the {}"),
        ({"settings": {"model": "tiny"}}, "templates: a {} → none"),
        ({"ensemble": "embedding"}, "ensemble: probability → embedding"),
        ({"num_clips": 2}, "num_clips: 1 → 2"),
        ({"part_size": 4}, "part_size: 3 → 4"),
    ]
    for change, message in expectations:
        with pytest.raises(DataError, match=message):
            run(source, tmp_path, **change)
    with pytest.raises(DataError, match=r"number of the videos of prediction: 14 → 1;.*--output_dir"):
        run(load_files([str(clip_folder / "red_circle" / "a.mp4")]), tmp_path)
    with pytest.raises(DataError, match="num_shards: 1 → 3"):
        run(open_source("stream", parquet_folder), tmp_path)
    with torch.no_grad():
        run.model.logit_scale.add_(1)
    with pytest.raises(DataError, match="Changed: the weights of the model. "):
        run(source, tmp_path)
    with torch.no_grad():
        run.model.logit_scale.sub_(1)
    run(source, tmp_path, batch_size=3)  # rounding alone depends on it
    assert read_rows(tmp_path) == before

    (tmp_path / "predictions" / "settings.json").unlink()
    with pytest.raises(DataError, match="without their settings.json"):
        run(source, tmp_path)


def test_damaged_and_missing_parts_are_named(run, parquet_folder, tmp_path, monkeypatch):
    source = open_source("split", parquet_folder)
    run(source, tmp_path)
    expected = read_rows(tmp_path)
    for name in ("shard-00000-part-00001.parquet", "shard-00000-part-00004.parquet"):
        path = tmp_path / "predictions" / name
        path.write_bytes(path.read_bytes()[:100])
        with pytest.raises(DataError, match=f"{name} is damaged .*Remove it"):
            run(source, tmp_path)
        path.unlink()
        run(source, tmp_path)
        assert read_rows(tmp_path) == expected

    def lose_a_part(*args, **kwargs):
        (tmp_path / "local" / "predictions" / "shard-00000-part-00000.parquet").unlink(missing_ok=True)
        return read_frames(*args, **kwargs)

    monkeypatch.setattr(prediction_files, "SHARED_FOLDER_DELAY", 0.0)
    with pytest.raises(DataError, match="lacks parts of 1 of 1 shards.*--output_dir"):
        run(source, tmp_path / "local", read=lose_a_part)
    assert not (tmp_path / "local" / "predictions.jsonl").exists()


def test_strict(run, parquet_folder, tmp_path):
    source = open_source("stream", parquet_folder)
    with pytest.raises(VideoReadError, match="03.mp4: is cut off"):
        run(source, tmp_path, strict=True)
    assert len(read_rows(tmp_path)) == 3
    run(source, tmp_path)
    with pytest.raises(DataError, match="03.mp4 could not be read by an earlier run: is cut off"):
        run(source, tmp_path, strict=True)


def test_a_full_disk_loses_nothing(run, tmp_path, clip_folder):
    content = (clip_folder / "red_circle" / "a.mp4").read_bytes()
    names = [f"{i}.mp4" for i in range(4)] + [os.urandom(1 << 20).hex()] + ["5.mp4"]
    videos = [{"path": name, "bytes": content} for name in names]
    rows = datasets.Dataset.from_dict({"video": videos, "label": [-1] * 6, "name": names})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        with pytest.raises(DataError, match="File too large"):
            run(VideoSplit(rows, None), tmp_path)
        assert part_names(tmp_path) == ["shard-00000-part-00000.parquet"]
        assert [row["video"] for row in read_rows(tmp_path)] == names[:3]
        assert not list((tmp_path / "predictions").glob(".*"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    run.num_read = 0
    assert run(VideoSplit(rows, None), tmp_path).num_videos == 6
    assert run.num_read == 3 and [row["video"] for row in read_rows(tmp_path)] == names

    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written to"):
        run(VideoSplit(rows, None), tmp_path / "file")


def test_no_more_rows_are_held_than_are_predicted_next(run, tmp_path, clip_folder):
    content, num_given, most = (clip_folder / "red_circle" / "a.mp4").read_bytes(), 0, 0

    def videos():
        nonlocal num_given
        for i in range(20):
            num_given += 1
            yield {"video": {"path": f"{i}.mp4", "bytes": content}}

    def read(*args, **kwargs):
        nonlocal most
        most = max(most, num_given - run.num_read)
        return run.read(*args, **kwargs)

    source = StreamedVideos(datasets.IterableDataset.from_generator(videos), "made up", "video", num_videos=20)
    assert run(source, tmp_path, part_size=10, read=read).num_videos == 20
    assert most == 3  # a batch, and one to see whether it is the last


def test_empty_shards_and_sources(run, tmp_path, clip_folder):
    content = (clip_folder / "red_circle" / "a.mp4").read_bytes()

    def videos(sizes):
        for size in sizes:
            for i in range(size):
                yield {"video": {"path": f"{size} {i}.mp4", "bytes": content}}

    def source(*sizes):
        rows = datasets.IterableDataset.from_generator(videos, gen_kwargs={"sizes": list(sizes)})
        return StreamedVideos(rows, "made up", "video")

    assert run(source(0, 3, 0, 2), tmp_path / "a").num_videos == 5
    assert [row["video"] for row in read_rows(tmp_path / "a")] == [
        "3 0.mp4",
        "3 1.mp4",
        "3 2.mp4",
        "2 0.mp4",
        "2 1.mp4",
    ]
    run.num_read = 0
    assert run(source(0, 3, 0, 2), tmp_path / "a").num_videos == 5 and run.num_read == 0
    assert run(source(0), tmp_path / "b").num_videos == 0


def test_the_progress_bar_goes_on_where_the_run_was_cut_off(run, parquet_folder, tmp_path, capsys):
    run.stop_after = 7
    with pytest.raises(KeyboardInterrupt):
        run(open_source("split", parquet_folder), tmp_path)
    capsys.readouterr()
    run.stop_after = None
    run(open_source("split", parquet_folder), tmp_path)
    said = capsys.readouterr().err
    assert "6/14 [" in said and "14/14 [" in said and "0/14 [" not in said


def save_stream(folder: Path, labels: list, feature, names=("a.mp4", None)) -> str:
    rows = {"clip": [{"path": name, "bytes": b"video"} for name in names], "label": labels}
    features = datasets.Features({"clip": datasets.Video(decode=False), "label": feature})
    datasets.Dataset.from_dict(rows, features).to_parquet(folder / "test.parquet")
    return str(folder)


@pytest.fixture
def label_list(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("id,name\n0,red circle\n1,GreenSquare\n")
    return path


@pytest.mark.parametrize(
    ("labels", "feature", "named", "plain"),
    [
        ([1, None], datasets.ClassLabel(names=["red circle", "GreenSquare"]), ["GreenSquare", None], None),
        (["red_circle", "green square"], datasets.Value("string"), ["red circle", "GreenSquare"], "as they are"),
        ([1, -1], datasets.Value("int64"), ["GreenSquare", None], [None, None]),
        ([None, None], datasets.Value("null"), [None, None], [None, None]),
    ],
)
def test_labels_of_a_stream(tmp_path, label_list, labels, feature, named, plain):
    (tmp_path / "data").mkdir()
    name = save_stream(tmp_path / "data", labels, feature)
    source = stream_hub_dataset(name, label_list=label_list)
    rows = list(source.read_shard(0))
    assert source.class_names == ["red circle", "GreenSquare"] and [row.label for row in rows] == named
    assert [row.name for row in rows] == ["a.mp4", "row 1 of shard 0"]
    assert rows[0].video == {"path": "a.mp4", "bytes": b"video"}
    assert list(source.read_shard(0, start=1)) == rows[1:]

    source = stream_hub_dataset(name)
    plain = {None: named, "as they are": labels}.get(plain if plain is None else str(plain), plain)
    assert [row.label for row in source.read_shard(0)] == plain
    assert source.class_names == (feature.names if isinstance(feature, datasets.ClassLabel) else None)
    source = stream_hub_dataset(name, label_column="none", label_list=label_list)
    assert source.class_names is None and [row.label for row in source.read_shard(0)] == [None, None]


@pytest.mark.parametrize(
    ("labels", "feature", "message"),
    [
        (["red circle", "blue"], datasets.Value("string"), "row 1 of shard 0: the label list does not name 'blue'"),
        ([0, 2], datasets.Value("int64"), "row 1 of shard 0: the class id is 2, those of the classes are 0 to 1"),
        ([0, -2], datasets.Value("int64"), "row 1 of shard 0: the class id is -2"),
        ([0.5, 1.0], datasets.Value("float32"), "of type Value.*float.*; labels are class names or ids"),
        ([0, 1], datasets.ClassLabel(names=["red", "blue"]), "are not those of the label list, in its order"),
    ],
)
def test_wrong_labels_of_a_stream_are_named(tmp_path, label_list, labels, feature, message):
    (tmp_path / "data").mkdir()
    name = save_stream(tmp_path / "data", labels, feature)
    with pytest.raises(DataError, match=message):
        list(stream_hub_dataset(name, label_list=label_list).read_shard(0))


def test_splits_and_columns_of_a_stream(tmp_path):
    name = save_stream(tmp_path, [0, 1], datasets.Value("int64"))
    assert stream_hub_dataset(name).num_shards == 1
    with pytest.raises(DataError, match="has no split 'train'; it has"):
        stream_hub_dataset(name, split="train")
    with pytest.raises(DataError, match="has no column 'film'; it has .*Name it"):
        stream_hub_dataset(name, video_column="film")
    with pytest.raises(DataError, match="--dataset_name .*nowhere"):
        stream_hub_dataset(str(tmp_path / "nowhere"))


def test_a_stream_that_breaks_off_is_named(tmp_path, run, parquet_folder):
    shutil.copytree(parquet_folder, tmp_path / "data")
    path = tmp_path / "data" / "train-00001-of-00003.parquet"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="row 0 of shard 1"):
        run(stream_hub_dataset(str(tmp_path / "data")), tmp_path / "out")
    path.write_bytes(content)
    run.num_read = 0
    assert run(stream_hub_dataset(str(tmp_path / "data")), tmp_path / "out").num_videos == 14
    assert run.num_read < 14


def test_rows_of_a_stream_without_types(tmp_path):
    (tmp_path / "train.csv").write_text("video,label\na.mp4,\nb.mp4,wave\n")
    source = stream_hub_dataset(str(tmp_path))
    assert [(row.video, row.label) for row in source.read_shard(0)] == [("a.mp4", None), ("b.mp4", "wave")]


@pytest.mark.parametrize("base_path", [None, "hf://datasets/someone/videos@main"])
def test_stream_of_a_folder_of_videos(run, tmp_path, clip_folder, monkeypatch, base_path):
    shutil.copytree(clip_folder, tmp_path / "videos")  # `datasets` finds nothing in a folder with brackets
    load = datasets.load_dataset_builder

    def load_as_from_the_hub(*args, **kwargs):
        builder = load(*args, **kwargs)
        builder.base_path = base_path or builder.base_path
        return builder

    monkeypatch.setattr(datasets, "load_dataset_builder", load_as_from_the_hub)
    source = stream_hub_dataset(str(tmp_path / "videos"), split="train")
    assert source.class_names == ["GreenSquare", "red_circle"]
    rows = list(source.read_shard(0))
    assert rows[0].video == {"path": str(tmp_path / "videos" / "GreenSquare" / "broken.mp4"), "bytes": None}
    counts = run(source, tmp_path / "out")
    assert (counts.num_videos, counts.num_bad_videos) == (len(rows), 1)
    assert {row["label"] for row in read_rows(tmp_path / "out")} == {"GreenSquare", "red_circle"}


def drive(rank: int, sources: str, parquet_folder: str, model_folder: str, output_dir: str, seconds: str):
    """What each process of a run does: predict, at so many seconds a video."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    run = Run(Path(model_folder))

    def read(*args, **kwargs):
        time.sleep(float(seconds))
        return run.read(*args, **kwargs)

    accelerator = Accelerator(cpu=True)
    for kind in sources.split(","):
        run.num_read = 0
        counts = run(
            open_source(kind, Path(parquet_folder)), Path(output_dir) / kind, accelerator=accelerator, read=read
        )
        (Path(output_dir) / f"{kind} of process {rank}").write_text(f"{run.num_read} {counts.num_videos}")
    accelerator.end_training()


def drive_all(num_processes: str, *arguments: str):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": num_processes}
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=drive, args=(rank, *arguments)) for rank in range(int(num_processes))]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    sys.exit(max(abs(process.exitcode) for process in processes))


def launch(*arguments) -> subprocess.Popen:
    """`drive_all` in a group of processes of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.evaluation.test_sharded_prediction", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


@pytest.mark.slow
def test_killed_on_two_processes_and_started_again_on_three(run, parquet_folder, tiny_folder, tmp_path):
    torch.set_num_threads(1)
    for kind in ("split", "stream"):
        run(open_source(kind, parquet_folder), tmp_path / "whole" / kind)
    out = tmp_path / "cut off"

    process = launch(2, "stream,split", parquet_folder, tiny_folder, out, 0.3)
    while not (out / "stream" / "predictions").is_dir() or len(part_names(out / "stream")) < 2:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    kept = read_rows(out / "stream")
    assert 0 < len(kept) < 14 and not (out / "stream" / "predictions.jsonl").exists()

    process = launch(3, "stream,split", parquet_folder, tiny_folder, out, 0)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    for kind, num_left in (("stream", 14 - len(kept)), ("split", 14)):
        # Other processes may round products of a few rows otherwise.
        check_same(read_rows(out / kind), read_rows(tmp_path / "whole" / kind), 1e-6)
        lines, expected = (read_lines(folder / kind / "predictions.jsonl") for folder in (out, tmp_path / "whole"))
        check_same(lines, expected, 1e-6)
        for name in ("bad_videos.jsonl", "partial_videos.jsonl"):
            assert (out / kind / name).read_text() == (tmp_path / "whole" / kind / name).read_text()
        counts = [(out / f"{kind} of process {rank}").read_text().split() for rank in range(3)]
        assert sum(int(num_read) for num_read, _ in counts) == num_left
        assert [num_videos for _, num_videos in counts] == ["14"] * 3
        assert kind == "stream" or all(num_read != "0" for num_read, _ in counts)


if __name__ == "__main__":
    drive_all(*sys.argv[1:])
