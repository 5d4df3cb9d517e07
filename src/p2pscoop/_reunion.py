"""A node that has lost an origin without a goodbye: has the program ended, or is only the way to it cut?

What can be known is asked at once. An origin on this machine is a process that is there or not. One elsewhere is
gone if its machine refuses the connection. If neither is known, because nothing answers, or something does, the
node tries to reach the origin for `REJOIN_S`, and then takes the program for ended: nothing stays for ever (G5).
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable

from p2pscoop._core.ids import NodeId
from p2pscoop._core.values import PeerInfo

__all__ = ["REJOIN_S", "Reunion", "is_gone"]

logger = logging.getLogger("p2pscoop")

REJOIN_S = 20.0
"""How long a node looks for an origin that it has lost. The core calls a peer that it takes for dead every 5 s."""
_PAUSE_S = 1.0
_CONNECT_S = 2.0


def is_gone(origin: PeerInfo, group: str) -> bool:
    """Whether the process of an origin has certainly ended.

    Args:
        origin: the origin.
        group: of the node that asks, whose machine's processes it can see.
    """
    if origin.group == group:
        return not _runs(origin.pid)
    places = [place for address in origin.addresses if (place := _place(address)) is not None]
    if not places:
        return True  # There is no way to it.
    try:
        socket.create_connection(places[0], _CONNECT_S).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _place(address: str) -> tuple[str, int] | None:
    """Host and port of a transport address, if it has any."""
    scheme, _, rest = address.partition("://")
    host, _, port = rest.rpartition(":")
    if "tcp" not in scheme or not port.isdecimal():
        return None
    return host.strip("[]"), int(port)


class Reunion:
    """The search of one node.

    Args:
        name: of the node.
        group: of the node.
        call: says something to an origin that is taken for dead, which answers if it lives.
        on_ended: called with an origin that was not found, in a thread of the search.
    """

    def __init__(
        self, name: str, group: str, call: Callable[[PeerInfo], None], on_ended: Callable[[PeerInfo], None]
    ) -> None:
        self._name = name
        self._group = group
        self._call = call
        self._on_ended = on_ended
        self._searches: dict[NodeId, threading.Event] = {}

    def lost(self, origin: PeerInfo) -> None:
        """An origin is taken for dead. Any thread."""
        found = self._searches[origin.id] = threading.Event()
        threading.Thread(target=self._search, args=(origin, found), name="p2pscoop-reunion", daemon=True).start()

    def found(self, origin: PeerInfo) -> None:
        """An origin is there. Any thread."""
        search = self._searches.pop(origin.id, None)
        if search is not None:
            search.set()

    def _search(self, origin: PeerInfo, found: threading.Event) -> None:
        until = time.monotonic() + REJOIN_S
        calls = 0
        while not is_gone(origin, self._group) and time.monotonic() < until:
            # Not at the first: through a tunnel, the end of a connection can overtake the goodbye, and then this
            # process is about to be ended.
            if calls == 1:
                logger.warning(
                    "%s: lost the connection to %s on %s; this node looks for it for %.0f s",
                    self._name,
                    origin.name,
                    origin.host,
                    REJOIN_S,
                )
            calls += 1
            self._call(origin)
            if found.wait(_PAUSE_S):
                if calls > 1:
                    logger.warning("%s: %s is there again", self._name, origin.name)
                return
        if not found.is_set():
            self._searches.pop(origin.id, None)
            self._on_ended(origin)
