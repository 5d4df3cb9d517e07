"""Owner and thieves share a deque: nothing is taken twice, nothing is passed over."""

from __future__ import annotations

import threading
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pscoop._core.deque import drop_claimed, half, take_newest, take_oldest


class Entry:
    def __init__(self, name: int) -> None:
        self.name = name
        self._lock = threading.Lock()

    def claim(self) -> bool:
        return self._lock.acquire(blocking=False)

    @property
    def claimed(self) -> bool:
        return self._lock.locked()

    def __repr__(self) -> str:
        return str(self.name)


def entries(*names: int, claimed: tuple[int, ...] = ()) -> deque[Entry]:
    made = deque(map(Entry, names))
    for entry in made:
        if entry.name in claimed:
            entry.claim()
    return made


def names(taken: list[Entry]) -> list[int]:
    return [entry.name for entry in taken]


@pytest.mark.parametrize(
    ("available", "count_max", "count"),
    [(0, 64, 0), (1, 64, 1), (2, 64, 1), (3, 64, 2), (1000, 64, 64), (9, 0, 0)],
)
def test_a_thief_gets_half(available: int, count_max: int, count: int) -> None:
    assert half(available, count_max) == count


def test_thieves_take_the_oldest_and_the_owner_the_newest() -> None:
    shared = entries(1, 2, 3, 4)
    assert names(take_oldest([shared], 2)) == [1, 2]
    newest = take_newest(shared)
    assert newest is not None
    assert newest.name == 4


def test_what_is_claimed_is_passed_over() -> None:
    shared = entries(1, 2, 3, 4, 5, claimed=(1, 3, 5))
    assert names(take_oldest([shared], 2)) == [2, 4]
    assert take_newest(shared) is None
    assert not shared


def test_thieves_take_from_the_oldest_deque_first() -> None:
    first, second = entries(1, 2), entries(3, 4)
    assert names(take_oldest([first, second], 3)) == [1, 2, 3]
    assert names(take_oldest([first, second], 3)) == [4]
    assert take_oldest([first, second], 3) == []
    assert take_newest(deque[Entry]()) is None


def test_tombstones_at_the_owners_end_are_dropped() -> None:
    shared = entries(1, 2, 3, 4, claimed=(1, 3, 4))
    drop_claimed(shared)
    assert names(list(shared)) == [1, 2]
    shared.pop().claim()
    drop_claimed(shared)
    assert not shared
    drop_claimed(shared)


@given(st.lists(st.tuples(st.sampled_from(["push", "newest", "oldest", "join"]), st.integers(0, 5)), max_size=60))
def test_each_entry_is_taken_once(operations: list[tuple[str, int]]) -> None:
    shared: deque[Entry] = deque()
    pushed: list[Entry] = []
    taken: list[int] = []
    for operation, number in operations:
        if operation == "push":
            pushed.append(Entry(len(pushed)))
            shared.append(pushed[-1])
        elif operation == "newest":
            entry = take_newest(shared)
            taken += [] if entry is None else [entry.name]
        elif operation == "oldest":
            taken += names(take_oldest([shared], number))
        elif number < len(pushed) and pushed[number].claim():
            taken.append(number)
            drop_claimed(shared)
    while (entry := take_newest(shared)) is not None:
        taken.append(entry.name)
    assert sorted(taken) == list(range(len(pushed)))


def test_threads_take_each_entry_once() -> None:
    shared: deque[Entry] = deque()
    count = 5000
    stolen: list[int] = []
    done = threading.Event()

    def steal() -> None:
        while not done.is_set() or shared:
            stolen.extend(names(take_oldest([shared], 3)))

    thief = threading.Thread(target=steal)
    thief.start()
    kept = []
    for name in range(count):
        shared.append(Entry(name))
        if name % 3 == 0 and (entry := take_newest(shared)) is not None:
            kept.append(entry.name)
    done.set()
    thief.join()
    assert sorted([*stolen, *kept]) == list(range(count))
