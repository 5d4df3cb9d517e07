"""Suspended coroutine tasks to bytes and back: the frames, and what the runtime keeps beside them.

A *parcel* holds the frames (`_continuation`), what the task set in its `contextvars`, its place in the tree of
tasks and its generator, all in one pickle: what the frames and the runtime share stays shared. Futures in it are
ended, or their outcome has arrived; they travel as values.

Imported when the first continuation is about to travel: most programs never need it.
"""

from __future__ import annotations

import contextvars
import random
from functools import partial
from types import CoroutineType
from typing import Any, NamedTuple

from p2pscoop import _continuation
from p2pscoop._future import RUNNING, Future, Parcel
from p2pscoop._payload import dumps, reduce_special, task_path
from p2pscoop.errors import NotPortable, PayloadTooLargeError

__all__ = ["Contents", "explain", "pack", "unpack"]

_MISSING = object()


class _Extras(NamedTuple):
    """What travels with the frames."""

    path: bytes
    spawned: int
    generator: random.Random | None
    variables: list[tuple[contextvars.ContextVar[Any], Any]]


class Contents(NamedTuple):
    """What was in a parcel.

    Attributes:
        coroutine: suspended where the original was.
        path: of the task.
        spawned: how many tasks it has spawned.
        generator: its own, if it has asked for it.
        variables: what it had set in its context.
    """

    coroutine: Any
    path: bytes
    spawned: int
    generator: random.Random | None
    variables: list[tuple[contextvars.ContextVar[Any], Any]]


class _Pickler(_continuation.Pickler):
    def __init__(self, file: Any, *, extras: _Extras, **settings: Any) -> None:
        super().__init__(file, **settings)
        self._extras = extras

    def dump(self, obj: Any) -> None:
        super().dump((obj, self._extras))

    def reducer_override(self, obj: Any) -> Any:
        reduced = reduce_special(obj)
        return super().reducer_override(obj) if reduced is NotImplemented else reduced


class _Unpickler(_continuation.Unpickler):
    extras: _Extras

    def load(self) -> Any:
        suspended, self.extras = super().load()
        return suspended


def pack(task: Future[Any], base: contextvars.Context, size_max: int) -> tuple[_continuation.Captured, bytes]:
    """A suspended coroutine task as bytes; the original is not touched.

    Args:
        task: its `_work` is the coroutine. Nobody may resume it meanwhile.
        base: the context that tasks start with on every node.
        size_max: the largest payload that a peer accepts.

    Raises:
        NotPortable: naming what does not travel.
        PayloadTooLargeError: it is larger than that.
    """
    captured = _continuation.capture(task._work)
    changed = [item for item in task._context.items() if base.get(item[0], _MISSING) is not item[1]]
    extras = _Extras(task_path(task), task._spawned, getattr(task, "_generator", None), changed)
    try:
        data = captured.dumps(partial(_Pickler, extras=extras))
    except NotPortable:
        for variable, value in changed:
            try:
                dumps((variable, value))
            except Exception as error:
                what = (
                    f"holds a {type(value).__name__} that cannot be pickled in context variable {variable.name!r}"
                )
                raise NotPortable(f"{what}: {error}") from error
        raise
    if len(data) > size_max:
        raise PayloadTooLargeError(f"its frames have {len(data)} bytes when pickled, the limit is {size_max}")
    return captured, data


def explain(future: Future[Any]) -> str | None:
    """Why a task that has been started stays on this node; None if it could go on elsewhere, or is not here.

    A task that is a plain function stays wherever it was started. A coroutine stays while it runs, and while its
    frames hold something that cannot travel.
    """
    if future._state != RUNNING:
        return None
    if type(future._work) is not CoroutineType:
        return None if type(future._work) is Parcel else "is a plain function: only coroutines move once started"
    pinned: str | None = getattr(future, "_pinned", None)
    if pinned is not None:
        return pinned
    try:
        # What it waits for is not here yet, and would be refused; all else is looked at.
        _continuation.capture(future._work).dumps(_Trial)
    except NotPortable as error:
        return str(error)
    return None


class _Trial(_continuation.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is Future:
            return Future, ()
        reduced = reduce_special(obj)
        return super().reducer_override(obj) if reduced is NotImplemented else reduced


def unpack(data: bytes) -> Contents:
    """Undo `pack`.

    Raises:
        RestoreRefused: it cannot go on here; none of its instructions has run.
    """
    unpicklers: list[_Unpickler] = []

    def make(file: Any) -> _Unpickler:
        unpicklers.append(_Unpickler(file))
        return unpicklers[0]

    coroutine = _continuation.restore(data, make)
    return Contents(coroutine, *unpicklers[0].extras)
