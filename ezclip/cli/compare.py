"""Several systems on the same videos: one table.

    ezclip compare systems.yaml --validation_list test.txt --label_list labels.csv \\
        --video_root UCF-101 --output_dir comparison

`systems.yaml` names the systems, each with the options that `run_video_zeroshot.py` has for its model and its texts:

    EZ-CLIP:
      model_name_or_path: ezclip-vit-base-patch16
    CLIP:
      model_name_or_path: openai/clip-vit-base-patch16
      preset: clip
    TEAR:
      model_name_or_path: openai/clip-vit-base-patch16
      preset: tear
      class_descriptions: all.json

They count as if they stood behind those of the command line, where options of texts may be given for all systems.

Files, classes, texts and models of all systems are checked before the first is evaluated. Each is evaluated as by
`run_video_zeroshot.py --do_eval`, into a folder of its name; started again, the comparison goes on, and systems that
are finished are kept. `comparison.json` and `comparison.md` have top-1, top-5 and mean per-class accuracy with 95 %
confidence intervals, on the videos that all systems could read, what each system costs, and McNemar's test of each
two.
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

from ezclip.cli.arguments import DataArguments, ModelArguments, RunArguments, explicit_options, fill_preset
from ezclip.cli.experiments import Runner, read_results
from ezclip.cli.plan import ClassTexts, PlannedExperiment, in_list_root, load_eval_splits, one_of
from ezclip.constants import EXPERIMENT_RESULTS_NAME
from ezclip.data.isolated_reader import IsolatedReader
from ezclip.data.sources import VideoSplit
from ezclip.errors import DataError, ModelError
from ezclip.evaluation.protocols import Experiment
from ezclip.systems.loading import check_fit, digest_model
from ezclip.systems.macs import count_macs
from ezclip.training.checkpoints import check_settings
from ezclip.utils.files import replacing, write_json
from ezclip.utils.memory import return_freed_memory
from video_ezclip import VideoReadError, require_backend


try:
    from ezclip.evaluation.comparison import compare_ranks, read_ranks
except ImportError as error:  # of scipy, which is optional
    sys.exit(f"ezclip compare: {error}")

from ezclip.cli.compare_options import CLASS_TEXT_OPTIONS, MODEL_OPTIONS, VIDEO_OPTIONS, parse_args, read_systems
from ezclip.cli.compare_table import as_markdown
from ezclip.cli.setup import make_accelerator, make_output_dir
from ezclip.utils.timing import compare, describe_machine, measure, summarize


@dataclass
class SystemRunner(Runner):
    """
    Evaluates a system.

    Args:
        weights (`str`, *optional*):
            Digest of its weights: one that was trained further in the same folder is not the one that is finished.
    """

    weights: str | None = None

    def settings(self, experiment: PlannedExperiment) -> dict:
        return {**super().settings(experiment), "weights": self.weights}


@dataclass
class System:
    """
    One of the systems that are compared.

    Args:
        name (`str`):
            Its name, and that of its folder.
        options (`dict`):
            Its options in the file.
        runner ([`SystemRunner`]):
            What evaluates it.
        experiment ([`PlannedExperiment`]):
            Its evaluation.
        costs (`dict`, *optional*):
            Its parameters and multiply-accumulates, once it was checked.
    """

    name: str
    options: dict
    runner: SystemRunner
    experiment: PlannedExperiment
    costs: dict | None = None

    @property
    def model_key(self) -> str:
        """Systems of the same key differ in their texts alone."""
        options = explicit_options(self.runner.model_args, *MODEL_OPTIONS)
        options.pop("tokenizer_name", None)
        return json.dumps([options, self.runner.processor.num_frames], sort_keys=True)


def main(argv: list[str] | None = None):
    path, data_args, args, compare_args = parse_args(argv)
    accelerator = None
    try:
        output_dir = make_output_dir(args.output_dir)
        accelerator = make_accelerator(args)
        return_freed_memory()
        run(path, data_args, args, compare_args.speed_rounds, accelerator, output_dir)
    except (DataError, ModelError, VideoReadError) as error:
        sys.exit(f"ezclip compare: {error}")
    finally:
        if accelerator is not None:
            accelerator.end_training()


def run(
    path: str,
    data_args: DataArguments,
    args: RunArguments,
    speed_rounds: int,
    accelerator: Accelerator,
    output_dir: Path,
):
    # 1. Everything that can be wrong is found before the first evaluation
    try:
        require_backend(data_args.video_backend)
    except ImportError as error:
        raise DataError(str(error)) from error
    options = read_systems(path)
    with accelerator.main_process_first():
        split = one_of(load_eval_splits(in_list_root(data_args)), "--validation_list")
    systems = []
    for name, own in options.items():
        with naming(name):
            systems.append(make_system(name, own, split, data_args, args, accelerator))
    by_model = group_by_model(systems)
    for group in by_model:
        set_seed(args.seed)
        check_model(group)
    for system in systems:
        if (finished := output_dir / system.name / EXPERIMENT_RESULTS_NAME).is_file():
            saved = read_results(finished)["settings"]
            check_settings(finished.parent, saved, system.runner.settings(system.experiment))

    # 2. Evaluate
    results, ranks = {}, {}
    for system in systems:
        results[system.name] = system.runner.run(system.experiment)[0][""]
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
        result["speed"] = describe_speed(accelerator, args.per_device_eval_batch_size, 0)
        result |= {
            "machine": describe_machine(),
            "options": explicit_options(data_args, *VIDEO_OPTIONS, *CLASS_TEXT_OPTIONS),
        }
        text = write(result, output_dir)
        if speed_rounds > 0:  # all models at once, for which memory may not suffice
            speeds = measure_speeds(by_model, accelerator, args.per_device_eval_batch_size, speed_rounds)
            for name, speed in speeds.items():
                result["systems"][name]["clips_per_second"] = speed
            result["speed"]["rounds"] = speed_rounds
            text = write(result, output_dir)
        print(text)
    accelerator.wait_for_everyone()


def write(result: dict, output_dir: Path) -> str:
    """Write a comparison as JSON and as Markdown; returns the latter."""
    text = as_markdown(result)
    write_json(output_dir / "comparison.json", result)
    with replacing(output_dir / "comparison.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    return text


# ---- Systems ----


@contextlib.contextmanager
def naming(name: str):
    """Errors say which system they are of."""
    try:
        yield
    except (DataError, ModelError) as error:
        raise type(error)(f"{name}: {error}") from error


def make_system(
    name: str, options: dict, split: VideoSplit, data_args: DataArguments, args: RunArguments, accelerator: Accelerator
) -> System:
    """
    A system, and what is to be run of it.

    Raises:
        [`DataError`]: if a class has no text. [`ModelError`]: if there is no processor.
    """
    texts = {option: options[option] for option in CLASS_TEXT_OPTIONS if option in options}
    data_args = dataclasses.replace(data_args, **texts)
    args = dataclasses.replace(args, ensemble=options.get("ensemble"))
    model_args = ModelArguments(**{option: options[option] for option in MODEL_OPTIONS if option in options})
    if (data_args.include_label or data_args.input_conditioning) and not data_args.class_descriptions:
        raise DataError("include_label and input_conditioning are for class_descriptions, which are not given.")
    fill_preset(model_args.preset, data_args, args)
    experiment = PlannedExperiment.complete(
        Experiment(name, args.seed, None, {"": split}), data_args, ClassTexts.from_options(in_list_root(data_args))
    )
    read = IsolatedReader(
        data_args.video_timeout, backend=data_args.video_backend, allow_partial=data_args.allow_partial
    )
    runner = SystemRunner(model_args, args, read, accelerator)
    runner.check([experiment])
    return System(name, options, runner, experiment)


def group_by_model(systems: list[System]) -> list[list[System]]:
    """Systems of the same model together."""
    groups = {}
    for system in systems:
        groups.setdefault(system.model_key, []).append(system)
    return list(groups.values())


def check_model(group: list[System]):
    """
    That the model of systems can be loaded and fits their processors; and what it costs.

    Raises:
        [`ModelError`]: if it cannot, or does not.
    """
    first = group[0]
    with naming(first.name):
        model = first.runner.load_model()
    for system in group:
        with naming(system.name):
            check_fit(model, system.runner.processor)
    weights = digest_model(model)
    costs = {
        "num_frames": first.runner.processor.num_frames,
        "num_parameters": model.num_parameters(),
        "num_trained_parameters": model.num_parameters(only_trainable=True),
        "macs_per_clip": count_macs(model, first.runner.processor.num_frames),
    }
    for system in group:
        system.runner.weights, system.costs = weights, costs


# ---- Speed ----


def measure_speeds(
    by_model: list[list[System]], accelerator: Accelerator, batch_size: int, rounds: int
) -> dict[str, dict]:
    """
    Clips that each system embeds in a second on this process's device, without reading them: all systems take turns,
    so all their models are in memory. Systems of the same model are measured as one.

    Returns:
        `dict`: for each system median, quartiles and rounds, and as `against` how many times the first system.
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
    """What embeds a batch of clips, and waits until they are embedded."""
    model = system.runner.load_model().to(accelerator.device).eval()
    vision = model.config.vision_config
    size = (vision.num_channels, vision.image_size, vision.image_size)
    clips = torch.randn(batch_size, system.runner.processor.num_frames, *size, device=accelerator.device)

    @torch.no_grad()
    def embed() -> torch.Tensor:
        with accelerator.autocast():
            return model.get_video_features(clips, output_last_hidden_state=False).pooler_output.cpu()

    return embed


def describe_speed(accelerator: Accelerator, batch_size: int, rounds: int) -> dict:
    """How speed was measured."""
    device = accelerator.device
    is_gpu = device.type == "cuda"
    return {
        "rounds": rounds,
        "batch_size": batch_size,
        "device": torch.cuda.get_device_name(device) if is_gpu else f"{device}, {torch.get_num_threads()} threads",
        "mixed_precision": accelerator.mixed_precision,
    }
