"""`cost`: count parameters and multiply-accumulates of models. Needs no weights and times nothing."""

import argparse

import torch
from transformers import PreTrainedModel

from configuration_ezclip import PRESETS
from ezclip.systems.loading import check_fit, load_processor
from ezclip.systems.macs import count_clip_macs, count_macs
from ezclip.utils.tables import as_table
from modeling_ezclip import EZClipModel
from scripts.benchmarks.models import (
    count_model_macs,
    embed,
    load_rival,
    make_config,
    make_model,
    make_rivals,
    name_of_model,
    pixels_size,
)


def run(args: argparse.Namespace, device: torch.device) -> dict:
    """Count parameters and multiply-accumulates."""
    rows, configs = [], {}
    if args.presets is None and (rival := load_rival(args)) is not None:
        processor = load_processor(args.model_name_or_path, num_frames=args.num_frames)
        check_fit(rival, processor)
        macs = count_clip_macs(rival, processor)
        rows.append(make_row(name_of_model(args), processor.num_frames, rival, macs, macs))
    elif args.model_name_or_path is None:
        configs = {preset: make_config(args, preset) for preset in args.presets or PRESETS}
    elif args.presets is None:
        configs = {name_of_model(args): make_model(args).config}
    else:
        configs = {preset: make_model(args, preset).config for preset in args.presets}
    config = next(iter(configs.values()), make_config(args, None))
    with torch.device("meta"):
        models = {own: EZClipModel(configs[own]) for own in configs} | make_rivals(config)
        empty_clip = torch.empty(pixels_size(config))
    for own, model in models.items():
        if isinstance(model, EZClipModel):
            macs, alone = count_macs(model), count_macs(model, output_last_hidden_state=False)
        else:
            macs = alone = count_model_macs(model.eval(), lambda model: embed(model, empty_clip))
        rows.append(make_row(own, configs.get(own, config).vision_config.num_frames, model, macs, alone))
    return {"models": rows}


def make_row(name: str, num_frames: int, model: PreTrainedModel, macs: int, alone: int) -> dict:
    """Return the row of a model. `alone` are the multiply-accumulates of the embedding alone."""
    return {
        "model": name,
        "num_frames": num_frames,
        "num_parameters": model.num_parameters(),
        "num_trained_parameters": model.num_parameters(only_trainable=True),
        "macs_per_clip": macs,
        "macs_of_embedding_alone": alone,
    }


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
    return [
        "Multiply-accumulates (10^9) of embedding one clip: linear layers, the convolution and both products of each "
        "attention. They are counted, not timed. `embedding only` is `output_last_hidden_state=False`, which "
        "pipeline, script and training use: the last block of ezclip then computes its CLS token only.",
        as_table(rows, columns),
    ]
