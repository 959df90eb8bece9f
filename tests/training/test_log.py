"""What a training run tells about itself: its record, its trackers, its pictures and its files."""

import json
import os
import re
import sys
import time

import pytest
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from PIL import Image
from transformers import TrainerState

from ezclip.errors import DataError
from ezclip.training.log import TrainingLog, parse_trackers
from ezclip.training.plots import plot_losses
from ezclip.utils.files import replacing, write_json


class MemoryTracker(GeneralTracker):
    """A tracker that keeps what it is told."""

    name, requires_logging_directory = "memory", False

    def __init__(self):
        super().__init__(_blank=True)
        self.entries = []

    def log(self, values, step=None, **kwargs):
        self.entries.append((step, values))

    def store_init_configuration(self, values):
        pass


def make_accelerator(**kwargs):
    accelerator = Accelerator(cpu=True, **kwargs)
    accelerator.init_trackers("run")
    return accelerator


def run(log, num_steps):
    """Steps as a training loop counts them: a logged one of two, an evaluation of three."""
    for _ in range(num_steps):
        number = log.state.global_step + 1
        log.advance(epoch=number / 4)
        if number % 2 == 0:
            losses = {"loss": 1 / number + 0.2, "loss_video": 1 / number, "loss_text": 1 / number, "loss_motion": 0.2}
            log.step({**losses, "learning_rate": 0.1 / 3 * number, "grad_norm": 2.5})
        if number % 3 == 0:
            with log.paused():
                time.sleep(0.05)
                log.evaluation({"eval_top1": number / 7, "eval_top5": 1.0, "eval_samples": 12})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of seven steps that was not interrupted: its folder, its log and what the tracker was told."""
    folder, tracker = tmp_path_factory.mktemp("finished"), MemoryTracker()
    with TrainingLog(make_accelerator(log_with=tracker), TrainerState(max_steps=7), samples_per_step=16) as log:
        run(log, 7)
    log.write(folder, train_bad_videos=1)
    return folder, log, tracker


def test_the_record_has_losses_and_evaluations_in_order(finished):
    folder, _, _ = finished
    state = TrainerState.load_from_json(str(folder / "trainer_state.json"))
    assert (state.global_step, state.max_steps, state.epoch) == (7, 7, 1.75)
    assert [(entry["step"], "loss" in entry) for entry in state.log_history] == [
        *[(2, True), (3, False), (4, True), (6, True), (6, False)]
    ]
    assert state.log_history[0] == {
        **{"loss": 0.7, "loss_video": 0.5, "loss_text": 0.5, "loss_motion": 0.2},
        **{"learning_rate": 0.1 / 3 * 2, "grad_norm": 2.5, "epoch": 0.5, "step": 2},
    }
    assert state.log_history[1] == {"eval_top1": 3 / 7, "eval_top5": 1.0, "eval_samples": 12, "epoch": 0.75, "step": 3}
    results = json.loads((folder / "train_results.json").read_text())
    assert results["log"] == state.log_history and results["train_bad_videos"] == 1
    assert results["performance"]["train_steps"] == 7


def test_a_run_that_is_taken_up_again_leaves_the_same_record(finished, tmp_path):
    with TrainingLog(make_accelerator(), TrainerState(max_steps=7), samples_per_step=16) as log:
        run(log, 3)
    log.state.save_to_json(str(tmp_path / "checkpoint.json"))
    state = TrainerState.load_from_json(str(tmp_path / "checkpoint.json"))
    with TrainingLog(make_accelerator(), state, samples_per_step=16) as log:
        assert log.bar.n == 3 and log.bar.total == 7
        run(log, 4)
        assert log.bar.n == 7
    log.write(tmp_path)
    assert (tmp_path / "trainer_state.json").read_bytes() == (finished[0] / "trainer_state.json").read_bytes()
    assert log.performance()["train_steps"] == 4  # those that this run took its time for


def test_trackers_get_losses_speed_and_memory(finished):
    _, _, tracker = finished
    assert [step for step, _ in tracker.entries] == [2, 3, 4, 6, 6]
    _, values = tracker.entries[0]
    assert set(values) == {
        *("train/loss", "train/loss_video", "train/loss_text", "train/loss_motion", "train/learning_rate"),
        *("train/grad_norm", "train/epoch", "train/samples_per_second", "train/peak_memory_mb"),
    }
    assert 10 < values["train/peak_memory_mb"] < 1e6
    assert tracker.entries[1][1] == {**{"eval/top1": 3 / 7, "eval/top5": 1.0, "eval/samples": 12, "train/epoch": 0.75}}


def test_pauses_cost_no_speed():
    tracker = MemoryTracker()
    with TrainingLog(make_accelerator(log_with=tracker), TrainerState(max_steps=2), samples_per_step=10) as log:
        for seconds in (0.1, 0.2):
            time.sleep(seconds)
            log.advance(epoch=1.0)
            log.step({"loss": 1.0})
            with log.paused():
                time.sleep(0.5)
    first, second = (values["train/samples_per_second"] for _, values in tracker.entries)
    assert 20 < first <= 100 and 16 < second <= 50  # 17 and 14 with the pauses, on an idle machine
    performance = log.performance()
    assert 0.3 <= performance["train_runtime"] < 0.8
    assert performance["train_samples_per_second"] == pytest.approx(20 / performance["train_runtime"], rel=1e-2)
    assert performance["device"] == "cpu" and performance["num_processes"] == 1


def test_the_bar_shows_the_loss_the_speed_and_the_time_left(capsys):
    with TrainingLog(make_accelerator(), TrainerState(max_steps=8), samples_per_step=16) as log:
        run(log, 4)
    shown = capsys.readouterr().err.split("\r")[-1]
    assert re.search(r"Training:  50%.* 4/8 \[\d\d:\d\d<\d\d:\d\d, .*loss=0\.450, clips/s=[\d.]+\]", shown)


def test_tensorboard_can_read_what_was_logged(tmp_path):
    pytest.importorskip("tensorboard", reason="needs tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accelerator = make_accelerator(log_with=parse_trackers("tensorboard"), project_dir=tmp_path)
    with TrainingLog(accelerator, TrainerState(max_steps=6), samples_per_step=16) as log:
        run(log, 6)
    accelerator.end_training()
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [
        (step, pytest.approx(1 / step + 0.2)) for step in (2, 4, 6)
    ]
    assert [event.step for event in events.Scalars("eval/top1")] == [3, 6]
    assert all(event.value > 0 for event in events.Scalars("train/samples_per_second"))


def test_trackers_by_name(monkeypatch):
    monkeypatch.setattr("ezclip.training.log.filter_trackers", lambda *args, **kwargs: ["wandb", "tensorboard"])
    assert parse_trackers("tensorboard, wandb,tensorboard") == ["tensorboard", "wandb"]
    assert parse_trackers("all") == ["tensorboard", "wandb"]
    assert parse_trackers("none") == []


def test_trackers_that_are_not_there(monkeypatch):
    monkeypatch.setattr("ezclip.training.log.filter_trackers", lambda *args, **kwargs: ["tensorboard"])
    with pytest.raises(DataError, match=r": tensorbord\. .*mlflow.*tensorboard.*wandb.*\(tensorboard\)"):
        parse_trackers("tensorbord,wandb")
    with pytest.raises(DataError, match=r"installed: mlflow, wandb\. Run `pip install mlflow wandb`.* tensorboard\."):
        parse_trackers("mlflow,tensorboard,wandb")
    with pytest.raises(DataError, match=r"--report_to.*: none\."):
        parse_trackers("none,tensorboard")
    with pytest.raises(DataError, match="--report_to ' ,'"):
        parse_trackers(" ,")


def test_installed_trackers_are_accelerates():
    pytest.importorskip("tensorboard", reason="needs tensorboard")
    assert "tensorboard" in parse_trackers("all")


def test_the_picture(finished, tmp_path):
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    folder, log, _ = finished
    with Image.open(folder / "loss.png") as picture:
        assert picture.format == "PNG" and min(picture.size) > 600
        height = picture.height
    # Panels are there for what there is.
    losses = [{"step": entry["step"], "loss": entry["loss"]} for entry in log.state.log_history if "loss" in entry]
    assert plot_losses(losses, tmp_path / "one.png")
    with Image.open(tmp_path / "one.png") as picture:
        assert picture.height < height
    assert not plot_losses([], tmp_path / "none.png") and not (tmp_path / "none.png").exists()
    assert "matplotlib.pyplot" not in sys.modules


def test_without_matplotlib_a_hint_takes_the_place_of_the_picture(finished, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    TrainingLog(make_accelerator(), finished[1].state, samples_per_step=16).write(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train_results.json", "trainer_state.json"]
    (record,) = caplog.records
    assert "loss.png needs matplotlib: `pip install matplotlib`" in record.getMessage()


def test_files_are_whole_or_as_they_were(tmp_path):
    path = tmp_path / "new" / "a.json"
    write_json(path, {"name": "café"})
    assert json.loads(path.read_text(encoding="utf-8")) == {"name": "café"}
    with pytest.raises(TypeError):
        write_json(path, {"name": object()})
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert json.loads(path.read_text(encoding="utf-8")) == {"name": "café"}
    assert os.listdir(path.parent) == ["a.json"]
