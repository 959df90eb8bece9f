"""Checkpoints of what was trained alone, laid over the model it was trained from.

The file `model.safetensors` of such a checkpoint holds the trained weights under their ordinary names. Its metadata
lists them, and records shape and fingerprint of every frozen weight: a base that is not the one trained from is told.
"""

import json
import math
import os
import re
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import PretrainedConfig
from transformers.utils import SAFE_WEIGHTS_NAME, PushToHubMixin, cached_file, logging


logger = logging.get_logger(__name__)

RECORD_KEY = "ezclip_trained_only"
# Options that say how files are fetched hold for the base too; those that say which ones are the checkpoint's alone.
FETCH_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "token")
HUB_OPTIONS = (*FETCH_OPTIONS, "revision", "subfolder")
PUSH_OPTIONS = ("commit_message", "commit_description", "private", "token", "create_pr", "revision", "tags")
# What transformers itself says where the absence of a file is an answer
MAY_BE_ABSENT = {"_raise_exceptions_for_gated_repo": False, "_raise_exceptions_for_missing_entries": False}
MAX_LISTED = 20  # in a message
FIX_HINT = "Give the right base as `base_model_name_or_path`, to `from_pretrained` or in config.json."


def is_added_to_clip(name: str) -> bool:
    """Whether a weight is one that CLIP lacks and every training trains: of prompts, adapters, the temporal head."""
    return any(part in name for part in ("temporal_prompt", "adapter", "temporal_head"))


def list_some(items: list[str]) -> str:
    """The items between commas; of very many the first, and how many more there are."""
    rest = len(items) - MAX_LISTED
    return ", ".join(items[:MAX_LISTED]) + (f", and {rest} more" if rest > 0 else "")


def fingerprint(weight: torch.Tensor) -> float:
    """
    The projection of a weight on a fixed direction, which has no pattern that weights or errors of rounding have.

    Two weights differ here about as much, compared with their norm, as they do altogether.
    """
    matrix = weight.detach().cpu().double().reshape(weight.shape[0] if weight.ndim > 1 else 1, -1)
    rows, columns = (torch.arange(1, size + 1, dtype=torch.float64).square().cos().sign() for size in matrix.shape)
    return float(rows @ matrix @ columns)


def has_fingerprint(weight: torch.Tensor, recorded: float) -> bool:
    """Whether a weight is the recorded one, or would be but for rounding: of either, to half precision."""
    precision = torch.finfo(weight.dtype)
    for dtype in (weight.dtype, torch.float16, torch.bfloat16):
        rounded = weight.detach().cpu().to(dtype).double()
        eps = max(precision.eps, torch.finfo(dtype).eps) if precision.bits == 16 else 1e-6
        subnormal = precision.smallest_normal * precision.eps
        tolerance = 2 * eps * rounded.norm().item() + subnormal * math.sqrt(weight.numel())
        if abs(fingerprint(rounded) - recorded) <= tolerance:
            return True
    return False


def weights_name(variant: str | None = None) -> str:
    return SAFE_WEIGHTS_NAME if variant is None else SAFE_WEIGHTS_NAME.replace(".", f".{variant}.")


def resolve_base(name_or_path: str | os.PathLike) -> str:
    """
    A base as configurations name it: a folder by its absolute path, or a repository on the Hub.

    Raises:
        `ValueError`: if it can be neither.
    """
    if Path(name_or_path).is_dir():
        return str(Path(name_or_path).resolve())
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", str(name_or_path)):
        raise ValueError(f"{str(name_or_path)!r} is no base: neither a folder that exists nor a name on the Hub.")
    return str(name_or_path)


@contextmanager
def naming_base(config: PretrainedConfig, base: str | None):
    """Within it the configuration names another base, or none."""
    own, config.base_model_name_or_path = config.base_model_name_or_path, base
    try:
        yield
    finally:
        config.base_model_name_or_path = own


def split_trained(
    model: torch.nn.Module, state_dict: dict[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """
    The weights that a checkpoint has to hold, and those that its base has.

    What is added to CLIP is held even where it was frozen: a plain CLIP does not have it.
    """
    names = {name for name, p in model.named_parameters() if p.requires_grad or is_added_to_clip(name)}
    if lacking := sorted(names - set(state_dict)):
        raise ValueError(f"`state_dict` lacks trained weights of the model, {lacking[0]} among them.")
    trained = {name: weight for name, weight in state_dict.items() if name in names}
    return trained, {name: weight for name, weight in state_dict.items() if name not in names}


def write_trained(path: Path, trained: dict[str, torch.Tensor], frozen: dict[str, torch.Tensor]):
    """Put the trained weights, and the record of them and of the frozen ones, in the place of `path`."""
    record = {
        "trained": sorted(trained),
        "frozen": {name: [list(w.shape), float(f"{fingerprint(w):.9g}")] for name, w in sorted(frozen.items())},
    }
    tensors = {name: weight.detach().cpu().contiguous() for name, weight in trained.items()}
    unfinished = path.with_name(f"{path.name}.part")
    save_file(tensors, unfinished, metadata={"format": "pt", RECORD_KEY: json.dumps(record)})
    unfinished.replace(path)


def read_record(path: str) -> dict | None:
    """
    What a file of weights says it holds if that is what was trained alone.

    Raises:
        `OSError`: if it is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            record = (file.metadata() or {}).get(RECORD_KEY)
            names = set(file.keys())
    except SafetensorError as error:
        raise OSError(f"{path} is damaged ({error}). Copy or download it again.") from error
    if record is None:
        return None
    record = json.loads(record)
    if wrong := sorted(names.symmetric_difference(record["trained"])):
        what = "has weights beside those that were trained" if wrong[0] in names else "lacks trained weights"
        raise OSError(f"{path} is damaged: it {what}, {wrong[0]} among them. Copy or download it again.")
    return record


class TrainedPartOfModel(PushToHubMixin):
    """What `push_to_hub(..., trained_only=True)` uploads of a model."""

    def __init__(self, model, base_model_name_or_path: str | os.PathLike | None):
        self.model = model
        self.base_model_name_or_path = base_model_name_or_path

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs):
        base = self.base_model_name_or_path or self.model.config.base_model_name_or_path
        if base is not None and Path(base).is_dir():
            logger.warning(
                f"The base of this model is a folder here, {base}: elsewhere the upload loads only with "
                "`base_model_name_or_path=` given. With the name of a base on the Hub it loads as it is."
            )
        self.model.save_pretrained(save_directory, trained_only=True, base_model_name_or_path=base, **kwargs)


@dataclass
class TrainedCheckpoint:
    """
    A checkpoint of trained weights alone.

    Args:
        name (`str`):
            Its folder, or its repository on the Hub.
        base (`str`, *optional*):
            What its configuration names as its base.
        path (`str`):
            Its file of weights.
        trained (`list[str]`):
            The weights it holds.
        frozen (`dict[str, list]`):
            Shape and fingerprint of each weight that its base has to have.
    """

    name: str
    base: str | None
    path: str
    trained: list[str]
    frozen: dict[str, list]

    @classmethod
    def find(cls, name_or_path: str | os.PathLike, variant: str | None = None, **hub) -> "TrainedCheckpoint | None":
        """
        The checkpoint of a folder or repository, or `None` where that holds a whole model.

        Raises:
            `OSError`: if its file of weights is missing or damaged.
            `ValueError`: if its configuration names a base and its file is not of this kind.
        """
        name, file_name = str(name_or_path), weights_name(variant)
        try:
            config, _ = PretrainedConfig.get_config_dict(name, **hub)
        except OSError:
            if not Path(name).is_dir():
                return None  # transformers says what is wrong
            config = {}  # of a folder it may be given by hand
        if not (config.get("model_type") or "ezclip").startswith("ezclip"):
            return None
        base = config.get("base_model_name_or_path")
        path = cached_file(name, file_name, **MAY_BE_ABSENT, **hub)
        record = None if path is None else read_record(path)
        if record is not None:
            return cls(name, base, path, **record)
        if base is None:
            return None
        if path is None:
            raise OSError(f"{name} should hold what was trained from {base!r}, and has no {file_name}. Copy it again.")
        raise ValueError(
            f"{name} names a base in its config.json, {base!r}, and its {file_name} does not say what was trained "
            "from it. If it holds a whole model, remove `base_model_name_or_path` there; if not, save the model again "
            "with `trained_only=True`."
        )

    def load(
        self,
        load_whole,
        config,
        base: str | os.PathLike | None,
        ignore_mismatched_sizes: bool = False,
        **kwargs,
    ):
        """
        The base, with the trained weights laid over it.

        Args:
            load_whole (`Callable`):
                The `from_pretrained` that loads whole models.
            config ([`PretrainedConfig`]):
                The configuration of the model.
            base (`str` or `os.PathLike`, *optional*):
                The base.
            ignore_mismatched_sizes (`bool`, *optional*, defaults to `False`):
                Whether `config` may ask for other weights than were saved; they are new then.
            kwargs:
                Further arguments of `load_whole`.

        Returns:
            `tuple`: the model, and the loading info that transformers would give of a whole one.

        Raises:
            `OSError`: if the base cannot be loaded.
            `ValueError`: if the checkpoint does not fit its base, or the model that `config` asks for.
        """
        fetch_options = {name: kwargs[name] for name in FETCH_OPTIONS if name in kwargs}
        for name in ("revision", "subfolder", "variant", "use_safetensors", "_commit_hash"):
            kwargs.pop(name, None)
        base = None if base is None else str(base)
        # `AutoModel` puts the checkpoint's revision here too, where PEFT is installed; the base does not have it.
        if kwargs.get("adapter_kwargs"):
            kwargs["adapter_kwargs"] = {n: value for n, value in kwargs["adapter_kwargs"].items() if n != "revision"}
        verbosity = logging.get_verbosity()
        try:
            between, whole = self._descend(base, fetch_options)
            # What transformers misses in the base is yet to be laid over it.
            logging.set_verbosity_error()
            model, info = load_whole(
                whole, config=config, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
            )
        except OSError as error:
            raise OSError(f"{base!r}, the base of {self.name}, cannot be loaded: {error}\n{FIX_HINT}") from error
        finally:
            logging.set_verbosity(verbosity)

        weights = model.state_dict()
        if unfit := [name for name, weight in weights.items() if weight.is_meta or not weight.is_floating_point()]:
            raise ValueError(
                f"{self.name} holds trained weights alone, and its base is quantized or offloaded ({unfit[0]}). Load "
                "it without that, save the whole model with `save_pretrained`, and load what was saved."
            )
        prefix = f"{model.base_model_prefix}."
        lacking = set(info["missing_keys"]) | {name for name, *_ in info["mismatched_keys"]}
        for checkpoint in reversed(between):
            lacking -= checkpoint._lay_over(weights, prefix)[0]
        mismatched = self._lay_over(weights, prefix)[1] | self._check_base(weights, prefix, base, lacking)
        saved = {*self._names(self.trained, prefix), *self._names(self.frozen, prefix)}
        info = {
            **info,
            "missing_keys": set(weights) - saved,
            "unexpected_keys": saved - set(weights),
            "mismatched_keys": mismatched,
        }
        self._check_fit(info, ignore_mismatched_sizes)
        model.name_or_path = model.config.name_or_path = self.name
        if hasattr(model.config, "base_model_name_or_path"):  # a tower's has no use for it
            model.config.base_model_name_or_path = resolve_base(base)
        return model, info

    def _names(self, names, prefix: str) -> dict[str, str]:
        """Names in a model of some of the saved weights, and as saved: a tower has its own, without their prefix."""
        if any(name.startswith(prefix) for name in (*self.trained, *self.frozen)):
            return {name.removeprefix(prefix): name for name in names if name.startswith(prefix)}
        return {name: name for name in names}

    def _descend(self, base: str | None, fetch_options: dict) -> tuple[list["TrainedCheckpoint"], str]:
        """The checkpoints of this kind that the base is made of, from above, and the whole model at the bottom."""
        between, owner, passed = [], self.name, {os.path.realpath(self.path)}
        while True:
            if base is None:
                raise ValueError(f"{owner} holds trained weights alone, and names no base. {FIX_HINT}")
            below = TrainedCheckpoint.find(base, **fetch_options)
            if below is None:
                return between, base
            if os.path.realpath(below.path) in passed:
                raise ValueError(f"{base!r}, the base of {owner}, stands on itself. {FIX_HINT}")
            passed.add(os.path.realpath(below.path))
            between.append(below)
            owner, base = below.name, below.base

    @torch.no_grad()
    def _lay_over(self, weights: dict[str, torch.Tensor], prefix: str) -> tuple[set, set]:
        """Copy what fits into a model's weights: their names, and (name, saved shape, shape) of what does not fit."""
        laid, mismatched = set(), set()
        with safe_open(self.path, framework="pt") as file:
            for name, name_in_file in self._names(self.trained, prefix).items():
                if name not in weights:
                    continue
                saved = file.get_tensor(name_in_file)
                if saved.shape == weights[name].shape:
                    weights[name].copy_(saved)
                    laid.add(name)
                else:
                    mismatched.add((name, tuple(saved.shape), tuple(weights[name].shape)))
        return laid, mismatched

    def _check_base(self, weights: dict[str, torch.Tensor], prefix: str, base: str, lacking: set[str]) -> set:
        """That frozen weights are those that were trained from; (name, saved shape, shape) where another is asked."""
        mismatched = set()
        names = self._names(self.frozen, prefix)
        for name in sorted(names, key=lambda name: name not in lacking):  # what is not there at all says more
            shape, recorded = self.frozen[names[name]]
            if name not in weights:
                continue
            if tuple(shape) != tuple(weights[name].shape):
                mismatched.add((name, tuple(shape), tuple(weights[name].shape)))
            elif name in lacking or not has_fingerprint(weights[name], recorded):
                how = "it has no such" if name in lacking else "it has another"
                raise ValueError(
                    f"{base!r} is not the model that {self.name} was trained from: {how} {name}. {FIX_HINT}"
                )
        return mismatched

    def _check_fit(self, info: dict, ignore_mismatched_sizes: bool):
        """That the configuration asks for what was saved."""
        problems = [
            f"{name} was saved as {saved} and would be {wanted}"
            for name, saved, wanted in sorted(info["mismatched_keys"])
        ]
        problems += [f"{name} was not saved" for name in sorted(info["missing_keys"])]
        problems += [f"{name} was saved and has no place" for name in sorted(info["unexpected_keys"])]
        if not problems:
            return
        problem = f"{self.name} does not fit the configuration asked for: {list_some(problems)}."
        if not ignore_mismatched_sizes:
            raise ValueError(
                f"{problem} Leave out what changes its own configuration; or, to train on with such weights new, give "
                "`ignore_mismatched_sizes=True`."
            )
        logger.warning(problem)
