"""Tasks that run are cancelled: wherever they wait, in the middle of Python code, or with their node."""

from __future__ import annotations

import os
import time
import types
from collections.abc import Callable, Generator
from concurrent.futures import CancelledError
from pathlib import Path

import pytest
from tests.api.test_migration import custodies, stolen
from tests.conftest import eventually, nodes_of

import p2pscoop
from p2pscoop import futures
from p2pscoop.errors import TaskCancelled


@pytest.fixture
def three_nodes(with_nodes: Callable[[int], None]) -> None:
    with_nodes(3)


def begin(path: Path) -> None:
    path.with_suffix(".begun").write_text(str(os.getpid()))


def compute(path: Path) -> None:
    """For ever, without waiting for anything."""
    try:
        begin(path)
        while True:
            sum(range(1000))
    finally:
        path.write_text("ended")


def sleep(path: Path) -> None:
    try:
        begin(path)
        time.sleep(1000)
    finally:
        path.write_text("ended")


def clean_up(path: Path) -> None:
    """For longer than it takes to be interrupted again."""
    try:
        begin(path)
        time.sleep(1000)
    finally:
        try:
            raise KeyError("of the clean-up")
        except KeyError:
            for _ in range(50):
                time.sleep(0.01)
        time.sleep(0.1)
        path.write_text("ended")


def wait(path: Path) -> None:
    """For a task of its own, which never ends."""
    try:
        begin(path)
        stolen(sleep, path.with_name("inner")).result()
    finally:
        path.write_text("ended")


@pytest.mark.usefixtures("three_nodes")
@pytest.mark.parametrize("work", [compute, sleep, clean_up, wait])
def test_a_task_of_another_node_is_interrupted(work: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "trace"
    task = stolen(work, path)
    eventually((tmp_path / "inner.begun" if work is wait else path.with_suffix(".begun")).exists)
    assert not task.cancel(), "it runs already"
    assert task.cancel(running=True)
    assert task.cancelled()
    with pytest.raises(CancelledError):
        task.result()
    eventually(lambda: path.exists() and path.read_text() == "ended")
    if work is wait:
        eventually((tmp_path / "inner").exists)
    assert int(path.with_suffix(".begun").read_text()) in nodes_of(), "the node lives"
    assert stolen(abs, -1).result() == 1
    eventually(lambda: custodies() == (0, 0))


def test_a_function_without_a_frame_is_interrupted_too(with_nodes: Callable[[int], None]) -> None:
    with_nodes(2)
    other = stolen(os.getpid).result()
    task = stolen(time.sleep, 1000)
    eventually(lambda: any(each.executed == 2 for each in p2pscoop.statistics()[1:]))
    assert task.cancel(running=True)
    assert stolen(os.getpid).result() == other, "it was not replaced"


@types.coroutine
def let_others_go_first() -> Generator[None, None, None]:
    yield


async def never(path: Path) -> None:
    try:
        begin(path)
        while True:
            await let_others_go_first()
            time.sleep(0.001)
    finally:
        path.write_text("ended")


def wait_here(path: Path) -> None:
    try:
        begin(path)
        futures.gather(never(path.with_name("inner"))).result()
    finally:
        path.write_text("ended")


async def wait_suspended(path: Path) -> None:
    try:
        begin(path)
        await futures.gather(never(path.with_name("inner")))
    except TaskCancelled:
        path.write_text("ended")
        raise


@pytest.mark.parametrize("work", [never, wait_here, wait_suspended])
def test_a_task_that_waits_here_is_interrupted_with_what_it_has_spawned(
    work: Callable[[Path], object], tmp_path: Path, with_nodes: Callable[[int], None]
) -> None:
    with_nodes(1)
    path = tmp_path / "trace"
    task = futures.submit(work, path)
    assert futures.wait([task], timeout=0.2).done == set()
    assert path.with_suffix(".begun").exists()
    assert not task.cancel()
    assert task.cancel(running=True)
    with pytest.raises(CancelledError):
        task.result()
    assert path.read_text() == "ended"
    if work is not never:
        futures.wait([futures.submit(abs, -1)], timeout=1)
        assert (tmp_path / "inner").read_text() == "ended"


@pytest.mark.usefixtures("three_nodes")
def test_a_node_whose_task_does_not_end_is_replaced_and_the_rest_goes_on(tmp_path: Path) -> None:
    def stubborn() -> None:
        begin(tmp_path / "trace")
        while True:
            try:
                while True:
                    time.sleep(0.01)
            except TaskCancelled:
                pass

    before = set(nodes_of())
    task = stolen(stubborn)
    eventually((tmp_path / "trace.begun").exists)
    assert task.cancel(running=True)
    eventually(lambda: set(nodes_of()) - before)
    assert [stolen(pow, base, 2).result() for base in range(5)] == [0, 1, 4, 9, 16]


@pytest.mark.usefixtures("three_nodes")
def test_a_task_may_cancel_itself_by_way_of_what_it_spawns() -> None:
    def outer() -> str:
        with pytest.raises(CancelledError):
            futures.submit(inner).result()
        return "went on"

    def inner() -> None:
        raise TaskCancelled

    assert futures.submit(outer).result() == "went on"


@pytest.mark.usefixtures("three_nodes")
def test_what_has_ended_is_not_cancelled() -> None:
    task = stolen(abs, -3)
    assert task.result() == 3
    assert not task.cancel(running=True)
    assert task.result() == 3
