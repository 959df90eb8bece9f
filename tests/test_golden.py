"""Converted checkpoints against the outputs of the authors' code.

Two small cases are in tests/fixtures/golden_tiny. The others are in ../shared/golden, and are skipped without it.
"""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor

from ezclip import ClassBank
from ezclip.cli import convert as convert_checkpoint
from ezclip.convert import conversion
from tests.helpers import ROOT, shared_path
from video_ezclip import read_frames, uniform_frame_indices


EZCLIP = ("ezclip_deep_8f", "ezclip_shallow_4f", "ezclip_adapters_only_8f", "ezclip_tadapter_8f")
ACTIONCLIP = tuple(f"actionclip_{kind}_8f" for kind in ("meanp", "transf", "lstm", "conv1d", "transf_cls", "tsm"))
BPE_FILE = ("tokenizer", "bpe_simple_vocab_16e6.txt.gz")


TINY = ROOT / "tests" / "fixtures" / "golden_tiny"


class Golden:
    """The converted model of a case, loaded as a user would, and the tensors of the authors' code."""

    def __init__(self, source, folder, checkpoint="checkpoint.pt"):
        self.source = source
        self.meta = json.loads((source / "meta.json").read_text(encoding="utf-8"))
        self.tensors = load_file(source / "io.safetensors")
        argv = ["--checkpoint", str(source / checkpoint), "--output_dir", str(folder), "--model_only"]
        convert_checkpoint.main(argv)
        self.folder = folder
        self.model = AutoModel.from_pretrained(folder, trust_remote_code=True)
        # The published temporal adapter mixes the videos of a batch; its outputs for single videos are right.
        self.suffix = "_single" if self.model.config.vision_config.use_temporal_adapter else ""

    def __getitem__(self, name):
        return self.tensors[name]

    def embed(self):
        with torch.no_grad():
            return self.model(pixel_values=self["pixel_values"], input_ids=self["token_ids"])

    def gradients(self):
        """Return the stored published gradients, under the model's names."""

        def stored(prefix):
            named = {name[len(prefix) :]: value for name, value in self.tensors.items() if name.startswith(prefix)}
            # The shift's blocks are wrapped, which the conversion undoes while it reads a file.
            return {name.replace(".net.", "."): value for name, value in named.items()}

        if not stored("grad.model."):
            return conversion.convert_state_dict(stored("grad."))
        head = conversion.convert_head(stored("grad.fusion."))
        return {**conversion.convert_state_dict(stored("grad.model.")), **head}


@pytest.fixture(scope="module", params=EZCLIP + ACTIONCLIP)
def golden(request, tmp_path_factory):
    return Golden(shared_path("golden", request.param), tmp_path_factory.mktemp(request.param))


def assert_close(actual, expected, atol, rtol=0.0):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=rtol)


@pytest.mark.parametrize("case", ["ezclip_tiny", "actionclip_tiny"])
@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
def test_tiny(case, attn_implementation, tmp_path):
    golden = Golden(TINY / case, tmp_path)
    golden.model.set_attn_implementation(attn_implementation)
    outputs = golden.embed()
    assert_close(outputs.frame_embeds, golden["frame_embeds"], atol=2e-5)
    assert_close(outputs.vision_model_output.pooler_output, golden["video_embeds"], atol=2e-5)
    assert_close(outputs.text_model_output.pooler_output, golden["text_embeds"], atol=2e-5)
    assert_close(outputs.logits_per_video, golden["logits_per_video"], atol=2e-3)


def test_embeddings_and_logits(golden):
    outputs = golden.embed()
    assert_close(outputs.frame_embeds, golden[f"frame_embeds{golden.suffix}"], atol=2e-5)
    assert_close(outputs.vision_model_output.pooler_output, golden[f"video_embeds{golden.suffix}"], atol=2e-5)
    assert_close(outputs.text_model_output.pooler_output, golden["text_embeds"], atol=2e-5)
    if not golden.suffix:
        assert_close(outputs.logits_per_video, golden["logits_per_video"], atol=2e-3)
        assert_close(outputs.logits_per_text, golden["logits_per_text"], atol=2e-3)
    cosines = outputs.video_embeds @ outputs.text_embeds.t()
    assert_close(100.0 * cosines, golden[f"eval_logits{golden.suffix}"], atol=2e-3)


def test_probabilities(golden):
    outputs = golden.embed()
    labels = golden.meta["class_names"]
    bank = ClassBank(labels, outputs.text_embeds.view(-1, len(labels), outputs.text_embeds.shape[-1]))
    assert_close(bank.probabilities(outputs.video_embeds), golden[f"probs{golden.suffix}"], atol=1e-5)


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
def test_losses_and_gradients(golden, attn_implementation):
    if golden.suffix:
        pytest.skip("the published temporal adapter mixes the videos of the batch")
    model = golden.model
    model.set_attn_implementation(attn_implementation)
    model.zero_grad()
    outputs = model(pixel_values=golden["pixel_values"], input_ids=golden["train_token_ids"], labels=golden["labels"])
    assert_close(outputs.logits_per_video, golden["train_logits_per_image"], atol=2e-3)
    assert_close(outputs.loss_video, golden["loss_image"], atol=1e-5)
    assert_close(outputs.loss_text, golden["loss_text"], atol=1e-5)
    if "loss_motion" in golden.tensors:
        assert_close(outputs.loss_motion, golden["loss_motion"], atol=1e-5)
    assert_close(outputs.loss, golden["loss_total"], atol=1e-5)
    outputs.loss.backward()

    published = golden.gradients()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert published and set(published) <= set(gradients)
    for name, expected in published.items():
        if name.endswith("k_proj.bias"):  # shifts all logits of a softmax alike: zero up to rounding
            assert max(gradients[name].norm(), expected.norm()) < 1e-6
            continue
        error = (gradients[name] - expected).norm() / expected.norm()
        assert error < 1e-4, f"{name}: relative error {error:.1e}"
    if norms := golden.meta.get("grad_norms_all_trainable"):
        squares = sum(gradient.double().square().sum() for gradient in gradients.values())
        assert squares.sqrt().item() == pytest.approx(sum(norm**2 for norm in norms.values()) ** 0.5, rel=1e-4)


def test_trainable_parameters(golden):
    model, meta = golden.model, golden.meta
    if "trainable_numel" in meta:
        assert model.num_parameters(only_trainable=True) == meta["trainable_numel"]
        assert model.num_parameters() == meta["total_numel"]
    else:
        file = torch.load(golden.source / "checkpoint.pt", weights_only=True)
        unused = {f"module.{name.removeprefix('fusion.')}" for name in meta["parameters_with_no_gradient"]}
        used = {**file["model_state_dict"], **file["fusion_model_state_dict"]}
        total = sum(weight.numel() for name, weight in used.items() if name not in unused)
        assert model.num_parameters(only_trainable=True) == model.num_parameters() == total


def test_reach_of_one_frame(golden):
    check = golden.meta["checks"]["reach_of_one_frame"]
    video, frame = check["perturbed"]
    pixel_values = golden["pixel_values"].clone()
    pixel_values[video, frame] += 1.0
    with torch.no_grad():
        before = golden.model.get_video_features(golden["pixel_values"])
        after = golden.model.get_video_features(pixel_values)
    changed = (before.frame_embeds - after.frame_embeds).abs().amax(dim=-1) > 1e-6
    # The published temporal adapter also mixes videos, which the model does not.
    frames = range(changed.shape[1]) if golden.suffix else check["changed_frames_per_video"][video]
    expected = torch.zeros_like(changed)
    expected[video, list(frames)] = True
    assert torch.equal(changed, expected)
    changed_videos = (before.pooler_output - after.pooler_output).abs().amax(dim=-1) > 1e-6
    assert changed_videos.tolist() == [index == video for index in range(len(changed))]


@pytest.fixture
def conv1d(tmp_path):
    return Golden(shared_path("golden", "actionclip_conv1d_8f"), tmp_path)


def test_conv1d_over_time(conv1d):
    model = AutoModel.from_pretrained(conv1d.folder, trust_remote_code=True, conv1d_scrambles_frames=False)
    with torch.no_grad():
        video_embeds = model.get_video_features(conv1d["pixel_values"]).pooler_output
    assert_close(video_embeds, conv1d["video_embeds_fixed"], atol=2e-5)
    assert (conv1d["video_embeds"] - conv1d["video_embeds_fixed"]).abs().max() > 0.1


def test_plain_clip(tmp_path):
    golden = Golden(shared_path("golden", "tear_vitb"), tmp_path)
    frames = golden["pixel_values"].flatten(0, 1)
    with torch.no_grad():
        features = golden.model.get_video_features(golden["pixel_values"])
        text_embeds = golden.model.get_text_features(golden["plain.token_ids"]).pooler_output
        # Each of the first eight frames as a video of its own
        logits = golden.model(pixel_values=frames[:8, None], input_ids=golden["plain.token_ids"]).logits_per_video
    assert_close(features.frame_embeds, golden["frame_embeds"], atol=2e-5)
    assert_close(features.pooler_output, golden["video_embeds"], atol=2e-5)
    assert_close(text_embeds, golden["plain.text_embeds"], atol=2e-5)
    assert_close(logits, golden["logits_per_image"], atol=2e-3)


def test_mixed_float16_checkpoint(tmp_path):
    golden = Golden(shared_path("golden", "ezclip_shallow_4f"), tmp_path, "checkpoint_fp16mix.pt")
    assert golden.model.dtype == torch.float32
    outputs = golden.embed()
    # float16 has 11 bits of precision; embeddings have values up to 3
    assert_close(outputs.frame_embeds, golden["frame_embeds"], atol=1e-2)
    assert_close(outputs.text_model_output.pooler_output, golden["text_embeds"], atol=1e-2)


@pytest.fixture(scope="module")
def e2e(tmp_path_factory):
    folder = tmp_path_factory.mktemp("e2e")
    source = shared_path("golden", "e2e_clips_8f")
    argv = ["--checkpoint", str(source / "checkpoint.pt"), "--output_dir", str(folder)]
    convert_checkpoint.main([*argv, "--tokenizer", str(shared_path(*BPE_FILE))])
    meta = json.loads((source / "meta.json").read_text(encoding="utf-8"))
    return folder, meta, load_file(source / "io.safetensors")


def test_from_clip_files_to_probabilities(e2e):
    folder, meta, expected = e2e
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    clips = [str(shared_path("clips", clip)) for clip in meta["clips"]]

    pixel_values = processor(videos=clips, return_tensors="pt").pixel_values
    assert_close(pixel_values[:, :, :, 104:120, 104:120], expected["pixel_centre"], atol=1e-5)
    assert_close(pixel_values.mean(dim=(2, 3, 4)), expected["pixel_mean"], atol=1e-5)
    assert_close(pixel_values.std(dim=(2, 3, 4)), expected["pixel_std"], atol=1e-4)

    bank = ClassBank.build(model, processor, meta["class_names"])
    with torch.no_grad():
        video_embeds = model.get_video_features(pixel_values).pooler_output
    probabilities = bank.probabilities(video_embeds)
    assert_close(probabilities, expected["probs"], atol=0.01)
    assert torch.equal(probabilities.argmax(dim=-1), expected["probs"].argmax(dim=-1))


def test_frame_indices_of_the_clips(e2e):
    _, meta, expected = e2e
    for clip, indices, total in zip(meta["clips"], expected["frame_indices"], expected["num_frames"]):
        _, taken = read_frames(shared_path("clips", clip), lambda total_frames: uniform_frame_indices(total_frames, 8))
        assert taken.frames_indices == indices.tolist()
        everything, _ = read_frames(shared_path("clips", clip), range)
        assert len(everything) == total
