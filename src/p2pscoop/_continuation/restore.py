"""From bytes to a coroutine that stands where the original stood.

Decides the order: check the envelope, unpickle, put every shell into its state, read each frame again and
compare it with what was sent, and only then hand it out. No user instruction of any frame runs before. (User
code may run in unpickling, as in any pickle: `__setstate__`, imports.)

What is refused is refused as a whole: nothing of it is left behind, and nothing of it has run.
"""

from __future__ import annotations

import importlib
import io
import pickle
from collections.abc import Callable
from types import CellType, CodeType, CoroutineType, FunctionType, ModuleType
from typing import Any

from p2pscoop._continuation import envelope
from p2pscoop._continuation.analyse import CREATED, Point, Unknown, analyse
from p2pscoop._continuation.bytecode import unsupported
from p2pscoop._continuation.discard import abandon
from p2pscoop._continuation.effects import CELL, LASTI, MAYBE, METHOD, NULL, PREVIOUS
from p2pscoop._continuation.names import CodeName, NotFound, find
from p2pscoop._continuation.reading import EMPTY, Frame, Suspended, Unreadable, read
from p2pscoop._continuation.resume import Origin, resume_code
from p2pscoop.errors import RestoreRefused

__all__ = ["Unpickler", "restore"]

_MODULE = "p2pscoop._continuation.pickling"
_OWN = frozenset({"shell", "fill", "found", "carried", "ended"})


class _Shell:
    """A coroutine or generator that has been made, and what it is to become."""

    __slots__ = ("cell", "code", "expected", "function", "point", "suspended", "values")

    def __init__(
        self, suspended: Suspended, code: CodeType, function: FunctionType, cell: CellType, point: Point
    ) -> None:
        self.suspended = suspended
        self.code = code
        self.function = function
        self.cell = cell
        self.point = point
        self.values: tuple[Any, ...] | None = None
        self.expected: Frame | None = None


class _Assembly:
    """All shells of one payload.

    Apart from the unpickler, whose memo refers to it: no cycle keeps copies alive.
    """

    def __init__(self) -> None:
        self.shells: dict[int, _Shell] = {}

    # --------------------------------------------------------------------------- called by the pickle

    def found(self, module: str, root: str, path: tuple[int, ...], digest: bytes) -> Any:
        return find(CodeName(module, root, path, digest))

    def carried(self, code: CodeType, module: str) -> tuple[CodeType, ModuleType]:
        return code, importlib.import_module(module)

    def shell(
        self, source: Any, closure: Any, offset: int, bound: int, filled: int, names: tuple[str, ...]
    ) -> Suspended:
        if type(source) is FunctionType:
            code, namespace = source.__code__, source.__globals__
        else:
            code, namespace = source[0], source[1].__dict__
        point = analyse(code).points.get(offset)
        if point is None:
            raise RestoreRefused(f"`{code.co_qualname}` has no suspension point at offset {offset} here")
        _check_shape(code, point, bound, filled)
        cell = CellType()
        new = resume_code(code, offset, bound, filled)
        function = FunctionType(new, namespace, code.co_name, None, (*closure, cell))
        function.__qualname__ = code.co_qualname
        suspended: Suspended = function()
        if names:
            suspended.__name__, suspended.__qualname__ = names
        self.shells[id(suspended)] = _Shell(suspended, code, function, cell, point)
        return suspended

    def fill(self, first: Suspended, state: Any) -> None:
        others, values, cells, functions = state
        for cell, content in cells:
            cell.cell_contents = content
        for function, (contents, setter, rest) in functions:
            for cell, content in contents:
                cell.cell_contents = content
            setter(function, rest)
        for suspended, own in zip((first, *others), values, strict=True):
            self.shells[id(suspended)].values = own

    def ended(self, is_coroutine: bool, name: str, qualname: str) -> Any:
        suspended: Any = _ended_coroutine() if is_coroutine else _ended_generator()
        suspended.close()
        suspended.__name__, suspended.__qualname__ = name, qualname
        return suspended

    # ------------------------------------------------------------------------------ after unpickling

    def settle(self) -> None:
        """Put all shells into their states and verify each.

        Raises:
            RestoreRefused: one of them is not what was sent. None is left then.
        """
        shells = list(self.shells.values())
        for shell in shells:
            if shell.values is None:
                raise RestoreRefused(f"`{shell.code.co_qualname}` came without its values")
        for shell in shells:
            _start(shell)
        for shell in shells:
            _verify(shell)

    def give_up(self) -> None:
        """Leave nothing of what has been made, and run none of it."""
        abandon([shell.suspended for shell in self.shells.values()])


class Unpickler(pickle.Unpickler):
    """Unpickles what `Pickler` pickled; may be subclassed.

    Args:
        file: to read from.
        buffers: out-of-band buffers, as in `pickle.Unpickler`.
    """

    def __init__(self, file: Any, *, buffers: Any = None) -> None:
        super().__init__(file, buffers=buffers)
        self.assembly = _Assembly()

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """Called by pickle for everything that goes by name."""
        if module_name == _MODULE and global_name in _OWN:
            return getattr(self.assembly, global_name)
        return super().find_class(module_name, global_name)


def restore(data: bytes, unpickler: Callable[[Any], Unpickler] = Unpickler) -> Suspended:
    """The coroutine that `Captured.dumps` has made bytes of.

    Args:
        data: the bytes.
        unpickler: makes the unpickler, `Unpickler` or a subclass, from a file.

    Raises:
        RestoreRefused: it cannot go on here. None of its instructions has run.
    """
    reason = unsupported()
    if reason is not None:
        raise RestoreRefused(reason)
    with io.BytesIO(envelope.open_(data)) as file:
        loader = unpickler(file)
        try:
            suspended = loader.load()
            if id(suspended) not in loader.assembly.shells:
                raise RestoreRefused(f"the payload holds a {type(suspended).__name__}, not a continuation")
            loader.assembly.settle()
        except BaseException as error:
            loader.assembly.give_up()
            if isinstance(error, (RestoreRefused, KeyboardInterrupt)):
                raise
            if isinstance(error, (NotFound, Unknown, Unreadable)):
                raise RestoreRefused(str(error)) from error
            raise RestoreRefused(f"unpickling failed: {type(error).__name__}: {error}") from error
    return suspended  # type: ignore[no-any-return]  # it is one of the shells


def _check_shape(code: CodeType, point: Point, bound: int, filled: int) -> None:
    """What came must be possible at this point, or the prologue would build nonsense."""
    for kinds, present in ((point.slots, bound), (point.stack, filled)):
        fits = present >> len(kinds) == 0 and all(
            kind in (MAYBE, METHOD) or (kind != NULL) == bool(present >> index & 1)
            for index, kind in enumerate(kinds)
        )
        if not fits:
            raise RestoreRefused(f"`{code.co_qualname}` cannot be in the state that was sent")


def _distribute(shell: _Shell, values: tuple[Any, ...]) -> Frame:
    """The frame as it has to be."""
    origin = shell.function.__code__.co_consts[-1]
    assert type(origin) is Origin
    point = shell.point
    rest = iter(values)
    exception = next(rest) if point.handling else None
    slots = [next(rest) if origin.bound >> index & 1 else EMPTY for index in range(len(point.slots))]
    stack = [next(rest) if origin.filled >> index & 1 else EMPTY for index in reversed(range(len(point.stack)))][
        ::-1
    ]
    closure = (shell.function.__closure__ or ())[:-1]
    return Frame(shell.suspended, shell.code, shell.function, closure, point, slots, stack, exception, 0)


def _start(shell: _Shell) -> None:
    """Run the prologue, up to the suspension point."""
    values = shell.values
    assert values is not None
    origin = shell.function.__code__.co_consts[-1]
    if len(values) != origin.values:
        raise RestoreRefused(
            f"`{shell.code.co_qualname}` came with {len(values)} values instead of {origin.values}"
        )
    shell.expected = _distribute(shell, values)
    _check_values(shell, shell.expected)
    if LASTI in shell.point.stack:
        values = _shifted(shell, values, origin.shift)
    shell.cell.cell_contents = values
    if shell.point.offset != CREATED and shell.suspended.send(None) is not None:
        raise RestoreRefused(f"`{shell.code.co_qualname}` did not stop where it should")


def _check_values(shell: _Shell, frame: Frame) -> None:
    """What the interpreter takes for granted, and would crash without."""
    point = shell.point
    size = len(shell.code.co_code) // 2
    fits = not point.handling or isinstance(frame.exception, BaseException)
    for kind, value in zip(point.slots + point.stack, frame.slots + frame.stack, strict=True):
        if kind == CELL:
            fits = fits and type(value) is CellType
        elif kind == LASTI:
            fits = fits and type(value) is int and 0 <= value < size
        elif kind == PREVIOUS:
            fits = fits and (value is None or isinstance(value, BaseException))
    if point.delegates:
        awaited = type(frame.stack[-1])
        fits = fits and (awaited is CoroutineType or hasattr(awaited, "__next__"))
    if not fits:
        raise RestoreRefused(f"`{shell.code.co_qualname}` came with values that its frame cannot hold")


def _shifted(shell: _Shell, values: tuple[Any, ...], shift: int) -> tuple[Any, ...]:
    """Positions in the code count from the start of the prologue."""
    result = list(values)
    index = len(values)
    origin = shell.function.__code__.co_consts[-1]
    for place, kind in enumerate(shell.point.stack):
        if origin.filled >> place & 1:
            index -= 1
            if kind == LASTI:
                result[index] += shift
    return tuple(result)


def _verify(shell: _Shell) -> None:
    """The frame, read again, must hold what was sent: the same objects in the same places."""
    assert shell.expected is not None
    difference = read(shell.suspended).same_as(shell.expected)
    if difference is not None:
        raise RestoreRefused(f"`{shell.code.co_qualname}` was restored wrongly: {difference}")


async def _ended_coroutine() -> None:
    pass


def _ended_generator() -> Any:
    yield
