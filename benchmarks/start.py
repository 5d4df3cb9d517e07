"""From the command to the first result, against loky."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.common import Result, alternate, ratio, report, result

OURS = """
from p2pscoop import futures
def hello():
    return "hello"
print(futures.submit(hello).result())
"""
THEIRS = """
from loky import get_reusable_executor
def hello():
    return "hello"
print(get_reusable_executor(max_workers=2).submit(hello).result())
"""


def run(rounds: int = 7) -> list[Result]:
    with tempfile.TemporaryDirectory() as directory:
        ours, theirs = Path(directory) / "ours.py", Path(directory) / "theirs.py"
        ours.write_text(OURS)
        theirs.write_text(THEIRS)

        def first_line(command: list[str]) -> None:
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
                assert process.stdout is not None
                assert process.stdout.readline() == "hello\n"
                # Only the time to the first result counts.
                stopped.append(process)
                process.wait()

        stopped: list[subprocess.Popen[str]] = []
        mine, peer = alternate(
            rounds,
            lambda: first_line([sys.executable, "-m", "p2pscoop", "run", "-n", "2", str(ours)]),
            lambda: first_line([sys.executable, str(theirs)]),
        )
    value = ratio(mine, peer)
    return [
        result(
            "hello with 2 nodes, start to end, against loky",
            value,
            "<= 2",
            value <= 2,
            seconds=round(min(mine), 3),
            loky_seconds=round(min(peer), 3),
        )
    ]


if __name__ == "__main__":
    report(run())
