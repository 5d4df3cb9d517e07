"""Suspended coroutine tasks to bytes and back: the frames, and what the runtime keeps beside them.

A *parcel* holds the frames (`_continuation`), what the task set in its `contextvars`, its place in the tree of
tasks and its generator, all in one pickle: what the frames and the runtime share stays shared. Futures in it are
ended, or their outcome has arrived; they travel as values.

Imported when the first continuation is about to travel: most programs never need it.
"""

from __future__ import annotations

import contextvars
import random
from collections.abc import Callable, Sequence
from functools import partial
from types import CoroutineType
from typing import Any, NamedTuple

from p2pscoop import _continuation
from p2pscoop._core.ids import NodeId, TaskKey
from p2pscoop._core.limits import NODE_ID_SIZE
from p2pscoop._future import DONE, RUNNING, Future, Kept, Parcel, task_path
from p2pscoop._payload import dumps, reduce_special
from p2pscoop.errors import NotPortable, RestoreRefused

_KEY_SIZE = NODE_ID_SIZE + 8

__all__ = ["Extras", "explain", "keys_of", "label", "pack", "unpack"]

_MISSING = object()


class Extras(NamedTuple):
    """What travels with the frames of a task.

    Attributes:
        path: of the task.
        spawned: how many tasks it has spawned.
        generator: its own, if it has asked for it.
        variables: what it had set in its context.
    """

    path: bytes
    spawned: int
    generator: random.Random | None
    variables: list[tuple[contextvars.ContextVar[Any], Any]]


def _value_kept_here(owner: NodeId, serial: int) -> Any:
    """The future of a value that the receiver keeps; the unpickler replaces this."""
    raise RestoreRefused(f"the value of task {serial} of node {owner.hex()} is not here")


class _Pickler(_continuation.Pickler):
    def __init__(
        self, file: Any, *, extras: Extras, owner: NodeId, holder: NodeId, needs: list[Kept], **settings: Any
    ) -> None:
        super().__init__(file, **settings)
        self._extras = extras
        self._owner = owner
        self._holder = holder
        self._needs = needs

    def dump(self, obj: Any) -> None:
        self._needs.clear()
        super().dump((obj, self._extras))

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is Future and obj._state < DONE and not hasattr(obj, "_arrived"):
            kept: tuple[NodeId, int] | None = getattr(obj, "_kept", None)
            if kept is not None and kept[0] == self._holder:
                self._needs.append(Kept(obj, *kept))
                return _value_kept_here, (self._owner, kept[1])
        reduced = reduce_special(obj)
        return super().reducer_override(obj) if reduced is NotImplemented else reduced


class _Unpickler(_continuation.Unpickler):
    extras: Extras

    def __init__(self, file: Any, kept: Callable[[TaskKey], Future[Any]]) -> None:
        super().__init__(file)
        self._kept = kept

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if module_name == __name__ and global_name == _value_kept_here.__name__:
            return lambda owner, serial: self._kept(TaskKey(owner, serial))
        return super().find_class(module_name, global_name)

    def load(self) -> Any:
        suspended, self.extras = super().load()
        return suspended


def pack(
    task: Future[Any], base: contextvars.Context, size_max: int, owner: NodeId, holder: NodeId
) -> tuple[_continuation.Captured, bytes, tuple[Kept, ...]]:
    """A suspended coroutine task as bytes; the original is not touched.

    Args:
        task: its `_work` is the coroutine. Nobody may resume it meanwhile.
        base: the context that tasks start with on every node.
        size_max: more than this is not moved.
        owner: this node.
        holder: the node that it goes to; values that are there already are left out.

    Returns:
        What was read, its bytes, and the futures whose values were left out.

    Raises:
        NotPortable: naming what does not travel, or that it is too large.
    """
    captured = _continuation.capture(task._work)
    changed = [item for item in task._context.items() if base.get(item[0], _MISSING) is not item[1]]
    extras = Extras(task_path(task), task._spawned, getattr(task, "_generator", None), changed)
    needs: list[Kept] = []
    try:
        data = captured.dumps(partial(_Pickler, extras=extras, owner=owner, holder=holder, needs=needs))
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
        raise NotPortable(f"holds {len(data)} bytes; from {size_max} on frames stay where they are")
    return captured, data, tuple(needs)


def label(owner: NodeId, needs: Sequence[Kept]) -> bytes:
    """The keys of the values that were left out: what the receiver must look for before it unpickles."""
    return b"".join(owner + need.serial.to_bytes(8, "big") for need in needs)


def keys_of(label_: bytes) -> list[TaskKey]:
    """Undo `label`. What is no label has no keys."""
    starts = range(0, len(label_) - _KEY_SIZE + 1, _KEY_SIZE)
    return [
        TaskKey(label_[at : at + NODE_ID_SIZE], int.from_bytes(label_[at + NODE_ID_SIZE : at + _KEY_SIZE], "big"))
        for at in starts
    ]


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


def unpack(data: bytes, kept: Callable[[TaskKey], Future[Any]]) -> tuple[Any, Extras]:
    """The coroutine, suspended where the original was, and what came with it.

    Args:
        data: the bytes.
        kept: gives the future of a value that was left out, or raises `RestoreRefused`.

    Raises:
        RestoreRefused: it cannot go on here; none of its instructions has run.
    """
    unpicklers: list[_Unpickler] = []

    def make(file: Any) -> _Unpickler:
        unpicklers.append(_Unpickler(file, kept))
        return unpicklers[0]

    coroutine = _continuation.restore(data, make)
    return coroutine, unpicklers[0].extras
