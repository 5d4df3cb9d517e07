"""Search a binary tree that all nodes share, the upper levels as tasks.

p2pscoop run -n 4 docs/examples/tree_traversal.py --size 20000
"""

from __future__ import annotations

import argparse
import random

from p2pscoop import futures, shared

# Left and right child of each value, or None: a binary search tree in a table.
Tree = dict[int, list[int | None]]


def grow(values: list[int]) -> Tree:
    tree: Tree = {values[0]: [None, None]}
    for value in values[1:]:
        at = values[0]
        while True:
            side = value > at
            child = tree[at][side]
            if child is None:
                tree[at][side] = value
                tree[value] = [None, None]
                break
            at = child
    return tree


def depth(root: int, parallel: int) -> int:
    """The depth of a branch; the first `parallel` levels are tasks."""
    tree: Tree = shared.get_const("tree")
    children = [child for child in tree[root] if child is not None]
    if parallel > 0:
        return 1 + max(futures.map(depth, children, [parallel - 1] * 2), default=0)
    return 1 + max((depth(child, 0) for child in children), default=0)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure a binary tree.")
    parser.add_argument("--size", type=int, default=5000)
    values = list(range(parser.parse_args().size))
    random.Random(2).shuffle(values)
    shared.set_const(tree=grow(values))
    found = futures.submit(depth, values[0], 4).result()
    print(
        f"a tree of {len(values)} values is {found} deep; one task finds the same: {found == depth(values[0], 0)}"
    )


if __name__ == "__main__":
    main()
