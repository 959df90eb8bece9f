"""Scores of other dual encoders equal each model's own documented way of scoring, through its own processor."""

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers import AutoModel
from transformers.utils import is_timm_available, is_torchvision_available

import ezclip
from ezclip import ClassBank
from ezclip.encoders import VideoTextEncoder
from ezclip.systems.loading import check_fit
from pipeline_ezclip import Scoring, score_embeds
from tests.encoders.families import MAKERS, SQUARE, make_rival
from tests.helpers import shared_path
from video_ezclip import read_frames


LABELS = ["yoga", "making a cake", "archery with a bow", "playing guitar"]
IMAGE_MODELS = {"clipseg": "CLIPSegProcessor", "groupvit": "CLIPProcessor", "aimv2": "CLIPProcessor"}
needs_timm = pytest.mark.skipif(not is_timm_available(), reason="PE-Video needs timm, which is not installed")
FAMILIES = [pytest.param(name, marks=needs_timm if name.startswith("pe_") else ()) for name in MAKERS]


@pytest.fixture(scope="module")
def rival(tmp_path_factory):
    folders = {}

    def make(model_type):
        if model_type not in folders:
            folders[model_type] = make_rival(model_type, tmp_path_factory.mktemp(model_type))
        return folders[model_type]

    return make


def read(num_frames: int, side: int | None = None) -> list[np.ndarray]:
    """Frames of a real clip, as they are or squashed to a square."""
    frames, _ = read_frames(str(shared_path("clips", "OpenGVLab_Ask-Anything__making_cake.mp4")))
    frames = frames[np.linspace(0, len(frames) - 1, num_frames).astype(int)]
    return [frame if side is None else np.asarray(Image.fromarray(frame).resize((side, side))) for frame in frames]


def our_scores(folder, frames, function_to_apply="softmax") -> torch.Tensor:
    encoder, processor = ezclip.load_encoder(folder), ezclip.load_processor(folder)
    processor.num_frames = len(frames)
    bank = ClassBank.build(encoder, processor, LABELS, templates="{}")
    with torch.no_grad():
        videos = encoder.encode_videos(processor(videos=[np.stack(frames)], return_tensors="pt").pixel_values)
        return score_embeds(encoder, bank, videos, scoring=Scoring.of(encoder, function_to_apply))


def tokens_of(folder, **padding):
    return transformers.AutoTokenizer.from_pretrained(folder)(LABELS, return_tensors="pt", **padding)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_interface(rival, model_type):
    folder = rival(model_type)
    encoder, processor = ezclip.load_encoder(folder), ezclip.load_processor(folder)
    assert isinstance(encoder, VideoTextEncoder)
    model = AutoModel.from_pretrained(folder)
    assert isinstance(encoder, type(model.video_model if model_type == "pe_audio_video" else model))
    assert not encoder.training
    check_fit(encoder, processor)
    clips = [str(shared_path("clips", f"OpenGVLab_Ask-Anything__{name}.mp4")) for name in ("yoga", "making_cake")]
    with torch.no_grad():
        videos = encoder.encode_videos(processor(videos=clips, return_tensors="pt").pixel_values)
        alone = encoder.encode_videos(processor(videos=clips[1], return_tensors="pt").pixel_values)
    assert torch.allclose(videos[1:], alone, atol=1e-5)
    assert not torch.allclose(videos[0], videos[1], atol=1e-3)


@torch.no_grad()
def test_xclip(rival):
    folder, frames = rival("xclip"), read(4)
    image_processor = transformers.VideoMAEImageProcessorPil.from_pretrained(folder)
    own = transformers.XCLIPProcessor(image_processor, transformers.AutoTokenizer.from_pretrained(folder))
    inputs = own(text=LABELS, videos=frames, return_tensors="pt", padding=True)
    logits = transformers.XCLIPModel.from_pretrained(folder)(**inputs).logits_per_video
    assert torch.allclose(our_scores(folder, frames), logits.softmax(dim=1), atol=1e-5)
    assert logits.softmax(dim=1).std() > 1e-2  # else anything would be equal


@torch.no_grad()
@pytest.mark.parametrize("model_type", IMAGE_MODELS)
def test_image_models_on_one_frame(rival, model_type):
    folder, frames = rival(model_type), read(1)
    image_processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    own = getattr(transformers, IMAGE_MODELS[model_type])(image_processor, tokenizer)
    inputs = own(text=LABELS, images=frames, return_tensors="pt", padding=True)
    inputs.pop("token_type_ids", None)
    logits = AutoModel.from_pretrained(folder)(**inputs).logits_per_image
    assert torch.allclose(our_scores(folder, frames), logits.softmax(dim=1), atol=1e-5)
    assert logits.softmax(dim=1).std() > 1e-2


@torch.no_grad()
def test_image_models_average_frames(rival):
    folder, frames = rival("clipseg"), read(3)
    encoder, processor = ezclip.load_encoder(folder), ezclip.load_processor(folder)
    processor.num_frames = 3
    pixels = processor(videos=[np.stack(frames)], return_tensors="pt").pixel_values
    each = torch.cat([encoder.get_image_features(frame[None]).pooler_output for frame in pixels[0]])
    assert torch.allclose(encoder.encode_videos(pixels)[0], each.mean(dim=0), atol=1e-6)


@torch.no_grad()
def test_tipsv2_on_one_frame(rival):
    folder, frames = rival("tipsv2"), read(1, side=32)
    pixels = torch.tensor(np.stack(frames)).movedim(-1, 1) / 255  # neither resized nor normalised
    tokens = tokens_of(folder, padding="max_length", truncation=True, max_length=64)
    if is_torchvision_available():
        own = transformers.Tipsv2ImageProcessor(size=SQUARE)(frames, return_tensors="pt").pixel_values
        assert torch.allclose(own, pixels, atol=1e-6)
    logits = transformers.Tipsv2Model.from_pretrained(folder)(**tokens, pixel_values=pixels).logits_per_image
    assert torch.allclose(our_scores(folder, frames), logits.softmax(dim=1), atol=1e-5)
    assert logits.softmax(dim=1).std() > 1e-2


@torch.no_grad()
def test_videoprism(rival):
    folder, frames = rival("videoprism"), read(4, side=32)
    pixels = torch.tensor(np.stack(frames)).movedim(-1, 1)[None] / 255
    tokens = tokens_of(folder, padding="max_length", truncation=True, max_length=64)
    if is_torchvision_available():
        video_processor = transformers.LlavaOnevisionVideoProcessor(size=SQUARE, do_normalize=False)
        own = video_processor(np.stack(frames), return_tensors="pt").pixel_values_videos
        assert torch.allclose(own, pixels, atol=1e-6)
    model = transformers.VideoPrismClipModel.from_pretrained(folder)
    # `logits_per_text` are a softmax over the texts, `logits_per_video` one over the videos.
    probabilities = model(pixels, **tokens, temperature=0.01).logits_per_text.T
    assert torch.allclose(our_scores(folder, frames), probabilities, atol=1e-5)
    assert probabilities.std() > 1e-2


@needs_timm
@torch.no_grad()
@pytest.mark.parametrize("model_type", ["pe_video", "pe_audio_video"])
@pytest.mark.parametrize("function_to_apply", ["softmax", "sigmoid"])
def test_pe_video(rival, model_type, function_to_apply):
    folder, frames = rival(model_type), read(16, side=32)
    options = {"size": SQUARE, "do_resize": True, "do_rescale": True, "do_normalize": True, "image_mean": [0.5] * 3}
    own = transformers.PeVideoVideoProcessor(**options, image_std=[0.5] * 3, rescale_factor=1 / 255)
    pixels = own(np.stack(frames), return_tensors="pt").pixel_values_videos
    model = AutoModel.from_pretrained(folder)
    model = model.video_model if model_type == "pe_audio_video" else model
    outputs = model(pixel_values_videos=pixels, **tokens_of(folder, padding=True))
    logits = outputs.logits_video_text
    expected = logits.sigmoid() if function_to_apply == "sigmoid" else logits.softmax(dim=1)
    assert torch.allclose(our_scores(folder, frames, function_to_apply), expected, atol=1e-5)
    assert expected.std() > 1e-2
