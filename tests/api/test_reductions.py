"""`map_reduce`, `map_scan`, and what futures tell of themselves."""

from __future__ import annotations

import functools
import itertools
import operator
import re
import time
from collections.abc import Callable

import pytest

import p2pscoop
from p2pscoop import futures

pytestmark = pytest.mark.usefixtures("nodes")


def square(x: int) -> int:
    return x * x


async def asynchronous_square(x: int) -> int:
    return await futures.submit(square, x)


def subtract(a: int, b: int) -> int:
    return a - b


def busy(seconds: float) -> int:
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass
    return 1


def refuse(x: int) -> int:
    raise LookupError(f"no {x}")


# ------------------------------------------------------------------------------------- map_reduce


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64, 1000])
def test_a_reduction_has_the_value_of_the_serial_one(count: int) -> None:
    expected = functools.reduce(operator.add, map(square, range(count)))
    assert futures.map_reduce(square, operator.add, range(count)) == expected


@pytest.mark.parametrize("count", [1, 2, 3, 5, 26])
def test_the_order_is_kept_where_a_reduction_does_not_commute(count: int) -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"[:count]
    assert futures.map_reduce(str.upper, operator.add, letters) == letters.upper()


def test_one_item_is_mapped_and_not_reduced() -> None:
    assert futures.map_reduce(square, refuse, [7]) == 49  # type: ignore[arg-type]


def test_no_item_has_no_value() -> None:
    with pytest.raises(TypeError, match="no items has no value"):
        futures.map_reduce(square, operator.add, [])
    with pytest.raises(TypeError, match="at least one iterable"):
        futures.map_reduce(square, operator.add)


def test_several_iterables_are_zipped_to_the_shortest() -> None:
    assert futures.map_reduce(operator.mul, operator.add, [1, 2, 3], itertools.count(10)) == 10 + 22 + 36


def test_both_functions_may_be_coroutine_functions() -> None:
    async def add(a: int, b: int) -> int:
        return await futures.submit(operator.add, a, b)

    assert futures.map_reduce(asynchronous_square, add, range(20)) == sum(x * x for x in range(20))


def test_reductions_nest() -> None:
    def row(n: int) -> int:
        return futures.map_reduce(square, operator.add, range(n))

    assert futures.map_reduce(row, operator.add, range(1, 20)) == sum(x * x for n in range(20) for x in range(n))


@pytest.mark.parametrize("functions", [(refuse, operator.add), (square, lambda a, b: refuse(a))])
def test_what_a_function_raises_is_raised(functions: tuple[Callable[..., int], Callable[..., int]]) -> None:
    with pytest.raises(LookupError, match=r"no \d"):
        futures.map_reduce(*functions, range(10))


def test_a_reduction_that_is_not_done_in_time() -> None:
    with pytest.raises(TimeoutError):
        futures.map_reduce(busy, operator.add, [0.02] * 100, timeout=0.1)
    assert futures.map_reduce(busy, operator.add, [0.001] * 10, timeout=50) == 10


# --------------------------------------------------------------------------------------- map_scan


@pytest.mark.parametrize("reduction", [operator.add, subtract, max, lambda a, b: 10 * a + b])
@pytest.mark.parametrize("count", [0, 1, 2, 9, 500])
def test_a_scan_is_that_of_accumulate(reduction: Callable[[int, int], int], count: int) -> None:
    expected = list(itertools.accumulate(map(square, range(count)), reduction))
    assert futures.map_scan(square, reduction, range(count)) == expected


def test_a_scan_of_coroutines_and_several_iterables() -> None:
    assert futures.map_scan(asynchronous_square, operator.add, [1, 2, 3]) == [1, 5, 14]
    assert futures.map_scan(operator.mul, operator.add, [1, 2, 3], [4, 5, 6]) == [4, 14, 32]


def test_a_scan_that_fails_or_is_late() -> None:
    with pytest.raises(LookupError):
        futures.map_scan(refuse, operator.add, range(10))
    with pytest.raises(TypeError, match="at least one iterable"):
        futures.map_scan(square, operator.add)
    with pytest.raises(TimeoutError):
        futures.map_scan(busy, operator.add, [0.02] * 100, timeout=0.1)


def test_the_names_of_scoop() -> None:
    assert futures.mapReduce(square, operator.add, range(10)) == 285
    assert futures.mapScan(square, operator.add, [1, 2, 3]) == [1, 5, 14]


# ------------------------------------------------------------------------- what a future tells


def test_ids_are_those_of_the_tasks() -> None:
    ids = [futures.submit(square, x).id for x in range(100)]
    assert len(set(ids)) == 100
    assert all(each is not None and re.fullmatch("[0-9a-f]{32}", each) for each in ids)


def test_a_future_knows_the_node_that_its_task_ended_on(nodes: int) -> None:
    many = [futures.submit(busy, 0.02) for _ in range(40)]
    assert {future.executor for future in many} <= {None, *(each.id for each in p2pscoop.statistics())}
    futures.wait(many)
    where = [future.executor for future in many]
    executed = {each.id: each.executed for each in p2pscoop.statistics()}
    assert set(where) == set(executed)
    assert len(executed) == nodes
    cancelled = futures.submit(square, 1)
    if cancelled.cancel():
        assert cancelled.executor is None


def test_what_is_gone() -> None:
    future = futures.submit(square, 3)
    assert future.result() == 9
    for name in ("waitTime", "executionTime", "stopWatch", "creationTime", "parentId", "index", "resultValue"):
        assert not hasattr(future, name)
