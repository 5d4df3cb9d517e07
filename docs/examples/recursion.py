"""Tasks that map tasks that map tasks: a binary tree of a given depth.

p2pscoop run -n 4 docs/examples/recursion.py --depth 14
"""

from __future__ import annotations

import argparse

from p2pscoop import futures


def leaves(depth: int) -> int:
    return 1 if depth == 0 else sum(futures.map(leaves, [depth - 1] * 2))


parser = argparse.ArgumentParser(description="Count the leaves of a binary tree of tasks.")
parser.add_argument("--depth", type=int, default=12)
depth = parser.parse_args().depth
print(f"2 to the {depth} is {leaves(depth)}")
