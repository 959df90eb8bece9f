"""Results of earlier runs in an output folder."""

import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from configuration_ezclip import CLASS_BANK_NAME
from ezclip.constants import (
    CHECKPOINT_SETTINGS_NAME,
    EVAL_RESULTS_NAME,
    EVAL_SETTINGS_NAME,
    EXPERIMENT_RESULTS_NAME,
    FIT_RESULTS_NAME,
    PREDICTIONS_NAME,
    PROTOCOL_RESULTS_NAME,
    TRAIN_RESULTS_NAME,
    TRAINER_STATE_NAME,
    VIDEO_EMBEDS_NAME,
)


# What runs write, by kind: files, and folders with patterns of their files. Models are replaced, never removed.
READ_REPORTS = ("bad_videos.jsonl", "partial_videos.jsonl")
TEST_FILES = (PREDICTIONS_NAME, EVAL_RESULTS_NAME, EVAL_SETTINGS_NAME, VIDEO_EMBEDS_NAME, PROTOCOL_RESULTS_NAME)
TEST_FILES += (*READ_REPORTS, "report.html")
TEST_FOLDERS = {
    "predictions": r"shard-\d{5,}-part-\d{5,}\.parquet|settings\.json",
    "report_pictures": r"(calibration|class_|confusion_|embedding_map|predicted_classes|scores).*\.png",
}
TRAINING_FILES = (TRAIN_RESULTS_NAME, TRAINER_STATE_NAME, FIT_RESULTS_NAME, CLASS_BANK_NAME, "loss.png")
TRAINING_FILES += tuple(f"train_{name}" for name in READ_REPORTS)
TRAINING_FOLDERS = {"best_model": r"model\.safetensors", "last_model": r"model\.safetensors"}


class EarlierResults:
    """
    The results of earlier runs, which go when the first result of a new run is written.

    Until then they stay: a run that fails before it has a result leaves the folder as it was.

    Args:
        folders (`Iterable[str | Path]`):
            The folders of the results.
        is_pending (`bool`):
            Whether to remove them at all.
        of_training (`bool`):
            Whether the new run trains or fits, so that checkpoints and logs of earlier trainings go too.
        is_main_process (`bool`, *optional*, defaults to `True`):
            Whether this process removes files.
    """

    def __init__(
        self, folders: Iterable[str | Path], is_pending: bool, of_training: bool, is_main_process: bool = True
    ):
        self.folders, self.is_pending = [Path(folder) for folder in folders], is_pending
        self.of_training, self.is_main_process = of_training, is_main_process

    def remove(self, keep: Path | None = None):
        """Remove them at the first call, on all processes. `keep` is a new checkpoint."""
        if self.is_pending and self.is_main_process:
            for folder in self.folders:
                _remove_results(folder, self.of_training, keep)
        self.is_pending = False


def _remove_results(folder: Path, of_training: bool, keep: Path | None):
    finished = folder / EXPERIMENT_RESULTS_NAME
    for test in _tests_of(finished):
        _remove_files(folder / test, TEST_FILES, TEST_FOLDERS)
        finished.unlink(missing_ok=True)
    _remove_files(folder, TEST_FILES, TEST_FOLDERS)
    if of_training:
        _remove_files(folder, TRAINING_FILES, TRAINING_FOLDERS)
        for path in folder.glob("checkpoint-*"):
            # transformers' Trainer writes folders of this name, too
            is_own = (path / CHECKPOINT_SETTINGS_NAME).is_file() and (path / "digests.json").is_file()
            if is_own and path != keep:
                path.unlink() if path.is_symlink() else shutil.rmtree(path)


def _remove_files(folder: Path, files: Iterable[str], folders: dict[str, str]):
    for name in files:
        path = folder / name
        if name != "report.html" or (path.is_file() and b"Written by ezclip" in path.read_bytes()):
            path.unlink(missing_ok=True)
    for name, pattern in folders.items():
        if (folder / name).is_dir():
            for path in (folder / name).iterdir():
                if re.fullmatch(pattern, path.name):
                    path.unlink()
            if not (folder / name).is_symlink() and not any((folder / name).iterdir()):
                (folder / name).rmdir()


def _tests_of(finished: Path) -> list[str]:
    """Return the names of the tests of a finished experiment: none if the file is absent or of another program."""
    try:
        content = json.loads(finished.read_bytes())
        names = content["results"] if {"settings", "digest"} <= content.keys() else []
        return [name for name in names if not {"..", "/"} & set(Path(name).parts)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
