"""Code objects that put a new frame into the state of a captured one.

Decides the prologue: instructions before the unmodified bytecode that take the values out of one extra free
variable, store the locals, build the value stack, set the exception being handled, and jump to the very
YIELD_VALUE at which the original stands. Jumps are relative since 3.11, so the rest need not change; exception
and line table are shifted. Does not make frames (`restore`).

The values come as one tuple: the exception if there is one, then the bound slots in order, then the value stack
from its top down.
"""

from __future__ import annotations

import inspect
import opcode
from types import CodeType
from typing import NamedTuple

from p2pscoop._continuation.analyse import CREATED, analyse
from p2pscoop._continuation.bytecode import CodeCache, shifted_handlers, shifted_lines

__all__ = ["Origin", "origin_of", "resume_code"]

VARIABLE = ".continuation"
"""Name of the extra free variable: none that a source file could have."""


class Origin(NamedTuple):
    """What a code object of ours was made from; its last constant.

    Attributes:
        mark: VARIABLE.
        code: the unmodified code object.
        shift: length of the prologue in code units.
        bound: which slots the prologue stores, as bits.
        filled: which places of the value stack it fills, as bits.
        values: how many values it takes.
    """

    mark: str
    code: CodeType
    shift: int
    bound: int
    filled: int
    values: int


def origin_of(code: CodeType) -> Origin | None:
    """Where a code object comes from, if it is one of ours."""
    if code.co_freevars and code.co_freevars[-1] == VARIABLE:
        origin = code.co_consts[-1]
        assert type(origin) is Origin
        return origin
    return None


def _assemble(code: CodeType, offset: int, bound: int, filled: int) -> CodeType:
    analysis = analyse(code)
    point = analysis.points[offset]
    slots = [index for index in range(analysis.slots) if bound >> index & 1]
    depth = len(point.stack)
    gaps = [index for index in range(depth) if not filled >> index & 1]
    variable = analysis.slots + len(code.co_freevars)
    values = point.handling + len(slots) + depth - len(gaps)

    prologue = bytearray()
    _emit(prologue, "COPY_FREE_VARS", len(code.co_freevars) + 1)
    _emit(prologue, "RETURN_GENERATOR")
    _emit(prologue, "POP_TOP")
    _emit(prologue, "RESUME")
    _emit(prologue, "LOAD_DEREF", variable)
    _emit(prologue, "DELETE_DEREF", variable)
    _emit(prologue, "UNPACK_SEQUENCE", values, caches=1)
    if point.handling:
        # Of its two results the stack has its own copies.
        _emit(prologue, "PUSH_EXC_INFO")
        _emit(prologue, "POP_TOP")
        _emit(prologue, "POP_TOP")
    for index in slots:
        _emit(prologue, "STORE_FAST", index)
    for gap in gaps:
        # The gap is made on top and sinks to its place, all others keeping their order.
        _emit(prologue, "PUSH_NULL")
        above = sum(1 for index in range(gap + 1, depth) if index not in gaps)
        for place in range(above + 1, 1, -1):
            _emit(prologue, "SWAP", place)
    if offset == CREATED:
        target = analysis.body
    else:
        target = offset
        _emit(prologue, "LOAD_CONST", len(code.co_consts))
    _emit(prologue, "JUMP_FORWARD", target // 2)

    shift = len(prologue) // 2
    return code.replace(
        co_argcount=0,
        co_posonlyargcount=0,
        co_kwonlyargcount=0,
        co_flags=code.co_flags & ~(inspect.CO_VARARGS | inspect.CO_VARKEYWORDS),
        co_code=bytes(prologue) + code.co_code,
        co_consts=(*code.co_consts, None, Origin(VARIABLE, code, shift, bound, filled, values)),
        co_freevars=(*code.co_freevars, VARIABLE),
        co_stacksize=max(code.co_stacksize, values + len(gaps)) + 2,
        co_exceptiontable=shifted_handlers(code, shift),
        co_linetable=shifted_lines(code, shift),
    )


def _emit(prologue: bytearray, name: str, arg: int = 0, *, caches: int = 0) -> None:
    for shift in (24, 16, 8):
        if arg >> shift:
            prologue += bytes((opcode.opmap["EXTENDED_ARG"], arg >> shift & 255))
    prologue += bytes((opcode.opmap[name], arg & 255))
    prologue += bytes(2 * caches)


resume_code = CodeCache(_assemble)
"""The code object for: code object, offset, bound slots, filled places of the value stack (both as bits)."""
