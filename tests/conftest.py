"""What the tests share: the reference data beside the repository, and small models and videos that they make."""

import contextlib
import functools
import http.server
import os
import threading
from pathlib import Path


# Small models gain nothing from several threads, and lose much where other processes want the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Nothing in the tests reaches the network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from ezclip import EZClipConfig, EZClipModel, EZClipProcessor
from ezclip.demo import word_tokenizer, write_video
from ezclip.processing_ezclip import default_image_processor


ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"


def shared_path(*parts: str) -> Path:
    """A path in the reference data; the test is skipped where it is absent."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs the reference data ../shared/{'/'.join(parts)}, which is not here")
    return path


@pytest.fixture(autouse=True)
def fresh_accelerator_state():
    """Accelerate keeps the devices and precision of a process; each test has its own."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


WORDS = ["a", "photo", "of", "red", "green", "blue", "circle", "square", "moving", "left", "right"]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A saved EZ-CLIP with random weights: 8 frames of 32 x 32, and a tokenizer of a few words."""
    tokenizer = word_tokenizer(WORDS)
    torch.manual_seed(0)
    model = EZClipModel(tiny_config(len(tokenizer)))
    folder = tmp_path_factory.mktemp("tiny")
    model.save_pretrained(folder)
    EZClipProcessor(default_image_processor(32), tokenizer).save_pretrained(folder)
    return folder


def tiny_config(vocab_size: int = 30, vision_config: dict | None = None, **kwargs) -> EZClipConfig:
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    return EZClipConfig(
        vision_config={**tower, "image_size": 32, "patch_size": 16, **(vision_config or {})},
        text_config={**tower, "vocab_size": vocab_size, "max_position_embeddings": 16, "eos_token_id": vocab_size - 1},
        projection_dim=16,
        **kwargs,
    )


def random_clip(seed: int, num_frames: int = 12, height: int = 48, width: int = 64) -> np.ndarray:
    """Smooth coloured noise that a codec keeps nearly as it is, different in every frame: (T, H, W, 3) uint8."""
    rng = np.random.default_rng(seed)
    corners = torch.from_numpy(rng.uniform(0, 255, (num_frames, 3, 3, 4)).astype(np.float32))
    frames = torch.nn.functional.interpolate(corners, size=(height, width), mode="bilinear")
    return frames.round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    """Class folders with video files, one of them broken: red circle (3), green square (2 + 1 broken)."""
    root = tmp_path_factory.mktemp("videos [1]")
    names = ("red_circle/a", "red_circle/b 1", "red_circle/test#c", "GreenSquare/d", "GreenSquare/e")
    for seed, name in enumerate(names):
        path = root / f"{name}.mp4"
        path.parent.mkdir(exist_ok=True)
        write_video(path, random_clip(seed))
    (root / "GreenSquare" / "broken.mp4").write_bytes((root / "GreenSquare" / "d.mp4").read_bytes()[:900])
    (root / "GreenSquare" / "notes.txt").write_text("not a video")
    return root


@pytest.fixture
def loopback_server():
    """A function that serves a folder over HTTP on this machine, as a context manager giving the address."""

    @contextlib.contextmanager
    def serve(folder):
        handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield f"http://127.0.0.1:{server.server_port}"
            server.shutdown()

    return serve
