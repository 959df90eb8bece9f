"""Reading ahead: in order, bounded, and stopped with the caller."""

import contextlib
import subprocess
import sys
import threading

import pytest

from ezclip.data.reading_ahead import map_ahead


@pytest.mark.parametrize("num_workers", [1, 3])
def test_order_and_errors(num_workers):
    results = []
    for item, result in map_ahead(lambda item: 6 // item, [3, 0, 2], num_workers):
        try:
            results.append((item, result.result()))
        except ZeroDivisionError:
            results.append((item, "error"))
    assert results == [(3, 2), (0, "error"), (2, 3)]


def test_items_are_taken_one_by_one():
    taken = []

    def items():
        for number in range(100):
            taken.append(number)
            yield number

    with contextlib.closing(map_ahead(str, items(), 2)) as results:
        next(results)
        assert taken == [0, 1, 2]


def test_runs_while_the_caller_works():
    has_started = threading.Event()

    def read(number):
        if number == 1:
            has_started.set()

    for number, _ in map_ahead(read, range(2)):
        if number == 0:
            assert has_started.wait(30)


def test_caller_that_stops_early():
    children = [subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"]) for _ in range(2)]
    results = map_ahead(lambda child: child.wait(), iter(children), 1, lambda: [child.kill() for child in children])
    with contextlib.closing(results), contextlib.suppress(KeyboardInterrupt):
        next(results)
        raise KeyboardInterrupt
    assert all(child.poll() is not None for child in children)
