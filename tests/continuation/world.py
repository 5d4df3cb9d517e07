"""What the programs of these tests are made of, and the two ways to run them: in one place, and moving.

Imports nothing but the package under test, so that it runs on interpreters that have no pytest.
"""

from __future__ import annotations

import gc
import types
from collections.abc import Callable, Coroutine, Generator, Iterable
from typing import Any

from p2pscoop._continuation import capture, husks, restore

LOG: list[Any] = []
"""Side effects, in order. In a module of its own: it is not part of what moves."""


def emit(*values: Any) -> None:
    """A side effect."""
    LOG.append(tuple(map(repr, values)))


class Pause:
    """An awaitable like p2pscoop's futures: a generator suspended in its `__await__`."""

    def __init__(self, value: Any = None) -> None:
        self.value = value

    def __await__(self) -> Generator[Any, Any, Any]:
        sent = yield ("pause", self.value)
        emit("resumed", sent)
        return self.value


@types.coroutine
def tick(value: Any = None) -> Generator[Any, Any, Any]:
    """A generator-based coroutine."""
    yield ("tick", value)
    return value


class Manager:
    """A context manager, for `with` and `async with`."""

    def __init__(self, name: Any, swallow: bool = False) -> None:
        self.name = name
        self.swallow = swallow

    def __enter__(self) -> Any:
        emit("enter", self.name)
        return self.name

    def __exit__(self, kind: Any, error: Any, _: Any) -> bool:
        emit("exit", self.name, error)
        return self.swallow

    async def __aenter__(self) -> Any:
        emit("aenter", await Pause(self.name))
        return self.name

    async def __aexit__(self, kind: Any, error: Any, _: Any) -> bool:
        emit("aexit", await Pause(self.name), error)
        return self.swallow


class Counter:
    """An asynchronous iterator."""

    def __init__(self, stop: int) -> None:
        self.next = 0
        self.stop = stop

    def __aiter__(self) -> Any:
        return self

    async def __anext__(self) -> int:
        if self.next >= self.stop:
            raise StopAsyncIteration
        self.next += 1
        return await Pause(self.next - 1)


class Odd(Exception):
    """An exception whose `__init__` takes other arguments than `args` has."""

    def __init__(self, number: int, *, why: str) -> None:
        super().__init__(f"{number} {why}")
        self.number = number


Outcome = tuple[list[Any], list[Any], str]


def move(coroutine: Any) -> Any:
    """Away and back: the original is gone, a copy stands where it stood."""
    before = list(LOG)
    captured = capture(coroutine)
    data = captured.dumps()
    copy = restore(data)
    assert before == LOG, "something ran in capturing or restoring"
    captured.discard()
    del captured, coroutine
    assert before == LOG, "something ran in discarding"
    return copy


def drive(make: Callable[[], Coroutine[Any, Any, Any]], moves: Callable[[int], bool]) -> Outcome:
    """Run a coroutine to its end; `moves(n)` says whether it moves at its n-th suspension.

    Returns:
        What it yielded, its side effects, and its result or exception.
    """
    del LOG[:]
    yielded: list[Any] = []
    coroutine: Any = make()
    value: Any = None
    try:
        if moves(0):
            coroutine = move(coroutine)
        while True:
            yielded.append(repr(coroutine.send(value)))
            number = len(yielded)
            assert number < 10_000, "it does not end"
            if moves(number):
                coroutine = move(coroutine)
            # Some are resumed by throwing, as the runtime does when what is awaited has failed.
            value = number
    except StopIteration as stop:
        outcome = f"returned {stop.value!r}"
    except Exception as error:
        outcome = f"raised {described(error)}"
    return yielded, list(LOG), outcome


def described(error: BaseException | None, seen: tuple[BaseException, ...] = ()) -> str:
    """An exception with what it is connected with."""
    if error is None or any(error is each for each in seen):
        return "-"
    seen = (*seen, error)
    exceptions = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    inner = [described(each, seen) for each in exceptions]
    notes = getattr(error, "__notes__", [])
    linked = f"{described(error.__cause__, seen)} / {described(error.__context__, seen)}"
    return f"{error!r} {notes} {inner} <- {linked}"


def compare(make: Callable[[], Coroutine[Any, Any, Any]], ways: Iterable[str] = ("each", "all")) -> int:
    """Run it unmoved, moving at each suspension in turn, and moving at all of them.

    Returns:
        The number of suspensions that it moved at.
    """
    expected = drive(make, lambda _: False)
    count = len(expected[0])
    moved = 0
    choices: list[Callable[[int], bool]] = []
    if "each" in ways:
        choices += [lambda number, chosen=chosen: number == chosen for chosen in range(count + 1)]
        moved += count + 1
    if "all" in ways:
        choices.append(lambda _: True)
        moved += count + 1
    before = husks()
    for choice in choices:
        found = drive(make, choice)
        assert found == expected, f"moved: {found}\nstayed: {expected}"
    gc.collect()
    assert drive(make, lambda _: False) == expected, "the module was changed"
    assert husks() == before
    return moved
