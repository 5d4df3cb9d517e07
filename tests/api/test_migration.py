"""Suspended coroutine tasks go on where their last dependency finished, and nothing about them changes."""

from __future__ import annotations

import contextvars
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.conftest import Script, eventually, nodes_of

import p2pscoop
from p2pscoop import _local, futures
from p2pscoop._core.values import Outcome
from p2pscoop._future import LENT, Future
from p2pscoop._home import Home
from p2pscoop.errors import RestoreRefused

VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="unset")


@pytest.fixture(autouse=True)
def two_nodes(with_nodes: Callable[[int], None]) -> None:
    with_nodes(2)


def where() -> int:
    return os.getpid()


def soon(work: Callable[..., object], *args: object) -> object:
    """Take long enough that whoever awaits it has been suspended by then."""
    time.sleep(0.1)
    return work(*args)


def stolen(work: Callable[..., object], *args: object) -> Future[object]:
    """Submit a task, and come back when the other node has it."""
    future = futures.submit(work, *args)
    deadline = time.monotonic() + 20
    while future._state != LENT:
        assert time.monotonic() < deadline, "nobody stole it"
        time.sleep(0.001)
    return future


def given() -> int:
    return sum(each.continuations_given for each in p2pscoop.statistics())


def run(work: Callable[..., object], *args: object) -> object:
    """Start a coroutine task on this node, and wait for it without running it elsewhere from the start."""
    task = futures.gather(work(*args))  # type: ignore[arg-type]
    (value,) = task.result()
    return value


async def walk(steps: int) -> tuple[list[int], list[int]]:
    here, there = [where()], []
    while len(there) < steps:
        future = stolen(soon, where)
        waits = not hasattr(future, "_arrived")
        node = await future
        if waits:  # On a busy machine the outcome may be faster than the `await`: then there is nothing to see.
            there.append(node)
            here.append(where())
    return here, there  # type: ignore[return-value]


def test_after_each_await_a_task_is_where_its_dependency_finished(capsys: pytest.CaptureFixture[str]) -> None:
    here, there = run(walk, 6)  # type: ignore[misc]
    print("before the first await:", here[0], "after each:", here[1:])
    assert here[0] == os.getpid()
    assert here[1:] == there
    assert len(set(here)) == 2, "it went to and fro"
    assert given() >= 6


def when_and_where(seconds: float) -> tuple[float, int]:
    time.sleep(seconds)
    return time.monotonic(), os.getpid()


async def gather_elsewhere(count: int) -> tuple[list[tuple[float, int]], int]:
    values = await futures.gather(*(stolen(when_and_where, 0.1 + 0.15 * part) for part in range(count)))
    return values, where()  # type: ignore[return-value]


@pytest.mark.parametrize("count", [1, 3])
def test_a_gather_goes_on_where_its_last_part_finished(count: int) -> None:
    values, after = run(gather_elsewhere, count)  # type: ignore[misc]
    # This node may have stolen some of them back.
    assert after == max(values)[1]
    assert len(values) == count


def test_frames_of_every_kind_travel() -> None:
    class Account:
        def __init__(self) -> None:
            self.entries: list[str] = []

        async def __aenter__(self) -> Account:
            self.entries.append(f"in {await stolen(soon, abs, -1)}")
            return self

        async def __aexit__(self, *_: object) -> None:
            self.entries.append(f"out {await stolen(soon, abs, -2)}")

    async def inner(account: Account, values: list[int]) -> int:
        total = 0
        for index, value in enumerate(values):
            try:
                total += value + await stolen(soon, abs, -10 * index)
                if value == 3:
                    raise KeyError(value)
            except KeyError as error:
                account.entries.append(f"caught {error} {await stolen(soon, abs, -3)}")
            finally:
                account.entries.append(f"finally {await stolen(soon, abs, -4)}")
        return total

    async def outer() -> tuple[int, list[str], list[int], int]:
        async with Account() as account:
            total = await inner(account, [1, 2, 3])
        squares = [x * x for x in [await stolen(soon, abs, -y) for y in range(3)]]
        counter = 0

        def count() -> int:
            nonlocal counter
            counter += 1
            return counter

        count()
        await stolen(soon, abs, -5)
        count()
        return total, account.entries, squares, counter

    assert run(outer) == (
        36,
        ["in 1", "finally 4", "finally 4", "caught 3 3", "finally 4", "out 2"],
        [0, 1, 4],
        2,
    )
    assert given() > 5


def test_blocks_are_left_once_and_where_the_task_is(tmp_path: Path) -> None:
    log = tmp_path / "log"

    def note(text: str) -> None:
        with log.open("a") as file:
            file.write(f"{text} {os.getpid()}\n")

    class Block:
        def __enter__(self) -> None:
            note("enter")

        def __exit__(self, *_: object) -> None:
            note("exit")

    async def careful() -> int:
        with Block():
            try:
                await stolen(soon, where)
            finally:
                note("finally")
        return where()

    end = run(careful)
    assert end != os.getpid()
    assert log.read_text().splitlines() == [f"enter {os.getpid()}", f"finally {end}", f"exit {end}"]


def fail(text: str) -> None:
    raise ValueError(text)


def test_exceptions_are_raised_in_the_task_wherever_it_is() -> None:
    async def catching() -> tuple[str, str, int]:
        try:
            await stolen(soon, fail, "why")
        except ValueError as error:
            return str(error), type(error.__cause__).__name__, where()
        return "", "", 0

    text, cause, pid = run(catching)  # type: ignore[misc]
    assert (text, cause) == ("why", "RemoteTraceback")
    assert pid != os.getpid()


def test_what_a_task_has_set_travels_with_it() -> None:
    own: contextvars.ContextVar[list[int]] = contextvars.ContextVar("own")

    async def setting() -> tuple[str, list[int], bool, int]:
        VARIABLE.set("set")
        mine = [1, 2]
        own.set(mine)
        await stolen(soon, where)
        return VARIABLE.get(), own.get(), own.get() is mine, where()

    value, items, same, pid = run(setting)  # type: ignore[misc]
    assert (value, items, same) == ("set", [1, 2], True)
    assert pid != os.getpid()
    assert VARIABLE.get() == "unset"


async def draw(count: int, awaiting: bool) -> list[float]:
    numbers = []
    for _ in range(count):
        numbers.append(p2pscoop.rng().random())
        if awaiting:
            await stolen(soon, where)
    numbers.append(await futures.submit(lambda: p2pscoop.rng().random()))
    return numbers


def test_a_task_draws_the_same_numbers_wherever_it_goes() -> None:
    drawn = []
    for _ in range(2):
        futures.shutdown()
        p2pscoop.seed(5)
        drawn.append(run(draw, 4, True))
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == 5  # type: ignore[arg-type]


def test_what_cannot_travel_finishes_at_home_and_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "data"
    path.write_text("one\ntwo\n")

    async def reading() -> tuple[str, int]:
        with path.open() as file:
            file.readline()
            await stolen(soon, where)
            return file.readline(), where()

    with caplog.at_level(logging.DEBUG, "p2pscoop"):
        assert run(reading) == ("two\n", os.getpid())
    assert "an open file in local `file` of " in caplog.text
    assert "reading" in caplog.text


def test_explain() -> None:
    lock = threading.Lock()
    told = []

    async def holding() -> int:
        held = lock
        await stolen(time.sleep, 0.1)
        return held.locked()

    async def free() -> None:
        await stolen(time.sleep, 0.1)

    async def asking() -> None:
        for each in (holding(), free()):
            future = futures.gather(each)._gathering.parts[0]
            await stolen(soon, where)
            told.append(p2pscoop.explain(future))
            await future

    scheduler = _local.current()
    scheduler.portable = False
    run(asking)
    assert "holds a lock that cannot be pickled" in told[0]
    assert "local `held` of " in told[0]
    assert told[1] is None


def test_a_task_that_holds_an_unfinished_future_waits_for_it_where_it_is() -> None:
    async def holding() -> tuple[int, int]:
        slow = futures.gather(sleeper())
        await stolen(soon, where)
        middle = where()
        await slow
        return middle, where()

    async def sleeper() -> int:
        await stolen(time.sleep, 0.2)
        return 0

    middle, _ = run(holding)  # type: ignore[misc]
    assert middle == os.getpid()


def refuse_continuations() -> None:
    from p2pscoop import _parcels

    def refuse(*_: object) -> None:
        raise RestoreRefused("not on this node")

    _parcels.unpack = refuse  # type: ignore[assignment]


def test_what_cannot_be_restored_where_it_went_goes_on_at_home() -> None:
    async def waiting() -> list[int]:
        seen = [where()]
        for _ in range(2):
            await stolen(soon, where)
            seen.append(where())
        return seen

    stolen(refuse_continuations).result()
    assert run(waiting) == [os.getpid()] * 3
    assert given() >= 2
    statistics = stolen(lambda: _local.current().hooks.runtime.node.counters.bounced)  # type: ignore[attr-defined]
    assert statistics.result() >= 2  # type: ignore[operator]


async def fib(n: int) -> int:
    if n < 2:
        return n
    a, b = futures.submit(fib, n - 1), futures.submit(fib, n - 2)
    return await a + await b


def test_trees_of_coroutines_are_counted_right() -> None:
    assert futures.submit(fib, 19).result() == 4181


def test_a_busy_node_does_not_keep_a_ready_task() -> None:
    """The home thread computes; the task goes on with the one that finished its dependency."""

    async def waiting() -> int:
        await stolen(time.sleep, 0.1)
        return where()

    task = futures.gather(waiting())
    # Let it get to its await; then hold the home thread until the outcome must have been seen elsewhere.
    _local.current().step(_local.current().coroutines.pop())
    until = time.monotonic() + 20
    while given() == 0:
        assert time.monotonic() < until
    assert task.result() != [os.getpid()]


# -------------------------------------------------------------------------------------- large values

LARGE = 3 * 1024 * 1024


def large(seconds: float = 0.05) -> bytes:
    time.sleep(seconds)
    return bytes(LARGE)


@pytest.fixture
def traffic(two_nodes: None, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Bytes that this node has received in outcomes."""
    home = _local.current().hooks
    assert isinstance(home, Home)
    settle, sizes = home.settle, [0]

    def counting(handle: object, outcome: Outcome, *rest: object) -> None:
        sizes.append(len(outcome.payload))
        settle(handle, outcome, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(home, "settle", counting)
    return lambda: sum(sizes)


def test_a_task_goes_to_a_large_value(traffic: Callable[[], int]) -> None:
    async def measuring() -> tuple[int, int]:
        value = await stolen(large)
        return len(value), where()

    size, pid = run(measuring)  # type: ignore[misc]
    assert size == LARGE
    assert pid != os.getpid()
    assert traffic() < LARGE / 10


def test_a_large_value_that_is_wanted_comes(traffic: Callable[[], int]) -> None:
    future = stolen(large)
    assert len(future.result()) == LARGE  # type: ignore[arg-type]
    assert traffic() > LARGE
    many = [stolen(large, 0) for _ in range(3)]
    assert futures.wait(many).not_done == set()
    assert [len(each.result()) for each in many] == [LARGE] * 3  # type: ignore[arg-type]
    assert [len(each) for each in futures.gather(stolen(large), stolen(large)).result()] == [LARGE] * 2
    assert [len(value) for value in futures.map(large, [0.05] * 6)] == [LARGE] * 6


def test_a_future_whose_value_is_elsewhere_is_done(traffic: Callable[[], int]) -> None:
    future = stolen(large)
    deadline = time.monotonic() + 20
    while not future.done():
        assert time.monotonic() < deadline
    assert traffic() < LARGE
    assert not future.running()
    assert not future.cancel()
    assert len(future.result(timeout=0)) == LARGE  # type: ignore[arg-type]


def measured(value: bytes, *more: bytes, least: int = 0) -> tuple[int, int]:
    return len(value) + sum(map(len, more)) + least, where()


async def slowly_measured(value: bytes) -> tuple[int, int]:
    await stolen(time.sleep, 0.01)
    return len(value), where()


@pytest.mark.parametrize("work", [measured, slowly_measured])
@pytest.mark.parametrize("late", [False, True], ids=["waiting", "late"])
def test_a_task_starts_where_its_large_argument_lies(
    traffic: Callable[[], int], work: Callable[..., object], late: bool
) -> None:
    future = stolen(large)
    if late:
        eventually(future.done)
    assert futures.submit(work, future).result() in [(LARGE, pid) for pid in nodes_of()]
    assert traffic() < LARGE / 10


def test_other_arguments_come_along_to_the_large_one(traffic: Callable[[], int]) -> None:
    big, small = stolen(large), stolen(bytes, 7)
    dependent = futures.submit(measured, big, small, least=futures.submit(int, "5"))
    assert dependent.result() in [(LARGE + 12, pid) for pid in nodes_of()]
    assert traffic() < LARGE / 10


def test_a_task_that_waits_for_more_than_its_large_argument_can_be_cancelled_or_fail() -> None:
    big, gate = stolen(large), futures.submit(time.sleep, 0.3)
    eventually(big.done)
    cancelled, failing = (
        futures.submit(measured, big, gate),
        futures.submit(measured, big, futures.submit(int, "x")),
    )
    assert cancelled.cancel()
    with pytest.raises(ValueError, match="invalid literal"):
        failing.result()
    gate.result()
    assert cancelled.cancelled()
    assert len(big.result()) == LARGE  # type: ignore[arg-type]


def test_large_arguments_of_two_nodes_meet(script: Callable[[str], Script]) -> None:
    done = script(
        """
        import os, time
        import p2pscoop
        from p2pscoop import futures

        def large():
            time.sleep(0.3)
            return os.getpid().to_bytes(4, "big") * (1 << 20)

        def place(_):
            time.sleep(0.05)
            return os.getpid()

        while len(set(futures.map(place, range(12)))) < 3:
            pass  # Until all nodes are there, and know what the program needs.
        parts = [futures.submit(large) for _ in range(2)]
        while not all(part.done() for part in parts):
            time.sleep(0.001)
        holders = futures.submit(lambda *values: {value[:4] for value in values}, *parts).result()
        print(len(holders), os.getpid().to_bytes(4, "big") in holders)
        """
    ).run(nodes=3)
    assert done.stdout == "2 False\n", done.stderr


def test_a_task_that_cannot_go_to_its_large_argument_gets_it() -> None:
    lock = threading.Lock()

    def holding(value: bytes) -> tuple[int, int]:
        with lock:
            return len(value), where()

    assert futures.submit(holding, stolen(large)).result() == (LARGE, os.getpid())


def test_a_task_that_cannot_go_to_a_large_value_gets_it() -> None:
    async def holding() -> tuple[int, int]:
        lock = threading.Lock()
        value = await stolen(large)
        with lock:
            return len(value), where()

    assert run(holding) == (LARGE, os.getpid())


def test_a_large_value_that_nobody_wants_is_let_go_everywhere() -> None:
    stolen(large)
    eventually(lambda: all(each == 0 for each in custodies()))


def custodies() -> tuple[int, int]:
    """Own tasks that are elsewhere, and values that the other node keeps."""
    futures.wait([stolen(time.sleep, 0)])  # A scheduling point, at which futures are let go.
    hooks = _local.current().hooks
    assert isinstance(hooks, Home)
    holding = stolen(lambda: len(_local.current().hooks.runtime.node.held) - 1)  # type: ignore[attr-defined]
    return len(hooks.runtime.node.owned), holding.result()  # type: ignore[return-value]


def test_a_large_value_is_computed_again_if_it_is_lost() -> None:
    future = stolen(large)
    deadline = time.monotonic() + 20
    while not future.done():
        assert time.monotonic() < deadline
    (node,) = nodes_of()
    os.kill(node, signal.SIGKILL)
    assert len(future.result()) == LARGE  # type: ignore[arg-type]


def test_a_task_that_went_to_a_large_value_survives_the_loss_of_both() -> None:
    async def lingering() -> int:
        value = await stolen(large)
        if where() != home:
            os.kill(where(), signal.SIGKILL)
        return len(value)

    home = os.getpid()
    assert run(lingering) == LARGE


def test_large_values_reach_those_who_wait_at_the_end(script: Callable[[str], Script]) -> None:
    program = script(
        """
        import time
        from p2pscoop import futures

        def large():
            time.sleep(0.02)
            return bytes(2_000_000)

        many = [futures.submit(large) for _ in range(20)]
        time.sleep(0.3)
        futures.shutdown()
        print({len(each.result()) for each in many})
        """
    )
    done = program.run(env={"P2PSCOOP_NODES": "2"})
    assert (done.returncode, done.stdout, done.stderr) == (0, "{2000000}\n", "")


# ------------------------------------------------------------------------- dataflow without a frame


def add(a: int, b: int = 0) -> int:
    return a + b


def test_futures_among_the_arguments_stand_for_their_values() -> None:
    one = futures.submit(add, 1)
    two = futures.submit(add, one, b=one)
    assert futures.submit(add, two, two).result() == 4
    assert futures.submit(add, futures.submit(abs, -2), b=3).result() == 5


def test_long_chains_of_dataflow() -> None:
    future = futures.submit(add, 0)
    for _ in range(3000):
        future = futures.submit(add, future, 1)
    assert future.result() == 3000


def test_a_failed_argument_fails_the_task_and_a_cancelled_one_cancels_it() -> None:
    with pytest.raises(ValueError, match="why"):
        futures.submit(add, futures.submit(fail, "why")).result()
    while True:
        blocked = futures.submit(abs, -1)
        dependent = futures.submit(add, blocked)
        if blocked.cancel():
            break  # Else the other node was faster.
    assert dependent.cancelled()


def test_a_task_that_waits_for_its_arguments_can_be_cancelled() -> None:
    argument = stolen(time.sleep, 0.2)
    dependent = futures.submit(add, argument)
    assert repr(dependent) == "<Future of add: waiting for its arguments>"
    assert dependent.cancel()
    assert argument.result() is None
    assert dependent.cancelled()


def test_a_task_may_return_a_future() -> None:
    def forwarding(n: int) -> object:
        return futures.submit(forwarding, n - 1) if n else futures.submit(add, 1, 2)

    async def forwarding_too() -> object:
        return futures.submit(forwarding, 2)

    assert futures.submit(forwarding, 50).result() == 3
    assert futures.submit(forwarding_too).result() == 3
    assert list(futures.map(forwarding, range(5))) == [3] * 5
    assert stolen(forwarding, 3).result() == 3
    with pytest.raises(ValueError, match="later"):
        futures.submit(lambda: futures.submit(fail, "later")).result()


def test_an_ended_future_may_be_sent_along_and_one_that_has_not_keeps_the_task_here() -> None:
    ended = futures.submit(abs, -7)
    ended.result()
    assert stolen(lambda box: box[0].result() + where(), [ended]).result() != 7 + os.getpid()
    slow = stolen(time.sleep, 0.5)
    task = futures.submit(lambda box: (len(box), where()), [slow])
    slow.result()
    assert task.result() == (1, os.getpid())


# --------------------------------------------------------------------------------------- buried joins


def test_a_plain_function_goes_on_before_anything_new_is_started(tmp_path: Path) -> None:
    """The child is stolen and short; the node has long tasks queued: only the one under way may be waited for."""
    log = tmp_path / "log"

    def note(text: str) -> None:
        with log.open("a") as file:
            file.write(text + "\n")

    def long_task(number: int) -> None:
        if os.getpid() == home:
            note(f"long {number}")
        time.sleep(0.15)

    def parent() -> None:
        child = stolen(time.sleep, 0.01)
        tasks = [futures.submit(long_task, number) for number in range(6)]
        child.result()
        note("parent")
        futures.wait(tasks)

    home = os.getpid()
    parent()
    lines = log.read_text().splitlines()
    assert lines.index("parent") <= 1
