"""Options of a training run."""

from dataclasses import dataclass, field, fields


def _option(default, help):
    return field(default=default, metadata={"help": help})


@dataclass
class TrainingRecipe:
    """Options of a training. The help of each field describes it."""

    learning_rate: float = _option(1e-4, "Peak learning rate of the adapters, and of the towers if they are trained.")
    prompt_learning_rate: float | None = _option(
        None, "Peak learning rate of the temporal prompts. Defaults to --learning_rate."
    )
    head_learning_rate: float | None = _option(
        None, "Peak learning rate of the temporal head. Defaults to 10 times --learning_rate, as in ActionCLIP."
    )
    text_learning_rate: float | None = _option(
        None, "Peak learning rate of the trained weights of the text tower. Defaults to --learning_rate."
    )
    weight_decay: float = _option(0.2, "Weight decay of AdamW, for all trained weights.")
    warmup_ratio: float = _option(
        0.1, "Fraction of the steps in which the learning rates rise from 0. Published: 5 epochs of 50."
    )
    num_train_epochs: int = _option(50, "Passes over the training set.")
    max_train_steps: int | None = _option(None, "Number of steps. Defaults to those of --num_train_epochs.")
    max_grad_norm: float | None = _option(None, "Clip gradients to this norm. Defaults to no clipping, as published.")
    per_device_train_batch_size: int = _option(
        32, "Videos per process and step. Each video is compared with the texts of all videos on all processes."
    )
    micro_batch_size: int | None = _option(
        None,
        "Videos per process whose activations are kept at a time. Loss and gradient stay those of the whole batch, "
        "which is the default.",
    )
    gradient_checkpointing: bool = _option(
        False, "Recompute activations in the backward pass: less memory, a third more time."
    )
    distillation_weight: float = _option(
        0.0,
        "Weight of the distance to the embeddings of the frozen base (FROSTER, published: 2). 0 trains without a "
        "teacher.",
    )
    interpolated_loss_weight: float = _option(
        0.0,
        "Weight of a second loss, at weights between those at the start and the current ones (Open-VCLIP, published: "
        "0.5), for models that are fully trained. 0 leaves it out.",
    )
    logging_steps: int = _option(10, "Steps between two log entries.")
    eval_steps: int | None = _option(None, "Steps between two evaluations during training. Defaults to none.")
    metric_for_best_model: str = field(
        default="eval_top1",
        metadata={
            "help": "Metric that selects the best weights.",
            "metavar": "METRIC",
            "choices": ["eval_top1", "eval_top5"],
        },
    )
    load_best_model_at_end: bool = _option(False, "Load the best weights at the end instead of the last.")
    early_stopping_patience: int | None = _option(
        None, "Stop after this many evaluations without improvement. Defaults to never."
    )
    average_last: int | None = _option(
        None,
        "Save the mean of the trained weights after each of the last N steps. Defaults to the weights of the last "
        "step.",
    )
    save_steps: int | None = _option(
        None,
        "Steps between two checkpoints. The last step has one too. Defaults to none, except when a signal stops "
        "the training.",
    )
    save_total_limit: int | None = _option(None, "Checkpoints to keep; the oldest are removed first. Defaults to all.")

    @property
    def needs_best(self) -> bool:
        """Return whether the training depends on its best evaluation."""
        return self.load_best_model_at_end or self.early_stopping_patience is not None

    def settings(self) -> dict:
        """Return the options that determine the course of a training."""
        without_effect = ["save_steps", "save_total_limit", "load_best_model_at_end"]
        # Checkpoints of versions without these options resume while they are off.
        newer = ("distillation_weight", "interpolated_loss_weight", "average_last")
        without_effect += [name for name in newer if not getattr(self, name)]
        # Fields of this class only: subclasses add options of other things.
        names = [option.name for option in fields(TrainingRecipe) if option.name not in without_effect]
        return {name: getattr(self, name) for name in names}
