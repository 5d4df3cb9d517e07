"""Every construct travels from every suspension point, and what is pinned says why."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Coroutine
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import REPOSITORY
from tests.continuation.constructs import PINNED, TRAVELS, Make, table
from tests.continuation.world import LOG, compare, emit, move, tick

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


def test_the_analysis_has_no_inner_errors(tmp_path: Path) -> None:
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


def test_a_payload_of_another_python_is_named() -> None:
    coroutine = started()
    data = bytearray(continuation.dumps(coroutine))
    coroutine.close()
    data[5] ^= 1
    with pytest.raises(RestoreRefused, match="from another Python: magic number"):
        continuation.loads(bytes(data))


def test_other_code_under_the_same_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    coroutine = started()
    data = continuation.dumps(coroutine)
    coroutine.close()

    async def other(count: int) -> int:
        return count + await tick()

    monkeypatch.setattr(sys.modules[__name__], "adding", other)
    with pytest.raises(RestoreRefused, match="adding"):
        continuation.loads(data)


def test_a_pickle_that_is_no_continuation_is_refused() -> None:
    from p2pscoop._continuation.envelope import close

    for body in (b"", b"not a pickle", b"I1\n."):
        with pytest.raises(RestoreRefused):
            continuation.loads(close(body))


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


def test_discarding_runs_nothing_of_the_original() -> None:
    async def guarded() -> int:
        try:
            return await tick(1)
        except BaseException:
            emit("except")
            raise
        finally:
            emit("finally")

    coroutine = guarded()
    coroutine.send(None)
    del LOG[:]
    kept = husks()
    copy = move(coroutine)
    del coroutine
    assert LOG == []
    assert result_of(copy) == 1
    assert LOG == [("'finally'",)]
    assert husks() == kept


# --------------------------------------------------------------------------------- other interpreters


def interpreters() -> list[str]:
    """The other versions that are supported and installed, as paths."""
    found = []
    for version in ("3.11", "3.12", "3.13"):
        if sys.version_info[:2] != tuple(map(int, version.split("."))):
            found += sorted(map(str, Path.home().glob(f".pyenv/versions/{version}.*/bin/python")))[-1:]
    return found


@pytest.mark.parametrize(
    "python", interpreters() or [""], ids=lambda path: path.split("/")[-3] if path else "none"
)
def test_on_other_interpreters(python: str, tmp_path: Path) -> None:
    if not python:
        pytest.skip("NOT TESTED: no other supported Python is installed here")
    spec = PathFinder.find_spec("cloudpickle")
    assert spec is not None
    assert spec.origin is not None
    # cloudpickle is pure Python, and all that the package needs.
    (tmp_path / "cloudpickle").symlink_to(Path(spec.origin).parent)
    path = os.pathsep.join((str(REPOSITORY / "src"), str(REPOSITORY), str(tmp_path)))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"}
    for module, *arguments in (
        ("tests.continuation.constructs",),
        ("p2pscoop._continuation.fuzz", "--count", "500"),
    ):
        done = subprocess.run(
            [python, "-m", module, *arguments], env=environment, cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, json.dumps([done.stdout[-2000:], done.stderr[-2000:]])
        assert "0 failures" in done.stdout or "0 differences" in done.stdout
