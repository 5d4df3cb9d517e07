"""The examples agree with their serial runs, and with themselves, on any number of nodes."""

from __future__ import annotations

import re

import pytest
from tests.conftest import REPOSITORY, Script

EXAMPLES = REPOSITORY / "docs" / "examples"


def run(name: str, *arguments: str, nodes: int) -> str:
    done = Script(EXAMPLES / name).run(*arguments, nodes=nodes)
    assert done.returncode == 0, done.stderr
    return done.stdout


def executed(out: str) -> list[int]:
    return [int(count) for count in re.findall(r"^\w+: (?:executed|ran) (\d+)", out, re.MULTILINE)]


@pytest.mark.parametrize("nodes", [1, 2, 5])
def test_the_genetic_algorithm_finds_what_a_serial_run_finds(nodes: int) -> None:
    out = run("digits_ga.py", "--population", "6", "--generations", "1", "--folds", "3", "--check", nodes=nodes)
    assert "the serial run finds the same" in out
    # 6 individuals, then 3 children, each with 3 folds.
    assert sum(executed(out)) == 9 * (1 + 3)
    assert len(executed(out)) == nodes


@pytest.mark.parametrize("nodes", [1, 2, 5])
@pytest.mark.parametrize(
    ("tree", "counts"),
    [
        # Counts of the serial search of this file, which gives the published ones for T1 and T3.
        (
            ("--shape", "geometric", "--b0", "4", "--depth", "6", "--seed", "19"),
            "nodes 16000  leaves 12839  depth 6",
        ),
        (
            ("--shape", "binomial", "--b0", "200", "--q", "0.12", "--m", "8", "--seed", "42"),
            "nodes 4649  leaves 4092  depth 62",
        ),
    ],
)
@pytest.mark.parametrize("kind", [(), ("--coroutines",)], ids=["functions", "coroutines"])
def test_trees_are_counted_right(tree: tuple[str, ...], counts: str, nodes: int, kind: tuple[str, ...]) -> None:
    out = run("uts.py", *tree, *kind, "--check", nodes=nodes)
    assert out.startswith(counts)
    assert sum(executed(out)) == int(counts.split()[1])


def test_pi_has_the_same_digits_on_any_number_of_nodes() -> None:
    outs = [run("pi.py", "--tasks", "40", "--darts", "2000", nodes=nodes) for nodes in (1, 2, 5)]
    digits = {re.match(r"pi is about ([\d.]+)", out)[1] for out in outs}  # type: ignore[index]
    assert len(digits) == 1
    assert [sum(executed(out)) for out in outs] == [40, 40, 40]
