"""Training of prompts and adapters, as published: AdamW, linear warm-up, cosine to zero, every step."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm.auto import tqdm
from transformers import get_cosine_schedule_with_warmup

from .data import DataError, VideoCollator, VideoDataset
from .modeling_ezclip import EZClipModel
from .video_ezclip import VideoReadError


@dataclass
class TrainingRecipe:
    """
    How long and how fast to train.

    Args:
        learning_rate (`float`, *optional*, defaults to 1e-4):
            Peak rate of the adapters.
        prompt_learning_rate (`float`, *optional*):
            Peak rate of the temporal prompts. Defaults to `learning_rate`.
        weight_decay (`float`, *optional*, defaults to 0.2):
            AdamW's decay of all trained parameters.
        warmup_ratio (`float`, *optional*, defaults to 0.1):
            Fraction of the steps in which the rate rises from 0; 5 epochs of 50 as published.
        num_train_epochs (`int`, *optional*, defaults to 50):
            Passes over the training set.
        max_train_steps (`int`, *optional*):
            Number of steps, instead of `num_train_epochs`.
        per_device_train_batch_size (`int`, *optional*, defaults to 32):
            Videos per process and step. Every video is compared with the texts of its process's batch.
        logging_steps (`int`, *optional*, defaults to 10):
            Steps between two entries of the log.
    """

    learning_rate: float = 1e-4
    prompt_learning_rate: float | None = None
    weight_decay: float = 0.2
    warmup_ratio: float = 0.1
    num_train_epochs: int = 50
    max_train_steps: int | None = None
    per_device_train_batch_size: int = 32
    logging_steps: int = 10


def make_optimizer(model: EZClipModel, recipe: TrainingRecipe) -> torch.optim.AdamW:
    """AdamW with the published betas (0.9, 0.98) and epsilon 1e-8 over what the model leaves trainable."""
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    prompts = [parameter for name, parameter in trained if "temporal_prompt" in name]
    others = [parameter for name, parameter in trained if "temporal_prompt" not in name]
    prompt_rate = recipe.learning_rate if recipe.prompt_learning_rate is None else recipe.prompt_learning_rate
    groups = [{"params": prompts, "lr": prompt_rate}, {"params": others, "lr": recipe.learning_rate}]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], betas=(0.9, 0.98), eps=1e-8, weight_decay=recipe.weight_decay
    )


def train(
    model: EZClipModel,
    dataset: VideoDataset,
    recipe: TrainingRecipe,
    accelerator: Accelerator,
    num_workers: int = 0,
    strict: bool = False,
    log: Callable[[dict], None] | None = None,
) -> dict[int, VideoReadError]:
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
        `dict[int, VideoReadError]`: why, by position, for each video that could not be read and was replaced.

    Raises:
        [`DataError`]: if there are too few videos for a batch, or none can be read. [`VideoReadError`]: with `strict`,
        for the first unreadable video.
    """
    needed = recipe.per_device_train_batch_size * accelerator.num_processes
    if len(dataset) < needed:
        raise DataError(
            f"A step takes {needed} videos ({recipe.per_device_train_batch_size} on each of "
            f"{accelerator.num_processes} processes) and there are {len(dataset)}. Lower "
            "--per_device_train_batch_size."
        )
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_size=recipe.per_device_train_batch_size,
        shuffle=True,
        # Accelerate would fill up the last batch with repeated videos.
        drop_last=True,
        num_workers=num_workers,
        collate_fn=VideoCollator(dataset.processor),
        generator=torch.Generator().manual_seed(dataset.seed),
    )
    optimizer = make_optimizer(model, recipe)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    num_steps = recipe.max_train_steps or recipe.num_train_epochs * len(loader)
    # Not prepared: Accelerate would step it once for every process.
    schedule = get_cosine_schedule_with_warmup(optimizer, round(recipe.warmup_ratio * num_steps), num_steps)

    model.train()
    step, epoch, bad_videos = 0, 0, {}
    progress = tqdm(total=num_steps, desc="Training", unit="step", disable=not accelerator.is_local_main_process)
    while step < num_steps:
        dataset.set_epoch(epoch)
        loader.set_epoch(epoch)
        for batch in loader:
            bad_videos.update(batch.pop("bad_videos"))
            if strict and bad_videos:
                raise next(iter(bad_videos.values()))
            del batch["index"]
            with accelerator.autocast():
                outputs = model(**batch)
            accelerator.backward(outputs.loss)
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
    return dict(gather_object(list(bad_videos.items())))
