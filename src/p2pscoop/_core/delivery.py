"""What is on its way and not acknowledged yet: grants, and outcomes.

The network may lose anything, so a grant is repeated until each of its tasks is accepted or rejected, and an
outcome until its owner has it. Outcomes to one owner wait a moment for each other, so that many small tasks
share a message.

Decides what is sent again, and when. Whether a record still wants it is read from the ledgers (`custody`).
"""

from __future__ import annotations

import heapq
import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from p2pscoop._core.custody import Held, HolderLedger, HolderState, OwnerLedger, OwnerState
from p2pscoop._core.ids import NodeId, TaskKey
from p2pscoop._core.limits import Limits
from p2pscoop._core.messages import Grant, Message, Result
from p2pscoop._core.values import GrantedTask, Spec, SpecKind, TaskEntry, TaskResult

__all__ = ["Deliveries"]


@dataclass(slots=True)
class _PendingGrant:
    """A grant of which some tasks are neither accepted nor rejected."""

    thief: NodeId
    steal: int
    waiting: set[TaskEntry]
    sent_at: float
    delay_s: float
    until: float


@dataclass(slots=True)
class _PendingResult:
    """An outcome that its owner has not acknowledged."""

    sent_at: float
    resend_at: float
    delay_s: float
    repeated: bool = False


@dataclass(slots=True)
class _Outbox:
    """Outcomes for one owner that wait for each other."""

    results: list[TaskResult] = field(default_factory=list)
    size: int = 0
    flush_at: float = 0.0


class _Delays:
    """How long peers take to answer, and so how long to wait before something is repeated.

    A peer that is overloaded answers late, and repetitions would be what keeps it so: the first comes after twice
    the usual time. (As TCP does it: Jacobson, Congestion Avoidance and Control, 1988.)
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._usual_s: dict[NodeId, float] = {}

    def note(self, peer: NodeId, took_s: float) -> None:
        """A peer has answered, so long after it was first asked."""
        usual_s = self._usual_s.get(peer, 0.0)
        self._usual_s[peer] = usual_s + (took_s - usual_s) * (0.5 if took_s > usual_s else 0.125)

    def first_s(self, peer: NodeId) -> float:
        """After how long to repeat something for the first time."""
        wanted_s = 2 * self._usual_s.get(peer, 0.0)
        return min(max(self._limits.resend_s, wanted_s), self._limits.resend_max_s)

    def forget(self, peer: NodeId) -> None:
        """A peer is gone."""
        self._usual_s.pop(peer, None)


class Deliveries:
    """The grants and outcomes of one node that are under way.

    Args:
        me: the node.
        owned: its tasks that are elsewhere.
        held: the tasks of others that it has.
        limits: bounds and durations.
    """

    def __init__(self, me: NodeId, owned: OwnerLedger, held: HolderLedger, limits: Limits) -> None:
        self._me = me
        self._owned = owned
        self._held = held
        self._limits = limits
        self._delays = _Delays(limits)
        self._grants: dict[NodeId, dict[int, _PendingGrant]] = {}
        self._offers: dict[TaskEntry, tuple[int, _PendingGrant]] = {}
        """The number of the grant that has a task, and that grant."""
        self._numbers = itertools.count()
        self._due: list[tuple[float, int, _PendingGrant]] = []
        """When grants are to be repeated: a heap, which may have some that are answered by now."""
        self._unacknowledged: dict[TaskKey, _PendingResult] = {}
        self._outboxes: dict[NodeId, _Outbox] = {}

    @property
    def empty(self) -> bool:
        """Whether nothing is under way."""
        return not (self._grants or self._unacknowledged or self._outboxes)

    def wake_at(self) -> float:
        """When something is due."""
        times = [outbox.flush_at for outbox in self._outboxes.values()]
        while self._due and not self._due[0][2].waiting:
            heapq.heappop(self._due)
        if self._due:
            times.append(self._due[0][0])
        if self._unacknowledged:
            # In the order of first sending. What was repeated stays in front and hides what was sent later;
            # that may be repeated late, which does no harm.
            times.append(next(iter(self._unacknowledged.values())).resend_at)
        return min(times, default=float("inf"))

    def forget(self, peer: NodeId) -> None:
        """A peer is gone: nothing is on its way to it any more."""
        for grant in self._grants.pop(peer, {}).values():
            for entry in grant.waiting:
                self._offers.pop(entry, None)
            grant.waiting.clear()
        self._delays.forget(peer)
        self._outboxes.pop(peer, None)
        for key in [key for key in self._unacknowledged if key.owner == peer]:
            del self._unacknowledged[key]

    # -------------------------------------------------------------------------------------- grants

    def add_grant(self, now: float, thief: NodeId, steal: int, tasks: Sequence[GrantedTask]) -> Grant:
        """The message that offers these tasks, to be repeated until it is answered."""
        waiting = {TaskEntry(task.owner, task.serial, task.token) for task in tasks}
        delay_s = self._delays.first_s(thief)
        grant = _PendingGrant(thief, steal, waiting, now, delay_s, now + self._limits.lease_s)
        number = next(self._numbers)
        self._grants.setdefault(thief, {})[number] = grant
        self._offers.update(dict.fromkeys(waiting, (number, grant)))
        heapq.heappush(self._due, (now + delay_s, number, grant))
        return Grant(steal, tuple(tasks))

    def on_answer(self, now: float, thief: NodeId, entries: Iterable[TaskEntry]) -> None:
        """A thief accepted or rejected tasks."""
        for entry in entries:
            number, grant = self._offers.get(entry, (0, None))
            if grant is None or grant.thief != thief:
                continue
            del self._offers[entry]
            grant.waiting.discard(entry)
            if not grant.waiting:
                self._delays.note(thief, now - grant.sent_at)
                self._end(number, grant)

    def _end(self, number: int, grant: _PendingGrant) -> None:
        """Nothing of a grant waits any more."""
        grants = self._grants.get(grant.thief, {})
        grants.pop(number, None)
        if not grants:
            self._grants.pop(grant.thief, None)

    @property
    def thieves(self) -> set[NodeId]:
        """Who has not answered a grant."""
        return set(self._grants)

    def vouch(self, now: float, thief: NodeId) -> None:
        """The thief says nothing, and its process lives: it will answer."""
        for grant in self._grants.get(thief, {}).values():
            grant.until = now + self._limits.lease_s

    def due_grants(self, now: float) -> tuple[list[tuple[NodeId, Grant]], list[Held]]:
        """Grants to repeat, and tasks of others whose offer was never answered and is withdrawn."""
        messages: list[tuple[NodeId, Grant]] = []
        withdrawn: list[Held] = []
        while self._due and self._due[0][0] <= now:
            _, number, grant = heapq.heappop(self._due)
            if not grant.waiting:
                continue
            tasks = []
            for entry in sorted(grant.waiting):
                spec = self._offered_spec(entry)
                if spec is None:
                    continue
                if now >= grant.until and entry.owner != self._me and spec.kind is not SpecKind.BOUNCED:
                    # The owner's own offers end with their lease, a holder's end here; but a bounced task can go
                    # nowhere but to its owner.
                    record = self._held.on_reject(grant.thief, TaskKey(entry.owner, entry.serial), entry.token)
                    if record is not None:
                        withdrawn.append(record)
                    continue
                tasks.append(GrantedTask(entry.owner, entry.serial, entry.token, spec))
            standing = {TaskEntry(task.owner, task.serial, task.token) for task in tasks}
            for entry in grant.waiting - standing:
                if self._offers.get(entry) == (number, grant):
                    del self._offers[entry]
            grant.waiting = standing
            if not tasks:
                self._end(number, grant)
                continue
            grant.delay_s = min(2 * grant.delay_s, self._limits.resend_max_s)
            heapq.heappush(self._due, (now + grant.delay_s, number, grant))
            messages.append((grant.thief, Grant(grant.steal, tuple(tasks))))
        return messages, withdrawn

    def _offered_spec(self, entry: TaskEntry) -> Spec | None:
        """What an offer consists of, as long as it stands."""
        if entry.owner == self._me:
            lent = self._owned.get(entry.serial)
            stands = lent is not None and lent.state is OwnerState.OFFERED and lent.token == entry.token
            return lent.spec if lent is not None and stands else None
        held = self._held.get(TaskKey(entry.owner, entry.serial))
        stands = held is not None and held.state is HolderState.OFFERED and held.token.passed() == entry.token
        return held.spec if held is not None and stands else None

    # ------------------------------------------------------------------------------------- outcomes

    def add_result(self, now: float, owner: NodeId, result: TaskResult) -> None:
        """An outcome for an owner; `flush` sends it."""
        outbox = self._outboxes.get(owner)
        if outbox is None:
            outbox = self._outboxes[owner] = _Outbox(flush_at=now + self._limits.result_delay_s)
        outbox.results.append(result)
        outbox.size += len(result.outcome.payload)
        if len(outbox.results) >= self._limits.result_batch_max or outbox.size >= self._limits.frame_max:
            outbox.flush_at = now

    def flush(self, now: float, *, only_due: bool) -> list[tuple[NodeId, Message]]:
        """The messages that carry the outcomes, all or those that have waited long enough."""
        messages: list[tuple[NodeId, Message]] = []
        for owner, outbox in list(self._outboxes.items()):
            if only_due and now < outbox.flush_at:
                continue
            del self._outboxes[owner]
            delay_s = self._delays.first_s(owner)
            for result in outbox.results:
                self._unacknowledged[TaskKey(owner, result.serial)] = _PendingResult(now, now + delay_s, delay_s)
            messages += [(owner, Result(batch, None)) for batch in self._batches(outbox.results)]
        return messages

    def on_result_ack(self, now: float, key: TaskKey) -> None:
        """The owner has an outcome."""
        pending = self._unacknowledged.pop(key, None)
        if pending is not None:
            self._delays.note(key.owner, now - pending.sent_at)

    def due_results(self, now: float) -> list[tuple[NodeId, Message]]:
        """Outcomes to repeat."""
        overdue: defaultdict[NodeId, list[TaskResult]] = defaultdict(list)
        for key, pending in list(self._unacknowledged.items()):
            if now < pending.resend_at:
                if not pending.repeated:
                    break  # Those behind were sent later.
                continue
            record = self._held.get(key)
            announced = None if record is None else record.announced
            if record is None or announced is None:
                del self._unacknowledged[key]
                continue
            pending.repeated = True
            pending.delay_s = min(2 * pending.delay_s, self._limits.resend_max_s)
            pending.resend_at = now + pending.delay_s
            overdue[key.owner].append(TaskResult(key.serial, record.token, announced))
        return [
            (owner, Result(batch, None)) for owner, results in overdue.items() for batch in self._batches(results)
        ]

    def _batches(self, results: Sequence[TaskResult]) -> list[tuple[TaskResult, ...]]:
        """Cut into messages that are neither too many nor too heavy; there is at least one."""
        batches: list[tuple[TaskResult, ...]] = []
        batch: list[TaskResult] = []
        size = 0
        for result in results:
            payload = len(result.outcome.payload)
            full = len(batch) >= self._limits.result_batch_max or size + payload > self._limits.frame_max
            if batch and full:
                batches.append(tuple(batch))
                batch, size = [], 0
            batch.append(result)
            size += payload
        batches.append(tuple(batch))
        return batches
