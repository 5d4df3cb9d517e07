"""The constants of a program as one node has them, and how it answers those who ask for them.

The origin decides: a constant is defined when the origin has it, and cannot be defined again. It keeps the pickles
of all of them, so that no other node's loss matters. The others ask it for what they use.

A large constant is not sent by the origin alone. It gives it to two nodes at a time, and sends those who ask
meanwhile to nodes that have it, which do the same: three times as many have it after each round. 50 nodes that ask
at once are served after four rounds, of which each takes as long as one node needs to send two. Whoever cannot be
served yet is told so, and asks again.

Decides what to answer; sends nothing, waits for nothing, and pickles nothing. Any thread.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgpack

from p2pscoop._core.ids import NodeId
from p2pscoop.errors import RemoteProtocolError

__all__ = ["Answer", "AnswerKind", "Constants", "define", "fetch", "have", "read_answer"]

CONSTANTS_MAX = 10_000
"""Of one program. They are kept until it ends."""

SENDING_MAX = 2
"""How many nodes a node sends one large constant at a time; more would only share its bandwidth."""

_SENDING_S = 30.0
"""After so long without word from it, a node that was being sent a constant does not count any more."""


class AnswerKind:
    """What an answer says."""

    DEFINED = "defined"
    EXISTS = "exists"
    FULL = "full"
    VALUE = "value"
    UNDEFINED = "undefined"
    ELSEWHERE = "elsewhere"
    BUSY = "busy"


class Answer(NamedTuple):
    """An answer: what it says, and what belongs to it (the name that exists, the value, the node)."""

    kind: str
    content: Any = None


def define(token: bytes, pickles: Mapping[str, bytes]) -> bytes:
    """The question whether these may be constants. The token tells a repetition from another definition."""
    return msgpack.packb(("define", token, dict(pickles)))  # type: ignore[no-any-return]  # msgpack is untyped


def fetch(name: str, *, directly: bool) -> bytes:
    """The question for a constant; `directly` if being sent elsewhere did not help, or is not wanted."""
    return msgpack.packb(("fetch", name, directly))  # type: ignore[no-any-return]  # msgpack is untyped


def have(name: str) -> bytes:
    """Not a question: the sender has this large constant now, and can give it to others."""
    return msgpack.packb(("have", name))  # type: ignore[no-any-return]  # msgpack is untyped


def read_answer(data: bytes) -> Answer:
    """An answer from its bytes."""
    return Answer(*msgpack.unpackb(data))


def _checked(details: list[Any], *types: type) -> list[Any]:
    if [type(each) for each in details] != list(types):
        raise RemoteProtocolError("a question with details of other types")
    return details


class _Sending(NamedTuple):
    """A transfer of a constant to a node: who gives it, and since when."""

    giver: NodeId
    since: float


class Constants:
    """The constants that one node has.

    Args:
        me: the node.
        is_alive: whether a peer is there.
        bulk_min: bytes from which on a constant is large.
        origin: whether the node decides what is defined.

    Attributes:
        values: those that this process has used or defined, as objects. Only for the home thread.
    """

    def __init__(self, me: NodeId, is_alive: Callable[[NodeId], bool], bulk_min: int, *, origin: bool) -> None:
        self.values: dict[str, Any] = {}
        self._me = me
        self._is_alive = is_alive
        self._bulk_min = bulk_min
        self._origin = origin
        self._lock = threading.Lock()
        self._pickles: dict[str, bytes] = {}
        self._tokens: dict[str, bytes] = {}
        self._holders: dict[str, set[NodeId]] = {}
        self._sendings: dict[str, dict[NodeId, _Sending]] = {}
        self.sent = 0
        """Constants that this node has sent to others."""

    def is_large(self, data: bytes) -> bool:
        """Whether a constant is worth to be given on by those that have it."""
        return len(data) >= self._bulk_min

    def pickle_of(self, name: str) -> bytes | None:
        """A constant that is here."""
        return self._pickles.get(name)

    def keep(self, name: str, data: bytes) -> None:
        """Keep a constant for others that may ask for it."""
        with self._lock:
            self._pickles[name] = data

    def define(self, token: bytes, pickles: Mapping[str, bytes]) -> Answer:
        """Define constants, all or none. The origin's to do."""
        with self._lock:
            for name in pickles:
                if self._tokens.get(name, token) != token:
                    return Answer(AnswerKind.EXISTS, name)
            if len(self._tokens.keys() | pickles.keys()) > CONSTANTS_MAX:
                return Answer(AnswerKind.FULL)
            for name, data in pickles.items():
                self._pickles[name] = data
                self._tokens[name] = token
        return Answer(AnswerKind.DEFINED)

    def answer(self, now: float, peer: NodeId, question: bytes) -> bytes | None:
        """What to answer a peer; None if there is nothing to say."""
        try:
            kind, *details = msgpack.unpackb(question)
        except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
            raise RemoteProtocolError(f"a question that cannot be read: {error}") from error
        answer: Answer | None = None
        if kind == "fetch":
            name, directly = _checked(details, str, bool)
            answer = self._on_fetch(now, peer, name, directly)
        elif kind == "have":
            (name,) = _checked(details, str)
            self._on_have(peer, name)
        elif kind == "define" and self._origin:
            token, pickles = _checked(details, bytes, dict)
            for name, data in pickles.items():
                _checked([name, data], str, bytes)
            answer = self.define(token, pickles)
        return None if answer is None else msgpack.packb(tuple(answer))

    def _on_fetch(self, now: float, peer: NodeId, name: str, directly: bool) -> Answer | None:
        with self._lock:
            data = self._pickles.get(name)
            if data is None:
                return Answer(AnswerKind.UNDEFINED)
            if not self.is_large(data):
                self.sent += 1
                return Answer(AnswerKind.VALUE, data)
            sendings = self._current(name, now)
            known = sendings.get(peer)
            if known is not None and known.giver == self._me:
                return None  # It is on its way; what asks again is impatience.
            giver = self._me if directly else self._choose(name, peer, sendings)
            if giver is None:
                return Answer(AnswerKind.BUSY)
            sendings[peer] = _Sending(giver, now)
            if giver != self._me:
                return Answer(AnswerKind.ELSEWHERE, giver)
            self.sent += 1
            return Answer(AnswerKind.VALUE, data)

    def _current(self, name: str, now: float) -> dict[NodeId, _Sending]:
        """The transfers under way."""
        sendings = self._sendings.setdefault(name, {})
        for peer, sending in list(sendings.items()):
            if now - sending.since > _SENDING_S or not self._is_alive(peer):
                del sendings[peer]
        return sendings

    def _choose(self, name: str, peer: NodeId, sendings: dict[NodeId, _Sending]) -> NodeId | None:
        """Who gives this constant to a peer: whoever has it and gives it to the fewest."""
        load = Counter(sending.giver for sending in sendings.values())
        holders = [each for each in self._holders.get(name, ()) if each != peer and self._is_alive(each)]
        giver = min((*holders, self._me), key=lambda each: load[each])
        return giver if load[giver] < SENDING_MAX else None

    def _on_have(self, peer: NodeId, name: str) -> None:
        with self._lock:
            self._sendings.get(name, {}).pop(peer, None)
            if name in self._tokens:
                self._holders.setdefault(name, set()).add(peer)
