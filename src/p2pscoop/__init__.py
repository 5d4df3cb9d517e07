"""p2pscoop: brokerless peer-to-peer work stealing for Python.

    from p2pscoop import futures       tasks that spawn tasks, in the style of PEP 3148 and of SCOOP
    from p2pscoop import Executor      a drop-in for concurrent.futures executors

Importing the package starts nothing and costs little; what is used is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import logging

    from p2pscoop import continuation, errors, futures, shared
    from p2pscoop._pandas import pandas_engine
    from p2pscoop._parcels import explain
    from p2pscoop._random import rng, seed
    from p2pscoop._runtime import NodeStatistics
    from p2pscoop._session import statistics
    from p2pscoop._timeouts import task
    from p2pscoop.executor import Executor

    # Where this process stands. Each is looked up when it is asked for: use `p2pscoop.SIZE`, and do not import it
    # by name, where it may change.
    BROKER: None
    """There is none."""
    CONFIGURATION: dict[str, Any]
    """What a program may want to know of how it was launched: `debug`, `executable`, `headless`, `size`."""
    DEBUG: bool
    """Whether `run --debug` started this process, or `P2PSCOOP_DEBUG` is set to anything but 0."""
    IS_ORIGIN: bool
    """Whether the main program runs in this process: False on all nodes that only run its tasks."""
    IS_RUNNING: bool
    """Whether this process is a node now. A plain script becomes one at its first call of `futures`."""
    MAIN_MODULE: str | None
    """Path of the main program; None where there is no file of it, or none on this machine."""
    SHUTDOWN_REQUESTED: bool
    """Whether this node is being taken down."""
    SIZE: int
    """How many nodes run tasks now, this one included; it grows as nodes join. 1 where nothing runs."""
    logger: logging.Logger
    """The logger of the package. What nodes print comes home with their names."""
    worker: str | None
    """The id of this node, in hexadecimal, as in `statistics`; None where nothing runs."""

__version__ = "0.1.0"

__all__ = [
    "BROKER",
    "CONFIGURATION",
    "DEBUG",
    "IS_ORIGIN",
    "IS_RUNNING",
    "MAIN_MODULE",
    "SHUTDOWN_REQUESTED",
    "SIZE",
    "Executor",
    "NodeStatistics",
    "__version__",
    "continuation",
    "errors",
    "explain",
    "futures",
    "logger",
    "pandas_engine",
    "rng",
    "seed",
    "shared",
    "statistics",
    "task",
    "worker",
]

_HOMES = {
    "Executor": "p2pscoop.executor",
    "NodeStatistics": "p2pscoop._runtime",
    "explain": "p2pscoop._parcels",
    "pandas_engine": "p2pscoop._pandas",
    "rng": "p2pscoop._random",
    "seed": "p2pscoop._random",
    "statistics": "p2pscoop._session",
    "task": "p2pscoop._timeouts",
}
_MODULES = {"continuation", "errors", "futures", "shared"}


def __getattr__(name: str) -> Any:
    import importlib

    if name in _MODULES:
        return importlib.import_module(f"p2pscoop.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    from p2pscoop._situation import SITUATION

    if name in SITUATION:
        return SITUATION[name]()
    raise AttributeError(f"module 'p2pscoop' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
