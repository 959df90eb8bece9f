"""Which frames are taken, and that they are the right ones, against a plain sequential decode."""

import io
import json
import pickle

import av
import numpy as np
import pytest
import torch
from PIL import Image

from ezclip import VideoReadError
from ezclip.demo import write_video
from ezclip.video_ezclip import is_single_video, random_frame_indices, read_frames, uniform_frame_indices

from .conftest import SHARED, random_clip, shared_path


MANIFEST = SHARED / "clips" / "MANIFEST.json"
CLIPS = {entry["file"]: entry for entry in json.loads(MANIFEST.read_text("utf-8"))} if MANIFEST.exists() else {}
# Several video streams: the manifest counted the first, a player shows the default one.
READABLE = [f for f, e in CLIPS.items() if e.get("frames_pyav") and "pyav_error" not in e and "nasa" not in f]
UNREADABLE = [
    f for f, e in CLIPS.items() if not (e.get("frames_pyav") and "pyav_error" not in e) and "frames/" not in f
]


def eight(total_frames):
    return uniform_frame_indices(total_frames, 8)


def sampling_cases():
    return json.loads(shared_path("golden", "aux", "sampling.json").read_text(encoding="utf-8"))["cases"]


def test_uniform_sampling_is_the_published():
    for case in sampling_cases():
        assert uniform_frame_indices(case["num_frames"], case["num_segments"]) == case["val_frames_0based"], case
    assert uniform_frame_indices(100, 8) == [5, 18, 30, 43, 55, 68, 80, 93]
    assert uniform_frame_indices(1, 4) == [0, 0, 0, 0]


def test_random_sampling_is_the_published():
    rng = np.random.default_rng(0)
    for case in sampling_cases():
        total, segments = case["num_frames"], case["num_segments"]
        draws = np.array([random_frame_indices(total, segments, rng) for _ in range(2000)])
        assert (np.diff(draws, axis=1) >= 0).all()
        assert draws.shape == (2000, segments)
        low, high = np.array(case["train_low_1based"]) - 1, np.array(case["train_high_1based"]) - 1
        assert (draws >= low).all() and (draws <= high).all(), case
        if total <= segments:
            assert all(set(draw) == set(range(total)) for draw in draws)
        else:
            assert (draws.min(axis=0) == low).all() and (draws.max(axis=0) == high).all()


@pytest.mark.parametrize("name", READABLE)
def test_frames_of_real_files_are_those_of_a_sequential_decode(name):
    path = shared_path("clips", name)
    with av.open(str(path), metadata_errors="ignore") as container:
        images = [
            (f.to_ndarray(format="rgb24"), f.rotation) for f in container.decode(container.streams.best("video"))
        ]
    assert len(images) == CLIPS[name]["frames_pyav"]
    frames, indices = read_frames(path, eight)
    assert indices == eight(len(images))
    for frame, index in zip(frames, indices):
        image, rotation = images[index]
        assert np.array_equal(frame, np.rot90(image, rotation // 90))


@pytest.mark.parametrize("name", UNREADABLE)
def test_unreadable_files_say_why(name):
    path = shared_path("clips", name)
    with pytest.raises(VideoReadError) as caught:
        read_frames(path, eight)
    assert caught.value.video == str(path)
    assert caught.value.reason and caught.value.remedy
    assert "Traceback" not in str(caught.value)
    # it crosses process borders whole
    assert pickle.loads(pickle.dumps(caught.value)).args == caught.value.args


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotated_files_are_turned_as_a_player_does(degrees):
    decord = pytest.importorskip("decord")
    path = str(shared_path("clips", "derived", f"rot{degrees}_taichi.mp4"))
    frames, indices = read_frames(path, eight)
    expected = decord.VideoReader(path).get_batch(indices).asnumpy()
    assert frames.shape == expected.shape
    assert np.abs(frames.astype(int) - expected).mean() < 2


def test_header_that_lies_about_the_number_of_frames():
    # HMDB-51: the header and decord count one frame too many
    path = shared_path("clips", "ROCm_vision__TrumanShow_wave_f_nm_np1_fr_med_26.avi")
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 49
    frames, indices = read_frames(path, range)
    assert len(frames) == len(indices) == 48


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clïp #1 [x] & co.mp4"
    write_video(path, random_clip(0))
    return path


def test_every_kind_of_input_gives_the_same_frames(clip, tmp_path):
    expected, indices = read_frames(clip, eight)
    assert expected.shape == (8, 48, 64, 3) and indices == eight(12)
    every, _ = read_frames(clip, range)
    images = [Image.fromarray(frame) for frame in every]
    for number, image in enumerate(images, start=1):
        image.save(tmp_path / f"img_{number}.png")  # 10 comes after 9, not after 1
    channels_first = torch.from_numpy(every).permute(0, 3, 1, 2)
    inputs = {
        "str": str(clip),
        "bytes": clip.read_bytes(),
        "file object": io.BytesIO(clip.read_bytes()),
        "row with path": {"path": str(clip), "bytes": None},
        "row with bytes": {"path": "gone.mp4", "bytes": clip.read_bytes()},
        "folder of frames": tmp_path,
        "array (T, H, W, C)": every,
        "tensor (T, C, H, W)": channels_first,
        "floats": channels_first.float() / 255,
        "NumPy string": np.str_(clip),
        "list of images": images,
        "list of arrays": list(every),
    }
    for kind, video in inputs.items():
        frames, taken = read_frames(video, eight)
        assert taken == indices, kind
        assert np.array_equal(frames, expected), kind


def test_url(clip, loopback_server):
    expected, _ = read_frames(clip, eight)
    with loopback_server(clip.parent) as address:
        frames, _ = read_frames(f"{address}/{clip.name.replace('#', '%23').replace(' ', '%20')}", eight)
        assert np.array_equal(frames, expected)
        with pytest.raises(VideoReadError, match=r"none.mp4: cannot be fetched"):
            read_frames(f"{address}/none.mp4", eight)


def test_grey_and_alpha():
    grey = np.arange(4 * 6 * 6, dtype=np.uint8).reshape(4, 6, 6, 1)
    frames, _ = read_frames(grey, range)
    assert np.array_equal(frames, grey.repeat(3, axis=-1))
    frames, _ = read_frames(np.concatenate([grey] * 4, axis=-1), range)
    assert frames.shape == (4, 6, 6, 3)


@pytest.mark.parametrize(
    ("video", "message"),
    [
        ("nowhere.mp4", "nowhere.mp4: does not exist"),
        (None, "has neither a path nor bytes"),
        ({"path": None, "bytes": None}, "has neither a path nor bytes"),
        ({"path": "clip.mp4", "bytes": b"no video"}, "clip.mp4: is not a video file"),
        (b"no video", "<8 bytes>: is not a video file"),
        (np.zeros((8, 32, 32), np.uint8), "is not a video"),
        (np.zeros((0, 8, 8, 3), np.uint8), "is not a video"),
        (np.full((4, 8, 8, 3), 300), "not levels from 0 to 255"),
        (np.ones((4, 8, 8, 3), bool), "holds bool values"),
        (np.full((4, 8, 8, 3), -1.5), "floating point values from -1.5"),
        (np.zeros((4, 8, 8, 5), np.uint8), "no channel dimension"),
        ([Image.new("RGB", (8, 8)), Image.new("RGB", (9, 8))], "changes its frame size"),
    ],
)
def test_bad_input_is_named(video, message):
    with pytest.raises(VideoReadError, match=message):
        read_frames(video, eight)


def test_folder_without_frames_is_named(tmp_path):
    with pytest.raises(VideoReadError, match="folder without frame images"):
        read_frames(tmp_path, eight)
    (tmp_path / "img_1.jpg").write_bytes(b"not a picture")
    with pytest.raises(VideoReadError, match="unreadable frame"):
        read_frames(tmp_path, eight)


@pytest.mark.parametrize("sample", [lambda total: [total], lambda total: [-1], lambda total: []])
def test_frames_that_are_not_there_are_named(clip, sample):
    for video in (clip, random_clip(0)):
        with pytest.raises(ValueError, match="`sample` must give frames from 0 to 11, one at least; it gave"):
            read_frames(video, sample)


@pytest.mark.parametrize("name", ["clip:1.mp4", "concat:a.mp4", "%03d.mp4", "a?b=c&d.mp4", "-i.mp4"])
def test_names_that_mean_something_to_ffmpeg(clip, name, tmp_path, monkeypatch):
    (tmp_path / name).write_bytes(clip.read_bytes())
    monkeypatch.chdir(tmp_path)
    assert np.array_equal(read_frames(name, eight)[0], read_frames(clip, eight)[0])


def test_other_types_are_named():
    with pytest.raises(TypeError, match="got int"):
        read_frames(3, eight)


def test_one_video_or_many():
    array = np.zeros((4, 8, 8, 3), np.uint8)
    image = Image.new("RGB", (8, 8))
    assert all(
        map(is_single_video, ["a.mp4", np.str_("a.mp4"), b"x", {"path": "a.mp4"}, array, [image, image], list(array)])
    )
    assert not any(map(is_single_video, [["a.mp4", "b.mp4"], [array, array], array[None], [[image], [image]], []]))
