"""What is true of every executor, tried on the standard library's and on ours alike.

After the idea of mpi4py's tests of its executors (https://github.com/mpi4py/mpi4py): each test is run with the
thread pool and the process pool of the standard library too, so that what it demands is what programs rely on.
"""

from __future__ import annotations

import functools
import operator
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import (
    ALL_COMPLETED,
    FIRST_COMPLETED,
    FIRST_EXCEPTION,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    as_completed,
    wait,
)
from multiprocessing import get_context
from typing import Any

import pytest
from tests.conftest import eventually

import p2pscoop

MAKERS: dict[str, Callable[..., Executor]] = {
    "threads": ThreadPoolExecutor,
    "processes": functools.partial(ProcessPoolExecutor, mp_context=get_context("spawn")),
    "p2pscoop": p2pscoop.Executor,
}


@pytest.fixture(scope="module", params=MAKERS)
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    with MAKERS[request.param](2) as made:
        made.submit(int).result()
        yield made


@pytest.fixture(autouse=True)
def nothing_left_behind() -> None:
    """The executor of the module is left for the next test, and the resource tracker of the process pool."""


@pytest.fixture(params=MAKERS)
def make(request: pytest.FixtureRequest) -> Callable[..., Executor]:
    return MAKERS[request.param]


class Refusal(Exception):
    """Raised by tasks."""


def refuse(seconds: float = 0.0, *words: object) -> None:
    time.sleep(seconds)
    raise Refusal(*words)


def echo(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


def after(seconds: float, value: Any) -> Any:
    time.sleep(seconds)
    return value


class Account:
    def __init__(self, balance: int) -> None:
        self.balance = balance

    def paid(self, amount: int, *, fee: int = 0) -> int:
        return self.balance - amount - fee

    def __call__(self, factor: int) -> int:
        return self.balance * factor


@pytest.mark.parametrize(
    ("work", "args", "kwargs", "value"),
    [
        (echo, (), {}, ((), {})),
        (echo, (1,), {"self": 2, "fn": 3, "timeout": 4}, ((1,), {"self": 2, "fn": 3, "timeout": 4})),
        (Account(10).paid, (3,), {"fee": 1}, 6),
        (Account(10), (3,), {}, 30),
        (functools.partial(echo, 1), (2,), {"x": 3}, ((1, 2), {"x": 3})),
        (operator.itemgetter(1), ([7, 8],), {}, 8),
        ("a-b".split, ("-",), {}, ["a", "b"]),
        (dict, (), {"a": 1}, {"a": 1}),
    ],
)
def test_whatever_is_callable_may_be_submitted(
    executor: Executor, work: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], value: Any
) -> None:
    assert executor.submit(work, *args, **kwargs).result(30) == value


def test_what_is_not_callable_fails_in_the_task(executor: Executor) -> None:
    with pytest.raises(TypeError, match="not callable"):
        executor.submit(5).result(30)  # type: ignore[arg-type]


def test_a_future_that_returned(executor: Executor) -> None:
    future = executor.submit(after, 0.0, "value")
    assert future.result(30) == "value"
    assert (future.done(), future.running(), future.cancelled(), future.cancel()) == (True, False, False, False)
    assert future.exception() is None
    assert future.result(0) == "value"


def test_a_future_that_raised(executor: Executor) -> None:
    future = executor.submit(refuse, 0.0, "why", 7)
    error = future.exception(30)
    assert isinstance(error, Refusal)
    assert error.args == ("why", 7)
    for _ in range(2):
        with pytest.raises(Refusal) as info:
            future.result()
        assert info.value is error
    assert (future.done(), future.running(), future.cancelled(), future.cancel()) == (True, False, False, False)


def test_a_future_that_takes_its_time(executor: Executor) -> None:
    future = executor.submit(after, 0.6, 1)
    for ask in (future.result, future.exception):
        with pytest.raises(TimeoutError):
            ask(0)
        with pytest.raises(TimeoutError):
            ask(timeout=0.01)
    assert not future.done()
    eventually(future.done)
    assert future.result(0) == 1


def test_futures_that_are_cancelled(executor: Executor) -> None:
    many = [executor.submit(after, 0.05, x) for x in range(40)]
    cancelled = [each for each in reversed(many) if each.cancel()]
    assert cancelled
    for future in cancelled:
        assert (future.cancelled(), future.done(), future.running(), future.cancel()) == (True, True, False, True)
        with pytest.raises(CancelledError):
            future.result()
        with pytest.raises(CancelledError):
            future.exception()
    rest = [each for each in many if each not in cancelled]
    assert [each.result(30) for each in rest] == [many.index(each) for each in rest]


def test_callbacks_get_their_future_once_whatever_became_of_it(executor: Executor) -> None:
    seen: list[Future[Any]] = []
    lock = threading.Lock()

    def note(future: Future[Any]) -> None:
        assert future.done()
        with lock:
            seen.append(future)

    many: list[Future[Any]] = [executor.submit(after, 0.05, 1), executor.submit(refuse, 0.05)]
    many += [executor.submit(after, 0.05, x) for x in range(20)]
    for future in many:
        future.add_done_callback(note)
    many[-1].cancel()
    wait(many, 30)
    many[0].add_done_callback(note)
    eventually(lambda: len(seen) == len(many) + 1)
    assert set(seen) == set(many)


def test_callbacks_are_called_in_order_and_one_that_raises_stops_none(
    executor: Executor, caplog: pytest.LogCaptureFixture
) -> None:
    order: list[int] = []

    def fail(_: object) -> None:
        raise Refusal

    future = executor.submit(after, 0.2, 1)
    future.add_done_callback(lambda _: order.append(1))
    future.add_done_callback(fail)
    future.add_done_callback(lambda _: order.append(2))
    future.result(30)
    eventually(lambda: order == [1, 2])
    assert "Refusal" in caplog.text


def test_waiting_for_the_first(executor: Executor) -> None:
    slow, quick = executor.submit(after, 1.0, 1), executor.submit(after, 0.0, 2)
    done, not_done = wait([slow, quick], 30, FIRST_COMPLETED)
    assert (done, not_done) == ({quick}, {slow})
    assert wait([slow, quick], 30, ALL_COMPLETED).not_done == set()


def test_waiting_for_the_first_exception(executor: Executor) -> None:
    slow, failing = executor.submit(after, 1.0, 1), executor.submit(refuse, 0.05)
    assert wait([slow, failing], 30, FIRST_EXCEPTION) == ({failing}, {slow})
    assert wait([slow], 0.01).not_done == {slow}
    slow.result(30)


def test_as_they_complete(executor: Executor) -> None:
    many = [executor.submit(after, x, x) for x in (0.0, 0.6)]
    assert [each.result() for each in as_completed(many, 30)] == [0.0, 0.6]
    late = executor.submit(after, 0.5, 1)
    with pytest.raises(TimeoutError, match=r"1 \(of 1\) futures unfinished"):
        list(as_completed([late], 0.01))
    late.result(30)


@pytest.mark.parametrize("chunksize", [1, 3, 50])
def test_map(executor: Executor, chunksize: int) -> None:
    assert list(executor.map(pow, range(10), [2] * 12, chunksize=chunksize)) == [x * x for x in range(10)]
    assert list(executor.map(after, [], [], chunksize=chunksize)) == []
    results = executor.map(divmod, [1, 2, 3, 4], [1, 1, 0, 1], chunksize=chunksize)
    with pytest.raises(ZeroDivisionError):
        list(results)
    assert list(results) == []


def test_map_that_is_late(executor: Executor) -> None:
    results = executor.map(after, [0.0, 0.8], "ab", timeout=0.4)
    assert next(results) == "a"
    with pytest.raises(TimeoutError):
        next(results)


def test_map_calls_back_from_several_threads(executor: Executor) -> None:
    totals: list[int] = []

    def use() -> None:
        totals.append(sum(executor.map(abs, range(-50, 0))))

    threads = [threading.Thread(target=use) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert totals == [1275] * 3


def test_large_things_travel(executor: Executor) -> None:
    data = bytes(3_000_000)
    assert executor.submit(len, data).result(30) == len(data)
    assert executor.submit(bytes, 3_000_000).result(30) == data
    assert list(executor.map(len, [data] * 4)) == [len(data)] * 4


def test_after_shutdown(make: Callable[..., Executor]) -> None:
    with make(1) as executor:
        future = executor.submit(after, 0.2, 5)
    assert future.result(0) == 5
    for use in (lambda: executor.submit(int), lambda: executor.map(int, "1")):
        with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
            use()


def test_an_exception_out_of_the_block_waits_too(make: Callable[..., Executor]) -> None:
    with pytest.raises(Refusal), make(1) as executor:  # noqa: PT012
        future = executor.submit(after, 0.3, 5)
        raise Refusal
    assert future.result(0) == 5


_memory: list[int] = []


def remember(value: int) -> None:
    _memory.append(value)


def recall() -> list[int]:
    return _memory


def test_workers_are_initialized(make: Callable[..., Executor]) -> None:
    with make(1, initializer=remember, initargs=(42,)) as executor:
        assert executor.submit(recall).result(30)[-1] == 42
    _memory.clear()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [((0,), ValueError), ((-1,), ValueError), (("1",), TypeError), ((1.5,), TypeError)],
)
def test_bad_numbers(arguments: tuple[Any, ...], error: type[Exception]) -> None:
    with pytest.raises(error):
        p2pscoop.Executor(*arguments)


def test_bad_initializers(make: Callable[..., Executor]) -> None:
    with pytest.raises(TypeError, match="initializer must be a callable"):
        make(1, initializer="text")
