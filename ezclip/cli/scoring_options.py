"""The options that say how videos are compared and scored, for commands without a dataclass of options."""

from pipeline_ezclip import SCORE_FUNCTIONS, STEP_SCORES


HELP = {
    "function_to_apply": "softmax: the labels compete; sigmoid: each has a score of its own (default: the model's)",
    "calibration": "calibration.json of `ezclip calibrate`, for scores that are probabilities, and a threshold",
    "min_score": 'smallest score; a video without such a label is "none of these" (default: that of --calibration)',
}


def add_steps(group):
    """Add `--step_score` and `--step_contrast` to a parser or a group of its arguments."""
    group.add_argument(
        "--step_score",
        choices=STEP_SCORES,
        help="how steps in order are compared with the frames (default: aligned, if the texts are marked as steps)",
    )
    group.add_argument(
        "--step_contrast", type=float, help="factor of the aligned minus the reversed steps, added to it (default: 1)"
    )


def add_scoring(group):
    """Add `--function_to_apply`, `--calibration` and `--min_score` to a parser or a group of its arguments."""
    group.add_argument("--function_to_apply", choices=SCORE_FUNCTIONS, help=HELP["function_to_apply"])
    group.add_argument("--calibration", metavar="FILE", help=HELP["calibration"])
    group.add_argument("--min_score", type=float, help=HELP["min_score"])
