"""The matrix: one small program for each construct that travels, and for each thing that is pinned.

`docs/continuations.md` shows the names below as a table. Run as a program, the functions belong to `__main__`
and travel by value: `python -m tests.continuation.constructs`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import operator
import socket
import sys
import threading
from collections.abc import Callable, Coroutine, Generator, Iterator
from dataclasses import dataclass
from typing import Any

from tests.continuation.world import Counter, Manager, Odd, Pause, compare, emit, tick

from p2pscoop._continuation import capture
from p2pscoop.continuation import NotPortable, check

Make = Callable[[], Coroutine[Any, Any, Any]]

TRAVELS: dict[str, dict[str, Make]] = {}
"""Group -> construct -> program."""

PINNED: dict[str, tuple[Make, str]] = {}
"""What is held -> program, and a part of the reason given."""


def travels(group: str, name: str) -> Callable[[Make], Make]:
    def register(make: Make) -> Make:
        assert name not in TRAVELS.setdefault(group, {})
        TRAVELS[group][name] = make
        return make

    return register


def pinned(name: str, reason: str) -> Callable[[Make], Make]:
    def register(make: Make) -> Make:
        PINNED[name] = make, reason
        return make

    return register


# ---------------------------------------------------------------------------------------- variables

VARIABLES = "Variables"


@travels(VARIABLES, "locals")
async def some_locals() -> Any:
    a, b, c = 1, "two", [3]
    c.append(await Pause(a))
    return a, b, c


@travels(VARIABLES, "locals not bound yet")
async def unbound_locals() -> Any:
    for value in range(2):
        if value:
            late = value
        await Pause(value)
        try:
            emit(late)
        except UnboundLocalError as error:
            emit(error.name, str(error))
    return late


@travels(VARIABLES, "deleted locals")
async def deleted_locals() -> Any:
    gone = kept = 1
    del gone
    await Pause()
    try:
        emit(gone)  # noqa: F821
    except UnboundLocalError as error:
        emit(str(error))
    gone = 2
    await Pause()
    return gone, kept


@travels(VARIABLES, "cells and free variables")
async def cells() -> Any:
    count = 0

    async def more() -> int:
        nonlocal count
        count += 1
        await Pause(count)
        count += 1
        return count

    return await more(), await more(), count


@travels(VARIABLES, "a cell shared by two closures")
async def shared_cell() -> Any:
    total = 0

    def add(number: int) -> None:
        nonlocal total
        total += number

    def read() -> int:
        return total

    functions = [add, read]
    await Pause()
    functions[0](5)
    await Pause()
    add(2)
    return functions[1](), read(), total


@travels(VARIABLES, "an empty cell")
async def empty_cell() -> Any:
    def read() -> Any:
        try:
            return late
        except NameError as error:
            return str(error)

    await Pause()
    emit(read())
    late = 1
    await Pause()
    return read()


@travels(VARIABLES, "arguments that are cells")
def argument_cells() -> Coroutine[Any, Any, Any]:
    async def work(a: int, *rest: int, b: int = 2, **more: int) -> Any:
        def inner() -> Any:
            return a, rest, b, more

        await Pause()
        a += 1
        await Pause()
        return inner()

    return work(1, 2, 3, c=4)


@travels(VARIABLES, "a closure that refers to itself")
async def recursive_closure() -> Any:
    def depth(number: int) -> int:
        return 0 if number == 0 else 1 + depth(number - 1)

    await Pause()
    return depth(5)


@travels(VARIABLES, "one object under two names")
async def aliases() -> Any:
    one: list[int] = []
    other = one
    pair = (one, {"again": one})
    await Pause()
    other.append(1)
    return one, pair, one is other is pair[0]


@travels(VARIABLES, "more than 256 locals")
def many_locals() -> Coroutine[Any, Any, Any]:
    return MANY()


_source = "async def MANY():\n" + "".join(f"    v{n} = {n}\n" for n in range(300))
_source += "    await Pause(v0)\n    return " + " + ".join(f"v{n}" for n in range(300))
exec(_source, globals())
MANY: Make = globals()["MANY"]

# ---------------------------------------------------------------------------------------- functions

FUNCTIONS = "Functions"


async def with_defaults(a: int, b: int = 2, /, c: int = 3, *, d: int, e: int = 5) -> Any:
    await Pause(a)
    return a, b, c, d, e


@travels(FUNCTIONS, "defaults, positional-only and keyword-only arguments")
def defaults() -> Coroutine[Any, Any, Any]:
    return with_defaults(1, d=4)


@travels(FUNCTIONS, "not started yet")
async def not_started() -> Any:
    waiting = with_defaults(1, d=4)
    await Pause()
    emit(waiting.cr_frame is not None)
    await Pause()
    return await waiting


class Account:
    kind = "account"

    def __init__(self, balance: int) -> None:
        self.balance = balance

    async def deposit(self, amount: int) -> int:
        self.balance += await Pause(amount)
        return self.balance

    @classmethod
    async def create(cls, balance: int) -> Account:
        await Pause(cls.kind)
        return cls(balance)

    @staticmethod
    async def rate() -> float:
        return await Pause(0.5)


class Savings(Account):
    kind = "savings"

    async def deposit(self, amount: int) -> int:
        return 10 * await super().deposit(await Pause(amount))


@travels(FUNCTIONS, "methods")
async def methods() -> Any:
    account = Account(1)
    return await account.deposit(2), account.balance


@travels(FUNCTIONS, "class methods and static methods")
async def class_methods() -> Any:
    return (await Account.create(4)).balance, await Account.rate(), (await Savings.create(5)).kind


@travels(FUNCTIONS, "`super()`")
async def with_super() -> Any:
    return await Savings(1).deposit(2)


async def factorial(n: int) -> int:
    return 1 if n == 0 else n * await factorial(await Pause(n) - 1)


@travels(FUNCTIONS, "recursion")
def recursion() -> Coroutine[Any, Any, Any]:
    return factorial(5)


@travels(FUNCTIONS, "nested functions and lambdas")
async def nested_functions() -> Any:
    factor = 3

    async def times(n: int) -> int:
        return factor * await Pause(n)

    make = lambda n: times(n + factor)  # noqa: E731
    return await make(1), [await each(2) for each in (times, make)]


@travels(FUNCTIONS, "classes defined inside")
async def local_class() -> Any:
    @dataclass
    class Point:
        x: int

        async def moved(self) -> Point:
            return Point(self.x + await Pause(self.x))

    point = Point(1)
    point = await point.moved()
    await Pause()
    return point.x, type(point) is Point, isinstance(point, Point)


def logged(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def wrapper(*args: Any) -> Any:
        emit("called", args)
        return await function(*args)

    return wrapper


@logged
async def decorated(n: int) -> Any:
    return await Pause(n)


@travels(FUNCTIONS, "decorated functions")
async def decorators() -> Any:
    return await decorated(1), await functools.partial(decorated, 2)()


# -------------------------------------------------------------------------------------- expressions

EXPRESSIONS = "Partial expressions"


@travels(EXPRESSIONS, "`await a + await b`")
async def sums() -> Any:
    return await Pause(1) + await Pause(2) * (await Pause(3) - await Pause(4))


@travels(EXPRESSIONS, "arguments of calls")
async def arguments() -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    first = call(1, await Pause(2), x=3, y=await Pause(4))
    return first, call(*(1, 2), *await Pause((3,)), a=await Pause(5), b=await Pause(6))


@travels(EXPRESSIONS, "methods that are about to be called")
async def pending_methods() -> Any:
    text = "a-b"
    items: list[int] = [3]
    items.append(await Pause(4))
    account = Account(0)
    counted = operator.add(len(text.replace("-", await Pause("+"))), await account.deposit(await Pause(7)))
    return text.join(await Pause(["x", await Pause("y")])), items, counted, {"a": 1}.get(await Pause("a"))


@travels(EXPRESSIONS, "f-strings")
async def f_strings() -> Any:
    return f"{1}{await Pause(2)!r:>{await Pause(5)}}|{await Pause(0.5):.2f}"


@travels(EXPRESSIONS, "comparisons, chained")
async def comparisons() -> Any:
    return 1 < await Pause(2) < await Pause(3) != await Pause(3), 1 in await Pause([1]), None is await Pause()


@travels(EXPRESSIONS, "`and`, `or`, `not`, conditional expressions")
async def conditions() -> Any:
    return (
        await Pause(0) or (await Pause(1) and await Pause(2)),
        not await Pause(3),
        await Pause(4) if await Pause(0) else await Pause(5),
    )


@travels(EXPRESSIONS, "subscripts and slices")
async def subscripts() -> Any:
    table = {"a": [1, 2, 3, 4]}
    table[await Pause("b")] = await Pause([5])
    table["a"][await Pause(1) : await Pause(3)] = [await Pause(9)]
    table["b"][0] += await Pause(1)
    return table[await Pause("a")][await Pause(0)], table, table["a"][: await Pause(2)]


@travels(EXPRESSIONS, "chained calls and attributes")
async def chained() -> Any:
    account = await Account.create(await Pause(1))
    account.balance += await Pause(2)
    return (await Account.create(5)).balance.__add__(await Pause(account.balance)).bit_length()


@travels(EXPRESSIONS, "unpacking")
async def unpacking() -> Any:
    a, *b, c = await Pause([1, 2, 3, 4])
    (d, e), f = (await Pause(1), await Pause(2)), await Pause(3)
    return a, b, c, d, e, f, [*b, *await Pause([7])], {"x": 1, **await Pause({"y": 2})}, {*b, await Pause(9)}


@travels(EXPRESSIONS, "walrus")
async def walrus() -> Any:
    if (n := await Pause(3)) > (m := await Pause(2)):
        return n, m, [last := n, await Pause(last)]
    return None


@travels(EXPRESSIONS, "`assert` and `raise` with an await")
async def asserts() -> Any:
    try:
        assert await Pause(0), await Pause("message")
    except AssertionError as error:
        emit(error)
    raise ValueError(await Pause(1)) from await Pause(KeyError(2))


# -------------------------------------------------------------------------------------------- loops

LOOPS = "Loops"


def squares(stop: int) -> Generator[int, None, str]:
    for n in range(stop):
        yield n * n
    return "done"


def loop_over(make: Callable[[], Any]) -> Make:
    async def loop() -> Any:
        seen = []
        for item in make():
            seen.append(item)
            await Pause(item)
        else:
            seen.append(await Pause("else"))
        return seen

    return loop


TABLE = {"a": 1, "b": 2, "c": 3}
for _name, _maker in {
    "list": lambda: [1, 2, 3],
    "tuple": lambda: (1, 2, 3),
    "str and bytes": lambda: [*iter("abc"), *iter(b"ab")],
    "range": lambda: range(5, 0, -2),
    "dict": lambda: dict(TABLE),
    "dict views": lambda: dict(TABLE).items(),
    "set": lambda: {7},
    "enumerate": lambda: enumerate("abc", 5),
    "zip": lambda: zip([1, 2, 3], "abc", strict=True),
    "reversed": lambda: reversed([1, 2, 3]),
    "map": lambda: map(abs, [-1, 2, -3]),
    "filter": lambda: filter(None, [0, 1, 0, 2]),
    "`iter` with a sentinel": lambda: iter(functools.partial(next, iter("abc")), "c"),
    "a generator": lambda: squares(3),
    "a generator over a generator": lambda: (x + y for x in squares(3) for y in range(2)),
}.items():
    travels(LOOPS, f"`for` over {_name}")(loop_over(_maker))


@travels(LOOPS, "`for` over a list that changes")
async def changing_list() -> Any:
    items = [1, 2]
    for item in items:
        if len(items) < 5:
            items.append(await Pause(item) + 10)
    return items


@travels(LOOPS, "nested, with `break`, `continue` and `else`")
async def nested_loops() -> Any:
    seen = []
    for x in range(3):
        for y in reversed([1, 2, 3]):
            if y == await Pause(2):
                continue
            if x == 2:
                break
            seen.append((x, await Pause(y)))
        else:
            seen.append(await Pause("else"))
    return seen


@travels(LOOPS, "`while`")
async def while_loop() -> Any:
    n = 4
    while (n := n - 1) > await Pause(0):
        if await Pause(n) == 2:
            continue
        emit(n)
    else:
        emit("else")
    return n


@travels(LOOPS, "`async for`")
async def async_for() -> Any:
    seen = []
    async for n in Counter(3):
        seen.append((n, await Pause(n)))
    else:
        await Pause("else")
    return seen


@travels(LOOPS, "a generator that is held in a local")
async def held_generator() -> Any:
    generator = squares(4)
    pair = (next(generator), generator)
    await Pause()
    seen = [next(pair[1])]
    await Pause()
    seen += generator
    await Pause()
    return seen, list(pair[1]), pair[0], pair[1] is generator


@travels(LOOPS, "a generator that refers to itself")
async def selfish_generator() -> Any:
    box: list[Any] = []

    def generate() -> Iterator[Any]:
        yield 1
        yield box[0] is generator

    generator = generate()
    box.append(generator)
    next(generator)
    await Pause()
    return next(generator)


# ----------------------------------------------------------------------------------- comprehensions

COMPREHENSIONS = "Comprehensions"


@travels(COMPREHENSIONS, "list, set and dict with await")
async def comprehensions() -> Any:
    x = "kept"
    return (
        [await Pause(x) for x in range(3)],
        {await Pause(x % 2) for x in range(3)},
        {await Pause(x): await Pause(x + 1) for x in range(2)},
        x,
    )


@travels(COMPREHENSIONS, "with conditions and several loops")
async def filtered() -> Any:
    return [(x, y) for x in range(3) if await Pause(x) for y in range(x) if await Pause(y) >= 0]


@travels(COMPREHENSIONS, "nested")
async def nested_comprehensions() -> Any:
    return [[await Pause(x * y) for x in range(2)] for y in range(2)]


@travels(COMPREHENSIONS, "with `async for`")
async def async_comprehensions() -> Any:
    return [x + await Pause(x) async for x in Counter(3) if x != 1], {x: 1 async for x in Counter(2)}


@travels(COMPREHENSIONS, "whose variable is in a closure")
async def captured_comprehension() -> Any:
    x = "kept"
    functions = [(lambda: x, await Pause(x)) for x in range(2)]  # noqa: B023
    return [function() for function, _ in functions], x


# --------------------------------------------------------------------------------------- with

WITH = "With"


@travels(WITH, "`with`")
async def with_statement() -> Any:
    with Manager(1) as name:
        return await Pause(name)


@travels(WITH, "`with`, several and nested")
async def nested_with() -> Any:
    with Manager(1) as a, Manager(2, swallow=True), Manager(3):
        await Pause(a)
        raise ValueError(await Pause("x"))
    return await Pause("after")


@travels(WITH, "`async with`")
async def async_with() -> Any:
    async with Manager(1) as a, Manager(2) as b:
        return a, b, await Pause(3)


@travels(WITH, "`async with`, left by an exception")
async def async_with_exception() -> Any:
    async with Manager(1, swallow=True), Manager(2):
        await Pause()
        raise Odd(3, why="reason")
    return await Pause("after")


@travels(WITH, "`with` in a loop, left by `break`, `continue`, `return`")
async def left_with() -> Any:
    for n in range(4):
        with Manager(n):
            async with Manager(-n):
                if n == await Pause(0):
                    continue
                if n == 2:
                    break
                emit("body", n)
    with Manager("last"):
        return await Pause("result")


@contextlib.contextmanager
def managed(name: str) -> Iterator[str]:
    emit("before", name)
    try:
        yield name
    finally:
        emit("after", name)


@travels(WITH, "a `contextlib.contextmanager`")
async def generator_manager() -> Any:
    with managed("outer") as name, contextlib.suppress(KeyError):
        await Pause(name)
        raise KeyError(await Pause("inside"))
    return await Pause("end")


# ---------------------------------------------------------------------------------------- exceptions

EXCEPTIONS = "Exceptions"


@travels(EXCEPTIONS, "await in `try`, `except`, `else`, `finally`")
async def try_statement() -> Any:
    for n in range(3):
        try:
            await Pause(n)
            if n == 1:
                raise Odd(await Pause(n), why="odd")
        except Odd as error:
            emit(await Pause(error.number), error.args)
        else:
            emit(await Pause("else"))
        finally:
            emit(await Pause("finally"))


@travels(EXCEPTIONS, "`return` in `try` with await in `finally`")
async def return_in_try() -> Any:
    try:
        try:
            return await Pause(1)
        finally:
            await Pause(2)
    finally:
        emit(await Pause(3))


@travels(EXCEPTIONS, "bare `raise` after an await in a handler")
async def bare_raise() -> Any:
    try:
        try:
            raise KeyError("first")
        except KeyError:
            await Pause(1)
            raise
    except LookupError as error:
        await Pause(2)
        raise Odd(1, why="second") from error


@travels(EXCEPTIONS, "handlers in handlers, and the context they set")
async def nested_handlers() -> Any:
    try:
        raise ValueError(1)
    except ValueError:
        try:
            await Pause(1)
            raise KeyError(2)
        except KeyError as inner:
            inner.add_note(await Pause("a note"))
            try:
                await Pause(3)
                raise TypeError(4)
            except TypeError as error:
                emit(repr(error.__context__), repr(error.__context__.__context__))
                await Pause(5)
                emit(repr(sys.exc_info()[1]))
            emit(repr(sys.exc_info()[1]))
            await Pause(6)
            raise
        finally:
            emit(repr(sys.exc_info()[1]), await Pause(7))


@travels(EXCEPTIONS, "`finally` while an exception passes")
async def passing() -> Any:
    try:
        raise ZeroDivisionError(await Pause("x"))
    finally:
        emit(await Pause("first"), repr(sys.exc_info()[1]))
        try:
            await Pause("second")
        finally:
            emit(await Pause("third"))


@travels(EXCEPTIONS, "exception groups and `except*`")
async def groups() -> Any:
    try:
        try:
            raise ExceptionGroup("all", [ValueError(1), ExceptionGroup("some", [KeyError(2), Odd(3, why="x")])])
        except* ValueError as found:
            emit(await Pause(len(found.exceptions)))
        except* KeyError as found:
            emit(repr(found), await Pause("key"))
            raise TypeError(await Pause(4)) from found
        finally:
            await Pause("finally")
    except ExceptionGroup as rest:
        await Pause("rest")
        raise rest.exceptions[-1] from None


@travels(EXCEPTIONS, "errors with attributes of their own")
async def rich_errors() -> Any:
    try:
        raise OSError(2, "no such thing", "name")
    except OSError as first:
        try:
            raise ImportError("text", name="n", path="p")
        except ImportError as second:
            await Pause()
            return first.errno, first.filename, type(first), second.name, second.path, second.__context__ is first


@travels(EXCEPTIONS, "what an awaited coroutine raises")
async def from_inside() -> Any:
    async def failing(n: int) -> Any:
        try:
            if n == 0:
                raise Odd(n, why="deep")
            return await failing(await Pause(n) - 1)
        finally:
            emit(await Pause(-n))

    try:
        await failing(3)
    except Odd as error:
        return error.number, await Pause(str(error))


# ------------------------------------------------------------------------------------------ matching

MATCH = "Match"


@travels(MATCH, "patterns and guards with await")
async def matching() -> Any:
    results = []
    for subject in ([1, 2, 3], {"k": 1, "x": 2}, Account(5), "word", 7, (8, 9)):
        match await Pause(subject) if not isinstance(subject, Account) else subject:
            case [first, *others] if first == await Pause(1):
                results.append((first, others))
            case {"k": value, **rest}:
                results.append((value, rest, await Pause("mapping")))
            case Account(balance=amount) if await Pause(amount):
                results.append(amount)
            case str() as text if await Pause(True):
                results.append(text)
            case 7 | 8:
                results.append(await Pause("seven"))
            case (x, y):
                results.append(await Pause(x + y))
    return results


# ------------------------------------------------------------------------------------------ awaiting

AWAITING = "Awaiting"


@travels(AWAITING, "objects whose `__await__` is a generator")
async def awaitables() -> Any:
    return await Pause(1), await Pause(2)


@travels(AWAITING, "generator-based coroutines")
async def generator_based() -> Any:
    return await tick(1), await tick(2)


class Delegating:
    def __await__(self) -> Any:
        return with_defaults(1, d=2).__await__()


class Outer:
    def __await__(self) -> Generator[Any, Any, Any]:
        emit("delegates")
        return (yield from tick("inner").__iter__()), (yield from Pause("second").__await__())


@travels(AWAITING, "`coroutine.__await__()` and `yield from`")
async def delegating() -> Any:
    return await Delegating(), await Outer()


async def chain(depth: int) -> int:
    return 1 + await chain(depth - 1) if depth else await Pause(0)


@travels(AWAITING, "50 coroutines deep")
def deep() -> Coroutine[Any, Any, Any]:
    return chain(50)


async def gather(*coroutines: Coroutine[Any, Any, Any]) -> list[Any]:
    """In turns, as long as one of them is not done: what `gather` of an event loop comes down to."""
    results: dict[int, Any] = {}
    running = dict(enumerate(coroutines))
    while running:
        for index, coroutine in list(running.items()):
            try:
                emit(index, coroutine.send(None))
            except StopIteration as stop:
                results[index] = stop.value
                del running[index]
            else:
                await Pause(index)
    return [results[index] for index in sorted(results)]


@travels(AWAITING, "several suspended coroutines at once")
async def gathering() -> Any:
    return await gather(factorial(2), with_defaults(1, d=3), async_with(), bare_and_quiet())


async def bare_and_quiet() -> Any:
    try:
        return await bare_raise()
    except Odd:
        return "quiet"


@travels(AWAITING, "values of many types")
async def many_types() -> Any:
    values: Any = (
        None, ..., NotImplemented, 1, 10**30, 1.5, 2j, "s", b"b", bytearray(b"x"), (1,), [2], {3}, frozenset({4}),
        {5: 6}, range(3), slice(1, 2), int, Account, len, [].append, operator.attrgetter("a"), itertools.__name__,
        functools.partial(max, 1), Account.rate, contextlib, asyncio.Future,
    )  # fmt: skip
    await Pause()
    return values[:15], len(values), values[18] is Account, values[14]


@travels(AWAITING, "dict views that see later changes")
async def views() -> Any:
    table = {1: 2}
    keys, values = table.keys(), table.values()
    await Pause()
    table[3] = 4
    await Pause()
    return list(keys), list(values)


# ------------------------------------------------------------------------------------------- pinned


@pinned("an open file", "an open file in local `file` of `open_file`, line")
async def open_file() -> Any:
    with open(__file__) as file:
        await Pause()
        return file.readline()


@pinned("a socket", "in local `link` of `open_socket`, line")
async def open_socket() -> Any:
    with socket.socket() as link:
        await Pause()
        return link.family


@pinned("a lock", "in local `lock` of `held_lock`, line")
async def held_lock() -> Any:
    lock = threading.Lock()
    await Pause()
    return lock.locked()


@pinned("a thread", "in local `thread` of `held_thread`, line")
async def held_thread() -> Any:
    thread = threading.Thread()
    await Pause()
    return thread.is_alive()


@pinned("a traceback", "in local `trace` of `held_traceback`, line")
async def held_traceback() -> Any:
    try:
        raise ValueError
    except ValueError as error:
        trace = error.__traceback__
    await Pause()
    return trace is not None


@pinned("a memoryview", "a memoryview in local `view` of `held_view`, line")
async def held_view() -> Any:
    view = memoryview(b"abc")
    await Pause()
    return view[0]


async def numbers() -> Any:
    yield 1
    yield await Pause(2)


@pinned("an async generator", "async")
async def over_async_generator() -> Any:
    return [each async for each in numbers()]


@pinned("an asyncio future", "uture")
async def asyncio_future() -> Any:
    loop = asyncio.new_event_loop()
    try:
        future = loop.create_future()
        await Pause()
        future.set_result(1)
        return future.result()
    finally:
        loop.close()


async def with_locals() -> Any:
    names = locals()
    await Pause()
    return sorted(names)


# Since Python 3.13 it is an ordinary dict.
if sys.version_info < (3, 13):
    pinned("what `locals()` returned, before Python 3.13", "locals()")(with_locals)
else:
    travels(VARIABLES, "what `locals()` returned, since Python 3.13")(with_locals)


@pinned("a value whose `__reduce__` raises", "in local `thing` of `unpicklable`, line")
async def unpicklable() -> Any:
    thing = Unpicklable()
    await Pause()
    return type(thing).__name__


class Unpicklable:
    def __reduce__(self) -> Any:
        raise RuntimeError("not me")


def table() -> str:
    """The matrix as Markdown."""
    newer = "what `locals()` returned, since Python 3.13"
    older = "what `locals()` returned, before Python 3.13"
    lines = ["| | travels |", "|---|---|"]
    for group, programs in TRAVELS.items():
        names = [name for name in programs if name != newer] + [newer] * (group == VARIABLES)
        lines.append(f"| **{group}** | {'; '.join(names)} |")
    lines += ["", "| holds | what happens |", "|---|---|"]
    lines += [f"| {name} | pinned |" for name in [*(name for name in PINNED if name != older), older]]
    return "\n".join(lines) + "\n"


def main() -> int:
    """All of it, without pytest."""
    moved = failures = 0
    for group, programs in TRAVELS.items():
        for name, make in programs.items():
            try:
                moved += compare(make)
            except Exception as error:
                failures += 1
                print(f"FAILED {group}: {name}: {type(error).__name__}: {error}")
    for name, (make, reason) in PINNED.items():
        coroutine: Any = make()
        coroutine.send(None)
        found = check(coroutine)
        if found is None or reason not in found:
            failures += 1
            print(f"FAILED {name}: {found}")
        try:
            capture(coroutine).discard()
        except NotPortable:
            coroutine.close()
    print(f"{moved} moves, {failures} failures")
    return failures


if __name__ == "__main__":
    sys.exit(main())
