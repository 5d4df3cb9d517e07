"""OAR: a file with a line for each core of the job."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from p2pscoop.launch.hosts import Host, group

__all__ = ["hosts"]

_VARIABLES = ("OAR_NODEFILE", "OAR_NODE_FILE", "OAR_FILE_NODES")


def hosts(environment: Mapping[str, str], read: Callable[[str, str], str]) -> list[Host] | None:
    """The hosts of the job, or None outside of one; see `pbs.hosts`."""
    for variable in _VARIABLES:
        path = environment.get(variable)
        if path:
            return group(Host(line.strip(), 1) for line in read(variable, path).splitlines() if line.strip())
    return None
