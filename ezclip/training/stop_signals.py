"""Signals that end a training, between two steps of it."""

import contextlib
import signal
from pathlib import Path


class StopSignals:
    """
    Takes note of SIGTERM, SIGINT and SIGUSR1 (a queue's warning), so that a step can be finished and saved.

    `received` is the number of the first, or 0. A second Ctrl-C does what it did before; other signals come twice
    where a launcher passes on what its processes get themselves.
    """

    def __init__(self):
        self.received, self.previous = 0, {}

    def __enter__(self):
        for name in ("SIGTERM", "SIGINT", "SIGUSR1"):
            number = getattr(signal, name, None)
            # An ignored signal, as in the background of a shell, stays ignored. Only the main thread can listen.
            with contextlib.suppress(ValueError):
                if number is not None and signal.getsignal(number) != signal.SIG_IGN:
                    self.previous[number] = signal.signal(number, self._receive)
        return self

    def _receive(self, number: int, frame):
        if number == signal.SIGINT and self.received == number:
            self._restore()
            signal.raise_signal(number)
        self.received = self.received or number

    def _restore(self):
        while self.previous:
            signal.signal(*self.previous.popitem())

    def __exit__(self, *_):
        self._restore()


class TrainingStopped(Exception):
    """
    A signal ended the training.

    Args:
        step (`int`):
            The last step that was taken.
        checkpoint (`Path`, *optional*):
            Where it was saved, if it was.
        number (`int`):
            The signal's number; 0 if another process received it.
    """

    def __init__(self, step: int, checkpoint: Path | None, number: int):
        what = f"{checkpoint} is saved" if checkpoint else "nothing is saved"
        super().__init__(f"Stopped by a signal after step {step}; {what}.")
        self.exit_status = 128 + (number or signal.SIGTERM)  # as shells have it
