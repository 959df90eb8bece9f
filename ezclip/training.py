"""Training of prompts and adapters, as published: AdamW, linear warm-up, cosine to zero, every step."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from tqdm.auto import tqdm
from transformers import get_cosine_schedule_with_warmup

from .data import ReadReport, VideoDataset, make_loader
from .errors import DataError
from .modeling_ezclip import EZClipModel


def _option(default, help):
    return field(default=default, metadata={"help": help})


@dataclass
class TrainingRecipe:
    """How long and how fast to train; the help of each field says what it is."""

    learning_rate: float = _option(1e-4, "Peak rate of the adapters.")
    prompt_learning_rate: float | None = _option(None, "Peak rate of the temporal prompts, if another.")
    text_learning_rate: float | None = _option(None, "Peak rate of what is trained in the text tower, if another.")
    weight_decay: float = _option(0.2, "AdamW's decay, of all that is trained.")
    warmup_ratio: float = _option(
        0.1, "Part of the steps in which the rates rise from 0; 5 epochs of 50 as published."
    )
    num_train_epochs: int = _option(50, "Passes over the training set.")
    max_train_steps: int | None = _option(None, "Number of steps, in place of --num_train_epochs.")
    max_grad_norm: float | None = _option(None, "Longer gradients are scaled down to this norm. Not published.")
    per_device_train_batch_size: int = _option(
        32, "Videos per process and step; each is compared with the texts of all of them."
    )
    logging_steps: int = _option(10, "Steps between two entries of the log.")


def make_optimizer(model: EZClipModel, recipe: TrainingRecipe) -> torch.optim.AdamW:
    """AdamW with the published betas (0.9, 0.98) and epsilon 1e-8 over what the model leaves trainable."""
    rates = {"prompt": recipe.prompt_learning_rate, "text": recipe.text_learning_rate, "vision": None}
    groups = {kind: [] for kind in rates}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kind = "prompt" if "temporal_prompt" in name else "text" if name.startswith("text_") else "vision"
            groups[kind].append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "lr": recipe.learning_rate if rates[kind] is None else rates[kind]}
            for kind, parameters in groups.items()
            if parameters
        ],
        betas=(0.9, 0.98),
        eps=1e-8,
        weight_decay=recipe.weight_decay,
    )


def train(
    model: EZClipModel,
    dataset: VideoDataset,
    recipe: TrainingRecipe,
    accelerator: Accelerator,
    num_workers: int = 0,
    strict: bool = False,
    log: Callable[[dict], None] | None = None,
) -> ReadReport:
    """
    Train a model in place.

    Args:
        model ([`EZClipModel`]):
            The model; what it has frozen stays as it is.
        dataset ([`VideoDataset`]):
            Training videos, with prompts.
        recipe ([`TrainingRecipe`]):
            How long and how fast.
        accelerator (`Accelerator`):
            Device, processes and precision.
        num_workers (`int`, *optional*, defaults to 0):
            Processes that decode.
        strict (`bool`, *optional*, defaults to `False`):
            Whether the first unreadable video ends the run.
        log (`Callable[[dict], None]`, *optional*):
            Takes `step`, `epoch`, `loss`, its parts and `learning_rate` every `logging_steps` steps.

    Returns:
        [`ReadReport`]: which videos could not be read and were replaced, and which were read in part.

    Raises:
        [`DataError`]: if there are too few videos for a batch, or none can be read. [`VideoReadError`]: with `strict`,
        for the first unreadable video.
    """
    if recipe.per_device_train_batch_size < 2:
        raise DataError("--per_device_train_batch_size must be at least 2: the loss compares the videos of a batch.")
    needed = recipe.per_device_train_batch_size * accelerator.num_processes
    if len(dataset) < needed:
        raise DataError(
            f"A step takes {needed} videos ({recipe.per_device_train_batch_size} on each of "
            f"{accelerator.num_processes} processes) and there are {len(dataset)}. Lower "
            "--per_device_train_batch_size."
        )
    dataset[0]  # says here, rather than in a worker, if no video at all can be read
    loader = make_loader(
        dataset,
        recipe.per_device_train_batch_size,
        num_workers,
        shuffle=True,
        # Accelerate would fill up the last batch with repeated videos.
        drop_last=True,
        generator=torch.Generator().manual_seed(dataset.seed),
    )
    optimizer = make_optimizer(model, recipe)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    num_steps = recipe.max_train_steps
    if num_steps is None:
        num_steps = recipe.num_train_epochs * len(loader)
    # Not prepared: Accelerate would step it once for every process.
    schedule = get_cosine_schedule_with_warmup(optimizer, round(recipe.warmup_ratio * num_steps), num_steps)

    model.train()
    step, epoch, report = 0, 0, ReadReport()
    progress = tqdm(total=num_steps, desc="Training", unit="step", disable=not accelerator.is_local_main_process)
    while step < num_steps:
        dataset.set_epoch(epoch)
        loader.set_epoch(epoch)
        for batch in loader:
            report.take(batch, strict)
            del batch["index"]
            with accelerator.autocast():
                outputs = model(**batch)
            accelerator.backward(outputs.loss)
            if recipe.max_grad_norm is not None:
                accelerator.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            step += 1
            progress.update()
            if step % recipe.logging_steps == 0 or step == num_steps:
                names = ("loss", "loss_video", "loss_text", "loss_motion")
                entry = {"step": step, "epoch": epoch, **{name: outputs[name].item() for name in names}}
                entry["learning_rate"] = schedule.get_last_lr()[-1]
                progress.set_postfix(loss=f"{entry['loss']:.3f}", motion=f"{entry['loss_motion']:.3f}")
                if log is not None:
                    log(entry)
            if step == num_steps:
                break
        epoch += 1
    progress.close()
    report.gather()
    return report
