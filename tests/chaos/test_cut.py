"""Two machines, that is, two network namespaces with a cable between them, which is pulled out and put back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.conftest import TIMEOUT_S, eventually, nodes_of

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or os.geteuid() != 0, reason="network namespaces are Linux's, and root's"
)

NEAR, FAR = "10.213.7.1", "10.213.7.2"
PORT = 7713

ORIGIN = f"""
    import sys
    from p2pscoop.cli import _main
    _main.main(["run", "-n", "2", "--listen", "{NEAR}:{PORT}", "--insecure", *sys.argv[1:]])
"""
NODES = f"""
    from p2pscoop import _machine
    from p2pscoop._process_config import NodeConfig
    from p2pscoop._supervisor import Supervisor
    directory = _machine.make_directory()
    names = ("far1", "far2")
    configs = [NodeConfig(name, directory, ("tcp://{NEAR}:{PORT}",), {FAR!r}) for name in names]
    supervisor = Supervisor(configs, _machine.limited_environment(2))
    supervisor.start()
    supervisor.wait()
    supervisor.stop()
    _machine.remove_directory(directory)
"""
PROGRAM = """
    import json, os, sys, time
    import p2pscoop
    from p2pscoop import futures

    def work(x):
        time.sleep(0.01)
        return x, os.getpid()

    def count():
        found = list(futures.map(work, range(200)))
        assert [x for x, _ in found] == list(range(200))
        return len({pid for _, pid in found})

    # For so long at least, and then until so many nodes take part.
    for line in sys.stdin:
        seconds, wanted = json.loads(line)
        began = time.monotonic()
        while (nodes := count()) != wanted or time.monotonic() < began + seconds:
            if time.monotonic() > began + seconds + 60:
                break
        print(json.dumps([nodes, sum(each.requeued for each in p2pscoop.statistics())]), flush=True)
"""


def ip(*arguments: str, namespace: str | None = None) -> None:
    within = [] if namespace is None else ["-n", namespace]
    done = subprocess.run(["ip", *within, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"


@pytest.fixture
def cable() -> Iterator[tuple[str, str]]:
    """The names of two namespaces that are connected."""
    near, far = (f"p2pt{os.getpid()}{side}" for side in "nf")
    try:
        ip("netns", "add", near)
    except (AssertionError, FileNotFoundError) as error:
        pytest.skip(f"NO NETWORK NAMESPACES HERE, so that nothing was cut: {error}")
    try:
        ip("netns", "add", far)
        ip("link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", far, namespace=near)
        for namespace, address in ((near, NEAR), (far, FAR)):
            ip("link", "set", "lo", "up", namespace=namespace)
            ip("address", "add", f"{address}/24", "dev", "cable", namespace=namespace)
            ip("link", "set", "cable", "up", namespace=namespace)
        yield near, far
    finally:
        for namespace in (near, far):
            subprocess.run(["ip", "netns", "delete", namespace], capture_output=True)


def start(namespace: str, program: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["ip", "netns", "exec", namespace, sys.executable, "-c", textwrap.dedent(program), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


Program = Callable[..., tuple[int, int]]


@pytest.fixture
def program(cable: tuple[str, str], tmp_path: Path) -> Iterator[Program]:
    """Computes for some seconds, and on until so many nodes take part: how many did, and all requeued tasks."""
    near, far = cable
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(PROGRAM))
    origin, nodes = start(near, ORIGIN, str(script)), start(far, NODES)

    def compute(wanted: int, *, seconds: float = 0.0) -> tuple[int, int]:
        assert origin.stdin is not None
        assert origin.stdout is not None
        origin.stdin.write(f"{json.dumps([seconds, wanted])}\n")
        origin.stdin.flush()
        took_part, requeued = json.loads(origin.stdout.readline())
        return took_part, requeued

    try:
        yield compute
        _, err = origin.communicate(timeout=TIMEOUT_S)
        assert origin.returncode == 0, err
        nodes.communicate(timeout=TIMEOUT_S)
        assert nodes.returncode == 0
    finally:
        for process in (origin, nodes):
            if process.poll() is None:
                process.kill()
            process.communicate()


def test_a_short_cut_costs_time_and_nothing_else(cable: tuple[str, str], program: Program) -> None:
    """Connections outlive it, and no lease ends: what was said meanwhile arrives late, and nothing runs twice."""
    near, _ = cable
    assert program(4) == (4, 0)
    switch = f"ip -n {near} link set cable"
    hand = subprocess.Popen(["sh", "-c", f"sleep 0.5; {switch} down; sleep 2; {switch} up"])
    assert program(4, seconds=3) == (4, 0)
    assert hand.wait() == 0


def test_a_cut_that_ends_the_connections(cable: tuple[str, str], program: Program) -> None:
    """The origin goes on with what it has, and the nodes that lost it end: their program is out of reach."""
    near, _ = cable
    for namespace in cable:
        # The kernel gives a connection up after seconds without an acknowledgement, not a quarter of an hour.
        setting = "echo 2 > /proc/sys/net/ipv4/tcp_retries2"
        subprocess.run(["ip", "netns", "exec", namespace, "sh", "-c", setting], check=True)
    assert program(4) == (4, 0)
    before = nodes_of()
    ip("link", "set", "cable", "down", namespace=near)
    nodes, _ = program(2)
    assert nodes == 2
    eventually(lambda: len(nodes_of()) == len(before) - 2, within_s=60)
    ip("link", "set", "cable", "up", namespace=near)
    assert program(2)[0] == 2
