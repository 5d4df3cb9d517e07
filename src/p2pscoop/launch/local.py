"""Which names mean this machine."""

from __future__ import annotations

import ipaddress
import socket

from p2pscoop.launch.hosts import Host

__all__ = ["is_local"]


def is_local(host: Host) -> bool:
    """Whether nodes for this host can be started without ssh. A user or a port of its own asks for ssh."""
    if host.port is not None or "@" in host.name:
        return False
    if host.name == "::1":
        return True
    own = socket.gethostname()
    try:
        return ipaddress.ip_address(host.name) == ipaddress.ip_address("127.0.0.1")
    except ValueError:
        return host.name in {"localhost", own} or host.name.split(".")[0] == own.split(".")[0]
