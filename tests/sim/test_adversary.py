"""An adversary picks what is delivered, lost, repeated and killed, and in which order; hypothesis plays it."""

from __future__ import annotations

import random

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from p2pscoop._core.limits import Limits
from p2pscoop.testing import GRAPHS, FakeNetwork, Faults, Simulator

LIMITS = Limits(lease_s=5.0, tombstones_max=20, steal_batch_max=3)
NUMBER = st.integers(0, 1000)


class AdversaryNetwork(FakeNetwork):
    """Keeps every message until the adversary decides; what nodes do with time goes on as usual."""

    def __init__(self, rng: random.Random, faults: Faults) -> None:
        super().__init__(rng, faults)
        self.flying: list[tuple[str, str, bytes]] = []
        self.free = False

    def send(self, sender: str, address: str, data: bytes) -> None:
        if self.free:
            super().send(sender, address, data)
        else:
            self.flying.append((sender, address, data))

    def pick(self, number: int, *, keep: bool = False) -> tuple[str, str, bytes]:
        index = number % len(self.flying)
        return self.flying[index] if keep else self.flying.pop(index)

    def heal(self) -> None:
        super().heal()
        self.free = True
        for message in self.flying:
            super().send(*message)
        self.flying.clear()


class Adversary(RuleBasedStateMachine):
    """Every rule is one move. Whatever was played: then all heals, and the value has to come."""

    def __init__(self) -> None:
        super().__init__()
        self.simulator: Simulator | None = None

    @initialize(graph=st.sampled_from(sorted(GRAPHS)), seed=st.integers(0, 50), coroutines=st.booleans())
    def begin(self, graph: str, seed: int, coroutines: bool) -> None:
        kind = GRAPHS[graph]
        made = kind(seed=seed) if graph in ("tree", "random") else kind()
        self.simulator = Simulator(
            made,
            nodes=4,
            seed=seed,
            faults=Faults(bounces=0.1),
            coroutines=coroutines,
            limits=LIMITS,
            network=AdversaryNetwork,
        )
        self.simulator.watched = False  # Nodes will die, and be taken for dead.
        self.network = self.simulator.network
        assert isinstance(self.network, AdversaryNetwork)
        self.simulator.start()
        # Let in, so that the game begins with a cluster.
        for _ in range(40):
            self.deliver_first()
        for _ in range(10):
            self.network.step()

    def deliver_first(self) -> None:
        if self.network.flying:
            _, address, data = self.network.pick(0)
            self.network.deliver(address, data)

    def node(self, number: int):
        alive = [node for node in self.simulator.nodes if node.alive]
        return alive[number % len(alive)]

    @rule(steps=st.integers(1, 20))
    def time_passes(self, steps: int) -> None:
        for _ in range(steps):
            self.network.step()

    @precondition(lambda self: self.simulator and self.network.flying)
    @rule(number=NUMBER)
    def a_message_arrives(self, number: int) -> None:
        _, address, data = self.network.pick(number)
        self.network.deliver(address, data)

    @precondition(lambda self: self.simulator and self.network.flying)
    @rule(count=st.integers(1, 10))
    def messages_arrive_in_order(self, count: int) -> None:
        for _ in range(count):
            self.deliver_first()

    @precondition(lambda self: self.simulator and self.network.flying)
    @rule(number=NUMBER)
    def a_message_arrives_and_stays_on_its_way(self, number: int) -> None:
        _, address, data = self.network.pick(number, keep=True)
        self.network.deliver(address, data)

    @precondition(lambda self: self.simulator and self.network.flying)
    @rule(number=NUMBER)
    def a_message_is_lost(self, number: int) -> None:
        self.network.pick(number)

    @rule(number=NUMBER)
    def a_node_dies(self, number: int) -> None:
        others = [node for node in self.simulator.nodes if node.alive and node is not self.simulator.origin]
        if len(others) > 1:
            self.simulator.kill(others[number % len(others)])

    @rule(one=NUMBER, other=NUMBER)
    def a_node_takes_another_for_dead(self, one: int, other: int) -> None:
        if self.node(one) is not self.node(other):
            self.node(one).peer_lost(self.node(other).node.id)

    @rule(number=NUMBER)
    def a_node_drains(self, number: int) -> None:
        node = self.node(number)
        if node is not self.simulator.origin and not node.leaving and node.node.joined:
            node.leave()

    @rule(number=NUMBER, seconds=st.sampled_from([0.6, 3.0, 6.0]))
    def a_clock_jumps(self, number: int, seconds: float) -> None:
        self.node(number).jump(seconds)

    def teardown(self) -> None:
        if self.simulator is not None:
            self.simulator.finish()


TestAdversary = Adversary.TestCase
TestAdversary.settings = settings(
    max_examples=60,
    stateful_step_count=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
