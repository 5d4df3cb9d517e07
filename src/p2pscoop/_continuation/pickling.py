"""A pickler that knows suspended coroutines and generators, and keeps cells shared.

Decides in which order the parts of frames are pickled. A frame is pickled in two steps: first a shell (code,
globals, free variables: all that it takes to make the object), later its values. So frames may refer to each
other and to themselves in any way, and a chain of 10,000 awaits is a flat list, not 10,000 nested pickles.

    shell(code, closure, offset, bound, filled, names)     the object, not yet in its state
    fill(shell, (other shells of its chain, values, ...))  what to put into them, when all has been unpickled

Does not read frames (`reading`) and does not make them (`restore`).
"""

from __future__ import annotations

import gc
import pickle
from collections.abc import Callable, Iterable
from types import AsyncGeneratorType, CellType, CodeType, CoroutineType, FunctionType, GeneratorType, TracebackType
from typing import Any, NoReturn

import cloudpickle

from p2pscoop._continuation.names import CodeName, home_of, name_of
from p2pscoop._continuation.reading import (
    EMPTY,
    WRAPPER,
    Frame,
    Suspended,
    Unreadable,
    read,
    state_of,
)
from p2pscoop._continuation.values import (
    REDUCERS,
    Refused,
    await_of,
    empty_cell,
    fill_cell,
    fill_function,
    is_open_file,
    nothing,
    reduce_exception,
)

__all__ = ["Pickler", "chain_of", "inner_of", "values_of"]

_EVERYWHERE = frozenset({"p2pscoop", "cloudpickle"})  # Packages that no receiver can do without.
_SUSPENDED = (CoroutineType, GeneratorType)


def _only_in_restore(*_: Any) -> NoReturn:
    raise pickle.UnpicklingError("a continuation is unpickled by p2pscoop.continuation.loads")


# The unpickler replaces these by its own methods: they need to know of each other.


def shell(*_: Any) -> Any:
    """The coroutine or generator, not yet in its state."""
    _only_in_restore()


def fill(*_: Any) -> Any:
    """Note what a chain of shells is to be filled with."""
    _only_in_restore()


def found(*_: Any) -> Any:
    """Code that the receiver has."""
    _only_in_restore()


def carried(*_: Any) -> Any:
    """Code that came along, to run in the globals of a module that the receiver has."""
    _only_in_restore()


def ended(*_: Any) -> Any:
    """A coroutine or generator that is over."""
    _only_in_restore()


class _Found:
    """Stands for code that has a name."""

    __slots__ = ("name",)

    def __init__(self, name: CodeName) -> None:
        self.name = name

    def __reduce__(self) -> Any:
        return found, tuple(self.name)


class _Carried:
    """Stands for code without a name of a module that has one."""

    __slots__ = ("code", "module")

    def __init__(self, code: CodeType, module: str) -> None:
        self.code = code
        self.module = module

    def __reduce__(self) -> Any:
        return carried, (self.code, self.module)


def chain_of(suspended: Suspended, known: dict[int, Frame] | None = None) -> list[Frame]:
    """Its frame, and those of the coroutines and generators that it awaits, inwards.

    Raises:
        Unreadable: naming the function.
    """
    frames = []
    each: Any = suspended
    while isinstance(each, _SUSPENDED):
        frame = known.get(id(each)) if known is not None else None
        if frame is None:
            try:
                frame = read(each)
            except Unreadable as error:
                raise Unreadable(f"`{each.__qualname__}` {error}") from None
        frames.append(frame)
        each = inner_of(frame)
    return frames


def inner_of(frame: Frame) -> Any:
    """What a frame awaits; the coroutine itself if it awaits a view of one."""
    if not frame.point.delegates:
        return None
    inner = frame.stack[-1]
    return coroutine_of(inner) if type(inner) is WRAPPER else inner


def coroutine_of(wrapper: Any) -> Any:
    """The coroutine behind what its `__await__` returned."""
    return next((each for each in gc.get_referents(wrapper) if isinstance(each, CoroutineType)), None)


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle is untyped
    """cloudpickle's, for coroutines and generators too, and stricter: what would not arrive as it is, is refused.

    May be subclassed; an override of `reducer_override` calls this one for what it does not know.

    Args:
        file: to write to.
        buffer_callback: for out-of-band buffers, as in `pickle.Pickler`.
        known: whether the receiver has a module of that name; None stands for: every module but `__main__`.
        frames: frames that have been read already.
    """

    def __init__(
        self,
        file: Any,
        *,
        buffer_callback: Callable[[Any], Any] | None = None,
        known: Callable[[str], bool] | None = None,
        frames: Iterable[Frame] = (),
    ) -> None:
        super().__init__(file, protocol=5, buffer_callback=buffer_callback)
        self._known = known
        self._frames = {id(frame.suspended): frame for frame in frames}
        # What is or will be filled by a step that is already planned, by id; kept, so that the ids stay taken.
        self._planned: dict[int, Any] = {}
        # Tracebacks of exceptions that are being handled, by id: they stay behind, as those of all exceptions.
        self._handled: dict[int, TracebackType] = {}
        self._codes: dict[tuple[int, ...], Any] = {}

    @property
    def frames(self) -> list[Frame]:
        """All frames that were read or given."""
        return list(self._frames.values())

    def reducer_override(self, obj: Any) -> Any:
        """Called by pickle for all but the plainest objects."""
        kind = type(obj)
        if kind is CoroutineType or kind is GeneratorType:
            return self._reduce_suspended(obj)
        if kind is CellType:
            return self._reduce_cell(obj)
        if kind is FunctionType:
            return self._reduce_function(obj)
        reducer = REDUCERS.get(kind)
        if reducer is not None:
            return reducer(obj)
        if isinstance(obj, BaseException):
            return reduce_exception(obj)
        if kind is TracebackType and id(obj) in self._handled:
            return nothing, ()
        if kind is WRAPPER:
            return await_of, (coroutine_of(obj),)
        if is_open_file(obj):
            raise Refused("an open file")
        if kind is AsyncGeneratorType:
            raise Refused("an async generator")
        return super().reducer_override(obj)

    # ----------------------------------------------------------------------------------------- frames

    def _reduce_suspended(self, obj: Suspended) -> Any:
        if id(obj) in self._planned:
            return shell, self._shell(self._frames[id(obj)])
        if state_of(obj) == "ended":
            return ended, (type(obj) is CoroutineType, obj.__name__, obj.__qualname__)
        try:
            chain = chain_of(obj, self._frames)
        except Unreadable as error:
            raise Refused(f"a suspended frame: {error}") from None
        chain = [frame for frame in chain if id(frame.suspended) not in self._planned]
        cells: list[tuple[CellType, Any]] = []
        functions: list[tuple[FunctionType, Any]] = []
        for frame in chain:
            self._frames[id(frame.suspended)] = frame
            self._planned[id(frame.suspended)] = frame.suspended
            cells += self._plan_cells(frame.closure)
            self._note_tracebacks(frame.exception)
            if type(self._code(frame)) is FunctionType:
                functions += self._plan_function(self._code(frame))
        others = [frame.suspended for frame in chain[1:]]
        values = [values_of(frame) for frame in chain]
        return shell, self._shell(chain[0]), (others, values, cells, functions), None, None, fill

    def _note_tracebacks(self, error: BaseException | None) -> None:
        each = None if error is None else error.__traceback__
        while each is not None:
            self._handled[id(each)] = each
            each = each.tb_next

    def _shell(self, frame: Frame) -> tuple[Any, ...]:
        names: tuple[str, ...] = (frame.suspended.__name__, frame.suspended.__qualname__)
        if names == (frame.code.co_name, frame.code.co_qualname):
            names = ()
        return self._code(frame), frame.closure, frame.point.offset, frame.bound, frame.filled, names

    def _code(self, frame: Frame) -> Any:
        """What stands for code and globals of a frame: a name, code with the name of its module, or a function."""
        function = frame.function
        namespace = function.__globals__
        key: tuple[int, ...] = (id(frame.code), id(namespace))
        code = self._codes.get(key)
        if code is not None:
            return code
        module = home_of(function)
        if module is not None and self._is_known(module.__name__):
            name = name_of(frame.code, module)
            code = _Carried(frame.code, module.__name__) if name is None else _Found(name)
        else:
            # A function carries the globals that it uses.
            code = function
            if function.__code__ is not frame.code:
                key = (*key, *map(id, frame.closure))
                code = self._codes.get(key)
                if code is None:
                    code = FunctionType(frame.code, namespace, function.__name__, None, frame.closure or None)
                    code.__qualname__ = frame.code.co_qualname
                    code.__module__ = function.__module__
            else:
                return code
        self._codes[key] = code
        return code

    def _is_known(self, module: str) -> bool:
        return self._known is None or module.partition(".")[0] in _EVERYWHERE or self._known(module)

    # ------------------------------------------------------------------------- cells and functions

    def _plan_cells(self, closure: tuple[CellType, ...]) -> list[tuple[CellType, Any]]:
        """Of these cells those that nobody else fills, with their contents."""
        contents = []
        for cell in closure:
            if id(cell) not in self._planned:
                self._planned[id(cell)] = cell
                try:
                    contents.append((cell, cell.cell_contents))
                except ValueError:
                    pass  # It is empty.
        return contents

    def _reduce_cell(self, cell: CellType) -> Any:
        contents = self._plan_cells((cell,))
        if not contents:
            return empty_cell, ()
        return empty_cell, (), contents[0][1], None, None, fill_cell

    def _split_function(self, function: FunctionType) -> tuple[Any, ...] | None:
        """What cloudpickle makes of it, with the cells themselves; None if it goes by name."""
        module = function.__module__
        if type(module) is str and not self._is_known(module):
            reduced = self._dynamic_function_reduce(function)
        else:
            reduced = super().reducer_override(function)
        if type(reduced) is not tuple:
            return None
        make, args, (attributes, slots), _, _, setter = reduced
        # cloudpickle would give each function cells of its own.
        return make, (*args[:-1], function.__closure__), (attributes, {**slots, "__closure__": None}), setter

    def _plan_function(self, function: FunctionType) -> list[tuple[FunctionType, Any]]:
        """The function, if nobody else fills it, with its state."""
        if id(function) in self._planned:
            return []
        parts = self._split_function(function)
        self._planned[id(function)] = function, parts
        if parts is None:
            return []
        return [(function, (self._plan_cells(function.__closure__ or ()), parts[3], parts[2]))]

    def _reduce_function(self, function: FunctionType) -> Any:
        planned = self._planned.get(id(function))
        states = self._plan_function(function)
        parts = self._planned[id(function)][1]
        if parts is None:
            return NotImplemented
        if planned is not None:
            return parts[:2]
        return (*parts[:2], states[0][1], None, None, fill_function)


def values_of(frame: Frame) -> tuple[Any, ...]:
    """The values in the order in which the prologue of `resume` takes them."""
    values = [each for each in frame.slots if each is not EMPTY]
    values += [each for each in reversed(frame.stack) if each is not EMPTY]
    return (frame.exception, *values) if frame.point.handling else tuple(values)
