"""Frames between nodes: the transport seam, and its implementation over nanomsg (pynng).

The seam is small on purpose. A transport has addresses of its own; it sends bytes to a peer, best effort, in
order as long as the connection lasts; it hands out what arrives; it says when the connection to a peer came
up and when it was lost. Nothing else is promised, and all that matters is acknowledged above (CUSTODY.md).

Each node has one `Pull0` inbox, and one `Push0` socket for each peer that it has something to say to. A
`Push0` that had several peers would spread the messages over them; `Pair1` and `Bus0` drop silently.

What NNG does that one would not expect, and what is done about it here:

- A callback of a pipe runs in a thread of NNG's, and calls back into the socket deadlock: ours only append to
  a deque.
- "Removed" may be told before "added": a pipe whose end was heard of first is remembered as ended.
- A blocking `dial` of a silent peer may never return: `dial` never blocks here.
- `close` does not wait for what is queued: whoever has a last word waits for its acknowledgement.
- Sockets must be closed before the interpreter ends, and must not be touched in a forked child.
- A handshake that is begun and not finished is never given up: see `_doorman`.

Who may connect: by TCP, whoever has a key (TLS sees to that); by a socket of a file, this user and root, although
nobody else can enter its directory.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import logging
import os
import socket
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Container, Sequence
from typing import Any, Protocol

import pynng

from p2pscoop._acknowledged import is_acknowledged
from p2pscoop._core.fragments import Assembler, cut
from p2pscoop._core.limits import Limits
from p2pscoop._doorman import Doorman, Place
from p2pscoop._security import ClusterKey
from p2pscoop.errors import ConfigurationError, StartError

__all__ = ["TCP_SCHEME", "TLS_SCHEME", "LinkEvent", "NngTransport", "Transport"]

logger = logging.getLogger("p2pscoop")

TCP_SCHEME = "tcp://"
TLS_SCHEME = "tls+tcp://"
_TLS_1_3 = 0x304
_HANDSHAKE_S = 0.5
"""Longer than a handshake takes, where there is one."""

_USED_S = 0.25
"""A connection that was used within this time may have something on its way, and is not closed for others."""

_RECEIVE_TIMEOUT_MS = 2000
"""A time-out costs over a millisecond of work; `wake` ends the wait when there is a reason."""
_RECEIVE_QUEUE = 64
_SEND_QUEUE = 64
_WAKE_TIMEOUT_MS = 500
_WAKE_FRAME = b"\x00"
"""Neither a message nor a fragment."""
_RECONNECT_MIN_MS = 10
_RECONNECT_MAX_MS = 1000
_IPC_PATH_MAX = 100
"""Bytes of a socket's path. The kernel takes 107 on Linux, 103 on macOS."""
_PEER_UID = b"ipc:peer-uid"
_NOT_SUPPORTED = 9
"""NNG's number for an option that a pipe, or the platform, has not got."""
_ROOT = 0


class LinkEvent(Protocol):
    """What a transport calls when a connection came up (True) or was lost (False). Must not call back."""

    def __call__(self, peer: bytes, connected: bool) -> None: ...


class Transport(Protocol):
    """The seam. All methods may be called from any thread; `receive` from one at a time."""

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where the inbox listens, best first."""
        ...

    def send(self, peer: bytes, addresses: Sequence[str], data: bytes) -> None:
        """Send a message, connecting first if need be. Best effort.

        Args:
            peer: names the connection.
            addresses: of the peer's inbox; used if there is no connection yet.
            data: the message.
        """
        ...

    def receive(self) -> bytes | None:
        """The next message, or None after a while without one.

        Raises:
            RemoteProtocolError: a fragment was malformed; it is dropped.
        """
        ...

    def wake(self) -> None:
        """Let a `receive` that is under way return, soon."""
        ...

    def pump(self) -> bool:
        """Send more of what had to wait. Whether something still waits that could be sent soon."""
        ...

    def is_connected(self, peer: bytes) -> bool:
        """Whether there is a connection to this peer now."""
        ...

    def is_acknowledged(self, peer: bytes, within_s: float) -> bool:
        """Whether the process of this peer certainly lives, by what the system knows of the connection to it.

        Args:
            peer: of a connection by TCP, over which something was said.
            within_s: how old the evidence may be.
        """
        ...

    def disconnect(self, peer: bytes) -> None:
        """Nothing more will be sent to this peer."""
        ...

    def unused(self, kept: Container[bytes]) -> list[bytes]:
        """Peers to disconnect, because there are too many, or nothing was said to them for a long time.

        Args:
            kept: the peers that stay connected in any case.
        """
        ...

    def close(self) -> None:
        """Close all sockets. What is queued is lost."""
        ...


def tls_config(keys: Sequence[ClusterKey], *, listens: bool) -> Any:
    """What NNG needs for one side of TLS 1.3 with pre-shared keys; the caller keeps it as long as its socket.

    Args:
        keys: the first is what a dialling side proves; a listening side accepts all.
        listens: which side.
    """
    config = pynng.TLSConfig(pynng.TLSConfig.MODE_SERVER if listens else pynng.TLSConfig.MODE_CLIENT)
    # pynng wraps neither of these two. No certificate beside the keys: it would be a second way in.
    for key in keys if listens else keys[:1]:
        secret = key.tls_secret
        identity = key.identity.encode()
        pynng.check_err(pynng.lib.nng_tls_config_psk(config._tls_config, identity, secret, len(secret)))
    pynng.check_err(pynng.lib.nng_tls_config_version(config._tls_config, _TLS_1_3, _TLS_1_3))
    return config


class _Link:
    """The sending half of a connection to one peer."""

    def __init__(
        self, peer: bytes, address: str, on_event: LinkEvent, limits: Limits, keys: Sequence[ClusterKey]
    ) -> None:
        self.peer = peer
        self.address = address
        self._limits = limits
        self._on_event = on_event
        self._lock = threading.Lock()
        self._queue: deque[bytes] = deque()
        self._queued = 0
        self._pipes: set[int] = set()
        self._ended_pipes: set[int] = set()
        self._closed = False
        self.socket = pynng.Push0(
            send_buffer_size=_SEND_QUEUE,
            reconnect_time_min=_RECONNECT_MIN_MS,
            reconnect_time_max=_RECONNECT_MAX_MS,
        )
        self.used_at = self._dialled_at = time.monotonic()
        if address.startswith(TLS_SCHEME):
            self._tls = tls_config(keys, listens=False)
            self.socket.tls_config = self._tls
        self.socket.add_post_pipe_connect_cb(self._on_added)
        self.socket.add_post_pipe_remove_cb(self._on_removed)
        self.socket.dial(address, block=False)

    def send(self, frames: Sequence[bytes]) -> None:
        self.used_at = time.monotonic()
        with self._lock:
            size = sum(map(len, frames))
            if self._closed or self._queued + size > self._limits.assembly_max:
                return  # The peer does not take anything; what matters is sent again.
            self._queue.extend(frames)
            self._queued += size
            self._push()

    def pump(self) -> bool:
        with self._lock:
            self._push()
            return bool(self._queue) and self.connected

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._queue.clear()
            self._queued = 0
        # Outside the lock: closing waits for callbacks, and they may wait for a sender.
        self.socket.close()

    @property
    def connected(self) -> bool:
        return bool(self._pipes)

    def is_acknowledged(self, within_s: float) -> bool:
        for pipe in self.socket.pipes:
            with contextlib.suppress(pynng.NNGException, AttributeError):  # It is closed by now, or no TCP.
                own, peers = _place(pipe.local_address)[1], _place(pipe.remote_address)[1]
                return is_acknowledged(own, peers, within_s)
        return False

    @property
    def has_queue(self) -> bool:
        return bool(self._queue)

    @property
    def shakes_hands(self) -> bool:
        """Whether a TLS handshake may be under way."""
        young = time.monotonic() - self._dialled_at < _HANDSHAKE_S
        return young and not self._pipes and self.address.startswith(TLS_SCHEME)

    def _push(self) -> None:
        while self._queue and self._pipes and not self._closed:
            try:
                self.socket.send(self._queue[0], block=False)
            except pynng.TryAgain:
                return
            self._queued -= len(self._queue.popleft())

    # In NNG's threads:

    def _on_added(self, pipe: Any) -> None:
        if pipe.id in self._ended_pipes:
            self._ended_pipes.discard(pipe.id)
            return
        self._pipes.add(pipe.id)
        self._on_event(self.peer, True)

    def _on_removed(self, pipe: Any) -> None:
        if pipe.id in self._pipes:
            self._pipes.discard(pipe.id)
        else:
            self._ended_pipes.add(pipe.id)
        if not self._closed:
            self._on_event(self.peer, False)


class NngTransport:
    """Sockets of one node.

    Args:
        directory: private directory for the sockets of this machine's nodes. None: nobody reaches this one through
            a socket of a file, and no file stays behind when its process is killed.
        name: file name of this node's socket in it.
        tcp: host and port to listen at as well (port 0: any), or None.
        keys: with which connections by TCP are secured, both ways; none: they are not (`--insecure`).
        limits: for sizes.
        on_event: told of connections, from threads of NNG's.

    Raises:
        ConfigurationError: the path of the socket is too long.
        StartError: an address cannot be listened at.
    """

    def __init__(
        self,
        directory: str | None,
        name: str,
        tcp: tuple[str, int] | None,
        limits: Limits,
        on_event: LinkEvent,
        keys: Sequence[ClusterKey] = (),
    ) -> None:
        self._limits = limits
        self._keys = tuple(keys)
        self._on_event = on_event
        self._assembler = Assembler(limits)
        self._streams = itertools.count(int.from_bytes(os.urandom(7), "big"))
        self._links: dict[bytes, _Link] = {}
        self._lock = threading.Lock()
        self._closed = False
        path = None if directory is None else os.path.join(directory, name)
        if path is not None and len(os.fsencode(path)) > _IPC_PATH_MAX:
            raise ConfigurationError(
                f"the path of a node's socket is too long ({path}); set TMPDIR to a shorter directory"
            )
        # A frame may have a head of the fragment beside its piece; NNG adds nothing to the count.
        self._inbox = pynng.Pull0(
            recv_timeout=_RECEIVE_TIMEOUT_MS,
            recv_buffer_size=_RECEIVE_QUEUE,
            recv_max_size=limits.frame_max,
        )
        self._doorman: Doorman | None = None
        self._foreigners: set[int] = set()
        self._inbox.add_pre_pipe_connect_cb(self._admit)
        _keep_until_exit(self)
        if self._inbox.recv_max_size != limits.frame_max:
            raise ConfigurationError(f"the transport does not take frames of {limits.frame_max} bytes")
        self._own_address = self._listen(f"inproc://{os.urandom(8).hex()}" if path is None else f"ipc://{path}")
        self.addresses: tuple[str, ...] = () if path is None else (self._own_address,)
        if tcp is not None:
            self.addresses += (self._listen_tcp(*tcp),)

    def send(self, peer: bytes, addresses: Sequence[str], data: bytes) -> None:
        """See `Transport`."""
        link = self._links.get(peer)
        if link is None:
            with self._lock:
                link = self._links.get(peer)
                if link is None:
                    if self._closed or not addresses:
                        return
                    link = self._links[peer] = _Link(peer, addresses[0], self._on_event, self._limits, self._keys)
        frames = list(cut(data, next(self._streams).to_bytes(8, "big"), self._limits))
        link.send(frames)

    def receive(self) -> bytes | None:
        """See `Transport`."""
        try:
            frame: bytes = self._inbox.recv()
        except pynng.Timeout:
            return None
        except pynng.Closed:
            return None
        except RuntimeError:
            return None  # pynng cannot unpack an empty frame; nobody of ours sends one.
        return None if frame == _WAKE_FRAME else self._assembler.feed(frame)

    def wake(self) -> None:
        """See `Transport`."""
        with pynng.Push0(send_timeout=_WAKE_TIMEOUT_MS) as socket_to_self, contextlib.suppress(pynng.NNGException):
            socket_to_self.dial(self._own_address, block=False)
            socket_to_self.send(_WAKE_FRAME)
            # NNG does not wait for what is queued: let the receiver have it first.
            time.sleep(0.001)

    def pump(self) -> bool:
        """See `Transport`."""
        waiting = False
        for link in list(self._links.values()):
            waiting |= link.pump()
        return waiting

    def is_connected(self, peer: bytes) -> bool:
        """See `Transport`."""
        link = self._links.get(peer)
        return link is not None and link.connected

    def is_acknowledged(self, peer: bytes, within_s: float) -> bool:
        """See `Transport`."""
        link = self._links.get(peer)
        return link is not None and link.is_acknowledged(within_s)

    def disconnect(self, peer: bytes) -> None:
        """See `Transport`."""
        with self._lock:
            link = self._links.pop(peer, None)
        if link is not None:
            link.close()

    def unused(self, kept: Container[bytes]) -> list[bytes]:
        """See `Transport`."""
        now, limits = time.monotonic(), self._limits
        links = sorted(self._links.values(), key=lambda link: link.used_at)
        excess = len(links) - limits.connections_max
        found: list[bytes] = []
        for link in links:
            idle_s = now - link.used_at
            if idle_s < _USED_S or not (len(found) < excess or idle_s > limits.connection_idle_s):
                break
            if link.peer not in kept and not link.has_queue:
                found.append(link.peer)
        return found

    def close(self) -> None:
        """See `Transport`."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            links = list(self._links.values())
            self._links.clear()
        # NNG was seen to abort the process when a socket was closed in the middle of a handshake.
        deadline = time.monotonic() + _HANDSHAKE_S
        while time.monotonic() < deadline and any(link.shakes_hands for link in links):
            time.sleep(0.005)
        for link in links:
            link.close()
        if self._doorman is not None:
            self._doorman.close()
        self._inbox.close()
        _forget(self)

    def abandon(self) -> None:
        """In a forked child: forget the sockets without closing them, which would wait for ever."""
        self._closed = True
        for each in (self._inbox, *(link.socket for link in self._links.values())):
            # pynng closes a socket when it is collected, unless it has no handle.
            vars(each).pop("_socket", None)
        if self._doorman is not None:
            self._doorman.abandon()

    def _listen(self, address: str) -> str:
        try:
            self._inbox.listen(address)
        except pynng.NNGException as error:
            raise StartError(f"cannot listen at {address}: {error}") from error
        return address

    def _listen_tcp(self, host: str, port: int) -> str:
        bracketed = f"[{host}]" if ":" in host else host
        scheme = TCP_SCHEME
        if self._keys:
            scheme = TLS_SCHEME
            self._tls = tls_config(self._keys, listens=True)
            self._inbox.tls_config = self._tls
        try:
            listener = self._inbox.listen(f"{scheme}{bracketed}:{port}")
        except pynng.NNGException as error:
            raise StartError(f"cannot listen at {host}:{port}: {error}") from error
        address, bound_port = _place(listener.local_address)
        if sys.platform == "linux":
            family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
            self._doorman = Doorman(socket.inet_ntop(family, address), bound_port, self._places)
        return f"{scheme}{bracketed}:{bound_port}"

    def _places(self) -> list[Place]:
        """Of the peers that have sent something by TCP, or may."""
        places = []
        for pipe in self._inbox.pipes:
            with contextlib.suppress(pynng.NNGException, AttributeError):  # It is closed by now, or no TCP.
                places.append(_place(pipe.remote_address))
        return places

    def _admit(self, pipe: Any) -> None:
        """In a thread of NNG's, before anything is received: turn away other users of this machine."""
        uid = pynng.ffi.new("uint64_t *")
        error = pynng.lib.nng_pipe_get_uint64(pipe.pipe, _PEER_UID, uid)
        if error == _NOT_SUPPORTED or (error == 0 and uid[0] in (os.geteuid(), _ROOT)):
            return
        pipe.close()
        if error == 0 and uid[0] not in self._foreigners:
            self._foreigners.add(uid[0])
            logger.warning("%s: turned away a process of another user (uid %d)", self.addresses[0], uid[0])


def _place(address: Any) -> Place:
    """What pynng tells of an address of TCP: both in the byte order of the network."""
    host = address.addr if isinstance(address.addr, bytes) else struct.pack("I", address.addr)
    return host, socket.ntohs(address.port)


# ------------------------------------------------------------------------------- exit and fork
#
# pynng ends NNG in an exit handler of its own, which aborts if sockets are open, and hangs in a forked child,
# where NNG's threads are not. Ours was registered later and so runs earlier; a forked child neither closes
# sockets nor ends NNG.

_open: list[NngTransport] = []


def _keep_until_exit(transport: NngTransport) -> None:
    _open.append(transport)


def _forget(transport: NngTransport) -> None:
    with contextlib.suppress(ValueError):
        _open.remove(transport)


def _close_all() -> None:
    for transport in list(_open):
        transport.close()


def _after_fork() -> None:
    for transport in _open:
        transport.abandon()
    _open.clear()
    atexit.unregister(_close_all)
    end_nng: Callable[[], None] | None = getattr(pynng.nng, "_pynng_atexit", None)
    if end_nng is not None:
        atexit.unregister(end_nng)


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
