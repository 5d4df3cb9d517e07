"""How nodes died, as far as their supervisors know: so that the error of a poison task can tell it.

A supervisor sees how a node's process ended, and what it printed last. It tells the node that it starts in the
place of the dead one, and that node tells its peers when it has joined: a channel of their own between supervisors
and owners is not worth its while. So word of a death comes about half a second after it, or never, if nothing was
started again. `Deaths` remembers what came, and decides how long to wait for what has not.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import msgpack

from p2pscoop._core.values import PeerInfo
from p2pscoop.errors import PoisonTaskError

__all__ = ["Death", "Deaths", "notice"]

PATIENCE_S = 3.0
"""How long an error waits for word of the last death. A node that died is started again after 0.1 s, and joins
within half a second, unless it dies again and again."""

_KIND = "died"
_DEATHS_MAX = 256
_TEXT_MAX = 4096


class Death(NamedTuple):
    """The end of a process: on which host, of which number, and in words, with its last lines."""

    host: str
    pid: int
    how: str


def notice(death: Death) -> bytes:
    """What is told to peers, as a question that needs no answer."""
    return msgpack.packb((_KIND, *death))  # type: ignore[no-any-return]  # msgpack is untyped


def _read(question: bytes) -> Death | None:
    """Undo `notice`; None if it is another question."""
    try:
        kind, *details = msgpack.unpackb(question)
        if kind != _KIND:
            return None
        host, pid, how = details
    except (ValueError, TypeError, msgpack.exceptions.UnpackException):
        return None  # Whoever reads the others complains.
    if not (isinstance(host, str) and isinstance(pid, int) and isinstance(how, str)):
        return None
    return Death(host, pid, how[:_TEXT_MAX])


class Deaths:
    """What one node has heard of deaths. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[str, int], str] = OrderedDict()
        self._waiting: list[tuple[float, object, str, tuple[PeerInfo | None, ...]]] = []

    def hear(self, question: bytes) -> bool:
        """Whether a question was word of a death. It is remembered; the oldest are forgotten."""
        death = _read(question)
        if death is None:
            return False
        with self._lock:
            self._known[death.host, death.pid] = death.how
            if len(self._known) > _DEATHS_MAX:
                self._known.popitem(last=False)
        return True

    def poisoned(self, now: float, task: object, name: str, holders: Sequence[PeerInfo | None]) -> None:
        """A task is given up: `explained` gives its error when it is known how its holders died."""
        with self._lock:
            self._waiting.append((now + PATIENCE_S, task, name, tuple(holders)))

    def explained(self, now: float) -> list[tuple[object, PoisonTaskError]]:
        """The tasks whose deaths have been told of, or whose time to wait is over, each with its error."""
        with self._lock:
            ready = [each for each in self._waiting if each[0] <= now or all(map(self._is_known, each[3]))]
            if not ready:
                return []
            self._waiting = [each for each in self._waiting if each not in ready]
            return [(task, self._error(name, holders)) for _, task, name, holders in ready]

    def _is_known(self, info: PeerInfo | None) -> bool:
        return info is None or (info.host, info.pid) in self._known

    def _error(self, name: str, holders: tuple[PeerInfo | None, ...]) -> PoisonTaskError:
        names = tuple("?" if info is None else f"{info.name} on {info.host}" for info in holders)
        deaths = tuple(map(self._tell, holders))
        count = f"{len(names)} nodes" if len(names) != 1 else "1 node"
        lines = "".join(f"\n- {each}" for each in deaths)
        return PoisonTaskError(f"{count} died while they had {name}: {', '.join(names)}{lines}", names, deaths)

    def _tell(self, info: PeerInfo | None) -> str:
        if info is None:
            return "one of which nothing is known any more"
        how = self._known.get((info.host, info.pid), "is gone; how is not known, or was printed by its supervisor")
        return f"{info.name} on {info.host} (pid {info.pid}) {how}"
