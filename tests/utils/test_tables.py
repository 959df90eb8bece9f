"""Tables and bars on the screen."""

import pytest

from ezclip.utils.tables import as_text_table, score_bar, screen_width


def test_text_table():
    assert as_text_table(["video", "label"], [["a.mp4", "yoga"], ["longer.mp4", "x"]]).split("\n") == [
        "video       label",
        "a.mp4       yoga",
        "longer.mp4  x",
    ]


@pytest.mark.parametrize("name", ["做蛋糕", "cafe\u0301", "ｙｏｇａ", "👍", "a\u200bb", "안녕"])
def test_text_table_aligns_other_scripts(name):
    lines = as_text_table(["name", "score"], [[name, "|"], ["a plain name", "|"]]).split("\n")[1:]
    assert len({screen_width(line[: line.index("|")]) for line in lines}) == 1


def test_screen_width():
    assert [screen_width(text) for text in ("abc", "做蛋糕", "e\u0301", "👍", "")] == [3, 6, 1, 2, 0]


def test_text_table_prints_no_commands():
    table = as_text_table(["video"], [["\x1b[2J.mp4"], ["two\nlines.mp4"]])
    assert "\x1b" not in table
    assert table.count("\n") == 2


@pytest.mark.parametrize(
    ("score", "bar"),
    [(0, "    "), (1, "████"), (0.5, "██  "), (0.55, "██▎ "), (0.01, "    "), (7, "████"), (-1, "    ")],
)
def test_score_bar(score, bar):
    assert score_bar(score, 4) == bar
