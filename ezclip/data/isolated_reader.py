"""Video reading in a child process: a file that hangs or crashes a decoder costs one video."""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

import video_ezclip
from ezclip.utils.memory import MMAP_THRESHOLD
from video_ezclip import (
    DEFAULT_LIMITS,
    BoundedFile,
    Clip,
    VideoFramesMetadata,
    VideoReadError,
    describe_video,
    read_frames,
)


START_TIMEOUT = 120.0  # seconds
_NOTHING = object()  # instead of an item of the child
TICK = 0.1  # seconds between two looks at the child
KILLS = (-9, -15)  # exit statuses of SIGKILL and SIGTERM


class IsolatedReader:
    """
    [`read_frames`] in a child process, with a time limit and, on Linux, a share of memory.

    The time limit is on the child's own time: time while the machine sleeps, the child is stopped or waits for a
    processor or for this process does not count. A video whose child is killed from outside is tried once more.

    Each calling process, such as a worker of a data loader, has its own child. The child starts with the first video,
    and again after a video that ended it.

    Args:
        timeout (`float`, *optional*, defaults to 60):
            Time limit for one video, in seconds.
        max_memory (`int`, *optional*):
            Bytes that the child may allocate. Other systems than Linux do not enforce it.
        kwargs:
            Default arguments of [`read_frames`]: `backend`, `allow_partial`, `limits` and others.

    Raises:
        `ValueError`: if `timeout` is not above 0.

    Example:

    ```python
    >>> from ezclip.data import IsolatedReader

    >>> with IsolatedReader(timeout=10) as read:
    ...     frames, metadata = read("upload.mp4", processor.get_sampler())
    ```
    """

    _child, _owner = None, None

    def __init__(self, timeout: float = 60.0, max_memory: int | None = None, **kwargs):
        if not 0 < timeout <= threading.TIMEOUT_MAX:
            raise ValueError(f"`timeout` must be a number of seconds above 0, got {timeout}.")
        self.timeout, self.max_memory, self.kwargs = timeout, max_memory, kwargs

    def __call__(self, video, sample=None, transform=None, **kwargs) -> tuple[np.ndarray, VideoFramesMetadata]:
        """
        Read one video as [`read_frames`] does. The video and `sample` are pickled; `transform` is called here.

        Raises:
            [`VideoReadError`]: if the video cannot be read, crashes the decoder, or exceeds a limit. `TypeError`: if
            the video or `sample` cannot be pickled.
        """
        kwargs = {**self.kwargs, **kwargs}
        limits, name = kwargs.get("limits", DEFAULT_LIMITS), describe_video(video)
        if not isinstance(video, (str, os.PathLike, bytes, bytearray, dict)):
            if not hasattr(video, "read"):
                return read_frames(video, sample, transform=transform, **kwargs)  # frames need no decoder
            video = {"path": name, "bytes": BoundedFile(video, name, limits).read_all()}
        clip = Clip(name, transform, limits)
        try:
            return self._read(clip, video, sample, kwargs)
        except _ReaderKilled:  # by the system, when memory is short, or by a person
            clip.clear()
            return self._read(clip, video, sample, kwargs)

    def _read(self, clip: Clip, video, sample, kwargs: dict) -> tuple[np.ndarray, VideoFramesMetadata]:
        answer: Any = None
        for number, item in enumerate(self._ask(clip.name, None, video, sample, **kwargs)):
            if not isinstance(item, np.ndarray):
                answer = item
                continue
            if item.shape[:2] != (clip.height, clip.width):
                clip.clear()  # the child reads the video again: each of its reads gives one size
            clip.add(number, item)
        numbers, metadata = answer
        return clip.frames(numbers), metadata

    def stream(self, function: Callable[..., Iterator], video, *args, **kwargs) -> Iterator:
        """
        Yield what a generator function yields in the child for a video. All arguments and items are pickled.

        Raises:
            [`VideoReadError`]: as a call does; and the errors of the function.
        """
        return self._ask(describe_video(video), function, video, *args, **kwargs)

    def _ask(self, name: str, function: Callable | None, *args, **kwargs) -> Iterator:
        """Yield the items of the child's answer. End the child if it fails, or if not all items are taken."""
        try:
            request = pickle.dumps((os.getcwd(), function, args, kwargs))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise TypeError(
                f"`sample` must be picklable, got {args[1:]!r} ({error}). Give a function of an installed module, or "
                "a `functools.partial` of one."
            ) from error
        child, seconds, is_complete, is_late = self._start(), self.timeout, False, False
        answers: Any = child.stdout
        try:
            while not is_complete:
                item = _NOTHING
                with _time_limit(seconds, child) as watch, contextlib.suppress(OSError, EOFError, pickle.PickleError):
                    if request:
                        self._send(child, request)
                        request = b""
                    item = pickle.load(answers)
                seconds, is_late = seconds - watch.total, watch.is_late
                if is_late or item is _NOTHING:
                    break
                is_complete = item is None or isinstance(item, Exception)
                if isinstance(item, Exception):
                    raise item
                if not is_complete:
                    yield item
        except BaseException:
            if not is_complete:
                self.close()  # what is left of the answer would be taken for that of the next video
            raise
        if is_complete:
            return
        status, backend = self._end(child), kwargs.get("backend", "auto")
        if is_late:
            reason = f"takes longer than {self.timeout:g} seconds to read."
            raise VideoReadError(name, reason, "Leave it out, or raise the time limit.", backend)
        kind = _ReaderKilled if status in KILLS else VideoReadError
        raise kind(name, _describe_crash(status), "Leave it out, or re-encode it.", backend)

    def _send(self, child: subprocess.Popen, request: bytes):
        requests: Any = child.stdin
        pickle.dump(request, requests)
        requests.flush()

    def close(self):
        """End the child."""
        child, self._child = self._child, None
        if child is not None and self._owner == os.getpid():
            child.kill()
            child.wait()
            child.stdout.close()
            with contextlib.suppress(OSError):  # what it has not read
                child.stdin.close()

    def _end(self, child: subprocess.Popen) -> int:
        """End the child after a failed video and return its exit status: its own if it ended by itself."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=0.5)
        self.close()
        return child.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __del__(self):
        self.close()

    def __getstate__(self):
        return {**self.__dict__, "_child": None, "_owner": None}

    def _start(self) -> subprocess.Popen:
        if self._child is None or self._owner != os.getpid():
            program, modules = Path(__file__).with_name("reader_process.py"), Path(video_ezclip.__file__).parent
            self._owner = os.getpid()
            self._child = subprocess.Popen(
                # Without -P a file "signal.py" in the working folder would be taken for Python's.
                [sys.executable, "-P", str(program), str(modules), str(self.max_memory or 0)],
                env={**os.environ, "MALLOC_MMAP_THRESHOLD_": str(MMAP_THRESHOLD)},  # as `return_freed_memory` does it
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,  # no signal reaches it before it ignores them
            )
            with _time_limit(START_TIMEOUT, self._child):
                has_started = self._child.stdout.read(1) == b"+"
            if not has_started:
                self.close()
                raise RuntimeError("The process that reads videos did not start. Its error is printed above.")
        return self._child


class _ReaderKilled(VideoReadError):
    """The child was killed from outside."""


@contextlib.contextmanager
def _time_limit(seconds: float, child: subprocess.Popen):
    """Kill the child after `seconds` of its own time. Yield a [`_Watch`] that counts it."""
    watch, done = _Watch(), threading.Event()

    def count():
        with contextlib.suppress(psutil.Error):  # the child has ended
            clock = _RunningTime(child.pid)
            while not done.wait(min(TICK, max(seconds, 0.001))):
                if clock.advance() >= seconds:
                    watch.is_late = True
                    child.kill()
                    break
            watch.total = clock.advance()

    watcher = threading.Thread(target=count, daemon=True)
    watcher.start()
    try:
        yield watch
    finally:
        done.set()
        watcher.join()


@dataclass
class _Watch:
    """The seconds that a child took, and whether they were too many."""

    total: float = 0.0
    is_late: bool = False


class _RunningTime:
    """
    The time that a process had to work, in seconds.

    Of a process that is ready to run, its processor time counts, so that a busy machine does not make it late. Of one
    that waits, for a file say, wall-clock time counts. Time while the machine sleeps, or the process is stopped, does
    not count.
    """

    def __init__(self, pid: int):
        self.process = psutil.Process(pid)
        self.total, self.wall, self.cpu = 0.0, time.monotonic(), self._cpu()

    def advance(self) -> float:
        """Add the time since the last call, and return the total. Call it about every `TICK` seconds."""
        wall, cpu = time.monotonic(), self._cpu()
        # A longer gap means that this process did not run either.
        waited, worked = min(wall - self.wall, 10 * TICK), cpu - self.cpu
        status = self.process.status()
        if status == psutil.STATUS_RUNNING:
            self.total += worked
        elif status != psutil.STATUS_STOPPED:
            self.total += max(waited, worked)
        self.wall, self.cpu = wall, cpu
        return self.total

    def _cpu(self) -> float:
        times = self.process.cpu_times()
        return times.user + times.system


def _describe_crash(status: int) -> str:
    reason = signal.Signals(-status).name if status < 0 else f"exit status {status}"
    return f"crashes the decoder ({reason})."
