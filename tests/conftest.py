"""What the tests share: the reference data beside the repository, and small models and videos that they make."""

import contextlib
import functools
import http.server
import logging
import threading

import pytest
import torch
from accelerate.state import AcceleratorState
from transformers.utils import logging as transformers_logging

from ezclip import EZClipModel, EZClipProcessor
from ezclip.cli.demo import word_tokenizer
from ezclip.utils.synthetic_clips import write_video
from processing_ezclip import default_image_processor
from tests.helpers import VOCAB_SIZE, WORDS, make_clip, random_clip, tiny_config


@pytest.fixture(autouse=True)
def fresh_accelerator_state():
    """Accelerate keeps the devices and precision of a process; each test has its own."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def logged(caplog):
    """Return a function that returns the warnings of this test so far."""
    transformers_logging.enable_propagation()
    yield lambda: [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    transformers_logging.disable_propagation()


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


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """Return a folder with a plain CLIP of random weights; no test changes it."""
    folder = tmp_path_factory.mktemp("clip")
    make_clip(folder, vocab_size=VOCAB_SIZE)
    return folder


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
