"""Nodes that find each other by multicast DNS: on loopback, and in network namespaces joined by a switch."""

from __future__ import annotations

import gc
import json
import os
import random
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.conftest import TIMEOUT_S, eventually
from tests.net.conftest import Machines, ip, needs_root

from p2pscoop._core.limits import NODE_ID_SIZE
from p2pscoop._discovery import ADDRESSES_MAX, INSTANCES_MAX, SERVICE_TYPE, Address, Discovery, cluster_hash, find
from p2pscoop.errors import ConfigurationError, DiscoveryError

LOOPBACK = "127.0.0.1"
PORT = 4242

# Reports what it finds, a line each with the time, which all processes of a machine share; ends with its input.
AGENT = """
    import json, sys, threading, time
    from p2pscoop._discovery import Discovery
    from p2pscoop.errors import DiscoveryError

    cluster, node, hosts, interfaces = sys.argv[1:]
    lock = threading.Lock()
    def tell(*what):
        with lock:  # two threads tell, and `print` writes the end of the line by itself
            print(json.dumps([time.monotonic(), *what]), flush=True)
    try:
        discovery = Discovery(
            cluster,
            bytes.fromhex(node),
            lambda node, addresses: tell("found", node.hex(), addresses),
            hosts=hosts.split(),
            port=4242,
            interfaces=interfaces.split(),
        )
    except DiscoveryError as error:
        tell("error", str(error))
    else:
        tell("started")
        sys.stdin.read()
        discovery.close()
        tell("closed", threading.active_count())
"""

# Counts what leaves by an interface from or to UDP port 5353, the test's own packets apart, until its input ends.
CAPTURE = """
    import json, select, socket, struct, sys
    tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    tap.bind((sys.argv[1], 0))
    print("ready", flush=True)
    marked, other = 0, []
    while True:
        ready, _, _ = select.select([tap, sys.stdin], [], [])
        if tap not in ready:
            break
        frame, address = tap.recvfrom(65536)
        kind = frame[12:14]
        if kind == bytes.fromhex("0800"):
            protocol, ports = frame[23], frame[14 + 4 * (frame[14] & 15) :][:4]
        elif kind == bytes.fromhex("86dd"):
            protocol, ports = frame[20], frame[54:58]
        else:
            continue
        if address[2] == socket.PACKET_OUTGOING and protocol == 17 and 5353 in struct.unpack("!HH", ports):
            if frame.endswith(b"MARK"):
                marked += 1
            else:
                other.append(frame.hex())
    print(json.dumps([marked, other]))
"""


def new_node() -> bytes:
    return random.SystemRandom().randbytes(NODE_ID_SIZE)


def new_cluster() -> str:
    return f"test-{os.getpid()}-{random.SystemRandom().getrandbits(64):x}"


class Heard:
    """What a discovery has reported."""

    def __init__(self) -> None:
        self.calls: list[tuple[bytes, list[Address]]] = []

    def __call__(self, node: bytes, addresses: list[Address]) -> None:
        self.calls.append((node, addresses))

    @property
    def nodes(self) -> dict[bytes, list[Address]]:
        return dict(self.calls)


def packet(
    node: bytes,
    cluster: str,
    *,
    text: dict[bytes, bytes] | None = None,
    label: str | None = None,
    addresses: tuple[str, ...] = (LOOPBACK,),
    ttl: int = 120,
    port: int = PORT,
) -> bytes:
    """An announcement as anybody can make it."""
    from zeroconf import DNSAddress, DNSOutgoing, DNSPointer, DNSService, DNSText, const

    def line(key: bytes, value: bytes) -> bytes:
        entry = key + b"=" + value
        return bytes([len(entry)]) + entry

    label = node.hex() if label is None else label
    if text is None:
        text = {b"v": b"1", b"c": cluster_hash(cluster).encode(), b"id": node.hex().encode()}
    name, host, unique = f"{label}.{SERVICE_TYPE}", f"{label}.local.", const._CLASS_IN | const._CLASS_UNIQUE
    out = DNSOutgoing(const._FLAGS_QR_RESPONSE | const._FLAGS_AA)
    records = [
        DNSPointer(SERVICE_TYPE, const._TYPE_PTR, const._CLASS_IN, ttl, name),
        DNSService(name, const._TYPE_SRV, unique, ttl, 0, 0, port, host),
        DNSText(name, const._TYPE_TXT, unique, ttl, b"".join(line(*item) for item in text.items()) or b"\0"),
    ]
    records += [DNSAddress(host, const._TYPE_A, unique, ttl, socket.inet_aton(each)) for each in addresses]
    for record in records:
        out.add_answer_at_time(record, 0)
    [data] = out.packets()
    return data


@pytest.fixture
def stranger() -> Iterator[Callable[[bytes], None]]:
    """Sends bytes to everybody who listens on loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(LOOPBACK))
        yield lambda data: sender.sendto(data, ("224.0.0.251", 5353)) and None


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


# On loopback.


def test_two_nodes_find_each_other_and_not_themselves() -> None:
    cluster, one, two = new_cluster(), new_node(), new_node()
    first, second = Heard(), Heard()
    with (
        Discovery(cluster, one, first, hosts=[LOOPBACK], port=PORT),
        Discovery(cluster, two, second, hosts=["::1", LOOPBACK], port=PORT + 1),
    ):
        eventually(lambda: two in first.nodes and one in second.nodes)
    assert first.nodes == {two: [(LOOPBACK, PORT + 1), ("::1", PORT + 1)]}
    assert second.nodes == {one: [(LOOPBACK, PORT)]}


def test_a_listener_at_ipv6_loopback_only_is_found() -> None:
    cluster, node, heard = new_cluster(), new_node(), Heard()
    with (
        Discovery(cluster, node, Heard(), hosts=["::1"], port=PORT),
        Discovery(cluster, b"", heard, interfaces=["::1"]),
    ):
        eventually(lambda: heard.nodes == {node: [("::1", PORT)]})


def test_find_sees_its_cluster_and_no_other() -> None:
    mine, other, nodes = new_cluster(), new_cluster(), sorted(new_node() for _ in range(3))
    with (
        Discovery(mine, nodes[0], Heard(), hosts=[LOOPBACK], port=PORT),
        Discovery(mine, nodes[1], Heard(), hosts=[LOOPBACK], port=PORT),
        Discovery(other, nodes[2], Heard(), hosts=[LOOPBACK], port=PORT),
    ):
        eventually(
            lambda: find(mine, [LOOPBACK]) == [(nodes[0], [(LOOPBACK, PORT)]), (nodes[1], [(LOOPBACK, PORT)])]
        )
        eventually(lambda: find(other, [LOOPBACK]) == [(nodes[2], [(LOOPBACK, PORT)])])


def test_a_new_address_is_reported_and_a_repeated_one_is_not(stranger: Callable[[bytes], None]) -> None:
    cluster, node, marker, heard = new_cluster(), new_node(), new_node(), Heard()
    with Discovery(cluster, b"", heard, interfaces=[LOOPBACK]):
        for port in (1, 1, 2):
            stranger(packet(node, cluster, port=port))
            eventually(lambda: (node, [(LOOPBACK, port)]) in heard.calls)  # noqa: B023
        stranger(packet(marker, cluster))
        eventually(lambda: marker in heard.nodes)
    assert [addresses for each, addresses in heard.calls if each == node] == [[(LOOPBACK, 1)], [(LOOPBACK, 2)]]


def test_a_forged_goodbye_harms_nobody(stranger: Callable[[bytes], None]) -> None:
    """The live node answers a newcomer as before, and is not reported as anything else to those who know it."""
    cluster, node, heard, newcomer = new_cluster(), new_node(), Heard(), Heard()
    with (
        Discovery(cluster, node, Heard(), hosts=[LOOPBACK], port=PORT),
        Discovery(cluster, b"", heard, interfaces=[LOOPBACK]),
    ):
        eventually(lambda: node in heard.nodes)
        for _ in range(3):
            stranger(packet(node, cluster, ttl=0))
        with Discovery(cluster, b"", newcomer, interfaces=[LOOPBACK]):
            eventually(lambda: newcomer.nodes == {node: [(LOOPBACK, PORT)]})
    assert heard.calls == [(node, [(LOOPBACK, PORT)])]


def test_what_strangers_announce_is_checked(stranger: Callable[[bytes], None]) -> None:
    cluster, heard, good = new_cluster(), Heard(), new_node()
    hashed = cluster_hash(cluster).encode()
    with Discovery(cluster, b"", heard, interfaces=[LOOPBACK]):
        node = new_node()
        named = node.hex().encode()
        for text in (
            {},
            {b"c": hashed},
            {b"v": b"1", b"id": named},
            {b"c": hashed, b"id": named},
            {b"v": b"x", b"c": hashed, b"id": named},
            {b"v": b"\xff", b"c": hashed, b"id": named},
            {b"v": b"1", b"c": hashed, b"id": new_node().hex().encode()},
            {b"v": b"1", b"c": hashed + b"0", b"id": named},
        ):
            stranger(packet(node, cluster, text=text))
        for label in ("", "x" * 2 * NODE_ID_SIZE, node.hex()[2:], node.hex() * 2, "é" * 8, " " * 2 * NODE_ID_SIZE):
            if label:
                stranger(packet(node, cluster, label=label))
        stranger(packet(new_node(), cluster, port=0))
        stranger(packet(new_node(), cluster, addresses=()))
        # Not on loopback, these: nobody is sent dialling elsewhere by a packet that came from this machine.
        stranger(packet(new_node(), cluster, addresses=("0.0.0.0", "224.0.0.1", "192.0.2.1")))
        for size in (0, 1, 11, 12, 13, 500, 9000):
            stranger(random.Random(size).randbytes(size))
        whole = packet(node, cluster, port=7)
        for size in range(12, len(whole) - 16, 7):
            stranger(whole[:size])
        stranger(packet(good, cluster, addresses=tuple(f"127.0.0.{each}" for each in range(1, 3 * ADDRESSES_MAX))))
        eventually(lambda: good in heard.nodes)
    assert set(heard.nodes) == {good}
    assert len(heard.nodes[good]) == ADDRESSES_MAX


def test_thousands_of_forged_nodes_take_no_more_room_than_allowed(stranger: Callable[[bytes], None]) -> None:
    cluster, heard, node = new_cluster(), Heard(), new_node()
    with Discovery(cluster, b"", heard, interfaces=[LOOPBACK]) as discovery:
        sent = 0
        while len(heard.nodes) < 2 * INSTANCES_MAX:
            assert sent < 20 * INSTANCES_MAX
            for _ in range(20):
                stranger(packet(new_node(), cluster))
            sent += 20
            time.sleep(0.002)  # or its socket's buffer overflows
        assert len(discovery._known) == INSTANCES_MAX
        # And a real one is found as ever.
        with Discovery(cluster, node, Heard(), hosts=[LOOPBACK], port=PORT):
            eventually(lambda: node in heard.nodes)


def test_what_the_caller_raises_does_not_end_it(caplog: pytest.LogCaptureFixture) -> None:
    cluster, seen, nodes = new_cluster(), set(), [new_node(), new_node()]

    def fail(node: bytes, addresses: list[Address]) -> None:
        seen.add(node)
        raise ValueError("of the test")

    with Discovery(cluster, b"", fail, interfaces=[LOOPBACK]):
        for node in nodes:
            with Discovery(cluster, node, Heard(), hosts=[LOOPBACK], port=PORT):
                eventually(lambda: node in seen)  # noqa: B023
    assert "ValueError: of the test" in caplog.text


@pytest.mark.filterwarnings("error")
def test_close_leaves_no_socket_and_no_thread_and_may_be_repeated() -> None:
    def once() -> None:
        discovery = Discovery(new_cluster(), new_node(), Heard(), hosts=[LOOPBACK], port=PORT)
        discovery.close()
        discovery.close()

    once()
    gc.collect()
    before, threads = descriptors(), set(threading.enumerate())
    for _ in range(3):
        once()
    gc.collect()
    assert descriptors() == before
    assert set(threading.enumerate()) <= threads


def test_the_last_that_is_heard_is_a_goodbye() -> None:
    """Also if it is closed right after its start, while announcements are repeated and questions answered."""
    from zeroconf import DNSIncoming, DNSPointer

    node = new_node()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ear:
        ear.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        ear.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        ear.bind(("224.0.0.251", 5353))
        ear.setsockopt(
            socket.IPPROTO_IP,
            socket.IP_ADD_MEMBERSHIP,
            socket.inet_aton("224.0.0.251") + socket.inet_aton(LOOPBACK),
        )
        ear.settimeout(1)
        Discovery(new_cluster(), node, Heard(), hosts=[LOOPBACK], port=PORT).close()
        ttls = []
        try:
            while True:
                for record in DNSIncoming(ear.recv(9000)).answers():
                    if isinstance(record, DNSPointer) and record.alias.startswith(node.hex()):
                        ttls.append(record.ttl)
        except TimeoutError:
            pass
    assert ttls[0] > 0
    assert ttls[-1] == 0


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-X", "dev", "-c", textwrap.dedent(program), *arguments],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )


def test_a_program_that_forgets_to_close_ends_nevertheless() -> None:
    done = run(
        """
        import sys
        from p2pscoop._discovery import Discovery
        discovery = Discovery(sys.argv[1], bytes(8), print, hosts=["127.0.0.1"], port=1)
        """,
        new_cluster(),
    )
    assert (done.returncode, done.stdout) == (0, "")
    assert "Traceback" not in done.stderr


def test_a_forked_child_neither_hangs_nor_says_goodbye_for_its_parent() -> None:
    cluster = new_cluster()
    done = run(
        """
        import os, sys
        from p2pscoop._discovery import Discovery, find
        cluster = sys.argv[1]
        with Discovery(cluster, bytes(8), lambda *_: None, hosts=["127.0.0.1"], port=1) as discovery:
            child = os.fork()
            if child == 0:
                discovery.close()
                os._exit(7)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
            assert discovery._thread.is_alive()
            for _ in range(10):
                if (found := find(cluster, ["127.0.0.1"])):
                    break
            print(found)
        """,
        cluster,
    )
    assert done.stdout == f"{[(bytes(8), [(LOOPBACK, 1)])]}\n", done.stderr


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"interfaces": ["eth0"]}, ConfigurationError, "no IP address"),
        ({}, ConfigurationError, "--interface ADDR"),
        ({"hosts": ["0.0.0.0"]}, ConfigurationError, "--interface ADDR"),
        ({"hosts": ["::"]}, ConfigurationError, "--interface ADDR"),
        ({"interfaces": ["198.51.100.77"]}, DiscoveryError, "--seed HOST:PORT"),
        ({"interfaces": ["fe80::dead:1%none"]}, DiscoveryError, "no interface"),
    ],
)
def test_an_interface_that_cannot_be_used_is_named(
    settings: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        Discovery(new_cluster(), new_node(), Heard(), port=PORT, **settings)


# In network namespaces.


class Agent:
    """A process with a discovery, in a namespace."""

    def __init__(self, machines: Machines, namespace: str, cluster: str, hosts: str, interfaces: str = "") -> None:
        self.node = new_node()
        self.events: list[list[Any]] = []
        self._process = machines.start(namespace, AGENT, cluster, self.node.hex(), hosts, interfaces)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.events.append(json.loads(line))

    def of(self, kind: str) -> list[list[Any]]:
        return [event for event in self.events if event[1] == kind]

    @property
    def found(self) -> dict[bytes, list[Address]]:
        return {bytes.fromhex(node): [(h, p) for h, p in addresses] for _, _, node, addresses in self.of("found")}

    @property
    def started_at(self) -> float:
        eventually(lambda: self.of("started") or self._process.poll() is not None, within_s=60)
        assert self.of("started"), self.events
        return float(self.of("started")[0][0])

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(TIMEOUT_S)
        self._reader.join()
        # Its main thread is left.
        assert [event[2] for event in self.of("closed")] == [1], self.events
        assert self._process.stderr is not None
        assert self._process.stderr.read() == ""

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(TIMEOUT_S)
        self._reader.join()


HOSTS = {
    "ipv4": "10.213.9.{}",
    "ipv6": "fd00:213::{}",
    "link-local": "fe80::9:{}%lan",
    "both": "10.213.9.{} fd00:213::{}",
}


@needs_root
@pytest.mark.parametrize(
    ("count", "kind"), [(2, "ipv4"), (2, "ipv6"), (2, "link-local"), (2, "both"), (5, "ipv4"), (5, "ipv6")]
)
def test_all_nodes_of_a_switched_network_find_each_other(
    machines: Machines, count: int, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster, agents, expected = new_cluster(), [], {}
    for index in range(1, count + 1):
        hosts = HOSTS[kind].replace("{}", str(index))
        agent = Agent(machines, machines.add(index), cluster, hosts)
        agents.append(agent)
        expected[agent.node] = [(host, PORT) for host in hosts.split()]
    last = max(agent.started_at for agent in agents)
    for agent in agents:
        others = {node: addresses for node, addresses in expected.items() if node != agent.node}
        eventually(lambda: agent.found == others, within_s=10)  # noqa: B023
    after = max(event[0] for agent in agents for event in agent.of("found")) - last
    with capsys.disabled():
        print(f" [{count} nodes, {kind}: all found {after:.3f} s after the last start]", end="")
    for agent in agents:
        agent.close()


@needs_root
def test_a_killed_node_stays_a_hint_and_the_others_are_found(machines: Machines) -> None:
    cluster, names = new_cluster(), [machines.add(index) for index in (1, 2)]
    one, two = (Agent(machines, name, cluster, f"10.213.9.{index}") for index, name in enumerate(names, 1))
    eventually(lambda: two.node in one.found and one.node in two.found)
    two.kill()
    again = Agent(machines, names[1], cluster, "10.213.9.2")
    eventually(lambda: again.node in one.found and one.node in again.found)
    assert two.node in one.found
    assert two.node not in again.found
    one.close()
    again.close()


@needs_root
def test_nothing_leaves_by_an_interface_that_was_not_named(machines: Machines) -> None:
    """Not even an answer to somebody who asks there, by multicast or at an address of this machine."""
    from zeroconf import DNSOutgoing, DNSQuestion, const

    cluster, node, peer = new_cluster(), machines.add(1), machines.add(2)
    # A second cable, into a namespace that only this one is connected with.
    other = machines._add("x")
    ip("link", "add", "other", "type", "veth", "peer", "name", "other", "netns", other, namespace=node)
    for name, index in ((node, 1), (other, 2)):
        ip("address", "add", f"10.213.10.{index}/24", "dev", "other", namespace=name)
        ip("link", "set", "other", "up", namespace=name)
    capture = machines.start(node, CAPTURE, "other")
    control = machines.start(node, CAPTURE, "lan")
    for each in (capture, control):
        assert each.stdout is not None
        assert each.stdout.readline() == "ready\n"
    agents = [Agent(machines, node, cluster, "10.213.9.1"), Agent(machines, peer, cluster, "10.213.9.2")]
    eventually(lambda: agents[0].node in agents[1].found and agents[1].node in agents[0].found)
    questions = []
    for kind in (const._CLASS_IN, const._CLASS_IN | const._CLASS_UNIQUE):
        out = DNSOutgoing(const._FLAGS_QR_QUERY)
        out.add_question(DNSQuestion(SERVICE_TYPE, const._TYPE_PTR, kind))
        questions.append(out.packets()[0].hex())
    # Somebody else on the node's machine has joined the group there: Linux then gives it to all who have the port.
    asking = """
        import socket, sys
        where, ask = sys.argv[1], [bytes.fromhex(each) for each in sys.argv[2:]]
        member = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        member.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        member.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if where == "join":
            own = socket.inet_aton("10.213.10.1")
            member.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton("224.0.0.251") + own)
            print("ready", flush=True)
            sys.stdin.read()
        else:
            for port in (0, 5353):
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asks:
                    asks.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    asks.bind(("10.213.10.2", port))
                    asks.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("10.213.10.2"))
                    asks.settimeout(1.5)
                    for question in ask:
                        for to in ("10.213.10.1", "10.213.9.1", "224.0.0.251"):
                            try:
                                asks.sendto(question, (to, 5353))
                            except OSError:
                                assert to == "10.213.9.1"
                    try:
                        print("ANSWER", asks.recvfrom(9000))
                    except OSError:
                        pass
            print("done")
    """
    ip("route", "add", "10.213.9.1/32", "via", "10.213.10.1", namespace=other)
    member = machines.start(node, asking, "join")
    assert member.stdout is not None
    assert member.stdout.readline() == "ready\n"
    answers, problems = machines.start(other, asking, "ask", *questions).communicate(timeout=TIMEOUT_S)
    assert (answers, problems) == ("done\n", "")
    for agent in agents:
        agent.close()
    # That the capture sees what leaves is shown by packets of the test's own.
    mark = """
        import socket
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("10.213.10.1"))
            sender.sendto(b"MARK", ("224.0.0.251", 5353))
    """
    machines.start(node, mark).communicate(timeout=TIMEOUT_S)
    # What was captured before its input ended is read first.
    seen = [json.loads(each.communicate(timeout=TIMEOUT_S)[0]) for each in (capture, control)]
    assert seen[0] == [1, []]
    assert seen[1][1]


@needs_root
def test_what_stands_in_the_way_of_multicast_is_named(machines: Machines) -> None:
    name = machines.add(1)

    def error_of(hosts: str = "10.213.9.1") -> str:
        agent = Agent(machines, name, new_cluster(), hosts)
        eventually(lambda: agent.events)
        assert agent.of("error"), agent.events
        agent._process.wait(TIMEOUT_S)
        agent._reader.join()
        message = str(agent.of("error")[0][2])
        assert "--seed HOST:PORT" in message
        return message

    hold = """
        import socket, sys
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder:
            holder.bind(("", 5353))
            print("ready", flush=True)
            sys.stdin.read()
    """
    holder = machines.start(name, hold)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "ready\n"
    assert "5353 for itself" in error_of()
    holder.communicate(timeout=TIMEOUT_S)
    ip("link", "set", "lan", "multicast", "off", namespace=name)
    assert "cannot do multicast" in error_of()
    ip("link", "set", "lan", "multicast", "on", namespace=name)
    ip("link", "set", "lan", "down", namespace=name)
    assert "is down" in error_of()
