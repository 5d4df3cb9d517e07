"""Both ends of a deque, and claims."""

from __future__ import annotations

from collections import deque

import pytest

from p2pscoop._core.deque import drop_claimed, half, take_newest, take_oldest


class Entry:
    def __init__(self, name: int) -> None:
        self.name = name
        self.claimed = False

    def claim(self) -> bool:
        if self.claimed:
            return False
        self.claimed = True
        return True


def entries(*names: int) -> deque[Entry]:
    return deque(map(Entry, names))


@pytest.mark.parametrize(("there", "most", "expected"), [(0, 9, 0), (1, 9, 1), (2, 9, 1), (7, 9, 4), (99, 9, 9)])
def test_a_thief_gets_half(there: int, most: int, expected: int) -> None:
    assert half(there, most) == expected


def test_the_owner_takes_the_newest_and_thieves_the_oldest() -> None:
    queue = entries(1, 2, 3, 4)
    assert take_newest(queue).name == 4  # type: ignore[union-attr]
    assert [entry.name for entry in take_oldest([queue], 2)] == [1, 2]
    assert [entry.name for entry in queue] == [3]


def test_what_is_claimed_is_dropped_by_whoever_meets_it() -> None:
    queue = entries(1, 2, 3, 4)
    for index in (0, 3):
        queue[index].claim()
    assert take_newest(queue).name == 3  # type: ignore[union-attr]
    assert [entry.name for entry in take_oldest([queue], 9)] == [2]
    assert take_newest(queue) is None


def test_thieves_go_on_to_the_next_deque() -> None:
    assert [entry.name for entry in take_oldest([entries(1), entries(), entries(2, 3)], 2)] == [1, 2]


def test_tombstones_do_not_pile_up() -> None:
    queue = entries(1, 2, 3)
    queue[1].claim()
    queue[2].claim()
    drop_claimed(queue)
    assert [entry.name for entry in queue] == [1]
    queue[0].claim()
    drop_claimed(queue)
    assert not queue
