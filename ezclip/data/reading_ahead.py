"""Read what comes next while the model computes."""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar


Item = TypeVar("Item")
Result = TypeVar("Result")
STOP_SECONDS = 0.05  # between two attempts to stop


def map_ahead(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    num_workers: int = 1,
    stop: Callable[[], None] = lambda: None,
) -> Generator[tuple[Item, Future[Result]], None, None]:
    """
    Call a function for each item in threads, ahead of the caller, and yield items and results in order.

    `num_workers + 1` results are in memory at most. Items are taken one by one, in the calling thread.

    Args:
        function (`Callable`):
            The function. It should wait for another process, or release Python's lock.
        items (`Iterable`):
            Its arguments.
        num_workers (`int`, *optional*, defaults to 1):
            Number of threads.
        stop (`Callable[[], None]`, *optional*):
            Makes running calls fail soon, for a caller that does not take all results. It is called until they end.
    """
    pool, pending = ThreadPoolExecutor(num_workers, "read_ahead"), deque()
    try:
        for item in items:
            pending.append((item, pool.submit(function, item)))
            if len(pending) > num_workers:
                yield pending[0]
                pending.popleft()
        while pending:
            yield pending[0]
            pending.popleft()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        while any(not future.done() for _, future in pending):
            stop()
            time.sleep(STOP_SECONDS)
        pool.shutdown()
