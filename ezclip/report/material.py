"""What the sections of a report are made of."""

from collections.abc import Callable
from dataclasses import dataclass

from scipy.sparse import csr_array

from ezclip.report.drawing import Picture
from ezclip.report.measures import ClassAccuracy, class_accuracies, confusion_counts
from ezclip.report.page import Cell, Shown
from ezclip.report.reading import EvaluationRun
from ezclip.utils.fonts import Lettering


NO_LABELS = "predictions.jsonl gives no labels, so that nothing can be said of what is right."


@dataclass
class Material:
    """
    What the sections of a run are made of.

    Args:
        run ([`EvaluationRun`]):
            The run.
        suffix (`str`):
            Ends the names of its pictures.
        lettering ([`Lettering`]):
            Writes the names of classes in pictures.
        seed (`int`):
            Of everything random.
        read (`Callable`, *optional*):
            Reads sample frames in the way of [`read_frames`]; `None` where there are to be none.
    """

    run: EvaluationRun
    suffix: str
    lettering: Lettering
    seed: int
    read: Callable | None

    def __post_init__(self):
        self.counts: csr_array = confusion_counts(self.run)
        self.classes: list[ClassAccuracy] = class_accuracies(self.run, self.counts)

    def shown(self, name: str, content: bytes, alt: str, caption: str) -> Shown:
        """Return a picture with its caption."""
        return Shown(Picture(name + self.suffix, content, alt, caption))

    def name_of(self, index: int) -> Cell:
        """Return a cell with the name of a class."""
        return Cell(self.run.class_names[index], is_name=True)


def percent(fraction: float) -> str:
    """Return a fraction in percent."""
    return f"{100 * fraction:.1f} %"


def number(value: int) -> Cell:
    """Return a cell with a number."""
    return Cell(f"{value}", value)


def count_of(number: int, noun: str = "video") -> str:
    """Return a count of things in words."""
    return f"{number} {noun}" + ("" if number == 1 else "s")
