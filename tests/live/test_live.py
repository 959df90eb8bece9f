"""`ezclip live`: scores, cuts, dropped frames, hostile streams, the command."""

import contextlib
import http.server
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime
from fractions import Fraction
from types import SimpleNamespace

import av
import pytest
from PIL import Image

from ezclip import ReadLimits, VideoReadError, ZeroShotVideoClassificationPipeline
from ezclip.cli.live import main
from ezclip.errors import DataError
from ezclip.live import watch
from ezclip.live.streams import LARGEST_LEAD, STARTED, LiveStream, read_live_windows
from ezclip.live.watching import LIVE_LIMITS
from ezclip.systems.loading import load_model, load_processor
from ezclip.utils.synthetic_clips import write_video
from tests.helpers import ROOT, random_clip, read_lines
from tests.live.stream_server import RtspServer, StreamServer


LABELS = ["red circle", "green square", "blue circle"]
SHORT = {"window": 0.5, "stride": 0.5}


@pytest.fixture(scope="module")
def classifier(tiny_folder):
    return ZeroShotVideoClassificationPipeline(model=load_model(tiny_folder), processor=load_processor(tiny_folder))


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """Two seconds of 24 frames, each different."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    write_video(path, random_clip(0, 48), rate=24)
    return str(path)


def scores_of(predictions):
    return {one["label"]: one["score"] for one in predictions}


def test_stream_is_cut_and_comes_back(classifier, film):
    notices, answers = [], []
    with StreamServer(film) as server:
        running = watch(classifier, server.address, LABELS, **SHORT, max_reconnects=1, on_notice=notices.append)
        answers += itertools.islice(running, 3)
        server.cut()
        answers.append(next(one for one in running if one.connection == 2))
        assert answers[-1].start == answers[-1].dropped_frames == 0
        server.is_down = True
        server.cut()
        with pytest.raises(VideoReadError, match="503"):
            list(running)
    assert [one.start for one in answers[:3]] == [0, 0.5, 1]
    for one in answers:
        # The stream begins with the file.
        expected = classifier(film, candidate_labels=LABELS, start=one.start, end=one.start + 0.5)
        assert scores_of(one.predictions) == pytest.approx(scores_of(expected), abs=1e-6)
    assert len(notices) == 2 and all("ended. Connecting again in 0.5 s" in text for text in notices)


@pytest.mark.slow
def test_silent_source_is_connected_to_again(classifier, film):
    notices, limits = [], ReadLimits(max_download_seconds=2.0)
    with StreamServer(film, stop_after=60) as server:
        answers = watch(classifier, server.address, LABELS, **SHORT, limits=limits, on_notice=notices.append)
        assert any(answer.connection == 2 for answer in itertools.islice(answers, 12))
    assert "sent nothing for 3 s" in notices[0]


def test_slow_model_drops_frames(classifier, film):
    names = ("class_choice", "merge_defaults", "model", "postprocess")
    slow = SimpleNamespace(**{name: getattr(classifier, name) for name in names})
    slow.processor = SlowProcessor(classifier.processor)
    with StreamServer(film) as server:
        answers = list(itertools.islice(watch(slow, server.address, LABELS, window=0.25, stride=0.25), 4))
    assert answers[-1].dropped_frames
    for before, after in itertools.pairwise(answers):
        assert after.dropped_frames == round((after.start - before.end) * 24)
        assert after.dropped_windows == round((after.start - before.start) / 0.25) - 1
        assert after.latency < 0.25 * after.start + 5  # does not add up


class SlowProcessor:
    """A processor whose `normalize` takes 0.7 s, in place of a large model."""

    def __init__(self, processor):
        self.get_sampler, self.crop_frames, self._normalize = (
            processor.get_sampler,
            processor.crop_frames,
            processor.normalize,
        )

    def normalize(self, frames):
        time.sleep(0.7)
        return self._normalize(frames)


# ---- The stream, in this process ----


class Camera(http.server.ThreadingHTTPServer):
    """A server whose every path is some bytes, and then some more, as a generator yields them."""

    daemon_threads = True

    def __init__(self, content):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self):
                self.send_response(200)
                self.end_headers()

            def do_GET(self):
                self.do_HEAD()
                with contextlib.suppress(OSError):
                    for part in content():
                        self.wfile.write(part)

            def log_message(self, *_):
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server_address[1]}/camera"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


def encode(frames, times, rate=1000, **options) -> bytes:
    """Return frames as MPEG-TS whose times, in milliseconds, are those given."""
    file = io.BytesIO()
    with av.open(file, "w", format="mpegts") as output:
        stream = output.add_stream("mpeg4", rate=24, **options)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
        stream.codec_context.time_base = Fraction(1, rate)
        for image, milliseconds in zip(frames, times):
            picture = av.VideoFrame.from_ndarray(image, format="rgb24")
            picture.pts = milliseconds
            output.mux(stream.encode(picture))
        output.mux(stream.encode())
    return file.getvalue()


def windows_of(content, window=0.5, stride=0.5, limits=LIVE_LIMITS):
    with Camera(content) as camera:
        found = read_live_windows(camera.address, window, stride, lambda count: [0, count - 1], lambda x: x, limits)
        return list(found)[1:]


def test_rtsp(film):
    with RtspServer(film) as server:
        found = read_live_windows(server.address, 0.5, 0.5, lambda count: [0], lambda x: x, LIVE_LIMITS)
        first, *windows = itertools.islice(found, 4)
        found.close()
    assert first == STARTED and [one.span for one in windows] == [(0, 11), (12, 23), (24, 35)]


def test_times_that_jump_back():
    """Three streams, one after the other, as after restarts of a camera."""
    part = encode(random_clip(1, 24), range(0, 1920, 80))
    windows = windows_of(lambda: [part, part, part])
    starts = [one.start for one in windows]
    assert starts == sorted(starts) and windows[-1].end == pytest.approx(5.6, abs=0.4)


def test_times_that_jump_far_ahead_make_no_flood():
    frames = random_clip(1, 24)
    times = [*range(0, 480, 40), *range(80_000_000, 80_000_480, 40)]
    windows = windows_of(lambda: [encode(frames, times)])
    assert len(windows) < 10 and windows[-1].end < LARGEST_LEAD


def test_pictures_without_times():
    """MJPEG in parts, as webcams serve it, with half a second between two pictures."""

    def content():
        for image in random_clip(1, 8):
            file = io.BytesIO()
            Image.fromarray(image).save(file, "JPEG")
            head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(file.getvalue())}\r\n\r\n"
            yield head.encode() + file.getvalue() + b"\r\n"
            time.sleep(0.2)

    windows = windows_of(content)
    assert windows[-1].span[1] == 7 and windows[0].clip.shape == (2, 48, 64, 3)


def test_frames_that_change_their_size():
    small, large = random_clip(1, 12), random_clip(2, 12, height=96, width=128)
    windows = windows_of(lambda: [encode(small, range(0, 480, 40)), encode(large, range(480, 960, 40))])
    assert {one.clip.shape for one in windows} == {(2, 48, 64, 3)} and windows[-1].end > 0.8


def test_frames_that_are_too_large():
    with pytest.raises(VideoReadError, match="max_pixels"):
        windows_of(lambda: [encode(random_clip(1, 12), range(12))], limits=ReadLimits(max_pixels=1000))


def test_frames_of_a_fast_stream_are_left_out():
    """A thousand frames a second, of which the model may get each eighth."""
    counts = []
    with Camera(lambda: [encode(random_clip(1, 200), range(200))]) as camera:
        list(read_live_windows(camera.address, 0.1, 0.1, lambda n: [counts.append(n) or 0], lambda x: x, LIVE_LIMITS))
    assert 5 < max(counts) < 20


def test_noise_is_named():
    with pytest.raises(VideoReadError, match="not a video file"):
        windows_of(lambda: [os.urandom(200_000)])


@pytest.mark.parametrize("source", ["missing.mp4", "ftp://127.0.0.1/a.ts", "/dev/video99", "rtsp://127.0.0.1:9/a"])
def test_sources_that_cannot_be_opened(source):
    with pytest.raises(VideoReadError) as caught:
        LiveStream(source)
    assert caught.value.remedy and "re-encode" not in caught.value.remedy


def test_public_addresses_only():
    limits = ReadLimits(public_addresses_only=True)
    for source in ("rtsp://127.0.0.1:9/a", "http://127.0.0.1:9/a"):
        with pytest.raises(VideoReadError, match="not a(n| public) address"):
            LiveStream(source, limits=limits)


# ---- The command ----


def test_file_at_its_own_rate(tiny_folder, classifier, film, tmp_path, capsys):
    argv = [film, "--model", str(tiny_folder), "--labels", *LABELS, "--window", "0.5", "--stride", "0.5"]
    assert main([*argv, "--output_file", str(tmp_path / "a.jsonl"), "--top_k", "2"]) == 0
    lines, printed = read_lines(tmp_path / "a.jsonl"), capsys.readouterr()
    assert [(one["start"], one["end"]) for one in lines] == [(0, 0.5), (0.5, 1), (1, 1.5), (1.5, 2)]
    for one in lines:
        expected = classifier(film, candidate_labels=LABELS, start=one["start"], end=one["end"], top_k=2)
        assert scores_of(one["predictions"]) == pytest.approx(scores_of(expected), abs=1e-6)
        assert one["latency"] >= 0 and one["connection"] == 1 and one["dropped_frames"] == 0
    first, last = (datetime.fromisoformat(lines[number]["time"]) for number in (0, -1))
    assert first.tzinfo and (last - first).total_seconds() > 1.2  # of 1.5 seconds
    assert len(printed.out.splitlines()) == 5 and f", {len(LABELS)} labels: " in printed.out
    assert lines[0]["predictions"][0]["label"] in printed.out
    assert "4 windows classified, 0 dropped" in printed.err


@pytest.mark.slow
def test_command_ends_by_ctrl_c(tiny_folder, film, tmp_path):
    with StreamServer(film) as server:
        command = [sys.executable, "-m", "ezclip", "live", server.address, "--model", str(tiny_folder)]
        command += ["--labels", *LABELS, "--output_file", "-"]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert len(json.loads(process.stdout.readline())["predictions"]) == 3
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "classified, 0 dropped" in errors and "Traceback" not in errors


def test_wrong_options(capsys, film):
    for argv, sentence in (
        ([film, "--labels", "a", "b", "--stride", "0", "--model", "x"], "x"),
        ([film, "--labels", "a", "b", "--top_k", "0"], "--top_k must be at least 1"),
        ([film, "--labels", "a", "b", "--reconnect", "-1"], "--reconnect must be at least 0"),
        ([film], "There are no labels"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(argv)
        assert ended.value.code == 2 and sentence in capsys.readouterr().err


def test_wrong_arguments(classifier, film):
    with pytest.raises(DataError, match="stride"):
        next(watch(classifier, film, LABELS, stride=0))
    with pytest.raises(TypeError, match="colour"):
        next(watch(classifier, film, LABELS, colour=1))
