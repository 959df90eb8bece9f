"""Scores of embeddings: softmax over the labels, or sigmoid for each."""

import math

import pytest
import torch
from transformers import SiglipConfig, SiglipModel

from configuration_ezclip import EZClipConfig
from modeling_ezclip import EZClipModel
from pipeline_ezclip import ClassBank, Scoring, compute_similarities, score_embeds, wrap_clip


TEXT = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 99}
VISION = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 1, "num_attention_heads": 4}
VISION |= {"image_size": 16, "patch_size": 8}


@pytest.fixture
def siglip():
    torch.manual_seed(0)
    base = SiglipModel(SiglipConfig(text_config={**TEXT, "max_position_embeddings": 16}, vision_config=VISION)).eval()
    with torch.no_grad():
        base.logit_scale.fill_(math.log(9.0))
        base.logit_bias.fill_(-2.5)
    return base


@pytest.fixture
def embeds():
    torch.manual_seed(1)
    return torch.randn(3, 8), ClassBank(["a", "b"], torch.nn.functional.normalize(torch.randn(4, 2, 8), dim=-1))


def test_sigmoid_by_hand(embeds):
    videos, bank = embeds
    scores = bank.probabilities(videos, "probability", 7.0, -1.5, "sigmoid")
    for row, video in enumerate(videos):
        for column in range(2):
            cosines = [float(video @ text[column] / video.norm()) for text in bank.embeds]
            expected = sum(1 / (1 + math.exp(1.5 - 7 * cosine)) for cosine in cosines) / 4
            assert scores[row, column].item() == pytest.approx(expected, abs=1e-6)


def test_softmax_ignores_bias(embeds):
    videos, bank = embeds
    assert torch.equal(bank.probabilities(videos, logit_bias=-9.0), bank.probabilities(videos))


@torch.no_grad()
def test_siglip_sigmoid_is_its_own(siglip):
    frames, tokens = torch.randn(3, 3, 16, 16), torch.randint(3, 99, (2, 16))
    expected = siglip(input_ids=tokens, pixel_values=frames).logits_per_image.sigmoid()
    model = wrap_clip(siglip)
    texts = torch.nn.functional.normalize(model.encode_texts({"input_ids": tokens}), dim=-1)
    bank, videos = ClassBank(["a", "b"], texts[None]), model.encode_videos(frames[:, None])
    assert Scoring.of(model) == Scoring("softmax", 100.0, 0.0)
    model.config.function_to_apply = "sigmoid"
    torch.testing.assert_close(score_embeds(model, bank, videos), expected, atol=1e-5, rtol=0)
    softmax = score_embeds(model, bank, videos, scoring=Scoring.of(model, "softmax"))
    assert torch.equal(softmax, bank.probabilities(videos))


def test_sigmoid_is_kept_with_the_model(siglip, tmp_path):
    siglip.config.function_to_apply = "sigmoid"
    wrap_clip(siglip).save_pretrained(tmp_path)
    scoring = Scoring.of(EZClipModel.from_pretrained(tmp_path))
    assert (scoring.function_to_apply, scoring.logit_bias) == ("sigmoid", -2.5)
    assert scoring.logit_scale == pytest.approx(9.0)


def test_sigmoid_needs_a_bias():
    model = EZClipModel(EZClipConfig(text_config=TEXT, vision_config=VISION, projection_dim=8))
    with pytest.raises(ValueError, match="ezclip calibrate"):
        Scoring.of(model, "sigmoid")


def test_score_of_the_model_and_its_scoring(embeds):
    videos, bank = embeds

    class Products(torch.nn.Module):
        scoring = Scoring(logit_scale=0.5)
        config = None

        def score(self, videos, texts):
            return videos.sum(dim=1) @ texts.T

    shaped, model = videos.unflatten(0, (1, 3)).transpose(0, 1).expand(-1, 2, -1), Products()
    expected = (0.5 * torch.einsum("bd,pcd->bpc", 2 * videos, bank.embeds)).softmax(dim=-1).mean(dim=1)
    torch.testing.assert_close(score_embeds(model, bank, shaped), expected)
    assert compute_similarities(model, bank, shaped, "embedding").shape == (3, 1, 2)


@pytest.mark.parametrize(
    "wrong", [{"function_to_apply": "tanh"}, {"logit_scale": 0.0}, {"logit_scale": math.nan}, {"logit_bias": "1"}]
)
def test_wrong_values(wrong):
    with pytest.raises(ValueError, match=f"`{next(iter(wrong))}` must be"):
        Scoring(**wrong)
