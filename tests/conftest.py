"""Fixtures that start real nodes, and that notice what a test leaves behind."""

from __future__ import annotations

import glob
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

TIMEOUT_S = 100
REPOSITORY = Path(__file__).parent.parent


def descendants() -> set[int]:
    """Process ids of this process's children, and theirs."""
    parents: dict[int, int] = {}
    for stat in glob.glob("/proc/[0-9]*/stat"):
        try:
            fields = Path(stat).read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            parents[int(stat.split("/")[2])] = int(fields[1])
    found: set[int] = set()
    frontier = {os.getpid()}
    while frontier:
        frontier = {pid for pid, parent in parents.items() if parent in frontier} - found
        found |= frontier
    return found


def nodes_of(pattern: str = "p2pscoop._node") -> list[int]:
    """Process ids of nodes among the descendants."""
    found = []
    for pid in descendants():
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if pattern.encode() in line:
            found.append(pid)
    return sorted(found)


def eventually(condition: Callable[[], object], *, within_s: float = 20.0) -> None:
    """Wait for a condition; a deadline only bounds how long a failure takes."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s} s"
        time.sleep(0.01)


def private_directories() -> set[str]:
    return set(glob.glob(os.path.join(tempfile.gettempdir(), "p2pscoop-*")))


@pytest.fixture(scope="session", autouse=True)
def own_temporary_directory() -> Iterator[None]:
    """What other programs of this machine leave in the common one must not count as left by a test."""
    before = os.environ.get("TMPDIR")
    with tempfile.TemporaryDirectory(prefix="t-") as directory:
        os.environ["TMPDIR"] = tempfile.tempdir = directory
        yield
        tempfile.tempdir = None
        if before is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = before


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """No test leaves a process or a private directory."""
    directories = private_directories()
    processes = descendants()
    yield
    eventually(lambda: descendants() <= processes, within_s=10)
    eventually(lambda: private_directories() <= directories, within_s=10)


@pytest.fixture
def with_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Start `futures` in this process, on so many nodes, and wait until they are there."""
    from p2pscoop import _local, futures

    def start(count: int) -> None:
        monkeypatch.setenv("P2PSCOOP_NODES", str(count))
        scheduler = _local.current()
        eventually(lambda: scheduler.hooks.size() == count)

    yield start
    futures.shutdown(wait=False)


@pytest.fixture(params=[1, 2], ids=["1 node", "2 nodes"])
def nodes(request: pytest.FixtureRequest, with_nodes: Callable[[int], None]) -> int:
    """Run the test on one node and on two."""
    with_nodes(request.param)
    return int(request.param)


class Script:
    """A program in a file of its own, run as a user would run it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def command(self, *arguments: str, nodes: int | None = None, options: tuple[str, ...] = ()) -> list[str]:
        if nodes is None:
            return [sys.executable, str(self.path), *arguments]
        return [sys.executable, "-m", "p2pscoop", "run", "-n", str(nodes), *options, str(self.path), *arguments]

    def run(
        self, *arguments: str, nodes: int | None = None, env: dict[str, str] | None = None, **settings: object
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments, nodes=nodes),
            env={**os.environ, **(env or {})},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            **settings,  # type: ignore[call-overload]
        )

    def start(
        self, *arguments: str, nodes: int, options: tuple[str, ...] = (), **settings: object
    ) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*arguments, nodes=nodes, options=options),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **settings,  # type: ignore[call-overload]
        )


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], Script]:
    """Write a program to a file."""

    def write(text: str, name: str = "program.py") -> Script:
        path = tmp_path / name
        path.write_text(textwrap.dedent(text))
        return Script(path)

    return write
