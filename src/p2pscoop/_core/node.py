"""One node of the protocol: composes membership, stealing and custody, and is all that a shell sees.

Pure: bytes do not come here, only messages; time is the `now` of each call; randomness is a generator that is
handed in. Every input returns the effects that the shell has to carry out, in order. The same class runs in
production and in the simulator.

Decides who is told what, and when it is repeated. What a record becomes is decided in `custody`, who is there
in `membership`, whom to ask for work in `stealing`.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from p2pscoop._core.codec import Envelope
from p2pscoop._core.custody import Held, HolderLedger, HolderState, Lent, OwnerLedger
from p2pscoop._core.delivery import Deliveries
from p2pscoop._core.effects import (
    Answered,
    Arrived,
    Asked,
    ComeHome,
    Departed,
    Disconnect,
    Effect,
    Enqueue,
    Joined,
    Kept,
    Passed,
    Prepare,
    Refused,
    Released,
    Report,
    Send,
    SendToSeeds,
    Settle,
    StatusArrived,
    Surrender,
    Withdraw,
)
from p2pscoop._core.ids import NOBODY, NodeId, TaskKey
from p2pscoop._core.limits import Limits
from p2pscoop._core.membership import Change, ChangeKind, Membership
from p2pscoop._core.messages import (
    Accept,
    Answer,
    Ask,
    Cancel,
    Fetch,
    Grant,
    Holding,
    HoldingAck,
    Join,
    Leaving,
    Message,
    NotMe,
    NoWork,
    Refuse,
    Reject,
    Result,
    ResultAck,
    Status,
    StatusRequest,
    Steal,
    Sync,
    Welcome,
)
from p2pscoop._core.stealing import Attempt, Thief, ThiefState, WaitingThieves
from p2pscoop._core.values import (
    BOUNCED,
    GrantedTask,
    MemberState,
    Outcome,
    OutcomeKind,
    PeerInfo,
    Spec,
    SpecKind,
    TaskEntry,
    TaskResult,
)

__all__ = ["Counters", "Node"]

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
    bounced: int = 0
    """Continuations of others that could not go on here."""
    resent: int = 0
    """Messages repeated for want of an acknowledgement."""


class Node:
    """A member of the cluster.

    Args:
        info: what this node tells of itself.
        rng: own generator; never the caller's.
        limits: bounds and durations.
        python: major and minor version, compared with that of every node that wants to join.
        founder: whether the node is a member without having been let in (it has no seeds).
        program: what peers have to prepare before they run this node's tasks, pickled by the shell.
    """

    def __init__(
        self,
        info: PeerInfo,
        rng: random.Random,
        limits: Limits,
        *,
        python: str,
        founder: bool,
        program: bytes | None = None,
    ) -> None:
        self.info = info
        self.limits = limits
        self.counters = Counters()
        self.membership = Membership(info, limits)
        self.owned = OwnerLedger(info.id, limits.lease_s)
        self.held = HolderLedger(limits.tombstones_max)
        self.joined = founder
        self.leaving = False
        self._python = python
        self._rng = rng
        self._programs: dict[NodeId, bytes] = {} if program is None else {info.id: program}
        self._thief = Thief(info.id, rng, limits)
        self._waiting = WaitingThieves(limits)
        self._early_steals: dict[NodeId, Steal] = {}
        self._deliveries = Deliveries(info.id, self.owned, self.held, limits)
        self._join_at = 0.0
        self._sync_at = 0.0
        self._holding_at = 0.0
        self._lease_at = 0.0
        self._handlers: dict[type[Message], Callable[[float, NodeId, Any], list[Effect]]] = {
            Join: self._on_join,
            Welcome: self._on_welcome,
            Refuse: self._on_refuse,
            Sync: self._on_sync,
            Leaving: self._on_leaving,
            NotMe: self._on_not_me,
            Steal: self._on_steal,
            NoWork: self._on_no_work,
            Grant: self._on_grant,
            Accept: self._on_accept,
            Reject: self._on_reject,
            Result: self._on_result,
            ResultAck: self._on_result_ack,
            Fetch: self._on_fetch,
            Holding: self._on_holding,
            HoldingAck: self._on_holding_ack,
            Cancel: self._on_cancel,
            StatusRequest: self._on_status_request,
            Status: self._on_status,
            Ask: self._on_ask,
            Answer: self._on_answer,
        }

    # -------------------------------------------------------------------------------------- looking

    @property
    def id(self) -> NodeId:
        """This node's id."""
        return self.info.id

    @property
    def hungry(self) -> bool:
        """Whether thieves wait for this node to get work."""
        return len(self._waiting) > 0

    @property
    def quiescent(self) -> bool:
        """Whether no task, of its own or of others, is on its way or in custody."""
        return not (len(self.owned) or len(self.held)) and self._deliveries.empty

    def wake_at(self) -> float:
        """When `tick` should be called at the latest, on the clock of `now`."""
        times = [self._sync_at, self._holding_at, self._lease_at, self._deliveries.wake_at()]
        if not self.joined:
            times.append(self._join_at)
        if self._thief.wake_at is not None:
            times.append(self._thief.wake_at)
        return min(times)

    # --------------------------------------------------------------------------- inputs of the shell

    def start(self, now: float) -> list[Effect]:
        """The node's process is ready: ask the seeds to be let in."""
        self._sync_at = now + self.limits.sync_s
        self._holding_at = now + self.limits.holding_s
        self._lease_at = now + 1.0
        return self._join(now)

    def receive(self, now: float, envelope: Envelope) -> list[Effect]:
        """A message arrived."""
        sender, recipient, message = envelope
        if recipient not in (self.id, NOBODY):
            return self._to(sender, NotMe(recipient))
        effects: list[Effect] = []
        if self.membership.is_gone(sender) and not isinstance(message, (Join, Sync, Leaving)):
            # It was taken for dead and is not: tell it, so that it refutes. What it says still counts.
            row = self.membership.row(sender)
            if row is not None and row.state is MemberState.DEAD:
                effects += self._to(sender, Sync((row,), answer=True))
        return effects + self._handlers[type(message)](now, sender, message)

    def tick(self, now: float) -> list[Effect]:
        """Time has passed: do what is due."""
        effects: list[Effect] = []
        if not self.joined and now >= self._join_at:
            effects += self._join(now)
        if now >= self._sync_at:
            effects += self._sync(now)
        if now >= self._holding_at:
            self._holding_at = now + self.limits.holding_s
            effects += self._renew_leases(self.held)
        if now >= self._lease_at:
            self._lease_at = now + 1.0
            effects += self._requeue(self.owned.expire(now))
        effects += self._resend(now)
        effects += self._post(self._deliveries.flush(now, only_due=True))
        if self.joined and not self.leaving:
            effects += self._steal(self._thief.tick(now, self.membership.alive_peers()))
        return effects

    def seek(self, now: float) -> list[Effect]:
        """The node has nothing to run: send what is finished, and look for work."""
        results = self._deliveries.flush(now, only_due=False)
        if not self.joined or self.leaving or self._thief.state is not ThiefState.BUSY:
            return self._post(results)
        if not results:
            return self._steal(self._thief.seek(now, self.membership.alive_peers()))
        # Whoever lent this node its last task may well have more: ask along with the result.
        owner, message = results.pop()
        if isinstance(message, Result) and self.membership.is_alive(owner):
            self.counters.steals += 1
            message = replace(message, steal=self._thief.ride_along(now, owner))
        return self._post([*results, (owner, message)])

    def found_work(self) -> None:
        """The node has something to run, from wherever: it stops looking."""
        self._thief.found()

    def feed(self, now: float) -> list[Effect]:
        """The node has work to give: offer it to the thieves that wait."""
        effects: list[Effect] = []
        for thief, steal in self._waiting.waiting(now):
            if self.membership.is_alive(thief):
                effects.append(Surrender(thief, steal, self.limits.steal_batch_max, answer=False))
            else:
                self._waiting.discard(thief)
        return effects

    def give(
        self,
        now: float,
        thief: NodeId,
        steal: int,
        own: Sequence[tuple[object, int | None, Spec]],
        held: Sequence[tuple[TaskKey, Spec | None]],
        *,
        answer: bool = True,
    ) -> list[Effect]:
        """Grant tasks to a thief: the answer to `Surrender`.

        Args:
            now: the time.
            thief: from `Surrender`.
            steal: from `Surrender`.
            answer: from `Surrender`.
            own: this node's tasks, each as (handle, serial if it was lent before, spec).
            held: tasks of others, out of the queue; those that were started, with their continuation.
        """
        row = self.membership.row(thief)
        if row is None or row.state is not MemberState.ALIVE:
            return self._give_up_giving(own, held)
        tasks: list[GrantedTask] = []
        for handle, serial, spec in own:
            if serial is not None and self.owned.get(serial) is None:
                continue  # Its outcome came from an earlier holder, while it was being pickled.
            lent = self.owned.lend(now, handle, serial, spec, thief)
            tasks.append(GrantedTask(self.id, lent.serial, lent.token, spec))
        for key, continuation in held:
            record = self.held.offer(key, thief, continuation)
            if record is not None and record.spec is not None:
                tasks.append(GrantedTask(key.owner, key.serial, record.token.passed(), record.spec))
        if not tasks:
            return self._to(thief, NoWork(steal)) if answer else []
        self._waiting.discard(thief)
        self.counters.given += len(tasks)
        return self._to(thief, self._deliveries.add_grant(now, thief, steal, tasks))

    def give_back(self, now: float, held: Sequence[tuple[TaskKey, Spec | None]]) -> list[Effect]:
        """Return tasks of others, out of the queue, to their owners (a leaving node does); see `give`."""
        by_owner: defaultdict[NodeId, list[tuple[TaskKey, Spec | None]]] = defaultdict(list)
        for key, continuation in held:
            by_owner[key.owner].append((key, continuation))
        effects: list[Effect] = []
        for owner, returned in by_owner.items():
            effects += self.give(now, owner, 0, (), returned)
        return effects

    def ready(self, key: TaskKey) -> bool:
        """A started task of another node waited, and can go on: it is queued again, and may be given away.

        Returns:
            False if nobody waits for it any more: forget it.
        """
        return self.held.ready(key)

    def bounce(self, now: float, key: TaskKey) -> list[Effect]:
        """A continuation that was begun here does not restore: its owner has to use its own copy."""
        record = self.held.bounce(key)
        if record is None:
            return []
        self.counters.bounced += 1
        return self.give_back(now, [(key, BOUNCED)])

    def begin(self, key: TaskKey) -> bool:
        """The node starts a task of another node. False if it is no longer the node's to run."""
        return self.held.start(key) is not None

    def finish(self, now: float, key: TaskKey, outcome: Outcome) -> list[Effect]:
        """A task of another node ended."""
        record = self.held.finish(key, outcome)
        if record is None:
            return []
        owner = self.membership.row(key.owner)
        large = outcome.kind is OutcomeKind.VALUE and len(outcome.payload) >= self.limits.bulk_min
        # An owner that runs no tasks has nothing to send after the value, and wants it at once.
        record.kept = large and not self.leaving and owner is not None and owner.info.runs_tasks
        return self._deliver(now, record)

    def _deliver(self, now: float, record: Held) -> list[Effect]:
        announced = record.announced
        assert announced is not None, "it has finished"
        key = record.key
        self._deliveries.add_result(now, key.owner, TaskResult(key.serial, record.token, announced))
        return self._post(self._deliveries.flush(now, only_due=True))

    def fetch(self, serial: int) -> list[Effect]:
        """The value of an own task, which its holder keeps, is wanted here: `Settle` follows, or `ComeHome`."""
        record = self.owned.get(serial)
        if record is None or not record.kept or record.wanted:
            return []
        record.wanted = True
        return self._to(record.holder, Fetch((serial,)))

    def release(self, serial: int) -> list[Effect]:
        """Nobody wants the outcome of an own task any more."""
        record = self.owned.settle(serial)
        if record is None or record.holder == self.id:
            return []
        message = ResultAck((serial,)) if record.kept else Cancel((serial,))
        return self._to(record.holder, message)

    def kept(self, key: TaskKey) -> Outcome | None:
        """A value that this node keeps for its owner."""
        record = self.held.get(key)
        return record.outcome if record is not None and record.kept else None

    def replace_handle(self, serial: int, handle: object) -> None:
        """Know an own task that is elsewhere by another handle."""
        record = self.owned.get(serial)
        if record is not None:
            record.handle = handle

    def settled_at_home(self, serial: int) -> None:
        """A task that had been lent and came home ended here."""
        self.owned.settle(serial)

    def cancel(self, serial: int) -> list[Effect]:
        """A lent task is not wanted any more; its holder need not start it."""
        record = self.owned.get(serial)
        if record is None:
            return []
        self.owned.settle(serial)
        return [] if record.holder == self.id else self._to(record.holder, Cancel((serial,)))

    def peer_lost(self, now: float, peer: NodeId) -> list[Effect]:
        """The pipe to a peer was removed: its process is gone."""
        return self._apply(now, self.membership.die(peer))

    def ask_status(self, query: int) -> list[Effect]:
        """Ask all peers for their counters; answers come as `StatusArrived`."""
        return self._to_all(StatusRequest(query))

    def report(self, peer: NodeId, query: int, counters: bytes) -> list[Effect]:
        """Answer a peer's question for counters."""
        return self._to(peer, Status(query, counters))

    def ask(self, peer: NodeId, query: int, question: bytes) -> list[Effect]:
        """Ask a peer's shell something; the answer comes as `Answered`. Either may get lost."""
        return self._to(peer, Ask(query, question))

    def answer(self, peer: NodeId, query: int, answer: bytes) -> list[Effect]:
        """Answer a peer's question."""
        return self._to(peer, Answer(query, answer))

    def leave(self, now: float) -> list[Effect]:
        """Take no more tasks, keep no values. What is queued goes home with `give_back`, what runs is finished."""
        self.leaving = True
        self._thief.found()
        return [effect for key in [record.key for record in self.held] for effect in self._hand_over(now, key)]

    def _hand_over(self, now: float, key: TaskKey) -> list[Effect]:
        record = self.held.unkeep(key)
        return [] if record is None else self._deliver(now, record)

    def goodbye(self, reason: str, *, failed: bool = False) -> list[Effect]:
        """The last word to all peers."""
        self.leaving = True
        return self._to_all(Leaving(reason, failed))

    # ------------------------------------------------------------------------ handlers: membership

    def _on_join(self, now: float, sender: NodeId, message: Join) -> list[Effect]:
        info = message.info
        if info.id != sender or sender == self.id:
            return []
        if message.python != self._python:
            return [
                Send(
                    info,
                    Refuse(
                        f"the cluster runs Python {self._python}, this node Python {message.python}: "
                        "code cannot be pickled from one to the other"
                    ),
                )
            ]
        if info.version != self.info.version:
            return [
                Send(
                    info,
                    Refuse(f"the cluster runs p2pscoop {self.info.version}, this node {info.version}"),
                )
            ]
        if self.leaving or not self.joined:
            return []  # It asks again, and finds another member or this one further on.
        effects = self._apply(now, self.membership.arrive(info))
        welcome = Welcome(self.membership.rows(), tuple(self._programs.items()))
        return [*effects, Send(info, welcome)]

    def _on_welcome(self, now: float, _: NodeId, message: Welcome) -> list[Effect]:
        if self.joined:
            return []
        self.joined = True
        effects: list[Effect] = []
        for origin, program in message.programs:
            if origin not in self._programs:
                self._programs[origin] = program
                effects.append(Prepare(origin, program))
        effects += self._apply(now, self.membership.merge(message.members))
        # Introduce this node before it asks anyone for anything: a stranger's steal has to wait.
        me = self.membership.row(self.id)
        assert me is not None
        return [*effects, *self._to_all(Sync((me,), answer=False)), Joined()]

    def _on_refuse(self, _now: float, _sender: NodeId, message: Refuse) -> list[Effect]:
        return [] if self.joined else [Refused(message.reason)]

    def _on_sync(self, now: float, sender: NodeId, message: Sync) -> list[Effect]:
        effects = self._apply(now, self.membership.merge(message.members))
        if message.answer and not self.leaving:
            effects += self._to(sender, Sync(self.membership.rows(), answer=False))
        return effects

    def _on_leaving(self, now: float, sender: NodeId, message: Leaving) -> list[Effect]:
        return self._apply(now, self.membership.leave(sender), message.reason, message.failed)

    def _on_not_me(self, now: float, _: NodeId, message: NotMe) -> list[Effect]:
        return self._apply(now, self.membership.die(message.intended))

    def _apply(
        self, now: float, changes: Iterable[Change], reason: str | None = None, failed: bool = False
    ) -> list[Effect]:
        effects: list[Effect] = []
        for change in changes:
            peer = change.info.id
            if change.kind is ChangeKind.ARRIVED:
                effects.append(Arrived(change.info))
                early = self._early_steals.pop(peer, None)
                if early is not None:
                    effects += self._on_steal(now, peer, early)
                if self.joined and not self.leaving:
                    effects += self._steal(self._thief.on_arrival(now, self.membership.alive_peers()))
                continue
            effects += self._lose(now, peer)
            if change.kind is ChangeKind.MISSED:
                continue
            effects.append(Departed(change.info, reason, failed))
            effects.append(Disconnect(peer))
        return effects

    def _lose(self, now: float, peer: NodeId) -> list[Effect]:
        """Settle everything that was between this node and a peer that is gone."""
        self._waiting.discard(peer)
        self._deliveries.forget(peer)
        effects = self._requeue(self.owned.lose_holder(peer))
        effects += self._enqueue(self.held.lose_target(peer))
        withdrawn = self.held.lose_owner(peer)
        if withdrawn:
            effects.append(Withdraw(tuple(record.key for record in withdrawn)))
        if not self.leaving:
            effects += self._steal(self._thief.on_gone(now, peer, self.membership.alive_peers()))
        return effects

    def _join(self, now: float) -> list[Effect]:
        self._join_at = now + self.limits.join_resend_s
        return [] if self.joined else [SendToSeeds(Join(self.info, self._python))]

    def _sync(self, now: float) -> list[Effect]:
        self._sync_at = now + self.limits.sync_s * self._rng.uniform(0.75, 1.25)
        peers = self.membership.alive_peers()
        if not peers:
            return []
        return self._to(self._rng.choice(peers), Sync(self.membership.rows(), answer=True))

    # -------------------------------------------------------------------------- handlers: stealing

    def _on_steal(self, now: float, sender: NodeId, message: Steal) -> list[Effect]:
        if sender not in self.membership:
            # A stranger, to whom there is no address yet: its introduction was overtaken, or is lost.
            self._early_steals[sender] = message
            if len(self._early_steals) > self.limits.early_steals_max:
                del self._early_steals[next(iter(self._early_steals))]
            return []
        if message.lifeline and not self.leaving:
            self._waiting.add(now, sender, message.steal)
        else:
            self._waiting.discard(sender)  # It asks elsewhere next, or goes quiet: then it says so.
        count_max = min(message.count_max, self.limits.steal_batch_max)
        return [Surrender(sender, message.steal, count_max, answer=not message.lifeline)]

    def _on_no_work(self, now: float, sender: NodeId, message: NoWork) -> list[Effect]:
        self.counters.steals_failed += 1
        return self._steal(self._thief.on_no_work(now, sender, message.steal, self.membership.alive_peers()))

    def _on_grant(self, _: float, sender: NodeId, message: Grant) -> list[Effect]:
        if sender not in self.membership:
            return []  # It will repeat the grant, and have introduced itself by then.
        effects: list[Effect] = []
        entries = tuple(TaskEntry(task.owner, task.serial, task.token) for task in message.tasks)
        own = [task for task in message.tasks if task.owner == self.id]
        foreign = [task for task in message.tasks if task.owner != self.id]
        if foreign and (self.leaving or len(self.held) + len(foreign) > self.limits.held_max):
            # Own tasks are always taken back; the rest of the grant stays where it was.
            reason = "leaving" if self.leaving else f"holds {len(self.held)} tasks already"
            rejected = tuple(TaskEntry(task.owner, task.serial, task.token) for task in foreign)
            effects += self._to(sender, Reject(rejected, reason))
            entries = tuple(TaskEntry(task.owner, task.serial, task.token) for task in own)
            foreign = []
        for task in own:
            lent = self.owned.on_return(task.serial, task.token)
            if lent is not None:
                came = None if task.spec.kind is SpecKind.FRESH else task.spec
                effects.append(ComeHome(lent.handle, lent.serial, came))
        queued: list[Held] = []
        for task in foreign:
            if self.membership.is_gone(task.owner):
                continue  # Accepted, so that the giver forgets it too, and dropped: nobody waits for it.
            record = self.held.on_grant(TaskKey(task.owner, task.serial), task.token, task.spec)
            if record is not None:
                queued.append(record)
        if queued:
            self.counters.stolen += len(queued)
            self._thief.found()
            effects += self._enqueue(queued)
        if entries:
            effects += self._to(sender, Accept(entries))
        # Owners that are not the giver learn at once where their tasks are, not at the next renewal.
        effects += self._renew_leases(record for record in queued if record.key.owner != sender)
        return effects

    def _on_accept(self, now: float, sender: NodeId, message: Accept) -> list[Effect]:
        effects: list[Effect] = []
        for entry in message.entries:
            if entry.owner == self.id:
                lent = self.owned.on_accept(now, sender, entry.serial, entry.token)
                if lent is not None:
                    effects.append(Released(lent.handle))
            else:
                passed = self.held.on_accept(sender, TaskKey(entry.owner, entry.serial), entry.token)
                if passed is not None:
                    effects.append(Passed(passed.key))
        self._deliveries.on_answer(sender, message.entries)
        return effects

    def _on_reject(self, _: float, sender: NodeId, message: Reject) -> list[Effect]:
        effects: list[Effect] = []
        queued: list[Held] = []
        for entry in message.entries:
            if entry.owner == self.id:
                lent = self.owned.on_reject(sender, entry.serial, entry.token)
                if lent is not None:
                    effects.append(ComeHome(lent.handle, lent.serial))
            else:
                record = self.held.on_reject(sender, TaskKey(entry.owner, entry.serial), entry.token)
                if record is not None:
                    queued.append(record)
        self._deliveries.on_answer(sender, message.entries)
        return effects + self._enqueue(queued)

    def _steal(self, attempts: Iterable[Attempt]) -> list[Effect]:
        effects: list[Effect] = []
        for attempt in attempts:
            self.counters.steals += 1
            steal = Steal(attempt.steal, self.limits.steal_batch_max, attempt.lifeline)
            effects += self._to(attempt.victim, steal)
        return effects

    # --------------------------------------------------------------------------- handlers: custody

    def _on_result(self, now: float, sender: NodeId, message: Result) -> list[Effect]:
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
                self.counters.returned += 1
                effects.append(Settle(lent.handle, result.outcome, sender, hungry))
        if acknowledged:
            effects += self._to(sender, ResultAck(tuple(acknowledged)))
        if message.steal is not None:
            # Whoever owns the last task of a thief is the likeliest to have the next one, and soon.
            if not self.leaving:
                self._waiting.add(now, sender, message.steal)
            effects.append(Surrender(sender, message.steal, self.limits.steal_batch_max, answer=True))
        return effects

    def _on_kept(
        self, now: float, sender: NodeId, result: TaskResult, hungry: bool, *, news: bool
    ) -> list[Effect]:
        """Not acknowledged: the holder says it again until the value is fetched or released."""
        record = self.owned.on_kept(now, sender, result.serial, result.token)
        if record is None:
            return []
        if record.wanted:
            return self._to(sender, Fetch((result.serial,)))
        return [Kept(record.handle, record.serial, sender, hungry)] if news else []

    def _on_fetch(self, now: float, sender: NodeId, message: Fetch) -> list[Effect]:
        return [effect for serial in message.serials for effect in self._hand_over(now, TaskKey(sender, serial))]

    def _on_result_ack(self, _: float, sender: NodeId, message: ResultAck) -> list[Effect]:
        for serial in message.serials:
            key = TaskKey(sender, serial)
            self.held.on_result_ack(key)
            self._deliveries.on_result_ack(key)
        return []

    def _on_holding(self, now: float, sender: NodeId, message: Holding) -> list[Effect]:
        mine = (entry for entry in message.entries if entry.owner == self.id)
        obsolete, released = self.owned.on_holding(now, sender, mine)
        effects: list[Effect] = [Released(lent.handle) for lent in released]
        return effects + (self._to(sender, HoldingAck(obsolete)) if obsolete else [])

    def _on_holding_ack(self, _now: float, sender: NodeId, message: HoldingAck) -> list[Effect]:
        dropped = []
        for entry in message.obsolete:
            if entry.owner == sender:
                record = self.held.on_obsolete(entry)
                if record is not None:
                    dropped.append(record.key)
        return [Withdraw(tuple(dropped))] if dropped else []

    def _on_cancel(self, _: float, sender: NodeId, message: Cancel) -> list[Effect]:
        dropped = []
        for serial in message.serials:
            record = self.held.cancel(TaskKey(sender, serial))
            if record is not None:
                dropped.append(record.key)
        return [Withdraw(tuple(dropped))] if dropped else []

    def _on_status_request(self, _: float, sender: NodeId, message: StatusRequest) -> list[Effect]:
        return [Report(sender, message.query)]

    def _on_status(self, _: float, sender: NodeId, message: Status) -> list[Effect]:
        return [StatusArrived(sender, message.query, message.counters)]

    def _on_ask(self, _: float, sender: NodeId, message: Ask) -> list[Effect]:
        return [Asked(sender, message.query, message.question)]

    def _on_answer(self, _now: float, _sender: NodeId, message: Answer) -> list[Effect]:
        return [Answered(message.query, message.answer)]

    def _requeue(self, lost: Sequence[Lent]) -> list[Effect]:
        self.counters.requeued += len(lost)
        return [ComeHome(record.handle, record.serial) for record in lost]

    def _enqueue(self, records: Sequence[Held]) -> list[Effect]:
        return self._queue([(record.key, record.spec) for record in records if record.spec is not None])

    def _queue(self, specs: Iterable[tuple[TaskKey, Spec]]) -> list[Effect]:
        tasks = []
        for key, spec in specs:
            if spec.kind is SpecKind.BOUNCED:
                # Its owner does not take it back, and this node cannot run it: the owner's lease sees to it.
                self.held.abandon(key)
            else:
                tasks.append((key, spec))
        return [Enqueue(tuple(tasks))] if tasks else []

    def _renew_leases(self, records: Iterable[Held]) -> list[Effect]:
        by_owner: defaultdict[NodeId, list[TaskEntry]] = defaultdict(list)
        for record in records:
            if not record.orphan:
                by_owner[record.key.owner].append(record.entry)
        effects: list[Effect] = []
        for owner, entries in by_owner.items():
            for start in range(0, len(entries), _ENTRIES_PER_MESSAGE):
                effects += self._to(owner, Holding(tuple(entries[start : start + _ENTRIES_PER_MESSAGE])))
        return effects

    def _resend(self, now: float) -> list[Effect]:
        grants, withdrawn = self._deliveries.due_grants(now)
        results = self._deliveries.due_results(now)
        self.counters.resent += len(grants) + len(results)
        return self._post([*grants, *results]) + self._enqueue(withdrawn)

    def _give_up_giving(
        self, own: Sequence[tuple[object, int | None, Spec]], held: Sequence[tuple[TaskKey, Spec | None]]
    ) -> list[Effect]:
        """The thief vanished between its steal and the answer: what was taken for it goes back."""
        effects: list[Effect] = [ComeHome(handle, serial) for handle, serial, _ in own]
        tasks = []
        for key, continuation in held:
            record = self.held.get(key)
            if record is not None and record.state is HolderState.QUEUED:
                spec = record.spec if continuation is None else continuation
                assert spec is not None, "a queued task has a spec, or was started and given with one"
                tasks.append((key, spec))
        return effects + self._queue(tasks)

    # ------------------------------------------------------------------------------------- sending

    def _to(self, peer: NodeId, message: Message) -> list[Effect]:
        """Send to a peer; nothing, if word of it has not come yet."""
        row = self.membership.row(peer)
        return [] if row is None else [Send(row.info, message)]

    def _to_all(self, message: Message) -> list[Effect]:
        return self._post([(peer, message) for peer in self.membership.alive_peers()])

    def _post(self, messages: Iterable[tuple[NodeId, Message]]) -> list[Effect]:
        return [effect for peer, message in messages for effect in self._to(peer, message)]
