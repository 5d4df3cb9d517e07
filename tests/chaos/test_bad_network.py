"""Messages between real nodes are lost, repeated, late or cut; what they compute is exact all the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.chaos.faulty_transport import install
from tests.conftest import Script

WriteScript = Callable[..., Script]

PROGRAM = """
    import json, os, time
    import p2pscoop
    from p2pscoop import futures

    def fib(n):
        if n < 2:
            return n
        a, b = futures.submit(fib, n - 1), futures.submit(fib, n - 2)
        return a.result() + b.result()

    async def tree(depth):
        if depth == 0:
            time.sleep(0.01)
            return 1
        return sum(await futures.gather(*(futures.submit(tree, depth - 1) for _ in range(4))))

    def large(x):
        time.sleep(0.01)
        return bytes([x]) * 100_000

    futures.submit(fib, 1).result()
    while p2pscoop._session._session.home.size() < 3:
        time.sleep(0.01)
    results = futures.map(large, range(60)), futures.submit(fib, 20), futures.submit(tree, 4)
    exact = (
        list(results[0]) == [bytes([x]) * 100_000 for x in range(60)],
        results[1].result() == 6765,
        results[2].result() == 256,
    )
    os.unlink(os.environ["P2PSCOOP_TEST_FAULTS"])
    # What was under way when it became calm may still be.
    while len(rows := p2pscoop.statistics()) < 3:
        time.sleep(0.01)
    print(json.dumps([exact, [each.executed for each in rows], sum(each.requeued for each in rows)]))
"""
TASKS = 1 + 60 + 21_891 + 341


@pytest.mark.parametrize(
    "faults",
    [
        {"loss": 0.1},
        {"duplication": 0.5, "delay_s": 0.05},
        {"truncation": 0.1},
        {"loss": 0.1, "duplication": 0.3, "delay_s": 0.02, "truncation": 0.05},
    ],
    ids=["lost", "repeated and late", "cut", "all of it"],
)
def test_nothing_is_lost_and_nothing_runs_twice(
    script: WriteScript, tmp_path: Path, faults: dict[str, float]
) -> None:
    done = script(PROGRAM).run(nodes=3, env=install(tmp_path, **faults))
    assert done.returncode == 0, done.stderr
    exact, executed, requeued = json.loads(done.stdout)
    assert exact == [True, True, True]
    assert sum(executed) == TASKS
    assert requeued == 0
    assert max(executed) < TASKS, "nothing was stolen, so nothing was tried"
    # What does not decode is said, and nothing else is.
    said = done.stderr.splitlines()
    assert all("dropped a message" in line for line in said), done.stderr
    assert bool(said) == ("truncation" in faults)
