"""Class embeddings: built, saved, and turned into probabilities."""

import pytest
import torch
from transformers.utils import logging

from ezclip import ClassBank, EZClipModel, EZClipProcessor


LABELS = ["red_circle", "GreenSquare", "blue circle"]


@pytest.fixture(scope="module")
def model(tiny_folder):
    return EZClipModel.from_pretrained(tiny_folder)


@pytest.fixture(scope="module")
def processor(tiny_folder):
    return EZClipProcessor.from_pretrained(tiny_folder)


def embed(model, processor, texts) -> torch.Tensor:
    """Embed texts one at a time: L2-normalised (number of texts, D)."""
    with torch.no_grad():
        features = [model.get_text_features(**processor(text=t, return_tensors="pt")).pooler_output for t in texts]
    return torch.nn.functional.normalize(torch.cat(features), dim=-1)


def test_embeds_of_prompts(model, processor):
    templates = ["a photo of {}", "{} moving left", "{}"]
    bank = ClassBank.build(model, processor, LABELS, templates, batch_size=4)
    assert bank.labels == LABELS and bank.embeds.shape == (3, 3, 16)
    for column, (prompts,) in enumerate(processor.get_prompts(LABELS, templates)):
        expected = embed(model, processor, prompts)
        torch.testing.assert_close(bank.embeds[:, column], expected, atol=1e-5, rtol=1e-4)


def test_distinct_texts_are_embedded_once(model, processor, monkeypatch):
    seen = []
    embed = model.get_text_features

    def counting(**inputs):
        if "attention_mask" in inputs:  # the probe of the bank has none
            seen.append(len(inputs["input_ids"]))
        return embed(**inputs)

    monkeypatch.setattr(model, "get_text_features", counting)
    descriptions = {"red_circle": "red", "GreenSquare": "green", "blue circle": "red"}
    bank = ClassBank.build(model, processor, LABELS, descriptions=descriptions)
    assert seen == [2]
    assert torch.equal(bank.embeds[0, 0], bank.embeds[0, 2])


def test_several_texts_per_class(model, processor):
    def mean(embeds):
        return torch.nn.functional.normalize(embeds.mean(dim=0), dim=-1)

    templates = ["a photo of {}", "{} moving left"]
    descriptions = {"red circle": ["red", "a circle moving right"], "green square": "green", "blue circle": ["blue"]}
    bank = ClassBank.build(model, processor, LABELS, templates, descriptions, True, True, batch_size=3)
    assert bank.embeds.shape == (1, 3, 16)
    texts = [
        ["red circle", "red circle red", "red circle a circle moving right"],
        ["Green Square", "Green Square green"],
        ["blue circle", "blue circle blue"],
    ]
    for actual, own in zip(bank.embeds[0], texts):
        means = [mean(embed(model, processor, [template.format(text) for template in templates])) for text in own]
        torch.testing.assert_close(actual, mean(torch.stack(means)), atol=1e-5, rtol=1e-4)
    videos = torch.randn(4, 16)
    by_probability, by_embedding = (bank.probabilities(videos, way) for way in ("probability", "embedding"))
    torch.testing.assert_close(by_probability, by_embedding)

    # One class with several texts is enough, and the others have the mean of their templates.
    bank = ClassBank.build(model, processor, LABELS, templates, descriptions)
    assert bank.embeds.shape == (1, 3, 16)
    alone = ClassBank.build(model, processor, LABELS[1:], templates, descriptions)
    assert alone.embeds.shape == (2, 2, 16)
    torch.testing.assert_close(bank.embeds[0, 1:], mean(alone.embeds), atol=1e-5, rtol=1e-4)


def test_truncation_warning(model, processor, caplog, monkeypatch):
    monkeypatch.setattr(logging.get_logger("ezclip"), "propagate", True)
    descriptions = {label: [f"{label} a photo {'of red ' * n}" for n in (1, 20, 30)] for label in LABELS}
    ClassBank.build(model, processor, LABELS, "{}", descriptions, include_label=True, batch_size=2)
    assert caplog.text.count("were cut") == 1
    assert "6 of 12 texts" in caplog.text and "16 tokens" in caplog.text and "'red_circle a photo" in caplog.text
    # The same texts give no second warning.
    caplog.clear()
    ClassBank.build(model, processor, LABELS, "{}", descriptions, include_label=True)
    assert caplog.text == ""


def test_ensembles():
    generator = torch.Generator().manual_seed(0)
    embeds = torch.nn.functional.normalize(torch.randn(4, 3, 8, generator=generator), dim=-1)
    videos = torch.randn(5, 8, generator=generator)
    directions = torch.nn.functional.normalize(videos, dim=-1)
    bank = ClassBank(LABELS, embeds)

    by_probability = bank.probabilities(videos, "probability")
    expected = torch.stack([(100 * directions @ prompt.t()).softmax(-1) for prompt in embeds]).mean(0)
    torch.testing.assert_close(by_probability, expected)

    by_embedding = bank.probabilities(videos, "embedding", logit_scale=100 / 0.5)
    mean = torch.nn.functional.normalize(embeds.mean(0), dim=-1)
    torch.testing.assert_close(by_embedding, (200 * directions @ mean.t()).softmax(-1))
    torch.testing.assert_close(by_embedding.sum(-1), torch.ones(5))


def test_save_and_load(model, processor, tmp_path):
    model.save_pretrained(tmp_path)
    bank = ClassBank.build(model, processor, ["naïve – “red”", "x"], "{}")
    bank.save_pretrained(tmp_path)
    loaded = ClassBank.from_pretrained(tmp_path)
    assert loaded.labels == bank.labels
    assert torch.equal(loaded.embeds, bank.embeds)
    with pytest.raises(OSError, match="class_bank"):
        ClassBank.from_pretrained(tmp_path.parent)


def test_half_precision(model, processor):
    bank = ClassBank.build(model, processor, LABELS)
    videos = torch.randn(2, 16)
    scores = bank.probabilities(videos.bfloat16())
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, bank.probabilities(videos), atol=0.2, rtol=0)


def test_bad_banks(model, processor):
    with pytest.raises(ValueError, match="at least one label"):
        ClassBank.build(model, processor, [])
    with pytest.raises(ValueError, match=r"`candidate_labels` .* got 3 \(int\)"):
        ClassBank.build(model, processor, ["wave", 3])
    with pytest.raises(ValueError, match=r"`labels` .* got None \(NoneType\)"):
        ClassBank([None], torch.ones(1, 1, 4))
    with pytest.raises(ValueError, match="`embeds` .* finite"):
        ClassBank(["a"], torch.full((1, 1, 4), float("nan")))
    with pytest.raises(ValueError, match=r"repeated: \['wave'\]"):
        ClassBank.build(model, processor, ["wave", "run", "wave"])
    with pytest.raises(ValueError, match=r"`embeds` .* \(1, 3, 4\)"):
        ClassBank(["a", "b"], torch.zeros(1, 3, 4))
    with pytest.raises(ValueError, match="`ensemble` .* 'mean'"):
        ClassBank(["a"], torch.ones(1, 1, 4)).probabilities(torch.ones(1, 4), "mean")


@pytest.mark.parametrize("labels", [["yoga", "Yoga", "run"], ["red", "RED "], ["red circle", "red_circle"]])
def test_two_spellings(model, processor, labels):
    with pytest.raises(ValueError, match=f"{labels[0]!r} and {labels[1].strip()!r}"):
        ClassBank.build(model, processor, labels)


def test_labels_of_the_same_tokens(model, processor, logged):
    with pytest.raises(ValueError, match="'wave' and 'jump' are the same tokens"):
        ClassBank.build(model, processor, ["red circle", "wave", "jump"])
    assert sum("knows no word of these labels" in line and "wave, jump" in line for line in logged()) == 1
    bank = ClassBank.build(model, processor, ["wave", "jump"], descriptions={"wave": "red", "jump": "red"})
    assert torch.equal(bank.embeds[0, 0], bank.embeds[0, 1])  # two descriptions may be alike


def test_unknown_words_are_named(model, processor, logged):
    ClassBank.build(model, processor, ["red dancing", "shaking hands", "green"])
    (line,) = (line for line in logged() if "knows no word" in line)
    assert "shaking hands" in line and "dancing" not in line


def test_one_label_warns(model, processor, logged):
    bank = ClassBank.build(model, processor, ["a moving circle"])
    bank.probabilities(bank.embeds[:, 0], function_to_apply="sigmoid")
    assert not any("only one label" in line for line in logged())
    bank.probabilities(bank.embeds[:, 0])
    assert sum("only one label" in line for line in logged()) == 1


def test_labels_are_stripped(model, processor):
    assert ClassBank.build(model, processor, [" red ", "green\n"]).labels == ["red", "green"]
    with pytest.raises(ValueError, match="must not be blank"):
        ClassBank.build(model, processor, ["red", " "])


@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
def test_damaged_file(tmp_path, damage):
    ClassBank(["a"], torch.ones(1, 1, 4)).save_pretrained(tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes({"cut": path.read_bytes()[:50], "empty": b"", "text": b"no bank"}[damage])
    with pytest.raises(ValueError, match=r"class_bank.safetensors .*ClassBank\.build"):
        ClassBank.from_pretrained(tmp_path)
