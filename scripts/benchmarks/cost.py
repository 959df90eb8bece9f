"""`cost`: parameters, trained parameters and multiply-accumulates of models, without weights and without timing."""

import argparse
import copy

import torch
from torch import nn

from configuration_ezclip import PRESETS
from ezclip.systems.macs import count_macs, count_macs_of
from ezclip.utils.tables import as_markdown_table
from ezclip.utils.timing import describe_machine, machine_as_text
from modeling_ezclip import EZClipModel, EZClipTextModel, PackedTexts
from scripts.benchmarks.models import embed, make_config, make_model, make_rivals, name_of_model


# Tokens of a label in a sentence, such as "a video of juggling balls" with CLIP's beginning and end of text
LABEL_LENGTH = 8


def run(args: argparse.Namespace) -> dict:
    """Count parameters and multiply-accumulates."""
    if args.model_name_or_path is None:
        configs = {preset: make_config(args, preset) for preset in args.presets or PRESETS}
    elif args.presets is None:
        configs = {name_of_model(args): make_model(args).config}
    else:
        configs = {preset: make_model(args, preset).config for preset in args.presets}
    models = []
    for name, config in configs.items():
        with torch.device("meta"):
            model = EZClipModel(config)
        alone = count_macs(model, output_last_hidden_state=False)
        models.append(_row(name, model, count_macs(model), alone, config.vision_config.num_frames))
    config = next(iter(configs.values()))
    with torch.device("meta"):
        rivals = make_rivals(config)
    vision = config.vision_config
    clip = (1, vision.num_frames, vision.num_channels, vision.image_size, vision.image_size)
    for name, rival in rivals.items():
        macs = count_macs_of(
            lambda name=name: make_rivals(config, eager=True)[name].eval(), lambda model: _embed_nothing(model, clip)
        )
        models.append(_row(name, rival, macs, macs, vision.num_frames))
    plain = copy.deepcopy(config)
    plain.text_config.use_adapter = False
    longest = config.text_config.max_position_embeddings
    texts = [
        {"model": name, "length": length, "macs": count_text_macs(tower, length)}
        for name, tower in {next(iter(configs)): config, "CLIP": plain}.items()
        for length in dict.fromkeys((longest, min(args.label_length, longest)))
    ]
    return {"machine": describe_machine(), "batch_size": 1, "dtype": None, "models": models, "texts": texts}


@torch.no_grad()
def count_text_macs(config, length: int, batch_size: int = 1) -> int:
    """Multiply-accumulates of embedding texts of so many tokens."""
    text = copy.deepcopy(config.text_config)
    text._attn_implementation = "eager"
    macs = count_macs_of(
        lambda: EZClipTextModel(text).eval(),
        lambda model: model(input_ids=torch.zeros(batch_size, length, dtype=torch.long)),
    )
    return macs + batch_size * text.hidden_size * config.projection_dim


@torch.no_grad()
def count_bank_macs(config, texts: list[list[int]], batch_size: int) -> int:
    """Multiply-accumulates of embedding the tokens of texts as a class bank does, what they share once."""
    text, texts = copy.deepcopy(config.text_config), sorted(texts)
    text._attn_implementation = "eager"
    batches = [texts[start : start + batch_size] for start in range(0, len(texts), batch_size)]
    packed = [PackedTexts.pack(batch, torch.device("meta")) for batch in batches]
    macs = count_macs_of(
        lambda: EZClipTextModel(text).eval(), lambda model: [model.embed_packed(batch) for batch in packed]
    )
    return macs + len(texts) * text.hidden_size * config.projection_dim


@torch.no_grad()
def _embed_nothing(model: nn.Module, size: tuple[int, ...]):
    embed(model, torch.empty(size))


def _row(name: str, model: nn.Module, macs: int, macs_alone: int, num_frames: int) -> dict:
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return {
        "model": name,
        "num_frames": num_frames,
        "num_parameters": model.num_parameters(),
        "num_trained_parameters": trained,
        "macs_per_clip": macs,
        "macs_of_embedding_alone": macs_alone,
    }


def as_text(result: dict) -> str:
    """Return the tables of a result as text."""
    floor = next(row for row in result["models"] if row["model"] == "CLIPVisionModel")
    per_frame = floor["macs_per_clip"] / floor["num_frames"]
    rows = [
        [
            row["model"],
            f"{row['num_parameters']:,}",
            f"{row['num_trained_parameters']:,}",
            str(row["num_frames"]),
            f"{row['macs_per_clip'] / 1e9:.4g}",
            f"{row['macs_per_clip'] / row['num_frames'] / per_frame:.3f}",
            f"{row['macs_of_embedding_alone'] / 1e9:.4g}",
            f"{row['macs_of_embedding_alone'] / row['num_frames'] / per_frame:.3f}",
        ]
        for row in result["models"]
    ]
    texts = [[text["model"], str(text["length"]), f"{text['macs'] / 1e9:.4g}"] for text in result["texts"]]
    header = ["model", "parameters", "trained", "frames", "GMAC a clip", "a frame, of CLIPVisionModel's"]
    header += ["embedding alone, GMAC", "a frame, of CLIPVisionModel's"]
    return (
        f"{machine_as_text(result['machine'])}\n\nMultiply-accumulates (10^9) of embedding one clip: of all linear "
        "layers, the convolution and both products of every attention; counted, not timed. For the embedding alone "
        "(`output_last_hidden_state=False`, as pipeline, script and training ask) ours computes of its last block the "
        "CLS token.\n\n"
        f"{as_markdown_table(header, rows)}\n\n{as_markdown_table(['text tower of', 'tokens', 'GMAC a text'], texts)}"
    )
