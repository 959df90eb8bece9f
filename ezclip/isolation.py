"""Reading videos in a process of their own, so that a file that hangs or crashes a decoder costs one video."""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np

from .video_ezclip import VideoMetadata, VideoReadError, describe_video, read_frames


# The child is this package without its `__init__`: what reads videos needs neither torch nor transformers, and starts
# in a fifth of a second.
_START = """
import signal, sys, types
signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
package = types.ModuleType("ezclip")
package.__path__ = sys.argv[1:]
sys.modules["ezclip"] = package
from ezclip.isolation import serve
serve()
"""


class IsolatedReader:
    """
    [`read_frames`] in another process, with a time limit.

    Each process that calls it, such as the workers of a data loader, has a child of its own, which starts with the
    first video and again after a video that has ended it.

    Args:
        timeout (`float`, *optional*, defaults to 60):
            Seconds for one video.
        kwargs:
            For [`read_frames`], each time: `backend`, `allow_partial` and others.

    Example:

    ```python
    >>> from ezclip.isolation import IsolatedReader

    >>> with IsolatedReader(timeout=10) as read:
    ...     frames, metadata = read("upload.mp4", processor.get_sampler())
    ```
    """

    _child, _owner = None, None

    def __init__(self, timeout: float = 60.0, **kwargs):
        if not 0 < timeout <= threading.TIMEOUT_MAX:
            raise ValueError(f"`timeout` must be a number of seconds above 0, got {timeout}.")
        self.timeout, self.kwargs = timeout, kwargs

    def __call__(self, video, sample=None, **kwargs) -> tuple[np.ndarray, VideoMetadata]:
        """
        [`read_frames`] of one video; `sample` and the video are pickled.

        Raises:
            [`VideoReadError`]: if it cannot be read, ends the decoder, or takes longer than the limit.
        """
        request = pickle.dumps((video, sample, {**self.kwargs, **kwargs}))
        child, answer, is_late = self._start(), None, threading.Event()

        def stop():
            is_late.set()
            child.kill()

        timer = threading.Timer(self.timeout, stop)
        timer.start()
        try:
            pickle.dump(request, child.stdin)
            child.stdin.flush()
            answer = pickle.load(child.stdout)
        except (OSError, EOFError, pickle.UnpicklingError):
            pass  # the child has ended
        finally:
            timer.cancel()
            timer.join()
            # An answer that was not waited for would be taken for the next one's.
            if answer is None or is_late.is_set():
                self.close()
        if answer is None:
            if is_late.is_set():
                reason, remedy = f"takes longer than {self.timeout:g} seconds to read.", "raise the time limit"
            else:
                reason, remedy = f"crashes the decoder ({_describe_exit(child.wait())}).", "re-encode it"
            backend = self.kwargs.get("backend", "auto")
            raise VideoReadError(describe_video(video), reason, f"Leave it out, or {remedy}.", backend)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self):
        """End the child."""
        child, self._child = self._child, None
        if child is not None and self._owner == os.getpid():
            child.kill()
            child.wait()
            child.stdout.close()
            with contextlib.suppress(OSError):  # what it has not read
                child.stdin.close()

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
            here = Path(__file__).resolve().parent
            self._owner = os.getpid()
            self._child = subprocess.Popen(
                [sys.executable, "-c", _START, str(here), str(here.parent)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            if self._child.stdout.read(1) != b"+":
                self.close()
                raise RuntimeError("The process that reads videos does not start; see above for its error.")
        return self._child


def serve():
    """Read videos, as asked on the standard input, until it ends."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not come between the answers
    answers.write(b"+")
    answers.flush()
    while True:
        try:
            request = pickle.load(requests)
        except EOFError:
            return
        try:
            video, sample, kwargs = pickle.loads(request)
            answer = read_frames(video, sample, **kwargs)
        except Exception as error:
            answer = error
        pickle.dump(answer, answers, protocol=pickle.HIGHEST_PROTOCOL)
        answers.flush()


def _describe_exit(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit status {code}"
