"""The options of `run_video_zeroshot.py`, and what is wrong with them before anything runs."""

import math
import sys
from dataclasses import dataclass, field
from itertools import pairwise
from threading import TIMEOUT_MAX

from transformers import HfArgumentParser

from configuration_ezclip import PRESETS, TEMPORAL_HEADS, TEMPORAL_PROMPTS
from ezclip.cli.option_files import FILE_ENDINGS, find_option_file, read_options
from ezclip.data.labels import split_labels
from ezclip.errors import DataError
from ezclip.evaluation.protocols import PROTOCOLS
from ezclip.training.recipe import TrainingRecipe
from pipeline_ezclip import ENSEMBLES
from video_ezclip import BACKENDS


MAX_SEED = 2**31  # numpy takes seeds up to 2**32 - 1, and each process and repetition has one of its own
# Options of a preset besides its model, for those that were not given: TEAR's texts and how they are joined
PRESET_OPTIONS = {
    "tear": {"templates": ["A video action of {}"], "include_label": True, "ensemble": "embedding"},
}
TEXT_CONFIG_FIELDS = ("drop_path_rate", "attention_dropout")
VISION_CONFIG_FIELDS = (
    *TEXT_CONFIG_FIELDS,
    "num_frames",
    "temporal_prompt",
    "temporal_prompt_init_range",
    "temporal_prompt_dropout",
)


@dataclass
class ModelArguments:
    """The model, and what plain CLIP weights are given to become EZ-CLIP."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "EZ-CLIP or plain CLIP weights: a folder, or a name on the Hub."}
    )
    tokenizer_name: str | None = field(
        default=None,
        metadata={"help": "Tokenizer, if not the model's: a folder, a name, or CLIP's bpe_simple_vocab_16e6.txt.gz."},
    )
    preset: str | None = field(
        default=None, metadata={"help": "Published system that plain CLIP is made into.", "choices": list(PRESETS)}
    )
    num_frames: int | None = field(default=None, metadata={"help": "Frames of a video."})
    temporal_head: str | None = field(
        default=None, metadata={"help": "What joins the frames of a video.", "choices": list(TEMPORAL_HEADS)}
    )
    temporal_prompt: str | None = field(
        default=None, metadata={"help": "Temporal prompts.", "choices": list(TEMPORAL_PROMPTS)}
    )
    temporal_prompt_init_range: float | None = field(
        default=None, metadata={"help": "Fresh temporal prompts are drawn from U(-r, r)."}
    )
    temporal_prompt_dropout: float | None = field(default=None, metadata={"help": "Dropout of temporal prompts."})
    drop_path_rate: float | None = field(default=None, metadata={"help": "Stochastic depth, in both towers."})
    attention_dropout: float | None = field(default=None, metadata={"help": "Dropout of attention, in both towers."})


@dataclass
class DataArguments:
    """Where videos and classes come from."""

    dataset_name: str | None = field(
        default=None, metadata={"help": "Data set with a column of videos: a Hub name, or a folder of its files."}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of the data set."})
    train_split_name: str = field(default="train", metadata={"help": "Split to train on."})
    eval_split_name: str | None = field(
        default=None, metadata={"help": "Split to evaluate on: by default the first of validation, test and train."}
    )
    video_column_name: str | None = field(default=None, metadata={"help": "Column of videos."})
    label_column_name: str = field(default="label", metadata={"help": "Column of labels."})
    train_dir: str | None = field(default=None, metadata={"help": "Folder of class folders to train on."})
    validation_dir: str | None = field(default=None, metadata={"help": "Folder of class folders to evaluate on."})
    train_list: list[str] | None = field(
        default=None, metadata={"help": "List to train on: `path num_frames id` a line. For a --protocol, several."}
    )
    validation_list: list[str] | None = field(
        default=None, metadata={"help": "List to evaluate on. For a --protocol, several: splits of one data set."}
    )
    label_list: str | None = field(default=None, metadata={"help": "CSV of `id,name` for the lists."})
    train_label_list: str | None = field(
        default=None, metadata={"help": "The same for --train_list, where it has other classes."}
    )
    novel_list: str | None = field(default=None, metadata={"help": "List of novel classes, for base-to-novel."})
    novel_label_list: str | None = field(default=None, metadata={"help": "CSV of `id,name` for --novel_list."})
    class_subset: list[str] | None = field(
        default=None, metadata={"help": "CSVs of `id,name`: evaluate on these classes alone, on each file's in turn."}
    )
    num_classes: int | None = field(
        default=None,
        metadata={"help": "Evaluate on so many classes, drawn with --seed, --seed + 1 and so on, --num_seeds times."},
    )
    eval_datasets: str | None = field(
        default=None,
        metadata={
            "help": "YAML file of data sets for --protocol zero_shot: a name, and options of this group, for each. In "
            "a file of options its path is relative to that file."
        },
    )
    list_root: str | None = field(
        default=None, metadata={"help": "Folder that lists, label lists and descriptions are relative to."}
    )
    video_root: str | None = field(default=None, metadata={"help": "Folder in place of the lists' own root."})
    streaming: bool = field(
        default=False, metadata={"help": "Read the data set as it is predicted, never all of it on the disk."}
    )
    videos: list[str] | None = field(default=None, metadata={"help": "Video files to predict."})
    candidate_labels: list[str] | None = field(
        default=None,
        metadata={"help": "Classes to predict, in place of those of the data; one argument is split at its commas."},
    )
    templates: list[str] | None = field(
        default=None,
        metadata={
            "help": "Prompts with {} for a name or description; or `published` (16, the default), or `tear` (16)."
        },
    )
    class_descriptions: list[str] | None = field(
        default=None, metadata={"help": "Files with one or several texts per class (CSV or JSON), in place of names."}
    )
    include_label: bool | None = field(
        default=None,
        metadata={"help": "Use the name of a class too, beside its descriptions.", "nargs": "?", "const": True},
    )
    input_conditioning: bool = field(
        default=False, metadata={"help": "Begin each description with the name of its class."}
    )
    video_backend: str = field(
        default="auto",
        metadata={"help": "What decodes: by default the fastest that is exact.", "choices": list(BACKENDS)},
    )
    video_timeout: float = field(default=60.0, metadata={"help": "Seconds after which reading a video is given up."})
    allow_partial: bool = field(
        default=False, metadata={"help": "Use what can be decoded of damaged or incomplete videos."}
    )
    num_clips: int = field(default=1, metadata={"help": "Clips of a video in evaluation."})
    num_crops: int = field(
        default=1, metadata={"help": "Crops of a clip in evaluation: the centre, or three.", "choices": [1, 3]}
    )
    horizontal_flip: float = field(
        default=0.5,
        metadata={"help": "Part of the training clips that are mirrored; 0 where classes tell left from right."},
    )
    color_jitter: float = field(default=0.8, metadata={"help": "Part of the training clips whose colours change."})
    grayscale: float = field(default=0.2, metadata={"help": "Part of the training clips without colours."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on the first so many videos."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on the first so many videos."})

    def __post_init__(self):
        if self.candidate_labels is not None:
            try:
                self.candidate_labels = split_labels(self.candidate_labels)
            except DataError as error:
                raise DataError(f"--candidate_labels: {error}") from error


@dataclass
class RunArguments(TrainingRecipe):
    """What to do, and how."""

    output_dir: str | None = field(default=None, metadata={"help": "Folder for everything that is written."})
    do_train: bool = field(default=False, metadata={"help": "Train prompts and adapters."})
    do_eval: bool = field(default=False, metadata={"help": "Evaluate: eval_results.json and predictions.jsonl."})
    do_predict: bool = field(
        default=False,
        metadata={"help": "Predict, in Parquet files as it goes and predictions.jsonl; started again, it goes on."},
    )
    protocol: str | None = field(
        default=None, metadata={"help": "An experiment of the papers, in one run.", "choices": list(PROTOCOLS)}
    )
    num_shots: list[int] | None = field(
        default=None,
        metadata={"help": "Videos per class to draw; by default few-shot takes lists as they are, base-to-novel 16."},
    )
    num_seeds: int | None = field(
        default=None, metadata={"help": "Repetitions with --seed, --seed + 1 and so on: 3 of a protocol that draws."}
    )
    resume_from_checkpoint: str | None = field(
        default=None, metadata={"help": "A checkpoint's folder to go on from, or `latest`."}
    )
    save_trained_only: bool = field(
        default=False, metadata={"help": "Save prompts and adapters alone, to be loaded on top of the base model."}
    )
    push_to_hub: bool = field(
        default=False, metadata={"help": "Push the trained model to the Hub at the end, with a card."}
    )
    hub_model_id: str | None = field(
        default=None, metadata={"help": "Repository to push to; by default of the output folder's name."}
    )
    hub_private_repo: bool = field(default=False, metadata={"help": "The repository has to be private."})
    report_to: str = field(
        default="none", metadata={"help": "Trackers, with commas: tensorboard, wandb and others; `all`, or `none`."}
    )
    demo: bool = field(
        default=False,
        metadata={"help": "Show the whole road on clips that this script renders; with --num_seeds 3, three times."},
    )
    per_device_eval_batch_size: int = field(default=8, metadata={"help": "Videos per process at a time."})
    ensemble: str | None = field(
        default=None,
        metadata={"help": "How prompts are joined; by default by probability.", "choices": list(ENSEMBLES)},
    )
    top_k: int = field(default=5, metadata={"help": "Labels written for each video."})
    report: bool = field(
        default=False, metadata={"help": "Write report.html, a page with pictures, of each evaluation or prediction."}
    )
    strict: bool = field(default=False, metadata={"help": "Stop at the first video that cannot be read."})
    dataloader_num_workers: int = field(default=0, metadata={"help": "Processes that decode, for each process."})
    mixed_precision: str | None = field(
        default=None, metadata={"help": "Precision of the computation.", "choices": ["no", "fp16", "bf16"]}
    )
    use_cpu: bool = field(default=False, metadata={"help": "Do not use an accelerator."})
    seed: int = field(default=42, metadata={"help": "Seed of everything random."})


def parse_args(argv: list[str] | None = None) -> tuple[ModelArguments, DataArguments, RunArguments]:
    """
    Parse the command line. The first argument may name an option file ([`find_option_file`]); the arguments after it
    override its options.

    Raises:
        `SystemExit`: if the options contradict each other, with a message.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    groups = (ModelArguments, DataArguments, RunArguments)
    parser = HfArgumentParser(groups, prog="ezclip run", description="Train, evaluate and predict.")
    try:
        if argv and not argv[0].startswith("-"):
            parser.set_defaults(**read_options(find_option_file(argv.pop(0)), groups))
        for before, argument in pairwise(argv):
            if argument.endswith(FILE_ENDINGS) and before != "--eval_datasets":
                parser.error(f"The option file must come first, got {argument} after other arguments.")
        model_args, data_args, args = parser.parse_args_into_dataclasses(argv)
    except ValueError as error:
        parser.error(str(error))
    check_numbers(parser, model_args, data_args, args)
    if args.output_dir is None:
        parser.error("--output_dir is needed: the folder for everything that is written.")
    if args.push_to_hub and (args.demo or not args.do_train):
        parser.error("--push_to_hub pushes what --do_train trains. ezclip push pushes any folder.")
    if not args.push_to_hub and (args.hub_model_id or args.hub_private_repo):
        parser.error("--hub_model_id and --hub_private_repo are for --push_to_hub.")
    if args.report and not (args.do_eval or args.do_predict or args.protocol):
        parser.error("--report is of what --do_eval or --do_predict found. ezclip report reports on any folder.")
    if args.demo:
        return model_args, data_args, args
    if args.protocol is not None:
        args.do_eval = True
        check_protocol(parser, data_args, args)
    if not (args.do_train or args.do_eval or args.do_predict):
        parser.error("Nothing to do. Give --do_train, --do_eval or --do_predict; or --demo to see them work.")
    if model_args.model_name_or_path is None:
        parser.error("--model_name_or_path is needed: a folder, or a name on the Hub.")
    fill_preset(model_args.preset, data_args, args)
    uses_label = data_args.include_label or data_args.input_conditioning
    has_descriptions = data_args.class_descriptions or data_args.eval_datasets
    if uses_label and not has_descriptions and model_args.preset not in PRESET_OPTIONS:
        parser.error("--include_label and --input_conditioning are for --class_descriptions.")
    if data_args.videos and not args.do_predict:
        parser.error("--videos are predicted: add --do_predict.")
    if args.do_eval and args.do_predict:
        parser.error("--do_eval writes the predictions too; leave --do_predict out.")
    if args.protocol is None and (args.num_shots or args.num_seeds):
        parser.error("--num_shots and --num_seeds are for a --protocol.")
    if data_args.num_classes is not None and args.protocol != "zero_shot":
        parser.error("--num_classes draws classes for --protocol zero_shot.")
    if data_args.eval_datasets and args.protocol != "zero_shot":
        parser.error("--eval_datasets is for --protocol zero_shot.")
    if (data_args.novel_list or data_args.novel_label_list) and args.protocol != "base_to_novel":
        parser.error("--novel_list is for --protocol base_to_novel.")
    wants_best = args.load_best_model_at_end or args.early_stopping_patience is not None
    if args.do_train and wants_best and args.eval_steps is None:
        parser.error("--load_best_model_at_end and --early_stopping_patience need --eval_steps.")
    if args.do_train and args.eval_steps is not None and not args.do_eval:
        parser.error("--eval_steps needs videos to evaluate on: add --do_eval, or a --protocol.")
    if data_args.candidate_labels and not (args.do_predict or args.do_eval):
        parser.error("--candidate_labels are for --do_predict.")
    if args.do_eval and data_args.candidate_labels:
        parser.error("--do_eval uses the classes of the data; --candidate_labels are for --do_predict.")
    if data_args.streaming and not (args.do_predict and data_args.dataset_name):
        parser.error("--streaming is for --do_predict on a --dataset_name.")
    if data_args.streaming and data_args.max_eval_samples:
        parser.error("--streaming predicts all of a data set; leave --max_eval_samples out.")
    own_videos = data_args.validation_dir or data_args.validation_list or data_args.videos
    if data_args.dataset_name and own_videos and not args.do_train:
        parser.error("--dataset_name and videos of one's own are given to evaluate; give one of them.")
    lists = (data_args.dataset_name, data_args.validation_list, data_args.train_list, data_args.eval_datasets)
    if data_args.label_list and not any(lists):
        parser.error("--label_list names the ids of a list or data set; class folders name themselves.")
    return model_args, data_args, args


def fill_preset(preset: str | None, data_args: DataArguments, args: RunArguments):
    """Set the options of a preset that were not given."""
    for name, value in PRESET_OPTIONS.get(preset, {}).items():
        group = data_args if hasattr(data_args, name) else args
        if getattr(group, name) is None:
            setattr(group, name, value)


def check_protocol(parser: HfArgumentParser, data_args: DataArguments, args: RunArguments):
    """That a protocol has what it needs."""
    if args.do_predict:
        parser.error("--protocol evaluates; leave --do_predict out.")
    if args.protocol in ("few_shot", "fully_supervised") and not args.do_train:
        parser.error(f"--protocol {args.protocol} trains: add --do_train.")
    if args.num_shots and (args.protocol in ("zero_shot", "fully_supervised") or data_args.novel_list):
        parser.error("--num_shots draws for few-shot, or for base-to-novel without a --novel_list; leave it out.")
    own_videos = data_args.validation_dir or data_args.validation_list or data_args.class_subset
    if data_args.eval_datasets and own_videos:
        parser.error("--eval_datasets names all there is to test on; leave --validation_… and --class_subset out.")


def check_numbers(parser: HfArgumentParser, model_args: ModelArguments, data_args: DataArguments, args: RunArguments):
    """That numbers are in the range that makes sense of them."""
    at_least = {"per_device_eval_batch_size": 1, "dataloader_num_workers": 0, "top_k": 1, "seed": 0}
    at_least |= {"per_device_train_batch_size": 1, "num_train_epochs": 1, "max_train_steps": 1, "logging_steps": 1}
    at_least |= {"learning_rate": 0, "prompt_learning_rate": 0, "text_learning_rate": 0, "weight_decay": 0}
    at_least |= {"head_learning_rate": 0, "warmup_ratio": 0, "micro_batch_size": 1, "eval_steps": 1, "save_steps": 1}
    at_least |= {"save_total_limit": 1, "early_stopping_patience": 1, "num_seeds": 1}
    at_least |= {"max_train_samples": 1, "max_eval_samples": 1, "num_classes": 2, "num_clips": 1}
    options = {**vars(data_args), **vars(args)}
    for name, least in at_least.items():
        value = options[name]
        if value is not None and value < least:
            parser.error(f"--{name} must be at least {least}, got {value}.")
    if args.max_grad_norm is not None and args.max_grad_norm <= 0:
        parser.error(f"--max_grad_norm must be above 0, got {args.max_grad_norm}.")
    if args.seed > MAX_SEED:
        parser.error(f"--seed must be at most {MAX_SEED}, got {args.seed}.")
    if args.num_shots and min(args.num_shots) < 1:
        parser.error(f"--num_shots must be at least 1, got {min(args.num_shots)}.")
    if not 0 < data_args.video_timeout <= TIMEOUT_MAX:
        parser.error(f"--video_timeout must be a number of seconds above 0, got {data_args.video_timeout}.")
    for name in ("horizontal_flip", "color_jitter", "grayscale"):
        if not 0 <= (value := getattr(data_args, name)) <= 1:
            parser.error(f"--{name} is a part of the clips, from 0 to 1, got {value}.")
    if args.warmup_ratio > 1:
        parser.error(f"--warmup_ratio is a part of the steps, at most 1, got {args.warmup_ratio}.")
    for group in (model_args, data_args, args):
        for name, value in vars(group).items():
            if isinstance(value, float) and not math.isfinite(value):
                parser.error(f"--{name} must be a finite number, got {value}.")


def explicit_options(arguments, *names: str) -> dict:
    """Those of the arguments that were set."""
    return {name: value for name in names if (value := getattr(arguments, name)) is not None}
