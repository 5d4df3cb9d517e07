"""Nodes that somebody says there are: when to greet them, and when to give up.

What discovery hears may be forged, so little is spent on it: each node is greeted a few times, at growing
intervals, and forgotten; some in one go, the newest first; and there is a bound on how many are remembered. A node
that answers is a member from then on, and no business of this module.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from p2pscoop._core.ids import NodeId

__all__ = ["Hints"]

_REMEMBERED_MAX = 256
_AT_ONCE_MAX = 16
_TRIES_MAX = 4
_PAUSE_S = 0.5
"""After the first greeting; doubles each time."""


@dataclass(slots=True)
class _Hint:
    addresses: tuple[str, ...]
    due_at: float
    tries: int = 0


class Hints:
    """Those of one node. Any thread.

    Args:
        on_given_up: called with the addresses of a node that was greeted in vain.

    Attributes:
        wake_at: when somebody is to be greeted.
    """

    def __init__(self, on_given_up: Callable[[Sequence[str]], None]) -> None:
        self._on_given_up = on_given_up
        self._lock = threading.Lock()
        self._hints: OrderedDict[NodeId, _Hint] = OrderedDict()
        self.wake_at = math.inf

    def add(self, now: float, node: NodeId, addresses: Sequence[str]) -> None:
        """A node is said to be at these transport addresses; it is greeted at one after the other."""
        with self._lock:
            self._hints[node] = _Hint(tuple(addresses), now)
            self._hints.move_to_end(node)
            if len(self._hints) > _REMEMBERED_MAX:
                self._hints.popitem(last=False)
            self.wake_at = min(self.wake_at, now)

    def due(self, now: float, is_known: Callable[[NodeId], bool]) -> list[str]:
        """Addresses to greet now.

        Args:
            now: the time.
            is_known: whether a node is, or was, a member.
        """
        addresses: list[str] = []
        in_vain: list[_Hint] = []
        with self._lock:
            for node, hint in reversed(list(self._hints.items())):
                if is_known(node):
                    del self._hints[node]
                elif hint.due_at > now:
                    continue
                elif len(addresses) >= _AT_ONCE_MAX:
                    hint.due_at = now + _PAUSE_S
                elif hint.tries >= max(_TRIES_MAX, len(hint.addresses)):
                    del self._hints[node]
                    in_vain.append(hint)
                else:
                    addresses.append(hint.addresses[hint.tries % len(hint.addresses)])
                    hint.due_at = now + _PAUSE_S * 2**hint.tries
                    hint.tries += 1
            self.wake_at = min((hint.due_at for hint in self._hints.values()), default=math.inf)
        for hint in in_vain:
            self._on_given_up(hint.addresses)
        return addresses
