"""What changed between two runs is said in words."""

import pytest

from ezclip.utils.settings import find_differences


MANY = [f"class {number}" for number in range(20)]


@pytest.mark.parametrize(
    ("before", "now", "words"),
    [
        (
            {"class_names": ["yoga", "cake"]},
            {"class_names": ["yoga", "cooking"]},
            "labels: yoga, cake → yoga, cooking",
        ),
        ({"class_names": MANY}, {"class_names": [*MANY[1:], "x"]}, "labels: 1 new (x) and 1 gone (class 0)"),
        ({"class_names": MANY}, {"class_names": MANY[::-1]}, "labels: in another order"),
        ({"weights": "1a2b"}, {"weights": "3c4d"}, "the weights of the model"),
        ({"processor": {"tokenizer": "1a"}}, {"processor": {"tokenizer": "2b"}}, "the tokenizer"),
        ({"processor": {"num_frames": 8}}, {"processor": {"num_frames": 16}}, "processor.num_frames: 8 → 16"),
        ({"templates": ["a {}"]}, {"templates": ["a {}, seen"]}, 'templates: a {} → "a {}, seen"'),
        ({"templates": None}, {"templates": []}, "templates: none → none"),
        (
            {"texts of train": {"templates": ["a {}"]}},
            {"texts of train": {"templates": ["the {}"]}},
            "templates of the texts of train: a {} → the {}",
        ),
        (
            {"descriptions": {"yoga": "1a", "cake": "2b"}},
            {"descriptions": {"yoga": "1a", "cake": "3c", "tea": "4d"}},
            "the descriptions of 2 classes (cake, tea)",
        ),
        ({"descriptions": None}, {"descriptions": {"tea": "4d"}}, "the descriptions of 1 class (tea)"),
        (
            {"videos of the test": {"number": 2, "content": ["1a", "2b"]}},
            {"videos of the test": {"number": 2, "content": ["1a", "3c"]}},
            "the content of 1 video of the test",
        ),
        (
            {"videos of train": {"names and labels": "1a", "content": "2b"}},
            {"videos of train": {"names and labels": "3c", "content": "4d"}},
            "the names or labels of the videos of train",
        ),
        (
            {"videos of train": {"number": 3, "names and labels": "1a", "content": ["2b"]}},
            {"videos of train": {"number": 2, "names and labels": "3c", "content": ["4d"]}},
            "number of the videos of train: 3 → 2",
        ),
        (
            {"videos of train": {"content": "1a"}},
            {"videos of train": {"content": "2b"}},
            "the content of videos of train",
        ),
    ],
)
def test_changes_in_words(before, now, words):
    assert list(find_differences(before, now).values()) == [words]


def test_no_change():
    assert find_differences({"weights": "1a", "seed": 1}, {"seed": 1, "weights": "1a"}) == {}
