"""Settings that results depend on: compare saved with current ones, and say in words what changed."""

import json
from pathlib import Path

from ezclip.errors import DataError
from ezclip.utils.messages import get_logger


logger = get_logger(__name__)

MAX_NAMED = 10  # differences in a message
MAX_LENGTH = 120  # characters of a value in a message


def as_json(settings: dict) -> dict:
    """Return settings as JSON reads them back: tuples become lists, keys become strings."""
    return json.loads(json.dumps(settings))


def find_differences(before, now, name: str = "") -> list[tuple[str, str, str]]:
    """Return the name of each value that differs (`image_processor.size`), and both values as short JSON."""
    if before == now:
        return []
    if isinstance(before, dict) and isinstance(now, dict):
        pairs = [(f"{name}.{key}".lstrip("."), before.get(key), now.get(key)) for key in {**before, **now}]
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = [(f"{name}[{index}]", *values) for index, values in enumerate(zip(before, now))]
    else:
        texts = (json.dumps(value, ensure_ascii=False) for value in (before, now))
        return [(name, *(text if len(text) <= MAX_LENGTH else f"{text[:MAX_LENGTH]}…" for text in texts))]
    return [difference for place, *values in pairs for difference in find_differences(*values, place)]


def check_unchanged(path: Path, saved: dict, settings: dict, rounding_only: tuple[str, ...] = ()):
    """
    Raise if the settings of a result differ from the current ones.

    Args:
        path (`Path`):
            File or folder of the result, for messages.
        saved (`dict`), settings (`dict`):
            Saved and current settings, both as JSON returns them.
        rounding_only (`tuple[str, ...]`, *optional*):
            Settings that change only rounding and dropout masks: a difference is a warning.

    Raises:
        [`DataError`]: names the settings that differ.
    """
    differences = find_differences(saved, settings)
    texts = {name: f"{name} {before}, now it is {now}" for name, before, now in differences}
    for name in rounding_only:
        if text := texts.pop(name, None):
            logger.warning(f"{path} was made with {text}. Resuming anyway; results will not be bit-identical.")
    if texts:
        listed = "; ".join(list(texts.values())[:MAX_NAMED])
        rest = f"; and {len(texts) - MAX_NAMED} more" if len(texts) > MAX_NAMED else ""
        raise DataError(f"{path} was made with {listed}{rest}. Restore it, or start in another --output_dir.")
