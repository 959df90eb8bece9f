"""Align the frames of a video with the steps of classes, and draw the alignment."""

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from PIL import Image

from ezclip.attention.figures import (
    COLOURS,
    DPI,
    MAX_COLUMNS,
    MAX_NUMBERED,
    as_image,
    drawable_lines,
    import_matplotlib,
)
from ezclip.attention.maps import evaluation_mode
from ezclip.attention.video_attention import VideoAttention
from ezclip.errors import ModelError
from modeling_ezclip import EZClipModel
from pipeline_ezclip import ClassBank, StepBank, align_steps, embed_videos
from processing_ezclip import Description, EZClipProcessor


# Inches of the picture
LABEL_WIDTH, MARGIN = 2.4, 0.55
MATRIX_WIDTH, MAX_CELL, ROW_HEIGHT = 9.0, 1.1, 0.5


@dataclass
class Alignment:
    """
    The best alignment of the T frames of a video with the S steps of a class, see [`align_steps`].

    Args:
        label (`str`):
            The class.
        steps (`list[str]`):
            The wording of each step that fits its frames best.
        similarities (`np.ndarray` of shape `(T, S)`):
            Cosine of each frame and the best wording of each step, float32.
        path (`list[int]`):
            The step of each frame.
        mean, aligned, backward (`float`):
            Similarity of the video and the mean of the steps; of the aligned frames; and of the frames aligned with
            the reversed steps.
    """

    label: str
    steps: list[str]
    similarities: np.ndarray
    path: list[int]
    mean: float
    aligned: float
    backward: float

    @property
    def heading(self) -> str:
        """Return the label and its similarities."""
        return f"{self.label}: aligned {self.aligned:.3f}, reversed {self.backward:.3f}, mean {self.mean:.3f}"

    def frames_of(self, step: int) -> tuple[int, int]:
        """Return the first and the last frame of a step."""
        return self.path.index(step), len(self.path) - 1 - self.path[::-1].index(step)


def check_frame_embeds(model: EZClipModel):
    """Raise [`ModelError`] if a model does not embed single frames, so that no step can be compared with them."""
    if model.config.vision_config.use_joint_attention:
        raise ModelError(
            "Steps are compared with single frames, and this model embeds all frames of a video together "
            "(`use_joint_attention`). Describe the classes without steps, or choose a model of another system."
        )


@torch.no_grad()
def alignment_of(
    attention: VideoAttention,
    model: EZClipModel,
    processor: EZClipProcessor,
    labels: Sequence[str],
    descriptions: Mapping[str, Description],
    templates: str | Sequence[str] | None = None,
) -> list[Alignment]:
    """
    Align the frames of a video with the steps of each label.

    Args:
        attention ([`VideoAttention`]):
            What [`look_at_video`] returned for the video.
        model ([`EZClipModel`]):
            The model. Its state is restored afterwards.
        processor ([`EZClipProcessor`]):
            The model's processor.
        labels (`Sequence[str]`):
            The class names.
        descriptions (`Mapping[str, Description]`):
            The steps of each class, `{"steps": [step, …]}`, or a list of texts in the order of the steps.
        templates (`str` or `Sequence[str]`, *optional*):
            Sentences with `{}` for a step.

    Raises:
        [`ModelError`]: if the model does not embed single frames.
        `ValueError`: if a class has no description, or more steps than there are frames.
    """
    check_frame_embeds(model)
    labels = list(labels)
    pixel_values = processor.frames_to_pixels(attention.frames)[None].to(model.device, model.dtype)
    with evaluation_mode(model):
        built = ClassBank.build(model, processor, labels, templates, descriptions, step_score="aligned")
        bank = cast(StepBank, built)
        embeds = embed_videos(model, bank, pixel_values).float()  # (1, 1 + T, D)
    means = replace(bank, step_score="mean", step_contrast=0.0).compare(embeds)[0, 0].tolist()
    similarities = bank.frame_similarities(embeds[:, 1:])[0].cpu()  # (C, T, S)
    texts = torch.nn.functional.normalize(embeds[0, 1:], dim=-1).cpu() @ bank.step_embeds.float().cpu().t()  # (T, R)
    wordings = [text for own in processor.get_prompts(labels, "{}", descriptions) for (text,) in own]  # R
    alignments = []
    for number, (label, mean) in enumerate(zip(labels, means)):
        own = similarities[number, :, : bank.num_steps[number]]
        aligned, path = align_steps(own)
        best = []
        for step in range(own.shape[1]):
            rows = bank.steps[number, step]
            rows = rows[rows >= 0].cpu()
            of_frames = texts[torch.tensor(path) == step][:, rows]
            best.append(wordings[int(rows[of_frames.mean(dim=0).argmax()])])
        backward, _ = align_steps(own.flip(0))
        alignments.append(Alignment(label, best, own.numpy(), path, mean, aligned, backward))
    return alignments


def describe_alignment(attention: VideoAttention, alignments: Sequence[Alignment]) -> str:
    """Describe [`draw_alignment`] in words: for each step its frames, their times, and their mean similarity."""
    lines = []
    for own in alignments:
        lines.append(f"{own.heading}.")
        for step, text in enumerate(own.steps):
            first, last = own.frames_of(step)
            frames, when = f"frame {first + 1}", attention.when(first)
            if last > first:
                frames, when = f"frames {first + 1}-{last + 1}", f"{when} to {attention.when(last)}"
            similarity = own.similarities[first : last + 1, step].mean()
            lines.append(f"  step {step + 1} {text!r}: {frames} ({when}), similarity {similarity:.3f}")
    return "\n".join(lines)


def draw_alignment(attention: VideoAttention, alignments: Sequence[Alignment]) -> Image.Image:
    """
    Draw a matrix of similarities, steps × frames, for each label, and the best alignment as a line.

    The frames stand above. All matrices have one scale.

    Raises:
        `ImportError`: if matplotlib is not installed.
    """
    num_frames = len(attention.frames)
    left, top, right, bottom = map(round, attention.crop)
    cell = min(MAX_CELL, MATRIX_WIDTH / num_frames)
    width = cell * num_frames
    strip_height = cell * (bottom - top) / (right - left)
    headings = [textwrap.wrap(own.heading, max(40, int(13 * width))) for own in alignments]
    steps = [
        [textwrap.wrap(f"{n}. {text}", 34, max_lines=3, placeholder=" …") for n, text in enumerate(own.steps, 1)]
        for own in alignments
    ]
    drawn, families = drawable_lines([line for lines in itertools.chain(headings, *steps) for line in lines])
    style = {"family": families, "parse_math": False}  # a label may contain a dollar sign
    heights = [0.25 + 0.2 * len(lines) + ROW_HEIGHT * len(own.steps) for lines, own in zip(headings, alignments)]
    page = (LABEL_WIDTH + width + 0.2, 3 * MARGIN + strip_height + sum(heights))
    figure = import_matplotlib().figure.Figure(page, dpi=DPI)

    def add_axes(bottom: float, width: float, height: float):
        return figure.add_axes((LABEL_WIDTH / page[0], bottom / page[1], width / page[0], height / page[1]))

    y = page[1] - MARGIN - strip_height
    axes = add_axes(y, width, strip_height)
    strip = np.concatenate(list(attention.frames[:, top:bottom, left:right]), axis=1)
    axes.imshow(strip, extent=(-0.5, num_frames - 0.5, 0, 1), aspect="auto")
    axes.vlines(np.arange(1, num_frames) - 0.5, 0, 1, color="white", linewidth=3)
    axes.set_axis_off()
    for frame in range(0, num_frames, -(-num_frames // MAX_COLUMNS)):
        axes.text(frame, 1.05, f"{frame + 1}\n{attention.when(frame)}", ha="center", va="bottom", fontsize=7)
    lowest = min(float(own.similarities.min()) for own in alignments)
    highest = max(float(own.similarities.max()) for own in alignments)
    for own, heading, texts, height in zip(alignments, headings, steps, heights):
        y -= height
        axes = add_axes(y, width, ROW_HEIGHT * len(texts))
        axes.imshow(own.similarities.T, cmap=COLOURS, vmin=lowest, vmax=highest, aspect="auto")
        axes.set_title("\n".join(drawn[line] for line in heading), loc="left", fontsize=9, **style)
        labels = ["\n".join(drawn[line] for line in lines) for lines in texts]
        axes.set_yticks(range(len(labels)), labels, fontsize=7, **style)
        axes.set_xticks([])
        for colour, thickness in (("white", 4), ("black", 2)):  # visible on dark and on light
            axes.plot(own.path, color=colour, linewidth=thickness, marker="o", ms=2 * thickness, ds="steps-mid")
        axes.set_xlim(-0.5, num_frames - 0.5)
        if num_frames <= MAX_NUMBERED:
            for (frame, step), value in np.ndenumerate(own.similarities):
                ink = "black" if value - lowest > 0.55 * (highest - lowest) else "white"
                axes.text(frame + 0.42, step + 0.42, f"{value:.2f}", ha="right", fontsize=6, color=ink)
    bar = figure.colorbar(axes.images[0], cax=add_axes(MARGIN, min(2.0, width), 0.12), orientation="horizontal")
    bar.ax.tick_params(labelsize=7)
    bar.set_label("cosine of a frame and a step; line: best alignment", fontsize=8, loc="left")
    return as_image(figure).convert("RGB")
