"""One future of the values of many: what is behind `futures.gather`.

An object and not a closure, because whoever moves a continuation that awaits it has to look inside: it can go
on elsewhere as soon as the outcomes of all parts are on this node, whether or not they have been unpickled.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any

from p2pscoop._future import CANCELLED, DONE, FAILED, Future, make_future

if TYPE_CHECKING:
    from p2pscoop._scheduler import Scheduler

__all__ = ["Gathering", "gathered"]


class Gathering:
    """Ends a future when its parts have ended.

    Args:
        scheduler: of the home thread.
        parts: the futures, in the order of their values; one may be there more than once.
        return_exceptions: whether exceptions are values too. If not, the first one is the outcome.

    Attributes:
        whole: the future of the list of values.
    """

    __slots__ = ("_missing", "_scheduler", "parts", "return_exceptions", "whole")

    def __init__(self, scheduler: Scheduler, parts: Sequence[Future[Any]], return_exceptions: bool) -> None:
        self._scheduler = scheduler
        self.parts = tuple(parts)
        self.return_exceptions = return_exceptions
        task = scheduler.task
        self.whole = make_future(scheduler, None, (), {}, task, task._spawned)
        self.whole.claim()
        self.whole._gathering = self
        unfinished = [part for part in dict.fromkeys(self.parts) if part._state < DONE]
        self._missing = len(unfinished)
        if not unfinished or (not return_exceptions and any(part._state > DONE for part in self.parts)):
            self._finish()
            return
        for part in unfinished:
            part.add_waiter(self.on_end)

    def on_end(self, part: Future[Any]) -> None:
        """A part has ended."""
        self._missing -= 1
        if self._missing == 0 or (part._state != DONE and not self.return_exceptions):
            self._finish()

    def complete(self) -> bool:
        """Whether the outcomes of all parts are on this node. Any thread."""
        return all(part._state >= DONE or hasattr(part, "_arrived") for part in self.parts)

    def _finish(self) -> None:
        state, value = gathered(self.parts, self.return_exceptions)
        self._scheduler.end(self.whole, state, value)


def gathered(parts: Sequence[Future[Any]], return_exceptions: bool) -> tuple[int, Any]:
    """State and value of the whole, of parts of which all have ended, or one has failed."""
    if not return_exceptions:
        for part in parts:
            if part._state > DONE:
                return FAILED, _outcome(part)
    return DONE, [_outcome(part) for part in parts]


def _outcome(part: Future[Any]) -> Any:
    return CancelledError() if part._state == CANCELLED else part._value
