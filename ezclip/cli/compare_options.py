"""Options of `ezclip compare`, and its file of systems."""

import dataclasses
from argparse import Namespace

from ezclip.cli.arguments import DataArguments, ModelArguments, RunArguments, check_values, explicit_options
from ezclip.cli.option_files import parse_options
from ezclip.cli.parser import Parser
from ezclip.errors import DataError
from ezclip.evaluation.comparison import TOP_K
from ezclip.utils.files import check_folder_names
from ezclip.utils.yaml_files import read_yaml
from video_ezclip import ReadLimits


MODEL_OPTIONS = tuple(field.name for field in dataclasses.fields(ModelArguments))
CLASS_TEXT_OPTIONS = ("templates", "class_descriptions", "include_label", "input_conditioning")
SYSTEM_OPTIONS = (*MODEL_OPTIONS, *CLASS_TEXT_OPTIONS, "ensemble")
SOURCE_OPTIONS = ("validation_dir", "validation_list", "dataset_name")
VIDEO_OPTIONS = (
    *SOURCE_OPTIONS,
    *("dataset_config_name", "eval_split_name", "video_column_name", "label_column_name"),
    *("label_list", "class_subset", "list_root", "video_root", "max_eval_samples"),
    *("num_clips", "num_crops", "video_backend", "video_timeout", "allow_partial", "square_pixels"),
    *(field.name for field in dataclasses.fields(ReadLimits)),
)
RUN_OPTIONS = (
    *("output_dir", "per_device_eval_batch_size", "dataloader_num_workers"),
    *("mixed_precision", "use_cpu", "seed"),
)


def pick_fields(of: type, names: tuple[str, ...]) -> type:
    """Return a dataclass with some fields of another. Default factories are not supported."""
    picked = [field for field in dataclasses.fields(of) if field.name in names]
    own = {field.name: dataclasses.field(default=field.default, metadata=field.metadata) for field in picked}
    return dataclasses.make_dataclass(of.__name__, [(field.name, field.type, own[field.name]) for field in picked])


def parse_args(argv: list[str] | None = None) -> tuple[DataArguments, RunArguments, Namespace]:
    """
    Parse the command line; exit with a message if the options contradict each other.

    The namespace holds `systems`, a path, and `speed_rounds`.
    """
    groups = (pick_fields(DataArguments, VIDEO_OPTIONS + CLASS_TEXT_OPTIONS), pick_fields(RunArguments, RUN_OPTIONS))
    parser = Parser(groups, prog="ezclip compare", description="Compare systems on the same videos.")
    parser.add_argument("systems", metavar="SYSTEMS.yaml", help="file that maps names of systems to their options")
    help = "Rounds of the speed measurement. 0 skips it."
    parser.add_argument("--speed_rounds", "--speed-rounds", type=int, default=15, help=help)
    try:
        data_args, args, rest = parser.parse_args_into_dataclasses(argv)
    except ValueError as error:
        parser.error(str(error))
    data_args = DataArguments(**vars(data_args))
    # With a protocol and `latest`, the runner keeps finished systems.
    args = RunArguments(**vars(args), do_eval=True, protocol="zero_shot", resume_from_checkpoint="latest", top_k=TOP_K)
    check_values(parser, ModelArguments(), data_args, args)
    if len(explicit_options(data_args, *SOURCE_OPTIONS)) != 1:
        parser.error(f"Give one of {', '.join(f'--{name}' for name in SOURCE_OPTIONS)}.")
    if data_args.label_list and data_args.validation_dir:
        parser.error("--label_list names the ids of a list or data set; class folders name themselves.")
    if rest.speed_rounds < 0:
        parser.error(f"--speed_rounds must be at least 0, got {rest.speed_rounds}.")
    return data_args, args, rest


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
