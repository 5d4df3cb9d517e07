"""The values that messages consist of: tasks on their way, outcomes, members."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from p2pscoop._core.ids import NOBODY, NodeId, Token

__all__ = [
    "BOUNCED",
    "GrantedTask",
    "MemberEntry",
    "MemberState",
    "Outcome",
    "OutcomeKind",
    "OwnTask",
    "PeerInfo",
    "Spec",
    "SpecKind",
    "TaskEntry",
    "TaskResult",
]


class SpecKind(IntEnum):
    """What the payloads of a spec are."""

    FRESH = 0
    """Function and arguments of a task that has not been started."""
    CONTINUATION = 1
    """A started task: what its frames were when they could go on, instead of arguments."""
    BOUNCED = 2
    """Nothing: the holder cannot go on with the continuation, and its owner has to use its own copy."""


class Spec(NamedTuple):
    """What a task is: the pickled function and the pickled arguments, apart, because many tasks share one."""

    code: bytes
    args: bytes
    kind: SpecKind = SpecKind.FRESH
    program: NodeId = NOBODY
    """The origin whose program it belongs to."""


BOUNCED = Spec(b"", b"", SpecKind.BOUNCED)


class OwnTask(NamedTuple):
    """A task of this node that is about to be lent.

    Attributes:
        handle: what the shell knows it by; never looked into.
        serial: the owner's number for it, if it was lent before.
        spec: what the thief gets.
        deaths_max: so many nodes that died with it make it poison; None: `Limits.deaths_max`.
    """

    handle: object
    serial: int | None
    spec: Spec
    deaths_max: int | None = None


class OutcomeKind(IntEnum):
    """How a task ended."""

    VALUE = 0
    ERROR = 1
    CANCELLED = 2
    KEPT = 3
    """A large value, still with its holder: the payload is its size."""


class Outcome(NamedTuple):
    """How a task ended, and the pickled value or exception."""

    kind: OutcomeKind
    payload: bytes


class TaskEntry(NamedTuple):
    """One custody of one task: whose it is, its serial there, and the token."""

    owner: NodeId
    serial: int
    token: Token


class GrantedTask(NamedTuple):
    """A task on its way to a new holder."""

    owner: NodeId
    serial: int
    token: Token
    spec: Spec


class TaskResult(NamedTuple):
    """The outcome of one task of the recipient."""

    serial: int
    token: Token
    outcome: Outcome


class PeerInfo(NamedTuple):
    """What a node tells of itself.

    Attributes:
        id: its random id.
        name: for people; unique within one supervisor only.
        addresses: where its inbox listens, as transport addresses.
        group: names the private directory whose `ipc` addresses this node can reach.
        origin: whether it submitted the program that the cluster runs.
        runs_tasks: False for a process that only submits (that of an `Executor`).
        host: name of its machine.
        pid: its process id there.
        version: of p2pscoop.
        resident: whether it stays when no program is there (`p2pscoop join` of a standing cluster).
    """

    id: NodeId
    name: str
    addresses: tuple[str, ...]
    group: str
    origin: bool
    runs_tasks: bool
    host: str
    pid: int
    version: str
    resident: bool = False


class MemberState(IntEnum):
    """A peer as the others see it. A higher value of one incarnation overrides a lower one."""

    ALIVE = 0
    LEFT = 1
    DEAD = 2


class MemberEntry(NamedTuple):
    """A row of the member table, as gossip carries it."""

    info: PeerInfo
    state: MemberState
    incarnation: int
