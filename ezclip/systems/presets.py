"""Configurations of published systems."""

from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from transformers import CLIPConfig, CLIPTextConfig, CLIPVisionConfig, PretrainedConfig

from configuration_ezclip import PRESETS, EZClipConfig
from ezclip.errors import ModelError


# The fields in which systems differ
VISION_FIELDS = (
    *("temporal_prompt", "use_temporal_embedding", "use_temporal_adapter", "use_temporal_shift"),
    *("use_joint_attention", "use_adapter"),
)
TEXT_FIELDS = ("use_adapter",)


def make_config(
    saved: PretrainedConfig,
    name_or_path: str | Path,
    preset: str | None = None,
    vision_config: dict | None = None,
    text_config: dict | None = None,
    **fields,
) -> EZClipConfig:
    """
    Build the configuration for loading the weights of a plain CLIP or an EZ-CLIP model.

    Args:
        saved ([`PretrainedConfig`]):
            The saved configuration.
        name_or_path (`str` or `Path`):
            The source of `saved`, for messages.
        preset (`str`, *optional*):
            The system to turn plain CLIP into, by default `"ezclip"`. An [`EZClipConfig`] that adds nothing to CLIP is
            plain too, and keeps `num_frames`. Any other model must already be this system.
        vision_config (`dict`, *optional*), text_config (`dict`, *optional*), fields:
            Fields to change.

    Raises:
        [`ModelError`]: if the model is another system, or a field is invalid.
    """
    vision_config, text_config = vision_config or {}, text_config or {}
    try:
        if isinstance(saved, CLIPConfig):
            saved = _on_clip(saved, preset or "ezclip", saved.text_config, saved.vision_config)
        elif preset is not None and is_plain(saved):
            towers = (fields_of(CLIPTextConfig, saved.text_config), fields_of(CLIPVisionConfig, saved.vision_config))
            saved = _on_clip(saved, preset, towers[0], {**towers[1], "num_frames": saved.vision_config.num_frames})
        elif preset is not None:
            _check_preset(saved, name_or_path, preset, {*vision_config, *text_config, *fields})
        content = saved.to_dict()
        content["vision_config"] = {**content["vision_config"], **vision_config}
        content["text_config"] = {**content["text_config"], **text_config}
        return EZClipConfig(**{**content, **fields})
    except (ValueError, StrictDataclassError) as error:
        raise ModelError(" ".join(str(error).split())) from error


def is_plain(config: EZClipConfig) -> bool:
    """Return whether a model adds nothing to CLIP."""
    return not _differences(config, EZClipConfig.from_preset("clip"))


def default_num_frames(preset: str | None) -> int | None:
    """Return `num_frames` of a preset, or None if it names none."""
    return PRESETS[preset or "ezclip"].get("vision_config", {}).get("num_frames")


def fields_of(clip_class: type, config: PretrainedConfig) -> dict:
    """Return the fields of a tower's configuration that `clip_class` has too."""
    names = set(clip_class().to_dict()) - {"model_type", "attention_dropout"}
    return {name: value for name, value in config.to_dict().items() if name in names}


def _on_clip(saved: PretrainedConfig, preset: str, text_config, vision_config) -> EZClipConfig:
    own = {name: getattr(saved, name) for name in ("projection_dim", "logit_scale_init_value")}
    return EZClipConfig.from_preset(preset, text_config, vision_config, scope=getattr(saved, "scope", None), **own)


def _differences(config: EZClipConfig, wanted: EZClipConfig) -> list[str]:
    differences = [
        f"{tower}.{name}"
        for tower, names in (("vision_config", VISION_FIELDS), ("text_config", TEXT_FIELDS))
        for name in names
        if getattr(getattr(config, tower), name) != getattr(getattr(wanted, tower), name)
    ]
    return differences + ["temporal_head"] * (config.temporal_head != wanted.temporal_head)


def _check_preset(config: EZClipConfig, name_or_path: str | Path, preset: str, changed: set[str]):
    wanted = EZClipConfig.from_preset(preset)
    allowed = {*changed, "temporal_head"} if preset == "actionclip" else changed  # ActionCLIP has every head
    if "none" not in (config.vision_config.temporal_prompt, wanted.vision_config.temporal_prompt):
        allowed = {*allowed, "temporal_prompt"}  # both deep and shallow are EZ-CLIP
    differences = [field for field in _differences(config, wanted) if field.rpartition(".")[2] not in allowed]
    if differences:
        raise ModelError(
            f"{name_or_path} is not what --preset {preset} says: its configuration differs in "
            f"{', '.join(differences)}. Leave --preset out: it is for plain CLIP weights."
        )
