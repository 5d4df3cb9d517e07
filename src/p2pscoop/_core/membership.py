"""Who is there: the table of peers, and how two tables become one.

Membership is a hint: it says whom to ask for work and whose work is not coming back. A wrong hint costs time
or a second execution, never an outcome; custody is the truth (CUSTODY.md). MEMBERSHIP.md beside this file has
the rules as a table.

A row is (info, state, incarnation). Of two rows about one peer the higher (incarnation, state) wins, so that
a peer that finds itself declared dead refutes it by a higher incarnation; rows can be merged in any order.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto

from p2pscoop._core.ids import NodeId
from p2pscoop._core.limits import Limits
from p2pscoop._core.values import MemberEntry, MemberState, PeerInfo

__all__ = ["Change", "ChangeKind", "Membership"]


class ChangeKind(Enum):
    """What became of a peer."""

    ARRIVED = auto()
    LEFT = auto()
    DIED = auto()
    MISSED = auto()
    """It came and went before this node heard of it."""


@dataclass(frozen=True, slots=True)
class Change:
    """One change of the table that others of this node have to hear of."""

    kind: ChangeKind
    info: PeerInfo


class Membership:
    """The table of one node. It is itself in it."""

    def __init__(self, me: PeerInfo, limits: Limits) -> None:
        self._me = me.id
        self._limits = limits
        self._rows: dict[NodeId, MemberEntry] = {me.id: MemberEntry(me, MemberState.ALIVE, 0)}
        self._alive: tuple[NodeId, ...] | None = None
        self._origins: tuple[NodeId, ...] | None = None

    def __contains__(self, node: NodeId) -> bool:
        return node in self._rows

    def rows(self) -> tuple[MemberEntry, ...]:
        """The whole table, for gossip."""
        return tuple(self._rows.values())

    def row(self, node: NodeId) -> MemberEntry | None:
        """What is known of a peer."""
        return self._rows.get(node)

    def is_alive(self, node: NodeId) -> bool:
        """Whether the peer is known and not known to be gone."""
        row = self._rows.get(node)
        return row is not None and row.state is MemberState.ALIVE

    def is_gone(self, node: NodeId) -> bool:
        """Whether the peer is known to be gone. A stranger is neither alive nor gone."""
        row = self._rows.get(node)
        return row is not None and row.state is not MemberState.ALIVE

    def alive_peers(self) -> tuple[NodeId, ...]:
        """All peers that are there, without this node."""
        if self._alive is None:
            self._alive = tuple(
                node for node, row in self._rows.items() if row.state is MemberState.ALIVE and node != self._me
            )
        return self._alive

    def dead_peers(self) -> tuple[NodeId, ...]:
        """All peers that are taken for dead."""
        return tuple(node for node, row in self._rows.items() if row.state is MemberState.DEAD)

    @property
    def incarnation(self) -> int:
        """Of this node."""
        return self._rows[self._me].incarnation

    def rows_of(self, *nodes: NodeId) -> tuple[MemberEntry, ...]:
        """The rows of these nodes, as far as they are known."""
        return tuple(self._rows[node] for node in nodes if node in self._rows)

    def residents(self) -> tuple[NodeId, ...]:
        """The peers (and this node) that are there and stay when no program is."""
        return tuple(
            node for node, row in self._rows.items() if row.state is MemberState.ALIVE and row.info.resident
        )

    def describe(self, me: PeerInfo) -> None:
        """This node tells something else of itself than before."""
        row = self._rows[self._me]
        self._rows[self._me] = MemberEntry(me, MemberState.ALIVE, row.incarnation + 1)

    def origins(self) -> tuple[NodeId, ...]:
        """The peers (and this node) that are there and submitted a program."""
        if self._origins is None:
            self._origins = tuple(
                node for node, row in self._rows.items() if row.state is MemberState.ALIVE and row.info.origin
            )
        return self._origins

    def merge(self, entries: Iterable[MemberEntry]) -> list[Change]:
        """Take in rows of another table."""
        changes = []
        for entry in entries:
            change = self._merge_one(entry)
            if change is not None:
                changes.append(change)
        return changes

    def arrive(self, info: PeerInfo) -> list[Change]:
        """A peer introduced itself."""
        row = self._rows.get(info.id)
        if row is not None and row.state is not MemberState.ALIVE:
            # Its word against hearsay: it speaks, so it is there.
            return self.merge([MemberEntry(info, MemberState.ALIVE, row.incarnation + 1)])
        return self.merge([MemberEntry(info, MemberState.ALIVE, 0 if row is None else row.incarnation)])

    def leave(self, node: NodeId) -> list[Change]:
        """A peer has drained, and said goodbye."""
        return self._end(node, MemberState.LEFT)

    def die(self, node: NodeId) -> list[Change]:
        """A peer's process is gone, or about to be, with whatever it held."""
        return self._end(node, MemberState.DEAD)

    def _end(self, node: NodeId, state: MemberState) -> list[Change]:
        row = self._rows.get(node)
        if row is None or node == self._me:
            return []
        return self.merge([row._replace(state=state)])

    def _merge_one(self, entry: MemberEntry) -> Change | None:
        node = entry.info.id
        row = self._rows.get(node)
        if node == self._me:
            if row is not None and entry.state is not MemberState.ALIVE and entry.incarnation >= row.incarnation:
                # Somebody takes this node for gone: refute it with a higher incarnation.
                self._rows[node] = row._replace(incarnation=entry.incarnation + 1)
            return None
        if row is None:
            if len(self._rows) >= self._limits.members_max and not self._forget_one():
                return None
        elif (entry.incarnation, entry.state) <= (row.incarnation, row.state):
            return None
        self._rows[node] = entry
        before = None if row is None else row.state
        if entry.state is before:
            return None
        if before is None and entry.state is not MemberState.ALIVE:
            return Change(ChangeKind.MISSED, entry.info)
        self._alive = self._origins = None
        if entry.state is MemberState.ALIVE:
            return Change(ChangeKind.ARRIVED, entry.info)
        if before is not MemberState.ALIVE:
            return None  # LEFT became DEAD: gone is gone.
        return Change(ChangeKind.LEFT if entry.state is MemberState.LEFT else ChangeKind.DIED, entry.info)

    def _forget_one(self) -> bool:
        """Make room by forgetting the peer that has been gone longest."""
        for node, row in self._rows.items():
            if row.state is not MemberState.ALIVE:
                del self._rows[node]
                return True
        return False
