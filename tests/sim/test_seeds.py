"""Whole clusters in virtual time: every seed is a program, a cluster and its faults."""

from __future__ import annotations

import pytest

from p2pscoop._core.limits import Limits
from p2pscoop.testing import Faults, Report, Simulator, run_seed
from p2pscoop.testing._graphs import Fib, Flat, Graph, Tree

SEEDS = 2000
SLICES = 20
GRAPHS: list[Graph] = [Fib(), Flat(), Tree(seed=10)]


@pytest.mark.parametrize("part", range(SLICES))
def test_every_seed_keeps_the_guarantees(part: int) -> None:
    # An InvariantError names its seed, with which `python -m p2pscoop.testing --seed N --trace` repeats it.
    for seed in range(part, SEEDS, SLICES):
        run_seed(seed)


def test_faults_do_happen() -> None:
    reports = [run_seed(seed) for seed in range(60)]
    for name in ("lost", "duplicated", "kills", "given", "requeued", "migrated", "kept", "reexecutions"):
        assert sum(getattr(report, name) for report in reports) > 0, name


def test_a_seed_repeats_itself() -> None:
    def trace(seed: int) -> list[str]:
        lines: list[str] = []
        run_seed(seed, trace=lines.append)
        return lines

    assert trace(11) == trace(11) != trace(12)


def run(graph: Graph, seed: int, faults: Faults, *, coroutines: bool = True) -> Report:
    return Simulator(graph, nodes=6, seed=seed, faults=faults, coroutines=coroutines).run()


@pytest.mark.parametrize("coroutines", [False, True])
@pytest.mark.parametrize("graph", GRAPHS, ids=["fib", "flat", "tree"])
@pytest.mark.parametrize(
    "faults",
    [Faults(), Faults(duplication=0.5), Faults(jitter_s=0.05), Faults(slow=0.05, slow_s=Limits().lease_s / 4)],
    ids=["no faults", "duplication", "disorder", "delays below the lease"],
)
def test_nothing_runs_twice_unless_something_is_lost(graph: Graph, faults: Faults, coroutines: bool) -> None:
    reports = [run(graph, seed, faults, coroutines=coroutines) for seed in range(15)]
    assert sum(report.reexecutions for report in reports) == 0
    assert sum(report.given for report in reports) > 0


def test_continuations_go_on_elsewhere_without_running_twice() -> None:
    reports = [run(Tree(seed=seed), seed, Faults()) for seed in range(30)]
    assert sum(report.migrated for report in reports) > 0
    assert all(report.executions == report.tasks for report in reports)


def test_work_spreads() -> None:
    """Six nodes take at most a third of the time of one."""
    alone = Simulator(Flat(width=300), nodes=1, seed=1, faults=Faults()).run()
    together = Simulator(Flat(width=300), nodes=6, seed=1, faults=Faults()).run()
    assert together.seconds < alone.seconds / 3


def test_a_bounced_task_whose_owner_does_not_answer_is_not_queued() -> None:
    """It once was queued at the node that had just found out that it cannot run it."""
    run_seed(822)
