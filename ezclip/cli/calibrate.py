"""Fit scores to a model, so that they are probabilities and can say "none of these".

    ezclip calibrate --model_name_or_path MODEL --validation_dir videos --output_dir calibration
    ezclip calibrate --model_name_or_path MODEL --videos "clips/*.mp4" --candidate_labels "yoga, archery" \\
        --background_texts "an empty room" "a person talking" --output_dir calibration
    ezclip classify holiday/ --labels "surfing, making a cake" --model MODEL --calibration calibration

A few labelled videos suffice: some dozens. Without labels, give --background_texts: several texts that fit none of the
videos, written like labels. --function_to_apply sigmoid (the default) scores each label on its own, softmax lets the
labels compete. The scores hold for about as many labels, and for texts from the same templates. The command prints the
scores before and after on videos that the fit did not see, and writes calibration.json.
"""

from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from ezclip.cli.arguments import GROUPS, DataArguments, ModelArguments, RunArguments, check_values
from ezclip.cli.compare_options import CLASS_TEXT_OPTIONS, RUN_OPTIONS, VIDEO_OPTIONS
from ezclip.cli.experiments import Runner
from ezclip.cli.parser import Parser, fill, group_fields
from ezclip.cli.plan import ClassTexts, describe_plan, in_list_root, load_eval_splits, load_predict_source, one_of
from ezclip.cli.setup import make_reader, running
from ezclip.constants import UNKNOWN_LABEL
from ezclip.data.dataset import VideoDataset
from ezclip.data.labels import split_labels
from ezclip.data.sources import VideoSplit
from ezclip.encoders import DualEncoder
from ezclip.errors import DataError
from ezclip.evaluation.calibration import (
    MIN_VIDEOS,
    choose_threshold,
    cross_validate,
    embed_videos,
    fit_background,
    fit_scoring,
    measure_scores,
    similarities_of,
)
from ezclip.evaluation.protocols import Experiment
from ezclip.utils.messages import get_logger, say
from ezclip.utils.tables import count_of
from pipeline_ezclip import CALIBRATION_NAME, SCORE_FUNCTIONS, Calibration, Scoring


logger = get_logger()

MODEL_OPTIONS = ("model_name_or_path", "preset", "num_frames", "tokenizer_name")
OWN_RUN_OPTIONS = tuple(name for name in RUN_OPTIONS if name != "overwrite_output_dir")
FEW_VIDEOS = 20


def main(argv: list[str] | None = None):
    """Run `ezclip calibrate`; exit with a message if the options, the data or the model cannot be used."""
    names = (*MODEL_OPTIONS, *VIDEO_OPTIONS, "videos", "candidate_labels", *CLASS_TEXT_OPTIONS, "ensemble")
    groups = group_fields(GROUPS, ModelArguments, DataArguments, RunArguments, names=(*names, *OWN_RUN_OPTIONS))
    usage = "ezclip calibrate --model_name_or_path MODEL --validation_dir FOLDER --output_dir FOLDER [OPTIONS]"
    parser = Parser(groups, prog="ezclip calibrate", usage=usage, description=__doc__)
    parser.add_argument("--function_to_apply", choices=SCORE_FUNCTIONS, default="sigmoid", help="what to fit")
    parser.add_argument(
        "--background_texts", nargs="+", help="texts that fit no video; with them, videos need no labels"
    )
    try:
        values = parser.parse_groups(argv)
        model_args, data_args = fill(ModelArguments, values), fill(DataArguments, values)
    except ValueError as error:
        parser.error(str(error))
    args = fill(RunArguments, {**values, "do_eval": True})
    check_values(parser, model_args, data_args, args)
    if model_args.model_name_or_path is None:
        parser.error("--model_name_or_path is needed: a folder, or a name on the Hub.")
    background = values["background_texts"]
    if background is None and (data_args.videos or data_args.candidate_labels):
        parser.error("--videos and --candidate_labels are for --background_texts. Without, give labelled videos.")
    if background is not None and args.function_to_apply != "sigmoid":
        parser.error("--background_texts fit --function_to_apply sigmoid. For softmax, give labelled videos.")
    with running("calibrate", args) as accelerator:
        calibrate(model_args, data_args, args, background and split_labels(background), accelerator)


def calibrate(
    model_args: ModelArguments,
    data_args: DataArguments,
    args: RunArguments,
    background: list[str] | None,
    accelerator: Accelerator,
):
    """Fit, print and write a calibration."""
    if accelerator.num_processes > 1:
        raise DataError("`ezclip calibrate` runs on one process: start it without a launcher.")
    texts = ClassTexts.from_options(in_list_root(data_args))
    if background is None:
        split = one_of(load_eval_splits(in_list_root(data_args)), "--validation_list")
        plan = describe_plan([Experiment("", args.seed, None, {"": split})])
    else:
        split = load_predict_source(data_args)
        plan = describe_plan([], split, data_args.candidate_labels or split.class_names)
    if not isinstance(split, VideoSplit):
        raise DataError("--streaming is for `ezclip run --do_predict`: leave it out.")
    class_names = list(data_args.candidate_labels or split.class_names or [])
    say("\n".join(plan))
    runner = Runner(model_args, args, make_reader(data_args), accelerator)
    if len(class_names) < 2:
        raise DataError(f"Calibration needs at least 2 labels, got {class_names}: one has nothing to differ from.")
    views = (data_args.num_clips, data_args.num_crops)
    try:
        runner.processor.check_views(*views)
    except ValueError as error:
        raise DataError(str(error)) from error
    texts.prompts(runner.processor, [*class_names, *(background or [])])  # raises the errors of labels and templates
    model = runner.load_model().to(accelerator.device).eval()
    # One bank, so that labels and background texts are compared in the same way, by steps or not.
    bank = texts.bank(model, runner.processor, [*class_names, *(background or [])])
    dataset = VideoDataset(split, runner.processor, num_clips=views[0], num_crops=views[1], read=runner.read)
    embeds, labels, report = embed_videos(
        model, bank, dataset, accelerator, args.per_device_eval_batch_size, runner.num_workers(model, split)
    )
    for error in report.bad_videos.values():
        say(f"Left out: {error}")
    if len(embeds) < MIN_VIDEOS:
        raise DataError(f"Calibration needs at least {MIN_VIDEOS} videos that can be read, got {len(embeds)}.")
    found = similarities_of(model, bank, embeds, runner.ensemble)
    similarities, null = found[..., : len(class_names)], found[..., len(class_names) :]
    own = own_scoring(model, str(args.function_to_apply))
    fitted_on = {"num_videos": len(embeds), "num_classes": len(class_names), "ensemble": runner.ensemble}
    before = own.apply(similarities)
    is_labelled = class_names == split.class_names and UNKNOWN_LABEL not in labels
    if background is None:
        start = own if args.function_to_apply == "softmax" else Scoring("sigmoid")
        scoring, after = fit_scoring(similarities, labels, start), cross_validate(similarities, labels, start)
        threshold, kind = choose_threshold(after, labels), "held-out videos"
        fitted_on |= {"method": "labelled videos"}
        if len(embeds) < FEW_VIDEOS:
            logger.warning(f"{count_of(len(embeds))} are few to fit scores to: the numbers below are rough.")
    else:
        scoring, threshold, kind = fit_background(similarities, null), 0.5, "the same videos, without their labels"
        after = scoring.apply(similarities)
        fitted_on |= {"method": "background texts", "num_background_texts": len(background)}
    calibration = Calibration(scoring, threshold, fitted_on, Calibration.fingerprint_weights(model))
    path = Path(str(args.output_dir), CALIBRATION_NAME)
    calibration.save(path)
    bias = f", bias {scoring.logit_bias:.4g}" if scoring.function_to_apply == "sigmoid" else ""
    say(f"{scoring.function_to_apply}: factor {scoring.logit_scale:.4g}{bias}, threshold {threshold:.3f}.")
    say(
        describe_change(before, after, labels, own, scoring.function_to_apply, kind)
        if is_labelled
        else "These labels are not the classes of the videos, so nothing says how good the scores are."
    )
    say(f"Give it as --calibration {path}")


def own_scoring(model: DualEncoder, function_to_apply: str) -> Scoring:
    """Return how the model scores by itself: sigmoid only if it has a bias."""
    try:
        return Scoring.of(model, function_to_apply)
    except ValueError:
        return Scoring.of(model, "softmax")


def describe_change(
    before: torch.Tensor, after: torch.Tensor, labels: np.ndarray, own: Scoring, function_to_apply: str, kind: str
) -> str:
    """Return lines with the quality of the scores of the model by itself and of the fitted ones, on `kind`."""
    old, new = (measure_scores(scores, labels, function_to_apply) for scores in (before, after))
    unit = "the best label" if function_to_apply == "softmax" else "all pairs of a video and a label"
    text = (
        f"On {kind}, over {unit}: negative log likelihood {old['nll']:.4f} before ({own.function_to_apply} of the "
        f"model) and {new['nll']:.4f} after; expected calibration error {100 * old['ece']:.1f} % and "
        f"{100 * new['ece']:.1f} %."
    )
    if own.function_to_apply != function_to_apply:
        text += "\nSoftmax knows that one of these labels fits each video; with sigmoid none or several can fit."
    constant = torch.full_like(after, 1 / after.shape[1])
    nll = measure_scores(constant, labels, function_to_apply)["nll"]
    text += f"\nWithout looking at the videos, the negative log likelihood is {nll:.4f}."
    if new["nll"] >= nll:
        text += (
            " The fitted scores are no better: this model hardly tells these labels apart. Give more videos, other "
            "texts, or another model."
        )
    return text
