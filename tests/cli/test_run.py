"""`p2pscoop run`, as a user calls it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.conftest import TIMEOUT_S, Script, eventually

WriteScript = Callable[..., Script]


def p2pscoop(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "p2pscoop", *arguments], capture_output=True, text=True, timeout=TIMEOUT_S
    )


def test_a_script_with_arguments(script: WriteScript) -> None:
    result = script(
        """
        import sys
        from p2pscoop import futures
        print(__name__, sys.argv[1:], futures.submit(pow, 2, 5).result())
        """
    ).run("-n", "--flag", nodes=2)
    assert (result.returncode, result.stdout, result.stderr) == (0, "__main__ ['-n', '--flag'] 32\n", "")


def test_the_console_command_does_the_same(script: WriteScript) -> None:
    program = script("from p2pscoop import futures; print(list(futures.map(abs, [-1, 2])))")
    command = Path(sys.executable).with_name("p2pscoop")
    result = subprocess.run(
        [command, "run", "-n", "2", program.path], capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert (result.returncode, result.stdout) == (0, "[1, 2]\n")


def test_without_a_subcommand(script: WriteScript) -> None:
    program = script("import sys; print(sys.argv[1:])")
    result = p2pscoop("-n", "1", str(program.path), "a", "b")
    assert (result.returncode, result.stdout) == (0, "['a', 'b']\n")


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("sys.exit(7)", 7),
        ("sys.exit()", 0),
        ("sys.exit('reason')", 1),
        ("1 / 0", 1),
        ("os._exit(5)", 5),
        ("os.kill(os.getpid(), 9)", 137),
    ],
)
def test_the_exit_status_is_the_scripts(script: WriteScript, end: str, status: int) -> None:
    result = script(f"import os, sys\nfrom p2pscoop import futures\nfutures.submit(abs, 1)\n{end}").run(nodes=2)
    assert result.returncode == status


def test_an_uncaught_exception_shows_the_scripts_frames_only(script: WriteScript) -> None:
    program = script("def f():\n    raise LookupError('here')\nf()\n")
    result = program.run(nodes=2)
    assert result.returncode == 1
    assert result.stderr.startswith("Traceback (most recent call last):\n")
    assert result.stderr.count("File ") == 2
    assert result.stderr.rstrip().endswith("LookupError: here")


def test_a_script_that_does_not_parse(script: WriteScript) -> None:
    result = script("print('a'\n").run(nodes=2)
    assert result.returncode == 1
    assert "SyntaxError" in result.stderr
    assert "program.py" in result.stderr


def test_modules_beside_the_script_are_found_everywhere(script: WriteScript, tmp_path: Path) -> None:
    (tmp_path / "helper_module.py").write_text("import os\ndef where(_):\n    return os.getpid()\n")
    result = script(
        """
        import time
        import p2pscoop
        from p2pscoop import futures
        import helper_module

        def slow(x):
            time.sleep(0.1)
            return helper_module.where(x)

        while len(p2pscoop.statistics()) < 3:
            time.sleep(0.01)
        print(len(set(futures.map(slow, range(12)))))
        """
    ).run(nodes=3)
    assert (result.returncode, result.stdout, result.stderr) == (0, "3\n", "")


def test_stdin_is_the_scripts(script: WriteScript) -> None:
    result = script("import sys; print(sys.stdin.read().upper())").run(nodes=2, input="hello")
    assert result.stdout == "HELLO\n"


def test_what_nodes_print_has_their_names(script: WriteScript) -> None:
    result = script(
        """
        import sys, time
        import p2pscoop
        from p2pscoop import futures

        def speak(x):
            time.sleep(0.1)
            print("out", x)
            print("err", x, file=sys.stderr)

        while len(p2pscoop.statistics()) < 2:
            time.sleep(0.01)
        list(futures.map(speak, range(40)))
        """
    ).run(nodes=2)
    assert result.returncode == 0
    for text, word in ((result.stdout, "out"), (result.stderr, "err")):
        lines = text.splitlines()
        assert sorted(int(line.split()[-1]) for line in lines) == list(range(40))
        assert {line.split(word)[0] for line in lines} == {"", "[n1] "}


def test_nodes_get_their_share_of_threads(script: WriteScript) -> None:
    program = script(
        """
        import os, time
        from p2pscoop import futures

        def limits(_):
            time.sleep(0.02)
            return os.environ["OMP_NUM_THREADS"], os.environ["MKL_NUM_THREADS"]

        print(*sorted(set(futures.map(limits, range(8)))))
        """
    )
    environment = {"OMP_NUM_THREADS": "3"}
    assert "MKL_NUM_THREADS" not in os.environ
    assert program.run(nodes=100 if os.cpu_count() == 1 else 2, env=environment).stdout.startswith("('3', '")


def test_tasks_that_nobody_waits_for_are_run_all_the_same(script: WriteScript) -> None:
    result = script(
        """
        from p2pscoop import futures

        def leaf(x):
            print("leaf", x)

        def branch():
            for x in range(3):
                futures.submit(leaf, x)

        futures.submit(branch)
        """
    ).run(nodes=1)
    assert sorted(result.stdout.splitlines()) == ["leaf 0", "leaf 1", "leaf 2"]


def test_but_not_after_an_exception(script: WriteScript) -> None:
    result = script(
        """
        import time
        from p2pscoop import futures
        for x in range(3):
            futures.submit(time.sleep, 1000)
        raise RuntimeError
        """
    ).run(nodes=2)
    assert result.returncode == 1


def test_shutdown_is_the_launchers_business(script: WriteScript) -> None:
    result = script(
        """
        from p2pscoop import futures
        futures.shutdown()
        print(futures.submit(abs, -3).result())
        """
    ).run(nodes=2)
    assert (result.returncode, result.stdout) == (0, "3\n")


LONG = """
    import os, sys, time
    from p2pscoop import futures
    futures.submit(time.sleep, 1000)
    futures.submit(time.sleep, 1000)
    print("ready", flush=True)
    futures.submit(time.sleep, 1000).result()
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_everything(script: WriteScript, number: signal.Signals, status: int) -> None:
    process = script(LONG).start(nodes=3, start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == status


def test_a_warning_of_the_scheduler_is_for_the_script(script: WriteScript) -> None:
    process = script("""
        import signal, sys, time
        from p2pscoop import futures

        warned = False

        def warn(*_):
            global warned
            warned = True

        signal.signal(signal.SIGUSR1, warn)
        print("up", flush=True)
        while not warned:
            time.sleep(0.01)
        print(futures.submit(abs, -1).result())
        sys.exit(3)
    """).start(nodes=2)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGUSR1)
    out, err = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, out, err) == (3, "1\n", "")


def test_a_killed_launcher_leaves_nothing(script: WriteScript, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = f"killed launcher {os.getpid()}"
    monkeypatch.setenv("MARK", mark)
    process = script(LONG).start(nodes=3)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.kill()
    process.communicate(timeout=TIMEOUT_S)
    # `nothing_left_behind` looks for descendants; these have been orphaned.
    eventually(lambda: not marked(mark))


# ---------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["run", "-n", "0", "x.py"], "0 is not in the range 1<=x<=10000"),
        (["run", "-n", "two", "x.py"], "'two' is not a valid integer"),
        (["run", "no_such_file.py"], "'no_such_file.py' does not exist"),
        (["run", "/"], "is a directory"),
        (["run"], "SCRIPT is missing"),
        (["run", "--listen", "nowhere", __file__], "'nowhere' is not HOST:PORT"),
        (["run", "--listen", "127.0.0.1:70000", __file__], "'70000' in '127.0.0.1:70000' is not a port"),
        (
            ["run", "--listen", "127.0.0.1:7700", "--cluster", "c1", __file__],
            "there is no key of the cluster 'c1'",
        ),
        (["run", "--listen", "127.0.0.1:7700", "--key-file", "/no/such", __file__], "key file /no/such: No such"),
        (["run", "--key-file", "/dev/null", "--insecure", __file__], "contradict each other"),
        (["run", "--cluster", "a b", __file__], "'a b' cannot be the name of a cluster"),
        (["run", "--listen", "0.0.0.0:7700", "--insecure", __file__], "0.0.0.0 stands for all interfaces"),
        (["join", "--interface", "127.0.0.1", "--cluster", "c1"], "run `p2pscoop keygen --name c1`"),
        (["status", "--seed", "127.0.0.1"], "'127.0.0.1' is not HOST:PORT"),
        (["status", "--seed", "127.0.0.1:7700", "--cluster", "c1"], "run `p2pscoop keygen --name c1`"),
        (["leave", "--seed", "127.0.0.1:7700"], "Missing argument 'NODE'"),
        (["join", "--listen", "[::]:7700", "--insecure"], ":: stands for all interfaces"),
        (["join", "--seed", "127.0.0.1:7700", "-n", "0", "--insecure"], "0 is not in the range 1<=x<=10000"),
        (["join", "--seed", "127.0.0.1", "--insecure"], "'127.0.0.1' is not HOST:PORT"),
        (["join", "--seed", "127.0.0.1:0", "--insecure"], "not a port from 1"),
        (["join", "--seed", "127.0.0.1:7700", "--cluster", "c1"], "run `p2pscoop keygen --name c1`"),
        (["join", "--seed", "no.such.invalid:7700", "--insecure"], "'no.such.invalid' is not the name or address"),
        (["frobnicate"], "'frobnicate' does not exist"),
    ],
)
def test_bad_input_is_named(arguments: list[str], complaint: str) -> None:
    result = p2pscoop(*arguments)
    assert result.returncode == 2
    assert complaint in result.stderr
    assert "Traceback" not in result.stderr


CONNECTIONS = """
    import time
    from p2pscoop import _local, futures

    def fib(n):
        return n if n < 2 else futures.submit(fib, n - 1).result() + futures.submit(fib, n - 2).result()

    def connections(_):
        time.sleep(2)  # In the meantime nobody steals, and connections are counted once.
        runtime = _local.installed().hooks.runtime
        return runtime.name, len(runtime.transport._links)

    assert futures.submit(fib, 18).result() == 2584
    counts = {}
    while len(counts) < 8:
        # The origin has to keep those to all that have a task of its.
        counts |= {name: links for name, links in futures.map(connections, range(9)) if name != "origin"}
    assert futures.submit(fib, 18).result() == 2584
    print(max(counts.values()))
"""


def test_the_number_of_connections_is_bounded(script: WriteScript, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P2PSCOOP_CONNECTIONS", "3")
    done = script(CONNECTIONS).run(nodes=9)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= 3 + 2, "what was opened since they were last counted, which is a second ago"
    monkeypatch.setenv("P2PSCOOP_CONNECTIONS", "few")
    done = p2pscoop("run", __file__)
    assert done.returncode == 2
    assert "P2PSCOOP_CONNECTIONS is 'few'" in done.stderr


def test_a_bad_number_of_nodes_in_the_environment(script: WriteScript, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P2PSCOOP_NODES", "-3")
    program = script("from p2pscoop import futures; futures.submit(abs, 1)")
    result = p2pscoop("run", str(program.path))
    assert result.returncode == 2
    assert "P2PSCOOP_NODES is '-3'" in result.stderr
    result = program.run()
    assert result.returncode == 1
    assert "P2PSCOOP_NODES is '-3'" in result.stderr


def test_an_address_in_use(script: WriteScript) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        program = script("print('ran')")
        result = p2pscoop("run", "-n", "2", "--listen", address, "--insecure", str(program.path))
    assert result.returncode == 1
    assert f"cannot listen at {address}" in result.stderr
    assert "ran" not in result.stdout


def test_help_and_version() -> None:
    assert "Usage:" in p2pscoop("--help").stdout
    assert "SCRIPT" in p2pscoop("run", "--help").stdout
    assert p2pscoop("--version").stdout.startswith("p2pscoop, version ")


# ----------------------------------------------------------------------------------------- plain scripts


def test_a_plain_script_starts_nodes_by_itself(script: WriteScript) -> None:
    result = script(
        """
        import os, time
        import p2pscoop
        from p2pscoop import futures

        def where(_):
            time.sleep(0.1)
            return os.getpid()

        while len(p2pscoop.statistics()) < 3:
            time.sleep(0.01)
        print(len(set(futures.map(where, range(12)))))
        """
    ).run(env={"P2PSCOOP_NODES": "3"})
    assert (result.returncode, result.stdout, result.stderr) == (0, "3\n", "")


def test_a_session_may_be_shut_down_and_started_again(script: WriteScript) -> None:
    result = script(
        """
        from p2pscoop import futures
        for _ in range(3):
            print(list(futures.map(abs, [-1])))
            pending = futures.submit(print, "pending")
            futures.shutdown()
            assert pending.done()
        futures.shutdown()
        """
    ).run(env={"P2PSCOOP_NODES": "2"})
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.count("[1]") == 3
    assert result.stdout.count("pending") == 3


def test_a_killed_script_leaves_nothing(script: WriteScript) -> None:
    program = script(LONG)
    mark = f"killed script {os.getpid()}"
    environment = {**os.environ, "P2PSCOOP_NODES": "3", "MARK": mark}
    process = subprocess.Popen(program.command(), stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    eventually(lambda: len(marked(mark)) >= 4)  # Script, supervisor and two nodes.
    process.kill()
    process.communicate(timeout=TIMEOUT_S)
    eventually(lambda: not marked(mark))


def marked(mark: str) -> list[int]:
    """The processes with this in their environment, whoever their parent is by now."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"MARK={mark}".encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def test_ctrl_c_in_a_plain_script(script: WriteScript) -> None:
    program = script(LONG)
    environment = {**os.environ, "P2PSCOOP_NODES": "2"}
    process = subprocess.Popen(
        program.command(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in errors


def test_ctrl_c_can_be_survived(script: WriteScript) -> None:
    result = script(
        """
        import os, signal, threading, time
        from p2pscoop import futures

        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            futures.submit(time.sleep, 1000).result()
        except KeyboardInterrupt:
            print("interrupted")
        print(list(futures.map(abs, range(3))))
        """
    ).run(env={"P2PSCOOP_NODES": "1"})
    assert (result.returncode, result.stdout, result.stderr) == (0, "interrupted\n[0, 1, 2]\n", "")


def test_a_forked_child_is_told(script: WriteScript) -> None:
    result = script(
        """
        import os, sys
        from p2pscoop import Executor, futures
        from p2pscoop.errors import ShutdownError

        executor = Executor(1)
        print(futures.submit(abs, -1).result(), executor.submit(abs, -1).result(), flush=True)
        if os.fork() == 0:
            for use in (lambda: futures.submit(abs, -1), lambda: executor.submit(abs, -1)):
                try:
                    use()
                except ShutdownError as error:
                    print("fork" in str(error), flush=True)
            sys.exit(0)
        os.wait()
        print(futures.submit(abs, -2).result(), executor.submit(abs, -2).result())
        executor.shutdown()
        """
    ).run(env={"P2PSCOOP_NODES": "2"})
    assert (result.returncode, result.stdout, result.stderr) == (0, "1 1\nTrue\nTrue\n2 2\n", "")


def test_multiprocessing_works_beside_it(script: WriteScript) -> None:
    result = script(
        """
        import multiprocessing
        from p2pscoop import futures

        print(list(futures.map(abs, range(3))), flush=True)
        with multiprocessing.get_context("fork").Pool(2) as pool:
            print(pool.map(abs, range(3)))
        print(list(futures.map(abs, range(3))))
        """
    ).run(env={"P2PSCOOP_NODES": "2"})
    assert (result.returncode, result.stdout, result.stderr) == (0, "[0, 1, 2]\n" * 3, "")
