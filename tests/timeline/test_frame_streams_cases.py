"""Frame streams give the frames of `read_frames` for the files of public reports."""

import numpy as np
import pytest

from ezclip import VideoReadError
from ezclip.timeline.frame_streams import FrameStream
from tests.helpers import shared_path
from video_ezclip import read_frames


@pytest.mark.parametrize(
    "name",
    [
        "exif_mjpeg/exif_mjpeg.avi",
        "sei_display_orientation/R_sei90.mp4",
        "sei_display_orientation/R_sei_change.mp4",
        "scale_matrix/P_rot90_scale.mp4",
        "open_gop_cut/A_opengop_cut.mp4",
        "open_gop_cut/A_opengop_cut.mkv",
        "open_gop_cut/Q_og_dvr.ts",
        "open_gop_cut/Q_og_lead.mkv",
        "frame_size_change/N_res_change.mkv",
        "frame_size_change/N_res_change_vp8.webm",
        "ten_bit_edges/D_tv422p10_709.mp4",
        "avi_bframes_times/B_mpeg4_b.avi",
        "avi_bframes_times/N_vfr_drop264.avi",
    ],
)
def test_stream_equals_read_frames(name):
    path = shared_path("cases", *name.split("/"))
    frames, metadata = read_frames(path)
    with FrameStream(path) as stream:
        streamed = list(stream)
        images = [frame.cropped(lambda image: image) for frame in streamed]
    assert np.array_equal(np.stack(images), frames)
    np.testing.assert_allclose([frame.seconds for frame in streamed], metadata.timestamps, atol=1e-6)


def test_cover_of_a_sound_file_is_no_stream():
    with pytest.raises(VideoReadError, match="no video stream"):
        FrameStream(shared_path("cases", "audio_with_cover", "J_audio_cover.mp3"))
