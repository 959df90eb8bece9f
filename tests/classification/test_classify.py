"""`ezclip classify` and `classify_videos`: answers, files, the cache of embeddings, and what cannot be read."""

import csv
import io
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import psutil
import pyarrow.parquet
import pytest
import torch

from ezclip import ReadLimits, VideoReadError, ZeroShotVideoClassificationPipeline, classify_videos
from ezclip.cli.classify import main
from ezclip.errors import DataError
from ezclip.systems.loading import load_model, load_processor
from ezclip.utils.synthetic_clips import write_video
from tests.helpers import edit_config, random_clip, read_lines, shared_path, train


LABELS = ["red circle", "green square", "blue circle"]


@pytest.fixture
def classifier(tiny_folder):
    return ZeroShotVideoClassificationPipeline(model=load_model(tiny_folder), processor=load_processor(tiny_folder))


@pytest.fixture
def clips(tmp_path):
    """Three clips."""
    paths = [tmp_path / "clips" / f"{name}.mp4" for name in ("a", "b 1", "c")]
    for seed, path in enumerate(paths):
        path.parent.mkdir(exist_ok=True)
        write_video(path, random_clip(seed))
    return paths


def run(tiny_folder, *argv) -> int:
    return main([*map(str, argv), "--model", str(tiny_folder)])


def has_children() -> bool:
    """Return whether this process has a child that decodes videos."""
    return any("reader_process" in " ".join(child.cmdline()) for child in psutil.Process().children())


def test_scores_of_the_pipeline(classifier, clips):
    answers = list(classify_videos(classifier, clips, LABELS, top_k=2, start=0.1))
    assert list(classify_videos(classifier, clips[0], LABELS, top_k=2, start=0.1)) == answers[:1]
    expected = classifier(list(map(str, clips)), LABELS, top_k=2, start=0.1)
    for answer, scores, clip in zip(answers, expected, clips, strict=True):
        assert answer.video == str(clip) and answer.error is None and len(answer.predictions) == 2
        assert [one["label"] for one in answer.predictions] == [one["label"] for one in scores]
        assert [one["score"] for one in answer.predictions] == pytest.approx([one["score"] for one in scores])


@pytest.mark.parametrize("num_workers", [2, 5])
def test_several_decoders_give_the_same_answers(classifier, clips, tmp_path, num_workers):
    videos = [*clips, tmp_path / "missing.mp4", *clips]
    answers = [
        [
            (answer.video, answer.predictions, answer.error)
            for answer in classify_videos(classifier, videos, LABELS, **n)
        ]
        for n in ({}, {"num_workers": num_workers})
    ]
    assert answers[0] == answers[1] and len(answers[0]) == len(videos)


def test_machine_is_measured_and_threads_are_divided(tiny_folder, clips, capsys, monkeypatch):
    threads = torch.get_num_threads()
    try:
        assert run(tiny_folder, *clips, "--labels", "red", "blue", "--num_workers", "-1") == 0
        plan = capsys.readouterr().out
        assert f"{torch.get_num_threads()} computing" in plan and " decoding" in plan
    finally:
        torch.set_num_threads(threads)


def test_options_of_the_pipeline(tiny_folder, clips, tmp_path):
    options = {"num_frames": 8, "num_clips": 2, "num_crops": 3, "square_pixels": True, "ensemble": "embedding"}
    classifier = ZeroShotVideoClassificationPipeline(
        model=load_model(tiny_folder),
        processor=load_processor(tiny_folder, num_frames=4),
        top_k=1,
        on_error="skip",
        **options,
    )
    expected = classifier(list(map(str, clips)), LABELS)
    for is_kept in (False, True):
        answers = list(classify_videos(classifier, clips, LABELS, cache_dir=tmp_path / "cache"))
        for answer, scores in zip(answers, expected, strict=True):
            assert answer.is_kept == is_kept
            assert [one["label"] for one in answer.predictions] == [one["label"] for one in scores]
            assert [one["score"] for one in answer.predictions] == pytest.approx([one["score"] for one in scores])
    with pytest.raises(ValueError, match="top_k"):
        next(classify_videos(classifier, clips, LABELS, top_k=0))


def test_unreadable_videos_do_not_lose_the_others(classifier, clips, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(clips[0].read_bytes()[:900])
    videos = [clips[0], broken, tmp_path / "no.mp4", clips[1]]
    first, second, missing, last = classify_videos(classifier, videos, LABELS)
    with pytest.raises(VideoReadError) as error:
        classifier(str(broken), LABELS)
    assert second.error in str(error.value)
    assert "does not exist" in missing.error and not missing.predictions
    assert first.predictions and last.predictions


def test_other_labels_need_no_decoding(classifier, clips, tmp_path):
    cache = tmp_path / "cache"
    for answer in classify_videos(classifier, clips, LABELS, cache_dir=cache):
        assert not answer.is_kept and has_children()
    moved = [clip.rename(clip.with_name(f"renamed {clip.name}")) for clip in clips]
    answers = []
    for answer in classify_videos(classifier, moved, ["red", "left"], cache_dir=cache):
        assert answer.is_kept and not has_children()
        answers.append(answer)
    expected = classifier(list(map(str, moved)), ["red", "left"])
    for answer, scores in zip(answers, expected, strict=True):
        assert [one["score"] for one in answer.predictions] == pytest.approx([one["score"] for one in scores])


def test_cache_depends_on_content_and_settings(classifier, clips, tmp_path):
    def decoded(**options) -> list[bool]:
        found = classify_videos(classifier, clips, LABELS, cache_dir=tmp_path / "cache", **options)
        return [not answer.is_kept for answer in found]

    assert decoded() == [True] * 3 and decoded() == [False] * 3
    assert decoded(end=0.3) == [True] * 3 and decoded() == [False] * 3
    write_video(clips[1], random_clip(7))
    assert decoded() == [False, True, False]
    image_processor = classifier.processor.image_processor
    mean, image_processor.image_mean = image_processor.image_mean, [0.5, 0.5, 0.5]
    assert decoded() == [True] * 3
    image_processor.image_mean = mean
    with torch.no_grad():
        classifier.model.text_projection.weight.mul_(2)  # the embedding of a video does not depend on it
    assert decoded() == [False] * 3
    train(classifier.model)
    assert decoded() == [True] * 3


def test_file_replaced_while_it_is_read(classifier, clips, tmp_path, monkeypatch):
    read_clip, content = classifier.processor.read_clip, clips[0].read_bytes()

    def replace_and_read(*args, **kwargs):
        shutil.copy(clips[1], clips[0])
        return read_clip(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(classifier.processor, "read_clip", replace_and_read)
        list(classify_videos(classifier, clips[:1], LABELS, cache_dir=tmp_path / "cache"))
    clips[0].write_bytes(content)
    (answer,) = classify_videos(classifier, clips[:1], LABELS, cache_dir=tmp_path / "cache")
    expected = classifier(str(clips[0]), LABELS)
    assert [one["score"] for one in answer.predictions] == pytest.approx([one["score"] for one in expected])


def test_threads_share_a_cache(classifier, clips, tmp_path):
    def answer(_) -> list:
        return list(classify_videos(classifier, clips, LABELS, cache_dir=tmp_path / "cache"))

    with ThreadPoolExecutor(3) as pool:
        first, *others = pool.map(answer, range(3))
    for other in others:
        assert [one.predictions[0]["label"] for one in other] == [one.predictions[0]["label"] for one in first]


def test_damaged_cache(classifier, clips, tmp_path, caplog):
    cache = tmp_path / "cache"
    list(classify_videos(classifier, clips, LABELS, cache_dir=cache))
    for path in cache.rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:50])
    again = list(classify_videos(classifier, clips, LABELS, cache_dir=cache))
    assert not any(answer.is_kept for answer in again) and "damaged" in caplog.text
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="--cache_dir"):
        list(classify_videos(classifier, clips, LABELS, cache_dir=tmp_path / "file" / "cache"))


def test_frames_in_a_folder_are_kept(classifier, tmp_path):
    frames = shared_path("clips", "frames", "v_ApplyEyeMakeup_g01_c01")
    copy = tmp_path / "frames"
    shutil.copytree(frames, copy)
    for is_kept in (False, True):
        (answer,) = classify_videos(classifier, [copy], LABELS, cache_dir=tmp_path / "cache")
        assert answer.is_kept == is_kept and answer.error is None
    pictures = sorted(copy.iterdir())
    pictures[0].rename(copy / "zzz.jpg")  # another order of the frames
    (answer,) = classify_videos(classifier, [copy], LABELS, cache_dir=tmp_path / "cache")
    assert not answer.is_kept


@pytest.mark.parametrize("damage", ["broken link", "pipe", "empty", "video"])
def test_damaged_folder_of_frames(classifier, clips, tmp_path, damage):
    frames, cache = tmp_path / "frames", tmp_path / "cache"
    shutil.copytree(shared_path("clips", "frames", "v_ApplyEyeMakeup_g01_c01"), frames)
    list(classify_videos(classifier, [frames], LABELS, cache_dir=cache))
    if damage == "broken link":
        (frames / "zz.jpg").symlink_to("nowhere.jpg")
    elif damage == "pipe":
        os.mkfifo(frames / "zz.jpg")
    elif damage == "empty":
        (frames / "zz.jpg").touch()
    else:  # pictures beside a video are no frames
        shutil.copy(clips[0], frames)
    first, second = classify_videos(classifier, [frames, clips[0]], LABELS, cache_dir=cache)
    assert first.error is not None and not first.predictions and second.predictions
    if damage == "video":
        assert "is a folder of 1 video" in first.error


def test_wrong_arguments(classifier, clips):
    with pytest.raises(TypeError, match="candidates"):
        next(classify_videos(classifier, clips, LABELS, candidates=["red"]))
    with pytest.raises(ValueError, match="class_bank"):
        next(classify_videos(classifier, clips))
    with pytest.raises(ValueError, match="playlist"):
        next(classify_videos(classifier, clips, LABELS, limits=ReadLimits(allow_playlists=True), cache_dir="cache"))


# ---- The command ----


@pytest.fixture
def holiday(tmp_path):
    """A folder as people have it: three real clips, a photo and a file that was not copied to its end."""
    folder = tmp_path / "holiday"
    folder.mkdir()
    for name, clip in (
        ("yoga.mp4", "OpenGVLab_Ask-Anything__yoga.mp4"),
        ("cake.mp4", "OpenGVLab_Ask-Anything__making_cake.mp4"),
        ("football.avi", "ROCm_vision__v_SoccerJuggling_g23_c01.avi"),
    ):
        shutil.copy(shared_path("clips", clip), folder / name)
    picture = next(shared_path("clips", "frames").rglob("*.jpg"))
    shutil.copy(picture, folder / "photo.jpg")
    (folder / "broken.mp4").write_bytes((folder / "yoga.mp4").read_bytes()[:900])
    return folder


def test_holiday_folder(tiny_folder, holiday, tmp_path, capsys, caplog, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["holiday", "--cache_dir", "cache", "--output_file", "answers.csv"]
    assert run(tiny_folder, *options, "--labels", "red circle, green square") == 1
    output = capsys.readouterr()
    assert output.out.startswith("4 videos, 2 labels: red circle, green square.")
    assert "3 videos classified, 3 decoded, 0 from cache. Answers: answers.csv" in output.out
    assert "█" in output.out and "yoga.mp4" in output.out
    assert "broken.mp4: is cut off: 900 of" in output.err
    assert "photo.jpg" in caplog.text and "photo.jpg" not in output.out
    with open("answers.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["video", "label", "score", "rank"]
    assert [row["rank"] for row in rows] == ["1", "2"] * 3
    assert {row["video"] for row in rows} == {f"holiday/{name}" for name in ("yoga.mp4", "cake.mp4", "football.avi")}

    assert run(tiny_folder, *options, "--labels", "blue", "left", "right") == 1
    assert "3 videos classified, 0 decoded, 3 from cache" in capsys.readouterr().out
    with open("answers.csv", newline="") as file:
        assert {row["label"] for row in csv.DictReader(file)} == {"blue", "left", "right"}


def test_output_formats(tiny_folder, clips, tmp_path):
    for suffix in ("csv", "jsonl", "parquet"):
        options = ["--labels", *LABELS, "--background_labels", "photo", "--top_k", 3]
        assert run(tiny_folder, *clips, *options, "--output_file", tmp_path / f"answers.{suffix}") == 0
    lines = read_lines(tmp_path / "answers.jsonl")
    assert len(lines) == 9 and pyarrow.parquet.read_table(tmp_path / "answers.parquet").to_pylist() == lines
    with open(tmp_path / "answers.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [{name: "" if value is None else str(value) for name, value in line.items()} for line in lines]
    expected = ZeroShotVideoClassificationPipeline(
        model=load_model(tiny_folder), processor=load_processor(tiny_folder)
    )(str(clips[0]), LABELS, background_labels="photo", top_k=3)
    assert [line["label"] for line in lines[:3]] == [one["label"] for one in expected]
    assert [line["score"] for line in lines[:3]] == pytest.approx([one["score"] for one in expected])


def test_patterns_lists_and_urls(tiny_folder, clips, tmp_path, loopback_server, monkeypatch, capsys):
    odd = os.fsencode(clips[0].parent) + b"/\xff.mp4"  # no UTF-8
    shutil.copy(clips[2], odd)
    lines = b"\n".join([os.fsencode(clips[1]), b"", odd, b""])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines), encoding="utf-8"))
    with loopback_server(clips[0].parent) as address:
        options = ["--labels", *LABELS, "--cache_dir", tmp_path / "cache"]
        videos = [clips[0].parent / "*.mp4", "-", f"{address}/c.mp4"]
        assert run(tiny_folder, *videos, *options) == 0
        output = capsys.readouterr().out
        # The file, its copy and the address have one content.
        assert output.startswith("5 videos") and "5 videos classified, 3 decoded, 2 from" in output


def test_absolute_and_relative_paths(tiny_folder, clips, monkeypatch, capsys):
    monkeypatch.chdir(clips[0].parent.parent)
    assert run(tiny_folder, clips[0], "clips/c.mp4", "--labels", *LABELS) == 0
    assert "\nclips/c.mp4 " in capsys.readouterr().out


def test_labels_from_files(tiny_folder, clips, tmp_path, capsys):
    lines, numbered = tmp_path / "labels.txt", tmp_path / "labels.csv"
    lines.write_text("red circle\n\n green square \n", encoding="utf-8")
    numbered.write_text("id,name\n0,red circle\n1,green square\n", encoding="utf-8")
    outputs = []
    for path in (lines, numbered):
        assert run(tiny_folder, clips[0], "--labels_file", path) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] and "1 video, 2 labels: red circle, green square." in outputs[0]
    texts = tmp_path / "texts.json"
    texts.write_text('{"red circle": "a red circle moving left", "green": ["green", "a green square"]}')
    assert run(tiny_folder, clips[0], "--descriptions", texts) == 0
    assert "1 video, 2 labels: red circle, green." in capsys.readouterr().out


@pytest.mark.parametrize(
    "options, message",
    [
        ([], "--labels"),
        (["--labels", "red", "blue", "--labels_file", "labels.txt"], "--labels_file"),
        (["--labels", "red", "Red"], "'Red'"),
        (["--labels", "red", "blue", "--output_file", "answers.xlsx"], ".parquet"),
        (["--labels", "red", "blue", "--top_k", "0"], "--top_k"),
        (["--labels", "red", "blue", "--num_workers", "0"], "--num_workers"),
        (["--labels", "red", "blue", "--device", "cuda:77"], "--device"),
        (["--labels", "red", "blue", "--start", "3", "--end", "2"], "`end`"),
        (["--labels", "red", "blue", "--dtype", "int8"], "--dtype"),
        (["--labels_file", "missing.txt"], "missing.txt"),
        (["--labels", "red, blue", "c.mp4"], "c.mp4"),
        (["--labels", "red", "blue", "--background_labels", "photo", "https://example.com/c"], "--background_labels"),
    ],
)
def test_wrong_options(tiny_folder, clips, options, message, capsys):
    with pytest.raises(SystemExit) as exit:
        run(tiny_folder, clips[0], *options)
    error = capsys.readouterr().err
    assert exit.value.code == 2 and message in error and len(error.splitlines()) == 1


@pytest.mark.parametrize("options", [["--labels", "red", "blue"], ["empty", "--labels", "red", "blue"]])
def test_no_videos(tiny_folder, tmp_path, options, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit) as exit:
        run(tiny_folder, *options)
    assert exit.value.code == 2 and "video" in capsys.readouterr().err


def test_toy_says_so(tiny_folder, clips, tmp_path, caplog):
    toy = tmp_path / "toy"
    shutil.copytree(tiny_folder, toy)
    edit_config(toy, scope="Trained on red shapes.")
    for _ in range(2):  # decoded, then kept
        assert run(toy, clips[0], "--labels", *LABELS, "--cache_dir", tmp_path / "cache") == 0
    assert caplog.text.count("Trained on red shapes.") == 1


def test_dtype(tiny_folder, clips, tmp_path):
    for dtype in ("float32", "bfloat16"):
        options = ["--labels", *LABELS, "--dtype", dtype, "--output_file", tmp_path / f"{dtype}.jsonl"]
        assert run(tiny_folder, clips[0], *options) == 0
    scores = [
        {line["label"]: line["score"] for line in read_lines(tmp_path / f"{dtype}.jsonl")}
        for dtype in ("float32", "bfloat16")
    ]
    assert scores[0] != scores[1] and scores[0] == pytest.approx(scores[1], abs=0.05)


def test_answers_so_far_are_written(tiny_folder, clips, tmp_path):
    for number in range(300):
        shutil.copy(clips[number % 3], clips[0].parent / f"{number:03}.mp4")
    command = [sys.executable, "-m", "ezclip", "classify", str(clips[0].parent), "--labels", *LABELS]
    command += ["--model", str(tiny_folder), "--output_file", str(tmp_path / "answers.jsonl")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while "%" not in process.stdout.readline():  # the first answer is on the screen
        pass
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130 and "stopped after" in error and "Traceback" not in error
    lines = read_lines(tmp_path / "answers.jsonl")
    assert 1 <= len({line["video"] for line in lines}) < 303
    assert os.path.exists(lines[0]["video"])
