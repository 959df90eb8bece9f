"""Temporal heads: the embedding of a video from those of its frames.

All but the mean are ActionCLIP's "Post-network Prompts": Wang, Xing and Liu, "ActionCLIP: A New Paradigm for Video
Action Recognition", section 3.3. Names in quotation marks are those of its code ("sim_header"), where every head but
the mean also holds position embeddings that only "Transf" uses; here the others do without.
"""

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


class EZClipTransformerHead(EZClipMeanHead):
    """Pre-norm transformer over the frames and their positions, added to them ("Transf")."""

    def __init__(self, config: EZClipConfig):
        super().__init__(config)
        dim = config.projection_dim
        # As many positions, and attention heads, as the text tower has
        self.position_embedding = nn.Embedding(config.text_config.max_position_embeddings, dim)
        layer = nn.TransformerEncoderLayer(
            dim,
            config.text_config.num_attention_heads,
            dim_feedforward=4 * dim,
            dropout=0.0,
            activation=ACT2FN["quick_gelu"],
            layer_norm_eps=1e-12,
            batch_first=True,
            norm_first=True,
        )
        self.encoder = nn.TransformerEncoder(layer, config.temporal_head_layers, enable_nested_tensor=False)

    def forward(self, frame_embeds: torch.Tensor) -> torch.Tensor:
        num_frames, num_positions = frame_embeds.shape[1], self.position_embedding.num_embeddings
        if num_frames > num_positions:
            raise ValueError(
                f"The videos have {num_frames} frames, and the temporal head positions for {num_positions}. Sample "
                "fewer frames (the processor's `num_frames`)."
            )
        mixed = self.encoder(frame_embeds + self.position_embedding.weight[:num_frames])
        return (mixed + frame_embeds).mean(dim=1)

    def init_weights(self):
        init.normal_(self.position_embedding.weight, std=0.02)
        for module in self.encoder.modules():
            if isinstance(module, nn.Linear):
                init.normal_(module.weight, std=0.02)


class EZClipLSTMHead(EZClipMeanHead):
    """One LSTM over the frames, added to them ("LSTM")."""

    def __init__(self, config: EZClipConfig):
        super().__init__(config)
        self.lstm = nn.LSTM(config.projection_dim, config.projection_dim, batch_first=True)

    def forward(self, frame_embeds: torch.Tensor) -> torch.Tensor:
        mixed, _ = self.lstm(frame_embeds)
        return (mixed + frame_embeds).mean(dim=1)

    def init_weights(self):
        bound = self.lstm.hidden_size**-0.5
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
        layer = nn.TransformerEncoderLayer(dim, nhead=8, dropout=config.temporal_head_dropout, batch_first=True)
        self.encoder = nn.TransformerEncoder(
            layer, config.temporal_head_layers, norm=nn.LayerNorm(dim), enable_nested_tensor=False
        )

    def forward(self, frame_embeds: torch.Tensor) -> torch.Tensor:
        num_frames, num_positions = frame_embeds.shape[1], self.position_embedding.shape[1] - 1
        if num_frames != num_positions:
            raise ValueError(
                f"The videos have {num_frames} frames, and the temporal head positions for {num_positions}. Sample "
                f"{num_positions} frames (the processor's `num_frames`)."
            )
        tokens = torch.cat([self.cls_token.expand(len(frame_embeds), -1, -1), frame_embeds], dim=1)  # [B, T + 1, D]
        return self.encoder(tokens + self.position_embedding)[:, 0]

    def init_weights(self):
        for weight in (self.cls_token, self.position_embedding):
            init.trunc_normal_(weight, std=0.02, a=-0.04, b=0.04)
        for module in self.encoder.modules():
            if isinstance(module, nn.Linear):
                init.trunc_normal_(module.weight, std=0.02, a=-0.04, b=0.04)


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
