"""Which cluster a command means, and with which key: the options that several commands have in common."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import click

from p2pscoop import _machine
from p2pscoop._security import (
    CLUSTER_VARIABLE,
    DEFAULT_CLUSTER,
    ClusterKey,
    checked_cluster,
    find_keys,
    key_path,
    read_keys,
    write_keys,
)
from p2pscoop.errors import ConfigurationError, DiscoveryError

__all__ = [
    "Membership",
    "Security",
    "fresh",
    "keygen",
    "listening",
    "membership",
    "secured",
    "security_options",
    "show",
    "warn_of_insecurity",
]

F = TypeVar("F", bound=Callable[..., object])


class Security(NamedTuple):
    """How the connections of a cluster are secured.

    Attributes:
        keys: as text; none if they are not.
        cluster: its name.
    """

    keys: tuple[str, ...] = ()
    cluster: str = DEFAULT_CLUSTER


class Membership(NamedTuple):
    """How nodes become members of a cluster.

    Attributes:
        security: keys and name.
        seeds: transport addresses to join at.
        listen: address, and port of the first node (0: any), at which they can be reached.
        interfaces: addresses of interfaces on which they find others and are found; none: they are not.
        note: what the user should know, or nothing.
    """

    security: Security
    seeds: tuple[str, ...]
    listen: tuple[str, int]
    interfaces: tuple[str, ...] = ()
    note: str = ""


def security_options(command: F) -> F:
    """The options `--cluster`, `--key-file` and `--insecure`."""
    for option in (
        click.option(
            "--insecure", is_flag=True, help="Neither encrypt nor authenticate connections between machines."
        ),
        click.option(
            "--key-file",
            metavar="FILE",
            help="File with the cluster's key  [default: P2PSCOOP_KEY, else that of `p2pscoop keygen`].",
        ),
        click.option(
            "--cluster",
            metavar="NAME",
            help="Name of the cluster, if you have several  [default: P2PSCOOP_CLUSTER, else `default`].",
        ),
    ):
        command = option(command)
    return command


def secured(cluster: str | None, key_file: str | None, insecure: bool) -> Security:
    """What the options say.

    Raises:
        ConfigurationError: there is no key, or it cannot be used.
    """
    name = checked_cluster(cluster or os.environ.get(CLUSTER_VARIABLE) or DEFAULT_CLUSTER)
    if insecure:
        if key_file is not None:
            raise ConfigurationError("--insecure and --key-file contradict each other: leave one of them out")
        return Security((), name)
    return Security(tuple(key.to_text() for key in find_keys(name, key_file)), name)


def fresh() -> Security:
    """A key that only the nodes of one run have."""
    return Security((ClusterKey.generate().to_text(),))


def warn_of_insecurity(address: str) -> None:
    """Say it loud."""
    click.echo(
        f"p2pscoop: --insecure: whoever reaches {address} can run code as you, and read what is computed",
        err=True,
    )


def membership(
    security: Security,
    seeds: Sequence[tuple[str, int]],
    listen: tuple[str, int] | None,
    interfaces: Sequence[str],
) -> Membership:
    """How the nodes of `join` find the others.

    Args:
        security: keys and name.
        seeds: hosts and ports; none: the nodes found the cluster, or find it.
        listen: where the nodes listen; None: at the address from which the first seed is reached, or that of the
            first interface.
        interfaces: addresses of those to find others on. None: without seeds, that of `listen`, if it can be used,
            or the one that multicast leaves by.

    Raises:
        ConfigurationError: a host cannot be resolved, or an address not be used.
        DiscoveryError: nodes cannot be found on an interface.
    """
    scheme = "tls+tcp://" if security.keys else "tcp://"
    addresses: list[str] = []
    for host, port in seeds:
        # Resolved here, so that a mistake is known at once.
        found = _machine.resolve(host, port)
        addresses += [scheme + _machine.join_address(str(address[0]), port) for _, address in found]
    if listen is not None:
        listen = listening(listen)
    used, note = _interfaces(interfaces, listen, bool(seeds))
    if listen is None:
        listen = (_machine.address_towards(*seeds[0]) if seeds else used[0], 0)
        if "%" in listen[0]:
            raise ConfigurationError(
                f"{listen[0]} is of one link only: give --listen ADDR, where the nodes can be reached"
            )
    return Membership(security, tuple(addresses), listen, used, note)


def _interfaces(
    given: Sequence[str], listen: tuple[str, int] | None, has_seeds: bool
) -> tuple[tuple[str, ...], str]:
    """Where to find others, and what to say of it."""
    from p2pscoop._discovery import check, default_interface

    if given:
        check(given)
        return tuple(given), ""
    if has_seeds:
        return (), ""
    if listen is None:
        own = default_interface()
        check([own])
        return (own,), f"listening at {own}, and looking for others there"
    try:
        check([listen[0]])
    except DiscoveryError as error:
        return (), f"others need --seed to find these nodes: {error}"
    return (listen[0],), ""


def listening(listen: tuple[str, int]) -> tuple[str, int]:
    """The address of `--listen`, as others can use it.

    Raises:
        ConfigurationError: it has no address, or none in particular.
    """
    if listen[0] in _machine.WILDCARDS:
        raise ConfigurationError(
            f"--listen: {listen[0]} stands for all interfaces, and others need an address: give that of one"
        )
    return str(_machine.resolve(*listen)[0][1][0]), listen[1]


def keygen(cluster: str, key_file: str | None, rotate: bool) -> str:
    """Write a key, or take the next step of changing it. What to do next.

    Raises:
        ConfigurationError: there is one already, or none to change.
    """
    path = Path(key_file) if key_file is not None else key_path(cluster)
    if not rotate:
        key = ClusterKey.generate()
        try:
            write_keys(path, [key], replace=False)
        except ConfigurationError as error:
            if not path.exists():
                raise
            raise ConfigurationError(
                f"{error}: --rotate changes the key; to start anew, remove the file first"
            ) from error
        return (
            f"wrote {path} (fingerprint {key.fingerprint})\nCopy it to the same place on the other machines, by a "
            "way that nobody else can read: whoever has it can run code as you."
        )
    keys, note = read_keys(path), ""
    if len(keys) == 1:
        keys, state = (keys[0], ClusterKey.generate()), "accepts a second key"
        then = "Copy it to all machines and restart their nodes; when all have it, run this again."
    elif _TURNED not in path.read_text():
        keys, state, note = (keys[1], keys[0]), "proves the new key, and accepts the old one", _TURNED
        then = "Copy it to all machines and restart their nodes; then run this a last time."
    else:
        keys, state = keys[:1], "has only the new key"
        then = "Copy it to all machines and restart their nodes: the old key is worth nothing any more."
    write_keys(path, keys, replace=True, note=note)
    return f"{path} now {state} (fingerprint {keys[0].fingerprint})\n{then}"


def show(cluster: str, key_file: str | None) -> str:
    """Which keys a cluster has here.

    Raises:
        ConfigurationError: none, or they cannot be used.
    """
    marks = ", then ".join(key.fingerprint for key in find_keys(cluster, key_file))
    return f"fingerprint {marks}"


_TURNED = "The second key is the old one."
