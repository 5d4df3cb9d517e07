"""A whole cluster in one thread and virtual time: the same protocol code as in production, one seed.

    python -m p2pscoop.testing --seed 7 --trace

`Simulator` runs N core nodes over a `FakeNetwork` that delays, reorders, loses and duplicates messages, and stops,
parts, kills and drains nodes, all drawn from the seed (`Faults`). It checks the guarantees as it goes, heals, and
demands that the root task has the right value and that every table is empty.

`p2pscoop.testing.mutations` puts known bugs into the protocol, to see that the simulator catches them, and
`p2pscoop.testing.diagrams` draws the protocol's state diagrams. `p2pscoop.testing.scale` has thousands of nodes
and no faults, and measures how well stealing keeps them at work.
"""

from p2pscoop.testing._faults import Faults
from p2pscoop.testing._graphs import GRAPHS, Fib, Flat, Graph, Random, Tree
from p2pscoop.testing._network import FakeNetwork
from p2pscoop.testing._report import InvariantError, Report
from p2pscoop.testing._simulator import Simulator, run_seed

__all__ = [
    "GRAPHS",
    "FakeNetwork",
    "Faults",
    "Fib",
    "Flat",
    "Graph",
    "InvariantError",
    "Random",
    "Report",
    "Simulator",
    "Tree",
    "run_seed",
]
