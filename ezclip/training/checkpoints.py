"""Checkpoints from which training resumes bit for bit."""

import contextlib
import os
import re
import shutil
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import RNG_STATE_NAME, SAFE_WEIGHTS_NAME, gather_object
from safetensors.torch import load_file
from transformers import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ezclip.constants import CHECKPOINT_SETTINGS_NAME, TRAINER_STATE_NAME
from ezclip.data.dataset import ReadReport
from ezclip.errors import DataError
from ezclip.utils.digests import digest_file
from ezclip.utils.earlier_results import EarlierResults
from ezclip.utils.files import flush, read_json, write_json
from ezclip.utils.messages import get_logger
from ezclip.utils.settings import as_json, check_unchanged
from modeling_ezclip import EZClipModel
from video_ezclip import VideoReadError


logger = get_logger()

REPORT_NAME = "read_report.json"
DIGESTS_NAME = "digests.json"
FILE_NAMES = (TRAINER_STATE_NAME, CHECKPOINT_SETTINGS_NAME, REPORT_NAME, SAFE_WEIGHTS_NAME, DIGESTS_NAME)
DAMAGED_REMEDY = "Remove this checkpoint to resume from the one before it."
# These change rounding and dropout masks, and nothing else.
EXACTNESS_SETTINGS = ("num_processes", "micro_batch_size", "gradient_checkpointing")


class Checkpoints:
    """
    Folders `checkpoint-STEP` in an output folder.

    A checkpoint holds the trained weights of each prepared model, optimizer, schedule, loss scale, the random states
    of each process, the log and the list of unreadable videos, and the digest of each of these files. It is written
    under a temporary name, flushed to the disk and renamed, so it is either whole or absent.

    Args:
        accelerator (`Accelerator`):
            The accelerator that prepared model, optimizer and schedule.
        output_dir (`str` or `Path`):
            Folder of the checkpoints.
        settings (`dict`):
            Everything that determines the training. Training resumes only from a checkpoint with equal settings.
        total_limit (`int`, *optional*):
            Number of checkpoints to keep; the oldest are removed first. By default all are kept.
        earlier ([`EarlierResults`], *optional*):
            Results that the first new checkpoint replaces.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        output_dir: str | Path,
        settings: dict,
        total_limit: int | None = None,
        earlier: EarlierResults | None = None,
    ):
        self.accelerator, self.output_dir, self.total_limit = accelerator, Path(output_dir), total_limit
        self.earlier = earlier or EarlierResults([], is_pending=False, of_training=True)
        self.settings = as_json(settings)

    def choose(self, resume_from: str | Path | None) -> Path | None:
        """
        Return the checkpoint to resume from, or `None` to start from the beginning.

        Args:
            resume_from (`str` or `Path`, *optional*):
                `"latest"` for the newest checkpoint of the output folder, if any; or the folder of a checkpoint.

        Raises:
            [`DataError`]: if the checkpoint does not exist or was made with other settings, or if the output folder
            has checkpoints of an earlier training.
        """
        if self.accelerator.is_main_process:
            for leftover in self.output_dir.glob(f".{PREFIX_CHECKPOINT_DIR}-*"):
                shutil.rmtree(leftover, ignore_errors=True)
        if resume_from is None:
            if not self.earlier.is_pending and (last := last_checkpoint(self.output_dir)) is not None:
                raise DataError(
                    f"{last} belongs to an earlier training. Resume it (--resume_from_checkpoint latest), start anew "
                    "(--overwrite_output_dir), or give another --output_dir."
                )
            return None
        if str(resume_from) == "latest":
            if (path := last_checkpoint(self.output_dir)) is None:
                logger.warning(f"{self.output_dir} has no checkpoint. Training starts from the beginning.")
                return None
        else:
            path = Path(resume_from)
            if missing := [name for name in FILE_NAMES if not (path / name).is_file()]:
                raise DataError(f"--resume_from_checkpoint {path} is not a checkpoint: it lacks {missing[0]}.")
        saved = read_json(path / CHECKPOINT_SETTINGS_NAME, DAMAGED_REMEDY)
        check_unchanged(path, saved, self.settings, EXACTNESS_SETTINGS)
        return path

    def load(self, path: Path) -> tuple[TrainerState, ReadReport]:
        """
        Load model, optimizer, schedule and random states from a checkpoint.

        Returns:
            `tuple`: the log, and the report of unreadable videos up to the checkpoint.

        Raises:
            [`DataError`]: if the checkpoint is damaged.
        """
        self._check_files(path)
        random_states = path / f"{RNG_STATE_NAME}_{self.accelerator.process_index}.pkl"
        saved_processes = read_json(path / CHECKPOINT_SETTINGS_NAME, DAMAGED_REMEDY).get("num_processes")
        try:
            if saved_processes == self.accelerator.num_processes:
                random_states.stat()  # Accelerate would silently resume without it
            with self._trained_weights_only():
                self.accelerator.load_state(str(path))
        except DataError:
            raise
        except Exception as error:  # torch and safetensors raise their own types for damaged files
            raise DataError(
                f"{path} is damaged ({error}). Remove it to resume from the checkpoint before it."
            ) from error
        report = read_json(path / REPORT_NAME, DAMAGED_REMEDY)
        return TrainerState.load_from_json(str(path / TRAINER_STATE_NAME)), ReadReport(
            {int(index): VideoReadError(*arguments) for index, arguments in report["bad_videos"].items()},
            {int(index): reason for index, reason in report["partial_videos"].items()},
        )

    def _check_files(self, path: Path):
        """Raise on all processes if a file of a checkpoint is missing, or is not what was written."""
        problem = None
        if self.accelerator.is_main_process:
            try:
                for name, digest in read_json(path / DIGESTS_NAME, DAMAGED_REMEDY).items():
                    file = path / name
                    if not file.is_file() or digest_file(file) != digest:
                        what = "not what was written" if file.exists() else "missing"
                        raise DataError(f"{path} is damaged: {name} is {what}. {DAMAGED_REMEDY}")
            except DataError as error:  # the other processes wait below
                problem = str(error)
        if problems := [other for other in gather_object([problem]) if other is not None]:
            raise DataError(problems[0])

    def save(self, state: TrainerState, report: ReadReport) -> Path:
        """
        Write a checkpoint and remove the oldest ones above the limit. Call it on all processes.

        Raises:
            [`DataError`]: if it cannot be written. The unfinished checkpoint is removed; earlier ones stay.
        """
        path = self.output_dir / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
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
                    files = sorted(file for file in partial.rglob("*") if file.is_file())
                    digests = {str(file.relative_to(partial)): digest_file(file) for file in files}
                    write_json(partial / DIGESTS_NAME, digests)
                    for written in (*partial.rglob("*"), partial):
                        flush(written)
                    _remove(path)  # an earlier run reached this step and resumed from an older checkpoint
                    os.replace(partial, path)
                    flush(self.output_dir)
                self.earlier.remove(keep=path)
                if self.accelerator.is_main_process:
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
        """Save and load trained weights only. Frozen weights come from the model that training starts from."""

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
            for number, model in enumerate(models):  # Accelerate numbers the files of all but the first
                name = SAFE_WEIGHTS_NAME.replace(".", f"_{number}.") if number else SAFE_WEIGHTS_NAME
                load_trained(self.accelerator.unwrap_model(model), Path(input_dir) / name)
            models.clear()

        hooks = (
            self.accelerator.register_save_state_pre_hook(on_save),
            self.accelerator.register_load_state_pre_hook(on_load),
        )
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def trained_weights(model: EZClipModel) -> dict[str, torch.Tensor]:
    """Return copies of the trained parameters on the CPU."""
    return {n: p.detach().cpu().contiguous() for n, p in model.named_parameters() if p.requires_grad}


def trained_names(model: EZClipModel) -> set[str]:
    """Return the names of the trained parameters."""
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def load_trained(model: EZClipModel, path: Path):
    """
    Load the trained weights of a model.

    Raises:
        [`DataError`]: if the file does not hold exactly the weights that this model trains.
    """
    weights = load_file(path)
    if set(weights) != trained_names(model):
        differing = sorted(set(weights) ^ trained_names(model))
        raise DataError(
            f"{path} must hold exactly the weights that this model trains; {len(differing)} differ, first "
            f"{differing[:3]}."
        )
    model.load_state_dict(weights, strict=False)


@contextlib.contextmanager
def raise_on_all_ranks(accelerator: Accelerator, path: Path):
    """
    Raise on all processes if the block fails on one. Otherwise the others would wait for it forever.

    Raises:
        [`DataError`]: on all processes, if one could not write.
    """
    error = None
    try:
        yield
    except Exception as caught:  # safetensors and torch raise their own types for a full disk
        error = f"{type(caught).__name__}: {caught}"
    if errors := [other for other in gather_object([error]) if other is not None]:
        raise DataError(
            f"{path} could not be written ({errors[0]}). Free disk space, or give another --output_dir. Then resume "
            "from the last checkpoint with --resume_from_checkpoint latest."
        )


def _remove(checkpoint: Path):
    """Rename a checkpoint, then delete it: a half-deleted one must not look whole."""
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
    """Return the whole checkpoints in a folder, by step."""
    # transformers' get_last_checkpoint takes incomplete folders, its sort_checkpoints takes "checkpoint-2.bak", and
    # its rotate_checkpoints deletes in place, so a kill would leave half a checkpoint that looks whole.
    found = {}
    for path in output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        match = re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", path.name)
        if match and all((path / name).is_file() for name in FILE_NAMES):
            found[int(match[1])] = path
    return found
