"""Whoever has not got the key, and tries the listener of a node all the same."""

from __future__ import annotations

import os
import random
import socket
import ssl
import struct
import time
from collections.abc import Iterator
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


def knock(node: Node, config: Any, scheme: str = "tls+tcp") -> bool:
    """Whether a stranger with this configuration becomes as much as a connection."""
    with pynng.Push0(send_timeout=300) as stranger:
        if config is not None:
            stranger.tls_config = config
        connected: list[object] = []
        stranger.add_post_pipe_connect_cb(lambda pipe: connected.append(pipe.id))
        stranger.dial(f"{scheme}://127.0.0.1:{node.port}", block=False)
        try:
            stranger.send(b"stranger")
        except pynng.Timeout:
            pass
        return bool(connected)


def test_the_key_opens(node: Node) -> None:
    assert knock(node, tls_config((KEY,), listens=False))
    assert node.transport.receive() == b"stranger"


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
            with pynng.Push0(send_timeout=10_000) as member:
                member.tls_config = tls_config((key,), listens=False)
                member.dial(f"tls+tcp://127.0.0.1:{port}", block=False)
                member.send(key.identity.encode())
            received: list[bytes] = []

            def arrived(key: ClusterKey = key, received: list[bytes] = received) -> bool:
                data = transport.receive()
                received.extend([] if data is None else [data])
                return received == [key.identity.encode()]

            eventually(arrived)
    finally:
        transport.close()
