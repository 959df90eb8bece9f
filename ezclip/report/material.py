"""Data that the sections of a report share."""

from collections.abc import Callable
from dataclasses import dataclass

from ezclip.report.drawing import Picture
from ezclip.report.measures import class_accuracies, confusion_counts
from ezclip.report.page import Cell
from ezclip.report.reading import EvaluationRun
from ezclip.utils.fonts import Lettering


NO_LABELS = "predictions.jsonl has no labels, so this report has no accuracies."


@dataclass
class Material:
    """
    One run and the data that its sections share.

    Args:
        run ([`EvaluationRun`]):
            The run.
        suffix (`str`):
            Suffix of the names of its pictures.
        lettering ([`Lettering`]):
            Fonts and short forms of the class names.
        seed (`int`):
            Seed of the bootstrap and of the map.
        read (`Callable`, *optional*):
            Reads sample frames, with the arguments of [`read_frames`]; `None` for no sample frames.
    """

    run: EvaluationRun
    suffix: str
    lettering: Lettering
    seed: int
    read: Callable | None

    def __post_init__(self):
        self.counts = confusion_counts(self.run)
        self.classes = class_accuracies(self.counts)

    def draw(self, name: str, draw: Callable[..., bytes], *args, alt: str, caption: str = "") -> Picture:
        """Return the picture that a function of `drawing` makes of `args`."""
        return Picture(name + self.suffix, draw(self.lettering, *args), alt, caption)

    def name_of(self, index: int) -> Cell:
        """Return a cell with the name of a class."""
        return Cell(self.run.class_names[index], is_name=True)


def percent(fraction: float) -> str:
    """Return a fraction in percent."""
    return f"{100 * fraction:.1f} %"


def number(value: int) -> Cell:
    """Return a cell with a number."""
    return Cell(f"{value}", value)
