"""The local deque, seen from both ends.

The node that owns a deque pushes and pops at its right end; thieves take from the left, where the oldest
and, in a tree of tasks, the largest are. An entry is *claimed* before it is used, because the owner may also
take one out of the middle (a join): it then stays behind as a tombstone, and whoever meets it drops it.

`collections.deque` and a claim that is one atomic operation make this safe without a lock between the thread
that runs tasks and the one that serves thieves: appends and pops at either end are atomic in CPython, only
the owner appends, and only the claim decides who runs the task.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol, TypeVar

__all__ = ["Claimable", "drop_claimed", "half", "take_newest", "take_oldest"]


class Claimable(Protocol):
    """An entry of a deque."""

    def claim(self) -> bool:
        """Make it the caller's. False if it is somebody else's already; atomic."""
        ...

    @property
    def claimed(self) -> bool:
        """Whether somebody has it; False may be out of date at once."""
        ...


Entry = TypeVar("Entry", bound=Claimable)


def half(available: int, count_max: int) -> int:
    """How many of so many entries a thief gets: half of them, rounded up, at most `count_max`."""
    return min((available + 1) // 2, count_max)


def take_oldest(deques: Sequence[deque[Entry]], count: int) -> list[Entry]:
    """Claim up to `count` entries for a thief, oldest deque first, oldest entry first."""
    taken: list[Entry] = []
    for entries in deques:
        while len(taken) < count:
            try:
                entry = entries.popleft()
            except IndexError:
                break
            if entry.claim():
                taken.append(entry)
        if len(taken) == count:
            break
    return taken


def take_newest(entries: deque[Entry]) -> Entry | None:
    """Claim the entry at the owner's end."""
    while True:
        try:
            entry = entries.pop()
        except IndexError:
            return None
        if entry.claim():
            return entry


def drop_claimed(entries: deque[Entry]) -> None:
    """Drop the tombstones at the owner's end, so that joins out of the middle do not pile up."""
    try:
        while entries[-1].claimed:
            entries.pop()
    except IndexError:
        # Empty, or a thief took the last entry between the look and the pop.
        pass
