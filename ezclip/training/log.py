"""What a training run tells about itself: a progress bar, trackers, and the record that it leaves."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator
from accelerate.tracking import filter_trackers
from accelerate.utils import LoggerType
from tqdm.auto import tqdm
from transformers import TrainerState
from transformers.integrations.integration_utils import rewrite_logs

from ezclip.constants import TRAIN_RESULTS_NAME, TRAINER_STATE_NAME
from ezclip.errors import DataError
from ezclip.training.plots import plot_losses
from ezclip.utils.files import replacing, write_json


try:
    import resource
except ImportError:  # Windows
    resource = None


def parse_trackers(report_to: str) -> list[str]:
    """
    Names of trackers for `Accelerator(log_with=...)`.

    Args:
        report_to (`str`):
            Names that accelerate knows, separated by commas; `"all"` for those that are installed, `"none"` for none.

    Raises:
        [`DataError`]: if a tracker is unknown or not installed.
    """
    names = list(dict.fromkeys(name.strip().lower() for name in report_to.split(",") if name.strip()))
    installed = sorted(str(tracker) for tracker in filter_trackers("all", logging_dir="."))
    if names == ["none"]:
        return []
    if names == ["all"]:
        return installed
    known = sorted(set(LoggerType.list()) - {LoggerType.ALL.value})
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise DataError(
            f"--report_to {report_to!r} names no tracker{' by ' if unknown else ''}{', '.join(unknown)}. Give one or "
            f"several of {', '.join(known)}, separated by commas; `all` for those that are installed "
            f"({', '.join(installed) or 'none is'}); or `none`."
        )
    missing = [name for name in names if name not in installed]
    if missing:
        raise DataError(
            f"--report_to {report_to}: not installed: {', '.join(missing)}. Run `pip install {' '.join(missing)}`, or "
            f"give what is installed: {', '.join(installed) or 'none'}."
        )
    return names


class TrainingLog:
    """
    The progress bar, the trackers and the record of a training run.

    `state.log_history` holds what the seed decides, so that an interrupted run that is taken up again leaves the same
    record. What the machine decides (speed, memory) goes to the trackers and into `performance()` alone. Trackers get
    `train/` and `eval/` names, as from `transformers.Trainer`.

    ```python
    with TrainingLog(accelerator, TrainerState(max_steps=num_steps, logging_steps=10), samples_per_step=64) as log:
        for step, batch in enumerate(loader, start=1):
            ...
            log.advance(epoch=step / len(loader))
            if step % 10 == 0:
                log.step({"loss": loss.item(), "learning_rate": schedule.get_last_lr()[0]})
            if step % 100 == 0:
                with log.paused():
                    log.evaluation(evaluate())
    log.write("out")
    ```

    Args:
        accelerator (`Accelerator`):
            Whose trackers are told; its local main process shows the bar.
        state (`TrainerState`):
            Where the run stands: a fresh one with its `max_steps`, or that of a checkpoint. It is kept up to date.
        samples_per_step (`int`):
            Videos of a step, of all processes.
    """

    def __init__(self, accelerator: Accelerator, state: TrainerState, samples_per_step: int):
        self.accelerator, self.state, self.samples_per_step = accelerator, state, samples_per_step
        self.first_step = self.logged_step = state.global_step
        self.seconds = self.logged_seconds = 0.0

    def __enter__(self) -> "TrainingLog":
        self.bar = tqdm(
            total=self.state.max_steps,
            initial=self.state.global_step,
            desc="Training",
            unit="step",
            disable=not self.accelerator.is_local_main_process,
        )
        self.last_time = time.perf_counter()
        return self

    def __exit__(self, *exception):
        self.bar.close()

    def advance(self, epoch: float):
        """
        Count a step.

        Args:
            epoch (`float`):
                Where the run stands after it, in passes over the training set.
        """
        now = time.perf_counter()
        self.seconds += now - self.last_time
        self.last_time = now
        self.state.global_step += 1
        self.state.epoch = epoch
        self.bar.update()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time that is not training's, for evaluations and checkpoints: rates and the time left leave it out."""
        yield
        self.last_time = time.perf_counter()
        self.bar.unpause()

    def step(self, values: dict[str, float]):
        """
        Record the step that was counted last.

        Args:
            values (`dict[str, float]`):
                `loss`, its parts, rates and whatever else the seed decides.
        """
        self._record(values)
        seconds = self.seconds - self.logged_seconds
        samples = (self.state.global_step - self.logged_step) * self.samples_per_step
        self.logged_seconds, self.logged_step = self.seconds, self.state.global_step
        speed = samples / seconds if seconds else 0.0
        memory = peak_memory_mb(self.accelerator.device)
        self._track({**values, "samples_per_second": speed, "peak_memory_mb": memory})
        self.bar.set_postfix({"loss": f"{values['loss']:.3f}", "clips/s": f"{speed:.1f}"})

    def evaluation(self, metrics: dict[str, float]):
        """Record the metrics of an evaluation after the step that was counted last; names begin with `eval_`."""
        self._record(metrics)
        self._track(metrics)

    def performance(self) -> dict[str, float | str]:
        """Speed and memory of this run, pauses and the steps of earlier runs left out; of the main process."""
        steps = self.state.global_step - self.first_step
        rate = steps / self.seconds if self.seconds else 0.0
        device = self.accelerator.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        return {
            "train_runtime": round(self.seconds, 3),
            "train_steps": steps,
            "train_steps_per_second": round(rate, 3),
            "train_samples_per_second": round(rate * self.samples_per_step, 3),
            "peak_memory_mb": round(peak_memory_mb(device), 1),
            "device": name,
            "num_processes": self.accelerator.num_processes,
        }

    def write(self, output_dir: str | Path, **results):
        """
        Write `train_results.json` (`log`, `performance` and `results`), `trainer_state.json` and `loss.png`; for the
        main process.
        """
        output_dir = Path(output_dir)
        content = {"log": self.state.log_history, "performance": self.performance(), **results}
        write_json(output_dir / TRAIN_RESULTS_NAME, content)
        with replacing(output_dir / TRAINER_STATE_NAME) as temporary:
            self.state.save_to_json(str(temporary))
        plot_losses(self.state.log_history, output_dir / "loss.png")

    def _record(self, values: dict[str, float]):
        self.state.log_history.append({**values, "epoch": self.state.epoch, "step": self.state.global_step})

    def _track(self, values: dict[str, float]):
        self.accelerator.log(rewrite_logs({**values, "epoch": self.state.epoch}), step=self.state.global_step)


def peak_memory_mb(device: torch.device) -> float:
    """Return the peak memory of this process in MiB: on the device, or resident on a CPU."""
    module = getattr(torch, device.type, None)
    if hasattr(module, "max_memory_allocated"):
        return module.max_memory_allocated(device) / 2**20
    if resource is None:
        return psutil.Process().memory_info().peak_wset / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
