"""Classify a live source window by window."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ezclip.live.feed import LiveFeed
from ezclip.timeline.search import check_window_options
from ezclip.utils.messages import get_logger
from pipeline_ezclip import CLASS_OPTIONS, choose_scoring, embed_videos, score_embeds, take_class_options
from video_ezclip import ReadLimits


logger = get_logger(__name__)

# `max_download_seconds` is the longest time without a window.
LIVE_LIMITS = ReadLimits(max_download_seconds=30.0)


@dataclass
class LiveAnswer:
    """
    What a window of a live source shows.

    Args:
        time (`float`):
            When the source passed the end of the window: seconds since 1970, as of `time.time()`.
        start (`float`), end (`float`):
            Seconds since the first frame of this connection.
        predictions (`list[dict]`):
            `label` and `score`, best first, as the pipeline returns them.
        latency (`float`):
            Seconds from the end of the window to this answer.
        dropped_windows (`int`):
            Number of windows since the answer before that were not classified, because newer ones were there.
        dropped_frames (`int`):
            Number of frames since the answer before that no classified window covers.
        connection (`int`):
            Number of the connection, from 1. `start` and `end` begin again with each.
    """

    time: float
    start: float
    end: float
    predictions: list[dict[str, Any]]
    latency: float
    dropped_windows: int
    dropped_frames: int
    connection: int


def watch(
    classifier,
    source: str,
    candidate_labels: str | Sequence[str] | None = None,
    *,
    window: float = 2.0,
    stride: float = 1.0,
    top_k: int | None = None,
    ensemble: str = "probability",
    function_to_apply: str | None = None,
    calibration=None,
    min_score: float | None = None,
    limits: ReadLimits = LIVE_LIMITS,
    max_reconnects: int = 20,
    on_notice: Callable[[str], object] = logger.warning,
    should_stop: Callable[[], bool] = bool,
    **class_options,
) -> Iterator[LiveAnswer]:
    r"""
    Classify a live source in windows of time, and yield an answer as soon as a window is over and classified.

    A child process decodes the source all the time. Only its newest window waits for the model: a model that is too
    slow makes windows be dropped, and does not make the answers late. Memory holds the frames of one window. The
    scores of a window equal those of the pipeline for the same frames.

    Args:
        classifier ([`ZeroShotVideoClassificationPipeline`]):
            The pipeline.
        source (`str`):
            An address of rtsp, rtsps, http or https, a device (/dev/video0), or a video file, which is played at its
            own rate.
        candidate_labels (`str` or `Sequence[str]`, *optional*):
            Class names; a string may hold several, separated by commas.
        window (`float`, *optional*, defaults to 2), stride (`float`, *optional*, defaults to 1):
            Length of a window, and time between two, in seconds.
        top_k (`int`, *optional*):
            Number of labels in an answer.
        ensemble (`str`, *optional*, defaults to `"probability"`):
            How to combine several texts, see [`ClassBank.probabilities`].
        function_to_apply (`str`, *optional*), calibration (*optional*), min_score (`float`, *optional*):
            See the pipeline. A window whose labels all score below `min_score` has the answer `None`.
        limits ([`ReadLimits`], *optional*):
            What reading may take, and where it may reach. `max_download_seconds` is the longest time without a
            window, 30 by default.
        max_reconnects (`int`, *optional*, defaults to 20):
            Number of attempts in a row to connect again, after 0.5, 1, 2, … and at most 30 seconds.
        on_notice (`Callable[[str], object]`, *optional*):
            Called with a sentence when the source is cut. The default is a warning in the log.
        should_stop (`Callable[[], bool]`, *optional*):
            Asked ten times a second. If it returns `True`, the iteration ends.
        class_options:
            `hypothesis_template`, `descriptions`, `background_labels`, `class_bank` and other options of the
            pipeline that choose the classes.

    Yields:
        [`LiveAnswer`]: one for each classified window.

    Raises:
        [`VideoReadError`]: if the source cannot be read, or not again.
        [`DataError`] (a `ValueError`): if an argument is out of range, or there are no classes.
        `TypeError`: if a class option is unknown.

    Example:

    ```python
    >>> from ezclip.live import watch

    >>> for answer in watch(classifier, "rtsp://camera.local/stream", "a person walks, a car arrives, nothing"):
    ...     print(answer.time, answer.predictions[0])
    ```
    """
    check_window_options(window, stride, 1, ensemble)
    if unknown := sorted(set(class_options) - set(CLASS_OPTIONS)):
        raise TypeError(f"{unknown} are not arguments of `watch`.")
    if candidate_labels is not None:
        class_options["candidate_labels"] = candidate_labels
    bank = classifier.class_choice.choose(take_class_options(class_options))
    given = {"function_to_apply": function_to_apply, "calibration": calibration, "min_score": min_score}
    *_, answering = classifier.merge_defaults(top_k=top_k, **given)
    model, processor = classifier.model, classifier.processor
    scoring = choose_scoring(model, answering.get("function_to_apply"), answering.get("calibration"))
    sampling = processor.get_sampler(), processor.crop_frames
    connection = last_frame = 0
    with LiveFeed(source, window, stride, *sampling, limits, max_reconnects) as feed:
        while not (should_stop() or feed.is_over):
            taken = feed.take()
            while feed.notices:
                on_notice(feed.notices.popleft())
            if taken is None:
                continue
            one, number, dropped = taken
            with torch.no_grad():
                pixel_values = processor.normalize(torch.from_numpy(one.clip[None]).to(model.device)).to(model.dtype)
                embeds = embed_videos(model, bank, pixel_values)
                scores = score_embeds(model, bank, embeds, ensemble, scoring)
            predictions = classifier.postprocess({"scores": scores.cpu(), "error": None}, bank, **answering)
            last_frame, connection = last_frame if number == connection else -1, number
            missed, last_frame = max(0, one.span[0] - last_frame - 1), one.span[1]
            latency = time.monotonic() - one.passed
            yield LiveAnswer(
                time.time() - latency, one.start, one.end, predictions, latency, dropped, missed, connection
            )
