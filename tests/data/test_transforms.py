"""The training transform: its draws, their frequencies and their effect on pixels."""

import colorsys
import itertools
import pickle
import random
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from ezclip.data.transforms import TrainTransform
from tests.helpers import random_clip


OFF = {"horizontal_flip_prob": 0, "color_jitter_prob": 0, "grayscale_prob": 0}
STRENGTHS = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1}


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)


def transformed(transform: TrainTransform, frames: np.ndarray, seed: int) -> np.ndarray:
    return transform(frames, np.random.default_rng(seed))


def whole(side: int, **kwargs) -> TrainTransform:
    """Square frames stay whole and unscaled; what `kwargs` does not switch on is off."""
    return TrainTransform((side, side), **{**OFF, "scales": (1,), **kwargs})


def jitter_only(side: int, *names: str) -> TrainTransform:
    strengths = {name: strength if name in names else 0 for name, strength in STRENGTHS.items()}
    return whole(side, color_jitter_prob=1, **strengths)


def luma(frames: np.ndarray) -> np.ndarray:
    """Rec. 601, rounded, three channels."""
    weighted = frames.astype(np.int64) @ [19595, 38470, 7471]
    return np.repeat((weighted[..., None] + 2**15) >> 16, 3, axis=-1)


def test_defaults_are_the_published():
    transform = TrainTransform((224, 224))
    assert (transform.horizontal_flip_prob, transform.color_jitter_prob, transform.grayscale_prob) == (0.5, 0.8, 0.2)
    assert transform.scales == (1, 0.875, 0.75, 0.66)
    assert {name: getattr(transform, name) for name in STRENGTHS} == STRENGTHS


@pytest.mark.parametrize(("height", "width"), [(60, 85), (85, 60)])
def test_crops_and_flips_are_the_published_equally_often(height, width):
    sides = [(60, 60), (60, 52), (52, 60), (52, 52), (52, 45), (45, 52), (45, 45), (45, 39), (39, 45), (39, 39)]
    frame = noise(1, height, width)[0]
    allowed = Counter()
    for crop_height, crop_width in sides:
        right, down = (width - crop_width) // 4, (height - crop_height) // 4
        places = [(4 * x, 4 * y) for x in (0, 0.5, 1) for y in (0, 0.5, 1)] + [(1, 1), (1, 3), (3, 1), (3, 3)]
        for x, y in places:
            left, top = int(x * right), int(y * down)
            crop = Image.fromarray(frame).crop((left, top, left + crop_width, top + crop_height))
            crop = np.asarray(crop.resize((8, 6), Image.Resampling.BILINEAR))
            allowed.update([crop.tobytes(), crop[:, ::-1].tobytes()])
    assert sum(allowed.values()) == 260

    transform = TrainTransform((6, 8), color_jitter_prob=0, grayscale_prob=0)
    rng, draws = np.random.default_rng(0), 12_000
    drawn = Counter(transform(frame[None], rng).tobytes() for _ in range(draws))
    assert set(drawn) == set(allowed)
    for crop, ways in allowed.items():
        share = ways / 260
        assert abs(drawn[crop] / draws - share) < 5 * (share * (1 - share) / draws) ** 0.5


def test_probabilities():
    frames = noise(1, 6, 6)
    frames[..., 0] = 255 - frames[..., 2]  # no pixel is grey by chance
    effects = {"horizontal_flip_prob": frames[:, :, ::-1], "grayscale_prob": luma(frames)}
    for name, expected in effects.items():
        for seed in range(30):
            assert np.array_equal(transformed(whole(6, **{name: 1}), frames, seed), expected)
            assert np.array_equal(transformed(whole(6, **{name: 0}), frames, seed), frames)
    for name, share in {"horizontal_flip_prob": 0.5, "color_jitter_prob": 0.8, "grayscale_prob": 0.2}.items():
        transform, rng, draws = whole(6, **{name: share}), np.random.default_rng(1), 2000
        changed = sum(not np.array_equal(transform(frames, rng), frames) for _ in range(draws))
        assert abs(changed / draws - share) < 0.05


def test_flip_jitter_and_grey_are_drawn_apart():
    dark, bright = (40, 10, 10), (200, 100, 100)
    frames = np.array([[[dark, bright], [dark, bright]]], dtype=np.uint8)
    still = {image.tobytes() for side in (frames, frames[:, :, ::-1]) for image in (side, luma(side).astype(np.uint8))}
    transform = TrainTransform((2, 2), scales=(1,), contrast=0, saturation=0, hue=0)
    rng, draws, seen = np.random.default_rng(0), 4000, Counter()
    for _ in range(draws):
        after = transform(frames, rng)
        pixel, other = after[0, 0].astype(int)
        seen[bool(pixel[0] > other[0]), after.tobytes() not in still, bool((pixel == pixel[0]).all())] += 1
    for flip, jitter, grey in itertools.product((False, True), repeat=3):
        share = 0.5 * (0.8 if jitter else 0.2) * (0.2 if grey else 0.8)
        assert abs(seen[flip, jitter, grey] / draws - share) < 0.03


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_factors(name):
    frames = noise(1, 12, 12) // 2 + 40
    if name == "brightness":
        pivot = np.zeros(frames.shape)
    elif name == "contrast":
        pivot = np.full(frames.shape, np.floor(luma(frames)[..., 0].mean() + 0.5))
    else:
        pivot = luma(frames).astype(float)
    away = frames - pivot
    factors = []
    for seed in range(400):
        after = transformed(jitter_only(12, name), frames, seed).astype(float)
        inside = (after > 0) & (after < 255)
        factor = np.sum((after - pivot)[inside] * away[inside]) / np.sum(away[inside] ** 2)
        assert np.abs(np.clip(pivot + factor * away, 0, 255) - after).max() < 1.5
        factors.append(factor)
    strength = STRENGTHS[name]
    places = (np.array(factors) - 1) / strength  # drawn evenly from -1 to 1
    assert -1.05 < places.min() < -0.95 and 0.95 < places.max() < 1.05
    counts, _ = np.histogram(places, bins=4, range=(-1.05, 1.05))
    assert counts.min() > 70


def test_hues_turn_around_the_circle():
    levels = np.arange(256, dtype=np.uint8)
    full = np.full(256, 255, dtype=np.uint8)
    circle = np.stack([levels, full, full], axis=-1).reshape(16, 16, 3)
    frames = np.asarray(Image.merge("HSV", Image.fromarray(circle).split()).convert("RGB"))[None]
    before = np.asarray(Image.fromarray(frames[0]).convert("HSV")).copy()

    allowed = {}
    for shift in range(-25, 26):
        turned = before.copy()
        turned[..., 0] += np.uint8(shift % 256)
        image = Image.merge("HSV", Image.fromarray(turned).split()).convert("RGB")
        allowed[image.tobytes()] = shift
    assert len(allowed) == 51
    drawn = Counter(allowed[transformed(jitter_only(16, "hue"), frames, seed).tobytes()] for seed in range(600))
    assert set(drawn) == set(range(-25, 26))  # int(255 * hue)

    red = np.zeros((1, 2, 2, 3), dtype=np.uint8)
    red[..., 0] = 255
    for seed in range(100):
        pixel = transformed(jitter_only(2, "hue"), red, seed)[0, 0, 0]
        hue, saturation, value = colorsys.rgb_to_hsv(*(pixel / 255))
        assert (hue <= 0.1 or hue >= 0.9) and saturation == value == 1


def test_colours_change_in_any_order():
    frames = noise(1, 8, 8)
    steps = {name: jitter_only(8, name) for name in STRENGTHS}
    every = jitter_only(8, *STRENGTHS)
    seen = Counter()
    for seed in range(250):
        after = transformed(every, frames, seed)
        orders = []
        for order in itertools.permutations(STRENGTHS):
            image = frames
            for name in order:
                image = transformed(steps[name], image, seed)
            if np.array_equal(image, after):
                orders.append(order)
        assert orders
        if len(orders) == 1:
            seen[orders[0]] += 1
    assert len(seen) == 24


def test_steps_follow_each_other_and_leave_each_other_alone():
    frames = random_clip(0, num_frames=2)
    for seed in range(50):
        image = transformed(TrainTransform((24, 24), **OFF), frames, seed)
        for name, prob in (("horizontal_flip_prob", 0.5), ("color_jitter_prob", 0.8), ("grayscale_prob", 0.2)):
            image = transformed(whole(24, **{name: prob}), image, seed)
        assert np.array_equal(transformed(TrainTransform((24, 24)), frames, seed), image)


def test_frames_of_a_clip_are_treated_alike():
    frames = random_clip(0, num_frames=4)
    still = np.repeat(frames[:1], 4, axis=0)
    transform = TrainTransform((24, 32))
    for seed in range(40):
        after = transformed(transform, frames, seed)
        assert after.shape == (4, 24, 32, 3) and after.dtype == np.uint8
        for i in range(4):
            assert np.array_equal(after[i], transformed(transform, frames[i : i + 1], seed)[0])
        after = transformed(transform, still, seed)
        assert (after == after[0]).all()


def test_draws_depend_on_the_generator_alone():
    frames = random_clip(0, num_frames=2)
    frames.setflags(write=False)
    np.random.seed(0)
    random.seed(0)
    expected = random.random(), np.random.random()
    np.random.seed(0)
    random.seed(0)
    transform = TrainTransform((24, 24))
    outputs = [transformed(transform, frames, seed).tobytes() for seed in range(50)]
    assert len(set(outputs)) == 50
    copy = pickle.loads(pickle.dumps(transform))
    assert copy == transform
    assert [transformed(copy, frames, seed).tobytes() for seed in range(50)] == outputs
    assert (random.random(), np.random.random()) == expected

    rng = np.random.default_rng(0)
    assert transform(frames, rng).tobytes() == outputs[0] != transform(frames, rng).tobytes()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 4), (4, 2), (1, 50), (3, 3), (37, 53), (201, 7)])
@pytest.mark.parametrize("size", [(1, 1), (5, 9), (32, 32)])
def test_any_size(height, width, size):
    frames = noise(2, height, width)
    transform = TrainTransform(size, 1, 1, 1)
    for seed in range(30):
        after = transformed(transform, frames, seed)
        assert after.shape == (2, *size, 3)
        assert (after == after[..., :1]).all()  # grey
    white = np.full_like(frames, 255)
    for seed in range(30):
        assert (transformed(TrainTransform(size, **OFF), white, seed) == 255).all()


def test_other_scales():
    frames = noise(1, 8, 8)
    quarters = {frames[:, y : y + 4, x : x + 4].tobytes() for y in range(5) for x in range(5)}
    transform = TrainTransform((4, 4), **OFF, scales=(0.5,))
    drawn = {transformed(transform, frames, seed).tobytes() for seed in range(300)}
    assert len(drawn) == 13 and drawn < quarters


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"size": 224}, "`size` must be .* got 224;"),
        ({"size": (224, 0)}, r"`size` must be .* got \(224, 0\)"),
        ({"size": (224.0, 224)}, r"`size` must be .* got \(224.0, 224\)"),
        ({"size": (1, 2, 3)}, r"`size` must be .* got \(1, 2, 3\)"),
        ({"horizontal_flip_prob": 1.5}, "`horizontal_flip_prob` must be .* got 1.5"),
        ({"color_jitter_prob": -0.1}, "`color_jitter_prob` must be .* got -0.1"),
        ({"grayscale_prob": float("nan")}, "`grayscale_prob` must be .* got nan"),
        ({"scales": ()}, r"`scales` must be .* got \(\)"),
        ({"scales": (1, 1.2)}, r"`scales` must be .* got \(1, 1.2\)"),
        ({"scales": (0, 1)}, r"`scales` must be .* got \(0, 1\)"),
        ({"brightness": 1.1}, "`brightness` must be .* got 1.1"),
        ({"contrast": -1}, "`contrast` must be .* got -1"),
        ({"saturation": 2}, "`saturation` must be .* got 2"),
        ({"hue": 0.6}, r"`hue` must be in \[0, 0.5\], got 0.6"),
    ],
)
def test_bad_settings(kwargs, message):
    with pytest.raises(ValueError, match=message):
        TrainTransform(**{"size": (224, 224), **kwargs})


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (noise(4, 4), r"got \(4, 4, 3\) of uint8"),
        (noise(2, 4, 4).transpose(0, 3, 1, 2), r"got \(2, 3, 4, 4\) of uint8"),
        (noise(2, 4, 4) / 255, r"got \(2, 4, 4, 3\) of float64"),
        (noise(0, 4, 4), r"got \(0, 4, 4, 3\) of uint8"),
    ],
)
def test_bad_frames(frames, message):
    with pytest.raises(ValueError, match=message):
        transformed(TrainTransform((4, 4)), frames, 0)
