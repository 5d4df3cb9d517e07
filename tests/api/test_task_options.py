"""What `p2pscoop.task` says of single calls: how often they are started again, and what they are called."""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.api.test_migration import stolen

from p2pscoop import Executor, futures, task
from p2pscoop.errors import PoisonTaskError, TaskExitError

FAST = {"timeout": 5.0, "retries": 0, "name": "a name"}


@pytest.fixture
def executor() -> Iterator[Executor]:
    with Executor(2) as executor:
        yield executor


def kill_node(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_first(path: Path) -> str:
    """Kill the node, but not the second time."""
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return "again"
    return kill_node() or ""


def test_a_call_with_retries_of_its_own(executor: Executor, tmp_path: Path) -> None:
    once = executor.submit(task(kill_node, retries=0, name="the deadly one"))
    with pytest.raises(PoisonTaskError, match="1 node died while they had the deadly one: ") as caught:
        once.result()
    assert len(caught.value.nodes) == 1
    assert executor.submit(task(kill_first, retries=1), tmp_path / "there").result() == "again"


def test_a_call_may_bear_more_than_its_executor(tmp_path: Path) -> None:
    with Executor(1, retries=0) as executor:
        assert executor.submit(task(kill_first, retries=1), tmp_path / "there").result() == "again"
        with pytest.raises(PoisonTaskError):
            executor.submit(kill_node).result()


@pytest.mark.parametrize("chunksize", [1, 3])
def test_items_of_a_map_have_each_theirs(executor: Executor, chunksize: int) -> None:
    results = executor.map(task(kill_node, retries=0), range(3), chunksize=chunksize)
    with pytest.raises(PoisonTaskError, match="1 node died while they had kill_node"):
        next(results)


def test_parts_of_a_task_have_theirs_at_the_node_that_waits_for_them(executor: Executor) -> None:
    def whole() -> tuple[type[BaseException], str]:
        # Here it would take the node along that waits for it.
        error = stolen(task(kill_node, retries=0, name="a part")).exception()
        return type(error), str(error)

    kind, text = executor.submit(whole).result()
    assert kind is PoisonTaskError
    assert text.startswith("1 node died while they had a part")


def test_a_coroutine_has_the_options_of_its_function(with_nodes: Any) -> None:
    found = []

    async def work() -> None:
        # The function is not needed any more, and forgotten. What a thief is told, its frames do not know.
        home = future._scheduler.hooks
        found.append((home.deaths_max(future), home.name_of(future), repr(future)))

    with_nodes(1)
    future = futures.submit(task(work, retries=7, name="in parts"))
    future.result()
    assert found == [(8, "in parts", "<Future of in parts: running>")]


def test_errors_use_the_name(executor: Executor) -> None:
    with pytest.raises(TaskExitError, match=r"my task called sys\.exit\(3\)"):
        executor.submit(task(exit, name="my task"), 3).result()


def test_options_of_options(executor: Executor) -> None:
    first = task(divmod, **FAST)
    assert vars(task(first)) == vars(first)
    again = task(first, timeout=60.0, retries=3)
    assert (again.func, again.timeout, again.retries, again.name) == (divmod, 5.0, 3, "a name")
    assert task(task(divmod, timeout=60.0), timeout=5.0).timeout == 5.0
    there = pickle.loads(pickle.dumps(first))
    assert vars(there) == vars(first)
    assert repr(there) == f"task({divmod!r}, timeout=5.0, retries=0, name='a name')"
    assert (first(7, 2), executor.submit(first, 7, 2).result()) == ((3, 1), (3, 1))
    assert (first.__name__, task(divmod).__name__, task(divmod).__qualname__) == ("a name", "divmod", "divmod")


def test_a_journal_does_not_ask_for_the_options(tmp_path: Path, with_nodes: Any) -> None:
    with_nodes(1)
    path = tmp_path / "journal"
    assert list(futures.map(abs, [-1, -2], journal=path)) == [1, 2]
    assert list(futures.map(task(abs, **FAST), [-1, -2], journal=path)) == [1, 2]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"retries": -1}, ValueError, "retries must be 0 or more, not -1"),
        ({"retries": 1.0}, TypeError, "retries must be an integer, not float"),
        ({"name": 3}, TypeError, "name must be a text, not int"),
        ({"name": ""}, ValueError, "name must not be empty"),
        ({"timeout": True}, TypeError, "timeout must be a number of seconds, not bool"),
    ],
)
def test_wrong_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        task(abs, **options)
