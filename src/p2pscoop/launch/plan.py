"""Which hosts get how many nodes: what the options say, else the scheduler's environment, else this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from p2pscoop.errors import ConfigurationError
from p2pscoop.launch import hostfile, lsf, oar, pbs, sge, slurm
from p2pscoop.launch.hosts import Host, divide, group, parse_option
from p2pscoop.launch.local import is_local

__all__ = ["Plan", "find", "make"]


class Plan(NamedTuple):
    """Where nodes are started.

    Attributes:
        local: nodes on this machine, that of the script included; None: one for each usable core.
        remote: the other hosts.
        source: what said so, for people.
    """

    local: int | None
    remote: tuple[Host, ...]
    source: str


def find(
    names: Sequence[str], hostfile_path: str | None, environment: Mapping[str, str]
) -> tuple[list[Host] | None, str]:
    """The hosts that are to be used and what named them; None if nothing does.

    Raises:
        ConfigurationError: what names them cannot be used.
    """
    if names and hostfile_path:
        raise ConfigurationError("--hosts and --hostfile name hosts twice: give one of them")
    if names:
        return group(host for name in names for host in parse_option(name)), "--hosts"
    if hostfile_path:
        return hostfile.parse(_read("--hostfile", hostfile_path), hostfile_path), "--hostfile"
    slurm_hosts = slurm.hosts(environment)
    if slurm_hosts is not None:
        return slurm_hosts, "Slurm"
    for scheduler, label in ((pbs, "PBS"), (sge, "SGE"), (lsf, "LSF"), (oar, "OAR")):
        found = scheduler.hosts(environment, _read)
        if found is not None:
            if not found:
                raise ConfigurationError(f"{label} says that this job has hosts, but names none")
            return found, label
    return None, "this machine"


def make(
    names: Sequence[str], hostfile_path: str | None, total: int | None, environment: Mapping[str, str]
) -> Plan:
    """The plan for a run.

    The script always runs on this machine, in a node of its own. If this machine is not among the hosts, that node
    comes on top of theirs.

    Args:
        names: the words of `--hosts`.
        hostfile_path: of `--hostfile`, or None.
        total: of `-n`, or None.
        environment: the variables.

    Raises:
        ConfigurationError: see `find`.
    """
    hosts, source = find(names, hostfile_path, environment)
    if hosts is None:
        return Plan(total, (), source)
    divided = divide(hosts, total)
    local = [host.nodes for host in divided if is_local(host)]
    remote = tuple(host for host in divided if not is_local(host))
    known = [count for count in local if count is not None]
    if not local:
        return Plan(1, remote, source)
    return Plan(sum(known) if len(known) == len(local) else None, remote, source)


def _read(source: str, path: str) -> str:
    try:
        return Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ConfigurationError(f"{source}: {path} cannot be read: {reason}") from error
