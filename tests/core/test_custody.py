"""The two ledgers: every transition that the tables allow, every one that they do not, and the races."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from p2pscoop._core.custody import (
    HOLDER_TRANSITIONS,
    OWNER_TRANSITIONS,
    Held,
    HolderEvent,
    HolderLedger,
    HolderState,
    Lent,
    OwnerEvent,
    OwnerLedger,
    OwnerState,
)
from p2pscoop._core.ids import TaskKey, Token
from p2pscoop._core.values import Outcome, OutcomeKind, Spec, SpecKind, TaskEntry
from p2pscoop.errors import LocalProtocolError

ME, PEER, THIRD = b"me------", b"peer----", b"third---"
SPEC = Spec(b"code", b"args")
CONTINUATION = Spec(b"", b"frames", SpecKind.CONTINUATION)
VALUE = Outcome(OutcomeKind.VALUE, b"value")
LEASE_S = 10.0


@pytest.mark.parametrize("state", OwnerState)
@pytest.mark.parametrize("event", OwnerEvent)
def test_owner_records_follow_their_table(state: OwnerState, event: OwnerEvent) -> None:
    record = Lent(0, "handle", state, Token(0, 1), PEER, SPEC, 0.0)
    if (state, event) in OWNER_TRANSITIONS:
        record.advance(event)
        assert record.state is OWNER_TRANSITIONS[state, event]
    else:
        with pytest.raises(LocalProtocolError, match=f"{event.name} in state {state.name}"):
            record.advance(event)
        assert record.state is state


@pytest.mark.parametrize("state", HolderState)
@pytest.mark.parametrize("event", HolderEvent)
def test_holder_records_follow_their_table(state: HolderState, event: HolderEvent) -> None:
    record = Held(TaskKey(PEER, 0), Token(0, 1), state, SPEC)
    if (state, event) in HOLDER_TRANSITIONS:
        record.advance(event)
        assert record.state is HOLDER_TRANSITIONS[state, event]
    else:
        with pytest.raises(LocalProtocolError, match=f"{event.name} in state {state.name}"):
            record.advance(event)
        assert record.state is state


def test_every_state_is_left_but_the_last() -> None:
    for table, states, last in (
        (OWNER_TRANSITIONS, OwnerState, OwnerState.SETTLED),
        (HOLDER_TRANSITIONS, HolderState, HolderState.GONE),
    ):
        assert {state for state, _ in table} == set(states) - {last}


# ----------------------------------------------------------------------------------------- the owner


@pytest.fixture
def owned() -> OwnerLedger:
    return OwnerLedger(ME, LEASE_S)


def lend(owned: OwnerLedger, now: float = 0.0, spec: Spec = SPEC) -> Lent:
    return owned.lend(now, "handle", None, spec, PEER)


def test_a_lent_task_ends_with_its_outcome(owned: OwnerLedger) -> None:
    record = lend(owned)
    assert (record.state, record.token, record.holder) == (OwnerState.OFFERED, Token(0, 1), PEER)
    owned.on_accept(1.0, PEER, record.serial, record.token)
    assert (record.state, record.spec) == (OwnerState.LENT, None)
    assert owned.settle(record.serial) is record
    assert owned.settle(record.serial) is None, "the first outcome counts"
    assert len(owned) == 0


def test_serials_are_not_used_twice(owned: OwnerLedger) -> None:
    first = lend(owned)
    owned.settle(first.serial)
    assert lend(owned).serial != first.serial


def test_an_outcome_may_overtake_the_accept(owned: OwnerLedger) -> None:
    record = lend(owned)
    assert owned.settle(record.serial) is record
    assert owned.on_accept(0.0, PEER, record.serial, record.token) is None


def test_leases_run_out_unless_renewed(owned: OwnerLedger) -> None:
    record = lend(owned)
    owned.on_accept(0.0, PEER, record.serial, record.token)
    assert owned.expire(LEASE_S - 1) == []
    entry = TaskEntry(ME, record.serial, record.token)
    assert owned.on_holding(LEASE_S - 1, PEER, [entry]) == ((), [])
    assert owned.expire(LEASE_S + 1) == []
    assert owned.expire(2 * LEASE_S) == [record]
    assert (record.state, record.token) == (OwnerState.HOME, Token(1, 0))
    assert owned.on_holding(2 * LEASE_S, PEER, [entry]) == ((entry,), []), "it holds in vain now"


def test_a_lost_holder_loses_all_that_it_had_and_nothing_else(owned: OwnerLedger) -> None:
    offered, accepted = lend(owned), lend(owned)
    owned.on_accept(0.0, PEER, accepted.serial, accepted.token)
    elsewhere = owned.lend(0.0, "other", None, SPEC, THIRD)
    assert owned.lose_holder(PEER) == [offered, accepted]
    assert elsewhere.state is OwnerState.OFFERED
    assert owned.lose_holder(PEER) == []


def test_a_task_may_be_passed_on_without_the_owner(owned: OwnerLedger) -> None:
    record = lend(owned)
    owned.on_accept(0.0, PEER, record.serial, record.token)
    passed = record.token.passed()
    owned.on_holding(1.0, THIRD, [TaskEntry(ME, record.serial, passed)])
    assert (record.holder, record.token) == (THIRD, passed)
    owned.on_accept(2.0, PEER, record.serial, Token(0, 1))
    assert record.holder == THIRD, "an old accept says nothing"
    assert owned.lose_holder(PEER) == []


def test_a_rejected_task_is_at_home_again_under_a_newer_token(owned: OwnerLedger) -> None:
    record = lend(owned)
    assert owned.on_reject(THIRD, record.serial, record.token) is None
    assert owned.on_reject(PEER, record.serial, Token(0, 7)) is None
    offered = record.token
    assert owned.on_reject(PEER, record.serial, offered) is record
    assert record.token > offered
    again = owned.lend(0.0, "handle", record.serial, SPEC, THIRD)
    assert again is record
    assert again.serial == record.serial


def test_a_returned_task_is_at_home_once(owned: OwnerLedger) -> None:
    record = lend(owned)
    owned.on_accept(0.0, PEER, record.serial, record.token)
    assert owned.on_return(record.serial, record.token) is None, "not newer than what the owner knows"
    back = record.token.passed()
    assert owned.on_return(record.serial, back) is record
    assert owned.on_return(record.serial, back) is None
    assert owned.on_return(99, back) is None


def test_the_original_of_a_continuation_is_released_once(owned: OwnerLedger) -> None:
    fresh, started = lend(owned), lend(owned, spec=CONTINUATION)
    assert owned.on_accept(0.0, PEER, fresh.serial, fresh.token) is None
    assert owned.on_accept(0.0, PEER, started.serial, started.token) is started
    assert owned.on_accept(0.0, PEER, started.serial, started.token) is None


def test_a_renewal_is_an_accept_too(owned: OwnerLedger) -> None:
    record = lend(owned, spec=CONTINUATION)
    assert owned.on_holding(0.0, PEER, [TaskEntry(ME, record.serial, record.token)]) == ((), [record])


# ---------------------------------------------------------------------------------------- the holder

KEY = TaskKey(PEER, 5)


@pytest.fixture
def held() -> HolderLedger:
    return HolderLedger(tombstones_max=3)


def test_a_held_task_is_gone_when_its_owner_has_the_outcome(held: HolderLedger) -> None:
    record = held.on_grant(KEY, Token(0, 1), SPEC)
    assert record is not None
    assert held.on_grant(KEY, Token(0, 1), SPEC) is None, "a repeated grant"
    assert held.start(KEY) is record
    assert held.start(KEY) is None
    assert held.finish(KEY, VALUE) is record
    held.on_result_ack(KEY)
    assert len(held) == 0
    assert held.on_grant(KEY, Token(0, 1), SPEC) is None, "a late copy meets the tombstone"
    assert held.on_grant(KEY, Token(1, 1), SPEC) is not None, "a new attempt does not"


def test_tombstones_are_bounded(held: HolderLedger) -> None:
    for serial in range(10):
        key = TaskKey(PEER, serial)
        held.on_grant(key, Token(0, 1), SPEC)
        held.cancel(key)
    assert held.on_grant(TaskKey(PEER, 9), Token(0, 1), SPEC) is None
    assert held.on_grant(TaskKey(PEER, 0), Token(0, 1), SPEC) is not None


def test_an_offered_task_is_passed_or_taken_back(held: HolderLedger) -> None:
    held.on_grant(KEY, Token(0, 1), SPEC)
    record = held.offer(KEY, THIRD, None)
    assert record is not None
    assert held.offer(KEY, THIRD, None) is None
    assert held.start(KEY) is None
    assert held.on_reject(PEER, KEY, Token(0, 2)) is None, "not whom it was offered to"
    assert held.on_reject(THIRD, KEY, Token(0, 2)) is record
    assert record.token == Token(0, 3), "above the token that was offered"
    held.offer(KEY, THIRD, None)
    held.on_accept(THIRD, KEY, Token(0, 2))
    assert len(held) == 1, "an accept of the offer before"
    assert held.on_accept(THIRD, KEY, Token(0, 4)) is None, "no continuation left with it"
    assert len(held) == 0


def test_race_1_a_task_is_back_before_the_accept_of_whom_it_was_offered_to(held: HolderLedger) -> None:
    held.on_grant(KEY, Token(0, 1), SPEC)
    held.offer(KEY, THIRD, None)
    record = held.on_grant(KEY, Token(0, 3), SPEC)
    assert record is not None
    assert record.state is HolderState.QUEUED
    assert held.on_accept(THIRD, KEY, Token(0, 2)) is None
    assert held.get(KEY) is record


def test_race_3_a_verdict_binds_no_custody_later_than_the_one_it_judged(held: HolderLedger) -> None:
    record = held.on_grant(KEY, Token(1, 1), SPEC)
    assert held.on_obsolete(TaskEntry(*KEY, Token(0, 4))) is None
    assert held.get(KEY) is record
    assert held.on_obsolete(TaskEntry(*KEY, Token(1, 1))) is record
    assert len(held) == 0


def test_results_are_facts_even_of_obsolete_custodies(held: HolderLedger) -> None:
    record = held.on_grant(KEY, Token(0, 1), SPEC)
    held.start(KEY)
    assert held.on_obsolete(TaskEntry(*KEY, Token(0, 1))) is None
    assert held.finish(KEY, VALUE) is record


def start(held: HolderLedger) -> None:
    held.start(KEY)


def offer(held: HolderLedger) -> None:
    held.offer(KEY, THIRD, None)


def finish(held: HolderLedger) -> None:
    held.start(KEY)
    held.finish(KEY, VALUE)


@pytest.mark.parametrize(
    ("before", "dropped", "left"),
    [(lambda _: None, 1, 0), (offer, 1, 0), (start, 0, 1), (finish, 0, 0)],
    ids=["queued", "offered", "running", "finished"],
)
def test_nobody_waits_for_the_tasks_of_a_lost_owner(
    held: HolderLedger, before: Callable[[HolderLedger], None], dropped: int, left: int
) -> None:
    held.on_grant(KEY, Token(0, 1), SPEC)
    before(held)
    assert len(held.lose_owner(PEER)) == dropped
    assert len(held) == left
    if left:
        assert held.finish(KEY, VALUE) is None, "an orphan's outcome is nobody's"
        assert len(held) == 0


def test_a_started_task_that_can_go_on_may_be_passed_on_as_a_continuation(held: HolderLedger) -> None:
    record = held.on_grant(KEY, Token(0, 1), SPEC)
    assert record is not None
    held.start(KEY)
    assert held.ready(KEY)
    assert held.offer(KEY, THIRD, CONTINUATION) is record
    assert record.spec is CONTINUATION
    assert held.on_accept(THIRD, KEY, Token(0, 2)) is record


def test_a_ready_orphan_is_forgotten(held: HolderLedger) -> None:
    held.on_grant(KEY, Token(0, 1), SPEC)
    held.start(KEY)
    held.lose_owner(PEER)
    assert not held.ready(KEY)
    assert len(held) == 0


def test_only_what_was_begun_bounces(held: HolderLedger) -> None:
    record = held.on_grant(KEY, Token(0, 1), CONTINUATION)
    assert held.bounce(KEY) is None
    held.start(KEY)
    assert held.bounce(KEY) is record
    held.abandon(KEY)
    assert len(held) == 0


@pytest.mark.parametrize("key", [TaskKey(THIRD, 0), TaskKey(PEER, 6)])
def test_strangers_are_no_records(held: HolderLedger, key: TaskKey) -> None:
    held.on_grant(KEY, Token(0, 1), SPEC)
    assert held.get(key) is held.start(key) is held.offer(key, THIRD, None) is held.cancel(key) is None
    assert held.on_accept(THIRD, key, Token(0, 2)) is held.on_reject(THIRD, key, Token(0, 2)) is None
    assert held.on_obsolete(TaskEntry(*key, Token(0, 2))) is held.bounce(key) is None
    held.on_result_ack(key)
    assert len(held) == 1
