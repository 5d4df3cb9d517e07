"""What a spawn and a join cost on one node, against the floor of pure Python and against asyncio."""

from __future__ import annotations

import asyncio
import os
from collections import deque

from benchmarks.common import Result, alternate, ratio, report, result

os.environ["P2PSCOOP_NODES"] = "1"

from p2pscoop import futures
from p2pscoop._local import current

N = 20
CALLS = 21_891  # of fib(20)


class Slotted:
    """The least that a task could be."""

    __slots__ = ("args", "fn", "value")

    def __init__(self, fn: object, args: tuple[object, ...]) -> None:
        self.fn = fn
        self.args = args


stack: deque[Slotted] = deque()


def floor_fib(n: int) -> int:
    """Make a slotted object, push, pop, call."""
    if n < 2:
        return n
    stack.append(Slotted(floor_fib, (n - 1,)))
    stack.append(Slotted(floor_fib, (n - 2,)))
    second = stack.pop()
    b = second.fn(*second.args)
    first = stack.pop()
    return first.fn(*first.args) + b


def fib(n: int) -> int:
    if n < 2:
        return n
    a, b = futures.submit(fib, n - 1), futures.submit(fib, n - 2)
    return a.result() + b.result()


async def coroutine_fib(n: int) -> int:
    if n < 2:
        return n
    a, b = futures.submit(coroutine_fib, n - 1), futures.submit(coroutine_fib, n - 2)
    return await a + await b


async def asyncio_fib(n: int) -> int:
    if n < 2:
        return n
    a, b = asyncio.create_task(asyncio_fib(n - 1)), asyncio.create_task(asyncio_fib(n - 2))
    return await a + await b


def with_migration(portable: bool) -> int:
    current().portable = portable
    return futures.submit(coroutine_fib, N).result()


def no_op(x: int) -> int:
    return x


def run(rounds: int = 15) -> list[Result]:
    floor, plain, coroutines, peer = alternate(
        rounds,
        lambda: floor_fib(N),
        lambda: futures.submit(fib, N).result(),
        lambda: futures.submit(coroutine_fib, N).result(),
        lambda: asyncio.run(asyncio_fib(N)),
    )
    flat, builtin = alternate(
        rounds,
        lambda: list(futures.map(no_op, range(20_000))),
        lambda: [no_op(x) for x in range(20_000)],
    )
    moving, staying = alternate(rounds, lambda: with_migration(True), lambda: with_migration(False))
    against_floor, against_asyncio = ratio(plain, floor), ratio(coroutines, peer)
    return [
        result(
            "nested fib, 1 node, against the floor",
            against_floor,
            "<= 4",
            against_floor <= 4,
            ns_per_task=round(min(plain) / CALLS * 1e9),
            floor_ns=round(min(floor) / CALLS * 1e9),
        ),
        result(
            "nested async fib, 1 node, against asyncio",
            against_asyncio,
            "<= 4",
            against_asyncio <= 4,
            ns_per_task=round(min(coroutines) / CALLS * 1e9),
            asyncio_ns=round(min(peer) / CALLS * 1e9),
        ),
        result(
            "nested async fib, 1 node, that may move, against one that may not",
            ratio(moving, staying),
            "<= 1.05",
            ratio(moving, staying) <= 1.05,
        ),
        result(
            "map of 20,000 no-ops, 1 node, against a list of calls",
            ratio(flat, builtin),
            "(no target)",
            True,
            ns_per_item=round(min(flat) / 20_000 * 1e9),
        ),
    ]


if __name__ == "__main__":
    report(run())
