"""Constants that all nodes share."""

from __future__ import annotations

import operator
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tests.conftest import eventually, nodes_of

import p2pscoop
from p2pscoop import Executor, futures, shared
from p2pscoop._constants import AnswerKind, Constants, define, fetch, have, read_answer
from p2pscoop.errors import NotPicklableError, WrongThreadError

Start = Callable[[int], None]


def busy(seconds: float) -> None:
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


def use(name: str) -> tuple[str | None, Any]:
    busy(0.01)
    return p2pscoop.worker, shared.get_const(name)


def use_everywhere(name: str, count: int) -> dict[str | None, Any]:
    """What this constant is on each of so many nodes."""
    found: dict[str | None, Any] = {}
    deadline = time.monotonic() + 60
    while len(found) < count:
        assert time.monotonic() < deadline
        found.update(future.result() for future in [futures.submit(use, name) for _ in range(20)])
    return found


def sent() -> int:
    return sum(each.constants_sent for each in p2pscoop.statistics())


@pytest.mark.usefixtures("nodes")
def test_a_constant_is_seen_by_tasks_that_are_submitted_afterwards() -> None:
    for number in range(50):
        shared.set_const(**{f"n{number}": number})
        found = [future.result()[1] for future in [futures.submit(use, f"n{number}") for _ in range(3)]]
        assert found == [number] * 3


@pytest.mark.parametrize(
    "value", [None, 0, "text", {1: "Example 1"}, b"bytes", [1, [2]]], ids=lambda value: type(value).__name__
)
def test_values_of_any_kind(with_nodes: Start, value: object) -> None:
    with_nodes(2)
    shared.set_const(value=value)
    assert list(use_everywhere("value", 2).values()) == [value] * 2


def test_functions_and_lambdas(with_nodes: Start) -> None:
    with_nodes(2)
    offset = 5
    shared.set_const(plus=lambda x: x + offset, add=operator.add, twice=busy)

    def work(x: int) -> int:
        busy(0.005)
        return shared.get_const("add")(shared.get_const("plus")(x), 1)  # type: ignore[no-any-return]

    assert list(futures.map(work, range(40))) == [x + 6 for x in range(40)]


def test_a_constant_is_sent_once_to_each_node_that_uses_it_and_to_no_other(with_nodes: Start) -> None:
    with_nodes(3)
    shared.set_const(used=np.arange(1_000_000), unused=bytes(10_000_000), small=1)
    assert sent() == 0
    found = use_everywhere("used", 3)
    assert sent() == 2
    use_everywhere("small", 3)
    assert sent() == 4
    for worker, array in found.items():
        assert array.sum() == 499_999_500_000, worker


def test_arrays_are_views_of_what_was_received_and_read_only(with_nodes: Start) -> None:
    with_nodes(2)
    shared.set_const(array=np.ones((1000, 1000)))

    def look(_: int) -> tuple[bool, bool, bool, bool]:
        busy(0.005)
        array = shared.get_const("array")
        return p2pscoop.IS_ORIGIN, array.flags.writeable, array.flags.owndata, array.flags.aligned

    looks = set(futures.map(look, range(60)))
    assert looks == {(True, True, True, True), (False, False, False, True)}


@pytest.mark.usefixtures("nodes")
def test_a_constant_is_defined_once() -> None:
    shared.set_const(one=1)
    for where in (lambda: shared.set_const(one=1), lambda: shared.set_const(two=2, one=3)):
        with pytest.raises(TypeError, match="'one' exists already"):
            where()
        tasks = [futures.submit(lambda where=where: (busy(0.01), where())) for _ in range(6)]
        assert all(isinstance(task.exception(), TypeError) for task in tasks)
    assert shared.get_const("one") == 1
    assert shared.get_const("two", timeout=0) is None


@pytest.mark.usefixtures("nodes")
def test_of_all_that_define_the_same_name_one_succeeds() -> None:
    def attempt(number: int) -> int | None:
        busy(0.01)
        try:
            shared.set_const(winner=number)
        except TypeError:
            return None
        return number

    winners = [number for number in futures.map(attempt, range(30)) if number is not None]
    assert winners == [shared.get_const("winner")]


def test_constants_that_tasks_define(with_nodes: Start) -> None:
    with_nodes(3)

    def publish(number: int) -> str:
        busy(0.01)
        shared.set_const(**{f"from{number}": (p2pscoop.worker, number)})
        return f"from{number}"

    names = list(futures.map(publish, range(30)))
    values = [shared.get_const(name, timeout=0) for name in names]
    assert [number for _, number in values] == list(range(30))
    assert len({worker for worker, _ in values}) > 1


@pytest.mark.usefixtures("nodes")
def test_waiting_for_a_constant_that_another_task_defines_later() -> None:
    waiting = [futures.submit(shared.get_const, "late", timeout=timeout) for timeout in (None, -1, 60)]
    # Asks first: the node has to go on with other tasks meanwhile.
    asked = futures.submit(shared.get_const, "late", timeout=float("inf"))
    futures.submit(lambda: (busy(0.1), shared.set_const(late="here")))
    assert [future.result() for future in [asked, *waiting]] == ["here"] * 4


@pytest.mark.usefixtures("nodes")
def test_what_is_not_defined_in_time_is_none() -> None:
    assert shared.get_const("missing", timeout=0) is None
    assert futures.submit(shared.get_const, "missing", timeout=0.05).result() is None
    assert list(futures.map(lambda _: shared.getConst("missing", timeout=0.01), range(5))) == [None] * 5


def test_a_node_that_comes_later_has_all_constants(with_nodes: Start) -> None:
    with_nodes(2)
    shared.set_const(array=np.ones(500_000), small="small")
    before = set(use_everywhere("array", 2))
    (pid,) = nodes_of()
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: nodes_of() not in ([pid], []))
    later = use_everywhere("small", 2).keys() - before
    found = use_everywhere("array", 2)
    assert any(worker in found for worker in later)
    assert all(array.sum() == 500_000 for array in found.values())


def test_what_does_not_pickle_is_named_and_defines_nothing(with_nodes: Start) -> None:
    with_nodes(2)
    with pytest.raises(NotPicklableError, match=r"constant 'bad'\['lock'\]"):
        shared.set_const(good=1, bad={"lock": threading.Lock()})
    assert shared.get_const("good", timeout=0) is None


def test_constants_belong_to_the_thread_that_tasks_run_in(with_nodes: Start) -> None:
    with_nodes(1)
    problems: list[Exception] = []

    def elsewhere() -> None:
        try:
            shared.get_const("anything")
        except WrongThreadError as error:
            problems.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert len(problems) == 1


def test_tasks_of_an_executor_share_constants_too() -> None:
    def publish() -> None:
        shared.set_const(value=np.ones(1_000_000))

    def read(_: int) -> float:
        busy(0.01)
        return float(shared.get_const("value").sum())

    with Executor(2) as executor:
        executor.submit(publish).result()
        assert set(executor.map(read, range(30))) == {1_000_000.0}


# --------------------------------------------------------------------- who sends what to whom


ORIGIN = bytes(8)


def test_many_nodes_that_ask_at_once_serve_each_other() -> None:
    alive = {bytes([number]) * 8 for number in range(1, 51)}
    origin = Constants(ORIGIN, alive.__contains__, 1000, origin=True)
    value = bytes(1000)
    assert (
        read_answer(origin.answer(0.0, ORIGIN, define(b"token", {"x": value})) or b"").kind == AnswerKind.DEFINED
    )
    having: set[bytes] = set()
    rounds = 0
    while having != alive:
        rounds += 1
        assert rounds < 10
        got: dict[bytes, bytes] = {}
        for peer in sorted(alive - having):
            answer = read_answer(origin.answer(0.0, peer, fetch("x", directly=False)) or b"")
            if answer.kind == AnswerKind.VALUE:
                got[peer] = ORIGIN
            elif answer.kind == AnswerKind.ELSEWHERE:
                got[peer] = answer.content
                assert answer.content in having
            else:
                assert answer.kind == AnswerKind.BUSY
        for giver in set(got.values()):
            assert list(got.values()).count(giver) <= 2
        for peer in got:
            assert origin.answer(0.0, peer, have("x")) is None
        having |= got.keys()
    assert rounds == 4
    assert origin.sent <= 2 * rounds


def test_a_large_constant_on_its_way_is_not_sent_again_at_once_and_a_lost_one_is() -> None:
    origin = Constants(ORIGIN, lambda _: True, 10, origin=True)
    origin.define(b"token", {"large": bytes(100), "small": b"x"})
    question = fetch("large", directly=True)
    peer = b"a" * 8
    assert origin.answer(0.0, peer, question) is not None
    assert origin.answer(1.0, peer, question) is None
    assert origin.answer(100.0, peer, question) is not None
    small = fetch("small", directly=False)
    assert origin.answer(0.0, peer, small) == origin.answer(0.0, peer, small)


def test_a_giver_that_is_gone_is_nobodys_giver() -> None:
    alive = {b"a" * 8, b"b" * 8}
    origin = Constants(ORIGIN, alive.__contains__, 10, origin=True)
    origin.define(b"token", {"large": bytes(100)})
    question = fetch("large", directly=False)
    for peer in sorted(alive):
        assert read_answer(origin.answer(0.0, peer, question) or b"").kind == AnswerKind.VALUE
    assert read_answer(origin.answer(0.0, b"c" * 8, question) or b"").kind == AnswerKind.BUSY
    origin.answer(0.0, b"a" * 8, have("large"))
    alive.clear()
    assert read_answer(origin.answer(0.0, b"c" * 8, question) or b"").kind == AnswerKind.VALUE


def test_a_definition_that_is_repeated_is_the_same_one() -> None:
    origin = Constants(ORIGIN, lambda _: True, 10, origin=True)
    kinds = [
        read_answer(origin.answer(0.0, b"a" * 8, define(token, {"x": b"1"})) or b"").kind
        for token in (b"first", b"first", b"second")
    ]
    assert kinds == [AnswerKind.DEFINED, AnswerKind.DEFINED, AnswerKind.EXISTS]


def test_only_the_origin_defines() -> None:
    node = Constants(ORIGIN, lambda _: True, 10, origin=False)
    assert node.answer(0.0, b"a" * 8, define(b"token", {"x": b"1"})) is None
    assert read_answer(node.answer(0.0, b"a" * 8, fetch("x", directly=False)) or b"").kind == AnswerKind.UNDEFINED
