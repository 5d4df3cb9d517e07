"""How a node comes by the modules of the programs whose tasks it runs.

A module that the origin imports from one of the program's own directories is looked for on this machine as any
other; the origin is asked for its hash. If it is here, with the same content, it is imported from here; if it is
not, the origin sends its source. If there is another one here, that is a `CodeMismatchError`: neither is taken for
the other. Submodules of such a package are handled alike. Nothing else is asked for, but for a name that nobody
else finds.

A process has one module of a name. If two programs have different ones, it is that of the program which imported
its own first here, until that ends; tasks of the other fail meanwhile, with the same error. Programs with the same
content share the module.

Sources are kept by hash, up to a bound, and also when their program has ended: it may come again.

Decides which module a name is. What may be imported at all is the origin's to say (`_sources`).
"""

from __future__ import annotations

import importlib.abc
import linecache
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import NamedTuple

from p2pscoop import _machine
from p2pscoop._core.ids import NOBODY, NodeId
from p2pscoop._runtime import Runtime
from p2pscoop._sources import (
    Kind,
    Place,
    ask_place,
    ask_source,
    digest_of,
    read_names,
    read_place,
)
from p2pscoop.errors import CodeMismatchError

__all__ = ["CACHE_MAX", "Shipping", "SourceCache"]

CACHE_MAX = 64 * 2**20
"""Bytes of sources that a node keeps."""

PATIENCE_S = 60.0
"""How long an import waits for an answer of the origin, which may be busy with code that holds the GIL."""

_RESEND_S = 1.0
"""First repetition of a question; doubles each time."""

_LOOK_S = 0.1
"""How often what waits looks whether the origin is still there."""


class SourceCache:
    """Sources by hash. When they are too many bytes, those go that were not used for the longest time.

    Args:
        size_max: bytes of all of them.
    """

    def __init__(self, size_max: int = CACHE_MAX) -> None:
        self.size_max = size_max
        self.size = 0
        self._sources: OrderedDict[bytes, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, digest: bytes) -> bytes | None:
        """The source with this hash, if it is here."""
        with self._lock:
            source = self._sources.get(digest)
            if source is not None:
                self._sources.move_to_end(digest)
            return source

    def put(self, digest: bytes, source: bytes) -> None:
        """Keep a source."""
        with self._lock:
            if digest not in self._sources:
                self._sources[digest] = source
                self.size += len(source)
            while self.size > self.size_max:
                _, oldest = self._sources.popitem(last=False)
                self.size -= len(oldest)


class _Loader(importlib.abc.SourceLoader):
    """Of one module whose source came from its origin. It has what tracebacks and `inspect` ask for."""

    def __init__(self, name: str, file: str, source: bytes) -> None:
        self._name = name
        self._file = file
        self._source = source

    def get_filename(self, fullname: str) -> str:
        """The name of the file at the origin."""
        del fullname
        return self._file

    def get_data(self, path: str | bytes) -> bytes:
        """The source. Other files that lie beside it are not here."""
        if path != self._file:
            raise FileNotFoundError(
                f"{path!r} is not on this machine: of the module {self._name} its origin has sent the source, and "
                "no data files; use p2pscoop.shared, or give what is in it to the task as an argument"
            )
        return self._source


class _Held(NamedTuple):
    """A module of a program's own that is imported here.

    Attributes:
        place: where its first program has it.
        file: where it came from here; the same if it was sent.
        holders: the programs that have it, in the same version.
        sent: whether its source came from the origin.
    """

    place: Place
    file: str
    holders: set[NodeId]
    sent: bool


class _Unanswered(Exception):
    """The origin does not say; the text tells why."""


class Shipping(importlib.abc.MetaPathFinder):
    """The finder of a node for modules of its programs.

    Args:
        runtime: of the node.
        program: the one whose code runs, or is being unpickled; NOBODY if none is.
        is_busy: whether tasks of a program have begun here.
        cache: for sources.
    """

    def __init__(
        self,
        runtime: Runtime,
        program: Callable[[], NodeId],
        is_busy: Callable[[NodeId], bool],
        cache: SourceCache | None = None,
    ) -> None:
        self._runtime = runtime
        self._program = program
        self._is_busy = is_busy
        self._cache = cache or SourceCache()
        self._names: dict[NodeId, frozenset[str] | None] = {}
        self._places: dict[NodeId, dict[str, Place]] = {}
        """What the origins had imported when they were asked for names. It does not change."""
        self._held: dict[str, _Held] = {}
        self._version = 0
        """Of what is held: whoever has checked one need not check it again."""
        self._checked: dict[NodeId, int] = {}
        self._conflicts: dict[NodeId, str] = {}

    def install(self) -> None:
        """Become one of the interpreter's finders: before that of `sys.path`, and once more after all others."""
        try:
            index = sys.meta_path.index(PathFinder)
        except ValueError:
            index = len(sys.meta_path)
        sys.meta_path.insert(index, self)
        sys.meta_path.append(_Last(self))

    # ---------------------------------------------------------------------------------------- imports

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See `importlib.abc.MetaPathFinder`.

        Raises:
            CodeMismatchError: there is another module of this name here.
            ModuleNotFoundError: the origin has it, and it cannot be had.
        """
        del target
        program = self._caller()
        if program == NOBODY:
            return None
        parent, dot, _ = fullname.rpartition(".")
        if dot:
            held = self._held.get(parent)
            is_own = held is not None and program in held.holders
        else:
            names = self._names[program]
            is_own = names is None or fullname in names
        return self._find(program, fullname, path) if is_own else None

    def find_last(self, fullname: str) -> ModuleSpec | None:
        """A module that no finder knows: it may have appeared since the origin was asked for its names."""
        program = self._caller()
        if program == NOBODY or "." in fullname:
            return None
        names = self._names[program]
        return None if names is None or fullname in names else self._find(program, fullname, None)

    def _caller(self) -> NodeId:
        program = self._program()
        # The runtime's own threads bring the answers, so they cannot wait for them.
        return program if program in self._names and not self._runtime.is_own_thread() else NOBODY

    def _find(self, program: NodeId, name: str, path: Sequence[str] | None) -> ModuleSpec | None:
        try:
            place = self._place(program, name)
            if place is None:
                return None
            spec, sent = self._spec(program, name, place, path), False
            if spec is None:
                spec, sent = self._sent(program, name, place), True
        except _Unanswered as problem:
            raise self._not_found(program, name, str(problem)) from None
        self._hold(program, name, place, place.file if sent else _file_of(spec), sent)
        return spec

    def _spec(self, program: NodeId, name: str, place: Place, path: Sequence[str] | None) -> ModuleSpec | None:
        """A module that is on this machine, and is the right one."""
        spec = PathFinder.find_spec(name, path)
        if spec is None or place.kind == Kind.OTHER:
            return spec
        if not spec.has_location:
            # A directory of that name: it has no content that could be another, nor any that could be it.
            return spec if place.kind == Kind.NAMESPACE else None
        try:
            with open(_file_of(spec), "rb") as file:
                digest = digest_of(file.read())
        except OSError:
            return None  # Not for this user.
        if digest == place.digest:
            return spec
        now = read_place(self._ask(program, ask_place(name)))
        if now is not None and digest == now.edited:
            return None  # The origin's own file, which has been edited since the program has read it.
        raise CodeMismatchError(
            f"the module {name} is not the same on all nodes: {self._origin(program)} has {place.file}, and on "
            f"{_machine.host_name()} {_file_of(spec)} has other content; make them the same and start the program "
            "again, or remove the one on the node's machine (then the origin's is sent), or rename the module"
        )

    def _sent(self, program: NodeId, name: str, place: Place) -> ModuleSpec:
        """A module whose source comes from its origin."""
        if place.kind == Kind.NAMESPACE:
            spec = ModuleSpec(name, None, is_package=True)
            spec.submodule_search_locations = [place.file]
            return spec
        if place.kind == Kind.OTHER:
            raise _Unanswered(f"has it as {place.file}, and only Python source is sent: install it here as well")
        source = self._cache.get(place.digest)
        if source is None:
            source = self._ask(program, ask_source(name, place.digest))
            if digest_of(source) != place.digest:
                raise _Unanswered("did not send it")
            self._cache.put(place.digest, source)
        loader = _Loader(name, place.file, source)
        spec = ModuleSpec(name, loader, origin=place.file, is_package=place.kind == Kind.PACKAGE)
        spec.has_location = True
        if place.kind == Kind.PACKAGE:
            # Where the origin has it. Elsewhere there is no such directory, and submodules are asked for.
            spec.submodule_search_locations = [place.file.rpartition("/")[0] or "/"]
        return spec

    # ------------------------------------------------------------------------------------- programs

    def begin(self, program: NodeId, names: bytes) -> None:
        """A program is about to be prepared; its origin has said which names it has."""
        self._names[program], self._places[program] = read_names(names)

    def conflict(self, program: NodeId) -> CodeMismatchError | None:
        """Why tasks of this program cannot run here now, if so: another one has a module of the same name."""
        if program not in self._names:
            return None
        if self._checked.get(program) != self._version:
            self._check(program)
        text = self._conflicts.get(program)
        return None if text is None else CodeMismatchError(text)

    def _check(self, program: NodeId) -> None:
        version = self._version
        self._conflicts.pop(program, None)
        for name, held in list(self._held.items()):
            if not self._may_have(program, name) or program in held.holders:
                continue
            try:
                place = self._place(program, name)
            except _Unanswered:
                return
            if place is None:
                continue
            if place.digest == held.place.digest:
                held.holders.add(program)
            else:
                self._conflicts[program] = self._clash(program, name, place, held.place, held.holders)
        self._checked[program] = version

    def forget(self, program: NodeId) -> None:
        """A program has ended: its modules go, unless another program has the same."""
        self._names.pop(program, None)
        self._places.pop(program, None)
        for name, held in list(self._held.items()):
            held.holders.discard(program)
            if not held.holders:
                del self._held[name]
                sys.modules.pop(name, None)
                if held.sent:
                    linecache.cache.pop(held.file, None)
        self._version += 1
        self._checked.clear()
        self._conflicts.clear()

    def holds(self, name: str) -> bool:
        """Whether a program that is there has this module."""
        return name in self._held

    def _hold(self, program: NodeId, name: str, place: Place, file: str, sent: bool) -> None:
        held = self._held.get(name)
        if held is not None and held.place.digest == place.digest:
            held.holders.add(program)
            return
        for other in self._others(program, name):
            try:
                theirs = self._place(other, name)
            except _Unanswered:
                continue
            if theirs is not None and theirs.digest != place.digest:
                raise CodeMismatchError(self._clash(program, name, place, theirs, [other]))
        if held is not None:
            raise CodeMismatchError(self._clash(program, name, place, held.place, held.holders))
        self._held[name] = _Held(place, file, {program}, sent)
        self._version += 1

    def _others(self, program: NodeId, name: str) -> list[NodeId]:
        """Programs whose tasks have begun here, and might import a module of this name of their own."""
        return [
            each for each in self._names if each != program and self._may_have(each, name) and self._is_busy(each)
        ]

    def _may_have(self, program: NodeId, name: str) -> bool:
        names = self._names[program]
        return names is None or name.partition(".")[0] in names

    def _clash(
        self, program: NodeId, name: str, place: Place, other_place: Place, others: Iterable[NodeId]
    ) -> str:
        return (
            f"two programs have different modules of the name {name}: {self._origin(program)} has {place.file}, "
            f"{' and '.join(map(self._origin, others))} has {other_place.file}, and both use node "
            f"{self._runtime.name} on {_machine.host_name()}, which can have one of them at a time; "
            "run one program after the other, or rename the module in one of them"
        )

    # ------------------------------------------------------------------------------------- questions

    def _ask(self, program: NodeId, question: bytes) -> bytes:
        """The answer of a program's origin. Blocks this thread, which cannot go on without the module."""
        came = threading.Event()
        answers: list[bytes] = []

        def on_answer(answer: bytes) -> None:
            answers.append(answer)
            came.set()

        runtime = self._runtime
        query = runtime.question(on_answer)
        start = resend_at = time.monotonic()
        pause = _RESEND_S
        try:
            while True:
                now = time.monotonic()
                if runtime.node.membership.is_gone(program):
                    raise _Unanswered("is gone")
                if now - start > PATIENCE_S:
                    raise _Unanswered(f"has not answered for {PATIENCE_S:.0f} s")
                if now >= resend_at:
                    runtime.ask(program, query, program + question)
                    resend_at = now + pause
                    pause *= 2
                if came.wait(_LOOK_S):
                    return answers[0]
        finally:
            runtime.forget_question(query)

    def _place(self, program: NodeId, name: str) -> Place | None:
        """Where a program has a module of its own, if it has one."""
        known = self._places[program].get(name)
        return known or read_place(self._ask(program, ask_place(name)))

    def _origin(self, program: NodeId) -> str:
        row = self._runtime.node.membership.row(program)
        return "a program" if row is None else f"the program on {row.info.host} (pid {row.info.pid})"

    def _not_found(self, program: NodeId, name: str, why: str) -> ModuleNotFoundError:
        here = _machine.host_name()
        return ModuleNotFoundError(
            f"no module named {name!r} on {here}, nor from the origin: {self._origin(program)} {why}", name=name
        )


class _Last(importlib.abc.MetaPathFinder):
    """Asks when all other finders have failed."""

    def __init__(self, shipping: Shipping) -> None:
        self._shipping = shipping

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See `importlib.abc.MetaPathFinder`."""
        del path, target
        return self._shipping.find_last(fullname)


def _file_of(spec: ModuleSpec) -> str:
    return spec.origin or ""
