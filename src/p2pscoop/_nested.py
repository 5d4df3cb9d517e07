"""What an `Executor` is inside a task: another way to submit to the node that the task runs on.

Its futures are those of `concurrent.futures`, each in front of a task of the scheduler. A frame that waits for
one, by `result`, `exception`, or the `wait` and `as_completed` of the standard library, must let its node run
other tasks meanwhile: what it waits for may be among them, and there may be no other node.
"""

from __future__ import annotations

import threading
import time
from _thread import get_ident
from collections import OrderedDict
from collections.abc import Callable, Generator
from concurrent.futures import Future as StandardFuture
from concurrent.futures import wait
from typing import Any

from p2pscoop import _local
from p2pscoop._future import CANCELLED, DONE, Future, make_future
from p2pscoop._runtime import NodeStatistics
from p2pscoop._scheduler import Scheduler
from p2pscoop._session import statistics
from p2pscoop.errors import InitializerError

__all__ = ["NestedEngine", "NestedFuture", "at_home", "in_task"]

_INITIALIZED_MAX = 1024


def at_home() -> bool:
    """Whether the caller is in the thread in which this process runs tasks."""
    scheduler = _local.installed()
    return scheduler is not None and get_ident() == scheduler.thread


def in_task() -> bool:
    """Whether the caller is a task, or in the process of a node."""
    scheduler = _local.installed()
    if scheduler is None or get_ident() != scheduler.thread:
        return False
    # A process that no person sits at is a node: what is unpickled there is for a task that is about to start.
    return not scheduler.interruptible or scheduler.task is not scheduler.root_task


class NestedFuture(StandardFuture[Any]):
    """A standard future in front of a task of this node's scheduler.

    Args:
        task: the task.
    """

    def __init__(self, task: Future[Any]) -> None:
        super().__init__()
        self._task = task
        self._scheduler = task._scheduler
        # `wait` and `as_completed` append what they wait on to this list.
        self._waiters: list[Any] = _Waiters(self._scheduler)
        task.add_waiter(self._on_end)

    def result(self, timeout: float | None = None) -> Any:
        """As that of `concurrent.futures.Future`. If nobody has started the task yet, it runs here and now."""
        return super().result(self._help(timeout))

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """As that of `concurrent.futures.Future`."""
        return super().exception(self._help(timeout))

    def cancel(self, *, running: bool = False) -> bool:
        """Cancel the task if nobody has started it and it has not left this node; with `running`, even then."""
        if not self.done():
            if get_ident() != self._scheduler.thread:
                return False
            if self._task.cancel(running=running) and running:
                return True  # Here it may first have `finally` blocks to run.
        return self.cancelled()

    def running(self) -> bool:
        """Whether the task has been started, here or elsewhere."""
        return not self.done() and self._task.running()

    def __await__(self) -> Generator[Future[Any], None, Any]:
        """For coroutine tasks."""
        if not self.done():
            yield self._task
        return self.result()

    def _help(self, timeout: float | None) -> float | None:
        """Have the node run tasks until this one has ended, or time is up. How long is left to wait."""
        if get_ident() != self._scheduler.thread:
            return timeout
        if not self.done():
            try:
                self._task.result(timeout)
            except TimeoutError:
                pass  # The task's own, or time is up: this future says which.
            except BaseException:
                if self._task._state < DONE:
                    raise  # Not the outcome, but a person's interrupt.
        return 0

    def _on_end(self, task: Future[Any]) -> None:
        if task._state == CANCELLED:
            super().cancel()
            self.set_running_or_notify_cancel()
            return
        self.set_running_or_notify_cancel()
        if task._state == DONE:
            self.set_result(task._value)
        else:
            self.set_exception(task._value)


class _Waiters(list[Any]):
    """The waiters of a future. Each blocks on its `event`: it gets one that lets the node run tasks meanwhile."""

    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__()
        self._scheduler = scheduler

    def append(self, waiter: Any) -> None:
        if get_ident() == self._scheduler.thread and not isinstance(waiter.event, _Event):
            waiter.event = _Event(self._scheduler)
        super().append(waiter)


class _Event(threading.Event):
    """One that the frames of tasks wait for without holding up their node."""

    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__()
        self._scheduler = scheduler
        self._wake = scheduler.strand.wake

    def set(self) -> None:
        super().set()
        if get_ident() == self._scheduler.thread:
            self._wake()
        else:
            self._scheduler.call_soon(self._wake)

    def wait(self, timeout: float | None = None) -> bool:
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self.is_set() and self._scheduler.park(deadline):
            pass
        return self.is_set()


class NestedEngine:
    """Submits to the scheduler of this process.

    Args:
        initializer: called on each node before the first task of this executor that runs there, or None.
        initargs: its arguments.
        token: names the executor.
    """

    def __init__(self, initializer: Callable[..., object] | None, initargs: tuple[Any, ...], token: bytes) -> None:
        self._scheduler = _local.current()
        self._initialize = None if initializer is None else (token, initializer, initargs)
        self._pending: set[StandardFuture[Any]] = set()
        self.broken: Exception | None = None

    @property
    def capacity(self) -> int:
        """How many nodes run tasks."""
        return self._scheduler.hooks.size()

    def submit(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> NestedFuture:
        """Queue a call as a child of the running task. Raises `WrongThreadError`."""
        scheduler = self._scheduler
        scheduler.check_thread()
        if self._initialize is not None:
            fn, args, kwargs = _run_initialized, (self._initialize, fn, args, kwargs), {}
        parent = scheduler.task
        task: Future[Any] = make_future(scheduler, fn, args, kwargs, parent, parent._spawned)
        parent._spawned += 1
        future = NestedFuture(task)
        self._pending.add(future)
        future.add_done_callback(self._forget)
        scheduler.deque.append(task)
        if scheduler.hungry:
            scheduler.feed()
        return future

    def _forget(self, future: StandardFuture[Any]) -> None:
        self._pending.discard(future)
        if self._initialize is None or future.cancelled():
            return
        error = future.exception()
        if isinstance(error, InitializerError) and self.broken is None:
            self.broken = error
            self.cancel_all()

    def cancel_all(self) -> None:
        """Cancel what nobody has started."""
        for future in list(self._pending):
            future.cancel()

    def finish(self, *, wait_for_all: bool) -> None:
        """Wait until all futures have ended, if asked to. They do end: this only waits."""
        if wait_for_all:
            wait(list(self._pending))

    def statistics(self) -> list[NodeStatistics]:
        """Of all nodes, this one first."""
        return statistics()


_initialized: OrderedDict[bytes, InitializerError | None] = OrderedDict()
"""Of which executors the initializer has run in this process, and what came of it; bounded."""


def _run_initialized(
    initialize: tuple[bytes, Callable[..., object], tuple[Any, ...]],
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    token, initializer, initargs = initialize
    if token not in _initialized:
        error: InitializerError | None = None
        try:
            initializer(*initargs)
        except BaseException as raised:
            error = InitializerError(f"the initializer raised {type(raised).__name__}: {raised}")
        _initialized[token] = error
        if len(_initialized) > _INITIALIZED_MAX:
            _initialized.popitem(last=False)
    failed = _initialized[token]
    if failed is not None:
        raise InitializerError(str(failed))
    return fn(*args, **kwargs)
