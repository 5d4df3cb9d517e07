"""What goes wrong at each station of a task's way, and what its caller is told.

The stations are those of loky's tests (Moreau et al., https://github.com/joblib/loky): while the arguments are
pickled, while they are unpickled, while the task runs, while the result is pickled, while it is unpickled. One
task goes wrong, the others must not notice.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor

import pytest

from p2pscoop import Executor
from p2pscoop.errors import (
    NotPicklableError,
    PoisonTaskError,
    RemoteError,
    TaskError,
    TaskExitError,
    TaskInterruptError,
)


@pytest.fixture(scope="module")
def executor() -> Iterator[Executor]:
    with Executor(1) as made:
        assert made.submit(abs, -1).result() == 1
        yield made


@pytest.fixture(autouse=True)
def nothing_left_behind() -> None:
    """The executor of the module is left for the next test."""


def raise_value_error() -> object:
    raise ValueError("crash")


def exit_with_status() -> object:
    sys.exit(4)


def interrupt() -> object:
    raise KeyboardInterrupt


def raise_unpicklable() -> object:
    class LocalError(Exception):
        def __init__(self, a: int, b: int) -> None:
            super().__init__(a)

    raise LocalError(1, 2)


WAYS = [raise_value_error, exit_with_status, interrupt, raise_unpicklable]


class CrashAtPickle:
    def __init__(self, way: Callable[[], object]) -> None:
        self.way = way

    def __reduce__(self) -> object:
        self.way()
        return str, ()


class CrashAtUnpickle:
    def __init__(self, way: Callable[[], object]) -> None:
        self.way = way

    def __reduce__(self) -> object:
        return self.way, ()


def identity(x: object) -> object:
    return x


def make(kind: type, way: Callable[[], object]) -> object:
    return kind(way)


def and_the_others_go_on(executor: Executor) -> None:
    assert list(executor.map(abs, range(-5, 0))) == [5, 4, 3, 2, 1]


@pytest.mark.parametrize("way", WAYS)
def test_while_the_arguments_are_pickled(executor: Executor, way: Callable[[], object]) -> None:
    with pytest.raises(NotPicklableError, match=r"argument 0 \(.*CrashAtPickle\)"):
        executor.submit(identity, CrashAtPickle(way)).result(timeout=30)
    and_the_others_go_on(executor)


@pytest.mark.parametrize("way", WAYS)
def test_while_the_arguments_are_unpickled(executor: Executor, way: Callable[[], object]) -> None:
    with pytest.raises(TaskError, match="cannot be unpickled on node n1"):
        executor.submit(identity, CrashAtUnpickle(way)).result(timeout=30)
    and_the_others_go_on(executor)


@pytest.mark.parametrize(
    ("way", "error"),
    list(zip(WAYS, [ValueError, TaskExitError, TaskInterruptError, RemoteError], strict=True)),
)
def test_while_the_task_runs(executor: Executor, way: Callable[[], object], error: type[BaseException]) -> None:
    with pytest.raises(error):
        executor.submit(way).result(timeout=30)
    and_the_others_go_on(executor)


@pytest.mark.parametrize("way", WAYS)
def test_while_the_result_is_pickled(executor: Executor, way: Callable[[], object]) -> None:
    with pytest.raises(
        NotPicklableError, match=r"the result of make cannot be pickled: result \(.*CrashAtPickle\)"
    ):
        executor.submit(make, CrashAtPickle, way).result(timeout=30)
    and_the_others_go_on(executor)


@pytest.mark.parametrize("way", WAYS)
def test_while_the_result_is_unpickled(executor: Executor, way: Callable[[], object]) -> None:
    with pytest.raises(RemoteError, match="the result does not unpickle here"):
        executor.submit(make, CrashAtUnpickle, way).result(timeout=30)
    and_the_others_go_on(executor)


@pytest.mark.parametrize("way", WAYS)
def test_while_the_function_is_pickled(executor: Executor, way: Callable[[], object]) -> None:
    trap = CrashAtPickle(way)
    with pytest.raises(NotPicklableError, match="closure variable 'trap'"):
        executor.submit(lambda: trap).result(timeout=30)
    and_the_others_go_on(executor)


# ------------------------------------------------------------ what takes the node along, wherever it happens


def end_the_process() -> object:
    os._exit(3)


def kill_the_process() -> object:
    os.kill(os.getpid(), signal.SIGKILL)
    return None


def segfault() -> object:
    import faulthandler

    faulthandler.disable()
    faulthandler._sigsegv()  # type: ignore[attr-defined]
    return None


DEADLY = [end_the_process, kill_the_process, segfault]


@pytest.mark.parametrize("way", DEADLY)
@pytest.mark.parametrize("station", ["arguments", "task", "result"])
def test_a_task_that_takes_its_node_along(station: str, way: Callable[[], object]) -> None:
    calls = {
        "arguments": (identity, CrashAtUnpickle(way)),
        "task": (way,),
        "result": (make, CrashAtPickle, way),
    }
    with Executor(2) as executor:
        before = [executor.submit(abs, -each) for each in range(5)]
        future = executor.submit(*calls[station])
        after = [executor.submit(abs, -each) for each in range(5)]
        with pytest.raises(PoisonTaskError, match="nodes died while they had"):
            future.result(timeout=60)
        assert isinstance(future.exception(), BrokenExecutor)
        assert [each.result(timeout=60) for each in before + after] == [0, 1, 2, 3, 4] * 2
        and_the_others_go_on(executor)


def test_shutdown_after_a_task_that_does_not_pickle() -> None:
    for wait in (True, False):
        executor = Executor(1)
        executor.submit(abs, 1).result(timeout=30)
        future = executor.submit(identity, CrashAtPickle(raise_value_error))
        executor.shutdown(wait=wait)
        with pytest.raises(NotPicklableError):
            future.result(timeout=30)
