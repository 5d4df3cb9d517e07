"""What killing, abandoning and stopping nodes does to programs: to their results, and to their time.

Each run is a program of its own on so many nodes (`chaos_job`). In every second run it counts unbalanced trees, by
functions and by coroutines in turn; in the others a genetic algorithm tunes a classifier of digits. Meanwhile a
random node, never the origin, gets SIGKILL each second, and is started again. Then the same with all other nodes
and their supervisor killed for good, and with nodes that are stopped for a second.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.chaos_job import LOG_VARIABLE, do_serially
from benchmarks.common import Result, report, result

_PATIENCE_S = 120.0
"""A program that takes so much longer than it was told to run has hung."""
_PROGRAM = "import faulthandler; from benchmarks.chaos_job import main; faulthandler.enable(); main()"


def one_run(job: str, fault: str, nodes: int, seconds: float, seed: int, expected: object) -> dict[str, Any]:
    """What a program found, and what happened to it; with the key `failed` if it did not end well."""
    with tempfile.TemporaryDirectory() as directory:
        log = os.path.join(directory, "log")
        open(log, "wb").close()
        environment = {
            **os.environ,
            "P2PSCOOP_NODES": str(nodes),
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]),
            "TMPDIR": directory,
            LOG_VARIABLE: log,
        }
        options = ["--seconds", str(seconds), "--seed", str(seed), "--expected", json.dumps(expected)]
        process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, job, fault, *options],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            out, err = process.communicate(timeout=seconds + _PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)  # Says where it hangs.
            out, err = process.communicate()
            return {"job": job, "fault": fault, "failed": f"hung: {err[-6000:]}"}
        if process.returncode != 0:
            return {"job": job, "fault": fault, "failed": f"status {process.returncode}: {err[-6000:]}"}
        left = [name for name in os.listdir(directory) if name.startswith("p2pscoop-")]
        return {"job": job, "fault": fault, "left": left, **json.loads(out)}


def run(runs: int = 4, seconds: float = 30.0, nodes: int = 8) -> list[Result]:
    """Run all, say how each went, and sum up.

    Args:
        runs: number of runs with kills; a quarter as many, but two at least, of each other kind.
        seconds: how long each runs, at least.
        nodes: in each run.
    """
    expected = {job: json.loads(json.dumps(do_serially(job))) for job in ("uts", "digits")}
    found: dict[str, list[dict[str, Any]]] = {"kill": [], "abandon": [], "pause": []}
    for fault, rows in found.items():
        for number in range(runs if fault == "kill" else max(2, runs // 4)):
            job = ("uts", "digits")[number % 2]
            row = one_run(job, fault, nodes, seconds if fault == "kill" else seconds / 3, number, expected[job])
            print(row.get("failed") or _summary(row), file=sys.stderr, flush=True)
            rows.append(row)
    return [*_killed(found["kill"]), *_others(found["abandon"], found["pause"])]


def _exact(rows: list[dict[str, Any]]) -> int:
    return sum("failed" not in row and row["wrong"] == 0 and not row["left"] for row in rows)


def _total(rows: list[dict[str, Any]], key: str) -> int:
    return sum(row.get(key, 0) for row in rows)


def _killed(rows: list[dict[str, Any]]) -> list[Result]:
    recoveries = sorted(each for row in rows for each in row.get("recoveries", ()))
    noticed = sorted(each for row in rows for each in row.get("noticed", ()))
    exact = _exact(rows)
    median = statistics.median(recoveries) if recoveries else float("inf")
    return [
        result(
            f"a kill per second: exact runs of {len(rows)}",
            exact,
            f"{len(rows)}",
            exact == len(rows),
            **{key: _total(rows, key) for key in ("jobs", "harmed", "requeued", "noted", "again", "moved")},
        ),
        result(
            "from a kill until what it took along runs again: s",
            median,
            "<= 0.5 (median)",
            median <= 0.5,
            count=len(recoveries),
            **_quantiles(recoveries),
        ),
        result(
            "from a kill until the origin knows: s",
            statistics.median(noticed) if noticed else float("inf"),
            "(no target)",
            True,
            count=len(noticed),
            **_quantiles(noticed),
        ),
    ]


def _others(abandoned: list[dict[str, Any]], paused: list[dict[str, Any]]) -> list[Result]:
    finished, exact = _exact(abandoned), _exact(paused)
    repeated = _total(paused, "requeued") + _total(paused, "again")
    return [
        result(
            f"all others killed: exact runs of {len(abandoned)}",
            finished,
            f"{len(abandoned)}",
            finished == len(abandoned),
            jobs=_total(abandoned, "jobs"),
        ),
        result(
            f"nodes stopped for a second: exact runs of {len(paused)}",
            exact,
            f"{len(paused)}",
            exact == len(paused),
            jobs=_total(paused, "jobs"),
            stops=_total(paused, "harmed"),
        ),
        result("requeued or run again after such stops", repeated, "0", repeated == 0),
    ]


def _quantiles(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    return {name: round(values[int(share * (len(values) - 1))], 3) for name, share in (("p90", 0.9), ("max", 1.0))}


def _summary(row: dict[str, Any]) -> str:
    median = f"{statistics.median(row['recoveries']):.3f} s" if row["recoveries"] else "-"
    return (
        f"{row['fault']} {row['job']}: {row['jobs']} jobs, {row['wrong']} wrong, in {row['seconds']:.1f} s; "
        f"harmed {row['harmed']}, requeued {row['requeued']}, run again {row['again']} of {row['noted']}, "
        f"recovered after {median}, {row['nodes_at_end']} nodes at the end"
    )


if __name__ == "__main__":
    report(run())
