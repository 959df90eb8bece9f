"""Names in pictures: short, in fonts that have their letters, or else by number."""

import unicodedata
from functools import cache, cached_property

from matplotlib import font_manager, ft2font


BASE_FAMILY = "DejaVu Sans"  # matplotlib brings it
# Boxes for every letter, and mathematical fonts that have others in the place of letters
USELESS_FAMILIES = ("Last Resort", "cm", "STIX")
RIGHT_TO_LEFT = ("R", "AL", "AN")


class Lettering:
    """
    How pictures write the names of classes.

    Args:
        names (`list[str]`):
            All of them.
    """

    def __init__(self, names: list[str]):
        self.names = [_visible(name) for name in names]

    @cached_property
    def families(self) -> list[str]:
        """Families of fonts, in the order in which letters are looked for."""
        return [BASE_FAMILY, *self._found[0]]

    @cached_property
    def _found(self) -> tuple[list[str], set[str]]:
        missing, families = {letter for name in self.names for letter in name} - _letters_of(_base_font()), []
        if missing:
            for family, path, index in _other_fonts():
                letters = _letters_of(path, index)
                if missing & letters:
                    families.append(family)
                    missing -= letters
                if not missing:
                    break
        return families, missing

    def is_drawable(self, index: int) -> bool:
        name, (_, missing) = self.names[index], self._found
        if not name or missing & set(name):
            return False
        can_shape = hasattr(ft2font, "__libraqm_version__")
        return can_shape or not any(unicodedata.bidirectional(letter) in RIGHT_TO_LEFT for letter in name)

    def short(self, index: int, length: int = 28) -> str:
        """The name of a class, with at most `length` of its letters; its number where no font here can draw it."""
        if not self.is_drawable(index):
            return f"no. {index}"
        name = self.names[index]
        if len(name) <= length:
            return name
        # The end too, which may be all that tells two classes apart
        end = (length - 1) // 2
        return f"{name[: length - 1 - end].rstrip()}…{name[-end:].lstrip()}"


def _visible(name: str) -> str:
    """A name on one line, without what has no shape, such as changes of direction."""
    letters = (" " if letter.isspace() else letter for letter in unicodedata.normalize("NFC", name))
    return " ".join("".join(letter for letter in letters if unicodedata.category(letter)[0] != "C").split())


def _base_font() -> str:
    return font_manager.findfont(BASE_FAMILY)


@cache
def _letters_of(path: str, index: int = 0) -> frozenset[str]:
    font = ft2font.FT2Font(path, face_index=index) if index else ft2font.FT2Font(path)
    return frozenset(map(chr, font.get_charmap()))


def _other_fonts() -> list[tuple[str, str, int]]:
    """A plain font of each family that is installed."""
    found = {}
    for entry in font_manager.fontManager.ttflist:
        plain = entry.style == "normal" and str(entry.weight) in ("400", "normal", "regular")
        if plain and not entry.name.startswith((*USELESS_FAMILIES, BASE_FAMILY)) and "Emoji" not in entry.name:
            found.setdefault(entry.name, (entry.name, entry.fname, getattr(entry, "index", 0)))
    return [found[name] for name in sorted(found)]
