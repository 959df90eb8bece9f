"""Text of a comparison: `comparison.md`."""

from ezclip.utils.tables import as_markdown_table
from ezclip.utils.timing import machine_as_text


def as_markdown(result: dict) -> str:
    """Return a comparison as Markdown: the systems, how to read their table, and the pairs."""
    header = ["system", "top-1 (%)", "top-5 (%)", "mean per class (%)", "trained (M)", "GMAC a video", "clips/s"]
    rows = [
        [
            name,
            *(_percent(system[accuracy]) for accuracy in ("top1", "top5", "mean_class_top1")),
            f"{system['num_trained_parameters'] / 1e6:.4g}",
            f"{result['num_views'] * system['macs_per_clip'] / 1e9:.4g}",
            _speed(system["clips_per_second"]),
        ]
        for name, system in result["systems"].items()
    ]
    parts = [_describe_videos(result), as_markdown_table(header, rows), _explain(result)]
    if result["pairs"]:
        header = ["first", "second", "top-1 difference (points)", "only first right", "only second right", "p"]
        rows = [
            [
                *pair["systems"],
                f"{100 * pair['top1_difference']:+.1f}",
                str(pair["only_first"]),
                str(pair["only_second"]),
                f"{pair['p_value']:.2g}",
                f"{pair['p_value_holm']:.2g}",
            ]
            for pair in result["pairs"]
        ]
        parts += [
            as_markdown_table([*header, "p (Holm)"], rows),
            "p: McNemar's exact test of top-1, two-sided. p (Holm) is corrected for the number of pairs: use it to "
            "judge several pairs.",
        ]
    return "\n\n".join(parts) + "\n"


def _describe_videos(result: dict) -> str:
    compared, systems = result["num_compared_videos"], result["systems"]
    text = f"{result['num_videos']} videos, {result['num_classes']} classes"
    if result["num_views"] > 1:
        text += f", {result['num_views']} views of each"
    if compared == result["num_videos"]:
        return f"{text}; all systems read all of them."
    if all(system["num_read_videos"] == compared for system in systems.values()):
        return f"{text}; compared on {compared}: no system could read the others."
    read = "; ".join(
        f"{name} {system['num_read_videos']}, {100 * system['eval_results']['eval_top1']:.1f} % right"
        for name, system in systems.items()
    )
    return f"{text}; compared on the {compared} that all systems could read. Read by each system: {read}."


def _explain(result: dict) -> str:
    speed, level = result["speed"], f"{100 * result['confidence_level']:.0f} %"
    text = (
        f"{level} confidence intervals are in brackets: Wilson's for top-1 and top-5, bootstrapped over videos for "
        "the mean per-class top-1. It has no interval if all videos are right or all are wrong. trained: parameters "
        "that are not frozen, in millions. GMAC: multiply-accumulates to embed a video, with attention. "
    )
    if speed["rounds"] == 0:
        return text + "clips/s: not measured."
    return text + (
        f"clips/s: embedding without reading, in batches of {speed['batch_size']} on {speed['device']}, precision "
        f"{speed['mixed_precision']}; median of {speed['rounds']} rounds in which systems take turns, with its ratio "
        f"to the first system. {machine_as_text(result['machine'])}"
    )


def _percent(accuracy: dict) -> str:
    value = f"{100 * accuracy['value']:.1f}"
    if accuracy["interval"] is None:
        return value
    low, high = accuracy["interval"]
    return f"{value} ({100 * low:.1f}-{100 * high:.1f})"


def _speed(speed: dict | None) -> str:
    return f"{speed['median']:.4g} ({speed['against']['ratio']:.2f} ×)" if speed else "-"
