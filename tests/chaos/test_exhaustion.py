"""Nodes that run out of memory or descriptors say so, and harm nobody."""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Callable

from tests.conftest import Script

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
