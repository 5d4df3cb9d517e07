"""The calls of one `map` of an executor: drawn, submitted, and given to the consumer in order or as they end.

What is decided here is how far ahead to draw. If the number of items is known (one of the iterables has a length),
all calls are submitted at once, as the executors of the standard library do: a program may never look at the
results. Otherwise a bounded number is under way beyond the result that is wanted next, so that iterables may be
infinite; `buffersize` is that bound if it is given.
"""

from __future__ import annotations

import operator
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sized
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from itertools import islice
from typing import Any

from p2pscoop import _local
from p2pscoop._core.values import Outcome
from p2pscoop._payload import decode_outcome, encode_error
from p2pscoop._ranges import Range
from p2pscoop._timeouts import in_place_of

__all__ = ["Calls", "checked_size", "is_sized"]


def checked_size(name: str, value: object, default: int | None) -> int | None:
    """A `buffersize` or `chunksize`, checked as the standard library does.

    Raises:
        TypeError: it is no integer.
        ValueError: it is below 1.
    """
    if value is None or value is default:
        return default
    try:
        size = operator.index(value)  # type: ignore[arg-type]  # that is what is checked
    except TypeError:
        raise TypeError(f"{name} must be an integer{' or None' if default is None else ''}") from None
    if size < 1:
        raise ValueError("chunksize must be >= 1." if name == "chunksize" else f"{name} must be None or > 0")
    return size


def is_sized(iterables: Iterable[object]) -> bool:
    """Whether as many items as the shortest of these has are known to end."""
    return any(isinstance(each, Sized) for each in iterables)


class Calls:
    """Submits a call for each item, or for each chunk of items.

    Args:
        executor: its `submit` is looked up for every call, because some programs replace it.
        fn: the function.
        source: the arguments of each call.
        ahead_max: calls under way beyond the one whose result is wanted; None: all at once.
        chunksize: items a call.
        in_order: whether results are wanted in the order of the items.
    """

    def __init__(
        self,
        executor: Executor,
        fn: Callable[..., Any],
        source: Iterator[tuple[Any, ...]],
        ahead_max: int | None,
        *,
        chunksize: int = 1,
        in_order: bool = True,
    ) -> None:
        self._executor: Executor | None = executor
        self._fn = fn
        self._chunked = chunksize > 1
        self._run_chunk = in_place_of(fn, _run_chunk)
        self._source: Iterator[Any] | None = _chunks(source, chunksize) if self._chunked else source
        self._error: BaseException | None = None
        self._ahead_max = ahead_max
        self._in_order = in_order
        self._pending: deque[Future[Any]] = deque()
        self._ended: deque[Future[Any]] = deque()
        self._begun = False
        try:
            self._draw()
        except BaseException:
            self._close()
            raise
        self._begun = True

    def results(self, deadline: float | None) -> Generator[Any, None, None]:
        """What the consumer iterates over.

        Args:
            deadline: on the monotonic clock, or None.
        """
        try:
            while self._pending:
                # Results are not kept in variables: none must stay alive longer than its consumer wants it.
                if not self._chunked:
                    yield _result(self._next(deadline), deadline)
                else:
                    values, failed = _result(self._next(deadline), deadline)
                    values.reverse()
                    while values:
                        yield values.pop()
                    if failed is not None:
                        raise decode_outcome(failed)[1]
                self._draw()
            if self._error is not None:
                raise self._error
        finally:
            self._close()

    def _next(self, deadline: float | None) -> Future[Any]:
        """The call whose result comes next, taken off the list."""
        if self._in_order:
            return self._pending.popleft()
        if not self._ended:
            remaining = None if deadline is None else deadline - time.monotonic()
            ended = wait(self._pending, remaining, FIRST_COMPLETED).done
            if not ended:
                raise TimeoutError
            self._ended.extend(ended)
        future = self._ended.popleft()
        self._pending.remove(future)
        return future

    def _draw(self) -> None:
        while self._source is not None and (self._ahead_max is None or len(self._pending) < self._ahead_max):
            try:
                args = next(self._source)
            except StopIteration:
                # The executor may end now, for all that this needs of it.
                self._source = self._executor = None
                return
            except Exception as error:
                # For the consumer, after the results of the items before it.
                self._source, self._executor, self._error = None, None, error
                return
            assert self._executor is not None
            try:
                if self._chunked:
                    future = self._executor.submit(self._run_chunk, self._fn, args)
                else:
                    future = self._executor.submit(self._fn, *args)
            except Exception as error:
                if not self._begun:
                    raise
                self._source, self._executor, self._error = None, None, error
                return
            self._pending.append(future)

    def _close(self) -> None:
        """Nobody iterates any more: what has not been started need not be."""
        self._source = self._executor = None
        while self._pending:
            self._pending.popleft().cancel()


def _result(future: Future[Any], deadline: float | None) -> Any:
    try:
        return future.result(None if deadline is None else deadline - time.monotonic())
    finally:
        future.cancel()
        del future


def _chunks(source: Iterator[tuple[Any, ...]], size: int) -> Generator[tuple[tuple[Any, ...], ...], None, None]:
    """The items by so many; those before one that could not be drawn are not lost."""
    while True:
        chunk: list[tuple[Any, ...]] = []
        try:
            chunk.extend(islice(source, size))
        except Exception:
            if chunk:
                yield tuple(chunk)
            raise
        if not chunk:
            return
        yield tuple(chunk)


def _run_chunk(fn: Callable[..., Any], chunk: tuple[tuple[Any, ...], ...]) -> tuple[list[Any], Outcome | None]:
    """On a node: the values up to the first call that raises, and what that raised."""
    values: list[Any] = []
    columns = tuple(zip(*chunk, strict=True)) or ((None,) * len(chunk),)
    work = fn if chunk[0] else lambda _: fn()
    try:
        values.extend(Range(_local.current(), work, columns, ordered=True, deadline=None).results())
    except Exception as error:
        return values, encode_error(error, f"a node (pid {os.getpid()})")
    return values, None
