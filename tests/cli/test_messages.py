"""Wrong command lines: one sentence, the nearest option, and a status. Each case is a command that a user typed."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import fields

import pytest

from ezclip.cli.arguments import GROUPS, DataArguments, ModelArguments, RunArguments, parse_args
from ezclip.cli.main import COMMANDS, main
from ezclip.cli.option_files import read_options
from ezclip.cli.parser import OTHER_NAMES, Parser, describe_unknown
from ezclip.errors import DataError
from tests.helpers import ROOT


TRAINING = ["--do_train", "--model_name_or_path", "model", "--train_dir", "videos"]


def refusal(capsys, *argv: str) -> str:
    """What a command says when it refuses its options: one line on standard error."""
    with pytest.raises(SystemExit) as ended:
        main(list(argv))
    output = capsys.readouterr()
    assert ended.value.code == 2 and output.out == ""
    assert output.err.count("\n") == 1 and output.err.startswith(f"ezclip {argv[0]}: ")
    assert output.err.endswith(f" See `ezclip {argv[0]} --help`.\n")
    return output.err


@pytest.mark.parametrize(
    ("command", "message"),
    [
        # an option that does not exist
        ("run --model_nam_or_path x", "no option --model_nam_or_path; the nearest is --model_name_or_path."),
        ("demo --push_to_hub", "There is no option --push_to_hub"),  # the demo would not heed it
        ("demo --sed 1", "the nearest is --seed."),
        ("demo x", "No option takes 'x'."),
        ("run --output-dirr=x", "no option --output-dirr; the nearest is --output_dir."),
        ("run --modl x", "the nearest is --model_name_or_path."),
        ("run --xyzzy", "There is no option --xyzzy."),
        ("run -o x", "There is no option -o"),
        ("export --modl x", "the nearest is --model."),
        ("classify video.mp4 --lables a b", "the nearest is --labels."),
        # a shortened option: an unknown one is named even if others are missing
        ("run --eval 3", "the nearest are --eval_split_name, --eval_steps, --eval_datasets."),
        ("push --repo me/x", "the nearest is --repo_id."),
        # a name that another tool has for it
        ("run --labels yoga", "no option --labels: here it is --candidate_labels."),
        ("run --fp16", "here it is --mixed_precision."),
        ("run --lr 1", "here it is --learning_rate."),
        ("run --batch_size 1", "here it is --per_device_eval_batch_size or --per_device_train_batch_size."),
        ("timeline video.mp4 --model m --labels a", "here it is --model_name_or_path."),
        # a wrong value
        ("run --preset ezclp", "--preset must be one of ezclip, actionclip,"),
        ("run --preset ezclp", "got 'ezclp'; the nearest is ezclip."),
        ("run --num_crops 2", "--num_crops must be one of 1, 3, got 2."),
        ("run --num_frames eight", "--num_frames must be a whole number, got 'eight'."),
        ("run --num-frames 8.0", "--num_frames must be a whole number, got '8.0'."),
        ("run --learning_rate fast", "--learning_rate must be a number, got 'fast'."),
        ("run --do_eval maybe", "--do_eval must be true or false, got 'maybe'."),
        ("run --output_dir o --top_k 0", "--top_k must be at least 1, got 0."),
        ("timeline video.mp4 --model_name_or_path m --window two", "--window must be a number, got 'two'."),
        ("export --model m --output_dir o --format onx", "got 'onx'; the nearest is onnx."),
        ("push --model m --repo_id r --private=yes", "--private takes no value, got 'yes'."),
        # a missing value or option, or one too many
        ("run --output_dir --do_eval", "--output_dir needs a value."),
        ("run --do_predict --videos", "--videos needs a value, or several."),
        ("run --do_eval --output_dir o", "--model_name_or_path is needed"),
        ("push --model m", "--repo_id must be given."),
        ("convert", "--checkpoint and --output_dir must be given."),
        ("attention video.mp4 --model_name_or_path m", "One of --output_dir, --output_file must be given."),
        ("push --model m --repo_id r --revision a --create_pr", "--create_pr and --revision exclude each other"),
        # stray words
        ("run --seed 3 videos", "No option takes 'videos'."),
        ("report run --seed 1 other", "No option takes 'other'."),
    ],
)
def test_one_sentence(command, message, capsys):
    assert message in refusal(capsys, *command.split())


def test_control_characters_are_escaped(capsys):
    assert "\x1b" not in refusal(capsys, "run", "--\x1b[31mred")


@pytest.mark.parametrize("value", ["--not an option", "-1", "-.5"])
def test_values_with_a_dash(value):
    parser = Parser(prog="p")
    parser.add_argument("--labels", nargs="+")
    assert parser.parse_args(["--labels", value]).labels == [value]
    assert parser.parse_args(["--labels=--x"]).labels == ["--x"]
    assert parser.parse_args(["--labels", "a"]).labels == ["a"]


def test_dashes_for_underscores():
    _, data_args, args = parse_args([*TRAINING[:3], "--train-dir", "videos", "--output-dir", "out"])
    assert (data_args.train_dir, args.output_dir) == ("videos", "out")


def test_other_names_lead_to_options():
    known = {f"--{field.name}" for group in (ModelArguments, DataArguments, RunArguments) for field in fields(group)}
    known |= {"--device", "--labels", "--video_dir", "--split_name", "--output_file"}  # of other commands
    for name, others in OTHER_NAMES.items():
        assert {f"--{other}" for other in others} <= known, name
        assert f"here it is --{others[0]}" in describe_unknown(f"--{name}", [f"--{others[0]}"])


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("convert --checkpoint gone.pt --output_dir out", "gone.pt"),
        ("push --model ./gone --repo_id me/x", "--model must be the folder of a model, got gone"),
        ("describe --candidate_labels a --model_name_or_path ./gone --output_dir out", "No folder './gone'"),
    ],
)
def test_mistyped_paths_are_named_before_the_network(command, message, tmp_path, capsys, monkeypatch):
    def connect(*_):
        raise AssertionError("the network was asked")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)
    with pytest.raises(SystemExit) as ended:
        main(command.split())
    assert message in f"{ended.value.code}{capsys.readouterr().err}"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["evaluate"], "no command 'evaluate': here it is `ezclip run`"),
        (["clasify", "video.mp4"], "no command 'clasify'; the nearest is `ezclip classify`"),
        (["xyzzy"], "must be one of classify, run, demo"),
        (["--do_eval"], "A command comes first"),
    ],
)
def test_unknown_command(command, message, capsys):
    assert main(command) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and error.endswith("See `ezclip --help`.\n")


def test_option_file(tmp_path):
    (tmp_path / "run.yaml").write_text("num_frame: 8\n")
    with pytest.raises(DataError, match=r"run.yaml: .* got 'num_frame'; the nearest is num_frames"):
        read_options(tmp_path / "run.yaml", (ModelArguments,))
    (tmp_path / "run.yaml").write_text("preset: ezclp\n")
    with pytest.raises(DataError, match=r"run.yaml: --preset must be .*the nearest is ezclip"):
        read_options(tmp_path / "run.yaml", (ModelArguments,))
    (tmp_path / "run.yaml").write_text("resume_from_checkpoint: true\n")
    assert read_options(tmp_path / "run.yaml", (RunArguments,)) == {"resume_from_checkpoint": "latest"}


# ---- Help ----


def help_of(command: str, capsys) -> str:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_no_noise(command, capsys, monkeypatch):
    if command == "compare":
        pytest.importorskip("scipy")
    monkeypatch.setenv("COLUMNS", "300")
    shown = help_of(command, capsys)
    assert "None" not in shown and "SUPPRESS" not in shown
    assert not re.search(r"--[a-z]+-[a-z]+-?[a-z]* [A-Z]", shown), "an option by two names"
    assert not re.search(r"[Dd]efaults?\b.*[Dd]efault: ", shown), "two defaults of one option"
    assert f"    ezclip {command} " in shown, "no example"


def test_help_of_a_run(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    shown = help_of("run", capsys)
    titles = re.findall(r"^(\S.*):$", shown, re.MULTILINE)
    assert titles == ["options", *GROUPS]
    assert shown.index("--do_predict  ") < shown.index("--model_name_or_path PATH  ") < shown.index("--max_pixels N  ")
    for group in (ModelArguments, DataArguments, RunArguments):
        for field in fields(group):
            assert len(re.findall(rf"^  --{field.name}\b.*\S$", shown, re.MULTILINE)) == 1, field.name
    assert "--per_device_eval_batch_size N  Videos per process and batch. Default: 8." in " ".join(shown.split(" "))
    assert re.search(r"--num_clips N +Clips per video in evaluation. Default: 1.", shown)
    assert re.search(r"--max_pixels N .*default: 35,389,440", shown)


def test_groups_name_options():
    known = {field.name for group in (ModelArguments, DataArguments, RunArguments) for field in fields(group)}
    listed = [name for names in GROUPS.values() for name in names]
    assert set(listed) <= known and len(set(listed)) == len(listed)


def test_help_of_all_commands(capsys):
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(len(re.findall(rf"^  {name} ", shown, re.MULTILINE)) == 1 for name in COMMANDS)
    assert next(name for name in re.findall(r"^  (\w+) ", shown, re.MULTILINE)) == "classify"
    assert "    ezclip classify " in shown


# ---- The checkpoint to resume from ----


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], None),
        (["--resume_from_checkpoint"], "latest"),
        (["--resume_from_checkpoint", "True"], "latest"),
        (["--resume_from_checkpoint=true"], "latest"),
        (["--resume_from_checkpoint", "latest"], "latest"),
        (["--resume_from_checkpoint", "False"], None),
    ],
)
def test_resume_as_in_transformers(words, expected, tmp_path):
    _, _, args = parse_args([*TRAINING, "--output_dir", str(tmp_path), *words])
    assert args.resume_from_checkpoint == expected


def test_resume_from_a_missing_checkpoint(tmp_path, capsys):
    argv = ["run", *TRAINING, "--output_dir", str(tmp_path), "--resume_from_checkpoint"]
    path = tmp_path / "checkpoint-12"
    assert f"{path} does not exist. {tmp_path} has no checkpoint" in refusal(capsys, *argv, str(path))
    for step in (100, 20):
        (tmp_path / f"checkpoint-{step}").mkdir()
    message = f"{path} does not exist. Give one of {tmp_path}/checkpoint-20, {tmp_path}/checkpoint-100."
    assert message in refusal(capsys, *argv, str(path))
    assert parse_args([*argv[1:], f"{tmp_path}/checkpoint-20"])[2].resume_from_checkpoint.endswith("-20")


# ---- Processes ----


LAUNCHERS = [("--cpu",), ("--multi_gpu", "--num_processes", "2")]


def start(folder, *command: str) -> subprocess.Popen:
    """Start a command of Python in a process group of its own, as a shell does."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def launch(folder, launcher: tuple, *arguments: str) -> subprocess.Popen:
    script = str(ROOT / "run_video_zeroshot.py")
    return start(folder, "-m", "accelerate.commands.launch", *launcher, script, "--use_cpu", *arguments)


def assert_said_once(output: str, message: str):
    said = [line for line in output.splitlines() if re.match(r"ezclip (run|demo): ", line)]
    assert len(said) == 1 and message in said[0], output
    # accelerate has a traceback of its own, about a process that failed
    assert "[rank" not in output and "Warning" not in output and 'run_video_zeroshot.py", line' not in output


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--modl x", "There is no option --modl"),
        ("--do_eval --model_name_or_path m --validation_dir gone", "gone is not a folder"),
        ("--do_predict --model_name_or_path ./gone --videos CLIP --candidate_labels a b", "gone"),
    ],
)
def test_one_message_of_all_processes(arguments, message, launcher, clip_folder, tmp_path):
    clip = str(clip_folder / "red_circle" / "a.mp4")
    words = [clip if word == "CLIP" else word for word in arguments.split()]
    process = launch(tmp_path, launcher, *words, "--output_dir", "out")
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 1  # of accelerate, whatever the script returns
    assert_said_once(output, message)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [None, *LAUNCHERS])
def test_ctrl_c(launcher, tmp_path):
    process = (
        start(tmp_path, "-m", "ezclip", "demo")
        if launcher is None
        else launch(tmp_path, launcher, "--demo", "--output_dir", "demo")
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.rglob("*.mp4")) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    assert_said_once(process.communicate(timeout=60)[0], "ezclip demo: stopped.")
    if launcher is None:
        assert process.returncode == 130
