"""Runs a cluster of core nodes on a task graph, under faults, and checks what was promised."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from p2pscoop._core import effects as fx
from p2pscoop._core.codec import Envelope, decode, encode
from p2pscoop._core.deque import half, take_newest, take_oldest
from p2pscoop._core.ids import NOBODY, NodeId, TaskKey
from p2pscoop._core.limits import NODE_ID_SIZE, Limits
from p2pscoop._core.messages import Message
from p2pscoop._core.node import Node
from p2pscoop._core.values import Outcome, OutcomeKind, PeerInfo, Spec, SpecKind
from p2pscoop.testing._graphs import GRAPHS, Graph
from p2pscoop.testing._network import FakeNetwork, Faults

__all__ = ["InvariantError", "Report", "Simulator", "run_seed"]


class InvariantError(AssertionError):
    """A guarantee was broken."""


@dataclass(slots=True)
class Report:
    """What happened in one run."""

    seed: int
    value: int = 0
    seconds: float = 0.0
    executions: int = 0
    tasks: int = 0
    events: int = 0
    messages: int = 0
    lost: int = 0
    duplicated: int = 0
    kills: int = 0
    steals: int = 0
    given: int = 0
    requeued: int = 0
    resumptions: int = 0
    migrated: int = 0
    kept: int = 0
    kinds: Counter[str] = field(default_factory=Counter)

    @property
    def reexecutions(self) -> int:
        """Tasks started more often than once."""
        return self.executions - self.tasks


class _Task:
    """A future and its task, on the node that owns it or on one that holds it."""

    __slots__ = ("claimed", "index", "key", "name", "parent", "serial", "settled", "values")

    def __init__(self, name: str, parent: _Frame | None = None, index: int = 0) -> None:
        self.name = name
        self.values: list[int] | None = None
        """Those of its children, once it was started and can go on."""
        self.parent = parent
        self.index = index
        self.key: TaskKey | None = None
        self.serial: int | None = None
        self.claimed = False
        self.settled = False

    @property
    def spec(self) -> Spec:
        if self.values is None:
            return Spec(b"", self.name.encode())
        state = " ".join([self.name, *map(str, self.values)])
        return Spec(b"", state.encode(), SpecKind.CONTINUATION)

    def load(self, spec: Spec) -> None:
        name, *values = spec.args.decode().split(" ")
        if name != self.name:
            raise InvariantError(f"{self.name} got the payload of {name}")
        self.values = list(map(int, values)) if spec.kind is SpecKind.CONTINUATION else None

    def claim(self) -> bool:
        if self.claimed:
            return False
        self.claimed = True
        return True


class _Frame:
    """A started task that waits for its children."""

    __slots__ = ("missing", "task", "values")

    def __init__(self, task: _Task, children: int) -> None:
        self.task = task
        self.values = [0] * children
        self.missing = children


class _SimNode:
    """The shell around one core node: a deque, one task at a time, frames that wait."""

    def __init__(self, simulator: Simulator, name: str, *, origin: bool, seeds: list[str]) -> None:
        self.simulator = simulator
        self.network = simulator.network
        self.name = name
        node_id = simulator.rng.randbytes(NODE_ID_SIZE)
        self.address = f"fake:{node_id.hex()}"
        info = PeerInfo(node_id, name, (self.address,), "", origin, True, "host", 0, "sim")
        self.node = Node(
            info,
            random.Random(simulator.rng.getrandbits(64)),
            simulator.limits,
            python="sim",
            founder=origin,
        )
        self.seeds = seeds
        self.alive = True
        self.own: deque[_Task] = deque()
        self.inbox: deque[_Task] = deque()
        self.by_key: dict[TaskKey, _Task] = {}
        self.shipped: dict[TaskKey, _Task] = {}
        """Continuations of guests that are on offer: their originals."""
        self.running: _Task | None = None
        self.result: int | None = None
        self._tick_at = float("inf")
        self._handlers: dict[type[fx.Effect], Callable[..., None]] = {
            fx.Send: self._send,
            fx.SendToSeeds: self._send_to_seeds,
            fx.Surrender: self._surrender,
            fx.Enqueue: self._enqueue,
            fx.Withdraw: self._withdraw,
            fx.Settle: self._settle,
            fx.Kept: self._kept,
            fx.ComeHome: self._come_home,
            fx.Joined: self._joined,
            fx.Released: self._released,
            fx.Passed: self._passed,
        }
        self.network.listen(self.address, self.deliver)

    def start(self) -> None:
        self.carry_out(self.node.start(self.network.now))

    def kill(self) -> None:
        self.alive = False
        self.network.unlisten(self.address)

    def deliver(self, data: bytes) -> None:
        envelope = decode(data, self.simulator.limits)
        self.simulator.trace(self, "<-", envelope.sender, envelope.message)
        self.carry_out(self.node.receive(self.network.now, envelope))

    def peer_lost(self, peer: NodeId) -> None:
        if self.alive:
            self.carry_out(self.node.peer_lost(self.network.now, peer))

    def run_root(self, task: _Task) -> None:
        self._start(task)

    # ------------------------------------------------------------------------------------- effects

    def carry_out(self, effects: list[fx.Effect]) -> None:
        if not self.alive:
            return
        for effect in effects:
            handler = self._handlers.get(type(effect))
            if handler is not None:
                handler(effect)
        self._next()
        self._schedule_tick()

    def _send(self, effect: fx.Send) -> None:
        self._post(effect.recipient.addresses[0], effect.recipient.id, effect.message)

    def _send_to_seeds(self, effect: fx.SendToSeeds) -> None:
        for seed in self.seeds:
            self._post(seed, NOBODY, effect.message)

    def _post(self, address: str, recipient: NodeId, message: Message) -> None:
        self.simulator.report.kinds[type(message).__name__] += 1
        self.network.send(address, encode(Envelope(self.node.id, recipient, message), self.simulator.limits))

    def _surrender(self, effect: fx.Surrender) -> None:
        queues = [self.inbox, self.own]
        count = half(sum(map(len, queues)), effect.count_max)
        own, held = [], []
        for task in take_oldest(queues, count):
            if task.key is None:
                own.append((task, task.serial, task.spec))
            else:
                del self.by_key[task.key]
                held.append((task.key, None if task.values is None else task.spec))
                if task.values is not None:
                    self.shipped[task.key] = task
        self.carry_out(
            self.node.give(self.network.now, effect.thief, effect.steal, own, held, answer=effect.answer)
        )

    def _enqueue(self, effect: fx.Enqueue) -> None:
        for key, spec in effect.tasks:
            if spec.kind is SpecKind.BOUNCED:
                raise InvariantError(f"task {key} bounced to a node that does not own it")
            # If it is a continuation that was offered from here, it was taken back, or has gone further since.
            self.shipped.pop(key, None)
            task = _Task(spec.args.decode().split(" ")[0])
            task.load(spec)
            task.key = key
            self.by_key[key] = task
            self.inbox.append(task)

    def _withdraw(self, effect: fx.Withdraw) -> None:
        for key in effect.keys:
            self.shipped.pop(key, None)
            task = self.by_key.pop(key, None)
            if task is not None:
                task.claim()

    def _settle(self, effect: fx.Settle) -> None:
        task = effect.handle
        assert isinstance(task, _Task)
        task.claim()  # If it came home meanwhile and is queued, it need not run.
        self._complete(task, int(effect.outcome.payload))

    def _kept(self, effect: fx.Kept) -> None:
        self.simulator.report.kept += 1
        wanted_at = self.network.now + self.simulator.rng.expovariate(20.0)
        self.network.at(wanted_at, lambda: self._fetch(effect.serial))

    def _fetch(self, serial: int) -> None:
        if self.alive:
            self.carry_out(self.node.fetch(serial))

    def _come_home(self, effect: fx.ComeHome) -> None:
        task = effect.handle
        assert isinstance(task, _Task)
        if not task.settled:
            task.serial = effect.serial
            if effect.spec is not None and effect.spec.kind is SpecKind.CONTINUATION:
                task.load(effect.spec)
            task.claimed = False
            self.own.append(task)

    def _released(self, effect: fx.Released) -> None:
        assert isinstance(effect.handle, _Task)
        if effect.handle.values is None:
            raise InvariantError(f"{effect.handle.name} was no continuation")
        self.simulator.report.migrated += 1

    def _passed(self, effect: fx.Passed) -> None:
        if self.shipped.pop(effect.key, None) is None:
            raise InvariantError(f"task {effect.key} was passed on, and not by this node")
        self.simulator.report.migrated += 1

    def _joined(self, _: fx.Joined) -> None:
        pass  # `carry_out` goes on to look for work.

    # ----------------------------------------------------------------------------------- execution

    def _next(self) -> None:
        """Run something, if nothing runs; else look for work."""
        while self.running is None:
            task = take_newest(self.own) or take_newest(self.inbox)
            if task is None:
                self._apply_quietly(self.node.seek(self.network.now))
                return
            if task.key is not None:
                self.by_key.pop(task.key, None)
                if not self.node.begin(task.key):
                    continue
            self.node.found_work()
            if task.values is None:
                self._start(task)
            elif task.key is not None and self.simulator.rng.random() < self.simulator.faults.bounces:
                self._apply_quietly(self.node.bounce(self.network.now, task.key))
            else:
                self._resume(task)

    def _apply_quietly(self, effects: list[fx.Effect]) -> None:
        for effect in effects:
            self._handlers[type(effect)](effect)

    def _start(self, task: _Task) -> None:
        self.running = task
        self.simulator.report.executions += 1
        cost, children = self.simulator.graph.spawn(task.name)
        cost *= self.simulator.rng.uniform(0.5, 1.5)
        self.network.at(self.network.now + cost, lambda: self._computed(task, children))

    def _resume(self, task: _Task) -> None:
        """Go on with a task whose children are done."""
        self.running = task
        self.simulator.report.resumptions += 1
        cost = self.simulator.graph.spawn(task.name)[0] * self.simulator.rng.uniform(0.1, 1.0)
        self.network.at(self.network.now + cost, lambda: self._resumed(task))

    def _resumed(self, task: _Task) -> None:
        if self.alive:
            self.running = None
            assert task.values is not None
            self.carry_out(self._end(task, self.simulator.graph.combine(task.name, task.values)))

    def _computed(self, task: _Task, children: list[str]) -> None:
        if not self.alive:
            return
        self.running = None
        if children:
            frame = _Frame(task, len(children))
            self.own.extend(_Task(name, frame, index) for index, name in enumerate(children))
            effects = self.node.feed(self.network.now) if self.node.hungry else []
        else:
            effects = self._end(task, self.simulator.graph.combine(task.name, []))
        self.carry_out(effects)

    def _end(self, task: _Task, value: int) -> list[fx.Effect]:
        """A task that ran here has its value."""
        if task.key is not None:
            outcome = Outcome(OutcomeKind.VALUE, str(value).encode())
            return self.node.finish(self.network.now, task.key, outcome)
        if task.serial is not None and not task.settled:
            self.node.settled_at_home(task.serial)
        self._complete(task, value)
        return []

    def _complete(self, task: _Task, value: int) -> None:
        """A future of this node has its outcome: the first one counts, the frame above it may go on."""
        if task.settled:
            return
        task.settled = True
        frame = task.parent
        if frame is None:
            self.result = value
            return
        frame.values[task.index] = value
        frame.missing -= 1
        if frame.missing < 0:
            raise InvariantError(f"{task.name}: a frame got more outcomes than it has children")
        if frame.missing == 0 and self.simulator.coroutines and frame.task is not self.simulator.root:
            self._ready(frame)
        elif frame.missing == 0:
            combined = self.simulator.graph.combine(frame.task.name, frame.values)
            for effect in self._end(frame.task, combined):
                self._handlers[type(effect)](effect)

    def _ready(self, frame: _Frame) -> None:
        """A coroutine whose children are done is a task like any other: queued, stealable."""
        task = frame.task
        if task.settled:
            return
        if task.key is not None:
            if not self.node.ready(task.key):
                return
            self.by_key[task.key] = task
        task.values = frame.values
        task.claimed = False
        (self.own if task.key is None else self.inbox).append(task)

    def _schedule_tick(self) -> None:
        at = self.node.wake_at()
        if at < self._tick_at:
            self._tick_at = at
            self.network.at(at, self._tick)

    def _tick(self) -> None:
        if self.alive:
            self._tick_at = float("inf")
            self.carry_out(self.node.tick(self.network.now))


class Simulator:
    """One run.

    Args:
        graph: the program.
        nodes: how many nodes at the start, the origin included.
        seed: from which everything is drawn.
        faults: what goes wrong; drawn from the seed if not given.
        coroutines: whether tasks are coroutines, which may go on elsewhere once their children are done.
        fault_s: virtual seconds until the network heals.
        limits: of the nodes.
        trace: called with one line per event.
    """

    def __init__(
        self,
        graph: Graph,
        *,
        nodes: int = 6,
        seed: int = 0,
        faults: Faults | None = None,
        coroutines: bool = False,
        fault_s: float = 20.0,
        limits: Limits | None = None,
        trace: Callable[[str], None] | None = None,
    ) -> None:
        self.graph = graph
        self.rng = random.Random(seed)
        self.limits = limits or Limits()
        self.faults = Faults.draw(self.rng) if faults is None else faults
        self.network = FakeNetwork(random.Random(self.rng.getrandbits(64)), self.faults)
        self.report = Report(seed)
        self.coroutines = coroutines
        self.root = _Task(graph.root)
        self._fault_s = fault_s
        self._trace = trace
        self.origin = _SimNode(self, "origin", origin=True, seeds=[])
        self.nodes = [self.origin]
        self._names = {self.origin.node.id: "origin"}
        for index in range(1, nodes):
            self._add(f"n{index}")
        self._plan_kills()

    def run(self, *, give_up_s: float = 2000.0) -> Report:
        """Run to the end.

        Raises:
            InvariantError: the root did not get its value, or something was left over, after so many
                virtual seconds.
        """
        expected = self.graph.serial()
        for node in self.nodes:
            node.start()
        self.origin.run_root(self.root)
        self.network.at(self._fault_s, self._heal)
        self._run_until(lambda: self.origin.result is not None, give_up_s, "the root task has no value")
        self.report.value = self.origin.result or 0
        self.report.seconds = self.network.now
        if self.origin.result != expected:
            raise InvariantError(f"root has value {self.origin.result}, expected {expected}")
        self._heal()
        self._run_until(self._quiescent, self.network.now + give_up_s, "tables are not empty")
        return self._finish_report(expected)

    def trace(self, node: _SimNode, arrow: str, peer: NodeId, what: object) -> None:
        """Tell the trace, if there is one, that something happened."""
        if self._trace is not None:
            name = self._names.get(peer, "?")
            self._trace(f"{self.network.now:10.4f}  {node.name:>8} {arrow} {name:<8} {what}")

    def _add(self, name: str) -> _SimNode:
        node = _SimNode(self, name, origin=False, seeds=[self.origin.address])
        self._names[node.node.id] = name
        self.nodes.append(node)
        return node

    def _plan_kills(self) -> None:
        for _ in range(self.faults.kills):
            self.network.at(self.rng.uniform(0.0, 0.2), self._kill_one)

    def _kill_one(self) -> None:
        victims = [node for node in self.nodes if node.alive and node is not self.origin]
        if not victims:
            return
        victim = self.rng.choice(victims)
        victim.kill()
        self.report.kills += 1
        self.trace(victim, "killed", victim.node.id, "")
        for node in self.nodes:
            if node.alive:
                seen_at = self.network.now + self.rng.uniform(0.001, 0.02)
                self.network.at(seen_at, lambda node=node: node.peer_lost(victim.node.id))  # type: ignore[misc]
        if self.faults.restarts:
            restart_at = self.network.now + self.rng.uniform(0.05, 1.0)
            self.network.at(restart_at, lambda: self._add(f"{victim.name}'").start())

    def _heal(self) -> None:
        self.network.faults = self.faults.healed()

    def _run_until(self, condition: Callable[[], bool], give_up_s: float, complaint: str) -> None:
        while not condition():
            if not self.network.step() or self.network.now > give_up_s:
                raise InvariantError(f"{complaint} after {self.network.now:.1f} s: {self._describe()}")
            self.report.events += 1

    def _quiescent(self) -> bool:
        return all(
            node.node.quiescent and node.running is None and not (node.inbox or node.by_key or node.shipped)
            for node in self.nodes
            if node.alive
        )

    def _describe(self) -> str:
        return "; ".join(
            f"{node.name}: owns {[(lent.serial, lent.state.name) for lent in node.node.owned][:5]}, "
            f"holds {[(held.key.serial, held.state.name) for held in node.node.held][:5]}, "
            f"queue {len(node.own)}+{len(node.inbox)}, runs {node.running and node.running.name}"
            for node in self.nodes
            if node.alive
        )

    def _finish_report(self, expected: int) -> Report:
        report = self.report
        report.tasks = _count(self.graph)
        report.messages = self.network.sent
        report.lost = self.network.lost
        report.duplicated = self.network.duplicated
        for node in self.nodes:
            counters = node.node.counters
            report.steals += counters.steals
            report.given += counters.given
            report.requeued += counters.requeued
        assert report.value == expected
        return report


def _count(graph: Graph) -> int:
    count = 0
    stack = [graph.root]
    while stack:
        count += 1
        stack.extend(graph.spawn(stack.pop())[1])
    return count


def run_seed(
    seed: int,
    *,
    graph: str | None = None,
    nodes: int | None = None,
    faults: Faults | None = None,
    trace: Callable[[str], None] | None = None,
) -> Report:
    """One run of which everything that is not given is drawn from the seed.

    Args:
        seed: any integer; the same one gives the same run.
        graph: a name in `GRAPHS`.
        nodes: the number of nodes.
        faults: what goes wrong.
        trace: called with one line per event.

    Raises:
        InvariantError: a guarantee was broken.
    """
    rng = random.Random(f"run {seed}")
    name = rng.choice(sorted(GRAPHS)) if graph is None else graph
    count = rng.randint(1, 8) if nodes is None else nodes
    coroutines = rng.random() < 0.5
    kind = GRAPHS[name]
    drawn = kind(seed=seed) if name in ("tree", "random") else kind()  # type: ignore[call-arg]
    limits = Limits(bulk_min=rng.choice((1, Limits().bulk_min)))
    simulator = Simulator(
        drawn, nodes=count, seed=seed, faults=faults, coroutines=coroutines, limits=limits, trace=trace
    )
    return simulator.run()
