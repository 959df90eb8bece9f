"""Draw attention maps over a whole video. Each frame gets the map of the nearest sampled frame."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from ezclip.attention.figures import blend, colour_map, draw_title
from ezclip.attention.video_attention import VideoAttention
from ezclip.utils.files import replacing
from video_ezclip import VideoFramesMetadata, read_frames


MAX_SIZE = (1920, 1080)  # width and height of the video, in pixels
MIN_SIDE = 320  # of the longer side of a panel, in pixels; smaller frames are enlarged
TITLE_HEIGHT = 56  # pixels for two lines
MAX_CHUNK_BYTES = 2**28  # memory for frames
DEFAULT_FPS = 25  # for frames without times: arrays, folders of images
CLOCK = 90_000  # ticks per second, as in MPEG; a multiple of common frame rates


def write_overlay(attention: VideoAttention, video, path: str | Path):
    """
    Write the video with its maps as H.264 in an MP4 file.

    The panels of the models stand side by side, those of the labels below each other.

    Args:
        attention (`VideoAttention`):
            The result of [`look_at_video`].
        video:
            The same video. It is read again, in chunks, so it must not be a stream that can be read only once.
        path (`str` or `Path`):
            The file to write.

    Raises:
        [`VideoReadError`]: if the video cannot be read. `ImportError`: if matplotlib is not installed.
    """
    overlay, first = _Overlay(attention), None
    with replacing(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        rate = Fraction(attention.metadata.fps or DEFAULT_FPS).limit_denominator(1001)
        stream = container.add_stream("libx264", rate=rate, options={"crf": "20", "preset": "veryfast"})
        stream.height, stream.width = overlay.canvas.shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, CLOCK)
        for image, time in _read_all(video, attention):
            first = time if first is None else first
            frame = av.VideoFrame.from_ndarray(overlay.draw(image, time), format="rgb24")
            frame.pts, frame.time_base = round((time - first) * CLOCK), Fraction(1, CLOCK)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


class _Overlay:
    """A canvas with a grid of panels, each with a title above it."""

    def __init__(self, attention: VideoAttention):
        self.attention, self.sampled_at = attention, np.array(_times(attention.metadata))
        columns = len({row.name for row in attention.rows})
        lines = len(attention.rows) // columns
        height, width = attention.frames.shape[1:3]
        largest = min(MAX_SIZE[0] / columns / width, (MAX_SIZE[1] / lines - TITLE_HEIGHT) / height)
        scale = min(largest, max(1.0, MIN_SIDE / max(height, width)))
        # Width and height must be even: H.264 stores colours for every second line and column.
        self.height, self.width = (max(2, round(side * scale / 2) * 2) for side in (height, width))
        self.canvas = np.zeros((lines * (TITLE_HEIGHT + self.height), columns * self.width, 3), dtype=np.uint8)
        self.panels = []  # views of the canvas
        grid = self.canvas.reshape(lines, TITLE_HEIGHT + self.height, columns, self.width, 3)
        for row, (line, column) in zip(attention.rows, np.ndindex(lines, columns)):
            panel = grid[line, :, column]
            panel[:TITLE_HEIGHT] = draw_title(row, self.width, TITLE_HEIGHT)
            self.panels.append(panel[TITLE_HEIGHT:])
        self.number, self.maps = None, []

    def draw(self, image: np.ndarray, time: float) -> np.ndarray:
        """Draw the frame at a time, with the maps of the nearest sampled frame."""
        number = int(np.abs(self.sampled_at - time).argmin())
        if number != self.number:
            size = (self.height, self.width)
            self.number = number
            self.maps = [colour_map(self.attention, row, number, size) for row in self.attention.rows]
        image = np.asarray(Image.fromarray(image).resize((self.width, self.height)))
        for panel, coloured in zip(self.panels, self.maps):
            panel[:] = blend(image, coloured)
        return self.canvas


def _read_all(video, attention: VideoAttention) -> Iterator[tuple[np.ndarray, float]]:
    """Yield each frame between `start` and `end`, and its time in seconds."""
    size = max(1, MAX_CHUNK_BYTES // attention.frames[0].nbytes)
    begin, total = 0, None

    def sample(num_frames: int) -> range:
        nonlocal total
        total = num_frames
        return range(begin, min(begin + size, num_frames))

    while total is None or begin < total:
        frames, metadata = read_frames(video, sample, **attention.read_options)
        yield from zip(frames, _times(metadata))
        begin += size


def _times(metadata: VideoFramesMetadata) -> list[float]:
    if metadata.timestamps is not None:
        return metadata.timestamps
    return [index / DEFAULT_FPS for index in metadata.frames_indices]
