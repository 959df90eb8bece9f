"""Temporal heads: the embedding of a video from those of its frames.

All but the mean are ActionCLIP's "Post-network Prompts": Wang, Xing and Liu, "ActionCLIP: A New Paradigm for Video
Action Recognition", section 3.3. Names in quotation marks are those of its code ("sim_header"), where every head but
the mean also holds position embeddings that only "Transf" uses; here the others do without.
"""

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN

from .configuration_ezclip import EZClipConfig


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
