"""Whatever a peer says that reads as a message, a node's core takes it, and goes on."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.core.test_codec import LIMITS, any_message
from tests.core.test_node import SPEC, VALUE, info, new_node

from p2pscoop._core import messages as m
from p2pscoop._core import values as v
from p2pscoop._core.codec import Envelope, decode, encode
from p2pscoop._core.effects import Effect, Enqueue, Send, SendToSeeds
from p2pscoop._core.ids import NOBODY, Token
from p2pscoop._core.node import Node

PEERS = [info(name) for name in ("one", "two", "gone", "stranger")]
IDS = [each.id for each in PEERS]
numbers = st.sampled_from([0, 1, 2, 2**31, 2**63 - 1])
tokens = st.builds(Token, numbers, numbers)
entries = st.lists(st.builds(v.TaskEntry, st.sampled_from(IDS), numbers, tokens), max_size=3).map(tuple)
members = st.lists(
    st.builds(
        v.MemberEntry, st.sampled_from([*PEERS, info("me", origin=True)]), st.sampled_from(v.MemberState), numbers
    ),
    max_size=3,
).map(tuple)
results = st.lists(st.builds(v.TaskResult, numbers, tokens, st.just(VALUE)), max_size=3).map(tuple)
granted = st.lists(st.builds(v.GrantedTask, st.sampled_from(IDS), numbers, tokens, st.just(SPEC)), max_size=3).map(
    tuple
)

likely_message = st.one_of(
    any_message,
    st.builds(m.Sync, members, st.booleans()),
    st.builds(m.Welcome, members),
    st.builds(m.Grant, numbers, granted),
    st.builds(m.Result, results, st.none() | numbers),
    *(st.builds(kind, entries) for kind in (m.Accept, m.Holding, m.HoldingAck)),
    st.builds(m.NotMe, st.sampled_from(IDS)),
    st.builds(m.Leaving, st.just("bye"), st.booleans(), st.booleans()),
)
"""About peers and tasks that there are, more often than chance would have it."""


def node() -> Node:
    """One that has tasks with a peer, holds a task of another, and knows one that is gone."""
    made = new_node("me", founder=True)
    made.start(0.0)
    for peer in PEERS[:3]:
        made.receive(
            0.0, Envelope(peer.id, made.id, m.Sync((v.MemberEntry(peer, v.MemberState.ALIVE, 0),), False))
        )
    made.receive(0.0, Envelope(IDS[2], made.id, m.Leaving("bye", False)))
    made.receive(0.0, Envelope(IDS[0], made.id, m.Steal(1, 5, True)))
    made.give(0.0, IDS[0], 1, [v.OwnTask(number, None, SPEC) for number in range(3)], [])
    grant = m.Grant(0, (v.GrantedTask(IDS[1], 1, Token(0, 1), SPEC),))
    assert any(isinstance(each, Enqueue) for each in made.receive(0.0, Envelope(IDS[1], made.id, grant)))
    return made


ABSURD = m.Sync((v.MemberEntry(info("me", origin=True), v.MemberState.DEAD, 2**63 - 1),), True)


@example([(IDS[0], True, ABSURD)])
@given(st.lists(st.tuples(st.sampled_from(IDS), st.booleans(), likely_message), min_size=1, max_size=20))
@settings(deadline=None)
def test_nothing_that_reads_as_a_message_breaks_a_node(said: list[tuple[bytes, bool, m.Message]]) -> None:
    target = node()
    now = 0.0
    for sender, named, message in said:
        now += 0.3
        effects: list[Effect] = target.receive(now, Envelope(sender, target.id if named else NOBODY, message))
        effects += target.tick(now)
        for effect in effects:
            if isinstance(effect, (Send, SendToSeeds)):
                answer = Envelope(target.id, NOBODY, effect.message)
                assert decode(encode(answer, LIMITS), LIMITS) == answer, "what it says can be read"
