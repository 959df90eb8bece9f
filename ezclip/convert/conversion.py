"""Convert a published checkpoint to an EZClipModel."""

import re

import torch

from configuration_ezclip import EZClipConfig
from ezclip.convert.formats import Checkpoint
from ezclip.errors import ModelError
from modeling_ezclip import EZClipModel


# (pattern in the checkpoint, replacement in the model), applied in this order
RENAMES = (
    (r"^visual\.class_embedding$", "vision_model.embeddings.class_embedding"),
    (r"^visual\.positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^visual\.temporal_embedding$", "vision_model.temporal_embedding"),
    (r"^visual\.conv1\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."),
    (r"^visual\.ln_post\.", "vision_model.post_layernorm."),
    (r"^visual\.proj$", "visual_projection.weight"),
    (r"^visual\.transformer\.resblocks\.", "vision_model.encoder.layers."),
    (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^ln_final\.", "text_model.final_layer_norm."),
    (r"^text_projection$", "text_projection.weight"),
    (r"^transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"\.attn\.", ".self_attn."),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"\.T_Adapter\.", ".temporal_adapter."),
    (r"\.Adapter\.", ".adapter."),
    (r"\.D_fc1\.", ".down_proj."),
    (r"\.D_fc2\.", ".up_proj."),
)
# The same for ActionCLIP's temporal heads
HEAD_RENAMES = (
    (r"^frame_position_embeddings\.", "position_embedding."),
    (r"^transformer\.resblocks\.", "encoder.layers."),
    (r"^transformer\.transformer_enc\.", "encoder."),
    (r"^transformer\.cls_token$", "cls_token"),
    (r"^transformer\.pos_embed$", "position_embedding"),
    (r"^lstm_visual\.", "lstm."),
    (r"^shift\.", "conv."),
    (r"\.attn\.", ".self_attn."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.mlp\.c_fc\.", ".linear1."),
    (r"\.mlp\.c_proj\.", ".linear2."),
)
HEAD_LAYERS = {"transformer": "transformer.resblocks.", "transformer_cls": "transformer.transformer_enc.layers."}
PROMPTS_KEY = "visual.transformer.T_prompt_embeddings"
TRANSPOSED_KEYS = ("visual.proj", "text_projection")


def infer_config(checkpoint: Checkpoint) -> EZClipConfig:
    """
    Infer the architecture from the shapes of the weights and the preset of the system.

    Attention heads are 64 wide, as in CLIP. The end-of-text token is the last of the vocabulary.
    """
    state_dict = checkpoint.state_dict

    def tower_fields(prefix: str, width: int) -> dict:
        return {
            "hidden_size": width,
            "intermediate_size": state_dict[f"{prefix}resblocks.0.mlp.c_fc.weight"].shape[0],
            "num_hidden_layers": _num_layers(state_dict, f"{prefix}resblocks."),
            "num_attention_heads": max(1, width // 64),
        }

    patch_embedding = state_dict["visual.conv1.weight"]  # [D, 3, patch, patch]
    num_patches = state_dict["visual.positional_embedding"].shape[0] - 1
    vocab_size, text_width = state_dict["token_embedding.weight"].shape
    projection_dim = state_dict["visual.proj"].shape[1]
    patch_size = patch_embedding.shape[-1]
    vision_config = {
        **tower_fields("visual.transformer.", patch_embedding.shape[0]),
        "patch_size": patch_size,
        "image_size": patch_size * round(num_patches**0.5),
        "projection_dim": projection_dim,
    }
    text_config = {
        **tower_fields("transformer.", text_width),
        "vocab_size": vocab_size,
        "max_position_embeddings": state_dict["positional_embedding"].shape[0],
        "bos_token_id": vocab_size - 2,
        "eos_token_id": vocab_size - 1,
        "projection_dim": projection_dim,
    }
    fields = {}
    if checkpoint.system == "ezclip":
        vision_config.update(_adapter_fields(state_dict, "visual.transformer."), **_temporal_fields(state_dict))
        text_config.update(_adapter_fields(state_dict, "transformer."))
    elif checkpoint.system == "actionclip":
        head = checkpoint.temporal_head
        vision_config["use_temporal_shift"] = checkpoint.use_temporal_shift
        # The published code trained conv1d on scrambled frames.
        fields = {"temporal_head": head, "conv1d_scrambles_frames": head == "conv1d"}
        if head in HEAD_LAYERS:
            fields["temporal_head_layers"] = _num_layers(checkpoint.head_state_dict, HEAD_LAYERS[head])
        if head == "transformer_cls":
            vision_config["num_frames"] = checkpoint.head_state_dict["transformer.pos_embed"].shape[1] - 1
    return EZClipConfig.from_preset(
        checkpoint.system,
        vision_config=vision_config,
        text_config=text_config,
        projection_dim=projection_dim,
        **fields,
    )


def _num_layers(state_dict, prefix: str) -> int:
    numbers = [m.group(1) for key in state_dict if (m := re.match(rf"{re.escape(prefix)}(\d+)\.", key))]
    return 1 + max(map(int, numbers))


def _adapter_fields(state_dict, prefix: str) -> dict:
    adapter = state_dict.get(f"{prefix}resblocks.0.Adapter.D_fc1.weight")  # [D * ratio, D]
    return {"use_adapter": False} if adapter is None else {"adapter_ratio": adapter.shape[0] / adapter.shape[1]}


def _temporal_fields(state_dict) -> dict:
    """Return the config fields of EZ-CLIP's temporal prompts, embedding and adapter."""
    temporal_embedding = state_dict.get("visual.temporal_embedding")  # [1, T, D]
    prompts = state_dict.get(PROMPTS_KEY)  # [layers, T, D], or [1, T, D] if shallow
    frames = [weight.shape[1] for weight in (prompts, temporal_embedding) if weight is not None]
    return {
        "temporal_prompt": "none" if prompts is None else "deep" if len(prompts) > 1 else "shallow",
        "use_temporal_embedding": temporal_embedding is not None,
        "use_temporal_adapter": "visual.transformer.resblocks.0.T_Adapter.D_fc1.weight" in state_dict,
        **({"num_frames": frames[0]} if frames else {}),
    }


def _rename(name: str, renames: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name


def convert_state_dict(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    Convert the weights of CLIP, or of EZ-CLIP's towers, to the names and shapes of [`EZClipModel`].

    Args:
        state_dict (`dict[str, torch.Tensor]`):
            The weights under the names of OpenAI's CLIP.

    Returns:
        `dict[str, torch.Tensor]`: contiguous weights. A fused `in_proj` becomes `q_proj`, `k_proj` and `v_proj`.
    """
    converted = {}
    for key, value in state_dict.items():
        if key == PROMPTS_KEY:
            for layer, prompt in enumerate(value):
                converted[f"vision_model.encoder.layers.{layer}.temporal_prompt"] = prompt
            continue
        name = _rename(key, RENAMES)
        if key in TRANSPOSED_KEYS:
            value = value.t()
        elif key == "visual.temporal_embedding":
            value = value[0]
        if match := re.match(r"(.+\.self_attn\.)in_proj_(weight|bias)$", name):
            for projection, part in zip("qkv", value.chunk(3)):
                converted[f"{match.group(1)}{projection}_proj.{match.group(2)}"] = part
        else:
            converted[name] = value
    return {name: value.contiguous() for name, value in converted.items()}


def convert_head(head_state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Convert the weights of ActionCLIP's temporal head to the names of [`EZClipModel`]."""
    return {f"temporal_head.{_rename(name, HEAD_RENAMES)}": value for name, value in head_state_dict.items()}


def convert(checkpoint: Checkpoint, num_frames: int | None = None) -> EZClipModel:
    """
    Convert a checkpoint to an [`EZClipModel`] in evaluation mode.

    Args:
        checkpoint (`Checkpoint`):
            The result of [`read_checkpoint`].
        num_frames (`int`, *optional*):
            Frames of a video. It must agree with the weights if they depend on it.

    Returns:
        [`EZClipModel`]: all weights are set, and each tensor of the checkpoint is used.

    Raises:
        [`ModelError`]: if the architecture is unknown, or a tensor is missing or unexpected.
    """
    path, name = checkpoint.path, checkpoint.name
    try:
        config = infer_config(checkpoint)
    except KeyError as error:
        raise ModelError(f"{path} is not a checkpoint of {name}: it has no tensor {error.args[0]!r}.") from error
    except (ArithmeticError, IndexError, TypeError, ValueError) as error:
        raise ModelError(f"{path} is not a checkpoint of {name}: impossible shapes ({error}).") from error
    if num_frames is not None:
        vision_config = config.vision_config
        if num_frames < 1:
            raise ModelError(f"--num_frames must be at least 1, got {num_frames}.")
        if num_frames != vision_config.num_frames and config.fixed_num_frames:
            raise ModelError(
                f"--num_frames must be {vision_config.num_frames} for {path}, whose temporal weights have a row for "
                f"each frame, got {num_frames}. Leave the option out."
            )
        try:
            vision_config = {**vision_config.to_dict(), "num_frames": num_frames}
            config = EZClipConfig(**{**config.to_dict(), "vision_config": vision_config})
        except ValueError as error:
            raise ModelError(str(error)) from error
    try:
        model = EZClipModel(config)
        weights = {**convert_state_dict(checkpoint.state_dict), **convert_head(checkpoint.head_state_dict)}
        model.load_state_dict(weights, strict=True)
    except (ArithmeticError, RuntimeError, ValueError) as error:
        raise ModelError(
            f"{path} is not a known checkpoint of {name}; its tensors differ from the model's:\n{error}"
        ) from error
    return model.eval()


def describe(model: EZClipModel, checkpoint: Checkpoint) -> str:
    """Describe a converted model in one line, and the entries of `checkpoint` that are left out in another."""
    config, vision_config = model.config, model.config.vision_config
    frames = "frames" if config.fixed_num_frames else "frames (not known from the weights)"
    parts = [
        f"{checkpoint.name}, {model.num_parameters():,} parameters",
        f"{vision_config.num_frames} {frames} of {vision_config.image_size} pixels",
    ]
    if checkpoint.system == "ezclip":
        parts += [
            f"temporal prompts {vision_config.temporal_prompt}",
            _with_or_no(vision_config.use_temporal_adapter, "temporal adapter"),
            _with_or_no(vision_config.use_adapter, "vision adapter"),
            _with_or_no(config.text_config.use_adapter, "text adapter"),
        ]
    else:
        layers = f" of {config.temporal_head_layers} layers" if "transformer" in config.temporal_head else ""
        scrambled = " (frames scrambled, as published)" if config.conv1d_scrambles_frames else ""
        parts.append(f"temporal head {config.temporal_head}{layers}{scrambled}")
        parts.append(_with_or_no(vision_config.use_temporal_shift, "temporal shift"))
    line = ", ".join(parts)
    return f"{line}\nLeft out: {', '.join(checkpoint.left_out)}" if checkpoint.left_out else line


def _with_or_no(is_present: bool, name: str) -> str:
    return f"{'with' if is_present else 'no'} {name}"
