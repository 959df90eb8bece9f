"""The command `ezclip`: its subcommands, option files by bare name, and launches as script and module."""

import os
import subprocess
import sys
from importlib import import_module

import pytest

import ezclip
import run_video_zeroshot
from ezclip.cli.arguments import parse_args
from ezclip.cli.main import COMMANDS, main
from tests.helpers import ROOT


NEEDED = ["--model_name_or_path", "model", "--output_dir", "out"]


def test_help_lists_every_command(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in COMMANDS)


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"ezclip {ezclip.__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_the_command(name, capsys):
    if name == "compare":
        pytest.importorskip("scipy")
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: ezclip {name} ")


def test_arguments_reach_the_command(monkeypatch):
    given = []
    monkeypatch.setattr(run_video_zeroshot, "main", given.append)
    main(["run", "--do_eval"])
    main(["demo"])
    main(["demo", "--output_dir", "elsewhere", "--seed", "3"])
    assert given[0] == ["--do_eval"]
    _, _, args = parse_args(given[1])
    assert (args.demo, args.output_dir) == (True, "demo")
    _, _, args = parse_args(given[2])
    assert (args.demo, args.output_dir, args.seed) == (True, "elsewhere", 3)


def test_option_file_by_bare_name():
    by_name = parse_args(["base_to_novel_ucf101", *NEEDED, "--num_frames", "16"])
    path = str(ROOT / "ezclip" / "configs" / "base_to_novel_ucf101.yaml")
    assert by_name == parse_args([path, *NEEDED, "--num_frames", "16"])
    model_args, _, args = by_name
    assert args.protocol == "base_to_novel" and model_args.num_frames == 16


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (["base_to_novel_ucf"], ["'base_to_novel_ucf'", "base_to_novel_ucf101", "zero_shot_k400"]),
        (["gone.yaml"], ["gone.yaml cannot be read"]),
        (["zero_shot", "run.yaml"], ["run.yaml"]),
        (["--do_eval", "run.yaml"], ["run.yaml"]),
    ],
)
def test_wrong_option_file(arguments, messages, capsys):
    with pytest.raises(SystemExit) as ended:
        parse_args([*arguments, *NEEDED])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and "ezclip run: " in error
    assert all(message in error for message in messages)


@pytest.mark.slow
@pytest.mark.parametrize("script", [[str(ROOT / "run_video_zeroshot.py")], ["-m", "run_video_zeroshot"]])
def test_accelerate_launch(script, tmp_path):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", *script]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    result = subprocess.run(
        [*command, "--do_eval", "--output_dir", "out"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "ezclip run: --model_name_or_path is needed" in result.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_a_function(name):
    if name == "compare":
        pytest.importorskip("scipy")
    assert callable(import_module(COMMANDS[name][0]).main)
