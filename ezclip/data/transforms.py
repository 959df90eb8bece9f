"""Random crops, flips and colours for training: one draw per clip, the same in all of its frames."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance


# Where a crop may stand, as (left, top) in quarters of the room that it has: corners, edges, centre, quarter points.
POSITIONS = (
    (0, 0), (4, 0), (0, 4), (4, 4), (2, 0), (0, 2), (4, 2), (2, 4), (2, 2), (1, 1), (3, 1), (1, 3), (3, 3)
)  # fmt: skip

ENHANCERS = {
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "saturation": ImageEnhance.Color,
}


@dataclass(frozen=True)
class TrainTransform:
    r"""
    The published train-time transform: multi-scale crop, horizontal flip, colour jitter, grey.

    A clip has one crop, one flip, one jitter and one decision about grey, so that all change between frames is the
    video's own; the published code draws the jitter anew for every frame. What is drawn for one step does not depend
    on the settings of the others: with the same seed, a transform without flips has the same crops and colours.

    Args:
        size (`tuple[int, int]`):
            Height and width of the frames to return.
        horizontal_flip_prob (`float`, *optional*, defaults to 0.5):
            How often a clip is mirrored. Use 0 where classes tell left from right, as Something-Something's do.
        color_jitter_prob (`float`, *optional*, defaults to 0.8):
            How often the colours of a clip are changed.
        grayscale_prob (`float`, *optional*, defaults to 0.2):
            How often a clip becomes grey.
        scales (`tuple[float, ...]`, *optional*, defaults to `(1, 0.875, 0.75, 0.66)`):
            Sides of a crop as fractions of the frames' short side, in order. Height and width are drawn from them
            together, at most one place apart.
        brightness (`float`, *optional*, defaults to 0.4):
            Brightness is multiplied by a factor between `1 - brightness` and `1 + brightness`. 0 leaves it alone.
        contrast (`float`, *optional*, defaults to 0.4):
            The same for contrast.
        saturation (`float`, *optional*, defaults to 0.2):
            The same for saturation.
        hue (`float`, *optional*, defaults to 0.1):
            Hues are turned by at most this fraction of the colour circle, either way.

    Raises:
        `ValueError`: if an argument is out of its range.

    Example:

    ```python
    >>> import numpy as np
    >>> from ezclip.transforms import TrainTransform

    >>> frames = np.zeros((8, 256, 340, 3), dtype=np.uint8)
    >>> TrainTransform((224, 224))(frames, np.random.default_rng(0)).shape
    (8, 224, 224, 3)
    ```
    """

    size: tuple[int, int]
    horizontal_flip_prob: float = 0.5
    color_jitter_prob: float = 0.8
    grayscale_prob: float = 0.2
    scales: tuple[float, ...] = (1, 0.875, 0.75, 0.66)
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1

    def __post_init__(self):
        sides = self.size if isinstance(self.size, (tuple, list)) else ()
        if len(sides) != 2 or not all(isinstance(side, (int, np.integer)) and side >= 1 for side in sides):
            raise ValueError(
                f"`size` must be a height and a width, whole numbers of at least 1, got {self.size!r}; try (224, 224)."
            )
        for name in ("horizontal_flip_prob", "color_jitter_prob", "grayscale_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"`{name}` must be a probability between 0 and 1, got {getattr(self, name)}; 0 switches it off."
                )
        if len(self.scales) == 0 or not all(0 < scale <= 1 for scale in self.scales):
            raise ValueError(
                f"`scales` must be fractions of the short side above 0 and up to 1, got {self.scales}; (1,) leaves "
                "the size of the crops alone."
            )
        for name, most in (("brightness", 1), ("contrast", 1), ("saturation", 1), ("hue", 0.5)):
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(
                    f"`{name}` must be between 0 and {most}, got {getattr(self, name)}; 0 switches it off."
                )

    def __call__(self, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        r"""
        Args:
            frames (`np.ndarray` of shape `(T, H, W, 3)`):
                RGB frames of one clip, uint8. They are left as they are.
            rng (`np.random.Generator`):
                What is drawn, is drawn from here.

        Returns:
            `np.ndarray` of shape `(T, height, width, 3)`: RGB frames, uint8.

        Raises:
            `ValueError`: if `frames` has another shape or type.
        """
        if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or min(frames.shape) == 0:
            raise ValueError(
                f"`frames` must be RGB frames (T, H, W, 3) of type uint8, got {frames.shape} of type {frames.dtype}; "
                "`read_frames` gives such."
            )
        # Everything is drawn at every call, used or not, so that the settings leave each other's draws alone.
        pair, position, flip, jitter, grey = rng.random(5)
        rows, columns = self._crop(*frames.shape[1:3], pair, position)
        adjustments = self._draw_adjustments(rng)

        height, width = self.size
        transformed = np.empty((len(frames), height, width, 3), dtype=np.uint8)
        for i, frame in enumerate(frames[:, rows, columns]):
            image = Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR)
            if flip < self.horizontal_flip_prob:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            if jitter < self.color_jitter_prob:
                for name, change in adjustments:
                    image = _turn_hue(image, change) if name == "hue" else ENHANCERS[name](image).enhance(1 + change)
            if grey < self.grayscale_prob:
                image = image.convert("L").convert("RGB")
            transformed[i] = np.asarray(image)
        return transformed

    def _crop(self, height: int, width: int, pair: float, position: float) -> tuple[slice, slice]:
        """Rows and columns of a crop from frames of height x width; `pair` and `position` are drawn from [0, 1)."""
        sides = [max(1, int(scale * min(height, width))) for scale in self.scales]
        pairs = [(h, w) for i, h in enumerate(sides) for j, w in enumerate(sides) if abs(i - j) <= 1]
        crop_height, crop_width = pairs[int(pair * len(pairs))]
        left, top = POSITIONS[int(position * len(POSITIONS))]
        left, top = left * ((width - crop_width) // 4), top * ((height - crop_height) // 4)
        return slice(top, top + crop_height), slice(left, left + crop_width)

    def _draw_adjustments(self, rng: np.random.Generator) -> list[tuple[str, float]]:
        """What is done to the colours, in this order: a change of the factor 1, for the hue a part of the circle."""
        names = (*ENHANCERS, "hue")
        changes = [getattr(self, name) * draw for name, draw in zip(names, rng.uniform(-1, 1, len(names)))]
        return [(names[i], changes[i]) for i in rng.permutation(len(names)) if getattr(self, names[i]) > 0]


def _turn_hue(image: Image.Image, part: float) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    shift = int(part * 255)
    hue = hue.point([(level + shift) % 256 for level in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")
