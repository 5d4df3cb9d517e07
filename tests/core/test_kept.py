"""Large values stay with the node that computed them until they are wanted."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from p2pscoop._core import effects as fx
from p2pscoop._core.codec import Envelope
from p2pscoop._core.ids import TaskKey
from p2pscoop._core.limits import Limits
from p2pscoop._core.messages import Message
from p2pscoop._core.node import Node
from p2pscoop._core.values import Outcome, OutcomeKind, OwnTask, PeerInfo, Spec, SpecKind

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
    owner.do(owner.node.give(0.0, thief.node.id, 1, [OwnTask("handle", None, spec)], []))
    talk(owner, thief)
    (held,) = thief.node.held
    return held.key


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
