"""Bounds the connections to a listener that have not finished their handshake.

NNG gives a peer ten seconds to introduce itself, but not within a TLS handshake (1.11: the time-out aborts a write
that is not under way). Whoever connects and says nothing, or half of it, would keep a descriptor and some 32 KiB
of this process for ever; enough of them, and members could not connect any more.

NNG does not tell of such connections. So this looks at the descriptors of the process itself: a connected socket
with the listener's port that belongs to no pipe has not finished. It is shut down, which NNG takes for the end of
its peer, if it is older than some seconds, or if there are too many. Of too many, one of the address with the most
goes, so that whoever comes from elsewhere is not harmed. Of these it is one that this process has not answered, if
there is one: to a handshake without the key there is no answer, and a member that has one believes that it is
through. Which of those is drawn by lot, so that a member with a long way to go has a chance.

A thread sleeps until somebody connects. It works where there are `/proc` and epoll: on Linux. It needs no
descriptor that it has not had from the start, and touches none but under a descriptor of its own, after a look at
which socket that is by now.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import socket
import stat
import struct
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

if sys.platform == "linux":
    import ctypes
    import resource
    import select

__all__ = ["Doorman", "Place"]

logger = logging.getLogger("p2pscoop")

Place = tuple[bytes, int]
"""Of a peer: its address, as the network has it, and its port."""

_HANDSHAKE_S = 10.0
"""How long a handshake may take: as long as NNG means to wait."""
_UNFINISHED_MAX = 128
"""So many at a time weigh some 4 MiB. Nodes that start together by the hundred are let in by turns."""
_SHARE_OF_LIMIT = 4
"""Of the descriptors that the process may have, they get no more than this fraction."""
_PAUSE_S = 0.02
"""Between two looks while callers come. NNG accepts 10 to 30 a millisecond, so hundreds in this time."""
_IDLE_S = 5.0
"""A new connection wakes the thread, unless NNG is quicker to accept it: then it is seen so late."""
_WAITING_S = 1.0
_TRIM_S = 1.0
"""How often memory is given back while callers are turned away."""
_AGAIN_S = 60.0
"""What was done is said this often at most."""
_SEGMENTS_SENT = struct.Struct("=I")
_SEGMENTS_AT = 156
"""Where Linux, since 4.6, says in `TCP_INFO` how many segments with data were sent."""
_DESCRIPTORS_MAX = 65_536
"""If they cannot be listed, so many are looked at, or as many as the process may have."""


class _Caller(NamedTuple):
    place: Place
    since: float


class Doorman:
    """Of one listener of this process.

    Args:
        host: at which it listens, as the socket tells.
        port: at which it listens.
        members: tells the places of those that are through.
    """

    def __init__(self, host: str, port: int, members: Callable[[], Iterable[Place]]) -> None:
        self._host = host
        self._port = port
        self._members = members
        self._seen: dict[int, _Caller | None] = {}
        """By inode: who has not finished, and None for what is none of our business (any more)."""
        self._refused: Counter[str] = Counter()
        self._tell_at = 0.0
        self._trim_at = 0.0
        self._trim: Callable[[int], object] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
        self._stopping = False
        self._alarm = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._hand = os.dup(self._alarm)
        """Whatever is looked at or shut down is put here first: then it cannot become something else meanwhile."""
        self._door = select.epoll()
        self._door.register(self._alarm, select.EPOLLIN)
        for descriptor, _ in self._sockets():
            with self._holding(descriptor) as held:
                if held is not None and self._is_listener(held):
                    self._door.register(descriptor, select.EPOLLIN | select.EPOLLET)
        self._thread = threading.Thread(target=self._watch, name=f"p2pscoop-door-{port}", daemon=True)
        self._thread.start()

    @property
    def unfinished(self) -> int:
        """How many had not finished when it looked last."""
        return sum(caller is not None for caller in list(self._seen.values()))

    def close(self) -> None:
        """Stop looking."""
        self._stopping = True
        os.eventfd_write(self._alarm, 1)
        self._thread.join()
        self.abandon()

    def abandon(self) -> None:
        """In a forked child, where the thread is not: close its descriptors."""
        self._door.close()
        os.close(self._hand)
        os.close(self._alarm)

    def _watch(self) -> None:
        changed = True
        while True:
            if changed:
                time.sleep(_PAUSE_S)
            else:
                self._door.poll(_WAITING_S if self.unfinished else _IDLE_S)
            if self._stopping:
                return
            try:
                changed = self._look(time.monotonic())
            except Exception:
                logger.exception("port %d: unfinished connections are not bounded for now", self._port)
                time.sleep(_WAITING_S)

    def _look(self, now: float) -> bool:
        """Whether there is somebody new."""
        there = {inode: descriptor for descriptor, inode in self._sockets()}
        for inode in self._seen.keys() - there.keys():
            del self._seen[inode]
        new = there.keys() - self._seen.keys()
        for inode in new:
            self._seen[inode] = self._caller(there[inode], inode, now)
        unfinished = {inode: caller for inode, caller in self._seen.items() if caller is not None}
        if not unfinished:
            return False
        members = set(self._members())
        for inode, caller in list(unfinished.items()):
            if caller.place in members:
                self._seen[inode] = None
                del unfinished[inode]
        for inode in _unwanted(unfinished, now, _bound(), lambda inode: self._is_answered(there[inode], inode)):
            self._seen[inode] = None
            self._hang_up(there[inode], inode, unfinished[inode])
        if self._refused:
            self._tidy(now)
        return not unfinished.keys().isdisjoint(new)

    def _tidy(self, now: float) -> None:
        if self._trim is not None and now >= self._trim_at:
            # The C library keeps what was freed between what is in use: in a flood that becomes tens of MiB.
            self._trim_at = now + _TRIM_S
            self._trim(0)
        if now >= self._tell_at:
            self._tell_at = now + _AGAIN_S
            host, _ = self._refused.most_common(1)[0]
            logger.warning(
                "port %d: hung up on %d callers that did not finish the handshake, most of them from %s: let only "
                "machines that you trust reach the port",
                self._port,
                self._refused.total(),
                host,
            )
            self._refused.clear()

    # ----------------------------------------------------------------------------------- descriptors

    @staticmethod
    def _sockets() -> Iterator[tuple[int, int]]:
        """Descriptor and inode of every socket of this process."""
        descriptors: Iterable[int]
        try:
            descriptors = map(int, os.listdir("/proc/self/fd"))
        except OSError:  # There is no descriptor left to list them with.
            descriptors = range(min(_limit(), _DESCRIPTORS_MAX))
        for descriptor in descriptors:
            try:
                status = os.fstat(descriptor)
            except OSError:
                continue
            if stat.S_ISSOCK(status.st_mode):
                yield descriptor, status.st_ino

    @contextlib.contextmanager
    def _holding(self, descriptor: int, inode: int | None = None) -> Iterator[socket.socket | None]:
        """The socket behind a descriptor, or None if there is no such socket any more."""
        held = None
        try:
            with contextlib.suppress(OSError):
                os.dup2(descriptor, self._hand, inheritable=False)
                if inode is None or os.fstat(self._hand).st_ino == inode:
                    held = socket.socket(fileno=self._hand)
            yield held
        finally:
            if held is not None:
                held.detach()
            os.dup2(self._alarm, self._hand, inheritable=False)  # Lets go of it.

    def _is_listener(self, held: socket.socket) -> bool:
        with contextlib.suppress(OSError):
            return (
                held.family in (socket.AF_INET, socket.AF_INET6)
                and held.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
                and held.getsockname()[:2] == (self._host, self._port)
            )
        return False

    def _caller(self, descriptor: int, inode: int, now: float) -> _Caller | None:
        """Who is at the other end of a connection to this listener."""
        with self._holding(descriptor, inode) as held, contextlib.suppress(OSError):
            if held is None or held.family not in (socket.AF_INET, socket.AF_INET6):
                return None
            host, port = held.getsockname()[:2]
            if port != self._port or (self._host not in ("0.0.0.0", "::") and host != self._host):
                return None
            host, port = held.getpeername()[:2]
            return _Caller((socket.inet_pton(held.family, host.partition("%")[0]), port), now)
        return None

    def _is_answered(self, descriptor: int, inode: int) -> bool:
        """Whether something was sent to this caller."""
        with self._holding(descriptor, inode) as held, contextlib.suppress(OSError, struct.error):
            if held is not None:
                state = held.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _SEGMENTS_SENT.size + _SEGMENTS_AT)
                return bool(_SEGMENTS_SENT.unpack_from(state, _SEGMENTS_AT)[0])
        return False

    def _hang_up(self, descriptor: int, inode: int, caller: _Caller) -> None:
        with self._holding(descriptor, inode) as held, contextlib.suppress(OSError):
            if held is not None:
                held.shutdown(socket.SHUT_RDWR)
                address, _ = caller.place
                self._refused[socket.inet_ntop(held.family, address)] += 1


def _unwanted(
    unfinished: dict[int, _Caller], now: float, bound: int, is_answered: Callable[[int], bool]
) -> list[int]:
    """Those that are late, and one by one of the address with the most, until they are within the bound."""
    late = [inode for inode, caller in unfinished.items() if now - caller.since > _HANDSHAKE_S]
    surplus = len(unfinished) - len(late) - bound
    if surplus <= 0:
        return late
    crowds: defaultdict[bytes, list[int]] = defaultdict(list)
    for inode in unfinished.keys() - late:
        crowds[unfinished[inode].place[0]].append(inode)
    for crowd in crowds.values():
        random.shuffle(crowd)
        crowd.sort(key=is_answered, reverse=True)
    return late + [max(crowds.values(), key=len).pop() for _ in range(surplus)]


def _bound() -> int:
    return max(1, min(_UNFINISHED_MAX, _limit() // _SHARE_OF_LIMIT))


def _limit() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _DESCRIPTORS_MAX if soft == resource.RLIM_INFINITY else soft
