"""The process of a node that a supervisor starts: `python -m p2pscoop._node`, configured through its stdin.

The first line of stdin is the configuration in JSON. After it, the pipe is the tether: a line `leave` asks the
node to drain and go, and the end of file means that the supervisor is gone, and so goes the node.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import types
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any, NoReturn

from p2pscoop import _local, _machine
from p2pscoop._attachment import diagnose
from p2pscoop._core.values import PeerInfo
from p2pscoop._future import Future, name_of, overtime
from p2pscoop._home import Home
from p2pscoop._process_config import EXIT_FAILED, EXIT_LEFT, EXIT_REFUSED, EXIT_REPLACED, NodeConfig
from p2pscoop._pursuit import GRACE_S, Pursuit
from p2pscoop._reunion import Reunion
from p2pscoop._runtime import Runtime
from p2pscoop._security import ClusterKey
from p2pscoop.errors import ConfigurationError, DiscoveryError, StartError

if TYPE_CHECKING:
    from p2pscoop._discovery import Discovery
    from p2pscoop._profile import NodeProfile

__all__ = ["main"]

logger = logging.getLogger("p2pscoop")

SEED_PATIENCE_S = 5.0
ALONE_GRACE_S = 5.0
"""How long a node whose program has ended may take to finish what it runs, for which nobody waits any more."""


def main() -> NoReturn:
    """Run one node until it leaves, then end the process."""
    tether = _take_over_stdin()
    config = NodeConfig.from_line(tether.readline())
    logging.basicConfig(level=config.log_level, format="%(message)s")
    # The supervisor has the terminal, and says what a Ctrl-C means to its nodes.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _replace_main()
    code = _Process(config).run(tether)
    _exit(code)


class _Process:
    def __init__(self, config: NodeConfig) -> None:
        self._config = config
        self._code: int | None = None
        self._reason = "told to leave"
        self.home = Home(
            interruptible=False,
            path=b"",
            on_refused=self._on_refused,
            on_origin=lambda origin: self._reunion.found(origin),
            on_origin_gone=self._on_origin_gone,
            on_broken=self._on_broken,
            on_cancelled=lambda task: self._pursuit.begin(task),
        )
        self._pursuit = Pursuit(self.home.scheduler, self.home.hosts, self._give_way)
        self.home.scheduler.pursue = self._pursuit.begin

        self._reunion = Reunion(config.name, config.directory, self._call, self._on_ended)

    def run(self, tether: IO[bytes]) -> int:
        config, home = self._config, self.home
        try:
            home.runtime = Runtime(
                home,
                name=config.name,
                directory=config.directory,
                seeds=config.seeds,
                tcp=None if config.listen is None else (config.listen, config.port),
                predecessor=(config.predecessor_pid, config.predecessor_end) if config.predecessor_pid else None,
                keys=[ClusterKey.from_text(text) for text in config.keys],
                cluster=config.cluster,
                founder=config.founder,
                resident=config.standing and config.founder,
                stays=config.standing,
                socket_name=config.socket_name,
                on_leave=lambda: home.scheduler.call_soon(self._leave),
            )
        except (ConfigurationError, StartError) as error:
            if not os.path.isdir(config.directory):
                return EXIT_LEFT  # The program has ended, and its directory with it, before this node was ready.
            print(f"p2pscoop: {error}", file=sys.stderr)
            return EXIT_FAILED
        home.ship()
        scheduler = home.scheduler
        _local.install(scheduler)
        _on_notice(lambda: scheduler.call_soon(self._leave))
        threading.Thread(target=self._watch, args=(tether,), name="p2pscoop-tether", daemon=True).start()
        if config.complain or config.patience_s:
            threading.Thread(target=self._complain, name="p2pscoop-complain", daemon=True).start()
        if config.interfaces:
            threading.Thread(target=self._discover, name="p2pscoop-discover", daemon=True).start()
        profile = self._profile()
        home.runtime.start()
        scheduler.run_until(lambda: self._code is not None)
        if self._draining:
            home.give_back()
            scheduler.drain()
        if profile is not None:
            profile.save()
        scheduler.stopped = True
        if self._discovery is not None:
            self._discovery.close()
        home.runtime.stop(self._reason, failed=self._failed)
        return self._code if self._code is not None else EXIT_FAILED

    def _profile(self) -> NodeProfile | None:
        if self._config.profile is None:
            return None
        from p2pscoop._profile import NodeProfile

        return NodeProfile(self.home.scheduler, self._config.profile, self._config.name)

    def _discover(self) -> None:
        """Body of a thread: to import the library takes a while."""
        from p2pscoop._discovery import Discovery

        config, runtime = self._config, self.home.runtime
        host, port = _machine.split_address(runtime.transport.addresses[-1])
        try:
            self._discovery = Discovery(
                config.cluster,
                runtime.node.id,
                runtime.hint,
                hosts=[host],
                port=port,
                interfaces=config.interfaces,
            )
        except DiscoveryError as error:
            logger.warning("%s: %s", config.name, error)

    _discovery: Discovery | None = None
    _draining = False
    _failed = False

    def _leave(self) -> None:
        self._draining = True
        self._end(EXIT_LEFT, "told to leave")

    def _end(self, code: int, reason: str) -> None:
        if self._code is None:
            self._code, self._reason = code, reason
        self.home.scheduler.root.wake()

    def _on_refused(self, reason: str) -> None:
        print(f"p2pscoop: the cluster refused this node: {reason}", file=sys.stderr)
        self._end(EXIT_REFUSED, reason)

    def _on_broken(self, reason: str) -> None:
        self._failed = True
        # A program that cannot be served is no reason to leave the others with a node less.
        others = self._config.standing or len(self.home.runtime.node.membership.origins()) > 1
        self._end(EXIT_REPLACED if others else EXIT_FAILED, reason)

    def _give_way(self, task: Future[Any]) -> None:
        """A task that was cancelled, or whose time is up, does not end. Another node shall take this one's place.

        What this one held is run again, but for a task whose time is up: that would not end again.
        """
        late = overtime(task)
        logger.warning(
            "%s: %s was %s and did not end within %.0f s: this node is replaced",
            self._config.name,
            name_of(task._work),
            "cancelled" if late is None else "over its time",
            GRACE_S,
        )
        if late is not None:
            self.home.give_up(task, late)
        self.home.give_back()
        self.home.runtime.stop("a task did not end when it had to")
        _exit(EXIT_REPLACED)

    def _watch(self, tether: IO[bytes]) -> None:
        """Body of the thread that holds the supervisor's end of the tether."""
        for line in tether:
            if line.strip() == b"leave":
                self.home.scheduler.call_soon(self._leave)
        self._vanish()

    def _on_origin_gone(self, origin: PeerInfo, told: bool) -> None:
        """It said goodbye, or is out of reach."""
        if told:
            self._on_ended(origin)
        else:
            self._reunion.lost(origin)

    def _call(self, origin: PeerInfo) -> None:
        self.home.runtime.do(lambda _: self.home.runtime.node.call(origin.id))

    def _on_ended(self, origin: PeerInfo) -> None:
        """A program has ended. This node is there for others; or it goes, and what runs may soon end."""
        membership = self.home.runtime.node.membership
        if membership.origins() or membership.residents():
            self.home.drop(origin.id)
            return
        self.home.scheduler.call_soon(lambda: self._end(EXIT_LEFT, "the program has ended"))
        patience = threading.Timer(ALONE_GRACE_S, self._vanish)
        patience.daemon = True
        patience.start()

    def _vanish(self) -> None:
        """Nobody is left who could want anything of this process. User code may hold the main thread."""
        _machine.remove_traces(self._config.directory, self.home.runtime.transport.addresses)
        os._exit(EXIT_LEFT)

    def _complain(self) -> None:
        if self.home.is_member.wait(SEED_PATIENCE_S):
            return
        patience_s = self._config.patience_s
        if self._config.complain:
            seeds = [seed for seed in self._config.seeds if not seed.startswith("ipc:")]
            why = "; ".join(diagnose(seed, secured=bool(self._config.keys)) for seed in seeds)
            print(f"p2pscoop: not a member yet: {why}; still trying, Ctrl-C stops", file=sys.stderr)
        if patience_s and not self.home.is_member.wait(patience_s - SEED_PATIENCE_S):
            print(f"p2pscoop: not a member within {patience_s:.0f} s: given up", file=sys.stderr)
            self.home.scheduler.call_soon(lambda: self._end(EXIT_REFUSED, "not let in"))


def _take_over_stdin() -> IO[bytes]:
    """Keep the tether to ourselves, and give user code an empty stdin."""
    tether = os.fdopen(os.dup(0), "rb", buffering=0)
    os.set_inheritable(tether.fileno(), False)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(line_buffering=True)
    return tether


def _replace_main() -> None:
    """Tasks see an empty `__main__`, not this module."""
    sys.modules["__main__"] = types.ModuleType("__main__")


def _on_notice(action: Callable[[], None]) -> None:
    signal.signal(signal.SIGTERM, lambda *_: action())
    if hasattr(signal, "SIGUSR1"):
        # What Slurm sends to all processes of a job before its time is up, if it was asked to.
        signal.signal(signal.SIGUSR1, lambda *_: action())


def _exit(code: int) -> NoReturn:
    """End the process at once.

    Frames of tasks that nobody waits for may still be suspended; taking the interpreter down in order would run
    their `finally` blocks, after all that they could use is gone.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            pass  # The supervisor does not listen any more.
    os._exit(code)


if __name__ == "__main__":
    main()
