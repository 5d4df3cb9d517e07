"""Finding the nodes of a cluster on a local network, by multicast DNS (RFC 6762) and DNS service discovery.

Decides what a node says of itself, on which interfaces, what is believed of others, and how much is remembered.
Does not decide who is dialled, how often, or who is let in: what is found is a hint, and everybody on the network
can forge it. That is why a goodbye removes nothing here: it says no more than that somebody sent it.

A thread of its own runs an asyncio loop with one zeroconf responder for each interface and IP version. Their
sockets are bound to the interface, because zeroconf's listen at every address otherwise, and would answer
whoever asks on any. Zeroconf's browser is not used: it keeps a record and a timer for every instance that
anyone makes up. A listener reads the records of each packet instead, with one bound on what it keeps, and asks
again at growing intervals. It asks for answers by multicast, and only the first time for one by unicast as well:
that is faster, but reaches only one of the processes that share the port.
"""

from __future__ import annotations

import concurrent.futures
import errno
import hashlib
import ipaddress
import logging
import os
import random
import socket
import struct
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from p2pscoop import _machine
from p2pscoop._core.ids import NodeId, short
from p2pscoop._core.limits import NODE_ID_SIZE, PROTOCOL_VERSION
from p2pscoop.errors import ConfigurationError, DiscoveryError

if TYPE_CHECKING:
    from asyncio import Event, Task
    from types import TracebackType

    from zeroconf import RecordUpdate, RecordUpdateListener, ServiceInfo, Zeroconf
    from zeroconf.asyncio import AsyncZeroconf

__all__ = ["SERVICE_TYPE", "Address", "Discovery", "OnFound", "check", "cluster_hash", "default_interface", "find"]

logger = logging.getLogger(__name__)

SERVICE_TYPE = "_p2pscoop._tcp.local."
INSTANCES_MAX = 1024
"""Nodes that are remembered; the one heard of longest ago makes room, and would be reported again."""
ADDRESSES_MAX = 8
"""Addresses of a node, for each interface it is heard on."""
QUERY_FIRST_S, QUERY_MAX_S = 1.0, 3600.0
"""The second question follows the first after so long; every later interval is three times the one before."""
START_MAX_S = 10.0
CLOSE_MAX_S = 1.5
_OTHERS_S = 0.3
"""How long others are waited for when one has answered."""

Address = tuple[str, int]
"""Host and port. The host of a link-local IPv6 address ends with its interface: `fe80::1%eth0`."""

OnFound = Callable[[NodeId, list[Address]], None]

_PORT = 5353
_GROUPS = {4: "224.0.0.251", 6: "ff02::fb"}
_SEED = "do without discovery: give --seed HOST:PORT"


def cluster_hash(cluster: str) -> str:
    """What is announced instead of a cluster's name. Whoever guesses the name can check it."""
    return hashlib.blake2b(cluster.encode(), digest_size=8, person=b"p2pscoop").hexdigest()


class _Interface(NamedTuple):
    """An interface of this machine, and the IP version to use there."""

    name: str
    number: int
    version: int
    address: str
    """IPv4: the one named, which multicast is sent from."""
    loopback: bool


class Discovery:
    """Announces a node on the local network, and reports the others of its cluster until closed.

    Args:
        cluster: its name. A hash is announced, see `cluster_hash`.
        node: id of this node, which is not reported; `b""` for a process that is none.
        on_found: called with id and addresses of a node when it is first heard of and when its addresses change,
            in discovery's thread: it must return at once. Anyone on the network can forge both, at any rate.
        hosts: addresses that this node can be dialled at; `0.0.0.0` and `::` stand for all of an interface.
        port: of the node's listener, or None to announce nothing.
        interfaces: IP addresses of the interfaces to use, at least one; if empty, those of `hosts`. Nothing is
            sent on others. The version of the address is the version that is used.

    Raises:
        ConfigurationError: an interface is not given as an IP address, or none is given nor follows from `hosts`.
        DiscoveryError: no multicast is possible there. The message says why, and what to do.
    """

    def __init__(
        self,
        cluster: str,
        node: NodeId,
        on_found: OnFound,
        *,
        hosts: Sequence[str] = (),
        port: int | None = None,
        interfaces: Sequence[str] = (),
    ) -> None:
        self._hash = cluster_hash(cluster).encode()
        self._node = node
        self._on_found = on_found
        self._hosts = tuple(hosts)
        self._port = port
        self._interfaces = _interfaces(interfaces or _interfaces_of_listener(hosts))
        for interface in self._interfaces:
            _check_multicast(interface)
        self._known: OrderedDict[NodeId, dict[_Interface, tuple[Address, ...]]] = OrderedDict()
        self._pid = os.getpid()
        self._stop: Event | None = None
        self._started: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._thread = threading.Thread(target=self._run, name="p2pscoop discovery", daemon=True)
        self._thread.start()
        try:
            self._started.result(START_MAX_S)
        except Exception as error:
            self.close()
            raise DiscoveryError(
                f"multicast DNS did not start on {self.interfaces}: {error!r}; {_SEED}"
            ) from error

    @property
    def interfaces(self) -> str:
        """What is used, for people."""
        return ", ".join(f"{each.address} ({each.name}, IPv{each.version})" for each in self._interfaces)

    def close(self) -> None:
        """Say goodbye, close all sockets and end the thread, within 2 seconds. May be called again.

        In a forked child it does nothing: sockets and goodbye are the parent's.
        """
        if os.getpid() != self._pid:
            return
        stop = self._stop
        if stop is not None and self._thread.is_alive():
            try:
                self._loop.call_soon_threadsafe(stop.set)
            except RuntimeError:
                pass  # its loop has ended meanwhile
        if threading.current_thread() is not self._thread:
            self._thread.join(CLOSE_MAX_S + 0.5)

    def __enter__(self) -> Discovery:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # In the thread.

    def _run(self) -> None:
        import asyncio

        try:
            asyncio.run(self._main())
        except Exception as error:
            if self._started.done():
                logger.exception("discovery ended")
            else:
                self._started.set_exception(error)

    async def _main(self) -> None:
        import asyncio

        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        responders: list[AsyncZeroconf] = []
        tasks: list[Task[object]] = []
        try:
            for interface in self._interfaces:
                responders.append(await self._open(interface))
            for interface, responder in zip(self._interfaces, responders, strict=True):
                responder.zeroconf.async_add_listener(_listener(self, responder.zeroconf, interface), None)
                tasks.append(asyncio.create_task(_ask(responder.zeroconf)))
                if self._port is not None:
                    # The awaitable that is returned repeats the announcement.
                    again = await responder.async_register_service(
                        self._announcement(interface, self._port), cooperating_responders=True
                    )
                    tasks.append(asyncio.ensure_future(again))
            self._started.set_result(None)
            await self._stop.wait()
        finally:
            # An announcement that is repeated after the goodbye would take it back.
            for task in tasks:
                task.cancel()
            closing = [asyncio.ensure_future(each.async_close()) for each in responders]
            if closing:
                await asyncio.wait(closing, timeout=CLOSE_MAX_S)

    async def _open(self, interface: _Interface) -> AsyncZeroconf:
        from zeroconf import IPVersion
        from zeroconf.asyncio import AsyncZeroconf

        if interface.version == 4:
            responder = AsyncZeroconf(interfaces=[interface.address], ip_version=IPVersion.V4Only)
        else:
            # By index: the same link-local address may be that of several interfaces.
            responder = AsyncZeroconf(interfaces=[interface.number], ip_version=IPVersion.V6Only)
        try:
            await responder.zeroconf.async_wait_for_start()
            # Nothing is registered yet, so that nothing was answered so far.
            for reader in responder.zeroconf.engine.readers:
                name = interface.name.encode() + b"\0"
                reader.sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name)
        except BaseException:
            await responder.async_close()
            raise
        return responder

    def _announcement(self, interface: _Interface, port: int) -> ServiceInfo:
        from zeroconf import ServiceInfo

        name = self._node.hex()
        return ServiceInfo(
            SERVICE_TYPE,
            f"{name}.{SERVICE_TYPE}",
            port,
            properties={b"v": str(PROTOCOL_VERSION).encode(), b"c": self._hash, b"id": name.encode()},
            server=f"{name}.local.",
            parsed_addresses=_announced(self._hosts, interface),
        )

    def heard(self, zeroconf: Zeroconf, interface: _Interface, node: NodeId) -> None:
        """Something was heard of a node: report it if it is complete, of this cluster, and news."""
        from zeroconf import ServiceInfo

        if node == self._node:
            return
        info = ServiceInfo(SERVICE_TYPE, f"{node.hex()}.{SERVICE_TYPE}")
        if not info.load_from_cache(zeroconf):
            return  # the rest is in another packet, or nowhere
        said = info.properties
        if said.get(b"c") != self._hash:
            return
        # Another version is reported too: whoever dials is told so by name, and so is the other side.
        version, port = said.get(b"v"), info.port
        if said.get(b"id") != node.hex().encode() or not version or not version.isdigit() or not port:
            logger.debug("ignored a malformed announcement of %s on %s", short(node), interface.name)
            return
        addresses = _dialable(info.parsed_scoped_addresses(), port, interface)
        if not addresses:
            logger.debug("ignored %s on %s: no address that could be dialled", short(node), interface.name)
            return
        heard = self._known.setdefault(node, {})
        self._known.move_to_end(node)
        while len(self._known) > INSTANCES_MAX:
            self._known.popitem(last=False)
        if heard.get(interface) == addresses:
            return
        heard[interface] = addresses
        try:
            self._on_found(node, list(dict.fromkeys(address for each in heard.values() for address in each)))
        except Exception:
            logger.exception("what was called with a found node raised")


def check(interfaces: Sequence[str]) -> None:
    """Find out whether multicast DNS is possible there, without sending anything.

    Raises:
        ConfigurationError, DiscoveryError: as `Discovery`.
    """
    for interface in _interfaces(interfaces):
        _check_multicast(interface)


def default_interface() -> str:
    """The address of the interface that multicast leaves by. Nothing is sent.

    Raises:
        DiscoveryError: there is none.
    """
    try:
        return _machine.address_towards(_GROUPS[4], _PORT)
    except ConfigurationError as error:
        raise DiscoveryError(
            f"no interface of this machine has a route for multicast: give --interface ADDR, or {_SEED}"
        ) from error


def find(cluster: str, interfaces: Sequence[str], timeout_s: float = 1.5) -> list[tuple[NodeId, list[Address]]]:
    """The nodes of a cluster that answer, ordered by id: those that do soon after the first.

    Args:
        cluster: its name.
        interfaces: as of `Discovery`.
        timeout_s: how long to wait for the first.

    Raises:
        ConfigurationError, DiscoveryError: as `Discovery`.
    """
    found: dict[NodeId, list[Address]] = {}
    somebody = threading.Event()

    def add(node: NodeId, addresses: list[Address]) -> None:
        if node in found or len(found) < INSTANCES_MAX:
            found[node] = addresses
        somebody.set()

    with Discovery(cluster, b"", add, interfaces=interfaces):
        if somebody.wait(timeout_s):
            time.sleep(_OTHERS_S)
    return sorted(found.items())


async def _ask(zeroconf: Zeroconf) -> None:
    """Ask who is there; at growing intervals, because packets get lost. Newcomers announce themselves."""
    import asyncio

    import zeroconf as library
    from zeroconf import const

    def ask(*, unicast: bool = False) -> None:
        out = library.DNSOutgoing(const._FLAGS_QR_QUERY)
        question = library.DNSQuestion(SERVICE_TYPE, const._TYPE_PTR, const._CLASS_IN)
        question.unicast = unicast
        out.add_question(question)
        zeroconf.async_send(out)

    # What was multicast a moment ago is not again for a second; but it is sent at once to one who asks for that.
    ask(unicast=True)
    pause_s = QUERY_FIRST_S
    while True:
        ask()
        await asyncio.sleep(pause_s * random.Random().uniform(0.9, 1.1))
        pause_s = min(3 * pause_s, QUERY_MAX_S)


def _listener(discovery: Discovery, zeroconf: Zeroconf, interface: _Interface) -> RecordUpdateListener:
    """What zeroconf calls with the records of every packet, in discovery's thread."""
    import zeroconf as library

    class Listener(library.RecordUpdateListener):
        def __init__(self) -> None:
            super().__init__()
            self._nodes: set[NodeId] = set()

        def async_update_records(self, _: Zeroconf, now: float, records: list[RecordUpdate]) -> None:
            for update in records:
                record = update.new
                # A record whose time is over, or a goodbye.
                if not record.is_expired(now):
                    name = record.alias if isinstance(record, library.DNSPointer) else record.name
                    node = _node_named(name)
                    if node is not None:
                        self._nodes.add(node)

        def async_update_records_complete(self) -> None:
            # Only now are the records where `load_from_cache` finds them.
            nodes, self._nodes = self._nodes, set()
            for node in nodes:
                discovery.heard(zeroconf, interface, node)

    return Listener()


def _node_named(name: str) -> NodeId | None:
    """The node that a record is about: its service instance, or its host."""
    label, _, rest = name.lower().partition(".")
    if rest not in (SERVICE_TYPE, "local.") or len(label) != 2 * NODE_ID_SIZE:
        return None
    try:
        return bytes.fromhex(label)
    except ValueError:
        return None


def _dialable(texts: Iterable[str], port: int, interface: _Interface) -> tuple[Address, ...]:
    """Addresses that are worth a try from here, IPv4 first, link-local last."""
    found = []
    for text in texts:
        address = ipaddress.ip_address(text)
        if address.is_unspecified or address.is_multicast or address.is_loopback is not interface.loopback:
            continue
        host = str(address)
        if address.version == 6 and address.is_link_local:
            # Heard by IPv4 it has no interface; and one of another interface is of no use here.
            host = f"{host.partition('%')[0]}%{interface.name}"
        found.append((address.is_link_local, address.version, host))
    return tuple((host, port) for _, _, host in sorted(set(found))[:ADDRESSES_MAX])


# Interfaces of this machine.


def _adapters() -> list[tuple[str, int, list[str]]]:
    """Name, index and addresses of each."""
    import ifaddr

    return [
        (
            each.name,
            each.index or 0,
            [str(ip.ip[0]) if isinstance(ip.ip, tuple) else str(ip.ip) for ip in each.ips],
        )
        for each in ifaddr.get_adapters()
    ]


def _interfaces(addresses: Sequence[str]) -> list[_Interface]:
    if not hasattr(socket, "SO_BINDTODEVICE"):
        raise DiscoveryError(f"multicast DNS cannot be kept to one interface on this system; {_SEED}")
    adapters = _adapters()
    found: dict[tuple[int, int], _Interface] = {}
    for text in addresses:
        try:
            wanted = ipaddress.ip_address(text)
        except ValueError:
            raise ConfigurationError(
                f"interface {text!r}: no IP address; give an address of the interface, as `ip address` lists them"
            ) from None
        plain, _, scope = str(wanted).partition("%")
        matching = [
            (name, index) for name, index, own in adapters if plain in own and scope in ("", name, str(index))
        ]
        if not matching:
            known = ", ".join(address for _, _, own in adapters for address in own) or "none"
            raise DiscoveryError(
                f"no interface of this machine has the address {text} (there are: {known}); {_SEED}"
            )
        if len(matching) > 1:
            names = " or ".join(f"{plain}%{name}" for name, _ in matching)
            raise DiscoveryError(f"several interfaces of this machine have the address {text}: say {names}")
        (name, index), version, address = matching[0], wanted.version, plain
        if wanted.is_loopback:
            # Linux has no IPv6 multicast on loopback. What is announced by IPv4 may be an IPv6 address.
            version, address = 4, plain if wanted.version == 4 else "127.0.0.1"
        found.setdefault((index, version), _Interface(name, index, version, address, wanted.is_loopback))
    return list(found.values())


def _interfaces_of_listener(hosts: Sequence[str]) -> list[str]:
    if not hosts:
        raise ConfigurationError("discovery needs an interface: give --interface ADDR, an address of this machine")
    for host in hosts:
        if ipaddress.ip_address(host).is_unspecified:
            raise ConfigurationError(
                f"a listener at {host} names no interface, and discovery uses none that was not named: "
                "give --interface ADDR, an address of this machine"
            )
    return list(hosts)


def _announced(hosts: Sequence[str], interface: _Interface) -> list[str]:
    """The addresses to announce on an interface, without scope: it means nothing to others."""
    announced: list[str] = []
    for host in hosts:
        address = ipaddress.ip_address(host)
        if address.is_unspecified:
            own = next(own for _, index, own in _adapters() if index == interface.number)
            announced += [each for each in own if ipaddress.ip_address(each).version == address.version]
        else:
            announced.append(str(address).partition("%")[0])
    return list(dict.fromkeys(announced))[:ADDRESSES_MAX]


_UP, _LOOPBACK, _MULTICAST = 0x1, 0x8, 0x1000
_SIOCGIFFLAGS = 0x8913


def _check_multicast(interface: _Interface) -> None:
    """Find out what stands in the way of multicast DNS, without sending anything: zeroconf would only log it."""
    import fcntl

    where = f"multicast DNS is not possible on {interface.name} ({interface.address})"
    family = socket.AF_INET if interface.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            request = struct.pack("16sH14x", interface.name.encode(), 0)
            flags = struct.unpack_from("H", fcntl.ioctl(probe, _SIOCGIFFLAGS, request), 16)[0]
            if not flags & _UP:
                raise DiscoveryError(f"{where}: the interface is down; {_SEED}")
            if not flags & (_MULTICAST | _LOOPBACK):
                raise DiscoveryError(f"{where}: the interface cannot do multicast; {_SEED}")
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            group = socket.inet_pton(family, _GROUPS[interface.version])
            if interface.version == 4:
                own = socket.inet_aton(interface.address)
                probe.bind(("", _PORT))
                probe.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group + own)
                probe.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, own)
                probe.connect((_GROUPS[4], _PORT))
            else:
                index = struct.pack("@I", interface.number)
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind(("::", _PORT))
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group + index)
                probe.connect((_GROUPS[6], _PORT, 0, interface.number))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            why = (
                f"another program has UDP port {_PORT} for itself; let it share the port (SO_REUSEADDR), or end it"
            )
        elif error.errno in (errno.EACCES, errno.EPERM):
            why = f"the system forbids it ({error.strerror})"
        elif error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH):
            why = "there is no route for multicast"
        else:
            why = str(error)
        raise DiscoveryError(f"{where}: {why}; {_SEED}") from error
