"""The file of an index: an Arrow table with a row for each window, which is mapped into memory."""

import json
import os
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import torch

from ezclip.errors import DataError
from ezclip.utils.files import flush, replacing


WINDOWS_NAME = "windows.arrow"
FAISS_SUFFIX = ".faiss"  # of the approximate index of a windows file, which its digest names
METADATA_KEY = b"ezclip"
BATCH_ROWS = 2**16  # rows of an Arrow record batch
SCORED_ROWS = 2**12  # rows that are converted to float32 at a time: they stay in the processor's cache


def write_windows(path: Path, videos: Iterable[tuple[str, str, np.ndarray, np.ndarray]], metadata: dict):
    """
    Write the windows of all videos as a whole, see [`WindowsFile`].

    Args:
        path (`Path`):
            The file.
        videos (`Iterable`):
            At least one video: its path, the digest of its content, the start and end of its W windows in seconds
            `(W, 2)`, and their embeddings `(W, D)`, float16.
        metadata (`dict`):
            What [`WindowsFile.metadata`] returns, in types that JSON has.
    """
    videos = iter(videos)
    first = next(videos)
    fields: dict[str, Any] = {"video": pyarrow.string(), "content": pyarrow.string()}
    fields |= {"start": pyarrow.float64(), "end": pyarrow.float64()}
    fields["embeds"] = pyarrow.list_(pyarrow.float16(), first[3].shape[1])
    schema = pyarrow.schema(fields, metadata={METADATA_KEY: json.dumps(metadata)})
    with replacing(path) as temporary:
        with pyarrow.ipc.new_file(os.fspath(temporary), schema) as writer:
            waiting = []
            for video, content, times, embeds in chain([first], videos):
                vectors = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(embeds.ravel()), embeds.shape[1])
                columns = [[video] * len(times), [content] * len(times), times[:, 0], times[:, 1], vectors]
                waiting.append(pyarrow.RecordBatch.from_arrays(list(map(pyarrow.array, columns)), schema=schema))
                if sum(map(len, waiting)) >= BATCH_ROWS:
                    writer.write_table(pyarrow.Table.from_batches(waiting).combine_chunks())
                    waiting.clear()
            if waiting:
                writer.write_table(pyarrow.Table.from_batches(waiting).combine_chunks())
        flush(temporary)


class WindowsFile:
    """
    The windows of an index, mapped into memory.

    A row has `video` (its path in the folder), `content` (the digest of the file), `start` and `end` in seconds, and
    `embeds`, an L2-normalised vector in float16.

    Args:
        path (`Path`):
            The file.

    Raises:
        [`DataError`]: if there is no such file, or it is damaged.
    """

    def __init__(self, path: Path):
        try:
            self.table = pyarrow.ipc.open_file(pyarrow.memory_map(os.fspath(path))).read_all()
            self.metadata = json.loads(self.table.schema.metadata[METADATA_KEY])
            self.dim = self.table.schema.field("embeds").type.list_size
        except FileNotFoundError:
            raise DataError(f"{path.parent} holds no finished index. Make one with `ezclip index`.") from None
        except (pyarrow.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path} is damaged ({error}). Write it again with `ezclip index`.") from error

    def __len__(self) -> int:
        return len(self.table)

    def vectors(self) -> Iterator[torch.Tensor]:
        """Yield the vectors in their order, as float32 `(R, D)` of a few thousand rows each."""
        for chunk in self.table["embeds"].chunks:
            # DLPack shares the memory of the file, and takes no offence that it is read-only.
            matrix = torch.from_dlpack(chunk.flatten()).view(-1, self.dim)
            for rows in matrix.split(SCORED_ROWS):
                yield rows.float()

    def take(self, rows: np.ndarray) -> torch.Tensor:
        """Return the vectors `(R, D)`, float32, of some rows."""
        chosen = self.table["embeds"].take(pyarrow.array(rows)).combine_chunks()
        return torch.from_dlpack(chosen.flatten()).view(-1, self.dim).float()

    def scores(self, query: torch.Tensor) -> np.ndarray:
        """Return the cosine `(N,)`, float32, of each window with a normalised query `(D,)`."""
        scores, at = torch.empty(len(self)), 0
        for rows in self.vectors():
            torch.mv(rows, query, out=scores[at : at + len(rows)])
            at += len(rows)
        return scores.numpy()

    def row(self, number: int) -> dict[str, Any]:
        """Return `video`, `start` and `end` of a window."""
        return {name: self.table[name][number].as_py() for name in ("video", "start", "end")}

    def contents(self) -> dict[str, str]:
        """Return the digest of the content of each video, by its path."""
        pairs = self.table.group_by(["video", "content"]).aggregate([]).to_pylist()
        return {pair["video"]: pair["content"] for pair in pairs}
