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


def read_strip(video: str, read: Callable, num_frames: int = NUM_FRAMES, frame_height: int = HEIGHT) -> bytes:
    """
    Return frames of a video side by side, as JPEG.

    Args:
        video (`str`):
            A local file or folder of frames.
        read (`Callable`):
            Reads frames, with the arguments of [`read_frames`].
        num_frames (`int`, *optional*, defaults to 3):
            Number of frames.
        frame_height (`int`, *optional*, defaults to 108):
            Height in pixels.

    Raises:
        [`VideoReadError`]: if the video does not exist or cannot be read.
    """
    # A URL does not exist as a path: a report fetches nothing.
    if not os.path.exists(video):
        raise VideoReadError(video, "does not exist.", "Run this where the videos are, in the same folder.")
    frames, _ = read(video, partial(uniform_frame_indices, num_frames=num_frames))
    height, width = frames.shape[1:3]
    cut = max(0, width - MAX_RATIO * height) // 2
    frames = frames[:, :, cut : width - cut]
    width = max(1, round(frame_height * frames.shape[2] / height))
    strip = Image.new("RGB", ((width + GAP) * len(frames) - GAP, frame_height), "white")
    for number, frame in enumerate(frames):
        resized = Image.fromarray(frame).resize((width, frame_height), Image.Resampling.BICUBIC)
        strip.paste(resized, ((width + GAP) * number, 0))
    content = io.BytesIO()
    strip.save(content, format="JPEG", quality=82)
    return content.getvalue()
