"""The pynng transport: real sockets, between threads and processes of this machine."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pynng
import pytest
from tests.conftest import eventually

from p2pscoop import _machine, _transport
from p2pscoop._core.limits import Limits
from p2pscoop._transport import NngTransport
from p2pscoop.errors import ConfigurationError, RemoteProtocolError, StartError

LIMITS = Limits(frame_max=64 * 1024, message_max=16 * 1024 * 1024, assembly_max=32 * 1024 * 1024)


class Endpoint:
    """A transport, what it received, and what it heard of its connections."""

    def __init__(self, directory: str, name: str, tcp: tuple[str, int] | None = None) -> None:
        self.events: list[tuple[bytes, bool]] = []
        self.transport = NngTransport(
            directory, name, tcp, LIMITS, lambda peer, connected: self.events.append((peer, connected))
        )
        self.received: list[bytes] = []
        self.errors: list[Exception] = []
        self._stop = False
        self._thread = threading.Thread(target=self._receive)
        self._thread.start()
        self._pump_thread = threading.Thread(target=self._pump)
        self._pump_thread.start()

    def _pump(self) -> None:
        while not self._stop:
            self.transport.pump()
            time.sleep(0.001)

    def _receive(self) -> None:
        while not self._stop:
            try:
                data = self.transport.receive()
            except RemoteProtocolError as error:
                self.errors.append(error)
            else:
                if data is not None:
                    self.received.append(data)

    def close(self) -> None:
        self._stop = True
        while self._thread.is_alive():
            self.transport.wake()
            self._thread.join(0.05)
        self._pump_thread.join()
        self.transport.close()


@pytest.fixture
def directory() -> Iterator[str]:
    path = _machine.make_directory()
    yield path
    _machine.remove_directory(path)


@pytest.fixture
def endpoint(directory: str) -> Iterator[Callable[..., Endpoint]]:
    with contextlib.ExitStack() as stack:

        def make(name: str, tcp: tuple[str, int] | None = None) -> Endpoint:
            made = Endpoint(directory, name, tcp)
            stack.callback(made.close)
            return made

        yield make


def test_the_directory_is_private(directory: str) -> None:
    assert stat.S_IMODE(os.stat(directory).st_mode) == 0o700


@pytest.mark.parametrize("kind", ["ipc", "tcp"])
def test_messages_arrive_in_order(endpoint: Callable[..., Endpoint], kind: str) -> None:
    here, there = endpoint("here"), endpoint("there", ("127.0.0.1", 0))
    address = next(each for each in there.transport.addresses if each.startswith(kind))
    messages = [b"Q%d" % number for number in range(1000)]
    for message in messages:
        here.transport.send(b"there", [address], message)
    eventually(lambda: len(there.received) == 1000)
    assert there.received == messages
    assert here.events == [(b"there", True)]
    assert here.transport.is_connected(b"there")


def test_messages_wait_for_the_connection(directory: str, endpoint: Callable[..., Endpoint]) -> None:
    here = endpoint("here")
    for number in range(300):
        here.transport.send(b"there", [f"ipc://{directory}/there"], b"Q%d" % number)
    assert not here.transport.is_connected(b"there")
    there = endpoint("there")
    eventually(lambda: len(there.received) == 300)


def test_long_messages(endpoint: Callable[..., Endpoint]) -> None:
    here, there = endpoint("here"), endpoint("there")
    messages = [b"Q" + random.Random(size).randbytes(size) for size in (64 * 1024, 1_000_000, 10_000_000, 3)]
    for message in messages:
        here.transport.send(b"there", there.transport.addresses, message)
    eventually(lambda: len(there.received) == len(messages))
    assert there.received == messages


def test_the_end_of_a_peer_is_noticed(endpoint: Callable[..., Endpoint]) -> None:
    here, there = endpoint("here"), endpoint("there")
    here.transport.send(b"there", there.transport.addresses, b"Q")
    eventually(lambda: there.received)
    there.close()
    eventually(lambda: (b"there", False) in here.events)


def test_nothing_is_sent_after_disconnect_or_close(endpoint: Callable[..., Endpoint]) -> None:
    here, there = endpoint("here"), endpoint("there")
    here.transport.send(b"there", there.transport.addresses, b"Q1")
    eventually(lambda: there.received == [b"Q1"])
    here.transport.disconnect(b"there")
    here.transport.disconnect(b"there")
    assert not here.transport.is_connected(b"there")
    here.transport.send(b"there", there.transport.addresses, b"Q2")
    eventually(lambda: there.received == [b"Q1", b"Q2"])
    here.close()
    here.transport.send(b"there", there.transport.addresses, b"Q3")
    here.transport.close()
    assert here.transport.receive() is None


def test_many_peers(endpoint: Callable[..., Endpoint]) -> None:
    hub = endpoint("hub")
    spokes = [endpoint(f"spoke{number}") for number in range(20)]
    for number, spoke in enumerate(spokes):
        spoke.transport.send(b"hub", hub.transport.addresses, b"Q%d" % number)
        hub.transport.send(b"%d" % number, spoke.transport.addresses, b"Q%d" % number)
    eventually(lambda: len(hub.received) == 20 and all(spoke.received for spoke in spokes))
    assert sorted(hub.received) == sorted(b"Q%d" % number for number in range(20))


def test_a_peer_that_does_not_take_anything_costs_bounded_memory(
    directory: str, endpoint: Callable[..., Endpoint]
) -> None:
    here = endpoint("here")
    for _ in range(100):
        here.transport.send(b"nobody", [f"ipc://{directory}/nobody"], bytes(1_000_000))
    link = here.transport._links[b"nobody"]
    assert link._queued <= LIMITS.assembly_max


def test_a_path_that_is_too_long() -> None:
    with pytest.raises(ConfigurationError, match="set TMPDIR to a shorter directory"):
        NngTransport("/tmp/" + "x" * 120, "n", None, LIMITS, lambda peer, connected: None)


def test_an_address_in_use(endpoint: Callable[..., Endpoint]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(StartError, match=f"cannot listen at 127.0.0.1:{port}"):
            endpoint("here", ("127.0.0.1", port))


def test_the_port_that_is_told_is_the_port_that_listens(endpoint: Callable[..., Endpoint]) -> None:
    address = endpoint("here", ("127.0.0.1", 0)).transport.addresses[1]
    port = int(address.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=10):
        pass


def test_ipv6(endpoint: Callable[..., Endpoint]) -> None:
    if not Path("/proc/net/if_inet6").exists():
        pytest.skip("this machine has no IPv6")
    here, there = endpoint("here"), endpoint("there", ("::1", 0))
    assert there.transport.addresses[1].startswith("tcp://[::1]:")
    here.transport.send(b"there", there.transport.addresses[1:], b"Q")
    eventually(lambda: there.received == [b"Q"])


# ------------------------------------------------------------------------------------------ strangers


def push(address: str, *frames: bytes) -> None:
    """Send frames as somebody who knows nanomsg, but not us."""
    with pynng.Push0(send_timeout=10_000) as stranger:
        stranger.dial(address, block=True)
        for frame in frames:
            stranger.send(frame)


def test_malformed_fragments_are_reported_and_survived(endpoint: Callable[..., Endpoint]) -> None:
    there = endpoint("there", ("127.0.0.1", 0))
    push(there.transport.addresses[1], b"\xf0short", b"", b"\xf0" + bytes(24), b"Qfine")
    eventually(lambda: there.received == [b"Qfine"])
    assert len(there.errors) == 2


def test_oversize_frames_are_dropped(endpoint: Callable[..., Endpoint]) -> None:
    here, there = endpoint("here"), endpoint("there", ("127.0.0.1", 0))
    with contextlib.suppress(pynng.NNGException):
        push(there.transport.addresses[1], bytes(LIMITS.frame_max + 1))
    here.transport.send(b"there", there.transport.addresses, b"Q")
    eventually(lambda: there.received == [b"Q"])


def test_raw_garbage_and_half_open_connections_are_survived(endpoint: Callable[..., Endpoint]) -> None:
    here, there = endpoint("here"), endpoint("there", ("127.0.0.1", 0))
    port = int(there.transport.addresses[1].rpartition(":")[2])
    rng = random.Random(1)
    kept = []
    for number in range(100):
        stranger = socket.create_connection(("127.0.0.1", port), timeout=10)
        # The first bytes of the real protocol, then lengths up to 2**64 - 1; or noise; or nothing.
        greeting = b"\x00SP\x00\x00\x50\x00\x00" + rng.choice((b"\xff" * 8, rng.randbytes(8)))
        with contextlib.suppress(OSError):
            stranger.sendall(rng.choice((b"", rng.randbytes(50), greeting)))
        if number % 2:
            stranger.close()
        else:
            kept.append(stranger)
    here.transport.send(b"there", there.transport.addresses[1:], b"Q")
    eventually(lambda: there.received == [b"Q"])
    for stranger in kept:
        stranger.close()


def test_connections_that_nobody_needs_are_closed_and_open_again(
    directory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_transport, "_USED_S", 0.0)
    limits = Limits(connections_max=3)
    peers = [NngTransport(directory, f"{number}.ipc", None, limits, lambda *_: None) for number in range(6)]
    events: list[tuple[bytes, bool]] = []
    hub = NngTransport(directory, "hub.ipc", None, limits, lambda *event: events.append(event))  # type: ignore[arg-type]

    def send(number: int, data: bytes) -> None:
        hub.send(bytes([number]), peers[number].addresses, data)
        eventually(lambda: hub.pump() is False and hub.is_connected(bytes([number])))
        assert peers[number].receive() == data

    try:
        for number in (3, 1, 4, 0, 5, 2):
            send(number, b"first")
        # The oldest go, but for those that are kept; what was used last stays.
        unused = hub.unused({bytes([1])})
        assert unused == [bytes([3]), bytes([4]), bytes([0])]
        for peer in unused:
            hub.disconnect(peer)
        assert hub.unused(()) == []
        assert [hub.is_connected(bytes([number])) for number in range(6)] == [
            False,
            True,
            True,
            False,
            False,
            True,
        ]
        assert all(connected for _, connected in events), "what this side closes is no loss"
        send(4, b"again")
        assert hub.unused(()) == [bytes([1])]
        monkeypatch.setattr(hub, "_limits", Limits(connections_max=3, connection_idle_s=-1.0))
        assert hub.unused(()) == [bytes([number]) for number in (1, 5, 2, 4)]
    finally:
        for each in (hub, *peers):
            each.close()
