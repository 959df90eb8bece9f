"""A page of hits: frames, file, time and score of each, without references to other files."""

import os
from functools import partial
from pathlib import Path

from ezclip.data.isolated_reader import IsolatedReader
from ezclip.errors import DataError
from ezclip.report.drawing import Picture
from ezclip.report.frames import read_strip
from ezclip.report.page import Card, Gallery, Section, render
from ezclip.search.hits import Hit
from ezclip.timeline.results import as_clock
from ezclip.utils.files import replacing
from ezclip.utils.tables import count_of
from video_ezclip import ReadLimits, VideoReadError


NUM_FRAMES, FRAME_HEIGHT = 4, 80


def write_page(
    path: str | Path,
    query: str,
    hits: list[Hit],
    folder: str | Path,
    limits: ReadLimits,
    video_timeout: float = 60.0,
):
    """
    Write hits as one HTML file, best first, each with frames of its window.

    Args:
        path (`str` or `Path`):
            The file.
        query (`str`):
            What was looked for.
        hits (`list[Hit]`):
            The hits.
        folder (`str` or `Path`):
            The folder of their videos.
        limits ([`ReadLimits`]), video_timeout (`float`, *optional*, defaults to 60):
            See [`IsolatedReader`].

    Raises:
        [`DataError`]: if the page cannot be written.
    """
    with IsolatedReader(video_timeout, allow_partial=True, limits=limits) as read:
        cards = [_card(number, hit, os.path.join(folder, hit.video), read) for number, hit in enumerate(hits, 1)]
    intro = "Best first, each with frames of its window and the cosine of its embedding and that of the query."
    sections = [Section("Hits", intro, [(None, [Gallery(cards)] if cards else ["There is no hit."])])]
    page = render(query, f"{count_of(len(hits), 'hit')} in {os.path.abspath(folder)}", [], sections)
    try:
        with replacing(path) as temporary:
            temporary.write_text(page, encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror}). Give another path.") from error


def _card(number: int, hit: Hit, video: str, read: IsolatedReader) -> Card:
    time = f"{as_clock(hit.start)} to {as_clock(hit.end)}"
    try:
        frames = read_strip(video, partial(read, start=hit.start, end=hit.end), NUM_FRAMES, FRAME_HEIGHT)
        strip = Picture("", frames, f"Frames of hit {number}: {hit.video}, {time}", format="jpeg")
    except VideoReadError as error:
        strip = f"{error.reason} {error.remedy}"
    return Card(hit.video, [(time, hit.score)], strip)
