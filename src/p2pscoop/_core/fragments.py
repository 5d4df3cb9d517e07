"""Cuts a message that is longer than a frame into frames, and puts it together again.

The pieces of a message may arrive in any order and more than once; a message of which a piece is lost is
dropped as a whole, and whoever needed it sends it again. All that is half received is bounded, the oldest
goes first.

    fragment = mark, stream (8 bytes), index (4), count (4), size of the whole (8), piece
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from p2pscoop._core.limits import Limits
from p2pscoop.errors import RemoteProtocolError

__all__ = ["FRAGMENT_MARK", "Assembler", "cut"]

FRAGMENT_MARK = 0xF0
"""First byte of every fragment."""

_HEAD = struct.Struct(">B8sIIQ")
_COST = 256
"""Bytes that a half-received message takes before any piece of it is there, and 8 more for each piece. They count:
a peer might begin one after the other."""


def cut(data: bytes, stream: bytes, limits: Limits) -> Iterator[bytes]:
    """The frames of a message: itself if it fits into one.

    Args:
        data: the message.
        stream: 8 bytes that no other message on its way to the same peer has.
        limits: whose `frame_max` bounds a frame.
    """
    if len(data) <= limits.frame_max:
        yield data
        return
    piece_max = limits.frame_max - _HEAD.size
    count = -(-len(data) // piece_max)
    for index in range(count):
        piece = data[index * piece_max : (index + 1) * piece_max]
        yield _HEAD.pack(FRAGMENT_MARK, stream, index, count, len(data)) + piece


@dataclass(slots=True)
class _Assembly:
    size: int
    pieces: list[bytes | None]
    missing: int
    received: int


class Assembler:
    """Puts the frames of all peers together into messages."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._assemblies: dict[bytes, _Assembly] = {}
        self._received = 0

    @property
    def size(self) -> int:
        """Bytes that all half-received messages take."""
        return self._received

    def feed(self, frame: bytes) -> bytes | None:
        """The message that this frame completes, if it does.

        Raises:
            RemoteProtocolError: the fragment contradicts itself, the others of its message, or the limits.
        """
        if not frame or frame[0] != FRAGMENT_MARK:
            return frame
        if len(frame) < _HEAD.size:
            raise RemoteProtocolError(f"fragment of {len(frame)} bytes is shorter than its head")
        _, stream, index, count, size = _HEAD.unpack_from(frame)
        piece = frame[_HEAD.size :]
        piece_max = self._limits.frame_max - _HEAD.size
        if (
            not 0 < size <= self._limits.message_max
            or count != -(-size // piece_max)
            or index >= count
            or len(piece) != (piece_max if index < count - 1 else size - piece_max * (count - 1))
        ):
            raise RemoteProtocolError(f"fragment {index} of {count}, {len(piece)} bytes of {size}: impossible")
        assembly = self._assemblies.get(stream)
        if assembly is None:
            cost = _COST + 8 * count
            assembly = self._assemblies[stream] = _Assembly(size, [None] * count, count, cost)
            self._received += cost
        elif assembly.size != size:
            raise RemoteProtocolError(f"fragments of one message differ about its size: {size}, {assembly.size}")
        if assembly.pieces[index] is None:
            assembly.pieces[index] = piece
            assembly.missing -= 1
            assembly.received += len(piece)
            self._received += len(piece)
        if assembly.missing:
            self._make_room(keep=stream)
            return None
        self._drop(stream)
        return b"".join(assembly.pieces)  # type: ignore[arg-type]  # none is missing

    def _drop(self, stream: bytes) -> None:
        self._received -= self._assemblies.pop(stream).received

    def _make_room(self, keep: bytes) -> None:
        while self._received > self._limits.assembly_max:
            oldest = next(stream for stream in self._assemblies if stream != keep)
            self._drop(oldest)
