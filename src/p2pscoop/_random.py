"""Random generators that belong to tasks, so that a result does not depend on which node ran what."""

from __future__ import annotations

import hashlib
import random

from p2pscoop import _local
from p2pscoop._future import PATH_SIZE, task_path
from p2pscoop.errors import LocalProtocolError

__all__ = ["rng", "seed"]


def rng() -> random.Random:
    """The running task's own generator; the same one each time that the task asks.

    It is derived from the program's seed (`p2pscoop.seed`, else drawn anew for each run) and from the task's place
    in the tree of tasks: the third task that the second task of the main program spawned, say. The same program
    gives the same numbers on 1, 2 or 50 nodes. The generators of `random` and `numpy.random` are never touched.
    """
    task = _local.current().task
    generator = getattr(task, "_generator", None)
    if generator is None:
        generator = task._generator = random.Random(task_path(task))
    return generator


def seed(value: int | str | bytes) -> None:
    """Seed the program: what `rng` gives to every task follows from it. Call it before the first task.

    Args:
        value: any number, text or bytes.

    Raises:
        LocalProtocolError: called from a task, or after a task has been spawned.
    """
    scheduler = _local.current()
    root = scheduler.root_task
    if scheduler.task is not root or root._spawned:
        raise LocalProtocolError("p2pscoop.seed must be called in the main program, before its first task")
    root._path = hashlib.blake2b(repr(value).encode(), digest_size=PATH_SIZE).digest()
    if hasattr(root, "_generator"):
        del root._generator
