"""The command lines that start nodes on another host."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from p2pscoop.launch.hosts import Host

__all__ = ["Shell", "command"]


@dataclass(frozen=True, slots=True)
class Shell:
    """How other hosts are reached, and what is run there.

    Attributes:
        executable: of ssh.
        options: each as after `ssh -o`.
        rsh: whether to use `rsh`, which knows none of ssh's options.
        directory: working directory on the hosts.
        interpreter: of Python there.
        pythonpath: value of PYTHONPATH there, or None.
        prolog: path of a shell script there, which is sourced first, or None.
    """

    executable: str = "ssh"
    options: tuple[str, ...] = ()
    rsh: bool = False
    directory: str = "."
    interpreter: str = "python3"
    pythonpath: str | None = None
    prolog: str | None = None


def command(
    shell: Shell, host: Host, *, forwards: Sequence[int] = (), reverse_forwards: Sequence[int] = ()
) -> list[str]:
    """The command that starts `launch.remote` on a host; its stdin and stdout are those of the process there.

    Args:
        shell: how.
        host: where.
        forwards: ports of the host that are to be reached at the same port of this machine.
        reverse_forwards: ports of this machine that are to be reached at the same port of the host.
    """
    # The directory may not exist there: the nodes then run where ssh puts them, and find the program's modules if
    # these are installed. A prolog or an interpreter that is missing is an error.
    steps = [f"cd {shlex.quote(shell.directory)} 2>/dev/null || true"]
    if shell.prolog is not None:
        steps.append(f". {shlex.quote(shell.prolog)} || exit 1")
    if shell.pythonpath is not None:
        steps.append(f"export PYTHONPATH={shlex.quote(shell.pythonpath)}")
    steps.append(f"exec {shlex.quote(shell.interpreter)} -P -m p2pscoop.launch.remote")
    # Whatever the login shell is: this is for sh.
    script = f"exec sh -c {shlex.quote('; '.join(steps))}"
    if shell.rsh:
        user, at, name = host.name.rpartition("@")
        return ["rsh", *(("-l", user) if at else ()), name, script]
    arguments = [shell.executable, "-T", "-o", "BatchMode=yes", "-o", "ServerAliveInterval=15"]
    for option in shell.options:
        arguments += ["-o", option]
    if forwards or reverse_forwards:
        arguments += ["-o", "ExitOnForwardFailure=yes"]
    for port in forwards:
        arguments += ["-L", f"127.0.0.1:{port}:127.0.0.1:{port}"]
    for port in reverse_forwards:
        arguments += ["-R", f"127.0.0.1:{port}:127.0.0.1:{port}"]
    if host.port is not None:
        arguments += ["-p", str(host.port)]
    return [*arguments, "--", host.name, script]
