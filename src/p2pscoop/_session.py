"""The origin's side of this process: starts and stops what `futures` runs on.

In a plain script or a notebook the first use starts a session with nodes on this machine. Under
`p2pscoop run` the launcher starts it, before the script. On a node there is none: its scheduler is installed
already.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import subprocess
import sys
from _thread import get_ident
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from p2pscoop import _local, _machine
from p2pscoop._attachment import JOIN_S, Attachment, attachment, explain
from p2pscoop._future import PATH_SIZE, Future, name_of
from p2pscoop._home import Home
from p2pscoop._payload import encode_program
from p2pscoop._process_config import ORIGIN_NAME, ORIGIN_SOCKET, local_nodes
from p2pscoop._pursuit import GRACE_S, Pursuit
from p2pscoop._runtime import NodeStatistics, Runtime
from p2pscoop._scheduler import Scheduler
from p2pscoop._security import DEFAULT_CLUSTER, ClusterKey
from p2pscoop._supervisor import spawn_supervisor

__all__ = [
    "Session",
    "open_session",
    "start",
    "statistics",
    "stop",
    "stop_supervisor",
]

logger = logging.getLogger("p2pscoop")

_SUPERVISOR_TIMEOUT_S = 5.0


@dataclass
class Session:
    """One origin, and the supervisor of its nodes if it has one of its own.

    Attributes:
        home: the node.
        pursuit: what ends tasks that are over their time.
        directory: private directory of this machine's nodes, if there are any.
        supervisor: None under `p2pscoop run`, whose supervisor is the launcher, and for a single node.
        own: whether this process started it, and so may stop it.
        failed: whether the program ended by an exception, so that nobody waits for what is left.
    """

    home: Home
    pursuit: Pursuit
    directory: str | None
    supervisor: subprocess.Popen[bytes] | None = None
    own: bool = True
    failed: bool = False

    def close(self, *, wait: bool) -> None:
        """Run what is left, if asked to, then stop the nodes and close everything."""
        scheduler = self.home.scheduler
        try:
            if wait and get_ident() == scheduler.thread:
                scheduler.drain()
                if logger.isEnabledFor(logging.INFO):
                    self._summarize()
        finally:
            scheduler.stopped = True
            self.pursuit.close()
            self.home.runtime.stop()
            if self.supervisor is not None:
                stop_supervisor(self.supervisor)
            if self.own:
                _machine.remove_directory(self.directory)

    def _summarize(self) -> None:
        """What was done, and what had to be done again. What nodes did that are gone is not in it."""
        nodes = self.home.runtime.statistics()
        logger.info(
            "%d tasks on %d nodes; %d went elsewhere, in %d of %d steals; %d came back from nodes that were lost",
            sum(node.executed for node in nodes),
            len(nodes),
            sum(node.stolen for node in nodes),
            sum(node.steals - node.steals_failed for node in nodes),
            sum(node.steals for node in nodes),
            sum(node.requeued for node in nodes),
        )


_session: Session | None = None


def start() -> Scheduler:
    """Start a session with nodes of its own, and install its scheduler."""
    attached = attachment(None, None)
    if attached is not None:
        return _attach(attached).home.scheduler
    nodes = _machine.node_count()
    directory = _machine.make_directory()
    try:
        session = open_session(directory)
        if nodes > 1:
            environment = _machine.limited_environment(nodes)
            session.supervisor = spawn_supervisor(local_nodes(directory, nodes - 1), environment)
    except BaseException:
        _machine.remove_directory(directory)
        raise
    return session.home.scheduler


def _attach(attached: Attachment) -> Session:
    """Become a member of a cluster that is there."""
    session = open_session(
        None,
        tcp=(attached.listen, 0),
        keys=attached.keys,
        cluster=attached.cluster,
        seeds=attached.seeds,
    )
    if not session.home.is_member.wait(JOIN_S):
        session.failed = True
        problem = explain(attached)
        _close(wait=False)
        raise problem
    return session


def open_session(
    directory: str | None,
    *,
    tcp: tuple[str, int] | None = None,
    keys: Sequence[ClusterKey] = (),
    cluster: str = DEFAULT_CLUSTER,
    seeds: Sequence[str] = (),
    own: bool = True,
) -> Session:
    """Make this process an origin.

    Args:
        directory: private directory of this machine's nodes, if there are any.
        tcp: host and port to listen at, or None.
        keys: of the cluster; none if connections by TCP are not secured.
        cluster: its name.
        seeds: of a standing cluster that is used instead of nodes of one's own.
        own: see `Session`.
    """
    global _session
    home = Home(interruptible=True, path=os.urandom(PATH_SIZE), on_cancelled=lambda task: pursuit.begin(task))
    pursuit = Pursuit(home.scheduler, home.hosts, _give_up)
    home.scheduler.pursue = pursuit.begin
    home.runtime = Runtime(
        home,
        name=ORIGIN_NAME,
        directory=directory,
        tcp=tcp,
        keys=keys,
        cluster=cluster,
        seeds=seeds,
        steals=not seeds,
        socket_name=ORIGIN_SOCKET,
        origin=True,
        program=encode_program(),
    )
    home.runtime.start()
    _session = Session(home, pursuit, directory, own=own)
    _local.install(home.scheduler)
    return _session


def _give_up(task: Future[Any]) -> None:
    """A task that is cancelled, or over its time, runs in the main program, which cannot be replaced."""
    logger.warning(
        "%s: %s was to end, and did not within %.0f s: it goes on, because it runs in the main program",
        ORIGIN_NAME,
        name_of(task._work),
        GRACE_S,
    )


def stop(*, wait: bool) -> None:
    """Stop the session, if it is this program's own to stop; else only run what is left, if asked to."""
    if _session is None:
        return
    if _session.own:
        _close(wait=wait)
    elif wait:
        _session.home.scheduler.drain()


def _close(*, wait: bool) -> None:
    global _session
    session, _session = _session, None
    if session is None:
        return
    try:
        session.close(wait=wait)
    finally:
        if _local.installed() is session.home.scheduler:
            _local.uninstall()


def _at_exit() -> None:
    if _session is not None:
        # An exception that ended the program has been noted by the interpreter, or by the launcher.
        _close(wait=not (_session.failed or hasattr(sys, "last_type")))


def _after_fork() -> None:
    global _session
    _session = None


# Registered after the transport's own, and so called before it.
atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def stop_supervisor(process: subprocess.Popen[bytes]) -> None:
    """Cut the tether of a supervisor of one's own, and wait until it and its nodes are gone."""
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.close()
    try:
        process.wait(_SUPERVISOR_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def statistics() -> list[NodeStatistics]:
    """What each node has done since it started; this one first. See `p2pscoop.statistics`."""
    scheduler = _local.current()
    home = scheduler.hooks
    assert isinstance(home, Home)
    return home.runtime.statistics()
