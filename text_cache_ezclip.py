"""Embeddings of texts, kept on the disk for the next run with the same weights and texts."""

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import transformers
from huggingface_hub.constants import HF_HOME
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers.utils import logging


logger = logging.get_logger(__name__)

CACHE_DIR = Path(HF_HOME, "ezclip", "text_embeds")
MAX_CACHED_BYTES = 2**30
# Where the classes of a model are: here, or where transformers puts the code of a repository
OWN_PACKAGES = {__name__.partition(".")[0], "transformers_modules"}
# Parts of a model that texts do not pass through; whatever else there is counts as what they do.
NO_TEXT_PARTS = {"vision_model", "visual_projection", "temporal_head", "logit_scale"}


def find_or_embed(folder: Path, key: str, embed: Callable[[], torch.Tensor]) -> torch.FloatTensor:
    """What `embed` gives, or gave for this key before. A cache that is damaged, full or read-only ends no run."""
    path = folder / f"{key}.safetensors"
    try:
        with safe_open(path, framework="pt") as file:
            embeds = file.get_tensor("embeds")
            if file.metadata()["digest"] == _digest_tensor(embeds):
                os.utime(path)  # those not used for longest go first
                return embeds
        logger.warning(f"{path} is damaged; the texts are embedded again.")
    except FileNotFoundError:
        pass
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        logger.warning(f"{path} cannot be read ({error}); the texts are embedded again.")
    embeds = embed()
    unfinished = folder / f".{key}.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        kept = embeds.cpu().contiguous()
        save_file({"embeds": kept}, unfinished, metadata={"digest": _digest_tensor(kept)})
        os.replace(unfinished, path)
        room = MAX_CACHED_BYTES
        for file in sorted(folder.glob("*.safetensors"), key=os.path.getmtime, reverse=True):
            room -= file.stat().st_size
            if room < 0:
                file.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        logger.warning(f"The embeddings of the classes cannot be kept in {folder} ({error}).")
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
    return embeds


def digest_texts(model, input_ids: list[list[int]]) -> str | None:
    """
    A name for what the embeddings of texts depend on: tokens, weights, configuration, precision, code. `None` where
    that is not all: dropout, hooks, and layers and tensors of other libraries, which may be switched on and off.
    """
    weights = {name: weight for name, weight in model.state_dict().items() if _is_of_texts(name)}
    modules = [module for name, module in model.named_modules() if _is_of_texts(name)]
    names = {type(module).__module__ for module in modules}
    if (
        any(module.training or module._forward_hooks or module._forward_pre_hooks for module in modules)
        or not {name.partition(".")[0] for name in names} <= {"torch", "transformers", *OWN_PACKAGES}
        or not all(type(weight) is torch.Tensor and not weight.is_meta for weight in weights.values())
    ):
        return None
    code = sorted(sys.modules[name].__file__ for name in names if name.partition(".")[0] in OWN_PACKAGES)
    device = model.device.type
    content = {
        "tokens": input_ids,
        "shapes": [[name, str(weight.dtype), list(weight.shape)] for name, weight in weights.items()],
        "config": model.config.text_config.to_dict(),
        "precision": str(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else None,
        "code": [Path(file).read_text(encoding="utf-8") for file in code],
        "versions": [transformers.__version__, torch.__version__],
    }
    digest = hashlib.sha256(json.dumps(content, default=str).encode())
    with ThreadPoolExecutor() as pool:  # hashing does not hold the interpreter
        digest.update("".join(pool.map(_digest_tensor, weights.values())).encode())
    return digest.hexdigest()


def _is_of_texts(name: str) -> bool:
    """Whether a module or weight may be one that texts pass through."""
    return not NO_TEXT_PARTS & set(name.split("."))


def _digest_tensor(tensor: torch.Tensor) -> str:
    content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return hashlib.sha256(content.numpy()).hexdigest()
