"""Hostile or broken files: configurations that ask for absurd models, checkpoints with other tensors, forged JSON."""

import json
import shutil
import subprocess
import sys

import psutil
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from checkpoint_ezclip import RECORD_KEY
from ezclip import (
    ClassBank,
    EZClipConfig,
    EZClipModel,
    EZClipProcessor,
    EZClipVisionConfig,
    EZClipVisionModel,
    load_processor,
)
from ezclip.cli.demo import word_tokenizer
from ezclip.errors import ModelError
from ezclip.systems.loading import load_model
from processing_ezclip import default_image_processor
from tests.helpers import ROOT, VOCAB_SIZE, WORDS, edit_config, make_clip, make_model, tiny_config


HUGE = 10**9
# (tower or None, fields, message)
ABSURD = [
    ("vision_config", {"num_frames": HUGE}, "`num_frames` must be at most 4,096, got 1000000000"),
    ("vision_config", {"num_frames": "8"}, "'num_frames' expected int, got str"),
    ("vision_config", {"num_frames": 2.5}, "'num_frames' expected int, got float"),
    ("vision_config", {"num_frames": True}, "'num_frames' expected int, got bool"),
    ("vision_config", {"hidden_size": -1}, "`hidden_size` must be at least 1, got -1"),
    ("text_config", {"hidden_size": [512]}, "'hidden_size' expected int, got list"),
    ("text_config", {"num_hidden_layers": 10**6}, "`num_hidden_layers` must be at most 1,000, got 1000000"),
    ("vision_config", {"num_hidden_layers": 0}, "`num_hidden_layers` must be at least 1, got 0"),
    ("vision_config", {"patch_size": 0}, "`patch_size` must be at least 1, got 0"),
    ("vision_config", {"patch_size": 64}, r"`patch_size` \(64\) must be at most `image_size` \(32\)"),
    ("vision_config", {"image_size": HUGE}, "`image_size` must be at most 16,384"),
    ("vision_config", {"num_channels": HUGE}, "`num_channels` must be at most 1,024"),
    ("vision_config", {"num_attention_heads": 5}, r"`num_attention_heads` \(5\) must divide `hidden_size` \(32\)"),
    ("text_config", {"num_attention_heads": 0}, "`num_attention_heads` must be at least 1, got 0"),
    ("text_config", {"vocab_size": HUGE}, "`vocab_size` must be at most 1,048,576"),
    ("text_config", {"max_position_embeddings": HUGE}, "`max_position_embeddings` must be at most 1,048,576"),
    ("text_config", {"intermediate_size": HUGE}, "`intermediate_size` must be at most 262,144"),
    ("text_config", {"adapter_ratio": float("nan")}, "`adapter_ratio` must be a number, got nan"),
    ("text_config", {"adapter_ratio": 1e300}, r"`adapter_ratio` must be at most 64, got 1e\+300"),
    ("text_config", {"attention_dropout": "much"}, "'attention_dropout' with value 'much'"),
    ("vision_config", {"temporal_prompt_init_range": float("inf")}, "`temporal_prompt_init_range` must be a number"),
    # Each within its bounds, and together more than any machine holds
    ("text_config", {"hidden_size": 2**16, "num_hidden_layers": 1000}, "asks for about [0-9,]+ parameters"),
    ("vision_config", {"hidden_size": 2**16, "num_frames": 2**12, "num_hidden_layers": 100}, "asks for about"),
    ("vision_config", {"image_size": 2**14, "patch_size": 1, "hidden_size": 1024}, "asks for about 274,"),
    (None, {"num_labels": HUGE}, "`num_labels` must be at most 65,536"),
    (None, {"freeze_backbone": "no"}, "'freeze_backbone' expected bool, got str"),
    ("vision_config", {"use_adapter": "no"}, "'use_adapter' expected bool, got str"),
    ("text_config", {"layer_norm_eps": float("nan")}, "`layer_norm_eps` must be a number, got nan"),
    (None, {"projection_dim": HUGE}, "`projection_dim` must be at most 65,536"),
    (None, {"projection_dim": 0}, "`projection_dim` must be at least 1, got 0"),
    (None, {"projection_dim": 2**16, "temporal_head": "transformer"}, "asks for about"),
    (None, {"temporal_head": "transformer", "temporal_head_layers": HUGE}, "`temporal_head_layers` must be at most"),
    (None, {"logit_scale_init_value": "x"}, "'logit_scale_init_value' with value 'x'"),
    (None, {"motion_loss_weight": None}, "'motion_loss_weight' with value None"),
    (None, {"vision_config": [1, 2]}, r"'vision_config'.* got \[1, 2\]"),
    (None, {"text_config": "x" * 10**6}, "'text_config'.* got 'x{59}…"),
    (None, {"projection_dim": 10**4000}, "`projection_dim` must be at most 65,536, got a number of over 30 digits"),
]


@pytest.mark.parametrize(("tower", "fields", "message"), ABSURD)
def test_absurd_config(tower, fields, message, tmp_path):
    make_clip(tmp_path)
    EZClipModel.from_pretrained(tmp_path).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    content = {**content, **(fields if tower is None else {tower: {**content[tower], **fields}})}
    content.pop("auto_map")  # load with this package, not with the saved code
    before = psutil.Process().memory_info().rss
    with pytest.raises((ValueError, StrictDataclassError), match=f"(?s:{message})") as caught:
        EZClipConfig(**content)
    assert len(str(caught.value)) < 400
    path.write_text(json.dumps(content))
    for load in (AutoConfig.from_pretrained, EZClipModel.from_pretrained):
        with pytest.raises((ValueError, StrictDataclassError), match=f"(?s:{message})"):
            load(tmp_path)
    with pytest.raises(ModelError, match=f"config.json of .* is not one of a model: .*{message}"):
        load_model(tmp_path)
    assert psutil.Process().memory_info().rss < before + 200e6


def test_config_that_asks_for_a_quantizer(tmp_path):
    make_clip(tmp_path)
    EZClipModel.from_pretrained(tmp_path).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    quantizer = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": quantizer}))
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(tmp_path)


def test_clip_config_with_wrong_type(tmp_path):
    make_clip(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    content["text_config"]["layer_norm_eps"] = "small"
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match="config.json of .* is not one of a model: .*'layer_norm_eps'.* got str"):
        load_model(tmp_path)


@pytest.mark.parametrize("fields", [{"num_labels": HUGE}, {"num_labels": "2"}, {"id2label": [1]}])
@pytest.mark.parametrize("tower", ["text_config", "vision_config"])
def test_forged_tower_of_clip(tmp_path, tower, fields):
    make_clip(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    edit_config(tmp_path, **{tower: {**content[tower], **fields}})
    check_refused(tmp_path, *MODEL)
    edit_config(tmp_path, **{tower: {**content[tower], "model_type": 3}})
    load_model(tmp_path, for_training=True)  # a tower's type is not read


def test_whole_number_as_logit_scale(tmp_path):
    make_model(logit_scale_init_value=0).save_pretrained(tmp_path)
    assert EZClipModel.from_pretrained(tmp_path).logit_scale.is_floating_point()


def test_unknown_activation(tmp_path):
    make_clip(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    content["text_config"]["hidden_act"] = "nothing known"
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match="cannot be loaded: .*nothing known"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    "fields",
    [
        # EVA-CLIP-18B, ViT-bigG/14, ViT-L/14@336, ViT-B/16 on long videos
        {"hidden_size": 5120, "intermediate_size": 25600, "num_hidden_layers": 48, "num_attention_heads": 40},
        {"hidden_size": 1664, "intermediate_size": 8192, "num_hidden_layers": 48, "num_attention_heads": 16},
        {"hidden_size": 1024, "num_attention_heads": 16, "image_size": 336, "patch_size": 14, "num_frames": 64},
        {"patch_size": 16, "num_frames": 4096},
        {"image_size": 230, "patch_size": 32},  # the last pixels are cut off
        {"num_hidden_layers": 1, "num_frames": 1, "num_attention_heads": 1},
    ],
)
def test_published_sizes(fields):
    config = EZClipConfig(vision_config=fields)
    assert EZClipVisionConfig(**fields).to_diff_dict().items() >= fields.items() - {("patch_size", 32)}
    with torch.device("meta"):
        assert EZClipModel(config).num_parameters() > 0


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    EZClipModel(tiny_config()).save_pretrained(tmp_path)
    return tmp_path


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


BLOCK = "text_model.encoder.layers.1"


def test_wrong_tensors_are_named(folder):
    def change(weights):
        for name in ("mlp.fc1.weight", "adapter.up_proj.bias"):
            del weights[f"{BLOCK}.{name}"]
        weights["visual_projection.weight"] = torch.ones(8, 32)
        weights["vision_model.encoder.layers.0.temporal_prompt"] = torch.ones(3, 32)
        weights["vision_model.encoder.layers.7.layer_norm1.weight"] = torch.ones(32)
        weights["payload"] = torch.ones(1)

    change_weights(folder, change)
    with pytest.raises(ModelError) as caught:
        load_model(folder, for_training=True)
    misshapen, missing, extra = str(caught.value).splitlines()
    assert (
        "does not fit the configuration asked for: vision_model.encoder.layers.0.temporal_prompt is (3, 32) there and "
        "would be (8, 32), visual_projection.weight is (8, 32) there and would be (16, 32)."
    ) in misshapen
    assert f"lacks weights of CLIP: {BLOCK}.adapter.up_proj.bias, {BLOCK}.mlp.fc1.weight." in missing
    assert "no place for: payload, vision_model.encoder.layers.7.layer_norm1.weight." in extra
    assert all(line.startswith(str(folder)) for line in (misshapen, missing, extra))


def test_missing_adapter_is_an_error(folder):
    change_weights(folder, lambda weights: weights.pop(f"{BLOCK}.adapter.up_proj.weight"))
    for for_training in (False, True):
        with pytest.raises(ModelError, match=rf"lacks weights: {BLOCK}.adapter.up_proj.weight\."):
            load_model(folder, for_training)


def test_many_wrong_tensors(folder):
    change_weights(folder, lambda weights: weights.update({f"odd.{n:03}": torch.ones(1) for n in range(123)}))
    with pytest.raises(ModelError, match=r"no place for: odd.000, .*, odd.019, and 103 more\."):
        load_model(folder)


def test_trained_weights_are_dropped_only_for_training(folder):
    without = {"vision_config": {"temporal_prompt": "none", "use_adapter": False}}
    model = load_model(folder, for_training=True, **without)
    assert not any("temporal_prompt" in name for name in model.state_dict())
    with pytest.raises(ModelError, match="was trained with vision_model.encoder.layers.0.adapter.* no place for"):
        load_model(folder, **without)
    with pytest.raises(ModelError, match="no place for: text_model.encoder.layers.0.adapter.down_proj.bias, "):
        content = json.loads((folder / "config.json").read_text())
        content["text_config"]["use_adapter"] = False
        (folder / "config.json").write_text(json.dumps(content))
        load_model(folder)


def test_position_ids_of_old_clip_weights(tmp_path):
    make_clip(tmp_path)
    positions = {"text_model": torch.arange(16)[None], "vision_model": torch.arange(5)[None]}
    change_weights(
        tmp_path, lambda weights: weights.update({f"{k}.embeddings.position_ids": v for k, v in positions.items()})
    )
    assert load_model(tmp_path, preset="clip").config.temporal_head == "mean"


# Loads every folder with little memory; prints the errors. `sys.argv` holds the folders.
LOAD_WITH_LITTLE_MEMORY = """
import resource, sys
import psutil
from transformers import AutoModel
from ezclip import EZClipModel, load_model
load_model(sys.argv[1], for_training=True)  # what is imported late
limit = psutil.Process().memory_info().data + 2**30
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
for folder in sys.argv[2:]:
    auto = lambda folder: AutoModel.from_pretrained(folder, trust_remote_code=True, ignore_mismatched_sizes=True)
    for load in (EZClipModel.from_pretrained, load_model, auto):
        try:
            load(folder)
            print("loaded")
        except Exception as error:
            print(type(error).__name__, str(error).replace(chr(10), " "))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits memory with `resource`")
def test_sizes_beyond_the_weights(tmp_path):
    make_clip(tmp_path / "clip")
    small = load_model(tmp_path / "clip", for_training=True)
    small.save_pretrained(tmp_path / "whole")
    small.save_pretrained(tmp_path / "shards", max_shard_size="50KB")
    small.save_pretrained(tmp_path / "trained", trained_only=True)
    shutil.copytree(tmp_path / "whole", tmp_path / "pickle")
    torch.save(load_file(tmp_path / "whole" / "model.safetensors"), tmp_path / "pickle" / "pytorch_model.bin")
    (tmp_path / "pickle" / "model.safetensors").unlink()
    folders = [tmp_path / name for name in ("whole", "shards", "trained", "pickle")]
    for folder in folders:
        content = json.loads((folder / "config.json").read_text())
        # 16 GB of weights, each field within its limit
        content["text_config"].update(hidden_size=2**13, intermediate_size=2**17)
        edit_config(folder, **content)
    command = [sys.executable, "-c", LOAD_WITH_LITTLE_MEMORY, tmp_path / "clip", *folders]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 12, done.stderr[-2000:]
    for number, line in enumerate(lines):
        folder = folders[number // 3]
        lacking = tmp_path / "clip" if folder.name == "trained" else folder  # most weights are those of its base
        assert line.startswith(("ValueError", "ModelError", "ValueError")[number % 3])
        assert "asks for 4,8" in line and f"weights that {lacking} lacks, such as text_model." in line
        assert "(131072, 8192)" in line and "config.json" in line


def test_added_parts_larger_than_the_base(tmp_path):
    make_clip(tmp_path)
    vision_config = {"num_frames": 4096, "adapter_ratio": 64}
    model = EZClipModel.from_pretrained(tmp_path, vision_config=vision_config)
    assert (
        sum(weight.numel() for weight in model.parameters()) > 10 * (tmp_path / "model.safetensors").stat().st_size / 4
    )
    model.save_pretrained(tmp_path / "whole")
    assert EZClipVisionModel.from_pretrained(tmp_path / "whole").config.num_frames == 4096


def save_shards(folder):
    make_model(seed=0).save_pretrained(folder, max_shard_size="50KB")
    return folder / "model.safetensors.index.json"


@pytest.mark.parametrize(
    "shard", ["../model.safetensors", "{folder}/model.safetensors", "a/b.safetensors", "..", "", 3, None, "x" * 9999]
)
def test_shards_outside_the_folder(tmp_path, shard):
    index = save_shards(tmp_path / "model")
    EZClipModel.from_pretrained(tmp_path / "model")
    save_file({"logit_scale": torch.tensor(1.0)}, tmp_path / "model.safetensors")
    content = json.loads(index.read_text())
    name = shard.format(folder=tmp_path) if isinstance(shard, str) else shard
    content["weight_map"] = dict.fromkeys(content["weight_map"], name)
    index.write_text(json.dumps(content))
    check_refused(tmp_path / "model", EZClipModel.from_pretrained, load_model)


def test_missing_shard(tmp_path):
    save_shards(tmp_path)
    next(tmp_path.glob("model-00002-of-*")).unlink()
    check_refused(tmp_path, EZClipModel.from_pretrained, load_model)


def check_refused(folder, *loaders):
    """Every loader raises an error of one line, of the right type."""
    for load in loaders:
        expected = ModelError if load in (load_model, load_processor) else (OSError, ValueError)
        with pytest.raises(expected) as caught:
            load(folder)
        assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 1500


FORGED = {
    "deep list": "[" * 100_000,
    "deep dict": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "list": "[1]",
    "string": '"x"',
    "number": "3",
    "not UTF-8": b"\xff\xfe",
    "empty": "",
}
MODEL, PROCESSOR = (EZClipModel.from_pretrained, load_model), (EZClipProcessor.from_pretrained, load_processor)


@pytest.mark.parametrize("content", FORGED.values(), ids=FORGED)
@pytest.mark.parametrize(
    ("name", "loaders"),
    [
        ("config.json", MODEL),
        ("model.safetensors.index.json", MODEL),
        ("processor_config.json", PROCESSOR),
        ("preprocessor_config.json", PROCESSOR),
        ("tokenizer.json", PROCESSOR),
        ("tokenizer_config.json", PROCESSOR),
    ],
)
def test_forged_json(tmp_path, name, loaders, content):
    tokenizer = word_tokenizer(WORDS)
    if name == "preprocessor_config.json":
        make_clip(tmp_path, vocab_size=VOCAB_SIZE)
        tokenizer.save_pretrained(tmp_path)
    else:
        save_shards(tmp_path)
        EZClipProcessor(default_image_processor(32), tokenizer).save_pretrained(tmp_path)
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    check_refused(tmp_path, *loaders)


@pytest.mark.parametrize(
    "fields", [{"crop_size": {"height": 10**9, "width": 32}}, {"image_mean": "x"}, {"size": [[]]}]
)
def test_broken_image_processor(tmp_path, fields):
    make_clip(tmp_path, vocab_size=VOCAB_SIZE)
    word_tokenizer(WORDS).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "CLIPImageProcessor", **fields})
    )
    check_refused(tmp_path, *PROCESSOR)
    with pytest.raises(ModelError, match=r"preprocessor_config\.json"):
        load_processor(tmp_path)


FORGED_RECORDS = [
    *(content for content in FORGED.values() if isinstance(content, str)),
    *("null", "{}", '{"trained": 3, "frozen": {}}', '{"trained": [], "frozen": []}'),
]


def forge_record(change, tmp_path):
    make_clip(tmp_path / "clip")
    load_model(tmp_path / "clip", for_training=True).save_pretrained(tmp_path / "trained", trained_only=True)
    path = tmp_path / "trained" / "model.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    metadata[RECORD_KEY] = change(metadata[RECORD_KEY])
    save_file(load_file(path), path, metadata)
    check_refused(tmp_path / "trained", *MODEL)


@pytest.mark.parametrize("record", FORGED_RECORDS, ids=range(len(FORGED_RECORDS)))
def test_forged_record(tmp_path, record):
    forge_record(lambda _: record, tmp_path)


@pytest.mark.parametrize("entry", [["x" * 10**6, 0.0], [["32", "32"], 0.0], [[], "x"], [], 3, [[], float("nan")]])
def test_forged_record_of_a_weight(tmp_path, entry):
    def change(record):
        content = json.loads(record)
        content["frozen"]["logit_scale"] = entry
        return json.dumps(content)

    forge_record(change, tmp_path)


@pytest.mark.parametrize("label", [content for content in FORGED.values() if isinstance(content, str)] + ["null"])
def test_forged_class_bank(tmp_path, label):
    metadata = {"labels": f'["a", {label}]', "background_labels": "[]"}
    save_file({"embeds": torch.ones(1, 2, 4)}, tmp_path / "class_bank.safetensors", metadata)
    if label != '"x"':
        check_refused(tmp_path, ClassBank.from_pretrained)
    save_file({"embeds": torch.ones(1, 2, 4), "probe": torch.ones(3)}, tmp_path / "class_bank.safetensors", metadata)
    check_refused(tmp_path, ClassBank.from_pretrained)
