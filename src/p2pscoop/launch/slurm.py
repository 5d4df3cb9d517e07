"""Slurm: the hosts of a job, and the ranks of a step, from their environment, without `scontrol`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from p2pscoop.errors import ConfigurationError
from p2pscoop.launch.hosts import Host, expand

__all__ = ["Step", "hosts", "step"]

_REPEATED = re.compile(r"(\d+)(?:\(x(\d+)\))?")


_PORTS = range(20_000, 30_000)
"""Below those that systems give to outgoing connections."""


class Step(NamedTuple):
    """What one of several processes that `srun` has started knows of the others.

    Attributes:
        rank: its number; 0 runs the script.
        size: how many there are.
        hosts: of the step; rank 0 is on the first.
        port: the same for all of them, and hardly ever for two steps at once.
        nodes: how many each stands for: its cores, if `srun` was told how many.
    """

    rank: int
    size: int
    hosts: tuple[str, ...]
    port: int
    nodes: int


def step(environment: Mapping[str, str]) -> Step | None:
    """The step of this process, or None if `srun` has started it alone, or not at all.

    Raises:
        ConfigurationError: the job has parts of different kinds, or the variables are not there.
    """
    size = int(environment.get("SLURM_STEP_NUM_TASKS", "1"))
    if size == 1:
        return None
    if "SLURM_HET_SIZE" in environment:
        raise ConfigurationError(
            "the job has components (SLURM_HET_SIZE): start `p2pscoop run` without srun in one, and `p2pscoop "
            "join --seed` by srun in the others"
        )
    try:
        rank = int(environment["SLURM_PROCID"])
        names = expand(environment["SLURM_STEP_NODELIST"], "SLURM_STEP_NODELIST")
        number = int(environment["SLURM_JOB_ID"]) * 97 + int(environment["SLURM_STEP_ID"])
    except KeyError as error:
        raise ConfigurationError(f"srun started this {size} times, but has not set {error.args[0]}") from None
    nodes = int(environment.get("SLURM_CPUS_PER_TASK", "1"))
    return Step(rank, size, tuple(names), _PORTS[number % len(_PORTS)], nodes)


def hosts(environment: Mapping[str, str]) -> list[Host] | None:
    """The hosts of the job, or None outside of one. `SLURM_TASKS_PER_NODE` says how many nodes each gets.

    Raises:
        ConfigurationError: the variables contradict each other.
    """
    names = environment.get("SLURM_JOB_NODELIST") or environment.get("SLURM_NODELIST")
    if not names:
        return None
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
