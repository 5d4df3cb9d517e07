"""Runs a cluster of core nodes on a task graph, under faults, and checks what was promised.

A run has two phases. In the first, faults happen as drawn. Then everything heals: nodes go on, the network
delivers; from then on the root task must get its value, and every table must become empty.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from p2pscoop._core.custody import OwnerState
from p2pscoop._core.ids import NodeId, TaskKey
from p2pscoop._core.limits import Limits
from p2pscoop.testing._faults import Faults
from p2pscoop.testing._graphs import GRAPHS, Graph
from p2pscoop.testing._network import FakeNetwork
from p2pscoop.testing._report import InvariantError, Report
from p2pscoop.testing._shell import SimNode, Task

__all__ = ["Simulator", "run_seed"]

_SPAN_S = 0.2
"""Faults happen in so many virtual seconds, times `Faults.busy`: as long as a run takes, about."""


class Simulator:
    """One run.

    Args:
        graph: the program.
        nodes: how many nodes at the start, the origin included.
        seed: from which everything is drawn.
        faults: what goes wrong; drawn from the seed if not given.
        vouching: whether nodes know which processes live, as those of one machine do.
        coroutines: whether tasks are coroutines, which may go on elsewhere once their children are done.
        fault_s: virtual seconds until the network heals.
        limits: of the nodes.
        trace: called with one line per event.
        network: the wires; made from the seed if not given.
    """

    def __init__(
        self,
        graph: Graph,
        *,
        nodes: int = 6,
        seed: int = 0,
        faults: Faults | None = None,
        vouching: bool = False,
        coroutines: bool = False,
        fault_s: float = 20.0,
        limits: Limits | None = None,
        trace: Callable[[str], None] | None = None,
        network: Callable[[random.Random, Faults], FakeNetwork] = FakeNetwork,
    ) -> None:
        self.graph = graph
        self.rng = random.Random(seed)
        self.limits = limits or Limits()
        self.faults = Faults.draw(self.rng) if faults is None else faults
        self.network = network(random.Random(self.rng.getrandbits(64)), self.faults)
        self.report = Report(seed)
        self.vouching = vouching
        self.coroutines = coroutines
        self.root = Task(graph.root)
        self.poison = self.rng.choice(_tasks(graph)[1:] or [""]) if self.faults.poison else None
        self._fault_s = fault_s
        self._healed = False
        faults = self.faults
        deadly = faults.kills or faults.removed or faults.false_alarms or faults.origin_dies or faults.poison
        self.watched = not deadly
        """Whether no node ever takes another for dead: then a custody ends only when its task does."""
        self._events_max: int | None = None
        self._trace = trace
        self._names: dict[NodeId, str] = {}
        self.nodes: list[SimNode] = []
        self.origin = self._add("origin", origin=True)
        for index in range(1, nodes):
            self._add(f"n{index}")
        self._plan()

    def run(self, *, give_up_s: float = 2000.0, events_max: int | None = None) -> Report:
        """Run to the end.

        Raises:
            InvariantError: the root did not get its value, or something was left over, after so many
                virtual seconds, or so many events.
        """
        self._events_max = events_max
        self.start()
        self.network.at(self._fault_s, self.heal)
        self._run_until(self._over, give_up_s, "the root task has no value")
        return self.finish(give_up_s=give_up_s)

    def start(self) -> None:
        """All nodes start, and the origin's script with them."""
        for node in self.nodes:
            node.start()
        self.origin.run_root(self.root)

    def heal(self) -> None:
        """End all faults."""
        if self._healed:
            return
        self._healed = True
        self.network.heal()
        for node in self.nodes:
            node.slowness = 1.0
            node.go_on()
            node.hear()

    def finish(self, *, give_up_s: float = 2000.0) -> Report:
        """Heal, and demand the value and empty tables; see `run`."""
        self.heal()
        self._run_until(self._over, self.network.now + give_up_s, "the root task has no value")
        self.report.seconds = self.network.now
        expected = self.graph.value_of(self.graph.root)
        if self.origin.alive:
            self.report.value = self.origin.result or 0
            if self.origin.result != expected:
                raise InvariantError(f"root has value {self.origin.result}, expected {expected}")
        self._run_until(self._quiescent, self.network.now + give_up_s, "tables are not empty")
        return self._finish_report()

    def trace(self, node: SimNode, what: str, peer: NodeId, detail: object) -> None:
        """Tell the trace, if there is one, that something happened."""
        if self._trace is not None:
            name = self._names.get(peer, "?")
            self._trace(f"{self.network.now:10.4f}  {node.name:>8} {what} {name:<8} {detail}")

    def on_left(self, node: SimNode) -> None:
        """A node has drained and said goodbye."""
        self.trace(node, "left", node.node.id, "")
        self.report.left += 1
        # A pipe that is closed in order is removed after what it carried was read.
        self._end(node, seen_s=2.0)

    def kill(self, victim: SimNode) -> None:
        """End a node's process; its peers notice soon."""
        self.trace(victim, "killed", victim.node.id, "")
        self.report.kills += 1
        self._end(victim, seen_s=0.02)

    def die_of_poison(self, victim: SimNode) -> None:
        """It started the task that kills. Its supervisor starts another node."""
        self.kill(victim)
        self._restart(victim)

    def may_be_poison(self, task: str) -> bool:
        """Whether the loss of nodes that had this task is its own fault, or that of a task that it waits for."""
        accident = self.faults.kills or self.faults.false_alarms or self.faults.removed
        # With so few deaths, chance is enough: the task was with three nodes that died of other owners' tasks.
        rash = self.limits.deaths_max < Limits().deaths_max
        return bool(accident) or rash or self.poison in _tasks(self.graph, task)

    # ---------------------------------------------------------------------------------------- faults

    def _add(self, name: str, *, origin: bool = False) -> SimNode:
        node = SimNode(self, name, origin=origin, seeds=[] if origin else [self.origin.address])
        self._names[node.node.id] = name
        self.nodes.append(node)
        return node

    def _end(self, victim: SimNode, *, seen_s: float) -> None:
        victim.kill()
        for node in self.nodes:
            if node.alive:
                seen_at = self.network.now + self.rng.uniform(0.05 * seen_s, seen_s)
                self.network.at(seen_at, lambda node=node: node.peer_lost(victim.node.id))  # type: ignore[misc]

    def _plan(self) -> None:
        faults, rng = self.faults, self.rng
        span = _SPAN_S * faults.busy
        for node in rng.sample(self.nodes, min(faults.slow_nodes, len(self.nodes))):
            node.slowness = 30.0
        for count, happen in (
            (faults.kills, self._kill_one),
            (faults.pauses, self._pause_one),
            (faults.holds, self._deafen_one),
            (faults.partitions, self._partition),
            (faults.one_way_cuts, self._cut_one_way),
            (faults.false_alarms, self._alarm),
            (faults.joins, self._join_one),
            (faults.leaves, self._leave_one),
            (faults.clock_jumps, self._jump_one),
            (int(faults.origin_dies), lambda: self.kill(self.origin)),
        ):
            for _ in range(count):
                self.network.at(rng.uniform(0.0, span), happen)

    def _others(self) -> list[SimNode]:
        """Whom a deadly fault may hit."""
        return [node for node in self.nodes if node.alive and node is not self.origin]

    def _alive(self) -> list[SimNode]:
        return [node for node in self.nodes if node.alive]

    def _kill_one(self) -> None:
        victims = self._others()
        if not victims:
            return
        victim = self.rng.choice(victims)
        self.kill(victim)
        if self.faults.restarts:
            self._restart(victim)

    def _restart(self, victim: SimNode) -> None:
        restart_at = self.network.now + self.rng.uniform(0.05, 1.0)
        self.network.at(restart_at, lambda: self._add(f"{victim.name}'").start())

    def _pause_one(self) -> None:
        self._interrupt("stopped", SimNode.stop, SimNode.go_on)

    def _deafen_one(self) -> None:
        self._interrupt("holds", SimNode.deafen, SimNode.hear)

    def _interrupt(self, what: str, begin: Callable[[SimNode], None], end: Callable[[SimNode], None]) -> None:
        if self._healed or not self._alive():
            return
        node = self.rng.choice(self._alive())
        pause_s = self.rng.uniform(0.0, self.faults.pause_s)
        self.trace(node, what, node.node.id, f"for {pause_s:.3f} s")
        begin(node)
        self.network.at(self.network.now + pause_s, lambda: end(node))

    def _partition(self) -> None:
        nodes = self._alive()
        if len(nodes) < 2 or self._healed:
            return
        self.rng.shuffle(nodes)
        middle = self.rng.randrange(1, len(nodes))
        for one in nodes[:middle]:
            for other in nodes[middle:]:
                self._sever(one, other)
                self._sever(other, one)

    def _cut_one_way(self) -> None:
        if len(self._alive()) > 1 and not self._healed:
            one, other = self.rng.sample(self._alive(), 2)
            self._sever(one, other)

    def _sever(self, sender: SimNode, recipient: SimNode) -> None:
        cut_s = self.rng.uniform(0.0, self.faults.cut_s)
        self.trace(recipient, "cut from", sender.node.id, f"for {cut_s:.3f} s")
        self.network.sever(sender.address, recipient.address, self.network.now + cut_s)
        if self.faults.removed:
            recipient.peer_lost(sender.node.id)

    def _alarm(self) -> None:
        if len(self._alive()) > 1:
            one, other = self.rng.sample(self._alive(), 2)
            one.peer_lost(other.node.id)

    def _join_one(self) -> None:
        self._add(f"j{len(self.nodes)}").start()

    def _leave_one(self) -> None:
        stay = [node for node in self._others() if not node.leaving and node.node.joined]
        if stay:
            node = self.rng.choice(stay)
            self.trace(node, "leaves", node.node.id, "")
            node.leave()

    def _jump_one(self) -> None:
        if self._alive():
            node = self.rng.choice(self._alive())
            jump_s = self.rng.uniform(0.0, self.faults.jump_s)
            self.trace(node, "jumps", node.node.id, f"by {jump_s:.3f} s")
            node.jump(jump_s)

    # ------------------------------------------------------------------------------------------ end

    def _over(self) -> bool:
        return self.origin.result is not None or not self.origin.alive

    def _run_until(self, condition: Callable[[], bool], give_up_s: float, complaint: str) -> None:
        while not condition():
            if not self.network.step() or self.network.now > give_up_s:
                raise InvariantError(f"{complaint} after {self.network.now:.1f} s: {self._describe()}")
            self.report.events += 1
            if self.watched and self.network.flying_count == 0:
                self._check_custody()
            if self._events_max is not None and self.report.events > self._events_max:
                raise InvariantError(f"{complaint} after {self.report.events} events: {self._describe()}")

    def _check_custody(self) -> None:
        """While no message is on its way, a task that its owner believes to be elsewhere is somewhere."""
        if any(node.silent for node in self._alive()):
            return
        there = {held.key for node in self._alive() for held in node.node.held}
        for node in self._alive():
            for lent in node.node.owned:
                if lent.state is OwnerState.LENT and TaskKey(node.node.id, lent.serial) not in there:
                    raise InvariantError(f"nobody has task {lent.serial} of {node.name}")

    def _quiescent(self) -> bool:
        return all(node.idle for node in self.nodes if node.alive)

    def _describe(self) -> str:
        return "; ".join(
            f"{node.name}: owns {[(lent.serial, lent.state.name) for lent in node.node.owned][:5]}, "
            f"holds {[(held.key.serial, held.state.name) for held in node.node.held][:5]}, "
            f"queue {len(node.own)}+{len(node.inbox)}, runs {node.running and node.running.name}, "
            f"{node.waiting} frames wait"
            for node in self.nodes
            if node.alive
        )

    def _finish_report(self) -> Report:
        report = self.report
        report.tasks = len(_tasks(self.graph))
        report.messages = self.network.sent
        report.lost = self.network.lost + self.network.cut
        report.duplicated = self.network.duplicated
        for node in self.nodes:
            counters = node.node.counters
            report.steals += counters.steals
            report.given += counters.given
            report.requeued += counters.requeued
        return report


def _tasks(graph: Graph, root: str | None = None) -> list[str]:
    """The names of a task and all below it."""
    found = []
    stack = [graph.root if root is None else root]
    while stack:
        found.append(stack.pop())
        stack.extend(graph.spawn(found[-1])[1])
    return found


def run_seed(
    seed: int,
    *,
    graph: str | None = None,
    nodes: int | None = None,
    faults: Faults | None = None,
    vouching: bool | None = None,
    trace: Callable[[str], None] | None = None,
    events_max: int | None = None,
) -> Report:
    """One run of which everything that is not given is drawn from the seed.

    Args:
        seed: any integer; the same one gives the same run.
        graph: a name in `GRAPHS`.
        nodes: the number of nodes.
        faults: what goes wrong.
        vouching: whether nodes know which processes live.
        trace: called with one line per event.
        events_max: when to give up.

    Raises:
        InvariantError: a guarantee was broken.
    """
    rng = random.Random(f"run {seed}")
    name = rng.choice(sorted(GRAPHS)) if graph is None else graph
    count = rng.randint(1, 8) if nodes is None else nodes
    coroutines = rng.random() < 0.5
    limits = rng.choice((Limits(), Limits(lease_s=3.0, tombstones_max=50), Limits(steal_batch_max=2, held_max=8)))
    if rng.random() < 0.5:
        limits = replace(limits, bulk_min=1)
    limits = replace(limits, deaths_max=rng.choice((3, limits.deaths_max)))
    vouching = rng.random() < 0.5 if vouching is None else vouching
    kind = GRAPHS[name]
    drawn = kind(seed=seed) if name in ("tree", "random") else kind()  # type: ignore[call-arg]
    simulator = Simulator(
        drawn,
        nodes=count,
        seed=seed,
        faults=faults,
        vouching=vouching,
        coroutines=coroutines,
        limits=limits,
        trace=trace,
    )
    return simulator.run(events_max=events_max)
