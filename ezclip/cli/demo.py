"""Run `ezclip demo`: train and evaluate a tiny model without network or data.

The demo renders clips to video files, trains a tiny CLIP from scratch on stills, trains EZ-CLIP on top of it, and
evaluates it on classes in its training videos and on novel classes.

A class is a colour, a shape and a direction. The path of a clip is symmetric about a random midpoint. Reversed, the
frames of "left" are the frames of "right", so neither a single frame nor an average of frames tells them apart. One
shape is held out: CLIP knows it from stills, and EZ-CLIP never sees it move.
"""

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from tqdm.auto import tqdm
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast, get_cosine_schedule_with_warmup

from ezclip.data.dataset import VideoDataset
from ezclip.data.sources import load_folder
from ezclip.evaluation.predictions import predict
from ezclip.evaluation.protocols import harmonic_mean, summarize
from ezclip.systems.loading import load_model
from ezclip.training.loop import train
from ezclip.training.recipe import TrainingRecipe
from ezclip.utils.files import write_json
from ezclip.utils.synthetic_clips import (
    CLIPS_PER_CLASS,
    COLOURS,
    DIRECTIONS,
    NUM_FRAMES,
    SHAPES,
    draw_still,
    render_videos,
)
from modeling_ezclip import similarity_targets
from pipeline_ezclip import ClassBank
from processing_ezclip import EZClipProcessor, default_image_processor


IMAGE_SIZE = 32
TEMPLATE = "a {}"

PARTS = ("base", "novel")  # test sets
VARIANTS = {"with_temporal_prompts": "deep", "without_temporal_prompts": "none"}
DEMO_RESULTS_NAME = "demo_results.json"

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
    max_train_steps=400,
    max_grad_norm=1.0,
    per_device_train_batch_size=48,
)


def run_demo(
    output_dir: str | Path, accelerator: Accelerator, seed: int = 42, num_workers: int = 0, num_seeds: int = 1
) -> dict:
    """
    Run the demo with `num_seeds` seeds, from `seed` up. A seed takes about three minutes on two cores.

    `output_dir` gets `videos/`, the models `clip/`, `with_temporal_prompts/` and `without_temporal_prompts/` with
    their predictions, and `demo_results.json`. With several seeds, each has its own folder (`seed42/`), and
    `demo_results.json` summarizes them. A seed with results is not run again.

    Returns:
        `dict`: `chance`, `with_temporal_prompts` and `without_temporal_prompts`, each with the top-1 accuracies `base`
        and `novel` and their `harmonic_mean`, as fractions. With several seeds, each of the three has `mean` and `std`
        (of a sample, see [`summarize`]), and `runs` holds the values of each seed.
    """
    output_dir = Path(output_dir)
    if num_seeds == 1:
        return run_seed(output_dir, accelerator, seed, num_workers)
    by_seed = {}
    for number in range(seed, seed + num_seeds):
        folder = output_dir / f"seed{number}"
        results = read_results(folder / DEMO_RESULTS_NAME)
        if results is not None:
            accelerator.print(f"Seed {number} was run before: {folder / DEMO_RESULTS_NAME}")
        else:
            accelerator.print(f"Seed {number}")
            results = run_seed(folder, accelerator, number, num_workers)
        by_seed[folder.name] = results
    summary = over_seeds(by_seed)
    if accelerator.is_main_process:
        write_json(output_dir / DEMO_RESULTS_NAME, summary)
        print(f"Seeds {seed} to {seed + num_seeds - 1}, mean ± standard deviation\n{as_table(summary)}")
    return summary


def run_seed(output_dir: Path, accelerator: Accelerator, seed: int, num_workers: int) -> dict:
    """Run the demo with one seed. Results are written last, so a file of results means a finished run."""
    if accelerator.is_main_process:
        (output_dir / DEMO_RESULTS_NAME).unlink(missing_ok=True)
        render_videos(output_dir / "videos", seed)
        pretrain_clip(output_dir / "clip", seed, accelerator.device)
    accelerator.wait_for_everyone()
    splits = {name: load_folder(output_dir / "videos" / name) for name in CLIPS_PER_CLASS}
    processor = EZClipProcessor.from_pretrained(output_dir / "clip")

    results = {"chance": score(*(1 / len(splits[part].class_names) for part in PARTS))}
    # Processes share the batch, so that the number of processes does not change the steps.
    share = max(2, DEMO_RECIPE.per_device_train_batch_size // accelerator.num_processes)
    recipe = replace(DEMO_RECIPE, per_device_train_batch_size=share)
    for name, temporal_prompt in VARIANTS.items():
        accelerator.print(f"EZ-CLIP {name.replace('_', ' ')}")
        set_seed(seed)
        vision_config = {**VISION_CONFIG, "temporal_prompt": temporal_prompt}
        model = load_model(output_dir / "clip", True, vision_config, TEXT_CONFIG)
        prompts = processor.get_prompts(splits["train"].class_names, TEMPLATE)
        train(model, VideoDataset(splits["train"], processor, prompts, seed), recipe, accelerator, num_workers)
        model.eval()
        accuracies = []
        for part in PARTS:
            bank = ClassBank.build(model, processor, splits[part].class_names, TEMPLATE)
            desc = f"Evaluating {part}"
            dataset = VideoDataset(splits[part], processor)
            predictions = predict(model, bank, dataset, accelerator, batch_size=32, num_workers=num_workers, desc=desc)
            accuracies.append(predictions.metrics()["eval_top1"])
            if accelerator.is_main_process:
                predictions.write(output_dir / name / part)
        results[name] = score(*accuracies)
        if accelerator.is_main_process:
            model.save_pretrained(output_dir / name)
            processor.save_pretrained(output_dir / name)

    if accelerator.is_main_process:
        write_json(output_dir / DEMO_RESULTS_NAME, results)
        print(as_table(results))
    return results


def score(base: float, novel: float) -> dict[str, float]:
    """Return the two accuracies with their harmonic mean."""
    return {"base": base, "novel": novel, "harmonic_mean": harmonic_mean(base, novel)}


def read_results(path: Path) -> dict | None:
    """Return the results of a finished seed, or `None`."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        return {name: score(*(results[name][part] for part in PARTS)) for name in ("chance", *VARIANTS)}
    except (OSError, ValueError, KeyError, TypeError):
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
    """Return results as a text table, one row for each model."""
    columns = ("base", "novel", "harmonic_mean")
    cells = [[name.replace("_", " ") for name in columns]]
    cells += [[as_percent(row[name]) for name in columns] for row in results.values()]
    widths = [max(map(len, column)) + 3 for column in zip(*cells)]
    names = ["top-1 accuracy", *(name.replace("_", " ") for name in results)]
    return "\n".join(
        f"{name:<26}" + "".join(f"{cell:>{width}}" for cell, width in zip(line, widths))
        for name, line in zip(names, cells)
    )


def as_percent(value: float | dict) -> str:
    """Return an accuracy, or its mean ± standard deviation over seeds, in percent."""
    if isinstance(value, dict):
        return f"{100 * value['mean']:.1f} ± {100 * value['std']:.1f} %"
    return f"{100 * value:.1f} %"


# ---- CLIP from scratch ----


def word_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
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
        model_max_length=16,
    )


def pretrain_clip(folder: Path, seed: int, device: torch.device):
    """Train plain CLIP on stills and save it with a processor. Stills of one caption are positives of each other."""
    set_seed(seed)
    tokenizer = word_tokenizer(["a", *COLOURS, *SHAPES, "at", "the", *DIRECTIONS, "middle", "moving"])
    image_processor = default_image_processor(IMAGE_SIZE)
    image_processor.size = {"shortest_edge": IMAGE_SIZE}
    processor = EZClipProcessor(image_processor, tokenizer, num_frames=NUM_FRAMES)
    tower = {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 4}
    vision_config = {**tower, "num_hidden_layers": 4, "image_size": IMAGE_SIZE, "patch_size": 16}
    text_config = {**tower, "num_hidden_layers": 2, "vocab_size": len(tokenizer), "max_position_embeddings": 16}
    text_config |= {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = CLIPConfig(vision_config=vision_config, text_config=text_config, projection_dim=64)
    model = CLIPModel(config).to(device).train()

    rng = np.random.default_rng((seed, len(CLIPS_PER_CLASS)))
    stills = [draw_still(rng) for _ in range(NUM_STILLS)]
    pixel_values = torch.cat([processor.frames_to_pixels(frames) for frames, _ in stills]).to(device)
    captions = sorted({caption for _, caption in stills})
    labels = torch.tensor([captions.index(caption) for _, caption in stills])
    texts = processor(text=captions, return_tensors="pt").to(device)

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, PRETRAINING_STEPS // 20, PRETRAINING_STEPS)
    batches = islice(shuffled_batches(NUM_STILLS, 128), PRETRAINING_STEPS)
    for batch in tqdm(batches, "Training CLIP", PRETRAINING_STEPS):
        inputs = {name: texts[name][labels[batch]] for name in ("input_ids", "attention_mask")}
        outputs = model(**inputs, pixel_values=pixel_values[batch])
        targets = similarity_targets(labels[batch]).to(device)
        logits = (outputs.logits_per_image, outputs.logits_per_text)
        loss = sum(torch.nn.functional.cross_entropy(values, targets) for values in logits)
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def shuffled_batches(size: int, batch_size: int):
    """Yield batches of indices without end, shuffled again in every pass."""
    while True:
        yield from torch.randperm(size)[: size // batch_size * batch_size].split(batch_size)
