"""Class names in plots where matplotlib's own fonts are the only ones."""

import warnings

import pytest


pytest.importorskip("matplotlib")

from matplotlib import font_manager, rc_context
from matplotlib.figure import Figure

from ezclip.utils import fonts
from ezclip.utils.fonts import Lettering


@pytest.fixture(autouse=True)
def only_own_fonts(monkeypatch):
    own = [entry for entry in font_manager.fontManager.ttflist if "mpl-data" in entry.fname]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    monkeypatch.setattr(fonts, "_reported_scripts", set())


def test_names_without_a_font(caplog, tmp_path):
    names = ["yoga", "弓道", "サッカー", "café"]
    lettering = Lettering(names)
    shown = [lettering.short(index) for index in range(4)]
    assert shown == ["yoga", "no. 1", "no. 2", "café"]
    assert [lettering.is_drawable(index) for index in range(4)] == [True, False, False, True]
    (record,) = caplog.records
    assert "CJK" in record.message and "KATAKANA" in record.message
    with warnings.catch_warnings(), rc_context({"font.family": lettering.families}):
        warnings.simplefilter("error")
        figure = Figure()
        for row, name in enumerate(shown):
            figure.text(0, row / 4, name)
        figure.savefig(tmp_path / "names.png")


def test_one_warning_per_script(caplog):
    for names in (["弓道"], ["太極拳"], ["yoga"], ["弓道", "한글"]):
        assert Lettering(names).families == [fonts.BASE_FAMILY]
    first, second = (record.message for record in caplog.records)
    assert "CJK" in first and "HANGUL" in second and "CJK" not in second


def test_short_names():
    name = "running through the long grass to the left"
    lettering = Lettering([name, "line\nbreak", "\u202e"])
    assert lettering.short(0, 20) == "running th…the left"
    assert lettering.short(1) == "line break" and lettering.short(2) == "no. 2"
