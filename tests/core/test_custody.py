"""Every transition of both ledgers, every refused one, and what old or repeated messages do to a record."""

from __future__ import annotations

from itertools import product

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
from p2pscoop._core.ids import FIRST_TOKEN, TaskKey, Token
from p2pscoop._core.values import BOUNCED, Outcome, OutcomeKind, OwnTask, Spec, SpecKind, TaskEntry
from p2pscoop.errors import LocalProtocolError

ME, ANN, BOB, EVE = b"me......", b"ann.....", b"bob.....", b"eve....."
SPEC = Spec(b"code", b"args")
CONTINUATION = Spec(b"", b"frames", SpecKind.CONTINUATION)
VALUE = Outcome(OutcomeKind.VALUE, b"1")
KEY = TaskKey(ANN, 7)
FIRST = Token(0, 1)


def test_tokens_order_custodies() -> None:
    token = FIRST_TOKEN
    assert token < token.passed() < token.taken_back() < token.taken_back().passed() < token.requeued()
    assert token.passed().passed().passed() < token.requeued()


# ---------------------------------------------------------------------------------------- transitions


@pytest.mark.parametrize(("state", "event"), list(product(OwnerState, OwnerEvent)))
def test_owner_transitions(state: OwnerState, event: OwnerEvent) -> None:
    record = Lent(0, None, state, FIRST_TOKEN, ME, None, 0.0)
    if (state, event) in OWNER_TRANSITIONS:
        record.advance(event)
        assert record.state is OWNER_TRANSITIONS[state, event]
    else:
        with pytest.raises(LocalProtocolError, match=rf"{event.name} in state {state.name}"):
            record.advance(event)
        assert record.state is state


@pytest.mark.parametrize(("state", "event"), list(product(HolderState, HolderEvent)))
def test_holder_transitions(state: HolderState, event: HolderEvent) -> None:
    record = Held(KEY, FIRST_TOKEN, state, None)
    if (state, event) in HOLDER_TRANSITIONS:
        record.advance(event)
        assert record.state is HOLDER_TRANSITIONS[state, event]
    else:
        with pytest.raises(LocalProtocolError, match=rf"{event.name} in state {state.name}"):
            record.advance(event)
        assert record.state is state


@pytest.mark.parametrize("end", [OwnerState.SETTLED, HolderState.GONE])
def test_nothing_follows_the_end(end: OwnerState | HolderState) -> None:
    assert not [pair for pair in (*OWNER_TRANSITIONS, *HOLDER_TRANSITIONS) if pair[0] is end]


@pytest.mark.parametrize(
    ("start", "transitions"),
    [(OwnerState.HOME, OWNER_TRANSITIONS), (HolderState.QUEUED, HOLDER_TRANSITIONS)],
    ids=["owner", "holder"],
)
def test_every_state_is_reached_and_has_an_end(start, transitions) -> None:
    reached = {start}
    while more := {after for (before, _), after in transitions.items() if before in reached} - reached:
        reached |= more
    assert reached == set(type(start))
    ended = {state for state in type(start) if not any(before is state for before, _ in transitions)}
    while more := {before for (before, _), after in transitions.items() if after in ended} - ended:
        ended |= more
    assert ended == set(type(start))


# -------------------------------------------------------------------------------------------- the owner


@pytest.fixture
def owner() -> OwnerLedger:
    return OwnerLedger(ME, lease_s=10.0)


def lend(owner: OwnerLedger, spec: Spec = SPEC, *, accepted: bool = False) -> Lent:
    record = owner.lend(0.0, OwnTask("handle", None, spec), ANN)
    if accepted:
        owner.on_accept(1.0, ANN, record.serial, record.token)
    return record


def test_the_spec_is_kept_until_the_thief_has_it(owner: OwnerLedger) -> None:
    record = lend(owner)
    assert (record.state, record.holder, record.spec, record.token) == (OwnerState.OFFERED, ANN, SPEC, Token(0, 1))
    assert owner.on_accept(1.0, ANN, record.serial, record.token) is None
    assert (record.state, record.spec, record.lease_until) == (OwnerState.LENT, None, 11.0)


def test_acceptance_of_a_continuation_is_told_once(owner: OwnerLedger) -> None:
    record = lend(owner, CONTINUATION)
    assert owner.on_accept(1.0, ANN, record.serial, record.token) is record
    assert owner.on_accept(2.0, ANN, record.serial, record.token) is None


def test_a_later_holder_is_believed_and_an_earlier_one_is_not(owner: OwnerLedger) -> None:
    record = lend(owner, accepted=True)
    later = record.token.passed()
    owner.on_accept(2.0, BOB, record.serial, later)
    assert (record.holder, record.token) == (BOB, later)
    owner.on_accept(3.0, ANN, record.serial, Token(0, 1))
    assert (record.holder, record.lease_until) == (BOB, 12.0)


def test_word_of_a_later_holder_counts_as_acceptance_of_the_offer(owner: OwnerLedger) -> None:
    record = lend(owner, CONTINUATION)
    later = TaskEntry(ME, record.serial, record.token.passed())
    obsolete, released = owner.on_holding(1.0, BOB, [later])
    assert (obsolete, released) == ((), [record])
    assert (record.state, record.holder) == (OwnerState.LENT, BOB)


def test_a_lease_ends_unless_it_is_renewed(owner: OwnerLedger) -> None:
    record = lend(owner, accepted=True)
    owner.on_holding(9.0, ANN, [TaskEntry(ME, record.serial, record.token)])
    assert owner.expire(18.9) == []
    assert owner.expire(19.0) == [record]
    assert (record.state, record.token, record.holder) == (OwnerState.HOME, Token(1, 0), ME)
    assert owner.expire(100.0) == []


def test_a_custody_that_ended_is_held_in_vain(owner: OwnerLedger) -> None:
    """What the owner has settled, has at home, or knows a newer custody of."""
    entry = TaskEntry(ME, lend(owner, accepted=True).serial, Token(0, 1))
    assert owner.on_holding(1.0, ANN, [entry]) == ((), [])
    owner.lose_holder(ANN)
    assert owner.on_holding(1.0, ANN, [entry]) == ((entry,), [])
    owner.lend(2.0, OwnTask("handle", entry.serial, SPEC), BOB)
    assert owner.on_holding(2.0, ANN, [entry]) == ((entry,), [])
    owner.settle(entry.serial)
    assert owner.on_holding(2.0, ANN, [entry]) == ((entry,), [])


def test_the_first_outcome_counts(owner: OwnerLedger) -> None:
    record = lend(owner)
    assert owner.settle(record.serial) is record
    assert owner.settle(record.serial) is None
    assert len(owner) == 0


def test_only_what_the_lost_node_held_comes_home(owner: OwnerLedger) -> None:
    first, second = lend(owner), lend(owner)
    owner.on_accept(1.0, BOB, second.serial, second.token.passed())
    assert owner.lose_holder(ANN) == [first]
    assert owner.lose_holder(ANN) == []
    assert owner.lose_holder(BOB) == [second]


def test_the_task_that_was_suspected_before_is_blamed_again(owner: OwnerLedger) -> None:
    poison, innocent = lend(owner), lend(owner)
    owner.lose_holder(ANN)
    assert poison.suspected == innocent.suspected == (ANN,), "it may have been either"
    fresh = owner.lend(1.0, OwnTask("handle", None, SPEC), EVE)
    owner.lend(1.0, OwnTask("handle", poison.serial, SPEC), EVE)
    owner.lend(1.0, OwnTask("handle", innocent.serial, SPEC), BOB)
    assert owner.has_suspect(EVE)
    owner.lose_holder(EVE)
    assert (poison.suspected, fresh.suspected, innocent.suspected) == ((ANN, EVE), (), (ANN,))
    assert owner.has_suspect(BOB)
    assert not owner.has_suspect(EVE)


def test_a_node_is_blamed_once_however_often_it_is_taken_for_dead(owner: OwnerLedger) -> None:
    record = lend(owner)
    owner.lose_holder(ANN)
    owner.lend(1.0, OwnTask("handle", record.serial, SPEC), ANN)
    owner.lose_holder(ANN)
    assert record.suspected == (ANN,)


def test_what_had_ended_is_not_blamed(owner: OwnerLedger) -> None:
    ended, running = lend(owner, accepted=True), lend(owner, accepted=True)
    owner.on_kept(1.0, ANN, ended.serial, ended.token)
    assert owner.lose_holder(ANN) == [ended, running]
    assert (ended.suspected, running.suspected) == ((), (ANN,))


def test_a_lease_that_ends_blames_nobody(owner: OwnerLedger) -> None:
    record = lend(owner, accepted=True)
    owner.expire(100.0)
    assert record.suspected == ()


@pytest.mark.parametrize(
    ("holder", "token"),
    [(BOB, Token(0, 1)), (ANN, Token(0, 0)), (ANN, Token(0, 2))],
    ids=["of another", "of an older offer", "of a newer offer"],
)
def test_a_rejection_that_does_not_fit_is_ignored(owner: OwnerLedger, holder: bytes, token: Token) -> None:
    record = lend(owner)
    assert owner.on_reject(holder, record.serial, token) is None
    assert owner.on_reject(ANN, record.serial, Token(0, 1)) is record
    assert (record.state, record.token) == (OwnerState.HOME, Token(0, 2))
    assert owner.on_reject(ANN, record.serial, Token(0, 1)) is None


def test_a_rejection_after_the_acceptance_is_ignored(owner: OwnerLedger) -> None:
    record = lend(owner, accepted=True)
    assert owner.on_reject(ANN, record.serial, record.token) is None


def test_a_task_that_is_granted_back_comes_home_once(owner: OwnerLedger) -> None:
    record = lend(owner)
    assert owner.on_return(record.serial, record.token) is None
    assert owner.on_return(record.serial, record.token.passed()) is record
    assert owner.on_return(record.serial, record.token) is None
    assert record.state is OwnerState.HOME
    assert owner.on_accept(1.0, ANN, record.serial, Token(0, 1)) is None
    assert record.state is OwnerState.HOME
    again = owner.lend(2.0, OwnTask("handle", record.serial, SPEC), BOB)
    assert again is record
    assert record.token == Token(0, 3)


# ------------------------------------------------------------------------------------------- the holder


@pytest.fixture
def holder() -> HolderLedger:
    return HolderLedger(tombstones_max=3)


def grant(holder: HolderLedger, token: Token = FIRST, spec: Spec = SPEC) -> Held | None:
    return holder.on_grant(KEY, token, spec)


def offered(holder: HolderLedger, spec: Spec | None = None) -> Held:
    grant(holder)
    record = holder.offer(KEY, BOB, spec)
    assert record is not None
    return record


def test_a_repeated_grant_is_queued_once(holder: HolderLedger) -> None:
    assert grant(holder) is not None
    assert grant(holder) is None
    assert len(holder) == 1


@pytest.mark.parametrize("start", [False, True], ids=["queued", "running"])
def test_a_newer_custody_of_what_is_here_is_the_same_copy(holder: HolderLedger, start: bool) -> None:
    record = grant(holder)
    assert record is not None
    if start:
        holder.start(KEY)
    assert grant(holder, Token(1, 1)) is None
    assert record.token == Token(1, 1)
    # The verdict on the older custody does not bind the newer one.
    assert holder.on_obsolete(TaskEntry(ANN, 7, Token(0, 1))) is None
    assert holder.get(KEY) is record


def test_a_tombstone_stops_a_late_grant_but_not_a_new_attempt(holder: HolderLedger) -> None:
    grant(holder)
    holder.start(KEY)
    holder.finish(KEY, VALUE)
    holder.on_result_ack(KEY)
    assert len(holder) == 0
    assert grant(holder) is None
    assert len(holder) == 0
    assert grant(holder, Token(1, 1)) is not None


def test_tombstones_are_bounded(holder: HolderLedger) -> None:
    for serial in range(10):
        key = TaskKey(ANN, serial)
        holder.on_grant(key, Token(0, 1), SPEC)
        holder.cancel(key)
    assert holder.on_grant(TaskKey(ANN, 9), Token(0, 1), SPEC) is None
    assert holder.on_grant(TaskKey(ANN, 0), Token(0, 1), SPEC) is not None


def test_an_offer_ends_with_the_acceptance_of_this_offer_only(holder: HolderLedger) -> None:
    record = offered(holder)
    assert holder.start(KEY) is None
    holder.on_accept(BOB, KEY, Token(0, 1))
    holder.on_accept(ANN, KEY, Token(0, 2))
    assert holder.get(KEY) is record
    holder.on_accept(BOB, KEY, Token(0, 2))
    assert holder.get(KEY) is None
    assert grant(holder, Token(0, 2)) is None, "the custody that was passed on does not come here again"


def test_a_passed_continuation_is_told(holder: HolderLedger) -> None:
    record = offered(holder, CONTINUATION)
    assert holder.on_accept(BOB, KEY, Token(0, 2)) is record


def test_what_is_taken_back_has_a_token_above_the_offer(holder: HolderLedger) -> None:
    record = offered(holder)
    assert holder.on_reject(BOB, KEY, Token(0, 2)) is record
    assert (record.state, record.token) == (HolderState.QUEUED, Token(0, 3))
    # The thief's acceptance comes too late: its custody is the older one now.
    assert holder.on_accept(BOB, KEY, Token(0, 2)) is None
    assert record.state is HolderState.QUEUED


def test_only_offers_to_the_lost_node_are_taken_back(holder: HolderLedger) -> None:
    record = offered(holder)
    assert holder.lose_target(ANN) == []
    assert holder.lose_target(BOB) == [record]


def test_a_task_that_comes_back_before_the_acceptance(holder: HolderLedger) -> None:
    """Race 1 of CUSTODY.md."""
    record = offered(holder)
    assert grant(holder, Token(0, 2)) is None, "that is the offer itself"
    assert grant(holder, Token(0, 3)) is record
    assert (record.state, record.token, record.target) == (HolderState.QUEUED, Token(0, 3), None)
    # The late acceptance of the offer ends nothing.
    assert holder.on_accept(BOB, KEY, Token(0, 2)) is None
    assert holder.start(KEY) is record


@pytest.mark.parametrize("running", [False, True], ids=["queued", "running"])
def test_a_verdict_ends_what_was_not_started(holder: HolderLedger, running: bool) -> None:
    record = grant(holder)
    if running:
        holder.start(KEY)
    dropped = holder.on_obsolete(TaskEntry(ANN, 7, Token(0, 1)))
    assert dropped is (None if running else record)


def test_an_orphan_runs_to_its_end_and_is_dropped(holder: HolderLedger) -> None:
    grant(holder)
    holder.start(KEY)
    assert holder.lose_owner(ANN) == []
    assert holder.finish(KEY, VALUE) is None
    assert len(holder) == 0


def test_an_orphan_that_waited_does_not_go_on(holder: HolderLedger) -> None:
    grant(holder)
    holder.start(KEY)
    holder.lose_owner(ANN)
    assert holder.ready(KEY) is False
    assert len(holder) == 0


def test_an_orphan_does_not_bounce(holder: HolderLedger) -> None:
    grant(holder, spec=CONTINUATION)
    holder.start(KEY)
    holder.lose_owner(ANN)
    assert holder.bounce(KEY) is None
    assert len(holder) == 0


def test_what_a_lost_owner_had_queued_offered_or_finished_here_is_dropped(holder: HolderLedger) -> None:
    keys = [TaskKey(ANN, serial) for serial in range(3)]
    for key in keys:
        holder.on_grant(key, Token(0, 1), SPEC)
    holder.offer(keys[1], BOB, None)
    holder.start(keys[2])
    holder.finish(keys[2], VALUE)
    assert [record.key for record in holder.lose_owner(ANN)] == keys[:2]
    assert len(holder) == 0


def test_a_continuation_that_waits_is_passed_on_and_bounces(holder: HolderLedger) -> None:
    record = grant(holder)
    assert record is not None
    holder.start(KEY)
    assert record.spec is None
    assert holder.ready(KEY)
    assert holder.offer(KEY, BOB, CONTINUATION) is record
    assert record.spec is CONTINUATION
    holder.on_reject(BOB, KEY, Token(0, 2))
    holder.start(KEY)
    assert holder.bounce(KEY) is record
    assert holder.offer(KEY, ANN, BOUNCED) is record


def test_cancelling_drops_what_is_queued_only(holder: HolderLedger) -> None:
    assert holder.cancel(KEY) is None
    grant(holder)
    holder.start(KEY)
    assert holder.cancel(KEY) is None
    assert len(holder) == 1
