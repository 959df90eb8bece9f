"""`text`: a class bank, next to prompts that are all padded to what the tower reads, as in the published code."""

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
from pipeline_ezclip import BATCH_SIZE as CLASS_BANK_BATCH_SIZE
from pipeline_ezclip import ClassBank
from processing_ezclip import TEMPLATES, EZClipProcessor, default_image_processor
from scripts.benchmarks.cost import count_bank_macs, count_text_macs
from scripts.benchmarks.matrix import DTYPES, MatrixProducts, rates_as_text, share_of
from scripts.benchmarks.models import layer_shapes, make_config, make_model, name_of_model
from scripts.benchmarks.report import ratio_as_text, share_as_text, spread_as_text


# Labels of two to four words, as data sets have them, where no list is given
VERBS = (
    *(
        "throwing",
        "catching",
        "carrying",
        "painting",
        "washing",
        "folding",
        "cutting",
        "opening",
        "closing",
        "lifting",
    ),
    *(
        "pushing",
        "pulling",
        "cleaning",
        "drawing",
        "building",
        "breaking",
        "juggling",
        "peeling",
        "repairing",
        "riding",
    ),
)
OBJECTS = (
    *("a ball", "a bicycle", "boxes", "a car", "clothes", "a door", "an orange", "a horse", "paper", "a chair"),
    *("a window", "bread", "a guitar", "a rope", "stones", "a boat", "a wooden table", "flowers", "a hat", "shoes"),
)
# Padded texts of a batch: more are no faster on a processor
BATCH_SIZE = 64


def make_labels(num_labels: int) -> list[str]:
    """Return `num_labels` action labels; from 401 on they are numbered."""
    actions = [f"{verb} {thing}" for verb, thing in product(VERBS, OBJECTS)]
    rounds = range(1 + num_labels // len(actions))
    return [action if again == 0 else f"{action} {again}" for again in rounds for action in actions][:num_labels]


def load(args: argparse.Namespace, labels: list[str]) -> tuple[EZClipModel, EZClipProcessor]:
    """
    Load model and processor. Without CLIP's tokenizer, each word of the texts is a token.

    Raises:
        [`ModelError`]: if there is no such model, or no such tokenizer.
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
    """Embed every text padded to the maximal length, without a mask, which a causal tower does not need."""
    embeds = []
    for start in range(0, len(texts), BATCH_SIZE):
        batch = texts[start : start + BATCH_SIZE]
        inputs = processor(text=batch, padding="max_length", truncation=True, return_tensors="pt")
        embeds.append(model.get_text_features(inputs["input_ids"].to(model.device)).pooler_output.float())
    return torch.nn.functional.normalize(torch.cat(embeds), dim=-1)


def run(args: argparse.Namespace) -> dict:
    """Time all ways, and compare their embeddings."""
    labels = make_labels(args.num_labels or 400) if args.label_list is None else read_label_list(args.label_list)
    labels = labels[: args.num_labels]
    model, processor = load(args, labels)
    device = Accelerator(cpu=args.use_cpu).device
    models = {"float32": model.to(device), "bf16": copy.deepcopy(model).to(torch.bfloat16)}
    texts = [text for own in processor.get_prompts(labels) for row in own for text in row]
    longest = processor.tokenizer.model_max_length
    padded, results = f"padded to {longest} tokens", {}

    def keeping(name: str, embed: Callable[[], torch.Tensor]) -> Callable[[], None]:
        return lambda: results.update({name: embed()})

    ways = {
        (padded, "float32"): lambda: embed_padded(models["float32"], processor, texts),
        ("class bank", "float32"): lambda: ClassBank.build(models["float32"], processor, labels).embeds,
        ("class bank", "bf16"): lambda: ClassBank.build(models["bf16"], processor, labels).embeds,
    }
    config = model.config.text_config
    shapes = layer_shapes(config.hidden_size, config.intermediate_size, BATCH_SIZE * longest)
    products = MatrixProducts(shapes, DTYPES, device)
    contenders = {way: keeping(way, embed) for way, embed in ways.items()}
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
    for way, precision in ways:
        row, timing = {"way": way, "precision": precision}, timings[way, precision]
        if timing.failed is not None:
            rows.append({**row, "failed": timing.failed})
            continue
        seconds, embeds = summarize(timing.wall), results[way, precision]
        row |= {"seconds": seconds, "texts_per_second": len(texts) / seconds["median"]}
        if way in macs:
            row["macs"] = macs[way]
            row["share_of_matrix_rate"] = share_of(macs[way], seconds["median"], rates, precision)
        if way != padded:
            row["times_faster"] = compare(timings[padded, "float32"].wall, timing.wall)
            row["part_of_building"] = compare(timing.wall, timings["class bank", "float32"].wall)
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
    header = ["way", "precision", "s (quartiles)", "texts/s", "GMAC", "of the matrix rate"]
    header += ["times faster than padded (rounds)", "part of building (rounds)", "largest difference"]
    rows = [[row["way"], row["precision"], *_cells(row)] for row in result["rows"]]
    parts = [
        machine_as_text(result["machine"]),
        f"{result['num_labels']} labels in {result['num_templates']} templates, tokenized and embedded. Tokenizer: "
        f"{result['tokenizer']}, {result['mean_tokens']:.1f} tokens a text, of all {result['num_beginnings']} that "
        f"differ in themselves or what is before them. {result['model']}, text tower of "
        f"{result['size']}; padded texts in batches of {result['batch_size']}; median of {result['rounds']} rounds.",
        as_markdown_table(header, rows),
        rates_as_text(result["matrix"]),
    ]
    return "\n\n".join(parts)


def _cells(row: dict) -> list[str]:
    if "failed" in row:
        return [f"failed: {row['failed']}", *["-"] * 6]
    difference = row.get("largest_difference")
    return [
        spread_as_text(row["seconds"], 3),
        f"{row['texts_per_second']:.4g}",
        f"{row['macs'] / 1e9:.4g}" if "macs" in row else "-",
        share_as_text(row.get("share_of_matrix_rate")),
        ratio_as_text(row.get("times_faster")),
        ratio_as_text(row.get("part_of_building")),
        "-" if difference is None else f"{difference:.1e}",
    ]
