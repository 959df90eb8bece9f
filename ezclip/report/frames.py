"""Sample frames of videos."""

import io
import os
from collections.abc import Callable
from functools import partial

from PIL import Image

from video_ezclip import VideoReadError, uniform_frame_indices


NUM_FRAMES = 3
HEIGHT = 108
GAP = 3
MAX_RATIO = 4  # width to height; both sides of wider frames are cut


def read_strip(video: str, read: Callable) -> bytes:
    """
    Return frames of a video side by side, as JPEG.

    Args:
        video (`str`):
            A local file or folder of frames.
        read (`Callable`):
            Reads frames, with the arguments of [`read_frames`].

    Raises:
        [`VideoReadError`]: if the video does not exist or cannot be read.
    """
    # A URL does not exist as a path: a report fetches nothing.
    if not os.path.exists(video):
        raise VideoReadError(video, "does not exist.", "Run the report where the videos are, in the same folder.")
    frames, _ = read(video, partial(uniform_frame_indices, num_frames=NUM_FRAMES))
    height, width = frames.shape[1:3]
    cut = max(0, width - MAX_RATIO * height) // 2
    frames = frames[:, :, cut : width - cut]
    width = max(1, round(HEIGHT * frames.shape[2] / height))
    strip = Image.new("RGB", ((width + GAP) * len(frames) - GAP, HEIGHT), "white")
    for number, frame in enumerate(frames):
        resized = Image.fromarray(frame).resize((width, HEIGHT), Image.Resampling.BICUBIC)
        strip.paste(resized, ((width + GAP) * number, 0))
    content = io.BytesIO()
    strip.save(content, format="JPEG", quality=82)
    return content.getvalue()
