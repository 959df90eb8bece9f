"""Comparison of systems on the same videos: accuracies with intervals, and significance of differences."""

import json
from dataclasses import asdict
from itertools import combinations
from pathlib import Path

import numpy as np

from ezclip.constants import EVAL_SETTINGS_NAME, PREDICTIONS_NAME
from ezclip.data.sources import VideoSplit
from ezclip.errors import DataError
from ezclip.evaluation.metrics import mean_per_class
from ezclip.evaluation.statistics import (
    CONFIDENCE_LEVEL,
    accuracy_interval,
    holm,
    mcnemar,
    mean_per_class_interval,
)
from ezclip.utils.digests import digest_file
from ezclip.utils.files import read_json


TOP_K = 5
UNREAD = -1


def read_ranks(folder: str | Path, split: VideoSplit, num_read: int) -> np.ndarray:
    """
    Read the rank of the right class of each video from a `predictions.jsonl` with `TOP_K` labels a video.

    Args:
        folder (`str` or `Path`):
            The folder of `predictions.jsonl`.
        split ([`VideoSplit`]):
            The N predicted videos.
        num_read (`int`):
            Number of videos that were read.

    Returns:
        `np.ndarray` of shape `(N,)`: 0 if the right class is first, `TOP_K` if it is not among the labels, `UNREAD`
        for unreadable videos, which have no line.

    Raises:
        [`DataError`]: if the file is missing, damaged, or belongs to other videos.
    """
    path, names = Path(folder, PREDICTIONS_NAME), split.videos["name"][:]
    labels = [split.class_names[label] for label in split.videos["label"][:]]
    positions = {row: position for position, row in enumerate(split.row_numbers)}
    ranks = np.full(len(names), UNREAD)
    try:
        with open(path, encoding="utf-8") as file:
            for line in map(json.loads, file):
                position = positions[line["row"]]  # names may repeat
                if names[position] != line["video"]:
                    raise ValueError(f"row {line['row']} is {line['video']!r} instead of {names[position]!r}")
                ranked = [prediction["label"] for prediction in line["predictions"]]
                ranks[position] = ranked.index(labels[position]) if labels[position] in ranked else TOP_K
        if (num_lines := int((ranks != UNREAD).sum())) != num_read:
            raise ValueError(f"{num_lines} videos instead of {num_read}")
        settings = read_json(path.with_name(EVAL_SETTINGS_NAME), f"Remove {folder}, and it is predicted again.")
        if settings["predictions_sha256"] != digest_file(path):
            raise ValueError("its digest is another")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is damaged or was changed ({error}). Remove {folder}, and it is predicted again."
        ) from error
    return ranks


def compare_ranks(ranks: dict[str, np.ndarray], labels: np.ndarray, seed: int = 0) -> dict:
    """
    Compare accuracies of systems on the videos that all of them could read, and test their differences.

    A system gains nothing by failing to read hard videos.

    Args:
        ranks (`dict[str, np.ndarray]`):
            Ranks of the right class of N videos by system; see [`read_ranks`].
        labels (`np.ndarray` of shape `(N,)`):
            Class indices of the videos.
        seed (`int`, *optional*, defaults to 0):
            Seed of the bootstrap.

    Returns:
        `dict`: JSON with the numbers of videos and classes; `systems`: by name `num_read_videos`, and `top1`, `top5`
        and `mean_class_top1` as `{"value", "interval"}` (fractions); and `pairs`: McNemar's exact test of the top-1 of
        each two systems, with Holm's correction for the number of pairs.

    Raises:
        [`DataError`]: if there is no video that all systems could read.
    """
    common = np.all([system != UNREAD for system in ranks.values()], axis=0)
    if not common.any():
        raise DataError("There is no video that all systems could read. Find unreadable videos with `ezclip check`.")
    labels, systems, hits = labels[common], {}, {}
    for name, system in ranks.items():
        hits[name], among_five = system[common] == 0, system[common] < TOP_K
        systems[name] = {
            "num_read_videos": int((system != UNREAD).sum()),
            "top1": {"value": float(hits[name].mean()), "interval": accuracy_interval(hits[name])},
            "top5": {"value": float(among_five.mean()), "interval": accuracy_interval(among_five)},
            "mean_class_top1": {
                "value": float(mean_per_class(hits[name], labels)),
                "interval": mean_per_class_interval(hits[name], labels, seed),
            },
        }
    pairs = list(combinations(ranks, 2))
    tests = [mcnemar(hits[first], hits[second]) for first, second in pairs]
    corrected = holm([test.p_value for test in tests])
    return {
        "num_videos": len(common),
        "num_compared_videos": len(labels),
        "num_classes": len(np.unique(labels)),
        "confidence_level": CONFIDENCE_LEVEL,
        "systems": systems,
        "pairs": [
            {
                "systems": list(pair),
                "top1_difference": systems[pair[0]]["top1"]["value"] - systems[pair[1]]["top1"]["value"],
                **asdict(test),
                "p_value_holm": p_value,
            }
            for pair, test, p_value in zip(pairs, tests, corrected)
        ],
    }
