"""Tasks that may take only so long: wherever they wait, in the middle of Python code, or with their node."""

from __future__ import annotations

import contextlib
import os
import pickle
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, wait
from pathlib import Path
from typing import Any

import pytest
from tests.api.test_cancellation import begin, compute, never, sleep, wait_here
from tests.api.test_cancellation import wait as wait_elsewhere
from tests.api.test_migration import custodies, stolen
from tests.conftest import eventually, nodes_of

from p2pscoop import Executor, futures, task
from p2pscoop.errors import RemoteTraceback, TaskCancelled, TaskError, TaskTimeoutError

SHORT_S = 0.3


@pytest.fixture
def three_nodes(with_nodes: Callable[[int], None]) -> None:
    with_nodes(3)


@pytest.fixture
def executor() -> Iterator[Executor]:
    with Executor(2) as executor:
        yield executor


def is_late(error: BaseException | None) -> bool:
    return isinstance(error, TaskTimeoutError) and isinstance(error, (TaskError, TimeoutError))


def a_part(outcome: Exception | None) -> None:
    if outcome is not None:
        raise outcome


def with_a_part(path: Path, outcome: Exception | None) -> None:
    with contextlib.suppress(KeyError):
        task(a_part, timeout=SHORT_S)(outcome)
    compute(path)


@pytest.mark.parametrize("outcome", [None, KeyError("of the part")])
def test_a_part_that_was_in_time_leaves_the_limit_of_the_whole(
    executor: Executor, tmp_path: Path, outcome: Exception | None
) -> None:
    future = executor.submit(task(with_a_part, timeout=1.0), tmp_path / "trace", outcome)
    with pytest.raises(TaskTimeoutError, match="with_a_part was not done within 1 s"):
        future.result()
    assert (tmp_path / "trace").read_text() == "ended"


@pytest.mark.usefixtures("three_nodes")
@pytest.mark.parametrize("work", [compute, sleep, wait_elsewhere])
def test_a_task_of_another_node_ends_with_its_time(work: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "trace"
    before = nodes_of()
    future = stolen(task(work, timeout=1.0 if work is wait_elsewhere else SHORT_S), path)
    with pytest.raises(
        TaskTimeoutError, match=rf"{work.__name__} was not done within .* s of its start"
    ) as caught:
        future.result()
    assert is_late(caught.value)
    assert isinstance(caught.value.__cause__, RemoteTraceback)
    assert work.__name__ in str(caught.value.__cause__)
    assert path.read_text() == "ended"
    if work is wait_elsewhere:
        eventually((tmp_path / "inner").exists)
    assert nodes_of() == before, "all nodes live"
    eventually(lambda: custodies() == (0, 0))


@pytest.mark.parametrize("work", [never, wait_here])
def test_a_task_that_waits_at_home_ends_with_its_time(
    work: Callable[[Path], Any], tmp_path: Path, with_nodes: Callable[[int], None]
) -> None:
    with_nodes(1)
    future = futures.submit(task(work, timeout=SHORT_S), tmp_path / "trace")
    assert futures.wait([future]).done == {future}
    assert is_late(future.exception())
    assert (tmp_path / "trace").read_text() == "ended"


def test_what_is_in_time_has_its_value_and_nothing_of_it_stays(executor: Executor) -> None:
    quick = task(pow, timeout=60.0)
    assert [executor.submit(quick, x, 2).result() for x in range(5)] == [0, 1, 4, 9, 16]
    assert list(executor.map(quick, range(50), [2] * 50, chunksize=7)) == [x * x for x in range(50)]
    with pytest.raises(ZeroDivisionError):
        executor.submit(task(divmod, timeout=60.0), 1, 0).result()
    assert task(divmod, timeout=0.5)(7, 2) == (3, 1), "outside of a task"


@pytest.mark.usefixtures("three_nodes")
def test_items_of_a_map_have_each_their_own_time() -> None:
    def work(x: int) -> int:
        time.sleep(1000 if x == 13 else 0.02)
        return x

    def outer() -> list[int]:
        found = []
        results = futures.map(task(work, timeout=SHORT_S), range(20))
        with pytest.raises(TaskTimeoutError):
            found.extend(results)
        return found

    assert stolen(outer).result() == list(range(13))


@pytest.mark.usefixtures("three_nodes")
def test_a_part_of_a_task_has_its_own_time_and_the_task_goes_on() -> None:
    def outer() -> str:
        part = futures.submit(task(time.sleep, timeout=SHORT_S), 1000)
        with pytest.raises(TaskTimeoutError):
            part.result()
        return "went on"

    assert stolen(outer).result() == "went on"


def test_the_limit_of_an_executor_holds_for_every_call(tmp_path: Path) -> None:
    with Executor(2, timeout=1.0) as executor:
        late = [executor.submit(work, tmp_path / work.__name__) for work in (compute, sleep)]
        assert executor.submit(abs, -3).result() == 3
        assert all(is_late(each.exception()) for each in late)
        sooner = executor.submit(task(time.sleep, timeout=SHORT_S), 1000).exception()
        assert isinstance(sooner, TaskTimeoutError)
        assert sooner.timeout == SHORT_S
        inner = executor.submit(lambda: executor.submit(time.sleep, 1000).exception())
        assert is_late(inner.exception() or inner.result()), "whichever of the two was first"


def test_a_value_that_is_brought_all_the_same_counts(executor: Executor) -> None:
    def best_so_far() -> str:
        try:
            while True:
                time.sleep(0.01)
        except TaskCancelled:
            return "so far"

    assert executor.submit(task(best_so_far, timeout=SHORT_S)).result() == "so far"


def test_what_a_late_task_makes_of_the_interrupt_is_the_cause(executor: Executor) -> None:
    def translate() -> None:
        try:
            time.sleep(1000)
        finally:
            raise ValueError("on the way out")

    error = executor.submit(task(translate, timeout=SHORT_S)).exception()
    assert is_late(error)
    assert error is not None
    assert "on the way out" in str(error.__cause__)


def test_a_node_whose_late_task_does_not_end_is_replaced_and_the_rest_goes_on(tmp_path: Path) -> None:
    def stubborn(path: Path) -> None:
        with path.open("a") as file:
            file.write(f"{os.getpid()}\n")
        while True:
            try:
                while True:
                    time.sleep(0.01)
            except TaskCancelled:
                pass

    path = tmp_path / "starts"
    with Executor(2, retries=0) as executor:
        executor.submit(begin, tmp_path / "x").result()
        late = executor.submit(task(stubborn, timeout=SHORT_S), path)
        eventually(path.exists)
        others = [executor.submit(time.sleep, 0.05) for _ in range(40)]
        assert is_late(late.exception())
        assert [each.exception() for each in others] == [None] * 40
        eventually(lambda: int(path.read_text()) not in nodes_of())
        assert executor.submit(abs, -3).result() == 3
    assert path.read_text().count("\n") == 1, "it was started once"


@pytest.mark.parametrize("timeout", [0, -1.0, float("inf"), float("nan")])
def test_a_limit_that_is_none(timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout must be positive and finite"):
        task(abs, timeout=timeout)
    with pytest.raises(ValueError, match="timeout must be positive and finite"):
        Executor(1, timeout=timeout)


def test_wrong_types() -> None:
    with pytest.raises(TypeError, match="seconds"):
        task(abs, timeout="1")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="callable"):
        task(1, timeout=1.0)  # type: ignore[arg-type]


def test_a_limited_function_and_its_error_pickle() -> None:
    again = pickle.loads(pickle.dumps(task(divmod, timeout=2.5)))
    assert (again.func, again.timeout, repr(again)) == (divmod, 2.5, f"task({divmod!r}, timeout=2.5)")
    error = pickle.loads(pickle.dumps(TaskTimeoutError("late", 2.5)))
    assert (str(error), error.timeout) == ("late", 2.5)


@pytest.mark.parametrize("work", [compute, sleep])
def test_a_call_that_runs_is_cancelled(work: Callable[[Path], None], tmp_path: Path, executor: Executor) -> None:
    path = tmp_path / "trace"
    future = executor.submit(work, path)
    eventually(path.with_suffix(".begun").exists)
    assert not future.cancel(), "as in the standard library"
    assert future.cancel(running=True)  # type: ignore[call-arg]  # an extra of this executor's futures
    assert wait([future], timeout=0).done == {future}
    with pytest.raises(CancelledError):
        future.result()
    eventually(path.exists)
    assert not future.cancel(running=True)  # type: ignore[call-arg]
    assert executor.submit(abs, -1).result() == 1
