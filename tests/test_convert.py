"""scripts/convert_checkpoint.py as a command, and what it refuses. Its numbers are in test_golden.py."""

import subprocess
import sys

import pytest
import torch
from transformers import AutoModel, AutoProcessor

from ezclip import EZClipModel, EZClipTextConfig
from scripts import convert_checkpoint

from .conftest import ROOT, SHARED, tiny_config


def published_name(name: str) -> str:
    """A parameter of the model as the authors call it; the inverse of the script's table, written independently."""
    for ours, theirs in (
        ("vision_model.embeddings.class_embedding", "visual.class_embedding"),
        ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
        ("vision_model.embeddings.patch_embedding", "visual.conv1"),
        ("vision_model.temporal_embedding", "visual.temporal_embedding"),
        ("vision_model.pre_layrnorm", "visual.ln_pre"),
        ("vision_model.post_layernorm", "visual.ln_post"),
        ("vision_model.encoder.layers", "visual.transformer.resblocks"),
        ("visual_projection.weight", "visual.proj"),
        ("text_model.embeddings.token_embedding", "token_embedding"),
        ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
        ("text_model.final_layer_norm", "ln_final"),
        ("text_model.encoder.layers", "transformer.resblocks"),
        ("text_projection.weight", "text_projection"),
        ("self_attn", "attn"),
        ("layer_norm1", "ln_1"),
        ("layer_norm2", "ln_2"),
        ("mlp.fc1", "mlp.c_fc"),
        ("mlp.fc2", "mlp.c_proj"),
        ("temporal_adapter", "T_Adapter"),
        (".adapter", ".Adapter"),
        ("down_proj", "D_fc1"),
        ("up_proj", "D_fc2"),
    ):
        name = name.replace(ours, theirs)
    return name


def published_checkpoint(model: EZClipModel) -> dict:
    """What the authors' code would have saved of `model`."""
    weights = {published_name(name): value for name, value in model.state_dict().items()}
    prompts = [name for name in weights if name.endswith("temporal_prompt")]
    if prompts:
        weights["visual.transformer.T_prompt_embeddings"] = torch.stack([weights.pop(name) for name in prompts])
    for name in [name for name in weights if "q_proj" in name]:
        parts = [weights.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv"]
        weights[name.replace("q_proj.", "in_proj_")] = torch.cat(parts)
    for name in ("visual.proj", "text_projection"):
        weights[name] = weights[name].t()
    if "visual.temporal_embedding" in weights:
        weights["visual.temporal_embedding"] = weights["visual.temporal_embedding"][None]
    return {"epoch": 3, "model_state_dict": weights, "optimizer_state_dict": {"state": {}, "param_groups": []}}


@pytest.fixture
def checkpoint(tmp_path):
    """Saves a checkpoint as the authors' code does; returns its path and the model in it."""

    def save(vision_config=None, change=lambda content: content):
        heads = {"hidden_size": 64, "num_attention_heads": 1}  # the script takes heads for 64 wide
        config = tiny_config(vision_config={**heads, **(vision_config or {})})
        config.text_config = EZClipTextConfig(**{**config.text_config.to_dict(), **heads})
        torch.manual_seed(0)
        model = EZClipModel(config).eval()
        path = tmp_path / "model.pt"
        torch.save(change(published_checkpoint(model)), path)
        return path, model

    return save


def convert(path, tmp_path, *argv):
    convert_checkpoint.main(["--checkpoint", str(path), "--output_dir", str(tmp_path / "out"), *argv])
    return AutoModel.from_pretrained(tmp_path / "out", trust_remote_code=True)


@pytest.mark.parametrize(
    "vision_config",
    [
        {},
        {"temporal_prompt": "shallow", "num_frames": 4},
        {"temporal_prompt": "none", "use_temporal_adapter": True},
        {"use_adapter": False},
        {"adapter_ratio": 0.5},
    ],
)
def test_architecture_is_read_from_the_weights(checkpoint, tmp_path, vision_config):
    path, model = checkpoint(vision_config)
    converted = convert(path, tmp_path, "--model_only")
    assert all(torch.equal(converted.state_dict()[name], value) for name, value in model.state_dict().items())
    for tower in ("vision_config", "text_config"):
        actual, expected = (getattr(m.config, tower).to_dict() for m in (converted, model))
        names = set(expected) - {"model_type", "dtype", "bos_token_id", "projection_dim"}
        assert {n: actual[n] for n in names} == {n: expected[n] for n in names}


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["model_state_dict"],
        lambda content: {"model_state_dict": {f"module.{k}": v for k, v in content["model_state_dict"].items()}},
    ],
)
def test_bare_and_parallel_state_dicts(checkpoint, tmp_path, change):
    path, model = checkpoint(change=change)
    converted = convert(path, tmp_path, "--model_only")
    assert torch.equal(converted.visual_projection.weight, model.visual_projection.weight)


def rename(old, new):
    def change(content):
        content["model_state_dict"][new] = content["model_state_dict"].pop(old)
        return content

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename("visual.proj", "visual.projection"), "no tensor 'visual.proj'"),
        (rename("ln_final.weight", "ln_last.weight"), "text_model.final_layer_norm.weight"),
        (lambda content: {**content, "fusion_model_state_dict": {"module.x": torch.zeros(1)}}, "ActionCLIP"),
        (lambda content: {"epoch": 3}, "holds no state dict"),
        (lambda content: {"model_state_dict": {"weight": torch.zeros(1)}}, "is not an EZ-CLIP checkpoint"),
        (lambda content: {**content, "object": convert_checkpoint.Path("x")}, "could run code"),
    ],
)
def test_other_checkpoints_are_refused(checkpoint, tmp_path, change, message):
    path, _ = checkpoint(change=change)
    with pytest.raises(SystemExit) as caught:
        convert(path, tmp_path, "--model_only")
    assert message in str(caught.value) and str(path) in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_other_files_are_refused(tmp_path):
    (tmp_path / "page.pt").write_text("<html>404</html>")
    for name, message in {"page.pt": "cannot be read as a PyTorch checkpoint", "gone.pt": "is not a file"}.items():
        with pytest.raises(SystemExit, match=message):
            convert(tmp_path / name, tmp_path, "--model_only")


def test_output_must_be_a_folder(checkpoint, tmp_path):
    path, _ = checkpoint()
    (tmp_path / "out").write_text("")
    with pytest.raises(SystemExit, match="--output_dir .*out is a file"):
        convert(path, tmp_path, "--model_only")


def test_wrong_number_of_frames_is_refused(checkpoint, tmp_path):
    path, _ = checkpoint()
    with pytest.raises(SystemExit, match="--num_frames 16 does not fit .* each of 8 frames"):
        convert(path, tmp_path, "--model_only", "--num_frames", "16")


def test_tokenizer_of_another_size_is_refused(checkpoint, tmp_path, tiny_folder):
    path, _ = checkpoint()
    with pytest.raises(SystemExit, match=r"has 15 tokens, .* 30\. Give the tokenizer it was trained with"):
        convert(path, tmp_path, "--tokenizer", str(tiny_folder))
    with pytest.raises(SystemExit, match="No tokenizer at 'no/tokenizer'"):
        convert(path, tmp_path, "--tokenizer", "no/tokenizer")


def test_as_a_command(tmp_path):
    checkpoint = SHARED / "golden" / "e2e_clips_8f" / "checkpoint.pt"
    tokenizer = SHARED / "tokenizer" / "bpe_simple_vocab_16e6.txt.gz"
    if not (checkpoint.exists() and tokenizer.exists()):
        pytest.skip("needs the reference data ../shared, which is not here")
    command = [sys.executable, str(ROOT / "scripts" / "convert_checkpoint.py"), "--checkpoint", str(checkpoint)]
    result = subprocess.run(
        [*command, "--tokenizer", str(tokenizer), "--output_dir", "out"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "8 frames of 224 pixels, temporal prompts deep" in result.stdout
    processor = AutoProcessor.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert processor.num_frames == 8
    ids = processor(text="Human action of brush hair", return_tensors="pt").input_ids
    assert ids.tolist() == [[49406, 2751, 1816, 539, 8594, 2225, 49407]]
