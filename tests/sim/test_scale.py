"""Many core nodes in virtual time: nothing is lost, all have work, and idle ones are quiet."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest
from click.testing import CliRunner

from p2pscoop.testing._scale import Cluster, Measured, UtsTree
from p2pscoop.testing.scale import main

TREE = UtsTree(7)


@pytest.fixture(scope="module")
def lan() -> Measured:
    return Cluster(64, 0.0001, TREE).run()


def test_the_whole_tree_is_counted(lan: Measured) -> None:
    """The known size; that each task was run once is checked by the run itself."""
    assert lan.tasks == TREE.size() == 63_914


def test_64_nodes_are_at_work_most_of_the_time(lan: Measured) -> None:
    assert lan.efficiency > 0.9
    assert lan.steals > lan.failed > 0
    assert lan.given > 64


def test_idle_nodes_are_quiet(lan: Measured) -> None:
    """Renewals and gossip are all that they say, and they do say it."""
    assert 0.2 < lan.idle_mean <= 1.0
    assert lan.idle_max < 2.0


def test_idleness_costs_the_same_in_a_cluster_of_any_size(lan: Measured) -> None:
    few = Cluster(4, 0.0001, UtsTree(3)).run()
    assert lan.idle_mean < 1.5 * few.idle_mean


def test_the_width_of_an_ocean_costs_efficiency_and_no_task(lan: Measured) -> None:
    wan = Cluster(64, 0.02, TREE, idle_s=0.1).run()
    assert wan.tasks == lan.tasks
    assert 0.2 < wan.efficiency < lan.efficiency


def test_a_seed_repeats_its_run() -> None:
    first, second = (Cluster(16, 0.001, UtsTree(5), idle_s=1.0, seed=3).run() for _ in range(2))
    assert first == second


def test_the_command_prints_a_table_and_draws_it(tmp_path) -> None:
    path = tmp_path / "scale.svg"
    options = ["--nodes", "4", "--nodes", "8", "--latency-ms", "1", "--depth", "4", "--idle-s", "1", "--plot"]
    done = CliRunner().invoke(main, [*options, str(path)], catch_exceptions=False)
    assert done.exit_code == 0
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")][2:]
    assert [row[0] for row in rows] == ["| 4", "| 8"]
    assert rows[0][2] == f"{UtsTree(4).size():,}"
    assert ET.parse(path).getroot().tag.endswith("svg")
