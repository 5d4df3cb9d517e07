"""A network in virtual time that loses, duplicates, delays and reorders, as a seed says."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ["FakeNetwork", "Faults"]


@dataclass(frozen=True, slots=True)
class Faults:
    """What goes wrong, until the simulator heals.

    Attributes:
        loss: probability that a message is lost.
        duplication: probability that it arrives twice.
        delay_s: smallest time that a message takes.
        jitter_s: mean of what is added to that; messages overtake each other.
        slow: probability that a message takes `slow_s` more.
        slow_s: see `slow`; beyond a lease if it is to hurt.
        kills: how many nodes (never the origin) are killed at random times.
        restarts: whether a killed node comes back, as a new node.
        bounces: probability that a continuation cannot go on where it arrived.
    """

    loss: float = 0.0
    duplication: float = 0.0
    delay_s: float = 0.0002
    jitter_s: float = 0.0003
    slow: float = 0.0
    slow_s: float = 0.0
    kills: int = 0
    restarts: bool = True
    bounces: float = 0.0

    @classmethod
    def draw(cls, rng: random.Random) -> Faults:
        """A mixture of faults, each of them absent in many runs."""
        return cls(
            loss=rng.choice((0.0, 0.0, rng.uniform(0.0, 0.3))),
            duplication=rng.choice((0.0, 0.0, rng.uniform(0.0, 0.5))),
            delay_s=rng.choice((0.0, 0.0002, 0.02)),
            jitter_s=rng.choice((0.0003, 0.002, 0.05)),
            slow=rng.choice((0.0, 0.0, 0.02)),
            slow_s=rng.choice((0.5, 60.0)),
            kills=rng.choice((0, 0, 1, 2, 4)),
            restarts=rng.random() < 0.7,
            bounces=rng.choice((0.0, 0.0, 0.1)),
        )

    def healed(self) -> Faults:
        """The same network with nothing wrong."""
        return Faults(delay_s=self.delay_s, jitter_s=self.jitter_s)


@dataclass(order=True, slots=True)
class _Event:
    at: float
    number: int
    action: Callable[[], None] = field(compare=False)


class FakeNetwork:
    """Clock, event queue and wires of a simulated cluster.

    Args:
        rng: from which every delay and every fault is drawn.
        faults: what goes wrong.
    """

    def __init__(self, rng: random.Random, faults: Faults) -> None:
        self.rng = rng
        self.faults = faults
        self.now = 0.0
        self.sent = 0
        self.lost = 0
        self.duplicated = 0
        self._events: list[_Event] = []
        self._number = 0
        self._inboxes: dict[str, Callable[[bytes], None]] = {}

    def listen(self, address: str, inbox: Callable[[bytes], None]) -> None:
        """Deliver what is sent to this address."""
        self._inboxes[address] = inbox

    def unlisten(self, address: str) -> None:
        """What is on its way to this address is lost."""
        self._inboxes.pop(address, None)

    def at(self, time: float, action: Callable[[], None]) -> None:
        """Do something at a time."""
        self._number += 1
        heapq.heappush(self._events, _Event(max(time, self.now), self._number, action))

    def send(self, address: str, data: bytes) -> None:
        """Send bytes, as reliably as the faults allow."""
        self.sent += 1
        faults, rng = self.faults, self.rng
        if rng.random() < faults.loss:
            self.lost += 1
            return
        copies = 1
        if rng.random() < faults.duplication:
            self.duplicated += 1
            copies = 2
        for _ in range(copies):
            delay = faults.delay_s + rng.expovariate(1 / faults.jitter_s)
            if rng.random() < faults.slow:
                delay += faults.slow_s
            self.at(self.now + delay, lambda: self._deliver(address, data))

    def step(self) -> bool:
        """Let the next thing happen. False if there is none."""
        if not self._events:
            return False
        event = heapq.heappop(self._events)
        self.now = event.at
        event.action()
        return True

    def _deliver(self, address: str, data: bytes) -> None:
        inbox = self._inboxes.get(address)
        if inbox is not None:
            inbox(data)
