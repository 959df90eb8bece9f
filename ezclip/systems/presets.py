"""What a model becomes: its own configuration, or that of a published system on plain CLIP."""

from pathlib import Path

from transformers import CLIPConfig, CLIPTextConfig, CLIPVisionConfig, PretrainedConfig

from configuration_ezclip import PRESETS, EZClipConfig
from ezclip.errors import ModelError


# Fields that make one system another
VISION_FIELDS = ("temporal_prompt", "use_temporal_embedding", "use_temporal_adapter", "use_temporal_shift")
VISION_FIELDS += ("use_joint_attention", "use_adapter")
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
    The configuration in which saved weights are loaded.

    Args:
        saved ([`PretrainedConfig`]):
            Their own: of a plain CLIP, or one of ours.
        name_or_path (`str` or `Path`):
            Where they are, for messages.
        preset (`str`, *optional*):
            The system that plain CLIP becomes, by default `"ezclip"`. One of our models that adds nothing to CLIP is
            plain too, and keeps its number of frames; any other is to be that system already.
        vision_config (`dict`, *optional*), text_config (`dict`, *optional*), fields:
            Fields to change.

    Raises:
        [`ModelError`]: if the model is not the system, or the configuration makes no sense.
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
    except ValueError as error:
        raise ModelError(str(error)) from error


def is_plain(config: EZClipConfig) -> bool:
    """Whether a model adds nothing to CLIP."""
    return not _differences(config, EZClipConfig.from_preset("clip"))


def default_num_frames(preset: str | None) -> int | None:
    """Frames of a video that a preset names."""
    return PRESETS[preset or "ezclip"].get("vision_config", {}).get("num_frames")


def fields_of(clip_class: type, config: PretrainedConfig) -> dict:
    """The fields of a tower that CLIP, or another model of its kind, has too."""
    names = set(clip_class().to_dict()) - {"model_type", "attention_dropout"}
    return {name: value for name, value in config.to_dict().items() if name in names}


def _on_clip(saved: PretrainedConfig, preset: str, text_config, vision_config) -> EZClipConfig:
    own = {name: getattr(saved, name) for name in ("projection_dim", "logit_scale_init_value")}
    return EZClipConfig.from_preset(preset, text_config, vision_config, **own)


def _differences(config: EZClipConfig, wanted: EZClipConfig) -> list[str]:
    """The fields in which a model is another system."""
    differences = [
        f"{tower}.{name}"
        for tower, names in (("vision_config", VISION_FIELDS), ("text_config", TEXT_FIELDS))
        for name in names
        if getattr(getattr(config, tower), name) != getattr(getattr(wanted, tower), name)
    ]
    return differences + ["temporal_head"] * (config.temporal_head != wanted.temporal_head)


def _check_preset(config: EZClipConfig, name_or_path: str | Path, preset: str, given: set[str]):
    """That a model is the system it is taken for, but for the fields that are given beside its name."""
    wanted = EZClipConfig.from_preset(preset)
    allowed = {*given, "temporal_head"} if preset == "actionclip" else given  # which has all of the heads
    if "none" not in (config.vision_config.temporal_prompt, wanted.vision_config.temporal_prompt):
        allowed = {*allowed, "temporal_prompt"}  # deep and shallow are both EZ-CLIP's
    differences = [field for field in _differences(config, wanted) if field.rpartition(".")[2] not in allowed]
    if differences:
        raise ModelError(
            f"{name_or_path} is not what --preset {preset} says: its configuration differs in "
            f"{', '.join(differences)}. A preset says what plain CLIP weights become; leave it out."
        )
