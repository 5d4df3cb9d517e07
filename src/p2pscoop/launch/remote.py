"""What `p2pscoop run` starts on another host: a supervisor of nodes there, `python -m p2pscoop.launch.remote`.

It says on stdout that it is ready, and then does what a line of JSON on stdin says. After that, stdin is its
tether: when it ends, because the launcher, the connection or ssh is gone, the nodes end, and nothing is left.
What has to be secret comes the same way: not in a command line, not in an environment, not in a file.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from dataclasses import asdict, dataclass, field

from p2pscoop import _machine
from p2pscoop._process_config import NodeConfig
from p2pscoop._supervisor import Supervisor
from p2pscoop.errors import ConfigurationError

__all__ = ["READY", "RemoteConfig", "main"]

READY = b"p2pscoop is ready for its orders"
"""What the process says first. A login script may have printed something before."""

_UNTETHERED = "untethered"
_TERMINATED = "terminated"


@dataclass(frozen=True, slots=True)
class RemoteConfig:
    """The orders.

    Attributes:
        label: of the host; its nodes are `label.1`, `label.2` and so on.
        count: of nodes; None: one for each usable core.
        seeds: transport addresses to join at.
        listen: address at which the nodes listen; None: that from which the first seed is reached.
        keys: of the cluster, as text; none if its connections are not secured.
        cluster: its name.
        ports: for each node the port; none if any will do.
        nice: added to the niceness.
        log_level: of the package's logger.
        environment: variables for the nodes.
        profile: directory for a profile of each node, or None.
    """

    label: str
    count: int | None
    seeds: tuple[str, ...]
    listen: str | None
    keys: tuple[str, ...] = field(default=(), repr=False)
    cluster: str = "default"
    ports: tuple[int, ...] = ()
    nice: int = 0
    log_level: int = logging.WARNING
    environment: dict[str, str] = field(default_factory=dict)
    profile: str | None = None

    def to_line(self) -> bytes:
        """One line of JSON."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> RemoteConfig:
        """Undo `to_line`."""
        fields = json.loads(line)
        tuples = {name: tuple(fields[name]) for name in ("seeds", "keys", "ports")}
        return cls(**{**fields, **tuples})


def main() -> None:
    """Run the nodes of this host until they have left, or the tether is cut."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stdout.buffer.write(READY + b"\n")
    sys.stdout.buffer.flush()
    tether = sys.stdin.buffer
    line = tether.readline()
    if not line:
        return
    config = RemoteConfig.from_line(line)
    if config.nice:
        os.nice(config.nice)
    os.environ.update(config.environment)
    try:
        count = _machine.node_count() if config.count is None else config.count
        listen = config.listen or _machine.address_towards(*_machine.split_address(config.seeds[0]))
    except ConfigurationError as error:
        print(f"p2pscoop: {error}", file=sys.stderr)
        sys.exit(1)
    directory = _machine.make_directory()
    nodes = [
        NodeConfig(
            f"{config.label}.{index}",
            directory,
            config.seeds,
            listen,
            keys=config.keys,
            cluster=config.cluster,
            port=config.ports[index - 1] if config.ports else 0,
            log_level=config.log_level,
            profile=config.profile,
        )
        for index in range(1, count + 1)
    ]
    supervisor = Supervisor(nodes, _machine.limited_environment(count))
    signal.signal(signal.SIGTERM, lambda *_: supervisor.post(_TERMINATED))
    threading.Thread(target=_watch, args=(supervisor,), daemon=True).start()
    supervisor.start()
    supervisor.wait()
    status = supervisor.exit_code
    supervisor.stop()
    _machine.remove_directory(directory)
    # The watching thread may still be reading; there is nothing to take down.
    os._exit(status)


def _watch(supervisor: Supervisor) -> None:
    for line in sys.stdin.buffer:
        if line.strip() == b"leave":
            supervisor.leave()
    supervisor.post(_UNTETHERED)


if __name__ == "__main__":
    main()
