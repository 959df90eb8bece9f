"""Find the segments of a long video: sliding windows, their scores, and segments with one label each."""

import contextlib
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from ezclip.data.isolated_reader import IsolatedReader
from ezclip.errors import DataError
from ezclip.timeline.results import Timeline, check_segment_options
from ezclip.timeline.windows import WindowClip, read_windows
from pipeline_ezclip import (
    CLASS_OPTIONS,
    ENSEMBLES,
    ClassBank,
    Scoring,
    choose_scoring,
    embed_videos,
    score_embeds,
    take_class_options,
)
from video_ezclip import DEFAULT_LIMITS, ReadLimits, VideoReadError, describe_video


MIN_SECONDS = 0.01
BAR_FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s [{elapsed}<{remaining}, {rate_fmt}]"
BAR_FORMAT_OF_UNKNOWN = "{desc}: {n:.0f} s [{elapsed}, {rate_fmt}]"


def find_segments(
    classifier,
    video,
    candidate_labels: str | Sequence[str] | None = None,
    *,
    window: float = 2.0,
    stride: float = 1.0,
    batch_size: int = 8,
    ensemble: str = "probability",
    function_to_apply: str | None = None,
    calibration=None,
    smoothing: int = 3,
    min_score: float | None = None,
    min_duration: float = 0.0,
    allow_partial: bool = False,
    limits: ReadLimits = DEFAULT_LIMITS,
    reader: IsolatedReader | None = None,
    disable_tqdm: bool = False,
    should_stop: Callable[[], bool] | None = None,
    **class_options,
) -> Timeline:
    r"""
    Find the segments of a long video, each with a start, an end, a label and a score.

    The video is decoded once and classified in sliding windows. Memory holds only the frames of one window and one
    batch. The scores of a window equal the scores of the pipeline for the same `start` and `end`. Each window gets its
    best class, and neighbouring windows of one class form a segment. The boundary between two classes is halfway
    between the middles of the two windows.

    Args:
        classifier ([`ZeroShotVideoClassificationPipeline`]):
            The pipeline.
        video (`str`, `os.PathLike`, `bytes`, file object or `dict`):
            A video file, its address, its bytes, an open file or pipe, or a `datasets` row `{"path", "bytes"}`.
        candidate_labels (`str` or `Sequence[str]`, *optional*):
            Class names; a string may hold several, separated by commas. The default is the classes of
            `descriptions`, or of the class bank that is given or saved beside the model.
        window (`float`, *optional*, defaults to 2):
            Length of a window in seconds, at least 0.01. The model sees `processor.num_frames` frames of it.
        stride (`float`, *optional*, defaults to 1):
            Seconds between the starts of two windows, at least 0.01. It limits the precision of the boundaries.
        batch_size (`int`, *optional*, defaults to 8):
            Number of windows to embed at a time.
        ensemble (`str`, *optional*, defaults to `"probability"`):
            See [`ClassBank.probabilities`].
        function_to_apply (`str`, *optional*), calibration (*optional*):
            How scores are made. Default to those of the pipeline.
        smoothing (`int`, *optional*, defaults to 3):
            Number of neighbouring windows whose scores are averaged, odd. 1 disables smoothing.
        min_score (`float`, *optional*):
            Smallest smoothed score of a window in a segment, a probability in [0, 1]. Defaults to that of the
            pipeline, to the threshold of the calibration, or to 0.
        min_duration (`float`, *optional*, defaults to 0):
            Smallest length of a segment in seconds. Shorter segments, and shorter gaps within a segment, join their
            neighbours.
        allow_partial (`bool`, *optional*, defaults to `False`):
            Whether to continue with the readable part of a damaged file. `Timeline.problem` then says what is missing.
        limits ([`ReadLimits`], *optional*):
            What reading may take, and where it may reach.
        reader ([`IsolatedReader`], *optional*):
            Reads the video in its child process, within its time limit. The default is this process.
        disable_tqdm (`bool`, *optional*, defaults to `False`):
            Whether to hide the progress bar.
        should_stop (`Callable[[], bool]`, *optional*):
            Called after each batch. If it returns `True`, the search stops and returns the segments so far.
        class_options:
            `hypothesis_template`, `descriptions`, `include_label`, `input_conditioning`, `step_score`,
            `step_contrast`, `background_labels` and `class_bank`, with the meaning and the defaults that they have in
            the pipeline.

    Returns:
        [`Timeline`]: `segments`, and `scores` of shape `(windows, classes)` with `starts` and `ends` in seconds.

    Raises:
        [`VideoReadError`]: if the video cannot be read. If some windows were read before, the attribute `timeline` of
            the error holds them.
        [`DataError`] (a `ValueError`): if an argument is out of range, or there are no classes.
        `TypeError`: if a class option is unknown.

    Example:

    ```python
    >>> from transformers import pipeline

    >>> from ezclip.timeline import find_segments

    >>> classifier = pipeline("zero-shot-video-classification", model=folder)
    >>> timeline = find_segments(classifier, "film.mp4", ["archery", "yoga"], background_labels="a person talking")
    >>> timeline.segments  # [Segment(start=12.5, end=31.5, label="archery", score=0.93), …]
    >>> timeline.save("film.srt")
    ```
    """
    check_window_options(window, stride, batch_size, ensemble)
    given = {"function_to_apply": function_to_apply, "calibration": calibration, "min_score": min_score}
    *_, answering = classifier.merge_defaults(**given)
    calibration = answering.get("calibration")
    threshold: float = answering.get("min_score", 0.0 if calibration is None else calibration.threshold)
    scoring = choose_scoring(classifier.model, answering.get("function_to_apply"), calibration)
    check_segment_options(smoothing, threshold, min_duration)
    if candidate_labels is not None:
        class_options["candidate_labels"] = candidate_labels
    chosen = take_class_options(class_options)
    if class_options:
        known = ", ".join(name for name in CLASS_OPTIONS if name != "candidate_labels")
        raise TypeError(f"{sorted(class_options)} are not arguments of `find_segments`. Class options are: {known}.")
    bank, processor = classifier.class_choice.choose(chosen), classifier.processor
    settings = (window, stride, smoothing, threshold, min_duration)
    scored = _WindowScores(classifier.model, processor, bank, ensemble, scoring)
    arguments = (window, stride, processor.get_sampler(), processor.crop_frames, allow_partial, limits)
    read: Any = read_windows if reader is None else partial(reader.stream, read_windows)
    name, problem = describe_video(video), None
    with contextlib.closing(read(video, *arguments)) as windows, _progress_bar(disable_tqdm) as bar:
        try:
            for number, one in enumerate(windows, start=1):
                if one.duration is not None:
                    bar.total, bar.bar_format = one.duration, BAR_FORMAT
                if one.is_last:
                    bar.update(max(0.0, one.end - bar.n))
                    problem = one.problem
                    continue
                scored.add(one)
                if number % batch_size == 0:
                    scored.score()
                    bar.update(max(0.0, one.end - bar.n))
                    if should_stop is not None and should_stop():
                        return scored.timeline(name, f"Stopped after {one.end:.1f} s.", settings)
        except VideoReadError as error:
            error.timeline = scored.timeline(name, f"{error.reason} {error.remedy}", settings)
            raise
    return scored.timeline(name, problem, settings)


class _WindowScores:
    """The scores of the windows so far, and the clips of the next batch."""

    def __init__(self, model, processor, bank: ClassBank, ensemble: str, scoring: Scoring):
        self.model, self.processor, self.bank, self.ensemble = model, processor, bank, ensemble
        self.scoring = scoring
        self.times: list[tuple[float, float]] = []
        self.rows: list[int] = []  # the row of scores of each window
        self.scores = [np.zeros((0, len(bank.labels)), dtype=np.float32)]
        self.num_rows = 0
        self.waiting: list[np.ndarray] = []

    def add(self, window: WindowClip):
        """Add a window. A window with the same frames as the one before shares its scores."""
        if window.clip is not None:
            self.waiting.append(window.clip)
            self.num_rows += 1
        self.times.append((window.start, window.end))
        self.rows.append(self.num_rows - 1)

    @torch.no_grad()
    def score(self):
        """Classify the waiting clips."""
        if not self.waiting:
            return
        frames = torch.from_numpy(np.stack(self.waiting)).to(self.model.device)
        pixel_values = self.processor.normalize(frames).to(self.model.dtype)
        self.waiting.clear()
        video_embeds = embed_videos(self.model, self.bank, pixel_values)
        scores = score_embeds(self.model, self.bank, video_embeds, self.ensemble, self.scoring)
        self.scores.append(scores.cpu().numpy())

    def timeline(self, video: str, problem: str | None, settings: tuple[float, float, int, float, float]) -> Timeline:
        """Classify the rest, and return the timeline of the windows so far."""
        self.score()
        scores, function = np.concatenate(self.scores)[self.rows], self.scoring.function_to_apply
        labels, scores = self.bank.join_background(scores, function)
        starts, ends = np.array(self.times, dtype=np.float64).reshape(-1, 2).T
        return Timeline(video, labels, starts, ends, scores, *settings, problem)


def check_window_options(window: float, stride: float, batch_size: int, ensemble: str = "probability"):
    """Raise [`DataError`] if an option of windows, or of their scores, is out of range."""
    for name, value in (("window", window), ("stride", stride)):
        if not MIN_SECONDS <= value < math.inf:
            raise DataError(f"`{name}` must be a number of seconds, {MIN_SECONDS} or more, got {value}.")
    if isinstance(batch_size, bool) or int(batch_size) != batch_size or batch_size < 1:
        raise DataError(f"`batch_size` must be a whole number of at least 1, got {batch_size}.")
    if ensemble not in ENSEMBLES:
        raise DataError(f"`ensemble` must be one of {ENSEMBLES}, got {ensemble!r}.")


def _progress_bar(disable: bool) -> tqdm:
    return tqdm(desc="Search", unit=" s of video", bar_format=BAR_FORMAT_OF_UNKNOWN, disable=disable)
