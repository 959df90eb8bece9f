"""Write checkpoints of tiny random models as the published code does: the inverse of `ezclip convert`."""

import torch

from ezclip import EZClipConfig, EZClipModel
from tests.helpers import tiny_config


def published_name(name: str) -> str:
    """Return the authors' name of a parameter; written independently of the conversion's table."""
    for ours, theirs in (
        ("vision_model.embeddings.class_embedding", "visual.class_embedding"),
        ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
        ("vision_model.embeddings.patch_embedding", "visual.conv1"),
        ("vision_model.temporal_embedding", "visual.temporal_embedding"),
        ("vision_model.pre_layrnorm", "visual.ln_pre"),
        ("vision_model.post_layernorm", "visual.ln_post"),
        ("vision_model.encoder.layers", "visual.transformer.resblocks"),
        ("visual_projection.weight", "visual.proj"),
        ("text_model.embeddings.token_embedding", "token_embedding"),
        ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
        ("text_model.final_layer_norm", "ln_final"),
        ("text_model.encoder.layers", "transformer.resblocks"),
        ("text_projection.weight", "text_projection"),
        ("self_attn", "attn"),
        ("layer_norm1", "ln_1"),
        ("layer_norm2", "ln_2"),
        ("mlp.fc1", "mlp.c_fc"),
        ("mlp.fc2", "mlp.c_proj"),
        ("temporal_adapter", "T_Adapter"),
        (".adapter", ".Adapter"),
        ("down_proj", "D_fc1"),
        ("up_proj", "D_fc2"),
    ):
        name = name.replace(ours, theirs)
    return name


def published_head_name(name: str) -> str:
    """Return the authors' name of a parameter of ActionCLIP's temporal heads."""
    name = name.removeprefix("temporal_head.")
    if name.startswith(("lstm.", "conv.")):
        return name.replace("lstm.", "lstm_visual.").replace("conv.", "shift.")
    if name == "position_embedding.weight":
        return "frame_position_embeddings.weight"
    if name in ("cls_token", "position_embedding"):
        return f"transformer.{name.replace('position_embedding', 'pos_embed')}"
    return f"transformer.{name}"


def published_weights(model: EZClipModel) -> dict:
    """Return the state dict that CLIP's and EZ-CLIP's code would have for `model`."""
    weights = {
        published_name(name): value for name, value in model.state_dict().items() if "temporal_head" not in name
    }
    prompts = [name for name in weights if name.endswith("temporal_prompt")]
    if prompts:
        weights["visual.transformer.T_prompt_embeddings"] = torch.stack([weights.pop(name) for name in prompts])
    for name in [name for name in weights if "q_proj" in name]:
        parts = [weights.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv"]
        weights[name.replace("q_proj.", "in_proj_")] = torch.cat(parts)
    for name in ("visual.proj", "text_projection"):
        weights[name] = weights[name].t()
    if "visual.temporal_embedding" in weights:
        weights["visual.temporal_embedding"] = weights["visual.temporal_embedding"][None]
    return weights


def published_checkpoint(model: EZClipModel) -> dict:
    """Return the checkpoint that EZ-CLIP's code would have saved for `model`."""
    weights = published_weights(model)
    return {"epoch": 3, "model_state_dict": weights, "optimizer_state_dict": {"state": {}, "param_groups": []}}


def published_actionclip(model: EZClipModel) -> dict:
    """What ActionCLIP's code would have saved of `model`."""
    content = published_checkpoint(model)
    if model.config.vision_config.use_temporal_shift:
        blocks = "visual.transformer.resblocks."
        content["model_state_dict"] = {
            f"{blocks}{name[len(blocks)]}.net{name[len(blocks) + 1 :]}" if name.startswith(blocks) else name: value
            for name, value in content["model_state_dict"].items()
        }
    own = {name: value for name, value in model.state_dict().items() if name.startswith("temporal_head.")}
    head = {published_head_name(name): value for name, value in own.items()}
    if model.config.temporal_head == "transformer":
        # the names of its own blocks, which are those of CLIP's
        for ours, theirs in (
            ("encoder.layers", "resblocks"),
            ("self_attn", "attn"),
            ("norm", "ln_"),
            ("linear1", "mlp.c_fc"),
            ("linear2", "mlp.c_proj"),
        ):
            head = {name.replace(ours, theirs): value for name, value in head.items()}
    elif model.config.temporal_head == "transformer_cls":
        head = {name.replace("transformer.encoder", "transformer.transformer_enc"): v for name, v in head.items()}
    if head:
        head.setdefault("frame_position_embeddings.weight", torch.randn(16, 16))
    content["fusion_model_state_dict"] = {f"module.{name}": value for name, value in head.items()}
    return content


def published_vificlip(model: EZClipModel) -> dict:
    """Return the state dict that ViFi-CLIP's code would have for `model`."""
    weights = published_weights(model)
    tokens = weights.pop("token_embedding.weight")
    sentences = torch.tensor([[28, 5, 29, 0], [28, 7, 29, 0]])
    renamed = {"prompt_learner.complete_text_embeddings": tokens[sentences].half()}
    for name, value in weights.items():
        if name.startswith("visual."):
            renamed[name.replace("visual.", "image_encoder.", 1)] = value
        else:
            renamed[name if name == "logit_scale" else f"text_encoder.{name}"] = value
    return renamed


def as_on_a_gpu(weights: dict) -> dict:
    """Cast linear layers, convolution and projections to float16, as CLIP's code does on a GPU."""
    halves = ("attn.", "mlp.", "conv1.", "visual.proj", "text_projection", "linear", "encoder.proj")
    return {name: value.half() if any(part in name for part in halves) else value for name, value in weights.items()}


HEADS_64_WIDE = {"hidden_size": 64, "num_attention_heads": 1}  # the conversion assumes heads of 64 dimensions


def random_model(preset="ezclip", vision_config=None, **fields) -> EZClipModel:
    """Return a tiny model with all weights random, also those that start at zero."""
    tiny = tiny_config().to_dict()
    towers = {
        tower: {name: tiny[tower][name] for name in ("intermediate_size", "num_hidden_layers")} | HEADS_64_WIDE
        for tower in ("text_config", "vision_config")
    }
    towers["vision_config"] |= {"image_size": 32, "patch_size": 16, **(vision_config or {})}
    towers["text_config"] |= {"vocab_size": 30, "max_position_embeddings": 16, "eos_token_id": 29}
    torch.manual_seed(0)
    model = EZClipModel(EZClipConfig.from_preset(preset, **towers, projection_dim=16, **fields)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model
