"""Read and check the files of an evaluation."""

import json
import math
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from ezclip.constants import EVAL_RESULTS_NAME, EVAL_SETTINGS_NAME, PREDICTIONS_NAME, UNKNOWN_LABEL, VIDEO_EMBEDS_NAME
from ezclip.errors import DataError
from ezclip.utils.digests import digest_file
from processing_ezclip import label_key


NO_CLASS = -1
LARGEST_K = 5
ROUNDING = 1e-5  # of scores written as float32
NONE_OF_THESE = "(none of these)"  # the answer where no label reaches --min_score


@dataclass
class EvaluationRun:
    """
    The predictions of one run, with its settings and embeddings.

    Args:
        name (`str`):
            Name of the run in the report.
        folder (`Path`):
            Folder of its files.
        videos (`list[str]`):
            Names of the n predicted videos, which may repeat.
        rows (`list[int]`, *optional*):
            Their row numbers in the data set; `None` for predictions without row numbers.
        class_names (`list[str]`):
            Names of the C known classes.
        labels (`np.ndarray` of shape `(n,)`):
            Classes of the videos; `UNKNOWN_LABEL` if `predictions.jsonl` gives none.
        ranked (`np.ndarray` of shape `(n, K)`):
            Predicted classes, best first; `NO_CLASS` pads lines with fewer than K.
        scores (`np.ndarray` of shape `(n, K)`):
            Their probabilities; NaN for `NO_CLASS`.
        has_all_classes (`bool`):
            Whether `class_names` are all classes of the evaluation, or only those in the predictions.
        num_classes (`int`):
            Number of classes of this run, before [`align_runs`] adds those of other runs.
        bad_videos (`list[tuple[str, str]]`), partial_videos (`list[tuple[str, str]]`):
            Unreadable and partially read videos, each with the reason.
        settings (`dict`):
            Settings of the evaluation; empty if no file has them.
        video_embeds (`np.ndarray` of shape `(n, D)`, *optional*):
            L2-normalised embeddings of the videos.
        notes (`list[str]`):
            Warnings about files that do not belong together.
    """

    name: str
    folder: Path
    videos: list[str]
    rows: list[int] | None
    class_names: list[str]
    labels: np.ndarray
    ranked: np.ndarray
    scores: np.ndarray
    has_all_classes: bool
    num_classes: int
    bad_videos: list[tuple[str, str]] = field(default_factory=list)
    partial_videos: list[tuple[str, str]] = field(default_factory=list)
    settings: dict = field(default_factory=dict)
    video_embeds: np.ndarray | None = None
    notes: list[str] = field(default_factory=list)

    @cached_property
    def known(self) -> np.ndarray:
        """Return the indices of the videos with a label."""
        return np.flatnonzero(self.labels != UNKNOWN_LABEL)

    @cached_property
    def places(self) -> np.ndarray:
        """Return the rank of the true class of each video in `known`: 0 is the best, K is not predicted."""
        hits = self.ranked[self.known] == self.labels[self.known, None]
        return np.where(hits.any(axis=1), hits.argmax(axis=1), self.ranked.shape[1])

    @property
    def function_to_apply(self) -> str:
        """Return the function that made the scores: the settings say it if it is not softmax."""
        for settings in (self.settings.get("scoring"), self.settings.get("calibration"), self.settings):
            if isinstance(settings, dict) and isinstance(found := settings.get("function_to_apply"), str):
                return found
        config = self.settings.get("model_config")
        return config.get("function_to_apply", "softmax") if isinstance(config, dict) else "softmax"

    @property
    def top_k(self) -> int:
        """Return k of top-k accuracy: 5, or fewer if a line has fewer labels."""
        return min(LARGEST_K, int((self.ranked != NO_CLASS).sum(axis=1).min()))


def read_run(path: str | Path, name: str | None = None) -> EvaluationRun:
    """
    Read the folder of an evaluation or prediction.

    Args:
        path (`str` or `Path`):
            The folder, or `predictions.jsonl` itself. All other files may be missing.
        name (`str`, *optional*):
            Name of the run. Defaults to the name of its folder.

    Raises:
        [`DataError`]: if there is no `predictions.jsonl`, or a line of it is malformed.
    """
    path = Path(path)
    path = path / PREDICTIONS_NAME if path.is_dir() else path
    if not path.is_file():
        raise DataError(
            f"{path} does not exist. Give the folder that `ezclip run` wrote with --do_eval or --do_predict."
        )
    lines = [_check_prediction(line, place) for line, place in _read_lines(path)]
    if not lines:
        raise DataError(
            f"{path} is empty: no video was predicted. bad_videos.jsonl beside it says why, if it is there."
        )
    digest = digest_file(path)

    folder, notes = path.parent, []
    predicted = {name for line in lines for name, _ in line.ranked}
    settings, class_names = _read_settings(folder, digest, predicted)
    lines = _match_labels(lines, class_names, predicted, notes)
    labels = {line.label for line in lines if line.label is not None}
    run = _as_arrays(lines, class_names or sorted(predicted | labels))
    run |= {"bad_videos": _read_reasons(folder, "bad"), "partial_videos": _read_reasons(folder, "partial")}
    run["video_embeds"] = _read_embeds(folder, digest, len(lines), notes)
    name = name or path.resolve().parent.name or str(folder)
    run |= {"has_all_classes": class_names is not None, "num_classes": len(run["class_names"])}
    result = EvaluationRun(name, folder, settings=settings, notes=notes, **run)
    _check_results(result)
    return result


def _match_labels(
    lines: list["_Line"], class_names: list[str] | None, predicted: set[str], notes: list[str]
) -> list["_Line"]:
    """Give each label the spelling of its candidate. A label that is no candidate counts as unknown, with a note."""
    candidates = {label_key(name): name for name in class_names or sorted(predicted)}
    matched, others = [], Counter()
    for line in lines:
        if line.label is not None:
            spelling = candidates.get(label_key(line.label))
            if spelling is None and class_names is not None:
                others[line.label] += 1
            else:
                line = line._replace(label=spelling or line.label)
                matched.append(line)
                continue
        matched.append(line._replace(label=None))
    if others:
        listed = ", ".join(f"{name!r} ({count})" for name, count in others.most_common(10))
        notes.append(
            f"{sum(others.values())} videos have labels that are no candidates: {listed}. They are not counted as "
            "errors: accuracies are those of the other videos."
        )
    return matched


def align_runs(runs: list[EvaluationRun]) -> list[EvaluationRun]:
    """Return the runs with one list of classes for all of them."""
    spellings = {}
    for name in (name for run in runs for name in run.class_names):
        spellings.setdefault(label_key(name), name)
    class_names, aligned = list(spellings.values()), []
    index = {key: number for number, key in enumerate(spellings)}
    for run in runs:
        # Index -1 (no class, no label) selects the last entry.
        numbers = np.array([*(index[label_key(name)] for name in run.class_names), NO_CLASS])
        changed = {"class_names": class_names, "labels": numbers[run.labels], "ranked": numbers[run.ranked]}
        aligned.append(replace(run, **changed))
    return aligned


def _read_lines(path: Path):
    """Yield the objects of a JSON lines file, and the place of each."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            place = f"{path}, line {number}"
            if not line.strip():
                continue
            try:
                content = json.loads(line)
            except (ValueError, RecursionError) as error:
                cut_off = "" if line.endswith(b"\n") else " The line is incomplete: its writer was stopped."
                raise DataError(
                    f"{place} is not JSON ({error}).{cut_off} Predict again, or remove the line."
                ) from error
            if not isinstance(content, dict):
                raise DataError(f"{place} is {_short(content)}, not an object. {_FORM}")
            yield content, place


_FORM = 'A line is {"row": 0, "video": "...", "label": "...", "predictions": [{"label": "...", "score": 0.5}, ...]}.'


class _Line(NamedTuple):
    """A line of `predictions.jsonl`, checked."""

    row: int | None
    video: str
    label: str | None
    ranked: list[tuple[str, float]]


def _check_prediction(line: dict, place: str) -> _Line:
    row, video, label, predictions = (line.get(name) for name in ("row", "video", "label", "predictions"))
    if row is not None and (not isinstance(row, int) or isinstance(row, bool)):
        raise DataError(f"{place}: `row` is {_short(row)}, not a row number. {_FORM}")
    if not isinstance(video, str):
        raise DataError(f"{place}: `video` is {_short(video)}, not a name. {_FORM}")
    if label is not None and not isinstance(label, str):
        raise DataError(f"{place}: `label` is {_short(label)}, not the name of a class. {_FORM}")
    if not isinstance(predictions, list) or not predictions:
        raise DataError(f"{place}: `predictions` is {_short(predictions)}, not a list of labels with scores. {_FORM}")
    ranked, last = [], math.inf
    for prediction in predictions:
        name, score = (
            (prediction.get(key) for key in ("label", "score")) if isinstance(prediction, dict) else (None, None)
        )
        name = NONE_OF_THESE if name is None and "label" in prediction else name
        if not isinstance(name, str) or not isinstance(score, (int, float)) or isinstance(score, bool):
            raise DataError(f"{place}: a prediction is {_short(prediction)}. {_FORM}")
        if not -ROUNDING <= score <= 1 + ROUNDING:
            raise DataError(f"{place}: the score of {_short(name)} is {score}. Scores are probabilities, from 0 to 1.")
        if score > last:
            raise DataError(
                f"{place}: {_short(name)} has a higher score than the label before it. The best comes first."
            )
        ranked.append((_clean(name), float(score)))
        last = score
    if len({name for name, _ in ranked}) < len(ranked):
        raise DataError(f"{place}: a label is predicted twice. Each label has one score.")
    return _Line(row, _clean(video), None if label is None else _clean(label), ranked)


def _as_arrays(lines: list, class_names: list[str]) -> dict:
    index = {name: number for number, name in enumerate(class_names)}
    most = max(len(line.ranked) for line in lines)
    places, scores = np.full((len(lines), most), NO_CLASS), np.full((len(lines), most), np.nan)
    for number, line in enumerate(lines):
        places[number, : len(line.ranked)] = [index[name] for name, _ in line.ranked]
        scores[number, : len(line.ranked)] = [score for _, score in line.ranked]
    labels = np.array([UNKNOWN_LABEL if line.label is None else index[line.label] for line in lines])
    rows = None if any(line.row is None for line in lines) else [line.row for line in lines]
    return {
        "videos": [line.video for line in lines],
        "rows": rows,
        "class_names": class_names,
        "labels": labels,
        "ranked": places,
        "scores": scores,
    }


def _read_json(path: Path) -> dict | None:
    """Read an object, or return `None` if there is no such file."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged ({error}). Remove it; the report works without it.") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} is {_short(content)}, not an object. Remove it; the report works without it.")
    return content


def _read_settings(folder: Path, digest: str, named: set[str]) -> tuple[dict, list[str] | None]:
    """Read the settings of these predictions, and all their classes. Settings of other predictions are ignored."""
    settings = _read_json(folder / EVAL_SETTINGS_NAME)
    if settings is not None and settings.pop("predictions_sha256", None) != digest:
        settings = None
    if settings is None:
        settings = _read_json(folder / "predictions" / "settings.json") or {}
    class_names = settings.pop("class_names", None)
    if not isinstance(class_names, list) or not all(isinstance(name, str) for name in class_names):
        return settings, None
    class_names = list(dict.fromkeys(map(_clean, class_names)))
    class_names += [NONE_OF_THESE] if NONE_OF_THESE in named else []
    return (settings, class_names) if named <= set(class_names) else ({}, None)


def _read_reasons(folder: Path, kind: str) -> list[tuple[str, str]]:
    path = folder / f"{kind}_videos.jsonl"
    if not path.is_file():
        return []
    found = []
    for line, place in _read_lines(path):
        video, reason = line.get("video"), line.get("reason")
        if not isinstance(video, str) or not isinstance(reason, str):
            raise DataError(f'{place}: a line is {{"video": "...", "reason": "..."}}, and this is {_short(line)}.')
        found.append((_clean(video), _clean(reason)))
    return found


def _read_embeds(folder: Path, digest: str, num_videos: int, notes: list[str]) -> np.ndarray | None:
    path = folder / VIDEO_EMBEDS_NAME
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            if (file.metadata() or {}).get("predictions_sha256") != digest:
                notes.append(f"{path.name} belongs to other predictions and is left out.")
                return None
            embeds = file.get_tensor("video_embeds")
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} is damaged ({error}). Remove it; the report then has no map.") from error
    if embeds.ndim != 2 or len(embeds) != num_videos or not np.isfinite(embeds).all():
        raise DataError(f"{path} holds {embeds.shape} numbers for {num_videos} videos. Remove it.")
    return embeds


def _check_results(run: EvaluationRun):
    """Raise if `eval_results.json` is there and belongs to other predictions."""
    results = _read_json(run.folder / EVAL_RESULTS_NAME)
    if results is None or not len(run.known):
        return
    top1, samples = results.get("eval_top1"), results.get("eval_samples")
    found = float((run.places == 0).mean())
    is_same = samples == len(run.videos) and isinstance(top1, (int, float))
    if is_same and len(run.known) == samples:  # of fewer, it counts the others as wrong
        is_same = abs(top1 - found) < ROUNDING
    if not is_same:
        run.notes.append(
            f"eval_results.json belongs to other predictions: it has a top-1 of {top1} on {samples} videos, "
            f"predictions.jsonl one of {found:.6g} on {len(run.videos)}. This report is of predictions.jsonl."
        )
    bad = results.get("eval_bad_videos")
    if bad != len(run.bad_videos):
        run.notes.append(
            f"eval_results.json counts {bad} videos that could not be read, bad_videos.jsonl names "
            f"{len(run.bad_videos)}."
        )


def _clean(text: str) -> str:
    """Escape lone surrogates, which UTF-8 cannot encode."""
    return text.encode("utf-8", errors="backslashreplace").decode("utf-8")


def _short(content) -> str:
    text = json.dumps(content, ensure_ascii=True)
    return text if len(text) <= 80 else f"{text[:80]}…"
