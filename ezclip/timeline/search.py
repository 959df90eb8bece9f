"""What a long video shows when: windows that slide over it, their scores, and segments with one label each."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from ezclip.errors import DataError
from ezclip.timeline.files import FORMATS, as_csv, as_srt, as_vtt, draw
from ezclip.timeline.frame_streams import FrameStream
from ezclip.timeline.segments import Segment, merge_windows
from ezclip.timeline.windows import Window, slide_windows
from ezclip.utils.files import replacing
from pipeline_ezclip import CLASS_OPTIONS, ENSEMBLES, ClassBank, take_class_options
from video_ezclip import VideoReadError


MIN_SECONDS = 0.01
BAR_FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s [{elapsed}<{remaining}, {rate_fmt}]"
BAR_FORMAT_OF_UNKNOWN = "{desc}: {n:.0f} s [{elapsed}, {rate_fmt}]"


@dataclass
class Timeline:
    """
    What a video shows when.

    Args:
        video (`str`):
            What errors and results call it.
        labels (`list[str | None]`):
            The C classes; the last is `None`, none of these, if there is a background.
        starts (`np.ndarray` of shape `(W,)`), ends (`np.ndarray` of shape `(W,)`):
            Seconds at which windows begin and end, within the video.
        scores (`np.ndarray` of shape `(W, C)`):
            Probability of each class in each window, as the pipeline has it, not smoothed.
        window (`float`), stride (`float`):
            Seconds.
        smoothing (`int`), min_score (`float`), min_duration (`float`):
            What the segments were made with; see [`find_segments`].
        problem (`str`, *optional*):
            Why this is not all of the video.
        segments (`list[Segment]`):
            Made of the scores: parts of the video that show one class, each with `start`, `end`, `label`, `score`.
    """

    video: str
    labels: list[str | None]
    starts: np.ndarray
    ends: np.ndarray
    scores: np.ndarray
    window: float
    stride: float
    smoothing: int = 3
    min_score: float = 0.0
    min_duration: float = 0.0
    problem: str | None = None
    segments: list[Segment] = field(init=False)

    def __post_init__(self):
        check_segment_options(self.smoothing, self.min_score, self.min_duration)
        self.segments = merge_windows(
            self.starts,
            self.ends,
            self.scores,
            self.labels,
            smoothing=self.smoothing,
            min_score=self.min_score,
            min_duration=self.min_duration,
        )

    @property
    def times(self) -> np.ndarray:
        """The middles of the windows, in seconds: `(W,)`."""
        return (self.starts + self.ends) / 2

    def resegment(self, **options) -> "Timeline":
        """Return the same scores in other segments, by `smoothing`, `min_score` and `min_duration`."""
        return replace(self, **options)

    def to_dict(self) -> dict:
        """Everything, of types that JSON has; the scores as rows of windows, in the order of `labels`."""
        names = ("video", "labels", "window", "stride", "smoothing", "min_score", "min_duration", "problem")
        rounded = ("starts", "ends", "scores")
        return {
            **{name: getattr(self, name) for name in names},
            "segments": [asdict(segment) for segment in self.segments],
            **{name: np.round(getattr(self, name).astype(np.float64), 6).tolist() for name in rounded},
        }

    def to_json(self) -> str:
        """[`~Timeline.to_dict`] as JSON."""
        return json.dumps(self.to_dict(), ensure_ascii=False) + "\n"

    def to_csv(self) -> str:
        """Return the segments as CSV: `start,end,label,score`."""
        return as_csv(self.segments)

    def to_srt(self) -> str:
        """Return the segments as SubRip subtitles, each with its label and score."""
        return as_srt(self.segments)

    def to_vtt(self) -> str:
        """Return the segments as WebVTT subtitles, each with its label and score."""
        return as_vtt(self.segments)

    def plot(self, path: str | Path):
        """
        Draw the scores of the classes over time, with the segments.

        Raises:
            [`DataError`]: if matplotlib is not installed, or there is no window.
        """
        draw(self, path)

    def save(self, path: str | Path):
        """
        Write a file of the kind that its ending says: `.json`, `.csv`, `.srt`, `.vtt`, `.png` or `.svg`.

        Raises:
            [`DataError`]: if it is of another ending, or cannot be written.
        """
        path = Path(path)
        check_output_file(path)
        writers = {".json": self.to_json, ".csv": self.to_csv, ".srt": self.to_srt, ".vtt": self.to_vtt}
        try:
            if (suffix := path.suffix.lower()) not in writers:
                return self.plot(path)
            with replacing(path) as temporary:
                # Names of files need not be UTF-8, and RFC 4180 has the line ends of CSV.
                temporary.write_text(writers[suffix](), encoding="utf-8", newline="")
        except OSError as error:
            raise DataError(f"{path} cannot be written ({error.strerror}). Give another.") from error

    def save_all(self, folder: str | Path):
        """Write `timeline.json`, `.csv`, `.srt`, `.vtt` and, where matplotlib is installed, `.png` into a folder."""
        for suffix in (".json", ".csv", ".srt", ".vtt", ".png"):
            self.save(Path(folder) / f"timeline{suffix}")


def find_segments(
    classifier,
    video,
    candidate_labels: str | Sequence[str] | None = None,
    *,
    window: float = 2.0,
    stride: float = 1.0,
    batch_size: int = 8,
    ensemble: str = "probability",
    smoothing: int = 3,
    min_score: float = 0.0,
    min_duration: float = 0.0,
    allow_partial: bool = False,
    disable_tqdm: bool = False,
    should_stop: Callable[[], bool] | None = None,
    **class_options,
) -> Timeline:
    r"""
    Find what a long video shows when.

    The video is decoded once, from beginning to end, and classified in windows that slide over it; no more than the
    frames of a window and a batch are in memory. The scores of a window are those that the pipeline gives for its
    `start` and `end`. Each window then is of its best class, and neighbours of one class are one segment; between two
    windows of different classes, the boundary is halfway between their middles.

    Args:
        classifier ([`ZeroShotVideoClassificationPipeline`]):
            The pipeline.
        video (`str`, `os.PathLike`, `bytes`, file object or `dict`):
            A video file, its address, its bytes, an open file or pipe, or a `datasets` row `{"path", "bytes"}`.
        candidate_labels (`str` or `Sequence[str]`, *optional*):
            Names of the classes; one string holds several between commas. By default those of `descriptions`, or of
            the class bank that is given or saved beside the model.
        window (`float`, *optional*, defaults to 2):
            Seconds of a window. The model sees `processor.num_frames` frames of it.
        stride (`float`, *optional*, defaults to 1):
            Seconds from the beginning of a window to that of the next. Boundaries are as fine.
        batch_size (`int`, *optional*, defaults to 8):
            Windows that are embedded at a time.
        ensemble (`str`, *optional*, defaults to `"probability"`):
            See [`ClassBank.probabilities`].
        smoothing (`int`, *optional*, defaults to 3):
            Windows, an odd number, whose scores are averaged before one is the best; 1 leaves them as they are.
        min_score (`float`, *optional*, defaults to 0):
            The least smoothed score, from 0 to 1, of the windows of a segment.
        min_duration (`float`, *optional*, defaults to 0):
            Seconds; shorter segments, and shorter gaps within one, go to their neighbours.
        allow_partial (`bool`, *optional*, defaults to `False`):
            Whether to go on with what can be decoded of a damaged or incomplete file, and say so in `problem`.
        disable_tqdm (`bool`, *optional*, defaults to `False`):
            Whether to show no progress.
        should_stop (`Callable[[], bool]`, *optional*):
            Asked after each batch. Where it says so the search ends, with what was found.
        class_options:
            `hypothesis_template`, `descriptions`, `include_label`, `input_conditioning`, `background_labels` and
            `class_bank` of the pipeline, whose defaults hold here too.

    Returns:
        [`Timeline`]: scores and segments.

    Raises:
        [`VideoReadError`]: if the video cannot be read. Where that shows after some windows, the error has an
        attribute `timeline` with what was found before. `ValueError`: if an argument is out of range, or there are no
        classes.

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
    _check_window_options(window, stride, batch_size, ensemble)
    check_segment_options(smoothing, min_score, min_duration)
    if candidate_labels is not None:
        class_options["candidate_labels"] = candidate_labels
    chosen = take_class_options(class_options)
    if class_options:
        known = ", ".join(name for name in CLASS_OPTIONS if name != "candidate_labels")
        raise TypeError(f"{sorted(class_options)} are no arguments of `find_segments`. Classes have: {known}.")
    bank, processor = classifier.class_choice.choose(chosen), classifier.processor
    found = _Found(classifier.model, processor, bank, ensemble)
    settings = {"window": window, "stride": stride, "smoothing": smoothing}
    settings |= {"min_score": min_score, "min_duration": min_duration}
    with FrameStream(video, allow_partial) as stream, _progress_bar(stream.duration, disable_tqdm) as bar:
        windows = slide_windows(stream, window, stride, processor.get_sampler(), processor.crop_frames)
        try:
            for number, one in enumerate(windows, start=1):
                found.add(one)
                if number % batch_size == 0:
                    found.score()
                    bar.update(max(0.0, one.end - bar.n))
                    if should_stop is not None and should_stop():
                        return found.timeline(stream.name, f"Stopped after {one.end:.1f} s.", settings)
        except VideoReadError as error:
            found.score()
            error.timeline = found.timeline(stream.name, f"{error.reason} {error.remedy}", settings)
            raise
        found.score()
        bar.update(max(0.0, stream.end - bar.n))
        return found.timeline(stream.name, stream.problem, settings)


class _Found:
    """The windows that were scored, and those that wait to be."""

    def __init__(self, model, processor, bank: ClassBank, ensemble: str):
        self.model, self.processor, self.bank, self.ensemble = model, processor, bank, ensemble
        self.times: list[tuple[float, float]] = []
        self.rows: list[int] = []  # of each window
        self.scores = [np.zeros((0, len(bank.labels)), dtype=np.float32)]
        self.num_rows, self.last_numbers = 0, None
        self.waiting: list[np.ndarray] = []

    def add(self, window: Window):
        """Add a window. A window with the frames of the one before has its scores."""
        if window.numbers != self.last_numbers:
            self.waiting.append(window.clip())
            self.last_numbers, self.num_rows = window.numbers, self.num_rows + 1
        self.times.append((window.start, window.end))
        self.rows.append(self.num_rows - 1)

    @torch.no_grad()
    def score(self):
        """Embed those that wait."""
        if not self.waiting:
            return
        frames = torch.from_numpy(np.stack(self.waiting)).to(self.model.device)
        pixel_values = self.processor.normalize(frames).to(self.model.dtype)
        self.waiting.clear()
        video_embeds = self.model.get_video_features(pixel_values, output_last_hidden_state=False).pooler_output
        self.scores.append(self.bank.probabilities(video_embeds, self.ensemble).cpu().numpy())

    def timeline(self, video: str, problem: str | None, settings: dict) -> Timeline:
        """Return the timeline of the windows so far."""
        scores = np.concatenate(self.scores)[self.rows]
        labels, scores = self.bank.join_background(scores)
        starts, ends = np.array(self.times, dtype=np.float64).reshape(-1, 2).T
        return Timeline(video, labels, starts, ends, scores, problem=problem, **settings)


def check_segment_options(smoothing: int, min_score: float, min_duration: float):
    """
    Raise if an option of the segments is out of range.

    Raises:
        [`DataError`]: if it is not.
    """
    if isinstance(smoothing, bool) or int(smoothing) != smoothing or smoothing < 1 or smoothing % 2 == 0:
        raise DataError(f"`smoothing` is a number of windows with one in the middle, 1, 3, 5, …; got {smoothing}.")
    if not 0.0 <= min_score <= 1.0:
        raise DataError(f"`min_score` must be a probability from 0 to 1, got {min_score}.")
    if not 0.0 <= min_duration < math.inf:
        raise DataError(f"`min_duration` must be a number of seconds, 0 or more, got {min_duration}.")


def check_output_file(path: str | Path):
    """
    Raise if a timeline cannot be written to a file of this name.

    Raises:
        [`DataError`]: if its ending says no kind that there is.
    """
    if Path(path).suffix.lower() not in FORMATS:
        raise DataError(f"{path} does not end in one of {', '.join(FORMATS)}, by which its kind is known.")


def _check_window_options(window: float, stride: float, batch_size: int, ensemble: str):
    for name, value in (("window", window), ("stride", stride)):
        if not MIN_SECONDS <= value < math.inf:
            raise DataError(f"`{name}` must be a number of seconds, {MIN_SECONDS} or more, got {value}.")
    if isinstance(batch_size, bool) or int(batch_size) != batch_size or batch_size < 1:
        raise DataError(f"`batch_size` must be a whole number of at least 1, got {batch_size}.")
    if ensemble not in ENSEMBLES:
        raise DataError(f"`ensemble` must be one of {ENSEMBLES}, got {ensemble!r}.")


def _progress_bar(duration: float | None, disable: bool) -> tqdm:
    return tqdm(
        desc="Looking",
        total=duration,
        unit=" s of video",
        bar_format=BAR_FORMAT_OF_UNKNOWN if duration is None else BAR_FORMAT,
        disable=disable,
    )
