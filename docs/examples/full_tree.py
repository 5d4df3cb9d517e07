"""A tree of tasks of five levels, each of which waits for its children in another way.

p2pscoop run -n 4 docs/examples/full_tree.py --width 12
"""

from __future__ import annotations

import argparse

from p2pscoop import futures


def leaf(n: int) -> int:
    return n * n


def by_map(n: int) -> int:
    return sum(futures.map(leaf, range(1, n + 1)))


def by_as_completed(n: int) -> int:
    children = [futures.submit(by_map, each) for each in range(1, n + 1)]
    return sum(child.result() for child in futures.as_completed(children))


async def by_await(n: int) -> int:
    return sum(await futures.gather(*(futures.submit(by_as_completed, each) for each in range(1, n + 1))))


def by_wait(n: int) -> int:
    child = futures.submit(by_await, n)
    futures.wait([child], return_when=futures.ALL_COMPLETED)
    return child.result()


parser = argparse.ArgumentParser(description="Sum over a tree of tasks.")
parser.add_argument("--width", type=int, default=20)
print(futures.submit(by_wait, parser.parse_args().width).result())
