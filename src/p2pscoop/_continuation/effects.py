"""What each instruction does to the value stack and the local slots: the whitelist.

Decides, per instruction of CPython 3.11, 3.12 and 3.13, how an abstract state becomes the next. An instruction
that is not here makes everything behind it unknown, and what is unknown is pinned. Does not follow jumps and
does not look at real frames (`analyse`, `reading`).

Kinds of a slot:

    NULL      empty: an unbound local, the gap below the callable of a call
    OBJECT    a reference to some object
    CELL      a cell object
    MAYBE     NULL or a reference, depending on the way taken
    METHOD    MAYBE, from the lookup of a method: (function, object) or a bound method and a gap
    LASTI     an int that counts code units of this very code
    PREVIOUS  the exception (or None) that was being handled before the handler that runs now
"""

from __future__ import annotations

from collections.abc import Callable

from p2pscoop._continuation.bytecode import VERSION, Instruction

__all__ = [
    "CELL",
    "ENDS",
    "LASTI",
    "MAYBE",
    "METHOD",
    "NULL",
    "OBJECT",
    "PREVIOUS",
    "SILENT",
    "SIMPLE",
    "SPECIAL",
    "Kinds",
    "Unknown",
]

NULL = "NULL"
OBJECT = "OBJECT"
CELL = "CELL"
MAYBE = "MAYBE"
METHOD = "METHOD"
LASTI = "LASTI"
PREVIOUS = "PREVIOUS"

Kinds = list[str]


class Unknown(Exception):
    """The analysis met something that it has no rule for."""


# Fixed numbers of references taken and given, whatever they are.
SIMPLE: dict[str, tuple[int, int]] = {
    "NOP": (0, 0),
    "CACHE": (0, 0),
    "EXTENDED_ARG": (0, 0),
    "RESUME": (0, 0),
    "KW_NAMES": (0, 0),
    "PRECALL": (0, 0),
    "SETUP_ANNOTATIONS": (0, 0),
    "JUMP_FORWARD": (0, 0),
    "JUMP_BACKWARD": (0, 0),
    "JUMP_BACKWARD_NO_INTERRUPT": (0, 0),
    "DELETE_GLOBAL": (0, 0),
    "DELETE_NAME": (0, 0),
    "COPY_FREE_VARS": (0, 0),
    "DELETE_DEREF": (0, 0),
    "POP_TOP": (1, 0),
    "POP_EXCEPT": (1, 0),
    "IMPORT_STAR": (1, 0),
    "PRINT_EXPR": (1, 0),
    "RETURN_VALUE": (1, 0),
    "RETURN_CONST": (0, 0),
    "RERAISE": (1, 0),
    "STORE_NAME": (1, 0),
    "STORE_GLOBAL": (1, 0),
    "STORE_DEREF": (1, 0),
    "DELETE_ATTR": (1, 0),
    "LIST_APPEND": (1, 0),
    "LIST_EXTEND": (1, 0),
    "SET_ADD": (1, 0),
    "SET_UPDATE": (1, 0),
    "DICT_MERGE": (1, 0),
    "DICT_UPDATE": (1, 0),
    "MAP_ADD": (2, 0),
    "STORE_ATTR": (2, 0),
    "DELETE_SUBSCR": (2, 0),
    "END_ASYNC_FOR": (2, 0),
    "STORE_SUBSCR": (3, 0),
    "STORE_SLICE": (4, 0),
    "UNARY_POSITIVE": (1, 1),
    "UNARY_NEGATIVE": (1, 1),
    "UNARY_NOT": (1, 1),
    "UNARY_INVERT": (1, 1),
    "TO_BOOL": (1, 1),
    "GET_ITER": (1, 1),
    "GET_YIELD_FROM_ITER": (1, 1),
    "GET_AITER": (1, 1),
    "GET_AWAITABLE": (1, 1),
    "LIST_TO_TUPLE": (1, 1),
    "ASYNC_GEN_WRAP": (1, 1),
    "CALL_INTRINSIC_1": (1, 1),
    "YIELD_VALUE": (1, 1),
    "LOAD_FROM_DICT_OR_DEREF": (1, 1),
    "LOAD_FROM_DICT_OR_GLOBALS": (1, 1),
    "CONVERT_VALUE": (1, 1),
    "FORMAT_SIMPLE": (1, 1),
    "FORMAT_WITH_SPEC": (2, 1),
    "SET_FUNCTION_ATTRIBUTE": (2, 1),
    "CALL_INTRINSIC_2": (2, 1),
    "PREP_RERAISE_STAR": (2, 1),
    "BINARY_OP": (2, 1),
    "BINARY_SUBSCR": (2, 1),
    "COMPARE_OP": (2, 1),
    "IS_OP": (2, 1),
    "CONTAINS_OP": (2, 1),
    "IMPORT_NAME": (2, 1),
    "BINARY_SLICE": (3, 1),
    "MATCH_CLASS": (3, 1),
    "CHECK_EXC_MATCH": (1, 1),
    "CHECK_EG_MATCH": (2, 2),
    "GET_LEN": (0, 1),
    "MATCH_MAPPING": (0, 1),
    "MATCH_SEQUENCE": (0, 1),
    "MATCH_KEYS": (0, 1),
    "GET_ANEXT": (0, 1),
    "WITH_EXCEPT_START": (0, 1),
    "IMPORT_FROM": (0, 1),
    "LOAD_CONST": (0, 1),
    "LOAD_NAME": (0, 1),
    "LOAD_LOCALS": (0, 1),
    "LOAD_BUILD_CLASS": (0, 1),
    "LOAD_ASSERTION_ERROR": (0, 1),
    "LOAD_DEREF": (0, 1),
    "LOAD_CLASSDEREF": (0, 1),
    "RETURN_GENERATOR": (0, 1),
    "BEFORE_WITH": (1, 2),
    "BEFORE_ASYNC_WITH": (1, 2),
    "POP_JUMP_IF_TRUE": (1, 0),
    "POP_JUMP_IF_FALSE": (1, 0),
    "POP_JUMP_IF_NONE": (1, 0),
    "POP_JUMP_IF_NOT_NONE": (1, 0),
    "POP_JUMP_FORWARD_IF_TRUE": (1, 0),
    "POP_JUMP_FORWARD_IF_FALSE": (1, 0),
    "POP_JUMP_FORWARD_IF_NONE": (1, 0),
    "POP_JUMP_FORWARD_IF_NOT_NONE": (1, 0),
    "POP_JUMP_BACKWARD_IF_TRUE": (1, 0),
    "POP_JUMP_BACKWARD_IF_FALSE": (1, 0),
    "POP_JUMP_BACKWARD_IF_NONE": (1, 0),
    "POP_JUMP_BACKWARD_IF_NOT_NONE": (1, 0),
    "END_SEND": (2, 1),
    "CLEANUP_THROW": (3, 2),
    "END_FOR": (2 if VERSION < (3, 13) else 1, 0),
}

# The next instruction is not reached from these.
ENDS = frozenset(
    {
        "RETURN_VALUE",
        "RETURN_CONST",
        "RERAISE",
        "RAISE_VARARGS",
        "JUMP_FORWARD",
        "JUMP_BACKWARD",
        "JUMP_BACKWARD_NO_INTERRUPT",
    }
)

# These cannot raise: no way leads from them to the handler that covers them.
SILENT = frozenset({"PUSH_EXC_INFO", "POP_EXCEPT", "COPY", "SWAP", "NOP"})

# Rules for the rest: they change stack and locals in place. `jumped` is whether the jump is taken.
Rule = Callable[[Instruction, Kinds, Kinds, bool], None]
SPECIAL: dict[str, Rule] = {}


def _rule(*names: str) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        for name in names:
            SPECIAL[name] = rule
        return rule

    return register


def take(stack: Kinds, count: int) -> Kinds:
    """Pop so many slots."""
    if count > len(stack):
        raise Unknown("the stack is shorter than an instruction needs")
    taken = stack[len(stack) - count :]
    del stack[len(stack) - count :]
    return taken


def _counted(*names: str, takes: Callable[[int], int], gives: Callable[[int], int] = lambda _: 1) -> None:
    def rule(instruction: Instruction, stack: Kinds, _locals: Kinds, _jumped: bool) -> None:
        take(stack, takes(instruction.arg))
        stack.extend([OBJECT] * gives(instruction.arg))

    _rule(*names)(rule)


_counted("BUILD_TUPLE", "BUILD_LIST", "BUILD_SET", "BUILD_STRING", takes=lambda arg: arg)
_counted("BUILD_MAP", takes=lambda arg: 2 * arg)
_counted("BUILD_CONST_KEY_MAP", takes=lambda arg: arg + 1)
_counted("BUILD_SLICE", takes=lambda arg: 3 if arg == 3 else 2)
_counted("FORMAT_VALUE", takes=lambda arg: 2 if arg & 4 else 1)
_counted("UNPACK_SEQUENCE", takes=lambda _: 1, gives=lambda arg: arg)
_counted("UNPACK_EX", takes=lambda _: 1, gives=lambda arg: (arg & 255) + (arg >> 8) + 1)
_counted("RAISE_VARARGS", takes=lambda arg: arg, gives=lambda _: 0)
_counted("CALL", takes=lambda arg: arg + 2)
_counted("CALL_KW", takes=lambda arg: arg + 3)
_counted("CALL_FUNCTION_EX", takes=lambda arg: 3 + (arg & 1))
_counted("MAKE_FUNCTION", takes=lambda arg: 1 + (0 if VERSION >= (3, 13) else (arg & 15).bit_count()))


@_rule("PUSH_NULL")
def _push_null(_: Instruction, stack: Kinds, _locals: Kinds, _jumped: bool) -> None:
    stack.append(NULL)


@_rule("COPY")
def _copy(instruction: Instruction, stack: Kinds, _locals: Kinds, _jumped: bool) -> None:
    stack.append(take(stack[:], instruction.arg)[0])


@_rule("SWAP")
def _swap(instruction: Instruction, stack: Kinds, _locals: Kinds, _jumped: bool) -> None:
    take(stack[:], instruction.arg)
    stack[-1], stack[-instruction.arg] = stack[-instruction.arg], stack[-1]


@_rule("PUSH_EXC_INFO")
def _push_exc_info(_: Instruction, stack: Kinds, _locals: Kinds, _jumped: bool) -> None:
    take(stack, 1)
    stack += [PREVIOUS, OBJECT]


@_rule("FOR_ITER")
def _for_iter(_: Instruction, stack: Kinds, _locals: Kinds, jumped: bool) -> None:
    if jumped and VERSION < (3, 12):
        take(stack, 1)
    else:
        # Since 3.12 the jump lands on END_FOR, which takes what a generator would have left there.
        stack.append(OBJECT)


@_rule("SEND")
def _send(_: Instruction, stack: Kinds, _locals: Kinds, jumped: bool) -> None:
    take(stack, 2)
    stack += [OBJECT] if jumped and VERSION < (3, 12) else [OBJECT, OBJECT]


@_rule("JUMP_IF_TRUE_OR_POP", "JUMP_IF_FALSE_OR_POP")
def _jump_or_pop(_: Instruction, stack: Kinds, _locals: Kinds, jumped: bool) -> None:
    if not jumped:
        take(stack, 1)


@_rule("LOAD_GLOBAL")
def _load_global(instruction: Instruction, stack: Kinds, _locals: Kinds, _jumped: bool) -> None:
    if not instruction.arg & 1:
        stack.append(OBJECT)
    else:
        stack += [NULL, OBJECT] if VERSION < (3, 13) else [OBJECT, NULL]


@_rule("LOAD_METHOD")
def _load_method(_: Instruction, stack: Kinds, _locals: Kinds, _jumped: bool) -> None:
    take(stack, 1)
    stack += [METHOD, OBJECT] if VERSION < (3, 13) else [OBJECT, METHOD]


@_rule("LOAD_ATTR")
def _load_attr(instruction: Instruction, stack: Kinds, slots: Kinds, jumped: bool) -> None:
    if VERSION >= (3, 12) and instruction.arg & 1:
        _load_method(instruction, stack, slots, jumped)
    else:
        take(stack, 1)
        stack.append(OBJECT)


@_rule("LOAD_SUPER_ATTR")
def _load_super_attr(instruction: Instruction, stack: Kinds, slots: Kinds, jumped: bool) -> None:
    take(stack, 2)
    _load_attr(instruction, stack, slots, jumped)


def _load(index: int, stack: Kinds, slots: Kinds) -> None:
    # It raises if the slot is empty; behind it the slot is bound.
    if slots[index] in (NULL, MAYBE, METHOD):
        slots[index] = OBJECT
    stack.append(slots[index])


def _store(index: int, stack: Kinds, slots: Kinds) -> None:
    slots[index] = take(stack, 1)[0]


@_rule("LOAD_FAST", "LOAD_FAST_CHECK", "LOAD_CLOSURE")
def _load_fast(instruction: Instruction, stack: Kinds, slots: Kinds, _jumped: bool) -> None:
    _load(instruction.arg, stack, slots)


@_rule("STORE_FAST")
def _store_fast(instruction: Instruction, stack: Kinds, slots: Kinds, _jumped: bool) -> None:
    _store(instruction.arg, stack, slots)


@_rule("LOAD_FAST_LOAD_FAST")
def _load_load(instruction: Instruction, stack: Kinds, slots: Kinds, _jumped: bool) -> None:
    _load(instruction.arg >> 4, stack, slots)
    _load(instruction.arg & 15, stack, slots)


@_rule("STORE_FAST_LOAD_FAST")
def _store_load(instruction: Instruction, stack: Kinds, slots: Kinds, _jumped: bool) -> None:
    _store(instruction.arg >> 4, stack, slots)
    _load(instruction.arg & 15, stack, slots)


@_rule("STORE_FAST_STORE_FAST")
def _store_store(instruction: Instruction, stack: Kinds, slots: Kinds, _jumped: bool) -> None:
    _store(instruction.arg >> 4, stack, slots)
    _store(instruction.arg & 15, stack, slots)


@_rule("LOAD_FAST_AND_CLEAR")
def _load_fast_and_clear(instruction: Instruction, stack: Kinds, slots: Kinds, _jumped: bool) -> None:
    stack.append(slots[instruction.arg])
    slots[instruction.arg] = NULL


@_rule("DELETE_FAST")
def _delete_fast(instruction: Instruction, _stack: Kinds, slots: Kinds, _jumped: bool) -> None:
    slots[instruction.arg] = NULL


@_rule("MAKE_CELL")
def _make_cell(instruction: Instruction, _stack: Kinds, slots: Kinds, _jumped: bool) -> None:
    slots[instruction.arg] = CELL
