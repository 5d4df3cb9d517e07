"""Peers that have the key and do not keep to the protocol: broken ones, other versions, or malice.

Who has the key can run code anyway. But a mistake in one node must not take the others along: what cannot be read
is dropped and named, what was not asked for is not believed, and the node goes on.
"""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pynng
import pytest
from benchmarks.messages import ODD_VALUES, envelopes
from benchmarks.strangers import Watch
from tests.conftest import TIMEOUT_S, eventually
from tests.net.keyed import KeyedPeer

from p2pscoop import Executor, __version__, _machine
from p2pscoop._attachment import SEED_VARIABLE
from p2pscoop._core.codec import MESSAGE_MARK, Envelope, decode, encode
from p2pscoop._core.fragments import cut
from p2pscoop._core.ids import NOBODY
from p2pscoop._core.limits import Limits
from p2pscoop._core.messages import Join, Leaving, Sync
from p2pscoop._core.values import MemberEntry, MemberState, PeerInfo
from p2pscoop._process_config import NodeConfig
from p2pscoop._security import DEFAULT_CLUSTER, KEY_VARIABLE, ClusterKey, cluster_tag
from p2pscoop._transport import tls_config

LIMITS = Limits()


class Attacked:
    """A node of its own process, the founder of a standing cluster; its log; and a program that uses it."""

    def __init__(self, log: Path) -> None:
        self.key = ClusterKey.generate()
        self._directory = _machine.make_directory()
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        self.seed = f"127.0.0.1:{port}"
        self.address = f"tls+tcp://{self.seed}"
        config = NodeConfig(
            "n1",
            self._directory,
            (),
            listen="127.0.0.1",
            port=port,
            keys=(self.key.to_text(),),
            standing=True,
            founder=True,
        )
        self._log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "p2pscoop._node"], stdin=subprocess.PIPE, stdout=file, stderr=file
            )
        assert self.process.stdin is not None
        self.process.stdin.write(config.to_line())
        self.process.stdin.flush()

    def log(self) -> list[str]:
        return self._log.read_text().splitlines()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(TIMEOUT_S)
        _machine.remove_directory(self._directory)


@pytest.fixture
def attacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Attacked]:
    made = Attacked(tmp_path / "log")
    monkeypatch.setenv(KEY_VARIABLE, made.key.to_text())
    monkeypatch.setenv(SEED_VARIABLE, made.seed)
    try:
        yield made
    finally:
        made.close()


class Member:
    """What joins the cluster by the book, and then misbehaves.

    Attributes:
        id: its own.
        victim: the id of the node.
    """

    def __init__(self, attacked: Attacked) -> None:
        self.id = os.urandom(8)
        self._config = tls_config((attacked.key,), listens=True)
        self._inbox = pynng.Pull0(recv_timeout=int(TIMEOUT_S * 1000))
        self._inbox.tls_config = self._config
        listener = self._inbox.listen("tls+tcp://127.0.0.1:0")
        self.address = f"tls+tcp://127.0.0.1:{socket.ntohs(listener.local_address.port)}"
        self.wire = KeyedPeer(attacked.address, (attacked.key,))
        self.wire.introduce()
        join = Join(self.info(self.address), _machine.python_version(), cluster_tag(DEFAULT_CLUSTER))
        self.wire.frame(encode(Envelope(self.id, NOBODY, join), LIMITS))
        # It is let in, or even asked for work already.
        self.victim = decode(self._inbox.recv(), LIMITS).sender

    def info(self, address: str, node: bytes | None = None) -> PeerInfo:
        return PeerInfo(node or self.id, "odd", (address,), "", False, True, "host", 1, __version__)

    def close(self) -> None:
        self.wire.close()
        self._inbox.close()


@pytest.fixture
def member(attacked: Attacked) -> Iterator[Member]:
    eventually(lambda: _listens(attacked.seed))
    made = Member(attacked)
    yield made
    made.close()


def _listens(seed: str) -> bool:
    try:
        socket.create_connection(_machine.split_address(seed), timeout=10).close()
    except ConnectionRefusedError:
        return False
    return True


def computes() -> bool:
    """Whether a program that comes now gets its results from the node."""
    with Executor() as executor:
        pids = set(executor.map(_pid, range(50)))
        return pids != {os.getpid()}


def _pid(_: int) -> int:
    return os.getpid()


def unharmed(attacked: Attacked, *, lines_max: int = 12) -> bool:
    assert computes()
    assert attacked.process.poll() is None
    text = attacked.log()
    assert "Traceback" not in "\n".join(text), "\n".join(text)
    assert len(text) <= lines_max, "\n".join(text)
    return True


def test_frames_that_say_they_are_too_long_end_the_connection(attacked: Attacked, member: Member) -> None:
    watch = Watch(attacked.process.pid)
    for size in (LIMITS.frame_max + 1, 2**31, 2**32 + 7, 2**63, 2**64 - 1):
        with KeyedPeer(attacked.address, (attacked.key,)) as other:
            other.introduce()
            other.frame(b"some of it", size)
            assert other.is_cut_off()
            watch.look()
    assert watch.growth < 16
    assert unharmed(attacked)


def test_messages_that_are_cut_short(attacked: Attacked, member: Member) -> None:
    whole = [encode(each, LIMITS) for each in envelopes(member.id, member.victim)]
    for data in whole:
        for size in range(1, len(data), 7):
            member.wire.frame(data[:size])
    # And a frame of which half is sent, before the connection ends.
    with KeyedPeer(attacked.address, (attacked.key,)) as other:
        other.introduce()
        other.frame(whole[0][:10], len(whole[0]))
    assert unharmed(attacked)


def test_every_value_replaced_by_a_wrong_one(attacked: Attacked, member: Member) -> None:
    for each in envelopes(member.id, member.victim):
        for data in variations(encode(each, LIMITS)):
            member.wire.frame(data)
    # Beside what is no message: callers that do not match, each of which is named.
    assert unharmed(attacked, lines_max=120)


def variations(data: bytes) -> Iterator[bytes]:
    """The message with each value of its header, and each list in it, replaced by what is out of place."""
    size = int.from_bytes(data[1:5], "big")
    payloads = data[5 + size :]

    def places(value: object, path: tuple[int, ...] = ()) -> Iterator[tuple[int, ...]]:
        if isinstance(value, list):
            for index, part in enumerate(value):
                yield (*path, index)
                yield from places(part, (*path, index))

    for path in places(msgpack.unpackb(data[5 : 5 + size])):
        for odd in ODD_VALUES:
            header = msgpack.unpackb(data[5 : 5 + size])
            place = header
            for index in path[:-1]:
                place = place[index]
            place[path[-1]] = odd
            packed = msgpack.packb(header)
            yield data[:1] + len(packed).to_bytes(4, "big") + packed + payloads


def test_bombs(attacked: Attacked, member: Member) -> None:
    watch = Watch(attacked.process.pid)
    for header in (
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x05",
        b"\x91" * 100_000,
        b"\x81\xa1a" * 100_000,
        (b"\xdd" + (8000).to_bytes(4, "big")) * 1600,
        (b"\xdd" + (500_000).to_bytes(4, "big")) * 100_000,
    ):
        for _ in range(2):
            member.wire.frame(bytes((MESSAGE_MARK,)) + len(header).to_bytes(4, "big") + header)
            watch.look()
    # The beginnings of messages that never go on.
    for stream in range(1000):
        piece = next(iter(cut(bytes(LIMITS.frame_max + 1), stream.to_bytes(8, "big"), LIMITS)))
        last = piece[:9] + (1).to_bytes(4, "big") + piece[13:25] + b"x" * 26
        member.wire.frame(last[:51])
    watch.look()
    assert unharmed(attacked)
    watch.look()
    assert watch.growth < 64


def test_noise_unknown_kinds_and_other_versions(attacked: Attacked, member: Member) -> None:
    rng = random.Random(5)
    header = msgpack.packb([99, member.id, member.victim, [], []])
    for mark in range(256):
        member.wire.frame(bytes((mark,)) + len(header).to_bytes(4, "big") + header)
        member.wire.frame(bytes((mark,)) + rng.randbytes(rng.randint(0, 100)))
        if mark not in (0x50, 0xF0):
            member.wire.frame(
                bytes((mark,)) + encode(Envelope(member.id, member.victim, Leaving("", False)), LIMITS)[1:]
            )
            if mark == MESSAGE_MARK:
                break
    assert unharmed(attacked)


def test_what_nobody_asked_for_and_what_the_dead_say(attacked: Attacked, member: Member) -> None:
    """Every kind of message, well-formed: from a member, a stranger, and one that left; also for another node."""
    ghost, stranger = os.urandom(8), os.urandom(8)
    there = MemberEntry(member.info(member.address, ghost), MemberState.ALIVE, 1)
    member.wire.frame(encode(Envelope(member.id, member.victim, Sync((there,), False)), LIMITS))
    member.wire.frame(encode(Envelope(ghost, member.victim, Leaving("bye", False)), LIMITS))
    for sender in (member.id, stranger, ghost):
        for recipient in (member.victim, b"somebody", NOBODY):
            for each in envelopes(sender, recipient, payload=b"not a pickle"):
                # Whoever leaves, or says that others are no more, does so in the end.
                if not isinstance(each.message, Leaving):
                    member.wire.frame(encode(each, LIMITS))
    assert unharmed(attacked)


def test_members_that_say_they_are_nowhere(attacked: Attacked, member: Member) -> None:
    addresses = ("tls+tcp://", "tls+tcp://[::1", "tls+tcp://nowhere", "tls+tcp://127.0.0.1:1/x")
    others = tuple(
        MemberEntry(member.info(address, os.urandom(8)), MemberState.ALIVE, number)
        for number, address in enumerate(addresses)
    )
    member.wire.frame(encode(Envelope(member.id, member.victim, Sync(others, answer=True)), LIMITS))
    assert unharmed(attacked)
