"""Options of `ezclip compare`, and its file of systems."""

import dataclasses

from ezclip.cli.arguments import (
    GROUPS,
    STEP_OPTIONS,
    DataArguments,
    ModelArguments,
    RunArguments,
    check_values,
    explicit_options,
)
from ezclip.cli.option_files import parse_options
from ezclip.cli.parser import Parser, fill, group_fields
from ezclip.errors import DataError
from ezclip.evaluation.comparison import TOP_K
from ezclip.utils.files import check_folder_names
from ezclip.utils.yaml_files import read_yaml
from video_ezclip import ReadLimits


MODEL_OPTIONS = tuple(field.name for field in dataclasses.fields(ModelArguments))
CLASS_TEXT_OPTIONS = ("templates", "class_descriptions", "include_label", "input_conditioning", *STEP_OPTIONS)
SYSTEM_OPTIONS = (*MODEL_OPTIONS, *CLASS_TEXT_OPTIONS, "ensemble", "function_to_apply", "calibration")
SOURCE_OPTIONS = ("validation_dir", "validation_list", "dataset_name")
VIDEO_OPTIONS = (
    *SOURCE_OPTIONS,
    *("dataset_config_name", "eval_split_name", "video_column_name", "label_column_name"),
    *("label_list", "class_subset", "list_root", "video_root", "max_eval_samples"),
    *("num_clips", "num_crops", "video_backend", "video_timeout", "allow_partial", "square_pixels"),
    *(field.name for field in dataclasses.fields(ReadLimits)),
)
RUN_OPTIONS = (
    *("output_dir", "overwrite_output_dir", "per_device_eval_batch_size", "dataloader_num_workers"),
    *("mixed_precision", "use_cpu", "seed"),
)


def make_parser(command: str, usage: str, description: str | None) -> Parser:
    """Return a parser of the options of an evaluation, for a command that adds its own."""
    names = (*VIDEO_OPTIONS, *CLASS_TEXT_OPTIONS, *RUN_OPTIONS)
    groups = group_fields(GROUPS, DataArguments, RunArguments, names=names)
    prog = f"ezclip {command}"
    return Parser(groups, prog=prog, usage=f"{prog} {usage} [OPTIONS]", description=description)


def read_arguments(parser: Parser, argv: list[str] | None) -> tuple[dict, DataArguments, RunArguments]:
    """Parse the command line; exit with a message if a value is out of range. The `dict` has all values by name."""
    try:
        values = parser.parse_groups(argv)
        data_args = fill(DataArguments, values)
    except ValueError as error:
        parser.error(str(error))
    # With a protocol and `latest`, the runner keeps finished systems.
    fixed = {"do_eval": True, "protocol": "zero_shot", "resume_from_checkpoint": "latest", "top_k": TOP_K}
    args = fill(RunArguments, {**values, **fixed})
    check_values(parser, ModelArguments(), data_args, args)
    return values, data_args, args


def check_source(parser: Parser, data_args: DataArguments):
    """Exit with a message unless the options name one source of videos."""
    if len(explicit_options(data_args, *SOURCE_OPTIONS)) != 1:
        parser.error(f"Give one of {', '.join(f'--{name}' for name in SOURCE_OPTIONS)}.")
    if data_args.label_list and data_args.validation_dir:
        parser.error("--label_list names the ids of a list or data set; class folders name themselves.")


def parse_args(argv: list[str] | None, description: str | None) -> tuple[DataArguments, RunArguments, str, int]:
    """
    Parse the command line of `ezclip compare`; exit with a message if the options contradict each other.

    The last two values are the path of the file of systems, and the rounds of the speed measurement.
    """
    parser = make_parser("compare", "SYSTEMS.yaml --output_dir FOLDER", description)
    parser.add_argument("systems", metavar="SYSTEMS.yaml", help="file that maps names of systems to their options")
    help = "Rounds of the speed measurement. 0 skips it."
    parser.add_argument("--speed_rounds", "--speed-rounds", type=int, default=15, help=help)
    values, data_args, args = read_arguments(parser, argv)
    check_source(parser, data_args)
    if (speed_rounds := values["speed_rounds"]) < 0:
        parser.error(f"--speed_rounds must be at least 0, got {speed_rounds}.")
    return data_args, args, values["systems"], speed_rounds


def read_systems(path: str) -> dict[str, dict]:
    """Read a file of systems. Return the options of each by its name."""
    content = read_yaml(path)
    if not isinstance(content, dict) or not content:
        raise DataError(f"{path} must name systems, each with options such as model_name_or_path.")
    check_folder_names(list(content), path, reserved=("comparison.json", "comparison.md"))
    systems, groups = {}, (ModelArguments, DataArguments, RunArguments)
    defaults = {field.name: field.default for group in groups for field in dataclasses.fields(group)}
    for name, options in content.items():
        typed = parse_options(options, groups, f"{path}: {name}", SYSTEM_OPTIONS)
        # An option without a value has its default, whatever the command line says.
        systems[name] = {option: typed.get(option, defaults[option]) for option in options}
        if systems[name].get("model_name_or_path") is None:
            raise DataError(f"{path}: {name} has no model_name_or_path: a folder, or a name on the Hub.")
    return systems
