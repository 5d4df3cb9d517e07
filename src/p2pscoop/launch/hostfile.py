"""Hostfiles: a host a line, with the number of its nodes if it is not that of its cores.

# comments, and empty lines
first.example.org 4
second                    one node for each usable core
user@third:2222 8         another user, another port of the ssh server
node[01-16] 32            a bracketed list, as Slurm writes it
"""

from __future__ import annotations

from p2pscoop.errors import ConfigurationError
from p2pscoop.launch.hosts import Host, check_name, expand, group, parse_count

__all__ = ["parse"]


def parse(text: str, path: str) -> list[Host]:
    """The hosts of a file.

    Args:
        text: what is in it.
        path: what to call it in messages.

    Raises:
        ConfigurationError: with the line that is wrong, or if there is none.
    """
    hosts: list[Host] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        where = f"{path}, line {number}"
        if len(words) > 2:
            raise ConfigurationError(f"{where}: {line.strip()!r} is not a host and a number of nodes")
        name, colon, port = words[0].rpartition(":")
        if not colon or ":" in name or "]" in port:
            name, port = words[0], ""
        if port and not (port.isdecimal() and 1 <= int(port) <= 65535):
            raise ConfigurationError(f"{where}: {port!r} is not a port from 1 to 65535")
        count = parse_count(words[1], where) if len(words) == 2 else None
        hosts += [
            Host(check_name(each, where), count, int(port) if port else None) for each in expand(name, where)
        ]
    if not hosts:
        raise ConfigurationError(f"{path} names no host: write one a line, such as `node1 4`")
    return group(hosts)
