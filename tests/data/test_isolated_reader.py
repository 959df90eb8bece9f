"""IsolatedReader: a file that hangs or crashes a decoder costs one video."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from multiprocessing import get_context

import numpy as np
import pytest
import torch

from ezclip import EZClipProcessor, VideoReadError
from ezclip.data.dataset import VideoDataset
from ezclip.data.isolated_reader import IsolatedReader
from ezclip.data.sources import load_files
from ezclip.utils.synthetic_clips import write_video
from tests.helpers import ROOT, random_clip
from video_ezclip import read_frames, uniform_frame_indices


eight = partial(uniform_frame_indices, num_frames=8)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_video(path, random_clip(0))
    return str(path)


@pytest.fixture
def silent_url():
    """A URL whose server never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/never.mp4"


def test_same_frames(clip):
    with IsolatedReader() as read:
        for video in (clip, open(clip, "rb").read(), {"path": clip, "bytes": None}, random_clip(1)):  # noqa: SIM115
            frames, metadata = read(video, eight)
            expected, expected_metadata = read_frames(video, eight)
            assert np.array_equal(frames, expected) and metadata == expected_metadata
        frames, metadata = read(clip, start=0.5, fps=4)
        assert metadata.timestamps == [0.5, 0.75, 1.0, 1.25]


def test_same_errors(clip):
    with IsolatedReader() as read:
        with pytest.raises(VideoReadError, match="nowhere.mp4: does not exist"):
            read("nowhere.mp4", eight)
        with pytest.raises(ValueError, match="`fps` must be greater than 0"):
            read(clip, fps=0)
        with pytest.raises(TypeError, match="got int"):
            read(3, eight)
        assert read(clip, eight)[1].total_num_frames == 12


def test_hanging_video(clip, silent_url):
    with IsolatedReader(timeout=1.0) as read:
        assert read(clip, eight)[1].total_num_frames == 12
        with pytest.raises(VideoReadError, match="never.mp4: takes longer than 1 seconds"):
            read(silent_url, eight)
        assert read(clip, eight)[1].total_num_frames == 12


def children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="processes are listed in /proc, which is not here")
def test_crash(clip, silent_url):
    before = children(os.getpid())
    with IsolatedReader() as read:
        read(clip, eight)
        (child,) = set(children(os.getpid())) - set(before)

        def crash():
            time.sleep(0.5)
            os.kill(child, signal.SIGSEGV)

        threading.Thread(target=crash).start()
        with pytest.raises(VideoReadError, match=r"never.mp4: crashes the decoder \(SIGSEGV\)"):
            read(silent_url, eight)
        assert read(clip, eight)[1].total_num_frames == 12
    assert children(os.getpid()) == before


def test_killed_child_is_tried_once_more(clip, silent_url):
    with IsolatedReader(timeout=3) as read:
        read(clip, eight)
        pid = read._child.pid
        threading.Timer(0.5, os.kill, (pid, signal.SIGKILL)).start()
        with pytest.raises(VideoReadError, match="takes longer than 3 seconds"):  # not "crashes"
            read(silent_url, eight)
        assert np.array_equal(read(clip, eight)[0], read_frames(clip, eight)[0])


def test_time_of_a_stopped_child_does_not_count(clip):
    with IsolatedReader(timeout=1) as read:
        read(clip, eight)
        os.kill(read._child.pid, signal.SIGSTOP)
        threading.Timer(2.5, os.kill, (read._child.pid, signal.SIGCONT)).start()
        assert np.array_equal(read(clip, eight)[0], read_frames(clip, eight)[0])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loader_continues_after_timeout(clip, silent_url, tiny_folder, num_workers):
    split = load_files([clip, silent_url, clip, clip])
    dataset = VideoDataset(split, EZClipProcessor.from_pretrained(tiny_folder), read=IsolatedReader(timeout=2.0))
    loader = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=num_workers)
    items = list(loader)
    assert [len(item["bad_videos"]) for item in items] == [0, 1, 0, 0]
    assert "takes longer" in items[1]["bad_videos"][0][1].reason
    assert torch.equal(items[0]["frames"], items[3]["frames"])


def read_and_report(read, clip, queue):
    queue.put(read(clip, eight)[1].total_num_frames)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_one_child_per_process(clip, method):
    context = get_context(method)
    with IsolatedReader() as read:
        read(clip, eight)
        queue = context.Queue()
        processes = [context.Process(target=read_and_report, args=(read, clip, queue)) for _ in range(2)]
        for process in processes:
            process.start()
        assert [queue.get(timeout=60) for _ in processes] == [12, 12]
        for process in processes:
            process.join()
        assert read(clip, eight)[1].total_num_frames == 12


def test_unpicklable_sampler(clip):
    with IsolatedReader() as read:
        with pytest.raises(TypeError, match="`sample` must be picklable"):
            read(clip, lambda total: [0])
        assert read(clip, eight)[1].total_num_frames == 12


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf")])
def test_bad_timeout(timeout):
    with pytest.raises(ValueError, match="`timeout` must be"):
        IsolatedReader(timeout)


@pytest.mark.parametrize(("kind", "message"), [("exit", "SystemExit: 3"), ("exception", "Unpicklable: gone")])
def test_sampler_error_is_no_crash(clip, kind, message, tmp_path, monkeypatch):
    (tmp_path / "samplers.py").write_text(
        "class Unpicklable(Exception):\n"
        "    def __init__(self, what, why):\n"
        "        super().__init__(what)\n"
        "def fail(total_frames, kind):\n"
        "    raise SystemExit(3) if kind == 'exit' else Unpicklable('gone', 'because')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    import samplers

    with IsolatedReader() as read:
        with pytest.raises(RuntimeError, match=message):
            read(clip, partial(samplers.fail, kind=kind))
        assert read(clip, eight)[1].total_num_frames == 12


def test_modules_in_working_folder(clip, tmp_path, monkeypatch):
    for name in ("signal", "av", "numpy"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('not this one')")
    monkeypatch.chdir(tmp_path)
    with IsolatedReader() as read:
        assert read(clip, eight)[1].total_num_frames == 12


def test_relative_paths(clip, tmp_path, monkeypatch):
    with IsolatedReader() as read:
        for folder in (os.path.dirname(clip), tmp_path):
            monkeypatch.chdir(folder)
            assert read(os.path.relpath(clip), eight)[1].total_num_frames == 12


ORPHAN = """
import sys
from ezclip.data.isolated_reader import IsolatedReader
read = IsolatedReader()
read(sys.argv[1])
print(read._child.pid, flush=True)
read(sys.argv[2])
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_child_ends_with_its_parent(clip, silent_url, number):
    parent = subprocess.Popen(
        [sys.executable, "-c", ORPHAN, clip, silent_url],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    child = int(parent.stdout.readline())
    time.sleep(0.5)  # the child waits for the network
    parent.send_signal(number)
    parent.wait()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail(f"process {child} is still there")
