"""What a configuration may ask for: a model of a size that exists, told before any memory is taken for it."""

import math
from numbers import Integral, Real


# Far beyond what was ever published, and far below what would take a machine down by itself.
LARGEST = {
    "hidden_size": 2**16,
    "intermediate_size": 2**18,
    "projection_dim": 2**16,
    "num_hidden_layers": 1000,
    "temporal_head_layers": 1000,
    "num_attention_heads": 2**12,
    "num_frames": 2**12,
    "num_channels": 2**10,
    "image_size": 2**14,
    "patch_size": 2**14,
    "vocab_size": 2**20,
    "max_position_embeddings": 2**20,
    "num_labels": 2**20,
    # of an image processor
    "shortest_edge": 2**14,
    "height": 2**14,
    "width": 2**14,
}
LARGEST_ADAPTER_RATIO = 64
# The largest CLIP there is, EVA-CLIP, has 18 billion.
MOST_WEIGHTS = 20 * 10**9


def check_sizes(values: dict):
    """
    That what is given of the fields of `LARGEST` are sizes.

    Raises:
        `ValueError`: if one is no whole number, or out of range.
    """
    for name, largest in LARGEST.items():
        if name not in values:
            continue
        value = values[name]
        if not isinstance(value, Integral) or isinstance(value, bool):
            raise ValueError(f"`{name}` must be a whole number, got {shown(value)}.")
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {shown(value)}.")
        if value > largest:
            raise ValueError(f"`{name}` must be at most {largest:,}, got {shown(value)}.")


def check_numbers(values: dict):
    """
    That every value is a finite number.

    Raises:
        `ValueError`: if one is not.
    """
    for name, value in values.items():
        if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
            raise ValueError(f"`{name}` must be a number, got {shown(value)}.")


def check_flags(values: dict):
    """
    That every value is `True` or `False`.

    Raises:
        `ValueError`: if one is not.
    """
    for name, value in values.items():
        if not isinstance(value, bool):
            raise ValueError(f"`{name}` must be true or false, got {shown(value)}.")


def check_tower(values: dict):
    """
    That heads divide the channels of a tower, and a patch fits into a frame.

    Raises:
        `ValueError`: if they do not.
    """
    if values["hidden_size"] % values["num_attention_heads"]:
        raise ValueError(
            f"`num_attention_heads` ({values['num_attention_heads']}) must divide `hidden_size` "
            f"({values['hidden_size']})."
        )
    if values.get("patch_size", 1) > values.get("image_size", 1):
        raise ValueError(
            f"`patch_size` ({values['patch_size']}) must be at most `image_size` ({values['image_size']}), of which a "
            "patch is a part."
        )


def count_tower_weights(config) -> int:
    """About how many weights a tower has: all that grow with more than one of its sizes."""
    width, frames = config.hidden_size, getattr(config, "num_frames", 0)
    block = 4 * width**2 + 2 * width * config.intermediate_size
    adapters = bool(config.use_adapter) + bool(getattr(config, "use_temporal_adapter", False))
    block += adapters * 2 * width * int(width * config.adapter_ratio)
    if getattr(config, "temporal_prompt", "none") == "deep":
        block += frames * width
    if hasattr(config, "vocab_size"):
        rows = config.vocab_size + config.max_position_embeddings
    else:
        rows = config.num_channels * config.patch_size**2 + (config.image_size // config.patch_size) ** 2 + frames
    return config.num_hidden_layers * block + rows * width


def check_number_of_weights(count: int):
    """
    That a model is none that no machine holds.

    Raises:
        `ValueError`: if it is.
    """
    if count > MOST_WEIGHTS:
        raise ValueError(
            f"The configuration asks for about {count:,} weights, and at most {MOST_WEIGHTS:,} are made. Look at its "
            "sizes: layers, channels, tokens and frames."
        )


def shown(value) -> str:
    """A value in few characters."""
    text = repr(value) if not isinstance(value, Integral) or abs(value) < 10**30 else "a number of over 30 digits"
    return text if len(text) <= 60 else f"{text[:60]}…"
