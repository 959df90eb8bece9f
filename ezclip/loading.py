"""Models and processors by name, from EZ-CLIP folders and from plain CLIP ones."""

import hashlib
from pathlib import Path

import torch
from transformers import AutoConfig, AutoTokenizer, CLIPConfig
from transformers.utils import logging

from .adapters_ezclip import is_added_to_clip, resolve_base
from .configuration_ezclip import PRESETS, EZClipConfig
from .errors import ModelError
from .modeling_ezclip import EZClipModel
from .processing_ezclip import EZClipProcessor, default_image_processor
from .tokenization import load_bpe_tokenizer


def load_tokenizer(name_or_path: str | Path):
    """
    A tokenizer by Hub name, folder, or OpenAI's `bpe_simple_vocab_16e6.txt(.gz)`.

    Raises:
        [`ModelError`]: if there is none.
    """
    try:
        if Path(name_or_path).is_file():
            return load_bpe_tokenizer(name_or_path)
        return AutoTokenizer.from_pretrained(name_or_path)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"No tokenizer at {str(name_or_path)!r} ({_first_line(error)}). Give a Hub name, a folder, or CLIP's "
            "bpe_simple_vocab_16e6.txt.gz."
        ) from error


def load_processor(
    name_or_path: str | Path,
    tokenizer_name: str | Path | None = None,
    num_frames: int | None = None,
    preset: str | None = None,
) -> EZClipProcessor:
    """
    The processor of a folder of ours; for plain CLIP one with the published pixels at CLIP's size.

    Args:
        name_or_path (`str` or `Path`):
            A folder, or a name on the Hub.
        tokenizer_name (`str` or `Path`, *optional*):
            A tokenizer to use instead; see [`load_tokenizer`].
        num_frames (`int`, *optional*):
            Frames of a video, if not those of the model.
        preset (`str`, *optional*):
            The published system that the model is, or that plain CLIP weights become; see
            [`EZClipConfig.from_preset`]. `"tear"` takes 16 frames by TEAR's rule.

    Raises:
        [`ModelError`]: if there is no model, or no tokenizer.
    """
    config = _read_config(name_or_path)
    if config.model_type == EZClipConfig.model_type and tokenizer_name is None:
        try:
            processor = EZClipProcessor.from_pretrained(name_or_path)
        except (OSError, ValueError, TypeError) as error:
            raise ModelError(
                f"{name_or_path} has no processor ({_first_line(error)}). Convert it with a tokenizer, or give "
                "--tokenizer_name."
            ) from error
    else:
        processor = EZClipProcessor(
            default_image_processor(config.vision_config.image_size),
            load_tokenizer(tokenizer_name if tokenizer_name is not None else name_or_path),
        )
        limit = config.text_config.max_position_embeddings
        processor.tokenizer.model_max_length = min(processor.tokenizer.model_max_length, limit)
        if num_frames is None:
            own = PRESETS[preset or "ezclip"].get("vision_config", {}).get("num_frames")
            num_frames = getattr(config.vision_config, "num_frames", own)  # CLIP's configuration has none
    if preset == "tear" and processor.sampling != "tear":
        processor.sampling = "tear"
        num_frames = num_frames or PRESETS["tear"]["vision_config"]["num_frames"]
    if num_frames is not None:
        if num_frames < 1:
            raise ModelError(f"--num_frames must be at least 1, got {num_frames}.")
        processor.num_frames = num_frames
    return processor


def load_model(
    name_or_path: str | Path,
    for_training: bool = False,
    vision_config: dict | None = None,
    text_config: dict | None = None,
    preset: str | None = None,
    **fields,
) -> EZClipModel:
    """
    An [`EZClipModel`] from weights of its own or of plain CLIP, which knows from where: `save_pretrained(folder,
    trained_only=True)` saves what was trained alone.

    Args:
        name_or_path (`str` or `Path`):
            A folder, or a name on the Hub. Of trained weights alone, their base is loaded too.
        for_training (`bool`, *optional*, defaults to `False`):
            Whether what is added to CLIP may be new. Fresh adapters change nothing; fresh temporal prompts and heads
            do, so without training they are an error.
        vision_config (`dict`, *optional*), text_config (`dict`, *optional*):
            Fields of the towers' configurations to change.
        preset (`str`, *optional*):
            The published system that plain CLIP weights become, by default `"ezclip"`; see
            [`EZClipConfig.from_preset`]. Other weights are to be that system already.
        fields:
            Fields of [`EZClipConfig`] to change.

    Raises:
        [`ModelError`]: if there is no such model, or its weights do not fit.
    """
    config = _read_config(name_or_path)
    is_plain = config.model_type != EZClipConfig.model_type
    try:
        if is_plain:
            names = ("text_config", "vision_config", "projection_dim", "logit_scale_init_value")
            own = {name: getattr(config, name) for name in names}
            config = EZClipConfig.from_preset(preset or "ezclip", **own)
        elif preset is not None:
            _check_preset(config, preset, name_or_path)
        content = config.to_dict()
        for tower, changes in (("vision_config", vision_config), ("text_config", text_config)):
            content[tower] = {**content[tower], **(changes or {})}
        config = EZClipConfig(**{**content, **fields})
    except ValueError as error:
        raise ModelError(str(error)) from error
    verbosity = logging.get_verbosity()
    try:
        # What is missing and what does not fit is looked at below; the report would say it at length.
        logging.set_verbosity_error()
        model, info = EZClipModel.from_pretrained(
            name_or_path, config=config, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"{name_or_path} cannot be loaded: {error}") from error
    finally:
        logging.set_verbosity(verbosity)
    if info["mismatched_keys"]:
        key, saved, wanted = sorted(info["mismatched_keys"])[0]
        raise ModelError(
            f"{name_or_path} does not fit the configuration asked for: {key} is {tuple(saved)} there and would be "
            f"{tuple(wanted)}. Leave out the options that change it (--num_frames, --temporal_prompt)."
        )
    missing = set(info["missing_keys"])
    if foreign := sorted(key for key in missing if not is_added_to_clip(key)):
        raise ModelError(f"{name_or_path} lacks weights of CLIP, {foreign[:3]} and others; is it a CLIP model?")
    if not for_training:
        _check_trained(model, missing, is_plain, name_or_path)
    if model.config.base_model_name_or_path is None:
        model.config.base_model_name_or_path = resolve_base(name_or_path)
    return model


def check_fit(model: EZClipModel, processor: EZClipProcessor):
    """
    That what a processor makes is what a model takes: frames, their size, tokens.

    Raises:
        [`ModelError`]: if it is not.
    """
    config = model.config.vision_config
    if model.config.fixed_num_frames and processor.num_frames != config.num_frames:
        raise ModelError(
            f"The processor samples {processor.num_frames} frames of a video, the model takes {config.num_frames}. "
            "Set the processor's `num_frames` and save it again."
        )
    crop_size = processor.image_processor.crop_size
    if (crop_size["height"], crop_size["width"]) != (config.image_size, config.image_size):
        raise ModelError(
            f"The processor crops frames to {crop_size['height']} x {crop_size['width']}, the model takes "
            f"{config.image_size} x {config.image_size}. Set its image processor's `crop_size` and save it again."
        )
    vocab_size = model.config.text_config.vocab_size
    if len(processor.tokenizer) != vocab_size:
        raise ModelError(
            f"The tokenizer has {len(processor.tokenizer)} tokens and the model {vocab_size}: it is not the model's, "
            "or its files are missing. Give the right one (--tokenizer_name)."
        )


def digest_weights(model: EZClipModel) -> str:
    """What tells a model from one that was trained further and saved in the same place."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _check_preset(config: EZClipConfig, preset: str, name_or_path: str | Path):
    """That a model is the published system it is taken for."""
    wanted = EZClipConfig.from_preset(preset)
    differences = [
        f"{tower}.{name}"
        for tower, names in (
            ("vision_config", ("use_adapter", "use_temporal_adapter", "use_temporal_shift", "use_joint_attention")),
            ("text_config", ("use_adapter",)),
        )
        for name in names
        if getattr(getattr(config, tower), name) != getattr(getattr(wanted, tower), name)
    ]
    has_prompts, wants_prompts = (c.vision_config.temporal_prompt != "none" for c in (config, wanted))
    differences += ["vision_config.temporal_prompt"] * (has_prompts != wants_prompts)
    # ActionCLIP has all of the heads.
    differences += ["temporal_head"] * (config.temporal_head != wanted.temporal_head and preset != "actionclip")
    if differences:
        raise ModelError(
            f"{name_or_path} is not what --preset {preset} says: its configuration differs in "
            f"{', '.join(differences)}. A preset says what plain CLIP weights become; leave it out."
        )


def _check_trained(model: EZClipModel, missing: set[str], is_plain: bool, name_or_path: str | Path):
    """That nothing is new that spoils predictions as long as it is not trained."""
    config = model.config.vision_config
    new = {
        "temporal prompts": any("temporal_prompt" in key for key in missing),
        f"temporal head ({model.config.temporal_head})": any("temporal_head" in key for key in missing),
        "temporal shift": is_plain and config.use_temporal_shift,
        "joint attention": is_plain and config.use_joint_attention,
    }
    if untrained := [name for name, is_new in new.items() if is_new]:
        raise ModelError(
            f"{name_or_path} was not trained with {' or '.join(untrained)}, which spoils its predictions. Train it "
            "(--do_train), or take plain CLIP for what it is (--preset clip)."
        )


def _read_config(name_or_path: str | Path):
    try:
        config = AutoConfig.from_pretrained(name_or_path)
    except (OSError, ValueError) as error:
        raise ModelError(f"No model at {str(name_or_path)!r} ({_first_line(error)}).") from error
    if config.model_type not in (EZClipConfig.model_type, CLIPConfig.model_type):
        raise ModelError(f"{name_or_path} is a model of type {config.model_type!r}; give an EZ-CLIP or a CLIP model.")
    return config


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
