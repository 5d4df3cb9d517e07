"""The connections of a run to its other hosts: one ssh process each.

First all hosts are reached, so that one that cannot be is known before the script has done anything. When the
script's node listens, each host gets its orders. What comes back is printed line by line: the nodes' own output
with their names already before it, what ssh itself says with the name of the host.
"""

from __future__ import annotations

import contextlib
import queue
import re
import subprocess
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import IO

from p2pscoop._supervisor import STOP_GRACE_S, Supervisor
from p2pscoop.launch.remote import READY, RemoteConfig

__all__ = ["Fleet", "RemoteHost"]

START_S = 60.0
"""How long a host may take until it is ready: logging in, a prolog, starting Python from a shared file system."""
_ENDING_S = 5.0
"""How long a host may take to stop its nodes, once its tether is cut."""
_KEPT_LINES = 20
_FORWARD_FAILED = re.compile(rb"channel \d+: open failed: |connect_to \S+ port \d+: failed\.")
"""What ssh says of a connection to a forwarded port, in either direction, whose node has just gone: no news."""


class RemoteHost:
    """One host, and the process that leads there.

    Args:
        name: for people.
        command: that starts `launch.remote` there.
        config: its orders.
    """

    def __init__(self, name: str, command: Sequence[str], config: RemoteConfig) -> None:
        self.name = name
        self.command = list(command)
        self.config = config
        self.process: subprocess.Popen[bytes] | None = None
        self.ready = False
        self.said: deque[str] = deque(maxlen=_KEPT_LINES)
        """What came before it was ready: why it was not, if it never was."""
        self.readers: list[threading.Thread] = []


class Fleet:
    """The other hosts of a run.

    Args:
        hosts: which.
        supervisor: of the local nodes; prints for all.
    """

    def __init__(self, hosts: Sequence[RemoteHost], supervisor: Supervisor) -> None:
        self._hosts = list(hosts)
        self._supervisor = supervisor
        self._news: queue.SimpleQueue[RemoteHost] = queue.SimpleQueue()
        self._stopping = False

    def reach(self) -> list[tuple[RemoteHost, str]]:
        """Connect to all hosts, and wait until each is ready or has failed. Those that failed, and why."""
        for host in self._hosts:
            self._start(host)
        failed: dict[RemoteHost, str] = {}
        deadline = time.monotonic() + START_S
        while len(failed) + sum(host.ready for host in self._hosts) < len(self._hosts):
            try:
                host = self._news.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                for host in self._hosts:
                    if not host.ready and host not in failed:
                        failed[host] = f"is not ready after {START_S:.0f} s"
                break
            if not host.ready and host not in failed:
                failed[host] = self._why(host)
        for host in failed:
            self._hosts.remove(host)
            self._end([host])
        return list(failed.items())

    def order(self) -> None:
        """Have the hosts start their nodes. The script's node has to be there."""
        for host in self._hosts:
            assert host.process is not None
            assert host.process.stdin is not None
            with contextlib.suppress(OSError):  # Lost meanwhile: said when its output ends.
                host.process.stdin.write(host.config.to_line())
                host.process.stdin.flush()

    def leave(self) -> None:
        """Have the nodes finish what they run, and go; wait for them."""
        self._stopping = True
        for host in self._hosts:
            assert host.process is not None
            assert host.process.stdin is not None
            with contextlib.suppress(OSError):
                host.process.stdin.write(b"leave\n")
                host.process.stdin.flush()
        deadline = time.monotonic() + _ENDING_S
        for host in self._hosts:
            assert host.process is not None
            with contextlib.suppress(subprocess.TimeoutExpired):
                host.process.wait(max(0.0, deadline - time.monotonic()))

    def stop(self) -> None:
        """Cut all tethers. When this returns, no connection is left, and no node of a host that is there."""
        self._stopping = True
        self._end(self._hosts)
        self._hosts.clear()

    def _start(self, host: RemoteHost) -> None:
        try:
            host.process = subprocess.Popen(
                host.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                # A Ctrl-C at the terminal is for the script, and for the launcher.
                start_new_session=True,
            )
        except OSError as error:
            host.said.append(f"{host.command[0]} cannot be started: {error.strerror}")
            self._news.put(host)
            return
        assert host.process.stdout is not None
        assert host.process.stderr is not None
        host.readers = [
            threading.Thread(target=self._read_output, args=(host, host.process.stdout), daemon=True),
            threading.Thread(target=self._read_errors, args=(host, host.process.stderr), daemon=True),
        ]
        for thread in host.readers:
            thread.start()

    def _read_output(self, host: RemoteHost, source: IO[bytes]) -> None:
        with contextlib.suppress(OSError, ValueError):
            for line in source:
                if host.ready:
                    self._supervisor.relay(line, error=False)
                elif line.strip() == READY:
                    host.ready = True
                    self._news.put(host)
                else:
                    host.said.append(line.decode(errors="replace").rstrip())
        if not host.ready:
            self._news.put(host)
            return
        assert host.process is not None
        status = host.process.wait()
        if status and not self._stopping:
            self._supervisor.say(
                f"{host.name}: the connection ended with status {status}; what ran there runs again elsewhere"
            )

    def _read_errors(self, host: RemoteHost, source: IO[bytes]) -> None:
        label = f"[{host.name}] ".encode()
        with contextlib.suppress(OSError, ValueError):
            for line in source:
                if not host.ready:
                    host.said.append(line.decode(errors="replace").rstrip())
                elif line.startswith((b"[", b"p2pscoop: ")):
                    self._supervisor.relay(line, error=True)
                elif not (self._stopping or _FORWARD_FAILED.match(line)):
                    self._supervisor.relay(label + line, error=True)

    def _why(self, host: RemoteHost) -> str:
        """Why a host is not ready. Its process has ended, or never was."""
        if host.process is None:
            return "; ".join(host.said)
        status = host.process.wait()
        host.readers[1].join(STOP_GRACE_S)
        said = "\n".join(f"    {line}" for line in host.said if line)
        return f"{host.command[0]} ended with status {status}" + (f":\n{said}" if said else ", and said nothing")

    def _end(self, hosts: Sequence[RemoteHost]) -> None:
        running = [host for host in hosts if host.process is not None]
        for host in running:
            assert host.process is not None
            assert host.process.stdin is not None
            with contextlib.suppress(OSError):
                host.process.stdin.close()
        deadline = time.monotonic() + _ENDING_S
        for host in running:
            assert host.process is not None
            try:
                host.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                host.process.kill()
                host.process.wait()
            for thread in host.readers:
                thread.join(STOP_GRACE_S)
            for stream in (host.process.stdout, host.process.stderr):
                if stream is not None:
                    stream.close()
