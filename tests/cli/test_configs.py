"""Option files of the published experiments: their lists exist and fit their classes."""

from pathlib import Path

import pytest
import yaml

from ezclip import EZClipProcessor
from ezclip.cli.arguments import parse_args
from ezclip.cli.plan import read_eval_datasets
from ezclip.data.labels import read_class_descriptions, read_label_list
from ezclip.data.splits import count_shots, find_overlap, select_classes
from ezclip.evaluation.protocols import PROTOCOLS, base_to_novel, few_shot
from tests.data.test_lists import load_beside_one_video
from tests.helpers import ROOT, shared_path


CONFIGS = sorted((ROOT / "ezclip" / "configs").glob("*.yaml"))
# Lists of the authors' repository that the reference data leaves out, and one that they do not publish
ABSENT = ("dataset_splits/K-400/", "dataset_splits/SSv2/", "kinetic_400_txt/train.txt")
# Videos of each list
SIZES = {
    "FS_base_train_s1.txt": {"HMDB": 416, "UCF": 816},
    "FS_base_train_s2.txt": {"HMDB": 416, "UCF": 816},
    "FS_base_train_s3.txt": {"HMDB": 416, "UCF": 816},
    "hmdb_base_val.txt": 780,
    "hmdb_novel_val.txt": 750,
    "ucf_base_val.txt": 2088,
    "ucf_novel_val.txt": 1695,
    **{f"my_hmdb_few_shot_{k}.txt": 51 * k for k in (2, 4, 8, 16)},
    **{f"my_ucf_few_shot_{k}.txt": 101 * k for k in (2, 4, 8, 16)},
    "test.txt": {"HMDB": 1530, "UCF": 3783},
    "testlist01.txt": 3783,
    "testlist02.txt": 3734,
    "testlist03.txt": 3696,
    "test_DS.txt": 3841,
    "test_600_exclusive.txt": 11462,
}
DATASETS = (("hmdb51", 51), ("ucf101", 101), ("ucf_ds", 101), ("kinetics600", 232))
NOT_TESTED = ("zero_shot_tear", "ucf_ds")
# Experiments, and the file of data sets on which each tests
ZERO_SHOT = {
    "zero_shot": "zero_shot_descriptions",
    "zero_shot_k400": "zero_shot_descriptions",
    "zero_shot_templates": "zero_shot_templates",
    "zero_shot_k400_actionclip": "zero_shot_templates",
    "zero_shot_k400_vificlip": "zero_shot_templates",
    "zero_shot_tear": "zero_shot_tear",
}
NUM_CLASSES = {
    ("base_to_novel_hmdb51", ""): (26, 25),
    ("base_to_novel_ucf101", ""): (51, 50),
    ("base_to_novel_k400", ""): (200, 200),
    ("base_to_novel_ssv2", ""): (87, 87),
    ("few_shot_hmdb51", ""): (51,),
    ("few_shot_ucf101", ""): (101,),
    ("fully_supervised_k400", ""): (400,),
    **{(config, name): (number,) for config in ZERO_SHOT for name, number in DATASETS if (config, name) != NOT_TESTED},
}


def read(name: str) -> dict:
    return yaml.safe_load((ROOT / "ezclip" / "configs" / f"{name}.yaml").read_text(encoding="utf-8"))


def in_list_root(name: str) -> Path:
    return shared_path("data", "EZ-CLIP") / name


def size_of(name: str) -> int:
    path = Path(name)
    size = SIZES[path.name]
    return size[path.parts[1]] if isinstance(size, dict) else size


def data_sets_of(content: dict) -> dict[str, dict]:
    """The options of each data set to test on."""
    if "eval_datasets" not in content:
        return {"": content}
    return yaml.safe_load((ROOT / "ezclip" / "configs" / content["eval_datasets"]).read_text(encoding="utf-8"))


def load(tmp_path, name: str, label_list: str):
    split = load_beside_one_video(tmp_path, in_list_root(name), in_list_root(label_list))
    assert len(split) == size_of(name)
    return split


def test_every_experiment_has_a_file():
    assert {path.stem for path in CONFIGS} == {config for config, _ in NUM_CLASSES}
    assert {read(path.stem)["protocol"] for path in CONFIGS} == set(PROTOCOLS)


@pytest.mark.parametrize("name", [path.stem for path in CONFIGS])
def test_file_is_a_flat_mapping(name):
    content = read(name)
    datasets = data_sets_of(content) if "eval_datasets" in content else {}
    for options in (content, *datasets.values()):
        for option, value in options.items():
            assert option.isidentifier() and value is not None
            assert isinstance(value, (str, bool, int, float)) or all(isinstance(item, str) for item in value)
            assert not isinstance(value, str) or not value[:1].isdigit(), "YAML reads 1e-4 as text, 1.0e-4 as a number"
    if content.get("do_train"):
        assert content["warmup_ratio"] == pytest.approx(5 / content["num_train_epochs"], rel=1e-3)
        assert content["seed"] == 1024


# The other zero-shot configurations test on the lists of zero_shot, see below.
@pytest.mark.parametrize(
    ("config", "name"), [key for key in NUM_CLASSES if key[0] == "zero_shot" or key[0] not in ZERO_SHOT]
)
def test_lists_fit_label_lists(tmp_path, config, name):
    content = read(config)
    options = data_sets_of(content)[name]
    pairs = [(path, options["label_list"]) for path in options["validation_list"]]
    if name == "":
        train_labels = content.get("train_label_list", content["label_list"])
        pairs += [(path, train_labels) for path in content["train_list"]]
        pairs += [(content["novel_list"], content["novel_label_list"])] if "novel_list" in content else []
    for path, label_list in pairs:
        if not path.startswith(ABSENT):
            load(tmp_path, path, label_list)


@pytest.mark.parametrize(
    ("config", "name"), [key for key in NUM_CLASSES if ZERO_SHOT.get(key[0]) != "zero_shot_templates"]
)
def test_all_classes_have_descriptions(config, name):
    content = read(config)
    options = data_sets_of(content)[name]
    label_lists = [options["label_list"], *([content["novel_label_list"]] if "novel_label_list" in content else [])]
    names = [read_label_list(in_list_root(label_list)) for label_list in label_lists]
    assert tuple(map(len, names)) == NUM_CLASSES[config, name]
    if "train_label_list" in content:
        train_texts = read_class_descriptions([in_list_root(path) for path in content["class_descriptions"]])
        train_names = read_label_list(in_list_root(content["train_label_list"]))
        assert len(EZClipProcessor().get_prompts(train_names, descriptions=train_texts)) == len(train_names)
    texts = read_class_descriptions([in_list_root(path) for path in options["class_descriptions"]])
    num_texts = range(6, 12) if config == "zero_shot_tear" else [1]  # of a class
    for class_names in names:
        prompts = EZClipProcessor().get_prompts(class_names, descriptions=texts)
        assert all(len(own) in num_texts and all(text for (text,) in own) for own in prompts)


def test_base_to_novel_from_the_published_lists(tmp_path):
    content = read("base_to_novel_hmdb51")
    trains = [load(tmp_path, path, content["train_label_list"]) for path in content["train_list"]]
    base = load(tmp_path, content["validation_list"][0], content["label_list"])
    novel = load(tmp_path, content["novel_list"], content["novel_label_list"])
    experiments = base_to_novel(trains, base, novel, [content["seed"]])
    assert [experiment.name for experiment in experiments] == ["list1", "list2", "list3"]
    assert [count_shots(train) for train in trains] == [16, 16, 16]
    assert not any(find_overlap(train, test) for train in trains for test in (base, novel))


def test_few_shot_from_the_published_lists(tmp_path):
    content = read("few_shot_ucf101")
    trains = [load(tmp_path, path, content["label_list"]) for path in content["train_list"]]
    test = load(tmp_path, content["validation_list"][0], content["label_list"])
    experiments = few_shot(trains, test, [content["seed"]])
    assert [experiment.name for experiment in experiments] == [f"{k}_shots/seed1024" for k in (2, 4, 8, 16)]
    assert not any(find_overlap(train, test) for train in trains)


def test_draws_of_kinetics_600(tmp_path):
    options = data_sets_of(read("zero_shot"))["kinetics600"]
    split = load(tmp_path, options["validation_list"][0], options["label_list"])
    draws = [read_label_list(in_list_root(path)) for path in options["class_subset"]]
    assert [len(select_classes(split, names)) for names in draws] == [7891, 7936, 7938]
    assert [len(names) for names in draws] == [160, 160, 160]


@pytest.mark.parametrize("config", ZERO_SHOT)
def test_zero_shot_files_share_videos(config):
    assert read(config)["eval_datasets"] == f"datasets/{ZERO_SHOT[config]}.yaml"
    expected, found = data_sets_of(read("zero_shot")), data_sets_of(read(config))
    assert set(found) == {name for name in expected if (config, name) != NOT_TESTED}
    for name, options in found.items():
        texts = options.pop("class_descriptions", None)
        assert (texts is None) == (ZERO_SHOT[config] == "zero_shot_templates")
        assert options == {option: value for option, value in expected[name].items() if option != "class_descriptions"}


@pytest.mark.parametrize("config", ZERO_SHOT)
def test_eval_datasets_relative_to_file(config, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    arguments = [
        str(ROOT / "ezclip" / "configs" / f"{config}.yaml"),
        "--model_name_or_path",
        "model",
        "--output_dir",
        "out",
    ]
    _, data_args, args = parse_args(arguments)
    datasets = read_eval_datasets(data_args)
    assert set(datasets) == set(data_sets_of(read(config)))
    if config == "zero_shot_tear":
        assert args.ensemble == "embedding"
        assert all(options.include_label for options in datasets.values())
