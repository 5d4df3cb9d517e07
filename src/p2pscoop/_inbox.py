"""The tasks of other nodes that are queued here, and whose turn it is if they belong to several programs.

Programs share a node by time, not by tasks: the one that had least of it is next (Demers, Keshav and Shenker,
Analysis and Simulation of a Fair Queueing Algorithm, 1989, with time instead of bytes). Only while there is a
choice is time counted. A program that comes starts level with the one that had least, and one that was away for
long has no more than `_CREDIT_S` to catch up.

A turn lasts until a task ends, waits, or after 0.1 s joins another: no task is interrupted for others.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable

from p2pscoop._core.deque import take_newest
from p2pscoop._core.ids import NOBODY, NodeId
from p2pscoop._port import Guest

__all__ = ["Inbox"]

_CREDIT_S = 1.0


class Inbox:
    """Guests that nobody has started, those of each program in the order in which they came.

    Any thread may add guests and take the newest; all else is the home thread's.

    Attributes:
        program: what was started last belongs to it.
    """

    def __init__(self) -> None:
        self.program = NOBODY
        self._queues: dict[NodeId, deque[Guest]] = {}
        self._lock = threading.Lock()
        self._spent: dict[NodeId, float] = {}
        self._since: float | None = None

    def __len__(self) -> int:
        return sum(map(len, tuple(self._queues.values())))

    def __bool__(self) -> bool:
        return bool(self._queues)

    def append(self, guest: Guest) -> None:
        """Add a guest."""
        program = guest.spec.program
        with self._lock:
            queue = self._queues.get(program)
            if queue is None:
                queue = self._queues[program] = deque()
            queue.append(guest)

    def extend(self, guests: Iterable[Guest]) -> None:
        """Add guests."""
        for guest in guests:
            self.append(guest)

    def take_newest(self, program: NodeId | None = None) -> Guest | None:
        """Claim one for a thief: that which would be started last.

        Args:
            program: to which it shall belong  [default: that which has most here].
        """
        while True:
            queues = self._queues.copy()
            wanted = max(queues, key=lambda each: len(queues[each]), default=None) if program is None else program
            if wanted not in queues:
                return None
            guest = take_newest(queues[wanted])
            self._drop_empty(wanted)
            if guest is not None:
                return guest

    @property
    def programs(self) -> list[NodeId]:
        """Those that have guests here."""
        return list(self._queues)

    def pop(self, program: NodeId | None = None) -> Guest | None:
        """Claim the guest that is next.

        Args:
            program: to which it shall belong  [default: the last one, if that has any].
        """
        while self._queues:
            if program is None:
                wanted = self.program if self.program in self._queues else next(iter(self._queues))
            else:
                wanted = program
            queue = self._queues.get(wanted)
            if queue is None:
                return None
            try:
                guest = queue.popleft()
            except IndexError:
                self._drop_empty(wanted)
                continue
            if not queue:
                self._drop_empty(wanted)
            if guest.claim():
                return guest
        return None

    @property
    def is_contested(self) -> bool:
        """Whether guests wait that belong to another program than what was started last."""
        queues = self._queues
        if len(queues) > 1 or (queues and self.program not in queues):
            return True
        self._since = None
        return False

    def turn(self, now: float, others: Iterable[NodeId] = ()) -> NodeId:
        """The program that is next: one that has guests here, the last one, which may have more to do, or another.

        Args:
            now: the time.
            others: programs that have something else to do.
        """
        programs = {self.program, *tuple(self._queues), *others}
        spent = {program: self._spent[program] for program in programs if program in self._spent}
        if self._since is not None:
            spent[self.program] = spent.get(self.program, 0.0) + now - self._since
        self._since = now
        least, most = min(spent.values(), default=0.0), max(spent.values(), default=0.0)
        self._spent = {each: max(spent.get(each, least), most - _CREDIT_S) for each in programs}
        return min(programs, key=lambda each: (self._spent[each], each == self.program))

    def _drop_empty(self, program: NodeId) -> None:
        with self._lock:
            if not self._queues.get(program, True):
                del self._queues[program]
