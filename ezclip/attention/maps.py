"""Compute attention maps: patches of each frame, patches for each label, and attention between frames.

Attention rollout: Abnar and Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020. Relevance: Chefer, Gur
and Wolf, "Generic Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder Transformers", ICCV
2021. Both follow attention through the blocks of one sequence. EZ-CLIP has a sequence for each frame, and a temporal
token that each block makes and drops. The temporal token attends to the frames by its own attention, and to all tokens
of a frame equally, since it reads their mean. The attention that a patch pays to it is distributed in these shares. So
the attention of a block over the tokens of all frames sums to 1, as in a transformer over the whole video.

SigLIP has no CLS token: a head pools the patches of each frame by attention, and its attention takes the place.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import torch

from ezclip.errors import DataError, ModelError
from modeling_ezclip import EZClipModel


ATTENTION_METHODS = ("last", "rollout")

# The attention implementation is a field of the config, so only one thread at a time may use a model.
_lock = threading.RLock()


@dataclass
class Pooling:
    """
    The attention by which a head pools F frames of L patches.

    Args:
        attended (`torch.Tensor` of shape `(F, 1, D)`):
            Its output.
        weights (`torch.Tensor` of shape `(F, heads, L)`):
            Its attention weights.
        values (`torch.Tensor` of shape `(F, L, heads, D / heads)`):
            Its values.
        projection (`torch.Tensor` of shape `(D, D)`):
            Weight of its last layer.
    """

    attended: torch.Tensor
    weights: torch.Tensor
    values: torch.Tensor
    projection: torch.Tensor

    def gradient_of_weights(self, gradient: torch.Tensor) -> torch.Tensor:
        """Return the gradient of the weights `(F, heads, L)`, given that of the output."""
        of_heads = (gradient[:, 0] @ self.projection).unflatten(-1, self.values.shape[2:])  # (F, heads, D / heads)
        return torch.einsum("fhd,flhd->fhl", of_heads, self.values)


@torch.no_grad()
def attention_maps(
    model: EZClipModel, pixel_values: torch.Tensor, method: str = "last", interpolate_pos_encoding: bool = False
) -> np.ndarray:
    """
    Return the attention to each patch of each frame. It does not depend on labels.

    Args:
        model ([`EZClipModel`]):
            The model. Its state is restored.
        pixel_values (`torch.Tensor` of shape `(B, T, 3, H, W)`):
            Frames of B videos, as the processor gives them.
        method (`str`, *optional*, defaults to `"last"`):
            `"last"`: attention of the CLS token in the last block, mean of the heads. The rest up to 1 is attention
            to the CLS token and, in EZ-CLIP, to the temporal token. `"rollout"`: attention from the CLS token through
            all blocks. Each block is averaged with the identity, for the residual connection. SigLIP has a head that
            pools instead of a CLS token: `"last"` is its attention, and the rollout begins with it.
        interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
            Whether to interpolate the position embedding to frames of another size.

    Returns:
        `np.ndarray` of shape `(B, T, H // patch_size, W // patch_size)`: float32, at least 0. The maps of a video sum
        to at most its number of CLS tokens: T, or 1 with joint attention. With `"last"` a map is the attention of the
        frame's own CLS token, with `"rollout"` the sum over the CLS tokens of all frames.

    Raises:
        `ValueError`: if the method is unknown, or the model does not take such frames.
    """
    if method not in ATTENTION_METHODS:
        raise ValueError(f"`method` must be one of {ATTENTION_METHODS}, got {method!r}.")
    outputs, pooling = _attend(model, pixel_values, interpolate_pos_encoding)
    blocks = [weights.float().mean(dim=1) for weights in outputs.attentions]
    pooled = None if pooling is None else pooling.weights.float().mean(dim=1)
    if method == "last":
        rows = blocks[-1][:, 0, : _num_tokens(model, pixel_values)] if pooled is None else pooled
    else:
        rows = _follow(model, pixel_values, blocks, outputs.temporal_attentions or (), pooled) / 2 ** len(blocks)
    return _as_maps(model, pixel_values, rows).cpu().numpy()


def relevance_maps(
    model: EZClipModel, pixel_values: torch.Tensor, text_embeds: torch.Tensor, interpolate_pos_encoding: bool = False
) -> np.ndarray:
    """
    Return the relevance of the patches of frames for each of C classes (Chefer, Gur and Wolf, ICCV 2021).

    In each block, attention is multiplied by its gradient, negative products become 0, and the heads are averaged. The
    gradient is that of the logit: the cosine of video and class, times `logit_scale.exp()`. It passes through the
    temporal head and the mean over frames.

    Args:
        model ([`EZClipModel`]):
            The model. Its state is restored, and no gradient stays in its parameters.
        pixel_values (`torch.Tensor` of shape `(B, T, 3, H, W)`):
            Frames of B videos, as the processor gives them.
        text_embeds (`torch.Tensor` of shape `(C, D)`):
            Embeddings of the classes. For a [`ClassBank`]: `bank.embeds.mean(dim=0)`.
        interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
            Whether to interpolate the position embedding to frames of another size.

    Returns:
        `np.ndarray` of shape `(B, C, T, H // patch_size, W // patch_size)`: float32, at least 0, with any sum.

    Raises:
        [`DataError`]: if there are no classes, or embeddings of another model.
        `ValueError`: if the model does not take such frames.
    """
    dim = model.config.projection_dim
    if text_embeds.ndim != 2 or len(text_embeds) == 0 or text_embeds.shape[1] != dim:
        raise DataError(
            f"`text_embeds` must have shape (classes, {dim}) and at least one row, got {tuple(text_embeds.shape)}."
        )
    # The pixels require a gradient because the weights may be frozen. Tensors of `inference_mode` cannot require one.
    with torch.inference_mode(False), torch.enable_grad():
        pixel_values, text_embeds = pixel_values.detach().clone().requires_grad_(), text_embeds.detach().clone()
        outputs, pooling = _attend(model, pixel_values, interpolate_pos_encoding)
        attended = [] if pooling is None else [pooling.attended]
        video_embeds = torch.nn.functional.normalize(outputs.pooler_output.float(), dim=-1)
        logits = model.logit_scale.detach().exp() * video_embeds @ text_embeds.to(video_embeds).t()  # (B, C)
        temporal = [weights.detach() for weights in outputs.temporal_attentions or ()]
        attentions, maps = outputs.attentions or (), []
        for score in logits.sum(dim=0):
            gradients = torch.autograd.grad(score, [*attentions, *attended], retain_graph=True)
            blocks = [
                (gradient.float() * weights.detach().float()).clamp(min=0).mean(dim=1)
                for gradient, weights in zip(gradients, attentions)
            ]
            pooled = None
            if pooling is not None:
                gradient = pooling.gradient_of_weights(gradients[-1])
                pooled = (gradient.float() * pooling.weights.float()).clamp(min=0).mean(dim=1)
            maps.append(_as_maps(model, pixel_values, _follow(model, pixel_values, blocks, temporal, pooled)))
    return torch.stack(maps, dim=1).detach().cpu().numpy()


@torch.no_grad()
def temporal_attention(
    model: EZClipModel, pixel_values: torch.Tensor, average_heads: bool = True, interpolate_pos_encoding: bool = False
) -> np.ndarray:
    """
    Return the frames that the temporal tokens attend to, block by block.

    Args:
        model ([`EZClipModel`]):
            A model with temporal prompts. Its state is restored.
        pixel_values (`torch.Tensor` of shape `(B, T, 3, H, W)`):
            Frames of B videos, as the processor gives them.
        average_heads (`bool`, *optional*, defaults to `True`):
            Whether to average the heads of a block.
        interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
            Whether to interpolate the position embedding to frames of another size.

    Returns:
        `np.ndarray` of shape `(B, N, T, T)`, or `(B, N, num_attention_heads, T, T)`, of N blocks with a prompt:
        float32. Row t holds the attention of the temporal token of frame t to each frame; rows sum to 1.

    Raises:
        [`ModelError`]: if the model has no temporal prompts.
        `ValueError`: if it does not take such frames.
    """
    if (prompt := model.config.vision_config.temporal_prompt) == "none":
        raise ModelError(
            f"The model has no temporal tokens: `temporal_prompt` must be 'deep' or 'shallow', got {prompt!r}."
        )
    recorded = _attend(model, pixel_values, interpolate_pos_encoding)[0].temporal_attentions
    matrices = torch.stack([weights.float() for weights in recorded], dim=1)  # (B, N, heads, T, T)
    return (matrices.mean(dim=2) if average_heads else matrices).cpu().numpy()


@contextmanager
def evaluation_mode(model: EZClipModel) -> Iterator[None]:
    """Put a model into evaluation mode inside the block, and restore the mode of every module after it."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _attend(model: EZClipModel, pixel_values: torch.Tensor, interpolate_pos_encoding: bool):
    """Return the output of the video tower with the attention of all blocks, and that of its pooling head, if any."""
    tower = model.vision_model
    with _lock, evaluation_mode(model), _recorded_pooling(tower) as pooling:
        implementation = tower.config._attn_implementation
        tower.set_attn_implementation("eager")  # others return no weights
        try:
            outputs = model.get_video_features(
                pixel_values.to(model.device, model.dtype),
                interpolate_pos_encoding,
                output_attentions=True,
                output_temporal_attentions=True,
                return_dict=True,
            )
        finally:
            tower.set_attn_implementation(implementation)
    return outputs, pooling[0] if pooling else None


@contextmanager
def _recorded_pooling(tower: Any) -> Iterator[list[Pooling]]:
    """Append the attention of the tower's pooling head, if it has one, to a list."""
    recorded, handles = [], []

    def ask_for_each_head(module, args, kwargs):
        return args, {**kwargs, "average_attn_weights": False}

    def record(module, args, output):
        _, tokens, _ = args
        weight, bias = module.in_proj_weight[2 * module.embed_dim :], module.in_proj_bias[2 * module.embed_dim :]
        values = torch.nn.functional.linear(tokens, weight, bias).unflatten(-1, (module.num_heads, -1))
        recorded.append(
            Pooling(output[0], output[1][:, :, 0].detach(), values.detach(), module.out_proj.weight.detach())
        )

    if not tower.config.has_clip_embeddings:
        attention = tower.head.attention
        handles.append(attention.register_forward_pre_hook(ask_for_each_head, with_kwargs=True))
        handles.append(attention.register_forward_hook(record))
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()


def _follow(
    model: EZClipModel,
    pixel_values: torch.Tensor,
    blocks: list[torch.Tensor],
    temporal: Sequence[torch.Tensor],
    pooled: torch.Tensor | None,
) -> torch.Tensor:
    """
    Multiply the identity plus the attention of each block, and return the rows of the CLS tokens: `(B, F, L)`.

    `pooled` `(B * F, L)` is the attention of the pooling head, whose row is returned if there is no CLS token.

    A video has F sequences: one for each frame, or one for all with joint attention. `blocks` have the shape
    `(B * F, L', L')`, where L' is L, or L + 1 with a temporal token at the end. `temporal`, `(B, heads, F, F)`, is the
    attention of the temporal tokens over the frames, in all blocks or only in the first.
    """
    length, batch_size = _num_tokens(model, pixel_values), len(pixel_values)
    if pooled is None:
        rows = blocks[0].new_zeros(batch_size, len(blocks[0]) // batch_size, length)
        rows[..., 0] = 1.0
    else:
        rows = pooled.unflatten(0, (batch_size, -1))
    for block, frames in reversed(list(zip_longest(blocks, temporal))):
        # The next block drops the temporal token, so its row is not needed.
        block = block.unflatten(0, rows.shape[:2])[:, :, :length]
        moved = torch.einsum("bfi,bfij->bfj", rows, block)
        rows = rows + moved[..., :length]
        if frames is not None:
            share = torch.einsum("bt,bts->bs", moved[..., length], frames.float().mean(dim=1))
            rows = rows + share[..., None] / length
    return rows


def _num_tokens(model: EZClipModel, pixel_values: torch.Tensor) -> int:
    """Return the length of a sequence without the temporal token."""
    height, width = _grid(model, pixel_values)
    config = model.config.vision_config
    return config.has_clip_embeddings + height * width * (pixel_values.shape[1] if config.use_joint_attention else 1)


def _grid(model: EZClipModel, pixel_values: torch.Tensor) -> tuple[int, int]:
    """Return the number of rows and columns of patches."""
    patch_size = model.config.vision_config.patch_size
    return pixel_values.shape[-2] // patch_size, pixel_values.shape[-1] // patch_size


def _as_maps(model: EZClipModel, pixel_values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Arrange the patches of rows `(…, L)` as `(B, T, height, width)`."""
    patches = rows[..., 1:] if model.config.vision_config.has_clip_embeddings else rows
    return patches.reshape(*pixel_values.shape[:2], *_grid(model, pixel_values))
