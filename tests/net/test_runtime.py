"""A runtime on real sockets: strangers, garbage, and nodes of other kinds."""

from __future__ import annotations

import pickle
import random
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator

import pynng
import pytest
from tests.conftest import eventually

from p2pscoop import __version__, _machine, futures
from p2pscoop._core.codec import Envelope, decode, encode
from p2pscoop._core.ids import NOBODY, Token
from p2pscoop._core.limits import Limits
from p2pscoop._core.messages import Grant, Join, Leaving, NoWork, Refuse, Result, Steal
from p2pscoop._core.values import GrantedTask, Outcome, OutcomeKind, PeerInfo, Spec, TaskResult
from p2pscoop._local import current
from p2pscoop._process_config import EXIT_REFUSED, NodeConfig
from p2pscoop._security import DEFAULT_CLUSTER, cluster_tag

LIMITS = Limits()
STRANGER = b"STRANGER"


@pytest.fixture
def directory() -> Iterator[str]:
    path = _machine.make_directory()
    yield path
    _machine.remove_directory(path)


@pytest.fixture
def address(with_nodes: Callable[[int], None]) -> str:
    """Of the inbox of this process's node, on one node."""
    with_nodes(1)
    return str(current().hooks.runtime.transport.addresses[0])  # type: ignore[attr-defined]


def send(address: str, *frames: bytes) -> None:
    with pynng.Push0(send_timeout=10_000) as stranger:
        stranger.dial(address, block=True)
        for frame in frames:
            stranger.send(frame)


def info_of(node: bytes, address: str = "tcp://127.0.0.1:9") -> PeerInfo:
    return PeerInfo(node, "stranger", (address,), "", False, True, "host", 1, "0.0")


def test_garbage_is_dropped_and_named(address: str, caplog: pytest.LogCaptureFixture) -> None:
    rng = random.Random(7)
    send(address, *(rng.randbytes(rng.randint(0, 300)) for _ in range(200)))
    eventually(lambda: current().hooks.runtime.malformed >= 190)  # type: ignore[attr-defined]
    assert 1 <= caplog.text.count("dropped a message") <= 10
    assert futures.submit(abs, -1).result() == 1


class Trap:
    """Unpickling it shows."""

    sprung = False

    @classmethod
    def spring(cls) -> None:
        cls.sprung = True

    def __reduce__(self) -> object:
        return Trap.spring, ()


def test_nothing_of_a_stranger_is_unpickled(address: str) -> None:
    me = current().hooks.runtime.node.id  # type: ignore[attr-defined]
    bomb = pickle.dumps(Trap())
    spec = Spec(bomb, bomb)
    for message in (
        Grant(1, (GrantedTask(STRANGER, 1, Token(0, 1), spec),)),
        Result((TaskResult(0, Token(0, 1), Outcome(OutcomeKind.VALUE, bomb)),), None),
        Steal(1, 10, True),
        NoWork(5),
        Leaving("bye", True),
    ):
        send(address, encode(Envelope(STRANGER, me, message), LIMITS))
    assert list(futures.map(abs, range(100))) == list(range(100))
    assert not Trap.sprung


def test_messages_for_another_incarnation_are_not_acted_on(address: str) -> None:
    node = current().hooks.runtime.node  # type: ignore[attr-defined]
    send(address, encode(Envelope(STRANGER, b"somebody", Steal(1, 10, True)), LIMITS))
    assert futures.submit(abs, -1).result() == 1
    assert not node.hungry


@pytest.mark.parametrize(
    ("python", "version", "reason"),
    [("cpython 2.7", None, "this node Python cpython 2.7"), (None, "9.9.9", "this node 9.9.9")],
)
def test_nodes_of_another_version_are_refused_and_told_why(
    address: str, python: str | None, version: str | None, reason: str
) -> None:
    with pynng.Pull0(recv_timeout=10_000) as inbox:
        port = socket.ntohs(inbox.listen("tcp://127.0.0.1:0").local_address.port)
        info = info_of(STRANGER, f"tcp://127.0.0.1:{port}")._replace(version=version or __version__)
        join = Join(info, python or _machine.python_version(), cluster_tag(DEFAULT_CLUSTER))
        send(address, encode(Envelope(STRANGER, NOBODY, join), LIMITS))
        answer = decode(inbox.recv(), LIMITS).message
    assert isinstance(answer, Refuse)
    assert reason in answer.reason


def test_a_refused_node_says_so_and_is_not_restarted(address: str, directory: str) -> None:
    program = "import p2pscoop; p2pscoop.__version__ = '9.9.9'; from p2pscoop._node import main; main()"
    config = NodeConfig("odd", directory, (address,), "127.0.0.1")
    # Its stdin stays open: it is the node's tether.
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(config.to_line())
        process.stdin.flush()
        assert process.wait(60) == EXIT_REFUSED
        assert b"the cluster refused this node: the cluster runs p2pscoop" in process.stderr.read()
