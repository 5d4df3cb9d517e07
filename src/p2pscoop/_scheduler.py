"""The local path: futures, the deque of each strand, joins, strands that block, coroutine tasks.

Everything here happens in one thread, the node's *home thread*, except for three things that other threads
may do: take tasks out of the deques (`take`), and append to `arrivals` and `inbox`, ringing the bell.

Words. A *strand* is a stack of frames that blocks as one: a greenlet, with the deque of the tasks that its
frames have spawned. The main program is the first strand. When a strand really blocks, another one runs the
loop: frames that can go on, then coroutines, then queued tasks, the newest first; when there is nothing, it
asks the runtime for work and sleeps.

A coroutine task that waits is *suspended*: its frames are on no stack. When what it waits for is done it is
*ready*, and a task like any other: it goes on here, or is stolen, frames and all.

Three rules keep joins honest:

1. `.result()` of a task that nobody has started runs it right there, on the caller's stack. Nothing else is
   ever run on top of a waiting frame: whatever lies above a frame on its stack is what it waits for.
2. `.result()` of a task that is elsewhere blocks the strand, and the thread goes on with another one.
3. Strands whose frames can go on come before anything new.

So a frame whose dependency is done never waits for an unrelated task below it to end, and the stack of a
strand is a chain of true dependencies. Depth is not bounded by any stack: after `DEPTH_MAX` nested joins the
next task starts on a fresh strand.

The fast half of all this, the join of a task that nobody has started, is `Future.result`.
"""

from __future__ import annotations

import contextlib
import contextvars
import heapq
import logging
import threading
import time
from _thread import allocate_lock, get_ident
from collections import deque
from collections.abc import Callable
from functools import partial
from types import BuiltinFunctionType, CoroutineType
from typing import TYPE_CHECKING, Any, Protocol

from greenlet import GreenletExit, getcurrent, greenlet

from p2pscoop._core.deque import half, take_newest, take_oldest
from p2pscoop._future import (
    CANCELLED,
    DEPTH_MAX,
    DONE,
    FAILED,
    LENT,
    QUEUED,
    RUNNING,
    Future,
    Parcel,
    TaskOptions,
    call_as_user,
    make_future,
    name_of,
    overtime,
    program_of,
)
from p2pscoop._inbox import Inbox
from p2pscoop.errors import ShutdownError, TaskCancelled, TaskExitError, TaskInterruptError, WrongThreadError

if TYPE_CHECKING:
    import cProfile

    from p2pscoop._core.ids import NodeId
    from p2pscoop._port import Guest
    from p2pscoop._ranges import Range
    from p2pscoop._timeouts import Watch

__all__ = ["Hooks", "Scheduler", "Strand"]

logger = logging.getLogger("p2pscoop")

_DRAIN_PAUSE_S = 0.01

SPARE_MAX = 8
"""Loop strands that are kept for reuse when nothing runs on them."""


class Strand:
    """A stack of frames that blocks as one, and the deque of the tasks that they have spawned."""

    __slots__ = (
        "__weakref__",
        "_scheduler",
        "depth",
        "deque",
        "greenlet",
        "ranges",
        "task",
        "timer",
        "waiting",
        "wound",
    )

    def __init__(self, scheduler: Scheduler, body: Any) -> None:
        self._scheduler = scheduler
        self.greenlet = body
        self.deque: deque[Future[Any]] = deque()
        self.ranges: list[Range] = []
        self.depth = 0
        self.task: Future[Any] = scheduler.root_task
        self.waiting = False
        self.wound: BaseException | None = None
        """What its frames get instead of going on."""
        self.timer = 0

    def wake(self, _: object = None) -> None:
        """Its frames can go on. More than once, or too early, does no harm: waits look again."""
        if self.waiting:
            self.waiting = False
            self._scheduler.resumable.append(self)

    @property
    def stocked(self) -> bool:
        """Whether there is something to run in its deque."""
        return bool(self.deque) or any(each.items for each in self.ranges)


class Hooks(Protocol):
    """What a scheduler needs of the runtime around it."""

    def seek(self) -> None:
        """Nothing to run: find work, and ring the bell when it is there."""

    def found(self) -> None:
        """There is something to run again."""

    def feed(self) -> None:
        """There is something to steal, and thieves are waiting."""

    def begin(self, guest: Guest) -> Future[Any] | None:
        """Turn a guest into a future to run; None if it is not this node's to run any more."""

    def restore(self, future: Future[Any]) -> bool:
        """Turn the parcel of an own task into a coroutine. False if that cannot be: the future has ended."""

    def wanted(self, future: Future[Any]) -> None:
        """Somebody waits here for a value that its holder keeps: bring them together."""

    def fetch_all(self) -> None:
        """Bring all values here that other nodes keep for this one."""

    def lent(self) -> list[Future[Any]]:
        """Own tasks that are elsewhere."""

    def cancel(self, task: Future[Any]) -> None:
        """Cancel a task that is elsewhere, or on its way, even if it runs there."""

    def settled_at_home(self, serial: int) -> None:
        """A task that had been lent and came home has ended here."""

    def size(self) -> int:
        """How many nodes run tasks, this one included."""

    def node_id(self) -> NodeId:
        """This node's id."""

    def is_origin(self) -> bool:
        """Whether the main program runs here."""

    def quiescent(self) -> bool:
        """Whether no task of this node is elsewhere, and none of another node is here."""


class Scheduler:
    """Runs tasks in the thread that creates it.

    Args:
        hooks: the runtime.
        path: of the main program's task: what per-task random generators derive from.
        interruptible: whether a `KeyboardInterrupt` is a person's (in the main program) or can only be a
            task's own (on a node that nobody sits at).
    """

    def __init__(self, hooks: Hooks, *, path: bytes = b"", interruptible: bool = True) -> None:
        self.hooks = hooks
        self.interruptible = interruptible
        self.stopped = False
        self.thread = get_ident()
        self.thread_name = threading.current_thread().name
        # What the running strand uses all the time is kept here; `_enter` swaps it.
        self.root_task: Future[Any] = make_future(self, None, (), {}, None, 0)
        self.root_task._path = path
        self.root_task.claim()
        root = Strand(self, getcurrent())
        self.strand = root
        self.deque = root.deque
        self.depth = 0
        self.task = self.root_task
        self.root = root

        self.watch: Watch | None = None
        """Of the tasks that may take only so long; once there was one."""
        self.pursue: Callable[[Future[Any]], None] | None = None
        """Makes a task end that is interrupted, and does not wait; any thread. None where that cannot be done."""
        self.profiler: cProfile.Profile | None = None
        """Taken off while the stack changes hands."""
        self.executed = 0
        """Tasks started here, since the start."""
        self.hungry = False
        """Whether thieves wait for this node to get work. Set by other threads."""
        self.handoff: list[Future[Any]] = []
        """Claimed tasks that start on a fresh strand: for want of stack, or because another program has a turn."""
        self.depth_max = DEPTH_MAX
        """Nested joins on one strand; 0 to have the next one come by the loop."""
        self.resumable: deque[Strand] = deque()
        self.coroutines: deque[Future[Any]] = deque()
        """Suspended coroutine tasks that can go on. Whoever pops one has it."""
        self.portable = True
        """Whether thieves may have them."""
        self.stocked: dict[Strand, None] = {}
        """Blocked strands with tasks in their deques, in the order in which they blocked."""
        self.pinned: deque[Future[Any]] = deque()
        """Tasks that cannot leave this node, because they do not pickle."""
        self.wounds: dict[Future[Any], BaseException] = {}
        """What suspended coroutine tasks get instead of going on."""
        self.stuck: deque[Future[Any]] = deque()
        """Suspended coroutine tasks that can go on, but not elsewhere."""
        self.inbox = Inbox()
        self.arrivals: deque[Callable[[], None]] = deque()
        """What other threads want done in this one."""
        self._spare: list[Strand] = []
        self._blocked: set[Strand] = set()
        self._timers: list[tuple[float, int, Strand]] = []
        self._timer_number = 0
        self._bell = allocate_lock()
        self._bell.acquire()
        self.resting = False
        """Whether the loop has nothing to run, as far as it knows."""
        self._sleeping = False
        self._draining = False
        self._context = contextvars.copy_context()
        self._hub = greenlet(self._start_loops, parent=root.greenlet)
        self._hub.switch()

    # ------------------------------------------------------------------------------ from any thread

    def take(self, count_max: int) -> tuple[list[Future[Any]], list[Guest]]:
        """Claim tasks for a thief: half of what is there, the oldest first."""
        strands = self._all_strands()
        ranges = [each for strand in strands for each in tuple(strand.ranges)]
        available = len(self.inbox) + sum(len(strand.deque) for strand in strands)
        available += sum(len(each.items) for each in ranges)
        if self.portable:
            available += len(self.coroutines)
        if self.resting:
            # This node is about to wake up for one of them; else two idle nodes pass a task to and fro.
            available -= 1
        count = half(available, count_max)
        guests: list[Guest] = []
        while len(guests) < count:
            # From the far end: this node starts its guests in the order in which they came.
            guest = self.inbox.take_newest()
            if guest is None:
                break
            guests.append(guest)
        own: list[Future[Any]] = []
        missing = count - len(guests)
        for strand in strands:
            for each in tuple(strand.ranges):
                own += each.split(missing - len(own))
            own += take_oldest([strand.deque], missing - len(own))
        for future in own:
            # Before the task can go anywhere: its outcome must not be overwritten by this.
            future._state = LENT
        # Frames last: they cost ten times what a task costs that has not been started.
        while self.portable and len(own) < missing:
            try:
                ready = self.coroutines.popleft()
            except IndexError:
                break
            if ready._state < DONE:  # Else its outcome came from elsewhere, after it had come home.
                own.append(ready)
        return own, guests

    def call_soon(self, action: Callable[[], None]) -> None:
        """Have something done in the home thread, at its next scheduling point."""
        self.arrivals.append(action)
        self.ring()

    def ring(self) -> None:
        """Wake the home thread if it sleeps for want of work."""
        if self._sleeping:
            with contextlib.suppress(RuntimeError):  # It has been rung already.
                self._bell.release()

    def wrong_thread(self) -> WrongThreadError:
        """The complaint about a call from another thread."""
        return WrongThreadError(
            f"futures was used from thread {threading.current_thread().name!r}, but its tasks run in thread "
            f"{self.thread_name!r}; use p2pscoop.Executor, which any thread may use"
        )

    def _all_strands(self) -> list[Strand]:
        while True:
            try:
                return [*self.stocked, self.strand]
            except RuntimeError:
                pass  # The home thread changed it while it was copied.

    # -------------------------------------------------------------------------------------- spawning

    def check_thread(self) -> None:
        """Raise if this is not the home thread, or the scheduler is stopped."""
        if get_ident() != self.thread:
            raise self.wrong_thread()
        if self.stopped:
            raise ShutdownError("p2pscoop is shut down: no more tasks run")

    def adopt(self, coroutine: Any) -> Future[Any]:
        """Make a coroutine object a task of this node."""
        self.check_thread()
        task = self.task
        future: Future[Any] = make_future(self, None, (), {}, task, task._spawned)
        task._spawned += 1
        future.claim()
        self._prepare_coroutine(future, coroutine)
        self.coroutines.append(future)
        return future

    def push(self, future: Future[Any]) -> None:
        """A task that was not queued when it was submitted can start."""
        self.deque.append(future)
        if self.hungry:
            self.feed()

    def start_coroutine(self, future: Future[Any], coroutine: Any) -> None:
        """Run a coroutine as the work of a task that nobody has started, until it waits or ends."""
        future.claim()
        self._prepare_coroutine(future, coroutine)
        self.step(future)

    def feed(self) -> None:
        """Tell the runtime that there is something for the thieves that wait."""
        self.hungry = False
        self.hooks.feed()

    # --------------------------------------------------------------------------------------- endings

    def end(self, future: Future[Any], state: int, value: Any) -> None:
        """A future has its outcome; the first one counts."""
        if future._state >= DONE:
            return
        if hasattr(future, "_limit"):
            late = overtime(future)
            del future._limit
            if state != DONE and late is not None and late is not value:
                # However it was brought to end: by the interrupt, by what it spawned, by what it made of either.
                late.__cause__ = value
                state, value = FAILED, late
        future._value = None if state == CANCELLED else value
        future._state = state
        future._work = future._args = None
        if future._waiters:
            self.notify(future)

    def notify(self, future: Future[Any]) -> None:
        """Tell those who wait for it."""
        waiters, future._waiters = future._waiters, None
        for waiter in waiters or ():
            waiter(future)

    def fail(self, future: Future[Any], error: BaseException) -> None:
        """A task raised. What interrupts the whole program goes on through the frames below."""
        if isinstance(error, SystemExit):
            # Must end neither the node nor the program that waits for the task.
            exit_error = TaskExitError(f"{name_of(future._work)} called sys.exit({error.code!r})", error.code)
            exit_error.__cause__ = error
            self.end(future, FAILED, exit_error)
        elif isinstance(error, KeyboardInterrupt) and not self.interruptible:
            interrupt = TaskInterruptError(f"{name_of(future._work)} raised KeyboardInterrupt")
            interrupt.__cause__ = error
            self.end(future, FAILED, interrupt)
        elif isinstance(error, TaskCancelled):
            self.end(future, CANCELLED, error)
        else:
            self.end(future, FAILED, error)
            if isinstance(error, (KeyboardInterrupt, GreenletExit)):
                raise error

    def settle(self, future: Future[Any], state: int, value: Any) -> None:
        """The outcome of a lent task is here (home thread). It may have come home meanwhile."""
        future.claim()
        self.end(future, state, value)

    def pin(self, future: Future[Any]) -> None:
        """A task that was taken does not pickle: it stays here (home thread)."""
        if future._state >= DONE:
            return
        future._state = QUEUED
        future._ticket = True
        self.pinned.append(future)

    def come_home(self, future: Future[Any], serial: int | None) -> None:
        """A task that was given away is this node's again (home thread)."""
        if future._state >= DONE:
            return
        if serial is not None and not hasattr(future, "_serial"):
            future._serial = serial
            future.add_waiter(self._settled_at_home)
        if type(future._work) is CoroutineType or type(future._work) is Parcel:
            future._state = RUNNING
            self.go_on_later(future)
            return
        future._state = QUEUED
        future._ticket = True
        # Below everything that is there: it is older than all of it.
        self.root.deque.appendleft(future)
        if self.root is not self.strand:
            self.stocked[self.root] = None
        if self.hungry:
            self.feed()

    def go_on_later(self, future: Future[Any]) -> None:
        """A ready coroutine task that was taken for a thief stays: it is the oldest of those that are ready."""
        (self.stuck if hasattr(future, "_pinned") else self.coroutines).appendleft(future)

    def _settled_at_home(self, future: Future[Any]) -> None:
        self.hooks.settled_at_home(future._serial)

    # ----------------------------------------------------------------------------------- cancellation

    def interrupt(self, task: Future[Any]) -> None:
        """Cancel a started task, and what it has spawned (home thread)."""
        for each in self._descendants(task):
            if each._state == LENT:
                self.hooks.cancel(each)
            elif not each.cancel():
                self._wound(each)
        if self.runs(task):
            raise TaskCancelled

    def runs(self, task: Future[Any]) -> bool:
        """Whether the running frame belongs to this task, or to one that it has spawned."""
        return _is_in(task, self.task)

    def _descendants(self, task: Future[Any]) -> list[Future[Any]]:
        """A task and what it has spawned, as far as that is queued, lent or waits; the task first.

        What else it has spawned waits for one of these, and gets its `CancelledError`.
        """
        strands = self._all_strands()
        known = [each for strand in strands for each in strand.deque]
        known += [strand.task for strand in self._blocked]
        known += [*self.coroutines, *self.stuck, *self.pinned, *self.hooks.lent()]
        spawned = dict.fromkeys(each for each in known if each is not task and _is_in(task, each))
        return [task, *spawned]

    def _wound(self, task: Future[Any]) -> None:
        """Have a started task go on with an exception, if it waits here."""
        for strand in self._blocked:
            if _is_in(task, strand.task):
                strand.wound = TaskCancelled()
                strand.wake()
        if type(task._work) is not CoroutineType:
            return
        if not task.claim():
            # It runs, or it is ready to go on.
            try:
                self.coroutines.remove(task)
            except ValueError:
                return
        self.wounds[task] = TaskCancelled()
        task._pinned = "is cancelled"
        self.stuck.append(task)

    # ------------------------------------------------------------------------------------- coroutines

    def go_on_with(self, future: Future[Any], value: Any) -> None:
        """A task returned something that is not its value yet: a coroutine to run, or a future to wait for."""
        if type(value) is CoroutineType:
            self._prepare_coroutine(future, value)
            self.step(future)
        elif value is future:
            self.end(future, FAILED, TypeError(f"{name_of(future._work)} returned its own future"))
        elif value._state >= DONE:
            self._end_as(future, value)
        else:
            value.add_waiter(partial(self._end_as, future))

    def _end_as(self, future: Future[Any], other: Future[Any]) -> None:
        self.end(future, other._state, None if other._state == CANCELLED else other._value)

    def step(self, future: Future[Any]) -> None:
        """Run a coroutine task until it waits or ends."""
        coroutine = future._work
        if type(coroutine) is not CoroutineType:
            # Its outcome came from elsewhere, after it had come home; or it came home as a parcel.
            if type(coroutine) is not Parcel or not self.hooks.restore(future):
                return
            coroutine = future._work
        task, depth = self.task, self.depth
        self.task = future
        self.depth = depth + 1
        run = future._context.run
        error = self.wounds.pop(future, None) if self.wounds else None
        try:
            while True:
                if error is None:
                    awaited = run(coroutine.send, None)
                else:
                    awaited, error = run(coroutine.throw, error), None
                if type(awaited) is Future:
                    if awaited._state < DONE:
                        # In this order: whoever finds it among the waiters may take it.
                        future._ticket = True
                        awaited.add_waiter(future._go_on)
                        return
                elif awaited is None:
                    self.coroutines.appendleft(future)  # A bare yield: let others go first.
                    return
                else:
                    error = TypeError(
                        f"{name_of(coroutine)} awaits {awaited!r}, which is no p2pscoop future; "
                        "asyncio's awaitables need asyncio's event loop"
                    )
        except StopIteration as stop:
            if type(stop.value) is Future:
                self.go_on_with(future, stop.value)
            else:
                self.end(future, DONE, stop.value)
        except BaseException as raised:
            self.fail(future, raised)
        finally:
            self.task = task
            self.depth = depth

    @property
    def base_context(self) -> contextvars.Context:
        """What every task starts with."""
        return self._context

    def context_with(self, variables: list[tuple[contextvars.ContextVar[Any], Any]]) -> contextvars.Context:
        """The context of a coroutine task that has set these."""
        context = self._context.copy()
        for variable, value in variables:
            context.run(variable.set, value)
        return context

    def _prepare_coroutine(self, future: Future[Any], coroutine: Any) -> None:
        if isinstance(future._work, TaskOptions):
            future._options = future._work
            coroutine.__qualname__ = name_of(future._work)
        future._work = coroutine
        future._args = None
        future._context = self._context.copy()

    # ------------------------------------------------------------------------------- blocking strands

    def park(self, deadline: float | None = None) -> bool:
        """Block the running strand until it is woken, and run others meanwhile.

        Args:
            deadline: on the monotonic clock, or None.

        Returns:
            False if the deadline has passed. True promises nothing: look again.
        """
        if self.arrivals:
            self.poll()
            return True
        strand = self.strand
        strand.waiting = True
        strand.depth, strand.task = self.depth, self.task
        if deadline is not None:
            self._timer_number += 1
            strand.timer = self._timer_number
            heapq.heappush(self._timers, (deadline, strand.timer, strand))
        self._blocked.add(strand)
        self._switch(strand, self._spare.pop().greenlet if self._spare else self._hub)
        if strand.wound is not None:
            wound, strand.wound = strand.wound, None
            raise wound
        return deadline is None or time.monotonic() < deadline

    def poll(self) -> None:
        """Do what other threads want done in this one."""
        arrivals = self.arrivals
        while arrivals:
            arrivals.popleft()()

    def run_until(self, finished: Callable[[], bool]) -> None:
        """Block the main strand, and run tasks, until `finished()`; asked after every wake-up of the strand.

        Whoever changes the answer calls `root.wake` in the home thread.
        """
        while not finished():
            self.park()

    def drain(self) -> None:
        """Run tasks until none is left, here or lent."""
        self._draining = True
        self.hooks.fetch_all()
        try:
            self.run_until(self._idle_for_good)
        finally:
            self._draining = False

    def _idle_for_good(self) -> bool:
        strands = self._all_strands()
        return not (
            self.arrivals
            or self.inbox
            or self.pinned
            or self.coroutines
            or self.stuck
            or self.handoff
            or self._blocked - {self.root}
            or any(strand.stocked for strand in strands)
            or not self.hooks.quiescent()
        )

    def _switch(self, strand: Strand, target: greenlet) -> None:
        """Leave a strand for another greenlet; returns when somebody switches back."""
        if strand.deque or strand.ranges:
            self.stocked[strand] = None
        if self.profiler is not None:
            self.profiler.disable()
        try:
            target.switch()
        finally:
            self._enter(strand)

    def _enter(self, strand: Strand) -> None:
        self.strand = strand
        self.deque = strand.deque
        self.depth = strand.depth
        self.task = strand.task
        strand.waiting = False
        strand.timer = 0
        self.stocked.pop(strand, None)
        self._blocked.discard(strand)
        if self.profiler is not None:
            self.profiler.disable()  # It is on where a strand ended.
            self.profiler.enable()

    # -------------------------------------------------------------------------------------- the loop

    def _start_loops(self) -> None:
        """Body of the hub: starts loop strands from near the bottom of the stack.

        A greenlet inherits the recursion depth of the one that first switches to it. A strand that was
        started by a deep one would have no stack left; so all are started from here.
        """
        self.root.greenlet.switch()
        while True:
            strand = Strand(self, None)
            strand.greenlet = greenlet(partial(self._loop, strand), parent=self.root.greenlet)
            strand.greenlet.gr_context = self._context.copy()
            strand.greenlet.switch()

    def _loop(self, strand: Strand) -> None:
        """Body of a loop strand: run what can run, for ever, or until there are loop strands enough."""
        self._enter(strand)
        try:
            while True:
                if self.arrivals:
                    self.poll()
                if self._timers:
                    self._expire()
                if self.resumable:
                    target = self.resumable.popleft()
                    if len(self._spare) < SPARE_MAX or strand.stocked:
                        self._spare.append(strand)
                        self._switch(strand, target.greenlet)
                        continue
                    # A greenlet that ends goes on in its parent.
                    getcurrent().parent = target.greenlet
                    return
                if self.handoff:
                    self._run(self.handoff.pop() if self.depth_max else self._next_turn())
                elif self.stuck:
                    future = self.stuck.pop()
                    del future._pinned  # Where it stops next it may be portable.
                    self.step(future)
                elif self.coroutines:
                    try:
                        future = self.coroutines.pop()
                    except IndexError:
                        continue  # A thief was faster.
                    self.step(future)
                else:
                    claimed = self._next()
                    if claimed is not None:
                        self._run(claimed)
                    else:
                        self._rest()
        except BaseException:
            # An interrupt, which goes on in the main program (the parent). The tasks stay.
            self.root.deque.extend(strand.deque)
            self.root.ranges.extend(strand.ranges)
            raise

    def _run(self, future: Future[Any]) -> None:
        """Run a claimed task at the bottom of a loop strand."""
        self.resting = False
        if type(future._work) is CoroutineType:
            self.step(future)  # A guest that was started elsewhere.
            return
        self.depth = 1
        self.task = future
        self.executed += 1
        try:
            work, args, kwargs = future._work, future._args, future._kwargs
            value = (
                call_as_user(work, args, kwargs) if type(work) is BuiltinFunctionType else work(*args, **kwargs)
            )
        except BaseException as error:
            self.fail(future, error)
        else:
            if type(value) is CoroutineType or type(value) is Future:
                self.go_on_with(future, value)
            else:
                self.end(future, DONE, value)
        self.depth = 0
        self.task = self.root_task

    def _next(self) -> Future[Any] | None:
        """Claim a task to run, of the program whose turn it is."""
        inbox = self.inbox
        if not inbox.is_contested:
            return self._next_in_order()
        program = inbox.turn(time.monotonic())
        future = self._begin_guest(program) if program != inbox.program else None
        if future is None:
            future = self._next_in_order()
            if future is not None:
                inbox.program = program_of(future, self.hooks.node_id())
        return future

    def share(self) -> list[NodeId]:
        """If tasks of several programs are here, have the next join ask whose turn it is. Any thread.

        Returns:
            The programs that have tasks in deques here.
        """
        if self.inbox or self.handoff:
            self.depth_max = 0
        owners = {self._program_of(strand) for strand in self._all_strands() if strand.stocked}
        return [*owners.union(self.inbox.programs)]

    def take_of(self, program: NodeId) -> tuple[list[Future[Any]], list[Guest]]:
        """Claim one task of a program for a thief: the oldest, or else the newest guest. Any thread."""
        own: list[Future[Any]] = []
        for strand in self._all_strands():
            if not own and self._program_of(strand) == program:
                for each in tuple(strand.ranges):
                    own += each.split(1 - len(own))
                own += take_oldest([strand.deque], 1 - len(own))
        for future in own:
            future._state = LENT
        guest = None if own else self.inbox.take_newest(program)
        return own, [] if guest is None else [guest]

    def _program_of(self, strand: Strand) -> NodeId:
        """To which the tasks in its deque belong, most likely."""
        return program_of(self.task if strand is self.strand else strand.task, self.hooks.node_id())

    def _next_turn(self) -> Future[Any]:
        """A task that was handed over, or that of another program whose turn it is."""
        self.depth_max = DEPTH_MAX
        me = self.hooks.node_id()
        waiting = [program_of(future, me) for future in self.handoff]
        program = self.inbox.turn(time.monotonic(), waiting)
        for index in reversed(range(len(waiting))):
            if waiting[index] == program:
                self.inbox.program = program
                return self.handoff.pop(index)
        return self._begin_guest(program) or self.handoff.pop()

    def _begin_guest(self, program: NodeId | None = None) -> Future[Any] | None:
        while True:
            guest = self.inbox.pop(program)
            if guest is None:
                return None
            self.inbox.program = guest.spec.program
            future = self.hooks.begin(guest)
            if future is not None:
                return future

    def _next_in_order(self) -> Future[Any] | None:
        """Claim the newest task of this strand, else of one that blocked, else a guest."""
        future = take_newest(self.deque)
        if future is not None:
            return future
        for strand in (self.strand, *reversed(self.stocked)):
            future = take_newest(strand.deque)
            if future is not None:
                return future
            for each in reversed(strand.ranges):
                future = each.take()
                if future is not None:
                    return future
            if not strand.ranges:
                self.stocked.pop(strand, None)
        if self.pinned:
            return take_newest(self.pinned)
        return self._begin_guest()

    def _rest(self) -> None:
        """Nothing to run: look for work, and sleep until there is some."""
        if self._draining:
            self.hooks.fetch_all()
            if self._idle_for_good():
                self.root.wake()
                return
        self.hooks.seek()
        timeout = -1.0
        if self._timers:
            timeout = max(0.0, self._timers[0][0] - time.monotonic())
        if self._draining:
            # The last acknowledgement ends a drain, and wakes nobody.
            timeout = _DRAIN_PAUSE_S
        self.resting = True
        self._sleeping = True
        try:
            if not (self.arrivals or self.inbox):
                self._bell.acquire(timeout=timeout)
        finally:
            self._sleeping = False
        if self.arrivals:
            self.poll()
        ready = self.resumable or self.coroutines or self.stuck
        if ready:
            self.resting = False  # With a queued task it is over when that task is claimed.
        if ready or self.inbox or self.pinned or self.stocked:
            self.hooks.found()

    def _expire(self) -> None:
        """Wake the strands whose deadlines have passed."""
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            _, number, strand = heapq.heappop(self._timers)
            if strand.timer == number:
                strand.wake()


def _is_in(task: Future[Any], each: Future[Any] | None) -> bool:
    """Whether a task is this one, or one that it has spawned, at any depth."""
    while each is not None and each is not task:
        each = each._parent
    return each is task
