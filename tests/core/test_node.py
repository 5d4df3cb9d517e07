"""One or two nodes, messages handed over by the test: what the simulator would find only by luck."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from p2pscoop._core import effects as fx
from p2pscoop._core.codec import Envelope
from p2pscoop._core.ids import TaskKey
from p2pscoop._core.limits import Limits
from p2pscoop._core.messages import Grant, Message, NotMe, NoWork, Refuse, Result, ResultAck, Steal, Sync
from p2pscoop._core.node import Node
from p2pscoop._core.values import Outcome, OutcomeKind, PeerInfo, Spec, SpecKind

SPEC = Spec(b"code", b"args")
CONTINUATION = Spec(b"", b"frames", SpecKind.CONTINUATION)
VALUE = Outcome(OutcomeKind.VALUE, b"value")


@dataclass
class Side:
    """A node, and all that it has ordered."""

    node: Node
    effects: list[fx.Effect] = field(default_factory=list)

    def do(self, effects: list[fx.Effect]) -> list[fx.Effect]:
        self.effects += effects
        return effects

    def sent(self) -> list[Message]:
        """Take the messages out of what was ordered."""
        messages = [effect.message for effect in self.effects if isinstance(effect, fx.Send)]
        self.effects = [effect for effect in self.effects if not isinstance(effect, fx.Send)]
        return messages

    def take(self, kind: type[fx.Effect]) -> list[fx.Effect]:
        found = [effect for effect in self.effects if type(effect) is kind]
        self.effects = [effect for effect in self.effects if type(effect) is not kind]
        return found

    def receive(self, sender: Side, message: Message, now: float = 0.0) -> None:
        self.do(self.node.receive(now, Envelope(sender.node.id, self.node.id, message)))


def side(
    number: int, *, founder: bool = False, python: str = "3", version: str = "0", runs_tasks: bool = True
) -> Side:
    info = PeerInfo(
        number.to_bytes(8, "big"), f"n{number}", (f"fake:{number}",), "", founder, runs_tasks, "host", 1, version
    )
    return Side(Node(info, random.Random(number), Limits(), python=python, founder=founder))


def talk(*sides: Side, now: float = 0.0) -> None:
    """Deliver messages until nobody says anything more."""
    by_id = {each.node.id: each for each in sides}
    while True:
        deliveries = []
        for each in sides:
            for effect in each.take(fx.Send):
                assert isinstance(effect, fx.Send)
                deliveries.append((each, by_id[effect.recipient.id], effect.message))
            for effect in each.take(fx.SendToSeeds):
                assert isinstance(effect, fx.SendToSeeds)
                deliveries.append((each, sides[0], effect.message))
        if not deliveries:
            return
        for sender, recipient, message in deliveries:
            recipient.receive(sender, message, now)


def pair(*, submits_only: bool = False) -> tuple[Side, Side]:
    """Two members that know each other."""
    one, other = side(1, founder=True, runs_tasks=not submits_only), side(2)
    one.do(one.node.start(0.0))
    other.do(other.node.start(0.0))
    talk(one, other)
    assert other.node.joined
    for each in (one, other):
        each.effects.clear()
    return one, other


def lend(owner: Side, thief: Side, spec: Spec = SPEC) -> TaskKey:
    owner.do(owner.node.give(0.0, thief.node.id, 1, [("handle", None, spec)], []))
    talk(owner, thief)
    (held,) = thief.node.held
    return held.key


def test_a_steal_that_overtook_its_senders_introduction_is_answered_after_it() -> None:
    """The victim once dropped it, and the thief waited out its time limit for nothing."""
    victim, stranger = side(1, founder=True), side(2)
    victim.receive(stranger, Steal(1, 64, lifeline=False))
    assert victim.effects == []
    row = stranger.node.membership.row(stranger.node.id)
    assert row is not None
    victim.receive(stranger, Sync((row,), answer=False))
    (order,) = victim.take(fx.Surrender)
    assert order == fx.Surrender(stranger.node.id, 1, 64, answer=True)
    victim.do(victim.node.give(0.0, stranger.node.id, 1, [], []))
    assert victim.sent()[-1] == NoWork(1)


def test_early_steals_are_bounded_and_the_latest_count() -> None:
    victim = side(1, founder=True)
    strangers = [side(number) for number in range(2, 2 + 2 * Limits().early_steals_max)]
    for stranger in strangers:
        victim.receive(stranger, Steal(1, 64, lifeline=False))
    assert len(victim.node._early_steals) == Limits().early_steals_max
    for stranger, answered in ((strangers[0], 0), (strangers[-1], 1)):
        row = stranger.node.membership.row(stranger.node.id)
        assert row is not None
        victim.receive(stranger, Sync((row,), answer=False))
        assert len(victim.take(fx.Surrender)) == answered


def test_a_task_goes_out_and_its_outcome_comes_back() -> None:
    owner, thief = pair()
    key = lend(owner, thief)
    assert len(thief.take(fx.Enqueue)) == 1
    assert thief.node.begin(key)
    thief.do(thief.node.finish(0.0, key, VALUE))
    thief.do(thief.node.seek(0.0))
    talk(owner, thief)
    settle, *_ = owner.take(fx.Settle)
    assert settle == fx.Settle("handle", VALUE, thief.node.id, hungry=True)
    assert owner.node.quiescent
    assert thief.node.quiescent


def test_with_its_last_result_a_node_asks_for_more() -> None:
    owner, thief = pair()
    key = lend(owner, thief)
    thief.node.begin(key)
    thief.do(thief.node.finish(0.0, key, VALUE))
    thief.do(thief.node.seek(0.0))
    (message,) = thief.sent()
    assert isinstance(message, Result)
    assert message.steal is not None
    owner.receive(thief, message)
    kinds = [type(effect) for effect in owner.effects]
    assert kinds.index(fx.Settle) < kinds.index(fx.Surrender), "what the result makes ready may go to the thief"


def test_an_unacknowledged_result_is_sent_again_and_acknowledged_again() -> None:
    owner, thief = pair()
    key = lend(owner, thief)
    thief.node.begin(key)
    thief.do(thief.node.finish(0.0, key, VALUE))
    thief.do(thief.node.tick(0.1))
    (first,) = [message for message in thief.sent() if isinstance(message, Result)]
    owner.receive(thief, first)
    owner.sent()  # The acknowledgement is lost.
    thief.do(thief.node.tick(1.0))
    (again,) = [message for message in thief.sent() if isinstance(message, Result)]
    assert again.results == first.results
    owner.take(fx.Settle)
    owner.receive(thief, again)
    assert owner.take(fx.Settle) == []
    assert [message for message in owner.sent() if isinstance(message, ResultAck)] == [ResultAck((key.serial,))]


def test_a_continuation_is_handed_over_and_its_original_released() -> None:
    owner, thief = pair()
    lend(owner, thief, CONTINUATION)
    assert owner.take(fx.Released) == [fx.Released("handle")]


def test_a_task_that_was_settled_while_it_was_pickled_is_not_lent() -> None:
    """Its outcome came from an earlier holder; the rest of the grant must not suffer."""
    owner, thief = pair()
    key = lend(owner, thief)
    owner.do(owner.node.peer_lost(0.0, thief.node.id))
    owner.node.membership.arrive(thief.node.info)
    owner.node.release(key.serial)
    owner.sent()
    owner.do(owner.node.give(0.0, thief.node.id, 1, [("late", key.serial, SPEC), ("other", None, SPEC)], []))
    (grant,) = owner.sent()
    assert isinstance(grant, Grant)
    assert [task.serial for task in grant.tasks] == [key.serial + 1]


def test_a_continuation_costs_the_messages_of_a_steal() -> None:
    counts = []
    for spec in (SPEC, CONTINUATION):
        owner, thief = pair()
        sent = 0
        owner.do(owner.node.give(0.0, thief.node.id, 1, [("handle", None, spec)], []))
        for side_, other in ((owner, thief), (thief, owner)):
            messages = side_.sent()
            sent += len(messages)
            for message in messages:
                other.receive(side_, message)
        assert owner.sent() == thief.sent() == []
        counts.append(sent)
    assert counts == [2, 2], "a grant and its accept"


def test_a_guest_that_was_started_goes_home_as_a_continuation() -> None:
    owner, thief = pair()
    key = lend(owner, thief)
    thief.node.begin(key)
    assert thief.node.ready(key)
    thief.do(thief.node.give_back(0.0, [(key, CONTINUATION)]))
    talk(owner, thief)
    assert owner.take(fx.ComeHome) == [fx.ComeHome("handle", key.serial, CONTINUATION)]
    assert thief.take(fx.Passed) == [fx.Passed(key)]
    assert thief.node.quiescent


LARGE = Outcome(OutcomeKind.VALUE, bytes(Limits().bulk_min))


def keep(owner: Side, thief: Side) -> TaskKey:
    """A task whose large value stays with the thief."""
    key = lend(owner, thief)
    thief.node.begin(key)
    thief.do(thief.node.finish(0.0, key, LARGE))
    thief.do(thief.node.tick(0.1))
    talk(owner, thief)
    return key


def test_a_large_value_stays_until_it_is_fetched() -> None:
    owner, thief = pair()
    key = keep(owner, thief)
    assert owner.take(fx.Kept) == [fx.Kept("handle", key.serial, thief.node.id, hungry=False)]
    assert thief.node.kept(key) == LARGE
    thief.do(thief.node.tick(1.0))
    talk(owner, thief)
    assert owner.take(fx.Kept) == [], "it is said again, and no news"
    owner.do(owner.node.fetch(key.serial))
    assert owner.node.fetch(key.serial) == []
    talk(owner, thief)
    thief.do(thief.node.tick(2.0))
    talk(owner, thief)
    assert owner.take(fx.Settle) == [fx.Settle("handle", LARGE, thief.node.id)]
    assert owner.node.quiescent
    assert thief.node.quiescent


def test_a_lost_fetch_is_sent_again_when_the_value_is_announced_again() -> None:
    owner, thief = pair()
    key = keep(owner, thief)
    owner.node.fetch(key.serial)
    thief.do(thief.node.tick(1.0))
    talk(owner, thief)
    thief.do(thief.node.tick(2.0))
    talk(owner, thief)
    assert len(owner.take(fx.Settle)) == 1


def test_a_large_value_is_released_or_lost() -> None:
    owner, thief = pair()
    key = keep(owner, thief)
    owner.do(owner.node.release(key.serial))
    talk(owner, thief)
    assert owner.node.quiescent
    assert thief.node.quiescent
    key = keep(owner, thief)
    owner.do(owner.node.peer_lost(0.0, thief.node.id))
    assert owner.take(fx.ComeHome) == [fx.ComeHome("handle", key.serial)]
    assert owner.node.fetch(key.serial) == []


def test_a_leaving_node_hands_over_what_it_keeps() -> None:
    owner, leaver = pair()
    keep(owner, leaver)
    leaver.do(leaver.node.leave(0.0))
    leaver.do(leaver.node.tick(1.0))
    talk(owner, leaver)
    assert len(owner.take(fx.Settle)) == 1
    assert leaver.node.quiescent


def test_an_owner_that_runs_no_tasks_is_sent_large_values_at_once() -> None:
    owner, thief = pair(submits_only=True)
    key = keep(owner, thief)
    assert thief.node.kept(key) is None
    assert len(owner.take(fx.Settle)) == 1


def test_what_does_not_restore_goes_back_to_its_owner() -> None:
    owner, thief = pair()
    key = lend(owner, thief, CONTINUATION)
    thief.node.begin(key)
    thief.do(thief.node.bounce(0.0, key))
    talk(owner, thief)
    (home,) = owner.take(fx.ComeHome)
    assert isinstance(home, fx.ComeHome)
    assert home.spec is not None
    assert home.spec.kind is SpecKind.BOUNCED
    assert thief.node.counters.bounced == 1


def test_the_tasks_of_a_dead_holder_come_home() -> None:
    owner, thief = pair()
    key = lend(owner, thief)
    owner.do(owner.node.peer_lost(0.0, thief.node.id))
    assert owner.take(fx.ComeHome) == [fx.ComeHome("handle", key.serial)]
    assert len(owner.take(fx.Departed)) == len(owner.take(fx.Disconnect)) == 1


def test_a_message_for_another_node_is_not_acted_on() -> None:
    one, other = pair()
    one.do(one.node.receive(0.0, Envelope(other.node.id, b"somebody", Steal(1, 64, lifeline=False))))
    assert one.sent() == [NotMe(b"somebody")]
    assert one.effects == []


def test_a_leaving_node_takes_nothing_but_its_own() -> None:
    owner, leaver = pair()
    leaver.do(leaver.node.leave(0.0))
    owner.do(owner.node.give(0.0, leaver.node.id, 1, [("handle", None, SPEC)], []))
    talk(owner, leaver)
    assert owner.take(fx.ComeHome) == [fx.ComeHome("handle", 0)]
    assert leaver.node.seek(0.0) == []
    owner.do(leaver.node.goodbye("enough"))
    assert leaver.node.leaving


def test_strangers_with_other_versions_are_refused_with_the_reason() -> None:
    member = side(1, founder=True)
    for stranger, reason in ((side(2, python="4"), "Python 3"), (side(3, version="9"), "p2pscoop 0")):
        stranger.do(stranger.node.start(0.0))
        (ask,) = stranger.take(fx.SendToSeeds)
        assert isinstance(ask, fx.SendToSeeds)
        member.receive(stranger, ask.message)
        (refusal,) = member.sent()
        assert isinstance(refusal, Refuse)
        assert reason in refusal.reason
        stranger.receive(member, refusal)
        assert len(stranger.take(fx.Refused)) == 1
        assert not stranger.node.joined
