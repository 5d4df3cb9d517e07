"""Writes random coroutines, and holds what they call.

Decides what they are made of: nested `try`, `with`, loops, comprehensions, closures, `match`, partial
expressions and calls of each other, with an `await` wherever one may stand. Every program ends: loops are
bounded, calls go to functions that were written earlier. Does not run them (`fuzz`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from types import coroutine
from typing import Any

__all__ = ["LOG", "write_program"]

LOG: list[str] = []
"""Side effects, in order."""

_DEPTH_MAX = 3

_HEADER = """\
from p2pscoop._continuation.fuzz_programs import Aiter, Broken, Cm, Pause, Thing, emit, generate, managed, tick
"""


def emit(*values: Any) -> None:
    """A side effect."""
    LOG.append(repr(values))


class Broken(Exception):
    """Raised by programs; made in a way that `args` does not show."""

    def __init__(self, number: Any, *, reason: str = "none") -> None:
        super().__init__(f"{number}/{reason}")
        self.number = number


class Pause:
    """Suspends once, as a future does."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __await__(self) -> Generator[Any, Any, Any]:
        try:
            yield self.value
        except ValueError as error:
            raise Broken(self.value, reason=str(error)) from error
        return self.value


@coroutine
def tick(value: Any) -> Generator[Any, Any, Any]:
    """Suspends once, in a generator-based coroutine."""
    yield value
    return value


class Cm:
    """A context manager of both kinds, which may swallow what is raised."""

    def __init__(self, value: Any, swallow: bool) -> None:
        self.value = value
        self.swallow = swallow

    def __enter__(self) -> Any:
        emit("enter", self.value)
        return self.value

    def __exit__(self, _kind: Any, error: Any, _trace: Any) -> bool:
        emit("exit", self.value, error)
        return self.swallow and isinstance(error, Exception)

    async def __aenter__(self) -> Any:
        emit("enter", await Pause(self.value))
        return self.value

    async def __aexit__(self, *details: Any) -> bool:
        emit("exit", await Pause(self.value), details[1])
        return self.swallow and isinstance(details[1], Exception)


class Aiter:
    """An asynchronous iterator."""

    def __init__(self, stop: int) -> None:
        self.left = stop

    def __aiter__(self) -> Aiter:
        return self

    async def __anext__(self) -> int:
        if self.left <= 0:
            raise StopAsyncIteration
        self.left -= 1
        return int(await tick(self.left))


class Thing:
    """Something with attributes, items and methods."""

    __match_args__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value
        self.items = [value, 0, 1]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Thing) and self.value == other.value

    def __hash__(self) -> int:
        return 1

    def __repr__(self) -> str:
        return f"Thing({self.value!r}, {self.items!r})"

    def add(self, *values: Any, **named: Any) -> Any:
        """Return what it was given."""
        self.items.append(len(values))
        return (self.value, *values, *named.items())

    async def wait(self, value: Any) -> Any:
        """Suspend in a method."""
        self.value = await Pause(value)
        return self.value


def generate(stop: int) -> Iterator[int]:
    """A generator in a `try`.

    When it is abandoned it says nothing: a traceback may hold it as long as it likes, and tracebacks do not move.
    """
    for number in range(stop):
        try:
            yield number
        except GeneratorExit:
            raise
        finally:
            stop -= 1
    emit("generator", stop)


@contextmanager
def managed(value: Any) -> Iterator[Any]:
    """A context manager made from a generator."""
    emit("before", value)
    try:
        yield value
    except Broken as error:
        emit("caught", error)
        raise
    finally:
        emit("after", value)


class _Writer:
    """One program.

    Args:
        draw: source of all choices.
    """

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        self.lines: list[str] = [_HEADER]
        self.functions: list[str] = []
        self.names: list[str] = []
        self.level = 0
        self.serial = 0
        self.loops = 0
        self.handlers = 0
        self.comprehensions = 0

    # ------------------------------------------------------------------------------------ expressions

    def name(self) -> str:
        return self.draw.choice(self.names)

    def fresh(self, prefix: str = "v") -> str:
        self.serial += 1
        return f"{prefix}{self.serial}"

    def awaited(self, depth: int = 0) -> str:
        """An await expression."""
        value = self.value(depth + 1)
        kind = self.draw.randrange(8 if self.functions and depth < 2 else 5)
        if kind < 2:
            return f"await Pause({value})"
        if kind == 2:
            return f"await tick({value})"
        if kind == 3:
            return f"await Thing({value}).wait({self.value(depth + 1)})"
        if kind == 4:
            return f"(await Pause({value}))"
        return f"await {self.draw.choice(self.functions)}({value}, k={self.value(depth + 1)})"

    def value(self, depth: int = 0) -> str:
        """An expression of any type, which may hold awaits."""
        if depth > 2:
            return self.draw.choice([str(self.draw.randrange(5)), self.name(), repr("s")])
        inner = partial(self.value, depth + 1)
        choices: list[Callable[[], str]] = [
            lambda: str(self.draw.randrange(5)),
            self.name,
            lambda: f"({self.awaited(depth + 1)})",
            lambda: f"({self.awaited(depth + 1)})",
            lambda: f"({inner()}, {inner()})",
            lambda: f"[{inner()}, *({inner()},), {self.awaited(depth + 1)}]",
            lambda: f"{{'a': {inner()}, 'b': {self.awaited(depth + 1)}}}",
            lambda: f"Thing({inner()}).add({inner()}, {self.awaited(depth + 1)}, x={inner()})",
            lambda: f"Thing({inner()}).items[{self.draw.randrange(3)}]",
            self.formatted,
            lambda: f"({inner()} if {self.awaited(depth + 1)} else {inner()})",
            lambda: f"({inner()} or {inner()} and {self.awaited(depth + 1)})",
            lambda: f"(not {inner()}, Thing({inner()}).value is None, {inner()} == {self.awaited(depth + 1)})",
            lambda: self.walrus(inner),
            lambda: f"str({inner()}).join([str({self.awaited(depth + 1)}), {self.name()!r}])",
            lambda: f"(lambda z, *, w=({inner()}): (z, w))({self.awaited(depth + 1)})",
            lambda: self.comprehension(depth),
        ]
        return self.draw.choice(choices)()

    def formatted(self) -> str:
        # Without strings in it: Python 3.11 would take them for its end.
        one, two = self.name(), self.name()
        return f"f'{{(await Pause({one}))!r}}-{{{two}}}-{{(await tick({one}))!s:>{{await Pause(9)}}}}'"

    def walrus(self, inner: Callable[[], str]) -> str:
        if self.comprehensions:
            return inner()
        return f"(({self.name()} := {inner()}), {inner()})"

    def iterable(self, depth: int = 0) -> str:
        size = self.draw.randrange(1, 4)
        return self.draw.choice(
            [
                f"range({size})",
                f"[{self.value(depth + 1)}, {size}]",
                f"({size}, {self.value(depth + 1)})",
                f"enumerate([{size}, {self.value(depth + 1)}])",
                f"zip(range({size}), [{self.value(depth + 1)}, 2, 3])",
                f"reversed([{size}, {self.value(depth + 1)}])",
                f"{{'p': {size}, 'q': {self.value(depth + 1)}}}.items()",
                f"map(repr, [{size}, {self.value(depth + 1)}])",
                f"filter(None, [{size}, 0, {self.value(depth + 1)}])",
                f"generate({size})",
                f"(({size}, y) for y in range({size}))",
            ]
        )

    def comprehension(self, depth: int) -> str:
        target = self.fresh("c")
        # In here assignment expressions are not allowed everywhere.
        self.comprehensions += 1
        source = self.iterable(depth + 1)
        self.names.append(target)
        element = self.awaited(depth + 2)
        condition = f" if ({self.awaited(depth + 2)}) != 1" if self.draw.random() < 0.4 else ""
        second = f" for _ in range({self.draw.randrange(1, 3)})" if self.draw.random() < 0.3 else ""
        kind = self.draw.randrange(4)
        self.names.remove(target)
        self.comprehensions -= 1
        if kind == 0:
            return f"[({element}) for {target} in {source}{condition}{second}]"
        if kind == 1:
            return f"{{repr({target}): ({element}) for {target} in {source}{condition}{second}}}"
        if kind == 2:
            return f"sorted({{repr({element}) for {target} in {source}{condition}}})"
        return f"[({element}) async for {target} in Aiter({self.draw.randrange(1, 3)}){second}]"

    # ------------------------------------------------------------------------------------- statements

    def line(self, text: str) -> None:
        self.lines.append("    " * self.level + text)

    def block(self, depth: int, size: int | None = None) -> None:
        self.level += 1
        for _ in range(size or self.draw.randrange(1, 4)):
            self.statement(depth + 1)
        self.level -= 1

    def statement(self, depth: int) -> None:
        simple = [
            self.assignment,
            self.assignment,
            self.report,
            self.report,
            self.augment,
            self.delete,
            self.leave,
        ]
        nested = [
            self.conditional,
            self.loop,
            self.loop,
            self.while_loop,
            self.attempt,
            self.attempt,
            self.attempt,
            self.with_block,
            self.with_block,
            self.closure,
            self.matching,
            self.group,
        ]
        if depth >= _DEPTH_MAX or self.draw.random() < 0.45:
            self.draw.choice(simple)(depth)
        else:
            self.draw.choice(nested)(depth)

    def assignment(self, _depth: int) -> None:
        kind = self.draw.randrange(4)
        value = self.value()
        target = self.draw.choice([self.fresh(), self.name()])
        if kind == 0:
            other = self.fresh()
            self.line(f"{target}, *{other} = {value}, {self.awaited()}, 1")
        elif kind == 1:
            self.line(f"{target} = {self.awaited()}")
        else:
            self.line(f"{target} = {value}")
        if target not in self.names and self.draw.random() < 0.8:
            self.names.append(target)

    def report(self, _depth: int) -> None:
        self.line(f"emit({self.value()}, {self.awaited()})")

    def augment(self, _depth: int) -> None:
        self.line(f"thing = Thing({self.value()})")
        self.line(f"thing.items[{self.draw.randrange(3)}] = {self.awaited()}")
        self.line(f"thing.value = [thing.value, {self.awaited()}][{self.draw.randrange(2)}]")
        self.line("emit(thing)")

    def delete(self, _depth: int) -> None:
        name = self.fresh("d")
        self.line(f"{name} = {self.awaited()}")
        self.line(f"del {name}")
        self.line(f"emit({self.awaited()})")

    def leave(self, _depth: int) -> None:
        choices = ["raise Broken({}, reason='raised')", "return {}", "raise KeyError({}) from Broken(1)"]
        if self.loops:
            choices += ["break", "continue"] * 2
        if self.handlers:
            choices += ["raise"] * 3
        choice = self.draw.choice(choices)
        if "{}" in choice:
            choice = choice.format(self.awaited())
        self.line(f"if (await Pause({self.draw.randrange(3)})) == {self.draw.randrange(3)}:")
        self.line(f"    {choice}")

    def conditional(self, depth: int) -> None:
        self.line(f"if {self.value()}:")
        self.block(depth)
        self.line("else:")
        self.block(depth)

    def loop(self, depth: int) -> None:
        target = self.fresh("i")
        if self.draw.random() < 0.25:
            self.line(f"async for {target} in Aiter({self.draw.randrange(1, 3)}):")
        else:
            self.line(f"for {target} in {self.iterable()}:")
        self.names.append(target)
        self.loops += 1
        self.block(depth)
        self.loops -= 1
        self.names.remove(target)
        if self.draw.random() < 0.3:
            self.line("else:")
            self.block(depth, 1)

    def while_loop(self, depth: int) -> None:
        counter = self.fresh("n")
        self.line(f"{counter} = 0")
        self.line(f"while ({counter} := {counter} + 1) < {self.draw.randrange(2, 4)} and ({self.awaited()}, 1):")
        self.loops += 1
        self.block(depth)
        self.loops -= 1

    def attempt(self, depth: int) -> None:
        self.line("try:")
        self.block(depth)
        handlers = self.draw.randrange(3)
        if handlers:
            error = self.fresh("e")
            self.line(f"except {self.draw.choice(['Broken', '(Broken, KeyError)', 'Exception'])} as {error}:")
            self.handlers += 1
            self.level += 1
            self.line(f"emit(repr({error}), {self.awaited()})")
            self.level -= 1
            self.block(depth)
            self.handlers -= 1
        if handlers == 2:
            self.line("except Exception:")
            self.handlers += 1
            self.block(depth)
            self.handlers -= 1
            self.line("else:")
            self.block(depth, 1)
        if not handlers or self.draw.random() < 0.5:
            self.line("finally:")
            # A `break` or `return` in here would swallow exceptions, which is not what most programs do.
            loops, self.loops = self.loops, 0
            self.block(depth)
            self.loops = loops

    def with_block(self, depth: int) -> None:
        target = self.fresh("w")
        swallow = self.draw.random() < 0.4
        manager = self.draw.choice(
            [
                f"with Cm({self.value()}, {swallow}) as {target}",
                f"async with Cm({self.value()}, {swallow}) as {target}",
                f"with managed({self.value()}) as {target}",
                f"with Cm(1, False), managed({self.awaited()}) as {target}",
                f"async with Cm({self.awaited()}, False), Cm(2, {swallow}) as {target}",
            ]
        )
        self.line(f"{manager}:")
        self.names.append(target)
        self.block(depth)
        self.names.remove(target)

    def closure(self, depth: int) -> None:
        cell, function = self.fresh("x"), self.fresh("g")
        self.line(f"{cell} = {self.value()}")
        self.line(f"async def {function}(a=({self.awaited()}), *rest, k=None):")
        self.level += 1
        self.line(f"nonlocal {cell}")
        self.line(f"{cell} = [repr({cell})[:40], {self.awaited()}]")
        self.line(f"def peek(): return {cell}, a, k")
        self.level -= 1
        names, self.names = self.names, [*self.names, "a", "k", cell]
        loops, self.loops = self.loops, 0
        handlers, self.handlers = self.handlers, 0
        self.block(depth, 2)
        self.names, self.loops, self.handlers = names, loops, handlers
        self.level += 1
        self.line(f"return (lambda: (peek(), {cell}))()")
        self.level -= 1
        self.line(f"emit(await {function}({self.value()}, 1, k={self.awaited()}), {cell})")
        self.line(f"pending = {function}(1)")
        self.line(f"emit({self.awaited()})")
        self.line("emit(await pending)")

    def matching(self, depth: int) -> None:
        self.line(f"match {self.value()}:")
        self.level += 1
        for pattern in self.draw.sample(
            [
                f"case [first, *others] if {self.awaited()}:",
                "case {'a': first, **others}:",
                "case Thing(first) | Thing(value=first):",
                f"case int() as first if first or {self.awaited()}:",
                "case str():",
            ],
            k=3,
        ):
            self.line(pattern)
            self.block(depth, 1)
        self.line("case _:")
        self.block(depth, 1)
        self.level -= 1

    def group(self, depth: int) -> None:
        self.line("try:")
        self.level += 1
        self.line("try:")
        self.block(depth, 1)
        self.level += 1
        self.line(f"errors = [Broken({self.awaited()}), KeyError(1), ExceptionGroup('h', [KeyError(2)])]")
        self.line("raise ExceptionGroup('g', errors)")
        self.level -= 1
        self.line("except* KeyError as some:")
        loops, self.loops = self.loops, 0
        handlers, self.handlers = self.handlers, 0
        self.level += 1
        self.line(f"emit(repr(some), {self.awaited()})")
        self.level -= 1
        self.line("except* Broken as some:")
        self.level += 1
        self.line(f"emit(repr(some), {self.awaited()})")
        if self.draw.random() < 0.5:
            self.line("raise")
        self.level -= 1
        self.loops, self.handlers = loops, handlers
        self.level -= 1
        self.line("except Exception as error:")
        self.level += 1
        self.line(f"emit(repr(error), {self.awaited()})")
        self.level -= 1

    # -------------------------------------------------------------------------------------- functions

    def function(self, name: str) -> None:
        self.names = ["a", "k"]
        self.line(f"async def {name}(a=0, *, k=1):")
        self.level += 1
        # Names that some way leaves unbound are part of the game: what they raise is compared too.
        self.line("emit(a, k)")
        self.level -= 1
        self.block(0, self.draw.randrange(2, 5))
        self.line(f"    return ({self.value()}, {self.awaited()})")
        self.functions.append(name)


def write_program(draw: random.Random) -> str:
    """The source of a module whose `main()` makes a coroutine."""
    writer = _Writer(draw)
    for index in range(draw.randrange(3)):
        writer.function(f"f{index}")
    writer.function("main")
    return "\n".join(writer.lines) + "\n"
