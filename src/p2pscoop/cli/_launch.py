"""`run` and `join`: a supervisor each, with what signals mean to it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import NoReturn

from p2pscoop import _machine
from p2pscoop._process_config import ORIGIN_VARIABLE, NodeConfig, OriginConfig, local_nodes
from p2pscoop._supervisor import LEAVE_GRACE_S, Supervisor, python_command

__all__ = ["join", "run"]

_TERMINATE_GRACE_S = 5.0

# What the supervisor's events may be, beside those of its nodes.
_SCRIPT_ENDED = "script ended"
_INTERRUPTED = "interrupted"
_TERMINATED = "terminated"
_OUT_OF_PATIENCE = "out of patience"


def run(nodes: int, listen: tuple[str, int] | None, script: str, arguments: Sequence[str]) -> NoReturn:
    """Start the origin with the script, and the other nodes; end with the script's status."""
    directory = _machine.make_directory()
    environment = _machine.limited_environment(nodes)
    tether, ours = os.pipe()
    config = OriginConfig(directory, tether, listen)
    supervisor = Supervisor(local_nodes(directory, nodes - 1, listen=listen and listen[0]), environment)
    try:
        origin = subprocess.Popen(
            python_command("p2pscoop._script", script, *arguments),
            env={**environment, ORIGIN_VARIABLE: config.to_json()},
            pass_fds=(tether,),
        )
        os.close(tether)
        _watch_signals(supervisor)
        supervisor.start()
        status = _await_script(supervisor, origin)
    finally:
        os.close(ours)
        supervisor.stop()
        _machine.remove_directory(directory)
    _end(status)


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
        elif event == _OUT_OF_PATIENCE:
            origin.kill()


def join(seeds: Sequence[tuple[str, int]], nodes: int) -> NoReturn:
    """Add nodes to a running computation, and end when they have left."""
    directory = _machine.make_directory()
    addresses = tuple(f"tcp://{_bracketed(host)}:{port}" for host, port in seeds)
    host = seeds[0][0]
    configs = [
        NodeConfig(f"j{os.getpid()}.{index}", directory, addresses, host, complain=index == 1)
        for index in range(1, nodes + 1)
    ]
    supervisor = Supervisor(configs, _machine.limited_environment(nodes))
    status = 0
    try:
        _watch_signals(supervisor)
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


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


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
