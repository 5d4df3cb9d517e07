"""PBS and Torque: a file with a line for each processor of the job."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from p2pscoop.launch.hosts import Host, group

__all__ = ["hosts"]


def hosts(environment: Mapping[str, str], read: Callable[[str, str], str]) -> list[Host] | None:
    """The hosts of the job, or None outside of one.

    Args:
        environment: the variables.
        read: gives the text of the file that a variable names.
    """
    path = environment.get("PBS_NODEFILE")
    if not path:
        return None
    return group(Host(line.strip(), 1) for line in read("PBS_NODEFILE", path).splitlines() if line.strip())
