"""Every construct travels from every suspension point, and what is pinned says why."""

from __future__ import annotations

import os
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import REPOSITORY
from tests.continuation.constructs import PINNED, TRAVELS, Make, table
from tests.continuation.world import LOG, compare, tick

from p2pscoop import continuation
from p2pscoop._continuation import capture, husks, restore
from p2pscoop._continuation.fuzz import try_seed
from p2pscoop._continuation.survey import main as survey
from p2pscoop.errors import NotPortable, RestoreRefused

PROGRAMS = [(f"{group}: {name}", make) for group, programs in TRAVELS.items() for name, make in programs.items()]


@pytest.mark.parametrize("make", [make for _, make in PROGRAMS], ids=[name for name, _ in PROGRAMS])
def test_it_travels_from_every_point(make: Make) -> None:
    assert compare(make) > 1


def ends(coroutine: Coroutine[Any, Any, Any]) -> None:
    """Run it to its end: pinned is always correct."""
    try:
        while True:
            coroutine.send(None)
    except StopIteration:
        pass


@pytest.mark.parametrize(("make", "reason"), PINNED.values(), ids=PINNED)
def test_what_is_pinned_says_why_and_goes_on(make: Make, reason: str) -> None:
    coroutine = make()
    coroutine.send(None)
    told = continuation.check(coroutine)
    assert told is not None
    assert reason in told
    with pytest.raises(NotPortable):
        continuation.dumps(coroutine)
    ends(coroutine)


def test_the_document_has_the_table_of_what_travels() -> None:
    assert table() in (REPOSITORY / "docs" / "continuations.md").read_text()


@pytest.mark.filterwarnings("ignore::SyntaxWarning")  # Random programs compare whatever they come upon.
def test_random_programs_move_at_every_suspension() -> None:
    moved = 0
    seed = 0
    while moved < 2000:
        trial = try_seed(seed)
        assert trial.difference is None, f"seed {seed}: {trial.difference}\n{trial.source}"
        moved += trial.moved
        seed += 1


def test_the_analysis_has_no_inner_errors() -> None:
    source = Path(os.__file__).parent
    assert survey([str(source / "asyncio"), str(source / "email"), str(REPOSITORY / "src"), "--max", "6000"]) == 0


# ------------------------------------------------------------------------------------------- the door


async def adding(count: int) -> int:
    total = 0
    for number in range(count):
        total += await tick(number)
    return total


def started(count: int = 5) -> Coroutine[Any, Any, int]:
    coroutine = adding(count)
    coroutine.send(None)
    coroutine.send(None)
    return coroutine


def result_of(coroutine: Coroutine[Any, Any, Any]) -> Any:
    try:
        while True:
            coroutine.send(None)
    except StopIteration as stop:
        return stop.value


def test_a_copy_and_its_original_both_go_on() -> None:
    original = started()
    assert continuation.check(original) is None
    copies = [continuation.loads(continuation.dumps(original)) for _ in range(2)]
    assert [result_of(each) for each in (original, *copies)] == [10, 10, 10]


def test_code_that_the_receiver_has_is_not_sent() -> None:
    coroutine = started()
    assert len(continuation.dumps(coroutine)) < 1000
    coroutine.close()


@pytest.mark.parametrize("thing", [1, None, adding, "text"])
def test_only_coroutines_are_pickled(thing: Any) -> None:
    with pytest.raises(TypeError, match="a coroutine is needed"):
        continuation.dumps(thing)


def test_coroutines_that_have_ended_are_not() -> None:
    coroutine = started()
    result_of(coroutine)
    with pytest.raises(NotPortable, match="has ended"):
        continuation.dumps(coroutine)


def test_a_running_coroutine_is_not() -> None:
    async def asking() -> str | None:
        return continuation.check(own[0])

    own: list[Any] = [asking()]
    assert result_of(own[0]) == f"`{own[0].__qualname__}` is running"


def test_every_damaged_byte_is_noticed_before_anything_runs() -> None:
    coroutine = started()
    data = continuation.dumps(coroutine)
    coroutine.close()
    del LOG[:]
    kept = husks()
    for index in range(len(data)):
        damaged = data[:index] + bytes((data[index] ^ 0xFF,)) + data[index + 1 :]
        with pytest.raises(RestoreRefused):
            continuation.loads(damaged)
    for size in range(0, len(data), 7):
        with pytest.raises(RestoreRefused):
            continuation.loads(data[:size])
    assert LOG == []
    assert husks() == kept


async def nested(depth: int) -> int:
    return await tick(0) if depth == 0 else 1 + await nested(depth - 1)


def test_chains_of_ten_thousand_awaits(recursion_limit: int) -> None:
    del recursion_limit
    coroutine = nested(10_000)
    coroutine.send(None)
    captured = capture(coroutine)
    assert captured.depth == 10_002
    copy = restore(captured.dumps())
    captured.discard()
    assert result_of(copy) == 10_000  # type: ignore[arg-type]


@pytest.fixture
def recursion_limit() -> Any:
    """Python itself needs this much to resume such a chain."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(15_000)
    yield 15_000
    sys.setrecursionlimit(before)
