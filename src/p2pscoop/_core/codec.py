"""Messages to bytes and back. Never unpickles, never allocates on a peer's word before checking it.

A message is one byte of protocol version, four bytes (big-endian) of header length, the header in msgpack,
and the payloads one after the other:

    header = [kind, sender, recipient, fields, [length of each payload]]

A message longer than a frame travels in pieces (`fragments`). The first byte of a frame tells which it is.

`Join` and `Refuse` begin with another byte, which stays what it is when the protocol changes, as their first
fields do: so nodes of different versions can tell each other that they do not match.
"""

from __future__ import annotations

from typing import NamedTuple

import msgpack
import msgpack.fallback

from p2pscoop._core.fields import MalformedError
from p2pscoop._core.ids import NOBODY, NodeId
from p2pscoop._core.limits import NODE_ID_SIZE, PROTOCOL_VERSION, Limits
from p2pscoop._core.messages import Join, Message, Refuse, pack, unpack
from p2pscoop.errors import LocalProtocolError, RemoteProtocolError

__all__ = ["MESSAGE_MARK", "Envelope", "decode", "encode"]

MESSAGE_MARK = 0x50 + PROTOCOL_VERSION
"""First byte of every whole message."""

_GREETING_MARK = 0x50
"""First byte of `Join` and `Refuse`, in every version."""
_GREETINGS = (Join, Refuse)
_GREETING_KINDS = tuple(message.KIND for message in _GREETINGS)

_PREFIX_SIZE = 5

_LONG_ROWS = (b"\xdc", b"\xdd", b"\xde", b"\xdf")
"""With which msgpack begins lists and maps of 16 and more, whose length follows."""
_PROMISED_MAX = 32 * 1024 * 1024
"""Bytes. msgpack makes room for the whole of a list when it reads its length, and again for a list within it."""


class Envelope(NamedTuple):
    """A message with the ids of the node that sent it and the node it is for."""

    sender: NodeId
    recipient: NodeId
    message: Message


def encode(envelope: Envelope, limits: Limits) -> bytes:
    """The bytes of a message.

    Raises:
        LocalProtocolError: header or message are longer than a peer would accept.
    """
    fields, blobs = pack(envelope.message)
    header = msgpack.packb(
        [envelope.message.KIND, envelope.sender, envelope.recipient, fields, [len(blob) for blob in blobs]]
    )
    if len(header) > limits.header_max:
        raise LocalProtocolError(
            f"header of {type(envelope.message).__name__} has {len(header)} bytes, "
            f"the limit is {limits.header_max}"
        )
    mark = _GREETING_MARK if isinstance(envelope.message, _GREETINGS) else MESSAGE_MARK
    data = b"".join((bytes((mark,)), len(header).to_bytes(4, "big"), header, *blobs))
    if len(data) > limits.message_max:
        raise LocalProtocolError(
            f"{type(envelope.message).__name__} has {len(data)} bytes, the limit is {limits.message_max}"
        )
    return data


def decode(data: bytes, limits: Limits) -> Envelope:
    """The message in these bytes.

    Raises:
        RemoteProtocolError: they are no message of this protocol version.
    """
    if len(data) < _PREFIX_SIZE or data[0] not in (MESSAGE_MARK, _GREETING_MARK):
        raise RemoteProtocolError(
            f"not a message of protocol version {PROTOCOL_VERSION}: {len(data)} bytes that start with "
            f"{data[:_PREFIX_SIZE].hex() or 'nothing'}"
        )
    header_size = int.from_bytes(data[1:_PREFIX_SIZE], "big")
    payload_start = _PREFIX_SIZE + header_size
    if header_size > limits.header_max or payload_start > len(data):
        raise RemoteProtocolError(
            f"header of {header_size} bytes in a message of {len(data)}; the limit is {limits.header_max}"
        )
    try:
        header = _unpack_header(data[_PREFIX_SIZE:payload_start])
        if type(header) is not list or len(header) != 5:
            raise MalformedError("header is not a row of 5")
        kind, sender, recipient, fields, lengths = header
        if type(kind) is not int:
            raise MalformedError("kind is not an integer")
        if (kind in _GREETING_KINDS) != (data[0] == _GREETING_MARK):
            raise MalformedError(f"a message of kind {kind} does not begin like this")
        for node in (sender, recipient):
            if type(node) is not bytes or len(node) not in (NODE_ID_SIZE, len(NOBODY)):
                raise MalformedError("sender or recipient is not a node id")
        if sender == NOBODY:
            raise MalformedError("no sender")
        blobs = _split(data, payload_start, lengths)
        return Envelope(sender, recipient, unpack(kind, fields, blobs))
    except MalformedError as error:
        raise RemoteProtocolError(f"malformed message: {error}") from None
    except (ValueError, RecursionError, msgpack.exceptions.UnpackException) as error:
        # ValueError covers msgpack's own errors, bad UTF-8 among them.
        raise RemoteProtocolError(f"header is not msgpack: {type(error).__name__}: {error}") from None


def _unpack_header(data: bytes) -> object:
    """What msgpack finds in a header. It refuses lengths inside that are greater than that of the header.

    Where lists within lists might promise more than is good, its slower form reads the header, which makes room
    for what is there.
    """
    rows = sum(map(data.count, _LONG_ROWS))
    if rows * 8 * len(data) <= _PROMISED_MAX:
        return msgpack.unpackb(data, use_list=True, strict_map_key=True)
    unpacker = msgpack.fallback.Unpacker(max_buffer_size=len(data), use_list=True, strict_map_key=True)
    unpacker.feed(data)
    header = unpacker.unpack()
    if unpacker.tell() != len(data):
        raise MalformedError("something follows the header")
    return header


def _split(data: bytes, start: int, lengths: object) -> list[bytes]:
    if type(lengths) is not list:
        raise MalformedError("payload lengths are not a list")
    blobs = []
    for length in lengths:
        if type(length) is not int or not 0 <= length <= len(data) - start:
            raise MalformedError("payload is longer than the message")
        blobs.append(data[start : start + length])
        start += length
    if start != len(data):
        raise MalformedError(f"{len(data) - start} bytes too many")
    return blobs
