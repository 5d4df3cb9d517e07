"""Turns messages to peers into effects, with the addresses that the member table has.

Decides nothing: what is sent to a peer that is not known, or not known any more, is dropped, as the network may
drop anything. Who cares repeats it.
"""

from __future__ import annotations

from collections.abc import Iterable

from p2pscoop._core.effects import Effect, Send
from p2pscoop._core.ids import NodeId
from p2pscoop._core.membership import Membership
from p2pscoop._core.messages import Message

__all__ = ["Post"]


class Post:
    """The outgoing mail of one node."""

    def __init__(self, membership: Membership) -> None:
        self._membership = membership

    def to(self, peer: NodeId, message: Message) -> list[Effect]:
        """Send to a peer; nothing, if word of it has not come yet."""
        row = self._membership.row(peer)
        return [] if row is None else [Send(row.info, message)]

    def to_all(self, message: Message) -> list[Effect]:
        """Send to every peer that is there."""
        return self.all([(peer, message) for peer in self._membership.alive_peers()])

    def all(self, messages: Iterable[tuple[NodeId, Message]]) -> list[Effect]:
        """Send each to its peer."""
        return [effect for peer, message in messages for effect in self.to(peer, message)]
