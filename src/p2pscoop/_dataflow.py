"""Tasks with futures among their arguments: when they start, and where.

Such a task is queued, like any other, when all of these have ended. If the value of one is large, and kept by
the node that computed it, the task is not queued but made a suspended coroutine that awaits the value: that goes
to the value as any continuation does, with what else it needs, and calls the task's function there.

An object and not a closure, because whoever decides whether a value is fetched has to tell the waiters that can
go to it from those that cannot.
"""

from __future__ import annotations

from collections.abc import Callable
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from p2pscoop._future import CANCELLED, DONE, QUEUED, WAITING, Future, make_future

if TYPE_CHECKING:
    from p2pscoop._scheduler import Scheduler

__all__ = ["Dependent"]


class Dependent:
    """Starts a task when the futures among its arguments have ended.

    Args:
        scheduler: of the home thread.
        work: the task's function.
        args: its positional arguments.
        kwargs: its keyword arguments.

    Attributes:
        future: of the task; WAITING until it is started.
    """

    __slots__ = ("_missing", "_scheduler", "future")

    def __init__(
        self, scheduler: Scheduler, work: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self._scheduler = scheduler
        task = scheduler.task
        self.future: Future[Any] = make_future(scheduler, work, args, kwargs, task, task._spawned)
        task._spawned += 1
        self.future._state = WAITING
        inputs = [each for each in (*args, *kwargs.values()) if type(each) is Future]
        failed = next((each for each in inputs if each._state > DONE), None)
        self._missing = dict.fromkeys(each for each in inputs if each._state < DONE)
        if failed is not None:
            self._fail(failed)
            return
        for each in self._missing:
            each.await_quietly(self.on_end)
        self.look()

    def on_end(self, ended: Future[Any]) -> None:
        """One of the futures has ended."""
        self._missing.pop(ended, None)
        if self.future._state != WAITING:
            return  # Cancelled, or failed already with another one; or it waits as a coroutine by now.
        if ended._state > DONE:
            self._fail(ended)
        else:
            self.look()

    def look(self) -> None:
        """Start the task if all values are there, here or with their holders (home thread)."""
        future = self.future
        if future._state != WAITING or not all(hasattr(each, "_kept") for each in self._missing):
            return
        if self._missing:
            if len({each._kept[0] for each in self._missing}) == 1:
                self._scheduler.start_coroutine(future, _call(future._work, future._args, future._kwargs))
            else:
                # Nowhere are all of them: they meet here.
                for each in self._missing:
                    each.add_waiter(_want)
            return
        future._args = tuple([_value(each) for each in future._args])
        future._kwargs = {name: _value(each) for name, each in future._kwargs.items()}
        future._state = QUEUED
        self._scheduler.push(future)

    def _fail(self, ended: Future[Any]) -> None:
        value = None if ended._state == CANCELLED else ended._value
        self._scheduler.end(self.future, ended._state, value)


def _want(_: Future[Any]) -> None:
    """Waits for a value here, unlike what can go to it."""


def _value(arg: Any) -> Any:
    return arg._value if type(arg) is Future else arg


async def _call(work: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The task as a coroutine, which can wait for its arguments anywhere."""
    values = []
    for arg in args:
        values.append(await arg if type(arg) is Future else arg)
    named = {}
    for name, arg in kwargs.items():
        named[name] = await arg if type(arg) is Future else arg
    value = work(*values, **named)
    return await value if type(value) is CoroutineType else value
