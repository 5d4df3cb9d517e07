"""What a process says that runs out of descriptors, memory or disk, and when it says it again.

Libraries below meet most such errors first, and try again without a word: nanomsg does so when it cannot accept a
connection. So a node looks by itself whether it could open a file (`Shortage.look`), and names the errors that it
does meet (`Shortage.tell`).
"""

from __future__ import annotations

import errno
import logging
import os
import sys
import time

if sys.platform != "win32":
    import resource  # Here, because no module can be imported when no file can be opened.

__all__ = ["Shortage", "advice"]

logger = logging.getLogger("p2pscoop")

_AGAIN_S = 60.0
"""One shortage is said this often at most."""

_FILES = "files"
_MEMORY = "memory"
_DISK = "disk"

_KINDS = {
    errno.EMFILE: _FILES,
    errno.ENFILE: _FILES,
    errno.ENOMEM: _MEMORY,
    errno.ENOSPC: _DISK,
    errno.EDQUOT: _DISK,
}
_NAMES = {"OutOfFiles": _FILES, "NoMemory": _MEMORY, "OutOfSpace": _DISK}
"""Of pynng's exceptions, which have no errno."""


def _kind_of(error: BaseException) -> str | None:
    if isinstance(error, MemoryError):
        return _MEMORY
    if isinstance(error, OSError) and error.errno is not None:
        return _KINDS.get(error.errno)
    return _NAMES.get(type(error).__name__)


def _advice(kind: str) -> str:
    if kind == _FILES:
        return (
            f"this process may open no more files (its limit is {_limit()}): raise it with `ulimit -n`, "
            "start fewer nodes, or close files in tasks"
        )
    if kind == _MEMORY:
        return (
            "there is no memory left: start fewer nodes on this machine, or let tasks and their results be smaller"
        )
    return "there is no space left on the disk: make some, or set TMPDIR to a directory that has"


def _limit() -> str:
    if sys.platform == "win32":
        return "the system's"
    return str(resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def advice(error: BaseException) -> str | None:
    """What ran out, and the next step, if an error says that something did."""
    kind = _kind_of(error)
    return None if kind is None else _advice(kind)


class Shortage:
    """Of one node.

    Args:
        name: of the node.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._told_at: dict[str, float] = {}

    def look(self) -> None:
        """Say so if no file can be opened any more: then no peer can connect, nor be connected to."""
        try:
            os.close(os.open(os.devnull, os.O_RDONLY))
        except OSError as error:
            self.tell(error)

    def tell(self, error: BaseException) -> bool:
        """Whether an error says that something ran out. That is logged, with the next step, now and then."""
        kind = _kind_of(error)
        if kind is None:
            return False
        now = time.monotonic()
        if now >= self._told_at.get(kind, now):
            self._told_at[kind] = now + _AGAIN_S
            logger.warning("%s: %s", self._name, _advice(kind))
        return True
