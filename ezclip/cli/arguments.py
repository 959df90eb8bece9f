"""Options of `ezclip run`, and their checks before anything runs."""

# ruff: noqa: RUF009 -- `option` returns a field, which dataclasses copy
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from threading import TIMEOUT_MAX

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from configuration_ezclip import PRESETS, TEMPORAL_HEADS, TEMPORAL_PROMPTS
from ezclip.cli.demo import TOWERS
from ezclip.cli.option_files import FILE_ENDINGS, find_option_file, read_options
from ezclip.cli.parser import Parser, fill, group_fields
from ezclip.constants import EXECUTOR_HELP, EXECUTORS
from ezclip.data.labels import split_labels
from ezclip.encoders.openvino_engine import ENGINES
from ezclip.errors import DataError
from ezclip.evaluation.protocols import PROTOCOLS
from ezclip.training.recipe import TrainingRecipe
from ezclip.utils.messages import get_logger
from pipeline_ezclip import ENSEMBLES, SCORE_FUNCTIONS, STEP_SCORES
from video_ezclip import BACKENDS, ReadLimits


logger = get_logger()

MAX_SEED = 2**31  # numpy takes seeds up to 2**32 - 1; processes and repetitions add to the seed
# Defaults that a preset changes, besides its model: the texts of TEAR and how they are joined
PRESET_OPTIONS = {"tear": {"templates": ["A video action of {}"], "include_label": True, "ensemble": "embedding"}}
STEP_OPTIONS = ("step_score", "step_contrast")
TRANSFORM_OPTIONS = ("horizontal_flip", "color_jitter", "grayscale")
# Options that belong to one protocol
PROTOCOL_OPTIONS = {"num_classes": "zero_shot", "eval_datasets": "zero_shot"}
PROTOCOL_OPTIONS |= {"novel_list": "base_to_novel", "novel_label_list": "base_to_novel"}
LEAST = {"per_device_eval_batch_size": 1, "dataloader_num_workers": -1, "top_k": 1, "seed": 0}
LEAST |= {"per_device_train_batch_size": 1, "num_train_epochs": 1, "max_train_steps": 1, "logging_steps": 1}
LEAST |= {"learning_rate": 0, "prompt_learning_rate": 0, "text_learning_rate": 0, "weight_decay": 0}
LEAST |= {"head_learning_rate": 0, "micro_batch_size": 1, "eval_steps": 1, "save_steps": 1}
LEAST |= {"save_total_limit": 1, "early_stopping_patience": 1, "average_last": 1, "num_seeds": 1}
LEAST |= {"distillation_weight": 0, "interpolated_loss_weight": 0}
LEAST |= {"step_contrast": 0, "clip_weight": 0, "max_train_samples": 1, "max_eval_samples": 1}
LEAST |= {"num_classes": 2, "num_clips": 1}
FRACTIONS = ("horizontal_flip", "color_jitter", "grayscale", "warmup_ratio", "min_score")
TEXT_CONFIG_FIELDS = ("drop_path_rate", "attention_dropout")
VISION_CONFIG_FIELDS = (*TEXT_CONFIG_FIELDS, "num_frames", "temporal_prompt")
VISION_CONFIG_FIELDS += ("temporal_prompt_init_range", "temporal_prompt_dropout")


# The groups of `--help`, and their options in the order of use. Other options follow in the group of their class.
GROUPS = {
    "What to do": (
        *("do_predict", "do_eval", "do_train", "do_fit", "protocol", "demo", "tower", "output_dir"),
        *("overwrite_output_dir", "report", "top_k", "strict", "resume_from_checkpoint", "save_trained_only"),
        *("report_to",),
    ),
    "Model": ("model_name_or_path", "preset", "num_frames", "tokenizer_name"),
    "Videos": (
        *("videos", "validation_dir", "train_dir", "validation_list", "train_list", "video_root", "list_root"),
        *("dataset_name", "dataset_config_name", "eval_split_name", "train_split_name", "video_column_name"),
        *("label_column_name", "streaming", "max_eval_samples", "max_train_samples"),
    ),
    "Classes and their texts": (
        *("candidate_labels", "label_list", "train_label_list", "class_subset", "templates", "class_descriptions"),
        *("include_label", "input_conditioning", "step_score", "step_contrast", "clip_weight", "ensemble"),
        *("function_to_apply", "calibration", "min_score"),
    ),
    "Speed and repeatability": (
        *(
            "per_device_eval_batch_size",
            "dataloader_num_workers",
            "executor",
            "mixed_precision",
            "torch_compile",
            "use_cpu",
            "seed",
        ),
    ),
    "Training recipe": (
        *("learning_rate", "num_train_epochs", "max_train_steps", "per_device_train_batch_size", "micro_batch_size"),
        *("gradient_checkpointing", "save_steps", "save_total_limit", "eval_steps", "load_best_model_at_end"),
        *("metric_for_best_model", "early_stopping_patience", "logging_steps", "warmup_ratio", "weight_decay"),
        *("average_last", "max_grad_norm", "prompt_learning_rate", "head_learning_rate", "text_learning_rate"),
        *("horizontal_flip", "color_jitter", "grayscale", "drop_path_rate", "attention_dropout"),
        *("distillation_weight", "interpolated_loss_weight"),
        *("temporal_prompt_dropout", "temporal_prompt_init_range", "temporal_prompt", "temporal_head"),
    ),
    "Experiments of the papers (--protocol)": (
        *("num_shots", "num_seeds", "eval_datasets", "num_classes", "novel_list", "novel_label_list"),
    ),
    "Push to the Hub": ("push_to_hub", "hub_model_id", "hub_private_repo"),
    "How videos are read": (
        *("num_clips", "num_crops", "video_timeout", "video_backend", "allow_partial", "square_pixels"),
    ),
    "Limits of reading a video": tuple(limit.name for limit in fields(ReadLimits)),
}
# Options that the demo heeds
DEMO_OPTIONS = ("demo", "tower", "output_dir", "num_seeds", "seed")
DEMO_OPTIONS += ("dataloader_num_workers", "mixed_precision", "use_cpu")
DESCRIPTION = """\
Predict the classes of videos, evaluate on labelled videos, train, or run an experiment of the papers.

    ezclip run --do_predict --model_name_or_path openai/clip-vit-base-patch16 \\
        --videos holiday.mp4 videos --candidate_labels "yoga, making a cake" --output_dir out
    ezclip run --do_eval --model_name_or_path MODEL --validation_dir videos/test --output_dir out
    ezclip run --do_train --do_eval --model_name_or_path openai/clip-vit-base-patch16 \\
        --train_dir videos/train --validation_dir videos/test --output_dir out
    ezclip run base_to_novel_ucf101 --model_name_or_path openai/clip-vit-base-patch16 \\
        --list_root EZ-CLIP --video_root UCF-101 --output_dir out

The last command takes its options from a file of the package. A path that ends in .yaml names a file of your own.
`ezclip demo` shows all of it on videos made here."""
DEMO_DESCRIPTION = """\
Train and evaluate a tiny model on clips of moving shapes that are rendered here. It needs no network and no data.

    ezclip demo --output_dir demo
    ezclip demo --tower siglip --output_dir demo_siglip"""


def option(default, help: str, **metadata):
    """Return the field of an option."""
    return field(default=default, metadata={"help": help, **metadata})


@dataclass
class ModelArguments:
    """The model, and the options that turn a plain dual encoder such as CLIP into EZ-CLIP."""

    _argument_group_name = "Model"

    model_name_or_path: str | None = option(
        None, "EZ-CLIP, or another dual encoder such as CLIP, SigLIP or X-CLIP: a folder, or a Hub name. Required."
    )
    engine: str | None = option(
        None, "Engine that runs the model, which is a folder of `ezclip export --engine`.", choices=list(ENGINES)
    )
    tokenizer_name: str | None = option(
        None, "Tokenizer in place of the model's: a folder, a name, or CLIP's bpe_simple_vocab_16e6.txt.gz."
    )
    preset: str | None = option(
        None,
        "Published system to build from a plain dual encoder. Defaults to ezclip for --do_train, else to clip.",
        choices=list(PRESETS),
    )
    num_frames: int | None = option(
        None, "Number of frames per clip. Defaults to that of the model; for a plain one 8 (tear 16, vificlip 32)."
    )
    temporal_head: str | None = option(
        None,
        "Module that joins the frames of a clip. Defaults to that of the model or preset.",
        choices=list(TEMPORAL_HEADS),
    )
    temporal_prompt: str | None = option(
        None, "Kind of temporal prompts. Defaults to that of the model or preset.", choices=list(TEMPORAL_PROMPTS)
    )
    temporal_prompt_init_range: float | None = option(
        None, "Range r of new temporal prompts, drawn from U(-r, r). Defaults to the published one."
    )
    temporal_prompt_dropout: float | None = option(
        None, "Dropout probability of temporal prompts. Defaults to that of the model, 0.1 for ezclip."
    )
    drop_path_rate: float | None = option(
        None, "Probability of stochastic depth, in both towers. Defaults to that of the model, 0.1 for ezclip."
    )
    attention_dropout: float | None = option(
        None, "Dropout probability of attention, in both towers. Defaults to that of the model, 0.1 for ezclip."
    )


@dataclass
class DataArguments(ReadLimits):
    """The videos, the classes, and how they are read."""

    _argument_group_name = "Videos"

    dataset_name: str | None = option(None, "Data set with a column of videos: a name on the Hub, or a folder.")
    dataset_config_name: str | None = option(None, "Configuration of the data set, if it has several.")
    train_split_name: str = option("train", "Split to train on.")
    eval_split_name: str | None = option(
        None, "Split to evaluate on. Defaults to the first of validation, test and train."
    )
    video_column_name: str | None = option(None, "Column of videos. Defaults to the only one of videos.")
    label_column_name: str = option("label", "Column of labels.")
    train_dir: str | None = option(None, "Folder of class folders to train on.")
    validation_dir: str | None = option(None, "Folder of class folders to evaluate on.")
    train_list: list[str] | None = option(
        None, "List to train on, one `path num_frames id` per line. A --protocol takes several."
    )
    validation_list: list[str] | None = option(
        None, "List to evaluate on. A --protocol and `ezclip compare` take several splits of one data set."
    )
    label_list: str | None = option(
        None, "CSV of `id,name` for the lists, or for a data set with numbers for classes."
    )
    train_label_list: str | None = option(None, "CSV of `id,name` for --train_list, if its classes differ.")
    novel_list: str | None = option(None, "List of novel classes, for --protocol base_to_novel.")
    novel_label_list: str | None = option(None, "CSV of `id,name` for --novel_list.")
    class_subset: list[str] | None = option(
        None, "CSVs of `id,name`: evaluate only on these classes, once for each file. Defaults to all."
    )
    num_classes: int | None = option(
        None,
        "Number of classes to draw and evaluate on, with the seeds --seed, --seed + 1, … (--num_seeds). Defaults to "
        "all.",
    )
    eval_datasets: str | None = option(
        None,
        "YAML file that maps names of data sets to their options, for --protocol zero_shot. In an option "
        "file, the path is relative to that file.",
    )
    list_root: str | None = option(
        None,
        "Folder that the paths of lists, label lists and descriptions are relative to. Default: the current one.",
    )
    video_root: str | None = option(
        None, "Folder that holds the videos of the lists. Defaults to the folder of each list."
    )
    streaming: bool = option(False, "Stream the data set instead of downloading it first.")
    videos: list[str] | None = option(
        None, "Videos to predict: files, folders, patterns such as 'clips/*.mp4', or URLs."
    )
    candidate_labels: list[str] | None = option(
        None, "Classes to predict, in place of the classes of the data. One argument is split at commas."
    )
    templates: list[str] | None = option(
        None, "Prompts with {} for a name or description; or `published` (16, the default), or `tear` (16)."
    )
    class_descriptions: list[str] | None = option(
        None, "CSV or JSON files with one or several texts per class, in place of the names."
    )
    include_label: bool | None = option(
        None, "Use the name of a class as a text beside its descriptions.", nargs="?", const=True
    )
    input_conditioning: bool = option(False, "Begin each description with the name of its class.")
    step_score: str | None = option(
        None,
        "How a video is compared with descriptions that are steps in order: aligned with its frames, by their mean, "
        "or both. Makes steps of lists of texts too. Defaults to aligned for files that mark steps.",
        choices=list(STEP_SCORES),
    )
    step_contrast: float | None = option(
        None, "Factor of the aligned steps minus the reversed ones, which is added to the score. Defaults to 1."
    )
    video_backend: str = option(
        "auto", "Library that decodes. `auto` takes the fastest exact one.", choices=list(BACKENDS)
    )
    video_timeout: float = option(60.0, "Seconds after which a video counts as unreadable.")
    allow_partial: bool = option(False, "Use the part of damaged or incomplete videos that can be decoded.")
    square_pixels: bool = option(False, "Scale the width of videos whose pixels are not square, as a player does.")
    num_clips: int = option(1, "Clips per video in evaluation.")
    num_crops: int = option(1, "Crops per clip in evaluation. 1 is the centre.", choices=[1, 3])
    horizontal_flip: float = option(
        0.5, "Probability that a training clip is mirrored. Give 0 if classes tell left from right."
    )
    color_jitter: float = option(0.8, "Probability that the colours of a training clip change.")
    grayscale: float = option(0.2, "Probability that a training clip loses its colours.")
    max_train_samples: int | None = option(None, "Number of videos to train on: the first ones. Defaults to all.")
    max_eval_samples: int | None = option(None, "Number of videos to evaluate on: the first ones. Defaults to all.")

    def __post_init__(self):
        if self.candidate_labels is not None:
            try:
                self.candidate_labels = split_labels(self.candidate_labels)
            except DataError as error:
                raise DataError(f"--candidate_labels: {error}") from error


@dataclass
class RunArguments(TrainingRecipe):
    """The work to do, and its resources."""

    _argument_group_name = "What to do"

    output_dir: str | None = option(None, "Folder for all results.")
    do_train: bool = option(False, "Train the prompts and adapters of ezclip, or what --preset trains.")
    do_fit: bool = option(
        False, "Instead of training, add the training videos to the texts of their classes: class_bank.safetensors."
    )
    clip_weight: float | None = option(
        None, "Weight of a video beside the text of its class, for --do_fit. Defaults to the best by leave-one-out."
    )
    do_eval: bool = option(False, "Evaluate on labelled videos: eval_results.json and predictions.jsonl.")
    do_predict: bool = option(
        False, "Predict: Parquet files on the way, predictions.jsonl at the end. A second run resumes."
    )
    protocol: str | None = option(None, "Experiment of the papers to run.", choices=list(PROTOCOLS))
    num_shots: list[int] | None = option(
        None, "Videos per class to draw. Defaults to 16 for base_to_novel; few_shot then takes whole lists."
    )
    num_seeds: int | None = option(
        None, "Repetitions, with the seeds --seed, --seed + 1, … Defaults to 3 if a protocol draws, else 1."
    )
    resume_from_checkpoint: str | None = option(
        None,
        "Resume from a checkpoint folder. Without a value, with `True` or `latest`: from the last of --output_dir, "
        "if any. `False` starts from the beginning.",
        nargs="?",
        const="latest",
    )
    save_trained_only: bool = option(False, "Save only prompts and adapters. They load on top of the base model.")
    overwrite_output_dir: bool = option(
        False, "Start anew in a used folder: results of earlier runs go when the first new one is written."
    )
    push_to_hub: bool = option(False, "Push the trained model with a card to the Hub at the end.")
    hub_model_id: str | None = option(None, "Repository to push to. Defaults to the name of the output folder.")
    hub_private_repo: bool = option(False, "Require a private repository.")
    report_to: str = option(
        "none", "Trackers, separated by commas: tensorboard, wandb, …; or `all`, or `none`.", metavar="TRACKERS"
    )
    demo: bool = option(False, "Train and evaluate a tiny model on clips rendered here. --num_seeds repeats it.")
    tower: str | None = option(
        None, "The model that --demo trains on stills and freezes. Defaults to clip.", choices=list(TOWERS)
    )
    per_device_eval_batch_size: int = option(8, "Videos per process and batch.")
    ensemble: str | None = option(
        None, "How the prompts of a class are joined. Defaults to probability.", choices=list(ENSEMBLES)
    )
    function_to_apply: str | None = option(
        None,
        "softmax: the labels compete. sigmoid: each label has a score of its own. Defaults to the model's.",
        choices=list(SCORE_FUNCTIONS),
    )
    calibration: str | None = option(
        None,
        "calibration.json of `ezclip calibrate`, for scores that are probabilities, and a threshold.",
    )
    min_score: float | None = option(
        None,
        "Smallest score that --do_predict writes. A video without one is none of these. Default: calibrated, or 0.",
    )
    top_k: int = option(5, "Number of labels written for each video.")
    report: bool = option(False, "Write report.html, a page with pictures, for each evaluation or prediction.")
    strict: bool = option(False, "Stop at the first video that cannot be read.")
    dataloader_num_workers: int = option(
        0,
        "Decoding processes for each process. 0 decodes in the process that computes; -1 measures this machine for a "
        "few seconds and divides its cores.",
    )
    executor: str = option(EXECUTORS[0], EXECUTOR_HELP, choices=list(EXECUTORS))
    mixed_precision: str | None = option(
        None,
        "Precision of the computation. Defaults to that of `accelerate config`, or to no.",
        choices=["no", "fp16", "bf16"],
    )
    torch_compile: bool = option(
        False, "Compile the vision tower for one size of batch. Takes a minute, and pays for long runs on a GPU."
    )
    use_cpu: bool = option(False, "Compute on the CPU, even if there is a GPU.")
    seed: int = option(42, "Seed of all random numbers.")

    def __post_init__(self):
        # As in transformers; other texts are folders.
        word = (self.resume_from_checkpoint or "false").lower()
        if word in ("true", "false"):
            self.resume_from_checkpoint = "latest" if word == "true" else None

    @property
    def reads_training_videos(self) -> bool:
        """Return whether the run learns from labelled videos, by training or by fitting a class bank."""
        return self.do_train or self.do_fit


def parse_args(argv: list[str] | None = None) -> tuple[ModelArguments, DataArguments, RunArguments]:
    """
    Parse the command line; exit with a message if the options contradict each other.

    The first argument may name an option file ([`find_option_file`]). The arguments after it override its options.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    groups = (ModelArguments, DataArguments, RunArguments)
    is_demo = any(word.partition("=")[0] == "--demo" for word in argv)
    parser = make_demo_parser(groups) if is_demo else make_parser(groups)
    try:
        if argv and not argv[0].startswith("-"):
            parser.set_defaults(**read_options(find_option_file(argv.pop(0)), groups))
        for before, argument in pairwise(argv):
            if argument.endswith(FILE_ENDINGS) and before != "--eval_datasets":
                parser.error(f"The option file must come first, got {argument} after other arguments.")
        values = parser.parse_groups(argv)
        model_args, data_args = fill(ModelArguments, values), fill(DataArguments, values)
        args = fill(RunArguments, values)
    except ValueError as error:
        parser.error(str(error))
    check_values(parser, model_args, data_args, args)
    check_checkpoint(parser, args.resume_from_checkpoint, args.output_dir)
    if args.demo:
        return model_args, data_args, args
    if model_args.engine is not None:
        args.use_cpu = True  # engines run there
    if args.tower is not None:
        parser.error("--tower is for --demo. --model_name_or_path brings its own towers.")
    if args.push_to_hub and not args.do_train:
        parser.error("--push_to_hub needs --do_train. To push any folder, use `ezclip push`.")
    if not args.push_to_hub and (args.hub_model_id or args.hub_private_repo):
        parser.error("--hub_model_id and --hub_private_repo are for --push_to_hub.")
    if args.executor == "ray" and args.torch_compile:
        parser.error("--executor ray and --torch_compile exclude each other: give one of them.")
    if args.executor == "ray" and (not args.do_predict or args.do_train or args.do_eval or data_args.streaming):
        parser.error("--executor ray is for --do_predict without --do_train, --do_eval and --streaming: leave it out.")
    if args.min_score is not None and not args.do_predict:
        parser.error("--min_score is for --do_predict. --do_eval counts the best label of each video.")
    if args.calibration and args.do_train:
        parser.error("--calibration is fitted to one model: leave it out of --do_train, and calibrate after it.")
    if args.do_fit:
        check_fit_options(parser, data_args, args)
    elif args.clip_weight is not None:
        parser.error("--clip_weight is for --do_fit.")
    if args.report and not (args.do_eval or args.do_predict or args.protocol):
        parser.error("--report needs --do_eval or --do_predict. To report on any folder, use `ezclip report`.")
    if args.overwrite_output_dir and args.resume_from_checkpoint:
        parser.error("--overwrite_output_dir starts anew: leave --resume_from_checkpoint out.")
    own_videos = data_args.validation_dir or data_args.validation_list
    if args.protocol is None:
        if args.num_shots or args.num_seeds:
            parser.error("--num_shots and --num_seeds are for a --protocol.")
    else:
        args.do_eval = True
        if args.do_predict:
            parser.error("--protocol evaluates: leave --do_predict out.")
        if args.protocol in ("few_shot", "fully_supervised") and not args.reads_training_videos:
            parser.error(f"--protocol {args.protocol} trains: add --do_train, or --do_fit.")
        if args.num_shots and (args.protocol in ("zero_shot", "fully_supervised") or data_args.novel_list):
            parser.error("--num_shots is for few_shot, and for base_to_novel without --novel_list: leave it out.")
        if data_args.eval_datasets and (own_videos or data_args.class_subset):
            parser.error("--eval_datasets names all test videos: leave --validation_… and --class_subset out.")
    for name, protocol in PROTOCOL_OPTIONS.items():
        if getattr(data_args, name) is not None and args.protocol != protocol:
            parser.error(f"--{name} is for --protocol {protocol}.")
    if not (args.reads_training_videos or args.do_eval or args.do_predict):
        parser.error("Nothing to do. Give --do_train, --do_fit, --do_eval or --do_predict, or try --demo.")
    if model_args.model_name_or_path is None:
        parser.error("--model_name_or_path is needed: a folder, or a name on the Hub.")
    fill_preset(model_args.preset, data_args, args)
    uses_label = data_args.include_label or data_args.input_conditioning
    has_descriptions = data_args.class_descriptions or data_args.eval_datasets
    if uses_label and not has_descriptions and model_args.preset not in PRESET_OPTIONS:
        parser.error("--include_label and --input_conditioning are for --class_descriptions.")
    if explicit_options(data_args, *STEP_OPTIONS) and not has_descriptions:
        parser.error("--step_score and --step_contrast are for --class_descriptions.")
    if data_args.videos and not args.do_predict:
        parser.error("--videos needs --do_predict: add --do_predict.")
    if args.do_eval and args.do_predict:
        parser.error("--do_eval writes predictions too: leave --do_predict out.")
    if args.do_train and args.needs_best and args.eval_steps is None:
        parser.error("--load_best_model_at_end and --early_stopping_patience need --eval_steps.")
    if args.do_train and args.eval_steps is not None and not args.do_eval:
        parser.error("--eval_steps needs videos to evaluate on: add --do_eval, or a --protocol.")
    if data_args.candidate_labels and not args.do_predict:
        parser.error("--candidate_labels are for --do_predict. --do_eval uses the classes of the data.")
    if data_args.streaming and not (args.do_predict and data_args.dataset_name):
        parser.error("--streaming is for --do_predict on a --dataset_name.")
    if data_args.streaming and data_args.max_eval_samples:
        parser.error("--streaming predicts the whole data set: leave --max_eval_samples out.")
    if data_args.dataset_name and (own_videos or data_args.videos) and not args.reads_training_videos:
        parser.error("--dataset_name and other videos are both given to evaluate: give one of them.")
    lists = (data_args.dataset_name, data_args.validation_list, data_args.train_list, data_args.eval_datasets)
    if data_args.label_list and not any(lists):
        parser.error("--label_list names the ids of a list or data set; class folders name themselves.")
    return model_args, data_args, args


def make_parser(groups: Sequence[type]) -> Parser:
    """Return the parser of `ezclip run`."""
    return Parser(
        group_fields(GROUPS, *groups),
        prog="ezclip run",
        usage="ezclip run [OPTION_FILE] --model_name_or_path MODEL --output_dir FOLDER [OPTIONS]",
        description=DESCRIPTION,
    )


def make_demo_parser(groups: Sequence[type]) -> Parser:
    """Return the parser of `ezclip demo`. It has only the options that the demo heeds."""
    shown = group_fields({"What to do": DEMO_OPTIONS}, *groups, names=DEMO_OPTIONS)
    parser = Parser(shown, prog="ezclip demo", description=DEMO_DESCRIPTION)
    parser.set_defaults(output_dir="demo")
    return parser


def fill_preset(preset: str | None, data_args: DataArguments, args: RunArguments):
    """Set the options of a preset that the user did not give."""
    for name, value in PRESET_OPTIONS.get(preset, {}).items():
        group = data_args if hasattr(data_args, name) else args
        if getattr(group, name) is None:
            setattr(group, name, value)


def check_fit_options(parser: Parser, data_args: DataArguments, args: RunArguments):
    """Exit with a message if options contradict `--do_fit`. Warn about options of a training, which it is not."""
    if args.do_train:
        parser.error("--do_fit does not train: leave --do_train out, or give --do_train false beside an option file.")
    if args.do_predict:
        parser.error("--do_fit saves a class bank: leave --do_predict out, and give it to `ezclip classify`.")
    if args.protocol == "zero_shot":
        parser.error("--protocol zero_shot tests classes without labelled videos: leave --do_fit out.")
    if args.calibration:
        parser.error("--calibration is fitted to texts: leave it out of --do_fit.")
    of_training = (*(field.name for field in fields(TrainingRecipe)), *TRANSFORM_OPTIONS, "save_trained_only")
    defaults = {field.name: field.default for group in (data_args, args) for field in fields(group)}
    options = {**vars(data_args), **vars(args)}
    if unused := [f"--{name}" for name in of_training if options[name] != defaults[name]]:
        logger.warning(f"--do_fit does not train. These options have no effect: {', '.join(unused)}.")


def check_values(parser: Parser, model_args: ModelArguments, data_args: DataArguments, args: RunArguments):
    """Exit with a message if a number is out of range, or there is no output folder."""
    options = {**vars(model_args), **vars(data_args), **vars(args)}
    for name, value in options.items():
        if isinstance(value, float) and not math.isfinite(value):
            parser.error(f"--{name} must be a finite number, got {value}.")
        if value is not None and name in LEAST and value < LEAST[name]:
            parser.error(f"--{name} must be at least {LEAST[name]}, got {value}.")
        if value is not None and name in FRACTIONS and not 0 <= value <= 1:
            parser.error(f"--{name} must be in [0, 1], got {value}.")
    if args.max_grad_norm is not None and args.max_grad_norm <= 0:
        parser.error(f"--max_grad_norm must be above 0, got {args.max_grad_norm}.")
    if args.seed > MAX_SEED:
        parser.error(f"--seed must be at most {MAX_SEED}, got {args.seed}.")
    if args.num_shots and min(args.num_shots) < 1:
        parser.error(f"--num_shots must be at least 1, got {min(args.num_shots)}.")
    if not 0 < data_args.video_timeout <= TIMEOUT_MAX:
        parser.error(f"--video_timeout must be a number of seconds above 0, got {data_args.video_timeout}.")
    if args.output_dir is None:
        parser.error("--output_dir is needed: the folder for all results.")


def check_checkpoint(parser: Parser, checkpoint: str | None, output_dir: str | None):
    """Exit with a message if the checkpoint to resume from does not exist. The message names those that do."""
    if checkpoint is None or checkpoint == "latest" or output_dir is None or (path := Path(checkpoint)).is_dir():
        return
    found = (folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") for folder in (Path(output_dir), path.parent))
    existing = {str(checkpoint) for checkpoints in found for checkpoint in checkpoints if checkpoint.is_dir()}
    names = ", ".join(sorted(existing, key=lambda name: (len(name), name)))
    there = f"Give one of {names}." if existing else f"{output_dir} has no checkpoint: leave the option out."
    parser.error(f"--resume_from_checkpoint {path} does not exist. {there}")


def explicit_options(arguments, *names: str) -> dict:
    """Return the named arguments that are not `None`."""
    return {name: value for name in names if (value := getattr(arguments, name)) is not None}
