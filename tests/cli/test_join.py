"""`p2pscoop join`: nodes that come and go while a computation runs."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from tests.conftest import TIMEOUT_S, Script, eventually, nodes_of

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
    total = 0
    while not stop.is_set():
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


@pytest.fixture
def computation(script: WriteScript, port: int) -> Iterator[subprocess.Popen[str]]:
    process = script(COMPUTATION).start(
        nodes=2, options=("--listen", f"127.0.0.1:{port}", "--insecure"), stdin=subprocess.PIPE
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


def join(port: int, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "p2pscoop", "join", "--seed", f"127.0.0.1:{port}", "--insecure", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_nodes_that_join_take_part_and_end_with_the_computation(
    computation: subprocess.Popen[str], port: int
) -> None:
    joined = join(port, "-n", "2")
    eventually(lambda: len(nodes_of()) == 3)
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
    eventually(lambda: len(nodes_of()) == 3)
    with pytest.raises(subprocess.TimeoutExpired):
        joined.wait(1)
    joined.send_signal(number)
    _, err = joined.communicate(timeout=TIMEOUT_S)
    assert joined.returncode == 0, err
    assert ("finishing the tasks" in err) == (number is signal.SIGINT)
    assert "stopping now" not in err
    executed = finish(computation)
    assert set(executed) == {"origin", "n1"}


def test_joined_nodes_may_be_killed(computation: subprocess.Popen[str], port: int) -> None:
    joined = join(port, "-n", "2")
    eventually(lambda: len(nodes_of()) == 3)
    with pytest.raises(subprocess.TimeoutExpired):
        joined.wait(1)
    joined.kill()
    joined.communicate()
    eventually(lambda: len(nodes_of()) == 1)
    assert set(finish(computation)) == {"origin", "n1"}


def test_a_seed_that_does_not_answer_yet(script: WriteScript, port: int) -> None:
    joined = join(port, "-n", "2")
    assert joined.stderr is not None
    line = joined.stderr.readline()
    assert f"127.0.0.1:{port} has not answered for 5 s; still trying, Ctrl-C stops" in line
    process = script(COMPUTATION).start(
        nodes=1, options=("--listen", f"127.0.0.1:{port}", "--insecure"), stdin=subprocess.PIPE
    )
    with pytest.raises(subprocess.TimeoutExpired):
        joined.wait(3)
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
