"""A node that runs tasks: a scheduler and a runtime, joined."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import CoroutineType
from typing import Any

from p2pscoop._core.deque import half
from p2pscoop._core.ids import NOBODY, NodeId, TaskKey
from p2pscoop._core.values import Outcome, PeerInfo, Spec, SpecKind
from p2pscoop._future import (
    CANCELLED,
    DONE,
    LENT,
    RUNNING,
    Future,
    Parcel,
    deaths_max_of,
    make_future,
    name_of,
    overtime,
    program_of,
    task_path,
)
from p2pscoop._migration import Handle, Migration, task_of
from p2pscoop._payload import (
    SpecEncoder,
    decode_outcome,
    decode_spec,
    encode_error,
    encode_future,
)
from p2pscoop._port import Guest
from p2pscoop._programs import Programs
from p2pscoop._runtime import ASK_PROGRAM, Runtime
from p2pscoop._scheduler import Scheduler
from p2pscoop._shipping import Shipping
from p2pscoop.errors import CodeMismatchError, PayloadError, ShutdownError, TaskError

__all__ = ["Home"]

logger = logging.getLogger("p2pscoop")

_LAST_WORD_S = 2.0
"""How long a node that ends waits for the owner of the task for which it does. Repetitions come after 0.5 s."""


class Home:
    """Both a scheduler's `Hooks` and a runtime's `Port`.

    Args:
        interruptible: whether a `KeyboardInterrupt` here is a person's.
        path: of the main program's task.
        on_refused: called (in the home thread) with the reason if the cluster does not want this node.
        on_origin: called, in any thread, with an origin that is there.
        on_origin_gone: called, in any thread, with an origin that is gone, and whether it said goodbye.
        on_broken: called (in the home thread) when the program's initializer raised here.
        on_cancelled: called (in any thread) with a guest that runs and need not run any further.
    """

    def __init__(
        self,
        *,
        interruptible: bool,
        path: bytes,
        on_refused: Callable[[str], None] | None = None,
        on_origin: Callable[[PeerInfo], None] | None = None,
        on_origin_gone: Callable[[PeerInfo, bool], None] | None = None,
        on_broken: Callable[[str], None] | None = None,
        on_cancelled: Callable[[Future[Any]], None] | None = None,
    ) -> None:
        self.runtime: Runtime
        self.scheduler = Scheduler(self, path=path, interruptible=interruptible)
        self.is_member = threading.Event()
        self._on_refused = on_refused
        self._on_origin = on_origin
        self._on_origin_gone = on_origin_gone
        self._on_broken = on_broken
        self._on_cancelled = on_cancelled
        self._hosted: dict[TaskKey, Future[Any]] = {}
        """Guests that were started."""
        self._queued: dict[TaskKey, Guest] = {}
        self.programs = Programs()
        self._loading = NOBODY
        """The program whose pickles are being read, whichever task runs; NOBODY: none."""
        self._dropped: set[NodeId] = set()
        """Programs that have ended; tasks of theirs may still come from nodes that have not heard of it."""
        self._warned: set[str] = set()
        self.migration = Migration(self.scheduler, lambda: self.runtime)

    def ship(self) -> None:
        """Have modules that are not here come from their programs' origins. For a process that is no origin."""
        self.programs.shipping = Shipping(self.runtime, self._program, self._is_busy)
        self.programs.shipping.install()

    def _program(self) -> NodeId:
        """The program whose code runs, or is being unpickled."""
        me = self.runtime.node.id
        program = program_of(self.scheduler.task, me) if self._loading == NOBODY else self._loading
        return self.programs.current if program == me else program

    def _is_busy(self, program: NodeId) -> bool:
        return any(task._program == program for task in list(self._hosted.values()))

    # ------------------------------------------------------------- hooks of the scheduler (home thread)

    def seek(self) -> None:
        """See `Hooks`."""
        self.runtime.do(self.runtime.node.seek)

    def found(self) -> None:
        """See `Hooks`."""
        self.runtime.found_work()

    def feed(self) -> None:
        """See `Hooks`."""
        self.runtime.feed()

    def begin(self, guest: Guest) -> Future[Any] | None:
        """See `Hooks`."""
        key = guest.key
        self._queued.pop(key, None)
        if not self.runtime.begin(key):
            return None
        program = guest.spec.program
        if program in self._dropped:
            self._cannot_begin(key, ShutdownError("the program of this task has ended"))
            return None
        self.programs.enter(program)
        with self._reading(program):
            return self._unpack(guest)

    @contextlib.contextmanager
    def _reading(self, program: NodeId) -> Iterator[None]:
        """What is imported meanwhile is imported for this program."""
        before, self._loading = self._loading, program
        try:
            yield
        finally:
            self._loading = before

    def _unpack(self, guest: Guest) -> Future[Any] | None:
        conflict = self.programs.conflict(guest.spec.program)
        if guest.spec.kind is SpecKind.CONTINUATION:
            return self._begin_continuation(guest, conflict)
        try:
            if conflict is not None:
                raise conflict
            work, args, kwargs, path = decode_spec(guest.spec)
        except CodeMismatchError as error:
            self._cannot_begin(guest.key, error)
            return None
        except BaseException as error:
            # User code runs when a pickle is loaded, so anything may come out of it.
            problem = TaskError(
                f"the task cannot be unpickled on node {self.runtime.name}: {type(error).__name__}: {error}"
            )
            problem.__cause__ = error
            self._cannot_begin(guest.key, problem)
            return None
        future = make_future(self.scheduler, work, args, kwargs, None, 0)
        future._path = path
        return self._host(future, guest.key, name_of(work), guest.spec.program)

    def _cannot_begin(self, key: TaskKey, problem: Exception) -> None:
        outcome = encode_error(problem, self._where)
        self.runtime.do(lambda now: self.runtime.node.finish(now, key, outcome))

    def _begin_continuation(self, guest: Guest, conflict: CodeMismatchError | None) -> Future[Any] | None:
        """A guest that was started elsewhere: it goes on here, or goes back to its owner."""
        future: Future[Any] = make_future(self.scheduler, None, (), {}, None, 0)
        problem = conflict or self.migration.begin(future, guest)
        if problem is not None:
            logger.warning("%s: a continuation cannot go on here: %s", self.runtime.name, problem)
            self.runtime.do(lambda now: self.runtime.node.bounce(now, guest.key))
            return None
        return self._host(future, guest.key, name_of(future._work), guest.spec.program)

    def _host(self, future: Future[Any], key: TaskKey, name: str, program: NodeId) -> Future[Any]:
        future._key = key
        future._program = program
        self._hosted[key] = future
        future.claim()
        future.add_waiter(partial(self._finish, key, name))
        return future

    def restore(self, future: Future[Any]) -> bool:
        """See `Hooks`."""
        return self.migration.restore(future)

    def wanted(self, future: Future[Any]) -> None:
        """See `Hooks`."""
        self.migration.wanted(future)

    def fetch_all(self) -> None:
        """See `Hooks`."""
        self.migration.fetch_all()

    def _finish(self, key: TaskKey, name: str, future: Future[Any]) -> None:
        self._hosted.pop(key, None)
        limits = self.runtime.limits
        outcome = encode_future(future, name, self._where, limits.message_max - limits.header_max)
        self.runtime.do(lambda now: self.runtime.node.finish(now, key, outcome))

    @property
    def _where(self) -> str:
        return f"node {self.runtime.name} (pid {os.getpid()})"

    def lent(self) -> list[Future[Any]]:
        """See `Hooks`."""
        tasks = map(task_of, self.runtime.handles())
        return [task for task in tasks if task is not None and task._state == LENT]

    def cancel(self, task: Future[Any]) -> None:
        """See `Hooks`."""
        self.scheduler.end(task, CANCELLED, None)
        self.migration.settled(task)
        self.runtime.cancel(lambda handle: task_of(handle) is task)

    def settled_at_home(self, serial: int) -> None:
        """See `Hooks`."""
        self.runtime.settled_at_home(serial)

    def size(self) -> int:
        """See `Hooks`."""
        return self.runtime.size()

    def node_id(self) -> NodeId:
        """See `Hooks`."""
        return self.runtime.node.id

    def is_origin(self) -> bool:
        """See `Hooks`."""
        return self.runtime.node.info.origin

    def quiescent(self) -> bool:
        """See `Hooks`."""
        # In this order: from the first to the last is the way that a task takes.
        return self.migration.idle and not self.runtime.surrendering and self.runtime.node.quiescent

    # ------------------------------------------------------------------ port of the runtime (any thread)

    @property
    def hungry(self) -> bool:
        """See `Port`."""
        return self.scheduler.hungry

    @hungry.setter
    def hungry(self, value: bool) -> None:
        self.scheduler.hungry = value

    def take(self, count_max: int, thief: NodeId) -> tuple[Sequence[Future[Any]], Sequence[Guest]]:
        """See `Port`. What the thief's own results made ready comes first."""
        reserved = self.migration.take_reserved(thief)
        own, guests = self.scheduler.take(max(0, count_max - len(reserved)) if reserved else count_max)
        if not (reserved or own or guests or self.scheduler.resting):
            # The main thread may be busy for long before it can see to the program that they wait for.
            guests = self.programs.take(half(self.programs.parked(), count_max))
        for guest in guests:
            self._queued.pop(guest.key, None)
        return [*reserved, *own], guests

    def key_of(self, task: Future[Any]) -> TaskKey | None:
        """See `Port`."""
        return getattr(task, "_key", None)

    def encode(self, task: Future[Any], encoder: SpecEncoder, thief: NodeId) -> Spec:
        """See `Port`."""
        work, args, kwargs = task._work, task._args, task._kwargs
        if work is None:
            raise PayloadError("its outcome came from an earlier holder")
        if type(work) is CoroutineType and hasattr(task, "_limit"):
            raise PayloadError("has a time limit, which is watched where it started")
        if type(work) in (CoroutineType, Parcel):
            return self.migration.encode(task, thief)
        program = program_of(task, self.runtime.node.id)
        return encoder.encode(work, args, kwargs, task_path(task), program)

    def deaths_max(self, task: Future[Any]) -> int | None:
        """See `Port`."""
        return deaths_max_of(getattr(task, "_options", task._work))

    def name_of(self, handle: Handle) -> str:
        """See `Port`."""
        task = task_of(handle)
        return name_of(None if task is None else getattr(task, "_options", task._work))

    def serial_of(self, task: Future[Any]) -> int | None:
        """See `Port`."""
        return getattr(task, "_serial", None)

    def refuse(self, task: Future[Any], error: PayloadError) -> None:
        """See `Port`. This node can run the task itself, so that is what it does."""
        if task._work is None:
            return
        if type(task._work) is CoroutineType:
            task._pinned = str(error)
            logger.debug("%s: %s goes on here: it %s", self.runtime.name, name_of(task._work), error)
            self.scheduler.call_soon(lambda: self.scheduler.go_on_later(task))
            return
        name = name_of(task._work)
        if name not in self._warned:
            self._warned.add(name)
            logger.warning("tasks of %s run only on the node that submits them: %s", name, error)
        self.scheduler.call_soon(lambda: self.scheduler.pin(task))

    def settle(self, handle: Handle, outcome: Outcome, holder: NodeId, hungry: bool) -> None:
        """See `Port`. Unpickled in the home thread: that may run user code."""
        task = task_of(handle)
        if task is None:
            return
        task._arrived = outcome
        if hungry:
            # Before the home thread hears of it, or it would go on with them itself.
            self.migration.reserve(task, holder)

        def settle() -> None:
            self.migration.settled(task)
            if task._state < DONE:
                task._holder = holder
            with self._reading(program_of(task, self.runtime.node.id)):
                state, value = decode_outcome(outcome)
            self.scheduler.settle(task, state, value)
            del task._arrived

        self.scheduler.call_soon(settle)

    def kept(self, task: Future[Any], serial: int, holder: NodeId, hungry: bool) -> None:
        """See `Port`."""
        self.migration.kept(task, serial, holder, hungry)

    def come_home(self, handle: Handle, serial: int | None, spec: Spec | None = None) -> None:
        """See `Port`."""
        task = task_of(handle)
        if task is None:
            if serial is not None:
                self.runtime.settled_at_home(serial)  # Nobody wants it any more.
            return

        def come_home() -> None:
            self.migration.came_home(task, spec)
            self.scheduler.come_home(task, serial)

        key = self.key_of(task)
        if key is None:
            self.scheduler.call_soon(come_home)
        else:
            self.migration.not_given(key)
            self.scheduler.call_soon(lambda: self.scheduler.go_on_later(task))

    def released(self, handle: Handle) -> None:
        """See `Port`."""
        self.migration.released(handle)

    def passed(self, key: TaskKey) -> None:
        """See `Port`."""
        self._hosted.pop(key, None)
        self.migration.passed(key)

    def enqueue(self, guests: Sequence[Guest]) -> None:
        """See `Port`."""
        for guest in guests:
            if self.migration.take_back(guest):
                continue
            if self.migration.anchor(guest):
                self.scheduler.call_soon(partial(self._begin_anchored, guest))
                continue
            self._queued[guest.key] = guest
            program = guest.spec.program
            waiting = self.programs.park(guest, self.runtime.node.id)
            if waiting == 0:
                self.scheduler.inbox.append(guest)
            elif waiting == 1:
                self.runtime.inquire(program, ASK_PROGRAM, partial(self._prepare, program))
        self.scheduler.ring()
        if self.hungry:
            # A batch may have come to one node while others wait for work: a long task must not hold up the rest.
            self.scheduler.feed()

    def _begin_anchored(self, guest: Guest) -> None:
        future = self.begin(guest)
        if future is not None:
            future._pinned = "holds a large value that is here"
            self.scheduler.go_on_later(future)

    def withdraw(self, keys: Sequence[TaskKey]) -> None:
        """See `Port`."""
        for key in keys:
            self.migration.withdrawn(key)
            guest = self._queued.pop(key, None)
            if guest is not None:
                guest.claim()

    def interrupt(self, keys: Sequence[TaskKey]) -> None:
        """See `Port`."""
        for key in keys:
            guest = self._hosted.get(key)
            if guest is not None:
                self.scheduler.call_soon(partial(self.scheduler.interrupt, guest))
                if self._on_cancelled is not None:
                    self._on_cancelled(guest)

    def drop(self, origin: NodeId) -> None:
        """A program has ended: what runs of it is interrupted, and with it what it has spawned. Any thread."""
        membership = self.runtime.node.membership
        self._dropped = {origin, *(each for each in self._dropped if each in membership)}
        hosted = list(self._hosted.items())
        self.interrupt([key for key, future in hosted if getattr(future, "_program", None) == origin])

    def hosts(self, task: Future[Any]) -> bool:
        """Whether a guest, or a task of this node's own whose time is up, runs here still. Any thread."""
        key = self.key_of(task)
        if key is None:
            return task._state == RUNNING and overtime(task) is not None
        return self._hosted.get(key) is task

    def give_up(self, task: Future[Any], error: BaseException) -> None:
        """A task does not end: tell the owner of the guest that it is, or that waits for it, this instead.

        Returns when the owner has it, or after `_LAST_WORD_S`. Any thread but the home thread and the runtime's.
        """
        guest = task
        while guest._parent is not None:
            guest = guest._parent
        key = self.key_of(guest)
        if key is None or self._hosted.pop(key, None) is None:
            return
        outcome = encode_error(error, self._where)
        self.runtime.do(lambda now: self.runtime.node.finish(now, key, outcome))
        until = time.monotonic() + _LAST_WORD_S
        while self.runtime.node.held.get(key) is not None and time.monotonic() < until:
            time.sleep(0.005)

    def share(self) -> list[NodeId]:
        """See `Port`."""
        return self.scheduler.share()

    def take_of(self, program: NodeId, thief: NodeId) -> tuple[list[Future[Any]], list[Guest]]:
        """See `Port`."""
        del thief
        own, guests = self.scheduler.take_of(program)
        for guest in guests:
            self._queued.pop(guest.key, None)
        return own, guests

    def counters(self) -> dict[str, int]:
        """See `Port`."""
        return {"executed": self.scheduler.executed, "continuations_given": self.migration.given}

    def _prepare(self, origin: NodeId, data: bytes) -> None:
        """What a program needs has come: in the home thread, since user code may run."""
        node = self.runtime.node
        row = node.membership.row(origin)
        here = row is not None and (row.info.host, row.info.pid) == (node.info.host, node.info.pid)

        def prepare() -> None:
            with self._reading(origin):
                problem = self.programs.prepare(origin, data, here=here)
            if problem is not None:
                logger.error("%s: %s", self.runtime.name, problem, exc_info=problem.__cause__)
                if self._on_broken is not None:
                    self._on_broken(str(problem))
            self.scheduler.inbox.extend(self.programs.unpark(origin))

        self.scheduler.call_soon(prepare)

    def joined(self) -> None:
        """See `Port`."""
        self.is_member.set()
        self.scheduler.call_soon(_nothing)

    def refused(self, reason: str) -> None:
        """See `Port`."""
        self.scheduler.call_soon(lambda: self._on_refused and self._on_refused(reason))

    def arrived(self, info: PeerInfo) -> None:
        """See `Port`."""
        logger.info("%s: %s is there (%s, pid %d)", self.runtime.name, info.name, info.host, info.pid)
        if info.origin:
            self._dropped.discard(info.id)
            if self._on_origin is not None:
                self._on_origin(info)
        if self.programs.awaits(info.id):
            self.runtime.inquire(info.id, ASK_PROGRAM, partial(self._prepare, info.id))

    def departed(self, info: PeerInfo, reason: str | None, failed: bool) -> None:
        """See `Port`."""
        del failed
        logger.info("%s: %s %s", self.runtime.name, info.name, f"left: {reason}" if reason else "is gone")
        if not info.origin:
            return
        self.runtime.forget_constants(info.id)
        self.scheduler.call_soon(lambda: self.programs.forget(info.id))
        if self._on_origin_gone is not None:
            self._on_origin_gone(info, reason is not None)

    # ------------------------------------------------------------------------------- home thread again

    def give_back(self) -> None:
        """Return all guests that have not been started to their owners, and accept no more."""
        self.runtime.do(self.runtime.node.leave)
        keys = []
        self.scheduler.inbox.extend(self.programs.unpark_all())
        while (guest := self.scheduler.inbox.pop()) is not None:
            self._queued.pop(guest.key, None)
            keys.append((guest.key, None))
        self.runtime.do(lambda now: self.runtime.node.give_back(now, keys))


def _nothing() -> None:
    """Wakes the home thread, that is all."""
