"""Laws of the threads round the network: order, bounds and errors are those of a plain loop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import closing

import pytest

from superst_monai.inference.pipeline import Behind, ahead


@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_order_and_few_at_a_time(workers: int) -> None:
    """Whatever takes longest, the results are those of a loop; at most `workers` wait for the one in use."""
    begun: list[int] = []
    excess = []

    def square(i: int) -> int:
        begun.append(i)
        time.sleep(0.002 * (i % 3))
        return i * i

    found = []
    for value in ahead(square, range(20), workers=workers):
        found.append(value)
        excess.append(len(begun) - len(found))
    assert found == [i * i for i in range(20)]
    assert max(excess) <= workers


def test_work_overlaps() -> None:
    """The next item is worked on while one is in use: each waits for the other here, and neither for ever."""
    meet = threading.Barrier(2, timeout=5)
    with closing(ahead(lambda i: meet.wait() if i else -1, range(2), workers=1)) as results:
        assert next(results) == -1
        meet.wait()


def test_an_error_comes_where_the_result_would_and_ends_the_work() -> None:
    """Results before the fault are yielded, and what has not begun never does."""
    begun: list[int] = []

    def fail_at_2(i: int) -> int:
        begun.append(i)
        if i == 2:
            raise OSError("tile 2")
        return i

    found: list[int] = []
    with pytest.raises(OSError, match="tile 2"), closing(ahead(fail_at_2, range(100), workers=2)) as results:
        found.extend(results)
    assert max(begun) < 8
    assert not any(thread.name.startswith("ahead") for thread in threading.enumerate())


def test_calls_behind_run_in_order_and_all_before_the_end() -> None:
    """None overlaps another, few wait, and the block ends after the last."""
    running, done = threading.Lock(), []

    def note(i: int) -> None:
        assert running.acquire(blocking=False)
        time.sleep(0.003)
        done.append(i)
        running.release()

    with Behind(most=2) as behind:
        for i in range(6):
            behind(note, i)
            assert len(done) >= i - 2
    assert done == list(range(6))


def test_the_caller_goes_on_while_calls_wait() -> None:
    """Calls that wait for their caller do not keep it waiting."""
    go, seen = threading.Event(), []
    with Behind(most=3) as behind:
        for _ in range(2):
            behind(lambda: seen.append(go.wait(5)))
        go.set()
    assert seen == [True, True]


def run_behind(*calls: Callable[[], None], most: int = 4, then: Exception | None = None) -> None:
    """Run calls behind, and let the block end as given."""
    with Behind(most=most) as behind:
        for call in calls:
            behind(call)
        if then is not None:
            raise then


def test_after_a_fault_behind_nothing_runs_and_the_fault_is_raised() -> None:
    """A tile whose sample was not written must not be finished: later calls are dropped, whoever learns of it."""
    done: list[str] = []

    def fail() -> None:
        time.sleep(0.01)
        raise OSError("disk full")

    for most in (1, 4):  # raised by the next call, or by the end of the block
        with pytest.raises(OSError, match="disk full"):
            run_behind(fail, lambda: done.append("finished"), most=most)
    with pytest.raises(KeyError, match="block"):
        run_behind(fail, lambda: done.append("finished"), then=KeyError("block"))
    assert done == []


def test_an_error_of_the_block_waits_for_the_calls() -> None:
    """What was begun is ended, so that it can be accounted for."""
    done: list[int] = []
    with pytest.raises(KeyError, match="block"):
        run_behind(lambda: time.sleep(0.01), lambda: done.append(1), then=KeyError("block"))
    assert done == [1]
