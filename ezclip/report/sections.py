"""The sections of a report, with a column for each run."""

import json
from collections.abc import Callable

import numpy as np

from ezclip.evaluation.metrics import NUM_BINS
from ezclip.report import embedding_map, figures
from ezclip.report.confusions import choose_classes, confused_items, matrix_items
from ezclip.report.gallery import gallery_items
from ezclip.report.material import NO_LABELS, Material, number, percent
from ezclip.report.measures import calibrate, headline_accuracies
from ezclip.report.page import Cards, Cell, Section, Table
from ezclip.report.reading import NO_CLASS
from ezclip.utils.digests import digest
from ezclip.utils.settings import DIGESTS
from ezclip.utils.tables import count_of


MAX_LISTED = 500  # bad videos
MAX_PREDICTED = 40

RESULTS_INTRO = (
    "In brackets: 95 % confidence intervals. Wilson's for top-k; for the mean over classes a bootstrap over videos, "
    "which gives none if all predictions are correct or all are wrong. Unreadable videos are not counted."
)
CLASSES_INTRO = "Intervals are Wilson's, 95 %. Few videos give a wide interval: the order of such classes says little."
CALIBRATION_INTRO = (
    "If scores are probabilities of being correct, the points are on the dashed line. Above the line, more are "
    f"correct than the scores predict; below it, fewer. {NUM_BINS} bins of equal width; an empty bin has no point."
)


def make_sections(materials: list[Material]) -> list[Section]:
    """Return all sections, with a column for each run."""
    matrix_classes, groups = choose_classes(materials)
    positions = {index: position for position, index in enumerate(matrix_classes.tolist(), 1)}
    if not any(len(one.run.known) for one in materials):
        return _join(materials, PREDICTION_MAKERS)
    makers = [
        ("Results", RESULTS_INTRO, _results),
        ("Per-class accuracy", CLASSES_INTRO, lambda one: _accuracies(one, positions)),
        ("Confusion matrix", "", lambda one: matrix_items(one, matrix_classes, groups)),
        ("Most confused classes", "", confused_items),
        ("Calibration", CALIBRATION_INTRO, _calibration),
        ("Embedding map", "", _map),
        ("Unreadable videos", "", _bad_videos),
        ("Settings", "", _settings),
    ]
    return _join(materials, makers)


def _join(materials: list[Material], makers: list[tuple[str, str, Callable[[Material], list]]]) -> list[Section]:
    """Return a section for each maker, with a column for each run."""
    several = len(materials) > 1
    return [
        Section(title, intro, [(one.run.name if several else None, make(one)) for one in materials])
        for title, intro, make in makers
    ]


def _results(one: Material) -> list:
    run, cards = one.run, []
    for name, value, interval in headline_accuracies(run, one.seed):
        cards.append((name, percent(value), f"({percent(interval[0])} to {percent(interval[1])})" if interval else ""))
    is_labelled = len(run.known) > 0
    labelled = f"{len(run.known)} with a label" if 0 < len(run.known) < len(run.videos) else ""
    cards.append(("videos", f"{len(run.videos)}", labelled))
    if run.has_all_classes:
        chance = f"chance {percent(1 / run.num_classes)}" if is_labelled else ""
        cards.append(("classes", f"{run.num_classes}", chance))
    else:
        cards.append(("classes in the predictions", f"{run.num_classes}", "total unknown"))
    partial = f"{len(run.partial_videos)} partially read" if run.partial_videos else ""
    cards.append(("unreadable videos", f"{len(run.bad_videos)}", partial))
    return [Cards(cards)] if is_labelled else [Cards(cards), f"{NO_LABELS} It describes the predictions."]


def _accuracies(one: Material, positions: dict[int, int]) -> list:
    tested = [found for found in one.classes if found.num_videos]
    if not tested:
        return _predicted(one)
    mean = float(np.mean([found.accuracy for found in tested]))
    best, worst = (choose(tested, key=lambda found: found.accuracy) for choose in (max, min))
    names = one.run.class_names
    alt = (
        f"Accuracies of {len(tested)} classes with intervals; mean {percent(mean)}, highest {percent(best.accuracy)} "
        f"({names[best.index]}), lowest {percent(worst.accuracy)} ({names[worst.index]}). The table below has all."
    )
    caption = f"Dashed: the mean of the classes, {percent(mean)}. In brackets: number of videos."
    columns = ["no.", "class", "accuracy", "correct", "videos", "predicted", "most confused with", "count", "position"]
    rows = []
    for found in one.classes:
        accuracy = Cell("none", -1)
        if found.num_videos:
            low, high = found.interval
            accuracy = Cell(percent(found.accuracy), found.accuracy, (low, found.accuracy, high))
        rows.append(
            [
                number(found.index),
                one.name_of(found.index),
                accuracy,
                number(found.num_hits),
                number(found.num_videos),
                number(found.num_predicted),
                one.name_of(found.confused_with) if found.num_confused else Cell(""),
                number(found.num_confused),
                number(positions[found.index]) if found.index in positions else Cell(""),
            ]
        )
    return [
        one.draw("class_accuracy", figures.draw_class_accuracies, tested, mean, alt=alt, caption=caption),
        Table(columns, rows, "Predicted: all videos with this prediction. Position: in the confusion matrix.", True),
    ]


def _predicted(one: Material) -> list:
    """Count the predictions of each class if no video has a label."""
    counts = np.bincount(one.run.ranked[:, 0], minlength=len(one.run.class_names))
    classes = [index for index in np.argsort(-counts, kind="stable").tolist() if counts[index]]
    top = classes[:MAX_PREDICTED]
    shown = (top, counts[top].tolist(), len(classes) - len(top))
    alt = f"Number of predictions of each class; the largest, {counts[top[0]]}, is {one.run.class_names[top[0]]}."
    rows = [[number(index), one.name_of(index), number(int(counts[index]))] for index in classes]
    return [
        "The number of videos that are predicted as each class.",
        one.draw("predicted_classes", figures.draw_predicted, *shown, alt=alt),
        Table(["no.", "class", "videos"], rows, sortable=True),
    ]


def _calibration(one: Material) -> list:
    if not len(one.run.known):
        return [NO_LABELS, *_scores(one)]
    found, is_sigmoid = calibrate(one.run), one.run.function_to_apply == "sigmoid"
    if not found.counts.any():
        return ["No label reaches the threshold."]
    unit = "pairs of a video and a label" if is_sigmoid else "videos"
    difference = 100 * (found.confidence - found.accuracy)
    text = (
        f"Expected calibration error {percent(found.error)}. The mean score is {percent(found.confidence)}, the "
        f"accuracy is {percent(found.accuracy)}: the model is {abs(difference):.1f} points "
        f"{'overconfident' if difference > 0 else 'underconfident'}."
    )
    if is_sigmoid:
        most = int((one.run.ranked != NO_CLASS).sum(axis=1).max())
        text = f"{found.counts.sum()} {unit}, up to {most} labels of each video: is it the video's label? {text}"
    alt = f"Reliability diagram: accuracy over score in {int((found.counts > 0).sum())} bins. {text}"
    caption = f"Bars are 95 % intervals (Wilson). Below: number of {unit} in each bin."
    return [text, one.draw("calibration", figures.draw_calibration, found, is_sigmoid, alt=alt, caption=caption)]


def _scores(one: Material) -> list:
    scores = np.clip(one.run.scores[:, 0], 0, 1)
    counts = np.histogram(scores, NUM_BINS, (0, 1))[0]
    alt = f"Histogram of the best score of {len(scores)} videos; mean {scores.mean():.2f}."
    text = f"The mean score of the best class is {percent(scores.mean())}."
    return [text, one.draw("scores", figures.draw_scores, counts, alt=alt)]


def _map(one: Material) -> list:
    run = one.run
    if run.video_embeds is None:
        return ["The map needs the embeddings of the videos. `ezclip run --do_eval --report` saves them."]
    if len(run.videos) < embedding_map.MIN_VIDEOS:
        return [f"The map needs at least {embedding_map.MIN_VIDEOS} videos, got {len(run.videos)}."]
    shown, points = embedding_map.project(run.video_embeds, one.seed)
    classes, is_hit, title = run.ranked[shown, 0], None, "predicted class"
    is_labelled = run.labels[shown] != NO_CLASS
    if is_labelled.any():
        shown, points, predicted = shown[is_labelled], points[is_labelled], classes[is_labelled]
        classes, title = run.labels[shown], "class"
        is_hit = classes == predicted
    num_classes, videos = len(np.unique(classes)), count_of(len(shown))
    of_all = "" if len(shown) == len(run.videos) else f" of {len(run.videos)}"
    caption = (
        f"{videos}{of_all} by t-SNE of their embeddings: neighbours are similar; distances between groups and sizes "
        "of groups have no meaning."
    )
    if num_classes > embedding_map.MAX_MARKED:
        caption += f" Names of the largest {title}es are at their median videos, if there is space."
    alt = f"Map of {videos} of {num_classes} classes."
    if is_hit is not None:
        caption += " A cross is a wrong prediction."
        alt += f" {int((~is_hit).sum())} are marked as wrong."
    return [
        one.draw("embedding_map", embedding_map.draw_map, points, classes, is_hit, title, alt=alt, caption=caption)
    ]


def _bad_videos(one: Material) -> list:
    items = []
    for videos, state in (
        (one.run.bad_videos, "unreadable, not counted above"),
        (one.run.partial_videos, "partially read"),
    ):
        if videos:
            more = f" The first {MAX_LISTED}:" if len(videos) > MAX_LISTED else ""
            rows = [[Cell(video, is_name=True), Cell(reason)] for video, reason in videos[:MAX_LISTED]]
            items.append(Table(["video", "reason"], rows, f"{count_of(len(videos))} {state}.{more}"))
    return items or ["No unreadable video is recorded."]


def _settings(one: Material) -> list:
    rows = [[Cell(name), Cell(value)] for name, value in settings_as_text(one.run.settings).items()]
    if not rows:
        return ["The settings of these predictions were not saved."]
    return [f"Folder: {one.run.folder}.", Table(["setting", "value"], rows)]


# Without any label nothing is known about accuracies.
PREDICTION_MAKERS = [
    ("Results", "", _results),
    ("Videos", "", gallery_items),
    ("Predicted classes", "", _predicted),
    ("Scores", "", _scores),
    ("Unreadable videos", "", _bad_videos),
    ("Settings", "", _settings),
]


def settings_as_text(settings: dict, prefix: str = "") -> dict[str, str]:
    """Return the given settings by full name, nested ones as `outer.inner`."""
    found = {}
    for key, value in settings.items():
        if value is None:
            continue
        name = f"{prefix}{key}".strip()
        if key in DIGESTS and isinstance(value, (list, dict)):
            found[name] = f"{len(value)} digests ({digest(value)})"
        elif isinstance(value, dict) and value:
            found |= settings_as_text(value, f"{name}.")
        elif isinstance(value, str):
            found[name] = value
        elif isinstance(value, list) and value and all(isinstance(item, str) for item in value):
            found[name] = " · ".join(value)
        else:
            found[name] = json.dumps(value, ensure_ascii=False)
    return found
