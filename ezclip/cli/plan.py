"""Plan a run: load the videos, classes and texts of its experiments."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from checkpoint_ezclip import list_some
from ezclip.cli.arguments import STEP_OPTIONS, TRANSFORM_OPTIONS, DataArguments, RunArguments, explicit_options
from ezclip.cli.option_files import parse_options
from ezclip.data.labels import check_distinct, check_have_words, read_class_descriptions, read_label_list
from ezclip.data.lists import guess_first_id
from ezclip.data.sources import VideoSplit, find_videos, load_files, load_folder, load_hub_dataset, load_list
from ezclip.data.splits import draw_classes, find_overlap, select_classes
from ezclip.data.streaming import StreamedVideos, stream_hub_dataset
from ezclip.data.transforms import TrainTransform
from ezclip.encoders import DualEncoder
from ezclip.errors import DataError, ModelError
from ezclip.evaluation import protocols
from ezclip.evaluation.protocols import Experiment
from ezclip.utils.digests import digest
from ezclip.utils.files import check_folder_names
from ezclip.utils.messages import get_logger
from ezclip.utils.tables import count_of, first_names
from ezclip.utils.yaml_files import read_yaml
from pipeline_ezclip import ClassBank, StepBank
from processing_ezclip import TEAR_TEMPLATES, TEMPLATES, Description, EZClipProcessor, label_to_words


logger = get_logger()

LIST_OPTIONS = ("train_list", "validation_list", "label_list", "train_label_list", "novel_list", "novel_label_list")
LIST_OPTIONS += ("class_subset", "class_descriptions")
EVAL_DATASET_OPTIONS = ("validation_dir", "validation_list", "label_list", "class_subset", "num_classes", "list_root")
EVAL_DATASET_OPTIONS += ("video_root", "dataset_name", "dataset_config_name", "eval_split_name", "video_column_name")
EVAL_DATASET_OPTIONS += ("label_column_name", "class_descriptions", "templates", "include_label")
EVAL_DATASET_OPTIONS += ("input_conditioning", *STEP_OPTIONS, "max_eval_samples")
# Descriptions are not inherited: they describe other classes.
INHERITED_OPTIONS = ("list_root", "eval_split_name", "video_column_name", "label_column_name", "num_classes")
INHERITED_OPTIONS += ("max_eval_samples", "templates", "include_label", "input_conditioning", *STEP_OPTIONS)
# Words that stand for all templates of a paper
TEMPLATE_SETS = {"published": TEMPLATES, "tear": TEAR_TEMPLATES}


@dataclass
class ClassTexts:
    """Texts that describe classes: arguments of [`ClassBank.build`]."""

    templates: list[str] | None = None
    descriptions: Mapping[str, Description] | None = None
    include_label: bool = False
    input_conditioning: bool = False
    step_score: str | None = None
    step_contrast: float | None = None

    @classmethod
    def from_options(cls, data_args: DataArguments) -> "ClassTexts":
        """Read the texts that the options name."""
        files, templates = data_args.class_descriptions, data_args.templates
        if templates is not None and len(templates) == 1:
            templates = list(TEMPLATE_SETS.get(templates[0], templates))
        return cls(
            templates,
            read_class_descriptions(files) if files else None,
            bool(data_args.include_label),
            data_args.input_conditioning,
            **explicit_options(data_args, *STEP_OPTIONS),
        )

    def prompts(self, processor: EZClipProcessor, class_names: list[str]) -> list[list[list[str]]]:
        """Write the prompts of classes: class, text, template. Raise a [`DataError`] if a class has none."""
        check_have_words(class_names)
        check_distinct(class_names, "Class names must differ")
        try:
            if self.descriptions is None:
                processor.check_labels(class_names)
            in_order = self.step_score is not None or self.step_contrast is not None
            if in_order and self.descriptions is None:
                raise DataError(
                    "step_score and step_contrast need class_descriptions, and these classes have none: "
                    f"{first_names(class_names)}. With --eval_datasets, give them beside class_descriptions."
                )
            processor.get_steps(class_names, self.descriptions, self.include_label, in_order)  # raises errors
            options = {name: value for name, value in vars(self).items() if name not in STEP_OPTIONS}
            return processor.get_prompts(class_names, **options)
        except ValueError as error:
            raise DataError(str(error)) from error

    def bank(self, model: DualEncoder, processor: EZClipProcessor, class_names: list[str]) -> ClassBank:
        """Embed the texts of `class_names`. Raise a [`ModelError`] if the model cannot compare them with videos."""
        try:
            bank = ClassBank.build(model, processor, class_names, **vars(self))
            if isinstance(bank, StepBank):
                bank.check_num_frames(processor.num_frames)
            return bank
        except ValueError as error:
            raise ModelError(str(error)) from error

    def settings(self) -> dict:
        """Return the options of the texts, without the descriptions."""
        options = {name: value for name, value in vars(self).items() if name != "descriptions"}
        # Results from before there were steps have no options of them.
        return {name: value for name, value in options.items() if name not in STEP_OPTIONS or value is not None}

    def describe(self) -> dict:
        """Return what the prompts depend on, besides the classes: the descriptions as a digest for each class."""
        templates = self.templates or list(TEMPLATES if self.descriptions is None else ("{}",))
        descriptions = {name: digest(texts) for name, texts in (self.descriptions or {}).items()}
        return {**self.settings(), "templates": templates, "descriptions": descriptions}


@dataclass
class PlannedExperiment(Experiment):
    """An experiment with all that a runner needs: no data option is read after it."""

    train_texts: ClassTexts  # also of the classes to predict
    test_texts: dict[str, ClassTexts]  # by the name of the test
    views: dict[str, int]  # num_clips and num_crops of a test video
    transform: dict[str, float]  # probabilities of the training transform

    @classmethod
    def complete(
        cls,
        experiment: Experiment,
        data_args: DataArguments,
        train_texts: ClassTexts,
        texts_of_dataset: dict[str, ClassTexts] | None = None,
    ) -> "PlannedExperiment":
        """Add texts, views and transform to the splits of a protocol. A test is named "DATASET" or "DATASET/SPLIT"."""
        by_dataset = texts_of_dataset or {}
        return cls(
            **vars(experiment),
            train_texts=train_texts,
            test_texts={name: by_dataset.get(name.partition("/")[0], train_texts) for name in experiment.tests},
            views=explicit_options(data_args, "num_clips", "num_crops"),
            transform=explicit_options(data_args, *TRANSFORM_OPTIONS),
        )

    def make_transform(self, processor: EZClipProcessor) -> TrainTransform:
        """Return the training transform; warn if it mirrors classes that tell left from right."""
        names = self.train.class_names
        sided = [name for name in names if {"left", "right"} & set(label_to_words(name).lower().split())]
        if sided and self.transform["horizontal_flip"] > 0:
            logger.warning(
                f"{len(sided)} classes tell left from right, for example {sided[0]!r}, and training mirrors clips. "
                "Give --horizontal_flip 0."
            )
        return TrainTransform(processor.crop_size, *self.transform.values())


def plan_experiments(data_args: DataArguments, args: RunArguments) -> list[PlannedExperiment]:
    """
    Read and check everything that a run trains and tests on.

    Returns:
        `list[PlannedExperiment]`: without a protocol one, named "", with a test named "" if there is one.
    """
    data_args = in_list_root(data_args)
    texts, texts_of_dataset = ClassTexts.from_options(data_args), {}
    seeds = range(args.seed, args.seed + (args.num_seeds or 3))
    if args.protocol not in (None, "zero_shot"):
        experiments = make_supervised_experiments(data_args, args, seeds)
    else:
        train = one_of(load_train_splits(data_args), "--train_list") if args.reads_training_videos else None
        if args.protocol is None:
            tests = {"": one_of(load_eval_splits(data_args), "--validation_list")} if args.do_eval else {}
            experiments = [Experiment("", args.seed, train, tests)]
        else:
            datasets = read_eval_datasets(data_args) if data_args.eval_datasets else {"test": data_args}
            texts_of_dataset = {name: ClassTexts.from_options(options) for name, options in datasets.items()}
            splits = {name: load_eval_splits(options, seeds) for name, options in datasets.items()}
            experiments = protocols.zero_shot(train, splits, args.seed)
    for experiment in experiments:
        for name, test in experiment.tests.items() if experiment.train is not None else ():
            if overlap := find_overlap(experiment.train, test):
                logger.warning(
                    f"{len(overlap)} videos are both trained and tested on{f' ({name})' if name else ''}, for example "
                    f"{overlap[0]}."
                )
    return [PlannedExperiment.complete(experiment, data_args, texts, texts_of_dataset) for experiment in experiments]


def describe_plan(
    experiments: Iterable[Experiment],
    source: VideoSplit | StreamedVideos | None = None,
    labels: list[str] | None = None,
) -> list[str]:
    """
    Return a line for each training and test set, and for the videos to predict: how many, and of which classes.

    A set that several experiments share has one line, and class names that a line above has are not repeated. Warn
    about classes without a video, and about a single class.
    """
    titles, splits = [], []
    for experiment in experiments:
        for title, split in {"Train": experiment.train, **experiment.tests}.items():
            if split is not None and not any(split is other for other in splits):
                is_train = split is experiment.train
                name = experiment.name if is_train else "" if title == "test" else title
                titles.append(f"{'Train' if is_train else 'Test'} {name}".rstrip())
                splits.append(split)
    lines, named = [], []
    for title, split in zip(titles, splits):
        names = split.class_names
        lines.append(f"{title}: {count_of(len(split))}, {count_of(len(names), 'class')} ({split.source})")
        lines[-1] += "" if names in named else f": {first_names(names)}"
        named.append(names)
        if empty := split.empty_classes:
            logger.warning(f"{title}: {len(empty)} of the {len(names)} classes have no video: {list_some(empty)}.")
        if len(names) == 1:
            logger.warning(f"{title}: {names[0]!r} is the only class, so there is nothing to tell apart.")
    if source is not None and labels is not None:
        number = source.num_videos if isinstance(source, StreamedVideos) else len(source)
        videos = "videos" if number is None else count_of(number)
        lines.append(f"Predict: {videos} ({source.source}), {count_of(len(labels), 'label')}: {first_names(labels)}")
    return lines


def make_supervised_experiments(data_args: DataArguments, args: RunArguments, seeds: range) -> list[Experiment]:
    """Draw the experiments of the protocols that test on training classes."""
    test = one_of(load_eval_splits(data_args), "--validation_list")
    trains = load_train_splits(data_args) if args.reads_training_videos else []
    if args.protocol == "fully_supervised":
        has_views = data_args.num_clips * data_args.num_crops > 1
        return protocols.fully_supervised(
            one_of(trains, "--train_list"), test, seeds[: args.num_seeds or 1], has_views
        )
    if args.protocol == "base_to_novel" and data_args.novel_list:
        first_id = first_id_of_lists(data_args, data_args.novel_label_list) if data_args.novel_label_list else None
        novel = load_list(data_args.novel_list, data_args.novel_label_list, data_args.video_root, first_id=first_id)
        novel = novel.select(data_args.max_eval_samples)
        require_labels(novel, data_args.novel_list, "evaluation")
        return protocols.base_to_novel(trains, test, novel, seeds[: args.num_seeds or 1])
    if args.protocol == "base_to_novel":
        shots = args.num_shots or [protocols.BASE_TO_NOVEL_SHOTS]
        if not args.reads_training_videos:
            raise DataError(
                "--protocol base_to_novel halves the classes of the training videos: add --do_train, or --do_fit."
            )
        if len(shots) > 1:
            raise DataError(f"--num_shots must be one number for --protocol base_to_novel, got {shots}.")
        return protocols.draw_base_to_novel(one_of(trains, "--train_list"), test, seeds, shots[0])
    # Without --num_shots, the lists are published draws and are used as they are.
    if not args.num_shots:
        return protocols.few_shot(trains, test, seeds[: args.num_seeds or 1])
    return protocols.draw_few_shot(one_of(trains, "--train_list"), args.num_shots, seeds, test)


def in_list_root(data_args: DataArguments) -> DataArguments:
    """Return the options with `--list_root` joined to the paths of lists."""
    if data_args.list_root is None:
        return data_args

    def join(value):
        return [join(item) for item in value] if isinstance(value, list) else str(Path(data_args.list_root, value))

    changes = {name: join(value) for name in LIST_OPTIONS if (value := getattr(data_args, name)) is not None}
    return dataclasses.replace(data_args, **changes)


def read_eval_datasets(data_args: DataArguments) -> dict[str, DataArguments]:
    """Read the options of each data set of `--eval_datasets`. Its `video_root` is relative to the one of the run."""
    content, source = data_args.eval_datasets, "eval_datasets"
    if isinstance(content, str):
        content, source = read_yaml(content), content
    if not isinstance(content, dict) or not all(isinstance(options, dict) for options in content.values()):
        raise DataError(f"{source} must name data sets, each with options such as validation_list and label_list.")
    check_folder_names(list(content), source)
    found = {}
    for name, options in content.items():
        options = parse_options(options, [DataArguments], f"{source}: {name}", EVAL_DATASET_OPTIONS)
        if data_args.video_root is not None:
            options = {**options, "video_root": str(Path(data_args.video_root, options.get("video_root", "")))}
        found[name] = in_list_root(DataArguments(**{**explicit_options(data_args, *INHERITED_OPTIONS), **options}))
    return found


def load_train_splits(data_args: DataArguments) -> list[VideoSplit]:
    """Load the training videos: a split for each list."""
    return load_splits(data_args, "train_dir", "train_list", purpose="training")


def load_eval_splits(data_args: DataArguments, seeds: Iterable[int] = ()) -> list[VideoSplit]:
    """Load the test videos: a split for each list and subset of classes."""
    splits = load_splits(data_args, "validation_dir", "validation_list", purpose="evaluation")
    if data_args.class_subset:
        subsets = [read_label_list(path) for path in data_args.class_subset]
        return [select_classes(split, names) for split in splits for names in subsets]
    if data_args.num_classes is not None:
        return [
            select_classes(split, draw_classes(split.class_names, data_args.num_classes, seed))
            for split in splits
            for seed in seeds
        ]
    return splits


def load_predict_source(data_args: DataArguments) -> VideoSplit | StreamedVideos:
    """Load the videos to predict."""
    data_args, options = in_list_root(data_args), ("validation_dir", "validation_list", "videos")
    if data_args.streaming:
        options = ()
        source = stream_hub_dataset(
            data_args.dataset_name,
            data_args.dataset_config_name,
            data_args.eval_split_name,
            data_args.video_column_name,
            data_args.label_column_name,
            data_args.label_list,
        )
    else:
        source = one_of(load_splits(data_args, *options), "--validation_list")
    if not (data_args.candidate_labels or source.class_names):
        name = name_value(getattr(data_args, one_source(data_args, *options)))
        raise DataError(f"There are no classes in {name}. Give --candidate_labels.")
    return source


def load_splits(data_args: DataArguments, *options: str, purpose: str | None = None) -> list[VideoSplit]:
    """
    Load the videos of one option, or of the data set: a folder, files, a split of the data set, or several lists.

    Raise a [`DataError`] if there is no video, or if a video has no class and the purpose needs it.
    """
    option = one_source(data_args, *options)
    value, label_list = getattr(data_args, option), data_args.label_list
    split_name, max_samples = data_args.eval_split_name, data_args.max_eval_samples
    if purpose == "training":
        label_list = data_args.train_label_list or label_list
        split_name, max_samples = data_args.train_split_name, data_args.max_train_samples
    if option == "videos":
        try:
            splits = [load_files(find_videos(value))]
        except DataError as error:
            raise DataError(f"--videos: {error}") from error
    elif option in ("train_dir", "validation_dir"):
        splits = [load_folder(value, "train" if option == "train_dir" else "test")]
    elif option in ("train_list", "validation_list"):
        part = "train" if option == "train_list" else "test"
        first_id = first_id_of_lists(data_args, label_list) if label_list is not None else None
        splits = [load_list(path, label_list, data_args.video_root, part, first_id) for path in value]
    else:
        columns = (data_args.video_column_name, data_args.label_column_name)
        splits = [load_hub_dataset(value, data_args.dataset_config_name, split_name, *columns, label_list)]
    splits = [split.select(max_samples) for split in splits]
    if any(len(split) == 0 for split in splits):
        raise DataError(f"{name_value(value)} has no videos.")
    for split in splits if purpose is not None else ():
        require_labels(split, name_value(value), purpose)
    return splits


def first_id_of_lists(data_args: DataArguments, label_list: str) -> int:
    """Guess once for all lists of a run that share a label list whether their ids count from 0 or 1."""
    train_label_list = data_args.train_label_list or data_args.label_list
    lists = [
        *((path, "train") for path in data_args.train_list or () if train_label_list == label_list),
        *((path, "test") for path in data_args.validation_list or () if data_args.label_list == label_list),
        *([(data_args.novel_list, "test")] if data_args.novel_label_list == label_list else []),
    ]
    return guess_first_id(lists, label_list)


def name_value(value: str | list[str]) -> str:
    """Return the value of an option as text."""
    return list_some(value) if isinstance(value, list) else value


def one_of(splits: list[VideoSplit], option: str) -> VideoSplit:
    """Return the only split, or raise if there are several."""
    if len(splits) > 1:
        raise DataError(f"{option} and --class_subset must give one split here, got {len(splits)}.")
    return splits[0]


def one_source(data_args: DataArguments, *names: str) -> str:
    """Return the option that names the videos. A folder or list precedes the data set."""
    sources = [name for name in names if getattr(data_args, name)]
    if not sources and data_args.dataset_name:
        return "dataset_name"
    if len(sources) != 1:
        found = " and ".join(f"--{name}" for name in sources) or "none"
        raise DataError(f"Give one of {', '.join(f'--{name}' for name in ('dataset_name', *names))}; got {found}.")
    return sources[0]


def require_labels(split: VideoSplit, source: str, purpose: str):
    """Raise if a video has no class."""
    if split.class_names is None or min(split.videos["label"]) < 0:
        raise DataError(
            f"{source} has videos without a class, or class ids without names, but {purpose} needs them. Use class "
            "folders, or give a list or data set with class ids and its --label_list."
        )
