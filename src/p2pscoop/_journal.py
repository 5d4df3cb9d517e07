"""A file that remembers the results of a `map`, so that a program that was cut short does not start all over.

One journal belongs to one `map` with one function. It has a row for each item whose result has arrived: its
number, a digest of its arguments, and the pickled result. A result is used again if number and digest agree; else
the call is made again. If the function is another than the one that wrote the file, that is an error: which
results would still be good, only the user knows.

SQLite keeps what it was given if the process dies at any moment; if the whole machine does, the last results may
be missing. Exceptions are not kept: what failed is tried again. Like all pickles, journals must come from whom one
trusts.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import os
import pickle
import sqlite3
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial
from types import CellType, CodeType, FunctionType, ModuleType
from typing import IO, Any

from p2pscoop._core.values import Outcome, OutcomeKind
from p2pscoop._future import DONE, name_of
from p2pscoop._payload import decode_outcome, encode_error, encode_value
from p2pscoop._ranges import Range
from p2pscoop._scheduler import Scheduler
from p2pscoop._timeouts import TaskFunction, in_place_of
from p2pscoop.errors import ConfigurationError, NotPicklableError

__all__ = ["Journal", "digest_of", "journaled_map"]

_APPLICATION = 0x70327073
"""Marks the file as ours, for SQLite and for `file`."""


class Journal:
    """An open journal.

    Args:
        path: of the file; made if it is not there.
        fn: the function whose results it has.

    Raises:
        ConfigurationError: the file is no journal, is in use, cannot be opened, or is that of another function.
    """

    def __init__(self, path: str | os.PathLike[str], fn: Callable[..., Any]) -> None:
        self._name = os.fspath(path)
        try:
            # Each statement is a transaction of its own.
            self._connection = sqlite3.connect(self._name, isolation_level=None, timeout=0.2)
        except sqlite3.Error as error:
            raise ConfigurationError(f"the journal {self._name} cannot be opened: {error}") from error
        try:
            self._begin(fn)
        except sqlite3.Error as error:
            self._connection.close()
            raise ConfigurationError(f"the journal {self._name} cannot be used: {error}") from error
        except BaseException:
            self._connection.close()
            raise

    def _begin(self, fn: Callable[..., Any]) -> None:
        run = self._connection.execute
        [application] = run("PRAGMA application_id").fetchone()
        tables = run("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if application != _APPLICATION and tables:
            raise ConfigurationError(
                f"{self._name} is a database of another program: give the journal a file of its own"
            )
        # One program at a time; whoever comes second is told so at once.
        run("PRAGMA locking_mode = EXCLUSIVE")
        run("PRAGMA journal_mode = WAL")
        # Enough for the death of the process; a crash of the whole machine may lose the last results.
        run("PRAGMA synchronous = NORMAL")
        run(f"PRAGMA application_id = {_APPLICATION}")
        run("CREATE TABLE IF NOT EXISTS work (fingerprint BLOB, name TEXT)")
        run("CREATE TABLE IF NOT EXISTS results (item INTEGER PRIMARY KEY, digest BLOB, value BLOB)")
        # Its options change no result.
        mine = digest_of(fn.func if isinstance(fn, TaskFunction) else fn, f"function {name_of(fn)}")
        row = run("SELECT fingerprint, name FROM work").fetchone()
        if row is None:
            run("INSERT INTO work VALUES (?, ?)", (mine, name_of(fn)))
        elif row[0] != mine:
            raise ConfigurationError(
                f"the journal {self._name} has results of {row[1]} as it was, and {name_of(fn)} is not the same: "
                "delete the file, or name another one"
            )

    def get(self, item: int, digest: bytes) -> tuple[bool, Any]:
        """Whether the result of this item is known, and the result."""
        row = self._connection.execute(
            "SELECT value FROM results WHERE item = ? AND digest = ?", (item, digest)
        ).fetchone()
        if row is None:
            return False, None
        state, value = decode_outcome(Outcome(OutcomeKind.VALUE, row[0]))
        # What does not unpickle any more is computed again.
        return state == DONE, value if state == DONE else None

    def knows(self, item: int, digest: bytes) -> bool:
        """Whether there is a result of this item."""
        found = self._connection.execute("SELECT 1 FROM results WHERE item = ? AND digest = ?", (item, digest))
        return found.fetchone() is not None

    def put(self, item: int, digest: bytes, value: bytes) -> None:
        """Remember a pickled result."""
        self._connection.execute("INSERT OR REPLACE INTO results VALUES (?, ?, ?)", (item, digest, value))

    def close(self) -> None:
        """Let others have the file."""
        self._connection.close()


def journaled_map(
    scheduler: Scheduler,
    fn: Callable[..., Any],
    iterables: tuple[Iterable[Any], ...],
    path: str | os.PathLike[str],
    *,
    ordered: bool,
    deadline: float | None,
) -> Generator[Any, None, None]:
    """As `Range(...).results()`, with a journal."""
    journal = Journal(path, fn)
    digests: dict[int, bytes] = {}

    def items() -> Iterator[tuple[bool, tuple[Any, ...]]]:
        for item, args in enumerate(zip(*iterables)):  # noqa: B905  (as `map`)
            digests[item] = digest_of(args, f"item {item}")
            known = journal.knows(item, digests[item])
            # Known ones go the way of all, without their arguments: so the others keep their numbers, and what
            # derives from those, such as their random generators.
            yield known, () if known else args

    inner = fn.func if isinstance(fn, TaskFunction) else fn
    work = in_place_of(fn, partial(_attempt_later if inspect.iscoroutinefunction(inner) else _attempt, fn))
    try:
        attempts = Range(scheduler, work, (_numbers(), items()), ordered=False, deadline=deadline)
    except BaseException:
        journal.close()
        raise
    return _results(journal, digests, attempts, ordered)


def _numbers() -> Iterator[int]:
    number = 0
    while True:
        yield number
        number += 1


def _results(
    journal: Journal, digests: dict[int, bytes], attempts: Range, ordered: bool
) -> Generator[Any, None, None]:
    arrived: dict[int, tuple[Outcome | None, Any]] = {}
    wanted = 0
    try:
        for item, outcome in attempts.results():
            digest = digests.pop(item)
            if outcome is None:
                known, value = journal.get(item, digest)
                if not known:
                    raise ConfigurationError(
                        f"a result in the journal {journal._name} is damaged: delete the file"
                    )
                arrived[item] = None, value
            else:
                if outcome.kind is OutcomeKind.VALUE:
                    journal.put(item, digest, outcome.payload)
                arrived[item] = outcome, None
            while arrived:
                if ordered and wanted not in arrived:
                    break
                yield _value(*arrived.pop(wanted if ordered else next(iter(arrived))))
                wanted += 1
    finally:
        journal.close()


def _value(outcome: Outcome | None, known: Any) -> Any:
    if outcome is None:
        return known
    state, value = decode_outcome(outcome)
    if state != DONE:
        raise value
    return value


def _outcome(fn: Callable[..., Any], value: Any) -> Outcome:
    return encode_value(value, name_of(fn), _here(), sys.maxsize)


def _here() -> str:
    return f"a node (pid {os.getpid()})"


def _attempt(
    fn: Callable[..., Any], item: int, known_and_args: tuple[bool, tuple[Any, ...]]
) -> tuple[int, Outcome | None]:
    """On a node: the outcome of an item; None if it is known."""
    known, args = known_and_args
    if known:
        return item, None
    try:
        return item, _outcome(fn, fn(*args))
    except Exception as error:
        return item, encode_error(error, _here())


async def _attempt_later(
    fn: Callable[..., Any], item: int, known_and_args: tuple[bool, tuple[Any, ...]]
) -> tuple[int, Outcome | None]:
    """As `_attempt`, of a coroutine function."""
    known, args = known_and_args
    if known:
        return item, None
    try:
        return item, _outcome(fn, await fn(*args))
    except Exception as error:
        return item, encode_error(error, _here())


# ------------------------------------------------------------------------------------- fingerprints


def digest_of(value: Any, what: str) -> bytes:
    """The same for what is the same, in this run and the next; another one if a function in it has changed.

    What pickles differently each time, as sets of text do, is never the same. Of functions that can be imported
    from another module, only the name counts.

    Args:
        value: anything that pickles.
        what: what to call it in the error.

    Raises:
        NotPicklableError: it does not.
    """
    with io.BytesIO() as file:
        try:
            _Digester(file, getattr(value, "__module__", None)).dump(value)
        except Exception as error:
            raise NotPicklableError(f"{what} cannot be recognized by a journal: {error}") from error
        return hashlib.blake2b(file.getvalue(), digest_size=16).digest()


class _Digester(pickle.Pickler):
    """A pickler whose output nobody loads: what would be named or made anew is described instead.

    Args:
        file: where to.
        module: the module whose functions count with their code, besides `__main__`.
    """

    def __init__(self, file: IO[bytes], module: str | None) -> None:
        super().__init__(file, protocol=5)
        self._modules = {module, "__main__"}
        self._seen: set[FunctionType] = set()

    def reducer_override(self, obj: Any) -> Any:
        # `repr` stands for "described by": any function would do that is pickled by its name.
        if isinstance(obj, FunctionType):
            return repr, (self._described(obj),)
        if isinstance(obj, CellType):
            return repr, ((obj.cell_contents,) if obj != CellType() else (),)
        if isinstance(obj, type):
            return repr, (f"{obj.__module__}.{obj.__qualname__}",)
        if isinstance(obj, ModuleType):
            return repr, (obj.__name__,)
        return NotImplemented

    def _described(self, function: FunctionType) -> tuple[Any, ...]:
        name = (function.__module__, function.__qualname__)
        by_name = function.__module__ not in self._modules and "<locals>" not in function.__qualname__
        if by_name or function in self._seen:
            return name
        self._seen.add(function)
        code = function.__code__
        used = [function.__globals__.get(each) for each in code.co_names]
        return (
            *name,
            _words(code),
            function.__defaults__,
            function.__kwdefaults__,
            function.__closure__,
            [each for each in used if isinstance(each, FunctionType) and each.__module__ == function.__module__],
        )


def _words(code: CodeType) -> tuple[Any, ...]:
    constants = []
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            constants.append(_words(constant))
        elif isinstance(constant, frozenset):
            constants.append(tuple(sorted(map(repr, constant))))
        else:
            constants.append((repr(constant),))
    return code.co_code, code.co_names, code.co_varnames, code.co_freevars, tuple(constants)
