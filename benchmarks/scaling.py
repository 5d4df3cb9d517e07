"""What a second node gains on an unbalanced tree, against what a second process gains that shares nothing."""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks.common import Result, report, result

UTS = Path(__file__).parent.parent / "docs" / "examples" / "uts.py"
TREES = {
    "T1 with depth 9": ["--shape", "geometric", "--b0", "4", "--depth", "9", "--seed", "19"],
    "T3": ["--shape", "binomial", "--b0", "2000", "--q", "0.124875", "--m", "8", "--seed", "42"],
}


def start(nodes: int, tree: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "p2pscoop", "run", "-n", str(nodes), str(UTS), *tree]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def seconds(process: subprocess.Popen[str]) -> float:
    """What the program measured itself, without the time to start."""
    out, _ = process.communicate(timeout=600)
    found = re.search(r"seconds ([\d.]+)", out)
    assert process.returncode == 0
    assert found is not None
    return float(found[1])


def run(rounds: int = 5) -> list[Result]:
    results = []
    for name, tree in TREES.items():
        ours, floor = [], []
        for _ in range(rounds):
            alone = seconds(start(1, tree))
            together = seconds(start(2, tree))
            # Two programs that have nothing to do with each other: what this machine can give.
            pair = [start(1, tree), start(1, tree)]
            apart = max([seconds(each) for each in pair])
            ours.append(alone / together)
            floor.append(2 * alone / apart)
        share = statistics.median(a / b for a, b in zip(ours, floor, strict=True))
        results.append(
            result(
                f"UTS {name}: gain of a 2nd node / of a 2nd process",
                share,
                ">= 0.85",
                share >= 0.85,
                gain_of_nodes=round(statistics.median(ours), 3),
                gain_of_processes=round(statistics.median(floor), 3),
            )
        )
    return results


if __name__ == "__main__":
    report(run())
