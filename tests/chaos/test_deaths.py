"""Nodes are killed, stopped and abandoned; results are exact all the same."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import BrokenExecutor

import pytest
from benchmarks.exits import PROGRAM
from tests.conftest import TIMEOUT_S, Script, eventually, nodes_of

from p2pscoop import Executor, futures
from p2pscoop._local import current
from p2pscoop.errors import PoisonTaskError

WriteScript = Callable[..., Script]


def fib(n: int) -> int:
    if n < 2:
        return n
    a, b = futures.submit(fib, n - 1), futures.submit(fib, n - 2)
    return a.result() + b.result()


async def coroutine_fib(n: int) -> int:
    if n < 2:
        return n
    a, b = futures.submit(coroutine_fib, n - 1), futures.submit(coroutine_fib, n - 2)
    return await a + await b


async def relay(steps: int) -> int:
    """Goes from node to node, if there is another one, and counts its steps."""
    count = 0
    for _ in range(steps):
        count += await futures.submit(pause, 1)
    return count


def pause(value: int) -> int:
    time.sleep(0.01)
    return value


def work(x: int) -> int:
    until = time.perf_counter() + 0.01
    while time.perf_counter() < until:
        pass
    return x * x


def kill(pid: int) -> None:
    """Kill a node, unless it has ended meanwhile."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


class Assassin(threading.Thread):
    """Kills a random node of this test every so often."""

    def __init__(self, every_s: float, seed: int) -> None:
        super().__init__(daemon=True)
        self.killed = 0
        self._every_s = every_s
        self._rng = random.Random(seed)
        self._enough = threading.Event()

    def run(self) -> None:
        while not self._enough.wait(self._every_s):
            victims = nodes_of()
            if victims:
                kill(self._rng.choice(victims))
                self.killed += 1

    def stop(self) -> None:
        self._enough.set()
        self.join()


def requeued() -> int:
    return int(current().hooks.runtime.node.counters.requeued)  # type: ignore[attr-defined]


def test_nested_tasks_survive_kills(with_nodes: Callable[[int], None]) -> None:
    with_nodes(4)
    assassin = Assassin(0.3, seed=1)
    assassin.start()
    try:
        began = time.monotonic()
        while time.monotonic() - began < 4:
            assert futures.submit(fib, 24).result() == 46368
    finally:
        assassin.stop()
    assert assassin.killed >= 5


def test_suspended_tasks_survive_kills_wherever_they_are(with_nodes: Callable[[int], None]) -> None:
    with_nodes(4)
    assassin = Assassin(0.3, seed=4)
    assassin.start()
    moved = 0
    try:
        began = time.monotonic()
        while time.monotonic() - began < 6 or not (moved or time.monotonic() - began > 60):
            relays = [futures.submit(relay, 8) for _ in range(10)]
            assert futures.submit(coroutine_fib, 19).result() == 4181
            assert [each.result() for each in relays] == [8] * 10
            moved = current().hooks.migration.given  # type: ignore[attr-defined]
    finally:
        assassin.stop()
    assert assassin.killed >= 5
    assert moved > 0


def test_maps_survive_kills(with_nodes: Callable[[int], None]) -> None:
    with_nodes(3)
    assassin = Assassin(0.4, seed=2)
    assassin.start()
    try:
        assert list(futures.map(work, range(600))) == [x * x for x in range(600)]
    finally:
        assassin.stop()
    assert assassin.killed >= 2
    assert requeued() > 0


def test_an_executor_survives_kills() -> None:
    assassin = Assassin(0.4, seed=3)
    with Executor(3) as executor:
        executor.submit(work, 1).result()
        assassin.start()
        try:
            assert list(executor.map(work, range(500))) == [x * x for x in range(500)]
        finally:
            assassin.stop()
    assert assassin.killed >= 2


def test_the_origin_finishes_alone(with_nodes: Callable[[int], None]) -> None:
    with_nodes(3)
    from p2pscoop import _session

    assert _session._session is not None
    supervisor = _session._session.supervisor
    assert supervisor is not None
    results = futures.map(work, range(300))
    assert next(results) == 0
    # The supervisor first, so that nobody restarts anything.
    supervisor.kill()
    supervisor.wait()
    for pid in nodes_of():
        kill(pid)
    assert list(results) == [x * x for x in range(1, 300)]
    eventually(lambda: current().hooks.size() == 1)


def test_a_node_that_stops_for_a_second_loses_nothing(with_nodes: Callable[[int], None]) -> None:
    with_nodes(3)
    results = futures.map(work, range(300))
    assert next(results) == 0
    victim = nodes_of()[0]
    os.kill(victim, signal.SIGSTOP)
    timer = threading.Timer(1.0, os.kill, (victim, signal.SIGCONT))
    timer.start()
    assert list(results) == [x * x for x in range(1, 300)]
    timer.join()
    assert requeued() == 0


def test_a_task_that_silences_its_node_loses_nothing(with_nodes: Callable[[int], None]) -> None:
    with_nodes(2)

    def hold_the_interpreter() -> int:
        # One long call into C that does not let other threads run.
        return pow(3 + os.getpid() * 0, 4_000_000).bit_length()

    sizes = {each.result() for each in [futures.submit(hold_the_interpreter) for _ in range(4)]}
    assert len(sizes) == 1
    assert requeued() == 0


@pytest.mark.parametrize(
    ("way", "words"),
    [
        ("os._exit(9)", "ended with status 9"),
        ("os.kill(os.getpid(), 9)", "was killed by SIGKILL"),
        ("os.abort()", "was killed by SIGABRT"),
        ("ctypes.string_at(0)", "was killed by SIGSEGV"),
    ],
)
def test_a_task_that_takes_its_node_along_the_first_time(
    script: WriteScript, tmp_path: object, way: str, words: str
) -> None:
    """Whatever ends a node, the task runs again and the program goes on."""
    result = script(
        f"""
        import ctypes, faulthandler, os, sys, time
        from p2pscoop import futures

        faulthandler.disable()
        home = os.getpid()

        def fragile(mark):
            if os.getpid() != home and not os.path.exists(mark):
                open(mark, "w").close()
                {way}
            time.sleep(0.05)
            return os.getpid() != home

        mark = sys.argv[1]
        many = [futures.submit(fragile, mark) for _ in range(30)]
        print(sum(each.result() for each in many) > 0, os.path.exists(mark))
        """
    ).run(f"{tmp_path}/mark", nodes=2)
    assert (result.returncode, result.stdout) == (0, "True True\n"), result.stderr
    assert words in result.stderr
    assert "starting it again" in result.stderr


def test_a_dead_origin_takes_its_cluster_along(script: WriteScript) -> None:
    process = script(
        """
        import os, time
        from p2pscoop import futures
        for _ in range(4):
            futures.submit(time.sleep, 1000)
        print(os.getpid(), flush=True)
        futures.submit(time.sleep, 1000).result()
        """
    ).start(nodes=3)
    assert process.stdout is not None
    origin = int(process.stdout.readline())
    eventually(lambda: len(nodes_of()) == 2)
    os.kill(origin, signal.SIGKILL)
    process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 128 + signal.SIGKILL
    assert nodes_of() == []


def test_exits_are_clean(script: WriteScript) -> None:
    """The full count is `python -m benchmarks.exits`."""
    program = script(PROGRAM)
    for number in range(30):
        nodes = 2 if number % 3 == 0 else None
        result = program.run(str(number), nodes=nodes, env={"P2PSCOOP_NODES": "2"})
        assert (result.returncode, result.stdout, result.stderr) == (0, "", ""), number


def test_statistics_add_up(script: WriteScript) -> None:
    """What nodes say they executed is what there was to execute."""
    result = script(
        """
        import json, time
        import p2pscoop
        from p2pscoop import futures

        def fib(n):
            if n < 2:
                return n
            a, b = futures.submit(fib, n - 1), futures.submit(fib, n - 2)
            return a.result() + b.result()

        while len(p2pscoop.statistics()) < 3:
            time.sleep(0.01)
        futures.submit(fib, 24).result()
        print(json.dumps([each.executed for each in p2pscoop.statistics()]))
        """
    ).run(nodes=3)
    assert result.stderr == ""
    executed = json.loads(result.stdout)
    assert len(executed) == 3
    assert sum(executed) == 150_049


def deadly(x: int) -> int:
    print(f"about to die of {x}", file=sys.stderr)
    os.kill(os.getpid(), signal.SIGKILL)
    return x


@pytest.mark.parametrize(("options", "deaths"), [({}, 5), ({"retries": 1}, 2)])
def test_a_task_that_kills_its_node_each_time_is_given_up_and_harms_no_other(
    options: dict[str, int], deaths: int
) -> None:
    with Executor(2, **options) as executor:
        poison = executor.submit(deadly, 1)
        others = [executor.submit(work, x) for x in range(100)]
        assert [each.result() for each in others] == [x * x for x in range(100)]
        with pytest.raises(PoisonTaskError, match=f"{deaths} nodes died while they had deadly") as caught:
            poison.result()
        assert isinstance(caught.value, BrokenExecutor)
        assert len(caught.value.nodes) == deaths
        told = caught.value.deaths
        assert all(re.match(r"n[12] on \S+ \(pid \d+\) ", each) for each in told), told
        words = r"was killed by SIGKILL; the last that it printed to stderr:\n    about to die of 1"
        assert any(re.search(words, each) for each in told), told
        assert all(each in str(caught.value) for each in told)
        assert executor.submit(work, 3).result() == 9
