"""Task graphs for the simulator: what a task spawns, how long it takes, what it returns."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

__all__ = ["GRAPHS", "Fib", "Flat", "Graph", "Random", "Tree"]


class Graph(Protocol):
    """A program of nested tasks. A task is named by a short text; it spawns children and waits for all."""

    @property
    def root(self) -> str:
        """The task that the origin starts with."""
        ...

    def spawn(self, task: str) -> tuple[float, list[str]]:
        """Seconds that the task computes before it waits, and the children that it spawns."""
        ...

    def combine(self, task: str, values: Sequence[int]) -> int:
        """Its value, from those of its children."""
        ...

    def value_of(self, task: str) -> int:
        """The value of a task in a plain recursive program."""
        ...


class _Recursive:
    root = ""

    def spawn(self, task: str) -> tuple[float, list[str]]:
        raise NotImplementedError

    def combine(self, task: str, values: Sequence[int]) -> int:
        raise NotImplementedError

    def value_of(self, task: str) -> int:
        value = cache(lambda task: self.combine(task, [value(child) for child in self.spawn(task)[1]]))
        return int(value(task))


@dataclass
class Fib(_Recursive):
    """The naive Fibonacci tree: deep, unbalanced, tiny tasks."""

    n: int = 9
    cost_s: float = 0.001

    def __post_init__(self) -> None:
        self.root = str(self.n)

    def spawn(self, task: str) -> tuple[float, list[str]]:
        """Two children above 1."""
        n = int(task)
        return self.cost_s, [] if n < 2 else [str(n - 1), str(n - 2)]

    def combine(self, task: str, values: Sequence[int]) -> int:
        """Their sum."""
        return sum(values) if values else int(task)


@dataclass
class Flat(_Recursive):
    """One task that spawns many leaves of uneven cost, as `map` does."""

    width: int = 60
    cost_s: float = 0.004

    root = "root"

    def spawn(self, task: str) -> tuple[float, list[str]]:
        """All leaves at once."""
        if task == "root":
            return 0.0, [str(index) for index in range(self.width)]
        return self.cost_s * (1 + int(task) % 3), []

    def combine(self, task: str, values: Sequence[int]) -> int:
        """Their sum of squares."""
        return sum(values) if task == "root" else int(task) ** 2


@dataclass
class Tree(_Recursive):
    """An unbalanced tree whose shape follows from hashes, as in UTS (Olivier et al., 2006)."""

    seed: int = 0
    depth_max: int = 9
    branching: float = 1.6
    cost_s: float = 0.001

    def __post_init__(self) -> None:
        self.root = f"{self.seed}/"

    def spawn(self, task: str) -> tuple[float, list[str]]:
        """A geometric number of children, none at the largest depth."""
        depth = task.count("/") - 1
        if depth >= self.depth_max:
            return self.cost_s, []
        draw = random.Random(hashlib.sha1(task.encode()).digest())
        count = 4 if depth == 0 else min(8, int(draw.expovariate(1 / self.branching)))
        return self.cost_s * draw.uniform(0.2, 2.0), [f"{task}{index}/" for index in range(count)]

    def combine(self, task: str, values: Sequence[int]) -> int:  # noqa: ARG002  (the interface has it)
        """The number of nodes."""
        return 1 + sum(values)


@dataclass
class Random(_Recursive):
    """A random tree of bounded size: chains, fans and everything between."""

    seed: int = 0
    size_max: int = 80
    cost_s: float = 0.002

    def __post_init__(self) -> None:
        rng = random.Random(self.seed)
        self._children: dict[str, list[str]] = {"0": []}
        self._cost = {"0": 0.0}
        bias = rng.choice((0.1, 0.5, 0.9))
        names = ["0"]
        for index in range(1, rng.randint(2, self.size_max)):
            parent = names[-1] if rng.random() < bias else rng.choice(names)
            name = str(index)
            names.append(name)
            self._children[parent].append(name)
            self._children[name] = []
            self._cost[name] = self.cost_s * rng.expovariate(1.0)
        self.root = "0"

    def spawn(self, task: str) -> tuple[float, list[str]]:
        """As drawn."""
        return self._cost[task], self._children[task]

    def combine(self, task: str, values: Sequence[int]) -> int:
        """A hash of the shape, so that a swapped or repeated child shows."""
        value = int(task) + 1
        for index, child in enumerate(values):
            value = (value * 31 + (index + 1) * child) % (2**61 - 1)
        return value


GRAPHS: dict[str, type[Fib] | type[Flat] | type[Tree] | type[Random]] = {
    "fib": Fib,
    "flat": Flat,
    "tree": Tree,
    "random": Random,
}
"""The graphs of the command, by name."""
