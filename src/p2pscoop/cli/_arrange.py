"""From a plan to who listens where: ports, seeds, and the command and the orders for each other host."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import NamedTuple

from p2pscoop import _machine
from p2pscoop._situation import DEBUG_VARIABLE
from p2pscoop.cli._membership import Security, listening
from p2pscoop.cli._options import LaunchOptions
from p2pscoop.errors import ConfigurationError
from p2pscoop.launch import ssh
from p2pscoop.launch.fleet import RemoteHost
from p2pscoop.launch.hosts import Host
from p2pscoop.launch.plan import Plan
from p2pscoop.launch.remote import RemoteConfig
from p2pscoop.launch.slurm import Step

__all__ = ["GATHER_S", "Arrangement", "arrange", "external_address", "of_step", "profile_directory"]

LOOPBACK = "127.0.0.1"
GATHER_S = 60.0
"""How long the processes that `srun` starts wait for each other."""
_SSH_PORT = 22


class Arrangement(NamedTuple):
    """How the nodes of a run find each other.

    Attributes:
        listen: host and port at which the script's node listens, or None.
        ports: of the other local nodes; none if any will do.
        hosts: the other hosts.
        security: keys and name of the cluster.
        expects: so many nodes have to be there before the script starts; 0: it starts at once.
        spare_port: one that leads to this machine from all others; 0 if any does.
    """

    security: Security
    listen: tuple[str, int] | None
    ports: tuple[int, ...] = ()
    hosts: tuple[RemoteHost, ...] = ()
    spare_port: int = 0
    expects: int = 0


def external_address(plan: Plan, options: LaunchOptions) -> str:
    """The address of this machine that the hosts of a plan can use."""
    if options.tunnel:
        return LOOPBACK
    if options.external_hostname is not None:
        return options.external_hostname
    try:
        return _machine.address_towards(_bare(plan.remote[0]), plan.remote[0].port or _SSH_PORT)
    except ConfigurationError:
        return socket.getfqdn()  # It may be a name that only ssh knows.


def arrange(
    plan: Plan, local: int, listen: tuple[str, int] | None, options: LaunchOptions, security: Security
) -> Arrangement:
    """Who listens where.

    Args:
        plan: which hosts.
        local: nodes on this machine.
        listen: of `--listen`, or None.
        options: the others.
        security: keys and name of the cluster.

    Raises:
        ConfigurationError: tunnels were asked for, and how many is not known.
    """
    if not plan.remote:
        return Arrangement(security, listen)
    shell = ssh.Shell(
        executable=options.ssh_executable,
        options=options.ssh_option,
        rsh=options.rsh,
        directory=options.path or os.getcwd(),
        interpreter=options.python_interpreter,
        pythonpath=options.pythonpath,
        prolog=options.prolog,
    )
    if options.tunnel:
        return _tunnelled(plan, local, shell, options, security)
    address = listen or (external_address(plan, options), free_ports(1)[0])
    hosts = tuple(
        RemoteHost(host.name, ssh.command(shell, host), _orders(host, address, (), options, security))
        for host in plan.remote
    )
    return Arrangement(security, address, (), hosts)


def of_step(step: Step, listen: tuple[str, int] | None, security: Security) -> Arrangement:
    """Where rank 0 of what `srun` started listens, and how many nodes the others bring.

    Raises:
        ConfigurationError: the hosts of the step have no addresses.
    """
    if listen is None:
        host = step.hosts[0]
        if len(step.hosts) > 1:
            # To itself, a machine may be a loopback address.
            address = _machine.address_towards(step.hosts[1], step.port)
        else:
            address = str(_machine.resolve(host, step.port)[0][1][0])
        listen = address, step.port
    else:
        listen = listening(listen)
    return Arrangement(security, listen, expects=step.size * step.nodes)


def _tunnelled(
    plan: Plan, local: int, shell: ssh.Shell, options: LaunchOptions, security: Security
) -> Arrangement:
    """Each node has a port of its own, which leads to it on every machine.

    On the machine of the node it is the node's. Here, ssh takes it and leads it to the node's machine; on a third
    machine ssh takes it and leads it here, from where it goes on.
    """
    for host in plan.remote:
        if host.nodes is None:
            raise ConfigurationError(
                f"--tunnel needs a tunnel for each node: say how many there are on {host.name}, as in "
                f"`{host.name}:4`, or give -n"
            )
    counts = [host.nodes or 0 for host in plan.remote]
    ports = free_ports(1 + local + sum(counts))
    spare, mine, rest = ports[0], ports[1 : local + 1], ports[local + 1 :]
    address = (LOOPBACK, mine[0])
    hosts = []
    for host, count in zip(plan.remote, counts, strict=True):
        own, rest = rest[:count], rest[count:]
        command = ssh.command(
            shell, host, forwards=own, reverse_forwards=[port for port in ports if port not in own]
        )
        hosts.append(RemoteHost(host.name, command, _orders(host, address, tuple(own), options, security)))
    return Arrangement(security, address, tuple(mine[1:]), tuple(hosts), spare)


def _orders(
    host: Host, address: tuple[str, int], ports: tuple[int, ...], options: LaunchOptions, security: Security
) -> RemoteConfig:
    scheme = "tls+tcp://" if security.keys else "tcp://"
    return RemoteConfig(
        label=_bare(host),
        count=host.nodes,
        seeds=(scheme + _machine.join_address(*address),),
        listen=LOOPBACK if options.tunnel else None,
        keys=security.keys,
        cluster=security.cluster,
        ports=ports,
        nice=options.nice,
        log_level=options.log_level,
        environment={DEBUG_VARIABLE: "1"} if options.debug else {},
        profile=profile_directory(options),
    )


def profile_directory(options: LaunchOptions) -> str | None:
    """Where the profiles go: in the working directory, on each host."""
    return "profile" if options.profile else None


def free_ports(count: int) -> list[int]:
    """Different ports that nobody listens at."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind((LOOPBACK, 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def _bare(host: Host) -> str:
    return host.name.rpartition("@")[2]
