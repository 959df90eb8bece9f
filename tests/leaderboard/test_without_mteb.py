"""`ezclip leaderboard` where `mteb` is not installed."""

import sys

import pytest

from ezclip.cli.main import main


def test_name_the_extra_before_the_model_is_loaded(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "mteb", None)  # as if it were not installed
    with pytest.raises(SystemExit) as ended:
        main(["leaderboard", "--model_name_or_path", "missing", "--output_dir", str(tmp_path / "out")])
    assert ended.value.code == 2 and 'pip install "ezclip[mteb]"' in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
