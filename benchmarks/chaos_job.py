"""The program that `benchmarks.chaos` runs: does a job again and again while nodes are harmed, and checks results.

Its tasks append a line to a common file when they start and when they end, all on the one clock of the machine:
so what ran on a node that was killed, and when it ran again, does not depend on what the nodes believe.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import signal
import struct
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.idle import children_of

sys.path.insert(0, str(Path(__file__).parent.parent / "docs" / "examples"))

import uts

import p2pscoop
from p2pscoop import futures

LOG_VARIABLE = "P2PSCOOP_CHAOS_LOG"
DEPTH = 8
DEPTH_NOTED = 4
"""What nodes steal is near the root; noting every task would cost more than the tasks."""
SEED = 19
CHILDREN = uts.geometric(4.0, DEPTH)
GENETIC = argparse.Namespace(population=8, generations=3, folds=3, seed=1)
STOP_S = 1.0

_NOTE = struct.Struct("<c3xI16s16sqd")
_log = -1


@contextlib.contextmanager
def noted(number: int, task: bytes, parent: bytes) -> Iterator[None]:
    """Note when this task of the job with this number starts and ends, and where."""
    _note(b"S", number, task, parent)
    yield
    _note(b"E", number, task, parent)


def _note(kind: bytes, number: int, task: bytes, parent: bytes) -> None:
    global _log
    if _log < 0:
        _log = os.open(os.environ[LOG_VARIABLE], os.O_WRONLY | os.O_APPEND)
    os.write(_log, _NOTE.pack(kind, number, task[-16:], parent[-16:], os.getpid(), time.monotonic()))


def count(number: int, state: bytes, parent: bytes, depth: int) -> int:
    """The size of a subtree, by functions."""
    with noted(number, state, parent) if depth <= DEPTH_NOTED else contextlib.nullcontext():
        return 1 + sum(
            each.result() for each in [futures.submit(count, number, *child) for child in children(state, depth)]
        )


async def count_suspended(number: int, state: bytes, parent: bytes, depth: int) -> int:
    """The same by coroutines, which may move while they wait; those that do are noted where they started."""
    with noted(number, state, parent) if depth <= DEPTH_NOTED else contextlib.nullcontext():
        total = 1
        for each in [futures.submit(count_suspended, number, *child) for child in children(state, depth)]:
            total += await each
        return total


def children(state: bytes, depth: int) -> list[tuple[bytes, bytes, int]]:
    found = CHILDREN(depth, int.from_bytes(state[16:], "big") & 0x7FFFFFFF)
    return [(hashlib.sha1(state + index.to_bytes(4, "big")).digest(), state, depth + 1) for index in range(found)]


def rate(individual: list[float], folds: int, number: int) -> tuple[float]:
    """The fitness of an individual. Whoever counts trees need not import what this needs."""
    import digits_ga

    name = struct.pack("<dd", *individual)
    with noted(number, name, b""):
        scores = [
            futures.submit(score, *individual, fold, number, name, index)
            for index, fold in enumerate(digits_ga.folds_of(folds))
        ]
        return (sum(each.result() for each in scores) / folds,)


def score(log_c: float, log_gamma: float, fold: Any, number: int, parent: bytes, index: int) -> float:
    """The accuracy on one fold."""
    import digits_ga

    with noted(number, hashlib.blake2b(parent + bytes([index])).digest(), parent):
        return digits_ga.score(log_c, log_gamma, fold)


def do_job(job: str, number: int) -> object:
    """The result of one job, which is the same each time, and JSON."""
    if job == "digits":
        return evolve(
            rate, lambda work, fresh, folds: futures.map(work, map(list, fresh), folds, [number] * len(fresh))
        )
    work = count if number % 2 else count_suspended
    return futures.submit(work, number, uts.root_of(SEED), b"", 0).result()


def do_serially(job: str) -> object:
    """What `do_job` should find."""
    if job == "digits":
        import digits_ga

        return evolve(digits_ga.evaluate_serially, map)
    return uts.serial(CHILDREN, uts.root_of(SEED))[0]


def evolve(fitness: Callable[..., Any], map_over: Callable[..., Any]) -> object:
    import digits_ga
    from deap import base, creator

    if not hasattr(creator, "Fitness"):
        creator.create("Fitness", base.Fitness, weights=(1.0,))
        creator.create("Individual", list, fitness=creator.Fitness)
    return digits_ga.evolve(GENETIC, fitness, map_over)


# -------------------------------------------------------------------------------------------- harm


class Harm(threading.Thread):
    """Does something to nodes of this program, every so often."""

    def __init__(self, supervisor: subprocess.Popen[bytes], fault: str, every_s: float, seed: int) -> None:
        super().__init__(daemon=True)
        self.done: list[tuple[int, float]] = []
        """Process ids, and when."""
        self._supervisor = supervisor
        self._act = {"kill": self._kill, "abandon": self._abandon, "pause": self._pause}[fault]
        self._every_s = every_s
        self._draw = random.Random(seed)
        self._enough = threading.Event()

    def run(self) -> None:
        while not self._enough.wait(self._every_s):
            self._act()

    def stop(self) -> None:
        self._enough.set()
        self.join()

    def _nodes(self) -> list[int]:
        return [pid for pid in children_of(self._supervisor.pid) if _runs(pid)]

    def _kill(self) -> None:
        if nodes := self._nodes():
            self._signal(self._draw.choice(nodes), signal.SIGKILL)

    def _abandon(self) -> None:
        """All at once, and for good."""
        if self._supervisor.poll() is None:
            nodes = self._nodes()
            self._supervisor.kill()
            for pid in nodes:
                self._signal(pid, signal.SIGKILL)
            self._supervisor.wait()

    def _pause(self) -> None:
        pid = self._draw.choice(self._nodes())
        self._signal(pid, signal.SIGSTOP)
        time.sleep(STOP_S)
        os.kill(pid, signal.SIGCONT)

    def _signal(self, pid: int, number: int) -> None:
        now = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
            self.done.append((pid, now))


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


# ------------------------------------------------------------------------------------------ reading


def read_log(kills: list[tuple[int, float]]) -> dict[str, Any]:
    """What ran more than once, and how long after a kill that took it along."""
    starts: defaultdict[tuple[int, bytes], list[tuple[float, int]]] = defaultdict(list)
    ends: dict[tuple[int, bytes], float] = {}
    parents: dict[tuple[int, bytes], tuple[int, bytes]] = {}
    data = Path(os.environ[LOG_VARIABLE]).read_bytes()
    for kind, number, task, parent, pid, at in _NOTE.iter_unpack(data):
        key = number, task
        if kind == b"S":
            starts[key].append((at, pid))
            parents[key] = number, parent
        else:
            ends[key] = min(at, ends.get(key, at))
    recoveries = []
    for victim, killed_at in kills:
        lost = {
            key: min((at for at, _ in runs if at > killed_at), default=None)
            for key, runs in starts.items()
            if ends.get(key, killed_at) >= killed_at and _last_before(runs, killed_at) == victim
        }
        # A child of a lost task is not requeued, but spawned again.
        recoveries += [at - killed_at for key, at in lost.items() if at is not None and parents[key] not in lost]
    return {
        "noted": len(starts),
        "again": sum(len(runs) - 1 for runs in starts.values()),
        "recoveries": recoveries,
    }


def _last_before(runs: list[tuple[float, int]], moment: float) -> int | None:
    """Where a task was running, last, at that moment."""
    return max(((at, pid) for at, pid in runs if at <= moment), default=(0.0, None))[1]


# --------------------------------------------------------------------------------------------- main


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("job", choices=("uts", "digits"))
    parser.add_argument("fault", choices=("kill", "abandon", "pause"))
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--expected", type=json.loads, required=True)
    options = parser.parse_args()

    nodes = int(os.environ["P2PSCOOP_NODES"])
    while len(p2pscoop.statistics()) < nodes:
        time.sleep(0.01)
    from p2pscoop import _session

    session = _session._session
    assert session is not None
    assert session.supervisor is not None
    noticed: dict[int, float] = {}
    departed = session.home.departed

    def note_departure(info: Any, reason: str | None, failed: bool) -> None:
        noticed.setdefault(info.pid, time.monotonic())
        departed(info, reason, failed)

    session.home.departed = note_departure  # type: ignore[method-assign]  # to time it
    harm = Harm(session.supervisor, options.fault, 1.0, options.seed)
    began = time.monotonic()
    harm.start()
    jobs = wrong = 0
    while jobs == 0 or time.monotonic() - began < options.seconds:
        jobs += 1
        # Through JSON, as the expected one.
        wrong += json.loads(json.dumps(do_job(options.job, jobs))) != options.expected
    harm.stop()
    rows = p2pscoop.statistics()
    found = {
        "jobs": jobs,
        "wrong": wrong,
        "seconds": time.monotonic() - began,
        "harmed": len(harm.done),
        "requeued": sum(each.requeued for each in rows),
        "moved": sum(each.continuations_given for each in rows),
        "nodes_at_end": len(rows),
        "noticed": [noticed[pid] - at for pid, at in harm.done if pid in noticed],
        **read_log([] if options.fault == "pause" else harm.done),
    }
    futures.shutdown()
    json.dump(found, sys.stdout)
