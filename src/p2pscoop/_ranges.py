"""`map` over many items: one splittable range instead of one task an item.

The range lies in the deque of the strand that called `map`. The frame that iterates takes items off the front
and runs them in place, which costs little more than the calls; thieves take half of what is left off the back
(lazy binary splitting: Tzannes et al., 2010, carried over to a deque of items). Only an item that leaves this
way becomes a future.

Items are drawn from the iterables as they are needed, by the frame that iterates and by nobody else, and never
more than `AHEAD_MAX` beyond the one that it waits for: iterables may be infinite.
"""

from __future__ import annotations

import time
from _thread import get_ident
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from p2pscoop._future import Future, make_future

if TYPE_CHECKING:
    from p2pscoop._scheduler import Scheduler, Strand

__all__ = ["AHEAD_MAX", "Range"]

AHEAD_MAX = 4096
"""Items drawn beyond the one that is waited for, and so results kept."""

_DRAW_S = 0.005
"""An iterable that takes longer than this to fill the range must not hold up the work on what it gave."""


class Range:
    """The items of one `map` call that nobody has started, and the outcomes of those that ended.

    Args:
        scheduler: of the home thread.
        work: the function.
        iterables: as for the built-in `map`.
        ordered: whether results are wanted in the order of the items.
        deadline: on the monotonic clock, or None.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        work: Callable[..., Any],
        iterables: tuple[Iterable[Any], ...],
        *,
        ordered: bool,
        deadline: float | None,
    ) -> None:
        self.items: deque[tuple[int, tuple[Any, ...]]] = deque()
        self._scheduler = scheduler
        self._work = work
        self._source: Iterator[tuple[Any, ...]] | None = zip(*iterables)  # noqa: B905  (as `map` does)
        self._source_error: BaseException | None = None
        self._ordered = ordered
        self._deadline = deadline
        task = scheduler.task
        # Parent of the items, so that what derives from a task's path does not depend on who runs it.
        self._task = make_future(scheduler, work, (), {}, task, task._spawned)
        self._task.claim()
        task._spawned += 1
        self._strand: Strand = scheduler.strand
        self._strand.ranges.append(self)
        self._drawn = 0
        self._consumed = 0
        self._ended: dict[int, Future[Any]] = {}
        self._item = self._claimed(0, ())
        """Stands for the item that is run in place."""
        self._wanted: int | None = None
        self._wake: Callable[[], None] | None = None
        self._draw()

    # ------------------------------------------------------- for the loop, and for thieves (any thread)

    def take(self) -> Future[Any] | None:
        """The first item, claimed, as a task to be run by the loop."""
        try:
            index, args = self.items.popleft()
        except IndexError:
            return None
        return self._make(index, args)

    def split(self, count: int) -> list[Future[Any]]:
        """The last `count` items, claimed, in order, as tasks for a thief."""
        taken: list[Future[Any]] = []
        while len(taken) < count:
            try:
                index, args = self.items.pop()
            except IndexError:
                break
            taken.append(self._make(index, args))
        taken.reverse()
        return taken

    def _make(self, index: int, args: tuple[Any, ...]) -> Future[Any]:
        future = self._claimed(index, args)
        future.add_waiter(partial(self._on_end, index))
        return future

    def _claimed(self, index: int, args: tuple[Any, ...]) -> Future[Any]:
        future = make_future(self._scheduler, self._work, args, {}, self._task, index)
        future.claim()
        return future

    def _on_end(self, index: int, future: Future[Any]) -> None:
        self._ended[index] = future
        if self._wake is not None and (self._wanted is None or self._wanted == index):
            self._wake()

    # --------------------------------------------------------------------------- for who iterates

    def results(self) -> Generator[Any, None, None]:
        """What the caller of `map` iterates over."""
        return self._in_order() if self._ordered else self._as_they_end()

    def _in_order(self) -> Generator[Any, None, None]:
        items, ended = self.items, self._ended
        index = 0
        try:
            while True:
                if self._drawn - index <= AHEAD_MAX // 2:
                    self._draw()
                if ended and index in ended:
                    yield ended.pop(index).result()
                else:
                    try:
                        first, args = items.popleft()
                    except IndexError:
                        if index == self._drawn:
                            break
                        self._wait_for(index)
                        continue
                    if first != index:
                        # This one is under way elsewhere; the rest is for the loop.
                        items.appendleft((first, args))
                        self._wait_for(index)
                        continue
                    yield self._run(index, args)
                index += 1
                self._consumed = index
            self._raise_source_error()
        finally:
            self._close()

    def _as_they_end(self) -> Generator[Any, None, None]:
        items, ended = self.items, self._ended
        try:
            while True:
                if self._drawn - self._consumed <= AHEAD_MAX // 2:
                    self._draw()
                if self._scheduler.arrivals:
                    # What ended elsewhere meanwhile is ready before what has not been started here.
                    self._scheduler.poll()
                if ended:
                    yield ended.pop(next(iter(ended))).result()
                elif items:
                    try:
                        index, args = items.popleft()
                    except IndexError:
                        continue  # A thief was faster.
                    yield self._run(index, args)
                elif self._consumed < self._drawn:
                    self._wait_for(None)
                    continue
                else:
                    break
                self._consumed += 1
            self._raise_source_error()
        finally:
            self._close()

    def _run(self, index: int, args: tuple[Any, ...]) -> Any:
        """Run an item in place: the frame that iterates waits for it."""
        if self._deadline is not None and time.monotonic() >= self._deadline:
            raise TimeoutError
        scheduler = self._scheduler
        if get_ident() != scheduler.thread:
            raise scheduler.wrong_thread()
        depth = scheduler.depth
        if depth >= scheduler.depth_max:
            item = self._claimed(index, args)
            scheduler.handoff.append(item)
            return self._result_of(item)
        item = self._item
        if item._spawned or item._path is not None:
            # The last one has children, or a name, which depend on its number: it cannot be used again.
            item = self._item = self._claimed(index, ())
        item._index = index
        task = scheduler.task
        scheduler.depth = depth + 1
        scheduler.task = item
        scheduler.executed += 1
        try:
            value = self._work(*args)
        except BaseException as error:
            scheduler.depth = depth
            scheduler.task = task
            self._item = self._claimed(index, ())
            scheduler.fail(item, error)
            return item.result()
        scheduler.depth = depth
        scheduler.task = task
        if type(value) is CoroutineType or type(value) is Future:
            self._item = self._claimed(index, ())
            scheduler.go_on_with(item, value)
            return self._result_of(item)
        return value

    def _result_of(self, future: Future[Any]) -> Any:
        remaining = None if self._deadline is None else max(0.001, self._deadline - time.monotonic())
        return future.result(remaining)

    def _wait_for(self, index: int | None) -> None:
        """Block until this item, or any, has ended."""
        scheduler = self._scheduler
        scheduler.check_thread()
        self._wanted = index
        self._wake = scheduler.strand.wake
        try:
            while not (self._ended if index is None else index in self._ended):
                if not scheduler.park(self._deadline):
                    raise TimeoutError
        finally:
            self._wake = None

    def _draw(self) -> None:
        """Fill up, but do not let a slow iterable hold up the work on what it gave."""
        source = self._source
        if source is None:
            return
        scheduler = self._scheduler
        enough = self._consumed + 2 * scheduler.hooks.size()
        ahead_max = self._consumed + AHEAD_MAX
        until = time.perf_counter() + _DRAW_S
        while self._drawn < ahead_max:
            try:
                args = next(source)
            except StopIteration:
                self._source = None
                break
            except Exception as error:
                # Raised to the consumer after the results of the items before it.
                self._source, self._source_error = None, error
                break
            self.items.append((self._drawn, args))
            self._drawn += 1
            if scheduler.hungry:
                scheduler.feed()
            if self._drawn >= enough and not self._drawn % 16 and time.perf_counter() >= until:
                break

    def _raise_source_error(self) -> None:
        if self._source_error is not None:
            raise self._source_error

    def _close(self) -> None:
        """Nobody iterates any more: what has not been started need not be."""
        self._source = None
        self.items.clear()
        for strand in (self._strand, self._scheduler.root):
            if self in strand.ranges:
                strand.ranges.remove(self)
