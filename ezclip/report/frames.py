"""Sample frames of videos."""

import io
import os
from collections.abc import Callable
from functools import partial

import numpy as np
from PIL import Image

from video_ezclip import VideoReadError, uniform_frame_indices


NUM_FRAMES = 3
HEIGHT = 108
WIDEST = 4  # times the height: what is wider is cut at both sides


def read_strip(video: str, read: Callable) -> bytes:
    """
    Frames of a video side by side, as JPEG.

    Args:
        video (`str`):
            A file or folder of frames on this machine.
        read (`Callable`):
            Reads frames in the way of [`read_frames`].

    Raises:
        [`VideoReadError`]: if it is not there, or cannot be read.
    """
    # Addresses are skipped: a report fetches nothing.
    if not os.path.exists(video):
        raise VideoReadError(video, "is not here.", "Run this where the videos are, in the same folder.")
    frames, _ = read(video, partial(uniform_frame_indices, num_frames=NUM_FRAMES))
    height, width = frames.shape[1:3]
    cut = max(0, width - WIDEST * height) // 2
    frames = frames[:, :, cut : width - cut]
    size = max(1, round(HEIGHT * frames.shape[2] / height)), HEIGHT
    gap = np.full((HEIGHT, 3, 3), 255, np.uint8)
    parts = []
    for frame in frames:
        parts += [np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC)), gap]
    content = io.BytesIO()
    Image.fromarray(np.concatenate(parts[:-1], axis=1)).save(content, format="JPEG", quality=82)
    return content.getvalue()
