"""A network in virtual time that loses, duplicates, delays and reorders, as a seed says."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from p2pscoop.testing._faults import Faults

__all__ = ["FakeNetwork"]


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
        self.cut = 0
        self.flying_count = 0
        """Messages on their way."""
        self._inboxes: dict[str, Callable[[bytes], None]] = {}
        self._cuts: dict[tuple[str, str], float] = {}

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

    def sever(self, sender: str, recipient: str, until: float) -> None:
        """Lose everything that is sent this way."""
        self._cuts[sender, recipient] = max(until, self._cuts.get((sender, recipient), 0.0))

    def heal(self) -> None:
        """From now on everything arrives, once."""
        self.faults = self.faults.healed()
        self._cuts.clear()

    def send(self, sender: str, address: str, data: bytes) -> None:
        """Send bytes, as reliably as the faults allow."""
        self.sent += 1
        faults, rng = self.faults, self.rng
        if self._cuts and self.now < self._cuts.get((sender, address), 0.0):
            self.cut += 1
            return
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
            self.flying_count += 1
            self.at(self.now + delay, lambda: self._land(address, data))

    def step(self) -> bool:
        """Let the next thing happen. False if there is none."""
        if not self._events:
            return False
        event = heapq.heappop(self._events)
        self.now = event.at
        event.action()
        return True

    def _land(self, address: str, data: bytes) -> None:
        self.flying_count -= 1
        self.deliver(address, data)

    def deliver(self, address: str, data: bytes) -> None:
        """Bytes arrive, if anybody is there."""
        inbox = self._inboxes.get(address)
        if inbox is not None:
            inbox(data)
