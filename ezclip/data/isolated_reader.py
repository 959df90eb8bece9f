"""Video reading in a child process: a file that hangs or crashes a decoder costs one video."""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil

import video_ezclip
from ezclip.utils.memory import MMAP_THRESHOLD
from video_ezclip import VideoFramesMetadata, VideoReadError, describe_video, read_frames


START_TIMEOUT = 120.0  # seconds
TICK = 0.1  # seconds between two looks at the child
KILLS = (-9, -15)  # exit statuses of SIGKILL and SIGTERM


class IsolatedReader:
    """
    [`read_frames`] in a child process, with a time limit.

    The limit is on the child's own time: time while the machine sleeps, the child is stopped or waits for a processor
    does not count. A video whose child is killed from outside is tried once more.

    Each calling process, such as a worker of a data loader, has its own child. The child starts with the first video,
    and again after a video that ended it.

    Args:
        timeout (`float`, *optional*, defaults to 60):
            Time limit for one video, in seconds.
        kwargs:
            Default arguments of [`read_frames`]: `backend`, `allow_partial` and others.

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

    def __init__(self, timeout: float = 60.0, **kwargs):
        if not 0 < timeout <= threading.TIMEOUT_MAX:
            raise ValueError(f"`timeout` must be a number of seconds above 0, got {timeout}.")
        self.timeout, self.kwargs = timeout, kwargs

    def __call__(self, video, sample=None, **kwargs) -> tuple[np.ndarray, VideoFramesMetadata]:
        """
        Read one video as [`read_frames`] does. The video and `sample` are pickled.

        Raises:
            [`VideoReadError`]: if the video cannot be read, crashes the decoder, or exceeds the time limit.
            `TypeError`: if the video or `sample` cannot be pickled.
        """
        kwargs = {**self.kwargs, **kwargs}
        if not isinstance(video, (str, os.PathLike, bytes, bytearray, dict)):
            if not hasattr(video, "read"):
                return read_frames(video, sample, **kwargs)  # frames need no decoder
            video = {"path": describe_video(video), "bytes": video.read()}
        try:
            request = pickle.dumps((os.getcwd(), video, sample, kwargs))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise TypeError(
                f"`sample` must be picklable, got {sample!r} ({error}). Give a function of an installed module, or a "
                "`functools.partial` of one."
            ) from error
        answer, problem = self._ask(request)
        if problem in map(_describe_crash, KILLS):  # by the system, when memory is short, or by a person
            answer, problem = self._ask(request)
        if problem is not None:
            remedy = "raise the time limit" if problem.startswith("takes") else "re-encode it"
            backend = kwargs.get("backend", "auto")
            raise VideoReadError(describe_video(video), problem, f"Leave it out, or {remedy}.", backend)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _ask(self, request: bytes) -> tuple[object, str | None]:
        """Return the child's answer, or the reason why there is none."""
        child, answer = self._start(), None
        try:
            with (
                _time_limit(self.timeout, child) as is_late,
                contextlib.suppress(OSError, EOFError, pickle.PickleError),
            ):
                pickle.dump(request, child.stdin)
                child.stdin.flush()
                answer = pickle.load(child.stdout)
        finally:
            if answer is None or is_late():
                # A late answer would be taken for that of the next video.
                exit_status = self._end(child)
        if answer is not None:
            return answer, None
        if is_late():
            return None, f"takes longer than {self.timeout:g} seconds to read."
        return None, _describe_crash(exit_status)

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
                [sys.executable, "-P", str(program), str(modules)],
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


@contextlib.contextmanager
def _time_limit(seconds: float, child: subprocess.Popen):
    """Kill the child after `seconds` of its own time. Yields a function that returns whether that has happened."""
    expired, done = threading.Event(), threading.Event()

    def watch():
        with contextlib.suppress(psutil.Error):  # the child has ended
            wait()

    def wait():
        clock = _RunningTime(child.pid)
        while not done.wait(min(TICK, seconds)):
            if clock.advance() >= seconds:
                expired.set()
                child.kill()
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield expired.is_set
    finally:
        done.set()
        watcher.join()


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
