"""Tables of members become one, in whatever order their rows arrive."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from p2pscoop._core.limits import Limits
from p2pscoop._core.membership import ChangeKind, Membership
from p2pscoop._core.values import MemberEntry, MemberState, PeerInfo


def info(name: int, *, origin: bool = False) -> PeerInfo:
    return PeerInfo(name.to_bytes(8, "big"), f"n{name}", (f"tcp://{name}",), "", origin, True, "host", 1, "0")


ME = info(0, origin=True)
rows = st.builds(
    MemberEntry,
    st.integers(1, 4).map(info),
    st.sampled_from(MemberState),
    st.integers(0, 3),
)


def table(limits: Limits | None = None) -> Membership:
    return Membership(ME, limits or Limits())


@given(st.lists(rows, max_size=12), st.randoms(use_true_random=False))
def test_rows_may_come_in_any_order_and_more_than_once(entries: list[MemberEntry], shuffle: random.Random) -> None:
    one, other = table(), table()
    one.merge(entries)
    shuffled = entries * 2
    shuffle.shuffle(shuffled)
    for entry in shuffled:
        other.merge([entry])
    assert set(one.rows()) == set(other.rows())
    assert set(one.alive_peers()) == set(other.alive_peers())


@given(st.lists(rows, max_size=12))
def test_changes_tell_who_is_there(entries: list[MemberEntry]) -> None:
    members = table()
    there: set[bytes] = set()
    for entry in entries:
        for change in members.merge([entry]):
            if change.kind is ChangeKind.ARRIVED:
                assert change.info.id not in there
                there.add(change.info.id)
            elif change.kind is not ChangeKind.MISSED:
                there.remove(change.info.id)
    assert there == set(members.alive_peers())


def test_a_peer_that_speaks_is_there_whatever_was_said_of_it() -> None:
    members = table()
    members.arrive(info(1))
    assert [change.kind for change in members.die(info(1).id)] == [ChangeKind.DIED]
    assert members.is_gone(info(1).id)
    assert [change.kind for change in members.arrive(info(1))] == [ChangeKind.ARRIVED]
    assert members.is_alive(info(1).id)
    assert members.row(info(1).id).incarnation == 1  # type: ignore[union-attr]


def test_this_node_refutes_its_own_death() -> None:
    members = table()
    assert members.merge([MemberEntry(ME, MemberState.DEAD, 4)]) == []
    assert members.row(ME.id) == MemberEntry(ME, MemberState.ALIVE, 5)
    assert members.die(ME.id) == members.leave(ME.id) == []


def test_gone_is_gone() -> None:
    members = table()
    members.arrive(info(1))
    assert [change.kind for change in members.leave(info(1).id)] == [ChangeKind.LEFT]
    assert members.die(info(1).id) == []
    assert members.merge([MemberEntry(info(2), MemberState.DEAD, 0)])[0].kind is ChangeKind.MISSED
    assert members.leave(info(3).id) == []


def test_the_table_is_bounded_and_the_gone_make_room() -> None:
    members = table(Limits(members_max=3))
    for name in (1, 2, 3):
        members.arrive(info(name))
    assert info(3).id not in members
    members.die(info(1).id)
    members.arrive(info(3))
    assert set(members.alive_peers()) == {info(2).id, info(3).id}
    assert info(1).id not in members


def test_origins() -> None:
    members = table()
    members.arrive(info(1, origin=True))
    assert set(members.origins()) == {ME.id, info(1).id}
    members.leave(info(1).id)
    assert members.origins() == (ME.id,)
