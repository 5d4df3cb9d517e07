"""A message of every kind, and values that are out of place in one, for those that look what odd messages do."""

from __future__ import annotations

from typing import Any

import msgpack

from p2pscoop._core import messages as m
from p2pscoop._core import values as v
from p2pscoop._core.codec import Envelope, encode
from p2pscoop._core.fragments import cut
from p2pscoop._core.ids import NOBODY, Token
from p2pscoop._core.limits import Limits

__all__ = ["ODD_VALUES", "envelopes", "samples"]

ODD_VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    2**63,
    2**64 - 1,
    1.5,
    "",
    "\0" * 5000,
    b"",
    b"8 bytes.",
    [],
    [[]],
    [0] * 20,
    {},
    {"": b""},
    msgpack.ExtType(5, b"x"),
    msgpack.Timestamp(1, 1),
)


def envelopes(sender: bytes, recipient: bytes, payload: bytes = b"payload") -> list[Envelope]:
    """One of every kind.

    Args:
        sender: id of a node.
        recipient: id of a node.
        payload: what is said to be pickles.
    """
    info = v.PeerInfo(sender, "n1", ("tcp://127.0.0.1:1",), "/group", False, True, "host", 1, "1", False)
    members = tuple(v.MemberEntry(info, state, 1) for state in v.MemberState)
    entries = (v.TaskEntry(sender, 1, Token(0, 1)), v.TaskEntry(recipient or sender, 2, Token(3, 4)))
    granted = tuple(v.GrantedTask(sender, 1, Token(0, 1), v.Spec(payload, payload, kind)) for kind in v.SpecKind)
    results = tuple(v.TaskResult(1, Token(0, 1), v.Outcome(kind, payload)) for kind in v.OutcomeKind)
    kinds: list[m.Message] = [
        m.Join(info, "cpython 3.11", "tag"),
        m.Welcome(members),
        m.Refuse("why"),
        m.Sync(members, answer=True),
        m.Leaving("bye", failed=False),
        m.NotMe(b"somebody"),
        m.Steal(1, 2, lifeline=True),
        m.NoWork(1),
        m.Grant(1, granted),
        m.Accept(entries),
        m.Reject(entries, "no room"),
        m.Result(results, None),
        m.ResultAck((1, 2, 3)),
        m.Fetch((1,)),
        m.Holding(entries),
        m.HoldingAck(entries),
        m.Cancel((1, 2), stop=True),
        m.StatusRequest(1),
        m.Status(1, payload),
        m.Ask(1, payload),
        m.Answer(1, payload),
    ]
    if {type(each) for each in kinds} != set(m.MESSAGES.values()):
        raise RuntimeError("there is a kind of message that is not here")
    return [Envelope(sender, recipient, each) for each in kinds]


def samples() -> list[bytes]:
    """The bytes of such messages, and the pieces of a long one."""
    both = [*envelopes(b"m" * 8, b"y" * 8), *envelopes(b"m" * 8, NOBODY)]
    whole = [encode(each, Limits()) for each in both]
    return whole + list(cut(bytes(1000), b"stream..", Limits(frame_max=200)))
