"""Configurations of published systems."""

from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from transformers import PretrainedConfig

from configuration_ezclip import BASE_MODELS, PRESETS, EZClipConfig, TemporalFields
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
    Build the configuration for loading the weights of a plain dual encoder, such as CLIP, or an EZ-CLIP model.

    Args:
        saved ([`PretrainedConfig`]):
            The saved configuration.
        name_or_path (`str` or `Path`):
            The source of `saved`, for messages.
        preset (`str`, *optional*):
            The system to turn a plain dual encoder into, by default `"ezclip"`. An [`EZClipConfig`] that adds nothing
            to its towers is plain too, and keeps `num_frames`. Any other model must already be this system.
        vision_config (`dict`, *optional*), text_config (`dict`, *optional*), fields:
            Fields to change.

    Raises:
        [`ModelError`]: if the model is another system, or a field is invalid.
    """
    vision_config, text_config = vision_config or {}, text_config or {}
    try:
        if saved.model_type in BASE_MODELS:
            saved = _on_base(saved, preset or "ezclip", saved.text_config, saved.vision_config)
        elif preset is not None and is_plain(saved):
            text, vision = _base_fields(saved.text_config), _base_fields(saved.vision_config)
            saved = _on_base(saved, preset, text, {**vision, "num_frames": saved.vision_config.num_frames})
        elif preset is not None:
            _check_preset(saved, name_or_path, preset, {*vision_config, *text_config, *fields})
        content = saved.to_dict()
        content["vision_config"] = {**content["vision_config"], **vision_config}
        content["text_config"] = {**content["text_config"], **text_config}
        return EZClipConfig(**{**content, **fields})
    except (ValueError, StrictDataclassError) as error:
        raise ModelError(" ".join(str(error).split())) from error


def is_plain(config: EZClipConfig) -> bool:
    """Return whether a model adds nothing to its towers."""
    return not _differences(config, EZClipConfig.from_preset("clip"))


def default_num_frames(preset: str | None) -> int | None:
    """Return `num_frames` of a preset, or None if it names none."""
    return PRESETS[preset or "ezclip"].get("vision_config", {}).get("num_frames")


def fields_of(clip_class: type, config: PretrainedConfig) -> dict:
    """Return the fields of a tower's configuration that `clip_class` has too."""
    names = set(clip_class().to_dict()) - {"model_type", "attention_dropout"}
    return {name: value for name, value in config.to_dict().items() if name in names}


def _base_fields(config: PretrainedConfig) -> dict:
    """Return the fields of a tower's configuration that were not added by EZ-CLIP."""
    added = {*TemporalFields.__dataclass_fields__}
    fields = {name: value for name, value in config.to_dict().items() if name not in added}
    if config.model_type.startswith("ezclip"):
        del fields["model_type"]
    return fields


def _on_base(saved: PretrainedConfig, preset: str, text_config, vision_config) -> EZClipConfig:
    names = ("projection_dim", "logit_scale_init_value", "scope", "function_to_apply")
    own = {name: getattr(saved, name) for name in names if hasattr(saved, name)}
    return EZClipConfig.from_preset(preset, text_config, vision_config, **own)


def _differences(config: EZClipConfig, wanted: EZClipConfig) -> list[str]:
    differences = [
        f"{tower}.{name}"
        for tower, names in (("vision_config", VISION_FIELDS), ("text_config", TEXT_FIELDS))
        for name in names
        if getattr(getattr(config, tower), name) != getattr(getattr(wanted, tower), name)
    ]
    return differences + ["temporal_head"] * (config.temporal_head != wanted.temporal_head)


def _check_preset(config: EZClipConfig, name_or_path: str | Path, preset: str, changed: set[str]):
    vision_type = config.vision_config.model_type
    tower = {} if vision_type.startswith("ezclip") else {"model_type": vision_type}
    wanted = EZClipConfig.from_preset(preset, vision_config=tower)
    allowed = {*changed, "temporal_head"} if preset == "actionclip" else changed  # ActionCLIP has every head
    if "none" not in (config.vision_config.temporal_prompt, wanted.vision_config.temporal_prompt):
        allowed = {*allowed, "temporal_prompt"}  # both deep and shallow are EZ-CLIP
    differences = [field for field in _differences(config, wanted) if field.rpartition(".")[2] not in allowed]
    if differences:
        raise ModelError(
            f"{name_or_path} is not what --preset {preset} says: its configuration differs in "
            f"{', '.join(differences)}. Leave --preset out: it is for weights of plain dual encoders."
        )
