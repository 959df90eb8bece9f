#!/usr/bin/env python
"""Train, evaluate and apply EZ-CLIP.

    accelerate launch run_video_zeroshot.py --demo --output_dir demo
    accelerate launch run_video_zeroshot.py --model_name_or_path MODEL \\
        --do_eval --validation_dir videos --output_dir out
    accelerate launch run_video_zeroshot.py --model_name_or_path openai/clip-vit-base-patch16 \\
        --do_train --train_list train.txt --label_list labels.csv --video_root videos --output_dir out
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from threading import TIMEOUT_MAX

from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed
from transformers import HfArgumentParser
from transformers.utils import logging as transformers_logging

from ezclip import ClassBank, VideoReadError
from ezclip.class_bank_ezclip import ENSEMBLES
from ezclip.configuration_ezclip import TEMPORAL_PROMPTS
from ezclip.data import VideoDataset
from ezclip.decoding_ezclip import BACKENDS, require_backend
from ezclip.demo import run_demo
from ezclip.errors import DataError, ModelError
from ezclip.evaluation import predict, write_json
from ezclip.isolation import IsolatedReader
from ezclip.labels import read_class_descriptions
from ezclip.loading import check_fit, load_model, load_processor
from ezclip.memory import return_freed_memory
from ezclip.processing_ezclip import label_to_words
from ezclip.sources import VideoSplit, load_files, load_folder, load_hub_dataset, load_list
from ezclip.training import TrainingRecipe, train
from ezclip.transforms import TrainTransform


logger = transformers_logging.get_logger("ezclip")

TEXT_OPTIONS = ("drop_path_rate", "attention_dropout")
VISION_OPTIONS = (
    *TEXT_OPTIONS,
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
    num_frames: int | None = field(default=None, metadata={"help": "Frames of a video."})
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
    train_list: str | None = field(default=None, metadata={"help": "List to train on: `path num_frames id` a line."})
    validation_list: str | None = field(default=None, metadata={"help": "List to evaluate on."})
    label_list: str | None = field(default=None, metadata={"help": "CSV of `id,name` for the lists."})
    train_label_list: str | None = field(
        default=None, metadata={"help": "The same for --train_list, where it has other classes."}
    )
    video_root: str | None = field(default=None, metadata={"help": "Folder in place of the lists' own root."})
    videos: list[str] | None = field(default=None, metadata={"help": "Video files to predict."})
    candidate_labels: list[str] | None = field(
        default=None, metadata={"help": "Classes to predict, in place of those of the data."}
    )
    templates: list[str] | None = field(
        default=None, metadata={"help": "Prompts with {} for the class name, in place of the 16 published ones."}
    )
    class_descriptions: list[str] | None = field(
        default=None, metadata={"help": "Files with a text per class (CSV or JSON), in place of prompts."}
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


@dataclass
class RunArguments(TrainingRecipe):
    """What to do, and how."""

    output_dir: str | None = field(default=None, metadata={"help": "Folder for everything that is written."})
    do_train: bool = field(default=False, metadata={"help": "Train prompts and adapters."})
    do_eval: bool = field(default=False, metadata={"help": "Evaluate: eval_results.json and predictions.jsonl."})
    do_predict: bool = field(default=False, metadata={"help": "Predict, without labels: predictions.jsonl."})
    demo: bool = field(default=False, metadata={"help": "Show the whole road on clips that this script renders."})
    per_device_eval_batch_size: int = field(default=8, metadata={"help": "Videos per process at a time."})
    ensemble: str = field(
        default="probability",
        metadata={"help": "How the prompts of a class are joined.", "choices": list(ENSEMBLES)},
    )
    top_k: int = field(default=5, metadata={"help": "Labels written for each video."})
    strict: bool = field(default=False, metadata={"help": "Stop at the first video that cannot be read."})
    dataloader_num_workers: int = field(default=0, metadata={"help": "Processes that decode, for each process."})
    mixed_precision: str | None = field(
        default=None, metadata={"help": "Precision of the computation.", "choices": ["no", "fp16", "bf16"]}
    )
    use_cpu: bool = field(default=False, metadata={"help": "Do not use an accelerator."})
    seed: int = field(default=42, metadata={"help": "Seed of everything random."})


def main(argv: list[str] | None = None):
    model_args, data_args, args = parse_args(argv)
    accelerator = Accelerator(
        cpu=args.use_cpu,
        mixed_precision=args.mixed_precision,
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True),
    )
    if not accelerator.is_main_process:
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
    set_seed(args.seed)
    return_freed_memory()
    try:
        if args.demo:
            run_demo(
                make_output_dir(args.output_dir), accelerator, seed=args.seed, num_workers=args.dataloader_num_workers
            )
        else:
            run(model_args, data_args, args, accelerator)
    except (DataError, ModelError, VideoReadError) as error:
        sys.exit(f"run_video_zeroshot.py: {error}")
    finally:
        accelerator.end_training()


def run(model_args: ModelArguments, data_args: DataArguments, args: RunArguments, accelerator: Accelerator):
    output_dir = make_output_dir(args.output_dir)

    # 1. Data: everything that can be wrong with it is found before a model is loaded
    try:
        require_backend(data_args.video_backend)
    except ImportError as error:
        raise DataError(str(error)) from error
    with accelerator.main_process_first():
        train_split = load_train_split(data_args) if args.do_train else None
        eval_split = load_eval_split(data_args, args) if args.do_eval or args.do_predict else None
        descriptions = read_class_descriptions(data_args.class_descriptions) if data_args.class_descriptions else None

    # 2. Model and processor
    processor = load_processor(model_args.model_name_or_path, model_args.tokenizer_name, model_args.num_frames)
    vision_config, text_config = given(model_args, *VISION_OPTIONS), given(model_args, *TEXT_OPTIONS)
    model = load_model(model_args.model_name_or_path, args.do_train, vision_config, text_config)
    check_fit(model, processor)
    if args.do_train:
        prompts = make_prompts(processor, train_split.class_names, data_args, descriptions)
    if eval_split is not None:
        class_names = data_args.candidate_labels or eval_split.class_names
        make_prompts(processor, class_names, data_args, descriptions)

    read = IsolatedReader(
        data_args.video_timeout, backend=data_args.video_backend, allow_partial=data_args.allow_partial
    )

    # 3. Train
    if args.do_train:
        transform = make_transform(processor, train_split.class_names, data_args)
        dataset = VideoDataset(train_split, processor, prompts, args.seed, transform, read=read)
        history = []
        report = train(model, dataset, args, accelerator, args.dataloader_num_workers, args.strict, log=history.append)
        if accelerator.is_main_process:
            model.save_pretrained(output_dir)
            processor.save_pretrained(output_dir)
            counts = {"train_bad_videos": len(report.bad_videos), "train_partial_videos": len(report.partial_videos)}
            write_json(output_dir / "train_results.json", {"log": history, **counts})
            report.write(output_dir, train_split, prefix="train_")
        accelerator.wait_for_everyone()

    # 4. Evaluate or predict
    if eval_split is not None:
        model.to(accelerator.device).eval()
        bank = ClassBank.build(model, processor, class_names, data_args.templates, descriptions)
        dataset = VideoDataset(
            eval_split, processor, num_clips=data_args.num_clips, num_crops=data_args.num_crops, read=read
        )
        predictions = predict(
            model,
            bank,
            dataset,
            accelerator,
            batch_size=args.per_device_eval_batch_size,
            num_workers=args.dataloader_num_workers,
            ensemble=args.ensemble,
            strict=args.strict,
            desc="Evaluating" if args.do_eval else "Predicting",
        )
        if accelerator.is_main_process:
            predictions.write(output_dir, args.top_k)
            if len(predictions.indices) == 0:
                raise DataError(
                    f"None of the {len(eval_split)} videos could be read, see {output_dir / 'bad_videos.jsonl'}; the "
                    f"first: {next(iter(predictions.report.bad_videos.values()))}"
                )
            if args.do_eval:
                results = predictions.metrics()
                write_json(output_dir / "eval_results.json", results)
                print("\n".join(f"{name} = {value}" for name, value in results.items()))
            report = predictions.report
            if report.bad_videos:
                print(f"{len(report.bad_videos)} videos could not be read: {output_dir / 'bad_videos.jsonl'}")
            if report.partial_videos:
                print(f"{len(report.partial_videos)} were read in part: {output_dir / 'partial_videos.jsonl'}")


def parse_args(argv: list[str] | None = None) -> tuple[ModelArguments, DataArguments, RunArguments]:
    parser = HfArgumentParser((ModelArguments, DataArguments, RunArguments), description=__doc__)
    try:
        model_args, data_args, args = parser.parse_args_into_dataclasses(argv)
    except ValueError as error:
        parser.error(str(error))
    check_numbers(parser, data_args, args)
    if args.output_dir is None:
        parser.error("--output_dir is needed: the folder for everything that is written.")
    if args.demo:
        return model_args, data_args, args
    if not (args.do_train or args.do_eval or args.do_predict):
        parser.error("Nothing to do. Give --do_train, --do_eval or --do_predict; or --demo to see them work.")
    if model_args.model_name_or_path is None:
        parser.error("--model_name_or_path is needed: a folder, or a name on the Hub.")
    if data_args.templates and data_args.class_descriptions:
        parser.error("Give --templates or --class_descriptions, not both: a description is used alone.")
    if data_args.videos and not args.do_predict:
        parser.error("--videos are predicted: add --do_predict.")
    if args.do_eval and args.do_predict:
        parser.error("--do_eval writes the predictions too; leave --do_predict out.")
    if args.do_eval and data_args.candidate_labels:
        parser.error("--do_eval uses the classes of the data; --candidate_labels are for --do_predict.")
    own_videos = data_args.validation_dir or data_args.validation_list or data_args.videos
    if data_args.dataset_name and own_videos and not args.do_train:
        parser.error("--dataset_name and videos of one's own are given to evaluate; give one of them.")
    if data_args.label_list and not (data_args.dataset_name or data_args.validation_list or data_args.train_list):
        parser.error("--label_list names the ids of a list or data set; class folders name themselves.")
    return model_args, data_args, args


def check_numbers(parser: HfArgumentParser, data_args: DataArguments, args: RunArguments):
    """That numbers are in the range that makes sense of them."""
    at_least = {"per_device_eval_batch_size": 1, "dataloader_num_workers": 0, "top_k": 1, "seed": 0}
    at_least |= {"per_device_train_batch_size": 1, "num_train_epochs": 1, "max_train_steps": 1, "logging_steps": 1}
    at_least |= {"learning_rate": 0, "prompt_learning_rate": 0, "text_learning_rate": 0, "weight_decay": 0}
    at_least |= {"warmup_ratio": 0, "max_grad_norm": 0}
    for name, least in at_least.items():
        value = getattr(args, name)
        if value is not None and value < least:
            parser.error(f"--{name} must be at least {least}, got {value}.")
    if not 0 < data_args.video_timeout <= TIMEOUT_MAX:
        parser.error(f"--video_timeout must be a number of seconds above 0, got {data_args.video_timeout}.")
    if data_args.num_clips < 1:
        parser.error(f"--num_clips must be at least 1, got {data_args.num_clips}.")
    for name in ("horizontal_flip", "color_jitter", "grayscale"):
        if not 0 <= (value := getattr(data_args, name)) <= 1:
            parser.error(f"--{name} is a part of the clips, from 0 to 1, got {value}.")
    if args.warmup_ratio > 1:
        parser.error(f"--warmup_ratio is a part of the steps, at most 1, got {args.warmup_ratio}.")


def make_output_dir(path: str) -> Path:
    """The folder for results, made before the work, so that none is lost for want of it."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"--output_dir {path} cannot be made ({error.strerror}). Give another.") from error
    return Path(path)


def load_train_split(data_args: DataArguments) -> VideoSplit:
    """The videos to train on, from the one source that is given."""
    source = one_source(data_args, "train_dir", "train_list")
    label_list = data_args.train_label_list or data_args.label_list
    split = load_source(data_args, source, data_args.train_split_name, label_list, data_args.max_train_samples)
    require_labels(split, getattr(data_args, source), "training")
    return split


def load_eval_split(data_args: DataArguments, args: RunArguments) -> VideoSplit:
    """The videos to evaluate or predict, from the one source that is given."""
    source = one_source(data_args, "validation_dir", "validation_list", *(["videos"] if args.do_predict else []))
    split = load_source(data_args, source, data_args.eval_split_name, data_args.label_list, data_args.max_eval_samples)
    if args.do_eval:
        require_labels(split, getattr(data_args, source), "evaluation")
    elif not (data_args.candidate_labels or split.class_names):
        raise DataError(f"{getattr(data_args, source)} names no classes. Give --candidate_labels.")
    return split


def load_source(
    data_args: DataArguments, source: str, split_name: str | None, label_list: str | None, max_samples: int | None
) -> VideoSplit:
    """The videos of an option: a folder, a list, files, or a split of the data set."""
    value = getattr(data_args, source)
    if source == "videos":
        split = load_files(value)
    elif source in ("train_dir", "validation_dir"):
        split = load_folder(value)
    elif source in ("train_list", "validation_list"):
        split = load_list(value, label_list, data_args.video_root)
    else:
        split = load_hub_dataset(
            value,
            data_args.dataset_config_name,
            split_name,
            data_args.video_column_name,
            data_args.label_column_name,
            label_list,
        )
    split = split.select(max_samples)
    if len(split) == 0:
        raise DataError(f"{value} has no videos.")
    return split


def one_source(data_args: DataArguments, *names: str) -> str:
    """The one of the options that is given; a folder or list of its own goes before the data set."""
    sources = [name for name in names if getattr(data_args, name)]
    if not sources and data_args.dataset_name:
        return "dataset_name"
    if len(sources) != 1:
        found = " and ".join(f"--{name}" for name in sources) or "none"
        raise DataError(f"Give one of {', '.join(f'--{name}' for name in ('dataset_name', *names))}; got {found}.")
    return sources[0]


def make_prompts(processor, class_names: list[str], data_args: DataArguments, descriptions: dict | None):
    """The prompts of classes; what is wrong with them is found before the first step."""
    if len(set(class_names)) < len(class_names):
        raise DataError(f"Classes must differ; got {class_names}.")
    try:
        return processor.get_prompts(class_names, data_args.templates, descriptions)
    except ValueError as error:
        raise DataError(str(error)) from error


def make_transform(processor, class_names: list[str], data_args: DataArguments) -> TrainTransform:
    """What makes training pixels; says so where it mirrors classes that a mirror makes wrong."""
    sided = [name for name in class_names if {"left", "right"} & set(label_to_words(name).lower().split())]
    if sided and data_args.horizontal_flip > 0:
        logger.warning(
            f"{len(sided)} classes tell left from right, {sided[0]!r} for one, and training mirrors clips. Give "
            "--horizontal_flip 0."
        )
    return TrainTransform(processor.crop_size, data_args.horizontal_flip, data_args.color_jitter, data_args.grayscale)


def require_labels(split: VideoSplit, source: str, purpose: str):
    if split.class_names is None or min(split.videos["label"]) < 0:
        raise DataError(
            f"{source} has videos without a class, or class ids without names, which {purpose} needs. Use class "
            "folders, or give a list or data set with class ids and its --label_list."
        )


def given(arguments, *names: str) -> dict:
    """Those of the arguments that were set."""
    return {name: value for name in names if (value := getattr(arguments, name)) is not None}


if __name__ == "__main__":
    main()
