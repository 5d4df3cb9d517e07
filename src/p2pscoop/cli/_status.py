"""`status` and `leave`: look at a cluster from outside, and have a node go."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click

from p2pscoop import _machine
from p2pscoop._attachment import Attachment, found
from p2pscoop._core.values import MemberEntry, MemberState
from p2pscoop._observer import Observer
from p2pscoop._security import ClusterKey
from p2pscoop.cli._membership import Security, membership
from p2pscoop.errors import ConfigurationError

__all__ = ["attached", "leave", "show", "status"]

_COLUMNS = ("name", "host", "pid", "address", "state", "incarnation", "version", "tasks_done", "steals", "id")
_ID_DIGITS_MIN = 4


def attached(security: Security, seeds: Sequence[tuple[str, int]], interfaces: Sequence[str]) -> Attachment:
    """How to reach a cluster: at its seeds, or found on the local network.

    Raises:
        ConfigurationError: an address cannot be used.
        DiscoveryError: nobody can be found.
    """
    keys = tuple(ClusterKey.from_text(text) for text in security.keys)
    if not seeds:
        return found(security.cluster, keys, interfaces)
    member = membership(security, seeds, None, ())
    return Attachment(member.seeds, member.listen[0], keys, security.cluster)


def status(attachment: Attachment) -> list[dict[str, Any]]:
    """The nodes that a cluster knows of, one dictionary each.

    Raises:
        StartError, JoinRefusedError: as `Observer`.
    """
    with Observer(attachment) as observer:
        statistics = observer.statistics()
        nodes = []
        for row in observer.members():
            info = row.info
            done = statistics.get(info.id.hex())
            state = row.state.name.lower()
            if row.state is MemberState.ALIVE and done is None:
                state = "suspect"
            nodes.append(
                {
                    "id": info.id.hex(),
                    "name": info.name,
                    "host": info.host,
                    "pid": info.pid,
                    "address": _address(info.addresses),
                    "state": state,
                    "incarnation": row.incarnation,
                    "version": info.version,
                    "origin": info.origin,
                    "tasks_done": None if done is None else done.executed,
                    "steals": None if done is None else done.steals,
                }
            )
        return nodes


def show(nodes: Sequence[dict[str, Any]], cluster: str, *, as_json: bool) -> str:
    """What `status` prints."""
    if as_json:
        return json.dumps({"cluster": cluster, "nodes": list(nodes)}, indent=2)
    table = [[name.replace("_", " ") for name in _COLUMNS]]
    table += [["-" if node[name] is None else str(node[name]) for name in _COLUMNS] for node in nodes]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in table)


def leave(attachment: Attachment, wanted: str) -> None:
    """Have a node drain and go, and wait until it is gone.

    Args:
        attachment: the cluster.
        wanted: its name, or the beginning of its id.

    Raises:
        ConfigurationError: there is no such node, or there are several, or it does not leave like this.
        StartError, JoinRefusedError: as `Observer`.
    """
    with Observer(attachment) as observer:
        row = _find(observer.members(), wanted)
        where = f"{row.info.name} on {row.info.host}"
        click.echo(f"p2pscoop: {where} finishes the tasks that it runs, and leaves", err=True)
        problem = observer.tell_to_leave(row.info.id)
        if problem:
            raise ConfigurationError(f"{where} does not leave: {problem}")
        click.echo(f"p2pscoop: {where} is gone", err=True)


def _find(members: Sequence[MemberEntry], wanted: str) -> MemberEntry:
    alive = [row for row in members if row.state is MemberState.ALIVE]
    found = [row for row in alive if row.info.name == wanted]
    if not found and len(wanted) >= _ID_DIGITS_MIN:
        found = [row for row in alive if row.info.id.hex().startswith(wanted.lower())]
    if len(found) == 1:
        return found[0]
    if found:
        which = ", ".join(f"{row.info.id.hex()} on {row.info.host}" for row in found)
        raise ConfigurationError(f"{wanted!r} is the name of several nodes: give the id of one ({which})")
    names = ", ".join(row.info.name for row in alive) or "none"
    raise ConfigurationError(f"there is no node {wanted!r} in the cluster; there are: {names}")


def _address(addresses: Sequence[str]) -> str:
    """HOST:PORT, or the path of a socket if nothing else is there."""
    for address in reversed(addresses):
        if "tcp://" in address:
            return _machine.join_address(*_machine.split_address(address))
    return addresses[0] if addresses else "-"
