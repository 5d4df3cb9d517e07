"""Whoever has not got the key, and tries the listener of a node all the same."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pynng
import pytest
from tests.conftest import eventually

from p2pscoop import _machine
from p2pscoop._core.limits import Limits
from p2pscoop._security import ClusterKey
from p2pscoop._transport import NngTransport, tls_config

KEY = ClusterKey.generate()


class Node:
    """A transport that listens by TLS, and a member that sends to it; what arrives is counted."""

    def __init__(self) -> None:
        self.directory = _machine.make_directory()
        self.events: list[tuple[bytes, bool]] = []
        self.transport = self._transport("node", ("127.0.0.1", 0), (KEY,))
        self.member = self._transport("member", None, (KEY,))
        self.address = self.transport.addresses[1]
        self.port = _machine.split_address(self.address)[1]

    def _transport(self, name: str, tcp: tuple[str, int] | None, keys: tuple[ClusterKey, ...]) -> NngTransport:
        def note(peer: bytes, connected: bool) -> None:
            self.events.append((peer, connected))

        return NngTransport(self.directory, name, tcp, Limits(), note, keys)

    def serves(self) -> bool:
        """Whether the member still gets a message through, and nothing else has come."""
        word = os.urandom(8)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            self.member.send(b"node", (self.address,), word)
            self.member.pump()
            data = self.transport.receive()
            if data == word:
                return True
            assert data is None or len(data) == len(word), "a stranger's bytes came through"
        return False

    def close(self) -> None:
        self.member.close()
        self.transport.close()
        _machine.remove_directory(self.directory)


@pytest.fixture
def node() -> Iterator[Node]:
    node = Node()
    yield node
    node.close()


class Relay:
    """Stands before a node, and counts the connections that were begun and have ended, by whichever side."""

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.ended = 0
        self._threads: list[threading.Thread] = []
        self._begin(self._accept)

    def _begin(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self._begin(self._carry, near)

    def _carry(self, near: socket.socket) -> None:
        with near, socket.create_connection(self._target, timeout=30) as far:
            back = threading.Thread(target=self._copy, args=(far, near))
            back.start()
            self._copy(near, far)
            back.join()
        self.ended += 1

    @staticmethod
    def _copy(source: socket.socket, sink: socket.socket) -> None:
        source.settimeout(30)
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()


def knock(node: Node, config: Any, scheme: str = "tls+tcp") -> bool:
    """Whether a stranger with this configuration becomes as much as a connection, or is refused time and again."""
    relay = Relay(node.port)
    try:
        with pynng.Push0(reconnect_time_min=10, reconnect_time_max=10) as stranger:
            if config is not None:
                stranger.tls_config = config
            connected: list[object] = []
            stranger.add_post_pipe_connect_cb(lambda pipe: connected.append(pipe.id))
            stranger.dial(f"{scheme}://127.0.0.1:{relay.port}", block=False)
            eventually(lambda: connected or relay.ended >= 3)
            if connected:
                stranger.send(b"stranger")
                eventually(lambda: node.transport.receive() == b"stranger")
            return bool(connected)
    finally:
        relay.close()


def test_the_key_opens(node: Node) -> None:
    assert knock(node, tls_config((KEY,), listens=False))


def test_other_keys_do_not(node: Node) -> None:
    other = ClusterKey.generate()
    assert not knock(node, tls_config((other,), listens=False))
    # The right name for a wrong key.
    config = pynng.TLSConfig(pynng.TLSConfig.MODE_CLIENT)
    identity, secret = KEY.identity.encode(), other.tls_secret
    pynng.check_err(pynng.lib.nng_tls_config_psk(config._tls_config, identity, secret, len(secret)))
    assert not knock(node, config)
    assert not knock(node, pynng.TLSConfig(pynng.TLSConfig.MODE_CLIENT))
    assert node.serves()


def test_an_older_tls_is_not_spoken_even_with_the_key(node: Node) -> None:
    config = tls_config((KEY,), listens=False)
    pynng.check_err(pynng.lib.nng_tls_config_version(config._tls_config, 0x303, 0x303))
    assert not knock(node, config)
    assert node.serves()


def test_nothing_is_understood_in_the_clear(node: Node) -> None:
    assert not knock(node, None, "tcp")
    assert node.serves()


def test_a_certificate_is_no_key(node: Node) -> None:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", node.port), timeout=10) as plain,
        pytest.raises((ssl.SSLError, OSError)),
        context.wrap_socket(plain),
    ):
        pass
    assert node.serves()


def _record(node: Node) -> bytes:
    """What a member says first: its part of the handshake, up to where an answer is needed."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with pynng.Push0() as member:
            member.tls_config = tls_config((KEY,), listens=False)
            member.dial(f"tls+tcp://127.0.0.1:{listener.getsockname()[1]}", block=False)
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(10)
                return connection.recv(65536)


def test_replayed_and_reflected_handshakes_lead_nowhere(node: Node) -> None:
    hello = _record(node)
    assert hello[0] == 22, "a TLS handshake record"
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", node.port), timeout=10) as replay:
            replay.sendall(hello)
            answer = replay.recv(65536)
            assert answer
            # What the node said is sent back to it, and then what the member might have said next.
            replay.sendall(answer + os.urandom(200))
            replay.settimeout(10)
            while replay.recv(65536):
                pass
    assert node.serves()


@pytest.mark.parametrize("seed", range(3))
def test_garbage_costs_nothing(node: Node, seed: int) -> None:
    rng = random.Random(seed)
    hello = _record(node)
    for _ in range(100):
        kind = rng.randrange(4)
        if kind == 0:
            data = rng.randbytes(rng.randint(1, 2000))
        elif kind == 1:  # A TLS record that claims more than it has.
            data = struct.pack(">BHH", 22, 0x0303, 0xFFFF) + rng.randbytes(50)
        elif kind == 2:  # NNG's greeting in the clear, and a length of nearly 2**64.
            data = b"\x00SP\x00\x00\x50\x00\x00" + struct.pack(">Q", 2**64 - 1 - rng.randrange(5))
        else:
            broken = bytearray(hello)
            for _ in range(rng.randint(1, 4)):
                broken[rng.randrange(len(broken))] = rng.randrange(256)
            data = bytes(broken[: rng.randint(1, len(broken))])
        with socket.create_connection(("127.0.0.1", node.port), timeout=10) as stranger:
            try:
                stranger.sendall(data)
            except OSError:
                pass
    assert node.serves()


def test_two_keys_are_accepted_in_a_change_over(node: Node) -> None:
    old, new = ClusterKey.generate(), ClusterKey.generate()
    transport = node._transport("changing", ("127.0.0.1", 0), (old, new))
    try:
        port = _machine.split_address(transport.addresses[1])[1]
        for key in (old, new):
            word = key.identity.encode()
            with pynng.Push0(send_timeout=60_000) as member:
                member.tls_config = tls_config((key,), listens=False)
                member.dial(f"tls+tcp://127.0.0.1:{port}", block=False)
                member.send(word)
                # Before it closes: NNG does not wait for what is queued.
                eventually(lambda word=word: transport.receive() == word, within_s=60)
    finally:
        transport.close()


# ------------------------------------------------------------------------ other users of this machine

FOREIGNER = """
    import os, sys
    import pynng

    address, uid = sys.argv[1:]
    os.setresuid(int(uid), int(uid), int(uid))
    with pynng.Push0(reconnect_time_min=10, reconnect_time_max=10) as stranger:
        ended = []
        stranger.add_post_pipe_remove_cb(lambda pipe: ended.append(pipe.id))
        stranger.dial(address, block=True)
        while len(ended) < 3:
            try:
                stranger.send(b"stranger", block=False)
            except pynng.TryAgain:
                pass
        print("turned away", flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can be somebody else")
def test_other_users_are_turned_away_even_if_they_reach_the_socket(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    address = node.transport.addresses[0]
    path = Path(address.removeprefix("ipc://"))
    for each in (Path(tempfile.gettempdir()), path.parent):
        each.chmod(0o711)
    path.chmod(0o777)
    nobody = "65534"
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(FOREIGNER), address, nobody], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "turned away\n"
    finally:
        process.kill()
        process.communicate()
    assert node.serves()
    assert caplog.text.count("turned away a process of another user (uid 65534)") == 1
