"""scripts/benchmark.py: what it reports and what it refuses. How fast anything is, is no matter of tests."""

import json
import subprocess
import sys

import numpy as np
import pytest

from ezclip.demo import write_video
from scripts import benchmark

from .conftest import ROOT, random_clip


READERS = {
    "ezclip": None,
    "load_video + CLIPImageProcessor": "ezclip",
    "ezclip frames": None,
    "PyAV in sequence": "ezclip frames",
    "decord by index": "ezclip frames",
}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    paths = [tmp_path_factory.mktemp("videos") / name for name in ("a.mp4", "b|c.mkv")]
    for seed, path in enumerate(paths):
        write_video(path, random_clip(seed))
    return [str(path) for path in paths]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, videos):
    """What the command writes."""
    folder = tmp_path_factory.mktemp("out") / "new"
    command = [sys.executable, str(ROOT / "scripts" / "benchmark.py"), "decode", *videos, "--output_dir", str(folder)]
    result = subprocess.run(
        [*command, "--rounds", "2", "--num_frames", "4"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert (folder / "decode.md").read_text(encoding="utf-8") == result.stdout
    return folder


def test_decode_reports_machine_files_and_readers(folder, videos):
    result = json.loads((folder / "decode.json").read_text(encoding="utf-8"))
    assert (result["num_frames"], result["rounds"]) == (4, 2)
    assert {"processor", "cores", "system", "versions"} == result["machine"].keys()
    assert {"python", "torch", "transformers", "av", "decord", "libavcodec"} <= result["machine"]["versions"].keys()
    assert [video["video"] for video in result["videos"]] == videos
    for video in result["videos"]:
        assert (video["width"], video["height"], video["codec"], video["total_num_frames"]) == (64, 48, "h264", 12)
        assert video["access"] in ("index", "sequence")
        assert list(video["readers"]) == list(READERS)
        assert video["readers"]["PyAV in sequence"]["same_frames"] is True


def test_ratios_are_quotients_of_medians(folder):
    for video in json.loads((folder / "decode.json").read_text(encoding="utf-8"))["videos"]:
        readers = {name: reader for name, reader in video["readers"].items() if "failed" not in reader}
        for name, reader in readers.items():
            for clock in ("cpu_ms", "wall_ms"):
                rounds = reader[clock]["rounds"]
                assert len(rounds) == 2 and reader[clock]["median"] == pytest.approx(np.median(rounds))
                assert min(rounds) <= reader[clock]["quartiles"][0] <= reader[clock]["quartiles"][1] <= max(rounds)
            assert reader["clips_per_second_per_core"] == pytest.approx(1000 / reader["cpu_ms"]["median"])
            if READERS[name] is None:
                assert "against" not in reader
                continue
            against, baseline = reader["against"], readers[READERS[name]]
            assert against["reader"] == READERS[name]
            assert against["ratio"] == pytest.approx(reader["cpu_ms"]["median"] / baseline["cpu_ms"]["median"])
            rounds = [a / b for a, b in zip(reader["cpu_ms"]["rounds"], baseline["cpu_ms"]["rounds"])]
            assert against["range"] == pytest.approx([min(rounds), max(rounds)])


def test_table_has_a_row_per_reader(folder, videos):
    text = (folder / "decode.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(videos) * len(READERS)
    assert {line.replace(r"\|", "").count("|") for line in rows} == {8}
    assert r"b\|c.mkv: 64 × 48, h264, 12 frames" in text


def test_a_rival_that_fails_or_errs_is_reported(tmp_path, videos, monkeypatch, capsys):
    def fail(path, sample):
        raise RuntimeError("no such codec\nstack trace")

    monkeypatch.setattr(benchmark, "read_with_decord", fail)
    monkeypatch.setattr(benchmark, "read_in_sequence", lambda path, sample: np.zeros((4, 48, 64, 3), np.uint8))
    benchmark.main(["decode", videos[0], "--rounds", "1", "--num_frames", "4", "--output_dir", str(tmp_path)])
    (video,) = json.loads((tmp_path / "decode.json").read_text(encoding="utf-8"))["videos"]
    assert video["readers"]["decord by index"] == {"result": "frames", "failed": "no such codec"}
    assert video["readers"]["PyAV in sequence"]["same_frames"] is False
    lines = capsys.readouterr().out.splitlines()
    assert any(line.endswith("| failed: no such codec |") for line in lines)
    assert any("PyAV in sequence" in line and line.endswith("| wrong frames |") for line in lines)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "required: command"),
        (["decode"], "required: VIDEO"),
        (["decode", "a.mp4", "--rounds", "0"], "--rounds must be at least 1, got 0."),
        (["decode", "a.mp4", "--num_frames", "-1"], "--num_frames must be at least 1, got -1."),
        (["memory", "--micro_batch_sizes", "4", "0"], "--micro_batch_sizes must be at least 1, got 0."),
    ],
)
def test_wrong_usage_is_named(argv, message, capsys):
    with pytest.raises(SystemExit) as caught:
        benchmark.main(argv)
    assert caught.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.slow
def test_memory_of_micro_batches(tmp_path, capsys):
    arguments = [
        "memory",
        "--batch_size",
        "2",
        "--patch_size",
        "32",
        "--num_frames",
        "2",
        "--rounds",
        "1",
        "--use_cpu",
    ]
    benchmark.main([*arguments, "--output_dir", str(tmp_path)])
    rows = json.loads((tmp_path / "memory.json").read_text(encoding="utf-8"))["rows"]
    assert [(row["micro_batch_size"], row["gradient_checkpointing"]) for row in rows] == [
        *((2, False), (1, False), (2, True), (1, True))
    ]
    for row in rows:
        assert row["peak_memory_mb"] > row["memory_before_mb"] > 500
    assert len([line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]) == 6


def test_a_file_that_is_no_video_is_named(tmp_path, videos, capsys):
    text = tmp_path / "notes.mp4"
    text.write_text("not a video")
    for path, reason in (
        (text, "is not a video file"),
        (tmp_path, "is not a file"),
        (tmp_path / "x", "is not a file"),
    ):
        with pytest.raises(SystemExit) as caught:
            benchmark.main(["decode", str(path), "--rounds", "1"])
        assert caught.value.code == 2 and f"benchmark.py: {path}: {reason}" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        benchmark.main(["decode", videos[0], "--rounds", "1", "--output_dir", str(text)])
    assert caught.value.code == 2 and f"--output_dir {text} is a file. Give a folder." in capsys.readouterr().err
