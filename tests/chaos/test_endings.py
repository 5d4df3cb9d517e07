"""Whoever is killed, all that belongs to the program ends, by itself and soon, and leaves no file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.conftest import TIMEOUT_S, Script, eventually, private_directories

WriteScript = Callable[..., Script]
MARK = "P2PSCOOP_TEST_MARK"

# Nodes are in the middle of calls into C that last, and that ignore signals.
FUTURES = """
    import os, signal, sys, time
    import p2pscoop
    from p2pscoop import futures

    def hold():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(1000)

    while len(p2pscoop.statistics()) < 3:
        time.sleep(0.01)
    many = [futures.submit(hold) for _ in range(10)]
    print(os.getpid(), flush=True)
    time.sleep(1000)
"""
EXECUTOR = """
    import os, signal, time
    from p2pscoop import Executor

    def hold():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(1000)

    executor = Executor(2)
    executor.submit(abs, 1).result()
    many = [executor.submit(hold) for _ in range(10)]
    print(os.getpid(), flush=True)
    time.sleep(1000)
"""


class Family:
    """All processes that have a mark in their environment, whoever their parents are by now."""

    def __init__(self, mark: str) -> None:
        self._mark = f"{MARK}={mark}".encode()

    def pids(self, module: str = "") -> list[int]:
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self._mark in (folder / "environ").read_bytes().split(b"\0"):
                    line = (folder / "cmdline").read_bytes()
                    if module.encode() in line and line:  # A zombie has none.
                        found.append(int(folder.name))
            except OSError:
                continue
        return found

    def has_ended(self) -> bool:
        return not self.pids()


@pytest.fixture
def family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Family]:
    monkeypatch.setenv(MARK, str(tmp_path))
    monkeypatch.setenv("P2PSCOOP_NODES", "3")
    family = Family(str(tmp_path))
    before = private_directories()
    yield family
    try:
        eventually(family.has_ended, within_s=10)
        eventually(lambda: private_directories() == before, within_s=10)
    finally:
        for pid in family.pids():
            os.kill(pid, signal.SIGKILL)


def start(program: Script, *, launcher: bool) -> tuple[subprocess.Popen[str], int]:
    """The process that was started, and the origin's id."""
    process = subprocess.Popen(
        program.command(nodes=3 if launcher else None),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline())


@pytest.mark.parametrize(
    ("text", "launcher"),
    [(FUTURES, True), (FUTURES, False), (EXECUTOR, False)],
    ids=["of a launcher", "of a script", "of an executor"],
)
def test_the_origin_is_killed(script: WriteScript, family: Family, text: str, launcher: bool) -> None:
    process, origin = start(script(text), launcher=launcher)
    eventually(lambda: len(family.pids("p2pscoop._node")) == 2)
    os.kill(origin, signal.SIGKILL)
    process.communicate(timeout=TIMEOUT_S)
    eventually(family.has_ended, within_s=10)


def test_the_launcher_is_killed(script: WriteScript, family: Family) -> None:
    """Nobody has told the origin or the nodes anything: their tethers have."""
    process, _ = start(script(FUTURES), launcher=True)
    eventually(lambda: len(family.pids("p2pscoop._node")) == 2)
    process.kill()
    process.communicate(timeout=TIMEOUT_S)
    eventually(family.has_ended, within_s=10)


def test_all_but_the_nodes_are_killed(script: WriteScript, family: Family) -> None:
    """Nobody is left who could clean up but the nodes, and they do."""
    process, origin = start(script(FUTURES), launcher=False)
    eventually(lambda: len(family.pids("p2pscoop._node")) == 2)
    (supervisor,) = family.pids("p2pscoop._supervisor")
    os.kill(supervisor, signal.SIGSTOP)
    os.kill(origin, signal.SIGKILL)
    process.wait(TIMEOUT_S)
    os.kill(supervisor, signal.SIGKILL)
    process.communicate(timeout=TIMEOUT_S)
    eventually(family.has_ended, within_s=10)


def test_the_supervisor_is_killed_and_the_program_goes_on(script: WriteScript, family: Family) -> None:
    program = script(
        """
        import os, sys, time
        import p2pscoop
        from p2pscoop import futures

        def work(x):
            time.sleep(0.01)
            return x

        while len(p2pscoop.statistics()) < 3:
            time.sleep(0.01)
        print(os.getpid(), flush=True)
        assert list(futures.map(work, range(300))) == list(range(300))
        while len(p2pscoop.statistics()) > 1:
            time.sleep(0.01)
        print(sum(futures.map(work, range(100))))
        """
    )
    process, _ = start(program, launcher=False)
    (supervisor,) = family.pids("p2pscoop._supervisor")
    os.kill(supervisor, signal.SIGKILL)
    eventually(lambda: not family.pids("p2pscoop._node"), within_s=10)
    out, _ = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, out) == (0, "4950\n")


def test_the_origin_of_joined_nodes_is_killed(script: WriteScript, family: Family) -> None:
    program = script(
        """
        import os, time
        import p2pscoop
        from p2pscoop import futures

        seed = p2pscoop._session._session.home.runtime.transport.addresses[1].rpartition(":")[2]
        print(os.getpid(), seed, flush=True)
        while len(p2pscoop.statistics()) < 3:
            time.sleep(0.01)
        many = [futures.submit(time.sleep, 1000) for _ in range(10)]
        print("all are there", flush=True)
        time.sleep(1000)
        """
    )
    process = program.start(nodes=1, options=("--listen", "127.0.0.1:0", "--insecure"))
    assert process.stdout is not None
    origin, port = process.stdout.readline().split()
    joined = subprocess.Popen(
        [sys.executable, "-m", "p2pscoop", "join", "--seed", f"127.0.0.1:{port}", "--insecure", "-n", "2"],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "all are there\n"
    os.kill(int(origin), signal.SIGKILL)
    process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 128 + signal.SIGKILL
    _, err = joined.communicate(timeout=TIMEOUT_S)
    assert (joined.returncode, "the computation has ended" in err) == (0, True), err
