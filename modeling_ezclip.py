"""CLIP that reads time, in PyTorch: EZ-CLIP's prompts and adapters; ActionCLIP's shift, joint attention and heads.

EZ-CLIP: Ahmad, Chanda and Rawat, "EZ-CLIP: Efficient Zeroshot Video Action Recognition", published again as
"T2L: Efficient Zero-Shot Action Recognition with Temporal Token Learning" (the same code; there the prompts are
"Temporal Token Learning" and the motion loss is "Temporal Feature Diversity"). ActionCLIP: Wang, Xing and Liu,
"ActionCLIP: A New Paradigm for Video Action Recognition". Names in quotation marks below are those of the original
implementations.

State-dict keys are CLIP's, so a CLIP checkpoint loads with only prompts, adapters and temporal head missing.
"""

import copy
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import CLIPTextModel, CLIPVisionModel, PretrainedConfig
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
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
from transformers.utils import ModelOutput, TransformersKwargs, cached_file
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs


try:
    from .checkpoint_ezclip import (
        HUB_OPTIONS,
        MAY_BE_ABSENT,
        PUSH_OPTIONS,
        TrainedCheckpoint,
        TrainedPartOfModel,
        is_added_to_clip,
        naming_base,
        resolve_base,
        split_trained,
        weights_name,
        write_trained,
    )
    from .configuration_ezclip import CLASS_BANK_NAME, EZClipConfig, EZClipTextConfig, EZClipVisionConfig
except ImportError:
    if __package__:  # in a remote-code folder, a missing dependency must keep its own message
        raise
    from checkpoint_ezclip import (
        HUB_OPTIONS,
        MAY_BE_ABSENT,
        PUSH_OPTIONS,
        TrainedCheckpoint,
        TrainedPartOfModel,
        is_added_to_clip,
        naming_base,
        resolve_base,
        split_trained,
        weights_name,
        write_trained,
    )
    from configuration_ezclip import CLASS_BANK_NAME, EZClipConfig, EZClipTextConfig, EZClipVisionConfig


if TYPE_CHECKING:
    # `save_pretrained` copies the modules that this one imports, and transformers up to 5.6 loads those alone. So name
    # all that the pipeline and the processor need.
    from .pipeline_ezclip import ZeroShotVideoClassificationPipeline  # noqa: F401
    from .processing_ezclip import EZClipProcessor  # noqa: F401
    from .video_ezclip import read_frames  # noqa: F401


# ---- Packed texts ----


# Each node of a row is compared with all others of it; so many cost less than a tenth of the rest.
NODES_OF_A_ROW = 256


@dataclass
class PackedTexts:
    """
    N texts as trees: a node is a token after certain others, and what a causal tower makes of it is the same in every
    text that begins so. "archery", "archery, an action" and "archery this is an action" share two nodes, and all
    labels those of "a photo of action". R rows have room for K nodes each, and hold as many texts as fit.

    Args:
        input_ids (`torch.LongTensor` of shape `(R, K)`):
            The token of each node.
        position_ids (`torch.LongTensor` of shape `(R, K)`):
            Its place in its texts.
        attention_mask (`torch.BoolTensor` of shape `(R, 1, K, K)`):
            What it reads: itself and what is before it.
        ends (`torch.LongTensor` of shape `(R, E)`):
            The nodes that end the texts of a row; those that fill it up are the first.
        places (`torch.LongTensor` of shape `(2, N)`):
            Row of each text, and which of its `ends` is the text's.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    attention_mask: torch.Tensor
    ends: torch.Tensor
    places: torch.Tensor

    @classmethod
    def pack(cls, texts: Sequence[Sequence[int]], device: torch.device) -> "PackedTexts":
        """
        Texts that begin alike, side by side.

        Args:
            texts (`Sequence[Sequence[int]]`):
                The tokens of each text, one at least, without padding.
            device (`torch.device`):
                Where the tensors are to be.
        """
        room, rows = max(NODES_OF_A_ROW, *map(len, texts)), []
        places = np.empty((2, len(texts)), dtype=np.int64)
        for number in sorted(range(len(texts)), key=lambda number: texts[number]):
            if not rows or not rows[-1].has_room(texts[number], room):
                rows.append(_Row())
            places[:, number] = len(rows) - 1, rows[-1].add(texts[number])
        size, num_ends = max(len(row.nodes) for row in rows), max(len(row.ends) for row in rows)
        input_ids, position_ids = np.zeros((2, len(rows), size), dtype=np.int64)
        attention_mask = np.zeros((len(rows), 1, size, size), dtype=bool)
        attention_mask[..., 0] = True  # where there is nothing, the first node is read: no row of a softmax is empty
        ends = np.zeros((len(rows), num_ends), dtype=np.int64)
        for number, row in enumerate(rows):
            ends[number, : len(row.ends)] = row.ends
            reads = attention_mask[number, 0]
            for node, (before, token) in enumerate(row.nodes):
                reads[node] = False if before is None else reads[before]
                position_ids[number, node] = 0 if before is None else position_ids[number, before] + 1
                reads[node, node] = True
                input_ids[number, node] = token
        tensors = (input_ids, position_ids, attention_mask, ends, places)
        return cls(*(torch.from_numpy(tensor).to(device) for tensor in tensors))

    def readers(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Where in `(R, K)` the `ends` are."""
        return torch.arange(len(self.ends), device=self.ends.device)[:, None], self.ends


class _Row:
    """Nodes, by the node before each of them and its token, in an order in which what is before comes first."""

    def __init__(self):
        self.nodes: dict[tuple[int | None, int], int] = {}
        self.ends: list[int] = []

    def has_room(self, tokens: Sequence[int], room: int) -> bool:
        node, shared = None, 0
        while shared < len(tokens) and (node := self.nodes.get((node, tokens[shared]))) is not None:
            shared += 1
        return len(self.nodes) + len(tokens) - shared <= room

    def add(self, tokens: Sequence[int]) -> int:
        node = None
        for token in tokens:
            node = self.nodes.setdefault((node, token), len(self.nodes))
        self.ends.append(node)
        return len(self.ends) - 1


# ---- Blocks ----


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


# ---- Temporal heads ----


class EZClipMeanHead(nn.Module):
    """The mean ("meanP"). Every head takes frame embeddings `(B, T, D)`, not normalised, and gives `(B, D)`."""

    def __init__(self, config: EZClipConfig):
        super().__init__()

    def forward(self, frame_embeds: torch.Tensor) -> torch.Tensor:
        return frame_embeds.mean(dim=1)

    def init_weights(self):
        """The published initial values."""


class EZClipHeadAttention(nn.Module):
    """`nn.MultiheadAttention` of frames among themselves, with its parameters."""

    def __init__(self, dim: int, num_heads: int, dropout: float):
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * dim))
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:  # [B, T, D], as what it returns
        projected = nn.functional.linear(hidden_states, self.in_proj_weight, self.in_proj_bias)
        query, key, value = projected.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # [B, heads, T, d]
        dropout = self.dropout if self.training else 0.0
        attended = nn.functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        return self.out_proj(attended.transpose(1, 2).flatten(2))


class EZClipHeadLayer(nn.Module):
    """`nn.TransformerEncoderLayer`, with its parameters.

    That reads the weights of its parts where they stand, of parts too that are offloaded, quantised or wrapped.
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
        if self.norm_first:
            hidden_states = hidden_states + self.dropout(self.self_attn(self.norm1(hidden_states)))
            return hidden_states + self.mlp(self.norm2(hidden_states))
        hidden_states = self.norm1(hidden_states + self.dropout(self.self_attn(hidden_states)))
        return self.norm2(hidden_states + self.mlp(hidden_states))

    def mlp(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.linear2(self.dropout(self.activation(self.linear1(hidden_states)))))


class EZClipHeadEncoder(nn.Module):
    """Blocks of a head, one after the other, and a last LayerNorm if there is one."""

    def __init__(self, layers: Iterable[EZClipHeadLayer], norm: nn.Module | None = None):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = norm

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            hidden_states = layer(hidden_states)
        return hidden_states if self.norm is None else self.norm(hidden_states)

    def init_weights(self, init_linear: Callable[[torch.Tensor], object]):
        """Linear layers as `init_linear` has it, the projection into attention as PyTorch has it."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                init_linear(module.weight)
            elif isinstance(module, EZClipHeadAttention):
                init.xavier_uniform_(module.in_proj_weight)
                init.zeros_(module.in_proj_bias)
                init.zeros_(module.out_proj.bias)


class EZClipTransformerHead(EZClipMeanHead):
    """Pre-norm transformer over the frames and their positions, added to them ("Transf")."""

    def __init__(self, config: EZClipConfig):
        super().__init__(config)
        dim = config.projection_dim
        # As many positions, and attention heads, as the text tower has
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
        num_frames, num_positions = frame_embeds.shape[1], self.position_embedding.num_embeddings
        if num_frames > num_positions:
            raise ValueError(
                f"The videos have {num_frames} frames, and the temporal head positions for {num_positions}. Sample "
                "fewer frames (the processor's `num_frames`)."
            )
        positions = torch.arange(num_frames, device=frame_embeds.device)
        mixed = self.encoder(frame_embeds + self.position_embedding(positions))
        return (mixed + frame_embeds).mean(dim=1)

    def init_weights(self):
        init.normal_(self.position_embedding.weight, std=0.02)
        self.encoder.init_weights(partial(init.normal_, std=0.02))


class EZClipLSTM(nn.Module):
    """`nn.LSTM` of one layer, with its parameters, frame by frame: `torch.compile` takes no `nn.LSTM` into a graph."""

    def __init__(self, dim: int):
        super().__init__()
        self.weight_ih_l0 = nn.Parameter(torch.empty(4 * dim, dim))
        self.weight_hh_l0 = nn.Parameter(torch.empty(4 * dim, dim))
        self.bias_ih_l0 = nn.Parameter(torch.empty(4 * dim))
        self.bias_hh_l0 = nn.Parameter(torch.empty(4 * dim))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:  # [B, T, D], as what it returns
        hidden = cell = torch.zeros_like(inputs[:, 0])
        states = []
        for from_input in nn.functional.linear(inputs, self.weight_ih_l0, self.bias_ih_l0).unbind(dim=1):
            gates = from_input + nn.functional.linear(hidden, self.weight_hh_l0, self.bias_hh_l0)
            write, keep, candidate, show = gates.chunk(4, dim=-1)
            cell = keep.sigmoid() * cell + write.sigmoid() * candidate.tanh()
            hidden = show.sigmoid() * cell.tanh()
            states.append(hidden)
        return torch.stack(states, dim=1)


class EZClipLSTMHead(EZClipMeanHead):
    """One LSTM over the frames, added to them ("LSTM")."""

    def __init__(self, config: EZClipConfig):
        super().__init__(config)
        self.lstm = EZClipLSTM(config.projection_dim)

    def forward(self, frame_embeds: torch.Tensor) -> torch.Tensor:
        return (self.lstm(frame_embeds) + frame_embeds).mean(dim=1)

    def init_weights(self):
        bound = self.lstm.weight_hh_l0.shape[1] ** -0.5
        for parameter in self.lstm.parameters():
            init.uniform_(parameter, -bound, bound)


class EZClipConv1dHead(EZClipMeanHead):
    """Convolution of each channel with its neighbours in time, added to the frames ("Conv_1D").

    The published code reads the `(T, D)` numbers of a video as `(D, T)`, so that its "time" runs along neighbouring
    channels of a frame; `conv1d_scrambles_frames` does the same.
    """

    def __init__(self, config: EZClipConfig):
        super().__init__(config)
        dim = config.projection_dim
        self.scrambles_frames = config.conv1d_scrambles_frames
        self.conv = nn.Conv1d(dim, dim, kernel_size=3, padding=1, groups=dim, bias=False)

    def forward(self, frame_embeds: torch.Tensor) -> torch.Tensor:
        B, T, D = frame_embeds.shape
        by_channel = frame_embeds.reshape(B, D, T) if self.scrambles_frames else frame_embeds.transpose(1, 2)
        return (self.conv(by_channel).transpose(1, 2) + frame_embeds).mean(dim=1)

    def init_weights(self):
        # A shift: the first quarter of the channels comes from the frame before, the last from the frame after.
        dim = len(self.conv.weight)
        taps = torch.zeros(dim, 1, 3)
        taps[: dim // 4, 0, 0] = 1.0
        taps[dim // 4 : dim - dim // 4, 0, 1] = 1.0
        taps[dim - dim // 4 :, 0, 2] = 1.0
        init.copy_(self.conv.weight, taps)


class EZClipTransformerClsHead(EZClipMeanHead):
    """A CLS token that a post-norm transformer lets read the frames, instead of a mean ("Transf_cls")."""

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
        num_frames, num_positions = frame_embeds.shape[1], self.position_embedding.shape[1] - 1
        if num_frames != num_positions:
            raise ValueError(
                f"The videos have {num_frames} frames, and the temporal head positions for {num_positions}. Sample "
                f"{num_positions} frames (the processor's `num_frames`)."
            )
        cls_tokens = self.cls_token.expand(frame_embeds.shape[0], -1, -1)
        tokens = torch.cat([cls_tokens, frame_embeds], dim=1)  # [B, T + 1, D]
        return self.encoder(tokens + self.position_embedding)[:, 0]

    def init_weights(self):
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


def make_temporal_head(config: EZClipConfig) -> EZClipMeanHead:
    """The head that a configuration names."""
    return HEADS[config.temporal_head](config)


# ---- Losses and model ----


# What a caller may ask to see of the blocks
RECORDED = ("output_hidden_states", "output_attentions")


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
            Frame embeddings, projected, not normalised; `pooler_output` is what the temporal head makes of them. With
            joint attention, `(B, 1, D)`.
        temporal_attentions (`tuple[torch.FloatTensor]`, *optional*, returned with `output_temporal_attentions=True`):
            Of each block with a temporal prompt `(B, heads, T, T)`: how much the temporal token of a frame (row) takes
            of each frame. As `attentions`, only where attention is `"eager"`.
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
            Cosines of videos and texts times `logit_scale.exp()`.
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
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


def similarity_targets(labels: torch.LongTensor) -> torch.Tensor:
    """
    Targets of the contrastive loss: clips of one class are positives of each other.

    The softmax over `10 * [same class]` is the original's ("gen_label", "KLLoss"): what a row leaves to the other
    classes is e^-10 each.

    Args:
        labels (`torch.LongTensor` of shape `(B,)`):
            Class index of each video.

    Returns:
        `torch.Tensor` of shape `(B, B)`: rows sum to 1.
    """
    same_class = labels[:, None] == labels[None, :]  # [B, B]
    return (10.0 * same_class.float()).softmax(dim=-1)


def contrastive_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """KL divergence of the softmax of each row of `logits` from `targets`, both `(B, B)`; row mean ("KLLoss")."""
    return nn.functional.kl_div(logits.float().log_softmax(dim=-1), targets, reduction="batchmean")


def motion_loss(frame_embeds: torch.Tensor) -> torch.Tensor:
    """
    1 / (1 + C + V): small where the frames of a video differ ("Motion_loss"; TFD in T2L).

    C is the mean central difference over time, half of |e[t+1] - e[t-1]| with the end frames repeated, and V the mean
    unbiased variance over time. One frame has no motion: C and V are 0 and the loss is 1.

    Args:
        frame_embeds (`torch.Tensor` of shape `(B, T, D)`):
            Frame embeddings, not normalised.
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
    The published loss and its parts, of one batch.

    Args:
        logits_per_video (`torch.Tensor` of shape `(B, B)`):
            Scaled cosines of each video with each text; text i is one of video i's class.
        frame_embeds (`torch.Tensor` of shape `(B, T, D)`):
            Frame embeddings, not normalised.
        labels (`torch.LongTensor` of shape `(B,)`):
            Class index of each video.
        motion_loss_weight (`float`, *optional*, defaults to 1.0):
            Weight of the motion loss.

    Returns:
        `dict`: `loss`, `loss_video`, `loss_text` and `loss_motion`, see [`EZClipOutput`].
    """
    targets = similarity_targets(labels.to(logits_per_video.device))
    loss_video = contrastive_loss(logits_per_video, targets)
    loss_text = contrastive_loss(logits_per_video.t(), targets)
    loss_motion = motion_loss(frame_embeds)
    loss = (loss_video + loss_text) / 2 + motion_loss_weight * loss_motion
    return {"loss": loss, "loss_video": loss_video, "loss_text": loss_text, "loss_motion": loss_motion}


class EZClipPreTrainedModel(CLIPPreTrainedModel):
    """Initialisation, and what transformers needs to know of the blocks."""

    config: EZClipConfig
    base_model_prefix = "ezclip"
    input_modalities = ("video", "text")
    # The loss is a mean over a batch: `Trainer` is to average it over the batches that it accumulates.
    accepts_loss_kwargs = False
    _no_split_modules = [
        *("CLIPTextEmbeddings", "CLIPVisionEmbeddings", "EZClipLayer", "EZClipVisionLayer"),
        *(head.__name__ for head in HEADS.values()),
    ]
    _can_record_outputs = {
        "hidden_states": EZClipLayer,
        "attentions": EZClipAttention,
        "temporal_attentions": EZClipTemporalMixing,
    }
    # Zero where a checkpoint has none: a CLIP checkpoint is complete without it.
    _keys_to_ignore_on_load_missing = [r"temporal_embedding$"]

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, EZClipAdapter):
            init.kaiming_uniform_(module.down_proj.weight, a=math.sqrt(5))
            init.zeros_(module.up_proj.weight)
        elif isinstance(module, EZClipVisionLayer) and module.temporal_prompt is not None:
            init_range = module.temporal_prompt_init_range
            init.uniform_(module.temporal_prompt, -init_range, init_range)
        elif isinstance(module, EZClipVisionModel) and module.temporal_embedding is not None:
            init.zeros_(module.temporal_embedding)
        elif isinstance(module, EZClipMeanHead):
            module.init_weights()
        elif isinstance(module, EZClipModel):
            factor = self.config.initializer_factor
            init.normal_(module.visual_projection.weight, std=module.visual_projection.in_features**-0.5 * factor)
            init.normal_(module.text_projection.weight, std=module.text_projection.in_features**-0.5 * factor)
            init.constant_(module.logit_scale, self.config.logit_scale_init_value)

    def _initialize_weights(self, module, *args, **kwargs):
        # For custom code transformers skips the modules that hold no parameter of their own, which would leave CLIP's
        # attention, MLP and our adapters with generic values. `transformers.initialization` spares what was loaded.
        super()._initialize_weights(module)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | None,
        *model_args,
        config=None,
        base_model_name_or_path: str | os.PathLike | None = None,
        **kwargs,
    ):
        r"""
        Load a whole model, or one of which what was trained alone was saved: the latter over its base.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`):
                A folder, or a name on the Hub.
            config ([`PretrainedConfig`] or `str`, *optional*):
                The configuration, if not the one saved there.
            base_model_name_or_path (`str` or `os.PathLike`, *optional*):
                The base, if not the one that was saved: a folder, or a name on the Hub. `cache_dir`, `token` and
                `local_files_only` hold for it too, `revision` and `subfolder` do not.
            kwargs:
                The arguments of [`PreTrainedModel.from_pretrained`].

        Raises:
            `OSError`: if the model, or its base, is missing or damaged.
            `ValueError`: if the base is not the one that was trained from, or the configuration asks for weights that
            were not saved.
        """
        load_whole = super().from_pretrained
        hub_options = {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
        checkpoint = None
        if pretrained_model_name_or_path is not None:
            checkpoint = TrainedCheckpoint.find(
                pretrained_model_name_or_path, variant=kwargs.get("variant"), **hub_options
            )
        if checkpoint is None:
            if base_model_name_or_path is not None:
                raise ValueError(
                    f"{pretrained_model_name_or_path} is a whole model; leave out `base_model_name_or_path`."
                )
            if getattr(config, "base_model_name_or_path", None) is not None:  # that of another model
                config = copy.deepcopy(config)
                config.base_model_name_or_path = None
            return load_whole(pretrained_model_name_or_path, *model_args, config=config, **kwargs)

        output_loading_info = kwargs.pop("output_loading_info", False)
        if not isinstance(config, PretrainedConfig):
            dtypes = {name: kwargs.pop(name) for name in ("dtype", "torch_dtype") if name in kwargs}
            config, kwargs = cls.config_class.from_pretrained(
                pretrained_model_name_or_path if config is None else config, return_unused_kwargs=True, **kwargs
            )
            kwargs = {**kwargs, **hub_options, **dtypes}
        base = base_model_name_or_path or getattr(config, "base_model_name_or_path", None) or checkpoint.base
        model, info = checkpoint.load(load_whole, config, base, **kwargs)
        return (model, info) if output_loading_info else model


class EZClipTextModel(EZClipPreTrainedModel, CLIPTextModel):
    """CLIP's text tower with adapters. Its interface is [`CLIPTextModel`]'s."""

    config: EZClipTextConfig
    base_model_prefix = "text_model"
    input_modalities = ("text",)

    def __init__(self, config: EZClipTextConfig):
        CLIPPreTrainedModel.__init__(self, config)
        self.embeddings = CLIPTextEmbeddings(config)
        self.encoder = EZClipEncoder(config, EZClipLayer)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.eos_token_id = config.eos_token_id
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
                Whether to return the tokens of the last block. Without them, in evaluation mode, what texts share from
                their beginning on is computed once, and nothing after their end, see [`PackedTexts`].

        Returns:
            [`BaseModelOutputWithPooling`]: `pooler_output` `(N, hidden_size)` is the token that ends each text, after
            the last LayerNorm; `last_hidden_state` `(N, sequence_length, hidden_size)` the tokens, where wanted.
        """
        packed = None
        if not output_last_hidden_state and not any(kwargs.get(name, getattr(self.config, name)) for name in RECORDED):
            packed = self._pack(input_ids, attention_mask, position_ids)
        if packed is None:
            return super().forward(input_ids, attention_mask, position_ids, return_dict=True, **kwargs)
        return BaseModelOutputWithPooling(pooler_output=self.embed_packed(packed, **kwargs))

    def embed_packed(self, packed: PackedTexts, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        """The tokens that end N texts, after the last LayerNorm: `(N, hidden_size)`."""
        # As texts of one token each: so many have no more places than they take.
        tokens, places = (ids.reshape(-1, 1) for ids in (packed.input_ids, packed.position_ids))
        nodes = self.embeddings(input_ids=tokens, position_ids=places).view(*packed.input_ids.shape, -1)  # [R, K, D]
        readers = packed.readers()
        mask, mask_of_ends = packed.attention_mask, packed.attention_mask.transpose(1, 2)[readers].transpose(1, 2)
        if self.config._attn_implementation == "eager":
            least = torch.finfo(nodes.dtype).min
            mask, mask_of_ends = (
                torch.zeros_like(reads, dtype=nodes.dtype).masked_fill(~reads, least) for reads in (mask, mask_of_ends)
            )
        last = {"attention_mask": mask_of_ends, "readers": readers}
        ends = self.encoder(nodes, mask, last=last, **kwargs).last_hidden_state  # [R, E, D]
        return self.final_layer_norm(ends[tuple(packed.places)])

    def _pack(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, position_ids: torch.Tensor | None
    ) -> PackedTexts | None:
        """The texts up to their ends; `None` where not their tokens alone decide what the tower makes of them."""
        if self.training or torch.compiler.is_compiling() or position_ids is not None:
            return None
        if self.config._attn_implementation not in ("sdpa", "eager"):  # others take no such mask
            return None
        if getattr(input_ids, "ndim", 0) != 2 or input_ids.shape[1] > self.config.max_position_embeddings:
            return None  # an error there
        # CLIP's first configurations say 2 and mean the token with the highest number.
        end = input_ids.amax(dim=-1, keepdim=True) if self.eos_token_id == 2 else self.eos_token_id
        ends = (input_ids == end).int().argmax(dim=-1)
        if attention_mask is not None and not attention_mask.bool().cumprod(dim=-1).gather(-1, ends[:, None]).all():
            return None
        texts = [tokens[: end + 1] for tokens, end in zip(input_ids.tolist(), ends.tolist())]
        return PackedTexts.pack(texts, input_ids.device)


class EZClipVisionModel(EZClipPreTrainedModel, CLIPVisionModel):
    """CLIP's vision tower over the frames of videos, which its blocks connect through time."""

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
                Whether to return the tokens of the last block. Without them it computes the CLS token alone, for which
                its other tokens are only read: 7 % less of a ViT-B. What `output_hidden_states` and
                `output_attentions` give of this block is then the CLS token's.

        Returns:
            [`BaseModelOutputWithPooling`]: `last_hidden_state` `(B * T, L, hidden_size)` and `pooler_output`
            `(B * T, hidden_size)`, the CLS token of each frame after the last LayerNorm; frame t of video b is at
            `b * T + t`. With joint attention `(B, 1 + T * (L - 1), hidden_size)` and `(B, hidden_size)`.

        Raises:
            `ValueError`: if `pixel_values` has not five dimensions, or T does not fit the weights.
        """
        num_frames = self._check_num_frames(pixel_values)
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
        last = None if output_last_hidden_state else {"readers": (slice(None), slice(0, 1))}
        hidden_states = self.encoder(hidden_states, num_frames=num_frames, last=last, **kwargs).last_hidden_state
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden_states if output_last_hidden_state else None,
            pooler_output=self.post_layernorm(hidden_states[:, 0]),
        )

    def _join_frames(self, hidden_states: torch.Tensor, num_frames: int) -> torch.Tensor:
        """The tokens of a video as those of one frame: a CLS token, and the patches of all frames, with their time."""
        by_video = hidden_states.view(-1, num_frames, *hidden_states.shape[1:])
        cls_token, patches = by_video[:, 0, :1], by_video[:, :, 1:]
        if self.temporal_embedding is not None:
            patches = patches + self.temporal_embedding[:, None]
        return torch.cat([cls_token, patches.flatten(1, 2)], dim=1)

    def _check_num_frames(self, pixel_values: torch.FloatTensor) -> int:
        if pixel_values.ndim != 5:
            raise ValueError(
                "`pixel_values` must have shape (batch_size, num_frames, channels, height, width), got "
                f"{tuple(pixel_values.shape)}. One video needs a batch dimension: `pixel_values[None]`."
            )
        num_frames = pixel_values.shape[1]
        if self.config.fixed_num_frames and num_frames != self.config.num_frames:
            raise ValueError(
                f"`pixel_values` has {num_frames} frames a video, and this model's temporal weights have a row for "
                f"each of {self.config.num_frames}. Sample {self.config.num_frames} frames (the processor's "
                f"`num_frames`), or load the weights into a model configured for {num_frames}."
            )
        return num_frames


class EZClipModel(EZClipPreTrainedModel):
    """Videos and texts in one space: EZ-CLIP; or, by its configuration, ActionCLIP, ViFi-CLIP or CLIP on mean frames.

    Loads folders of such models and plain CLIP ones; prompts, adapters and temporal head are new in the latter.

    Example:

    ```python
    >>> from ezclip import EZClipModel

    >>> model = EZClipModel.from_pretrained("openai/clip-vit-base-patch16", vision_config={"num_frames": 16})
    >>> model.num_parameters(only_trainable=True)
    5278464
    ```
    """

    # The file of the class bank that was saved with the weights, if any
    class_bank_file: str | None = None

    def __init__(self, config: EZClipConfig):
        super().__init__(config)
        self.text_model = EZClipTextModel._from_config(config.text_config)
        self.vision_model = EZClipVisionModel._from_config(config.vision_config)
        self.visual_projection = nn.Linear(config.vision_config.hidden_size, config.projection_dim, bias=False)
        self.text_projection = nn.Linear(config.text_config.hidden_size, config.projection_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale_init_value))
        self.temporal_head = make_temporal_head(config)
        self.post_init()
        if config.freeze_backbone:
            self.freeze_backbone()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        hub_options = {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
        hub_options["revision"] = kwargs.get("_commit_hash") or hub_options.get("revision")
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if pretrained_model_name_or_path is not None:
            # Here, where revision and token are known: it is that of these weights, and there without a network later.
            model.class_bank_file = cached_file(
                str(pretrained_model_name_or_path), CLASS_BANK_NAME, **MAY_BE_ABSENT, **hub_options
            )
        # Loading puts new parameters, all trainable, in the place of those that `__init__` froze.
        if model.config.freeze_backbone:
            model.freeze_backbone()
        return loaded

    def freeze_backbone(self):
        """
        Freeze all but prompts, adapters and temporal head: for EZ-CLIP ViT-B/16 and 8 frames, 5,204,736 of 154,831,617
        stay trainable.
        """
        for name, parameter in self.named_parameters():
            # (What is quantised to whole numbers cannot be trained.)
            parameter.requires_grad_(is_added_to_clip(name) and parameter.is_floating_point())

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        state_dict: dict | None = None,
        push_to_hub: bool = False,
        *,
        trained_only: bool = False,
        base_model_name_or_path: str | os.PathLike | None = None,
        **kwargs,
    ):
        r"""
        Save the whole model, trained weights and base in one; or what was trained alone, to be loaded over the base.

        Args:
            save_directory (`str` or `os.PathLike`):
                The folder to write.
            is_main_process (`bool`, *optional*, defaults to `True`):
                Whether this process writes.
            state_dict (`dict`, *optional*):
                The weights, if not the model's own.
            push_to_hub (`bool`, *optional*, defaults to `False`):
                Whether to upload the files too, to `repo_id` or a repository of the folder's name.
            trained_only (`bool`, *optional*, defaults to `False`):
                Whether to save trained weights alone: for ViT-B/16 and 8 frames 21 MB of 620. The others are recorded
                by a fingerprint each; they must be those of the base.
            base_model_name_or_path (`str` or `os.PathLike`, *optional*):
                Where the others are: a folder or a name on the Hub, of a plain CLIP or any EZ-CLIP. By default that of
                `config`.
            kwargs:
                The arguments of [`PreTrainedModel.save_pretrained`].

        Raises:
            `ValueError`: if `trained_only` and no base is known, or nothing is trained, or the folder is the base.
        """
        if base_model_name_or_path is not None and not trained_only:
            raise ValueError("`base_model_name_or_path` goes with `trained_only=True`; a whole model has no base.")
        trained, frozen = {}, {}
        if trained_only:
            trained, frozen = split_trained(self, self.state_dict() if state_dict is None else state_dict)
        if not frozen:
            with naming_base(self.config, None):
                super().save_pretrained(save_directory, is_main_process, state_dict, push_to_hub, **kwargs)
            return

        base = self.config.base_model_name_or_path
        if base_model_name_or_path is not None:
            base = resolve_base(base_model_name_or_path)
        if base is None:
            raise ValueError(
                "What was trained is saved with the name of its base, and this model knows none. Give "
                "`base_model_name_or_path`, the folder or Hub name of the CLIP or EZ-CLIP that it was made from, or "
                "save the whole model, without `trained_only`."
            )
        if not trained:
            raise ValueError("Nothing of this model is trained; save the whole model, without `trained_only`.")
        if base == str(Path(save_directory).resolve()):
            raise ValueError(f"{base} is the base of this model and would be overwritten. Give another folder.")
        if not is_main_process:  # transformers may write the weights of any
            return
        kwargs.pop("max_shard_size", None)  # one file, which holds the record of all
        with naming_base(self.config, base):
            super().save_pretrained(save_directory, state_dict=dict(trained), **kwargs)
        write_trained(Path(save_directory) / weights_name(kwargs.get("variant")), trained, frozen)
        if push_to_hub:
            repo_id = kwargs.pop("repo_id", Path(save_directory).name)
            options = {name: kwargs[name] for name in PUSH_OPTIONS if name in kwargs}
            self.push_to_hub(repo_id, trained_only=True, base_model_name_or_path=base, **options)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        trained_only: bool = False,
        base_model_name_or_path: str | os.PathLike | None = None,
        **kwargs,
    ):
        r"""
        Upload what [`EZClipModel.save_pretrained`] writes to a repository on the Hub.

        Args:
            repo_id (`str`):
                The repository; it is made if there is none.
            trained_only (`bool`, *optional*, defaults to `False`):
                Whether to upload trained weights alone.
            base_model_name_or_path (`str` or `os.PathLike`, *optional*):
                Where the others are. Others can load the upload if it is a name on the Hub.
            kwargs:
                The arguments of [`PreTrainedModel.push_to_hub`].

        Raises:
            `ValueError`: as [`EZClipModel.save_pretrained`].
        """
        if not trained_only:
            return super().push_to_hub(repo_id, **kwargs)
        tags = kwargs.pop("tags", None) or []
        tags = [*(self.model_tags or []), *([tags] if isinstance(tags, str) else tags)]
        part = TrainedPartOfModel(self, base_model_name_or_path)
        return part.push_to_hub(repo_id, tags=tags or None, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
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
        Args:
            input_ids (`torch.LongTensor` of shape `(N, sequence_length)`):
                Tokens of N texts.
            attention_mask (`torch.Tensor` of shape `(N, sequence_length)`, *optional*):
                0 at padding.
            position_ids (`torch.LongTensor` of shape `(N, sequence_length)`, *optional*):
                Positions of the tokens.
            kwargs:
                The arguments of [`EZClipTextModel.forward`]. With `output_last_hidden_state=False` it takes a fraction
                of the time.

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
        Args:
            pixel_values (`torch.FloatTensor` of shape `(B, T, C, H, W)`):
                Frames of B videos.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
                Whether to interpolate the position embedding to frames of another size.
            kwargs:
                The arguments of [`EZClipVisionModel.forward`]. With `output_last_hidden_state=False` it takes less
                time and memory.

        Returns:
            [`EZClipVideoFeatures`]: `pooler_output` `(B, D)` holds the video embeddings, projected, not normalised,
            and `frame_embeds` `(B, T, D)`, with joint attention `(B, 1, D)`, what the temporal head made them of.
        """
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
        **kwargs: Unpack[TransformersKwargs],
    ) -> EZClipOutput:
        r"""
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
                Class index of each video; text i is one of video i's class, so N is B. Gives the loss.
            return_loss (`bool`, *optional*):
                Whether to return the loss. Without `labels` every video is a class of its own.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
                Whether to interpolate the position embedding to frames of another size.
            kwargs:
                The arguments of both towers, `output_last_hidden_state`, `output_hidden_states` and
                `output_attentions` among them.

        Raises:
            `ValueError`: if videos or texts are missing, T does not fit the weights, or a loss is asked for and
            videos, texts and labels are not equally many.
        """
        if pixel_values is None or input_ids is None:
            raise ValueError(
                "`EZClipModel` takes `pixel_values` and `input_ids` together; for one alone call "
                "`get_video_features` or `get_text_features`."
            )
        video_outputs = self.get_video_features(pixel_values, interpolate_pos_encoding, **kwargs)
        text_outputs = self.get_text_features(input_ids, attention_mask, position_ids, **kwargs)
        video_embeds = nn.functional.normalize(video_outputs.pooler_output, dim=-1)  # [B, D]
        text_embeds = nn.functional.normalize(text_outputs.pooler_output, dim=-1)  # [N, D]
        logits_per_video = self.logit_scale.exp() * video_embeds @ text_embeds.t().to(video_embeds.device)
        logits_per_text = logits_per_video.t()

        losses = {}
        if return_loss or (return_loss is None and labels is not None):
            labels = torch.arange(len(video_embeds)) if labels is None else torch.as_tensor(labels)
            if not len(video_embeds) == len(text_embeds) == len(labels):
                raise ValueError(
                    "The loss compares each video with one text of its class, so they must be equally many: got "
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
