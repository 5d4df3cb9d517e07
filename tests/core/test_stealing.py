"""Whom an idle node asks, and when it falls silent."""

from __future__ import annotations

import math
import random

from hypothesis import given
from hypothesis import strategies as st

from p2pscoop._core.limits import Limits
from p2pscoop._core.stealing import Thief, ThiefState, WaitingThieves, lifelines

LIMITS = Limits()
ME = b"me"
VICTIMS = (b"a", b"b", b"c", b"d")


def thief(seed: int = 0) -> Thief:
    return Thief(ME, random.Random(seed), LIMITS)


@given(st.integers(1, 200))
def test_lifelines_reach_everybody(count: int) -> None:
    members = [index.to_bytes(2, "big") for index in range(count)]
    links = {member: lifelines(member, members) for member in members}
    steps = math.ceil(math.log2(count)) if count > 1 else 0
    assert all(len(chosen) == len(set(chosen)) == steps for chosen in links.values())
    reached = {members[0]}
    for _ in range(steps):
        reached |= {link for member in reached for link in links[member]}
    assert reached == set(members)


def test_two_random_victims_then_the_lifelines_then_silence() -> None:
    one = thief()
    (first,) = one.seek(0.0, VICTIMS)
    assert one.seek(0.0, VICTIMS) == [], "one steal at a time"
    (second,) = one.on_no_work(0.1, first.victim, first.steal, VICTIMS)
    assert second.victim != first.victim
    assert not any(attempt.lifeline for attempt in (first, second))
    registered = one.on_no_work(0.2, second.victim, second.steal, VICTIMS)
    assert {attempt.victim for attempt in registered} == set(lifelines(ME, [ME, *VICTIMS]))
    assert all(attempt.lifeline for attempt in registered)
    assert one.state is ThiefState.WAITING
    assert one.tick(1.0, VICTIMS) == []
    assert one.wake_at is not None
    assert len(one.tick(one.wake_at, VICTIMS)) == len(registered), "registrations are renewed"


def test_late_answers_say_nothing() -> None:
    one = thief()
    (first,) = one.seek(0.0, VICTIMS)
    assert one.on_no_work(0.1, first.victim, first.steal + 1, VICTIMS) == []
    assert one.on_no_work(0.1, b"x", first.steal, VICTIMS) == []
    one.found()
    assert one.on_no_work(0.1, first.victim, first.steal, VICTIMS) == []
    assert one.wake_at is None
    assert one.tick(100.0, VICTIMS) == []


def test_a_silent_or_lost_victim_counts_as_one_with_nothing() -> None:
    one = thief()
    (first,) = one.seek(0.0, VICTIMS)
    assert one.tick(LIMITS.steal_timeout_s / 2, VICTIMS) == []
    (second,) = one.tick(LIMITS.steal_timeout_s, VICTIMS)
    assert one.on_gone(2.0, first.victim, VICTIMS) == []
    assert one.on_gone(2.0, second.victim, VICTIMS) != []


def test_news_of_a_peer_ends_the_silence() -> None:
    one = thief()
    assert one.on_arrival(0.0, VICTIMS) == []
    assert one.seek(0.0, ()) == [], "nobody is there"
    assert one.state is ThiefState.WAITING
    (attempt,) = one.on_arrival(1.0, (b"a",))
    assert (attempt.victim, attempt.lifeline) == (b"a", False)


def test_victims_are_drawn_evenly() -> None:
    drawn = [thief(seed).seek(0.0, VICTIMS)[0].victim for seed in range(400)]
    assert all(drawn.count(victim) > 50 for victim in VICTIMS)


def test_waiting_thieves_are_fed_in_order_and_forgotten_in_time() -> None:
    waiting = WaitingThieves(LIMITS)
    waiting.add(0.0, b"a", 1)
    waiting.add(5.0, b"b", 1)
    waiting.add(5.0, b"a", 2)
    assert waiting.waiting(6.0) == [(b"a", 2), (b"b", 1)]
    waiting.discard(b"a")
    waiting.discard(b"a")
    assert len(waiting) == 1
    assert waiting.waiting(100.0) == []
