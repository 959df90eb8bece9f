"""Write the files that a push uploads: those that loading a model needs, and a card."""

import inspect
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from transformers import PretrainedConfig

from checkpoint_ezclip import TrainedCheckpoint, list_some
from configuration_ezclip import CLASS_BANK_NAME, TEXT_TOWERS, VISION_TOWERS, AdapterFields, EZClipConfig
from ezclip.errors import ModelError
from ezclip.hub.messages import masked_logs, without_token
from ezclip.hub.model_card import CardFacts, is_hub_name, is_untouched, make_card
from ezclip.systems.loading import check_fit, explain_processor, load_model
from ezclip.utils.messages import get_logger
from modeling_ezclip import EZClipModel
from pipeline_ezclip import ClassBank
from processing_ezclip import EZClipProcessor


logger = get_logger()

CARD_NAME = "README.md"
# Under these keys transformers writes the path of the loaded file. Nothing reads it.
ORIGIN_KEYS = ("_name_or_path", "name_or_path", "tokenizer_file", "special_tokens_map_file")
VOCABULARY_NAMES = ("tokenizer.json", "vocab.json")  # a token in them may look like a path
# Fields that `save_pretrained` writes beside those of a class
SAVED_FIELDS = ("auto_map", "processor_class", "quantization_config", "num_classes", "label_names")
# What a damaged or forged file in a model's folder raises
FILE_ERRORS = (OSError, ValueError, TypeError, AttributeError, LookupError, OverflowError, RecursionError)
BASE_HINT = "Give the name of that model on the Hub (--base_model_name_or_path), or push the whole model (--whole)."


def check_model_folder(folder: Path):
    """Raise a [`ModelError`] if a folder holds no model."""
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"--model must be the folder of a model, got {folder}, which has no config.json. Give a folder that "
            "training, `ezclip convert` or `save_pretrained` wrote."
        )


def stage(folder: str | Path, staged: str | Path, facts: CardFacts, trained_only: bool | None = None) -> Path:
    """
    Write the files that a push of a model uploads into an empty folder.

    Checkpoints, optimizer states, logs and predictions in the model's folder are left out.

    Args:
        folder (`str` or `Path`):
            A folder that `save_pretrained`, the conversion or a training wrote.
        staged (`str` or `Path`):
            The folder to write.
        facts ([`CardFacts`]):
            Facts for the card. Its `base_model` is the base of trained weights that are pushed or merged.
        trained_only (`bool`, *optional*):
            Whether to push trained weights alone instead of the whole model. Defaults to the form of the folder.

    Returns:
        `Path`: the written folder.

    Raises:
        [`ModelError`]: if the model cannot be loaded, here or by others; if a file names a path of this machine; or if
            `facts` are impossible.
        [`DataError`]: if a file of results cannot be read, or the results of `facts.eval_dataset` are missing.
    """
    folder, staged = Path(folder), Path(staged)
    facts.check()
    check_model_folder(folder)
    with masked_logs():  # a base is downloaded
        model, base, is_part = _save_model(folder, staged, trained_only, facts.base_model)
        processor = _save_processor(folder, staged, model)
    bank = _copy_bank(folder, staged, model)
    _remove_local_paths(staged)
    _remove_unknown_fields(staged, processor)
    if (card := _read_own_card(folder)) is not None:
        logger.warning(f"{folder / CARD_NAME} was written or changed by hand and is pushed as it is.")
    else:
        # Merging trained weights with a base in a local folder gives a whole model without a name for its base.
        facts = replace(facts, base_model=None if base is None or _is_folder(base) else base)
        card = str(make_card(folder, model, processor, facts, is_part, bank))
    (staged / CARD_NAME).write_text(card, encoding="utf-8")
    return staged


def check_base(base: str | Path | None, what: str, fix_hint: str = BASE_HINT):
    """Raise if others cannot load the base of trained weights. `what` names the weights in the message."""
    if base is None:
        raise ModelError(f"{what} does not say what it was trained from. {fix_hint}")
    if _is_folder(base):
        raise ModelError(f"{what} was trained from the folder {base}, which others do not have. {fix_hint}")


def _is_folder(base: str | Path) -> bool:
    return Path(base).is_dir() or not is_hub_name(str(base))


def _save_model(
    folder: Path, staged: Path, trained_only: bool | None, base: str | None
) -> tuple[EZClipModel, str | None, bool]:
    """Load a model and save it. Return the model, its base, and whether the saved weights need the base."""
    try:
        source = TrainedCheckpoint.find(folder)
    except FILE_ERRORS as error:
        raise _unusable(folder, "cannot be loaded", error) from error
    known = base if source is None else base or source.base
    if trained_only is None:
        trained_only = source is not None
    if trained_only:
        check_base(known, str(folder))
    elif source is None and base is not None and _is_folder(base):
        raise ModelError(
            f"--base_model_name_or_path must be a name on the Hub for a whole model, got {base}: it is for the card "
            "alone. Give the name of the model that training started from, or leave the option out."
        )
    model = _load(folder, load_model) if source is None else _load(folder, base_model_name_or_path=known)
    if trained_only and source is not None:
        # The saved weights decide what was trained; this configuration may freeze other ones.
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in source.trained)
    try:
        options = {"trained_only": True, "base_model_name_or_path": known} if trained_only else {}
        model.save_pretrained(staged, **options)
        written = TrainedCheckpoint.find(staged)
    except FILE_ERRORS as error:
        raise _unusable(folder, "cannot be saved for the push", error) from error
    if written is None:
        return model, known, False
    if source is not None:
        # Byte for byte the same file, so that a repeated push does not send it again
        shutil.copyfile(source.path, written.path)
    else:
        _load(staged)  # raises if training started from another base
    return model, known, True


def _load(folder: Path, load: Callable = EZClipModel.from_pretrained, **kwargs) -> EZClipModel:
    try:
        return load(folder, **kwargs)
    except ModelError:
        raise
    except FILE_ERRORS as error:
        raise _unusable(folder, "cannot be loaded", error) from error


def _unusable(folder: Path, what: str, error: Exception) -> ModelError:
    said = " ".join(str(error).split()) or type(error).__name__
    return ModelError(f"{folder} {what}: {without_token(said)}")


def _save_processor(folder: Path, staged: Path, model: EZClipModel) -> EZClipProcessor:
    try:
        processor = EZClipProcessor.from_pretrained(folder)
    except FILE_ERRORS as error:
        raise ModelError(
            f"{folder} has no processor ({without_token(explain_processor(error))}). Nobody can use the model "
            "without one. Save the processor there too (`EZClipProcessor.save_pretrained`), or run `ezclip convert` "
            "again with --tokenizer."
        ) from error
    check_fit(model, processor)
    processor.save_pretrained(staged)
    return processor


def _copy_bank(folder: Path, staged: Path, model: EZClipModel) -> ClassBank | None:
    if not (folder / CLASS_BANK_NAME).is_file():
        return None
    try:
        bank = ClassBank.from_pretrained(folder)
        bank.check_model(model)
    except FILE_ERRORS as error:
        raise _unusable(folder, f"cannot be pushed with its {CLASS_BANK_NAME}", error) from error
    shutil.copyfile(folder / CLASS_BANK_NAME, staged / CLASS_BANK_NAME)
    return bank


def _read_own_card(folder: Path) -> str | None:
    """Return the card in a folder if a person wrote or changed it."""
    path = folder / CARD_NAME
    if not path.is_file():
        return None
    try:
        content = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ModelError(
            f"{path} must be text in UTF-8, got {error.reason} at byte {error.start}. Save it in UTF-8, or remove it "
            "to get a generated card."
        ) from error
    return None if is_untouched(content) else content


def _remove_local_paths(staged: Path):
    """Remove the paths in `ORIGIN_KEYS` from the JSON files. Raise if another value is a path of this machine."""
    for path in sorted(staged.glob("*.json")):
        if path.name in VOCABULARY_NAMES:
            continue
        content = json.loads(path.read_text(encoding="utf-8"))
        kept = _without_local_paths(content, path.name)
        if kept != content:
            path.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _without_local_paths(value, file: str, name: str = ""):
    if isinstance(value, dict):
        return {
            key: _without_local_paths(part, file, f"{name}.{key}".lstrip("."))
            for key, part in value.items()
            if key not in ORIGIN_KEYS or not _is_local_path(part)
        }
    if isinstance(value, list):
        return [_without_local_paths(part, file, name) for part in value]
    if _is_local_path(value):
        raise ModelError(
            f"`{name}` in {file} must not be a path of this machine, got {value}. Remove it from {file} in the "
            "model's folder, or give a name that others can load."
        )
    return value


def _remove_unknown_fields(staged: Path, processor: EZClipProcessor):
    """Remove from the configurations what their classes do not know, and name it: it may be private."""
    image_processor = type(processor.image_processor)
    nested = {
        "config.json": (EZClipConfig, {"text_config": TEXT_TOWERS, "vision_config": VISION_TOWERS}),
        "processor_config.json": (EZClipProcessor, {"image_processor": image_processor}),
        "preprocessor_config.json": (image_processor, {}),
    }
    removed = []
    for name, (own_class, part_classes) in nested.items():
        path = staged / name
        if not path.is_file():
            continue
        content = json.loads(path.read_text(encoding="utf-8"))
        parts = [("", own_class, content)]
        for key, part_class in part_classes.items():
            part = content.get(key) or {}
            if isinstance(part_class, dict):  # the class of a tower depends on its family
                part_class = part_class[part.get("model_type", f"ezclip_{key.removesuffix('_config')}_model")]
            parts.append((f"{key}.", part_class, part))
        unknown = []
        for prefix, part_class, part in parts:
            for key in part.keys() - _known_fields(part_class):
                del part[key]
                unknown.append(f"{prefix}{key} of {name}")
        if unknown:
            path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            removed += sorted(unknown)
    if removed:
        logger.warning(without_token(f"Fields that no class knows are not pushed: {list_some(removed)}."))


def _known_fields(part_class: type) -> set[str]:
    """Return the fields of a configuration or processor class, and those that it writes."""
    declared = getattr(part_class, "valid_kwargs", part_class).__annotations__  # of an image processor
    fields = getattr(part_class, "__dataclass_fields__", declared)
    # The configuration of a tower may need timm for an example.
    written = (PretrainedConfig if issubclass(part_class, AdapterFields) else part_class)().to_dict()
    return {*inspect.signature(part_class).parameters, *fields, *written, *SAVED_FIELDS}


def _is_local_path(value) -> bool:
    """Return whether a value is an absolute path of this system or of Windows."""
    return isinstance(value, str) and re.match(r"(/|~/|file:|[A-Za-z]:[\\/])[^\s]", value) is not None
