"""Checkpoints that hold only the trained weights, loaded over the base model they were trained from.

The file `model.safetensors` of such a checkpoint holds the trained weights under their ordinary names. Its metadata
lists them, with the shape and a fingerprint of every frozen weight, so that loading refuses a wrong base.
"""

import copy
import json
import math
import os
import re
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_NAME, PushToHubMixin, cached_file, logging


try:
    from .video_ezclip import printable
except ImportError:
    if __package__:  # in a remote-code folder, a missing dependency must keep its own message
        raise
    from video_ezclip import printable


logger = logging.get_logger(__name__)

RECORD_KEY = "ezclip_trained_only"
# Options that say how to fetch files apply to the base too; those that say which files, only to the checkpoint.
FETCH_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "token")
HUB_OPTIONS = (*FETCH_OPTIONS, "revision", "subfolder")
PUSH_OPTIONS = ("commit_message", "commit_description", "private", "token", "create_pr", "revision", "tags")
# As in transformers' own calls of `cached_file` for optional files
MAY_BE_ABSENT = {"_raise_exceptions_for_gated_repo": False, "_raise_exceptions_for_missing_entries": False}
MAX_LISTED = 20  # items in a message
WEIGHTS_EXTENSIONS = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
# A model may have as many new weights as its files hold, and so many more: tiny models have large added parts.
MAX_NEW_WEIGHTS = 2**26
INDEX_NAMES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
UNCLEAR_ERRORS = (json.JSONDecodeError, UnicodeError, RecursionError, NotImplementedError)  # they name no file
HUB_NAME = r"\w[\w.-]*(/\w[\w.-]*)?"  # of a repository
PLAIN_NAME = r"\w[\w.-]{0,200}"  # of a file in a folder
# AltCLIP's files have older names of weights. No other tower has them.
OLDER_NAMES = {r"(roberta\.encoder|vision_model\.encoder)\.layer\.": r"\1.layers."}
FIX_HINT = "Give the right base as `base_model_name_or_path`, to `from_pretrained` or in config.json."


def is_added_to_clip(name: str) -> bool:
    """Return whether a weight belongs to a prompt, an adapter or the temporal head, which CLIP lacks."""
    return any(part in name for part in ("temporal_prompt", "adapter", "temporal_head"))


def list_some(items: list[str]) -> str:
    """Join items by commas, printable: at most 20, and the number of the others."""
    rest = len(items) - MAX_LISTED
    return printable(", ".join(items[:MAX_LISTED])) + (f", and {rest} more" if rest > 0 else "")


def fingerprint(weight: torch.Tensor) -> float:
    """
    Return the projection of a weight on a fixed pseudo-random direction.

    The fingerprints of two weights differ by about as much, relative to the norm, as the weights do.
    """
    matrix = weight.detach().cpu().double().reshape(weight.shape[0] if weight.ndim > 1 else 1, -1)
    rows, columns = (torch.arange(1, size + 1, dtype=torch.float64).square().cos().sign() for size in matrix.shape)
    return float(rows @ matrix @ columns)


def has_fingerprint(weight: torch.Tensor, recorded: float) -> bool:
    """Return whether a weight equals the recorded one up to rounding, also if either was rounded to 16 bits."""
    precision = torch.finfo(weight.dtype)
    for dtype in (weight.dtype, torch.float16, torch.bfloat16):
        rounded = weight.detach().cpu().to(dtype).double()
        eps = max(precision.eps, torch.finfo(dtype).eps) if precision.bits == 16 else 1e-6
        subnormal = precision.smallest_normal * precision.eps
        tolerance = 2 * eps * rounded.norm().item() + subnormal * math.sqrt(weight.numel())
        if abs(fingerprint(rounded) - recorded) <= tolerance:
            return True
    return False


def check_folder(name_or_path: str | os.PathLike):
    """
    Raise if a name is clearly the path of a folder, and there is no such folder. A name on the Hub is not looked up.

    Raises:
        `FileNotFoundError`: names the nearest folder that exists, and what it holds. `NotADirectoryError`: for a file
        of weights.
    """
    name = os.fspath(name_or_path)
    is_weights = name.lower().endswith(WEIGHTS_EXTENSIONS)
    if os.path.isdir(name) or (os.path.exists(name) and not is_weights):
        return
    if is_weights and os.path.exists(name):
        raise NotADirectoryError(
            f"{name!r} is a file of weights, not the folder of a model. Convert it: `ezclip convert --checkpoint FILE "
            "--output_dir FOLDER`."
        )
    first, *_ = name.split("/")
    is_hub_name = re.fullmatch(HUB_NAME, name) is not None and not is_weights
    if is_hub_name and not (first != name and os.path.isdir(first)):
        return
    message = f"No {'file' if is_weights else 'folder'} {name!r}."
    parent = next((parent for parent in Path(name).parents if parent.is_dir()), None)
    if parent is not None:
        entries = (entry for entry in parent.iterdir() if entry.is_file() == is_weights)
        found = sorted(entry.name for entry in entries if not entry.name.startswith("."))
        near = get_close_matches(Path(name).parts[len(parent.parts)], found)
        listed = list_some([*near, *(entry for entry in found if entry not in near)])
        message += f" {str(parent)!r} holds: {listed}." if found else f" {str(parent)!r} holds none."
    if is_hub_name:
        message += f" If it is a name on the Hub, run this where there is no folder {first!r}."
    raise FileNotFoundError(message)


@contextmanager
def naming_damage(name_or_path: str | os.PathLike | None):
    """Raise a `ValueError` of one line for errors that transformers raises if files have unexpected contents."""
    try:
        yield
    except Exception as error:
        is_clear = isinstance(error, (OSError, ValueError, ImportError, RuntimeError, MemoryError))
        if is_clear and not isinstance(error, UNCLEAR_ERRORS):
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error)[:1000].split())[:300]}"
        raise ValueError(f"{name_or_path} cannot be loaded ({reason}). Correct its files, or the options.") from error


def check_held(model: PreTrainedModel, files: list[str]):
    """
    Raise `ValueError` if a model needs far more new weights than its files hold. Read only the headers of the files.

    Args:
        model ([`PreTrainedModel`]):
            The model, on the meta device.
        files (`list[str]`):
            Its files of weights.
    """
    shapes, held = {}, 0
    for path in files:
        if path.endswith(".safetensors"):
            with safe_open(path, framework="pt") as file:
                shapes |= {name: file.get_slice(name).get_shape() for name in list(file.keys())}
        else:
            held += os.path.getsize(path)  # a pickle does not list its shapes, and a weight takes a byte or more
    held += sum(map(math.prod, shapes.values()))
    new = {
        name: weight
        for name, weight in model.state_dict().items()
        if list(weight.shape) not in (shapes.get(name), shapes.get(f"{model.base_model_prefix}.{name}"))
    }
    asked = sum(weight.numel() for weight in new.values())
    if asked > held + MAX_NEW_WEIGHTS:
        name = max(new, key=lambda name: new[name].numel())
        raise ValueError(
            f"The configuration asks for {asked:,} weights that {model.name_or_path} lacks, such as {name} of shape "
            f"{tuple(new[name].shape)}, and its files hold only {held:,}. Correct the sizes "
            "(config.json, or `config`), or copy the files again."
        )


def weights_name(variant: str | None = None, name: str = SAFE_WEIGHTS_NAME) -> str:
    """Return the name of the file of weights, such as `model.fp16.safetensors`."""
    stem, _, suffix = name.rpartition(".")
    return name if variant is None else f"{stem}.{variant}.{suffix}"


def check_index(name_or_path: str, index: str, **hub):
    """Raise `ValueError` if an index of weights, where there is one, names a file outside its folder."""
    names = [index]
    if re.fullmatch(PLAIN_NAME, index) and (path := cached_file(name_or_path, index, **MAY_BE_ABSENT, **hub)):
        names += json.loads(Path(path).read_text(encoding="utf-8"))["weight_map"].values()
    for name in names:
        if not re.fullmatch(PLAIN_NAME, name):
            raise ValueError(f"Files of weights must be in the folder {name_or_path} itself, got {name!r:.100}.")


def resolve_base(name_or_path: str | os.PathLike) -> str:
    """
    Return a base as configurations name it: the absolute path of a folder, or a repository on the Hub.

    Raises:
        `ValueError`: if it can be neither.
    """
    if Path(name_or_path).is_dir():
        return str(Path(name_or_path).resolve())
    if not re.fullmatch(HUB_NAME, str(name_or_path)):
        raise ValueError(f"The base must be a folder that exists or a name on the Hub, got {str(name_or_path)!r}.")
    return str(name_or_path)


@contextmanager
def naming_base(config: PretrainedConfig, base: str | None):
    """Set the configuration's `base_model_name_or_path` within the context."""
    own, config.base_model_name_or_path = config.base_model_name_or_path, base
    try:
        yield
    finally:
        config.base_model_name_or_path = own


def split_trained(
    model: torch.nn.Module, state_dict: dict[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """
    Split the weights into those that a checkpoint must hold and those of its base.

    A checkpoint holds what is added to CLIP even if it was frozen, because a plain CLIP does not have it.
    """
    names = {name for name, p in model.named_parameters() if p.requires_grad or is_added_to_clip(name)}
    if lacking := sorted(names - set(state_dict)):
        raise ValueError(f"`state_dict` lacks trained weights of the model: {list_some(lacking)}.")
    trained = {name: weight for name, weight in state_dict.items() if name in names}
    return trained, {name: weight for name, weight in state_dict.items() if name not in names}


def write_trained(path: Path, trained: dict[str, torch.Tensor], frozen: dict[str, torch.Tensor]):
    """Write the trained weights to `path`, with the record of all weights, replacing what is there."""
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
    Return the record of a file of trained weights, or `None` if the file holds a whole model.

    Raises:
        `OSError`: if the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            record = json.loads((file.metadata() or {}).get(RECORD_KEY, "null"))
            names = set(file.keys())
    except (SafetensorError, ValueError, RecursionError) as error:
        raise OSError(f"{path} is damaged ({error}). Copy or download it again.") from error
    if record is None:
        return None
    if not all(isinstance(size, int) for shape, _ in record["frozen"].values() for size in shape):
        raise OSError(f"{path} is damaged: its record must hold shapes of whole numbers. Copy or download it again.")
    if wrong := sorted(names.symmetric_difference(record["trained"])):
        what = "has weights that were not trained" if wrong[0] in names else "lacks trained weights"
        raise OSError(f"{path} is damaged: it {what}, such as {wrong[0]}. Copy or download it again.")
    return record


@dataclass
class TrainedCheckpoint:
    """A checkpoint that holds only trained weights."""

    name: str  # its folder, or its repository on the Hub
    base: str | None  # the base that its configuration names
    path: str  # its file of weights
    trained: list[str]  # names of the weights it holds
    frozen: dict[str, list]  # shape and fingerprint of each weight that its base must have

    @classmethod
    def find(cls, name_or_path: str | os.PathLike, variant: str | None = None, **hub) -> "TrainedCheckpoint | None":
        """
        Find the checkpoint in a folder or repository; return `None` if that holds a whole model.

        Raises:
            `OSError`: if its file of weights is missing or damaged.
            `ValueError`: if its configuration names a base and its file holds a whole model, or an index of weights
            names a file of another folder.
        """
        name, file_name = str(name_or_path), weights_name(variant)
        try:
            config, _ = PretrainedConfig.get_config_dict(name, **hub)
        except OSError:
            if not Path(name).is_dir():
                return None  # transformers explains the error
            config = {}  # a folder without config.json is valid when `config` is given
        indexes = [weights_name(variant, index) for index in INDEX_NAMES]
        for index in filter(None, [*indexes, config.get("transformers_weights")]):
            check_index(name, index, **hub)
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
            raise OSError(f"{name} should hold weights trained from {base!r}, but has no {file_name}. Copy it again.")
        raise ValueError(
            f"The config.json of {name} names a base, {base!r}, but its {file_name} does not say which weights were "
            "trained. If it holds a whole model, remove `base_model_name_or_path` from config.json; if not, save the "
            "model again with `trained_only=True`."
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
        Load the base by `load_whole`, the `from_pretrained` of whole models, and put the trained weights over it.

        With `ignore_mismatched_sizes`, `config` may ask for weights that were not saved; they are initialised.

        Returns:
            `tuple`: the model, and the loading info that transformers would give for a whole one.

        Raises:
            `OSError`: if the base cannot be loaded.
            `ValueError`: if the checkpoint does not fit its base, or the model that `config` asks for.
        """
        fetch_options = {name: kwargs[name] for name in FETCH_OPTIONS if name in kwargs}
        for name in ("revision", "subfolder", "variant", "use_safetensors", "_commit_hash"):
            kwargs.pop(name, None)
        base = None if base is None else str(base)
        # With PEFT installed, `AutoModel` puts the checkpoint's revision here too, which the base does not have.
        if kwargs.get("adapter_kwargs"):
            kwargs["adapter_kwargs"] = {n: value for n, value in kwargs["adapter_kwargs"].items() if n != "revision"}
        verbosity = logging.get_verbosity()
        try:
            between, whole = self._find_whole_base(base, fetch_options)
            # No warnings about weights missing in the base: the trained ones come next.
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
                f"{self.name} holds only trained weights, and its base is quantized or offloaded ({unfit[0]}). Load "
                "it without that, save the whole model with `save_pretrained`, and load what was saved."
            )
        prefix = f"{model.base_model_prefix}."
        lacking = set(info["missing_keys"]) | {name for name, *_ in info["mismatched_keys"]}
        for checkpoint in reversed(between):
            lacking -= checkpoint._copy_into(weights, prefix)[0]
        mismatched = self._copy_into(weights, prefix)[1] | self._check_base(weights, prefix, base, lacking)
        saved = {*self._names(self.trained, prefix), *self._names(self.frozen, prefix)}
        info = {
            **info,
            "missing_keys": set(weights) - saved,
            "unexpected_keys": saved - set(weights),
            "mismatched_keys": mismatched,
        }
        self._check_fit(info, ignore_mismatched_sizes)
        model.name_or_path = model.config.name_or_path = self.name
        if hasattr(model.config, "base_model_name_or_path"):  # towers' configurations have no such field
            model.config.base_model_name_or_path = resolve_base(base)
        return model, info

    def _names(self, names, prefix: str) -> dict[str, str]:
        """Map names in the model to names in the file: a tower's weights have no prefix in the model."""
        if any(name.startswith(prefix) for name in (*self.trained, *self.frozen)):
            return {name.removeprefix(prefix): name for name in names if name.startswith(prefix)}
        return {name: name for name in names}

    def _find_whole_base(self, base: str | None, fetch_options: dict) -> tuple[list["TrainedCheckpoint"], str]:
        """Follow bases that are such checkpoints themselves; return them and the whole model under them."""
        between, owner, passed = [], self.name, {os.path.realpath(self.path)}
        while True:
            if base is None:
                raise ValueError(f"{owner} holds only trained weights and does not name its base. {FIX_HINT}")
            below = TrainedCheckpoint.find(base, **fetch_options)
            if below is None:
                return between, base
            if os.path.realpath(below.path) in passed:
                raise ValueError(
                    f"Circular base reference: {base!r}, the base of {owner}, is its own base. {FIX_HINT}"
                )
            passed.add(os.path.realpath(below.path))
            between.append(below)
            owner, base = below.name, below.base

    @torch.no_grad()
    def _copy_into(self, weights: dict[str, torch.Tensor], prefix: str) -> tuple[set, set]:
        """Copy what fits into a model's weights; return their names, and (name, saved shape, shape) of the others."""
        copied, mismatched = set(), set()
        with safe_open(self.path, framework="pt") as file:
            for name, name_in_file in self._names(self.trained, prefix).items():
                if name not in weights:
                    continue
                saved = file.get_tensor(name_in_file)
                if saved.shape == weights[name].shape:
                    weights[name].copy_(saved)
                    copied.add(name)
                else:
                    mismatched.add((name, tuple(saved.shape), tuple(weights[name].shape)))
        return copied, mismatched

    def _check_base(self, weights: dict[str, torch.Tensor], prefix: str, base: str, lacking: set[str]) -> set:
        """Raise if a frozen weight is not the recorded one; return (name, saved shape, shape) of other shapes."""
        mismatched = set()
        names = self._names(self.frozen, prefix)
        for name in sorted(names, key=lambda name: name not in lacking):  # missing ones first: the clearer error
            shape, recorded = self.frozen[names[name]]
            if name not in weights:
                continue
            if tuple(shape) != tuple(weights[name].shape):
                mismatched.add((name, tuple(shape), tuple(weights[name].shape)))
            elif name in lacking or not has_fingerprint(weights[name], recorded):
                how = "it has no" if name in lacking else "it has another"
                raise ValueError(
                    f"{base!r} is not the model that {self.name} was trained from: {how} {name}. {FIX_HINT}"
                )
        return mismatched

    def _check_fit(self, info: dict, ignore_mismatched_sizes: bool):
        """Raise, or warn, if the configuration asks for other weights than were saved."""
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
                f"{problem} Leave out the options that change its configuration; or give "
                "`ignore_mismatched_sizes=True` to train on with such weights new."
            )
        logger.warning(problem)


class LoadTrainedMixin(PreTrainedModel):
    """A model whose `from_pretrained` also loads checkpoints of trained weights."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | None,
        *model_args,
        config=None,
        base_model_name_or_path: str | os.PathLike | None = None,
        **kwargs,
    ):
        r"""
        Load a whole model, or a checkpoint of trained weights over its base.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`):
                A folder, or a name on the Hub.
            config ([`PretrainedConfig`] or `str`, *optional*):
                The configuration, if not the one saved there.
            base_model_name_or_path (`str` or `os.PathLike`, *optional*):
                The base, if not the one in the checkpoint's configuration: a folder, or a name on the Hub.
                `cache_dir`, `token` and `local_files_only` apply to it too, `revision` and `subfolder` do not.
            kwargs:
                The arguments of [`PreTrainedModel.from_pretrained`].

        Raises:
            `OSError`: if the model, or its base, is missing or damaged.
            `ValueError`: if the base is not the one used in training, the configuration asks for weights that were not
            saved, or a file has unexpected contents.
        """
        with naming_damage(pretrained_model_name_or_path):
            return cls._from_pretrained(
                pretrained_model_name_or_path,
                *model_args,
                config=config,
                base_model_name_or_path=base_model_name_or_path,
                **kwargs,
            )

    @classmethod
    def _from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | None,
        *model_args,
        config=None,
        base_model_name_or_path: str | os.PathLike | None = None,
        **kwargs,
    ):
        load_whole = partial(super().from_pretrained, key_mapping={**OLDER_NAMES, **kwargs.pop("key_mapping", {})})
        hub_options = {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
        checkpoint = None
        if pretrained_model_name_or_path is not None:
            check_folder(pretrained_model_name_or_path)
            checkpoint = TrainedCheckpoint.find(
                pretrained_model_name_or_path, variant=kwargs.get("variant"), **hub_options
            )
        if checkpoint is None:
            if base_model_name_or_path is not None:
                raise ValueError(
                    f"{pretrained_model_name_or_path} is a whole model; leave out `base_model_name_or_path`."
                )
            if getattr(config, "base_model_name_or_path", None) is not None:  # the base of another model
                config = copy.deepcopy(config)
                config.base_model_name_or_path = None
            return load_whole(pretrained_model_name_or_path, *model_args, config=config, **kwargs)

        output_loading_info = kwargs.pop("output_loading_info", False)
        if not isinstance(config, PretrainedConfig):
            dtypes = {name: kwargs.pop(name) for name in ("dtype", "torch_dtype") if name in kwargs}
            config, kwargs = cls.config_class.from_pretrained(
                pretrained_model_name_or_path if config is None else config, return_unused_kwargs=True, **kwargs
            )
            kwargs = {**kwargs, **hub_options, **dtypes}
        base = base_model_name_or_path or getattr(config, "base_model_name_or_path", None) or checkpoint.base
        model, info = checkpoint.load(load_whole, config, base, **kwargs)
        return (model, info) if output_loading_info else model

    @staticmethod
    def _load_pretrained_model(model, state_dict, checkpoint_files, *args, **kwargs):
        """Check sizes first. The model is on the meta device here, and transformers has found all its files."""
        if state_dict is None:
            check_held(model, checkpoint_files)
        return PreTrainedModel._load_pretrained_model(model, state_dict, checkpoint_files, *args, **kwargs)

    def _load_and_finalize_distributed_pretrained_model(self, checkpoint_dir, *args, **kwargs):
        check_held(self, [str(path) for path in Path(checkpoint_dir).glob("*.safetensors")])
        return super()._load_and_finalize_distributed_pretrained_model(checkpoint_dir, *args, **kwargs)


class SaveTrainedMixin(PreTrainedModel):
    """A model whose `save_pretrained` and `push_to_hub` can write only the trained weights."""

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        state_dict: dict | None = None,
        push_to_hub: bool = False,
        *,
        trained_only: bool = False,
        base_model_name_or_path: str | os.PathLike | None = None,
        **kwargs,
    ):
        r"""
        Save the whole model, or with `trained_only=True` only its trained weights, to be loaded over the base.

        Args:
            save_directory (`str` or `os.PathLike`):
                The folder to write.
            is_main_process (`bool`, *optional*, defaults to `True`):
                Whether this process writes.
            state_dict (`dict`, *optional*):
                The weights, if not the model's own.
            push_to_hub (`bool`, *optional*, defaults to `False`):
                Whether to upload the files too, to `repo_id` or a repository of the folder's name.
            trained_only (`bool`, *optional*, defaults to `False`):
                Whether to save only the trained weights: for ViT-B/16 and 8 frames 21 MB of 620. A fingerprint of each
                frozen weight is saved too, and checked against the base when loading.
            base_model_name_or_path (`str` or `os.PathLike`, *optional*):
                Folder or Hub name of a plain CLIP or any EZ-CLIP that holds the frozen weights. Defaults to the one in
                `config`.
            kwargs:
                The arguments of [`PreTrainedModel.save_pretrained`].

        Raises:
            `ValueError`: with `trained_only`, if no base is known, nothing is trained, or the folder is the base.
        """
        if base_model_name_or_path is not None and not trained_only:
            raise ValueError("`base_model_name_or_path` needs `trained_only=True`; a whole model has no base.")
        trained, frozen = {}, {}
        if trained_only:
            trained, frozen = split_trained(self, self.state_dict() if state_dict is None else state_dict)
        if not frozen:
            with naming_base(self.config, None):
                super().save_pretrained(save_directory, is_main_process, state_dict, push_to_hub, **kwargs)
            return

        base = self.config.base_model_name_or_path
        if base_model_name_or_path is not None:
            base = resolve_base(base_model_name_or_path)
        if base is None:
            raise ValueError(
                "`trained_only` needs a base, and this model does not name one. Give `base_model_name_or_path`, the "
                "folder or Hub name of the CLIP or EZ-CLIP that it was made from, or save the whole model, without "
                "`trained_only`."
            )
        if not trained:
            raise ValueError("This model has no trained weights; save the whole model, without `trained_only`.")
        if base == str(Path(save_directory).resolve()):
            raise ValueError(f"{base} is the base of this model and would be overwritten. Give another folder.")
        if not is_main_process:  # transformers may write weights in any process; here only the main one writes
            return
        kwargs.pop("max_shard_size", None)  # one file, because its metadata records all weights
        with naming_base(self.config, base):
            super().save_pretrained(save_directory, state_dict=dict(trained), **kwargs)
        write_trained(Path(save_directory) / weights_name(kwargs.get("variant")), trained, frozen)
        if push_to_hub:
            repo_id = kwargs.pop("repo_id", Path(save_directory).name)
            options = {name: kwargs[name] for name in PUSH_OPTIONS if name in kwargs}
            self.push_to_hub(repo_id, trained_only=True, base_model_name_or_path=base, **options)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        trained_only: bool = False,
        base_model_name_or_path: str | os.PathLike | None = None,
        **kwargs,
    ):
        r"""
        Upload what [`EZClipModel.save_pretrained`] writes to a repository on the Hub.

        Args:
            repo_id (`str`):
                The repository; it is created if it does not exist.
            trained_only (`bool`, *optional*, defaults to `False`):
                Whether to upload only the trained weights.
            base_model_name_or_path (`str` or `os.PathLike`, *optional*):
                The base. Give a name on the Hub, so that others can load the upload.
            kwargs:
                The arguments of [`PreTrainedModel.push_to_hub`].

        Raises:
            `ValueError`: as [`EZClipModel.save_pretrained`].
        """
        if not trained_only:
            return super().push_to_hub(repo_id, **kwargs)
        base = base_model_name_or_path or self.config.base_model_name_or_path
        if base is not None and Path(base).is_dir():
            logger.warning(
                f"The base of this model is a folder on this machine, {base}: elsewhere the upload loads only with "
                "`base_model_name_or_path=`. Give the name of a base on the Hub to make it load as it is."
            )
        tags = kwargs.pop("tags", None) or []
        tags = [*(self.model_tags or []), *([tags] if isinstance(tags, str) else tags)]
        return _TrainedPart(self, base).push_to_hub(repo_id, tags=tags or None, **kwargs)


class _TrainedPart(PushToHubMixin):
    """Adapter of `PushToHubMixin.push_to_hub`, which uploads what `save_pretrained` writes."""

    def __init__(self, model: SaveTrainedMixin, base: str | os.PathLike | None):
        self.model = model
        self.base = base

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs):
        self.model.save_pretrained(save_directory, trained_only=True, base_model_name_or_path=self.base, **kwargs)
