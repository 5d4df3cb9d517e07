"""Many seeds of the simulator: no guarantee breaks, and nothing is run twice unless something failed."""

from __future__ import annotations

import pytest

from p2pscoop.testing import Faults, InvariantError, Report, run_seed

SEEDS = 2000
"""Per run of the tests; campaigns take more (docs/faults.md)."""

CHUNK = 250


def run(seed: int, faults: Faults | None = None, vouching: bool | None = None) -> Report:
    """One seed; if it fails, the command that repeats it."""
    try:
        return run_seed(seed, faults=faults, vouching=vouching)
    except InvariantError as error:
        raise AssertionError(f"{error}\nagain with: python -m p2pscoop.testing --seed {seed} --trace") from error


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_no_seed_breaks_a_guarantee(first: int) -> None:
    """Faults, graph and number of nodes are drawn from each seed."""
    reports = [run(seed) for seed in range(first, first + CHUNK)]
    # The faults were not so rare that nothing happened.
    assert sum(report.kills for report in reports) > 50
    assert sum(report.lost for report in reports) > 100
    assert sum(report.given for report in reports) > 1000


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param(Faults(), id="no faults"),
        pytest.param(Faults(duplication=0.5), id="duplication"),
        pytest.param(Faults(slow=0.1, slow_s=1.0, jitter_s=0.05), id="delays below the lease"),
        pytest.param(Faults(loss=0.02), id="some loss"),
        pytest.param(Faults(joins=4), id="joins"),
        pytest.param(Faults(leaves=4), id="drained leaves"),
        pytest.param(Faults(leaves=3, joins=3, duplication=0.3, jitter_s=0.02), id="replacement"),
        pytest.param(Faults(pauses=3, pause_s=1.0), id="pauses below the lease"),
        pytest.param(Faults(holds=3, pause_s=1.0), id="GIL held below the lease"),
        pytest.param(Faults(slow_nodes=3), id="slow nodes"),
    ],
)
def test_nothing_is_run_twice_unless_a_node_or_a_lease_is_lost(faults: Faults) -> None:
    for seed in range(60):
        report = run(seed, faults)
        assert report.executions == report.tasks, f"seed {seed}"
        # What was offered to a node that left in the same moment comes home without having been run.
        assert report.requeued == 0 or report.left > 0, f"seed {seed}"


def test_what_a_node_holds_that_is_silent_and_lives_is_not_run_again() -> None:
    """For longer than a lease; where nobody knows that it lives, it is."""
    silent = Faults(holds=4, pauses=2, pause_s=100.0, busy=20.0)
    told = [run(seed, silent, vouching=True) for seed in range(40)]
    assert all(report.executions == report.tasks for report in told)
    assert sum(report.requeued for report in told) == 0
    assert sum(run(seed, silent, vouching=False).requeued for seed in range(120)) > 0


def test_the_death_of_the_origin_ends_all_its_work() -> None:
    reports = [run(seed, Faults(origin_dies=True, loss=0.1, duplication=0.1, busy=3.0)) for seed in range(60)]
    assert sum(report.kills for report in reports) > 30, "in the others the program had ended before"


def test_all_but_the_origin_may_die() -> None:
    for seed in range(60):
        run(seed, Faults(kills=8, restarts=False, busy=3.0))


def test_every_node_but_the_origin_is_replaced_without_running_anything_twice() -> None:
    left = 0
    for seed in range(30):
        report = run(seed, Faults(leaves=7, joins=7, busy=3.0))
        assert report.executions == report.tasks, f"seed {seed}"
        left += report.left
    assert left > 30


def test_a_poison_task_is_given_up_and_harms_no_other() -> None:
    """The simulator complains if an innocent task is taken for poison."""
    reports = [run(seed, Faults(poison=True, busy=5.0)) for seed in range(100)]
    assert sum(report.poisoned for report in reports) > 5
    assert sum(report.kills for report in reports) > 100


@pytest.mark.parametrize(
    "seed",
    [
        pytest.param(822, id="a continuation bounces to an owner that dies (Race 6)"),
        pytest.param(110_231, id="an owner that is not known where its task is (Race 9)"),
        pytest.param(514_317, id="a holder that has nothing to say counts as silent (Race 12)"),
    ],
)
def test_seeds_that_failed_once(seed: int) -> None:
    run(seed)


def test_a_seed_repeats_its_run() -> None:
    first: list[str] = []
    second: list[str] = []
    run_seed(11, nodes=5, trace=first.append)
    run_seed(11, nodes=5, trace=second.append)
    assert first
    assert first == second
