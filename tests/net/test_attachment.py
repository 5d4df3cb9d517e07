"""Programs that use a standing cluster, one after the other and at once."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.conftest import TIMEOUT_S, Script, eventually

from p2pscoop import Executor, futures
from p2pscoop._attachment import SEED_VARIABLE, attachment
from p2pscoop._security import CLUSTER_VARIABLE, KEY_VARIABLE, ClusterKey
from p2pscoop._sources import is_within
from p2pscoop.errors import ConfigurationError, InitializerError, JoinRefusedError, StartError

WriteScript = Callable[..., Script]


class Cluster(NamedTuple):
    seed: str
    founder: subprocess.Popen[str]
    others: subprocess.Popen[str]


def join(*options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "p2pscoop", "join", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A founder with one node, and two nodes that joined it."""
    monkeypatch.setenv(KEY_VARIABLE, ClusterKey.generate().to_text())
    monkeypatch.setenv(CLUSTER_VARIABLE, "standing")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        seed = f"127.0.0.1:{probe.getsockname()[1]}"
    started = [join("--listen", seed, "-n", "1"), join("--seed", seed, "-n", "2")]
    yield Cluster(seed, *started)
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        if process.stderr is not None and not process.stderr.closed:
            process.communicate(timeout=TIMEOUT_S)


def pid_after(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def test_an_executor_uses_the_nodes_that_are_there(cluster: Cluster) -> None:
    with Executor(seed=cluster.seed) as executor:
        pids: set[int] = set()
        eventually(lambda: len(pids) == 3 or pids.update(executor.map(pid_after, [0.01] * 30)))
        assert os.getpid() not in pids
        assert executor._max_workers == 3
    # Its end is not that of the cluster; the next one finds the same nodes.
    with Executor(seed=[cluster.seed]) as executor:
        assert set(executor.map(pid_after, [0.01] * 30)) <= pids
    assert cluster.founder.poll() is None
    assert cluster.others.poll() is None


def test_programs_at_once_do_not_see_each_other(cluster: Cluster) -> None:
    with Executor(seed=cluster.seed) as one, Executor(seed=cluster.seed) as other:
        first = one.map(pow, range(300), [2] * 300)
        second = other.map(pow, range(300), [3] * 300)
        assert list(second) == [x**3 for x in range(300)]
        assert list(first) == [x**2 for x in range(300)]


def test_the_seed_may_die_when_the_program_is_in(cluster: Cluster) -> None:
    with Executor(seed=cluster.seed) as executor:
        eventually(lambda: executor.submit(pid_after, 0).result() and executor._max_workers == 3)
        calls = [executor.submit(pid_after, 0.05) for _ in range(60)]
        cluster.founder.kill()
        assert len([call.result() for call in calls]) == 60
        eventually(lambda: executor._max_workers == 2)
        assert executor.submit(pow, 2, 5).result() == 32


SCRIPT = """
    import os, sys
    import p2pscoop, helper
    from p2pscoop import futures, shared

    def fib(n):
        return n if n < 2 else futures.submit(fib, n - 1).result() + futures.submit(fib, n - 2).result()

    def work(x):
        return helper.VALUE * x + shared.get_const("offset"), os.getcwd(), *sys.argv[1:]

    shared.set_const(offset=int(sys.argv[1]))
    print(set(futures.map(work, [1] * 200)))
    print(fib(15))
"""


def test_scripts_bring_their_own_modules_constants_and_arguments(
    cluster: Cluster, script: WriteScript, tmp_path: Path
) -> None:
    program = script(SCRIPT)
    helper = program.path.parent / "helper.py"
    environment = {**os.environ, SEED_VARIABLE: cluster.seed}
    for value, offset in ((7, 1), (8, 100)):
        # The module changes between two runs on the same nodes.
        helper.write_text(f"VALUE = {value}\n")
        done = subprocess.run(
            [*program.command(), str(offset)],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        seen, fib = done.stdout.splitlines()
        # The program's own process, too, ran some of them.
        assert seen == repr({(value + offset, str(tmp_path), str(offset))})
        assert fib == "610"


def fail() -> None:
    raise ValueError("not today")


def test_an_initializer_that_fails_harms_neither_the_cluster_nor_other_programs(cluster: Cluster) -> None:
    with Executor(seed=cluster.seed) as good:
        assert good.submit(pow, 2, 3).result() == 8
        with (
            Executor(seed=cluster.seed, initializer=fail) as bad,
            pytest.raises(InitializerError, match="not today"),
        ):
            bad.submit(pow, 2, 3).result()
        assert list(good.map(pow, range(100), [2] * 100)) == [x**2 for x in range(100)]
        eventually(lambda: good._max_workers == 3)


def test_what_can_be_wrong(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="'nowhere' is not HOST:PORT"):
        Executor(seed="nowhere")
    with pytest.raises(ConfigurationError, match="give seed or listen as well"):
        Executor(key=ClusterKey.generate().to_text())
    with pytest.raises(ConfigurationError, match="is no key"):
        Executor(seed=cluster.seed, key="hunter2")
    with pytest.raises(ConfigurationError, match=r"'no\.such\.invalid' is not the name"):
        attachment("no.such.invalid:1", None)
    with Executor(seed=cluster.seed) as executor:
        assert executor.submit(pow, 2, 3).result() == 8
    monkeypatch.setattr("p2pscoop.executor.JOIN_S", 1.0)
    with pytest.raises(StartError, match="another key"):
        Executor(seed=cluster.seed, key=ClusterKey.generate().to_text()).submit(pow, 2, 3)
    with pytest.raises(StartError, match=r"nobody listens at 127\.0\.0\.1:1"):
        Executor(seed="127.0.0.1:1").submit(pow, 2, 3)
    monkeypatch.setenv(CLUSTER_VARIABLE, "another")
    with pytest.raises(JoinRefusedError, match="this is another cluster"):
        Executor(seed=cluster.seed).submit(pow, 2, 3)


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def test_nodes_join_an_executor_that_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    key, address = ClusterKey.generate().to_text(), free_address()
    monkeypatch.setenv(KEY_VARIABLE, key)
    with Executor(1, listen=address) as executor:
        first = executor.submit(os.getpid).result()
        joined = join("--seed", address, "-n", "2")
        pids: set[int] = set()
        eventually(lambda: len(pids) == 3 or pids.update(executor.map(pid_after, [0.01] * 30)))
        assert executor._max_workers == 3
        assert first in pids
        # The key may be given, and must be the same.
        monkeypatch.delenv(KEY_VARIABLE)
        with Executor(seed=address, key=key) as other:
            assert other.submit(pow, 2, 5).result() == 32
    _, said = joined.communicate(timeout=TIMEOUT_S)
    assert (joined.returncode, said) == (0, "p2pscoop: the computation has ended\n")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"listen": "127.0.0.1"}, ConfigurationError, "listen: '127.0.0.1' is not HOST:PORT"),
        ({"listen": "127.0.0.1:0"}, ConfigurationError, "listen: '127.0.0.1:0' is not HOST:PORT"),
        ({"listen": "0.0.0.0:7700"}, ConfigurationError, "listen: 0.0.0.0 stands for all interfaces"),
        ({"listen": "no.such.invalid:7700"}, ConfigurationError, "'no.such.invalid' is not the name or address"),
        ({"listen": 7700}, TypeError, "listen must be a text such as 192.0.2.1:7700, not int"),
        ({"listen": "127.0.0.1:7700", "seed": "127.0.0.1:7701"}, ConfigurationError, "leave one of them out"),
        ({"listen": "127.0.0.1:7700", "key": "nonsense"}, ConfigurationError, "key"),
    ],
)
def test_where_it_cannot_listen(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, object], error: type[Exception], message: str
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, ClusterKey.generate().to_text())
    with pytest.raises(error, match=message):
        Executor(1, **options)


def test_what_an_executor_that_listens_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"there is no key of the cluster 'default' .*p2pscoop keygen"):
        Executor(1, listen="127.0.0.1:7700")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with (
            Executor(1, listen=address, key=ClusterKey.generate().to_text()) as executor,
            pytest.raises(StartError, match=address),
        ):
            executor.submit(abs, 1)


@pytest.mark.parametrize(
    ("file", "is_own"),
    [
        ("/home/u/project/helper.py", True),
        ("/home/u/project/package/part/module.py", True),
        ("/home/u/.python/lib/json/decoder.py", False),
        ("/home/u/project/env/lib/site-packages/numpy/core.py", False),
        ("/home/u/project/src/library/module.py", False),
        ("/usr/lib/python3/json/decoder.py", False),
    ],
)
def test_what_lies_within_a_programs_directory_need_not_be_its_own(file: str, is_own: bool) -> None:
    own = {"/home/u/project", "/home/u"}
    assert is_within(file, own, ["/home/u/.python/lib", "/home/u/project/src"]) is is_own


def nap(_: int) -> None:
    time.sleep(0.005)


def tree(depth: int) -> list[int]:
    """Where its leaves were run."""
    if depth == 0:
        time.sleep(0.002)
        return [os.getpid()]
    branches = [futures.submit(tree, depth - 1) for _ in range(4)]
    return [place for branch in branches for place in branch.result()]


ENDLESS = """
    import time
    from p2pscoop import Executor, futures

    def spin():
        while True:
            time.sleep(0.1)

    def tree(depth):
        if depth == 0:
            time.sleep(0.002)
        else:
            for branch in [futures.submit(tree, depth - 1) for _ in range(4)]:
                branch.result()

    with Executor() as executor:
        executor.submit(tree, 20)
        executor.submit(spin)
        while min((each.executed for each in executor.statistics() if each.name != "executor"), default=0) < 1:
            time.sleep(0.1)
        print("everywhere", flush=True)
        time.sleep(1000)
"""


def test_a_program_that_is_killed_leaves_nothing_running(cluster: Cluster, script: WriteScript) -> None:
    program = script(ENDLESS)
    environment = {**os.environ, SEED_VARIABLE: cluster.seed}
    process = subprocess.Popen(program.command(), env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "everywhere\n"
    process.kill()
    process.communicate()
    with Executor(seed=cluster.seed) as executor:
        pids: set[int] = set()
        eventually(lambda: len(pids) == 3 or pids.update(executor.map(pid_after, [0.01] * 30)))
    # Nobody has to wait for what is left of it.
    for each in (cluster.others, cluster.founder):
        each.send_signal(signal.SIGTERM)
        _, err = each.communicate(timeout=TIMEOUT_S)
        assert each.returncode == 0
        assert "stopping now" not in err


@pytest.fixture
def many_nodes(cluster: Cluster) -> Iterator[str]:
    """The cluster with six nodes."""
    more = join("--seed", cluster.seed, "-n", "3")
    with Executor(seed=cluster.seed) as executor:
        eventually(lambda: executor.submit(pid_after, 0).result() and executor._max_workers == 6)
    yield cluster.seed
    more.send_signal(signal.SIGTERM)
    more.communicate(timeout=TIMEOUT_S)


def test_a_program_that_comes_later_gets_its_share(many_nodes: str) -> None:
    with Executor(seed=many_nodes) as first, Executor(seed=many_nodes) as second:
        calls = [first.submit(nap, number) for number in range(6000)]
        eventually(lambda: sum(call.done() for call in calls) > 300)
        before = sum(call.done() for call in calls)
        for call in [second.submit(nap, number) for number in range(600)]:
            call.result()
        meanwhile = sum(call.done() for call in calls) - before
        # The same number if all is fair; five times as many if whoever has the nodes keeps them.
        assert meanwhile < 2.5 * 600
        first.shutdown(cancel_futures=True)


def test_tasks_that_spawn_leave_room_for_another_program(many_nodes: str) -> None:
    with Executor(seed=many_nodes) as first, Executor(seed=many_nodes) as second:
        large = first.submit(tree, 7)
        # When all nodes have something of it.
        eventually(lambda: sum(each.executed > 20 for each in first.statistics()) == 6)
        places = second.submit(tree, 5).result()
        assert not large.done()
        assert len(places) == 1024
        assert len(set(places)) >= 4
        large.cancel(running=True)
