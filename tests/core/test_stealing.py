"""What an idle node does, whom it asks, and who is fed."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pscoop._core.limits import Limits
from p2pscoop._core.stealing import Thief, ThiefState, WaitingThieves, lifelines

LIMITS = Limits(random_steals=2, steal_timeout_s=1.0, lifeline_refresh_s=4.0)
ME = b"5......."
PEERS = [b"%d......." % digit for digit in (1, 2, 3, 7, 8)]


@pytest.fixture
def thief() -> Thief:
    return Thief(ME, random.Random(1), LIMITS)


def give_up(thief: Thief, now: float = 0.0) -> list:
    """Until the thief registers."""
    attempts = thief.seek(now, PEERS)
    while thief.state is ThiefState.ASKING:
        (attempt,) = attempts
        attempts = thief.on_no_work(now, attempt.victim, attempt.steal, PEERS)
    return attempts


def test_some_random_steals_then_lifelines_then_silence(thief: Thief) -> None:
    (first,) = thief.seek(0.0, PEERS)
    assert not first.lifeline
    assert thief.seek(0.0, PEERS) == [], "it is looking already"
    (second,) = thief.on_no_work(0.1, first.victim, first.steal, PEERS)
    assert second.victim != first.victim
    assert second.steal > first.steal
    registrations = thief.on_no_work(0.2, second.victim, second.steal, PEERS)
    assert thief.state is ThiefState.WAITING
    assert [each.victim for each in registrations] == lifelines(ME, [ME, *PEERS])
    assert all(each.lifeline for each in registrations)
    assert thief.tick(0.3, PEERS) == []


def test_registrations_are_renewed(thief: Thief) -> None:
    give_up(thief)
    assert thief.wake_at is not None
    assert 0.75 * 4.0 <= thief.wake_at <= 1.25 * 4.0
    assert thief.tick(thief.wake_at, PEERS)
    assert thief.state is ThiefState.WAITING


def test_a_silent_victim_counts_as_one_without_work(thief: Thief) -> None:
    (first,) = thief.seek(0.0, PEERS)
    assert thief.tick(0.9, PEERS) == []
    (second,) = thief.tick(1.0, PEERS)
    # The late answer is not taken for that of the second victim.
    assert thief.on_no_work(1.1, first.victim, first.steal, PEERS) == []
    assert thief.on_no_work(1.1, second.victim, first.steal, PEERS) == []
    assert thief.state is ThiefState.ASKING


def test_a_victim_that_is_gone_does_not_have_to_be_waited_for(thief: Thief) -> None:
    (first,) = thief.seek(0.0, PEERS)
    others = [peer for peer in PEERS if peer != first.victim]
    assert thief.on_gone(0.1, others[0], PEERS) == []
    (second,) = thief.on_gone(0.1, first.victim, others)
    assert second.victim in others


def test_found_work_ends_the_search(thief: Thief) -> None:
    (first,) = thief.seek(0.0, PEERS)
    thief.found()
    assert thief.state is ThiefState.BUSY
    assert thief.wake_at is None
    assert thief.on_no_work(0.1, first.victim, first.steal, PEERS) == []
    assert thief.on_gone(0.1, first.victim, PEERS) == []
    assert thief.tick(100.0, PEERS) == []
    assert thief.on_arrival(100.0, PEERS) == []


def test_a_new_peer_is_worth_asking(thief: Thief) -> None:
    give_up(thief)
    (attempt,) = thief.on_arrival(1.0, PEERS)
    assert not attempt.lifeline
    assert thief.on_arrival(1.0, PEERS) == [], "one steal at a time"


def test_alone_it_waits(thief: Thief) -> None:
    assert thief.seek(0.0, []) == []
    assert thief.state is ThiefState.WAITING
    assert thief.on_arrival(1.0, PEERS[:1])[0].victim == PEERS[0]


def test_a_steal_that_rides_along_is_the_first_of_the_search(thief: Thief) -> None:
    steal = thief.ride_along(0.0, PEERS[0])
    assert thief.state is ThiefState.ASKING
    (second,) = thief.on_no_work(0.1, PEERS[0], steal, PEERS)
    assert not second.lifeline


@given(st.sets(st.binary(min_size=8, max_size=8), min_size=1, max_size=70))
def test_lifelines_are_few_and_reach_everyone(members: set[bytes]) -> None:
    ring = sorted(members)
    graph = {node: lifelines(node, list(members)) for node in members}
    for node, chosen in graph.items():
        assert node not in chosen
        assert len(set(chosen)) == len(chosen)
        assert len(chosen) == (len(members) - 1).bit_length()
    reached = {ring[0]}
    for _ in range((len(members) - 1).bit_length()):
        reached |= {peer for node in reached for peer in graph[node]}
    assert reached == members


def test_lifelines_do_not_depend_on_the_order_of_members() -> None:
    members = [ME, *PEERS]
    assert lifelines(ME, members) == lifelines(ME, members[::-1])


def test_waiting_thieves_are_fed_in_order_of_registration() -> None:
    waiting = WaitingThieves(LIMITS)
    for number, peer in enumerate(PEERS):
        waiting.add(0.0, peer, number)
    waiting.discard(PEERS[1])
    waiting.add(1.0, PEERS[0], 77)
    order = waiting.waiting(1.0)
    assert order == [(PEERS[0], 77), (PEERS[2], 2), (PEERS[3], 3), (PEERS[4], 4)]
    assert len(waiting) == 4


def test_a_registration_that_is_not_renewed_ends() -> None:
    waiting = WaitingThieves(LIMITS)
    waiting.add(0.0, PEERS[0], 1)
    waiting.add(5.0, PEERS[1], 1)
    assert waiting.waiting(9.9) == [(PEERS[0], 1), (PEERS[1], 1)]
    assert waiting.waiting(10.0) == [(PEERS[1], 1)]
    waiting.discard(PEERS[0])


def test_nodes_that_went_idle_together_do_not_refresh_together() -> None:
    thieves = [Thief(b"%8d" % number, random.Random(number), LIMITS) for number in range(20)]
    for thief in thieves:
        thief.seek(0.0, [])
    times = sorted(thief.wake_at or 0.0 for thief in thieves)
    assert all(later > earlier for earlier, later in pairwise(times))
