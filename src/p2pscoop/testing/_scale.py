"""A large cluster in virtual time: how well the stealing protocol keeps thousands of nodes at work.

Every node is a real core node. What surrounds it is as little as can be: a deque, one task at a time, every node
introduced to every other from the start, messages that take their time and are never lost, and no check but the
count at the end. `Simulator` has the faults and the guarantees; it is too thorough for more than a few nodes.

Not modelled: what a message costs its sender and its receiver. Both answer at once, as the I/O thread of a real
node does while a task runs.
"""

from __future__ import annotations

import hashlib
import heapq
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from p2pscoop._core import effects as fx
from p2pscoop._core.codec import Envelope
from p2pscoop._core.deque import half, take_newest, take_oldest
from p2pscoop._core.ids import NodeId, TaskKey
from p2pscoop._core.limits import NODE_ID_SIZE, Limits
from p2pscoop._core.messages import Steal
from p2pscoop._core.node import Node
from p2pscoop._core.values import MemberEntry, MemberState, Outcome, OutcomeKind, OwnTask, PeerInfo, Spec
from p2pscoop.testing._report import InvariantError

__all__ = ["Cluster", "Measured", "UtsTree"]

_SETTLE_S = 5.0
"""After the end of the program, before the messages of idle nodes are counted."""

_JITTER = 0.2
"""Each message takes between 1 - _JITTER and 1 + _JITTER of the latency."""


class UtsTree:
    """A geometric tree of Unbalanced Tree Search, the shape of T1; nobody knows a subtree before it is searched.

    Args:
        depth_max: nodes of this depth have no children; 10 makes it T1, with 4,130,071 nodes.
        branching: mean number of children.
        seed: of the root.
    """

    def __init__(self, depth_max: int, branching: float = 4.0, seed: int = 19) -> None:
        self.root = hashlib.sha1(bytes(16) + seed.to_bytes(4, "big")).digest()
        self._depth_max = depth_max
        self._scale = 1 / math.log(1 - 1 / (1 + branching))

    def children(self, state: bytes, depth: int) -> list[bytes]:
        """The states of the children of a node."""
        if depth >= self._depth_max:
            return []
        draw = int.from_bytes(state[16:], "big") & 0x7FFFFFFF
        count = min(math.floor(math.log(1 - draw / 2**31) * self._scale), 100)
        return [hashlib.sha1(state + index.to_bytes(4, "big")).digest() for index in range(count)]

    def size(self) -> int:
        """The number of nodes, by a serial search."""
        count = 0
        stack = [(self.root, 0)]
        while stack:
            state, depth = stack.pop()
            count += 1
            stack += [(child, depth + 1) for child in self.children(state, depth)]
        return count


@dataclass(frozen=True, slots=True)
class Measured:
    """One run.

    Attributes:
        nodes: of the cluster.
        latency_s: of a message, on average.
        task_s: what each task computed.
        tasks: that were run, each once; the number of nodes of the tree.
        makespan_s: from the start, with all work on one node, to the outcome of the root.
        steals: requests that want an answer.
        failed: those among them that were answered with nothing.
        registrations: with lifelines.
        given: tasks that went to another node, each time that they did.
        messages: all of them, until the outcome of the root.
        idle_mean: messages that an idle node sent per second, afterwards.
        idle_max: the same, for the node that sent the most.
    """

    nodes: int
    latency_s: float
    task_s: float
    tasks: int
    makespan_s: float
    steals: int
    failed: int
    registrations: int
    given: int
    messages: int
    idle_mean: float
    idle_max: float

    @property
    def work_s(self) -> float:
        """What each node had to compute, on average."""
        return self.tasks * self.task_s / self.nodes

    @property
    def efficiency(self) -> float:
        """The part of the time of all nodes that was spent on tasks."""
        return self.work_s / self.makespan_s

    @property
    def message_rate(self) -> float:
        """Messages that a node sent per second, until the outcome of the root."""
        return self.messages / self.nodes / self.makespan_s


class _Task:
    """A node of the tree, on the cluster node that owns it or on one that holds it."""

    __slots__ = ("claimed", "count", "depth", "key", "missing", "parent", "serial", "state")

    def __init__(self, state: bytes, depth: int, parent: _Task | None, key: TaskKey | None = None) -> None:
        self.state = state
        self.depth = depth
        self.parent = parent
        self.key = key
        self.serial: int | None = None
        self.claimed = False
        self.count = 1
        """Nodes below it that are counted, and itself."""
        self.missing = 0
        """Children that have not ended."""

    def claim(self) -> bool:
        if self.claimed:
            return False
        self.claimed = True
        return True


class _LeanNode:
    """The shell of one node."""

    def __init__(self, cluster: Cluster, info: PeerInfo) -> None:
        self.cluster = cluster
        rng = random.Random(cluster.rng.getrandbits(64))
        self.node = Node(info, rng, cluster.limits, python="sim", founder=True)
        self.sent = 0
        self.executed = 0
        self._own: deque[_Task] = deque()
        self._guests: deque[_Task] = deque()
        self._running = False
        self._tick_at = math.inf
        # Without faults there are no others: one would be a KeyError.
        self._handlers: dict[type[fx.Effect], Callable[[Any], None]] = {
            fx.Send: self._send,
            fx.Surrender: self._surrender,
            fx.Enqueue: self._enqueue,
            fx.Settle: self._settle,
            fx.ComeHome: self._come_home,
            # What is withdrawn stays in the queue: when its turn comes, the core does not let it begin.
            fx.Withdraw: lambda _: None,
        }

    def start(self, root: _Task | None) -> None:
        """The process is ready, and the script starts if it is here."""
        if root is not None:
            self._own.append(root)
        self._carry_out(self.node.start(self.cluster.now))

    def receive(self, envelope: Envelope) -> None:
        """A message arrives."""
        self._carry_out(self.node.receive(self.cluster.now, envelope))

    def tick(self, at: float) -> None:
        """Something may be due; not if an earlier tick was scheduled since."""
        if at != self._tick_at:
            return
        self._tick_at = math.inf
        self._carry_out(self.node.tick(self.cluster.now))

    def computed(self, task: _Task) -> None:
        """The task that ran here spawns children and waits for them, or has none and ends."""
        self._running = False
        self.executed += 1
        children = self.cluster.tree.children(task.state, task.depth)
        if not children:
            self._end(task)
        task.missing = len(children)
        self._own.extend(_Task(child, task.depth + 1, task) for child in children)
        self._next()
        if self.node.hungry and (self._own or self._guests):
            self._apply(self.node.feed(self.cluster.now))
            self._schedule_tick()

    def _next(self) -> None:
        """Run the newest task if nothing runs; without one, look for work."""
        while not self._running:
            task = take_newest(self._own) or take_newest(self._guests)
            if task is None:
                self._apply(self.node.seek(self.cluster.now))
                self._schedule_tick()
                return
            if task.key is None or self.node.begin(task.key):
                self.node.found_work()
                self._running = True
                self.cluster.at(self.cluster.now + self.cluster.task_s, self.computed, task)

    def _end(self, task: _Task) -> None:
        """A subtree is counted, and with it perhaps those above it."""
        while task.key is None:
            if task.serial is not None:
                self.node.settled_at_home(task.serial)
            if task.parent is None:
                self.cluster.finish(task.count)
                return
            task.parent.count += task.count
            task.parent.missing -= 1
            if task.parent.missing:
                return
            task = task.parent
        outcome = Outcome(OutcomeKind.VALUE, str(task.count).encode())
        self._apply(self.node.finish(self.cluster.now, task.key, outcome))
        self._schedule_tick()

    # -------------------------------------------------------------------------------------- effects

    def _carry_out(self, effects: list[fx.Effect]) -> None:
        self._apply(effects)
        self._next()
        self._schedule_tick()

    def _apply(self, effects: list[fx.Effect]) -> None:
        for effect in effects:
            self._handlers[type(effect)](effect)

    def _schedule_tick(self) -> None:
        # A little late, so that rounding never makes it too early, again and again.
        at = self.node.wake_at() + 1e-9
        if at < self._tick_at:
            self._tick_at = at
            self.cluster.at(at, self.tick, at)

    def _send(self, effect: fx.Send) -> None:
        self.sent += 1
        if isinstance(effect.message, Steal) and effect.message.lifeline:
            self.cluster.registrations += 1
        recipient = effect.recipient.id
        self.cluster.carry(recipient, Envelope(self.node.id, recipient, effect.message))

    def _surrender(self, effect: fx.Surrender) -> None:
        queues = [self._guests, self._own]
        own: list[OwnTask] = []
        guests: list[tuple[TaskKey, Spec | None]] = []
        for task in take_oldest(queues, half(sum(map(len, queues)), effect.count_max)):
            if task.key is None:
                own.append(OwnTask(task, task.serial, Spec(b"", bytes([task.depth]) + task.state)))
            else:
                guests.append((task.key, None))
        now = self.cluster.now
        self._apply(self.node.give(now, effect.thief, effect.steal, own, guests, answer=effect.answer))

    def _enqueue(self, effect: fx.Enqueue) -> None:
        for key, spec in effect.tasks:
            self._guests.append(_Task(spec.args[1:], spec.args[0], None, key))

    def _settle(self, effect: fx.Settle) -> None:
        task = effect.handle
        assert isinstance(task, _Task)
        task.serial = None
        task.count = int(effect.outcome.payload)
        self._end(task)

    def _come_home(self, effect: fx.ComeHome) -> None:
        task = effect.handle
        assert isinstance(task, _Task)
        task.serial = effect.serial
        task.claimed = False
        self._own.append(task)


class Cluster:
    """Many nodes, one of which begins with all the work.

    Args:
        nodes: how many.
        latency_s: of a message, on average.
        tree: what is searched, a task for each of its nodes.
        task_s: what each task computes.
        idle_s: for how long the messages of idle nodes are counted, after the end.
        seed: of every choice; the same one gives the same run.
        limits: bounds and durations of all nodes.
    """

    def __init__(
        self,
        nodes: int,
        latency_s: float,
        tree: UtsTree,
        *,
        task_s: float = 0.001,
        idle_s: float = 30.0,
        seed: int = 0,
        limits: Limits | None = None,
    ) -> None:
        self.rng = random.Random(f"scale {seed}")
        self.tree = tree
        self.task_s = task_s
        self.limits = Limits() if limits is None else limits
        self.now = 0.0
        self.registrations = 0
        self._latency_s = latency_s
        self._idle_s = idle_s
        self._counted: int | None = None
        self._events: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._number = 0
        infos = [
            PeerInfo(self.rng.randbytes(NODE_ID_SIZE), f"n{index}", (), "", index == 0, True, "host", 0, "sim")
            for index in range(nodes)
        ]
        rows = {info.id: MemberEntry(info, MemberState.ALIVE, 0) for info in infos}
        self._nodes: dict[NodeId, _LeanNode] = {}
        for info in infos:
            node = self._nodes[info.id] = _LeanNode(self, info)
            # One table for all, because nobody comes or goes: thousands of equal ones do not fit into memory.
            node.node.membership._rows = rows

    def run(self) -> Measured:
        """Search the tree, then watch the nodes being idle.

        Raises:
            InvariantError: a node of the tree was lost, or counted twice.
        """
        root: _Task | None = _Task(self.tree.root, 0, None)
        for node in self._nodes.values():
            node.start(root)
            root = None
        self._run(lambda: self._counted is not None)
        nodes = list(self._nodes.values())
        makespan_s = self.now
        executed = sum(node.executed for node in nodes)
        if executed != self._counted:
            raise InvariantError(f"{executed} tasks were run, and {self._counted} counted")
        counters = [node.node.counters for node in nodes]
        registrations = self.registrations
        steals = sum(each.steals for each in counters) - registrations
        failed = sum(each.steals_failed for each in counters)
        given = sum(each.given for each in counters)
        messages = sum(node.sent for node in nodes)
        self._run_until(makespan_s + _SETTLE_S)
        before = [node.sent for node in nodes]
        self._run_until(makespan_s + _SETTLE_S + self._idle_s)
        idle = [(node.sent - sent) / self._idle_s for node, sent in zip(nodes, before, strict=True)]
        return Measured(
            nodes=len(nodes),
            latency_s=self._latency_s,
            task_s=self.task_s,
            tasks=executed,
            makespan_s=makespan_s,
            steals=steals,
            failed=failed,
            registrations=registrations,
            given=given,
            messages=messages,
            idle_mean=sum(idle) / len(idle),
            idle_max=max(idle),
        )

    def _run_until(self, time: float) -> None:
        self._run(lambda: self._events[0][0] > time)

    def _run(self, ended: Callable[[], bool]) -> None:
        while not ended():
            self.now, _, action, argument = heapq.heappop(self._events)
            action(argument)

    # ---------------------------------------------------------------------------------- for the nodes

    def at(self, time: float, action: Callable[[Any], None], argument: object) -> None:
        """Do something at a time."""
        self._number += 1
        heapq.heappush(self._events, (time, self._number, action, argument))

    def carry(self, recipient: NodeId, envelope: Envelope) -> None:
        """Deliver a message, later."""
        takes_s = self._latency_s * self.rng.uniform(1 - _JITTER, 1 + _JITTER)
        self.at(self.now + takes_s, self._nodes[recipient].receive, envelope)

    def finish(self, count: int) -> None:
        """The root has its outcome."""
        self._counted = count
