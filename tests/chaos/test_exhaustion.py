"""Nodes that run out of memory or descriptors say so, and harm nobody."""

from __future__ import annotations

import errno
import resource
import subprocess
from collections.abc import Callable
from pathlib import Path

import pynng
import pytest
from tests.conftest import TIMEOUT_S, Script

from p2pscoop._shortage import Shortage

WriteScript = Callable[..., Script]


def run(program: Script, *, nodes: int, descriptors: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program; its nodes, and it itself, may open so many files."""

    def limit() -> None:
        if descriptors is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))

    return program.run(nodes=nodes, preexec_fn=limit)


def test_a_task_that_needs_more_memory_than_there_is(script: WriteScript) -> None:
    """The allocation fails: the task's future says so, its node goes on."""
    result = script(
        """
        import os, resource, time
        import p2pscoop
        from p2pscoop import futures

        home = os.getpid()

        def greedy(x):
            if os.getpid() == home:
                time.sleep(0.01)
                return "home"
            soft, hard = resource.getrlimit(resource.RLIMIT_AS)
            resource.setrlimit(resource.RLIMIT_AS, (2 ** 31, hard))
            try:
                return len(bytearray(2 ** 33))
            finally:
                resource.setrlimit(resource.RLIMIT_AS, (soft, hard))

        while len(p2pscoop.statistics()) < 3:
            time.sleep(0.01)
        many = [futures.submit(greedy, x) for x in range(100)]
        failed = [each for each in many if each.exception() is not None]
        assert failed
        assert all(isinstance(each.exception(), MemoryError) for each in failed)
        print(sum(futures.map(abs, range(1000))), len(p2pscoop.statistics()))
        """
    )
    result = run(result, nodes=3)
    assert (result.returncode, result.stdout) == (0, "499500 3\n"), result.stderr
    assert "starting it again" not in result.stderr


def test_a_node_that_is_killed_for_its_memory(script: WriteScript) -> None:
    """As the kernel does it: SIGKILL, in the middle of an allocation. It is said, and the work done elsewhere."""
    program = script(
        """
        import os, signal, sys, time
        import p2pscoop
        from p2pscoop import futures

        home = os.getpid()

        def hungry(mark, x):
            if os.getpid() != home and x % 7 == 0 and not os.path.exists(f"{mark}{x}"):
                open(f"{mark}{x}", "w").close()
                memory = bytearray(50_000_000)
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.01)
            return x

        while len(p2pscoop.statistics()) < 3:
            time.sleep(0.01)
        found = list(futures.map(hungry, [sys.argv[0] + "."] * 100, range(100)))
        print(found == list(range(100)))
        """
    )
    result = run(program, nodes=3)
    assert (result.returncode, result.stdout) == (0, "True\n"), result.stderr
    assert "was killed by SIGKILL; starting it again" in result.stderr


def test_a_task_that_opens_all_files_that_its_node_may(script: WriteScript) -> None:
    """The task fails with the system's words; the node, whose sockets were open before, goes on."""
    program = script(
        """
        import errno, os, time
        import p2pscoop
        from p2pscoop import futures

        home = os.getpid()

        def greedy(x):
            if os.getpid() == home:
                time.sleep(0.01)
                return x
            files = []
            try:
                while True:
                    files.append(open(os.devnull))
            finally:
                for each in files:
                    each.close()

        while len(p2pscoop.statistics()) < 3:
            time.sleep(0.01)
        many = [futures.submit(greedy, x) for x in range(60)]
        failed = [each for each in many if each.exception() is not None]
        assert failed
        assert all(each.exception().errno == errno.EMFILE for each in failed)
        print(sum(futures.map(abs, range(1000))), len(p2pscoop.statistics()))
        """
    )
    result = run(program, nodes=3, descriptors=256)
    assert (result.returncode, result.stdout) == (0, "499500 3\n"), result.stderr


def test_a_node_that_has_no_descriptor_left_says_so(script: WriteScript, tmp_path: Path) -> None:
    """While a task holds all of them: no peer could connect then. It is said once, with the next step."""
    go_on = tmp_path / "go on"
    process = script(
        """
        import os, sys, time
        import p2pscoop
        from p2pscoop import futures

        def greedy(go_on):
            files = []
            try:
                while True:
                    files.append(os.open(os.devnull, os.O_RDONLY))
            except OSError:
                pass
            while True:
                try:
                    os.stat(go_on)
                except FileNotFoundError:
                    time.sleep(0.01)
                else:
                    break
            for each in files:
                os.close(each)
            return os.getpid()

        while len(p2pscoop.statistics()) < 2:
            time.sleep(0.01)
        task = futures.submit(greedy, sys.argv[1])
        while not task.running():
            time.sleep(0.01)
        print(task.result() != os.getpid(), sum(futures.map(abs, range(1000))))
        """
    ).start(str(go_on), nodes=2, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200)))
    assert process.stderr is not None
    said = process.stderr.readline()
    assert said == (
        "[n1] n1: this process may open no more files (its limit is 200): raise it with `ulimit -n`, "
        "start fewer nodes, or close files in tasks\n"
    )
    go_on.touch()
    assert process.communicate(timeout=TIMEOUT_S) == ("True 499500\n", "")


def test_nodes_that_cannot_be_started(script: WriteScript) -> None:
    """Their supervisor has no descriptors for their pipes: it says so, and the program runs on the others."""
    program = script(
        """
        from p2pscoop import futures

        print(sum(futures.map(abs, range(1000))))
        """
    )
    result = run(program, nodes=12, descriptors=40)
    assert (result.returncode, result.stdout) == (0, "499500\n"), result.stderr
    said = [line for line in result.stderr.splitlines() if "cannot be started" in line]
    assert said, result.stderr
    assert all("may open no more files (its limit is 40): raise it with `ulimit -n`" in line for line in said)
    assert "Traceback" not in result.stderr


def test_what_ran_out_is_named_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    shortage = Shortage("n1")
    for error in (MemoryError(), OSError(errno.ENOSPC, "full"), pynng.OutOfFiles("Out of files", 25)):
        assert shortage.tell(error)
        assert shortage.tell(error)
    assert not shortage.tell(OSError(errno.ECONNRESET, "gone"))
    assert not shortage.tell(ValueError("other"))
    assert [record.message.partition(":")[2][:29] for record in caplog.records] == [
        " there is no memory left: sta",
        " there is no space left on th",
        " this process may open no mor",
    ]


def test_too_few_descriptors_for_nodes(script: WriteScript) -> None:
    """Nodes that cannot start say why, and the program does what it has to without them."""
    program = script(
        """
        import resource
        from p2pscoop import futures

        print(sum(futures.map(abs, range(1000))))
        """
    )
    result = run(program, nodes=3, descriptors=24)

    assert (result.returncode, result.stdout) == (0, "499500\n"), result.stderr
