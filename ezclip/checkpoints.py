"""Checkpoints from which training goes on as if it had never stopped."""

import contextlib
import json
import os
import re
import shutil
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors.torch import load_file
from transformers import TrainerState
from transformers.utils import logging

from .data import ReadReport
from .errors import DataError
from .modeling_ezclip import EZClipModel
from .video_ezclip import VideoReadError


logger = logging.get_logger("ezclip")

STATE_NAME, SETTINGS_NAME, REPORT_NAME = "trainer_state.json", "settings.json", "read_report.json"
# What changes the rounding and the dropout masks, and nothing else.
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

    def last(self) -> Path | None:
        """The newest checkpoint."""
        found = self._find()
        return found[max(found)] if found else None

    def choose(self, resume_from: str | Path | None) -> Path | None:
        """
        The checkpoint to go on from; `None` to start from the beginning.

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
            if (last := self.last()) is not None:
                raise DataError(
                    f"{last} is of an earlier training. Go on with it (--resume_from_checkpoint latest), give another "
                    "--output_dir, or remove its checkpoints."
                )
            return None
        if str(resume_from) == "latest":
            if (path := self.last()) is None:
                logger.warning(f"{self.output_dir} has no checkpoint; training starts from the beginning.")
                return None
        else:
            path = Path(resume_from)
            if not (path / STATE_NAME).is_file():
                raise DataError(f"--resume_from_checkpoint {path} is no checkpoint: it has no {STATE_NAME}.")
        check_settings(path, json.loads((path / SETTINGS_NAME).read_text(encoding="utf-8")), self.settings)
        return path

    def load(self, path: Path) -> tuple[TrainerState, ReadReport]:
        """
        Put model, optimizer, schedule and random states in the state of a checkpoint.

        Returns:
            `tuple`: the log, and which videos could not be read up to there.
        """
        with self._trained_weights_only():
            self.accelerator.load_state(str(path))
        report = json.loads((path / REPORT_NAME).read_text(encoding="utf-8"))
        return TrainerState.load_from_json(str(path / STATE_NAME)), ReadReport(
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
        error = None
        try:
            with self._trained_weights_only():
                self.accelerator.save_state(str(partial))
            if self.accelerator.is_main_process:
                state.save_to_json(str(partial / STATE_NAME))
                _write_json(partial / SETTINGS_NAME, self.settings)
                bad_videos = {index: error.args for index, error in report.bad_videos.items()}
                _write_json(partial / REPORT_NAME, {"bad_videos": bad_videos, "partial_videos": report.partial_videos})
        except Exception as caught:  # torch and safetensors have errors of their own for a full disk
            error = f"{type(caught).__name__}: {caught}"
        # A process that failed must not leave the others waiting.
        errors = [other for other in gather_object([error]) if other is not None]
        if self.accelerator.is_main_process and not errors:
            try:
                _flush(partial)
                shutil.rmtree(path, ignore_errors=True)  # training came by here before, and was set back
                os.replace(partial, path)
                _flush_entry(self.output_dir)
                self._remove_old(path)
            except OSError as caught:
                errors = [f"{type(caught).__name__}: {caught}"]
        errors = [other for other in gather_object([errors[0] if errors else None]) if other is not None]
        if errors:
            if self.accelerator.is_main_process:
                shutil.rmtree(partial, ignore_errors=True)
            raise DataError(f"{path} could not be written ({errors[0]}). Make room, or give another --output_dir.")
        return path

    def _find(self) -> dict[int, Path]:
        entries = self.output_dir.iterdir() if self.output_dir.is_dir() else ()
        matches = ((re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in entries)
        return {int(match[1]): path for match, path in matches if match and (path / STATE_NAME).is_file()}

    def _remove_old(self, newest: Path):
        if self.total_limit is not None:
            older = sorted((step, path) for step, path in self._find().items() if path != newest)
            for _, path in older[: max(0, len(older) + 1 - self.total_limit)]:
                # Renamed first: half removed, it must not be taken for a checkpoint.
                removed = path.with_name(f".{path.name}.removed")
                os.replace(path, removed)
                shutil.rmtree(removed, ignore_errors=True)

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
                load_trained(self.accelerator.unwrap_model(models.pop()), Path(input_dir) / "model.safetensors")

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
    That what is gone on with is of the same settings.

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
            f"{path} was made with {name} {before}, now it is {now}: it is gone on with, but not bit for bit as it "
            "would have been."
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


def _write_json(path: Path, content: dict):
    path.write_text(json.dumps(content, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


def _flush(folder: Path):
    for path in folder.rglob("*"):
        _flush_entry(path)
    _flush_entry(folder)


def _flush_entry(path: Path):
    """What the system still holds in memory of a file, or of the entries of a folder, goes to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
