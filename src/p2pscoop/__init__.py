"""p2pscoop: brokerless peer-to-peer work stealing for Python.

    from p2pscoop import futures       tasks that spawn tasks, in the style of PEP 3148 and of SCOOP
    from p2pscoop import Executor      a drop-in for concurrent.futures executors

Importing the package starts nothing and costs little; what is used is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from p2pscoop import continuation, errors, futures
    from p2pscoop._pandas import pandas_engine
    from p2pscoop._parcels import explain
    from p2pscoop._random import rng, seed
    from p2pscoop._runtime import NodeStatistics
    from p2pscoop._session import statistics
    from p2pscoop.executor import Executor

__version__ = "0.1.0"

__all__ = [
    "Executor",
    "NodeStatistics",
    "__version__",
    "continuation",
    "errors",
    "explain",
    "futures",
    "pandas_engine",
    "rng",
    "seed",
    "statistics",
]

_HOMES = {
    "Executor": "p2pscoop.executor",
    "NodeStatistics": "p2pscoop._runtime",
    "explain": "p2pscoop._parcels",
    "pandas_engine": "p2pscoop._pandas",
    "rng": "p2pscoop._random",
    "seed": "p2pscoop._random",
    "statistics": "p2pscoop._session",
}
_MODULES = {"continuation", "errors", "futures"}


def __getattr__(name: str) -> Any:
    import importlib

    if name in _MODULES:
        return importlib.import_module(f"p2pscoop.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'p2pscoop' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
