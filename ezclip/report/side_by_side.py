"""What several runs made of the same videos."""

from itertools import combinations

import numpy as np

from ezclip.constants import UNKNOWN_LABEL
from ezclip.errors import DataError
from ezclip.evaluation.comparison import TOP_K, compare_ranks
from ezclip.report import figures
from ezclip.report.drawing import Picture
from ezclip.report.material import Material, number, percent
from ezclip.report.page import Cell, Section, Table
from ezclip.report.reading import EvaluationRun
from ezclip.report.sections import settings_as_text


NUM_CLASSES = 30
SETTINGS_LEFT_OUT = ("predictions_sha256",)


def compare_section(materials: list[Material], seed: int = 0) -> Section:
    """
    Return the section that compares runs on the videos that all of them read.

    Raises:
        [`DataError`]: if a video has different labels in them.
    """
    runs = [one.run for one in materials]
    positions = common_videos(runs)
    others = "; ".join(f"{run.name} {len(run.videos)}" for run in runs)
    items = [f"Videos in all runs: {len(positions[0])} ({others})."]
    if len(positions[0]):
        labels = _common_labels(runs, positions)
        items.append(_agreement(runs, positions))
        if (labelled := np.flatnonzero(labels != UNKNOWN_LABEL)).size:
            positions = [own[labelled] for own in positions]
            items += _accuracies(runs, positions, labels[labelled], seed)
            items += _classes(materials, positions, labels[labelled])
    items.append(_settings(runs))
    return Section("Comparison", "", [(None, items)])


def common_videos(runs: list[EvaluationRun]) -> list[np.ndarray]:
    """
    Return for each run the positions of the videos that all runs have, in the order of the first run.

    Names that do not repeat in any run identify videos of different lists. Otherwise all runs must be of one data set,
    and row numbers identify its videos.

    Raises:
        [`DataError`]: if names repeat, and row numbers are missing or belong to different data sets.
    """
    names = [[*run.videos, *(video for video, _ in run.bad_videos)] for run in runs]
    if all(len(set(own)) == len(own) for own in names):
        indices = [{video: position for position, video in enumerate(run.videos)} for run in runs]
    else:
        indices = [_positions_by_row(run) for run in runs]
        named = {}
        for run, index in zip(runs, indices):
            for row, position in index.items():
                if named.setdefault(row, run.videos[position]) != run.videos[position]:
                    raise DataError(
                        f"{run.folder}: row {row} is {run.videos[position]!r} here and {named[row]!r} in another run. "
                        "Names of videos repeat, so runs must be of one data set."
                    )
    common = [key for key in indices[0] if all(key in index for index in indices)]
    return [np.array([index[key] for key in common], dtype=int) for index in indices]


def _positions_by_row(run: EvaluationRun) -> dict[int, int]:
    if run.rows is None or len(set(run.rows)) < len(run.rows):
        raise DataError(
            f"{run.folder}: names of videos repeat, and predictions.jsonl has no row numbers. Predict again: this "
            "version writes them."
        )
    return {row: position for position, row in enumerate(run.rows)}


def _common_labels(runs: list[EvaluationRun], positions: list[np.ndarray]) -> np.ndarray:
    first = runs[0].labels[positions[0]].copy()
    for run, own in zip(runs[1:], positions[1:]):
        labels = run.labels[own]
        both = (labels != UNKNOWN_LABEL) & (first != UNKNOWN_LABEL)
        if (differing := np.flatnonzero(both & (labels != first))).size:
            place = differing[0]
            names = [run.class_names[label] for label in (first[place], labels[place])]
            raise DataError(
                f"{run.videos[own[place]]} is {names[0]!r} in {runs[0].folder} and {names[1]!r} in {run.folder}. Runs "
                "are compared on the same videos with the same labels: evaluate both on one list."
            )
        first[labels == UNKNOWN_LABEL] = UNKNOWN_LABEL
    return first


def _agreement(runs: list[EvaluationRun], positions: list[np.ndarray]) -> str:
    best = [run.ranked[own, 0] for run, own in zip(runs, positions)]
    parts = [
        f"{runs[first].name} and {runs[second].name} {percent(np.mean(best[first] == best[second]))}"
        for first, second in combinations(range(len(runs)), 2)
    ]
    return f"Equal predictions on these videos: {'; '.join(parts)}."


def _accuracies(runs: list[EvaluationRun], positions: list[np.ndarray], labels: np.ndarray, seed: int) -> list:
    k, ranks = min(run.top_k for run in runs), {}
    for run, own in zip(runs, positions):
        place = np.searchsorted(run.known, own)
        ranks[run.name] = np.where(run.places[place] < k, run.places[place], TOP_K)
    result = compare_ranks(ranks, labels, seed)
    measures = {"top1": "top-1", "top5": f"top-{k}", "mean_class_top1": "mean per-class top-1"}
    if k == 1:
        del measures["top5"]
    rows = []
    for name, system in result["systems"].items():
        row = [Cell(name, is_name=True)]
        for measure in measures:
            value, interval = system[measure]["value"], system[measure]["interval"]
            text = percent(value) + (f" ({percent(interval[0])} to {percent(interval[1])})" if interval else "")
            row.append(Cell(text, value, (interval[0], value, interval[1]) if interval else None))
        rows.append(row)
    caption = f"On the {len(labels)} videos that all runs read and that have a label; in brackets 95 % intervals."
    pairs = [
        [
            *(Cell(name, is_name=True) for name in pair["systems"]),
            Cell(f"{100 * pair['top1_difference']:+.1f}", pair["top1_difference"]),
            number(pair["only_first"]),
            number(pair["only_second"]),
            Cell(f"{pair['p_value']:.2g}", pair["p_value"]),
            Cell(f"{pair['p_value_holm']:.2g}", pair["p_value_holm"]),
        ]
        for pair in result["pairs"]
    ]
    columns = [
        "first",
        "second",
        "top-1 difference (points)",
        "only first right",
        "only second right",
        "p",
        "p (Holm)",
    ]
    explained = (
        "McNemar's exact test of top-1, two-sided; p (Holm) is corrected for the number of pairs. Intervals that "
        "overlap do not say that two runs are alike: judge by p."
    )
    return [Table(["run", *measures.values()], rows, caption), Table(columns, pairs, explained)]


def _classes(materials: list[Material], positions: list[np.ndarray], labels: np.ndarray) -> list:
    classes, sizes = np.unique(labels, return_counts=True)
    accuracies = np.empty((len(classes), len(materials)))
    for column, (one, own) in enumerate(zip(materials, positions)):
        hits = one.run.ranked[own, 0] == labels
        accuracies[:, column] = np.bincount(labels, hits, classes[-1] + 1)[classes] / sizes
    names = [one.run.name for one in materials]
    spreads = np.ptp(accuracies, axis=1)
    top = [place for place in np.argsort(-spreads, kind="stable")[:NUM_CLASSES] if spreads[place] > 0]
    items = []
    if top:
        content = figures.draw_differences(
            materials[0].lettering, classes[top].tolist(), accuracies[top], names, sizes[top].tolist()
        )
        largest = materials[0].run.class_names[classes[top[0]]]
        alt = (
            f"Accuracies of {len(top)} classes in {len(names)} runs; they differ most, by {percent(spreads[top[0]])}, "
            f"in {largest}."
        )
        which = "All classes" if len(top) == len(classes) else f"The {len(top)} classes"
        items.append(Picture("class_differences", content, alt, f"{which} whose accuracies differ, most first."))
    columns = ["no.", "class", "videos", *names, "differ by (points)"]
    rows = []
    for place in np.argsort(-spreads, kind="stable").tolist():
        index = int(classes[place])
        row = [number(index), materials[0].name_of(index), number(int(sizes[place]))]
        row += [Cell(percent(value), float(value)) for value in accuracies[place]]
        rows.append([*row, Cell(f"{100 * spreads[place]:.1f}", float(spreads[place]))])
    return [*items, Table(columns, rows, "Accuracies of the classes on the same videos.", sortable=True)]


def _settings(runs: list[EvaluationRun]) -> Table | str:
    settings = [settings_as_text(run.settings) for run in runs]
    if not any(settings):
        return "The settings of the runs were not saved."
    names = dict.fromkeys(name for own in settings for name in own if name not in SETTINGS_LEFT_OUT)
    differing = [name for name in names if len({own.get(name) for own in settings}) > 1]
    if not differing:
        return "All settings of the runs are the same."
    rows = [[Cell(name), *(Cell(own.get(name, "not said")) for own in settings)] for name in differing]
    return Table(["setting", *(run.name for run in runs)], rows, "Settings that differ; all others are the same.")
