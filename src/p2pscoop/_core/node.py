"""One node of the protocol: composes membership, stealing and custody, and is all that a shell sees.

Pure: bytes do not come here, only messages; time is the `now` of each call; randomness is a generator that is
handed in. Every input returns the effects that the shell has to carry out, in order. The same class runs in
production and in the simulator.

Decides what one part has to hear of another: the thief of a peer that is gone, the custodian of time that has
passed. Who is told what about tasks is decided in `custodian`, who is there in `membership`, whom to ask for
work in `stealing`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from p2pscoop._core.codec import Envelope
from p2pscoop._core.custodian import Counters, Custodian
from p2pscoop._core.effects import (
    Answered,
    Arrived,
    Asked,
    Departed,
    Disconnect,
    Effect,
    Enqueue,
    Joined,
    Refused,
    Report,
    Send,
    SendToSeeds,
    StatusArrived,
    Surrender,
    TurnedAway,
)
from p2pscoop._core.ids import NOBODY, NodeId, TaskKey
from p2pscoop._core.limits import PROTOCOL_VERSION, Limits
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
from p2pscoop._core.post import Post
from p2pscoop._core.stealing import Attempt, Thief, ThiefState, WaitingThieves
from p2pscoop._core.values import (
    MemberEntry,
    MemberState,
    Outcome,
    PeerInfo,
    Spec,
)

__all__ = ["Node"]

_STOPPED_S = 2.0
"""Ticks are at most a second apart; a node that was not ticked for so long was not running."""


class Node:
    """A member of the cluster.

    Args:
        info: what this node tells of itself.
        rng: own generator; never the caller's.
        limits: bounds and durations.
        python: major and minor version, compared with that of every node that wants to join.
        founder: whether the node is a member without having been let in.
        cluster: tag of the cluster's name, compared likewise.
        stays: whether the node becomes a resident if it joins a cluster that has some.
        steals: whether the node looks for work; a program that uses a standing cluster runs nobody else's tasks.
    """

    def __init__(
        self,
        info: PeerInfo,
        rng: random.Random,
        limits: Limits,
        *,
        python: str,
        founder: bool,
        cluster: str = "",
        stays: bool = False,
        steals: bool = True,
    ) -> None:
        self.info = info
        self.limits = limits
        self.counters = Counters()
        self.membership = Membership(info, limits)
        self._post = Post(self.membership)
        self._custodian = Custodian(info.id, self.membership, self._post, self.counters, limits)
        self.owned = self._custodian.owned
        self.held = self._custodian.held
        self.joined = founder
        self.leaving = False
        self._python = python
        self._cluster = cluster
        self._stays = stays
        self._steals = steals
        self._rng = rng
        self._thief = Thief(info.id, rng, limits)
        self._waiting = WaitingThieves(limits)
        self._early_steals: dict[NodeId, Steal] = {}
        self._heard_at: dict[NodeId, float] = {}
        self._join_at = 0.0
        self._sync_at = 0.0
        self._holding_at = 0.0
        self._lease_at = 0.0
        self._ticked_at = 0.0
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
            Accept: self._custodian.on_accept,
            Reject: self._custodian.on_reject,
            Result: self._on_result,
            ResultAck: self._custodian.on_result_ack,
            Fetch: self._custodian.on_fetch,
            Holding: self._custodian.on_holding,
            HoldingAck: self._custodian.on_holding_ack,
            Cancel: self._custodian.on_cancel,
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
        return self._custodian.quiescent

    @property
    def counterparts(self) -> set[NodeId]:
        """The peers on which custodies depend: see `vouch`."""
        return self._custodian.counterparts

    def wake_at(self) -> float:
        """When `tick` should be called at the latest, on the clock of `now`."""
        times = [self._sync_at, self._holding_at, self._lease_at, self._custodian.deliveries.wake_at()]
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
        self._ticked_at = now
        return self._join(now)

    def receive(self, now: float, envelope: Envelope) -> list[Effect]:
        """A message arrived."""
        sender, recipient, message = envelope
        if recipient not in (self.id, NOBODY):
            return self._post.to(sender, NotMe(recipient))
        effects: list[Effect] = []
        self._thief.heard(sender)
        if self.membership.is_alive(sender):
            self._heard_at[sender] = now
        elif self.membership.is_gone(sender) and not isinstance(message, (Join, Sync, Leaving)):
            # It was taken for dead and is not: tell it, so that it refutes. What it says still counts.
            row = self.membership.row(sender)
            if row is not None and row.state is MemberState.DEAD:
                effects += self._post.to(sender, Sync((row,), answer=True))
        return effects + self._handlers[type(message)](now, sender, message)

    def tick(self, now: float) -> list[Effect]:
        """Time has passed: do what is due."""
        effects: list[Effect] = []
        if now - self._ticked_at > _STOPPED_S:
            # This node was stopped, or its clock jumped: that others were silent meanwhile means nothing.
            for peer in self.counterparts:
                self._custodian.renew(now, peer)
        self._ticked_at = now
        if not self.joined and now >= self._join_at:
            effects += self._join(now)
        if now >= self._sync_at:
            effects += self._sync(now)
        if now >= self._holding_at:
            self._holding_at = now + self.limits.holding_s
            effects += self._custodian.renew_leases(self.held)
            effects += self._ask_the_silent(now)
        if now >= self._lease_at:
            self._lease_at = now + 1.0
            effects += self._custodian.requeue(self.owned.expire(now))
        effects += self._custodian.resend(now)
        effects += self._post.all(self._custodian.deliveries.flush(now, only_due=True))
        if self.joined and not self.leaving:
            effects += self._steal(self._thief.tick(now, self.membership.alive_peers()))
        return effects

    def vouch(self, now: float, peers: Iterable[NodeId]) -> None:
        """The processes of these peers live, as far as this machine can tell, whether or not they say anything.

        So leases of those that are silent do not end, for `Limits.vouched_s`. What a peer that speaks does not
        claim to hold is lost all the same.
        """
        for peer in self.counterparts.intersection(peers):
            heard_at = self._heard_at.get(peer, now)
            if self.is_silent(now, peer) and heard_at > now - self.limits.vouched_s:
                self._custodian.vouch(now, peer, heard_at)

    def hears(self, now: float, peer: NodeId) -> bool:
        """Whether a peer has said something lately."""
        return now - self.limits.steal_timeout_s < self._heard_at.get(peer, 0.0)

    def is_silent(self, now: float, peer: NodeId) -> bool:
        """Whether a peer has said nothing for longer than it takes to renew a lease."""
        return now - 2 * self.limits.holding_s > self._heard_at.get(peer, now)

    def _ask_the_silent(self, now: float) -> list[Effect]:
        """One that can speak, and only has nothing to say, must not count as silent for long."""
        return [
            effect
            for peer in sorted(self.counterparts)
            if self.is_silent(now, peer)
            for effect in self._post.to(peer, Sync(self.membership.rows_of(self.id), answer=True))
        ]

    def seek(self, now: float) -> list[Effect]:
        """The node has nothing to run: send what is finished, and look for work."""
        results = self._custodian.deliveries.flush(now, only_due=False)
        busy = self._thief.state is ThiefState.BUSY
        if not self.joined or self.leaving or not self._steals or not busy:
            return self._post.all(results)
        origins = [origin for origin in self.membership.origins() if origin != self.id]
        # Several programs: none shall have the node for ever, only because it had it last.
        first = self._rng.choice(origins) if len(origins) > 1 else None
        if not results or (first is not None and first != results[-1][0]):
            steals = self._steal(self._thief.seek(now, self.membership.alive_peers(), first))
            return [*self._post.all(results), *steals]
        # Whoever lent this node its last task may well have more: ask along with the result.
        owner, message = results.pop()
        if isinstance(message, Result) and self.membership.is_alive(owner):
            self.counters.steals += 1
            message = replace(message, steal=self._thief.ride_along(now, owner))
        return self._post.all([*results, (owner, message)])

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
        given = self.counters.given
        effects = self._custodian.give(now, thief, steal, own, held, answer=answer)
        if self.counters.given > given:
            self._waiting.discard(thief)
        return effects

    def give_back(self, now: float, held: Sequence[tuple[TaskKey, Spec | None]]) -> list[Effect]:
        """Return tasks of others, out of the queue, to their owners (a leaving node does); see `give`."""
        return self._custodian.give_back(now, held)

    def ready(self, key: TaskKey) -> bool:
        """A started task of another node waited, and can go on: it is queued again, and may be given away.

        Returns:
            False if nobody waits for it any more: forget it.
        """
        return self.held.ready(key)

    def bounce(self, now: float, key: TaskKey) -> list[Effect]:
        """A continuation that was begun here does not restore: its owner has to use its own copy."""
        return self._custodian.bounce(now, key)

    def begin(self, key: TaskKey) -> bool:
        """The node starts a task of another node. False if it is no longer the node's to run."""
        return self.held.start(key) is not None

    def finish(self, now: float, key: TaskKey, outcome: Outcome) -> list[Effect]:
        """A task of another node ended."""
        return self._custodian.finish(now, key, outcome, leaving=self.leaving)

    def fetch(self, serial: int) -> list[Effect]:
        """The value of an own task, which its holder keeps, is wanted here: `Settle` follows, or `ComeHome`."""
        return self._custodian.fetch(serial)

    def release(self, serial: int) -> list[Effect]:
        """Nobody wants the outcome of an own task any more."""
        return self._custodian.release(serial)

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

    def cancel(self, serial: int, *, stop: bool = False) -> list[Effect]:
        """A lent task is not wanted any more: its holder need not start it, and if `stop`, interrupts it."""
        return self._custodian.cancel(serial, stop=stop)

    def greeting(self) -> Join:
        """What this node says where others may be that it does not know."""
        return Join(self.info, self._python, self._cluster)

    def peer_lost(self, now: float, peer: NodeId) -> list[Effect]:
        """The pipe to a peer was removed: its process is gone."""
        return self._apply(now, self.membership.die(peer))

    def call(self, peer: NodeId) -> list[Effect]:
        """Say to a peer that is taken for dead what is thought of it. If it lives it refutes that, and answers."""
        return self._post.to(peer, Sync(self.membership.rows_of(peer, self.id), answer=True))

    def ask_status(self, query: int) -> list[Effect]:
        """Ask all peers for their counters; answers come as `StatusArrived`."""
        return self._post.to_all(StatusRequest(query))

    def report(self, peer: NodeId, query: int, counters: bytes) -> list[Effect]:
        """Answer a peer's question for counters."""
        return self._post.to(peer, Status(query, counters))

    def ask(self, peer: NodeId, query: int, question: bytes) -> list[Effect]:
        """Ask a peer's shell something; the answer comes as `Answered`. Either may get lost."""
        return self._post.to(peer, Ask(query, question))

    def answer(self, peer: NodeId, query: int, answer: bytes) -> list[Effect]:
        """Answer a peer's question."""
        return self._post.to(peer, Answer(query, answer))

    def leave(self, now: float) -> list[Effect]:
        """Take no more tasks, keep no values. What is queued goes home with `give_back`, what runs is finished."""
        self.leaving = True
        self._thief.found()
        return self._custodian.hand_over(now, [record.key for record in self.held])

    def goodbye(self, reason: str, *, failed: bool = False) -> list[Effect]:
        """The last word to all peers."""
        self.leaving = True
        return self._post.to_all(Leaving(reason, failed, self.quiescent))

    # ------------------------------------------------------------------------ handlers: membership

    def _on_join(self, now: float, sender: NodeId, message: Join) -> list[Effect]:
        info = message.info
        if info.id != sender or sender == self.id:
            return []
        reason = self._mismatch(message)
        if reason is not None:
            return [TurnedAway(info, reason), Send(info, Refuse(reason))]
        if self.leaving or not self.joined:
            return []  # It asks again, and finds another member or this one further on.
        effects = self._apply(now, self.membership.arrive(info))
        return [*effects, Send(info, Welcome(self.membership.rows()))]

    def _mismatch(self, caller: Join) -> str | None:
        """Why a caller cannot be a member, if so."""
        if caller.cluster != self._cluster:
            return "this is another cluster, which has the same key: compare the names (--cluster)"
        if caller.protocol != PROTOCOL_VERSION or caller.info.version != self.info.version:
            return (
                f"the cluster runs p2pscoop {self.info.version} (protocol {PROTOCOL_VERSION}), this node "
                f"{caller.info.version} (protocol {caller.protocol}): install the same version"
            )
        if caller.python != self._python:
            return (
                f"the cluster runs Python {self._python}, this node Python {caller.python}: code cannot be "
                "pickled from one to the other"
            )
        return None

    def _on_welcome(self, now: float, _: NodeId, message: Welcome) -> list[Effect]:
        if self.joined:
            return self._meet(now, message.members)
        self.joined = True
        if self._stays and any(row.state is MemberState.ALIVE and row.info.resident for row in message.members):
            self.info = self.info._replace(resident=True)
            self.membership.describe(self.info)
        effects = self._apply(now, self.membership.merge(message.members))
        # Introduce this node before it asks anyone for anything: a stranger's steal has to wait.
        me = self.membership.row(self.id)
        assert me is not None
        return [*effects, *self._post.to_all(Sync((me,), answer=False)), Joined()]

    def _meet(self, now: float, members: Sequence[MemberEntry]) -> list[Effect]:
        """Two clusters find each other, or two parts of one: introduce them without gossip's delay."""
        before = self.membership.alive_peers()
        effects = self._apply(now, self.membership.merge(members))
        new = [effect.info.id for effect in effects if isinstance(effect, Arrived)]
        if not new:
            return effects
        ours, theirs = self.membership.rows_of(self.id, *before), self.membership.rows_of(*new)
        for peer in new:
            effects += self._post.to(peer, Sync(ours, answer=False))
        for peer in before:
            effects += self._post.to(peer, Sync(theirs, answer=False))
        return effects

    def _on_refuse(self, _now: float, _sender: NodeId, message: Refuse) -> list[Effect]:
        return [] if self.joined else [Refused(message.reason)]

    def _on_sync(self, now: float, sender: NodeId, message: Sync) -> list[Effect]:
        before = self.membership.incarnation
        effects = self._apply(now, self.membership.merge(message.members))
        if message.answer and not self.leaving:
            effects += self._post.to(sender, Sync(self.membership.rows(), answer=False))
        elif self.membership.incarnation > before:
            # It was taken for dead, and answered a question, or was told unasked: it says that it is there.
            me = self.membership.row(self.id)
            assert me is not None
            effects += self._post.to(sender, Sync((me,), answer=False))
        return effects

    def _on_leaving(self, now: float, sender: NodeId, message: Leaving) -> list[Effect]:
        gone = self.membership.leave if message.drained else self.membership.die
        return self._apply(now, gone(sender), message.reason, message.failed)

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
            # One that said goodbye was not killed by what it held.
            effects += self._lose(
                now, peer, drained=change.kind is ChangeKind.LEFT, killed=reason is None and not failed
            )
            if change.kind is ChangeKind.MISSED:
                continue
            effects.append(Departed(change.info, reason, failed))
            effects.append(Disconnect(peer))
        return effects

    def _lose(self, now: float, peer: NodeId, *, drained: bool, killed: bool) -> list[Effect]:
        self._waiting.discard(peer)
        self._heard_at.pop(peer, None)
        self._thief.heard(peer)
        effects = self._custodian.lose(now, peer, drained=drained, killed=killed)
        if not self.leaving:
            effects += self._steal(self._thief.on_gone(now, peer, self.membership.alive_peers()))
        return effects

    def _join(self, now: float) -> list[Effect]:
        self._join_at = now + self.limits.join_resend_s
        return [] if self.joined else [SendToSeeds(self.greeting())]

    def _sync(self, now: float) -> list[Effect]:
        self._sync_at = now + self.limits.sync_s * self._rng.uniform(0.75, 1.25)
        effects: list[Effect] = []
        peers = self.membership.alive_peers()
        if peers:
            effects += self._post.to(self._rng.choice(peers), Sync(self.membership.rows(), answer=True))
        dead = self.membership.dead_peers()
        if dead and self.joined and not self.leaving:
            # If it lives, it takes this node for dead as well, perhaps, and one of the two has to speak first.
            effects += self.call(self._rng.choice(dead))
        return effects

    # -------------------------------------------------------------------------- handlers: stealing

    def _on_steal(self, now: float, sender: NodeId, message: Steal) -> list[Effect]:
        if sender not in self.membership:
            # A stranger, to whom there is no address yet: its introduction was overtaken, or is lost.
            self._early_steals[sender] = message
            if len(self._early_steals) > self.limits.early_steals_max:
                del self._early_steals[next(iter(self._early_steals))]
            return []
        if message.lifeline and not self.leaving:
            self._await(now, sender, message.steal)
        else:
            self._waiting.discard(sender)  # It asks elsewhere next, or goes quiet: then it says so.
        count_max = min(message.count_max, self.limits.steal_batch_max)
        return [Surrender(sender, message.steal, count_max, answer=not message.lifeline)]

    def _await(self, now: float, thief: NodeId, steal: int) -> None:
        self._waiting.add(now, thief, steal, len(self.membership.alive_peers()))

    def _on_no_work(self, now: float, sender: NodeId, message: NoWork) -> list[Effect]:
        self.counters.steals_failed += 1
        return self._steal(self._thief.on_no_work(now, sender, message.steal, self.membership.alive_peers()))

    def _on_grant(self, _: float, sender: NodeId, message: Grant) -> list[Effect]:
        effects = self._custodian.on_grant(sender, message, leaving=self.leaving)
        if any(isinstance(effect, Enqueue) for effect in effects):
            self._thief.found()
        return effects

    def _steal(self, attempts: Iterable[Attempt]) -> list[Effect]:
        effects: list[Effect] = []
        for attempt in attempts:
            self.counters.steals += 1
            steal = Steal(attempt.steal, self.limits.steal_batch_max, attempt.lifeline)
            effects += self._post.to(attempt.victim, steal)
        return effects

    # --------------------------------------------------------------------------- handlers: custody

    def _on_result(self, now: float, sender: NodeId, message: Result) -> list[Effect]:
        effects = self._custodian.on_result(now, sender, message)
        if message.steal is not None:
            # Whoever owns the last task of a thief is the likeliest to have the next one, and soon.
            if not self.leaving:
                self._await(now, sender, message.steal)
            effects.append(Surrender(sender, message.steal, self.limits.steal_batch_max, answer=True))
        return effects

    def _on_status_request(self, _: float, sender: NodeId, message: StatusRequest) -> list[Effect]:
        return [Report(sender, message.query)]

    def _on_status(self, _: float, sender: NodeId, message: Status) -> list[Effect]:
        return [StatusArrived(sender, message.query, message.counters)]

    def _on_ask(self, _: float, sender: NodeId, message: Ask) -> list[Effect]:
        return [Asked(sender, message.query, message.question)]

    def _on_answer(self, _now: float, _sender: NodeId, message: Answer) -> list[Effect]:
        return [Answered(message.query, message.answer)]
