"""Code objects as this package needs them: instructions, exception tables, line tables, cached lookups.

Decides how the tables of CPython 3.11 to 3.13 are read and written. Does not decide what an instruction does
to the stack (`effects`), nor what to do with the answer (`analyse`, `resume`).

Exception and line tables are documented in CPython's `Objects/exception_handling_notes.txt` and
`Objects/locations.md`: offsets count code units of two bytes, numbers are made of groups of six bits.
"""

from __future__ import annotations

import dis
import platform
import sys
from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any, Generic, NamedTuple, TypeVar

__all__ = [
    "VERSION",
    "CodeCache",
    "Handler",
    "Instruction",
    "handlers_of",
    "instructions_of",
    "interned",
    "shifted_handlers",
    "shifted_lines",
    "unsupported",
]

VERSION = sys.version_info[:2]

_PROVEN = ((3, 11), (3, 12), (3, 13))
_CACHE_MAX = 4096

T = TypeVar("T")


def unsupported() -> str | None:
    """Why no continuation travels on this interpreter, or None if they do."""
    if platform.python_implementation() != "CPython":
        return f"continuations travel on CPython only, this is {platform.python_implementation()}"
    if VERSION not in _PROVEN:
        proven = ", ".join(f"{major}.{minor}" for major, minor in _PROVEN)
        return f"continuations are proven on CPython {proven}, this is {VERSION[0]}.{VERSION[1]}"
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        return "continuations are not proven without the GIL"
    return None


class Instruction(NamedTuple):
    """One instruction of a code object, without its caches.

    Attributes:
        offset: in bytes.
        name: of the operation, not specialized.
        arg: with the prefixes applied; 0 if it has none.
        target: offset of where it may jump to, or -1.
    """

    offset: int
    name: str
    arg: int
    target: int


def instructions_of(code: CodeType) -> list[Instruction]:
    """All instructions in order, prefixes (EXTENDED_ARG) among them."""
    jumps = dis.hasjrel
    return [
        Instruction(each.offset, each.opname, each.arg or 0, each.argval if each.opcode in jumps else -1)
        for each in dis.get_instructions(code)
    ]


class Handler(NamedTuple):
    """One entry of an exception table; offsets in bytes, `end` exclusive."""

    start: int
    end: int
    target: int
    depth: int
    lasti: bool


def handlers_of(code: CodeType) -> list[Handler]:
    """The exception table, in its order, which is by offset."""
    numbers = _read_numbers(code.co_exceptiontable)
    found = []
    for start in numbers:
        length, target, packed = next(numbers), next(numbers), next(numbers)
        found.append(Handler(start * 2, (start + length) * 2, target * 2, packed >> 1, bool(packed & 1)))
    return found


def shifted_handlers(code: CodeType, units: int) -> bytes:
    """The exception table of the same code with so many code units before it."""
    table = bytearray()
    for start, end, target, depth, lasti in handlers_of(code):
        _write_number(table, start // 2 + units, first=True)
        _write_number(table, (end - start) // 2)
        _write_number(table, target // 2 + units)
        _write_number(table, depth << 1 | lasti)
    return bytes(table)


def shifted_lines(code: CodeType, units: int) -> bytes:
    """The line table of the same code with so many code units before it, which belong to no line."""
    table = bytearray()
    while units > 0:
        length = min(units, 8)
        table.append(0x80 | 15 << 3 | length - 1)
        units -= length
    return bytes(table) + code.co_linetable


def _read_numbers(table: bytes) -> Iterator[int]:
    number = 0
    for byte in table:
        number = number << 6 | byte & 63
        if not byte & 64:
            yield number
            number = 0


def _write_number(table: bytearray, number: int, *, first: bool = False) -> None:
    groups = [number & 63]
    while number := number >> 6:
        groups.append(number & 63 | 64)
    groups.reverse()
    if first:
        groups[0] |= 128
    table += bytes(groups)


class CodeCache(Generic[T]):
    """What was found out about code objects, by identity: comparing them by value costs more than it saves.

    Args:
        compute: called once per code object (and key), as long as the cache is not full.
    """

    def __init__(self, compute: Callable[..., T]) -> None:
        self._compute = compute
        self._known: dict[Any, tuple[CodeType, T]] = {}

    def __call__(self, code: CodeType, *key: Any) -> T:
        """The value for a code object; each further argument is part of the key."""
        index = (id(code), *key) if key else id(code)
        known = self._known.get(index)
        if known is None:
            # The code object is kept with it, so that its id stays taken.
            known = code, self._compute(code, *key)
            if len(self._known) >= _CACHE_MAX:
                self._known.clear()
            self._known[index] = known
        return known[1]


_interned: dict[tuple[CodeType, str], CodeType] = {}


def interned(code: CodeType) -> CodeType:
    """The first code object equal to this one.

    Code that travels by value arrives as a new object each time; so it is analysed once.
    """
    if len(_interned) >= _CACHE_MAX:
        _interned.clear()
    # Code objects compare equal whatever their qualified names.
    return _interned.setdefault((code, code.co_qualname), code)
