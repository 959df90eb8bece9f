"""Tiny random replicas of published dual encoders, with the quirks of their real configurations and files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AltCLIPConfig,
    AltCLIPModel,
    BertTokenizer,
    ChineseCLIPConfig,
    ChineseCLIPImageProcessorPil,
    ChineseCLIPModel,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    MetaClip2Config,
    MetaClip2Model,
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2ImageProcessorPil,
    Siglip2Model,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    XLMRobertaTokenizer,
)

from ezclip.cli.demo import word_tokenizer
from tests.helpers import WORDS


SIZE, PATCH = 32, 8
TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION = {**TOWER, "image_size": SIZE, "patch_size": PATCH}
TEXT = {**TOWER, "max_position_embeddings": 64}
CROP = {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}}
SQUASH = {"height": SIZE, "width": SIZE}


def siglip_tokenizer() -> PreTrainedTokenizerFast:
    """As SigLIP's: an end token, no start token, padding with the end token, and no attention mask."""
    tokens = ["<unk>", "</s>", *WORDS]
    backend = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        eos_token="</s>",
        pad_token="</s>",
        model_max_length=64,
        model_input_names=["input_ids"],
    )


def xlm_roberta_tokenizer() -> XLMRobertaTokenizer:
    """As MetaCLIP 2's and AltCLIP's: `</s>` is token 2, and words are higher. Texts may be 512 tokens long."""
    special = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    vocabulary = [*special, *((f"▁{word}", -1.0) for word in WORDS), ("<mask>", 0.0)]
    return XLMRobertaTokenizer(vocab=vocabulary, model_max_length=512)


def bert_tokenizer() -> BertTokenizer:
    """As Chinese-CLIP's: token type ids, and no end-of-text token."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    return BertTokenizer(vocab={token: i for i, token in enumerate(tokens)}, model_max_length=512)


def clip(eos_token_id: int, heads: int = 4, head_dim: int = 8, mean: float = 0.5, **vision):
    """CLIP as OpenAI and LAION published it: the towers' own `projection_dim` is a wrong default."""
    tokenizer = word_tokenizer(WORDS)
    tokenizer.model_max_length = 64
    sizes = {"num_attention_heads": heads, "hidden_size": heads * head_dim, "projection_dim": 512}
    text = {**TEXT, "projection_dim": 512, "vocab_size": len(tokenizer), "bos_token_id": 0}
    text["eos_token_id"] = eos_token_id if eos_token_id == 2 else len(tokenizer) - 1
    config = CLIPConfig(text_config=text, vision_config={**VISION, **sizes, **vision}, projection_dim=24)
    return CLIPModel(config), CLIPImageProcessorPil(**CROP, image_mean=[mean] * 3, image_std=[mean] * 3), tokenizer


def siglip(vocab_size: int):
    text = {**TEXT, "vocab_size": vocab_size, "projection_size": TEXT["hidden_size"]}
    config = SiglipConfig(text_config=text, vision_config=VISION)
    return SiglipModel(config), SiglipImageProcessorPil(size=SQUASH), siglip_tokenizer()


def siglip2_naflex():
    vision = {**TOWER, "patch_size": PATCH, "num_patches": 16}
    config = Siglip2Config(text_config={**TEXT, "vocab_size": 90}, vision_config=vision)
    return Siglip2Model(config), Siglip2ImageProcessorPil(patch_size=PATCH, max_num_patches=16), siglip_tokenizer()


def metaclip_2():
    tokenizer = xlm_roberta_tokenizer()
    text = {**TEXT, "vocab_size": len(tokenizer) + 2, "bos_token_id": 0, "eos_token_id": 2, "projection_dim": 512}
    config = MetaClip2Config(text_config=text, vision_config=VISION, projection_dim=24)
    return MetaClip2Model(config), CLIPImageProcessorPil(**CROP), tokenizer


def altclip():
    tokenizer = xlm_roberta_tokenizer()
    text = {**TEXT, "vocab_size": len(tokenizer) + 2, "pad_token_id": 1, "project_dim": 20, "projection_dim": 512}
    config = AltCLIPConfig(text_config=text, vision_config=VISION, projection_dim=24)
    return AltCLIPModel(config), CLIPImageProcessorPil(**CROP), tokenizer


def chinese_clip():
    tokenizer = bert_tokenizer()
    text = {**TEXT, "vocab_size": len(tokenizer) + 2, "pad_token_id": 0}
    config = ChineseCLIPConfig(text_config=text, vision_config=VISION, projection_dim=24)
    processor = ChineseCLIPImageProcessorPil(size=SQUASH, do_center_crop=False)
    return ChineseCLIPModel(config), processor, tokenizer


REPLICAS: dict[str, Callable[[], tuple[Any, Any, Any]]] = {
    "clip": lambda: clip(eos_token_id=49407, mean=0.48),
    "laion_h": lambda: clip(eos_token_id=2, heads=2, head_dim=80, hidden_act="gelu"),
    "laion_g": lambda: clip(eos_token_id=2, heads=1, head_dim=88, hidden_act="gelu"),
    "laion_bigg": lambda: clip(eos_token_id=2, heads=1, head_dim=104, hidden_act="gelu"),
    "siglip": lambda: siglip(vocab_size=60),
    "siglip2_fixed": lambda: siglip(vocab_size=256),  # its `model_type` is "siglip"
    "siglip2_naflex": siglip2_naflex,
    "metaclip_2": metaclip_2,
    "altclip": altclip,
    "chinese_clip": chinese_clip,
}
# One of each family whose towers differ
FAMILIES = ("clip", "siglip", "siglip2_naflex", "metaclip_2", "altclip", "chinese_clip")


def make_replica(name: str, folder: Path):
    """Save a replica, as its publisher did, and return the model as transformers loads it."""
    torch.manual_seed(sorted(REPLICAS).index(name))
    model, image_processor, tokenizer = REPLICAS[name]()
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if weight.ndim > 1 or "bias" in key:  # transformers' initial values make nearly equal embeddings
                weight.normal_(std=0.08)
    if name == "laion_g":
        model.half()
    for part in (model, image_processor, tokenizer):
        part.save_pretrained(folder)
    if name == "altclip":
        rename_weights(folder, ("roberta.encoder.layers.", "roberta.encoder.layer."))
    return type(model).from_pretrained(folder, dtype=torch.float32).eval()


def rename_weights(folder: Path, *renamed: tuple[str, str]):
    """Replace parts of the names of the weights of a saved model."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    for old, new in renamed:
        weights = {name.replace(old, new): weight for name, weight in weights.items()}
    save_file(weights, path, metadata={"format": "pt"})
