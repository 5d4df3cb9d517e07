"""The messages that nodes exchange, as plain values.

Decides which messages exist and what their fields are. How they become bytes is `codec`'s part, what they mean
is `node`'s. Every class lists the types of its fields in `FIELDS`, in order.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from p2pscoop._core.fields import (
    BLOB,
    BOOL,
    CALLER,
    ENTRIES,
    GRANTED,
    INFO,
    MEMBERS,
    NODE_ID,
    OPTIONAL_UINT,
    RESULTS,
    SERIALS,
    TEXT,
    UINT,
    FieldType,
    MalformedError,
    Packer,
    row,
)
from p2pscoop._core.ids import NodeId
from p2pscoop._core.limits import PROTOCOL_VERSION
from p2pscoop._core.values import GrantedTask, MemberEntry, PeerInfo, TaskEntry, TaskResult

__all__ = [
    "MESSAGES",
    "Accept",
    "Answer",
    "Ask",
    "Cancel",
    "Fetch",
    "Grant",
    "Holding",
    "HoldingAck",
    "Join",
    "Leaving",
    "Message",
    "NoWork",
    "NotMe",
    "Refuse",
    "Reject",
    "Result",
    "ResultAck",
    "Status",
    "StatusRequest",
    "Steal",
    "Sync",
    "Welcome",
    "pack",
    "unpack",
]


@dataclass(frozen=True, slots=True)
class Message:
    """Base of all messages. `KIND` is the number on the wire, `FIELDS` the type of each field in order."""

    KIND: ClassVar[int] = -1
    FIELDS: ClassVar[tuple[FieldType, ...]] = ()


@dataclass(frozen=True, slots=True)
class Join(Message):
    """A new node asks a seed to be let in; or one that is in shows itself to those that may be elsewhere.

    On the wire, what all versions of the protocol have in common comes first, so that nodes that do not match can
    say so to each other. Of a caller of another version, `info` has no more than that.
    """

    KIND = 1
    info: PeerInfo
    python: str
    """Major and minor version: pickles of code do not cross minor versions."""
    cluster: str = ""
    """Tag of its cluster's name."""
    protocol: int = PROTOCOL_VERSION


@dataclass(frozen=True, slots=True)
class Welcome(Message):
    """The answer to `Join`: who is there."""

    KIND = 2
    FIELDS = (MEMBERS,)
    members: tuple[MemberEntry, ...]


@dataclass(frozen=True, slots=True)
class Refuse(Message):
    """The other answer to `Join`."""

    KIND = 3
    FIELDS = (TEXT,)
    reason: str


@dataclass(frozen=True, slots=True)
class Sync(Message):
    """Rows of the sender's member table, for the recipient to merge."""

    KIND = 4
    FIELDS = (MEMBERS, BOOL)
    members: tuple[MemberEntry, ...]
    answer: bool
    """Whether the sender would like the recipient's rows in return."""


@dataclass(frozen=True, slots=True)
class Leaving(Message):
    """The sender goes, and will not come back under this id."""

    KIND = 5
    FIELDS = (TEXT, BOOL, BOOL)
    reason: str
    failed: bool
    """Whether it goes because it could not do its work (its initializer raised, say)."""
    drained: bool = False
    """Whether it holds nothing any more: what was lent to it is with somebody else by now."""


@dataclass(frozen=True, slots=True)
class NotMe(Message):
    """A message for `intended` arrived at the sender, which is another node."""

    KIND = 6
    FIELDS = (NODE_ID,)
    intended: NodeId


@dataclass(frozen=True, slots=True)
class Steal(Message):
    """The sender has nothing to do and asks for at most `count_max` tasks."""

    KIND = 10
    FIELDS = (UINT, UINT, BOOL)
    steal: int
    """Numbers the attempts of one thief, so that a late answer is not taken for the present one."""
    count_max: int
    lifeline: bool
    """Whether to remember the sender, if there is nothing now, and feed it when there is."""


@dataclass(frozen=True, slots=True)
class NoWork(Message):
    """The answer to `Steal` of a node with nothing to give."""

    KIND = 11
    FIELDS = (UINT,)
    steal: int


@dataclass(frozen=True, slots=True)
class Grant(Message):
    """Tasks for the recipient, in answer to `Steal`, along a lifeline, or on their way home."""

    KIND = 12
    FIELDS = (UINT, GRANTED)
    steal: int
    tasks: tuple[GrantedTask, ...]


@dataclass(frozen=True, slots=True)
class Accept(Message):
    """The sender has these tasks now: the giver may forget them."""

    KIND = 13
    FIELDS = (ENTRIES,)
    entries: tuple[TaskEntry, ...]


@dataclass(frozen=True, slots=True)
class Reject(Message):
    """The sender does not take these tasks: the giver keeps them."""

    KIND = 14
    FIELDS = (ENTRIES, TEXT)
    entries: tuple[TaskEntry, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Result(Message):
    """Outcomes of tasks of the recipient."""

    KIND = 20
    FIELDS = (RESULTS, OPTIONAL_UINT)
    results: tuple[TaskResult, ...]
    steal: int | None
    """If the sender has nothing left to do: its next `Steal`, riding along."""


@dataclass(frozen=True, slots=True)
class ResultAck(Message):
    """The sender, their owner, has the outcomes of these of its tasks."""

    KIND = 21
    FIELDS = (SERIALS,)
    serials: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Fetch(Message):
    """The sender, their owner, wants the kept values of these of its tasks."""

    KIND = 25
    FIELDS = (SERIALS,)
    serials: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Holding(Message):
    """Tasks of the recipient that the sender holds; renews their leases."""

    KIND = 22
    FIELDS = (ENTRIES,)
    entries: tuple[TaskEntry, ...]


@dataclass(frozen=True, slots=True)
class HoldingAck(Message):
    """Of the tasks in a `Holding`, those that the recipient holds in vain."""

    KIND = 23
    FIELDS = (ENTRIES,)
    obsolete: tuple[TaskEntry, ...]


@dataclass(frozen=True, slots=True)
class Cancel(Message):
    """Tasks of the sender that are not wanted any more."""

    KIND = 24
    FIELDS = (SERIALS, BOOL)
    serials: tuple[int, ...]
    stop: bool = False
    """Whether to interrupt those that run; if not, they only need not be started."""


@dataclass(frozen=True, slots=True)
class StatusRequest(Message):
    """Asks for the recipient's counters."""

    KIND = 30
    FIELDS = (UINT,)
    query: int


@dataclass(frozen=True, slots=True)
class Status(Message):
    """The sender's counters, as msgpack; the core does not look inside."""

    KIND = 31
    FIELDS = (UINT, BLOB)
    query: int
    counters: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Ask(Message):
    """A question of the shell's, about what the program's nodes share; the core does not look inside.

    Repeated by the shell until it is answered: whoever answers has to bear that.
    """

    KIND = 32
    FIELDS = (UINT, BLOB)
    query: int
    question: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Answer(Message):
    """The answer to `Ask`."""

    KIND = 33
    FIELDS = (UINT, BLOB)
    query: int
    answer: bytes = field(repr=False)


MESSAGES: dict[int, type[Message]] = {
    message.KIND: message
    for message in (
        Join,
        Welcome,
        Refuse,
        Sync,
        Leaving,
        NotMe,
        Steal,
        NoWork,
        Grant,
        Accept,
        Reject,
        Result,
        ResultAck,
        Fetch,
        Holding,
        HoldingAck,
        Cancel,
        StatusRequest,
        Status,
        Ask,
        Answer,
    )
}


def _unpack_join(values: Any) -> Join:
    if type(values) is not list or len(values) < len(_COMMON):
        raise MalformedError("a greeting that is too short")
    protocol, python, cluster, caller = (
        field_type.unpack(value, []) for field_type, value in zip(_COMMON, values, strict=False)
    )
    if protocol != PROTOCOL_VERSION:
        return Join(caller, python, cluster, protocol)
    return Join(INFO.unpack(row(values, len(_COMMON) + 1)[-1], []), python, cluster)


_COMMON = (UINT, TEXT, TEXT, CALLER)
_FIELD_NAMES = {kind: tuple(each.name for each in fields(message)) for kind, message in MESSAGES.items()}


def pack(message: Message) -> tuple[list[Any], list[bytes]]:
    """The fields of a message as msgpack's types, and its payloads."""
    packer = Packer()
    if isinstance(message, Join):
        common = [message.protocol, message.python, message.cluster, CALLER.pack(message.info, packer)]
        return [*common, INFO.pack(message.info, packer)], []
    packed = [
        field_type.pack(getattr(message, name), packer)
        for field_type, name in zip(message.FIELDS, _FIELD_NAMES[message.KIND], strict=True)
    ]
    return packed, packer.blobs


def unpack(kind: int, values: Any, blobs: list[bytes]) -> Message:
    """The message, or `MalformedError`."""
    message_type = MESSAGES.get(kind)
    if message_type is None:
        raise MalformedError(f"unknown kind {kind}")
    if message_type is Join:
        return _unpack_join(values)
    checked = row(values, len(message_type.FIELDS))
    return message_type(
        *(field_type.unpack(value, blobs) for field_type, value in zip(message_type.FIELDS, checked, strict=True))
    )
