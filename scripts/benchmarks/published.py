"""The published EZ-CLIP in plain PyTorch, written anew from its description: the work of a step as the authors do it.

All tokens go through all blocks, prompts are concatenated, texts are padded to the maximal length, and attention is
`nn.MultiheadAttention`. Weights have the authors' names.
"""

import torch
from torch import nn

from configuration_ezclip import EZClipConfig, EZClipTextConfig, EZClipVisionConfig
from modeling_ezclip import video_text_losses


class QuickGELU(nn.Module):
    """CLIP's activation."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return `x * sigmoid(1.702 * x)`."""
        return x * torch.sigmoid(1.702 * x)


class DropPath(nn.Module):
    """Drop parts of a branch `(L, N, D)` by token position, as published."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the scaled branch, or `x` in evaluation."""
        if self.rate == 0 or not self.training:
            return x
        return x * x.new_empty(len(x), 1, 1).bernoulli_(1 - self.rate) / (1 - self.rate)


class Adapter(nn.Module):
    """Two linear layers beside a residual connection."""

    def __init__(self, width: int, ratio: float):
        super().__init__()
        self.D_fc1 = nn.Linear(width, int(width * ratio))
        self.D_fc2 = nn.Linear(int(width * ratio), width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the adapted tokens."""
        return x + self.D_fc2(nn.functional.gelu(self.D_fc1(x)))


class Block(nn.Module):
    """A block of one of the towers over tokens `(L, N, D)`."""

    def __init__(self, config: EZClipTextConfig | EZClipVisionConfig, dropout: float):
        super().__init__()
        width = config.hidden_size
        self.ln_1, self.ln_2 = (nn.LayerNorm(width, config.layer_norm_eps) for _ in range(2))
        self.attn = nn.MultiheadAttention(width, config.num_attention_heads, dropout=dropout)
        self.Adapter, self.drop_path = Adapter(width, config.adapter_ratio), DropPath(dropout)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, config.intermediate_size))
        self.mlp.add_module("gelu", QuickGELU())
        self.mlp.add_module("c_proj", nn.Linear(config.intermediate_size, width))

    def attend(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Return the attention branch of tokens."""
        x = self.ln_1(x)
        return self.drop_path(self.attn(x, x, x, need_weights=False, attn_mask=mask)[0])

    def forward(
        self, x: torch.Tensor, prompt: torch.Tensor | None = None, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the tokens `(L, N, D)` after the block. `prompt` `(T, D)` adds a summary token to each frame."""
        length, batch, width = x.shape
        tokens = x
        if prompt is not None:
            frames = x.view(length, -1, len(prompt), width).mean(0)  # (B, T, D)
            summary = self.attend((frames + prompt).transpose(0, 1))  # (T, B, D)
            tokens = torch.cat([x, summary.transpose(0, 1).reshape(1, batch, width)])
        x = (tokens + self.attend(tokens, mask))[:length]
        x = self.Adapter(x)
        return x + self.drop_path(self.mlp(self.ln_2(x)))


class Blocks(nn.Module):
    """The blocks of a tower, with temporal prompts `(layers, T, D)` if it has any."""

    def __init__(self, config: EZClipTextConfig | EZClipVisionConfig):
        super().__init__()
        rates = torch.linspace(0, config.drop_path_rate, config.num_hidden_layers).tolist()
        self.resblocks = nn.ModuleList(Block(config, rate) for rate in rates)
        self.prompt_dropout = getattr(config, "temporal_prompt_dropout", 0.0)
        if isinstance(config, EZClipVisionConfig):
            self.T_prompt_embeddings = nn.Parameter(
                torch.empty(config.num_hidden_layers, config.num_frames, config.hidden_size).uniform_(-0.0625, 0.0625)
            )

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Return the tokens `(L, N, D)` of the last block."""
        for layer, block in enumerate(self.resblocks):
            prompt = None
            if mask is None:
                prompt = nn.functional.dropout(self.T_prompt_embeddings[layer], self.prompt_dropout, self.training)
            x = block(x, prompt=prompt, mask=mask)  # hooks that count work look at positional arguments
        return x


class VisionTower(nn.Module):
    """Embeds frames."""

    def __init__(self, config: EZClipVisionConfig, projection_dim: int):
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.conv1 = nn.Conv2d(config.num_channels, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(width**-0.5 * torch.randn(width))
        self.positional_embedding = nn.Parameter(
            width**-0.5 * torch.randn((config.image_size // patch) ** 2 + 1, width)
        )
        self.temporal_embedding = nn.Parameter(torch.zeros(1, config.num_frames, width))
        self.ln_pre, self.ln_post = (nn.LayerNorm(width, config.layer_norm_eps) for _ in range(2))
        self.transformer = Blocks(config)
        self.proj = nn.Parameter(width**-0.5 * torch.randn(width, projection_dim))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return frame embeddings `(B, T, D)` of clips `(B, T, 3, H, W)`, not normalised."""
        batch_size, num_frames = pixel_values.shape[:2]
        x = self.conv1(pixel_values.flatten(0, 1)).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1) + self.positional_embedding
        x = x.unflatten(0, (batch_size, num_frames)) + self.temporal_embedding[0, :, None]
        x = self.transformer(self.ln_pre(x.flatten(0, 1)).transpose(0, 1)).transpose(0, 1)
        return (self.ln_post(x[:, 0]) @ self.proj).unflatten(0, (batch_size, num_frames))


class PublishedModel(nn.Module):
    """EZ-CLIP with deep temporal prompts and adapters in both towers. The other weights are frozen."""

    def __init__(self, config: EZClipConfig):
        super().__init__()
        text, width = config.text_config, config.text_config.hidden_size
        self.visual = VisionTower(config.vision_config, config.projection_dim)
        self.transformer = Blocks(text)
        self.token_embedding = nn.Embedding(text.vocab_size, width)
        self.positional_embedding = nn.Parameter(0.01 * torch.randn(text.max_position_embeddings, width))
        self.ln_final = nn.LayerNorm(width, text.layer_norm_eps)
        self.text_projection = nn.Parameter(width**-0.5 * torch.randn(width, config.projection_dim))
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale_init_value))
        self.motion_loss_weight = config.motion_loss_weight
        for name, parameter in self.named_parameters():
            parameter.requires_grad_("Adapter" in name or "prompt" in name)

    def encode_text(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return text embeddings `(N, D)`, not normalised. The end-of-text token is the one with the highest id."""
        ends = input_ids.argmax(dim=-1)
        input_ids = nn.functional.pad(input_ids, (0, len(self.positional_embedding) - input_ids.shape[1]))
        x = self.token_embedding(input_ids) + self.positional_embedding
        mask = torch.full((x.shape[1],) * 2, float("-inf"), device=x.device).triu(1)
        x = self.ln_final(self.transformer(x.transpose(0, 1), mask).transpose(0, 1))
        return x[torch.arange(len(x), device=x.device), ends] @ self.text_projection

    def forward(self, pixel_values: torch.Tensor, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the loss of clips and the text of each."""
        frames = self.visual(pixel_values)
        videos, texts = (
            nn.functional.normalize(one, dim=-1) for one in (frames.mean(dim=1), self.encode_text(input_ids))
        )
        logits = self.logit_scale.exp() * videos @ texts.t()
        return video_text_losses(logits, frames, labels, self.motion_loss_weight)["loss"]


def is_published(config: EZClipConfig) -> bool:
    """Return whether [`PublishedModel`] is the system of a configuration."""
    vision, text = config.vision_config, config.text_config
    return (
        isinstance(vision, EZClipVisionConfig)
        and isinstance(text, EZClipTextConfig)
        and (vision.temporal_prompt, vision.use_adapter, text.use_adapter) == ("deep", True, True)
        and config.temporal_head == "mean"
        and not (vision.use_temporal_adapter or vision.use_temporal_shift or vision.use_joint_attention)
    )
