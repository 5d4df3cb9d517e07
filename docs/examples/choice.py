"""Which task runs depends on what another one found: functions are chosen at run time, lambdas too.

p2pscoop run -n 4 docs/examples/choice.py 7
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

from p2pscoop import futures


def is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, math.isqrt(number) + 1))


scale = 10  # Lambdas take along what they refer to.
branches: dict[bool, Callable[[int], str]] = {
    True: lambda number: f"{number} is prime, and {scale * number} is not",
    False: lambda number: f"{number} is {' times '.join(map(str, factors(number)))}",
}


def factors(number: int) -> list[int]:
    for divisor in range(2, math.isqrt(number) + 1):
        if number % divisor == 0:
            return [divisor, *factors(number // divisor)]
    return [number]


for number in map(int, sys.argv[1:] or ["91", "97"]):
    prime = futures.submit(is_prime, number).result()
    print(futures.submit(branches[prime], number).result())
