"""Work on a local Ray cluster of two nodes: the same files as without it, and nothing lost with a worker."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pyarrow.parquet
import pytest
from accelerate import Accelerator

from ezclip import ClassBank, EZClipModel, EZClipProcessor, ZeroShotVideoClassificationPipeline
from ezclip.cli.arguments import parse_args
from ezclip.data.isolated_reader import IsolatedReader
from ezclip.data.sources import load_folder
from ezclip.errors import DataError, ModelError
from ezclip.evaluation.sharded_prediction import predict_shards
from ezclip.search import build_index
from ezclip.search.windows_file import WindowsFile
from ezclip.utils import ray_stages
from ezclip.utils.ray_stages import RayPlan, RayStages, require_ray
from ezclip.utils.synthetic_clips import write_video
from tests.helpers import ROOT, random_clip, read_lines
from video_ezclip import read_frames


LABELS = ["red circle", "green square"]
NUM_VIDEOS, BROKEN = 11, 4


@pytest.mark.parametrize(
    "nodes, plan",
    [
        ([{"CPU": 2}], (1, 1, 1, 1, 0)),
        ([{"CPU": 1}, {"CPU": 1}], (2, 1, 1, 1, 0)),
        ([{"CPU": 16}, {"CPU": 16}], (2, 4, 2, 14, 0)),
        ([{"CPU": 16, "GPU": 4}, {"CPU": 8}, {}], (3, 20, 4, 1, 1)),
    ],
)
def test_plan(nodes, plan):
    assert dataclasses.astuple(RayPlan.of_nodes(nodes)) == plan


@pytest.mark.parametrize("nodes", [[{"CPU": 1}], [{"CPU": 2, "GPU": 2}]])
def test_too_few_cpus(nodes):
    with pytest.raises(DataError, match=f"got {int(nodes[0]['CPU'])} CPUs"):
        RayPlan.of_nodes(nodes)


def test_ray_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(DataError, match=r"ezclip\[ray\]"):
        require_ray()


@pytest.mark.parametrize("actions", [["--do_eval"], ["--do_train"], ["--do_predict", "--do_eval"]])
def test_only_predictions(actions, capsys):
    with pytest.raises(SystemExit):
        parse_args([*actions, "--executor", "ray", "--model_name_or_path", "m", "--output_dir", "o"])
    assert "--executor ray" in capsys.readouterr().err


@pytest.fixture(scope="module")
def cluster():
    """Two nodes with a CPU each: one decodes, the other embeds."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'ezclip[ray]'")
    ray = require_ray()
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes.add_node(num_cpus=1)
    ray.init(address=nodes.address, log_to_driver=False, logging_level="ERROR")
    with RayStages() as stages:
        yield stages
    ray.shutdown()
    nodes.shutdown()


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for number in range(NUM_VIDEOS):
        path = folder / LABELS[number % 2] / f"{number:02d}.mp4"
        path.parent.mkdir(exist_ok=True)
        write_video(path, random_clip(number, 9 + number))
        if number == BROKEN:
            path.write_bytes(path.read_bytes()[:900])
    return folder


@pytest.fixture
def parts(tiny_folder):
    return EZClipModel.from_pretrained(tiny_folder).eval(), EZClipProcessor.from_pretrained(tiny_folder)


def predict(parts, videos: Path, output_dir: Path, read=read_frames, **kwargs):
    bank = ClassBank.build(parts[0], parts[1], LABELS, "a {}")
    arguments = {"batch_size": 2, "part_size": 3, "read": read, **kwargs}
    source = load_folder(str(videos), "test")
    return predict_shards(parts[0], bank, source, parts[1], output_dir, {}, Accelerator(cpu=True), **arguments)


def read_parts(output_dir: Path) -> dict[str, list[dict]]:
    paths = sorted((output_dir / "predictions").glob("*.parquet"))
    return {path.name: pyarrow.parquet.read_table(path).to_pylist() for path in paths}


def check_same_predictions(one: Path, other: Path):
    assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in other.iterdir())
    rows, expected = ([row for rows in read_parts(folder).values() for row in rows] for folder in (one, other))
    assert read_parts(one).keys() == read_parts(other).keys()
    for row, wanted in zip(rows, expected, strict=True):
        scores, wanted_scores = (
            {answer["label"]: answer["score"] for answer in item.pop("predictions") or []} for item in (row, wanted)
        )
        assert scores == pytest.approx(wanted_scores, abs=1e-5)
        assert row == wanted
    assert read_lines(one / "bad_videos.jsonl") == read_lines(other / "bad_videos.jsonl")


class KillOnce:
    """Reads frames; the worker that reads a certain video is killed, once."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __call__(self, *args, **kwargs):
        if "05.mp4" in str(args[0]) and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return read_frames(*args, **kwargs)


@pytest.mark.slow
def test_predictions(cluster, parts, videos, tmp_path, capsys):
    counts = predict(parts, videos, tmp_path / "ray", cluster=cluster)
    assert (
        "11 videos, 4 parts; 1 decoding worker, 1 embedding worker of 1 thread, on 2 nodes" in capsys.readouterr().out
    )
    assert dataclasses.astuple(counts) == (NUM_VIDEOS, 1, 0)
    assert predict(parts, videos, tmp_path / "local") == counts
    check_same_predictions(tmp_path / "ray", tmp_path / "local")
    settings = [(tmp_path / name / "predictions" / "settings.json").read_text() for name in ("ray", "local")]
    assert settings[0] == settings[1]


@pytest.mark.slow
def test_reader_is_killed(cluster, parts, videos, tmp_path):
    predict(parts, videos, tmp_path / "local")
    predict(parts, videos, tmp_path / "ray", read=KillOnce(tmp_path / "killed"), cluster=cluster)
    assert (tmp_path / "killed").exists()
    check_same_predictions(tmp_path / "ray", tmp_path / "local")


def crash(*_):
    """Sample the frames of a video, in the child of a reader."""
    os.kill(os.getpid(), signal.SIGSEGV)


class CrashingReader(IsolatedReader):
    """Reads frames in its child, which one video always crashes."""

    def __call__(self, video, sample=None, transform=None, **kwargs):
        return super().__call__(video, crash if "05.mp4" in str(video) else sample, transform, **kwargs)


@pytest.mark.slow
def test_video_that_crashes_its_reader(cluster, parts, videos, tmp_path):
    counts = predict(parts, videos, tmp_path / "ray", read=CrashingReader(60), cluster=cluster)
    assert dataclasses.astuple(counts) == (NUM_VIDEOS, 2, 0)
    reasons = {Path(line["video"]).name: line["reason"] for line in read_lines(tmp_path / "ray" / "bad_videos.jsonl")}
    assert reasons.keys() == {"04.mp4", "05.mp4"} and "crashes the decoder" in reasons["05.mp4"]


def double(number: int):
    yield from (2 * number, 2 * number + 1)


def kill_at(number: int, marker: Path, item: int):
    if item == number and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    yield item


def make(function, *args):
    """Return a function that makes the function of a stage."""
    return partial(lambda function, _: function, partial(function, *args))


@pytest.mark.slow
def test_embedder_is_killed(cluster, tmp_path):
    results = cluster.run(list(range(20)), make(double), make(kill_at, 13, tmp_path / "killed"))
    assert list(results) == list(range(40))
    assert (tmp_path / "killed").exists()


def kill_always(item: int):
    os.kill(os.getpid(), signal.SIGKILL)
    yield item


@pytest.mark.slow
def test_worker_that_is_always_killed(cluster, monkeypatch):
    monkeypatch.setattr(ray_stages, "MAX_RESTARTS", 1)
    with pytest.raises(DataError, match="Ray gave up"):
        list(cluster.run([1, 2], make(double), make(kill_always)))


def fail(item: int):
    if item == 3:
        try:
            raise ValueError("what caused it")
        except ValueError as error:
            raise ModelError(f"no {item}") from error
    yield item


@pytest.mark.slow
def test_error_of_a_worker(cluster):
    with pytest.raises(ModelError, match="no 3"):
        list(cluster.run(list(range(6)), make(fail), make(fail)))


@pytest.mark.slow
def test_index(cluster, parts, videos, tmp_path):
    classifier = ZeroShotVideoClassificationPipeline(model=parts[0], processor=parts[1])
    folder = shutil.copytree(videos, tmp_path / "videos")
    build = partial(build_index, classifier, folder, window=0.4, stride=0.2, batch_size=2, disable_tqdm=True)
    counts = [
        build(tmp_path / name, reader=IsolatedReader(60), cluster=stages)
        for name, stages in (("ray", cluster), ("local", None))
    ]
    assert counts[0] == counts[1] and len(counts[0].bad_videos) == 1
    files = [
        sorted(path.relative_to(root) for path in root.rglob("*")) for root in (tmp_path / "ray", tmp_path / "local")
    ]
    assert files[0] == files[1]
    one, other = (WindowsFile(tmp_path / name / "windows.arrow") for name in ("ray", "local"))
    assert one.metadata == other.metadata
    columns = ["video", "content", "start", "end"]
    assert one.table.select(columns).equals(other.table.select(columns))
    for vectors, expected in zip(one.vectors(), other.vectors(), strict=True):
        assert (vectors - expected).abs().max() < 1e-3  # float16
    before = (tmp_path / "ray" / "windows.arrow").read_bytes()
    assert build(tmp_path / "ray", cluster=cluster).num_new == 1  # the broken one
    assert (tmp_path / "ray" / "windows.arrow").read_bytes() == before


SLOW_RUN = """
import sys, time
from pathlib import Path
from ezclip import EZClipModel, EZClipProcessor
from ezclip.utils.ray_stages import RayStages
from tests.utils.test_ray_stages import SlowReader, predict
model, videos, output_dir = map(Path, sys.argv[1:])
parts = EZClipModel.from_pretrained(model).eval(), EZClipProcessor.from_pretrained(model)
with RayStages() as stages:
    predict(parts, videos, output_dir, read=SlowReader(), cluster=stages)
"""


class SlowReader:
    """Reads frames, and gives the test time to kill the run."""

    def __call__(self, *args, **kwargs):
        time.sleep(0.5)
        return read_frames(*args, **kwargs)


@pytest.mark.slow
def test_driver_is_killed(parts, tiny_folder, videos, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'ezclip[ray]'")
    output_dir = tmp_path / "ray"
    command = [sys.executable, "-c", SLOW_RUN, tiny_folder, videos, output_dir]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with subprocess.Popen(command, cwd=ROOT, env=environment) as driver:
        while not read_parts(output_dir) and driver.poll() is None:
            time.sleep(0.05)
        driver.kill()
    written = read_parts(output_dir)
    assert 0 < len(written) < 4
    times = {name: (output_dir / "predictions" / name).stat().st_mtime_ns for name in written}
    predict(parts, videos, output_dir)
    assert {name: (output_dir / "predictions" / name).stat().st_mtime_ns for name in written} == times
    predict(parts, videos, tmp_path / "local")
    check_same_predictions(output_dir, tmp_path / "local")
