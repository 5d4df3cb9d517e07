"""Exceptions go up through levels of tasks as they do through levels of calls, wherever these run.

p2pscoop run -n 4 docs/examples/exceptions.py
"""

from __future__ import annotations

from p2pscoop import futures


def root(number: int) -> float:
    if number < 0:
        raise ValueError(f"{number} has no real root")
    return number**0.5


def roots(numbers: list[int]) -> list[float]:
    """Deals with some of them."""
    found: list[float] = []
    results = futures.map(root, numbers)
    try:
        found.extend(results)
    except ValueError as error:
        print(f"in a task: {error}")
    return found


def strict(numbers: list[int]) -> float:
    """Deals with none."""
    return sum(futures.submit(sum, futures.submit(roots, numbers)).result() + root(number) for number in numbers)


print(futures.submit(roots, [1, 4, 9, -16, 25]).result())
failing = futures.submit(strict, [1, -2])
try:
    failing.result()
except ValueError as error:
    print(f"in the main program: {error}")
print(type(failing.exception()).__name__)
