"""Unbalanced Tree Search: count the nodes of an implicit tree, one task for every one of them.

    p2pscoop run -n 4 docs/examples/uts.py                                  # a tree of some 100,000 nodes
    p2pscoop run -n 4 docs/examples/uts.py --shape geometric --b0 4 --depth 10 --seed 19        # T1
    p2pscoop run -n 4 docs/examples/uts.py --shape binomial --b0 2000 --q 0.124875 --m 8 --seed 42  # T3

The shape of the tree follows from hashes alone (Olivier et al., UTS: An Unbalanced Tree Search Benchmark, 2006):
nobody knows how large a subtree is before it has been searched, so that work cannot be divided beforehand. It is
the hardest test of load balancing that is easy to check: the counts are known.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any

import p2pscoop
from p2pscoop import futures

Counts = tuple[int, int, int]
"""Nodes, leaves, and the largest depth."""

CHILDREN_MAX = 100


def geometric(b0: float, depth_max: int) -> Callable[[int, int], int]:
    """A geometrically distributed number of children, `b0` on average, none at the largest depth."""
    scale = 1 / math.log(1 - 1 / (1 + b0))
    log, floor = math.log, math.floor

    def children(depth: int, draw: int) -> int:
        if depth >= depth_max:
            return 0
        return min(floor(log(1 - draw / 2147483648) * scale), CHILDREN_MAX)

    return children


def binomial(b0: int, q: float, m: int) -> Callable[[int, int], int]:
    """`b0` children of the root; of any other node, `m` with probability `q`, else none."""

    def children(depth: int, draw: int) -> int:
        if depth == 0:
            return b0
        return m if draw / 2147483648 < q else 0

    return children


def root_of(seed: int) -> bytes:
    """The state of the root."""
    return hashlib.sha1(bytes(16) + seed.to_bytes(4, "big")).digest()


def searcher(children: Callable[[int, int], int]) -> Callable[[bytes, int], Counts]:
    """The task: count the subtree below a node."""
    sha1, submit, from_bytes = hashlib.sha1, futures.submit, int.from_bytes

    def visit(state: bytes, depth: int) -> Counts:
        count = children(depth, from_bytes(state[16:], "big") & 0x7FFFFFFF)
        if not count:
            return 1, 1, depth
        subtrees = [
            submit(visit, sha1(state + index.to_bytes(4, "big")).digest(), depth + 1) for index in range(count)
        ]
        nodes, leaves, deepest = 1, 0, depth
        for subtree in subtrees:
            more_nodes, more_leaves, depth_there = subtree.result()
            nodes += more_nodes
            leaves += more_leaves
            if depth_there > deepest:
                deepest = depth_there
        return nodes, leaves, deepest

    return visit


def coroutine_searcher(children: Callable[[int, int], int]) -> Callable[[bytes, int], Coroutine[Any, Any, Counts]]:
    """The same as coroutines: while one waits for a subtree elsewhere, its frame can go there."""
    sha1, submit, from_bytes = hashlib.sha1, futures.submit, int.from_bytes

    async def visit(state: bytes, depth: int) -> Counts:
        count = children(depth, from_bytes(state[16:], "big") & 0x7FFFFFFF)
        if not count:
            return 1, 1, depth
        subtrees = [
            submit(visit, sha1(state + index.to_bytes(4, "big")).digest(), depth + 1) for index in range(count)
        ]
        nodes, leaves, deepest = 1, 0, depth
        for subtree in subtrees:
            more_nodes, more_leaves, depth_there = await subtree
            nodes += more_nodes
            leaves += more_leaves
            if depth_there > deepest:
                deepest = depth_there
        return nodes, leaves, deepest

    return visit


def serial(children: Callable[[int, int], int], state: bytes) -> Counts:
    """The same counts, without a task."""
    nodes = leaves = deepest = 0
    stack = [(state, 0)]
    while stack:
        state, depth = stack.pop()
        nodes += 1
        deepest = max(deepest, depth)
        count = children(depth, int.from_bytes(state[16:], "big") & 0x7FFFFFFF)
        leaves += not count
        for index in range(count):
            stack.append((hashlib.sha1(state + index.to_bytes(4, "big")).digest(), depth + 1))
    return nodes, leaves, deepest


def main() -> None:
    parser = argparse.ArgumentParser(description="Unbalanced Tree Search, one task for each node of the tree.")
    parser.add_argument("--shape", choices=("geometric", "binomial"), default="geometric")
    parser.add_argument("--seed", type=int, default=19, help="of the root  [default: %(default)s]")
    parser.add_argument("--b0", type=float, default=4.0, help="branching  [default: %(default)s]")
    parser.add_argument("--depth", type=int, default=7, help="geometric: largest depth  [default: %(default)s]")
    parser.add_argument(
        "--q", type=float, default=0.124875, help="binomial: chance of children  [default: %(default)s]"
    )
    parser.add_argument("--m", type=int, default=8, help="binomial: number of children  [default: %(default)s]")
    parser.add_argument("--coroutines", action="store_true", help="tasks are coroutines, not functions")
    parser.add_argument("--check", action="store_true", help="compare with a serial search")
    options = parser.parse_args()
    if options.shape == "geometric":
        children = geometric(options.b0, options.depth)
    else:
        children = binomial(int(options.b0), options.q, options.m)

    began = time.perf_counter()
    root = root_of(options.seed)
    visit = coroutine_searcher(children) if options.coroutines else searcher(children)
    nodes, leaves, deepest = counts = futures.submit(visit, root, 0).result()
    seconds = time.perf_counter() - began
    print(f"nodes {nodes}  leaves {leaves}  depth {deepest}  seconds {seconds:.3f}  nodes/s {nodes / seconds:.0f}")
    for each in p2pscoop.statistics():
        print(
            f"{each.name}: executed {each.executed}, "
            f"stole {each.stolen} in {each.steals - each.steals_failed} steals, "
            f"gave {each.continuations_given} suspended ones away"
        )
    if options.check and counts != serial(children, root):
        sys.exit("the serial search counts otherwise")


if __name__ == "__main__":
    main()
