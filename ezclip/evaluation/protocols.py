"""The published protocols: which models are trained on what, what each is tested on, and what is reported of them."""

import re
import statistics
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from ezclip.data.sources import VideoSplit
from ezclip.data.splits import check_disjoint, count_shots, draw_shots, halve_classes, select_classes
from ezclip.errors import DataError
from processing_ezclip import label_key


PROTOCOLS = ("zero_shot", "base_to_novel", "few_shot", "fully_supervised")
BASE_TO_NOVEL_SHOTS = 16
STD_DDOF = 1  # standard deviations are those of a sample
SINGLE_VIEW, MULTI_VIEW = "single_view", "multi_view"


@dataclass
class Experiment:
    """
    One training, or none, and what its model is tested on.

    Args:
        name (`str`):
            Its folder below the output folder: "seed1", "list2", "16_shots/seed1"; "" for the output folder itself.
        seed (`int`):
            Seed of everything random in it.
        train ([`VideoSplit`], *optional*):
            The training videos; `None` where a given model is tested as it is.
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
    Base-to-novel generalisation from published lists: a training for each list of shots of the base classes and each
    seed, tested on base and on novel classes.

    Args:
        trains (`list[VideoSplit]`):
            Training videos of the base classes: the published draws. Without any, a given model is tested.
        base ([`VideoSplit`]), novel ([`VideoSplit`]):
            Test videos of either half.
        seeds (`Iterable[int]`):
            Seeds of the trainings of each list.

    Raises:
        [`DataError`]: if a class is in both halves, or the base classes are not those of training.
    """
    check_disjoint(base.class_names, novel.class_names)
    for train in trains:
        _check_same_classes(train, base, "base")
    return _for_each(trains or [None], seeds, {"base": base, "novel": novel})


def draw_base_to_novel(
    pool: VideoSplit, test: VideoSplit, seeds: Iterable[int], num_shots: int = BASE_TO_NOVEL_SHOTS
) -> list[Experiment]:
    """
    Base-to-novel generalisation from a data set: its classes are halved by frequency, and a training for each seed has
    shots of the base half that are drawn with that seed.

    Args:
        pool ([`VideoSplit`]):
            Training videos of all classes, which are counted and drawn from.
        test ([`VideoSplit`]):
            Test videos of all classes.
        seeds (`Iterable[int]`):
            Seeds of the draws and trainings.
        num_shots (`int`, *optional*, defaults to 16):
            Training videos of each base class.

    Raises:
        [`DataError`]: if a base class has fewer videos, or pool and test have other classes.
    """
    _check_same_classes(pool, test, "test")
    base, novel = halve_classes(pool)
    tests = {"base": select_classes(test, base), "novel": select_classes(test, novel)}
    base_pool = select_classes(pool, base)
    return [Experiment(f"seed{seed}", seed, draw_shots(base_pool, num_shots, seed), tests) for seed in seeds]


def few_shot(trains: list[VideoSplit], test: VideoSplit, seeds: Iterable[int]) -> list[Experiment]:
    """
    Few-shot learning from published lists: a training for each list and seed, all tested on the full test split.

    Args:
        trains (`list[VideoSplit]`):
            Lists with equally many videos of each class; how many is the K of the list.
        test ([`VideoSplit`]):
            The test videos.
        seeds (`Iterable[int]`):
            Seeds of the trainings of each list.

    Raises:
        [`DataError`]: if classes of a list have different numbers of videos, or a list and the test other classes.
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
    Few-shot learning from a data set: for each number of shots and each seed a training on videos drawn with that
    seed, all tested on the full test split.

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
        [`DataError`]: if a class has fewer videos, a number repeats, or pool and test have other classes.
    """
    _check_same_classes(pool, test, "test")
    repeated = [number for number, count in Counter(shots).items() if count > 1]
    if repeated:
        raise DataError(f"Numbers of shots must differ; got {repeated[0]} more than once.")
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
    Training on a whole data set, for each seed, and a test on videos of the same classes.

    Args:
        train ([`VideoSplit`]), test ([`VideoSplit`]):
            The training and test videos.
        seeds (`Iterable[int]`):
            Seeds of the trainings.
        has_views (`bool`, *optional*, defaults to `False`):
            Whether videos are tested twice: from a single view, and from several, as published.

    Raises:
        [`DataError`]: if the two have other classes.
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
            For each experiment, by its name, and each of its tests the content of `eval_results.json`, with
            `eval_top1` and `eval_top5` as fractions.

    Returns:
        `dict`: JSON: `protocol`, `std_ddof` (deviations divide by n - 1), `experiments` (the results), and
        `summary`, in which a value over several runs is `{"mean", "std", "num_runs"}`, `std` being `None` for a
        single one:

        - zero-shot: for each data set `top1` and `top5`, over its splits;
        - base-to-novel: `base`, `novel`, and `harmonic_mean`, top-1 over the experiments. The `mean` of the last is
          the harmonic mean of the other two means, as the papers report it; its `std` is that of the harmonic means
          of the experiments, which are below `runs`;
        - few-shot: for each K, as `"16_shots"`, `top1` and `top5`, over seeds and lists;
        - fully supervised: for each test `top1` and `top5`, over seeds.

    Raises:
        [`DataError`]: if there are no results, or those of base-to-novel lack a half.
    """
    if protocol not in PROTOCOLS:
        raise DataError(f"A protocol is one of {', '.join(PROTOCOLS)}; got {protocol!r}.")
    if not results:
        raise DataError("There are no results to summarise.")
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
    """
    Return the table of a summary from [`summarize`] in percent, with "mean ± standard deviation" over several
    runs.
    """
    content = summary["summary"]
    if summary["protocol"] == "base_to_novel":
        rows = {name: [f"{100 * value:.1f}" for value in run.values()] for name, run in content["runs"].items()}
        rows["mean"] = [_percent(content[part]) for part in ("base", "novel", "harmonic_mean")]
        return _table(["top-1 (%)", "base", "novel", "harmonic mean"], rows)
    first = {"zero_shot": "data set", "few_shot": "shots", "fully_supervised": "test"}[summary["protocol"]]
    rows = {
        name.removesuffix("_shots"): [_percent(row["top1"]), _percent(row["top5"]), str(row["top1"]["num_runs"])]
        for name, row in content.items()
    }
    runs = "splits" if summary["protocol"] == "zero_shot" else "runs"
    return _table([first, "top-1 (%)", "top-5 (%)", runs], rows)


def _for_each(
    trains: list[VideoSplit], seeds: Iterable[int], tests: dict[str, VideoSplit], folder: str = ""
) -> list[Experiment]:
    """Make an experiment for each list and seed. Its name tells them apart if there are several."""
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
    other = [keys[0][key] for key in keys[0].keys() - keys[1].keys()] + [
        keys[1][key] for key in keys[1].keys() - keys[0].keys()
    ]
    if other:
        raise DataError(
            f"The {len(keys[0])} classes of training and the {len(keys[1])} of {name} must be the same; only one of "
            f"the two has {sorted(other)[:10]}. Check the two label lists."
        )


def _over_runs(values: list[float]) -> dict:
    std = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "std": std, "num_runs": len(values)}


def _group(runs: list[tuple[str, str, dict]], group_of) -> dict[str, dict]:
    """`top1` and `top5` over the runs of each group."""
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


def _table(header: list[str], rows: dict[str, list[str]]) -> str:
    lines = [header, ["---"] * len(header), *([name, *cells] for name, cells in rows.items())]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
