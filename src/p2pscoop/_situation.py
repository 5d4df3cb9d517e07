"""What a program can ask about where it runs: `p2pscoop.IS_ORIGIN`, `SIZE`, `worker` and the like.

Looked up anew each time, and always defined: also in a process that has not used p2pscoop yet. Asking starts
nothing, and imports nothing that is not there already.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from p2pscoop._scheduler import Scheduler

__all__ = ["DEBUG_VARIABLE", "SITUATION"]

DEBUG_VARIABLE = "P2PSCOOP_DEBUG"
"""Set by `run --debug` for all nodes, or by the user."""


def _scheduler() -> Scheduler | None:
    local = sys.modules.get("p2pscoop._local")
    scheduler: Scheduler | None = None if local is None else local.installed()
    return scheduler


def _is_running() -> bool:
    scheduler = _scheduler()
    return scheduler is not None and not scheduler.stopped


def _is_origin() -> bool:
    scheduler = _scheduler()
    return scheduler is None or scheduler.hooks.is_origin()


def _size() -> int:
    scheduler = _scheduler()
    return 1 if scheduler is None else scheduler.hooks.size()


def _worker() -> str | None:
    scheduler = _scheduler()
    return None if scheduler is None else scheduler.hooks.node_id().hex()


def _debug() -> bool:
    return os.environ.get(DEBUG_VARIABLE, "0") not in ("", "0")


def _main_module() -> str | None:
    # On a node `__main__` is empty, but its arguments are those of the origin.
    path = getattr(sys.modules.get("__main__"), "__file__", None) or (sys.argv[0] if sys.argv else None)
    return path if path and os.path.exists(path) else None


def _configuration() -> dict[str, Any]:
    main = _main_module()
    return {"debug": _debug(), "executable": main, "headless": main is None, "size": _size()}


SITUATION = {
    "BROKER": lambda: None,
    "CONFIGURATION": _configuration,
    "DEBUG": _debug,
    "IS_ORIGIN": _is_origin,
    "IS_RUNNING": _is_running,
    "MAIN_MODULE": _main_module,
    "SHUTDOWN_REQUESTED": lambda: _scheduler() is not None and not _is_running(),
    "SIZE": _size,
    "logger": lambda: logging.getLogger("p2pscoop"),
    "worker": _worker,
}
"""By name, what computes each."""
