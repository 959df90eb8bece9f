"""Predict data of any size on several processes or nodes, and resume after an interruption."""

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from ezclip.constants import UNKNOWN_LABEL
from ezclip.data.dataset import ReadReport, VideoDataset, make_loader
from ezclip.data.identity import describe_shard
from ezclip.data.sources import VideoSplit
from ezclip.data.streaming import StreamedVideos, VideoRow
from ezclip.encoders import DualEncoder
from ezclip.errors import DataError
from ezclip.evaluation.identity import describe_model, describe_result
from ezclip.evaluation.prediction_files import PredictionCounts, PredictionFolder, Progress
from ezclip.evaluation.predictions import view_probabilities
from ezclip.utils.memory import return_freed_memory
from ezclip.utils.messages import say
from ezclip.utils.processes import Processes
from ezclip.utils.ray_stages import RayStages
from ezclip.utils.tables import count_of
from pipeline_ezclip import ClassBank, Scoring, best_labels
from processing_ezclip import EZClipProcessor
from video_ezclip import read_frames


@torch.no_grad()
def predict_shards(
    model: DualEncoder,
    bank: ClassBank,
    source: VideoSplit | StreamedVideos,
    processor: EZClipProcessor,
    output_dir: str | Path,
    settings: dict,
    accelerator: Accelerator | None = None,
    *,
    batch_size: int = 8,
    num_workers: int = 0,
    ensemble: str = "probability",
    top_k: int = 5,
    min_score: float = 0.0,
    scoring: Scoring | None = None,
    part_size: int = 256,
    strict: bool = False,
    overwrite: bool = False,
    num_clips: int = 1,
    num_crops: int = 1,
    read: Callable = read_frames,
    cluster: RayStages | None = None,
) -> PredictionCounts:
    """
    Predict all videos of a source into the [`PredictionFolder`] of `output_dir`, and resume an earlier run.

    Each shard of the source is cut into parts of `part_size` videos. Parts and batches do not depend on the number of
    processes or on interruptions, and neither do the scores. Processes share the incomplete shards. If there are fewer
    shards than processes, several processes share the parts of a shard, and each reads through the shard. At the end
    the main process writes `predictions.jsonl` and the lists of bad and partial videos.

    Args:
        model ([`VideoTextEncoder`]):
            The model. It is put in evaluation mode.
        bank ([`ClassBank`]):
            The classes.
        source ([`VideoSplit`] or [`StreamedVideos`]):
            The videos. A split is one shard.
        processor ([`EZClipProcessor`]):
            Samples, crops and normalises frames.
        output_dir (`str` or `Path`):
            The output folder. All processes and nodes must share it.
        settings (`dict`):
            Everything else that decides the scores: the texts of the classes. A run resumes only with equal settings.
            What the arguments of this function say is added, see [`describe_result`], except `batch_size`,
            `num_workers` and `strict`: a run that ran out of memory may resume with smaller batches, which change
            scores by rounding only.
        accelerator (`Accelerator`, *optional*):
            The processes that share the work.
        batch_size (`int`, *optional*, defaults to 8):
            Videos of a batch on each process.
        num_workers (`int`, *optional*, defaults to 0):
            Number of decoding processes for each process.
        ensemble (`str`, *optional*, defaults to `"probability"`):
            See [`~ClassBank.probabilities`].
        top_k (`int`, *optional*, defaults to 5):
            Number of labels to write for each video.
        min_score (`float`, *optional*, defaults to 0):
            Lowest score to write. A video without such a label has one prediction, whose label is null.
        scoring ([`Scoring`], *optional*):
            See [`predict`]. `settings` must say what it is.
        part_size (`int`, *optional*, defaults to 256):
            Videos of a part. An interrupted process loses one part at most.
        strict (`bool`, *optional*, defaults to `False`):
            Whether the first unreadable video ends the run.
        overwrite (`bool`, *optional*, defaults to `False`):
            Whether to start anew. The results of earlier runs are replaced at the end.
        num_clips (`int`, *optional*, defaults to 1), num_crops (`int`, *optional*, defaults to 1):
            Views of a video, see [`EZClipProcessor`]. Their mean is written.
        read (`Callable`, *optional*):
            Reads frames like [`read_frames`], the default, or [`IsolatedReader`].
        cluster ([`RayStages`], *optional*):
            Decodes and embeds the batches of a [`VideoSplit`], instead of this process. The files are the same.

    Returns:
        [`PredictionCounts`], on all processes.

    Raises:
        [`DataError`]: if the folder was written with other settings, cannot be written, or the source or all of its
        videos cannot be read. [`VideoReadError`]: with `strict`, for the first unreadable video.
    """
    accelerator = accelerator or Accelerator()
    if cluster is not None and (isinstance(source, StreamedVideos) or accelerator.num_processes > 1):
        raise DataError(
            "Ray predicts files and lists of videos from one process: leave the launcher and streaming out."
        )
    shards = _SplitShards(source) if isinstance(source, VideoSplit) else source
    folder = PredictionFolder(output_dir, part_size, partial(describe_shard, source))
    processes = Processes(accelerator)
    model = accelerator.unwrap_model(model).to(accelerator.device).eval()

    def begin() -> Progress:
        used = {**settings, "class_names": bank.labels, "ensemble": ensemble, "top_k": top_k}
        used |= {"num_clips": num_clips, "num_crops": num_crops, "mixed_precision": accelerator.mixed_precision}
        used |= {"part_size": part_size, "num_shards": shards.num_shards}
        result = describe_result(describe_model(model), processor, read, {"prediction": source}, **used)
        return folder.begin(result, overwrite)

    progress = processes.share(begin)
    folder.path = progress.path
    reader = _RowReader(processor, num_clips=num_clips, num_crops=num_crops, read=read)
    work = _deal(progress, shards.num_shards, accelerator.num_processes, accelerator.process_index)
    batches = _Batches(shards, work, folder, batch_size)
    score = _Scorer(model, bank, processor, ensemble, scoring, accelerator.mixed_precision, accelerator)
    if cluster is None:
        results = (result for inputs in _load(reader, batches, num_workers) for result in score(inputs))
    else:
        results = _score_on_cluster(cluster, batches, reader, score)
    rows, report = [], ReadReport()
    with _progress_bar(shards.num_videos, progress.num_videos, accelerator) as bar:
        for inputs, scores in results:
            batch = batches.drawn.popleft()
            report.take(inputs, strict)
            answers = [best_labels(bank.labels, row, top_k, min_score) for row in scores]
            rows += [_as_row(*item, report) for item in zip(batch.positions, batch.rows, answers)]
            if batch.ends_part:
                folder.write_part(batch.shard, batch.part, rows, batch.ends_shard)
                rows, report = [], ReadReport()
            bar.update(len(batch.rows))
    processes.wait()
    return processes.share(lambda: _end(folder, shards.num_shards, strict))


@dataclass
class _Scorer:
    """Scores batches, in this process or, as a copy, in a worker of a cluster."""

    model: DualEncoder
    bank: ClassBank
    processor: EZClipProcessor
    ensemble: str
    scoring: Scoring | None
    mixed_precision: str
    accelerator: Accelerator | None

    def __call__(self, inputs: dict) -> Iterator[tuple[dict, np.ndarray]]:
        """Yield a batch without its frames, and the scores `(B, C)` of its videos."""
        assert self.accelerator is not None
        views = inputs.pop("frames").to(self.accelerator.device, non_blocking=True)
        views = self.processor.normalize(views)
        scores = view_probabilities(self.model, self.bank, views, self.ensemble, self.accelerator, self.scoring)
        yield inputs, scores.cpu().numpy()

    def on_worker(self, has_no_gpu: bool) -> "_Scorer":
        """Return a copy for the devices of the calling process."""
        accelerator = Accelerator(cpu=has_no_gpu, mixed_precision=self.mixed_precision)
        return replace(self, model=self.model.to(accelerator.device).eval(), accelerator=accelerator)


@dataclass
class _BatchReader:
    """Reads the batches of a split in a worker of a cluster."""

    shards: "_SplitShards"
    reader: "_RowReader"

    def __call__(self, positions: range) -> Iterator[dict]:
        """Yield the batch of the videos at `positions`."""
        keys = [(position, self.shards.row(position).video) for position in positions]
        yield from _load(self.reader, [keys])

    def on_worker(self, _: bool) -> "_BatchReader":
        """Return it for the calling process."""
        return_freed_memory()
        return self


def _score_on_cluster(
    cluster: RayStages, batches: "_Batches", reader: "_RowReader", score: _Scorer
) -> Iterator[tuple[dict, np.ndarray]]:
    """Yield what a [`_Scorer`] yields, for all batches in their order."""
    for _ in batches:
        pass  # each is in `drawn` now, without content
    items, num_parts = [batch.positions for batch in batches.drawn], sum(batch.ends_part for batch in batches.drawn)
    videos = count_of(sum(map(len, items)))
    say(f"Ray: {videos}, {count_of(num_parts, 'part')}; {cluster.plan}.", flush=True)
    copied = replace(score, model=score.model.cpu(), bank=score.bank.to(torch.device("cpu")), accelerator=None)
    return cluster.run(items, _BatchReader(batches.shards, reader).on_worker, copied.on_worker)


def _end(folder: PredictionFolder, num_shards: int, strict: bool) -> PredictionCounts:
    counts = folder.merge(num_shards, strict)
    if 0 < counts.num_videos == counts.num_bad_videos:
        path = folder.output_dir / "bad_videos.jsonl"
        with open(path, encoding="utf-8") as file:
            first = json.loads(file.readline())
        raise DataError(
            f"None of the {counts.num_videos} videos could be read, see {path}; the first: {first['video']}: "
            f"{first['reason']}"
        )
    return counts


def first_videos(source: VideoSplit | StreamedVideos) -> Iterator[Any]:
    """Yield the videos of the first shard of a source."""
    reader = (_SplitShards(source) if isinstance(source, VideoSplit) else source).open_shard(0)
    for position in count():
        if not reader.has(position):
            break
        yield reader.row(position).video


class _SplitShards:
    """A split as a source of one shard."""

    num_shards = 1

    def __init__(self, split: VideoSplit):
        self.split, self.num_videos = split, len(split)

    def open_shard(self, shard: int) -> "_SplitShards":
        """Open a shard."""
        return self

    def has(self, position: int) -> bool:
        """Return whether the shard has a row at `position`."""
        return position < self.num_videos

    def row(self, position: int) -> VideoRow:
        """Return the row at `position`."""
        row, class_names = self.split.videos[position], self.split.class_names
        is_known = class_names is not None and row["label"] != UNKNOWN_LABEL
        return VideoRow(row["video"], row["name"], class_names[row["label"]] if is_known else None)


class _RowReader(torch.utils.data.Dataset):
    """A dataset whose keys are (position, video), not indices as of a [`VideoDataset`]."""

    def __init__(self, processor: EZClipProcessor, **kwargs):
        self.processor, self.kwargs = processor, kwargs

    def __getitem__(self, key: tuple[int, Any]) -> dict:
        position, video = key
        row = {"video": video, "label": UNKNOWN_LABEL}
        item = VideoDataset(VideoSplit([row], None), self.processor, **self.kwargs)[0]
        reports = {kind: [(position, what) for _, what in item[kind]] for kind in ("bad_videos", "partial_videos")}
        return {**item, "index": position, **reports}


def _load(reader: Any, batches: Iterable[list[tuple[int, Any]]], num_workers: int = 0) -> Iterable[dict]:
    """Return the loader of batches, each a list of keys of a [`_RowReader`]."""
    return make_loader(reader, 1, num_workers, batch_sampler=batches)


@dataclass
class _Batch:
    """Videos that are predicted together: their rows, without content, and whether they end a part or shard."""

    shard: int
    part: int
    positions: range
    rows: list[VideoRow]
    ends_part: bool
    ends_shard: bool


class _Batches:
    """
    Batches of a process as keys for a [`_RowReader`], in the order of its work.

    A loader draws batches ahead. `drawn` holds those that it has not returned yet. One loader reads all parts, so its
    workers do not pause between parts.
    """

    def __init__(self, shards, work: Iterator[tuple[int, Iterator[int]]], folder: PredictionFolder, batch_size: int):
        self.shards, self.work, self.folder, self.batch_size = shards, work, folder, batch_size
        self.drawn: deque[_Batch] = deque()

    def __iter__(self) -> Iterator[list[tuple[int, Any]]]:
        for shard, parts in self.work:
            reader = self.shards.open_shard(shard)
            for part in parts:
                position = part * self.folder.part_size
                if not reader.has(position):
                    if part == 0:  # an empty shard is complete too
                        self.folder.write_part(shard, part, [], is_last=True)
                    break
                yield from self._cut_part(reader, shard, part, position)

    def _cut_part(self, reader, shard: int, part: int, start: int) -> Iterator[list[tuple[int, Any]]]:
        stop, ends_part = start + self.folder.part_size, False
        while not ends_part:
            rows = []
            for position in range(start, min(start + self.batch_size, stop)):
                if not reader.has(position):
                    break
                rows.append(reader.row(position))
            positions = range(start, start + len(rows))
            ends_shard = not reader.has(positions.stop)
            ends_part = ends_shard or positions.stop == stop
            kept = [row._replace(video=None) for row in rows]
            self.drawn.append(_Batch(shard, part, positions, kept, ends_part, ends_shard))
            yield [(position, row.video) for position, row in zip(positions, rows)]
            start = positions.stop


def _deal(
    progress: Progress, num_shards: int, num_processes: int, process_index: int
) -> Iterator[tuple[int, Iterator[int]]]:
    """
    Yield the work of a process: shards, each with the numbers of the parts to predict.

    Each process reads whole shards while there are enough. Otherwise it reads every n-th part of a shard. A shard of
    unknown length has endless numbers.
    """
    open_shards = [shard for shard in range(num_shards) if not progress.is_complete(shard)]
    if not open_shards:
        return
    group = process_index % len(open_shards)
    place, size = process_index // len(open_shards), len(range(group, num_processes, len(open_shards)))
    for shard in open_shards[group::num_processes]:
        numbers = range(progress.ends[shard]) if shard in progress.ends else count()
        written = progress.parts.get(shard, ())
        missing = (part for part in numbers if part not in written)
        yield shard, islice(missing, place, None, size)


def _progress_bar(num_videos: int | None, num_done: int, accelerator: Accelerator) -> tqdm:
    """Make a progress bar for one process. All processes have about the same number of videos."""
    num_processes = accelerator.num_processes
    return tqdm(
        desc="Predicting" if num_processes == 1 else f"Predicting (1 of {num_processes} processes)",
        unit="video",
        total=None if num_videos is None else -(-num_videos // num_processes),
        initial=num_done // num_processes,
        disable=not accelerator.is_local_main_process,
    )


def _as_row(position: int, row: VideoRow, predictions: list[dict] | None, report: ReadReport) -> dict:
    """Return a row of the Parquet files."""
    if (error := report.bad_videos.get(position)) is not None:
        predictions, problem = None, f"{error.reason} {error.remedy}"
    else:
        problem = report.partial_videos.get(position)
    return {"row": position, "video": row.name, "label": row.label, "predictions": predictions, "error": problem}
