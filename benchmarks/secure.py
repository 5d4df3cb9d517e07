"""What TLS costs: from the first connection to the first result, and a steal with TLS against one without.

A program attaches to a standing cluster of one node on loopback, by TLS; beside it, the same executor with a node
of its own, by sockets of files.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.common import Result, report, result
from p2pscoop import Executor
from p2pscoop._security import KEY_VARIABLE, ClusterKey


@contextmanager
def standing(key: str) -> Iterator[str]:
    """A cluster of one node, and where it listens."""
    command = [sys.executable, "-m", "p2pscoop", "join", "--listen", "127.0.0.1", "-n", "1"]
    with subprocess.Popen(command, env={**os.environ, KEY_VARIABLE: key}, stderr=subprocess.PIPE) as process:
        try:
            yield f"127.0.0.1:{_port_of_child(process.pid)}"
        finally:
            process.send_signal(signal.SIGTERM)


def _port_of_child(supervisor: int) -> int:
    """Where the only node of a supervisor listens, as the kernel says."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with open(f"/proc/{supervisor}/task/{supervisor}/children") as file:
            children = file.read().split()
        for child in children:
            owned = set()
            for number in os.listdir(f"/proc/{child}/fd"):
                try:
                    owned.add(os.readlink(f"/proc/{child}/fd/{number}"))
                except OSError:
                    pass
            with open(f"/proc/{child}/net/tcp") as file:
                for line in list(file)[1:]:
                    fields = line.split()
                    if fields[3] == "0A" and f"socket:[{fields[9]}]" in owned:
                        return int(fields[1].rpartition(":")[2], 16)
        time.sleep(0.02)
    raise RuntimeError("the node does not listen")


def _first_result(seed: str, key: str) -> float:
    """Seconds from an executor's first connection to the first result; its process is warm."""
    began = time.perf_counter()
    with Executor(seed=seed, key=key) as executor:
        assert executor.submit(abs, -1).result() == 1
        return time.perf_counter() - began


def _call(executor: Executor) -> float:
    """Seconds that a call to an idle node takes: announced, stolen, run, and its result brought back."""
    time.sleep(0.005)  # Until the node has gone quiet.
    began = time.perf_counter()
    executor.submit(abs, -1).result()
    return time.perf_counter() - began


def run(rounds: int = 300) -> list[Result]:
    key = ClusterKey.generate().to_text()
    with standing(key) as seed:
        first = [_first_result(seed, key) for _ in range(12)][2:]
        with Executor(seed=seed, key=key) as secured, Executor(1) as plain:
            for executor in (secured, plain):
                for _ in range(50):
                    _call(executor)
            pairs = [(_call(secured), _call(plain)) for _ in range(rounds)]
    median = statistics.median(first)
    mine, floor = [a for a, _ in pairs], [b for _, b in pairs]
    value = statistics.median(mine) / statistics.median(floor)
    return [
        result(
            "dial, handshake and first steal on loopback, in ms",
            round(1000 * median, 1),
            "<= 50",
            median <= 0.05,
            worst_ms=round(1000 * max(first), 1),
        ),
        result(
            "a call to an idle node by TLS, against sockets of files",
            value,
            "<= 3",
            value <= 3,
            tls_ms=round(1000 * statistics.median(mine), 3),
            ipc_ms=round(1000 * statistics.median(floor), 3),
        ),
    ]


if __name__ == "__main__":
    report(run())
