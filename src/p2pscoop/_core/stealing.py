"""Whom an idle node asks for work, how often, and whom a node with work feeds.

Thief: a few steals from random victims, then a registration with each of its lifelines, then silence: the
first lifeline that gets work sends some along (Saraswat et al., Lifeline-based Global Load Balancing, 2011).
An idle node then renews one registration at a time, so that idleness costs the same in a cluster of any size, and
work reaches an idle node in one message.

Victim: remembers the thieves that registered with it, oldest first.

The module decides victims and times. What is taken from a deque, and how much, is `deque`'s part.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

from p2pscoop._core.ids import NodeId
from p2pscoop._core.limits import Limits

__all__ = ["Attempt", "Thief", "ThiefState", "WaitingThieves", "lifelines"]


def lifelines(me: NodeId, members: Sequence[NodeId]) -> list[NodeId]:
    """The peers that `me` registers with when it is idle: a ring with chords of length 1, 2, 4, ...

    Every node gets about log2(n) of them, every node is reached from every other within log2(n) steps, and
    unlike a hypercube it is defined for every n.

    Args:
        me: one of the members.
        members: all of them, in any order.
    """
    ring = sorted(members)
    count = len(ring)
    here = ring.index(me)
    chosen: list[NodeId] = []
    length = 1
    while length < count:
        chosen.append(ring[(here + length) % count])
        length *= 2
    return chosen


class ThiefState(Enum):
    """What a node does about having no work."""

    BUSY = auto()
    """It has work."""
    ASKING = auto()
    """One steal is under way."""
    WAITING = auto()
    """Registered with its lifelines; silent but for refreshes."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One steal to send."""

    victim: NodeId
    steal: int
    lifeline: bool


class Thief:
    """The thief's half of one node."""

    def __init__(self, me: NodeId, rng: random.Random, limits: Limits) -> None:
        self._me = me
        self._rng = rng
        self._limits = limits
        self._steal = 0
        self._failed = 0
        self._renewals = 0
        self._asked: NodeId | None = None
        self._deadline = 0.0
        self._silent: set[NodeId] = set()
        """Victims that did not answer a steal, and were not heard of since."""
        self.state = ThiefState.BUSY

    @property
    def wake_at(self) -> float | None:
        """When `tick` has something to do."""
        return None if self.state is ThiefState.BUSY else self._deadline

    def seek(self, now: float, victims: Sequence[NodeId], first: NodeId | None = None) -> list[Attempt]:
        """The node ran out of work. Nothing to send if it is looking for some already.

        Args:
            now: the time.
            victims: whom it may ask.
            first: whom it asks first  [default: any of them].
        """
        if self.state is not ThiefState.BUSY:
            return []
        self._failed = 0
        return self._next(now, victims) if first is None else [self._ask(now, first)]

    def found(self) -> None:
        """The node has work again."""
        self.state = ThiefState.BUSY
        self._asked = None

    def ride_along(self, now: float, victim: NodeId) -> int:
        """The number of a steal that is sent inside another message to this victim."""
        self._failed = 0
        return self._ask(now, victim).steal

    def on_no_work(self, now: float, victim: NodeId, steal: int, victims: Sequence[NodeId]) -> list[Attempt]:
        """The victim has nothing."""
        if self.state is not ThiefState.ASKING or victim != self._asked or steal != self._steal:
            return []
        return self._fail(now, victims)

    def on_gone(self, now: float, peer: NodeId, victims: Sequence[NodeId]) -> list[Attempt]:
        """A peer is no longer there."""
        if self.state is ThiefState.ASKING and peer == self._asked:
            return self._fail(now, victims)
        return []

    def heard(self, peer: NodeId) -> None:
        """A peer said something, or is gone: it is not silent any more."""
        self._silent.discard(peer)

    def on_arrival(self, now: float, victims: Sequence[NodeId]) -> list[Attempt]:
        """A peer is new: it may have work, and the lifelines have changed."""
        if self.state is not ThiefState.WAITING:
            return []
        self._failed = 0
        return self._next(now, victims)

    def tick(self, now: float, victims: Sequence[NodeId]) -> list[Attempt]:
        """Time has passed."""
        if self.state is ThiefState.BUSY or now < self._deadline:
            return []
        if self.state is ThiefState.ASKING:
            if self._asked is not None:
                self._silent.add(self._asked)
            return self._fail(now, victims)
        return self._renew(now, victims)

    def _fail(self, now: float, victims: Sequence[NodeId]) -> list[Attempt]:
        self._failed += 1
        return self._next(now, victims)

    def _next(self, now: float, victims: Sequence[NodeId]) -> list[Attempt]:
        if victims and self._failed < self._limits.random_steals:
            others = [victim for victim in victims if victim not in self._silent] if self._silent else victims
            others = others or victims
            victim = self._rng.choice(others)
            while victim == self._asked and len(others) > 1:
                victim = self._rng.choice(others)
            return [self._ask(now, victim)]
        return self._register(now, victims)

    def _ask(self, now: float, victim: NodeId) -> Attempt:
        self._steal += 1
        self.state = ThiefState.ASKING
        self._asked = victim
        self._deadline = now + self._limits.steal_timeout_s
        return Attempt(victim, self._steal, lifeline=False)

    def _register(self, now: float, victims: Sequence[NodeId]) -> list[Attempt]:
        self._steal += 1
        self.state = ThiefState.WAITING
        self._asked = None
        self._rest(now)
        chosen = lifelines(self._me, [self._me, *victims])
        return [Attempt(victim, self._steal, lifeline=True) for victim in chosen]

    def _renew(self, now: float, victims: Sequence[NodeId]) -> list[Attempt]:
        """One lifeline after the other: all of them each time would be log2(n) messages of every idle node."""
        self._rest(now)
        chosen = lifelines(self._me, [self._me, *victims])
        if not chosen:
            return []
        self._renewals += 1
        return [Attempt(chosen[self._renewals % len(chosen)], self._steal, lifeline=True)]

    def _rest(self, now: float) -> None:
        # Spread, so that nodes that went idle together do not refresh together for ever.
        self._deadline = now + self._limits.lifeline_refresh_s * self._rng.uniform(0.75, 1.25)


class WaitingThieves:
    """The victim's half: who waits to be fed, in order of registration."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._until: dict[NodeId, float] = {}
        self._steals: dict[NodeId, int] = {}

    def __len__(self) -> int:
        return len(self._until)

    def add(self, now: float, thief: NodeId, steal: int, members: int) -> None:
        """Remember a thief until it is fed, or two renewals did not come.

        Args:
            now: the time.
            thief: who waits.
            steal: the number to answer.
            members: how many there are; the more, the longer it takes a thief to come round to this node again.
        """
        lifelines_max = max(1, members.bit_length())
        self._until[thief] = now + 2.5 * self._limits.lifeline_refresh_s * lifelines_max
        self._steals[thief] = steal

    def discard(self, thief: NodeId) -> None:
        """It has work, or is gone."""
        self._until.pop(thief, None)
        self._steals.pop(thief, None)

    def waiting(self, now: float) -> list[tuple[NodeId, int]]:
        """Who waits, and the number of the steal to answer; forgets those that did not renew."""
        for thief in [thief for thief, until in self._until.items() if until <= now]:
            self.discard(thief)
        return list(self._steals.items())
