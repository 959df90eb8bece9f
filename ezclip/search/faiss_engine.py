"""Search millions of windows with FAISS (Douze et al., "The Faiss library")."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from ezclip.errors import DataError
from ezclip.search.hits import GROWTH
from ezclip.search.windows_file import WindowsFile
from ezclip.utils.files import replacing


MIN_LISTED_ROWS = 50_000  # fewer rows are compared one by one
TRAINING_ROWS = 40  # for each list
PROBED_SHARE = 1 / 32  # of the lists


class FaissEngine:
    """
    An inverted file of the windows of an index, in FAISS.

    sqrt(N) lists hold the N vectors in float16, and a query reads the nearest 1/32 of them. The file is made
    for the first query, and mapped into memory. An index of fewer than 50,000 windows has no lists: its answers are
    exact.

    Args:
        windows ([`WindowsFile`]):
            The windows.
        path (`Path`):
            The file. Its name says which windows it is of.

    Raises:
        `ImportError`: if FAISS is missing. [`DataError`]: if the file cannot be written or read.
    """

    def __init__(self, windows: WindowsFile, path: Path):
        try:
            import faiss
        except ImportError as error:
            raise ImportError('--engine faiss needs FAISS: `pip install "ezclip[faiss]"`.') from error
        try:
            if not path.exists():
                with replacing(path) as temporary:
                    faiss.write_index(_make(faiss, windows), os.fspath(temporary))
            self.index = faiss.read_index(os.fspath(path), faiss.IO_FLAG_MMAP)
        except (OSError, RuntimeError) as error:
            raise DataError(
                f"{path} cannot be written or read ({error}). Remove it, or use --engine exact."
            ) from error
        if hasattr(self.index, "nlist"):
            self.index.nprobe = math.ceil(self.index.nlist * PROBED_SHARE)

    def rank(self, query: torch.Tensor, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield scores and rows of the best windows that are found, best first: `size` of them, and then more."""
        while True:
            scores, rows = (values[0] for values in self.index.search(query.numpy()[None], min(size, len(self))))
            is_found = rows >= 0
            yield scores[is_found], rows[is_found]
            if is_found.sum() < size or size >= len(self):
                return
            size *= GROWTH

    def __len__(self) -> int:
        return self.index.ntotal


def _make(faiss, windows: WindowsFile):
    number = len(windows)
    if number < MIN_LISTED_ROWS:
        index = faiss.index_factory(windows.dim, "SQfp16", faiss.METRIC_INNER_PRODUCT)
    else:
        num_lists = round(math.sqrt(number))
        index = faiss.index_factory(windows.dim, f"IVF{num_lists},SQfp16", faiss.METRIC_INNER_PRODUCT)
        rows = np.random.default_rng(0).permutation(number)[: TRAINING_ROWS * num_lists]
        index.train(windows.take(np.sort(rows)).numpy())
    for vectors in windows.vectors():
        index.add(vectors.numpy())
    return index
