"""Clusters that are found: with no address given, by programs, by `status`, and in spite of an intruder."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import TIMEOUT_S, eventually
from tests.net.conftest import Machines, needs_root

from p2pscoop import Executor
from p2pscoop._attachment import SEED_VARIABLE
from p2pscoop._hints import Hints
from p2pscoop._security import CLUSTER_VARIABLE, KEY_VARIABLE, ClusterKey

LOOPBACK = "127.0.0.1"
COMMAND = (sys.executable, "-m", "p2pscoop")
EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"

Node = dict[str, Any]


@pytest.fixture(autouse=True)
def cluster(monkeypatch: pytest.MonkeyPatch) -> str:
    """Key and name of a cluster that only this test has."""
    name = f"finding-{os.urandom(4).hex()}"
    monkeypatch.setenv(KEY_VARIABLE, ClusterKey.generate().to_text())
    monkeypatch.setenv(CLUSTER_VARIABLE, name)
    return name


@contextmanager
def joined(*options: str, key: str | None = None) -> Iterator[subprocess.Popen[str]]:
    environment = os.environ if key is None else {**os.environ, KEY_VARIABLE: key}
    process = subprocess.Popen(
        [*COMMAND, "join", *options], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.communicate(timeout=TIMEOUT_S)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=TIMEOUT_S)


def status(*options: str) -> list[Node]:
    """What `p2pscoop status` lists; nothing if it finds nobody."""
    done = run("status", "--json", *(options or ("--interface", LOOPBACK)))
    return list(json.loads(done.stdout)["nodes"]) if done.returncode == 0 else []


def alive(nodes: list[Node]) -> list[Node]:
    return [node for node in nodes if node["state"] == "alive"]


def test_nodes_find_each_other_and_programs_find_them(monkeypatch: pytest.MonkeyPatch) -> None:
    with joined("--interface", LOOPBACK, "-n", "1"), joined("--listen", LOOPBACK, "-n", "2"):
        eventually(lambda: len(alive(status())) == 3)
        with Executor(3, seed=f"mdns:{LOOPBACK}") as executor:
            eventually(lambda: executor.submit(pow, 2, 3).result() == 8 and executor._max_workers == 3)
        monkeypatch.setenv(SEED_VARIABLE, f"mdns:{LOOPBACK}")
        with Executor() as executor:
            assert list(executor.map(pow, range(9), [2] * 9)) == [x * x for x in range(9)]


def test_status_lists_nodes_and_programs_and_leave_has_one_go() -> None:
    with joined("--listen", LOOPBACK, "-n", "2") as process:
        eventually(lambda: len(alive(status())) == 2)
        name = f"j{process.pid}.2"
        with Executor(seed=f"mdns:{LOOPBACK}") as executor:
            assert executor.submit(pow, 2, 3).result() == 8
            nodes = status()
            assert {(node["state"], node["version"], node["incarnation"]) for node in nodes} == {
                ("alive", nodes[0]["version"], 0)
            }
            assert [node["name"] for node in nodes if node["origin"]] == ["executor"]
            assert sum(node["tasks_done"] for node in nodes) == 1
            assert all(re.fullmatch(r"[0-9a-f]{16}", node["id"]) for node in nodes)
            assert next(node["pid"] for node in nodes if node["origin"]) == os.getpid()

            address = next(node["address"] for node in nodes if node["name"] == name)
            assert {node["id"] for node in status("--seed", address)} == {node["id"] for node in nodes}
            table = run("status", "--seed", address).stdout.splitlines()
            assert len(table) == 4
            assert table[0].split()[:3] == ["name", "host", "pid"]

            done = run("leave", "executor", "--interface", LOOPBACK)
            assert done.returncode == 1
            assert "is the process of a program" in done.stderr
            done = run("leave", "j1.99", "--interface", LOOPBACK)
            assert done.returncode == 1
            assert "there is no node 'j1.99'" in done.stderr
            assert name in done.stderr
        done = run("leave", name, "--interface", LOOPBACK)
        assert done.returncode == 0, done.stderr
        assert f"{name} on" in done.stderr
        states = {node["name"]: node["state"] for node in status()}
        assert states[name] == "left"
        assert states[f"j{process.pid}.1"] == "alive"
        assert process.poll() is None


def test_a_busy_node_finishes_before_it_leaves(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with joined("--listen", LOOPBACK, "-n", "1"):
        eventually(lambda: alive(status()))
        with Executor(seed=f"mdns:{LOOPBACK}") as executor:
            call = executor.submit(wait_for, gate)
            eventually((tmp_path / "gate.begun").exists)
            command = [
                *COMMAND,
                "leave",
                next(node["id"][:6] for node in status() if not node["origin"]),
                "--interface",
                LOOPBACK,
            ]
            process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
            assert process.stderr is not None
            assert "finishes the tasks" in process.stderr.readline()
            assert not call.done()
            gate.touch()
            assert call.result() == "passed"
            _, err = process.communicate(timeout=TIMEOUT_S)
            assert process.returncode == 0, err
            assert "is gone" in err


def wait_for(gate: Path) -> str:
    gate.with_suffix(".begun").touch()
    eventually(gate.exists, within_s=TIMEOUT_S)
    return "passed"


def test_clusters_of_one_name_with_different_keys_say_so_on_both_sides() -> None:
    with joined("--listen", LOOPBACK, "-n", "1") as one:
        eventually(lambda: len(alive(status())) == 1)
        with joined("--listen", LOOPBACK, "-n", "1", key=ClusterKey.generate().to_text()) as other:
            for process in (one, other):
                assert process.stderr is not None
                assert "another key" in process.stderr.readline()
            assert len(alive(status())) == 1


def test_nobody_is_there() -> None:
    done = run("status", "--interface", LOOPBACK)
    assert done.returncode == 1
    assert "no node of a cluster" in done.stderr
    done = run("join", "--interface", "eth0")
    assert done.returncode == 2
    assert "no IP address" in done.stderr
    done = run("join", "--interface", "192.0.2.77")
    assert done.returncode == 2
    assert "no interface of this machine has the address" in done.stderr


# -------------------------------------------------------------------------------------------- hints


def test_a_hint_is_tried_a_few_times_and_forgotten() -> None:
    in_vain: list[tuple[str, ...]] = []
    hints = Hints(lambda addresses: in_vain.append(tuple(addresses)))
    hints.add(0.0, b"1", ["a", "b"])
    hints.add(0.0, b"2", ["c"])
    now, greeted = 0.0, []
    while not in_vain:
        greeted += hints.due(now, lambda node: node == b"2")
        assert hints.wake_at > now
        now = min(hints.wake_at, now + 1000)
    assert greeted == ["a", "b", "a", "b"]
    assert in_vain == [("a", "b")]
    assert hints.wake_at == float("inf")


def test_forged_hints_are_bounded_and_the_newest_come_first() -> None:
    hints = Hints(lambda addresses: None)
    for number in range(10_000):
        hints.add(0.0, number.to_bytes(8, "big"), [f"place {number}"])
    first = hints.due(0.0, lambda node: False)
    assert first[0] == "place 9999"
    assert len(first) == 16
    assert len(hints._hints) == 256
    assert hints.wake_at > 0


# ------------------------------------------------------------------------------- several machines

PROGRAM = """
    import sys, uts
    from p2pscoop import futures

    children = uts.geometric(4.0, 7)
    visit = uts.searcher(children)
    print("ready", flush=True)
    for line in sys.stdin:
        counts = [futures.submit(visit, uts.root_of(seed), 0) for seed in map(int, line.split())]
        print(*[count.result()[0] for count in counts], flush=True)
"""

# Everything that somebody without the key can do, again and again, until its input ends. Bounded in rate.
INTRUDER = """
    import os, random, select, socket, sys, time
    import pynng
    from p2pscoop._security import ClusterKey
    from p2pscoop._transport import tls_config

    cluster, *places = sys.argv[1:]
    from p2pscoop._discovery import Discovery

    def forge(port, *hosts):
        node, own = os.urandom(8), ["10.213.9.3"]
        return Discovery(cluster, node, lambda *_: None, hosts=hosts, port=port, interfaces=own)

    # A node that does not exist, and a member's address under another name.
    forged = [forge(9, "10.213.9.3"), forge(int(places[0].split(":")[1]), "10.213.9.1", "10.213.9.2")]
    rng, held, tried = random.Random(1), [], 0
    print("ready", flush=True)
    while not select.select([sys.stdin], [], [], 0.02)[0]:
        host, port = rng.choice(places).split(":")
        tried += 1
        try:
            kind = tried % 4
            if kind == 3:
                with pynng.Push0(send_timeout=100) as push:
                    scheme = rng.choice(["tcp", "tls+tcp"])
                    config = tls_config([ClusterKey.generate()], listens=False)
                    if scheme == "tls+tcp":
                        push.tls_config = config
                    push.dial(f"{scheme}://{host}:{port}", block=False)
                    push.send(os.urandom(100))
                continue
            connection = socket.create_connection((host, int(port)), timeout=1)
            if kind == 0:
                connection.sendall(os.urandom(rng.randrange(1, 3000)))
                connection.close()
            elif kind == 1:
                connection.sendall(b"\\0SP\\0\\0\\x50\\0\\0" + b"\\xff" * 8)
                connection.close()
            else:
                held.append(connection)
                if len(held) > 50:
                    held.pop(0).close()
        except (OSError, pynng.NNGException):
            pass
    for each in forged:
        each.close()
    print(tried)
"""


def here(machines: Machines, name: str, *arguments: str, key: str | None = None) -> subprocess.Popen[str]:
    environment = os.environ if key is None else {**os.environ, KEY_VARIABLE: key}
    return machines.run(name, *COMMAND, *arguments, environment=environment)


def seen_by(machines: Machines, name: str) -> list[Node]:
    process = here(machines, name, "status", "--json")
    out, _ = process.communicate(timeout=TIMEOUT_S)
    return list(json.loads(out)["nodes"]) if process.returncode == 0 else []


def say(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def hear(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


@needs_root
@pytest.mark.timeout(240)
def test_two_machines_find_each_other_and_bear_an_intruder_and_losses(
    machines: Machines, cluster: str, tmp_path: Path
) -> None:
    near, far, outside = (machines.add(index) for index in (1, 2, 3))
    for name in (near, far, outside):
        machines.route_multicast(name)
    joins = [here(machines, name, "join", "-n", "3") for name in (near, far)]
    eventually(lambda: len(alive(seen_by(machines, far))) == 6, within_s=30)
    nodes = seen_by(machines, far)
    places = [node["address"] for node in nodes]
    assert {place.partition(":")[0] for place in places} == {"10.213.9.1", "10.213.9.2"}

    intruder = machines.start(outside, INTRUDER, cluster, *places)
    assert hear(intruder) == "ready\n"
    strange = here(machines, outside, "join", "-n", "1", key=ClusterKey.generate().to_text())

    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM))
    (tmp_path / "uts.py").write_text((EXAMPLES / "uts.py").read_text())
    environment = {**os.environ, SEED_VARIABLE: "mdns"}
    work = machines.run(far, sys.executable, str(program), environment=environment)
    assert hear(work) == "ready\n"

    def count(during: Callable[[], object] = lambda: None) -> None:
        seeds = [19, 20, 21, 22]
        say(work, " ".join(map(str, seeds)))
        during()
        assert [int(word) for word in hear(work).split()] == [counted(seed) for seed in seeds]

    count()
    # The first node of the near machine, which all others were told of. Another takes its place.
    [first] = [node for node in nodes if node["name"] == f"j{joins[0].pid}.1"]
    count(lambda: os.kill(first["pid"], signal.SIGKILL))
    eventually(
        lambda: len([node for node in alive(seen_by(machines, far)) if not node["origin"]]) == 6, within_s=30
    )
    done = seen_by(machines, far)
    assert sum(node["tasks_done"] or 0 for node in done if node["address"].startswith("10.213.9.1")) > 0

    count(lambda: machines.cut(near))
    assert {node["address"].partition(":")[0] for node in alive(seen_by(machines, far))} == {"10.213.9.2"}
    count()

    say(intruder, "")
    assert int(hear(intruder)) > 0
    assert {node["version"] for node in seen_by(machines, far)} == {nodes[0]["version"]}
    assert not [node for node in seen_by(machines, far) if node["address"].startswith("10.213.9.3")]
    assert strange.poll() is None
    assert work.stdin is not None
    work.stdin.close()
    assert work.wait(TIMEOUT_S) == 0
    for process in (*joins, strange):
        process.send_signal(signal.SIGTERM)
    for process in (*joins, strange):
        process.wait(TIMEOUT_S)


def counted(seed: int, known: dict[int, int] = {}) -> int:  # noqa: B006
    """The size of a tree, by a serial search."""
    if seed not in known:
        sys.path.insert(0, str(EXAMPLES))
        try:
            import uts
        finally:
            sys.path.remove(str(EXAMPLES))
        known[seed] = uts.serial(uts.geometric(4.0, 7), uts.root_of(seed))[0]
    return known[seed]


@needs_root
def test_a_node_that_others_do_not_reach_is_told_on_both_sides(machines: Machines) -> None:
    near, far = (machines.add(index) for index in (1, 2))
    founder = here(machines, near, "join", "--listen", "10.213.9.1:7714", "-n", "1")
    hidden = here(machines, far, "join", "--seed", "10.213.9.1:7714", "--listen", LOOPBACK, "-n", "1")
    assert hidden.stderr is not None
    assert "or does not reach this machine" in hidden.stderr.readline()
    assert founder.stderr is not None
    line = next(line for line in founder.stderr if "looking for others" not in line)
    assert "reaches this node, and is not reached from here at 127.0.0.1:" in line
    for process in (hidden, founder):
        process.send_signal(signal.SIGINT)
    for process in (hidden, founder):
        process.wait(TIMEOUT_S)
