"""What it costs to pickle a suspended coroutine and to make it again, against pickling what it holds."""

from __future__ import annotations

import pickle
import sys
import time
import types
from collections.abc import Generator
from typing import Any

from benchmarks.common import Result, alternate, ratio, report, result
from p2pscoop._continuation import capture, restore

REPEATS = 300
DEPTH = 10_000


@types.coroutine
def pause() -> Generator[None, None, None]:
    yield


async def with_five_locals() -> Any:
    number, text, values, table, flag = 7, "text", [1, 2, 3], {"a": 1}, True
    await pause()
    return number, text, values, table, flag


async def chain(depth: int) -> int:
    if depth == 0:
        await pause()
        return 0
    return 1 + await chain(depth - 1)


def journey(make: Any) -> int:
    """Away and back; the size of the payload."""
    coroutine = make()
    coroutine.send(None)
    captured = capture(coroutine)
    data = captured.dumps()
    copy = restore(data)
    captured.discard()
    copy.close()
    return len(data)


def pickled_locals() -> None:
    held = (7, "text", [1, 2, 3], {"a": 1}, True)
    pickle.loads(pickle.dumps(held, 5))


def run(rounds: int = 9) -> list[Result]:
    mine, floor = alternate(
        rounds,
        lambda: [journey(with_five_locals) for _ in range(REPEATS)],
        lambda: [pickled_locals() for _ in range(REPEATS)],
    )
    micros = min(mine) / REPEATS * 1e6
    size = journey(with_five_locals)
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(2 * DEPTH)
    try:
        began = time.perf_counter()
        deep_size = journey(lambda: chain(DEPTH))
        deep_s = time.perf_counter() - began
    finally:
        sys.setrecursionlimit(before)
    return [
        result(
            "one frame, 5 locals: there, back and discarded, µs",
            micros,
            "<= 150",
            micros <= 150,
            against_pickling_the_locals=round(ratio(mine, floor), 1),
        ),
        result("one frame, 5 locals, code known: bytes", size, "<= 1000", size <= 1000),
        result(f"a chain of {DEPTH:,} awaits, there and back: s", deep_s, "(no target)", True, bytes=deep_size),
    ]


if __name__ == "__main__":
    report(run())
