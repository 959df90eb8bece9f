"""`ezclip check`: its table, its continuation and its exit status."""

import csv
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import datasets
import numpy as np
import pytest

from ezclip import VideoReadError
from ezclip.cli import check as check_command
from ezclip.utils.synthetic_clips import write_video
from tests.helpers import ROOT, random_clip, shared_path
from video_ezclip import read_frames


def write_timed_video(path: Path, milliseconds: list[int]):
    """Write a video with frames at these times. An edit list hides those before 0."""
    frames = random_clip(1, len(milliseconds))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.height, stream.width = frames.shape[1:3]
        stream.codec_context.time_base = Fraction(1, 1000)
        for image, time_shown in zip(frames, milliseconds):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = time_shown, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def damage_last_frame(path: Path):
    """Damage the frame that is decoded last, which test sampling does not take."""
    with av.open(str(path)) as container:
        position, size = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size][-1]
    content = bytearray(path.read_bytes())
    content[position + 6 : position + size] = bytes(size - 6)
    path.write_bytes(content)


def check(tmp_path: Path, *argv) -> tuple[int, dict[str, dict]]:
    """Run the command in this process; return its exit status and its rows by file name."""
    table = tmp_path / "videos.csv"
    try:
        status = check_command.main([*map(str, argv), "--output_file", str(table)])
    except SystemExit as error:
        status = error.code
    return status, {Path(row["file"]).name: row for row in read(table)}


def read(table: Path) -> list[dict]:
    with open(table, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def mark(table: Path):
    """Change every row where only a new check would correct it."""
    rows = [{**row, "codec": "marked"} for row in read(table)]
    check_command.write_table(str(table), rows)


def marked(rows: dict[str, dict]) -> set[str]:
    return {name for name, row in rows.items() if row["codec"] == "marked"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Videos of all kinds."""
    root = tmp_path_factory.mktemp("videos")
    write_video(root / "good.mp4", random_clip(0))
    write_video(root / "damaged.mp4", random_clip(0))
    damage_last_frame(root / "damaged.mp4")
    (root / "broken.mp4").write_bytes((root / "good.mp4").read_bytes()[:900])
    write_video(root / "whole.mkv", random_clip(2, 60))
    content = (root / "whole.mkv").read_bytes()
    (root / "truncated.mkv").write_bytes(content[: len(content) // 2])
    (root / "whole.mkv").unlink()
    write_timed_video(root / "variable.mp4", [20 * i * i for i in range(12)])
    write_timed_video(root / "edited.mp4", [125 * (i - 2) for i in range(12)])
    (root / "empty.mp4").touch()
    return root


@pytest.fixture
def good(tmp_path):
    """A folder with three videos."""
    root = tmp_path / "good"
    root.mkdir()
    for number in range(3):
        write_video(root / f"{number}.mp4", random_clip(number))
    return root


def test_table(folder, tmp_path, capsys):
    status, rows = check(tmp_path, "--video_dir", folder, "--num_workers", 2)
    assert status == 1
    assert list(rows) == sorted(path.name for path in folder.iterdir())
    good = rows["good.mp4"]
    assert 0 < float(good.pop("seconds")) < 1
    stat = (folder / "good.mp4").stat()
    assert good == {
        "file": str(folder / "good.mp4"),
        **{"codec": "h264", "width": "64", "height": "48", "fps": "8.0", "frames": "12", "duration": "1.5"},
        **{"variable": "no", "backend": "pyav", "access": "index", "slow": "no", "readable": "yes", "reason": ""},
        **{"bytes": str(stat.st_size), "modified": str(stat.st_mtime_ns)},
    }
    assert (rows["variable.mp4"]["variable"], rows["variable.mp4"]["readable"]) == ("yes", "yes")
    edited = rows["edited.mp4"]
    assert (edited["frames"], edited["access"], edited["readable"]) == ("10", "sequence", "yes")
    damaged = rows["damaged.mp4"]
    assert damaged["readable"] == "partly" and "cannot be decoded as a whole" in damaged["reason"]
    truncated = rows["truncated.mkv"]
    assert truncated["readable"] == "partly" and 0 < int(truncated["frames"]) < 60
    assert f"{truncated['frames']} frames can be decoded" in truncated["reason"]
    for name, reason in {"broken.mp4": "is cut off", "empty.mp4": "is an empty file"}.items():
        assert rows[name]["readable"] == "no" and reason in rows[name]["reason"] and rows[name]["codec"] == ""
    output = capsys.readouterr().out
    assert "3 of 7 videos are readable, 2 partly, 2 not." in output
    assert f"'{folder / 'broken.mp4'}': is cut off" in output
    assert "1 have a variable rate" in output and str(tmp_path / "videos.csv") in output
    assert [path.name for path in tmp_path.iterdir()] == ["videos.csv"]

    (tmp_path / "one").mkdir()
    _, alone = check(tmp_path / "one", "--video_dir", folder, "--num_workers", 1)
    for row in [*rows.values(), *alone.values()]:
        row.pop("seconds", None)
    assert alone == rows


def test_sampling_alone_misses_damage(folder):
    read_frames(folder / "damaged.mp4", check_command.SAMPLE)
    with pytest.raises(VideoReadError):
        read_frames(folder / "damaged.mp4", check_command.SAMPLE, in_sequence=True)


def test_slow_videos(good, tmp_path):
    status, rows = check(tmp_path, "--video_dir", good, "--slow_seconds", 1e-9)
    assert status == 0 and [row["slow"] for row in rows.values()] == ["yes"] * 3
    mark(tmp_path / "videos.csv")
    status, rows = check(tmp_path, "--video_dir", good, "--slow_seconds", 100)
    assert status == 0 and [row["slow"] for row in rows.values()] == ["no"] * 3 and len(marked(rows)) == 3


def test_table_opens_as_a_dataset(folder, tmp_path):
    check(tmp_path, "--video_dir", folder)
    table = datasets.Dataset.from_csv(str(tmp_path / "videos.csv"), cache_dir=str(tmp_path / "cache"))
    assert table.column_names == list(check_command.COLUMNS) and len(table) == 7
    assert sorted(filter(None, table["frames"]))[-1] > 12


def test_changed_videos_are_checked_again(good, tmp_path):
    check(tmp_path, "--video_dir", good)
    mark(tmp_path / "videos.csv")
    os.utime(good / "1.mp4", ns=(0, 10**18))
    write_video(good / "0 new.mp4", random_clip(4))
    status, rows = check(tmp_path, "--video_dir", good)
    assert status == 0 and list(rows) == ["0 new.mp4", "0.mp4", "1.mp4", "2.mp4"]
    assert marked(rows) == {"0.mp4", "2.mp4"}
    (good / "2.mp4").write_bytes(b"")
    (good / "0.mp4").unlink()
    status, rows = check(tmp_path, "--video_dir", good)
    assert status == 1 and list(rows) == ["0 new.mp4", "1.mp4", "2.mp4"] and rows["2.mp4"]["readable"] == "no"
    mark(tmp_path / "videos.csv")
    status, rows = check(tmp_path, "--video_dir", good)
    assert status == 1 and len(marked(rows)) == 3


def test_half_written_last_line(tmp_path):
    table = str(tmp_path / "videos.csv")
    names = ["a.mp4", 'b,"\r\nx\n".mp4', 'c\n1,"2".mp4']
    rows = [
        check_command.as_row({"file": name, "reason": "one,\ntwo", "bytes": 12, "modified": 345}, 1.0)
        for name in names
    ]
    check_command.write_table(table, rows)
    assert check_command.read_table(table) == dict(zip(names, rows))
    whole = Path(table).read_bytes()
    check_command.write_table(table, rows[:2])
    start = Path(table).stat().st_size
    for end in range(start, len(whole)):
        Path(table).write_bytes(whole[:end])
        assert check_command.read_table(table) == dict(zip(names[:2], rows)), whole[start:end]


def test_resume_after_kill(good, tmp_path):
    _, expected = check(tmp_path, "--video_dir", good)
    mark(tmp_path / "videos.csv")
    content = (tmp_path / "videos.csv").read_bytes()
    (tmp_path / "videos.csv").write_bytes(content[:-30])
    status, rows = check(tmp_path, "--video_dir", good)
    assert status == 0 and list(rows) == list(expected) and marked(rows) == {"0.mp4", "1.mp4"}
    assert {**rows["2.mp4"], "seconds": ""} == {**expected["2.mp4"], "seconds": ""}


def test_strange_names(good, tmp_path):
    names = [b"a,b.mp4", b"\"q\" 'r'.mp4", b"line\nbreak\r.mp4", "é #%41 .mp4".encode(), b"caf\xe9.mp4", b"clip:1.mp4"]
    try:
        for name in names:
            Path(os.fsdecode(os.fsencode(good) + b"/" + name)).write_bytes((good / "0.mp4").read_bytes())
    except OSError:
        pytest.skip("needs a file system that allows any name")
    for _ in range(2):
        status, rows = check(tmp_path, "--video_dir", good)
        assert status == 0 and len(rows) == 9
        assert {row["bytes"] for row in rows.values()} >= {str((good / "0.mp4").stat().st_size)}
        assert all(row["readable"] == "yes" and row["modified"] for row in rows.values())
    mark(tmp_path / "videos.csv")
    assert len(marked(check(tmp_path, "--video_dir", good)[1])) == 9


def test_list(good, tmp_path):
    (tmp_path / "list.txt").write_text("/far/0.mp4 12 0\n/far/gone.mp4 12 1\n/far/0.mp4 12 0\n/far/2.mp4 12 1\n")
    argv = ["--video_list", tmp_path / "list.txt", "--video_root", good]
    status, rows = check(tmp_path, *argv)
    assert status == 1 and list(rows) == ["0.mp4", "gone.mp4", "2.mp4"]
    assert len(read(tmp_path / "videos.csv")) == 3
    assert rows["gone.mp4"]["reason"].startswith("does not exist.") and rows["gone.mp4"]["bytes"] == ""
    (good / "1.mp4").rename(good / "gone.mp4")
    mark(tmp_path / "videos.csv")
    status, rows = check(tmp_path, *argv)
    assert status == 0 and marked(rows) == {"0.mp4", "2.mp4"}


def test_dataset(good, tmp_path):
    content = (good / "0.mp4").read_bytes()
    videos = [
        {"path": None, "bytes": content},
        {"path": "same.mp4", "bytes": content},
        {"path": "same.mp4", "bytes": content[:900]},
        {"path": str(good / "1.mp4"), "bytes": None},
        {"path": None, "bytes": None},
    ]
    (tmp_path / "data").mkdir()
    rows = {"clip": videos, "label": [[0.5]] * 5}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "data" / "train-0.parquet")
    argv = ["--dataset_name", tmp_path / "data", "--video_column_name", "clip", "--split_name", "train"]
    for _ in range(2):
        status, rows = check(tmp_path, *argv)
        assert status == 1
        assert {name: row["readable"] for name, row in rows.items()} == {
            **{"row 0": "yes", "same.mp4 (row 1)": "yes", "same.mp4 (row 2)": "no", "1.mp4": "yes", "row 4": "no"}
        }
        assert (rows["row 0"]["bytes"], rows["row 0"]["modified"]) == (str(len(content)), "")
    mark(tmp_path / "videos.csv")
    assert marked(check(tmp_path, *argv)[1]) == set(rows) - {"row 4"}  # it shows no change


def test_secrets_of_addresses_stay_out_of_the_table(tmp_path, loopback_server, capsys):
    write_video(tmp_path / "a.mp4", random_clip(0))
    with loopback_server(tmp_path) as url:
        (tmp_path / "list.txt").write_text("".join(f"{url}/a.mp4?token=s3cret{number} 12 0\n" for number in range(2)))
        status, rows = check(tmp_path, "--video_list", tmp_path / "list.txt")
    assert status == 0 and sorted(rows) == ["a.mp4?token=***", "a.mp4?token=*** (row 1)"]
    assert "s3cret" not in (tmp_path / "videos.csv").read_text() + capsys.readouterr().out


def test_folders_of_frames(tmp_path):
    for name in ("whole", "spoiled"):
        (tmp_path / "videos" / "class" / name).mkdir(parents=True)
        for number, image in enumerate(random_clip(0, 70, 16, 16)):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").to_image()
            frame.save(tmp_path / "videos" / "class" / name / f"img_{number}.png")
    (tmp_path / "videos" / "class" / "spoiled" / "img_69.png").write_bytes(b"")
    status, rows = check(tmp_path, "--video_dir", tmp_path / "videos")
    assert status == 1 and {row["frames"] for row in rows.values()} == {"70"}
    assert rows["whole"]["readable"] == "yes" and rows["whole"]["codec"] == ""
    assert rows["spoiled"]["readable"] == "no" and "unreadable frame" in rows["spoiled"]["reason"]
    mark(tmp_path / "videos.csv")
    (tmp_path / "videos" / "class" / "spoiled" / "img_69.png").unlink()
    status, rows = check(tmp_path, "--video_dir", tmp_path / "videos")
    assert status == 0 and marked(rows) == {"whole"}


@pytest.fixture
def silent_address():
    """The address of a server that never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_hanging_video(good, tmp_path, silent_address):
    (tmp_path / "list.txt").write_text(f"{good}/0.mp4\n{silent_address}/hangs.mp4\n{good}/1.mp4\n")
    argv = ["--video_list", tmp_path / "list.txt", "--num_workers", 1, "--video_timeout", 1]
    started = time.monotonic()
    status, rows = check(tmp_path, *argv)
    assert status == 1 and time.monotonic() - started < 10
    assert {name: row["readable"] for name, row in rows.items()} == {"0.mp4": "yes", "hangs.mp4": "no", "1.mp4": "yes"}
    assert "takes longer than 1 seconds" in rows["hangs.mp4"]["reason"]


class FakeReader:
    """A reader in this process whose results `change` may replace."""

    timeout = 60

    def __init__(self, change):
        self.change = change

    def __call__(self, video, sample=None, **kwargs):
        return self.change(kwargs, *read_frames(video, sample, **kwargs))


def test_folder_of_videos_and_pictures(good, tmp_path, caplog):
    """Splits, class folders and photos: all videos are checked, and no picture."""
    for name in ("train/yoga/a.mp4", "test/yoga/b.mp4", "c.mp4"):
        (tmp_path / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(good / "0.mp4", tmp_path / "videos" / name)
    (tmp_path / "videos" / "thumbs").mkdir()
    (tmp_path / "videos" / "thumbs" / "a.jpg").touch()
    table = tmp_path / "videos.csv"
    assert check_command.main(["--video_dir", str(tmp_path / "videos"), "--output_file", str(table)]) == 0
    assert [Path(file).name for file in check_command.read_table(str(table))] == ["c.mp4", "b.mp4", "a.mp4"]
    assert "1 picture is left out" in caplog.text and "thumbs" in caplog.text


def test_wrong_frames_by_index(good):
    def change(kwargs, frames, metadata):
        return frames if "in_sequence" in kwargs else np.roll(frames, 1, axis=0), metadata

    row = check_command.check_video(FakeReader(change), str(good / "0.mp4"))
    assert row["readable"] == "no" and row["reason"].startswith("frames by index differ from those in sequence")


def test_bug_costs_one_row(good):
    def change(kwargs, frames, metadata):
        if len(frames) > 1:
            raise IndexError("7")
        return frames, metadata

    row = check_command.check_video(FakeReader(change), str(good / "0.mp4"))
    assert row["readable"] == "no" and row["reason"] == "fails with IndexError: 7. Please report it."

    def change(kwargs, frames, metadata):
        if len(frames) > 1 and "allow_partial" not in kwargs:
            raise VideoReadError("0.mp4", "is spoilt.", "Throw it away.", "pyav")
        return frames[8] if len(frames) > 1 else frames, metadata

    row = check_command.check_video(FakeReader(change), str(good / "0.mp4"))
    assert row["readable"] == "no" and row["reason"] == "is spoilt. Throw it away."


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "One of --video_dir, --video_list, --dataset_name must be given"),
        (["--num_workers", "0"], "--num_workers must be at least 1, got 0"),
        (["--video_timeout", "0"], "--video_timeout must be a number of seconds above 0, got 0.0."),
        (["--slow_seconds", "nan"], "--slow_seconds must be a number of seconds above 0, got nan."),
        (["--video_root", "x"], "--video_root needs --video_list"),
        (["--split_name", "x"], "--split_name needs --dataset_name"),
        (["--video_dir", "no/where"], "ezclip check: no/where is not a folder."),
        (["--output_file", "no/where/videos.csv"], "--output_file no/where/videos.csv cannot be written (No such"),
        (["--output_file", "."], "--output_file . cannot be read (Is a directory)"),
        (["--output_file", __file__], "is not a table of `ezclip check`"),
    ],
)
def test_bad_options(good, argv, message, capsys):
    before = Path(__file__).read_bytes()
    source = [] if not argv or argv[0] == "--video_dir" else ["--video_dir", str(good)]
    with pytest.raises(SystemExit) as caught:
        check_command.main([*source, *argv])
    assert caught.value.code == 2 and message in capsys.readouterr().err
    assert Path(__file__).read_bytes() == before


def test_missing_backend(good, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "decord", None)
    with pytest.raises(SystemExit) as caught:
        check_command.main(["--video_dir", str(good), "--video_backend", "decord"])
    assert caught.value.code == 2
    assert "ezclip check: The backend decord cannot be imported" in capsys.readouterr().err


def test_table_of_other_videos(good, folder, tmp_path, capsys):
    check(tmp_path, "--video_dir", good)
    before = (tmp_path / "videos.csv").read_bytes()
    status, _ = check(tmp_path, "--video_dir", folder)
    assert status == 2 and (tmp_path / "videos.csv").read_bytes() == before
    assert f"videos.csv is of other videos, such as '{good}/0.mp4'" in capsys.readouterr().err


def test_ctrl_c(good, tmp_path, silent_address):
    (tmp_path / "list.txt").write_text(f"{good}/0.mp4\n{silent_address}/hangs.mp4\n{good}/1.mp4\n")
    argv = ["--video_list", str(tmp_path / "list.txt"), "--num_workers", "1"]
    command = [sys.executable, str(ROOT / "scripts" / "check_videos.py"), *argv]
    table = tmp_path / "videos.csv"
    # Background processes ignore Ctrl-C, and their children inherit that.
    accept_ctrl_c = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=accept_ctrl_c)
    deadline = time.monotonic() + 60
    while not (table.exists() and len(read(table)) == 1) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert "to continue videos.csv" in errors and "Traceback" not in errors
    assert [Path(row["file"]).name for row in read(table)] == ["0.mp4"]
    mark(table)
    status, rows = check(tmp_path, *argv, "--video_timeout", 1)
    assert status == 1 and list(rows) == ["0.mp4", "hangs.mp4", "1.mp4"] and marked(rows) == {"0.mp4"}


def test_real_files(tmp_path):
    status, rows = check(tmp_path, "--video_dir", shared_path("clips", "derived"))
    assert status == 1
    readable = {name: row["readable"] for name, row in rows.items() if row["readable"] != "yes"}
    assert readable == {
        **dict.fromkeys(["audio_only.mp4", "html_error_page.mp4", "truncated_no_moov_60pct.mp4"], "no"),
        **dict.fromkeys(["bitrot_clean_and_jerk.mp4", "truncated_faststart_60pct.mp4"], "partly"),
        **dict.fromkeys(["truncated_kinetics_50pct.mkv", "truncated_ucf_50pct.avi"], "partly"),
        "zero_bytes.mp4": "no",
    }
    assert [name for name, row in rows.items() if row["variable"] == "yes"] == ["vfr_baseball.mp4"]
    packed = rows["#20 wéird (näme) & co!_wave_u_nm_np1_fr_med_0.AVI"]
    assert (packed["frames"], packed["access"]) == ("48", "sequence")
