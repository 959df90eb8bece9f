"""Training of prompts and adapters, as published: AdamW, linear warm-up, cosine to zero, every step."""

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import SAFE_WEIGHTS_NAME, DistributedType
from safetensors.torch import save_file
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DistributedSampler
from transformers import TrainerState, get_cosine_schedule_with_warmup
from transformers.utils import logging

from ezclip.data.dataset import ReadReport, VideoDataset, make_loader
from ezclip.errors import DataError, ModelError
from ezclip.training.checkpoints import Checkpoints, last_checkpoint, load_trained, raise_on_all_ranks
from ezclip.training.gradient_cache import backward
from ezclip.training.log import TrainingLog
from ezclip.training.recipe import TrainingRecipe
from ezclip.training.stop_signals import StopSignals, TrainingStopped
from ezclip.utils.files import flush, replacing
from modeling_ezclip import EZClipModel


logger = logging.get_logger("ezclip")

BEST_NAME = "best_model"
DISTRIBUTED_TYPES = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


def enable_gradient_checkpointing(model: EZClipModel):
    """Compute activations again on the way back, instead of keeping them."""
    # The newer of transformers' names for it
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": False})


def make_optimizer(model: EZClipModel, recipe: TrainingRecipe) -> torch.optim.AdamW:
    """AdamW with the published betas (0.9, 0.98) and epsilon 1e-8 over what the model leaves trainable."""
    rate = recipe.learning_rate
    rates = {"prompt": rate, "head": 10 * rate, "text": rate, "vision": rate}
    given = {kind: getattr(recipe, f"{kind}_learning_rate") for kind in ("prompt", "head", "text")}
    rates |= {kind: own for kind, own in given.items() if own is not None}
    groups = {kind: [] for kind in rates}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[_group_of(name)].append(parameter)
    return torch.optim.AdamW(
        [{"params": parameters, "lr": rates[kind]} for kind, parameters in groups.items() if parameters],
        betas=(0.9, 0.98),
        eps=1e-8,
        weight_decay=recipe.weight_decay,
    )


def _group_of(name: str) -> str:
    """Return the parameter group whose learning rate a weight has."""
    if "temporal_prompt" in name:
        return "prompt"
    if name.startswith("temporal_head."):
        return "head"
    return "text" if name.startswith("text_") else "vision"


def make_schedule(optimizer: torch.optim.Optimizer, warmup_ratio: float, num_steps: int) -> LambdaLR:
    """Linear warm-up in the first `warmup_ratio` of the steps, then half a cosine to 0 ("WarmupCosineAnnealingLR")."""
    return get_cosine_schedule_with_warmup(optimizer, round(warmup_ratio * num_steps), num_steps)


@dataclass
class TrainingResult:
    """
    What a training leaves, besides the model.

    Args:
        log ([`TrainingLog`]):
            Losses, rates and evaluations by step.
        report ([`ReadReport`]):
            Which videos could not be read and were replaced, and which were read in part.
    """

    log: TrainingLog
    report: ReadReport


def train(
    model: EZClipModel,
    dataset: VideoDataset,
    recipe: TrainingRecipe,
    accelerator: Accelerator,
    num_workers: int = 0,
    strict: bool = False,
    output_dir: str | Path | None = None,
    resume_from: str | Path | None = None,
    settings: dict | None = None,
    evaluate: Callable[[], dict] | None = None,
) -> TrainingResult:
    """
    Train a model in place.

    On any number of processes a step takes `per_device_train_batch_size` videos of each, and the loss compares all of
    them: N processes with B videos do what one does with N * B.

    Args:
        model ([`EZClipModel`]):
            The model; what it has frozen stays as it is.
        dataset ([`VideoDataset`]):
            Training videos, with prompts.
        recipe ([`TrainingRecipe`]):
            How long and how fast.
        accelerator (`Accelerator`):
            Device, processes and precision. It forgets the model again afterwards.
        num_workers (`int`, *optional*, defaults to 0):
            Processes that decode.
        strict (`bool`, *optional*, defaults to `False`):
            Whether the first unreadable video ends the run.
        output_dir (`str` or `Path`, *optional*):
            Folder for [`Checkpoints`] and the best weights. Without it none are written.
        resume_from (`str` or `Path`, *optional*):
            A checkpoint to go on from, or `"latest"`; see [`Checkpoints.choose`].
        settings (`dict`, *optional*):
            What the course of the training depends on besides recipe and data: model, augmentation. A checkpoint is
            used with equal settings only.
        evaluate (`Callable`, *optional*):
            Gives the metrics of the model as it is, every `eval_steps` steps.

    Raises:
        [`DataError`]: if there are too few videos for a batch, none can be read, a checkpoint cannot be used or
        written, or the loss is no number. [`ModelError`]: if memory does not suffice. [`VideoReadError`]: with
        `strict`, for the first unreadable video. [`TrainingStopped`]: after SIGTERM, SIGINT or SIGUSR1.
    """
    if output_dir is not None:
        output_dir = Path(output_dir)
    batch_size = recipe.per_device_train_batch_size * accelerator.num_processes
    _check(recipe, dataset, batch_size, accelerator, evaluate, output_dir)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ModelError(
            "Nothing of this model is trained: all its weights are CLIP's, which `freeze_backbone` keeps as they are. "
            "Train all of CLIP (--preset vificlip), or what is added to it (--preset ezclip)."
        )
    if recipe.gradient_checkpointing:
        enable_gradient_checkpointing(model)
    loader = make_loader(
        dataset,
        recipe.per_device_train_batch_size,
        num_workers,
        # The same order on all processes, by (seed, epoch) alone; Accelerate deals the batches out.
        sampler=DistributedSampler(dataset, num_replicas=1, rank=0, seed=dataset.seed),
        # Accelerate would fill up the last batch with repeated videos.
        drop_last=True,
    )
    prepared, optimizer, loader = accelerator.prepare(model, make_optimizer(model, recipe), loader)
    num_steps = recipe.max_train_steps
    if num_steps is None:
        num_steps = recipe.num_train_epochs * len(loader)
    schedule = make_schedule(optimizer, recipe.warmup_ratio, num_steps)
    # For its place in checkpoints alone: what this returns would step it once for every process.
    accelerator.prepare(schedule)

    state, report, checkpoints = _make_state(recipe, num_steps), ReadReport(), None
    if output_dir is not None:
        settings = {**recipe.settings(), **(settings or {}), **dataset.settings(), "max_steps": num_steps}
        del settings["per_device_train_batch_size"]
        settings |= {"train_batch_size": batch_size, "num_processes": accelerator.num_processes}
        checkpoints = Checkpoints(accelerator, output_dir, settings, recipe.save_total_limit)
        if (path := checkpoints.choose(resume_from)) is not None:
            state, report = checkpoints.load(path)
            _find_best(state, path, output_dir, accelerator)
            logger.info(f"Training goes on from {path}.")

    log = TrainingLog(accelerator, state, samples_per_step=batch_size)
    is_over = _lacks_progress(state, recipe)
    try:
        with log, StopSignals() as signals:
            while state.global_step < num_steps and not is_over:
                epoch, num_done = divmod(state.global_step, len(loader))
                loader.set_epoch(epoch)
                dataset.set_epoch(epoch)
                prepared.train()
                for batch in accelerator.skip_first_batches(loader, num_done) if num_done else loader:
                    report.take(batch, strict)
                    del batch["index"]
                    batch["pixel_values"] = dataset.processor.normalize(batch.pop("frames"))
                    losses = backward(prepared, batch, accelerator, recipe.micro_batch_size)
                    limit = math.inf if recipe.max_grad_norm is None else recipe.max_grad_norm
                    grad_norm = accelerator.clip_grad_norm_(prepared.parameters(), limit)
                    learning_rate = schedule.get_last_lr()[-1]
                    optimizer.step()
                    if not accelerator.optimizer_step_was_skipped:  # for the scale of float16
                        schedule.step()
                    optimizer.zero_grad()
                    log.advance(epoch=(state.global_step + 1) / len(loader))
                    step, is_last = state.global_step, state.global_step == num_steps

                    if signals.received:
                        accelerator.set_trigger()
                    is_stopped = accelerator.check_trigger()
                    is_saved = checkpoints is not None and (
                        is_stopped or (recipe.save_steps is not None and (step % recipe.save_steps == 0 or is_last))
                    )
                    is_logged = step % recipe.logging_steps == 0 or is_last
                    if is_logged or is_saved:
                        skipped = accelerator.optimizer_step_was_skipped
                        _require_finite({**losses, **({} if skipped else {"gradient": grad_norm})}, step)
                    if is_logged:
                        values = {name: value.item() for name, value in losses.items()}
                        log.step({**values, "learning_rate": learning_rate, "grad_norm": float(grad_norm)})
                    if recipe.eval_steps is not None and (step % recipe.eval_steps == 0 or is_last):
                        with log.paused():
                            log.evaluation(metrics := evaluate())
                            _keep_best(model, metrics, state, recipe, accelerator, output_dir)
                            is_over = _lacks_progress(state, recipe)
                            prepared.train()
                    if is_saved:
                        with log.paused():
                            path = checkpoints.save(state, report)
                    if is_stopped:
                        raise TrainingStopped(step, path if is_saved else None, signals.received)
                    if is_last or is_over:
                        break
            # One that came with the last evaluation, or the last checkpoint.
            if signals.received:
                accelerator.set_trigger()
            if accelerator.check_trigger():
                path = checkpoints and checkpoints.save(state, report)
                raise TrainingStopped(state.global_step, path, signals.received)
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"A step does not fit into memory ({str(error).splitlines()[0]}). Give --micro_batch_size, which leaves "
            "the result as it is, or --gradient_checkpointing."
        ) from error
    finally:
        # Also when it ends in an error of any kind: what there is to go on from.
        if checkpoints is not None and state.global_step < num_steps and not is_over and accelerator.is_main_process:
            last = last_checkpoint(output_dir)
            if last is not None:
                logger.warning(f"The last checkpoint is {last}: go on with --resume_from_checkpoint latest.")
        accelerator.free_memory()
    if recipe.load_best_model_at_end:
        load_trained(model, output_dir / BEST_NAME / SAFE_WEIGHTS_NAME)
    report.gather()
    return TrainingResult(log, report)


def _make_state(recipe: TrainingRecipe, num_steps: int) -> TrainerState:
    return TrainerState(
        max_steps=num_steps,
        num_train_epochs=recipe.num_train_epochs,
        train_batch_size=recipe.per_device_train_batch_size,
        **{name: getattr(recipe, name) or 0 for name in ("logging_steps", "eval_steps", "save_steps")},
    )


def _check(
    recipe: TrainingRecipe,
    dataset: VideoDataset,
    batch_size: int,
    accelerator: Accelerator,
    evaluate: Callable | None,
    output_dir: str | Path | None,
):
    if batch_size < 2:
        raise DataError("--per_device_train_batch_size must be at least 2: the loss compares the videos of a batch.")
    if len(dataset) < batch_size:
        raise DataError(
            f"A step takes {batch_size} videos ({recipe.per_device_train_batch_size} on each of "
            f"{accelerator.num_processes} processes) and there are {len(dataset)}. Lower "
            "--per_device_train_batch_size."
        )
    if accelerator.distributed_type not in DISTRIBUTED_TYPES:
        raise ModelError(f"Training runs on one device or by DDP, not by {accelerator.distributed_type.value}.")
    if accelerator.gradient_accumulation_steps != 1:
        raise ModelError(
            f"Gradients of {accelerator.gradient_accumulation_steps} batches are to be accumulated, which is not the "
            "gradient of one large batch. Leave that out, and give --micro_batch_size."
        )
    wants_best = recipe.load_best_model_at_end or recipe.early_stopping_patience is not None
    if wants_best and recipe.eval_steps is None:
        raise DataError("--load_best_model_at_end and --early_stopping_patience need --eval_steps.")
    if recipe.eval_steps is not None and (evaluate is None or output_dir is None):
        raise DataError("--eval_steps needs videos to evaluate on and an --output_dir.")
    dataset[0]  # says here, rather than in a worker, if no video at all can be read


def _require_finite(values: dict, step: int):
    for name, value in values.items():
        if not math.isfinite(value):
            raise DataError(
                f"The {name} of step {step} is {float(value)}. Lower --learning_rate, give --max_grad_norm 1, or "
                "--mixed_precision bf16 in place of fp16."
            )


def _keep_best(
    model: EZClipModel,
    metrics: dict,
    state: TrainerState,
    recipe: TrainingRecipe,
    accelerator: Accelerator,
    output_dir: Path,
):
    """Keep the weights if they are the best so far."""
    value = metrics.get(recipe.metric_for_best_model)
    if value is None or (state.best_metric is not None and value <= state.best_metric):
        return
    folder = output_dir / BEST_NAME
    state.best_metric, state.best_global_step, state.best_model_checkpoint = value, state.global_step, str(folder)
    with raise_on_all_ranks(accelerator, folder):
        if accelerator.is_main_process:
            weights = {n: p.detach().cpu().contiguous() for n, p in model.named_parameters() if p.requires_grad}
            with replacing(folder / SAFE_WEIGHTS_NAME) as partial:
                save_file(weights, partial)
                flush(partial)


def _find_best(state: TrainerState, checkpoint: Path, output_dir: Path, accelerator: Accelerator):
    """Copy the best weights into the folder in which the training continues."""
    if state.best_global_step is None:
        return
    best = output_dir / BEST_NAME / SAFE_WEIGHTS_NAME
    with raise_on_all_ranks(accelerator, best):
        if accelerator.is_main_process and not best.is_file():
            with replacing(best) as partial:
                shutil.copyfile(checkpoint.parent / BEST_NAME / SAFE_WEIGHTS_NAME, partial)
    state.best_model_checkpoint = str(best.parent)


def _lacks_progress(state: TrainerState, recipe: TrainingRecipe) -> bool:
    """Return whether early stopping applies: the last evaluations did not beat the best one."""
    if recipe.early_stopping_patience is None or state.best_global_step is None:
        return False
    steps = [entry["step"] for entry in state.log_history if recipe.metric_for_best_model in entry]
    return sum(step > state.best_global_step for step in steps) >= recipe.early_stopping_patience
