"""From the command to the first result, against loky."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import Result, ratio, report, result

OURS = """
from p2pscoop import futures
def hello():
    return "hello"
print(futures.submit(hello).result(), flush=True)
"""
THEIRS = """
from loky import get_reusable_executor
def hello():
    return "hello"
print(get_reusable_executor(max_workers=2).submit(hello).result(), flush=True)
"""


def seconds_to_first_line(command: list[str]) -> float:
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        seconds = time.perf_counter() - began
        assert line == "hello\n"
        # The way down does not count, but must not weigh on the next in turn.
        process.wait()
    return seconds


def run(rounds: int = 7) -> list[Result]:
    with tempfile.TemporaryDirectory() as directory:
        ours, theirs = Path(directory) / "ours.py", Path(directory) / "theirs.py"
        ours.write_text(OURS)
        theirs.write_text(THEIRS)
        mine, peer = [], []
        for _ in range(rounds + 1):
            mine.append(seconds_to_first_line([sys.executable, "-m", "p2pscoop", "run", "-n", "2", str(ours)]))
            peer.append(seconds_to_first_line([sys.executable, str(theirs)]))
    # The first of each found cold caches.
    mine, peer = mine[1:], peer[1:]
    value = ratio(mine, peer)
    return [
        result(
            "first result of hello on 2 nodes, against loky",
            value,
            "<= 2",
            value <= 2,
            seconds=round(min(mine), 3),
            loky_seconds=round(min(peer), 3),
        )
    ]


if __name__ == "__main__":
    report(run())
