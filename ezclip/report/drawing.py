"""How all pictures of a report look."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from PIL import Image

from ezclip.utils.fonts import Lettering


DPI = 150
DARK, MIDDLE, LIGHT = "#0b3c6f", "#5b8fbf", "#c3d7ea"
# One hue that gets darker evenly, so that print and colour-blind eyes see the same; white is nothing at all.
SHADES = LinearSegmentedColormap.from_list("shades", ["#ffffff", "#c3d7ea", "#5b8fbf", "#0b3c6f", "#04172e"])
MARKERS = "osD^vP*X<>"


@dataclass
class Picture:
    """
    A picture of a report.

    Args:
        name (`str`):
            What its file is called, without ending.
        content (`bytes`):
            The file.
        alt (`str`):
            What it shows, in words.
        caption (`str`):
            How to read it.
        kind (`str`, *optional*, defaults to `"png"`):
            `"png"` or `"jpeg"`.
    """

    name: str
    content: bytes
    alt: str
    caption: str = ""
    kind: str = "png"

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return Image.open(io.BytesIO(self.content)).size


def drawing(draw: Callable[..., Figure]) -> Callable[..., bytes]:
    """Return a function that draws a figure as PNG, in fonts that have the letters of its first argument."""

    @wraps(draw)
    def draw_as_png(lettering: Lettering, *args, **kwargs) -> bytes:
        look = {
            "font.family": lettering.families,
            "text.parse_math": False,  # a name may have dollars
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": False,
            "savefig.facecolor": "white",
            "savefig.dpi": DPI,
        }
        with matplotlib.rc_context(look):
            content = io.BytesIO()
            draw(lettering, *args, **kwargs).savefig(content, format="png", metadata={"Software": None})
        return content.getvalue()

    return draw_as_png


def new_figure(width: float, height: float) -> Figure:
    """Return a figure of a size in inches. It avoids pyplot, which looks for a display."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
