"""`text`: build a class bank, and embed the same prompts padded to the maximal length, as the published code does."""

import argparse
import copy
from collections.abc import Callable
from itertools import product

import torch

from configuration_ezclip import EZClipConfig
from ezclip.cli.demo import word_tokenizer
from ezclip.data.labels import read_label_list
from ezclip.encoders import RivalEncoder, check_trainable
from ezclip.systems.loading import check_fit, load_processor, load_tokenizer
from ezclip.systems.macs import count_macs_of
from modeling_ezclip import EZClipModel, EZClipTextModel, PackedTexts
from pipeline_ezclip import BATCH_SIZE as CLASS_BANK_BATCH_SIZE, ClassBank
from processing_ezclip import TEMPLATES, EZClipProcessor, default_image_processor
from scripts.benchmarks.harness import (
    Contender,
    kernels_as_shipped,
    measure_contenders,
    rates_as_text,
    ratio,
    results_as_table,
)
from scripts.benchmarks.models import layer_shapes, load_rival, make_config, make_model, name_of_model


# Made-up labels of two to four words, used without --label_list
# fmt: off
VERBS = (
    "throwing", "catching", "carrying", "painting", "washing", "folding", "cutting", "opening", "closing", "lifting",
    "pushing", "pulling", "cleaning", "drawing", "building", "breaking", "juggling", "peeling", "repairing", "riding",
)
OBJECTS = (
    "a ball", "a bicycle", "boxes", "a car", "clothes", "a door", "an orange", "a horse", "paper", "a chair",
    "a window", "bread", "a guitar", "a rope", "stones", "a boat", "a wooden table", "flowers", "a hat", "shoes",
)
# fmt: on
# Padded texts of a batch; larger batches are not faster on a CPU
BATCH_SIZE = 64


def make_labels(num_labels: int) -> list[str]:
    """Return `num_labels` made-up labels. Label 401 and later ones get a number, because there are 400 actions."""
    actions = [f"{verb} {thing}" for verb, thing in product(VERBS, OBJECTS)]
    numbers = range(1 + num_labels // len(actions))
    return [f"{action} {number}" if number else action for number in numbers for action in actions][:num_labels]


def load(args: argparse.Namespace, num_labels: int) -> tuple[EZClipModel | RivalEncoder, EZClipProcessor, list[str]]:
    """
    Load model, processor and labels. `num_labels` is the default number of made-up labels.

    If no tokenizer is given or saved with the model, each word is a token.
    """
    if args.label_list is None:
        labels = make_labels(args.num_labels or num_labels)
    else:
        labels = read_label_list(args.label_list)[: args.num_labels]
    if args.model_name_or_path is not None:
        processor = load_processor(args.model_name_or_path, args.tokenizer_name, args.num_frames, args.preset)
        if (rival := load_rival(args)) is not None:
            check_fit(rival, processor)
            return rival, processor, labels
        return make_model(args).eval(), processor, labels
    if args.tokenizer_name is not None:
        tokenizer = load_tokenizer(args.tokenizer_name)
    else:
        tokenizer = word_tokenizer(sorted({word for text in (*TEMPLATES, *labels) for word in text.lower().split()}))
    tokens = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = make_config(args, args.preset, {"vocab_size": len(tokenizer), **tokens})
    tokenizer.model_max_length = config.text_config.max_position_embeddings
    torch.manual_seed(0)
    return EZClipModel(config).eval(), EZClipProcessor(default_image_processor(), tokenizer), labels


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


@kernels_as_shipped()
@torch.no_grad()
def embed_padded(model: EZClipModel, processor: EZClipProcessor, texts: list[str]) -> torch.Tensor:
    """Embed texts padded to the maximal length. A causal tower needs no mask for padding after the text."""
    embeds = []
    for start in range(0, len(texts), BATCH_SIZE):
        batch = texts[start : start + BATCH_SIZE]
        inputs = processor(text=batch, padding="max_length", truncation=True, return_tensors="pt")
        embeds.append(model.get_text_features(inputs["input_ids"].to(model.device)).pooler_output.float())
    return torch.nn.functional.normalize(torch.cat(embeds), dim=-1)


def run(args: argparse.Namespace, device: torch.device) -> dict:
    """Time all methods, and compare their embeddings."""
    model, processor, labels = load(args, 400)
    check_trainable(args.model_name_or_path, model.config.model_type)  # the packed texts are those of our text tower
    models = {"float32": model.to(device), "bf16": copy.deepcopy(model).to(torch.bfloat16)}
    texts = [text for own in processor.get_prompts(labels) for row in own for text in row]
    tokens = processor(text=list(dict.fromkeys(texts)), padding=False, truncation=True)["input_ids"]
    config, longest = model.config.text_config, processor.tokenizer.model_max_length
    baseline = (f"padded to {longest} tokens", "float32")
    contenders = {
        baseline: Contender(
            lambda: embed_padded(models["float32"], processor, texts),
            "float32",
            len(texts),
            len(texts) * count_text_macs(model.config, longest),
            warm_up=lambda: embed_padded(models["float32"], processor, texts[:BATCH_SIZE]),
        )
    }
    bank_macs = count_bank_macs(model.config, tokens, CLASS_BANK_BATCH_SIZE)
    for name, own in models.items():
        contenders["class bank", name] = Contender(
            lambda own=own: ClassBank.build(own, processor, labels).embeds, name, len(texts), bank_macs
        )
    shapes = layer_shapes(config, BATCH_SIZE * longest)
    rows, rates = measure_contenders(contenders, shapes, args.rounds, device, items="texts")
    for key, row in rows.items():
        row |= {"way": key[0], "macs": contenders[key].macs}
        if key != baseline and "failed" not in row and "failed" not in rows[baseline]:
            reference = contenders[baseline].result.unflatten(0, (len(labels), -1)).transpose(0, 1)  # [P, C, D]
            row["times_faster"] = ratio(rows, baseline, key)
            row["largest_difference"] = float((contenders[key].result.cpu() - reference.cpu()).abs().max())
    return {
        "model": name_of_model(args),
        "size": f"{config.num_hidden_layers} blocks of {config.hidden_size} channels",
        "tokenizer": args.tokenizer_name or args.model_name_or_path or "a token a word",
        "num_labels": len(labels),
        "num_templates": len(texts) // len(labels),
        "mean_tokens": sum(map(len, tokens)) / len(tokens),
        "num_prefixes": len({tuple(text[: end + 1]) for text in tokens for end in range(len(text))}),
        "longest": longest,
        "batch_size": BATCH_SIZE,
        "matrix": rates,
        "rows": list(rows.values()),
    }


def as_text(result: dict) -> list[str]:
    """Return the paragraphs and tables of a result."""
    columns = {
        "method": ("way",),
        "precision": ("precision",),
        "s (quartiles)": ("seconds", ".3f"),
        "texts/s": ("texts_per_second", ".4g"),
        "GMAC": ("macs", ".4g", 1e-9),
        "share of matrix rate": ("share_of_matrix_rate", ".0%"),
        "speedup over padding (range)": ("times_faster", ".3f"),
        "largest difference": ("largest_difference", ".1e"),
    }
    return [
        f"{result['num_labels']} labels in {result['num_templates']} templates, tokenized and embedded. Tokenizer: "
        f"{result['tokenizer']}; mean length {result['mean_tokens']:.1f} tokens; {result['num_prefixes']} distinct "
        f"prefixes of texts. Model: {result['model']}; text tower: {result['size']}. Padded texts are embedded in "
        f"batches of {result['batch_size']}. Median of {result['rounds']} rounds.",
        results_as_table(result["rows"], columns),
        rates_as_text(result["matrix"]),
    ]
