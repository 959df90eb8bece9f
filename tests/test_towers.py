"""EZ-CLIP on the towers of other dual encoders: features as in transformers, time, training, saving."""

import copy
import json

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from huggingface_hub import constants
from transformers import AutoTokenizer, pipeline

import ezclip
from checkpoint_ezclip import is_added_to_clip
from configuration_ezclip import EZClipConfig
from ezclip import EZClipModel, EZClipProcessor
from ezclip.attention.maps import ATTENTION_METHODS, attention_maps, relevance_maps, temporal_attention
from ezclip.cli import push
from ezclip.cli.export import export_model
from ezclip.hub.model_card import CardFacts, make_card
from ezclip.systems.base import plain_clip
from ezclip.systems.citations import CITATIONS, TOWER_CITATIONS
from ezclip.systems.macs import count_macs, count_macs_of
from ezclip.training.gradient_cache import backward
from ezclip.utils.synthetic_clips import write_video
from tests.helpers import (
    enable_checkpointing,
    make_inputs,
    random_clip,
    read_json,
    read_lines,
    run,
    run_again,
    train,
)
from tests.hub.test_push import ELSEWHERE, connect, run_elsewhere
from tests.hub_server import LoopbackHub
from tests.towers import FAMILIES, PATCH, REPLICAS, SIZE, make_replica, rename_weights


TEXTS = ["a red circle moving left", "a square", "a photo of a green circle moving right"]
NUM_FRAMES = 3


class Base:
    """A replica as transformers loads it, its folder, and inputs of its own processor."""

    def __init__(self, name, folder):
        self.name, self.folder = name, folder
        self.model = make_replica(name, folder)
        _, self.image_processor, _ = REPLICAS[name]()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        # SigLIP 2's own processor keeps the aspect ratio, so that only squares have the pixels of a video's frames.
        width = 48 if name == "siglip2_naflex" else 64
        self.clips = [random_clip(seed, NUM_FRAMES, 48, width) for seed in range(2)]

    def pixels(self):
        """Prepare frames as the base's own image processor does: its inputs, a row per frame."""
        frames = [frame for clip in self.clips for frame in clip]
        return self.image_processor(frames, return_tensors="pt")

    def tokens(self):
        padding = "max_length" if self.name.startswith("siglip") else "longest"
        self.tokenizer.model_max_length = 64 - 2 * (self.name == "altclip")
        return self.tokenizer(TEXTS, padding=padding, truncation=True, return_tensors="pt")

    @torch.no_grad()
    def embed(self):
        images = self.model.get_image_features(**self.pixels()).pooler_output
        return images.unflatten(0, (2, NUM_FRAMES)), self.model.get_text_features(**self.tokens()).pooler_output

    def extended(self, **fields):
        """Load EZ-CLIP on the base, with parts that change its outputs."""
        options = {"vision_config": {"num_frames": NUM_FRAMES, **fields.pop("vision_config", {})}, **fields}
        return EZClipModel.from_pretrained(self.folder, dtype=torch.float32, **options)


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Return a function from the name of a replica to its [`Base`]."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = Base(name, tmp_path_factory.mktemp(name))
        return made[name]

    return get


@pytest.fixture
def base(bases, request):
    return bases(request.param)


every_replica = pytest.mark.parametrize("base", REPLICAS, indirect=True)
every_family = pytest.mark.parametrize("base", FAMILIES, indirect=True)


def inputs_of(base, model):
    processor = ezclip.load_processor(base.folder, num_frames=NUM_FRAMES)
    return processor(videos=base.clips, text=TEXTS[:2], return_tensors="pt").to(model.device)


def assert_equal(actual, expected, tolerance=1e-6):
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


# With nothing added


@every_replica
@torch.no_grad()
def test_features_are_those_of_transformers(base):
    images, texts = base.embed()
    model = ezclip.load_model(base.folder).float()
    processor = ezclip.load_processor(base.folder, num_frames=NUM_FRAMES)
    inputs = processor(videos=base.clips, text=TEXTS, return_tensors="pt")
    features = model.get_video_features(inputs.pixel_values)
    assert_equal(features.frame_embeds, images)
    assert_equal(model.encode_videos(inputs.pixel_values), images.mean(dim=1))
    tokens = {name: value for name, value in inputs.items() if name != "pixel_values"}
    assert {*tokens} == {*base.tokens()}
    for name, value in base.tokens().items():
        assert torch.equal(tokens[name], value)
    assert_equal(model.get_text_features(**tokens).pooler_output, texts)
    assert_equal(model.encode_texts(tokens), texts)


@every_family
def test_pixels_and_logits_are_those_of_transformers(base):
    model, processor = ezclip.load_model(base.folder).float(), ezclip.load_processor(base.folder, num_frames=1)
    frame = base.clips[0][:1]
    inputs = processor(videos=[frame], text=TEXTS, return_tensors="pt")
    own = base.image_processor(list(frame), return_tensors="pt")
    if "spatial_shapes" not in own:
        torch.testing.assert_close(inputs.pixel_values[0], own.pixel_values, atol=2 / 255 / 0.2, rtol=0)
    with torch.no_grad():
        actual, expected = model(**inputs).logits_per_video, base.model(**own, **base.tokens()).logits_per_image
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=1e-5)


def test_naflex_patch_lists(bases):
    """Frames of several shapes, padded, as SigLIP 2's own processor makes them."""
    base = bases("siglip2_naflex")
    sizes = ((48, 64), (64, 24), (40, 40), (30, 90), (48, 48), (20, 20))
    frames = [random_clip(seed, 1, *size)[0] for seed, size in enumerate(sizes)]
    own = base.image_processor(frames, return_tensors="pt")
    assert (own.pixel_attention_mask == 0).any() and len({*map(tuple, own.spatial_shapes.tolist())}) > 2
    lists = {name: value.unflatten(0, (2, 3)) for name, value in own.items()}
    with torch.no_grad():
        expected = base.model.get_image_features(**own).pooler_output.unflatten(0, (2, 3))
        assert_equal(ezclip.load_model(base.folder).get_video_features(**lists).frame_embeds, expected)
        model = train(base.extended(text_config={"use_adapter": False})).eval()
        embeds = model.get_video_features(**lists).pooler_output
        # What padded patches hold is read nowhere.
        noise = torch.randn_like(lists["pixel_values"]) * (lists["pixel_attention_mask"] == 0)[..., None]
        noisy = {**lists, "pixel_values": lists["pixel_values"] + noise}
        assert_equal(model.get_video_features(**noisy).pooler_output, embeds)
        backwards = model.get_video_features(**{name: value.flip(1) for name, value in lists.items()}).pooler_output
        assert (backwards - embeds).abs().max() > 1e-5 * embeds.abs().max()


def test_altclip_with_newer_names(bases, tmp_path):
    """transformers 5 calls the blocks `layers`; the published files call them `layer`."""
    base = bases("altclip")
    make_replica("altclip", tmp_path)
    rename_weights(tmp_path, ("roberta.encoder.layer.", "roberta.encoder.layers."))
    older, newer = (ezclip.load_model(folder).state_dict() for folder in (base.folder, tmp_path))
    assert all(torch.equal(older[name], newer[name]) for name in older)
    assert any("roberta.encoder.layers.0." in name for name in older)


def test_half_precision_files(bases):
    model = ezclip.load_model(bases("laion_g").folder)
    assert model.dtype == torch.float16
    assert ezclip.load_model(bases("laion_g").folder, for_training=True).dtype == torch.float32


@every_family
def test_bfloat16(base):
    model = base.extended().eval()
    inputs = inputs_of(base, model)
    with torch.no_grad():
        expected = model(**inputs)
        actual = model.bfloat16()(**{**inputs, "pixel_values": inputs["pixel_values"].bfloat16()})
    assert model.dtype == actual.video_embeds.dtype == torch.bfloat16
    for name in ("video_embeds", "text_embeds"):
        assert torch.cosine_similarity(actual[name].float(), expected[name]).min() > 0.99


# With prompts and adapters


@every_replica
def test_new_weights(base):
    model, info = base.extended(), None
    _, info = EZClipModel.from_pretrained(base.folder, output_loading_info=True, vision_config={"num_frames": 3})
    own, names = {*base.model.state_dict()}, {*model.state_dict()}
    added = {name for name in names if is_added_to_clip(name)}
    assert added == {*info["missing_keys"]} and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert names - added - {"vision_model.temporal_embedding"} == own
    for tower in ("vision_model", "text_model"):
        assert sum(name.startswith(tower) and name.endswith("up_proj.weight") for name in added) == 2
    assert {name for name, weight in model.named_parameters() if weight.requires_grad} == added


@every_family
def test_order_of_frames_matters(base):
    model = base.extended().eval()
    pixels = inputs_of(base, model)["pixel_values"]
    with torch.no_grad():
        forward, reversed_ = model.encode_videos(pixels), model.encode_videos(pixels.flip(1))
        plain = ezclip.load_model(base.folder).float()
        assert_equal(plain.encode_videos(pixels), plain.encode_videos(pixels.flip(1)))
    assert (forward - reversed_).abs().max() > 1e-5 * forward.abs().max()
    with pytest.raises(ValueError, match="has 2 frames a video.*for 3"):
        model.encode_videos(pixels[:, :2])


@every_family
@pytest.mark.parametrize("checkpointed", [False, True])
def test_gradients(base, checkpointed):
    """All added weights get gradients, no other; gradient checkpointing gives the same ones."""
    model = train(base.extended(vision_config={"use_temporal_adapter": True}))
    inputs = inputs_of(base, model)
    torch.manual_seed(0)  # of dropout
    model.train()(**inputs, return_loss=True).loss.backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    assert {*gradients} == {name for name, _ in model.named_parameters() if is_added_to_clip(name)}
    assert all(gradient.abs().sum() > 0 for gradient in gradients.values())
    if checkpointed:
        model.zero_grad()
        enable_checkpointing(model)
        torch.manual_seed(0)
        model(**inputs, return_loss=True).loss.backward()
        for name, weight in model.named_parameters():
            if name in gradients:
                torch.testing.assert_close(weight.grad, gradients[name], atol=1e-7, rtol=1e-4)


@every_family
def test_attention_implementations_agree(base):
    model = train(base.extended()).eval()
    inputs = inputs_of(base, model)
    with torch.no_grad():
        sdpa = model(**inputs)
        model.set_attn_implementation("eager")
        eager = model(**inputs)
    for name in ("video_embeds", "text_embeds"):
        torch.testing.assert_close(eager[name], sdpa[name], atol=2e-6, rtol=1e-5)


@every_family
def test_recorded_outputs(base):
    model = train(base.extended()).eval()
    model.set_attn_implementation("eager")
    pixels = inputs_of(base, model)["pixel_values"]
    tokens = {name: value for name, value in inputs_of(base, model).items() if name != "pixel_values"}
    asked = {"output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        video = model.get_video_features(pixels, output_temporal_attentions=True, **asked)
        text = model.get_text_features(**tokens, **asked)
        whole = model(pixel_values=pixels, **tokens, **asked)
    num_patches = (SIZE // PATCH) ** 2
    length = num_patches if base.name.startswith("siglip") else 1 + num_patches
    assert [tuple(states.shape) for states in video.hidden_states] == [(6, length, 32)] * 3
    assert [tuple(weights.shape) for weights in video.attentions] == [(6, 4, length + 1, length + 1)] * 2
    assert [tuple(weights.shape) for weights in video.temporal_attentions] == [(2, 4, 3, 3)] * 2
    assert (len(text.hidden_states), len(text.attentions)) == (3, 2)
    assert torch.equal(whole.vision_model_output.attentions[0], video.attentions[0])
    for weights in (*video.attentions, *video.temporal_attentions, *text.attentions):
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:-1]))


@every_family
def test_train_save_load(base, tmp_path):
    """Three steps; the whole model and the trained weights alone load as they were saved."""
    model = base.extended().train()
    model.config.base_model_name_or_path = str(base.folder)
    inputs = inputs_of(base, model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        loss = model(**inputs, return_loss=True).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.isfinite()
    model.eval().save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "trained", trained_only=True)
    with torch.no_grad():
        expected = model(**inputs)
        for name in ("whole", "trained"):
            again = EZClipModel.from_pretrained(tmp_path / name).eval()(**inputs)
            assert torch.equal(again.logits_per_video, expected.logits_per_video)
    config = json.loads((tmp_path / "whole" / "config.json").read_text())
    family = base.model.config.model_type
    assert config["model_type"] == "ezclip"
    types = [config[f"{tower}_config"]["model_type"] for tower in ("text", "vision")]
    own = "ezclip" if family == "clip" else family
    assert types == [f"{own}_text_model", f"{own}_vision_model"]
    processor = ezclip.load_processor(base.folder, num_frames=NUM_FRAMES)
    processor.save_pretrained(tmp_path / "whole")
    saved = EZClipProcessor.from_pretrained(tmp_path / "whole")
    again = saved(videos=base.clips, text=TEXTS[:2], return_tensors="pt")
    assert all(torch.equal(again[name], value) for name, value in inputs.items())


@every_family
def test_resize_vocabulary(base):
    model = base.extended().eval()
    tokens = {name: value for name, value in inputs_of(base, model).items() if name != "pixel_values"}
    with torch.no_grad():
        expected = model.get_text_features(**tokens).pooler_output
        vocab_size = len(model.get_input_embeddings().weight)
        model.resize_token_embeddings(vocab_size + 5)
        assert len(model.get_input_embeddings().weight) == model.config.text_config.vocab_size == vocab_size + 5
        assert_equal(model.get_text_features(**tokens).pooler_output, expected)


# The other parts of the package


@every_family
def test_attention_maps(base):
    """Maps sum to at most one a frame, and change with the label; a pooling head reads patches alone."""
    model = train(base.extended()).eval()
    inputs = inputs_of(base, model)
    for method in ATTENTION_METHODS:
        maps = attention_maps(model, inputs["pixel_values"], method)
        assert maps.shape == (2, NUM_FRAMES, SIZE // PATCH, SIZE // PATCH) and maps.min() >= 0
        sums = maps.sum(axis=(1, 2, 3))
        assert (sums <= NUM_FRAMES + 1e-4).all() and sums.min() > 0.1
        if base.name.startswith("siglip"):
            assert sums == pytest.approx([NUM_FRAMES] * 2, rel=1e-4)
    text_embeds = torch.randn(2, model.config.projection_dim, generator=torch.Generator().manual_seed(0))
    maps = relevance_maps(model, inputs["pixel_values"], text_embeds)
    assert maps.shape == (2, 2, NUM_FRAMES, SIZE // PATCH, SIZE // PATCH) and maps.min() >= 0
    assert abs(maps[:, 0] - maps[:, 1]).max() > 1e-2 * maps.max()
    assert temporal_attention(model, inputs["pixel_values"]).sum(-1) == pytest.approx(1, rel=1e-4)
    with torch.no_grad():
        plain = ezclip.load_model(base.folder).float()
        pixels = inputs["pixel_values"]
        assert_equal(plain_clip(base.extended()).encode_videos(pixels), plain.encode_videos(pixels))


@every_family
def test_relevance_finds_the_patch(base):
    """The patch without which the score falls most is among the relevant ones (all others hold the same value)."""
    model = ezclip.load_model(base.folder).float()
    pixels = torch.zeros(1, 1, 3, SIZE, SIZE)
    pixels[..., 8:16, 16:24] = 3.0
    with torch.no_grad():
        marked, empty = model.encode_videos(pixels), model.encode_videos(torch.zeros_like(pixels))
    (maps,) = relevance_maps(model, pixels, marked / marked.norm() - empty / empty.norm())[0]
    others = np.delete(maps[0].ravel(), 1 * 4 + 2)
    assert maps[0, 1, 2] > np.median(others)


@every_family
def test_count_macs(base):
    """As many multiply-accumulates as PyTorch counts in transformers' own model, per frame."""
    own = type(base.model.vision_model)

    def run(tower):
        size = {"spatial_shapes": torch.tensor([[4, 4]], device="cpu"), "pixel_attention_mask": None}
        is_naflex = base.name == "siglip2_naflex"
        shape = (1, 16, PATCH * PATCH * 3) if is_naflex else (1, 3, SIZE, SIZE)
        tower(torch.empty(shape), **(size if is_naflex else {}))

    config = copy.deepcopy(base.model.config.vision_config)
    config._attn_implementation = "eager"
    expected = count_macs_of(lambda: own(config).eval(), run)
    model = ezclip.load_model(base.folder)
    if model.config.has_visual_projection:
        expected += model.visual_projection.weight.numel()
    assert count_macs(model, num_frames=1) == expected
    assert count_macs(model, num_frames=3) == 3 * expected
    assert count_macs(base.extended(), num_frames=3) > 3 * expected


@every_family
def test_micro_batches(base):
    """Training in micro-batches, where videos share texts, gives the gradients of one batch."""
    gradients = []
    accelerator = Accelerator(cpu=True)
    for size in (None, 2):
        model = train(base.extended())
        batch = {name: value[[0, 1, 0, 1]] for name, value in inputs_of(base, model).items()}
        backward(model.eval(), {**batch, "labels": torch.tensor([0, 1, 0, 1])}, accelerator, size)
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-3)


@every_family
def test_class_bank_knows_its_model(base, tmp_path):
    model, processor = ezclip.load_model(base.folder).float(), ezclip.load_processor(base.folder)
    bank = ezclip.ClassBank.build(model, processor, ["red circle", "green square"], "a {}")
    bank.save_pretrained(tmp_path)
    bank = ezclip.ClassBank.from_pretrained(tmp_path)
    assert bank.matches(model)
    with torch.no_grad():
        tokens = processor(text=["a red circle", "a green square"], return_tensors="pt")
        expected = torch.nn.functional.normalize(model.encode_texts(dict(tokens)), dim=-1)
        assert_equal(bank.embeds[0], expected)
        for parameter in model.text_model.parameters():
            parameter.mul_(-2)
    assert not bank.matches(model)


@pytest.mark.parametrize(("base", "name"), [("siglip", "SigLIP"), ("altclip", "AltCLIP")], indirect=["base"])
def test_model_card_names_the_towers(base, name, tmp_path):
    model, processor = base.extended(), ezclip.load_processor(base.folder, num_frames=NUM_FRAMES)
    card = make_card(tmp_path, model, processor, CardFacts("me/model"))
    assert f"{name} stays frozen" in card.text and "ezclip" in card.text
    assert base.name in card.data.tags and "clip" not in card.data.tags
    assert TOWER_CITATIONS[base.name] in card.text and CITATIONS["ezclip"] in card.text


@pytest.mark.parametrize("base", ["siglip", "altclip"], indirect=True)
def test_train_and_predict(base, clip_folder, tmp_path):
    """Three steps of the script; what it saved predicts, whole or from the trained weights alone."""
    arguments = ("--model_name_or_path", base.folder, "--train_dir", clip_folder, "--do_train", "--save_trained_only")
    arguments += ("--max_train_steps", 3, "--per_device_train_batch_size", 2, "--num_frames", NUM_FRAMES)
    trained = run(*arguments, "--templates", "a {}", "--output_dir", tmp_path / "trained")
    arguments = ("--model_name_or_path", trained, "--validation_dir", clip_folder, "--do_eval", "--templates", "a {}")
    results = read_json(run_again(*arguments, "--output_dir", tmp_path / "eval") / "eval_results.json")
    assert (results["eval_samples"], results["eval_bad_videos"]) == (5, 1)
    video = next((clip_folder / "GreenSquare").glob("d.mp4"))
    classifier = pipeline("zero-shot-video-classification", model=str(trained))
    (first, _) = classifier(str(video), candidate_labels=["red circle", "GreenSquare"], hypothesis_template="a {}")
    line = next(
        line for line in read_lines(tmp_path / "eval" / "predictions.jsonl") if line["video"].endswith("d.mp4")
    )
    scores = {entry["label"].replace("_", " "): entry["score"] for entry in line["predictions"]}
    assert first["score"] == pytest.approx(scores[first["label"]], abs=1e-4)


@pytest.mark.slow
@every_family
@pytest.mark.parametrize("file_format", ["onnx", "torch_export"])
def test_export(base, file_format, tmp_path):
    if file_format == "onnx":
        pytest.importorskip("onnxruntime")
    assert (
        len(export_model(str(base.folder), tmp_path, file_format)) == 2
    )  # compared with the model as they are written


@pytest.mark.slow
@every_family
def test_load_elsewhere(base, tmp_path, monkeypatch):
    """Push to a Hub on this machine; load in a process without this package."""
    video = tmp_path / "video.mp4"
    write_video(video, base.clips[0])
    with LoopbackHub().serving() as hub:
        connect(hub, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "own cache"))
        hub.add("org/base", base.folder)
        model, processor = train(base.extended()).eval(), ezclip.load_processor(base.folder, num_frames=NUM_FRAMES)
        model.save_pretrained(tmp_path / "whole")
        model.save_pretrained(tmp_path / "trained", trained_only=True, base_model_name_or_path=base.folder)
        for name, options in (("whole", ()), ("trained", ("--base_model_name_or_path", "org/base"))):
            processor.save_pretrained(tmp_path / name)
            push.main(["--model", str(tmp_path / name), "--repo_id", f"me/{name}", *options])
        monkeypatch.undo()
        code = ELSEWHERE.partition("bank = ")[0] + "json.dump(answers, open(sys.argv[1], 'w'))"
        answers = run_elsewhere(code, hub, tmp_path)
    inputs = processor(videos=str(video), text=["a red circle", "a green square"], return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).logits_per_video
    for name in ("me/whole", "me/trained"):
        torch.testing.assert_close(torch.tensor(answers[name]), expected, atol=1e-4, rtol=1e-5)
        assert answers[f"{name} pipeline"] == ["red circle", "green square"][expected.argmax()]


def test_frames_of_another_size(bases):
    model = bases("siglip").extended().eval()
    with pytest.raises(ValueError, match="32 x 32.*48 x 48.*interpolate_pos_encoding"):
        model.get_video_features(torch.zeros(1, NUM_FRAMES, 3, 48, 48))
    features = model.get_video_features(torch.zeros(1, NUM_FRAMES, 3, 48, 48), interpolate_pos_encoding=True)
    assert features.pooler_output.isfinite().all()


def test_patches_need_their_shapes(bases):
    model = bases("siglip2_naflex").extended().eval()
    with pytest.raises(ValueError, match="spatial_shapes"):
        model.get_video_features(torch.zeros(1, NUM_FRAMES, 16, 192))


# Configurations


def tiny(family, **kwargs):
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    vision = {**tower, "model_type": f"{family}_vision_model", "patch_size": 8, **kwargs.pop("vision_config", {})}
    text = {**tower, "model_type": f"{family}_text_model", "vocab_size": 99, **kwargs.pop("text_config", {})}
    return EZClipConfig(text_config=text, vision_config=vision, **kwargs)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vision_config": {"model_type": "blip_vision_model"}}, "vision_config.model_type.*'blip_vision_model'"),
        ({"text_config": {"model_type": "bert"}}, "text_config.model_type.*'bert'"),
        ({"text_config": {"model_type": "siglip_vision_model"}}, "text_config.model_type.*'siglip_vision_model'"),
        ({"vision_config": {"vision_use_head": False}}, "vision_use_head.*False"),
        ({"vision_config": {"use_temporal_shift": True}}, "use_temporal_shift.*CLS"),
        ({"vision_config": {"use_joint_attention": True, "temporal_prompt": "none"}}, "use_joint_attention.*CLS"),
        ({"vision_config": {"use_temporal_embedding": True}}, "use_temporal_embedding.*CLS"),
        ({"vision_config": {"image_size": [32, 32]}}, "image_size.*32, 32"),
        ({"vision_config": {"image_size": 2**20}}, "image_size.*at most"),
        ({"vision_config": {"num_attention_heads": 5}}, "num_attention_heads.*5.*divide"),
        ({"text_config": {"projection_size": 48}}, "projection_size.*32.*48"),
    ],
)
def test_refused_configurations(fields, message):
    with pytest.raises(ValueError, match=message):
        tiny("siglip", **fields)


def test_unknown_tower_alone_is_named():
    with pytest.raises(ValueError, match="vision_config.model_type.*'blip_vision_model'"):
        EZClipConfig(vision_config={"model_type": "blip_vision_model"})


@pytest.mark.parametrize(
    ("family", "tower", "field"),
    [
        ("siglip", "text_config", "projection_size"),
        ("siglip2", "vision_config", "num_patches"),
        ("altclip", "text_config", "project_dim"),
        ("altclip", "text_config", "type_vocab_size"),
        ("chinese_clip", "text_config", "type_vocab_size"),
    ],
)
@pytest.mark.parametrize("value", [2**40, 0, -1])
def test_refused_sizes(family, tower, field, value):
    with pytest.raises(ValueError, match=f"`{field}` must be at (most|least)"):
        tiny(family, **{tower: {field: value}})


def test_mixed_towers():
    """Towers of two families: SigLIP's vision tower projects nothing, so a CLIP's text tower is projected to it."""
    torch.manual_seed(0)
    config = tiny(
        "siglip", text_config={"model_type": "clip_text_model", "eos_token_id": 98}, vision_config={"image_size": 32}
    )
    model = EZClipModel(config).eval()
    inputs = make_inputs(2)
    inputs["input_ids"][:, -1] = 98
    with torch.no_grad():
        assert model(**inputs).logits_per_video.shape == (2, 2)
    assert model.logit_bias is not None and config.projection_dim == 32


def test_all_sizes_of_a_tower_count():
    tiny("altclip", text_config={"hidden_size": 2**16})
    with pytest.raises(ValueError, match="parameters"):
        tiny("altclip", text_config={"hidden_size": 2**16, "project_dim": 2**16})
