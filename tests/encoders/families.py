"""Tiny random dual encoders of other families of transformers, saved with the real CLIP tokenizer."""

import json
from pathlib import Path

import torch
import transformers

from ezclip.systems import load_bpe_tokenizer
from tests.helpers import shared_path


TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {**TOWER, "vocab_size": 49408, "max_position_embeddings": 77, "bos_token_id": 49406, "eos_token_id": 49407}
VISION = {**TOWER, "image_size": 32, "patch_size": 16}
SQUARE = {"height": 32, "width": 32}
CROP = {"size": {"shortest_edge": 32}, "crop_size": SQUARE}


def _xclip():
    mit = {
        "mit_hidden_size": 24,
        "mit_intermediate_size": 48,
        "mit_num_hidden_layers": 1,
        "mit_num_attention_heads": 2,
    }
    vision = {**VISION, **mit, "num_frames": 4}
    config = transformers.XCLIPConfig(
        text_config=TEXT, vision_config=vision, projection_dim=24, prompt_layers=1, prompt_num_attention_heads=2
    )
    return transformers.XCLIPModel(config), transformers.VideoMAEImageProcessorPil(**CROP)


def _videoprism():
    tower = {**TOWER, "hidden_act": "gelu"}
    vision = {**tower, "image_size": 32, "num_frames": 4, "tubelet_size": [1, 16, 16], "num_auxiliary_layers": 1}
    vision |= {"num_spatial_layers": 1, "num_temporal_layers": 1}
    text = {**tower, "vocab_size": 49408, "max_position_embeddings": 64}
    config = transformers.VideoPrismConfig(text_config=text, vision_config=vision)
    return transformers.VideoPrismClipModel(config), None


def _tipsv2():
    text = {**TOWER, "vocab_size": 49408, "max_position_embeddings": 64}
    vision = {name: size for name, size in VISION.items() if name != "intermediate_size"}
    return transformers.Tipsv2Model(transformers.Tipsv2Config(text_config=text, vision_config=vision)), None


def _clipseg():
    config = transformers.CLIPSegConfig(text_config=TEXT, vision_config=VISION, projection_dim=24)
    return transformers.CLIPSegModel(config), transformers.ViTImageProcessorPil(size=SQUARE)


def _groupvit():
    vision = {**VISION, "depths": [1, 1, 1], "num_group_tokens": [8, 4, 0], "num_output_groups": [8, 4, 4]}
    config = transformers.GroupViTConfig(
        text_config=TEXT, vision_config=vision, projection_dim=24, projection_intermediate_dim=32
    )
    return transformers.GroupViTModel(config), transformers.CLIPImageProcessorPil(**CROP)


def _aimv2():
    config = transformers.Aimv2Config(text_config=TEXT, vision_config=VISION, projection_dim=24)
    return transformers.Aimv2Model(config), transformers.CLIPImageProcessorPil(**CROP)


def _pe_video():
    text = {**TOWER, "model_type": "modernbert", "vocab_size": 49408, "max_position_embeddings": 64}
    text |= {"pad_token_id": 49407, "bos_token_id": 49406, "cls_token_id": 49406, "sep_token_id": 49407}
    vision = {"architecture": "vit_tiny_patch16_224", "num_classes": 24, "global_pool": "token"}
    vision |= {"model_args": {"img_size": 32, "embed_dim": 24, "depth": 1, "num_heads": 2}, "do_pooling": True}
    video = {**TOWER, "head_dim": 16, "vision_config": {**vision, "model_type": "timm_wrapper"}}
    model = transformers.PeVideoModel(transformers.PeVideoConfig(text_config=text, video_config=video))
    _set_scale(model, bias=20.0)
    return model, None


@torch.no_grad()
def _set_scale(model: transformers.PeVideoModel, bias: float):
    """Set what is zero in a new model. The bias puts the logits of the tests near 0."""
    model.text_video_logit_scale.fill_(10.0)
    model.text_video_logit_bias.fill_(bias)


def _pe_audio_video():
    """PE-AV, as it is published: a PE-Video and branches that hear."""
    video = _pe_video()[0].config
    tower = {**TOWER, "head_dim": 16}
    codec = {"model_type": "dac", "encoder_hidden_size": 8, "decoder_hidden_size": 16, "codebook_size": 8}
    codec |= {"n_codebooks": 1, "codebook_dim": 4, "downsampling_ratios": [2, 4], "upsampling_ratios": [4, 2]}
    branches = {"audio_config": {**tower, "dac_config": codec}, "video_config": video.video_config.to_dict()}
    config = transformers.PeAudioVideoConfig(
        text_config=video.text_config.to_dict(), audio_video_config={**tower, **branches}
    )
    model = transformers.PeAudioVideoModel(config)
    _set_scale(model.video_model, bias=1.0)
    return model, None


# The image processor is None where transformers' own needs torchvision.
MAKERS = {
    "xclip": _xclip,
    "videoprism": _videoprism,
    "tipsv2": _tipsv2,
    "clipseg": _clipseg,
    "groupvit": _groupvit,
    "aimv2": _aimv2,
    "pe_video": _pe_video,
    "pe_audio_video": _pe_audio_video,
}


def make_rival(model_type: str, folder: Path) -> Path:
    """Save a tiny random model of a family, its processor, and CLIP's tokenizer. Returns the folder."""
    tokenizer = load_bpe_tokenizer(shared_path("tokenizer", "bpe_simple_vocab_16e6.txt.gz"))
    torch.manual_seed(0)
    model, image_processor = MAKERS[model_type]()
    with torch.no_grad():  # the initial range of small towers hardly tells videos apart
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if model_type == "xclip":
        transformers.XCLIPProcessor(image_processor, tokenizer).save_pretrained(folder)
    elif image_processor is not None:
        image_processor.save_pretrained(folder)
    elif model_type.startswith("pe_"):  # its video processor cannot be made without torchvision
        options = {"size": SQUARE, "do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255}
        options |= {"do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        options["video_processor_type"] = "PeVideoVideoProcessor"
        (folder / "video_preprocessor_config.json").write_text(json.dumps(options))
    return folder
