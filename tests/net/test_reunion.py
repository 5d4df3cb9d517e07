"""What a node can know of an origin that it has lost: that it has ended, or only that it is out of reach."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from p2pscoop import _reunion
from p2pscoop._core.values import PeerInfo
from p2pscoop._reunion import Reunion, is_gone


def origin(group: str = "elsewhere", pid: int = 0, addresses: tuple[str, ...] = ()) -> PeerInfo:
    return PeerInfo(b"12345678", "origin", addresses, group, True, True, "there", pid, "1")


@pytest.fixture
def port() -> Iterator[int]:
    """One that is listened at; nobody accepts."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_process_of_this_machine_is_there_or_not() -> None:
    assert not is_gone(origin("here", os.getpid()), "here")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert is_gone(origin("here", ended.pid), "here")


def test_a_machine_that_refuses_has_no_origin(port: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]
    assert is_gone(origin(addresses=("ipc:///x", f"tcp://127.0.0.1:{free}")), "here")
    assert not is_gone(origin(addresses=("ipc:///x", f"tcp://127.0.0.1:{port}")), "here")
    assert is_gone(origin(addresses=("ipc:///x",)), "here"), "there is no way to it"


def test_one_that_cannot_be_found_is_looked_for_and_then_given_up(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_reunion, "REJOIN_S", 2.0)
    monkeypatch.setattr(_reunion, "_PAUSE_S", 0.01)
    called: list[PeerInfo] = []
    ended = threading.Event()
    Reunion("n1", "here", called.append, lambda _: ended.set()).lost(
        origin(addresses=(f"tcp://127.0.0.1:{port}",))
    )
    assert ended.wait(20)
    assert called


def test_one_that_is_found_ends_the_search(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_reunion, "_PAUSE_S", 0.01)
    ended = threading.Event()
    reunion = Reunion("n1", "here", lambda origin: reunion.found(origin), lambda _: ended.set())
    before = set(threading.enumerate())
    reunion.lost(origin(addresses=(f"tcp://127.0.0.1:{port}",)))
    for thread in set(threading.enumerate()) - before:
        thread.join(20)
        assert not thread.is_alive()
    assert not ended.is_set()
