"""`model`: time embedding and training steps beside CLIP on the same frames, X-CLIP, and matrix products."""

import argparse
import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from configuration_ezclip import EZClipConfig
from ezclip.training.gradient_cache import backward
from ezclip.training.loop import make_optimizer
from ezclip.training.recipe import TrainingRecipe
from modeling_ezclip import EZClipModel
from scripts.benchmarks.harness import Contender, measure_contenders, rates_as_text, ratio, results_as_table
from scripts.benchmarks.models import (
    count_model_macs,
    describe_model,
    embed,
    make_batch,
    make_model,
    make_rivals,
    name_of_model,
    vision_shapes,
)


PASSES = ("forward", "step")
# float32: weights and computation. bf16: weights in bfloat16 (`dtype="bfloat16"`). autocast: float32 weights in mixed
# precision (`--mixed_precision bf16`).
PRECISIONS = ("float32", "bf16", "autocast")
# The learning rate does not change the time of a step, and zero keeps the weights as they are.
RECIPE = TrainingRecipe(learning_rate=0.0)
ALL_WEIGHTS = ", all weights trained"


class Case(NamedTuple):
    """One timed combination of model, pass and precision."""

    model: str
    run: str
    precision: str


def run(args: argparse.Namespace, device: torch.device) -> dict:
    """Time all cases for each batch size."""
    accelerator = Accelerator(cpu=args.use_cpu, mixed_precision="bf16" if "autocast" in args.precisions else "no")
    ours, model = name_of_model(args), make_model(args)
    config = model.config
    models = {ours: model, **make_rivals(config)}
    if "step" in args.passes and config.freeze_backbone:
        models[ours + ALL_WEIGHTS] = copy.deepcopy(model).requires_grad_(True)
    models = {name: model.to(device) for name, model in models.items()}
    cases = [
        Case(name, way, precision)
        for way in args.passes
        for precision in args.precisions
        for name in models
        if (precision != "bf16" if way == "step" else not name.endswith(ALL_WEIGHTS))
    ]
    macs = {key: count_pass(models[key[0]], key[1], config) for key in dict.fromkeys(case[:2] for case in cases)}
    batches = []
    for size in args.batch_sizes:
        batch = {name: value.to(device) for name, value in make_batch(config, size).items()}
        contenders = {
            case: Contender(
                make_run(case, models[case.model], batch, accelerator), case.precision, size, size * macs[case[:2]]
            )
            for case in cases
        }
        found, rates = measure_contenders(contenders, vision_shapes(config, size), args.rounds, device)
        rows = []
        for case, row in found.items():
            row |= {"model": case.model, "pass": case.run, "macs_per_clip": macs[case[:2]]}
            if "failed" not in row:
                row["against"] = compare_with_baselines(found, case)
            rows.append(row)
        batches.append({"batch_size": size, "matrix": rates, "rows": rows})
    return {
        "model": ours,
        "size": describe_model(config),
        "attention": config._attn_implementation,
        "batches": batches,
    }


def make_run(
    case: Case, model: PreTrainedModel, batch: dict[str, torch.Tensor], accelerator: Accelerator
) -> Callable[[], object]:
    """Return the function that runs a case once."""
    if case.run == "forward":
        if case.precision == "bf16":
            model = copy.deepcopy(model).to(torch.bfloat16)
        pixels = batch["pixel_values"].to(model.dtype)

        def forward():
            with torch.autocast(pixels.device.type, torch.bfloat16, enabled=case.precision == "autocast"):
                embed(model.eval(), pixels)

        return forward

    optimizer = make_optimizer(model, RECIPE)
    # A shallow copy shares the weights. `prepare_model` replaces only the forward of the copy.
    trained = copy.copy(model)
    if case.precision == "autocast":
        trained = accelerator.prepare_model(trained)

    def step():
        trained.train()
        if isinstance(model, EZClipModel):
            backward(trained, batch, accelerator)  # as in the training loop
        else:
            accelerator.backward(loss_of(trained, batch))
        optimizer.step()
        optimizer.zero_grad()

    return step


def loss_of(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the loss of a model, or a substitute for CLIP's vision tower, which has none."""
    if hasattr(model, "get_video_features"):
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        alone = {"output_last_hidden_state": False} if isinstance(model, EZClipModel) else {}
        return model(**inputs, **alone, return_loss=True).loss
    return model(batch["pixel_values"].flatten(0, 1)).pooler_output.float().square().mean()


def count_pass(model: PreTrainedModel, way: str, config: EZClipConfig) -> int:
    """Count the multiply-accumulates of a pass of one clip. A step includes its backward pass."""

    def run(model: PreTrainedModel):
        batch = make_batch(config, 1)
        if way == "step":
            loss_of(model.train(), batch).backward()
        else:
            embed(model.eval(), batch["pixel_values"])

    return count_model_macs(model, run)


def compare_with_baselines(rows: dict[Case, dict], case: Case) -> dict[str, dict]:
    """Return the time of a case relative to CLIP, CLIP in float32, X-CLIP and its own forward pass."""
    baselines = {
        "clip": case._replace(model="CLIPVisionModel"),
        "clip_float32": Case("CLIPVisionModel", case.run, "float32"),
        "xclip": case._replace(model="XCLIPModel"),
        "own_forward": case._replace(model=case.model.removesuffix(ALL_WEIGHTS), run="forward"),
    }
    ratios = {name: ratio(rows, case, baseline) for name, baseline in baselines.items() if baseline != case}
    return {name: found for name, found in ratios.items() if found is not None}


def as_text(result: dict) -> list[str]:
    """Return the paragraphs and tables of a result."""
    columns = {
        "pass": ("pass",),
        "model": ("model",),
        "precision": ("precision",),
        "s per batch (quartiles)": ("seconds", ".3f"),
        "clips/s": ("clips_per_second", ".3g"),
        "GMAC per clip": ("macs_per_clip", ".4g", 1e-9),
        "share of matrix rate": ("share_of_matrix_rate", ".0%"),
        "time / CLIP (range)": ("clip", ".3f"),
        "time / CLIP in float32": ("clip_float32", ".3f"),
        "time / X-CLIP": ("xclip", ".3f"),
        "time / own forward": ("own_forward", ".3f"),
    }
    parts = [
        f"{result['model']}: {result['size']}; attention {result['attention']}. Pixels are random. Median of "
        f"{result['rounds']} rounds; each round runs all models. `forward` embeds clips without texts. `step` is a "
        "forward pass of clips with one text each, loss, backward pass and AdamW for the trained weights. "
        "CLIPVisionModel has no texts. `bf16`: bfloat16 weights. `autocast`: float32 weights in mixed precision.",
    ]
    for batch in result["batches"]:
        rows = [{**row, **row.get("against", {})} for row in batch["rows"]]
        parts += [f"Batch {batch['batch_size']}:", results_as_table(rows, columns), rates_as_text(batch["matrix"])]
    return parts
