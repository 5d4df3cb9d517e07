"""`run` and `join`: a supervisor each, with what signals mean to it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NoReturn

import click

from p2pscoop import _machine
from p2pscoop._process_config import (
    EXIT_UNREACHABLE,
    ORIGIN_SOCKET,
    ORIGIN_VARIABLE,
    NodeConfig,
    OriginConfig,
    local_nodes,
)
from p2pscoop._situation import DEBUG_VARIABLE
from p2pscoop._supervisor import LEAVE_GRACE_S, Supervisor, python_command
from p2pscoop.cli._arrange import GATHER_S, Arrangement, profile_directory
from p2pscoop.cli._membership import Membership
from p2pscoop.cli._options import LaunchOptions
from p2pscoop.launch.fleet import Fleet

__all__ = ["join", "run"]

_TERMINATE_GRACE_S = 5.0
_POLL_S = 0.01

# What the supervisor's events may be, beside those of its nodes.
_SCRIPT_ENDED = "script ended"
_INTERRUPTED = "interrupted"
_TERMINATED = "terminated"
_WARNED = "warned"
_OUT_OF_PATIENCE = "out of patience"


def run(
    nodes: int, arrangement: Arrangement, options: LaunchOptions, script: str, arguments: Sequence[str]
) -> NoReturn:
    """Start the origin with the script, and the other nodes; end with the script's status.

    Args:
        nodes: on this machine, that of the script included.
        arrangement: who listens where, and the other hosts.
        options: how nodes are started.
        script: path of the program.
        arguments: its arguments.
    """
    listen, profile, security = arrangement.listen, profile_directory(options), arrangement.security
    environment = _machine.limited_environment(nodes, _environment(options))
    if options.nice:
        _be_nice(options.nice)
    directory = _machine.make_directory()
    tether, ours = os.pipe()
    config = OriginConfig(
        directory,
        listen,
        security.keys,
        security.cluster,
        options.log_level,
        profile,
        shared=nodes > 1 or bool(arrangement.hosts) or arrangement.expects > nodes,
        spare_port=arrangement.spare_port,
        expects=arrangement.expects,
        patience_s=GATHER_S,
    )
    locals_ = [
        replace(node, log_level=options.log_level, profile=profile)
        for node in local_nodes(
            directory,
            nodes - 1,
            listen=listen and listen[0],
            ports=arrangement.ports,
            keys=security.keys,
            cluster=security.cluster,
        )
    ]
    supervisor = Supervisor(locals_, environment)
    fleet = Fleet(arrangement.hosts, supervisor)
    try:
        if not _reach(fleet, supervisor, options):
            sys.exit(EXIT_UNREACHABLE)
        origin = subprocess.Popen(
            python_command("p2pscoop._script", script, *arguments),
            env={**environment, ORIGIN_VARIABLE: str(tether)},
            pass_fds=(tether,),
        )
        os.close(tether)
        os.write(ours, config.to_line())
        _watch_signals(supervisor)
        if hasattr(signal, "SIGUSR1"):
            signal.signal(signal.SIGUSR1, lambda *_: supervisor.post(_WARNED))
        supervisor.start()
        if arrangement.hosts:
            threading.Thread(target=_order, args=(fleet, directory), daemon=True).start()
        status = _await_script(supervisor, origin)
        if profile is not None:
            # Nodes write their profiles when they leave, not when their tethers are cut.
            fleet.leave()
            supervisor.leave()
            _later(supervisor, LEAVE_GRACE_S)
            supervisor.wait()
    finally:
        os.close(ours)
        fleet.stop()
        supervisor.stop()
        _machine.remove_directory(directory)
    _end(status)


def _environment(options: LaunchOptions) -> dict[str, str]:
    """What the options add to the environment of this machine's nodes, the script's included."""
    environment = dict(os.environ)
    if options.prolog is not None:
        environment = sourced(options.prolog, environment)
    if options.pythonpath is not None:
        environment["PYTHONPATH"] = options.pythonpath
    if options.debug:
        environment[DEBUG_VARIABLE] = "1"
    return environment


def sourced(path: str, environment: Mapping[str, str]) -> dict[str, str]:
    """The environment as a shell script leaves it. What the script prints goes to stderr."""
    if os.path.isdir(path):  # Some shells source a directory without complaint.
        raise click.ClickException(f"--prolog: {path} is a directory, not a shell script")
    done = subprocess.run(
        ["sh", "-c", '. "$1" >&2 || exit; exec env -0', "sh", os.path.abspath(path)],
        env=environment,
        stdout=subprocess.PIPE,
        check=False,
    )
    if done.returncode:
        raise click.ClickException(f"--prolog: {path} ended with status {done.returncode}")
    pairs = (each.partition("=") for each in os.fsdecode(done.stdout).split("\0") if each)
    return {name: value for name, _, value in pairs}


def _be_nice(level: int) -> None:
    try:
        os.nice(level)
    except PermissionError as error:
        raise click.ClickException(f"--nice: {level} is for the superuser only: give 0 to 19") from error


def _reach(fleet: Fleet, supervisor: Supervisor, options: LaunchOptions) -> bool:
    """Connect to the other hosts. Whether to go on."""
    failures = fleet.reach()
    for host, reason in failures:
        supervisor.say(f"{host.name} cannot be reached: {reason}")
    if failures and not options.allow_missing_hosts:
        supervisor.say("nothing was started; --allow-missing-hosts goes on with the hosts that are there")
        return False
    return True


def _order(fleet: Fleet, directory: str) -> None:
    """Have the other hosts start their nodes as soon as the origin listens. It ends with this process."""
    while not os.path.exists(os.path.join(directory, ORIGIN_SOCKET)):
        time.sleep(_POLL_S)
    fleet.order()


def _await_script(supervisor: Supervisor, origin: subprocess.Popen[bytes]) -> int:
    def watch() -> None:
        origin.wait()
        supervisor.post(_SCRIPT_ENDED)

    threading.Thread(target=watch, daemon=True).start()
    while True:
        event = supervisor.wait(for_ever=True)
        if event == _SCRIPT_ENDED:
            return origin.returncode
        if event == _INTERRUPTED:
            # At a terminal the script got the signal as well; else it was meant for this process only.
            if not _in_foreground():
                origin.send_signal(signal.SIGINT)
        elif event == _TERMINATED:
            origin.terminate()
            _later(supervisor, _TERMINATE_GRACE_S)
        elif event == _WARNED:
            # A scheduler says that time is nearly up. What is to be saved, the script knows.
            origin.send_signal(signal.SIGUSR1)
        elif event == _OUT_OF_PATIENCE:
            origin.kill()


def join(membership: Membership, nodes: int, patience_s: float = 0.0) -> NoReturn:
    """Add nodes to a cluster, and end when they have left.

    Args:
        membership: which cluster, and how it is reached.
        nodes: how many.
        patience_s: how long they try to be let in; 0: for ever.
    """
    directory = _machine.make_directory()
    configs = [replace(each, patience_s=patience_s) for each in _joining(membership, directory, nodes)]
    supervisor = Supervisor(configs, _machine.limited_environment(nodes))
    status = 0
    try:
        _watch_signals(supervisor)
        if hasattr(signal, "SIGUSR1"):
            signal.signal(signal.SIGUSR1, lambda *_: supervisor.post(_TERMINATED))
        supervisor.start()
        leaving = False
        while True:
            event = supervisor.wait()
            if event is None:
                status = supervisor.exit_code
                if not leaving and status == 0:
                    supervisor.say("the computation has ended")
                break
            if leaving:
                supervisor.say("stopping now; tasks that were running here will run again elsewhere")
                break
            leaving = True
            if event == _INTERRUPTED:
                supervisor.say("finishing the tasks that run here; press Ctrl-C again to stop now")
            supervisor.leave()
            _later(supervisor, LEAVE_GRACE_S)
    finally:
        supervisor.stop()
        _machine.remove_directory(directory)
    _end(status)


def _joining(membership: Membership, directory: str, nodes: int) -> list[NodeConfig]:
    """Each node knows its neighbours' sockets beforehand: those of one machine find each other by themselves."""
    names = [f"j{os.getpid()}.{index}" for index in range(1, nodes + 1)]
    founds = not membership.seeds
    return [
        NodeConfig(
            name,
            directory,
            (*membership.seeds, *(f"ipc://{directory}/{other}.ipc" for other in names if other != name)),
            membership.listen[0],
            port=membership.listen[1] if name == names[0] else 0,
            keys=membership.security.keys,
            cluster=membership.security.cluster,
            standing=True,
            founder=founds,
            socket_name=f"{name}.ipc",
            interfaces=membership.interfaces if name == names[0] else (),
            complain=name == names[0] and not founds,
        )
        for name in names
    ]


def _watch_signals(supervisor: Supervisor) -> None:
    signal.signal(signal.SIGINT, lambda *_: supervisor.post(_INTERRUPTED))
    signal.signal(signal.SIGTERM, lambda *_: supervisor.post(_TERMINATED))


def _later(supervisor: Supervisor, delay_s: float) -> None:
    timer = threading.Timer(delay_s, supervisor.post, (_OUT_OF_PATIENCE,))
    timer.daemon = True
    timer.start()


def _in_foreground() -> bool:
    """Whether a Ctrl-C at the terminal reaches this process group."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)


def _end(status: int) -> NoReturn:
    """End with this status; a signal's as shells report it."""
    sys.exit(status if status >= 0 else 128 - status)
