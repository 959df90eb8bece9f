"""Models, processors and tokenizers from checkpoints of EZ-CLIP and of plain dual encoders, such as CLIP."""

import math
from pathlib import Path
from typing import cast

import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    CLIPConfig,
    PretrainedConfig,
    PreTrainedModel,
    SiglipImageProcessorPil,
)
from transformers.utils import IMAGE_PROCESSOR_NAME, logging
from transformers.utils.hub import cached_file
from transformers.utils.import_utils import is_timm_available

from checkpoint_ezclip import (
    MAY_BE_ABSENT,
    check_folder,
    is_added_to_clip,
    list_some,
    naming_damage,
    resolve_base,
)
from configuration_ezclip import (
    BASE_MODELS,
    MODEL_TYPES,
    EZClipVisionConfig,
    check_model_type,
    check_sizes,
    describe_plain,
)
from ezclip.encoders import RIVALS, DualEncoder, as_encoder, check_trainable, read_processor
from ezclip.encoders.openvino_engine import is_export, load_export
from ezclip.errors import ModelError, first_line
from ezclip.systems.bpe_tokenizer import load_bpe_tokenizer
from ezclip.systems.citations import TOWER_NAMES, tower_family
from ezclip.systems.presets import default_num_frames, make_config
from ezclip.utils.messages import get_logger
from modeling_ezclip import EZClipModel, describe_cpu_kernels
from pipeline_ezclip import ZeroShotVideoClassificationPipeline
from processing_ezclip import (
    EZClipProcessor,
    default_image_processor,
    fits_vocabulary,
    max_text_length,
    text_padding_of,
)


logger = get_logger()

# Fields that name the origin of a model and do not change what it computes
ORIGIN_FIELDS = (
    *("_name_or_path", "architectures", "auto_map", "base_model_name_or_path", "custom_pipelines", "dtype"),
    *("scope", "transformers_version"),
)


def load_tokenizer(name_or_path: str | Path):
    """
    Load a tokenizer by Hub name, from a folder, or from OpenAI's `bpe_simple_vocab_16e6.txt(.gz)`.

    Raises:
        [`ModelError`]: if it cannot be loaded.
    """
    try:
        if Path(name_or_path).is_file():
            return load_bpe_tokenizer(name_or_path)
        check_folder(name_or_path)
        with naming_damage(name_or_path):
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
    Load the processor of an EZ-CLIP model or a plain dual encoder, and say which pixels the latter gets.

    A plain dual encoder keeps its own image processor, with its size, its crop or squash, its mean and deviation. A
    published system on plain CLIP has the published size and crop, scaled with the image size, and CLIP's mean and
    deviation; on other towers it keeps theirs.

    Args:
        name_or_path (`str` or `Path`):
            A folder, or a name on the Hub.
        tokenizer_name (`str` or `Path`, *optional*):
            A tokenizer to use instead; see [`load_tokenizer`].
        num_frames (`int`, *optional*):
            Frames of a video. Defaults to the number of the model.
        preset (`str`, *optional*):
            The published system of the model, or to turn a plain dual encoder into; see [`EZClipConfig.from_preset`].
            By default that stays plain. `"tear"` samples 16 frames by TEAR's rule.

    Raises:
        [`ModelError`]: if the model or the tokenizer cannot be loaded, or `num_frames` is below 1.
    """
    config = _read_config(name_or_path)
    if config.model_type in RIVALS:
        if preset is not None:
            check_trainable(name_or_path, config.model_type)
        processor = _read_rival_processor(name_or_path, config, tokenizer_name)
        return _set_num_frames(processor, num_frames)
    is_base = config.model_type in BASE_MODELS
    try:
        processor = EZClipProcessor.from_pretrained(name_or_path)
        if tokenizer_name is not None:
            processor.tokenizer = load_tokenizer(tokenizer_name)
    except (OSError, ValueError, TypeError) as error:
        if tokenizer_name is None and not is_base:
            raise ModelError(
                f"{name_or_path} has no processor ({explain_processor(error)}). Give --tokenizer_name, or run "
                "`ezclip convert` with --tokenizer."
            ) from error
        tokenizer = load_tokenizer(tokenizer_name or name_or_path)
        try:
            with naming_damage(name_or_path):
                image_processor = _load_image_processor(name_or_path, config)
                padding = text_padding_of(config.text_config.model_type)
                processor = EZClipProcessor(
                    image_processor, tokenizer, use_published_crop=not is_base, text_padding=padding
                )
        except (OSError, ValueError, ImportError) as error:
            raise ModelError(
                f"{name_or_path} has a broken image processor ({first_line(error)}). Correct its "
                "preprocessor_config.json, or remove it."
            ) from error
        if is_base:
            logger.warning_once(f"{name_or_path}: {processor.describe_pixels()}")
        else:
            processor.num_frames = config.vision_config.num_frames
    if num_frames is None and is_base:
        num_frames = default_num_frames(preset)
    of_clip = config.model_type == CLIPConfig.model_type or config.vision_config.model_type == "ezclip_vision_model"
    if preset not in (None, "clip") and of_clip and not processor.use_published_crop:
        own = processor.image_processor
        processor.image_processor = default_image_processor(config.vision_config.image_size)
        processor.image_processor.image_mean, processor.image_processor.image_std = own.image_mean, own.image_std
        processor.use_published_crop = True
        logger.warning_once(f"{name_or_path} as {preset}: {processor.describe_pixels()}")
    limit = max_text_length(config.text_config)
    own_limit = processor.tokenizer.model_max_length
    processor.tokenizer.model_max_length = own_limit if isinstance(own_limit, int) and own_limit < limit else limit
    if preset is not None and processor.sampling != (sampling := "tear" if preset == "tear" else "uniform"):
        # Another system samples other frames.
        processor.sampling = sampling
        num_frames = num_frames or default_num_frames(preset) or EZClipVisionConfig().num_frames
    return _set_num_frames(processor, num_frames)


def _set_num_frames(processor: EZClipProcessor, num_frames: int | None) -> EZClipProcessor:
    if num_frames is not None:
        if num_frames < 1:
            raise ModelError(f"--num_frames must be at least 1, got {num_frames}.")
        processor.num_frames = num_frames
    return processor


def _read_rival_processor(
    name_or_path: str | Path, config: PretrainedConfig, tokenizer_name: str | Path | None
) -> EZClipProcessor:
    tokenizer = load_tokenizer(tokenizer_name or name_or_path)
    try:
        with naming_damage(name_or_path):
            processor = read_processor(name_or_path, config, tokenizer)
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(
            f"{name_or_path} has a broken processor ({first_line(error)}). Copy its preprocessor_config.json again."
        ) from error
    logger.warning_once(f"{name_or_path} is {RIVALS[config.model_type].name}: {processor.describe_pixels()}")
    return processor


def _load_image_processor(name_or_path: str | Path, config: PretrainedConfig):
    """Load a checkpoint's image processor. Without one, return its family's or the published one at the image size."""
    try:
        return AutoImageProcessor.from_pretrained(name_or_path, backend="pil")
    except (OSError, ValueError):
        if cached_file(str(name_or_path), IMAGE_PROCESSOR_NAME, **MAY_BE_ABSENT) is not None:
            raise
        if config.model_type == "siglip2":
            side = math.isqrt(config.vision_config.num_patches) * config.vision_config.patch_size
        else:
            side = config.vision_config.image_size
        if config.vision_config.model_type.startswith("siglip"):
            return SiglipImageProcessorPil(size={"height": side, "width": side})
        processor = default_image_processor(side)
        if config.model_type in BASE_MODELS:
            processor.size = {"shortest_edge": side}
        return processor


def explain_processor(error: Exception) -> str:
    """Return why `EZClipProcessor.from_pretrained` failed, in one line. transformers writes five about a tokenizer."""
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
    Load an [`EZClipModel`] from the weights of EZ-CLIP or of a plain dual encoder (`BASE_MODELS`).

    The model stores its base, so that `save_pretrained(folder, trained_only=True)` can save the trained weights alone.

    Args:
        name_or_path (`str` or `Path`):
            A folder, or a name on the Hub. If it holds only trained weights, their base is loaded too.
        for_training (`bool`, *optional*, defaults to `False`):
            Whether the parts added to the towers may be newly initialised. New adapters change nothing. New temporal
            prompts and heads do, so without training they are an error.
        vision_config (`dict`, *optional*), text_config (`dict`, *optional*):
            Fields of the towers' configurations to change.
        preset (`str`, *optional*):
            The published system to turn a plain dual encoder into, see [`make_config`]. By default `"ezclip"` for
            training, and otherwise `"clip"`, which a line says: frames are averaged, and nothing is added.
        fields:
            Fields of [`EZClipConfig`] to change.

    Raises:
        [`ModelError`]: if there is no such model, or its weights do not fit.
    """
    if is_export(name_or_path):
        raise ModelError(
            f"{name_or_path} is an export for an engine. Give the model itself, or, where a command answers with an "
            "engine, --engine openvino."
        )
    saved = _read_config(name_or_path)
    check_trainable(name_or_path, saved.model_type)
    is_plain = saved.model_type in BASE_MODELS
    stays_plain = is_plain and preset is None and not for_training
    system = "clip" if stays_plain else preset
    config = make_config(saved, name_or_path, system, vision_config, text_config, **fields)
    changed = bool(preset or vision_config or text_config or fields)
    verbosity = logging.get_verbosity()
    try:
        # `_check_weights` reports missing and misshapen weights below, shorter than transformers does.
        logging.set_verbosity_error()
        model, info = EZClipModel.from_pretrained(
            name_or_path,
            config=config,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            # In 16 bits small updates round to nothing, and sums overflow.
            dtype=torch.float32 if for_training else "auto",
        )
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:  # it asks for a quantizer, say
        raise ModelError(f"{name_or_path} cannot be loaded: {error}") from error
    finally:
        logging.set_verbosity(verbosity)
    _check_weights(info, name_or_path, may_lack_added=is_plain or changed, may_have_added=changed)
    if not for_training:
        missing, unexpected = set(info["missing_keys"]), set(info["unexpected_keys"])
        _check_trained(model, saved, missing, unexpected, name_or_path)
    if stays_plain:
        logger.warning_once(describe_plain(str(name_or_path), saved.model_type))
    if model.config.base_model_name_or_path is None:
        model.config.base_model_name_or_path = resolve_base(name_or_path)
    return model


def load_encoder(
    name_or_path: str | Path,
    for_training: bool = False,
    preset: str | None = None,
    engine: str | None = None,
    **options,
) -> DualEncoder:
    """
    Load a dual encoder of videos and texts, in evaluation mode.

    EZ-CLIP and plain dual encoders become an [`EZClipModel`]. Other models (`RIVALS`) stay what they are, with the
    methods of a [`VideoTextEncoder`]. [`load_processor`] loads what belongs to either.

    Args:
        name_or_path (`str` or `Path`):
            A folder, or a name on the Hub.
        for_training (`bool`, *optional*, defaults to `False`), preset (`str`, *optional*), options:
            For an [`EZClipModel`], see [`load_model`].
        engine (`str`, *optional*):
            The engine of an export, `"openvino"`.

    Raises:
        [`ModelError`]: if there is no such model, its weights do not fit, a package that it needs is missing, or it
        does not take the options.

    Example:

    ```python
    >>> name = "microsoft/xclip-base-patch32"
    >>> encoder, processor = load_encoder(name), load_processor(name)
    >>> bank = ClassBank.build(encoder, processor, ["archery", "yoga"])
    >>> videos = encoder.encode_videos(processor(videos="clip.mp4", return_tensors="pt").pixel_values)
    >>> score_embeds(encoder, bank, videos)  # (1, 2)
    ```
    """
    config = _read_config(name_or_path)
    given = {name: value for name, value in options.items() if value}
    given |= given.pop("vision_config", {})
    given.pop("num_frames", None)  # the processor's
    if engine is not None:
        if for_training or preset is not None or given:
            raise ModelError(
                f"--engine {engine} runs an export as it is: leave out training, --preset and model options."
            )
        return cast(DualEncoder, load_export(name_or_path, engine))  # with the methods of one
    if config.model_type not in RIVALS or for_training or preset is not None or given:
        return load_model(name_or_path, for_training, preset=preset, **options).eval()
    try:
        with naming_damage(name_or_path):
            model, info = AutoModel.from_pretrained(str(name_or_path), output_loading_info=True)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise ModelError(f"{name_or_path} cannot be loaded: {error}") from error
    _check_weights(info, name_or_path, may_lack_added=False, may_have_added=False)
    return as_encoder(model).requires_grad_(False)


def load_classifier(
    name_or_path: str | Path,
    tokenizer_name: str | Path | None = None,
    num_frames: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
    engine: str | None = None,
) -> ZeroShotVideoClassificationPipeline:
    """
    Load a model and its processor as a pipeline, on a device that this machine has.

    Args:
        name_or_path (`str` or `Path`), tokenizer_name (`str` or `Path`, *optional*), num_frames (`int`, *optional*):
            See [`load_processor`].
        device (`str`, *optional*):
            The device. Defaults to a GPU if there is one.
        dtype (`str`, *optional*):
            Name of a dtype of torch. Defaults to that of the stored weights.
        engine (`str`, *optional*):
            The engine of an export, see [`load_encoder`]. It has its own dtype and runs on the CPU.

    Raises:
        [`ModelError`]: if they cannot be loaded or do not fit, or the device cannot be used.
    """
    if engine is not None:
        if device not in (None, "cpu") or dtype is not None:
            raise ModelError(f"--engine {engine} runs on the CPU in its own dtype: leave --device and --dtype out.")
        device = "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"--device {device} cannot be used ({first_line(error)}).") from error
    processor, model = (
        load_processor(name_or_path, tokenizer_name, num_frames),
        load_encoder(name_or_path, engine=engine),
    )
    check_fit(model, processor)
    if dtype is not None:
        model = model.to(getattr(torch, dtype))
    classifier = ZeroShotVideoClassificationPipeline(model=model, processor=processor, device=device)
    tell_kernels(classifier.model, classifier.device)
    return classifier


def tell_kernels(model: PreTrainedModel, device: torch.device, autocast: torch.dtype | None = None):
    """Say once which kernels a model computes with on a CPU, in its own dtype or that of the autocast."""
    dtype = autocast or model.dtype
    if isinstance(model, EZClipModel) and device.type == "cpu" and dtype in (torch.float32, torch.bfloat16):
        logger.warning_once(describe_cpu_kernels(dtype, autocast is not None))


def check_fit(model: DualEncoder, processor: EZClipProcessor):
    """
    Raise if a processor does not fit a model.

    Raises:
        [`ModelError`]: if the number of frames, their size or the vocabulary differ.
    """
    if isinstance(model, EZClipModel):
        config = model.config.vision_config
        num_frames = config.num_frames if model.config.fixed_num_frames else None
        takes_any_size = config.model_type == "siglip2_vision_model"  # of whole patches
        image_size = None if takes_any_size else (config.image_size, config.image_size)
        num_positions = model.config.text_config.max_position_embeddings
        if model.config.temporal_head == "transformer" and processor.num_frames > num_positions:
            raise ModelError(
                f"The processor samples {processor.num_frames} frames of a video, and the temporal head has positions "
                f"for {num_positions}. Use --num_frames {num_positions} or fewer."
            )
    else:
        num_frames, image_size = model.num_frames, model.image_size
    if num_frames is not None and processor.num_frames != num_frames:
        raise ModelError(
            f"The processor samples {processor.num_frames} frames of a video, the model takes {num_frames}. "
            f"Use --num_frames {num_frames}, or set `processor.num_frames` and save the processor again."
        )
    height, width = processor.crop_size
    if image_size is not None and (height, width) != image_size:
        raise ModelError(
            f"The processor crops frames to {height} x {width}, the model takes {image_size[0]} x {image_size[1]}. "
            "Set `processor.image_processor.crop_size` and save the processor again."
        )
    vocab_size = model.config.text_config.vocab_size
    if not fits_vocabulary(processor.tokenizer, model.config.text_config):
        raise ModelError(
            f"The tokenizer has {len(processor.tokenizer)} tokens and the model {vocab_size}: it is of another model, "
            "or its files are missing. Give the right one as --tokenizer_name."
        )


def flatten_config(config: PretrainedConfig) -> dict:
    """Return all fields of a configuration as one dictionary (`vision_config.num_frames`), without its origin."""
    flat = {}
    for name, value in config.to_dict().items():
        if isinstance(value, dict) and name in config.sub_configs:
            flat |= {f"{name}.{field}": part for field, part in flatten_config(getattr(config, name)).items()}
        elif name not in ORIGIN_FIELDS:
            flat[name] = value
    return flat


def _check_weights(info: dict, name_or_path: str | Path, may_lack_added: bool, may_have_added: bool):
    """Raise if a checkpoint lacks weights of the model or has others, except for parts added to CLIP."""
    misshapen = [
        f"{key} is {tuple(saved)} there and would be {tuple(wanted)}"
        for key, saved, wanted in sorted(info["mismatched_keys"])
    ]
    missing = sorted(key for key in info["missing_keys"] if not (may_lack_added and is_added_to_clip(key)))
    extra = sorted(
        key
        for key in info["unexpected_keys"]
        # Older CLIP checkpoints also store the position ids.
        if not (may_have_added and is_added_to_clip(key)) and not key.endswith("embeddings.position_ids")
    )
    problems = []
    if misshapen:
        problems.append(
            f"{name_or_path} does not fit the configuration asked for: {list_some(misshapen)}. Leave out the options "
            "that change shapes (--num_frames, --temporal_prompt)."
        )
    if missing:
        of_clip = "" if all(map(is_added_to_clip, missing)) else " of CLIP"
        problems.append(
            f"{name_or_path} lacks weights{of_clip}: {list_some(missing)}. Copy it again if it is incomplete."
        )
    if extra:
        problems.append(
            f"{name_or_path} has weights that its configuration has no place for: {list_some(extra)}. Check that its "
            "config.json is the right one."
        )
    if problems:
        raise ModelError("\n".join(problems))


def _check_trained(
    model: EZClipModel, saved: PretrainedConfig, missing: set[str], unexpected: set[str], name_or_path: str | Path
):
    """Raise if a part that changes predictions is newly initialised, or trained weights are left out."""
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
            f"(`ezclip run --do_train`), or leave these options out: plain {TOWER_NAMES[tower_family(model.config)]} "
            "needs no training."
        )
    if left_out := sorted(key for key in unexpected if is_added_to_clip(key)):
        raise ModelError(
            f"{name_or_path} was trained with {left_out[0]} and {len(left_out) - 1} other weights that the "
            "configuration asked for has no place for. Leave out the options that remove them (--temporal_head, "
            "--temporal_prompt)."
        )


def _read_config(name_or_path: str | Path):
    try:
        check_folder(name_or_path)
    except OSError as error:
        raise ModelError(str(error)) from error
    try:
        with naming_damage(name_or_path):
            saved, _ = PretrainedConfig.get_config_dict(name_or_path)
            check_model_type(saved, name_or_path, (*MODEL_TYPES, *RIVALS))
            if saved.get("model_type") in ("pe_video", "pe_audio_video") and not is_timm_available():
                raise ModelError(f"{name_or_path} needs timm for its frames: `pip install timm`.")
            for fields in (saved, saved.get("text_config"), saved.get("vision_config")):
                if fields and "num_labels" in fields:  # transformers makes a `dict` of so many entries
                    check_sizes({"num_labels": fields["num_labels"]})
            return AutoConfig.from_pretrained(name_or_path)
    except ModelError:
        raise
    except OSError as error:
        raise ModelError(f"No model at {str(name_or_path)!r} ({first_line(error)}).") from error
    except ValueError as error:
        raise ModelError(f"The config.json of {name_or_path} is not one of a model: {first_line(error)}") from error
