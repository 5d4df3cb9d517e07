"""Nodes of other machines that are silent, and live: what the kernel knows of the connections to them."""

from __future__ import annotations

import functools
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conftest import eventually
from tests.net.conftest import Machines, needs_root
from tests.net.test_attachment import Cluster, cluster  # noqa: F401

from p2pscoop import Executor
from p2pscoop import executor as executor_module
from p2pscoop._acknowledged import is_acknowledged
from p2pscoop._core.limits import Limits

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="TCP_INFO is Linux's")


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
        with near, far:
            yield near, far


def ports(connection: socket.socket) -> tuple[int, int]:
    return connection.getsockname()[1], connection.getpeername()[1]


def test_what_was_acknowledged_lately(pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = pair
    before = os.listdir("/proc/self/fd")
    own, peers = ports(near)
    near.sendall(b"x")
    eventually(lambda: is_acknowledged(own, peers, 60))
    assert not is_acknowledged(own, peers, 0.0), "that is too long ago"
    assert not is_acknowledged(own, 1, 60), "there is no such connection"
    assert os.listdir("/proc/self/fd") == before
    far.close()
    eventually(lambda: not is_acknowledged(own, peers, 60))


FAR = """
    import socket, sys
    with socket.create_server(("10.213.9.2", 7715)) as server:
        print("ready", flush=True)
        connection, _ = server.accept()
        sys.stdin.read()  # It takes nothing, and says nothing.
"""
NEAR = """
    import socket, sys
    from p2pscoop._acknowledged import is_acknowledged
    connection = socket.create_connection(("10.213.9.2", 7715))
    for line in sys.stdin:
        if line == "send\\n":
            connection.sendall(b"are you there?")
        print(is_acknowledged(connection.getsockname()[1], 7715, 60), flush=True)
"""


@needs_root
def test_a_machine_that_is_gone_acknowledges_nothing(machines: Machines) -> None:
    near, far = (machines.add(index) for index in (1, 2))
    there = machines.start(far, FAR)
    assert there.stdout is not None
    assert there.stdout.readline() == "ready\n"
    here = machines.start(near, NEAR)
    assert here.stdin is not None
    assert here.stdout is not None

    def ask(line: str) -> str:
        assert here.stdin is not None
        assert here.stdout is not None
        here.stdin.write(line + "\n")
        here.stdin.flush()
        return here.stdout.readline()

    ask("send")
    eventually(lambda: ask("look") == "True\n")
    os.kill(there.pid, signal.SIGSTOP)
    ask("send")
    eventually(lambda: ask("look") == "True\n")
    machines.cut(far)
    ask("send")
    assert [ask("look") for _ in range(5)] == ["False\n"] * 5
    os.kill(there.pid, signal.SIGCONT)


def hold(trace: Path) -> int:
    trace.write_text(str(os.getpid()))
    while not trace.with_suffix(".go").exists():
        time.sleep(0.01)
    return os.getpid()


def test_a_node_elsewhere_that_is_stopped_keeps_what_it_has(
    cluster: Cluster,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(executor_module, "Limits", functools.partial(Limits, lease_s=3.0))
    trace = tmp_path / "trace"
    with Executor(seed=cluster.seed) as executor:
        call = executor.submit(hold, trace)
        eventually(lambda: trace.exists() and trace.read_text())
        pid = int(trace.read_text())
        os.kill(pid, signal.SIGSTOP)
        time.sleep(8.0)  # More than twice the lease.
        trace.with_suffix(".go").touch()
        os.kill(pid, signal.SIGCONT)
        assert call.result() == pid
        assert sum(each.requeued for each in executor.statistics()) == 0
