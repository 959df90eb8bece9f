"""
Render clips and stills of coloured shapes as video files.

A class is "{colour} {shape} moving {direction}". The shape crosses half of the frame about a random midpoint. A clip
that moves left, reversed, is a clip that moves right: only the order of the frames distinguishes the two classes.
"""

import shutil
from fractions import Fraction
from itertools import product
from pathlib import Path

import av
import numpy as np
from tqdm.auto import tqdm


COLOURS = {"red": (230, 40, 40), "green": (40, 200, 60), "blue": (50, 80, 240), "yellow": (235, 215, 40)}
SHAPES = ("circle", "square", "triangle", "cross")
DIRECTIONS = {"left": (-1, 0), "up": (0, -1), "right": (1, 0), "down": (0, 1)}
HELD_OUT_SHAPE = "cross"  # its 16 classes are novel: no training clip shows it
NUM_FRAMES = 8
FILE_SIZE = 64  # height and width of the rendered frames
CLIPS_PER_CLASS = {"train": 42, "base": 5, "novel": 15}


def draw(colour: str, shape: str, path: np.ndarray, radius: float, background: float) -> np.ndarray:
    """
    Draw a shape that moves along a path: `(T, FILE_SIZE, FILE_SIZE, 3)`, uint8.

    `path` `(T, 2)` is the centre (x, y) in each frame and `radius` the size, both as fractions of the side.
    `background` is a grey level from 0 to 255.
    """
    grid = (np.arange(FILE_SIZE) + 0.5) / FILE_SIZE
    x = grid[None, None, :] - path[:, 0, None, None]
    y = grid[None, :, None] - path[:, 1, None, None]
    # Distance to the outline, positive inside
    if shape == "circle":
        inside = radius - np.hypot(x, y)
    elif shape == "square":
        inside = radius - np.maximum(np.abs(x), np.abs(y))
    elif shape == "triangle":
        inside = np.minimum(0.8 * radius - y, 0.48 * (y + radius) - 0.88 * np.abs(x))
    else:
        along, across = np.maximum(np.abs(x), np.abs(y)), np.minimum(np.abs(x), np.abs(y))
        inside = np.minimum(radius - along, 0.33 * radius - across)
    coverage = np.clip(inside * FILE_SIZE + 0.5, 0.0, 1.0)[..., None]
    return np.rint(coverage * np.array(COLOURS[colour]) + (1.0 - coverage) * background).astype(np.uint8)


def draw_clip(rng: np.random.Generator, colour: str, shape: str, direction: str) -> np.ndarray:
    """Draw a random clip of a class, `(NUM_FRAMES, FILE_SIZE, FILE_SIZE, 3)`: a path of 0.5 to 0.6 of the side."""
    radius, length, background = rng.uniform(0.15, 0.2), rng.uniform(0.5, 0.6), rng.uniform(0, 60)
    step = np.array(DIRECTIONS[direction])
    margin = radius + length / 2 * np.abs(step)
    path = rng.uniform(margin, 1 - margin) + np.linspace(-length / 2, length / 2, NUM_FRAMES)[:, None] * step
    return draw(colour, shape, path, radius, background)


def draw_still(rng: np.random.Generator) -> tuple[np.ndarray, str]:
    """
    Draw a random still, `(1, FILE_SIZE, FILE_SIZE, 3)`, and return it with its caption.

    The caption names the position with the words of `DIRECTIONS`, so a text tower knows them before training.
    """
    colour, shape = rng.choice(list(COLOURS)), rng.choice(SHAPES)
    radius, background = rng.uniform(0.15, 0.2), rng.uniform(0, 60)
    x, y = rng.uniform(radius, 1 - radius, size=2)
    vertical = "up" if y < 0.4 else "down" if y > 0.6 else ""
    horizontal = "left" if x < 0.4 else "right" if x > 0.6 else ""
    position = f"{vertical} {horizontal}".strip() or "middle"
    return draw(colour, shape, np.array([[x, y]]), radius, background), f"a {colour} {shape} at the {position}"


def write_video(path: str | Path, frames: np.ndarray, rate: int = 8):
    """
    Encode RGB frames `(T, H, W, 3)`, uint8, of even height and width, as H.264 at `rate` frames per second.

    The suffix of `path` selects the container.
    """
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(rate), options={"crf": "16", "preset": "veryfast"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def render_videos(folder: Path, seed: int):
    """Render the splits `train`, `base` and `novel` as class folders of videos. An earlier `folder` is deleted."""
    shutil.rmtree(folder, ignore_errors=True)
    for number, (split, count) in enumerate(CLIPS_PER_CLASS.items()):
        rng = np.random.default_rng((seed, number))
        shapes = [shape for shape in SHAPES if (shape == HELD_OUT_SHAPE) == (split == "novel")]
        classes = list(product(COLOURS, shapes, DIRECTIONS))
        for colour, shape, direction in tqdm(classes, f"Rendering {split}", unit="class"):
            class_folder = folder / split / f"{colour} {shape} moving {direction}"
            class_folder.mkdir(parents=True)
            for clip in range(count):
                write_video(class_folder / f"{clip:02d}.mp4", draw_clip(rng, colour, shape, direction))
