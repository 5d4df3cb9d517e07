"""A node that runs tasks: a scheduler and a runtime, joined."""

from __future__ import annotations

import logging
import os
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from types import CoroutineType
from typing import TYPE_CHECKING, Any, NamedTuple

from p2pscoop._core.ids import NodeId, TaskKey
from p2pscoop._core.values import Outcome, PeerInfo, Spec, SpecKind
from p2pscoop._future import DONE, FAILED, LENT, Future, Kept, Parcel, finished, make_future, name_of
from p2pscoop._gathering import Gathering
from p2pscoop._payload import (
    SpecEncoder,
    decode_outcome,
    decode_program,
    decode_spec,
    encode_error,
    encode_future,
    task_path,
)
from p2pscoop._port import Guest
from p2pscoop._runtime import Runtime
from p2pscoop._scheduler import Scheduler
from p2pscoop.errors import PayloadError, RestoreRefused, TaskError

if TYPE_CHECKING:
    from p2pscoop._continuation import Captured

__all__ = ["Home"]

logger = logging.getLogger("p2pscoop")


Handle = Future[Any] | weakref.ref[Future[Any]]
"""What the core knows an own task by."""


class _Shipment(NamedTuple):
    """A continuation that was offered to a thief. Its original is kept until the thief has accepted."""

    task: Future[Any]
    captured: Captured
    spec: Spec
    needs: tuple[Kept, ...]


class Home:
    """Both a scheduler's `Hooks` and a runtime's `Port`.

    Args:
        interruptible: whether a `KeyboardInterrupt` here is a person's.
        path: of the main program's task.
        on_refused: called (in the home thread) with the reason if the cluster does not want this node.
        on_alone: called (in the home thread) when no origin is left.
        on_broken: called (in the home thread) when the program's initializer raised here.
    """

    def __init__(
        self,
        *,
        interruptible: bool,
        path: bytes,
        on_refused: Callable[[str], None] | None = None,
        on_alone: Callable[[], None] | None = None,
        on_broken: Callable[[str], None] | None = None,
    ) -> None:
        self.runtime: Runtime
        self.scheduler = Scheduler(self, path=path, interruptible=interruptible)
        self.is_member = threading.Event()
        self._on_refused = on_refused
        self._on_alone = on_alone
        self._on_broken = on_broken
        self._queued: dict[TaskKey, Guest] = {}
        self._warned: set[str] = set()
        self._reserved: dict[NodeId, list[Future[Any]]] = {}
        """Ready coroutine tasks, claimed for the node whose result made them ready."""
        self._reserving = threading.Lock()
        self._lent: dict[Future[Any], _Shipment] = {}
        self._shipped: dict[TaskKey, _Shipment] = {}
        self._elsewhere: dict[int, weakref.ref[Future[Any]]] = {}
        """Own tasks whose values their holders keep, by serial."""
        """Continuations on offer, of own tasks and of guests."""
        self.continuations_given = 0
        self.bytes_received = 0
        """In outcomes."""

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
        if guest.spec.kind is SpecKind.CONTINUATION:
            return self._begin_continuation(guest)
        try:
            work, args, kwargs, path = decode_spec(guest.spec)
        except BaseException as error:
            # User code runs when a pickle is loaded, so anything may come out of it.
            problem = TaskError(
                f"the task cannot be unpickled on node {self.runtime.name}: {type(error).__name__}: {error}"
            )
            problem.__cause__ = error
            outcome = encode_error(problem, self._where)
            self.runtime.do(lambda now: self.runtime.node.finish(now, key, outcome))
            return None
        future = make_future(self.scheduler, work, args, kwargs, None, 0)
        future._path = path
        return self._host(future, key, name_of(work))

    def _begin_continuation(self, guest: Guest) -> Future[Any] | None:
        """A guest that was started elsewhere: it goes on here, or goes back to its owner."""
        future: Future[Any] = make_future(self.scheduler, None, (), {}, None, 0)

        def kept(key: TaskKey) -> Future[Any]:
            outcome = guest.kept.get(key)
            if outcome is None:
                raise RestoreRefused("the value that it waits for is not here")
            return finished(*decode_outcome(outcome))

        problem = self._unpack(future, guest.spec.args, kept)
        if problem is not None:
            logger.warning("%s: a continuation cannot go on here: %s", self.runtime.name, problem)
            self.runtime.do(lambda now: self.runtime.node.bounce(now, guest.key))
            return None
        return self._host(future, guest.key, name_of(future._work))

    def _host(self, future: Future[Any], key: TaskKey, name: str) -> Future[Any]:
        future._key = key
        future.claim()
        future.add_waiter(partial(self._finish, key, name))
        return future

    def _unpack(
        self, future: Future[Any], data: bytes, kept: Callable[[TaskKey], Future[Any]]
    ) -> RestoreRefused | None:
        """Make these frames the future's work. What is wrong with them, if that cannot be."""
        from p2pscoop import _parcels

        try:
            contents = _parcels.unpack(data, kept)
        except RestoreRefused as error:
            return error
        future._work = contents.coroutine
        future._args = None
        future._path = contents.path
        future._spawned = contents.spawned
        if contents.generator is not None:
            future._generator = contents.generator
        future._context = self.scheduler.context_with(contents.variables)
        return None

    def restore(self, future: Future[Any]) -> bool:
        """See `Hooks`."""
        parcel: Parcel = future._work
        needs = {need.serial: need.future for need in parcel.needs}
        problem = self._unpack(future, parcel.data, lambda key: needs[key.serial])
        if problem is not None:
            # It was pickled here, or went further than its start here: there is nothing else to go back to.
            self.scheduler.end(future, FAILED, problem)
        return problem is None

    def _finish(self, key: TaskKey, name: str, future: Future[Any]) -> None:
        limits = self.runtime.limits
        outcome = encode_future(future, name, self._where, limits.message_max - limits.header_max)
        self.runtime.do(lambda now: self.runtime.node.finish(now, key, outcome))

    @property
    def _where(self) -> str:
        return f"node {self.runtime.name} (pid {os.getpid()})"

    def settled_at_home(self, serial: int) -> None:
        """See `Hooks`."""
        self.runtime.settled_at_home(serial)

    def size(self) -> int:
        """See `Hooks`."""
        return self.runtime.size()

    def quiescent(self) -> bool:
        """See `Hooks`."""
        # In this order: from the first to the last is the way that a task takes.
        return not self._reserved and not self.runtime.surrendering and self.runtime.node.quiescent

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
        with self._reserving:
            reserved = self._reserved.pop(thief, [])
        own, guests = self.scheduler.take(max(0, count_max - len(reserved)) if reserved else count_max)
        for guest in guests:
            self._queued.pop(guest.key, None)
        return [*reserved, *own], guests

    def key_of(self, task: Future[Any]) -> TaskKey | None:
        """See `Port`."""
        return getattr(task, "_key", None)

    def encode(self, task: Future[Any], encoder: SpecEncoder, thief: NodeId) -> Spec:
        """See `Port`."""
        if type(task._work) is Parcel:
            return Spec(b"", task._work.data, SpecKind.CONTINUATION)
        if type(task._work) is CoroutineType:
            return self._encode_continuation(task, thief)
        return encoder.encode(task._work, task._args, task._kwargs, task_path(task))

    def serial_of(self, task: Future[Any]) -> int | None:
        """See `Port`."""
        return getattr(task, "_serial", None)

    def refuse(self, task: Future[Any], error: PayloadError) -> None:
        """See `Port`. This node can run the task itself, so that is what it does."""
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
        task = _task_of(handle)
        if task is None:
            return
        task._arrived = outcome
        self.bytes_received += len(outcome.payload)
        if hungry:
            # Before the home thread hears of it, or it would go on with them itself.
            self._reserve(task, holder)

        def settle() -> None:
            self._not_elsewhere(task)
            self._forget(self._lent.pop(task, None))
            self.scheduler.settle(task, *decode_outcome(outcome))
            del task._arrived

        self.scheduler.call_soon(settle)

    def _reserve(self, task: Future[Any], holder: NodeId) -> int:
        """Claim what can go on now that this task has ended, for its holder. How many those are."""
        claimed = _claim_ready(task) if self.scheduler.portable else []
        if claimed:
            with self._reserving:
                self._reserved.setdefault(holder, []).extend(claimed)
        return len(claimed)

    def kept(self, task: Future[Any], serial: int, holder: NodeId, hungry: bool) -> None:
        """See `Port`. What waits for the value goes to it; if something cannot, the value comes here."""
        task._kept = holder, serial
        scheduler = self.scheduler
        # From now on the future lives as long as somebody has it here, or waits for it; with it the value goes.
        loose = weakref.ref(task, lambda _: scheduler.call_soon(partial(self._release, serial)))
        with self._reserving:
            self._elsewhere[serial] = loose
        self.runtime.know_as(serial, loose)
        count = self._reserve(task, holder)
        if count and not hungry:
            self.runtime.hand_out(holder, count)
        if any(not _is_suspended(waiter) for waiter in tuple(task._waiters or ())):
            self.wanted(task)

    def wanted(self, future: Future[Any]) -> None:
        """See `Hooks`."""
        holder, serial = future._kept
        waiters = tuple(future._waiters or ())
        if waiters and all(map(_is_suspended, waiters)):
            # They go to the value, unless they cannot travel: then they ask for it when they go on here.
            count = self._reserve(future, holder)
            if count:
                self.runtime.hand_out(holder, count)
            return
        self.runtime.know_as(serial, future)
        self.runtime.do(lambda _: self.runtime.node.fetch(serial))

    def fetch_all(self) -> None:
        """See `Hooks`."""
        if not self._elsewhere:
            return
        with self._reserving:
            serials = [serial for serial, loose in self._elsewhere.items() if loose() is not None]
        for serial in serials:
            self.runtime.do(lambda _, serial=serial: self.runtime.node.fetch(serial))  # type: ignore[misc]

    def _release(self, serial: int) -> None:
        with self._reserving:
            gone = self._elsewhere.pop(serial, None)
        if gone is not None:
            self.runtime.do(lambda _: self.runtime.node.release(serial))

    def _not_elsewhere(self, task: Future[Any]) -> None:
        """Its value is here, or lost (home thread)."""
        if hasattr(task, "_kept"):
            serial = task._kept[1]
            del task._kept
            with self._reserving:
                self._elsewhere.pop(serial, None)

    def come_home(self, handle: Handle, serial: int | None, spec: Spec | None = None) -> None:
        """See `Port`."""
        task = _task_of(handle)
        if task is None:
            if serial is not None:
                self.runtime.settled_at_home(serial)  # Nobody wants it any more.
            return

        def come_home() -> None:
            self._not_elsewhere(task)
            lent = self._lent.pop(task, None)
            if task._state >= DONE:
                self._forget(lent)
            elif spec is not None and spec.kind is SpecKind.CONTINUATION:
                # It went further than when it left.
                self._forget(lent)
                task._work, task._args = Parcel(spec.args), None
            elif type(task._work) is Parcel and task._work.needs:
                task._pinned = "waits for a large value that was lost with its node"
            elif spec is not None:
                task._pinned = "cannot be restored on a node that stole it; that node's log says why"
            self.scheduler.come_home(task, serial)

        if self.key_of(task) is not None:
            self._shipped.pop(task._key, None)
            self.scheduler.call_soon(lambda: self.scheduler.go_on_later(task))
        else:
            self.scheduler.call_soon(come_home)

    def released(self, handle: Handle) -> None:
        """See `Port`."""
        task = _task_of(handle)
        if task is None:
            return

        def release() -> None:
            lent = self._lent.pop(task, None)
            if lent is not None:
                task._work = Parcel(lent.spec.args, lent.needs)
                self._forget(lent)

        self.scheduler.call_soon(release)

    def passed(self, key: TaskKey) -> None:
        """See `Port`."""
        self._forget_soon(self._shipped.pop(key, None))

    def enqueue(self, guests: Sequence[Guest]) -> None:
        """See `Port`."""
        for guest in guests:
            shipment = self._shipped.pop(guest.key, None)
            if shipment is not None and guest.spec is shipment.spec:
                # Nobody took it: it goes on here, and runs as far as the core (which is locked) is concerned.
                self.runtime.node.begin(guest.key)
                self.scheduler.call_soon(partial(self.scheduler.go_on_later, shipment.task))
                continue
            self._forget_soon(shipment)  # It has been elsewhere meanwhile, and is further than the original.
            if guest.spec.kind is SpecKind.CONTINUATION and guest.spec.code:
                self._anchor(guest)
                continue
            self._queued[guest.key] = guest
            self.scheduler.inbox.append(guest)
        self.scheduler.ring()

    def _anchor(self, guest: Guest) -> None:
        """A continuation that came for a value: it is not passed on without it (core is locked)."""
        from p2pscoop import _parcels

        for key in _parcels.keys_of(guest.spec.code):
            outcome = self.runtime.node.kept(key)
            if outcome is not None:
                guest.kept[key] = outcome

        def begin() -> None:
            future = self.begin(guest)
            if future is not None:
                future._pinned = "holds a large value that is here"
                self.scheduler.go_on_later(future)

        self.scheduler.call_soon(begin)

    def withdraw(self, keys: Sequence[TaskKey]) -> None:
        """See `Port`."""
        for key in keys:
            self._forget_soon(self._shipped.pop(key, None))
            guest = self._queued.pop(key, None)
            if guest is not None:
                guest.claim()

    def _encode_continuation(self, task: Future[Any], thief: NodeId) -> Spec:
        from p2pscoop import _parcels

        me = self.runtime.node.id
        bulk_min = self.runtime.limits.bulk_min
        captured, data, needs = _parcels.pack(task, self.scheduler.base_context, bulk_min, me, thief)
        spec = Spec(_parcels.label(me, needs), data, SpecKind.CONTINUATION)
        shipment = _Shipment(task, captured, spec, needs)
        key = self.key_of(task)
        if key is None:
            task._state = LENT
            self._lent[task] = shipment
        else:
            self._shipped[key] = shipment
        self.continuations_given += 1
        return shipment.spec

    def _forget_soon(self, shipment: _Shipment | None) -> None:
        if shipment is not None:
            self.scheduler.call_soon(partial(self._forget, shipment))

    def _forget(self, shipment: _Shipment | None) -> None:
        """The original of a continuation is not needed any more (home thread)."""
        if shipment is not None:
            shipment.captured.discard()

    def counters(self) -> dict[str, int]:
        """See `Port`."""
        return {"executed": self.scheduler.executed, "continuations_given": self.continuations_given}

    def prepare(self, origin: NodeId, program: bytes) -> None:
        """See `Port`."""
        del origin
        self.scheduler.call_soon(lambda: self._prepare(program))

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

    def departed(self, info: PeerInfo, reason: str | None, failed: bool) -> None:
        """See `Port`."""
        del failed
        logger.info("%s: %s %s", self.runtime.name, info.name, f"left: {reason}" if reason else "is gone")
        if info.origin and not self.runtime.node.membership.origins():
            self.scheduler.call_soon(lambda: self._on_alone and self._on_alone())

    # ------------------------------------------------------------------------------- home thread again

    def _prepare(self, data: bytes) -> None:
        program = decode_program(data)
        # In the order of the origin, so that a name means the same module; what is not here does no harm.
        known = [entry for entry in program.path if os.path.exists(entry)]
        sys.path[:] = known + [entry for entry in sys.path if entry not in known]
        sys.argv = program.argv
        if os.path.isdir(program.directory):
            os.chdir(program.directory)
        try:
            program.initialize()
        except BaseException as error:
            # User code; `sys.exit` in it is as much a failure as anything else.
            problem = f"the initializer raised {type(error).__name__}: {error}"
            logger.error("%s: %s", self.runtime.name, problem, exc_info=error)
            if self._on_broken is not None:
                self._on_broken(problem)

    def give_back(self) -> None:
        """Return all guests that have not been started to their owners, and accept no more."""
        self.runtime.do(self.runtime.node.leave)
        keys = []
        while self.scheduler.inbox:
            guest = self.scheduler.inbox.popleft()
            if guest.claim():
                self._queued.pop(guest.key, None)
                keys.append((guest.key, None))
        self.runtime.do(lambda now: self.runtime.node.give_back(now, keys))


def _task_of(handle: Handle) -> Future[Any] | None:
    return handle() if isinstance(handle, weakref.ref) else handle


def _is_suspended(waiter: Any) -> bool:
    """Whether a waiter stands for a suspended coroutine task."""
    return type(getattr(waiter, "__self__", None)) is Future


def _claim_ready(ended: Future[Any]) -> list[Future[Any]]:
    """Claim the coroutine tasks that can go on now that the outcome of a future is here. Any thread."""
    claimed = []
    for waiter in tuple(ended._waiters or ()):
        waiting = getattr(waiter, "__self__", None)
        if type(waiting) is Gathering:
            if waiting.complete():
                claimed += _claim_ready(waiting.whole)
        elif type(waiting) is Future:
            try:
                # The ticket of a suspended task; no other kind of waiter is a method of a future.
                del waiting._ticket
            except AttributeError:
                continue  # The home thread was faster.
            claimed.append(waiting)
    return claimed


def _nothing() -> None:
    """Wakes the home thread, that is all."""
