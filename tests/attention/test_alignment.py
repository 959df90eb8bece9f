"""Alignments of frames and steps against all monotone paths, their picture, and the command."""

import itertools
import json

import numpy as np
import pytest
import torch
from PIL import Image

from ezclip import EZClipProcessor
from ezclip.attention.alignment import (
    LABEL_WIDTH,
    MARGIN,
    MAX_CELL,
    ROW_HEIGHT,
    Alignment,
    alignment_of,
    describe_alignment,
    draw_alignment,
)
from ezclip.attention.figures import DPI
from ezclip.attention.video_attention import VideoAttention, look_at_video
from ezclip.cli.attention import main
from ezclip.errors import ModelError
from ezclip.systems.loading import load_model, load_processor
from ezclip.utils.synthetic_clips import write_video
from tests.helpers import random_clip
from tests.towers import FAMILIES, make_replica


STEPS = {
    "moving left": {"steps": [["red circle right", "a circle right"], "circle", ["a red circle left", "left"]]},
    "green square": {"steps": ["green square", "a photo of green"]},
}
LABELS = list(STEPS)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """2 s of noise at 8 frames per second, wider than high."""
    path = tmp_path_factory.mktemp("video") / "noise.mp4"
    write_video(path, random_clip(5, num_frames=16, height=48, width=96))
    return path


@pytest.fixture(scope="module")
def system(tiny_folder):
    return load_model(tiny_folder).eval(), load_processor(tiny_folder)


@pytest.fixture(scope="module")
def attention(video, system) -> VideoAttention:
    return look_at_video(video, *system)


def embed_texts(model, processor: EZClipProcessor, texts: list[str]) -> np.ndarray:
    tokens = processor(text=texts, return_tensors="pt", padding=processor.text_padding)
    return torch.nn.functional.normalize(model.encode_texts(tokens), dim=-1).numpy()


def best_of_all(similarities: np.ndarray) -> float:
    """Return the best mean of all monotone alignments, for similarities (T, S)."""
    num_frames, num_steps = similarities.shape
    ends = itertools.combinations(range(1, num_frames), num_steps - 1)
    paths = [np.searchsorted(np.array(own), np.arange(num_frames), side="right") for own in ends]
    return max(float(similarities[range(num_frames), path].mean()) for path in paths)


@torch.no_grad()
def check_alignments(alignments: list[Alignment], model, processor: EZClipProcessor, frames: np.ndarray):
    """Compare alignments with loops of numpy."""
    embeds = model.encode_frames(processor.frames_to_pixels(frames)[None])[0]
    embeds = torch.nn.functional.normalize(embeds, dim=-1).numpy()
    assert [own.label for own in alignments] == LABELS
    for own in alignments:
        wordings = [[step] if isinstance(step, str) else step for step in STEPS[own.label]["steps"]]
        texts = [embed_texts(model, processor, step) for step in wordings]
        similarities = np.stack([(embeds[1:] @ step.T).max(axis=1) for step in texts], axis=1)
        np.testing.assert_allclose(own.similarities, similarities, atol=2e-5)
        assert own.aligned == pytest.approx(best_of_all(similarities), abs=2e-5)
        assert own.backward == pytest.approx(best_of_all(similarities[:, ::-1]), abs=2e-5)
        assert own.path == sorted(own.path) and set(own.path) == set(range(len(texts)))
        assert similarities[range(len(frames)), own.path].mean() == pytest.approx(own.aligned, abs=2e-5)
        mean = np.concatenate(texts).mean(axis=0)
        assert own.mean == pytest.approx(float(embeds[0] @ mean / np.linalg.norm(mean)), abs=2e-5)
        for number, (step, of_step) in enumerate(zip(wordings, texts)):
            of_frames = (embeds[1:][np.array(own.path) == number] @ of_step.T).mean(axis=0)
            assert of_frames[step.index(own.steps[number])] == pytest.approx(of_frames.max(), abs=2e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_tower(tmp_path, video, name):
    make_replica(name, tmp_path)
    for preset in ("clip", "ezclip"):
        model, processor = load_model(tmp_path, preset == "ezclip", preset=preset).eval(), load_processor(tmp_path)
        attention = look_at_video(video, model, processor, LABELS, descriptions=STEPS)
        alignments = alignment_of(attention, model, processor, LABELS, STEPS)
        check_alignments(alignments, model, processor, attention.frames)


def test_lists_are_steps(attention, system):
    lists = {"moving left": ["red", "green", "blue"], "still": "a photo"}
    own, still = alignment_of(attention, *system, list(lists), lists)
    (marked,) = alignment_of(attention, *system, ["moving left"], {"moving left": {"steps": lists["moving left"]}})
    assert own.steps == marked.steps == lists["moving left"] and own.path == marked.path
    assert still.similarities.shape == (8, 1) and still.path == [0] * 8


def test_mode_is_restored(attention, system):
    model, processor = system
    expected = alignment_of(attention, model, processor, LABELS, STEPS)
    model.train()
    found = alignment_of(attention, model, processor, LABELS, STEPS)
    assert model.training
    model.eval()
    np.testing.assert_array_equal(found[0].similarities, expected[0].similarities)


def test_maps_follow_the_steps(video, system):
    by_steps = look_at_video(video, *system, LABELS, descriptions=STEPS)
    by_names = look_at_video(video, *system, LABELS)
    assert sum(row.probability for row in by_steps.rows if row.name == "model") == pytest.approx(1)
    assert not np.allclose(by_steps.rows[0].maps, by_names.rows[0].maps)


def test_refused(attention, system, video):
    model, processor = system
    with pytest.raises(ValueError, match="at most as many steps"):
        alignment_of(attention, model, processor, ["x"], {"x": {"steps": ["red", "blue"] * 5}})
    model.config.vision_config.use_joint_attention = True
    try:
        with pytest.raises(ModelError, match="use_joint_attention"):
            alignment_of(attention, model, processor, LABELS, STEPS)
    finally:
        model.config.vision_config.use_joint_attention = False


# ---- Words and picture ----


def make_alignment(label: str = "archery", steps=("draw", "shoot"), num_frames: int = 8) -> Alignment:
    similarities = np.full((num_frames, len(steps)), 0.1, dtype=np.float32)
    path = [step * len(steps) // num_frames for step in range(num_frames)]
    similarities[range(num_frames), path] = 0.9
    return Alignment(label, list(steps), similarities, path, 0.3, 0.9, 0.2)


def test_words(attention):
    alignments = [make_alignment(), make_alignment("yoga", tuple("abcdefgh"))]
    words = describe_alignment(attention, alignments).splitlines()
    assert words[:3] == [
        "archery: aligned 0.900, reversed 0.200, mean 0.300.",
        "  step 1 'draw': frames 1-4 (0.00 s to 0.75 s), similarity 0.900",
        "  step 2 'shoot': frames 5-8 (1.00 s to 1.75 s), similarity 0.900",
    ]
    assert words[6] == "  step 3 'c': frame 3 (0.50 s), similarity 0.900"


def test_light_is_similar_and_the_line_follows_the_path(attention):
    grey = np.asarray(draw_alignment(attention, [make_alignment()]).convert("L"), dtype=float)

    def pixels(frame: float, step: float) -> np.ndarray:
        """Return a square around a point of the matrix; the centre of a cell has whole coordinates."""
        x = round(DPI * (LABEL_WIDTH + MAX_CELL * (frame + 0.5)))
        y = round(grey.shape[0] - DPI * (2 * MARGIN + ROW_HEIGHT * (2 - step - 0.5)))
        return grey[y - 4 : y + 5, x - 4 : x + 5]

    light = [pixels(frame, step - 0.35).mean() for frame, step in zip(range(8), [0] * 4 + [1] * 4)]
    dark = [pixels(frame, step - 0.35).mean() for frame, step in zip(range(8), [1] * 4 + [0] * 4)]
    assert min(light) > 150 and max(dark) < 60
    for frame in np.arange(0, 7, 0.25):
        on_path, off_path = (0, 1) if frame < 3.5 else (1, 0)
        assert np.ptp(pixels(frame, on_path)) > 150, frame  # the black line and its white border
        assert frame == 3.5 or np.ptp(pixels(frame, off_path)) < 30


@pytest.mark.parametrize("num_frames", [1, 2, 40])
def test_unusual_texts_and_numbers_of_frames(attention, num_frames):
    frames = np.repeat(attention.frames[:1], num_frames, axis=0)
    metadata = type(attention.metadata)(**{**vars(attention.metadata), "timestamps": list(range(num_frames))})
    attention = VideoAttention(**{**vars(attention), "frames": frames, "metadata": metadata})
    labels = ["赤い $x$", "<script> " + "long " * 40]
    alignments = [make_alignment(label, (f"{label} of one step",), num_frames) for label in labels]
    picture = draw_alignment(attention, alignments)  # all similarities are equal
    assert picture.mode == "RGB" and picture.width > DPI * LABEL_WIDTH
    assert "frame 1 (" in describe_alignment(attention, alignments) or num_frames > 1


# ---- Command ----


def run_command(tiny_folder, video, steps, *options):
    (steps / "steps.json").write_text(json.dumps({**STEPS, **{f"blue {number}": "a blue" for number in range(5)}}))
    argv = [str(video), "--model_name_or_path", str(tiny_folder), "--class_descriptions", str(steps / "steps.json")]
    main([*argv, "--use_cpu", "--output_dir", str(steps / "out"), *options])


def test_command(tiny_folder, video, tmp_path, capsys):
    run_command(tiny_folder, video, tmp_path, "--labels", "green square, moving left")
    printed = capsys.readouterr().out
    names = {"attention.png", "attention.mp4", "temporal_attention.png", "alignment.png"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    with Image.open(tmp_path / "out" / "alignment.png") as picture:
        words = picture.text["Description"]
    assert words in printed and str(tmp_path / "out" / "alignment.png") in printed
    assert [line.partition(":")[0] for line in words.splitlines() if line[0] != " "] == LABELS[::-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "at most 6 entries, got 7"),
        (["--labels", "yoga"], "yoga"),
        (["--labels", "moving left", "--method", "last"], "same for all labels"),
    ],
)
def test_command_errors(tiny_folder, video, tmp_path, options, message):
    with pytest.raises(SystemExit, match=message):
        run_command(tiny_folder, video, tmp_path, *options)
    assert not (tmp_path / "out").exists()
