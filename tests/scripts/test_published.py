"""The published model as a rival: the same embeddings, loss and gradients as ours with the same weights."""

import copy

import pytest
import torch

from ezclip.systems.macs import count_macs_of
from scripts.benchmarks.published import PublishedModel, is_published
from tests.published import published_weights, random_model


@pytest.fixture
def models():
    ours = random_model()
    published = PublishedModel(ours.config)
    published.load_state_dict(published_weights(ours))
    return ours, published.eval()


def make_batch(config) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    vision = config.vision_config
    input_ids = torch.randint(1, 28, (3, 7))
    input_ids[:, -1] = config.text_config.eos_token_id
    pixel_values = torch.randn(3, vision.num_frames, 3, vision.image_size, vision.image_size)
    return {"pixel_values": pixel_values, "input_ids": input_ids, "labels": torch.tensor([0, 1, 0])}


def test_same_embeddings_and_gradients(models):
    ours, published = models
    batch = make_batch(ours.config)
    outputs = ours(**batch)
    loss = published(**batch)
    torch.testing.assert_close(published.visual(batch["pixel_values"]), outputs.frame_embeds, atol=2e-5, rtol=1e-4)
    texts = torch.nn.functional.normalize(published.encode_text(batch["input_ids"]), dim=-1)
    torch.testing.assert_close(texts, outputs.text_embeds, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(loss, outputs.loss, atol=1e-5, rtol=1e-5)
    outputs.loss.backward()
    loss.backward()
    for layer, prompts in enumerate(published.visual.transformer.T_prompt_embeddings.grad):
        own = ours.vision_model.encoder.layers[layer].temporal_prompt.grad
        torch.testing.assert_close(prompts, own.view_as(prompts), atol=1e-5, rtol=1e-3)


def test_same_weights_are_trained(models):
    assert is_published(models[0].config)
    ours, published = (sum(p.numel() for p in model.parameters() if p.requires_grad) for model in models)
    assert ours == published


def test_texts_are_padded(models):
    _, published = models
    input_ids = make_batch(models[0].config)["input_ids"]
    macs = [
        count_macs_of(lambda: copy.deepcopy(published).to("meta"), lambda model, ids=ids: model.encode_text(ids))
        for ids in (input_ids.to("meta"), input_ids[:, -3:].to("meta"))
    ]
    assert macs[0] == macs[1] > 0
