"""Coroutine tasks: `async def` submitted like any function."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import os
import time
from concurrent.futures import CancelledError

import pytest

from p2pscoop import futures

pytestmark = pytest.mark.usefixtures("nodes")


async def fib(n: int) -> int:
    if n < 2:
        return n
    a, b = futures.submit(fib, n - 1), futures.submit(fib, n - 2)
    return await a + await b


def square(x: int) -> int:
    return x * x


async def double(x: int) -> int:
    return 2 * x


def fail(message: str) -> None:
    raise KeyError(message)


def cancelled_future() -> futures.Future[int]:
    """A cancelled future; the other node may be faster at times."""
    while True:
        future = futures.submit(square, 1)
        if future.cancel():
            return future


def test_a_coroutine_task_spawns_and_awaits_others() -> None:
    assert futures.submit(fib, 17).result() == 1597


def test_kinds_of_tasks_may_be_mixed() -> None:
    async def outer(n: int) -> int:
        plain = futures.submit(square, n)
        nested = futures.submit(inner, n)
        return await plain + await nested

    def inner(n: int) -> int:
        return futures.submit(double, n).result() + futures.submit(square, n).result()

    assert futures.submit(outer, 5).result() == 25 + 10 + 25


def test_a_coroutine_may_block_too() -> None:
    async def blocking(n: int) -> int:
        return n if n == 0 else 1 + futures.submit(blocking, n - 1).result()

    assert futures.submit(blocking, 300).result() == 300


def test_inner_coroutines_are_plain_python() -> None:
    async def inner(n: int) -> int:
        return await futures.submit(square, n) if n == 0 else 1 + await inner(n - 1)

    assert futures.submit(inner, 20).result() == 20


def test_partials_and_lambdas_of_coroutine_functions() -> None:
    assert futures.submit(functools.partial(double, 4)).result() == 8
    assert futures.submit(lambda: double(5)).result() == 10
    assert list(futures.map(double, range(10))) == [2 * x for x in range(10)]


def test_awaiting_what_has_ended() -> None:
    done = futures.submit(square, 3)
    done.result()

    async def again() -> int:
        return await done + await done

    assert futures.submit(again).result() == 18


def test_exceptions_can_be_caught_and_go_up() -> None:
    async def catching() -> str:
        try:
            await futures.submit(fail, "inner")
        except KeyError as error:
            return str(error)
        return "nothing"

    async def passing() -> None:
        await futures.submit(catching_nothing)

    async def catching_nothing() -> None:
        await futures.submit(fail, "deep")

    assert futures.submit(catching).result() == "'inner'"
    with pytest.raises(KeyError, match="deep"):
        futures.submit(passing).result()


def test_awaiting_a_cancelled_future() -> None:
    async def waiting() -> str:
        cancelled = cancelled_future()
        try:
            await cancelled
        except CancelledError:
            return "cancelled"
        return "not"

    assert futures.submit(waiting).result() == "cancelled"


def test_with_blocks_and_finally_run_where_they_should() -> None:
    async def careful() -> list[str]:
        seen = []
        try:
            seen.append("in")
            await futures.submit(fail, "x")
        except KeyError:
            seen.append("caught")
            await futures.submit(square, 1)
        finally:
            seen.append("finally")
        return seen

    assert futures.submit(careful).result() == ["in", "caught", "finally"]


def test_what_is_no_future_of_ours_cannot_be_awaited() -> None:
    async def confused() -> None:
        await asyncio.sleep(1)

    async def careful() -> str:
        try:
            await asyncio.sleep(1)
        except TypeError as error:
            return str(error)
        return "?"

    with pytest.raises((TypeError, RuntimeError)):
        futures.submit(confused).result()
    assert futures.submit(square, 2).result() == 4


def test_a_bare_yield_lets_others_go_first() -> None:
    order: list[str] = []

    async def polite(name: str) -> None:
        for _ in range(2):
            order.append(name)
            await asyncio.sleep(0)

    async def both() -> None:
        await futures.gather(polite("a"), polite("b"))

    futures.submit(both).result()
    assert sorted(order) == ["a", "a", "b", "b"]
    assert order[:2] != ["a", "a"]
    assert order[:2] != ["b", "b"]


def test_context_variables_belong_to_the_task() -> None:
    variable = contextvars.ContextVar("variable", default="unset")

    async def remember(value: str) -> str:
        variable.set(value)
        await futures.submit(square, 1)
        await asyncio.sleep(0)
        return variable.get()

    async def several() -> list[str]:
        return await futures.gather(*(remember(str(n)) for n in range(5)))

    assert futures.submit(several).result() == list("01234")
    assert variable.get() == "unset"


# ------------------------------------------------------------------------------------------- gather


def test_gather_in_a_coroutine() -> None:
    async def fan(n: int) -> list[int]:
        return await futures.gather(*(futures.submit(square, x) for x in range(n)))

    assert futures.submit(fan, 50).result() == [x * x for x in range(50)]


def test_gather_in_the_main_program() -> None:
    assert futures.gather(futures.submit(square, 3), double(4)).result() == [9, 8]
    assert futures.gather().result() == []


def test_gather_raises_the_first_exception() -> None:
    both = futures.gather(futures.submit(square, 2), futures.submit(fail, "one"))
    with pytest.raises(KeyError, match="one"):
        both.result()
    ended = futures.submit(fail, "two")
    assert isinstance(ended.exception(), KeyError)
    with pytest.raises(KeyError, match="two"):
        futures.gather(futures.submit(square, 2), ended).result()


def test_gather_can_return_exceptions() -> None:
    cancelled = cancelled_future()
    values = futures.gather(
        futures.submit(square, 2), futures.submit(fail, "one"), cancelled, return_exceptions=True
    ).result()
    assert values[0] == 4
    assert isinstance(values[1], KeyError)
    assert isinstance(values[2], CancelledError)


def test_gather_of_one_future_twice() -> None:
    one = futures.submit(square, 4)
    assert futures.gather(one, one).result() == [16, 16]


def test_gather_complains() -> None:
    with pytest.raises(TypeError, match="gather takes p2pscoop futures and coroutines"):
        futures.gather(7)  # type: ignore[call-overload]


def test_gathers_of_gathers() -> None:
    async def tree(depth: int) -> int:
        if depth == 0:
            return 1
        return sum(await futures.gather(*(tree(depth - 1) for _ in range(3))))

    assert futures.submit(tree, 5).result() == 243


def test_coroutines_spread(nodes: int) -> None:
    async def where() -> int:
        until = time.perf_counter() + 0.02
        while time.perf_counter() < until:
            pass
        return os.getpid()

    async def everywhere() -> set[int]:
        return set(await futures.gather(*(futures.submit(where) for _ in range(20))))

    assert len(futures.submit(everywhere).result()) == nodes
