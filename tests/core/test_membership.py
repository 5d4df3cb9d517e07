"""Tables of members merge to the same, in any order, however often; a living node refutes that it is gone."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pscoop._core.limits import Limits
from p2pscoop._core.membership import Change, ChangeKind, Membership
from p2pscoop._core.values import MemberEntry, MemberState, PeerInfo

LIMITS = Limits()


def info(name: str) -> PeerInfo:
    return PeerInfo(name.encode().ljust(8, b"."), name, (f"fake:{name}",), "", False, True, "host", 1, "test")


ME, ANN, BOB = info("me"), info("ann"), info("bob")


def row(peer: PeerInfo, state: MemberState = MemberState.ALIVE, incarnation: int = 0) -> MemberEntry:
    return MemberEntry(peer, state, incarnation)


@pytest.fixture
def table() -> Membership:
    return Membership(ME, LIMITS)


rows = st.builds(
    row,
    st.sampled_from([ME, ANN, BOB, info("eve")]),
    st.sampled_from(MemberState),
    st.integers(0, 3),
)


def merged(*tables: list[MemberEntry]) -> set[MemberEntry]:
    table = Membership(info("observer"), LIMITS)
    for entries in tables:
        table.merge(entries)
    return set(table.rows())


@given(st.lists(rows), st.lists(rows), st.randoms(use_true_random=False))
def test_order_and_repetition_do_not_matter(first, second, rng) -> None:
    expected = merged(first, second)
    assert merged(second, first) == expected
    assert merged(first, second, first) == expected
    shuffled = [*first, *second, *first]
    rng.shuffle(shuffled)
    assert merged(shuffled) == expected


@given(st.lists(rows))
def test_changes_tell_what_the_table_says(entries) -> None:
    """Whoever only hears the changes knows who is there."""
    table = Membership(ME, LIMITS)
    there: set[bytes] = set()
    for change in table.merge(entries):
        if change.kind is ChangeKind.ARRIVED:
            assert change.info.id not in there
            there.add(change.info.id)
        elif change.kind in (ChangeKind.LEFT, ChangeKind.DIED):
            there.remove(change.info.id)
        else:
            assert change.info.id not in there
    assert there == set(table.alive_peers())
    assert table.is_alive(ME.id)


@given(st.lists(rows))
def test_nobody_convinces_a_node_that_it_is_gone(entries) -> None:
    table = Membership(ME, LIMITS)
    table.merge(entries)
    mine = table.row(ME.id)
    assert mine is not None
    assert mine.state is MemberState.ALIVE
    claims = [each.incarnation for each in entries if each.info == ME and each.state is not MemberState.ALIVE]
    assert mine.incarnation > max(claims, default=-1)


def test_a_refutation_is_believed(table: Membership) -> None:
    other = Membership(ANN, LIMITS)
    assert table.merge(other.rows()) == [Change(ChangeKind.ARRIVED, ANN)]
    assert table.die(ANN.id) == [Change(ChangeKind.DIED, ANN)]
    assert table.die(ANN.id) == []
    assert table.is_gone(ANN.id)
    assert table.merge(other.rows()) == []
    assert other.merge(table.rows()) == [Change(ChangeKind.ARRIVED, ME)]
    assert table.merge(other.rows()) == [Change(ChangeKind.ARRIVED, ANN)]
    assert table.alive_peers() == (ANN.id,)


def test_a_peer_that_introduces_itself_is_there_whatever_was_heard(table: Membership) -> None:
    table.arrive(ANN)
    table.leave(ANN.id)
    assert table.arrive(ANN) == [Change(ChangeKind.ARRIVED, ANN)]
    assert table.arrive(ANN) == []


def test_strangers_are_neither_alive_nor_gone(table: Membership) -> None:
    assert not table.is_alive(ANN.id)
    assert not table.is_gone(ANN.id)
    assert table.leave(ANN.id) == []
    assert ANN.id not in table


def test_a_peer_that_was_never_seen_alive_was_missed(table: Membership) -> None:
    assert table.merge([row(ANN, MemberState.DEAD)]) == [Change(ChangeKind.MISSED, ANN)]
    assert table.merge([row(ANN, MemberState.ALIVE, 1)]) == [Change(ChangeKind.ARRIVED, ANN)]


def test_left_and_then_dead_is_gone_once(table: Membership) -> None:
    table.arrive(ANN)
    assert table.leave(ANN.id) == [Change(ChangeKind.LEFT, ANN)]
    assert table.die(ANN.id) == []


def test_a_node_does_not_end_itself(table: Membership) -> None:
    assert table.die(ME.id) == []
    assert table.is_alive(ME.id)


def test_origins(table: Membership) -> None:
    table.arrive(ANN._replace(origin=True))
    table.arrive(BOB)
    assert table.origins() == (ANN.id,)
    table.die(ANN.id)
    assert table.origins() == ()


def test_a_full_table_forgets_who_is_gone_and_then_takes_nobody() -> None:
    table = Membership(ME, replace(LIMITS, members_max=3))
    table.arrive(ANN)
    table.arrive(BOB)
    assert table.arrive(info("eve")) == []
    table.die(ANN.id)
    assert table.arrive(info("eve")) == [Change(ChangeKind.ARRIVED, info("eve"))]
    assert ANN.id not in table
