"""What goes wrong in a simulated run: every fault a named option, all of them drawn from a seed."""

from __future__ import annotations

import random
from dataclasses import dataclass

__all__ = ["Faults"]


@dataclass(frozen=True, slots=True)
class Faults:
    """What goes wrong, until the simulator heals. Counts are of events at random times.

    Attributes:
        loss: probability that a message is lost.
        duplication: probability that it arrives twice.
        delay_s: smallest time that a message takes.
        jitter_s: mean of what is added to that; messages overtake each other.
        slow: probability that a message takes `slow_s` more.
        slow_s: see `slow`; beyond a lease if it is to hurt.
        kills: nodes (never the origin) that are killed.
        restarts: whether a killed node comes back, as a new node.
        bounces: probability that a continuation cannot go on where it arrived.
        pauses: nodes (the origin too) that stop for up to `pause_s`, as under SIGSTOP.
        holds: nodes that compute, but hear and say nothing for up to `pause_s`, as C code that keeps the GIL.
        pause_s: longest pause.
        partitions: times that the nodes fall into two parts that hear nothing of each other.
        removed: whether a partition removes the pipes, so that each part takes the other for dead.
        one_way_cuts: times that one node is no longer heard by another.
        cut_s: longest partition or cut.
        false_alarms: times that a node takes another for dead that lives.
        joins: nodes that come later.
        leaves: nodes that drain and go.
        slow_nodes: nodes that compute thirty times as slowly.
        clock_jumps: times that the clock of a node jumps ahead, by up to `jump_s`.
        jump_s: longest jump.
        origin_dies: whether the origin is killed, so that all its work has to end.
        poison: whether a task of the run, drawn, kills every node but the origin on which it is started.
        busy: factor of what the tasks cost.
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
    pauses: int = 0
    holds: int = 0
    pause_s: float = 1.0
    partitions: int = 0
    removed: bool = False
    one_way_cuts: int = 0
    cut_s: float = 1.0
    false_alarms: int = 0
    joins: int = 0
    leaves: int = 0
    slow_nodes: int = 0
    clock_jumps: int = 0
    jump_s: float = 1.0
    origin_dies: bool = False
    poison: bool = False
    busy: float = 1.0

    @classmethod
    def draw(cls, rng: random.Random) -> Faults:
        """A mixture of faults, each of them absent in most runs."""

        def count(most: int) -> int:
            return rng.randint(1, most) if rng.random() < 0.2 else 0

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
            pauses=count(3),
            holds=count(3),
            pause_s=rng.choice((0.5, 5.0, 100.0)),
            partitions=count(2),
            removed=rng.random() < 0.5,
            one_way_cuts=count(4),
            cut_s=rng.choice((0.5, 5.0, 100.0)),
            false_alarms=count(3),
            joins=count(4),
            leaves=count(3),
            slow_nodes=count(2),
            clock_jumps=count(3),
            jump_s=rng.choice((0.5, 100.0)),
            origin_dies=rng.random() < 0.05,
            poison=rng.random() < 0.1,
            busy=rng.choice((1.0, 1.0, 20.0)),
        )

    def healed(self) -> Faults:
        """The same network with nothing wrong."""
        return Faults(delay_s=self.delay_s, jitter_s=self.jitter_s, busy=self.busy)
