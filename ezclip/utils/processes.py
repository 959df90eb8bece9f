"""Communication between the processes of a command that a launcher started."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from accelerate import Accelerator, PartialState
from torch import distributed

from ezclip.errors import DataError


# One process may have hours of work more than another.
LONGEST_WAIT = timedelta(days=365)


class Processes:
    """
    Communication between the processes of a run, with a longer timeout than that of training.

    Args:
        state (`Accelerator` or `PartialState`, *optional*):
            The processes. `None` stands for one process that no launcher started.
    """

    def __init__(self, state: Accelerator | PartialState | None):
        self.index, self.number = 0, 1
        self.group: Any = None
        if state is not None:
            self.index, self.number = state.process_index, state.num_processes
        self.is_main = self.index == 0
        if self.number > 1:
            self.group = distributed.new_group(backend="gloo", timeout=LONGEST_WAIT)

    def wait(self):
        """Wait for all processes."""
        if self.group is not None:
            distributed.barrier(self.group)

    def share(self, work: Callable[[], Any]) -> Any:
        """Run `work` on the main process. Return its result, or raise its [`DataError`], on all processes."""
        outcome = [None, None]
        if self.is_main:
            try:
                outcome = [work(), None]
            except DataError as error:
                outcome = [None, error]
        if self.group is not None:
            distributed.broadcast_object_list(outcome, group=self.group)
        result, error = outcome
        if error is not None:
            raise error
        return result

    def part_of(self, items: list) -> list:
        """Return the share of this process: every n-th item."""
        return items[self.index :: self.number]

    def gather(self, value: Any) -> list:
        """Return the values of all processes, in their order."""
        values = [value] * self.number
        if self.group is not None:
            distributed.all_gather_object(values, value, group=self.group)
        return values
