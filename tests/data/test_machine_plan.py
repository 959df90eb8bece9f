"""The division of the cores between decoding and computing."""

import numpy as np
import pytest
import torch

from ezclip.data import IsolatedReader, MachinePlan, plan_machine
from processing_ezclip import EZClipProcessor, default_image_processor
from tests.helpers import make_model, shared_path


@pytest.mark.parametrize(
    "num_cores, read_seconds, compute_seconds, uses_accelerator, num_workers, num_threads",
    [
        (2, 0.04, 0.4, False, 1, 2),  # decoding takes a twentieth of the work
        (16, 0.5, 0.1, False, 4, 12),
        (16, 0.04, 0.01, True, 4, 12),
        (16, 1.0, 0.01, True, 16, 1),  # decoding limits the accelerator
        (1, 0.04, 0.4, False, 1, 1),
    ],
)
def test_divide(num_cores, read_seconds, compute_seconds, uses_accelerator, num_workers, num_threads):
    plan = MachinePlan.divide(num_cores, read_seconds, compute_seconds, uses_accelerator)
    assert (plan.num_workers, plan.num_threads) == (num_workers, num_threads)


def test_plan_of_real_videos():
    path = str(shared_path("clips", "OpenGVLab_Ask-Anything__yoga.mp4"))
    processor, model = EZClipProcessor(default_image_processor(32)), make_model().train()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    with IsolatedReader() as read:
        plan = plan_machine(model, processor, ["missing.mp4", path], read)
    assert plan.read_seconds > 0 and plan.compute_seconds > 0
    assert torch.equal(torch.get_rng_state(), state) and model.training
    assert f"{plan.num_workers} decoding, {plan.num_threads} computing" in str(plan)


def test_plan_without_readable_videos():
    processor = EZClipProcessor(default_image_processor(32))
    assert plan_machine(make_model(), processor, ["missing.mp4"]).num_workers == 1
    frames = np.zeros((8, 32, 32, 3), np.uint8)
    assert plan_machine(make_model(), processor, [frames]).compute_seconds > 0


def test_share_of_a_launcher(monkeypatch):
    frames, processor = np.zeros((8, 32, 32, 3), np.uint8), EZClipProcessor(default_image_processor(32))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1000")
    assert plan_machine(make_model(), processor, [frames]).num_threads == 1
