"""The programs whose tasks a node runs, and what each needs of the process.

A program is named by its origin. Before the first of its tasks runs here, its paths are added and its initializer
is called; until then its tasks are parked. Several programs may use a node one after the other, or at once: when
a task of another one starts, the working directory, `sys.path` and `sys.argv` become those of its program. What is
suspended meanwhile finds the ones of whoever started last; so programs that share nodes should not depend on
the working directory after an `await` or a `result()`.

When its origin is gone, the modules that were imported from a program's own directories are forgotten, so that its
next run finds them as they are by then. Those that are not on this machine come from the origin: `_shipping`.

Decides what is ready. `park` and `take` may be called in any thread, all else only in the home thread.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterable

import msgpack

from p2pscoop._core.ids import NOBODY, NodeId
from p2pscoop._payload import Program, decode_program, forget_codes
from p2pscoop._port import Guest
from p2pscoop._shipping import Shipping
from p2pscoop._sources import is_within
from p2pscoop.errors import CodeMismatchError, InitializerError

__all__ = ["Programs"]


class Programs:
    """Those of one node."""

    def __init__(self) -> None:
        self._base = list(sys.path)
        self._programs: dict[NodeId, Program] = {}
        self._ready: set[NodeId] = set()
        self._current = NOBODY
        self._here: set[NodeId] = set()
        """Those of executors of this very process, whose paths and modules are its own."""
        self._parked: dict[NodeId, list[Guest]] = {}
        self._lock = threading.Lock()
        self.shipping: Shipping | None = None
        """Where modules come from that are not here. None in the process of an origin, which has its own."""

    @property
    def current(self) -> NodeId:
        """The program whose task was the last to start."""
        return self._current

    def park(self, guest: Guest, me: NodeId) -> int:
        """How many guests wait for the same program as this one, it included; 0 if it need not wait.

        Args:
            guest: the task.
            me: this node, whose own program needs nothing.
        """
        program = guest.spec.program
        if program in (NOBODY, me):
            return 0
        with self._lock:
            if program in self._ready:
                return 0
            waiting = self._parked.setdefault(program, [])
            waiting.append(guest)
            return len(waiting)

    def take(self, count: int) -> list[Guest]:
        """Claim guests that wait, for a thief: this node may not come to them soon. At most so many.

        Any thread.
        """
        with self._lock:
            taken: list[Guest] = []
            for guests in self._parked.values():
                while guests and len(taken) < count:
                    guest = guests.pop()
                    if guest.claim():
                        taken.append(guest)
        return taken

    def parked(self) -> int:
        """How many guests wait for their program. Any thread."""
        with self._lock:
            return sum(map(len, self._parked.values()))

    def awaits(self, origin: NodeId) -> bool:
        """Whether guests wait for a program."""
        return origin in self._parked

    def unpark(self, origin: NodeId) -> list[Guest]:
        """The guests that waited for a program."""
        with self._lock:
            if origin in self._programs:
                # Not before: those that came while it was prepared must not overtake those that had to wait.
                self._ready.add(origin)
            return self._parked.pop(origin, [])

    def unpark_all(self) -> Iterable[Guest]:
        """The guests that wait for any program."""
        with self._lock:
            waiting = [guest for guests in self._parked.values() for guest in guests]
            self._parked.clear()
        return waiting

    def prepare(self, origin: NodeId, data: bytes, *, here: bool) -> InitializerError | None:
        """Make the process ready for a program. Why it cannot be, if so: its initializer raised.

        Args:
            origin: names it.
            data: what it needs.
            here: whether it is that of this process.
        """
        if origin in self._programs:
            return None
        description, names = msgpack.unpackb(data)
        program = decode_program(description)
        with self._lock:
            self._programs[origin] = program
        if here:
            self._here.add(origin)
        self.enter(origin)
        try:
            if self.shipping is not None:
                self.shipping.begin(origin, names)
                problem = self.shipping.conflict(origin)
                if problem is not None and program.initializer is not None:
                    raise problem
            program.initialize()
        except BaseException as error:
            # User code; `sys.exit` in it is as much a failure as anything else.
            broken = InitializerError(f"the initializer raised {type(error).__name__}: {error}")
            broken.__cause__ = error
            return broken
        return None

    def conflict(self, origin: NodeId) -> CodeMismatchError | None:
        """Why no task of a program can run here now, if so."""
        return None if self.shipping is None else self.shipping.conflict(origin)

    def enter(self, origin: NodeId) -> None:
        """A task of this program starts."""
        if origin == self._current or origin not in self._programs or origin in self._here:
            return
        self._current = origin
        program = self._programs[origin]
        # In the order of the origin, so that a name means the same module; what is not here does no harm.
        known = [entry for entry in program.path if os.path.exists(entry)]
        sys.path[:] = known + [entry for entry in self._base if entry not in known]
        sys.argv = list(program.argv)
        with contextlib.suppress(OSError):  # It is not on this machine, or not for this user.
            os.chdir(program.directory)

    def forget(self, origin: NodeId) -> None:
        """A program has ended."""
        with self._lock:
            program = self._programs.pop(origin, None)
            self._ready.discard(origin)
            # It may be back one day: then those that were not withdrawn are still wanted.
            waiting = [guest for guest in self._parked.pop(origin, ()) if not guest.claimed]
            if waiting:
                self._parked[origin] = waiting
        if program is None:
            return
        if origin in self._here:
            self._here.discard(origin)
            return
        # What has been unpickled refers to modules that another program of the same names must not get.
        forget_codes()
        if self.shipping is not None:
            self.shipping.forget(origin)
        if self._current == origin:
            self._current = NOBODY
            sys.path[:] = self._base
        shared = {entry for other in self._programs.values() for entry in other.path}
        own = {entry for entry in program.path if entry not in self._base and entry not in shared}
        for name, module in list(sys.modules.items()):
            if self.shipping is not None and self.shipping.holds(name):
                continue
            file = getattr(module, "__file__", None)
            if file is not None and is_within(file, own, self._base):
                del sys.modules[name]
