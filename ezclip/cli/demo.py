"""Run `ezclip demo`: train and evaluate a tiny model without network or data.

The demo renders clips to video files, trains a tiny CLIP or SigLIP from scratch on stills, trains EZ-CLIP on top of
it, and evaluates it on classes that it has and has not seen move.

A class is a colour, a shape and a direction. The path of a clip is symmetric about a random midpoint. Reversed, the
frames of "left" are the frames of "right", so neither a single frame nor an average of frames tells them apart. One
shape is held out: the base knows it from stills, and EZ-CLIP never sees it move.
"""

import json
import math
import os
import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from tqdm.auto import tqdm
from transformers import (
    CLIPConfig,
    CLIPModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    get_cosine_schedule_with_warmup,
)

from ezclip.data.dataset import VideoDataset
from ezclip.data.sources import VideoSplit, load_folder
from ezclip.evaluation.predictions import predict
from ezclip.evaluation.protocols import harmonic_mean, summarize
from ezclip.hub.model_card import CardFacts, make_card
from ezclip.systems.loading import load_model
from ezclip.training.loop import train
from ezclip.training.recipe import TrainingRecipe
from ezclip.utils.files import write_json
from ezclip.utils.messages import say
from ezclip.utils.synthetic_clips import (
    CLIPS_PER_CLASS,
    COLOURS,
    DIRECTIONS,
    FILE_SIZE,
    NUM_FRAMES,
    SHAPES,
    draw_still,
    render_videos,
)
from ezclip.utils.tables import as_text_table, score_bar
from modeling_ezclip import EZClipModel, similarity_targets
from pipeline_ezclip import ClassBank
from processing_ezclip import EZClipProcessor, default_image_processor


IMAGE_SIZE = 32
MAX_TEXT_LENGTH = 16  # tokens
TEMPLATE = "a {}"

PARTS = ("base", "novel")  # test sets
VARIANTS = {"with_temporal_prompts": "deep", "without_temporal_prompts": "none"}
DEMO_RESULTS_NAME = "demo_results.json"
UNFINISHED_NAME = ".unfinished"  # folder of a run in the output folder
SCOPE = (
    f"The demo's toy model: it knows {len(COLOURS)} colours, {len(SHAPES)} shapes and {len(DIRECTIONS)} directions on "
    f"{FILE_SIZE} x {FILE_SIZE} pixel clips rendered by `ezclip demo`, and no real actions."
)

NUM_STILLS = 10_000
PRETRAINING_STEPS = 1200
# The model is too small for dropout.
TEXT_CONFIG = {"attention_dropout": 0.0, "drop_path_rate": 0.0}
VISION_CONFIG = {**TEXT_CONFIG, "num_frames": NUM_FRAMES, "temporal_prompt_dropout": 0.0}
DEMO_RECIPE = TrainingRecipe(
    learning_rate=1e-2,
    prompt_learning_rate=5e-2,
    text_learning_rate=1e-3,
    weight_decay=0.0,
    warmup_ratio=0.05,
    max_grad_norm=1.0,
    per_device_train_batch_size=48,
)
TRAIN_STEPS = {"clip": 400, "siglip": 600}  # of `DEMO_RECIPE`, by tower


def run_demo(
    output_dir: str | Path,
    accelerator: Accelerator,
    seed: int = 42,
    num_workers: int = 0,
    num_seeds: int = 1,
    tower: str = "clip",
) -> dict:
    """
    Run the demo. A seed takes three to five minutes on two cores, and longer on SigLIP (`TRAIN_STEPS`).

    The output folder holds `videos/`, the base model `clip/` or `siglip/`, the models `with_temporal_prompts/` and
    `without_temporal_prompts/`, with their cards and predictions, and `demo_results.json`, which names the tower.
    Earlier results are replaced at the end. Several runs have the seeds `seed`, `seed + 1`, …, each in its own folder
    (`seed42/`); `demo_results.json` summarizes them. A seed with results of the same tower is not run again.

    Returns:
        `dict`: `chance`, `with_temporal_prompts` and `without_temporal_prompts`, each with the top-1 accuracies `base`
        and `novel` and their `harmonic_mean`, as fractions. With several seeds, each of the three has `mean` and `std`
        (of a sample, see [`summarize`]), and `runs` holds the values of each seed.
    """
    output_dir = Path(output_dir)
    if num_seeds == 1:
        return run_seed(output_dir, accelerator, seed, num_workers, tower)
    by_seed = {}
    for number in range(seed, seed + num_seeds):
        folder = output_dir / f"seed{number}"
        results = read_results(folder / DEMO_RESULTS_NAME, tower)
        state = "" if results is None else f" was run before: {folder / DEMO_RESULTS_NAME}"
        accelerator.print(f"Seed {number}{state}")
        by_seed[folder.name] = results or run_seed(folder, accelerator, number, num_workers, tower)
    summary = over_seeds(by_seed)
    if accelerator.is_main_process:
        write_json(output_dir / DEMO_RESULTS_NAME, {"tower": tower, **summary})
        say(f"Seeds {seed} to {seed + num_seeds - 1}, mean ± standard deviation\n{as_table(summary)}")
    return summary


def run_seed(output_dir: Path, accelerator: Accelerator, seed: int, num_workers: int, tower: str) -> dict:
    """
    Run the demo with one seed.

    It works in a folder of its own, and moves everything over earlier results at the end: a run that is interrupted
    leaves them as they were. `demo_results.json` comes last, so that it means a finished run.
    """
    work = output_dir / UNFINISHED_NAME
    if accelerator.is_main_process:
        shutil.rmtree(work, ignore_errors=True)
        render_videos(work / "videos", seed)
        pretrain(work / tower, tower, seed, accelerator.device)
    accelerator.wait_for_everyone()
    splits = {name: load_clips(work / "videos" / name, output_dir / "videos" / name) for name in CLIPS_PER_CLASS}
    processor = EZClipProcessor.from_pretrained(work / tower)
    if accelerator.is_main_process:
        write_card(work / tower, output_dir / tower, load_model(work / tower, preset="clip"), processor)

    results = {"chance": score(*(1 / len(splits[part].class_names) for part in PARTS))}
    # Processes share the batch, so that the number of processes does not change the steps.
    share = max(2, DEMO_RECIPE.per_device_train_batch_size // accelerator.num_processes)
    recipe = replace(DEMO_RECIPE, max_train_steps=TRAIN_STEPS[tower], per_device_train_batch_size=share)
    for name, temporal_prompt in VARIANTS.items():
        accelerator.print(f"EZ-CLIP {name.replace('_', ' ')}")
        set_seed(seed)
        vision_config = {**VISION_CONFIG, "temporal_prompt": temporal_prompt}
        model = load_model(work / tower, True, vision_config, TEXT_CONFIG)
        model.config.scope = SCOPE
        prompts = processor.get_prompts(splits["train"].class_names, TEMPLATE)
        train(model, VideoDataset(splits["train"], processor, prompts, seed), recipe, accelerator, num_workers)
        model.eval()
        accuracies = []
        for part in PARTS:
            bank = ClassBank.build(model, processor, splits[part].class_names, TEMPLATE)
            options = {"batch_size": 32, "num_workers": num_workers, "desc": f"Evaluating {part}"}
            predictions = predict(model, bank, VideoDataset(splits[part], processor), accelerator, **options)
            accuracies.append(predictions.metrics()["eval_top1"])
            if accelerator.is_main_process:
                predictions.write(work / name / part)
        results[name] = score(*accuracies)
        if accelerator.is_main_process:
            model.save_pretrained(work / name)
            processor.save_pretrained(work / name)
            write_card(work / name, output_dir / name, model, processor)

    if accelerator.is_main_process:
        move_over(work, output_dir)
        write_json(output_dir / DEMO_RESULTS_NAME, {"tower": tower, **results})
        say(f"{as_table(results)}\n\n{SCOPE}")
    return results


def load_clips(folder: Path, final: Path) -> VideoSplit:
    """Load a split whose videos are called by the paths that they have at the end of the demo."""
    split = load_folder(folder)
    names = [str(final / Path(video).relative_to(folder)) for video in split.videos["video"]]
    return replace(split, videos=split.videos.remove_columns("name").add_column("name", names))


def write_card(folder: Path, final: Path, model: EZClipModel, processor: EZClipProcessor):
    """Write the card of a model, which says what it knows. `final` is its folder at the end of the demo."""
    make_card(folder, model, processor, CardFacts(str(final))).save(folder / "README.md")


def move_over(source: Path, target: Path):
    """Move all files of a folder into another, over those of the same names, and remove the folder."""
    for path in [path for path in source.rglob("*") if path.is_file()]:
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, place)
    shutil.rmtree(source)


def score(base: float, novel: float) -> dict[str, float]:
    """Return the two accuracies with their harmonic mean."""
    return {"base": base, "novel": novel, "harmonic_mean": harmonic_mean(base, novel)}


def read_results(path: Path, tower: str) -> dict | None:
    """Return the results of a finished seed, or `None` if there are none of this tower."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        if results.get("tower", "clip") != tower:
            return None
        return {name: score(*(results[name][part] for part in PARTS)) for name in ("chance", *VARIANTS)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def over_seeds(by_seed: dict[str, dict]) -> dict:
    """Summarize the results of several seeds as [`run_demo`] returns them."""
    return {
        name: summarize(
            "base_to_novel",
            {seed: {part: {"eval_top1": results[name][part]} for part in PARTS} for seed, results in by_seed.items()},
        )["summary"]
        for name in ("chance", *VARIANTS)
    }


def as_table(results: dict) -> str:
    """Return results as a table for the screen, one row for each model, with a bar for the harmonic mean."""
    columns = ("base", "novel", "harmonic_mean")
    header = ["top-1 accuracy", "base", "novel", "harmonic mean", ""]
    rows = []
    for model, row in results.items():
        mean = row["harmonic_mean"]
        bar = score_bar(mean["mean"] if isinstance(mean, dict) else mean)
        rows.append([model.replace("_", " "), *(as_percent(row[name]) for name in columns), bar])
    return as_text_table(header, rows)


def as_percent(value: float | dict) -> str:
    """Return an accuracy, or its mean ± standard deviation over seeds, in percent."""
    if isinstance(value, dict):
        return f"{100 * value['mean']:.1f} ± {100 * value['std']:.1f} %"
    return f"{100 * value:.1f} %"


# ---- CLIP and SigLIP from scratch ----


def word_tokenizer(words: list[str], **options) -> PreTrainedTokenizerFast:
    """Return a tokenizer for `words`. As in CLIP, a text has start and end tokens, and the last id is end-of-text."""
    tokens = ["<|padding|>", "<|unknown|>", *words, "<|startoftext|>", "<|endoftext|>"]
    backend = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<|unknown|>"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    start, end = ((token, tokens.index(token)) for token in ("<|startoftext|>", "<|endoftext|>"))
    backend.post_processor = processors.BertProcessing(end, start)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<|padding|>",
        unk_token="<|unknown|>",
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        model_max_length=MAX_TEXT_LENGTH,
        **options,
    )


def tower_fields(tokenizer: PreTrainedTokenizerFast) -> tuple[dict, dict]:
    """Return the fields of a tiny vision and of a tiny text configuration."""
    tower = {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 4}
    vision_config = {**tower, "num_hidden_layers": 4, "image_size": IMAGE_SIZE, "patch_size": 16}
    text_config = {**tower, "num_hidden_layers": 2, "vocab_size": len(tokenizer)}
    text_config["max_position_embeddings"] = MAX_TEXT_LENGTH
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        text_config[name] = getattr(tokenizer, name)
    return vision_config, text_config


def make_clip(words: list[str]) -> tuple[CLIPModel, EZClipProcessor]:
    """Return a tiny CLIP with random weights, and its processor."""
    tokenizer = word_tokenizer(words)
    image_processor = default_image_processor(IMAGE_SIZE)
    image_processor.size = {"shortest_edge": IMAGE_SIZE}
    vision_config, text_config = tower_fields(tokenizer)
    model = CLIPModel(CLIPConfig(vision_config=vision_config, text_config=text_config, projection_dim=64))
    return model, EZClipProcessor(image_processor, tokenizer, num_frames=NUM_FRAMES)


def make_siglip(words: list[str]) -> tuple[SiglipModel, EZClipProcessor]:
    """Return a tiny SigLIP with random weights, and its processor. Texts are equally long and have no mask."""
    tokenizer = word_tokenizer(words, model_input_names=["input_ids"])
    image_processor = SiglipImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    processor = EZClipProcessor(
        image_processor, tokenizer, num_frames=NUM_FRAMES, use_published_crop=False, text_padding="max_length"
    )
    vision_config, text_config = tower_fields(tokenizer)
    model = SiglipModel(SiglipConfig(vision_config=vision_config, text_config=text_config))
    with torch.no_grad():  # the published initial values
        model.logit_scale.fill_(math.log(10.0))
        model.logit_bias.fill_(-10.0)
    return model, processor


def softmax_loss(logits: torch.Tensor, labels: torch.LongTensor) -> torch.Tensor:
    """Return CLIP's loss of `(B, B)` logits of images and texts. Pairs of one label `(B,)` are positives."""
    targets = similarity_targets(labels).to(logits.device)
    cross_entropy = torch.nn.functional.cross_entropy
    return cross_entropy(logits, targets) + cross_entropy(logits.t(), targets)


def sigmoid_loss(logits: torch.Tensor, labels: torch.LongTensor) -> torch.Tensor:
    """Return SigLIP's loss of `(B, B)` logits of images and texts. Pairs of one label `(B,)` are positives."""
    is_positive = (labels[:, None] == labels[None, :]).to(logits.device)
    return -torch.nn.functional.logsigmoid(torch.where(is_positive, logits, -logits)).sum() / len(logits)


# Name of a tower: its name for people, its model with a processor, its loss
TOWERS = {"clip": ("CLIP", make_clip, softmax_loss), "siglip": ("SigLIP", make_siglip, sigmoid_loss)}


def pretrain(folder: Path, tower: str, seed: int, device: torch.device):
    """Train a tiny base on stills and save it with a processor. Stills of one caption are positives of each other."""
    set_seed(seed)
    title, make_base, loss_of = TOWERS[tower]
    model, processor = make_base(["a", *COLOURS, *SHAPES, "at", "the", *DIRECTIONS, "middle", "moving"])
    model.config.update({"scope": SCOPE})
    model.to(device).train()

    rng = np.random.default_rng((seed, len(CLIPS_PER_CLASS)))
    stills = [draw_still(rng) for _ in range(NUM_STILLS)]
    pixel_values = torch.cat([processor.frames_to_pixels(frames) for frames, _ in stills]).to(device)
    captions = sorted({caption for _, caption in stills})
    labels = torch.tensor([captions.index(caption) for _, caption in stills])
    texts = processor(text=captions, return_tensors="pt").to(device)

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, PRETRAINING_STEPS // 20, PRETRAINING_STEPS)
    batches = islice(shuffled_batches(NUM_STILLS, 128), PRETRAINING_STEPS)
    for batch in tqdm(batches, f"Training {title}", PRETRAINING_STEPS):
        inputs = {name: values[labels[batch]] for name, values in texts.items()}
        outputs = model(pixel_values=pixel_values[batch], **inputs)
        loss_of(outputs.logits_per_image, labels[batch]).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def shuffled_batches(size: int, batch_size: int):
    """Yield batches of indices without end, shuffled again in every pass."""
    while True:
        yield from torch.randperm(size)[: size // batch_size * batch_size].split(batch_size)
