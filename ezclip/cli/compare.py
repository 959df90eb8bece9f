"""Evaluate several systems on the same videos.

    ezclip compare systems.yaml --validation_list test.txt --label_list labels.csv \\
        --video_root UCF-101 --output_dir comparison

`systems.yaml` names the systems, each with the options of `ezclip run` for its model and texts:

    EZ-CLIP:
      model_name_or_path: ezclip-vit-base-patch16
    CLIP:
      model_name_or_path: openai/clip-vit-base-patch16
      preset: clip
    TEAR:
      model_name_or_path: openai/clip-vit-base-patch16
      preset: tear
      class_descriptions: all.json

They override the text options of the command line, which apply to all systems.

Files, classes, texts and models of all systems are checked before the first evaluation. Each system is evaluated as
by `ezclip run --do_eval`, into a folder of its name. A second run resumes and keeps finished systems.
`comparison.json` and `comparison.md` hold top-1, top-5 and mean per-class accuracy with 95 % confidence intervals on
the videos that all systems could read, the costs of each system, and McNemar's test for each pair.
"""

import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from ezclip.cli.arguments import (
    STEP_OPTIONS,
    DataArguments,
    ModelArguments,
    RunArguments,
    explicit_options,
    fill_preset,
)
from ezclip.cli.experiments import Runner, read_results
from ezclip.cli.plan import ClassTexts, PlannedExperiment, describe_plan, in_list_root, load_eval_splits, one_of
from ezclip.constants import EXPERIMENT_RESULTS_NAME
from ezclip.data.isolated_reader import IsolatedReader
from ezclip.data.sources import VideoSplit
from ezclip.errors import DataError, ModelError
from ezclip.evaluation.protocols import Experiment
from ezclip.systems.loading import check_fit
from ezclip.systems.macs import count_clip_macs
from ezclip.training.checkpoints import EXACTNESS_SETTINGS
from ezclip.utils.files import replacing, write_json
from ezclip.utils.messages import say
from ezclip.utils.settings import check_unchanged


try:
    from ezclip.evaluation.comparison import compare_ranks, read_ranks
except ImportError as error:  # scipy is optional
    sys.exit(f"ezclip compare: {error}")

from ezclip.cli.compare_options import CLASS_TEXT_OPTIONS, MODEL_OPTIONS, VIDEO_OPTIONS, parse_args, read_systems
from ezclip.cli.compare_table import as_markdown
from ezclip.cli.setup import make_reader, running
from ezclip.utils.timing import compare, describe_machine, measure, summarize


@dataclass
class System(Runner):
    """One of the compared systems, with its evaluation."""

    name: str  # also of its folder
    options: dict  # of the file
    experiment: PlannedExperiment
    costs: dict | None = None  # parameters and multiply-accumulates, set by `check_model`

    @property
    def model_key(self) -> str:
        """Return a key. Systems with the same key differ only in their texts."""
        options = explicit_options(self.model_args, *MODEL_OPTIONS)
        options.pop("tokenizer_name", None)
        return json.dumps([options, self.processor.num_frames], sort_keys=True)


def main(argv: list[str] | None = None):
    """Run `ezclip compare`; exit with a message if the options, the data or a model cannot be used."""
    data_args, args, systems, speed_rounds = parse_args(argv, __doc__)
    with running("compare", args) as accelerator:
        compare_systems(systems, data_args, args, speed_rounds, accelerator)


def compare_systems(
    path: str, data_args: DataArguments, args: RunArguments, speed_rounds: int, accelerator: Accelerator
):
    """Check, evaluate and compare the systems of a file; write and print the comparison."""
    output_dir = Path(args.output_dir)
    # 1. Check everything before the first evaluation
    read = make_reader(data_args)
    options = read_systems(path)
    with accelerator.main_process_first():
        split = one_of(load_eval_splits(in_list_root(data_args)), "--validation_list")
    if accelerator.is_main_process:
        say("\n".join(describe_plan([Experiment("", args.seed, None, {"": split})])))
    systems, by_model = [], {}
    for name, system_options in options.items():
        with prefix_errors(name):
            systems.append(make_system(name, system_options, split, data_args, args, read, accelerator))
        by_model.setdefault(systems[-1].model_key, []).append(systems[-1])
    by_model = list(by_model.values())
    for group in by_model:
        set_seed(args.seed)
        check_model(group)
    for system in systems if not args.overwrite_output_dir else ():
        if (finished := output_dir / system.name / EXPERIMENT_RESULTS_NAME).is_file():
            saved = read_results(finished)["settings"]
            check_unchanged(finished.parent, saved, system.settings(system.experiment), EXACTNESS_SETTINGS)

    # 2. Evaluate
    results, ranks = {}, {}
    for system in systems:
        results[system.name] = system.run(system.experiment)[0][""]
        if accelerator.is_main_process:
            ranks[system.name] = read_ranks(output_dir / system.name, split, results[system.name]["eval_samples"])

    # 3. Compare
    if accelerator.is_main_process:
        result = compare_ranks(ranks, np.asarray(split.videos["label"]), args.seed)
        result["num_views"] = data_args.num_clips * data_args.num_crops
        for system in systems:
            result["systems"][system.name] |= {
                **system.costs,
                "clips_per_second": None,
                "options": system.options,
                "eval_results": results[system.name],
            }
        device = accelerator.device
        is_gpu = device.type == "cuda"
        result["speed"] = {
            "rounds": 0,
            "batch_size": args.per_device_eval_batch_size,
            "device": torch.cuda.get_device_name(device) if is_gpu else f"{device}, {torch.get_num_threads()} threads",
            "mixed_precision": accelerator.mixed_precision,
        }
        result |= {
            "machine": describe_machine(),
            "options": explicit_options(data_args, *VIDEO_OPTIONS, *CLASS_TEXT_OPTIONS),
        }
        text = write(result, output_dir)
        if speed_rounds > 0:  # loads all models at once, so memory may run out: the results are written before
            speeds = measure_speeds(by_model, accelerator, args.per_device_eval_batch_size, speed_rounds)
            for name, speed in speeds.items():
                result["systems"][name]["clips_per_second"] = speed
            result["speed"]["rounds"] = speed_rounds
            text = write(result, output_dir)
        say(text)
    accelerator.wait_for_everyone()


def write(result: dict, output_dir: Path) -> str:
    """Write a comparison as JSON and as Markdown. Return the Markdown."""
    text = as_markdown(result)
    write_json(output_dir / "comparison.json", result)
    with replacing(output_dir / "comparison.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    return text


# ---- Systems ----


@contextlib.contextmanager
def prefix_errors(name: str):
    """Prefix errors with the name of a system."""
    try:
        yield
    except (DataError, ModelError) as error:
        raise type(error)(f"{name}: {error}") from error


def make_system(
    name: str,
    options: dict,
    split: VideoSplit,
    data_args: DataArguments,
    args: RunArguments,
    read: IsolatedReader,
    accelerator: Accelerator,
) -> System:
    """Make a system and its experiment, and check its texts."""
    texts = {option: options[option] for option in CLASS_TEXT_OPTIONS if option in options}
    data_args = dataclasses.replace(data_args, **texts)
    own = ("ensemble", "function_to_apply", "calibration")
    args = dataclasses.replace(args, **{option: options.get(option) for option in own})
    model_args = ModelArguments(**{option: options[option] for option in MODEL_OPTIONS if option in options})
    if (data_args.include_label or data_args.input_conditioning) and not data_args.class_descriptions:
        raise DataError("include_label and input_conditioning are for class_descriptions, which are not given.")
    if explicit_options(data_args, *STEP_OPTIONS) and not data_args.class_descriptions:
        raise DataError("step_score and step_contrast are for class_descriptions, which are not given.")
    fill_preset(model_args.preset, data_args, args)
    experiment = PlannedExperiment.complete(
        Experiment(name, args.seed, None, {"": split}), data_args, ClassTexts.from_options(in_list_root(data_args))
    )
    system = System(model_args, args, read, accelerator, name, options, experiment)
    system.check([experiment])
    return system


def check_model(group: list[System]):
    """Load the model of a group, check it against each processor, and set the weights and costs of its systems."""
    first = group[0]
    with prefix_errors(first.name):
        model = first.load_model()
    for system in group:
        with prefix_errors(system.name):
            check_fit(model, system.processor)
            system.choose_scoring(model)
    costs = {
        "num_frames": first.processor.num_frames,
        "num_parameters": model.num_parameters(),
        "num_trained_parameters": model.num_parameters(only_trainable=True),
        "macs_per_clip": count_clip_macs(model, first.processor),
    }
    for system in group:
        system.model_description, system.costs = first.model_description, costs


# ---- Speed ----


def measure_speeds(
    by_model: list[list[System]], accelerator: Accelerator, batch_size: int, rounds: int
) -> dict[str, dict]:
    """
    Measure how many clips each system embeds per second on the device of this process, without reading them.

    The systems take turns, so all models are in memory. Systems of the same model are measured once.

    Returns:
        `dict`: for each system the median, quartiles and rounds, and as `against` its ratio to the first system.
    """
    runs = {group[0].name: make_embedding(group[0], accelerator, batch_size) for group in by_model}
    timings = measure(runs, rounds)
    rates = {name: (batch_size / np.asarray(timing.wall)).tolist() for name, timing in timings.items()}
    first = by_model[0][0].name
    speeds = {}
    for group in by_model:
        rate = rates[group[0].name]
        speed = {**summarize(rate), "against": {"system": first, **compare(rate, rates[first])}}
        speeds |= {system.name: speed for system in group}
    return speeds


def make_embedding(system: System, accelerator: Accelerator, batch_size: int) -> Callable[[], object]:
    """Return a function that embeds a batch of clips and waits for the result."""
    model = system.load_model().to(accelerator.device).eval()
    shape = (batch_size, system.processor.num_frames, 3, *system.processor.crop_size)
    clips = torch.randn(shape, device=accelerator.device, dtype=model.dtype)

    @torch.no_grad()
    def embed() -> torch.Tensor:
        with accelerator.autocast():
            return model.encode_videos(clips).cpu()

    return embed


if __name__ == "__main__":
    main()
