"""Whose turn it is when tasks of several programs are queued on a node."""

from __future__ import annotations

from p2pscoop._core.ids import TaskKey
from p2pscoop._core.values import Spec
from p2pscoop._inbox import Inbox
from p2pscoop._port import Guest

A, B, C = b"A" * 8, b"B" * 8, b"C" * 8


def guest(program: bytes, serial: int = 1) -> Guest:
    return Guest(TaskKey(program, serial), Spec(b"", b"", program=program))


def serials(inbox: Inbox, program: bytes | None = None) -> list[int]:
    found = []
    while (each := inbox.pop(program)) is not None:
        found.append(each.key.serial)
    return found


def test_a_single_program_is_served_in_order_and_robbed_from_the_end() -> None:
    inbox = Inbox()
    inbox.program = A
    assert not inbox
    inbox.extend(guest(A, serial) for serial in range(5))
    assert len(inbox) == 5
    assert not inbox.is_contested
    newest = inbox.take_newest()
    assert newest is not None
    assert newest.key.serial == 4
    assert serials(inbox) == [0, 1, 2, 3]
    assert not inbox
    assert inbox.take_newest() is None


def test_what_a_thief_has_claimed_is_not_run() -> None:
    inbox = Inbox()
    guests = [guest(A, serial) for serial in range(3)]
    inbox.extend(guests)
    assert guests[1].claim()
    assert serials(inbox) == [0, 2]
    inbox.extend(guests)
    assert inbox.take_newest() is None


def test_a_thief_gets_what_it_is_meant_to_have() -> None:
    inbox = Inbox()
    inbox.extend([guest(A, 1), guest(A, 2), guest(B, 3)])
    assert inbox.programs == [A, B]
    of_b = inbox.take_newest(B)
    assert of_b is not None
    assert of_b.key.serial == 3
    assert inbox.take_newest(B) is None
    assert inbox.take_newest(C) is None
    assert serials(inbox) == [1, 2]


def run(inbox: Inbox, costs: dict[bytes, float], seconds: float) -> dict[bytes, float]:
    """The time that programs get which always have another task, of so many seconds each."""
    now, had = 0.0, dict.fromkeys(costs, 0.0)
    for program in costs:
        inbox.append(guest(program))
    while now < seconds:
        assert inbox.is_contested
        program = inbox.turn(now)
        assert inbox.pop(program) is not None
        inbox.program = program
        inbox.append(guest(program))
        now += costs[program]
        had[program] += costs[program]
    return had


def test_programs_get_the_same_time_and_not_the_same_number_of_tasks() -> None:
    had = run(Inbox(), {A: 1.0, B: 0.1, C: 0.01}, 300.0)
    assert all(abs(share - 100.0) <= 2.0 for share in had.values()), had


def test_a_program_that_comes_late_starts_level() -> None:
    inbox = Inbox()
    run(inbox, {A: 0.1, B: 0.1}, 100.0)
    inbox.append(guest(C))
    had = dict.fromkeys((A, B, C), 0.0)
    now = 1000.0
    inbox.turn(now)
    for _ in range(300):
        program = inbox.turn(now)
        inbox.program = program
        now += 0.1
        had[program] += 0.1
    assert all(abs(share - 10.0) <= 2.0 for share in had.values()), had


def test_one_that_was_away_does_not_take_the_node_for_itself() -> None:
    inbox = Inbox()
    inbox.extend([guest(A), guest(B)])
    inbox.program = A
    inbox.turn(0.0)
    # One task of A took very long.
    turns = []
    now = 100.0
    for _ in range(40):
        program = inbox.turn(now)
        inbox.program = program
        now += 0.1
        turns.append(program)
    first = turns.index(A)
    assert 5 <= first <= 15, "at most a second, of 0.1 s each, is made good"


def test_the_time_in_which_there_was_no_choice_is_nobodys() -> None:
    inbox = Inbox()
    inbox.append(guest(B))
    inbox.program = A
    assert inbox.turn(0.0) == B
    assert inbox.pop(B) is not None
    inbox.program = B
    assert not inbox.is_contested
    inbox.extend([guest(A), guest(B)])
    assert inbox.is_contested
    assert inbox.turn(50.0) == A
    inbox.program = A
    assert inbox.turn(50.1) == B, "A had a tenth of a second, B nothing that counts"
