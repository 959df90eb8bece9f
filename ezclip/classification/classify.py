"""Classify many videos with any labels, and keep their embeddings."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch

from ezclip.classification.answers import VideoAnswer
from ezclip.classification.embedding_cache import EmbeddingCache, digest_video
from ezclip.data.isolated_reader import IsolatedReader
from ezclip.errors import ModelError
from pipeline_ezclip import CLASS_OPTIONS, ClassBank
from video_ezclip import DEFAULT_LIMITS, ReadLimits, VideoReadError, describe_video, is_url, local_path, open_url


@torch.no_grad()
def classify_videos(
    classifier,
    videos: Iterable[str | os.PathLike],
    candidate_labels: str | Sequence[str] | None = None,
    *,
    top_k: int | None = None,
    start: float | None = None,
    end: float | None = None,
    allow_partial: bool = False,
    limits: ReadLimits = DEFAULT_LIMITS,
    video_timeout: float = 60.0,
    cache_dir: str | Path | None = None,
    **class_options,
) -> Iterator[VideoAnswer]:
    r"""
    Classify videos one after the other, each as the pipeline does, and go on after a video that cannot be read.

    Videos are decoded in a child process. With `cache_dir`, the embedding of a video is kept by the content of its
    file, so that the next call with other labels does not decode it again.

    Args:
        classifier ([`ZeroShotVideoClassificationPipeline`]):
            The pipeline.
        videos (`Iterable[str | os.PathLike]`):
            Video files, folders of frame images, or URLs; see [`find_videos`] for folders of videos.
        candidate_labels (`str` or `Sequence[str]`, *optional*):
            Class names; one string is split at its commas. Defaults to the classes of the pipeline.
        top_k (`int`, *optional*):
            Number of labels for each video. Defaults to all.
        start (`float`, *optional*), end (`float`, *optional*):
            The part of each video to look at, in seconds.
        allow_partial (`bool`, *optional*, defaults to `False`):
            Whether to use the readable part of a damaged video.
        limits ([`ReadLimits`], *optional*):
            What reading may take, and where it may reach.
        video_timeout (`float`, *optional*, defaults to 60):
            Seconds after which a video counts as unreadable.
        cache_dir (`str` or `Path`, *optional*):
            Folder of the embeddings, see [`EmbeddingCache`].
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
    options = {"start": start, "end": end, "allow_partial": allow_partial}
    cache = None
    if cache_dir is not None:
        cache = EmbeddingCache(cache_dir, classifier.model, classifier.processor, **options)
    with IsolatedReader(video_timeout, limits=limits, **options) as read:
        for video in videos:
            name = describe_video(video)
            try:
                embeds, problem, is_kept = _embed(classifier, os.fspath(video), name, read, limits, cache)
            except VideoReadError as error:
                yield VideoAnswer(name, error=f"{error.reason} {error.remedy}")
                continue
            yield VideoAnswer(name, _predict(classifier, bank, embeds, top_k), None, problem, is_kept)


def _embed(
    classifier, video: str, name: str, read: IsolatedReader, limits: ReadLimits, cache: EmbeddingCache | None
) -> tuple[torch.Tensor, str | None, bool]:
    """Return the embeddings `(1, D)` of a video, why it was read in part, and whether they were kept before."""
    content, key = video, None
    if cache is not None:
        if is_url(local_path(video)):
            with open_url(video, name, limits) as remote:
                downloaded = remote.read_all()
            content, key = {"path": video, "bytes": downloaded}, digest_video(downloaded)
        else:
            key = digest_video(video)
        if (found := cache.find(key)) is not None:
            return found[0].to(classifier.device), found[1], True
    processor = classifier.processor
    frames, metadata = processor.read_clip(content, processor.get_sampler(), read=read)
    pixels = processor.normalize(torch.from_numpy(frames)[None].to(classifier.device)).to(classifier.dtype)
    embeds = classifier.model.get_video_features(pixels, output_last_hidden_state=False).pooler_output.float()
    if not embeds.isfinite().all():
        raise ModelError(
            "The embeddings must be finite numbers, got NaN or infinity. The weights are damaged, or too large for "
            f"{classifier.dtype}. Use other weights, or float32."
        )
    if cache is not None and key is not None:
        cache.keep(key, embeds, metadata.problem)
    return embeds, metadata.problem, False


def _predict(classifier, bank: ClassBank, embeds: torch.Tensor, top_k: int | None) -> list[dict]:
    scores = bank.probabilities(embeds).mean(dim=0, keepdim=True).cpu()
    return classifier.postprocess({"scores": scores, "error": None}, bank, top_k)
