"""`Executor` as its users know executors: the contract of PEP 3148, with real nodes."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import itertools
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError

import pytest
from tests.conftest import descendants, eventually

from p2pscoop import Executor, futures
from p2pscoop.errors import (
    ConfigurationError,
    InitializerError,
    NotPicklableError,
    RemoteTraceback,
    TaskExitError,
)


def square(x: int) -> int:
    return x * x


def fail(message: str) -> None:
    raise KeyError(message)


def pid_after(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


@pytest.fixture(scope="module")
def shared() -> Iterator[Executor]:
    """One executor for the tests that leave it as it was."""
    with Executor(2) as executor:
        executor.submit(square, 1).result()
        eventually(lambda: len(executor.statistics()) == 3)
        yield executor


@pytest.fixture(autouse=True)
def nothing_left_behind(shared: Executor) -> Iterator[None]:  # overrides the general one
    """As for all tests, but for the shared executor."""
    before = descendants()
    yield
    eventually(lambda: descendants() <= before)


def test_it_is_an_executor(shared: Executor) -> None:
    assert isinstance(shared, concurrent.futures.Executor)
    assert isinstance(shared.submit(square, 2), concurrent.futures.Future)


def test_submit(shared: Executor) -> None:
    future = shared.submit(square, 7)
    assert future.result(timeout=20) == 49
    assert future.exception() is None
    assert shared.submit(dict, fn=1, self=2).result() == {"fn": 1, "self": 2}


def test_the_function_is_positional_only(shared: Executor) -> None:
    with pytest.raises(TypeError):
        shared.submit(fn=square)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        shared.submit()  # type: ignore[call-arg]


def test_the_process_that_submits_runs_nothing(shared: Executor) -> None:
    pids: set[int] = set()
    eventually(lambda: len(pids) == 2 or pids.update(shared.map(pid_after, [0.05] * 8)))
    assert os.getpid() not in pids


def test_lambdas_and_closures(shared: Executor) -> None:
    offset = 3
    assert list(shared.map(lambda x: x + offset, range(3))) == [3, 4, 5]


def test_exceptions(shared: Executor) -> None:
    future = shared.submit(fail, "why")
    with pytest.raises(KeyError, match="why") as info:
        future.result()
    assert isinstance(info.value.__cause__, RemoteTraceback)
    assert "in fail" in str(info.value.__cause__)


def test_exit(shared: Executor) -> None:
    with pytest.raises(TaskExitError, match=r"sys\.exit"):
        shared.submit(os.sys.exit, 3).result()  # type: ignore[attr-defined]
    assert shared.submit(square, 2).result() == 4


def test_interrupts_are_named() -> None:
    # In an executor of its own: a bare name would be pickled as the built-in it is.
    def interrupt() -> None:
        raise KeyboardInterrupt

    with Executor(1) as executor, pytest.raises(Exception, match="raised KeyboardInterrupt"):
        executor.submit(interrupt).result()


def test_what_does_not_pickle_fails_alone(shared: Executor) -> None:
    def make() -> object:
        return threading.Lock()

    with pytest.raises(NotPicklableError, match=r"argument 0 \(_thread.lock\)"):
        shared.submit(square, threading.Lock()).result()
    with pytest.raises(NotPicklableError, match=r"result of .*make.*_thread.lock"):
        shared.submit(make).result()
    assert shared.submit(square, 2).result() == 4


def test_map(shared: Executor) -> None:
    assert list(shared.map(pow, range(5), itertools.count(1))) == [0, 1, 8, 81, 1024]
    assert list(itertools.islice(shared.map(square, itertools.count()), 500)) == [x * x for x in range(500)]
    with pytest.raises(ValueError, match="chunksize must be >= 1"):
        shared.map(square, [1], chunksize=0)


def test_map_raises_at_the_place(shared: Executor) -> None:
    def check(x: int) -> int:
        if x == 3:
            raise ValueError("three")
        return x

    def source() -> Iterator[int]:
        yield 1
        raise OSError("no more")

    results = shared.map(check, range(5))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)
    results = shared.map(square, source())
    assert next(results) == 1
    with pytest.raises(OSError, match="no more"):
        next(results)


def test_map_runs_out_of_time(shared: Executor) -> None:
    with pytest.raises(TimeoutError):
        list(shared.map(time.sleep, [0.0, 1.0], timeout=0.2))


def test_map_that_is_not_finished_cancels_the_rest(shared: Executor) -> None:
    results = shared.map(pid_after, [0.05] * 100)
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert shared.submit(square, 3).result(timeout=20) == 9


def test_cancel_what_is_queued(shared: Executor) -> None:
    many = [shared.submit(pid_after, 0.1) for _ in range(20)]
    cancelled = [each for each in many if each.cancel()]
    assert cancelled
    for each in cancelled:
        with pytest.raises(CancelledError):
            each.result()
    done, not_done = concurrent.futures.wait(many, timeout=30)
    assert not not_done
    assert len(done) == 20


def test_the_waits_of_the_standard_library(shared: Executor) -> None:
    many = [shared.submit(square, x) for x in range(10)]
    assert sorted(f.result() for f in concurrent.futures.as_completed(many)) == [x * x for x in range(10)]
    assert not concurrent.futures.wait(many).not_done


def test_callbacks(shared: Executor) -> None:
    seen = threading.Event()
    shared.submit(square, 2).add_done_callback(lambda _: seen.set())
    assert seen.wait(20)


def test_many_threads_may_submit(shared: Executor) -> None:
    results: list[int] = []

    def use() -> None:
        results.extend(shared.map(square, range(50)))

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == sorted([x * x for x in range(50)] * 4)


def test_in_an_asyncio_program(shared: Executor) -> None:
    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*(loop.run_in_executor(shared, square, x) for x in range(5)))

    assert asyncio.run(main()) == [0, 1, 4, 9, 16]


def test_tasks_spawn_tasks(shared: Executor) -> None:
    def fib(n: int) -> int:
        if n < 2:
            return n
        a, b = futures.submit(fib, n - 1), futures.submit(fib, n - 2)
        return a.result() + b.result()

    async def later(x: int) -> int:
        return await futures.submit(square, x)

    assert shared.submit(fib, 16).result() == 987
    assert shared.submit(later, 5).result() == 25


def test_arguments_and_results_are_let_go(shared: Executor) -> None:
    class Thing:
        pass

    argument, seen = Thing(), []
    reference = weakref.ref(argument)
    future = shared.submit(lambda thing: thing, argument)
    del argument
    seen.append(weakref.ref(future.result()))
    del future
    gc.collect()
    eventually(lambda: reference() is None and seen[0]() is None)


def test_statistics_name_the_nodes(shared: Executor) -> None:
    shared.submit(square, 1).result()
    first, *others = shared.statistics()
    assert (first.name, first.executed) == ("executor", 0)
    assert [each.name for each in others] == ["n1", "n2"]
    assert sum(each.executed for each in others) > 0


# --------------------------------------------------------------------------------------- construction


@pytest.mark.parametrize("count", [0, -1])
def test_max_workers_is_checked(count: int) -> None:
    with pytest.raises(ValueError, match="max_workers must be greater than 0"):
        Executor(count)


def test_the_default_is_configurable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P2PSCOOP_NODES", "3")
    assert Executor()._max_workers == 3
    monkeypatch.setenv("P2PSCOOP_NODES", "many")
    with pytest.raises(ConfigurationError, match="P2PSCOOP_NODES is 'many'"):
        Executor()


def test_nothing_starts_before_it_is_needed() -> None:
    before = descendants()
    with Executor(2):
        assert descendants() == before


def remember(value: str) -> None:
    os.environ["REMEMBERED"] = value


def test_the_initializer_runs_on_every_node_first() -> None:
    with Executor(2, initializer=remember, initargs=("yes",)) as executor:

        def read(_: int) -> tuple[str | None, int]:
            time.sleep(0.05)
            return os.environ.get("REMEMBERED"), os.getpid()

        executor.submit(square, 1).result()
        eventually(lambda: len(executor.statistics()) == 3)
        seen = set(executor.map(read, range(8)))
    assert {value for value, _ in seen} == {"yes"}
    assert len(seen) == 2


def test_an_initializer_that_raises_breaks_the_executor(capfd: pytest.CaptureFixture[str]) -> None:
    executor = Executor(2, initializer=fail, initargs=("no start",))
    future = executor.submit(square, 2)
    with pytest.raises(InitializerError, match="no start"):
        future.result(timeout=20)
    assert isinstance(future.exception(), BrokenExecutor)
    with pytest.raises(BrokenExecutor):
        executor.submit(square, 2)
    executor.shutdown()
    assert "no start" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("initializer", "initargs", "error"),
    [("text", (), TypeError), (remember, (threading.Lock(),), NotPicklableError)],
)
def test_initializers_are_checked(
    initializer: Callable[..., object], initargs: tuple[object, ...], error: type[Exception]
) -> None:
    with pytest.raises(error), Executor(1, initializer=initializer, initargs=initargs) as executor:
        executor.submit(square, 1)


# ------------------------------------------------------------------------------------------ shutdown


def test_after_shutdown() -> None:
    executor = Executor(1)
    executor.shutdown()
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.submit(square, 1)
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.map(square, [1])
    executor.shutdown()


def test_shutdown_waits_for_what_was_submitted() -> None:
    executor = Executor(2)
    many = [executor.submit(pid_after, 0.05) for _ in range(6)]
    executor.shutdown()
    assert all(each.done() for each in many)


def test_shutdown_need_not_wait() -> None:
    executor = Executor(1)
    many = [executor.submit(pid_after, 0.05) for _ in range(4)]
    executor.shutdown(wait=False)
    assert not all(each.done() for each in many)
    assert len({each.result(timeout=20) for each in many}) == 1


def test_shutdown_can_cancel_what_is_queued() -> None:
    executor = Executor(1)
    many = [executor.submit(pid_after, 0.2) for _ in range(20)]
    eventually(lambda: any(each.running() for each in many))
    executor.shutdown(cancel_futures=True)
    assert all(each.done() for each in many)
    assert sum(each.cancelled() for each in many) >= 15


def test_shutdown_from_a_callback() -> None:
    executor = Executor(1)
    finished = threading.Event()

    def callback(_: object) -> None:
        executor.shutdown()
        finished.set()

    executor.submit(square, 2).add_done_callback(callback)
    assert finished.wait(20)


def test_an_executor_that_is_forgotten_finishes_its_tasks() -> None:
    executor = Executor(1)
    future = executor.submit(pid_after, 0.1)
    del executor
    gc.collect()
    assert future.result(timeout=20)


def test_several_executors_at_once(shared: Executor) -> None:
    with Executor(1) as other:
        mine, others = shared.submit(os.getpid).result(), other.submit(os.getpid).result()
        assert mine != others


def test_a_program_that_does_not_shut_down(script: Callable[[str], object]) -> None:
    result = script(
        """
        import time
        from p2pscoop import Executor

        def slow(x):
            time.sleep(0.1)
            print("slow", x, flush=True)

        executor = Executor(1)
        futures = [executor.submit(slow, x) for x in range(3)]
        print("end of program", flush=True)
        """
    ).run()
    assert result.returncode == 0, result.stderr
    assert sorted(result.stdout.splitlines()) == ["[n1] slow 0", "[n1] slow 1", "[n1] slow 2", "end of program"]
    assert result.stderr == ""


def test_a_node_that_dies_is_replaced(capfd: pytest.CaptureFixture[str]) -> None:
    with Executor(1) as executor:
        first = executor.submit(os.getpid).result()
        os.kill(first, 9)
        second = executor.submit(os.getpid).result(timeout=30)
    assert first != second
    assert f"node n1 (pid {first}) was killed by SIGKILL" in capfd.readouterr().err


def test_a_dead_supervisor_breaks_the_executor() -> None:
    executor = Executor(1)
    executor.submit(square, 1).result()
    assert executor._engine is not None
    executor._engine._supervisor.kill()
    waiting = executor.submit(time.sleep, 60)
    with pytest.raises(BrokenExecutor, match="no node is left"):
        waiting.result(timeout=50)
    executor.shutdown()
