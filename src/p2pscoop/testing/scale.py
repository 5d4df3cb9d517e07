"""How the stealing protocol scales: thousands of core nodes search a tree in virtual time.

    python -m p2pscoop.testing.scale --nodes 1024 --latency-ms 1
    python -m p2pscoop.testing.scale --plot docs/scale.svg          all of docs/scale.md; takes long

The tree is a geometric one of Unbalanced Tree Search, four times as large with each level; by default each
cluster gets the one that gives every node a second of work. What is simulated, and what is not, says `_scale`.
"""

from __future__ import annotations

import gc
import time
from pathlib import Path

import click

from p2pscoop.testing._scale import Cluster, Measured, UtsTree
from p2pscoop.testing._scale_plot import plot

__all__ = ["main"]

_HEAD = """\
| nodes | latency, ms | tasks | work per node, s | makespan, s | efficiency | steals | failed | registrations \
| tasks moved | messages / node / s | idle: messages / node / s | idle, worst node |
| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"""


def _row(run: Measured) -> str:
    cells = (
        f"{run.nodes:,}",
        f"{run.latency_s * 1000:g}",
        f"{run.tasks:,}",
        f"{run.work_s:.2f}",
        f"{run.makespan_s:.2f}",
        f"{run.efficiency:.3f}",
        f"{run.steals:,}",
        f"{run.failed:,}",
        f"{run.registrations:,}",
        f"{run.given:,}",
        f"{run.message_rate:.0f}",
        f"{run.idle_mean:.2f}",
        f"{run.idle_max:.2f}",
    )
    return f"| {' | '.join(cells)} |"


def _depth_for(nodes: int) -> int:
    """The tree of 1,000 nodes or more for each of the cluster: depth 10 for 4,096, one less for a quarter."""
    depth = 10
    while depth > 1 and nodes <= 4096 // 4 ** (11 - depth):
        depth -= 1
    return depth


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--nodes",
    type=click.IntRange(min=1),
    multiple=True,
    default=(64, 256, 1024, 4096),
    show_default=True,
    help="Nodes of the cluster; may be repeated.",
)
@click.option(
    "--latency-ms",
    type=click.FloatRange(min=0.0),
    multiple=True,
    default=(0.1, 1.0, 20.0),
    show_default=True,
    help="What a message takes, on average; may be repeated.",
)
@click.option("--task-ms", type=click.FloatRange(min=0.0, min_open=True), default=1.0, show_default=True)
@click.option(
    "--depth", type=click.IntRange(1, 13), help="Of the tree  [default: at least 1,000 tasks for each node]."
)
@click.option(
    "--idle-s",
    type=click.FloatRange(min=0.0, min_open=True),
    default=30.0,
    show_default=True,
    help="How long to count the messages of idle nodes.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of every choice.")
@click.option(
    "--plot", "path", type=click.Path(dir_okay=False, writable=True, path_type=Path), help="An SVG to write."
)
def main(
    nodes: tuple[int, ...],
    latency_ms: tuple[float, ...],
    task_ms: float,
    depth: int | None,
    idle_s: float,
    seed: int,
    path: Path | None,
) -> None:
    """Search trees on large simulated clusters, and print what stealing cost."""
    click.echo(_HEAD)
    runs: list[Measured] = []
    began = time.perf_counter()
    for count in nodes:
        tree = UtsTree(_depth_for(count) if depth is None else depth)
        for latency in latency_ms:
            cluster = Cluster(count, latency / 1000, tree, task_s=task_ms / 1000, idle_s=idle_s, seed=seed)
            gc.freeze()  # The tables of thousands of nodes need not be looked through again and again.
            runs.append(cluster.run())
            gc.unfreeze()
            click.echo(_row(runs[-1]))
    click.echo(f"{len(runs)} runs in {time.perf_counter() - began:.0f} s of one core", err=True)
    if path is not None:
        path.write_text(plot(runs))


if __name__ == "__main__":
    main(prog_name="python -m p2pscoop.testing.scale")
