"""Merge sort, the upper levels as tasks.

p2pscoop run -n 4 docs/examples/merge_sort.py --items 200000
"""

from __future__ import annotations

import argparse
import heapq
import random

from p2pscoop import futures


def merge_sort(items: list[int], parallel: int) -> list[int]:
    """Sort; the first `parallel` levels of halves are tasks of their own."""
    if len(items) < 2:
        return items
    middle = len(items) // 2
    halves = [items[:middle], items[middle:]]
    if parallel > 0:
        left, right = futures.map(merge_sort, halves, [parallel - 1] * 2)
    else:
        left, right = (merge_sort(half, 0) for half in halves)
    return list(heapq.merge(left, right))


parser = argparse.ArgumentParser(description="Sort numbers.")
parser.add_argument("--items", type=int, default=20_000)
parser.add_argument("--levels", type=int, default=3)
options = parser.parse_args()
numbers = [random.randrange(1_000_000) for _ in range(options.items)]
print("sorted:", merge_sort(numbers, options.levels) == sorted(numbers))
