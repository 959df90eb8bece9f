"""`cost`: count parameters and multiply-accumulates of models. Needs no weights and times nothing."""

import argparse
import copy
from collections.abc import Callable

import torch

from configuration_ezclip import PRESETS, EZClipConfig
from ezclip.systems.macs import count_macs, count_macs_of
from ezclip.utils.tables import as_table
from modeling_ezclip import EZClipModel, EZClipTextModel, PackedTexts
from scripts.benchmarks.models import (
    count_model_macs,
    embed,
    make_config,
    make_model,
    make_rivals,
    name_of_model,
    pixels_size,
)


def run(args: argparse.Namespace, device: torch.device) -> dict:
    """Count parameters and multiply-accumulates."""
    if args.model_name_or_path is None:
        configs = {preset: make_config(args, preset) for preset in args.presets or PRESETS}
    elif args.presets is None:
        configs = {name_of_model(args): make_model(args).config}
    else:
        configs = {preset: make_model(args, preset).config for preset in args.presets}
    name, config = next(iter(configs.items()))
    with torch.device("meta"):
        models = {own: EZClipModel(configs[own]) for own in configs} | make_rivals(config)
        empty_clip = torch.empty(pixels_size(config))
    rows = []
    for own, model in models.items():
        if isinstance(model, EZClipModel):
            macs, alone = count_macs(model), count_macs(model, output_last_hidden_state=False)
        else:
            macs = alone = count_model_macs(model.eval(), lambda model: embed(model, empty_clip))
        rows.append(
            {
                "model": own,
                "num_frames": configs.get(own, config).vision_config.num_frames,
                "num_parameters": model.num_parameters(),
                "num_trained_parameters": model.num_parameters(only_trainable=True),
                "macs_per_clip": macs,
                "macs_of_embedding_alone": alone,
            }
        )
    plain = copy.deepcopy(config)
    plain.text_config.use_adapter = False
    longest = config.text_config.max_position_embeddings
    texts = [
        {"model": own, "length": length, "macs": count_text_macs(tower, length)}
        for own, tower in {name: config, "CLIP": plain}.items()
        for length in dict.fromkeys((longest, min(args.label_length, longest)))
    ]
    return {"models": rows, "texts": texts}


def count_text_macs(config: EZClipConfig, length: int) -> int:
    """Return the multiply-accumulates of embedding a text of `length` tokens."""
    return _count_texts(config, 1, lambda tower: tower(input_ids=torch.zeros(1, length, dtype=torch.long)))


def count_bank_macs(config: EZClipConfig, texts: list[list[int]], batch_size: int) -> int:
    """Return the multiply-accumulates of embedding token lists as a class bank does: shared prefixes count once."""
    texts = sorted(texts)
    batches = [texts[start : start + batch_size] for start in range(0, len(texts), batch_size)]
    packed = [PackedTexts.pack(batch, torch.device("meta")) for batch in batches]
    return _count_texts(config, len(texts), lambda tower: [tower.embed_packed(batch) for batch in packed])


@torch.no_grad()
def _count_texts(config: EZClipConfig, num_texts: int, run: Callable[[EZClipTextModel], object]) -> int:
    text = copy.deepcopy(config.text_config)
    text._attn_implementation = "eager"
    return (
        count_macs_of(lambda: EZClipTextModel(text).eval(), run) + num_texts * text.hidden_size * config.projection_dim
    )


def as_text(result: dict) -> list[str]:
    """Return the paragraphs and tables of a result."""
    clip = next(row for row in result["models"] if row["model"] == "CLIPVisionModel")
    rows = []
    for row in result["models"]:
        factor = clip["num_frames"] / row["num_frames"] / clip["macs_per_clip"]
        keys = ("macs_per_clip", "macs_of_embedding_alone")
        rows.append({**row, **{f"{key} / CLIP": factor * row[key] for key in keys}})
    columns = {
        "model": ("model",),
        "parameters": ("num_parameters", ","),
        "trained": ("num_trained_parameters", ","),
        "frames": ("num_frames",),
        "GMAC per clip": ("macs_per_clip", ".4g", 1e-9),
        "per frame / CLIPVisionModel": ("macs_per_clip / CLIP", ".3f"),
        "embedding only, GMAC": ("macs_of_embedding_alone", ".4g", 1e-9),
        "embedding only, per frame / CLIPVisionModel": ("macs_of_embedding_alone / CLIP", ".3f"),
    }
    text_columns = {"text tower": ("model",), "tokens": ("length",), "GMAC per text": ("macs", ".4g", 1e-9)}
    return [
        "Multiply-accumulates (10^9) of embedding one clip: linear layers, the convolution and both products of each "
        "attention. They are counted, not timed. `embedding only` is `output_last_hidden_state=False`, which "
        "pipeline, script and training use: the last block of ezclip then computes its CLS token only.",
        as_table(rows, columns),
        as_table(result["texts"], text_columns),
    ]
