"""Models and processors by name, from EZ-CLIP folders and from plain CLIP ones."""

from pathlib import Path

from transformers import AutoConfig, AutoTokenizer, CLIPConfig
from transformers.utils import logging

from .adapters_ezclip import is_prompt_or_adapter, resolve_base
from .configuration_ezclip import EZClipConfig, EZClipTextConfig, EZClipVisionConfig
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
    name_or_path: str | Path, tokenizer_name: str | Path | None = None, num_frames: int | None = None
) -> EZClipProcessor:
    """
    The processor of an EZ-CLIP folder; for plain CLIP one with the published pixels at CLIP's size.

    Args:
        name_or_path (`str` or `Path`):
            A folder, or a name on the Hub.
        tokenizer_name (`str` or `Path`, *optional*):
            A tokenizer to use instead; see [`load_tokenizer`].
        num_frames (`int`, *optional*):
            Frames of a video, if not those of the model.

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
        # CLIP's configuration has no frames.
        if num_frames is None:
            num_frames = getattr(config.vision_config, "num_frames", None)
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
) -> EZClipModel:
    """
    An [`EZClipModel`] from EZ-CLIP or plain CLIP weights, which knows from where: `save_pretrained(folder,
    trained_only=True)` saves what was trained alone.

    Args:
        name_or_path (`str` or `Path`):
            A folder, or a name on the Hub. Of trained weights alone, their base is loaded too.
        for_training (`bool`, *optional*, defaults to `False`):
            Whether prompts and adapters may be new. Fresh adapters change nothing; fresh temporal prompts do, so
            without training they are an error.
        vision_config (`dict`, *optional*), text_config (`dict`, *optional*):
            Fields of the towers' configurations to change.

    Raises:
        [`ModelError`]: if there is no such model, or its weights do not fit.
    """
    config = _read_config(name_or_path)
    if config.model_type != EZClipConfig.model_type:
        names = ("text_config", "vision_config", "projection_dim", "logit_scale_init_value")
        config = EZClipConfig(**{name: getattr(config, name) for name in names})
    try:
        config.vision_config = EZClipVisionConfig(**{**config.vision_config.to_dict(), **(vision_config or {})})
        config.text_config = EZClipTextConfig(**{**config.text_config.to_dict(), **(text_config or {})})
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
    if foreign := sorted(key for key in missing if not is_prompt_or_adapter(key)):
        raise ModelError(f"{name_or_path} lacks weights of CLIP, {foreign[:3]} and others; is it a CLIP model?")
    if not for_training and any("temporal_prompt" in key for key in missing):
        raise ModelError(
            f"{name_or_path} has no temporal prompts, and untrained ones spoil its predictions. Train them "
            "(--do_train), or leave them out (--temporal_prompt none)."
        )
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
    if config.fixed_num_frames and processor.num_frames != config.num_frames:
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
