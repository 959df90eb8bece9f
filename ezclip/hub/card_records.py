"""Read what a model card says about training and evaluation from the files in a folder."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ezclip.constants import (
    CHECKPOINT_SETTINGS_NAME,
    EVAL_RESULTS_NAME,
    EXPERIMENT_RESULTS_NAME,
    MERGE_NAME,
    PROTOCOL_RESULTS_NAME,
    TRAIN_RESULTS_NAME,
    TRAINER_STATE_NAME,
)
from ezclip.errors import DataError
from ezclip.evaluation.protocols import PROTOCOLS, as_markdown
from ezclip.training.checkpoints import last_checkpoint


TRAIN_VIDEOS_KEY = "videos of train"  # only an experiment that trains has this setting


@dataclass
class Outcome:
    """Hold the result of one test."""

    dataset: str | None  # name of the data set, if it is known
    test: str  # part of the data set: "split1", "base", "novel", …, or ""
    metrics: dict  # as in `eval_results.json`; accuracies are fractions


@dataclass
class RunRecords:
    """Hold the records of the training and the tests of a model. A field is `None` or empty if no file has it."""

    results: list[Outcome] = field(default_factory=list)
    protocol: str | None = None
    num_experiments: int = 0  # models of that protocol
    protocol_table: str | None = None  # in Markdown, over all models of the protocol if there are several
    recipe: dict = field(default_factory=dict)  # options of the training
    steps: int | None = None
    epochs: float | None = None
    batch_size: int | None = None  # videos in a step over all processes, if `run_video_zeroshot.py` trained the model
    loss: float | None = None  # the last logged loss
    runtime: float | None = None  # seconds of the last run
    device: str | None = None
    num_processes: int = 1
    bad_train_videos: int = 0  # training videos that could not be read
    merge: dict | None = None  # alpha, and names and digests of the two models that `ezclip merge` merged

    @classmethod
    def read(cls, folder: str | Path, eval_dataset: str | None = None) -> "RunRecords":
        """
        Read the records in a folder. Files of `transformers.Trainer` (`save_metrics`, `save_state`) hold fewer.

        Args:
            folder (`str` or `Path`):
                The folder of a model, where a run wrote it.
            eval_dataset (`str`, *optional*):
                Name of the data set for tests that do not name one.

        Raises:
            [`DataError`]: if a file is not one that training or evaluation wrote.
        """
        folder, records = Path(folder).resolve(), cls()
        path, batch_size = folder, None
        try:
            path = folder / EVAL_RESULTS_NAME
            if (metrics := _read_mapping(path)) is not None:
                records.results = _outcomes([(eval_dataset, "", metrics)])
            path = folder / EXPERIMENT_RESULTS_NAME
            if (content := _read_mapping(path)) is not None:
                if TRAIN_VIDEOS_KEY in content["settings"]:
                    records.recipe = dict(content["settings"])
                records.results = _outcomes(
                    (eval_dataset, test, metrics) for test, metrics in content["results"].items()
                )
            for parent in (folder, *folder.parents[:2]):  # an experiment is at most two levels down: "16_shots/seed1"
                path = parent / PROTOCOL_RESULTS_NAME
                if (content := _read_mapping(path)) is not None:
                    records._add_protocol(content, "" if parent == folder else folder.relative_to(parent).as_posix())
                    break
            path = folder / TRAINER_STATE_NAME
            if (content := _read_mapping(path)) is not None:
                records.steps = int(content["global_step"])
                records.epochs = _read_number(content.get("epoch"), float)
                batch_size = _read_number(content.get("train_batch_size"), int)
                losses = [float(entry["loss"]) for entry in content["log_history"] if "loss" in entry]
                records.loss = losses[-1] if losses else None
            path = folder / TRAIN_RESULTS_NAME
            if (content := _read_mapping(path)) is not None:
                records._add_training(content, batch_size)
            path = folder / MERGE_NAME
            if (content := _read_mapping(path)) is not None:
                ends = {end: {key: str(content[end][key]) for key in ("name", "weights")} for end in ("base", "tuned")}
                records.merge = {"alpha": float(content["alpha"]), **ends}
            if not records.recipe and (checkpoint := last_checkpoint(folder)) is not None:
                path = checkpoint / CHECKPOINT_SETTINGS_NAME
                records.recipe = _read_mapping(path) or {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            said = " ".join(str(error).split())
            raise DataError(
                f"{path} is not what training and evaluation write ({type(error).__name__}: {said}). Run them again, "
                "or remove the file; the model card then leaves it out."
            ) from error
        return records

    def _add_protocol(self, content: dict, experiment: str):
        if content["protocol"] not in PROTOCOLS or experiment not in content["experiments"]:
            return  # the file is about other models in that folder
        self.protocol, self.num_experiments = content["protocol"], len(content["experiments"])
        tests = content["experiments"][experiment]
        if self.protocol == "zero_shot":  # its tests are "hmdb51/split1", …
            self.results = _outcomes((*_split_test(test), metrics) for test, metrics in tests.items())
        if self.num_experiments > 1:
            self.protocol_table = as_markdown(content)

    def _add_training(self, content: dict, batch_size: int | None):
        # transformers' `Trainer` writes no "performance", and the batch size of one process.
        performance = content if content.get("performance") is None else content["performance"]
        self.bad_train_videos = int(content.get("train_bad_videos", 0))
        self.num_processes, device = int(performance.get("num_processes", 1)), performance.get("device")
        self.device = None if device is None else str(device)
        self.runtime = _read_number(performance.get("train_runtime"), float)
        if batch_size is not None and performance is not content:
            self.batch_size = batch_size * self.num_processes
        self.recipe = self.recipe or dict(content.get("recipe", {}))


def _read_number(value: object, kind: type) -> Any:
    return None if value is None else kind(value)


def _read_mapping(path: Path) -> dict | None:
    if not path.is_file():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError("it must hold a mapping")
    return content


def _outcomes(tests: Iterable[tuple[str | None, str, dict]]) -> list[Outcome]:
    """Return the tests with a known accuracy. Raise `ValueError` for impossible values."""
    outcomes = []
    for dataset, test, metrics in tests:
        for name in ("eval_top1", "eval_top5"):
            value = metrics.get(name, 0.0)
            if not (isinstance(value, (int, float)) and math.isfinite(value) and 0 <= value <= 1):
                raise ValueError(f"{name} must be a fraction in [0, 1], got {value}")
        for name in ("eval_samples", "eval_bad_videos"):
            value = metrics.get(name, 0)
            if not (isinstance(value, int) and value >= 0):
                raise ValueError(f"{name} must be a number of videos, got {value}")
        if "eval_top1" in metrics:
            outcomes.append(Outcome(dataset, test, metrics))
    return outcomes


def _split_test(test: str) -> tuple[str, str]:
    dataset, _, split = test.rpartition("/")
    return dataset or split, split if dataset else ""
