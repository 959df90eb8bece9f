"""Draw attention maps below the frames of a video, and the temporal attention between frames."""

import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageFilter

from ezclip.attention.video_attention import AttentionRow, VideoAttention, look_at_video
from modeling_ezclip import EZClipModel
from processing_ezclip import EZClipProcessor


MAX_COLUMNS = 12
MAX_NUMBERED = 10  # frames up to which the numbers in a matrix are legible
COLOURS = "cividis"  # dark to light; works in grey and for colour-blind readers
DPI = 150
SIDE, LABEL_WIDTH, MARGIN, GAP = 180, 260, 75, 6  # pixels of a picture and around it
STRUCTURE = 0.5  # weight of the contours of a frame under its map
METHOD_TITLES = {
    "last": "last attention over the patches",
    "rollout": "attention, by rollout",
    "relevance": "relevance for the label",
}


def attention_figure(
    video, model: EZClipModel, processor: EZClipProcessor, labels: Sequence[str] | None = None, **kwargs
) -> Image.Image:
    """Compute the maps of a video and draw them. The arguments are those of [`look_at_video`]."""
    return draw_attention(look_at_video(video, model, processor, labels, **kwargs))


def draw_attention(attention: VideoAttention) -> Image.Image:
    """
    Draw the sampled frames as the model sees them, and their maps below.

    Light means high attention. Each row has its own scale, from the 1st to the 99th percentile of its values, printed
    beside it. If there are more than `MAX_COLUMNS` frames, an evenly spread selection is shown.

    Raises:
        `ImportError`: if matplotlib is not installed.
    """
    num_frames = len(attention.frames)
    shown = np.linspace(0, num_frames - 1, min(num_frames, MAX_COLUMNS)).round().astype(int)
    left, top, right, bottom = map(round, attention.crop)
    height = round(SIDE * (bottom - top) / (right - left))
    lines = 1 + len(attention.rows)
    page = _Page(LABEL_WIDTH + (SIDE + GAP) * len(shown) + GAP, 2 * MARGIN + (height + GAP) * lines)
    for line, row in enumerate([None, *attention.rows]):
        y = MARGIN + (height + GAP) * line
        title = "frames"
        if row is not None:
            darkest, lightest = row.scale
            title = "\n".join([row.heading, *_wrap(row.label, 24, 4), f"{darkest:.2g} to {lightest:.2g}"])
        page.write(title, LABEL_WIDTH - 2 * GAP, y + height // 2, ha="right")
        for column, number in enumerate(shown):
            x = LABEL_WIDTH + (SIDE + GAP) * column
            frame = attention.frames[number]
            picture = frame if row is None else blend(frame, colour_map(attention, row, number))
            page.show(picture[top:bottom, left:right], x, y, SIDE, height)
            if row is None:
                page.write(attention.when(number), x + SIDE // 2, y - 2 * GAP, ha="center")
    y = page.height - MARGIN // 2
    colours = import_matplotlib().colormaps[COLOURS](np.linspace(0, 1, SIDE))[None, :, :3]
    page.show(np.rint(255 * colours).astype(np.uint8), LABEL_WIDTH, y - 8, SIDE, 16)
    page.write("low", LABEL_WIDTH - 2 * GAP, y, ha="right")
    some = "" if len(shown) == num_frames else f"; {len(shown)} of {num_frames} frames"
    page.write(f"high {METHOD_TITLES[attention.method]}{some}", LABEL_WIDTH + SIDE + 2 * GAP, y, ha="left")
    return page.image()


def draw_temporal_attention(temporal: np.ndarray) -> Image.Image:
    """
    Draw the frames that the temporal tokens attend to: a matrix for each block, on one scale.

    Args:
        temporal (`np.ndarray` of shape `(N, T, T)`):
            See [`temporal_attention`].

    Raises:
        `ImportError`: if matplotlib is not installed.
    """
    num_layers, num_frames, _ = temporal.shape
    columns = min(4, num_layers)
    rows = -(-num_layers // columns)
    size = (2.6 * columns + 0.9, 2.75 * rows + 0.5)
    figure = import_matplotlib().figure.Figure(size, dpi=DPI, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    most = max(float(temporal.max()), 2 / num_frames)  # so uniform attention is never light
    ticks = np.arange(num_frames) if num_frames <= MAX_NUMBERED else np.arange(0, num_frames, -(-num_frames // 8))
    for number, axes in enumerate(panels.flat):
        if number >= num_layers:
            axes.set_visible(False)
            continue
        image = axes.imshow(temporal[number], cmap=COLOURS, vmin=0.0, vmax=most)
        axes.set_title(f"block {number + 1}", fontsize=9)
        axes.set_xticks(ticks, [str(tick + 1) for tick in ticks], fontsize=7)
        axes.set_yticks(ticks, [str(tick + 1) for tick in ticks], fontsize=7)
        if num_frames <= MAX_NUMBERED:
            for (row, column), value in np.ndenumerate(temporal[number]):
                ink = "black" if value > 0.55 * most else "white"
                axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=6, color=ink)
    figure.supxlabel("attended frame", fontsize=9)
    figure.supylabel("frame of the temporal token", fontsize=9)
    bar = figure.colorbar(image, ax=panels, shrink=0.8, format=lambda value, _: f"{value:.0%}")
    bar.ax.tick_params(labelsize=7)
    bar.ax.axhline(1 / num_frames, color="black", linewidth=1.5)
    bar.set_label(f"attention (line: uniform, {1 / num_frames:.1%})", fontsize=8)
    return as_image(figure).convert("RGB")


def draw_title(row: AttentionRow, width: int, height: int) -> np.ndarray:
    """Draw the model and the label in white on black: `(height, width, 3)`, uint8."""
    page = _Page(width, height, background=0)
    page.write("\n".join([row.heading, *_wrap(row.label, max(12, width // 9), 1)]), GAP, height // 2, ha="left")
    return np.asarray(page.image())


def colour_map(
    attention: VideoAttention, row: AttentionRow, number: int, size: tuple[int, int] | None = None
) -> np.ndarray:
    """
    Return the colours of the map of frame `number`: `(height, width, 3)`, float32, 0 to 1.

    The area that the model does not see is dark, outside of a white line. `size` is the height and width, by default
    those of the video.
    """
    height, width = size or attention.frames.shape[1:3]
    down, across = height / attention.frames.shape[1], width / attention.frames.shape[2]
    left, top, right, bottom = (round(v * f) for v, f in zip(row.covered, (across, down, across, down)))
    area = (right - left, bottom - top)
    values = np.asarray(Image.fromarray(row.scaled(number)).resize(area, Image.Resampling.BICUBIC))
    coloured = np.full((height, width, 3), 0.1, dtype=np.float32)
    coloured[max(0, top - 2) : bottom + 2, max(0, left - 2) : right + 2] = 1.0
    coloured[top:bottom, left:right] = import_matplotlib().colormaps[COLOURS](np.clip(values, 0, 1))[..., :3]
    return coloured


def blend(frame: np.ndarray, coloured: np.ndarray) -> np.ndarray:
    """
    Blend a frame with the result of [`colour_map`]: `(height, width, 3)`, uint8.

    Only the contours of the frame are added. Otherwise a white shirt would look like attention.
    """
    grey = Image.fromarray(frame).convert("L")
    around = grey.filter(ImageFilter.BoxBlur(min(frame.shape[:2]) / 24))
    structure = np.asarray(grey, dtype=np.float32) - np.asarray(around, dtype=np.float32)
    return np.rint(255 * coloured + STRUCTURE * structure[..., None]).clip(0, 255).astype(np.uint8)


class _Page:
    """A picture with other pictures and texts. Positions are pixels from the upper left corner."""

    def __init__(self, width: int, height: int, background: int = 255):
        self.width, self.height, self.ink = width, height, "white" if background < 128 else "black"
        self.pixels, self.texts = Image.new("RGB", (width, height), (background,) * 3), []

    def show(self, picture: np.ndarray, x: int, y: int, width: int, height: int):
        """Paste a picture, resized."""
        self.pixels.paste(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS), (x, y))

    def write(self, text: str, x: int, middle: int, ha: str):
        """Add a text, aligned by `ha` at x and centred at `middle`."""
        self.texts.append((text, x / self.width, 1 - middle / self.height, ha))

    def image(self) -> Image.Image:
        """Return the page with its pictures and texts."""
        figure = import_matplotlib().figure.Figure((self.width / DPI, self.height / DPI), dpi=DPI, facecolor="none")
        drawn, families = drawable_lines([line for text, *_ in self.texts for line in text.split("\n")])
        style = {"va": "center", "fontsize": 8, "color": self.ink, "family": families}
        for text, x, y, ha in self.texts:
            text = "\n".join(drawn[line] for line in text.split("\n"))
            figure.text(x, y, text, ha=ha, parse_math=False, **style)  # a label may contain a dollar sign
        texts = as_image(figure)
        return Image.composite(texts.convert("RGB"), self.pixels, texts.getchannel("A"))


def drawable_lines(lines: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return what to draw for each line of text, "(no font)" if no font has its letters, and the font families."""
    from ezclip.utils.fonts import Lettering

    lines = list(dict.fromkeys(lines))
    lettering = Lettering(lines)
    drawn = {line: line if lettering.is_drawable(i) or not line else "(no font)" for i, line in enumerate(lines)}
    return drawn, lettering.families


def as_image(figure) -> Image.Image:
    """Draw a figure of matplotlib and return its pixels, RGBA."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba()))


def import_matplotlib():
    """Return matplotlib without a display. Raise `ImportError` with the way to install it."""
    try:
        import matplotlib.figure  # pyplot would look for a display
    except ImportError as error:
        raise ImportError('Pictures need matplotlib: `pip install "ezclip[plots]"`.') from error
    return matplotlib


def _wrap(label: str | None, width: int, max_lines: int) -> list[str]:
    """Split a label into lines, and cut it after `max_lines`."""
    lines = textwrap.wrap(label or "", width - 2)
    return lines if len(lines) <= max_lines else [*lines[: max_lines - 1], f"{lines[max_lines - 1]} …"]
