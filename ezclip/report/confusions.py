"""The sections of a report on what is taken for what."""

import numpy as np
from scipy.sparse import csr_array

from ezclip.report import matrices
from ezclip.report.drawing import Picture
from ezclip.report.frames import read_strip
from ezclip.report.material import NO_LABELS, Material, count_of, number, percent
from ezclip.report.measures import ConfusedPair, mistakes, most_confused
from ezclip.report.ordering import ClassOrder, order_classes
from ezclip.report.page import Cell, Samples, Table, Text
from video_ezclip import VideoReadError


MOST_CLASSES = 1000  # in a matrix
NUM_SAMPLES = 2  # of each direction of a confused pair


def choose_order(materials: list[Material]) -> tuple[np.ndarray, ClassOrder]:
    """Choose the classes of the matrix and their order, the same for all runs."""
    total = sum(one.counts for one in materials)
    used = np.flatnonzero(total.sum(axis=0) + total.sum(axis=1))
    if len(used) > MOST_CLASSES:
        confused = _off_diagonal(total)
        amount = (confused.sum(axis=0) + confused.sum(axis=1))[used]
        used = np.sort(used[np.argsort(-amount, kind="stable")[:MOST_CLASSES]])
    return used, order_classes(total[used][:, used].toarray())


def _off_diagonal(counts: csr_array) -> csr_array:
    found = counts.tocoo()
    apart = found.row != found.col
    return csr_array((found.data[apart], (found.row[apart], found.col[apart])), shape=counts.shape)


def matrix_items(one: Material, classes: np.ndarray, order: ClassOrder) -> list:
    """Return the items of the confusion matrix."""
    if not len(one.run.known):
        return [Text(NO_LABELS)]
    counts = one.counts[classes][:, classes].toarray()
    wrong = int(counts.sum() - np.trace(counts))
    alt = (
        f"Confusion matrix of {len(classes)} classes, {count_of(wrong)} off its diagonal. The table of the classes "
        "names what each is mostly mistaken for."
    )
    caption = (
        "A row is what videos are, a column what they are taken for; shades are parts of a row, small ones lifted. "
        "Classes that are taken for each other stand together (average linkage of their confusions)."
    )
    items = []
    if len(classes) < (total := len(one.classes)):
        items.append(Text(f"The {len(classes)} classes of {total} with the most confusions; the table above has all."))
    is_large = len(classes) > matrices.MOST_NAMED
    if is_large:
        caption += " The diagonal, what is right, is grey. The table of the classes has the place of each."
    if is_large and order.groups:
        caption += " The numbered squares are shown from near below."
    elif not is_large:
        caption += " Numbers are videos."
    content = matrices.draw_matrix(one.lettering, counts, classes, order)
    items.append(one.shown("confusion_matrix", content, alt, caption))
    if is_large and order.groups:
        names = "; ".join(
            f"{place}: {', '.join(one.run.class_names[index] for index in classes[order.order[start:end]])}"
            for place, (start, end) in enumerate(order.groups, 1)
        )
        content = matrices.draw_groups(one.lettering, counts, classes, order)
        caption = "Groups of classes with the most confusions inside them. Numbers are videos, shades parts of a row."
        items.append(one.shown("confusion_groups", content, f"Confusions inside groups of classes. {names}.", caption))
    return items


def confused_items(one: Material) -> list:
    """Return the items of the most confused classes."""
    if not len(one.run.known):
        return [Text(NO_LABELS)]
    pairs = most_confused(one.counts)
    if not pairs:
        return [Text("No video is taken for another class than its own.")]
    columns = ["class", "is taken for", "videos", "of its own", "the other way round", "of its own"]
    totals, rows = one.counts.sum(axis=1), []
    for pair in pairs:
        row = [one.name_of(pair.first), one.name_of(pair.second)]
        for count, index in ((pair.forward, pair.first), (pair.backward, pair.second)):
            row += [number(count), _part(count, int(totals[index]))]
        rows.append(row)
    items = [Table(columns, rows)]
    if one.read is None:
        return [*items, Text("Sample frames were not asked for.")]
    return items + [_samples(one, pair) for pair in pairs]


def _samples(one: Material, pair: ConfusedPair) -> Samples:
    names, strips = one.run.class_names, []
    for label, predicted in ((pair.first, pair.second), (pair.second, pair.first)):
        for position in mistakes(one.run, label, predicted)[:NUM_SAMPLES]:
            video, score = one.run.videos[position], one.run.scores[position, 0]
            text = f"is {names[label]}, taken for {names[predicted]} with a score of {score:.2f}"
            try:
                alt = f"Three frames of a video that is {names[label]}"
                strip = Picture("", read_strip(video, one.read), alt, kind="jpeg")
            except VideoReadError as error:
                strip = f"{error.reason} {error.remedy}"
            strips.append((video, text, strip))
    text = count_of(pair.forward)
    if pair.backward:
        text += f", and {pair.backward} the other way round"
    return Samples(names[pair.first], names[pair.second], f"{text}. The most certain:", strips)


def _part(count: int, total: int) -> Cell:
    return Cell(percent(count / total), count / total) if total else Cell("")
