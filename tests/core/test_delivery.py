"""What is not acknowledged is repeated, later and later; outcomes wait for each other, but not long."""

from __future__ import annotations

from dataclasses import replace

import pytest

from p2pscoop._core.custody import HolderLedger, HolderState, OwnerLedger
from p2pscoop._core.delivery import Deliveries
from p2pscoop._core.ids import TaskKey, Token
from p2pscoop._core.limits import Limits
from p2pscoop._core.messages import Grant, Result
from p2pscoop._core.values import BOUNCED, GrantedTask, Outcome, OutcomeKind, OwnTask, Spec, TaskEntry, TaskResult

ME, ANN, BOB = b"me......", b"ann.....", b"bob....."
SPEC = Spec(b"code", b"args")
LIMITS = Limits(
    resend_s=1.0, resend_max_s=4.0, lease_s=20.0, result_delay_s=0.1, result_batch_max=3, frame_max=1000
)


class Mail:
    """Deliveries with the ledgers that they read."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self.owned = OwnerLedger(ME, limits.lease_s)
        self.held = HolderLedger(100)
        self.out = Deliveries(ME, self.owned, self.held, limits)

    def grant_own(self, thief: bytes = ANN, count: int = 1) -> list[TaskEntry]:
        records = [self.owned.lend(0.0, OwnTask(None, None, SPEC), thief) for _ in range(count)]
        tasks = [GrantedTask(ME, record.serial, record.token, SPEC) for record in records]
        self.out.add_grant(0.0, thief, 1, tasks)
        return [TaskEntry(task.owner, task.serial, task.token) for task in tasks]

    def grant_held(self, spec: Spec | None = None, target: bytes = BOB) -> TaskEntry:
        key = TaskKey(ANN, 5)
        self.held.on_grant(key, Token(0, 1), SPEC)
        self.held.offer(key, target, spec)
        task = GrantedTask(ANN, 5, Token(0, 2), spec or SPEC)
        self.out.add_grant(0.0, target, 1, [task])
        return TaskEntry(ANN, 5, Token(0, 2))

    def finish(self, serial: int, payload: bytes = b"1", owner: bytes = ANN, now: float = 0.0) -> None:
        key = TaskKey(owner, serial)
        self.held.on_grant(key, Token(0, 1), SPEC)
        self.held.start(key)
        outcome = Outcome(OutcomeKind.VALUE, payload)
        self.held.finish(key, outcome)
        self.out.add_result(now, owner, TaskResult(serial, Token(0, 1), outcome))

    def grants(self, now: float) -> list[tuple[bytes, list[int]]]:
        messages, _ = self.out.due_grants(now)
        return [(thief, [task.serial for task in message.tasks]) for thief, message in messages]


@pytest.fixture
def mail() -> Mail:
    return Mail()


def serials(messages) -> list[tuple[bytes, list[int]]]:
    return [
        (owner, [result.serial for result in message.results])
        for owner, message in messages
        if isinstance(message, Result)
    ]


def test_a_grant_is_repeated_ever_more_rarely_until_it_is_answered(mail: Mail) -> None:
    (entry,) = mail.grant_own()
    assert mail.grants(0.9) == []
    times = []
    for tenth in range(150):
        if mail.grants(tenth / 10):
            times.append(tenth / 10)
    assert times == [1.0, 3.0, 7.0, 11.0]
    mail.out.on_answer(15.0, ANN, [entry])
    assert mail.out.empty
    assert mail.out.wake_at() == float("inf")


def test_only_what_was_not_answered_is_repeated(mail: Mail) -> None:
    first, *_ = mail.grant_own(count=3)
    mail.out.on_answer(0.1, BOB, [first])
    mail.out.on_answer(0.1, ANN, [first])
    assert mail.grants(1.0) == [(ANN, [1, 2])]


def test_a_grant_whose_task_has_its_outcome_is_not_repeated(mail: Mail) -> None:
    (entry,) = mail.grant_own()
    mail.owned.settle(entry.serial)
    assert mail.grants(1.0) == []
    assert mail.out.empty


def test_an_offer_of_anothers_task_is_withdrawn_after_a_lease(mail: Mail) -> None:
    mail.grant_held()
    withdrawn = []
    now = 0.0
    while not mail.out.empty:
        now = mail.out.wake_at()
        withdrawn += mail.out.due_grants(now)[1]
    assert [record.state for record in withdrawn] == [HolderState.QUEUED]
    assert LIMITS.lease_s <= now <= LIMITS.lease_s + LIMITS.resend_max_s


def test_a_bounced_task_is_offered_to_its_owner_until_it_answers(mail: Mail) -> None:
    entry = mail.grant_held(BOUNCED, target=ANN)
    now = 0.0
    while now < 3 * LIMITS.lease_s:
        now = mail.out.wake_at()
        messages, withdrawn = mail.out.due_grants(now)
        assert len(messages) == 1
        assert withdrawn == []
    mail.out.on_answer(now, ANN, [entry])
    assert mail.out.empty


def test_outcomes_wait_a_moment_for_each_other(mail: Mail) -> None:
    mail.finish(1, now=0.0)
    mail.finish(2, now=0.05)
    mail.finish(3, owner=BOB, now=0.05)
    assert mail.out.flush(0.09, only_due=True) == []
    assert serials(mail.out.flush(0.1, only_due=True)) == [(ANN, [1, 2])]
    assert serials(mail.out.flush(0.1, only_due=False)) == [(BOB, [3])]


def test_a_batch_that_is_full_does_not_wait(mail: Mail) -> None:
    for serial in range(3):
        mail.finish(serial)
    assert serials(mail.out.flush(0.0, only_due=True)) == [(ANN, [0, 1, 2])]


def test_batches_are_neither_too_many_nor_too_heavy(mail: Mail) -> None:
    for serial in range(7):
        mail.finish(serial)
    mail.finish(7, bytes(900))
    mail.finish(8, bytes(900))
    mail.finish(9, bytes(5000))
    sent = [each for _, each in serials(mail.out.flush(0.0, only_due=False))]
    assert sent == [[0, 1, 2], [3, 4, 5], [6, 7], [8], [9]]


def test_an_outcome_is_repeated_until_its_owner_has_it(mail: Mail) -> None:
    mail.finish(1)
    mail.out.flush(0.0, only_due=False)
    assert mail.out.due_results(0.9) == []
    assert serials(mail.out.due_results(1.0)) == [(ANN, [1])]
    assert mail.out.due_results(2.9) == []
    assert serials(mail.out.due_results(3.0)) == [(ANN, [1])]
    mail.held.on_result_ack(TaskKey(ANN, 1))
    mail.out.on_result_ack(3.5, TaskKey(ANN, 1))
    assert mail.out.due_results(100.0) == []
    assert mail.out.empty


def test_who_answers_late_is_asked_again_later(mail: Mail) -> None:
    """A peer that is overloaded would be kept so by repetitions."""
    first, second = mail.grant_own(count=1), mail.grant_own(thief=BOB, count=1)
    mail.out.on_answer(3.0, ANN, first)
    mail.out.on_answer(0.01, BOB, second)
    mail.grant_own()
    mail.grant_own(thief=BOB)
    # Half of what it took beyond the usual is taken for usual, and twice that is waited.
    assert mail.grants(1.0) == [(BOB, [3])]
    assert mail.grants(2.9) == []
    assert mail.grants(3.0) == [(ANN, [2]), (BOB, [3])]
    mail.finish(1)
    mail.out.flush(10.0, only_due=False)
    assert mail.out.due_results(12.9) == []
    assert serials(mail.out.due_results(13.0)) == [(ANN, [1])]


def test_what_is_usual_changes_with_what_is_seen(mail: Mail) -> None:
    mail.out.on_answer(4.0, ANN, mail.grant_own())
    for _ in range(40):
        mail.out.on_answer(0.001, ANN, mail.grant_own())
    (entry,) = mail.grant_own()
    assert mail.grants(1.0) == [(ANN, [entry.serial])]


def test_answers_cost_the_same_however_many_grants_wait(mail: Mail) -> None:
    """Each of thousands of grants is touched once by its answer, and never by another's."""
    waiting = [mail.grant_own()[0] for _ in range(5000)]
    untouched = {number: grant.waiting for number, grant in mail.out._grants[ANN].items()}
    mail.out.on_answer(0.1, ANN, waiting[:10])
    assert list(untouched)[10:] == list(mail.out._grants[ANN])
    assert all(mail.out._grants[ANN][number].waiting is each for number, each in list(untouched.items())[10:])
    mail.out.on_answer(0.1, ANN, waiting[10:])
    assert mail.out.empty
    assert mail.out.wake_at() == float("inf")


def test_nothing_is_sent_to_who_is_gone(mail: Mail) -> None:
    mail.finish(1)
    mail.out.flush(0.0, only_due=False)
    mail.finish(2)
    mail.grant_own(ANN)
    mail.grant_held(target=BOB)
    mail.out.forget(ANN)
    assert not mail.out.empty
    mail.out.forget(BOB)
    assert mail.out.empty


def test_grants_carry_what_they_carried(mail: Mail) -> None:
    mail.grant_own()
    ((thief, message),), _ = mail.out.due_grants(1.0)
    assert (thief, message) == (ANN, Grant(1, (GrantedTask(ME, 0, Token(0, 1), SPEC),)))


def test_heavy_limits_still_send_something() -> None:
    mail = Mail(replace(LIMITS, frame_max=1))
    mail.finish(1, bytes(10))
    mail.finish(2, bytes(10))
    assert serials(mail.out.flush(1.0, only_due=True)) == [(ANN, [1]), (ANN, [2])]
