"""How many of 200 programs end cleanly: with their own status, without a word, and with nothing left behind."""

from __future__ import annotations

import glob
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.common import Result, report, result

COUNT = 200
PROGRAM = """
import sys
from p2pscoop import Executor, futures

kind = int(sys.argv[1]) % 5
if kind == 0:
    assert list(futures.map(abs, range(50))) == list(range(50))
elif kind == 1:
    futures.submit(abs, 1)
elif kind == 2:
    with Executor(1) as executor:
        assert executor.submit(abs, -1).result() == 1
elif kind == 3:
    executor = Executor(1)
    executor.submit(abs, -1)
    futures.submit(abs, -1).result()
else:
    async def waiting():
        return await futures.gather(*(futures.submit(abs, x) for x in range(9)))
    assert futures.submit(waiting).result() == list(range(9))
"""


def nodes_of(program: str) -> list[str]:
    """Nodes, supervisors and scripts of such a program that still run."""
    found = []
    for path in glob.glob("/proc/[0-9]*/environ"):
        try:
            if f"EXITS_PROGRAM={program}".encode() in Path(path).read_bytes():
                found.append(path)
        except OSError:
            continue
    return found


def run() -> list[Result]:
    clean = 0
    with tempfile.TemporaryDirectory() as directory:
        program = str(Path(directory) / "exits.py")
        Path(program).write_text(PROGRAM)
        environment = {**os.environ, "P2PSCOOP_NODES": "2", "EXITS_PROGRAM": program, "TMPDIR": directory}
        for number in range(COUNT):
            launcher = ["-m", "p2pscoop", "run", "-n", "2"] if number % 3 == 0 else []
            done = subprocess.run(
                [sys.executable, *launcher, program, str(number)],
                env=environment,
                capture_output=True,
                timeout=60,
            )
            left = [*nodes_of(program), *(name for name in os.listdir(directory) if name.startswith("p2pscoop-"))]
            clean += (done.returncode, done.stdout, done.stderr, left) == (0, b"", b"", [])
    return [result(f"clean exits of {COUNT}", clean, f"{COUNT}", clean == COUNT)]


if __name__ == "__main__":
    report(run())
