"""What the frame of a coroutine looks like at each of its suspension points, found out without running it.

Decides, per code object and suspension point: how many slots the value stack has, which of them are empty, and
which locals are bound. Walks all ways through the bytecode with abstract values (`effects`) until nothing
changes. Does not look at any frame: `reading` compares its answers with what a real one holds.

The analysis may say MAYBE; it must never say anything that does not hold. A contradiction or an unknown
instruction anywhere in the function makes the whole function unanalysable, and so pinned.
"""

from __future__ import annotations

import bisect
import heapq
import inspect
import operator
from types import CodeType
from typing import NamedTuple

from p2pscoop._continuation.bytecode import (
    CodeCache,
    Handler,
    Instruction,
    handlers_of,
    instructions_of,
    unsupported,
)
from p2pscoop._continuation.effects import (
    CELL,
    ENDS,
    LASTI,
    MAYBE,
    NULL,
    OBJECT,
    PREVIOUS,
    SILENT,
    SIMPLE,
    SPECIAL,
    Kinds,
    Unknown,
    take,
)

__all__ = ["CREATED", "Analysis", "Point", "Unknown", "analyse"]

CREATED = -1
"""Offset that stands for: called, and not yet started."""


class Point(NamedTuple):
    """A suspension point.

    Attributes:
        offset: of its YIELD_VALUE in bytes, or CREATED.
        stack: kinds of the value stack's slots, the lowest first, without the value that is yielded.
        slots: kinds of locals and cells, in their order, without the free variables.
        handling: whether a handler is running, so that the frame holds an exception.
        guarded: whether user code (`except`, `finally`, `with`) covers the point, and would see it closed.
        delegates: whether it awaits (or `yield from`s) something, which then is the top of the stack.
    """

    offset: int
    stack: tuple[str, ...]
    slots: tuple[str, ...]
    handling: bool
    guarded: bool
    delegates: bool


class Analysis(NamedTuple):
    """Of one code object.

    Attributes:
        points: by offset.
        body: offset at which the body begins, behind the instructions that make the coroutine.
        slots: number of locals and cells.
    """

    points: dict[int, Point]
    body: int
    slots: int


_OBJECTS: tuple[Kinds, ...] = ([], [OBJECT], [OBJECT, OBJECT])
_start_of = operator.attrgetter("start")


class _State:
    """Kinds of all slots before an instruction. Its lists are shared and never changed."""

    __slots__ = ("slots", "stack")

    def __init__(self, stack: Kinds, slots: Kinds) -> None:
        self.stack = stack
        self.slots = slots


def _analyse(code: CodeType) -> Analysis:
    reason = unsupported()
    if reason is not None:
        raise Unknown(reason)
    instructions = instructions_of(code)
    index_of = {each.offset: index for index, each in enumerate(instructions)}
    handlers = handlers_of(code)
    names = dict.fromkeys(code.co_varnames + code.co_cellvars)
    slot_count = len(names)

    states: list[_State | None] = [None] * len(instructions)
    states[0] = _State([], _entry(code, slot_count))
    # In the order of the code most instructions are looked at when all that leads to them is known.
    pending = [0]
    while pending:
        index = heapq.heappop(pending)
        if pending and pending[0] == index:
            continue
        instruction = instructions[index]
        state = states[index]
        assert state is not None
        handler = _innermost(handlers, instruction.offset)
        if handler is not None and instruction.name not in SILENT:
            stack = state.stack[:]
            if handler.depth > len(stack):
                raise Unknown(f"the handler of offset {instruction.offset} expects a deeper stack")
            del stack[handler.depth :]
            stack += [LASTI, OBJECT] if handler.lasti else [OBJECT]
            _merge(states, pending, index_of[handler.target], stack, state.slots)
        if instruction.target >= 0:
            stack, slots = _step(instruction, state, True)
            _merge(states, pending, index_of[instruction.target], stack, slots)
        if instruction.name not in ENDS:
            stack, slots = _step(instruction, state, False)
            if index + 1 == len(instructions):
                raise Unknown("it runs off its end")
            _merge(states, pending, index + 1, stack, slots)
    return _summary(code, instructions, states, handlers, slot_count)


def _entry(code: CodeType, slot_count: int) -> Kinds:
    arguments = code.co_argcount + code.co_kwonlyargcount
    arguments += bool(code.co_flags & inspect.CO_VARARGS) + bool(code.co_flags & inspect.CO_VARKEYWORDS)
    # Free variables follow the other slots, and are never empty.
    return [OBJECT] * arguments + [NULL] * (slot_count - arguments) + [CELL] * len(code.co_freevars)


def _innermost(handlers: list[Handler], offset: int) -> Handler | None:
    # They are in order and do not overlap.
    index = bisect.bisect_right(handlers, offset, key=_start_of) - 1
    return handlers[index] if index >= 0 and offset < handlers[index].end else None


def _step(instruction: Instruction, state: _State, jumped: bool) -> tuple[Kinds, Kinds]:
    stack = state.stack[:]
    simple = SIMPLE.get(instruction.name)
    if simple is not None:
        taken, given = simple
        if taken:
            take(stack, taken)
        if given:
            stack += _OBJECTS[given]
        return stack, state.slots
    rule = SPECIAL.get(instruction.name)
    if rule is None:
        raise Unknown(f"no rule for the instruction {instruction.name}")
    slots = state.slots[:]
    rule(instruction, stack, slots, jumped)
    return stack, slots


def _merge(states: list[_State | None], pending: list[int], index: int, stack: Kinds, slots: Kinds) -> None:
    known = states[index]
    if known is None:
        states[index] = _State(stack, slots)
        heapq.heappush(pending, index)
        return
    if known.stack == stack and known.slots == slots:
        return
    if len(known.stack) != len(stack):
        raise Unknown("two ways to one instruction leave stacks of different depth")
    merged_stack, merged_slots = list(map(_join, known.stack, stack)), list(map(_join, known.slots, slots))
    if merged_stack != known.stack or merged_slots != known.slots:
        states[index] = _State(merged_stack, merged_slots)
        heapq.heappush(pending, index)


def _join(one: str, other: str) -> str:
    if one == other:
        return one
    if LASTI in (one, other) or PREVIOUS in (one, other):
        raise Unknown("two ways to one instruction disagree about a running handler")
    if {one, other} == {OBJECT, CELL}:
        return OBJECT
    return MAYBE


def _summary(
    code: CodeType,
    instructions: list[Instruction],
    states: list[_State | None],
    handlers: list[Handler],
    slot_count: int,
) -> Analysis:
    points: dict[int, Point] = {}
    body = -1
    names_at = {each.offset: index for index, each in enumerate(instructions)}
    for index, (instruction, state) in enumerate(zip(instructions, states, strict=True)):
        if state is None:
            continue
        slots = tuple(state.slots[:slot_count])
        if instruction.name == "RETURN_GENERATOR":
            following = [each.name for each in instructions[index + 1 : index + 3]]
            if following != ["POP_TOP", "RESUME"] or state.stack:
                raise Unknown("it begins in an unknown way")
            body = instructions[index + 3].offset
            points[CREATED] = Point(CREATED, (), slots, False, False, False)
        elif instruction.name == "YIELD_VALUE":
            resume = instructions[index + 1]
            if resume.name != "RESUME":
                raise Unknown("a suspension point without its RESUME")
            stack = tuple(state.stack[:-1])
            points[instruction.offset] = Point(
                instruction.offset,
                stack,
                slots,
                PREVIOUS in stack,
                _guarded(instruction.offset, instructions, names_at, handlers),
                resume.arg & 3 in (2, 3),
            )
    if points and body < 0 and code.co_flags & (inspect.CO_COROUTINE | inspect.CO_GENERATOR):
        raise Unknown("it begins in an unknown way")
    return Analysis(points, body, slot_count)


def _guarded(
    offset: int, instructions: list[Instruction], index_of: dict[int, int], handlers: list[Handler]
) -> bool:
    """Whether an exception thrown in here reaches a handler that was not made by the compiler."""
    handler = _innermost(handlers, offset)
    while handler is not None:
        first = instructions[index_of[handler.target]]
        if first.name == "CLEANUP_THROW":
            # It passes on everything but StopIteration.
            handler = _innermost(handlers, first.offset)
        else:
            # 3: turns a StopIteration that leaves a generator into a RuntimeError.
            return not (first.name == "CALL_INTRINSIC_1" and first.arg == 3)
    return False


analyse = CodeCache(_analyse)
"""The analysis of a code object. Raises `Unknown`."""
