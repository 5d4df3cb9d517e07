"""Pi by throwing darts, the same digits on any number of nodes.

    p2pscoop run -n 4 docs/examples/pi.py
    python docs/examples/pi.py --tasks 400 --darts 50000 --seed 7

Each task draws from a generator of its own (`p2pscoop.rng`), which follows from the seed of the program and the
task's place in it, not from the node that happens to run it.
"""

from __future__ import annotations

import argparse
import time

import p2pscoop
from p2pscoop import futures


def hits(darts: int) -> int:
    """How many of so many darts land in the quarter circle."""
    draw = p2pscoop.rng().random
    return sum(draw() ** 2 + draw() ** 2 <= 1.0 for _ in range(darts))


def main() -> None:
    parser = argparse.ArgumentParser(description="Estimate pi by throwing darts.")
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--darts", type=int, default=20_000, help="of each task")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()

    p2pscoop.seed(options.seed)
    began = time.perf_counter()
    inside = list(futures.map(hits, [options.darts] * options.tasks))
    seconds = time.perf_counter() - began
    pi = 4 * sum(inside) / (options.darts * options.tasks)
    print(f"pi is about {pi:.6f}, by {options.darts * options.tasks} darts in {seconds:.2f} s")
    for each in p2pscoop.statistics():
        print(f"{each.name}: executed {each.executed}, stole {each.stolen}")


if __name__ == "__main__":
    main()
