"""Imports go downwards only, and the core is pure."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import p2pscoop

SOURCE = Path(p2pscoop.__file__).parent

# From the bottom up. A module imports from layers below its own, and from its own package.
LAYERS = [
    {"p2pscoop.errors", "p2pscoop._situation", "p2pscoop"},
    {"p2pscoop._continuation"},
    {"p2pscoop.continuation"},
    {"p2pscoop._core"},
    {
        "p2pscoop._doorman",
        "p2pscoop._machine",
        "p2pscoop._process_config",
        "p2pscoop._security",
        "p2pscoop._shortage",
    },
    {"p2pscoop._discovery", "p2pscoop._acknowledged"},
    {"p2pscoop._future", "p2pscoop._attachment"},
    {"p2pscoop._dataflow", "p2pscoop._gathering"},
    {"p2pscoop._payload"},
    {"p2pscoop._parcels"},
    {"p2pscoop._transport"},
    {"p2pscoop._port", "p2pscoop._constants", "p2pscoop._deaths", "p2pscoop._hints", "p2pscoop._sources"},
    {"p2pscoop._inbox"},
    {"p2pscoop._scheduler"},
    {"p2pscoop._ranges", "p2pscoop._pool", "p2pscoop._profile"},
    {"p2pscoop._local", "p2pscoop._runtime"},
    {"p2pscoop._shipping"},
    {"p2pscoop._migration", "p2pscoop._reduction", "p2pscoop._programs", "p2pscoop._timeouts"},
    {"p2pscoop._home", "p2pscoop._pursuit", "p2pscoop._random", "p2pscoop._reunion", "p2pscoop._supervisor"},
    {"p2pscoop._session", "p2pscoop._node", "p2pscoop._calls", "p2pscoop._journal", "p2pscoop._observer"},
    {"p2pscoop._nested"},
    {"p2pscoop._script", "p2pscoop.futures", "p2pscoop.shared", "p2pscoop.executor"},
    {"p2pscoop.joblib", "p2pscoop._pandas", "p2pscoop.launch"},
    {"p2pscoop.cli", "p2pscoop.testing"},
    {"p2pscoop.__main__"},
]

# What starts the layer above it on first use, and so imports it inside a function, by design.
UPWARD_INSIDE_FUNCTIONS = {("p2pscoop._local", "p2pscoop._session")}

CORE_MAY_IMPORT = {
    "__future__",
    "collections",
    "dataclasses",
    "enum",
    "heapq",
    "itertools",
    "msgpack",
    "random",
    "struct",
    "typing",
}


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> list[tuple[str, bool]]:
    """Absolute names of what a module imports, and whether at its top level."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and isinstance(branch.test, ast.Name) and branch.test.id == "TYPE_CHECKING"
        for node in ast.walk(branch)
    }
    nested = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node in ast.walk(function)
    }
    found = []
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) not in nested) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            if node.module == "p2pscoop":
                names = [f"p2pscoop.{alias.name}" for alias in node.names if alias.name != "__version__"]
                found += [(name, id(node) not in nested) for name in names]
            else:
                found.append((node.module, id(node) not in nested))
    return found


def layer_of(name: str) -> int:
    for level, members in enumerate(LAYERS):
        if any(name == member or name.startswith(member + ".") for member in members - {"p2pscoop"}):
            return level
    if name == "p2pscoop":
        return 0
    raise AssertionError(f"{name} is in no layer: add it")


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def test_every_module_has_a_layer_and_imports_downwards() -> None:
    for path in modules():
        name = module_name(path)
        level = layer_of(name)
        for imported, top_level in imports_of(path):
            if not imported.startswith("p2pscoop"):
                continue
            package = name.rpartition(".")[0]
            if package != "p2pscoop" and f"{imported}.".startswith(f"{package}."):
                continue
            if imported.startswith(f"{name}."):
                continue
            if not top_level and (name, imported) in UPWARD_INSIDE_FUNCTIONS:
                continue
            assert layer_of(imported) < level, f"{name} imports {imported}"


def test_the_core_imports_nothing_that_touches_the_world() -> None:
    for path in sorted((SOURCE / "_core").glob("*.py")):
        for imported, _ in imports_of(path):
            root = imported.partition(".")[0]
            allowed = root in CORE_MAY_IMPORT or imported.startswith(("p2pscoop._core", "p2pscoop.errors"))
            assert allowed, f"{path.name} imports {imported}"


def test_the_core_draws_no_randomness_and_reads_no_clock_of_its_own() -> None:
    for path in sorted((SOURCE / "_core").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = node.func.value
                # `random.Random` may be named as a type, never made or used as a module.
                assert not (isinstance(owner, ast.Name) and owner.id in ("random", "time", "os")), (
                    f"{path.name}:{node.lineno}"
                )


def test_only_the_payload_module_unpickles() -> None:
    allowed = {"p2pscoop._payload"}
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in ("loads", "load"):
                owner = node.value
                if isinstance(owner, ast.Name) and owner.id in ("pickle", "cloudpickle"):
                    assert module_name(path) in allowed, f"{path}:{node.lineno}"


def test_importing_the_package_is_cheap() -> None:
    import subprocess

    program = "import sys, p2pscoop; print(*sorted(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()
    for heavy in ("pynng", "greenlet", "cloudpickle", "msgpack", "asyncio", "click", "zeroconf"):
        assert heavy not in loaded
