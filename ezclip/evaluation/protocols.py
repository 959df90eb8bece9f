"""The published protocols: training sets, test sets and the summary of the results."""

import re
import statistics
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from ezclip.data.sources import VideoSplit
from ezclip.data.splits import check_disjoint, count_shots, draw_shots, halve_classes, select_classes
from ezclip.errors import DataError
from ezclip.utils.tables import as_markdown_table
from processing_ezclip import label_key


PROTOCOLS = ("zero_shot", "base_to_novel", "few_shot", "fully_supervised")
BASE_TO_NOVEL_SHOTS = 16
STD_DDOF = 1  # standard deviations of a sample: divided by n - 1
SINGLE_VIEW, MULTI_VIEW = "single_view", "multi_view"


@dataclass
class Experiment:
    """
    A training, or a given model, and its tests.

    Args:
        name (`str`):
            Folder below the output folder: "seed1", "list2", "16_shots/seed1"; "" for the output folder itself.
        seed (`int`):
            Random seed.
        train ([`VideoSplit`], *optional*):
            The training videos; `None` to test a given model as it is.
        tests (`dict[str, VideoSplit]`):
            Test videos by name: "hmdb51/split1" and so on, "base" and "novel", "single_view" and "multi_view", or
            "test".
    """

    name: str
    seed: int
    train: VideoSplit | None
    tests: dict[str, VideoSplit]


def zero_shot(train: VideoSplit | None, datasets: dict[str, list[VideoSplit]], seed: int) -> list[Experiment]:
    """
    Make an experiment that trains on one data set, or takes a given model, and tests on the splits of others.

    Args:
        train ([`VideoSplit`], *optional*):
            The training videos.
        datasets (`dict[str, list[VideoSplit]]`):
            The splits of each data set to test on.
        seed (`int`):
            Seed of the training.
    """
    tests = {
        f"{name}/split{number}": split
        for name, splits in datasets.items()
        for number, split in enumerate(splits, start=1)
    }
    return [Experiment("", seed, train, tests)]


def base_to_novel(
    trains: list[VideoSplit], base: VideoSplit, novel: VideoSplit, seeds: Iterable[int]
) -> list[Experiment]:
    """
    Make the experiments of base-to-novel generalisation from published lists: one per list of shots and seed.

    Args:
        trains (`list[VideoSplit]`):
            Published draws of training videos of the base classes. If empty, a given model is tested.
        base ([`VideoSplit`]), novel ([`VideoSplit`]):
            Test videos of base and novel classes.
        seeds (`Iterable[int]`):
            Seeds of the trainings of each list.

    Raises:
        [`DataError`]: if a class is in both halves, or training and base classes differ.
    """
    check_disjoint(base.class_names, novel.class_names)
    for train in trains:
        _check_same_classes(train, base, "base")
    return _for_each(trains or [None], seeds, {"base": base, "novel": novel})


def draw_base_to_novel(
    pool: VideoSplit, test: VideoSplit, seeds: Iterable[int], num_shots: int = BASE_TO_NOVEL_SHOTS
) -> list[Experiment]:
    """
    Make the experiments of base-to-novel generalisation from a data set, one per seed.

    Classes are halved by frequency. Each training draws its shots of the base half with its own seed.

    Args:
        pool ([`VideoSplit`]):
            Training videos of all classes. They are counted and drawn from.
        test ([`VideoSplit`]):
            Test videos of all classes.
        seeds (`Iterable[int]`):
            Seeds of the draws and trainings.
        num_shots (`int`, *optional*, defaults to 16):
            Training videos of each base class.

    Raises:
        [`DataError`]: if a base class has fewer videos, or the classes of pool and test differ.
    """
    _check_same_classes(pool, test, "test")
    base, novel = halve_classes(pool)
    tests = {"base": select_classes(test, base), "novel": select_classes(test, novel)}
    base_pool = select_classes(pool, base)
    return [Experiment(f"seed{seed}", seed, draw_shots(base_pool, num_shots, seed), tests) for seed in seeds]


def few_shot(trains: list[VideoSplit], test: VideoSplit, seeds: Iterable[int]) -> list[Experiment]:
    """
    Make the experiments of few-shot learning from published lists: one per list and seed, on the full test split.

    Args:
        trains (`list[VideoSplit]`):
            Lists with K videos of each class. K may differ between lists.
        test ([`VideoSplit`]):
            The test videos.
        seeds (`Iterable[int]`):
            Seeds of the trainings of each list.

    Raises:
        [`DataError`]: if the classes of a list have different numbers of videos, or list and test classes differ.
    """
    by_shots, seeds = {}, list(seeds)
    for train in trains:
        _check_same_classes(train, test, "test")
        by_shots.setdefault(count_shots(train), []).append(train)
    return [
        experiment
        for num_shots, lists in by_shots.items()
        for experiment in _for_each(lists, seeds, {"test": test}, folder=f"{num_shots}_shots/")
    ]


def draw_few_shot(pool: VideoSplit, shots: list[int], seeds: Iterable[int], test: VideoSplit) -> list[Experiment]:
    """
    Make the experiments of few-shot learning from a data set: one per number of shots and seed.

    Each training draws its videos with its own seed. All are tested on the full test split.

    Args:
        pool ([`VideoSplit`]):
            Training videos to draw from.
        shots (`list[int]`):
            Numbers of videos of each class.
        seeds (`Iterable[int]`):
            Seeds of the draws and trainings.
        test ([`VideoSplit`]):
            The test videos.

    Raises:
        [`DataError`]: if a class has fewer videos, a number repeats, or the classes of pool and test differ.
    """
    _check_same_classes(pool, test, "test")
    repeated = [number for number, count in Counter(shots).items() if count > 1]
    if repeated:
        raise DataError(f"Numbers of shots must differ, got {repeated[0]} more than once.")
    seeds = list(seeds)
    return [
        Experiment(f"{number}_shots/seed{seed}", seed, draw_shots(pool, number, seed), {"test": test})
        for number in shots
        for seed in seeds
    ]


def fully_supervised(
    train: VideoSplit, test: VideoSplit, seeds: Iterable[int], has_views: bool = False
) -> list[Experiment]:
    """
    Make the experiments of training on a whole data set, one per seed, tested on the same classes.

    Args:
        train ([`VideoSplit`]), test ([`VideoSplit`]):
            The training and test videos.
        seeds (`Iterable[int]`):
            Seeds of the trainings.
        has_views (`bool`, *optional*, defaults to `False`):
            Whether to test videos twice: with a single view and with several, as published.

    Raises:
        [`DataError`]: if the classes of the two differ.
    """
    _check_same_classes(train, test, "test")
    names = (SINGLE_VIEW, MULTI_VIEW) if has_views else ("test",)
    return _for_each([train], seeds, dict.fromkeys(names, test))


def harmonic_mean(base: float, novel: float) -> float:
    """Return the harmonic mean of two accuracies; 0 if both are 0."""
    return 2 * base * novel / (base + novel) if base + novel else 0.0


def summarize(protocol: str, results: dict[str, dict[str, dict]]) -> dict:
    """
    Summarize the experiments of a protocol.

    Args:
        protocol (`str`):
            One of `PROTOCOLS`.
        results (`dict[str, dict[str, dict]]`):
            Content of `eval_results.json` by experiment and test, with `eval_top1` and `eval_top5` as fractions.

    Returns:
        `dict`: JSON with `protocol`, `std_ddof` (deviations divide by n - 1), `experiments` (the results) and
        `summary`. A value over several runs is `{"mean", "std", "num_runs"}`; `std` is `None` for a single run.

        - zero-shot: `top1` and `top5` of each data set, over its splits;
        - base-to-novel: top-1 as `base`, `novel` and `harmonic_mean`, over the experiments; `runs` has the values of
          each. The `mean` of `harmonic_mean` is the harmonic mean of the other two means, as the papers report it;
          its `std` is over the harmonic means of the experiments;
        - few-shot: `top1` and `top5` of each K, such as `"16_shots"`, over seeds and lists;
        - fully supervised: `top1` and `top5` of each test, over seeds.

    Raises:
        [`DataError`]: if the protocol is unknown, there are no results, or base or novel results are missing.
    """
    if protocol not in PROTOCOLS:
        raise DataError(f"The protocol must be one of {', '.join(PROTOCOLS)}, got {protocol!r}.")
    if not results:
        raise DataError("`results` must hold at least one experiment, got none.")
    runs = [(name, test, metrics) for name, tests in results.items() for test, metrics in tests.items()]
    if protocol == "zero_shot":
        summary = _group(runs, lambda _, test: test.rpartition("/")[0] or test)
    elif protocol == "base_to_novel":
        summary = _summarize_base_to_novel(results)
    elif protocol == "few_shot":
        summary = _group(runs, lambda name, _: name.partition("/")[0])
        summary = dict(sorted(summary.items(), key=lambda item: int(re.match(r"\d+", item[0]).group())))
    else:
        summary = _group(runs, lambda _, test: test)
    return {"protocol": protocol, "std_ddof": STD_DDOF, "summary": summary, "experiments": results}


def as_markdown(summary: dict) -> str:
    """Return the Markdown table of a summary from [`summarize`]: percent, "mean ± std" over several runs."""
    content = summary["summary"]
    if summary["protocol"] == "base_to_novel":
        header = ["top-1 (%)", "base", "novel", "harmonic mean"]
        rows = [[name, *(f"{100 * value:.1f}" for value in run.values())] for name, run in content["runs"].items()]
        rows.append(["mean", *(_percent(content[part]) for part in ("base", "novel", "harmonic_mean"))])
    else:
        first = {"zero_shot": "data set", "few_shot": "shots", "fully_supervised": "test"}[summary["protocol"]]
        header = [first, "top-1 (%)", "top-5 (%)", "splits" if summary["protocol"] == "zero_shot" else "runs"]
        rows = [
            [name.removesuffix("_shots"), _percent(row["top1"]), _percent(row["top5"]), str(row["top1"]["num_runs"])]
            for name, row in content.items()
        ]
    return as_markdown_table(header, rows) + "\n"


def _for_each(
    trains: list[VideoSplit], seeds: Iterable[int], tests: dict[str, VideoSplit], folder: str = ""
) -> list[Experiment]:
    """Make an experiment per list and seed. Its name has the list and the seed where there are several."""
    seeds = list(seeds)
    experiments = []
    for number, train in enumerate(trains, start=1):
        for seed in seeds:
            parts = [f"list{number}"] if len(trains) > 1 else []
            parts += [f"seed{seed}"] if len(seeds) > 1 or not parts else []
            experiments.append(Experiment(folder + "/".join(parts), seed, train, tests))
    return experiments


def _check_same_classes(train: VideoSplit, test: VideoSplit, name: str):
    keys = [{label_key(class_name): class_name for class_name in split.class_names} for split in (train, test)]
    both = {**keys[1], **keys[0]}
    if unshared := [both[key] for key in keys[0].keys() ^ keys[1].keys()]:
        raise DataError(
            f"The {len(keys[0])} classes of training and the {len(keys[1])} of {name} must be the same; only one of "
            f"the two has {sorted(unshared)[:10]}. Check the two label lists."
        )


def _over_runs(values: list[float]) -> dict:
    std = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "std": std, "num_runs": len(values)}


def _group(runs: list[tuple[str, str, dict]], group_of) -> dict[str, dict]:
    """Return `top1` and `top5` over the runs of each group."""
    groups = {}
    for name, test, metrics in runs:
        groups.setdefault(group_of(name, test), []).append(metrics)
    return {
        group: {name: _over_runs([metrics[f"eval_{name}"] for metrics in members]) for name in ("top1", "top5")}
        for group, members in groups.items()
    }


def _summarize_base_to_novel(results: dict[str, dict[str, dict]]) -> dict:
    runs = {}
    for name, tests in results.items():
        if missing := {"base", "novel"} - tests.keys():
            raise DataError(f"The results of {name} lack {' and '.join(sorted(missing))}.")
        base, novel = (tests[part]["eval_top1"] for part in ("base", "novel"))
        runs[name] = {"base": base, "novel": novel, "harmonic_mean": harmonic_mean(base, novel)}
    summary = {part: _over_runs([run[part] for run in runs.values()]) for part in ("base", "novel", "harmonic_mean")}
    summary["harmonic_mean"]["mean"] = harmonic_mean(summary["base"]["mean"], summary["novel"]["mean"])
    return {**summary, "runs": runs}


def _percent(value: dict) -> str:
    spread = f" ± {100 * value['std']:.1f}" if value["std"] is not None else ""
    return f"{100 * value['mean']:.1f}{spread}"
