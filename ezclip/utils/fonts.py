"""Prepare class names for plots: find fonts with their letters, shorten them, or use class numbers instead."""

import unicodedata
from functools import cache

from matplotlib import font_manager, ft2font

from ezclip.utils.messages import get_logger


logger = get_logger(__name__)

BASE_FAMILY = "DejaVu Sans"  # part of matplotlib
# Last Resort draws a box for every letter. Mathematical fonts have other symbols at the codes of letters.
USELESS_FAMILIES = ("Last Resort", "cm", "STIX")
RIGHT_TO_LEFT = ("R", "AL", "AN")

_reported_scripts: set[str] = set()


class Lettering:
    """
    The fonts and short forms of the class names of plots.

    A warning names each script that no installed font has, once per process. `families` are the font families to draw
    with, in order of preference.
    """

    def __init__(self, names: list[str]):
        self.names = [_visible(name) for name in names]
        self.families = [BASE_FAMILY]
        missing = {letter for name in self.names for letter in name} - _letters_of(font_manager.findfont(BASE_FAMILY))
        for family, path, index in _other_fonts() if missing else ():
            if not missing:
                break
            if missing & (letters := _letters_of(path, index)):
                self.families.append(family)
                missing -= letters
        self._missing = missing
        _warn_once_per_script(missing)

    def is_drawable(self, index: int) -> bool:
        """Return whether the installed fonts can draw a name."""
        name = self.names[index]
        if not name or self._missing & set(name):
            return False
        can_shape = hasattr(ft2font, "__libraqm_version__")
        return can_shape or not any(unicodedata.bidirectional(letter) in RIGHT_TO_LEFT for letter in name)

    def short(self, index: int, length: int = 28) -> str:
        """Return a name with at most `length` letters, or its number if no installed font can draw it."""
        if not self.is_drawable(index):
            return f"no. {index}"
        name = self.names[index]
        if len(name) <= length:
            return name
        # Keep the end too: two classes may differ only there.
        end = (length - 1) // 2
        return f"{name[: length - 1 - end].rstrip()}…{name[-end:].lstrip()}"


def _visible(name: str) -> str:
    """Return a name on one line, without invisible characters such as changes of direction."""
    letters = (" " if letter.isspace() else letter for letter in unicodedata.normalize("NFC", name))
    return " ".join("".join(letter for letter in letters if unicodedata.category(letter)[0] != "C").split())


def _warn_once_per_script(letters: set[str]):
    # Python has no table of scripts, but the name of a letter begins with its script: CJK, HANGUL, DEVANAGARI.
    scripts = {
        unicodedata.name(letter, "unknown").split()[0] if unicodedata.category(letter)[0] in "LM" else "of symbols"
        for letter in letters
    }
    if new := sorted(scripts - _reported_scripts):
        _reported_scripts.update(new)
        logger.warning(
            f"No installed font has the script {', '.join(new)}. Plots show numbers instead of such names. Install a "
            "font with this script, such as Noto Sans."
        )


@cache
def _letters_of(path: str, index: int = 0) -> frozenset[str]:
    font = ft2font.FT2Font(path, face_index=index) if index else ft2font.FT2Font(path)
    return frozenset(map(chr, font.get_charmap()))


def _other_fonts() -> list[tuple[str, str, int]]:
    """Return family, path and face index of a regular font of each installed family."""
    found = {}
    for entry in font_manager.fontManager.ttflist:
        is_regular = entry.style == "normal" and str(entry.weight) in ("400", "normal", "regular")
        if is_regular and not entry.name.startswith((*USELESS_FAMILIES, BASE_FAMILY)) and "Emoji" not in entry.name:
            found.setdefault(entry.name, (entry.name, entry.fname, getattr(entry, "index", 0)))
    return [found[name] for name in sorted(found)]
