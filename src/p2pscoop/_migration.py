"""What moves while it is under way: suspended tasks that go to other nodes, and values that stay there.

The middle between the scheduler, which knows tasks, and the runtime, which knows messages. Decides which task goes
to whom because of an outcome, what is kept of it until it has arrived, and when a value that another node keeps is
fetched or let go. How frames become bytes is `_parcels`' part, the rest of a node's tasks `_home`'s.

A task is in the hands of one thread at a time: whoever has deleted its ticket, or taken it out of the queue.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from p2pscoop._core.ids import NodeId, TaskKey
from p2pscoop._core.values import Spec, SpecKind
from p2pscoop._dataflow import Dependent
from p2pscoop._future import DONE, FAILED, LENT, Future, Kept, Parcel, finished, name_of, program_of
from p2pscoop._gathering import Gathering
from p2pscoop._payload import decode_outcome
from p2pscoop._port import Guest
from p2pscoop._runtime import Runtime
from p2pscoop._scheduler import Scheduler
from p2pscoop.errors import NotPortable, PayloadError, RestoreRefused

if TYPE_CHECKING:
    from p2pscoop._continuation import Captured

__all__ = ["Handle", "Migration", "task_of"]

logger = logging.getLogger("p2pscoop")

Handle = Future[Any] | weakref.ref[Future[Any]]
"""What the core knows an own task by."""


class _Shipment(NamedTuple):
    """A continuation that was offered to a thief. Its original is kept until the thief has accepted."""

    task: Future[Any]
    captured: Captured
    spec: Spec
    needs: tuple[Kept, ...]


class Migration:
    """The tasks of one node that are on their way, and its values that are elsewhere.

    Args:
        scheduler: of this node.
        runtime: gives the runtime of this node, which is made later.
    """

    def __init__(self, scheduler: Scheduler, runtime: Callable[[], Runtime]) -> None:
        self._scheduler = scheduler
        self._find_runtime = runtime
        self._lock = threading.Lock()
        self._reserved: dict[NodeId, list[Future[Any]]] = {}
        """Ready coroutine tasks, claimed for the node whose result made them ready."""
        self._elsewhere: dict[int, weakref.ref[Future[Any]]] = {}
        """Own tasks whose values their holders keep, by serial."""
        self._lent: dict[Future[Any], _Shipment] = {}
        self._shipped: dict[TaskKey, _Shipment] = {}
        """Continuations on offer, of own tasks and of guests."""
        self.given = 0
        """Continuations that were offered to others."""

    @property
    def _runtime(self) -> Runtime:
        return self._find_runtime()

    @property
    def idle(self) -> bool:
        """Whether no task is reserved for a thief that has not got it yet."""
        return not self._reserved

    # -------------------------------------------------------------------- going where an outcome is

    def reserve(self, task: Future[Any], holder: NodeId) -> int:
        """Claim what can go on now that this task has ended, for its holder. How many those are."""
        claimed = _claim_ready(task) if self._scheduler.portable else []
        if claimed:
            with self._lock:
                self._reserved.setdefault(holder, []).extend(claimed)
        return len(claimed)

    def take_reserved(self, thief: NodeId) -> list[Future[Any]]:
        """The tasks that were reserved for a thief."""
        with self._lock:
            return self._reserved.pop(thief, [])

    def encode(self, task: Future[Any], thief: NodeId) -> Spec:
        """A suspended task as a spec for a thief; the original is kept until the thief has accepted.

        Raises:
            NotPortable: it has to go on here.
        """
        me = self._runtime.node.id
        if type(task._work) is Parcel:
            return Spec(b"", task._work.data, SpecKind.CONTINUATION, program_of(task, me))
        from p2pscoop import _parcels

        bulk_min = self._runtime.limits.bulk_min
        try:
            captured, data, needs = _parcels.pack(task, self._scheduler.base_context, bulk_min, me, thief)
        except PayloadError:
            raise
        except Exception as error:
            # A task in hand must not be lost, whatever goes wrong.
            logger.exception("%s: %s could not be read", self._runtime.name, name_of(task._work))
            raise NotPortable(f"could not be read: {type(error).__name__}: {error}") from error
        spec = Spec(_parcels.label(me, needs), data, SpecKind.CONTINUATION, program_of(task, me))
        shipment = _Shipment(task, captured, spec, needs)
        key: TaskKey | None = getattr(task, "_key", None)
        if key is None:
            task._state = LENT
            self._lent[task] = shipment
        else:
            self._shipped[key] = shipment
        self.given += 1
        return shipment.spec

    def released(self, handle: Handle) -> None:
        """A thief has the continuation of an own task."""
        task = task_of(handle)
        if task is None:
            return

        def release() -> None:
            lent = self._lent.pop(task, None)
            if lent is not None:
                task._work = Parcel(lent.spec.args, lent.needs)
                self._forget(lent)

        self._scheduler.call_soon(release)

    def passed(self, key: TaskKey) -> None:
        """A thief has the continuation of a guest."""
        self._forget_soon(self._shipped.pop(key, None))

    def take_back(self, guest: Guest) -> bool:
        """A guest is queued here (again). Whether it goes on from its original instead (core is locked)."""
        shipment = self._shipped.pop(guest.key, None)
        if shipment is not None and guest.spec is shipment.spec:
            # Nobody took it: it goes on here, and runs as far as the core is concerned.
            self._runtime.node.begin(guest.key)
            self._scheduler.call_soon(partial(self._scheduler.go_on_later, shipment.task))
            return True
        self._forget_soon(shipment)  # It has been elsewhere meanwhile, and is further than the original.
        return False

    def came_home(self, task: Future[Any], spec: Spec | None) -> None:
        """An own task is this node's again (home thread): decide from where it goes on.

        Args:
            task: the task.
            spec: what its last holder sent along.
        """
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

    def settled(self, task: Future[Any]) -> None:
        """The outcome of an own task is here (home thread)."""
        self._not_elsewhere(task)
        self._forget(self._lent.pop(task, None))

    def withdrawn(self, key: TaskKey) -> None:
        """A guest need not go on any more."""
        self._forget_soon(self._shipped.pop(key, None))

    def not_given(self, key: TaskKey) -> None:
        """A guest that was taken for a thief was not offered after all."""
        self._shipped.pop(key, None)

    def _forget_soon(self, shipment: _Shipment | None) -> None:
        if shipment is not None:
            self._scheduler.call_soon(partial(self._forget, shipment))

    def _forget(self, shipment: _Shipment | None) -> None:
        """The original of a continuation is not needed any more (home thread)."""
        if shipment is not None:
            shipment.captured.discard()

    # --------------------------------------------------------------------------------- arriving

    def begin(self, future: Future[Any], guest: Guest) -> RestoreRefused | None:
        """Make the frames of a guest the future's work. What is wrong with them, if that cannot be."""

        def kept(key: TaskKey) -> Future[Any]:
            outcome = guest.kept.get(key)
            if outcome is None:
                raise RestoreRefused("the value that it waits for is not here")
            return finished(*decode_outcome(outcome))

        return self._unpack(future, guest.spec.args, kept)

    def restore(self, future: Future[Any]) -> bool:
        """Turn the parcel of an own task into a coroutine. False if that cannot be: the future has ended."""
        parcel: Parcel = future._work
        needs = {need.serial: need.future for need in parcel.needs}
        problem = self._unpack(future, parcel.data, lambda key: needs[key.serial])
        if problem is not None:
            # It was pickled here, or went further than its start here: there is nothing else to go back to.
            self._scheduler.end(future, FAILED, problem)
        return problem is None

    def _unpack(
        self, future: Future[Any], data: bytes, kept: Callable[[TaskKey], Future[Any]]
    ) -> RestoreRefused | None:
        """Make these frames the future's work. What is wrong with them, if that cannot be."""
        from p2pscoop import _parcels

        try:
            coroutine, extras = _parcels.unpack(data, kept)
        except RestoreRefused as error:
            return error
        future._work = coroutine
        future._args = None
        future._path = extras.path
        future._spawned = extras.spawned
        if extras.generator is not None:
            future._generator = extras.generator
        future._context = self._scheduler.context_with(extras.variables)
        return None

    def anchor(self, guest: Guest) -> bool:
        """Whether a guest came for values: it gets them, and must not be passed on without (core is locked)."""
        if guest.spec.kind is not SpecKind.CONTINUATION or not guest.spec.code:
            return False
        from p2pscoop import _parcels

        for key in _parcels.keys_of(guest.spec.code):
            outcome = self._runtime.node.kept(key)
            if outcome is not None:
                guest.kept[key] = outcome
        return True

    # --------------------------------------------------------------------------- values elsewhere

    def kept(self, task: Future[Any], serial: int, holder: NodeId, hungry: bool) -> None:
        """An own task ended with a large value. What waits goes there; if something cannot, the value comes."""
        task._kept = holder, serial
        scheduler = self._scheduler
        # From now on the future lives as long as somebody has it here, or waits for it; with it the value goes.
        loose = weakref.ref(task, lambda _: scheduler.call_soon(partial(self._release, serial)))
        with self._lock:
            self._elsewhere[serial] = loose
        self._runtime.know_as(serial, loose)
        count = self.reserve(task, holder)
        if count and not hungry:
            self._runtime.hand_out(holder, count)
        waiters = tuple(task._waiters or ())
        for waiter in waiters:
            dependent = getattr(waiter, "__self__", None)
            if type(dependent) is Dependent:
                # It may have been all that a task waited for: then that suspends, and goes there.
                self._scheduler.call_soon(dependent.look)
        if any(not _can_go(waiter) for waiter in waiters):
            self.wanted(task)

    def wanted(self, future: Future[Any]) -> None:
        """Somebody waits here for a value that its holder keeps."""
        holder, serial = future._kept
        waiters = tuple(future._waiters or ())
        if waiters and all(map(_can_go, waiters)):
            # They go to the value, unless they cannot travel: then they ask for it when they go on here.
            count = self.reserve(future, holder)
            if count:
                self._runtime.hand_out(holder, count)
            return
        self._runtime.know_as(serial, future)
        self._fetch(serial)

    def fetch_all(self) -> None:
        """Bring all values here that other nodes keep for this one."""
        if not self._elsewhere:
            return
        with self._lock:
            serials = [serial for serial, loose in self._elsewhere.items() if loose() is not None]
        for serial in serials:
            self._fetch(serial)

    def _fetch(self, serial: int) -> None:
        self._runtime.do(lambda _: self._runtime.node.fetch(serial))

    def _release(self, serial: int) -> None:
        with self._lock:
            gone = self._elsewhere.pop(serial, None)
        if gone is not None:
            self._runtime.do(lambda _: self._runtime.node.release(serial))

    def _not_elsewhere(self, task: Future[Any]) -> None:
        """Its value is here, or lost (home thread)."""
        if hasattr(task, "_kept"):
            serial = task._kept[1]
            del task._kept
            with self._lock:
                self._elsewhere.pop(serial, None)


def task_of(handle: Handle) -> Future[Any] | None:
    """The task, if anybody still wants it."""
    return handle() if isinstance(handle, weakref.ref) else handle


def _can_go(waiter: Any) -> bool:
    """Whether what waits can go to the value: a suspended coroutine task, or a task that has not been started."""
    return type(getattr(waiter, "__self__", None)) in (Future, Dependent)


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
