"""`ezclip convert`: accepted and refused files. tests/test_golden.py compares the numbers."""

import argparse
import collections
import datetime
import os
import pathlib
import random
import struct
import subprocess
import sys
import types
import zipfile

import numpy
import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoProcessor, CLIPConfig, CLIPModel

from configuration_ezclip import PRESETS
from ezclip import EZClipModel
from ezclip.cli import convert as convert_command
from ezclip.convert import inert_archive
from ezclip.convert.inert_archive import read_archive
from tests.helpers import ROOT, SHARED
from tests.published import (
    as_on_a_gpu,
    published_actionclip,
    published_checkpoint,
    published_vificlip,
    published_weights,
    random_model,
)


def saved(content, path):
    torch.save(content, path)
    return path


@pytest.fixture
def checkpoint(tmp_path):
    """Return a function that saves a checkpoint as EZ-CLIP's code does, and returns its path and the model."""

    def save(vision_config=None, change=lambda content: content):
        model = random_model(vision_config=vision_config)
        return saved(change(published_checkpoint(model)), tmp_path / "model.pt"), model

    return save


def convert(path, tmp_path, *argv):
    convert_command.main(["--checkpoint", str(path), "--output_dir", str(tmp_path / "out"), *map(str, argv)])
    return AutoModel.from_pretrained(tmp_path / "out", trust_remote_code=True)


def refused(path, tmp_path, *argv) -> str:
    """Return the message for a file that is not converted."""
    with pytest.raises(SystemExit) as caught:
        convert(path, tmp_path, "--model_only", *argv)
    assert not (tmp_path / "out").exists()
    return str(caught.value)


def assert_same(converted: EZClipModel, model: EZClipModel, atol: float = 0.0):
    """Assert that weights and configurations agree."""
    expected = model.state_dict()
    assert set(converted.state_dict()) == set(expected)
    for name, value in converted.state_dict().items():
        torch.testing.assert_close(value, expected[name], atol=atol, rtol=0.0, msg=name)
    ignored = {"model_type", "dtype", "bos_token_id", "projection_dim"}
    for tower in ("vision_config", "text_config"):
        actual, wanted = (getattr(m.config, tower).to_dict() for m in (converted, model))
        assert {n: actual[n] for n in set(wanted) - ignored} == {n: wanted[n] for n in set(wanted) - ignored}
    for name in ("temporal_head", "freeze_backbone", "motion_loss_weight", "projection_dim"):
        assert getattr(converted.config, name) == getattr(model.config, name)


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
def test_infer_architecture(checkpoint, tmp_path, vision_config):
    path, model = checkpoint(vision_config)
    assert_same(convert(path, tmp_path, "--model_only"), model)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["model_state_dict"],
        lambda content: {"model_state_dict": {f"module.{k}": v for k, v in content["model_state_dict"].items()}},
    ],
)
def test_bare_and_parallel_state_dicts(checkpoint, tmp_path, change):
    path, model = checkpoint(change=change)
    assert_same(convert(path, tmp_path, "--model_only"), model)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"temporal_head": "mean"}, "temporal head mean, no temporal shift"),
        ({"temporal_head": "transformer", "temporal_head_layers": 2}, "temporal head transformer of 2 layers"),
        ({"temporal_head": "lstm"}, "temporal head lstm"),
        ({"temporal_head": "conv1d", "conv1d_scrambles_frames": True}, "conv1d (frames scrambled, as published)"),
        ({"temporal_head": "transformer_cls", "temporal_head_layers": 2}, "transformer_cls of 2 layers"),
        ({"temporal_head": "mean", "vision_config": {"use_temporal_shift": True}}, "with temporal shift"),
    ],
)
@pytest.mark.parametrize("on_gpu", [False, True])
def test_actionclip(tmp_path, capsys, fields, said, on_gpu):
    model = random_model("actionclip", **fields)
    content = published_actionclip(model)
    if on_gpu:
        content["model_state_dict"] = as_on_a_gpu(content["model_state_dict"])
        content["fusion_model_state_dict"] = as_on_a_gpu(content["fusion_model_state_dict"])
    converted = convert(saved(content, tmp_path / "model.pt"), tmp_path, "--model_only")
    assert_same(converted, model, atol=2e-3 if on_gpu else 0.0)
    for name in ("temporal_head_layers", "conv1d_scrambles_frames"):
        assert getattr(converted.config, name) == getattr(model.config, name)
    printed = capsys.readouterr().out
    assert "ActionCLIP" in printed and said in printed
    unused = fields["temporal_head"] in ("lstm", "conv1d", "transformer_cls")
    assert ("frame_position_embeddings.weight (this temporal head does not use it)" in printed) == unused


def test_actionclip_num_frames(tmp_path, capsys):
    """Only the head with a row for each frame tells the number of frames."""
    path = saved(published_actionclip(random_model("actionclip")), tmp_path / "model.pt")
    assert convert(path, tmp_path, "--model_only").config.vision_config.num_frames == 8
    assert "8 frames (not known from the weights)" in capsys.readouterr().out
    assert convert(path, tmp_path, "--model_only", "--num_frames", 16).config.vision_config.num_frames == 16
    with pytest.raises(SystemExit, match="as many positions as the text tower, 16, and `num_frames` is 17"):
        convert(path, tmp_path, "--model_only", "--num_frames", 17)
    fields = {"temporal_head": "transformer_cls", "vision_config": {"num_frames": 4}}
    path = saved(published_actionclip(random_model("actionclip", **fields)), tmp_path / "cls.pt")
    assert convert(path, tmp_path, "--model_only").config.vision_config.num_frames == 4
    with pytest.raises(SystemExit, match="--num_frames must be 4 .* got 8"):
        convert(path, tmp_path, "--model_only", "--num_frames", 8)


def with_head(**weights):
    return lambda content: content["fusion_model_state_dict"].update(weights)


def unshift_a_block(content):
    weights = content["model_state_dict"]
    for name in [name for name in weights if "visual.transformer.resblocks.1.net." in name]:
        weights[name.replace(".net.", ".")] = weights.pop(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_head(**{"module.gate.weight": torch.ones(2)}), "that ActionCLIP does not have"),
        (with_head(**{"module.shift.weight": torch.ones(16, 1, 3), "shift.bias": torch.ones(16)}), "head.conv.bias"),
        (
            with_head(**{"module.shift.weight": torch.ones(16, 1, 3), "lstm_visual.x": torch.ones(1)}),
            "that ActionCLIP does not",
        ),
        (with_head(**{"module.shift.weight": "gone"}), "holds no state dict"),
        (lambda content: content["model_state_dict"].update({"visual.time_embedding": torch.ones(1)}), "time_embed"),
        (unshift_a_block, "in all blocks or in none"),
    ],
)
def test_unknown_actionclip(tmp_path, change, message):
    content = published_actionclip(random_model("actionclip_tsm"))
    change(content)
    assert message in refused(saved(content, tmp_path / "model.pt"), tmp_path)


@pytest.fixture
def clip_of(tmp_path):
    """Return a function that saves the CLIP with the token embedding of a model, and returns its folder."""

    def save(model):
        config = model.config
        clip = CLIPModel(
            CLIPConfig(
                text_config=config.text_config.to_dict(),
                vision_config=config.vision_config.to_dict(),
                projection_dim=config.projection_dim,
            )
        )
        clip.text_model.embeddings.token_embedding.weight.data = (
            model.text_model.embeddings.token_embedding.weight.data.clone()
        )
        clip.save_pretrained(tmp_path / "clip")
        return tmp_path / "clip"

    return save


@pytest.mark.parametrize("prefix", ["", "module."])
def test_vificlip(tmp_path, capsys, clip_of, prefix):
    model = random_model("vificlip")
    content = {"model": {f"{prefix}{name}": value for name, value in published_vificlip(model).items()}}
    path = saved(content, tmp_path / "model.pth")
    assert "--base_model_name_or_path: a folder" in refused(path, tmp_path)
    converted = convert(path, tmp_path, "--model_only", "--base_model_name_or_path", clip_of(model))
    assert_same(converted, model)
    printed = capsys.readouterr().out
    assert f"{PRESETS['vificlip']['vision_config']['num_frames']} frames" in printed
    assert "ViFi-CLIP" in printed and "complete_text_embeddings (the class names" in printed


def test_vificlip_over_openai_file(tmp_path):
    model = random_model("vificlip")
    path = saved({"model": published_vificlip(model)}, tmp_path / "model.pth")
    base = saved(published_weights(model), tmp_path / "clip.pt")
    assert_same(convert(path, tmp_path, "--model_only", "--base_model_name_or_path", base), model)


def test_vificlip_with_names_of_clip(tmp_path):
    model = random_model("vificlip", vision_config={"num_frames": 8})
    path = saved({"model": published_weights(model), "epoch": 9}, tmp_path / "model.pth")
    assert "has a token embedding" in refused(path, tmp_path, "--base_model_name_or_path", path)
    assert_same(convert(path, tmp_path, "--model_only", "--num_frames", "8"), model)


class RunsCode:
    """An object whose unpickling makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_vificlip_with_config_object(tmp_path, capsys, monkeypatch, clip_of):
    """ViFi-CLIP's files hold a configuration object whose class may not be installed."""
    model = random_model("vificlip")
    content = {"model": published_vificlip(model), "max_accuracy": numpy.float64(71.3)}
    with monkeypatch.context() as patch:
        module = types.ModuleType("yacs.config")
        module.CfgNode = type("CfgNode", (dict,), {"__module__": "yacs.config"})
        patch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
        patch.setitem(sys.modules, "yacs.config", module)
        content["config"] = module.CfgNode(TRAIN=module.CfgNode(EPOCHS=10))
        content["config"]._immutable = True
        path = saved(content, tmp_path / "model.pth")
    assert_same(convert(path, tmp_path, "--model_only", "--base_model_name_or_path", clip_of(model)), model)
    assert "max_accuracy, config" in capsys.readouterr().out


class Calls:
    """Pickles as a call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def foreign_class(monkeypatch, **methods):
    """Return a class of a package that is not installed when the file is read."""
    module = types.ModuleType("evilpkg")
    module.Run = type("Run", (), {"__module__": "evilpkg", **methods})
    monkeypatch.setitem(sys.modules, "evilpkg", module)
    return module.Run


@pytest.mark.parametrize("args", [("rm -rf",), ()])
def test_foreign_call(checkpoint, tmp_path, monkeypatch, args):
    path, model = checkpoint()
    with monkeypatch.context() as patch:
        run = foreign_class(patch, __reduce__=lambda self: (type(self), args), __init__=lambda self, *args: None)
        torch.save({**published_checkpoint(model), "x": run(*args)}, path)
    said = refused(path, tmp_path)
    assert "its pickle calls `evilpkg.Run`" in said and "weights_only" not in said


def test_foreign_object(checkpoint, tmp_path, monkeypatch, capsys):
    path, model = checkpoint()
    with monkeypatch.context() as patch:
        state = foreign_class(patch)()
        state.epochs = 3
        torch.save({**published_checkpoint(model), "state": state}, path)
    assert_same(convert(path, tmp_path, "--model_only"), model)
    assert read_archive(path)["state"] == {"epochs": 3} and "state" in capsys.readouterr().out.split("Left out:")[1]


@pytest.mark.parametrize(
    ("function", "args", "named"),
    [
        (os.system, ("touch ran",), "posix.system"),
        (os.mkdir, ("ran",), "posix.mkdir"),
        (eval, ("open('ran', 'w')",), "builtins.eval"),
        (getattr, ("", "join"), "builtins.getattr"),
        (subprocess.Popen, (["touch", "ran"],), "subprocess.Popen"),
        (torch.load, ("ran",), "torch.serialization.load"),
        (torch.hub.load, ("a/b", "c"), "torch.hub.load"),
        (numpy.save, ("ran", 1), "numpy.save"),
    ],
)
@pytest.mark.parametrize("place", ["beside", "instead"])
def test_pickled_call(checkpoint, tmp_path, monkeypatch, function, args, named, place):
    path, model = checkpoint()
    content = published_checkpoint(model)
    (content if place == "beside" else content["model_state_dict"])["visual.proj"] = Calls(function, *args)
    torch.save(content, path)
    monkeypatch.chdir(tmp_path)
    said = refused(path, tmp_path)
    assert f"{path} is refused" in said and f"calls `{named}`" in said
    assert not (tmp_path / "ran").exists()


def test_harmless_objects(checkpoint, tmp_path, capsys):
    path, model = checkpoint()
    extra = {
        "args": argparse.Namespace(lr=1e-3),
        "folder": pathlib.PurePosixPath("/data"),
        "when": datetime.datetime(2024, 1, 1),
        "history": collections.defaultdict(list, {1: [2.0]}),
        "curve": numpy.arange(3.0),
        "lr": numpy.float32(0.5),
        "names": {"a", "b"},
        "device": torch.device("cpu"),
    }
    torch.save({**published_checkpoint(model), **extra}, path)
    assert_same(convert(path, tmp_path, "--model_only"), model)
    left_out = capsys.readouterr().out.split("Left out:")[1]
    assert all(name in left_out for name in extra)


def test_legacy_file_with_objects(checkpoint, tmp_path):
    path, model = checkpoint()
    content = {**published_checkpoint(model), "danger": RunsCode(tmp_path / "ran")}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    said = refused(path, tmp_path)
    assert "calls `posix.mkdir`" in said and "weights_only" not in said
    assert not (tmp_path / "ran").exists()


def test_vificlip_with_wrong_base(tmp_path, clip_of):
    model = random_model("vificlip")
    path = saved({"model": published_vificlip(model)}, tmp_path / "model.pth")
    with torch.no_grad():
        model.text_model.embeddings.token_embedding.weight.mul_(1.1)
    message = refused(path, tmp_path, "--base_model_name_or_path", clip_of(model))
    assert "was trained from another CLIP" in message
    narrow = saved({**published_weights(model), "token_embedding.weight": torch.ones(30, 32)}, tmp_path / "n.pt")
    assert "got 32" in refused(path, tmp_path, "--base_model_name_or_path", narrow)
    assert "No model at 'no/clip'" in refused(path, tmp_path, "--base_model_name_or_path", "no/clip")


@pytest.mark.parametrize("name", ["prompt_learner.ctx", "image_encoder.transformer.resblocks.1.VPT_shallow"])
def test_vificlip_with_prompts(tmp_path, name):
    content = {"model": {**published_vificlip(random_model("vificlip")), f"module.{name}": torch.ones(2, 64)}}
    assert f"with learned prompts (`{name}`)" in refused(saved(content, tmp_path / "model.pth"), tmp_path)


NUMBERS = {"input_resolution": 32, "context_length": 16, "vocab_size": 30}


def test_plain_clip(tmp_path, capsys):
    model = random_model("clip")
    content = {**published_weights(model), **{name: torch.tensor(value) for name, value in NUMBERS.items()}}
    path = saved(content, tmp_path / "clip.pt")
    assert "Leave out --base_model_name_or_path" in refused(path, tmp_path, "--base_model_name_or_path", path)
    assert_same(convert(path, tmp_path, "--model_only"), model)
    printed = capsys.readouterr().out
    assert "CLIP, " in printed and "Left out: input_resolution (known from the shapes)" in printed


def test_resnet_is_refused(tmp_path):
    content = {"visual.layer1.0.conv1.weight": torch.ones(1), "token_embedding.weight": torch.ones(30, 64)}
    assert "ResNet" in refused(saved(content, tmp_path / "rn50.pt"), tmp_path)


class Tree(nn.Module):
    """Nested modules with the tensors of a state dict."""

    def __init__(self, state_dict):
        super().__init__()
        for name in dict.fromkeys(name.split(".")[0] for name in state_dict):
            if name in state_dict and state_dict[name].is_floating_point():
                self.register_parameter(name, nn.Parameter(state_dict[name].detach().clone()))
            elif name in state_dict:
                self.register_buffer(name, state_dict[name])
            else:
                start = f"{name}."
                self.add_module(name, Tree({k[len(start) :]: v for k, v in state_dict.items() if k.startswith(start)}))

    def forward(self, x):
        return x


class FailsWhenLoaded(nn.Module):
    @torch.jit.export
    def __getstate__(self):
        return self.training

    @torch.jit.export
    def __setstate__(self, training: bool):
        raise RuntimeError("code of the file was run")

    def forward(self, x):
        return x


def test_torchscript_of_openai(tmp_path):
    """Read without `torch.jit.load`, which runs what the file defines."""
    model = random_model("clip")
    content = as_on_a_gpu({**published_weights(model), **{n: torch.tensor(value) for n, value in NUMBERS.items()}})
    path = tmp_path / "ViT-B-16.pt"
    torch.jit.trace(Tree(content), torch.zeros(1)).save(path)
    expected = torch.jit.load(path, map_location="cpu").state_dict()
    actual = read_archive(path)
    assert set(actual) == set(expected) == set(content)
    assert all(torch.equal(actual[n], value) and actual[n].dtype == value.dtype for n, value in expected.items())
    assert_same(convert(path, tmp_path, "--model_only"), model, atol=2e-3)

    tree = Tree(content)
    tree.add_module("other", FailsWhenLoaded())
    torch.jit.script(tree).save(path)
    with pytest.raises(torch.jit.Error, match="code of the file was run"):
        torch.jit.load(path)
    assert_same(convert(path, tmp_path, "--model_only"), model, atol=2e-3)


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
        (lambda content: {**content, "fusion_model_state_dict": {}}, "not a known checkpoint of ActionCLIP"),
        (lambda content: {"model": content["model_state_dict"]}, "not a known checkpoint of ViFi-CLIP"),
        (lambda content: {"epoch": 3}, "holds no state dict"),
        (lambda content: {"model": torch.nn.Linear(2, 2)}, "holds no state dict"),
        (lambda content: [1, 2], "holds no state dict"),
        (lambda content: {"model_state_dict": {"weight": torch.zeros(1)}}, "is not a checkpoint of EZ-CLIP / T2L, A"),
    ],
)
def test_unknown_checkpoint(checkpoint, tmp_path, change, message):
    path, _ = checkpoint(change=change)
    said = refused(path, tmp_path)
    assert message in said and str(path) in said


def test_unknown_file(tmp_path):
    (tmp_path / "page.pt").write_text("<html>404</html>")
    for name, message in {"page.pt": "must be a complete file of torch.save", "gone.pt": "is not a file"}.items():
        with pytest.raises(SystemExit, match=message):
            convert(tmp_path / name, tmp_path, "--model_only")


def test_output_must_be_a_folder(checkpoint, tmp_path):
    path, _ = checkpoint()
    (tmp_path / "out").write_text("")
    with pytest.raises(SystemExit, match="--output_dir .*out cannot be written .*File exists"):
        convert(path, tmp_path, "--model_only")
    with pytest.raises(SystemExit, match="--output_dir .*x cannot be written .*Not a directory"):
        convert_command.main(["--checkpoint", str(path), "--output_dir", str(tmp_path / "out" / "x"), "--model_only"])


def test_processor_of_another_model(checkpoint, tmp_path):
    path, _ = checkpoint()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "processor_config.json").write_text("{}")
    with pytest.raises(SystemExit, match="out has the processor of another model"):
        convert(path, tmp_path, "--model_only")


def of_first_weight(change):
    """Return a change of the first tensor of a checkpoint."""

    def apply(content):
        weights = content["model_state_dict"]
        name = next(name for name in weights if name.endswith("conv1.weight"))
        return {"model_state_dict": {**weights, **change(name, weights[name])}}

    return apply


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (of_first_weight(lambda n, w: {n: w / 0}), "'visual.conv1.weight' must hold finite numbers"),
        (of_first_weight(lambda n, w: {f"module.{n}": w}), "has 'visual.conv1.weight' twice"),
        (of_first_weight(lambda n, w: {n: w.to(torch.complex64)}), "'visual.conv1.weight' must be a dense real"),
        (of_first_weight(lambda n, w: {n: w.to_sparse()}), "'visual.conv1.weight' must be a dense real tensor"),
        (of_first_weight(lambda n, w: {n: torch.nested.nested_tensor([w])}), "a dense real tensor"),
        (of_first_weight(lambda n, w: {n: torch.zeros(1).as_strided((10**10, 64), (0, 0))}), "than the file holds"),
        (of_first_weight(lambda n, w: {n: torch.zeros(8).expand(3, 8)}), "has more elements, (3, 8), than the file"),
        (of_first_weight(lambda n, w: {f"{n}{i}": w.view(-1)[i:] for i in range(400)}), "than the file holds"),
        (of_first_weight(lambda n, w: {n: w.to("meta")}), "'visual.conv1.weight' must be a dense real tensor"),
        (of_first_weight(lambda n, w: {n: torch.empty(64, 3, 0, 0)}), "impossible shapes"),
        (of_first_weight(lambda n, w: {"visual.positional_embedding": torch.empty(0, 64)}), "impossible shapes"),
    ],
)
def test_odd_tensors(checkpoint, tmp_path, change, message):
    path, _ = checkpoint(change=change)
    assert message in refused(path, tmp_path)


def test_damaged_archives(tmp_path):
    """Each damaged file gets a message of one command."""
    path, rng = tmp_path / "model.pt", random.Random(0)
    saved({**published_vificlip(random_model("vificlip")), "config": argparse.Namespace(epochs=10)}, path)
    content = path.read_bytes()
    for _ in range(60):
        damaged = bytearray(content)
        for _ in range(3):
            damaged[rng.randrange(min(len(damaged), 6000))] = rng.randrange(256)
        path.write_bytes(damaged[: rng.choice([len(damaged), len(damaged) // 2])])
        with pytest.raises(SystemExit, match="ezclip convert: "):
            convert(path, tmp_path, "--model_only")


def repacked(path, change):
    """Write a zip file again with parts that `change` returns."""
    with zipfile.ZipFile(path) as archive:
        parts = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts:
            archive.writestr(name, *change(name, content))


@pytest.mark.parametrize("beside", [{}, {"config": argparse.Namespace(epochs=10)}])
def test_archive_bombs(checkpoint, tmp_path, monkeypatch, beside):
    path, _ = checkpoint(change=lambda content: {**content, **beside})
    content = path.read_bytes()

    def deflated(part):
        return lambda name, content: (content, zipfile.ZIP_DEFLATED if part in name else zipfile.ZIP_STORED)

    for part in ("data.pkl", "data/0"):
        path.write_bytes(content)
        repacked(path, deflated(part))
        assert f"{part}' is compressed" in refused(path, tmp_path)

    path.write_bytes(content)
    with zipfile.ZipFile(path) as archive:
        size = next(entry for entry in archive.infolist() if entry.filename.endswith("/data/0")).file_size
    # Only the directory at the end is read.
    start = content.index(b"PK\x01\x02")
    path.write_bytes(content[:start] + content[start:].replace(struct.pack("<I", size), struct.pack("<I", 2**31)))
    assert "larger than the whole" in refused(path, tmp_path)

    path.write_bytes(content)
    monkeypatch.setattr(inert_archive, "OPERATION_BYTES", 10**6)
    assert "has more operations" in refused(path, tmp_path)


def test_shared_storage(tmp_path):
    flat = torch.arange(40_000.0)
    views = {str(i): flat[i : i + 10] for i in range(1_000)}
    saved({**views, "config": argparse.Namespace(epochs=10)}, tmp_path / "flat.pt")
    archive = read_archive(tmp_path / "flat.pt")
    assert len({archive[name].untyped_storage().data_ptr() for name in views}) == 1
    assert all(torch.equal(archive[name], view) for name, view in views.items())


def test_wrong_num_frames(checkpoint, tmp_path):
    path, _ = checkpoint()
    with pytest.raises(SystemExit, match="--num_frames must be 8 .* got 16"):
        convert(path, tmp_path, "--model_only", "--num_frames", "16")


def test_tokenizer_of_another_size(checkpoint, tmp_path, tiny_folder):
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
