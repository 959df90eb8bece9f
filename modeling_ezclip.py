"""CLIP over time, in PyTorch: EZ-CLIP's prompts and adapters; ActionCLIP's shift, joint attention and heads.

EZ-CLIP: Ahmad, Chanda and Rawat, "EZ-CLIP: Efficient Zeroshot Video Action Recognition", published again as
"T2L: Efficient Zero-Shot Action Recognition with Temporal Token Learning" (the same code; there the prompts are
"Temporal Token Learning" and the motion loss is "Temporal Feature Diversity"). ActionCLIP: Wang, Xing and Liu,
"ActionCLIP: A New Paradigm for Video Action Recognition". Names in quotation marks below are those of the original
implementations.

State-dict keys are CLIP's, so a CLIP checkpoint loads with only prompts, adapters and temporal head missing.
"""

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial, wraps
from typing import TYPE_CHECKING, Any, NamedTuple, Unpack

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint
from transformers import (
    AltCLIPTextModel,
    ChineseCLIPTextModel,
    CLIPTextModel,
    CLIPVisionModel,
    MetaClip2TextConfig,
    PretrainedConfig,
    Siglip2TextModel,
    Siglip2VisionModel,
    SiglipTextModel,
    SiglipVisionModel,
    TimmWrapperModel,
    initialization as init,
)
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.models.altclip.modeling_altclip import AltRobertaLayer
from transformers.models.chinese_clip.modeling_chinese_clip import ChineseCLIPTextLayer
from transformers.models.clip.modeling_clip import (
    CLIPMLP,
    CLIPAttention,
    CLIPEncoder,
    CLIPEncoderLayer,
    CLIPPreTrainedModel,
    CLIPTextEmbeddings,
    CLIPVisionEmbeddings,
    eager_attention_forward,
)
from transformers.utils import ModelOutput, TransformersKwargs, cached_file, logging
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs


try:
    from .checkpoint_ezclip import HUB_OPTIONS, MAY_BE_ABSENT, LoadTrainedMixin, SaveTrainedMixin, is_added_to_clip
    from .configuration_ezclip import (
        CLASS_BANK_NAME,
        EZClipAltCLIPTextConfig,
        EZClipChineseCLIPTextConfig,
        EZClipConfig,
        EZClipSiglip2TextConfig,
        EZClipSiglip2VisionConfig,
        EZClipSiglipTextConfig,
        EZClipSiglipVisionConfig,
        EZClipTextConfig,
        EZClipTimmVisionConfig,
        EZClipVisionConfig,
    )
except ImportError:
    if __package__:  # in a remote-code folder, a missing dependency must keep its own message
        raise
    from checkpoint_ezclip import HUB_OPTIONS, MAY_BE_ABSENT, LoadTrainedMixin, SaveTrainedMixin, is_added_to_clip
    from configuration_ezclip import (
        CLASS_BANK_NAME,
        EZClipAltCLIPTextConfig,
        EZClipChineseCLIPTextConfig,
        EZClipConfig,
        EZClipSiglip2TextConfig,
        EZClipSiglip2VisionConfig,
        EZClipSiglipTextConfig,
        EZClipSiglipVisionConfig,
        EZClipTextConfig,
        EZClipTimmVisionConfig,
        EZClipVisionConfig,
    )


if TYPE_CHECKING:
    # `save_pretrained` copies the modules that this one imports, and transformers up to 5.6 loads only those. So name
    # all that the pipeline and the processor need.
    from .pipeline_ezclip import ZeroShotVideoClassificationPipeline  # noqa: F401
    from .processing_ezclip import EZClipProcessor  # noqa: F401
    from .video_ezclip import read_frames  # noqa: F401


logger = logging.get_logger(__name__)


# ---- Packed texts ----


# The nodes of a row attend to each other; at this length, attention costs less than a tenth of the text tower.
NODES_PER_ROW = 256


@dataclass
class PackedTexts:
    """
    N texts as prefix trees, so that a causal tower computes each shared prefix once.

    A node is a token after certain other tokens. "archery", "archery, an action" and "archery this is an action" share
    two nodes. A row holds as many texts as fit into K nodes; there are R rows.

    Args:
        input_ids (`torch.LongTensor` of shape `(R, K)`):
            Token of each node.
        position_ids (`torch.LongTensor` of shape `(R, K)`):
            Position of each node in its texts.
        attention_mask (`torch.BoolTensor` of shape `(R, 1, K, K)`):
            Which nodes each node attends to: itself and its prefix.
        ends (`torch.LongTensor` of shape `(R, E)`):
            Nodes that end a text, by row, padded with 0.
        text_index (`torch.LongTensor` of shape `(2, N)`):
            Row and column of each text in `ends`.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    attention_mask: torch.Tensor
    ends: torch.Tensor
    text_index: torch.Tensor

    @classmethod
    def pack(cls, texts: Sequence[Sequence[int]], device: torch.device) -> "PackedTexts":
        """Pack texts, given as tokens without padding, at least one each, and put the tensors on `device`."""
        capacity, rows = max(NODES_PER_ROW, *map(len, texts)), []
        text_index = np.empty((2, len(texts)), dtype=np.int64)
        for index in sorted(range(len(texts)), key=lambda index: texts[index]):
            if not rows or not rows[-1].has_room(texts[index], capacity):
                rows.append(_PackedRow())
            text_index[:, index] = len(rows) - 1, rows[-1].add(texts[index])
        size, num_ends = max(len(row.nodes) for row in rows), max(len(row.ends) for row in rows)
        input_ids, position_ids = np.zeros((2, len(rows), size), dtype=np.int64)
        attention_mask = np.zeros((len(rows), 1, size, size), dtype=bool)
        attention_mask[..., 0] = True  # padding attends to the first node, because a softmax over nothing is NaN
        ends = np.zeros((len(rows), num_ends), dtype=np.int64)
        for index, row in enumerate(rows):
            ends[index, : len(row.ends)] = row.ends
            mask = attention_mask[index, 0]
            for node, (parent, token) in enumerate(row.nodes):
                mask[node] = False if parent is None else mask[parent]
                position_ids[index, node] = 0 if parent is None else position_ids[index, parent] + 1
                mask[node, node] = True
                input_ids[index, node] = token
        tensors = (input_ids, position_ids, attention_mask, ends, text_index)
        return cls(*(torch.from_numpy(tensor).to(device) for tensor in tensors))


class _PackedRow:
    def __init__(self):
        self.nodes: dict[tuple[int | None, int], int] = {}  # (parent, token) -> node; parents come first
        self.ends: list[int] = []

    def has_room(self, tokens: Sequence[int], capacity: int) -> bool:
        node, shared = None, 0
        while shared < len(tokens) and (node := self.nodes.get((node, tokens[shared]))) is not None:
            shared += 1
        return len(self.nodes) + len(tokens) - shared <= capacity

    def add(self, tokens: Sequence[int]) -> int:
        node = None
        for token in tokens:
            node = self.nodes.setdefault((node, token), len(self.nodes))
        self.ends.append(node)
        return len(self.ends) - 1


# ---- Kernels of a CPU ----


# The environment variable that chooses the kernels on a CPU: "auto" measures, "torch" takes PyTorch's, "own" ours.
KERNELS_VARIABLE = "EZCLIP_CPU_KERNELS"
KERNELS = ("auto", "torch", "own")
# A kernel that rounds differently must be this much faster, so that a noisy measurement does not change results.
OWN_KERNEL_SPEEDUP = 1.25
# Its error against float64 may be this multiple of the error of PyTorch's kernel.
OWN_KERNEL_ERROR = 3
# Smaller products have nothing to gain. (multiply-accumulates)
LEAST_PRODUCT = 2**22
# Scores that attention holds at a time; more leave the processor's cache.
SCORES_PER_CHUNK = 2**20


class KernelTrial(NamedTuple):
    """The measured time and error of an own kernel, each divided by that of PyTorch's kernel."""

    time: float
    error: float
    is_equal: bool

    @property
    def is_better(self) -> bool:
        """Return whether to use the own kernel."""
        least_gain = 1 if self.is_equal else OWN_KERNEL_SPEEDUP
        return self.time * least_gain < 1 and self.error <= OWN_KERNEL_ERROR


def uses_own_kernel(trial: Callable[..., KernelTrial], *case: Any) -> bool:
    """Return whether a product runs in our kernel. By default `trial(*case)` decides, once in a process."""
    choice = os.environ.get(KERNELS_VARIABLE, "auto")
    if choice not in KERNELS:
        raise ValueError(f"{KERNELS_VARIABLE} must be one of {', '.join(KERNELS)}, got {choice!r}.")
    return trial(*case, torch.get_num_threads()).is_better if choice == "auto" else choice == "own"


@torch.no_grad()
def compare_kernels(
    own: Callable[..., torch.Tensor], torch_kernel: Callable[..., torch.Tensor], inputs: list[torch.Tensor]
) -> KernelTrial:
    """Time two kernels in turn, nine times each, and compare their errors against float64."""
    seconds, results = {own: math.inf, torch_kernel: math.inf}, {}
    with torch.autocast("cpu", enabled=False):
        for _ in range(9):
            for kernel in (own, torch_kernel):
                start = time.perf_counter()
                results[kernel] = kernel(*inputs)
                seconds[kernel] = min(seconds[kernel], time.perf_counter() - start)
        exact = torch_kernel(*(tensor.double() for tensor in inputs))
    errors = {kernel: torch.dist(result.double(), exact).item() for kernel, result in results.items()}
    return KernelTrial(
        seconds[own] / seconds[torch_kernel],
        errors[own] / errors[torch_kernel],
        torch.equal(results[own], results[torch_kernel]),
    )


def random_inputs(dtype: torch.dtype, *shapes: tuple[int, ...]) -> list[torch.Tensor]:
    """Return the inputs of a trial. They leave PyTorch's random state as it is."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


class OneDNNLinear(torch.autograd.Function):
    """A linear layer by oneDNN. PyTorch takes MKL for float32, which is half as fast on some processors."""

    generate_vmap_rule = True

    @staticmethod
    def multiply(left: torch.Tensor, right: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Return `left @ right.T + bias`."""
        return torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")

    @staticmethod
    def forward(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Return `inputs @ weight.T + bias`."""
        return OneDNNLinear.multiply(inputs, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: torch.Tensor):
        """Store what backward needs. A frozen weight needs no input."""
        hidden_states, weight, _ = inputs
        ctx.save_for_backward(hidden_states if ctx.needs_input_grad[1] else None, weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the gradients of inputs, weight and bias."""
        (grad,), (hidden_states, weight) = grads, ctx.saved_tensors
        needs_input, needs_weight, needs_bias = ctx.needs_input_grad
        rows = grad.flatten(0, -2)
        return (
            OneDNNLinear.multiply(grad, weight.t()) if needs_input else None,
            OneDNNLinear.multiply(rows.t(), hidden_states.flatten(0, -2).t()) if needs_weight else None,
            rows.sum(0) if needs_bias else None,
        )


def attend_by_products(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None = None
) -> torch.Tensor:
    """Attend `(B, heads, L, d)` by two products, with a cache of scores at a time. Scores have the dtype of inputs."""
    batch_size, num_heads, length, head_dim = query.shape
    scaled = query * (head_dim**-0.5 if scale is None else scale)
    query, key, value = (part.reshape(batch_size * num_heads, -1, head_dim) for part in (scaled, key, value))
    chunk = max(1, SCORES_PER_CHUNK // (length * key.shape[1]))
    buffer = query.new_empty(min(chunk, len(query)), length, key.shape[1])
    attended = torch.empty_like(query)
    for q, k, v, out in zip(*(part.split(chunk) for part in (query, key, value, attended))):
        scores = torch.bmm(q, k.transpose(1, 2), out=buffer[: len(q)])
        torch.bmm(torch.softmax(scores, -1, out=scores), v, out=out)
    return attended.view(batch_size, num_heads, length, head_dim)


@lru_cache
def try_linear(dtype: torch.dtype, num_threads: int) -> KernelTrial:
    """Compare oneDNN's linear layer with PyTorch's at the width of ViT-B."""
    inputs = random_inputs(dtype, (256, 768), (768, 768), (768,))
    return compare_kernels(OneDNNLinear.multiply, nn.functional.linear, inputs)


@lru_cache
def try_attention(
    dtype: torch.dtype, num_heads: int, length: int, num_keys: int, head_dim: int, num_threads: int
) -> KernelTrial:
    """Compare attention by products with PyTorch's fused attention, on two frames."""
    shapes = [(2, size, num_heads, head_dim) for size in (length, num_keys, num_keys)]
    inputs = [tensor.transpose(1, 2) for tensor in random_inputs(dtype, *shapes)]
    return compare_kernels(attend_by_products, nn.functional.scaled_dot_product_attention, inputs)


def _are_plain(*tensors: Any) -> bool:
    """Return whether tensors are of one dtype that the kernels take, on a CPU, and neither quantised nor sharded."""
    dtype = tensors[0].dtype
    return dtype in (torch.float32, torch.bfloat16) and all(
        type(one) in (torch.Tensor, nn.Parameter) and one.device.type == "cpu" and one.dtype == dtype
        for one in tensors
    )


class CpuKernels(TorchFunctionMode):
    """
    Run linear layers and attention in the kernels that are measured to be faster, on a CPU, within a `with` block.

    Float32 products go to oneDNN where that is faster and as exact as MKL. Attention without gradients, mask and
    dropout is two plain products where those are faster, which is so in bfloat16. A kernel is tried for some
    milliseconds when it is first needed. PyTorch's global settings stay as they are. The environment variable
    `EZCLIP_CPU_KERNELS` is `"auto"` (the default), `"torch"` (PyTorch's kernels) or `"own"`.
    """

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Replace the calls of two functions."""
        kwargs = kwargs or {}
        if func is nn.functional.linear and not kwargs:
            return self._linear(*args)
        if func is nn.functional.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        return func(*args, **kwargs)

    def _linear(self, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        if (
            inputs.dim() > 1
            and inputs.numel() * len(weight) >= LEAST_PRODUCT
            and _are_plain(inputs, weight, *(() if bias is None else (bias,)))
            # oneDNN reads a bias as if it were contiguous.
            and (bias is None or (bias.shape == weight.shape[:1] and bias.is_contiguous()))
            and not torch.is_autocast_enabled("cpu")
            and torch.backends.mkldnn.is_available()
            and uses_own_kernel(try_linear, weight.dtype)
        ):
            return OneDNNLinear.apply(inputs, weight, bias)  # pyright: ignore[reportReturnType]
        return nn.functional.linear(inputs, weight, bias)

    def _attention(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        needs_grad = torch.is_grad_enabled() and any(one.requires_grad for one in (query, key, value))
        if (
            attn_mask is None
            and dropout_p == 0.0
            and not is_causal
            and not needs_grad
            and query.dim() == 4
            and key.shape == value.shape == (*query.shape[:2], key.shape[-2], query.shape[-1])
            and query.numel() * key.shape[2] >= LEAST_PRODUCT
            and _are_plain(query, key, value)
        ):
            (_, num_heads, length, head_dim), num_keys = query.shape, key.shape[2]
            if uses_own_kernel(try_attention, query.dtype, num_heads, length, num_keys, head_dim):
                with torch.autocast("cpu", enabled=False):
                    return attend_by_products(query, key, value, scale)
        return nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **kwargs
        )


def describe_cpu_kernels(dtype: torch.dtype, autocast: bool = False) -> str:
    """Return which kernels ViT-B/16 takes on this CPU in float32 or bfloat16, and how they were chosen."""
    trials = {"linear layers": (try_linear, dtype), "attention": (try_attention, dtype, 12, 197, 197, 64)}
    parts, choice = [], os.environ.get(KERNELS_VARIABLE, "auto")
    for name, (trial, *case) in trials.items():
        takes_own = trial is try_attention or (not autocast and torch.backends.mkldnn.is_available())
        is_own = takes_own and uses_own_kernel(trial, *case)
        part = f"{name} by {('oneDNN' if trial is try_linear else 'two products') if is_own else 'PyTorch'}"
        if is_own and choice == "auto":
            part += f" ({trial(*case, torch.get_num_threads()).time:.2f} of the time of PyTorch's)"
        parts.append(part)
    return f"CPU kernels ({KERNELS_VARIABLE}={choice}), {str(dtype).removeprefix('torch.')}: {', '.join(parts)}."


def with_cpu_kernels(method: Callable) -> Callable:
    """Decorate a method of a block to run in [`CpuKernels`], also when a checkpointed block is computed again.

    A graph that is compiled or exported holds PyTorch's kernels.
    """

    @wraps(method)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        with contextlib.nullcontext() if torch.compiler.is_compiling() else CpuKernels():
            return method(*args, **kwargs)

    return wrapper


# ---- Blocks ----


# Index of tokens in `(B, L)`; `None` selects all.
QueryIndex = tuple[slice | torch.Tensor, slice | torch.Tensor] | None


def select_queries(hidden_states: torch.Tensor, query_index: QueryIndex) -> torch.Tensor:
    """Select the tokens of `(B, L, D)` used as queries."""
    return hidden_states if query_index is None else hidden_states[query_index]


class EZClipDropPath(nn.Module):
    """Stochastic depth by sample: drops a residual branch for a whole video, all its frames together.

    (The original's "DropPath" runs on (L, N, D) tensors and so drops token positions.)
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, hidden_states: torch.Tensor, num_frames: int = 1) -> torch.Tensor:
        """Drop the branch of each video, `num_frames` rows of `(B * T, L, D)`, with probability `rate`."""
        if self.rate == 0.0 or not self.training:
            return hidden_states
        num_samples = hidden_states.shape[0] // num_frames
        keep = hidden_states.new_empty((num_samples, 1, 1)).bernoulli_(1.0 - self.rate).div_(1.0 - self.rate)
        return hidden_states * keep.repeat_interleave(num_frames, dim=0)

    def extra_repr(self) -> str:
        """Return the rate, for `repr`."""
        return f"rate={self.rate}"


class EZClipAdapter(nn.Module):
    """Bottleneck with an exact GELU ("Adapter"). The caller adds the residual; a fresh adapter outputs zero."""

    def __init__(self, config: PretrainedConfig):
        super().__init__()
        bottleneck = int(config.hidden_size * config.adapter_ratio)
        self.down_proj = nn.Linear(config.hidden_size, bottleneck)
        self.up_proj = nn.Linear(bottleneck, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return what is added to `hidden_states`."""
        return self.up_proj(nn.functional.gelu(self.down_proj(hidden_states)))


class EZClipQuickGELU(nn.Module):
    """CLIP's `x * sigmoid(1.702 x)` in fewer memory passes; backward keeps one tensor of the input's size."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Apply the activation; the input is left as it is."""
        scaled = 1.702 * hidden_states
        return nn.functional.silu(scaled, inplace=not scaled.requires_grad).mul_(1 / 1.702)


class EZClipAttention(CLIPAttention):
    """CLIP's attention, optionally with fewer queries, and with tokens that are only keys and values."""

    def forward(
        self,
        hidden_states: torch.Tensor,  # [B, L, D]
        attention_mask: torch.Tensor | None = None,
        query_index: QueryIndex = None,
        key_value_only: torch.Tensor | None = None,  # [B, M, D]
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the attended queries, and the attention weights where the implementation is eager."""
        implementation = self.config._attn_implementation
        returns_weights = query_index is None and implementation == "eager"
        if key_value_only is not None and attention_mask is not None:
            added = key_value_only.shape[1]  # every token attends to them
            padding = (0, added, 0, added * returns_weights)
            attention_mask = nn.functional.pad(
                attention_mask, padding, value=float(attention_mask.dtype == torch.bool)
            )
        if key_value_only is not None and returns_weights:
            # Eager attention must return weights for every token, so append the key/value-only tokens first.
            tokens = torch.cat([hidden_states, key_value_only], dim=1)
            attended, weights = self.forward(tokens, attention_mask, **kwargs)
            return attended[:, : hidden_states.shape[1]], weights

        queries = self.q_proj(select_queries(hidden_states, query_index))
        keys, values = self.k_proj(hidden_states), self.v_proj(hidden_states)
        if key_value_only is not None:
            # Concatenated after the projections: tokens that need no gradient then get none computed.
            keys = torch.cat([keys, self.k_proj(key_value_only)], dim=1)
            values = torch.cat([values, self.v_proj(key_value_only)], dim=1)
        queries, keys, values = (
            states.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for states in (queries, keys, values)
        )

        dropout = self.dropout if self.training else 0.0
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        attended, weights = attention(
            self, queries, keys, values, attention_mask, scaling=self.scale, dropout=dropout, **kwargs
        )
        return self.out_proj(attended.flatten(2)), weights


class EZClipMLP(CLIPMLP):
    """CLIP's MLP, with [`EZClipQuickGELU`] in place of "quick_gelu"."""

    def __init__(self, config: Any):
        super().__init__(config)
        if config.hidden_act == "quick_gelu":
            self.activation_fn = EZClipQuickGELU()


class EZClipLayer(CLIPEncoderLayer):
    """CLIP's block with an adapter between attention and MLP, and dropout that grows with depth.

    SigLIP's blocks have the same parts and names, so [`extend`] makes this class of them.
    """

    def __init__(self, config: Any, layer_idx: int):
        GradientCheckpointingLayer.__init__(self)
        self.embed_dim = config.hidden_size
        self.self_attn = EZClipAttention(config)
        self.layer_norm1 = nn.LayerNorm(self.embed_dim, eps=config.layer_norm_eps)
        self.mlp = EZClipMLP(config)
        self.layer_norm2 = nn.LayerNorm(self.embed_dim, eps=config.layer_norm_eps)
        self.add_parts(config, layer_idx)

    @classmethod
    def extend(cls, layer: Any, config: PretrainedConfig, layer_idx: int):
        """Turn a block of another tower into one of this class. The names of its weights stay."""
        layer.__class__ = cls
        layer.self_attn.__class__ = EZClipAttention
        layer.add_parts(config, layer_idx)

    def add_parts(self, config: PretrainedConfig, layer_idx: int):
        """Add what the block has besides CLIP's."""
        depth = layer_idx / max(config.num_hidden_layers - 1, 1)
        self.set_attention_dropout(config.attention_dropout * depth)
        self.drop_path = EZClipDropPath(config.drop_path_rate * depth)
        self.adapter = EZClipAdapter(config) if config.use_adapter else None

    def set_attention_dropout(self, rate: float):
        """Set the dropout of the attention weights."""
        self.self_attn.dropout = rate

    @with_cpu_kernels
    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        query_index: QueryIndex = None,
        **kwargs,
    ):
        """Return the tokens of `query_index` after the block; the other tokens are only attended to."""
        normed = self.layer_norm1(hidden_states)
        attn_output, _ = self.self_attn(normed, attention_mask, query_index=query_index, **kwargs)
        return self.adapt_and_mix(select_queries(hidden_states, query_index) + self.drop_path(attn_output))

    def adapt_and_mix(self, hidden_states: torch.Tensor, num_frames: int = 1) -> torch.Tensor:
        """Apply the adapter and the MLP, each with its residual."""
        # A quantised layer has a method `weight`, and is frozen too.
        is_frozen = not getattr(self.mlp.fc1.weight, "requires_grad", False)
        if torch.is_grad_enabled() and is_frozen and not torch.compiler.is_compiling():
            # A frozen MLP saves no input for backward, and its input is cheap to compute again.
            hidden_states, normed = checkpoint(self._adapt, hidden_states, use_reentrant=False)
        else:
            hidden_states, normed = self._adapt(hidden_states)
        return hidden_states + self.drop_path(self.mlp(normed), num_frames)

    @with_cpu_kernels
    def _adapt(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.adapter is not None:
            hidden_states = hidden_states + self.adapter(hidden_states)
        return hidden_states, self.layer_norm2(hidden_states)


class EZClipTemporalMixing(nn.Module):
    """A block's attention over the summaries of a video's frames: `output_temporal_attentions` records this module.

    (With "Attention" in its name, transformers would take it for a module that computes attention.)
    """

    def forward(self, self_attn: EZClipAttention, summaries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the attended summaries `(B, T, D)`, and the attention weights where attention is eager."""
        # `forward`, not `__call__`: the block's recorded attention is the one over its tokens.
        return self_attn.forward(summaries)


class EZClipVisionLayer(EZClipLayer):
    """A vision block that connects frames: by a prompted token per frame, by attention over time, or by a shift."""

    def add_parts(self, config: PretrainedConfig, layer_idx: int):
        """Add what the block has besides CLIP's."""
        super().add_parts(config, layer_idx)
        has_prompt = config.temporal_prompt == "deep" or (config.temporal_prompt == "shallow" and layer_idx == 0)
        # "T_prompt_embeddings[layer_idx]"
        self.temporal_prompt = nn.Parameter(torch.empty(config.num_frames, config.hidden_size)) if has_prompt else None
        self.temporal_prompt_dropout = nn.Dropout(config.temporal_prompt_dropout)
        self.temporal_mixing = EZClipTemporalMixing()
        self.temporal_prompt_init_range = config.temporal_prompt_init_range
        self.temporal_adapter = EZClipAdapter(config) if config.use_temporal_adapter else None
        self.use_temporal_shift = config.use_temporal_shift

    @with_cpu_kernels
    def forward(
        self,
        hidden_states: torch.Tensor,  # [B * T, L, D]
        attention_mask: torch.Tensor | None = None,
        num_frames: int = 1,
        query_index: QueryIndex = None,
        **kwargs,
    ):
        """Return the tokens of `query_index` after the block."""
        if self.use_temporal_shift:
            hidden_states = self.shift_over_time(hidden_states, num_frames)
        if self.temporal_adapter is not None:
            hidden_states = hidden_states + self.temporal_adapter(self.attend_over_time(hidden_states, num_frames))
        if self.temporal_prompt is not None:
            tokens = self.temporal_tokens(hidden_states, num_frames, attention_mask)
            kwargs["key_value_only"] = self.layer_norm1(tokens)
        normed = self.layer_norm1(hidden_states)
        attn_output, _ = self.self_attn(normed, attention_mask, query_index=query_index, **kwargs)
        hidden_states = select_queries(hidden_states, query_index) + self.drop_path(attn_output, num_frames)
        return self.adapt_and_mix(hidden_states, num_frames)

    def temporal_tokens(
        self, hidden_states: torch.Tensor, num_frames: int, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return one token a frame, `(B * T, 1, D)`: the mean of its tokens plus its prompt, attended over the frames.

        The attention is the block's own, without a residual. `attention_mask` `(B * T, 1, L, L)` tells padding.
        """
        batch_frames, _, dim = hidden_states.shape
        if attention_mask is None:
            summaries = hidden_states.mean(dim=1)
        else:
            mask = attention_mask[:, 0, :1].transpose(1, 2)  # [B * T, L, 1]
            is_token = mask if mask.dtype == torch.bool else mask == 0
            summaries = (hidden_states * is_token).sum(dim=1) / is_token.sum(dim=1)
        summaries = summaries.view(-1, num_frames, dim)  # [B, T, D]
        summaries = summaries + self.temporal_prompt_dropout(self.temporal_prompt)
        summaries = self.attend_to_frames(self.layer_norm1(summaries))
        return self.drop_path(summaries).reshape(batch_frames, 1, dim)

    def attend_to_frames(self, summaries: torch.Tensor) -> torch.Tensor:
        """Apply the block's attention to the summaries `(B, T, D)` of the frames."""
        return self.temporal_mixing(self.self_attn, summaries)[0]

    def attend(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Apply the block's attention to sequences of tokens over time."""
        return self.self_attn.forward(hidden_states)[0]

    def shift_over_time(self, hidden_states: torch.Tensor, num_frames: int) -> torch.Tensor:
        """Take an eighth of the patches' channels from the next frame and one from the previous, zero at the ends.

        ("TemporalShift"; the CLS token and the other channels stay.)
        """
        by_video = hidden_states.view(-1, num_frames, *hidden_states.shape[1:])  # [B, T, L, D]
        cls_token, patches = by_video[:, :, :1], by_video[:, :, 1:]
        eighth = patches.shape[-1] // 8
        zeros = torch.zeros_like(patches[:, :1])
        following = torch.cat([patches[:, 1:], zeros], dim=1)[..., :eighth]
        previous = torch.cat([zeros, patches[:, :-1]], dim=1)[..., eighth : 2 * eighth]
        patches = torch.cat([following, previous, patches[..., 2 * eighth :]], dim=-1)
        return torch.cat([cls_token, patches], dim=2).flatten(0, 1)

    def attend_over_time(self, hidden_states: torch.Tensor, num_frames: int) -> torch.Tensor:
        """Apply the block's own attention to the T tokens that share a position.

        (The original adds its (T B) result to (B T) data, which mixes the videos of a batch.)
        """
        batch_frames, length, dim = hidden_states.shape
        tracks = self.layer_norm1(hidden_states).view(-1, num_frames, length, dim).transpose(1, 2)  # [B, L, T, D]
        attended = self.attend(tracks.reshape(-1, num_frames, dim))
        return attended.view(-1, length, num_frames, dim).transpose(1, 2).reshape(batch_frames, length, dim)


class EZClipEvaLayer(EZClipVisionLayer):
    """A vision block of PE-Core, timm's "EvaBlock", that connects frames by a prompted token per frame.

    Its attention rotates patches by their place. The token stands before the CLS token and is not rotated.
    """

    num_frames = 1
    attn: Any
    norm1: nn.Module
    norm2: nn.Module

    @classmethod
    def extend(cls, layer: Any, config: PretrainedConfig, layer_idx: int):
        """Turn a block of timm into one of this class. The names of its weights stay."""
        layer.__class__ = cls
        layer.add_parts(config, layer_idx)
        if layer.temporal_prompt is not None:
            layer.attn.num_prefix_tokens += 1

    @property
    def layer_norm1(self) -> nn.Module:
        """Return the norm before the attention."""
        return self.norm1

    @property
    def layer_norm2(self) -> nn.Module:
        """Return the norm before the MLP."""
        return self.norm2

    def set_attention_dropout(self, rate: float):
        """Set the dropout of the attention weights."""
        self.attn.attn_drop.p = rate

    def attend(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Apply the block's attention, without rotation, to sequences of tokens over time."""
        return self.attn(hidden_states)

    def attend_to_frames(self, summaries: torch.Tensor) -> torch.Tensor:
        """Apply the block's attention to the summaries `(B, T, D)` of the frames. It has no weights to record."""
        return self.attend(summaries)

    @with_cpu_kernels
    def forward(self, hidden_states: torch.Tensor, *args: Any, rope: torch.Tensor | None = None, **kwargs: Any):
        """Return the tokens `(B * T, L, D)` after the block; `rope` and `kwargs` are arguments of timm's attention."""
        num_frames = self.num_frames
        if self.temporal_adapter is not None:
            hidden_states = hidden_states + self.temporal_adapter(self.attend_over_time(hidden_states, num_frames))
        normed = self.norm1(hidden_states)
        if self.temporal_prompt is not None:
            tokens = self.norm1(self.temporal_tokens(hidden_states, num_frames))
            normed = torch.cat([tokens, normed], dim=1)
        attended = self.attn(normed, *args, rope=rope, **kwargs)[:, -hidden_states.shape[1] :]
        return self.adapt_and_mix(hidden_states + self.drop_path(attended, num_frames), num_frames)


class EZClipBertLayerMixin(nn.Module):
    """A post-norm block of a BERT with an adapter between its attention and its feed-forward layers."""

    adapter: EZClipAdapter | None

    @classmethod
    def extend(cls, layer: Any, config: PretrainedConfig, layer_idx: int):
        """Turn a block of the same BERT into one of this class. The names of its weights stay."""
        layer.__class__ = cls
        layer.adapter = EZClipAdapter(config) if config.use_adapter else None

    @with_cpu_kernels
    def forward(self, *args: Any, **kwargs: Any):
        """Apply the block."""
        return super().forward(*args, **kwargs)

    def feed_forward_chunk(self, attention_output: torch.Tensor) -> torch.Tensor:
        """Apply the adapter, with its residual, and the feed-forward layers."""
        if self.adapter is not None:
            attention_output = attention_output + self.adapter(attention_output)
        return super().feed_forward_chunk(attention_output)  # pyright: ignore[reportAttributeAccessIssue]


class EZClipAltRobertaLayer(EZClipBertLayerMixin, AltRobertaLayer):
    """A text block of AltCLIP with an adapter."""


class EZClipChineseCLIPTextLayer(EZClipBertLayerMixin, ChineseCLIPTextLayer):
    """A text block of Chinese-CLIP with an adapter."""


class EZClipEncoder(CLIPEncoder):
    """CLIP's encoder over EZ-CLIP's blocks."""

    def __init__(self, config: PretrainedConfig, layer_class: type[EZClipLayer]):
        nn.Module.__init__(self)
        self.config = config
        self.layers = nn.ModuleList(layer_class(config, idx) for idx in range(config.num_hidden_layers))
        self.gradient_checkpointing = False

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        last_layer_kwargs: dict | None = None,
        **kwargs,
    ) -> BaseModelOutput:
        """Apply the blocks. `kwargs` reach every block; `last_layer_kwargs` override them in the last."""
        hidden_states = inputs_embeds
        for layer in self.layers:
            overrides = last_layer_kwargs if last_layer_kwargs and layer is self.layers[-1] else {}
            hidden_states = layer(hidden_states, **{"attention_mask": attention_mask, **kwargs, **overrides})
        return BaseModelOutput(last_hidden_state=hidden_states)


# ---- Temporal heads ----


class EZClipMeanHead(nn.Module):
    """The mean ("meanP"). Every head maps frame embeddings `(B, T, D)`, not normalised, to `(B, D)`."""

    def __init__(self, config: EZClipConfig):
        super().__init__()

    def forward(self, frame_embeds: torch.Tensor) -> torch.Tensor:
        """Return the video embeddings."""
        return frame_embeds.mean(dim=1)

    def init_weights(self):
        """Set the published initial values."""


class EZClipHeadAttention(nn.Module):
    """Self-attention over frames, with the parameters of `nn.MultiheadAttention`."""

    def __init__(self, dim: int, num_heads: int, dropout: float):
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * dim))
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Attend over the frames of `(B, T, D)`."""
        projected = nn.functional.linear(hidden_states, self.in_proj_weight, self.in_proj_bias)
        query, key, value = projected.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # [B, heads, T, d]
        dropout = self.dropout if self.training else 0.0
        attended = nn.functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        return self.out_proj(attended.transpose(1, 2).flatten(2))


class EZClipHeadLayer(nn.Module):
    """A transformer block with the parameters of `nn.TransformerEncoderLayer`.

    PyTorch's own reads its submodules' weights directly, which fails when they are offloaded, quantised or wrapped.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        intermediate_size: int,
        activation: nn.Module,
        dropout: float = 0.0,
        layer_norm_eps: float = 1e-5,
        norm_first: bool = False,
    ):
        super().__init__()
        self.self_attn = EZClipHeadAttention(dim, num_heads, dropout)
        self.linear1 = nn.Linear(dim, intermediate_size)
        self.linear2 = nn.Linear(intermediate_size, dim)
        self.norm1 = nn.LayerNorm(dim, eps=layer_norm_eps)
        self.norm2 = nn.LayerNorm(dim, eps=layer_norm_eps)
        self.activation = activation
        self.dropout = nn.Dropout(dropout)
        self.norm_first = norm_first

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Apply the block to `(B, T, D)`."""
        if self.norm_first:
            hidden_states = hidden_states + self.dropout(self.self_attn(self.norm1(hidden_states)))
            return hidden_states + self._mlp(self.norm2(hidden_states))
        hidden_states = self.norm1(hidden_states + self.dropout(self.self_attn(hidden_states)))
        return self.norm2(hidden_states + self._mlp(hidden_states))

    def _mlp(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.linear2(self.dropout(self.activation(self.linear1(hidden_states)))))


class EZClipHeadEncoder(nn.Module):
    """Blocks of a head, and an optional last LayerNorm."""

    def __init__(self, layers: Iterable[EZClipHeadLayer], norm: nn.Module | None = None):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = norm

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Apply the blocks to `(B, T, D)`."""
        for layer in self.layers:
            hidden_states = layer(hidden_states)
        return hidden_states if self.norm is None else self.norm(hidden_states)

    def init_weights(self, init_linear: Callable[[torch.Tensor], object]):
        """Initialise linear layers by `init_linear`, and the attention's input projection as PyTorch does."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                init_linear(module.weight)
            elif isinstance(module, EZClipHeadAttention):
                init.xavier_uniform_(module.in_proj_weight)
                init.zeros_(module.in_proj_bias)
                init.zeros_(module.out_proj.bias)


class EZClipTransformerHead(EZClipMeanHead):
    """Pre-norm transformer over the frames, with position embeddings and a residual ("Transf")."""

    def __init__(self, config: EZClipConfig):
        super().__init__(config)
        dim = config.projection_dim
        # The published head has the text tower's numbers of positions and attention heads.
        self.position_embedding = nn.Embedding(config.text_config.max_position_embeddings, dim)
        self.encoder = EZClipHeadEncoder(
            EZClipHeadLayer(
                dim,
                config.text_config.num_attention_heads,
                4 * dim,
                activation=ACT2FN["quick_gelu"],
                layer_norm_eps=1e-12,
                norm_first=True,
            )
            for _ in range(config.temporal_head_layers)
        )

    def forward(self, frame_embeds: torch.Tensor) -> torch.Tensor:
        """Return the video embeddings; raise `ValueError` if there are more frames than positions."""
        num_frames, num_positions = frame_embeds.shape[1], self.position_embedding.num_embeddings
        if num_frames > num_positions:
            raise ValueError(
                f"The temporal head has positions for {num_positions} frames, got {num_frames}. Sample fewer frames "
                "(the processor's `num_frames`)."
            )
        positions = torch.arange(num_frames, device=frame_embeds.device)
        mixed = self.encoder(frame_embeds + self.position_embedding(positions))
        return (mixed + frame_embeds).mean(dim=1)

    def init_weights(self):
        """Set the published initial values."""
        init.normal_(self.position_embedding.weight, std=0.02)
        self.encoder.init_weights(partial(init.normal_, std=0.02))


class EZClipLSTM(nn.Module):
    """One LSTM layer with the parameters of `nn.LSTM`, which `torch.compile` cannot put into a graph."""

    def __init__(self, dim: int):
        super().__init__()
        self.weight_ih_l0 = nn.Parameter(torch.empty(4 * dim, dim))
        self.weight_hh_l0 = nn.Parameter(torch.empty(4 * dim, dim))
        self.bias_ih_l0 = nn.Parameter(torch.empty(4 * dim))
        self.bias_hh_l0 = nn.Parameter(torch.empty(4 * dim))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the hidden state after each frame of `(B, T, D)`."""
        hidden = cell = torch.zeros_like(inputs[:, 0])
        states = []
        for from_input in nn.functional.linear(inputs, self.weight_ih_l0, self.bias_ih_l0).unbind(dim=1):
            gates = from_input + nn.functional.linear(hidden, self.weight_hh_l0, self.bias_hh_l0)
            input_gate, forget_gate, cell_gate, output_gate = gates.chunk(4, dim=-1)
            cell = forget_gate.sigmoid() * cell + input_gate.sigmoid() * cell_gate.tanh()
            hidden = output_gate.sigmoid() * cell.tanh()
            states.append(hidden)
        return torch.stack(states, dim=1)


class EZClipLSTMHead(EZClipMeanHead):
    """One LSTM layer over the frames, with a residual ("LSTM")."""

    def __init__(self, config: EZClipConfig):
        super().__init__(config)
        self.lstm = EZClipLSTM(config.projection_dim)

    def forward(self, frame_embeds: torch.Tensor) -> torch.Tensor:
        """Return the video embeddings."""
        return (self.lstm(frame_embeds) + frame_embeds).mean(dim=1)

    def init_weights(self):
        """Set PyTorch's initial values of an LSTM."""
        bound = self.lstm.weight_hh_l0.shape[1] ** -0.5
        for parameter in self.lstm.parameters():
            init.uniform_(parameter, -bound, bound)


class EZClipConv1dHead(EZClipMeanHead):
    """Depthwise convolution over time, with a residual ("Conv_1D").

    The published code reshapes the `(T, D)` numbers of a video to `(D, T)` instead of transposing them, so that its
    "time" runs along neighbouring channels of a frame. `conv1d_scrambles_frames` does the same.
    """

    def __init__(self, config: EZClipConfig):
        super().__init__(config)
        dim = config.projection_dim
        self.scrambles_frames = config.conv1d_scrambles_frames
        self.conv = nn.Conv1d(dim, dim, kernel_size=3, padding=1, groups=dim, bias=False)

    def forward(self, frame_embeds: torch.Tensor) -> torch.Tensor:
        """Return the video embeddings."""
        B, T, D = frame_embeds.shape
        by_channel = frame_embeds.reshape(B, D, T) if self.scrambles_frames else frame_embeds.transpose(1, 2)
        return (self.conv(by_channel).transpose(1, 2) + frame_embeds).mean(dim=1)

    def init_weights(self):
        """Make the convolution a shift: a quarter of the channels from the frame before, one from the frame after."""
        dim = len(self.conv.weight)
        taps = torch.zeros(dim, 1, 3)
        taps[: dim // 4, 0, 0] = 1.0
        taps[dim // 4 : dim - dim // 4, 0, 1] = 1.0
        taps[dim - dim // 4 :, 0, 2] = 1.0
        init.copy_(self.conv.weight, taps)


class EZClipTransformerClsHead(EZClipMeanHead):
    """Post-norm transformer over a CLS token and the frames, which returns the CLS token ("Transf_cls")."""

    def __init__(self, config: EZClipConfig):
        super().__init__(config)
        dim, num_frames = config.projection_dim, config.vision_config.num_frames
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.position_embedding = nn.Parameter(torch.empty(1, num_frames + 1, dim))
        self.encoder = EZClipHeadEncoder(
            (
                EZClipHeadLayer(dim, 8, 2048, activation=nn.ReLU(), dropout=config.temporal_head_dropout)
                for _ in range(config.temporal_head_layers)
            ),
            norm=nn.LayerNorm(dim),
        )

    def forward(self, frame_embeds: torch.Tensor) -> torch.Tensor:
        """Return the video embeddings; raise `ValueError` if there are not as many frames as positions."""
        num_frames, num_positions = frame_embeds.shape[1], self.position_embedding.shape[1] - 1
        if num_frames != num_positions:
            raise ValueError(
                f"The temporal head needs {num_positions} frames, got {num_frames}. Sample {num_positions} frames "
                "(the processor's `num_frames`)."
            )
        cls_tokens = self.cls_token.expand(frame_embeds.shape[0], -1, -1)
        tokens = torch.cat([cls_tokens, frame_embeds], dim=1)  # [B, T + 1, D]
        return self.encoder(tokens + self.position_embedding)[:, 0]

    def init_weights(self):
        """Set the published initial values."""
        init_weight = partial(init.trunc_normal_, std=0.02, a=-0.04, b=0.04)
        for weight in (self.cls_token, self.position_embedding):
            init_weight(weight)
        self.encoder.init_weights(init_weight)


HEADS = {
    "mean": EZClipMeanHead,
    "transformer": EZClipTransformerHead,
    "lstm": EZClipLSTMHead,
    "conv1d": EZClipConv1dHead,
    "transformer_cls": EZClipTransformerClsHead,
}


# ---- Losses and model ----


# Options that ask for more than the last output, which packed texts cannot give
RECORDED_OUTPUTS = ("output_hidden_states", "output_attentions")


@dataclass
class EZClipVideoFeatures(BaseModelOutputWithPooling):
    r"""
    Output of [`EZClipModel.get_video_features`]. B videos of T frames, L tokens a frame, D dimensions.

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(B * T, L, hidden_size)`, *optional*):
            Tokens of the last block, frame t of video b at index `b * T + t`. With joint attention
            `(B, 1 + T * (L - 1), hidden_size)`. Not returned with `output_last_hidden_state=False`.
        pooler_output (`torch.FloatTensor` of shape `(B, D)`):
            Video embeddings, projected, not normalised.
        frame_embeds (`torch.FloatTensor` of shape `(B, T, D)`):
            Frame embeddings, projected, not normalised: the input of the temporal head. With joint attention,
            `(B, 1, D)`.
        temporal_attentions (`tuple[torch.FloatTensor]`, *optional*, returned with `output_temporal_attentions=True`):
            For each block with a temporal prompt, `(B, heads, T, T)`: the attention of the temporal token of a frame
            (row) to each frame. As `attentions`, only where attention is `"eager"`.
    """

    frame_embeds: torch.FloatTensor | None = None
    temporal_attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class EZClipOutput(ModelOutput):
    r"""
    Output of [`EZClipModel`]. B videos of T frames, N texts, D dimensions.

    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*, returned with `labels` or `return_loss`):
            `(loss_video + loss_text) / 2 + motion_loss_weight * loss_motion`.
        loss_video (`torch.FloatTensor` of shape `()`, *optional*):
            Divergence of the video-to-text similarities from the targets ("loss_imgs").
        loss_text (`torch.FloatTensor` of shape `()`, *optional*):
            Divergence of the text-to-video similarities from the targets ("loss_texts").
        loss_motion (`torch.FloatTensor` of shape `()`, *optional*):
            See [`motion_loss`].
        logits_per_video (`torch.FloatTensor` of shape `(B, N)`):
            Cosines of videos and texts times `logit_scale.exp()`, plus SigLIP's `logit_bias`.
        logits_per_text (`torch.FloatTensor` of shape `(N, B)`):
            Its transpose.
        video_embeds (`torch.FloatTensor` of shape `(B, D)`):
            Video embeddings of length 1.
        text_embeds (`torch.FloatTensor` of shape `(N, D)`):
            Text embeddings of length 1.
        frame_embeds (`torch.FloatTensor` of shape `(B, T, D)`, with joint attention `(B, 1, D)`):
            Frame embeddings, projected, not normalised.
        text_model_output ([`BaseModelOutputWithPooling`]):
            The output of [`EZClipModel.get_text_features`].
        vision_model_output ([`EZClipVideoFeatures`]):
            The output of [`EZClipModel.get_video_features`].
    """

    loss: torch.FloatTensor | None = None
    loss_video: torch.FloatTensor | None = None
    loss_text: torch.FloatTensor | None = None
    loss_motion: torch.FloatTensor | None = None
    logits_per_video: torch.FloatTensor | None = None
    logits_per_text: torch.FloatTensor | None = None
    video_embeds: torch.FloatTensor | None = None
    text_embeds: torch.FloatTensor | None = None
    frame_embeds: torch.FloatTensor | None = None
    text_model_output: BaseModelOutputWithPooling | None = None
    vision_model_output: EZClipVideoFeatures | None = None

    def to_tuple(self):
        """Return the values that are not `None`, nested outputs as tuples too."""
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


def similarity_targets(labels: torch.LongTensor) -> torch.Tensor:
    """
    Return the targets `(B, B)` of the contrastive loss for class indices `(B,)`; rows sum to 1.

    Clips of one class are positives of each other. The softmax over `10 * [same class]` is the original's
    ("gen_label", "KLLoss"): a negative has e^-10 of the weight of a positive.
    """
    same_class = labels[:, None] == labels[None, :]  # [B, B]
    return (10.0 * same_class.float()).softmax(dim=-1)


def contrastive_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the mean over rows of KL(targets || softmax(logits)), both `(B, B)` ("KLLoss")."""
    return nn.functional.kl_div(logits.float().log_softmax(dim=-1), targets, reduction="batchmean")


def motion_loss(frame_embeds: torch.Tensor) -> torch.Tensor:
    """
    Return 1 / (1 + C + V) for frame embeddings `(B, T, D)`, not normalised ("Motion_loss"; TFD in T2L).

    It is small where the frames of a video differ. C is the mean central difference over time, half of
    |e[t+1] - e[t-1]| with the end frames repeated, and V the mean unbiased variance over time. One frame has no
    motion: C and V are 0 and the loss is 1.
    """
    frame_embeds = frame_embeds.float()
    if frame_embeds.shape[1] == 1:
        return frame_embeds.new_ones(()) + 0.0 * frame_embeds.sum()
    padded = torch.cat([frame_embeds[:, :1], frame_embeds, frame_embeds[:, -1:]], dim=1)  # [B, T + 2, D]
    central_difference = (padded[:, 2:] - padded[:, :-2]).abs().mean() / 2
    variance = frame_embeds.var(dim=1).mean()
    return 1.0 / (1.0 + central_difference + variance)


def video_text_losses(
    logits_per_video: torch.Tensor,
    frame_embeds: torch.Tensor,
    labels: torch.LongTensor,
    motion_loss_weight: float = 1.0,
) -> dict[str, torch.Tensor]:
    """
    Return the published loss of one batch, and its parts: `loss`, `loss_video`, `loss_text` and `loss_motion`.

    `logits_per_video` `(B, B)` are scaled cosines, where text i describes the class of video i; `frame_embeds`
    `(B, T, D)` are not normalised; `labels` `(B,)` are class indices. See [`EZClipOutput`].
    """
    targets = similarity_targets(labels.to(logits_per_video.device))
    loss_video = contrastive_loss(logits_per_video, targets)
    loss_text = contrastive_loss(logits_per_video.t(), targets)
    loss_motion = motion_loss(frame_embeds)
    loss = (loss_video + loss_text) / 2 + motion_loss_weight * loss_motion
    return {"loss": loss, "loss_video": loss_video, "loss_text": loss_text, "loss_motion": loss_motion}


# Where the outputs that a call asks for are recorded
RECORDED_MODULES = {
    "hidden_states": EZClipLayer,
    "attentions": EZClipAttention,
    "temporal_attentions": EZClipTemporalMixing,
}


class EZClipPreTrainedModel(LoadTrainedMixin, CLIPPreTrainedModel):
    """Base class: initialisation, loading, and what transformers needs to know about the blocks."""

    config: EZClipConfig
    base_model_prefix = "ezclip"
    input_modalities = ("video", "text")
    # The loss is a mean over a batch: `Trainer` must average it over accumulated batches.
    accepts_loss_kwargs = False
    _no_split_modules = [
        *("CLIPTextEmbeddings", "CLIPVisionEmbeddings", "EZClipLayer", "EZClipVisionLayer"),
        *("SiglipTextEmbeddings", "SiglipVisionEmbeddings", "SiglipMultiheadAttentionPoolingHead"),
        *("Siglip2TextEmbeddings", "Siglip2VisionEmbeddings", "Siglip2MultiheadAttentionPoolingHead"),
        *("AltRobertaEmbeddings", "EZClipAltRobertaLayer", "ChineseCLIPTextEmbeddings", "EZClipChineseCLIPTextLayer"),
        *(head.__name__ for head in HEADS.values()),
    ]
    _can_record_outputs = RECORDED_MODULES
    # Zero if a checkpoint has none, so a CLIP checkpoint is complete without it.
    _keys_to_ignore_on_load_missing = [r"temporal_embedding$"]

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        self._init_added_weights(module)
        if isinstance(module, EZClipVisionModel) and module.temporal_embedding is not None:
            init.zeros_(module.temporal_embedding)
        elif isinstance(module, EZClipMeanHead):
            module.init_weights()
        elif isinstance(module, EZClipModel):
            factor = self.config.initializer_factor
            for projection in (module.visual_projection, module.text_projection):
                if isinstance(projection, nn.Linear):
                    init.normal_(projection.weight, std=projection.in_features**-0.5 * factor)
            init.constant_(module.logit_scale, self.config.logit_scale_init_value)
            if module.logit_bias is not None:
                init.zeros_(module.logit_bias)

    @staticmethod
    def _init_added_weights(module: nn.Module):
        """Initialise an adapter, or the prompts of a block."""
        if isinstance(module, EZClipAdapter):
            init.kaiming_uniform_(module.down_proj.weight, a=math.sqrt(5))
            init.zeros_(module.up_proj.weight)
        elif isinstance(module, EZClipVisionLayer) and module.temporal_prompt is not None:
            init_range = module.temporal_prompt_init_range
            init.uniform_(module.temporal_prompt, -init_range, init_range)

    def _initialize_weights(self, module, *args, **kwargs):
        # For custom code transformers skips modules without direct parameters, which would leave CLIP's attention, MLP
        # and our adapters with generic values. `transformers.initialization` does not touch loaded weights.
        super()._initialize_weights(module)


class EZClipTextModel(EZClipPreTrainedModel, CLIPTextModel):
    """The text tower of CLIP or MetaCLIP 2 with adapters, with the interface of [`CLIPTextModel`]."""

    config: EZClipTextConfig
    base_model_prefix = "text_model"
    input_modalities = ("text",)

    def __init__(self, config: EZClipTextConfig):
        CLIPPreTrainedModel.__init__(self, config)
        self.embeddings = CLIPTextEmbeddings(config)
        self.encoder = EZClipEncoder(config, EZClipLayer)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.eos_token_id = config.eos_token_id
        # See [`_find_ends`]. MetaCLIP 2 means what it says.
        self.ends_at_highest = config.eos_token_id == 2 and not isinstance(config, MetaClip2TextConfig)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        output_last_hidden_state: bool = True,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        r"""
        Args:
            input_ids, attention_mask, position_ids (`torch.Tensor` of shape `(N, sequence_length)`):
                See [`EZClipModel.get_text_features`].
            output_last_hidden_state (`bool`, *optional*, defaults to `True`):
                Whether to return the tokens of the last block. Without them, in evaluation mode, shared prefixes are
                computed once and padding never; see [`PackedTexts`].

        Returns:
            [`BaseModelOutputWithPooling`]: `pooler_output` `(N, hidden_size)` is the token that ends each text, after
            the last LayerNorm. `last_hidden_state` `(N, sequence_length, hidden_size)` are the tokens, or `None`.
        """
        packed = None
        if not output_last_hidden_state and not any(
            kwargs.get(name, getattr(self.config, name)) for name in RECORDED_OUTPUTS
        ):
            packed = self._pack(input_ids, attention_mask, position_ids)
        if packed is not None:
            return BaseModelOutputWithPooling(pooler_output=self.embed_packed(packed, **kwargs))
        outputs = super().forward(input_ids, attention_mask, position_ids, return_dict=True, **kwargs)
        if self.eos_token_id == 2 and not (self.ends_at_highest and attention_mask is None):
            # `CLIPTextModel` takes the highest token. (`len(input_ids)` would fix the batch size of an export.)
            rows = torch.arange(outputs.last_hidden_state.shape[0], device=outputs.last_hidden_state.device)
            outputs.pooler_output = outputs.last_hidden_state[rows, self._find_ends(input_ids, attention_mask)]
        return outputs

    def _find_ends(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """
        Return the position of the end-of-text token of each text.

        CLIP's first configurations say token 2 and mean the highest one, which is wrong once tokens are added. The
        mask tells it: it is the last token that is not padding.
        """
        end = self.eos_token_id
        if self.ends_at_highest and attention_mask is not None:
            positions = torch.arange(input_ids.shape[1], device=input_ids.device)
            end = input_ids.gather(-1, (attention_mask.bool() * positions).argmax(dim=-1, keepdim=True))
        elif self.ends_at_highest:
            end = input_ids.amax(dim=-1, keepdim=True)
        return (input_ids == end).int().argmax(dim=-1)

    def embed_packed(self, packed: PackedTexts, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        """Return the tokens that end N texts, `(N, hidden_size)`, after the last LayerNorm."""
        # Embed as length-1 sequences: packed rows can be longer than max_position_embeddings.
        input_ids, position_ids = (ids.reshape(-1, 1) for ids in (packed.input_ids, packed.position_ids))
        nodes = self.embeddings(input_ids=input_ids, position_ids=position_ids).view(*packed.input_ids.shape, -1)
        query_index = (torch.arange(len(packed.ends), device=packed.ends.device)[:, None], packed.ends)
        mask = packed.attention_mask  # [R, 1, K, K]
        last_mask = mask.transpose(1, 2)[query_index].transpose(1, 2)  # [R, 1, E, K]
        if self.config._attn_implementation == "eager":
            masked = torch.finfo(nodes.dtype).min
            mask, last_mask = (
                torch.zeros_like(kept, dtype=nodes.dtype).masked_fill(~kept, masked) for kept in (mask, last_mask)
            )
        last_layer_kwargs = {"attention_mask": last_mask, "query_index": query_index}
        outputs = self.encoder(nodes, mask, last_layer_kwargs=last_layer_kwargs, **kwargs)
        return self.final_layer_norm(outputs.last_hidden_state[tuple(packed.text_index)])

    def _pack(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, position_ids: torch.Tensor | None
    ) -> PackedTexts | None:
        """Return None when packing does not apply (training, position_ids, masked tokens before EOS)."""
        if self.training or torch.compiler.is_compiling() or position_ids is not None:
            return None
        if self.config._attn_implementation not in ("sdpa", "eager"):  # others do not accept a 4-D mask
            return None
        if getattr(input_ids, "ndim", 0) != 2 or input_ids.shape[1] > self.config.max_position_embeddings:
            return None  # the usual forward raises
        ends = self._find_ends(input_ids, attention_mask)
        if attention_mask is not None and not attention_mask.bool().cumprod(dim=-1).gather(-1, ends[:, None]).all():
            return None
        texts = [tokens[: end + 1] for tokens, end in zip(input_ids.tolist(), ends.tolist())]
        return PackedTexts.pack(texts, input_ids.device)


def check_num_frames(config: Any, pixel_values: torch.Tensor, num_dimensions: int = 5) -> int:
    """Return the frames of a video in `pixel_values`; raise `ValueError` if these do not fit the weights."""
    if pixel_values.ndim != num_dimensions:
        raise ValueError(
            "`pixel_values` must have shape (batch_size, num_frames, channels, height, width), got "
            f"{tuple(pixel_values.shape)}. One video needs a batch dimension: `pixel_values[None]`."
        )
    num_frames = pixel_values.shape[1]
    if config.fixed_num_frames and num_frames != config.num_frames:
        raise ValueError(
            f"`pixel_values` has {num_frames} frames a video, and the temporal weights of this model are for "
            f"{config.num_frames}. Sample {config.num_frames} frames (the processor's `num_frames`), or "
            f"load the weights into a model configured for {num_frames}."
        )
    return num_frames


def extend_layers(layers: Iterable[nn.Module], layer_class, config: PretrainedConfig):
    """Turn the blocks of another family's tower into blocks of `layer_class`, in place."""
    for layer_idx, layer in enumerate(layers):
        layer_class.extend(layer, config, layer_idx)


class EZClipVisionModel(EZClipPreTrainedModel, CLIPVisionModel):
    """CLIP's vision tower over the frames of videos, whose blocks connect the frames.

    The towers of MetaCLIP 2, AltCLIP and Chinese-CLIP are the same.
    """

    config: EZClipVisionConfig
    base_model_prefix = "vision_model"
    main_input_name = "pixel_values"
    input_modalities = ("video",)

    def __init__(self, config: EZClipVisionConfig):
        CLIPPreTrainedModel.__init__(self, config)
        self.embeddings = CLIPVisionEmbeddings(config)
        # "temporal_embedding"
        self.temporal_embedding = (
            nn.Parameter(torch.zeros(config.num_frames, config.hidden_size)) if config.use_temporal_embedding else None
        )
        self.embedding_dropout = nn.Dropout(config.embedding_dropout)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.encoder = EZClipEncoder(config, EZClipVisionLayer)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.FloatTensor,
        interpolate_pos_encoding: bool = False,
        output_last_hidden_state: bool = True,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        r"""
        Args:
            pixel_values (`torch.FloatTensor` of shape `(B, T, C, H, W)`):
                Frames of B videos. T is `config.num_frames` where a weight has a row per frame.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
                Whether to interpolate the position embedding to frames of another size.
            output_last_hidden_state (`bool`, *optional*, defaults to `True`):
                Whether to return the tokens of the last block. Without them the last block computes only the CLS
                token, which saves 7 % of a ViT-B. Its entries in `hidden_states` and `attentions` then hold only the
                CLS token.

        Returns:
            [`BaseModelOutputWithPooling`]: `last_hidden_state` `(B * T, L, hidden_size)` and `pooler_output`
            `(B * T, hidden_size)`, the CLS token of each frame after the last LayerNorm; frame t of video b is at
            `b * T + t`. With joint attention `(B, 1 + T * (L - 1), hidden_size)` and `(B, hidden_size)`.

        Raises:
            `ValueError`: if `pixel_values` does not have five dimensions, or T does not fit the weights.
        """
        num_frames = check_num_frames(self.config, pixel_values)
        hidden_states = self.embeddings(
            pixel_values.flatten(0, 1), interpolate_pos_encoding=interpolate_pos_encoding
        )  # [B * T, L, D]
        if self.config.use_joint_attention:
            hidden_states = self._join_frames(hidden_states, num_frames)  # [B, 1 + T * (L - 1), D]
            num_frames = 1
        elif self.temporal_embedding is not None:
            by_video = hidden_states.view(-1, num_frames, *hidden_states.shape[1:])
            hidden_states = (by_video + self.temporal_embedding[:, None]).flatten(0, 1)
        hidden_states = self.pre_layrnorm(self.embedding_dropout(hidden_states))
        cls_only = None if output_last_hidden_state else {"query_index": (slice(None), slice(0, 1))}
        outputs = self.encoder(hidden_states, num_frames=num_frames, last_layer_kwargs=cls_only, **kwargs)
        hidden_states = outputs.last_hidden_state
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden_states if output_last_hidden_state else None,
            pooler_output=self.post_layernorm(hidden_states[:, 0]),
        )

    def _join_frames(self, hidden_states: torch.Tensor, num_frames: int) -> torch.Tensor:
        """Join the frames of each video into one sequence: a CLS token, and the patches of all frames."""
        by_video = hidden_states.view(-1, num_frames, *hidden_states.shape[1:])
        cls_token, patches = by_video[:, 0, :1], by_video[:, :, 1:]
        if self.temporal_embedding is not None:
            patches = patches + self.temporal_embedding[:, None]
        return torch.cat([cls_token, patches.flatten(1, 2)], dim=1)


class EZClipWholeTowerMixin(PreTrainedModel):
    """A tower of another family, which computes all tokens of its last block, because it pools them."""

    _can_record_outputs = RECORDED_MODULES

    def _initialize_weights(self, module: nn.Module, *args, **kwargs):
        super()._initialize_weights(module)  # see [`EZClipPreTrainedModel`]

    @can_return_tuple
    def forward(self, *args: Any, output_last_hidden_state: bool = True, **kwargs: Any) -> Any:
        """Apply the tower. `output_last_hidden_state=False` leaves its tokens out of the output."""
        outputs = super().forward(*args, return_dict=True, **kwargs)
        if outputs.pooler_output is None:  # Chinese-CLIP's text tower leaves it to the whole model
            outputs.pooler_output = outputs.last_hidden_state[:, 0]
        if not output_last_hidden_state:
            outputs.last_hidden_state = None
        return outputs


class EZClipSiglipTextModel(EZClipWholeTowerMixin, SiglipTextModel):
    """SigLIP's text tower with adapters."""

    def __init__(self, config: EZClipSiglipTextConfig):
        super().__init__(config)
        extend_layers(self.encoder.layers, EZClipLayer, config)


class EZClipSiglip2TextModel(EZClipWholeTowerMixin, Siglip2TextModel):
    """SigLIP 2's text tower with adapters."""

    def __init__(self, config: EZClipSiglip2TextConfig):
        super().__init__(config)
        extend_layers(self.encoder.layers, EZClipLayer, config)


class EZClipAltCLIPTextModel(EZClipWholeTowerMixin, AltCLIPTextModel):
    """AltCLIP's text tower with adapters."""

    _can_record_outputs = AltCLIPTextModel._can_record_outputs

    def __init__(self, config: EZClipAltCLIPTextConfig):
        super().__init__(config)
        extend_layers(self.roberta.encoder.layers, EZClipAltRobertaLayer, config)


class EZClipChineseCLIPTextModel(EZClipWholeTowerMixin, ChineseCLIPTextModel):
    """Chinese-CLIP's text tower with adapters, pooled at its first token."""

    _can_record_outputs = ChineseCLIPTextModel._can_record_outputs

    def __init__(self, config: EZClipChineseCLIPTextConfig):
        super().__init__(config, add_pooling_layer=False)
        extend_layers(self.encoder.layer, EZClipChineseCLIPTextLayer, config)


class EZClipSiglipVisionModel(EZClipWholeTowerMixin, SiglipVisionModel):
    """SigLIP's vision tower over the frames of videos. It pools the patches of each frame by attention."""

    def __init__(self, config: EZClipSiglipVisionConfig):
        super().__init__(config)
        extend_layers(self.encoder.layers, EZClipVisionLayer, config)

    def forward(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool | None = False, *args: Any, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """Apply the tower to `(B, T, C, H, W)`; see [`EZClipVisionModel.forward`]."""
        num_frames, side = check_num_frames(self.config, pixel_values), self.config.image_size
        height, width = pixel_values.shape[-2:]
        if not interpolate_pos_encoding and (height, width) != (side, side):
            raise ValueError(
                f"Frames must be {side} x {side} pixels, got {height} x {width}. "
                "Resize them (the processor does), or pass `interpolate_pos_encoding=True`."
            )
        frames = pixel_values.flatten(0, 1)
        return super().forward(frames, interpolate_pos_encoding, *args, num_frames=num_frames, **kwargs)


class EZClipSiglip2VisionModel(EZClipWholeTowerMixin, Siglip2VisionModel):
    """SigLIP 2's vision tower over the frames of videos ("NaFlex"). Frames may be lists of patches."""

    def __init__(self, config: EZClipSiglip2VisionConfig):
        super().__init__(config)
        extend_layers(self.encoder.layers, EZClipVisionLayer, config)

    def forward(
        self,
        pixel_values: torch.Tensor,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        r"""
        Args:
            pixel_values (`torch.FloatTensor` of shape `(B, T, C, H, W)` or `(B, T, N, patch_size * patch_size * C)`):
                Frames whose sides are multiples of `patch_size`; or their patches, as [`Siglip2ImageProcessor`] makes
                them, with the next two arguments.
            pixel_attention_mask (`torch.Tensor` of shape `(B, T, N)`, *optional*):
                0 at padding.
            spatial_shapes (`torch.LongTensor` of shape `(B, T, 2)`, *optional*):
                Rows and columns of patches of each frame.
            interpolate_pos_encoding (`bool`, *optional*):
                Has no effect: this tower always interpolates.

        Returns:
            [`BaseModelOutputWithPooling`]: as [`EZClipVisionModel.forward`].
        """
        if pixel_values.ndim == 4 and spatial_shapes is None:
            raise ValueError(
                "Lists of patches need `spatial_shapes` and `pixel_attention_mask`. Pass them, or frames."
            )
        num_frames = check_num_frames(self.config, pixel_values, num_dimensions=5 if spatial_shapes is None else 4)
        frames = pixel_values.flatten(0, 1)
        if spatial_shapes is None:
            frames, shapes = self._cut_into_patches(frames)
        else:
            shapes = spatial_shapes.flatten(0, 1)
        mask = None if pixel_attention_mask is None else pixel_attention_mask.flatten(0, 1)
        return super().forward(frames, mask, shapes, num_frames=num_frames, **kwargs)

    def _cut_into_patches(self, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the patches of frames `(N, C, H, W)`, and the one shape that all of them have."""
        size: Any = self.config.patch_size
        if frames.shape[-2] % size or frames.shape[-1] % size:
            raise ValueError(
                f"The sides of frames must be multiples of `patch_size`, {size}, got {tuple(frames.shape[-2:])}."
            )
        patches = frames.unflatten(-1, (-1, size)).unflatten(-3, (-1, size))  # [N, C, rows, size, columns, size]
        rows, columns = patches.shape[2], patches.shape[4]
        patches = patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        return patches, torch.tensor([[rows, columns]], device="cpu")


class EZClipTimmVisionModel(TimmWrapperModel):
    """PE-Core's vision tower, timm's, over the frames of videos. It pools the tokens of each frame by attention."""

    def __init__(self, config: EZClipTimmVisionConfig):
        super().__init__(config)
        extend_layers(self.timm_model.blocks, EZClipEvaLayer, config)

    def forward(
        self,
        pixel_values: torch.Tensor,
        *args: Any,
        output_last_hidden_state: bool = True,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Apply the tower to `(B, T, C, H, W)`; see [`EZClipVisionModel.forward`]. It records no other outputs."""
        num_frames = check_num_frames(self.config, pixel_values)
        if asked := [*filter(None, args), *(name for name, value in kwargs.items() if value)]:
            raise ValueError(f"The tower of PE-Core, timm's, does not have {asked[0]!r}. Leave it out.")
        for block in self.timm_model.blocks:  # timm passes no other arguments to its blocks
            block.num_frames = num_frames
        tokens = self.timm_model.forward_features(pixel_values.flatten(0, 1).to(self.dtype))
        return BaseModelOutputWithPooling(
            last_hidden_state=tokens if output_last_hidden_state else None,
            pooler_output=self.timm_model.forward_head(tokens),
        )


TEXT_MODELS = {
    "ezclip_text_model": EZClipTextModel,
    "metaclip_2_text_model": EZClipTextModel,
    "altclip_text_model": EZClipAltCLIPTextModel,
    "chinese_clip_text_model": EZClipChineseCLIPTextModel,
    "siglip_text_model": EZClipSiglipTextModel,
    "siglip2_text_model": EZClipSiglip2TextModel,
}
VISION_MODELS = {
    "ezclip_vision_model": EZClipVisionModel,
    "metaclip_2_vision_model": EZClipVisionModel,
    "altclip_vision_model": EZClipVisionModel,
    "chinese_clip_vision_model": EZClipVisionModel,
    "siglip_vision_model": EZClipSiglipVisionModel,
    "siglip2_vision_model": EZClipSiglip2VisionModel,
    "timm_wrapper": EZClipTimmVisionModel,
}


class EZClipModel(SaveTrainedMixin, EZClipPreTrainedModel):
    """Video and text embeddings in one space: EZ-CLIP, or, by its configuration, ActionCLIP, ViFi-CLIP or CLIP.

    The towers are CLIP's, or those of another dual encoder: see [`EZClipConfig`]. Loads EZ-CLIP folders and folders of
    such a plain dual encoder; prompts, adapters and temporal head are new in the latter.

    Example:

    ```python
    >>> from ezclip import EZClipModel

    >>> model = EZClipModel.from_pretrained("openai/clip-vit-base-patch16", vision_config={"num_frames": 16})
    >>> model.num_parameters(only_trainable=True)
    5278464
    ```
    """

    # The class bank saved with the weights, if there is one
    class_bank_file: str | None = None
    # Names of weights that were not loaded
    newly_initialized: frozenset[str] = frozenset()
    # The new parts that spoil predictions until they are trained
    untrained: tuple[str, ...] = ()

    def __init__(self, config: EZClipConfig):
        super().__init__(config)
        text, vision = config.text_config, config.vision_config
        self.text_model = TEXT_MODELS[text.model_type]._from_config(text)
        self.vision_model = VISION_MODELS[vision.model_type]._from_config(vision)
        self.visual_projection, self.text_projection = nn.Identity(), nn.Identity()
        if config.has_visual_projection:
            self.visual_projection = nn.Linear(vision.hidden_size, config.projection_dim, bias=False)
        if config.has_text_projection:
            text_dim = getattr(text, "project_dim", text.hidden_size)  # AltCLIP's text tower has a layer of its own
            self.text_projection = nn.Linear(text_dim, config.projection_dim, bias=False)
        logit_scale = torch.tensor(float(config.logit_scale_init_value))
        self.logit_scale = nn.Parameter(logit_scale[None] if config.has_logit_bias else logit_scale)
        self.logit_bias = nn.Parameter(torch.zeros(1)) if config.has_logit_bias else None
        self.temporal_head = HEADS[config.temporal_head](config)
        self.post_init()
        if config.freeze_backbone:
            self.freeze_backbone()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """Load a model as [`LoadTrainedMixin.from_pretrained`] does, find its class bank, and freeze its backbone."""
        hub_options = {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
        hub_options["revision"] = kwargs.get("_commit_hash") or hub_options.get("revision")
        return_info = kwargs.pop("output_loading_info", False)
        loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        model, info = loaded
        model.newly_initialized = frozenset(info["missing_keys"])
        parts = {"temporal_prompt": "temporal prompts", "temporal_head": "temporal head"}
        model.untrained = tuple(
            name for part, name in parts.items() if any(part in key for key in model.newly_initialized)
        )
        if pretrained_model_name_or_path is not None:
            # Fetched now, with the revision and token of the weights: later there may be no network.
            model.class_bank_file = cached_file(
                str(pretrained_model_name_or_path), CLASS_BANK_NAME, **MAY_BE_ABSENT, **hub_options
            )
        # Loading replaces the parameters that `__init__` froze by new, trainable ones.
        if model.config.freeze_backbone:
            model.freeze_backbone()
        return loaded if return_info else model

    def train(self, mode: bool = True) -> "EZClipModel":
        """Set training or evaluation mode. Once training has begun, no part counts as untrained."""
        if mode:
            self.untrained = ()
        return super().train(mode)

    def initialize_weights(self):
        """Initialise all weights that were not loaded."""
        super().initialize_weights()
        for tower in (self.text_model, self.vision_model):
            if not isinstance(tower, EZClipPreTrainedModel):  # it initialises its own modules, and does not know ours
                for module in tower.modules():
                    self._init_added_weights(module)

    def freeze_backbone(self):
        """
        Freeze all but prompts, adapters and temporal head: for EZ-CLIP ViT-B/16 and 8 frames, 5,204,736 of 154,831,617
        stay trainable.
        """
        for name, parameter in self.named_parameters():
            # (Weights quantised to integers cannot be trained.)
            parameter.requires_grad_(is_added_to_clip(name) and parameter.is_floating_point())

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embedding of the text tower."""
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        """Replace the token embedding of the text tower."""
        self.text_model.set_input_embeddings(value)

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        r"""
        Embed texts.

        Args:
            input_ids (`torch.LongTensor` of shape `(N, sequence_length)`):
                Tokens of N texts.
            attention_mask (`torch.Tensor` of shape `(N, sequence_length)`, *optional*):
                0 at padding.
            position_ids (`torch.LongTensor` of shape `(N, sequence_length)`, *optional*):
                Positions of the tokens.
            kwargs:
                The arguments of [`EZClipTextModel.forward`]. `output_last_hidden_state=False` takes a fraction of the
                time.

        Returns:
            [`BaseModelOutputWithPooling`]: `pooler_output` `(N, D)` holds the text embeddings, projected, not
            normalised.
        """
        outputs = self.text_model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, return_dict=True, **kwargs
        )
        outputs.pooler_output = self.text_projection(outputs.pooler_output)
        return outputs

    @can_return_tuple
    def get_video_features(
        self, pixel_values: torch.FloatTensor, interpolate_pos_encoding: bool = False, **kwargs
    ) -> EZClipVideoFeatures:
        r"""
        Embed videos.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(B, T, C, H, W)`):
                Frames of B videos.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
                Whether to interpolate the position embedding to frames of another size.
            kwargs:
                The arguments of [`EZClipVisionModel.forward`]. `output_last_hidden_state=False` takes less time and
                memory.

        Returns:
            [`EZClipVideoFeatures`]: `pooler_output` `(B, D)` holds the video embeddings, projected, not normalised;
            `frame_embeds` `(B, T, D)`, with joint attention `(B, 1, D)`, the frame embeddings they are made of.
        """
        if self.untrained and not self.training and not torch.compiler.is_compiling():
            name, parts = self.name_or_path or "EZClipModel", " and ".join(self.untrained)
            logger.warning_once(
                f"{name}: the {parts} of this model are new and untrained, which "
                "spoils its predictions. Train it, or load the model without them: `ezclip.load_model(name)`."
            )
        outputs = self.vision_model(
            pixel_values=pixel_values,
            interpolate_pos_encoding=interpolate_pos_encoding,
            return_dict=True,
            **kwargs,
        )
        # `shape[0]`, not `len`, which would fix the batch size of an exported model.
        frame_embeds = self.visual_projection(outputs.pooler_output).unflatten(0, (pixel_values.shape[0], -1))
        return EZClipVideoFeatures(
            last_hidden_state=outputs.last_hidden_state,
            pooler_output=self.temporal_head(frame_embeds),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            frame_embeds=frame_embeds,
            temporal_attentions=outputs.get("temporal_attentions"),
        )

    @property
    def eos_token_id(self) -> int | None:
        """Return the token that must end a text, or `None` if the text tower looks for none."""
        takes_any = getattr(self.text_model, "ends_at_highest", True)
        return None if takes_any else self.config.text_config.eos_token_id

    def encode_videos(self, pixel_values: Any) -> torch.Tensor:
        """Embed videos `(B, T, C, H, W)` as `(B, D)`, not normalised (`ezclip.encoders.VideoTextEncoder`)."""
        features: Any = self.get_video_features(pixel_values, output_last_hidden_state=False)
        return features.pooler_output

    def encode_frames(self, pixel_values: Any) -> torch.Tensor:
        """Embed videos `(B, T, C, H, W)` and their frames as `(B, 1 + T, D)`, not normalised; the video is first."""
        features: Any = self.get_video_features(pixel_values, output_last_hidden_state=False)
        return torch.cat([features.pooler_output[:, None], features.frame_embeds], dim=1)

    def encode_texts(self, tokens: Mapping[str, Any]) -> torch.Tensor:
        """Embed N texts, given as the tokenizer's output, as `(N, D)`, not normalised; see [`encode_videos`]."""
        features: Any = self.get_text_features(**tokens, output_last_hidden_state=False)
        return features.pooler_output

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        labels: torch.LongTensor | None = None,
        return_loss: bool | None = None,
        interpolate_pos_encoding: bool = False,
        token_type_ids: torch.LongTensor | None = None,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> EZClipOutput:
        r"""
        Embed videos and texts, compare them, and compute the loss if `labels` or `return_loss` ask for it.

        Args:
            input_ids (`torch.LongTensor` of shape `(N, sequence_length)`):
                Tokens of N texts.
            pixel_values (`torch.FloatTensor` of shape `(B, T, C, H, W)`):
                Frames of B videos.
            attention_mask (`torch.Tensor` of shape `(N, sequence_length)`, *optional*):
                0 at padding.
            position_ids (`torch.LongTensor` of shape `(N, sequence_length)`, *optional*):
                Positions of the tokens.
            labels (`torch.LongTensor` of shape `(B,)`, *optional*):
                Class index of each video. Text i must describe the class of video i, so N is B.
            return_loss (`bool`, *optional*):
                Whether to return the loss. Without `labels` every video is a class of its own.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
                Whether to interpolate the position embedding to frames of another size.
            token_type_ids (`torch.LongTensor` of shape `(N, sequence_length)`, *optional*):
                For the text towers of AltCLIP and Chinese-CLIP.
            pixel_attention_mask, spatial_shapes (*optional*):
                For SigLIP 2, see [`EZClipSiglip2VisionModel.forward`].
            kwargs:
                Arguments of both towers, such as `output_last_hidden_state` and `output_hidden_states`.

        Raises:
            `ValueError`: if videos or texts are missing, T does not fit the weights, or the numbers of videos, texts
            and labels differ where a loss is asked for.
        """
        if pixel_values is None or input_ids is None:
            raise ValueError(
                "`EZClipModel` takes `pixel_values` and `input_ids` together; for one alone call "
                "`get_video_features` or `get_text_features`."
            )
        of_video: dict[str, Any] = {"pixel_attention_mask": pixel_attention_mask, "spatial_shapes": spatial_shapes}
        of_video = {name: value for name, value in of_video.items() if value is not None}
        of_text: dict[str, Any] = {"attention_mask": attention_mask, "position_ids": position_ids}
        if token_type_ids is not None:
            of_text["token_type_ids"] = token_type_ids
        video_outputs: Any = self.get_video_features(pixel_values, interpolate_pos_encoding, **of_video, **kwargs)
        text_outputs: Any = self.get_text_features(input_ids, **of_text, **kwargs)
        video_embeds = nn.functional.normalize(video_outputs.pooler_output, dim=-1)  # [B, D]
        text_embeds = nn.functional.normalize(text_outputs.pooler_output, dim=-1)  # [N, D]
        logits_per_video = self.logit_scale.exp() * video_embeds @ text_embeds.t().to(video_embeds.device)
        if self.logit_bias is not None:
            logits_per_video = logits_per_video + self.logit_bias
        logits_per_text = logits_per_video.t()

        losses = {}
        if return_loss or (return_loss is None and labels is not None):
            labels = torch.arange(len(video_embeds)) if labels is None else torch.as_tensor(labels)
            if not len(video_embeds) == len(text_embeds) == len(labels):
                raise ValueError(
                    "The loss needs one text and one label for each video, got "
                    f"{len(video_embeds)} videos, {len(text_embeds)} texts and {len(labels)} labels."
                )
            losses = video_text_losses(
                logits_per_video, video_outputs.frame_embeds, labels, self.config.motion_loss_weight
            )

        return EZClipOutput(
            **losses,
            logits_per_video=logits_per_video,
            logits_per_text=logits_per_text,
            video_embeds=video_embeds,
            text_embeds=text_embeds,
            frame_embeds=video_outputs.frame_embeds,
            text_model_output=text_outputs,
            vision_model_output=video_outputs,
        )


EZClipModel.register_for_auto_class("AutoModel")


__all__ = ["EZClipModel", "EZClipPreTrainedModel", "EZClipTextModel", "EZClipVisionModel"]
