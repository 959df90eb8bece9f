"""Options of a training run."""

from dataclasses import dataclass, field, fields


def _option(default, help):
    return field(default=default, metadata={"help": help})


@dataclass
class TrainingRecipe:
    """How long and how fast to train; the help of each field says what it is."""

    learning_rate: float = _option(1e-4, "Peak rate of the adapters, and of CLIP itself where it is trained.")
    prompt_learning_rate: float | None = _option(None, "Peak rate of the temporal prompts, if another.")
    head_learning_rate: float | None = _option(
        None, "Peak rate of the temporal head, if not 10 times --learning_rate, as ActionCLIP has it."
    )
    text_learning_rate: float | None = _option(None, "Peak rate of what is trained in the text tower, if another.")
    weight_decay: float = _option(0.2, "AdamW's decay, of all that is trained.")
    warmup_ratio: float = _option(
        0.1, "Part of the steps in which the rates rise from 0; 5 epochs of 50 as published."
    )
    num_train_epochs: int = _option(50, "Passes over the training set.")
    max_train_steps: int | None = _option(None, "Number of steps, in place of --num_train_epochs.")
    max_grad_norm: float | None = _option(None, "Longer gradients are scaled down to this norm. Not published.")
    per_device_train_batch_size: int = _option(
        32, "Videos per process and step; each is compared with the texts of all of them, on all processes."
    )
    micro_batch_size: int | None = _option(
        None, "Videos per process whose activations are held at a time; the loss and its gradient stay those of all."
    )
    gradient_checkpointing: bool = _option(
        False, "Compute activations again on the way back, for less memory and a third more time."
    )
    logging_steps: int = _option(10, "Steps between two entries of the log.")
    eval_steps: int | None = _option(None, "Steps between two evaluations while training. By default there are none.")
    metric_for_best_model: str = field(
        default="eval_top1",
        metadata={"help": "What the best weights are best in.", "choices": ["eval_top1", "eval_top5"]},
    )
    load_best_model_at_end: bool = _option(False, "End with the best weights instead of the last.")
    early_stopping_patience: int | None = _option(None, "Stop after so many evaluations in a row without better ones.")
    save_steps: int | None = _option(
        None, "Steps between two checkpoints; the last step has one too. By default only a signal makes one."
    )
    save_total_limit: int | None = _option(None, "Checkpoints to keep; the oldest go first. By default all.")

    def settings(self) -> dict:
        """Return the options that determine the course of a training."""
        unimportant = ("save_steps", "save_total_limit", "load_best_model_at_end")
        names = [option.name for option in fields(TrainingRecipe) if option.name not in unimportant]
        return {name: getattr(self, name) for name in names}
