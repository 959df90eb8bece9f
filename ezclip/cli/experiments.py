"""Run planned experiments: train, test and write results."""

import contextlib
import gc
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, set_seed

from ezclip.cli.arguments import (
    TEXT_CONFIG_FIELDS,
    TRANSFORM_OPTIONS,
    VISION_CONFIG_FIELDS,
    ModelArguments,
    RunArguments,
    explicit_options,
)
from ezclip.cli.plan import PlannedExperiment
from ezclip.constants import EVAL_RESULTS_NAME, EXPERIMENT_RESULTS_NAME, FIT_RESULTS_NAME, PREDICTIONS_NAME
from ezclip.data.dataset import VideoDataset
from ezclip.data.isolated_reader import IsolatedReader
from ezclip.data.machine_plan import MachinePlan, plan_machine
from ezclip.data.sources import VideoSplit
from ezclip.data.splits import save_split
from ezclip.data.streaming import StreamedVideos
from ezclip.encoders import DualEncoder
from ezclip.errors import DataError, ModelError
from ezclip.evaluation.answers import show_predictions, show_problems
from ezclip.evaluation.identity import describe_model, describe_result
from ezclip.evaluation.prediction_files import PredictionCounts
from ezclip.evaluation.predictions import Predictions, predict
from ezclip.evaluation.protocols import SINGLE_VIEW
from ezclip.evaluation.sharded_prediction import first_videos, predict_shards
from ezclip.few_shot import Shots, embed_shots
from ezclip.systems.loading import check_fit, load_encoder, load_processor, tell_kernels
from ezclip.training.checkpoints import EXACTNESS_SETTINGS, last_checkpoint, raise_on_all_ranks
from ezclip.training.loop import check_training, train
from ezclip.utils.digests import digest
from ezclip.utils.earlier_results import EarlierResults
from ezclip.utils.files import as_json_line, read_json, write_json
from ezclip.utils.messages import get_logger, say
from ezclip.utils.ray_stages import RayStages
from ezclip.utils.settings import check_unchanged
from modeling_ezclip import EZClipModel
from pipeline_ezclip import Calibration, Scoring, choose_scoring, say_scope
from processing_ezclip import distinct_texts


logger = get_logger()


@dataclass
class Runner:
    """Train and test models."""

    model_args: ModelArguments
    args: RunArguments
    read: IsolatedReader
    accelerator: Accelerator

    model_description = None  # of the loaded model, see `describe_model`
    machine_plan: MachinePlan | None = field(default=None, init=False)  # measured with the first model

    def __post_init__(self):
        names = (self.model_args.model_name_or_path, self.model_args.tokenizer_name, self.model_args.num_frames)
        # Training turns plain CLIP into EZ-CLIP unless a preset says otherwise.
        preset = self.model_args.preset or ("ezclip" if self.args.do_train else None)
        self.processor = load_processor(*names, preset=preset)

    def num_workers(self, model: DualEncoder, source: VideoSplit | StreamedVideos) -> int:
        """Return the number of decoding processes. -1 measures the machine, once for all experiments."""
        if self.args.dataloader_num_workers >= 0:
            return self.args.dataloader_num_workers
        if self.machine_plan is None:
            model.to(self.accelerator.device)
            with self.accelerator.autocast():
                self.machine_plan = plan_machine(model, self.processor, first_videos(source), self.read)
            self.accelerator.print(self.machine_plan)
            torch.set_num_threads(self.machine_plan.num_threads)
        return self.machine_plan.num_workers

    def load_model(self) -> DualEncoder:
        """Load the model that every experiment starts from. New weights follow the seed that was set."""
        model = load_encoder(
            self.model_args.model_name_or_path,
            self.args.do_train,
            vision_config=explicit_options(self.model_args, *VISION_CONFIG_FIELDS),
            text_config=explicit_options(self.model_args, *TEXT_CONFIG_FIELDS),
            preset=self.model_args.preset,
            engine=self.model_args.engine,
            **explicit_options(self.model_args, "temporal_head"),
        )
        check_fit(model, self.processor)
        autocast = torch.bfloat16 if self.accelerator.mixed_precision == "bf16" else None
        tell_kernels(model, self.accelerator.device, autocast)
        new_weights = getattr(model, "newly_initialized", ())
        self.model_description = self.model_description or describe_model(model, new_weights)
        if self.args.torch_compile:
            if not isinstance(model, EZClipModel):
                raise ModelError(
                    f"--torch_compile compiles models of ezclip, got {type(model).__name__}. Leave it out."
                )
            model.vision_model.compile(dynamic=False)
        return model

    def load_calibration(self) -> Calibration | None:
        """
        Return the calibration of the options, if any.

        Raises:
            [`DataError`]: if it cannot be read.
        """
        try:
            return None if self.args.calibration is None else Calibration.from_file(self.args.calibration)
        except ValueError as error:
            raise DataError(f"--calibration: {error}") from error

    def choose_scoring(self, model: DualEncoder) -> Scoring:
        """
        Return how a model's similarities become scores.

        Raises:
            [`ModelError`]: if the calibration is of another model, or the function needs one.
        """
        calibration = self.load_calibration()
        try:
            if calibration is not None:
                calibration.check_model(model)
            return choose_scoring(model, self.args.function_to_apply, calibration)
        except ValueError as error:
            raise ModelError(str(error)) from error

    def scoring_settings(self) -> dict:
        """Return the options of scores that were given."""
        calibration = self.load_calibration()
        own = explicit_options(self.args, "function_to_apply")
        return own if calibration is None else {**own, "calibration": calibration.as_dict()}

    @property
    def ensemble(self) -> str:
        """Return how the prompts of a class are joined. Several texts of a class always share one embedding."""
        return self.args.ensemble or "probability"

    def options_of(self, experiment: PlannedExperiment) -> RunArguments:
        """Return the options of an experiment. Its training batch is not larger than its videos."""
        if experiment.train is None:
            return self.args
        size = len(experiment.train) // self.accelerator.num_processes
        size = min(self.args.per_device_train_batch_size, size)
        return replace(self.args, per_device_train_batch_size=size)

    def check(self, experiments: list[PlannedExperiment], predicted: list[str] | None = None):
        """
        Check all that needs no model: trainings, views, and the texts of all classes, also of those to predict.

        Warn about a batch that is larger than the training set, and once about texts that are too long. Raise a
        [`DataError`] if an experiment cannot be trained, a class has no text, or the texts or views cannot be made.
        """
        tested, trained = [], []
        for experiment in experiments:
            try:
                self.processor.check_views(**experiment.views)
            except ValueError as error:
                raise DataError(str(error)) from error
            if predicted is not None:
                tested.append((experiment.train_texts, predicted))
            tested += [(experiment.test_texts[name], split.class_names) for name, split in experiment.tests.items()]
            if experiment.train is not None and self.args.do_fit:
                tested.append((experiment.train_texts, experiment.train.class_names))
            elif experiment.train is not None:
                options = self.options_of(experiment)
                check_training(options, len(experiment.train), self.accelerator, bool(experiment.tests))
                given, size = (each.per_device_train_batch_size for each in (self.args, options))
                if size < given:
                    logger.warning(
                        f"{experiment.name and f'{experiment.name}: '}--per_device_train_batch_size {given} is larger "
                        f"than the {size} training videos of each process: using {size}."
                    )
                trained.append((experiment.train_texts, experiment.train.class_names))
        used = tested + trained
        for number, (texts, class_names) in enumerate(used):
            if (texts, class_names) in used[:number]:
                continue
            prompts = texts.prompts(self.processor, class_names)
            by_probability = number < len(tested) and self.args.ensemble == "probability"
            if by_probability and any(len(rows) > 1 for rows in prompts):
                raise DataError(
                    "--ensemble probability needs one text for each class, and some classes have several. Leave it "
                    "out, or give --ensemble embedding."
                )
            # This warns about texts that are cut. Neither training nor the tests repeat the warning.
            self.processor(text=distinct_texts(prompts), padding=False)

    def settings(self, experiment: PlannedExperiment) -> dict:
        """Return what the results of an experiment depend on, equal on all processes, once a model is loaded."""
        texts = {"train": experiment.train_texts, **experiment.test_texts}
        splits = {"train": experiment.train, **experiment.tests}
        settings = describe_result(
            self.model_description,
            self.processor,
            self.read,
            {name or "the test": split for name, split in splits.items()},
            **self.learning_settings(experiment),
            seed=experiment.seed,
            **experiment.views,
            **{f"texts of {name or 'the test'}": own.describe() for name, own in texts.items()},
            ensemble=self.ensemble,
            **self.scoring_settings(),
            mixed_precision=self.accelerator.mixed_precision,
            num_processes=self.accelerator.num_processes,
        )
        return broadcast_object_list([settings])[0]  # times of files may differ between nodes

    def learning_settings(self, experiment: PlannedExperiment) -> dict:
        """Return the options that determine what an experiment learns from its training videos."""
        if self.args.do_fit:
            return {"do_fit": True, "clip_weight": self.args.clip_weight}
        return {**self.options_of(experiment).settings(), **experiment.transform}

    def test_settings(self, experiment: PlannedExperiment, name: str, settings: dict, scoring: Scoring) -> dict:
        """Return the settings of a test for a reader of its predictions."""
        settings = {
            key: digest(value) if key.startswith("texts of") else value
            for key, value in settings.items()
            if key != "model_config"
        }
        if experiment.train is None:
            of_training = {*self.args.settings(), *TRANSFORM_OPTIONS, "texts of train"}
            settings = {key: value for key, value in settings.items() if key not in of_training}
        return settings | {
            "model_name_or_path": self.model_args.model_name_or_path,
            "num_frames": self.processor.num_frames,
            **experiment.test_texts[name].settings(),
            "top_k": self.args.top_k,
            "scoring": asdict(scoring),
        }

    def run(self, experiment: PlannedExperiment) -> tuple[dict[str, dict], DualEncoder | None]:
        """
        Run one experiment, or read its results if an interrupted run finished it.

        Returns:
            `tuple`: the metrics of each test, and the model (`None` if the experiment was finished before).
        """
        folder = Path(self.args.output_dir, experiment.name)
        is_protocol, overwrite = self.args.protocol is not None, self.args.overwrite_output_dir
        is_finished = is_protocol and not overwrite and (folder / EXPERIMENT_RESULTS_NAME).is_file()
        if is_finished and self.args.resume_from_checkpoint != "latest":
            raise DataError(
                f"{folder} holds the results of an earlier run. Give --resume_from_checkpoint latest to resume it, "
                "--overwrite_output_dir to start anew, or another --output_dir."
            )
        set_seed(experiment.seed)
        model = self.load_model()
        self.choose_scoring(model)  # before any work
        settings = self.settings(experiment)
        if is_finished:
            saved = read_results(folder / EXPERIMENT_RESULTS_NAME)
            check_unchanged(folder, saved["settings"], settings, EXACTNESS_SETTINGS)
            logger.warning(f"{folder} is finished; it is not run again.")
            return saved["results"], None
        folder.mkdir(parents=True, exist_ok=True)
        if experiment.name:
            self.accelerator.print(f"{experiment.name}:")
        base = getattr(model.config, "base_model_name_or_path", None)
        if self.args.save_trained_only and base is not None and Path(base).resolve() == folder.resolve():
            raise DataError(
                f"--save_trained_only to {folder} would replace the base model that is there. Give another folder."
            )
        folders = [folder, *folder.parents[: len(Path(experiment.name).parts)]]  # up to the output folder
        learns = self.args.reads_training_videos
        earlier = EarlierResults(folders, overwrite, learns, self.accelerator.is_main_process)
        with _trackers(self.accelerator, folder, self.options_of(experiment)):
            num_steps, shots = None, None
            if self.args.do_fit:
                shots = self.fit(model, experiment, folder, earlier)
            elif experiment.train is not None:
                num_steps = self.train(model, experiment, folder, settings, earlier)
            results = {}
            for name in experiment.tests:
                predictions = self.evaluate(model, experiment, name, shots)
                results[name] = predictions.metrics()
                with raise_on_all_ranks(self.accelerator, folder / name):
                    earlier.remove()
                    if self.accelerator.is_main_process:
                        written = self.test_settings(experiment, name, settings, self.choose_scoring(model))
                        predictions.write(folder / name, self.args.top_k, written)
                        write_json(folder / name / EVAL_RESULTS_NAME, results[name])
                self.print_summary(predictions, folder / name)
                prefix = f"{name}/" if name else ""
                values = {f"{prefix}{key}": value for key, value in results[name].items()}
                self.accelerator.log(values, step=num_steps)
        with raise_on_all_ranks(self.accelerator, folder):
            if is_protocol and self.accelerator.is_main_process:
                save_draws(experiment, folder)
                content = {"settings": settings, "results": results}
                write_json(folder / EXPERIMENT_RESULTS_NAME, {**content, "digest": digest(content)})
        gc.collect()  # frees the optimizer before the next experiment makes its own
        return results, model

    def training_settings(self, settings: dict, first_test: str | None) -> dict:
        """Return the settings that determine the training: those of its evaluations only if there are any."""
        own = {name: value for name, value in settings.items() if not name.startswith(("videos of", "texts of"))}
        kept = ["train", first_test or "the test"] if self.args.eval_steps is not None else ["train"]
        if self.args.eval_steps is None:
            for name in ("ensemble", "num_clips", "num_crops"):
                del own[name]
        shared = [f"{kind} of {name}" for kind in ("videos", "texts") for name in kept]
        return {**own, **{name: settings[name] for name in shared}}

    def train(
        self,
        model: DualEncoder,
        experiment: PlannedExperiment,
        folder: Path,
        settings: dict,
        earlier: EarlierResults,
    ) -> int:
        """Train and save the model of an experiment. Return the number of steps."""
        assert isinstance(model, EZClipModel)  # `load_encoder` refuses to load others for training
        split, args = experiment.train, self.options_of(experiment)
        assert split is not None and split.class_names is not None  # the plan checks it
        dataset = VideoDataset(
            split,
            self.processor,
            experiment.train_texts.prompts(self.processor, split.class_names),
            experiment.seed,
            experiment.make_transform(self.processor),
            read=self.read,
        )
        first_test = next(iter(experiment.tests), None)

        def evaluate() -> dict:
            return self.evaluate(model, experiment, first_test).metrics()

        # From here on, each process draws its own dropout masks.
        set_seed(experiment.seed, device_specific=True)
        result = train(
            model,
            dataset,
            args,
            self.accelerator,
            self.num_workers(model, split),
            args.strict,
            folder,
            resume_from=args.resume_from_checkpoint,
            settings=self.training_settings(settings, first_test),
            evaluate=None if first_test is None else evaluate,
            earlier=earlier,
        )
        report = result.report
        counts = {"train_bad_videos": len(report.bad_videos), "train_partial_videos": len(report.partial_videos)}
        with raise_on_all_ranks(self.accelerator, folder):
            earlier.remove()
            if self.accelerator.is_main_process:
                model.save_pretrained(folder, trained_only=args.save_trained_only)
                self.processor.save_pretrained(folder)
                recipe = {**args.settings(), "seed": experiment.seed}
                recipe["mixed_precision"] = self.accelerator.mixed_precision
                result.log.write(folder, **counts, recipe=recipe)
                report.write(folder, split, prefix="train_")
        return result.log.state.global_step

    def fit(self, model: DualEncoder, experiment: PlannedExperiment, folder: Path, earlier: EarlierResults) -> Shots:
        """Embed the training videos, and save the class bank that they are added to."""
        model.to(self.accelerator.device)
        split = experiment.train
        assert split is not None and split.class_names is not None  # the plan checks it
        bank = experiment.train_texts.bank(model, self.processor, split.class_names)
        num_clips, num_crops = (experiment.views[name] for name in ("num_clips", "num_crops"))
        try:
            shots = embed_shots(
                model,
                bank,
                VideoDataset(split, self.processor, num_clips=num_clips, num_crops=num_crops, read=self.read),
                self.accelerator,
                self.args.per_device_eval_batch_size,
                self.num_workers(model, split),
                self.args.strict,
                self.args.clip_weight,
            )
            bank = shots.fit(bank)
        except ValueError as error:
            raise DataError(f"--do_fit: {error}") from error
        counts = {"train_samples": len(shots.labels), "train_bad_videos": len(shots.report.bad_videos)}
        with raise_on_all_ranks(self.accelerator, folder):
            earlier.remove()
            if self.accelerator.is_main_process:
                bank.save_pretrained(folder)
                write_json(folder / FIT_RESULTS_NAME, {"clip_weight": shots.clip_weight, **counts})
                shots.report.write(folder, split, prefix="train_")
        self.accelerator.print(f"clip_weight = {shots.clip_weight:g}: weight of each training video beside its text")
        return shots

    def evaluate(
        self,
        model: DualEncoder,
        experiment: PlannedExperiment,
        name: str,
        shots: Shots | None = None,
    ) -> Predictions:
        """Predict the videos of a test, with the views of the experiment, by texts and any labelled videos."""
        model.to(self.accelerator.device).eval()
        split = experiment.tests[name]
        bank = experiment.test_texts[name].bank(model, self.processor, split.class_names)
        if shots is not None:
            bank = shots.fit(bank)
        views = {} if name == SINGLE_VIEW else experiment.views
        dataset = VideoDataset(split, self.processor, read=self.read, **views)
        return predict(
            model,
            bank,
            dataset,
            self.accelerator,
            batch_size=self.args.per_device_eval_batch_size,
            num_workers=self.num_workers(model, split),
            ensemble=self.ensemble,
            strict=self.args.strict,
            desc=f"Evaluating {name}".strip(),
            keep_embeds=self.args.report,
            pad_batches=self.args.torch_compile,
            scoring=self.choose_scoring(model),
        )

    def predict(
        self,
        model: DualEncoder,
        experiment: PlannedExperiment,
        source: VideoSplit | StreamedVideos,
        class_names: list[str],
    ):
        """Predict the videos of a source with the texts of an experiment, and print the answers."""
        model.to(self.accelerator.device).eval()
        texts, output_dir = experiment.train_texts, Path(self.args.output_dir)
        say_scope(model)
        scoring, settings, min_score = self.choose_scoring(model), self.scoring_settings(), self.args.min_score
        if min_score is None:
            min_score = settings.get("calibration", {}).get("threshold", 0.0)
        if min_score > 0:
            settings["min_score"] = min_score
        uses_ray = self.args.executor == "ray"
        with RayStages(use_gpus=not self.args.use_cpu) if uses_ray else contextlib.nullcontext() as cluster:
            counts = predict_shards(
                model,
                texts.bank(model, self.processor, class_names),
                source,
                self.processor,
                output_dir,
                {**texts.describe(), **settings},
                self.accelerator,
                batch_size=self.args.per_device_eval_batch_size,
                num_workers=self.num_workers(model, source) if cluster is None else 0,
                ensemble=self.ensemble,
                top_k=self.args.top_k,
                min_score=min_score,
                scoring=scoring,
                strict=self.args.strict,
                overwrite=self.args.overwrite_output_dir,
                pad_batches=self.args.torch_compile,
                **experiment.views,
                read=self.read,
                cluster=cluster,
            )
        if self.accelerator.is_main_process:
            say(show_predictions(output_dir, counts))
            say(f"\nAll answers ({counts.num_videos - counts.num_bad_videos}): {output_dir / PREDICTIONS_NAME}")

    def print_summary(self, predictions: Predictions, folder: Path):
        """Print the results of a test. Raise a [`DataError`] if no video could be read."""
        report = predictions.report
        if len(predictions.indices) == 0:
            raise DataError(
                f"None of the {len(predictions.split)} videos could be read, see {folder / 'bad_videos.jsonl'}; the "
                f"first: {next(iter(report.bad_videos.values()))}"
            )
        self.accelerator.print("\n".join(f"{name} = {value}" for name, value in predictions.metrics().items()))
        if self.accelerator.is_main_process:
            counts = PredictionCounts(len(predictions.split), len(report.bad_videos), len(report.partial_videos))
            for line in show_problems(folder, counts):
                say(line)


def save_draws(experiment: PlannedExperiment, folder: Path):
    """Write the videos of an experiment: paths as a list with a label list, to give again; others as JSON lines."""
    for name, split in {"train": experiment.train, **experiment.tests}.items():
        if split is None:
            continue
        place = folder / "splits" / name
        place.mkdir(parents=True, exist_ok=True)
        if isinstance(split.videos[0]["video"], str):
            save_split(split, place / "list.txt", place / "labels.csv")
            continue
        with open(place / "videos.jsonl", "w", encoding="utf-8") as file:
            for video, label in zip(split.videos["name"], split.videos["label"]):
                file.write(as_json_line({"video": video, "label": split.class_names[label]}))


def read_results(path: Path) -> dict:
    """
    Read the settings and results of a finished experiment.

    Raises:
        [`DataError`]: if the file is damaged.
    """
    remedy = "Remove it to run its experiment again."
    content = read_json(path, remedy)
    if content.pop("digest", None) != digest(content):
        raise DataError(f"{path} is damaged: it is not what was written. {remedy}")
    return content


@contextlib.contextmanager
def _trackers(accelerator: Accelerator, folder: Path, args: RunArguments):
    """Start and finish the trackers of one experiment."""
    accelerator.project_configuration.logging_dir = str(folder)
    # A resumed training logs the steps after its checkpoint again, one that starts anew logs all.
    last = last_checkpoint(folder) if args.resume_from_checkpoint == "latest" else None
    step = int(last.name.removeprefix("checkpoint-")) + 1 if last else 0
    purge = {"tensorboard": {"purge_step": step}} if last or args.overwrite_output_dir else {}
    accelerator.init_trackers("ezclip", config=args.settings(), init_kwargs=purge)
    try:
        yield
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()
        accelerator.trackers = []
