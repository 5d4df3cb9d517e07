"""The port of a runtime that only submits: the queue behind an `Executor`.

Tasks are given to nodes in the order of submission, in batches that last about `_BATCH_S`, as far as can be
told from the batches before: what has been given away can no longer be cancelled, so a queue of long tasks must
not be given away whole, while tiny ones are not worth a message each (guided by the idea of Polychronopoulos and
Kuck, Guided Self-Scheduling, 1987, with time instead of counts).
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import CancelledError, Future, InvalidStateError
from functools import partial
from typing import Any

from p2pscoop._core.deque import take_oldest
from p2pscoop._core.ids import NodeId, TaskKey
from p2pscoop._core.values import Outcome, PeerInfo, Spec, SpecKind
from p2pscoop._future import CANCELLED, DONE, PATH_SIZE, deaths_max_of, name_of
from p2pscoop._payload import SpecEncoder, decode_outcome
from p2pscoop._port import Guest
from p2pscoop.errors import InitializerError, JoinRefusedError, PayloadError

__all__ = ["Pool"]

logger = logging.getLogger("p2pscoop")

_BATCH_S = 0.05


class _Batch:
    """Tasks that were given away together."""

    __slots__ = ("began", "left", "size")

    def __init__(self, size: int) -> None:
        self.began = time.monotonic()
        self.size = size
        self.left = size


class _Task:
    """A submitted call, until its outcome is here."""

    __slots__ = ("args", "batch", "future", "kwargs", "number", "progress", "serial", "work")

    def __init__(
        self,
        number: int,
        future: Future[Any],
        work: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self.number = number
        self.future = future
        self.work = work
        self.args = args
        self.kwargs = kwargs
        self.serial: int | None = None
        self.batch: _Batch | None = None
        self.progress: Spec | None = None
        """The continuation with which it came home."""

    def claim(self) -> bool:
        """Called by the thread that took the task off the queue, which no other can have done."""
        if self.batch is not None:
            # It was given away before and came home: to its user it has been running since.
            return not self.future.done()
        return self.future.set_running_or_notify_cancel()

    @property
    def claimed(self) -> bool:
        return self.future.done()


class Pool:
    """A queue of calls, and the futures of those that are under way.

    Args:
        feed: called when there is something to steal and `hungry` is set.
        settled_at_home: called with the serial of a lent task whose future was ended here.
        stop: called with a task that was given away, and need not be run any further.
        path: what the paths of the tasks derive from.
        origin: says which node this process is.
        initializes: whether nodes call an initializer; if it fails on one of them, no call will ever run.
    """

    def __init__(
        self,
        feed: Callable[[], None],
        settled_at_home: Callable[[int], None],
        stop: Callable[[object], None],
        path: bytes,
        origin: Callable[[], NodeId],
        *,
        initializes: bool,
    ) -> None:
        self._initializes = initializes
        self._origin = origin
        self.member = threading.Event()
        """Set when the process is a member of its cluster, or will not be one."""
        self.hungry = False
        self.broken: Exception | None = None
        self._feed = feed
        self._settled_at_home = settled_at_home
        self._stop = stop
        self._path = path
        self._queue: deque[_Task] = deque()
        self._unfinished: dict[int, _Task] = {}
        self._idle = threading.Condition()
        self._numbers = itertools.count()
        self._task_s = _BATCH_S
        self._done_at: dict[NodeId, float] = {}
        """When each node was done with a batch: what it got before that had to wait until then."""
        """What a task takes on a node, smoothed."""

    # ------------------------------------------------------------------------------ for the executor

    def submit(self, work: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Future[Any]:
        """Queue a call."""
        future = _Future()
        task = _Task(next(self._numbers), future, work, args, kwargs)
        future.stop = partial(self._cancel, task.number)
        with self._idle:
            self._unfinished[task.number] = task
        # By number: a callback that held the task would close a cycle, and keep arguments and result alive in it.
        future.add_done_callback(partial(self._forget, task.number))
        if self.broken is not None:
            _end(future, None, self.broken)  # It broke after the executor had looked.
            return future
        self._queue.append(task)
        self._announce()
        return future

    def cancel_all(self) -> None:
        """Cancel what has not been given away."""
        for task in self._snapshot():
            task.future.cancel()

    def _cancel(self, number: int) -> bool:
        """Cancel a call that has been given away."""
        with self._idle:
            task = self._unfinished.get(number)
        if task is None or not task.future.running():
            return False
        _end(task.future, None, CancelledError())
        # Home again or not: if it lies in the queue, it is seen to have ended when its turn comes.
        self._stop(task)
        return True

    def fail_all(self, error: Exception) -> None:
        """No task will ever run again: end all futures with this error."""
        self.broken = error
        self._queue.clear()
        for task in self._snapshot():
            _end(task.future, None, error)

    def wait_until_idle(self) -> None:
        """Block until every future has ended."""
        with self._idle:
            self._idle.wait_for(lambda: not self._unfinished)

    def _snapshot(self) -> list[_Task]:
        with self._idle:
            return list(self._unfinished.values())

    def _forget(self, number: int, _: Future[Any]) -> None:
        with self._idle:
            task = self._unfinished.pop(number)
            # Let go of the arguments at once, whoever keeps the task.
            task.args, task.kwargs, task.work = (), {}, _gone
            if not self._unfinished:
                self._idle.notify_all()

    def _announce(self) -> None:
        if self.hungry:
            self.hungry = False
            self._feed()

    # ------------------------------------------------------------------ port of the runtime (any thread)

    def take(self, count_max: int, thief: NodeId) -> tuple[Sequence[_Task], Sequence[Guest]]:
        """See `Port`."""
        del thief
        count = max(1, min(count_max, int(_BATCH_S / self._task_s)))
        tasks = take_oldest([self._queue], count)
        batch = _Batch(len(tasks))
        for task in tasks:
            task.batch = batch
        return tasks, ()

    def kept(self, task: _Task, serial: int, holder: NodeId, hungry: bool) -> None:
        """See `Port`. Never happens: what runs no tasks is sent all values at once."""

    def released(self, task: _Task) -> None:
        """See `Port`. What it came home with is not needed any more: if it is lost, it starts again."""
        task.progress = None

    def passed(self, key: TaskKey) -> None:
        """See `Port`. Never happens, as `enqueue`."""

    def encode(self, task: _Task, encoder: SpecEncoder, thief: NodeId) -> Spec:
        """See `Port`."""
        del thief
        if task.progress is not None:
            return task.progress
        path = hashlib.blake2b(self._path + task.number.to_bytes(8, "big"), digest_size=PATH_SIZE).digest()
        return encoder.encode(task.work, task.args, task.kwargs, path, self._origin())

    def deaths_max(self, task: _Task) -> int | None:
        """See `Port`."""
        return deaths_max_of(task.work)

    def name_of(self, task: _Task) -> str:
        """See `Port`."""
        return name_of(task.work)

    def serial_of(self, task: _Task) -> int | None:
        """See `Port`."""
        return task.serial

    def refuse(self, task: _Task, error: PayloadError) -> None:
        """See `Port`. This process runs no tasks, so the future fails."""
        _end(task.future, None, error)

    def key_of(self, task: _Task) -> TaskKey | None:
        """See `Port`."""
        del task
        return None

    def settle(self, task: _Task, outcome: Outcome, holder: NodeId, hungry: bool) -> None:
        """See `Port`."""
        del hungry
        batch = task.batch
        if batch is not None:
            batch.left -= 1
            if batch.left == 0:
                now = time.monotonic()
                began = max(batch.began, self._done_at.get(holder, 0.0))
                self._done_at[holder] = now
                took_s = max(1e-6, (now - began) / batch.size)
                self._task_s = took_s if took_s > self._task_s else 0.5 * (self._task_s + took_s)
        state, value = decode_outcome(outcome)
        if state == DONE:
            _end(task.future, value, None)
        elif state == CANCELLED:
            _end(task.future, None, CancelledError())
        else:
            _end(task.future, None, value)

    def come_home(self, task: _Task, serial: int | None, spec: Spec | None = None) -> None:
        """See `Port`."""
        task.serial = serial
        task.progress = spec if spec is not None and spec.kind is SpecKind.CONTINUATION else None
        if task.future.done():
            if serial is not None:
                self._settled_at_home(serial)
            return
        self._queue.appendleft(task)
        self._announce()

    def enqueue(self, guests: Sequence[Guest]) -> None:
        """See `Port`. Never happens: a node that does not run tasks does not steal."""

    def withdraw(self, keys: Sequence[TaskKey]) -> None:
        """See `Port`. Never happens, as `enqueue`."""

    def interrupt(self, keys: Sequence[TaskKey]) -> None:
        """See `Port`. Never happens, as `enqueue`."""

    def share(self) -> list[NodeId]:
        """See `Port`. A pool has the tasks of one program."""
        return [self._origin()] if self._queue else []

    def take_of(self, program: NodeId, thief: NodeId) -> tuple[Sequence[_Task], Sequence[Guest]]:
        """See `Port`."""
        del program
        return self.take(1, thief)

    def counters(self) -> dict[str, int]:
        """See `Port`."""
        return {}

    def joined(self) -> None:
        """See `Port`."""
        self.member.set()

    def refused(self, reason: str) -> None:
        """See `Port`."""
        self.fail_all(JoinRefusedError(f"the cluster refused this program: {reason}"))
        self.member.set()

    def arrived(self, info: PeerInfo) -> None:
        """See `Port`."""
        logger.info("executor: %s is there (%s, pid %d)", info.name, info.host, info.pid)

    def departed(self, info: PeerInfo, reason: str | None, failed: bool) -> None:
        """See `Port`."""
        self._done_at.pop(info.id, None)
        logger.info("executor: %s %s", info.name, f"left: {reason}" if reason else "is gone")
        if failed and self._initializes:
            self._break(f"node {info.name}: {reason}")

    def _break(self, reason: str) -> None:
        if self.broken is None:
            # Where the executors of the standard library say so.
            logging.getLogger("concurrent.futures").critical("Exception in initializer: %s", reason)
            self.fail_all(InitializerError(reason))


class _Future(Future[Any]):
    """The standard library's, which an asyncio program may await as well, and whose call can be interrupted."""

    stop: Callable[[], bool]

    def cancel(self, *, running: bool = False) -> bool:
        """Cancel the call, if no node has taken it.

        Args:
            running: whether to cancel it as well if a node has: it is interrupted there, as by
                `futures.Future.cancel`, and whoever waits for it gets a `CancelledError`, at once. To the standard
                library it is a call that ran and raised that: `cancelled()` stays False.

        Returns:
            Whether it is cancelled now, and was not over.
        """
        return super().cancel() or (running and self.stop())

    def __await__(self) -> Generator[Any, None, Any]:
        import asyncio

        return asyncio.wrap_future(self).__await__()


def _end(future: Future[Any], value: Any, error: BaseException | None) -> None:
    """Give a future its outcome, unless it has one."""
    try:
        if future.done() or (not future.running() and not future.set_running_or_notify_cancel()):
            return
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)
    except (InvalidStateError, RuntimeError):
        pass  # Another thread was faster.
    except BaseException:
        # Out of a callback, which may raise `SystemExit`: the thread that brings outcomes must go on.
        logger.exception("a callback of %r raised", future)


def _gone(*_: object, **__: object) -> None:
    """Stands for the function of a call that has ended."""
