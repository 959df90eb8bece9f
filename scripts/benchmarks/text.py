"""`text`: build a class bank, and embed the same prompts padded to the maximal length, as the published code does."""

import argparse
import copy
from collections.abc import Callable
from itertools import product

import torch
from accelerate import Accelerator

from ezclip.cli.demo import word_tokenizer
from ezclip.data.labels import read_label_list
from ezclip.systems.loading import load_processor, load_tokenizer
from ezclip.utils.tables import as_markdown_table
from ezclip.utils.timing import compare, describe_machine, machine_as_text, measure, summarize
from modeling_ezclip import EZClipModel
from pipeline_ezclip import BATCH_SIZE as CLASS_BANK_BATCH_SIZE, ClassBank
from processing_ezclip import TEMPLATES, EZClipProcessor, default_image_processor
from scripts.benchmarks.cost import count_bank_macs, count_text_macs
from scripts.benchmarks.matrix import DTYPES, MatrixProducts, rates_as_text, share_of
from scripts.benchmarks.models import layer_shapes, make_config, make_model, name_of_model
from scripts.benchmarks.report import ratio_as_text, share_as_text, spread_as_text


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


def load(args: argparse.Namespace, labels: list[str]) -> tuple[EZClipModel, EZClipProcessor]:
    """
    Load model and processor. If no tokenizer is given or saved with the model, each word is a token.

    Raises:
        [`ModelError`]: if the model or the tokenizer cannot be loaded.
    """
    if args.model_name_or_path is not None:
        processor = load_processor(args.model_name_or_path, args.tokenizer_name, args.num_frames, args.preset)
        return make_model(args).eval(), processor
    if args.tokenizer_name is not None:
        tokenizer = load_tokenizer(args.tokenizer_name)
    else:
        tokenizer = word_tokenizer(sorted({word for text in (*TEMPLATES, *labels) for word in text.lower().split()}))
    tokens = {"vocab_size": len(tokenizer)}
    tokens |= {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = make_config(args, args.preset, tokens)
    tokenizer.model_max_length = config.text_config.max_position_embeddings
    torch.manual_seed(0)
    return EZClipModel(config).eval(), EZClipProcessor(default_image_processor(), tokenizer)


@torch.no_grad()
def embed_padded(model: EZClipModel, processor: EZClipProcessor, texts: list[str]) -> torch.Tensor:
    """Embed texts padded to the maximal length. A causal tower needs no mask for padding after the text."""
    embeds = []
    for start in range(0, len(texts), BATCH_SIZE):
        batch = texts[start : start + BATCH_SIZE]
        inputs = processor(text=batch, padding="max_length", truncation=True, return_tensors="pt")
        embeds.append(model.get_text_features(inputs["input_ids"].to(model.device)).pooler_output.float())
    return torch.nn.functional.normalize(torch.cat(embeds), dim=-1)


def run(args: argparse.Namespace) -> dict:
    """Time all methods, and compare their embeddings."""
    labels = make_labels(args.num_labels or 400) if args.label_list is None else read_label_list(args.label_list)
    labels = labels[: args.num_labels]
    model, processor = load(args, labels)
    device = Accelerator(cpu=args.use_cpu).device
    models = {"float32": model.to(device), "bf16": copy.deepcopy(model).to(torch.bfloat16)}
    texts = [text for own in processor.get_prompts(labels) for row in own for text in row]
    longest = processor.tokenizer.model_max_length
    padded, results = f"padded to {longest} tokens", {}

    def store_result(method: tuple[str, str], embed: Callable[[], torch.Tensor]) -> Callable[[], None]:
        return lambda: results.update({method: embed()})

    methods = {
        (padded, "float32"): lambda: embed_padded(models["float32"], processor, texts),
        ("class bank", "float32"): lambda: ClassBank.build(models["float32"], processor, labels).embeds,
        ("class bank", "bf16"): lambda: ClassBank.build(models["bf16"], processor, labels).embeds,
    }
    config = model.config.text_config
    shapes = layer_shapes(config.hidden_size, config.intermediate_size, BATCH_SIZE * longest)
    products = MatrixProducts(shapes, DTYPES, device)
    contenders = {method: store_result(method, embed) for method, embed in methods.items()}
    timings = measure(
        {**contenders, **products.contenders()},
        args.rounds,
        device,
        may_fail=True,
        warm_up={(padded, "float32"): lambda: embed_padded(models["float32"], processor, texts[:BATCH_SIZE])},
    )
    rates = products.rates(timings)
    reference = results[padded, "float32"].unflatten(0, (len(labels), -1)).transpose(0, 1)  # [P, C, D]
    tokens = processor(text=list(dict.fromkeys(texts)), padding=False, truncation=True)["input_ids"]
    macs = {
        padded: len(texts) * count_text_macs(model.config, longest),
        "class bank": count_bank_macs(model.config, tokens, CLASS_BANK_BATCH_SIZE),
    }
    rows = []
    for way, precision in methods:
        row, timing = {"way": way, "precision": precision}, timings[way, precision]
        if timing.failed is not None:
            rows.append({**row, "failed": timing.failed})
            continue
        seconds, embeds = summarize(timing.wall), results[way, precision]
        row |= {"seconds": seconds, "texts_per_second": len(texts) / seconds["median"], "macs": macs[way]}
        row["share_of_matrix_rate"] = share_of(macs[way], seconds["median"], rates, precision)
        if way != padded:
            row["times_faster"] = compare(timings[padded, "float32"].wall, timing.wall)
            row["largest_difference"] = float((embeds.cpu() - reference.cpu()).abs().max())
        rows.append(row)
    return {
        "machine": describe_machine(device),
        "model": name_of_model(args),
        "size": f"{config.num_hidden_layers} blocks of {config.hidden_size} channels",
        "tokenizer": args.tokenizer_name or args.model_name_or_path or "a token a word",
        "num_labels": len(labels),
        "num_templates": len(texts) // len(labels),
        "mean_tokens": sum(map(len, tokens)) / len(tokens),
        "num_beginnings": len({tuple(text[: end + 1]) for text in tokens for end in range(len(text))}),
        "longest": longest,
        "batch_size": BATCH_SIZE,
        "rounds": args.rounds,
        "matrix": rates,
        "rows": rows,
    }


def as_text(result: dict) -> str:
    """Return the tables of a result as text."""
    header = ["method", "precision", "s (quartiles)", "texts/s", "GMAC", "share of matrix rate"]
    header += ["speedup over padding (range)", "largest difference"]
    rows = [[row["way"], row["precision"], *_cells(row)] for row in result["rows"]]
    parts = [
        machine_as_text(result["machine"]),
        f"{result['num_labels']} labels in {result['num_templates']} templates, tokenized and embedded. Tokenizer: "
        f"{result['tokenizer']}; mean length {result['mean_tokens']:.1f} tokens; {result['num_beginnings']} distinct "
        f"prefixes of texts. Model: {result['model']}; text tower: {result['size']}. Padded texts are embedded in "
        f"batches of {result['batch_size']}. Median of {result['rounds']} rounds.",
        as_markdown_table(header, rows),
        rates_as_text(result["matrix"]),
    ]
    return "\n\n".join(parts)


def _cells(row: dict) -> list[str]:
    if "failed" in row:
        return [f"failed: {row['failed']}", *["-"] * 5]
    difference = row.get("largest_difference")
    return [
        spread_as_text(row["seconds"], 3),
        f"{row['texts_per_second']:.4g}",
        f"{row['macs'] / 1e9:.4g}",
        share_as_text(row["share_of_matrix_rate"]),
        ratio_as_text(row.get("times_faster")),
        "-" if difference is None else f"{difference:.1e}",
    ]
