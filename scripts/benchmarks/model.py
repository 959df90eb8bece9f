"""`model`: time embedding and training steps beside CLIP on the same frames, X-CLIP, and matrix products."""

import argparse
import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import nn

from configuration_ezclip import EZClipConfig
from ezclip.encoders.openvino_engine import ENGINES, load_export
from ezclip.training.gradient_cache import backward
from ezclip.training.loop import make_optimizer
from ezclip.training.recipe import TrainingRecipe
from modeling_ezclip import CpuKernels, EZClipModel
from scripts.benchmarks.harness import (
    Contender,
    kernels_as_shipped,
    measure_contenders,
    rates_as_text,
    ratio,
    results_as_table,
)
from scripts.benchmarks.models import (
    EXPORTED,
    count_model_macs,
    describe_model,
    embed,
    make_batch,
    make_model,
    make_rivals,
    name_of_export,
    name_of_model,
    vision_shapes,
)
from scripts.benchmarks.published import PublishedModel, is_published


PASSES = ("forward", "step")
# float32: weights and computation. bf16: weights in bfloat16 (`dtype="bfloat16"`). autocast: float32 weights in mixed
# precision (`--mixed_precision bf16`).
PRECISIONS = ("float32", "bf16", "autocast")
# The learning rate does not change the time of a step, and zero keeps the weights as they are.
RECIPE = TrainingRecipe(learning_rate=0.0)
CLIP, PUBLISHED = "CLIPVisionModel", "published EZ-CLIP"
ALL_WEIGHTS = ", all weights trained"
# Compiled for the shapes of a batch. The mode is the default one: "max-autotune" tunes products for minutes, and most
# of the time is spent in products that libraries already tune.
COMPILED = ", compiled"
# A rival with the kernels that our modules choose on a CPU
SAME_KERNELS = ", same kernels"
# Our model with PyTorch's kernels on a CPU
TORCH_KERNELS = ", PyTorch's kernels"
# Parts of the matrix rate in bfloat16 that an accelerator should reach
AIMS = {"forward": 0.5, "step": 0.4}


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
    if device.type == "cpu":
        models[ours + TORCH_KERNELS] = model
        models[CLIP + SAME_KERNELS] = models[CLIP]
    if is_published(config):
        models[PUBLISHED] = PublishedModel(config)
    if args.compile:
        models[ours + COMPILED], models[CLIP + COMPILED] = model, models[CLIP]
    models = {name: model.to(device) for name, model in models.items()}
    cases = [
        Case(name, way, precision)
        for way in args.passes
        for precision in args.precisions
        for name in models
        if (precision != "bf16" if way == "step" else not name.endswith(ALL_WEIGHTS))
        and (precision == "float32" or name != PUBLISHED)
    ]
    macs = {key: count_pass(models[key[0]], key[1], config) for key in dict.fromkeys(case[:2] for case in cases)}
    for folder in args.exports:
        export = load_export(folder, ENGINES[0])
        case = Case(name_of_export(export), "forward", EXPORTED)
        models[case.model], macs[case[:2]] = export, count_pass(model, "forward", config)
        cases.append(case)
    batches = []
    for size in args.batch_sizes:
        torch.compiler.reset()  # its limit of compiled versions is for all sizes together
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
                row["against"] = compare_with_baselines(found, case, ours)
            rows.append(row)
        batches.append({"batch_size": size, "matrix": rates, "rows": rows})
    return {
        "model": ours,
        "size": describe_model(config),
        "attention": config._attn_implementation,
        "batches": batches,
    }


def make_run(
    case: Case, model: nn.Module, batch: dict[str, torch.Tensor], accelerator: Accelerator
) -> Callable[[], object]:
    """Return the function that runs a case once."""
    if case.run == "forward":
        if case.precision == "bf16":
            model = copy.deepcopy(model).to(torch.bfloat16)
        pixels = batch["pixel_values"].to(next(model.parameters()).dtype)
        compiled = torch.compile(embed, dynamic=False) if case.model.endswith(COMPILED) else embed

        def forward():
            with (
                torch.autocast(pixels.device.type, torch.bfloat16, enabled=case.precision == "autocast"),
                kernels_of(case),
            ):
                compiled(model.eval(), pixels)

        return forward

    optimizer = make_optimizer(model, RECIPE)
    # A shallow copy shares the weights. `prepare_model` replaces only the forward of the copy.
    trained = copy.copy(model)
    if case.precision == "autocast":
        trained = accelerator.prepare_model(trained)
    if case.model.endswith(COMPILED):
        trained.compile(dynamic=False)

    def step():
        trained.train()
        with kernels_of(case):
            if isinstance(model, EZClipModel):
                backward(trained, batch, accelerator)  # as in the training loop
            else:
                accelerator.backward(loss_of(trained, batch))
        optimizer.step()
        optimizer.zero_grad()

    return step


def kernels_of(case: Case) -> AbstractContextManager:
    """Return the context of a case: a rival with our kernels, or our model with PyTorch's."""
    if case.model.endswith(TORCH_KERNELS):
        return kernels_as_shipped()
    return CpuKernels() if case.model.endswith(SAME_KERNELS) else nullcontext()


def loss_of(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the loss of a model, or a substitute for CLIP's vision tower, which has none."""
    if isinstance(model, PublishedModel):
        return model(batch["pixel_values"], batch["input_ids"], batch["labels"])
    if hasattr(model, "get_video_features"):
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        alone = {"output_last_hidden_state": False} if isinstance(model, EZClipModel) else {}
        return model(**inputs, **alone, return_loss=True).loss
    return model(batch["pixel_values"].flatten(0, 1)).pooler_output.float().square().mean()


def count_pass(model: nn.Module, way: str, config: EZClipConfig) -> int:
    """Count the multiply-accumulates of a pass of one clip. A step includes its backward pass."""

    def run(model: nn.Module):
        batch = make_batch(config, 1)
        if way == "step":
            loss_of(model.train(), batch).backward()
        else:
            embed(model.eval(), batch["pixel_values"])

    return count_model_macs(model, run)


def compare_with_baselines(rows: dict[Case, dict], case: Case, ours: str) -> dict[str, dict]:
    """Return the time of a case relative to rivals, our model in other ways, and its own forward pass."""
    baselines = {
        "clip": case._replace(model=CLIP),
        "clip_same_kernels": case._replace(model=CLIP + SAME_KERNELS),
        "clip_float32": Case(CLIP, case.run, "float32"),
        "xclip": case._replace(model="XCLIPModel"),
        "published": Case(PUBLISHED, case.run, "float32"),
        "torch_bf16": Case(ours + TORCH_KERNELS, case.run, "bf16"),
        "not_compiled": case._replace(model=case.model.removesuffix(COMPILED)),
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
        "time / CLIP, same kernels": ("clip_same_kernels", ".3f"),
        "time / CLIP in float32": ("clip_float32", ".3f"),
        "time / X-CLIP": ("xclip", ".3f"),
        "time / published in float32": ("published", ".3f"),
        "time / ours in bf16, PyTorch's kernels": ("torch_bf16", ".3f"),
        "time / not compiled": ("not_compiled", ".3f"),
        "time / own forward": ("own_forward", ".3f"),
    }
    parts = [
        f"{result['model']}: {result['size']}; attention {result['attention']}. Pixels are random. Median of "
        f"{result['rounds']} rounds; each round runs all models. `forward` embeds clips without texts. `step` is a "
        "forward pass of clips with one text each, loss, backward pass and AdamW for the trained weights. "
        "CLIPVisionModel has no texts. `bf16`: bfloat16 weights. `autocast`: float32 weights in mixed precision. "
        f"`{CLIP}` runs as shipped; with `{SAME_KERNELS[2:]}` it runs in the kernels that ezclip chooses on a CPU. "
        f"With `{TORCH_KERNELS[2:]}` our model runs in none of its own. `{EXPORTED}`: as `--engine` runs an export. "
        f"`{PUBLISHED}` is the published model in plain PyTorch: all tokens in all blocks, texts padded to the "
        f"maximal length. `{COMPILED[2:]}`: `torch.compile(dynamic=False)`, its time of compiling left out.",
    ]
    if result["machine"]["accelerator"] is not None:
        aims = " and ".join(f"{share:.0%} ({way})" for way, share in AIMS.items())
        parts.append(f"The aim on an accelerator is a share of the bf16 matrix rate of at least {aims}.")
    for batch in result["batches"]:
        rows = [{**row, **row.get("against", {})} for row in batch["rows"]]
        parts += [f"Batch {batch['batch_size']}:", results_as_table(rows, columns), rates_as_text(batch["matrix"])]
    return parts
