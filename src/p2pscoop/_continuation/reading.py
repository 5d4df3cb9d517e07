"""What the frame of a suspended coroutine or generator holds: values of its locals, cells and value stack.

Decides how the list that the cycle collector would follow (`gc.get_referents`) is told apart into slots. That
list has the frame's references in order, but leaves out empty slots; the static analysis says which may be
empty. Exactly one reading must fit it, else `Unreadable`. Changes nothing, runs no user code.
"""

from __future__ import annotations

import gc
import sys
from itertools import combinations
from types import (
    CellType,
    CodeType,
    CoroutineType,
    FrameType,
    FunctionType,
    GeneratorType,
)
from typing import Any, TypeAlias

from p2pscoop._continuation.analyse import CREATED, Point, Unknown, analyse
from p2pscoop._continuation.bytecode import VERSION
from p2pscoop._continuation.effects import CELL, LASTI, MAYBE, METHOD, NULL, PREVIOUS
from p2pscoop._continuation.resume import origin_of

__all__ = ["EMPTY", "WRAPPER", "Frame", "Suspended", "Unreadable", "awaited_by", "frame_of", "read", "state_of"]


class _Empty:
    """A slot without a value."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "EMPTY"


EMPTY: Any = _Empty()

Suspended: TypeAlias = "CoroutineType[Any, Any, Any] | GeneratorType[Any, Any, Any]"


async def _nothing() -> None:
    pass


_coroutine = _nothing()
WRAPPER = type(_coroutine.__await__())
"""Type of what `coroutine.__await__()` returns: a mere view of the coroutine."""
_coroutine.close()

_READINGS_MAX = 1024
_METHOD_DESCRIPTOR = 1 << 17  # Py_TPFLAGS_METHOD_DESCRIPTOR


class Unreadable(Exception):
    """The frame cannot be read, for the reason given."""


class Frame:
    """Of one suspended coroutine or generator, as it was read.

    Attributes:
        suspended: whose frame it is.
        code: its code object, without the prologue if it has travelled before.
        function: what it was made from: globals and closure.
        closure: its free variables.
        point: where it stands.
        slots: values of locals and cells, EMPTY if unbound.
        stack: values of the value stack, EMPTY for gaps. Positions in the code count from `code`'s own start.
        exception: which is being handled; None if none is.
        line: in its source file.
    """

    __slots__ = ("closure", "code", "exception", "function", "line", "point", "slots", "stack", "suspended")

    def __init__(
        self,
        suspended: Suspended,
        code: CodeType,
        function: FunctionType,
        closure: tuple[CellType, ...],
        point: Point,
        slots: list[Any],
        stack: list[Any],
        exception: BaseException | None,
        line: int,
    ) -> None:
        self.suspended = suspended
        self.code = code
        self.function = function
        self.closure = closure
        self.point = point
        self.slots = slots
        self.stack = stack
        self.exception = exception
        self.line = line

    @property
    def bound(self) -> int:
        """Which slots have values, as bits."""
        return _bits(self.slots)

    @property
    def filled(self) -> int:
        """Which slots of the value stack have values, as bits."""
        return _bits(self.stack)

    def slot_name(self, index: int) -> str:
        """Name of a local or cell."""
        return slot_names(self.code)[index]

    def same_as(self, other: Frame) -> str | None:
        """What is different, or None if it is the same state with the same objects in it."""
        if self.code is not other.code or self.point.offset != other.point.offset:
            return "it stands elsewhere"
        if self.exception is not other.exception:
            return "another exception is being handled"
        if self.function.__globals__ is not other.function.__globals__:
            return "it has other globals"
        for what, ours, theirs in (
            ("free variables", self.closure, other.closure),
            ("locals", self.slots, other.slots),
            ("intermediate values", self.stack, other.stack),
        ):
            if len(ours) != len(theirs):
                return f"the number of {what} is different"
            for index, (one, two) in enumerate(zip(ours, theirs, strict=True)):
                position = what == "intermediate values" and self.point.stack[index] == LASTI
                if one is not two and not (position and one == two):
                    return f"{what} {index} is different"
        return None


def _bits(values: list[Any]) -> int:
    bits = 0
    for index, value in enumerate(values):
        if value is not EMPTY:
            bits |= 1 << index
    return bits


def slot_names(code: CodeType) -> list[str]:
    """Names of locals and cells, in the order of their slots."""
    return list(dict.fromkeys(code.co_varnames + code.co_cellvars))


def frame_of(suspended: Suspended) -> FrameType | None:
    """The frame, or None if it has ended."""
    return suspended.cr_frame if isinstance(suspended, CoroutineType) else suspended.gi_frame


def awaited_by(suspended: Suspended) -> Any:
    """What it awaits, or None."""
    return suspended.cr_await if isinstance(suspended, CoroutineType) else suspended.gi_yieldfrom


def state_of(suspended: Suspended) -> str:
    """One of "created", "suspended", "running", "ended"."""
    if isinstance(suspended, CoroutineType):
        if suspended.cr_running:
            return "running"
        is_suspended, frame = suspended.cr_suspended, suspended.cr_frame
    else:
        if suspended.gi_running:
            return "running"
        is_suspended, frame = suspended.gi_suspended, suspended.gi_frame
    if is_suspended:
        return "suspended"
    return "ended" if frame is None else "created"


def read(suspended: Suspended) -> Frame:
    """Read the frame of a coroutine or generator that has not ended.

    Raises:
        Unreadable: with the reason.
    """
    state = state_of(suspended)
    if state in ("running", "ended"):
        raise Unreadable(f"is {state}" if state == "running" else "has ended")
    frame = frame_of(suspended)
    assert frame is not None
    if _traced(frame):
        raise Unreadable("is being traced")
    function, values = _references(suspended, frame)
    actual = frame.f_code
    origin = origin_of(actual)
    closure = function.__closure__ or ()
    if origin is None:
        code, shift, own = actual, 0, closure
    else:
        code, shift, own = origin.code, origin.shift, closure[:-1]
    try:
        analysis = analyse(code)
    except Unknown as error:
        raise Unreadable(f"cannot be analysed: {error}") from None
    if state == "created":
        point = analysis.points.get(CREATED)
        if point is None:
            raise Unreadable("begins in an unknown way")
        if origin is not None:
            # Its values wait in the extra cell for the prologue to run.
            return _unstarted(suspended, code, function, own, point, origin.bound, closure[-1], frame.f_lineno)
    else:
        offset = frame.f_lasti - 2 * shift
        # 3.13 points at the RESUME that follows.
        point = analysis.points.get(offset if VERSION < (3, 13) else offset - 2)
        if point is None:
            raise Unreadable("is suspended at an unknown point")
    slots, stack, exception = _only_reading(suspended, frame, point, values, closure)
    for index, kind in enumerate(point.stack):
        if kind == LASTI:
            stack[index] -= shift
    return Frame(suspended, code, function, own, point, slots, stack, exception, frame.f_lineno)


def _traced(frame: FrameType) -> bool:
    trace = frame.f_trace
    # Coverage measurement changes nothing that a frame holds, and would be blind to what travels.
    return trace is not None and not type(trace).__module__.startswith("coverage")


def _references(suspended: Suspended, frame: FrameType) -> tuple[FunctionType, list[Any]]:
    """The function, and all that follows it: slots, value stack, exception."""
    code = frame.f_code
    referents = gc.get_referents(suspended)
    try:
        index = next(index for index, each in enumerate(referents) if each is frame) + 1
    except StopIteration:
        raise Unreadable("hides its frame") from None
    if index + 1 < len(referents) and referents[index + 1] is not code and type(referents[index]) is dict:
        # Three references: the frame's, the list's, the argument's.
        if referents[index] or sys.getrefcount(referents[index]) > 3:
            raise Unreadable("has called locals(), or is looked at by a debugger")
        # What reading `f_locals` leaves behind, emptied by `_bound_names`.
        index += 1
    if index + 1 >= len(referents) or referents[index + 1] is not code:
        raise Unreadable("has an unknown layout")
    function = referents[index]
    if type(function) is not FunctionType or function.__code__ is not code:
        raise Unreadable("runs a function whose code was replaced")
    return function, referents[index + 2 :]


def _unstarted(
    suspended: Suspended,
    code: CodeType,
    function: FunctionType,
    closure: tuple[CellType, ...],
    point: Point,
    bound: int,
    cell: CellType,
    line: int,
) -> Frame:
    waiting = iter(cell.cell_contents)
    slots = [next(waiting) if bound >> index & 1 else EMPTY for index in range(len(point.slots))]
    return Frame(suspended, code, function, closure, point, slots, [], None, line)


def _only_reading(
    suspended: Suspended, frame: FrameType, point: Point, values: list[Any], closure: tuple[CellType, ...]
) -> tuple[list[Any], list[Any], BaseException | None]:
    kinds = list(point.slots)
    if MAYBE in kinds:
        names = _bound_names(frame)
        for index, name in enumerate(slot_names(frame.f_code)[: len(kinds)]):
            if kinds[index] == MAYBE and name in names:
                kinds[index] = "BOUND"
            elif kinds[index] == MAYBE and name not in frame.f_code.co_cellvars:
                kinds[index] = NULL
    kinds += [CELL] * len(closure)
    kinds += point.stack
    certain = sum(kind not in (NULL, MAYBE, METHOD) for kind in kinds)
    doubtful = [index for index, kind in enumerate(kinds) if kind in (MAYBE, METHOD)]
    awaited = awaited_by(suspended) if point.delegates else None
    readings: list[tuple[list[Any], BaseException | None]] = []
    tried = 0
    for trailing in (1,) if point.handling else (0, 1):
        # A frame that has handled an exception before keeps a None in the place of one.
        count = len(values) - trailing - certain
        if not 0 <= count <= len(doubtful):
            continue
        for present in combinations(doubtful, count):
            tried += 1
            if tried > _READINGS_MAX:
                raise Unreadable("has too many possible stacks")
            reading = _fit(kinds, set(present), values, trailing, point, closure, awaited)
            if reading is not None:
                readings.append(reading)
    if len(readings) != 1:
        raise Unreadable("has an ambiguous stack" if readings else "does not look as its code says")
    slots_and_stack, exception = readings[0]
    first = len(point.slots)
    return slots_and_stack[:first], slots_and_stack[first + len(closure) :], exception


def _fit(
    kinds: list[str],
    present: set[int],
    values: list[Any],
    trailing: int,
    point: Point,
    closure: tuple[CellType, ...],
    awaited: Any,
) -> tuple[list[Any], BaseException | None] | None:
    """The values slot by slot, if they can be distributed so."""
    rest = iter(values)
    result: list[Any] = []
    for index, kind in enumerate(kinds):
        if kind == NULL or (kind in (MAYBE, METHOD) and index not in present):
            result.append(EMPTY)
            continue
        value = next(rest)
        fits = True
        if kind == CELL:
            fits = type(value) is CellType
        elif kind == LASTI:
            fits = type(value) is int
        elif kind == PREVIOUS:
            fits = value is None or isinstance(value, BaseException)
        elif kind == METHOD:
            # Before 3.13 the function lies here and its object above, since then the function lies below.
            called = value if VERSION < (3, 13) else result[-1]
            fits = bool(type(called).__flags__ & _METHOD_DESCRIPTOR)
        if not fits:
            return None
        result.append(value)
    first = len(point.slots)
    if any(one is not two for one, two in zip(result[first : first + len(closure)], closure, strict=True)):
        return None
    if point.delegates and result[-1] is not awaited:
        return None
    exception = next(rest) if trailing else None
    if point.handling and not isinstance(exception, BaseException):
        return None
    if not point.handling and exception is not None:
        return None
    return result, exception


def _bound_names(frame: FrameType) -> set[str]:
    """Names of the variables that have values."""
    namespace = frame.f_locals
    names = set(namespace)
    if sys.version_info < (3, 13):
        # It is a copy that would keep the values alive as long as the frame.
        namespace.clear()
    return names
