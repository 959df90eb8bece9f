"""What a push to the Hub consists of: what loading a model needs, and a card; nothing else of its folder."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

from transformers.utils import logging

from checkpoint_ezclip import TrainedCheckpoint
from configuration_ezclip import CLASS_BANK_NAME
from ezclip.errors import ModelError
from ezclip.hub.model_card import CardFacts, is_hub_name, is_untouched, make_card
from ezclip.systems.loading import check_fit, explain_processor, load_model
from modeling_ezclip import EZClipModel
from pipeline_ezclip import ClassBank
from processing_ezclip import EZClipProcessor


logger = logging.get_logger("ezclip")

CARD_NAME = "README.md"
# Where something was loaded from, which transformers writes and nothing reads
PROVENANCE = ("_name_or_path", "name_or_path", "tokenizer_file", "special_tokens_map_file")
TOKENS = ("tokenizer.json", "vocab.json")  # in which a text with a slash is one of them
WHOLE_OR_NAME = (
    "Give the name of that model on the Hub (--base_model_name_or_path), or push the whole model (--whole)."
)


def stage(folder: str | Path, staged: str | Path, facts: CardFacts, trained_only: bool | None = None) -> Path:
    """
    Write what would be pushed of a model into an empty folder.

    Checkpoints, optimizer states, logs and predictions in the model's folder are not among it.

    Args:
        folder (`str` or `Path`):
            What `save_pretrained`, the conversion or a training has written.
        staged (`str` or `Path`):
            The folder to write.
        facts ([`CardFacts`]):
            What the card says besides; its `base_model` is the base, where trained weights alone are pushed or merged.
        trained_only (`bool`, *optional*):
            Whether trained weights alone are pushed, and not the whole model. By default as they were saved.

    Returns:
        `Path`: the written folder.

    Raises:
        [`ModelError`]: if the model cannot be loaded, here or by others; if a file names a path of this machine; or if
            `facts` cannot be true.
        [`DataError`]: if a file of results cannot be read, or there is none of the data set that `facts` names.
    """
    folder, staged = Path(folder), Path(staged)
    facts.check()
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder} is no folder with a model: it has no config.json. Give one that training, conversion or "
            "`save_pretrained` has written."
        )
    model, base, is_part = _save_model(folder, staged, trained_only, facts.base_model)
    processor = _save_processor(folder, staged, model)
    bank = _copy_bank(folder, staged, model)
    _forget_places(staged)
    if (card := _own_card(folder)) is not None:
        logger.warning(f"{folder / CARD_NAME} was written or changed by hand and is pushed as it is.")
    else:
        # Whoever merges trained weights with a folder has the whole model, and no name for what it started from.
        facts = replace(facts, base_model=None if base is None or _is_folder(base) else base)
        card = str(make_card(folder, model, processor, facts, is_part, bank))
    (staged / CARD_NAME).write_text(card, encoding="utf-8")
    return staged


def check_base(base: str | Path | None, what: str, way_out: str = WHOLE_OR_NAME):
    """
    That others can load what stands on a base.

    Args:
        base (`str` or `Path`, *optional*):
            The base.
        what (`str`):
            What stands on it.
        way_out (`str`, *optional*):
            What to do if they cannot, by the options of the command in use. By default those of `push_to_hub.py`.

    Raises:
        [`ModelError`]: if there is none, or it is a folder on this machine.
    """
    if base is None:
        raise ModelError(f"{what} does not say what it was trained from. {way_out}")
    if _is_folder(base):
        raise ModelError(f"{what} was trained from the folder {base}, which others do not have. {way_out}")


def _is_folder(base: str | Path) -> bool:
    """Whether a base is a folder of this machine, and no name on the Hub."""
    return Path(base).is_dir() or not is_hub_name(str(base))


def _save_model(
    folder: Path, staged: Path, trained_only: bool | None, base: str | None
) -> tuple[EZClipModel, str | None, bool]:
    """
    Load the model and save what is asked for of it; returns also its base, and whether what is saved needs that.
    """
    try:
        source = TrainedCheckpoint.find(folder)
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder} cannot be loaded: {error}") from error
    known = base if source is None else base or source.base
    if trained_only is None:
        trained_only = source is not None
    if trained_only:
        check_base(known, str(folder))
    elif source is None and base is not None and _is_folder(base):
        raise ModelError(
            f"--base_model_name_or_path {base} is no name on the Hub, and of a whole model it is for the card alone. "
            "Give the name there of the model that was trained from, or leave it out."
        )
    model = load_model(folder) if source is None else _load(folder, base_model_name_or_path=known)
    if trained_only and source is not None:
        # What was trained then is not always what this configuration leaves to be trained.
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in source.trained)
    try:
        options = {"trained_only": True, "base_model_name_or_path": known} if trained_only else {}
        model.save_pretrained(staged, **options)
        written = TrainedCheckpoint.find(staged)
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder} cannot be saved to be pushed: {error}") from error
    if written is None:
        return model, known, False
    if source is not None:
        # The same file, byte by byte, so that a repeated push does not send it again
        shutil.copyfile(source.path, written.path)
    else:
        _load(staged)  # says if the base is not the one that was trained from
    return model, known, True


def _load(folder: Path, **kwargs) -> EZClipModel:
    try:
        return EZClipModel.from_pretrained(folder, **kwargs)
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder} cannot be loaded: {error}") from error


def _save_processor(folder: Path, staged: Path, model: EZClipModel) -> EZClipProcessor:
    try:
        processor = EZClipProcessor.from_pretrained(folder)
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(
            f"{folder} has no processor ({explain_processor(error)}). Without one nobody can use the model: save the "
            "processor there too (`EZClipProcessor.save_pretrained`), or convert it again with a --tokenizer."
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
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder} cannot be pushed with its {CLASS_BANK_NAME}: {error}") from error
    shutil.copyfile(folder / CLASS_BANK_NAME, staged / CLASS_BANK_NAME)
    return bank


def _own_card(folder: Path) -> str | None:
    """A card in a model's folder that a person wrote or changed."""
    path = folder / CARD_NAME
    if not path.is_file():
        return None
    try:
        content = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ModelError(
            f"{path} is not text in UTF-8 ({error.reason} at byte {error.start}), which cards have to be. Save it in "
            "UTF-8, or remove it for a card that fills itself in."
        ) from error
    return None if is_untouched(content) else content


def _forget_places(staged: Path):
    """Take out of the JSON files from where on this machine something was loaded; refuse other paths of it."""
    for path in sorted(staged.glob("*.json")):
        if path.name in TOKENS:
            continue
        content = json.loads(path.read_text(encoding="utf-8"))
        kept = _without_places(content, path.name)
        if kept != content:
            path.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _without_places(value, file: str, name: str = ""):
    if isinstance(value, dict):
        return {
            key: _without_places(part, file, f"{name}.{key}".lstrip("."))
            for key, part in value.items()
            if key not in PROVENANCE or not _is_local(part)
        }
    if isinstance(value, list):
        return [_without_places(part, file, name) for part in value]
    if _is_local(value):
        raise ModelError(
            f"{name} in {file} is a path of this machine, {value}, which is of no use to others. Remove it from "
            f"{file} of the model's folder, or put there what others have."
        )
    return value


def _is_local(value) -> bool:
    """Whether a value is an absolute path, of this system or of Windows."""
    return isinstance(value, str) and re.match(r"(/|~/|file:|[A-Za-z]:[\\/])[^\s]", value) is not None
