"""What a core node asks of the shell around it.

Every input of a node (`Node.receive`, `Node.tick`, ...) returns a list of these. The shell carries them out
in order. Handles are the shell's own objects, which the core hands back as it got them.
"""

from __future__ import annotations

from dataclasses import dataclass

from p2pscoop._core.ids import NodeId, TaskKey
from p2pscoop._core.messages import Message
from p2pscoop._core.values import Outcome, PeerInfo, Spec

__all__ = [
    "Answered",
    "Arrived",
    "Asked",
    "ComeHome",
    "Departed",
    "Disconnect",
    "Effect",
    "Enqueue",
    "Interrupt",
    "Joined",
    "Kept",
    "Passed",
    "Poisoned",
    "Refused",
    "Released",
    "Report",
    "Send",
    "SendToSeeds",
    "Settle",
    "StatusArrived",
    "Surrender",
    "TurnedAway",
    "Withdraw",
]


@dataclass(frozen=True, slots=True)
class Effect:
    """Base of all effects."""


@dataclass(frozen=True, slots=True)
class Send(Effect):
    """Send a message to a peer, whose addresses are in the member table. May get lost."""

    recipient: PeerInfo
    message: Message


@dataclass(frozen=True, slots=True)
class SendToSeeds(Effect):
    """Send a message to every seed address that the shell was given."""

    message: Message


@dataclass(frozen=True, slots=True)
class Disconnect(Effect):
    """Nothing will be sent to this peer any more."""

    peer: NodeId


@dataclass(frozen=True, slots=True)
class Joined(Effect):
    """This node is a member now."""


@dataclass(frozen=True, slots=True)
class Refused(Effect):
    """The cluster does not want this node."""

    reason: str


@dataclass(frozen=True, slots=True)
class TurnedAway(Effect):
    """This node did not let a caller in."""

    info: PeerInfo
    reason: str


@dataclass(frozen=True, slots=True)
class Arrived(Effect):
    """A peer is there."""

    info: PeerInfo


@dataclass(frozen=True, slots=True)
class Departed(Effect):
    """A peer is gone: with a reason if it said goodbye, without if it died."""

    info: PeerInfo
    reason: str | None
    failed: bool


@dataclass(frozen=True, slots=True)
class Surrender(Effect):
    """A thief waits: take up to `count_max` tasks from the deque and answer with `Node.give`."""

    thief: NodeId
    steal: int
    count_max: int
    answer: bool
    """Whether the thief waits for an answer, or is to hear of it only when there is something."""


@dataclass(frozen=True, slots=True)
class Enqueue(Effect):
    """Put these tasks of other nodes into the queue, to be run or stolen."""

    tasks: tuple[tuple[TaskKey, Spec], ...]


@dataclass(frozen=True, slots=True)
class Withdraw(Effect):
    """Forget these: take them out of the queue, if they are still there, and drop what was kept of them."""

    keys: tuple[TaskKey, ...]


@dataclass(frozen=True, slots=True)
class Interrupt(Effect):
    """Interrupt these tasks of others, which run: nobody wants their outcome."""

    keys: tuple[TaskKey, ...]


@dataclass(frozen=True, slots=True)
class Settle(Effect):
    """A lent task has its outcome."""

    handle: object
    outcome: Outcome
    holder: NodeId
    hungry: bool = False
    """Whether the holder has nothing left to do, and its `Surrender` follows."""


@dataclass(frozen=True, slots=True)
class Kept(Effect):
    """A lent task has ended with a large value, which stays with its holder until `Node.fetch` or `Node.release`.

    Until then it may still be lost with its holder, and come home.
    """

    handle: object
    serial: int
    holder: NodeId
    hungry: bool


@dataclass(frozen=True, slots=True)
class Poisoned(Effect):
    """A lent task killed one holder after the other, as it seems: it is not run again, and ends with an error."""

    handle: object
    holders: tuple[NodeId, ...]


@dataclass(frozen=True, slots=True)
class ComeHome(Effect):
    """A task is this node's to run or lend again, under the same serial (None if it was never lent).

    A holder that gives it back says how far it came, in `spec`; without one, the owner's own copy counts.
    """

    handle: object
    serial: int | None
    spec: Spec | None = None


@dataclass(frozen=True, slots=True)
class Released(Effect):
    """A thief has accepted this continuation of an own task: its original is not needed any more."""

    handle: object


@dataclass(frozen=True, slots=True)
class Passed(Effect):
    """A thief has accepted this continuation of another node's task: its original is not needed any more."""

    key: TaskKey


@dataclass(frozen=True, slots=True)
class Report(Effect):
    """A peer asks for this node's counters: answer with `Node.report`."""

    peer: NodeId
    query: int


@dataclass(frozen=True, slots=True)
class StatusArrived(Effect):
    """The counters of a peer."""

    peer: NodeId
    query: int
    counters: bytes


@dataclass(frozen=True, slots=True)
class Asked(Effect):
    """A peer has a question for this shell: answer with `Node.answer`. It may come more than once."""

    peer: NodeId
    query: int
    question: bytes


@dataclass(frozen=True, slots=True)
class Answered(Effect):
    """The answer to a question of this shell. It may come more than once."""

    query: int
    answer: bytes
