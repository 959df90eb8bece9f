"""Sampling rules and windows of time."""

import json

import numpy as np
import pytest

from tests.helpers import shared_path
from video_ezclip import (
    UnavailableFramesError,
    random_frame_indices,
    select_frames,
    tear_frame_indices,
    uniform_frame_indices,
)


def sampling_cases():
    return json.loads(shared_path("golden", "aux", "sampling.json").read_text(encoding="utf-8"))["cases"]


def test_uniform_matches_published():
    for case in sampling_cases():
        assert uniform_frame_indices(case["num_frames"], case["num_segments"]) == case["val_frames_0based"], case
    assert uniform_frame_indices(100, 8) == [5, 18, 30, 43, 55, 68, 80, 93]
    assert uniform_frame_indices(1, 4) == [0, 0, 0, 0]


def test_random_matches_published():
    rng = np.random.default_rng(0)
    for case in sampling_cases():
        total, segments = case["num_frames"], case["num_segments"]
        draws = np.array([random_frame_indices(total, segments, rng) for _ in range(2000)])
        assert (np.diff(draws, axis=1) >= 0).all()
        assert draws.shape == (2000, segments)
        low, high = np.array(case["train_low_1based"]) - 1, np.array(case["train_high_1based"]) - 1
        assert (draws >= low).all() and (draws <= high).all(), case
        if total <= segments:
            assert all(set(draw) == set(range(total)) for draw in draws)
        else:
            assert (draws.min(axis=0) == low).all() and (draws.max(axis=0) == high).all()


def test_random_is_seeded():
    draws = [random_frame_indices(300, 8, seed=(42, epoch, 7)) for epoch in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


def test_tear_matches_published():
    cases = json.loads(shared_path("golden", "aux", "tear_sampling.json").read_text(encoding="utf-8"))["cases"]
    for case in cases:
        assert tear_frame_indices(case["num_frames"], case["n_frames"]) == case["indices"], case


def test_clips_spread_over_segments():
    clips = np.array(uniform_frame_indices(96, 8, num_clips=4)).reshape(4, 8)
    assert clips[:, 0].tolist() == [1, 4, 6, 9]  # of the segment 0 to 11
    assert (np.diff(clips, axis=1) == 12).all()
    middle = np.array(uniform_frame_indices(96, 8, num_clips=3)).reshape(3, 8)[1]
    assert middle.tolist() == uniform_frame_indices(96, 8)
    assert uniform_frame_indices(3, 4, num_clips=2) == [0, 0, 1, 2] * 2
    assert uniform_frame_indices(9, 1, num_clips=2) == [2, 6]


STEADY = np.arange(100) / 25  # 4 seconds
SLOWING = np.cumsum(np.linspace(0.0, 0.2, 50))


@pytest.mark.parametrize("timestamps", [STEADY, SLOWING])
@pytest.mark.parametrize(("start", "end"), [(1.0, 2.0), (0.999, 1.001), (1.005, 1.0051), (0.0, 0.5), (2.0, 99.0)])
def test_window(timestamps, start, end):
    indices = select_frames(timestamps, len(timestamps), start=start, end=end)
    ends = [*timestamps[1:], np.inf]
    assert indices == [i for i in range(len(timestamps)) if ends[i] > start + 1e-6 and timestamps[i] < end - 1e-6]
    sampled = select_frames(timestamps, len(timestamps), lambda total: uniform_frame_indices(total, 2), start, end)
    assert sampled == [indices[i] for i in uniform_frame_indices(len(indices), 2)]


@pytest.mark.parametrize("timestamps", [STEADY, SLOWING])
@pytest.mark.parametrize("fps", [0.7, 2, 25, 60])
@pytest.mark.parametrize("start", [None, 0.51, 1.0])
def test_rate(timestamps, fps, start):
    indices = select_frames(timestamps, len(timestamps), fps=fps, start=start)
    ticks = (start or 0.0) + np.arange(len(indices)) / fps
    assert ticks[-1] <= timestamps[-1] + 1e-5 < ticks[-1] + 1 / fps
    for index, tick in zip(indices, ticks):
        assert timestamps[index] <= tick + 1e-5
        assert index == len(timestamps) - 1 or tick < timestamps[index + 1]


def test_own_rate_takes_every_frame():
    assert select_frames(STEADY, 100, fps=25) == list(range(100))
    assert select_frames(STEADY, 100) == list(range(100))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"start": 4.0}, UnavailableFramesError, "over at 4.000 s, .* `start` at 4.0 s"),
        ({"end": 0}, ValueError, r"`start` \(0 s\) .* `end` \(0 s\)"),
        ({"start": float("nan")}, ValueError, "`start` .* got nan"),
        ({"start": -1}, ValueError, "`start` .* got -1"),
        ({"end": "x"}, ValueError, "`end` .* got 'x'"),
        ({"fps": float("inf")}, ValueError, "`fps` .* got inf"),
        ({"fps": 1e7}, ValueError, "`fps` .* at most 1000, got 10000000"),
        ({"sample": lambda total: [2.7]}, ValueError, r"`sample` .* integers, got \[2.7\]"),
        ({"sample": lambda total: None}, ValueError, "`sample` .* integers, got None"),
        ({"start": 2, "end": 1}, ValueError, r"`start` \(2 s\) .* `end` \(1 s\)"),
        ({"fps": 0}, ValueError, "`fps` .* at most 1000, got 0"),
        ({"fps": float("nan")}, ValueError, "`fps` .* got nan"),
        ({"timestamps": None, "fps": 2}, UnavailableFramesError, "`start`, `end` and `fps`"),
        ({"sample": lambda total: [total], "start": 3.0}, ValueError, r"0 to 24, .* got \[25\]"),
        ({"sample": lambda total: []}, ValueError, "at least one"),
    ],
)
def test_bad_selection(arguments, error, message):
    with pytest.raises(error, match=message):
        select_frames(**{"timestamps": STEADY, "total_frames": 100, **arguments})


def test_bad_counts():
    with pytest.raises(ValueError, match="`num_frames` .* at least 1, got 0"):
        uniform_frame_indices(10, 0)
    with pytest.raises(ValueError, match="`num_clips` .* at least 1, got 0"):
        uniform_frame_indices(10, 8, num_clips=0)
    with pytest.raises(ValueError, match="`num_frames` .* at least 1, got 0"):
        tear_frame_indices(10, 0)
