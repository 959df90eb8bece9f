"""Loss of a whole batch and its exact gradient, on several processes and in micro-batches.

Every video is compared with the texts of the whole batch. The embeddings are small: they are gathered from all
processes, and each process computes the whole loss. A batch whose activations do not fit into memory is embedded
twice (Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", 2021): once without a
graph, for the loss and its gradient with respect to the embeddings; then micro-batch by micro-batch with a graph and
the same dropout masks, for the gradient of the weights.

A text that several videos share is embedded once. With dropout in the text tower, each copy is embedded with a mask
of its own, as published.
"""

from contextlib import nullcontext

import torch
from accelerate import Accelerator

from ezclip.training.distillation import Distillation
from modeling_ezclip import EZClipModel, video_text_losses


EMBEDDINGS = ("video_embeds", "text_embeds", "frame_embeds")
# Fields of a text tower's configuration
DROPOUT_FIELDS = ("attention_dropout", "drop_path_rate", "attention_probs_dropout_prob", "hidden_dropout_prob")


def backward(
    model: EZClipModel,
    batch: dict,
    accelerator: Accelerator,
    micro_batch_size: int | None = None,
    distillation: Distillation | None = None,
    factor: float = 1.0,
) -> dict[str, torch.Tensor]:
    """
    Add the gradient of the loss of the whole batch to the gradients of the weights.

    Args:
        model ([`EZClipModel`]):
            The model, as `accelerator` prepared it.
        batch (`dict`):
            Part of the batch on this process: `pixel_values`, `labels`, and what the tokenizer returns, such as
            `input_ids` and `attention_mask`. All processes have the same number of videos.
        accelerator (`Accelerator`):
            Processes and precision.
        micro_batch_size (`int`, *optional*):
            Videos whose activations are kept at a time. By default all videos of this process.
        distillation ([`Distillation`], *optional*):
            A teacher, whose loss is added to that of the batch.
        factor (`float`, *optional*, defaults to 1.0):
            Factor of the gradient, not of the losses that are returned.

    Returns:
        `dict`: `loss`, `loss_video`, `loss_text` and `loss_motion` of the whole batch, and those of the distillation;
        equal on all processes.
    """
    labels = batch["labels"]
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    if micro_batch_size is None or micro_batch_size >= len(labels):
        shared = _share_texts(inputs, accelerator.unwrap_model(model))
        embeddings = {**_embed(model, *shared), **_embed_by_teacher(distillation, shared, accelerator)}
        scale = accelerator.unwrap_model(model).logit_scale.exp()
        losses = _losses_of_all(model, embeddings, scale, labels, accelerator, distillation)
        accelerator.backward(factor * losses["loss"])
    else:
        losses = _backward_in_chunks(model, inputs, labels, accelerator, micro_batch_size, distillation, factor)
    return {name: value.detach() for name, value in losses.items()}


def _share_texts(inputs: dict, model: EZClipModel) -> tuple[dict, list[int] | None]:
    """Return the inputs with each distinct text once, and each video's text index (`None`: texts stay as they are)."""
    text = model.text_model
    has_dropout = text.training and any(getattr(text.config, name, 0) > 0 for name in DROPOUT_FIELDS)
    tokens = {name: value for name, value in inputs.items() if name != "pixel_values"}
    texts = [*map(str, torch.cat([*tokens.values()], dim=1).tolist())]
    if has_dropout or len(set(texts)) == len(texts):
        return inputs, None
    first = {row: number for number, row in reversed([*enumerate(texts)])}
    kept = sorted(first.values())
    return {**inputs, **{name: value[kept] for name, value in tokens.items()}}, [
        kept.index(first[row]) for row in texts
    ]


def _embed(model: EZClipModel, inputs: dict, text_of_video: list[int] | None) -> dict[str, torch.Tensor]:
    """Embed videos, and the text of each video."""
    outputs = model(**inputs, output_last_hidden_state=False)
    embeddings = {name: outputs[name] for name in EMBEDDINGS}
    if text_of_video is not None:
        embeddings["text_embeds"] = embeddings["text_embeds"][text_of_video]
    return embeddings


def _embed_by_teacher(
    distillation: Distillation | None, shared: tuple[dict, list[int] | None], accelerator: Accelerator
) -> dict[str, torch.Tensor]:
    """Embed videos and texts by the teacher, if there is one, without a graph."""
    if distillation is None:
        return {}
    with torch.no_grad(), accelerator.autocast():
        embeddings = _embed(distillation.teacher, *shared)
    return {f"teacher_{name}": embeddings[name] for name in ("frame_embeds", "text_embeds")}


def _losses_of_all(
    model: EZClipModel,
    embeddings: dict,
    logit_scale: torch.Tensor,
    labels: torch.LongTensor,
    accelerator: Accelerator,
    distillation: Distillation | None,
) -> dict[str, torch.Tensor]:
    if accelerator.num_processes > 1:
        embeddings = {name: _Gather.apply(value, accelerator) for name, value in embeddings.items()}
        labels = accelerator.gather(labels)
    logits_per_video = logit_scale * embeddings["video_embeds"].float() @ embeddings["text_embeds"].float().t()
    weight = accelerator.unwrap_model(model).config.motion_loss_weight
    losses = video_text_losses(logits_per_video, embeddings["frame_embeds"], labels, weight)
    return losses if distillation is None else distillation.add_losses(losses, embeddings)


def _backward_in_chunks(
    model: EZClipModel,
    inputs: dict,
    labels: torch.LongTensor,
    accelerator: Accelerator,
    size: int,
    distillation: Distillation | None,
    factor: float,
) -> dict[str, torch.Tensor]:
    starts = range(0, len(labels), size)
    chunks = [{name: value[start : start + size] for name, value in inputs.items()} for start in starts]
    chunks = [_share_texts(chunk, accelerator.unwrap_model(model)) for chunk in chunks]
    states, embedded, taught = [], [], []
    with torch.no_grad():
        for chunk in chunks:
            states.append(_get_random_states(accelerator.device))
            embedded.append(_embed(model, *chunk))
            taught.append(_embed_by_teacher(distillation, chunk, accelerator))
    leaves = {name: torch.cat([part[name] for part in embedded]).requires_grad_() for name in EMBEDDINGS}
    # logit_scale is used outside of the model's forward, so its gradient is added to the surrogate below.
    logit_scale = accelerator.unwrap_model(model).logit_scale
    scale = logit_scale.detach().exp().requires_grad_()
    teacher = {name: torch.cat([part[name] for part in taught]) for name in taught[0]}
    losses = _losses_of_all(model, {**leaves, **teacher}, scale, labels, accelerator, distillation)
    accelerator.backward(factor * losses["loss"])  # applies the loss scale of float16

    for number, (start, chunk, state) in enumerate(zip(starts, chunks, states)):
        is_last = number == len(chunks) - 1
        with nullcontext() if is_last else accelerator.no_sync(model):
            _set_random_states(state, accelerator.device)
            surrogate = sum(
                (value * leaves[name].grad[start : start + size].to(value.dtype)).sum()
                for name, value in _embed(model, *chunk).items()
            )
            if is_last and logit_scale.requires_grad:
                surrogate = surrogate + logit_scale.exp() * scale.grad
            surrogate.backward()  # the gradients of the leaves are already scaled
    return losses


class _Gather(torch.autograd.Function):
    """Gather of the rows of all processes. Each process has the whole loss, so backward sums over processes."""

    @staticmethod
    def forward(ctx, tensor: torch.Tensor, accelerator: Accelerator) -> torch.Tensor:
        ctx.accelerator, ctx.size = accelerator, len(tensor)
        return accelerator.gather(tensor.contiguous())

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        gradient = ctx.accelerator.reduce(gradient, reduction="sum")
        start = ctx.accelerator.process_index * ctx.size
        return gradient[start : start + ctx.size], None


def _get_random_states(device: torch.device) -> list[torch.Tensor]:
    states = [torch.get_rng_state()]
    if device.type != "cpu":
        states.append(torch.get_device_module(device).get_rng_state(device))
    return states


def _set_random_states(states: list[torch.Tensor], device: torch.device):
    torch.set_rng_state(states[0])
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(states[1], device)
