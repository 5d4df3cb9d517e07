"""The scheduler of this process, and the two functions that have to find it fast.

The only process-wide state of the package: like an event loop, there is one scheduler that runs tasks in a
process, and code anywhere in it calls `futures.submit` without being handed one.
"""

from __future__ import annotations

import os
from _thread import get_ident
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from p2pscoop._dataflow import Dependent
from p2pscoop._future import QUEUED, Future
from p2pscoop._scheduler import Scheduler
from p2pscoop.errors import ShutdownError

__all__ = ["current", "install", "submit", "uninstall"]

P = ParamSpec("P")
T = TypeVar("T")

_home: Scheduler | None = None
_forked = False


def install(scheduler: Scheduler) -> None:
    """Make this the scheduler of the process."""
    global _home
    _home = scheduler


def uninstall() -> None:
    """There is no scheduler any more; the next use starts one."""
    global _home
    _home = None


def installed() -> Scheduler | None:
    """The scheduler of the process, if there is one."""
    return _home


def current() -> Scheduler:
    """The scheduler of the process; started, with local nodes, if there is none yet."""
    if _home is not None:
        return _home
    if _forked:
        raise ShutdownError(
            "this process was forked from one that runs p2pscoop, and cannot use its nodes; "
            "start it by spawn (multiprocessing.set_start_method('spawn')), or submit tasks instead"
        )
    from p2pscoop import _session

    return _session.start()


def submit(fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
    """Schedule `fn(*args, **kwargs)` and return the promise of its value.

    The task goes on this node's deque. Whoever waits for it first, or has nothing to do, runs it: this node, or
    one that steals it. A coroutine function makes a coroutine task, whose value is what the coroutine returns.

    Args:
        fn: the function. If the task leaves this node, function and arguments are pickled. If it returns a
            future, the outcome of that is the task's.
        args: its positional arguments. A future among them stands for its value: the task starts when it is
            there, and if it raised, the task ends with the same exception.
        kwargs: its keyword arguments; likewise.

    Raises:
        WrongThreadError: called from a thread other than the one that tasks run in.
        ShutdownError: called after `shutdown`, or in a forked process.
    """
    scheduler = _home
    if scheduler is None or get_ident() != scheduler.thread:
        scheduler = current()
        scheduler.check_thread()
    for arg in args:
        if type(arg) is Future:
            return Dependent(scheduler, fn, args, kwargs).future
    if kwargs and Future in map(type, kwargs.values()):
        return Dependent(scheduler, fn, args, kwargs).future
    task = scheduler.task
    index = task._spawned
    task._spawned = index + 1
    # `make_future`, inlined: this is the hot path.
    future: Future[T] = Future()
    future._scheduler = scheduler
    future._work = fn
    future._args = args
    future._kwargs = kwargs
    future._parent = task
    future._index = index
    future._path = None
    future._spawned = 0
    future._state = QUEUED
    future._ticket = True
    future._waiters = None
    scheduler.deque.append(future)
    if scheduler.hungry:
        scheduler.feed()
    return future


def _after_fork() -> None:
    global _forked
    if _home is not None:
        _forked = True
        uninstall()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
