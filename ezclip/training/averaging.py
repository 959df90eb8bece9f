"""Mean of the trained weights over the last steps of a training."""

import torch

from ezclip.errors import DataError


class WeightAverage:
    """
    Mean of the trained weights after each of the last steps (Izmailov et al., "Averaging Weights Leads to Wider
    Optima and Better Generalization").

    It lies in the optimizer's parameter groups, as `"average"`, so checkpoints hold it. It takes as much memory as the
    trained weights. All processes have the same weights and so the same mean.

    Args:
        optimizer (`torch.optim.Optimizer`):
            The optimizer, with all trained weights. Accelerate's wrapper will do.
        num_last (`int`):
            Number of the last steps to average.
        num_steps (`int`):
            Number of steps of the training.

    Raises:
        [`DataError`]: if the training has fewer steps.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, num_last: int, num_steps: int):
        if num_last > num_steps:
            raise DataError(
                f"--average_last must be at most the {num_steps} steps of the training, got {num_last}. Lower it."
            )
        self.optimizer, self.first = optimizer, num_steps - num_last + 1

    @torch.no_grad()
    def update(self, step: int):
        """Add the weights after a step, which counts from 1."""
        if step < self.first:
            return
        share = 1 / (step - self.first + 1)
        for group in self.optimizer.param_groups:
            weights = group["params"]
            means = [torch.zeros_like(weight) for weight in weights] if step == self.first else group["average"]
            # A resumed training has the means of its checkpoint on the CPU.
            group["average"] = [mean.to(weight.device).lerp_(weight, share) for mean, weight in zip(means, weights)]

    @torch.no_grad()
    def apply(self):
        """Replace the weights by their mean, at the end of the training."""
        for group in self.optimizer.param_groups:
            for weight, mean in zip(group["params"], group.pop("average")):
                weight.copy_(mean)
