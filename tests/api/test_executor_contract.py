"""What programs expect of an executor beyond its methods: the letter of the standard library's."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import itertools
import os
import pickle
import random
import signal
import subprocess
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import Script, descendants, eventually

from p2pscoop import Executor
from p2pscoop.errors import NotPicklableError, RemoteError, RemoteTraceback


def square(x: int) -> int:
    return x * x


def pid_after(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


@pytest.fixture(scope="module")
def shared() -> Iterator[Executor]:
    with Executor(2) as executor:
        executor.submit(square, 1).result()
        eventually(lambda: len(executor.statistics()) == 3)
        yield executor


@pytest.fixture(autouse=True)
def nothing_left_behind(shared: Executor) -> Iterator[None]:  # overrides the general one
    before = descendants()
    yield
    eventually(lambda: descendants() <= before)


# -------------------------------------------------------------------------------------- construction


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ("2", TypeError, "'str' object cannot be interpreted as an integer"),
        (2.0, TypeError, "'float' object cannot be interpreted as an integer"),
        (0, ValueError, "max_workers must be greater than 0"),
        (10**9, ValueError, "max_workers must be <= "),
    ],
)
def test_max_workers_is_a_number_of_nodes(value: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Executor(value)


@pytest.mark.parametrize(("value", "error"), [("2", TypeError), (1.5, TypeError), (-1, ValueError)])
def test_retries_is_a_count(value: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        Executor(1, retries=value)


def test_capacity_is_what_programs_ask_for(shared: Executor) -> None:
    assert Executor(7)._max_workers == 7
    assert shared._max_workers == 2
    assert shared._broken is False


def test_numbers_of_other_libraries_count() -> None:
    numpy = pytest.importorskip("numpy")
    assert Executor(numpy.int64(3))._max_workers == 3


# ---------------------------------------------------------------------------------------------- map


def test_map_of_a_list_is_submitted_whole_though_nobody_looks(tmp_path: Path) -> None:
    def leave(index: int) -> None:
        (tmp_path / str(index)).touch()

    with Executor(1) as executor:
        executor.map(leave, range(300))
    assert len(list(tmp_path.iterdir())) == 300


def test_map_of_an_iterator_draws_a_bounded_number_ahead(shared: Executor) -> None:
    drawn: list[int] = []

    def source() -> Iterator[int]:
        for index in itertools.count():
            drawn.append(index)
            yield index

    results = shared.map(square, source())
    assert [next(results) for _ in range(3)] == [0, 1, 4]
    assert len(drawn) < 1000
    results.close()
    # One iterable that ends is enough to know that all end.
    assert list(shared.map(pow, itertools.count(), [2] * 200)) == [x * x for x in range(200)]


@pytest.mark.parametrize("buffersize", [1, 3, 1000])
def test_buffersize_bounds_what_is_drawn(shared: Executor, buffersize: int) -> None:
    drawn: list[int] = []

    def source() -> Iterator[int]:
        for index in range(50):
            drawn.append(index)
            yield index

    results = shared.map(square, source(), buffersize=buffersize)
    assert len(drawn) == min(50, buffersize)
    for index in range(50):
        assert next(results) == index * index
        assert len(drawn) <= min(50, index + 1 + buffersize)
    assert list(results) == []


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"buffersize": 0}, ValueError, "buffersize must be None or > 0"),
        ({"buffersize": "1"}, TypeError, "buffersize must be an integer or None"),
        ({"chunksize": 0}, ValueError, "chunksize must be >= 1"),
        ({"chunksize": 1.5}, TypeError, "chunksize must be an integer"),
    ],
)
def test_sizes_are_checked_at_the_call(
    shared: Executor, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        shared.map(square, [1], **arguments)
    with pytest.raises(TypeError):
        shared.map(square, 5)  # type: ignore[arg-type]


@pytest.mark.parametrize("chunksize", [1, 2, 7, 100])
def test_chunks_change_nothing_but_the_way(shared: Executor, chunksize: int) -> None:
    def check(x: int) -> int:
        if x == 8:
            raise LookupError("eight")
        return x

    async def later(x: int) -> int:
        return -x

    def source() -> Iterator[int]:
        yield from range(5)
        raise OSError("no more")

    assert list(shared.map(pow, range(20), itertools.repeat(2), chunksize=chunksize)) == [x * x for x in range(20)]
    assert list(shared.map(later, range(10), chunksize=chunksize)) == [-x for x in range(10)]
    results = shared.map(check, range(20), chunksize=chunksize)
    assert [next(results) for _ in range(8)] == list(range(8))
    with pytest.raises(LookupError, match="eight") as info:
        next(results)
    assert isinstance(info.value.__cause__, RemoteTraceback)
    results = shared.map(square, source(), chunksize=chunksize)
    assert [next(results) for _ in range(5)] == [0, 1, 4, 9, 16]
    with pytest.raises(OSError, match="no more"):
        next(results)


def test_map_goes_through_submit(monkeypatch: pytest.MonkeyPatch, shared: Executor) -> None:
    seen: list[Any] = []
    original = shared.submit

    def submit(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        seen.append(args)
        return original(fn, *args, **kwargs)

    monkeypatch.setattr(shared, "submit", submit)
    assert list(shared.map(square, [1, 2, 3])) == [1, 4, 9]
    assert seen == [(1,), (2,), (3,)]


def test_starmap(shared: Executor) -> None:
    pairs = [(2, 5), (3, 2), (10, 3)]
    assert list(shared.starmap(pow, pairs)) == [32, 9, 1000]
    assert list(shared.starmap(pow, iter(pairs), chunksize=2)) == [32, 9, 1000]
    assert list(shared.starmap(dict, [(), ()], chunksize=2)) == [{}, {}]
    with pytest.raises(TypeError):
        list(shared.starmap(pow, [1]))  # type: ignore[list-item]


def wait_file(path: str) -> str:
    """How long a call takes, the test decides. Gives up, so as not to outlive a failed test by much."""
    deadline = time.monotonic() + 30
    while not os.path.exists(path) and time.monotonic() < deadline:
        time.sleep(0.01)
    return path


def test_map_unordered(shared: Executor, tmp_path: Path) -> None:
    late = tmp_path / "late"
    paths = [str(late), *[str(tmp_path)] * 3]
    results = shared.map_unordered(wait_file, paths)
    assert [next(results) for _ in range(3)] == paths[1:]
    late.touch()
    assert list(results) == [str(late)]
    assert sorted(shared.map_unordered(square, range(300))) == [x * x for x in range(300)]
    assert len(list(itertools.islice(shared.map_unordered(square, itertools.count()), 300))) == 300
    with pytest.raises(TimeoutError):
        list(shared.map_unordered(time.sleep, [1.0], timeout=0.1))


def test_a_long_call_does_not_hold_up_those_that_came_with_it(shared: Executor, tmp_path: Path) -> None:
    for round_ in range(3):
        # After many that took no time, several are given to a node at once.
        list(shared.map(square, range(300)))
        late = tmp_path / str(round_)
        long, *others = [shared.submit(wait_file, str(path)) for path in (late, *[tmp_path] * 3)]
        concurrent.futures.wait(others, timeout=30)
        assert all(other.done() for other in others)
        assert not long.done()
        late.touch()
        long.result(timeout=30)


def test_a_map_that_outlives_the_executor_says_so_at_its_place() -> None:
    with Executor(1) as executor:
        results = executor.map(square, itertools.count(), buffersize=2)
        assert next(results) == 0
    assert next(results) == 1
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        next(results)
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.map(square, [1])


# ------------------------------------------------------------------------------------------ shutdown


@pytest.mark.parametrize("wait", [True, False])
@pytest.mark.parametrize("cancel", [True, False])
def test_shutdown_in_every_state(wait: bool, cancel: bool) -> None:
    unused = Executor(1)
    idle = Executor(1)
    idle.submit(square, 1).result()
    busy = Executor(1)
    many = [busy.submit(pid_after, 0.01) for _ in range(10)]
    for executor in (unused, idle, busy):
        executor.shutdown(wait=wait, cancel_futures=cancel)
        executor.shutdown()
        executor.shutdown(wait=False, cancel_futures=True)
        with pytest.raises(RuntimeError, match="after shutdown"):
            executor.submit(square, 1)
    assert all(each.done() for each in many)


def test_shutdown_of_a_broken_executor(caplog: pytest.LogCaptureFixture) -> None:
    def refuse() -> None:
        raise ValueError("no start")

    with Executor(2, initializer=refuse) as executor:
        with pytest.raises(BrokenExecutor, match="no start"):
            executor.submit(square, 1).result(30)
        assert "ValueError: no start" in caplog.text
        assert "no start" in str(executor._broken)
        errors = []
        for _ in range(2):
            with pytest.raises(BrokenExecutor) as info:
                executor.submit(square, 1)
            errors.append(info.value)
        assert errors[0] is not errors[1]


def test_shutdown_from_many_threads_at_once() -> None:
    executor = Executor(1)
    future = executor.submit(pid_after, 0.1)
    threads = [threading.Thread(target=executor.shutdown) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert future.done()


def test_an_executor_dies_with_what_holds_it() -> None:
    class Owner:
        def __init__(self) -> None:
            self.executor = Executor(1)
            self.executor.submit(square, 1).result()

        def __del__(self) -> None:
            self.executor.shutdown(wait=True)

    owner = Owner()
    owner.myself = owner  # type: ignore[attr-defined]
    reference = weakref.ref(owner)
    del owner
    gc.collect()
    assert reference() is None


def test_submitting_at_exit(script: Callable[[str], Script]) -> None:
    result = script(
        """
        import atexit

        def late():
            for each in (executor, Executor(1)):
                try:
                    each.submit(int)
                except RuntimeError as error:
                    print(error)

        atexit.register(late)
        from p2pscoop import Executor
        executor = Executor(1)
        executor.submit(int).result()
        unused = Executor(1)
        """
    ).run()
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.count("cannot schedule new futures after ") == 2


def test_an_interrupted_wait_leaves_the_executor_usable(script: Callable[[str], Script]) -> None:
    program = script(
        """
        import time
        from p2pscoop import Executor

        with Executor(1) as executor:
            executor.submit(int).result()
            try:
                print("waiting", flush=True)
                list(executor.map(time.sleep, [0.2] * 1000))
            except KeyboardInterrupt:
                print("interrupted", executor.submit(abs, -3).result())
        """
    )
    process = subprocess.Popen(program.command(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "interrupted 3\n", "")


# ------------------------------------------------------------------------------- what users may hold


def test_a_callback_that_exits_does_no_harm(shared: Executor, caplog: pytest.LogCaptureFixture) -> None:
    def leave(_: object) -> None:
        raise SystemExit(1)

    shared.submit(pid_after, 0.1).add_done_callback(leave)
    eventually(lambda: "a callback of" in caplog.text)
    assert shared.submit(square, 3).result(30) == 9


@dataclass(frozen=True)
class Frozen(Exception):
    code: int

    def __reduce__(self) -> Any:
        return Frozen, (self.code,)


class TakesTwo(Exception):
    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


def test_exceptions_that_are_hard_to_carry(shared: Executor) -> None:
    def raise_frozen() -> None:
        raise Frozen(7)

    def raise_two() -> None:
        raise TakesTwo(1, 2)

    frozen = shared.submit(raise_frozen).exception(30)
    assert isinstance(frozen, Frozen)
    assert frozen.code == 7
    assert isinstance(frozen.__cause__, RemoteTraceback)
    remote = shared.submit(raise_two).exception(30)
    assert isinstance(remote, RemoteError)
    assert remote.type_name.endswith("TakesTwo")
    assert remote.repr_text == "TakesTwo('1 and 2')"
    assert "in raise_two" in remote.traceback_text
    again = pickle.loads(pickle.dumps(remote))
    assert (str(again), again.repr_text) == (str(remote), remote.repr_text)


def test_arguments_are_not_looked_into(shared: Executor) -> None:
    class Opaque:
        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            raise RuntimeError("looked into")

        def __iter__(self) -> Any:
            raise RuntimeError("looked into")

        __len__ = __bool__ = __eq__ = __hash__ = __iter__  # type: ignore[assignment]

    assert shared.submit(lambda x: type(x).__name__, Opaque()).result(30) == "Opaque"


def test_the_callers_generators_are_left_alone(shared: Executor) -> None:
    numpy = pytest.importorskip("numpy")
    random.seed(5)
    numpy.random.seed(5)
    before = random.getstate(), numpy.random.get_state()[1].tolist()
    with Executor(1) as executor:
        list(executor.map(square, range(20)))
    list(shared.map(square, range(20)))
    assert (random.getstate(), numpy.random.get_state()[1].tolist()) == before


def test_what_is_redefined_is_used(shared: Executor) -> None:
    space: dict[str, Any] = {"__name__": "__main__"}
    for answer in (1, 2):
        exec(f"def f(): return {answer}", space)
        assert shared.submit(space["f"]).result(30) == answer


def test_an_executor_is_nothing_to_other_picklers() -> None:
    executor = Executor(1)
    assert pickle.loads(pickle.dumps(executor)) is executor
    data = pickle.dumps(executor)
    del executor
    with pytest.raises(pickle.UnpicklingError, match="for the tasks of p2pscoop only"):
        pickle.loads(data)


# ------------------------------------------------------------------------------------------- asyncio


def test_futures_may_be_awaited(shared: Executor) -> None:
    async def main() -> list[Any]:
        first = await shared.submit(square, 3)  # type: ignore[misc]
        rest = await asyncio.gather(*(asyncio.wrap_future(shared.submit(square, x)) for x in range(3)))
        with pytest.raises(NotPicklableError):
            await shared.submit(square, threading.Lock())  # type: ignore[misc, arg-type]
        return [first, *rest]

    assert asyncio.run(main()) == [9, 0, 1, 4]


def test_cancellation_goes_both_ways() -> None:
    async def main(executor: Executor) -> None:
        loop = asyncio.get_running_loop()
        blocker = executor.submit(pid_after, 0.5)
        await asyncio.sleep(0)
        from_here = executor.submit(pid_after, 0.5)
        waiting = asyncio.ensure_future(asyncio.wrap_future(from_here))
        from_there = executor.submit(pid_after, 0.5)
        other = asyncio.ensure_future(asyncio.wrap_future(from_there))
        await asyncio.sleep(0)
        waiting.cancel()
        assert from_there.cancel()
        for each in (waiting, other):
            with pytest.raises(asyncio.CancelledError):
                await each
        assert from_here.cancelled()
        # What a node has taken cannot be cancelled, but may be waited for no longer.
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(blocker)), 0.01)
        assert await loop.run_in_executor(executor, square, 4) == 16
        assert blocker.result() > 0

    with Executor(1) as executor:
        asyncio.run(main(executor))


def test_as_the_default_executor_of_a_loop(shared: Executor) -> None:
    async def main() -> int:
        return await asyncio.get_running_loop().run_in_executor(shared, square, 5)

    assert asyncio.run(main()) == 25
    assert not concurrent.futures.wait([shared.submit(square, 1)], timeout=30).not_done
