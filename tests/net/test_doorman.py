"""Connections that are begun and not finished: how long they live, how many there are, and who is not harmed."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import socket
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterator

import pytest
from benchmarks.strangers import record_hello, run
from tests.conftest import eventually

from p2pscoop import _doorman, _machine
from p2pscoop._core.limits import Limits
from p2pscoop._doorman import _Caller, _unwanted
from p2pscoop._security import ClusterKey
from p2pscoop._transport import NngTransport

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there is no bound elsewhere")

KEY = ClusterKey.generate()


class Listener:
    """A transport that listens, and what it heard."""

    def __init__(self, host: str = "127.0.0.1", keys: tuple[ClusterKey, ...] = (KEY,)) -> None:
        self.directory = _machine.make_directory()
        self.events: list[tuple[bytes, bool]] = []
        self._keys = keys
        self._stack = contextlib.ExitStack()
        self._stack.callback(_machine.remove_directory, self.directory)
        self.transport = self.open("node", (host, 0))
        self.port = _machine.split_address(self.transport.addresses[1])[1]

    def open(self, name: str, tcp: tuple[str, int] | None = None) -> NngTransport:
        def note(peer: bytes, connected: bool) -> None:
            self.events.append((peer, connected))

        transport = NngTransport(self.directory, name, tcp, Limits(), note, self._keys)
        self._stack.callback(transport.close)
        return transport

    def serves(self, member: NngTransport, host: str = "127.0.0.1") -> bool:
        """Whether a member gets a message through."""
        word = b"Q" + os.urandom(8)
        address = self.transport.addresses[1].rpartition("//")[0] + f"//{_machine.join_address(host, self.port)}"
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            member.send(b"node", (address,), word)
            member.pump()
            if self.transport.receive() == word:
                return True
        return False

    def call(self, host: str = "127.0.0.1", words: bytes = b"", source: str | None = None) -> socket.socket:
        """Somebody who does not go on after these words."""
        caller = socket.create_connection(
            (host, self.port), timeout=30, source_address=None if source is None else (source, 0)
        )
        self._stack.callback(caller.close)
        caller.sendall(words)
        caller.setblocking(False)
        return caller

    @property
    def unfinished(self) -> int:
        assert self.transport._doorman is not None
        return self.transport._doorman.unfinished

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def listener() -> Iterator[Listener]:
    made = Listener()
    yield made
    made.close()


def hung_up(caller: socket.socket) -> bool:
    """Whether the other end has closed the connection. What else it said is of no interest."""
    try:
        while caller.recv(65536):
            pass
    except BlockingIOError:
        return False
    except ConnectionError:
        return True
    return True


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_doorman, "_HANDSHAKE_S", 1.0)
    monkeypatch.setattr(_doorman, "_WAITING_S", 0.1)


@pytest.mark.usefixtures("impatient")
def test_whoever_does_not_finish_is_hung_up_on(listener: Listener, caplog: pytest.LogCaptureFixture) -> None:
    member = listener.open("member")
    assert listener.serves(member)
    hello = record_hello()
    callers = [listener.call(words=words) for words in (b"", hello[:1], hello[: len(hello) // 2])]
    eventually(lambda: all(map(hung_up, callers)))
    assert listener.serves(member)
    assert listener.events == [(b"node", True)], "the member was not cut off, although it is here for longer"
    eventually(lambda: f"port {listener.port}: hung up on" in caplog.text)
    assert "most of them from 127.0.0.1" in caplog.text


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("host", ["0.0.0.0", "::1", "::"])
def test_at_every_kind_of_address(host: str) -> None:
    if ":" in host and not os.path.exists("/proc/net/if_inet6"):
        pytest.skip("this machine has no IPv6")
    listener = Listener(host)
    try:
        local = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        member = listener.open("member")
        assert listener.serves(member, local)
        caller = listener.call(local)
        eventually(lambda: hung_up(caller))
        assert listener.serves(member, local)
        assert listener.events == [(b"node", True)]
    finally:
        listener.close()


@pytest.mark.usefixtures("impatient")
def test_without_keys_as_well() -> None:
    listener = Listener(keys=())
    try:
        member = listener.open("member")
        assert listener.serves(member)
        caller = listener.call()
        eventually(lambda: hung_up(caller))
        assert listener.events == [(b"node", True)]
    finally:
        listener.close()


def test_there_are_never_many_and_members_get_in(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_doorman, "_UNFINISHED_MAX", 20)
    callers = [listener.call() for _ in range(200)]
    eventually(lambda: sum(not hung_up(caller) for caller in callers) <= 20)
    eventually(lambda: listener.unfinished == 20)
    assert listener.serves(listener.open("member"))
    assert sum(not hung_up(caller) for caller in callers) >= 19, "no more than necessary"


def test_the_crowd_of_one_address_harms_no_other(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_doorman, "_UNFINISHED_MAX", 20)
    quiet = [listener.call(source="127.0.0.3") for _ in range(5)]
    crowd = [listener.call(source="127.0.0.2") for _ in range(200)]
    eventually(lambda: sum(not hung_up(caller) for caller in crowd) <= 15)
    assert not any(map(hung_up, quiet))


@pytest.mark.usefixtures("impatient")
def test_other_sockets_of_the_process_are_left_alone(listener: Listener) -> None:
    """Of the user's code, of other listeners, and the ends that the process itself has of its connections."""
    with socket.create_server(("127.0.0.1", 0)) as own, socket.create_connection(own.getsockname()) as near:
        far, _ = own.accept()
        pair = socket.socketpair()
        datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        caller = listener.call()
        eventually(lambda: hung_up(caller))
        for one, other in ((near, far), pair):
            one.sendall(b"still there")
            assert other.recv(100) == b"still there"
        for each in (far, datagrams, *pair):
            each.close()


def test_who_has_to_go() -> None:
    def caller(host: int, since: float) -> _Caller:
        return _Caller((bytes((127, 0, 0, host)), random.randrange(2**16)), since)

    late = {number: caller(1, 0.0) for number in range(3)}
    few = {number: caller(2, 95.0) for number in range(10, 14)}
    many = {number: caller(3, 99.0) for number in range(20, 50)}
    everybody = {**late, **few, **many}
    answered = {21, 22, 23}

    def gone(bound: int) -> set[int]:
        found = _unwanted(everybody, 100.0, bound, answered.__contains__)
        assert len(found) == len(set(found))
        return set(found)

    assert gone(100) == set(late)
    assert len(gone(10)) == len(everybody) - 10
    assert gone(10) >= set(late)
    assert not gone(10) & (set(few) | answered)
    assert len(gone(2)) == len(everybody) - 2
    assert gone(0) == set(everybody)
    assert _unwanted({}, 100.0, 2, answered.__contains__) == []


def _kinds() -> Counter[str]:
    links = []
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # That of the directory itself.
            links.append(os.readlink(f"/proc/self/fd/{number}"))
    return Counter(link for link in links if link.startswith("anon_inode:"))


def test_a_forked_child_closes_what_it_has_of_it(listener: Listener) -> None:
    with_one = _kinds()
    listener.close()
    without = _kinds()
    assert with_one != without
    other = Listener()
    try:
        child = os.fork()
        if child == 0:
            os._exit(0 if _kinds() == without else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert _kinds() == with_one
        assert other.serves(other.open("member"))
    finally:
        other.close()


EXHAUSTED = """
    import os, resource, socket, sys, threading, time
    from p2pscoop import _machine
    from p2pscoop._core.limits import Limits
    from p2pscoop._security import ClusterKey
    from p2pscoop._transport import NngTransport

    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    directory, key = sys.argv[1], ClusterKey.from_text(sys.stdin.readline())
    node = NngTransport(directory, "node", ("127.0.0.1", 0), Limits(), lambda peer, connected: None, (key,))
    taken = []
    try:
        while True:
            taken.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        pass
    for _ in range(20):
        os.close(taken.pop())
    print(node.addresses[1], flush=True)
    while (data := node.receive()) != b"Qend":
        if data is not None:
            print(len(data), flush=True)
    for each in taken:
        os.close(each)
    node.close()
"""


def test_it_needs_no_descriptor_to_get_some_back() -> None:
    """The strangers take all that are left. Then most of them have to go, and members get in."""
    directories = [_machine.make_directory() for _ in range(2)]
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(EXHAUSTED), directories[0]],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    member = NngTransport(directories[1], "m", None, Limits(), lambda peer, connected: None, (KEY,))
    callers = []
    try:
        process.stdin.write(KEY.to_text() + "\n")
        process.stdin.flush()
        address = process.stdout.readline().strip()
        port = _machine.split_address(address)[1]
        for _ in range(60):
            caller = socket.create_connection(("127.0.0.1", port), timeout=30)
            caller.setblocking(False)
            callers.append(caller)
        eventually(lambda: sum(not hung_up(caller) for caller in callers) <= 64 // 4 + 1)
        member.send(b"node", (address,), b"Qhello")
        eventually(lambda: member.pump() or member.is_connected(b"node"))
        assert process.stdout.readline() == "6\n"
        member.send(b"node", (address,), b"Qend")
        eventually(lambda: member.pump() or process.poll() == 0)
    finally:
        for caller in callers:
            caller.close()
        member.close()
        process.kill()
        process.communicate()
        for directory in directories:
            _machine.remove_directory(directory)


def test_ten_thousand_strangers() -> None:
    """Half-open, noise, damaged handshakes, lengths, pickles: members go on meanwhile, and one more comes."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 1000:
        pytest.skip("the strangers need 1,000 descriptors themselves")
    results = run(10_000)
    assert [each["name"] for each in results if not each["holds"]] == []
