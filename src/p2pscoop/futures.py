"""Tasks that spawn tasks: `from p2pscoop import futures`.

    def fib(n):
        if n < 2:
            return n
        a, b = futures.submit(fib, n - 1), futures.submit(fib, n - 2)
        return a.result() + b.result()

    print(futures.submit(fib, 25).result())

Everything here works in the main program and inside tasks at any depth. In a plain script or a notebook the
first call starts nodes on this machine, one a usable core (`P2PSCOOP_NODES` says otherwise); under `p2pscoop run`
they are there already. Nodes need no `if __name__ == "__main__"` guard.

Futures belong to the thread that tasks run in, the one that used this module first. Other threads use
`p2pscoop.Executor`.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Coroutine, Generator, Iterable
from concurrent.futures import (
    ALL_COMPLETED,
    FIRST_COMPLETED,
    FIRST_EXCEPTION,
    CancelledError,
)
from typing import Any, Literal, NamedTuple, TypeVar, overload

from p2pscoop import _local
from p2pscoop._future import DONE, FAILED, Future
from p2pscoop._gathering import Gathering
from p2pscoop._local import submit
from p2pscoop._ranges import Range
from p2pscoop._reduction import Reduction
from p2pscoop._scheduler import Scheduler

__all__ = [
    "ALL_COMPLETED",
    "FIRST_COMPLETED",
    "FIRST_EXCEPTION",
    "CancelledError",
    "DoneAndNotDone",
    "Future",
    "as_completed",
    "gather",
    "map",
    "mapReduce",
    "mapScan",
    "map_as_completed",
    "map_reduce",
    "map_scan",
    "shutdown",
    "submit",
    "wait",
]

T = TypeVar("T")


class DoneAndNotDone(NamedTuple):
    """What `wait` returns."""

    done: set[Future[Any]]
    not_done: set[Future[Any]]


def map(  # noqa: A001  (the name of PEP 3148)
    fn: Callable[..., T],
    /,
    *iterables: Iterable[Any],
    timeout: float | None = None,
    chunksize: int = 1,
    journal: str | os.PathLike[str] | None = None,
) -> Generator[T, None, None]:
    """Like the built-in `map`, with the calls spread over the nodes; results in the order of the items.

    Work starts at once. Items are drawn as they are needed, so iterables may be infinite, and results are there
    as soon as all before them have been consumed.

    Args:
        fn: called with one item of each iterable; may be a coroutine function.
        iterables: as long as the shortest.
        timeout: seconds from this call after which `next` raises `TimeoutError` if its result is not there.
        chunksize: accepted for compatibility; the range of items splits itself.
        journal: a file that remembers the results as they arrive. When the program is run again, because it was
            cut short, calls whose results are in it are not made again. It belongs to this `map` alone.

    Raises:
        TypeError: no iterable.
        ValueError: `chunksize` below 1.
        ConfigurationError: the journal is in use, or damaged, or `fn` is not the function whose results it has.

    What the function raises, or an iterable, is raised to the consumer at its place in the order.
    """
    return _map(fn, iterables, timeout, chunksize, journal, ordered=True)


def map_as_completed(
    fn: Callable[..., T],
    /,
    *iterables: Iterable[Any],
    timeout: float | None = None,
    chunksize: int = 1,
    journal: str | os.PathLike[str] | None = None,
) -> Generator[T, None, None]:
    """As `map`, but results come in the order in which they are ready."""
    return _map(fn, iterables, timeout, chunksize, journal, ordered=False)


def _map(
    fn: Callable[..., T],
    iterables: tuple[Iterable[Any], ...],
    timeout: float | None,
    chunksize: int,
    journal: str | os.PathLike[str] | None,
    *,
    ordered: bool,
) -> Generator[T, None, None]:
    if not iterables:
        raise TypeError("map needs a function and at least one iterable")
    if chunksize < 1:
        raise ValueError("chunksize must be >= 1.")
    scheduler = _scheduler()
    deadline = None if timeout is None or timeout < 0 else time.monotonic() + timeout
    if journal is not None:
        from p2pscoop._journal import journaled_map

        return journaled_map(scheduler, fn, iterables, journal, ordered=ordered, deadline=deadline)
    return Range(scheduler, fn, iterables, ordered=ordered, deadline=deadline).results()


def map_reduce(
    map_fn: Callable[..., T],
    reduction_fn: Callable[[T, T], T],
    /,
    *iterables: Iterable[Any],
    timeout: float | None = None,
) -> T:
    """Map the items, and reduce the results to one value, as a tree of tasks.

    The value is that of `functools.reduce(reduction_fn, map(map_fn, *iterables))` if the reduction is associative:
    neighbours are reduced with each other, the earlier one first, and nothing else is assumed. In particular the
    reduction need not be commutative. One item is mapped, and not reduced.

    Args:
        map_fn: called with one item of each iterable; may be a coroutine function.
        reduction_fn: called with two results, or results of reductions; may be a coroutine function.
        iterables: as long as the shortest, which must end.
        timeout: seconds to wait at most, checked between tasks.

    Raises:
        TypeError: no iterable, or no item, for which there is no value to return.
        TimeoutError: the value was not there in time.
        BaseException: whatever one of the functions raised.
    """
    if not iterables:
        raise TypeError("map_reduce needs two functions and at least one iterable")
    items = list(zip(*iterables))  # noqa: B905  (as `map` does)
    if not items:
        raise TypeError("map_reduce() of no items has no value: ask for it only if there is at least one")
    tree: Future[Any] = submit(Reduction(map_fn, reduction_fn).reduce, items)
    value: T = tree.result(timeout)
    return value


def map_scan(
    map_fn: Callable[..., T],
    reduction_fn: Callable[[T, T], T],
    /,
    *iterables: Iterable[Any],
    timeout: float | None = None,
) -> list[T]:
    """Map the items, and return every intermediate result of reducing them: an inclusive scan.

    The list is that of `itertools.accumulate(map(map_fn, *iterables), reduction_fn)`, whatever the reduction is.
    The items are mapped on all nodes; the reductions, of which each needs the one before, are made here, in order,
    as the results come. (To make them in parallel as well takes twice as many, and an associative reduction.)

    Args:
        map_fn: called with one item of each iterable; may be a coroutine function.
        reduction_fn: called with the value so far and the next result.
        iterables: as long as the shortest, which must end.
        timeout: seconds to wait at most, checked between items.

    Raises:
        TypeError: no iterable.
        TimeoutError: the list was not complete in time.
        BaseException: whatever one of the functions raised.
    """
    results = _map(map_fn, iterables, timeout, 1, None, ordered=True)
    try:
        return list(itertools.accumulate(results, reduction_fn))
    finally:
        results.close()


mapReduce = map_reduce  # noqa: N816  (the name in SCOOP)
mapScan = map_scan  # noqa: N816  (the name in SCOOP)


def wait(
    fs: Iterable[Future[Any]],
    timeout: float | None = None,
    return_when: str = ALL_COMPLETED,
) -> DoneAndNotDone:
    """Wait for futures; meanwhile this node runs tasks.

    Args:
        fs: the futures.
        timeout: seconds to wait at most; None or a negative number: no limit.
        return_when: `FIRST_COMPLETED`, `FIRST_EXCEPTION` or `ALL_COMPLETED`.

    Returns:
        Those that have ended, and the others.

    Raises:
        ValueError: no such `return_when`.
    """
    futures = _checked(fs)
    if return_when not in (FIRST_COMPLETED, FIRST_EXCEPTION, ALL_COMPLETED):
        raise ValueError(f"Invalid return condition: {return_when!r}")
    if timeout is not None and timeout < 0:
        timeout = None
    scheduler = _scheduler()
    scheduler.poll()

    def enough() -> bool:
        ended = [future for future in futures if future._state >= DONE]
        return (
            len(ended) == len(futures)
            or (return_when == FIRST_COMPLETED and bool(ended))
            or (return_when == FIRST_EXCEPTION and any(future._state == FAILED for future in ended))
        )

    if not enough() and (timeout is None or timeout > 0):
        deadline = None if timeout is None else time.monotonic() + timeout
        waiter = _Countdown(scheduler, futures, return_when)
        try:
            while not enough() and scheduler.park(deadline):
                pass
        finally:
            waiter.detach()
    done = {future for future in futures if future._state >= DONE}
    return DoneAndNotDone(done, set(futures) - done)


class _Countdown:
    """Wakes a strand when enough of some futures have ended, not each time that one does."""

    def __init__(self, scheduler: Scheduler, futures: list[Future[Any]], return_when: str) -> None:
        self._wake = scheduler.strand.wake
        self._return_when = return_when
        self._waiter = self._on_end
        self._pending = [future for future in futures if future._state < DONE]
        self._missing = 1 if return_when == FIRST_COMPLETED else len(self._pending)
        for future in self._pending:
            future.add_waiter(self._waiter)

    def _on_end(self, future: Future[Any]) -> None:
        self._missing -= 1
        if self._missing <= 0 or (self._return_when == FIRST_EXCEPTION and future._state == FAILED):
            self._wake()

    def detach(self) -> None:
        for future in self._pending:
            future.discard_waiter(self._waiter)


def as_completed(fs: Iterable[Future[T]], timeout: float | None = None) -> Generator[Future[T], None, None]:
    """The futures, each once, in the order in which they end; meanwhile this node runs tasks.

    Args:
        fs: the futures.
        timeout: seconds from this call after which `next` raises `TimeoutError` if there is none to return.
    """
    futures = _checked(fs)
    deadline = None if timeout is None or timeout < 0 else time.monotonic() + timeout
    return _as_completed(_scheduler(), futures, deadline)


def _as_completed(
    scheduler: Scheduler, futures: list[Future[T]], deadline: float | None
) -> Generator[Future[T], None, None]:
    scheduler.poll()
    ended = [future for future in futures if future._state >= DONE]
    pending = [future for future in futures if future._state < DONE]
    missing = len(pending)
    strand = scheduler.strand

    def on_end(future: Future[Any]) -> None:
        ended.append(future)
        strand.wake()

    for future in pending:
        future.add_waiter(on_end)
    try:
        yield from ended[: len(futures) - missing]
        given = len(futures) - missing
        while given < len(futures):
            while given == len(ended):
                strand = scheduler.strand
                if not scheduler.park(deadline) and given == len(ended):
                    raise TimeoutError(f"{len(futures) - given} (of {len(futures)}) futures unfinished")
            yield ended[given]
            given += 1
    finally:
        for future in pending:
            future.discard_waiter(on_end)


@overload
def gather(
    *fs: Future[T] | Coroutine[Any, Any, T], return_exceptions: Literal[False] = False
) -> Future[list[T]]: ...


@overload
def gather(
    *fs: Future[T] | Coroutine[Any, Any, T], return_exceptions: bool
) -> Future[list[T | BaseException]]: ...


def gather(*fs: Future[Any] | Coroutine[Any, Any, Any], return_exceptions: bool = False) -> Future[Any]:
    """One future of the values of many, in their order: `a, b = await futures.gather(f, g)`.

    Args:
        fs: futures, or coroutines, which become tasks of this node.
        return_exceptions: whether exceptions are put into the list as values. If not, the first one to be raised
            is the outcome at once; the other tasks go on.
    """
    scheduler = _scheduler()
    futures: list[Future[Any]] = []
    for each in fs:
        if isinstance(each, Future):
            futures.append(each)
        elif isinstance(each, Coroutine):
            futures.append(scheduler.adopt(each))
        else:
            raise TypeError(f"gather takes p2pscoop futures and coroutines, not {each!r}")
    return Gathering(scheduler, futures, return_exceptions).whole


def shutdown(wait: bool = True) -> None:
    """Stop the nodes that `futures` started in this program. A later call of `submit` or `map` starts new ones.

    Under `p2pscoop run`, and inside tasks, the nodes are not the program's to stop, and this does nothing.

    Args:
        wait: whether tasks that have been submitted are run to their end first.
    """
    if _local.installed() is not None:
        from p2pscoop import _session

        _session.stop(wait=wait)


def _scheduler() -> Scheduler:
    scheduler = _local.current()
    scheduler.check_thread()
    return scheduler


def _checked(fs: Iterable[Any]) -> list[Future[Any]]:
    futures = list(dict.fromkeys(fs))
    for future in futures:
        if not isinstance(future, Future):
            raise TypeError(
                f"{future!r} is not a future of p2pscoop.futures; "
                "for those of an Executor use concurrent.futures.wait and as_completed"
            )
    return futures
