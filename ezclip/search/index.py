"""Search an index: with a text or a clip as the query, exactly or with FAISS."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ezclip.data.isolated_reader import IsolatedReader
from ezclip.errors import DataError, ModelError
from ezclip.search.building import check_comparable, describe_contents, embed_frames
from ezclip.search.faiss_engine import FaissEngine
from ezclip.search.hits import GROWTH, Hit, merge_overlaps
from ezclip.search.windows_file import FAISS_SUFFIX, WINDOWS_NAME, WindowsFile
from ezclip.systems.loading import load_classifier
from ezclip.utils.settings import find_differences
from pipeline_ezclip import ClassBank
from video_ezclip import DEFAULT_LIMITS, ReadLimits


ENGINES = ("exact", "faiss")


class VideoIndex:
    """
    An index of the windows of many videos, see [`build_index`].

    Args:
        path (`str` or `Path`):
            The folder of the index.
        classifier ([`ZeroShotVideoClassificationPipeline`], *optional*):
            The model of the index and its processor. By default they are loaded by their recorded name for the first
            query.
        model_name_or_path (`str`, *optional*):
            Where they are now, if not at the recorded name.
        device (`str`, *optional*):
            The device to load them on. Defaults to a GPU if there is one.

    Raises:
        [`DataError`]: if there is no finished index, or it is damaged.
    """

    def __init__(
        self,
        path: str | Path,
        classifier=None,
        model_name_or_path: str | None = None,
        device: str | None = None,
    ):
        self.path, self.device = Path(path), device
        self.windows = WindowsFile(self.path / WINDOWS_NAME)
        self.settings = self.windows.metadata
        self.model_name_or_path = model_name_or_path or self.settings["model_name_or_path"]
        self._given = classifier

    @classmethod
    def open(cls, path: str | Path, **options) -> "VideoIndex":
        """Open the index at `path`. `options` are those of the class."""
        return cls(path, **options)

    def __len__(self) -> int:
        """Return the number of windows."""
        return len(self.windows)

    @property
    def videos(self) -> list[str]:
        """Return the paths of the videos in the indexed folder, sorted."""
        return sorted(self.windows.contents())

    @property
    def folder(self) -> Path:
        """Return the folder of the videos, as it was when they were indexed."""
        return Path(self.settings["folder"])

    @cached_property
    def classifier(self) -> Any:
        """
        Return the model of the index with its processor, after a check by content.

        Raises:
            [`ModelError`]: if it cannot be loaded, or made other embeddings than these.
        """
        name, settings = self.model_name_or_path, self.settings
        engine = settings.get("engine")  # indexes of version 0.2 have none
        try:
            classifier = self._given or load_classifier(
                name,
                num_frames=settings["num_frames"],
                device=self.device,
                dtype=None if engine else settings["dtype"],
                engine=engine,
            )
        except ModelError as error:
            raise ModelError(
                f"The model of {self.path}: {error} If it is elsewhere, give --model_name_or_path."
            ) from error
        made_with = settings["made_with"]
        now = describe_contents(classifier)
        if changes := find_differences({name: made_with.get(name) for name in now}, now):
            raise ModelError(
                f"{self.path} was made with another model than {classifier.model.name_or_path}. Changed: "
                f"{'; '.join(list(changes.values())[:5])}. Give the one that made it as --model_name_or_path, or make "
                "the index anew: `ezclip index` with --overwrite_output_dir."
            )
        check_comparable(classifier.model)
        return classifier

    def search(
        self,
        text: str | None = None,
        top_k: int = 10,
        *,
        video=None,
        templates: str | Sequence[str] = "{}",
        per_video: int | None = None,
        engine: str = "exact",
        limits: ReadLimits = DEFAULT_LIMITS,
        video_timeout: float = 60.0,
    ) -> list[Hit]:
        """
        Return the windows that fit a text or a clip best, best first.

        Windows of one video that share time are one hit: the best of them.

        Args:
            text (`str`, *optional*):
                What to look for.
            top_k (`int`, *optional*, defaults to 10):
                Number of hits.
            video (*optional*):
                A clip to look for instead, in any form that [`read_frames`] takes. Its frames are sampled over all of
                it.
            templates (`str` or `Sequence[str]`, *optional*, defaults to `"{}"`):
                Sentences with `{}` for the text. The mean of their embeddings is the query.
            per_video (`int`, *optional*):
                Largest number of hits of a video.
            engine (`str`, *optional*, defaults to `"exact"`):
                `"exact"` compares the query with every window. `"faiss"` looks at a part of millions of windows, and
                may miss some; see [`FaissEngine`].
            limits ([`ReadLimits`], *optional*), video_timeout (`float`, *optional*, defaults to 60):
                What reading the clip may take; see [`IsolatedReader`].

        Returns:
            `list[Hit]`: fewer than `top_k` if there are no more windows.

        Raises:
            [`DataError`]: if an argument is out of range. [`ModelError`]: see `classifier`. [`VideoReadError`]: if the
            clip cannot be read. `ImportError`: if FAISS is missing.
        """
        if (text is None) == (video is None):
            raise DataError("Give either a text or a video to look for.")
        for name, value in (("top_k", top_k), ("per_video", 1 if per_video is None else per_video)):
            if value < 1:
                raise DataError(f"`{name}` must be at least 1, got {value}.")
        if engine not in ENGINES:
            raise DataError(f"`engine` must be one of {ENGINES}, got {engine!r}.")
        if text is not None:
            query = self.embed_text(text, templates)
        else:
            query = self.embed_video(video, limits, video_timeout)
        rank = self._faiss.rank if engine == "faiss" else self._rank
        size, hits = top_k * GROWTH, []
        for scores, rows in rank(query, size):
            hits = merge_overlaps(self._hits(scores, rows), top_k, per_video)
            if len(hits) == top_k:
                break
        return hits

    @torch.no_grad()
    def embed_text(self, text: str, templates: str | Sequence[str] = "{}") -> torch.Tensor:
        """Return the L2-normalised query `(D,)`, float32, of a text; see [`~VideoIndex.search`]."""
        if not text.strip():
            raise DataError("The text to look for must not be blank.")
        model, processor = self.classifier.model, self.classifier.processor
        processor.check_labels([text])
        bank = ClassBank.build(model, processor, [text], templates, {text: text})
        return torch.nn.functional.normalize(bank.prompt_embeds("embedding")[0, 0], dim=-1).cpu()

    @torch.no_grad()
    def embed_video(self, video, limits: ReadLimits = DEFAULT_LIMITS, video_timeout: float = 60.0) -> torch.Tensor:
        """Return the L2-normalised query `(D,)`, float32, of a clip; see [`~VideoIndex.search`]."""
        model, processor = self.classifier.model, self.classifier.processor
        with IsolatedReader(video_timeout, limits=limits) as read:
            frames, _ = processor.read_clip(video, processor.get_sampler(), read=read)
        return embed_frames(model, processor, torch.from_numpy(frames)[None].to(model.device))[0].cpu()

    @cached_property
    def _faiss(self) -> FaissEngine:
        return FaissEngine(self.windows, self.path / f"{self.settings['digest']}{FAISS_SUFFIX}")

    def _rank(self, query: torch.Tensor, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield scores and rows of the best windows, best first: `size` of them, and more and more the next times."""
        scores = self.windows.scores(query)
        while True:
            size = min(size, len(scores))
            rows = np.argpartition(-scores, size - 1)[:size]
            rows = rows[np.lexsort((rows, -scores[rows]))]
            yield scores[rows], rows
            if size == len(scores):
                return
            size *= GROWTH

    def _hits(self, scores: np.ndarray, rows: np.ndarray) -> Iterator[Hit]:
        for score, row in zip(scores.tolist(), rows.tolist()):
            yield Hit(**self.windows.row(row), score=score)
