"""What the protocols train and test on, and what they report."""

import json
from collections import Counter

import pytest

from ezclip.data.splits import draw_shots, find_overlap
from ezclip.errors import DataError
from ezclip.evaluation.protocols import (
    as_markdown,
    base_to_novel,
    draw_base_to_novel,
    draw_few_shot,
    few_shot,
    fully_supervised,
    harmonic_mean,
    summarize,
    zero_shot,
)
from tests.data.test_lists import load_beside_one_video
from tests.data.test_splits import contents, make_split
from tests.helpers import shared_path


POOL = {"clap": 20, "wave": 17, "run": 30, "sit": 18, "jump": 25}


def test_zero_shot():
    train, hmdb, ucf = make_split(POOL), [make_split({"a": 1}), make_split({"b": 1})], [make_split({"c": 1})]
    (experiment,) = zero_shot(train, {"hmdb51": hmdb, "ucf101": ucf}, seed=7)
    assert (experiment.name, experiment.seed, experiment.train) == ("", 7, train)
    assert experiment.tests == {"hmdb51/split1": hmdb[0], "hmdb51/split2": hmdb[1], "ucf101/split1": ucf[0]}
    assert zero_shot(None, {"ucf101": ucf}, seed=7)[0].train is None


def test_drawn_base_to_novel():
    pool, test = make_split(POOL), make_split(dict.fromkeys(reversed(POOL), 3), "/tests")
    experiments = draw_base_to_novel(pool, test, seeds=[3, 4])
    assert [(e.name, e.seed) for e in experiments] == [("seed3", 3), ("seed4", 4)]
    for experiment in experiments:
        assert experiment.train.class_names == experiment.tests["base"].class_names == ["clap", "jump", "run"]
        assert Counter(experiment.train.videos["label"]) == {0: 16, 1: 16, 2: 16}
        assert experiment.tests["novel"].class_names == ["wave", "sit"]
        assert [len(experiment.tests[half]) for half in ("base", "novel")] == [9, 6]
        for split in (experiment.train, *experiment.tests.values()):
            assert all(name in path for path, name in contents(split))
        assert find_overlap(experiment.train, experiment.tests["base"]) == []
    assert contents(experiments[0].train) != contents(experiments[1].train)
    with pytest.raises(DataError, match=r"2 of 3 classes have fewer: 'clap' \(20\), 'jump' \(25\)"):
        draw_base_to_novel(pool, test, [0], num_shots=26)
    with pytest.raises(DataError, match=r"5 classes of training and the 4 of test .* \['sit'\]"):
        draw_base_to_novel(pool, make_split({"clap": 1, "wave": 1, "run": 1, "jump": 1}), [0])


def test_base_to_novel_from_lists():
    trains = [make_split({"clap": 16, "wave": 16}, f"/draw{n}") for n in range(3)]
    base, novel = make_split({"clap": 2, "wave": 2}), make_split({"run": 2})
    experiments = base_to_novel(trains, base, novel, [1024])
    assert [(e.name, e.seed, e.train) for e in experiments] == [(f"list{n + 1}", 1024, trains[n]) for n in range(3)]
    assert all(e.tests == {"base": base, "novel": novel} for e in experiments)
    assert [e.name for e in base_to_novel(trains[:1], base, novel, [1, 2])] == ["seed1", "seed2"]
    assert [e.name for e in base_to_novel(trains[:2], base, novel, [1, 2])][1:3] == ["list1/seed2", "list2/seed1"]
    with pytest.raises(DataError, match=r"1 classes are both base and novel.*\['Wave'\]"):
        base_to_novel(trains, base, make_split({"run": 1, "Wave": 1}), [1])
    with pytest.raises(DataError, match=r"2 classes of training and the 1 of base must be the same.*\['wave'\]"):
        base_to_novel(trains, make_split({"clap": 2}), novel, [1])


def test_drawn_few_shot():
    pool, test = make_split(POOL), make_split(dict.fromkeys(POOL, 1), "/tests")
    experiments = draw_few_shot(pool, [2, 16], [0, 1], test)
    assert [e.name for e in experiments] == ["2_shots/seed0", "2_shots/seed1", "16_shots/seed0", "16_shots/seed1"]
    assert [len(e.train) for e in experiments] == [10, 10, 80, 80]
    assert contents(experiments[3].train) == contents(draw_shots(pool, 16, 1))
    assert all(e.tests == {"test": test} for e in experiments)
    with pytest.raises(DataError, match="got 2 more than once"):
        draw_few_shot(pool, [2, 4, 2], [0], test)


def test_few_shot_from_lists():
    test = make_split({"clap": 5, "wave": 5})
    trains = [make_split({"clap": k, "wave": k}, f"/draw{n}") for n, k in enumerate((2, 4, 4))]
    experiments = few_shot(trains, test, [5])
    assert [e.name for e in experiments] == ["2_shots/seed5", "4_shots/list1", "4_shots/list2"]
    assert [e.train for e in experiments] == trains
    with pytest.raises(DataError, match=r"as many videos of each class.* 'wave' \(3\)"):
        few_shot([make_split({"clap": 2, "wave": 3, "sit": 2})], make_split({"clap": 1, "wave": 1, "sit": 1}), [0])


def test_published_few_shot_lists(tmp_path):
    folder = ("data", "EZ-CLIP", "dataset_splits", "HMDB")
    labels = shared_path("data", "EZ-CLIP", "lists", "hmdb51_labels.csv")
    lists = [shared_path(*folder, "Few_shot", f"my_hmdb_few_shot_{k}.txt") for k in (2, 16)]
    trains = [load_beside_one_video(tmp_path, path, labels) for path in lists]
    test = load_beside_one_video(tmp_path, shared_path(*folder, "Zero_shot", "test.txt"), labels)
    experiments = few_shot(trains, test, [1024])
    assert [e.name for e in experiments] == ["2_shots/seed1024", "16_shots/seed1024"]
    assert find_overlap(experiments[1].train, test) == []


def test_fully_supervised():
    train, test = make_split(POOL), make_split(POOL, "/tests")
    (experiment,) = fully_supervised(train, test, [2])
    assert (experiment.name, experiment.train, experiment.tests) == ("seed2", train, {"test": test})
    (experiment,) = fully_supervised(train, test, [2], has_views=True)
    assert experiment.tests == {"single_view": test, "multi_view": test}
    with pytest.raises(DataError, match=r"only one of the two has \['run', 'sit', 'wave'\]"):
        fully_supervised(train, make_split({"clap": 1, "jump": 1}), [2])


def scores(top1, top5=1.0, samples=100):
    return {"eval_top1": top1, "eval_top5": top5, "eval_samples": samples, "eval_bad_videos": 0}


def test_summary_of_zero_shot():
    results = {
        "": {
            **{f"hmdb51/split{n}": scores(top1) for n, top1 in ((1, 0.5), (2, 0.52), (3, 0.57))},
            "ucf101/split1": scores(0.8, 0.95),
        }
    }
    summary = json.loads(json.dumps(summarize("zero_shot", results)))
    assert summary["std_ddof"] == 1 and summary["experiments"] == results
    hmdb, ucf = summary["summary"]["hmdb51"], summary["summary"]["ucf101"]
    # Sample deviation: the root of (0.03² + 0.01² + 0.04²) / 2
    assert hmdb["top1"] == {"mean": pytest.approx(0.53), "std": pytest.approx(0.0013**0.5), "num_runs": 3}
    assert hmdb["top5"] == {"mean": 1.0, "std": 0.0, "num_runs": 3}
    assert ucf["top1"] == {"mean": 0.8, "std": None, "num_runs": 1}
    assert as_markdown(summary) == (
        "| data set | top-1 (%) | top-5 (%) | splits |\n| --- | --- | --- | --- |\n"
        "| hmdb51 | 53.0 ± 3.6 | 100.0 ± 0.0 | 3 |\n| ucf101 | 80.0 | 95.0 | 1 |\n"
    )


def test_summary_of_base_to_novel():
    results = {
        "list1": {"base": scores(0.8), "novel": scores(0.4)},
        "list2": {"base": scores(0.6), "novel": scores(0.6)},
    }
    summary = json.loads(json.dumps(summarize("base_to_novel", results)))
    content = summary["summary"]
    assert content["runs"]["list1"] == {"base": 0.8, "novel": 0.4, "harmonic_mean": pytest.approx(0.64 / 1.2)}
    assert content["base"] == {"mean": pytest.approx(0.7), "std": pytest.approx(0.02**0.5), "num_runs": 2}
    # The harmonic mean of 0.7 and 0.5, not the mean of 0.5333 and 0.6
    assert content["harmonic_mean"]["mean"] == pytest.approx(0.7 / 1.2)
    assert content["harmonic_mean"]["std"] == pytest.approx((0.6 - 0.64 / 1.2) / 2**0.5)
    assert as_markdown(summary) == (
        "| top-1 (%) | base | novel | harmonic mean |\n| --- | --- | --- | --- |\n"
        "| list1 | 80.0 | 40.0 | 53.3 |\n| list2 | 60.0 | 60.0 | 60.0 |\n"
        "| mean | 70.0 ± 14.1 | 50.0 ± 14.1 | 58.3 ± 4.7 |\n"
    )
    with pytest.raises(DataError, match="seed1 lack novel"):
        summarize("base_to_novel", {"seed1": {"base": scores(0.5)}})


@pytest.mark.parametrize(("base", "novel", "mean"), [(73.1, 60.6, 66.3), (77.0, 58.2, 66.3), (94.4, 77.9, 85.4)])
def test_published_harmonic_means(base, novel, mean):
    assert round(harmonic_mean(base, novel), 1) == mean


def test_harmonic_mean_of_nothing():
    assert harmonic_mean(0.0, 0.0) == 0.0


def test_summary_of_few_shot():
    results = {
        "16_shots/seed1": {"test": scores(0.7)},
        "2_shots/seed1": {"test": scores(0.5)},
        "2_shots/list2/seed1": {"test": scores(0.54)},
    }
    summary = summarize("few_shot", results)
    assert list(summary["summary"]) == ["2_shots", "16_shots"]
    assert summary["summary"]["2_shots"]["top1"]["mean"] == pytest.approx(0.52)
    assert as_markdown(summary).splitlines()[2:] == [
        "| 2 | 52.0 ± 2.8 | 100.0 ± 0.0 | 2 |",
        "| 16 | 70.0 | 100.0 | 1 |",
    ]


def test_summary_of_fully_supervised():
    summary = summarize("fully_supervised", {"seed1": {"single_view": scores(0.8, 0.9), "multi_view": scores(0.85)}})
    assert summary["summary"]["single_view"]["top1"] == {"mean": 0.8, "std": None, "num_runs": 1}
    assert as_markdown(summary).splitlines() == [
        "| test | top-1 (%) | top-5 (%) | runs |",
        "| --- | --- | --- | --- |",
        "| single_view | 80.0 | 90.0 | 1 |",
        "| multi_view | 85.0 | 100.0 | 1 |",
    ]


def test_summary_of_nothing():
    with pytest.raises(DataError, match="zero_shot, .*got 'two_shot'"):
        summarize("two_shot", {})
    with pytest.raises(DataError, match="`results`"):
        summarize("zero_shot", {})
