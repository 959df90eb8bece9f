"""The sections of a report, of one run or with a column for each of several."""

import json

import numpy as np

from ezclip.report import embedding_map, figures
from ezclip.report.confusions import choose_order, confused_items, matrix_items
from ezclip.report.material import NO_LABELS, Material, count_of, number, percent
from ezclip.report.measures import NUM_BINS, ClassAccuracy, calibrate, headline_figures
from ezclip.report.page import Cards, Cell, Section, Table, Text
from ezclip.report.reading import NO_CLASS, EvaluationRun


MOST_LISTED = 500  # bad videos
NUM_PREDICTED = 40


def make_sections(materials: list[Material]) -> list[Section]:
    """Return all sections, with a column for each run."""
    matrix_classes, order = choose_order(materials)
    places = {int(index): place for place, index in enumerate(matrix_classes[order.order], 1)}
    makers = [
        ("Results", FIGURES_INTRO, _figures),
        ("Accuracy of the classes", CLASSES_INTRO, lambda one: _accuracies(one, places)),
        ("Confusion matrix", "", lambda one: matrix_items(one, matrix_classes, order)),
        ("Most confused classes", "", confused_items),
        ("Calibration", CALIBRATION_INTRO, _calibration),
        ("Map of the videos", "", _map),
        ("Videos that were not read", "", _bad_videos),
        ("Settings", "", _settings),
    ]
    several = len(materials) > 1
    return [
        Section(title, intro, [(one.run.name if several else None, make(one)) for one in materials])
        for title, intro, make in makers
    ]


FIGURES_INTRO = (
    "In brackets are 95 % confidence intervals: Wilson's; for the mean over classes bootstrapped over videos, and "
    "none where all videos are right or none is. Videos that could not be read are not counted."
)


def _figures(one: Material) -> list:
    run = one.run
    cards = []
    for figure in headline_figures(run, one.seed):
        interval = figure.interval and f"({percent(figure.interval[0])} to {percent(figure.interval[1])})"
        cards.append((figure.name, percent(figure.value), interval or ""))
    counted = "" if len(run.known) == len(run.videos) else f"{len(run.known)} with a label"
    cards.append(("videos", f"{len(run.videos)}", counted))
    if run.has_all_classes:
        chance = f"chance {percent(1 / run.num_classes)}" if len(run.known) else ""
        cards.append(("classes to choose from", f"{run.num_classes}", chance))
    else:
        cards.append(("classes named", f"{run.num_classes}", "how many there were is not known"))
    cards.append(("videos not read", f"{len(run.bad_videos)}", _partial(run)))
    items = [Cards(cards)]
    if not len(run.known):
        items.append(Text(f"{NO_LABELS} Below is what the predictions themselves show."))
    return items


def _partial(run: EvaluationRun) -> str:
    return f"{len(run.partial_videos)} read in part" if run.partial_videos else ""


CLASSES_INTRO = (
    "Intervals are Wilson's, of 95 %. A class with few videos has a wide one: the order of such classes says little."
)


def _accuracies(one: Material, places: dict[int, int]) -> list:
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
    caption = f"Dashed: the mean of the classes, {percent(mean)}. After a name its number of videos."
    picture = one.shown("class_accuracy", figures.draw_class_accuracies(one.lettering, tested, mean), alt, caption)
    columns = [
        "no.",
        "class",
        "accuracy",
        "right",
        "videos",
        "taken for it",
        "mostly mistaken for",
        "count",
        "place in the matrix",
    ]
    rows = []
    for found in one.classes:
        has_videos = found.accuracy is not None
        accuracy, bar = ("none", None) if not has_videos else (percent(found.accuracy), _bar(found))
        rows.append(
            [
                number(found.index),
                one.name_of(found.index),
                Cell(accuracy, found.accuracy if has_videos else -1, bar),
                number(found.num_hits),
                number(found.num_videos),
                number(found.num_predicted),
                Cell("") if found.mistaken_for is None else one.name_of(found.mistaken_for),
                number(found.num_mistaken),
                number(places[found.index]) if found.index in places else Cell(""),
            ]
        )
    return [picture, Table(columns, rows, sortable=True)]


def _bar(found: ClassAccuracy) -> tuple[float, float, float]:
    return found.interval[0], found.accuracy, found.interval[1]


def _predicted(one: Material) -> list:
    """Return the section on predicted classes if no video has a label."""
    counts = np.bincount(one.run.ranked[:, 0], minlength=len(one.run.class_names))
    classes = [index for index in np.argsort(-counts, kind="stable").tolist() if counts[index]]
    top = classes[:NUM_PREDICTED]
    content = figures.draw_predicted(one.lettering, top, counts[top].tolist(), len(classes) - len(top))
    alt = f"Number of videos taken for each class; most, {counts[top[0]]}, for {one.run.class_names[top[0]]}."
    rows = [[number(index), one.name_of(index), number(int(counts[index]))] for index in classes]
    return [
        Text("How many videos are taken for each class, rightly or wrongly."),
        one.shown("predicted_classes", content, alt, ""),
        Table(["no.", "class", "videos"], rows, sortable=True),
    ]


CALIBRATION_INTRO = (
    "Where the score of the best class can be taken for the probability that it is right, points lie on the dashed "
    f"line; above it more videos are right than the scores say, below fewer. {NUM_BINS} bins of equal width; an "
    "empty one has no point."
)


def _calibration(one: Material) -> list:
    scores = np.clip(one.run.scores[:, 0], 0, 1)
    if not len(one.run.known):
        counts = np.histogram(scores, NUM_BINS, (0, 1))[0]
        alt = f"Histogram of the best score of {len(scores)} videos; mean {scores.mean():.2f}."
        picture = one.shown("scores", figures.draw_scores(one.lettering, counts), alt, "")
        return [Text(f"{NO_LABELS} These are the scores of the best class, mean {percent(scores.mean())}."), picture]
    found = calibrate(one.run)
    difference = found.confidence - found.accuracy
    leaning = "surer than it is right" if difference > 0 else "right more often than it is sure"
    text = (
        f"Expected calibration error {percent(found.error)}. The mean score is {percent(found.confidence)}, the "
        f"accuracy {percent(found.accuracy)}: by {100 * abs(difference):.1f} points the model is {leaning}."
    )
    alt = f"Reliability diagram: accuracy over score in {int((found.counts > 0).sum())} bins. {text}"
    caption = "Bars are 95 % intervals (Wilson); below, the number of videos of each bin."
    return [
        Text(text),
        one.shown("calibration", figures.draw_calibration(one.lettering, found), alt, caption),
    ]


def _map(one: Material) -> list:
    embeds = one.run.video_embeds
    if embeds is None:
        return [Text("A map needs the embeddings of the videos, which `ezclip run` keeps with --do_eval --report.")]
    if len(embeds) < embedding_map.LEAST_VIDEOS:
        return [Text(f"A map needs at least {embedding_map.LEAST_VIDEOS} videos, and these are {len(embeds)}.")]
    shown, places = embedding_map.project(embeds, one.seed)
    labels, best = one.run.labels[shown], one.run.ranked[shown, 0]
    is_labelled = labels != NO_CLASS
    if is_labelled.any():
        shown, places, classes, right = shown[is_labelled], places[is_labelled], labels[is_labelled], None
        right = classes == best[is_labelled]
        word = "class"
    else:
        classes, right, word = best, None, "taken for"
    num_classes = len(np.unique(classes))
    content = embedding_map.draw_map(one.lettering, places, classes, right, word)
    of_all = "" if len(shown) == len(one.run.videos) else f" of {len(one.run.videos)}"
    caption = (
        f"{count_of(len(shown))}{of_all} by t-SNE of their embeddings: neighbours are alike; "
        "distances between far groups and sizes of groups mean nothing."
    )
    if num_classes > embedding_map.MOST_MARKED:
        caption += f" Names stand at the middle of classes ({word}), as many as there is room for."
    alt = f"Map of {count_of(len(shown))} of {num_classes} classes."
    if right is not None:
        caption += " A cross is a video that is taken for another class."
        alt += f" {int((~right).sum())} are marked as wrong."
    return [one.shown("embedding_map", content, alt, caption)]


def _bad_videos(one: Material) -> list:
    items, run = [], one.run
    for videos, what in (
        (run.bad_videos, "not read, which count for nothing above"),
        (run.partial_videos, "read in part"),
    ):
        if videos:
            more = f" The first {MOST_LISTED}:" if len(videos) > MOST_LISTED else ""
            rows = [[Cell(video, is_name=True), Cell(reason)] for video, reason in videos[:MOST_LISTED]]
            items.append(Table(["video", "reason"], rows, f"{count_of(len(videos))} {what}.{more}"))
    return items or [Text("All videos were read, as far as the files say.")]


def _settings(one: Material) -> list:
    rows = [[Cell(name), Cell(value)] for name, value in settings_as_text(one.run.settings).items()]
    if not rows:
        return [Text("No file says how these predictions were made.")]
    return [Text(f"Of {one.run.folder}."), Table(["setting", "value"], rows)]


def settings_as_text(settings: dict, prefix: str = "") -> dict[str, str]:
    """Return the given settings by full name, nested ones as `outer.inner`."""
    found = {}
    for name, value in settings.items():
        if value is None:
            continue
        name = f"{prefix}{name}".strip()
        if isinstance(value, dict) and value:
            found |= settings_as_text(value, f"{name}.")
        elif isinstance(value, str):
            found[name] = value
        elif isinstance(value, list) and value and all(isinstance(item, str) for item in value):
            found[name] = " · ".join(value)
        else:
            found[name] = json.dumps(value, ensure_ascii=False)
    return found
