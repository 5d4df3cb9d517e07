"""What the processes of one machine tell each other when they start, and by their exit status when they end.

Imports nothing heavy: supervisors need it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

__all__ = [
    "EXIT_FAILED",
    "EXIT_LEFT",
    "EXIT_REFUSED",
    "EXIT_REPLACED",
    "EXIT_UNREACHABLE",
    "ORIGIN_NAME",
    "ORIGIN_SOCKET",
    "ORIGIN_VARIABLE",
    "NodeConfig",
    "OriginConfig",
    "local_nodes",
]

EXIT_LEFT = 0
"""The node left because it was told to, or because there is nothing left to do."""
EXIT_UNREACHABLE = 68
"""A host cannot be reached, and nothing was started."""
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
"""Environment variable with the descriptor from which the origin, whose stdin is the user's, reads its
configuration. A key in it would be in the environment of all that the script starts."""


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """What a supervisor tells a node.

    Attributes:
        name: for people.
        directory: private directory of this machine's nodes.
        seeds: transport addresses to join at.
        listen: address to listen at by TCP, or None.
        port: to listen at there; 0 if any will do.
        keys: of the cluster, as text; none if its connections by TCP are not secured.
        cluster: its name.
        standing: whether the node belongs to a standing cluster, or may, and not to a program.
        founder: whether it is a member without having been let in.
        socket_name: of its socket in the directory, if others have to know it.
        interfaces: addresses of the interfaces on which the node announces itself, and looks for others, by
            multicast DNS; one node of a supervisor does.
        complain: whether to say so when no seed answers; one node of a supervisor does.
        patience_s: how long the node tries to be let in; 0: for ever.
        log_level: of the package's logger.
        profile: directory for a profile of what the node did, or None.
        predecessor_pid: of the node that died in whose place this one is started; 0 if there was none.
        predecessor_end: how it died, in words, and what it printed last.
    """

    name: str
    directory: str
    seeds: tuple[str, ...]
    listen: str | None = None
    port: int = 0
    keys: tuple[str, ...] = field(default=(), repr=False)
    cluster: str = "default"
    standing: bool = False
    founder: bool = False
    socket_name: str | None = None
    interfaces: tuple[str, ...] = ()
    complain: bool = False
    patience_s: float = 0.0
    log_level: int = logging.WARNING
    profile: str | None = None
    predecessor_pid: int = 0
    predecessor_end: str = ""

    def to_line(self) -> bytes:
        """One line of JSON."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> NodeConfig:
        """Undo `to_line`."""
        fields = json.loads(line)
        for name in ("seeds", "keys", "interfaces"):
            fields[name] = tuple(fields[name])
        return cls(**fields)


def local_nodes(
    directory: str,
    count: int,
    *,
    listen: str | None = None,
    ports: Sequence[int] = (),
    keys: Sequence[str] = (),
    cluster: str = "default",
) -> list[NodeConfig]:
    """Configurations of so many nodes beside an origin whose socket is in this directory.

    Args:
        directory: private directory of this machine's nodes.
        count: how many.
        listen: host to listen at by TCP, or None.
        ports: for each of them the port; none if any will do.
        keys: as of `NodeConfig`.
        cluster: as of `NodeConfig`.
    """
    seed = f"ipc://{directory}/{ORIGIN_SOCKET}"
    first = NodeConfig("", directory, (seed,), listen, keys=tuple(keys), cluster=cluster)
    return [
        replace(first, name=f"n{index}", port=ports[index - 1] if ports else 0) for index in range(1, count + 1)
    ]


@dataclass(frozen=True, slots=True)
class OriginConfig:
    """What the launcher of a script tells the process that runs it.

    Attributes:
        directory: private directory of this machine's nodes.
        listen: host and port to listen at by TCP, or None.
        keys: as of `NodeConfig`.
        cluster: as of `NodeConfig`.
        log_level: of the package's logger.
        profile: as of `NodeConfig`.
        shared: whether there are other nodes, or will be, which executors of the script can use.
        spare_port: at which an executor of the script has to listen; 0 if any will do.
        expects: so many nodes have to be there before the script starts; 0: it starts at once.
        patience_s: how long to wait for them.
    """

    directory: str
    listen: tuple[str, int] | None
    keys: tuple[str, ...] = field(default=(), repr=False)
    cluster: str = "default"
    log_level: int = logging.WARNING
    profile: str | None = None
    shared: bool = False
    spare_port: int = 0
    expects: int = 0
    patience_s: float = 0.0

    def to_line(self) -> bytes:
        """One line of JSON."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> OriginConfig:
        """Undo `to_line`."""
        fields = json.loads(line)
        listen = fields["listen"]
        fields["keys"] = tuple(fields["keys"])
        return cls(**{**fields, "listen": None if listen is None else (listen[0], listen[1])})
