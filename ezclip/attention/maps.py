"""Where a model looks, as arrays: which patches of each frame, for which label, and which frames of a video.

Attention rollout: Abnar and Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020. Relevance: Chefer, Gur
and Wolf, "Generic Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder Transformers", ICCV
2021. Both follow attention through the blocks of one sequence. EZ-CLIP's blocks join the frames by a token that is
made for the block and left behind: what a patch takes of it comes from the frames that it listens to, from all tokens
of a frame alike, since it reads their mean. With that, the attention of a block over the tokens of all frames sums to
1, as in a transformer over the whole video.
"""

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from configuration_ezclip import EZClipConfig
from ezclip.errors import DataError, ModelError
from ezclip.systems.presets import TEXT_FIELDS, VISION_FIELDS
from modeling_ezclip import EZClipModel


ATTENTION_METHODS = ("last", "rollout")

# The attention implementation is a field of the config, so two threads with one model must take turns.
_lock = threading.RLock()


@torch.no_grad()
def attention_maps(
    model: EZClipModel, pixel_values: torch.Tensor, method: str = "last", interpolate_pos_encoding: bool = False
) -> np.ndarray:
    """
    Return the attention that the patches of frames get, without regard to labels.

    Args:
        model ([`EZClipModel`]):
            The model. Its state is restored.
        pixel_values (`torch.Tensor` of shape `(B, T, 3, H, W)`):
            Frames of B videos, as the processor gives them.
        method (`str`, *optional*, defaults to `"last"`):
            `"last"`: of the CLS token in the last block, mean of the heads. What is left to 1 went to the CLS token
            itself and, in EZ-CLIP, to the temporal token. `"rollout"`: attention followed from the CLS token through
            all blocks to the patches, half of it staying at its place in every block.
        interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
            Whether to interpolate the position embedding to frames of another size.

    Returns:
        `np.ndarray` of shape `(B, T, H // patch_size, W // patch_size)`: float32, at least 0. The maps of a video sum
        to at most T, its number of CLS tokens, or with joint attention, where it has one, to 1. With `"last"` a map is
        what the CLS token of a frame takes of it, with `"rollout"` what those of all frames do.

    Raises:
        `ValueError`: if the method is unknown, or the model does not take such frames.
    """
    if method not in ATTENTION_METHODS:
        raise ValueError(f"`method` must be one of {ATTENTION_METHODS}, got {method!r}.")
    outputs = _attend(model, pixel_values, interpolate_pos_encoding)
    blocks = [weights.float().mean(dim=1) for weights in outputs.attentions]
    rows = _cls_rows(model, pixel_values, blocks)
    if method == "last":
        rows = torch.einsum("bfi,bfij->bfj", rows, _by_video(blocks[-1], rows))[..., : rows.shape[-1]]
    else:
        for block, temporal in _from_the_top(blocks, outputs.temporal_attentions):
            rows = (rows + _pass_on(rows, block, temporal)) / 2
    return _as_maps(model, pixel_values, rows).cpu().numpy()


def relevance_maps(
    model: EZClipModel,
    pixel_values: torch.Tensor,
    text_embeds: torch.Tensor,
    interpolate_pos_encoding: bool = False,
) -> np.ndarray:
    """
    Return the relevance of the patches of frames for each of C classes (Chefer, Gur and Wolf, ICCV 2021).

    Each block multiplies attention by its gradient, sets negative products to 0, and averages the heads.
    The result is added to the relevance. The gradient is that of the cosine of video and class, times
    `logit_scale.exp()`; it passes through the temporal head and the mean over frames.

    Args:
        model ([`EZClipModel`]):
            The model. Its state is restored, and no gradient stays in its parameters.
        pixel_values (`torch.Tensor` of shape `(B, T, 3, H, W)`):
            Frames of B videos, as the processor gives them.
        text_embeds (`torch.Tensor` of shape `(C, D)`):
            Embeddings of the classes; of a [`ClassBank`], `bank.embeds.mean(dim=0)`.
        interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
            Whether to interpolate the position embedding to frames of another size.

    Returns:
        `np.ndarray` of shape `(B, C, T, H // patch_size, W // patch_size)`: float32, at least 0. The sum is not fixed.

    Raises:
        [`DataError`]: if there are no classes, or embeddings of another model.
        `ValueError`: if the model does not take such frames.
    """
    dim = model.config.projection_dim
    if text_embeds.ndim != 2 or len(text_embeds) == 0 or text_embeds.shape[1] != dim:
        raise DataError(
            f"`text_embeds` must have shape (classes, {dim}) and at least one row, got {tuple(text_embeds.shape)}."
        )
    # The pixels require the gradient: frozen weights have none, and tensors made under `inference_mode` cannot.
    with torch.inference_mode(False), torch.enable_grad():
        pixel_values, text_embeds = pixel_values.detach().clone().requires_grad_(), text_embeds.detach().clone()
        outputs = _attend(model, pixel_values, interpolate_pos_encoding)
        video_embeds = torch.nn.functional.normalize(outputs.pooler_output.float(), dim=-1)
        logits = model.logit_scale.detach().exp() * video_embeds @ text_embeds.to(video_embeds).t()  # [B, C]
        temporal = [weights.detach() for weights in outputs.temporal_attentions]
        maps = []
        for score in logits.sum(dim=0):
            gradients = torch.autograd.grad(score, outputs.attentions, retain_graph=True)
            blocks = [
                (gradient.float() * weights.detach().float()).clamp(min=0).mean(dim=1)
                for gradient, weights in zip(gradients, outputs.attentions)
            ]
            rows = _cls_rows(model, pixel_values, blocks)
            for block, frames in _from_the_top(blocks, temporal):
                rows = rows + _pass_on(rows, block, frames)
            maps.append(_as_maps(model, pixel_values, rows))
    return torch.stack(maps, dim=1).detach().cpu().numpy()


@torch.no_grad()
def temporal_attention(
    model: EZClipModel,
    pixel_values: torch.Tensor,
    average_heads: bool = True,
    interpolate_pos_encoding: bool = False,
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
    if not has_temporal_tokens(model):
        raise ModelError(
            "The model has no temporal tokens: `temporal_prompt` must be 'deep' or 'shallow', got "
            f"{model.config.vision_config.temporal_prompt!r}."
        )
    recorded = _attend(model, pixel_values, interpolate_pos_encoding).temporal_attentions
    matrices = torch.stack([weights.float() for weights in recorded], dim=1)  # [B, N, heads, T, T]
    return (matrices.mean(dim=2) if average_heads else matrices).cpu().numpy()


def has_temporal_tokens(model: EZClipModel) -> bool:
    """Return whether [`temporal_attention`] applies to a model."""
    return model.config.vision_config.temporal_prompt != "none"


def plain_clip(model: EZClipModel) -> EZClipModel:
    """
    Return the CLIP inside a model: the same weights without prompts, adapters, shift and temporal head.

    This is the original CLIP if it was frozen in training, but not if everything was trained (ActionCLIP).

    Args:
        model ([`EZClipModel`]):
            The model. The weights are shared, not copied.

    Returns:
        [`EZClipModel`]: in evaluation mode.
    """
    config, plain = copy.deepcopy(model.config), EZClipConfig.from_preset("clip")
    for tower, names in (("vision_config", VISION_FIELDS), ("text_config", TEXT_FIELDS)):
        for name in names:
            setattr(getattr(config, tower), name, getattr(getattr(plain, tower), name))
    config.temporal_head = plain.temporal_head
    with torch.device("meta"):
        clip = EZClipModel(config)
    weights = model.state_dict()
    clip.load_state_dict({name: weights[name] for name in clip.state_dict()}, assign=True)
    for name, module in clip.named_modules():
        for buffer in module._buffers:  # position ids, which are not in the state dict
            setattr(module, buffer, getattr(model.get_submodule(name), buffer))
    return clip.eval()


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


@contextmanager
def _recording(model: EZClipModel) -> Iterator[None]:
    """Use eager attention inside the block, so that the weights can be recorded."""
    tower = model.vision_model
    with _lock, evaluation_mode(model):
        implementation = tower.config._attn_implementation
        tower.set_attn_implementation("eager")
        try:
            yield
        finally:
            tower.set_attn_implementation(implementation)


def _attend(model: EZClipModel, pixel_values: torch.Tensor, interpolate_pos_encoding: bool):
    """Return the output of the video tower with the attention of all blocks."""
    with _recording(model):
        return model.get_video_features(
            pixel_values.to(model.device, model.dtype),
            interpolate_pos_encoding,
            output_attentions=True,
            output_temporal_attentions=True,
            return_dict=True,
        )


def _cls_rows(model: EZClipModel, pixel_values: torch.Tensor, blocks: list[torch.Tensor]) -> torch.Tensor:
    """
    Return the attention of a video's CLS tokens in the last block: `(B, F, L)`.

    L tokens stand in each of F sequences: one for each frame, or one for all of them with joint attention.
    """
    grid, num_frames = _grid(model, pixel_values), pixel_values.shape[1]
    is_joint = model.config.vision_config.use_joint_attention
    length = 1 + grid[0] * grid[1] * (num_frames if is_joint else 1)
    rows = blocks[-1].new_zeros(len(pixel_values), 1 if is_joint else num_frames, length)
    rows[..., 0] = 1.0
    return rows


def _from_the_top(blocks: list[torch.Tensor], temporal: tuple[torch.Tensor, ...] | list[torch.Tensor]):
    """
    Yield the attention of each block and of its temporal tokens, `(B, T, T)` or `None`, from the last block down.
    """
    # Prompts are in all blocks, or in the first.
    frames = [*(weights.float().mean(dim=1) for weights in temporal), *[None] * (len(blocks) - len(temporal))]
    return reversed(list(zip(blocks, frames)))


def _pass_on(rows: torch.Tensor, block: torch.Tensor, temporal: torch.Tensor | None) -> torch.Tensor:
    """
    Distribute the shares of the tokens behind a block over the tokens before it.

    Args:
        rows (`torch.Tensor` of shape `(B, F, L)`):
            The shares behind the block.
        block (`torch.Tensor` of shape `(B * F, L', L')`):
            Attention of the block; with a temporal token, the last, L' is L + 1.
        temporal (`torch.Tensor` of shape `(B, F, F)`, *optional*):
            Attention of the temporal tokens over the frames.
    """
    length = rows.shape[-1]
    moved = torch.einsum("bfi,bfij->bfj", rows, _by_video(block, rows))
    if temporal is None:
        return moved
    of_frames = torch.einsum("bt,bts->bs", moved[..., length], temporal)  # shares of the temporal tokens
    return moved[..., :length] + of_frames[..., None] / length


def _by_video(block: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """
    Return the attention of a block as `(B, F, L, L')`, without the row of its temporal token, which the next block
    lacks.
    """
    return block.unflatten(0, rows.shape[:2])[:, :, : rows.shape[-1]]


def _grid(model: EZClipModel, pixel_values: torch.Tensor) -> tuple[int, int]:
    """Return the number of rows and columns of patches."""
    patch_size = model.config.vision_config.patch_size
    return pixel_values.shape[-2] // patch_size, pixel_values.shape[-1] // patch_size


def _as_maps(model: EZClipModel, pixel_values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Arrange the patches of rows `(B, F, L)` as `(B, T, height, width)`."""
    return rows[..., 1:].reshape(*pixel_values.shape[:2], *_grid(model, pixel_values))
