"""Nodes talk to each other, one message at a time, in the order that the test picks."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from p2pscoop._core.codec import Envelope
from p2pscoop._core.effects import (
    Arrived,
    ComeHome,
    Departed,
    Disconnect,
    Effect,
    Enqueue,
    Interrupt,
    Joined,
    Passed,
    Poisoned,
    Refused,
    Released,
    Report,
    Send,
    SendToSeeds,
    Settle,
    StatusArrived,
    Surrender,
    TurnedAway,
    Withdraw,
)
from p2pscoop._core.ids import NOBODY, TaskKey, Token
from p2pscoop._core.limits import PROTOCOL_VERSION, Limits
from p2pscoop._core.messages import (
    Accept,
    Cancel,
    Grant,
    Holding,
    HoldingAck,
    Join,
    Leaving,
    NotMe,
    NoWork,
    Reject,
    Result,
    ResultAck,
    Steal,
    Sync,
    Welcome,
)
from p2pscoop._core.node import Node
from p2pscoop._core.values import (
    BOUNCED,
    GrantedTask,
    MemberEntry,
    MemberState,
    Outcome,
    OutcomeKind,
    OwnTask,
    PeerInfo,
    Spec,
    SpecKind,
    TaskEntry,
)

SPEC = Spec(b"code", b"args")
CONTINUATION = Spec(b"", b"frames", SpecKind.CONTINUATION)
VALUE = Outcome(OutcomeKind.VALUE, b"1")
LIMITS = Limits()


def info(name: str, *, origin: bool = False, version: str = "1") -> PeerInfo:
    return PeerInfo(name.encode().ljust(8, b"."), name, (f"fake:{name}",), "", origin, True, "host", 1, version)


def new_node(
    name: str,
    limits: Limits = LIMITS,
    *,
    founder: bool = False,
    python: str = "3.x",
    cluster: str = "",
    stays: bool = False,
) -> Node:
    me = info(name, origin=founder)
    return Node(me, random.Random(name), limits, python=python, founder=founder, cluster=cluster, stays=stays)


class Cluster:
    """Nodes that know each other; what they send waits in `mail` until the test delivers it."""

    def __init__(self, *names: str, limits: Limits = LIMITS) -> None:
        self.now = 0.0
        self.nodes = {name: new_node(name, limits, founder=True) for name in names}
        self.mail: list[tuple[str, Envelope]] = []
        self.effects: list[tuple[str, Effect]] = []
        for node in self.nodes.values():
            node.start(self.now)
            node.receive(self.now, self._hello(node, names))

    def __getitem__(self, name: str) -> Node:
        return self.nodes[name]

    def _hello(self, node: Node, names: tuple[str, ...]) -> Envelope:
        rows = [MemberEntry(info(name, origin=True), MemberState.ALIVE, 0) for name in names]
        return Envelope(info("gossip").id, node.id, Sync(tuple(rows), answer=False))

    def do(self, name: str, call: Callable[[Node], list[Effect]]) -> list[Effect]:
        """An input of a node: what it sends is mailed, everything else is returned (and kept)."""
        others = []
        for effect in call(self.nodes[name]):
            if isinstance(effect, Send):
                self.mail.append((name, Envelope(self.nodes[name].id, effect.recipient.id, effect.message)))
            else:
                others.append(effect)
                self.effects.append((name, effect))
        return others

    def deliver(self, kind: type, *, keep: bool = False) -> list[Effect]:
        """The oldest message of a kind arrives."""
        index = next(i for i, (_, envelope) in enumerate(self.mail) if isinstance(envelope.message, kind))
        envelope = self.mail[index][1]
        if not keep:
            del self.mail[index]
        name = next(name for name, node in self.nodes.items() if node.id == envelope.recipient)
        return self.do(name, lambda node: node.receive(self.now, envelope))

    def wait(self, name: str, seconds: float) -> list[Effect]:
        """A node is ticked once a second for so long."""
        return [
            effect
            for second in range(int(seconds) + 1)
            for effect in self.do(name, lambda node, second=second: node.tick(self.now + second))  # type: ignore[misc]
        ]

    def drop(self, kind: type) -> None:
        """All messages of a kind get lost."""
        self.mail = [each for each in self.mail if not isinstance(each[1].message, kind)]

    def kinds(self) -> list[str]:
        return [type(envelope.message).__name__ for _, envelope in self.mail]

    def give(self, giver: str, thief: str, own=(), held=()) -> None:
        self.do(giver, lambda node: node.give(self.now, self[thief].id, 1, own, held))

    def lend(self, owner: str, thief: str, handle: object = "handle", spec: Spec = SPEC) -> TaskKey:
        """A task of `owner` is queued at `thief`, accepted."""
        self.give(owner, thief, own=[OwnTask(handle, None, spec)])
        self.deliver(Grant)
        self.deliver(Accept)
        self.drop(Holding)
        return TaskKey(self[owner].id, max(record.serial for record in self[owner].owned))


@pytest.fixture
def pair() -> Cluster:
    return Cluster("ann", "bob")


@pytest.fixture
def three() -> Cluster:
    return Cluster("ann", "bob", "eve")


def kinds(effects: list[Effect]) -> list[type]:
    return [type(effect) for effect in effects]


# ------------------------------------------------------------------------------------------- joining


def test_a_node_is_let_in_and_introduces_itself() -> None:
    origin, node = new_node("origin", founder=True), new_node("node")
    (asked,) = node.start(0.0)
    assert asked == SendToSeeds(node.greeting())
    arrived, welcome = origin.receive(0.1, Envelope(node.id, NOBODY, asked.message))
    assert arrived == Arrived(node.info)
    assert isinstance(welcome, Send)
    effects = node.receive(0.2, Envelope(origin.id, node.id, welcome.message))
    assert kinds(effects) == [Arrived, Send, Joined]
    assert node.joined
    assert node.receive(0.3, Envelope(origin.id, node.id, welcome.message)) == []


def test_a_join_is_repeated_until_it_is_answered() -> None:
    node = new_node("node")
    node.start(0.0)
    assert node.wake_at() == LIMITS.join_resend_s
    assert kinds(node.tick(LIMITS.join_resend_s)) == [SendToSeeds]


@pytest.mark.parametrize(
    ("python", "version", "reason"),
    [
        ("2.7", "1", "runs Python 3.x, this node Python 2.7"),
        ("3.x", "0", "runs p2pscoop 1 (protocol 1), this node 0"),
    ],
)
def test_another_version_is_refused(python: str, version: str, reason: str) -> None:
    origin, stranger = new_node("origin", founder=True), info("node", version=version)
    turned_away, refusal = origin.receive(0.0, Envelope(stranger.id, NOBODY, Join(stranger, python)))
    assert isinstance(turned_away, TurnedAway)
    assert isinstance(refusal, Send)
    assert reason in turned_away.reason
    (refused,) = new_node("node").receive(0.0, Envelope(origin.id, stranger.id, refusal.message))
    assert isinstance(refused, Refused)
    assert reason in refused.reason


def test_another_protocol_is_refused() -> None:
    origin, stranger = new_node("origin", founder=True), info("node")
    join = Join(stranger, "3.x", protocol=PROTOCOL_VERSION + 1)
    turned_away, _ = origin.receive(0.0, Envelope(stranger.id, NOBODY, join))
    assert isinstance(turned_away, TurnedAway)
    assert f"protocol {PROTOCOL_VERSION + 1}" in turned_away.reason


def test_another_cluster_is_refused() -> None:
    origin, node = new_node("origin", founder=True, cluster="ours"), new_node("node", cluster="theirs")
    turned_away, _ = origin.receive(0.0, Envelope(node.id, NOBODY, node.greeting()))
    assert isinstance(turned_away, TurnedAway)
    assert "another cluster" in turned_away.reason


def test_whoever_joins_residents_becomes_one_if_it_may() -> None:
    for stays in (True, False):
        founder, node = new_node("founder", founder=True), new_node("node", stays=stays)
        founder.membership.describe(founder.info._replace(resident=True))
        (asked,) = node.start(0.0)
        assert isinstance(asked, SendToSeeds)
        answers = founder.receive(0.0, Envelope(node.id, NOBODY, asked.message))
        for answer in answers:
            if isinstance(answer, Send):
                node.receive(0.0, Envelope(founder.id, node.id, answer.message))
        assert node.info.resident is stays
        assert set(node.membership.residents()) == ({founder.id, node.id} if stays else {founder.id})


def test_two_clusters_that_meet_become_one() -> None:
    """One of them greets; everybody on both sides hears of everybody at once, without waiting for gossip."""
    nodes = {name: new_node(name, founder=True) for name in ("ann", "bob", "eve", "joe")}
    by_id = {node.id: node for node in nodes.values()}

    def run(effects: list[Effect], sender: Node) -> None:
        for effect in effects:
            if isinstance(effect, Send) and effect.recipient.id in by_id:
                peer = by_id[effect.recipient.id]
                run(peer.receive(0.0, Envelope(sender.id, peer.id, effect.message)), peer)

    def greet(caller: str, callee: str) -> None:
        node = nodes[caller]
        run(nodes[callee].receive(0.0, Envelope(node.id, NOBODY, node.greeting())), nodes[callee])

    greet("ann", "bob")
    greet("eve", "joe")
    assert len(nodes["ann"].membership.alive_peers()) == 1
    greet("bob", "eve")
    for node in nodes.values():
        assert len(node.membership.alive_peers()) == 3


def test_a_join_in_the_name_of_another_is_ignored() -> None:
    origin = new_node("origin", founder=True)
    assert origin.receive(0.0, Envelope(info("eve").id, NOBODY, Join(info("node"), "3.x"))) == []


def test_an_early_steal_is_answered_after_the_introduction() -> None:
    """A steal overtook the introduction of its thief, which then starved until its time-out."""
    ann, bob = new_node("ann", founder=True), info("bob")
    assert ann.receive(0.0, Envelope(bob.id, ann.id, Steal(4, 8, False))) == []
    introduction = Sync((MemberEntry(bob, MemberState.ALIVE, 0),), answer=False)
    effects = ann.receive(0.1, Envelope(bob.id, ann.id, introduction))
    assert effects == [Arrived(bob), Surrender(bob.id, 4, 8, answer=True)]


def test_early_steals_are_bounded_and_the_latest_count() -> None:
    ann = new_node("ann", replace(LIMITS, early_steals_max=1), founder=True)
    for name in ("bob", "eve"):
        ann.receive(0.0, Envelope(info(name).id, ann.id, Steal(1, 8, False)))
    rows = tuple(MemberEntry(info(name), MemberState.ALIVE, 0) for name in ("bob", "eve"))
    effects = ann.receive(0.1, Envelope(info("eve").id, ann.id, Sync(rows, answer=False)))
    assert [effect.thief for effect in effects if isinstance(effect, Surrender)] == [info("eve").id]


# ----------------------------------------------------------------------------------------- membership


def test_a_message_for_another_says_that_the_other_is_gone(three: Cluster) -> None:
    ghost = three["eve"].id
    three.do("bob", lambda node: node.receive(0.0, Envelope(three["ann"].id, ghost, NoWork(1))))
    assert three.kinds() == ["NotMe"]
    assert Departed(info("eve", origin=True), None, False) in three.deliver(NotMe)


def test_a_node_that_is_taken_for_dead_is_told_and_refutes(pair: Cluster) -> None:
    departed = pair.do("ann", lambda node: node.peer_lost(0.0, pair["bob"].id))
    assert kinds(departed) == [Departed, Disconnect]
    assert pair.do("ann", lambda node: node.peer_lost(0.0, pair["bob"].id)) == []
    pair.do("bob", lambda node: node.seek(0.0))
    answered = pair.deliver(Steal)
    assert kinds(answered) == [Surrender], "what it says still counts"
    pair.deliver(Sync)
    assert kinds(pair.deliver(Sync)) == [Arrived]


def test_two_nodes_that_take_each_other_for_dead_find_together_again(pair: Cluster) -> None:
    for one, other in (("ann", "bob"), ("bob", "ann")):
        pair.do(one, lambda node, other=other: node.peer_lost(0.0, pair[other].id))
    pair.mail.clear()
    pair.do("ann", lambda node: node.tick(2 * LIMITS.sync_s))
    while pair.mail:
        pair.deliver(type(pair.mail[0][1].message))
    for one, other in (("ann", "bob"), ("bob", "ann")):
        assert pair[one].membership.is_alive(pair[other].id)


def test_a_silent_holder_that_lives_keeps_its_tasks_and_one_that_speaks_has_to_claim_them(pair: Cluster) -> None:
    key = pair.lend("ann", "bob")
    ann, bob = pair["ann"], pair["bob"]
    lease_s = LIMITS.lease_s
    for second in range(int(3 * lease_s)):
        ann.vouch(float(second), [bob.id])
        ann.tick(float(second))
    assert ann.owned.get(key.serial).holder == bob.id  # type: ignore[union-attr]
    now = 3 * lease_s
    ann.receive(now, Envelope(bob.id, ann.id, NoWork(1)))
    for second in range(int(2 * lease_s)):
        ann.vouch(now + second, [bob.id])
        ann.tick(now + second)
        ann.receive(now + second, Envelope(bob.id, ann.id, NoWork(1)))
    assert ann.counters.requeued == 1


def test_a_holder_that_speaks_now_and_then_and_claims_nothing_is_not_vouched_for(pair: Cluster) -> None:
    """Race 12 of CUSTODY.md: it says something just often enough to seem silent in between, and never claims."""
    pair.lend("ann", "bob")
    ann, bob = pair["ann"], pair["bob"]
    now = 0.0
    while now < 5 * LIMITS.lease_s:
        now += 1.0
        if now % (2.5 * LIMITS.holding_s) < 1.0:
            ann.receive(now, Envelope(bob.id, ann.id, NoWork(1)))
        ann.vouch(now, [bob.id])
        ann.tick(now)
    assert ann.counters.requeued == 1


def test_a_silent_holder_is_asked_to_say_something(pair: Cluster) -> None:
    pair.lend("ann", "bob")
    ann, bob = pair["ann"], pair["bob"]
    ann.receive(0.0, Envelope(bob.id, ann.id, NoWork(1)))
    asked = 0
    for second in range(1, int(2 * LIMITS.lease_s)):
        ann.vouch(float(second), [bob.id])
        for effect in ann.tick(float(second)):
            if isinstance(effect, Send) and isinstance(effect.message, Sync) and len(effect.message.members) == 1:
                asked += 1
    assert asked > 0


def test_what_is_vouched_for_is_lost_in_the_end(pair: Cluster) -> None:
    pair.lend("ann", "bob")
    ann = pair["ann"]
    for second in range(int(LIMITS.vouched_s + 2 * LIMITS.lease_s)):
        ann.vouch(float(second), [pair["bob"].id])
        ann.tick(float(second))
    assert ann.counters.requeued == 1


def test_goodbye(pair: Cluster) -> None:
    pair.lend("ann", "bob")
    pair.do("bob", lambda node: node.goodbye("had enough", failed=True))
    assert pair.deliver(Leaving) == [
        ComeHome("handle", 0),
        Departed(info("bob", origin=True), "had enough", True),
        Disconnect(pair["bob"].id),
    ], "it had not drained"


def test_a_drained_goodbye_overtakes_the_word_of_the_next_holder(three: Cluster) -> None:
    """Race 8 of CUSTODY.md: the task was run again, although nothing had failed."""
    key = three.lend("ann", "bob")
    three["bob"].leave(0.0)
    three.give("bob", "eve", held=[(key, None)])
    three.deliver(Grant)
    three.deliver(Accept)
    assert three["bob"].quiescent
    three.do("bob", lambda node: node.goodbye("drained"))
    assert kinds(three.deliver(Leaving)) == [Departed, Disconnect]
    three.deliver(Holding)
    record = three["ann"].owned.get(key.serial)
    assert record is not None
    assert record.holder == three["eve"].id
    assert three["ann"].counters.requeued == 0


def test_what_was_offered_to_a_node_that_left_comes_home_soon(pair: Cluster) -> None:
    pair.give("ann", "bob", own=[OwnTask("handle", None, SPEC)])
    pair.drop(Grant)
    pair.do("bob", lambda node: node.goodbye("drained"))
    assert kinds(pair.deliver(Leaving)) == [Departed, Disconnect]
    assert ComeHome("handle", 0) in pair.do("ann", lambda node: node.tick(LIMITS.leave_s))


# ------------------------------------------------------------------------------------------- custody


def test_a_task_goes_and_its_outcome_comes(pair: Cluster) -> None:
    pair.do("bob", lambda node: node.seek(0.0))
    (surrender,) = pair.deliver(Steal)
    assert surrender == Surrender(pair["bob"].id, 1, LIMITS.steal_batch_max, answer=True)
    pair.give("ann", "bob", own=[OwnTask("handle", None, SPEC)])
    key = TaskKey(pair["ann"].id, 0)
    assert pair.deliver(Grant) == [Enqueue(((key, SPEC),))]
    assert pair.deliver(Accept) == []
    assert pair["bob"].begin(key)
    assert not pair["bob"].begin(key)
    pair.do("bob", lambda node: node.finish(0.0, key, VALUE))
    assert pair.kinds() == [], "it waits for others"
    pair.do("bob", lambda node: node.tick(LIMITS.result_delay_s))
    assert pair.deliver(Result) == [Settle("handle", VALUE, pair["bob"].id)]
    pair.deliver(ResultAck)
    assert pair["ann"].quiescent
    assert pair["bob"].quiescent


@pytest.mark.parametrize("again", [False, True], ids=["lost", "twice"])
@pytest.mark.parametrize("kind", [Grant, Accept, Result, ResultAck])
def test_any_message_may_be_lost_or_come_twice(pair: Cluster, kind: type, again: bool) -> None:
    pair.give("ann", "bob", own=[OwnTask("handle", None, SPEC)])
    key = TaskKey(pair["ann"].id, 0)
    begun = False
    for step in range(200):
        if pair.mail and isinstance(pair.mail[0][1].message, kind) and step < 20:
            pair.deliver(kind, keep=again) if again else pair.drop(kind)
        elif pair.mail:
            pair.deliver(type(pair.mail[0][1].message))
        else:
            pair.now += 0.25
            for name in pair.nodes:
                pair.do(name, lambda node: node.tick(pair.now))
        if not begun and pair["bob"].held.get(key) is not None:
            begun = pair["bob"].begin(key)
            pair.do("bob", lambda node: node.finish(pair.now, key, VALUE))
    settled = [effect for _, effect in pair.effects if isinstance(effect, Settle)]
    assert settled == [Settle("handle", VALUE, pair["bob"].id)]
    assert pair["ann"].quiescent
    assert pair["bob"].quiescent


def test_nothing_to_give_is_said_unless_nobody_waits_for_an_answer(pair: Cluster) -> None:
    pair.give("ann", "bob")
    assert pair.kinds() == ["NoWork"]
    pair.mail.clear()
    assert pair["ann"].give(0.0, pair["bob"].id, 1, (), (), answer=False) == []


def test_a_thief_that_vanished_gets_nothing(pair: Cluster) -> None:
    key = pair.lend("bob", "ann")
    pair.do("ann", lambda node: node.receive(0.0, Envelope(info("eve").id, node.id, Steal(1, 8, False))))
    effects = pair["ann"].give(0.0, info("eve").id, 1, [OwnTask("handle", 3, SPEC)], [(key, None)])
    assert effects == [ComeHome("handle", 3), Enqueue(((key, SPEC),))]


def test_a_task_that_was_settled_while_it_was_pickled_is_not_lent(pair: Cluster) -> None:
    """Its outcome came from an earlier holder; the rest of the grant must not suffer."""
    key = pair.lend("ann", "bob")
    pair["ann"].release(key.serial)
    pair.mail.clear()
    pair.give("ann", "bob", own=[OwnTask("late", key.serial, SPEC), OwnTask("other", None, SPEC)])
    (_, envelope) = pair.mail[0]
    assert isinstance(envelope.message, Grant)
    assert [task.serial for task in envelope.message.tasks] == [key.serial + 1]


def test_what_a_lost_node_had_is_run_again(pair: Cluster) -> None:
    pair.lend("ann", "bob")
    effects = pair.do("ann", lambda node: node.peer_lost(0.0, pair["bob"].id))
    assert effects[0] == ComeHome("handle", 0)
    assert pair["ann"].counters.requeued == 1


def test_a_task_with_which_node_after_node_dies_is_given_up() -> None:
    names = ("ann", "bob", "eve", "joe")
    cluster = Cluster(*names, limits=replace(LIMITS, deaths_max=3))
    effects: list[Effect] = []
    for victim in names[1:]:
        serial = None if victim == "bob" else 0
        cluster.give("ann", victim, own=[OwnTask("poison", serial, SPEC)])
        effects = cluster.do("ann", lambda node, victim=victim: node.peer_lost(0.0, cluster[victim].id))
        assert (ComeHome("poison", 0) in effects) == (victim != "joe")
    assert Poisoned("poison", tuple(cluster[name].id for name in names[1:])) in effects
    assert cluster["ann"].quiescent


def test_a_task_may_have_a_number_of_deaths_of_its_own(three: Cluster) -> None:
    own = [OwnTask("frail", None, SPEC, 1), OwnTask("robust", None, SPEC, LIMITS.deaths_max + 1)]
    three.give("ann", "bob", own=own)
    effects = three.do("ann", lambda node: node.peer_lost(0.0, three["bob"].id))
    assert effects[:2] == [Poisoned("frail", (three["bob"].id,)), ComeHome("robust", 1)]


def test_suspects_travel_one_at_a_time(three: Cluster) -> None:
    three.give("ann", "bob", own=[OwnTask("one", None, SPEC), OwnTask("two", None, SPEC)])
    three.do("ann", lambda node: node.peer_lost(0.0, three["bob"].id))
    three.mail.clear()
    three.give("ann", "eve", own=[OwnTask("one", 0, SPEC), OwnTask("two", 1, SPEC), OwnTask("three", None, SPEC)])
    assert three.effects[-2:] == [("ann", ComeHome("two", 1)), ("ann", ComeHome("three", None))]
    ((_, envelope),) = three.mail
    assert [task.serial for task in envelope.message.tasks] == [0], "alone, so that none waits behind it"
    three.mail.clear()
    three.give("ann", "eve", own=[OwnTask("two", 1, SPEC)])
    assert three.kinds() == ["NoWork"], "one at a time"
    three.give("ann", "eve", own=[OwnTask("three", None, SPEC), OwnTask("two", 1, SPEC)])
    assert [task.serial for task in three.mail[-1][1].message.tasks] == [2]


def test_a_silent_holder_loses_its_tasks_and_their_late_outcome_counts(pair: Cluster) -> None:
    key = pair.lend("ann", "bob")
    pair["bob"].begin(key)
    assert ComeHome("handle", 0) in pair.wait("ann", LIMITS.lease_s)
    pair.mail.clear()
    pair.do("bob", lambda node: node.tick(LIMITS.lease_s + 1))
    pair.deliver(Holding)
    assert pair.deliver(HoldingAck) == [], "it runs already: let it"
    pair.do("bob", lambda node: [*node.finish(50.0, key, VALUE), *node.seek(50.0)])
    assert pair.deliver(Result)[0] == Settle("handle", VALUE, pair["bob"].id, hungry=True)


def test_a_verdict_withdraws_what_is_queued(pair: Cluster) -> None:
    key = pair.lend("ann", "bob")
    pair.wait("ann", LIMITS.lease_s)
    pair.do("bob", lambda node: node.tick(LIMITS.lease_s + 1))
    pair.drop(Sync)
    pair.deliver(Holding)
    assert pair.deliver(HoldingAck) == [Withdraw((key,))]
    assert pair["bob"].quiescent


def test_a_node_that_was_stopped_judges_nobody_by_the_silence_meanwhile(pair: Cluster) -> None:
    key = pair.lend("ann", "bob")
    assert pair.do("ann", lambda node: node.tick(2 * LIMITS.lease_s)) == []
    assert pair["ann"].owned.get(key.serial) is not None
    assert pair["ann"].counters.requeued == 0


def test_a_verdict_of_another_node_is_ignored(three: Cluster) -> None:
    key = three.lend("ann", "bob")
    entry = TaskEntry(*key, Token(9, 9))
    envelope = Envelope(three["eve"].id, three["bob"].id, HoldingAck((entry,)))
    assert three["bob"].receive(0.0, envelope) == []


def test_an_owner_learns_at_once_where_its_task_went(three: Cluster) -> None:
    key = three.lend("ann", "bob")
    three.give("bob", "eve", held=[(key, None)])
    three.deliver(Grant)
    assert three.kinds() == ["Accept", "Holding"]
    three.deliver(Holding)
    record = three["ann"].owned.get(key.serial)
    assert record is not None
    assert record.holder == three["eve"].id
    three.deliver(Accept)
    assert three["bob"].quiescent


def test_a_death_overtakes_the_last_word(three: Cluster) -> None:
    """Race 11 of CUSTODY.md: the owner believed a dead node, and waited until the lease ended."""
    key = three.lend("ann", "bob")
    three.give("bob", "eve", held=[(key, None)])
    three.deliver(Grant)
    eve = three["eve"].id
    assert kinds(three.do("ann", lambda node: node.peer_lost(0.0, eve))) == [Departed, Disconnect]
    assert three.deliver(Holding) == [ComeHome("handle", key.serial)]
    assert three["ann"].counters.requeued == 1


def test_a_value_that_a_dead_node_kept_is_computed_again(three: Cluster) -> None:
    key = three.lend("ann", "bob")
    three.give("bob", "eve", held=[(key, None)])
    three.deliver(Grant)
    three.drop(Holding)
    eve = three["eve"].id
    three["eve"].begin(key)
    three.do("eve", lambda node: node.finish(0.0, key, Outcome(OutcomeKind.VALUE, bytes(LIMITS.bulk_min))))
    three.do("eve", lambda node: node.seek(0.0))
    three.do("ann", lambda node: node.peer_lost(0.0, eve))
    assert ComeHome("handle", key.serial) in three.deliver(Result)


def test_a_task_that_goes_round_is_queued_again(three: Cluster) -> None:
    """Race 1 of CUSTODY.md, with both acceptances late."""
    key = three.lend("ann", "bob")
    three.give("bob", "eve", held=[(key, None)])
    three.deliver(Grant)
    three.give("eve", "bob", held=[(key, None)])
    assert three.deliver(Grant) == [Enqueue(((key, SPEC),))]
    while "Accept" in three.kinds():
        three.deliver(Accept)
    assert three["bob"].begin(key)
    assert three["eve"].quiescent


def test_held_too_much_already(pair: Cluster) -> None:
    full = Cluster("ann", "bob", limits=replace(LIMITS, held_max=1))
    full.give("ann", "bob", own=[OwnTask("one", None, SPEC), OwnTask("two", None, SPEC)])
    assert full.deliver(Grant) == []
    assert full.deliver(Reject) == [ComeHome("one", 0), ComeHome("two", 1)]
    assert full["ann"].owned.get(0) is not None, "it keeps its serial"


def test_an_offer_that_was_rejected_is_rejected_when_it_is_repeated(pair: Cluster) -> None:
    """Race 10 of CUSTODY.md: it was accepted by then, and run on both sides."""
    full = Cluster("ann", "bob", limits=replace(LIMITS, held_max=1))
    key = full.lend("ann", "bob")
    full.give("ann", "bob", own=[OwnTask("late", None, SPEC)])
    full.deliver(Grant, keep=True)
    full.do("bob", lambda node: node.receive(0.0, Envelope(full["ann"].id, node.id, Cancel((key.serial,)))))
    assert full.deliver(Grant) == [], "there would be room now"
    assert full.kinds() == ["Reject", "Reject"]


@pytest.mark.parametrize("why", ["full", "leaving"])
def test_an_offer_that_was_accepted_is_accepted_when_it_is_repeated(why: str) -> None:
    full = Cluster("ann", "bob", limits=replace(LIMITS, held_max=1))
    full.give("ann", "bob", own=[OwnTask("handle", None, SPEC)])
    full.deliver(Grant, keep=True)
    full.drop(Accept)
    if why == "leaving":
        full.do("bob", lambda node: node.leave(0.0))
    full.deliver(Grant)
    assert full.kinds() == ["Accept"]


def test_cancelled_before_it_was_started(pair: Cluster) -> None:
    key = pair.lend("ann", "bob")
    pair.do("ann", lambda node: node.cancel(0))
    assert pair["ann"].cancel(0) == []
    assert pair.deliver(Cancel) == [Withdraw((key,))]
    assert pair["bob"].quiescent


def test_a_running_task_is_interrupted_and_its_outcome_dropped(pair: Cluster) -> None:
    key = pair.lend("ann", "bob")
    pair["bob"].begin(key)
    pair.do("ann", lambda node: node.cancel(0, stop=True))
    assert pair.deliver(Cancel) == [Interrupt((key,))]
    assert pair["bob"].finish(1.0, key, Outcome(OutcomeKind.CANCELLED, b"")) == []
    assert pair["bob"].quiescent
    assert pair["ann"].quiescent


def test_a_cancelled_task_is_interrupted_wherever_it_turns_up(three: Cluster) -> None:
    """It was passed on meanwhile, and its owner did not know yet."""
    key = three.lend("ann", "bob")
    three.give("bob", "eve", held=[(key, None)])
    three.do("ann", lambda node: node.cancel(0, stop=True))
    three.deliver(Grant)
    three["eve"].begin(key)
    assert three.deliver(Cancel) == [], "bob has it no more"
    three.deliver(Holding)
    three.deliver(HoldingAck)
    assert three.deliver(Cancel) == [Interrupt((key,))]


def test_a_node_that_says_goodbye_was_not_killed_by_what_it_had(pair: Cluster) -> None:
    pair.lend("ann", "bob")
    pair.do("bob", lambda node: node.goodbye("a cancelled task did not end"))
    pair.deliver(Leaving)
    assert [record.suspected for record in pair["ann"].owned] == [()]


def test_an_owner_that_is_gone_gets_nothing_run(pair: Cluster) -> None:
    queued, running = pair.lend("ann", "bob"), pair.lend("ann", "bob")
    pair["bob"].begin(running)
    effects = pair.do("bob", lambda node: node.peer_lost(0.0, pair["ann"].id))
    assert Withdraw((queued,)) in effects
    assert pair["bob"].finish(1.0, running, VALUE) == []
    assert pair["bob"].quiescent


def test_tasks_of_a_node_that_is_gone_are_accepted_and_dropped(three: Cluster) -> None:
    key = three.lend("ann", "bob")
    three.do("eve", lambda node: node.peer_lost(0.0, three["ann"].id))
    three.mail.clear()
    three.give("bob", "eve", held=[(key, None)])
    assert three.deliver(Grant) == []
    three.deliver(Accept)
    assert three["bob"].quiescent
    assert three["eve"].quiescent


def test_a_task_of_a_stranger_is_rejected(pair: Cluster) -> None:
    """Race 9 of CUSTODY.md: its outcome could not be delivered, and was kept for ever (seed 110231)."""
    key = TaskKey(info("eve").id, 3)
    tasks = (GrantedTask(*key, Token(0, 2), SPEC), GrantedTask(pair["ann"].id, 0, Token(0, 1), SPEC))
    grant = Envelope(pair["ann"].id, pair["bob"].id, Grant(1, tasks))
    assert pair.do("bob", lambda node: node.receive(0.0, grant)) == [
        Enqueue(((TaskKey(pair["ann"].id, 0), SPEC),))
    ]
    assert [envelope.message for _, envelope in pair.mail] == [
        Reject((TaskEntry(*key, Token(0, 2)),), "owner not known here"),
        Accept((TaskEntry(pair["ann"].id, 0, Token(0, 1)),)),
    ]


def test_a_grant_of_a_stranger_waits_for_its_introduction(pair: Cluster) -> None:
    stranger = info("eve")
    grant = Grant(1, (GrantedTask(stranger.id, 0, Token(0, 1), SPEC),))
    assert pair["bob"].receive(0.0, Envelope(stranger.id, pair["bob"].id, grant)) == []
    assert pair["bob"].quiescent


def test_a_thief_that_rides_along_with_a_result_is_fed(pair: Cluster) -> None:
    key = pair.lend("ann", "bob")
    pair["bob"].begin(key)
    pair.do("bob", lambda node: [*node.finish(0.0, key, VALUE), *node.seek(0.0)])
    assert pair.kinds() == ["Result"]
    settled, surrender = pair.deliver(Result)
    assert isinstance(settled, Settle)
    assert isinstance(surrender, Surrender)
    assert surrender.answer
    assert pair["ann"].hungry
    (fed,) = pair["ann"].feed(0.0)
    assert isinstance(fed, Surrender)
    assert not fed.answer
    pair.give("ann", "bob", own=[OwnTask("next", None, SPEC)])
    assert not pair["ann"].hungry


# -------------------------------------------------------------------------------------- continuations


def test_an_own_continuation_is_released_when_it_has_arrived(pair: Cluster) -> None:
    pair.give("ann", "bob", own=[OwnTask("handle", None, CONTINUATION)])
    pair.deliver(Grant)
    assert pair.deliver(Accept) == [Released("handle")]


def test_a_continuation_is_passed_on(three: Cluster) -> None:
    key = three.lend("ann", "bob")
    three["bob"].begin(key)
    assert three["bob"].ready(key)
    three.give("bob", "eve", held=[(key, CONTINUATION)])
    assert three.deliver(Grant) == [Enqueue(((key, CONTINUATION),))]
    assert three.deliver(Accept) == [Passed(key)]


def test_a_continuation_of_a_guest_that_is_rejected_is_queued_again(three: Cluster) -> None:
    key = three.lend("ann", "bob")
    three["bob"].begin(key)
    three["bob"].ready(key)
    three["eve"].leave(0.0)
    three.give("bob", "eve", held=[(key, CONTINUATION)])
    three.deliver(Grant)
    assert three.deliver(Reject) == [Enqueue(((key, CONTINUATION),))]


def test_a_continuation_that_goes_home_is_said_how_far_it_came(pair: Cluster) -> None:
    key = pair.lend("ann", "bob")
    pair["bob"].begin(key)
    pair["bob"].ready(key)
    pair.do("bob", lambda node: node.give_back(0.0, [(key, CONTINUATION)]))
    assert pair.deliver(Grant) == [ComeHome("handle", 0, CONTINUATION)]
    assert pair.deliver(Accept) == [Passed(key)]


def test_a_continuation_that_does_not_restore_bounces_to_its_owner(pair: Cluster) -> None:
    key = pair.lend("ann", "bob", spec=CONTINUATION)
    pair["bob"].begin(key)
    pair.do("bob", lambda node: node.bounce(0.0, key))
    assert pair.deliver(Grant) == [ComeHome("handle", 0, BOUNCED)]
    pair.deliver(Accept)
    assert pair["bob"].quiescent
    assert pair["bob"].bounce(0.0, key) == []


def test_a_bounced_task_dies_with_its_owner(pair: Cluster) -> None:
    """It was queued again where it cannot go on (seed 822)."""
    key = pair.lend("ann", "bob", spec=CONTINUATION)
    pair["bob"].begin(key)
    pair.do("bob", lambda node: node.bounce(0.0, key))
    effects = pair.do("bob", lambda node: node.peer_lost(0.0, pair["ann"].id))
    assert Enqueue not in kinds(effects)
    assert pair["bob"].quiescent


def test_an_orphan_that_does_not_restore_is_dropped(pair: Cluster) -> None:
    key = pair.lend("ann", "bob", spec=CONTINUATION)
    pair["bob"].begin(key)
    pair.do("bob", lambda node: node.peer_lost(0.0, pair["ann"].id))
    assert pair["bob"].bounce(0.0, key) == []
    assert pair["bob"].quiescent


# -------------------------------------------------------------------------------------------- leaving


def test_a_leaving_node_takes_no_tasks_but_its_own(three: Cluster) -> None:
    key = three.lend("ann", "bob")
    three["ann"].leave(0.0)
    three.give("bob", "ann", held=[(key, None)])
    assert three.deliver(Grant) == [ComeHome("handle", 0)]
    three.give("bob", "ann", own=[OwnTask("other", None, SPEC)])
    assert three.deliver(Grant) == []
    three.deliver(Accept)
    assert three.deliver(Reject) == [ComeHome("other", 0)]
    assert three["ann"].seek(0.0) == []


def test_a_leaving_node_gives_back_what_is_queued(three: Cluster) -> None:
    first, second = three.lend("ann", "bob", "first"), three.lend("eve", "bob", "second")
    three["bob"].leave(0.0)
    three.do("bob", lambda node: node.give_back(0.0, [(first, None), (second, None)]))
    assert three.deliver(Grant) == [ComeHome("first", 0)]
    assert three.deliver(Grant) == [ComeHome("second", 0)]
    three.deliver(Accept)
    three.deliver(Accept)
    assert three["bob"].quiescent


def test_a_leaving_node_asks_nobody_and_answers_no_join(pair: Cluster) -> None:
    pair["bob"].leave(0.0)
    assert pair["bob"].receive(0.0, Envelope(info("eve").id, NOBODY, Join(info("eve"), "3.x"))) == []
    assert not [
        effect
        for effect in pair["bob"].tick(10.0)
        if isinstance(effect, Send) and isinstance(effect.message, Steal)
    ]


# --------------------------------------------------------------------------------------------- status


def test_counters_are_asked_for_and_told(pair: Cluster) -> None:
    pair.do("ann", lambda node: node.ask_status(3))
    (request,) = pair.do("bob", lambda node: node.receive(0.0, pair.mail.pop()[1]))
    assert request == Report(pair["ann"].id, 3)
    pair.do("bob", lambda node: node.report(pair["ann"].id, 3, b"counters"))
    assert pair.do("ann", lambda node: node.receive(0.0, pair.mail.pop()[1])) == [
        StatusArrived(pair["bob"].id, 3, b"counters")
    ]


def test_a_welcome_has_everybody() -> None:
    cluster = Cluster("ann", "bob")
    effects = cluster["ann"].receive(0.0, Envelope(info("eve").id, NOBODY, Join(info("eve"), "3.x")))
    welcome = next(e.message for e in effects if isinstance(e, Send) and isinstance(e.message, Welcome))
    assert {row.info.name for row in welcome.members} == {"ann", "bob", "eve"}
