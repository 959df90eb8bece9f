"""The blocks of both towers: CLIP's, with adapters, and attention that reads time.

Names in quotation marks are those of the original implementations, see `modeling_ezclip.py`.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.clip.modeling_clip import (
    CLIPMLP,
    CLIPAttention,
    CLIPEncoder,
    CLIPEncoderLayer,
    eager_attention_forward,
)

from .configuration_ezclip import EZClipTextConfig, EZClipVisionConfig


# Attention weights that a processor's cache holds, 4 bytes each, with what is made of them
MAX_WEIGHTS = 2**19

# Which tokens of `(B, L)`; `None` are all of them.
Index = tuple[slice | torch.Tensor, slice | torch.Tensor] | None


def take(hidden_states: torch.Tensor, readers: Index) -> torch.Tensor:
    """The tokens of `(B, L, D)` that read."""
    return hidden_states if readers is None else hidden_states[readers]


class EZClipDropPath(nn.Module):
    """Stochastic depth by sample: a residual branch is dropped for a whole video, all its frames together.

    (The original's "DropPath" runs on (L, N, D) tensors and so drops token positions.)
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, hidden_states: torch.Tensor, num_frames: int = 1) -> torch.Tensor:
        if self.rate == 0.0 or not self.training:
            return hidden_states
        num_samples = hidden_states.shape[0] // num_frames
        keep = hidden_states.new_empty((num_samples, 1, 1)).bernoulli_(1.0 - self.rate).div_(1.0 - self.rate)
        return hidden_states * keep.repeat_interleave(num_frames, dim=0)

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


class EZClipAdapter(nn.Module):
    """Bottleneck with an exact GELU ("Adapter"; the caller adds the skip). The identity's zero when fresh."""

    def __init__(self, config: EZClipTextConfig | EZClipVisionConfig):
        super().__init__()
        bottleneck = int(config.hidden_size * config.adapter_ratio)
        self.down_proj = nn.Linear(config.hidden_size, bottleneck)
        self.up_proj = nn.Linear(bottleneck, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.up_proj(nn.functional.gelu(self.down_proj(hidden_states)))


class EZClipQuickGELU(nn.Module):
    """CLIP's `x * sigmoid(1.702 x)`, in fewer passes over memory; of its size one tensor is kept for the gradient."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        scaled = 1.702 * hidden_states
        return nn.functional.silu(scaled, inplace=not scaled.requires_grad).mul_(1 / 1.702)


def draw_kept(like: torch.Tensor, dropout: float, generator: np.random.Generator) -> torch.Tensor:
    """1 where a dropout keeps an element and 0 elsewhere, by 16 random bits each: sooner done than `bernoulli_`."""
    bits = generator.integers(2**64 - 1, size=(like.numel() + 3) // 4, dtype=np.uint64, endpoint=True)
    least = min(round(dropout * 2**16) - 2**15, 2**15 - 1)
    return torch.ge(
        torch.from_numpy(bits.view(np.int16)[: like.numel()]).view(like.shape), least, out=torch.empty_like(like)
    )


class DropoutAttention(torch.autograd.Function):
    """
    Attention `(B, heads, L, d)` with dropout on a CPU, where PyTorch's fused kernel has none and its other one keeps
    several tensors as large as the attention weights for the gradient. This keeps queries, keys and values alone, and
    goes through the batch in parts whose weights the processor's cache holds.
    """

    @staticmethod
    def forward(
        ctx, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, dropout: float
    ) -> torch.Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.scaling, ctx.dropout, ctx.seed = scaling, dropout, int(torch.randint(2**63 - 1, ()))
        attended = torch.empty_like(query)
        for part, weights, kept in DropoutAttention._weigh(ctx, query, key):
            dropped = weights.mul_(kept).to(value.dtype)
            attended[part] = _multiply(dropped, value[part], 1.0 / (1.0 - dropout))
        return attended

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: torch.Tensor):
        query, key, value = ctx.saved_tensors
        of_query, of_key, of_value = (torch.empty_like(states) for states in (query, key, value))
        rescaling = 1.0 / (1.0 - ctx.dropout)
        for part, weights, kept in DropoutAttention._weigh(ctx, query, key):
            dropped = (weights * kept).to(value.dtype)
            of_value[part] = _multiply(dropped.transpose(-1, -2), gradient[part], rescaling)
            of_weights = _multiply(gradient[part], value[part].transpose(-1, -2), rescaling).to(weights.dtype)
            of_weights.mul_(kept)
            of_scores = torch.ops.aten._softmax_backward_data(of_weights, weights, -1, weights.dtype).to(value.dtype)
            of_query[part] = _multiply(of_scores, key[part], ctx.scaling)
            of_key[part] = _multiply(of_scores.transpose(-1, -2), query[part], ctx.scaling)
        return of_query, of_key, of_value, None, None

    @staticmethod
    def _weigh(ctx, query: torch.Tensor, key: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
        """The attention weights of part after part, and which of each are kept."""
        generator, dtype = np.random.default_rng(ctx.seed), torch.promote_types(query.dtype, torch.float32)
        size = max(1, MAX_WEIGHTS // math.prod((*query.shape[1:3], key.shape[2])))
        for start in range(0, len(query), size):
            part = slice(start, start + size)
            scores = _multiply(query[part], key[part].transpose(-1, -2), ctx.scaling)
            weights = scores.softmax(dim=-1, dtype=dtype)
            yield part, weights, draw_kept(weights, ctx.dropout, generator)


def _multiply(left: torch.Tensor, right: torch.Tensor, factor: float) -> torch.Tensor:
    """`factor * left @ right` of `(B, heads, …)`, where B is 1 without a copy of either."""
    product = left.new_empty(*left.shape[:-1], right.shape[-1])
    product.flatten(0, 1).baddbmm_(left.flatten(0, 1), right.flatten(0, 1), beta=0, alpha=factor)
    return product


def dropout_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    scaling: float,
    dropout: float,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """[`DropoutAttention`], as transformers calls attention."""
    return DropoutAttention.apply(query, key, value, scaling, dropout).transpose(1, 2), None


class EZClipAttention(CLIPAttention):
    """CLIP's attention, of all tokens or some, which can also read tokens that themselves read nothing."""

    def forward(
        self,
        hidden_states: torch.Tensor,  # [B, L, D]
        attention_mask: torch.Tensor | None = None,
        readers: Index = None,
        read_only: torch.Tensor | None = None,  # [B, M, D]
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        implementation = self.config._attn_implementation
        if read_only is not None and readers is None and implementation == "eager":
            # Whoever wants attention weights finds those of all tokens.
            attended, weights = self.forward(torch.cat([hidden_states, read_only], dim=1), attention_mask, **kwargs)
            return attended[:, : hidden_states.shape[1]], weights

        queries = self.q_proj(take(hidden_states, readers))
        keys, values = self.k_proj(hidden_states), self.v_proj(hidden_states)
        if read_only is not None:
            # Joined here and not before, tokens that need no gradient have none computed.
            keys = torch.cat([keys, self.k_proj(read_only)], dim=1)
            values = torch.cat([values, self.v_proj(read_only)], dim=1)
        queries, keys, values = (
            states.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for states in (queries, keys, values)
        )

        dropout = self.dropout if self.training else 0.0
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        masked = attention_mask is not None or kwargs.get("is_causal", False)
        on_cpu, compiled = queries.device.type == "cpu", torch.compiler.is_compiling()
        if dropout > 0.0 and implementation == "sdpa" and on_cpu and not masked and not compiled:
            attention = dropout_attention_forward
        attended, weights = attention(
            self, queries, keys, values, attention_mask, scaling=self.scale, dropout=dropout, **kwargs
        )
        return self.out_proj(attended.flatten(2)), weights


class EZClipMLP(CLIPMLP):
    """CLIP's, with a lighter activation where that is CLIP's own."""

    def __init__(self, config: EZClipTextConfig | EZClipVisionConfig):
        super().__init__(config)
        if config.hidden_act == "quick_gelu":
            self.activation_fn = EZClipQuickGELU()


class EZClipLayer(CLIPEncoderLayer):
    """CLIP's block with an adapter between attention and MLP, and dropout that grows with depth."""

    def __init__(self, config: EZClipTextConfig | EZClipVisionConfig, layer_idx: int):
        GradientCheckpointingLayer.__init__(self)
        self.embed_dim = config.hidden_size
        self.self_attn = EZClipAttention(config)
        self.layer_norm1 = nn.LayerNorm(self.embed_dim, eps=config.layer_norm_eps)
        self.mlp = EZClipMLP(config)
        self.layer_norm2 = nn.LayerNorm(self.embed_dim, eps=config.layer_norm_eps)
        depth = layer_idx / max(config.num_hidden_layers - 1, 1)
        self.self_attn.dropout = config.attention_dropout * depth
        self.drop_path = EZClipDropPath(config.drop_path_rate * depth)
        self.adapter = EZClipAdapter(config) if config.use_adapter else None

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        readers: Index = None,
        **kwargs,
    ):
        """`readers` says which tokens of `(B, L)` are wanted; the others are read."""
        attn_output, _ = self.self_attn(self.layer_norm1(hidden_states), attention_mask, readers=readers, **kwargs)
        return self.adapt_and_mix(take(hidden_states, readers) + self.drop_path(attn_output))

    def adapt_and_mix(self, hidden_states: torch.Tensor, num_frames: int = 1) -> torch.Tensor:
        """The block after its attention: adapter and MLP, each with its residual."""
        if torch.is_grad_enabled() and not self.mlp.fc1.weight.requires_grad and not torch.compiler.is_compiling():
            # A frozen MLP keeps nothing of what it is given, and what is made here costs little to make again.
            hidden_states, normed = checkpoint(self._adapt, hidden_states, use_reentrant=False)
        else:
            hidden_states, normed = self._adapt(hidden_states)
        return hidden_states + self.drop_path(self.mlp(normed), num_frames)

    def _adapt(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.adapter is not None:
            hidden_states = hidden_states + self.adapter(hidden_states)
        return hidden_states, self.layer_norm2(hidden_states)


class EZClipTemporalMixing(nn.Module):
    """Attention of a block among the summaries of a video's frames: what `output_temporal_attentions` records.

    (A class of its own with "Attention" in its name transformers takes for one that computes it.)
    """

    def forward(self, self_attn: EZClipAttention, summaries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        # `forward`, not `__call__`: the block's recorded attention is the one over its tokens.
        return self_attn.forward(summaries)


class EZClipVisionLayer(EZClipLayer):
    """A vision block that reads time: by a prompted token per frame, by attention over time, or by a shift."""

    def __init__(self, config: EZClipVisionConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        prompted = config.temporal_prompt == "deep" or (config.temporal_prompt == "shallow" and layer_idx == 0)
        # "T_prompt_embeddings[layer_idx]"
        self.temporal_prompt = nn.Parameter(torch.empty(config.num_frames, config.hidden_size)) if prompted else None
        self.temporal_prompt_dropout = nn.Dropout(config.temporal_prompt_dropout)
        self.temporal_mixing = EZClipTemporalMixing()
        self.temporal_prompt_init_range = config.temporal_prompt_init_range
        self.temporal_adapter = EZClipAdapter(config) if config.use_temporal_adapter else None
        self.use_temporal_shift = config.use_temporal_shift

    def forward(
        self,
        hidden_states: torch.Tensor,  # [B * T, L, D]
        attention_mask: torch.Tensor | None = None,
        num_frames: int = 1,
        readers: Index = None,
        **kwargs,
    ):
        if self.use_temporal_shift:
            hidden_states = self.shift_over_time(hidden_states, num_frames)
        if self.temporal_adapter is not None:
            hidden_states = hidden_states + self.temporal_adapter(self.attend_over_time(hidden_states, num_frames))
        if self.temporal_prompt is not None:
            kwargs["read_only"] = self.layer_norm1(self.temporal_tokens(hidden_states, num_frames))
        attn_output, _ = self.self_attn(self.layer_norm1(hidden_states), attention_mask, readers=readers, **kwargs)
        hidden_states = take(hidden_states, readers) + self.drop_path(attn_output, num_frames)
        return self.adapt_and_mix(hidden_states, num_frames)

    def temporal_tokens(self, hidden_states: torch.Tensor, num_frames: int) -> torch.Tensor:
        """One token a frame, from the frame's prompt and the mean of its tokens, after attention among the T of them.

        The attention is the block's own, without a residual.
        """
        batch_frames, _, dim = hidden_states.shape
        summaries = hidden_states.mean(dim=1).view(-1, num_frames, dim)  # [B, T, D]
        summaries = summaries + self.temporal_prompt_dropout(self.temporal_prompt)
        summaries, _ = self.temporal_mixing(self.self_attn, self.layer_norm1(summaries))
        return self.drop_path(summaries).reshape(batch_frames, 1, dim)

    def shift_over_time(self, hidden_states: torch.Tensor, num_frames: int) -> torch.Tensor:
        """Patches with an eighth of their channels from the next frame and one from the previous, zero at the ends.

        ("TemporalShift"; the CLS token and the other channels stay.)
        """
        by_video = hidden_states.view(-1, num_frames, *hidden_states.shape[1:])  # [B, T, L, D]
        cls_token, patches = by_video[:, :, :1], by_video[:, :, 1:]
        eighth = patches.shape[-1] // 8
        nothing = torch.zeros_like(patches[:, :1])
        following = torch.cat([patches[:, 1:], nothing], dim=1)[..., :eighth]
        previous = torch.cat([nothing, patches[:, :-1]], dim=1)[..., eighth : 2 * eighth]
        patches = torch.cat([following, previous, patches[..., 2 * eighth :]], dim=-1)
        return torch.cat([cls_token, patches], dim=2).flatten(0, 1)

    def attend_over_time(self, hidden_states: torch.Tensor, num_frames: int) -> torch.Tensor:
        """The block's own attention among the T tokens that share a position.

        (The original adds its (T B) result to (B T) data, which mixes the videos of a batch.)
        """
        batch_frames, length, dim = hidden_states.shape
        tracks = self.layer_norm1(hidden_states).view(-1, num_frames, length, dim).transpose(1, 2)  # [B, L, T, D]
        attended, _ = self.self_attn.forward(tracks.reshape(-1, num_frames, dim))
        return attended.view(-1, length, num_frames, dim).transpose(1, 2).reshape(batch_frames, length, dim)


class EZClipEncoder(CLIPEncoder):
    """CLIP's encoder over EZ-CLIP's blocks; extra keyword arguments reach every block, those of `last` the last."""

    def __init__(self, config: EZClipTextConfig | EZClipVisionConfig, layer_class: type[EZClipLayer]):
        nn.Module.__init__(self)
        self.config = config
        self.layers = nn.ModuleList(layer_class(config, idx) for idx in range(config.num_hidden_layers))
        self.gradient_checkpointing = False

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        last: dict | None = None,
        **kwargs,
    ) -> BaseModelOutput:
        hidden_states = inputs_embeds
        for layer in self.layers:
            own = last if last and layer is self.layers[-1] else {}
            hidden_states = layer(hidden_states, **{"attention_mask": attention_mask, **kwargs, **own})
        return BaseModelOutput(last_hidden_state=hidden_states)
