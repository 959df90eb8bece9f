"""`model`: embedding clips and training steps, next to CLIP on the same frames, X-CLIP, and the matrix product."""

import argparse
import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import nn

from ezclip.systems.macs import count_macs_of
from ezclip.training.gradient_cache import backward
from ezclip.training.loop import make_optimizer
from ezclip.training.recipe import TrainingRecipe
from ezclip.utils.tables import as_markdown_table
from ezclip.utils.timing import Timing, compare, describe_machine, machine_as_text, measure, summarize
from modeling_ezclip import EZClipModel
from scripts.benchmarks.matrix import MatrixProducts, rates_as_text, share_of
from scripts.benchmarks.models import (
    describe_model,
    embed,
    make_batch,
    make_model,
    make_rivals,
    name_of_model,
    train_all,
    vision_shapes,
)
from scripts.benchmarks.report import ratio_as_text, share_as_text, spread_as_text


PASSES = ("forward", "step")
# Weights and computation in float32; weights in bfloat16 (`dtype="bfloat16"`); weights in float32, computed in
# bfloat16 where autocast does so (`--mixed_precision bf16`).
PRECISIONS = ("float32", "bf16", "autocast")
# Beyond so many compilations of one function PyTorch goes on without, and every case is one.
COMPILATIONS = 256
# Rates are nothing to the time of a step, and without them the weights stay what they are.
RECIPE = TrainingRecipe(learning_rate=0.0)


@dataclass(frozen=True)
class Case:
    """What is timed: a model, what it does, and how."""

    model: str
    run: str
    precision: str
    compiled: bool = False

    @property
    def matrix_precision(self) -> str:
        """Return the precision of the matrix products that a case is compared with."""
        return "float32" if self.precision == "float32" else "bf16"


class Bench:
    """
    Makes contenders for batches of one size.

    Args:
        args (`argparse.Namespace`):
            The options of the command.
        accelerator (`Accelerator`):
            Device and precision.
    """

    def __init__(self, args: argparse.Namespace, accelerator: Accelerator):
        self.args, self.accelerator, self.ours = args, accelerator, name_of_model(args)
        model = make_model(args)
        self.config, self.all_weights = model.config, f"{self.ours}, all weights trained"
        self.models = {self.ours: model, **make_rivals(model.config)}
        if "step" in args.passes and model.config.freeze_backbone:
            self.models[self.all_weights] = train_all(model)
        self.models = {name: model.to(accelerator.device) for name, model in self.models.items()}
        self.halves = {}
        if "bf16" in args.precisions and "forward" in args.passes:
            names = [name for name in self.models if name != self.all_weights]
            self.halves = {name: copy.deepcopy(self.models[name]).to(torch.bfloat16) for name in names}

    def cases(self) -> list[Case]:
        """Return all cases, ours first."""
        compiled = (False, True) if self.args.compile else (False,)
        found = []
        for run in self.args.passes:
            names = [name for name in self.models if run == "step" or name != self.all_weights]
            precisions = [name for name in self.args.precisions if run == "forward" or name != "bf16"]
            found += [
                Case(name, run, how, is_compiled) for how in precisions for name in names for is_compiled in compiled
            ]
        return found

    def make(self, case: Case, batch: dict[str, torch.Tensor]) -> Callable[[], object]:
        """Return the function that runs a case once."""
        model = (self.halves if case.precision == "bf16" else self.models)[case.model]
        work = self._make_step(model, case, batch) if case.run == "step" else self._make_forward(model, case, batch)
        is_training = case.run == "step"

        def run():
            model.train(is_training)
            work()

        return run

    def _make_forward(self, model: nn.Module, case: Case, batch: dict[str, torch.Tensor]) -> Callable[[], object]:
        pixels = batch["pixel_values"].to(next(model.parameters()).dtype)
        run = torch.compile(embed, dynamic=False) if case.compiled else embed

        @torch.no_grad()
        def forward():
            with torch.autocast(pixels.device.type, torch.bfloat16, enabled=case.precision == "autocast"):
                run(model, pixels)

        return forward

    def _make_step(self, model: nn.Module, case: Case, batch: dict[str, torch.Tensor]) -> Callable[[], object]:
        optimizer = make_optimizer(model, RECIPE)
        # The same weights under another forward
        trained = torch.compile(copy.copy(model), dynamic=False) if case.compiled else copy.copy(model)
        if case.precision == "autocast":
            trained = self.accelerator.prepare_model(trained)

        def step():
            add_gradients(trained, batch, self.accelerator)
            optimizer.step()
            optimizer.zero_grad()

        return step

    def count(self, case: Case) -> int:
        """Multiply-accumulates of a case for one clip; of a step those of its backward pass too."""

        def make() -> nn.Module:
            if case.model not in (self.ours, self.all_weights):
                return make_rivals(self.config, eager=True)[case.model].train(case.run == "step")
            config = copy.deepcopy(self.config)
            config._attn_implementation = "eager"
            model = EZClipModel(config)
            model = model.requires_grad_(True) if case.model == self.all_weights else model
            return model.train(case.run == "step")

        def run(model: nn.Module):
            batch = make_batch(self.config, 1)
            if case.run == "step":
                return loss_of(model, batch).backward()
            with torch.no_grad():
                return embed(model, batch["pixel_values"])

        return count_macs_of(make, run)


def add_gradients(model: nn.Module, batch: dict[str, torch.Tensor], accelerator: Accelerator):
    """Run a forward and a backward pass, ours as training does it."""
    if "EZClip" in type(accelerator.unwrap_model(model)).__name__:
        backward(model, batch, accelerator)
    else:
        accelerator.backward(loss_of(model, batch))


def loss_of(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the loss of a model. CLIP's vision tower has none and gets a substitute."""
    if hasattr(model, "get_video_features"):
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        alone = {"output_last_hidden_state": False} if isinstance(model, EZClipModel) else {}
        return model(**inputs, **alone, return_loss=True).loss
    return model(batch["pixel_values"].flatten(0, 1)).pooler_output.float().square().mean()


def run(args: argparse.Namespace) -> dict:
    """Time all cases for each batch size."""
    accelerator = Accelerator(cpu=args.use_cpu, mixed_precision="bf16" if "autocast" in args.precisions else "no")
    if args.compile:
        torch._dynamo.config.recompile_limit = COMPILATIONS
    bench = Bench(args, accelerator)
    distinct = {(case.model, case.run): case for case in bench.cases()}  # whatever their precision
    macs = {key: bench.count(case) for key, case in distinct.items()}
    batches = [measure_batch(bench, size, macs) for size in args.batch_sizes]
    vision = bench.config.vision_config
    return {
        "machine": describe_machine(accelerator.device),
        "model": bench.ours,
        "size": describe_model(bench.models[bench.ours]),
        "num_frames": vision.num_frames,
        "attention": bench.config._attn_implementation,
        "rounds": args.rounds,
        "batches": batches,
    }


def measure_batch(bench: Bench, batch_size: int, macs: dict[tuple[str, str], int]) -> dict:
    """Time all cases with batches of one size, matrix products among them."""
    args, device = bench.args, bench.accelerator.device
    batch = {name: value.to(device) for name, value in make_batch(bench.config, batch_size).items()}
    cases = bench.cases()
    precisions = dict.fromkeys(case.matrix_precision for case in cases)
    products = MatrixProducts(vision_shapes(bench.config, batch_size), precisions, device)
    contenders = {case: bench.make(case, batch) for case in cases}
    timings = measure({**contenders, **products.contenders()}, args.rounds, device, may_fail=True)
    rates = products.rates(timings)
    rows = [_row(case, batch_size, timings, rates, macs[case.model, case.run], bench.ours) for case in cases]
    return {"batch_size": batch_size, "matrix": rates, "rows": rows}


def _row(case: Case, batch_size: int, timings: dict, rates: dict[str, dict], macs: int, ours: str) -> dict:
    row = {
        "model": case.model,
        "pass": case.run,
        "precision": case.precision,
        "compiled": case.compiled,
        "macs_per_clip": macs,
    }
    timing = timings[case]
    if timing.failed is not None:
        return {**row, "failed": timing.failed}
    seconds = summarize(timing.wall)
    alike = (case.precision, case.compiled)
    baselines = {
        "clip": Case("CLIPVisionModel", case.run, *alike),
        "clip_float32": Case("CLIPVisionModel", case.run, "float32"),
        "xclip": Case("XCLIPModel", case.run, *alike),
        "own_forward": Case(ours if case.model.startswith(ours) else case.model, "forward", *alike),
    }
    return {
        **row,
        "seconds": seconds,
        "clips_per_second": batch_size / seconds["median"],
        "flops_per_second": 2 * macs * batch_size / seconds["median"],
        "share_of_matrix_rate": share_of(macs * batch_size, seconds["median"], rates, case.matrix_precision),
        "against": {
            name: compare(timing.wall, other.wall)
            for name, baseline in baselines.items()
            if baseline != case and (other := timings.get(baseline, Timing(failed="not run"))).failed is None
        },
    }


def as_text(result: dict) -> str:
    """Return the tables of a result as text."""
    header = ["pass", "model", "precision", "s a batch (quartiles)", "clips/s", "GMAC a clip", "of the matrix rate"]
    header += ["times CLIP (rounds)", "times CLIP in plain float32", "times X-CLIP", "times its forward"]
    parts = [
        machine_as_text(result["machine"]),
        f"{result['model']}: {result['size']}; attention {result['attention']}. Random pixels; median of "
        f"{result['rounds']} rounds; in each round all models took their turn. `forward` embeds clips, without texts. "
        f"`step` is a forward pass of clips and a text each, loss, backward pass and AdamW, of what a model trains; "
        "CLIPVisionModel has no texts. `bf16` are weights in bfloat16, `autocast` float32 weights in mixed precision.",
    ]
    for batch in result["batches"]:
        rows = [[row["pass"], row["model"], _how(row), *_cells(row)] for row in batch["rows"]]
        parts += [f"Batch {batch['batch_size']}:", as_markdown_table(header, rows), rates_as_text(batch["matrix"])]
    return "\n\n".join(parts)


def _how(row: dict) -> str:
    return row["precision"] + (", compiled" if row["compiled"] else "")


def _cells(row: dict) -> list[str]:
    if "failed" in row:
        return [f"failed: {row['failed']}", *["-"] * 7]
    against = row["against"]
    own = against.get("own_forward") if row["pass"] == "step" else None
    return [
        spread_as_text(row["seconds"], 3),
        f"{row['clips_per_second']:.3g}",
        f"{row['macs_per_clip'] / 1e9:.4g}",
        share_as_text(row["share_of_matrix_rate"]),
        *(ratio_as_text(against.get(name)) for name in ("clip", "clip_float32", "xclip")),
        ratio_as_text(own),
    ]
