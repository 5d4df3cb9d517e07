"""Taking turns, and saying what came out."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

Result = dict[str, Any]


def alternate(rounds: int, *subjects: Callable[[], object]) -> list[list[float]]:
    """Seconds that each subject takes, each round all of them in turn, after one round that does not count."""
    for subject in subjects:
        subject()
    times: list[list[float]] = [[] for _ in subjects]
    for _ in range(rounds):
        for subject, taken in zip(subjects, times, strict=True):
            began = time.perf_counter()
            subject()
            taken.append(time.perf_counter() - began)
    return times


def ratio(subject: list[float], peer: list[float]) -> float:
    """The median of the ratios, round by round."""
    return statistics.median(a / b for a, b in zip(subject, peer, strict=True))


def result(name: str, value: float, target: str, holds: bool, **details: Any) -> Result:
    """One line of the report."""
    return {"name": name, "value": round(value, 3), "target": target, "holds": holds, **details}


def machine() -> Result:
    """What it was measured on."""
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }


def report(results: list[Result]) -> None:
    """Print as JSON, and a table on stderr."""
    for each in results:
        mark = "ok  " if each["holds"] else "MISS"
        print(f"{mark} {each['name']:<44} {each['value']:>10} {each['target']}", file=sys.stderr)
    json.dump({"machine": machine(), "results": results}, sys.stdout, indent=2)
    print()
