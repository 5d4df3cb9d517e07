"""What a simulated run tells: counts of what happened, or the guarantee that was broken."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

__all__ = ["InvariantError", "Report"]


class InvariantError(AssertionError):
    """A guarantee was broken."""


@dataclass(slots=True)
class Report:
    """What happened in one run."""

    seed: int
    value: int = 0
    seconds: float = 0.0
    executions: int = 0
    tasks: int = 0
    events: int = 0
    messages: int = 0
    lost: int = 0
    duplicated: int = 0
    kills: int = 0
    left: int = 0
    poisoned: int = 0
    steals: int = 0
    given: int = 0
    requeued: int = 0
    resumptions: int = 0
    migrated: int = 0
    kept: int = 0
    kinds: Counter[str] = field(default_factory=Counter)

    @property
    def reexecutions(self) -> int:
        """Tasks started more often than once; without meaning if the origin died before all were started."""
        return max(0, self.executions - self.tasks)
