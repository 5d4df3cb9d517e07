"""A real Slurm of the test's own: a controller and two hosts, each in a network namespace of its own.

The first namespace has the controller, the host `h1` and whoever submits; the second the host `h2`, with an ssh
server. Nothing listens outside of them: Slurm's daemons and `srun` take every address of where they run. All files
are in one directory, and all processes are ended by their ids.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conftest import TIMEOUT_S, eventually
from tests.launch.conftest import Server, ip, start_server, stop_server

_SEARCHED = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scancel", "scontrol", "squeue", "sinfo")
_CONFIG = """
ClusterName=p2pscoop
SlurmctldHost=localhost({controller})
SlurmctldPort=26817
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={directory}/munge.socket
StateSaveLocation={directory}/state
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd-%n.pid
SlurmdSpoolDir={directory}/spool-%n
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
KillWait=5
SchedulerParameters=batch_sched_delay=0,sched_interval=1
SlurmdParameters=config_overrides
NodeName=h1 NodeHostname={machine} NodeAddr={controller} Port=26818 CPUs=2
NodeName=h2 NodeHostname={machine} NodeAddr={second} Port=26818 CPUs=2
PartitionName=all Nodes=h1,h2 Default=YES MaxTime=INFINITE State=UP
"""


class Cluster:
    """What a test does with it: it runs commands as a user at `h1` would."""

    def __init__(self, directory: Path, prefix: tuple[str, ...]) -> None:
        self._directory = directory
        self.prefix = prefix
        own = (str(directory / "bin"), str(Path(sys.executable).parent))
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("SLURM")},
            "PATH": ":".join((*own, _SEARCHED)),
            "SLURM_CONF": str(directory / "slurm.conf"),
        }

    def run(self, *command: str, **variables: str) -> str:
        """What a command prints. It has to succeed."""
        done = self.attempt(*command, **variables)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout

    def attempt(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            [*self.prefix, *command],
            env={**self.environment, **variables},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )

    def start(self, *command: str, **settings: object) -> subprocess.Popen[str]:
        """Start a command."""
        return subprocess.Popen(
            [*self.prefix, *command],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **settings,  # type: ignore[call-overload]
        )

    def job(self, number: str) -> dict[str, str]:
        """The fields of a job."""
        words = self.run("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def finish(self, number: str) -> dict[str, str]:
        """Wait until a job has ended. Its fields."""
        fields: dict[str, str] = {}

        def ended() -> bool:
            fields.update(self.job(number))
            return fields["JobState"] not in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING")

        eventually(ended, within_s=TIMEOUT_S)
        return fields


def missing() -> str | None:
    """Why there can be no Slurm here, for people."""
    absent = [name for name in _NEEDED if shutil.which(name, path=_SEARCHED) is None]
    if absent:
        return f"NO SLURM ({', '.join(absent)}): `apt-get install -y slurm-wlm munge` to test its jobs"
    if os.getuid() != 0 or None in (shutil.which("ip"), shutil.which("nsenter")):
        return "NO NETWORK NAMESPACES FOR SLURM: they need root, iproute2 and util-linux"
    return None


@contextlib.contextmanager
def running(directory: Path) -> Iterator[Cluster]:
    """Start all daemons, and end them."""
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    with _namespaces() as (names, addresses):
        prefixes = [_inside(name, directory / "hosts") for name in names]
        _write_hosts(directory / "hosts", addresses)
        ssh_directory = directory / "ssh"
        ssh_directory.mkdir()
        server = start_server(ssh_directory, addresses[1], prefixes[1])
        _write_files(directory, addresses, server)
        cluster = Cluster(directory, prefixes[0])
        daemons: list[subprocess.Popen[bytes]] = []
        try:
            munge = [f"--{kind}-file={directory}/munge.{kind}" for kind in ("key", "log", "pid", "seed")]
            daemons.append(
                _daemon(cluster, prefixes[0], "munged", "-F", "--force", "-S", f"{directory}/munge.socket", *munge)
            )
            eventually((directory / "munge.socket").exists)
            daemons.append(_daemon(cluster, prefixes[0], "slurmctld", "-D", "-c"))
            for prefix, host in zip(prefixes, ("h1", "h2"), strict=True):
                daemons.append(_daemon(cluster, prefix, "slurmd", "-D", "-N", host))
            try:
                eventually(lambda: _idle(cluster), within_s=30)
            except AssertionError:
                logs = "\n".join(path.read_text() for path in sorted(directory.glob("*.log")))
                pytest.fail(f"Slurm does not start:\n{logs}")
            yield cluster
            left = cluster.run("squeue", "--noheader")
            assert not left, f"jobs are left: {left}"
        finally:
            # A step that hangs would outlive the daemons.
            cluster.attempt("scancel", "--user=root")
            for process in reversed(daemons):
                process.terminate()
            for process in daemons:
                try:
                    process.wait(timeout=20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            stop_server(server)


def _inside(name: str, hosts: Path) -> tuple[str, ...]:
    """What runs a command in a namespace, with names for its hosts.

    Not `ip netns exec`: it mounts a new /sys, and slurmd wants the control groups of the old one.
    """
    mount = f'mount --bind {hosts} /etc/hosts && exec "$@"'
    return ("nsenter", f"--net=/run/netns/{name}", "unshare", "--mount", "sh", "-c", mount, "sh")


def _write_hosts(path: Path, addresses: list[str]) -> None:
    lines = [f"127.0.0.1 localhost {os.uname().nodename}"]
    lines += [f"{address} h{index}" for index, address in enumerate(addresses, 1)]
    path.write_text("\n".join(lines) + "\n")


def _idle(cluster: Cluster) -> bool:
    done = cluster.attempt("sinfo", "--noheader", "--Node", "--format=%T")
    return done.stdout.split() == ["idle", "idle"]


def _daemon(cluster: Cluster, prefix: tuple[str, ...], *command: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*prefix, *command],
        env=cluster.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _write_files(directory: Path, addresses: list[str], server: Server) -> None:
    (directory / "state").mkdir()
    key = directory / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))
    machine = os.uname().nodename.partition(".")[0]
    (directory / "slurm.conf").write_text(
        _CONFIG.format(directory=directory, controller=addresses[0], second=addresses[1], machine=machine)
    )
    # What a user has in ~/.ssh.
    (directory / "ssh_config").write_text(
        f"Host h2\n HostKeyAlias [{server.address}]:{server.port}\n Port {server.port}\n User {server.user}\n"
        f" IdentityFile {server.identity}\n IdentitiesOnly yes\n UserKnownHostsFile {server.known_hosts}\n"
        " GlobalKnownHostsFile /dev/null\n ConnectTimeout 10\n"
    )
    wrapper = directory / "bin" / "ssh"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {directory}/ssh_config "$@"\n')
    wrapper.chmod(0o755)


@contextlib.contextmanager
def _namespaces() -> Iterator[tuple[list[str], list[str]]]:
    """Two, with a link between them, and none to anywhere else."""
    names = [f"p2sl{os.getpid()}-{index}" for index in (1, 2)]
    addresses = ["10.214.1.1", "10.214.1.2"]
    made = []
    try:
        for name in names:
            done = ip(f"netns add {name}")
            if done.returncode:
                pytest.skip(f"NO NETWORK NAMESPACES FOR SLURM: {done.stderr.decode().strip()}")
            made.append(name)
        commands = [f"link add s1 netns {names[0]} type veth peer name s2 netns {names[1]}"]
        for index, (name, address) in enumerate(zip(names, addresses, strict=True), 1):
            commands += [
                f"-n {name} addr add {address}/24 dev s{index}",
                f"-n {name} link set s{index} up",
                f"-n {name} link set lo up",
            ]
        for command in commands:
            done = ip(command)
            assert done.returncode == 0, done.stderr
        yield names, addresses
        for name in names:
            eventually(lambda name=name: not _processes(name))  # type: ignore[misc]
    finally:
        for name in made:
            for pid in _processes(name):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            ip(f"netns del {name}")


def _processes(name: str) -> list[int]:
    return [int(word) for word in ip(f"netns pids {name}").stdout.split()]
