"""YAML files of options: YAML 1.2 values, and files that are refused."""

import pytest

from ezclip.errors import DataError
from ezclip.utils.yaml_files import read_yaml


def test_yaml_1_2_values(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("mixed_precision: no\nyes: on\ndo_train: true\nlearning_rate: 1e-3\nseed:\nlabels: [é, 1]\n")
    assert read_yaml(path) == {
        "mixed_precision": "no",
        "yes": "on",
        "do_train": True,
        "learning_rate": 0.001,
        "seed": None,
        "labels": ["é", 1],
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("seed: 1\nseed: 2", '"seed".*, line 2'),
        ("a: {seed: 1, seed: 2}", '"seed"'),
        ("1: 2", "key 1 must be a string, got int"),
        ("a: [{true: x}]", "key True must be a string, got bool"),
        ("~: x", "key None must be a string"),
        ("a: [", "line 1"),
        ("a: !!python/object:os.system x", "python/object"),
        ("a: 2026-13-45", "month"),
        ("a: \x01", "#x0001"),
    ],
)
def test_bad_files(tmp_path, content, message):
    (tmp_path / "run.yaml").write_text(content)
    with pytest.raises(DataError, match=f"(?s)run.yaml.*{message}"):
        read_yaml(tmp_path / "run.yaml")


def test_unreadable_file(tmp_path):
    with pytest.raises(DataError, match="none.yaml cannot be read"):
        read_yaml(tmp_path / "none.yaml")


def test_list_that_holds_itself(tmp_path):
    (tmp_path / "run.yaml").write_text("&all [*all]")
    (content,) = read_yaml(tmp_path / "run.yaml")
    assert content[0] is content
