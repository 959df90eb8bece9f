"""Read the files that the code of EZ-CLIP, ActionCLIP, ViFi-CLIP and CLIP writes. Their keys tell them apart."""

import math
import pickle
import re
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ezclip.convert.inert_archive import ArchiveRefused, read_archive
from ezclip.errors import ModelError
from ezclip.systems.loading import load_model


SYSTEMS = {"ezclip": "EZ-CLIP / T2L", "actionclip": "ActionCLIP", "vificlip": "ViFi-CLIP", "clip": "CLIP"}
WEIGHTS_KEYS = ("model_state_dict", "model")
HEAD_KEY = "fusion_model_state_dict"
EZCLIP_KEYS = ("T_prompt_embeddings", "Adapter.", "visual.temporal_embedding")
# Temporal head of ActionCLIP: beginning of its keys
HEAD_PREFIXES = {
    "transformer": "transformer.resblocks.",
    "lstm": "lstm_visual.",
    "conv1d": "shift.",
    "transformer_cls": "transformer.transformer_enc.",
}
BLOCKS_PREFIX = "visual.transformer.resblocks."
SHIFTED_BLOCK = rf"^({re.escape(BLOCKS_PREFIX)}\d+\.)net\."
EMBEDDING_KEY = "text_model.embeddings.token_embedding.weight"  # in an EZClipModel
# Tensors that are left out, and the reason
CLIP_NUMBERS = {name: "known from the shapes" for name in ("input_resolution", "context_length", "vocab_size")}
CLASS_TEXTS = {"prompt_learner.complete_text_embeddings": "the class names it was trained on, embedded"}
UNUSED_POSITIONS = {"frame_position_embeddings.weight": "this temporal head does not use it"}


@dataclass
class Checkpoint:
    """
    The content of a published checkpoint.

    Args:
        path (`str`):
            The file.
        system (`str`):
            `"ezclip"`, `"actionclip"`, `"vificlip"` or `"clip"`: the name of a preset.
        state_dict (`dict[str, torch.Tensor]`):
            The weights in float32, under the names of CLIP and EZ-CLIP.
        temporal_head (`str`, *optional*, defaults to `"mean"`):
            The temporal head, as the model's configuration names it.
        head_state_dict (`dict[str, torch.Tensor]`, *optional*):
            The weights of the head in float32, under ActionCLIP's names.
        use_temporal_shift (`bool`, *optional*, defaults to `False`):
            Whether the blocks shift channels over time.
        left_out (`list[str]`, *optional*):
            Other entries of the file, each with the reason why the model does not have it.
    """

    path: str
    system: str
    state_dict: dict[str, torch.Tensor]
    temporal_head: str = "mean"
    head_state_dict: dict[str, torch.Tensor] = field(default_factory=dict)
    use_temporal_shift: bool = False
    left_out: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Return the published name of the system."""
        return SYSTEMS[self.system]

    def leave_out(self, state_dict: dict[str, torch.Tensor], reasons: dict[str, str]):
        """Remove the tensors in `reasons` from a state dict and note them in `left_out`."""
        for key in [key for key in state_dict if key in reasons]:
            del state_dict[key]
            self.left_out.append(f"{key} ({reasons[key]})")


def read_checkpoint(path: str | Path, base_model_name_or_path: str | Path | None = None) -> Checkpoint:
    """
    Read the weights of a published checkpoint and recognise its system. No code in the file is run.

    Files written on a GPU mix float16 and float32. Keys may begin with the "module." of a parallel training, and the
    file may be a bare state dict.

    Args:
        path (`str` or `Path`):
            The published file.
        base_model_name_or_path (`str` or `Path`, *optional*):
            The CLIP that ViFi-CLIP was trained from: a folder, a name on the Hub, or OpenAI's `.pt` file. The file of
            ViFi-CLIP lacks the token embedding, which its training leaves unchanged.

    Returns:
        [`Checkpoint`]: the weights in float32 on the CPU.

    Raises:
        [`ModelError`]: if the file is not a checkpoint of a known system, or needs a base and has none.
    """
    content = _load(path)
    weights_key = next((name for name in WEIGHTS_KEYS if isinstance(content, dict) and name in content), None)
    raw = _tensors(path, content if weights_key is None else content[weights_key])
    if weights_key == "model" or any(key.startswith("image_encoder.") for key in raw):
        system = "vificlip"
    elif HEAD_KEY in content:
        system = "actionclip"
    else:
        system = "ezclip" if any(part in key for key in raw for part in EZCLIP_KEYS) else "clip"
    checkpoint = Checkpoint(str(path), system, raw)
    if weights_key is not None:
        checkpoint.left_out += [str(name) for name in content if name not in (weights_key, HEAD_KEY)]
    if any(re.match(r"(visual|image_encoder)\.layer1\.", key) for key in raw):
        raise ModelError(f"{path} must have a vision transformer, got a CLIP with a ResNet. Give a ViT checkpoint.")
    if base_model_name_or_path is not None and any(key.endswith("token_embedding.weight") for key in raw):
        raise ModelError(f"{path} has a token embedding. Leave out --base_model_name_or_path.")
    if system == "clip":
        checkpoint.leave_out(raw, CLIP_NUMBERS)
    elif system == "actionclip":
        _read_actionclip(checkpoint, content[HEAD_KEY])
    elif system == "vificlip":
        _read_vificlip(checkpoint, base_model_name_or_path)
    for key in ("visual.conv1.weight", "token_embedding.weight"):
        if key not in checkpoint.state_dict:
            raise ModelError(
                f"{path} is not a checkpoint of {', '.join(SYSTEMS.values())}: it has no `{key}`. Its first keys are "
                f"{list(raw)[:3]}."
            )
    return checkpoint


def _load(path: str | Path):
    if not Path(path).is_file():
        raise ModelError(f"{path} is not a file. Give the path of a checkpoint (.pt).")
    try:
        return read_archive(path)
    except ArchiveRefused as error:
        raise ModelError(f"{path} is refused: {error} Take the checkpoint from another source.") from error
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path} must be a complete file of torch.save or torch.jit.save (PyTorch 0.4 or later), got a "
            "damaged one or another format. Copy it again, or ask its author for weights saved by a current PyTorch."
        ) from error


def _tensors(path: str | Path, state_dict) -> dict[str, torch.Tensor]:
    if not isinstance(state_dict, dict) or not state_dict:
        raise ModelError(
            f"{path} holds no state dict. A published checkpoint is one, or has one as `model_state_dict` or `model`."
        )
    tensors, num_elements, num_bytes = {}, 0, Path(path).stat().st_size
    for key, value in state_dict.items():
        if not isinstance(value, torch.Tensor):
            raise ModelError(
                f"{path} holds no state dict: {key!r} must be a dense real tensor. A published checkpoint is a state "
                "dict, or has one as `model_state_dict` or `model`."
            )
        key = re.sub(r"^module\.", "", str(key))
        if key in tensors:
            raise ModelError(f"{path} has {key!r} twice, with and without the prefix 'module.'.")
        # A view of a few bytes can have any shape, and many tensors can be views of the same bytes.
        own_elements = math.prod(value.shape)
        num_elements += own_elements
        num_stored = value.untyped_storage().nbytes() // value.element_size()
        if own_elements > num_stored or num_elements > num_bytes:
            raise ModelError(
                f"{path}: {key!r} has more elements, {tuple(value.shape)}, than the file holds. Take the checkpoint "
                "from another source."
            )
        tensors[key] = value.float()
        if not tensors[key].isfinite().all():
            raise ModelError(f"{path}: {key!r} must hold finite numbers, got NaN or infinity. Take an undamaged file.")
    return tensors


def _read_actionclip(checkpoint: Checkpoint, head):
    blocks = [key for key in checkpoint.state_dict if key.startswith(BLOCKS_PREFIX)]
    shifted = [key for key in blocks if re.match(SHIFTED_BLOCK, key)]
    if shifted and len(shifted) < len(blocks):
        raise ModelError(f"{checkpoint.path} must have the temporal shift in all blocks or in none, got some.")
    checkpoint.use_temporal_shift = bool(shifted)
    checkpoint.state_dict = {re.sub(SHIFTED_BLOCK, r"\1", key): value for key, value in checkpoint.state_dict.items()}
    if isinstance(head, dict) and not head:
        return
    head = _tensors(checkpoint.path, head)
    kinds = [kind for kind, prefix in HEAD_PREFIXES.items() if any(key.startswith(prefix) for key in head)]
    if len(kinds) != 1:
        raise ModelError(
            f"{checkpoint.path} has a temporal head (`{HEAD_KEY}`) that ActionCLIP does not have. Its first keys are "
            f"{list(head)[:3]}."
        )
    checkpoint.temporal_head, checkpoint.head_state_dict = kinds[0], head
    if kinds[0] != "transformer":
        checkpoint.leave_out(head, UNUSED_POSITIONS)


def _read_vificlip(checkpoint: Checkpoint, base: str | Path | None):
    path, state_dict = checkpoint.path, checkpoint.state_dict
    prompt = next((key for key in state_dict if re.search(r"VPT|prompt_learner\.(ctx|token_prefix)", key)), None)
    if prompt is not None:
        raise ModelError(
            f"{path} is a ViFi-CLIP with learned prompts (`{prompt}`), which this model does not have. Give a fully "
            "fine-tuned ViFi-CLIP."
        )
    class_texts = state_dict.get("prompt_learner.complete_text_embeddings")  # [C, L, D]
    checkpoint.leave_out(state_dict, CLASS_TEXTS)
    checkpoint.state_dict = {
        re.sub(r"^text_encoder\.", "", re.sub(r"^image_encoder\.", "visual.", key)): value
        for key, value in state_dict.items()
    }
    if "token_embedding.weight" in checkpoint.state_dict or "ln_final.weight" not in checkpoint.state_dict:
        return  # complete, or not a checkpoint: `read_checkpoint` reports that
    if base is None:
        raise ModelError(
            f"{path} is a ViFi-CLIP checkpoint without the token embedding, which ViFi-CLIP does not train. Give the "
            "CLIP it was trained from as --base_model_name_or_path: a folder, a name on the Hub, or OpenAI's .pt file."
        )
    if Path(base).is_file():
        embedding = read_checkpoint(base).state_dict["token_embedding.weight"]
    else:
        embedding = load_model(base, for_training=True).get_parameter(EMBEDDING_KEY).detach().float()
    width = len(checkpoint.state_dict["ln_final.weight"])
    if embedding.shape[1] != width:
        raise ModelError(
            f"The token embedding of {base} must have {width} channels for {path}, got {embedding.shape[1]}."
        )
    # Every text begins with the start-of-text token, the last but one of the vocabulary. The file may hold float16.
    if class_texts is not None and not torch.allclose(
        class_texts.flatten()[:width], embedding[-2], rtol=1e-3, atol=1e-4
    ):
        raise ModelError(
            f"{path} was trained from another CLIP than {base}: their start-of-text tokens differ. Give the CLIP it "
            "was trained from."
        )
    checkpoint.state_dict["token_embedding.weight"] = embedding
