"""Run a recipe as it stands, or with an executor that makes every call in place: `run_recipe.py MODE FILE`.

How many calls were submitted is written to stderr at the end.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import importlib
import runpy
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from itertools import starmap
from pathlib import Path
from typing import Any

import p2pscoop


class Serial(concurrent.futures.Executor):
    """What an executor is supposed to give, without one."""

    def __init__(self, max_workers: int) -> None:
        self._max_workers = max_workers

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        future.set_result(fn(*args, **kwargs))
        return future

    def map(self, fn: Callable[..., Any], *iterables: Iterable[Any], **_: Any) -> Iterator[Any]:
        return map(fn, *iterables)

    def starmap(self, fn: Callable[..., Any], iterable: Iterable[Any], **_: Any) -> Iterator[Any]:
        return starmap(fn, iterable)

    def map_unordered(self, fn: Callable[..., Any], *iterables: Iterable[Any]) -> Iterator[Any]:
        return map(fn, *iterables)


class Counting(p2pscoop.Executor):
    """The real one, which counts."""

    submitted = 0

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        Counting.submitted += 1
        return super().submit(fn, *args, **kwargs)


def main() -> None:
    mode, path = sys.argv[1:]
    warnings.simplefilter("ignore")
    if mode == "serial":
        if "import joblib" in Path(path).read_text():
            # What registers a backend needs the real executor, and was imported with it.
            importlib.import_module("p2pscoop.joblib")
            importlib.import_module("joblib").parallel_config = lambda **_: contextlib.nullcontext()
        p2pscoop.Executor = Serial  # type: ignore[misc, assignment]
    else:
        p2pscoop.Executor = Counting  # type: ignore[misc]
    runpy.run_path(path, run_name="__main__")
    print(f"submitted {Counting.submitted}", file=sys.stderr)


if __name__ == "__main__":
    main()
