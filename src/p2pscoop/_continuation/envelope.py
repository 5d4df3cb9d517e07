"""What stands around a pickled continuation: format, Python's magic number, checksum.

Decides whether a payload may be unpickled at all. Bytecode and the layout of frames are those of one minor
version of CPython, which its magic number stands for. The checksum finds accidents, not attacks: who may send
bytes at all is decided elsewhere.
"""

from __future__ import annotations

import hashlib
from importlib.util import MAGIC_NUMBER

from p2pscoop.errors import RestoreRefused

__all__ = ["FORMAT", "close", "open_"]

FORMAT = 1

_MARK = b"p2pk"
_SUM_SIZE = 12
_MAGIC_AT = len(_MARK) + 1
_SUM_AT = _MAGIC_AT + len(MAGIC_NUMBER)
_BODY_AT = _SUM_AT + _SUM_SIZE


def close(body: bytes) -> bytes:
    """Put a body into an envelope."""
    head = _MARK + bytes((FORMAT,)) + MAGIC_NUMBER
    return b"".join((head, _sum(head, body), body))


def open_(data: bytes) -> bytes:
    """Take the body out.

    Raises:
        RestoreRefused: naming what is wrong with the envelope.
    """
    data = bytes(data)
    if data[: len(_MARK)] != _MARK or len(data) < _BODY_AT:
        raise RestoreRefused("this is no continuation, or only a part of one")
    if data[len(_MARK)] != FORMAT:
        raise RestoreRefused(f"the continuation has format {data[len(_MARK)]}, this version reads {FORMAT}")
    magic = data[_MAGIC_AT:_SUM_AT]
    if magic != MAGIC_NUMBER:
        theirs, ours = (int.from_bytes(each[:2], "little") for each in (magic, MAGIC_NUMBER))
        raise RestoreRefused(f"the continuation is from another Python: magic number {theirs}, here {ours}")
    body = data[_BODY_AT:]
    if _sum(data[:_SUM_AT], body) != data[_SUM_AT:_BODY_AT]:
        raise RestoreRefused("the continuation is damaged: its checksum is wrong")
    return body


def _sum(head: bytes, body: bytes) -> bytes:
    digest = hashlib.blake2b(head, digest_size=_SUM_SIZE)
    digest.update(body)
    return digest.digest()
