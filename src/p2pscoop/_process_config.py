"""What the processes of one machine tell each other when they start, and by their exit status when they end.

Imports nothing heavy: supervisors need it.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass

__all__ = [
    "EXIT_FAILED",
    "EXIT_LEFT",
    "EXIT_REFUSED",
    "EXIT_REPLACED",
    "ORIGIN_NAME",
    "ORIGIN_SOCKET",
    "ORIGIN_VARIABLE",
    "NodeConfig",
    "OriginConfig",
    "local_nodes",
]

EXIT_LEFT = 0
"""The node left because it was told to, or because there is nothing left to do."""
EXIT_REFUSED = 69
"""The cluster did not let it in."""
EXIT_FAILED = 70
"""It cannot do its work: the initializer raised, or it cannot listen."""
EXIT_REPLACED = 75
"""A task in it did not end when it was cancelled: start another node."""

ORIGIN_NAME = "origin"
ORIGIN_SOCKET = "origin.ipc"
"""Name of the origin's socket in the directory: known beforehand, so that all nodes can start together."""

ORIGIN_VARIABLE = "_P2PSCOOP_ORIGIN"
"""Environment variable through which the launcher configures the origin, whose stdin is the user's."""


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """What a supervisor tells a node.

    Attributes:
        name: for people.
        directory: private directory of this machine's nodes.
        seeds: transport addresses to join at.
        listen: host to listen at by TCP, or None.
        complain: whether to say so when no seed answers; one node of a supervisor does.
        log_level: of the package's logger.
    """

    name: str
    directory: str
    seeds: tuple[str, ...]
    listen: str | None = None
    complain: bool = False
    log_level: int = logging.WARNING

    def to_line(self) -> bytes:
        """One line of JSON."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> NodeConfig:
        """Undo `to_line`."""
        fields = json.loads(line)
        fields["seeds"] = tuple(fields["seeds"])
        return cls(**fields)


def local_nodes(directory: str, count: int, *, listen: str | None = None) -> list[NodeConfig]:
    """Configurations of so many nodes beside an origin whose socket is in this directory."""
    seed = f"ipc://{directory}/{ORIGIN_SOCKET}"
    return [NodeConfig(f"n{index}", directory, (seed,), listen) for index in range(1, count + 1)]


@dataclass(frozen=True, slots=True)
class OriginConfig:
    """What the launcher of a script tells the process that runs it.

    Attributes:
        directory: private directory of this machine's nodes.
        tether: a descriptor whose end of file means that the launcher is gone.
        listen: host and port to listen at by TCP, or None.
    """

    directory: str
    tether: int
    listen: tuple[str, int] | None

    def to_json(self) -> str:
        """As the value of the environment variable."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> OriginConfig:
        """Undo `to_json`."""
        fields = json.loads(text)
        listen = fields["listen"]
        return cls(fields["directory"], fields["tether"], None if listen is None else (listen[0], listen[1]))
