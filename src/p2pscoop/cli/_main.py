"""Options of the commands, and their checks. What they do is in `_launch`."""

from __future__ import annotations

import ipaddress
import os

import click

from p2pscoop import __version__
from p2pscoop.cli._options import LaunchOptions, RunCommand, launch_options
from p2pscoop.launch.hosts import NODES_MAX

__all__ = ["main", "run"]

_SETTINGS = {"help_option_names": ["-h", "--help"]}

_INSECURE_HELP = "Allow TCP without encryption and without a key, between programs of this machine only."


class _Address(click.ParamType[tuple[str, int]]):
    """HOST:PORT, with brackets around an IPv6 address."""

    name = "HOST:PORT"

    def __init__(self, *, port_min: int) -> None:
        self._port_min = port_min

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
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
    help="Let other programs of this machine join at this address. Needs --insecure.",
)
@click.option("--insecure", is_flag=True, help=_INSECURE_HELP)
@launch_options
@click.argument("script", required=False, metavar="SCRIPT", type=click.Path(exists=True, dir_okay=False))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def run(
    nodes: int | None,
    listen: tuple[str, int] | None,
    insecure: bool,
    script: str | None,
    arguments: tuple[str, ...],
    launch: LaunchOptions,
) -> None:
    """Run SCRIPT with its ARGUMENTS; its tasks run on N nodes.

    The exit status is the script's.
    """
    from p2pscoop.cli import _arrange, _launch
    from p2pscoop.errors import ConfigurationError
    from p2pscoop.launch import plan

    if script is None:
        taken = f" (no file is called {launch.hosts[-1]!r}, so it is a host)" if launch.hosts else ""
        raise click.UsageError(
            f"SCRIPT is missing{taken}. Nodes do not wait for a program to come: start the program, with "
            "`p2pscoop run --listen HOST:PORT SCRIPT`, and add nodes to it with `p2pscoop join --seed HOST:PORT`"
        )
    if listen is not None:
        _check_insecure("--listen", listen[0], insecure)
    if launch.tunnel and launch.rsh:
        raise click.UsageError("--tunnel needs ssh: leave --rsh out")
    try:
        where = plan.make(launch.hosts, launch.hostfile, nodes, os.environ)
        local = _nodes_or_default(where.local)
        if where.remote and listen is None:
            for address in _arrange.addresses(where, launch):
                _check_insecure(f"{where.source} names other hosts", address, insecure)
        arrangement = _arrange.arrange(where, local, listen, launch)
    except ConfigurationError as error:
        raise click.UsageError(str(error)) from error
    _launch.run(local, arrangement, launch, script, arguments)


@main.command(context_settings=_SETTINGS)
@click.option(
    "--seed",
    "seeds",
    type=_Address(port_min=1),
    multiple=True,
    required=True,
    help="Address that a node of the computation listens at. May be given more than once.",
)
@click.option(
    "-n",
    "nodes",
    type=click.IntRange(1, NODES_MAX),
    metavar="N",
    help="Number of nodes to add  [default: the usable cores].",
)
@click.option("--insecure", is_flag=True, help=_INSECURE_HELP)
def join(seeds: tuple[tuple[str, int], ...], nodes: int | None, insecure: bool) -> None:
    """Add nodes of this machine to a running computation.

    They leave when the computation ends. Ctrl-C lets them finish the tasks that they run, a second one does not.
    """
    from p2pscoop.cli import _launch

    for host, _ in seeds:
        _check_insecure("--seed", host, insecure)
    _launch.join(seeds, _nodes_or_default(nodes))


def _nodes_or_default(nodes: int | None) -> int:
    from p2pscoop import _machine
    from p2pscoop.errors import ConfigurationError

    if nodes is not None:
        return nodes
    try:
        return _machine.node_count(os.environ)
    except ConfigurationError as error:
        raise click.UsageError(str(error)) from error


def _check_insecure(option: str, host: str, insecure: bool) -> None:
    """Nobody opens a port to others by accident."""
    if not insecure:
        raise click.UsageError(
            f"{option}: TCP connections are neither encrypted nor authenticated yet; add --insecure if every "
            "user of this machine may run code as you"
        )
    if host != "localhost" and not _is_loopback(host):
        raise click.UsageError(
            f"{option}: {host} is not a loopback address; without keys, nodes talk within one machine only: "
            "use 127.0.0.1, or --tunnel for other hosts"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
