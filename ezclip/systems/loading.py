"""Models and processors by name, from EZ-CLIP folders and from plain CLIP ones."""

import hashlib
import json
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoTokenizer, CLIPConfig, PretrainedConfig
from transformers.utils import logging

from checkpoint_ezclip import is_added_to_clip, list_some, resolve_base
from configuration_ezclip import EZClipConfig, EZClipVisionConfig
from ezclip.errors import ModelError, first_line
from ezclip.systems.bpe_tokenizer import load_bpe_tokenizer
from ezclip.systems.presets import default_num_frames, make_config
from modeling_ezclip import EZClipModel
from processing_ezclip import EZClipProcessor, default_image_processor


# Fields of a configuration that say where a model is from, and nothing of what it computes
ORIGIN_FIELDS = ("_name_or_path", "architectures", "auto_map", "base_model_name_or_path", "custom_pipelines", "dtype")
ORIGIN_FIELDS += ("transformers_version",)


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
            f"No tokenizer at {str(name_or_path)!r} ({first_line(error)}). Give a Hub name, a folder, or CLIP's "
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
    processor = None
    if config.model_type == EZClipConfig.model_type:
        try:
            processor = EZClipProcessor.from_pretrained(name_or_path)
        except (OSError, ValueError, TypeError) as error:
            if tokenizer_name is None:
                raise ModelError(
                    f"{name_or_path} has no processor ({explain_processor(error)}). Convert it with a tokenizer, or "
                    "give --tokenizer_name."
                ) from error
    if processor is None:
        image_processor = default_image_processor(config.vision_config.image_size)
        processor = EZClipProcessor(image_processor, load_tokenizer(tokenizer_name or name_or_path))
        if num_frames is None:  # CLIP's configuration has none
            num_frames = getattr(config.vision_config, "num_frames", default_num_frames(preset))
    elif tokenizer_name is not None:
        processor.tokenizer = load_tokenizer(tokenizer_name)
    limit = config.text_config.max_position_embeddings
    processor.tokenizer.model_max_length = min(processor.tokenizer.model_max_length, limit)
    if preset is not None and processor.sampling != (sampling := "tear" if preset == "tear" else "uniform"):
        # The frames of one system are not those of another.
        processor.sampling = sampling
        num_frames = num_frames or default_num_frames(preset) or EZClipVisionConfig().num_frames
    if num_frames is not None:
        if num_frames < 1:
            raise ModelError(f"--num_frames must be at least 1, got {num_frames}.")
        processor.num_frames = num_frames
    return processor


def explain_processor(error: Exception) -> str:
    """Why `EZClipProcessor.from_pretrained` failed, in a line: of a missing tokenizer transformers says it in five."""
    if "instantiate the backend tokenizer" in str(error):
        return "the files of its tokenizer are missing"
    return first_line(error)


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
            The published system that plain CLIP weights become, by default `"ezclip"`; see [`make_config`].
        fields:
            Fields of [`EZClipConfig`] to change.

    Raises:
        [`ModelError`]: if there is no such model, or its weights do not fit.
    """
    saved = _read_config(name_or_path)
    config = make_config(saved, name_or_path, preset, vision_config, text_config, **fields)
    is_plain = isinstance(saved, CLIPConfig)
    changed = bool(preset or vision_config or text_config or fields)
    verbosity = logging.get_verbosity()
    try:
        # What is missing and what does not fit is looked at below; the report would say it at length.
        logging.set_verbosity_error()
        model, info = EZClipModel.from_pretrained(
            name_or_path, config=config, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(f"{name_or_path} cannot be loaded: {error}") from error
    finally:
        logging.set_verbosity(verbosity)
    _check_weights(info, name_or_path, may_lack_added=is_plain or changed, may_have_added=changed)
    if not for_training:
        missing, unexpected = set(info["missing_keys"]), set(info["unexpected_keys"])
        _check_trained(model, saved, missing, unexpected, name_or_path)
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
            f"Give --num_frames {config.num_frames}, or set the processor's `num_frames` and save it again."
        )
    num_positions = model.config.text_config.max_position_embeddings
    if model.config.temporal_head == "transformer" and processor.num_frames > num_positions:
        raise ModelError(
            f"The processor samples {processor.num_frames} frames of a video, and the temporal head has positions for "
            f"{num_positions}. Give --num_frames {num_positions}, or fewer."
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


def flatten_config(config: PretrainedConfig) -> dict:
    """The fields of a model's configuration and of its towers, each by its own name, but for where it is from."""
    flat = {}
    for name, value in config.to_dict().items():
        if isinstance(value, dict) and name in config.sub_configs:
            flat |= {f"{name}.{field}": part for field, part in flatten_config(getattr(config, name)).items()}
        elif name not in ORIGIN_FIELDS:
            flat[name] = value
    return flat


def digest_model(model: EZClipModel) -> str:
    """What tells a model from one that was trained further, or computes something else, under the same name."""
    config = json.dumps(flatten_config(model.config), sort_keys=True, default=str)
    digest = hashlib.sha256(config.encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _check_weights(info: dict, name_or_path: str | Path, may_lack_added: bool, may_have_added: bool):
    """That a checkpoint has the weights of the model and no others, but for what may be added to CLIP."""
    misshapen = [
        f"{key} is {tuple(saved)} there and would be {tuple(wanted)}"
        for key, saved, wanted in sorted(info["mismatched_keys"])
    ]
    missing = sorted(key for key in info["missing_keys"] if not (may_lack_added and is_added_to_clip(key)))
    extra = sorted(
        key
        for key in info["unexpected_keys"]
        # Older CLIPs keep the positions themselves, which are no weights.
        if not (may_have_added and is_added_to_clip(key)) and not key.endswith("embeddings.position_ids")
    )
    problems = []
    if misshapen:
        problems.append(
            f"{name_or_path} does not fit the configuration asked for: {list_some(misshapen)}. Leave out the options "
            "that change it (--num_frames, --temporal_prompt)."
        )
    if missing:
        of_clip = "" if all(map(is_added_to_clip, missing)) else " of CLIP"
        problems.append(
            f"{name_or_path} lacks weights{of_clip}: {list_some(missing)}. Is it complete, and a CLIP model?"
        )
    if extra:
        problems.append(
            f"{name_or_path} has weights that its configuration has no place for: {list_some(extra)}. Is it the right "
            "config.json, and a CLIP model?"
        )
    if problems:
        raise ModelError("\n".join(problems))


def _check_trained(
    model: EZClipModel, saved: PretrainedConfig, missing: set[str], unexpected: set[str], name_or_path: str | Path
):
    """That nothing is new, or left out, that predictions rest on."""
    config = model.config.vision_config
    new = {
        "temporal prompts": any("temporal_prompt" in key for key in missing),
        f"temporal head ({model.config.temporal_head})": any("temporal_head" in key for key in missing),
    }
    for field, name in (("use_temporal_shift", "temporal shift"), ("use_joint_attention", "joint attention")):
        new[name] = getattr(config, field) and not getattr(saved.vision_config, field, False)
    if untrained := [name for name, is_new in new.items() if is_new]:
        raise ModelError(
            f"{name_or_path} was not trained with {' or '.join(untrained)}, which spoils its predictions. Train it "
            "(run_video_zeroshot.py --do_train), or take plain CLIP for what it is: with --preset clip in scripts "
            f"that have it, and in Python with ezclip.loading.load_model({str(name_or_path)!r}, preset='clip')"
            ".save_pretrained(folder)."
        )
    if left_out := sorted(key for key in unexpected if is_added_to_clip(key)):
        raise ModelError(
            f"{name_or_path} was trained with {left_out[0]} and {len(left_out) - 1} other weights that the "
            "configuration asked for has no place for. Leave out what changes it (--temporal_head, --temporal_prompt)."
        )


def _read_config(name_or_path: str | Path):
    try:
        config = AutoConfig.from_pretrained(name_or_path)
    except OSError as error:
        raise ModelError(f"No model at {str(name_or_path)!r} ({first_line(error)}).") from error
    except (ValueError, StrictDataclassError) as error:
        reason = " ".join(str(error).split()) if isinstance(error, StrictDataclassError) else first_line(error)
        raise ModelError(f"The config.json of {name_or_path} is not one of a model: {reason}") from error
    if config.model_type not in (EZClipConfig.model_type, CLIPConfig.model_type):
        raise ModelError(f"{name_or_path} is a model of type {config.model_type!r}; give an EZ-CLIP or a CLIP model.")
    return config
