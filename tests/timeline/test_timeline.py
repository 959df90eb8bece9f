"""Timelines: windows, segments, streams, damage, files, the command."""

import csv
import io
import json
import os
import re
import shutil
import signal
import sys
import threading
import types
import weakref
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from ezclip import ClassBank, VideoReadError, ZeroShotVideoClassificationPipeline
from ezclip.cli.timeline import main
from ezclip.errors import DataError
from ezclip.systems.loading import load_model, load_processor
from ezclip.timeline import frame_streams, windows as windows_module
from ezclip.timeline.results import Timeline
from ezclip.timeline.search import find_segments
from ezclip.timeline.segments import merge_windows
from ezclip.utils.synthetic_clips import write_video
from tests.helpers import random_clip, shared_path


COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220), "grey": (128, 128, 128)}
RATE = 8


@pytest.fixture(scope="module")
def classifier(tiny_folder):
    return ZeroShotVideoClassificationPipeline(model=load_model(tiny_folder), processor=load_processor(tiny_folder))


def colours(*parts: tuple[str, float], rate: int = RATE) -> np.ndarray:
    """Return frames of each colour for some seconds, with a little noise."""
    frames = [np.full((round(seconds * rate), 32, 48, 3), COLOURS[name]) for name, seconds in parts]
    frames = np.concatenate(frames)
    noise = np.random.default_rng(0).integers(-6, 7, (len(frames), 4, 6, 3)).repeat(8, 1).repeat(8, 2)
    return np.clip(frames + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def bank(classifier):
    """A class bank whose embeddings match videos of the colours."""
    processor = classifier.processor
    pixels = torch.stack([processor.frames_to_pixels(colours((name, 1))) for name in COLOURS])
    with torch.no_grad():
        embeds = classifier.model.get_video_features(pixels).pooler_output
    # Each class is orthogonal to the videos of the other colours.
    embeds = torch.linalg.pinv(torch.nn.functional.normalize(embeds, dim=-1)).T
    return ClassBank(list(COLOURS), torch.nn.functional.normalize(embeds, dim=-1)[None])


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """Red for 6 seconds, blue for 5, green for 7, red for 6."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    write_video(path, colours(("red", 6), ("blue", 5), ("green", 7), ("red", 6)), RATE)
    return path


def write_timed(path, frames: np.ndarray, seconds: list[float], codec: str = "libx264", **options):
    """Write a video whose frames have these display times."""
    with av.open(str(path), "w", **options) as container:
        stream = container.add_stream(codec, rate=RATE)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for frame, second in zip(frames, seconds):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts, picture.time_base = round(1000 * second), stream.time_base
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def look(classifier, video, bank, **options) -> Timeline:
    return find_segments(classifier, video, class_bank=bank, disable_tqdm=True, **options)


def shown(timeline: Timeline) -> list[tuple]:
    return [(one.label, one.start, one.end) for one in timeline.segments]


def assert_scores_match_pipeline(timeline, classifier, path, bank):
    for start, end, scores in zip(timeline.starts, timeline.ends, timeline.scores):
        expected = {one["label"]: one["score"] for one in classifier(str(path), class_bank=bank, start=start, end=end)}
        assert scores == pytest.approx([expected[label] for label in timeline.labels], abs=1e-5), (start, end)


# Windows


@pytest.mark.parametrize("window,stride", [(2, 1), (1.3, 0.45), (0.7, 2.5), (100, 1)])
@pytest.mark.parametrize("kind", ["steady", "variable", "late", "b-frames in AVI", "sparse"])
def test_scores_match_pipeline(classifier, bank, tmp_path, kind, window, stride):
    frames = random_clip(3, 24)
    path = tmp_path / {"steady": "video.mp4", "b-frames in AVI": "video.avi"}.get(kind, "video.mkv")
    rng = np.random.default_rng(5)
    if kind in ("steady", "b-frames in AVI"):
        write_video(path, frames, RATE)
    elif kind == "variable":
        write_timed(path, frames, np.cumsum(rng.choice([0.033, 0.1, 0.4], 24)).tolist())
    elif kind == "late":
        write_timed(path, frames, (3.3 + np.arange(24) / RATE).tolist())
    else:
        write_timed(path, frames[:6], [0, 0.1, 5.2, 5.3, 5.4, 9.0])
    timeline = look(classifier, path, bank, window=window, stride=stride, batch_size=3)
    assert len(timeline.starts) >= 1 and (np.diff(timeline.ends) > 0).all()
    assert_scores_match_pipeline(timeline, classifier, path, bank)


def test_window_times(classifier, bank, film):
    timeline = look(classifier, film, bank, window=5, stride=4)
    assert timeline.starts.tolist() == [0, 4, 8, 12, 16, 20]
    assert timeline.ends == pytest.approx([5, 9, 13, 17, 21, 24])
    assert timeline.times == pytest.approx([2.5, 6.5, 10.5, 14.5, 18.5, 22])
    assert timeline.scores.shape == (6, 4) and timeline.scores.sum(axis=1) == pytest.approx(1)


def test_short_video(classifier, bank, tmp_path):
    write_video(tmp_path / "short.mp4", colours(("green", 0.5)), RATE)
    timeline = look(classifier, tmp_path / "short.mp4", bank, window=10)
    assert shown(timeline) == [("green", 0, pytest.approx(0.5))]
    # No window of the grid contains a frame.
    write_timed(tmp_path / "between.mkv", colours(("blue", 0.4)), [0.6, 0.65, 0.7])
    assert shown(look(classifier, tmp_path / "between.mkv", bank, window=0.5, stride=3)) == [
        ("blue", pytest.approx(0.6), pytest.approx(0.75))
    ]


def test_no_repeated_work(classifier, bank, tmp_path, monkeypatch):
    seconds = [*np.arange(16) / RATE, *(12 + np.arange(16) / RATE)]  # a pause of ten seconds
    write_timed(tmp_path / "pause.mkv", colours(("red", 2), ("blue", 2)), seconds)
    made, embedded = [], []
    processor, model = classifier.processor, classifier.model
    crop, to_embeds = processor.crop_frames, model.get_video_features
    monkeypatch.setattr(processor, "crop_frames", lambda frames: made.append(len(frames)) or crop(frames))

    def counting(pixels, **kwargs):
        embedded.append(len(pixels))
        return to_embeds(pixels, **kwargs)

    monkeypatch.setattr(model, "get_video_features", counting)
    timeline = look(classifier, tmp_path / "pause.mkv", bank, window=2, stride=0.25, smoothing=1)
    assert sum(made) <= 32 and len(timeline.starts) == 49
    assert sum(embedded) == 49 - sum(2 <= start <= 10 for start in timeline.starts) + 1
    assert [one.label for one in timeline.segments] == ["red", "blue"]


# Boundaries


@pytest.mark.parametrize("window,stride", [(2, 1), (1, 0.5), (2, 2)])
def test_boundaries(classifier, bank, film, window, stride):
    timeline = look(classifier, film, bank, window=window, stride=stride)
    assert [one.label for one in timeline.segments] == ["red", "blue", "green", "red"]
    edges = [timeline.segments[0].start, *(one.end for one in timeline.segments)]
    assert edges == pytest.approx([0, 6, 11, 18, 24], abs=stride)
    assert edges[0] == 0 and edges[-1] == pytest.approx(24)
    assert all(one.score > 0.5 for one in timeline.segments)


def test_background_and_min_score(classifier, bank, tmp_path):
    write_video(tmp_path / "film.mp4", colours(("red", 4), ("grey", 4), ("blue", 4)), RATE)
    timeline = look(classifier, tmp_path / "film.mp4", bank, background_labels=["grey", "green"])
    assert timeline.labels == ["red", "blue", None]
    assert shown(timeline) == [
        ("red", 0, pytest.approx(4, abs=1)),
        ("blue", pytest.approx(8, abs=1), pytest.approx(12)),
    ]
    without = ClassBank(["red", "blue"], bank.embeds[:, [0, 2]])
    flat = ClassBank(["red", "blue", "again"], torch.cat([without.embeds, without.embeds[:, :1]], dim=1))
    timeline = look(classifier, tmp_path / "film.mp4", flat)
    assert timeline.scores[0] == pytest.approx([0.5, 0, 0.5], abs=1e-3)
    assert {one.label for one in timeline.resegment(min_score=0.6).segments} == {"blue"}
    assert {one.label for one in timeline.resegment(min_score=0.4).segments} == {"red", "blue"}


def test_classes_match_pipeline(classifier, film):
    labels, template = ["red circle", "green square"], "a {}"
    timeline = find_segments(
        classifier, film, labels, hypothesis_template=template, background_labels="photo", window=6, disable_tqdm=True
    )
    assert timeline.labels == [*labels, None]
    scores = classifier(str(film), labels, hypothesis_template=template, background_labels="photo", start=0, end=6)
    assert timeline.scores[0] == pytest.approx(
        [next(one["score"] for one in scores if one["label"] == label) for label in timeline.labels], abs=1e-5
    )


def segments_of(rows: list[str], labels: str = "ab", **options) -> list[tuple]:
    """Merge windows of a second. Each letter is a class with a score of 0.9; "." is the background."""
    columns = [*labels, None]
    scores = np.full((len(rows), len(columns)), 0.1 / (len(columns) - 1))
    for row, letter in zip(scores, rows):
        row[columns.index(None if letter == "." else letter)] = 0.9
    starts = np.arange(len(rows), dtype=float)
    found = merge_windows(starts, starts + 1, scores, columns, **{"smoothing": 1, **options})
    return [(one.label, one.start, one.end) for one in found]


def test_merge_windows():
    assert segments_of("aabb.b") == [("a", 0, 2), ("b", 2, 4), ("b", 5, 6)]
    assert segments_of("...") == [] and segments_of("") == []
    assert segments_of("aabaabbabb", smoothing=3) == [("a", 0, 5), ("b", 5, 10)]


@pytest.mark.parametrize(
    "rows,expected",
    [
        ("aaabaaa", [("a", 0, 7)]),  # a flicker
        ("aaa.aaa", [("a", 0, 7)]),  # a gap
        ("aaa.bbb", [("a", 0, 3), ("b", 4, 7)]),  # a gap between two classes stays
        ("aaaa..b", [("a", 0, 4)]),  # beside a gap
        ("..b....", []),
        ("baaaaaa", [("a", 0, 7)]),
        ("b", []),
        ("aababaaa", [("a", 0, 8)]),
    ],
)
def test_min_duration(rows, expected):
    assert segments_of(rows, min_duration=2) == expected


def test_split_short_segment():
    scores = np.array([[9, 0, 0], [9, 0, 0], [9, 0, 0], [3, 1, 5], [1, 3, 5], [0, 9, 0], [0, 9, 0], [0, 9, 0]]) / 9
    starts = np.arange(8.0)
    found = merge_windows(starts, starts + 1, scores, ["a", "b", "c"], smoothing=1, min_duration=3)
    assert [(one.label, one.start, one.end) for one in found] == [("a", 0, 4), ("b", 4, 8)]
    assert found[0].score == pytest.approx((3 * 9 + 3) / 9 / 4)


def test_many_short_segments():
    rng = np.random.default_rng(0)
    starts, scores = np.arange(20_000.0), rng.random((20_000, 3))
    found = merge_windows(starts, starts + 1, scores, ["a", "b", "c"], smoothing=1, min_duration=20)
    assert all(one.end - one.start >= 20 for one in found)
    assert found[0].start == 0 and found[-1].end == 20_000


# Streams, gaps, damage


def test_pipe(classifier, bank, film, tmp_path):
    frames = colours(("red", 4), ("blue", 4))
    write_timed(tmp_path / "live.mkv", frames, (np.arange(64) / RATE).tolist(), options={"live": "1"})
    expected = look(classifier, tmp_path / "live.mkv", bank)
    reading, writing = os.pipe()

    def write():
        with open(writing, "wb") as file:
            file.write((tmp_path / "live.mkv").read_bytes())

    threading.Thread(target=write, daemon=True).start()
    with open(reading, "rb") as pipe:
        timeline = look(classifier, pipe, bank)
    assert shown(timeline) == shown(expected) and [one.label for one in timeline.segments] == ["red", "blue"]
    np.testing.assert_array_equal(timeline.scores, expected.scores)


@pytest.mark.parametrize("kind", ["bytes", "file", "row", "URL"])
def test_kinds_of_input(classifier, bank, film, loopback_server, kind):
    expected = look(classifier, film, bank)
    if kind == "URL":
        with loopback_server(film.parent) as address:
            timeline = look(classifier, f"{address}/film.mp4", bank)
    elif kind == "file":
        with open(film, "rb") as file:
            timeline = look(classifier, file, bank)
    else:
        timeline = look(classifier, film.read_bytes() if kind == "bytes" else {"path": str(film)}, bank)
    np.testing.assert_array_equal(timeline.scores, expected.scores)


def test_joined_recordings(classifier, bank, tmp_path):
    for name, parts in (("a", [("red", 4)]), ("b", [("blue", 4)])):
        write_timed(tmp_path / f"{name}.ts", colours(*parts), (np.arange(32) / RATE).tolist())
    joined = tmp_path / "joined.ts"
    joined.write_bytes((tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes())
    timeline = look(classifier, joined, bank, window=1, stride=0.5)
    assert [one.label for one in timeline.segments] == ["red", "blue"]
    assert timeline.segments[0].end == pytest.approx(4, abs=0.5) and timeline.ends[-1] == pytest.approx(8, abs=0.3)


def test_wrong_times(classifier, bank, tmp_path):
    seconds = [*np.arange(32) / RATE, *(9000 + np.arange(16) / RATE)]
    write_timed(tmp_path / "wrong.mkv", colours(("red", 6)), seconds)
    with pytest.raises(VideoReadError, match="has no frame from 3.9 s to 9000.0 s") as caught:
        look(classifier, tmp_path / "wrong.mkv", bank)
    assert caught.value.timeline.ends.tolist() == [2, 3]
    timeline = look(classifier, tmp_path / "wrong.mkv", bank, allow_partial=True)
    assert shown(timeline) == [("red", 0, pytest.approx(4))] and "no frame from 3.9 s" in timeline.problem


def damaged_copy(film, path):
    """Write a film in which a second in the middle cannot be decoded."""
    content = bytearray(film.read_bytes())
    with av.open(str(film)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    for position, size in packets[90:98]:
        content[position + 5 : position + size] = bytes(size - 5)
    path.write_bytes(content)
    return path


def test_damage_in_the_middle(classifier, bank, film, tmp_path):
    damaged = damaged_copy(film, tmp_path / "damaged.mp4")
    with pytest.raises(VideoReadError, match="allow_partial") as caught:
        look(classifier, damaged, bank)
    before = caught.value.timeline
    assert 5 < before.ends[-1] < 12 and before.segments[0].label == "red"
    timeline = look(classifier, damaged, bank, allow_partial=True)
    assert "cannot be decoded" in timeline.problem
    assert timeline.ends[-1] == pytest.approx(24)
    assert timeline.segments[0].label == timeline.segments[-1].label == "red"


def test_cut_file(classifier, bank, film, tmp_path):
    write_video(tmp_path / "film.mkv", colours(("red", 6), ("blue", 6)), RATE)
    content = (tmp_path / "film.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(content[: len(content) // 2])
    with pytest.raises(VideoReadError, match="is cut off"):
        look(classifier, tmp_path / "cut.mkv", bank)
    timeline = look(classifier, tmp_path / "cut.mkv", bank, allow_partial=True)
    assert "is cut off" in timeline.problem and 1 < timeline.ends[-1] < 12


@pytest.mark.parametrize(
    "video,message",
    [
        ("none.mp4", "does not exist"),
        (b"not a video", "is not a video file"),
        (np.zeros((8, 32, 32, 3), np.uint8), "has no times of its frames"),
        ({"path": None, "bytes": None}, "has neither a path nor bytes"),
        (io.BytesIO(), "is not a video file"),
    ],
)
def test_bad_input(classifier, bank, video, message):
    with pytest.raises(VideoReadError, match=message):
        look(classifier, video, bank)


def test_rotation(classifier, bank, tmp_path):
    path = shared_path("clips", "derived", "rot90_taichi.mp4")
    assert_scores_match_pipeline(look(classifier, path, bank, window=1.5, stride=1.5), classifier, path, bank)


# Memory


def test_constant_memory(classifier, bank, tmp_path, monkeypatch):
    """Only the frames of a window and of the previous one are in memory."""
    held, counts = weakref.WeakSet(), []

    class CountedFrame(frame_streams.StreamedFrame):
        def __init__(self, *args):
            super().__init__(*args)
            held.add(self)
            counts.append(len(held))

    monkeypatch.setattr(frame_streams, "StreamedFrame", CountedFrame)
    most = []
    for seconds in (6, 30):
        write_video(tmp_path / f"{seconds}.mp4", colours(("red", seconds)), RATE)
        look(classifier, tmp_path / f"{seconds}.mp4", bank, window=1, stride=0.5)
        most.append(max(counts))
    assert most[0] == most[1] <= 2 * RATE and not held


def test_memory_limit(classifier, bank, film, monkeypatch):
    expected = look(classifier, film, bank)
    monkeypatch.setattr(windows_module, "MAX_PICTURE_BYTES", 5 * 32 * 48 * 3 // 2)
    np.testing.assert_array_equal(look(classifier, film, bank).scores, expected.scores)


# Files


@pytest.fixture
def timeline() -> Timeline:
    """A timeline of 100 minutes whose labels need escapes."""
    labels = ["<i>bold</i> & -->", 'a "cake",\nor two', "弓道", "كرة القدم", "$x_1$ {\\an8}", None]
    scores = np.full((6, 6), 0.02)
    np.fill_diagonal(scores, 0.9)
    starts = np.arange(6) * 1000.25
    return Timeline("film.mp4", labels, starts, starts + 1000.25, scores, 1000.25, 1000.25, smoothing=1)


def test_json_and_csv(timeline, tmp_path):
    timeline.save_all(tmp_path / "new")
    content = json.loads((tmp_path / "new" / "timeline.json").read_text(encoding="utf-8"))
    assert content["labels"] == timeline.labels and content["video"] == "film.mp4" and content["problem"] is None
    assert np.array(content["scores"]) == pytest.approx(timeline.scores) and content["starts"][1] == 1000.25
    assert content["segments"][2] == {"start": 2000.5, "end": 3000.75, "label": "弓道", "score": pytest.approx(0.9)}
    with open(tmp_path / "new" / "timeline.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == timeline.labels[:5] and rows[1]["start"] == "1000.250"
    assert sorted(path.suffix for path in (tmp_path / "new").iterdir()) == [".csv", ".json", ".png", ".srt", ".vtt"]


def test_subtitles(timeline, tmp_path):
    timeline.save(tmp_path / "film.srt")
    cues = (tmp_path / "film.srt").read_text(encoding="utf-8").strip().split("\n\n")
    assert len(cues) == 5
    assert cues[0] == "1\n00:00:00,000 --> 00:16:40,250\n‹i›bold‹/i› & --› (90 %)"
    assert cues[1] == '2\n00:16:40,250 --> 00:33:20,500\na "cake", or two (90 %)'
    assert cues[4] == "5\n01:06:41,000 --> 01:23:21,250\n$x_1$ (\\an8) (90 %)"
    timeline.save(tmp_path / "film.vtt")
    head, *cues = (tmp_path / "film.vtt").read_text(encoding="utf-8").strip().split("\n\n")
    assert head == "WEBVTT" and len(cues) == 5
    assert cues[0] == "00:00:00.000 --> 00:16:40.250\n&lt;i&gt;bold&lt;/i&gt; &amp; --&gt; (90 %)"


def test_subtitles_in_ffmpeg(timeline, tmp_path):
    for name in ("film.srt", "film.vtt"):
        timeline.save(tmp_path / name)
        with av.open(str(tmp_path / name)) as container:
            times = [float(p.pts * p.time_base) for p in container.demux() if p.size]
        assert times == pytest.approx([one.start for one in timeline.segments])


def test_picture(timeline, tmp_path, recwarn):
    pytest.importorskip("matplotlib")
    timeline.save(tmp_path / "film.svg")
    svg = (tmp_path / "film.svg").read_text(encoding="utf-8")
    assert svg.count('id="axes_') == 6 and "none of these" in svg and "http-equiv" not in svg
    timeline.save(tmp_path / "film.png")
    assert (tmp_path / "film.png").read_bytes().startswith(b"\x89PNG")
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]


def test_picture_of_many_classes(tmp_path):
    pytest.importorskip("matplotlib")
    scores = np.full((4, 400), 0.0005)
    scores[:2, 7] = scores[2:, 399] = 0.8
    starts = np.arange(4.0)
    labels = [f"class {number}" for number in range(400)]
    Timeline("film.mp4", labels, starts, starts + 1, scores, 1.0, 1.0).save(tmp_path / "film.svg")
    svg = (tmp_path / "film.svg").read_text(encoding="utf-8")
    assert svg.count('id="axes_') == 12 and "<!-- class 7 -->" in svg and "<!-- class 399 -->" in svg
    assert "388 classes that are not drawn" in svg


# Bad input


@pytest.mark.parametrize(
    "options,message",
    [
        ({"window": 0}, "`window` must be a number of seconds"),
        ({"stride": float("nan")}, "`stride` must be a number of seconds"),
        ({"batch_size": 0}, "`batch_size` must be a whole number"),
        ({"smoothing": 2}, "`smoothing` must be an odd number"),
        ({"min_score": 2}, "`min_score` must be a probability"),
        ({"min_duration": -1}, "`min_duration` must be a number of seconds"),
        ({"ensemble": "mean"}, "`ensemble` must be one of"),
        ({"background_labels": ["purple"]}, "The class bank has no 'purple'"),
    ],
)
def test_options_out_of_range(classifier, bank, film, options, message):
    with pytest.raises(ValueError, match=message):
        look(classifier, film, bank, **options)


def test_unknown_options(classifier, bank, film, timeline, tmp_path):
    with pytest.raises(TypeError, match=r"\['windows'\]"):
        look(classifier, film, bank, windows=3)
    with pytest.raises(DataError, match=r".json, .csv, .srt.*film\.txt"):
        timeline.save(tmp_path / "film.txt")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"):
        timeline.save(tmp_path / "file" / "film.srt")


# The command


@pytest.fixture(scope="module")
def bank_folder(bank, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bank")
    bank.save_pretrained(folder)
    return folder


def run(tiny_folder, bank_folder, *args) -> int:
    return main([*map(str, args), "--model_name_or_path", str(tiny_folder), "--class_bank", str(bank_folder)])


def test_command(tiny_folder, bank_folder, film, tmp_path, capsys):
    files = [tmp_path / "film.srt", tmp_path / "film.json"]
    assert run(tiny_folder, bank_folder, film, "--output_file", *files) == 0
    captured = capsys.readouterr()
    rows = [re.fullmatch(r"(\S+)  (\S+)  +(\S+) %  (.+)", line) for line in captured.out.splitlines()]
    assert [row[4] for row in rows] == ["red", "blue", "green", "red"] and rows[0][1] == "0:00:00.0"
    assert "4 segments in 23 windows, up to 0:00:24.0." in captured.err and "24/24 s" in captured.err
    assert files[0].read_text().count("-->") == 4 and len(json.loads(files[1].read_text())["scores"]) == 23


def test_command_with_damage(tiny_folder, bank_folder, film, tmp_path, capsys):
    damaged = damaged_copy(film, tmp_path / "damaged.mp4")
    args = (damaged, "--output_dir", tmp_path / "out")
    assert run(tiny_folder, bank_folder, *args) == 1
    captured = capsys.readouterr()
    assert "damaged.mp4: cannot be decoded as a whole" in captured.err and "red" in captured.out
    content = json.loads((tmp_path / "out" / "timeline.json").read_text())
    assert "cannot be decoded" in content["problem"] and content["ends"][-1] < 12
    assert run(tiny_folder, bank_folder, *args, "--allow_partial") == 0
    assert "not all of" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "timeline.json").read_text())["ends"][-1] == pytest.approx(24)


@pytest.mark.parametrize(
    "args,message",
    [
        (["--output_file", "film.doc"], "film.doc"),
        (["--candidate_labels", "red", "--label_list", "x.csv"], "--label_list"),
        (["--window", "-1"], "`window` must be a number of seconds"),
        (["--device", "cuda:99"], "--device cuda:99 cannot be used"),
    ],
)
def test_command_errors(tiny_folder, bank_folder, film, capsys, args, message):
    with pytest.raises(SystemExit) as ended:
        run(tiny_folder, bank_folder, film, *args)
    assert ended.value.code == 2
    assert message in (error := capsys.readouterr().err) and "Traceback" not in error


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["film.mp4", "photo.jpg"],
            "is a folder of 1 video",
        ),
        (["1.jpg", "2.jpg"], "has no times of its frames. Give a video file."),
        ([], "is a folder without frame images"),
        (None, "does not exist"),
    ],
)
def test_command_on_a_folder(film, tmp_path, capsys, names, message):
    folder = tmp_path / "folder"
    for name in names or ():
        folder.mkdir(exist_ok=True)
        shutil.copy(film, folder / name)
    if names == []:
        folder.mkdir()
    assert main([str(folder), "--model_name_or_path", "no/model"]) == 1  # before the model is loaded
    assert message in capsys.readouterr().err.replace(str(folder), "FOLDER")


class Interrupted(io.RawIOBase):
    """A pipe that sends Ctrl-C at the first read."""

    def __init__(self, content: bytes):
        self.rest, self.is_pressed = content, False

    def read(self, size: int) -> bytes:
        if not self.is_pressed and self.rest:
            self.is_pressed = True
            signal.raise_signal(signal.SIGINT)
        head, self.rest = self.rest[:size], self.rest[size:]
        return head

    def seekable(self) -> bool:
        return False


def test_ctrl_c(tiny_folder, bank_folder, tmp_path, monkeypatch, capsys):
    write_timed(tmp_path / "live.mkv", colours(("red", 30)), (np.arange(240) / RATE).tolist(), options={"live": "1"})
    stdin = types.SimpleNamespace(buffer=Interrupted((tmp_path / "live.mkv").read_bytes()))
    monkeypatch.setattr(sys, "stdin", stdin)
    args = ("-", "--batch_size", 4, "--output_file", tmp_path / "live.json")
    assert run(tiny_folder, bank_folder, *args) == 130
    captured = capsys.readouterr()
    assert captured.out == "0:00:00.0  0:00:05.0  100.0 %  red\n" and "Stopped after 5.0 s." in captured.err
    found = json.loads((tmp_path / "live.json").read_text())
    assert found["problem"] == "Stopped after 5.0 s." and found["ends"] == [2, 3, 4, 5]
