"""How a code object is named so that another process finds the same one: module, qualified name, path, hash.

Decides what can be found again, and checks on the other side that it is the same code. The path leads through
nested code objects: a function inside a function has no name that can be imported. Does not decide what happens
to code that cannot be named (`pickling` ships it by value).
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
from collections.abc import Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple

import cloudpickle

from p2pscoop._continuation.bytecode import CodeCache

__all__ = ["CodeName", "NotFound", "code_hash", "find", "home_of", "name_of"]

_HASH_SIZE = 12
_WRAPPERS_MAX = 32


class NotFound(Exception):
    """There is no such code here, or it is another version of it."""


class CodeName(NamedTuple):
    """Where a code object is found.

    Attributes:
        module: that can be imported.
        root: qualified name of what has the code, a function or something made from one.
        path: indices of constants, from the root's code object inwards.
        digest: hash of the code.
    """

    module: str
    root: str
    path: tuple[int, ...]
    digest: bytes


def _code_hash(code: CodeType) -> bytes:
    digest = hashlib.blake2b(digest_size=_HASH_SIZE)
    # File name and line numbers are no part of what it does.
    for part in (
        code.co_code,
        code.co_exceptiontable,
        code.co_qualname,
        code.co_names,
        code.co_varnames,
        code.co_cellvars,
        code.co_freevars,
        (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags, code.co_stacksize),
        tuple(map(_constant, code.co_consts)),
    ):
        digest.update(repr(part).encode("utf-8", "surrogatepass"))
        digest.update(b"\0")
    return digest.digest()


def _constant(value: Any) -> Any:
    if isinstance(value, CodeType):
        return code_hash(value)
    if isinstance(value, tuple):
        return tuple(map(_constant, value))
    if isinstance(value, frozenset):
        # Its order is that of the hash seed.
        return sorted(map(repr, map(_constant, value)))
    return type(value).__name__, repr(value)


code_hash = CodeCache(_code_hash)
"""What the code does, as bytes that are the same in every process of one Python version."""


def home_of(function: FunctionType) -> ModuleType | None:
    """The importable module whose globals the function has."""
    name = function.__globals__.get("__name__")
    if type(name) is not str or name == "__main__":
        return None
    module = sys.modules.get(name)
    if module is None or getattr(module, "__dict__", None) is not function.__globals__:
        return None
    by_value = cloudpickle.list_registry_pickle_by_value()
    if by_value and any(name == each or name.startswith(f"{each}.") for each in by_value):
        return None
    return module


def _name_of(code: CodeType, module: ModuleType) -> CodeName | None:
    root = code.co_qualname.partition(".<locals>")[0]
    for candidate in _candidates(module, root):
        path = _path_to(code, candidate)
        if path is not None:
            return CodeName(module.__name__, root, path, code_hash(code))
    return None


_named: CodeCache[CodeName | None] = CodeCache(lambda code, module_name: _name_of(code, sys.modules[module_name]))


def name_of(code: CodeType, module: ModuleType) -> CodeName | None:
    """The name of a code object of that module, or None if it has none."""
    return _named(code, module.__name__)


def find(name: CodeName) -> tuple[CodeType, ModuleType]:
    """The code object that has that name here, and its module.

    Raises:
        NotFound: naming what is missing or different.
    """
    try:
        module = sys.modules.get(name.module) or importlib.import_module(name.module)
    except Exception as error:
        raise NotFound(f"module {name.module} cannot be imported: {type(error).__name__}: {error}") from error
    different = False
    for code in _candidates(module, name.root):
        found = _follow(code, name.path)
        if found is not None:
            if code_hash(found) == name.digest:
                return found, module
            different = True
    if different:
        raise NotFound(f"{name.module}.{name.root} is another version here: the hash of its code is different")
    raise NotFound(f"{name.module}.{name.root} is not here")


def _candidates(module: ModuleType, root: str) -> Iterator[CodeType]:
    """Code objects that the name may stand for: decorators hide functions behind each other."""
    value: Any = module
    for part in root.split("."):
        try:
            value = inspect.getattr_static(value, part)
        except AttributeError:
            return
    seen = 0
    pending = [value]
    while pending and seen < _WRAPPERS_MAX:
        seen += 1
        value = pending.pop()
        if isinstance(value, FunctionType):
            yield value.__code__
            if "__wrapped__" in value.__dict__:
                pending.append(value.__dict__["__wrapped__"])
            # A decorator that forgot `functools.wraps` still has the function in its closure.
            for cell in value.__closure__ or ():
                try:
                    content = cell.cell_contents
                except ValueError:
                    continue
                if isinstance(content, FunctionType):
                    pending.append(content)
        elif isinstance(value, (staticmethod, classmethod)):
            pending.append(value.__func__)
        elif isinstance(value, property):
            pending += [each for each in (value.fget, value.fset, value.fdel) if each is not None]
        else:
            namespace = getattr(type(value), "__dict__", {}) and getattr(value, "__dict__", {})
            pending += [namespace[key] for key in ("func", "__wrapped__", "__func__") if key in namespace]


def _path_to(code: CodeType, root: CodeType) -> tuple[int, ...] | None:
    pending: list[tuple[CodeType, tuple[int, ...]]] = [(root, ())]
    while pending:
        each, path = pending.pop()
        if each is code:
            return path
        for index, const in enumerate(each.co_consts):
            if isinstance(const, CodeType):
                pending.append((const, (*path, index)))
    return None


def _follow(code: CodeType, path: tuple[int, ...]) -> CodeType | None:
    for index in path:
        inner = code.co_consts[index] if index < len(code.co_consts) else None
        if not isinstance(inner, CodeType):
            return None
        code = inner
    return code
