"""Reductions and scans of what is mapped: a residual sum of squares, running totals, and a set.

    p2pscoop run -n 4 docs/examples/reductions.py --samples 200000

The data are shared: each node gets them once, however many tasks use them.
"""

from __future__ import annotations

import argparse
import operator
import random

from p2pscoop import futures, shared

BLOCK = 10_000


def squares(start: int) -> int:
    """The sum of squared differences in one block of the two signals."""
    left, right = shared.get_const("left"), shared.get_const("right")
    stop = start + BLOCK
    return sum((a - b) ** 2 for a, b in zip(left[start:stop], right[start:stop], strict=True))


def multiples(number: int) -> frozenset[int]:
    return frozenset(range(0, 1000, number))


def main() -> None:
    parser = argparse.ArgumentParser(description="Reduce and scan.")
    parser.add_argument("--samples", type=int, default=100_000)
    samples = parser.parse_args().samples
    generator = random.Random(5)
    left, right = ([generator.randint(-100, 100) for _ in range(samples)] for _ in range(2))
    shared.set_const(left=left, right=right)

    total = futures.map_reduce(squares, operator.add, range(0, samples, BLOCK))
    print("residual sum of squares:", total, "as in a serial run:", total == serial(left, right))
    running = futures.map_scan(squares, operator.add, range(0, samples, BLOCK))
    print("it only grows:", running == sorted(running), "and ends there:", running[-1] == total)
    print("multiples of 3 or 5 below 1000:", sum(futures.map_reduce(multiples, frozenset.union, [3, 5])))


def serial(left: list[int], right: list[int]) -> int:
    return sum((a - b) ** 2 for a, b in zip(left, right, strict=True))


if __name__ == "__main__":
    main()
