"""Machines that a test makes: network namespaces, joined by a switch."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping

import pytest

needs_root = pytest.mark.skipif(
    not sys.platform.startswith("linux") or os.geteuid() != 0, reason="network namespaces are Linux's, and root's"
)


def ip(*arguments: str, namespace: str | None = None) -> None:
    within = [] if namespace is None else ["-n", namespace]
    done = subprocess.run(["ip", *within, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"


class Machines:
    """Namespaces with an interface `lan` each, all plugged into one switch, which has a namespace of its own."""

    def __init__(self) -> None:
        self._prefix = f"p2pd{os.getpid()}"
        self.names: list[str] = []
        self.processes: list[subprocess.Popen[str]] = []
        self.switch = self._add("s")
        ip("link", "add", "switch", "type", "bridge", "mcast_snooping", "0", namespace=self.switch)
        ip("link", "set", "switch", "up", namespace=self.switch)

    def _add(self, suffix: str) -> str:
        name = f"{self._prefix}{suffix}"
        ip("netns", "add", name)
        self.names.append(name)
        ip("link", "set", "lo", "up", namespace=name)
        return name

    def add(self, index: int) -> str:
        name = self._add(str(index))
        self.plug(name, "lan", f"10.213.9.{index}/24", f"fd00:213::{index}/64", f"fe80::9:{index}/64")
        return name

    def route_multicast(self, name: str) -> None:
        """Where multicast goes if no interface is named, as with the default route of a usual machine."""
        ip("route", "add", "224.0.0.0/4", "dev", "lan", namespace=name)

    def cut(self, name: str) -> None:
        """Pull the cable out of a machine."""
        ip("link", "set", "lan", "down", namespace=name)

    def plug(self, name: str, link: str, *addresses: str) -> None:
        port = f"{link}{len(self.names)}"
        ip("link", "add", link, "type", "veth", "peer", "name", port, "netns", self.switch, namespace=name)
        ip("link", "set", port, "master", "switch", "up", namespace=self.switch)
        ip("link", "set", link, "addrgenmode", "none", namespace=name)
        for address in addresses:
            # No detection of duplicates: an address may be used at once.
            extra = ["nodad"] if ":" in address else []
            ip("address", "add", address, "dev", link, *extra, namespace=name)
        ip("link", "set", link, "up", namespace=name)

    def start(self, namespace: str, program: str, *arguments: str) -> subprocess.Popen[str]:
        return self.run(namespace, sys.executable, "-c", textwrap.dedent(program), *arguments)

    def run(
        self, namespace: str, *command: str, environment: Mapping[str, str] = os.environ
    ) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            ["ip", "netns", "exec", namespace, *command],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        return process

    def remove(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


@pytest.fixture
def machines() -> Iterator[Machines]:
    made = Machines.__new__(Machines)
    try:
        try:
            made.__init__()  # type: ignore[misc]
        except (AssertionError, FileNotFoundError) as error:
            pytest.skip(f"NO NETWORK NAMESPACES HERE, so that nothing was found in them: {error}")
        yield made
    finally:
        made.remove()
