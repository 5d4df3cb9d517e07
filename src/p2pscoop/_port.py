"""The seam between a runtime and whatever has the tasks: a scheduler that runs them, or a pool that submits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from p2pscoop._core.ids import NodeId, TaskKey
from p2pscoop._core.values import Outcome, PeerInfo, Spec
from p2pscoop._payload import SpecEncoder
from p2pscoop.errors import PayloadError

__all__ = ["Guest", "Port"]


class Guest:
    """A task of another node that is queued here."""

    __slots__ = ("_ticket", "claimed", "kept", "key", "spec")

    def __init__(self, key: TaskKey, spec: Spec) -> None:
        self.key = key
        self.spec = spec
        self.claimed = False
        self.kept: dict[TaskKey, Outcome] = {}
        """Values that a continuation needs and that are here already."""
        self._ticket = True

    def claim(self) -> bool:
        """Make the task the caller's to run or to pass on. Atomic; any thread."""
        try:
            del self._ticket
        except AttributeError:
            return False
        self.claimed = True
        return True


class Port(Protocol):
    """Whatever has the tasks: the scheduler of a node that runs them, or a pool that only submits.

    Called from any thread, `enqueue` and `withdraw` while the core is locked: those two must not block.
    """

    hungry: bool
    """Set by the runtime: whether thieves wait, so that new tasks should be announced with `Runtime.feed`."""

    def take(self, count_max: int, thief: NodeId) -> tuple[Sequence[Any], Sequence[Guest]]:
        """Claim half of what is there for a thief: started and own tasks, and guests to be passed on."""
        ...

    def key_of(self, task: Any) -> TaskKey | None:
        """Of a task that was started here and is another node's; None for an own one."""
        ...

    def encode(self, task: Any, encoder: SpecEncoder, thief: NodeId) -> Spec:
        """Pickle an own task for a thief. Raises `PayloadError`."""
        ...

    def deaths_max(self, task: Any) -> int | None:
        """So many nodes that died with an own task make it poison; None: as the limits say."""
        ...

    def name_of(self, task: Any) -> str:
        """What an own task is called in messages."""
        ...

    def serial_of(self, task: Any) -> int | None:
        """The serial of an own task that has been lent before."""
        ...

    def refuse(self, task: Any, error: PayloadError) -> None:
        """An own task that was taken does not pickle."""
        ...

    def settle(self, task: Any, outcome: Outcome, holder: NodeId, hungry: bool) -> None:
        """The outcome of a lent task. If its holder is hungry, `take` for it follows."""
        ...

    def kept(self, task: Any, serial: int, holder: NodeId, hungry: bool) -> None:
        """A lent task has a large value, which stays with its holder. If that is hungry, `take` for it follows."""
        ...

    def come_home(self, task: Any, serial: int | None, spec: Spec | None = None) -> None:
        """A taken or lent task is to be queued again; `spec` says how far it came, if not as far as here."""
        ...

    def released(self, task: Any) -> None:
        """A thief has the continuation of an own task."""
        ...

    def passed(self, key: TaskKey) -> None:
        """A thief has the continuation of another node's task."""
        ...

    def enqueue(self, guests: Sequence[Guest]) -> None:
        """Guests to run."""
        ...

    def withdraw(self, keys: Sequence[TaskKey]) -> None:
        """Guests that need not be run any more."""
        ...

    def interrupt(self, keys: Sequence[TaskKey]) -> None:
        """Guests that run, and need not run any further."""
        ...

    def share(self) -> list[NodeId]:
        """Several programs are there: let each have its turn. Those that have something queued here."""
        ...

    def take_of(self, program: NodeId, thief: NodeId) -> tuple[Sequence[Any], Sequence[Guest]]:
        """As `take`, for at most one task, of this program."""
        ...

    def counters(self) -> dict[str, int]:
        """Counters to be reported with those of the core."""
        ...

    def joined(self) -> None:
        """The node is a member."""
        ...

    def refused(self, reason: str) -> None:
        """The cluster does not want the node."""
        ...

    def arrived(self, info: PeerInfo) -> None:
        """A peer is there."""
        ...

    def departed(self, info: PeerInfo, reason: str | None, failed: bool) -> None:
        """A peer is gone."""
        ...
