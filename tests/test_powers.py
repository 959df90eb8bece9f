"""What a model in transformers must do, for each system: backends, offloading, compiling, export, quantisation."""

import contextlib
import copy
import io
import json
import pickle
import warnings

import numpy as np
import pytest
import torch
from accelerate import disk_offload, infer_auto_device_map
from torch import nn
from torch._dynamo.testing import CompileCounter
from transformers import AutoModel, BitsAndBytesConfig, TorchAoConfig
from transformers.utils import is_flash_attn_2_available

from ezclip import ClassBank, EZClipConfig, EZClipModel, EZClipProcessor
from ezclip.cli import export as export_model
from ezclip.cli.export import TextTower, VideoTower, export
from ezclip.errors import ModelError
from tests.helpers import WORDS, enable_checkpointing, random_clip


FRAMES = 4
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT_SIZES = {"vocab_size": 30, "max_position_embeddings": 16, "bos_token_id": 28, "eos_token_id": 29}
# (preset, fields) for each kind of temporal modelling
SYSTEMS = {
    "ezclip": ("ezclip", {}),
    "actionclip": ("actionclip", {}),
    "actionclip transformer_cls": ("actionclip", {"temporal_head": "transformer_cls"}),
    "actionclip lstm": ("actionclip", {"temporal_head": "lstm"}),
    "actionclip conv1d": ("actionclip", {"temporal_head": "conv1d"}),
    "actionclip_tsm": ("actionclip_tsm", {}),
    "actionclip_joint": ("actionclip_joint", {}),
    "clip": ("clip", {}),
}
each_system = pytest.mark.parametrize("system", SYSTEMS)
# One head is enough where heads are not involved
BACKENDS = ("ezclip", "actionclip", "actionclip_tsm", "actionclip_joint")


def some_fast(*fast: str) -> list:
    """Return every system; mark all but `fast` as slow."""
    return [pytest.param(system, marks=() if system in fast else pytest.mark.slow) for system in SYSTEMS]


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def make_model(system: str, **changes) -> EZClipModel:
    preset, fields = SYSTEMS[system]
    torch.manual_seed(0)
    config = EZClipConfig.from_preset(
        preset,
        vision_config={**TOWER, "image_size": 32, "patch_size": 16, "num_frames": FRAMES},
        text_config={**TOWER, **TEXT_SIZES},
        projection_dim=16,
        temporal_head_layers=1,
        **{**fields, **changes},
    )
    model = EZClipModel(config)
    with torch.no_grad():  # fresh adapters and embeddings do nothing
        for name, parameter in model.named_parameters():
            if "adapter" in name or "temporal_embedding" in name:
                parameter.normal_(std=0.3)
    return model.eval()


def make_inputs(batch_size: int = 3, seed: int = 1) -> dict[str, torch.Tensor]:
    """Return videos and as many texts of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(1, 28, (batch_size, 7), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    input_ids[:, -1] = 29
    input_ids[0, 4:], attention_mask[0, 5:] = 29, 0
    pixel_values = torch.randn(batch_size, FRAMES, 3, 32, 32, generator=generator)
    return {"pixel_values": pixel_values, "input_ids": input_ids, "attention_mask": attention_mask}


def inputs_for(model) -> dict[str, torch.Tensor]:
    device = "cuda" if model.device.type == "cuda" else "cpu"  # an offloaded model is on "meta"
    return {name: value.to(device) for name, value in make_inputs().items()}


@torch.no_grad()
def embed(model):
    outputs = model(**inputs_for(model))
    return outputs.video_embeds, outputs.text_embeds


def gradients(model) -> dict[str, torch.Tensor]:
    model.zero_grad()
    torch.manual_seed(0)
    model(**inputs_for(model), return_loss=True).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_near(model, other, least_cosine: float):
    """Assert that the embeddings of two models have nearly the same direction."""
    for ours, theirs in zip(embed(model), embed(other)):
        assert torch.cosine_similarity(ours.float(), theirs.float()).min() > least_cosine


# Attention backends


@each_system
def test_eager_and_sdpa_agree(system):
    model = make_model(system, freeze_backbone=False)
    model.set_attn_implementation("eager")
    embeds, grads = embed(model), gradients(model)
    model.set_attn_implementation("sdpa")
    torch.testing.assert_close(embed(model), embeds, atol=1e-6, rtol=0)
    torch.testing.assert_close(gradients(model), grads, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("system", BACKENDS)
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_flex_agrees(system, compiled):
    model = make_model(system)
    model.set_attn_implementation("eager")
    embeds = embed(model)
    model.set_attn_implementation("flex_attention")
    torch.compiler.reset()
    # transformers compiles it, which takes a minute
    with contextlib.nullcontext() if compiled else torch.compiler.set_stance("force_eager"):
        torch.testing.assert_close(embed(model), embeds, atol=1e-6, rtol=0)


@needs_gpu
@pytest.mark.slow
@pytest.mark.parametrize("system", BACKENDS)
def test_gradients_of_flex_agree(system):
    """Needs a GPU: PyTorch has no backward of flex attention on a CPU."""
    model = make_model(system, freeze_backbone=False).cuda()
    model.set_attn_implementation("eager")
    grads = gradients(model)
    model.set_attn_implementation("flex_attention")
    torch.testing.assert_close(gradients(model), grads, atol=1e-4, rtol=1e-2)


@needs_gpu
@pytest.mark.skipif(not is_flash_attn_2_available(), reason="needs the package flash-attn")
@pytest.mark.parametrize("system", BACKENDS)
def test_flash_agrees(system):
    model = make_model(system).cuda().to(torch.bfloat16)
    model.set_attn_implementation("eager")
    embeds = embed(model)
    model.set_attn_implementation("flash_attention_2")
    torch.testing.assert_close(embed(model), embeds, atol=2e-2, rtol=0)


# Outputs


@each_system
def test_hidden_states_and_attentions(system):
    model = make_model(system)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        outputs = model(**make_inputs(), output_hidden_states=True, output_attentions=True)
    video, text = outputs.vision_model_output, outputs.text_model_output
    rows, length = (3, 1 + 4 * FRAMES) if system == "actionclip_joint" else (3 * FRAMES, 5)
    tokens = length + (system == "ezclip")  # the temporal token is only in the attention
    assert [tuple(state.shape) for state in video.hidden_states] == [(rows, length, 32)] * 3
    assert [tuple(weights.shape) for weights in video.attentions] == [(rows, 2, tokens, tokens)] * 2
    assert [tuple(state.shape) for state in text.hidden_states] == [(3, 7, 32)] * 3
    assert [tuple(weights.shape) for weights in text.attentions] == [(3, 2, 7, 7)] * 2
    assert torch.equal(video.hidden_states[-1], video.last_hidden_state)
    for weights in (*video.attentions, *text.attentions):
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:-1]))
    assert all(weights.triu(1).eq(0).all() for weights in text.attentions)


@each_system
def test_tuple_outputs(system):
    model, inputs = make_model(system), make_inputs()
    for call in (
        lambda **options: model(**inputs, return_loss=True, output_hidden_states=True, **options),
        lambda **options: model.get_video_features(inputs["pixel_values"], **options),
        lambda **options: model.get_text_features(inputs["input_ids"], inputs["attention_mask"], **options),
    ):
        with torch.no_grad():
            outputs, values = call(), call(return_dict=False)
        assert type(values) is tuple
        torch.testing.assert_close(values, outputs.to_tuple(), atol=0, rtol=0)


# Memory


@pytest.mark.parametrize("system", sorted(set(SYSTEMS) - {"clip"}))  # CLIP trains nothing
def test_gradient_checkpointing_with_dropout(system):
    model = make_model(system).train()
    grads = gradients(model)
    enable_checkpointing(model)
    assert model.vision_model.encoder.gradient_checkpointing and grads
    calls = count_calls(
        model.vision_model.encoder.layers[0].layer_norm2,
        lambda: torch.testing.assert_close(gradients(model), grads, atol=1e-6, rtol=1e-4),
    )
    assert calls == 2  # forward, and again in backward


def count_calls(module: nn.Module, function) -> int:
    calls = []
    hook = module.register_forward_hook(lambda *_: calls.append(1))
    function()
    hook.remove()
    return len(calls)


@each_system
def test_offloading_to_disk(system, tmp_path):
    model = make_model(system)
    model.save_pretrained(tmp_path / "model")
    on_disk = ("vision_model", "visual_projection", "text_projection", "temporal_head")
    places = {"text_model": "cpu", "logit_scale": "cpu", **dict.fromkeys(on_disk, "disk")}
    offloaded = EZClipModel.from_pretrained(
        tmp_path / "model", device_map=places, offload_folder=tmp_path / "offloaded"
    ).eval()
    assert all(p.is_meta for p in offloaded.vision_model.parameters())
    torch.testing.assert_close(embed(offloaded), embed(model), atol=0, rtol=0)
    # Each module loads its own weights
    by_module = disk_offload(copy.deepcopy(model), tmp_path / "by module", execution_device=torch.device("cpu"))
    torch.testing.assert_close(embed(by_module), embed(model), atol=0, rtol=0)


@each_system
def test_device_map_auto(system, tmp_path):
    model = make_model(system)
    model.save_pretrained(tmp_path / "model")
    whole = sum(p.numel() for p in model.parameters()) * 4
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about weights on the disk
        places = infer_auto_device_map(
            model,
            max_memory={"cpu": whole * 3 // 4, "disk": whole * 2},
            no_split_module_classes=model._no_split_modules,
        )
    assert set(places.values()) == {"cpu", "disk"}
    kept_whole = [name for name, module in model.named_modules() if type(module).__name__ in model._no_split_modules]
    blocks = {f"{tower}.encoder.layers.1" for tower in ("vision_model", "text_model")}
    assert blocks | {"temporal_head"} <= set(kept_whole)
    assert not [(place, name) for place in places for name in kept_whole if place.startswith(f"{name}.")]
    placed = EZClipModel.from_pretrained(tmp_path / "model", device_map="auto").eval()
    torch.testing.assert_close(embed(placed), embed(model), atol=0, rtol=0)
    placed = EZClipModel.from_pretrained(
        tmp_path / "model", device_map=places, offload_folder=tmp_path / "offloaded"
    ).eval()
    torch.testing.assert_close(embed(placed), embed(model), atol=0, rtol=0)


# Compilation


def without_attention_dropout(model):
    """Switch off attention dropout: compiled attention draws other masks than eager."""
    for layer in model.vision_model.encoder.layers:
        layer.self_attn.dropout = 0.0
    return model


def assert_compiles(function):
    """Assert that a function is one graph, compiled twice: for the first batch size, and for any."""
    torch.compiler.reset()
    counter = CompileCounter()
    compiled = torch.compile(function, fullgraph=True, backend=counter)
    for batch_size in (3, 2, 5):
        inputs = make_inputs(batch_size)
        torch.manual_seed(0)
        expected = function(inputs)
        torch.manual_seed(0)
        torch.testing.assert_close(compiled(inputs), expected, atol=1e-6, rtol=1e-5)
    assert counter.frame_count == 2


# Dropout is the same in all systems except in one head, so training mode is fast-tested on two
@pytest.mark.parametrize(
    ("system", "training"),
    [
        pytest.param(system, training, marks=() if training and has_own_dropout else pytest.mark.slow)
        for training in (False, True)
        for system in SYSTEMS
        for has_own_dropout in [system in ("ezclip", "actionclip transformer_cls")]
    ],
)
def test_compiles_without_graph_breaks(system, training):
    model = without_attention_dropout(make_model(system)).train(training)
    assert_compiles(lambda inputs: model(**inputs, return_loss=True).loss)


@pytest.mark.parametrize("training", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("modality", ["video", "text"])
def test_tower_compiles(modality, training):
    model = without_attention_dropout(make_model("ezclip")).train(training)
    if modality == "video":
        assert_compiles(lambda inputs: model.get_video_features(inputs["pixel_values"]).pooler_output)
    else:
        assert_compiles(
            lambda inputs: model.get_text_features(inputs["input_ids"], inputs["attention_mask"]).pooler_output
        )


@pytest.mark.parametrize("system", ["ezclip", pytest.param("actionclip lstm", marks=pytest.mark.slow)])
def test_gradients_of_compiled_model(system):
    model = make_model(system)
    grads = gradients(model)
    torch.compiler.reset()
    model.compile(fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(gradients(model), grads, atol=1e-6, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("system", ["ezclip", "actionclip lstm"])  # each compiles for minutes
def test_inductor(system):
    model = make_model(system)
    embeds, grads = embed(model), gradients(model)
    torch.compiler.reset()
    model.compile(fullgraph=True)
    torch.testing.assert_close(embed(model), embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(gradients(model), grads, atol=1e-5, rtol=1e-3)


# Export


@pytest.mark.parametrize("system", some_fast("ezclip", "actionclip transformer_cls", "actionclip lstm"))
def test_video_tower_by_torch_export(system, tmp_path):
    assert_exports(VideoTower(make_model(system)), tmp_path, "torch_export")


@pytest.mark.parametrize("system", ["ezclip", pytest.param("clip", marks=pytest.mark.slow)])
def test_text_tower_by_torch_export(system, tmp_path):
    assert_exports(TextTower(make_model(system)), tmp_path, "torch_export")


@pytest.mark.parametrize("system", some_fast("ezclip"))
def test_video_tower_to_onnx(system, tmp_path):
    skip_without_onnx()
    assert_exports(VideoTower(make_model(system)), tmp_path, "onnx")


@pytest.mark.parametrize("system", ["ezclip", pytest.param("clip", marks=pytest.mark.slow)])
def test_text_tower_to_onnx(system, tmp_path):
    skip_without_onnx()
    assert_exports(TextTower(make_model(system)), tmp_path, "onnx")


def skip_without_onnx():
    for name in export_model.ONNX_PACKAGES:
        pytest.importorskip(name)


@torch.no_grad()
def assert_exports(tower, folder, file_format):
    """Assert that the file agrees with the tower on inputs and batch sizes that `export` did not try."""
    tower.eval()
    said = export(tower, folder, file_format)
    path = folder / f"{tower.name}{export_model.SUFFIXES[file_format]}"
    assert [path] == list(folder.iterdir()) and said.startswith(f"{path}: ")
    read = export_model.READ[file_format](path)
    for batch_size in (5, 1):
        inputs = make_inputs(batch_size, seed=7)
        names = ("pixel_values",) if isinstance(tower, VideoTower) else ("input_ids", "attention_mask")
        inputs = {name: inputs[name] for name in names}
        np.testing.assert_allclose(read(**inputs), tower(**inputs).numpy(), atol=1e-5, rtol=0)
    # The weights of the other tower are not in the file
    weights = sum(p.numel() * 4 for p in tower.parameters())
    assert weights < path.stat().st_size < 1.5 * weights + 400_000


@pytest.fixture
def processor(tiny_folder):
    return EZClipProcessor.from_pretrained(tiny_folder)


def test_exported_towers_classify(tiny_folder, tmp_path, processor, capsys):
    """Export by the command, and classify with the files."""
    export_model.main(["--model", str(tiny_folder), "--output_dir", str(tmp_path), "--format", "torch_export"])
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(
        f"{tmp_path / 'video_tower.pt2'}: pixel_values (batch, 8, 3, 32, 32) -> video_embeds, wi"
    )
    assert said[1].startswith(f"{tmp_path / 'text_tower.pt2'}: input_ids (batch, length), attention_mask (batch, len")
    videos = processor(videos=[random_clip(seed) for seed in range(3)], return_tensors="pt")
    labels = [" ".join(WORDS[3:5]), "blue circle", "green square moving left"]
    texts = processor(text=labels, return_tensors="pt", padding=True)
    video_embeds = torch.export.load(tmp_path / "video_tower.pt2").module()(**videos)
    text_embeds = torch.export.load(tmp_path / "text_tower.pt2").module()(**texts)
    with torch.no_grad():
        expected = EZClipModel.from_pretrained(tiny_folder).eval()(**videos, **texts)
    torch.testing.assert_close(video_embeds, expected.video_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(text_embeds, expected.text_embeds, atol=1e-5, rtol=0)
    probabilities = ClassBank(labels, text_embeds[None]).probabilities(video_embeds, logit_scale=100.0)
    scaled = 100 * expected.video_embeds @ expected.text_embeds.t()
    torch.testing.assert_close(probabilities, scaled.softmax(dim=-1), atol=1e-4, rtol=0)


def test_differing_export_is_not_written(tmp_path):
    class Differs(VideoTower):
        def forward(self, pixel_values):
            return super().forward(pixel_values) + 1e-3 * torch.compiler.is_compiling()

    (tmp_path / "video_tower.pt2").write_text("an earlier one")
    with pytest.raises(ModelError, match="video_tower as torch_export is 1.0e-03 from the model, more than 1e-04"):
        export(Differs(make_model("clip")).eval(), tmp_path, "torch_export")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["an earlier one"]


def test_export_errors(tiny_folder, tmp_path, monkeypatch):
    def refused(*argv):
        with pytest.raises(SystemExit) as caught:
            export_model.main(["--output_dir", str(tmp_path / "out"), *argv])
        return str(caught.value)

    assert "No model at 'no/model'" in refused("--model", "no/model", "--format", "torch_export")
    said = refused("--model", str(tiny_folder), "--format", "torch_export", "--num_frames", "16")
    assert "--num_frames 16 does not fit" in said and "takes 8 frames" in said
    monkeypatch.setattr(export_model, "find_spec", lambda name: None if name == "onnxscript" else name)
    said = refused("--model", str(tiny_folder), "--format", "onnx")
    assert said.endswith("--format onnx needs onnxscript: python -m pip install onnxscript")
    make_model("clip").save_pretrained(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 49407
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    said = refused("--model", str(tmp_path / "model"), "--format", "torch_export")
    assert "49407" in said
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("")
    for output_dir, reason in (("file", "File exists"), ("file/sub", "Not a directory")):
        said = refused(
            "--model", str(tiny_folder), "--format", "torch_export", "--output_dir", f"{tmp_path}/{output_dir}"
        )
        assert f"{output_dir} cannot be written" in said and reason in said


def test_export_num_frames(tmp_path):
    make_model("clip").save_pretrained(tmp_path / "model")
    argv = ("--model", tmp_path / "model", "--output_dir", tmp_path / "out", "--format", "torch_export")
    export_model.main([*map(str, argv), "--num_frames", "6"])
    tower = torch.export.load(tmp_path / "out" / "video_tower.pt2").module()
    assert tower(pixel_values=torch.ones(2, 6, 3, 32, 32)).shape == (2, 16)


# Quantisation and half precision


@each_system
def test_dynamic_quantisation(system):
    quantize_dynamic = getattr(torch.ao.quantization, "quantize_dynamic", None)
    if quantize_dynamic is None:
        pytest.skip("this PyTorch has no quantize_dynamic")
    model = make_model(system)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about its deprecation for torchao
        quantised = quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    layer = quantised.vision_model.encoder.layers[0]
    assert isinstance(layer.mlp.fc1, torch.ao.nn.quantized.dynamic.Linear)
    assert_near(quantised, model, 0.99)
    inputs = make_inputs()
    outputs = quantised(**inputs)  # gradients are on
    with torch.no_grad():
        torch.testing.assert_close(outputs.logits_per_video, quantised(**inputs).logits_per_video)


@each_system
@pytest.mark.parametrize("package", ["torchao", "bitsandbytes"])
def test_8_bit(system, package, tmp_path):
    pytest.importorskip(package)
    model = make_model(system)
    model.save_pretrained(tmp_path)
    if package == "torchao":
        from torchao.quantization import Int8WeightOnlyConfig

        quantization_config = TorchAoConfig(Int8WeightOnlyConfig())
    else:
        quantization_config = BitsAndBytesConfig(load_in_8bit=True)
    quantised = EZClipModel.from_pretrained(tmp_path, quantization_config=quantization_config, device_map="cpu").eval()
    weight = quantised.vision_model.encoder.layers[0].mlp.fc1.weight
    assert weight.dtype == torch.int8 or type(weight) is not nn.Parameter
    assert_near(quantised, model, 0.995)
    assert not torch.equal(embed(quantised)[0], embed(model)[0])


# Largest difference of a component of an embedding of length 1
@pytest.mark.parametrize(("dtype", "atol"), [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
@each_system
def test_half_precision(system, dtype, atol):
    model = make_model(system)
    embeds, inputs = embed(model), make_inputs()
    half = copy.deepcopy(model).to(dtype)
    outputs = half(**{**inputs, "pixel_values": inputs["pixel_values"].to(dtype)}, return_loss=True)
    assert outputs.video_embeds.dtype == outputs.text_embeds.dtype == outputs.frame_embeds.dtype == dtype
    assert outputs.loss.isfinite()
    for ours, theirs in zip((outputs.video_embeds, outputs.text_embeds), embeds):
        torch.testing.assert_close(ours.float(), theirs, atol=atol, rtol=0)
    # The processor returns float32 pixels
    torch.testing.assert_close(embed(half), (outputs.video_embeds, outputs.text_embeds), atol=0, rtol=0)
    with torch.autocast("cpu", dtype):
        torch.testing.assert_close(embed(model), embeds, atol=atol, rtol=0, check_dtype=False)
    if outputs.loss.requires_grad:
        outputs.loss.backward()
        assert all(p.grad.isfinite().all() for p in half.parameters() if p.grad is not None)
    assert_near(half.to(torch.float32), model, 0.999)


# Low-rank adaptation


@pytest.mark.parametrize("system", ["ezclip", "actionclip", "actionclip_tsm"])
def test_lora(system, tmp_path):
    peft = pytest.importorskip("peft")
    model, inputs = make_model(system), make_inputs()
    model.save_pretrained(tmp_path / "base")
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    # PEFT freezes everything else, our prompts and adapters too.
    trained = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 2 * 4 and all("lora_" in name for name in trained)
    adapted.train()
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for _ in range(5):
        losses.append(adapted(**inputs, return_loss=True).loss)
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    adapted.eval()
    embeds = embed(adapted)
    assert not torch.allclose(embed(EZClipModel.from_pretrained(tmp_path / "base").eval())[0], embeds[0], atol=1e-3)

    adapted.save_pretrained(tmp_path / "lora")
    base = EZClipModel.from_pretrained(tmp_path / "base")
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "lora").eval()
    torch.testing.assert_close(embed(loaded), embeds, atol=0, rtol=0)
    merged = loaded.merge_and_unload()
    assert isinstance(merged, EZClipModel)
    torch.testing.assert_close(embed(merged), embeds, atol=1e-5, rtol=0)
    merged.save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(embed(AutoModel.from_pretrained(tmp_path / "merged").eval()), embeds, atol=1e-5, rtol=0)
    unchanged = adapted.unload().state_dict()
    assert all(torch.equal(unchanged[name], weight) for name, weight in before.items())


def test_lora_beside_our_own_adapters(tmp_path):
    """`modules_to_save` trains and saves adapters; prompts are parameters, not modules, and stay frozen."""
    peft = pytest.importorskip("peft")
    model = make_model("ezclip")
    model.save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], modules_to_save=["adapter"])
    adapted = peft.get_peft_model(model, config)
    trained = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert sum("adapter.modules_to_save" in name for name in trained) == 2 * 2 * 4
    assert not any("temporal_prompt" in name for name in trained)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    embeds = embed(adapted.eval())
    adapted.save_pretrained(tmp_path / "lora")
    loaded = peft.PeftModel.from_pretrained(EZClipModel.from_pretrained(tmp_path / "base"), tmp_path / "lora").eval()
    torch.testing.assert_close(embed(loaded), embeds, atol=0, rtol=0)
    torch.testing.assert_close(embed(loaded.merge_and_unload()), embeds, atol=1e-5, rtol=0)


# Copies


@each_system
def test_copies(system):
    model = make_model(system).train()
    trainable = [p.requires_grad for p in model.parameters()]
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for copied in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(buffer, weights_only=False),
    ):
        assert copied.training and [p.requires_grad for p in copied.parameters()] == trainable
        torch.testing.assert_close(embed(copied.eval()), embed(model.eval()), atol=0, rtol=0)
        assert copied.config.to_dict() == model.config.to_dict()
        with torch.no_grad():  # the copy has its own weights
            copied.visual_projection.weight.zero_()
        assert model.train().visual_projection.weight.any()
