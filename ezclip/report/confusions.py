"""The confusion matrix and the most confused classes."""

import numpy as np

from ezclip.report import matrices
from ezclip.report.drawing import Picture
from ezclip.report.frames import read_strip
from ezclip.report.material import NO_LABELS, Material, number, percent
from ezclip.report.measures import ConfusedPair, mistakes, most_confused
from ezclip.report.ordering import order_classes
from ezclip.report.page import Cell, Samples, Table
from ezclip.utils.tables import count_of
from video_ezclip import VideoReadError


MAX_CLASSES = 1000  # in a matrix
NUM_SAMPLES = 2  # for each direction of a confused pair


def choose_classes(materials: list[Material]) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Return the classes of the matrix in their order, and the groups of [`order_classes`], the same for all runs."""
    total = sum((one.counts for one in materials[1:]), materials[0].counts)
    num_videos = total.sum(axis=0) + total.sum(axis=1)
    used = np.flatnonzero(num_videos)
    if len(used) > MAX_CLASSES:
        num_confused = (num_videos - 2 * total.diagonal())[used]
        used = np.sort(used[np.argsort(-num_confused, kind="stable")[:MAX_CLASSES]])
    order, groups = order_classes(total[used][:, used].toarray())
    return used[order], groups


def matrix_items(one: Material, classes: np.ndarray, groups: list[tuple[int, int]]) -> list:
    """Return the items of the confusion matrix."""
    if not len(one.run.known):
        return [NO_LABELS]
    counts = one.counts[classes][:, classes].toarray()
    wrong = int(counts.sum() - np.trace(counts))
    alt = (
        f"Confusion matrix of {len(classes)} classes, {count_of(wrong)} off the diagonal. The table of the classes "
        "names the most frequent wrong prediction of each."
    )
    caption = (
        "Rows are true classes, columns are predicted classes. The shade is the fraction of the row's videos; "
        "the scale emphasises small fractions. Confused classes are neighbours (average linkage of confusions)."
    )
    items = []
    if len(classes) < (total := len(one.classes)):
        items.append(
            f"The {len(classes)} classes of {total} with the most confusions. The table above has all classes."
        )
    is_large = len(classes) > matrices.MAX_NAMED
    if is_large:
        caption += " The diagonal (correct predictions) is grey. The table of the classes has the matrix positions."
        if groups:
            caption += " The numbered squares are enlarged below."
    else:
        caption += " Numbers are videos."
    items.append(one.draw("confusion_matrix", matrices.draw_matrix, counts, classes, groups, alt=alt, caption=caption))
    if is_large and groups:
        names = "; ".join(
            f"{place}: {', '.join(one.run.class_names[index] for index in classes[start:end])}"
            for place, (start, end) in enumerate(groups, 1)
        )
        alt = f"Confusions inside groups of classes. {names}."
        caption = "Groups of classes with the most confusions. Numbers are videos, shades are fractions of a row."
        items.append(
            one.draw("confusion_groups", matrices.draw_groups, counts, classes, groups, alt=alt, caption=caption)
        )
    return items


def confused_items(one: Material) -> list:
    """Return the items of the most confused classes."""
    if not len(one.run.known):
        return [NO_LABELS]
    pairs = most_confused(one.counts)
    if not pairs:
        return ["All predictions are correct."]
    totals, rows = one.counts.sum(axis=1), []
    for pair in pairs:
        row = [one.name_of(pair.first), one.name_of(pair.second)]
        for count, index in ((pair.forward, pair.first), (pair.backward, pair.second)):
            total = int(totals[index])
            row += [number(count), Cell(percent(count / total), count / total) if total else Cell("")]
        rows.append(row)
    columns = ["class", "predicted as", "videos", "fraction", "reverse", "reverse fraction"]
    table = Table(
        columns,
        rows,
        "Fractions are of all videos of the true class. Reverse: the second class predicted as the first.",
    )
    if one.read is None:
        return [table, "Sample frames are turned off."]
    return [table, *(_samples(one, pair) for pair in pairs)]


def _samples(one: Material, pair: ConfusedPair) -> Samples:
    names, strips = one.run.class_names, []
    for label, predicted in ((pair.first, pair.second), (pair.second, pair.first)):
        for position in mistakes(one.run, label, predicted)[:NUM_SAMPLES]:
            video, score = one.run.videos[position], one.run.scores[position, 0]
            text = f"true class: {names[label]}; predicted class: {names[predicted]}; score: {score:.2f}"
            try:
                alt = f"Three frames of a video of {names[label]}"
                strip = Picture("", read_strip(video, one.read), alt, format="jpeg")
            except VideoReadError as error:
                strip = f"{error.reason} {error.remedy}"
            strips.append((video, text, strip))
    reverse = f", and {pair.backward} in reverse" if pair.backward else ""
    text = f"{count_of(pair.forward)}{reverse}. The most confident errors:"
    return Samples(names[pair.first], names[pair.second], text, strips)
