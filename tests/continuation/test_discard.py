"""The original is ended without running anything of it: no handler, no `__exit__`, no warning."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import warnings
import weakref
from typing import Any

import pytest
from tests.continuation.world import LOG, Manager, Pause, emit

from p2pscoop._continuation import HUSKS_MAX, capture, discard, husks, restore
from p2pscoop.errors import NotPortable


@pytest.fixture(autouse=True)
def no_husks(monkeypatch: pytest.MonkeyPatch) -> Any:
    del LOG[:]
    kept: dict[int, Any] = {}
    monkeypatch.setattr(discard, "_husks", kept)
    yield
    monkeypatch.undo()
    # Leave none behind: end them now, whatever they run.
    for each in kept.values():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                each.close()
            except BaseException:
                pass


class Local:
    """Something that can be watched."""


async def guarded(local: Any) -> Any:
    try:
        with Manager(1):
            try:
                await Pause(2)
            except BaseException:
                emit("caught")
                raise
    finally:
        emit("finally")
    return local


async def outer(local: Any, depth: int) -> Any:
    try:
        if depth:
            return await outer(local, depth - 1)
        return await guarded(local)
    finally:
        emit("outer")


def suspended(depth: int = 0) -> tuple[Any, weakref.ref[Local]]:
    local = Local()
    coroutine: Any = outer(local, depth)
    coroutine.send(None)
    del LOG[:]
    return coroutine, weakref.ref(local)


@pytest.mark.parametrize("depth", [0, 1, 50])
def test_nothing_runs_and_nothing_is_left(depth: int) -> None:
    coroutine, local = suspended(depth)
    captured = capture(coroutine)
    captured.dumps()
    captured.discard()
    assert coroutine.cr_frame is None
    assert LOG == []
    assert husks() == 0
    del captured
    assert local() is None, "the locals were not let go"
    del coroutine
    gc.collect()
    assert LOG == []


def test_at_any_depth_of_the_caller_and_in_any_thread() -> None:
    def at(depth: int) -> None:
        if depth:
            at(depth - 1)
            return
        coroutine, _ = suspended()
        captured = capture(coroutine)
        captured.discard()
        assert coroutine.cr_frame is None

    for depth in (0, 1, 2, 3, 10, 100, 600):
        at(depth)
    thread = threading.Thread(target=at, args=(5,))
    thread.start()
    thread.join()
    assert LOG == []
    assert husks() == 0


def test_frames_without_handlers_are_closed() -> None:
    async def plain() -> None:
        await Pause(1)

    coroutine: Any = plain()
    coroutine.send(None)
    del LOG[:]
    capture(coroutine).discard()
    assert coroutine.cr_frame is None
    assert LOG == []


class Awaited:
    def __await__(self) -> Any:
        return self

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> None:
        return None


class Closing(Awaited):
    def close(self) -> None:
        emit("closed")


class Answering(Awaited):
    def __getattr__(self, name: str) -> Any:
        emit("asked for", name)
        raise AttributeError(name)


def with_attribute() -> Awaited:
    awaited = Awaited()
    awaited.close = lambda: emit("closed")  # type: ignore[attr-defined]
    return awaited


@pytest.mark.parametrize("make", [Awaited, Closing, Answering, with_attribute])
def test_what_is_awaited_is_not_closed(make: Any) -> None:
    async def plain(awaited: Any) -> None:
        await awaited

    coroutine: Any = plain(make())
    coroutine.send(None)
    del LOG[:]
    capture(coroutine).discard()
    assert coroutine.cr_frame is None
    assert LOG == []


def test_a_coroutine_that_was_not_started_does_not_warn() -> None:
    async def plain() -> None:
        pass

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        coroutine = plain()
        captured = capture(coroutine)
        copy: Any = restore(captured.dumps())
        captured.discard()
        del coroutine, captured
        gc.collect()
        with pytest.raises(StopIteration):
            copy.send(None)


def generate() -> Any:
    try:
        yield 1
        yield 2
    finally:
        emit("generator")


def test_a_generator_that_others_use_is_left_alone() -> None:
    async def work(generator: Any) -> None:
        await Pause(next(generator))

    generator = generate()
    coroutine: Any = work(generator)
    coroutine.send(None)
    captured = capture(coroutine)
    captured.dumps()
    captured.discard()
    del coroutine, captured
    assert husks() == 1
    assert list(generator) == [2]
    assert husks() == 0
    assert LOG == [("'generator'",)]


def test_a_generator_that_nobody_else_uses_is_ended() -> None:
    async def work() -> None:
        generator = generate()
        await Pause(next(generator))

    coroutine: Any = work()
    coroutine.send(None)
    captured = capture(coroutine)
    captured.dumps()
    captured.discard()
    del coroutine, captured
    gc.collect()
    assert LOG == []
    assert husks() == 0


@pytest.fixture
def no_sinking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discard, "_sinks", False)


@pytest.mark.usefixtures("no_sinking")
def test_where_sinking_does_not_work_frames_are_kept() -> None:
    coroutine, local = suspended()
    captured = capture(coroutine)
    captured.discard()
    del coroutine, captured
    gc.collect()
    assert LOG == []
    assert husks() > 0
    if sys.version_info >= (3, 13):
        assert local() is None, "a husk keeps no locals"


@pytest.mark.usefixtures("no_sinking")
def test_the_number_of_husks_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discard, "HUSKS_MAX", 2)
    coroutines = [suspended()[0] for _ in range(2)]
    capture(coroutines[0]).discard()
    assert husks() >= 2
    with pytest.raises(NotPortable, match="cannot be ended"):
        capture(coroutines[1])

    async def plain() -> None:
        await Pause(1)

    harmless: Any = plain()
    harmless.send(None)
    del LOG[:]
    capture(harmless).discard()
    assert LOG == []
    assert HUSKS_MAX >= 1000
    monkeypatch.undo()
    capture(coroutines[1]).discard()


def test_a_limit_that_is_far_away_makes_husks(monkeypatch: pytest.MonkeyPatch) -> None:
    coroutine, _ = suspended()
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(discard.SINK_MAX + 1)
    try:
        capture(coroutine).discard()
    finally:
        sys.setrecursionlimit(limit)
    assert husks() > 0
    assert LOG == []


def test_an_error_that_is_not_the_limit_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a signal handler fails on the way down."""
    true = discard._descend
    depth = 0

    def descend(left: Any, entered: Any) -> None:
        nonlocal depth
        depth += 1
        if depth == 10:
            raise RecursionError
        true(left, entered)

    assert discard._can_sink()
    coroutine, _ = suspended()
    with monkeypatch.context() as patch:
        patch.setattr(discard, "_descend", descend)
        capture(coroutine).discard()
    assert coroutine.cr_frame is not None
    assert LOG == []
    assert husks() > 0


def test_under_a_trace_function() -> None:
    events: list[str] = []

    def trace(frame: Any, event: str, arg: Any) -> None:
        events.append(event)

    coroutine, _ = suspended()
    captured = capture(coroutine)
    old = sys.gettrace()
    sys.settrace(trace)
    try:
        captured.discard()
        found = sys.gettrace()
    finally:
        sys.settrace(old)
    assert found is trace
    assert events
    assert coroutine.cr_frame is None
    assert LOG == []


@pytest.mark.skipif(sys.version_info < (3, 12), reason="there is no sys.monitoring")
def test_under_a_monitoring_tool() -> None:
    monitoring: Any = sys.monitoring  # type: ignore[attr-defined]
    coroutine, _ = suspended()
    monitoring.use_tool_id(3, "tests")
    try:
        capture(coroutine).discard()
    finally:
        monitoring.free_tool_id(3)
    assert LOG == []
    assert husks() > 0


def test_husks_survive_the_end_of_the_program() -> None:
    program = """
import sys
sys.setrecursionlimit(100_000)
from tests.continuation.test_discard import suspended
from p2pscoop._continuation import capture, husks
coroutine, local = suspended()
capture(coroutine).discard()
assert husks()
del coroutine
from tests.continuation import world
class Loud(list):
    def append(self, what):
        print("RAN", what)
world.LOG = Loud()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
