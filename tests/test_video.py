"""Every kind of video input gives the same frames, or an error that names it."""

import io
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ezclip import VideoReadError, list_folder
from ezclip.utils.synthetic_clips import write_video
from tests.helpers import random_clip, shared_path
from video_ezclip import is_single_video, read_frames, uniform_frame_indices


def eight(total_frames):
    return uniform_frame_indices(total_frames, 8)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clïp #1 [x] & co.mp4"
    write_video(path, random_clip(0))
    return path


def test_input_kinds_agree(clip, tmp_path):
    expected, metadata = read_frames(clip, eight)
    assert expected.shape == (8, 48, 64, 3) and metadata.frames_indices == eight(12)
    assert (metadata.height, metadata.width, metadata.total_num_frames) == (48, 64, 12)
    every, _ = read_frames(clip)
    images = [Image.fromarray(frame) for frame in every]
    for number, image in enumerate(images, start=1):
        image.save(tmp_path / f"img_{number}.png")  # 10 comes after 9, not after 1
    channels_first = torch.from_numpy(every).permute(0, 3, 1, 2)
    inputs = {
        "str": str(clip),
        "bytes": clip.read_bytes(),
        "memory": memoryview(clip.read_bytes()),
        "file object": io.BytesIO(clip.read_bytes()),
        "open file": open(clip, "rb"),  # noqa: SIM115
        "pipe": subprocess.Popen(["cat", clip], stdout=subprocess.PIPE).stdout,
        "file URL": clip.as_uri(),
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
        assert taken.frames_indices == metadata.frames_indices, kind
        assert np.array_equal(frames, expected), kind


def test_url(clip, loopback_server):
    expected, _ = read_frames(clip, eight)
    with loopback_server(clip.parent) as address:
        frames, _ = read_frames(f"{address}/{clip.name.replace('#', '%23').replace(' ', '%20')}", eight)
        assert np.array_equal(frames, expected)
        with pytest.raises(VideoReadError, match=r"none.mp4: cannot be fetched \(404, .*File not found"):
            read_frames(f"{address}/none.mp4", eight)
    with pytest.raises(VideoReadError, match=r"none.mp4: cannot be fetched \(.*Connect call failed"):
        read_frames(f"{address}/none.mp4", eight)


@pytest.mark.parametrize("form", ["img_{:05d}.jpg", "frame_{}.jpg", "{:06d}.jpg", "{}.png"])
def test_frame_folder_order(form, tmp_path):
    for number in range(1, 13):
        Image.new("RGB", (8, 8), (number * 10, 0, 0)).save(tmp_path / form.format(number))
    (tmp_path / ".thumb.jpg").touch()
    frames, metadata = read_frames(tmp_path)
    assert metadata.total_num_frames == 12 and metadata.timestamps is None
    np.testing.assert_allclose(frames[:, 0, 0, 0], np.arange(10, 130, 10), atol=2)


def save_pictures(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (8, 8)).save(folder / name)


def test_folder_of_pictures_is_a_video(tmp_path):
    save_pictures(tmp_path, "2.jpg", "1.png", ".hidden.jpg")
    (tmp_path / "notes.txt").touch()
    found = list_folder(tmp_path)
    assert (found.videos, found.pictures_left_out, found.describe_left_out()) == ([str(tmp_path)], {}, None)
    assert found.others == [str(tmp_path / "notes.txt")]
    assert len(read_frames(tmp_path)[0]) == len(read_frames(f"{tmp_path}/")[0]) == 2


@pytest.mark.parametrize("place", [".", "thumbnails", "a/b"])
def test_pictures_beside_videos(place, clip, tmp_path):
    """Photos of a phone beside its videos, or thumbnails in a folder of their own, are left out by name."""
    save_pictures(tmp_path / place, "photo.jpg", "photo2.jpg")
    for name in ("b.mp4", "c/d.MOV"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(clip, tmp_path / name)
    found = list_folder(tmp_path)
    assert found.videos == [str(tmp_path / "b.mp4"), str(tmp_path / "c" / "d.MOV")]
    assert list(found.pictures_left_out.values()) == [["photo.jpg", "photo2.jpg"]]
    assert "2 pictures are left out" in found.describe_left_out() and "photo.jpg" in found.describe_left_out()
    with pytest.raises(VideoReadError, match=r"is a folder of 2 videos.*b\.mp4.*list_folder"):
        read_frames(tmp_path)
    for video in found.videos:
        read_frames(video)


def test_one_video_in_a_folder_is_not_the_folder(clip, tmp_path):
    save_pictures(tmp_path, "1.jpg", "2.jpg")
    shutil.copy(clip, tmp_path / "a.mp4")
    with pytest.raises(VideoReadError, match=r"is a folder of 1 video, not one video: a\.mp4"):
        read_frames(tmp_path)


def test_picture_beside_frame_folders(tmp_path):
    save_pictures(tmp_path, "cover.jpg")
    for name in ("one", "two"):
        save_pictures(tmp_path / name, "1.jpg", "2.jpg")
    found = list_folder(tmp_path)
    assert found.videos == [str(tmp_path / "one"), str(tmp_path / "two")]
    assert found.pictures_left_out == {str(tmp_path): ["cover.jpg"]}
    with pytest.raises(VideoReadError, match="is a folder of 2 videos, not one video: one, two"):
        read_frames(tmp_path)


def test_hidden_files_and_loops(clip, tmp_path):
    save_pictures(tmp_path, "1.jpg")
    for folder in (".cache", "__MACOSX"):
        (tmp_path / folder).mkdir()
        shutil.copy(clip, tmp_path / folder / "a.mp4")
    shutil.copy(clip, tmp_path / "._a.mp4")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "itself").symlink_to("itself")
    assert list_folder(tmp_path).videos == [str(tmp_path)]
    assert len(read_frames(tmp_path)[0]) == 1


def test_a_folder_keeps_its_videos_beside_links_to_it(clip, tmp_path):
    (tmp_path / "m").mkdir()
    shutil.copy(clip, tmp_path / "m" / "a.mp4")
    for name in "abcxyz":
        (tmp_path / name).symlink_to("m")
    assert list_folder(tmp_path).videos == [str(tmp_path / "m" / "a.mp4")]


def test_frame_folder_matches_video():
    folder = shared_path("clips", "frames", "v_ApplyEyeMakeup_g01_c01")
    extracted, _ = read_frames(folder)
    video, _ = read_frames(shared_path("clips", "facebookarchive_C3D__v_ApplyEyeMakeup_g01_c01.avi"))
    assert len(extracted) == 165 and len(video) == 164  # the first frame is there twice
    difference = np.abs(extracted[1:].astype(int) - video).mean(axis=(1, 2, 3))
    assert difference.max() < 4
    assert np.abs(extracted[2:].astype(int) - video[:-1]).mean(axis=(1, 2, 3)).max() > difference.max()


def test_gif():
    path = shared_path("clips", "derived", "gif_baseball.gif")
    frames, metadata = read_frames(path.read_bytes())
    assert frames.shape == (27, 120, 160, 3) and metadata.codec == "gif"


def test_file_names_not_utf8(clip, tmp_path):
    path = os.path.join(os.fsencode(tmp_path), b"cl\xff \xe9.mp4")
    with open(path, "wb") as file:
        file.write(clip.read_bytes())
    expected, _ = read_frames(clip, eight)
    for name in (os.fsdecode(path), Path(os.fsdecode(path)).as_uri()):
        for backend in ("auto", "decord"):
            assert np.abs(read_frames(name, eight, backend=backend)[0].astype(int) - expected).mean() < 1
    with open(path, "wb") as file:
        file.write(b"no video")
    with pytest.raises(VideoReadError) as caught:
        read_frames(os.fsdecode(path), eight)
    str(caught.value).encode()  # it can be printed


def test_grayscale_and_alpha():
    gray = np.arange(4 * 6 * 6, dtype=np.uint8).reshape(4, 6, 6, 1)
    frames, _ = read_frames(gray)
    assert np.array_equal(frames, gray.repeat(3, axis=-1))
    frames, _ = read_frames(np.concatenate([gray] * 4, axis=-1))
    assert frames.shape == (4, 6, 6, 3)


@pytest.mark.parametrize(
    ("video", "message"),
    [
        ("nowhere.mp4", "nowhere.mp4: does not exist"),
        ("a\0b.mp4", "does not exist"),
        ("/dev/null", "is not a regular file"),
        ("file:///nowhere.mp4", "does not exist"),
        (None, "neither a path nor bytes"),
        ({"path": None, "bytes": None}, "neither a path nor bytes"),
        ({"path": "clip.mp4", "bytes": b"no video"}, "clip.mp4: is not a video file"),
        ({"video": {"path": "clip.mp4"}, "label": 3}, r"\['label', 'video'\]>: is a row .*: `row\['video'\]`\.$"),
        ({"label": 3}, r"<row with \['label'\]>: has neither a path nor bytes"),
        (io.StringIO("text"), 'is open as text. Open it in binary mode \\("rb"\\)'),
        (b"no video", "<8 bytes>: is not a video file"),
        (np.zeros((8, 32, 32), np.uint8), "is not a video"),
        (np.zeros((0, 8, 8, 3), np.uint8), "is not a video"),
        (np.full((4, 8, 8, 3), 300), "int64 values"),
        (np.ones((4, 8, 8, 3), bool), "bool values"),
        (np.full((4, 8, 8, 3), -1.5), "floating point values from -1.5"),
        (np.zeros((4, 8, 8, 5), np.uint8), "no channel dimension"),
        ([Image.new("RGB", (8, 8)), Image.new("RGB", (9, 8))], "changes its frame size"),
    ],
)
def test_bad_input(video, message):
    with pytest.raises(VideoReadError, match=message):
        read_frames(video, eight)


def test_text_mode_file(clip):
    with open(clip, encoding="latin-1") as file, pytest.raises(VideoReadError, match="co.mp4: is open as text"):
        read_frames(file, eight)
    pipe = subprocess.Popen(["cat", clip], stdout=subprocess.PIPE, encoding="latin-1").stdout
    with pytest.raises(VideoReadError, match="is open as text"):
        read_frames(pipe, eight)


def test_bad_frame_folder(tmp_path):
    with pytest.raises(VideoReadError, match="folder without frame images"):
        read_frames(tmp_path, eight)
    (tmp_path / "img_1.jpg").write_bytes(b"not a picture")
    with pytest.raises(VideoReadError, match="unreadable frame"):
        read_frames(tmp_path, eight)


@pytest.mark.parametrize("sample", [lambda total: [total], lambda total: [-1], lambda total: []])
def test_sample_out_of_range(clip, sample):
    for video in (clip, random_clip(0)):
        with pytest.raises(ValueError, match="`sample` must .* 0 to 11"):
            read_frames(video, sample)


@pytest.mark.parametrize("name", ["clip:1.mp4", "concat:a.mp4", "%03d.mp4", "a?b=c&d.mp4", "-i.mp4"])
def test_file_names_with_ffmpeg_syntax(clip, name, tmp_path, monkeypatch):
    (tmp_path / name).write_bytes(clip.read_bytes())
    monkeypatch.chdir(tmp_path)
    assert np.array_equal(read_frames(name, eight)[0], read_frames(clip, eight)[0])


def test_array_has_no_times():
    with pytest.raises(VideoReadError, match="`start`, `end` and `fps`"):
        read_frames(random_clip(0), start=1.0)


def test_unsupported_type():
    with pytest.raises(TypeError, match="got int"):
        read_frames(3, eight)


def test_is_single_video():
    array = np.zeros((4, 8, 8, 3), np.uint8)
    image = Image.new("RGB", (8, 8))
    assert all(
        map(is_single_video, ["a.mp4", np.str_("a.mp4"), b"x", {"path": "a.mp4"}, array, [image, image], list(array)])
    )
    assert not any(map(is_single_video, [["a.mp4", "b.mp4"], [array, array], array[None], [[image], [image]], []]))
