"""Slurm: the hosts of a job from its environment, without `scontrol`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from p2pscoop.errors import ConfigurationError
from p2pscoop.launch.hosts import Host, expand

__all__ = ["hosts"]

_REPEATED = re.compile(r"(\d+)(?:\(x(\d+)\))?")


def hosts(environment: Mapping[str, str]) -> list[Host] | None:
    """The hosts of the job, or None outside of one. `SLURM_TASKS_PER_NODE` says how many nodes each gets.

    Raises:
        ConfigurationError: the variables contradict each other, or `srun` starts this command more than once.
    """
    names = environment.get("SLURM_JOB_NODELIST") or environment.get("SLURM_NODELIST")
    if not names:
        return None
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
    if tasks != "1":
        raise ConfigurationError(
            f"srun starts this command {tasks} times, and each would run the script: start it once, without srun "
            "or with `srun --nodes=1 --ntasks=1`; it finds the hosts of the job itself"
        )
    # The name that Slurm has for this machine need not be the one that the machine has for itself.
    own = environment.get("SLURMD_NODENAME")
    expanded = ["localhost" if name == own else name for name in expand(names, "SLURM_JOB_NODELIST")]
    # A job that asked for cores and not for tasks has one task a host; its cores are what is meant.
    variable = "SLURM_TASKS_PER_NODE" if "SLURM_NTASKS" in environment else "SLURM_JOB_CPUS_PER_NODE"
    if variable not in environment:
        variable = "SLURM_TASKS_PER_NODE"
    text = environment.get(variable)
    if text is None:
        return [Host(name) for name in expanded]
    counts = per_host(text, variable)
    if len(counts) != len(expanded):
        raise ConfigurationError(f"{variable}={text!r} is for {len(counts)} hosts, {names!r} are {len(expanded)}")
    return [Host(name, count) for name, count in zip(expanded, counts, strict=True)]


def per_host(text: str, variable: str) -> list[int]:
    """`2(x3),1` is 2, 2, 2, 1."""
    counts: list[int] = []
    for part in text.split(","):
        match = _REPEATED.fullmatch(part.strip())
        if match is None:
            raise ConfigurationError(f"{variable}={text!r}: {part!r} is not a number, or one such as 2(x3)")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts
