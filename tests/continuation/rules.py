"""Compare the rules of the analysis with what the interpreter itself says about its instructions."""

from __future__ import annotations

import dis
import opcode
from collections.abc import Iterator
from typing import Any

from p2pscoop._continuation.bytecode import Instruction
from p2pscoop._continuation.effects import ENDS, OBJECT, SIMPLE, SPECIAL

__all__ = ["disagreements"]

# `dis.stack_effect` says for these what the compiler counts with, which is not what happens at run time.
_MEANT_OTHERWISE = {
    "PRECALL",
    "PUSH_EXC_INFO",
    "POP_EXCEPT",
    "RETURN_GENERATOR",
    "END_ASYNC_FOR",
    "RERAISE",
    "CLEANUP_THROW",
}


def disagreements() -> Iterator[str]:
    """Instructions that change the depth of the stack in another way than `dis.stack_effect` says."""
    for name, op in opcode.opmap.items():
        if name == "CALL" and "PRECALL" in opcode.opmap:
            continue  # In 3.11 the two share the arguments out between them, for the compiler.
        if name in _MEANT_OTHERWISE or (name not in SIMPLE and name not in SPECIAL):
            continue
        for arg in (0, 1, 2, 3, 4, 8, 17):
            for jumped in (False, True) if op in dis.hasjrel else (False,):
                if jumped is False and name in ENDS and op in dis.hasjrel:
                    continue
                try:
                    expected = dis.stack_effect(op, arg if op >= opcode.HAVE_ARGUMENT else None, jump=jumped)
                except ValueError:
                    continue
                found = _effect(name, arg, jumped)
                if found is not None and found != expected:
                    yield f"{name} {arg} {jumped}: {found} instead of {expected}"


def _effect(name: str, arg: int, jumped: bool) -> int | None:
    if name in SIMPLE:
        taken, given = SIMPLE[name]
        return given - taken
    stack = [OBJECT] * 40
    before = len(stack)
    rule: Any = SPECIAL[name]
    try:
        rule(Instruction(0, name, arg, -1), stack, [OBJECT] * 40, jumped)
    except IndexError:
        return None  # An argument that the compiler never makes.
    return len(stack) - before
