"""Would the simulator notice? Puts known bugs into the protocol, one by one, and looks which seed catches each.

    python -m p2pscoop.testing.mutations --seeds 500

Each mutation replaces one method of the core for the time of a run. It is caught when a run breaks a guarantee,
does not end, raises, or, without any fault that would excuse it, executes a task twice.

What a lease hides is not here: a custody that is lost by a rare race comes home when its lease ends, late but
safe. The rules against those races are held by tests of single messages (tests/core).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import click

from p2pscoop._core.custodian import Custodian
from p2pscoop._core.custody import (
    Held,
    HolderEvent,
    HolderLedger,
    HolderState,
    Lent,
    OwnerLedger,
)
from p2pscoop._core.delivery import Deliveries
from p2pscoop._core.ids import NodeId, TaskKey, Token
from p2pscoop._core.membership import Change, Membership
from p2pscoop._core.node import Node
from p2pscoop._core.values import MemberEntry, Spec
from p2pscoop.testing._faults import Faults
from p2pscoop.testing._report import InvariantError
from p2pscoop.testing._simulator import run_seed

__all__ = ["HARMLESS", "MUTATIONS", "Mutation", "first_seed_that_catches"]


@dataclass(frozen=True, slots=True)
class Mutation:
    """One bug: the method that it replaces, and with what. `faults`: what to look under; drawn if None."""

    name: str
    owner: type
    method: str
    replacement: Callable[..., Any]
    faults: Faults | None = None

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the bug in, and take it out."""
        original = self.owner.__dict__[self.method]
        setattr(self.owner, self.method, self.replacement)
        try:
            yield
        finally:
            setattr(self.owner, self.method, original)


def _no_grants_due(self: Deliveries, now: float) -> tuple[list[Any], list[Held]]:  # noqa: ARG001
    self._due.clear()
    return [], []


def _no_results_due(self: Deliveries, now: float) -> list[Any]:  # noqa: ARG001
    self._unacknowledged.clear()
    return []


def _settle_every_time(self: OwnerLedger, serial: int) -> Lent | None:
    return self._records.get(serial)


def _drop_without_tombstone(self: HolderLedger, record: Held, event: HolderEvent) -> None:
    record.advance(event)
    del self._records[record.key]


def _come_back_is_a_repetition(self: HolderLedger, key: TaskKey, token: Token, spec: Spec) -> Held | None:
    record = self._records.get(key)
    if record is not None:
        record.token = max(token, record.token)
        return None
    tombstone = self._tombstones.get(key)
    if tombstone is not None and token <= tombstone:
        return None
    record = self._records[key] = Held(key, token, HolderState.QUEUED, spec)
    return record


def _queue_every_grant(self: HolderLedger, key: TaskKey, token: Token, spec: Spec) -> Held | None:
    record = self._records[key] = Held(key, token, HolderState.QUEUED, spec)
    return record


def _no_loss(self: OwnerLedger, holder: NodeId, **_: bool) -> list[Lent]:
    for record in self._records.values():
        if record.holder == holder:
            record.lease_until = float("inf")
    return []


def _no_expiry(self: OwnerLedger, now: float) -> list[Lent]:  # noqa: ARG001
    return []


def _no_renewal(self: Custodian, records: Any) -> list[Any]:  # noqa: ARG001
    return []


def _no_lost_target(self: HolderLedger, target: NodeId) -> list[Held]:  # noqa: ARG001
    return []


def _owner_is_forgotten_silently(self: HolderLedger, owner: NodeId) -> list[Held]:  # noqa: ARG001
    return []


def _no_refutation(self: Membership, entry: MemberEntry) -> Change | None:
    return None if entry.info.id == self._me else _merge_one(self, entry)


_merge_one = Membership._merge_one


def _early_steals_are_dropped(self: Node, now: float, sender: NodeId, message: Any) -> list[Any]:
    return [] if sender not in self.membership else _on_steal(self, now, sender, message)


_on_steal = Node._on_steal


def _bounced_task_is_queued(self: HolderLedger, key: TaskKey) -> Held | None:
    record = self._records[key]
    record.advance(HolderEvent.READY)
    return None


def _accept_ends_any_offer(self: HolderLedger, holder: NodeId, key: TaskKey, token: Token) -> Held | None:  # noqa: ARG001
    record = self._records.get(key)
    if record is not None and record.state in (HolderState.OFFERED, HolderState.QUEUED):
        self._drop(record, HolderEvent.DROPPED)
    return None


def _goodbye_loses_all(self: Custodian, now: float, peer: NodeId, *, killed: bool, **_: bool) -> list[Any]:
    return _lose(self, now, peer, drained=False, killed=killed)


_lose = Custodian.lose

_ROUGH = Faults(loss=0.2, duplication=0.3, jitter_s=0.05, kills=2, busy=5.0)
_WANDERING = Faults(jitter_s=0.05, duplication=0.3, busy=5.0, slow=0.02, slow_s=0.5)
_ALARMS = Faults(false_alarms=8, jitter_s=0.01, busy=5.0, slow=0.05, slow_s=5.0)
_DRAINING = Faults(leaves=6, joins=6, busy=5.0, jitter_s=0.01)

MUTATIONS = (
    Mutation("grants are not repeated", Deliveries, "due_grants", _no_grants_due, _ROUGH),
    Mutation("outcomes are not repeated", Deliveries, "due_results", _no_results_due, _ROUGH),
    Mutation("every outcome counts", OwnerLedger, "settle", _settle_every_time, _ROUGH),
    Mutation("no tombstones", HolderLedger, "_drop", _drop_without_tombstone, _WANDERING),
    Mutation("what comes back is a repetition", HolderLedger, "on_grant", _come_back_is_a_repetition, _WANDERING),
    Mutation("a repeated grant is queued again", HolderLedger, "on_grant", _queue_every_grant, _WANDERING),
    Mutation("a dead holder loses nothing", OwnerLedger, "lose_holder", _no_loss, _ROUGH),
    Mutation("leases do not end", OwnerLedger, "expire", _no_expiry, _ALARMS),
    Mutation("leases are not renewed", Custodian, "renew_leases", _no_renewal, Faults(busy=3000.0)),
    Mutation("offers to the dead stand", HolderLedger, "lose_target", _no_lost_target, _ROUGH),
    Mutation("orphans are kept", HolderLedger, "lose_owner", _owner_is_forgotten_silently, _ROUGH),
    Mutation("an acceptance ends any offer", HolderLedger, "on_accept", _accept_ends_any_offer, _ALARMS),
    Mutation("a bounced task stays", HolderLedger, "bounce", _bounced_task_is_queued, Faults(bounces=0.2)),
    Mutation("a drained goodbye counts as death", Custodian, "lose", _goodbye_loses_all, _DRAINING),
    Mutation("no one refutes", Membership, "_merge_one", _no_refutation, _ALARMS),
    Mutation("early steals are dropped", Node, "_on_steal", _early_steals_are_dropped, Faults(jitter_s=0.05)),
)
"""The bugs, each with the faults under which it shows."""

HARMLESS = frozenset({"no one refutes", "early steals are dropped"})
"""These cost time and no guarantee, because membership is a hint: no seed may catch them."""


def first_seed_that_catches(mutation: Mutation, seeds: int) -> tuple[int, str] | None:
    """The first seed that notices, and what it says; None if none of so many does."""
    faults = mutation.faults
    excused = faults is None or faults.kills or faults.false_alarms
    with mutation.applied():
        for seed in range(seeds):
            try:
                report = run_seed(seed, faults=faults, events_max=150_000)
            except InvariantError as error:
                return seed, str(error)
            except Exception as error:
                return seed, f"{type(error).__name__}: {error}"
            if report.reexecutions and not excused:
                return seed, f"{report.reexecutions} tasks were run again"
    return None


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--seeds", type=click.IntRange(min=1), default=500, show_default=True, help="Seeds per bug, at most."
)
def main(seeds: int) -> None:
    """Put known bugs into the protocol, and see whether simulation catches each."""
    missed = 0
    for mutation in MUTATIONS:
        caught = first_seed_that_catches(mutation, seeds)
        if caught is None:
            click.echo(f"{'harmless' if mutation.name in HARMLESS else 'MISSED':>9}  {mutation.name}")
            missed += mutation.name not in HARMLESS
        else:
            click.echo(f"{'seed ' + str(caught[0]):>9}  {mutation.name}: {caught[1].partition(': ')[0]}")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main(prog_name="python -m p2pscoop.testing.mutations")
