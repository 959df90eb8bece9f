"""Build an index: embed the windows of every video of a folder, and keep them by content."""

import contextlib
import copy
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from ezclip import __version__
from ezclip.classification.embedding_cache import EmbeddingFolder, digest_video
from ezclip.data.isolated_reader import IsolatedReader
from ezclip.data.reading_ahead import map_ahead
from ezclip.data.sources import find_videos
from ezclip.errors import DataError, ModelError
from ezclip.evaluation.identity import describe_model, describe_processor
from ezclip.evaluation.predictions import check_finite
from ezclip.search.windows_file import FAISS_SUFFIX, WINDOWS_NAME, WindowsFile, write_windows
from ezclip.timeline.search import check_window_options
from ezclip.timeline.windows import read_windows
from ezclip.utils.digests import digest
from ezclip.utils.files import as_json_line, read_json, replacing, write_json
from ezclip.utils.memory import return_freed_memory
from ezclip.utils.messages import say
from ezclip.utils.processes import Processes
from ezclip.utils.ray_stages import RayStages
from ezclip.utils.settings import as_json, check_unchanged
from ezclip.utils.tables import count_of
from video_ezclip import DEFAULT_LIMITS, ReadLimits, VideoReadError


SETTINGS_NAME = "index.json"
EMBEDDINGS_NAME = "embeddings"
LOCK_NAME = ".lock"
FORMAT = 1  # of the files
LONGEST_READ = 3600.0  # seconds of decoding for one video
ANEW = "Give --overwrite_output_dir to start anew, or another --output_dir."


@dataclass
class IndexCounts:
    """
    The numbers of an index.

    Args:
        num_videos (`int`):
            Videos of the folder.
        num_new (`int`):
            Videos to read: their contents have no embeddings yet. Copies count once.
        num_dropped (`int`):
            Videos of the earlier index that are no longer in the folder.
        num_windows (`int`):
            Windows in the index.
        bad_videos (`dict[str, str]`), partial_videos (`dict[str, str]`):
            The reason for each video, by its path in the folder, that was not read, or only in part.
    """

    num_videos: int
    num_new: int
    num_dropped: int
    num_windows: int = 0
    bad_videos: dict[str, str] = field(default_factory=dict)
    partial_videos: dict[str, str] = field(default_factory=dict)


@torch.no_grad()
def build_index(
    classifier,
    folder: str | Path,
    output_dir: str | Path,
    *,
    window: float = 2.0,
    stride: float = 1.0,
    batch_size: int = 8,
    allow_partial: bool = False,
    limits: ReadLimits = DEFAULT_LIMITS,
    reader: IsolatedReader | None = None,
    overwrite: bool = False,
    state: PartialState | None = None,
    on_plan: Callable[[IndexCounts], None] = lambda counts: None,
    disable_tqdm: bool = False,
    cluster: RayStages | None = None,
) -> IndexCounts:
    """
    Index the windows of all videos of a folder, or bring an index up to date.

    The embeddings of a video are kept by the content of its file in `embeddings/`, each as soon as it is read: a run
    that was killed resumes. A later run reads only files with a content that it does not know. Moved and renamed files
    keep their embeddings, and files that went are dropped. Names and times of files do not matter. At the end
    `windows.arrow`, which a search maps into memory, is replaced as a whole. Videos are embedded one by one, so the
    index does not depend on interruptions or on the number of processes.

    Args:
        classifier ([`ZeroShotVideoClassificationPipeline`]):
            The model and the processor.
        folder (`str` or `Path`):
            The folder of videos, at any depth, see [`list_folder`]. Folders of frame images have no times, so they
            count as unreadable.
        output_dir (`str` or `Path`):
            The folder of the index.
        window (`float`, *optional*, defaults to 2), stride (`float`, *optional*, defaults to 1):
            Length of a window, and distance between the starts of two windows, in seconds. A video shorter than a
            window is one window.
        batch_size (`int`, *optional*, defaults to 8):
            Number of windows of a video to embed at a time.
        allow_partial (`bool`, *optional*, defaults to `False`):
            Whether to index the readable part of a damaged video.
        limits ([`ReadLimits`], *optional*):
            What reading may take, and where it may reach.
        reader ([`IsolatedReader`], *optional*):
            Reads the videos in its child process, each within its time limit. The default allows an hour.
        overwrite (`bool`, *optional*, defaults to `False`):
            Whether to remove the earlier index.
        state (`PartialState`, *optional*):
            The processes that share the work, on one machine or on several with the same folders. Defaults to one.
        on_plan (`Callable[[IndexCounts], None]`, *optional*):
            Called on the main process before the first video is decoded.
        disable_tqdm (`bool`, *optional*, defaults to `False`):
            Whether to hide the progress bar.
        cluster ([`RayStages`], *optional*):
            Decodes and embeds the videos, instead of this process. The files are the same.

    Returns:
        [`IndexCounts`], on all processes.

    Raises:
        [`DataError`]: if an argument is out of range, there is no video or none can be read, the index is of another
        model, other options or another folder, another process writes it, or it cannot be written.
        [`ModelError`]: if the model does not compare vectors, or an embedding is not finite.

    Example:

    ```python
    >>> classifier = pipeline("zero-shot-video-classification", model=folder)
    >>> build_index(classifier, "videos", "index")
    >>> VideoIndex.open("index").search("a person opening a door")
    ```
    """
    check_window_options(window, stride, batch_size)
    check_comparable(classifier.model)
    if cluster is not None and state is not None and state.num_processes > 1:
        raise DataError("Ray indexes from one process: leave the launcher out.")
    reading = {"window": window, "stride": stride}
    processes, folder = Processes(state), Path(folder)
    writer = _Writer(folder, Path(output_dir), describe_origin(classifier, folder), reading, allow_partial)
    embed = _Embedder(classifier, batch_size, window, stride, allow_partial, limits)
    show = partial(tqdm, unit="video", disable=disable_tqdm or not processes.is_main)
    with contextlib.ExitStack() as stack:
        paths = processes.share(lambda: writer.begin(stack, describe_contents(classifier), overwrite))
        found, bad = {}, {}
        for path in show(processes.part_of(paths), "Comparing"):
            try:
                found[path] = digest_video(folder / path)
            except VideoReadError as error:
                bad[path] = f"{error.reason} {error.remedy}"
        contents = _join(processes.gather(found))
        unread, counts = processes.share(lambda: writer.plan(paths, contents, on_plan))
        read = reader or stack.enter_context(IsolatedReader(LONGEST_READ))
        mine = processes.part_of(unread)
        if cluster is None:
            results = (_outcome_of(embed, read, folder / path) for path in mine)
        else:
            if mine:
                say(f"Ray: {count_of(len(mine))}; {cluster.plan}.", flush=True)
            results = _embed_on_cluster(cluster, embed, read, folder, mine)
        for path, windows in show(zip(mine, results), "Indexing", total=len(mine)):
            try:
                if isinstance(windows, VideoReadError):
                    raise windows
                writer.add(path, contents[path], windows)
            except VideoReadError as error:
                bad[path] = f"{error.reason} {error.remedy}"
        failed = _join(processes.gather(bad))
        return processes.share(lambda: writer.finish(contents, failed, counts))


def check_comparable(model):
    """Raise [`ModelError`] if a model has its own score of a video and a text, so that no vectors can be kept."""
    if hasattr(model, "score"):
        raise ModelError(
            f"{model.name_or_path} ({type(model).__name__}) compares videos and texts by a score of its own, not by "
            "the cosine of two vectors, and an index keeps vectors. Use another model, such as CLIP or EZ-CLIP."
        )


def describe_origin(classifier, folder: Path) -> dict:
    """Return where the model and the videos of an index are. Unlike the contents, these may change."""
    name = classifier.model.name_or_path
    return {
        "model_name_or_path": os.path.abspath(name) if os.path.isdir(name) else name,
        "num_frames": classifier.processor.num_frames,
        "dtype": str(classifier.model.dtype).removeprefix("torch."),
        "engine": getattr(classifier.model.config, "engine", {}).get("name"),
        "folder": os.path.abspath(folder),
    }


def describe_contents(classifier) -> dict:
    """Return everything about a model and its processor that decides the vectors, by content."""
    return as_json({**describe_model(classifier.model), "processor": describe_processor(classifier.processor)})


def read_settings(output_dir: str | Path) -> dict | None:
    """
    Return the settings of an index, finished or not, or `None` if there is none.

    Raises:
        [`DataError`]: if the file is damaged, or another version of this package wrote it.
    """
    path = Path(output_dir) / SETTINGS_NAME
    if not path.exists():
        return None
    settings = read_json(path, ANEW)
    if settings.get("format") != FORMAT:
        raise DataError(f"{path} must be of format {FORMAT}, got {settings.get('format')!r}. {ANEW}")
    names = ("model_name_or_path", "num_frames", "dtype", "folder", "made_with")
    if missing := [name for name in names if name not in settings]:
        raise DataError(f"{path} is damaged: it has no {missing[0]!r}. {ANEW}")
    return settings


class _Writer:
    """The folder of an index, for the run that writes it."""

    def __init__(self, folder: Path, output_dir: Path, origin: dict, reading: dict, allow_partial: bool):
        self.folder, self.output_dir, self.origin, self.reading = folder, output_dir, origin, reading
        self.allow_partial = allow_partial
        self.embeddings = EmbeddingFolder(output_dir / EMBEDDINGS_NAME)
        self.settings: dict = {}

    def begin(self, stack: contextlib.ExitStack, model: dict, overwrite: bool) -> list[str]:
        """Lock the folder until `stack` ends, compare its settings, and return the paths of the videos."""
        if not self.folder.is_dir():
            raise DataError(f"{self.folder} is not a folder.")
        paths = [os.path.relpath(path, self.folder) for path in find_videos([os.fspath(self.folder)])]
        made_with = {"ezclip": __version__, **model, **self.reading}
        self.settings = {"format": FORMAT, **self.origin, "made_with": made_with}
        with self.disk_errors():
            self.output_dir.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(FileLock(self.output_dir / LOCK_NAME, timeout=0))
            except Timeout:
                raise DataError(f"Another process is writing {self.output_dir}. Wait until it ends.") from None
            saved = None if overwrite else read_settings(self.output_dir)
            if saved is None:  # embeddings without settings may be those of another model
                for name in (SETTINGS_NAME, WINDOWS_NAME):  # the settings first: this run may be killed here
                    (self.output_dir / name).unlink(missing_ok=True)
                self.remove_others(set())
            else:
                check_unchanged(self.output_dir, saved["made_with"], made_with, rounding_only=("ezclip",))
                if saved["folder"] != self.origin["folder"] and os.path.isdir(saved["folder"]):
                    raise DataError(
                        f"{self.output_dir} is an index of {saved['folder']}, got {self.folder}. {ANEW} Or index a "
                        "folder above both."
                    )
            write_json(self.output_dir / SETTINGS_NAME, self.settings)
        return paths

    def plan(
        self, paths: list[str], contents: dict[str, str], on_plan: Callable[[IndexCounts], None]
    ) -> tuple[list[str], IndexCounts]:
        """Return one path of each content that is not embedded yet, the largest files first, and the counts."""
        one_of = {key: path for path, key in sorted(contents.items(), reverse=True)}
        unknown = [path for key, path in one_of.items() if not self.knows(key)]
        sizes = {path: _size_of(self.folder / path) for path in unknown}
        earlier = set()
        if (self.output_dir / WINDOWS_NAME).exists():
            with contextlib.suppress(DataError):  # a damaged file is written again
                earlier = WindowsFile(self.output_dir / WINDOWS_NAME).contents().keys()
        counts = IndexCounts(len(paths), len(unknown), len(earlier - set(map(as_text, paths))))
        on_plan(counts)
        return sorted(unknown, key=lambda path: (-sizes[path], path)), counts

    def knows(self, key: str) -> bool:
        """Return whether a content is embedded: as a whole, or in part if that is allowed."""
        found = self.embeddings.find(key)
        return found is not None and (found[1] is None or self.allow_partial)

    def add(self, path: str, key: str, windows: "_Windows"):
        """Keep the windows of a video, unless its file has changed while it was read."""
        if digest_video(self.folder / path) != key:
            raise VideoReadError(path, "changed while it was read.", "Run the same command again.")
        with self.disk_errors():
            self.embeddings.keep(key, {"times": windows.times, "embeds": windows.embeds}, windows.problem)

    def finish(self, contents: dict[str, str], failed: dict[str, str], counts: IndexCounts) -> IndexCounts:
        """Write the list of unreadable videos and the windows of the others, and remove what is no longer there."""
        reasons = {contents[path]: reason for path, reason in failed.items() if path in contents}
        named = {as_text(path): reasons.get(key) for path, key in contents.items()}
        named |= {as_text(path): reason for path, reason in failed.items()}
        counts.bad_videos = {path: reason for path, reason in sorted(named.items()) if reason is not None}
        good = {as_text(path): key for path, key in contents.items() if as_text(path) not in counts.bad_videos}
        with self.disk_errors():
            self.write_list("bad_videos.jsonl", counts.bad_videos)
            self.remove_others({self.embeddings.path_of(key).name for key in good.values()})
            if not good:
                (self.output_dir / WINDOWS_NAME).unlink(missing_ok=True)
                path, reason = next(iter(counts.bad_videos.items()))
                raise DataError(
                    f"None of the {counts.num_videos} videos could be read, see {self.output_dir / 'bad_videos.jsonl'}"
                    f"; the first: {path}: {reason}"
                )
            metadata = {**self.settings, "digest": digest([self.settings, sorted(good.items())])}
            write_windows(self.output_dir / WINDOWS_NAME, self.videos(good, counts), metadata)
            self.write_list("partial_videos.jsonl", counts.partial_videos)
            for path in self.output_dir.glob(f"*{FAISS_SUFFIX}"):
                if path.stem != metadata["digest"]:
                    path.unlink()
        return counts

    def videos(self, good: dict[str, str], counts: IndexCounts) -> Iterator[tuple[str, str, np.ndarray, np.ndarray]]:
        """Yield the arguments of [`write_windows`], and count the windows and the videos that were read in part."""
        for path, key in sorted(good.items()):
            if (found := self.embeddings.find(key)) is None:
                raise DataError(f"The embeddings of {path} are gone. Run the same command again.")
            tensors, problem = found
            counts.num_windows += len(tensors["times"])
            counts.partial_videos |= {} if problem is None else {path: problem}
            yield path, key, tensors["times"].numpy(), tensors["embeds"].numpy()

    def write_list(self, name: str, reasons: dict[str, str]):
        """Write a line for each video with its reason. Without videos there is no file."""
        (self.output_dir / name).unlink(missing_ok=True)
        if reasons:
            with replacing(self.output_dir / name) as temporary:
                lines = (as_json_line({"video": path, "reason": reason}) for path, reason in reasons.items())
                temporary.write_text("".join(lines), encoding="utf-8")

    def remove_others(self, kept: set[str]):
        """Remove embeddings that no video has, and unfinished files of a killed run."""
        unfinished = (SETTINGS_NAME, WINDOWS_NAME, "bad_videos.jsonl", "partial_videos.jsonl")
        for path in self.output_dir.iterdir():
            if path.name.startswith(tuple(f".{name}." for name in unfinished)):
                path.unlink()
        if self.embeddings.folder.is_dir():
            for path in self.embeddings.folder.iterdir():
                if path.name not in kept:
                    path.unlink()

    @contextlib.contextmanager
    def disk_errors(self):
        """Turn an error of the disk into one for the user."""
        try:
            yield
        except OSError as error:
            raise DataError(
                f"{self.output_dir} cannot be written ({error.strerror or error}). Free disk space or correct its "
                "permissions, and run the same command to resume."
            ) from error


def as_text(path: str) -> str:
    """Return a path as text. File names are bytes, and need not be valid UTF-8."""
    return path.encode("utf-8", errors="backslashreplace").decode("utf-8")


def _size_of(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0


def _join(parts: list[dict]) -> dict:
    return {name: value for part in parts for name, value in part.items()}


@dataclass
class _Windows:
    """The start and end of W windows in seconds `(W, 2)`, their embeddings `(W, D)`, and what was not read."""

    times: torch.Tensor
    embeds: torch.Tensor
    problem: str | None


@dataclass
class _Batch:
    """
    Windows of a video: their times, frames `(T, H, W, 3)` of the different ones, then the embeddings of those.

    `rows` are the numbers of the frames of each window, counted from the first of the video.
    """

    times: list[tuple[float, float]] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    clips: list[np.ndarray] = field(default_factory=list)
    embeds: torch.Tensor | None = None
    problem: str | None = None
    is_last: bool = False
    error: VideoReadError | None = None


def _join_batches(batches: list[_Batch]) -> _Windows:
    """Return the windows of a video from all its embedded batches."""
    times = torch.tensor([time for batch in batches for time in batch.times], dtype=torch.float64)
    embeds = torch.cat([batch.embeds for batch in batches if batch.embeds is not None])
    return _Windows(times, embeds[[row for batch in batches for row in batch.rows]], batches[-1].problem)


class _Embedder:
    """Embeds the windows of one video after the other. `options` are those of [`read_windows`]."""

    def __init__(
        self, classifier, batch_size: int, window: float, stride: float, allow_partial: bool, limits: ReadLimits
    ):
        self.model, self.processor, self.batch_size = classifier.model, classifier.processor, batch_size
        frames_only = copy.copy(self.processor)
        frames_only.tokenizer = None  # the child that decodes needs none, and a vocabulary takes long to send
        self.arguments = (window, stride, frames_only.get_sampler(), frames_only.crop_frames, allow_partial, limits)

    def __call__(self, read: IsolatedReader, path: Path) -> _Windows:
        """Read and embed a video. Windows with the same frames share an embedding."""
        unread, batches = self.read(read, path), []
        # The child decodes the next batch while the model embeds this one.
        read_next = map_ahead(lambda _: next(unread, None), count(), stop=read.close)
        with contextlib.closing(read_next):
            for _, batch in read_next:
                if (windows := batch.result()) is None:
                    break
                batches.append(self.embed_batch(windows))
        return _join_batches(batches)

    def read(self, read: IsolatedReader, path: Path) -> Iterator["_Batch"]:
        """Read a video, and yield its windows in batches of at most `batch_size` different clips."""
        batch, num_clips = _Batch(), 0
        for one in read.stream(read_windows, os.fspath(path), *self.arguments):
            if one.is_last:
                batch.problem = one.problem
                continue  # to the end of the answer: otherwise the child ends
            if one.clip is not None:
                if len(batch.clips) == self.batch_size:
                    yield batch
                    batch = _Batch()
                batch.clips.append(one.clip)
                num_clips += 1
            batch.times.append((one.start, one.end))
            batch.rows.append(num_clips - 1)
        batch.is_last = True
        yield batch

    def embed_batch(self, batch: "_Batch") -> "_Batch":
        """Replace the clips of a batch by their embeddings."""
        return replace(batch, clips=[], embeds=self.embed(batch.clips))

    def embed(self, clips: list[np.ndarray]) -> torch.Tensor:
        """Return the L2-normalised embeddings `(B, D)`, float16, of frames `(T, H, W, 3)` of B windows."""
        frames = torch.from_numpy(np.stack(clips)).to(self.model.device)
        return embed_frames(self.model, self.processor, frames).half().cpu()


def _outcome_of(embed: _Embedder, read: IsolatedReader, path: Path) -> _Windows | VideoReadError:
    """Return the windows of a video, or why it cannot be read."""
    try:
        return embed(read, path)
    except VideoReadError as error:
        return error


@dataclass
class _Stages:
    """Reads and embeds videos in the workers of a cluster."""

    embed: _Embedder
    read: IsolatedReader
    folder: Path

    def reading(self, _: bool) -> Callable[[str], Iterator[_Batch]]:
        """Return a function that yields the batches of a video. An unreadable one ends with its error."""

        def read(path: str) -> Iterator[_Batch]:
            try:
                yield from self.embed.read(self.read, self.folder / path)
            except VideoReadError as error:
                yield _Batch(is_last=True, error=error)

        return_freed_memory()
        return read

    def embedding(self, has_no_gpu: bool) -> Callable[[_Batch], Iterator[_Batch]]:
        """Return a function that yields an embedded batch."""
        device = torch.device("cpu") if has_no_gpu else torch.accelerator.current_accelerator()
        self.embed.model.to(device).eval()

        def embed(batch: _Batch) -> Iterator[_Batch]:
            yield self.embed.embed_batch(batch) if batch.clips else batch

        return embed


def _embed_on_cluster(
    cluster: RayStages, embed: _Embedder, read: IsolatedReader, folder: Path, paths: list[str]
) -> Iterator[_Windows | VideoReadError]:
    """Yield the windows of each video in the order of the paths, or why it cannot be read."""
    embed.model.cpu()
    without_model = copy.copy(embed)
    without_model.model = None
    embedding, reading = _Stages(embed, read, folder), _Stages(without_model, read, folder)
    batches = []
    for batch in cluster.run(paths, reading.reading, embedding.embedding):
        batches.append(batch)
        if batch.is_last:
            yield batch.error or _join_batches(batches)
            batches = []


def embed_frames(model, processor, frames: torch.Tensor) -> torch.Tensor:
    """
    Return the L2-normalised embeddings `(B, D)`, float32, of cropped frames `(B, T, H, W, 3)`, uint8.

    Raises:
        [`ModelError`]: if an embedding is not finite.
    """
    embeds = model.encode_videos(processor.normalize(frames).to(model.dtype)).float()
    check_finite(embeds, model.dtype)
    return torch.nn.functional.normalize(embeds, dim=-1)
