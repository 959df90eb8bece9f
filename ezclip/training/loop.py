"""Training as published: AdamW, linear warm-up, cosine schedule to zero, one update per step."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DistributedSampler
from transformers import TrainerState, get_cosine_schedule_with_warmup

from ezclip.data.dataset import ReadReport, VideoDataset, make_loader
from ezclip.errors import DataError, ModelError
from ezclip.training.averaging import WeightAverage
from ezclip.training.best_model import BestModel
from ezclip.training.checkpoints import EXACTNESS_SETTINGS, Checkpoints, last_checkpoint
from ezclip.training.distillation import Distillation
from ezclip.training.gradient_cache import backward
from ezclip.training.log import TrainingLog
from ezclip.training.recipe import TrainingRecipe
from ezclip.training.stop_signals import StopSignals, TrainingStopped
from ezclip.training.weight_interpolation import WeightInterpolation
from ezclip.utils.digests import digest
from ezclip.utils.earlier_results import EarlierResults
from ezclip.utils.messages import get_logger
from modeling_ezclip import EZClipModel


logger = get_logger()

DISTRIBUTED_TYPES = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


def enable_gradient_checkpointing(model: EZClipModel):
    """Recompute activations in the backward pass instead of keeping them."""
    # Newer versions of transformers have renamed the method.
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": False})


def make_optimizer(model: EZClipModel, recipe: TrainingRecipe) -> torch.optim.AdamW:
    """Return AdamW over the trainable weights, with the published betas (0.9, 0.98) and epsilon 1e-8."""
    rate = recipe.learning_rate
    rates = {"prompt": rate, "head": 10 * rate, "text": rate, "vision": rate}
    explicit = {kind: getattr(recipe, f"{kind}_learning_rate") for kind in ("prompt", "head", "text")}
    rates |= {kind: own for kind, own in explicit.items() if own is not None}
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
    """Return the published "WarmupCosineAnnealingLR": linear warm-up, then half a cosine to 0."""
    return get_cosine_schedule_with_warmup(optimizer, round(warmup_ratio * num_steps), num_steps)


@dataclass
class TrainingResult:
    """
    Log and report of a training.

    Args:
        log ([`TrainingLog`]):
            Losses, rates and evaluations by step.
        report ([`ReadReport`]):
            Videos that could not be read and were replaced, and videos that were read in part.
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
    earlier: EarlierResults | None = None,
) -> TrainingResult:
    """
    Train a model in place.

    A step takes `per_device_train_batch_size` videos from each process, and the loss compares all of them: N processes
    with B videos each train like one process with N * B.

    Args:
        model ([`EZClipModel`]):
            The model. Frozen weights stay as they are.
        dataset ([`VideoDataset`]):
            Training videos, with prompts.
        recipe ([`TrainingRecipe`]):
            Options of the training.
        accelerator (`Accelerator`):
            Device, processes and precision. It releases the model at the end.
        num_workers (`int`, *optional*, defaults to 0):
            Number of processes that decode videos.
        strict (`bool`, *optional*, defaults to `False`):
            Whether the first unreadable video ends the run.
        output_dir (`str` or `Path`, *optional*):
            Folder for [`Checkpoints`] and the best weights. Without it none are written.
        resume_from (`str` or `Path`, *optional*):
            A checkpoint to resume from, or `"latest"`; see [`Checkpoints.choose`].
        settings (`dict`, *optional*):
            Everything besides recipe and data that determines the training: model, augmentation. Training resumes
            only from a checkpoint with equal settings.
        evaluate (`Callable`, *optional*):
            Returns the metrics of the current model. It is called every `eval_steps` steps.
        earlier ([`EarlierResults`], *optional*):
            Results in the folder that the first new checkpoint, or the first best weights, replace.

    Raises:
        [`DataError`]: if there are too few videos for a batch, no video can be read, a checkpoint cannot be used or
        written, or the loss is not finite. [`ModelError`]: if nothing is trainable, memory runs out, or the model
        does not take a part of the loss.
        [`VideoReadError`]: with `strict`, for the first unreadable video. [`TrainingStopped`]: after SIGTERM, SIGINT
        or SIGUSR1.
    """
    if output_dir is not None:
        output_dir = Path(output_dir)
    batch_size = recipe.per_device_train_batch_size * accelerator.num_processes
    check_training(recipe, len(dataset), accelerator, evaluate is not None and output_dir is not None)
    dataset[0]  # raises here, not in a worker, if no video can be read
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ModelError(
            "Nothing of this model is trained: its towers have only weights of their base, such as CLIP, and "
            "`freeze_backbone` freezes them. Train them all (--preset vificlip), or weights that are added to them "
            "(--preset ezclip)."
        )
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            raise ModelError(
                f"Trained weights must be float32, got {name} in {parameter.dtype}. Load the model for training "
                "(`load_model(name, for_training=True)`), and give --mixed_precision for 16-bit computation."
            )
    if recipe.gradient_checkpointing:
        enable_gradient_checkpointing(model)
    loader = make_loader(
        dataset,
        recipe.per_device_train_batch_size,
        num_workers,
        # All processes have the same order, from (seed, epoch) alone; Accelerate distributes the batches.
        sampler=DistributedSampler(dataset, num_replicas=1, rank=0, seed=dataset.seed),
        # Accelerate would fill the last batch with repeated videos.
        drop_last=True,
    )
    optimizer, distillation, interpolation = make_optimizer(model, recipe), None, None
    if recipe.distillation_weight > 0:
        distillation = Distillation(model.to(accelerator.device), recipe.distillation_weight, dataset.seed)
        optimizer.add_param_group({"params": distillation.projectors.parameters(), "lr": recipe.learning_rate})
    prepared, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    trained = [*prepared.parameters()]
    if distillation is not None:
        distillation.projectors = accelerator.prepare(distillation.projectors)
        trained += distillation.projectors.parameters()
    if recipe.interpolated_loss_weight > 0:
        interpolation = WeightInterpolation(model, recipe.interpolated_loss_weight, dataset.seed)
    num_steps = recipe.max_train_steps
    if num_steps is None:
        num_steps = recipe.num_train_epochs * len(loader)
    schedule = make_schedule(optimizer, recipe.warmup_ratio, num_steps)
    # Registers the schedule for checkpoints. The returned wrapper is not used: it steps once per process.
    accelerator.prepare(schedule)
    average = None if recipe.average_last is None else WeightAverage(optimizer, recipe.average_last, num_steps)

    state, report, checkpoints, best = _make_state(recipe, num_steps), ReadReport(), None, None
    if output_dir is not None:
        # The caller's come last: they are those of the main process.
        settings = {**recipe.settings(), **dataset.settings(), **(settings or {}), "max_steps": num_steps}
        del settings["per_device_train_batch_size"]
        settings |= {"train_batch_size": batch_size, "num_processes": accelerator.num_processes}
        checkpoints = Checkpoints(accelerator, output_dir, settings, recipe.save_total_limit, earlier)
        if recipe.eval_steps is not None:
            # Weights are also those of this training if it resumed on another number of processes.
            training = digest({k: v for k, v in checkpoints.settings.items() if k not in EXACTNESS_SETTINGS})
            best = BestModel(accelerator, output_dir, training, recipe, checkpoints.earlier)
        if (path := checkpoints.choose(resume_from)) is not None:
            state, report = checkpoints.load(path)
            if best is not None:
                best.resume(state, path)
            logger.info(f"Training resumes from {path}.")

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
                    losses = backward(prepared, batch, accelerator, recipe.micro_batch_size, distillation)
                    if interpolation is not None:
                        with interpolation.applied(state.global_step) as factor:
                            other = backward(
                                prepared, dict(batch), accelerator, recipe.micro_batch_size, factor=factor
                            )
                        losses = interpolation.add_loss(losses, other["loss"])
                    limit = math.inf if recipe.max_grad_norm is None else recipe.max_grad_norm
                    grad_norm = accelerator.clip_grad_norm_(trained, limit)
                    learning_rate = schedule.get_last_lr()[-1]
                    optimizer.step()
                    if (
                        not accelerator.optimizer_step_was_skipped
                    ):  # skipped while the loss scale of float16 is too high
                        schedule.step()
                    optimizer.zero_grad()
                    log.advance(epoch=(state.global_step + 1) / len(loader))
                    step, is_last = state.global_step, state.global_step == num_steps
                    if average is not None:
                        average.update(step)

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
                            if best is not None:
                                best.keep(model, metrics, state)
                            is_over = _lacks_progress(state, recipe)
                            prepared.train()
                    if is_saved:
                        with log.paused():
                            path = checkpoints.save(state, report)
                    if is_stopped:
                        raise TrainingStopped(step, path if is_saved else None, signals.received)
                    if is_last or is_over:
                        break
            # A signal may arrive during the last evaluation or checkpoint.
            if signals.received:
                accelerator.set_trigger()
            if accelerator.check_trigger():
                path = checkpoints and checkpoints.save(state, report)
                raise TrainingStopped(state.global_step, path, signals.received)
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"A step does not fit into memory ({str(error).splitlines()[0]}). Give --micro_batch_size, which does not "
            "change the result, or --gradient_checkpointing."
        ) from error
    finally:
        # Name the last checkpoint after any error, too.
        if checkpoints is not None and state.global_step < num_steps and not is_over and accelerator.is_main_process:
            last = last_checkpoint(output_dir)
            if last is not None and not checkpoints.earlier.is_pending:
                logger.warning(f"The last checkpoint is {last}. Resume with --resume_from_checkpoint latest.")
        accelerator.free_memory()
    if average is not None:
        average.apply()
    if recipe.load_best_model_at_end:
        best.load(model, state)
    report.gather()
    return TrainingResult(log, report)


def _make_state(recipe: TrainingRecipe, num_steps: int) -> TrainerState:
    return TrainerState(
        max_steps=num_steps,
        num_train_epochs=recipe.num_train_epochs,
        train_batch_size=recipe.per_device_train_batch_size,
        **{name: getattr(recipe, name) or 0 for name in ("logging_steps", "eval_steps", "save_steps")},
    )


def check_training(recipe: TrainingRecipe, num_videos: int, accelerator: Accelerator, can_evaluate: bool):
    """
    Check what can be checked without a model.

    Args:
        recipe ([`TrainingRecipe`]):
            Options of the training.
        num_videos (`int`):
            Number of training videos.
        accelerator (`Accelerator`):
            Device and processes.
        can_evaluate (`bool`):
            Whether there are videos to evaluate on, and a folder for the best weights.

    Raises:
        [`DataError`]: if there are too few videos, or options do not fit. [`ModelError`]: if the accelerator does not.
    """
    num_processes = accelerator.num_processes
    batch_size = recipe.per_device_train_batch_size * num_processes
    if num_videos < max(2, num_processes):
        raise DataError(
            f"Training needs at least 2 videos, and one for each process; got {num_videos} for {num_processes} "
            "processes. Add videos."
        )
    if batch_size < 2:
        raise DataError(
            f"--per_device_train_batch_size must be at least 2, got {recipe.per_device_train_batch_size}: the loss "
            "compares the videos of a batch."
        )
    if num_videos < batch_size:
        raise DataError(
            f"A step takes {batch_size} videos ({recipe.per_device_train_batch_size} on each of {num_processes} "
            f"processes) and there are {num_videos}. Lower --per_device_train_batch_size."
        )
    if accelerator.distributed_type not in DISTRIBUTED_TYPES:
        raise ModelError(
            f"Training must run on one device or with DDP, got {accelerator.distributed_type.value}. Choose neither "
            "FSDP nor DeepSpeed in `accelerate config`; --gradient_checkpointing and --micro_batch_size save memory."
        )
    if accelerator.gradient_accumulation_steps != 1:
        raise ModelError(
            f"Gradient accumulation must be off, got {accelerator.gradient_accumulation_steps} batches: their sum is "
            "not the gradient of one large batch. Turn it off and give --micro_batch_size."
        )
    if recipe.needs_best and recipe.eval_steps is None:
        raise DataError("--load_best_model_at_end and --early_stopping_patience need --eval_steps.")
    if recipe.needs_best and recipe.average_last is not None:
        raise DataError(
            "--average_last averages the last steps. --load_best_model_at_end and --early_stopping_patience choose "
            "other ones: leave them out, or --average_last."
        )
    if recipe.eval_steps is not None and not can_evaluate:
        raise DataError("--eval_steps needs videos to evaluate on and an --output_dir.")


def _require_finite(values: dict, step: int):
    for name, value in values.items():
        if not math.isfinite(value):
            raise DataError(
                f"The {name} of step {step} is {float(value)}. Lower --learning_rate, give --max_grad_norm 1, or use "
                "--mixed_precision bf16 instead of fp16."
            )


def _lacks_progress(state: TrainerState, recipe: TrainingRecipe) -> bool:
    """Return whether early stopping applies: the last evaluations did not beat the best one."""
    if recipe.early_stopping_patience is None or state.best_global_step is None:
        return False
    steps = [entry["step"] for entry in state.log_history if recipe.metric_for_best_model in entry]
    return sum(step > state.best_global_step for step in steps) >= recipe.early_stopping_patience
