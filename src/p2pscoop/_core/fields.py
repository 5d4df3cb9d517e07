"""Types of the fields of messages: how each is packed for msgpack, and how it is checked on the way back.

A value that passes its check has the shape that handlers expect, so that they need not look. Payloads are
opaque bytes, carried beside the header and referred to by their number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from p2pscoop._core.ids import NOBODY, NodeId, Token
from p2pscoop._core.limits import NODE_ID_SIZE
from p2pscoop._core.values import (
    GrantedTask,
    MemberEntry,
    MemberState,
    Outcome,
    OutcomeKind,
    PeerInfo,
    Spec,
    SpecKind,
    TaskEntry,
    TaskResult,
)

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


def row(value: Any, length: int) -> Any:
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


class Packer:
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

    pack: Callable[[Any, Packer], Any]
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


def _pack_entries(value: tuple[TaskEntry, ...], _: Packer) -> Any:
    return [(owner, serial, token.attempt, token.hop) for owner, serial, token in value]


def _unpack_entries(value: Any, _: list[bytes]) -> tuple[TaskEntry, ...]:
    entries = []
    for each in _rows(value):
        owner, serial, attempt, hop = row(each, 4)
        entries.append(TaskEntry(_node_id(owner), _uint(serial), Token(_uint(attempt), _uint(hop))))
    return tuple(entries)


def _pack_granted(value: tuple[GrantedTask, ...], packer: Packer) -> Any:
    add = packer.add
    return [
        (owner, serial, token.attempt, token.hop, int(spec.kind), add(spec.code), add(spec.args), spec.program)
        for owner, serial, token, spec in value
    ]


def _unpack_granted(value: Any, blobs: list[bytes]) -> tuple[GrantedTask, ...]:
    tasks = []
    for each in _rows(value):
        owner, serial, attempt, hop, kind, code, args, program = row(each, 8)
        try:
            spec_kind = SpecKind(_uint(kind))
        except ValueError:
            raise MalformedError(f"no spec of kind {kind}") from None
        tasks.append(
            GrantedTask(
                _node_id(owner),
                _uint(serial),
                Token(_uint(attempt), _uint(hop)),
                Spec(_blob(code, blobs), _blob(args, blobs), spec_kind, _node_id(program) if program else NOBODY),
            )
        )
    return tuple(tasks)


def _pack_results(value: tuple[TaskResult, ...], packer: Packer) -> Any:
    return [
        (serial, token.attempt, token.hop, int(outcome.kind), packer.add(outcome.payload))
        for serial, token, outcome in value
    ]


def _unpack_results(value: Any, blobs: list[bytes]) -> tuple[TaskResult, ...]:
    results = []
    for each in _rows(value):
        serial, attempt, hop, kind, payload = row(each, 5)
        try:
            outcome = Outcome(OutcomeKind(_uint(kind)), _blob(payload, blobs))
        except ValueError:
            raise MalformedError(f"no outcome of kind {kind}") from None
        results.append(TaskResult(_uint(serial), Token(_uint(attempt), _uint(hop)), outcome))
    return tuple(results)


def _pack_info(value: PeerInfo, _: Packer | None = None) -> Any:
    return list(value)


def _unpack_info(value: Any, _: list[bytes] | None = None) -> PeerInfo:
    node, name, addresses, group, origin, runs_tasks, host, pid, version, resident = row(value, 10)
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
        _bool(resident),
    )


def _pack_caller(value: PeerInfo, _: Packer | None = None) -> Any:
    return [value.id, value.name, value.host, value.version, list(value.addresses)]


def _unpack_caller(value: Any, _: list[bytes] | None = None) -> PeerInfo:
    node, name, host, version, addresses = row(_rows(value)[:5], 5)
    return PeerInfo(
        _node_id(node),
        _text(name),
        tuple(_text(address) for address in _rows(addresses)),
        "",
        False,
        False,
        _text(host),
        0,
        _text(version),
    )


def _pack_members(value: tuple[MemberEntry, ...], _: Packer) -> Any:
    return [(_pack_info(info), int(state), incarnation) for info, state, incarnation in value]


def _unpack_members(value: Any, _: list[bytes]) -> tuple[MemberEntry, ...]:
    entries = []
    for each in _rows(value):
        info, state, incarnation = row(each, 3)
        try:
            member_state = MemberState(_uint(state))
        except ValueError:
            raise MalformedError(f"no member state {state}") from None
        entries.append(MemberEntry(_unpack_info(info), member_state, _uint(incarnation)))
    return tuple(entries)


ENTRIES = FieldType(_pack_entries, _unpack_entries)
GRANTED = FieldType(_pack_granted, _unpack_granted)
RESULTS = FieldType(_pack_results, _unpack_results)
INFO = FieldType(_pack_info, _unpack_info)
CALLER = FieldType(_pack_caller, _unpack_caller)
"""Of an `INFO`, what versions of the protocol have in common: enough to answer that they do not match."""
MEMBERS = FieldType(_pack_members, _unpack_members)
