"""What nodes cost that have nothing to do: time and private memory."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import Result, report, result

PROGRAM = """
import sys, time
from p2pscoop import futures
list(futures.map(abs, range(1000)))
print("ready", flush=True)
sys.stdin.readline()
"""
SECONDS = 10


def children_of(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += [int(child), *children_of(int(child))]
    return found


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def private_kib(pid: int) -> int:
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Private_"))


def run() -> list[Result]:
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory) / "idle.py"
        program.write_text(PROGRAM)
        process = subprocess.Popen(
            [sys.executable, "-m", "p2pscoop", "run", "-n", "3", str(program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(3)  # The start-up must not count.
        pids = [process.pid, *children_of(process.pid)]
        before = sum(map(cpu_ticks, pids))
        time.sleep(SECONDS)
        spent = (sum(map(cpu_ticks, pids)) - before) / 100 / SECONDS * 100
        memory = {pid: private_kib(pid) / 1024 for pid in pids[1:]}
        process.communicate("end\n", timeout=60)
    largest = max(memory.values())
    return [
        result("idle origin, 2 nodes and launcher: % of a core", spent, "< 1", spent < 1),
        result("private memory of a node, MiB", largest, "<= 35", largest <= 35, each=sorted(memory.values())),
    ]


if __name__ == "__main__":
    report(run())
