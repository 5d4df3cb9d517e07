"""Messages survive the trip, and nothing else gets in."""

from __future__ import annotations

import dataclasses
import tracemalloc
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2pscoop._core import fields as f
from p2pscoop._core import messages as m
from p2pscoop._core import values as v
from p2pscoop._core.codec import MESSAGE_MARK, Envelope, decode, encode
from p2pscoop._core.ids import NOBODY, Token
from p2pscoop._core.limits import NODE_ID_SIZE, PROTOCOL_VERSION, Limits
from p2pscoop.errors import LocalProtocolError, RemoteProtocolError

LIMITS = Limits()
ME, YOU = b"m" * NODE_ID_SIZE, b"y" * NODE_ID_SIZE

uints = st.integers(0, 2**63 - 1)
node_ids = st.binary(min_size=NODE_ID_SIZE, max_size=NODE_ID_SIZE)
texts = st.text(max_size=20)
blobs = st.binary(max_size=50)
tokens = st.builds(Token, uints, uints)
specs = st.builds(v.Spec, blobs, blobs, st.sampled_from(v.SpecKind), node_ids | st.just(NOBODY))
outcomes = st.builds(v.Outcome, st.sampled_from(v.OutcomeKind), blobs)
infos = st.builds(
    v.PeerInfo,
    node_ids,
    texts,
    st.lists(texts, max_size=3).map(tuple),
    texts,
    st.booleans(),
    st.booleans(),
    texts,
    uints,
    texts,
    st.booleans(),
)
members = st.lists(st.builds(v.MemberEntry, infos, st.sampled_from(v.MemberState), uints), max_size=3).map(tuple)

FIELD_VALUES: dict[f.FieldType, st.SearchStrategy[Any]] = {
    f.UINT: uints,
    f.BOOL: st.booleans(),
    f.TEXT: texts,
    f.NODE_ID: node_ids,
    f.OPTIONAL_UINT: st.none() | uints,
    f.SERIALS: st.lists(uints, max_size=4).map(tuple),
    f.BLOB: blobs,
    f.ENTRIES: st.lists(st.builds(v.TaskEntry, node_ids, uints, tokens), max_size=4).map(tuple),
    f.GRANTED: st.lists(st.builds(v.GrantedTask, node_ids, uints, tokens, specs), max_size=4).map(tuple),
    f.RESULTS: st.lists(st.builds(v.TaskResult, uints, tokens, outcomes), max_size=4).map(tuple),
    f.INFO: infos,
    f.MEMBERS: members,
}

any_message = st.one_of(
    st.builds(m.Join, infos, texts, texts),
    *(
        st.builds(kind, *(FIELD_VALUES[each] for each in kind.FIELDS))
        for kind in m.MESSAGES.values()
        if kind is not m.Join
    ),
)


@given(any_message)
def test_every_message_survives_the_trip(message: m.Message) -> None:
    envelope = Envelope(ME, YOU, message)
    assert decode(encode(envelope, LIMITS), LIMITS) == envelope


def test_every_message_has_a_type_for_each_field() -> None:
    for kind in m.MESSAGES.values():
        if kind is m.Join:
            continue  # It has a form of its own, which outlives protocol versions.
        assert len(kind.FIELDS) == len(dataclasses.fields(kind))
        assert all(each in FIELD_VALUES for each in kind.FIELDS)


@given(st.binary(max_size=200))
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode(data, LIMITS)


@given(any_message, st.data())
def test_a_damaged_message_is_refused_or_another_message(message: m.Message, data: st.DataObject) -> None:
    encoded = bytearray(encode(Envelope(ME, YOU, message), LIMITS))
    for _ in range(data.draw(st.integers(1, 3))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    try:
        decoded = decode(bytes(encoded), LIMITS)
    except RemoteProtocolError:
        return
    assert isinstance(decoded.message, m.Message)


@given(any_message, st.data())
def test_a_truncated_message_is_refused(message: m.Message, data: st.DataObject) -> None:
    encoded = encode(Envelope(ME, YOU, message), LIMITS)
    with pytest.raises(RemoteProtocolError):
        decode(encoded[: data.draw(st.integers(0, len(encoded) - 1))], LIMITS)


def frame(header: object, payload: bytes = b"") -> bytes:
    packed = msgpack.packb(header)
    greets = isinstance(header, list) and header[0] in (m.Join.KIND, m.Refuse.KIND)
    return bytes((0x50 if greets else MESSAGE_MARK,)) + len(packed).to_bytes(4, "big") + packed + payload


@pytest.mark.parametrize(
    ("header", "payload", "complaint"),
    [
        (7, b"", "row of 5"),
        ([1, 2, 3], b"", "row of 5"),
        (["x", ME, YOU, [], []], b"", "kind is not an integer"),
        ([99, ME, YOU, [], []], b"", "unknown kind 99"),
        ([6, b"short", YOU, [ME], []], b"", "node id"),
        ([6, NOBODY, YOU, [ME], []], b"", "no sender"),
        ([6, ME, YOU, [b"short"], []], b"", "node id of 8 bytes"),
        ([6, ME, YOU, [ME, ME], []], b"", "row of 1"),
        ([11, ME, YOU, [-1], []], b"", "unsigned integer"),
        ([11, ME, YOU, [True], []], b"", "unsigned integer"),
        ([11, ME, YOU, [2**63], []], b"", "unsigned integer"),
        ([3, ME, YOU, [7], []], b"", "not a text"),
        ([3, ME, YOU, ["x" * 5000], []], b"", "not a text"),
        ([31, ME, YOU, [1, 0], []], b"", "payload that is not there"),
        ([31, ME, YOU, [1, 0], [9]], b"abc", "longer than the message"),
        ([31, ME, YOU, [1, 0], [2]], b"abc", "1 bytes too many"),
        ([31, ME, YOU, [1, 0], [-1]], b"abc", "longer than the message"),
        ([31, ME, YOU, [1, 0], "x"], b"abc", "not a list"),
        ([20, ME, YOU, [[[1, 0, 0, 9, 0]], None], [0]], b"", "no outcome of kind 9"),
        ([13, ME, YOU, ["rows"], []], b"", "list of rows"),
        ([1, ME, YOU, [1, "3.x"], []], b"", "too short"),
        ([1, ME, YOU, [1, "3.x", "c", [ME, "n", "h", "1", []]], []], b"", "row of 5"),
        ([1, ME, YOU, [1, "3.x", "c", [ME, "n", "h"], []], []], b"", "row of 5"),
    ],
)
def test_malformed_fields_are_named(header: object, payload: bytes, complaint: str) -> None:
    with pytest.raises(RemoteProtocolError, match=complaint):
        decode(frame(header, payload), LIMITS)


def test_another_protocol_version_is_refused() -> None:
    data = bytearray(encode(Envelope(ME, YOU, m.NoWork(1)), LIMITS))
    data[0] += 1
    with pytest.raises(RemoteProtocolError, match="not a message of protocol version 1"):
        decode(bytes(data), LIMITS)


def test_a_greeting_of_another_version_can_be_read_and_answered() -> None:
    later = ["of that version", 7]
    caller = [ME, "n1", "host", "9.0", ["tcp://127.0.0.1:1"], *later]
    header = [1, ME, YOU, [PROTOCOL_VERSION + 1, "3.x", "tag", caller, *later], []]
    message = decode(frame(header), LIMITS).message
    assert isinstance(message, m.Join)
    assert (message.protocol, message.python, message.cluster) == (PROTOCOL_VERSION + 1, "3.x", "tag")
    assert (message.info.id, message.info.name, message.info.addresses) == (ME, "n1", ("tcp://127.0.0.1:1",))
    refusal = encode(Envelope(YOU, ME, m.Refuse("why")), LIMITS)
    assert refusal[0] == 0x50
    for wrong in (
        bytes((MESSAGE_MARK,)) + refusal[1:],
        b"\x50" + encode(Envelope(ME, YOU, m.NoWork(1)), LIMITS)[1:],
    ):
        with pytest.raises(RemoteProtocolError, match="does not begin like this"):
            decode(wrong, LIMITS)


@pytest.mark.parametrize(
    "bomb",
    [
        b"\xdd\xff\xff\xff\xff",  # a list of 2**32 - 1
        b"\xdf\xff\xff\xff\xff",  # a map of as many
        b"\xc6\xff\xff\xff\xff",  # as many bytes
        b"\x91" * 100_000,  # lists in lists
    ],
)
def test_bombs_are_refused_without_being_built(bomb: bytes) -> None:
    data = bytes((MESSAGE_MARK,)) + len(bomb).to_bytes(4, "big") + bomb
    with pytest.raises(RemoteProtocolError):
        decode(data, LIMITS)


@pytest.mark.parametrize(("size", "depth"), [(8192, 1000), (2**16, 1000), (2**20, 1000)])
def test_lists_in_lists_that_promise_much_get_no_room_for_it(size: int, depth: int) -> None:
    bomb = ((b"\xdd" + (size - 8).to_bytes(4, "big")) * depth).ljust(size, b"\x90")[:size]
    data = bytes((MESSAGE_MARK,)) + size.to_bytes(4, "big") + bomb
    tracemalloc.start()
    try:
        with pytest.raises(RemoteProtocolError):
            decode(data, LIMITS)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * size + 2**20


@given(st.lists(st.tuples(node_ids, uints, uints, uints), min_size=300, max_size=300))
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.large_base_example])
def test_long_headers_that_look_like_such_bombs_are_read(rows: list[tuple[bytes, int, int, int]]) -> None:
    marked = [v.TaskEntry(b"\xdd" + owner[:7], serial, Token(a, b)) for owner, serial, a, b in rows * 3]
    envelope = Envelope(ME, YOU, m.Holding(tuple(marked)))
    assert decode(encode(envelope, LIMITS), LIMITS) == envelope


def test_a_long_header_that_is_followed_by_something_is_refused() -> None:
    packed = msgpack.packb([13, ME, YOU, [b"\xdd" * 40_000], []]) + b"\xc0"
    with pytest.raises(RemoteProtocolError, match="something follows the header"):
        decode(bytes((MESSAGE_MARK,)) + len(packed).to_bytes(4, "big") + packed, LIMITS)


def test_a_header_length_beyond_the_limit_is_refused() -> None:
    limits = Limits(header_max=100)
    with pytest.raises(RemoteProtocolError, match="the limit is 100"):
        decode(bytes((MESSAGE_MARK,)) + (2**32 - 1).to_bytes(4, "big"), limits)
    with pytest.raises(LocalProtocolError, match="the limit is 100"):
        encode(Envelope(ME, YOU, m.ResultAck(tuple(range(100)))), limits)


def test_a_message_beyond_the_limit_is_not_sent() -> None:
    with pytest.raises(LocalProtocolError, match="the limit is 1000"):
        encode(Envelope(ME, YOU, m.Status(1, bytes(2000))), Limits(message_max=1000))


def test_a_payload_that_tasks_share_travels_once() -> None:
    code = b"c" * 1000
    tasks = tuple(v.GrantedTask(ME, serial, Token(0, 1), v.Spec(code, b"a")) for serial in range(10))
    assert len(encode(Envelope(ME, YOU, m.Grant(1, tasks)), LIMITS)) < 2000
