"""How a program uses a standing cluster, instead of nodes of its own: where it is, and with which key.

`Executor(seed=...)` says so for one executor, the environment variable `P2PSCOOP_SEED` for all of a program. The
program becomes a peer that submits. Its process runs its own tasks at most, never those of others.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from p2pscoop import _machine
from p2pscoop._security import (
    CLUSTER_VARIABLE,
    DEFAULT_CLUSTER,
    ClusterKey,
    checked_cluster,
    find_keys,
    parse_keys,
)
from p2pscoop.errors import ConfigurationError, DiscoveryError, StartError

__all__ = ["JOIN_S", "SEED_VARIABLE", "Attachment", "attachment", "diagnose", "explain", "found"]

SEED_VARIABLE = "P2PSCOOP_SEED"
"""Environment variable with the addresses of nodes of a cluster: HOST:PORT, or several with commas between. `mdns`
instead finds them on the local network, `mdns:ADDR` by the interface with that address."""

JOIN_S = 10.0
"""How long a cluster may take to let a program in."""


_MDNS = re.compile(r"mdns(:.+)?")
_FOUND_MAX = 16
"""Anyone can announce nodes that do not exist; trying them all is not worth it."""


class Attachment(NamedTuple):
    """A cluster that is there.

    Attributes:
        seeds: transport addresses.
        listen: address of this machine from which the first is reached.
        keys: of the cluster.
        cluster: its name.
    """

    seeds: tuple[str, ...]
    listen: str
    keys: tuple[ClusterKey, ...]
    cluster: str


def attachment(
    seed: str | Sequence[str] | None, key: str | None, environment: Mapping[str, str] = os.environ
) -> Attachment | None:
    """What is given, or what the environment says; None if neither says anything.

    Args:
        seed: HOST:PORT, or several; or `mdns`, or `mdns:ADDR`.
        key: text of the cluster's key, as `p2pscoop keygen` writes it; None: that of the environment, or of the
            configuration directory.
        environment: where to look.

    Raises:
        ConfigurationError: a seed or a key cannot be used.
        DiscoveryError: no node can be found.
    """
    given = environment.get(SEED_VARIABLE, "") if seed is None else seed
    seeds = [each.strip() for each in (given.split(",") if isinstance(given, str) else given) if each.strip()]
    if not seeds:
        if key is not None:
            raise ConfigurationError("key is that of a cluster: give seed as well")
        return None
    cluster = checked_cluster(environment.get(CLUSTER_VARIABLE) or DEFAULT_CLUSTER)
    keys = find_keys(cluster, None, environment) if key is None else parse_keys(key)
    if all(_MDNS.fullmatch(each) for each in seeds):
        return found(cluster, keys, [each.removeprefix("mdns").removeprefix(":") for each in seeds if ":" in each])
    addresses: list[str] = []
    for each in seeds:
        host, port = _checked_address(each)
        resolved = _machine.resolve(host, port)
        addresses += ["tls+tcp://" + _machine.join_address(str(address[0]), port) for _, address in resolved]
    listen = _machine.address_towards(*_machine.split_address(addresses[0]))
    return Attachment(tuple(addresses), listen, keys, cluster)


def found(cluster: str, keys: tuple[ClusterKey, ...], interfaces: Sequence[str]) -> Attachment:
    """A cluster that is found on the local network.

    Args:
        cluster: its name.
        keys: of the cluster.
        interfaces: addresses of those to look at; none: the one that multicast leaves by.

    Raises:
        ConfigurationError, DiscoveryError: an interface cannot be used, or nobody has answered.
    """
    from p2pscoop._discovery import default_interface, find

    used = list(interfaces) or [default_interface()]
    places = [place for _, addresses in find(cluster, used)[:_FOUND_MAX] for place in addresses]
    if not places:
        raise DiscoveryError(
            f"no node of a cluster {cluster!r} has answered on {', '.join(used)}: compare its name (--cluster), "
            "look on another interface, or give a seed"
        )
    scheme = "tls+tcp://" if keys else "tcp://"
    seeds = tuple(scheme + _machine.join_address(host, port) for host, port in places)
    return Attachment(seeds, _machine.address_towards(*places[0]), keys, cluster)


def _checked_address(text: str) -> tuple[str, int]:
    host, separator, port = text.rpartition(":")
    if not separator or not host or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise ConfigurationError(f"seed: {text!r} is not HOST:PORT, such as 192.0.2.1:7700 or [::1]:7700")
    return _machine.split_address(text)


def explain(attached: Attachment) -> StartError:
    """Why no seed has answered, as far as an attempt to connect can tell."""
    return StartError(
        f"no node of the cluster {attached.cluster!r} has answered within {JOIN_S:.0f} s: "
        + "; ".join(diagnose(seed, secured=bool(attached.keys)) for seed in attached.seeds)
    )


def diagnose(seed: str, *, secured: bool, timeout_s: float = 5.0) -> str:
    """Why a seed does not answer. TLS says nothing to either side, so this is a guess."""
    host, port = _machine.split_address(seed)
    where = _machine.join_address(host, port)
    try:
        with socket.create_connection((host, port), timeout=timeout_s):
            pass
    except ConnectionRefusedError:
        return f"nobody listens at {where}"
    except OSError as error:
        return f"{where} cannot be reached ({error.strerror or error})"
    if secured:
        return (
            f"{where} does not answer: it has another key (see `p2pscoop keygen --show`), runs --insecure, "
            "or does not reach this machine"
        )
    return (
        f"{where} does not answer: it has a key, and so needs one here, is no node, or does not reach this machine"
    )
