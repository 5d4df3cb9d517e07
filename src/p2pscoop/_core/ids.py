"""Names of things in the protocol: nodes, tasks, and the tokens that order custodies of one task.

Decides how ids look and compare. Draws none: randomness is handed in, so that a seed repeats a run.
"""

from __future__ import annotations

from typing import NamedTuple

from p2pscoop._core.limits import NODE_ID_SIZE

__all__ = ["NOBODY", "NodeId", "TaskKey", "Token", "short"]

NodeId = bytes
"""Random per process start, `NODE_ID_SIZE` bytes: a restarted process is a new node."""

NOBODY: NodeId = b""
"""Recipient of a message to a peer whose id is not known yet (a seed)."""


class TaskKey(NamedTuple):
    """A task that has left the node of its owner: owner, and the owner's serial number."""

    owner: NodeId
    serial: int


class Token(NamedTuple):
    """Orders the custodies of one task. A requeue raises `attempt`, a transfer `hop`."""

    attempt: int
    hop: int

    def passed(self) -> Token:
        """The token that the next holder gets."""
        return Token(self.attempt, self.hop + 1)

    def taken_back(self) -> Token:
        """The token after an offer is withdrawn: above the one that was offered."""
        return Token(self.attempt, self.hop + 2)

    def requeued(self) -> Token:
        """The token of a new attempt, above all custodies of the one before."""
        return Token(self.attempt + 1, 0)


FIRST_TOKEN = Token(0, 0)


def short(node: NodeId) -> str:
    """The first characters of a node id, for people."""
    return node.hex()[: 2 * (NODE_ID_SIZE // 2)] or "?"
