"""What this process may use of its machine: cores, threads of numeric libraries, private directories."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from p2pscoop.errors import ConfigurationError

__all__ = ["THREAD_LIMITS", "host_name", "limited_environment", "make_directory", "node_count", "usable_cores"]

NODES_VARIABLE = "P2PSCOOP_NODES"
NODES_MAX = 10_000
CONNECTIONS_VARIABLE = "P2PSCOOP_CONNECTIONS"

THREAD_LIMITS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)
"""Variables by which numeric libraries are told how many threads to use; read when they are imported."""


def usable_cores(root: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores that this process may use: what affinity and the control group leave, at least 1.

    Args:
        root: where the control groups are mounted.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quota = _cgroup_quota(root)
    return max(1, cores if quota is None else min(cores, math.ceil(quota)))


def _cgroup_quota(root: Path) -> float | None:
    """Cores' worth of time that the control group allows, or None. The tightest on the way up counts."""
    quotas = []
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            quotas += [_quota_v2(folder) for folder in _upwards(root, path)]
        elif "cpu" in controllers.split(","):
            quotas += [_quota_v1(folder) for folder in _upwards(root / "cpu", path)]
    found = [quota for quota in quotas if quota is not None]
    return min(found) if found else None


def _upwards(root: Path, path: str) -> list[Path]:
    folder = root / path.lstrip("/")
    return [folder, *(parent for parent in folder.parents if parent.is_relative_to(root))]


def _quota_v2(folder: Path) -> float | None:
    with contextlib.suppress(OSError, ValueError):
        limit, period = (folder / "cpu.max").read_text().split()
        if limit != "max":
            return int(limit) / int(period)
    return None


def _quota_v1(folder: Path) -> float | None:
    with contextlib.suppress(OSError, ValueError):
        limit = int((folder / "cpu.cfs_quota_us").read_text())
        if limit > 0:
            return limit / int((folder / "cpu.cfs_period_us").read_text())
    return None


def node_count(environment: Mapping[str, str] = os.environ) -> int:
    """How many nodes to start on this machine: `P2PSCOOP_NODES`, or the usable cores.

    Raises:
        ConfigurationError: the variable is not a positive number.
    """
    text = environment.get(NODES_VARIABLE)
    if text is None:
        return usable_cores()
    try:
        count = int(text)
    except ValueError:
        count = 0
    if not 1 <= count <= NODES_MAX:
        raise ConfigurationError(
            f"{NODES_VARIABLE} is {text!r}; set it to a number of nodes from 1 to {NODES_MAX}"
        )
    return count


def connections_max(default: int, environment: Mapping[str, str] = os.environ) -> int:
    """To how many peers a node keeps a connection: `P2PSCOOP_CONNECTIONS`, or the default.

    Raises:
        ConfigurationError: the variable is not a number from 1.
    """
    text = environment.get(CONNECTIONS_VARIABLE)
    if text is None:
        return default
    if not text.isdecimal() or int(text) < 1:
        raise ConfigurationError(
            f"{CONNECTIONS_VARIABLE} is {text!r}; set it to a number of connections, 1 or more"
        )
    return int(text)


def limited_environment(nodes: int, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment for so many nodes: numeric libraries get a share of the cores, if the user set nothing."""
    share = str(max(1, usable_cores() // nodes))
    limited = {name: share for name in THREAD_LIMITS if name not in environment}
    return {**environment, **limited}


def make_directory() -> str:
    """A new private directory (0700) for the sockets of this machine's nodes, with a short path."""
    base = tempfile.gettempdir()
    if len(base) > 60 and os.path.isdir("/tmp"):
        base = "/tmp"
    return tempfile.mkdtemp(prefix="p2pscoop-", dir=base)


def remove_directory(path: str | None) -> None:
    """Remove such a directory, if there is one, and the sockets in it."""
    if path is not None:
        shutil.rmtree(path, ignore_errors=True)


def remove_traces(directory: str, addresses: Sequence[str]) -> None:
    """Remove the sockets of a process that is about to vanish, and the directory if nobody listens there."""
    for address in addresses:
        if address.startswith("ipc://"):
            with contextlib.suppress(OSError):
                os.unlink(address.removeprefix("ipc://"))
    with contextlib.suppress(OSError):
        for path in Path(directory).iterdir():
            if _is_abandoned(path):
                # Of a process that was killed, and could not do so itself.
                path.unlink(missing_ok=True)
        os.rmdir(directory)


def _is_abandoned(path: Path) -> bool:
    """Whether nobody listens at this socket of a file."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False


def address_towards(host: str, port: int) -> str:
    """The address of this machine from which another is reached. Nothing is sent.

    Raises:
        ConfigurationError: the host has no address, or there is no way there.
    """
    reason: OSError | None = None
    for family, address in resolve(host, port):
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect(address)
            except OSError as error:
                reason = error
                continue
            return str(probe.getsockname()[0])
    raise ConfigurationError(f"{host} cannot be reached from here: {reason}")


def resolve(host: str, port: int) -> list[tuple[int, Any]]:
    """The addresses of a host, as (family, address) for sockets.

    Raises:
        ConfigurationError: it has none.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigurationError(f"{host!r} is not the name or address of a host: {error.strerror}") from error
    return [(family, address) for family, _, _, _, address in found]


def split_address(address: str) -> tuple[str, int]:
    """Host and port of a transport address, or of HOST:PORT."""
    host, _, port = address.rpartition("//")[2].rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def join_address(host: str, port: int) -> str:
    """HOST:PORT, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def host_name() -> str:
    """The name of this machine."""
    return socket.gethostname() or "localhost"


def python_version() -> str:
    """Implementation and minor version: code is pickled from one node to another only if they agree."""
    return f"{sys.implementation.name} {sys.version_info.major}.{sys.version_info.minor}"
