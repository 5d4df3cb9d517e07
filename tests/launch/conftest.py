"""A real ssh server of the test's own, on this machine's loopback or in a network namespace."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest


class Server(NamedTuple):
    """An ssh server, and what a client needs to be let in."""

    address: str
    port: int
    user: str
    known_hosts: Path
    identity: Path
    process: subprocess.Popen[bytes]

    @property
    def host(self) -> str:
        """As `--hosts` takes it."""
        return f"{self.user}@{self.address}"

    @property
    def options(self) -> tuple[str, ...]:
        """Those of `run` that lead there."""
        settings = {
            "Port": self.port,
            "UserKnownHostsFile": self.known_hosts,
            "GlobalKnownHostsFile": "/dev/null",
            "IdentityFile": self.identity,
            "IdentitiesOnly": "yes",
            "ConnectTimeout": 10,
        }
        return tuple(word for key, value in settings.items() for word in ("--ssh-option", f"{key}={value}"))


def start_server(directory: Path, address: str, prefix: tuple[str, ...]) -> Server:
    sshd = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if sshd is None or shutil.which("ssh") is None:
        pytest.skip("NO SSH SERVER: install openssh-server to test nodes on other hosts")
    if os.getuid() == 0:
        os.makedirs("/run/sshd", exist_ok=True)
    for key in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / key], check=True)
    if not address.startswith("127."):
        port = 22022  # It has the network to itself.
    else:
        with socket.socket() as probe:
            probe.bind((address, 0))
            port = probe.getsockname()[1]
    (directory / "config").write_text(
        f"ListenAddress {address}\nPort {port}\nHostKey {directory}/host\nPidFile none\nUsePAM no\n"
        f"StrictModes no\nAuthorizedKeysFile {directory}/user.pub\nPasswordAuthentication no\n"
        "PermitRootLogin yes\n"
    )
    known = directory / "known_hosts"
    known.write_text(f"[{address}]:{port} {(directory / 'host.pub').read_text()}")
    process = subprocess.Popen(
        [*prefix, sshd, "-D", "-e", "-f", str(directory / "config")], stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    for line in process.stderr:
        if b"Server listening" in line:
            break
    user = pwd.getpwuid(os.getuid()).pw_name
    return Server(address, port, user, known, directory / "user", process)


def stop_server(server: Server) -> None:
    server.process.terminate()
    server.process.communicate(timeout=20)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """At 127.0.0.1."""
    directory = tmp_path / "ssh"
    directory.mkdir()
    started = start_server(directory, "127.0.0.1", ())
    yield started
    stop_server(started)


@pytest.fixture
def far_servers(tmp_path: Path) -> Iterator[list[Server]]:
    """Two, in network namespaces of their own, of which neither reaches the other, nor a port here."""
    if os.getuid() != 0 or shutil.which("ip") is None:
        pytest.skip("NO NETWORK NAMESPACES: they need root and iproute2")
    servers: list[Server] = []
    names: list[str] = []
    links: list[str] = []
    try:
        for index in (1, 2):
            name = f"p2ps{os.getpid()}-{index}"
            made = ip(f"netns add {name}")
            if made.returncode:
                pytest.skip(f"NO NETWORK NAMESPACES: {made.stderr.decode().strip()}")
            names.append(name)
            link, subnet = f"p2{os.getpid() % 100000}{index}", f"10.213.{index}"
            links.append(f"{link}a")
            for command in (
                f"link add {link}a type veth peer name {link}b netns {name}",
                f"addr add {subnet}.1/24 dev {link}a",
                f"link set {link}a up",
                f"-n {name} addr add {subnet}.2/24 dev {link}b",
                f"-n {name} link set {link}b up",
                f"-n {name} link set lo up",
            ):
                done = ip(command)
                assert done.returncode == 0, done.stderr
            directory = tmp_path / name
            directory.mkdir()
            servers.append(start_server(directory, f"{subnet}.2", ("ip", "netns", "exec", name)))
        yield servers
    finally:
        for started in servers:
            stop_server(started)
        for link in links:
            ip(f"link del {link}")  # With the namespace it would go too, but later.
        for name in names:
            ip(f"netns del {name}")


def ip(arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["ip", *arguments.split()], capture_output=True, check=False)
