"""A profile of what the home thread of one node does, for `run --profile`.

The profiler knows one stack, a node has many: it is taken off before the stack changes hands, and put on again.
So each call counts once, with the time until it returned or first had to wait for something elsewhere; what a
frame does after such a wait is counted for the functions that it calls then, and waiting for nobody.

A function that came here more than once, by value, is several code objects of one name. cProfile keeps one of
those only; here they are added up.
"""

from __future__ import annotations

import cProfile
import marshal
import os
from collections import defaultdict
from pathlib import Path
from types import CodeType

from p2pscoop._scheduler import Scheduler

__all__ = ["NodeProfile"]


class NodeProfile:
    """Profiles from now on.

    Args:
        scheduler: of the node. To be made in its home thread.
        directory: where to write the profile.
        name: of the node, and so of the file.
    """

    def __init__(self, scheduler: Scheduler, directory: str, name: str) -> None:
        # Now: the program may change its working directory.
        self._directory = os.path.abspath(directory)
        self._name = name
        self._scheduler = scheduler
        self._profiler = scheduler.profiler = cProfile.Profile()
        self._profiler.enable()

    def save(self) -> None:
        """Stop, and write the profile."""
        self._profiler.disable()
        self._scheduler.profiler = None
        os.makedirs(self._directory, exist_ok=True)
        path = Path(self._directory, f"{self._name}.prof")
        path.write_bytes(marshal.dumps(_statistics(self._profiler)))


_Function = tuple[str, int, str]
_Calls = tuple[int, int, float, float]


def _statistics(
    profiler: cProfile.Profile,
) -> dict[_Function, tuple[int, int, float, float, dict[_Function, _Calls]]]:
    """What `pstats` reads: for each function its calls and seconds, and the same by who called it."""
    totals: dict[_Function, _Calls] = {}
    callers: defaultdict[_Function, dict[_Function, _Calls]] = defaultdict(dict)
    for entry in profiler.getstats():
        function = _name(entry.code)
        primitive = entry.callcount - entry.reccallcount
        own = (primitive, entry.callcount, entry.inlinetime, entry.totaltime)
        totals[function] = _sum(totals.get(function), own)
        for call in entry.calls or ():
            called = callers[_name(call.code)]
            times = (call.callcount, call.callcount - call.reccallcount, call.inlinetime, call.totaltime)
            called[function] = _sum(called.get(function), times)
    return {function: (*calls, callers[function]) for function, calls in totals.items()}


def _sum(before: _Calls | None, more: _Calls) -> _Calls:
    if before is None:
        return more
    return before[0] + more[0], before[1] + more[1], before[2] + more[2], before[3] + more[3]


def _name(code: CodeType | str) -> _Function:
    if isinstance(code, str):
        return "~", 0, code
    return code.co_filename, code.co_firstlineno, code.co_name
