"""The same programs beside SCOOP 0.7.2, two processes each, taking turns.

SCOOP is not installed with this project. `P2PSCOOP_BENCH_SCOOP` names the Python of an environment that has it:

    python -m venv there && there/bin/pip install scoop==0.7.2
    P2PSCOOP_BENCH_SCOOP=there/bin/python python -m benchmarks scoop
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.common import Result, result

ROUNDS = 3
CRASHES_MAX = 5
"""SCOOP does not survive all of its runs; those that it does not are left out, and counted."""
VARIABLE = "P2PSCOOP_BENCH_SCOOP"

HEAD = """
import json, os, random, time
import {module}
from {module} import futures

def fib(n):
    if n < 2:
        return n
    a, b = futures.submit(fib, n - 1), futures.submit(fib, n - 2)
    return a.result() + b.result()

def leaf(n):
    return n * n

def by_map(n):
    return sum(futures.map(leaf, range(1, n + 1)))

def by_submit(n):
    children = [futures.submit(by_map, i) for i in range(1, n + 1)]
    return sum(each.result() for each in futures.as_completed(children))

def tree(n):
    return sum(list(futures.map(by_submit, range(1, n + 1))))

def no_op(x):
    return x

def darts(count):
    generator = random.Random(count)
    return sum(generator.random() ** 2 + generator.random() ** 2 <= 1.0 for _ in range(count))

if __name__ == "__main__":
    deadline = time.monotonic() + 10
    while getattr({module}, "SIZE", 2) < 2 and time.monotonic() < deadline:
        futures.wait([futures.submit(time.sleep, 0.01)])
    list(futures.map(no_op, range(100)))
    began = time.perf_counter()
    answer = {call}
    print(json.dumps([time.perf_counter() - began, answer]))
"""

# Name, call for SCOOP, call here, units of work in each, and how many times more of them a second are wanted.
CASES = (
    ("nested fib", "fib(16)", 3_193, "fib(24)", 150_049, 100),
    ("full tree of width 12", "tree(12)", 1 + 12 + 78 + 364, "tree(12)", 1 + 12 + 78 + 364, 20),
    ("map of 20,000 no-ops", "len(list(futures.map(no_op, range(20000))))", 20_000, None, 20_000, 200),
)
PI = "sum(futures.map(darts, [200000 + i for i in range(40)]))"


class _CrashedError(Exception):
    """A program did not say how long it took."""


def run() -> list[Result]:
    scoop = os.environ.get(VARIABLE)
    if not scoop or shutil.which(scoop) is None:
        print(f"scoop: left out; {VARIABLE} has to name the Python of an environment with SCOOP", file=sys.stderr)
        return []
    results = []
    with tempfile.TemporaryDirectory() as directory:
        for name, theirs, their_work, ours, our_work, target in CASES:
            their_rates, our_rates = [], []
            crashes = 0
            while len(our_rates) < ROUNDS and crashes < CRASHES_MAX:
                try:
                    their_rates.append(their_work / _seconds(directory, scoop, "scoop", theirs))
                except _CrashedError as error:
                    print(error, file=sys.stderr)
                    crashes += 1
                    continue
                our_rates.append(our_work / _seconds(directory, sys.executable, "p2pscoop", ours or theirs))
            if not our_rates:
                continue
            gain = statistics.median(ours / theirs for ours, theirs in zip(our_rates, their_rates, strict=True))
            results.append(
                result(
                    f"{name}: rate against SCOOP's",
                    gain,
                    f">= {target}",
                    gain >= target,
                    scoop_a_second=round(statistics.median(their_rates), 1),
                    p2pscoop_a_second=round(statistics.median(our_rates), 1),
                    scoop_crashed=crashes,
                )
            )
        results += _pi(directory, scoop)
    return results


def _pi(directory: str, scoop: str) -> list[Result]:
    """How much of what two plain processes gain over one remains."""
    found: dict[str, list[float]] = {"scoop": [], "p2pscoop": []}
    for _ in range(ROUNDS):
        plain = _plain(1)
        best = plain / _plain(2)
        for module, python in (("scoop", scoop), ("p2pscoop", sys.executable)):
            found[module].append(plain / _seconds(directory, python, module, PI) / best)
    ours, theirs = (statistics.median(found[module]) for module in ("p2pscoop", "scoop"))
    return [
        result("pi: gain over that of two plain processes", ours, ">= 0.95", ours >= 0.95, scoop=round(theirs, 3))
    ]


def _plain(processes: int) -> float:
    """Seconds for the darts in so many processes that know nothing of each other."""
    program = (
        "import random, sys, time\n"
        + HEAD[HEAD.index("def darts") : HEAD.index("if __name__")]
        + "first, step = map(int, sys.argv[1:])\n"
        + "began = time.perf_counter()\n"
        + "sum(darts(200000 + i) for i in range(first, 40, step))\n"
        + "print(time.perf_counter() - began)\n"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", program, str(first), str(processes)], stdout=subprocess.PIPE)
        for first in range(processes)
    ]
    return max(float(process.communicate()[0]) for process in running)


def _seconds(directory: str, python: str, module: str, call: str) -> float:
    path = Path(directory, f"{module}_program.py")
    path.write_text(HEAD.format(module=module, call=call))
    # No path of this project for SCOOP's interpreter.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [python, "-m", module, "-n", "2", str(path)],
        env=environment,
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    try:
        return float(json.loads(done.stdout.splitlines()[-1])[0])
    except (IndexError, ValueError) as error:
        reason = (done.stderr.splitlines() or ["it said nothing"])[-1]
        raise _CrashedError(f"{module} did not run {call}: {reason}") from error
