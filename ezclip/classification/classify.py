"""Classify many videos with any labels, and keep their embeddings."""

import contextlib
import os
import queue
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ezclip.classification.answers import VideoAnswer
from ezclip.classification.embedding_cache import EmbeddingCache, digest_video
from ezclip.data.isolated_reader import IsolatedReader
from ezclip.data.reading_ahead import map_ahead
from ezclip.evaluation.predictions import check_finite
from pipeline_ezclip import CLASS_OPTIONS, ClassBank, choose_scoring, embed_videos, score_embeds
from video_ezclip import (
    DEFAULT_LIMITS,
    ReadLimits,
    VideoReadError,
    describe_video,
    is_url,
    local_path,
    open_url,
)


@torch.no_grad()
def classify_videos(
    classifier,
    videos: str | os.PathLike | Iterable[str | os.PathLike],
    candidate_labels: str | Sequence[str] | None = None,
    *,
    top_k: int | None = None,
    min_score: float | None = None,
    function_to_apply: str | None = None,
    calibration=None,
    start: float | None = None,
    end: float | None = None,
    allow_partial: bool | None = None,
    limits: ReadLimits | None = None,
    video_timeout: float = 60.0,
    cache_dir: str | Path | None = None,
    num_workers: int = 1,
    **class_options,
) -> Iterator[VideoAnswer]:
    r"""
    Classify videos one after the other, each as the pipeline does, and go on after a video that cannot be read.

    Options that are left out are the pipeline's own. Videos are decoded in child processes, ahead of the model. With
    `cache_dir`, the embedding of a video is kept by the content of its file, so that the next call with other labels
    does not decode it again.

    Args:
        classifier ([`ZeroShotVideoClassificationPipeline`]):
            The pipeline.
        videos (`str`, `os.PathLike` or an iterable of them):
            One or many video files, folders of frame images, or URLs; see [`find_videos`] for folders of videos.
        candidate_labels (`str` or `Sequence[str]`, *optional*):
            Class names; one string is split at its commas. Defaults to the classes of the pipeline.
        top_k (`int`, *optional*):
            Number of labels for each video.
        min_score (`float`, *optional*), function_to_apply (`str`, *optional*), calibration (*optional*):
            See the pipeline. A video whose labels all score below `min_score` has the answer `None`.
        start (`float`, *optional*), end (`float`, *optional*):
            The part of each video to look at, in seconds.
        allow_partial (`bool`, *optional*):
            Whether to use the readable part of a damaged video.
        limits ([`ReadLimits`], *optional*):
            What reading may take, and where it may reach.
        video_timeout (`float`, *optional*, defaults to 60):
            Seconds after which a video counts as unreadable.
        cache_dir (`str` or `Path`, *optional*):
            Folder of the embeddings, see [`EmbeddingCache`]. Playlists, see [`ReadLimits`], cannot be kept.
        num_workers (`int`, *optional*, defaults to 1):
            Number of child processes that decode; see [`plan_machine`].
        class_options:
            Other arguments of the pipeline that choose the classes: `hypothesis_template`, `descriptions`,
            `background_labels`, `class_bank`, …

    Yields:
        [`VideoAnswer`]: one for each video, in their order.

    Raises:
        `ValueError`: if there are no classes, or an argument is out of range. `TypeError`: if an argument is unknown.
        [`ModelError`]: if an embedding is not finite. [`DataError`]: if the cache cannot be written.

    Example:

    ```python
    >>> from ezclip import classify_videos, find_videos

    >>> for answer in classify_videos(classifier, find_videos(["holiday"]), "surfing, cooking", cache_dir="cache"):
    ...     print(answer.video, answer.error or answer.predictions[0])
    ```
    """
    if unknown := sorted(set(class_options) - set(CLASS_OPTIONS)):
        raise TypeError(f"{unknown} are no arguments of `classify_videos`.")
    if candidate_labels is not None:
        class_options["candidate_labels"] = candidate_labels
    bank = classifier.class_choice.choose({name: value for name, value in class_options.items() if value is not None})
    given = {"start": start, "end": end, "allow_partial": allow_partial, "limits": limits}
    given |= {"min_score": min_score, "function_to_apply": function_to_apply, "calibration": calibration}
    reading, scores_of, answering = classifier.merge_defaults(top_k=top_k, **given)
    scores_of.pop("on_error", None)  # an unreadable video is always answered
    function_and_calibration = (scores_of.pop(name, None) for name in ("function_to_apply", "calibration"))
    scoring = choose_scoring(classifier.model, *function_and_calibration)
    read_limits: ReadLimits = reading.pop("limits", DEFAULT_LIMITS)
    if cache_dir is not None and read_limits.allow_playlists:
        raise ValueError(
            "`cache_dir` and `allow_playlists` exclude each other: embeddings are kept by the content of a file, and "
            "that of a playlist says nothing about the videos that it names. Leave one of them out."
        )
    cache = None
    if cache_dir is not None:
        of_frames = {"compares_frames": True} if bank.compares_frames else {}
        cache = EmbeddingCache(cache_dir, classifier.model, classifier.processor, **reading, **of_frames)
    views = {name: reading.pop(name) for name in ("num_frames", "num_clips", "num_crops") if name in reading}
    with contextlib.ExitStack() as stack:
        readers = [IsolatedReader(video_timeout, limits=read_limits, **reading) for _ in range(num_workers)]
        idle: queue.SimpleQueue[IsolatedReader] = queue.SimpleQueue()
        for reader in readers:
            idle.put(stack.enter_context(reader))

        def read_one(video: str | os.PathLike) -> _Content:
            read = idle.get()
            try:
                return _read(classifier.processor, os.fspath(video), read, read_limits, cache, **views)
            finally:
                idle.put(read)

        def stop():
            for reader in readers:
                reader.close()

        all_videos = [videos] if isinstance(videos, (str, os.PathLike)) else videos
        contents = stack.enter_context(contextlib.closing(map_ahead(read_one, all_videos, num_workers, stop)))
        for video, content in contents:
            name = describe_video(video)
            try:
                embeds, problem, is_kept = _embed(classifier, bank, content.result(), cache)
            except VideoReadError as error:
                yield VideoAnswer(name, error=f"{error.reason} {error.remedy}")
                continue
            scores = score_embeds(classifier.model, bank, embeds, scoring=scoring, **scores_of).mean(dim=0)
            outputs = {"scores": scores.cpu()[None], "error": None}
            yield VideoAnswer(name, classifier.postprocess(outputs, bank, **answering), None, problem, is_kept)


@dataclass
class _Content:
    """What was read of a video: its frames, or the embeddings that were kept before."""

    source: str | bytes
    key: str = ""
    found: tuple[dict[str, torch.Tensor], str | None] | None = None
    frames: np.ndarray | None = None
    problem: str | None = None


def _read(
    processor: Any,
    video: str,
    read: IsolatedReader,
    limits: ReadLimits,
    cache: EmbeddingCache | None,
    num_frames: int | None = None,
    num_clips: int = 1,
    num_crops: int = 1,
) -> _Content:
    """Find the embeddings of a video, or read its frames."""
    source, key = video, ""
    if cache is not None:
        if is_url(local_path(video)):
            with open_url(video, describe_video(video), limits) as remote:
                source = remote.read_all()
        key = digest_video(source)
        if (found := cache.find(key)) is not None:
            return _Content(source, key, found)
    sample = processor.get_sampler(num_frames, num_clips)
    content = {"path": video, "bytes": source} if isinstance(source, bytes) else source
    frames, metadata = processor.read_clip(content, sample, num_clips, num_crops, read=read)
    return _Content(source, key, None, frames, metadata.problem)


def _embed(
    classifier, bank: ClassBank, content: _Content, cache: EmbeddingCache | None
) -> tuple[torch.Tensor, str | None, bool]:
    """Return the embeddings `(V, …)` of a video, why it was read in part, and whether they were kept before."""
    found = content.found
    if found is None and cache is not None:
        found = cache.find(content.key)  # kept while this copy was read
    if found is not None:
        tensors, problem = found
        return tensors["video_embeds"].to(classifier.device), problem, True
    frames = torch.from_numpy(content.frames).to(classifier.device)
    pixels = classifier.processor.normalize(frames).to(classifier.dtype)
    pixels = pixels.view(-1, *pixels.shape[-4:])  # (V, T, 3, H, W)
    embeds = embed_videos(classifier.model, bank, pixels).float()
    check_finite(embeds, classifier.dtype)
    # A file, not downloaded bytes, may be written or replaced while it is read.
    source, key = content.source, content.key
    if cache is not None and (isinstance(source, bytes) or digest_video(source) == key):
        cache.keep(key, {"video_embeds": embeds}, content.problem)
    return embeds, content.problem, False
