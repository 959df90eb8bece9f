"""The kernels of a CPU: the same numbers as PyTorch's, chosen by a measurement that changes nothing else."""

import copy

import pytest
import torch
from torch import nn

import modeling_ezclip
from modeling_ezclip import CpuKernels, EZClipModel, KernelTrial
from tests.helpers import make_inputs, make_model
from tests.test_golden import TINY, Golden


LINEAR, FUSED = "mkldnn::_linear_pointwise", "aten::_scaled_dot_product_flash_attention_for_cpu"

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")


@pytest.fixture(autouse=True)
def small_products(monkeypatch):
    """Let the kernels take products of any size."""
    monkeypatch.setattr(modeling_ezclip, "LEAST_PRODUCT", 0)


@pytest.fixture(params=["torch", "own"])
def kernels(request, monkeypatch):
    monkeypatch.setenv("EZCLIP_CPU_KERNELS", request.param)
    return request.param


def called(function) -> set[str]:
    """Return the names of the operators that a function calls."""
    with torch.profiler.profile() as profile:
        function()
    return {event.name for event in profile.events()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_of_a_model(kernels, dtype):
    model, inputs = make_model().to(dtype), make_inputs()

    def run():
        with torch.no_grad():
            model(**{name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()})

    names = called(run)
    assert (LINEAR in names) == (kernels == "own")
    assert ("aten::_softmax" in names) == (kernels == "own")


@pytest.mark.parametrize("case", ["ezclip_tiny", "actionclip_tiny"])
def test_published_outputs(case, kernels, tmp_path):
    golden = Golden(TINY / case, tmp_path)
    model = EZClipModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        outputs = model(pixel_values=golden["pixel_values"], input_ids=golden["token_ids"])
        rounded = model.bfloat16().get_video_features(golden["pixel_values"].bfloat16()).pooler_output
    torch.testing.assert_close(outputs.frame_embeds, golden["frame_embeds"], atol=2e-5, rtol=0)
    torch.testing.assert_close(outputs.text_model_output.pooler_output, golden["text_embeds"], atol=2e-5, rtol=0)
    cosines = nn.functional.cosine_similarity(rounded.float(), golden["video_embeds"])
    assert cosines.min() > 0.999


@pytest.mark.parametrize("trains_all", [False, True])
def test_gradients(trains_all, monkeypatch):
    found = {}
    for kernels in ("torch", "own"):
        monkeypatch.setenv("EZCLIP_CPU_KERNELS", kernels)
        model = make_model().train()
        for parameter in model.parameters():
            parameter.requires_grad_(trains_all or parameter.requires_grad)
        inputs = {**make_inputs(), "labels": torch.arange(3)}
        torch.manual_seed(0)
        model(**inputs).loss.backward()
        found[kernels] = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found["own"].keys() == found["torch"].keys()
    for name, grad in found["torch"].items():
        torch.testing.assert_close(found["own"][name], grad, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("length, num_keys", [(1, 5), (17, 18), (50, 50)])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_attention(dtype, tolerance, length, num_keys, monkeypatch):
    monkeypatch.setenv("EZCLIP_CPU_KERNELS", "own")
    monkeypatch.setattr(modeling_ezclip, "SCORES_PER_CHUNK", 3 * length * num_keys)  # 8 rows: a last chunk of 2
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, size, 4, 8).to(dtype).transpose(1, 2) for size in (length, num_keys, num_keys))
    for scale in (None, 0.1):
        expected = nn.functional.scaled_dot_product_attention(query, key, value, scale=scale)
        with CpuKernels():
            attended = nn.functional.scaled_dot_product_attention(query, key, value, scale=scale)
        torch.testing.assert_close(attended, expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("options", [{"dropout_p": 0.5}, {"is_causal": True}, {"attn_mask": torch.zeros(4, 4)}, {}])
def test_attention_that_needs_more(options, monkeypatch):
    monkeypatch.setenv("EZCLIP_CPU_KERNELS", "own")
    states = torch.randn(2, 3, 4, 8, requires_grad=not options)  # the last case: products would store all weights

    def run():
        with CpuKernels():
            nn.functional.scaled_dot_product_attention(states, states, states, **options)

    assert "aten::_softmax" not in called(run) or "dropout_p" in options
    assert "aten::scaled_dot_product_attention" in called(run)


def test_autocast_keeps_its_dtype(kernels):
    model, inputs = make_model(), make_inputs()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        embeds = model.get_video_features(inputs["pixel_values"]).frame_embeds
    assert embeds.dtype == torch.bfloat16 and embeds.isfinite().all()


def test_measurement_changes_nothing_else(monkeypatch):
    monkeypatch.delenv("EZCLIP_CPU_KERNELS", raising=False)
    modeling_ezclip.try_linear.cache_clear()
    modeling_ezclip.try_attention.cache_clear()
    precision, model, inputs = torch.get_float32_matmul_precision(), make_model(), make_inputs()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    with torch.no_grad():
        model(**inputs)
    assert modeling_ezclip.try_linear.cache_info().misses == 1
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_float32_matmul_precision() == precision
    left, weight = torch.randn(4, 8), torch.randn(8, 8)
    assert LINEAR not in called(lambda: nn.functional.linear(left, weight))  # outside the model


def test_choice():
    assert KernelTrial(time=0.5, error=1.5, is_equal=False).is_better
    assert not KernelTrial(time=0.9, error=1.0, is_equal=False).is_better  # noise could change the choice
    assert KernelTrial(time=0.9, error=1.0, is_equal=True).is_better
    assert not KernelTrial(time=1.1, error=1.0, is_equal=True).is_better
    assert not KernelTrial(time=0.5, error=1000.0, is_equal=False).is_better  # bfloat16 in place of float32


def test_unknown_choice(monkeypatch):
    monkeypatch.setenv("EZCLIP_CPU_KERNELS", "mkl")
    with pytest.raises(ValueError, match="EZCLIP_CPU_KERNELS.*auto, torch, own.*'mkl'"):
        make_model()(**make_inputs())


def test_checkpoint_is_the_same(tmp_path, kernels):
    model = make_model()
    model.save_pretrained(tmp_path)
    assert "KERNELS" not in (tmp_path / "config.json").read_text(encoding="utf-8").upper()
    assert type(copy.deepcopy(model).vision_model.encoder.layers[0].mlp.fc1) is nn.Linear


@pytest.mark.parametrize("bias", [torch.randn(16)[::2], torch.randn(1).expand(8)], ids=["strided", "expanded"])
def test_bias_with_strides(monkeypatch, bias):
    monkeypatch.setenv("EZCLIP_CPU_KERNELS", "own")
    inputs, weight = torch.randn(5, 6), torch.randn(8, 6)
    with CpuKernels():
        found = nn.functional.linear(inputs, weight, bias)
    torch.testing.assert_close(found, nn.functional.linear(inputs, weight, bias))


@pytest.mark.parametrize("key, value", [((2, 3, 5, 8), (2, 3, 5, 4)), ((1, 3, 5, 8), (1, 3, 5, 8))])
def test_attention_of_other_shapes(monkeypatch, key, value):
    monkeypatch.setenv("EZCLIP_CPU_KERNELS", "own")
    inputs = torch.randn(2, 3, 7, 8), torch.randn(key), torch.randn(value)
    with CpuKernels():
        found = nn.functional.scaled_dot_product_attention(*inputs)
    torch.testing.assert_close(found, nn.functional.scaled_dot_product_attention(*inputs))
