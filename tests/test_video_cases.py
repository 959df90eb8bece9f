"""Files that public reports or trials showed to be read wrong: orientation, first pictures, sizes, times, colours."""

import io
from fractions import Fraction
from functools import partial

import av
import numpy as np
import pytest
from PIL import Image, features

from ezclip import EZClipProcessor, VideoReadError
from ezclip.utils.synthetic_clips import write_video
from tests.helpers import random_clip, shared_path
from tests.test_decoding import encode, set_matrix
from video_ezclip import random_frame_indices, read_frames, uniform_frame_indices


SAMPLERS = {
    "eight": partial(uniform_frame_indices, num_frames=8),
    "sixteen": partial(uniform_frame_indices, num_frames=16),
    "random": partial(random_frame_indices, num_frames=8, seed=3),
    "last": lambda n: [n - 1],
}
ORIENTATION = 274  # the EXIF tag


def case(*parts):
    return shared_path("cases", *parts)


def assert_same_for_all_requests(path):
    """Check that each request gets the frames of the whole, and return the whole."""
    whole, metadata = read_frames(path)
    for name, sample in SAMPLERS.items():
        frames, taken = read_frames(path, sample)
        assert np.array_equal(frames, whole[sample(len(whole))]), name
        assert taken.total_num_frames == len(whole)
    return whole, metadata


@pytest.mark.parametrize(
    ("path", "num_frames", "size"),
    [
        ("exif_mjpeg/exif_mjpeg.avi", 8, (120, 160)),
        ("exif_mjpeg/firstonly.avi", 12, (120, 160)),
        ("exif_mjpeg/timelapse.mov", 12, (120, 160)),
        ("sei_display_orientation/R_sei90.mp4", 60, (160, 120)),
        ("sei_display_orientation/R_sei_change.mp4", 40, (120, 160)),
        ("scale_matrix/P_rot90_scale.mp4", 60, (160, 120)),
        ("scale_matrix/P_scale_matrix.mp4", 60, (120, 160)),
    ],
)
def test_orientation_cases(path, num_frames, size):
    frames, _ = assert_same_for_all_requests(case(path))
    assert frames.shape == (num_frames, *size, 3)


def test_sei_turns_all_frames():
    path = case("sei_display_orientation", "R_sei_change.mp4")
    with av.open(str(path)) as container:
        stored = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    frames, _ = read_frames(path)
    assert np.array_equal(frames, np.stack(stored)[:, ::-1, ::-1])


def write_jpegs(path, orientations, quality=95):
    """Write a motion JPEG file of 64 x 48 pictures, each with an EXIF orientation or none."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=Fraction(10))
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for number, orientation in enumerate(orientations):
            exif, content = Image.Exif(), io.BytesIO()
            if orientation is not None:
                exif[ORIENTATION] = orientation
            image = Image.fromarray(random_clip(number, 1)[0])
            image.save(content, "JPEG", quality=quality, **({"exif": exif} if orientation else {}))
            packet = av.Packet(content.getvalue())
            packet.stream, packet.time_base, packet.is_keyframe = stream, Fraction(1, 10), True
            packet.pts = packet.dts = number
            container.mux(packet)


TURNS = {
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: image[::-1, ::-1].swapaxes(0, 1),
    8: lambda image: np.rot90(image),
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("ending", ["avi", "mov"])
def test_exif_orientations(orientation, ending, tmp_path):
    path = tmp_path / f"a.{ending}"
    write_jpegs(path, [None] * 4)
    stored, _ = read_frames(path)
    write_jpegs(path, [orientation] * 4)
    frames, _ = assert_same_for_all_requests(path)
    assert np.array_equal(frames, np.stack([TURNS[orientation](image) for image in stored]))


def test_orientation_holds_until_another(tmp_path):
    path = tmp_path / "a.avi"
    write_jpegs(path, [None] * 6)
    stored, _ = read_frames(path)
    write_jpegs(path, [3, None, None, 2, None, 1])
    frames, _ = assert_same_for_all_requests(path)
    turns = [TURNS[orientation] for orientation in (3, 3, 3, 2, 2, 1)]
    assert np.array_equal(frames, np.stack([turn(image) for turn, image in zip(turns, stored)]))


def test_quarter_turn_in_the_middle_keeps_the_first_size(tmp_path):
    write_jpegs(tmp_path / "a.avi", [1, 1, 6, 6])
    frames, metadata = read_frames(tmp_path / "a.avi")
    assert frames.shape == (4, 48, 64, 3) and metadata.scaled_sizes == [(64, 48)]


def test_container_decides_before_frames():
    """The container's matrix is in all frames of an MP4 whose first picture says something else."""
    content = case("sei_display_orientation", "R_sei90.mp4").read_bytes()
    turned, _ = assert_same_for_all_requests(set_matrix(content, -1, 0, 0, -1))
    with av.open(io.BytesIO(content)) as container:
        stored = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert np.array_equal(turned, stored[:, ::-1, ::-1])


def test_scales_of_a_matrix_are_left_out(tmp_path):
    encode(tmp_path / "a.mp4", "libx264", options={"g": "12", "bf": "0"})
    content = (tmp_path / "a.mp4").read_bytes()
    stored, _ = read_frames(content)
    for matrix, turn in [((0.4, 0, 0, 1), 1), ((1, 0, 0, -2.5), 4), ((0, 0.3, -1, 0), 6)]:
        frames, _ = read_frames(set_matrix(content, *matrix))
        assert np.array_equal(frames, np.stack([TURNS[turn](image) for image in stored]))


@pytest.mark.parametrize("orientation", TURNS)
def test_exif_of_frame_folders(orientation, tmp_path):
    image = Image.fromarray(random_clip(0, 1)[0])
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    for number in range(3):
        image.save(tmp_path / f"{number}.png", exif=exif)
    frames, _ = read_frames(tmp_path)
    assert np.array_equal(frames[0], TURNS[orientation](np.asarray(image)))
    with Image.open(tmp_path / "0.png") as opened:
        listed, _ = read_frames([opened])
    assert np.array_equal(listed[0], frames[0])


def test_exif_frame_folder_case():
    frames, _ = read_frames(case("exif_frame_folder", "exif_frames"))
    assert frames.shape[1:] == (120, 160, 3)


@pytest.mark.parametrize(
    ("name", "num_frames"),
    [
        ("A_opengop_cut.mp4", 37),
        ("A_opengop_cut.mkv", 40),
        ("Q_og_dvr.ts", 40),
        ("Q_og_lead.mkv", 40),
        ("Q_og_lead.mp4", 40),
    ],
)
def test_recordings_that_begin_mid_stream(name, num_frames):
    path = case("open_gop_cut", name)
    with av.open(str(path)) as container:
        truth = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    frames, metadata = assert_same_for_all_requests(path)
    assert len(truth) == num_frames and np.array_equal(frames, truth) and metadata.problem is None


def test_damage_after_leading_pictures_is_found(tmp_path):
    content = bytearray(case("open_gop_cut", "Q_og_lead.mkv").read_bytes())
    content[3000:3060] = bytes(60)
    with pytest.raises(VideoReadError, match="cannot be decoded"):
        read_frames(bytes(content))


@pytest.mark.parametrize("name", ["J_audio_cover.m4a", "J_audio_cover.mp3"])
def test_cover_of_a_sound_file_is_no_video(name):
    with pytest.raises(VideoReadError, match="no video stream"):
        read_frames(case("audio_with_cover", name))


@pytest.mark.parametrize("name", ["N_res_change.mkv", "N_res_change.ts", "N_res_change_vp8.webm"])
def test_size_changes_are_scaled(name):
    frames, metadata = assert_same_for_all_requests(case("frame_size_change", name))
    assert len(frames) == 40 and len(metadata.scaled_sizes) == 1
    assert metadata.scaled_sizes[0] != (metadata.height, metadata.width) == frames.shape[1:3]
    later, metadata = read_frames(case("frame_size_change", name), SAMPLERS["last"])
    assert later.shape[1:] == frames.shape[1:] and metadata.scaled_sizes is not None


def test_animated_webp():
    frames, metadata = assert_same_for_all_requests(case("animated_webp", "L_anim.webp"))
    assert frames.shape == (60, 120, 160, 3) and metadata.video_backend == "pillow"
    np.testing.assert_allclose(metadata.timestamps, np.arange(60) / 25, atol=1e-9)


@pytest.mark.parametrize("ending", ["webp", "png"])
def test_animations_of_pillow(ending, tmp_path):
    images = [Image.fromarray(image) for image in random_clip(4, 5)]
    path = tmp_path / f"a.{ending}"
    images[0].save(path, save_all=True, append_images=images[1:], duration=[100, 200, 100, 100, 100], lossless=True)
    frames, metadata = assert_same_for_all_requests(path)
    assert np.array_equal(frames, np.stack(images))
    np.testing.assert_allclose(metadata.timestamps, [0, 0.1, 0.3, 0.4, 0.5])
    frames, _ = read_frames(path.read_bytes(), SAMPLERS["last"])
    assert np.array_equal(frames[0], images[-1])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP", "MPO", "AVIF"])
def test_still_picture_is_refused(kind, tmp_path):
    """A photo among videos must not become an answer. MPO is a JPEG with previews, as phones write it."""
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("needs a Pillow that writes AVIF")
    images, content = [Image.fromarray(image) for image in random_clip(4, 3)], io.BytesIO()
    images[0].save(content, kind, **({"save_all": True, "append_images": images[1:]} if kind == "MPO" else {}))
    path = tmp_path / "photo.mp4"
    path.write_bytes(content.getvalue())
    for video in (path, content.getvalue(), content, {"bytes": content.getvalue(), "path": "a.mp4"}):
        with pytest.raises(VideoReadError, match="is a picture, not a video.*a list of pictures"):
            read_frames(video)
    with Image.open(path) as opened:
        with pytest.raises(VideoReadError, match="is a picture, not a video"):
            read_frames(opened)
        with pytest.raises(VideoReadError, match="is a picture, not a video"):
            EZClipProcessor()(videos=opened)
        assert read_frames([opened])[0].shape == (1, 48, 64, 3)


def test_videos_of_one_frame_and_motion_jpeg(tmp_path):
    write_video(tmp_path / "one.mp4", random_clip(0, 1))
    assert len(read_frames(tmp_path / "one.mp4")[0]) == 1
    content = io.BytesIO()
    for image in random_clip(4, 3):
        Image.fromarray(image).save(content, "JPEG")
    assert len(read_frames(content)[0]) == 3


def test_damaged_animation_is_refused(tmp_path):
    images = [Image.fromarray(image) for image in random_clip(4, 5)]
    images[0].save(tmp_path / "a.webp", save_all=True, append_images=images[1:])
    content = (tmp_path / "a.webp").read_bytes()
    with pytest.raises(VideoReadError, match="cut off"):
        read_frames(content[: len(content) // 2])


def test_pixel_aspect_ratio():
    path = case("non_square_pixels", "E_sar43.mp4")
    frames, metadata = read_frames(path)
    assert frames.shape[1:] == (120, 160, 3) and metadata.pixel_aspect_ratio == pytest.approx(4 / 3)
    frames, metadata = read_frames(path, square_pixels=True)
    assert frames.shape[1:] == (120, 213, 3) == (metadata.height, metadata.width, 3)
    turned, _ = read_frames(set_matrix(path.read_bytes(), 0, 1, -1, 0), square_pixels=True)
    assert turned.shape[1:] in {(213, 120, 3), (160, 90, 3)}
    with_decord, metadata = read_frames(path, square_pixels=True, backend="decord")
    assert with_decord.shape[1:] == (120, 213, 3) and metadata.pixel_aspect_ratio == pytest.approx(4 / 3)


@pytest.mark.parametrize("name", ["D_hlg_bt2020.mp4", "D_tv422p10_709.mp4"])
def test_deep_colours(name):
    path = case("ten_bit_edges", name)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        graph = av.filter.Graph()
        scale = graph.add("scale", "flags=bicubic+accurate_rnd")
        graph.link_nodes(
            graph.add_buffer(template=stream), scale, graph.add("format", "rgb24"), graph.add("buffersink")
        ).configure()
        truth = []
        for frame in container.decode(stream):
            graph.push(frame)
            truth.append(graph.pull().to_ndarray())
    frames, _ = assert_same_for_all_requests(path)
    assert np.array_equal(frames, np.stack(truth))


@pytest.mark.parametrize("name", ["B_mpeg4_b.avi", "N_vfr_drop264.avi"])
def test_avi_times_begin_at_0(name):
    _, metadata = read_frames(case("avi_bframes_times", name))
    assert metadata.timestamps[0] == 0 and np.diff(metadata.timestamps).min() > 0


def test_rate_of_variable_rate_files():
    _, metadata = read_frames(case("vfr_fps", "M_vfr_screen.mkv"))
    assert metadata.variable_rate and metadata.fps == pytest.approx(13 / metadata.duration)
    assert metadata.fps == pytest.approx(13 / 60, rel=0.01)


def test_any_error_of_a_file_is_a_read_error(monkeypatch, tmp_path):
    encode(tmp_path / "a.mp4", "libx264")

    def fail(self):
        raise ValueError("31 is not a valid Type")

    monkeypatch.setattr("video_ezclip.VideoFile.scan", fail)
    with pytest.raises(VideoReadError, match=r"a\.mp4.*31 is not a valid Type"):
        read_frames(tmp_path / "a.mp4")


def test_errors_of_the_caller_stay(tmp_path):
    encode(tmp_path / "a.mp4", "libx264")

    def sample(total_frames):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        read_frames(tmp_path / "a.mp4", sample)


def test_published_order_of_operations():
    """`i * n / T` and `i * (n / T)` differ in the last bit, and so in a frame."""
    differing = [
        (n, t)
        for n in range(20, 300)
        for t in range(2, 33)
        if n > t and uniform_frame_indices(n, t) != [int(i * (n / t) + (n / t - 1) / 2) for i in range(t)]
    ]
    assert differing
    for n, t in differing:
        assert uniform_frame_indices(n, t) == [int(i * n / t + (n / t - 1) / 2) for i in range(t)]
