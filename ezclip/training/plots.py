"""Plots of a training, if matplotlib is installed."""

from pathlib import Path

from ezclip.utils.files import replacing
from ezclip.utils.messages import get_logger


logger = get_logger(__name__)

# Okabe and Ito's colours for colour-blind readers. Line styles and markers also differ without colours.
LOSSES = {
    "loss": ("loss", {"color": "black", "linewidth": 1.6, "zorder": 3}),
    "loss_video": ("video to text", {"color": "#0072B2", "linestyle": "--", "linewidth": 1.1}),
    "loss_text": ("text to video", {"color": "#D55E00", "linestyle": ":", "linewidth": 1.4}),
    "loss_motion": ("motion", {"color": "#009E73", "linestyle": "-.", "linewidth": 1.1}),
    "loss_distillation": ("distillation", {"color": "#CC79A7", "linestyle": (0, (5, 1)), "linewidth": 1.1}),
    "loss_interpolated": ("at interpolated weights", {"color": "#E69F00", "linestyle": (0, (3, 2)), "linewidth": 1.1}),
}
EVALUATIONS = {
    "eval_top1": ("top-1", {"color": "black", "marker": "o"}),
    "eval_top5": ("top-5", {"color": "#0072B2", "marker": "s", "markerfacecolor": "white"}),
}
RATES = {
    "learning_rate": ("adapters", {"color": "black"}),
    "prompt_learning_rate": ("prompts", {"color": "#0072B2", "linestyle": "--"}),
    "text_learning_rate": ("text", {"color": "#D55E00", "linestyle": ":"}),
}


def plot_losses(log_history: list[dict], path: str | Path) -> bool:
    """
    Draw losses, evaluations and learning rates over steps.

    Args:
        log_history (`list[dict]`):
            Entries as in `transformers.TrainerState`, with `step` and any of `loss`, `loss_video`, `loss_text`,
            `loss_motion`, `loss_distillation`, `loss_interpolated`, `eval_top1`, `eval_top5`, `learning_rate`,
            `prompt_learning_rate`, `text_learning_rate`.
        path (`str` or `Path`):
            The PNG to write.

    Returns:
        `bool`: `False` without matplotlib, or without anything to draw.
    """
    try:
        # pyplot would look for a display.
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        logger.warning("%s needs matplotlib: `pip install matplotlib`.", path)
        return False
    wanted = {"loss": (LOSSES, 3.0), "accuracy": (EVALUATIONS, 1.4), "learning rate": (RATES, 1.0)}
    panels = {}
    for name, (styles, height) in wanted.items():
        curves = {key: [(entry["step"], entry[key]) for entry in log_history if key in entry] for key in styles}
        if any(curves.values()):
            panels[name] = (styles, {key: points for key, points in curves.items() if points}, height)
    if not panels:
        return False

    heights = [height for *_, height in panels.values()]
    figure = Figure(figsize=(7.2, 0.6 + sum(heights) * 1.05), dpi=150, layout="constrained")
    axes = figure.subplots(len(panels), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axis, (name, (styles, curves, _)) in zip(axes, panels.items()):
        for key, points in curves.items():
            label, style = styles[key]
            # A line of one point is invisible.
            marker = {"marker": "."} if len(points) == 1 else {}
            axis.plot(*zip(*points), label=label, **{"linewidth": 1.0, **marker, **style})
        axis.set_ylabel(name)
        axis.grid(color="0.9", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_xlim(left=0)
        if name == "accuracy":
            axis.set_ylim(-0.03, 1.03)
        else:
            axis.set_ylim(bottom=0)
        if len(curves) > 1:
            axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize="small")
    axes[-1].set_xlabel("step")
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.align_ylabels(axes)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")
    return True
