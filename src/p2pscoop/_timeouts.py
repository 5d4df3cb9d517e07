"""What a function says of its tasks: `task`; and of those that may take only so long, who watches the time.

The time of a task counts on the monotonic clock of the node that runs it, from the moment at which it starts
there, and that node watches it: nobody else need know. A task that is run again, because its node was lost,
has all of its time again. A coroutine task with a limit stays where it was started: the time that it waits counts
as well.

Decides when a task's time is up. How it is made to end is the same as for one that is cancelled while it runs:
`Scheduler.interrupt` where it waits, and `Pursuit` where it computes.
"""

from __future__ import annotations

import heapq
import itertools
import math
import operator
import threading
import time
from _thread import get_ident
from collections.abc import Callable
from types import CoroutineType
from typing import Any, Generic, ParamSpec, TypeVar

from p2pscoop import _local
from p2pscoop._future import DONE, Future, TaskOptions, TimeLimit, call_as_user, name_of, task_path
from p2pscoop._scheduler import Scheduler
from p2pscoop.errors import TaskTimeoutError

__all__ = [
    "TaskFunction",
    "Watch",
    "checked_retries",
    "checked_timeout",
    "in_place_of",
    "task",
]

P = ParamSpec("P")
T = TypeVar("T")

_LINGER_S = 5.0
"""The thread that watches goes after so long without anything to watch."""
_ENDED_MAX = 1000
"""So many limits of tasks that have ended may lie in the heap before they are thrown out together."""


def task(
    fn: Callable[P, T],
    *,
    timeout: float | None = None,
    retries: int | None = None,
    name: str | None = None,
) -> TaskFunction[P, T]:
    """A function whose tasks have options of their own: `executor.submit(task(f, timeout=60), x)`.

    It can be submitted and mapped by `futures` and by executors, in the place of the function, and pickles if that
    does. Called outside a task it does what the function does. Of a function that has options already, those that
    are given again replace them, but of two timeouts the shorter one counts.

    Args:
        fn: the function, or coroutine function.
        timeout: seconds, from the start of each task on the node that runs it. When they are over the task is
            interrupted as by `Future.cancel(running=True)`, with what it has spawned, and ends with
            `TaskTimeoutError`; a value that it returns all the same, out of an `except TaskCancelled`, counts. Of
            several limits, those of parts and of an executor's calls among them, the one that ends first counts.
            None: for ever.
        retries: how often a task is started again when the node that has it dies, before it ends with
            `PoisonTaskError`. None: as others of the executor, or of `futures`, are.
        name: what a task is called in messages  [default: as the function].

    Raises:
        TypeError: `fn` is not callable, `timeout` no number, `retries` no integer, or `name` no text.
        ValueError: `timeout` is not positive, or not finite, `retries` is negative, or `name` empty.
    """
    if not callable(fn):
        raise TypeError(f"fn must be callable, not {type(fn).__name__}")
    timeout = None if timeout is None else checked_timeout(timeout)
    retries = None if retries is None else checked_retries(retries)
    if name is not None and not isinstance(name, str):
        raise TypeError(f"name must be a text, not {type(name).__name__}")
    if name == "":
        raise ValueError("name must not be empty")
    if isinstance(fn, TaskFunction):
        limits = [each for each in (timeout, fn.timeout) if each is not None]
        timeout = min(limits, default=None)
        retries = fn.retries if retries is None else retries
        name = fn.name if name is None else name
        fn = fn.func
    return TaskFunction(fn, timeout, retries, name)


def in_place_of(fn: Callable[..., Any], work: Callable[P, T], timeout: float | None = None) -> TaskFunction[P, T]:
    """What is, or calls, `fn` in a task that is named, and started again, as one of `fn`."""
    return TaskFunction(work, timeout, fn.retries if isinstance(fn, TaskFunction) else None, name_of(fn))


def checked_timeout(timeout: float) -> float:
    """The seconds of a limit. Raises as `task`."""
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise TypeError(f"timeout must be a number of seconds, not {type(timeout).__name__}")
    if not (timeout > 0 and math.isfinite(timeout)):
        raise ValueError(f"timeout must be positive and finite, not {timeout}")
    return float(timeout)


def checked_retries(retries: int) -> int:
    """A number of retries. Raises as `task`."""
    try:
        retries = operator.index(retries)
    except TypeError:
        raise TypeError(f"retries must be an integer, not {type(retries).__name__}") from None
    if retries < 0:
        raise ValueError(f"retries must be 0 or more, not {retries}")
    return retries


class TaskFunction(TaskOptions, Generic[P, T]):
    """What `task` makes.

    Attributes:
        func: the function.
        timeout: seconds, or None.
        retries: see `task`.
        name: see `task`.
    """

    def __init__(self, func: Callable[P, T], timeout: float | None, retries: int | None, name: str | None) -> None:
        self.func = func
        self.timeout = timeout
        self.retries = retries
        self.name = name
        # By which messages, and other libraries, call a function.
        self.__qualname__ = name_of(func) if name is None else name
        self.__name__ = getattr(func, "__name__", self.__qualname__) if name is None else name

    def __repr__(self) -> str:
        options = {"timeout": self.timeout, "retries": self.retries, "name": self.name}
        given = "".join(f", {option}={value!r}" for option, value in options.items() if value is not None)
        return f"task({self.func!r}{given})"

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call the function, as (a part of) the running task."""
        scheduler = _local.installed()
        if (
            self.timeout is None
            or scheduler is None
            or get_ident() != scheduler.thread
            or scheduler.task is scheduler.root_task
        ):
            return self.func(*args, **kwargs)
        if scheduler.watch is None:
            scheduler.watch = Watch(scheduler)
        watch, task = scheduler.watch, scheduler.task
        outer: TimeLimit | None = getattr(task, "_limit", None)
        limit = watch.begin(task, self.timeout, self.__qualname__)
        if limit is None:
            return self.func(*args, **kwargs)
        try:
            value = call_as_user(self.func, args, kwargs)
        except BaseException:
            watch.end(limit)
            if task._limit is limit and limit.error is None:
                _restore(task, outer)
            raise
        if type(value) is CoroutineType or type(value) is Future:
            task.await_quietly(lambda _: watch.end(limit))
            return value
        watch.end(limit)
        _restore(task, outer)
        if limit.error is not None:
            # It is pursued for a moment more. A range uses the future of an item again, unless it has a name.
            task_path(task)
        return value


def _restore(task: Future[Any], limit: TimeLimit | None) -> None:
    """A part of the task with a limit of its own is over: the limit of the whole counts again."""
    if limit is None:
        del task._limit
    else:
        task._limit = limit


class Watch:
    """The limits of one process, and the thread that waits for the first to end.

    Args:
        scheduler: of the process.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._changed = threading.Condition()
        self._heap: list[tuple[float, int, TimeLimit]] = []
        self._numbers = itertools.count()
        self._ended = 0
        self._wake_at = math.inf
        self._watching = False

    def begin(self, task: Future[Any], timeout: float, name: str) -> TimeLimit | None:
        """A task starts. None if it has a limit that ends sooner."""
        until = time.monotonic() + timeout
        known: TimeLimit | None = getattr(task, "_limit", None)
        if known is not None and known.live and known.until <= until:
            return None
        limit = task._limit = TimeLimit(task, until, timeout, name)
        with self._changed:
            heapq.heappush(self._heap, (until, next(self._numbers), limit))
            if not self._watching:
                self._watching = True
                threading.Thread(target=self._run, name="p2pscoop-timeouts", daemon=True).start()
            elif until < self._wake_at:
                self._changed.notify()
        return limit

    def end(self, limit: TimeLimit) -> None:
        """The task ends."""
        with self._changed:
            if limit.live:
                limit.live = False
                limit.task = None  # It lies here for a while yet, and must not keep what the task had alive.
                self._ended += 1
                if self._ended > _ENDED_MAX and 2 * self._ended > len(self._heap):
                    self._heap = [entry for entry in self._heap if entry[2].live]
                    heapq.heapify(self._heap)
                    self._ended = 0

    def _run(self) -> None:
        while True:
            with self._changed:
                now = time.monotonic()
                late: list[TimeLimit] = []
                while self._heap and (self._heap[0][0] <= now or not self._heap[0][2].live):
                    limit = heapq.heappop(self._heap)[2]
                    if limit.live:
                        limit.live = False
                        limit.error = TaskTimeoutError(
                            f"{limit.name} was not done within {limit.timeout:g} s of its start", limit.timeout
                        )
                        late.append(limit)
                    else:
                        self._ended = max(0, self._ended - 1)
                if not late:
                    self._wake_at = self._heap[0][0] if self._heap else now + _LINGER_S
                    told = self._changed.wait(self._wake_at - now)
                    if not told and not self._heap:
                        self._watching = False
                        self._wake_at = math.inf
                        return
            for limit in late:
                self._stop(limit)

    def _stop(self, limit: TimeLimit) -> None:
        task, scheduler = limit.task, self._scheduler
        assert task is not None, "it was live"

        def interrupt() -> None:
            # Unless it has ended meanwhile.
            if task._state < DONE and getattr(task, "_limit", None) is limit:
                scheduler.interrupt(task)

        scheduler.call_soon(interrupt)
        if scheduler.pursue is not None:
            scheduler.pursue(task)
