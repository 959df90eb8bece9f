"""Random crops, flips and colours for training, the same in all frames of a clip."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance


# Positions of a crop, (left, top) in quarters of the free space: corners, edge centres, centre, quarter points
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
    The published training transform: multi-scale crop, horizontal flip, colour jitter, greyscale.

    All frames of a clip share one draw, so that every change between frames comes from the video. (The published code
    draws the jitter for each frame.) The draw of a step does not depend on the settings of the others: with the same
    seed, a transform without flips has the same crops and colours.

    Args:
        size (`tuple[int, int]`):
            Height and width of the frames to return.
        horizontal_flip_prob (`float`, *optional*, defaults to 0.5):
            Probability of mirroring a clip. Use 0 if classes tell left from right, as in Something-Something.
        color_jitter_prob (`float`, *optional*, defaults to 0.8):
            Probability of changing the colours of a clip.
        grayscale_prob (`float`, *optional*, defaults to 0.2):
            Probability of making a clip grey.
        scales (`tuple[float, ...]`, *optional*, defaults to `(1, 0.875, 0.75, 0.66)`):
            Sides of a crop as fractions of the short side of the frames. Height and width are neighbours in this
            tuple, or equal.
        brightness (`float`, *optional*, defaults to 0.4):
            Brightness is multiplied by a factor in `[1 - brightness, 1 + brightness]`. 0 keeps it.
        contrast (`float`, *optional*, defaults to 0.4):
            The same range for contrast.
        saturation (`float`, *optional*, defaults to 0.2):
            The same range for saturation.
        hue (`float`, *optional*, defaults to 0.1):
            Maximum rotation of hues in both directions, as a fraction of the colour circle.

    Raises:
        `ValueError`: if an argument is out of its range.

    Example:

    ```python
    >>> import numpy as np
    >>> from ezclip.data import TrainTransform

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
                f"`size` must be a height and a width, integers of at least 1, got {self.size!r}; try (224, 224)."
            )
        for name in ("horizontal_flip_prob", "color_jitter_prob", "grayscale_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"`{name}` must be a probability in [0, 1], got {getattr(self, name)}; 0 switches it off."
                )
        if len(self.scales) == 0 or not all(0 < scale <= 1 for scale in self.scales):
            raise ValueError(
                f"`scales` must be fractions of the short side in (0, 1], got {self.scales}; (1,) keeps all of it."
            )
        for name, highest in (("brightness", 1), ("contrast", 1), ("saturation", 1), ("hue", 0.5)):
            if not 0 <= getattr(self, name) <= highest:
                raise ValueError(f"`{name}` must be in [0, {highest}], got {getattr(self, name)}; 0 switches it off.")

    def __call__(self, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        r"""
        Transform the frames of a clip.

        Args:
            frames (`np.ndarray` of shape `(T, H, W, 3)`):
                RGB frames, uint8. They are not changed.
            rng (`np.random.Generator`):
                The source of all draws.

        Returns:
            `np.ndarray` of shape `(T, height, width, 3)`: RGB frames, uint8.

        Raises:
            `ValueError`: if `frames` has another shape or dtype.
        """
        if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or min(frames.shape) == 0:
            raise ValueError(
                f"`frames` must be RGB frames (T, H, W, 3) of dtype uint8, got {frames.shape} of {frames.dtype}; "
                "`read_frames` returns such."
            )
        transform_frame = self.draw(rng)
        return np.stack([transform_frame(frame) for frame in frames])

    def draw(self, rng: np.random.Generator) -> Callable[[np.ndarray], np.ndarray]:
        """Draw the transform of a clip: a function from each of its frames `(H, W, 3)` to `(height, width, 3)`."""
        # Draw everything at every call, used or not: the settings must not change each other's draws.
        pair, position, flip, jitter, grey = rng.random(5)
        adjustments = self._draw_adjustments(rng)
        height, width = self.size

        def transform_frame(frame: np.ndarray) -> np.ndarray:
            rows, columns = self._crop(frame.shape[0], frame.shape[1], pair, position)
            image = Image.fromarray(frame[rows, columns]).resize((width, height), Image.Resampling.BILINEAR)
            if flip < self.horizontal_flip_prob:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            if jitter < self.color_jitter_prob:
                for name, change in adjustments:
                    image = _rotate_hue(image, change) if name == "hue" else ENHANCERS[name](image).enhance(1 + change)
            if grey < self.grayscale_prob:
                image = image.convert("L").convert("RGB")
            return np.asarray(image)

        return transform_frame

    def _crop(self, height: int, width: int, pair: float, position: float) -> tuple[slice, slice]:
        """Return the rows and columns of a crop; `pair` and `position` are drawn from [0, 1)."""
        sides = [max(1, int(scale * min(height, width))) for scale in self.scales]
        pairs = [(h, w) for i, h in enumerate(sides) for j, w in enumerate(sides) if abs(i - j) <= 1]
        crop_height, crop_width = pairs[int(pair * len(pairs))]
        left, top = POSITIONS[int(position * len(POSITIONS))]
        left, top = left * ((width - crop_width) // 4), top * ((height - crop_height) // 4)
        return slice(top, top + crop_height), slice(left, left + crop_width)

    def _draw_adjustments(self, rng: np.random.Generator) -> list[tuple[str, float]]:
        """Return colour changes in random order: the factor minus 1, or for hue a fraction of the circle."""
        names = (*ENHANCERS, "hue")
        changes = [getattr(self, name) * draw for name, draw in zip(names, rng.uniform(-1, 1, len(names)))]
        return [(names[i], changes[i]) for i in rng.permutation(len(names)) if getattr(self, names[i]) > 0]


def _rotate_hue(image: Image.Image, fraction: float) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    shift = int(fraction * 255)
    hue = hue.point([(level + shift) % 256 for level in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")
