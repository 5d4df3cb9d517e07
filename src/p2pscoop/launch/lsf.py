"""LSF: the hosts of a job in one variable, or in a file where that would be too long."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from p2pscoop.errors import ConfigurationError
from p2pscoop.launch.hosts import Host, group, parse_count

__all__ = ["hosts"]


def hosts(environment: Mapping[str, str], read: Callable[[str, str], str]) -> list[Host] | None:
    """The hosts of the job, or None outside of one; see `pbs.hosts`."""
    pairs = environment.get("LSB_MCPU_HOSTS", "").split()
    if pairs:
        if len(pairs) % 2:
            raise ConfigurationError(f"LSB_MCPU_HOSTS={' '.join(pairs)!r} is not pairs of host and number")
        return group(
            Host(name, parse_count(count, "LSB_MCPU_HOSTS"))
            for name, count in zip(pairs[0::2], pairs[1::2], strict=True)
        )
    path = environment.get("LSB_DJOB_HOSTFILE")
    names = read("LSB_DJOB_HOSTFILE", path).split() if path else environment.get("LSB_HOSTS", "").split()
    return group(Host(name, 1) for name in names) or None
