"""Load models and processors: what is refused, the precision of training, and the pixels of plain CLIP."""

import json
import logging
import re
import socket

import numpy as np
import pytest
import torch
from transformers import AutoConfig, CLIPImageProcessorPil, VideoMAEConfig
from transformers.utils import logging as transformers_logging

from ezclip import EZClipConfig, EZClipModel, EZClipProcessor, EZClipVisionModel, load_model, load_processor
from ezclip.cli.demo import word_tokenizer
from ezclip.errors import ModelError
from tests.helpers import WORDS, make_clip, random_clip, tiny_config


MEAN, STD = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]


@pytest.fixture
def base(tmp_path):
    """A function that saves plain CLIP with a tokenizer and an image processor of its own."""

    def save(**options):
        folder = tmp_path / "clip"
        tokenizer = word_tokenizer(WORDS)
        make_clip(folder, vocab_size=len(tokenizer))
        tokenizer.save_pretrained(folder)
        defaults = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
        defaults |= {"image_mean": MEAN, "image_std": STD}
        CLIPImageProcessorPil(**{**defaults, **options}).save_pretrained(folder)
        return folder

    return save


SQUASH = {"size": {"height": 32, "width": 32}, "do_center_crop": False}


@pytest.mark.parametrize("options", [{}, SQUASH, {"size": {"shortest_edge": 40}}], ids=["crop", "squash", "margin"])
@pytest.mark.parametrize("preset", [None, "clip"])
def test_plain_clip_keeps_its_image_processor(base, options, preset):
    folder = base(**options)
    frames = random_clip(0, 8, height=45, width=70)  # odd margins: CLIP's image processor rounds down
    own = CLIPImageProcessorPil.from_pretrained(folder)
    expected = own(list(frames), return_tensors="pt")["pixel_values"]
    processors = [load_processor(folder, preset=preset), EZClipProcessor.from_pretrained(folder)]
    for processor in processors:
        pixels = processor(videos=frames, return_tensors="pt").pixel_values[0]
        torch.testing.assert_close(pixels, expected, atol=1e-6, rtol=0)
    assert processors[0].to_dict() == processors[1].to_dict()


@pytest.mark.parametrize("options", [{}, SQUASH], ids=["crop", "squash"])
def test_published_system_on_a_base(base, options):
    folder = base(**options)
    processor = load_processor(folder, preset="ezclip")
    image_processor = processor.image_processor
    assert processor.use_published_crop and dict(image_processor.size)["shortest_edge"] == 32 * 256 // 224
    assert processor.crop_size == (32, 32)
    assert list(image_processor.image_mean) == MEAN and list(image_processor.image_std) == STD


def test_saved_processor_keeps_its_crop(base, tmp_path):
    for preset in ("clip", "ezclip"):
        processor = load_processor(base(**SQUASH), preset=preset)
        processor.save_pretrained(tmp_path / preset)
        again = EZClipProcessor.from_pretrained(tmp_path / preset)
        frames = random_clip(1)
        assert again.use_published_crop == (preset == "ezclip")
        assert np.array_equal(again.crop_frames(frames), processor.crop_frames(frames))


def test_one_line_says_the_pixels(base, caplog):
    transformers_logging.enable_propagation()
    with caplog.at_level(logging.WARNING):
        load_processor(base(), preset="ezclip")
    transformers_logging.disable_propagation()
    said = [record.getMessage() for record in caplog.records if "frames are prepared by" in record.getMessage()]
    assert any("the published crop" in line and "0.1, 0.2, 0.3" in line for line in said)


def test_num_crops_need_the_published_crop(base):
    with pytest.raises(ValueError, match="num_crops"):
        load_processor(base())(videos=random_clip(0), num_crops=3)


@pytest.mark.parametrize("loader", [EZClipConfig, EZClipModel, EZClipVisionModel, EZClipProcessor])
@pytest.mark.parametrize("model_type", ["videomae", "clipseg"])
def test_other_model_types_are_refused(loader, model_type, tmp_path):
    AutoConfig.for_model(model_type).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"EZ-CLIP or another dual encoder, got model_type '{model_type}'"):
        loader.from_pretrained(tmp_path)


def test_towers_load_only_from_their_own_family(tmp_path):
    AutoConfig.for_model("siglip").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="got model_type 'siglip'"):
        EZClipVisionModel.from_pretrained(tmp_path)


def test_load_model_refuses_other_model_types(tmp_path):
    VideoMAEConfig().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="'videomae'"):
        load_model(tmp_path)


@pytest.fixture
def no_network(monkeypatch):
    """Make every connection fail the test."""

    def refuse(*args, **kwargs):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("out/checkpont-10", "No folder 'out/checkpont-10'. 'out' holds: checkpoint-10, best."),
        ("./ot", "No folder './ot'. '.' holds: out."),
        ("out/best/deep/model", "'out/best' holds none."),
        ("~/nowhere", "No folder '~/nowhere'."),
        ("C:\\models\\clip", "No folder"),
        ("nowhere.pt", "No file 'nowhere.pt'. '.' holds: model.pt."),
        ("model.pt", "is a file of weights, not the folder of a model. Convert it: `ezclip convert"),
    ],
)
def test_mistyped_path(name, message, tmp_path, monkeypatch, no_network):
    for folder in ("best", "checkpoint-10"):
        (tmp_path / "out" / folder).mkdir(parents=True)
    (tmp_path / "model.pt").write_bytes(b"weights")
    monkeypatch.chdir(tmp_path)
    for load in (load_model, load_processor):
        with pytest.raises(ModelError, match=re.escape(message)):
            load(name)
    for loader in (EZClipModel, EZClipVisionModel, EZClipProcessor):
        with pytest.raises(OSError, match=re.escape(message)):
            loader.from_pretrained(name)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_training_loads_float32(dtype, tmp_path):
    make_clip(tmp_path / "clip").to(dtype).save_pretrained(tmp_path / "half")
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    assert load_model(tmp_path / "half", preset="clip").dtype == dtype
    model = load_model(tmp_path / "half", for_training=True)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_end_of_text_with_added_tokens():
    """`eos_token_id` 2 means the highest token, which is an added one here."""
    tokenizer = word_tokenizer(WORDS)
    eos = tokenizer.eos_token_id
    tokenizer.add_tokens(["pirouette"])
    texts = ["a pirouette left", "pirouette", "a red circle moving left"]
    config = tiny_config(len(tokenizer))
    config.text_config.eos_token_id = eos
    torch.manual_seed(0)
    expected = EZClipModel(config).eval()
    config.text_config.eos_token_id = 2
    legacy = EZClipModel(config).eval()
    legacy.load_state_dict(expected.state_dict())
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    assert (inputs["input_ids"] > eos).any()
    for options in ({}, {"output_last_hidden_state": False}):
        with torch.no_grad():
            wanted, found = (
                model.get_text_features(**inputs, **options).pooler_output for model in (expected, legacy)
            )
        torch.testing.assert_close(found, wanted)
