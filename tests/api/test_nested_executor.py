"""Executors inside tasks: made there, or come there as an argument, on one node and on two."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError
from typing import Any

import pytest
from tests.conftest import Script, descendants, eventually, nodes_of

from p2pscoop import Executor, futures
from p2pscoop.errors import WrongThreadError


@pytest.fixture(scope="module", params=[1, 2], ids=["1 node", "2 nodes"])
def outer(request: pytest.FixtureRequest) -> Iterator[Executor]:
    with Executor(request.param) as executor:
        executor.submit(int).result()
        eventually(lambda: len(executor.statistics()) == request.param + 1)
        yield executor


@pytest.fixture(autouse=True)
def nothing_left_behind(outer: Executor) -> Iterator[None]:  # overrides the general one
    before = descendants()
    yield
    eventually(lambda: descendants() <= before)


def square(x: int) -> int:
    return x * x


def test_one_that_is_made_in_a_task_uses_the_nodes_that_are_there(outer: Executor) -> None:
    def task() -> tuple[list[int], int, int]:
        with Executor(3) as inner:
            return list(inner.map(square, range(10))), inner._max_workers, len(inner.statistics())

    before = nodes_of()
    values, capacity, members = outer.submit(task).result(60)
    assert values == [x * x for x in range(10)]
    assert capacity == len(before)
    assert members == len(before) + 1
    assert nodes_of() == before


def test_one_that_came_as_an_argument_is_the_same_cluster(outer: Executor) -> None:
    def fib(executor: Executor, n: int) -> int:
        if n < 2:
            return n
        a, b = (executor.submit(fib, executor, n - each) for each in (1, 2))
        return a.result() + b.result()

    assert outer.submit(fib, outer, 12).result(60) == 144
    # In a closure, too.
    assert outer.submit(lambda: sum(outer.map(square, range(5)))).result(60) == 30


def test_it_comes_back_as_itself(outer: Executor) -> None:
    assert outer.submit(lambda executor: executor, outer).result(60) is outer


def test_the_waits_of_the_standard_library(outer: Executor) -> None:
    def task() -> list[Any]:
        with Executor() as inner:
            many = [inner.submit(square, x) for x in range(8)]
            order = sorted(each.result() for each in concurrent.futures.as_completed(many))
            slow = [inner.submit(time.sleep, 0.01) for _ in range(4)]
            done, not_done = concurrent.futures.wait(slow)
            first = concurrent.futures.wait(
                [inner.submit(square, 9), inner.submit(square, 8)],
                return_when=concurrent.futures.FIRST_COMPLETED,
            )
            return [order, len(done), len(not_done), len(first.done) >= 1]

    assert outer.submit(task).result(60) == [[x * x for x in range(8)], 4, 0, True]


def test_depth_is_not_bounded(outer: Executor) -> None:
    def down(n: int) -> int:
        return n if n == 0 else 1 + Executor().submit(down, n - 1).result()

    assert outer.submit(down, 300).result(60) == 300


def test_errors_and_cancellation(outer: Executor) -> None:
    def task() -> list[str]:
        seen = []
        inner = Executor()
        for work, error in ((int, None), (divmod, TypeError)):
            seen.append(type(inner.submit(work).exception()).__name__)
            assert error is None or seen[-1] == error.__name__
        future = inner.submit(square, 3)
        if future.cancel():
            try:
                future.result()
            except CancelledError:
                seen.append("cancelled")
        else:
            seen.append("cancelled")  # A thief was faster.
        slow = inner.submit(time.sleep, 0.5)
        try:
            slow.result(timeout=0.0)
        except TimeoutError:
            seen.append("late")
        inner.shutdown(cancel_futures=True)
        assert slow.done()
        try:
            inner.submit(square, 1)
        except RuntimeError as error:
            seen.append(str(error))
        return seen

    assert outer.submit(task).result(60) == [
        "NoneType",
        "TypeError",
        "cancelled",
        "late",
        "cannot schedule new futures after shutdown",
    ]


def test_results_come_as_they_end(outer: Executor) -> None:
    def task() -> list[int]:
        return sorted(Executor().map_unordered(square, range(500)))

    assert outer.submit(task).result(60) == [x * x for x in range(500)]


def test_callbacks(outer: Executor) -> None:
    def task() -> list[int]:
        seen: list[int] = []
        with Executor() as inner:
            for x in range(5):
                inner.submit(square, x).add_done_callback(lambda future: seen.append(future.result()))
        return sorted(seen)

    assert outer.submit(task).result(60) == [0, 1, 4, 9, 16]


def test_coroutine_tasks_await_its_futures(outer: Executor) -> None:
    async def task() -> int:
        inner = Executor()
        first, second = inner.submit(square, 3), inner.submit(square, 4)
        return await first + await second  # type: ignore[misc]

    assert outer.submit(task).result(60) == 25


def test_futures_and_executors_mix(outer: Executor) -> None:
    def task() -> int:
        inner = Executor()
        return futures.submit(lambda: inner.submit(square, 5).result()).result() + inner.submit(square, 2).result()

    assert outer.submit(task).result(60) == 29


def test_the_initializer_runs_before_the_first_task_on_a_node(outer: Executor) -> None:
    def initialize(value: str) -> None:
        os.environ["NESTED"] = value

    def read(_: int) -> str | None:
        return os.environ.get("NESTED")

    def refuse() -> None:
        raise ValueError("no start")

    def task() -> set[str | None]:
        with Executor(initializer=initialize, initargs=("here",)) as inner:
            return set(inner.map(read, range(20)))

    def broken() -> str:
        inner = Executor(initializer=refuse)
        try:
            inner.submit(int).result()
        except BrokenExecutor as error:
            try:
                inner.submit(int)
            except BrokenExecutor:
                return str(error)
        return "not broken"

    assert outer.submit(task).result(60) == {"here"}
    assert outer.submit(broken).result(60) == "the initializer raised ValueError: no start"


def test_another_thread_of_a_task_is_told(outer: Executor) -> None:
    def task() -> str:
        inner, errors = Executor(), []
        inner.submit(int).result()

        def use() -> None:
            try:
                inner.submit(square, 1)
            except WrongThreadError as error:
                errors.append(str(error))

        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
        return errors[0]

    assert "its tasks run in thread" in outer.submit(task).result(60)


def test_generators_of_nested_tasks_do_not_depend_on_the_nodes(script: Callable[[str], Script]) -> None:
    program = script(
        """
        import p2pscoop
        from p2pscoop import Executor, futures

        def draw(_):
            return p2pscoop.rng().random()

        def task():
            return list(Executor().map(draw, range(6)))

        p2pscoop.seed(7)
        print(futures.submit(task).result())
        """
    )
    outs = {program.run(nodes=nodes).stdout for nodes in (1, 2, 3)}
    assert len(outs) == 1
    assert len(set(eval(outs.pop()))) == 6


def test_inside_futures_too(script: Callable[[str], Script]) -> None:
    result = script(
        """
        from concurrent.futures import wait
        from p2pscoop import Executor, futures

        def task(n):
            with Executor(4) as inner:
                many = [inner.submit(pow, x, 2) for x in range(n)]
                return sum(each.result() for each in wait(many).done)

        print(list(futures.map(task, [1, 5, 10])))
        """
    ).run(env={"P2PSCOOP_NODES": "2"})
    assert (result.stdout, result.stderr) == ("[0, 30, 285]\n", "")


def test_an_event_loop_inside_a_task(outer: Executor) -> None:
    async def compute(inner: Executor) -> int:
        # The loop holds the node; what it waits for has to be run before, or elsewhere.
        future = inner.submit(square, 6)
        concurrent.futures.wait([future])
        return await asyncio.wrap_future(future)

    def task() -> int:
        return asyncio.run(compute(Executor()))

    assert outer.submit(task).result(60) == 36
