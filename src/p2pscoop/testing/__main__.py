"""The simulator as a command: `python -m p2pscoop.testing --seed 7 --trace`."""

from __future__ import annotations

import sys
import time

import click

from p2pscoop.testing._graphs import GRAPHS
from p2pscoop.testing._report import InvariantError, Report
from p2pscoop.testing._simulator import run_seed

_LEGEND = """\
virtual seconds, node, what happens, peer, details; what happens is
  <-        a message arrives from the peer      lost      the pipe to the peer is removed
  killed    its process is gone                  cut from  it hears nothing of the peer for a while
  stopped   as under SIGSTOP, for a while        holds     computes, but hears and says nothing for a while
  leaves    begins to drain                      left      has drained and is gone
  jumps     its clock jumps ahead"""

_SUMS = (
    "executions",
    "tasks",
    "messages",
    "lost",
    "duplicated",
    "kills",
    "left",
    "given",
    "requeued",
    "poisoned",
    "migrated",
)
"""Counts of the reports that are added up."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--seed", type=int, default=0, show_default=True, help="The (first) seed.")
@click.option("--count", type=click.IntRange(min=1), default=1, show_default=True, help="How many seeds.")
@click.option("--graph", type=click.Choice(sorted(GRAPHS)), help="The task graph  [default: drawn].")
@click.option("--nodes", type=click.IntRange(min=1), help="The number of nodes  [default: drawn].")
@click.option("--trace", is_flag=True, help="Print a line for every message.")
def main(seed: int, count: int, graph: str | None, nodes: int | None, trace: bool) -> None:
    """Simulate a cluster under faults, in virtual time, and check the guarantees."""
    if trace:
        click.echo(_LEGEND)
    began = time.perf_counter()
    total = Report(seed)
    failures = 0
    for each in range(seed, seed + count):
        try:
            report = run_seed(each, graph=graph, nodes=nodes, trace=click.echo if trace else None)
        except InvariantError as error:
            failures += 1
            options = "".join(
                f" --{name} {value}" for name, value in (("graph", graph), ("nodes", nodes)) if value
            )
            click.echo(f"seed {each}: {error}", err=True)
            click.echo(f"again with: python -m p2pscoop.testing --seed {each}{options} --trace", err=True)
            continue
        for name in _SUMS:
            setattr(total, name, getattr(total, name) + getattr(report, name))
    elapsed = time.perf_counter() - began
    click.echo(
        f"{count} seeds in {elapsed:.1f} s: {failures} violations, {total.tasks} tasks, "
        f"{total.reexecutions} executed again, {total.given} given, "
        f"{total.migrated} continuations moved, {total.requeued} requeued, {total.poisoned} poisoned, "
        f"{total.messages} messages ({total.lost} lost, {total.duplicated} duplicated), "
        f"{total.kills} kills, {total.left} drained"
    )
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main(prog_name="python -m p2pscoop.testing")
