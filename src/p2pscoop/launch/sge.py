"""Sun Grid Engine and its heirs: a file with host, slots, queue and processors."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from p2pscoop.errors import ConfigurationError
from p2pscoop.launch.hosts import Host, group, parse_count

__all__ = ["hosts"]


def hosts(environment: Mapping[str, str], read: Callable[[str, str], str]) -> list[Host] | None:
    """The hosts of the job, or None outside of a parallel environment; see `pbs.hosts`."""
    path = environment.get("PE_HOSTFILE")
    if not path:
        return None
    found = []
    for line in read("PE_HOSTFILE", path).splitlines():
        words = line.split()
        if not words:
            continue
        if len(words) < 2:
            raise ConfigurationError(f"PE_HOSTFILE: {path}: {line!r} has no number of slots")
        found.append(Host(words[0], parse_count(words[1], f"PE_HOSTFILE: {path}")))
    return group(found)
