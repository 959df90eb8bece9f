"""Training that was interrupted and taken up again, against training that was not."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import run_video_zeroshot
from ezclip import EZClipModel
from ezclip.training.recipe import TrainingRecipe
from ezclip.utils.synthetic_clips import write_video
from tests.helpers import ROOT, random_clip


NUM_STEPS = 24


@pytest.fixture(autouse=True)
def signals_of_a_terminal():
    """In the background of a shell, where tests may run, Ctrl-C is ignored."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.fixture(scope="session")
def training_folder(tmp_path_factory):
    """13 videos of two classes: steps of four leave one out in each epoch, and the first cannot be read."""
    root = tmp_path_factory.mktemp("training")
    for number in range(13):
        path = root / ("red_circle" if number % 2 else "GreenSquare") / f"{number:02d}.mp4"
        path.parent.mkdir(exist_ok=True)
        write_video(path, random_clip(number))
    (root / "GreenSquare" / "00.mp4").write_bytes(b"<html>404</html>")
    return root


@pytest.fixture
def training(tiny_folder, training_folder):
    """Arguments of a training with everything random switched on, all but the output folder."""
    arguments = ["--use_cpu", "--model_name_or_path", tiny_folder, "--do_train", "--train_dir", training_folder]
    arguments += ["--max_train_steps", NUM_STEPS, "--per_device_train_batch_size", 4, "--learning_rate", "1e-2"]
    arguments += ["--templates", "a {}", "{}", "--drop_path_rate", 0.3, "--temporal_prompt_dropout", 0.3]
    arguments += ["--logging_steps", 1, "--save_steps", 2, "--max_grad_norm", 1]
    return [str(argument) for argument in arguments]


def run(arguments, output_dir, *more):
    AcceleratorState._reset_state(reset_partial_state=True)
    run_video_zeroshot.main([*arguments, "--output_dir", str(output_dir), *map(str, more)])


def assert_same_training(actual: Path, expected: Path):
    """Weights, log and reports, bit for bit."""
    weights, others = load_file(actual / "model.safetensors"), load_file(expected / "model.safetensors")
    assert weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)
    assert (actual / "trainer_state.json").read_bytes() == (expected / "trainer_state.json").read_bytes()
    results, others = (json.loads((folder / "train_results.json").read_text()) for folder in (actual, expected))
    del results["performance"], others["performance"]
    assert results == others and len(results["log"]) == NUM_STEPS
    reports = [(folder / "train_bad_videos.jsonl").read_text() for folder in (actual, expected)]
    assert reports[0] == reports[1] and "00.mp4" in reports[0]


def when_saved(step: int, folder: Path, action) -> threading.Thread:
    """Does something in another thread as soon as there is a checkpoint of this step, or a later one."""

    def watch():
        while not any(int(path.name[11:]) >= step for path in folder.glob("checkpoint-*")):
            time.sleep(0.001)
        action()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def stop_by_signal(arguments, output_dir: Path, step: int, *more, number=signal.SIGTERM) -> int:
    """Run, send a signal after about so many steps, and return the exit status."""
    thread = when_saved(step, output_dir, lambda: os.kill(os.getpid(), number))
    with pytest.raises(SystemExit) as caught:
        run(arguments, output_dir, *more)
    thread.join(timeout=10)
    return caught.value.code


@pytest.mark.parametrize(
    "extra",
    [
        (),
        pytest.param(
            ("--micro_batch_size", 2, "--gradient_checkpointing", "--mixed_precision", "bf16"), marks=pytest.mark.slow
        ),
    ],
)
def test_a_signal_saves_and_training_goes_on_as_if_it_had_not_come(training, tmp_path, capsys, extra):
    run(training, tmp_path / "undisturbed", *extra)
    out = tmp_path / "stopped"
    assert stop_by_signal(training, out, 6, *extra) == 128 + signal.SIGTERM
    said = capsys.readouterr().err
    assert "Stopped by a signal after step" in said and "is saved" in said
    assert not (out / "model.safetensors").exists()
    assert stop_by_signal(training, out, 16, *extra, "--resume_from_checkpoint", "latest", number=signal.SIGINT) == 130
    run(training, out, *extra, "--resume_from_checkpoint", "latest")
    assert_same_training(out, tmp_path / "undisturbed")


def test_half_written_checkpoints_are_not_picked_up_and_old_ones_go(training, tmp_path):
    out = tmp_path / "stopped"
    stop_by_signal(training, out, 6, "--save_total_limit", 2)
    steps = sorted(int(path.name[11:]) for path in out.glob("checkpoint-*"))
    assert len(steps) == 2
    shutil.copytree(out / f"checkpoint-{steps[-1]}", out / ".checkpoint-21.partial")
    (out / "checkpoint-22").mkdir()  # as if someone had emptied it
    run(training, out, "--save_total_limit", 2, "--resume_from_checkpoint", "latest")
    run(training, tmp_path / "undisturbed")
    assert_same_training(out, tmp_path / "undisturbed")
    assert not list(out.glob(".*"))


def test_a_checkpoint_holds_what_is_trained_and_no_more(training, tiny_folder, tmp_path):
    run(training, tmp_path / "out", "--save_steps", 24)
    weights = load_file(tmp_path / "out" / "checkpoint-24" / "model.safetensors")
    model = EZClipModel.from_pretrained(tiny_folder)
    assert set(weights) == {name for name, p in model.named_parameters() if p.requires_grad}


def refusal(arguments, output_dir, *more) -> str:
    with pytest.raises(SystemExit) as caught:
        run(arguments, output_dir, *more)
    return str(caught.value.code)


def test_checkpoints_of_another_training_are_not_mixed_in(training, tmp_path, caplog):
    out = tmp_path / "out"
    stop_by_signal(training, out, 4)
    assert "--resume_from_checkpoint latest" in refusal(training, out)
    resume = ("--resume_from_checkpoint", "latest")
    assert "Changed: learning_rate: 0.01 → 0.02. " in refusal(training, out, *resume, "--learning_rate", 0.02)
    assert "Changed: seed: 42 → 7. " in refusal(training, out, *resume, "--seed", 7)
    assert "Changed: transform: " in refusal(training, out, *resume, "--horizontal_flip", 0)
    fewer = refusal(training, out, *resume, "--max_train_samples", 12)
    assert "number of the videos of train: 13 → 12" in fewer
    assert f"{tmp_path} is not a checkpoint" in refusal(training, out, "--resume_from_checkpoint", tmp_path)


def test_a_checkpoint_of_a_version_without_an_option_resumes_while_it_is_off():
    newer = {"distillation_weight": 1.0, "interpolated_loss_weight": 1.0, "average_last": 1}
    assert not newer.keys() & TrainingRecipe().settings().keys()
    assert newer.items() <= TrainingRecipe(**newer).settings().items()


def test_latest_without_a_checkpoint_starts_from_the_beginning(training, tmp_path):
    run(training, tmp_path / "one", "--resume_from_checkpoint", "latest")
    run(training, tmp_path / "other")
    assert_same_training(tmp_path / "one", tmp_path / "other")


@pytest.mark.slow
def test_a_full_disk_leaves_the_last_good_checkpoint(training, tmp_path):
    out = tmp_path / "out"
    stop_by_signal(training, out, 4)
    good = max(int(path.name[11:]) for path in out.glob("checkpoint-*"))
    arguments = [*training, "--output_dir", str(out), "--resume_from_checkpoint", "latest"]
    result = subprocess.run(
        [sys.executable, ROOT / "run_video_zeroshot.py", *arguments],
        capture_output=True,
        text=True,
        check=False,
        # Files of more than so many bytes cannot be written, as on a full disk.
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "could not be written" in result.stderr and "--output_dir" in result.stderr
    assert f"The last checkpoint is {out / f'checkpoint-{good}'}" in result.stderr
    assert not list(out.glob(".*")) and not (out / "model.safetensors").exists()
    run(training, out, "--resume_from_checkpoint", "latest")
    run(training, tmp_path / "undisturbed")
    assert_same_training(out, tmp_path / "undisturbed")


def test_a_loss_that_is_no_number_is_not_saved(training, tmp_path):
    said = refusal(training, tmp_path / "out", "--learning_rate", 1e30, "--max_grad_norm", 1e30)
    assert "Lower --learning_rate" in said
    assert all("NaN" not in path.read_text() for path in tmp_path.glob("out/checkpoint-*/trainer_state.json"))


def test_best_weights_and_early_stopping(training, training_folder, tmp_path):
    evaluation = ["--validation_dir", training_folder, "--do_eval", "--eval_steps", 2, "--load_best_model_at_end"]
    out = tmp_path / "out"
    run(training, out, *evaluation, "--early_stopping_patience", 2)
    state = json.loads((out / "trainer_state.json").read_text())
    scores = {entry["step"]: entry["eval_top1"] for entry in state["log_history"] if "eval_top1" in entry}
    assert state["best_metric"] == max(scores.values())
    assert state["best_global_step"] == min(step for step, score in scores.items() if score == max(scores.values()))
    assert max(scores) <= state["best_global_step"] + 4 and state["global_step"] == max(scores)
    assert json.loads((out / "eval_results.json").read_text())["eval_top1"] == state["best_metric"]
    # Evaluating in between changes nothing of the training.
    run(training, tmp_path / "plain")
    plain = json.loads((tmp_path / "plain" / "trainer_state.json").read_text())["log_history"]
    losses = [entry for entry in state["log_history"] if "loss" in entry]
    assert losses == plain[: len(losses)]


def test_what_was_stopped_early_stays_stopped(training, training_folder, tmp_path):
    evaluation = ["--validation_dir", training_folder, "--do_eval", "--eval_steps", 2, "--early_stopping_patience", 1]
    out = tmp_path / "out"
    run(training, out, *evaluation)
    state = (out / "trainer_state.json").read_bytes()
    assert json.loads(state)["global_step"] < NUM_STEPS
    (out / "model.safetensors").unlink()
    run(training, out, *evaluation, "--resume_from_checkpoint", "latest")
    assert (out / "trainer_state.json").read_bytes() == state and (out / "model.safetensors").is_file()


def test_the_best_weights_go_with_a_checkpoint_to_another_folder(training, training_folder, tmp_path):
    evaluation = ["--validation_dir", training_folder, "--do_eval", "--eval_steps", 2, "--load_best_model_at_end"]
    run(training, tmp_path / "one", *evaluation)
    resume = ("--resume_from_checkpoint", tmp_path / "one" / "checkpoint-22")
    run(training, tmp_path / "other", *evaluation, *resume)
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("one", "other")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    shutil.rmtree(tmp_path / "one" / "best_model")
    assert "best_model" in refusal(training, tmp_path / "third", *evaluation, *resume)


def test_damaged_checkpoints_are_named(training, tmp_path):
    out = tmp_path / "out"
    stop_by_signal(training, out, 4)
    newest = max(out.glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    whole = (newest / "model.safetensors").read_bytes()
    (newest / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert f"{newest} is damaged" in refusal(training, out, "--resume_from_checkpoint", "latest")
    (newest / "model.safetensors").write_bytes(whole)
    (newest / "random_states_0.pkl").unlink()
    assert f"{newest} is damaged" in refusal(training, out, "--resume_from_checkpoint", "latest")


def test_trackers_have_each_step_once(training, tmp_path):
    out = tmp_path / "out"
    run(training, out, "--report_to", "tensorboard")
    for path in out.glob("checkpoint-*"):
        if int(path.name[11:]) > 8:
            shutil.rmtree(path)
    time.sleep(1)  # tensorboard names its files by the second
    run(training, out, "--report_to", "tensorboard", "--resume_from_checkpoint", "latest")
    events = EventAccumulator(str(out / "ezclip")).Reload()
    for name in ("train/loss", "train/grad_norm", "train/samples_per_second", "train/peak_memory_mb"):
        assert [event.step for event in events.Scalars(name)] == list(range(1, NUM_STEPS + 1))


def test_accumulation_from_outside_is_refused(training, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert "give --micro_batch_size" in refusal(training, tmp_path / "out")


@pytest.mark.slow
def test_a_signal_to_all_processes_of_a_job(training, tmp_path):
    run(training, tmp_path / "undisturbed")
    out = tmp_path / "out"
    for step, number in ((2, signal.SIGTERM), (8, signal.SIGUSR1), (14, signal.SIGTERM)):
        command = [sys.executable, ROOT / "run_video_zeroshot.py", *training, "--output_dir", out]
        command += ["--resume_from_checkpoint", "latest", "--dataloader_num_workers", 1]
        process = subprocess.Popen(list(map(str, command)), start_new_session=True)
        when_saved(step, out, lambda: None).join(120)
        os.killpg(process.pid, number)
        assert process.wait() == 128 + number
    run(training, out, "--resume_from_checkpoint", "latest")
    assert_same_training(out, tmp_path / "undisturbed")


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["alone", "workers", "processes", "averaged"])
def test_killed_three_times_and_taken_up_again(training, tmp_path, variant):
    arguments = [sys.executable, ROOT / "run_video_zeroshot.py", *training]
    if variant == "workers":
        arguments += ["--dataloader_num_workers", 2]
    elif variant in ("processes", "averaged"):
        arguments[1:1] = ["-m", "torch.distributed.run", "--nproc_per_node", 2]
        arguments += ["--per_device_train_batch_size", 2]
        arguments += ["--average_last", 20] * (variant == "averaged")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(output_dir):
        command = [*arguments, "--output_dir", output_dir, "--resume_from_checkpoint", "latest"]
        return subprocess.Popen(list(map(str, command)), env=environment, start_new_session=True)

    assert start(tmp_path / "undisturbed").wait() == 0
    out, rng, killed = tmp_path / "killed", random.Random(0), 0
    for step in (2, 8, 16):
        process = start(out)
        when_saved(step, out, lambda: None).join(120)
        time.sleep(rng.uniform(0, 0.1))
        os.killpg(process.pid, signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL and not (out / "model.safetensors").exists()
    assert killed == 3
    assert start(out).wait() == 0
    assert_same_training(out, tmp_path / "undisturbed")
