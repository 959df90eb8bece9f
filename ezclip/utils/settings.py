"""Settings that results depend on: compare saved with current ones, and say in words what changed."""

import json
from pathlib import Path

from ezclip.errors import DataError
from ezclip.utils.messages import get_logger


logger = get_logger(__name__)

MAX_NAMED = 10  # changes in a message, and values of a list
MAX_LENGTH = 120  # characters of a value in a message

# Settings that are digests, or lists or dictionaries of digests, and what they stand for. `{of}` is the setting that
# holds them, such as "videos of train". No message shows a digest.
DIGESTS = {
    "weights": "the weights of the model",
    "tokenizer": "the tokenizer",
    "files": "the list of files of the {of}",
    "names and labels": "the names or labels of the {of}",
    "content": "the content of {count}{of}",
    "descriptions": "the descriptions of {count}classes",
    "texts": "the texts of {count}classes",
}
NAMES = {"class_names": "labels"}


def as_json(settings: dict) -> dict:
    """Return settings as JSON reads them back: tuples become lists, keys become strings."""
    return json.loads(json.dumps(settings))


def find_differences(before: dict, now: dict, of: str = "") -> dict[str, str]:
    """
    Say in words what differs between two settings.

    Args:
        before (`dict`), now (`dict`):
            Saved and current settings, both as JSON returns them.
        of (`str`, *optional*):
            The name of the setting that holds these.

    Returns:
        `dict[str, str]`: for the full name of each setting that differs, such as `image_processor.size`, the words.
    """
    found = {}
    for key in {**before, **now}:
        old, new = before.get(key), now.get(key)
        if old == new:
            continue
        name = f"{of}.{key}".lstrip(".")
        if key in DIGESTS:
            found[name] = _name_digests(key, of, old, new)
        elif isinstance(old, dict) and isinstance(new, dict):
            found |= find_differences(old, new, name)
        else:
            words = NAMES.get(key) or (f"{key} of the {of}" if of.startswith(("videos of", "texts of")) else name)
            found[name] = f"{words}: {_compare(old, new)}"
    # Other videos have another content, too.
    for cause, consequence in (("number", "names and labels"), ("names and labels", "content")):
        if f"{of}.{cause}" in found or f"{of}.number" in found:
            found.pop(f"{of}.{consequence}", None)
    return found


def _name_digests(key: str, of: str, before, now) -> str:
    count, names = "", ""
    if isinstance(before or now, dict) and not isinstance(now or before, str):
        before, now = before or {}, now or {}
        changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        count, names = f"{len(changed)} ", f" ({_list(changed)})"
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        count = f"{sum(a != b for a, b in zip(before, now))} "
    words = DIGESTS[key].format(of=of, count=count) + names
    return words.replace(" 1 classes", " 1 class").replace(" 1 videos", " 1 video")


def _compare(before, now) -> str:
    """Return two values, or what is new and what is gone in a long list of names."""
    are_names = all(isinstance(v, list) and all(isinstance(item, str) for item in v) for v in (before, now))
    if not are_names or len(before) + len(now) <= MAX_NAMED:
        return f"{_as_text(before)} → {_as_text(now)}"
    new, gone = ([item for item in a if item not in set(b)] for a, b in ((now, before), (before, now)))
    parts = [f"{len(items)} {what} ({_list(items)})" for items, what in ((new, "new"), (gone, "gone")) if items]
    return " and ".join(parts) or "in another order"


def _as_text(value) -> str:
    if value is None or value == []:
        return "none"
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return _list(value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MAX_LENGTH else f"{text[:MAX_LENGTH]}…"


def _list(names: list[str]) -> str:
    shown = [json.dumps(name, ensure_ascii=False) if "," in name else name for name in names[:MAX_NAMED]]
    return ", ".join([*shown, "…"] if len(names) > MAX_NAMED else shown)


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
        [`DataError`]: says in words what differs.
    """
    changes = find_differences(saved, settings)
    for name in rounding_only:
        if text := changes.pop(name, None):
            logger.warning(f"{path} was made with {text}. Resuming anyway; results will not be bit-identical.")
    if changes:
        listed = "; ".join(list(changes.values())[:MAX_NAMED])
        rest = f"; and {len(changes) - MAX_NAMED} more" if len(changes) > MAX_NAMED else ""
        raise DataError(
            f"{path} was made with other settings. Changed: {listed}{rest}. Restore them, give --overwrite_output_dir "
            "to start anew, or give another --output_dir."
        )
