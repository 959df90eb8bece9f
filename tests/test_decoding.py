"""Frames of files equal a full sequential decode, and damage is found."""

import io
import json
import os
import random
import re
import subprocess
import sys
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest

from ezclip import VideoReadError
from ezclip.data.isolated_reader import IsolatedReader
from scripts.verify_decoding import compare, decode_in_sequence
from tests.helpers import ROOT, SHARED, random_clip, shared_path
from video_ezclip import read_frames, require_backend, uniform_frame_indices


MANIFEST = SHARED / "clips" / "MANIFEST.json"
CLIPS = {entry["file"]: entry for entry in json.loads(MANIFEST.read_text("utf-8"))} if MANIFEST.exists() else {}
UNREADABLE = {
    "dmlc_decord__corrupted.mp4": "cannot be decoded as a whole",
    "mathiasbynens_small__Mpeg4.mp4": "no video stream",
    "mathiasbynens_small__mp4-with-audio.mp4": "no video stream",
    "pytorch_torchcodec__nasa_13013.mp4.audio.mp3": "no video stream",
    "derived/audio_only.mp4": "no video stream",
    "derived/truncated_faststart_60pct.mp4": "is cut off: 31874 of 53124 bytes are there",
    "derived/truncated_no_moov_60pct.mp4": "is cut off: 31822 of 51308 bytes are there",
    "derived/truncated_ucf_50pct.avi": "is cut off: 159049 of 318098 bytes are there",
    "derived/truncated_kinetics_50pct.mkv": "is cut off: 218173 of 436346 bytes are there",
    "derived/bitrot_clean_and_jerk.mp4": "cannot be decoded as a whole",
    "derived/zero_bytes.mp4": "is an empty file",
    "derived/html_error_page.mp4": "not a video file that FFmpeg can open",
}
PARTLY_READABLE = {
    "dmlc_decord__corrupted.mp4": 48,
    "derived/truncated_faststart_60pct.mp4": 64,
    "derived/truncated_ucf_50pct.avi": 48,
    "derived/truncated_kinetics_50pct.mkv": 150,
    "derived/bitrot_clean_and_jerk.mp4": 201,
}
READABLE = sorted(name for name in CLIPS if name not in UNREADABLE and not name.startswith("frames/"))
eight = partial(uniform_frame_indices, num_frames=8)


def assert_equals_sequential(path, name, stride=1, **kwargs):
    comparison = compare(path, name, stride, **kwargs)
    assert comparison.reason is None
    assert comparison.differing == []
    return comparison.metadata


@pytest.mark.parametrize("name", READABLE)
def test_real_files(name):
    metadata = assert_equals_sequential(shared_path("clips", name), name, stride=41)
    # Of several video streams the manifest counts the first, and a player shows the default one.
    assert metadata.total_num_frames == (390 if "nasa" in name else CLIPS[name]["frames_pyav"])
    assert np.diff(metadata.timestamps).min(initial=0) >= 0


@pytest.mark.slow
def test_every_single_frame_of_real_files():
    shared_path("clips")
    for name in READABLE:
        assert_equals_sequential(shared_path("clips", name), name)


def test_frame_counts_match_published_lists():
    splits = shared_path("data", "EZ-CLIP", "dataset_splits")
    published = {}
    for path in (
        "UCF/Zero_shot/train.txt",
        "UCF/Zero_shot/test.txt",
        "HMDB/Zero_shot/train.txt",
        "HMDB/Zero_shot/test.txt",
    ):
        for line in (splits / path).read_text(encoding="utf-8").splitlines():
            video, count, _ = line.rsplit(maxsplit=2)
            published[Path(video).stem] = int(count)
    counted = {}
    for name in READABLE:
        if (stem := re.sub(r"^.*__(hmdb51_)?", "", Path(name).stem)) in published:
            counted[stem] = read_frames(shared_path("clips", name), eight)[1].total_num_frames
    assert len(counted) == 8
    assert counted == {stem: published[stem] for stem in counted}


@pytest.mark.parametrize("name", UNREADABLE)
def test_unreadable_files(name):
    path = shared_path("clips", name)
    with IsolatedReader(timeout=5) as read, pytest.raises(VideoReadError) as caught:
        read(path, eight)
    error = caught.value
    assert error.video == str(path)
    assert UNREADABLE[name] in error.reason and error.remedy
    assert error.backend == (None if name.endswith("zero_bytes.mp4") else "pyav")


@pytest.mark.parametrize("name", PARTLY_READABLE)
def test_allow_partial(name):
    frames, metadata = read_frames(shared_path("clips", name), eight, allow_partial=True)
    assert len(frames) == 8 and metadata.total_num_frames == PARTLY_READABLE[name]
    assert metadata.frames_indices == eight(PARTLY_READABLE[name])
    assert UNREADABLE[name] in metadata.problem
    assert metadata.problem.endswith(f" {PARTLY_READABLE[name]} frames can be decoded.")


@pytest.mark.parametrize("name", sorted(set(UNREADABLE) - set(PARTLY_READABLE)))
def test_allow_partial_without_frames(name):
    with pytest.raises(VideoReadError, match=re.escape(UNREADABLE[name])):
        read_frames(shared_path("clips", name), eight, allow_partial=True)


def test_partial_frames_are_the_first():
    source = "facebookarchive_C3D__v_BaseballPitch_g01_c01.avi"
    whole, _ = read_frames(shared_path("clips", source))
    part, _ = read_frames(shared_path("clips", "derived", "truncated_ucf_50pct.avi"), allow_partial=True)
    assert np.array_equal(part, whole[: len(part)])


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotated_files(degrees):
    path = str(shared_path("clips", "derived", f"rot{degrees}_taichi.mp4"))
    decord = pytest.importorskip("decord")
    frames, metadata = read_frames(path, eight)
    expected = decord.VideoReader(path).get_batch(metadata.frames_indices).asnumpy()
    assert frames.shape == expected.shape
    assert np.abs(frames.astype(int) - expected).mean() < 2


def test_wrong_frame_count_in_header():
    # HMDB-51: the header and decord count one frame too many
    path = shared_path("clips", "ROCm_vision__TrumanShow_wave_f_nm_np1_fr_med_26.avi")
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 49
    frames, metadata = read_frames(path)
    assert len(frames) == metadata.total_num_frames == 48
    assert metadata.access == "sequence"


# decord cannot open these, or returns frames of another shape.
NOT_READ_BY_DECORD = (
    *("huggingface_datasets__test_video_66x50.mov", "huggingface_datasets__video.mkv", "derived/tiny_16x16.mp4"),
    *("mathiasbynens_small__webm.webm", "pytorch_torchcodec__av1_video.mkv", "derived/av1_soccer.mp4"),
    *("derived/mpegts_soccer.ts", "derived/gif_baseball.gif"),
)


@pytest.mark.parametrize("name", READABLE)
def test_decord_agrees_or_refuses(name):
    pytest.importorskip("decord")
    path = shared_path("clips", name)
    if name in NOT_READ_BY_DECORD:
        with pytest.raises(VideoReadError, match=r"decord.*backend='auto'.*\(backend: decord\)"):
            read_frames(path, eight, backend="decord")
    else:
        # Of 10 bits it makes other colours.
        tolerance = 4.0 if "10bits" in name else 1.0
        metadata = assert_equals_sequential(path, name, stride=101, backend="decord", tolerance=tolerance)
        assert metadata.video_backend == "decord"


def test_torchcodec_agrees_or_refuses():
    try:
        require_backend("torchcodec")
    except ImportError as error:
        pytest.skip(str(error))
    for name in READABLE:
        path = shared_path("clips", name)
        try:
            read_frames(path, eight, backend="torchcodec")
        except VideoReadError as error:
            assert error.backend == "torchcodec" and "backend='auto'" in error.remedy
        else:
            metadata = assert_equals_sequential(path, name, stride=101, backend="torchcodec", tolerance=4.0)
            assert metadata.video_backend == "torchcodec"


def test_unknown_and_missing_backends(monkeypatch):
    with pytest.raises(ValueError, match="`backend` .* torchcodec, got 'opencv'"):
        read_frames(b"", backend="opencv")
    monkeypatch.setitem(sys.modules, "decord", None)
    with pytest.raises(ImportError, match="decord .* auto"):
        read_frames(b"", backend="decord")


def encode(path, codec, num_frames=90, options=None, times=None, change=None):
    """Write a clip whose frames all differ; `change` edits its packets before they are stored."""
    with av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as container:
        stream = container.add_stream(codec, rate=Fraction(30), options=options or {})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p" if codec == "mjpeg" else "yuv420p"
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 600)
        packets = []
        for number, image in enumerate(random_clip(1, num_frames)):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 600)
            packets += stream.encode(frame)
        packets += stream.encode()
        container.mux(packets if change is None else change(packets))


X264 = {"preset": "veryfast", "threads": "1"}
ENCODINGS = {
    "closed groups": ("a.mp4", "libx264", {**X264, "g": "12", "bf": "3", "sc_threshold": "0"}),
    "open groups": (
        "a.mkv",
        "libx264",
        {**X264, "x264-params": "open-gop=1:keyint=12:min-keyint=12:bframes=3:b-pyramid=normal:scenecut=0"},
    ),
    "open groups of HEVC": (
        "a.mp4",
        "libx265",
        {"x265-params": "open-gop=1:keyint=12:min-keyint=12:bframes=4:scenecut=0:log-level=none:pools=none"},
    ),
    "intra refresh": ("a.mp4", "libx264", {**X264, "x264-params": "intra-refresh=1:keyint=15:bframes=0"}),
    "MPEG-4 with B-frames": ("a.mp4", "mpeg4", {"g": "12", "bf": "2"}),
    "MPEG-4 with B-frames in AVI": ("a.avi", "mpeg4", {"g": "12", "bf": "2"}),
    "VP9": ("a.webm", "libvpx-vp9", {"g": "12", "deadline": "realtime", "cpu-used": "8"}),
    "VP9 with hidden frames": (
        "a.webm",
        "libvpx-vp9",
        {"g": "20", "cpu-used": "8", "auto-alt-ref": "1", "lag-in-frames": "16"},
    ),
    "VP8 with hidden frames": (
        "a.webm",
        "libvpx",
        {"g": "20", "auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "8"},
    ),
    "MPEG-2 in a program stream": ("a.mpg", "mpeg2video", {"g": "12", "bf": "2"}),
    "H.264 in a transport stream": ("a.ts", "libx264", {**X264, "g": "12", "bf": "3"}),
}


@pytest.mark.parametrize("kind", ENCODINGS)
def test_encodings(kind, tmp_path):
    name, codec, options = ENCODINGS[kind]
    encode(tmp_path / name, codec, options=options)
    metadata = assert_equals_sequential(tmp_path / name, kind)
    assert metadata.total_num_frames == 90


def with_content(packet, content):
    """Return a copy of a packet with other bytes."""
    other = av.Packet(content)
    other.pts, other.dts, other.time_base, other.stream = packet.pts, packet.dts, packet.time_base, packet.stream
    other.is_keyframe = packet.is_keyframe
    return other


def times_in_file_order(packets):
    for number, packet in enumerate(packets):
        packet.pts = packet.dts = number
    return packets


def some_not_coded(packets):
    # A picture header that says "not coded"
    empty = [b"\x00\x00\x01\xb6" + (0b0101_00000_10_01111 | i % 30 << 7).to_bytes(2, "big") for i in range(90)]
    return [with_content(p, empty[i]) if i in (20, 21, 40) else p for i, p in enumerate(packets)]


def one_without_a_picture(packets):
    late = [setattr(p, "pts", p.pts + 1) or setattr(p, "dts", p.dts + 1) or p for p in packets[20:]]
    end_of_sequence = with_content(packets[19], b"\x00\x00\x00\x01\x0a")
    end_of_sequence.pts, end_of_sequence.dts, end_of_sequence.is_keyframe = late[0].pts - 1, late[0].dts - 1, False
    return [*packets[:20], end_of_sequence, *late]


def all_called_key_frames(packets):
    for packet in packets:
        packet.is_keyframe = True
    return packets


def with_a_broken_sei_unit(packets):
    return [with_content(p, b"\x00\x00\x00\x01\x06\x01\x3c\x12\x34\x80" + bytes(p)) for p in packets]


def moved(frames):
    def move(packets):
        for packet in packets:
            packet.pts, packet.dts = packet.pts + frames, packet.dts + frames
        return packets

    return move


def some_lost(packets):
    return packets[:40] + packets[45:]


def begun_in_the_middle(packets):
    return packets[7:]


B_FRAMES = {**X264, "g": "12", "bf": "3", "sc_threshold": "0", "b_strategy": "0"}
NO_B_FRAMES = {**X264, "g": "12", "bf": "0", "sc_threshold": "0"}
X265 = {"x265-params": "keyint=24:bframes=3:log-level=none:pools=none"}
ODDITIES = {
    "times in file order, MP4": ("a.mp4", "libx264", B_FRAMES, times_in_file_order, 90),
    "times in file order, Matroska": ("a.mkv", "libx264", B_FRAMES, times_in_file_order, 90),
    "times in file order, HEVC": ("a.mp4", "libx265", X265, times_in_file_order, 90),
    "pictures that are not coded, AVI": ("a.avi", "mpeg4", {"g": "12", "bf": "0"}, some_not_coded, 87),
    "pictures that are not coded, MP4": ("a.mp4", "mpeg4", {"g": "12", "bf": "0"}, some_not_coded, 87),
    "a packet without a picture": ("a.mp4", "libx264", NO_B_FRAMES, one_without_a_picture, 90),
    "false key frames": ("a.mp4", "mpeg4", {"g": "12", "bf": "0"}, all_called_key_frames, 90),
    "false key frames of H.264": ("a.mkv", "libx264", NO_B_FRAMES, all_called_key_frames, 90),
    "a broken SEI unit": ("a.mkv", "libx264", NO_B_FRAMES, with_a_broken_sei_unit, 90),
    "begins at 10 s": ("a.webm", "libvpx-vp9", {"g": "20", "deadline": "realtime", "cpu-used": "8"}, moved(300), 90),
    "begins before 0": ("a.mp4", "libx264", B_FRAMES, moved(-20), 70),
    "lost packets": ("a.mp4", "libx264", {**NO_B_FRAMES, "g": "30"}, some_lost, None),
    "begins between key frames": ("a.mp4", "libx264", NO_B_FRAMES, begun_in_the_middle, 78),
}


@pytest.mark.parametrize("kind", ODDITIES)
def test_oddities(kind, tmp_path):
    name, codec, options, change, num_frames = ODDITIES[kind]
    encode(tmp_path / name, codec, options=options, change=change)
    metadata = assert_equals_sequential(tmp_path / name, kind)
    assert num_frames in (None, metadata.total_num_frames)


def test_joined_transport_streams(tmp_path):
    encode(tmp_path / "a.ts", "libx264", options=B_FRAMES)
    (tmp_path / "b.ts").write_bytes(2 * (tmp_path / "a.ts").read_bytes())
    assert assert_equals_sequential(tmp_path / "b.ts", "joined").total_num_frames == 180


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi"])
def test_truncated_files(name, tmp_path):
    encode(tmp_path / name, "libx264", options=NO_B_FRAMES)
    content = (tmp_path / name).read_bytes()
    for missing in (100, len(content) // 3):
        with pytest.raises(VideoReadError, match=rf"is cut off: {len(content) - missing} of \d+ bytes are there"):
            read_frames(content[:-missing], eight)
    assert read_frames(content + b"appended", eight)[1].total_num_frames == 90


MATRICES = {
    "mirrored": ((-1, 0, 0, 1), lambda image: image[:, ::-1]),
    "upside down": ((1, 0, 0, -1), lambda image: image[::-1]),
    "half a turn": ((-1, 0, 0, -1), lambda image: image[::-1, ::-1]),
    "a quarter to the right": ((0, 1, -1, 0), lambda image: np.rot90(image, -1)),
    "a quarter to the left": ((0, -1, 1, 0), np.rot90),
    "transposed": ((0, 1, 1, 0), lambda image: image.swapaxes(0, 1)),
    "transposed the other way": ((0, -1, -1, 0), lambda image: image[::-1, ::-1].swapaxes(0, 1)),
}


def set_matrix(content: bytes, a, b, c, d) -> bytes:
    """Return an MP4 file whose track is displayed at (a x + c y, b x + d y)."""

    def pack(*values):
        return np.array([round(value * 65536) for value in values], ">i4").tobytes()

    identity = pack(1, 0, 0, 0, 1, 0, 0, 0)
    track = content.index(b"tkhd")
    position = content.index(identity, track)
    return content[:position] + pack(a, b, 0, c, d, 0, 0, 0) + content[position + len(identity) :]


@pytest.mark.parametrize("kind", MATRICES)
def test_display_matrix(kind, tmp_path):
    matrix, turn = MATRICES[kind]
    encode(tmp_path / "a.mp4", "libx264", options=NO_B_FRAMES)
    content = (tmp_path / "a.mp4").read_bytes()
    upright, _ = read_frames(content, eight)
    frames, _ = read_frames(set_matrix(content, *matrix), eight)
    assert np.array_equal(frames, np.stack([turn(image) for image in upright]))
    if kind in ("mirrored", "upside down", "transposed", "transposed the other way"):
        with pytest.raises(VideoReadError, match="mirrored, which decord"):
            read_frames(set_matrix(content, *matrix), eight, backend="decord")
    with pytest.raises(VideoReadError, match="90, 180 or 270"):
        read_frames(set_matrix(content, 0.707, 0.707, -0.707, 0.707), eight)


def test_any_order_and_repeats(tmp_path):
    encode(tmp_path / "a.mp4", *ENCODINGS["closed groups"][1:2], options=ENCODINGS["closed groups"][2])
    truth = decode_in_sequence(tmp_path / "a.mp4")
    rng = np.random.default_rng(0)
    for _ in range(50):
        wanted = rng.integers(90, size=rng.integers(1, 12)).tolist()
        frames, metadata = read_frames(tmp_path / "a.mp4", lambda _: wanted)  # noqa: B023
        assert metadata.frames_indices == wanted and metadata.access == "index"
        assert all(np.array_equal(frame, truth[index]) for frame, index in zip(frames, wanted))


def test_packets_not_kept(tmp_path, monkeypatch):
    encode(tmp_path / "a.mp4", "libx264", options=ENCODINGS["closed groups"][2])
    monkeypatch.setattr("video_ezclip.MAX_KEPT_BYTES", 1000)
    metadata = assert_equals_sequential(tmp_path / "a.mp4", "big")
    assert metadata.access == "index"
    content = io.BytesIO((tmp_path / "a.mp4").read_bytes())
    assert np.array_equal(read_frames(content, eight)[0], read_frames(tmp_path / "a.mp4", eight)[0])


def test_variable_rate(tmp_path):
    times = np.cumsum([20, 40, 60] * 30).tolist()  # of 600 a second, first frame at 1/30 s
    encode(tmp_path / "a.mp4", "libx264", options=X264, times=times)
    frames, metadata = read_frames(tmp_path / "a.mp4")
    seconds = (np.array(times) - times[0]) / 600
    np.testing.assert_allclose(metadata.timestamps, seconds, atol=1e-6)
    assert metadata.variable_rate and metadata.total_num_frames == 90 and metadata.access == "sequence"
    assert metadata.duration == pytest.approx(6.0, abs=0.1)
    window, metadata = read_frames(tmp_path / "a.mp4", start=1.0, end=2.0)
    inside = (np.append(seconds[1:], 6.0) > 1.0) & (seconds < 2.0)  # on display
    assert metadata.frames_indices == np.flatnonzero(inside).tolist()
    assert np.array_equal(window, frames[inside])
    _, metadata = read_frames(tmp_path / "a.mp4", fps=2)
    assert metadata.frames_indices == [np.flatnonzero(seconds <= tick + 1e-6)[-1] for tick in np.arange(0, 5.95, 0.5)]
    with pytest.raises(VideoReadError, match=r"a.mp4: is over at .* `start` at 99 s"):
        read_frames(tmp_path / "a.mp4", start=99)


@pytest.mark.parametrize("name", ["ROCm_vision__TrumanShow_wave_f_nm_np1_fr_med_26.avi", "derived/mpeg2_baseball.mpg"])
def test_times_in_sequence(name):
    path = shared_path("clips", name)
    every, metadata = read_frames(path)
    assert metadata.access == "sequence" and metadata.timestamps[0] == pytest.approx(0.0, abs=0.04)
    np.testing.assert_allclose(np.diff(metadata.timestamps), 1 / metadata.fps, atol=1e-3)
    window, metadata = read_frames(path, start=0.5, end=1.0)
    assert np.array_equal(window, every[metadata.frames_indices])
    assert len(window) == 15


def test_in_sequence_finds_all_damage(tmp_path):
    path = tmp_path / "a.mp4"
    encode(path, "libx264", options={**X264, "g": "10", "bf": "0", "sc_threshold": "0"})
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][45]
        position, size = packet.pos, packet.size
    content = bytearray(path.read_bytes())
    content[position + 16 : position + size] = random.Random(0).randbytes(size - 16)
    path.write_bytes(content)
    _, metadata = read_frames(path, lambda total: [0, 81])
    assert metadata.access == "index" and metadata.problem is None
    for kwargs in ({"sample": lambda total: [47]}, {"in_sequence": True}):
        with pytest.raises(VideoReadError, match="cannot be decoded as a whole"):
            read_frames(path, **kwargs)
    _, metadata = read_frames(path, in_sequence=True, allow_partial=True)
    assert metadata.total_num_frames in range(80, 91) and metadata.problem


def mutated(content: bytes, other: bytes, rng: random.Random) -> bytes:
    """Damage a file as bad disks, downloads and uploads do."""
    content = bytearray(content)
    kind = rng.choice(["flip", "flip header", "cut", "swap header", "zero", "shift"])
    if kind.startswith("flip"):
        reach = min(4096, len(content)) if kind == "flip header" else len(content)
        for _ in range(rng.choice([1, 4, 16, 64])):
            content[rng.randrange(reach)] = rng.randrange(256)
    elif kind == "cut":
        del content[rng.randrange(len(content)) :]
    elif kind == "swap header":
        length = rng.choice([16, 64, 512, 4096])
        content[:length] = other[:length]
    elif kind == "zero":
        start = rng.randrange(len(content))
        content[start : start + rng.choice([8, 256, 4096])] = bytes(256)
    else:
        start = rng.randrange(len(content))
        del content[start : start + rng.randrange(1, 64)]
    return bytes(content)


def test_500_damaged_files(tmp_path):
    sources = []
    for kind in ("closed groups", "open groups", "open groups of HEVC", "VP9", "MPEG-4 with B-frames in AVI"):
        name, codec, options = ENCODINGS[kind]
        encode(tmp_path / name, codec, num_frames=40, options=options)
        sources.append((tmp_path / name).read_bytes())
    names = [
        "derived/vp8_soccer.webm",
        "derived/av1_soccer.mp4",
        "derived/mpegts_soccer.ts",
        "derived/wmv2_baseball.wmv",
    ]
    names += ["derived/flv1_baseball.flv", "derived/mpeg2_baseball.mpg", "derived/gif_baseball.gif"]
    names += ["ROCm_vision__TrumanShow_wave_f_nm_np1_fr_med_26.avi", "derived/ffv1_yuva420p_alpha.mkv"]
    sources += [(SHARED / "clips" / name).read_bytes() for name in names if (SHARED / "clips" / name).exists()]
    outcomes = {"read": 0, "read in part": 0, "refused": 0}
    with IsolatedReader(timeout=20) as read:
        for seed in range(500):
            rng = random.Random(seed)
            content = mutated(rng.choice(sources), rng.choice(sources), rng)
            allow_partial = seed % 2 == 1
            try:
                frames, metadata = read(content, eight, allow_partial=allow_partial)
            except VideoReadError as error:
                assert "crashes the decoder" not in error.reason and "takes longer" not in error.reason, seed
                outcomes["refused"] += 1
            else:
                assert frames.dtype == np.uint8 and frames.ndim == 4 and len(frames) == 8, seed
                assert frames.shape == (8, metadata.height, metadata.width, 3) and frames.size > 0, seed
                assert metadata.frames_indices == eight(metadata.total_num_frames), seed
                assert allow_partial or metadata.problem is None
                outcomes["read in part" if metadata.problem else "read"] += 1
    assert min(outcomes.values()) >= 25, outcomes


MEMORY_OF_READS = """
import sys
from functools import partial
from pathlib import Path
from ezclip.data.isolated_reader import IsolatedReader
from video_ezclip import VideoReadError
from video_ezclip import read_frames, uniform_frame_indices

def resident(pid):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1])

isolated, *files = sys.argv[1:]
read = IsolatedReader() if isolated == "isolated" else read_frames
eight = partial(uniform_frame_indices, num_frames=8)
for number in range(1100):
    video = files[number % len(files)]
    try:
        read(Path(video).read_bytes() if number % 5 == 0 else video, eight)
    except VideoReadError:
        pass
    if number == 99:
        pids = ["self", read._child.pid] if isolated == "isolated" else ["self"]
        before = [resident(pid) for pid in pids]
print(max(resident(pid) / size for pid, size in zip(pids, before)))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize("isolated", ["isolated", "here"])
def test_1000_reads_keep_memory_constant(isolated, tmp_path):
    for kind in ("closed groups", "VP9", "MPEG-4 with B-frames in AVI", "H.264 in a transport stream"):
        name, codec, options = ENCODINGS[kind]
        encode(tmp_path / name, codec, num_frames=40, options=options)
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "a.mp4").read_bytes()[:-2000])
    (tmp_path / "none.mp4").write_bytes(b"nothing")
    real = [SHARED / "clips" / name for name in READABLE if "TrumanShow" in name or "derived/vp8_soccer" in name]
    files = [*sorted(tmp_path.iterdir()), *real]
    command = [sys.executable, "-c", MEMORY_OF_READS, isolated, *map(str, files)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    print(run.stdout)
    assert float(run.stdout) < 1.05
