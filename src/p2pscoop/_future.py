"""Futures of tasks, and the fast half of the local path: the join of a task that nobody has started.

A task is *claimed* by deleting its ticket, which is one atomic operation in CPython: the frame that joins it,
the loop of the node and the thread that serves thieves need no lock between them.
"""

from __future__ import annotations

import contextvars
import hashlib
import logging
import random
import time
from _thread import get_ident
from collections.abc import Callable, Generator
from concurrent.futures import CancelledError
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    from p2pscoop._core.ids import NodeId, TaskKey
    from p2pscoop._core.values import Outcome
    from p2pscoop._gathering import Gathering
    from p2pscoop._scheduler import Scheduler

__all__ = [
    "DEPTH_MAX",
    "PATH_SIZE",
    "Future",
    "Kept",
    "Parcel",
    "TaskOptions",
    "TimeLimit",
    "call_as_user",
    "deaths_max_of",
    "finished",
    "make_future",
    "name_of",
    "overtime",
    "program_of",
    "task_path",
]

logger = logging.getLogger("p2pscoop")

T = TypeVar("T")

DEPTH_MAX = 64
"""Nested joins on one strand. Two Python frames each, beside those of the user's own functions: far below the
default recursion limit of 1,000, and a fresh strand every 64 levels costs next to nothing."""

PATH_SIZE = 16
"""Bytes of what names a task on all nodes."""

# States of a future. QUEUED is 0 and everything from DONE on is over: the hot path compares numbers.
WAITING = -1  # for futures among its arguments
QUEUED = 0
RUNNING = 1  # or suspended
LENT = 2
DONE = 3
FAILED = 4
CANCELLED = 5

_STATE_NAMES = {
    WAITING: "waiting for its arguments",
    QUEUED: "queued",
    RUNNING: "running",
    LENT: "lent",
    DONE: "done",
    FAILED: "failed",
    CANCELLED: "cancelled",
}


class Parcel:
    """A continuation as bytes, in the place of a task's work."""

    __slots__ = ("data", "needs")

    def __init__(self, data: bytes, needs: tuple[Kept, ...] = ()) -> None:
        self.data = data
        self.needs = needs
        """Futures in it whose values are elsewhere."""


class Kept(NamedTuple):
    """A future whose value stays with the node that computed it: which node, and which of our tasks."""

    future: Future[Any]
    holder: NodeId
    serial: int


class TaskOptions:
    """What a function says about the tasks in which it is called: base of what `p2pscoop.task` makes.

    Attributes:
        retries: how often such a task is started again when the node that has it dies; None: as others.
        name: what it is called in messages; None: as the function.
    """

    retries: int | None
    name: str | None


class TimeLimit:
    """Until when a task has to have ended; kept with its future while it runs.

    Attributes:
        task: the task; None when it has ended in time.
        until: on the monotonic clock of the node that runs it.
        timeout: how many seconds that was from its start.
        name: what the task is called in messages.
        live: whether the task runs and has time left.
        error: what it ends with, once its time is up.
    """

    __slots__ = ("error", "live", "name", "task", "timeout", "until")

    def __init__(self, task: Future[Any], until: float, timeout: float, name: str) -> None:
        self.task: Future[Any] | None = task
        self.until = until
        self.timeout = timeout
        self.name = name
        self.live = True
        self.error: BaseException | None = None


class Future(Generic[T]):
    """The promise of a task's value. Made by `futures.submit`, never directly.

    It belongs to the thread that its node runs tasks in; only a finished future may be used elsewhere.
    """

    __slots__ = (
        "__weakref__",
        "_args",
        "_arrived",
        "_context",
        "_gathering",
        "_generator",
        "_holder",
        "_index",
        "_kept",
        "_key",
        "_kwargs",
        "_limit",
        "_options",
        "_parent",
        "_path",
        "_pinned",
        "_program",
        "_scheduler",
        "_serial",
        "_spawned",
        "_state",
        "_ticket",
        "_value",
        "_waiters",
        "_work",
    )

    # The fields are typed loosely: what they hold changes with the state, and the hot path pays for each.
    _scheduler: Scheduler
    _parent: Future[Any] | None
    _index: int  # among the tasks of its parent
    _path: bytes | None  # once somebody has asked for it
    _spawned: int  # how many tasks it has spawned
    _state: int
    _work: Any  # the function; the coroutine once there is one
    _args: Any
    _kwargs: Any
    _ticket: bool  # deleted by whoever claims the task
    _value: Any  # the value, or the exception
    _waiters: list[Callable[[Future[Any]], None]] | None
    _context: contextvars.Context  # of a started coroutine
    _serial: int  # of a task that has been lent
    # Set where they are needed, and read with a default:
    _arrived: Outcome  # of a lent task, before the home thread has unpickled it
    _gathering: Gathering  # of a future that `gather` made
    _generator: random.Random  # the task's own, once it has asked for it
    _holder: NodeId  # of a lent task: the node that its outcome came from
    _kept: tuple[NodeId, int]  # of a lent task with a large value: its holder, and the serial
    _key: TaskKey  # of a task that another node owns
    _limit: TimeLimit  # of a task that may take only so long
    _options: TaskOptions  # of a coroutine, whose function had some
    _program: NodeId  # of a task that another node owns: the origin of the program that it belongs to
    _pinned: str  # why its frames could not travel when they were last asked to

    def __repr__(self) -> str:
        name = name_of(self._work)
        return f"<Future of {name}: {_STATE_NAMES[self._state]}>"

    # ----------------------------------------------------------------------------------- the hot path

    def result(self, timeout: float | None = None) -> T:
        """The task's value.

        If nobody has started the task yet, it runs here and now.

        Args:
            timeout: seconds to wait at most. Checked between tasks: with a timeout the node goes on running
                tasks while this frame waits, and cannot interrupt the one that it is running.

        Raises:
            TimeoutError: the task was not done in time.
            concurrent.futures.CancelledError: it was cancelled.
            BaseException: whatever the task raised.
        """
        if self._state == QUEUED and timeout is None:
            scheduler = self._scheduler
            if get_ident() != scheduler.thread:
                raise scheduler.wrong_thread()
            try:
                del self._ticket
            except AttributeError:
                pass  # A thief was faster.
            else:
                self._state = RUNNING
                # Take it off the deque if it lies on top, with the tombstones below it; else it stays
                # behind as a tombstone itself.
                entries = scheduler.deque
                try:
                    if entries[-1] is self:
                        entries.pop()
                        while entries[-1]._state:
                            entries.pop()
                except IndexError:
                    pass
                depth = scheduler.depth
                if depth < scheduler.depth_max:
                    task = scheduler.task
                    scheduler.depth = depth + 1
                    scheduler.task = self
                    scheduler.executed += 1
                    try:
                        kwargs = self._kwargs
                        value = self._work(*self._args, **kwargs) if kwargs else self._work(*self._args)
                    except BaseException as error:
                        scheduler.depth = depth
                        scheduler.task = task
                        scheduler.fail(self, error)
                    else:
                        scheduler.depth = depth
                        scheduler.task = task
                        # It is not RUNNING if it came home after having been lent, and its outcome came too.
                        kind = type(value)
                        if kind is not CoroutineType and kind is not Future and self._state == RUNNING:
                            self._value = value
                            self._state = DONE
                            self._work = self._args = None
                            if self._waiters:
                                scheduler.notify(self)
                            return value  # type: ignore[no-any-return]  # it is what the task made it
                        if self._state == RUNNING:
                            scheduler.go_on_with(self, value)
                        elif kind is CoroutineType:
                            value.close()
                else:
                    scheduler.handoff.append(self)
        if self._state != DONE:
            self._wait(timeout)
            self._check()
        return self._value  # type: ignore[no-any-return]  # it is what the task made it

    def __await__(self) -> Generator[Future[Any], None, T]:
        if self._state < DONE:
            yield self
        return self.result()

    # ------------------------------------------------------------------------------------ everything else

    def _go_on(self, _: Future[Any]) -> None:
        """What this suspended coroutine task awaits is done."""
        try:
            del self._ticket
        except AttributeError:
            return  # It is on its way to another node already.
        self._scheduler.coroutines.append(self)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What the task raised, or None if it returned.

        Args:
            timeout: as for `result`.

        Raises:
            TimeoutError: the task was not done in time.
            concurrent.futures.CancelledError: it was cancelled.
        """
        try:
            self.result(timeout)
        except BaseException as error:
            if self._state < DONE or isinstance(error, KeyboardInterrupt):
                raise
        if self._state == CANCELLED:
            raise CancelledError
        return self._value if self._state == FAILED else None

    def done(self) -> bool:
        """Whether the task has ended: returned, raised, or been cancelled."""
        if self._state < DONE and get_ident() == self._scheduler.thread:
            self._scheduler.poll()
        return self._state >= DONE or hasattr(self, "_kept")

    def running(self) -> bool:
        """Whether the task has been started, here or (as far as this node knows) elsewhere."""
        return self._state in (RUNNING, LENT) and not hasattr(self, "_kept")

    def cancelled(self) -> bool:
        """Whether the task was cancelled."""
        return self._state == CANCELLED

    def cancel(self, *, running: bool = False) -> bool:
        """Cancel the task if nobody has started it and it has not left this node.

        Args:
            running: whether to cancel it as well if it has been started, here or elsewhere, together with the
                tasks that it has spawned. It is interrupted by `TaskCancelled`, wherever it waits; on another node
                also in the middle of Python code, and if it has not ended some seconds later, that node is
                replaced.

        Returns:
            Whether the task is cancelled, or is about to be: here it may first have `finally` blocks to run.
        """
        if self._state <= QUEUED:
            self._scheduler.check_thread()
            if self._state == WAITING or self.claim():
                self._scheduler.end(self, CANCELLED, None)
        if running and QUEUED < self._state < DONE and not hasattr(self, "_kept"):
            self._scheduler.check_thread()
            self._scheduler.interrupt(self)
            return True
        return self._state == CANCELLED

    @property
    def id(self) -> str | None:
        """What names the task, in hexadecimal: the same on any number of nodes, and in each run of one seed.

        None for a future that came with the frames of a task that moved: it is a value, and no task of this node.
        """
        return task_path(self).hex() if hasattr(self, "_scheduler") else None

    @property
    def executor(self) -> str | None:
        """The id (`p2pscoop.worker`) of the node that the task ended on; None until it has, and as for `id`."""
        if self._state < DONE or self._state == CANCELLED or not hasattr(self, "_scheduler"):
            return None
        holder: NodeId | None = getattr(self, "_holder", None)
        return self._scheduler.hooks.node_id().hex() if holder is None else holder.hex()

    def add_done_callback(self, fn: Callable[[Future[T]], object]) -> None:
        """Call `fn(future)` when the task has ended, or now if it has.

        It is called in the thread that runs tasks. What it raises is logged and ignored.
        """

        def callback(future: Future[Any]) -> None:
            try:
                fn(future)
            except Exception:
                logger.exception("callback %r of %r raised", fn, future)

        if self._state >= DONE:
            callback(self)
        else:
            self._scheduler.check_thread()
            self.add_waiter(callback)

    def add_waiter(self, waiter: Callable[[Future[Any]], None]) -> None:
        """Call this in the home thread when the task ends, and have its value here then. It must not raise."""
        self.await_quietly(waiter)
        if hasattr(self, "_kept"):
            self._scheduler.hooks.wanted(self)

    def await_quietly(self, waiter: Callable[[Future[Any]], None]) -> None:
        """As `add_waiter`, but a value that another node keeps may stay there."""
        if self._waiters is None:
            self._waiters = [waiter]
        else:
            self._waiters.append(waiter)

    def discard_waiter(self, waiter: Callable[[Future[Any]], None]) -> None:
        """Undo `add_waiter`, if the task has not ended."""
        if self._waiters is not None and waiter in self._waiters:
            self._waiters.remove(waiter)

    def claim(self) -> bool:
        """Make the task the caller's to run. Atomic; any thread."""
        try:
            del self._ticket
        except AttributeError:
            return False
        self._state = RUNNING
        return True

    @property
    def claimed(self) -> bool:
        """Whether somebody has the task."""
        return self._state != QUEUED

    def _wait(self, timeout: float | None) -> None:
        if self._state >= DONE:
            return
        scheduler = self._scheduler
        scheduler.check_thread()
        if hasattr(self, "_kept"):
            timeout = None  # It has ended; what is waited for is only the way here.
        if timeout is not None and timeout <= 0:
            scheduler.poll()
            if self._state < DONE:
                raise TimeoutError
            return
        deadline = None if timeout is None else time.monotonic() + timeout
        wake = scheduler.strand.wake
        self.add_waiter(wake)
        try:
            while self._state < DONE:
                if not scheduler.park(deadline) and self._state < DONE:
                    raise TimeoutError
        finally:
            self.discard_waiter(wake)

    def _check(self) -> None:
        """Raise what the task raised."""
        if self._state == FAILED:
            try:
                raise self._value
            finally:
                # Break the cycle: exception, traceback, frame, self.
                self = None  # type: ignore[assignment]
        if self._state == CANCELLED:
            raise CancelledError

    def __reduce__(self) -> Any:
        raise TypeError(
            "only p2pscoop can pickle a future, and only one that has ended: wait for it, or pass it to submit as "
            f"an argument ({self!r} was about to leave its node)"
        )


def make_future(
    scheduler: Scheduler,
    work: Callable[..., Any] | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    parent: Future[Any] | None,
    index: int,
) -> Future[Any]:
    """A future in state QUEUED. `futures.submit` has this inlined.

    Not an `__init__`: a class call that runs one takes 80 ns longer, a tenth of a whole spawn and join.
    """
    future: Future[Any] = Future()
    future._scheduler = scheduler
    future._work = work
    future._args = args
    future._kwargs = kwargs
    future._parent = parent
    future._index = index
    future._path = None
    future._spawned = 0
    future._state = QUEUED
    future._ticket = True
    future._waiters = None
    return future


def finished(state: int, value: Any) -> Future[Any]:
    """A future that has ended, of no scheduler: one that came with a continuation."""
    future: Future[Any] = Future()
    future._value = value
    future._state = state
    future._work = future._waiters = None
    return future


def overtime(future: Future[Any]) -> BaseException | None:
    """What a task ends with, if its time is up."""
    limit: TimeLimit | None = getattr(future, "_limit", None)
    return None if limit is None else limit.error


def task_path(future: Future[Any]) -> bytes:
    """What names a task whatever node runs it: derived from its parent's path and its number there."""
    chain: list[Future[Any]] = []
    each: Future[Any] = future
    while each._path is None:
        chain.append(each)
        assert each._parent is not None, "the main program's task has a path"
        each = each._parent
    path = each._path
    for each in reversed(chain):
        path = each._path = hashlib.blake2b(path + each._index.to_bytes(8, "big"), digest_size=PATH_SIZE).digest()
    return path


def program_of(task: Future[Any] | None, default: NodeId) -> NodeId:
    """The origin of a task's program: that of the guest that the task descends from, else this node."""
    chain: list[Future[Any]] = []
    program = default
    while task is not None:
        known = getattr(task, "_program", None)
        if known is not None:
            program = known
            break
        chain.append(task)
        task = task._parent
    for each in chain:
        each._program = program
    return program


def call_as_user(func: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
    """Its frame is interrupted as the user's are, for functions that have none, like `time.sleep`."""
    return func(*args, **kwargs)


def deaths_max_of(work: Any) -> int | None:
    """With so many nodes a task may die before it is given up; None: as the limits of its owner say."""
    return None if not isinstance(work, TaskOptions) or work.retries is None else work.retries + 1


def name_of(work: Any) -> str:
    """What a task is called in messages."""
    while not hasattr(work, "__qualname__") and hasattr(work, "func"):  # functools.partial
        work = work.func
    if work is None or type(work) is Parcel:
        return "a task"
    return str(getattr(work, "__qualname__", None) or type(work).__qualname__)
