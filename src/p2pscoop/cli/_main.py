"""Options of the commands, and their checks. What they do is in `_launch`."""

from __future__ import annotations

import contextlib
import ipaddress
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

import click

from p2pscoop import __version__
from p2pscoop.cli._membership import security_options
from p2pscoop.cli._options import LaunchOptions, RunCommand, launch_options
from p2pscoop.launch.hosts import NODES_MAX

if TYPE_CHECKING:
    from p2pscoop._attachment import Attachment

__all__ = ["main", "run"]

_F = TypeVar("_F", bound=Callable[..., object])
_SETTINGS = {"help_option_names": ["-h", "--help"]}


class _Address(click.ParamType[tuple[str, int]]):
    """HOST:PORT, with brackets around an IPv6 address."""

    name = "HOST:PORT"

    def __init__(self, *, port_min: int, port_optional: bool = False) -> None:
        self._port_min = port_min
        self._port_optional = port_optional

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        if self._port_optional and _is_host(str(value)):
            return str(value).removeprefix("[").removesuffix("]"), 0
        host, separator, port_text = str(value).rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not separator or not host:
            self.fail(f"{value!r} is not HOST:PORT, such as 127.0.0.1:7700 or [::1]:7700", param, ctx)
        if not port_text.isdecimal() or not self._port_min <= int(port_text) <= 65535:
            self.fail(f"{port_text!r} in {value!r} is not a port from {self._port_min} to 65535", param, ctx)
        return host, int(port_text)


@click.group(context_settings=_SETTINGS)
@click.version_option(__version__, prog_name="p2pscoop")
def main() -> None:
    """Run Python on many cores and machines, without a broker: idle nodes steal work from busy ones."""


@main.command(
    cls=RunCommand,
    context_settings={**_SETTINGS, "allow_interspersed_args": False},
)
@click.option(
    "-n",
    "nodes",
    type=click.IntRange(1, NODES_MAX),
    metavar="N",
    help="Number of nodes, the script's own included  [default: the usable cores, or as many as the hosts were "
    "given].",
)
@click.option(
    "--listen",
    type=_Address(port_min=0),
    help="Let others that have the cluster's key join at this address.",
)
@security_options
@launch_options
@click.argument("script", required=False, metavar="SCRIPT", type=click.Path(exists=True, dir_okay=False))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def run(
    nodes: int | None,
    listen: tuple[str, int] | None,
    cluster: str | None,
    key_file: str | None,
    insecure: bool,
    script: str | None,
    arguments: tuple[str, ...],
    launch: LaunchOptions,
) -> None:
    """Run SCRIPT with its ARGUMENTS; its tasks run on N nodes.

    The exit status is the script's.
    """
    from p2pscoop.cli import _arrange, _launch, _membership
    from p2pscoop.errors import ConfigurationError
    from p2pscoop.launch import plan, slurm

    if script is None:
        taken = f" (no file is called {launch.hosts[-1]!r}, so it is a host)" if launch.hosts else ""
        raise click.UsageError(
            f"SCRIPT is missing{taken}. Nodes that wait for programs are started with `p2pscoop join --listen "
            "ADDR:PORT`; with P2PSCOOP_SEED=ADDR:PORT, executors of programs use them"
        )
    if launch.tunnel and launch.rsh:
        raise click.UsageError("--tunnel needs ssh: leave --rsh out")
    try:
        step = slurm.step(os.environ)
        if step is not None:
            if launch.hosts or launch.hostfile or nodes is not None:
                raise ConfigurationError(
                    f"srun starts this {step.size} times, and so says itself where nodes run, and how many: leave "
                    "hosts and -n out, or start it once, by `srun --nodes=1 --ntasks=1`"
                )
            security = _membership.secured(cluster, key_file, insecure)
            if step.rank > 0:
                seed = listen or (step.hosts[0], step.port)
                member = _membership.membership(security, [seed], None, ())
                _launch.join(member, step.nodes, _arrange.GATHER_S)
            arrangement = _arrange.of_step(step, listen, security)
            _launch.run(step.nodes, arrangement, launch, script, arguments)
        where = plan.make(launch.hosts, launch.hostfile, nodes, os.environ)
        local = _nodes_or_default(where.local)
        # Others that join need a key that they have; the hosts of this run get one that is made for it.
        if listen is not None:
            listen = _membership.listening(listen)
        given = listen is not None or key_file is not None or cluster is not None or insecure
        security = _membership.secured(cluster, key_file, insecure) if given else _membership.fresh()
        arrangement = _arrange.arrange(where, local, listen, launch, security)
    except ConfigurationError as error:
        raise click.UsageError(str(error)) from error
    if insecure and arrangement.listen is not None:
        _membership.warn_of_insecurity("{}:{}".format(*arrangement.listen))
    _launch.run(local, arrangement, launch, script, arguments)


@main.command(context_settings=_SETTINGS)
@click.option(
    "--seed",
    "seeds",
    type=_Address(port_min=1),
    multiple=True,
    help="Address that a node of the cluster listens at. May be given more than once.",
)
@click.option(
    "--listen",
    type=_Address(port_min=0, port_optional=True),
    help="Address, and port of the first node, at which the new nodes can be reached  [default: that from which "
    "the first seed is reached, or of the interface].",
)
@click.option(
    "--interface",
    "interfaces",
    metavar="ADDR",
    multiple=True,
    help="Address of an interface of this machine on which the nodes find others, and are found, by multicast "
    "DNS. May be repeated  [default: with --seed none, else that of --listen, or the one for multicast].",
)
@click.option(
    "-n",
    "nodes",
    type=click.IntRange(1, NODES_MAX),
    metavar="N",
    help="Number of nodes to add  [default: the usable cores].",
)
@security_options
def join(
    seeds: tuple[tuple[str, int], ...],
    listen: tuple[str, int] | None,
    interfaces: tuple[str, ...],
    nodes: int | None,
    cluster: str | None,
    key_file: str | None,
    insecure: bool,
) -> None:
    """Add nodes of this machine to a cluster: that of --seed, or the one that is found on the local network.

    If there is none yet, they found it. With --seed of a running program they leave when it ends; those of a
    standing cluster stay, and serve the programs that come. Ctrl-C lets them finish the tasks that they run, a
    second one does not.
    """
    from p2pscoop.cli import _launch, _membership
    from p2pscoop.errors import ConfigurationError, DiscoveryError

    try:
        security = _membership.secured(cluster, key_file, insecure)
        member = _membership.membership(security, seeds, listen, interfaces)
    except (ConfigurationError, DiscoveryError) as error:
        raise click.UsageError(str(error)) from error
    if member.note:
        click.echo(f"p2pscoop: {member.note}", err=True)
    if insecure:
        _membership.warn_of_insecurity(member.listen[0])
    _launch.join(member, _nodes_or_default(nodes))


@main.command(context_settings=_SETTINGS)
@click.option("--name", "cluster", metavar="CLUSTER", help="Name of the cluster  [default: `default`].")
@click.option("--key-file", metavar="FILE", help="Where to write it  [default: in the configuration directory].")
@click.option("--rotate", is_flag=True, help="Change the key, in three steps, while the cluster runs.")
@click.option("--show", is_flag=True, help="Show the fingerprint of the key that is used.")
def keygen(cluster: str | None, key_file: str | None, rotate: bool, show: bool) -> None:
    """Make the key of a cluster, which all its machines need."""
    from p2pscoop._security import DEFAULT_CLUSTER
    from p2pscoop.cli import _membership
    from p2pscoop.errors import ConfigurationError

    try:
        name = cluster or DEFAULT_CLUSTER
        click.echo(_membership.show(name, key_file) if show else _membership.keygen(name, key_file, rotate))
    except ConfigurationError as error:
        raise click.ClickException(str(error)) from error


def _reaching(command: _F) -> _F:
    """The options of commands that look at a cluster."""
    for option in (
        click.option(
            "--interface",
            "interfaces",
            metavar="ADDR",
            multiple=True,
            help="Address of an interface of this machine on which to look for the cluster  [default: the one for "
            "multicast].",
        ),
        click.option(
            "--seed",
            "seeds",
            type=_Address(port_min=1),
            multiple=True,
            help="Address that a node of the cluster listens at  [default: found on the local network].",
        ),
    ):
        command = option(command)
    return command


@main.command(context_settings=_SETTINGS)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_reaching
@security_options
def status(
    seeds: tuple[tuple[str, int], ...],
    interfaces: tuple[str, ...],
    cluster: str | None,
    key_file: str | None,
    insecure: bool,
    as_json: bool,
) -> None:
    """List the nodes of a cluster, as one of them knows it.

    A node is alive, suspect (it does not answer), dead, or has left. What programs are there is listed, too: they
    are members that submit.
    """
    from p2pscoop.cli import _status

    attached = _attached(seeds, interfaces, cluster, key_file, insecure)
    with _told():
        click.echo(_status.show(_status.status(attached), attached.cluster, as_json=as_json))


@main.command(context_settings=_SETTINGS)
@click.argument("node")
@_reaching
@security_options
def leave(
    node: str,
    seeds: tuple[tuple[str, int], ...],
    interfaces: tuple[str, ...],
    cluster: str | None,
    key_file: str | None,
    insecure: bool,
) -> None:
    """Have a node finish what it runs and leave its cluster, and wait until it is gone.

    NODE is its name, or the beginning of its id, as `p2pscoop status` shows them. Nothing that it did is lost.
    """
    from p2pscoop.cli import _status

    attached = _attached(seeds, interfaces, cluster, key_file, insecure)
    with _told():
        _status.leave(attached, node)


def _attached(
    seeds: tuple[tuple[str, int], ...],
    interfaces: tuple[str, ...],
    cluster: str | None,
    key_file: str | None,
    insecure: bool,
) -> Attachment:
    from p2pscoop.cli import _membership, _status
    from p2pscoop.errors import ConfigurationError

    with _told():
        try:
            return _status.attached(_membership.secured(cluster, key_file, insecure), seeds, interfaces)
        except ConfigurationError as error:
            raise click.UsageError(str(error)) from error


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """What goes wrong with a cluster is told without a traceback."""
    from p2pscoop.errors import P2PScoopError

    try:
        yield
    except P2PScoopError as error:
        raise click.ClickException(str(error)) from error


def _nodes_or_default(nodes: int | None) -> int:
    from p2pscoop import _machine
    from p2pscoop.errors import ConfigurationError

    try:
        _machine.connections_max(1)  # A wrong value is told here, and not by every node.
        return _machine.node_count(os.environ) if nodes is None else nodes
    except ConfigurationError as error:
        raise click.UsageError(str(error)) from error


def _is_host(text: str) -> bool:
    """Whether this is a host without a port."""
    try:
        ipaddress.ip_address(text.removeprefix("[").removesuffix("]"))
    except ValueError:
        return ":" not in text
    return True
