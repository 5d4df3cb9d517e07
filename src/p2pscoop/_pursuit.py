"""Cancelled and overdue tasks that do not wait: interrupted in the middle of Python code, or ended with the node.

A task that waits is interrupted by the scheduler. One that computes does not come by there. The handler of a
signal runs in the main thread, between two instructions of whatever is running, and may raise there; so a thread
sends one, again and again, until the task has ended. The handler raises only if the interrupted frame is the
task's own: never in the scheduler, and never in what another task runs.

C code that does not return is not interrupted. After `GRACE_S` the node makes way for a new one.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from p2pscoop import _dataflow
from p2pscoop._future import Future, call_as_user
from p2pscoop._ranges import Range
from p2pscoop._scheduler import Scheduler
from p2pscoop._timeouts import TaskFunction
from p2pscoop.errors import TaskCancelled

__all__ = ["GRACE_S", "Pursuit"]

GRACE_S = 5.0
"""Such a task has so long to end, its `finally` blocks included."""

_PAUSE_S = 0.02
_SIGNAL = getattr(signal, "SIGURG", None)
"""Ignored by every process that does not ask for it, and used by hardly any."""

_NOBODYS = (signal.SIG_DFL, signal.SIG_IGN, None)
_DOORS = frozenset({Future.result.__code__, Scheduler.step.__code__, Scheduler._run.__code__, Range._run.__code__})
"""Our functions that call the user's."""
_PASSAGES = frozenset({_dataflow._call.__code__, TaskFunction.__call__.__code__})
"""Our functions that run as part of a task."""

_AS_THE_USERS = frozenset({call_as_user.__code__})


class Pursuit:
    """Of one node. Tasks that compute are interrupted if it runs them in the main thread of its process.

    Args:
        scheduler: of the node.
        hosts: whether a task is here, and has not ended.
        give_way: ends the node, because a task does not end, or says that it cannot. Called in a thread of its
            own, with the task.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        hosts: Callable[[Future[Any]], bool],
        give_way: Callable[[Future[Any]], None],
    ) -> None:
        self._scheduler = scheduler
        self._hosts = hosts
        self._give_way = give_way
        self._pursued: set[Future[Any]] = set()
        self._thread = threading.get_ident()
        main = threading.current_thread() is threading.main_thread()
        self._signals = _SIGNAL is not None and main and signal.getsignal(_SIGNAL) in _NOBODYS
        if _SIGNAL is not None and self._signals:
            signal.signal(_SIGNAL, self._on_signal)

    def close(self) -> None:
        """No task is run any more. In the thread that made it, else nothing but the signal's handler stays."""
        if _SIGNAL is not None and self._signals and threading.get_ident() == self._thread:
            self._signals = False
            signal.signal(_SIGNAL, signal.SIG_DFL)

    def begin(self, task: Future[Any]) -> None:
        """Pursue a task until it has ended. Any thread."""
        if task not in self._pursued:
            self._pursued.add(task)
            threading.Thread(target=self._pursue, args=(task,), name="p2pscoop-pursuit", daemon=True).start()

    def _pursue(self, task: Future[Any]) -> None:
        until = time.monotonic() + GRACE_S
        while self._hosts(task):
            if time.monotonic() > until:
                self._give_way(task)
                break
            if _SIGNAL is not None and self._signals:
                signal.pthread_kill(self._thread, _SIGNAL)
            time.sleep(_PAUSE_S)
        self._pursued.discard(task)

    def _on_signal(self, _: int, frame: FrameType | None) -> None:
        pursued = (task for task in tuple(self._pursued) if self._hosts(task))
        if _is_of_a_task(frame) and any(map(self._scheduler.runs, pursued)) and not _cleans_up():
            raise TaskCancelled


def _cleans_up() -> bool:
    """Whether the running frame is in a block that is there because the task was interrupted: that may go on."""
    error = sys.exception()
    while error is not None and not isinstance(error, TaskCancelled):
        error = error.__context__
    return error is not None


def _is_of_a_task(frame: FrameType | None) -> bool:
    """Whether a frame is the user's, or of what the user called, and not of what we called."""
    depth = 0
    while frame is not None:
        code = frame.f_code
        ours = frame.f_globals.get("__name__", "").startswith("p2pscoop.") and code not in _AS_THE_USERS
        if ours and code not in _PASSAGES:
            return depth > 0 and code in _DOORS
        depth += code not in _PASSAGES
        frame = frame.f_back
    return False
