"""`futures` from the main program and inside tasks, on one node and on two."""

from __future__ import annotations

import functools
import itertools
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError

import pytest

from p2pscoop import futures
from p2pscoop.errors import (
    NotPicklableError,
    RemoteError,
    RemoteTraceback,
    TaskExitError,
    WrongThreadError,
)

pytestmark = pytest.mark.usefixtures("nodes")


def square(x: int) -> int:
    return x * x


def fib(n: int) -> int:
    if n < 2:
        return n
    a, b = futures.submit(fib, n - 1), futures.submit(fib, n - 2)
    return a.result() + b.result()


def busy(seconds: float) -> int:
    """Compute for a while: long enough that a thief gets its share."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass
    return os.getpid()


def fail(message: str) -> None:
    raise KeyError(message)


# ----------------------------------------------------------------------------------------- submit


def test_a_task_and_its_value() -> None:
    future = futures.submit(square, 7)
    assert future.result() == 49
    assert future.done()
    assert not future.running()
    assert not future.cancelled()
    assert future.exception() is None
    assert future.result() == 49


def test_tasks_spawn_tasks() -> None:
    assert futures.submit(fib, 18).result() == 2584


def test_keyword_arguments_reach_the_function() -> None:
    def show(*args: object, **kwargs: object) -> object:
        return args, kwargs

    assert futures.submit(show, 1, self=2, fn=3).result() == ((1,), {"self": 2, "fn": 3})


@pytest.mark.parametrize(
    "work",
    [
        square,
        lambda x: x * x,
        functools.partial(pow, exp=2),
        (7).__mul__,
        type("C", (), {"__call__": lambda s, x: 49})(),
    ],
    ids=["function", "lambda", "partial", "bound method", "callable object"],
)
def test_anything_callable(work: Callable[[int], int]) -> None:
    assert futures.submit(work, 7).result() == 49


def test_closures_see_what_they_closed_over() -> None:
    offset = 10
    assert list(futures.map(lambda x: x + offset, range(5))) == [10, 11, 12, 13, 14]


def test_results_in_any_order() -> None:
    many = [futures.submit(square, x) for x in range(50)]
    assert [each.result() for each in reversed(many)] == [x * x for x in reversed(range(50))]
    assert [each.result() for each in many] == [x * x for x in range(50)]


def test_a_future_may_be_joined_by_another_task_of_the_node() -> None:
    shared = futures.submit(square, 3)

    def later() -> int:
        return shared.result() + 1

    # It cannot travel (a future does not pickle), so it runs here.
    assert futures.submit(later).result() == 10


# -------------------------------------------------------------------------------------- exceptions


def test_an_exception_reaches_the_caller_as_itself() -> None:
    future = futures.submit(fail, "where?")
    with pytest.raises(KeyError, match=r"where\?"):
        future.result()
    error = future.exception()
    assert isinstance(error, KeyError)
    assert future.done()
    assert not future.cancelled()


def test_an_exception_goes_up_through_nested_tasks() -> None:
    def outer(depth: int) -> int:
        if depth == 0:
            raise LookupError("at the bottom")
        return futures.submit(outer, depth - 1).result() + 1

    with pytest.raises(LookupError, match="at the bottom"):
        futures.submit(outer, 20).result()


def test_exit_in_a_task_ends_neither_node_nor_program() -> None:
    def leave() -> None:
        raise SystemExit(3)

    with pytest.raises(TaskExitError, match=r"leave called sys\.exit\(3\)") as info:
        futures.submit(leave).result()
    assert info.value.code == 3
    assert futures.submit(square, 2).result() == 4


def test_an_interrupt_inside_a_task_interrupts_whoever_waits() -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        futures.submit(interrupt).result()
    assert futures.submit(square, 2).result() == 4


# ----------------------------------------------------------------------------------------- cancel


def test_cancel_what_has_not_started() -> None:
    ran = []
    future = futures.submit(ran.append, 1)
    while not future.cancel():
        # The other node was faster.
        ran.clear()
        future = futures.submit(ran.append, 1)
    assert future.cancelled()
    assert future.done()
    with pytest.raises(CancelledError):
        future.result()
    with pytest.raises(CancelledError):
        future.exception()
    assert futures.submit(square, 2).result() == 4
    assert not ran


def test_cancel_what_has_ended() -> None:
    future = futures.submit(square, 2)
    future.result()
    assert not future.cancel()
    assert not future.cancelled()


# ---------------------------------------------------------------------------------------- callbacks


def test_callbacks_are_called_once_each_in_order(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[object] = []
    future = futures.submit(square, 5)
    future.add_done_callback(lambda f: seen.append(f.result()))
    future.add_done_callback(lambda _: 1 / 0)
    future.add_done_callback(lambda f: seen.append(f))
    future.result()
    assert seen == [25, future]
    future.add_done_callback(lambda _: seen.append("late"))
    assert seen == [25, future, "late"]
    assert "ZeroDivisionError" in caplog.text


# -------------------------------------------------------------------------------------------- wait


def test_wait_for_all() -> None:
    many = [futures.submit(square, x) for x in range(20)]
    done, not_done = futures.wait(many)
    assert done == set(many)
    assert not not_done


def test_wait_for_the_first() -> None:
    many = [futures.submit(square, x) for x in range(20)]
    done, not_done = futures.wait(many, return_when=futures.FIRST_COMPLETED)
    assert done
    assert done | not_done == set(many)


def test_wait_for_the_first_exception() -> None:
    many = [futures.submit(fail, "now"), *(futures.submit(square, x) for x in range(5))]
    done, _ = futures.wait(many, return_when=futures.FIRST_EXCEPTION)
    assert many[0] in done or len(done) == len(many)
    done, not_done = futures.wait(many[1:], return_when=futures.FIRST_EXCEPTION)
    assert (len(done), len(not_done)) == (5, 0)


def test_wait_without_time() -> None:
    many = [futures.submit(busy, 0.01) for _ in range(3)]
    done, not_done = futures.wait(many, timeout=0)
    assert done | not_done == set(many)
    assert futures.wait(many, timeout=-1).done == set(many)
    assert futures.wait(many, timeout=5).done == set(many)


def test_wait_complains() -> None:
    with pytest.raises(ValueError, match="Invalid return condition"):
        futures.wait([], return_when="SOME")
    with pytest.raises(TypeError, match="not a future of p2pscoop"):
        futures.wait([object()])  # type: ignore[list-item]


def test_wait_for_nothing() -> None:
    assert futures.wait([]) == (set(), set())
    assert list(futures.as_completed([])) == []


def test_as_completed_gives_each_once() -> None:
    many = [futures.submit(square, x) for x in range(30)]
    many[3].result()
    got = list(futures.as_completed(many + many[:5]))
    assert sorted(each.result() for each in got) == [x * x for x in range(30)]
    assert got[0] is many[3]


def test_as_completed_runs_out_of_time() -> None:
    slow = futures.submit(busy, 0.3)
    with pytest.raises(TimeoutError):
        list(futures.as_completed([slow, futures.submit(busy, 0.3)], timeout=0.01))
    assert slow.result()


def test_result_without_time() -> None:
    slow = futures.submit(busy, 0.05)
    with pytest.raises(TimeoutError):
        slow.result(timeout=0)
    assert slow.result(timeout=20)


# ---------------------------------------------------------------------------------------------- map


def test_map_keeps_the_order() -> None:
    assert list(futures.map(square, range(1000))) == [x * x for x in range(1000)]


def test_map_takes_several_iterables_of_any_kind() -> None:
    def add(a: int, b: int, c: int) -> int:
        return a + b + c

    generator = (x for x in range(100))
    assert list(futures.map(add, generator, itertools.count(10), [1, 2, 3])) == [11, 14, 17]


def test_map_is_lazy_and_may_be_endless() -> None:
    drawn = []

    def source() -> itertools.count[int]:
        for x in itertools.count():
            drawn.append(x)
            yield x

    results = futures.map(square, source())
    assert list(itertools.islice(results, 10_000)) == [x * x for x in range(10_000)]
    results.close()
    assert len(drawn) < 10_000 + 5000


def test_map_over_a_slow_source_spreads_the_work_all_the_same() -> None:
    def slowly() -> object:
        for x in range(20):
            time.sleep(0.002)
            yield x

    assert list(futures.map(square, slowly())) == [x * x for x in range(20)]


def test_map_raises_at_the_place() -> None:
    def check(x: int) -> int:
        if x == 3:
            raise ValueError("three")
        return x

    results = futures.map(check, range(10))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)
    with pytest.raises(StopIteration):
        next(results)


def test_map_over_an_iterator_that_raises() -> None:
    def source() -> object:
        yield from range(3)
        raise OSError("the disk is gone")

    results = futures.map(square, source())
    assert [next(results) for _ in range(3)] == [0, 1, 4]
    with pytest.raises(OSError, match="the disk is gone"):
        next(results)


def test_map_complains() -> None:
    with pytest.raises(TypeError, match="at least one iterable"):
        futures.map(square)
    with pytest.raises(ValueError, match="chunksize must be >= 1"):
        futures.map(square, [1], chunksize=0)
    with pytest.raises(TypeError):
        futures.map(square, 7)  # type: ignore[arg-type]


def test_map_runs_out_of_time() -> None:
    with pytest.raises(TimeoutError):
        list(futures.map(busy, [0.05] * 100, timeout=0.2))


def test_map_inside_tasks() -> None:
    def row(y: int) -> int:
        return sum(futures.map(lambda x: x * y, range(20)))

    assert list(futures.map(row, range(20))) == [190 * y for y in range(20)]


def test_two_maps_at_once() -> None:
    first, second = futures.map(square, range(100)), futures.map(str, range(100))
    assert list(zip(first, second, strict=True)) == [(x * x, str(x)) for x in range(100)]


def test_a_map_that_nobody_finishes() -> None:
    results = futures.map(square, range(1000))
    next(results)
    del results
    assert futures.submit(square, 4).result() == 16


def test_map_as_completed_gives_each_once() -> None:
    assert sorted(futures.map_as_completed(square, range(500))) == sorted(x * x for x in range(500))


def test_map_as_completed_raises() -> None:
    with pytest.raises(KeyError):
        list(futures.map_as_completed(fail, ["a", "b"]))


# --------------------------------------------------------------------------------------- odds and ends


def test_a_future_does_not_pickle() -> None:
    import pickle

    with pytest.raises(TypeError, match="only p2pscoop can pickle a future"):
        pickle.dumps(futures.submit(square, 1))


def test_other_threads_are_told_where_to_go() -> None:
    waiting = futures.submit(square, 6)
    errors = []

    def elsewhere() -> None:
        for action in (lambda: futures.submit(square, 1), waiting.result, lambda: futures.wait([waiting])):
            try:
                action()
            except WrongThreadError as error:
                errors.append(str(error))

    thread = threading.Thread(target=elsewhere, name="elsewhere")
    thread.start()
    thread.join()
    assert len(errors) == 3
    assert all("'elsewhere'" in error and "p2pscoop.Executor" in error for error in errors)
    assert waiting.result() == 36


def test_a_finished_future_may_be_read_by_other_threads() -> None:
    future = futures.submit(square, 6)
    future.result()
    seen = []
    thread = threading.Thread(target=lambda: seen.append((future.result(), future.done(), future.exception())))
    thread.start()
    thread.join()
    assert seen == [(36, True, None)]


def test_the_state_shows_in_the_representation() -> None:
    future = futures.submit(square, 6)
    assert "square" in repr(future)
    future.result()
    assert "done" in repr(future)


# What happens to a task elsewhere needs an elsewhere.


@pytest.fixture
def elsewhere(nodes: int) -> Callable[..., object]:
    """Run a function in a task on another node, and return its future."""
    if nodes == 1:
        pytest.skip("one node has no other")

    def run(work: Callable[..., object], *args: object) -> futures.Future[object]:
        home = os.getpid()

        def there(*args: object) -> object:
            if os.getpid() == home:
                raise RuntimeError("this was to run on another node")
            return work(*args)

        future = futures.submit(there, *args)
        # Leave the task in the deque until the other node has taken it.
        deadline = time.monotonic() + 20
        while future._state == 0 and time.monotonic() < deadline:
            time.sleep(0.001)
        return future

    return run


def test_a_stolen_task(elsewhere: Callable[..., futures.Future[int]]) -> None:
    assert elsewhere(os.getpid).result() != os.getpid()


def test_an_exception_from_elsewhere_has_the_traceback_there(
    elsewhere: Callable[..., futures.Future[object]],
) -> None:
    with pytest.raises(KeyError, match="far away") as info:
        elsewhere(fail, "far away").result()
    cause = info.value.__cause__
    assert isinstance(cause, RemoteTraceback)
    assert "in fail" in str(cause)
    assert "on node n1" in str(cause)


class Twice(Exception):
    """Does not survive pickling: its arguments are not what it was made from."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


def test_an_exception_that_does_not_survive_pickling(
    elsewhere: Callable[..., futures.Future[object]],
) -> None:
    def raise_it() -> None:
        raise Twice(1, 2)

    with pytest.raises(RemoteError, match="Twice: 1 and 2") as info:
        elsewhere(raise_it).result()
    assert "raise_it" in info.value.traceback_text
    assert elsewhere(square, 3).result() == 9


def test_a_result_that_does_not_pickle_fails_alone(elsewhere: Callable[..., futures.Future[object]]) -> None:
    def make() -> object:
        return {"deep": [threading.Lock()]}

    with pytest.raises(NotPicklableError, match=r"result of .* result\['deep'\]\[0\] \(_thread\.lock\)"):
        elsewhere(make).result()
    assert elsewhere(square, 3).result() == 9


def test_an_argument_that_does_not_pickle_stays_at_home(nodes: int, caplog: pytest.LogCaptureFixture) -> None:
    if nodes == 1:
        pytest.skip("nothing is pickled on one node")
    lock = threading.Lock()

    def use(lock: threading.Lock, seconds: float) -> int:
        with lock:
            return busy(seconds)

    pids = [each.result() for each in [futures.submit(use, lock, 0.02) for _ in range(10)]]
    assert set(pids) == {os.getpid()}
    assert caplog.text.count("argument 0 (_thread.lock)") == 1


def test_exit_elsewhere(elsewhere: Callable[..., futures.Future[object]]) -> None:
    def leave() -> None:
        raise SystemExit("enough")

    with pytest.raises(TaskExitError, match=r"sys\.exit\('enough'\)"):
        elsewhere(leave).result()
    assert elsewhere(square, 3).result() == 9


def test_work_spreads(nodes: int) -> None:
    pids = list(futures.map(busy, [0.02] * 20))
    assert len(set(pids)) == nodes


def test_lent_futures_say_that_they_run(elsewhere: Callable[..., futures.Future[object]]) -> None:
    future = elsewhere(time.sleep, 0.2)
    assert future.running()
    assert not future.cancel()
    assert future.result() is None
