"""The shell of a simulated node: a deque, one task at a time, frames that wait, and a clock of its own."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from p2pscoop._core import effects as fx
from p2pscoop._core.codec import Envelope, decode, encode
from p2pscoop._core.deque import half, take_newest, take_oldest
from p2pscoop._core.ids import NOBODY, NodeId, TaskKey
from p2pscoop._core.limits import NODE_ID_SIZE
from p2pscoop._core.messages import Message
from p2pscoop._core.node import Node
from p2pscoop._core.values import Outcome, OutcomeKind, OwnTask, PeerInfo, Spec, SpecKind
from p2pscoop.testing._report import InvariantError

if TYPE_CHECKING:
    from p2pscoop.testing._simulator import Simulator

__all__ = ["SimNode", "Task"]


class Task:
    """A future and its task, on the node that owns it or on one that holds it."""

    __slots__ = ("claimed", "index", "key", "moved", "name", "parent", "serial", "settled", "values")

    def __init__(self, name: str, parent: Frame | None = None, index: int = 0) -> None:
        self.name = name
        self.values: list[int] | None = None
        """Those of its children, once it was started and can go on."""
        self.moved = False
        """Whether it was started on another node."""
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
        self.moved = spec.kind is SpecKind.CONTINUATION
        self.values = list(map(int, values)) if self.moved else None

    def claim(self) -> bool:
        if self.claimed:
            return False
        self.claimed = True
        return True


class Frame:
    """A started task that waits for its children."""

    __slots__ = ("missing", "task", "values")

    def __init__(self, task: Task, children: int) -> None:
        self.task = task
        self.values = [0] * children
        self.missing = children


class SimNode:
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
        self.leaving = False
        self.slowness = 1.0
        self.clock_ahead_s = 0.0
        self.waiting = 0
        """Frames that wait for their children."""
        self._stopped: list[Callable[[], None]] | None = None
        """While the process is stopped: what it will do when it goes on."""
        self._deaf: list[Callable[[], None]] | None = None
        """While its I/O is stopped: the same."""
        self.own: deque[Task] = deque()
        self.inbox: deque[Task] = deque()
        self.by_key: dict[TaskKey, Task] = {}
        self.shipped: dict[TaskKey, Task] = {}
        """Continuations of guests that are on offer: their originals."""
        self.running: Task | None = None
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
            fx.Poisoned: self._poisoned,
            fx.Joined: self._joined,
            fx.Released: self._released,
            fx.Passed: self._passed,
        }
        self.network.listen(self.address, self.deliver)

    @property
    def now(self) -> float:
        """The time on this node's own clock."""
        return self.network.now + self.clock_ahead_s

    @property
    def idle(self) -> bool:
        """Whether nothing runs, waits, or is queued, and no task is in custody."""
        empty = not (self.own or self.inbox or self.by_key or self.shipped or self.waiting)
        return empty and self.running is None and self.node.quiescent

    @property
    def silent(self) -> bool:
        """Whether it is stopped, or keeps the GIL."""
        return self._stopped is not None or self._deaf is not None

    # ------------------------------------------------------------------------------- life and death

    def start(self) -> None:
        """The process is ready."""
        self.carry_out(self.node.start(self.now))

    def kill(self) -> None:
        """The process is gone."""
        self.alive = False
        self.network.unlisten(self.address)

    def leave(self) -> None:
        """Drain: return what is queued, finish the rest, then say goodbye."""
        self._when_hearing(self._begin_leaving)

    def _begin_leaving(self) -> None:
        self.leaving = True
        self._apply(self.node.leave(self.now))
        self._drain()

    def _drain(self) -> None:
        returned: list[tuple[TaskKey, Spec | None]] = []
        while (task := take_newest(self.inbox)) is not None:
            assert task.key is not None
            self.by_key.pop(task.key, None)
            returned.append((task.key, None if task.values is None else task.spec))
            if task.values is not None:
                self.shipped[task.key] = task
        if returned:
            self._apply(self.node.give_back(self.now, returned))
        if self.idle:
            self._apply(self.node.goodbye("drained"))
            self.simulator.on_left(self)

    # ------------------------------------------------------------------------------------- stopping

    def stop(self) -> None:
        """As after SIGSTOP: whatever happens to it waits."""
        self._stopped = self._stopped if self._stopped is not None else []

    def go_on(self) -> None:
        """As after SIGCONT."""
        stopped, self._stopped = self._stopped or [], None
        for action in stopped:
            self._when_going(action)

    def deafen(self) -> None:
        """User code keeps the GIL: it computes, but neither hears nor says anything."""
        self._deaf = self._deaf if self._deaf is not None else []

    def hear(self) -> None:
        """It lets the GIL go."""
        deaf, self._deaf = self._deaf or [], None
        for action in deaf:
            self._when_hearing(action)

    def _when_going(self, action: Callable[[], None]) -> None:
        if not self.alive:
            return
        if self._stopped is not None:
            self._stopped.append(action)
        else:
            action()

    def _when_hearing(self, action: Callable[[], None]) -> None:
        if self._deaf is not None:
            self._deaf.append(action)
        else:
            self._when_going(action)

    # --------------------------------------------------------------------------------------- inputs

    def deliver(self, data: bytes) -> None:
        """A message arrives."""
        self._when_hearing(lambda: self._receive(data))

    def _receive(self, data: bytes) -> None:
        envelope = decode(data, self.simulator.limits)
        self.simulator.trace(self, "<-", envelope.sender, envelope.message)
        self.carry_out(self.node.receive(self.now, envelope))

    def peer_lost(self, peer: NodeId) -> None:
        """The pipe to a peer is removed."""
        self._when_hearing(lambda: self._lose(peer))

    def _lose(self, peer: NodeId) -> None:
        self.simulator.trace(self, "lost", peer, "")
        self.carry_out(self.node.peer_lost(self.now, peer))

    def run_root(self, task: Task) -> None:
        """The script starts."""
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
        if self.leaving and self.alive:
            self._drain()
        self._schedule_tick()

    def _send(self, effect: fx.Send) -> None:
        self._post(effect.recipient.addresses[0], effect.recipient.id, effect.message)

    def _send_to_seeds(self, effect: fx.SendToSeeds) -> None:
        for seed in self.seeds:
            self._post(seed, NOBODY, effect.message)

    def _post(self, address: str, recipient: NodeId, message: Message) -> None:
        self.simulator.report.kinds[type(message).__name__] += 1
        data = encode(Envelope(self.node.id, recipient, message), self.simulator.limits)
        self._when_hearing(lambda: self.network.send(self.address, address, data))

    def _surrender(self, effect: fx.Surrender) -> None:
        queues = [self.inbox, self.own]
        count = half(sum(map(len, queues)), effect.count_max)
        own, held = [], []
        for task in take_oldest(queues, count):
            if task.key is None:
                own.append(OwnTask(task, task.serial, task.spec))
            else:
                del self.by_key[task.key]
                held.append((task.key, None if task.values is None else task.spec))
                if task.values is not None:
                    self.shipped[task.key] = task
        self.carry_out(self.node.give(self.now, effect.thief, effect.steal, own, held, answer=effect.answer))

    def _enqueue(self, effect: fx.Enqueue) -> None:
        for key, spec in effect.tasks:
            if spec.kind is SpecKind.BOUNCED:
                raise InvariantError(f"task {key} bounced to a node that does not own it")
            # If it is a continuation that was offered from here, it was taken back, or has gone further since.
            self.shipped.pop(key, None)
            task = Task(spec.args.decode().split(" ")[0])
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
        assert isinstance(task, Task)
        task.claim()  # If it came home meanwhile and is queued, it need not run.
        self._complete(task, int(effect.outcome.payload))

    def _kept(self, effect: fx.Kept) -> None:
        self.simulator.report.kept += 1
        wanted_at = self.network.now + self.simulator.rng.expovariate(20.0)
        self.network.at(wanted_at, lambda: self._when_hearing(lambda: self._fetch(effect.serial)))

    def _fetch(self, serial: int) -> None:
        self.carry_out(self.node.fetch(serial))

    def _poisoned(self, effect: fx.Poisoned) -> None:
        task = effect.handle
        assert isinstance(task, Task)
        if not self.simulator.may_be_poison(task.name):
            raise InvariantError(f"{task.name} is innocent")
        self.simulator.report.poisoned += 1
        # Instead of an error, so that the run can go on to the same value.
        self._complete(task, self.simulator.graph.value_of(task.name))

    def _come_home(self, effect: fx.ComeHome) -> None:
        task = effect.handle
        assert isinstance(task, Task)
        if not task.settled:
            task.serial = effect.serial
            if effect.spec is not None and effect.spec.kind is SpecKind.CONTINUATION:
                task.load(effect.spec)
            task.claimed = False
            self.own.append(task)

    def _released(self, effect: fx.Released) -> None:
        assert isinstance(effect.handle, Task)
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
                self._apply(self.node.seek(self.now))
                return
            if task.key is not None:
                self.by_key.pop(task.key, None)
                if not self.node.begin(task.key):
                    continue
            self.node.found_work()
            if task.values is None:
                self._start(task)
            elif (
                task.key is not None and task.moved and self.simulator.rng.random() < self.simulator.faults.bounces
            ):
                self._apply(self.node.bounce(self.now, task.key))
            else:
                self._resume(task)

    def _apply(self, effects: list[fx.Effect]) -> None:
        for effect in effects:
            self._handlers[type(effect)](effect)

    def _start(self, task: Task) -> None:
        self.running = task
        self.simulator.report.executions += 1
        cost, children = self.simulator.graph.spawn(task.name)
        cost *= self.simulator.rng.uniform(0.5, 1.5)
        self._compute(cost, lambda: self._computed(task, children))

    def _resume(self, task: Task) -> None:
        """Go on with a task whose children are done."""
        self.running = task
        self.simulator.report.resumptions += 1
        cost = self.simulator.graph.spawn(task.name)[0] * self.simulator.rng.uniform(0.1, 1.0)
        self._compute(cost, lambda: self._resumed(task))

    def _compute(self, cost: float, then: Callable[[], None]) -> None:
        at = self.network.now + cost * self.slowness * self.simulator.faults.busy
        self.network.at(at, lambda: self._when_going(then))

    def _resumed(self, task: Task) -> None:
        self.running = None
        assert task.values is not None
        self.carry_out(self._end(task, self.simulator.graph.combine(task.name, task.values)))

    def _computed(self, task: Task, children: list[str]) -> None:
        if task.name == self.simulator.poison and self is not self.simulator.origin:
            self.simulator.die_of_poison(self)
            return
        self.running = None
        if children:
            self.waiting += 1
            frame = Frame(task, len(children))
            self.own.extend(Task(name, frame, index) for index, name in enumerate(children))
            effects = self.node.feed(self.now) if self.node.hungry else []
        else:
            effects = self._end(task, self.simulator.graph.combine(task.name, []))
        self.carry_out(effects)

    def _end(self, task: Task, value: int) -> list[fx.Effect]:
        """A task that ran here has its value."""
        if task.key is not None:
            outcome = Outcome(OutcomeKind.VALUE, str(value).encode())
            return self.node.finish(self.now, task.key, outcome)
        if task.serial is not None and not task.settled:
            self.node.settled_at_home(task.serial)
        self._complete(task, value)
        return []

    def _complete(self, task: Task, value: int) -> None:
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
        if frame.missing > 0:
            return
        self.waiting -= 1
        if self.simulator.coroutines and frame.task is not self.simulator.root:
            self._ready(frame)
        else:
            combined = self.simulator.graph.combine(frame.task.name, frame.values)
            for effect in self._end(frame.task, combined):
                self._handlers[type(effect)](effect)

    def _ready(self, frame: Frame) -> None:
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
        # A little late, so that rounding never makes it too early, again and again.
        at = self.node.wake_at() - self.clock_ahead_s + 1e-9
        if at < self._tick_at:
            self._tick_at = at
            self.network.at(at, lambda: self._when_hearing(self._tick))

    def _tick(self) -> None:
        self._tick_at = float("inf")
        if self.simulator.vouching:
            self.node.vouch(self.now, [node.node.id for node in self.simulator.nodes if node.alive])
        self.carry_out(self.node.tick(self.now))

    def jump(self, seconds: float) -> None:
        """The clock jumps ahead, as after the machine slept."""
        self.clock_ahead_s += seconds
        self._when_hearing(self._tick)
