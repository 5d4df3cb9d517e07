"""What thousands of strangers do to a node that listens, while its cluster computes.

Two nodes of a standing cluster compute for a program that is attached to it, and steal from it by TLS all the
time. Meanwhile a crowd without the key connects to the first: some say nothing, or begin a handshake and go no
further; others send noise, damaged handshakes, lengths of nearly 2^64, and whole messages of ours with a pickle in
them. All sockets are real, on 127.0.0.1. In the end another node joins.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import pynng

from benchmarks.common import Result, report, result
from p2pscoop import _machine
from p2pscoop._attachment import SEED_VARIABLE
from p2pscoop._core.codec import Envelope, encode
from p2pscoop._core.ids import NOBODY, Token
from p2pscoop._core.limits import Limits
from p2pscoop._core.messages import Grant
from p2pscoop._core.values import GrantedTask, Spec
from p2pscoop._process_config import NodeConfig
from p2pscoop._security import KEY_VARIABLE, ClusterKey
from p2pscoop._transport import tls_config

_MARK = b"OF A STRANGER"
"""In every pickle that the strangers send."""
_NODE = f"""
import builtins, sys
import p2pscoop._payload as payload

real = payload.pickle
counts = open(sys.argv[1], "ab", buffering=0)

class Counting:
    def __getattr__(self, name):
        return getattr(real, name)

    @staticmethod
    def loads(data, **settings):
        counts.write(b"s" if {_MARK!r} in bytes(data) else b".")
        return real.loads(data, **settings)

payload.pickle = Counting()
from p2pscoop._node import main
main()
"""
"""A node that writes down each time it unpickles something, and whose it was."""
_PROGRAM = """
import json, os, sys, threading, time
from p2pscoop import Executor

def work(x):
    time.sleep(0.002)
    return os.getpid()

stop = threading.Event()
threading.Thread(target=lambda: (sys.stdin.readline(), stop.set()), daemon=True).start()
with Executor() as executor:
    while not stop.is_set():
        print(json.dumps(list(executor.map(work, range(40)))), flush=True)
"""
_BURST = 100
_BURST_PAUSE_S = 0.05
"""Between bursts. The queue of NNG's listener has 128 places: whoever finds it full waits for a second."""
_KEPT_MAX = 600
"""So many are kept open by the strangers; the descriptors of this process have to suffice for them."""
_PATIENCE_S = 60.0
_GROWTH_MAX = 64.0
_DESCRIPTORS = 1024
"""What the nodes may open, as on most machines."""


class Computation:
    """The program: which processes ran the tasks of the last round, and how many rounds there were."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.rounds = 0
        self.pids: Counter[int] = Counter()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.pids = Counter(json.loads(line))
            self.rounds += 1

    def wait_for(self, *pids: int) -> float:
        """Until each of these processes ran tasks of a round that starts from now on.

        Returns:
            How long it took, in seconds.
        """
        began, rounds = time.monotonic(), self.rounds
        while self.rounds < rounds + 2 or not set(pids) <= set(self.pids):
            if self.process.poll() is not None or time.monotonic() > began + _PATIENCE_S:
                raise RuntimeError(f"the computation does not go on: {self.rounds} rounds, {self.pids}")
            time.sleep(0.01)
        return time.monotonic() - began

    def stop(self) -> None:
        assert self.process.stdin is not None
        with suppress(OSError):
            self.process.stdin.write("stop\n")
            self.process.stdin.flush()
        self.process.wait(_PATIENCE_S)
        self._thread.join()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()


class Crowd:
    """Strangers that call at one port.

    Args:
        port: on 127.0.0.1.
        seed: of their choices.
    """

    def __init__(self, port: int, seed: int) -> None:
        self._address = ("127.0.0.1", port)
        self._rng = random.Random(seed)
        self._hello = record_hello()
        self._pending: dict[int, socket.socket] = {}
        self._kept: deque[socket.socket] = deque()
        self._poll = select.epoll()
        self.called = 0

    def call(self, count: int, *, meanwhile: Callable[[], object]) -> None:
        """So many connections, of all kinds."""
        begun = 0
        burst_at = time.monotonic()
        deadline = burst_at + 10 * _PATIENCE_S
        while self._pending or begun < count:
            now = time.monotonic()
            if now >= burst_at:
                burst_at = now + _BURST_PAUSE_S
                for _ in range(min(_BURST, count - begun)):
                    caller = socket.socket()
                    caller.setblocking(False)
                    caller.connect_ex(self._address)
                    self._pending[caller.fileno()] = caller
                    self._poll.register(caller, select.EPOLLOUT)
                    begun += 1
            for descriptor, _ in self._poll.poll(_BURST_PAUSE_S / 10):
                self._poll.unregister(descriptor)
                self._speak(self._pending.pop(descriptor))
            meanwhile()
            if now > deadline:
                raise RuntimeError(f"{len(self._pending)} of {begun} connections are not accepted")

    def _speak(self, caller: socket.socket) -> None:
        self.called += 1
        with suppress(OSError):
            caller.send(self._words())
        self._kept.append(caller)
        if len(self._kept) > _KEPT_MAX:
            self._kept.popleft().close()

    def _words(self) -> bytes:
        rng, hello = self._rng, self._hello
        kind = rng.randrange(8)
        if kind < 2:
            return b""
        if kind == 2:  # A handshake that stops where an answer has to be read, or before.
            return hello[: rng.choice((len(hello), rng.randint(1, len(hello))))]
        if kind == 3:  # A TLS record that claims more than it has.
            return struct.pack(">BHH", 22, 0x0303, 0xFFFF) + rng.randbytes(50)
        if kind == 4:
            return rng.randbytes(rng.randint(1, 2000))
        if kind == 5:  # NNG's greeting in the clear, and a length of nearly 2^64.
            return b"\x00SP\x00\x00\x50\x00\x00" + struct.pack(">Q", 2**64 - 1 - rng.randrange(5))
        if kind == 6:
            broken = bytearray(hello)
            for _ in range(rng.randint(1, 4)):
                broken[rng.randrange(len(broken))] = rng.randrange(256)
            return bytes(broken)
        message = _task()
        return b"\x00SP\x00\x00\x50\x00\x00" + struct.pack(">Q", len(message)) + message

    def close(self) -> None:
        self._poll.close()
        for caller in (*self._kept, *self._pending.values()):
            caller.close()


def _task() -> bytes:
    """A message as a member would send it: run this."""
    bomb = pickle.dumps(_MARK)
    task = GrantedTask(b"STRANGER", 1, Token(0, 1), Spec(bomb, bomb))
    return encode(Envelope(b"STRANGER", NOBODY, Grant(1, (task,))), Limits())


def record_hello() -> bytes:
    """What a member says first, up to where an answer is needed; of another cluster."""
    with socket.create_server(("127.0.0.1", 0)) as listener, pynng.Push0() as member:
        member.tls_config = tls_config((ClusterKey.generate(),), listens=False)
        member.dial(f"tls+tcp://127.0.0.1:{listener.getsockname()[1]}", block=False)
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(10)
            return connection.recv(65536)


class Watch:
    """The most that a process has used since it was told to begin."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.memory_max = 0.0
        self.descriptors_max = 0
        self.memory_at_first = self._memory()

    def look(self) -> None:
        self.memory_max = max(self.memory_max, self._memory())
        self.descriptors_max = max(self.descriptors_max, len(os.listdir(f"/proc/{self._pid}/fd")))

    @property
    def growth(self) -> float:
        """In MiB."""
        return self.memory_max - self.memory_at_first

    def _memory(self) -> float:
        status = Path(f"/proc/{self._pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def _limit_descriptors() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_NOFILE, (_DESCRIPTORS, _DESCRIPTORS))


@contextmanager
def _node(config: NodeConfig, counts: str, log: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", _NODE, counts]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=log, stderr=log, preexec_fn=_limit_descriptors
    )
    assert process.stdin is not None
    try:
        process.stdin.write(config.to_line())
        process.stdin.flush()
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdin.close()


def run(count: int = 10_000) -> list[Result]:
    """Let so many strangers call, and say what it cost."""
    key = ClusterKey.generate()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    directories = [_machine.make_directory() for _ in range(3)]
    try:
        with tempfile.TemporaryDirectory() as scratch, open(os.path.join(scratch, "log"), "w+b") as log:
            counts = os.path.join(scratch, "counts")
            first = NodeConfig(
                "n1",
                directories[0],
                (),
                listen="127.0.0.1",
                port=port,
                keys=(key.to_text(),),
                standing=True,
                founder=True,
            )
            seeds = (f"tls+tcp://127.0.0.1:{port}",)
            others = [
                NodeConfig(f"n{number}", directory, seeds, "127.0.0.1", keys=first.keys, standing=True)
                for number, directory in enumerate(directories[1:], 2)
            ]
            with _node(first, counts, log) as attacked, _node(others[0], counts, log) as member:
                found = _besiege(count, key, port, attacked, member, others[1], counts, log)
            log.seek(0)
            lines = log.read().decode("utf-8", "replace").splitlines()
    finally:
        for directory in directories:
            _machine.remove_directory(directory)
    print("\n".join(lines[-20:]), file=sys.stderr)
    said = len([line for line in lines if "n3" not in line])
    found.append(result("lines in the logs of the nodes", said, "<= 10", said <= 10))
    return found


def _besiege(
    count: int,
    key: ClusterKey,
    port: int,
    attacked: subprocess.Popen[bytes],
    member: subprocess.Popen[bytes],
    newcomer: NodeConfig,
    counts: str,
    log: IO[bytes],
) -> list[Result]:
    environment = {**os.environ, KEY_VARIABLE: key.to_text(), SEED_VARIABLE: f"127.0.0.1:{port}"}
    program = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
    )
    computation = Computation(program)
    crowd = Crowd(port, seed=count)
    try:
        computation.wait_for(attacked.pid, member.pid)
        watch = Watch(attacked.pid)
        rounds, ran, began = computation.rounds, 0, time.monotonic()
        for _ in range(10):
            crowd.call(count // 10, meanwhile=watch.look)
            computation.wait_for(attacked.pid, member.pid)
            ran += computation.pids[attacked.pid]
        took = time.monotonic() - began
        rounds = computation.rounds - rounds
        with _node(newcomer, counts, log) as joined:
            entered = computation.wait_for(attacked.pid, member.pid, joined.pid)
            watch.look()
        end = Path(counts).read_bytes()
    finally:
        crowd.close()
        computation.stop()
    return [
        result("strangers that called", crowd.called, f"{count}", crowd.called == count, seconds=round(took, 1)),
        result("rounds that the members computed meanwhile", rounds, ">= 10", rounds >= 10, on_the_attacked=ran),
        result("memory of the attacked node grew by, MiB", watch.growth, "<= 64", watch.growth <= _GROWTH_MAX),
        result(
            "its descriptors at most",
            watch.descriptors_max,
            f"< {_DESCRIPTORS}",
            watch.descriptors_max < _DESCRIPTORS,
        ),
        result(
            "calls that unpickled what they sent", end.count(b"s"), "0", b"s" not in end, others=end.count(b".")
        ),
        result("a new node computes after, s", entered, "(no target)", True),
    ]


if __name__ == "__main__":
    report(run())
