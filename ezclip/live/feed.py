"""Read a live source in a child process, and keep its newest window."""

import math
import threading
import time
from collections import deque

from ezclip.data.isolated_reader import IsolatedReader
from ezclip.live.streams import LiveWindow, is_file, read_live_windows
from video_ezclip import ReadLimits, VideoReadError, describe_video


READER_BYTES = 2**32  # memory of the process that decodes
FIRST_DELAY, LONGEST_DELAY = 0.5, 30.0  # seconds until the next attempt to connect
TICK = 0.1
MAX_NOTICES = 100


class LiveFeed:
    """
    The newest window of a source, which a thread reads all the time. Use it as a context manager.

    A window that nobody takes before the next one is dropped. After a cut, or when nothing arrives for
    `limits.max_download_seconds`, it connects again, at first after half a second and later after up to 30.

    Args:
        source (`str`):
            See [`watch`].
        window (`float`), stride (`float`), sample, crop:
            See [`slide_windows`].
        limits ([`ReadLimits`]):
            What reading may take.
        max_reconnects (`int`):
            Number of attempts in a row that may fail.
    """

    def __init__(
        self, source: str, window: float, stride: float, sample, crop, limits: ReadLimits, max_reconnects: int
    ):
        self.name, self.is_file = describe_video(source), is_file(source)
        self.arguments = (source, window, stride, sample, crop, limits)
        self.longest_wait = limits.max_download_seconds + window + stride
        self.max_reconnects, self.num_connections, self.num_dropped = max_reconnects, 0, 0
        self.notices: deque[str] = deque(maxlen=MAX_NOTICES)
        self._changed, self._closing = threading.Condition(), threading.Event()
        self._newest: LiveWindow | None = None
        self._error: Exception | None = None
        self._is_over, self._is_late = False, False
        self._heard = math.inf  # when the last window arrived, or the child connected; inf before that
        # The child has no time limit: a stream has no end. `take` ends a child that is silent for too long.
        self._reader = IsolatedReader(threading.TIMEOUT_MAX, READER_BYTES)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "LiveFeed":
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._closing.set()
        while self._thread.is_alive():
            self._reader.close()  # ends a read that waits
            self._thread.join(TICK)

    @property
    def is_over(self) -> bool:
        """Return whether a file has ended, and its last window was taken."""
        return self._is_over and self._newest is None and self._error is None

    def take(self) -> tuple[LiveWindow, int, int] | None:
        """
        Return the newest window, the number of its connection and the number of windows dropped before it.

        Return None if there is none within `TICK` seconds.

        Raises:
            [`VideoReadError`]: if there is no window left, and the source cannot be read, or not again.
        """
        with self._changed:
            if self._newest is None and not self._is_over:
                self._changed.wait(TICK)
            if (newest := self._newest) is not None:
                dropped, self._newest, self.num_dropped = self.num_dropped, None, 0
                return newest, self.num_connections, dropped
            if self._error is not None:
                raise self._error
        if not self.is_file and time.monotonic() - self._heard > self.longest_wait:
            self._is_late, self._heard = True, math.inf
            self._reader.close()
        return None

    def _run(self):
        num_failed, has_worked, error = 0, False, None
        while not self._closing.is_set():
            is_connected, self._is_late = False, False
            try:
                for one in self._reader.stream(read_live_windows, *self.arguments):
                    self._heard = time.monotonic()
                    if not isinstance(one, LiveWindow):
                        continue
                    num_failed, has_worked = 0, True
                    self._put(one, is_new=not is_connected)
                    is_connected = True
                error = VideoReadError(self.name, "ended.", "Start it again.")
                if self.is_file:
                    error = None
                    break
            except Exception as caught:  # a stream may make the child raise any type
                error = caught if isinstance(caught, VideoReadError) else VideoReadError(self.name, str(caught), "")
            self._heard = math.inf
            if self._is_late:
                error = VideoReadError(self.name, f"sent nothing for {self.longest_wait:g} s.", "Check the source.")
            if self._closing.is_set() or self.is_file or not has_worked or num_failed >= self.max_reconnects:
                break
            delay = min(FIRST_DELAY * 2**num_failed, LONGEST_DELAY)
            num_failed += 1
            self.notices.append(f"{self.name} {error.reason} Connecting again in {delay:g} s.")
            self._closing.wait(delay)
        with self._changed:
            self._error, self._is_over = error, True
            self._changed.notify()

    def _put(self, window: LiveWindow, is_new: bool):
        with self._changed:
            self.num_connections += is_new
            self.num_dropped += self._newest is not None
            self._newest = window
            self._changed.notify()
