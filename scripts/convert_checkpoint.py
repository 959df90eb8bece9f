#!/usr/bin/env python
"""Convert an EZ-CLIP / T2L checkpoint (`.pt`) to a folder that `AutoModel` and `AutoProcessor` load.

    python scripts/convert_checkpoint.py --checkpoint best.pt --output_dir ezclip-vit-base-patch16

Sizes, number of frames and the kind of temporal modelling are read from the weights. Every tensor of the file must be
used and every tensor of the model filled.
"""

import argparse
import pickle
import re
import sys
from pathlib import Path

import torch


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ezclip import EZClipConfig, EZClipModel, EZClipProcessor
from ezclip.errors import ModelError
from ezclip.loading import load_tokenizer
from ezclip.processing_ezclip import default_image_processor


# (pattern in the checkpoint, replacement in the model), each applied in turn
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
PROMPTS = "visual.transformer.T_prompt_embeddings"
TRANSPOSED = ("visual.proj", "text_projection")


def load_state_dict(checkpoint: str | Path) -> dict[str, torch.Tensor]:
    """
    The weights of an EZ-CLIP checkpoint in float32.

    Files written on a GPU mix float16 and float32. `{"model_state_dict": …}` and bare state dicts are read, with or
    without a "module." in front of every key.

    Raises:
        [`ModelError`]: if the file is no checkpoint, or one of another system.
    """
    if not Path(checkpoint).is_file():
        raise ModelError(f"{checkpoint} is not a file. Give the path of a checkpoint (.pt).")
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise ModelError(
            f"{checkpoint} cannot be read as a PyTorch checkpoint of tensors and numbers alone. Is it complete, and a "
            "checkpoint? One that holds other objects is not loaded, because loading it could run code."
        ) from error
    if isinstance(content, dict) and content.get("fusion_model_state_dict"):
        raise ModelError(
            f"{checkpoint} is an ActionCLIP checkpoint with a temporal head (`fusion_model_state_dict`), which this "
            "model does not have. Only EZ-CLIP / T2L checkpoints are converted."
        )
    state_dict = content.get("model_state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state_dict, dict) or not all(isinstance(v, torch.Tensor) for v in state_dict.values()):
        raise ModelError(f"{checkpoint} holds no state dict. An EZ-CLIP checkpoint has a `model_state_dict`.")
    state_dict = {re.sub(r"^module\.", "", str(key)): value.float() for key, value in state_dict.items()}
    if "visual.conv1.weight" not in state_dict or "token_embedding.weight" not in state_dict:
        raise ModelError(
            f"{checkpoint} is not an EZ-CLIP checkpoint: it has no `visual.conv1.weight` or no "
            f"`token_embedding.weight`. Its first keys are {list(state_dict)[:3]}."
        )
    return state_dict


def infer_config(state_dict: dict[str, torch.Tensor]) -> EZClipConfig:
    """The architecture that the weights have. Heads are 64 wide, and end-of-text is the last of the vocabulary."""

    def depth(prefix):
        return 1 + max(int(m.group(1)) for key in state_dict if (m := re.match(rf"{prefix}resblocks\.(\d+)\.", key)))

    def tower(prefix, width):
        block = f"{prefix}resblocks.0."
        adapter = state_dict.get(f"{block}Adapter.D_fc1.weight")
        options = {
            "hidden_size": width,
            "intermediate_size": state_dict[f"{block}mlp.c_fc.weight"].shape[0],
            "num_hidden_layers": depth(re.escape(prefix)),
            "num_attention_heads": max(1, width // 64),
            "use_adapter": adapter is not None,
        }
        return options if adapter is None else {**options, "adapter_ratio": adapter.shape[0] / width}

    patch_embedding = state_dict["visual.conv1.weight"]  # [D, 3, patch, patch]
    num_patches = state_dict["visual.positional_embedding"].shape[0] - 1
    vocab_size, text_width = state_dict["token_embedding.weight"].shape
    temporal_embedding = state_dict.get("visual.temporal_embedding")  # [1, T, D]
    prompts = state_dict.get(PROMPTS)  # [layers, T, D], or [1, T, D] where shallow
    temporal = next((weight for weight in (prompts, temporal_embedding) if weight is not None), None)
    patch_size = patch_embedding.shape[-1]
    vision_config = {
        **tower("visual.transformer.", patch_embedding.shape[0]),
        "patch_size": patch_size,
        "image_size": patch_size * round(num_patches**0.5),
        "temporal_prompt": "none" if prompts is None else "deep" if len(prompts) > 1 else "shallow",
        "use_temporal_embedding": temporal_embedding is not None,
        "use_temporal_adapter": "visual.transformer.resblocks.0.T_Adapter.D_fc1.weight" in state_dict,
    }
    if temporal is not None:
        vision_config["num_frames"] = temporal.shape[1]
    text_config = {
        **tower("transformer.", text_width),
        "vocab_size": vocab_size,
        "max_position_embeddings": state_dict["positional_embedding"].shape[0],
        "bos_token_id": vocab_size - 2,
        "eos_token_id": vocab_size - 1,
    }
    projection_dim = state_dict["visual.proj"].shape[1]
    return EZClipConfig(
        vision_config={**vision_config, "projection_dim": projection_dim},
        text_config={**text_config, "projection_dim": projection_dim},
        projection_dim=projection_dim,
    )


def convert_state_dict(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights under the model's names and in its shapes."""
    converted = {}
    for key, value in state_dict.items():
        if key == PROMPTS:
            for layer, prompt in enumerate(value):
                converted[f"vision_model.encoder.layers.{layer}.temporal_prompt"] = prompt
            continue
        name = key
        for pattern, replacement in RENAMES:
            name = re.sub(pattern, replacement, name)
        if key in TRANSPOSED:
            value = value.t()
        elif key == "visual.temporal_embedding":
            value = value[0]
        if match := re.match(r"(.+\.self_attn\.)in_proj_(weight|bias)$", name):
            for projection, part in zip("qkv", value.chunk(3)):
                converted[f"{match.group(1)}{projection}_proj.{match.group(2)}"] = part
        else:
            converted[name] = value
    return {name: value.contiguous() for name, value in converted.items()}


def convert(checkpoint: str | Path, num_frames: int | None = None) -> EZClipModel:
    """
    An [`EZClipModel`] with the weights of an EZ-CLIP checkpoint.

    Args:
        checkpoint (`str` or `Path`):
            The authors' `.pt` file.
        num_frames (`int`, *optional*):
            Frames of a video, for a checkpoint that does not tell. Must agree with one that does.

    Raises:
        [`ModelError`]: if the file is not such a checkpoint, or a tensor of file or model is left over.
    """
    state_dict = load_state_dict(checkpoint)
    try:
        config = infer_config(state_dict)
    except KeyError as error:
        raise ModelError(
            f"{checkpoint} is not an EZ-CLIP / T2L checkpoint: it has no tensor {error.args[0]!r}."
        ) from error
    except (IndexError, ValueError) as error:
        raise ModelError(f"{checkpoint} is not an EZ-CLIP / T2L checkpoint: odd shapes ({error}).") from error
    vision_config = config.vision_config
    if num_frames is not None and num_frames < 1:
        raise ModelError(f"--num_frames must be at least 1, got {num_frames}.")
    if num_frames is not None and num_frames != vision_config.num_frames:
        if vision_config.fixed_num_frames:
            raise ModelError(
                f"--num_frames {num_frames} does not fit {checkpoint}, whose temporal weights have a row for each of "
                f"{vision_config.num_frames} frames. Leave the option out."
            )
        vision_config.num_frames = num_frames
    model = EZClipModel(config)
    try:
        model.load_state_dict(convert_state_dict(state_dict), strict=True)
    except RuntimeError as error:
        raise ModelError(
            f"{checkpoint} is not an EZ-CLIP checkpoint that this script knows; its keys differ from the model's:\n"
            f"{error}"
        ) from error
    return model.eval()


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="the authors' .pt file")
    parser.add_argument("--output_dir", required=True, help="folder to write")
    parser.add_argument("--num_frames", type=int, help="frames of a video, where the weights do not tell")
    text = parser.add_mutually_exclusive_group()
    text.add_argument(
        "--tokenizer",
        default="openai/clip-vit-base-patch16",
        help="Hub name, folder, or bpe_simple_vocab_16e6.txt.gz (default: %(default)s; all of CLIP share it)",
    )
    text.add_argument("--model_only", action="store_true", help="convert the weights without a processor")
    args = parser.parse_args(argv)
    try:
        tokenizer = None if args.model_only else load_tokenizer(args.tokenizer)
        model = convert(args.checkpoint, args.num_frames)
        vision_config, vocab_size = model.config.vision_config, model.config.text_config.vocab_size
        if tokenizer is not None and len(tokenizer) != vocab_size:
            raise ModelError(
                f"The tokenizer of {args.tokenizer} has {len(tokenizer)} tokens, {args.checkpoint} {vocab_size}. Give "
                "the tokenizer it was trained with, or --model_only."
            )
        Path(args.output_dir).mkdir(parents=True, exist_ok=True)
        model.save_pretrained(args.output_dir)
        if tokenizer is not None:
            EZClipProcessor(
                default_image_processor(vision_config.image_size), tokenizer, num_frames=vision_config.num_frames
            ).save_pretrained(args.output_dir)
    except ModelError as error:
        sys.exit(f"convert_checkpoint.py: {error}")
    except FileExistsError:
        sys.exit(f"convert_checkpoint.py: --output_dir {args.output_dir} is a file. Give a folder.")
    parts = {
        "temporal adapter": vision_config.use_temporal_adapter,
        "vision adapter": vision_config.use_adapter,
        "text adapter": model.config.text_config.use_adapter,
    }
    print(
        f"{args.output_dir}: {model.num_parameters():,} parameters, {vision_config.num_frames} frames of "
        f"{vision_config.image_size} pixels, temporal prompts {vision_config.temporal_prompt}, "
        + ", ".join(f"{'with' if present else 'no'} {name}" for name, present in parts.items())
    )


if __name__ == "__main__":
    main()
