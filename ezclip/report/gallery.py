"""The gallery of predicted videos."""

from collections.abc import Callable

from ezclip.report.drawing import Picture
from ezclip.report.frames import read_strip
from ezclip.report.material import Material
from ezclip.report.page import Card, Gallery
from ezclip.report.reading import NO_CLASS
from ezclip.utils.tables import count_of
from video_ezclip import VideoReadError


MAX_STRIPS = 500  # videos with frames: each takes about 10 kB
MAX_CARDS = 5000
MAX_LABELS = 5
NUM_FRAMES, FRAME_HEIGHT = 4, 80


def gallery_items(one: Material) -> list:
    """Return the gallery of a run, and what it leaves out."""
    total = len(one.run.videos)
    num_cards = min(total, MAX_CARDS)
    num_strips = min(num_cards, MAX_STRIPS) if one.read is not None else 0
    text = f"{count_of(total)}, each with its best labels and their scores."
    if num_cards < total:
        text += f" The first {num_cards} are here, all are in predictions.jsonl."
    if one.read is None:
        text += " Sample frames are turned off."
    elif num_strips < num_cards:
        text += f" The first {num_strips} have frames."
    return [text, Gallery([_card(one, index, one.read if index < num_strips else None) for index in range(num_cards)])]


def _card(one: Material, index: int, read: Callable | None) -> Card:
    run, video = one.run, one.run.videos[index]
    ranked = [
        (run.class_names[label], float(score))
        for label, score in zip(run.ranked[index][:MAX_LABELS], run.scores[index])
        if label != NO_CLASS
    ]
    strip = None
    if read is not None:
        try:
            alt = f"Frames of a video; best label: {ranked[0][0]}"
            strip = Picture("", read_strip(video, read, NUM_FRAMES, FRAME_HEIGHT), alt, format="jpeg")
        except VideoReadError as error:
            strip = f"{error.reason} {error.remedy}"
    return Card(video, ranked, strip)
