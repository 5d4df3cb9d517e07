"""`p2pscoop join`: nodes that come and go while a computation runs."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.conftest import TIMEOUT_S, Script, descendants, eventually, nodes_of

from p2pscoop._process_config import EXIT_REFUSED
from p2pscoop._security import KEY_VARIABLE, ClusterKey

WriteScript = Callable[..., Script]

# Works until told to stop through its stdin, and then says which nodes executed how many tasks.
COMPUTATION = """
    import json, os, sys, threading, time
    import p2pscoop
    from p2pscoop import futures

    stop = threading.Event()

    def listen():
        sys.stdin.readline()
        stop.set()

    def work(x):
        until = time.perf_counter() + 0.005
        while time.perf_counter() < until:
            pass
        return x

    threading.Thread(target=listen, daemon=True).start()
    print("ready", flush=True)
    total = size = 0
    while not stop.is_set():
        if p2pscoop.SIZE != size:
            size = p2pscoop.SIZE
            print("size", size, flush=True)
        total += sum(futures.map(work, range(100))) == 4950
    done = {each.name: each.executed for each in p2pscoop.statistics()}
    print(json.dumps(done))
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    """The key of all commands of a test."""
    text = ClusterKey.generate().to_text()
    monkeypatch.setenv(KEY_VARIABLE, text)
    return text


@pytest.fixture
def computation(script: WriteScript, port: int) -> Iterator[subprocess.Popen[str]]:
    process = script(COMPUTATION).start(
        nodes=2, options=("--listen", f"127.0.0.1:{port}", "--cluster", "test"), stdin=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield process
    if process.poll() is None:
        process.kill()
    process.communicate()


def finish(process: subprocess.Popen[str]) -> dict[str, int]:
    out, err = process.communicate("stop\n", timeout=TIMEOUT_S)
    assert process.returncode == 0, err
    executed: dict[str, int] = json.loads(out.splitlines()[-1])
    return executed


def wait_for_size(process: subprocess.Popen[str], size: int) -> None:
    """Until the computation knows of so many nodes."""
    assert process.stdout is not None
    while process.stdout.readline() != f"size {size}\n":
        assert process.poll() is None


def join(port: int, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "p2pscoop", "join", "--seed", f"127.0.0.1:{port}", "--cluster", "test", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_nodes_that_join_take_part_and_end_with_the_computation(
    computation: subprocess.Popen[str], port: int
) -> None:
    joined = join(port, "-n", "2")
    wait_for_size(computation, 4)
    # Long enough for each of them to steal something.
    with pytest.raises(subprocess.TimeoutExpired):
        joined.wait(2)
    executed = finish(computation)
    _, err = joined.communicate(timeout=TIMEOUT_S)
    assert joined.returncode == 0
    assert "the computation has ended" in err
    assert len(executed) == 4
    assert all(count > 0 for count in executed.values()), executed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_nodes_that_are_told_to_leave_finish_what_they_run(
    computation: subprocess.Popen[str], port: int, number: signal.Signals
) -> None:
    joined = join(port, "-n", "2")
    wait_for_size(computation, 4)
    joined.send_signal(number)
    _, err = joined.communicate(timeout=TIMEOUT_S)
    assert joined.returncode == 0, err
    assert ("finishing the tasks" in err) == (number is signal.SIGINT)
    assert "stopping now" not in err
    executed = finish(computation)
    assert set(executed) == {"origin", "n1"}


def test_joined_nodes_may_be_killed(computation: subprocess.Popen[str], port: int) -> None:
    joined = join(port, "-n", "2")
    wait_for_size(computation, 4)
    joined.kill()
    joined.communicate()
    eventually(lambda: len(nodes_of()) == 1)
    assert set(finish(computation)) == {"origin", "n1"}


def test_a_seed_that_does_not_answer_yet(script: WriteScript, port: int) -> None:
    joined = join(port, "-n", "2")
    assert joined.stderr is not None
    line = joined.stderr.readline()
    assert f"not a member yet: nobody listens at 127.0.0.1:{port}; still trying, Ctrl-C stops" in line
    process = script(COMPUTATION).start(
        nodes=1, options=("--listen", f"127.0.0.1:{port}", "--cluster", "test"), stdin=subprocess.PIPE
    )
    wait_for_size(process, 3)
    executed = finish(process)
    joined.communicate(timeout=TIMEOUT_S)
    assert joined.returncode == 0
    assert len(executed) == 3


def test_giving_up_on_a_seed(port: int) -> None:
    joined = join(port, "-n", "1")
    eventually(lambda: len(nodes_of()) == 1)
    joined.send_signal(signal.SIGINT)
    joined.communicate(timeout=TIMEOUT_S)
    assert joined.returncode == 0


def test_without_keys(script: WriteScript, port: int) -> None:
    options = ("--listen", f"127.0.0.1:{port}", "--cluster", "test", "--insecure")
    process = script(COMPUTATION).start(nodes=1, options=options, stdin=subprocess.PIPE)
    joined = join(port, "-n", "1", "--insecure")
    wait_for_size(process, 2)
    out, err = process.communicate("stop\n", timeout=TIMEOUT_S)
    assert process.returncode == 0, err
    assert len(json.loads(out.splitlines()[-1])) == 2
    _, said = joined.communicate(timeout=TIMEOUT_S)
    for warning, address in ((err, f"127.0.0.1:{port}"), (said, "127.0.0.1")):
        assert f"--insecure: whoever reaches {address} can run code as you" in warning


def test_another_key_does_not_get_in_and_is_told_what_to_do(
    computation: subprocess.Popen[str], port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, ClusterKey.generate().to_text())
    joined = join(port, "-n", "1")
    assert joined.stderr is not None
    line = joined.stderr.readline()
    assert f"127.0.0.1:{port} does not answer: it has another key" in line
    assert set(finish(computation)) == {"origin", "n1"}
    joined.send_signal(signal.SIGINT)
    joined.communicate(timeout=TIMEOUT_S)


def test_another_cluster_with_the_same_key_is_refused_on_both_sides(
    computation: subprocess.Popen[str], port: int
) -> None:
    joined = join(port, "-n", "1", "--cluster", "other")
    _, err = joined.communicate(timeout=TIMEOUT_S)
    assert joined.returncode == EXIT_REFUSED
    assert "the cluster refused this node: this is another cluster" in err
    _, err = computation.communicate("stop\n", timeout=TIMEOUT_S)
    assert computation.returncode == 0
    assert re.search(r"did not let j\d+\.1 on \S+ in: this is another cluster", err)


def test_the_key_is_nowhere_that_others_see(computation: subprocess.Popen[str], port: int, key: str) -> None:
    """Nor does user code find it in its environment, unless the user put it there, as here."""
    joined = join(port, "-n", "1")
    wait_for_size(computation, 3)
    secret = key.rpartition(":")[2].encode()
    for pid in (computation.pid, joined.pid, *descendants()):
        with contextlib.suppress(FileNotFoundError):
            assert secret not in Path(f"/proc/{pid}/cmdline").read_bytes()
    finish(computation)
    joined.communicate(timeout=TIMEOUT_S)


def test_a_fresh_key_is_in_no_environment(script: WriteScript, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE)
    program = script("""
        import os
        from p2pscoop import futures

        def environment(_):
            return [value for value in os.environ.values() if "p2pscoop-key" in value]

        print(sum(map(len, futures.map(environment, range(20)))))
    """)
    done = program.run(nodes=2)
    assert done.stdout == "0\n", done.stderr


def test_a_founded_cluster_stays_and_outlives_its_seed(port: int) -> None:
    founder = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "p2pscoop",
            "join",
            "--listen",
            f"127.0.0.1:{port}",
            "--cluster",
            "test",
            "-n",
            "1",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    others = join(port, "-n", "2")
    try:
        eventually(lambda: len(nodes_of()) == 3)
        assert founder.poll() is None
        assert others.poll() is None
    finally:
        founder.kill()
        founder.communicate()
        with pytest.raises(subprocess.TimeoutExpired):
            others.wait(2)
        others.send_signal(signal.SIGTERM)
        _, err = others.communicate(timeout=TIMEOUT_S)
    assert others.returncode == 0, err


ROLLING = """
    import json, sys, threading
    import p2pscoop
    from p2pscoop import futures

    stop = threading.Event()

    def listen():
        sys.stdin.readline()
        stop.set()

    def fib(n):
        return n if n < 2 else futures.submit(fib, n - 1).result() + futures.submit(fib, n - 2).result()

    threading.Thread(target=listen, daemon=True).start()
    print("ready", flush=True)
    size, rounds = 0, 0
    while not stop.is_set():
        if p2pscoop.SIZE != size:
            size = p2pscoop.SIZE
            print("size", size, flush=True)
        assert sum(futures.map(fib, range(18))) == 4180
        rounds += 1
    print(json.dumps({"rounds": rounds}))
"""


def test_all_nodes_but_the_origin_are_replaced_one_after_the_other(script: WriteScript, port: int) -> None:
    process = script(ROLLING).start(
        nodes=1, options=("-v", "--listen", f"127.0.0.1:{port}", "--cluster", "test"), stdin=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    old = [join(port, "-n", "1") for _ in range(2)]
    wait_for_size(process, 3)
    for _ in range(4):
        new = join(port, "-n", "1")
        wait_for_size(process, 4)
        leaving = old.pop(0)
        leaving.send_signal(signal.SIGTERM)
        _, err = leaving.communicate(timeout=TIMEOUT_S)
        assert leaving.returncode == 0, err
        wait_for_size(process, 3)
        old.append(new)
    out, err = process.communicate("stop\n", timeout=TIMEOUT_S)
    assert process.returncode == 0, err
    assert json.loads(out.splitlines()[-1])["rounds"] > 0
    assert re.search(r"\d+ tasks on 3 nodes; \d+ went elsewhere, .*; \d+ came back", err), err
    for each in old:
        each.communicate(timeout=TIMEOUT_S)
        assert each.returncode == 0
