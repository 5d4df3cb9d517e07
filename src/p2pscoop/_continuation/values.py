"""How single values that frames hold become bytes, where pickle and cloudpickle do not keep what matters.

Decides for cells (shared between closures), exceptions (causes and contexts; tracebacks stay behind), views of
dicts and mappings (they must see later changes), and what must not be shipped although cloudpickle would: open
files, memory views. Suspended frames are `pickling`'s part.

Each reducer returns what `__reduce__` may return; functions that it names are found again by the unpickler.
"""

from __future__ import annotations

import gc
import io
from collections.abc import Callable
from types import CellType, CodeType, CoroutineType, FunctionType, MappingProxyType
from typing import Any

import cloudpickle

from p2pscoop._continuation.bytecode import interned

__all__ = [
    "REDUCERS",
    "Refused",
    "await_of",
    "empty_cell",
    "fill_cell",
    "fill_function",
    "is_open_file",
    "nothing",
    "reduce_exception",
]


class Refused(TypeError):
    """This value does not travel; the message is what it is, as in "holds ..."."""


_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE


def is_open_file(value: Any) -> bool:
    """Whether it stands for something outside of the process. Files in memory do not."""
    return isinstance(value, io.IOBase) and not isinstance(value, (io.BytesIO, io.StringIO))


# ------------------------------------------------------------------------------------------- cells


def empty_cell() -> CellType:
    """A cell to be filled later, so that what it holds may refer to it."""
    return CellType()


def fill_cell(cell: CellType, content: Any) -> None:
    """Give a cell its content."""
    cell.cell_contents = content


def new_code(*arguments: Any) -> CodeType:
    """A code object that came by value."""
    return interned(CodeType(*arguments))


def reduce_code(code: CodeType) -> Any:
    """As cloudpickle does it, but for `new_code`."""
    _, arguments = cloudpickle.Pickler.dispatch_table[CodeType](code)
    return new_code, arguments


def nothing() -> None:
    """What a traceback becomes, where it may."""


def fill_function(function: FunctionType, state: Any) -> None:
    """Give a function the contents of its cells, and what cloudpickle has kept of it."""
    cells, setter, rest = state
    for cell, content in cells:
        cell.cell_contents = content
    setter(function, rest)


# -------------------------------------------------------------------------------------- exceptions


def _builtin_base(kind: type[BaseException]) -> type[BaseException]:
    """The first class written in C that it inherits from."""
    return next(base for base in kind.__mro__ if not base.__flags__ & _HEAP_TYPE)


def new_exception(kind: type[BaseException], args: tuple[Any, ...]) -> BaseException:
    """An exception with these `args`, made without running its `__init__`."""
    return _builtin_base(kind).__new__(kind, *args)


def set_exception(error: BaseException, state: tuple[Any, Any, Any, bool]) -> None:
    """Give an exception its attributes and the exceptions it is connected with."""
    attributes, cause, context, suppress = state
    if attributes is not None:
        setstate = getattr(error, "__setstate__", None)
        assert setstate is not None, "every exception has one"
        setstate(attributes)
    error.__cause__ = cause
    error.__context__ = context
    error.__suppress_context__ = suppress


def reduce_exception(error: BaseException) -> Any:
    """With cause, context and notes, without traceback."""
    kind = type(error)
    reduced = error.__reduce_ex__(5)
    if type(reduced) is not tuple or not 2 <= len(reduced) <= 3:
        return reduced
    make, args, *rest = reduced
    if kind.__reduce__ is BaseException.__reduce__:
        if any(base.__dict__.get("__slots__") for base in kind.__mro__):
            raise Refused("an exception with __slots__")
        if make is kind and _builtin_base(kind).__basicsize__ == BaseException.__basicsize__:
            # Its `__init__` may want other arguments than those that `args` has kept.
            make, args = new_exception, (kind, error.args)
    state = (rest[0] if rest else None, error.__cause__, error.__context__, error.__suppress_context__)
    return make, args, state, None, None, set_exception


# ------------------------------------------------------------------------------------------- views


def _viewed(view: Any) -> Any:
    """The mapping behind a view."""
    (mapping,) = gc.get_referents(view)
    return mapping


def await_of(coroutine: CoroutineType[Any, Any, Any]) -> Any:
    """What awaiting a coroutine through its `__await__` returns."""
    return coroutine.__await__()


def view_of(name: str, mapping: dict[Any, Any]) -> Any:
    """A view of a dict: its keys, values or items."""
    return getattr(mapping, name)()


def proxy_of(mapping: Any) -> MappingProxyType[Any, Any]:
    """A read-only view of a mapping."""
    return MappingProxyType(mapping)


def _reduce_keys(view: Any) -> Any:
    return view_of, ("keys", _viewed(view))


def _reduce_values(view: Any) -> Any:
    return view_of, ("values", _viewed(view))


def _reduce_items(view: Any) -> Any:
    return view_of, ("items", _viewed(view))


def _reduce_proxy(proxy: Any) -> Any:
    return proxy_of, (_viewed(proxy),)


def _refuse_memoryview(_: Any) -> Any:
    raise Refused("a memoryview")


REDUCERS: dict[type, Callable[[Any], Any]] = {
    type({}.keys()): _reduce_keys,
    type({}.values()): _reduce_values,
    type({}.items()): _reduce_items,
    MappingProxyType: _reduce_proxy,
    CodeType: reduce_code,
    memoryview: _refuse_memoryview,
}
"""By exact type."""
