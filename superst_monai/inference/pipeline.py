"""Reading ahead and writing behind: threads that keep the network from waiting, with a bounded number of tiles."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(do: Callable[[Item], Result], items: Iterable[Item], *, workers: int) -> Generator[Result]:
    """Yield `do(item)` in the order of the items, while threads work on the next ones.

    Args:
        do: called in threads; what it raises is raised where its result would be yielded.
        items: taken one by one.
        workers: threads, and how many results wait at most.
    """
    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="ahead")
    try:
        for item in items:
            waiting.append(pool.submit(do, item))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


class Behind:
    """Runs calls in a thread, one after the other; the caller waits only where too many have not ended yet.

    A context manager: when the block ends, all calls have ended too. After one that fails none runs any more; what it
    raised is raised by a later call or by the end of the block, unless the block itself ends with an error.

    Args:
        most: calls that may wait or run.
    """

    def __init__(self, *, most: int = 4) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="behind")
        self._calls: deque[Future[None]] = deque()
        self._most = most
        self._failed = False

    def __call__(self, do: Callable[..., None], *args: Any) -> None:
        """Run `do(*args)` once the calls before have ended well."""
        while len(self._calls) >= self._most:
            self._calls.popleft().result()
        self._calls.append(self._pool.submit(self._run, do, args))

    def _run(self, do: Callable[..., None], args: tuple[Any, ...]) -> None:
        if self._failed:
            return
        try:
            do(*args)
        except BaseException:
            self._failed = True
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for all calls."""
        self._pool.shutdown()
        if kind is None:
            for call in self._calls:
                call.result()
