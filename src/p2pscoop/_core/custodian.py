"""The custody half of a node: who is told what about tasks that left their owner, and when it is repeated.

Turns messages into calls of the two ledgers, and what these say into effects. What a record becomes is decided
in `custody`, what is repeated in `delivery`; CUSTODY.md tells the protocol as a story. Whom to ask for work, and
who is there, is not decided here: `node` puts the halves together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from p2pscoop._core.custody import Held, HolderLedger, HolderState, Lent, OwnerLedger
from p2pscoop._core.delivery import Deliveries
from p2pscoop._core.effects import (
    ComeHome,
    Effect,
    Enqueue,
    Interrupt,
    Kept,
    Passed,
    Poisoned,
    Released,
    Settle,
    Withdraw,
)
from p2pscoop._core.ids import NodeId, TaskKey
from p2pscoop._core.limits import Limits
from p2pscoop._core.membership import Membership
from p2pscoop._core.messages import (
    Accept,
    Cancel,
    Fetch,
    Grant,
    Holding,
    HoldingAck,
    NoWork,
    Reject,
    Result,
    ResultAck,
)
from p2pscoop._core.post import Post
from p2pscoop._core.values import (
    BOUNCED,
    GrantedTask,
    MemberState,
    Outcome,
    OutcomeKind,
    OwnTask,
    Spec,
    SpecKind,
    TaskEntry,
    TaskResult,
)

__all__ = ["Counters", "Custodian"]

Guests = Sequence[tuple[TaskKey, Spec | None]]
"""Tasks of others; those that were started, with their continuation."""

_ENTRIES_PER_MESSAGE = 1000
"""Rows of HOLDING, ACCEPT and the like in one message, so that a header stays far below its limit."""


@dataclass(slots=True)
class Counters:
    """What a node did, since its start. Tasks, unless the name says otherwise."""

    steals: int = 0
    """Steals sent, registrations included."""
    steals_failed: int = 0
    """Steals that were answered with nothing."""
    stolen: int = 0
    """Accepted from others."""
    given: int = 0
    """Granted to others, own and foreign."""
    returned: int = 0
    """Own tasks whose outcome came from another node."""
    requeued: int = 0
    """Own tasks whose holder was lost."""
    poisoned: int = 0
    """Own tasks that killed too many nodes, and were given up."""
    bounced: int = 0
    """Continuations of others that could not go on here."""
    resent: int = 0
    """Messages repeated for want of an acknowledgement."""


class Custodian:
    """Keeps both ledgers of one node.

    Args:
        me: the node.
        membership: who is there.
        post: its mail.
        counters: of the node.
        limits: bounds and durations.
    """

    def __init__(self, me: NodeId, membership: Membership, post: Post, counters: Counters, limits: Limits) -> None:
        self._me = me
        self._post = post
        self._membership = membership
        self._counters = counters
        self._limits = limits
        self._stopped: dict[int, None] = {}
        """Serials of cancelled tasks that may still run somewhere."""
        self.owned = OwnerLedger(self._me, limits.lease_s)
        self.held = HolderLedger(limits.tombstones_max)
        self.deliveries = Deliveries(self._me, self.owned, self.held, limits)

    @property
    def quiescent(self) -> bool:
        """Whether no task, of its own or of others, is on its way or in custody."""
        return not (len(self.owned) or len(self.held)) and self.deliveries.empty

    # --------------------------------------------------------------------------- inputs of the shell

    def give(
        self,
        now: float,
        thief: NodeId,
        steal: int,
        own: Sequence[OwnTask],
        held: Guests,
        *,
        answer: bool = True,
    ) -> list[Effect]:
        """Grant tasks to a thief: the answer to `Surrender`.

        Args:
            now: the time.
            thief: from `Surrender`.
            steal: from `Surrender`.
            answer: from `Surrender`.
            own: this node's tasks.
            held: tasks of others, out of the queue; those that were started, with their continuation.
        """
        if not self._membership.is_alive(thief):
            return self._give_up_giving(own, held)
        own, held, effects = self._part_suspects(thief, own, held)
        tasks: list[GrantedTask] = []
        for task in own:
            if task.serial is not None and self.owned.get(task.serial) is None:
                continue  # Its outcome came from an earlier holder, while it was being pickled.
            lent = self.owned.lend(now, task, thief)
            tasks.append(GrantedTask(self._me, lent.serial, lent.token, task.spec))
        for key, continuation in held:
            record = self.held.offer(key, thief, continuation)
            if record is not None and record.spec is not None:
                tasks.append(GrantedTask(key.owner, key.serial, record.token.passed(), record.spec))
        if not tasks:
            return effects + (self._post.to(thief, NoWork(steal)) if answer else [])
        self._counters.given += len(tasks)
        return effects + self._post.to(thief, self.deliveries.add_grant(now, thief, steal, tasks))

    def give_back(self, now: float, held: Guests) -> list[Effect]:
        """Return tasks of others, out of the queue, to their owners (a leaving node does); see `give`."""
        by_owner: defaultdict[NodeId, list[tuple[TaskKey, Spec | None]]] = defaultdict(list)
        for key, continuation in held:
            by_owner[key.owner].append((key, continuation))
        effects: list[Effect] = []
        for owner, returned in by_owner.items():
            effects += self.give(now, owner, 0, (), returned)
        return effects

    def bounce(self, now: float, key: TaskKey) -> list[Effect]:
        """A continuation that was begun here does not restore: its owner has to use its own copy."""
        record = self.held.bounce(key)
        if record is None:
            return []
        self._counters.bounced += 1
        self.held.offer(key, key.owner, BOUNCED)
        returned = GrantedTask(key.owner, key.serial, record.token.passed(), BOUNCED)
        # To an owner that is not known yet it goes with a repetition.
        return self._post.to(key.owner, self.deliveries.add_grant(now, key.owner, 0, [returned]))

    def finish(self, now: float, key: TaskKey, outcome: Outcome, *, leaving: bool) -> list[Effect]:
        """A task of another node ended."""
        record = self.held.finish(key, outcome)
        if record is None:
            return []
        owner = self._membership.row(key.owner)
        large = outcome.kind is OutcomeKind.VALUE and len(outcome.payload) >= self._limits.bulk_min
        # An owner that runs no tasks has nothing to send after the value, and wants it at once.
        record.kept = large and not leaving and owner is not None and owner.info.runs_tasks
        return self._deliver(now, record)

    def _deliver(self, now: float, record: Held) -> list[Effect]:
        announced = record.announced
        assert announced is not None, "it has finished"
        key = record.key
        self.deliveries.add_result(now, key.owner, TaskResult(key.serial, record.token, announced))
        return self._post.all(self.deliveries.flush(now, only_due=True))

    def fetch(self, serial: int) -> list[Effect]:
        """The value of an own task, which its holder keeps, is wanted here."""
        record = self.owned.get(serial)
        if record is None or not record.kept or record.wanted:
            return []
        record.wanted = True
        return self._post.to(record.holder, Fetch((serial,)))

    def release(self, serial: int) -> list[Effect]:
        """Nobody wants the outcome of an own task any more."""
        record = self.owned.settle(serial)
        if record is None or record.holder == self._me:
            return []
        message = ResultAck((serial,)) if record.kept else Cancel((serial,))
        return self._post.to(record.holder, message)

    def hand_over(self, now: float, keys: Iterable[TaskKey]) -> list[Effect]:
        """Send the values of these tasks that were kept."""
        records = [self.held.unkeep(key) for key in keys]
        return [effect for record in records if record is not None for effect in self._deliver(now, record)]

    def cancel(self, serial: int, *, stop: bool) -> list[Effect]:
        """A lent task is not wanted any more; its holder need not start it, or is to interrupt it."""
        record = self.owned.settle(serial)
        if record is None:
            return []
        if stop:
            # Until its holder has heard of it, or whoever that one passed it on to.
            self._stopped[serial] = None
            if len(self._stopped) > self._limits.stopped_max:
                del self._stopped[next(iter(self._stopped))]
        return [] if record.holder == self._me else self._post.to(record.holder, Cancel((serial,), stop))

    # -------------------------------------------------------------------------------------- messages

    def on_grant(self, sender: NodeId, message: Grant, *, leaving: bool) -> list[Effect]:
        """Tasks for this node, or on their way home. A leaving node takes no others."""
        if sender not in self._membership:
            return []  # It will repeat the grant, and have introduced itself by then.
        effects: list[Effect] = []
        own: list[GrantedTask] = []
        taken: list[GrantedTask] = []
        rejected: list[GrantedTask] = []
        new: list[GrantedTask] = []
        for task in message.tasks:
            if task.owner == self._me:
                own.append(task)  # Always taken back.
                continue
            answer = self.held.answer(TaskKey(task.owner, task.serial), task.token)
            (new if answer is None else taken if answer else rejected).append(task)
        reason = "rejected before"
        full = len(self.held) + len(new) > self._limits.held_max
        for task in new:
            # Race 9 of CUSTODY.md: what became of an owner that is not known is never heard here.
            if not leaving and not full and task.owner in self._membership:
                taken.append(task)
                continue
            reason = "leaving" if leaving else f"holds {len(self.held)} tasks" if full else "owner not known here"
            self.held.refuse(TaskKey(task.owner, task.serial), task.token)
            rejected.append(task)
        if rejected:
            # It stays where it was.
            effects += self._post.to(sender, Reject(tuple(map(_entry, rejected)), reason))
        entries = tuple(_entry(task) for task in (*own, *taken))
        for task in own:
            lent = self.owned.on_return(task.serial, task.token)
            if lent is not None:
                came = None if task.spec.kind is SpecKind.FRESH else task.spec
                effects.append(ComeHome(lent.handle, lent.serial, came))
        queued: list[Held] = []
        for task in taken:
            if self._membership.is_gone(task.owner):
                continue  # Accepted, so that the giver forgets it too, and dropped: nobody waits for it.
            record = self.held.on_grant(TaskKey(task.owner, task.serial), task.token, task.spec)
            if record is not None:
                queued.append(record)
        if queued:
            self._counters.stolen += len(queued)
            effects += self._enqueue(queued)
        if entries:
            effects += self._post.to(sender, Accept(entries))
        # Owners that are not the giver learn at once where their tasks are, not at the next renewal.
        effects += self.renew_leases(record for record in queued if record.key.owner != sender)
        return effects

    def on_accept(self, now: float, sender: NodeId, message: Accept) -> list[Effect]:
        """A thief has tasks that were granted from here, or passed on since."""
        effects: list[Effect] = []
        for entry in message.entries:
            if entry.owner == self._me:
                lent = self.owned.on_accept(now, sender, entry.serial, entry.token)
                if lent is not None:
                    effects.append(Released(lent.handle))
            else:
                passed = self.held.on_accept(sender, TaskKey(entry.owner, entry.serial), entry.token)
                if passed is not None:
                    effects.append(Passed(passed.key))
        self.deliveries.on_answer(now, sender, message.entries)
        return effects

    def on_reject(self, now: float, sender: NodeId, message: Reject) -> list[Effect]:
        """A thief does not take tasks that were granted from here."""
        effects: list[Effect] = []
        queued: list[Held] = []
        for entry in message.entries:
            if entry.owner == self._me:
                lent = self.owned.on_reject(sender, entry.serial, entry.token)
                if lent is not None:
                    effects.append(ComeHome(lent.handle, lent.serial))
            else:
                record = self.held.on_reject(sender, TaskKey(entry.owner, entry.serial), entry.token)
                if record is not None:
                    queued.append(record)
        self.deliveries.on_answer(now, sender, message.entries)
        return effects + self._enqueue(queued)

    def on_result(self, now: float, sender: NodeId, message: Result) -> list[Effect]:
        """Outcomes of tasks of this node, or word of values that stay with their holder."""
        effects: list[Effect] = []
        hungry = message.steal is not None
        acknowledged = []
        for result in message.results:
            known = self.owned.get(result.serial)
            if result.outcome.kind is OutcomeKind.KEPT and known is not None:
                effects += self._on_kept(now, sender, result, hungry, news=not known.kept)
                continue
            acknowledged.append(result.serial)
            lent = self.owned.settle(result.serial)
            if lent is not None:
                self._counters.returned += 1
                effects.append(Settle(lent.handle, result.outcome, sender, hungry))
        if acknowledged:
            effects += self._post.to(sender, ResultAck(tuple(acknowledged)))
        return effects

    def _on_kept(
        self, now: float, sender: NodeId, result: TaskResult, hungry: bool, *, news: bool
    ) -> list[Effect]:
        """Not acknowledged: the holder says it again until the value is fetched or released."""
        record = self.owned.on_kept(now, sender, result.serial, result.token)
        if record is None:
            return []
        if lost := self._lose_late_claims(sender):
            return lost
        if record.wanted:
            return self._post.to(sender, Fetch((result.serial,)))
        return [Kept(record.handle, record.serial, sender, hungry)] if news else []

    def on_fetch(self, now: float, sender: NodeId, message: Fetch) -> list[Effect]:
        """An owner wants values that were kept."""
        return self.hand_over(now, [TaskKey(sender, serial) for serial in message.serials])

    def on_result_ack(self, now: float, sender: NodeId, message: ResultAck) -> list[Effect]:
        """An owner has outcomes."""
        for serial in message.serials:
            key = TaskKey(sender, serial)
            self.held.on_result_ack(key)
            self.deliveries.on_result_ack(now, key)
        return []

    def on_holding(self, now: float, sender: NodeId, message: Holding) -> list[Effect]:
        """A holder says what it has."""
        mine = (entry for entry in message.entries if entry.owner == self._me)
        obsolete, released = self.owned.on_holding(now, sender, mine)
        effects: list[Effect] = [Released(lent.handle) for lent in released]
        if obsolete:
            effects += self._post.to(sender, HoldingAck(obsolete))
        stopped = tuple(entry.serial for entry in obsolete if entry.serial in self._stopped)
        if stopped:
            effects += self._post.to(sender, Cancel(stopped, stop=True))
        return effects + self._lose_late_claims(sender)

    def on_holding_ack(self, _: float, sender: NodeId, message: HoldingAck) -> list[Effect]:
        """An owner's verdict on what this node has."""
        dropped = []
        for entry in message.obsolete:
            if entry.owner == sender:
                record = self.held.on_obsolete(entry)
                if record is not None:
                    dropped.append(record.key)
        return [Withdraw(tuple(dropped))] if dropped else []

    def on_cancel(self, _: float, sender: NodeId, message: Cancel) -> list[Effect]:
        """An owner does not want tasks any more."""
        dropped, running = [], []
        for serial in message.serials:
            key = TaskKey(sender, serial)
            if self.held.cancel(key) is not None:
                dropped.append(key)
            elif message.stop and self.held.stop(key) is not None:
                running.append(key)
        effects: list[Effect] = [Withdraw(tuple(dropped))] if dropped else []
        return [*effects, Interrupt(tuple(running))] if running else effects

    # ------------------------------------------------------------------------------- losses and time

    def lose(self, now: float, peer: NodeId, *, drained: bool, killed: bool) -> list[Effect]:
        """Settle everything that was between this node and a peer that is gone."""
        self.deliveries.forget(peer)
        effects: list[Effect] = []
        if drained:
            # Race 8 of CUSTODY.md: its goodbye may be here before the word of those that it passed tasks to.
            self.owned.release_holder(now, peer, self._limits.leave_s)
        else:
            effects += self.requeue(self.owned.lose_holder(peer, killed=killed))
        withdrawn = self.held.lose_owner(peer)
        effects += self._enqueue(self.held.lose_target(peer))
        if withdrawn:
            effects.append(Withdraw(tuple(record.key for record in withdrawn)))
        return effects

    def _lose_late_claims(self, sender: NodeId) -> list[Effect]:
        """Race 11 of CUSTODY.md: what a node claims whose death was known before its word came is lost with it."""
        row = self._membership.row(sender)
        dead = row is not None and row.state is MemberState.DEAD
        return self.requeue(self.owned.lose_holder(sender)) if dead else []

    @property
    def counterparts(self) -> set[NodeId]:
        """On whom custodies depend: holders of this node's tasks, and thieves that have not answered."""
        return self.owned.holders | self.deliveries.thieves

    def vouch(self, now: float, peer: NodeId, heard_at: float) -> None:
        """A peer is silent, but lives: nothing that is between it and this node ends for want of its word."""
        self.owned.vouch(now, peer, heard_at)
        self.deliveries.vouch(now, peer)

    def renew(self, now: float, peer: NodeId) -> None:
        """This node did not listen for a while: the same, whatever the peer said or did not say."""
        self.owned.renew(now, peer)
        self.deliveries.vouch(now, peer)

    def requeue(self, lost: Sequence[Lent]) -> list[Effect]:
        """Own tasks whose custody was lost are to be run again, unless they killed too many nodes."""
        effects: list[Effect] = []
        for record in lost:
            deaths_max = self._limits.deaths_max if record.deaths_max is None else record.deaths_max
            if len(record.suspected) >= deaths_max:
                self._counters.poisoned += 1
                self.owned.settle(record.serial)
                effects.append(Poisoned(record.handle, record.suspected))
            else:
                # What was offered to one that left, and never got there, was not lost with anybody.
                self._counters.requeued += record.lease_until >= record.claimed_at + self._limits.lease_s
                effects.append(ComeHome(record.handle, record.serial))
        return effects

    def _part_suspects(
        self, thief: NodeId, own: Sequence[OwnTask], held: Guests
    ) -> tuple[Sequence[OwnTask], Guests, list[Effect]]:
        """What of these tasks to grant: a suspect goes alone, the others up to the first suspect.

        So it is known which task it was if the thief dies as well, and no other has to wait behind it there.
        """
        at = next((index for index, task in enumerate(own) if self._is_suspect(task.serial)), None)
        if at is None:
            return own, held, []
        if at > 0 or self.owned.has_suspect(thief):
            return own[:at], held, self._give_up_giving(own[at:], ())
        return own[:1], (), self._give_up_giving(own[1:], held)

    def _is_suspect(self, serial: int | None) -> bool:
        record = None if serial is None else self.owned.get(serial)
        return record is not None and bool(record.suspected)

    def renew_leases(self, records: Iterable[Held]) -> list[Effect]:
        """Tell owners that their tasks are here."""
        by_owner: defaultdict[NodeId, list[TaskEntry]] = defaultdict(list)
        for record in records:
            if not record.orphan:
                by_owner[record.key.owner].append(record.entry)
        effects: list[Effect] = []
        for owner, entries in by_owner.items():
            for start in range(0, len(entries), _ENTRIES_PER_MESSAGE):
                effects += self._post.to(owner, Holding(tuple(entries[start : start + _ENTRIES_PER_MESSAGE])))
        return effects

    def resend(self, now: float) -> list[Effect]:
        """Repeat what was not acknowledged in time."""
        grants, withdrawn = self.deliveries.due_grants(now)
        results = self.deliveries.due_results(now)
        self._counters.resent += len(grants) + len(results)
        return self._post.all([*grants, *results]) + self._enqueue(withdrawn)

    def _enqueue(self, records: Sequence[Held]) -> list[Effect]:
        tasks = tuple((record.key, record.spec) for record in records if record.spec is not None)
        return [Enqueue(tasks)] if tasks else []

    def _give_up_giving(self, own: Sequence[OwnTask], held: Guests) -> list[Effect]:
        """What was taken for a thief goes back: the thief is gone, or not to have it now."""
        effects: list[Effect] = [ComeHome(task.handle, task.serial) for task in own]
        tasks = []
        for key, continuation in held:
            record = self.held.get(key)
            if record is not None and record.state is HolderState.QUEUED:
                spec = record.spec if continuation is None else continuation
                assert spec is not None, "a queued task has a spec, or was started and given with one"
                tasks.append((key, spec))
        return effects + ([Enqueue(tuple(tasks))] if tasks else [])


def _entry(task: GrantedTask) -> TaskEntry:
    return TaskEntry(task.owner, task.serial, task.token)
