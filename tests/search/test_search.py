"""`ezclip index` and `ezclip search`: what is read again, what a killed run leaves, hits, and refusals."""

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from html.parser import HTMLParser

import numpy as np
import pyarrow
import pytest
import torch
from filelock import FileLock

from ezclip import ZeroShotVideoClassificationPipeline
from ezclip.cli.index import main as index_main
from ezclip.cli.search import main as search_main
from ezclip.data.isolated_reader import IsolatedReader
from ezclip.errors import DataError, ModelError
from ezclip.search import Hit, VideoIndex, build_index
from ezclip.search.hits import merge_overlaps
from ezclip.systems.loading import load_encoder, load_model, load_processor
from ezclip.utils.synthetic_clips import write_video
from tests.helpers import ROOT, random_clip, read_json, read_lines, train


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six videos of 0.5 to 3 seconds; one is a copy of another."""
    root = tmp_path_factory.mktemp("videos")
    for number, num_frames in enumerate((4, 8, 12, 16, 24)):
        path = root / f"{'ab'[number % 2]}" / f"{number}.mp4"
        path.parent.mkdir(exist_ok=True)
        write_video(path, random_clip(number, num_frames))
    shutil.copyfile(root / "a" / "4.mp4", root / "b" / "copy of 4.mp4")
    return root


@pytest.fixture
def videos(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "videos")


@pytest.fixture
def classifier(tiny_folder):
    return ZeroShotVideoClassificationPipeline(model=load_model(tiny_folder), processor=load_processor(tiny_folder))


@pytest.fixture(scope="module")
def build():
    """`build_index`, whose child process starts once for all tests."""
    with IsolatedReader(60) as reader:
        yield partial(build_index, window=1.0, stride=0.5, reader=reader, disable_tqdm=True)


def files_of(output_dir) -> dict[str, bytes]:
    return {str(p.relative_to(output_dir)): p.read_bytes() for p in output_dir.rglob("*") if p.is_file()}


def written(output_dir) -> dict[str, int]:
    """A number for each file of embeddings that changes when it is written again."""
    return {path.name: path.stat().st_ino for path in (output_dir / "embeddings").iterdir()}


def test_windows_and_vectors(build, classifier, videos, tmp_path):
    counts = build(classifier, videos, tmp_path / "index")
    assert (counts.num_videos, counts.num_new, counts.num_dropped, counts.bad_videos) == (6, 5, 0, {})
    table = pyarrow.ipc.open_file(tmp_path / "index" / "windows.arrow").read_all().to_pylist()
    assert counts.num_windows == len(table) == len(VideoIndex.open(tmp_path / "index"))
    rows = [(row["start"], row["end"]) for row in table if row["video"] == "a/4.mp4"]
    assert rows == [(0, 1), (0.5, 1.5), (1, 2), (1.5, 2.5), (2, 3)]
    assert [(row["start"], row["end"]) for row in table if row["video"] == "a/0.mp4"] == [(0, 0.5)]
    for row in table:
        frames, _ = classifier.processor.read_clip(
            str(videos / row["video"]), classifier.processor.get_sampler(), start=row["start"], end=row["end"]
        )
        pixel_values = classifier.processor.normalize(torch.from_numpy(frames)[None])
        with torch.no_grad():
            expected = torch.nn.functional.normalize(classifier.model.encode_videos(pixel_values)[0], dim=-1)
        assert row["embeds"] == pytest.approx(expected.tolist(), abs=1e-3)


def test_only_new_contents_are_read(build, classifier, videos, tmp_path):
    index = tmp_path / "index"
    build(classifier, videos, index)
    before = written(index)
    (videos / "a" / "0.mp4").rename(videos / "moved.mp4")
    (videos / "b" / "1.mp4").unlink()
    times = (videos / "a" / "2.mp4").stat()
    write_video(videos / "a" / "2.mp4", random_clip(77))  # changed, with the times of the earlier file
    os.utime(videos / "a" / "2.mp4", ns=(times.st_atime_ns, times.st_mtime_ns))
    os.utime(videos / "b" / "3.mp4")  # touched
    counts = build(classifier, videos, index)
    assert (counts.num_videos, counts.num_new, counts.num_dropped) == (5, 1, 2)
    after = written(index)
    assert len(after) == 4 and len(after.items() - before.items()) == 1
    build(classifier, videos, tmp_path / "anew")
    assert files_of(index) == files_of(tmp_path / "anew")
    assert build(classifier, videos, index).num_new == 0 and written(index) == after


def test_embeddings_without_settings_are_not_reused(build, classifier, videos, tmp_path):
    index = tmp_path / "index"
    build(classifier, videos, index)
    before = files_of(index / "embeddings")
    (index / "index.json").unlink()  # as a run with `overwrite` leaves it that is killed at its beginning
    train(classifier.model.requires_grad_(True))
    assert build(classifier, videos, index).num_new == 5
    assert not files_of(index / "embeddings").items() & before.items()


def test_killed_run_resumes(tiny_folder, tmp_path):
    videos, index, whole = tmp_path / "videos", tmp_path / "index", tmp_path / "whole"
    videos.mkdir()
    for number in range(12):
        write_video(videos / f"{number:02d}.mp4", random_clip(number, 40))
    argv = [str(videos), "--model_name_or_path", str(tiny_folder), "--device", "cpu", "--stride", "0.5"]
    command = [sys.executable, "-m", "ezclip", "index", *argv, "--output_dir", str(index)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and len(list(index.glob("embeddings/*.safetensors"))) < 3:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not (index / "windows.arrow").exists()
    kept = written(index)
    (index / "embeddings" / ".half.safetensors.0a1b2c3d").write_bytes(b"half")
    with pytest.raises(DataError, match="ezclip index"):
        VideoIndex.open(index)
    assert index_main([*argv, "--output_dir", str(index)]) == 0
    assert index_main([*argv, "--output_dir", str(whole)]) == 0
    assert files_of(index) == files_of(whole)
    assert {name: inode for name, inode in written(index).items() if name in kept} == {
        name: inode for name, inode in kept.items() if name.endswith(".safetensors") and not name.startswith(".")
    }


@pytest.mark.slow
def test_two_processes_write_the_same_index(tiny_folder, videos, tmp_path):
    argv = ["-m", "ezclip", "index", str(videos), "--model_name_or_path", str(tiny_folder), "--device", "cpu"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launcher, *argv, "--output_dir", str(tmp_path / "two")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("6 videos in") == 1
    assert index_main([*argv[3:], "--output_dir", str(tmp_path / "one")]) == 0
    assert files_of(tmp_path / "two") == files_of(tmp_path / "one")


def test_bad_videos_are_named_and_tried_again(tiny_folder, videos, tmp_path, capsys):
    whole = (videos / "a" / "0.mp4").read_bytes()
    (videos / "a" / "0.mp4").write_bytes(whole[: len(whole) // 2])
    (videos / "b" / "empty.mp4").touch()
    argv = [str(videos), "--output_dir", str(tmp_path / "index"), "--device", "cpu"]
    assert index_main([*argv, "--model_name_or_path", str(tiny_folder), "--window", "1"]) == 1
    bad = read_lines(tmp_path / "index" / "bad_videos.jsonl")
    assert [line["video"] for line in bad] == ["a/0.mp4", "b/empty.mp4"]
    printed = capsys.readouterr()
    assert "a/0.mp4: " in printed.err and "7 videos in" in printed.out and "of 5 videos" in printed.out
    (videos / "a" / "0.mp4").write_bytes(whole)
    (videos / "b" / "empty.mp4").unlink()
    assert index_main(argv) == 0  # model and window are those of the index
    assert "1 to read" in capsys.readouterr().out and not (tmp_path / "index" / "bad_videos.jsonl").exists()
    assert read_json(tmp_path / "index" / "index.json")["made_with"]["window"] == 1


def test_frame_folders_have_no_times(build, classifier, tmp_path):
    from PIL import Image

    for number, frame in enumerate(random_clip(0)):
        path = tmp_path / "videos" / "clip" / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(frame).save(path)
    with pytest.raises(DataError, match="has no times"):
        build(classifier, tmp_path / "videos", tmp_path / "index")


def test_refusals_of_building(build, classifier, videos, tmp_path, tiny_folder):
    index = tmp_path / "index"
    build(classifier, videos, index)
    with pytest.raises(DataError, match=r"window: 1.0 → 2.0.*--overwrite_output_dir"):
        build(classifier, videos, index, window=2.0)
    with pytest.raises(DataError, match="is an index of"):
        build(classifier, videos / "a", index)
    with FileLock(index / ".lock"), pytest.raises(DataError, match="Another process"):
        build(classifier, videos, index)
    train(classifier.model.requires_grad_(True))
    with pytest.raises(DataError, match="the weights of the model"):
        build(classifier, videos, index)
    assert build(classifier, videos, index, overwrite=True).num_new == 5


def test_own_scores_are_refused(build, classifier, videos, tmp_path):
    classifier.model.score = lambda videos, texts: videos @ texts.T
    with pytest.raises(ModelError, match="EZClipModel"):
        build(classifier, videos, tmp_path / "index")


@pytest.mark.parametrize("templates", ["{}", ["a photo of {}", "{} moving"]])
def test_hits_of_a_text(build, classifier, videos, tmp_path, templates):
    build(classifier, videos, tmp_path / "index")
    index = VideoIndex.open(tmp_path / "index", device="cpu")
    hits = index.search("red circle", 100, templates=templates)
    texts = [text.replace("{}", "red circle") for text in ([templates] if isinstance(templates, str) else templates)]
    with torch.no_grad():
        tokens = classifier.processor(text=texts, return_tensors="pt")
        query = torch.nn.functional.normalize(classifier.model.encode_texts(tokens), dim=-1).mean(dim=0)
    query = torch.nn.functional.normalize(query, dim=-1).numpy()
    rows = pyarrow.ipc.open_file(tmp_path / "index" / "windows.arrow").read_all().to_pylist()
    scores = [float(np.float32(row["embeds"]) @ query) for row in rows]
    assert hits[0].score == pytest.approx(max(scores), abs=1e-5)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    for row, score in zip(rows, scores):  # a window is a hit, or overlaps with a better one
        assert any(
            hit.video == row["video"]
            and hit.start < row["end"]
            and row["start"] < hit.end
            and hit.score >= score - 1e-5
            for hit in hits
        )
    assert {hit.video for hit in hits} == set(index.videos)
    assert index.search("red circle", 3, templates=templates) == hits[:3]
    once = index.search("red circle", 100, templates=templates, per_video=1)
    assert len(once) == 6 and once[0] == hits[0]


def test_overlaps_are_one_hit():
    windows = [Hit("a", 1, 3, 0.9), Hit("a", 2, 4, 0.8), Hit("b", 2, 4, 0.7), Hit("a", 3, 5, 0.6), Hit("a", 6, 8, 0.5)]
    assert merge_overlaps(windows, 10) == [windows[number] for number in (0, 2, 3, 4)]
    assert merge_overlaps(windows, 2) == [windows[0], windows[2]]
    assert merge_overlaps(windows, 10, per_video=1) == [windows[0], windows[2]]


def test_every_clip_finds_itself(build, classifier, videos, tmp_path):
    (videos / "b" / "copy of 4.mp4").unlink()
    build(classifier, videos, tmp_path / "index", window=5.0)
    index = VideoIndex.open(tmp_path / "index", classifier=classifier)
    for video in index.videos:
        (hit,) = index.search(video=str(videos / video), top_k=1)
        assert hit.video == video and hit.score == pytest.approx(1, abs=1e-3)


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.alts = []

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.alts.append(dict(attrs)["alt"])


def test_command(tiny_folder, videos, tmp_path, capsys):
    pytest.importorskip("sklearn")
    index, table, lines, page = (str(tmp_path / name) for name in ("index", "hits.csv", "hits.jsonl", "hits.html"))
    assert index_main([str(videos), "--output_dir", index, "--model_name_or_path", str(tiny_folder)]) == 0
    (videos / "a" / "2.mp4").unlink()
    capsys.readouterr()
    assert search_main([index, "red circle", "--output_file", table, "--page", page]) == 0
    printed = capsys.readouterr().out.splitlines()
    with open(table, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(printed) == 1 + len(rows) and all(row["video"] in line for row, line in zip(rows, printed[1:]))
    assert re.match(r"0:00:0\d\.\d - 0:00:0\d\.\d  +-?0\.\d{3}  ", printed[1])
    content = (tmp_path / "hits.html").read_text()
    parser = Page()
    parser.feed(content)
    assert len(parser.alts) == len(rows) - 1 and "No frames: the video does not exist." in content
    assert all(alt.startswith("Frames of hit") for alt in parser.alts) and "report_pictures" not in content
    assert search_main([index, "--from_video", str(videos / "a" / "4.mp4"), "--output_file", lines]) == 0
    assert set(read_lines(tmp_path / "hits.jsonl")[0]) == {"video", "start", "end", "score"}
    assert search_main([index, "--from_video", str(videos / "gone.mp4")]) == 1


@pytest.mark.parametrize(
    ("argv", "match"),
    [
        (["red", "--from_video", "x.mp4"], "--from_video"),
        ([], "--from_video"),
        ([" "], "blank"),
        (["red", "--top_k", "0"], "top_k"),
        (["red", "--output_file", "hits.txt"], ".csv"),
    ],
)
def test_refusals_of_options(build, classifier, videos, tmp_path, capsys, argv, match):
    build(classifier, videos, tmp_path / "index")
    with pytest.raises(SystemExit) as caught:
        search_main([str(tmp_path / "index"), *argv])
    assert caught.value.code == 2 and match in capsys.readouterr().err


def test_another_model_is_refused(build, classifier, tiny_folder, videos, tmp_path):
    model, index = tmp_path / "model", tmp_path / "index"
    shutil.copytree(tiny_folder, model)
    own = ZeroShotVideoClassificationPipeline(model=load_encoder(model), processor=load_processor(model))
    build(own, videos, index)
    train(own.model.requires_grad_(True)).save_pretrained(model)
    with pytest.raises(ModelError, match=r"another model than .*the weights of the model.*--model_name_or_path"):
        VideoIndex.open(index, device="cpu").search("red")
    shutil.rmtree(model)
    with pytest.raises(ModelError, match="--model_name_or_path"):
        VideoIndex.open(index, device="cpu").search("red")
    assert VideoIndex.open(index, model_name_or_path=str(tiny_folder), device="cpu").search("red")


def test_faiss_finds_the_same(build, classifier, videos, tmp_path):
    pytest.importorskip("faiss")
    build(classifier, videos, tmp_path / "index")
    index = VideoIndex.open(tmp_path / "index", classifier=classifier)
    for text in ("red circle", "blue square moving left"):
        exact, found = index.search(text, 100), index.search(text, 100, engine="faiss")
        # Copies have equal scores, in any order
        assert {(hit.video, hit.start) for hit in found} == {(hit.video, hit.start) for hit in exact}
        assert [hit.score for hit in found] == pytest.approx([hit.score for hit in exact], abs=1e-3)
