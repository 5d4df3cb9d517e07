"""What a program can ask about where it runs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

import pytest
from tests.conftest import Script, eventually

import p2pscoop
from p2pscoop import futures

NAMES = (
    "BROKER",
    "CONFIGURATION",
    "DEBUG",
    "IS_ORIGIN",
    "IS_RUNNING",
    "MAIN_MODULE",
    "SHUTDOWN_REQUESTED",
    "SIZE",
    "worker",
)

# What a task says, and where it ran.
TELL = f"""
    import json, time
    import p2pscoop
    from p2pscoop import futures

    def tell():
        until = time.perf_counter() + 0.05
        while time.perf_counter() < until:
            pass
        return {{name: getattr(p2pscoop, name) for name in {NAMES!r}}}

    print(json.dumps(tell()))
    list(futures.map(abs, range(2)))
    while p2pscoop.SIZE < 2:
        futures.wait([futures.submit(time.sleep, 0.01)])
    told = [future.result() for future in [futures.submit(tell) for _ in range(20)]]
    print(json.dumps(told))
    print(json.dumps([each.id for each in p2pscoop.statistics()]))
"""


def test_all_is_defined_before_anything_runs_and_asking_starts_nothing() -> None:
    program = (
        f"import p2pscoop, sys, json; print(json.dumps([getattr(p2pscoop, name) for name in {NAMES!r}])); "
        "print(p2pscoop.logger.name); assert 'p2pscoop._local' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    values, logger = done.stdout.splitlines()
    configuration = {"debug": False, "executable": None, "headless": True, "size": 1}
    assert json.loads(values) == [None, configuration, False, True, False, None, False, 1, None]
    assert logger == "p2pscoop"


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'BROKERS'"):
        _ = p2pscoop.BROKERS


@pytest.mark.parametrize("launched", [False, True], ids=["plain", "run"])
def test_on_the_origin_and_on_nodes(script: Callable[[str], Script], launched: bool) -> None:
    program = script(TELL)
    done = program.run(nodes=2) if launched else program.run(env={"P2PSCOOP_NODES": "2"})
    assert done.returncode == 0, done.stderr
    before, told, ids = map(json.loads, done.stdout.splitlines())
    assert before["IS_ORIGIN"] is True
    assert before["IS_RUNNING"] is launched
    origin, node = ids
    assert {each["worker"] for each in told} == {origin, node}
    for each in told:
        assert each["IS_ORIGIN"] is (each["worker"] == origin)
        assert each["IS_RUNNING"] is True
        assert each["SHUTDOWN_REQUESTED"] is False
        assert each["SIZE"] == each["CONFIGURATION"]["size"] == 2
        assert each["BROKER"] is None
        assert each["MAIN_MODULE"] == each["CONFIGURATION"]["executable"] == str(program.path)


@pytest.mark.parametrize(("value", "debug"), [("1", True), ("0", False), ("", False)])
def test_debug_is_what_the_environment_says(monkeypatch: pytest.MonkeyPatch, value: str, debug: bool) -> None:
    monkeypatch.setenv("P2PSCOOP_DEBUG", value)
    assert p2pscoop.DEBUG is debug
    assert p2pscoop.CONFIGURATION["debug"] is debug


def test_the_size_is_live(with_nodes: Callable[[int], None]) -> None:
    assert (p2pscoop.IS_RUNNING, p2pscoop.SIZE) == (False, 1)
    with_nodes(3)
    assert (p2pscoop.IS_RUNNING, p2pscoop.SIZE) == (True, 3)
    futures.shutdown()
    eventually(lambda: not p2pscoop.IS_RUNNING)
    assert p2pscoop.SIZE == 1
