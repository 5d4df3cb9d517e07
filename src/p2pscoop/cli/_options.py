"""The options of `run` that say where and how nodes are started; those that SCOOP has are taken as SCOOP does."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import click

__all__ = ["LaunchOptions", "RunCommand", "launch_options"]

F = TypeVar("F", bound=Callable[..., object])


@dataclass(frozen=True, slots=True)
class LaunchOptions:
    """What was given, by the names of the options."""

    hosts: tuple[str, ...]
    hostfile: str | None
    allow_missing_hosts: bool
    path: str | None
    nice: int
    verbose: int
    quiet: bool
    rsh: bool
    ssh_executable: str
    ssh_option: tuple[str, ...]
    tunnel: bool
    external_hostname: str | None
    python_interpreter: str
    pythonpath: str | None
    prolog: str | None
    debug: bool
    profile: bool

    @property
    def log_level(self) -> int:
        """Of the package's logger."""
        if self.quiet:
            return logging.ERROR
        if self.debug or self.verbose > 1:
            return logging.DEBUG
        return logging.INFO if self.verbose else logging.WARNING


class RunCommand(click.Command):
    """`--hosts A A B script.py`: an option with several words, up to the next option or to a file."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """See `click.Command`."""
        return super().parse_args(ctx, self._spread(args))

    def _spread(self, args: list[str]) -> list[str]:
        valued = {
            name
            for param in self.params
            if isinstance(param, click.Option) and not param.is_flag and not param.count
            for name in param.opts
        }
        done: list[str] = []
        rest = list(args)
        while rest and rest[0].startswith("-") and rest[0] != "--":
            option = rest.pop(0)
            if option in ("--hosts", "--host"):
                first = True
                while rest and not rest[0].startswith("-") and not _is_script(rest[0]):
                    done.append(f"--hosts={rest.pop(0)}")
                    first = False
                if first:
                    raise click.UsageError("--hosts: no host is named", self.make_context_for_errors())
                continue
            done.append(option)
            if option in valued and rest:
                done.append(rest.pop(0))
        return [*done, *rest]

    def make_context_for_errors(self) -> click.Context:
        """So that the complaint names this command."""
        return click.Context(self, info_name=self.name)


def _is_script(word: str) -> bool:
    return word.endswith(".py") or os.path.isfile(word)


_GIVEN: list[Callable[[F], F]] = [
    click.option(
        "--hosts",
        "--host",
        "hosts",
        multiple=True,
        metavar="HOST...",
        help="Start nodes on these hosts, by ssh: one each time that a host is named, or `host:4`; `user@host`, "
        "`n[01-16]`  [default: those of the Slurm, PBS, SGE, LSF or OAR job, else this machine].",
    ),
    click.option(
        "--hostfile",
        metavar="FILE",
        help="Start nodes on the hosts of a file: a host a line, with a number of nodes if it is not that of its "
        "cores; `user@host:port 4`.",
    ),
    click.option(
        "--allow-missing-hosts", is_flag=True, help="Go on without hosts that cannot be reached, but say so."
    ),
    click.option("-p", "--path", metavar="DIR", help="Working directory on the hosts  [default: this one]."),
    click.option("--nice", type=click.IntRange(-20, 19), default=0, metavar="N", help="Add N to the niceness."),
    click.option("-v", "--verbose", count=True, help="Say more of what goes on; twice for all."),
    click.option("-q", "--quiet", is_flag=True, help="Say errors only."),
    click.option("--rsh", is_flag=True, help="Use rsh instead of ssh."),
    click.option(
        "--ssh-executable", default="ssh", metavar="PATH", show_default=True, help="Name or path of ssh."
    ),
    click.option("--ssh-option", multiple=True, metavar="KEY=VALUE", help="As after `ssh -o`. Any number."),
    click.option(
        "--tunnel",
        is_flag=True,
        help="Let nodes of different hosts talk through ssh, with this machine in the middle.",
    ),
    click.option(
        "--external-hostname",
        metavar="ADDR",
        help="Name or address by which the hosts reach this machine  [default: its name].",
    ),
    click.option(
        "--python-interpreter",
        default=sys.executable,
        metavar="PATH",
        help="Python on the hosts  [default: the path of this one].",
    ),
    click.option("--pythonpath", metavar="DIRS", help="PYTHONPATH of all nodes  [default: as it is]."),
    click.option(
        "--prolog", metavar="FILE", help="Shell script that is sourced on each host before its nodes start."
    ),
    click.option("--debug", is_flag=True, help="As -vv, and p2pscoop.DEBUG is true."),
    click.option("--profile", is_flag=True, help="Write profile/NAME.prof for each node, for pstats."),
]


def _of_brokers(ctx: click.Context, param: click.Parameter, value: object) -> None:
    del ctx
    if value is not None:
        click.echo(
            f"p2pscoop: {param.opts[0]} is not needed: there is no broker, nodes talk to each other", err=True
        )


_OF_BROKERS: list[Callable[[F], F]] = [
    click.option(*names, expose_value=False, hidden=True, callback=_of_brokers)
    for names in (("-b", "--brokers"), ("--broker-hostname",), ("--broker-ports",), ("--backend",))
]


def launch_options(function: F) -> F:
    """Add the options to a command; it gets them as one argument, `launch`."""

    def with_options(**given: Any) -> object:
        launch = LaunchOptions(**{each.name: given.pop(each.name) for each in fields(LaunchOptions)})
        return function(launch=launch, **given)

    decorated: Any = with_options
    decorated.__doc__ = function.__doc__
    decorated.__name__ = function.__name__
    decorated.__click_params__ = getattr(function, "__click_params__", [])
    for option in reversed([*_GIVEN, *_OF_BROKERS]):
        decorated = option(decorated)
    return decorated  # type: ignore[no-any-return]  # it is what the decorators return
