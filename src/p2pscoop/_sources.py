"""The modules of a program's own directories, as its origin has them, and what it tells nodes of them.

A node asks by name, and for a module's text by name and the hash that it was told. Only Python source is given
out, and only of modules that an `import` at the origin finds in one of the program's own directories: entries of
`sys.path` that belong neither to the standard library nor to installed packages. A name is a dotted row of
identifiers, so that none leads out of them.

What counts is what the origin runs. The text of a module is read once: when the program's runtime starts, or when
a node asks what the program needs, if the module has been imported by then; at the latest when a node asks for it.
An edit between the import and that is not noticed; a later one has no effect on the program, and where nodes see
the same file, they are told that it is the one that was edited.

Decides what to answer; sends nothing, and imports nothing. Any thread.
"""

from __future__ import annotations

import hashlib
import os
import sys
import sysconfig
import threading
from collections.abc import Collection, Iterator
from importlib.machinery import EXTENSION_SUFFIXES, SOURCE_SUFFIXES, ModuleSpec, PathFinder
from typing import NamedTuple

import msgpack

from p2pscoop.errors import RemoteProtocolError

__all__ = ["MARK", "Kind", "Place", "Sources", "digest_of", "is_within", "places_of", "read_names", "read_place"]
__all__ += ["ask_names", "ask_place", "ask_source"]

MARK = b"#"
"""What questions about modules begin with, after the id of the origin. No message of msgpack's arrays does."""

SOURCE_MAX = 16 * 2**20
"""Bytes of one module."""

NAMES_MAX = 10_000
"""Of a program's directories. Where there are more, nodes ask for each name."""

_PACKAGE = "p2pscoop"
_INSTALLED = frozenset({"site-packages", "dist-packages"})


class Kind:
    """What a module of a program is."""

    MODULE = "module"
    PACKAGE = "package"
    NAMESPACE = "namespace"
    """A directory without `__init__.py`."""
    OTHER = "other"
    """Not Python source in a file of its own: compiled, in an archive, or too large."""


class Place(NamedTuple):
    """Where the origin has a module.

    Attributes:
        kind: see `Kind`.
        file: its file there; of a namespace package its directory.
        digest: of its source, as the program has it. If that is not given out, it stands for the file, and is
            empty for a directory.
        edited: of what the file has in it by now, if that is something else; otherwise empty.
    """

    kind: str
    file: str
    digest: bytes
    edited: bytes = b""


def digest_of(source: bytes) -> bytes:
    """What names a source."""
    return hashlib.sha256(source).digest()


def is_within(file: str, own: Collection[str], others: Collection[str]) -> bool:
    """Whether a module's file, itself or in a package, belongs to one of a program's entries of `sys.path`.

    An entry of the others may lie within one of the program's: an environment within a project, say, or the Python
    of a user within the home directory. The nearest counts.
    """
    directory = os.path.dirname(file)
    while directory not in own:
        parent = os.path.dirname(directory)
        if parent == directory or directory in others or "site-packages" in os.path.basename(directory):
            return False
        directory = parent
    return True


def places_of(path: Collection[str]) -> tuple[list[str], list[str]]:
    """The entries of a `sys.path` that are a program's own, and the others."""
    libraries = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib")]
    own: list[str] = []
    others: list[str] = []
    for entry in path:
        place = os.path.abspath(entry)  # An empty entry is the working directory.
        installed = not _INSTALLED.isdisjoint(place.split(os.sep))
        standard = any(place == each or place.startswith(each + os.sep) for each in libraries)
        archive = os.path.basename(place) == f"python{sys.version_info.major}{sys.version_info.minor}.zip"
        (others if installed or standard or archive else own).append(place)
    return own, others


def ask_names() -> bytes:
    """The question for the names in the program's directories, and what is known of its modules."""
    return _question("names")


def ask_place(name: str) -> bytes:
    """The question where a module is."""
    return _question("place", name)


def ask_source(name: str, digest: bytes) -> bytes:
    """The question for the source of a module."""
    return _question("source", name, digest)


def _question(*words: object) -> bytes:
    return MARK + bytes(msgpack.packb(words))


def read_names(answer: bytes) -> tuple[frozenset[str] | None, dict[str, Place]]:
    """The answer to `ask_names`: names, None if they are too many, and where those are that were imported."""
    names, places = msgpack.unpackb(answer)
    return None if names is None else frozenset(names), {name: Place(*place) for name, place in places.items()}


def read_place(answer: bytes) -> Place | None:
    """The answer to `ask_place`; None if the program has no such module of its own."""
    place = msgpack.unpackb(answer)
    return None if place is None else Place(*place)


class Sources:
    """The modules of this process's program."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, tuple[Place, bytes]] = {}
        self.sent = 0
        """Sources that were given out."""

    def note_imported(self) -> None:
        """Read the modules that have been imported by now."""
        own, others = places_of(sys.path)
        starts = tuple(own)
        for name, module in list(sys.modules.items()):
            file = getattr(_spec_in(module), "origin", None)
            # By far most modules are not the program's: the cheap question first.
            if type(file) is str and file.startswith(starts) and is_within(file, own, others):
                self._place(name)

    def answer(self, question: bytes) -> bytes:
        """What to answer a node.

        Raises:
            RemoteProtocolError: the question cannot be read.
        """
        try:
            words = msgpack.unpackb(question[len(MARK) :])
        except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
            raise RemoteProtocolError(f"a question for a module that cannot be read: {error}") from error
        match words:
            case ["names"]:
                names = self._names()
                places = {name: tuple(place) for name, (place, _) in list(self._known.items())}
                return bytes(msgpack.packb((None if names is None else sorted(names), places)))
            case ["place", str(name)]:
                place = self._place(name)
                if place is not None and place.kind in (Kind.MODULE, Kind.PACKAGE):
                    now = digest_of(_read(place.file) or b"")
                    place = place._replace(edited=b"" if now == place.digest else now)
                return bytes(msgpack.packb(None if place is None else tuple(place)))
            case ["source", str(name), bytes(digest)]:
                place, source = self._known.get(name, (None, b""))
                if place is None or place.digest != digest:
                    return b""
                self.sent += 1
                return source
        raise RemoteProtocolError("a question for a module that is none")

    def _names(self) -> set[str] | None:
        """The top-level modules that there may be in the program's directories."""
        names: set[str] = set()
        own, _ = places_of(sys.path)
        for name in _top_levels(own):
            names.add(name)
            if len(names) > NAMES_MAX:
                return None
        return names

    def _place(self, name: str) -> Place | None:
        top = name.partition(".")[0]
        if top in (_PACKAGE, "__main__") or not all(part.isidentifier() for part in name.split(".")):
            return None
        with self._lock:
            if name not in self._known:
                found = _find(name)
                if found is None:
                    return None
                self._known[name] = found
            return self._known[name][0]


def _top_levels(directories: Collection[str]) -> Iterator[str]:
    for directory in directories:
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    name, dot, _ = entry.name.partition(".")
                    suffixes = (*SOURCE_SUFFIXES, *EXTENSION_SUFFIXES)
                    is_module = entry.name.endswith(suffixes) if dot else entry.is_dir()
                    if is_module and name.isidentifier() and name not in (_PACKAGE, "__pycache__"):
                        yield name
        except OSError:
            continue  # Not a directory, or not for this user.


def _find(name: str) -> tuple[Place, bytes] | None:
    """A module of the program's own, and its source."""
    spec = _spec_of(name)
    if spec is None:
        return None
    own, others = places_of(sys.path)
    if spec.origin is None or not spec.has_location:
        locations = list(spec.submodule_search_locations or ())
        places = [place for place in locations if is_within(os.path.join(place, ""), own, others)]
        return (Place(Kind.NAMESPACE, places[0], b""), b"") if places else None
    file = os.path.abspath(spec.origin)
    if not is_within(file, own, others):
        return None
    source = _read(file) if file.endswith(tuple(SOURCE_SUFFIXES)) else None
    if source is None:
        return Place(Kind.OTHER, file, digest_of(os.fsencode(file))), b""
    kind = Kind.MODULE if spec.submodule_search_locations is None else Kind.PACKAGE
    return Place(kind, file, digest_of(source)), source


def _read(file: str) -> bytes | None:
    """A source that can be sent."""
    try:
        with open(file, "rb") as stream:
            source = stream.read(SOURCE_MAX + 1)
    except OSError:
        return None
    return source if len(source) <= SOURCE_MAX else None


def _spec_of(name: str) -> ModuleSpec | None:
    """What an import of this name would find here, without importing anything."""
    spec = _spec_in(sys.modules.get(name))
    if spec is not None:
        return spec
    parent, dot, _ = name.rpartition(".")
    if not dot:
        return PathFinder.find_spec(name)
    above = _spec_of(parent)
    if above is None or above.submodule_search_locations is None:
        return None
    return PathFinder.find_spec(name, above.submodule_search_locations)


def _spec_in(module: object) -> ModuleSpec | None:
    """How a module came here. Not `getattr`: that runs what a module does to import its parts late."""
    spec = getattr(module, "__dict__", {}).get("__spec__")
    return spec if isinstance(spec, ModuleSpec) else None
