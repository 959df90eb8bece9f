"""Checkpoints from which training goes on as if it had never stopped."""

import contextlib
import json
import os
import re
import shutil
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import RNG_STATE_NAME, SAFE_WEIGHTS_NAME, gather_object
from safetensors.torch import load_file
from transformers import TrainerState
from transformers.utils import logging

from ezclip.constants import CHECKPOINT_SETTINGS_NAME, TRAINER_STATE_NAME
from ezclip.data.dataset import ReadReport
from ezclip.errors import DataError
from ezclip.utils.files import flush, write_json
from modeling_ezclip import EZClipModel
from video_ezclip import VideoReadError


logger = logging.get_logger("ezclip")

REPORT_NAME = "read_report.json"
FILE_NAMES = (TRAINER_STATE_NAME, CHECKPOINT_SETTINGS_NAME, REPORT_NAME, SAFE_WEIGHTS_NAME)
# These change rounding and dropout masks, and nothing else.
EXACTNESS_SETTINGS = ("num_processes", "micro_batch_size", "gradient_checkpointing")


class Checkpoints:
    """
    Folders `checkpoint-STEP` in an output folder: trained weights, optimizer, schedule, loss scale, the random states
    of each process, the log so far, and which videos could not be read.

    A checkpoint is written under another name, flushed to the disk, and then renamed, so that there is either all of
    it or nothing.

    Args:
        accelerator (`Accelerator`):
            What prepared model and optimizer, and had the schedule registered.
        output_dir (`str` or `Path`):
            Where checkpoints stand.
        settings (`dict`):
            What the course of the training depends on. Training goes on from checkpoints of the same settings only.
        total_limit (`int`, *optional*):
            How many to keep; the oldest go first. By default all.
    """

    def __init__(
        self, accelerator: Accelerator, output_dir: str | Path, settings: dict, total_limit: int | None = None
    ):
        self.accelerator, self.output_dir, self.total_limit = accelerator, Path(output_dir), total_limit
        self.settings = json.loads(json.dumps(settings))  # as it is read back

    def choose(self, resume_from: str | Path | None) -> Path | None:
        """
        Return the checkpoint to resume from, or `None` to start from the beginning.

        Args:
            resume_from (`str` or `Path`, *optional*):
                `"latest"` for the newest of the output folder, if there is any; or the folder of one.

        Raises:
            [`DataError`]: if there is no such checkpoint; if it was made with other settings; or if a new training
            would leave its checkpoints among those of an earlier one.
        """
        if self.accelerator.is_main_process:
            for leftover in self.output_dir.glob(".checkpoint-*"):
                shutil.rmtree(leftover, ignore_errors=True)
        if resume_from is None:
            if (last := last_checkpoint(self.output_dir)) is not None:
                raise DataError(
                    f"{last} is of an earlier training. Go on with it (--resume_from_checkpoint latest), give another "
                    "--output_dir, or remove its checkpoints."
                )
            return None
        if str(resume_from) == "latest":
            if (path := last_checkpoint(self.output_dir)) is None:
                logger.warning(f"{self.output_dir} has no checkpoint; training starts from the beginning.")
                return None
        else:
            path = Path(resume_from)
            if missing := [name for name in FILE_NAMES if not (path / name).is_file()]:
                raise DataError(f"--resume_from_checkpoint {path} is no checkpoint: it has no {missing[0]}.")
        check_settings(path, json.loads((path / CHECKPOINT_SETTINGS_NAME).read_text(encoding="utf-8")), self.settings)
        return path

    def load(self, path: Path) -> tuple[TrainerState, ReadReport]:
        """
        Put model, optimizer, schedule and random states in the state of a checkpoint.

        Returns:
            `tuple`: the log, and which videos could not be read up to there.

        Raises:
            [`DataError`]: if it is damaged.
        """
        random_states = path / f"{RNG_STATE_NAME}_{self.accelerator.process_index}.pkl"
        saved_processes = json.loads((path / CHECKPOINT_SETTINGS_NAME).read_text(encoding="utf-8")).get(
            "num_processes"
        )
        try:
            if saved_processes == self.accelerator.num_processes:
                random_states.stat()  # Accelerate goes on without
            with self._trained_weights_only():
                self.accelerator.load_state(str(path))
        except DataError:
            raise
        except Exception as error:  # torch and safetensors have errors of their own for damaged files
            raise DataError(f"{path} is damaged ({error}). Remove it, to go on from the one before.") from error
        report = json.loads((path / REPORT_NAME).read_text(encoding="utf-8"))
        return TrainerState.load_from_json(str(path / TRAINER_STATE_NAME)), ReadReport(
            {int(index): VideoReadError(*arguments) for index, arguments in report["bad_videos"].items()},
            {int(index): reason for index, reason in report["partial_videos"].items()},
        )

    def save(self, state: TrainerState, report: ReadReport) -> Path:
        """
        Write a checkpoint and remove those above the limit. To be called on all processes.

        Raises:
            [`DataError`]: if it cannot be written. What was written of it is removed; earlier ones stay.
        """
        path = self.output_dir / f"checkpoint-{state.global_step}"
        partial = path.with_name(f".{path.name}.partial")
        report.gather()
        if self.accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        try:
            with raise_on_all_ranks(self.accelerator, path), self._trained_weights_only():
                self.accelerator.save_state(str(partial))
                if self.accelerator.is_main_process:
                    state.save_to_json(str(partial / TRAINER_STATE_NAME))
                    write_json(partial / CHECKPOINT_SETTINGS_NAME, self.settings)
                    bad_videos = {index: error.args for index, error in report.bad_videos.items()}
                    content = {"bad_videos": bad_videos, "partial_videos": report.partial_videos}
                    write_json(partial / REPORT_NAME, content)
            with raise_on_all_ranks(self.accelerator, path):
                if self.accelerator.is_main_process:
                    for written in (*partial.rglob("*"), partial):
                        flush(written)
                    _remove(path)  # training came by here before, and was set back
                    os.replace(partial, path)
                    flush(self.output_dir)
                    self._remove_old(path)
        except DataError:
            if self.accelerator.is_main_process:
                shutil.rmtree(partial, ignore_errors=True)
            raise
        return path

    def _remove_old(self, newest: Path):
        if self.total_limit is not None:
            older = sorted((step, path) for step, path in _find_checkpoints(self.output_dir).items() if path != newest)
            for _, path in older[: max(0, len(older) + 1 - self.total_limit)]:
                _remove(path)

    @contextlib.contextmanager
    def _trained_weights_only(self):
        """Frozen weights are those of the model that training starts from: they are not written again."""

        def on_save(models, weights, output_dir):
            for model, state in zip(models, weights):
                trained = trained_names(self.accelerator.unwrap_model(model))
                prefix = "module." if next(iter(state)).startswith("module.") else ""
                for name in list(state):
                    if name.removeprefix(prefix) in trained:
                        state[name.removeprefix(prefix)] = state.pop(name)
                    else:
                        del state[name]

        def on_load(models, input_dir):
            while models:
                load_trained(self.accelerator.unwrap_model(models.pop()), Path(input_dir) / SAFE_WEIGHTS_NAME)

        hooks = (
            self.accelerator.register_save_state_pre_hook(on_save),
            self.accelerator.register_load_state_pre_hook(on_load),
        )
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def check_settings(path: Path, saved: dict, settings: dict):
    """
    Raise if a training resumes with other settings.

    Args:
        path (`Path`):
            What they were saved with.
        saved (`dict`), settings (`dict`):
            Those of then and those of now, as JSON gives them back.

    Raises:
        [`DataError`]: if one differs, but for those that change the rounding alone.
    """
    for name in sorted({*saved, *settings}):
        before, now = saved.get(name), settings.get(name)
        if before == now:
            continue
        if name not in EXACTNESS_SETTINGS:
            raise DataError(
                f"{path} was made with {name} {before}, now it is {now}. Give what it was, or start anew with "
                "another --output_dir."
            )
        logger.warning(
            f"{path} was made with {name} {before}, now it is {now}. Resuming anyway; results will not be "
            "bit-identical."
        )


def trained_names(model: EZClipModel) -> set[str]:
    """Names of the parameters that are trained."""
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def load_trained(model: EZClipModel, path: Path):
    """
    Load the trained weights of a model.

    Raises:
        [`DataError`]: if they are not exactly those that this model trains.
    """
    weights = load_file(path)
    if set(weights) != trained_names(model):
        odd = sorted(set(weights) ^ trained_names(model))
        raise DataError(f"{path} does not hold what this model trains; they differ in {odd[:3]} and others.")
    model.load_state_dict(weights, strict=False)


@contextlib.contextmanager
def raise_on_all_ranks(accelerator: Accelerator, path: Path):
    """
    Raise on all processes if one cannot write. Otherwise the others would wait for it forever.

    Raises:
        [`DataError`]: on all processes, if one could not write.
    """
    error = None
    try:
        yield
    except Exception as caught:  # safetensors and torch have errors of their own for a full disk
        error = f"{type(caught).__name__}: {caught}"
    if errors := [other for other in gather_object([error]) if other is not None]:
        raise DataError(
            f"{path} could not be written ({errors[0]}). Make room, or give another --output_dir. With "
            "--resume_from_checkpoint latest training goes on from the last checkpoint, if there is one."
        )


def _remove(checkpoint: Path):
    """Rename a checkpoint, then delete it: half deleted, it must not look whole."""
    removed = checkpoint.with_name(f".{checkpoint.name}.removed")
    shutil.rmtree(removed, ignore_errors=True)
    if checkpoint.exists():
        os.replace(checkpoint, removed)
    shutil.rmtree(removed, ignore_errors=True)


def last_checkpoint(output_dir: str | Path) -> Path | None:
    """Return the newest checkpoint in a folder."""
    found = _find_checkpoints(Path(output_dir))
    return found[max(found)] if found else None


def _find_checkpoints(output_dir: Path) -> dict[int, Path]:
    """Return the checkpoints in a folder, by step."""
    matches = ((re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in output_dir.glob("checkpoint-*"))
    return {
        int(match[1]): path for match, path in matches if match and all((path / name).is_file() for name in FILE_NAMES)
    }
