"""Objects as arguments and results. A task gets a copy; what it changes comes back only in what it returns.

p2pscoop run -n 4 docs/examples/objects.py
"""

from __future__ import annotations

from dataclasses import dataclass

from p2pscoop import futures


@dataclass
class Counter:
    value: int = 5

    def add(self, amount: int) -> Counter:
        self.value += amount
        return self


counters = [Counter() for _ in range(10)]
changed = list(futures.map(Counter.add, counters, range(10)))
print([counter.value for counter in changed])
# A method of an object is a function like any other.
print([counter.value for counter in futures.map(Counter(100).add, [1])])
