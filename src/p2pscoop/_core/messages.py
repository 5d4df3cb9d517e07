"""The messages that nodes exchange, as plain values.

Decides which messages exist and what a field may hold. How they become bytes is `codec`'s part, what
they mean is `node`'s. Payloads (specs, outcomes, programs) are opaque bytes here: nothing is unpickled.

Every class lists its fields in `FIELDS`; the codec checks each against its type before anything is built,
so that a handler never sees a value of the wrong shape.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from enum import IntEnum
from typing import Any, ClassVar, NamedTuple

from p2pscoop._core.ids import NodeId, Token
from p2pscoop._core.limits import NODE_ID_SIZE

__all__ = [
    "MESSAGES",
    "Accept",
    "Cancel",
    "Grant",
    "GrantedTask",
    "Holding",
    "HoldingAck",
    "Join",
    "Leaving",
    "MemberEntry",
    "MemberState",
    "Message",
    "NoWork",
    "NotMe",
    "Outcome",
    "OutcomeKind",
    "PeerInfo",
    "Refuse",
    "Reject",
    "Result",
    "ResultAck",
    "Spec",
    "Status",
    "StatusRequest",
    "Steal",
    "Sync",
    "TaskEntry",
    "TaskResult",
    "Welcome",
]


# ------------------------------------------------------------------------------------------- values


class Spec(NamedTuple):
    """What a task is: the pickled function and the pickled arguments, apart, because many tasks share one."""

    code: bytes
    args: bytes


class OutcomeKind(IntEnum):
    """How a task ended."""

    VALUE = 0
    ERROR = 1
    CANCELLED = 2


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


# ------------------------------------------------------------------------------- checked field types

_UINT_MAX = 2**63 - 1
_TEXT_MAX = 4096


class MalformedError(Exception):
    """A field has the wrong shape; the codec turns it into `RemoteProtocolError`."""


def _uint(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= _UINT_MAX:
        raise MalformedError("not an unsigned integer")
    return value


def _bool(value: Any) -> bool:
    if type(value) is not bool:
        raise MalformedError("not a boolean")
    return value


def _text(value: Any) -> str:
    if type(value) is not str or len(value) > _TEXT_MAX:
        raise MalformedError(f"not a text of at most {_TEXT_MAX} characters")
    return value


def _node_id(value: Any) -> NodeId:
    if type(value) is not bytes or len(value) != NODE_ID_SIZE:
        raise MalformedError(f"not a node id of {NODE_ID_SIZE} bytes")
    return value


def _row(value: Any, length: int) -> Any:
    if type(value) is not list or len(value) != length:
        raise MalformedError(f"not a row of {length}")
    return value


def _rows(value: Any) -> Any:
    if type(value) is not list:
        raise MalformedError("not a list of rows")
    return value


def _blob(value: Any, blobs: list[bytes]) -> bytes:
    index = _uint(value)
    if index >= len(blobs):
        raise MalformedError("refers to a payload that is not there")
    return blobs[index]


class _Packer:
    """Collects the payloads of one message; a payload that several fields share is carried once."""

    def __init__(self) -> None:
        self.blobs: list[bytes] = []
        self._index: dict[int, int] = {}

    def add(self, blob: bytes) -> int:
        # By identity: equal but distinct blobs are rare, and hashing megabytes to find them is not free.
        index = self._index.get(id(blob))
        if index is None:
            index = self._index[id(blob)] = len(self.blobs)
            self.blobs.append(blob)
        return index


class FieldType(NamedTuple):
    """How one kind of field is packed into msgpack's types and checked on the way back."""

    pack: Callable[[Any, _Packer], Any]
    unpack: Callable[[Any, list[bytes]], Any]


def _plain(check: Callable[[Any], Any]) -> FieldType:
    return FieldType(lambda value, _: value, lambda value, _: check(value))


UINT = _plain(_uint)
BOOL = _plain(_bool)
TEXT = _plain(_text)
NODE_ID = _plain(_node_id)
OPTIONAL_UINT = _plain(lambda value: None if value is None else _uint(value))
SERIALS = FieldType(
    lambda value, _: list(value),
    lambda value, _: tuple(_uint(serial) for serial in _rows(value)),
)
BLOB = FieldType(
    lambda value, packer: packer.add(value),
    lambda value, blobs: _blob(value, blobs),
)


def _pack_entries(value: tuple[TaskEntry, ...], _: _Packer) -> Any:
    return [(owner, serial, token.attempt, token.hop) for owner, serial, token in value]


def _unpack_entries(value: Any, _: list[bytes]) -> tuple[TaskEntry, ...]:
    entries = []
    for row in _rows(value):
        owner, serial, attempt, hop = _row(row, 4)
        entries.append(TaskEntry(_node_id(owner), _uint(serial), Token(_uint(attempt), _uint(hop))))
    return tuple(entries)


def _pack_granted(value: tuple[GrantedTask, ...], packer: _Packer) -> Any:
    add = packer.add
    return [
        (owner, serial, token.attempt, token.hop, add(spec.code), add(spec.args))
        for owner, serial, token, spec in value
    ]


def _unpack_granted(value: Any, blobs: list[bytes]) -> tuple[GrantedTask, ...]:
    tasks = []
    for row in _rows(value):
        owner, serial, attempt, hop, code, args = _row(row, 6)
        tasks.append(
            GrantedTask(
                _node_id(owner),
                _uint(serial),
                Token(_uint(attempt), _uint(hop)),
                Spec(_blob(code, blobs), _blob(args, blobs)),
            )
        )
    return tuple(tasks)


def _pack_results(value: tuple[TaskResult, ...], packer: _Packer) -> Any:
    return [
        (serial, token.attempt, token.hop, int(outcome.kind), packer.add(outcome.payload))
        for serial, token, outcome in value
    ]


def _unpack_results(value: Any, blobs: list[bytes]) -> tuple[TaskResult, ...]:
    results = []
    for row in _rows(value):
        serial, attempt, hop, kind, payload = _row(row, 5)
        try:
            outcome = Outcome(OutcomeKind(_uint(kind)), _blob(payload, blobs))
        except ValueError:
            raise MalformedError(f"no outcome of kind {kind}") from None
        results.append(TaskResult(_uint(serial), Token(_uint(attempt), _uint(hop)), outcome))
    return tuple(results)


def _pack_info(value: PeerInfo, _: _Packer | None = None) -> Any:
    return list(value)


def _unpack_info(value: Any, _: list[bytes] | None = None) -> PeerInfo:
    node, name, addresses, group, origin, runs_tasks, host, pid, version = _row(value, 9)
    return PeerInfo(
        _node_id(node),
        _text(name),
        tuple(_text(address) for address in _rows(addresses)),
        _text(group),
        _bool(origin),
        _bool(runs_tasks),
        _text(host),
        _uint(pid),
        _text(version),
    )


def _pack_members(value: tuple[MemberEntry, ...], _: _Packer) -> Any:
    return [(_pack_info(info), int(state), incarnation) for info, state, incarnation in value]


def _unpack_members(value: Any, _: list[bytes]) -> tuple[MemberEntry, ...]:
    entries = []
    for row in _rows(value):
        info, state, incarnation = _row(row, 3)
        try:
            member_state = MemberState(_uint(state))
        except ValueError:
            raise MalformedError(f"no member state {state}") from None
        entries.append(MemberEntry(_unpack_info(info), member_state, _uint(incarnation)))
    return tuple(entries)


def _pack_programs(value: tuple[tuple[NodeId, bytes], ...], packer: _Packer) -> Any:
    return [(origin, packer.add(program)) for origin, program in value]


def _unpack_programs(value: Any, blobs: list[bytes]) -> tuple[tuple[NodeId, bytes], ...]:
    programs = []
    for row in _rows(value):
        origin, program = _row(row, 2)
        programs.append((_node_id(origin), _blob(program, blobs)))
    return tuple(programs)


ENTRIES = FieldType(_pack_entries, _unpack_entries)
GRANTED = FieldType(_pack_granted, _unpack_granted)
RESULTS = FieldType(_pack_results, _unpack_results)
INFO = FieldType(_pack_info, _unpack_info)
MEMBERS = FieldType(_pack_members, _unpack_members)
PROGRAMS = FieldType(_pack_programs, _unpack_programs)


# ----------------------------------------------------------------------------------------- messages


@dataclass(frozen=True, slots=True)
class Message:
    """Base of all messages. `KIND` is the number on the wire, `FIELDS` the type of each field in order."""

    KIND: ClassVar[int] = -1
    FIELDS: ClassVar[tuple[FieldType, ...]] = ()


@dataclass(frozen=True, slots=True)
class Join(Message):
    """A new node asks a seed to be let in."""

    KIND = 1
    FIELDS = (INFO, TEXT)
    info: PeerInfo
    python: str
    """Major and minor version: pickles of code do not cross minor versions."""


@dataclass(frozen=True, slots=True)
class Welcome(Message):
    """The answer to `Join`: who is there, and the programs that are being run."""

    KIND = 2
    FIELDS = (MEMBERS, PROGRAMS)
    members: tuple[MemberEntry, ...]
    programs: tuple[tuple[NodeId, bytes], ...]


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
    """The sender goes, holds nothing any more, and will not come back under this id."""

    KIND = 5
    FIELDS = (TEXT, BOOL)
    reason: str
    failed: bool
    """Whether it goes because it could not do its work (its initializer raised, say)."""


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
    """Tasks of the sender that need not be started any more."""

    KIND = 24
    FIELDS = (SERIALS,)
    serials: tuple[int, ...]


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
        Holding,
        HoldingAck,
        Cancel,
        StatusRequest,
        Status,
    )
}


_FIELD_NAMES = {kind: tuple(each.name for each in fields(message)) for kind, message in MESSAGES.items()}


def pack(message: Message) -> tuple[list[Any], list[bytes]]:
    """The fields of a message as msgpack's types, and its payloads."""
    packer = _Packer()
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
    row = _row(values, len(message_type.FIELDS))
    return message_type(
        *(field_type.unpack(value, blobs) for field_type, value in zip(message_type.FIELDS, row, strict=True))
    )
