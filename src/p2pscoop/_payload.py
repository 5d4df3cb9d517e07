"""The pickle edge: tasks and outcomes to bytes and back. The only module that unpickles.

Functions, classes and instances of `__main__` (and of a notebook) travel by value, what can be imported by
name: cloudpickle (https://github.com/cloudpipe/cloudpickle) decides. Function and arguments of a task are
pickled apart, because many tasks share one function.

What does not pickle fails with the path to the part that refuses, and fails alone. Pickling and unpickling run
user code, out of which anything may come: `BaseException` is caught throughout, so that a `sys.exit` in a
`__reduce__` ends no thread of ours.
"""

from __future__ import annotations

import contextlib
import contextvars
import io
import os
import pickle
import struct
import sys
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterator
from types import FunctionType, MethodType
from typing import Any, NamedTuple

import cloudpickle

from p2pscoop._core.ids import NOBODY, NodeId
from p2pscoop._core.values import Outcome, OutcomeKind, Spec
from p2pscoop._future import CANCELLED, DONE, FAILED, Future, finished, name_of
from p2pscoop._gathering import gathered
from p2pscoop.errors import NotPicklableError, PayloadTooLargeError, RemoteError, RemoteTraceback

__all__ = [
    "Program",
    "SpecEncoder",
    "decode_constant",
    "decode_outcome",
    "decode_program",
    "decode_spec",
    "dumps",
    "encode_constant",
    "encode_error",
    "encode_future",
    "encode_program",
    "encode_value",
    "explain",
    "forget_codes",
    "reduce_special",
]

_PLAIN = frozenset({int, float, complex, bool, str, bytes, type(None)})
_CODE_CACHE_MAX = 64
_CODE_SIZE_MAX = 64 * 1024


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle is untyped
    """cloudpickle, but for open files, which it would ship by content without a word, and for what is ours."""

    def reducer_override(self, obj: Any) -> Any:
        reduced = reduce_special(obj)
        if reduced is not NotImplemented:
            return reduced
        if isinstance(obj, io.IOBase) and not isinstance(obj, (io.BytesIO, io.StringIO)):
            raise TypeError(f"cannot pickle open file {getattr(obj, 'name', obj)!r}: pass its name")
        return super().reducer_override(obj)


def reduce_special(obj: Any) -> Any:
    """How futures and context variables are pickled; NotImplemented for all else."""
    kind = type(obj)
    if kind is Future:
        return _reduce_future(obj)
    if kind is contextvars.ContextVar:
        return _reduce_variable(obj)
    return NotImplemented


def _reduce_future(future: Future[Any]) -> Any:
    """One that has ended, or whose outcome has arrived, travels as that; others stay with those who wait."""
    if future._state == DONE:
        return finished, (DONE, future._value)
    if future._state == CANCELLED:
        return _finished_by, (int(OutcomeKind.CANCELLED), b"")
    if future._state == FAILED:
        outcome = encode_error(future._value, "the node that waited for it")
        return _finished_by, (int(outcome.kind), outcome.payload)
    arrived: Outcome | None = getattr(future, "_arrived", None)
    if arrived is not None:
        return _finished_by, (int(arrived.kind), arrived.payload)
    gathering = getattr(future, "_gathering", None)
    if gathering is not None and gathering.complete():
        return _finished_with, (gathering.parts, gathering.return_exceptions)
    raise TypeError(f"{future!r} has not ended: what holds it stays on the node that waits for it")


def _finished_by(kind: int, payload: bytes) -> Future[Any]:
    return finished(*decode_outcome(Outcome(OutcomeKind(kind), payload)))


def _finished_with(parts: tuple[Future[Any], ...], return_exceptions: bool) -> Future[Any]:
    return finished(*gathered(parts, return_exceptions))


# Context variables have neither a pickle nor a name that is unique. One that a module has is found there; any
# other gets a name of its own, under which each process has one.
_variables: dict[str, contextvars.ContextVar[Any]] = {}
_variable_names: dict[contextvars.ContextVar[Any], str] = {}


def _reduce_variable(variable: contextvars.ContextVar[Any]) -> Any:
    for module_name, module in list(sys.modules.items()):
        # Not `getattr`: that runs what a module does to import its parts late.
        if module_name != "__main__" and getattr(module, "__dict__", {}).get(variable.name) is variable:
            return getattr, (module, variable.name)
    unique = _variable_names.get(variable)
    if unique is None:
        unique = _variable_names[variable] = f"{variable.name} {os.urandom(8).hex()}"
        _variables[unique] = variable
    default: list[Any] = []
    with contextlib.suppress(LookupError):
        default.append(contextvars.Context().run(variable.get))
    return _variable, (unique, variable.name, *default)


def _variable(unique: str, name: str, *default: Any) -> contextvars.ContextVar[Any]:
    variable = _variables.get(unique)
    if variable is None:
        variable = contextvars.ContextVar(name, default=default[0]) if default else contextvars.ContextVar(name)
        _variables[unique] = variable
        _variable_names[variable] = unique
    return variable


def dumps(value: Any) -> bytes:
    """Pickle, with what `__main__` defines by value."""
    if type(value) in _PLAIN:
        return pickle.dumps(value, 5)
    with io.BytesIO() as file:
        _Pickler(file, protocol=5).dump(value)
        return file.getvalue()


# ------------------------------------------------------------------------------------------- specs


class SpecEncoder:
    """Pickles the tasks of one grant, each function once.

    Args:
        size_max: the largest payload that a peer accepts.
    """

    def __init__(self, size_max: int) -> None:
        self.size_max = size_max
        self._codes: dict[int, tuple[Any, bytes]] = {}

    def encode(
        self,
        work: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        path: bytes,
        program: NodeId = NOBODY,
    ) -> Spec:
        """The task as bytes.

        Raises:
            NotPicklableError: naming the part that does not pickle.
            PayloadTooLargeError: of the arguments.
        """
        known = self._codes.get(id(work))
        if known is None:
            code = self._dumps(work, f"function {name_of(work)}", f"function {name_of(work)}")
            # The function is kept with it, so that its id stays taken as long as this cache lives. A change of
            # what it refers to shows in the next grant: the cache lives no longer.
            known = self._codes[id(work)] = (work, code)
        if all(type(arg) in _PLAIN for arg in args) and not kwargs:
            data = pickle.dumps((args, kwargs, path), 5)
        else:
            try:
                data = dumps((args, kwargs, path))
            except BaseException as error:
                raise self._blame(work, args, kwargs, error) from error
        if len(data) + len(known[1]) > self.size_max:
            raise PayloadTooLargeError(
                f"the arguments of {name_of(work)} have {len(data)} bytes when pickled, "
                f"the limit is {self.size_max}; pass a file name or smaller parts instead"
            )
        return Spec(known[1], data, program=program)

    def _dumps(self, value: Any, what: str, label: str) -> bytes:
        try:
            return dumps(value)
        except BaseException as error:
            raise NotPicklableError(f"{what} cannot be pickled: {explain(value, label, error)}") from error

    def _blame(
        self, work: Any, args: tuple[Any, ...], kwargs: dict[str, Any], error: BaseException
    ) -> NotPicklableError:
        parts = [(f"argument {index}", arg) for index, arg in enumerate(args)]
        parts += [(f"argument {name!r}", arg) for name, arg in kwargs.items()]
        for label, part in parts:
            problem = _problem(part)
            if problem is not None:
                return NotPicklableError(
                    f"task {name_of(work)} cannot be pickled: {explain(part, label, problem)}"
                )
        return NotPicklableError(f"task {name_of(work)} cannot be pickled: {type(error).__name__}: {error}")


_codes: OrderedDict[bytes, Any] = OrderedDict()


def decode_spec(spec: Spec) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], bytes]:
    """Function, arguments and path of a task. Raises whatever unpickling raises."""
    work = _codes.get(spec.code)
    if work is None:
        work = pickle.loads(spec.code)
        if len(spec.code) <= _CODE_SIZE_MAX:
            _codes[spec.code] = work
            if len(_codes) > _CODE_CACHE_MAX:
                _codes.popitem(last=False)
    else:
        _codes.move_to_end(spec.code)
    args, kwargs, path = pickle.loads(spec.args)
    return work, args, kwargs, path


def forget_codes() -> None:
    """Unpickle functions anew from now on: their modules may be others."""
    _codes.clear()


# --------------------------------------------------------------------------------------- constants

_ALIGNMENT = 16


def encode_constant(name: str, value: Any) -> bytes:
    """A shared constant as bytes: a table of lengths, then the pickle, then the buffers of arrays, aligned.

    Raises:
        NotPicklableError: naming the part that does not pickle.
    """
    buffers: list[pickle.PickleBuffer] = []
    try:
        with io.BytesIO() as file:
            _Pickler(file, protocol=5, buffer_callback=buffers.append).dump(value)
            pickled = file.getvalue()
        parts: list[bytes | memoryview] = [pickled, *(buffer.raw() for buffer in buffers)]
    except BaseException as error:
        label = f"constant {name!r}"
        raise NotPicklableError(f"{label} cannot be pickled: {explain(value, label, error)}") from error
    table = struct.pack(f"<{1 + len(parts)}Q", len(parts), *(len(part) for part in parts))
    pieces: list[bytes | memoryview] = []
    for part in (table, *parts):
        pieces += [part, bytes(-len(part) % _ALIGNMENT)]
    return b"".join(pieces)


def decode_constant(data: bytes) -> Any:
    """Undo `encode_constant`: arrays are views of these bytes, and read-only. Raises what unpickling raises."""
    (count,) = struct.unpack_from("<Q", data)
    lengths = struct.unpack_from(f"<{count}Q", data, 8)
    start = 8 * (1 + count)
    parts = []
    for length in lengths:
        start += -start % _ALIGNMENT
        parts.append(memoryview(data)[start : start + length])
        start += length
    return pickle.loads(parts[0], buffers=parts[1:])


# ---------------------------------------------------------------------------------------- programs


class Program(NamedTuple):
    """What a node has to know of a program before it runs its tasks.

    Attributes:
        path: `sys.path` of the origin.
        directory: its working directory.
        argv: its `sys.argv`.
        initializer: function and arguments to be called first, pickled; None if there is none.
    """

    path: list[str]
    directory: str
    argv: list[str]
    initializer: bytes | None

    def initialize(self) -> None:
        """Call the initializer. Raises whatever it raises, or its unpickling."""
        if self.initializer is not None:
            initializer, arguments = pickle.loads(self.initializer)
            initializer(*arguments)


def encode_program(initializer: Callable[..., object] | None = None, arguments: tuple[Any, ...] = ()) -> bytes:
    """What other nodes have to know before they run tasks of this process.

    Args:
        initializer: called on each node before its first task.
        arguments: its arguments.

    Raises:
        NotPicklableError: initializer or arguments do not pickle.
    """
    pickled = None
    if initializer is not None:
        try:
            pickled = dumps((initializer, arguments))
        except BaseException as error:
            problem = explain((initializer, *arguments), "initializer and arguments", error)
            raise NotPicklableError(f"the initializer cannot be pickled: {problem}") from error
    path = [entry for entry in sys.path if entry]
    return pickle.dumps(tuple(Program(path, os.getcwd(), list(sys.argv), pickled)), 5)


def decode_program(data: bytes) -> Program:
    """Undo `encode_program`. The initializer is not unpickled yet."""
    return Program(*pickle.loads(data))


# ---------------------------------------------------------------------------------------- outcomes


def encode_future(future: Future[Any], name: str, where: str, size_max: int) -> Outcome:
    """The outcome of a finished future, for its owner on another node."""
    if future._state == DONE:
        return encode_value(future._value, name, where, size_max)
    if future._state == CANCELLED:
        return Outcome(OutcomeKind.CANCELLED, b"")
    return encode_error(future._value, where)


def encode_value(value: Any, name: str, where: str, size_max: int) -> Outcome:
    """A value as bytes, or the error that it has become because it does not pickle."""
    try:
        data = dumps(value)
    except BaseException as error:
        return encode_error(
            NotPicklableError(f"the result of {name} cannot be pickled: {explain(value, 'result', error)}"), where
        )
    if len(data) > size_max:
        return encode_error(
            PayloadTooLargeError(
                f"the result of {name} has {len(data)} bytes when pickled, the limit is {size_max}; "
                "write it to a file and return its name"
            ),
            where,
        )
    return Outcome(OutcomeKind.VALUE, data)


def encode_error(error: BaseException, where: str) -> Outcome:
    """An exception as bytes, with its traceback as text and beside it what is left if it does not unpickle."""
    text = "".join(traceback.format_exception(error))
    try:
        data: bytes | None = dumps(error)
    except BaseException:
        data = None
    name = f"{type(error).__module__}.{type(error).__qualname__}"
    words = (data, name, _text(str, error), f"on {where}:\n{text}", _text(repr, error))
    return Outcome(OutcomeKind.ERROR, pickle.dumps(words, 5))


def _text(make: Callable[[BaseException], str], error: BaseException) -> str:
    try:
        return make(error)
    except BaseException:
        return "(its text could not be made)"


def decode_outcome(outcome: Outcome) -> tuple[int, Any]:
    """State and value of the future that has this outcome. Never raises."""
    if outcome.kind is OutcomeKind.CANCELLED:
        return CANCELLED, None
    try:
        if outcome.kind is OutcomeKind.VALUE:
            return DONE, pickle.loads(outcome.payload)
        data, name, message, text, represented = pickle.loads(outcome.payload)
    except BaseException as error:
        problem = RemoteError(
            f"the result does not unpickle here: {type(error).__name__}: {error}", type(error).__name__
        )
        problem.__cause__ = error
        return FAILED, problem
    raised: Any = None
    if data is not None:
        with contextlib.suppress(BaseException):
            raised = pickle.loads(data)
    if not isinstance(raised, BaseException):
        raised = RemoteError(
            f"{name}: {message} (the exception itself does not survive pickling)", name, text, represented
        )
    # Not by an assignment, which the exception's class may forbid: a frozen dataclass does.
    BaseException.__setattr__(raised, "__cause__", RemoteTraceback(f'\n"""\n{text}"""'))
    return FAILED, raised


# ------------------------------------------------------------------------------------ explanations

_TRIES_MAX = 200
_DEPTH_MAX = 6


def _problem(value: Any) -> BaseException | None:
    try:
        dumps(value)
    except BaseException as error:
        return error
    return None


def explain(value: Any, label: str, error: BaseException) -> str:
    """Where in a value the part is that does not pickle, and what pickle says about it.

    Args:
        value: what does not pickle.
        label: what to call it.
        error: what pickling it raised.
    """
    tries = 0
    for _ in range(_DEPTH_MAX):
        for name, part in _parts(value):
            tries += 1
            if tries > _TRIES_MAX:
                break
            problem = _problem(part)
            if problem is not None:
                label, value, error = label + name, part, problem
                break
        else:
            break
        if tries > _TRIES_MAX:
            break
    return f"{label} ({type(value).__module__}.{type(value).__qualname__}): {type(error).__name__}: {error}"


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """The parts of a value that pickle would look at, by name."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield f"[{key!r:.40}]", part
    elif isinstance(value, (list, tuple)):
        for index, part in enumerate(value):
            yield f"[{index}]", part
    elif isinstance(value, (set, frozenset)):
        for part in value:
            yield "{...}", part
    elif isinstance(value, MethodType):
        yield ".__self__", value.__self__
    elif isinstance(value, FunctionType):
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            try:
                yield f" closure variable {name!r}", cell.cell_contents
            except ValueError:
                continue  # The cell is empty.
        for index, part in enumerate(value.__defaults__ or ()):
            yield f" default {index}", part
        for name in value.__code__.co_names:
            if name in value.__globals__:
                yield f" global {name!r}", value.__globals__[name]
    elif hasattr(value, "func") and hasattr(value, "args"):  # functools.partial
        yield ".func", value.func
        yield ".args", value.args
        yield ".keywords", getattr(value, "keywords", {})
    else:
        for name, part in getattr(value, "__dict__", {}).items():
            yield f".{name}", part
        for cls in type(value).__mro__:
            slots = cls.__dict__.get("__slots__", ())
            for name in (slots,) if isinstance(slots, str) else slots:
                if hasattr(value, name):
                    yield f".{name}", getattr(value, name)
