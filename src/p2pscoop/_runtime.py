"""The loop: threads, clock and transport around one core node.

Two threads of its own. The *I/O thread* receives, and answers thieves by itself while the node computes. The
*keeper* keeps time: it ticks the core, sends what had to wait, and feeds thieves that registered when there was
nothing. Whatever runs tasks (or only submits them) is behind a `Port`.

The core is entered under one lock. Orders that put tasks into the queue or take them out are carried out under
it too, so that two threads never do so in the wrong order. Everything else happens outside: sending, since the
protocol bears any order of messages; pickling for a thief; and what may run user code.
"""

from __future__ import annotations

import itertools
import logging
import os
import random
import sys
import threading
import time
from _thread import allocate_lock
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import msgpack

from p2pscoop import __version__, _machine
from p2pscoop._constants import Constants
from p2pscoop._core import effects as fx
from p2pscoop._core.codec import Envelope, decode, encode
from p2pscoop._core.ids import NOBODY, NodeId, TaskKey
from p2pscoop._core.limits import NODE_ID_SIZE, Limits
from p2pscoop._core.messages import Message
from p2pscoop._core.node import Node
from p2pscoop._core.values import OwnTask, PeerInfo, Spec
from p2pscoop._deaths import Death, Deaths, notice
from p2pscoop._hints import Hints
from p2pscoop._payload import SpecEncoder, encode_error
from p2pscoop._port import Guest, Port
from p2pscoop._security import DEFAULT_CLUSTER, ClusterKey, cluster_tag
from p2pscoop._shortage import Shortage
from p2pscoop._sources import MARK, Sources, ask_names
from p2pscoop._transport import TCP_SCHEME, TLS_SCHEME, NngTransport, Transport
from p2pscoop.errors import LocalProtocolError, PayloadError, RemoteProtocolError

__all__ = ["ASK_PROGRAM", "ASK_TO_LEAVE", "NO_QUESTION", "NodeStatistics", "Runtime"]

logger = logging.getLogger("p2pscoop")

SWITCH_INTERVAL_S = 0.0005
"""How long user code may keep the interpreter from the I/O thread: at the default of 5 ms a steal from a busy
node takes as long as that."""

_FEED_PAUSE_MIN_S = 0.001
_FEED_PAUSE_MAX_S = 0.016
_SURRENDER_S = 0.005
"""How long pickling for one thief may take, if there is something for it: meanwhile no other gets an answer."""
_PUMP_PAUSE_S = 0.002
_CONNECT_TIMEOUT_S = 10.0
_STATUS_TIMEOUT_S = 2.0
_SHORT_PAUSE_S = 0.1
"""After an error that is likely to come again at once."""
_SEED_PEER = b"seed:"
_TEND_S = 5.0
"""How often seeds that are not among the members are greeted."""
_SPREAD_S = 0.1
"""How often a node with tasks looks whether its program gets its share, if there are several."""
_VOUCH_S = 1.0
"""How often the node looks who of those that are silent lives."""
_TRIM_S = 1.0
"""How often connections are counted."""
_TURNED_AWAY_MAX = 100
"""How many callers that were not let in are named in the log."""
_IN_VAIN_MAX = 10
"""How many nodes that are said to be of this cluster, and do not answer, are named in the log."""
_MALFORMED_MAX = 10
"""How many of the messages that are none are named in the log, each with what is wrong with it."""
_MALFORMED_AGAIN_S = 60.0
"""How often it is said after that how many there were."""
_INQUIRY_RESEND_S = 1.0
"""First repetition of an inquiry; doubles each time."""

ASK_PROGRAM = b"?"
"""The question for what a node needs before it runs tasks of a program. Others begin with the id of an origin."""
ASK_TO_LEAVE = b"!"
"""The request to drain and go. The answer is empty, or says why not."""

NO_QUESTION = 0
"""The number of what is told, and needs no answer."""


@dataclass(frozen=True, slots=True)
class NodeStatistics:
    """What one node has done since it started.

    Attributes:
        id: the node's id, in hexadecimal.
        name: the node's name.
        executed: tasks that it started.
        stolen: tasks that it took from other nodes.
        given: tasks that it gave to other nodes, its own and others'.
        steals: how often it asked for work.
        steals_failed: how often there was none.
        requeued: own tasks that it took back because their holder was lost.
        continuations_given: suspended tasks among those that it gave, which went on elsewhere.
        constants_sent: shared constants that it sent to other nodes.
        modules_sent: modules of its program whose source it sent to other nodes.
    """

    id: str
    name: str
    executed: int = 0
    stolen: int = 0
    given: int = 0
    steals: int = 0
    steals_failed: int = 0
    requeued: int = 0
    continuations_given: int = 0
    constants_sent: int = 0
    modules_sent: int = 0


class _Inquiry(NamedTuple):
    """A question that is repeated until it is answered."""

    peer: NodeId
    question: bytes
    due_at: float
    pause_s: float


class Runtime:
    """One node of this process.

    Args:
        port: what runs or submits the tasks.
        name: of the node, for people.
        directory: private directory of this machine's nodes; also names the group whose sockets can be reached.
            None: this node reaches no other, and is reached, but by TCP.
        seeds: addresses to join at; none for the node that founds the cluster.
        tcp: host and port to listen at, or None.
        keys: of the cluster; without any, connections by TCP are not secured.
        cluster: name of the cluster.
        founder: whether the node is a member without having been let in  [default: if it has no seeds].
        resident: whether the node stays when no program is there.
        stays: whether it becomes a resident if it joins a cluster that has some.
        steals: whether it looks for work.
        socket_name: of this node in the directory, if others have to know it beforehand.
        origin: whether the program's tasks start here.
        runs_tasks: whether the node runs tasks itself.
        program: what peers prepare before they run this node's tasks.
        limits: bounds and durations.
        predecessor: of the node that died before this one took its place: its pid, and how it died.
        on_leave: called, in a thread of the runtime's, when somebody wants the node to drain and go. None: it does
            not do so.
    """

    def __init__(
        self,
        port: Port,
        *,
        name: str,
        directory: str | None,
        seeds: Sequence[str] = (),
        tcp: tuple[str, int] | None = None,
        keys: Sequence[ClusterKey] = (),
        cluster: str = DEFAULT_CLUSTER,
        founder: bool | None = None,
        resident: bool = False,
        stays: bool = False,
        steals: bool = True,
        socket_name: str | None = None,
        origin: bool = False,
        runs_tasks: bool = True,
        program: bytes | None = None,
        limits: Limits | None = None,
        predecessor: tuple[int, str] | None = None,
        on_leave: Callable[[], None] | None = None,
    ) -> None:
        self.port = port
        self._on_leave = on_leave
        self._predecessor = predecessor
        self._deaths = Deaths()
        self._shortage = Shortage(name)
        limits = limits or Limits()
        self.limits = replace(limits, connections_max=_machine.connections_max(limits.connections_max))
        self.name = name
        self._seeds = tuple(seeds)
        self._events: deque[tuple[bytes, bool]] = deque()
        self._alarm = allocate_lock()
        self._alarm.acquire()
        self._lock = threading.Lock()
        self._stopping = False
        self.surrendering = 0
        """How many threads have tasks in their hands that are neither queued nor lent."""
        self._serve_at: float | None = None
        self._arm_at: float | None = None
        self._feed_pause_s = _FEED_PAUSE_MIN_S
        self._keeper_until = 0.0
        self._dialled: dict[bytes, float] = {}
        self._hints = Hints(self._on_greeted_in_vain)
        self._greeted: dict[str, float] = {}
        self._turned_away: set[str] = set()
        self._one_way: set[NodeId] = set()
        self._in_vain = 0
        self.malformed = 0
        """How many messages came that were none."""
        self._malformed_at = 0.0
        self._queries: dict[int, dict[NodeId, dict[str, int]]] = {}
        self._answered = threading.Condition()
        self._questions: dict[int, Callable[[bytes], None]] = {}
        self._question_numbers = itertools.count(1)
        node_id = os.urandom(NODE_ID_SIZE)
        self.transport: Transport = NngTransport(
            directory, socket_name or f"{node_id.hex()}.ipc", tcp, self.limits, self._on_link, keys
        )
        self._secure = bool(keys)
        self._program = program
        self._sources = Sources() if origin else None
        if self._sources is not None:
            self._sources.note_imported()
        info = PeerInfo(
            id=node_id,
            name=name,
            addresses=self.transport.addresses,
            group=directory or node_id.hex(),
            origin=origin,
            runs_tasks=runs_tasks,
            host=_machine.host_name(),
            pid=os.getpid(),
            version=__version__,
            resident=resident,
        )
        self.node = Node(
            info,
            random.Random(os.urandom(16)),
            self.limits,
            python=_machine.python_version(),
            founder=not seeds if founder is None else founder,
            cluster=cluster_tag(cluster),
            stays=stays,
            steals=steals,
        )
        self._constants: dict[NodeId, Constants] = {}
        self._inquiries: dict[int, _Inquiry] = {}
        self._contested = False
        self._spread_at = 0.0
        self._given = 0
        self._rng = random.Random(os.urandom(16))
        self._tend_at = 0.0
        self._trim_at = 0.0
        self._vouch_at = 0.0
        self._handlers: dict[type[fx.Effect], Callable[[Any], Callable[[], None] | None]] = {
            fx.Send: lambda effect: lambda: self._send(effect.recipient, effect.message),
            fx.SendToSeeds: lambda effect: lambda: self._send_to_seeds(effect.message),
            fx.Disconnect: lambda effect: lambda: self._disconnect(effect.peer),
            fx.Surrender: lambda effect: lambda: self._surrender(effect),
            fx.Enqueue: lambda effect: port.enqueue([Guest(key, spec) for key, spec in effect.tasks]),
            fx.Withdraw: lambda effect: port.withdraw(effect.keys),
            fx.Interrupt: lambda effect: lambda: port.interrupt(effect.keys),
            fx.Settle: lambda effect: (
                lambda: port.settle(effect.handle, effect.outcome, effect.holder, effect.hungry)
            ),
            fx.Kept: lambda effect: lambda: port.kept(effect.handle, effect.serial, effect.holder, effect.hungry),
            fx.Poisoned: lambda effect: lambda: self._poisoned(effect.handle, effect.holders),
            fx.ComeHome: lambda effect: lambda: port.come_home(effect.handle, effect.serial, effect.spec),
            fx.Released: lambda effect: lambda: port.released(effect.handle),
            fx.Passed: lambda effect: lambda: port.passed(effect.key),
            fx.Joined: lambda _: self._on_joined,
            fx.Refused: lambda effect: lambda: port.refused(effect.reason),
            fx.TurnedAway: lambda effect: lambda: self._on_turned_away(effect.info, effect.reason),
            fx.Arrived: lambda effect: lambda: port.arrived(effect.info),
            fx.Departed: lambda effect: lambda: port.departed(effect.info, effect.reason, effect.failed),
            fx.Report: lambda effect: lambda: self._report(effect.peer, effect.query),
            fx.Asked: lambda effect: lambda: self._on_asked(effect.peer, effect.query, effect.question),
            fx.Answered: lambda effect: lambda: self._on_answered(effect.query, effect.answer),
            fx.StatusArrived: lambda effect: lambda: self._on_status(effect.peer, effect.query, effect.counters),
        }
        self._threads = [
            threading.Thread(target=self._receive_loop, name=f"p2pscoop-io-{name}", daemon=True),
            threading.Thread(target=self._keep_loop, name=f"p2pscoop-keeper-{name}", daemon=True),
        ]

    # -------------------------------------------------------------------------------- life and death

    def start(self) -> None:
        """Start the threads, and join."""
        sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_INTERVAL_S))
        for thread in self._threads:
            thread.start()
        self.do(self.node.start)

    def stop(self, reason: str = "the program has ended", *, failed: bool = False) -> None:
        """Say goodbye, stop the threads and close the sockets. Safe to call twice; not from the own threads."""
        if self._stopping:
            return
        self.do(lambda _: self.node.goodbye(reason, failed=failed))
        # NNG does not wait for what is queued when it closes: give the goodbye a moment to leave.
        deadline = time.monotonic() + 0.5
        while self.transport.pump() and time.monotonic() < deadline:
            time.sleep(0.005)
        self._stopping = True
        self._ring()
        for thread in self._threads:
            while thread.is_alive():
                self.transport.wake()
                thread.join(0.05)
        self.transport.close()

    def is_own_thread(self) -> bool:
        """Whether this is one of the runtime's threads, which cannot wait for themselves."""
        return threading.current_thread() in self._threads

    # ------------------------------------------------------------------------------------ the core

    def do(self, step: Callable[[float], list[fx.Effect]]) -> None:
        """Enter the core, and carry out what it orders. Any thread."""
        deferred: list[Callable[[], None]] = []
        with self._lock:
            now = time.monotonic()
            for effect in step(now):
                later = self._handlers[type(effect)](effect)
                if later is not None:
                    deferred.append(later)
            self._note_hunger(now)
            if self._due_at() < self._keeper_until:
                self._ring()
        for action in deferred:
            action()

    def begin(self, key: TaskKey) -> bool:
        """A guest is started. False if it is not this node's to run any more."""
        with self._lock:
            return self.node.begin(key)

    def found_work(self) -> None:
        """The node runs something again."""
        with self._lock:
            self.node.found_work()

    def settled_at_home(self, serial: int) -> None:
        """A task that had been lent ended here."""
        with self._lock:
            self.node.settled_at_home(serial)

    def know_as(self, serial: int, handle: object) -> None:
        """An own task that is elsewhere gets another handle."""
        with self._lock:
            self.node.replace_handle(serial, handle)

    def handles(self) -> list[Any]:
        """Of the own tasks that are elsewhere, or were."""
        with self._lock:
            return [record.handle for record in self.node.owned]

    def cancel(self, is_wanted: Callable[[Any], bool]) -> None:
        """Cancel own tasks that are elsewhere, even if they run; told by their handles."""

        def cancel(_: float) -> list[fx.Effect]:
            serials = [record.serial for record in self.node.owned if is_wanted(record.handle)]
            return [effect for serial in serials for effect in self.node.cancel(serial, stop=True)]

        self.do(cancel)

    def size(self) -> int:
        """How many nodes run tasks, as far as this one knows; itself included if it does."""
        membership = self.node.membership
        rows = [membership.row(peer) for peer in membership.alive_peers()]
        return sum(row is not None and row.info.runs_tasks for row in rows) + self.node.info.runs_tasks

    def feed(self) -> None:
        """There is something to steal, and `Port.hungry` was set: serve the thieves that wait."""
        self._serve_at = 0.0
        self._ring()

    def _note_hunger(self, now: float) -> None:
        """Have new tasks announced while thieves wait, but not more often than makes sense.

        A task that its spawner joins at once is gone before a thief can have it. Where that goes on, each
        announcement costs the spawner more than the task; so the pause after one that led to nothing grows.
        """
        if not self.node.hungry:
            self.port.hungry = False
            self._arm_at = None
        elif self._arm_at is None and self._serve_at is None and not self.port.hungry:
            self._arm_at = now

    # ------------------------------------------------------------------------------------- effects

    def _send(self, recipient: PeerInfo, message: Message) -> None:
        self._post(recipient.id, recipient.id, self._reachable(recipient), message)

    def _poisoned(self, task: Any, holders: tuple[NodeId, ...]) -> None:
        rows = [self.node.membership.row(holder) for holder in holders]
        infos = [None if row is None else row.info for row in rows]
        self._deaths.poisoned(time.monotonic(), task, self.port.name_of(task), infos)
        self._explain_poison()

    def _explain_poison(self) -> None:
        for task, problem in self._deaths.explained(time.monotonic()):
            self.port.settle(task, encode_error(problem, self.name), self.node.id, False)

    def _send_to_seeds(self, message: Message) -> None:
        for seed in self._seeds:
            peer = _SEED_PEER + seed.encode()
            # While it cannot be reached, one message waits for the connection; a queue of them would not help.
            if peer not in self._dialled or self.transport.is_connected(peer):
                self._post(peer, NOBODY, (seed,), message)

    def _post(self, peer: bytes, recipient: NodeId, addresses: Sequence[str], message: Message) -> None:
        try:
            data = encode(Envelope(self.node.id, recipient, message), self.limits)
        except LocalProtocolError:
            logger.exception("%s to %s was not sent", type(message).__name__, recipient.hex())
            return
        self._dialled.setdefault(peer, time.monotonic())
        self.transport.send(peer, addresses, data)

    def _reachable(self, info: PeerInfo) -> list[str]:
        """The addresses of a peer that this node can use: sockets of files only within its own group.

        Whoever has a key never talks in the clear, whatever a peer says.
        """
        ipc = info.group == self.node.info.group
        tcp = TLS_SCHEME if self._secure else TCP_SCHEME
        return [each for each in info.addresses if each.startswith(tcp) or (ipc and each.startswith("ipc:"))]

    def _disconnect(self, peer: bytes) -> None:
        self._dialled.pop(peer, None)
        self.transport.disconnect(peer)

    def _surrender(self, effect: fx.Surrender) -> None:
        self._hand_over(effect, lambda: self.port.take(effect.count_max, effect.thief))

    def _hand_over(self, effect: fx.Surrender, take: Callable[[], tuple[Sequence[Any], Sequence[Guest]]]) -> None:
        with self._lock:
            self.surrendering += 1
        try:
            self._take_and_give(effect, take)
        finally:
            with self._lock:
                self.surrendering -= 1

    def hand_out(self, thief: NodeId, count: int) -> None:
        """Give so many tasks to a node that has not asked."""
        self._surrender(fx.Surrender(thief, 0, count, answer=False))

    def _take_and_give(
        self, effect: fx.Surrender, take: Callable[[], tuple[Sequence[Any], Sequence[Guest]]]
    ) -> None:
        own, guests = take()
        encoder = SpecEncoder(self.limits.message_max - self.limits.header_max)
        offers: list[OwnTask] = []
        started: list[tuple[TaskKey, Spec]] = []
        weight = 0
        until = time.monotonic() + _SURRENDER_S
        for task in own:
            if weight > self.limits.frame_max or ((offers or started) and time.monotonic() > until):
                # Enough for one message, or for one steal: the rest goes back to where it was.
                self.port.come_home(task, self.port.serial_of(task))
                continue
            try:
                spec = self.port.encode(task, encoder, effect.thief)
            except PayloadError as error:
                self.port.refuse(task, error)
                continue
            weight += len(spec.args)
            key = self.port.key_of(task)
            if key is None:
                offers.append(OwnTask(task, self.port.serial_of(task), spec, self.port.deaths_max(task)))
            else:
                started.append((key, spec))
        queued: list[tuple[TaskKey, Spec | None]] = [(guest.key, None) for guest in guests]
        unwanted: list[TaskKey] = []

        def give(now: float) -> list[fx.Effect]:
            for key, spec in started:
                if self.node.ready(key):
                    queued.append((key, spec))
                else:
                    unwanted.append(key)
            return self.node.give(now, effect.thief, effect.steal, offers, queued, answer=effect.answer)

        self.do(give)
        if unwanted:
            self.port.withdraw(unwanted)

    def hint(self, node: NodeId, addresses: Sequence[tuple[str, int]]) -> None:
        """Somebody says that a node of the cluster is at these hosts and ports. Any thread."""
        scheme = TLS_SCHEME if self._secure else TCP_SCHEME
        if node != self.node.id and addresses:
            places = [scheme + _machine.join_address(host, port) for host, port in addresses]
            self._hints.add(time.monotonic(), node, places)
            self._ring()

    def _spread(self, now: float) -> None:
        """With several programs at once, give a task to a node that has none of this node's.

        Nodes that never run out of one program's tasks never ask for another's. A node that nobody has stolen from
        for a while does this, and a program that has less than its share of the nodes.
        """
        self._spread_at = now + _SPREAD_S
        given, self._given = self._given, self.node.counters.given
        with self._lock:
            membership = self.node.membership
            programs = len(membership.origins())
            self._contested = programs > 1 and self.node.joined and not self.node.leaving
            if not self._contested:
                return
            holders = self.node.owned.holders
            rows = [row for peer in membership.alive_peers() if (row := membership.row(peer)) is not None]
        programs_here = self.port.share()
        nodes = [row.info.id for row in rows if row.info.runs_tasks and not row.info.origin]
        if self.node.info.origin and len(holders) * programs < len(nodes):
            nodes = [node for node in nodes if node not in holders]
        elif given != self._given:
            nodes = []
        if programs_here and nodes:
            program, thief = self._rng.choice(programs_here), self._rng.choice(nodes)
            self._hand_over(fx.Surrender(thief, 0, 1, answer=False), lambda: self.port.take_of(program, thief))

    def _greet(self, now: float) -> None:
        """Greet whoever is at the address of a seed or of a hint, and no known peer has it.

        A seed may have been restarted; a cluster that was cut in two, or founded twice, finds itself again.
        """
        for address, until in list(self._greeted.items()):
            if now >= until:
                del self._greeted[address]
                self._disconnect(_SEED_PEER + address.encode())
        if not self.node.joined or self.node.leaving:
            self._tend_at = now + _TEND_S
            return
        membership = self.node.membership
        wanted = set(self._hints.due(now, membership.__contains__))
        if now >= self._tend_at:
            self._tend_at = now + _TEND_S
            wanted.update(self._seeds)
        rows = [membership.row(peer) for peer in (*membership.alive_peers(), self.node.id)]
        wanted.difference_update(address for row in rows if row is not None for address in row.info.addresses)
        for address in wanted:
            self._greeted[address] = now + _TEND_S
            self._post(_SEED_PEER + address.encode(), NOBODY, (address,), self.node.greeting())

    def _on_greeted_in_vain(self, addresses: Sequence[str]) -> None:
        """Both sides hear of each other, so each says it. Anyone can forge a hint, so it is not said for ever."""
        if self._in_vain < _IN_VAIN_MAX:
            self._in_vain += 1
            logger.warning(
                "%s: somebody at %s says by multicast DNS that it is of this cluster, and does not answer: it has "
                "another key (compare `p2pscoop keygen --show`), or cannot be reached from here",
                self.name,
                ", ".join(address.rpartition("//")[2] for address in addresses),
            )

    def _on_joined(self) -> None:
        for seed in self._seeds:
            # From now on the seed is a peer among others, with a connection of its own.
            self._events.append((_SEED_PEER + seed.encode(), False))
        self._ring()
        if self._predecessor is not None:
            word = notice(Death(self.node.info.host, *self._predecessor))
            for peer in self.node.membership.alive_peers():
                self.ask(peer, NO_QUESTION, word)
        self.port.joined()

    # ---------------------------------------------------------------------------------- statistics

    def statistics(self) -> list[NodeStatistics]:
        """What each node has done: this one first, then the others that answer in time, by name."""
        with self._answered:
            query = len(self._queries) + 1
            answers = self._queries[query] = {}
        asked: list[fx.Effect] = []

        def ask(_: float) -> list[fx.Effect]:
            asked.extend(self.node.ask_status(query))
            return asked

        self.do(ask)
        with self._answered:
            self._answered.wait_for(lambda: len(answers) >= len(asked), _STATUS_TIMEOUT_S)
            rows = dict(answers)
        names = {peer: row.info.name for peer in rows if (row := self.node.membership.row(peer)) is not None}
        others = [_statistics(peer, names.get(peer, "?"), counters) for peer, counters in rows.items()]
        mine = _statistics(self.node.id, self.name, self._counters())
        return [mine, *sorted(others, key=lambda each: each.name)]

    def _counters(self) -> dict[str, int]:
        return {
            **asdict(self.node.counters),
            **self.port.counters(),
            "constants_sent": sum(each.sent for each in self._constants.values()),
            "modules_sent": 0 if self._sources is None else self._sources.sent,
        }

    def _report(self, peer: NodeId, query: int) -> None:
        data: bytes = msgpack.packb(self._counters())
        self.do(lambda _: self.node.report(peer, query, data))

    def _on_status(self, peer: NodeId, query: int, data: bytes) -> None:
        try:
            counters = msgpack.unpackb(data)
        except (ValueError, msgpack.exceptions.UnpackException):
            return
        with self._answered:
            if query in self._queries and isinstance(counters, dict):
                self._queries[query][peer] = counters
                self._answered.notify_all()

    # ----------------------------------------------------------------------------------- questions

    def question(self, on_answer: Callable[[bytes], None]) -> int:
        """A number for a question, whose answer is given to this, once, in any thread."""
        query = next(self._question_numbers)
        self._questions[query] = on_answer
        return query

    def ask(self, peer: NodeId, query: int, question: bytes) -> None:
        """Ask a peer, or ask again: question or answer may have got lost."""
        self.do(lambda _: self.node.ask(peer, query, question))

    def forget_question(self, query: int) -> None:
        """An answer is not wanted any more."""
        self._questions.pop(query, None)

    def constants(self, origin: NodeId) -> Constants:
        """What the nodes of a program share, as far as it is here."""
        found = self._constants.get(origin)
        if found is None:
            me = self.node.id
            made = Constants(me, self.node.membership.is_alive, self.limits.bulk_min, origin=origin == me)
            found = self._constants.setdefault(origin, made)
        return found

    def forget_constants(self, origin: NodeId) -> None:
        """A program has ended."""
        self._constants.pop(origin, None)

    def inquire(self, peer: NodeId, question: bytes, on_answer: Callable[[bytes], None]) -> None:
        """Ask a peer until it answers or is gone. `on_answer` is called in a thread of this runtime's.

        May be called while the core is locked.
        """
        query = self.question(on_answer)
        self._inquiries[query] = _Inquiry(peer, question, time.monotonic(), _INQUIRY_RESEND_S)
        self._ring()

    def _send_inquiries(self, now: float) -> None:
        for query, inquiry in list(self._inquiries.items()):
            if query not in self._questions or self.node.membership.is_gone(inquiry.peer):
                self._inquiries.pop(query, None)
                self.forget_question(query)
            elif now >= inquiry.due_at:
                self._inquiries[query] = inquiry._replace(
                    due_at=now + inquiry.pause_s, pause_s=2 * inquiry.pause_s
                )
                self.ask(inquiry.peer, query, inquiry.question)

    def _on_asked(self, peer: NodeId, query: int, question: bytes) -> None:
        if self._deaths.hear(question):
            self._explain_poison()
            return
        answer: bytes | None
        if question == ASK_TO_LEAVE:
            answer = b"it is the process of a program, and goes when that ends" if self._on_leave is None else b""
            if self._on_leave is not None:
                self._on_leave()
        elif question == ASK_PROGRAM:
            answer = None
            if self._sources is not None:
                self._sources.note_imported()
                # In one answer: a node that waits for a second one has its first task later.
                answer = msgpack.packb((self._program, self._sources.answer(ask_names())))
        else:
            origin, question = question[:NODE_ID_SIZE], question[NODE_ID_SIZE:]
            if self.node.membership.is_gone(origin):
                return
            if question.startswith(MARK):
                if self._sources is not None and origin == self.node.id:
                    reply = self._sources.answer(question)
                    self.do(lambda _: self.node.answer(peer, query, reply))
                return
            answer = self.constants(origin).answer(time.monotonic(), peer, question)
        if answer is not None:
            reply = answer
            self.do(lambda _: self.node.answer(peer, query, reply))

    def _on_turned_away(self, info: PeerInfo, reason: str) -> None:
        caller = f"{info.name} on {info.host}"
        if caller not in self._turned_away and len(self._turned_away) < _TURNED_AWAY_MAX:
            self._turned_away.add(caller)
            logger.warning("%s: did not let %s in: %s", self.name, caller, reason)

    def _on_answered(self, query: int, answer: bytes) -> None:
        on_answer = self._questions.pop(query, None)
        if on_answer is not None:
            on_answer(answer)

    # ------------------------------------------------------------------------------------- threads

    def _receive_loop(self) -> None:
        while not self._stopping:
            try:
                data = self.transport.receive()
                if data is not None:
                    self._receive(decode(data, self.limits))
            except RemoteProtocolError as error:
                self._on_malformed(error)
            except Exception as error:
                if self._shortage.tell(error):
                    time.sleep(_SHORT_PAUSE_S)  # It would only be the same again.
                else:
                    logger.exception("%s: the I/O thread goes on after an error", self.name)

    def _on_malformed(self, error: RemoteProtocolError) -> None:
        self.malformed += 1
        now = time.monotonic()
        if self.malformed <= _MALFORMED_MAX:
            logger.warning("%s: dropped a message: %s", self.name, error)
            self._malformed_at = now + _MALFORMED_AGAIN_S
        elif now >= self._malformed_at:
            logger.warning("%s: dropped %d messages by now; the last: %s", self.name, self.malformed, error)
            self._malformed_at = now + _MALFORMED_AGAIN_S

    def _receive(self, envelope: Envelope) -> None:
        self.do(lambda now: self.node.receive(now, envelope))

    def _keep_loop(self) -> None:
        waiting = False
        while not self._stopping:
            try:
                waiting = self._keep(waiting)
            except Exception as error:
                if not self._shortage.tell(error):
                    logger.exception("%s: the keeper goes on after an error", self.name)
                time.sleep(_SHORT_PAUSE_S)

    def _keep(self, waiting: bool) -> bool:
        """Sleep until something is due, and do it. Whether frames are still waiting to be sent."""
        with self._lock:
            self._keeper_until = self._due_at()
            if waiting:
                self._keeper_until = min(self._keeper_until, time.monotonic() + _PUMP_PAUSE_S)
        pause = self._keeper_until - time.monotonic()
        if pause > 0:
            self._alarm.acquire(timeout=min(pause, 1.0))
        with self._lock:
            self._keeper_until = 0.0  # Awake: nobody need ring.
        if self._stopping:
            return False
        self._handle_events()
        self._explain_poison()
        now = time.monotonic()
        if now >= self._spread_at:
            self._spread(now)
        if now >= self._trim_at:
            self._trim_at = now + _TRIM_S
            with self._lock:
                counterparts = self.node.counterparts
            for peer in self.transport.unused(counterparts):
                self._disconnect(peer)
        self._send_inquiries(now)
        if now >= self._greet_at():
            self._greet(now)
        if self._serve_at is not None:
            self._serve(now)
        elif self._arm_at is not None and now >= self._arm_at:
            # In this order: a task that comes between the two is announced, one before them is fed.
            self._arm_at = None
            self.port.hungry = True
            self.do(self.node.feed)
        with self._lock:
            due = now >= self.node.wake_at()
        if due:
            if now >= self._vouch_at:
                self._vouch_at = now + _VOUCH_S
                self._vouch()
            self._shortage.look()
            self.do(self.node.tick)
        return self.transport.pump()

    def _vouch(self) -> None:
        """A connection within this machine ends with the process, so those that it leads to are alive.

        So are those elsewhere whose machines acknowledge what is sent to them.
        """
        membership, group, now = self.node.membership, self.node.info.group, time.monotonic()
        with self._lock:
            rows = [row for peer in self.node.counterparts if (row := membership.row(peer)) is not None]
            silent = [row.info for row in rows if self.node.is_silent(now, row.info.id)]
        # Whoever is silent is asked something with every renewal.
        within_s = 1.5 * self.limits.holding_s
        living = [
            info.id
            for info in silent
            if self.transport.is_connected(info.id)
            and (info.group == group or self.transport.is_acknowledged(info.id, within_s))
        ]
        if living:
            with self._lock:
                self.node.vouch(now, living)

    def _due_at(self) -> float:
        """When the keeper has something to do."""
        times = (self.node.wake_at(), self._serve_at, self._arm_at)
        due_at = min(at for at in times if at is not None)
        if self._contested:
            due_at = min(due_at, self._spread_at)
        for inquiry in list(self._inquiries.values()):
            due_at = min(due_at, inquiry.due_at)
        return min(due_at, self._greet_at())

    def _greet_at(self) -> float:
        ready = self.node.joined and not self.node.leaving
        return min(self._tend_at, self._hints.wake_at) if ready else self._tend_at

    def _serve(self, now: float) -> None:
        """Somebody announced tasks."""
        self._serve_at = None
        given = self.node.counters.given
        self.do(self.node.feed)
        fruitless = self.node.counters.given == given
        pause = 2 * self._feed_pause_s if fruitless else _FEED_PAUSE_MIN_S
        self._feed_pause_s = min(pause, _FEED_PAUSE_MAX_S)
        with self._lock:
            if self.node.hungry and not self.port.hungry:
                self._arm_at = now + self._feed_pause_s

    def _handle_events(self) -> None:
        while self._events:
            peer, connected = self._events.popleft()
            if connected:
                continue  # The pump is next.
            self._disconnect(peer)
            if not peer.startswith(_SEED_PEER):
                self._lose(peer)
        late = time.monotonic() - _CONNECT_TIMEOUT_S
        for peer, since in list(self._dialled.items()):
            # Seeds too: NNG dials no more if a handshake was cut off at a certain point.
            if since < late and not self.transport.is_connected(peer):
                self._on_no_connection(peer)
                self._events.append((peer, False))

    def _on_no_connection(self, peer: NodeId) -> None:
        row = self.node.membership.row(peer)
        if row is None or not self.node.hears(time.monotonic(), peer) or peer in self._one_way:
            logger.info("%s: no connection to %s within %s s", self.name, peer.hex(), _CONNECT_TIMEOUT_S)
            return
        if len(self._one_way) < _TURNED_AWAY_MAX:
            self._one_way.add(peer)
            logger.warning(
                "%s: %s on %s reaches this node, and is not reached from here at %s: nodes need a way to each "
                "other; give it --listen ADDR, an address at which it can be reached, or use `run --tunnel`",
                self.name,
                row.info.name,
                row.info.host,
                ", ".join(address.rpartition("//")[2] for address in self._reachable(row.info)) or "any address",
            )

    def _lose(self, peer: NodeId) -> None:
        self.do(lambda now: self.node.peer_lost(now, peer))

    def _on_link(self, peer: bytes, connected: bool) -> None:
        """In a thread of the transport's: only take note."""
        self._events.append((peer, connected))
        self._ring()

    def _ring(self) -> None:
        try:
            self._alarm.release()
        except RuntimeError:
            pass  # It has been rung already.


def _statistics(node: NodeId, name: str, counters: dict[str, int]) -> NodeStatistics:
    known = {
        key: value
        for key, value in counters.items()
        if key in NodeStatistics.__dataclass_fields__ and type(value) is int
    }
    return NodeStatistics(node.hex(), name, **known)
