"""Style of all pictures of a report."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import matplotlib
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from PIL import Image

from ezclip.utils.fonts import Lettering


DPI = 150
DARK, MIDDLE, LIGHT = "#0b3c6f", "#5b8fbf", "#c3d7ea"
# One hue with evenly decreasing lightness is readable in print and without colour vision. White is 0.
SHADES = LinearSegmentedColormap.from_list("shades", ["#ffffff", "#c3d7ea", "#5b8fbf", "#0b3c6f", "#04172e"])
MARKERS = "osD^vP*X<>"
STYLE: dict[Any, Any] = {
    "text.parse_math": False,  # class names can contain "$"
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "savefig.facecolor": "white",
    "savefig.dpi": DPI,
}


@dataclass
class Picture:
    """A picture: its file name without suffix, the file, its alternative text, its caption, `"png"` or `"jpeg"`."""

    name: str
    content: bytes
    alt: str
    caption: str = ""
    format: str = "png"
    kind: str = "picture"

    @property
    def size(self) -> tuple[int, int]:
        """Return width and height in pixels."""
        return Image.open(io.BytesIO(self.content)).size


def drawing(draw: Callable[..., Figure]) -> Callable[..., bytes]:
    """Make a function return its figure as PNG, drawn with the fonts of its first argument, a [`Lettering`]."""

    @wraps(draw)
    def draw_as_png(lettering: Lettering, *args, **kwargs) -> bytes:
        with matplotlib.rc_context({**STYLE, "font.family": lettering.families}):
            content = io.BytesIO()  # functions make a Figure without pyplot, which looks for a display
            draw(lettering, *args, **kwargs).savefig(content, format="png", metadata={"Software": None})
        return content.getvalue()

    return draw_as_png
