"""Checkpoints of trained weights: content, base and errors."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from ezclip import EZClipConfig, EZClipModel, EZClipProcessor, EZClipTextModel, EZClipVisionModel
from ezclip.cli.demo import word_tokenizer
from ezclip.errors import ModelError
from ezclip.systems.loading import check_fit, load_model, load_processor
from processing_ezclip import default_image_processor
from tests.helpers import VOCAB_SIZE, WORDS, edit_config, make_clip, make_inputs, make_model, train
from tests.hub_server import TOKEN, LoopbackHub


def is_trained(name):
    return "temporal_prompt" in name or "adapter" in name


def logits(model):
    dtype = model.dtype
    inputs = make_inputs()
    with torch.no_grad():
        return model(input_ids=inputs["input_ids"] % VOCAB_SIZE, pixel_values=inputs["pixel_values"].to(dtype))[0]


def assert_same_weights(actual, expected):
    actual, expected = actual.state_dict(), expected.state_dict()
    assert actual.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(actual[name], expected[name])] == []


def edit_weights(folder, change, keep_record=True):
    """Rewrite `model.safetensors` after `change` of the dict of its tensors."""
    path = folder / "model.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() if keep_record else {"format": "pt"}
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path, metadata=metadata)


@pytest.fixture(scope="module")
def trained(clip):
    """Return a trained model over the CLIP; no test changes it."""
    return train(load_model(clip, for_training=True)).eval()


@pytest.fixture
def saved(trained, tmp_path):
    """Return a folder with the trained weights of that model."""
    folder = tmp_path / "saved"
    trained.save_pretrained(folder, trained_only=True)
    return folder


def test_file_holds_only_trained_weights(trained, saved, clip):
    weights = load_file(saved / "model.safetensors")
    expected = {name: p for name, p in trained.named_parameters() if p.requires_grad}
    assert set(weights) == set(expected) == {name for name in trained.state_dict() if is_trained(name)}
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert json.loads((saved / "config.json").read_text())["base_model_name_or_path"] == str(clip.resolve())
    assert (saved / "modeling_ezclip.py").is_file() and (saved / "checkpoint_ezclip.py").is_file()


def test_size_for_vit_b16():
    with torch.device("meta"):
        model = EZClipModel(EZClipConfig(vision_config={"patch_size": 16}))
    saved = [weight for name, weight in model.state_dict().items() if is_trained(name)]
    assert sum(weight.nbytes for weight in saved) == 20_818_944


def test_load_over_base(trained, saved):
    model, info = EZClipModel.from_pretrained(saved, output_loading_info=True)
    assert_same_weights(model, trained)
    assert torch.equal(logits(model), logits(trained))
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {name for name in model.state_dict() if not is_trained(name)}
    assert not model.training
    assert model.config.name_or_path == str(saved)


def test_train_on_and_save_again(saved, clip, tmp_path):
    model = train(EZClipModel.from_pretrained(saved), seed=1)
    model.save_pretrained(saved, trained_only=True)
    assert_same_weights(EZClipModel.from_pretrained(saved), model)
    model.save_pretrained(tmp_path / "other", trained_only=True)
    assert json.loads((tmp_path / "other" / "config.json").read_text())["base_model_name_or_path"] == str(clip)


@pytest.mark.parametrize("dtype", ["auto", torch.float16, torch.bfloat16, torch.float64])
def test_load_dtype(trained, saved, tmp_path, dtype):
    trained.save_pretrained(tmp_path / "whole")
    for keyword in ("dtype", "torch_dtype"):
        model = EZClipModel.from_pretrained(saved, **{keyword: dtype})
        assert model.dtype == (torch.float32 if dtype == "auto" else dtype)
        assert_same_weights(model, EZClipModel.from_pretrained(tmp_path / "whole", dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("saved_as", [torch.float32, None])
def test_rounded_base(clip, tmp_path, dtype, saved_as):
    model = train(EZClipModel.from_pretrained(clip, dtype=dtype))
    model.to(saved_as or dtype).save_pretrained(tmp_path, trained_only=True, base_model_name_or_path=clip)
    for load_as in (torch.float32, torch.float16, torch.bfloat16):
        loaded = EZClipModel.from_pretrained(tmp_path, dtype=load_as)
        expected = {name: p.to(load_as) for name, p in model.named_parameters() if p.requires_grad}
        assert all(torch.equal(loaded.get_parameter(name), p) for name, p in expected.items())


def test_save_whole_merges(trained, saved, tmp_path):
    model = EZClipModel.from_pretrained(saved)
    model.save_pretrained(tmp_path / "merged")
    assert json.loads((tmp_path / "merged" / "config.json").read_text()).get("base_model_name_or_path") is None
    assert set(load_file(tmp_path / "merged" / "model.safetensors")) == set(trained.state_dict())
    merged = EZClipModel.from_pretrained(tmp_path / "merged")
    assert torch.equal(logits(merged), logits(trained))
    assert merged.config.base_model_name_or_path is None
    # The model in memory still knows its base.
    model.save_pretrained(tmp_path / "again", trained_only=True)
    assert_same_weights(EZClipModel.from_pretrained(tmp_path / "again"), trained)


def test_merge_into_same_folder(trained, saved):
    EZClipModel.from_pretrained(saved).save_pretrained(saved)
    assert_same_weights(EZClipModel.from_pretrained(saved), trained)


def test_base_is_trained_checkpoint(saved, tmp_path):
    below = EZClipModel.from_pretrained(saved)
    below.visual_projection.weight.requires_grad_(True)
    train(below, seed=2).save_pretrained(tmp_path / "below", trained_only=True, base_model_name_or_path=saved)
    model = train(load_model(tmp_path / "below"), seed=3)
    model.save_pretrained(tmp_path / "above", trained_only=True, base_model_name_or_path=tmp_path / "below")
    assert "visual_projection.weight" not in load_file(tmp_path / "above" / "model.safetensors")
    assert_same_weights(EZClipModel.from_pretrained(tmp_path / "above"), model)


def test_base_has_other_prompts(trained, saved, tmp_path):
    for base in (tmp_path / "whole", saved):
        if base is not saved:
            trained.save_pretrained(base)
        model = load_model(base, for_training=True, vision_config={"temporal_prompt": "none"})
        train(model, seed=3).save_pretrained(tmp_path / "no prompts", trained_only=True, base_model_name_or_path=base)
        assert not any("temporal_prompt" in name for name in load_file(tmp_path / "no prompts" / "model.safetensors"))
        assert_same_weights(EZClipModel.from_pretrained(tmp_path / "no prompts"), model)


def test_save_frozen_adapters(clip, tmp_path):
    model = EZClipModel.from_pretrained(clip)
    for parameter in model.text_model.parameters():
        parameter.requires_grad_(False)
    train(model).save_pretrained(tmp_path, trained_only=True, base_model_name_or_path=clip)
    assert_same_weights(EZClipModel.from_pretrained(tmp_path), model)


def test_save_other_weights(clip, tmp_path):
    model = EZClipModel.from_pretrained(clip)
    model.visual_projection.weight.requires_grad_(True)
    train(model).save_pretrained(tmp_path, trained_only=True, base_model_name_or_path=clip)
    assert "visual_projection.weight" in load_file(tmp_path / "model.safetensors")
    assert_same_weights(EZClipModel.from_pretrained(tmp_path), model)


def test_save_fully_trained(tmp_path):
    model = make_model(freeze_backbone=False)
    model.save_pretrained(tmp_path, trained_only=True)
    assert_same_weights(EZClipModel.from_pretrained(tmp_path), model)


def test_state_dict_and_variant(trained, tmp_path):
    state_dict = {name: weight.clone() for name, weight in trained.state_dict().items()}
    name = next(name for name in state_dict if is_trained(name))
    state_dict[name] += 1
    trained.save_pretrained(tmp_path, state_dict=state_dict, trained_only=True, variant="fp32", max_shard_size="9KB")
    assert [path.name for path in tmp_path.glob("*.safetensors*")] == ["model.fp32.safetensors"]
    model = EZClipModel.from_pretrained(tmp_path, variant="fp32")
    assert torch.equal(model.state_dict()[name], state_dict[name])
    del state_dict[name]
    with pytest.raises(ValueError, match=f"`state_dict` lacks trained weights of the model: {name}"):
        trained.save_pretrained(tmp_path, state_dict=state_dict, trained_only=True)


def test_only_main_process_writes(trained, tmp_path):
    trained.save_pretrained(tmp_path, is_main_process=False, trained_only=True)
    assert not list(tmp_path.iterdir())


# Errors of saving


def test_save_needs_base(trained, clip, tmp_path, monkeypatch):
    model = make_model()
    with pytest.raises(ValueError, match="Give `base_model_name_or_path`"):
        model.save_pretrained(tmp_path, trained_only=True)
    with pytest.raises(ValueError, match="base must be .* got './nowhere'"):
        model.save_pretrained(tmp_path, trained_only=True, base_model_name_or_path="./nowhere")
    with pytest.raises(ValueError, match="needs `trained_only=True`"):
        model.save_pretrained(tmp_path, base_model_name_or_path=clip)
    assert not list(tmp_path.iterdir())
    monkeypatch.chdir(clip.parent)
    trained.save_pretrained(tmp_path, trained_only=True, base_model_name_or_path=clip.name)
    assert json.loads((tmp_path / "config.json").read_text())["base_model_name_or_path"] == str(clip.resolve())


def test_save_keeps_base(tmp_path):
    make_clip(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="is the base of this model"):
        load_model(tmp_path, for_training=True).save_pretrained(tmp_path, trained_only=True)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_save_without_trained_weights(clip, tmp_path):
    untrained = {"temporal_prompt": "none", "use_adapter": False}
    model = load_model(clip, vision_config=untrained, text_config={"use_adapter": False})
    with pytest.raises(ValueError, match="no trained weights"):
        model.save_pretrained(tmp_path, trained_only=True)


# Errors of the base


def test_wrong_base(saved, clip, tmp_path):
    make_clip(tmp_path / "other", seed=1, vocab_size=VOCAB_SIZE)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        with pytest.raises(ValueError, match="other' is not the model that .*saved was trained from: it has another"):
            EZClipModel.from_pretrained(saved, base_model_name_or_path=tmp_path / "other", dtype=dtype)


@pytest.mark.parametrize("name", ["text_model.final_layer_norm.bias", "logit_scale"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_changed_base(saved, clip, tmp_path, name, dtype):
    shutil.copytree(clip, tmp_path / "other")
    edit_weights(tmp_path / "other", lambda weights: weights[name].add_(0.1))
    with pytest.raises(ValueError, match=f"it has another {name}. Give the right base as `base_model_name_or_path`"):
        EZClipModel.from_pretrained(saved, base_model_name_or_path=tmp_path / "other", dtype=dtype)


def test_base_lacks_weights(saved, clip, tmp_path):
    shutil.copytree(clip, tmp_path / "other")
    edit_weights(tmp_path / "other", lambda weights: weights.pop("visual_projection.weight"))
    with pytest.raises(ValueError, match="it has no visual_projection.weight"):
        EZClipModel.from_pretrained(saved, base_model_name_or_path=tmp_path / "other")


def test_base_of_another_size(saved, tmp_path):
    model = make_model({"hidden_size": 64})
    model.save_pretrained(tmp_path / "other")
    for options in ({}, {"ignore_mismatched_sizes": True}):
        with pytest.raises(ValueError, match="other' is not the model that .* was trained from: it has no "):
            EZClipModel.from_pretrained(saved, base_model_name_or_path=tmp_path / "other", **options)


def test_base_moved(trained, tmp_path, saved):
    make_clip(tmp_path / "before", vocab_size=VOCAB_SIZE)
    trained.save_pretrained(saved, trained_only=True, base_model_name_or_path=tmp_path / "before")
    (tmp_path / "before").rename(tmp_path / "after")
    with pytest.raises(OSError, match="before', the base of .*saved, cannot be loaded.*(?s:.)*Give the right base as"):
        EZClipModel.from_pretrained(saved)
    after = str(tmp_path / "after")
    for load in (EZClipModel.from_pretrained, AutoModel.from_pretrained):
        model = load(saved, base_model_name_or_path=after)
        assert_same_weights(model, trained)
        assert model.config.base_model_name_or_path == after
    config = EZClipConfig.from_pretrained(saved, base_model_name_or_path=after)
    assert_same_weights(EZClipModel.from_pretrained(saved, config=config), trained)
    edit_config(saved, base_model_name_or_path=after)
    assert_same_weights(EZClipModel.from_pretrained(saved), trained)
    edit_config(saved, base_model_name_or_path=None)
    with pytest.raises(ValueError, match="does not name its base. Give the right base"):
        EZClipModel.from_pretrained(saved)


def test_circular_base(saved, tmp_path):
    with pytest.raises(ValueError, match="Circular base reference"):
        EZClipModel.from_pretrained(saved, base_model_name_or_path=saved)
    for name, base in {"a": "b", "b": "a"}.items():
        shutil.copytree(saved, tmp_path / name)
        edit_config(tmp_path / name, base_model_name_or_path=str(tmp_path / base))
    with pytest.raises(ValueError, match="Circular base reference: .*a', the base of .*b, is its own base"):
        EZClipModel.from_pretrained(saved, base_model_name_or_path=tmp_path / "a")


def test_whole_model_takes_no_base(clip, tmp_path, trained):
    with pytest.raises(ValueError, match="is a whole model; leave out `base_model_name_or_path`"):
        EZClipModel.from_pretrained(clip, base_model_name_or_path=clip)
    # A configuration taken from another model may name the base of that model.
    trained.save_pretrained(tmp_path)
    model = EZClipModel.from_pretrained(tmp_path, config=trained.config)
    assert model.config.base_model_name_or_path is None and trained.config.base_model_name_or_path is not None


# Errors of the trained weights


def test_config_without_base(trained, saved):
    config = EZClipConfig.from_dict({**trained.config.to_dict(), "base_model_name_or_path": None})
    assert_same_weights(EZClipModel.from_pretrained(saved, config=config), trained)
    (saved / "config.json").unlink()
    with pytest.raises(ValueError, match="does not name its base"):
        EZClipModel.from_pretrained(saved, config=config)


NAME = "vision_model.encoder.layers.1.adapter.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop(NAME), f"lacks trained weights, such as {NAME}"),
        (lambda weights: weights.update(more=torch.ones(1)), "has weights that were not trained, such as more"),
    ],
)
def test_file_with_other_weights(saved, change, message):
    edit_weights(saved, change)
    with pytest.raises(OSError, match=message):
        EZClipModel.from_pretrained(saved, ignore_mismatched_sizes=True)


def test_weights_of_another_shape(saved):
    edit_weights(saved, lambda weights: weights.update({NAME: torch.ones(3, 2)}))
    with pytest.raises(ValueError, match=rf"{NAME} was saved as \(3, 2\) and would be \(32, 8\)"):
        EZClipModel.from_pretrained(saved)


def test_damaged_files(saved):
    path = saved / "model.safetensors"
    whole = path.read_bytes()
    for content in (whole[:-10], whole[:5], b""):
        path.write_bytes(content)
        with pytest.raises(OSError, match="model.safetensors is damaged .* Copy or download it again"):
            EZClipModel.from_pretrained(saved)
    path.write_bytes(whole)
    edit_weights(saved, lambda weights: None, keep_record=False)
    with pytest.raises(ValueError, match="remove `base_model_name_or_path` from config.json"):
        EZClipModel.from_pretrained(saved)
    path.unlink()
    with pytest.raises(OSError, match="has no model.safetensors"):
        EZClipModel.from_pretrained(saved)


@pytest.mark.parametrize(
    ("vision_config", "kind", "message"),
    [
        ({"num_frames": 4}, "mismatched_keys", r"(.*was saved as \(8, 32\) and would be \(4, 32\)){2}"),
        ({"use_temporal_adapter": True}, "missing_keys", r"temporal_adapter.* was not saved"),
        ({"temporal_prompt": "none"}, "unexpected_keys", r"(.*temporal_prompt was saved and has no place){2}"),
    ],
)
def test_config_of_other_weights(saved, vision_config, kind, message):
    with pytest.raises(ValueError, match=f"does not fit the configuration asked for: .*{message}"):
        EZClipModel.from_pretrained(saved, vision_config=vision_config)
    options = {"ignore_mismatched_sizes": True, "output_loading_info": True}
    model, info = EZClipModel.from_pretrained(saved, vision_config=vision_config, **options)
    for field, value in vision_config.items():
        assert getattr(model.config.vision_config, field) == value
    assert info[kind] and not any(info[other] for other in {"missing_keys", "unexpected_keys"} - {kind})


# Other ways to load


@pytest.mark.parametrize(
    ("tower", "tower_class"), [("vision_model", EZClipVisionModel), ("text_model", EZClipTextModel)]
)
def test_load_tower(trained, saved, tower, tower_class, tmp_path, clip):
    model, info = tower_class.from_pretrained(saved, output_loading_info=True)
    assert_same_weights(model, getattr(trained, tower))
    assert not info["missing_keys"] and not info["unexpected_keys"]
    make_clip(tmp_path / "other", seed=1, vocab_size=VOCAB_SIZE)
    with pytest.raises(ValueError, match="is not the model that .* was trained from"):
        tower_class.from_pretrained(saved, base_model_name_or_path=tmp_path / "other")


def test_automodel_options(trained, saved):
    model, info = AutoModel.from_pretrained(
        saved, dtype=torch.bfloat16, attn_implementation="eager", output_loading_info=True
    )
    assert type(model) is EZClipModel and model.dtype == torch.bfloat16 and not info["missing_keys"]
    assert model.config._attn_implementation == "eager" and model.vision_model.config._attn_implementation == "eager"
    assert_same_weights(model.float(), EZClipModel.from_pretrained(saved, dtype=torch.bfloat16).float())


ELSEWHERE = """
import sys, torch
from transformers import AutoModel, CLIPModel

TOKEN = sys.argv[1]
inputs = torch.load("inputs.pt")
trust = {"trust_remote_code": True}

# From a folder
model = AutoModel.from_pretrained("saved", **trust)
model.save_pretrained("again", trained_only=True)
model.save_pretrained("merged")

# Through a Hub
CLIPModel.from_pretrained(model.config.base_model_name_or_path).push_to_hub("me/clip", private=True, token=TOKEN)
options = {"trained_only": True, "base_model_name_or_path": "me/clip", "token": TOKEN}
model.push_to_hub("me/pushed", revision="v1", tags="video", commit_message="trained", **options)
model.save_pretrained("to push", push_to_hub=True, repo_id="me/saved", **options)
options = {"cache_dir": "cache", "token": TOKEN, **trust}
pushed = AutoModel.from_pretrained("me/pushed", revision="v1", **options)
cached = type(model).from_pretrained("me/pushed", revision="v1", local_files_only=True, **options)
saved = AutoModel.from_pretrained("me/saved", **options)

assert "ezclip" not in sys.modules
torch.save([m(**inputs).logits_per_video for m in (model, pushed, cached, saved)], "logits.pt")
"""


@pytest.fixture(scope="module")
def elsewhere(trained, tmp_path_factory):
    """Return the folder and the Hub after a process without this package loaded, saved and pushed a saved folder."""
    folder = tmp_path_factory.mktemp("elsewhere")
    trained.save_pretrained(folder / "saved", trained_only=True)
    inputs = make_inputs()
    torch.save({**inputs, "input_ids": inputs["input_ids"] % VOCAB_SIZE}, folder / "inputs.pt")
    with LoopbackHub().serving() as hub:
        # -P: the working folder is not on the path
        result = subprocess.run(
            [sys.executable, "-P", "-c", ELSEWHERE, TOKEN],
            cwd=folder, env={**os.environ, **hub.environment, "HF_HOME": str(folder / "home")},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    return folder, hub


def test_remote_code(elsewhere, trained):
    folder, _ = elsewhere
    for actual in torch.load(folder / "logits.pt"):
        torch.testing.assert_close(actual, logits(trained), atol=1e-5, rtol=1e-5)
    assert_same_weights(EZClipModel.from_pretrained(folder / "again"), trained)
    assert_same_weights(EZClipModel.from_pretrained(folder / "merged"), trained)


@pytest.mark.parametrize("place", [("me/pushed", "v1"), ("me/saved", "main")])
def test_push_trained_weights(elsewhere, saved, place, tmp_path):
    _, hub = elsewhere
    files = hub.files(*place)
    assert {"config.json", "model.safetensors", "modeling_ezclip.py", "checkpoint_ezclip.py", "README.md"} <= set(
        files
    )
    (tmp_path / "model.safetensors").write_bytes(files["model.safetensors"])
    with (
        safe_open(tmp_path / "model.safetensors", "pt") as pushed,
        safe_open(saved / "model.safetensors", "pt") as file,
    ):
        assert pushed.metadata() == file.metadata()
        assert pushed.keys() == file.keys()
    assert json.loads(files["config.json"])["base_model_name_or_path"] == "me/clip"
    # Only one of the two pushes has tags.
    assert ("- video" in files["README.md"].decode()) == (place[0] == "me/pushed")


def test_base_has_no_revision(elsewhere):
    folder, hub = elsewhere
    assert hub.repositories["me/clip"].private  # so it was fetched with the token
    assert hub.asked("GET", "me/clip/resolve/.*/model.safetensors")
    assert list((folder / "cache" / "models--me--clip").rglob("model.safetensors"))
    assert not [path for path in (folder / "home").rglob("*") if path.name in ("config.json", "model.safetensors")]
    commit = hub.repositories["me/pushed"].head("v1").sha
    assert not [path for _, path in hub.requests if "me/clip" in path and ("v1" in path or commit in path)]


# The tools


@pytest.fixture
def with_processor(saved):
    EZClipProcessor(default_image_processor(32), word_tokenizer(WORDS)).save_pretrained(saved)
    return saved


def test_load_model(with_processor, trained):
    model, processor = load_model(with_processor), load_processor(with_processor)
    check_fit(model, processor)
    assert_same_weights(model, trained)
    assert model.config.base_model_name_or_path == trained.config.base_model_name_or_path
    with pytest.raises(ModelError, match="does not fit the configuration asked for: .* is .8, 32. there and would be"):
        load_model(with_processor, vision_config={"num_frames": 16})


def test_load_model_sets_base(clip, trained, tmp_path, monkeypatch):
    trained.save_pretrained(tmp_path / "whole")
    monkeypatch.chdir(tmp_path)
    assert load_model(clip, for_training=True).config.base_model_name_or_path == str(clip.resolve())
    assert load_model("whole").config.base_model_name_or_path == str((tmp_path / "whole").resolve())


def test_load_model_errors(saved, clip, tmp_path):
    model = load_model(clip, for_training=True, vision_config={"temporal_prompt": "none"})
    train(model).save_pretrained(tmp_path / "no prompts", trained_only=True)
    with pytest.raises(ModelError, match="no prompts was not trained with temporal prompts, which spoils"):
        load_model(tmp_path / "no prompts", vision_config={"temporal_prompt": "deep"})
    with_new = load_model(tmp_path / "no prompts", for_training=True, vision_config={"temporal_prompt": "deep"})
    assert torch.equal(with_new.get_parameter(NAME), model.get_parameter(NAME))
    make_clip(tmp_path / "other", seed=1, vocab_size=VOCAB_SIZE)
    edit_config(saved, base_model_name_or_path=str(tmp_path / "other"))
    with pytest.raises(ModelError, match="saved cannot be loaded: .*other' is not the model that .* trained from"):
        load_model(saved)
    edit_config(saved, base_model_name_or_path=str(tmp_path / "nowhere"))
    with pytest.raises(ModelError, match="saved cannot be loaded: .*nowhere', the base of .*saved, cannot be loaded"):
        load_model(saved)
    with pytest.raises(ModelError, match="saved has no processor"):
        load_processor(saved)
