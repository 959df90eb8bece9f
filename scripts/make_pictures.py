#!/usr/bin/env python
"""
Draw the pictures of README.md and docs/ from the folder of a demo.

ezclip demo --output_dir demo
python scripts/make_pictures.py demo --output_dir docs/pictures

It needs the extra `report`. Everything in the pictures comes from the demo's clips and models.
"""

import argparse
import sys
import tempfile
from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ezclip import ClassBank, EZClipModel, EZClipProcessor, ZeroShotVideoClassificationPipeline
from ezclip.attention.alignment import alignment_of, draw_alignment
from ezclip.attention.figures import attention_figure
from ezclip.attention.video_attention import look_at_video
from ezclip.report import write_report
from ezclip.systems.base import plain_clip
from ezclip.timeline import find_segments
from ezclip.utils.synthetic_clips import DIRECTIONS, write_video
from video_ezclip import read_frames


SUBJECT = "red cross"  # crosses never move in training
TEMPLATE = "a {}"
MODELS = {
    "with_temporal_prompts": "with temporal tokens",
    "without_temporal_prompts": "without (average of the frames)",
}
COLOURS = {"with_temporal_prompts": "#00796b", "without_temporal_prompts": "#b0b0b0"}
MAX_SIDE = 1144  # pixels
MAX_BYTES = 300_000


def main(argv: list[str] | None = None) -> None:
    """Draw all pictures."""
    parser = argparse.ArgumentParser(description="Draw the pictures of README.md and docs/.")
    parser.add_argument("demo_dir", type=Path, help="the output folder of `ezclip demo`")
    parser.add_argument("--output_dir", type=Path, default=Path("docs/pictures"))
    args = parser.parse_args(argv)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    models = {name: EZClipModel.from_pretrained(args.demo_dir / name).eval() for name in MODELS}
    processor = EZClipProcessor.from_pretrained(args.demo_dir / "with_temporal_prompts")
    clip = find_clip(args.demo_dir, "left")
    trained = models["with_temporal_prompts"]
    pictures = {
        "directions": draw_directions(clip, models, processor),
        "attention": attention_figure(clip, trained, processor, [f"{SUBJECT} moving left"], templates=TEMPLATE),
        "alignment": draw_steps(clip, trained, processor),
        "timeline": draw_timeline(args.demo_dir, trained, processor),
        "report": draw_report(args.demo_dir),
    }
    for name, picture in pictures.items():
        path = args.output_dir / f"{name}.png"
        picture = picture.convert("RGB")
        picture.thumbnail((MAX_SIDE, MAX_SIDE))
        picture.save(path, optimize=True)
        size = path.stat().st_size
        print(f"{path}: {picture.width} x {picture.height}, {size:,} bytes")
        if size > MAX_BYTES:
            raise ValueError(f"{path} must have at most {MAX_BYTES:,} bytes, got {size:,}.")


def find_clip(demo_dir: Path, direction: str, number: int = 0) -> Path:
    """Return a test clip of the subject."""
    return demo_dir / "videos" / "novel" / f"{SUBJECT} moving {direction}" / f"{number:02d}.mp4"


def draw_directions(clip: Path, models: dict[str, EZClipModel], processor: EZClipProcessor) -> Image.Image:
    """Draw the frames of a clip and of the clip backwards, with the scores of both models."""
    frames, _ = read_frames(clip)
    labels = [f"{SUBJECT} moving {direction}" for direction in DIRECTIONS]
    figure = Figure(figsize=(10.4, 3.5), dpi=110, layout="constrained")
    axes = figure.subplots(2, 2, width_ratios=[2.1, 1])
    for row, (title, shown) in enumerate({"A clip": frames, "The same frames, backwards": frames[::-1]}.items()):
        strip, bars = axes[row]
        strip.imshow(
            np.concatenate([np.pad(frame, ((0, 0), (1, 1), (0, 0)), constant_values=255) for frame in shown], 1)
        )
        strip.set_title(title, loc="left", fontsize=11)
        strip.axis("off")
        for number, (name, model) in enumerate(models.items()):
            scores = score(shown, model, processor, labels)
            places = np.arange(len(labels)) + 0.38 * (number - 0.5)
            drawn = bars.barh(places, scores, 0.36, color=COLOURS[name], label=MODELS[name])
            bars.bar_label(drawn, [f"{100 * value:.0f} %" for value in scores], padding=3, fontsize=8)
        bars.set_yticks(range(len(labels)), labels, fontsize=9)
        bars.invert_yaxis()
        bars.set_xlim(0, 1.18)
        bars.set_xticks([])
        bars.spines[["top", "right", "bottom"]].set_visible(False)
    figure.legend(
        *axes[0, 1].get_legend_handles_labels(), loc="outside lower right", ncols=2, frameon=False, fontsize=9
    )
    return as_image(figure)


def score(frames: np.ndarray, model: EZClipModel, processor: EZClipProcessor, labels: list[str]) -> list[float]:
    """Return the probability of each label."""
    classifier = ZeroShotVideoClassificationPipeline(model=model, processor=processor)
    found = {entry["label"]: entry["score"] for entry in classifier(frames, labels, hypothesis_template=TEMPLATE)}
    return [found[label] for label in labels]


def draw_steps(clip: Path, model: EZClipModel, processor: EZClipProcessor) -> Image.Image:
    """Draw the alignment of a clip with the steps of its class and of the opposite class, by plain CLIP."""
    model = plain_clip(model)
    right, middle, left = (
        [f"a {SUBJECT} at the {place}" for place in places]
        for places in (("right", "up right", "down right"), ("middle", "up", "down"), ("left", "up left", "down left"))
    )
    steps = {
        f"{SUBJECT} moving left": {"steps": [right, middle, left]},
        f"{SUBJECT} moving right": {"steps": [left, middle, right]},
    }
    attention = look_at_video(clip, model, processor)
    return draw_alignment(attention, alignment_of(attention, model, processor, list(steps), steps))


def draw_timeline(demo_dir: Path, model: EZClipModel, processor: EZClipProcessor) -> Image.Image:
    """Draw the timeline of a film of 24 seconds: six seconds for each direction."""
    clips = [find_clip(demo_dir, direction, number) for direction in DIRECTIONS for number in range(6)]
    film = np.concatenate([read_frames(clip)[0] for clip in clips])
    classifier = ZeroShotVideoClassificationPipeline(model=model, processor=processor)
    bank = ClassBank.build(model, processor, [f"{SUBJECT} moving {direction}" for direction in DIRECTIONS], TEMPLATE)
    with tempfile.TemporaryDirectory() as folder:
        path, picture = Path(folder) / "film.mp4", Path(folder) / "film.png"
        write_video(path, film)
        find_segments(classifier, path, class_bank=bank, window=1.0, stride=1.0, disable_tqdm=True).save(picture)
        with Image.open(picture) as image:
            return image.reduce(2)


def draw_report(demo_dir: Path) -> Image.Image:
    """Return the confusion matrix of a report: without temporal tokens, all directions of a shape are confused."""
    with tempfile.TemporaryDirectory() as folder:
        write_report(demo_dir / "without_temporal_prompts" / "novel", folder)
        with Image.open(Path(folder) / "report_pictures" / "confusion_matrix.png") as image:
            return image.copy()


def as_image(figure: Figure) -> Image.Image:
    """Return a figure as an image."""
    stream = BytesIO()
    figure.savefig(stream, format="png")
    return Image.open(stream)


if __name__ == "__main__":
    sys.exit(main())
